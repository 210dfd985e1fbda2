/* Times the attention kernels of train_gpt2_sp.cu at head size 64, causal, 12 heads, 32768 tokens in all: bench_attention [fwd] [bwd] [only=FLAGS]
   Median of single launches between events after warm-up; inputs (150 MB) exceed the L2. FLOP: 2*T*T*64 forward per head, backward 2.5 x. */
#define GPT2_SP_GPU_NO_MAIN
#include "../train_gpt2_sp.cu"
#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>
using namespace attn;
#define CK(x) \
    do { \
        cudaError_t e_ = (x); \
        if (e_ != cudaSuccess) { \
            printf("FATAL %s: %s (line %d)\n", #x, cudaGetErrorString(e_), __LINE__); \
            exit(2); \
        } \
    } while (0)
__global__ void fill(bf16* p, size_t n, uint32_t s) {   // uniform, unit variance
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u + s;
        x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
        uint32_t y = x * 747796405u + 2891336453u;
        y ^= y >> 15;
        float u = (x >> 8) * (1.f / 16777216.f) + (y >> 8) * (1.f / 16777216.f) - 1.f;
        p[i] = __float2bfloat16(u * 2.4494897f);
    }
}
template <typename L> static float median(L launch, int n = 10, int warm = 3) {
    for (int i = 0; i < warm; i++) launch();
    std::vector<float> t;
    cudaEvent_t a, b;
    CK(cudaEventCreate(&a));
    CK(cudaEventCreate(&b));
    for (int i = 0; i < n; i++) {
        float ms;
        CK(cudaEventRecord(a));
        launch();
        CK(cudaEventRecord(b));
        CK(cudaEventSynchronize(b));
        CK(cudaEventElapsedTime(&ms, a, b));
        t.push_back(ms);
    }
    std::sort(t.begin(), t.end());
    return t[t.size() / 2];
}
typedef cudaError_t (*Forward)(const AttnForward&, cudaStream_t);
struct Variant {
    int flags;
    Forward f;
};
#ifndef VARIANTS
#define VARIANTS X(ATTN_FWD_BEST)
#endif
#define X(F) {F, attention_forward_variant<F>},
static const Variant variants[] = {VARIANTS};
#undef X
int main(int argc, char** argv) {
    int fwd = argc < 2, bwd = argc < 2, only = -1, once = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "fwd")) fwd = 1;
        if (!strcmp(argv[i], "bwd")) bwd = 1;
        if (!strncmp(argv[i], "only=", 5)) only = atoi(argv[i] + 5);
        if (!strcmp(argv[i], "once")) once = 1;   // one launch at T = 8192, for the profiler
    }
    const int NH = 12, N = 32768;
    const size_t n = (size_t)N * NH * 64;
    bf16 *q, *k, *v, *o, *dout, *ref, *dqb, *dkb, *dvb;
    float *lse, *delta, *dq, *dk, *dv;
    int* work;
    for (bf16** p : {&q, &k, &v, &o, &dout, &ref, &dqb, &dkb, &dvb}) CK(cudaMalloc(p, n * 2));
    for (float** p : {&dq, &dk, &dv}) CK(cudaMalloc(p, n * 4));
    for (float** p : {&lse, &delta}) CK(cudaMalloc(p, (size_t)N * NH * 4));
    CK(cudaMalloc(&work, 1 << 22));
    uint32_t s = 1;
    for (bf16* p : {q, k, v, dout}) fill<<<1024, 256>>>(p, n, s++ * 0x9E3779B9u);
    const int Ts[] = {1024, 8192, 16384, 32768};
    std::vector<uint16_t> ha(n), hb(n);
    for (int T : Ts) {
        if (once && T != 8192) continue;
        const int B = N / T;
        const double flop = 2.0 * B * NH * (double)T * T * 64;
        AttnShape sh = {B, NH, T, T, 0, 0, 1, 0.125f, NULL, 0};
        AttnView x = {NULL, 64, (int64_t)T * 64, (int64_t)NH * T * 64};   // head-major, as PyTorch's SDPA gets it
        AttnRows r = {lse, T, (int64_t)NH * T}, rd = {delta, T, (int64_t)NH * T};
        auto at = [&](void* p) {
            AttnView y = x;
            y.p = p;
            return y;
        };
        AttnForward f;
        memset(&f, 0, sizeof f);
        f.s = sh, f.q = at(q), f.k = at(k), f.v = at(v), f.o = at(o), f.lse = r, f.work = work;
        if (fwd) {
            int first = 1;
            printf("fwd T=%-6d", T);
            for (const Variant& w : variants) {
                if (only >= 0 && w.flags != only) continue;
                CK(cudaMemset(o, 0xFF, n * 2));
                float ms = median([&]() { CK(w.f(f, 0)); }, once ? 1 : 10, once ? 0 : 3);
                double diff = 0, norm = 0;
                if (!once) {
                    CK(cudaMemcpy((first ? ha : hb).data(), o, n * 2, cudaMemcpyDeviceToHost));
                    if (!first)
                        for (size_t i = 0; i < n; i += 7) {
                            float a, b;
                            uint32_t ua = (uint32_t)ha[i] << 16, ub = (uint32_t)hb[i] << 16;
                            memcpy(&a, &ua, 4), memcpy(&b, &ub, 4);
                            diff += (a - b) * (a - b), norm += a * a;
                        }
                }
                printf("  F%d %.3f ms %.0f%s", w.flags, ms, flop / ms / 1e9, !first && !(diff <= 1e-4 * norm) ? " WRONG" : "");
                fflush(stdout);
                first = 0;
            }
            printf("\n");
        }
        if (bwd) {
            CK(attention_forward(f, 0));
            AttnBackward g;
            memset(&g, 0, sizeof g);
            g.s = sh, g.q = at(q), g.k = at(k), g.v = at(v), g.dout = at(dout), g.lse = r, g.delta = rd, g.dq = at(dq),
            g.dk = at(dkb), g.dv = at(dvb), g.dkv_bf16 = 1, g.work = work;
            int rep = once ? 1 : 10, warm = once ? 0 : 3;
            g.accumulate_dq = 1;
            CK(attention_delta(at(dout), at(o), rd, B, NH, T, 0));
            CK(cudaMemset(dq, 0, n * 4));
            float core = median([&]() { CK(attention_backward(g, 0)); }, rep, warm);
            g.deterministic = 1;
            float det = once ? 0 : median([&]() { CK(attention_backward(g, 0)); }, rep, warm);
            g.deterministic = 0, g.accumulate_dq = 0;
            float whole = once ? 0
                               : median(
                                     [&]() {   // what PyTorch's backward does: delta, zero, kernel, cast
                                         CK(attention_delta(at(dout), at(o), rd, B, NH, T, 0));
                                         CK(attention_backward(g, 0));
                                         CK(attention_dq_finish(at(dq), at(dqb), 0.125f, B, NH, T, 0));
                                     },
                                     rep, warm);
            g.dkv_bf16 = 0, g.accumulate_dkv = 1, g.accumulate_dq = 1, g.dk = at(dk), g.dv = at(dv);
            float acc = once ? 0 : median([&]() { CK(attention_backward(g, 0)); }, rep, warm);
            printf("bwd T=%-6d kernel %.3f ms %.0f  all in %.3f ms %.0f  deterministic %.3f ms %.0f  fp32 += %.3f ms %.0f\n", T,
                core, 2.5 * flop / core / 1e9, whole, 2.5 * flop / whole / 1e9, det, 2.5 * flop / det / 1e9, acc,
                2.5 * flop / acc / 1e9);
            fflush(stdout);
        }
    }
    CK(cudaDeviceSynchronize());
    return 0;
}
