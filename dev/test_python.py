#!/usr/bin/env python3
"""gpt2_sp.py against an installed library: options, steps, samples, data of the program's own, tensors, callbacks, errors.

    PYTHONPATH=PREFIX/share/gpt2_sp python3 dev/test_python.py SHARDS.tok CHECKPOINT     a part of dev/test_embed.sh
"""
import os
import sys

import numpy

sys.path.remove(os.path.dirname(os.path.abspath(__file__)))   # where there is a gpt2_sp.py that was not installed
import gpt2_sp   # noqa: E402

text, base = sys.argv[1:]
PROMPT = [84, 104, 101, 32]
OWN = {"vocab": 257, "layers": 1, "heads": 2, "channels": 16, "seq-len": 32, "steps": 9}
checked = []


def holds(what, *conditions):
    if not all(conditions):
        sys.exit(f"{what}: {conditions}")
    checked.append(what)


def code(call):
    """What a call ends with: the code of an Error, the name of another exception, or its result."""
    try:
        return call()
    except gpt2_sp.Error as error:
        return error.code
    except Exception as error:   # pylint: disable=broad-except
        return type(error).__name__


def shards():
    with gpt2_sp.Trainer({"init-from": base}, data=text, val_data=text, seq_len=128, steps=4) as t:
        before, seen = t.validate(2), []
        stats = [t.step() for _ in range(3)]
        holds("steps", t.steps == 3, [s.step for s in stats] == [1, 2, 3], abs(stats[0].loss - before) < 1, t.validate(2) != before)
        a, b = (t.generate(PROMPT, 8, temperature=0) for _ in range(2))
        stopped = t.generate(PROMPT, 8, token=lambda n: seen.append(n) or len(seen) == 3, temperature=0)
        holds("samples", a.dtype == "int32", len(a) == 8, (a == b).all(), list(stopped) == seen == list(a[:3]))
        holds("errors", code(lambda: t.generate([], 4)) == "GPT2_SP_INVALID", code(t.save) == "GPT2_SP_INVALID",
              code(lambda: t.generate([1], 4, warmth=1)) == "TypeError",
              code(lambda: t.generate([1], 4, token=lambda n: 1 / 0)) == "ZeroDivisionError",
              code(lambda: gpt2_sp.Trainer(steps="many")) == "GPT2_SP_INVALID",
              code(lambda: gpt2_sp.Trainer(data=text, config="nowhere.cfg")) == "GPT2_SP_FILE")
    holds("a trainer that is closed", code(t.step) == "ValueError")


def fill(number, tokens, labels, doc_start):
    tokens[:] = WORDS[17 * number % 400:][:len(tokens)]
    labels[:4] = gpt2_sp.NO_LABEL
    assert doc_start is None


def no_data(*_):
    raise KeyError("no data")


def own_data():
    with gpt2_sp.Trainer(OWN, feed=fill, feed_validation=WORDS, fingerprint=5) as t, gpt2_sp.Trainer(OWN, feed=fill) as other:
        wte = t.tensors()["transformer.wte.weight"]
        before, first = wte.read(), t.gradients()
        gradient, done, same = wte.read("gradients"), t.update(), other.step()
        holds("a step in two", first.loss == done.loss == same.loss, abs(gradient).max() > 0,
              (wte.read() == other.tensors()[wte.name].read()).all(), (wte.read() != before).any())
        wte.write(before)
        holds("tensors", wte.shape == (257, 16), (wte.read() == before).all(), code(lambda: wte.write(before[1:])) == "ValueError",
              sum(numpy.prod(x.shape) for x in t.tensors().values()) == 257 * 16 + 32 * 16 + 12 * 256 + 15 * 16)
        seen = []
        t.on_progress(lambda p: seen.append(p.done) or len(seen) > 1)
        holds("a cancel", code(t.step) == "GPT2_SP_CANCELLED", len(seen) == 2, t.steps == 1)
        t.on_progress(lambda p: 1 / 0)
        holds("an exception in a callback", code(t.step) == "ZeroDivisionError", t.steps == 1)
        t.on_progress(None)
        t.set_lr(0)
        stats = t.step()
        holds("a learning rate of one's own", stats.lr == 0, stats.step == 2, (wte.read() == before).all())
        tokens = WORDS[:20]
        losses, logits = t.losses(tokens), t.logits(tokens, 3).astype(float)
        told = numpy.log(numpy.exp(logits).sum(1)[:-1]) - logits[numpy.arange(16), tokens[4:]]
        error = abs(told - losses[3:]).max()
        holds(f"losses and logits agree, to {error:.1e}", logits.shape == (17, 257), error < 1e-5)
    with gpt2_sp.Trainer(OWN, feed=no_data) as t:
        holds("an exception in a callback for data", code(t.step) == "KeyError")


# More than 500 numbers below 257, no two windows alike.
WORDS = numpy.arange(1, 600) ** 2 % 251
holds("the library that was installed", "share" not in gpt2_sp.library()._name, gpt2_sp.__file__.endswith("share/gpt2_sp/gpt2_sp.py"),
      gpt2_sp.library()._name.startswith(gpt2_sp.__file__[:-len("share/gpt2_sp/gpt2_sp.py")]))
holds("versions", gpt2_sp.version() in gpt2_sp.build(), not gpt2_sp.has("elephants"), gpt2_sp.has("gpu") in (0, 1))
shards()
own_data()
print(", ".join(checked))
