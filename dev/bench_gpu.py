#!/usr/bin/env python3
"""Speed and memory of the GPU program beside PyTorch, in one run on one GPU: make bench-gpu.

    bench_gpu.py [--quick] [--only attention|steps] [--train PROGRAM] [--attention PROGRAM] [--json FILE]

Each row is measured as ours, PyTorch, ours, so that both meet the same clocks; the medians count. PyTorch runs in processes that
are started first and compile while nothing is timed; without torch ours are measured alone. Random tokens, random inputs.

The peer of a step: GPT-2 with RMSNorm (gain only), learned positions, biases, tanh GELU and a tied head, vocabulary 50304,
torch.compile, bf16 autocast over fp32 weights, cuDNN attention, gradients clipped to 1.0, fused AdamW; the `attn` rows with
checkpointing of each layer. Ours does the same and has RMSNorm's biases and mean-free projections (--center 1) besides."""
import argparse, array, importlib.util, json, os, random, re, statistics, subprocess, sys, tempfile, time

HEADS, SIZE, TOKENS = 12, 64, 32768   # of the attention rows
LAYERS, CHANNELS, VOCABULARY = 12, 768, 50304   # of the steps' model, GPT-2 124M
# T, sequences, --recompute, timed steps, ratio to PyTorch that is asked for at least and aimed at
STEPS = [(1024, 64, 'none', 24, 1.05, 1.2), (8192, 8, 'none', 14, 1.05, 1.2), (32768, 2, 'none', 7, 1.05, 1.2),
         (32768, 2, 'attn', 7, 1.25, 1.4), (131072, 1, 'attn', 2, 1.25, 1.4)]
# T, and the ratios to cuDNN asked for and aimed at, forward and backward
ATTENTION = [(1024, (1.0, 1.2), (1.0, 1.2))] + [(T, (1.0, 1.15), (0.95, 1.1)) for T in (8192, 16384, 32768)]
MEMORY = {(32768, 'attn'): (5.0, 4.0)}   # GiB planned: at most, aim
QUICK_ATTENTION, QUICK_STEPS = (1024, 32768), ((1024, 'none'), (32768, 'attn'))


# ===== the peer: these run in processes of their own ============================================

def peer_attention():
    """Reads lines `T`, answers each with forward and backward milliseconds of both backends."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def timed(call, runs=15, warm=3):
        times = []
        for i in range(warm + runs):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        return statistics.median(times[warm:])

    answer({'torch': torch.__version__, 'cudnn': torch.backends.cudnn.version()})
    for line in sys.stdin:
        T, result = int(line), {}
        shape = (TOKENS // T, HEADS, T, SIZE)
        q, k, v, gradient = (torch.randn(shape, device='cuda', dtype=torch.bfloat16, requires_grad=i < 3) for i in range(4))
        for name, backend in (('cudnn', SDPBackend.CUDNN_ATTENTION), ('flash2', SDPBackend.FLASH_ATTENTION)):
            try:
                with sdpa_kernel(backend):
                    def forward():
                        return scaled_dot_product_attention(q, k, v, is_causal=True)
                    with torch.no_grad():
                        result[name + '_forward_ms'] = timed(forward)
                    out = forward()
                    result[name + '_backward_ms'] = timed(
                        lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True))
            except RuntimeError as error:
                result[name + '_error'] = str(error)[:200]
        answer(result)


def peer_steps(T, B, checkpointing, steps):
    """Compiles, says so, waits for a line, then times steps; answers their milliseconds and the memory."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.checkpoint import checkpoint
    torch.manual_seed(0)
    C = CHANNELS

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(C))

        def forward(self, x):
            return F.rms_norm(x, (C,), self.gain.to(x.dtype), 1e-5)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList([Norm(), Norm()])
            self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x):
            parts = self.qkv(self.norms[0](x)).split(C, -1)
            heads = [part.unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for part in parts]
            mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
            return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate='tanh'))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(VOCABULARY, C), nn.Embedding(T, C)
            self.layers, self.norm = nn.ModuleList([Layer() for _ in range(LAYERS)]), Norm()
            for weight in self.parameters():
                if weight.dim() > 1:
                    nn.init.normal_(weight, 0, 0.02)

        def forward(self, tokens, labels):
            x = self.wte(tokens) + self.wpe.weight
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False) if checkpointing else layer(x)
            return F.cross_entropy(F.linear(self.norm(x), self.wte.weight).view(-1, VOCABULARY), labels.view(-1))

    model = Model().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    compiled = torch.compile(model)
    tokens, labels = (torch.randint(0, 50257, (B, T), device='cuda') for _ in range(2))

    def step():
        begin = time.perf_counter()
        with torch.autocast('cuda', torch.bfloat16), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            loss = compiled(tokens, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begin)

    begin = time.perf_counter()
    step()
    torch.cuda.empty_cache()
    answer({'compile_s': time.perf_counter() - begin})
    for _ in sys.stdin:
        torch.cuda.reset_peak_memory_stats()
        warm = 3 if T < 100000 else 1
        times = [step() for _ in range(warm + steps)][warm:]
        answer({'ms': times, 'allocated': torch.cuda.max_memory_allocated(), 'reserved': torch.cuda.max_memory_reserved()})
        break   # gives its memory back


def answer(value):
    print(json.dumps(value), flush=True)


class Peer:
    """A process of this file; answers are None where torch is missing or the process has failed."""

    def __init__(self, *arguments):
        self.process = None
        if importlib.util.find_spec('torch') is None:
            return
        environment = dict(os.environ, TORCHINDUCTOR_COMPILE_THREADS='2', OMP_NUM_THREADS='2')
        self.errors = tempfile.TemporaryFile('w+')
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), '--peer', *map(str, arguments)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment)

    def answer(self):
        if not self.process:
            return None
        for line in self.process.stdout:
            if line.startswith('{'):
                return json.loads(line)
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()
        print('PyTorch:', said[-1] if said else 'no answer', flush=True)
        return None

    def ask(self, line=''):
        if not self.process:
            return None
        try:
            self.process.stdin.write(f'{line}\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        return self.answer()

    def end(self):
        if not self.process:
            return
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait()


# ===== ours =====================================================================================

def ours_attention(program, T, portable=False):
    run = subprocess.run([program, *(['portable'] if portable else []), str(T)], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f'{program} {T}: {run.stdout.strip()} {run.stderr.strip()}')
    return json.loads(run.stdout)


def gpus_used():
    """MiB in use, by all processes, on each GPU that CUDA_VISIBLE_DEVICES leaves: without it, of the machine."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    run = subprocess.run(['nvidia-smi', *(['--id=' + visible] if visible else []), '--query-gpu=memory.used',
                          '--format=csv,noheader,nounits'], capture_output=True, text=True)
    return [int(line) for line in run.stdout.split()] if run.returncode == 0 else [0]


def ours_steps(program, shard, T, B, recompute, steps):
    """Milliseconds of the steps after the first three, and the memory as planned and as the driver sees it."""
    before, warm = gpus_used()[0], 3 if T < 100000 else 1
    command = [program, 'train', '--data', shard, '--raw-u16', '1', '--vocab', '50257', '--model', 'd12', '--sp', '1',
               '--seq-len', str(T), '--batch-size', str(B), '--recompute', recompute, '--lr', '1e-4', '--steps', str(warm + steps)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    times, planned, used = [], 0, 0
    for line in process.stdout:
        memory = re.match(r'memory +([0-9.]+) (MiB|GiB|TiB)', line)
        if memory:
            planned = float(memory[1]) * {'MiB': 2**20, 'GiB': 2**30, 'TiB': 2**40}[memory[2]]
        step = re.search(r'^step .* ([0-9.]+) ms ', line)
        if step:
            times.append(float(step[1]))
            if len(times) == 1:   # all memory is taken by then
                used = (gpus_used()[0] - before) * 2**20
    if process.wait() != 0:
        sys.exit(f'{" ".join(command)}: {process.stderr.read().strip()}')
    return {'ms': times[warm:], 'planned': planned, 'used': used}


# ===== rows =====================================================================================

def verdict(ratio, bar, aim):
    return 'aim' if ratio >= aim else 'bar' if ratio >= bar else 'NO'


def rate(ms, T, backward):
    return 2.0 * TOKENS * HEADS * T * SIZE * (2.5 if backward else 1) / ms / 1e9


def attention_rows(program, quick):
    peer = Peer('attention')
    versions = peer.answer()
    portable = 'portable' in subprocess.run([program, '0'], capture_output=True, text=True).stdout   # its usage names it
    print(f'\nAttention: causal, {HEADS} heads of {SIZE}, {TOKENS} tokens, bf16; TFLOP/s, medians; '
          + ('PyTorch {torch}, cuDNN {cudnn}'.format(**versions) if versions else 'no PyTorch here: ours alone'))
    print(f'{"T":>7} {"":8} {"ours":>6} {"portable":>8} {"cuDNN":>6} {"FA-2":>6} | {"/cuDNN":>6} {"bar":>5} {"aim":>5}  reached'
          f' {"portable/FA-2":>13}')
    rows = []
    for T, *bars in ATTENTION:
        if quick and T not in QUICK_ATTENTION:
            continue
        first = ours_attention(program, T)
        theirs = peer.ask(T) if versions else None
        second = ours_attention(program, T)
        slow = ours_attention(program, T, True) if portable else {}
        for direction, (bar, aim) in zip(('forward', 'backward'), bars):
            key = direction + '_ms'
            row = {'T': T, 'direction': direction, 'bar': bar, 'aim': aim}
            for name, ms in (('ours', (first[key] + second[key]) / 2), ('portable', slow.get(key)),
                             ('cudnn', (theirs or {}).get('cudnn_' + key)), ('flash2', (theirs or {}).get('flash2_' + key))):
                row[name + '_ms'], row[name] = ms, ms and rate(ms, T, direction == 'backward')
            row['ratio'] = row['cudnn'] and row['ours'] / row['cudnn']
            row['portable_ratio'] = row['portable'] and row['flash2'] and row['portable'] / row['flash2']
            row['reached'] = row['ratio'] and verdict(row['ratio'], bar, aim)
            rows.append(row)
            rates = [format(row[name], '.0f') if row[name] else '-' for name in ('ours', 'portable', 'cudnn', 'flash2')]
            ratios = [format(row[name], '.2f') if row[name] else '-' for name in ('ratio', 'portable_ratio')]
            print(f'{T:7} {direction:8} {rates[0]:>6} {rates[1]:>8} {rates[2]:>6} {rates[3]:>6} | {ratios[0]:>6} {bar:5.2f} '
                  f'{aim:5.2f}  {row["reached"] or "-":7} {ratios[1]:>13}', flush=True)
    peer.end()
    return rows, versions


def step_rows(program, quick):
    wanted = [row for row in STEPS if not quick or (row[0], row[2]) in QUICK_STEPS]
    if quick:
        wanted = [(*row[:3], max(2, row[3] // 3), *row[4:]) for row in wanted]
    peers = [Peer('steps', T, B, int(recompute == 'attn'), steps) for T, B, recompute, steps, _, _ in wanted]
    ready = [peer.answer() for peer in peers]
    print('\nSteps: GPT-2 124M, thousand tokens/s, medians; memory in GiB: ours planned and used (with CUDA and cuBLAS), '
          'PyTorch\'s allocated and reserved')
    if any(ready):
        print('PyTorch compiled in ' + ', '.join(f'{r["compile_s"]:.0f} s' if r else '-' for r in ready))
    print(f'{"T":>7} {"B":>3} {"recompute":9} {"ours":>7} {"PyTorch":>7} | {"ratio":>5} {"bar":>5} {"aim":>5}  reached | '
          f'{"planned":>7} {"used":>6} {"alloc":>6} {"reserv":>6}  reached')
    rows = []
    with tempfile.NamedTemporaryFile(suffix='.u16') as shard:
        random.seed(1)
        array.array('H', random.choices(range(50257), k=1 << 20)).tofile(shard)
        shard.flush()
        for (T, B, recompute, steps, bar, aim), peer, up in zip(wanted, peers, ready):
            first = ours_steps(program, shard.name, T, B, recompute, steps)
            theirs = peer.ask() if up else None
            peer.end()
            second = ours_steps(program, shard.name, T, B, recompute, steps)
            ms = statistics.median(first['ms'] + second['ms'])
            row = {'T': T, 'B': B, 'recompute': recompute, 'bar': bar, 'aim': aim, 'ours_ms': ms, 'ours_tokens_per_s': B * T / ms * 1e3,
                   'ours_all_ms': [first['ms'], second['ms']], 'planned_gib': first['planned'] / 2**30,
                   'used_gib': first['used'] / 2**30}
            if theirs:
                peer_ms = statistics.median(theirs['ms'])
                row.update(torch_ms=peer_ms, torch_tokens_per_s=B * T / peer_ms * 1e3, torch_all_ms=theirs['ms'],
                           ratio=peer_ms / ms, torch_allocated_gib=theirs['allocated'] / 2**30,
                           torch_reserved_gib=theirs['reserved'] / 2**30)
                row['reached'] = verdict(row['ratio'], bar, aim)
            most, least = MEMORY.get((T, recompute), (0, 0))
            if most:
                row.update(memory_bar_gib=most, memory_aim_gib=least,
                           memory_reached=verdict(-row['planned_gib'], -most, -least))
            rows.append(row)
            theirs_text = f'{row["torch_tokens_per_s"] / 1e3:7.1f} | {row["ratio"]:5.2f}' if theirs else f'{"-":>7} | {"-":>5}'
            memory_text = f'{row["torch_allocated_gib"]:6.2f} {row["torch_reserved_gib"]:6.2f}' if theirs else f'{"-":>6} {"-":>6}'
            print(f'{T:7} {B:3} {recompute:9} {row["ours_tokens_per_s"] / 1e3:7.1f} {theirs_text} {bar:5.2f} {aim:5.2f}  '
                  f'{row.get("reached", "-"):7} | {row["planned_gib"]:7.2f} {row["used_gib"]:6.2f} {memory_text}  '
                  + (f'{row["memory_reached"]} (bar {most:g}, aim {least:g})' if most else ''), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=('attention', 'steps'))
    parser.add_argument('--quick', action='store_true', help='fewer rows and steps')
    parser.add_argument('--train', default='./train_gpt2_spcu')
    parser.add_argument('--attention', default='build/dev/bench_attention')
    parser.add_argument('--json', default='build/bench_gpu.json')
    parser.add_argument('--peer', nargs='+', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer_attention() if options.peer[0] == 'attention' else peer_steps(*map(int, options.peer[1:]))
    begin = time.time()
    name = subprocess.run(['nvidia-smi', '--id=0', '--query-gpu=name,driver_version', '--format=csv,noheader'],
                          capture_output=True, text=True).stdout.strip()
    result = {'gpu': name, 'quick': options.quick}
    print(f'{name}; every row: ours, PyTorch, ours')
    if options.only != 'steps':
        result['attention'], result['versions'] = attention_rows(options.attention, options.quick)
    if options.only != 'attention':
        result['steps'] = step_rows(options.train, options.quick)
    result['seconds'] = time.time() - begin
    os.makedirs(os.path.dirname(options.json) or '.', exist_ok=True)
    with open(options.json, 'w') as file:
        json.dump(result, file, indent=1)
    print(f'\n{result["seconds"]:.0f} s; all of it in {options.json}')


if __name__ == '__main__':   # torch.compile's helpers import this file
    main()
