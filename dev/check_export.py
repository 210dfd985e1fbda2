#!/usr/bin/env python3
"""Exports a model of gpt2_sp in every type, opens it in Hugging Face's Transformers, and brings it back.

    python3 -m venv build/venv && build/venv/bin/pip install torch transformers safetensors
    make lib && build/venv/bin/python dev/check_export.py runs/a [--program ./train_gpt2_sp] [--tokens 1024] [--steps 20]

RUN is a run, a checkpoint, a folder of Transformers or a model file of llm.c, with --center 1 or 0. Held:
each export opens with from_pretrained, in its type, with every tensor used; its numbers are those that PyTorch rounds to, to the
last bit; logits in float32 are within 1e-4 of the program's; both continue a prompt with the same tokens; what Transformers
saves again, whole or in several files, and what llm.c's file holds, comes back bit for bit; some steps of AdamW, from the export
on, have Transformers' losses. A folder with a tokenizer's files is opened by `pipeline` too. Exit status 0: all of it holds.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")   # folders are opened, nothing is looked up

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, pipeline
from transformers.utils import logging

from check_transformers import program_logits

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
failed = 0


def check(ok, name, figure):
    global failed
    failed += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {name}: {figure}", flush=True)


class Program:
    """The gpt2_sp program, and a folder for what it writes."""

    def __init__(self, path, folder):
        self.path, self.folder = os.path.abspath(path), folder

    def run(self, *arguments):
        done = subprocess.run([self.path, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def export(self, model, name, *more):
        out = os.path.join(self.folder, name)
        self.run("export", "--from", model, "--out", out, *more)
        return out


def opened(folder, **how):
    """The model of a folder and what from_pretrained missed or did not expect."""
    remote = "auto_map" in json.load(open(os.path.join(folder, "config.json"), encoding="utf-8"))
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, trust_remote_code=remote, **how)
    return model.eval(), {key: value for key, value in info.items() if value}


def weights(folder):
    tensors = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            tensors.update(load_file(os.path.join(folder, name)))
    return tensors


def same(a, b):
    """The number of numbers of two models that differ in a bit; all of them if the tensors are others."""
    if {name: (t.shape, t.dtype) for name, t in a.items()} != {name: (t.shape, t.dtype) for name, t in b.items()}:
        return sum(t.numel() for t in a.values())
    kind = {4: torch.int32, 2: torch.int16, 8: torch.int64}
    return sum(int((t.view(kind[t.element_size()]) != b[name].view(kind[t.element_size()])).sum()) for name, t in a.items())


def check_types(program, source, count):
    """Every type: opens, is rounded as PyTorch rounds, has the program's logits."""
    exact = weights(program.export(source, "fp32"))
    folders = {}
    for word, dtype in TYPES.items():
        folder = folders[word] = program.export(source, word, "--dtype", word)
        model, wrong = opened(folder)
        check(model.dtype == dtype and not wrong, f"{word} opens by from_pretrained",
              f"{type(model).__name__}, {model.dtype}, {sum(p.numel() for p in model.parameters())} parameters, {wrong or 'every tensor used'}")
        differ = same({name: t.to(dtype) for name, t in exact.items()}, weights(folder))
        check(differ == 0, f"{word} is what PyTorch rounds to", f"{differ} numbers differ")
        config = model.config
        tokens = np.random.Generator(np.random.PCG64(1)).integers(0, config.vocab_size, config.n_positions)
        ids = torch.tensor(tokens[None, :min(count, config.n_positions)])
        ours = program_logits(folder, tokens)[:ids.shape[1]]
        with torch.no_grad():
            native = model(ids).logits[0].double().numpy()
            single = model.float()(ids).logits[0].double().numpy()
        error = np.abs(ours - single).max()
        check(error <= 1e-4, f"{word}: logits in float32 are the program's",
              f"{ids.shape[1]} positions x {config.vocab_size}, largest {np.abs(single).max():.3f}, difference {error:.2e}; "
              f"Transformers in {word} itself differs by {np.abs(ours - native).max():.2e}")
    return folders


def check_text(program, folder):
    """A prompt continued by both, always by the likeliest token."""
    model, _ = opened(folder)
    prompt = [int(t) for t in np.random.Generator(np.random.PCG64(2)).integers(0, model.config.vocab_size, 8)]
    count = min(32, model.config.n_positions - 8)
    ours = program.run("sample", "--from", folder, "--prompt-tokens", ",".join(map(str, prompt)), "--temperature", 0, "--length", count)
    ours = [int(t) for t in ours.replace("\n", "").split(",") if t]
    with torch.no_grad():
        ids = torch.tensor([prompt])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)[0, 8:].tolist()
    end = model.config.eos_token_id
    theirs = theirs[:theirs.index(end)] if end in theirs else theirs
    check(ours == theirs and len(ours) + (len(ours) < count) > 0, "both continue a prompt with the same tokens",
          f"{len(ours)} tokens, {sum(a == b for a, b in zip(ours, theirs))} the same")
    if os.path.exists(os.path.join(folder, "tokenizer.json")):
        text = pipeline("text-generation", model=folder)("The", max_new_tokens=8, do_sample=False)[0]["generated_text"]
        check(text.startswith("The"), "pipeline opens the folder", repr(text))


def check_back(program, folders):
    """Out of Transformers again, whole and in several files; through llm.c's file: all bit for bit."""
    for word, folder in folders.items():
        exact = weights(folder)
        model, _ = opened(folder)
        for name, size in (("whole", "50GB"), ("parts", max(1, sum(t.numel() * t.element_size() for t in exact.values()) // 3))):
            saved = os.path.join(program.folder, f"{word}-{name}")
            model.save_pretrained(saved, max_shard_size=size)
            files = sum(name.endswith(".safetensors") for name in os.listdir(saved))
            differ = same(exact, weights(program.export(saved, f"{word}-again", "--dtype", word)))
            check(differ == 0, f"{word}: what Transformers saves comes back", f"{files} files, {differ} numbers differ")
        if word != "fp16" and model.config.model_type == "gpt2":
            file = program.export(folder, f"{word}.bin", "--format", "llmc", "--dtype", word)
            differ = same(exact, weights(program.export(file, f"{word}-again", "--dtype", word)))
            check(differ == 0, f"{word}: llm.c's file comes back", f"{os.path.getsize(file)} bytes, {differ} numbers differ")


def theirs_train(folder, rows, steps, dtype):
    """Losses of some steps of AdamW as Transformers and PyTorch have them, before each update; on a GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = opened(folder, dtype=dtype)[0].to(device)
    groups = {0: [], 1: []}
    for name, p in model.named_parameters():   # matrices and wte are decayed
        groups[int(p.dim() > 1 and "wpe" not in name)].append(p)
    adamw = torch.optim.AdamW([{"params": groups[1], "weight_decay": 0.1}, {"params": groups[0], "weight_decay": 0.0}],
                              lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    x, y = torch.tensor(rows[:, :-1], device=device), torch.tensor(rows[:, 1:], device=device)
    losses = []
    for _ in range(steps):
        logits = model(x).logits
        loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y.reshape(-1))
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        losses.append(loss.item())
    return np.array(losses)


def check_steps(program, folder, steps):
    """AdamW from the export on: every step sees all of the data, B rows of T tokens and a last label."""
    config = json.load(open(os.path.join(folder, "config.json"), encoding="utf-8"))
    T, V, B = config["n_positions"], config["vocab_size"], 2
    tokens = (np.random.Generator(np.random.PCG64(3)).random(B * T + 1) ** 3 * (V - 1)).astype(np.int64)
    data, run = os.path.join(program.folder, "tokens.bin"), os.path.join(program.folder, "steps")
    tokens.astype("<u2").tofile(data)
    program.run("train", "--init-from", folder, "--data", data, "--raw-u16", 1, "--vocab", V, "--batch-size", B, "--steps", steps,
                "--lr", 1e-3, "--lr-schedule", "constant", "--center", int(config["model_type"] == "gpt2"), "--out", run)
    ours = np.array([json.loads(line)["loss"] for line in open(os.path.join(run, "log.jsonl"), encoding="utf-8")])
    rows = np.stack([tokens[i * T:i * T + T + 1] for i in range(B)])
    double, single = theirs_train(folder, rows, steps, torch.float64), theirs_train(folder, rows, steps, torch.float32)
    error, limit = np.abs(ours - double).max(), max(1e-4, 4 * np.abs(single - double).max())
    check(error <= limit, f"{steps} steps of AdamW have Transformers' losses",
          f"{ours[0]:.4f} to {ours[-1]:.4f}; largest difference from float64 {error:.2e}, Transformers' in float32 "
          f"{np.abs(single - double).max():.2e}, allowed {limit:.2e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--program", default="./train_gpt2_sp")
    parser.add_argument("--tokens", type=int, default=1024, help="positions whose logits are compared")
    parser.add_argument("--steps", type=int, default=20, help="steps of AdamW to compare")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        program = Program(args.program, folder)
        folders = check_types(program, args.run, args.tokens)
        check_text(program, folders["fp32"])
        check_back(program, folders)
        check_steps(program, folders["fp32"], args.steps)
    print(f"{failed} failed" if failed else "all hold")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
