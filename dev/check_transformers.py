#!/usr/bin/env python3
"""Opens a checkpoint of gpt2_sp in Hugging Face's Transformers and compares the logits with the program's own.

    python3 -m venv build/venv && build/venv/bin/pip install torch transformers
    make lib && build/venv/bin/python dev/check_transformers.py runs/a/step_00000100 [--tokens 1024]

The folder is opened as it is, by GPT2LMHeadModel.from_pretrained. The program's logits come from its library (GPT2_SP_LIBRARY, or
libgpt2sp.so of this tree). Both read the same random tokens. The yardstick is the
same Transformers model in float64: the program's error must be at most twice that of Transformers in float32, plus an ulp.
Nothing of this is needed to build, run or test gpt2_sp. Exit status 0: equal within rounding.
"""
import argparse
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")   # a folder is opened, nothing is looked up

import numpy as np
import torch
from transformers import GPT2LMHeadModel

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import gpt2_sp


def program_logits(folder, tokens):
    """Logits (T, V) of the C library for T tokens, the context of the model."""
    with gpt2_sp.Trainer(init_from=folder, feed=np.resize(tokens, len(tokens) + 1), seq_len=len(tokens), steps=1) as trainer:
        return trainer.logits(tokens).astype(np.float64)


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
    ours = program_logits(args.folder, tokens)[:count]
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
