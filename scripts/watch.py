#!/usr/bin/env python3
"""Shows a run of gpt2_sp in the terminal while it trains: its curves, and its last step.

    python3 scripts/watch.py runs/a              until Ctrl-C; drawn anew when the log grows or the terminal changes its size
    python3 scripts/watch.py runs/a --once       once

Loss (with the validation loss as o), gradient norm, learning rate and tokens per second over the steps, as dots of Braille characters; in a
terminal that has no UTF-8, as `*`. Before the run has logged a step it waits for it. Needs Python 3.8 only.
"""
import argparse
import datetime
import os
import shutil
import sys
import time

from run_log import Follower, name_of, run_options

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))   # of a Braille character, by row and column
CURVES = (("loss", "loss"), ("grad_norm", "gradient norm"), ("lr", "learning rate"), ("tok_per_s", "tokens/s"))


def number(value):
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"


def plot(points, marks, first, last, width, height, braille):
    """Lines of a curve, width characters wide with its scale on the left. points, marks: (step, value); marks stand as o. The steps
    go from first to last. Points are joined by lines; of those in one column of dots the whole range is drawn."""
    values = [value for _, value in points + marks]
    low, high = min(values), max(values)
    margin = max(len(number(low)), len(number(high)))
    columns = max(width - margin - 2, 4)
    cells = [[0] * columns for _ in range(height)]
    across, down = 2 * columns - 1, 4 * height - 1
    place = lambda step, value: (round((step - first) / (last - first) * across) if last > first else 0,
                                 round((high - value) / (high - low) * down) if high > low else down // 2)
    ranges, before = {}, None
    for x, y in (place(step, value) for step, value in points):
        x0, y0 = before or (x, y)
        for column in range(x0, x + 1):   # the straight line from the point before
            at = y if x == x0 else round(y0 + (y - y0) * (column - x0) / (x - x0))
            top, bottom = ranges.get(column, (at, at))
            ranges[column] = min(top, at), max(bottom, at)
        before = x, y
    for x, (top, bottom) in ranges.items():
        for y in range(top, bottom + 1):
            cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
    dot = lambda cell: " " if cell == 0 else chr(0x2800 + cell) if braille else "*"
    lines = [[dot(cell) for cell in row] for row in cells]
    for step, value in marks:
        x, y = place(step, value)
        lines[y // 4][x // 2] = "o"
    scale = {0: number(high), height - 1: number(low)} if high > low else {(down // 2) // 4: number(low)}
    bar = "│" if braille else "|"
    return [f"{scale.get(i, ''):>{margin}} {bar}{''.join(line)}" for i, line in enumerate(lines)]


def status(log, options, now):
    """A line that tells where the run stands."""
    if not log.rows:
        return "no step is logged yet"
    row, steps = log.rows[-1], options.get("steps", "")
    parts = [f"step {row['step']}" + (f" of {steps}" if steps.isdigit() else "")]
    parts += [f"loss {row['loss']:.4f}" if row.get("loss") is not None else "loss not finite"] if "loss" in row else []
    seen = log.series("val_loss")
    parts += [f"val {seen[-1]['val_loss']:.4f} at step {seen[-1]['step']}"] if seen else []
    parts += [f"{number(row['tok_per_s'])} tokens/s"] if row.get("tok_per_s") is not None else []
    done = steps.isdigit() and row["step"] >= int(steps)
    if not done and steps.isdigit() and row.get("ms"):
        left = sorted(r["ms"] for r in log.series("ms")[-20:])
        parts.append(f"about {datetime.timedelta(seconds=round((int(steps) - row['step']) * left[len(left) // 2] / 1e3))} left")
    if row.get("time"):
        parts.append("all steps are done" if done else f"{datetime.timedelta(seconds=round(max(0, now - row['time'])))} ago")
    return ", ".join(parts)


def wrapped(line, width):
    """A line cut at its commas where it is longer than the terminal."""
    lines = [""]
    for part in line.split(", "):
        if lines[-1] and len(lines[-1]) + 2 + len(part) > width:
            lines[-1] += ","
            lines.append("")
        lines[-1] += (", " if lines[-1] else "") + part
    return [one[:width] for one in lines]


def screen(follower, run, size, braille, now):
    """All lines that are shown, as many and as long as the terminal has room for."""
    width, rows = max(size[0], 20), max(size[1], 8)
    log = follower.log
    lines = [printable(name_of(run))[:width]] + wrapped(status(log, run_options(run), now), width)
    if log.damaged:
        lines += wrapped(f"{len(log.damaged)} lines of the log are damaged, the last is line {log.damaged[-1]}", width)
    if log.rows and not log.series("val_loss"):
        lines += ["the run is not validated"[:width]]
    shown = [(column, title) for column, title in CURVES if log.series(column) or (column == "loss" and log.series("val_loss"))]
    room = rows - len(lines) - 1   # the last line of a terminal stays free
    while shown and room < 3 * len(shown):
        shown.pop()
    if not shown:
        return lines
    first, last = log.rows[0]["step"], log.rows[-1]["step"]
    shares = [2 if column == "loss" else 1 for column, _ in shown]
    for (column, title), share in zip(shown, shares):
        marks = [(row["step"], row["val_loss"]) for row in log.series("val_loss")] if column == "loss" else []
        points = [(row["step"], row[column]) for row in log.series(column)]
        height = max(2, min(12, (room - len(shown)) * share // sum(shares)))
        lines += [f"{title}, steps {first} to {last}"[:width]] + plot(points, marks, first, last, width, height, braille)
    return lines


def printable(name):
    return "".join(c if c.isprintable() else "?" for c in name)


def main():
    parser = argparse.ArgumentParser(description="Shows a run in the terminal while it trains.")
    parser.add_argument("run", metavar="RUN", help="folder with a log.jsonl, or which will have one")
    parser.add_argument("--once", action="store_true", help="show it once and end")
    parser.add_argument("--every", type=float, default=1, metavar="SECONDS", help="how often the log is looked at [1]")
    args = parser.parse_args()
    if not args.every > 0:
        parser.error("--every must be above 0")
    if args.once and not os.path.exists(args.run):
        sys.exit(f"watch.py: {args.run}: there is no such run")
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.reconfigure(errors="replace")
    follower, shown = Follower(args.run), None
    clear = "\033[H\033[2J" if sys.stdout.isatty() else ""
    try:
        while True:
            follower.read()
            lines = screen(follower, args.run, shutil.get_terminal_size(), utf8, time.time())
            if args.once or lines != shown:
                print(("" if args.once else clear) + "\n".join(lines), flush=True)
            if args.once:
                return
            shown = lines
            time.sleep(args.every)
    except KeyboardInterrupt:
        print()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)   # nobody reads it any more
    except OSError as error:
        sys.exit(f"watch.py: {follower.path}: {error.strerror}")


if __name__ == "__main__":
    main()
