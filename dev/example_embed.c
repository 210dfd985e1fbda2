// example_embed.c: fine-tunes a model from a C or C++ program.
//
//     make lib && cc dev/example_embed.c libgpt2sp.a -fopenmp -lz -lm -lpthread -o build/example_embed     (or: -L. -lgpt2sp)
//     build/example_embed SHARDS.tok CHECKPOINT RUN STEPS
#define GPT2_SP_HEADER_ONLY
#include "../train_gpt2_sp.c"
#include <stdio.h>

int main(int argc, char** argv) {
    char error[GPT2_SP_TEXT];
    gpt2_sp_options options;
    gpt2_sp_stats stats;
    if (argc != 5) return fprintf(stderr, "usage: %s SHARDS.tok CHECKPOINT RUN STEPS\n", argv[0]), 1;
    const char* settings[][2] = {{"data", argv[1]}, {"val-data", argv[1]}, {"init-from", argv[2]},
        {"out", argv[3]}, {"steps", argv[4]}, {"layers", "2"}, {"heads", "2"}, {"channels", "32"},
        {"seq-len", "128"}, {"sp", "2"}, {"lr", "1e-3"}};
    gpt2_sp_defaults(&options);
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        if (gpt2_sp_set(&options, settings[i][0], settings[i][1], error, sizeof error) != 0)
            return fprintf(stderr, "%s\n", error), 1;
    gpt2_sp* trainer = gpt2_sp_create(&options, error, sizeof error);
    if (!trainer) return fprintf(stderr, "%s\n", error), 1;
    int failed = 0;
    while (!failed && gpt2_sp_steps(trainer) < options.steps) {
        failed = gpt2_sp_step(trainer, &stats);
        if (!failed) printf("step %d: loss %.4f\n", (int)stats.step, stats.loss);
    }
    double loss = 0;
    gpt2_sp_sampling how;
    gpt2_sp_sampling_defaults(&how);
    how.temperature = 0.7, how.min_p = 0.05;
    int32_t prompt[] = {'T', 'h', 'e', ' '}, text[32];
    failed = failed || gpt2_sp_validate(trainer, 4, &loss) != 0 ||
        gpt2_sp_generate(trainer, prompt, 4, text, 32, &how) < 0 || gpt2_sp_save(trainer) != 0;
    if (failed) fprintf(stderr, "%s\n", gpt2_sp_error(trainer));
    else printf("validation loss %.4f, saved in %s\n", loss, options.out);
    gpt2_sp_destroy(trainer);
    return failed;
}
