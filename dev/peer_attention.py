# PyTorch's SDPA with cuDNN on the shapes of dev/bench_attention.cu: run both in one session. Needs torch with CUDA.
import torch, torch.nn.functional as F
from torch.nn.attention import sdpa_kernel, SDPBackend
def med(fn, n=10, warm=3):
    for _ in range(warm): fn()
    torch.cuda.synchronize(); ts = []
    for _ in range(n):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); fn(); b.record(); torch.cuda.synchronize(); ts.append(a.elapsed_time(b))
    return sorted(ts)[len(ts)//2]
for B, T in [(32,1024),(4,8192),(2,16384),(1,32768)]:
    H, D = 12, 64
    q,k,v=[torch.randn(B,H,T,D,device='cuda',dtype=torch.bfloat16,requires_grad=True) for _ in range(3)]; do=torch.randn_like(q)
    fl=4*B*H*T*T*D/2
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        f=lambda: F.scaled_dot_product_attention(q,k,v,is_causal=True)
        with torch.no_grad(): tf=med(f)
        o=f(); tb=med(lambda: torch.autograd.grad(o,(q,k,v),do,retain_graph=True))
    print(f'cuDNN T={T}: fwd {tf:.3f} ms {fl/tf/1e9:.0f}  bwd {tb:.3f} ms {2.5*fl/tb/1e9:.0f}', flush=True)
