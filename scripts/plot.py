#!/usr/bin/env python3
"""Draws runs of gpt2_sp: the loss over tokens, and the loss by position in the context.

    ./train_gpt2_sp eval --from runs/a --data val.tok --json > eval.json
    python3 scripts/plot.py runs/a [runs/b ...] --eval eval.json [more.json ...] --out loss.png

Left: `loss` (thin: every step; bold: a running mean) and `val_loss` (dots) of each run's log.jsonl.
Right: `loss_by_position` of each file that `eval --json` wrote. Either side may be left out.
Needs Python 3.8 and matplotlib.
"""
import argparse
import json
import os
import sys


def read_log(run):
    """The lines of a run's log, as dicts. Where the run went on from an earlier step, what came after that step before
    does not count. A validation before the first step of a launch is a line without `loss`, beside that of its step.
    A line that has neither a loss nor a val_loss (not finite) is left out."""
    path = os.path.join(run, "log.jsonl") if os.path.isdir(run) else run
    rows = []
    with open(path, encoding="utf-8") as lines:
        for row in (json.loads(line) for line in lines if line.strip()):
            while rows and (rows[-1]["step"] > row["step"] or (rows[-1]["step"] == row["step"] and "loss" in row)):
                rows.pop()
            rows.append(row)
    rows = [row for row in rows if row.get("loss") is not None or row.get("val_loss") is not None]
    if not rows:
        sys.exit(f"plot.py: {path}: no step in it")
    return rows


def running_mean(values, window):
    """Mean of each value and up to window - 1 before it."""
    total, out = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        out.append(total / min(i + 1, window))
    return out


def name_of(path):
    name = os.path.basename(os.path.normpath(path))
    return name[:-5] if name.endswith(".json") else name


def draw_loss(axes, runs, labels):
    for i, (run, label) in enumerate(zip(runs, labels)):
        rows, color = read_log(run), f"C{i}"
        steps = [row for row in rows if row.get("loss") is not None]
        tokens, loss = [row["tokens"] / 1e6 for row in steps], [row["loss"] for row in steps]
        style = ["-", "--", ":", "-."][i % 4]   # runs that agree lie on top of each other: let both be seen
        axes.plot(tokens, loss, color=color, linewidth=0.6, alpha=0.35)
        axes.plot(tokens, running_mean(loss, max(1, len(loss) // 25)), style, color=color, linewidth=1.8, label=f"{label}: training")
        seen = [(row["tokens"] / 1e6, row["val_loss"]) for row in rows if row.get("val_loss") is not None]
        if seen:
            axes.plot(*zip(*seen), "os^v"[i % 4], color=color, markersize=5, markerfacecolor="none" if i else color, label=f"{label}: validation")
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title("Loss")


def draw_positions(axes, files, labels):
    for i, (path, label) in enumerate(zip(files, labels)):
        with open(path, encoding="utf-8") as file:
            buckets = json.load(file).get("loss_by_position")
        if not buckets:
            sys.exit(f"plot.py: {path}: no `loss_by_position` (eval --data ... --json writes it)")
        x, y = [], []
        for bucket in buckets:   # a bucket is a flat piece from its first to its last position
            x += [bucket["from"] + 1, bucket["to"] + 2]
            y += [bucket["mean"]] * 2
        axes.plot(x, y, color=f"C{i}", linewidth=1.8, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position in the context (counted from 1)")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title("Loss by position")


def main():
    parser = argparse.ArgumentParser(description="Draws the loss of runs, and the loss by position of evaluations.")
    parser.add_argument("runs", nargs="*", help="folders with a log.jsonl")
    parser.add_argument("--eval", nargs="*", default=[], metavar="JSON", help="output of `eval --json`")
    parser.add_argument("--labels", nargs="*", default=[], help="names of the runs, then of the evaluations")
    parser.add_argument("--title", default="")
    parser.add_argument("--out", default="loss.png", help="picture to write (png, svg or pdf)")
    args = parser.parse_args()
    if not args.runs and not args.eval:
        parser.error("nothing to draw: give a run's folder, --eval, or both")
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot.py: needs matplotlib: python3 -m pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = args.labels + [name_of(path) for path in (args.runs + args.eval)[len(args.labels):]]
    sides = [side for side in ("runs", "eval") if getattr(args, side)]
    figure, axes = plt.subplots(1, len(sides), figsize=(5.2 * len(sides), 3.9), squeeze=False)
    for axis, side in zip(axes[0], sides):
        if side == "runs":
            draw_loss(axis, args.runs, labels[:len(args.runs)])
        else:
            draw_positions(axis, args.eval, labels[len(args.runs):])
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
        for edge in ("top", "right"):
            axis.spines[edge].set_visible(False)
    if args.title:
        figure.suptitle(args.title, fontsize=10)
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)
    print(args.out)


if __name__ == "__main__":
    main()
