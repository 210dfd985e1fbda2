"""PyTorch's context_parallel beside gpt2_sp: GPT-2 124M, one sequence over the GPUs that torchrun gives, a whole training step.

    torchrun --nproc-per-node 2 dev/peer_context_parallel.py --seq-len 32768 [--compile] [--rotate alltoall] [--steps 6]

bf16 autocast over fp32 weights, fused AdamW, gradients averaged over the ranks, clipped at norm 1, no activation checkpointing, the head tied to
the embedding, RMSNorm. Prints one JSON line: median ms of a step, tokens a second, peak GiB of the first GPU.
"""
import argparse
import json
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.nn.attention import SDPBackend, sdpa_kernel

LAYERS, HEADS, WIDTH, VOCABULARY = 12, 12, 768, 50304


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-5), nn.RMSNorm(WIDTH, eps=1e-5)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (part.view(batch, tokens, HEADS, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Model(nn.Module):
    def __init__(self, context):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(context, WIDTH)
        self.layers, self.norm = nn.ModuleList(Layer() for _ in range(LAYERS)), nn.RMSNorm(WIDTH, eps=1e-5)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, labels, positions):
        x = self.tokens(tokens) + self.positions(positions)
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, VOCABULARY), labels.view(-1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seq-len", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rotate", default="allgather", choices=["allgather", "alltoall"])
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    try:
        from torch.distributed.tensor.experimental._attention import set_rotate_method

        set_rotate_method(options.rotate)
    except ImportError:
        pass
    mesh = init_device_mesh("cuda", (dist.get_world_size(),), mesh_dim_names=("sequence",))
    torch.manual_seed(1)
    model = Model(options.seq_len).cuda()
    step_model = torch.compile(model) if options.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens, labels = torch.randint(50257, (2, 1, options.seq_len), device="cuda")
    positions = torch.arange(options.seq_len, device="cuda")

    def step():
        parts = [tokens.clone(), labels.clone(), positions.clone()]
        with context_parallel(mesh, buffers=parts, buffer_seq_dims=[1, 1, 0], no_restore_buffers=set(parts)):
            with torch.autocast("cuda", torch.bfloat16), sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]):
                loss = step_model(*parts)
            loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad, op=dist.ReduceOp.AVG)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times = []
    for i in range(options.steps + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end))
    ms = sorted(times)[len(times) // 2]
    if rank == 0:
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(json.dumps({"ms": ms, "tok_per_s": options.seq_len / ms * 1e3, "peak_gib": peak}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
