// example_own_data.c: trains on data of the program's own, without a file of tokens.
//
//     make lib && cc -I. dev/example_own_data.c -L. -lgpt2sp -Wl,-rpath,. -o build/example_own_data
//     build/example_own_data RUN
//
// The training data come from a callback, sample by sample, those of the validation from a buffer. A step is
// cancelled and made again, a weight read and written, gradients changed before an update; the run is saved,
// made anew from its checkpoint, goes on, and continues a text. RUN may be there already: it then goes on.
#include <gpt2_sp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char SENTENCE[] = "the cat sat on the mat and the dog lay by the door. ";
enum { VOCABULARY = 257, STEPS = 200, TOKENS = 4096 };

// Sample n begins somewhere in the sentence; of its first eight tokens no label is learnt.
static int fill(void* user, gpt2_sp_sample* sample) {
    const int length = (int)strlen(SENTENCE);
    int64_t* samples = (int64_t*)user;
    for (int64_t t = 0; t <= sample->seq_len; t++)
        sample->tokens[t] = SENTENCE[(t + 7 * (int64_t)sample->sample) % length];
    for (int64_t t = 0; t < 8; t++) sample->labels[t] = GPT2_SP_NO_LABEL;
    ++*samples;
    return 0;
}

// Cancels half-way through a step.
static int half(void* user, const gpt2_sp_progress* p) {
    int* told = (int*)user;
    ++*told;
    return 2 * p->done >= p->total;
}

static void line(void* user, int level, const char* text) {
    (void)user;
    fprintf(stderr, "level %d: %s\n", level, text);
}

// A trainer on the program's data; NULL, and the reason is printed.
static gpt2_sp* trainer(const char* run, int64_t* samples) {
    const char* settings[][2] = {{"out", run}, {"layers", "2"}, {"heads", "2"}, {"channels", "64"},
        {"vocab", "257"}, {"seq-len", "64"}, {"batch-size", "4"}, {"sp", "2"}, {"steps", "200"},
        {"lr", "3e-3"}};
    static int32_t tokens[TOKENS];
    gpt2_sp_failure failure = {0, ""};
    gpt2_sp_options* options = gpt2_sp_options_new();
    gpt2_sp* g = NULL;
    int status = options ? 0 : GPT2_SP_NO_MEMORY;
    for (int i = 0; i < TOKENS; i++) tokens[i] = SENTENCE[i % (int)strlen(SENTENCE)];
    for (size_t i = 0; status == 0 && i < sizeof settings / sizeof settings[0]; i++)
        status = gpt2_sp_set(options, settings[i][0], settings[i][1], &failure);
    if (status == 0) status = gpt2_sp_on_log(options, line, NULL);
    if (status == 0) status = gpt2_sp_feed(options, GPT2_SP_TRAINING, fill, samples, 1, &failure);
    if (status == 0) status = gpt2_sp_feed_tokens(options, GPT2_SP_VALIDATION, tokens, TOKENS, -1, &failure);
    if (status == 0) g = gpt2_sp_create(options, &failure);
    gpt2_sp_options_free(options);
    if (!g) fprintf(stderr, "%s\n", failure.text);
    return g;
}

// A step that is cancelled, and its two halves made by hand, with one tensor's gradient halved.
static int unusual_step(gpt2_sp* g) {
    gpt2_sp_stats stats;
    gpt2_sp_tensor tensor;
    int told = 0, status = gpt2_sp_on_progress(g, half, &told);
    stats.size = sizeof stats, tensor.size = sizeof tensor;
    if (status == 0) status = gpt2_sp_step(g, &stats);
    if (status != GPT2_SP_CANCELLED) return status ? status : GPT2_SP_FAILED;
    printf("%s, %d times told; %d steps are done\n", gpt2_sp_error(g), told, (int)gpt2_sp_steps(g));
    gpt2_sp_on_progress(g, NULL, NULL);
    status = gpt2_sp_tensor_info(g, 0, &tensor);
    if (status != 0) return status;
    float* numbers = (float*)malloc((size_t)tensor.elements * sizeof *numbers);
    if (!numbers) return GPT2_SP_NO_MEMORY;
    status = gpt2_sp_gradients(g, &stats);
    if (status == 0)
        status = gpt2_sp_tensor_read(g, GPT2_SP_GRADIENTS, tensor.name, numbers, tensor.elements);
    for (int64_t i = 0; status == 0 && i < tensor.elements; i++) numbers[i] /= 2;
    if (status == 0)
        status = gpt2_sp_tensor_write(g, GPT2_SP_GRADIENTS, tensor.name, numbers, tensor.elements);
    if (status == 0) status = gpt2_sp_update(g, &stats);
    if (status == 0) status = gpt2_sp_tensor_read(g, GPT2_SP_WEIGHTS, tensor.name, numbers, tensor.elements);
    if (status == 0) status = gpt2_sp_tensor_write(g, GPT2_SP_WEIGHTS, tensor.name, numbers, tensor.elements);
    if (status == 0)
        printf("step %d by hand: loss %.4f, %s (%d, %d), its first number %.6f\n", (int)stats.step,
            stats.loss, tensor.name, (int)tensor.shape[0], (int)tensor.shape[1], (double)numbers[0]);
    free(numbers);
    return status;
}

// Steps up to `last`, then validates and saves.
static int steps(gpt2_sp* g, int64_t last) {
    gpt2_sp_stats stats;
    double loss = 0;
    int status = 0;
    stats.size = sizeof stats, stats.loss = 0;
    while (status == 0 && gpt2_sp_steps(g) < last) status = gpt2_sp_step(g, &stats);
    if (status == 0) status = gpt2_sp_validate(g, 4, &loss);
    if (status == 0) status = gpt2_sp_save(g);
    if (status == 0 && stats.loss > 0) printf("step %d: loss %.4f\n", (int)last, stats.loss);
    if (status == 0) printf("validation after step %d: %.4f\n", (int)gpt2_sp_steps(g), loss);
    return status;
}

int main(int argc, char** argv) {
    int64_t samples = 0;
    int32_t prompt[] = {'t', 'h', 'e', ' ', 'c'}, text[40];
    float losses[4];
    if (argc != 2) return fprintf(stderr, "usage: example_own_data RUN\n"), 1;
    gpt2_sp* g = trainer(argv[1], &samples);
    int status = g ? 0 : GPT2_SP_FAILED;
    if (status == 0 && gpt2_sp_steps(g) < STEPS / 2) {
        status = unusual_step(g);
        if (status == 0) status = steps(g, STEPS / 2);
        if (status != 0) fprintf(stderr, "%s\n", gpt2_sp_error(g));
        gpt2_sp_destroy(g);
        g = status == 0 ? trainer(argv[1], &samples) : NULL;
        if (g) printf("goes on after step %d\n", (int)gpt2_sp_steps(g));
    }
    if (!g) return 1;
    status = steps(g, STEPS);
    if (status == 0) status = gpt2_sp_losses(g, prompt, 5, losses);
    if (status == 0)
        printf("the losses of its prompt: %.3f %.3f %.3f %.3f\n", (double)losses[0], (double)losses[1],
            (double)losses[2], (double)losses[3]);
    gpt2_sp_sampling how;
    how.size = sizeof how;
    gpt2_sp_sampling_defaults(&how);
    how.temperature = 0;
    int64_t made = status == 0 ? gpt2_sp_generate(g, prompt, 5, text, 40, &how) : status;
    if (made < 0) fprintf(stderr, "%s\n", gpt2_sp_error(g));
    if (made >= 0) printf("the c");
    for (int64_t i = 0; i < made; i++) putchar(text[i] < 256 ? text[i] : ' ');
    if (made >= 0) printf("\n");
    gpt2_sp_destroy(g);
    printf("%s were asked for\n", samples > 0 ? "samples" : "no samples");
    return made < 0;
}
