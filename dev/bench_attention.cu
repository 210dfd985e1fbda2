/* Times the attention kernels of train_gpt2_sp.cu: causal, 768 channels in heads of 64 or of HS, 32768 random tokens in all, in sequences of T.
       bench_attention [portable | both] [head HS] T...      one line of JSON for each T; portable: the portable kernels; both: those after
                                                             the ones for this GPU, and how much longer they take
   Median of single calls between events after warm-up; the inputs (150 MB) exceed the L2. `backward` is all that PyTorch's does: dQ zeroed,
   delta, the kernel, dQ rounded; `kernel` and `deterministic` are the kernel alone, adding to a dQ that is there, in any order or in one.
   TFLOP/s with 2 T T HS FLOP forward per head, backward 2.5 times that. dev/bench_gpu.py runs it beside PyTorch. */
#include "bench_gpu.h"
#include <algorithm>
#include <vector>

enum { TOKENS = 32768, CHANNELS = 768, NUMBERS = TOKENS * CHANNELS, MOST_HEADS = CHANNELS / 32 };

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
    for (float** p : {&lse, &delta}) CHECK(cudaMalloc(p, TOKENS * MOST_HEADS * 4ull));
    CHECK(cudaMalloc(&dq, NUMBERS * 4ull));
    CHECK(cudaMalloc(&work, 1 << 22));
    CHECK(cudaMemset(work, 0, 1 << 22));
    uint32_t seed = 1;
    for (bf16* p : {q, k, v, dout}) fill<<<1024, 256>>>(p, NUMBERS, seed++ * 0x9E3779B9u);
    int at = 1, HS = 64, from = ATTN_AUTO, to = ATTN_AUTO;
    if (at < argc && strcmp(argv[at], "portable") == 0) from = to = ATTN_PORTABLE, at++;
    else if (at < argc && strcmp(argv[at], "both") == 0) to = ATTN_PORTABLE, at++;
    if (at + 1 < argc && strcmp(argv[at], "head") == 0) HS = atoi(argv[at + 1]), at += 2;
    for (; at < argc; at++) {
        const int T = atoi(argv[at]), B = T > 0 ? TOKENS / T : 0, HEADS = HS >= 32 ? CHANNELS / HS : 0;
        if (B < 1 || HEADS < 1) return printf("usage: bench_attention [portable | both] [head HS] T...\n"), 1;
        const double flop = 2.0 * B * HEADS * T * T * HS;
        const float scale = 1 / sqrtf((float)HS);
        // head-major, as PyTorch's attention gets it
        auto view = [&](auto* p) { return AttnView{p, HS, T * HS, (int64_t)HEADS * T * HS}; };
        auto rows = [&](float* p) { return AttnRows{p, T, HEADS * T}; };
        AttnForward f = {};
        f.s = {B, HEADS, T, T, 0, 0, 1, scale, NULL, 0, HS};
        f.q = view(q), f.k = view(k), f.v = view(v), f.o = view(o), f.lse = rows(lse), f.work = work;
        AttnBackward g = {};
        g.q = f.q, g.k = f.k, g.v = f.v, g.dout = view(dout), g.lse = f.lse, g.delta = rows(delta),
        g.dq = view(dq);
        g.dk = view(dk), g.dv = view(dv), g.dkv_bf16 = 1, g.work = work;
        float ms[2][4];
        for (int path = from; path <= to; path++) {
            float* x = ms[path != from];
            f.s.path = path, g.s = f.s;
            x[0] = median([&] { CHECK(attn::attention_forward(f, 0)); });
            g.accumulate_dq = g.deterministic = 0;
            x[1] = median([&] {
                CHECK(attn::attention_delta(g.dout, f.o, g.delta, B, HEADS, T, 0, HS));
                CHECK(attn::attention_backward(g, 0));
                CHECK(attn::attention_dq_finish(g.dq, view(dq_half), scale, B, HEADS, T, 0, HS));
            });
            g.accumulate_dq = 1;
            x[2] = median([&] { CHECK(attn::attention_backward(g, 0)); });
            g.deterministic = 1;
            x[3] = median([&] { CHECK(attn::attention_backward(g, 0)); });
            auto rate = [&](double flops, float ms) { return flops / ms / 1e9; };
            printf("{\"T\": %d, \"head_size\": %d, \"portable\": %d, \"forward_ms\": %.4f, \"backward_ms\": "
                   "%.4f, "
                   "\"forward\": %.1f, \"backward\": %.1f, \"kernel\": %.1f, \"deterministic\": %.1f}\n",
                T, HS, path == ATTN_PORTABLE, x[0], x[1], rate(flop, x[0]), rate(2.5 * flop, x[1]),
                rate(2.5 * flop, x[2]), rate(2.5 * flop, x[3]));
            fflush(stdout);
        }
        if (from != to)
            printf("{\"T\": %d, \"head_size\": %d, \"portable_takes\": {\"forward\": %.2f, \"backward\": "
                   "%.2f, \"kernel\": %.2f, "
                   "\"deterministic\": %.2f}}\n",
                T, HS, ms[1][0] / ms[0][0], ms[1][1] / ms[0][1], ms[1][2] / ms[0][2], ms[1][3] / ms[0][3]);
    }
    CHECK(cudaDeviceSynchronize());
    return 0;
}
