#!/usr/bin/env python3
"""Prefill and decode of a GPT-2 of 124M, random weights: this program beside Transformers, in one run on one GPU.

    make build/dev/bench_sample && python3 dev/bench_sample.py                 prompts of 1024 and 32768 tokens
    python3 dev/bench_sample.py --prompts 1024 --length 64 --no-static         a short run

Transformers: bf16, SDPA, batch 1; `generate` as it is (dynamic cache), and with cache_implementation="static", which
compiles the model. Decode is what a token costs beyond the first: (time of LENGTH tokens - time of 1) / (LENGTH - 1).
Every figure is a median after runs that are not counted. What cannot run says why. Exit status 1 if a decode is less
than twice as fast as the best of Transformers'.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time


def ours(program, folder, prompt, length):
    """{"prefill_ms": ..., "greedy_ms": ..., "sampled_ms": ..., "tokens": [...]} of bench_sample."""
    done = subprocess.run([program, folder, str(prompt), str(length)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{program}: exit status {done.returncode}: {done.stdout}{done.stderr}")
    found = {}
    for line in done.stdout.splitlines():
        key, *values = line.split()
        if key == "tokens":
            found[key] = [int(v) for v in values]
        elif key.endswith("_ms"):
            found[key] = float(values[0])
    return found


def timed(torch, call, repeats=3):
    """Median milliseconds of a call that the GPU has finished."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def theirs(torch, model, prompt, length, static):
    """The same of Transformers."""
    ids = torch.tensor([[(i * 7919 + 12345) % (model.config.vocab_size - 1) for i in range(prompt)]], device="cuda")
    mask = torch.ones_like(ids)
    how = {"do_sample": False, "pad_token_id": 0, "attention_mask": mask, "eos_token_id": None}
    if static:
        how["cache_implementation"] = "static"

    def make(n):
        return model.generate(ids, max_new_tokens=n, min_new_tokens=n, **how)

    with torch.inference_mode():
        tokens = make(length)[0, prompt:].tolist()
        make(length)
        make(1)
        whole, first = timed(torch, lambda: make(length)), timed(torch, lambda: make(1))
        model(ids, use_cache=True, logits_to_keep=1)
        prefill = timed(torch, lambda: model(ids, use_cache=True, logits_to_keep=1))
    return {"prefill_ms": prefill, "greedy_ms": (whole - first) / (length - 1), "tokens": tokens[:16]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/dev/bench_sample")
    parser.add_argument("--prompts", default="1024,32768")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--no-static", action="store_true", help="without the static cache, which takes a minute to compile")
    options = parser.parse_args()
    import torch
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, transformers {transformers.__version__}")
    prompts = [int(p) for p in options.prompts.split(",")]
    slow = 0
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(1)
        config = GPT2Config(n_positions=max(prompts) + options.length)
        model = GPT2LMHeadModel(config).eval()
        model.save_pretrained(folder)
        print(f"{'prompt':>7} {'':24} {'prefill ms':>11} {'tok/s':>9} {'token ms':>9} {'tok/s':>7} {'ratio':>6}")
        rows = {p: ours(os.path.abspath(options.program), folder, p, options.length) for p in prompts}
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").cuda().eval()
        for prompt in prompts:
            own = rows[prompt]
            found = {"gpt2_sp": own}
            for name, static in (("Transformers", False),) + (() if options.no_static else (("Transformers, static", True),)):
                try:
                    found[name] = theirs(torch, model, prompt, options.length, static)
                except Exception as error:   # what does not run is told, not hidden
                    print(f"{prompt:7} {name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
            for name, row in found.items():
                ratio = row["greedy_ms"] / own["greedy_ms"]
                print(f"{prompt:7} {name:24} {row['prefill_ms']:11.3f} {1e3 * prompt / row['prefill_ms']:9.0f} "
                      f"{row['greedy_ms']:9.4f} {1e3 / row['greedy_ms']:7.0f} {ratio:6.2f}")
                same = sum(a == b for a, b in zip(row["tokens"], own["tokens"]))
                if row is not own:
                    slow += ratio < 2
                    print(f"{'':7} {'':24} prefill ratio {row['prefill_ms'] / own['prefill_ms']:.2f}; "
                          f"{same} of the first {len(own['tokens'])} greedy tokens alike (bf16)")
            print(f"{prompt:7} {'gpt2_sp, temperature 0.8':24} {'':11} {'':9} {own['sampled_ms']:9.4f} "
                  f"{1e3 / own['sampled_ms']:7.0f}")
            sys.stdout.flush()
    return slow > 0


if __name__ == "__main__":
    sys.exit(main())
