/* `make bench`: how fast the CPU program is, as shares of what the cores can do, measured in the same run.
 *
 *     peak       independent fused multiply-adds on every core, in registers
 *     matmul     GPT-2 124M's products at 256 tokens: forward, gradient of the input, of the weights
 *     attention  one layer of 12 heads of 64 at T = 8192, forward and backward (causal half counted, backward = 2.5)
 *     step       GPT-2 124M, B = 4, T = 64: tokens per second of a whole optimizer step
 *
 * Random data, the best of several runs of each: other work on the machine only ever makes a run slower.
 */
#define GPT2_SP_NO_MAIN
#include "../train_gpt2_sp.c"

static real* random_reals(int64_t n, double scale) {
    real* p = (real*)malloc((size_t)n * sizeof(real));
    for (int64_t i = 0; p && i < n; i++)
        p[i] = (real)(scale * (random_unit(random_bits(1, 2, (uint64_t)i)) - 0.5));
    return p;
}

static volatile real peak_sink;   // keeps the compiler from leaving the sums out

// GFLOP/s of all threads, each with MR * NV chains of fused multiply-adds in registers.
static double peak_gflops(void) {
    double best = 0;
    int64_t rounds = 4000000;
    for (int repeat = 0; repeat < 5; repeat++) {
        double start = now_ms();
        PARALLEL_FOR
        for (int64_t thread = 0; thread < thread_count(); thread++) {
            Vector sum[12], factor, term;
            for (int i = 0; i < VECTOR; i++) factor[i] = (real)0.999, term[i] = (real)1e-3;
            for (int i = 0; i < 12; i++) sum[i] = term * (real)i;
            for (int64_t k = 0; k < rounds; k++)
                UNROLL for (int i = 0; i < 12; i++) sum[i] = sum[i] * factor + term;
            for (int i = 1; i < 12; i++) sum[0] += sum[i];
            peak_sink = sum[0][0];
        }
        double gflops = 2e-6 * 12 * VECTOR * (double)(rounds * thread_count()) / (now_ms() - start);
        if (gflops > best) best = gflops;
    }
    return best;
}

// What products and attention work in; for each thread.
static Scratch* scratch_make(void) {
    return (Scratch*)aligned_alloc(64, round_up((int64_t)sizeof(Scratch), 64) * thread_count());
}

static double matmul_bench(double peak) {
    Scratch* scratch = scratch_make();
    static const int shapes[][2] = {{768, 2304}, {768, 768}, {768, 3072}, {3072, 768}, {768, 50304}};
    static const char* const names[] = {"qkv", "attproj", "fc", "fcproj", "logits"};
    int64_t R = 256, most = 768 * 50304;
    real *w = random_reals(most, 0.1), *dw = random_reals(most, 0.1), *x = random_reals(R * 3072, 1),
         *dx = random_reals(R * 3072, 1), *y = random_reals(R * 50304, 1);
    double total_flops = 0, total_ms = 0;
    for (int i = 0; i < 5; i++) {
        int64_t C = shapes[i][0], OC = shapes[i][1];
        double ms[3] = {1e30, 1e30, 1e30}, flops = 2.0 * (double)(R * C * OC);
        for (int repeat = 0; repeat < (OC > 10000 ? 4 : 12); repeat++) {
            double t0 = now_ms();
            cpu_matmul_forward(y, x, w, NULL, R, C, OC, scratch);
            double t1 = now_ms();
            gemm(dx, C, R, C, OC, by_rows(y, OC), by_rows(w, C), NULL, 0, scratch);
            double t2 = now_ms();
            gemm(dw, C, OC, C, R, transposed(y, OC), by_rows(x, C), NULL, 1, scratch);
            double t3 = now_ms();
            ms[0] = fmin(ms[0], t1 - t0), ms[1] = fmin(ms[1], t2 - t1), ms[2] = fmin(ms[2], t3 - t2);
        }
        double weight = i == 4 ? 1 : 12;
        total_flops += 3 * flops * weight, total_ms += (ms[0] + ms[1] + ms[2]) * weight;
        printf(
            "matmul %-8s %5lld -> %5lld  forward %5.1f %%   dinput %5.1f %%   dweight %5.1f %% of the peak\n",
            names[i], (long long)C, (long long)OC, 100e-6 * flops / ms[0] / peak,
            100e-6 * flops / ms[1] / peak, 100e-6 * flops / ms[2] / peak);
    }
    double rate = 1e-6 * total_flops / total_ms;
    printf(
        "matmul all of GPT-2 124M's, weighted: %.1f GFLOP/s, %.1f %% of the peak\n", rate, 100 * rate / peak);
    free(w), free(dw), free(x), free(dx), free(y), free(scratch);
    return rate;
}

static void attention_bench(double matmul) {
    int64_t T = 8192, NH = 12, HS = 64, n = T * NH * HS;
    real *q = random_reals(n, 2), *kv = random_reals(2 * n, 2), *o = random_reals(n, 1),
         *dout = random_reals(n, 1), *dq = random_reals(n, 1), *dkv = random_reals(2 * n, 1);
    real *m = random_reals(NH * T, 1), *l = random_reals(NH * T, 1), *delta = random_reals(NH * T, 1);
    Scratch* scratch = scratch_make();
    double flops = 2.0 * (double)(T * T) * (double)(NH * HS), forward = 1e30, backward = 1e30;
    for (int repeat = 0; repeat < 4; repeat++) {
        double t0 = now_ms();
        PARALLEL_FOR
        for (int64_t h = 0; h < NH; h++) {
            memset(o + h * T * HS, 0, (size_t)(T * HS) * sizeof(real));
            for (int64_t t = 0; t < T; t++) m[h * T + t] = -(real)INFINITY, l[h * T + t] = 0;
            const real* k = kv + 2 * h * T * HS;
            AttentionPair pair = {q + h * T * HS, k, k + T * HS, T, T, HS, 0, 0, NULL};
            cpu_attention_forward_head(
                o + h * T * HS, m + h * T, l + h * T, &pair, &scratch[thread_index()].attention);
            output_finish(o + h * T * HS, m + h * T, l + h * T, T, HS);
        }
        double t1 = now_ms();
        PARALLEL_FOR
        for (int64_t h = 0; h < NH; h++) {
            const real* k = kv + 2 * h * T * HS;
            AttentionPair pair = {q + h * T * HS, k, k + T * HS, T, T, HS, 0, 0, NULL};
            cpu_attention_backward_head(dq + h * T * HS, dkv + 2 * h * T * HS, dkv + (2 * h + 1) * T * HS,
                &pair, dout + h * T * HS, m + h * T, delta + h * T, &scratch[thread_index()].attention);
        }
        double t2 = now_ms();
        forward = fmin(forward, t1 - t0), backward = fmin(backward, t2 - t1);
    }
    double f = 1e-6 * flops / forward, b = 2.5e-6 * flops / backward,
           both = 3.5e-6 * flops / (forward + backward);
    printf("attention T=8192  forward %.1f GFLOP/s (%.0f %% of the matmul rate)   backward %.1f (%.0f %%)   "
           "together %.1f (%.0f "
           "%%)\n",
        f, 100 * f / matmul, b, 100 * b / matmul, both, 100 * both / matmul);
    free(q), free(kv), free(o), free(dout), free(dq), free(dkv), free(m), free(l), free(delta), free(scratch);
}

// A shard of random GPT-2 tokens in llm.c's format, for the step.
static int random_shard(const char* path, int tokens) {
    int32_t header[256] = {20240520, 1, tokens};
    FILE* f = fopen(path, "wb");
    if (!f) return -1;
    fwrite(header, sizeof header, 1, f);
    for (int i = 0; i < tokens; i++) {
        uint16_t token = (uint16_t)(random_bits(3, 4, (uint64_t)i) % 50256);
        fwrite(&token, 2, 1, f);
    }
    return fclose(f);
}

static int step_bench(double matmul) {
    char path[64];
    gpt2_sp_failure failure;
    gpt2_sp_options o;
    snprintf(path, sizeof path, "/tmp/gpt2_sp_bench_%d.bin", (int)getpid());
    if (random_shard(path, 65536) != 0) return 1;
    options_default(&o);
    gpt2_sp_set(&o, "model", "d12", &failure);
    gpt2_sp_set(&o, "data", path, &failure);
    o.seq_len = 64, o.batch_size = 4, o.recompute = GPT2_SP_NONE;
    gpt2_sp* g = gpt2_sp_create(&o, &failure);
    unlink(path);
    if (!g) return fprintf(stderr, "%s\n", failure.text), 1;
    double best = 1e30;
    gpt2_sp_stats stats;
    for (int i = 0; i < 6; i++) {
        stats.size = sizeof stats;
        if (gpt2_sp_step(g, &stats) != 0) return fprintf(stderr, "%s\n", gpt2_sp_error(g)), 1;
        if (i > 0) best = fmin(best, stats.ms);
        printf("step   %d  loss %.4f  %.0f ms\n", i + 1, stats.loss, stats.ms);
    }
    double flops = 6.0 * 256 * (12.0 * 12 * 768 * 768 + 768.0 * 50304);
    printf(
        "step   GPT-2 124M, B=4 T=64: %.2f s, %.1f tokens/s; its matrix products alone would take %.2f s\n",
        best / 1e3, 256e3 / best, 1e-9 * flops / matmul);
    gpt2_sp_destroy(g);
    return 0;
}

int main(void) {
    printf(
        "%d threads, %d-byte reals, vectors of %d bytes\n", thread_count(), (int)sizeof(real), VECTOR_BYTES);
    double peak = peak_gflops();
    printf("peak   %.1f GFLOP/s\n", peak);
    double matmul = matmul_bench(peak);
    attention_bench(matmul);
    return step_bench(matmul);
}
