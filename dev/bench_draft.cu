// bench_draft.cu: speculative decoding on texts: is the greedy text the same with a draft as without, and how
// much sooner is it there?
//
//     make build/dev/bench_draft && build/dev/bench_draft MODEL DRAFT SHARD [PROMPTS [PROMPT [LENGTH]]]
//
// MODEL and DRAFT: runs or GPT-2 folders of one tokenizer; SHARD: texts that neither was trained on. PROMPTS (100)
// prompts of PROMPT (128) tokens, evenly spaced over the shard, are each continued by LENGTH (64) tokens, with
// 2, 4 and 8 tokens proposed a round. Prints a line for each, and exits with 1 if a text differs. Only what is drawn
// is timed, without the reading of prompts.
#include "bench_gpu.h"

// Continues a prompt greedily; its milliseconds are added to *ms, what the draft did to *all.
static void draw(gpt2_sp* g, gpt2_sp* draft, const int32_t* prompt, int64_t n, int32_t* out, int64_t length,
    int64_t proposed, double* ms, gpt2_sp_generated* all) {
    gpt2_sp_sampling how;
    gpt2_sp_generated stats;
    how.size = sizeof how;
    gpt2_sp_sampling_defaults(&how);
    how.temperature = 0, how.draft_tokens = proposed;
    gpt2_sp_generator* x = gpt2_sp_generator_open(g, draft, prompt, n, length);
    if (!x) printf("%s\n", gpt2_sp_error(g)), exit(1);
    for (int again = 0; again < 2; again++) {   // the first makes the graphs
        double start = now_ms();
        if (gpt2_sp_generator_run(x, out, length, &how) != length) printf("%s\n", gpt2_sp_error(g)), exit(1);
        if (again) *ms += now_ms() - start;
    }
    stats.size = sizeof stats;
    gpt2_sp_generator_stats(x, &stats);
    all->drafted += stats.drafted, all->accepted += stats.accepted;
    gpt2_sp_generator_close(x);
}

int main(int argc, char** argv) {
    if (argc < 4)
        return fprintf(stderr, "usage: %s MODEL DRAFT SHARD [PROMPTS [PROMPT [LENGTH]]]\n", argv[0]), 2;
    gpt2_sp_device = &GPU_DEVICE;
    setvbuf(stdout, NULL, _IOLBF, 0);
    int64_t prompts = argc > 4 ? atoll(argv[4]) : 100, n = argc > 5 ? atoll(argv[5]) : 128,
            length = argc > 6 ? atoll(argv[6]) : 64, different = 0;
    gpt2_sp *g = load(argv[1]), *draft = load(argv[2]);
    const DataHow how = {0, g->mesh.shape.V, 0};
    Dataset d;
    Error e;
    if (dataset_open(&d, argv[3], &how, &e) != 0) return printf("%s\n", e.text), 1;
    int32_t *prompt = (int32_t*)malloc((size_t)n * 4),
            *alone = (int32_t*)malloc((size_t)(prompts * length) * 4),
            *out = (int32_t*)malloc((size_t)length * 4);
    double without = 0;
    gpt2_sp_generated none = {0};
    for (int64_t k = 0; k <= 8; k = k ? 2 * k : 2) {   // 0: without the draft
        double with = 0;
        gpt2_sp_generated all = {0};
        for (int64_t i = 0; i < prompts; i++) {
            uint64_t at = (d.tokens - (uint64_t)n) / (uint64_t)prompts * (uint64_t)i;
            if (dataset_read(&d, at, (uint64_t)n, prompt, &e) != 0) return printf("%s\n", e.text), 1;
            if (k == 0) draw(g, NULL, prompt, n, alone + i * length, length, 1, &without, &none);
            else {
                draw(g, draft, prompt, n, out, length, k, &with, &all);
                different += memcmp(out, alone + i * length, (size_t)length * 4) != 0;
            }
        }
        double tokens = (double)(prompts * (length - 1));
        if (k == 0) printf("without a draft %.4f ms a token\n", without / tokens);
        else
            printf("%lld proposed: %.4f ms a token, %.2f times as fast; %.1f %% of the proposals taken\n",
                (long long)k, with / tokens, without / with,
                100 * (double)all.accepted / (double)max_i64(1, all.drafted));
    }
    printf("%lld of %lld texts differ from those without a draft\n", (long long)different,
        (long long)(3 * prompts));
    dataset_close(&d);
    gpt2_sp_destroy(draft);
    gpt2_sp_destroy(g);
    return different != 0;
}
