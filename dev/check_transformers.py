#!/usr/bin/env python3
"""Opens a checkpoint of gpt2_sp in Hugging Face's Transformers and compares the logits with the program's own.

    python3 -m venv build/venv && build/venv/bin/pip install torch transformers
    build/venv/bin/python dev/check_transformers.py runs/a/step_00000100 [--tokens 1024]

The folder is opened as it is, by GPT2LMHeadModel.from_pretrained. The program's logits come from a small C program that includes
train_gpt2_sp.c; it is compiled here (CC, or cc; OpenMP is not needed). Both read the same random tokens. The yardstick is the
same Transformers model in float64: the program's error must be at most twice that of Transformers in float32, plus an ulp.
Nothing of this is needed to build, run or test gpt2_sp. Exit status 0: equal within rounding.
"""
import argparse
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")   # a folder is opened, nothing is looked up

import numpy as np
import torch
from transformers import GPT2LMHeadModel

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = r"""
#define GPT2_SP_NO_MAIN
#include "train_gpt2_sp.c"

// logits FOLDER TOKENS LOGITS: reads int32 tokens, writes the float32 logits (T, V) after each of them.
int main(int argc, char** argv) {
    gpt2_sp_options o;
    Error e = {{0}};
    gpt2_sp_defaults(&o);
    if (argc != 4) return 2;
    snprintf(o.from, sizeof o.from, "%s", argv[1]);
    gpt2_sp* g = trainer_make(&o, trainer_load, &e);
    if (!g) { fprintf(stderr, "%s\n", e.text); return 1; }
    Rank* r = &g->ranks[0];
    const Shape* s = &g->mesh.shape;
    FILE *in = fopen(argv[2], "rb"), *out = fopen(argv[3], "wb");
    if (!in || !out || fread(r->batches[2].tokens, sizeof(int32_t), (size_t)s->T, in) != (size_t)s->T) return 1;
    for (int64_t t = 0; t < s->T; t++) r->batches[2].labels[t] = 0;
    if (ranks_run(g, rank_evaluate, &g->evaluation) != 0) { fprintf(stderr, "%s\n", g->error.text); return 1; }
    real* row = (real*)malloc((size_t)s->Vp * sizeof(real));
    for (int64_t t = 0; t < s->T; t++) {   // rank_evaluate left the final norm's output
        cpu_matmul_forward(row, r->lnf + t * s->C, weight(r, 0, P_wte), NULL, 1, s->C, s->Vp, r->scratch);
        for (int64_t v = 0; v < s->V; v++) {
            float logit = (float)row[v];
            fwrite(&logit, sizeof logit, 1, out);
        }
    }
    free(row);
    fclose(in);
    int status = fclose(out) != 0;
    gpt2_sp_destroy(g);
    return status;
}
"""


def program_logits(folder, tokens, vocab):
    """Logits (T, V) of the C program."""
    with tempfile.TemporaryDirectory() as temp:
        path = [os.path.join(temp, name) for name in ("logits.c", "logits", "tokens", "out")]
        with open(path[0], "w", encoding="utf-8") as f:
            f.write(PROGRAM)
        subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-O2", "-march=native", "-w", "-I", ROOT, path[0], "-o", path[1], "-lz", "-lm", "-lpthread"], check=True)
        tokens.astype("<i4").tofile(path[2])
        subprocess.run([path[1], folder, path[2], path[3]], check=True)
        return np.fromfile(path[3], "<f4").reshape(len(tokens), vocab).astype(np.float64)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a checkpoint: RUN/step_%%08d")
    parser.add_argument("--tokens", type=int, default=1024, help="positions to compare, from the front")
    args = parser.parse_args()
    model, info = GPT2LMHeadModel.from_pretrained(args.folder, output_loading_info=True)
    wrong = {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
    print(f"{args.folder} opens as GPT2LMHeadModel: {sum(p.numel() for p in model.parameters())} parameters, {wrong or 'every tensor used, none missing'}")
    config = model.config
    tokens = np.random.Generator(np.random.PCG64(1)).integers(0, config.vocab_size, config.n_positions)
    count = min(args.tokens, config.n_positions)
    model.eval()
    with torch.no_grad():
        ids = torch.tensor(tokens[None, :count])
        single = model.float()(ids).logits[0].double().numpy()
        double = model.double()(ids).logits[0].numpy()
    ours = program_logits(args.folder, tokens, config.vocab_size)[:count]
    error = np.abs(ours - double).max()
    theirs = np.abs(single - double).max()
    limit = 2 * theirs + np.abs(double).max() * 2.0 ** -23
    print(f"{count} positions x {config.vocab_size} logits, the largest {np.abs(double).max():.4f}")
    print(f"largest difference from Transformers in float64: gpt2_sp {error:.3e}, Transformers in float32 {theirs:.3e}, allowed {limit:.3e}")
    ok = error <= limit and not wrong   # a NaN is not <=
    print("equal within rounding" if ok else "NOT equal")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
