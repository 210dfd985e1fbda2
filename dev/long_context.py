#!/usr/bin/env python3
"""How does a GPT-2 with learned positions get from a short context to a long one? A parent, and recipes that go on from it.

    python3 dev/long_context.py --train train.tok --held held.tok --out runs/long_context [--size small] [--program ./train_gpt2_spcu]
    python3 dev/long_context.py --out runs/long_context --draw long_context.png        (needs matplotlib)

Pretrains the parents at the short context, then each recipe of RECIPES from its own with the same number of further tokens, and
evaluates all of them on the same held-out tokens, in documents: loss by position, what the long context gains, perplexity in
sliding windows, and the loss at the short context. OUT/eval/NAME.json is what `eval` told of a model, and the tables are printed.
What is done already is not done again, so it may be stopped at any point and started again; --only does a part.

The recipe that stays at the short context is measured with its own context: each label in windows of that many tokens that move
by half of them. Its table of positions is made longer only so that `eval` reads the same tokens.
"""
import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))

# A size: the model, three contexts, tokens of a step, of the parent, of each recipe, learning rates of both. Steps of a pass of
# `rows` tokens are summed to a batch.
SIZES = {
    "tiny": {"model": "--layers 2 --heads 2 --channels 32", "contexts": (64, 256, 1024), "batch": 4096, "rows": 4096,
             "parent": 200_000, "further": 100_000, "lr": 3e-3, "lr_further": 1e-3},
    "small": {"model": "--layers 6 --heads 6 --channels 384", "contexts": (1024, 8192, 32768), "batch": 131072, "rows": 65536,
              "parent": 200_000_000, "further": 30_000_000, "lr": 1e-3, "lr_further": 5e-4},
    "d12": {"model": "--model d12", "contexts": (1024, 8192, 32768), "batch": 131072, "rows": 65536,
            "parent": 200_000_000, "further": 40_000_000, "lr": 6e-4, "lr_further": 3e-4},
}

# Parents, by the options of their pretraining beside the model's.
PARENTS = {"parent": "", "bare": "--positions none"}

# A recipe: what it is, its parent, and its stages: (context, share of the further tokens, share of the further learning rate, options).
# S, M and L are the short, the middle and the long context; HALF is half of the stage's steps. LOW is a rate of sqrt(S / context): a
# step of as many tokens has fewer sequences, and its gradient is noisier. A fifth member is how many times the size's batch a step has.
LOW = "sqrt(S / context)"
RECIPES = {
    "a": ("goes on at the short context", "parent", [("S", 1.0, 1, "")]),
    "b": ("positions tiled, longer in two stages", "parent", [("M", 0.6, 1, "--grow tile"), ("L", 0.4, 0.5, "--grow tile")]),
    "c": ("the same with shifted positions and growing windows", "parent",
          [("M", 0.6, 1, "--grow tile --n-positions L --pos-shift 0.5 --window-ramp S"), ("L", 0.4, 0.5, "--window-ramp M")]),
    "d": ("positions faded to none at the short context", "parent",
          [("S", 1.0, 1, "--positions none --fade-steps HALF --n-positions L")]),
    "e": ("segments at their places in the documents", "parent",
          [("M/2", 0.9, 1, "--grow tile --n-positions L --pos-from document"), ("L", 0.1, 0.5, "--pos-from document")]),
    "f": ("positions faded to none, then longer in two stages", "parent",
          [("S", 0.3, 1, "--positions none --fade-steps HALF --n-positions L"), ("M", 0.4, LOW, "--positions none --window-ramp S"),
           ("L", 0.3, LOW, "--positions none --window-ramp M")]),
    "g": ("positions tiled, new ones learn ten times as fast", "parent",
          [("M", 0.7, LOW, "--grow tile --lr-scale-new 10"), ("L", 0.3, LOW, "--grow tile --lr-scale-new 10")]),
    "h": ("most of it at the short context, then as (g)", "parent",
          [("S", 0.5, 1, ""), ("M", 0.35, LOW, "--grow tile --lr-scale-new 10"), ("L", 0.15, LOW, "--grow tile --lr-scale-new 10")]),
    "i": ("windows that grow from the short context on, new positions learn ten times as fast", "parent",
          [("M", 0.7, 0.7, "--grow tile --lr-scale-new 10 --window-ramp S"),
           ("L", 0.3, 0.35, "--grow tile --lr-scale-new 10 --window-ramp M")]),
    "l": ("as (i), with four times as many documents a step", "parent",
          [("M", 0.7, 0.7, "--grow tile --lr-scale-new 10 --window-ramp S", 4),
           ("L", 0.3, 0.35, "--grow tile --lr-scale-new 10 --window-ramp M", 4)]),
    "j": ("never had positions, goes on at the short context", "bare", [("S", 1.0, 1, "--positions none")]),
    "k": ("never had positions, longer in two stages with growing windows", "bare",
          [("M", 0.7, LOW, "--positions none --window-ramp S"), ("L", 0.3, LOW, "--positions none --window-ramp M")]),
}
SHORT = "aj"   # those that stay at the short context


def run(command, log):
    """Runs a command line; its output goes to a file. Returns its seconds."""
    start = time.time()
    with open(log, "ab") as out:
        out.write(("$ " + shlex.join(command) + "\n").encode())
        out.flush()
        status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
    if status != 0:
        lines = open(log, encoding="utf-8", errors="replace").read().strip().split("\n")
        sys.exit(f"long_context.py: status {status}: {shlex.join(command)}\n" + "\n".join(lines[-3:]))
    return time.time() - start


class Experiment:
    def __init__(self, options):
        self.options, self.size, self.out = options, dict(SIZES[options.size]), options.out
        self.size["further"] = options.further or self.size["further"]
        self.short, self.middle, self.long = map(int, options.contexts.split(",")) if options.contexts else self.size["contexts"]
        os.makedirs(os.path.join(self.out, "eval"), exist_ok=True)

    def tokens(self, text, steps):
        """Options with the names of contexts and steps replaced by their numbers."""
        numbers = {"S": self.short, "M": self.middle, "L": self.long, "M/2": self.middle // 2, "HALF": steps // 2}
        return [str(numbers.get(word, word)) for word in text.split()]

    def done(self, name, steps):
        return os.path.isdir(os.path.join(self.out, name, f"step_{steps:08d}"))

    def train(self, name, context, tokens, lr, more, times=1):
        """A run of so many tokens, if it is not there yet, in steps of `times` the size's batch."""
        batch = times * self.size["batch"]
        steps = max(1, round(tokens / batch)) if tokens else 0
        if self.done(name, steps):
            return
        sequences = max(1, min(self.size["rows"], batch) // context)
        passes = max(1, batch // (sequences * context))
        seconds = run([self.options.program, "train", "--data", self.options.train, "--doc-mask", "1", "--seq-len", str(context),
                       "--batch-size", str(sequences), "--grad-accum", str(passes), "--steps", str(steps), "--lr", str(lr),
                       "--lr-schedule", "wsd", "--warmup", str(steps // 20), "--keep-best", "0", "--log-every", "50",
                       "--out", os.path.join(self.out, name), *self.options.more.split(), *self.tokens(more, steps)],
                      os.path.join(self.out, f"{name}.log"))
        print(f"  {name}: {steps} steps of {batch} tokens, context {context}, {seconds:.0f} s", flush=True)

    def longer(self, name):
        """The same model with a longer table of positions, so that `eval` reads the long context's tokens."""
        self.train(f"{name}-long", self.short, 0, 0, f"--init-from {self.out}/{name} --n-positions L --grow tile")
        return f"{name}-long"

    def parent(self, name):
        self.train(name, self.short, self.size["parent"], self.size["lr"], f"{self.size['model']} {PARENTS[name]}")
        return self.longer(name)

    def recipe(self, letter, seed):
        """All stages of a recipe, each from the one before. Returns the model to evaluate."""
        name = f"{letter}-{seed}"
        _, before, stages = RECIPES[letter]
        for number, (word, share, rate, more, *times) in enumerate(stages, 1):
            stage = name if number == len(stages) else f"{name}-stage{number}"
            context = int(self.tokens(word, 0)[0])
            rate = math.sqrt(self.short / context) if rate == LOW else rate
            self.train(stage, context, share * self.size["further"], round(rate * self.size["lr_further"], 9),
                       f"--init-from {self.out}/{before} --seed {seed} {more}", *times)
            before = stage
        return self.longer(name) if letter in SHORT else name

    def evaluate(self, name, model):
        """OUT/eval/NAME.json: in the long context, and in the short one, on the same tokens."""
        path = os.path.join(self.out, "eval", f"{name}.json")
        if os.path.exists(path):
            return
        told = {}
        for kind, context, more in (("long", self.long, f"--context-gain {self.short} --sliding 1"), ("short", self.short, "")):
            windows = max(1, self.options.measure // context)
            part = os.path.join(self.out, "eval", f"{name}-{kind}")
            command = [self.options.program, "eval", "--from", os.path.join(self.out, model), "--data", self.options.held, "--doc-mask", "1",
                       "--seq-len", str(context), "--val-sequences", str(windows), "--json", *more.split()]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"long_context.py: {part}: {done.stderr.strip()}")
            told[kind] = json.loads(done.stdout)
        with open(path + ".tmp", "w", encoding="utf-8") as out:
            json.dump(told, out, indent=1)
        os.replace(path + ".tmp", path)

    def all(self):
        seeds = [int(seed) for seed in self.options.seeds.split(",")]
        for part in self.options.only.split(","):
            if part in PARENTS:
                self.evaluate(part, self.parent(part))
            elif part in RECIPES:
                for seed in seeds:
                    self.evaluate(f"{part}-{seed}", self.recipe(part, seed))
            else:
                sys.exit(f"long_context.py: --only {part}: expected one of {', '.join([*PARENTS, *RECIPES])}")


def stays_short(name):
    return name in PARENTS or name[0] in SHORT


def title(name):
    """What a model is, for tables and pictures."""
    return PARENTS[name] and f"a parent with {PARENTS[name]}" or "the parent" if name in PARENTS else f"({name[0]}) {RECIPES[name[0]][0]}"


def curves(name, told):
    """A model's figures as `eval` tells them; of one that stays at the short context those that it has there."""
    model = dict(told["long"], **{"from": name})
    if stays_short(name):
        gained = model["gain_by_position"]
        least = min(row["from"] for row in gained)
        model["loss_by_position"] = [row for row in told["short"]["loss_by_position"] if row["to"] < least] + [
            {"from": row["from"], "to": row["to"], "mean": row["short"], "count": row["count"]} for row in gained]
        model["sliding"] = [row for row in model["sliding"] if row["window"] <= least]
        model["gain_by_position"] = []
    return model


def read(out):
    """The evaluations that are there, in the recipes' order: {name: what eval told}."""
    folder = os.path.join(out, "eval")
    names = sorted((f[:-5] for f in os.listdir(folder) if f.endswith(".json")), key=lambda n: (n not in PARENTS, n))
    return {name: json.load(open(os.path.join(folder, name + ".json"), encoding="utf-8")) for name in names}


def tables(told):
    """What the experiment found, as Markdown: loss by position in a document, and the gain of the long context."""
    models = {name: curves(name, model) for name, model in told.items()}
    columns = [(row["from"], row["to"]) for row in next(iter(told.values()))["long"]["gain_by_position"]]
    print("\n| | loss, short context | " + " | ".join(f"{first}-{last}" for first, last in columns) + " | over all of these | gain |")
    print("|---|" + "---|" * (len(columns) + 3))
    base = models.get("a-1") or models.get("parent")
    for name, model in models.items():
        loss = {(row["from"], row["to"]): (row["mean"], row["count"]) for row in model["loss_by_position"]}
        there = [loss[c] for c in columns if c in loss]
        mean = sum(m * n for m, n in there) / sum(n for _, n in there)
        gain = "" if stays_short(name) else f"{told[name]['long']['context_gain']:+.4f}"
        cells = " | ".join(f"{loss[c][0]:.4f}" for c in columns)
        what = title(name) + ("" if name in PARENTS else f", seed {name[2:]}")
        print(f"| {what} | {told[name]['short']['loss']:.4f} | {cells} | {mean:.4f} | {gain} |")
    bars = {(row["from"], row["to"]): row["mean"] for row in base["loss_by_position"]}
    print(f"\nlower than {base['from']} by, in nats:")
    for name, model in models.items():
        if model is not base and not stays_short(name):
            print(f"  {name}: " + ", ".join(f"{row['from']}-{row['to']} {bars[row['from'], row['to']] - row['mean']:+.4f}"
                                           for row in model["loss_by_position"] if (row["from"], row["to"]) in columns))
    return models


def draw(models, path):
    sys.path.insert(0, os.path.join(os.path.dirname(HERE), "scripts"))
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import plot
    labels = [title(name) for name in models]
    drawn = plot.pictures(list(models.values()), labels)
    figure, axes = plt.subplots(1, len(drawn), figsize=(6.4 * len(drawn), 4.6), squeeze=False)
    for axis, (picture, _) in zip(axes[0], drawn):
        picture(axis)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", default="./train_gpt2_sp")
    parser.add_argument("--train", help="shards to learn from")
    parser.add_argument("--held", help="shards of held-out, long documents")
    parser.add_argument("--out", required=True)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--only", default="parent,a,b,c,d,e", help="parts, separated by commas")
    parser.add_argument("--further", type=int, default=0, help="tokens of each recipe; 0: as the size says")
    parser.add_argument("--contexts", default="", help="S,M,L instead of the size's")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--measure", type=int, default=2_097_152, help="held-out tokens to evaluate on")
    parser.add_argument("--more", default="", help="options of every run")
    parser.add_argument("--draw", metavar="PICTURE", help="only print the tables and draw")
    options = parser.parse_args()
    if not options.draw:
        if not options.train or not options.held:
            parser.error("--train and --held are needed")
        Experiment(options).all()
    models = tables(read(options.out))
    if options.draw:
        draw(models, options.draw)


if __name__ == "__main__":
    main()
