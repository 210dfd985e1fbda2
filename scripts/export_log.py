#!/usr/bin/env python3
"""Brings the log of a run of gpt2_sp to TensorBoard, to Weights & Biases, or into a table.

    python3 scripts/export_log.py runs/a --csv loss.csv              "-": standard output; needs no package
    python3 scripts/export_log.py runs/a runs/b --tensorboard tb     a folder for each run; then: tensorboard --logdir tb
    python3 scripts/export_log.py runs/a --wandb PROJECT             a run there; --offline: only into ./wandb

Every number of log.jsonl becomes a scalar of its name at its step, with the time at which it was logged. Where a run
went on from an earlier step, the lines of the steps that it did again no longer count. A loss that was not finite is
left out. TensorBoard's files of a run are made anew from its log each time; anything else in their folder is an error.
Needs Python 3.8, and the package tensorboard or wandb.
"""
import argparse
import csv
import os
import sys

from run_log import log_path, name_of, read_log, run_options

NO_SCALARS = ("step", "time")
OURS = ".gpt2_sp"   # how the names of the files end that this script writes for TensorBoard


def rows_of(run):
    """The lines of a run's log that count, as dicts in the order of their steps."""
    path = log_path(run)
    try:
        log = read_log(run)
    except OSError as error:
        sys.exit(f"export_log.py: {path}: {error.strerror}")
    for number in log.damaged:
        print(f"export_log.py: {path}:{number}: not a line of a log, left out", file=sys.stderr)
    if not log.rows:
        sys.exit(f"export_log.py: {path}: no step in it")
    return log.rows


def scalars(row):
    """The finite numbers of a line by their names."""
    return {name: value for name, value in row.items()
            if name not in NO_SCALARS and isinstance(value, (int, float)) and not isinstance(value, bool)}


def to_csv(runs, path):
    rows = [dict(row, run=name_of(run)) for run in runs for row in rows_of(run)]
    names = ["run"] + [name for name in dict.fromkeys(name for row in rows for name in row) if name != "run"]
    out = sys.stdout if path == "-" else open(path, "x", newline="", encoding="utf-8")
    with out:
        table = csv.DictWriter(out, names, restval="")
        table.writeheader()
        table.writerows(rows)


def to_tensorboard(runs, folder):
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        sys.exit("export_log.py: --tensorboard needs a package: python3 -m pip install tensorboard")
    for run in runs:
        rows, place = rows_of(run), os.path.join(folder, name_of(run))
        there = os.listdir(place) if os.path.isdir(place) else []
        foreign = [name for name in there if not name.startswith("events.out.tfevents.") or not name.endswith(OURS) or
                   os.path.islink(os.path.join(place, name)) or not os.path.isfile(os.path.join(place, name))]
        if foreign or os.path.islink(place):
            sys.exit(f"export_log.py: {place} has {foreign[0] if foreign else 'a link for it'}: take another folder")
        for name in there:   # what an earlier export made: steps would stand there twice
            os.remove(os.path.join(place, name))
        writer = EventFileWriter(place, filename_suffix=OURS)
        for row in rows:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(row).items()]
            writer.add_event(Event(wall_time=row["time"], step=row["step"], summary=Summary(value=values)))
        writer.close()
        print(f"{place}: {len(rows)} steps")


def to_wandb(runs, project, offline):
    try:
        import wandb
    except ImportError:
        sys.exit("export_log.py: --wandb needs a package: python3 -m pip install wandb")
    for run in runs:
        rows = rows_of(run)
        there = wandb.init(project=project, name=name_of(run), config=run_options(run),
                           mode="offline" if offline else None)
        for row in rows:
            there.log(dict(scalars(row), _timestamp=row["time"]), step=row["step"])
        there.finish()
        print(f"{project}/{name_of(run)}: {len(rows)} steps")


def main():
    parser = argparse.ArgumentParser(description="Brings log.jsonl to TensorBoard, Weights & Biases, or into a table.")
    parser.add_argument("runs", nargs="+", help="folders with a log.jsonl, or such files")
    parser.add_argument("--csv", metavar="FILE", help="write a table; - is standard output; a file that exists stays")
    parser.add_argument("--tensorboard", metavar="FOLDER", help="write a folder of events for each run in this one")
    parser.add_argument("--wandb", metavar="PROJECT", help="make a run of this project for each run")
    parser.add_argument("--offline", action="store_true", help="with --wandb: into ./wandb only, for `wandb sync`")
    args = parser.parse_args()
    if not (args.csv or args.tensorboard or args.wandb):
        parser.error("nothing to do: give --csv, --tensorboard or --wandb")
    if args.offline and not args.wandb:
        parser.error("--offline goes with --wandb")
    if len(set(map(name_of, args.runs))) < len(args.runs):
        parser.error("two of the runs have the same name")
    if args.csv:
        try:
            to_csv(args.runs, args.csv)
        except OSError as error:
            sys.exit(f"export_log.py: {args.csv}: {error.strerror}")
    if args.tensorboard:
        to_tensorboard(args.runs, args.tensorboard)
    if args.wandb:
        to_wandb(args.runs, args.wandb, args.offline)


if __name__ == "__main__":
    main()
