"""Two GPUs against one and against PyTorch's context_parallel: one table and a JSON file. `make bench-gpu2` (needs two GPUs; PyTorch for its rows).

    python3 dev/bench_gpu2.py [--program ./train_gpt2_spcu] [--json build/bench_gpu2.json] [--quick]

GPT-2 124M on random tokens, whole training steps, medians of the second half of a run's, when the clocks have settled under the load. Rows that
belong together run one after the other. One GPU: each of the two alone, and the mean, since no two cards are equally fast.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading

from bench_gpu import gpus_used

STEP = re.compile(r"^step +(\d+)/\d+ .*? +([0-9.]+) ms")
TRACE = re.compile(r"^rank (\d+), GPU \d+: step ([0-9.]+) ms, attention ([0-9.]+) ms \(kernels [0-9.]+\), exchange ([0-9.]+) ms \((\d+) %")
MEMORY = re.compile(r"^memory +([0-9.]+) (\w+) per rank")
UNITS = {"MiB": 1 / 1024, "GiB": 1}


def tokens_file(folder, count=2_200_000):
    path = os.path.join(folder, "random.bin")
    state, words = 1, bytearray()
    try:
        import numpy

        numpy.random.default_rng(1).integers(0, 50257, count, dtype=numpy.uint16).tofile(path)
    except ImportError:
        for _ in range(count):
            state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
            words += ((state >> 33) % 50257).to_bytes(2, "little")
        open(path, "wb").write(words)
    return path


class Bench:
    def __init__(self, options):
        self.options, self.rows, self.alone = options, [], {}   # alone: by length, attention of a step on one GPU, ms
        self.folder = tempfile.TemporaryDirectory()
        self.data = tokens_file(self.folder.name)

    def ours(self, name, seq_len, gpus, *more, steps=12, first=0):
        """`gpus` ranks on as many GPUs, from number `first` on."""
        command = [self.options.program, "train", "--data", self.data, "--raw-u16", "1", "--vocab", "50257", "--seq-len", str(seq_len),
                   "--sp", str(gpus), "--steps", str(steps), "--trace", os.path.join(self.folder.name, "trace.json"),
                   *([] if "--model" in more else ["--model", "d12"]), *more]
        visible = ",".join(str(first + i) for i in range(gpus))
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES=visible, NCCL_NVLS_ENABLE="0")
        row = {"name": name, "seq_len": seq_len, "gpus": gpus, **(self.plan(seq_len, gpus, *more) if gpus > 1 else {})}
        before, times, lines = gpus_used(), [], []
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        ends = threading.Timer(120, run.kill)
        ends.start()
        for line in run.stdout:
            lines.append(line.strip())
            if line.startswith("step ") and "used_gib" not in row and "/" in line.split()[1]:   # all memory is taken by then
                row["used_gib"] = max(after - b for after, b in zip(gpus_used(), before)) / 1024
            if (found := STEP.match(line)) and int(found[1]) > max(4, steps // 2):   # the traced step, the fourth, pays for its events
                times.append(float(found[2]))
            if found := TRACE.match(line):
                row.setdefault("attention_ms", []).append(float(found[3]))
                row.setdefault("hidden_percent", []).append(int(found[5]))
            if found := MEMORY.match(line):
                row["gib"] = float(found[1]) * UNITS[found[2]]
        ends.cancel()
        if run.wait() != 0 or not times:
            return self.failed(name, seq_len, gpus, (lines or ["nothing printed, or more than 120 s"])[-1][:120])
        row["ms"] = sorted(times)[len(times) // 2]
        if gpus > 1 and seq_len in self.alone:
            row["attention_share"] = self.alone[seq_len] / gpus / max(row["attention_ms"])
        return self.add(row)

    def one(self, seq_len, *more, steps):
        rows = [self.ours(f"recompute attn, GPU {i}", seq_len, 1, *more, steps=steps, first=i) for i in range(2)]
        if not all(rows):
            return None
        self.alone[seq_len] = sum(row["attention_ms"][0] for row in rows) / 2
        return {"ms": sum(row["ms"] for row in rows) / 2, "attention_ms": [self.alone[seq_len]], "gpus": 1}

    def plan(self, seq_len, gpus, *more):
        """What attention sends per rank and step, and the exchange buffers, by the plan, which is what is allocated."""
        command = [self.options.program, "plan", "--vocab", "50257", "--seq-len", str(seq_len), "--sp", str(gpus), "--json", "--gflops", "6e5",
                   "--attention-gflops", "5e5", "--link-gbs", "370", "--copy-gbs", "4000", *([] if "--model" in more else ["--model", "d12"]), *more]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if run.returncode != 0:
            return {}
        plan = json.loads(run.stdout)
        return {"sent_mib": plan["step"]["attention_bytes_per_rank"] / 2**20, "exchange_mib": plan["memory_bytes"]["exchange buffers"] / 2**20}

    def pytorch(self, name, seq_len, *more):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer_context_parallel.py")
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", script, "--seq-len", str(seq_len), *more]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=150, env=dict(os.environ, NCCL_NVLS_ENABLE="0"))
        except subprocess.TimeoutExpired:
            return self.failed(name, seq_len, 2, "took more than 150 s")
        lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
        if not lines:
            return self.failed(name, seq_len, 2, (run.stderr.strip().splitlines() or ["nothing printed"])[-1][:120])
        found = json.loads(lines[-1])
        return self.add({"name": name, "seq_len": seq_len, "gpus": 2, "ms": found["ms"], "gib": found["peak_gib"]})

    def failed(self, name, seq_len, gpus, why):
        print(f"{name:34s} {seq_len:8d} {gpus:5d}   failed: {why}", flush=True)
        self.rows.append({"name": name, "seq_len": seq_len, "gpus": gpus, "failed": why})

    def add(self, row):
        self.rows.append(row)
        attention = "/".join(f"{ms:.1f}" for ms in row.get("attention_ms", []))
        share = f"{100 * row['attention_share']:5.1f}" if "attention_share" in row else ""
        hidden = "/".join(f"{percent}" for percent in row.get("hidden_percent", [])) if row["gpus"] > 1 else ""
        planned = lambda key: f"{row[key]:9.1f}" if key in row else " " * 9
        print(f"{row['name']:34s} {row['seq_len']:8d} {row['gpus']:5d} {row['ms']:9.1f} {row['seq_len'] / row['ms'] * 1e3:9.0f} "
              f"{row.get('gib', float('nan')):8.2f} {row.get('used_gib', float('nan')):8.2f} {attention:>15s} {share:>7s} "
              f"{hidden:>9s} {planned('sent_mib')} {planned('exchange_mib')}".rstrip(), flush=True)
        return row

    def ratio(self, what, a, b, key, bar, aim):
        if not a or not b:
            return print(f"{what:62s} not measured")
        value = key(a) / key(b)
        self.rows.append({"ratio": what, "value": value, "bar": bar, "aim": aim})
        print(f"{what:62s} {value:6.3f}   bar {bar}  aim {aim}   {'reached' if value >= bar else 'missed'}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default="./train_gpt2_spcu")
    parser.add_argument("--json", default="build/bench_gpu2.json")
    parser.add_argument("--quick", action="store_true", help="32k only, no PyTorch")
    options = parser.parse_args()
    bench = Bench(options)
    speed, attention = (lambda row: 1 / row["ms"]), (lambda row: 1 / max(row["attention_ms"]))
    print(f"{'whole training step':34s} {'tokens':>8s} {'GPUs':>5s} {'ms':>9s} {'tok/s':>9s} {'GiB':>8s} {'used':>8s} "
          f"{'attention ms':>15s} {'% ideal':>7s} {'% hidden':>9s} {'sent MiB':>9s} {'exch. MiB':>9s}")
    one, two, torch_rows = {}, {}, {}
    for length in [32768] if options.quick else [32768, 131072]:
        steps = 24 if length < 100000 else 6
        one[length] = bench.one(length, "--recompute", "attn", steps=steps)
        two[length] = bench.ours("recompute attn, dist, zero 1", length, 2, "--recompute", "attn", "--zero", "1", steps=2 * steps)
        mode = "none"
        two[length, mode] = bench.ours("recompute none, dist, zero 1", length, 2, "--recompute", mode, "--zero", "1", steps=steps)
        if not options.quick:
            more = ["--compile"] if length < 100000 else ["--steps", "4"]
            torch_rows[length] = bench.pytorch("PyTorch context_parallel" + (", compiled" if "--compile" in more else ""), length, *more)
    if not options.quick:
        bench.one(8192, "--recompute", "attn", steps=40)
    bench.ours("recompute attn, dist, zero 0", 32768, 2, "--recompute", "attn", steps=24)
    bench.ours("recompute attn, dist, NCCL", 32768, 2, "--recompute", "attn", "--transport", "nccl", steps=24)
    for length in [32768] if options.quick else [8192, 32768, 131072]:
        for schedule in ["ring", "dist", "dist-paper", "zigzag", "allgather", "ulysses"]:
            bench.ours(schedule, length, 2, "--recompute", "attn", "--schedule", schedule, steps=12 if length < 100000 else 6)
    if not options.quick:
        bench.ours("d48, --zero 3", 32768, 2, "--model", "d48", "--zero", "3", "--recompute", "attn", steps=5)
    print()
    for length in one:
        k = f"{length // 1024}k"
        bench.ratio(f"{k}: 2 GPUs against 1", two[length], one[length], speed, *((1.85, 1.95) if length == 32768 else (1.93, 1.98)))
        bench.ratio(f"{k}: attention, share of half of one GPU's time", two[length], one[length], lambda row: attention(row) / row["gpus"],
                    *((0.92, 0.97)))
        if length in torch_rows:
            bench.ratio(f"{k}: against PyTorch context_parallel", two[length, "none"], torch_rows[length], speed, 1.3, 1.5)
    os.makedirs(os.path.dirname(options.json) or ".", exist_ok=True)
    with open(options.json, "w") as f:
        json.dump(bench.rows, f, indent=1)
    print(f"\nwritten: {options.json}")


if __name__ == "__main__":
    main()
