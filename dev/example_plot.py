#!/usr/bin/env python3
"""Trains a small model from Python and draws its loss while it trains.

    make lib && python3 dev/example_plot.py SHARDS.tok RUN STEPS [PICTURE.png]

With matplotlib the picture is drawn anew every ten steps; without it, or without a PICTURE, the losses are printed.
"""
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "gpt2_sp")]   # where it is installed
import gpt2_sp   # noqa: E402

try:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
except ImportError:
    pyplot = None


def draw(losses, validations, path):
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(*zip(*losses), label="training")
    axes.plot(*zip(*validations), "o-", label="validation")
    axes.set(xlabel="step", ylabel="loss, nats per token", title=gpt2_sp.build().split(",")[0])
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main():
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    data, run, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    picture = sys.argv[4] if len(sys.argv) == 5 else None
    options = {"data": data, "val-data": data, "out": run, "steps": steps, "layers": 2, "heads": 2, "channels": 64, "seq-len": 128, "lr": 1e-3}
    try:
        with gpt2_sp.Trainer(options) as trainer:
            losses, validations = [], [(trainer.steps, trainer.validate(4))]
            while trainer.steps < steps:
                stats = trainer.step()
                losses.append((stats.step, stats.loss))
                if stats.step % 10 == 0 or stats.step == steps:
                    validations.append((stats.step, trainer.validate(4)))
                    print(f"step {stats.step}: loss {stats.loss:.4f}, validation {validations[-1][1]:.4f}", flush=True)
                    if picture and pyplot:
                        draw(losses, validations, picture)
            trainer.save()
    except gpt2_sp.Error as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
