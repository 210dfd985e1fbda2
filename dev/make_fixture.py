"""Makes the fixtures that hold gpt2_sp to PyTorch: a tiny GPT-2 and what it computes, in float64.

    python3 -m venv build/venv && build/venv/bin/pip install torch transformers safetensors numpy
    build/venv/bin/python dev/make_fixture.py [folder]          # default: fixtures/ beside this file

The files there were made with Python 3.11.7, torch 2.15.0, transformers 5.23.0, safetensors 0.8.0, numpy 2.4.6, on the CPU.
Nothing of this is needed to build, run or test gpt2_sp; the tests read the files. Weights and tokens come from numpy's PCG64
with a fixed seed, so running it again gives the same weights, and the same results within rounding.

model.safetensors, config.json    what GPT2LMHeadModel.save_pretrained writes: float32, Conv1D weights (in, out), head tied
expected.safetensors              one row of tokens is one document
    x, y            (B, T)     tokens and labels, y[b][t] = x[b][t+1]
    logits          (B, T, V)
    loss            ()         mean cross-entropy over the labels
    grad.<name>                gradient of the loss, by the parameter names of model.safetensors
    grad_norm       ()         2-norm of all gradients together, before clipping
    losses          (4,)       the loss before step 1, 2, 3 and after step 3
    step3.<name>               the parameters after three steps of AdamW (the constants below), gradients clipped to norm 1
expected_docs.safetensors         two documents packed in each row, the same model
    x, y            (B, T)     y is -100 (ignored) where the next token is of another document; the second document of row 0
                               goes on after the row, so its last label counts
    doc_start       (B, T)     where in the row the token's document starts: token t sees doc_start..t, and its
                               position is t - doc_start
    logits, loss, grad.<name>, grad_norm    as above; the loss is the mean over the labels that count

For step3 in single precision: the key third of attn.c_attn.bias has a gradient of exactly zero (softmax does not see it), so Adam
divides rounding noise by itself there. Compare it in double, or leave it out; nothing else depends on it.

All values are F64, tokens and labels too. Computed in float64 from the float32 weights. Weights, gains, biases and embeddings all
have a mean away from zero, so that a model that centres what it should not, or does not centre what it should, is found.
"""

import math
import os
import shutil
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

SEED = 1
B, T, V = 2, 24, 67
CONFIG = dict(vocab_size=V, n_positions=T, n_embd=32, n_layer=2, n_head=2, activation_function="gelu_new",
              resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, layer_norm_epsilon=1e-5, tie_word_embeddings=True,
              bos_token_id=V - 1, eos_token_id=V - 1)
LR, BETAS, EPS, WEIGHT_DECAY, CLIP, STEPS = 1e-2, (0.9, 0.95), 1e-8, 0.1, 1.0, 3
DOCS = ((0, 9), (0, 17))  # where the documents of each row start
IGNORED = -100


def random_weights(model, rng):
    """Fills every parameter with random float32 values whose mean is not zero."""
    for name, p in model.named_parameters():
        if "ln_" in name:
            mean, std = (1.1, 0.3) if name.endswith("weight") else (0.1, 0.2)
        elif name.endswith("bias"):
            mean, std = 0.05, 0.2
        elif "wte" in name or "wpe" in name:
            mean, std = 0.1, 0.5
        else:
            mean, std = 0.03, 1.0 / math.sqrt(p.shape[0])
        values = (mean + std * rng.standard_normal(tuple(p.shape))).astype(np.float32)
        p.data.copy_(torch.from_numpy(values))


def load(folder):
    """The model of a folder, in float64."""
    return GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).double().train()


def mean_loss(logits, y):
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED)


def forward_backward(model, x, y, **more):
    """Logits and loss; leaves the gradients in the model."""
    model.zero_grad()
    logits = model(x, use_cache=False, **more).logits
    loss = mean_loss(logits, y)
    loss.backward()
    return logits.detach(), loss.detach()


def gradients(model):
    grads = {"grad." + n: p.grad.clone() for n, p in model.named_parameters()}
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in grads.values())
    grads["grad_norm"] = torch.sqrt(sum((g * g).sum() for g in grads.values()))
    return grads


def check_gradient(model, x, y, out, rng, **more):
    """Compares the gradient along one random direction with a central difference."""
    params = list(model.named_parameters())
    direction = [torch.from_numpy(rng.standard_normal(tuple(p.shape))) for _, p in params]
    exact = sum((out["grad." + n] * d).sum() for (n, _), d in zip(params, direction)).item()
    h, sides = 1e-5, []
    with torch.no_grad():
        for step in (h, -2 * h, h):
            for (_, p), d in zip(params, direction):
                p += step * d
            sides.append(mean_loss(model(x, use_cache=False, **more).logits, y).item())
    numeric = (sides[0] - sides[1]) / (2 * h)
    assert abs(numeric - exact) < 1e-6 * max(1.0, abs(exact)), (numeric, exact)


def one_document(folder, tokens, rng):
    """The first fixture: loss, gradients, three optimizer steps."""
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    model = load(folder)
    assert model.lm_head.weight is model.transformer.wte.weight
    logits, loss = forward_backward(model, x, y)
    out = {"x": x.double(), "y": y.double(), "logits": logits, "loss": loss, **gradients(model)}
    check_gradient(model, x, y, out, rng)

    model = load(folder)
    decayed = [p for n, p in model.named_parameters() if p.dim() == 2 and "wpe" not in n]
    others = [p for n, p in model.named_parameters() if not (p.dim() == 2 and "wpe" not in n)]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    losses = []
    for _ in range(STEPS):
        losses.append(forward_backward(model, x, y)[1])
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        assert len(losses) > 1 or abs(norm - out["grad_norm"]) < 1e-12 * norm
        assert norm > CLIP, "the clipping does nothing"
        optimizer.step()
    losses.append(forward_backward(model, x, y)[1])
    assert losses[-1] < losses[0]
    out["losses"] = torch.stack(losses)
    out.update({"step3." + n: p.detach() for n, p in model.named_parameters()})
    return out


def packed_documents(folder, tokens, rng):
    """The second fixture: attention inside documents only, positions restarting."""
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    t = torch.arange(T)
    start = torch.zeros(B, T, dtype=torch.long)
    for b, starts in enumerate(DOCS):
        for s in starts:
            start[b, s:] = s
            if s > 0:
                y[b, s - 1] = IGNORED
    y[1, T - 1] = IGNORED  # here the document ends with the row
    seen = (t[None, None, :] <= t[None, :, None]) & (t[None, None, :] >= start[:, :, None])  # (B, query, key)
    mask = torch.zeros(B, 1, T, T, dtype=torch.float64).masked_fill(~seen[:, None], torch.finfo(torch.float64).min)
    more = dict(attention_mask=mask, position_ids=t[None, :] - start)
    model = load(folder)
    logits, loss = forward_backward(model, x, y, **more)
    for b, starts in enumerate(DOCS):  # each document by itself gives the same logits
        for s, e in zip(starts, starts[1:] + (T,)):
            alone = model(x[b : b + 1, s:e], use_cache=False).logits[0]
            assert (alone - logits[b, s:e]).abs().max() < 1e-12
    out = {"x": x.double(), "y": y.double(), "doc_start": start.double(), "logits": logits, "loss": loss, **gradients(model)}
    check_gradient(model, x, y, out, rng, **more)
    return out


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")
    os.makedirs(folder, exist_ok=True)
    torch.set_num_threads(1)
    rng = np.random.Generator(np.random.PCG64(SEED))
    model = GPT2LMHeadModel(GPT2Config(**CONFIG))
    random_weights(model, rng)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(os.path.join(saved, name), os.path.join(folder, name))
        back = load_file(os.path.join(saved, "model.safetensors"))
        assert all(torch.equal(back[n], p.data) for n, p in model.named_parameters()) and "lm_head.weight" not in back
    tokens = torch.from_numpy(rng.integers(0, V, (B, T + 1)))
    for name, make in (("expected", one_document), ("expected_docs", packed_documents)):
        out = {n: v.contiguous() for n, v in make(folder, tokens, rng).items()}
        assert all(v.dtype == torch.float64 and torch.isfinite(v).all() for v in out.values())
        save_file(out, os.path.join(folder, name + ".safetensors"), metadata={"format": "pt"})
        print(f"{name}: {len(out)} tensors, loss {out['loss'].item():.12f}, gradient norm {out['grad_norm'].item():.12f}",
              *(["losses", out["losses"].tolist()] if "losses" in out else []))


if __name__ == "__main__":
    main()
