#!/usr/bin/env python3
"""Draws the step that `train --trace FILE` recorded: what every rank did when.

    ./train_gpt2_sp train --data books.tok --sp 4 --steps 4 --trace trace.json
    python3 scripts/trace.py trace.json --out trace.png           (or .svg; several files: those of the processes of a run)
    python3 scripts/trace.py trace.json --layer 3 --out layer.png       layer 3 alone: its forward and backward pass

A row a rank, time to the right: groups of work by colour, ops of attention with their chunks as far as there is room, waits
hatched; below it a thin row for each of its other lanes that has something. Traces of both programs. Where a program does not
record waits (the GPU's streams), what of attention has no op running is shown as waiting.
Needs Python 3.8 and matplotlib.
"""
import argparse
import json
import sys

from run_log import needs, output

# The groups that one colour stands for, by the beginnings of their names; the first that fits counts.
KINDS = [("attention", "#a9c8e6", ("attention",)),
         ("norms", "#b0b7c0", ("norm",)),
         ("QKV and projection", "#59a14f", ("qkv", "attproj")),
         ("MLP", "#edc948", ("fc", "gelu")),
         ("head and loss", "#b07aa1", ("head", "cross-entropy")),
         ("embedding", "#9c755f", ("embedding", "copies")),
         ("optimizer", "#e15759", ("adamw", "gradient norm")),
         ("sums and gathers", "#76b7b2", ("gradient sums", "weights gathered"))]
OTHER = ("other", "#d8dce1")
OP, MESSAGE, GATHER = "#2f5d8a", "#f28e2b", "#76b7b2"
OP_BACKWARD = "#7f4fa3"


def read_ranks(paths):
    """{rank: {"name", "spans"}} of all files: the spans as (lane, category, name, from, to), times in ms."""
    ranks = {}
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                events = json.load(file)["traceEvents"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f"trace.py: {path}: no trace that can be read ({error})")
        for event in events:
            if event["ph"] == "M" and event["name"] == "process_name":
                ranks[event["pid"]] = {"name": event["args"]["name"], "spans": [], "lanes": {}}
            elif event["ph"] == "M" and event["name"] == "thread_name":
                ranks[event["pid"]]["lanes"][event["tid"]] = event["args"]["name"]
            elif event["ph"] == "X":
                begin = event["ts"] / 1e3
                ranks[event["pid"]]["spans"].append((ranks[event["pid"]]["lanes"][event["tid"]], event["cat"], event["name"],
                                                     begin, begin + event["dur"] / 1e3))
    if not any(rank["spans"] for rank in ranks.values()):
        sys.exit(f"trace.py: {', '.join(paths)}: no step in it")
    return ranks


def colour_of(group):
    for name, colour, beginnings in KINDS:
        if group.startswith(beginnings):
            return name, colour
    return OTHER


def waits_of(spans):
    """When a rank waits: as recorded; else, what groups of attention have no op on either lane."""
    waits = [(begin, end) for _, kind, _, begin, end in spans if kind == "wait"]
    if waits or not any(kind == "message" for _, kind, *_ in spans):
        return waits
    ops = sorted((begin, end) for _, kind, _, begin, end in spans if kind == "op")
    for _, kind, name, begin, end in spans:
        if kind != "group" or not name.startswith("attention"):
            continue
        for op_begin, op_end in ops:
            if op_end > begin and op_begin < end:
                if op_begin > begin:
                    waits.append((begin, op_begin))
                begin = max(begin, op_end)
        if end > begin:
            waits.append((begin, end))
    return waits


def passes_of(spans, layer):
    """The passes through a layer in the order in which they ran: (from, to, name)."""
    return sorted((begin, end, name) for _, kind, name, begin, end in spans
                  if kind == "layer" and name.split()[1:] in ([str(layer), "forward"], [str(layer), "backward"]))


def keep_layer(ranks, layer):
    """Leaves of the spans those inside a layer's, its passes side by side, each where the longest rank's ends; returns
    where each begins, and its name."""
    passes = [passes_of(rank["spans"], layer) for rank in ranks.values()]
    if not all(passes):
        sys.exit(f"trace.py: no layer {layer} in it")
    starts, at = [], 0.0
    for several in zip(*passes):
        starts.append((at, several[0][2]))
        at += 1.04 * max(end - begin for begin, end, _ in several)
    for rank, own in zip(ranks.values(), passes):
        rank["spans"] = [(lane, kind, what, start + max(a, begin) - begin, start + min(b, end) - begin)
                         for (begin, end, _), (start, _) in zip(own, starts)
                         for lane, kind, what, a, b in rank["spans"] if b > begin and a < end]
    return starts


def draw_rank(axes, spans, row, per_ms, seen):
    """The bars of one rank. per_ms: characters that fit into a millisecond."""
    for lane, kind, name, begin, end in spans:
        if kind == "group":
            label, colour = colour_of(name)
            axes.broken_barh([(begin, end - begin)], (row + 0.42, 0.5), facecolors=colour, linewidth=0)
            seen[label] = colour
    for lane, kind, name, begin, end in spans:
        if kind == "op":
            colour = OP_BACKWARD if name.endswith("backward") else OP
            low, height = (row + 0.5, 0.34) if lane == "compute" else (row + 0.36, 0.1)
            axes.broken_barh([(begin, end - begin)], (low, height), facecolors=colour, edgecolors="white", linewidth=0.4)
            seen["op of attention, backward" if colour == OP_BACKWARD else "op of attention"] = colour
            words = name.replace(" backward", "").replace(" ", "")
            if lane == "compute" and (end - begin) * per_ms > len(words) + 1:
                axes.text((begin + end) / 2, row + 0.67, words, ha="center", va="center", fontsize=6, color="white")
        elif kind in ("message", "gather") and lane != "compute":
            colour = MESSAGE if lane == "exchange" else GATHER
            low = row + (0.22 if lane == "exchange" else 0.08)
            axes.broken_barh([(begin, end - begin)], (low, 0.12), facecolors=colour, edgecolors=colour, linewidth=0.6)
            seen["messages of attention" if lane == "exchange" else "sums and gathers"] = colour
    waits = waits_of(spans)
    if waits:
        bars = axes.broken_barh([(begin, end - begin) for begin, end in waits], (row + 0.42, 0.5), facecolors="white",
                                edgecolors="#8a929c", linewidth=0.3, hatch="//////")
        seen["waiting"] = bars


def main():
    parser = argparse.ArgumentParser(description="draws a step that train --trace recorded")
    parser.add_argument("traces", nargs="+", help="the file, or the files of a run's processes")
    parser.add_argument("--layer", type=int, help="draw this layer alone")
    parser.add_argument("--out", default="trace.png", help="the picture, .png, .svg or .pdf [trace.png]")
    options = parser.parse_args()
    output(options.out, ".png", ".svg", ".pdf")
    ranks = read_ranks(options.traces)

    matplotlib = needs("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.patches as patches
    import matplotlib.pyplot as plt
    matplotlib.rcParams["hatch.linewidth"] = 0.4
    starts = []
    if options.layer is not None:
        starts = keep_layer(ranks, options.layer)
    longest = max(end for rank in ranks.values() for *_, end in rank["spans"])
    numbers = sorted(ranks)
    figure, axes = plt.subplots(figsize=(14, 1.6 + 0.62 * len(numbers)))
    seen = {}
    for i, number in enumerate(numbers):
        draw_rank(axes, ranks[number]["spans"], len(numbers) - 1 - i, 190 / longest, seen)
    for at, name in starts:
        axes.text(at, len(numbers) + 0.02, name, fontsize=8, va="bottom")
    axes.set_yticks([len(numbers) - 1 - i + 0.67 for i in range(len(numbers))], [ranks[number]["name"] for number in numbers])
    axes.set_xlim(0, longest)
    axes.set_ylim(0, len(numbers))
    axes.set_xlabel("ms")
    axes.set_title("A step" if options.layer is None else f"Layer {options.layer} in a step", pad=18)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    handles = [patches.Patch(facecolor="white", edgecolor="#8a929c", hatch="//////", label=label) if label == "waiting"
               else patches.Patch(color=colour, label=label) for label, colour in sorted(seen.items())]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.5 / (0.77 * figure.get_figheight())), ncol=6, fontsize=8, frameon=False)
    figure.savefig(options.out, dpi=150, bbox_inches="tight", facecolor="white")
    print(f"{options.out}: {len(numbers)} rank{'s' if len(numbers) > 1 else ''}, {longest:.2f} ms")


if __name__ == "__main__":
    main()
