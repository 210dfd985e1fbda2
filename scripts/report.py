#!/usr/bin/env python3
"""One page about runs of gpt2_sp, to read in a browser or to send to somebody: curves, figures, memory plan, schedule.

    ./train_gpt2_sp eval --from runs/a --data val.tok --needle 20 --json 1 > eval.json
    python3 scripts/report.py runs/a [runs/b ...] [--eval eval.json ...] --out report.html

The page holds its pictures and needs nothing else, no script either. The memory plan and the schedule are what the
program says of a run's run.cfg: `plan --json 1` and `schedule`. It is ./train_gpt2_sp beside scripts/, or the one in PATH, or --program.
A run that has not ended is shown as far as it is. Needs Python 3.8 and matplotlib.
"""
import argparse
import base64
import datetime
import html
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

from plot import draw_loss, evaluations, pictures, plain
from run_log import log_path, name_of, needs, output, read_log, run_options

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff;
       overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; } .note { color: #5a5a5a; } .warn { color: #8a3b00; }
img { display: block; width: 100%; height: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; margin: .5rem 0; }
.box { overflow-x: auto; width: fit-content; max-width: 100%; margin: .5rem 0; border: 1px solid #d8d8d8; border-radius: 4px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem; text-align: right; border-bottom: 1px solid #ececec; overflow-wrap: normal; white-space: nowrap; }
th.run, td.text { white-space: normal; min-width: 7rem; max-width: 20rem; overflow-wrap: anywhere; }
th:first-child { text-align: left; position: sticky; left: 0; background: #f6f6f6; white-space: normal; min-width: clamp(5.5rem, 16vw, 12rem); }
thead th { background: #f6f6f6; } tr:last-child > * { border-bottom: 0; }
.wide { width: auto; } .wide img { min-width: 46rem; }
pre { margin: 0; padding: .75rem; font: .8rem/1.4 ui-monospace, monospace; overflow-wrap: normal; }
"""


def text(value):
    return html.escape(str(value), quote=True)


def note(line, kind="note"):
    return f'<p class="{kind}">{text(line)}</p>\n'


def table(names, rows, corner=""):
    """rows: (what, a cell for each name); a cell that is None is empty."""
    cell = lambda value: f'<td{" class=text" if isinstance(value, str) and len(value) > 24 else ""}>{text("" if value is None else value)}</td>'
    head = "".join(f'<th class=run scope=col>{text(name)}</th>' for name in names)
    body = "".join(f"<tr><th scope=row>{text(what)}</th>{''.join(map(cell, cells))}</tr>\n" for what, cells in rows)
    return (f'<div class=box tabindex=0 role=region aria-label="table"><table><thead><tr><th>{text(corner)}</th>{head}</tr></thead>\n'
            f"<tbody>{body}</tbody></table></div>\n")


def image(kind, data, what):
    return f'<img alt="{text(what)}" src="data:{kind};base64,{base64.b64encode(data).decode()}">\n'


def picture(plt, draw, legend, what):
    """What draw(axes) draws, as an SVG image in the page."""
    figure, axes = plt.subplots(figsize=(4.8, 3.2))
    draw(axes)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    if legend and axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=6)
    figure.tight_layout()
    if legend:
        axes.grid(alpha=0.25)
        count = len(axes.get_legend_handles_labels()[0])
        below = {"loc": "upper left", "bbox_to_anchor": (-0.1, -0.2), "ncol": 2}   # many names would cover the curves
        if count:
            axes.legend(frameon=False, fontsize=8, **(below if count > 4 else {}))
    out = io.BytesIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return image("image/svg+xml", out.getvalue(), what)


def draw_column(axes, logs, labels, column, title, unit):
    """A column of the logs over the tokens seen."""
    for i, (log, label) in enumerate(zip(logs, labels)):
        rows = log.series(column)
        axes.plot([row["tokens"] / 1e6 for row in rows], [row[column] for row in rows], ["-", "--", ":", "-."][i % 4], color=f"C{i}",
                  linewidth=1.3, marker="." if len(rows) == 1 else None, label=label)
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel(unit)
    axes.set_title(title)
    if column == "grad_norm" and any(row[column] > 0 for log in logs for row in log.series(column)):
        axes.set_yscale("log")


CURVES = (("lr", "Learning rate", "learning rate"), ("grad_norm", "Gradient norm", "global norm before clipping"),
          ("tok_per_s", "Speed", "tokens per second"))


def curves(plt, logs, labels):
    out = ""
    if any(log.series("loss") or log.series("val_loss") for log in logs):
        out += picture(plt, lambda axes: draw_loss(axes, logs, labels), True, "Loss")
    for column, title, unit in CURVES:
        if any(log.series(column) for log in logs):
            out += picture(plt, lambda axes: draw_column(axes, logs, labels, column, title, unit), True, title)
    return f"<div class=pictures>{out}</div>\n"


def state(log, options):
    """Where a run stands, and how long ago it logged its last line."""
    if not log.rows:
        return "has logged no step yet"
    last, steps = log.rows[-1], options.get("steps", "")
    of = f" of {steps}" if steps.isdigit() else ""
    if steps.isdigit() and last["step"] >= int(steps):
        return f"all {last['step']} steps are done"
    since = datetime.timedelta(seconds=round(max(0, time.time() - (last.get("time") or 0))))
    return f"step {last['step']}{of}: it goes on, or was stopped; its last line is {since} old"


def figure_of(value):
    """A number just as log.jsonl has it."""
    return json.dumps(value)


def summary(logs, configs, names):
    """What is asked first, and the last step's line."""
    def of(log, column, take):
        rows = log.series(column)
        return take(rows) if rows else None
    best = lambda rows: min(rows, key=lambda row: row["val_loss"])
    median = lambda rows: f"{sorted(row['tok_per_s'] for row in rows)[len(rows) // 2]:,.0f}"
    rows = [("state", [state(log, options) for log, options in zip(logs, configs)]),
            ("best validation loss", [of(log, "val_loss", lambda r: f"{best(r)['val_loss']:.4f} at step {best(r)['step']}") for log in logs]),
            ("tokens per second, median", [of(log, "tok_per_s", median) for log in logs]),
            ("steps without an update", [sum(row.get("updated") == 0 and "loss" in row for row in log.rows) for log in logs])]
    out = table(names, rows)
    lasts = [next((row for row in reversed(log.rows) if "loss" in row), {}) for log in logs]
    columns = dict.fromkeys(column for row in lasts for column in row if column != "time")
    if columns:
        out += "<h2>Last step</h2>\n" + table(names, [(column, [figure_of(row[column]) if column in row else None for row in lasts])
                                                      for column in columns], "log.jsonl")
    return out


def differences(configs, names):
    """The options that are not the same in all runs."""
    if len(configs) < 2:
        return ""
    out = "<h2>Options that differ</h2>\n" + "".join(note(f"{name} has no run.cfg.", "warn") for name, options in zip(names, configs) if not options)
    having = [(name, options) for name, options in zip(names, configs) if options]
    every = dict.fromkeys(option for _, options in having for option in options if option != "out")
    rows = [(f"--{option}", [options.get(option, "(none)") for _, options in having]) for option in every
            if len({options.get(option) for _, options in having}) > 1]
    return out + (table([name for name, _ in having], rows, "run.cfg") if rows else note("None: the options are the same." if having else ""))


def needles(models, names):
    """Recall of facts by distance, where the evaluations have it."""
    asked = [(model, name) for model, name in zip(models, names) if model.get("needle_asked")]
    if not asked:
        return ""
    ranges = sorted({(row["from"], row["to"]) for model, _ in asked for row in model.get("needle_by_distance", [])})
    share = lambda row: f"{100 * row['mean']:.0f} % of {row['count']}"
    by = lambda model: {(row["from"], row["to"]): share(row) for row in model.get("needle_by_distance", [])}
    rows = [("all", [f"{100 * model['needle']:.0f} % of {model['needle_asked']}" for model, _ in asked])]
    rows += [(f"{low} to {high}", [by(model).get((low, high)) for model, _ in asked]) for low, high in ranges]
    return "<h2>Needles: facts recalled</h2>\n" + table([name for _, name in asked], rows, "bytes in between")


def ask(command):
    """What a command prints, and None; or None, and the line that says why not."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{command[0]}: {getattr(error, 'strerror', None) or error}"
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return (done.stdout.decode("utf-8", "replace"), None) if done.returncode == 0 else \
        (None, said[-1] if said else f"it ended with status {done.returncode}")


def plan_of(program, run):
    """The program's plan of a run as an object, and None; or None, and why not."""
    path = os.path.join(os.path.dirname(log_path(run)), "run.cfg")
    if not os.path.exists(path):
        return None, "it has no run.cfg"
    told, why = ask([program, "plan", "--json", "1", "--gflops", "100", "--config", path])   # only sizes are shown: nothing is to be measured
    try:
        return (json.loads(told), None) if told else (None, why)
    except ValueError:
        return None, "plan printed no JSON"


def vocabulary_known(run):
    """Whether `plan` learns the run's vocabulary: from its options or from a checkpoint."""
    options, folder = run_options(run), os.path.dirname(log_path(run))
    return options.get("vocab", "0") != "0" or "init-from" in options or any(name.startswith("step_") for name in os.listdir(folder))


def memory(plans, names):
    rows = dict.fromkeys(part for plan in plans if plan for part in plan["memory_bytes"])
    size = lambda plan, part: f"{plan['memory_bytes'][part] / 2**20:,.2f}" if plan and part in plan["memory_bytes"] else None
    shown = [("ranks (dp x sp)", [f"{plan['dp']} x {plan['sp']}" if plan else None for plan in plans]),
             ("parameters", [f"{plan['parameters']:,}" if plan else None for plan in plans])]
    return table(names, shown + [(part, [size(plan, part) for plan in plans]) for part in rows], "MiB of a rank") if rows else ""


def schedule(program, kind, ranks):
    """A schedule as the program draws it: a picture if it can make one, else text."""
    if ranks == 1:
        return note("One rank holds each whole sequence: nothing is exchanged.")
    command = [program, "schedule", "--schedule", kind, "--sp", str(ranks)]
    if "--svg" in (ask([program, "schedule", "--help"])[0] or ""):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "schedule.svg")
            told, why = ask(command + ["--svg", path])
            if told is not None and os.path.exists(path):
                with open(path, "rb") as file:
                    drawn = image("image/svg+xml", file.read(), f"schedule {kind} of {ranks} ranks")
                    return f'<div class="box wide" tabindex=0 role=region aria-label="schedule">{drawn}</div>\n'
            return note(f"No picture of the schedule {kind}: {why}", "warn")
    told, why = ask(command)
    if told is None:
        return note(f"No schedule {kind}: {why}", "warn")
    return f'<div class=box tabindex=0 role=region aria-label="schedule"><pre>{text(told)}</pre></div>\n'


def planned(program, runs, names):
    """The memory plan of each run and the schedules that they use."""
    out = "<h2>Memory plan</h2>\n"
    if not program:
        return out + note("No program was found to ask for it: build train_gpt2_sp, or give --program.", "warn")
    plans = []
    for run, name in zip(runs, names):
        plan, why = plan_of(program, run)
        plans.append(plan)
        if not plan:
            out += note(f"{name}: no plan: {why}", "warn")
        elif not vocabulary_known(run):
            out += note(f"{name} has no checkpoint that tells its vocabulary: planned with GPT-2's 50257 tokens.", "warn")
    out += memory(plans, names)
    for kind, ranks in dict.fromkeys((plan["schedule"], plan["sp"]) for plan in plans if plan):
        of = [name for name, plan in zip(names, plans) if plan and (plan["schedule"], plan["sp"]) == (kind, ranks)]
        out += f"<h2>Schedule of attention: {text(kind)}, {ranks} rank{'s' * (ranks > 1)} a sequence</h2>\n"
        out += (note("Of " + ", ".join(of) + ".") if len(runs) > 1 else "") + schedule(program, kind, ranks)
    return out


def remarks(logs, names):
    """A line for each thing that a run's pictures lack."""
    out = ""
    for log, name in zip(logs, names):
        if not log.series("loss"):
            out += note(f"{name}: no step with a loss is in its log.", "warn")
        elif not log.series("val_loss"):
            out += note(f"{name}: it was not validated (train --val-data FILE --val-every N).")
        if log.damaged:
            numbers = ", ".join(map(str, log.damaged[:5])) + (", ..." if len(log.damaged) > 5 else "")
            out += note(f"{name}: of the {log.lines} lines of log.jsonl {len(log.damaged)} cannot be read and were left out: {numbers}.", "warn")
    return out


def page(plt, args, logs, models, evaluated):
    """The whole page."""
    names, configs = distinct(args.runs), [run_options(run) for run in args.runs]
    title = args.title or "gpt2_sp: " + ", ".join(names)
    made = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    parts = [f"<h1>{text(title)}</h1>\n", note(f"Made {made} by gpt2_sp's scripts/report.py."), summary(logs, configs, names), "<h2>Curves</h2>\n",
             remarks(logs, names), curves(plt, logs, [short(name) for name in names])]
    drawn = pictures(models, [short(name) for name in evaluated])
    if models:
        parts += ["<h2>Evaluation</h2>\n"] + ["<div class=pictures>", *(picture(plt, draw, legend, "evaluation") for draw, legend in drawn),
                                              "</div>\n"]
        parts += [] if drawn else [note("eval's files have nothing to draw (eval --data ... --json 1 writes `loss_by_position`).", "warn")]
    parts += [needles(models, evaluated), differences(configs, names), planned(args.program, args.runs, names)]
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n<meta name="generator" content="gpt2_sp">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{text(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n{''.join(parts)}</body></html>\n")


def short(name):
    """A name for a legend, at most 26 characters of it."""
    return plain(name if len(name) <= 26 else name[:12] + "…" + name[-13:])


def distinct(runs):
    """The runs' names; where two have the same, their paths."""
    names = [name_of(run) for run in runs]
    return [name if names.count(name) == 1 else run for name, run in zip(names, runs)]


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description="One page about runs: curves, figures, memory plan, schedule.",
                                     usage="%(prog)s RUN [RUN ...] --out FILE [--eval JSON ...] [--title TITLE] [--program PROGRAM]")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders with a log.jsonl, or such files")
    parser.add_argument("--eval", nargs="*", default=[], metavar="JSON", help="output of `eval --json 1`")
    parser.add_argument("--title", default="")
    parser.add_argument("--program", help="train_gpt2_sp, to ask for the memory plan and the schedule")
    parser.add_argument("--out", required=True, metavar="FILE", help="page to write")
    args = parser.parse_args()
    beside = os.path.join(os.path.dirname(here), "train_gpt2_sp")
    args.program = args.program or (beside if os.access(beside, os.X_OK) else shutil.which("train_gpt2_sp"))
    output(args.out, ".html")
    needs("matplotlib").use("Agg")
    import matplotlib.pyplot as plt
    try:
        logs = [read_log(run) for run in args.runs]
    except OSError as error:
        sys.exit(f"report.py: {error.filename}: {error.strerror}")
    models, evaluated = evaluations(args.eval)
    written = page(plt, args, logs, models, evaluated)
    try:
        with open(args.out, "w", encoding="utf-8", errors="replace") as file:
            file.write(written)
    except OSError as error:
        sys.exit(f"report.py: {args.out}: {error.strerror}")
    print(args.out)


if __name__ == "__main__":
    main()
