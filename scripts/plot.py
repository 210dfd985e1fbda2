#!/usr/bin/env python3
"""Draws runs of gpt2_sp: the loss over tokens, and what `eval` tells of their models.

    ./train_gpt2_sp eval --from runs/a --data val.tok --json > eval.json
    python3 scripts/plot.py runs/a [runs/b ...] --eval eval.json [more.json ...] --out loss.png

Left: `loss` (thin: every step; bold: a running mean) and `val_loss` (dots) of each run's log.jsonl.
Beside it, of the files that `eval --json` wrote, a picture for each kind of figures that they have: `loss_by_position`,
`gain_by_position` (--context-gain), `sliding` (--sliding) and a map of `probe` (--probe) for each model. A file that compares two
models counts as two. Runs or files may be left out.
Needs Python 3.8 and matplotlib.
"""
import argparse
import json
import os
import sys

from run_log import log_path, name_of, needs, output, read_log


def log_of(run):
    """A run's log, which has a loss or a val_loss."""
    try:
        log = read_log(run)
    except OSError as error:
        sys.exit(f"plot.py: {log_path(run)}: {error.strerror}")
    if not log.series("loss") and not log.series("val_loss"):
        sys.exit(f"plot.py: {log_path(run)}: no step in it")
    return log


def running_mean(values, window):
    """Mean of each value and up to window - 1 before it."""
    total, out = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        out.append(total / min(i + 1, window))
    return out


def plain(name):
    """A name as matplotlib shows it: no formula between dollars, and not left out of the legend for its first letter."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def draw_loss(axes, logs, labels):
    for i, (log, label) in enumerate(zip(logs, labels)):
        steps, color = log.series("loss"), f"C{i}"
        tokens, loss = [row["tokens"] / 1e6 for row in steps], [row["loss"] for row in steps]
        style = ["-", "--", ":", "-."][i % 4]   # runs that agree lie on top of each other: let both be seen
        axes.plot(tokens, loss, color=color, linewidth=0.6, alpha=0.35)
        axes.plot(tokens, running_mean(loss, max(1, len(loss) // 25)), style, color=color, linewidth=1.8,
                  marker="." if len(loss) == 1 else None, label=f"{label}: training")
        seen = [(row["tokens"] / 1e6, row["val_loss"]) for row in log.series("val_loss")]
        if seen:
            axes.plot(*zip(*seen), "os^v"[i % 4], color=color, markersize=5, markerfacecolor="none" if i else color, label=f"{label}: validation")
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title("Loss")


def read_models(path):
    """The objects of the models that a file of `eval --json` tells of: one, or two that were compared."""
    try:
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
        return told.get("models", [told])
    except OSError as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {path}: {error.strerror}")
    except (ValueError, AttributeError):
        sys.exit(f"{os.path.basename(sys.argv[0])}: {path}: not what `eval --json 1` writes")


def evaluations(paths):
    """The models of all files, and their names: the file's, or of two that were compared each one's own."""
    models, names = [], []
    for path in paths:
        told = read_models(path)
        models += told
        names += [name_of(path)] if len(told) == 1 else [name_of(model["from"]) for model in told]
    return models, names


def draw_positions(axes, models, labels, rows, figure, title):
    """A figure of rows that are ranges of positions, as flat pieces from the first to the last position of each."""
    for i, (model, label) in enumerate(zip(models, labels)):
        x, y = [], []
        for bucket in model.get(rows, []):
            x += [bucket["from"] + 1, bucket["to"] + 2]
            y += [bucket[figure]] * 2
        if x:
            axes.plot(x, y, color=f"C{i}", linewidth=1.8, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position in the context (counted from 1)")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title)


def draw_sliding(axes, models, labels):
    for i, (model, label) in enumerate(zip(models, labels)):
        rows = sorted(model.get("sliding", []), key=lambda row: row["window"])
        if rows:
            axes.plot([row["window"] for row in rows], [row["perplexity"] for row in rows], "o-", color=f"C{i}", linewidth=1.8,
                      markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("length of the window (it moves by half of that)")
    axes.set_ylabel("perplexity")
    axes.set_title("Sliding perplexity")


DEPTHS = [0, 25, 50, 75, 100]


def draw_probes(axes, model, label):
    """A map: a row for each kind of question and length, a column for each depth, the share that is right as colour."""
    rows = model["probe"]
    shares = [[row[f"depth_{depth}"] for depth in DEPTHS] for row in rows]
    axes.imshow(shares, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(DEPTHS)), [str(depth) for depth in DEPTHS])
    axes.set_yticks(range(len(rows)), [f"{row['probe']} {row['length']}" for row in rows], fontsize=7)
    axes.set_xlabel("depth of what is asked for (% of the text)")
    axes.set_title(f"{label}: right of 100, {100 * model['probe_chance']:.0f} by chance", fontsize=10)


def pictures(models, labels):
    """What there is to draw of evaluations: a function for each picture, and whether it has a grid and a legend."""
    found = []
    for rows, figure, title in (("loss_by_position", "mean", "Loss by position"), ("gain_by_position", "gain", "Context gain")):
        if any(model.get(rows) for model in models):
            found.append((lambda axes, r=rows, f=figure, t=title: draw_positions(axes, models, labels, r, f, t), True))
    if any(model.get("sliding") for model in models):
        found.append((lambda axes: draw_sliding(axes, models, labels), True))
    for model, label in zip(models, labels):
        if model.get("probe"):
            found.append((lambda axes, m=model, n=label: draw_probes(axes, m, n), False))
    return found


def main():
    parser = argparse.ArgumentParser(description="Draws the loss of runs, and evaluations of models.",
                                     usage="%(prog)s [RUN ...] [--eval JSON ...] [--labels NAME ...] [--title TITLE] [--out OUT]")
    parser.add_argument("runs", nargs="*", help="folders with a log.jsonl")
    parser.add_argument("--eval", nargs="*", default=[], metavar="JSON", help="output of `eval --json`")
    parser.add_argument("--labels", nargs="*", default=[], help="names of the runs, then of the evaluated models")
    parser.add_argument("--title", default="")
    parser.add_argument("--out", default="loss.png", help="picture to write (png, svg or pdf)")
    args = parser.parse_args()
    if not args.runs and not args.eval:
        parser.error("nothing to draw: give a run's folder, --eval, or both")
    output(args.out, ".png", ".svg", ".pdf")
    needs("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    models, names = evaluations(args.eval)
    labels = args.labels + ([name_of(path) for path in args.runs] + names)[len(args.labels):]
    labels = [plain(label) for label in labels]
    drawn = pictures(models, labels[len(args.runs):])
    if args.eval and not drawn:
        sys.exit(f"plot.py: {args.eval[0]}: nothing to draw (eval --data ... --json writes `loss_by_position`)")
    if args.runs:
        logs = [log_of(run) for run in args.runs]
        drawn.insert(0, (lambda axes: draw_loss(axes, logs, labels[:len(args.runs)]), True))
    columns = min(len(drawn), 3)
    lines = -(-len(drawn) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5.2 * columns, 3.9 * lines), squeeze=False)
    for axis in axes.flat[len(drawn):]:
        axis.set_visible(False)
    for axis, (draw, curves) in zip(axes.flat, drawn):
        draw(axis)
        if curves:
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
