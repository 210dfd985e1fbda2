// bench_sample.cu: how fast a model reads a prompt and draws tokens, without loading and without what a first
// use costs.
//
//     make build/dev/bench_sample && build/dev/bench_sample FOLDER PROMPT LENGTH [DRAFT]
//
// FOLDER: a run or a GPT-2 folder; PROMPT: tokens of the prompt, random ones; LENGTH: tokens drawn. Prints
// lines that dev/bench_sample.py reads, `key value`: median times of REPEATS runs, and the first greedy tokens.
#include "bench_gpu.h"

enum { REPEATS = 5 };

static int by_size(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}
static double median(double* x) {
    qsort(x, REPEATS, sizeof *x, by_size);
    return x[REPEATS / 2];
}

int main(int argc, char** argv) {
    if (argc < 4) return fprintf(stderr, "usage: %s FOLDER PROMPT LENGTH [DRAFT]\n", argv[0]), 2;
    gpt2_sp_device = &GPU_DEVICE;
    gpt2_sp *g = load(argv[1]), *draft = argc > 4 ? load(argv[4]) : NULL;
    int64_t n = atoll(argv[2]), length = atoll(argv[3]), V = g->mesh.shape.V;
    int32_t *prompt = (int32_t*)malloc((size_t)n * 4), *out = (int32_t*)malloc((size_t)length * 4);
    double prefill[REPEATS], decode[2][REPEATS];
    for (int64_t i = 0; i < n; i++)
        prompt[i] = (int32_t)((i * 7919 + 12345) % (V - 1));   // as the .py has it
    gpt2_sp_sampling how;
    how.size = sizeof how;
    gpt2_sp_sampling_defaults(&how);
    gpt2_sp_generated stats;
    for (int i = -1; i < REPEATS; i++) {   // the first is not counted
        gpt2_sp_generator* x = gpt2_sp_generator_open(g, draft, prompt, n, length);
        if (!x) return printf("%s\n", gpt2_sp_error(g)), 1;
        for (int drawn = 0; drawn < 2; drawn++) {
            how.temperature = drawn ? 0.8 : 0, how.continuation = (uint64_t)drawn;
            double ms[2];
            for (int again = 0; again < 2; again++) {   // the graphs are made by the first
                double start = now_ms();
                if (gpt2_sp_generator_run(x, out, length, &how) != length)
                    return printf("%s\n", gpt2_sp_error(g)), 1;
                ms[again] = now_ms() - start;
            }
            if (i >= 0) decode[drawn][i] = ms[1] / (double)(length - 1);   // the first needs no reading
            if (i == 0 && !drawn) {
                printf("tokens");
                for (int64_t k = 0; k < min_i64(length, 16); k++) printf(" %d", out[k]);
                printf("\n");
            }
        }
        stats.size = sizeof stats;
        gpt2_sp_generator_stats(x, &stats);
        if (i >= 0) prefill[i] = stats.prompt_ms;
        gpt2_sp_generator_close(x);
    }
    printf("prefill_ms %.4f\ngreedy_ms %.4f\nsampled_ms %.4f\n", median(prefill), median(decode[0]),
        median(decode[1]));
    if (draft) printf("taken %.4f\n", (double)stats.accepted / (double)max_i64(1, stats.drafted));
    gpt2_sp_destroy(draft);
    gpt2_sp_destroy(g);
    return 0;
}
