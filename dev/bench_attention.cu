/* Times the attention kernels of train_gpt2_sp.cu: causal, 12 heads of 64, 32768 random tokens in all, in sequences of T.
       bench_attention [portable] T...      one line of JSON for each T; portable: the kernels of section 7b
   Median of single calls between events after warm-up; the inputs (150 MB) exceed the L2. `backward` is all that PyTorch's does: dQ zeroed,
   delta, the kernel, dQ rounded; `kernel` and `deterministic` are the kernel alone, adding to a dQ that is there, in any order or in one.
   TFLOP/s with 2 T T 64 FLOP forward per head, backward 2.5 times that. dev/bench_gpu.py runs it beside PyTorch. */
#include "bench_gpu.h"
#include <algorithm>
#include <vector>

enum { TOKENS = 32768, HEADS = 12, NUMBERS = TOKENS * HEADS * 64 };

template <typename Call> static float median(Call call) {
    enum { WARM = 3, TIMED = 15 };
    cudaEvent_t from, to;
    std::vector<float> times(TIMED);
    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    for (int i = -WARM; i < TIMED; i++) {
        CHECK(cudaEventRecord(from));
        call();
        CHECK(cudaEventRecord(to));
        CHECK(cudaEventSynchronize(to));
        if (i >= 0) CHECK(cudaEventElapsedTime(&times[i], from, to));
    }
    std::sort(times.begin(), times.end());
    return times[TIMED / 2];
}

int main(int argc, char** argv) {
    bf16 *q, *k, *v, *o, *dout, *dq_half, *dk, *dv;
    float *lse, *delta, *dq;
    int* work;
    for (bf16** p : {&q, &k, &v, &o, &dout, &dq_half, &dk, &dv}) CHECK(cudaMalloc(p, NUMBERS * 2ull));
    for (float** p : {&lse, &delta}) CHECK(cudaMalloc(p, TOKENS * HEADS * 4ull));
    CHECK(cudaMalloc(&dq, NUMBERS * 4ull));
    CHECK(cudaMalloc(&work, 1 << 22));
    CHECK(cudaMemset(work, 0, 1 << 22));
    uint32_t seed = 1;
    for (bf16* p : {q, k, v, dout}) fill<<<1024, 256>>>(p, NUMBERS, seed++ * 0x9E3779B9u);
    const int portable = argc > 1 && strcmp(argv[1], "portable") == 0;
    for (int i = 1 + portable; i < argc; i++) {
        const int T = atoi(argv[i]), B = T > 0 ? TOKENS / T : 0;
        if (B < 1) return printf("usage: bench_attention [portable] T...\n"), 1;
        const double flop = 2.0 * B * HEADS * T * T * 64;
        // head-major, as PyTorch's attention gets it
        auto view = [&](auto* p) { return AttnView{p, 64, T * 64, (int64_t)HEADS * T * 64}; };
        auto rows = [&](float* p) { return AttnRows{p, T, HEADS * T}; };
        AttnForward f = {};
        f.s = {B, HEADS, T, T, 0, 0, 1, 0.125f, NULL, 0};
        f.s.path = portable ? ATTN_PORTABLE : ATTN_AUTO;
        f.q = view(q), f.k = view(k), f.v = view(v), f.o = view(o), f.lse = rows(lse), f.work = work;
        AttnBackward g = {};
        g.s = f.s, g.q = f.q, g.k = f.k, g.v = f.v, g.dout = view(dout), g.lse = f.lse, g.delta = rows(delta), g.dq = view(dq);
        g.dk = view(dk), g.dv = view(dv), g.dkv_bf16 = 1, g.work = work;
        const float forward_ms = median([&] { CHECK(attn::attention_forward(f, 0)); });
        const float whole_ms = median([&] {
            CHECK(attn::attention_delta(g.dout, f.o, g.delta, B, HEADS, T, 0));
            CHECK(attn::attention_backward(g, 0));
            CHECK(attn::attention_dq_finish(g.dq, view(dq_half), 0.125f, B, HEADS, T, 0));
        });
        g.accumulate_dq = 1;
        const float kernel_ms = median([&] { CHECK(attn::attention_backward(g, 0)); });
        g.deterministic = 1;
        const float ordered_ms = median([&] { CHECK(attn::attention_backward(g, 0)); });
        auto rate = [&](double flops, float ms) { return flops / ms / 1e9; };
        printf("{\"T\": %d, \"forward_ms\": %.4f, \"backward_ms\": %.4f, "
               "\"forward\": %.1f, \"backward\": %.1f, \"kernel\": %.1f, \"deterministic\": %.1f}\n",
            T, forward_ms, whole_ms, rate(flop, forward_ms), rate(2.5 * flop, whole_ms), rate(2.5 * flop, kernel_ms),
            rate(2.5 * flop, ordered_ms));
        fflush(stdout);
    }
    CHECK(cudaDeviceSynchronize());
    return 0;
}
