// example_embed.c: fine-tunes a model from a program in C.
//
//     make lib && cc -I. dev/example_embed.c -L. -lgpt2sp -Wl,-rpath,. -o build/example_embed
//     build/example_embed SHARDS.tok CHECKPOINT RUN STEPS
//
// With an installed library: cc example_embed.c $(pkg-config --cflags --libs gpt2_sp) -o example_embed
#include <gpt2_sp.h>
#include <stdio.h>
#include <stdlib.h>

static int stop(const char* line) { return fprintf(stderr, "%s\n", line), 1; }

int main(int argc, char** argv) {
    gpt2_sp_failure failure;
    if (argc != 5) return stop("usage: example_embed SHARDS.tok CHECKPOINT RUN STEPS");
    const char* settings[][2] = {{"data", argv[1]}, {"val-data", argv[1]}, {"init-from", argv[2]},
        {"out", argv[3]}, {"steps", argv[4]}, {"seq-len", "128"}, {"sp", "2"}, {"lr", "1e-3"}};
    gpt2_sp_options* options = gpt2_sp_options_new();
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        if (gpt2_sp_set(options, settings[i][0], settings[i][1], &failure) != 0) return stop(failure.text);
    gpt2_sp* trainer = gpt2_sp_create(options, &failure);
    gpt2_sp_options_free(options);
    if (!trainer) return stop(failure.text);
    int failed = 0;
    gpt2_sp_stats stats;
    stats.size = sizeof stats;
    while (!failed && gpt2_sp_steps(trainer) < atoi(argv[4])) {
        failed = gpt2_sp_step(trainer, &stats);
        if (!failed) printf("step %d: loss %.4f\n", (int)stats.step, stats.loss);
    }
    double loss = 0;
    gpt2_sp_sampling how;
    how.size = sizeof how;
    gpt2_sp_sampling_defaults(&how);
    how.temperature = 0.7, how.min_p = 0.05;
    int32_t prompt[] = {'T', 'h', 'e', ' '}, text[32];
    failed = failed || gpt2_sp_validate(trainer, 4, &loss) != 0 ||
        gpt2_sp_generate(trainer, prompt, 4, text, 32, &how) < 0 || gpt2_sp_save(trainer) != 0;
    if (failed) stop(gpt2_sp_error(trainer));
    else printf("validation loss %.4f, saved in %s\n", loss, argv[3]);
    gpt2_sp_destroy(trainer);
    return failed;
}
