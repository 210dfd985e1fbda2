/* test_gpt2_sp: the tests of gpt2_sp, built against the CPU program, which it includes whole.
 *
 *     make test                              builds and runs everything, in float and in double
 *     make test-gpu                          built by nvcc against the GPU program: dev/test_gpu.h
 *     ./test_gpt2_sp                         all groups; `./test_gpt2_sp schedules resume` runs those two
 *     ./test_gpt2_sp quick                   fewer cases of each (or GPT2_SP_QUICK=1)
 *     ./test_gpt2_sp few                     fewer still where ranks compute, for sanitizers
 *
 * Every test prints what must hold and the figure, as `ok   name: figure` or `FAIL name: figure`; the last
 * line is `N passed, N failed`, and the exit status is 1 if any failed. A NaN fails every comparison. Run it
 * in the repository's root (it reads dev/fixtures); files of its own go to a folder under $TMPDIR or /tmp,
 * which is removed at the end. Each group, a section here, opens with what it holds and what its failure
 * would mean.
 *
 * Tolerances come from the arithmetic: EPS is the spacing of `real` at 1. A sum of n products has a relative
 * error (in the norm) of about sqrt(n) EPS; where a figure depends on more than one such sum the comment at
 * the test says how many.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <locale.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

// All memory that the program asks for is counted, so that the memory tests see what no plan mentions.
static size_t memory_live, memory_peak;   // bytes

static size_t memory_now(void) { return __atomic_load_n(&memory_live, __ATOMIC_RELAXED); }
// The peak counts from here.
static void memory_mark(void) { __atomic_store_n(&memory_peak, memory_now(), __ATOMIC_RELAXED); }

static void* counted(void* p) {
    if (!p) return p;
    size_t live = __atomic_add_fetch(&memory_live, malloc_usable_size(p), __ATOMIC_RELAXED);
    size_t peak = __atomic_load_n(&memory_peak, __ATOMIC_RELAXED);
    while (live > peak &&
        !__atomic_compare_exchange_n(&memory_peak, &peak, live, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
    return p;
}
static void counted_free(void* p) {
    if (p) __atomic_sub_fetch(&memory_live, malloc_usable_size(p), __ATOMIC_RELAXED);
    free(p);
}
static void* counted_realloc(void* p, size_t size) {
    size_t before = p ? malloc_usable_size(p) : 0;
    void* larger = realloc(p, size);
    if (larger) __atomic_sub_fetch(&memory_live, before, __ATOMIC_RELAXED);
    return counted(larger);
}
static int counted_memalign(void** p, size_t alignment, size_t size) {
    int status = posix_memalign(p, alignment, size);
    if (status == 0) counted(*p);
    return status;
}
#ifndef GPT2_SP_GPU   // CUDA's headers declare these names
#define malloc(size) counted(malloc(size))
#define calloc(count, size) counted(calloc(count, size))
#define realloc(p, size) counted_realloc(p, size)
#define posix_memalign(p, alignment, size) counted_memalign(p, alignment, size)
#define free(p) counted_free(p)

// The program reads what the kernel says of the machine and of its container in a folder that a test made, if
// it names one.
static const char* kernel_shown;
static FILE* kernel_open(const char* path, const char* mode) {
    char shown[1024];
    if (!kernel_shown || (strncmp(path, "/proc/", 6) != 0 && strncmp(path, "/sys/", 5) != 0))
        return fopen(path, mode);
    snprintf(shown, sizeof shown, "%.500s%.500s", kernel_shown, path);
    return fopen(shown, mode);
}
#define fopen(path, mode) kernel_open(path, mode)
#endif

#ifdef GPT2_SP_GPU
// The program asks for the number of GPUs in one place; the tests answer it, so that on two GPUs it can be
// made to take one.
#include <cub/device/device_radix_sort.cuh>
#include <cuda_runtime.h>
static int gpus_shown = -1;   // -1: all there are
static cudaError_t gpus_count(int* count) {
    if (gpus_shown < 0) return cudaGetDeviceCount(count);
    *count = gpus_shown;
    return cudaSuccess;
}
#define cudaGetDeviceCount gpus_count
#define GPT2_SP_GPU_NO_MAIN
#include "train_gpt2_sp.cu"
#undef cudaGetDeviceCount
#else
#define GPT2_SP_NO_MAIN
#include "train_gpt2_sp.c"
#endif

// The public functions as the tests call them: with a text for the reason, and structs of today's size.
static inline gpt2_sp* trainer_of(const gpt2_sp_options* o, char* error, size_t size) {
    gpt2_sp_failure failure;
    gpt2_sp* g = gpt2_sp_create(o, &failure);
    if (error && size > 0) snprintf(error, size, "%s", failure.text);
    return g;
}
static inline int option_text(
    gpt2_sp_options* o, const char* name, const char* value, char* error, size_t size) {
    gpt2_sp_failure failure;
    int status = gpt2_sp_set(o, name, value, &failure);
    if (error && size > 0) snprintf(error, size, "%s", failure.text);
    return status;
}
static inline int step_of(gpt2_sp* g, gpt2_sp_stats* stats) {
    if (stats) stats->size = sizeof *stats;
    return gpt2_sp_step(g, stats);
}
static inline void generated_of(const gpt2_sp_generator* x, gpt2_sp_generated* stats) {
    stats->size = sizeof *stats;
    gpt2_sp_generator_stats(x, stats);
}

// ===== results ==================================================================================

static int passed, failed, skipped;
static int quick, few;   // fewer cases; few: so few that every kind of rank has one

// One result. The name says what must hold, the text behind it what was compared and found.
static void check(int ok, const char* name, const char* format, ...) __attribute__((format(printf, 3, 4)));
static void check(int ok, const char* name, const char* format, ...) {
    va_list args;
    printf("%s %s: ", ok ? "ok  " : "FAIL", name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
    if (ok) passed++;
    else failed++;
}

// One figure that must not be larger than its limit.
static void check_below(double found, double limit, const char* name, const char* what) {
    check(found <= limit, name, "%s %.3g, at most %.3g", what, found, limit);   // false for NaN
}

static void skip(const char* name, const char* why) {
    printf("skip %s: %s\n", name, why);
    skipped++;
}

// The larger of two figures; once NaN, it stays NaN.
static double worst(double a, double b) { return isnan(a) || a > b ? a : b; }

#include "dev/test_data.h"
#include "dev/test_bpe.h"
#include "dev/test_prepare.h"
#include "dev/test_safetensors.h"

static const double EPS = sizeof(real) == 8 ? 2.220446049250313e-16 : 1.1920928955078125e-07;
enum { IS_DOUBLE = sizeof(real) == 8 };

// |found - expected| / |expected|, in the 2-norm over n numbers.
static double distance(const real* found, const double* expected, int64_t n) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)found[i] - expected[i];
        difference += d * d, size += expected[i] * expected[i];
    }
    return size > 0 ? sqrt(difference / size) : sqrt(difference);
}

// The k-th number of a stream of its own, N(0, 1).
static double noise(uint64_t stream, int64_t k) { return random_normal(20240607, stream, (uint64_t)k); }
static uint64_t dice(uint64_t stream, uint64_t k, uint64_t sides) {
    return random_bits(20240607, stream, k) % sides;
}
static void noise_fill(real* out, int64_t n, uint64_t stream, double scale) {
    for (int64_t i = 0; i < n; i++) out[i] = (real)(scale * noise(stream, i));
}

static void* need(size_t count, size_t size) {   // zeroed memory, or the end
    void* p = calloc(count ? count : 1, size);
    if (!p) {
        printf("FAIL memory: %zu x %zu bytes\n", count, size);
        exit(1);
    }
    return p;
}
static real* reals(int64_t n) { return (real*)need((size_t)n, sizeof(real)); }
static double* doubles(int64_t n) { return (double*)need((size_t)n, sizeof(double)); }

// How tokens are drawn, by what most tests vary.
static gpt2_sp_sampling drawing(double temperature, int64_t top_k, double top_p, uint64_t seed) {
    gpt2_sp_sampling how = {sizeof how, temperature, top_k, top_p, 0, 1, seed, 0, 4, NULL, NULL};
    return how;
}
static int64_t generated(gpt2_sp* g, const int32_t* prompt, int64_t n, int32_t* out, int64_t count,
    double temperature, int64_t top_k, double top_p, uint64_t seed) {
    const gpt2_sp_sampling how = drawing(temperature, top_k, top_p, seed);
    return gpt2_sp_generate(g, prompt, n, out, count, &how);
}
// The token drawn from logits (V) by `unit`; -1 if one is not finite. candidates: room for V.
static int32_t token_drawn(
    const real* logits, int64_t V, const gpt2_sp_sampling* how, double unit, Candidate* candidates) {
    Distribution d = {candidates, 0, 0};
    return distribution_make(&d, logits, V, how, NULL) == 0 ? distribution_draw(&d, unit) : -1;
}

// A path in the tests' own folder, which is made at the first call. The text is good until 8 calls later.
static char scratch_folder[256];
static const char* scratch(const char* name) {
    static char paths[8][512];
    static int next;
    if (!scratch_folder[0]) {
        const char* parent = getenv("TMPDIR");
        snprintf(scratch_folder, sizeof scratch_folder, "%.200s/gpt2_sp_test_XXXXXX",
            parent && parent[0] ? parent : "/tmp");
        if (!mkdtemp(scratch_folder)) {
            perror(scratch_folder);
            exit(1);
        }
    }
    char* path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", scratch_folder, name);
    return path;
}

// Makes the C library use a locale with a decimal comma and an order that ignores case, which is made once in
// the tests' folder. 0: none can be made here.
static int comma_locale(void) {
    static int made = -1;
    char command[1200];
    if (made < 0) {
        snprintf(command, sizeof command, "localedef -i de_DE -f UTF-8 %s 2> %s", scratch("comma.UTF-8"),
            scratch("localedef"));
        made = system(command) == 0;
        setenv("LOCPATH", scratch(""), 1);
    }
    return made && setlocale(LC_ALL, "comma.UTF-8") && localeconv()->decimal_point[0] == ',' &&
        strcoll("a", "B") < 0;
}
#include "dev/test_net.h"

static void remove_tree(const char* path) { nftw(path, test_data_remove, 16, FTW_DEPTH | FTW_PHYS); }

// Sets options from "name=value name=value".
static void options_apply(gpt2_sp_options* o, const char* text) {
    char name[64], value[256], error[GPT2_SP_TEXT];
    int used;
    for (; sscanf(text, " %63[^= ]=%255s%n", name, value, &used) == 2; text += used)
        if (option_text(o, name, value, error, sizeof error) != 0)
            check(0, "a test's options are taken", "%s", error);
}
static gpt2_sp_options options_of(const char* text) {
    gpt2_sp_options o;
    options_default(&o);
    o.log = PRINTED;   // as the commands have it
    o.sp = 1;          // not all GPUs there are
    options_apply(&o, text);
    return o;
}

// A trainer without data or checkpoint: ranks, memory and schedules, the weights all zero.
static gpt2_sp* bare_trainer(const gpt2_sp_options* o, int64_t vocab) {
    gpt2_sp* g = trainer_new(o);
    if (g && trainer_init(g, vocab, 1) == 0) return g;
    check(0, "a test's trainer is made", "%s", g ? g->error.text : "out of memory");
    gpt2_sp_destroy(g);
    return NULL;
}

// All weights, gradients or moments of a trainer, whole, wherever its ranks keep them: (layout.elements).
static void collect(const gpt2_sp* g, int state, real* out) {
    for (int u = 0; u < g->layout.count; u++) {
        const Unit* unit = &g->layout.units[u];
        for (int w = 0; w < g->mesh.world; w++) {
            const Rank* r = &g->ranks[w];
            int64_t begin = slice_begin(r, u), at = held_at(r, state, u, begin);
            real* to = out + unit->offset + begin;
            size_t bytes = (size_t)unit->slice * sizeof *to;
#ifdef GPT2_SP_GPU
            const Gpu* d = (const Gpu*)r->device;
            if (d && cudaMemcpy(to, d->state[state] + at, bytes, cudaMemcpyDeviceToHost) != cudaSuccess)
                check(0, "a test's copy from the GPU succeeds", "%s", cudaGetErrorString(cudaGetLastError()));
            if (d) continue;
#endif
            memcpy(to, r->state[state] + at, bytes);
        }
    }
}

// ===== schedules ================================================================================
// The tables by which ranks share the blocks of attention and send each other what those need. Held: every
// table is proved to compute each block once and in time, its cost is the one that papers and the lecture
// give, what cannot be is refused, and the clock that `plan` and the choice of a split rest on keeps to its
// bounds. A table that is wrong computes another attention without an error; one that costs more is only
// slow.

// Whether there is a table of that kind for P ranks (ulysses: any, with P heads).
static int schedule_exists(int kind, int P) { return kind != GPT2_SP_DIST_PAPER || P % 2 == 0 || P == 1; }

static void schedules_proved(void) {
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
        int tables = 0, wrong = 0;
        int hashes = 0;
        uint64_t seen[128];
        Error e = {0, {0}}, first = {0, {0}};
        for (int P = 1; P <= 64; P++)
            for (int backward = 0; backward < 2 && schedule_exists(kind, P); backward++) {
                Schedule s;
                if (quick && P > 17 && P % 16 > 1) continue;
                int bad = schedule_build(&s, kind, P, backward, P, &e) != 0 || schedule_prove(&s, &e) != 0;
                if (bad && !wrong++) first = e;
                seen[tables++] = schedule_hash(&s);
                for (int i = 0; i + 1 < tables; i++) hashes += seen[i] == seen[tables - 1];
                schedule_free(&s);
            }
        check(wrong == 0 && hashes == 0, "schedules: every table is proved",
            "%s, P 1..64, both directions: %d tables, %d violations, %d equal hashes %s", schedule_name(kind),
            tables, wrong, hashes, first.text);
    }
}

// Figures that papers and the lecture give, as literals.
static void schedules_known(void) {
    static const struct {
        int kind, P, backward, steps;
        double makespan, elements;
    } known[] = {
        {GPT2_SP_DIST, 8, 0, 6, 4, 7},
        {GPT2_SP_DIST, 8, 1, 6, 4, 3 * 3 + 3 * 4 / 16.0 + 1.75},
        {GPT2_SP_DIST, 1, 0, 1, 0.5, 0},
        {GPT2_SP_DIST, 7, 0, 5, 3.5, 6},
        {GPT2_SP_DIST_PAPER, 8, 0, 5, 4.5, 7},
        {GPT2_SP_RING, 8, 0, 8, 7.5, 14},
        {GPT2_SP_ZIGZAG, 8, 0, 8, 4, 14},
        {GPT2_SP_ALLGATHER, 8, 1, 2, 4, 28},
        {GPT2_SP_ULYSSES, 8, 0, 1, 4, 3.5},
        {GPT2_SP_DIST, 2, 0, 3, 1, 1},
        {GPT2_SP_DIST, 3, 0, 3, 1.5, 2},
        {GPT2_SP_RING, 4, 1, 4, 3.5, 10.5},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        Schedule s;
        ScheduleCost cost;
        Error e = {0, {0}};
        memset(&cost, 0, sizeof cost);
        if (schedule_build(&s, known[i].kind, known[i].P, known[i].backward, known[i].P, &e) == 0)
            schedule_cost(&s, &cost, &e);
        check(cost.steps == known[i].steps && fabs(cost.makespan - known[i].makespan) < 1e-12 &&
                fabs(cost.elements - known[i].elements) < 1e-12,
            "schedules: figures are those that papers and the lecture give",
            "%s P=%d %s: %d steps, makespan %g, %g C", schedule_name(known[i].kind), known[i].P,
            known[i].backward ? "backward" : "forward", cost.steps, cost.makespan, cost.elements);
        schedule_free(&s);
    }
}

// LightSeq's released condition lets nobody help at the last step, also where P is odd: blocks are lost.
static void schedules_lightseq(void) {
    for (int P = 2; P <= 9; P++) {
        Schedule s;
        Error e = {0, {0}};
        schedule_begin(&s, GPT2_SP_DIST, P, 0);
        schedule_build_dist(&s, DIST_LIGHTSEQ);
        int built = schedule_finish(&s, &e), proved = built == 0 && schedule_prove(&s, &e) == 0;
        if (P % 2 == 1)
            check(!proved && strstr(e.text, "is never computed"),
                "schedules: LightSeq's table of an odd P is refused", "P=%d: %s", P, e.text);
        schedule_free(&s);
    }
}

static void schedules_refused(void) {
    static const struct {
        int kind, P, heads;
        const char* part;
    } refused[] = {{GPT2_SP_DIST_PAPER, 3, 4, "odd --sp (found 3)"},
        {GPT2_SP_DIST_PAPER, 7, 4, "odd --sp (found 7)"}, {GPT2_SP_ULYSSES, 3, 4, "(found 4 and 3)"},
        {GPT2_SP_ULYSSES, 8, 12, "(found 12 and 8)"}};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        Schedule s;
        Error e = {0, {0}};
        int status = schedule_build(&s, refused[i].kind, refused[i].P, 0, refused[i].heads, &e);
        check(status == -1 && strstr(e.text, refused[i].part),
            "schedules: ranks and heads that do not fit are refused", "%s", e.text);
        schedule_free(&s);
    }
}

static const char* const PICTURE =
    "dist, 8 ranks, forward: 6 steps, makespan 4 units, ideal 4 (100.0 %), 7 C received per rank\n"
    "  step   rank 0    rank 1    rank 2    rank 3    rank 4    rank 5    rank 6    rank 7\n"
    "     0   q0k0 1/2  q1k1 1/2  q2k2 1/2  q3k3 1/2  q4k4 1/2  q5k5 1/2  q6k6 1/2  q7k7 1/2\n"
    "     1   q7k0*     q1k0      q2k1      q3k2      q4k3      q5k4      q6k5      q7k6\n"
    "     2   q6k0*     q7k1*     q2k0      q3k1      q4k2      q5k3      q6k4      q7k5\n"
    "     3   q5k0*     q6k1*     q7k2*     q3k0      q4k1      q5k2      q6k3      q7k4\n"
    "     4   q4k0* 1/2 q5k1* 1/2 q6k2* 1/2 q7k3* 1/2 q4k0 1/2  q5k1 1/2  q6k2 1/2  q7k3 1/2\n"
    "     5   q0k0 1/2  q1k1 1/2  q2k2 1/2  q3k3 1/2  q4k4 1/2  q5k5 1/2  q6k6 1/2  q7k7 1/2\n"
    "  qikj: query chunk i against key chunk j; *: done by the keys' owner; n/m: that share of the heads\n";

// Here a rank's keys of two chunks go on with each other where the chunks do, and each message stands at its
// sender.
static const char* const MESSAGES =
    "zigzag, 4 ranks, forward: 4 steps, makespan 2 units, ideal 2 (100.0 %), 6 C received per rank\n"
    "  step   rank 0  rank 1  rank 2  rank 3\n"
    "     0   q0k0    q1k1    q2k2    q3k3\n"
    "         q7k0    q6k1    q5k2    q4k3-4\n"
    "         q7k7    q6k6    q5k5    kv3>0\n"
    "         kv0>1   kv1>2   kv2>3\n"
    "     1   q7k3-4  q1k0    q2k1    q3k2\n"
    "         kv3>1   q6k0    q5k1    q4k2\n"
    "                 kv0>2   kv1>3   kv2>0\n"
    "     2   q7k2    q6k3-4  q2k0    q3k1\n"
    "         q7k5    kv3>2   q5k0    q4k1\n"
    "         kv2>1           kv0>3   kv1>0\n"
    "     3   q7k1    q6k2    q5k3-4  q3k0\n"
    "         q7k6    q6k5            q4k0\n"
    "  qikj: query chunk i against key chunk j; *: done by the keys' owner; n/m: that share of the heads\n"
    "  kvi>r: what is sent in that step, rank i's rows of it, to rank r\n";

static void schedules_drawn(void) {
    static const struct {
        int kind, P, messages;
        const char *picture, *name;
    } cases[] = {{GPT2_SP_DIST, 8, 0, PICTURE, "schedules: dist is drawn as in the lecture"},
        {GPT2_SP_ZIGZAG, 4, 1, MESSAGES, "schedules: zigzag is drawn, with what travels"}};
    for (int i = 0; i < 2; i++) {
        Schedule s;
        ScheduleCost cost;
        Error e = {0, {0}};
        char* text = NULL;
        size_t size = 0;
        FILE* out = open_memstream(&text, &size);
        if (out && schedule_build(&s, cases[i].kind, cases[i].P, 0, 0, &e) == 0 &&
            schedule_cost(&s, &cost, &e) == 0)
            (void)schedule_draw(&s, &cost, cases[i].messages, out, &e);
        if (out) fclose(out);
        check(text && strcmp(text, cases[i].picture) == 0, cases[i].name, "P=%d, %zu characters", cases[i].P,
            size);
        if (text && strcmp(text, cases[i].picture) != 0) printf("%s", text);
        schedule_free(&s);
        free(text);
    }
}

// Seconds of a table if a unit of work takes `unit`, an element of C on the way `link`, and adding one
// `merge`.
static double schedule_timed(const Schedule* s, double unit, double link, double merge) {
    double* seconds = (double*)need((size_t)(s->op_count + 2 * s->message_count) + 1, sizeof *seconds);
    for (int i = 0; i < s->op_count; i++) seconds[i] = unit * op_units(s, &s->ops[i]);
    for (int i = 0; i < s->message_count; i++) {
        double units = item_units(s, s->messages[i].item);
        seconds[s->op_count + i] = link * units;
        seconds[s->op_count + s->message_count + i] =
            item_is_result(s->messages[i].item.kind) ? merge * units : 0;
    }
    double time = schedule_play(s, seconds, seconds + s->op_count, seconds + s->op_count + s->message_count);
    free(seconds);
    return time;
}

// The work of the rank that has most.
static double schedule_busiest(const Schedule* s) {
    double busiest = 0;
    for (int r = 0; r < s->P; r++) {
        double units = 0;
        for (int i = 0; i < s->op_count; i++) units += s->ops[i].rank == r ? op_units(s, &s->ops[i]) : 0;
        busiest = fmax(busiest, units);
    }
    return busiest;
}

// Played by the clock, a table without exchange takes its makespan (no more than that, and at least the
// busiest rank's work), one without work at least what a rank receives, and both together no less than
// either and no more than their sum. 1 if so, 0 if not, -1 if there is no such table.
static int schedule_within_bounds(int kind, int P, int backward) {
    Schedule s;
    ScheduleCost cost;
    Error e = {0, {0}};
    double near = 1e-9;
    if (schedule_outline(&s, kind, P, backward, P, &e) != 0 || schedule_cost(&s, &cost, &e) != 0) return -1;
    double makespan = SCHEDULES[kind].makespan(P);
    double work = schedule_timed(&s, 1, 0, 0), link = schedule_timed(&s, 0, 1, 0);
    double both = schedule_timed(&s, 1, 1, 0), all = schedule_timed(&s, 1, 1, 1);
    int right = work <= makespan + near && work >= schedule_busiest(&s) - near &&
        link >= cost.most_received - near && both >= fmax(work, link) - near && both <= work + link + near &&
        all >= both - near;
    schedule_free(&s);
    return right;
}

static void schedules_timed(void) {
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
        int tables = 0, wrong = 0;
        for (int P = 1; P <= 17; P++)
            for (int backward = 0; backward < 2 && schedule_exists(kind, P); backward++) {
                int right = schedule_within_bounds(kind, P, backward);
                wrong += right != 1;
                tables += right >= 0;
            }
        check(wrong == 0, "schedules: played by the clock, a table keeps to its bounds",
            "%s, P 1..17, both directions: %d tables, %d out of bounds", schedule_name(kind), tables, wrong);
    }
}

// 2C of keys and values travel beside half a unit of work, then rank 1 has one more.
static void schedules_hidden(void) {
    Schedule s;
    Error e = {0, {0}};
    double hidden = -1, shown = -1;
    if (schedule_build(&s, GPT2_SP_RING, 2, 0, 2, &e) == 0) {
        hidden = schedule_timed(&s, 1, 0.2, 0);
        shown = schedule_timed(&s, 1, 0.4, 0);
    }
    schedule_free(&s);
    check(fabs(hidden - 1.5) < 1e-12 && fabs(shown - 1.8) < 1e-12,
        "schedules: exchange hides behind work as far as there is some", "ring P=2: %g, %g s", hidden, shown);
}

static void schedules_ulysses(void) {
    gpt2_sp_options o = options_of("heads=8 channels=64 seq-len=512 sp=8 schedule=ulysses");
    Schedule schedules[2];
    Mesh mesh;
    Rates rates = {1, 1, 1, 1, 0};
    Error e = {0, {0}};
    double most = 0;
    memset(schedules, 0, sizeof schedules);
    int status = mesh_init(&mesh, schedules, &o, 257, 1, &CPU_DEVICE, &e);
    for (int d = 0; status == 0 && d < 2; d++) {
        TableCost closed, played;
        status = table_project(&closed, &mesh.shape, GPT2_SP_ULYSSES, 8, d, &CPU_DEVICE, &rates, &e);
        if (status == 0) status = table_play(&played, &mesh.shape, &schedules[d], &CPU_DEVICE, &rates, &e);
        if (status != 0) break;
        most = fmax(most, fabs(closed.seconds / played.seconds - 1));
        most = fmax(most, fabs(closed.bytes / played.bytes - 1));
    }
    check(status == 0 && most < 1e-9, "schedules: ulysses takes the time of its closed form",
        "P=8, relative difference to the played table %.1e", most);
    schedule_free(&schedules[0]);
    schedule_free(&schedules[1]);
}

static Schedule schedule_copy(const Schedule* s) {
    size_t ops = (size_t)s->op_count, messages = (size_t)s->message_count;
    size_t P = (size_t)s->P, slots = P * MAX_SLOTS;
    Schedule c = *s;
    c.op_room = s->op_count + 2;
    c.message_room = s->message_count + 2;
    c.ops = (ScheduleOp*)need(ops + 2, sizeof *c.ops);
    c.messages = (ScheduleMessage*)need(messages + 2, sizeof *c.messages);
    c.slot_count = (int*)need(P, sizeof *c.slot_count);
    c.slot_items = (Item*)need(slots, sizeof *c.slot_items);
    memcpy(c.ops, s->ops, ops * sizeof *c.ops);
    if (messages > 0) memcpy(c.messages, s->messages, messages * sizeof *c.messages);
    memcpy(c.slot_count, s->slot_count, P * sizeof *c.slot_count);
    memcpy(c.slot_items, s->slot_items, slots * sizeof *c.slot_items);
    return c;
}

// Ops and messages back in their order, after their steps have changed.
static void schedule_sort(Schedule* s) {
    qsort(s->ops, (size_t)s->op_count, sizeof *s->ops, op_order);
    if (s->message_count > 0)
        qsort(s->messages, (size_t)s->message_count, sizeof *s->messages, message_order);
    for (int i = 0; i < s->op_count; i++)
        if (s->ops[i].step >= s->steps) s->steps = s->ops[i].step + 1;
    for (int i = 0; i < s->message_count; i++)
        if (s->messages[i].step >= s->steps) s->steps = s->messages[i].step + 1;
}

// One of a rank's slots by a roll of the dice; -1 if it has none.
static int slot_drawn(const Schedule* s, int rank, uint64_t roll) {
    return s->slot_count[rank] ? (int)(roll % (uint64_t)s->slot_count[rank]) : -1;
}

// One of the numbers of an op or a message becomes another. Returns what that damage is called, or NULL if
// the number was that already or cannot be.
static const char* schedule_damage(
    const Schedule* s, ScheduleOp* op, ScheduleMessage* m, int mutation, uint64_t roll) {
    const int to = slot_drawn(s, m->to, roll), from = slot_drawn(s, m->from, roll);
    const int slot = slot_drawn(s, op->rank, roll), own = roll % 5 ? slot : -1;
    const int rank = (int)(roll % (uint64_t)s->P), key = (int)(roll % (uint64_t)s->chunks);
    const int part = (int)(roll % (uint64_t)(s->head_parts + 1));
    const struct {
        const char* name;
        int *place, value, possible;
    } damages[] = {
        {"another key chunk", &op->k, key, 1},   // mutation 3
        {"another sender", &m->from, rank, 1},
        {"another receiver", &m->to, rank, 1},
        {"another rank's item", &m->item.of, rank, 1},
        {"added on arrival or not", &m->merge, !m->merge, 1},
        {"a message one step later", &m->step, m->step + 1, 1},
        {"a message one step earlier", &m->step, m->step - 1, m->step > 0},
        {"another slot to receive", &m->dst, to, 1},
        {"another slot to send", &m->src, from, 1},
        {"another slot to add to", &m->into, roll % 3 ? to : -1, m->merge},
        {"another slot of an operand", &op->kv_slot, own, 1},
        {"another slot of a result", &op->dq_slot, own, 1},
        {"another share of the heads", &op->h1, part, part > op->h0},
        {"a block one step later", &op->step, op->step + 1, 1},
        {"another slot of dK, dV", &op->dkv_slot, own, s->backward},
    };
    int i = mutation - 3;
    if (!damages[i].possible || *damages[i].place == damages[i].value) return NULL;
    *damages[i].place = damages[i].value;
    return damages[i].name;
}

// Damages a table at random; what the damage is called, or NULL if there is none. `always`: no table so
// damaged can be right (the others may by chance only be late, or use another slot that is free).
enum { MUTATIONS = 18 };
static const char* schedule_mutate(Schedule* s, int mutation, uint64_t draw, int* always) {
    static ScheduleMessage none;
    int ops = s->op_count, messages = s->message_count;
    ScheduleOp* op = &s->ops[dice(71, 4 * draw, (uint64_t)ops)];
    ScheduleMessage* m = messages ? &s->messages[dice(71, 4 * draw + 1, (uint64_t)messages)] : &none;
    const char* name;
    *always = mutation < 8;
    if (messages == 0 && mutation != 1 && mutation != 2 && mutation != 3) return NULL;
    switch (mutation) {
    case 0:
        name = "a message dropped";
        *m = s->messages[--s->message_count];
        break;
    case 1:
        name = "a block dropped";
        *op = s->ops[--s->op_count];
        break;
    case 2:
        name = "a block twice";
        s->ops[s->op_count++] = *op;
        break;
    default: name = schedule_damage(s, op, m, mutation, random_bits(20240607, 72, draw));
    }
    schedule_sort(s);
    return name;
}

static void test_schedules(void) {
    schedules_proved();
    schedules_known();
    schedules_lightseq();
    schedules_refused();
    schedules_drawn();
    schedules_timed();
    schedules_hidden();
    schedules_ulysses();
}

// ===== attention ================================================================================
// The heart of sequence parallelism: ranks that each hold a part of a sequence compute together what one
// rank would. Held: every schedule gives plain O(T^2) attention and its gradients, no worse with more ranks,
// with and without documents; the bytes sent are those promised; a table that is damaged is refused or does
// no harm. An error here trains a model that attends to something else, which only a comparison with plain
// attention shows.

// One sequence of one layer: inputs, what plain attention makes of them in double, and what the ranks made.
typedef struct {
    int64_t T, NH, HS;
    real *q, *kv, *dout;   // (NH, T, HS), (NH, 2, T, HS), (NH, T, HS)
    int32_t* doc_start;    // (T)
    int docs;              // it is used
    double* expected[4];   // out, dq, dkv (NH, 2, T, HS), lse (NH, T)
    real* found[4];
    uint64_t sent[2];   // bytes, all ranks; forward, backward
} AttentionCase;
static AttentionCase attention_case;   // the one that the ranks work on

// Query i of a head by plain attention: the softmax p of its whole row, output and log-sum-exp, and what its
// gradient adds to dK and dV.
static void attention_reference_row(AttentionCase* c, int64_t h, int64_t i, double* p) {
    const int64_t T = c->T, HS = c->HS;
    const int64_t row = h * T + i;
    int64_t first = c->docs ? c->doc_start[i] : 0;
    const real *q = c->q + row * HS, *dout = c->dout + row * HS;
    const real *k = c->kv + 2 * h * T * HS, *v = k + T * HS;
    double *out = c->expected[0] + row * HS, *dq = c->expected[1] + row * HS;
    double *dk = c->expected[2] + 2 * h * T * HS, *dv = dk + T * HS;
    double scale = 1 / sqrt((double)HS), most = -INFINITY;
    double sum = 0, delta = 0;
    for (int64_t j = first; j <= i; j++) {
        p[j] = 0;
        for (int64_t n = 0; n < HS; n++) p[j] += (double)q[n] * (double)k[j * HS + n];
        p[j] *= scale;
        most = fmax(most, p[j]);
    }
    for (int64_t j = first; j <= i; j++) sum += exp(p[j] - most);
    c->expected[3][row] = most + log(sum);
    for (int64_t n = 0; n < HS; n++) out[n] = 0;
    for (int64_t j = first; j <= i; j++) {
        p[j] = exp(p[j] - most) / sum;
        for (int64_t n = 0; n < HS; n++) out[n] += p[j] * (double)v[j * HS + n];
    }
    for (int64_t n = 0; n < HS; n++) delta += (double)dout[n] * out[n];
    for (int64_t j = first; j <= i; j++) {
        double dp = 0;
        for (int64_t n = 0; n < HS; n++) {
            dp += (double)dout[n] * (double)v[j * HS + n];
            dv[j * HS + n] += p[j] * (double)dout[n];
        }
        double ds = p[j] * (dp - delta) * scale;
        for (int64_t n = 0; n < HS; n++) {
            dq[n] += ds * (double)k[j * HS + n];
            dk[j * HS + n] += ds * (double)q[n];
        }
    }
}

static void attention_reference(AttentionCase* c) {
    size_t n = (size_t)(c->NH * c->T * c->HS);
    double* p = doubles(c->T);
    memset(c->expected[1], 0, n * sizeof *p);
    memset(c->expected[2], 0, 2 * n * sizeof *p);
    for (int64_t h = 0; h < c->NH; h++)
        for (int64_t i = 0; i < c->T; i++) attention_reference_row(c, h, i, p);
    free(p);
}

// Copies a rank's rows of a (heads, T, HS) tensor from or to the whole.
static void rows_copy(const Rank* r, real* own, real* whole, int64_t heads, int64_t HS, int out) {
    int64_t T = r->mesh->shape.T;
    for (int64_t h = 0; h < heads; h++)
        for (int64_t s = 0, t = 0; s < r->segments.count; t += r->segments.rows[s], s++) {
            real *a = own + (h * r->Tl + t) * HS, *b = whole + (h * T + r->segments.begin[s]) * HS;
            memcpy(out ? b : a, out ? a : b, (size_t)(r->segments.rows[s] * HS) * sizeof(real));
        }
}

// Copies rows of heads (NH, Tl, HS) to or from the columns of `width` that hold them (Tl, width).
static void heads_copy(const Rank* r, real* heads, real* columns, int64_t width, int64_t NH, int out) {
    int64_t HS = attention_case.HS;
    for (int64_t h = 0; h < NH; h++)
        for (int64_t t = 0; t < r->Tl; t++) {
            real *a = heads + (h * r->Tl + t) * HS, *b = columns + t * width + h * HS;
            memcpy(out ? b : a, out ? a : b, (size_t)HS * sizeof(real));
        }
}

// The case on one rank: its rows in, attention forward and backward, its rows out.
static int rank_attention(Rank* r, gpt2_sp* g, void* argument) {
    (void)argument;
    (void)g;
    AttentionCase* c = &attention_case;
    const int64_t NH = c->NH, HS = c->HS;
    const int64_t C = NH * HS, whole = c->T * HS;   // numbers of a token, of a head
    real *q = r->act[A_q], *kv = r->act[A_kv];
    real *atty = r->act[A_atty], *lse = r->act[A_lse];
    real *dout = r->narrow2, *dqkv = r->wide;
    real* rows = r->narrow;
    const int32_t* doc_start = c->docs ? c->doc_start : NULL;
    rows_copy(r, q, c->q, NH, HS, 0);
    for (int64_t h = 0; h < 2 * NH; h++)   // (NH, 2, T, HS) here, (2, NH, Tl, HS) there
        rows_copy(r, kv + (h % 2 * NH + h / 2) * r->Tl * HS, c->kv + h * whole, 1, HS, 0);
    r->bytes_sent = 0;
    if (cpu_attention_forward(r, atty, lse, q, kv, doc_start) != 0) return -1;
    __atomic_add_fetch(&c->sent[0], r->bytes_sent, __ATOMIC_RELAXED);
    rows_copy(r, lse, c->found[3], NH, 1, 1);
    heads_copy(r, rows, atty, C, NH, 0);
    rows_copy(r, rows, c->found[0], NH, HS, 1);
    rows_copy(r, rows, c->dout, NH, HS, 0);
    heads_copy(r, rows, dout, C, NH, 1);
    r->bytes_sent = 0;
    if (cpu_attention_backward(r, dqkv, dout, atty, lse, q, kv, doc_start) != 0) return -1;
    __atomic_add_fetch(&c->sent[1], r->bytes_sent, __ATOMIC_RELAXED);
    for (int64_t h = 0; h < NH; h++)
        for (int64_t part = 0; part < 3; part++) {   // dq, dk, dv
            real* to = part == 0 ? c->found[1] + h * whole : c->found[2] + (2 * h + part - 1) * whole;
            heads_copy(r, rows, dqkv + part * C + h * HS, 3 * C, 1, 0);
            rows_copy(r, rows, to, 1, HS, 1);
        }
    return 0;
}

static void attention_begin(int64_t T, int64_t NH, int64_t HS) {
    AttentionCase* c = &attention_case;
    memset(c, 0, sizeof *c);
    int64_t n = NH * T * HS;
    c->T = T;
    c->NH = NH, c->HS = HS;
    c->q = reals(n), c->kv = reals(2 * n);
    c->dout = reals(n);
    c->doc_start = (int32_t*)need((size_t)T, sizeof(int32_t));
    for (int i = 0; i < 4; i++) {
        c->expected[i] = doubles(2 * n);
        c->found[i] = reals(2 * n);
    }
    noise_fill(c->q, n, 1, 2);   // scores with a spread of 2: neither flat nor a single peak
    noise_fill(c->kv, 2 * n, 2, 1);
    noise_fill(c->dout, n, 3, 1);
}
static void attention_end(void) {
    AttentionCase* c = &attention_case;
    free(c->q);
    free(c->kv);
    free(c->dout);
    free(c->doc_start);
    for (int i = 0; i < 4; i++) free(c->expected[i]), free(c->found[i]);
}

// Documents that begin on, one before and one behind the edges of 2P chunks, and some within; or one per
// chunk.
static void attention_documents(int P, int chunks, uint64_t stream) {
    AttentionCase* c = &attention_case;
    unsigned char* begins = (unsigned char*)need((size_t)c->T + 2, 1);
    begins[0] = 1;
    for (int i = 1; chunks == 0 && i < 2 * P; i++) {
        int64_t edge = chunk_begin(c->T, 2 * P, i) + (int64_t)dice(stream, (uint64_t)i, 3) - 1;
        if (dice(stream + 1, (uint64_t)i, 2)) begins[edge] = 1;
    }
    for (uint64_t i = 0; chunks == 0 && i < 3; i++) begins[dice(stream + 2, i, (uint64_t)c->T)] = 1;
    for (int i = 1; i < chunks; i++) begins[chunk_begin(c->T, chunks, i)] = 1;
    for (int64_t t = 0, start = 0; t < c->T; t++) {
        if (begins[t]) start = t;
        c->doc_start[t] = (int32_t)start;
    }
    free(begins);
}

static gpt2_sp* attention_trainer(int kind, int P) {
    gpt2_sp_options o = options_of("layers=1 threads=1 recompute=none");
    o.heads = attention_case.NH, o.channels = attention_case.NH * attention_case.HS;
    o.seq_len = attention_case.T;
    o.sp = P, o.schedule = kind;
    return bare_trainer(&o, 128);
}

// Runs the case on a trainer's ranks; the largest of the errors of output, lse and gradients.
static double attention_run(gpt2_sp* g) {
    AttentionCase* c = &attention_case;
    int64_t n = c->NH * c->T * c->HS;
    for (int i = 0; i < 4; i++)
        for (int64_t j = 0; j < 2 * n; j++) c->found[i][j] = NAN;
    c->sent[0] = c->sent[1] = 0;
    if (ranks_run(g, rank_attention, NULL) != 0) {
        printf("     %s\n", g->error.text);
        return NAN;
    }
    double error = distance(c->found[0], c->expected[0], n);
    error = worst(error, distance(c->found[1], c->expected[1], n));
    error = worst(error, distance(c->found[2], c->expected[2], 2 * n));
    return worst(error, distance(c->found[3], c->expected[3], c->NH * c->T));
}

static double attention_error(int kind, int P) {
    gpt2_sp* g = attention_trainer(kind, P);
    double error = g ? attention_run(g) : NAN;
    gpt2_sp_destroy(g);
    return error;
}

static const double ATTENTION_LIMIT = IS_DOUBLE ? 1e-12 : 1e-5;   // the contract's

// Of one schedule: its largest error, the largest beside one rank's alone, and in how many cases. The 2 EPS
// leave room for errors that are all below the spacing.
typedef struct {
    double most, growth;
    int cases;
} AttentionErrors;

// The case, made already, by every schedule that takes P ranks.
static void attention_every_kind(int P, AttentionErrors* errors) {
    const AttentionCase* c = &attention_case;
    attention_reference(&attention_case);
    double alone = attention_error(GPT2_SP_DIST, 1);
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
        if (!schedule_exists(kind, P) || (kind == GPT2_SP_ULYSSES && c->NH % P != 0)) continue;
        double error = attention_error(kind, P);
        if (!(error <= ATTENTION_LIMIT))
            printf("     %s P=%d T=%d heads %d x %d, documents %d: error %.3g\n", schedule_name(kind), P,
                (int)c->T, (int)c->NH, (int)c->HS, c->docs, error);
        errors[kind].most = worst(errors[kind].most, error);
        errors[kind].growth = worst(errors[kind].growth, (error - 2 * EPS) / alone);
        errors[kind].cases++;
    }
}

// Every kind x P x documents x heads against plain attention; and not worse than one rank alone, where 1.5
// leaves room for the luck of rounding.
static void attention_all(void) {
    static const int64_t shapes[4][2] = {{3, 20}, {0, 12}, {1, 64}, {2, 32}};   // heads (0: P) of so many
    AttentionErrors errors[GPT2_SP_SCHEDULES];
    memset(errors, 0, sizeof errors);
    for (int P = 1; P <= 9; P += few && P >= 4 ? 4 : 1)
        for (int i = 0; i < (few ? 1 : quick ? 2 : 4); i++) {
            attention_begin(few ? 83 : quick ? 167 : 331, shapes[i][0] ? shapes[i][0] : P, shapes[i][1]);
            for (int docs = 0; docs < 2; docs++) {
                attention_case.docs = docs;
                attention_documents(P, 0, (uint64_t)(100 + 10 * P + i));
                attention_every_kind(P, errors);
            }
            attention_end();
        }
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
        const AttentionErrors* e = &errors[kind];
        check(e->most <= ATTENTION_LIMIT && e->cases > 0,
            "attention: every schedule gives plain O(T^2) attention",
            "%s, P up to 9, documents off and on, %d cases: largest error %.3g, at most %.3g",
            schedule_name(kind), e->cases, e->most, ATTENTION_LIMIT);
        check(e->growth <= 1.5, "attention: the error does not grow with P",
            "%s: largest error(P) / error(1) %.3g, at most 1.5", schedule_name(kind), e->growth);
    }
}

// The longest runs of several blocks of queries and keys, with documents that begin inside blocks.
static void attention_long(void) {
    double most = 0;
    attention_begin(quick ? 300 : 700, 1, 24);
    attention_case.docs = 1;
    for (uint64_t layout = 0; layout < 6; layout++) {
        int64_t start = 0;
        for (int64_t t = 0; t < attention_case.T; t++) {
            if (dice(60 + layout, (uint64_t)t, layout < 3 ? 150 : 40) == 0) start = t;
            attention_case.doc_start[t] = (int32_t)start;
        }
        attention_reference(&attention_case);
        for (int P = 1; P <= 2; P++)
            most = worst(most, attention_error(P == 1 ? GPT2_SP_DIST : GPT2_SP_ZIGZAG, P));
    }
    attention_end();
    check_below(most, ATTENTION_LIMIT, "attention: documents that begin inside blocks are kept apart",
        "largest error");
}

// The bytes of a table on the wire by the closed form: the tensors, and beside them LSE and delta.
static double attention_bytes_expected(const gpt2_sp* g, int P, int direction) {
    const Schedule* s = &g->schedules[direction];
    double elements = SCHEDULES[s->kind].elements(P, direction), stats = 0;
    for (int i = 0; i < s->message_count; i++) {   // of l nothing travels: LSE = m + log l
        Item item = s->messages[i].item;
        int64_t heads = part_heads(&g->mesh.shape, s, item.h0, item.h1).count;
        if (item.kind == ITEM_OUT) stats += (double)(heads * 24);
        if (item.kind == ITEM_QDO) stats += (double)(heads * 24 * 2);
    }
    return (elements * P * 24 * (double)g->mesh.shape.C + stats) * sizeof(real);
}

typedef struct {
    int runs, wrong;   // both directions; unlike the closed form
    int more, fewer;   // bytes than without documents
    int silent;        // nothing was sent
} AttentionBytes;

// One number of ranks, with 24 tokens each: without documents, with some, and with one per chunk.
static void attention_bytes_of(int kind, int P, AttentionBytes* n) {
    AttentionCase* c = &attention_case;
    attention_begin(24 * P, kind == GPT2_SP_ULYSSES ? P : 2, 4);
    gpt2_sp* g = attention_trainer(kind, P);
    if (!g) return;
    attention_run(g);
    uint64_t whole[2] = {c->sent[0], c->sent[1]};
    for (int d = 0; d < 2; d++, n->runs++) {
        double bytes = attention_bytes_expected(g, P, d);
        if (fabs(bytes - (double)whole[d]) <= 0.5) continue;
        n->wrong++;
        printf("     %s P=%d direction %d: %.0f bytes, expected %.0f\n", schedule_name(kind), P, d,
            (double)whole[d], bytes);
    }
    c->docs = 1;
    attention_documents(P, 0, 300);
    attention_run(g);
    for (int d = 0; d < 2; d++) {
        n->more += c->sent[d] > whole[d];
        n->fewer += c->sent[d] < whole[d];
    }
    attention_documents(P, g->schedules[0].chunks, 0);
    attention_run(g);
    n->silent += c->sent[0] == 0 && c->sent[1] == 0;
    if (kind == GPT2_SP_ULYSSES) n->silent++;   // it exchanges heads, whatever the documents are
    gpt2_sp_destroy(g);
    attention_end();
}

static void attention_bytes(void) {
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
        AttentionBytes n = {0, 0, 0, 0, 0};
        for (int P = 2; P <= 8; P += quick ? 3 : 1)
            if (schedule_exists(kind, P)) attention_bytes_of(kind, P, &n);
        check(n.wrong == 0, "attention: the bytes sent are those of the closed form",
            "%s: %d runs, %d unlike the closed form", schedule_name(kind), n.runs, n.wrong);
        check(n.more == 0 && (n.fewer > 0 || kind == GPT2_SP_ULYSSES) && n.silent == n.runs / 2,
            "attention: with documents what nobody attends to is not sent",
            "%s: %d of %d runs send fewer, %d more; with a document per chunk %d of %d send nothing",
            schedule_name(kind), n.fewer, n.runs, n.more, n.silent, n.runs / 2);
    }
}

// What became of a kind of damage: the proof refuses it, or it does no harm, which the same ranks show by
// running it. certain: it never is harmless.
typedef struct {
    const char* name;
    int tried, refused, harmless, harmful;
    int certain;
} MutationCount;

// One damaged copy of a trainer's table. Returns 0 if the ranks have stopped for good.
static int attention_mutation(gpt2_sp* g, int direction, int mutation, uint64_t draw, MutationCount* n) {
    Schedule whole = g->schedules[direction], mutant = schedule_copy(&whole);
    int always;
    Error e = {0, {0}};
    const char* name = schedule_mutate(&mutant, mutation, draw, &always);
    if (name) {
        n->name = name, n->certain = always;
        n->tried++;
        g->schedules[direction] = mutant;
        if (schedule_prove(&mutant, &e) != 0) n->refused++;
        else if (attention_run(g) <= ATTENTION_LIMIT) n->harmless++;
        else {
            n->harmful++;
            printf("     %s P=%d direction %d: %s is not refused\n", schedule_name(whole.kind), whole.P,
                direction, name);
        }
        g->schedules[direction] = whole;
    }
    schedule_free(&mutant);
    return !(n->harmful && g->world.aborted);
}

static void attention_mutations(void) {
    MutationCount n[MUTATIONS];
    memset(n, 0, sizeof n);
    for (int P = 2; P <= 8; P += few ? 3 : 1)
        for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
            if (!schedule_exists(kind, P)) continue;
            attention_begin(8 * P + 3, kind == GPT2_SP_ULYSSES ? P : 3, 8);
            attention_reference(&attention_case);
            gpt2_sp* g = attention_trainer(kind, P);
            for (int d = 0; g && d < 2; d++)
                for (int i = 0; i < MUTATIONS * (quick ? 2 : 12); i++) {
                    uint64_t draw = (uint64_t)(((P * 8 + kind) * 2 + d) * 1000 + i);
                    if (!attention_mutation(g, d, i % MUTATIONS, draw, &n[i % MUTATIONS])) break;
                }
            gpt2_sp_destroy(g);
            attention_end();
        }
    for (int i = 0; i < MUTATIONS; i++)
        check(n[i].tried > 0 && n[i].harmful == 0 && (!n[i].certain || n[i].harmless == 0),
            "attention: a damaged table is refused or does no harm",
            "%s: %d, refused %d, not refused but right %d, wrong %d", n[i].name ? n[i].name : "?", n[i].tried,
            n[i].refused, n[i].harmless, n[i].harmful);
}

static void test_attention(void) {
    attention_all();
    attention_long();
    attention_bytes();
    attention_mutations();
}

// ===== fixture ==================================================================================
// What PyTorch and Hugging Face's GPT-2 (LayerNorm) computed in double from dev/fixtures/model.safetensors.
// Held: logits, loss, every gradient, the norm and three steps of AdamW are theirs, for one rank and for
// several. All other groups compare the program with itself or with formulas written here: this one would
// show that both have misunderstood what GPT-2 is.

static double* fixture_read(const st_file* f, const char* name, int64_t count) {
    const st_tensor* t = st_find(f, name);
    double* out = doubles(count);
    char error[256];
    if (!t || (int64_t)st_elements(t) != count ||
        st_read_f64(f, t, 0, (uint64_t)count, out, error, sizeof error) != 0) {
        check(0, "fixture: a tensor has its numbers", "%s has %lld numbers, expected %lld", name,
            t ? (long long)st_elements(t) : 0ll, (long long)count);
        for (int64_t i = 0; i < count; i++) out[i] = NAN;
    }
    return out;
}

static gpt2_sp* fixture_trainer(const char* more) {
    gpt2_sp_options o = options_of(
        "layers=2 heads=2 channels=32 seq-len=24 batch-size=2 threads=1 lr=1e-2 beta1=0.9 beta2=0.95 "
        "eps=1e-8 weight-decay=0.1 grad-clip=1");
    options_apply(&o, more);
    gpt2_sp* g = bare_trainer(&o, 67);
    if (!g) return NULL;
    LoadJob weights = {"dev/fixtures", 0, g->mesh.shape.T};
    if (ranks_run(g, rank_load, &weights) == 0) return g;
    check(0, "fixture: the weights are loaded", "%s", g->error.text);
    gpt2_sp_destroy(g);
    return NULL;
}

// Gives every rank its rows of a batch (B, T), dp 1, and the number of labels.
static void fixture_batch(gpt2_sp* g, const double* x, const double* y, const double* doc_start) {
    const Shape* s = &g->mesh.shape;
    int64_t valid = 0;
    for (int64_t i = 0; i < s->B * s->T; i++) valid += y[i] >= 0;
    for (int w = 0; w < g->mesh.world; w++) {
        Rank* r = &g->ranks[w];
        for (int64_t b = 0, t = 0; b < s->B; b++)
            for (int seg = 0; seg < r->segments.count; seg++)
                for (int64_t i = 0; i < r->segments.rows[seg]; i++, t++) {
                    int64_t at = b * s->T + r->segments.begin[seg] + i;
                    r->batches[0].tokens[t] = (int32_t)x[at];
                    r->batches[0].labels[t] = y[at] < 0 ? -1 : (int32_t)y[at];
                }
        for (int64_t i = 0; doc_start && i < s->B * s->T; i++)
            r->batches[0].doc_start[i] = (int32_t)doc_start[i];
        for (int64_t b = 0; r->batches[0].positions && b < s->B; b++) {
            const SamplePlace place = {doc_start ? 0 : 3 + 7 * b, 0};
            positions_fill(place, &r->segments, doc_start ? r->batches[0].doc_start + b * s->T : NULL,
                r->batches[0].positions + b * r->Tl);
        }
        r->batch = &r->batches[0], r->valid_tokens = valid;
    }
}

static int rank_loss(Rank* r, gpt2_sp* g, void* argument) {   // forward only; every rank's r->loss_sum
    (void)g, (void)argument;
    r->learn = 0, r->loss_sum = 0;
    return model_forward_backward(r, 0);
}
static double trainer_loss(gpt2_sp* g) {
    double sum = 0;
    if (ranks_run(g, rank_loss, NULL) != 0) return NAN;
    for (int w = 0; w < g->mesh.world; w++) sum += g->ranks[w].loss_sum;
    return sum / (double)g->ranks[0].valid_tokens;
}

// Error of one tensor, of which `found` is at hand, against the file's `name`, in its norm. `rows` is room
// for it.
static double fixture_tensor_error(const gpt2_sp* g, int id, const real* found, real* rows, const st_file* f,
    const char* name, int key_bias) {
    const Shape* s = &g->mesh.shape;
    Parameter p = parameter(s, id);
    const int64_t R = tensor_rows(s, id, &p), columns = p.columns ? p.columns : 1;
    double* expected = fixture_read(f, name, R * columns);
    for (int64_t i = 0; i < R; i++)
        for (int64_t c = 0; c < columns; c++)
            rows[p.transposed ? c * R + i : i * columns + c] = found[i * columns + c];
    if (id == P_qkvb && !key_bias)
        for (int64_t i = s->C; i < 2 * s->C; i++) rows[i] = (real)expected[i];
    double error = distance(rows, expected, R * columns);
    for (int64_t i = R * columns; id == P_wte && i < s->Vp * s->C; i++)
        if (found[i] != 0) error = NAN;   // the padding of the vocabulary stays zero
    if (!(error < 1)) printf("     %s: %g\n", name, error);
    free(expected);
    return error;
}

// Largest error of a kind of tensors against the file's "<prefix>transformer.<name>", with or without
// key_bias.
static double fixture_compare(
    const gpt2_sp* g, int state, const st_file* f, const char* prefix, int key_bias) {
    const Shape* s = &g->mesh.shape;
    real *whole = reals(g->layout.elements), *rows = reals(4 * s->C * s->C * 4);
    double most = 0;
    collect(g, state, whole);
    for (int u = 0; u < g->layout.count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(s, id);
            char name[ST_NAME_MAX], full[ST_NAME_MAX + 32];
            if (p.unit != g->layout.units[u].kind) continue;
            tensor_name(name, sizeof name, "transformer.", &p, u);
            snprintf(full, sizeof full, "%s%s", prefix, name);
            const real* found = whole + g->layout.units[u].offset + g->layout.within[id];
            most = worst(most, fixture_tensor_error(g, id, found, rows, f, full, key_bias));
        }
    free(rows);
    free(whole);
    return most;
}

// Largest error of the logits, from the last norm's output that each rank keeps.
static double fixture_logits(gpt2_sp* g, const double* expected) {
    const Shape* s = &g->mesh.shape;
    double most = 0;
    real *weights = reals(g->layout.elements), *logits = reals(s->Vp);
    collect(g, STATE_WEIGHTS, weights);
    for (int w = 0; w < g->mesh.world; w++) {
        const Rank* r = &g->ranks[w];
        for (int64_t b = 0, t = 0; b < s->B; b++)
            for (int seg = 0; seg < r->segments.count; seg++)
                for (int64_t i = 0; i < r->segments.rows[seg]; i++, t++) {
                    cpu_matmul_forward(logits, r->lnf + t * s->C, weights + g->layout.within[P_wte], NULL, 1,
                        s->C, s->Vp, r->scratch);
                    most = worst(most,
                        distance(logits, expected + (b * s->T + r->segments.begin[seg] + i) * s->V, s->V));
                }
    }
    free(logits);
    free(weights);
    return most;
}

static int rank_gradients(Rank* r, gpt2_sp* g, void* argument) {   // summed gradients of pass 0
    double sums[2];
    (void)g, (void)argument;
    r->learn = 1, r->loss_sum = 0;
    memset(r->state[STATE_GRADIENTS], 0, (size_t)r->layout->buffer[STATE_GRADIENTS] * sizeof(real));
    if (model_forward_backward(r, 0) != 0 || gradients_reduce(r, sums) != 0) return -1;
    return 0;
}

static StepJob fixture_step(gpt2_sp* g, int64_t step) {
    const gpt2_sp_options* o = &g->options;
    AdamW adamw = {o->lr, o->beta1, o->beta2, o->eps, o->weight_decay, 1, 1, step};
    StepJob job = {adamw, NAN, NAN, 0, STEP_WHOLE, 0};
    if (ranks_run(g, rank_step, &job) != 0) job.loss = NAN;
    return job;
}

// A file of what PyTorch computed, and the trainer that is to compute the same.
typedef struct {
    st_file file;
    gpt2_sp* g;
    int docs;                 // the sequences have documents
    double *x, *y, *starts;   // (2, 24)
    double *logits, *loss;    // (2, 24, V), (1)
    double *norm, *losses;    // (1) of the gradient, (4) of the steps; NULL with documents
    double limit;             // of a relative error
    char label[96];
} Fixture;

// Float: logits and gradients go through about 20 products of up to 128 terms, each with an error of a few
// EPS: 100 EPS bounds them. Adam divides a gradient by its own size, so where that is near 0 a step of 1e-2
// is only as good as the gradient's relative error there: ten times that limit for the weights after three
// steps, in the norm.
static int fixture_open(Fixture* t, const char* file, const char* more) {
    char path[64], error[256];
    memset(t, 0, sizeof *t);
    snprintf(path, sizeof path, "dev/fixtures/%s", file);
    snprintf(t->label, sizeof t->label, "%s, %s", file, more);
    if (st_open(&t->file, path, error, sizeof error) != 0) {
        check(0, "fixture: the file opens", "%s (run the tests in the repository's root)", error);
        return -1;
    }
    t->limit = 100 * EPS;
    t->docs = st_find(&t->file, "doc_start") != NULL;
    t->g = fixture_trainer(more);
    t->x = fixture_read(&t->file, "x", 48);
    t->y = fixture_read(&t->file, "y", 48);
    t->starts = t->docs ? fixture_read(&t->file, "doc_start", 48) : NULL;
    t->logits = fixture_read(&t->file, "logits", 48 * 67);
    t->loss = fixture_read(&t->file, "loss", 1);
    t->norm = fixture_read(&t->file, "grad_norm", 1);
    t->losses = t->docs ? NULL : fixture_read(&t->file, "losses", 4);
    return 0;
}
static void fixture_close(Fixture* t) {
    double* all[] = {t->x, t->y, t->starts, t->logits, t->loss, t->norm, t->losses};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    st_close(&t->file);
    gpt2_sp_destroy(t->g);
}

static void fixture_forward(Fixture* t) {
    double found = trainer_loss(t->g), error = fixture_logits(t->g, t->logits);
    check(error <= t->limit, "fixture: the logits are PyTorch's", "%s: error %.3g, at most %.3g", t->label,
        error, t->limit);
    check(fabs(found - t->loss[0]) <= t->limit * t->loss[0], "fixture: the loss is PyTorch's",
        "%s: %.12f, PyTorch %.12f", t->label, found, t->loss[0]);
}

// The first step, whose gradients stay in their place.
static void fixture_backward(Fixture* t) {
    StepJob step = fixture_step(t->g, 1);
    double error = fixture_compare(t->g, STATE_GRADIENTS, &t->file, "grad.", 1), norm = sqrt(step.square);
    check(error <= t->limit, "fixture: every gradient is PyTorch's",
        "%s: largest error of a tensor %.3g, at most %.3g", t->label, error, t->limit);
    check(fabs(norm - t->norm[0]) <= t->limit * t->norm[0] &&
            fabs(step.loss - t->loss[0]) <= t->limit * t->loss[0],
        "fixture: the norm of the gradient is PyTorch's", "%s: %.12f, PyTorch %.12f", t->label, norm,
        t->norm[0]);
}

// The second and third step, and the loss after them.
static void fixture_steps(Fixture* t) {
    const double limit = 10 * t->limit, *expected = t->losses;
    double error = 0;
    for (int step = 2; step <= 3; step++) {
        double found = fixture_step(t->g, step).loss;
        error = worst(error, fabs(found - expected[step - 1]) / expected[step - 1]);
    }
    error = worst(error, fabs(trainer_loss(t->g) - expected[3]) / expected[3]);
    double weights = fixture_compare(t->g, STATE_WEIGHTS, &t->file, "step3.", 0);
    check(error <= limit && weights <= limit, "fixture: three AdamW steps end where PyTorch's do",
        "%s: losses %.3g, weights %.3g, at most %.3g", t->label, error, weights, limit);
}

static void fixture_run(const char* file, const char* more) {
    Fixture t;
    if (fixture_open(&t, file, more) != 0) return;
    if (t.g) {
        fixture_batch(t.g, t.x, t.y, t.starts);
        fixture_forward(&t);
        fixture_backward(&t);
        if (!t.docs) fixture_steps(&t);
    }
    fixture_close(&t);
}

static void test_fixture(void) {
    fixture_run("expected.safetensors", "sp=1 zero=0");
    fixture_run("expected.safetensors", "sp=3 zero=0");
    fixture_run("expected.safetensors", "sp=1 zero=3 recompute=none");
    fixture_run("expected.safetensors", "sp=3 zero=3 schedule=zigzag logits-chunk=5 recompute=sqrt");
    fixture_run("expected.safetensors", "sp=2 zero=2 schedule=ulysses recompute=layer");
    fixture_run("expected_docs.safetensors", "sp=1 zero=0 doc-mask=1");
    fixture_run("expected_docs.safetensors", "sp=3 zero=0 doc-mask=1");
    fixture_run("expected_docs.safetensors", "sp=3 zero=3 doc-mask=1 schedule=ring recompute=gelu");
    fixture_run("expected_docs.safetensors", "sp=4 zero=1 doc-mask=1 schedule=allgather");
}

// ===== runs =====================================================================================
// Whole training runs, each against another that must be the same. Held: however a step is split over
// replicas, ranks, passes, threads and ZeRO stages, losses and norms are those of one rank; recomputation
// and repetition change no bit; a step that is not finite changes nothing. Whoever splits a run otherwise to
// fit a machine relies on this: without it the curves of two machines cannot be compared.

// A stream that can be learnt: each token is one of two followers of the one before. Documents end with 256.
static int32_t* stream_make(uint64_t stream, int64_t count, int document) {
    int32_t* tokens = (int32_t*)need((size_t)count, sizeof *tokens);
    int32_t last = 0;
    for (int64_t i = 0; i < count; i++) {
        last = (last * 5 + 1 + (int32_t)dice(stream, (uint64_t)i, 2)) % 64;
        tokens[i] = i == count - 1 || (document && dice(stream + 1, (uint64_t)i, (uint64_t)document) == 0)
            ? 256
            : last;
    }
    return tokens;
}

static void stream_write(const char* path, const int32_t* tokens, int64_t count) {
    tok_writer w;
    char error[256] = "";
    int status = tok_writer_open(&w, path, TOK_BYTE, 257, 256, 64, error, sizeof error);
    for (int64_t i = 0, begin = 0; status == 0 && i < count; i++) {
        if (tokens[i] != 256) continue;
        if (i > begin)
            status = tok_writer_add(&w, tokens + begin, (uint64_t)(i - begin), error, sizeof error);
        if (status == 0) status = tok_writer_end_document(&w, (uint64_t)(i - begin), error, sizeof error);
        begin = i + 1;
    }
    if (status == 0) status = tok_writer_finish(&w, error, sizeof error);
    if (status != 0) check(0, "a test's shard is written", "%s", error);
}

// The run that all variants repeat: 4 sequences of 61 tokens a step, whatever they are split into.
static const char* const RUN = "layers=2 heads=4 channels=32 seq-len=61 threads=1 lr=3e-3 warmup=3 seed=5";
enum { RUN_STEPS = 20 };
typedef struct {
    double loss[RUN_STEPS], norm[RUN_STEPS];
    int steps;
    real* weights;   // at the end, all units without the padding of a world's slices
    int64_t parameters;
    int64_t layer_forwards, attention_forwards;   // of rank 0
    char error[GPT2_SP_TEXT];
} Run;

// A shard of random documents, written at its first use.
static const char* stream_once(char path[512], const char* name, uint64_t seed, int count, int document) {
    if (!path[0]) {
        int32_t* tokens = stream_make(seed, count, document);
        snprintf(path, 512, "%s", scratch(name));
        stream_write(path, tokens, count);
        free(tokens);
    }
    return path;
}
static const char* run_data(void) {
    static char path[512];
    return stream_once(path, "run.tok", 11, 6000, 40);
}

static gpt2_sp_options run_options(const char* more) {
    gpt2_sp_options o = options_of(RUN);
    snprintf(o.data, sizeof o.data, "%s", run_data());
    o.steps = RUN_STEPS;
    options_apply(&o, more);
    return o;
}

static void run_finish(Run* run, const gpt2_sp* g) {
    real* whole = reals(g->layout.elements);
    collect(g, STATE_WEIGHTS, whole);
    run->weights = reals(g->layout.elements), run->parameters = 0;
    for (int u = 0; u < g->layout.count; u++) {
        memcpy(run->weights + run->parameters, whole + g->layout.units[u].offset,
            (size_t)g->layout.units[u].elements * sizeof(real));
        run->parameters += g->layout.units[u].elements;
    }
    run->layer_forwards = g->ranks[0].layer_forwards;
    run->attention_forwards = g->ranks[0].attention_forwards;
    free(whole);
}

static Run run_steps(const char* more, int steps) {
    Run run;
    memset(&run, 0, sizeof run);
    gpt2_sp_options o = run_options(more);
    gpt2_sp* g = trainer_of(&o, run.error, sizeof run.error);
    for (gpt2_sp_stats stats; g && run.steps < steps; run.steps++) {
        if (step_of(g, &stats) != 0) {
            snprintf(run.error, sizeof run.error, "%s", gpt2_sp_error(g));
            break;
        }
        run.loss[run.steps] = stats.loss, run.norm[run.steps] = stats.grad_norm;
    }
    if (run.steps < steps) printf("     %s: %s\n", more, run.error);
    if (g) run_finish(&run, g);
    gpt2_sp_destroy(g);
    return run;
}

// Largest relative difference of losses and norms; NAN if one run is shorter.
static double run_distance(const Run* a, const Run* b) {
    double most = a->steps == b->steps && a->steps > 0 ? 0 : NAN;
    for (int i = 0; i < a->steps; i++)
        most = worst(most,
            worst(fabs(a->loss[i] - b->loss[i]) / b->loss[i], fabs(a->norm[i] - b->norm[i]) / b->norm[i]));
    return most;
}
static int run_equal(const Run* a, const Run* b) {   // bit for bit
    return a->steps == b->steps && a->steps > 0 && memcmp(a->loss, b->loss, sizeof a->loss) == 0 &&
        memcmp(a->norm, b->norm, sizeof a->norm) == 0 && a->parameters == b->parameters &&
        memcmp(a->weights, b->weights, (size_t)a->parameters * sizeof(real)) == 0;
}

static const char* const RUN_SPLITS[] = {"batch-size=4 sp=2", "batch-size=4 sp=3", "batch-size=4 sp=4",
    "batch-size=2 dp=2", "batch-size=1 dp=4", "batch-size=2 dp=2 sp=2", "batch-size=1 dp=2 sp=3 grad-accum=2",
    "batch-size=1 grad-accum=4", "batch-size=2 grad-accum=2 sp=2", "batch-size=4 threads=2",
    "batch-size=4 sp=3 schedule=ring", "batch-size=4 sp=2 schedule=dist-paper",
    "batch-size=4 sp=4 schedule=dist-paper", "batch-size=4 sp=3 schedule=zigzag",
    "batch-size=4 sp=3 schedule=allgather", "batch-size=4 sp=4 schedule=ulysses", "batch-size=4 sp=2 zero=1",
    "batch-size=4 sp=2 zero=2", "batch-size=4 sp=2 zero=3", "batch-size=2 dp=2 sp=2 zero=1",
    "batch-size=2 dp=2 sp=3 zero=2", "batch-size=1 grad-accum=2 dp=2 sp=2 zero=2 recompute=none",
    "batch-size=2 dp=2 sp=2 zero=3", "batch-size=1 grad-accum=4 sp=3 zero=3 recompute=sqrt schedule=zigzag",
    "batch-size=4 sp=3 recompute=layer zero=3", "batch-size=4 sp=2 logits-chunk=7",
    "batch-size=4 sp=5 schedule=dist", "batch-size=4 sp=7 schedule=dist recompute=gelu"};

// A step's loss is a mean of 244 terms of a few EPS each, and what differs in the weights before it moves it
// by less than that: 100 EPS leaves room for both over 20 steps. A token counted twice or lost would show as
// 4e-3.
static void runs_splits(const char* common, int first, int stride) {
    double most = 0, limit = 100 * EPS;
    char text[256], worst_split[256] = "";
    int count = (int)(sizeof RUN_SPLITS / sizeof RUN_SPLITS[0]), steps = few ? 2 : quick ? 4 : RUN_STEPS;
    int runs = 0;
    snprintf(text, sizeof text, "batch-size=4 %s", common);
    Run whole = run_steps(text, steps);
    for (int i = first; i < count; i += few ? 5 : quick ? 3 : stride, runs++) {
        snprintf(text, sizeof text, "%s %s", RUN_SPLITS[i], common);
        Run run = run_steps(text, steps);
        double error = run_distance(&run, &whole);
        if (!(error <= most)) snprintf(worst_split, sizeof worst_split, "%s", RUN_SPLITS[i]);
        most = worst(most, error);
        if (!(error <= limit)) printf("     %s: %.3g\n", text, error);
        free(run.weights);
    }
    check(most <= limit, "runs: every split has the losses and norms of the whole",
        "%d splits x %d steps, %s: largest difference %.3g (%s), at most %.3g", runs, steps, common, most,
        worst_split, limit);
    if (!quick)
        check(whole.loss[RUN_STEPS - 1] < 0.9 * whole.loss[0], "runs: the loss falls", "%s: %.4f -> %.4f",
            common, whole.loss[0], whole.loss[RUN_STEPS - 1]);
    free(whole.weights);
}

static void runs_recompute(void) {
    static const char* const shapes[] = {"batch-size=2 layers=5",
        "batch-size=2 sp=3 layers=4 schedule=zigzag",
        "batch-size=1 sp=2 dp=2 zero=3 layers=3 grad-accum=2 doc-mask=1", "batch-size=2 layers=1 center=0"};
    static const char* const modes[] = {"gelu", "attn", "layer", "sqrt"};
    for (int i = few ? 1 : 0; i < (few ? 3 : 4); i++) {   // few: those of several ranks
        char text[256];
        int equal = 0, steps = quick ? 2 : 6;
        snprintf(text, sizeof text, "%s recompute=none", shapes[i]);
        Run none = run_steps(text, steps);
        for (int m = 0; m < 4; m++) {
            snprintf(text, sizeof text, "%s recompute=%s", shapes[i], modes[m]);
            Run run = run_steps(text, steps);
            if (run_equal(&run, &none)) equal++;
            else printf("     %s differs\n", text);
            free(run.weights);
        }
        check(equal == 4, "runs: recompute modes equal none bit for bit", "%s: %d of 4 over %d steps",
            shapes[i], equal, steps);
        free(none.weights);
    }
}

// Which splits leave every rank its own rows of wpe alone.
static void runs_positions(void) {
    static const struct {
        const char* split;
        int own;
    } cases[] = {{"sp=1 seq-len=60", 0}, {"sp=2 seq-len=60", 1}, {"sp=2 seq-len=61", 0},
        {"sp=5 seq-len=60", 1}, {"sp=7 seq-len=60", 0}, {"sp=2 seq-len=60 doc-mask=1", 0},
        {"sp=2 seq-len=60 n-positions=60", 1}, {"sp=2 seq-len=60 n-positions=64", 0},
        {"sp=2 seq-len=60 n-positions=64 pos-shift=0.1", 0}, {"dp=2 sp=2 seq-len=60", 0},
        {"dp=2 sp=1 seq-len=60", 0}, {"sp=3 seq-len=60 schedule=ring", 1},
        {"sp=3 seq-len=60 schedule=allgather", 0}, {"sp=2 seq-len=60 schedule=ulysses", 1},
        {"sp=2 seq-len=60 schedule=dist-paper", 1}, {"sp=2 seq-len=60 schedule=zigzag", 0},
        {"sp=4 seq-len=60 channels=12 heads=1", 0}};   // 180 numbers a rank: no multiple of 16
    int count = (int)(sizeof cases / sizeof cases[0]), right = 0;
    for (int i = 0; i < 4 * count; i++) {
        char text[256];
        snprintf(text, sizeof text, "%s batch-size=2 %s zero=%d", RUN, cases[i / 4].split, i % 4);
        gpt2_sp_options o = options_of(text);
        gpt2_sp* g = bare_trainer(&o, 67);
        const Unit* unit = g ? &g->layout.units[positions_unit(&g->layout)] : NULL;
        if (g && unit->own == cases[i / 4].own) right++;
        else printf("     %s: %s\n", text, !g ? "no trainer" : unit->own ? "own" : "not own");
        gpt2_sp_destroy(g);
    }
    check(right == 4 * count, "runs: ranks have their own positions where the split allows it",
        "%d of %d splits, --zero 0 to 3", right, 4 * count);
}

// The same steps whatever --zero is, with own positions and without.
static void runs_zero(void) {
    static const char* const shapes[] = {"batch-size=2 sp=2 seq-len=60 grad-accum=2",
        "batch-size=4 sp=3 seq-len=60 center=0", "batch-size=4 sp=2 seq-len=60 schedule=ulysses",
        "batch-size=4 sp=3 seq-len=61"};
    for (int i = 0; i < 4; i += few ? 2 : 1) {
        Run run[4];
        int steps = quick ? 2 : 8;
        for (int zero = 0; zero < 4; zero++) {
            char text[256];
            snprintf(text, sizeof text, "%s grad-clip=0.5 zero=%d", shapes[i], zero);
            run[zero] = run_steps(text, steps);
        }
        double error = run_distance(&run[2], &run[0]);   // wte's gradient is summed over ranks by parts
        check(run_equal(&run[1], &run[0]) && run_equal(&run[3], &run[2]) && error <= 100 * EPS,
            "runs: --zero 1 steps as 0 does, 3 as 2",
            "%s: %d steps bit for bit; 2 and 0 %.3g apart, at most %.3g", shapes[i], steps, error, 100 * EPS);
        for (int zero = 0; zero < 4; zero++) free(run[zero].weights);
    }
}

static void runs_repeat(void) {
    static const char* const shapes[] = {"batch-size=2 sp=3 dp=2 zero=2", "batch-size=4 sp=4 schedule=ring",
        "batch-size=2 sp=4 zero=3 doc-mask=1"};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        Run a = run_steps(shapes[i], quick ? 2 : 8), b = run_steps(shapes[i], quick ? 2 : 8);
        check(run_equal(&a, &b), "runs: the same run twice gives the same bits", "%s: %d steps bit for bit",
            shapes[i], a.steps);
        free(a.weights);
        free(b.weights);
    }
    Run one = run_steps("batch-size=4 threads=1", quick ? 2 : 8);
    Run two = run_steps("batch-size=4 threads=2", quick ? 2 : 8);
    Run other = run_steps("batch-size=4 seed=6", quick ? 2 : 8);
    check(run_equal(&one, &two), "runs: the number of threads changes no bit",
        "1 and 2 threads: %d steps bit for bit", one.steps);
    check(!run_equal(&one, &other) && run_distance(&other, &one) > 1e-3, "runs: another seed is another run",
        "difference %.3g", run_distance(&other, &one));
    free(one.weights);
    free(two.weights);
    free(other.weights);
}

// A weight of wte on every rank so large that its square overflows: in float to infinity, in double inf * 0.
static void weights_spoil(gpt2_sp* g) {
    const double huge = IS_DOUBLE ? 1e300 : 1e30;
    for (int w = 0; w < g->mesh.world; w++) g->ranks[w].state[STATE_WEIGHTS][7] = (real)huge;
}

// Weights and moments of a trainer, one after the other.
static real* weights_and_moments(const gpt2_sp* g) {
    real* all = reals(2 * g->layout.elements);
    collect(g, STATE_WEIGHTS, all);
    collect(g, STATE_M, all + g->layout.elements);
    return all;
}

// A step whose loss or gradient is not finite changes nothing, on no rank; ten in a row end the run.
static void runs_not_finite(const char* shape) {
    gpt2_sp_options o = run_options(shape);
    char error[GPT2_SP_TEXT];
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    if (!g) {
        check(0, "runs: a trainer is made", "%s", error);
        return;
    }
    gpt2_sp_stats stats;
    memset(&stats, 0, sizeof stats);
    int status = step_of(g, &stats), updated = stats.updated;
    int refused = 0, steps = 0;
    weights_spoil(g);
    real* before = weights_and_moments(g);
    for (; status == 0 && steps < 12; steps++) {
        status = step_of(g, &stats);
        refused += !stats.updated;
    }
    real* after = weights_and_moments(g);
    int same = memcmp(before, after, (size_t)(2 * g->layout.elements) * sizeof(real)) == 0;
    check(updated == 1 && refused == steps && steps == 10 && status == GPT2_SP_NOT_FINITE && same,
        "runs: a step that is not finite updates nothing, ten end the run",
        "%s: %d of %d steps refused, weights and moments %s; then: %s", shape, refused, steps,
        same ? "unchanged" : "CHANGED", gpt2_sp_error(g));
    free(before);
    free(after);
    gpt2_sp_destroy(g);
}

static void test_runs(void) {
    runs_splits("doc-mask=0", 0, 1);
    if (!few) runs_splits("doc-mask=1 grad-clip=0.5", 0, 2);
    if (!few) runs_splits("center=0", 2, 4);
    runs_splits("seq-len=60", few ? 2 : 0, 2);   // the ranks' rows of wpe are their own
    runs_positions();
    runs_zero();
    runs_recompute();
    runs_repeat();
    runs_not_finite("batch-size=2 sp=2 dp=2 zero=0");
    runs_not_finite("batch-size=2 sp=3 zero=1");
    runs_not_finite("batch-size=2 sp=3 zero=3");
}

// ===== resume ===================================================================================
// Runs that stop and go on. Held: a checkpoint taken after any step goes on bit for bit, or at another shape
// with the same losses; what would make another model of it is refused; a file damaged anywhere is never
// taken for whole, and the run falls back to the one before. A run of weeks meets a full disk and a power
// cut: what it has learnt must then be there, and never half of one step with half of another.

// stderr into a file and back, to see what is told there and to keep the tests' output readable.
static int stderr_kept = -1;
static void stderr_hide(void) {
    fflush(stderr);
    stderr_kept = dup(2);
    int fd = open(scratch("stderr"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd >= 0) dup2(fd, 2), close(fd);
}
static void stderr_show(char* text, size_t size) {   // what was written meanwhile
    fflush(stderr);
    dup2(stderr_kept, 2);
    close(stderr_kept);
    FILE* f = fopen(scratch("stderr"), "r");
    size_t n = f && size > 0 ? fread(text, 1, size - 1, f) : 0;
    if (size > 0) text[n] = 0;
    if (f) fclose(f);
}

static void run_step_into(Run* run, gpt2_sp* g) {
    gpt2_sp_stats stats;
    if (step_of(g, &stats) != 0) {
        printf("     %s\n", gpt2_sp_error(g));
        return;
    }
    run->loss[stats.step - 1] = stats.loss;
    run->norm[stats.step - 1] = stats.grad_norm;
    run->steps++;
}

// `steps` steps of which the first k are one run, which saves, and the others the same command line again,
// with other options if `then` says so, and on another device if resume_device does.
static const Device* resume_device;
static Run run_resumed(const char* first, const char* then, int k, int steps) {
    Run run;
    memset(&run, 0, sizeof run);
    gpt2_sp_options o = run_options(first);
    snprintf(o.out, sizeof o.out, "%s", scratch("resumed"));
    remove_tree(o.out);
    gpt2_sp* g = trainer_of(&o, run.error, sizeof run.error);
    for (int i = 0; g && i < k; i++) run_step_into(&run, g);
    if (g && gpt2_sp_save(g) != 0) snprintf(run.error, sizeof run.error, "%s", gpt2_sp_error(g));
    gpt2_sp_destroy(g);
    gpt2_sp_options again = run_options(then);
    memcpy(again.out, o.out, sizeof o.out);
    if (resume_device) gpt2_sp_device = resume_device;
    if (!run.error[0] && (g = trainer_of(&again, run.error, sizeof run.error)) != NULL) {
        if (gpt2_sp_steps(g) != k)
            snprintf(
                run.error, sizeof run.error, "resumed at step %lld of %d", (long long)gpt2_sp_steps(g), k);
        for (int i = k; i < steps; i++) run_step_into(&run, g);
        run_finish(&run, g);
        gpt2_sp_destroy(g);
    }
    if (run.error[0]) run.steps = 0, printf("     %s\n", run.error);
    return run;
}

static void resume_exact(void) {
    static const char* const shapes[] = {"batch-size=2", "batch-size=1 sp=2 dp=2 zero=3",
        "batch-size=2 sp=3 zero=0 grad-accum=2 doc-mask=1", "batch-size=2 sp=3 zero=1 center=0",
        "batch-size=2 sp=2 zero=2", "batch-size=2 sp=2 seq-len=60 zero=0",
        "batch-size=2 sp=3 seq-len=60 zero=2", "batch-size=2 sp=2 seq-len=60 zero=3"};
    int steps = quick ? 3 : 5;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i += few ? 2 : 1) {
        Run whole = run_steps(shapes[i], steps);
        int equal = 0;
        for (int k = 0; k < steps; k++) {
            Run run = run_resumed(shapes[i], shapes[i], k, steps);
            if (run.steps == steps && run.weights) equal += run_equal(&run, &whole);
            free(run.weights);
        }
        check(equal == steps, "resume: a run goes on bit for bit after every step",
            "%s: saved after each of %d steps, %d runs end with the same losses and weights", shapes[i],
            steps, equal);
        free(whole.weights);
    }
}

static void resume_elsewhere(const char* from, const char* also) {
    static const char* const shapes[] = {"batch-size=2 sp=1", "batch-size=2 sp=3 zero=3",
        "batch-size=1 dp=2 sp=2 zero=2", "batch-size=1 grad-accum=2 dp=1 sp=4 schedule=ring",
        "batch-size=2 sp=2 zero=0 recompute=none schedule=zigzag", "batch-size=2 sp=2 zero=0"};
    char to[sizeof shapes / sizeof shapes[0]][128];
    int steps = quick ? 4 : 10;
    for (size_t i = 0; i < sizeof to / sizeof to[0]; i++)
        snprintf(to[i], sizeof to[i], "%s %s", shapes[i], also);
    Run whole = run_steps(from, steps);
    double limit = 100 * EPS;   // as for the splits of a run
    for (size_t i = 0; i < sizeof to / sizeof to[0]; i += few ? 2 : 1) {
        Run run = run_resumed(from, to[i], steps / 2, steps);
        double error = run_distance(&run, &whole);
        check(error <= limit, "resume: a run goes on at another shape with the same losses",
            "%s -> %s: difference %.3g, at most %.3g", from, to[i], error, limit);
        free(run.weights);
    }
    free(whole.weights);
}

static const char* const TINY =
    "layers=1 heads=1 channels=8 seq-len=16 batch-size=2 threads=1 keep=3 steps=5";

// Makes a run of the tiny model in `name` with checkpoints at steps 1, 2 and 3.
static gpt2_sp_options tiny_run(const char* name) {
    gpt2_sp_options o = run_options(TINY);
    char error[GPT2_SP_TEXT];
    gpt2_sp_stats stats;
    snprintf(o.out, sizeof o.out, "%s", scratch(name));
    remove_tree(o.out);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    int status = g ? 0 : -1;
    for (int i = 0; status == 0 && i < 3; i++) status = step_of(g, &stats) != 0 || gpt2_sp_save(g) != 0;
    if (status != 0) check(0, "a test's checkpoints are saved", "%s", g ? gpt2_sp_error(g) : error);
    gpt2_sp_destroy(g);
    return o;
}

// Options with which the run in o.out must not go on: refused with both parts in the message.
static void resume_refused_with(const gpt2_sp_options* o, const char* saved, const char* asked) {
    char error[GPT2_SP_TEXT];
    gpt2_sp* g = trainer_of(o, error, sizeof error);
    check(!g && strstr(error, saved) && strstr(error, asked), "resume: what makes another run is refused",
        "%s", g ? "accepted" : error);
    gpt2_sp_destroy(g);
}

static void resume_refused(void) {
    static const struct {
        const char *change, *saved, *asked;
    } cases[] = {{"layers=2", "--layers 1", "found 2"}, {"heads=2", "--heads 1", "found 2"},
        {"channels=16", "--channels 8", "found 16"}, {"seq-len=15", "--seq-len 16", "found 15"},
        {"seed=6", "--seed 5", "found 6"}, {"center=0", "--center 1", "found 0"},
        {"vocab=300", "--vocab 257", "found 300"}, {"doc-mask=1", "--doc-mask 0", "found 1"}};
    gpt2_sp_options o = tiny_run("refused"), changed;
    char error[GPT2_SP_TEXT];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        changed = o;
        options_apply(&changed, cases[i].change);
        resume_refused_with(&changed, cases[i].saved, cases[i].asked);
    }
    int32_t* tokens = stream_make(12, 3000, 40);
    changed = o;
    snprintf(changed.data, sizeof changed.data, "%s", scratch("other.tok"));
    stream_write(changed.data, tokens, 3000);
    free(tokens);
    resume_refused_with(&changed, "was made with the data ", "--data is ");
    gpt2_sp *first = trainer_of(&o, error, sizeof error), *second = trainer_of(&o, error, sizeof error);
    check(first && !second && strstr(error, "another trainer is at work"),
        "resume: a second trainer in the folder is refused", "%s", second ? "accepted" : error);
    gpt2_sp_destroy(first);
    gpt2_sp_destroy(second);
}

static long file_length(const char* path) {
    struct stat info;
    return stat(path, &info) == 0 ? (long)info.st_size : -1;
}
static void file_flip(const char* path, long at, int mask) {
    int fd = open(path, O_RDWR);
    unsigned char byte = 0;
    if (fd < 0 || pread(fd, &byte, 1, at) != 1)
        check(0, "a test's file can be damaged", "%s at %ld", path, at);
    byte ^= (unsigned char)mask;
    if (pwrite(fd, &byte, 1, at) != 1) check(0, "a test's file can be damaged", "%s at %ld", path, at);
    close(fd);
}

// Every byte of the small files, and many of the large ones, changed one at a time: how many of them were
// taken for whole.
static int resume_flip(const char* folder, const char* path, const char* file, long step, int* tried) {
    static const int masks[] = {1, 0x20, 0x80};
    Error e = {0, {0}};
    long length = file_length(path);
    int taken = 0;
    for (long at = 0; at < length; at += step)
        for (int m = 0; m < 3; m++, ++*tried) {
            file_flip(path, at, masks[m]);
            if (checkpoint_verify(folder, &e) == 0) {
                taken++;
                printf("     %s, byte %ld ^ 0x%x\n", file, at, (unsigned)masks[m]);
            }
            file_flip(path, at, masks[m]);
        }
    return taken;
}

// The same file cut off at nine places: how many were taken for whole.
static int resume_cut(const char* folder, const char* path, int* cuts) {
    Error e = {0, {0}};
    long length = file_length(path);
    int taken = 0;
    for (long at = 0; at < length; at += length / 8 + 1) {
        size_t size;
        char* text = file_read_text(path, 1 << 24, &size, &e);
        if (!text || truncate(path, at) != 0 || checkpoint_verify(folder, &e) == 0) taken++;
        else ++*cuts;
        test_data_write(path, text, size);
        free(text);
    }
    return taken;
}

static void resume_flips(void) {
    gpt2_sp_options o = tiny_run("flips");
    char folder[GPT2_SP_TEXT + 32], path[GPT2_SP_TEXT + 64];
    snprintf(folder, sizeof folder, "%.1000s/step_00000003", o.out);
    for (int i = 0; i < 5; i++) {
        const char* file = CHECKPOINT_FILES[i];
        int tried = 0, cuts = 0;
        Error e = {0, {0}};
        snprintf(path, sizeof path, "%.1000s/%s", folder, file);
        long step = i < 2 ? file_length(path) / (quick ? 20 : 200) + 1 : quick ? 7 : 1;
        int taken = resume_flip(folder, path, file, step, &tried);
        taken += resume_cut(folder, path, &cuts);
        int whole = checkpoint_verify(folder, &e) == 0;
        check(taken == 0 && tried > 0 && whole, "resume: damaged files are refused",
            "%s: %d changed bytes and %d lengths, %d taken for whole", file, tried, cuts, taken);
    }
}

// Damages a file of a checkpoint: takes it away, its last byte, or changes one in the middle.
static void checkpoint_damage(const gpt2_sp_options* o, int step, const char* file, int missing) {
    char path[GPT2_SP_TEXT + 64];
    snprintf(path, sizeof path, "%.1000s/step_%08d/%s", o->out, step, file);
    if (missing && unlink(path) != 0) check(0, "a test's file can be damaged", "%s", path);
    else if (!missing && step == 2 && truncate(path, file_length(path) - 1) != 0)
        check(0, "a test's file can be damaged", "%s", path);
    else if (!missing && step != 2) file_flip(path, file_length(path) / 2, 4);
}

// Damage to the newest checkpoint, in each file: the trainer falls back to the one before and says so; then
// to the first; with all damaged it refuses. Once with a file missing.
static void resume_fallback(void) {
    for (int i = 0; i < 6; i++) {
        gpt2_sp_options o = tiny_run("fallback");
        const char* file = CHECKPOINT_FILES[i % 5];
        char error[GPT2_SP_TEXT], said[4096];
        long long found[3] = {-1, -1, -1};
        int told = 0;
        for (int step = 3; step >= 1; step--) {
            checkpoint_damage(&o, step, file, i == 5);
            stderr_hide();
            gpt2_sp* g = trainer_of(&o, error, sizeof error);
            stderr_show(said, sizeof said);
            if (g) found[step - 1] = gpt2_sp_steps(g);
            int tries = 0;   // not behind the oldest
            for (const char* p = said; (p = strstr(p, "trying an older one")); p++) tries++;
            told += strstr(said, "is not whole") != NULL && tries == (step == 1 ? 2 : 4 - step);
            gpt2_sp_destroy(g);
        }
        check(found[2] == 2 && found[1] == 1 && found[0] == -1 && told == 3 &&
                strstr(error, "none of the 3 checkpoints"),
            "resume: falls back to the newest whole one",
            "%s %s at 3: resumes %lld, at 3 and 2: %lld, at all: %.60s...", file,
            i == 5 ? "missing" : "damaged", found[2], found[1], error);
    }
}

// A damaged newest checkpoint is made again in its place; old ones go, at least `keep` stay; leftovers of a
// save go.
static void resume_housekeeping(void) {
    gpt2_sp_options o = tiny_run("housekeeping");
    char path[GPT2_SP_TEXT + 64], error[GPT2_SP_TEXT], said[64];
    int64_t* steps = NULL;
    Error e = {0, {0}};
    Folder out;
    gpt2_sp_stats stats;
    snprintf(path, sizeof path, "%.1000s/step_00000003/model.safetensors", o.out);
    file_flip(path, 100, 1);
    snprintf(path, sizeof path, "%.1000s/step_00000009.tmp", o.out);
    mkdir(path, 0700);
    stderr_hide();
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    stderr_show(said, sizeof said);
    int status = g && gpt2_sp_steps(g) == 2 && step_of(g, &stats) == 0 && gpt2_sp_save(g) == 0 ? 0 : -1;
    snprintf(path, sizeof path, "%.1000s/step_00000003", o.out);
    check(status == 0 && checkpoint_verify(path, &e) == 0, "resume: a damaged step is saved anew", "%s",
        g ? gpt2_sp_error(g) : error);
    for (int i = 0; status == 0 && i < 3; i++) status = step_of(g, &stats) != 0 || gpt2_sp_save(g) != 0;
    int count = folder_open(&out, o.out, &e) == 0 ? checkpoint_list(&out, &steps, &e) : -1, others = 0;
    folder_close(&out);
    DIR* dir = opendir(o.out);
    for (struct dirent* entry; dir && (entry = readdir(dir)) != NULL;)
        others += strstr(entry->d_name, ".tmp") != NULL;
    if (dir) closedir(dir);
    check(status == 0 && count == 3 && steps[0] == 6 && steps[2] == 4 && others == 0,
        "resume: --keep 3 leaves the newest three and nothing else",
        "%d checkpoints, the newest %lld, %d leftovers", count, count > 0 ? (long long)steps[0] : -1ll,
        others);
    free(steps);
    gpt2_sp_destroy(g);
}

// Has the trainer, on one rank or each rank for its own rows, the positions of a (16 of them) again and
// again?
static int positions_repeat(const gpt2_sp* g, const gpt2_sp* a) {
    const int64_t T = g->mesh.shape.T, C = g->mesh.shape.C;
    const int64_t own = T / g->mesh.sp;
    const real* from = weight(&a->ranks[0], positions_unit(&a->layout), P_wpe);
    for (int64_t t = 0; t < T; t++) {
        const real* to = weight(&g->ranks[t / own], positions_unit(&g->layout), P_wpe) + t % own * C;
        if (memcmp(to, from + t % 16 * C, (size_t)C * sizeof(real)) != 0) return 0;
    }
    return 1;
}

// A saved run initialises another (--init-from): the same weights, at step 0; also with a longer context.
static void resume_init_from(void) {
    gpt2_sp_options o = tiny_run("init"), p = run_options(TINY);
    char error[GPT2_SP_TEXT];
    snprintf(p.init_from, sizeof p.init_from, "%.1000s/step_00000003", o.out);
    gpt2_sp *a = trainer_of(&o, error, sizeof error), *b = trainer_of(&p, error, sizeof error);
    int same = a && b && gpt2_sp_steps(b) == 0 &&
        memcmp(a->ranks[0].state[STATE_WEIGHTS], b->ranks[0].state[STATE_WEIGHTS],
            (size_t)a->layout.elements * sizeof(real)) == 0;
    check(same, "resume: --init-from starts at step 0 with the same weights", "%s",
        same ? "the same weights at step 0" : error);
    gpt2_sp_destroy(b);
    p.seq_len = 40;
    b = trainer_of(&p, error, sizeof error);
    int repeated = a && b && positions_repeat(b, a);
    check(repeated, "resume: --init-from repeats the positions for a longer context", "%s",
        repeated ? "wpe is repeated: 16 -> 40 rows" : error);
    gpt2_sp_destroy(b);
    p.sp = 2;   // each rank reads its own 20 rows
    b = trainer_of(&p, error, sizeof error);
    repeated = a && b && positions_apart(&b->layout) && positions_repeat(b, a);
    check(repeated, "resume: --init-from repeats the positions for two ranks, each its own", "%s",
        repeated ? "wpe is repeated: 16 -> 2 x 20 rows" : error);
    gpt2_sp_destroy(a);
    gpt2_sp_destroy(b);
    p.sp = 1;
    p.layers = p.heads = p.channels = p.vocab = p.seq_len = 0;   // its sizes are the model's
    snprintf(p.init_from, sizeof p.init_from, "%s", o.out);      // a run's folder: its newest checkpoint
    b = trainer_of(&p, error, sizeof error);
    const Shape* s = b ? &b->mesh.shape : NULL;
    check(s && s->L == 1 && s->NH == 1 && s->C == 8 && s->T == 16,
        "resume: --init-from gives the sizes that are not given",
        "%lld layers, %lld heads, %lld channels, context %lld %s", s ? (long long)s->L : 0,
        s ? (long long)s->NH : 0, s ? (long long)s->C : 0, s ? (long long)s->T : 0, b ? "" : error);
    gpt2_sp_destroy(b);
    options_apply(&p, "heads=2");
    b = trainer_of(&p, error, sizeof error);
    check(!b && strstr(error, "--heads 2: the model of --init-from") && strstr(error, " has 1"),
        "resume: --init-from of another shape is refused", "%s", b ? "accepted" : error);
    gpt2_sp_destroy(b);
}

// Writes part `first` of a model in so many parts, every tensor whose number is that one modulo theirs, to a
// file of its own, and their lines of an index.
static int model_part(
    const st_file* f, int first, int parts, const char* folder, const char* name, FILE* index) {
    st_header h;
    char path[1200], error[GPT2_SP_TEXT];
    unsigned char* head = NULL;
    size_t bytes = 0;
    int status = 0;
    st_header_init(&h);
    for (int i = first; i < f->count; i += parts) {
        const st_tensor* t = &f->tensors[i];
        status |= st_header_add(&h, t->name, t->dtype, t->ndim, t->shape, error, sizeof error);
        fprintf(index, "%s\"%s\": \"%s\"", i ? ", " : "", t->name, name);
    }
    status |= st_header_finish(&h, NULL, &head, &bytes, error, sizeof error);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE* out = fopen(path, "w");
    if (out) fwrite(head, 1, bytes, out);
    for (int i = first; out && i < f->count; i += parts) {
        size_t n = (size_t)(f->tensors[i].end - f->tensors[i].begin);
        char* data = (char*)need(n, 1);
        status |= st_pread(f->fd, data, n, f->data_start + f->tensors[i].begin);
        fwrite(data, 1, n, out);
        free(data);
    }
    if (!out || fclose(out) != 0) status = -1;
    free(head);
    st_header_free(&h);
    return status;
}

// Puts the model of step 3 of a run's folder into another folder, in so many files and an index, as large
// models are kept.
static int model_in_parts(const char* run, const char* folder, int parts) {
    char path[1200], name[64], error[GPT2_SP_TEXT] = "", line[2400];
    st_file f;
    snprintf(path, sizeof path, "%.1000s/step_00000003/model.safetensors", run);
    int status = mkdir(folder, 0777) != 0 || st_open(&f, path, error, sizeof error) != 0;
    snprintf(path, sizeof path, "%.1000s/step_00000003/config.json", run);
    snprintf(line, sizeof line, "cp %s %s", path, folder);
    status |= system(line);
    snprintf(path, sizeof path, "%.1000s/model.safetensors.index.json", folder);
    FILE* index = fopen(path, "w");
    if (status == 0 && index) {
        fprintf(index, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {");
        for (int i = 0; i < parts; i++) {
            snprintf(name, sizeof name, "model-%d-of-%d.safetensors", i + 1, parts);
            status |= model_part(&f, i, parts, folder, name, index);
        }
        fprintf(index, "}}\n");
        st_close(&f);
    }
    if (!index || fclose(index) != 0) status = -1;
    if (status != 0) printf("     %s: %s\n", folder, error);
    return status;
}

// Such a model is read as the whole one. An index that names the wrong file for one tensor is refused.
static void resume_init_from_files(void) {
    gpt2_sp_options o = tiny_run("whole"), p = run_options(TINY);
    char path[1200], error[GPT2_SP_TEXT] = "";
    const char* folder = scratch("parts");
    int status = model_in_parts(o.out, folder, 2);
    snprintf(p.init_from, sizeof p.init_from, "%s", folder);
    gpt2_sp *a = trainer_of(&o, error, sizeof error), *b = trainer_of(&p, error, sizeof error);
    int same = status == 0 && a && b &&
        memcmp(a->ranks[0].state[STATE_WEIGHTS], b->ranks[0].state[STATE_WEIGHTS],
            (size_t)a->layout.elements * sizeof(real)) == 0;
    check(same, "resume: --init-from reads a model in several files", "%s",
        same ? "2 files, the same weights" : error);
    gpt2_sp_destroy(a);
    gpt2_sp_destroy(b);
    snprintf(path, sizeof path, "%.1000s/model.safetensors.index.json", p.init_from);
    FILE* index = fopen(path, "w");
    if (index) {
        fprintf(index,
            "{\"weight_map\": {\"transformer.wte.weight\": \"model-1-of-2.safetensors\", "
            "\"transformer.wpe.weight\": \"model-1-of-2.safetensors\"}}");
        fclose(index);
    }
    b = trainer_of(&p, error, sizeof error);
    check(!b && strstr(error, "is not in model-1-of-2.safetensors"),
        "resume: an index that is wrong is refused", "%s", b ? "accepted" : error);
    gpt2_sp_destroy(b);
}

// A damaged checkpoint that is named by hand is refused, whatever the file; a run's folder falls back.
static void resume_by_hand(void) {
    for (int i = 0; i < CHECKPOINT_FILE_COUNT; i++) {
        gpt2_sp_options o = tiny_run("hand"), p = run_options(TINY);
        char error[GPT2_SP_TEXT] = "", why[GPT2_SP_TEXT] = "";
        checkpoint_damage(&o, 3, CHECKPOINT_FILES[i], 0);
        snprintf(p.init_from, sizeof p.init_from, "%.1000s/step_00000003", o.out);
        gpt2_sp* g = trainer_of(&p, error, sizeof error);
        check(!g && strstr(error, i < 4 ? CHECKPOINT_FILES[i] : "manifest"),
            "resume: --init-from of a damaged checkpoint is refused", "%s: %s", CHECKPOINT_FILES[i],
            g ? "accepted" : error);
        gpt2_sp_destroy(g);
        gpt2_sp_options q = options_of("");
        snprintf(q.from, sizeof q.from, "%.1000s/step_00000003", o.out);
        Error e = {0, {0}};
        g = trainer_make(&q, trainer_load, &e);
        check(!g && strstr(e.text, i < 4 ? CHECKPOINT_FILES[i] : "manifest"),
            "resume: --from a damaged checkpoint is refused", "%s: %s", CHECKPOINT_FILES[i],
            g ? "accepted" : e.text);
        gpt2_sp_destroy(g);
        snprintf(q.from, sizeof q.from, "%.1000s", o.out);
        stderr_hide();
        g = trainer_make(&q, trainer_load, &e);
        stderr_show(why, sizeof why);
        why[strcspn(why, "\n")] = 0;
        check(g && strstr(why, "step_00000003 is not whole"), "resume: --from a run falls back and says so",
            "%s", g ? why : e.text);
        gpt2_sp_destroy(g);
    }
}

// The steps of the checkpoints in a run's folder, newest first, as "4 3 2".
static void checkpoints_print(const gpt2_sp_options* o, char* text, size_t size) {
    Folder out;
    Error e;
    int64_t* steps = NULL;
    int count = folder_open(&out, o->out, &e) == 0 ? checkpoint_list(&out, &steps, &e) : -1;
    text[0] = 0;
    for (int i = 0; i < count; i++) {
        size_t used = strlen(text);
        snprintf(text + used, size - used, "%s%lld", i ? " " : "", (long long)steps[i]);
    }
    free(steps);
    folder_close(&out);
}

// Which checkpoints go when a run goes on from the newest whole one and saves: those that it passed over do
// not count, nor do older ones that are not whole. damaged: their steps; last: the step that is saved.
static void resume_retires(const char* damaged, int64_t keep, int64_t last, const char* left) {
    gpt2_sp_options o = tiny_run("retire");
    char error[GPT2_SP_TEXT] = "", said[256], found[64];
    gpt2_sp_stats stats;
    for (const char* step = damaged; *step; step++)
        checkpoint_damage(&o, *step - '0', "model.safetensors", 0);
    o.keep = keep;
    stderr_hide();
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    stderr_show(said, sizeof said);
    int status = g ? 0 : -1;
    while (status == 0 && gpt2_sp_steps(g) < last) status = step_of(g, &stats);
    if (status == 0) status = gpt2_sp_save(g);
    checkpoints_print(&o, found, sizeof found);
    check(status == 0 && strcmp(found, left) == 0, "resume: the newest whole checkpoints stay",
        "1 to 3, damaged %s, --keep %d, saved %d: %s are left, expected %s%s", *damaged ? damaged : "none",
        (int)keep, (int)last, found, left, error);
    gpt2_sp_destroy(g);
}

// Names in a run's folder, and the step of those that are this program's.
static void resume_names(void) {
    static const struct {
        const char* name;
        int64_t step, temporary;
    } cases[] = {{"step_00000006", 6, -1}, {"step_6", -1, -1}, {"step_+6", -1, -1}, {"step_ 6", -1, -1},
        {"step_0000006", -1, -1}, {"step_000000006", -1, -1}, {"step_-0000006", -1, -1},
        {"step_00000006 ", -1, -1}, {"step_123456789", 123456789, -1}, {"step_00000006.tmp", -1, 6},
        {"step_6.tmp", -1, -1}, {"step_x.tmp", -1, -1}, {"step_00000006.1.tmp", -1, 6},
        {"step_00000006.01.tmp", -1, -1}, {"step_00000006.99.tmp", -1, 6}, {"step_00000006.100.tmp", -1, -1},
        {"step_99999999999999999999", -1, -1}, {"step_", -1, -1}, {"x_step_00000006", -1, -1}};
    int wrong = 0, count = (int)(sizeof cases / sizeof cases[0]);
    for (int i = 0; i < count; i++) {
        int64_t step = checkpoint_step(cases[i].name, 0), temporary = checkpoint_step(cases[i].name, 1);
        if (step == cases[i].step && temporary == cases[i].temporary) continue;
        printf("     %s: %lld, %lld\n", cases[i].name, (long long)step, (long long)temporary);
        wrong++;
    }
    check(wrong == 0, "resume: a name is a step's only if the step's name is that one",
        "%d of %d names taken for something else", wrong, count);
}

// Paths at the edge of what fits: whole, or an error; never cut.
static void resume_paths(void) {
    static char folder[2 * PATH_SIZE];
    char path[PATH_SIZE];
    Error e;
    int wrong = 0;
    for (int n = 0; n < 2 * PATH_SIZE - 1; n++) {
        memset(folder, 'y', (size_t)n);
        folder[n] = 0;
        int fits = path_in(path, folder, "config.json", &e) == 0;
        wrong += fits != (n + 12 < PATH_SIZE);
        wrong += fits ? (int)strlen(path) != n + 12 || strcmp(path + n, "/config.json") != 0 : path[0] != 0;
    }
    check(wrong == 0, "resume: a path is whole or an error", "%d of %d lengths wrong", wrong,
        2 * PATH_SIZE - 1);
    gpt2_sp_options o = run_options(TINY);
    char error[GPT2_SP_TEXT] = "", file[PATH_SIZE];
    gpt2_sp_stats stats;
    for (int length = 960; length <= 1000; length += 8) {   // one name may have 255 bytes
        int at = snprintf(o.out, sizeof o.out, "%s", scratch("long"));
        remove_tree(o.out);
        for (; at < length; at++) o.out[at] = at % 200 == 0 || at == length - 3 ? '/' : 'y';
        o.out[at] = 0;
        gpt2_sp* g = trainer_of(&o, error, sizeof error);
        int saved = g && step_of(g, &stats) == 0 && gpt2_sp_save(g) == 0;
        snprintf(file, sizeof file, "%s/step_00000001", o.out);
        check(saved && checkpoint_verify(file, &e) == 0, "resume: a long --out holds the whole checkpoint",
            "%d bytes%s", length, g ? gpt2_sp_error(g) : error);
        gpt2_sp_destroy(g);
    }
    remove_tree(scratch("long"));
}

// All that the library does, on one small stack: what is called from a host's thread must fit there.
#ifdef __has_feature
#define HAS_SANITIZER (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HAS_SANITIZER 1
#else
#define HAS_SANITIZER 0
#endif
#if HAS_SANITIZER
enum { SMALL_STACK = 1 << 21 };   // sanitizers' frames are larger
#else
enum { SMALL_STACK = 256 << 10 };
#endif
static void* small_stack(void* argument) {
    char* error = (char*)argument;
    gpt2_sp_stats stats;
    double loss = 0;
    int32_t prompt[4] = {1, 2, 3, 4}, text[8];
    gpt2_sp_options* o = (gpt2_sp_options*)need(1, sizeof *o);
    *o = run_options("layers=2 heads=2 channels=128 seq-len=96 sp=2 threads=2 batch-size=2 zero=3 steps=9");
    memcpy(o->val_data, o->data, sizeof o->data);
    snprintf(o->out, sizeof o->out, "%s", scratch("small"));
    for (int part = 0; part < 2; part++) {   // fresh, then resumed
        gpt2_sp* g = trainer_of(o, error, GPT2_SP_TEXT);
        if (!g) break;
        int done = step_of(g, &stats) == 0 && gpt2_sp_validate(g, 2, &loss) == 0 &&
            generated(g, prompt, 4, text, 8, 0.8, 3, 0.9, 1) > 0 && gpt2_sp_save(g) == 0;
        snprintf(error, GPT2_SP_TEXT, "%s", done ? "" : gpt2_sp_error(g));
        if (done && gpt2_sp_steps(g) != part + 1) snprintf(error, GPT2_SP_TEXT, "not resumed");
        gpt2_sp_destroy(g);
        if (!done) break;
    }
    free(o);
    return NULL;
}
static void resume_small_stack(void) {
    char error[GPT2_SP_TEXT] = "no thread";
    pthread_attr_t small, before;
    pthread_t thread;
    scratch("");
    pthread_getattr_default_np(&before);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, SMALL_STACK);
    pthread_setattr_default_np(&small);   // ranks' and OpenMP's threads too
    if (pthread_create(&thread, NULL, small_stack, error) == 0) pthread_join(thread, NULL);
    pthread_setattr_default_np(&before);
    pthread_attr_destroy(&small);
    pthread_attr_destroy(&before);
    check(error[0] == 0, "resume: all threads have enough with a small stack",
        "%d KB: create, step, validate, generate, save, resume %s", SMALL_STACK >> 10, error);
}

static void test_resume(void) {
    resume_names();
    resume_paths();
    resume_small_stack();
    resume_by_hand();
    resume_retires("", 2, 4, "4 3");
    resume_retires("", 3, 4, "4 3 2");
    resume_retires("3", 2, 4, "4 3 2");
    resume_retires("3", 3, 4, "4 3 2 1");
    resume_retires("32", 2, 5, "5 3 2 1");
    resume_retires("2", 2, 5, "5 3");
    resume_retires("2", 3, 5, "5 3 2 1");
    resume_exact();
    resume_elsewhere("batch-size=2 sp=2 zero=1", "");
    // from own positions, to those and to shared ones
    resume_elsewhere("batch-size=2 sp=2 zero=1 seq-len=60", "seq-len=60");
    resume_elsewhere("batch-size=2 sp=3 zero=0 seq-len=60", "seq-len=60");
    resume_elsewhere("batch-size=1 dp=2 zero=2 seq-len=60", "seq-len=60");   // to own positions
    resume_refused();
    resume_flips();
    resume_fallback();
    resume_housekeeping();
    resume_init_from();
    resume_init_from_files();
}

// ===== layers ===================================================================================
// Each layer alone, at sizes on both sides of the edges of its blocks. Held: forward is the layer's formula
// in double, backward its slope by differences, matrix products are right at every edge and the same for any
// number of threads, exp is as good as its comment says. A gradient that is a few per cent wrong still
// trains, and worse: only a comparison with the formula shows it.

// A layer: its formula in double, written plainly, and the program's forward and backward. The formula is the
// oracle of both: of the forward directly, of the backward by central differences along random directions and
// single inputs.
enum { LAYER_INPUTS = 3 };
typedef struct {
    const char* name;
    int64_t inputs[LAYER_INPUTS], outputs;   // numbers of each input (0: there is none) and of the output
    int accumulates;                         // bit i: the gradient of input i is added to what is there
    double spread;                           // of the inputs
    void (*formula)(double* out, double* const* in);
    void (*program)(real* out, real* const* gradients, real* const* in, const real* dout);
} LayerTest;

enum {
    LT_R = 37,
    LT_C = 50,
    LT_OC = 71,
    LT_V = 67,
    LT_VP = 128,
    LT_T = 30,
    LT_HS = 20,
    LT_N = 150,
    LT_POSITION = 100
};

static void formula_matmul_rows(double* out, double* const* in, int64_t R) {
    for (int64_t t = 0; t < R; t++)
        for (int64_t o = 0; o < LT_OC; o++) {
            double sum = in[2][o];
            for (int64_t c = 0; c < LT_C; c++) sum += in[0][t * LT_C + c] * in[1][o * LT_C + c];
            out[t * LT_OC + o] = sum;
        }
}
static void formula_matmul(double* out, double* const* in) { formula_matmul_rows(out, in, LT_R); }
// What matrix products work in, of as many threads as any test has.
static Scratch* layer_scratch(void) {
    static Scratch* memory;
    static size_t threads;
    if (threads < (size_t)thread_count()) {
        threads = (size_t)thread_count();
        free(memory);
        memory = (Scratch*)need(threads, sizeof *memory);
    }
    return memory;
}
static void program_matmul(real* out, real* const* g, real* const* in, const real* dout) {
    cpu_matmul_forward(out, in[0], in[1], in[2], LT_R, LT_C, LT_OC, layer_scratch());
    cpu_matmul_backward(g[0], g[1], g[2], dout, in[0], in[1], LT_R, LT_C, LT_OC, layer_scratch());
}
static void formula_matmul_two(double* out, double* const* in) { formula_matmul_rows(out, in, 2); }
static void program_matmul_two(real* out, real* const* g, real* const* in, const real* dout) {
    cpu_matmul_forward(out, in[0], in[1], in[2], 2, LT_C, LT_OC, layer_scratch());
    cpu_matmul_backward(g[0], g[1], g[2], dout, in[0], in[1], 2, LT_C, LT_OC, layer_scratch());
}

static void formula_rmsnorm(double* out, double* const* in) {
    for (int64_t t = 0; t < LT_R; t++) {
        double sum = 0;
        for (int64_t c = 0; c < LT_C; c++) sum += in[0][t * LT_C + c] * in[0][t * LT_C + c];
        for (int64_t c = 0; c < LT_C; c++)
            out[t * LT_C + c] = in[0][t * LT_C + c] / sqrt(sum / LT_C + 1e-5) * in[1][c] + in[2][c];
    }
}
static void program_rmsnorm(real* out, real* const* g, real* const* in, const real* dout) {
    real rstd[LT_R];
    cpu_rmsnorm_forward(out, rstd, in[0], in[1], in[2], LT_R, LT_C);
    cpu_rmsnorm_backward(g[0], g[1], g[2], dout, in[0], rstd, in[1], LT_R, LT_C);
}

static void formula_gelu(double* out, double* const* in) {
    for (int64_t i = 0; i < LT_R * LT_C; i++) {
        double x = in[0][i];
        out[i] = 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    }
}
static void program_gelu(real* out, real* const* g, real* const* in, const real* dout) {
    cpu_gelu_forward(out, in[0], LT_R * LT_C);
    memcpy(g[0], dout, LT_R * LT_C * sizeof(real));
    cpu_gelu_backward(g[0], in[0], LT_R * LT_C);
}

static void formula_residual(double* out, double* const* in) {
    for (int64_t t = 0; t < LT_R; t++) {
        double mean = 0;
        for (int64_t c = 0; c < LT_C; c++) mean += in[1][t * LT_C + c] / LT_C;
        for (int64_t c = 0; c < LT_C; c++)
            out[t * LT_C + c] = in[0][t * LT_C + c] + in[1][t * LT_C + c] - mean;
    }
}
static void program_residual(real* out, real* const* g, real* const* in, const real* dout) {
    cpu_residual_forward(out, in[0], in[1], 1, LT_R, LT_C);
    memcpy(g[0], dout, LT_R * LT_C * sizeof(real));
    cpu_center_rows(g[1], dout, LT_R, LT_C);   // as layer_backward does
}

// Two runs of rows (as zigzag's), documents that begin within and before them, a token that comes twice.
static Segments embedding_place(void) {
    Segments seg = {2, {4, 20}, {9, 6}, 15};
    return seg;
}
static int32_t embedding_token(int64_t t) { return (int32_t)(t * 7 % 11); }
static void embedding_docs(int32_t* doc_start) {
    for (int32_t t = 0; t < LT_T; t++) doc_start[t] = t < 2 ? 0 : t < 7 ? 2 : t < 22 ? 7 : 22;
}
static void formula_embedding(double* out, double* const* in) {
    int32_t doc_start[LT_T];
    embedding_docs(doc_start);
    for (int64_t t = 0; t < 15; t++) {
        int64_t at = t < 9 ? 4 + t : 20 + t - 9;
        double mean = 0, *row = out + t * LT_C;
        for (int64_t c = 0; c < LT_C; c++)
            row[c] = in[0][embedding_token(t) * LT_C + c] + in[1][(at - doc_start[at]) * LT_C + c];
        for (int64_t c = 0; c < LT_C; c++) mean += row[c] / LT_C;
        for (int64_t c = 0; c < LT_C; c++) row[c] -= mean;
    }
}
static void program_embedding(real* out, real* const* g, real* const* in, const real* dout) {
    Segments seg = embedding_place();
    SamplePlace place = {0, 0};
    int32_t doc_start[LT_T], positions[15], tokens[15];
    real dx[15 * LT_C];
    embedding_docs(doc_start);
    for (int64_t t = 0; t < 15; t++) tokens[t] = embedding_token(t);
    cpu_embedding_forward(out, tokens, in[0], 15, LT_C);
    positions_fill(place, &seg, doc_start, positions);
    cpu_position_forward(out, &seg, positions, in[1], 1, LT_C);
    memcpy(dx, dout, sizeof dx);
    cpu_embedding_backward(g[0], dx, tokens, 1, 15, LT_C);
    cpu_position_backward(g[1], dx, &seg, positions, LT_C);
}

static int32_t crossentropy_label(int64_t t) { return t % 5 == 3 ? -1 : (int32_t)(t * 13 % LT_V); }
static void formula_crossentropy(double* out, double* const* in) {
    out[0] = 0;
    for (int64_t t = 0; t < LT_R; t++) {
        double sum = 0;
        for (int64_t v = 0; v < LT_V; v++) sum += exp(in[0][t * LT_VP + v]);
        if (crossentropy_label(t) >= 0) out[0] += (log(sum) - in[0][t * LT_VP + crossentropy_label(t)]) / 30;
    }
}
static void program_crossentropy(real* out, real* const* g, real* const* in, const real* dout) {
    int32_t labels[LT_R];
    real losses[LT_R], sum = 0;
    unsigned char hits[LT_R];
    for (int64_t t = 0; t < LT_R; t++) labels[t] = crossentropy_label(t);
    memcpy(g[0], in[0], LT_R * LT_VP * sizeof(real));
    cpu_crossentropy(losses, hits, g[0], labels, dout[0] / 30, LT_R, LT_V, LT_VP);
    for (int64_t t = 0; t < LT_R; t++) sum += losses[t];
    out[0] = sum / 30;
}

// A diagonal block of one head in the middle of a sequence, documents beginning before and in it.
static void head_docs(int32_t* doc_start) {
    for (int32_t i = 0; i < LT_N; i++)
        doc_start[i] = i < 60 ? 40 : i < 135 ? LT_POSITION + 60 : LT_POSITION + 135;
}
static void formula_head(double* out, double* const* in) {
    int32_t doc_start[LT_N];
    head_docs(doc_start);
    for (int64_t i = 0; i < LT_N; i++) {
        double sum = 0, *row = out + i * LT_HS;
        for (int64_t c = 0; c < LT_HS; c++) row[c] = 0;
        for (int64_t j = max_i64(0, doc_start[i] - LT_POSITION); j <= i; j++) {
            double score = 0;
            for (int64_t c = 0; c < LT_HS; c++) score += in[0][i * LT_HS + c] * in[1][j * LT_HS + c];
            score = exp(score / sqrt((double)LT_HS)), sum += score;
            for (int64_t c = 0; c < LT_HS; c++) row[c] += score * in[2][j * LT_HS + c];
        }
        for (int64_t c = 0; c < LT_HS; c++) row[c] /= sum;
    }
}
static void program_head(real* out, real* const* g, real* const* in, const real* dout) {
    AttentionScratch* scratch = (AttentionScratch*)need(1, sizeof *scratch + 64);
    int32_t doc_start[LT_N];
    real m[LT_N], l[LT_N], delta[LT_N];
    head_docs(doc_start);
    memset(out, 0, LT_N * LT_HS * sizeof(real));
    for (int64_t i = 0; i < LT_N; i++) m[i] = -(real)INFINITY, l[i] = 0;
    AttentionPair pair = {in[0], in[1], in[2], LT_N, LT_N, LT_HS, LT_POSITION, LT_POSITION, doc_start};
    cpu_attention_forward_head(out, m, l, &pair, scratch);
    output_finish(out, m, l, LT_N, LT_HS);
    for (int64_t i = 0; i < LT_N; i++) {
        delta[i] = 0;
        for (int64_t c = 0; c < LT_HS; c++) delta[i] += dout[i * LT_HS + c] * out[i * LT_HS + c];
    }
    cpu_attention_backward_head(g[0], g[1], g[2], &pair, dout, m, delta, scratch);
    free(scratch);
}

static const LayerTest LAYER_TESTS[] = {
    {"matmul", {LT_R * LT_C, LT_OC* LT_C, LT_OC}, LT_R* LT_OC, 6, 1, formula_matmul, program_matmul},
    {"matmul of two rows", {2 * LT_C, LT_OC* LT_C, LT_OC}, 2 * LT_OC, 6, 1, formula_matmul_two,
        program_matmul_two},
    {"rmsnorm", {LT_R * LT_C, LT_C, LT_C}, LT_R* LT_C, 7, 1, formula_rmsnorm, program_rmsnorm},
    {"gelu", {LT_R * LT_C, 0, 0}, LT_R* LT_C, 0, 2, formula_gelu, program_gelu},
    {"residual, centred", {LT_R * LT_C, LT_R* LT_C, 0}, LT_R* LT_C, 0, 1, formula_residual, program_residual},
    {"embedding, documents", {11 * LT_C, LT_T* LT_C, 0}, 15 * LT_C, 3, 1, formula_embedding,
        program_embedding},
    {"cross-entropy", {LT_R * LT_VP, 0, 0}, 1, 0, 2, formula_crossentropy, program_crossentropy},
    {"attention head", {LT_N * LT_HS, LT_N* LT_HS, LT_N* LT_HS}, LT_N* LT_HS, 7, 1.5, formula_head,
        program_head},
};

// sum of dout * formula(in + h * direction of one input)
static double layer_loss(const LayerTest* t, double* const* in, int input, const double* direction, double h,
    const real* dout, double* out) {
    double sum = 0;
    for (int64_t i = 0; i < t->inputs[input]; i++) in[input][i] += h * direction[i];
    t->formula(out, in);
    for (int64_t i = 0; i < t->inputs[input]; i++) in[input][i] -= h * direction[i];
    for (int64_t i = 0; i < t->outputs; i++) sum += (double)dout[i] * out[i];
    return sum;
}

// The derivative along a direction by differences of fourth order: exact to about h^4 = 1e-12.
static double layer_slope(const LayerTest* t, double* const* in, int input, const double* direction,
    const real* dout, double* out) {
    double h = 1e-3,
           near = layer_loss(t, in, input, direction, h, dout, out) -
        layer_loss(t, in, input, direction, -h, dout, out);
    double far = layer_loss(t, in, input, direction, 2 * h, dout, out) -
        layer_loss(t, in, input, direction, -2 * h, dout, out);
    return (8 * near - far) / (12 * h);
}

// A layer's numbers: inputs in the program's precision and in double, what its backward made, and room for
// outputs.
typedef struct {
    real *in[LAYER_INPUTS], *gradients[LAYER_INPUTS];
    double* in_double[LAYER_INPUTS];
    real *out, *dout;
    double* expected;
    double worst_slope;
    int slopes;
} LayerTrial;

static void layer_begin(LayerTrial* r, const LayerTest* t) {
    memset(r, 0, sizeof *r);
    r->out = reals(t->outputs), r->dout = reals(t->outputs);
    r->expected = doubles(t->outputs);
    noise_fill(r->dout, t->outputs, 40, 1);
    for (int i = 0; i < LAYER_INPUTS; i++) {
        r->in[i] = reals(t->inputs[i]), r->gradients[i] = reals(t->inputs[i]);
        r->in_double[i] = doubles(t->inputs[i]);
        noise_fill(r->in[i], t->inputs[i], (uint64_t)(41 + i), t->spread);
        for (int64_t j = 0; j < t->inputs[i]; j++) {
            r->in_double[i][j] = (double)r->in[i][j];
            r->gradients[i][j] = t->accumulates >> i & 1 ? 1 : NAN;
        }
    }
}
static void layer_end(LayerTrial* r) {
    for (int i = 0; i < LAYER_INPUTS; i++) {
        free(r->in[i]);
        free(r->gradients[i]);
        free(r->in_double[i]);
    }
    free(r->out);
    free(r->dout);
    free(r->expected);
}

// The gradient of input i along six random directions and six single numbers. The error of a derivative is
// taken relative to the gradient's norm (along a random direction of unit normals) or its largest element
// (of one input).
static void layer_slopes(LayerTrial* r, const LayerTest* t, int i) {
    const int64_t n = t->inputs[i];
    real* gradient = r->gradients[i];
    double norm = 0, largest = 0;
    double* direction = doubles(n);
    for (int64_t j = 0; j < n; j++) {
        gradient[j] -= (real)(t->accumulates >> i & 1);
        norm += (double)gradient[j] * (double)gradient[j];
        largest = worst(largest, fabs((double)gradient[j]));
    }
    for (int k = 0; k < 12; k++, r->slopes++) {
        int single = k >= 6;
        double found = 0;
        for (int64_t j = 0; j < n; j++) direction[j] = single ? 0 : noise((uint64_t)(50 + k), j);
        if (single) direction[dice(51, (uint64_t)(k * 10 + i), (uint64_t)n)] = 1;
        for (int64_t j = 0; j < n; j++) found += (double)gradient[j] * direction[j];
        double slope = layer_slope(t, r->in_double, i, direction, r->dout, r->expected);
        r->worst_slope = worst(r->worst_slope, fabs(found - slope) / (single ? largest : sqrt(norm)));
    }
    free(direction);
}

// Forward: sums of up to 150 terms and one exponential: 30 EPS. Backward: a chain of four of those: 100 EPS
// in float; in double 1e-8 is what the differences can show (the contract asks for 1e-6).
static void layer_check(const LayerTest* t) {
    LayerTrial r;
    double limit = IS_DOUBLE ? 1e-8 : 100 * EPS;
    layer_begin(&r, t);
    t->program(r.out, r.gradients, r.in, r.dout);
    t->formula(r.expected, r.in_double);
    double forward = distance(r.out, r.expected, t->outputs);
    for (int i = 0; i < LAYER_INPUTS && t->inputs[i] > 0; i++) layer_slopes(&r, t, i);
    check(forward <= 30 * EPS, "layers: forward is the formula", "%s: error %.3g, at most %.3g", t->name,
        forward, 30 * EPS);
    check(r.worst_slope <= limit, "layers: backward is the formula's slope by differences",
        "%s: %d derivatives, largest error %.3g, at most %.3g", t->name, r.slopes, r.worst_slope, limit);
    layer_end(&r);
}

// A product C = or += A B + bias of random sizes, on both sides of every block of the kernel, in every
// layout that the layers use.
typedef struct {
    int64_t M, N, K;
    int64_t c_row;            // N and a gap that nothing is written to
    int a_turned, b_turned;   // (K, M), (N, K)
    int accumulate, biased;
    real *a, *b, *bias, *c;
} GemmCase;

static GemmCase gemm_case(int i) {
    static const int64_t rows[] = {1, 3, 4, 5, MR - 1, MR, MR + 1, MC - 1, MC, MC + 1, 2 * MC + 5},
                         columns[] = {1, NR - 1, NR, NR + 1, NC / 2 - 1, NC / 2, NC - 1, NC, NC + 1,
                             2 * NC + NR + 3},
                         depths[] = {1, 2, 17, KC - 1, KC, KC + 1, 2 * KC + 9};
    uint64_t k = (uint64_t)i * 8;
    GemmCase g;
    g.M = rows[dice(80, k, sizeof rows / sizeof rows[0])];
    g.N = columns[dice(80, k + 1, sizeof columns / sizeof columns[0])];
    g.K = depths[dice(80, k + 2, sizeof depths / sizeof depths[0])];
    g.c_row = g.N + 3;
    g.a_turned = (int)dice(80, k + 3, 2), g.b_turned = (int)dice(80, k + 4, 2);
    g.accumulate = (int)dice(80, k + 5, 2);
    g.biased = !g.accumulate && dice(80, k + 6, 2);
    g.a = reals(g.M * g.K), g.b = reals(g.K * g.N);
    g.bias = reals(g.N), g.c = reals(g.M * g.c_row);
    noise_fill(g.a, g.M * g.K, 81, 1);
    noise_fill(g.b, g.K * g.N, 82, 1);
    noise_fill(g.bias, g.N, 83, 1);
    noise_fill(g.c, g.M * g.c_row, 84, 1);
    return g;
}

static double* gemm_expected(const GemmCase* g) {   // (M, N)
    double* expected = doubles(g->M * g->N);
    for (int64_t x = 0; x < g->M; x++)
        for (int64_t y = 0; y < g->N; y++) {
            double sum = g->accumulate ? (double)g->c[x * g->c_row + y] : g->biased ? (double)g->bias[y] : 0;
            for (int64_t z = 0; z < g->K; z++)
                sum += (double)g->a[g->a_turned ? z * g->M + x : x * g->K + z] *
                    (double)g->b[g->b_turned ? y * g->K + z : z * g->N + y];
            expected[x * g->N + y] = sum;
        }
    return expected;
}

static void gemm_run(const GemmCase* g, real* to, int threads) {
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
    (void)threads;
    gemm(to, g->c_row, g->M, g->N, g->K, g->a_turned ? transposed(g->a, g->M) : by_rows(g->a, g->K),
        g->b_turned ? transposed(g->b, g->K) : by_rows(g->b, g->N), g->biased ? g->bias : NULL, g->accumulate,
        layer_scratch());
}

// The error of a case over sqrt(K); what differs in a bit with 2 and 3 threads, and what wrote into the gap.
static double gemm_error(int i, int* unequal, int* outside) {
    GemmCase g = gemm_case(i);
    const size_t bytes = (size_t)(g.M * g.c_row) * sizeof(real);
    double* expected = gemm_expected(&g);
    real *again = reals(g.M * g.c_row), first_gap = g.c[g.N];
    memcpy(again, g.c, bytes);
    gemm_run(&g, g.c, 1);
    for (int threads = 2; threads <= 3 && !(threads == 3 && g.accumulate);
         threads++) {   // it holds the sum then
        gemm_run(&g, again, threads);
        *unequal += memcmp(g.c, again, bytes) != 0;
    }
    *outside += g.c[g.N] != first_gap;
    for (int64_t x = 0; x < g.M; x++) memmove(g.c + x * g.N, g.c + x * g.c_row, (size_t)g.N * sizeof(real));
    double error = distance(g.c, expected, g.M * g.N) / sqrt((double)g.K);
    if (!(error <= 2 * EPS)) printf("     %d x %d x %d: %.3g\n", (int)g.M, (int)g.N, (int)g.K, error);
    free(g.a);
    free(g.b);
    free(g.bias);
    free(g.c);
    free(again);
    free(expected);
    return error;
}

// A sum of K products has an error of about sqrt(K) EPS / 3.
static void layers_gemm(void) {
    int cases = quick ? 30 : 150, wrong = 0;
    int unequal = 0, outside = 0;
    double most = 0;
    for (int i = 0; i < cases; i++) {
        double error = gemm_error(i, &unequal, &outside);
        wrong += !(error <= 2 * EPS);
        most = worst(most, error);
    }
    check(wrong == 0 && outside == 0, "layers: matrix products are right at every edge",
        "%d shapes: largest error / sqrt(K) %.3g, at most %.3g; %d wrote outside", cases, most, 2 * EPS,
        outside);
    check(unequal == 0, "layers: matrix products have the same bits for any number of threads",
        "%d of %d shapes differ in a bit between 1, 2 and 3 threads", unequal, cases);
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
}

static void layers_exp(void) {
    const double limit = IS_DOUBLE ? 2 * EPS : 2.5e-7;   // as its comment says
    double most = 0, at = 0;
    int64_t n = quick ? 100000 : 2000000;
    for (int64_t i = 0; i <= n; i++) {
        real x = (real)(-87.0 + 175.0 * (double)i / (double)n);
        double exact = exp((double)x), error = fabs((double)exp_real(x) - exact) / exact;
        if (!(error <= most)) at = (double)x;
        most = worst(most, error);
    }
    check(most <= limit, "layers: exp is as accurate as its comment says",
        "%lld places from -87 to 88: largest relative error %.3g (at %g), at most %.3g", (long long)n, most,
        at, limit);
    volatile real not_a_number = (real)NAN;   // must come out again, or a loss could look finite that is not
    check(isnan(exp_real(not_a_number)) && isnan(tanh_real(not_a_number)),
        "layers: exp and tanh of NaN are NaN", "NaN");
    check(exp_real(0) == 1 && exp_real(-1000) >= 0 && exp_real(-1000) < (real)1e-37 && tanh_real(40) == 1 &&
            tanh_real(-40) == -1,
        "layers: exp and tanh reach their ends", "e^0 %g, e^-1000 %.3g, tanh(40) %g", (double)exp_real(0),
        (double)exp_real(-1000), (double)tanh_real(40));
}

static void test_layers(void) {
#ifdef _OPENMP
    omp_set_num_threads(2);
#endif
    for (size_t i = 0; i < sizeof LAYER_TESTS / sizeof LAYER_TESTS[0]; i++) layer_check(&LAYER_TESTS[i]);
    layers_gemm();
    layers_exp();
}

// ===== model ====================================================================================
// The whole model's gradient, in double. Held: along a random direction of every parameter the gradient is
// the slope of the loss, for several ranks, with documents and centring. Layers that are right one by one
// can be put together wrongly, a residual forgotten or a gradient added twice; this would show in no other
// group but `fixture`.

// The first n numbers of a parameter of unit u, as far as the rank holds them (--zero 0 to 2).
static void weights_put(Rank* r, int u, int id, const real* values, int64_t n) {
    Held h = held(r, STATE_WEIGHTS, u);
    if (holding(r->layout, STATE_WEIGHTS, u) == HELD_OWN) values += h.begin, n = h.n;
    memcpy(weight(r, u, id), values, (size_t)n * sizeof(real));
}

// Two sequences of 24 tokens with documents and positions without a label.
static void model_batch(gpt2_sp* g) {
    double x[48], y[48], doc_start[48];
    for (int i = 0; i < 48; i++) {
        int t = i % 24, start = i < 24 ? (t < 9 ? 0 : t < 16 ? 9 : 16) : t < 8 ? 0 : 8;
        x[i] = (double)dice(90, (uint64_t)i, 67);
        y[i] = i % 7 == 2 ? -1 : (double)dice(91, (uint64_t)i, 67);
        doc_start[i] = start;
    }
    fixture_batch(g, x, y, g->mesh.doc_mask ? doc_start : NULL);
}

// The slope of the loss as n numbers of a parameter move along a direction of their own, by differences of
// fourth order.
static double model_slope(
    gpt2_sp* g, int u, int id, const real* weights, real* moved, int64_t n, uint64_t stream) {
    static const double steps[4] = {-2, -1, 1, 2};
    double losses[4], h = 1e-4;
    for (int k = 0; k < 4; k++) {
        for (int64_t j = 0; j < n; j++)
            moved[j] = (real)((double)weights[j] + h * steps[k] * noise(stream, j));
        for (int w = 0; w < g->mesh.world; w++) weights_put(&g->ranks[w], u, id, moved, n);
        losses[k] = trainer_loss(g);
    }
    for (int w = 0; w < g->mesh.world; w++) weights_put(&g->ranks[w], u, id, weights, n);
    return (8 * (losses[2] - losses[1]) - (losses[3] - losses[0])) / (12 * h);
}

// The whole model's loss along random directions of every parameter, against its gradient.
static void model_differences(const char* more) {
    gpt2_sp* g = fixture_trainer(more);
    double most = 0;
    int slopes = 0;
    char where[64] = "";
    if (!g) return;
    model_batch(g);
    real *gradient = reals(g->layout.elements), *weights = reals(g->layout.elements);
    real* moved = reals(g->layout.elements);
    int status = ranks_run(g, rank_gradients, NULL);
    collect(g, STATE_GRADIENTS, gradient);
    collect(g, STATE_WEIGHTS, weights);
    for (int u = 0; status == 0 && u < g->layout.count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(&g->mesh.shape, id);
            if (p.unit != g->layout.units[u].kind) continue;
            const int64_t at = g->layout.units[u].offset + g->layout.within[id];
            const int64_t n = id == P_wte ? 67 * 32 : parameter_elements(&p);
            const uint64_t stream = (uint64_t)(1000 + u * 20 + id);
            double found = 0, norm = 0;
            for (int64_t j = at; j < at + n; j++) {
                found += (double)gradient[j] * noise(stream, j - at);
                norm += (double)gradient[j] * (double)gradient[j];
            }
            double error = fabs(model_slope(g, u, id, weights + at, moved, n, stream) - found) / sqrt(norm);
            if (!(error <= most)) snprintf(where, sizeof where, "unit %d, %s", u, p.hf);
            most = worst(most, error);
            slopes++;
        }
    check(status == 0 && most < 1e-6, "model: the gradient is the slope of the loss by differences",
        "%s: %d parameters, largest error %.3g (%s), below 1e-06", more, slopes, most, where);
    free(gradient);
    free(weights);
    free(moved);
    gpt2_sp_destroy(g);
}

static void test_model(void) {
    if (!IS_DOUBLE) {
        skip("model: the gradient is the slope of the loss by differences",
            "differences of losses need double: make test REAL=double (float is held by the groups fixture "
            "and layers)");
        return;
    }
    static const char* const shapes[] = {"sp=3 center=1", "sp=3 center=0", "sp=3 center=1 doc-mask=1",
        "sp=3 center=0 doc-mask=1", "sp=2 doc-mask=1 schedule=zigzag recompute=sqrt",
        "sp=4 schedule=ring recompute=none logits-chunk=7", "sp=3 center=1 n-positions=40 pos-shift=1"};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) model_differences(shapes[i]);
}

// ===== memory ===================================================================================
// What a run takes. Held: ranks allocate what `plan` says and next to nothing beside it, a step asks for no
// more, ZeRO and recomputation leave what their formulas say, and the longest context that is said to fit
// does, one token more does not. Who plans a long context on a machine has no other figure: if it is too low
// the run is killed in its first hour, if it is too high they rent a larger machine.

// A piece of an arena.
static int64_t bytes_of(int64_t elements) { return round_up(elements * (int64_t)sizeof(real), 64); }

// What the ranks' arenas hold beside what was planned for them; *planned: bytes of all.
static size_t arenas_differ(const gpt2_sp* g, size_t* planned) {
    size_t differ = 0;
    *planned = 0;
    for (int w = 0; w < g->mesh.world; w++) {
        const Arena* arena = &g->ranks[w].arena;
        Arena plan = rank_plan(&g->mesh, &g->layout, w);
        size_t sum = 0;
        for (int k = 0; k < MEMORY_GROUP_COUNT; k++) {
            sum += plan.group[k];
            differ += plan.group[k] != arena->group[k];
        }
        differ += sum != plan.used || plan.used != arena->used || malloc_usable_size(arena->base) < plan.used;
        *planned += plan.used;
    }
    return differ + (*planned != mesh_bytes(&g->mesh, &g->layout));
}

// What is allocated is what was planned; what is allocated beside it (tables, data, book-keeping) is small,
// and a step asks for nothing more. Slack: a schedule's table keeps room for 1024 slots of a rank, 2 x 16
// KiB; each loader's block.
static void memory_planned(const char* shape) {
    gpt2_sp_options o = run_options(shape);
    char error[GPT2_SP_TEXT];
    gpt2_sp_stats stats;
    size_t before = memory_now(), planned;
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    if (!g) {
        check(0, "memory: the trainer is made", "%s", error);
        return;
    }
    const size_t live = memory_now() - before, slack = (size_t)g->mesh.sp * 80 * 1024 + 512 * 1024;
    size_t differ = arenas_differ(g, &planned);
    check(differ == 0, "memory: arenas are as planned", "%s: %d ranks, %zu bytes", shape, g->mesh.world,
        planned);
    check(live >= planned && live - planned <= slack, "memory: next to nothing is taken beside the plan",
        "%s: %zu bytes more than the plan's %zu, at most %zu", shape, live - planned, planned, slack);
    memory_mark();
    int status = 0;
    for (int step = 0; step < 3 && status == 0; step++) status = step_of(g, &stats);
    size_t peak = __atomic_load_n(&memory_peak, __ATOMIC_RELAXED) - before;   // since the mark
    check(status == 0 && peak <= live + 64 * 1024, "memory: steps need no more",
        "%s: peak %zu bytes above what was there before them, at most %d", shape,
        peak > live ? peak - live : (size_t)0, 64 * 1024);
    gpt2_sp_destroy(g);
    check(memory_now() == before, "memory: all of it is given back", "%lld bytes left",
        (long long)(memory_now() - before));
}

// Numbers of all units: whole, a rank's slices of them, and the largest unit that is ever brought together.
typedef struct {
    int64_t whole, shard, largest;
} StateSize;

// 8 ranks; counts of parameters are written out here: 12 C^2 + 13 C a layer. own: each keeps its positions.
static StateSize state_size(int T, int own) {
    const int64_t C = 96, L = 6;
    const int64_t V = 384, W = 8;
    const int64_t units[4] = {V * C, 12 * C * C + 13 * C, 2 * C, T * C};
    StateSize s = {0, 0, 0};
    for (int i = 0; i < 4; i++) {
        const int64_t slice = round_up(ceil_div(units[i], W), 16), copies = i == 1 ? L : 1;
        const int alone = i == 3 && own;
        s.whole += copies * slice * (alone ? 1 : W);
        s.shard += copies * slice;
        if (!alone) s.largest = max_i64(s.largest, slice * W);
    }
    return s;
}

// State per rank by ZeRO stage: all of it, or a slice of W of each unit (padded to 16 numbers), and where
// gradients or parameters are sharded one whole unit at a time. With own positions, the rank's rows of them
// in every stage.
static void memory_zero(int T, const char* split, int own) {
    const StateSize s = state_size(T, own);
    const int64_t whole = bytes_of(s.whole), sharded = bytes_of(s.shard) + bytes_of(s.largest);
    for (int zero = 0; zero <= 3; zero++) {
        char text[160];
        snprintf(text, sizeof text, "layers=6 heads=4 channels=96 seq-len=%d %s zero=%d threads=1", T, split,
            zero);
        gpt2_sp_options o = options_of(text);
        gpt2_sp* g = bare_trainer(&o, 257);
        const int64_t weights = zero >= 3 ? sharded : whole, gradients = zero >= 2 ? sharded : whole;
        const int64_t optimizer = 2 * (zero >= 1 ? bytes_of(s.shard) : whole);
        int wrong = 0;
        for (int w = 0; g && w < g->mesh.world; w++) {
            const size_t* group = g->ranks[w].arena.group;
            wrong += (int64_t)group[MEMORY_WEIGHTS] != weights ||
                (int64_t)group[MEMORY_GRADIENTS] != gradients ||
                (int64_t)group[MEMORY_OPTIMIZER] != optimizer;
        }
        check(g && wrong == 0, "memory: state takes ZeRO's share",
            "%s, zero %d of 8 ranks: weights %lld, gradients %lld, optimizer %lld KiB a rank (%.1f %% of "
            "zero 0), "
            "%d ranks unlike the formula",
            split, zero, (long long)weights / 1024, (long long)gradients / 1024, (long long)optimizer / 1024,
            100.0 * (double)(weights + gradients + optimizer) / (4.0 * (double)whole), wrong);
        gpt2_sp_destroy(g);
    }
}

// Kept activations by mode, of 9 layers, 4 heads, 64 channels and 2 x 61 tokens; numbers per token and layer
// written out: all; without the norms and GELU; the layer's input, attention's output and LSE; the input;
// every third input.
static int64_t kept_bytes(int mode) {
    const int64_t C = 64, NH = 4;
    const int64_t L = 9, R = 2 * 61;
    const int64_t row = bytes_of(L * R * C), stats = bytes_of(L * R * NH);
    const int64_t fourfold = bytes_of(L * R * 4 * C);
    const int64_t gelu = 4 * row + bytes_of(L * R * 2 * C) + fourfold + stats;   // x q atty x2, kv, fch, lse
    switch (mode) {
    case GPT2_SP_NONE: return gelu + 2 * row + 2 * bytes_of(L * R) + fourfold;
    case GPT2_SP_GELU: return gelu;
    case GPT2_SP_ATTN: return 2 * row + stats;
    case GPT2_SP_LAYER: return row;
    default: return bytes_of(3 * R * C);
    }
}
static void memory_recompute(void) {
    int64_t last = INT64_MAX;
    for (int mode = 0; mode < GPT2_SP_RECOMPUTES; mode++) {
        gpt2_sp_options o = options_of("layers=9 heads=4 channels=64 seq-len=61 batch-size=2 threads=1");
        o.recompute = mode;
        gpt2_sp* g = bare_trainer(&o, 257);
        int64_t found = g ? (int64_t)g->ranks[0].arena.group[MEMORY_KEPT] : -1, expected = kept_bytes(mode);
        check(found == expected && found < last, "memory: kept activations are those of the formula",
            "%s: %lld bytes, by the formula %lld", recompute_name(mode), (long long)found,
            (long long)expected);
        last = found;
        gpt2_sp_destroy(g);
    }
}

// How often layers and their attention ran: `attn` never runs attention again.
static void memory_counts(void) {
    for (int mode = 0; mode < GPT2_SP_RECOMPUTES; mode++) {
        char text[128];
        const int layers = 5, steps = 2;
        const int passes = 3;
        snprintf(text, sizeof text, "batch-size=2 sp=2 layers=%d grad-accum=%d recompute=%s", layers, passes,
            recompute_name(mode));
        Run run = run_steps(text, steps);
        const int64_t once = layers * steps * passes, layer = mode >= GPT2_SP_ATTN ? 2 * once : once;
        const int64_t attention = mode >= GPT2_SP_LAYER ? 2 * once : once;
        check(run.layer_forwards == layer && run.attention_forwards == attention,
            "memory: layers run again only where the mode says so",
            "%s: layers %lld of %lld, attention %lld of %lld", recompute_name(mode),
            (long long)run.layer_forwards, (long long)layer, (long long)run.attention_forwards,
            (long long)attention);
        free(run.weights);
    }
}

// Bytes of the fullest rank at a length.
static size_t memory_at(gpt2_sp_options o, int64_t T) {
    Schedule schedules[2];
    Mesh mesh;
    Layout layout;
    Error e;
    size_t most = 0;
    memset(schedules, 0, sizeof schedules);
    memset(&layout, 0, sizeof layout);
    o.seq_len = T;
    if (mesh_init(&mesh, schedules, &o, 257, 1, &CPU_DEVICE, &e) == 0 && layout_init(&layout, &mesh, &e) == 0)
        most = fullest_rank(&mesh, &layout).used;
    free(layout.units);
    schedule_free(&schedules[0]);
    schedule_free(&schedules[1]);
    return most;
}

// The longest context that is said to fit does, and one token more does not.
static void memory_longest(void) {
    static const char* const shapes[] = {"layers=2 heads=2 channels=64", "layers=2 heads=2 channels=64 sp=4",
        "layers=2 heads=2 channels=64 sp=5 dp=2 zero=3 schedule=zigzag recompute=layer"};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        gpt2_sp_options o = options_of(shapes[i]);
        size_t room = (size_t)64 << 20;
        o.threads = 1;
        int64_t T = longest_context(&o, 257, 1, &CPU_DEVICE, room);
        // the next length that the ranks share evenly, which may need less than T + 1
        int64_t even = T - T % o.sp + o.sp;
        check(T > 0 && memory_at(o, T) <= room && memory_at(o, T + 1) > room && memory_at(o, even) > room,
            "memory: the longest context fits, one token more does not",
            "%s: %lld tokens need %zu bytes of %zu, one more %zu, %lld %zu", shapes[i], (long long)T,
            memory_at(o, T), room, memory_at(o, T + 1), (long long)even, memory_at(o, even));
    }
}

static void test_memory(void) {
    static const char* const shapes[] = {"batch-size=2 layers=3 channels=64", "batch-size=1 dp=2 sp=2 zero=1",
        "batch-size=2 sp=3 zero=2 recompute=sqrt layers=5",
        "batch-size=1 sp=4 zero=3 schedule=zigzag recompute=none grad-accum=3",
        "batch-size=1 dp=2 sp=3 zero=3 doc-mask=1 schedule=dist recompute=layer",
        "batch-size=3 sp=4 schedule=ulysses recompute=gelu", "batch-size=1 sp=5 schedule=allgather",
        "batch-size=1 sp=2 seq-len=60", "batch-size=2 sp=3 zero=1 seq-len=60",
        "batch-size=1 sp=4 zero=3 seq-len=60"};
    run_data();
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) memory_planned(shapes[i]);
    memory_zero(64, "dp=2 sp=4", 0);
    memory_zero(2048, "sp=8", 1);
    memory_zero(2048, "sp=8 doc-mask=1", 0);
    memory_zero(2052, "sp=8", 0);
    memory_recompute();
    memory_counts();
    memory_longest();
}

// ===== loader ===================================================================================
// From shards to what each rank reads. Held: the ranks' slices put together are the stream's tokens, labels
// and documents, for every split; an epoch sees every token once and another epoch in another order; data
// that cannot serve is refused. A label that is off by one, or a shard that is never read, trains without
// complaint and shows in no loss.

static const DataHow DATA_PLAIN = {0, 0, 0}, DATA_DOCUMENTS = {0, 0, 1};

static void loader_permutation(void) {
    int wrong = 0, fixed = 0;
    int sizes = 0;
    unsigned char* seen = (unsigned char*)need(70000, 1);
    for (uint64_t n = 1; n <= 70000; n = n < 300 ? n + 1 : n * 3 / 2 + 1, sizes++) {
        memset(seen, 0, 70000);
        uint64_t same = 0;
        for (uint64_t i = 0; i < n; i++) {
            uint64_t to = permute(i, n, 3, n % 5);
            if (to >= n || seen[to]++) wrong++;
            same += to == permute(i, n, 3, n % 5 + 1);
        }
        if (n > 200 && same > n / 4) fixed++;   // another epoch is another order
    }
    check(wrong == 0 && fixed == 0, "loader: an epoch's order is a permutation",
        "%d sizes to 70000: %d places hit twice or outside, %d sizes where two epochs agree", sizes, wrong,
        fixed);
    free(seen);
}

// Three shards one after the other: 500, 700 and 333 tokens.
enum { STREAM = 1533 };
static int32_t* loader_dataset(Dataset* d, Error* e) {
    static const int lengths[3] = {500, 700, 333};
    int32_t* stream = (int32_t*)need(STREAM, sizeof *stream);
    char list[GPT2_SP_TEXT] = "";
    for (int i = 0, at = 0; i < 3; at += lengths[i], i++) {
        char name[32];
        snprintf(name, sizeof name, "part%d.tok", i);
        const char* path = scratch(name);
        int32_t* tokens = stream_make((uint64_t)(20 + i), lengths[i], 29);
        memcpy(stream + at, tokens, (size_t)lengths[i] * sizeof *tokens);
        stream_write(path, tokens, lengths[i]);
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? "," : "", path);
        free(tokens);
    }
    if (dataset_open(d, list, &DATA_DOCUMENTS, e) != 0) check(0, "loader: the shards open", "%s", e->text);
    return stream;
}

typedef struct {
    int dp, sp, kind, B, passes;
} LoaderShape;
enum { LOADER_T = 37, LOADER_SAMPLES = 12, LOADER_RANKS = 16 };
typedef struct {
    int32_t tokens[LOADER_SAMPLES * LOADER_T], labels[LOADER_SAMPLES * LOADER_T],
        doc_start[LOADER_SAMPLES * LOADER_T];
    int64_t valid;
    int status;
} Sequences;

// A loader of that shape with the ranks' memory; the segments are of each sequence-parallel rank.
typedef struct {
    Loader loader;
    RankBatch ranks[LOADER_RANKS];
    Segments segments[LOADER_RANKS];
} LoaderTrial;

static void loader_trial_begin(LoaderTrial* t, Dataset* d, LoaderShape shape, int doc_mask, uint64_t limit) {
    Loader* l = &t->loader;
    const size_t n = (size_t)(shape.passes * shape.B * LOADER_T);
    memset(t, 0, sizeof *t);
    l->data = d;
    l->T = LOADER_T, l->B = shape.B;
    l->passes = shape.passes;
    l->dp = shape.dp, l->sp = shape.sp;
    l->local_ranks = shape.dp * shape.sp;
    l->doc_mask = doc_mask;
    l->shuffled = 1, l->seed = 9;
    l->limit = limit;
    l->segments = t->segments;
    l->batch[0].ranks = l->batch[1].ranks = t->ranks;
    for (int r = 0; r < shape.sp; r++) t->segments[r] = rank_segments(shape.kind, shape.sp, LOADER_T, r);
    for (int w = 0; w < l->local_ranks; w++) {
        t->ranks[w].tokens = (int32_t*)need(n, 4);
        t->ranks[w].labels = (int32_t*)need(n, 4);
        t->ranks[w].doc_start = (int32_t*)need(n, 4);
    }
}
static void loader_trial_end(LoaderTrial* t) {
    for (int w = 0; w < t->loader.local_ranks; w++) {
        free(t->ranks[w].tokens);
        free(t->ranks[w].labels);
        free(t->ranks[w].doc_start);
    }
}

// Row `row` of the ranks of a replica, put together as sequence `sequence`.
static void loader_collect(const LoaderTrial* t, int replica, int64_t row, int64_t sequence, Sequences* out) {
    const Loader* l = &t->loader;
    const int64_t to = sequence * LOADER_T;
    for (int r = 0; r < l->sp; r++) {
        const RankBatch* rank = &t->ranks[replica * l->sp + r];
        const Segments* seg = &t->segments[r];
        int64_t from = row * seg->total;
        for (int s = 0; s < seg->count; from += seg->rows[s], s++) {
            const size_t bytes = (size_t)seg->rows[s] * 4;
            memcpy(out->tokens + to + seg->begin[s], rank->tokens + from, bytes);
            memcpy(out->labels + to + seg->begin[s], rank->labels + from, bytes);
        }
        if (l->doc_mask) memcpy(out->doc_start + to, rank->doc_start + row * LOADER_T, LOADER_T * 4);
    }
}

// The samples `first` .. of one step, put together from all ranks' slices; read directly or by the loader's
// threads.
static Sequences loader_sequences(
    Dataset* d, LoaderShape shape, uint64_t first, int doc_mask, int thread, uint64_t limit, Error* e) {
    static LoaderTrial t;
    Loader* l = &t.loader;
    Sequences out;
    memset(&out, 0, sizeof out);
    loader_trial_begin(&t, d, shape, doc_mask, limit);
    l->readers = thread ? READERS : 1;
    if (thread) loader_request(l, first, 0);
    else out.status = loader_fill(l, &l->batch[0], first, e);
    if (thread && !loader_take(l, e)) out.status = -1;
    out.valid = l->batch[0].valid;
    for (int pass = 0; pass < shape.passes; pass++)
        for (int replica = 0; replica < shape.dp; replica++)
            for (int b = 0; b < shape.B; b++)
                loader_collect(
                    &t, replica, pass * shape.B + b, (pass * shape.dp + replica) * shape.B + b, &out);
    loader_trial_end(&t);
    return out;
}

// The same from the stream itself, without any of the loader's code but the sample's position.
static Sequences loader_expected(
    const Dataset* d, const int32_t* stream, uint64_t first, int doc_mask, uint64_t limit) {
    Sequences out;
    memset(&out, 0, sizeof out);
    for (uint64_t i = 0; i < LOADER_SAMPLES; i++) {
        int64_t position = (int64_t)sample_window(d, LOADER_T, first + i, 1, 9).position, start = 0;
        for (int64_t t = 0; t < LOADER_T; t++) {
            int64_t at = (int64_t)i * LOADER_T + t;
            if (t > 0 && stream[position + t - 1] == 256) start = t;
            out.tokens[at] = stream[position + t];
            out.labels[at] = (doc_mask && stream[position + t] == 256) || first + i >= limit
                ? -1
                : stream[position + t + 1];
            out.doc_start[at] = doc_mask ? (int32_t)start : 0;
            out.valid += out.labels[at] >= 0;
        }
    }
    return out;
}

static void loader_shapes(Dataset* d, const int32_t* stream) {
    static const LoaderShape shapes[] = {{1, 1, GPT2_SP_DIST, 12, 1}, {1, 1, GPT2_SP_DIST, 1, 12},
        {2, 1, GPT2_SP_DIST, 3, 2}, {1, 2, GPT2_SP_DIST, 4, 3}, {2, 3, GPT2_SP_RING, 2, 3},
        {3, 4, GPT2_SP_ZIGZAG, 2, 2}, {1, 7, GPT2_SP_ZIGZAG, 12, 1}, {4, 2, GPT2_SP_ALLGATHER, 1, 3},
        {1, 16, GPT2_SP_DIST, 6, 2}};
    int equal = 0, runs = 0;
    Error e = {0, {0}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int doc_mask = 0; doc_mask < 2; doc_mask++)
            for (uint64_t first = 0; first < 120; first += 41) {   // epochs have 42 windows
                uint64_t limit = first == 41 ? 47 : UINT64_MAX;
                const int thread = (int)(first % 2);
                Sequences found = loader_sequences(d, shapes[i], first, doc_mask, thread, limit, &e);
                Sequences expected = loader_expected(d, stream, first, doc_mask, limit);
                equal += found.status == 0 && memcmp(&found, &expected, sizeof found) == 0;
                runs++;
            }
    check(equal == runs, "loader: tokens, labels and documents are the stream's",
        "%d of %d splits over dp, sp, batch and passes give the same sequences as the stream itself %s",
        equal, runs, e.text);
}

static void loader_epoch(Dataset* d) {
    uint64_t n = dataset_windows(d, LOADER_T);
    int unseen = 0, differ = 0;
    for (uint64_t epoch = 0; epoch < 3; epoch++) {
        unsigned char input[STREAM] = {0}, label[STREAM] = {0};
        for (uint64_t i = 0; i < n; i++) {
            uint64_t position = sample_window(d, LOADER_T, epoch * n + i, 1, 9).position;
            memset(input + position, 1, LOADER_T);
            memset(label + position + 1, 1, LOADER_T);
            differ += epoch > 0 && position != sample_window(d, LOADER_T, i, 1, 9).position;
        }
        for (int t = 0; t < STREAM; t++) unseen += (t < STREAM - 1 && !input[t]) + (t > 0 && !label[t]);
    }
    check(unseen == 0 && differ > 0, "loader: an epoch sees every token",
        "%llu windows of %d over %d tokens, 3 epochs: %d not seen; %d samples elsewhere than in the first "
        "epoch",
        (unsigned long long)n, LOADER_T, STREAM, unseen, differ);
    int outside = 0;
    for (uint64_t T = 1; T < STREAM; T += 13)
        for (uint64_t i = 0; i < dataset_windows(d, (int64_t)T); i++)
            outside += sample_window(d, (int64_t)T, i, 0, 0).position + T + 1 > STREAM;
    check(outside == 0, "loader: windows of any length stay inside", "%d outside, T from 1 to %d", outside,
        STREAM - 1);
}

// An evaluation of all windows, by every split: each token but the first is a label once, except where a
// document has ended and attention stays inside. The last window begins early, and nothing counts twice.
static void loader_evaluation(Dataset* d, const int32_t* stream) {
    static const LoaderShape shapes[] = {{1, 1, GPT2_SP_DIST, 6, 1}, {1, 3, GPT2_SP_RING, 6, 1},
        {2, 2, GPT2_SP_ZIGZAG, 3, 1}, {1, 7, GPT2_SP_ZIGZAG, 6, 1}};
    const uint64_t n = dataset_windows(d, LOADER_T);
    int wrong = 0, counted = 0, runs = 0;
    Error e = {0, {0}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int doc_mask = 0; doc_mask < 2; doc_mask++, runs++) {
            static LoaderTrial t;
            int times[STREAM] = {0};
            int64_t valid = 0;
            loader_trial_begin(&t, d, shapes[i], doc_mask, n);
            t.loader.shuffled = 0, t.loader.readers = 2;
            for (uint64_t first = 0; first < n; first += 6) {
                wrong += loader_fill(&t.loader, &t.loader.batch[0], first, &e) != 0;
                valid += t.loader.batch[0].valid;
                for (int s = 0; s < 6 && first + (uint64_t)s < n; s++) {
                    Sequences rows;
                    uint64_t position = sample_window(d, LOADER_T, first + (uint64_t)s, 0, 0).position;
                    loader_collect(&t, s / shapes[i].B, s % shapes[i].B, 0, &rows);
                    for (int at = 0; at < LOADER_T; at++)
                        if (rows.labels[at] >= 0) {
                            times[position + (uint64_t)at + 1]++;
                            wrong += rows.labels[at] != stream[position + (uint64_t)at + 1];
                        }
                }
            }
            for (int at = 1; at < STREAM; at++)
                wrong += times[at] != !(doc_mask && stream[at - 1] == 256), counted += times[at];
            for (int at = 1; at < STREAM; at++) valid -= times[at];
            wrong += valid != 0;
            wrong += dataset_labels(d, LOADER_T, doc_mask, INT64_MAX) != counted, counted = 0;
            loader_trial_end(&t);
        }
    check(wrong == 0, "loader: an evaluation counts every label once",
        "%llu windows of %d over %d tokens, the last %lld labels of which are new; %d splits, %d faults %s",
        (unsigned long long)n, LOADER_T, STREAM,
        (long long)(LOADER_T - sample_window(d, LOADER_T, n - 1, 0, 0).seen), runs, wrong, e.text);
}

// A shard of `count` tokens, all `fill` but the last, in the folder `name` of the tests' folder.
static void loader_shard(const char* path, int32_t fill, int count) {
    int32_t tokens[64];
    for (int i = 0; i < count; i++) tokens[i] = i == count - 1 ? 256 : fill;
    stream_write(path, tokens, count);
}

// The first token of each shard that a list opens, as text ("7 8 9"), or the error.
static void loader_list(const char* list, char* out, size_t size) {
    Dataset d;
    Error e = {0, {0}};
    size_t n = 0;
    int32_t token = 0;
    out[0] = 0;
    if (dataset_open(&d, list, &DATA_PLAIN, &e) != 0) {
        snprintf(out, size, "%s", e.text);
        return;
    }
    for (int i = 0; i < d.count && n < size; i++) {
        if (dataset_read(&d, d.cursors, d.first[i], 1, &token, &e) != 0) token = -1;
        n += (size_t)snprintf(out + n, size - n, i ? " %d" : "%d", token);
    }
    dataset_close(&d);
}

// What exists is a name, whatever its characters; what does not is a pattern. All lie in one folder, the
// current one while this runs.
static void loader_names(void) {
    static const char* const folders[] = {"books[1]", "books1", "x*y", "xZy", "back\\slash", "backslash",
        "a,b", "only[2]", "only2", "end\\", "Q?", "empty", "loop"};
    static const struct {
        const char *list, *want;
    } cases[] = {{"books[1]", "10"}, {"books[1]/s.tok", "10"}, {"books1", "11"}, {"books[12]", "11"},
        {"x*y", "12"}, {"x[*]y", "12"}, {"x[*Z]y", "12 13"}, {"back\\slash", "14"}, {"backsl*", "15"},
        {"back*", "14 15"}, {"bac\\kslash", "no token shard at bac\\kslash"}, {"a\\,b", "16"},
        {"a\\,b,xZy", "16 13"}, {"xZy,a\\,b/s.tok", "13 16"}, {"end\\\\,xZy", "19 13"},
        {"xZy,end\\", "13 19"}, {"end\\", "19"}, {"Q?", "20"}, {"books?", "11"}, {"*[[]*/s.tok", "10 17"},
        {"a,b", "no token shard at a (a comma that belongs to a name is written \\,)"},
        {"none[1]", "no token shard at none[1]"}, {"empty", "the folder has no .tok or .bin file"},
        {"gone", "gone: No such file or directory"}, {"self/x.tok", "Too many levels of symbolic links"}};
    char out[GPT2_SP_TEXT], path[64], home[1024];
    int ok = 0, count = (int)(sizeof cases / sizeof cases[0]);
    if (!getcwd(home, sizeof home) || mkdir(scratch("names"), 0700) != 0 || chdir(scratch("names")) != 0) {
        check(0, "loader: what exists is a name, what does not a pattern", "%s", strerror(errno));
        return;
    }
    for (int i = 0; i < (int)(sizeof folders / sizeof folders[0]); i++) {
        mkdir(folders[i], 0700);
        snprintf(path, sizeof path, "%s/s.tok", folders[i]);
        if (i < 11) loader_shard(path, 10 + i, 20);
    }
    int made = symlink("nowhere", "gone") == 0 && symlink("self", "self") == 0;
    for (int i = 0; i < count; i++) {
        loader_list(cases[i].list, out, sizeof out);
        int right = isdigit((unsigned char)cases[i].want[0]) ? strcmp(out, cases[i].want) == 0
                                                             : strstr(out, cases[i].want) != NULL;
        if (!right) printf("     %s: %s (expected: %s)\n", cases[i].list, out, cases[i].want);
        ok += right;
    }
    check(made && ok == count, "loader: what exists is a name, what does not a pattern", "%d of %d lists", ok,
        count);
    if (geteuid() != 0)
        skip("loader: a folder that cannot be read says so", "only root can become somebody else");
    else {
        const char* const lists[] = {"only2", "only*", "on*/*.tok"};
        ok = 0;
        chmod("only2", 0);
        chmod(".", 0755);
        if (seteuid(65534) != 0) ok = -1;
        for (int i = 0; i < 3; i++) {
            loader_list(lists[i], out, sizeof out);
            ok += strstr(out, "Permission denied") != NULL && strstr(out, "on") != NULL;
        }
        if (seteuid(0) != 0) ok = -1;
        chmod("only2", 0700);
        check(ok == 3, "loader: a folder that cannot be read says so", "%d of 3: %s", ok, out);
    }
    if (chdir(home) != 0) check(0, "loader: back from the folder of names", "%s", strerror(errno));
}

// Shards come in the order of their names' bytes, from a folder and from a pattern, whatever the locale of
// the program around; a folder's endings count in any case of letters.
static void loader_order(void) {
    static const char* const names[] = {
        "Z.tok", "_.tok", "a.tok", "b.TOK", "\xC3\xA4.tok", ".hidden.tok", "C.bin"};
    char folder[600], path[700], out[256], again[256], list[700];
    snprintf(folder, sizeof folder, "%s", scratch("order"));
    mkdir(folder, 0700);
    for (int i = 6; i >= 0; i--) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        loader_shard(path, 30 + i, 20);
    }
    snprintf(list, sizeof list, "%s/*.tok", folder);
    loader_list(folder, out, sizeof out);
    loader_list(list, again, sizeof again);
    check(strcmp(out, "30 31 32 33 34 36") == 0 && strcmp(again, "30 31 32 34") == 0,
        "loader: shards come in the order of their names' bytes", "%s; by a pattern %s", out, again);
    if (!comma_locale())
        skip("loader: another locale has the same order", "no German locale can be made here");
    else {
        double number = 0;
        json_span span = {"1.5e1", 5};
        int json = json_double(span, &number);
        check(
            json == 0 && number == 15, "json: a point is a point in another locale", "1.5e1 is %.3g", number);
        loader_list(folder, again, sizeof again);
        int same = strcmp(out, again) == 0;
        loader_list(list, again, sizeof again);
        check(same && strcmp(again, "30 31 32 34") == 0, "loader: another locale has the same order", "%s",
            again);
    }
    setlocale(LC_ALL, "C");
}

// The order of samples is the seed's, and the stream's fingerprint that of its shards in their order.
static void loader_identity(Dataset* d) {
    const uint64_t n = dataset_windows(d, LOADER_T);
    int same = 0;
    for (uint64_t i = 0; i < n; i++)
        same += sample_window(d, LOADER_T, i, 1, 9).position == sample_window(d, LOADER_T, i, 1, 10).position;
    check(same < (int)n / 3, "loader: another seed is another order", "%d of %d samples at the same place",
        same, (int)n);
    char a[600], b[600], list[1300];
    uint64_t prints[5];
    Dataset data;
    Error e = {0, {0}};
    snprintf(a, sizeof a, "%s", scratch("part0.tok"));
    snprintf(b, sizeof b, "%s", scratch("part1.tok"));
    const char* const forms[5][2] = {{a, b}, {b, a}, {a, a}, {a, b}, {a, ""}};
    for (int i = 0; i < 5; i++) {
        snprintf(list, sizeof list, "%s%s%s", forms[i][0], forms[i][1][0] ? "," : "", forms[i][1]);
        prints[i] = dataset_open(&data, list, &DATA_PLAIN, &e) == 0 ? data.fingerprint : 0;
        dataset_close(&data);
    }
    check(prints[0] == prints[3] && prints[0] != prints[1] && prints[0] != prints[2] &&
            prints[0] != prints[4] && prints[1] != prints[2],
        "loader: the fingerprint is that of the shards in their order", "a,b %016llx b,a %016llx %s",
        (unsigned long long)prints[0], (unsigned long long)prints[1], e.text);
}

// Reads that begin or end at a shard's border, or a token beside it, are the stream's.
static void loader_borders(Dataset* d, const int32_t* stream) {
    int wrong = 0, reads = 0;
    int32_t out[STREAM];
    Error e = {0, {0}};
    for (int s = 0; s <= 3; s++)
        for (int side = -1; side <= 1; side++)
            for (uint64_t count = 1; count < STREAM; count = count * 3 + 1) {
                int64_t at = (int64_t)d->first[s] + side;
                if (at < 0 || at + (int64_t)count > STREAM) continue;
                wrong += dataset_read(d, d->cursors, (uint64_t)at, count, out, &e) != 0 ||
                    memcmp(out, stream + at, count * sizeof *out) != 0;
                reads++;
            }
    for (int s = 0; s < 3; s++)
        wrong += dataset_shard_at(d, d->first[s]) != s || dataset_shard_at(d, d->first[s + 1] - 1) != s;
    for (int64_t t = 0; t < STREAM; t++) {   // the document that a token is of
        uint64_t begin, end;
        int64_t first = t, last = t;
        dataset_document(d, (uint64_t)t, &begin, &end);
        while (first > 0 && stream[first - 1] != 256) first--;
        while (stream[last] != 256) last++;
        wrong += (int64_t)begin != first || (int64_t)end != last + 1;
    }
    check(wrong == 0, "loader: tokens and documents at the shards' borders",
        "%d reads and %d documents: %d wrong %s", reads, STREAM, wrong, e.text);
}

// Shards of other tokenizers or vocabularies do not mix.
static void loader_mixed(void) {
    static const uint32_t kinds[][2] = {{TOK_BYTE, 257}, {TOK_GPT2, 50257}, {7, 1000}, {7, 1001}, {8, 1000}};
    char paths[5][600], list[1300];
    int told = 0, taken = 0, pairs = 0;
    for (uint32_t i = 0; i < 5; i++) {
        static const int lengths[] = {30};
        char name[32];
        int32_t tokens[64];
        uint64_t count;
        snprintf(name, sizeof name, "mixed%u.tok", i);
        snprintf(paths[i], sizeof paths[i], "%s", scratch(name));
        test_data_shard(paths[i], kinds[i][0], kinds[i][1], 16, lengths, 1, tokens, &count);
    }
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 5; j++, pairs++) {
            Dataset d;
            Error e = {0, {0}};
            snprintf(list, sizeof list, "%.600s,%.600s", paths[i], paths[j]);
            int status = dataset_open(&d, list, &DATA_PLAIN, &e);
            if (i == j) taken += status == 0;
            else
                told +=
                    status == -1 && strstr(e.text, paths[j]) && strstr(e.text, "but the shards before it");
            dataset_close(&d);
        }
    check(told == 20 && taken == 5, "loader: shards of other tokenizers or vocabularies do not mix",
        "%d refused, %d taken of %d pairs", told, taken, pairs);
    // GPT-2's tokens alone may be more in one shard than in another: the larger vocabulary counts, wherever
    static const uint16_t numbers[] = {5, 50303, 6, 7};
    const DataHow padded = {1, 50304, 0};
    uint32_t found[2] = {0, 0};
    snprintf(paths[0], sizeof paths[0], "%s", scratch("padded.bin"));
    test_data_write(paths[0], numbers, sizeof numbers);
    for (int last = 0; last < 2; last++) {
        Dataset d;
        Error e = {0, {0}};
        snprintf(list, sizeof list, "%.600s,%.600s", paths[last], paths[!last]);
        if (dataset_open(&d, list, &padded, &e) != 0) printf("     %s\n", e.text);
        found[last] = d.vocab;
        dataset_close(&d);
    }
    check(found[0] == 50304 && found[1] == 50304, "loader: the largest vocabulary of GPT-2's shards counts",
        "the shard with token 50303 first: %u, last: %u", found[0], found[1]);
}

// A run on the test's data with these options: refused, with that in the message.
static void loader_refused_by_run(const char* options, const char* part) {
    gpt2_sp_options o = run_options(options);
    char error[GPT2_SP_TEXT];
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    check(
        !g && strstr(error, part), "loader: data that cannot serve is refused", "%s", g ? "accepted" : error);
    gpt2_sp_destroy(g);
}

static void loader_refused(void) {
    static const struct {
        const char *list, *part;
    } cases[] = {{"", "no token shards given"}, {"/nowhere/x.tok", "no token shard at /nowhere/x.tok"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Dataset d;
        Error e = {0, {0}};
        int status = dataset_open(&d, cases[i].list, &DATA_PLAIN, &e);
        check(status == -1 && strstr(e.text, cases[i].part), "loader: data that cannot serve is refused",
            "%s", e.text);
    }
    loader_refused_by_run("seq-len=6000", "6000 tokens, one sequence needs 6001");
    loader_refused_by_run("seq-len=5999 vocab=256", "vocabulary of 257, the model one of 256");
}

// What one of the loader's threads cannot read is the step's error.
static void loader_damaged(void) {
    static const LoaderShape shape = {1, 1, GPT2_SP_RING, LOADER_SAMPLES, 1};
    Dataset d;
    Error e = {0, {0}};
    int32_t* stream = loader_dataset(&d, &e);
    int failed = 0, whole = 0;
    if (d.count == 3) {
        const int fd = open(d.shards[2].path, O_RDWR);
        const off_t at = (off_t)d.shards[2].block[0].offset + 5;
        unsigned char byte = 0;
        int changed = fd >= 0 && pread(fd, &byte, 1, at) == 1;
        byte = (unsigned char)~byte;
        changed = changed && pwrite(fd, &byte, 1, at) == 1;
        if (fd >= 0) close(fd);
        for (uint64_t first = 0; changed && first < dataset_windows(&d, LOADER_T); first += LOADER_SAMPLES) {
            Error why = {0, {0}};
            int status = loader_sequences(&d, shape, first, 0, 1, UINT64_MAX, &why).status;
            failed += status != 0 && strstr(why.text, "CRC-32") != NULL, whole += status == 0;
        }
    }
    check(failed > 0, "loader: a damaged block is the error of the steps that need it",
        "%d steps refused, %d read", failed, whole);
    dataset_close(&d);
    free(stream);
}

static void test_loader(void) {
    Dataset d;
    Error e = {0, {0}};
    loader_permutation();
    int32_t* stream = loader_dataset(&d, &e);
    if (d.count == 3) {
        loader_shapes(&d, stream);
        loader_epoch(&d);
        loader_evaluation(&d, stream);
        loader_damaged();
        loader_identity(&d);
        loader_borders(&d, stream);
    }
    dataset_close(&d);
    free(stream);
    loader_names();
    loader_order();
    loader_mixed();
    loader_refused();
}

// ===== options ==================================================================================
// What users write. Held: every spelling of an option counts, a config file too; whatever is wrong is
// refused in one line that says what would do, combinations before anything runs; the learning rate follows
// its schedule to the digit. A typing error that is passed over costs a run: it trains for days with the
// default instead.

// Parses a command line of words; 1: help, 0: taken, -1: refused, with the reason.
static int options_line(gpt2_sp_options* o, const char* command, const char* line, Error* e) {
    char text[1024], *words[32];
    int count = 0;
    snprintf(text, sizeof text, "%s", line);
    for (char* at = strtok(text, " "); at && count < 32; at = strtok(NULL, " ")) words[count++] = at;
    options_default(o);
    return options_parse(o, command_find(command), count, words, NULL, e);
}

static void options_taken(void) {
    gpt2_sp_options o;
    Error e = {0, {0}};
    int status = options_line(&o, "train",
        "--seq-len 32k --lr=1e-3 --doc-mask --schedule ring --batch-size=2 --zero 3 --out=x=y --seed 1m", &e);
    check(status == 0 && o.seq_len == 32768 && o.lr == 1e-3 && o.doc_mask == 1 &&
            o.schedule == GPT2_SP_RING && o.batch_size == 2 && o.zero == 3 && strcmp(o.out, "x=y") == 0 &&
            o.seed == 1048576,
        "options: every spelling is understood", "seq-len %lld, lr %g, doc-mask %lld, schedule %s %s",
        (long long)o.seq_len, o.lr, (long long)o.doc_mask, schedule_name(o.schedule), e.text);
    status = options_line(&o, "train", "--doc-mask 0 --center=0 --raw-u16 --model d24", &e);
    check(status == 0 && o.doc_mask == 0 && o.center == 0 && o.raw_u16 == 1 && o.layers == 24 &&
            o.heads == 16 && o.channels == 1024,
        "options: flags and model sizes are understood", "%lld layers, %lld heads, %lld channels %s",
        (long long)o.layers, (long long)o.heads, (long long)o.channels, e.text);
    char line[600];
    const char* config = scratch("a.cfg");
    const char* text = "# a comment\n\n  layers = 7\nheads=2\n\tdata =  a b.tok \nlr = 0.5\n";
    test_data_write(config, text, strlen(text));
    snprintf(line, sizeof line, "--layers 3 --config %s --heads 5", config);
    status = options_line(&o, "train", line, &e);
    check(status == 0 && o.layers == 7 && o.heads == 5 && strcmp(o.data, "a b.tok") == 0 && o.lr == 0.5,
        "options: a config file counts, and what follows it overrides it",
        "layers %lld, heads %lld, data `%s` %s", (long long)o.layers, (long long)o.heads, o.data, e.text);
    status = options_line(&o, "train", "--layers 3 --help", &e);
    check(status == 1, "options: --help asks for help", "asks for help");
}

// Is the name that the program has for choice i of an option the option's own word?
static int option_names(const char* option, int i, const char* name) {
    char word[32];
    return choice_word(option_find(option)->text, i, word, sizeof word) && strcmp(word, name) == 0;
}

// Every default is in its range and survives being printed and read; every name is there once.
static void options_table(void) {
    int wrong = 0;
    Error e = {0, {0}};
    gpt2_sp_options defaults, again;
    options_default(&defaults);
    for (int i = 0; i < OPTION_COUNT; i++) {
        char value[GPT2_SP_TEXT];
        again = defaults;
        option_print(&defaults, &OPTIONS[i], value, sizeof value);
        if (strcmp(OPTIONS[i].name, "model") != 0 && option_set(&again, &OPTIONS[i], value, &e) != 0) wrong++;
        wrong += memcmp(&again, &defaults, sizeof again) != 0;
        for (int j = 0; j < i; j++) wrong += strcmp(OPTIONS[i].name, OPTIONS[j].name) == 0;
    }
    for (int i = 0; i < GPT2_SP_SCHEDULES; i++) wrong += !option_names("schedule", i, schedule_name(i));
    for (int i = 0; i < GPT2_SP_RECOMPUTES; i++) wrong += !option_names("recompute", i, recompute_name(i));
    check(wrong == 0, "options: the table's defaults are in range and read as they print",
        "%d options, %d faults", OPTION_COUNT, wrong);
}

static const struct {
    const char *command, *line, *part;
} REFUSED_OPTIONS[] = {{"train", "--sequence-len 5", "unknown option --sequence-len"},
    {"train", "--seqlen 5", "did you mean --seq-len?"}, {"train", "--lyers 5", "did you mean --layers?"},
    {"train", "--xxxxxxxxxxxx 5", "--help` lists them"}, {"train", "--layers -1", "must be from 0 to 512"},
    {"train", "--layers 513", "must be from 0 to 512"}, {"train", "--layers x", "expected a whole number"},
    {"train", "--layers 2.5", "expected a whole number"}, {"train", "--layers", "needs a value"},
    {"train", "--layers 5x", "expected a whole number"},
    {"train", "--seq-len 99999999999999999999", "expected a whole number"},
    {"train", "--seq-len 9999999999", "must be from 0 to 16777216"},
    {"train", "--lr nan", "expected a number"}, {"train", "--lr inf", "expected a number"},
    {"train", "--lr -1", "must be from 0 to 10"}, {"train", "--lr 1e999", "expected a number"},
    {"train", "--schedule rang", "expected one of ring|dist|dist-paper|zigzag|allgather|ulysses"},
    {"train", "--recompute=", "expected one of none|"},
    {"train", "--model d13", "expected d12, d24, d36 or d48"},
    {"train", "--prompt x", "--prompt is not an option of `train`"},
    {"schedule", "--layers 2", "is not an option of `schedule`"},
    {"train", "layers 3", "`layers` is not an option"},
    {"train", "--doc-mask 2", "--doc-mask 2: must be from 0 to 1"},
    {"train", "--doc-mask=2", "must be from 0 to 1"},
    {"train", "--config /nowhere/x.cfg", "--config: cannot open /nowhere/x.cfg: No such file"},
    {"train", "--keep 1", "must be from 2"}};

static void options_refused(void) {
    int told = 0, count = (int)(sizeof REFUSED_OPTIONS / sizeof REFUSED_OPTIONS[0]);
    gpt2_sp_options o;
    for (int i = 0; i < count; i++) {
        const char *line = REFUSED_OPTIONS[i].line, *part = REFUSED_OPTIONS[i].part;
        Error e = {0, {0}};
        int status = options_line(&o, REFUSED_OPTIONS[i].command, line, &e);
        if (status == -1 && strstr(e.text, part) && !strchr(e.text, '\n')) told++;
        else printf("     `%s`: %s (expected: %s)\n", line, e.text, part);
    }
    check(told == count, "options: what is wrong is refused in one line that says what would do",
        "%d of %d, each in one line that says what would do", told, count);
    Error e = {0, {0}};
    char line[600];
    const char* config = scratch("b.cfg");
    const char* text = "layers = 7\nlyers = 2\n";
    test_data_write(config, text, strlen(text));
    snprintf(line, sizeof line, "--config %s", config);
    check(options_line(&o, "train", line, &e) == -1 &&
            strstr(e.text, "b.cfg:2: unknown option --lyers: did you mean --layers?"),
        "options: a config file's line is named", "%s", e.text);
}

// Reads a config file of these bytes.
static int options_config(gpt2_sp_options* o, const char* bytes, size_t length, Error* note, Error* e) {
    const char* path = scratch("c.cfg");
    test_data_write(path, bytes, length);
    options_default(o);
    return options_file(o, path, note, e);
}

// Whatever a text option is set to, a run's config file gives it back.
static void options_config_back(void) {
    static const char* const values[] = {"plain", "two words", " front", "back ", "\tt", "new\nline", "\n",
        "ret\r", "#x", "a#b", "\"", "\"quoted\"", "say \"hi\"", "back\\slash\\", "\\n", "\"\\\"", "=",
        "a = b", "\xEF\xBB\xBF", "\xFF\x80", "caf\xC3\xA9", "\v\f", "\x01", "", "'"};
    const Option* data = option_find("data");
    int ok = 0, count = (int)(sizeof values / sizeof values[0]) + 4;
    char value[GPT2_SP_TEXT], line[2 * GPT2_SP_TEXT + 64];
    for (int i = 0; i < count; i++) {
        static const char fills[] = "x\"\n ";
        gpt2_sp_options o, again;
        Error e = {0, {0}}, note = {0, {0}};
        if (i < count - 4) snprintf(value, sizeof value, "%s", values[i]);
        else memset(value, fills[count - 1 - i], sizeof value - 1), value[sizeof value - 1] = 0;
        options_default(&o);
        int status = option_set(&o, data, value, &e);
        size_t n = (size_t)snprintf(line, sizeof line, "lr = 0.5\ndata = ");
        config_print(&o, data, line + n);
        strcat(line, "\nwarmup = 7\n");
        if (status == 0) status = options_config(&again, line, strlen(line), &note, &e);
        int same = status == 0 && strcmp(again.data, value) == 0 && again.lr == 0.5 && again.warmup == 7;
        if (!same) printf("     `%s`: `%s` %s\n", value, again.data, e.text);
        ok += same;
    }
    check(ok == count, "options: a config file gives back what was set", "%d of %d texts, up to %d bytes", ok,
        count, GPT2_SP_TEXT - 1);
}

// What a config file may hold besides, and what it may not.
static void options_config_files(void) {
    static const struct {
        const char* text;
        int length;          // 0: up to its NUL
        const char* error;   // NULL: warmup is 7 and data `x`
    } cases[] = {{"\xEF\xBB\xBFwarmup = 7\ndata = x", 0, NULL},
        {"warmup = 7\r\n\r\ndata = \"x\" \r\n", 0, NULL},
        {"# \xEF\xBB\xBF \"\nwarmup=7\n\n   # x\ndata=x", 0, NULL}, {"", 0, "nothing is set"},
        {"warmup = 7\nlr = 1\0e-3\n", 23, "c.cfg:2: a NUL byte"}, {"\0", 1, "c.cfg:1: a NUL byte"},
        {"# a\n# b\0\n", 9, "c.cfg:2: a NUL byte"}, {"\n\nwarmup\n", 0, "c.cfg:3: expected `name = value`"},
        {"data = \"x\nwarmup = 7", 0, "c.cfg:1: expected one closing quote"},
        {"data = \"x\"y", 0, "c.cfg:1: expected one closing quote"},
        {"data = \"x\\q\"", 0, "c.cfg:1: expected \\\" "}, {"data = \"x\\", 0, "c.cfg:1: expected"},
        {"\n\xEF\xBB\xBFwarmup = 7", 0, "c.cfg:2: unknown option"},
        {"warmup = seven", 0, "c.cfg:1: --warmup seven"}};
    int ok = 0, count = (int)(sizeof cases / sizeof cases[0]);
    for (int i = 0; i < count; i++) {
        gpt2_sp_options o;
        Error e = {0, {0}}, note = {0, {0}};
        size_t n = cases[i].length ? (size_t)cases[i].length : strlen(cases[i].text);
        int status = options_config(&o, cases[i].text, n, &note, &e);
        if (status == 0 && n == 0) snprintf(e.text, sizeof e.text, "nothing is set"), status = -1;
        int right = cases[i].error ? status == -1 && strstr(e.text, cases[i].error) != NULL
                                   : status == 0 && o.warmup == 7 && strcmp(o.data, "x") == 0;
        if (!right) printf("     case %d: %d %s\n", i, status, e.text);
        ok += right;
    }
    check(ok == count, "options: a config file's mark is passed over, its NULs and open quotes are named",
        "%d of %d", ok, count);
}

// Files without an end, pipes and folders are refused at once, long lines only where their text is too long.
static void options_config_bounds(void) {
    char pipe[512], large[512];
    static const int sizes[] = {1023, 1024, 1087, 1088, 5000, 100000};
    char* text = (char*)need(200000, 1);
    int ok = 0, of = 0;
    for (int i = 0; i < 6; i++)
        for (int form = 0; form < 4; form++, of++) {   // a text, a quoted one, a comment, a name
            gpt2_sp_options o;
            Error e = {0, {0}}, note = {0, {0}};
            int n = sprintf(text, "%s",
                form == 0       ? "data = "
                    : form == 1 ? "data = \""
                    : form == 2 ? "# "
                                : "");
            memset(text + n, 'x', (size_t)sizes[i]);
            sprintf(text + n + sizes[i], "%s\nwarmup = 7\n", form == 1 ? "\"" : form == 3 ? " = 1" : "");
            int status = options_config(&o, text, strlen(text), &note, &e);
            int fits = form == 2 || (form < 2 && sizes[i] < GPT2_SP_TEXT);
            ok += fits ? status == 0 && o.warmup == 7 && (form == 2 || (int)strlen(o.data) == sizes[i])
                       : status == -1 && strstr(e.text, "c.cfg:1: ") &&
                    (form < 2 ? strstr(e.text, "at most 1023 fit")
                              : strstr(e.text, "expected `name = value`"));
        }
    free(text);
    check(ok == of, "options: a config file's lines may be long, texts have at most 1023 bytes", "%d of %d",
        ok, of);
    static const struct { int size, ok; } texts[] = {{0, 1}, {1022, 1}, {1023, 1}, {1024, 0}, {1025, 0}};
    for (int i = 0; i < 5; i++) {
        char value[1100] = "", error[GPT2_SP_TEXT];
        gpt2_sp_options o;
        options_default(&o);
        memset(value, 'y', (size_t)texts[i].size);
        int status = option_text(&o, "prompt", value, error, sizeof error);
        check(texts[i].ok ? status == 0 && strcmp(o.prompt, value) == 0
                          : status == GPT2_SP_INVALID && strstr(error, "at most 1023 fit") &&
                    strcmp(o.prompt, "\n") == 0,
            "options: a text of 1023 bytes is taken, one of 1024 refused", "%d bytes: %s", texts[i].size,
            error);
    }
    snprintf(pipe, sizeof pipe, "%s", scratch("p.cfg"));
    snprintf(large, sizeof large, "%s", scratch("large.cfg"));
    mkfifo(pipe, 0600);
    FILE* f = fopen(large, "w");
    if (f && fseek(f, 1 << 20, SEEK_SET) == 0) fputc('\n', f);
    if (f) fclose(f);
    const char* const files[] = {"/dev/zero", pipe, large, scratch(".")};
    for (int i = 0; i < 4; i++) {
        gpt2_sp_options o;
        Error e = {0, {0}}, note = {0, {0}};
        double start = now_ms();
        int status = options_file(&o, files[i], &note, &e);
        check(status == -1 &&
                (strstr(e.text, "expected a regular file") || strstr(e.text, "expected at most 1048576")) &&
                now_ms() - start < 2000,
            "options: a config file has an end", "%s", e.text);
    }
}

// A run.cfg in a run's folder is that run's, wherever the folder has gone. The current folder is the tests'
// own.
static void options_config_moved(void) {
    static const struct {
        const char *file, *path, *out, *note;
    } cases[] = {{"out = runs/a\n", "runs/a/run.cfg", "runs/a", NULL},
        {"out = ./runs//a/\n", "runs/a/run.cfg", "./runs//a/", NULL},
        {"out = runs/gone\n", "runs/a/run.cfg", "runs/a", "runs/gone: it goes on in runs/a"},
        {"out = runs/b\n", "./runs/a/run.cfg", "./runs/a", "runs/b: it goes on in ./runs/a"},
        {"out = runs/b\n", "runs/b/run.cfg", "runs/b", NULL},
        {"out = runs/a\n", "runs/b/run.cfg", "runs/a", NULL},
        {"out = runs/a\n", "runs/a/my.cfg", "runs/a", NULL}, {"out = else\n", "runs/a/my.cfg", "else", NULL},
        {"lr = 1\n", "runs/a/run.cfg", "before", NULL}, {"out = x\n", "run.cfg", ".", "x: it goes on in ."}};
    char home[1024];
    int ok = 0, count = (int)(sizeof cases / sizeof cases[0]);
    if (!getcwd(home, sizeof home) || mkdir(scratch("moved"), 0700) != 0 || chdir(scratch("moved")) != 0)
        return;
    mkdir("runs", 0700);
    mkdir("runs/a", 0700);
    mkdir("runs/b", 0700);
    test_data_write("runs/a/log.jsonl", "", 0);
    for (int i = 0; i < count; i++) {
        gpt2_sp_options o;
        Error e = {0, {0}}, note = {0, {0}};
        options_default(&o);
        snprintf(o.out, sizeof o.out, "before");
        if (i == count - 1) test_data_write("log.jsonl", "", 0);
        test_data_write(cases[i].path, cases[i].file, strlen(cases[i].file));
        int status = options_file(&o, cases[i].path, &note, &e);
        int right = status == 0 && strcmp(o.out, cases[i].out) == 0 &&
            (cases[i].note ? strstr(note.text, cases[i].note) != NULL : note.text[0] == 0);
        if (!right) printf("     %s: --out %s, `%s` %s\n", cases[i].path, o.out, note.text, e.text);
        ok += right;
    }
    if (chdir(home) != 0) ok = 0;
    check(ok == count, "options: a run's run.cfg goes on with it where it lies", "%d of %d", ok, count);
}

// Combinations that do not fit are refused before anything runs.
static void options_combinations(void) {
    static const struct {
        const char *change, *part;
    } cases[] = {{"heads=5", "--channels 32 is not divisible by --heads 5"},
        {"channels=512 heads=1", "head size 512"},
        {"sp=64 seq-len=61", "--seq-len 61 is too short for 64 chunks"},
        {"sp=31 seq-len=61 schedule=zigzag", "too short for 62 chunks"},
        {"sp=3 schedule=dist-paper", "leaves out pairs at odd --sp"},
        {"sp=3 schedule=ulysses", "divisible by --sp (found 4 and 3)"},
        {"batch-size=65536 seq-len=5000 grad-accum=65536 layers=512",
            "with --seq-len 5000 the largest batch is "},
        {"batch-size=60000 seq-len=5000 heads=1 channels=64",
            "with --batch-size 60000 the longest context that fits is "},
        {"batch-size=60000 seq-len=5000 heads=1 channels=64", "with --seq-len 5000 the largest batch is "}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gpt2_sp_options o = run_options(cases[i].change);
        char error[GPT2_SP_TEXT];
        gpt2_sp* g = trainer_of(&o, error, sizeof error);
        check(!g && strstr(error, cases[i].part), "options: combinations that do not fit are refused",
            "%s: %s", cases[i].change, g ? "accepted" : error);
        gpt2_sp_destroy(g);
    }
}

static void options_learning_rate(void) {
    static const struct {
        const char* change;
        int64_t done;
        double expected;
    } cases[] = {{"lr-schedule=cosine", 0, 0.1}, {"lr-schedule=cosine", 9, 1}, {"lr-schedule=cosine", 10, 1},
        {"lr-schedule=cosine", 60, 0.55}, {"lr-schedule=cosine", 110, 0.1}, {"lr-schedule=cosine", 500, 0.1},
        {"lr-schedule=linear", 35, 0.775}, {"lr-schedule=linear", 60, 0.55}, {"lr-schedule=linear", 110, 0.1},
        {"lr-schedule=constant", 60, 1}, {"lr-schedule=constant", 110, 1}, {"lr-schedule=constant", 4, 0.5},
        {"lr-schedule=wsd", 60, 1}, {"lr-schedule=wsd", 90, 1}, {"lr-schedule=wsd", 95, 0.55},
        {"lr-schedule=wsd", 110, 0.1}, {"lr-schedule=wsd wsd-decay=0", 110, 1}, {"warmup=0 steps=1", 0, 1}};
    double most = 0;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gpt2_sp_options o = options_of("lr=1 lr-final=0.1 warmup=10 steps=111 wsd-decay=0.2");
        options_apply(&o, cases[i].change);
        double error = fabs(learning_rate(&o, cases[i].done) - cases[i].expected);
        if (!(error < 1e-12))
            printf("     %s after %d steps: %.12f, expected %g\n", cases[i].change, (int)cases[i].done,
                learning_rate(&o, cases[i].done), cases[i].expected);
        most = worst(most, error);
    }
    check_below(most, 1e-12, "options: learning rates follow their schedule", "18 values: largest error");
}

static void test_options(void) {
    options_taken();
    options_table();
    options_refused();
    options_config_back();
    options_config_files();
    options_config_bounds();
    options_config_moved();
    options_combinations();
    options_learning_rate();
}

// ===== sampling and evaluation ==================================================================
// What a trained model says and how good it is. Held: tokens are drawn by their probabilities, from a cache
// of keys and values that gives the logits of the full pass; the same seed gives the same text and
// validation the same loss at every shape. A loss that depends on the split, or a cache that forgets a
// token, makes a good model look bad or the reverse.

// Draws at 10000 evenly spread places of (0, 1): each token's share is its probability, to one draw per
// boundary.
static void sampling_choice(void) {
    enum { N = 6, DRAWS = 10000 };
    const double p[N] = {0.05, 0.4, 0.1, 0.25, 0.15, 0.05};
    real logits[N];
    Candidate candidates[N];
    static const struct {
        double temperature;
        int64_t top_k;
        double top_p;
        const char* what;
        double expected[N];
    } cases[] = {{1, 0, 1, "all", {0.05, 0.4, 0.1, 0.25, 0.15, 0.05}},
        {0, 0, 1, "temperature 0", {0, 1, 0, 0, 0, 0}}, {1, 1, 1, "top-k 1", {0, 1, 0, 0, 0, 0}},
        {1, 3, 1, "top-k 3", {0, 0.5, 0, 0.3125, 0.1875, 0}},
        {1, 100, 1, "top-k beyond the vocabulary", {0.05, 0.4, 0.1, 0.25, 0.15, 0.05}},
        {1, 0, 0.6, "top-p 0.6", {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0, 0}},
        {1, 0, 0, "top-p 0", {0, 1, 0, 0, 0, 0}}, {1e-300, 0, 1, "temperature near 0", {0, 1, 0, 0, 0, 0}},
        {0.5, 2, 1, "temperature 0.5, top-k 2", {0, 0.16 / 0.2225, 0, 0.0625 / 0.2225, 0, 0}},
        {1, 3, 0.7, "top-k 3, top-p 0.7", {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0, 0}}};
    for (int i = 0; i < N; i++) logits[i] = (real)(log(p[i]) + 3);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int counts[N] = {0};
        double most = 0;
        const gpt2_sp_sampling how = drawing(cases[i].temperature, cases[i].top_k, cases[i].top_p, 0);
        for (int k = 0; k < DRAWS; k++) counts[token_drawn(logits, N, &how, (k + 0.5) / DRAWS, candidates)]++;
        for (int v = 0; v < N; v++)
            most = worst(most, fabs((double)counts[v] / DRAWS - cases[i].expected[v]));
        check_below(most, 2.0 / DRAWS, "sampling: tokens are drawn by their probabilities", cases[i].what);
    }
}

// The same for a vocabulary that is not sorted whole, against one that is.
static void sampling_vocabulary(void) {
    enum { N = 9000, DRAWS = 1000 };
    static const struct {
        int64_t top_k;
        double top_p;
        const char* what;
    } cases[] = {{700, 1, "top-k 700 of 9000"}, {0, 0.3, "top-p 0.3 of 9000"},
        {0, 0.97, "top-p 0.97 of 9000"}, {5000, 0.9, "top-k 5000, top-p 0.9 of 9000"}};
    real* logits = reals(N);
    double* expected = doubles(N);
    Candidate *sorted = (Candidate*)need(N, sizeof *sorted),
              *candidates = (Candidate*)need(N, sizeof *candidates);
    for (int v = 0; v < N; v++) {
        logits[v] = (real)(2 * random_normal(96, 1, (uint64_t)v / 2));   // every value twice
        sorted[v].logit = logits[v], sorted[v].token = v;
    }
    qsort(sorted, N, sizeof *sorted, candidate_order);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int64_t top_k = cases[i].top_k;
        const double top_p = cases[i].top_p;
        const gpt2_sp_sampling how = drawing(1, top_k, top_p, 0);
        double sum = 0, kept = 0;
        double most = 0;
        int count = top_k ? (int)top_k : N, cut = 0;
        for (int k = 0; k < count; k++) sum += exp((double)sorted[k].logit);
        while (cut < count && kept < top_p * sum) kept += exp((double)sorted[cut++].logit);
        for (int k = 0; k < N; k++)
            expected[sorted[k].token] = k < cut ? exp((double)sorted[k].logit) / kept : 0;
        for (int k = 0; k < DRAWS; k++) {
            int token = token_drawn(logits, N, &how, (k + 0.5) / DRAWS, candidates);
            expected[token] -= 1.0 / DRAWS;
        }
        for (int v = 0; v < N; v++) most = worst(most, fabs(expected[v]));
        check_below(most, 2.0 / DRAWS, "sampling: tokens are drawn by their probabilities", cases[i].what);
    }
    free(logits);
    free(expected);
    free(sorted);
    free(candidates);
}

// Weights large enough that every layer matters, alike on every rank.
static int rank_noise(Rank* r, gpt2_sp* g, void* argument) {
    (void)g, (void)argument;
    weights_init(r, 17);
    real* w = r->state[STATE_WEIGHTS];
    for (int64_t i = 0; i < r->layout->buffer[STATE_WEIGHTS] && r->mesh->zero < 3; i++)
        w[i] *= w[i] == 1 ? 1 : 8;
    return 0;
}

enum { CACHED = 300, CACHED_VOCAB = 131 };   // tokens of the sequence, of the vocabulary

// Reads `count` tokens from `begin` on; the distance of the logits after the last of them to the full pass's.
static double cache_read(
    void* decoder, const int32_t* tokens, int64_t begin, int64_t count, const real* logits, int64_t Vp) {
    double expected[CACHED_VOCAB];
    real* found = reals(Vp);
    for (int v = 0; v < CACHED_VOCAB; v++) expected[v] = (double)logits[(begin + count - 1) * Vp + v];
    decoder_read(decoder, tokens + begin, count, begin, 1, found);
    double error = distance(found, expected, CACHED_VOCAB);
    free(found);
    return error;
}

// The logits after each token, from the cache one at a time and in blocks, against the full forward pass.
static void sampling_cache(const char* more) {
    static const int64_t blocks[] = {1, 99, 1, 199};
    gpt2_sp_options o = options_of("layers=3 heads=3 channels=48 seq-len=300 threads=1");
    options_apply(&o, more);
    gpt2_sp* g = bare_trainer(&o, CACHED_VOCAB);
    if (!g) return;
    Rank* r = &g->ranks[0];
    const int64_t C = 48, Vp = g->mesh.shape.Vp;
    int32_t* tokens = r->batches[0].tokens;
    ranks_run(g, rank_noise, NULL);
    for (int64_t t = 0; t < CACHED; t++) tokens[t] = (int32_t)dice(95, (uint64_t)t, CACHED_VOCAB);
    memset(r->batches[0].labels, 0, CACHED * sizeof(int32_t));
    r->batch = &r->batches[0], r->valid_tokens = CACHED;
    double loss = trainer_loss(g), most = 0;
    real *logits = reals(CACHED * Vp), *weights = r->state[STATE_WEIGHTS];
    cpu_matmul_forward(logits, r->lnf, weights + g->layout.within[P_wte], NULL, CACHED, C, Vp, r->scratch);
    void *one = decoder_open(g, CACHED), *many = decoder_open(g, CACHED);
    for (int64_t t = 0; t < CACHED; t++) most = worst(most, cache_read(one, tokens, t, 1, logits, Vp));
    double in_blocks = 0;
    for (int64_t i = 0, t = 0; i < 4; t += blocks[i++])
        in_blocks = worst(in_blocks, cache_read(many, tokens, t, blocks[i], logits, Vp));
    check(isfinite(loss) && most <= 100 * EPS && in_blocks <= 100 * EPS,
        "sampling: cached keys and values give the logits of the full pass",
        "300 positions, %s: logits one at a time %.3g, in blocks %.3g, at most %.3g", more, most, in_blocks,
        100 * EPS);
    decoder_close(one);
    decoder_close(many);
    free(logits);
    gpt2_sp_destroy(g);
}

enum { PROMPT = 20, MADE = 16 };
typedef struct {
    int32_t greedy[MADE], drawn[MADE];
} Generated;

// What a trainer says after a prompt; *other: another seed says something else. 0 if it all is as long as
// asked for.
static int generate_both(gpt2_sp* g, const int32_t* prompt, Generated* out, int* other) {
    int32_t else_drawn[MADE] = {0};
    g->eot = -1;   // so that all are as long
    int64_t made = generated(g, prompt, PROMPT, out->greedy, MADE, 0, 0, 1, 1);
    generated(g, prompt, PROMPT, out->drawn, MADE, 1, 0, 1, 7);
    generated(g, prompt, PROMPT, else_drawn, MADE, 1, 0, 1, 8);
    *other += memcmp(else_drawn, out->drawn, sizeof else_drawn) != 0;
    return made == MADE ? 0 : -1;
}

// Does text end before the end-of-text token? And what is refused: more than the context, no prompt, no such
// token.
static int generate_ends(gpt2_sp* g, int32_t* prompt, int32_t first, char refused[3][GPT2_SP_TEXT]) {
    int32_t out[48];
    g->eot = first;
    int ends = generated(g, prompt, PROMPT, out, MADE, 0, 0, 1, 1) == 0;
    int32_t kept = prompt[3];
    for (int i = 0; i < 3; i++) {
        const int64_t count = i == 1 ? 0 : PROMPT, length = i == 0 ? 42 : 4;
        if (i == 2) prompt[3] = 257;
        if (generated(g, prompt, count, out, length, 0, 0, 1, 1) < 0)
            snprintf(refused[i], GPT2_SP_TEXT, "%s", gpt2_sp_error(g));
    }
    prompt[3] = kept;
    return ends;
}

static void sampling_generate(void) {
    static const char* const shapes[] = {"batch-size=1", "batch-size=1 threads=2", "batch-size=1 sp=2 zero=3",
        "batch-size=1 dp=2 sp=2 zero=1", "batch-size=1 sp=2 seq-len=60",
        "batch-size=1 sp=3 seq-len=60 zero=3"};
    enum { SHAPES = sizeof shapes / sizeof shapes[0] };
    Generated made[SHAPES];
    int32_t prompt[PROMPT];
    int same = 1, differ = 0;
    char error[GPT2_SP_TEXT], refused[3][GPT2_SP_TEXT];
    for (int i = 0; i < PROMPT; i++) prompt[i] = (int32_t)dice(96, (uint64_t)i, 64);
    memset(made, 0, sizeof made);
    memset(refused, 0, sizeof refused);
    for (int i = 0; i < SHAPES; i++) {
        gpt2_sp_options o = run_options(shapes[i]);
        gpt2_sp* g = trainer_of(&o, error, sizeof error);
        if (!g) continue;
        same &= generate_both(g, prompt, &made[i], &differ) == 0;
        same &= memcmp(&made[i], &made[0], sizeof made[0]) == 0;
        if (i == 0) same &= generate_ends(g, prompt, made[0].greedy[0], refused);
        gpt2_sp_destroy(g);
    }
    check(same && differ == SHAPES, "sampling: the same seed gives the same text at every shape",
        "greedy and drawn, %d shapes (threads, sp, zero 3, own positions): %s; another seed differs in %d",
        (int)SHAPES, same ? "equal" : "different", differ);
    check(strstr(refused[0], "20 tokens and 42 more") && strstr(refused[1], "0 tokens") &&
            strstr(refused[2], "token 3 of the prompt is 257"),
        "sampling: what does not fit or is no token is refused", "%s; %s; %s", refused[0], refused[1],
        refused[2]);
}

// Validates over 13 windows; the loss, NAN if it fails, and all that was counted.
static double evaluation_of(const char* shape, int doc_mask, int T, Evaluation* evaluation) {
    gpt2_sp_options o = run_options(shape);
    char error[GPT2_SP_TEXT];
    double loss = NAN;
    memset(evaluation, 0, sizeof *evaluation);
    o.doc_mask = doc_mask, o.seq_len = T;
    snprintf(o.val_data, sizeof o.val_data, "%s", o.data);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    if (!g || gpt2_sp_validate(g, 13, &loss) != 0) printf("     %s\n", g ? gpt2_sp_error(g) : error);
    else *evaluation = g->evaluation;
    gpt2_sp_destroy(g);
    return loss;
}

// Validation: the same for every split, and over every label of the 13 windows.
static void evaluation_splits(void) {
    static const char* const shapes[] = {"batch-size=1", "batch-size=3", "batch-size=2 sp=3",
        "batch-size=1 dp=2 sp=2 zero=3 schedule=zigzag", "batch-size=5 sp=4 recompute=sqrt layers=2"};
    static const struct {
        const char* what;
        int doc_mask, T;
    } kinds[] = {{"5 splits", 0, 61}, {"documents, 5 splits", 1, 61},
        {"60 tokens, 5 splits", 0, 60}};   // 60: own positions
    for (int k = 0; k < 3; k++) {
        double first = NAN, most = 0, labels = 13 * kinds[k].T;
        int counts = 0;
        Dataset d;
        Error e = {0, {0}};
        if (kinds[k].doc_mask && dataset_open(&d, run_data(), &DATA_DOCUMENTS, &e) == 0) {
            labels = (double)dataset_labels(&d, kinds[k].T, 1, 13);
            dataset_close(&d);
        }
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
            Evaluation evaluation;
            double loss = evaluation_of(shapes[i], kinds[k].doc_mask, kinds[k].T, &evaluation);
            if (i == 0) first = loss;
            most = worst(most, fabs(loss - first) / first);
            counts += evaluation.count == labels;
        }
        check_below(most, 100 * EPS, "evaluation: every split has the same loss", kinds[k].what);
        check(counts == 5, "evaluation: a validation counts every label once", "%s: %d counted %.0f",
            kinds[k].what, counts, labels);
    }
    int wrong = position_bucket(0) != 0 || position_bucket(1) != 1 || position_bucket(2) != 2 ||
        position_bucket(3) != 2 || position_bucket(4) != 3 || position_bucket(7) != 3 ||
        position_bucket(8) != 4 || position_bucket((1 << 24) - 1) != 24;
    check(wrong == 0, "evaluation: buckets of positions double", "0, 1, 2-3, 4-7, 8-15 ...");
}

static void evaluation_needle(void) {
    gpt2_sp_options o = options_of("layers=1 heads=1 channels=16 seq-len=600 facts=3 threads=1");
    gpt2_sp* g = bare_trainer(&o, 257);
    double right[POSITION_BUCKETS] = {0}, asked[POSITION_BUCKETS] = {0};
    double all_right = 0, all_asked = 0;
    if (!g) return;
    ranks_run(g, rank_noise, NULL);
    int status = evaluate_needle(g, 5, right, asked);
    for (int i = 0; i < POSITION_BUCKETS; i++) {
        all_right += right[i];
        all_asked += asked[i];
    }
    check(status == 0 && all_asked == 15 && all_right >= 0 && all_right <= 15,
        "evaluation: needle asks for every fact once", "%g of %g facts by a model that knows nothing %s",
        all_right, all_asked, status ? gpt2_sp_error(g) : "");
    gpt2_sp_destroy(g);
}

static void test_sampling(void) {
    sampling_choice();
    sampling_vocabulary();
    sampling_cache("center=1");
    sampling_cache("center=0 heads=1");
    sampling_generate();
    evaluation_splits();
    evaluation_needle();
}

// Runs a command line as main does, stdout into `out`; its status, and the error's text behind the output.
static int command_run(const char* line, char* out, size_t size) {
    char text[2048], *words[48];
    const char* inputs[48];
    int count = 0, status = -1;
    Positional positional = {inputs, 0};
    gpt2_sp_options o;
    Error e = {0, {0}};
    snprintf(text, sizeof text, "%s", line);
    for (char* at = strtok(text, " "); at && count < 48; at = strtok(NULL, " ")) words[count++] = at;
    options_default(&o);
    fflush(stdout);
    int kept = dup(1), fd = open(scratch("stdout"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    dup2(fd, 1);
    for (int i = 0; i < COMMAND_COUNT; i++) {
        const Command* c = &COMMANDS[i];
        if (strcmp(c->name, words[0]) != 0) continue;
        status = options_parse(&o, c, count - 1, words + 1, &positional, &e);
        if (status == 0) status = c->run(&o, &positional, &e);
        else if (status == 1) options_help(c);
    }
    fflush(stdout);
    dup2(kept, 1);
    close(kept);
    ssize_t n = pread(fd, out, size - 1, 0);
    close(fd);
    out[n > 0 ? n : 0] = 0;
    snprintf(out + strlen(out), size - strlen(out), "%s", e.text);
    return status;
}

// ===== transport ================================================================================
// How ranks speak to each other, as threads and as processes. Held: every number of a collective or a
// message arrives as it was sent; the bytes on the wire are those of the tables in data/net.h; a header with
// a bit turned is no header; and the end of one rank reaches all others, wherever they wait. Without the
// last a run of a hundred processes of which one has died waits for ever.

enum { TRANSPORT_WORLD = 6, TRANSPORT_SLICE = 37 };
static char scratch_shard[512];   // what the processes of transport_not_finite read
static int transport_wrong[TRANSPORT_WORLD], transport_case;   // of each rank; what rank_stops waits for

// The ranks that collectives run over here, dp 3 by sp 2, written down one by one: rank's row is the group's
// ranks in their order.
enum { GROUP_KINDS = 3 };
static const struct {
    int over, size;
    const char* name;
    int ranks[TRANSPORT_WORLD][TRANSPORT_WORLD];
} RANK_GROUPS[GROUP_KINDS] = {
    {OVER_ALL, 6, "all ranks",
        {{0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5},
            {0, 1, 2, 3, 4, 5}}},
    {OVER_SP, 2, "a sequence's ranks", {{0, 1}, {0, 1}, {2, 3}, {2, 3}, {4, 5}, {4, 5}}},
    {OVER_DP, 3, "replicas", {{0, 2, 4}, {1, 3, 5}, {0, 2, 4}, {1, 3, 5}, {0, 2, 4}, {1, 3, 5}}},
};

static void transport_groups(void) {
    Place mesh = {3, 2};
    for (int k = 0; k < GROUP_KINDS; k++) {
        int wrong = 0;
        for (int rank = 0; rank < TRANSPORT_WORLD; rank++) {
            Group g = group_of(mesh, rank, RANK_GROUPS[k].over);
            const int* ranks = RANK_GROUPS[k].ranks[rank];
            int found[TRANSPORT_WORLD];
            for (int w = 0; w < TRANSPORT_WORLD; w++) found[w] = -1;
            for (int i = 0; i < RANK_GROUPS[k].size; i++) found[ranks[i]] = i;
            wrong += g.size != RANK_GROUPS[k].size || group_rank(&g, g.index) != rank;
            for (int i = 0; i < RANK_GROUPS[k].size; i++) wrong += group_rank(&g, i) != ranks[i];
            for (int w = 0; w < TRANSPORT_WORLD; w++) wrong += group_index(&g, w) != found[w];
        }
        check(wrong == 0, "transport: a group holds the ranks that differ in its indices only",
            "%s of dp 3 by sp 2: %d answers wrong", RANK_GROUPS[k].name, wrong);
    }
}

// Each collective once over a group, with numbers that tell who sent them and in which round: how many came
// out wrong, -1 if it failed.
static int all_reduce_wrong(Rank* r, const Group* g, const int* ranks, int round) {
    double values[4];
    int wrong = 0;
    for (int i = 0; i < 4; i++) values[i] = r->world_rank * 10 + i + round;
    if (r->transport.all_reduce(&r->transport, g, values, 4, &r->error) != 0) return -1;
    for (int i = 0; i < 4; i++) {
        double sum = 0;
        for (int w = 0; w < g->size; w++) sum += ranks[w] * 10 + i + round;
        wrong += values[i] != sum;
    }
    return wrong;
}
static int reduce_scatter_wrong(Rank* r, const Group* g, const int* ranks, int round) {
    real buffer[TRANSPORT_WORLD * TRANSPORT_SLICE];
    int wrong = 0;
    int64_t n = g->size * TRANSPORT_SLICE, begin = g->index * TRANSPORT_SLICE;
    for (int64_t i = 0; i < n; i++) buffer[i] = (real)(i * (r->world_rank + 1) % 64 + round);
    if (r->transport.reduce_scatter(&r->transport, g, buffer, TRANSPORT_SLICE, &r->error) != 0) return -1;
    for (int64_t i = begin; i < begin + TRANSPORT_SLICE; i++) {
        real sum = 0;
        for (int w = 0; w < g->size; w++) sum += (real)(i * (ranks[w] + 1) % 64 + round);
        wrong += buffer[i] != sum;
    }
    return wrong;
}
static int all_gather_wrong(Rank* r, const Group* g, const int* ranks, int round) {
    real buffer[TRANSPORT_WORLD * TRANSPORT_SLICE];
    int wrong = 0;
    int64_t n = g->size * TRANSPORT_SLICE;
    for (int64_t i = 0; i < n; i++)
        buffer[i] = i / TRANSPORT_SLICE == g->index ? (real)(i + 1000 * r->world_rank + round) : -1;
    if (r->transport.all_gather(&r->transport, g, buffer, TRANSPORT_SLICE, &r->error) != 0) return -1;
    for (int64_t i = 0; i < n; i++)
        wrong += buffer[i] != (real)(i + 1000 * ranks[i / TRANSPORT_SLICE] + round);
    return wrong;
}
static int share_wrong(Rank* r, const Group* g, const int* ranks, int round) {
    int32_t shown[TRANSPORT_WORLD] = {0};
    int wrong = 0;
    shown[g->index] = r->world_rank * 100 + round;
    if (r->transport.share(&r->transport, g, shown, sizeof shown[0], &r->error) != 0) return -1;
    for (int w = 0; w < g->size; w++) wrong += shown[w] != ranks[w] * 100 + round;
    return wrong;
}

static int rank_collectives(Rank* r, gpt2_sp* g, void* argument) {
    static int (*const collectives[])(Rank*, const Group*, const int*, int) = {
        all_reduce_wrong, reduce_scatter_wrong, all_gather_wrong, share_wrong};
    int wrong = 0;
    (void)g, (void)argument;
    for (int round = 0; round < 20; round++)
        for (int k = 0; k < GROUP_KINDS; k++) {
            Group group = group_of(r->all.mesh, r->world_rank, RANK_GROUPS[k].over);
            for (int i = 0; i < 4; i++) {
                int found = collectives[i](r, &group, RANK_GROUPS[k].ranks[r->world_rank], round);
                if (found < 0) return -1;
                wrong += found;
            }
            if (r->transport.barrier(&r->transport, &group, &r->error) != 0) return -1;
        }
    transport_wrong[r->world_rank] = wrong;
    return 0;
}

// What every rank sends to every other in a round: several pieces of several sizes in one group.
typedef struct {
    int32_t sent[3][TRANSPORT_WORLD][8], received[3][TRANSPORT_WORLD][8];
    Piece sends[3 * TRANSPORT_WORLD], receives[3 * TRANSPORT_WORLD];
    int count;
} ExchangeRound;
static void exchange_fill(ExchangeRound* x, int rank, int round) {
    x->count = 0;
    memset(x->received, 0, sizeof x->received);
    for (int piece = 0; piece < 3; piece++)
        for (int w = 0; w < TRANSPORT_WORLD; w++) {
            if (w == rank || (w + rank + round) % 3 == 0) continue;
            for (int i = 0; i < 8; i++) x->sent[piece][w][i] = ((round * 10 + piece) * 10 + rank) * 10 + w;
            const size_t bytes = (size_t)(4 * (piece + 2 + (rank + w) % 2));
            Piece out = {w, x->sent[piece][w], bytes}, in = {w, x->received[piece][w], bytes};
            x->sends[x->count] = out;
            x->receives[x->count++] = in;
        }
}

static int rank_exchange(Rank* r, gpt2_sp* g, void* argument) {
    (void)argument;
    Transport* t = &r->transport;
    ExchangeRound x;
    int wrong = 0;
    (void)g;
    for (int round = 0; round < 50; round++) {
        exchange_fill(&x, t->rank, round);
        if (t->post(t, x.sends, x.count, &r->error) != 0 ||
            t->wait(t, x.sends, x.count, x.receives, x.count, &r->error) != 0)
            return -1;
        for (int i = 0; i < x.count; i++) {
            const int32_t* got = (const int32_t*)x.receives[i].data;
            for (size_t k = 0; k < x.receives[i].bytes / 4; k++)
                wrong += got[k] % 100 != x.receives[i].peer * 10 + t->rank || got[k] / 1000 != round;
        }
        memset(x.sent, 0xEE, sizeof x.sent);   // taken: the sender may write there again
    }
    transport_wrong[t->rank] = wrong;
    return 0;
}

// More than a stream's window in one call: every rank sends its two neighbours many pieces, then replicas
// gather and sum slices of more frames than a window has. If sends were not made by turns with receives, all
// would wait for each other.
enum { WINDOW_PIECES = 5 * NET_WINDOW };
static int rank_windows(Rank* r, gpt2_sp* g, void* argument) {
    (void)argument;
    (void)g;
    Transport* t = &r->transport;
    Group group = group_of(r->all.mesh, t->rank, OVER_DP);
    int32_t sent[2][WINDOW_PIECES], received[2][WINDOW_PIECES];
    Piece sends[2 * WINDOW_PIECES], receives[2 * WINDOW_PIECES];
    int wrong = 0, others[2] = {(t->rank + 1) % TRANSPORT_WORLD, (t->rank + 5) % TRANSPORT_WORLD};
    for (int k = 0; k < 2 * WINDOW_PIECES; k++) {
        int side = k % 2, i = k / 2;
        size_t bytes = i % 7 == 3 ? 0 : 4;
        sent[side][i] = (t->rank * 2 + side) * 1000 + i, received[side][i] = -1;
        Piece out = {others[side], &sent[side][i], bytes}, in = {others[side], &received[side][i], bytes};
        sends[k] = out, receives[k] = in;
    }
    if (t->post(t, sends, 2 * WINDOW_PIECES, &r->error) != 0 ||
        t->wait(t, sends, 2 * WINDOW_PIECES, receives, 2 * WINDOW_PIECES, &r->error) != 0)
        return -1;
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < WINDOW_PIECES; i++)
            wrong += received[side][i] != (i % 7 == 3 ? -1 : (others[side] * 2 + 1 - side) * 1000 + i);
    const int64_t slice = (NET_WINDOW + 1) * (NET_FRAME_BYTES / (int64_t)sizeof(real)) + 3;
    real* buffer = reals(group.size * slice);
    for (int64_t i = 0; i < slice; i++) buffer[group.index * slice + i] = (real)(i % 1000 + group.index);
    int status = t->all_gather(t, &group, buffer, slice, &r->error);
    for (int64_t i = 0; status == 0 && i < group.size * slice; i++)
        wrong += buffer[i] != (real)(i % slice % 1000 + i / slice);
    if (status == 0) status = t->reduce_scatter(t, &group, buffer, slice, &r->error);
    for (int64_t i = 0; status == 0 && i < slice; i++)
        wrong += buffer[group.index * slice + i] != (real)(group.size * (i % 1000 + group.index));
    free(buffer);
    transport_wrong[t->rank] = wrong;
    return status;
}

// Rank 2 fails while the others wait for it, in every way there is to wait.
static int rank_stops(Rank* r, gpt2_sp* g, void* argument) {
    (void)argument;
    (void)g;
    Transport* t = &r->transport;
    double value = 1;
    real buffer[TRANSPORT_WORLD] = {0};
    int32_t word = 0;
    const int next = (t->rank + 1) % 6, before = (t->rank + 5) % 6;
    Piece piece = {2, &word, 4}, longer = {next, &word, 2};
    Piece from = {before, &word, 4};
    if (transport_case == 5) {   // a peer that sends what is not expected
        if (t->post(t, &longer, 1, &r->error) != 0) return -1;
        return t->wait(t, &longer, 1, &from, 1, &r->error);
    }
    if (t->rank == 2) return fail(&r->error, "rank 2 has had enough (case %d)", transport_case);
    switch (transport_case) {
    case 0: return t->barrier(t, &r->all, &r->error);
    case 1: return t->all_reduce(t, &r->all, &value, 1, &r->error);
    case 2: return t->all_gather(t, &r->all, buffer, 1, &r->error);
    case 3:   // for what rank 2 sends
        if (t->post(t, NULL, 0, &r->error) != 0) return -1;
        return t->wait(t, NULL, 0, &piece, 1, &r->error);
    default:   // until rank 2 takes it; if it is in another process, its link does: the next barrier tells
        if (t->post(t, &piece, 1, &r->error) != 0 || t->wait(t, &piece, 1, NULL, 0, &r->error) != 0)
            return -1;
        return t->barrier(t, &r->all, &r->error);
    }
}

// --- frames and links ---

static int frames_equal(const net_frame* a, const net_frame* b) {
    return a->kind == b->kind && a->from == b->from && a->to == b->to && a->operation == b->operation &&
        a->message == b->message && a->bytes == b->bytes;
}

static void transport_frames(void) {
    unsigned char header[NET_HEADER];
    int taken = 0, wrong = 0;
    net_frame f = {NULL, FRAME_SLICE, 3, HOST, 1ull << 40, 1ull << 33, NET_FRAME_BYTES, NULL}, back;
    net_frame_encode(header, &f);
    check(net_frame_decode(&back, header) == 0 && frames_equal(&back, &f),
        "transport: a frame's header is read as it was written", "read back as written");
    for (int bit = 0; bit < 8 * NET_HEADER; bit++) {
        header[bit / 8] ^= (unsigned char)(1 << bit % 8);
        taken += net_frame_decode(&back, header) == 0;
        header[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    check(taken == 0, "transport: a header with a bit turned is no header", "%d of %d taken for a header",
        taken, 8 * NET_HEADER);
    const struct {
        int kind;
        uint64_t message, bytes;
        int good;
    } limits[] = {{FRAME_PIECE, 0, 0, 1}, {FRAME_PIECE, NET_FRAME_BYTES, NET_FRAME_BYTES, 1},
        {FRAME_PIECE, 1 << 21, NET_FRAME_BYTES + 1, 0}, {FRAME_PIECE, UINT64_MAX, UINT64_MAX, 0},
        {FRAME_PIECE, 4, 5, 0}, {FRAME_PIECE, 4, 3, 0}, {FRAME_PIECE, 1 << 21, 4, 0},
        {FRAME_PIECE, (1 << 20) + 4, 4, 1}, {FRAME_PIECE, (1 << 20) + 4, 3, 0}, {NET_TAKEN - 1, 8, 8, 1},
        {NET_TAKEN, 0, 0, 1}, {NET_TAKEN, 8, 8, 0}, {NET_KINDS, 0, 0, 0}, {-1, 8, 8, 0},
        {NET_ABORT, GPT2_SP_TEXT - 1, GPT2_SP_TEXT - 1, 1}, {NET_ABORT, GPT2_SP_TEXT, GPT2_SP_TEXT, 0}};
    int count = (int)(sizeof limits / sizeof limits[0]);
    for (int i = 0; i < count; i++) {
        f.kind = limits[i].kind, f.operation = NET_WINDOW;
        f.message = limits[i].message, f.bytes = (size_t)limits[i].bytes;
        net_frame_encode(header, &f);
        wrong += (net_frame_decode(&back, header) == 0) != limits[i].good;
    }
    f.kind = NET_TAKEN, f.message = f.bytes = 0;
    for (uint64_t taken_frames = 0; taken_frames <= NET_WINDOW + 1; taken_frames++) {
        f.operation = taken_frames;
        net_frame_encode(header, &f);
        wrong += (net_frame_decode(&back, header) == 0) != (taken_frames > 0 && taken_frames <= NET_WINDOW);
    }
    check(wrong == 0, "transport: a frame's limits hold on both sides", "%d of %d", count - wrong, count);
}

// What processes of two builds would say to each other: the bytes are those of the table in data/net.h.
static void transport_bytes(void) {
    // clang-format off
    static const unsigned char expected[NET_HEADER] = {
        'G', '2', 'S', 'P', 1, 0, 0, 0, 3, 0, 0, 0, 255, 255, 255, 255, 8, 7, 6, 5, 4, 3, 2, 1,
        0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x7b, 0xaf, 0x15, 0x64};
    // clang-format on
    unsigned char header[NET_HEADER];
    net_frame f = {NULL, FRAME_SLICE, 3, HOST, 0x0102030405060708ull, 1ull << 33, NET_FRAME_BYTES, NULL};
    net_frame_encode(header, &f);
    check(memcmp(header, expected, NET_HEADER) == 0, "transport: a frame's header has the bytes of its table",
        "%d", NET_HEADER);
}

enum {
    LINK_FRAME,
    LINK_NOISE,
    LINK_HALF_HEADER,
    LINK_HALF_FRAME,
    LINK_ABORT,
    LINK_ABORT_NAMED,
    LINK_CLOSED,
    LINK_OPERATION,
    LINK_KIND,
    LINK_SIZE,
    LINK_REST,
    LINKS
};
static const struct {
    const char *what, *text;
    size_t bytes;           // that arrive; 0: the whole frame
    const char* expected;   // of the error
} LINK_CASES[LINKS] = {
    {"a frame", "the disk is full", 0, NULL},
    {"noise", "the disk is full", NET_HEADER + 64,
        "process 1 is gone (it sent what is no frame), waited for in a test"},
    {"half a header", "the disk is full", 20, "process 1 is gone (connection closed)"},
    {"half a frame", "the disk is full", NET_HEADER + 5, "process 1 is gone (connection closed)"},
    {"an abort", "the disk is full", 0, "process 1: the disk is full"},
    {"an abort that names its process", "process 7: the disk is full", 0, "process 7: the disk is full"},
    {"closed at once", "the disk is full", 0, "process 1 is gone (connection closed)"},
    {"a frame of another operation", "the disk is full", 0,
        "its operation 1 is a test, process 1 has sent another (its operation 2): they have come apart"},
    {"a frame of another kind", "the disk is full", 0, "they have come apart"},
    {"a message of another size", "the disk is full", 0,
        "expects 16 bytes of process 1 in a test, which sends 15"},
    {"a frame that is not the first of its message", "the disk is full", 0,
        "expects a frame of 1048576 bytes of process 1 in a test, which sends one of 16"},
};

// Writes what the case brings to the other end of the link, and closes it.
static void link_write(int fd, int i) {
    unsigned char bytes[NET_HEADER + 64];
    const char* text = LINK_CASES[i].text;
    net_frame f;
    memset(&f, 0, sizeof f);
    f.kind = i == LINK_ABORT || i == LINK_ABORT_NAMED ? (int)NET_ABORT : (int)FRAME_TEXT;
    f.from = f.to = HOST;
    f.operation = i == LINK_OPERATION ? 2 : 1;
    if (i == LINK_KIND) f.kind = FRAME_SLICE;
    f.message = f.bytes = strlen(text) - (i == LINK_SIZE);
    if (i == LINK_REST) f.message += NET_FRAME_BYTES;
    net_frame_encode(bytes, &f);
    memcpy(bytes + NET_HEADER, text, f.bytes);
    for (size_t k = 0; i == LINK_NOISE && k < sizeof bytes; k++) bytes[k] = (unsigned char)dice(5, k, 256);
    size_t size = LINK_CASES[i].bytes ? LINK_CASES[i].bytes : NET_HEADER + f.bytes;
    if (i != LINK_CLOSED) (void)!write(fd, bytes, size);
    close(fd);
}

// A link whose other end is this test: what bytes make of the queue, the world and the link.
static void transport_link(void) {
    for (int i = 0; i < LINKS; i++) {
        const char *text = LINK_CASES[LINK_FRAME].text, *expected = LINK_CASES[i].expected;
        ThreadWorld w;
        Error e = {0, {0}};
        int ends[2];
        memset(&w, 0, sizeof w);
        if (world_open(&w, 100, &e) != 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) continue;
        w.process = 0, w.processes = 2;
        if (net_links_make(&w.net, 0, 2) != 0) exit(1);
        w.net.links[1].fd = ends[0];
        link_write(ends[1], i);
        if (net_link_start(&w.net.links[1]) != 0) exit(1);
        Transport host = thread_transport(&w, HOST);
        transport_begin(&host, "a test");
        size_t more = i == LINK_REST ? (size_t)NET_FRAME_BYTES : 0;
        char* taken = (char*)need(more + 64, 1);
        LinkMessage m = link_message(1, HOST, taken, strlen(LINK_CASES[i].text) + more);
        int status = links_move(&host, FRAME_TEXT, NULL, 0, &m, 1, 0, &e);
        int right =
            expected ? status == -1 && strstr(e.text, expected) : status == 0 && strcmp(taken, text) == 0;
        check(right, "transport: a link brings a frame whole, or tells why there is none", "%s: %s",
            LINK_CASES[i].what, expected ? e.text : taken);
        free(taken);
        thread_world_free(&w);
    }
}

// --- processes, which here are threads of this one ---

typedef struct {
    int process, processes, port, what;   // what: 0 collectives, 1 exchange, 2 stops, 3 windows
    int status, again;
    Error error;
} TransportProcess;

static void* transport_process(void* argument) {
    TransportProcess* p = (TransportProcess*)argument;
    gpt2_sp_options o = options_of("layers=1 heads=1 channels=8 seq-len=8 dp=3 sp=2 threads=1 timeout=30");
    o.rank = p->process, o.world = p->processes;
    snprintf(o.master, sizeof o.master, "127.0.0.1:%d", p->port);
    gpt2_sp* g = trainer_new(&o);
    p->status = p->again = -1;   // another process may stop this one before its job begins
    if (!g) return NULL;
    int status = world_open(&g->world, 1e3 * o.timeout, &g->error);
    g->host = thread_transport(&g->world, HOST);
    if (status == 0 && processes_meet(g) == 0 && trainer_init(g, 128, 1) == 0) {
        static const RankJob jobs[4] = {rank_collectives, rank_exchange, rank_stops, rank_windows};
        p->status = ranks_run(g, jobs[p->what], NULL);
        if (p->what != 2) p->status |= processes_agree(&g->host, p->status, NULL, &g->error);
        else p->again = ranks_run(g, rank_collectives, NULL);
    }
    p->error = g->error;
    gpt2_sp_destroy(g);
    return NULL;
}

// Starts them all and waits; how many did not end with this status.
static int transport_processes(TransportProcess* p, int processes, int what, int status) {
    pthread_t threads[TRANSPORT_WORLD];
    int port = free_port(), wrong = 0;
    memset(p, 0, sizeof *p * TRANSPORT_WORLD);
    for (int i = 0; i < processes; i++) {
        p[i].process = i, p[i].processes = processes;
        p[i].port = port;
        p[i].what = what;
        pthread_create(&threads[i], NULL, transport_process, &p[i]);
    }
    for (int i = 0; i < processes; i++) {
        pthread_join(threads[i], NULL);
        wrong += p[i].status != status;
    }
    return wrong;
}

static void transport_between_processes(void) {
    static const char* const names[] = {
        "transport: collectives of every group between processes give the right numbers",
        "transport: messages between processes arrive as they were sent"};
    static const int counts[] = {2, 3, 6};
    TransportProcess p[TRANSPORT_WORLD];
    for (int c = 0; c < 3; c++)
        for (int what = 0; what < 2; what++) {
            int wrong = 0;
            memset(transport_wrong, -1, sizeof transport_wrong);
            int failed = transport_processes(p, counts[c], what, 0);
            for (int w = 0; w < TRANSPORT_WORLD; w++) wrong += transport_wrong[w];
            check(failed == 0 && wrong == 0, names[what], "%d processes of %d ranks: %d numbers wrong %s",
                counts[c], TRANSPORT_WORLD / counts[c], wrong, p[0].error.text);
        }
    for (int c = 1; c < 3; c++) {
        int wrong = 0;
        memset(transport_wrong, -1, sizeof transport_wrong);
        double start = now_ms();
        int failed = transport_processes(p, counts[c], 3, 0);
        for (int w = 0; w < TRANSPORT_WORLD; w++) wrong += transport_wrong[w];
        check(failed == 0 && wrong == 0, "transport: more than a window at once, both ways, arrives",
            "%d processes, %d frames: %d numbers wrong after %.1f s %s", counts[c], WINDOW_PIECES, wrong,
            1e-3 * (now_ms() - start), p[0].error.text);
    }
    for (transport_case = 0; transport_case < 6; transport_case++) {
        const char* part = transport_case == 5 ? "4 bytes of rank" : "rank 2 has had enough";
        int failed = transport_processes(p, 3, 2, -1), untold = 0;
        for (int i = 0; i < 3; i++) untold += p[i].again != -1 || !strstr(p[i].error.text, part);
        check(failed == 0 && untold == 0, "transport: one rank's end is told to all processes",
            "case %d, %d failed, %d untold: %s; %s; %s", transport_case, failed, untold, p[0].error.text,
            p[1].error.text, p[2].error.text);
    }
}

// Two processes of one rank: what only one of them meets, a weight that overflows, must stop the update of
// both.
typedef struct {
    int process, port, status, skipped, lost;
    double loss;
    uint32_t before, after;   // sums over the weights
} FiniteProcess;
static void* finite_process(void* argument) {
    FiniteProcess* p = (FiniteProcess*)argument;
    gpt2_sp_options o = options_of("layers=1 heads=1 channels=8 seq-len=8 sp=2 threads=1 timeout=30");
    char error[GPT2_SP_TEXT];
    gpt2_sp_stats stats;
    memset(&stats, 0, sizeof stats);
    o.rank = p->process, o.world = 2;
    snprintf(o.master, sizeof o.master, "127.0.0.1:%d", p->port);
    snprintf(o.data, sizeof o.data, "%s", scratch_shard);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    p->status = -2;
    if (!g) return NULL;
    real* w = g->ranks[0].state[STATE_WEIGHTS];
    size_t bytes = (size_t)g->layout.buffer[STATE_WEIGHTS] * sizeof(real);
    if (p->process == 1) w[g->layout.units[2].offset + g->layout.within[P_lnfw]] = (real)INFINITY;
    p->before = (uint32_t)crc32(0, (const unsigned char*)w, (unsigned)bytes);
    p->status = step_of(g, &stats);
    p->after = (uint32_t)crc32(0, (const unsigned char*)w, (unsigned)bytes);
    p->skipped = !stats.updated, p->loss = stats.loss;
    if (p->process == 0) p->lost = step_of(g, &stats);   // process 1 has left
    gpt2_sp_destroy(g);
    return NULL;
}
static void transport_not_finite(void) {
    FiniteProcess p[2];
    pthread_t thread;
    char out[1024], line[1200], text[512] = "";
    const char* path = scratch("finite.txt");
    memset(p, 0, sizeof p);
    p[1].process = 1;
    p[0].port = p[1].port = free_port();
    for (int i = 0; i < 50; i++) snprintf(text + strlen(text), sizeof text - strlen(text), "line %d\n", i);
    test_data_write(path, text, strlen(text));
    snprintf(scratch_shard, sizeof scratch_shard, "%s", scratch("finite.tok"));
    snprintf(line, sizeof line, "prepare --out %s %s", scratch_shard, path);
    if (command_run(line, out, sizeof out) != 0) printf("     %s\n", out);
    pthread_create(&thread, NULL, finite_process, &p[1]);
    finite_process(&p[0]);
    pthread_join(thread, NULL);
    check(p[0].status == 0 && p[1].status == 0 && p[0].skipped && p[1].skipped && p[0].before == p[0].after &&
            p[1].before == p[1].after,
        "transport: infinity on one process stops the update of all", "loss %g and %g; no update on either",
        p[0].loss, p[1].loss);
    check(p[0].lost == GPT2_SP_LOST, "transport: a step without the other process has the code of one lost",
        "%s", gpt2_sp_code_name(p[0].lost));
}

// Two processes that start from a model in three files, of which the last differs in one bit.
typedef struct {
    int process, port, begun;
    char folder[512], error[GPT2_SP_TEXT];
} FilesProcess;
static void* files_process(void* argument) {
    FilesProcess* p = (FilesProcess*)argument;
    gpt2_sp_options o = run_options(TINY);
    options_apply(&o, "sp=2 timeout=30");
    o.rank = p->process, o.world = 2;
    snprintf(o.master, sizeof o.master, "127.0.0.1:%d", p->port);
    snprintf(o.init_from, sizeof o.init_from, "%s", p->folder);
    gpt2_sp* g = trainer_of(&o, p->error, sizeof p->error);
    p->begun = g != NULL;
    gpt2_sp_destroy(g);
    return NULL;
}
static void transport_files(void) {
    gpt2_sp_options o = tiny_run("files");
    FilesProcess p[2];
    pthread_t thread;
    char path[600];
    int right = 0, parts = 0;
    memset(p, 0, sizeof p);
    for (int i = 0; i < 2; i++) {
        p[i].process = i;
        snprintf(p[i].folder, sizeof p[i].folder, "%s", scratch(i ? "files1" : "files0"));
        parts += model_in_parts(o.out, p[i].folder, 3) == 0;
    }
    for (int part = 0; part < 4; part++) {   // 0: the files are the same
        snprintf(path, sizeof path, "%.500s/model-%d-of-3.safetensors", p[1].folder, part);
        if (part) file_flip(path, file_length(path) - 4, 1);
        p[0].port = p[1].port = free_port();
        pthread_create(&thread, NULL, files_process, &p[1]);
        files_process(&p[0]);
        pthread_join(thread, NULL);
        if (part) file_flip(path, file_length(path) - 4, 1);
        for (int i = 0; i < 2; i++)
            right +=
                part ? !p[i].begun && strstr(p[i].error, "process 1 has `--init-from weights") : p[i].begun;
    }
    check(parts == 2 && right == 8, "transport: processes start from the same weights, in all of their files",
        "none, the first, second and last of 3 files other: %d of 8 processes right; %.200s", right,
        p[0].error);
}

// All ranks in one process.
static void transport_threads(void) {
    static const RankJob jobs[] = {rank_collectives, rank_exchange};
    static const char* const names[] = {"transport: collectives of every group give the right numbers",
        "transport: groups of messages arrive as they were sent"};
    static const int rounds[] = {20, 50};
    gpt2_sp_options o = options_of("layers=1 heads=1 channels=8 seq-len=8 dp=3 sp=2 threads=1");
    gpt2_sp* g = bare_trainer(&o, 128);
    for (int i = 0; g && i < 2; i++) {
        int wrong = 0;
        memset(transport_wrong, -1, sizeof transport_wrong);
        int status = ranks_run(g, jobs[i], NULL);
        for (int w = 0; w < TRANSPORT_WORLD; w++) wrong += transport_wrong[w];
        check(status == 0 && wrong == 0, names[i], "%d ranks, %d rounds: %d numbers wrong %s",
            TRANSPORT_WORLD, rounds[i], wrong, status ? g->error.text : "");
    }
    gpt2_sp_destroy(g);
}

static void transport_stops(void) {
    static const char* const waits[] = {"a barrier", "an all-reduce", "an all-gather", "a message",
        "a message's taking", "a message of another length"};
    gpt2_sp_options o = options_of("layers=1 heads=1 channels=8 seq-len=8 dp=3 sp=2 threads=1");
    for (transport_case = 0; transport_case < 6; transport_case++) {
        const char* part = transport_case == 5 ? "expects 4 bytes" : "rank 2 has had enough";
        gpt2_sp* g = bare_trainer(&o, 128);
        int status = g ? ranks_run(g, rank_stops, NULL) : 0,
            again = g ? ranks_run(g, rank_collectives, NULL) : 0;
        check(status == -1 && again == -1 && strstr(g->error.text, part),
            "transport: one rank's end wakes the others", "waiting for %s: %s", waits[transport_case],
            g ? g->error.text : "");
        gpt2_sp_destroy(g);
    }
}

static void test_transport(void) {
    transport_groups();
    transport_frames();
    transport_bytes();
    transport_link();
    transport_between_processes();
    transport_not_finite();
    transport_files();
    transport_threads();
    transport_stops();
}

// ===== library ==================================================================================
// A program around the trainer. Held: whatever its locale and its threads are, the trainer reads and writes
// the same and leaves both as they were; what is missing (NULL) is an error; an option that only the command
// line obeys is refused, not ignored.

// One step of a run on a folder of shards a.tok and B.tok, saved; then whether another call goes on with it.
static int library_run(const char* out, Dataset* order, char* error) {
    gpt2_sp_options o = run_options("layers=1 heads=1 channels=8 seq-len=16 batch-size=1");
    gpt2_sp_stats stats;
    snprintf(o.data, sizeof o.data, "%s", scratch("two-shards"));
    snprintf(o.out, sizeof o.out, "%s", out);
    gpt2_sp* g = trainer_of(&o, error, GPT2_SP_TEXT);
    int status = g && step_of(g, &stats) == 0 && gpt2_sp_save(g) == 0 ? (int)gpt2_sp_steps(g) : -1;
    if (g && status < 0) snprintf(error, GPT2_SP_TEXT, "%s", gpt2_sp_error(g));
    if (g && order) snprintf(error, GPT2_SP_TEXT, "%s", g->data.shards[0].path);
    gpt2_sp_destroy(g);
    return status;
}

static void library_locale(void) {
    char error[GPT2_SP_TEXT] = "", path[1200], text[64];
    int32_t tokens[600];
    gpt2_sp_options o;
    for (int i = 0; i < 600; i++) tokens[i] = (int32_t)dice(5, (uint64_t)i, 256);
    int status = mkdir(scratch("two-shards"), 0777);
    for (int i = 0; i < 2; i++) {
        tok_writer w;
        snprintf(path, sizeof path, "%s/%s", scratch("two-shards"), i ? "a.tok" : "B.tok");
        status |= tok_writer_open(&w, path, TOK_BYTE, 257, 256, 4096, error, sizeof error) ||
            tok_writer_add(&w, tokens + 100 * i, 500, error, sizeof error) ||
            tok_writer_end_document(&w, 500, error, sizeof error) ||
            tok_writer_finish(&w, error, sizeof error);
    }
    if (!comma_locale()) {
        skip(
            "library: the locale of the program around it does not matter", "no locale with a decimal comma");
        return;
    }
    options_default(&o);
    int taken = option_text(&o, "lr", "0.125", error, sizeof error),
        comma = option_text(&o, "lr", "0,5", error, sizeof error);
    locale_t before = uselocale((locale_t)0);
    int first = library_run(scratch("comma"), NULL, error), same = uselocale((locale_t)0) == before;
    snprintf(text, sizeof text, "%.3f", o.lr);
    setlocale(LC_ALL, "C");
    int second = library_run(scratch("comma"), NULL, error);
    check(status == 0 && taken == 0 && comma == GPT2_SP_INVALID && o.lr == 0.125 &&
            strcmp(text, "0,125") == 0 && same && first == 1 && second == 2,
        "library: the locale of the program around it does not matter, and stays",
        "lr 0.125 is read in a locale that writes %s; its run of two shards goes on in the locale C, %d to "
        "%d %s",
        text, first, second, error);
}

static void library_host(void) {
    char error[GPT2_SP_TEXT] = "";
    gpt2_sp_options o = run_options("layers=1 heads=1 channels=8 seq-len=16 threads=2");
    gpt2_sp_stats stats;
    double loss;
#ifdef _OPENMP
    omp_set_num_threads(3);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    int created = omp_get_max_threads(), status = g ? step_of(g, &stats) : -1;
    int32_t prompt = 65, out[4];
    int stepped = omp_get_max_threads();
    status |= !g || generated(g, &prompt, 1, out, 4, 0, 0, 1, 1) < 0;
    int generated = omp_get_max_threads();
    check(status == 0 && created == 3 && stepped == 3 && generated == 3,
        "library: the program's number of threads stays",
        "3 before; %d, %d, %d after making a trainer of 2, a step, sampling %s", created, stepped, generated,
        error);
    gpt2_sp_destroy(g);
    omp_set_num_threads(1);
#endif
    int refused = option_text(NULL, "lr", "1", error, sizeof error) == GPT2_SP_INVALID;
    refused += option_text(&o, NULL, "1", error, sizeof error) == GPT2_SP_INVALID;
    refused += option_text(&o, "lr", NULL, error, sizeof error) == GPT2_SP_INVALID;
    refused += option_text(&o, "lr", "x", NULL, 5) == GPT2_SP_INVALID;
    refused += !trainer_of(NULL, error, sizeof error) && error[0];
    refused += step_of(NULL, &stats) == GPT2_SP_INVALID && gpt2_sp_save(NULL) == GPT2_SP_INVALID &&
        gpt2_sp_validate(NULL, 1, &loss) == GPT2_SP_INVALID;
    refused += gpt2_sp_generate(NULL, NULL, 1, NULL, 1, NULL) == GPT2_SP_INVALID && gpt2_sp_error(NULL)[0];
    check(refused == 7, "library: what is missing is an error", "%d of 7", refused);
    static const char* const command_only[] = {"save-every", "val-every", "check", "log-every"};
    int told = 0;
    for (int i = 0; i < 4; i++) {
        gpt2_sp_options with = o;
        const int set = option_text(&with, command_only[i], i == 2 ? "1" : "5", error, sizeof error);
        told += set == 0 && !trainer_of(&with, error, sizeof error) && strstr(error, command_only[i]);
    }
    check(told == 4, "library: an option of the command line alone is refused", "%d of 4: %s", told, error);
}

// Each code by a case that has it, with its name; and the line of a call that went well is empty.
static void library_codes(void) {
    static const struct {
        const char* more;
        int code;
    } cases[] = {{"layers=3000000", GPT2_SP_INVALID}, {"channels=50 heads=4", GPT2_SP_INVALID},
        {"layers=512 channels=65536 heads=256 vocab=1048576", GPT2_SP_NO_MEMORY},
        {"data=/nowhere/a.tok", GPT2_SP_FILE}, {"init-from=/nowhere", GPT2_SP_FILE},
        {"vocab=100", GPT2_SP_MISMATCH}, {"seq-len=16000000", GPT2_SP_MISMATCH},
        {"products=file", GPT2_SP_UNSUPPORTED}, {"save-every=3", GPT2_SP_INVALID}};
    int right = 0, named = 0, count = (int)(sizeof cases / sizeof cases[0]);
    gpt2_sp_failure failure = {1, "x"};
    for (int i = 0; i < count; i++) {
        gpt2_sp_options* o = gpt2_sp_options_new();
        char list[200], *rest = list;
        options_apply(o, "layers=1 heads=1 channels=8 seq-len=16 threads=1");
        snprintf(o->data, sizeof o->data, "%s", run_data());
        snprintf(list, sizeof list, "%s", cases[i].more);
        int status = 0;
        for (char* word; status == 0 && (word = strtok_r(rest, " ", &rest)) != NULL;) {
            char* value = strchr(word, '=');
            *value++ = 0;
            status = gpt2_sp_set(o, word, value, &failure);
        }
        gpt2_sp* g = status == 0 ? gpt2_sp_create(o, &failure) : NULL;
        right += !g && failure.code == cases[i].code && failure.text[0];
        if (g || failure.code != cases[i].code)
            printf("     %s: %s, %s\n", cases[i].more, gpt2_sp_code_name(failure.code), failure.text);
        gpt2_sp_destroy(g);
        gpt2_sp_options_free(o);
    }
    named += strcmp(gpt2_sp_code_name(0), "GPT2_SP_OK") == 0;
    named += strcmp(gpt2_sp_code_name(GPT2_SP_NO_MEMORY), "GPT2_SP_NO_MEMORY") == 0;
    named += strcmp(gpt2_sp_code_name(-99), "unknown") == 0;
    check(right == count && named == 3, "library: what failed has the code of its cause",
        "%d of %d cases, %d of 3 names", right, count, named);
}

// Options by name: what is read is what was set, for every option, and a new trainer needs no struct.
static void library_options(void) {
    gpt2_sp_options *o = gpt2_sp_options_new(), *again = gpt2_sp_options_new();
    gpt2_sp_failure failure;
    char text[2048], path[600];
    int same = 0, known = 0;
    options_apply(o, "seq-len=33 lr=0.1 schedule=ring");
    snprintf(o->prompt, sizeof o->prompt, " a \"line\"\n");
    for (int i = 0; i < OPTION_COUNT; i++) {
        int length = gpt2_sp_get(o, OPTIONS[i].name, text, sizeof text, &failure);
        known += length == (int)strlen(text) && failure.code == GPT2_SP_OK && !failure.text[0];
        if (text[0] || OPTIONS[i].kind != OPTION_TXT) gpt2_sp_set(again, OPTIONS[i].name, text, NULL);
    }
    same = memcmp(o, again, sizeof *o) == 0;
    check(known == OPTION_COUNT && same, "library: an option is read as it is set", "%d of %d options, %s",
        known, OPTION_COUNT, same ? "all the same" : "different");
    snprintf(path, sizeof path, "%s", scratch("library.cfg"));
    FILE* f = fopen(path, "w");
    if (f) fputs("seq-len = 48\nlr = 0.5\n", f), fclose(f);
    int loaded = gpt2_sp_load_config(o, path, NULL), wrong = gpt2_sp_load_config(o, "/nowhere.cfg", &failure);
    check(loaded == 0 && o->seq_len == 48 && o->lr == 0.5 && wrong == GPT2_SP_FILE,
        "library: a file of options is read", "%s", failure.text);
    int refused = gpt2_sp_get(o, "lr", text, 3, &failure) == GPT2_SP_INVALID;
    refused += gpt2_sp_get(o, "lrr", text, 30, &failure) == GPT2_SP_INVALID && strstr(failure.text, "--lr?");
    refused += gpt2_sp_get(NULL, "lr", text, 30, NULL) == GPT2_SP_INVALID;
    refused += gpt2_sp_load_config(o, NULL, NULL) == GPT2_SP_INVALID;
    check(refused == 4, "library: what cannot be read is refused", "%d of 4", refused);
    gpt2_sp_options_free(o);
    gpt2_sp_options_free(again);
    gpt2_sp_options_free(NULL);
}

// A program that knows less, or more, of a struct than the library: what both know is filled in.
static void library_sizes(void) {
    gpt2_sp_options o = run_options("layers=1 heads=1 channels=8 seq-len=16 threads=1");
    struct {
        gpt2_sp_stats stats;
        unsigned char more[64];
    } newer;
    char error[GPT2_SP_TEXT] = "";
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    int kept = 0;
    memset(&newer, 77, sizeof newer);
    newer.stats.size = sizeof newer;
    int status = g ? gpt2_sp_step(g, &newer.stats) : -1;
    for (size_t i = 0; i < sizeof newer.more; i++) kept += newer.more[i] == 77;
    check(status == 0 && newer.stats.step == 1 && newer.stats.size == sizeof newer && kept == 64,
        "library: a struct that is larger than the library's keeps what is behind it",
        "step %d, %d of 64 bytes %s", (int)newer.stats.step, kept, error);
    newer.stats.size = 8;
    int refused = g && gpt2_sp_step(g, &newer.stats) == GPT2_SP_INVALID && gpt2_sp_steps(g) == 1 &&
        gpt2_sp_code(g) == GPT2_SP_INVALID && strstr(gpt2_sp_error(g), "gpt2_sp_stats.size is 8");
    gpt2_sp_sampling how;
    how.size = 0;
    refused += gpt2_sp_sampling_defaults(&how) == GPT2_SP_INVALID;
    int32_t prompt = 65, out[4];
    refused += g && gpt2_sp_generate(g, &prompt, 1, out, 4, &how) == GPT2_SP_INVALID;
    refused += g && gpt2_sp_step(g, NULL) == GPT2_SP_INVALID;
    check(refused == 4, "library: a struct without its size is refused, before anything is done",
        "%d of 4: %s", refused, gpt2_sp_error(g));
    const char* without = g && gpt2_sp_save(g) == GPT2_SP_INVALID ? gpt2_sp_error(g) : "saved";
    check(strstr(without, "no --out") != NULL, "library: a save without a folder is refused", "%s", without);
    gpt2_sp_destroy(g);
    check(gpt2_sp_has("fp64") == (GPT2_SP_REAL_BYTES == 8) && !gpt2_sp_has("elephants") &&
            !gpt2_sp_has(NULL) && strstr(gpt2_sp_build(), gpt2_sp_version()) &&
            strcmp(gpt2_sp_version(), GPT2_SP_VERSION) == 0,
        "library: it tells its version and what it has", "%s", gpt2_sp_build());
}

// Writes a small file in a folder of its own under the tests' folder.
static void library_file(const char* folder, const char* name, const char* text) {
    char path[1200];
    snprintf(path, sizeof path, "mkdir -p %s/%s", scratch("groups"), folder);
    int status = system(path);
    snprintf(path, sizeof path, "%s/%s/%s", scratch("groups"), folder, name);
    FILE* f = status == 0 ? fopen(path, "w") : NULL;
    if (f) fputs(text, f), fclose(f);
}

// The limits of a container, by files as the kernel has them: the least on the way up.
static void library_limits(void) {
    library_file(".", "v2", "0::/a/b\n");
    library_file("two/a/b", "memory.max", "max\n");
    library_file("two/a", "memory.max", "1073741824\n");
    library_file("two", "memory.max", "4294967296\n");
    library_file("two/a/b", "cpu.max", "150000 100000\n");
    library_file("two/a", "cpu.max", "max 100000\n");
    library_file(".", "v1", "7:pids:/x\n5:memory:/x/y\n3:cpu,cpuacct:/x\n");
    library_file("one/memory", "memory.limit_in_bytes", "536870912\n");
    library_file("one/cpu,cpuacct/x", "cpu.cfs_quota_us", "50000\n");
    library_file("one/cpu,cpuacct/x", "cpu.cfs_period_us", "100000\n");
    library_file("one/cpu,cpuacct", "cpu.cfs_quota_us", "-1\n");
    char member[1200], root[1200];
    snprintf(member, sizeof member, "%s/v2", scratch("groups"));
    snprintf(root, sizeof root, "%s/two", scratch("groups"));
    GroupLimits two = group_limits(member, root), none = group_limits(member, "/nowhere");
    snprintf(member, sizeof member, "%s/v1", scratch("groups"));
    snprintf(root, sizeof root, "%s/one", scratch("groups"));
    GroupLimits one = group_limits(member, root);
    check(two.bytes == 1073741824 && two.cores == 1.5 && one.bytes == 536870912 && one.cores == 0.5 &&
            none.bytes == UINT64_MAX && isinf(none.cores),
        "library: the limits of a container are known",
        "version 2: %llu bytes, %g cores; version 1: %llu, %g", (unsigned long long)two.bytes, two.cores,
        (unsigned long long)one.bytes, one.cores);
}

// A container with one core and 64 MiB: the program counts no more than that as its own.
static void library_container(void) {
    const int64_t cores = usable_cores(NULL);
    char folder[1200];
    library_file("machine/proc/self", "cgroup", "0::/\n");
    library_file("machine/sys/fs/cgroup", "cpu.max", "150000 100000\n");
    library_file("machine/sys/fs/cgroup", "memory.max", "67108864\n");
    snprintf(folder, sizeof folder, "%s/machine", scratch("groups"));
#ifndef GPT2_SP_GPU
    kernel_shown = folder;
    const int64_t own = usable_cores(NULL);
    const unsigned long long bytes = machine_bytes(NULL);
    kernel_shown = NULL;
    check(own == 1 && bytes == 67108864 && usable_cores(NULL) == cores,
        "library: a container's cores and memory are all that there is",
        "%lld of %lld cores, %llu bytes of memory", (long long)own, (long long)cores, bytes);
#endif
}

// What a rank of W gets of rates that two ranks had at once; what is given by hand is not shared.
static void library_rates(void) {
    gpt2_sp_options o = options_of("");
    const Rates measured = {10, 8, 4, 6, 2};
    const Rates one = rates_of(&o, &measured, 1), two = rates_of(&o, &measured, 2),
                eight = rates_of(&o, &measured, 8);
    options_apply(&o, "gflops=7 threads=1");
    const Rates given = rates_of(&o, &measured, 8), alone = rates_of(&o, &measured, 1);
    check(two.gflops == 10 && eight.gflops == 2.5 && eight.attention_gflops == 2 && eight.copy_gbs == 1.5 &&
            eight.link_gbs == 1 && one.gflops == 20 && one.copy_gbs == 6 && given.gflops == 7 &&
            given.copy_gbs == 1.5 && alone.attention_gflops == 7 && alone.link_gbs == 4,
        "library: ranks share what the machine has", "10 GFLOP/s with 2 ranks: %g alone, %g of 2, %g of 8",
        one.gflops, two.gflops, eight.gflops);
}

static void test_library(void) {
    library_codes();
    library_options();
    library_sizes();
    library_limits();
    library_container();
    library_rates();
    library_locale();
    library_host();
}

// ===== commands =================================================================================
// The commands in the order in which a user meets them, on a text of 30 KB. Held: each does what its name
// says from the files of the one before, its JSON is JSON, and what cannot be done is refused in a sentence.
// The other groups call functions; here the program is used as its users use it, so that parts that are
// right one by one and do not fit together show.

enum { COMMAND_OUT = 1 << 16 };
static char command_out[COMMAND_OUT];   // what the last command printed, and its error
static char command_book[512], command_shard[512],
    command_folder[512];   // a text, its shard, and the folder of a run

// Runs a command line as command_run does.
static int command(const char* format, ...) __attribute__((format(printf, 1, 2)));
static int command(const char* format, ...) {
    char line[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return command_run(line, command_out, COMMAND_OUT);
}
static int command_said(const char* text) { return strstr(command_out, text) != NULL; }

static int json_whole(const char* text) {
    return json_validate(text, strlen(text), JSON_MAX_DEPTH, NULL) == 0;
}
// Number `key` of an object of the last command's JSON; NAN if there is none.
static double command_number(const char* object, const char* key) {
    json_span span;
    double value;
    if (json_get(command_out, strlen(command_out), object, &span) != 1) return NAN;
    return json_get_double(span.s, span.n, key, &value) == 1 ? value : NAN;
}

static void commands_prepare(void) {
    FILE* f = fopen(command_book, "w");
    for (int i = 0; f && i < 600; i++)
        fprintf(f, "Line %d of a book that tells %llu things.\n", i,
            (unsigned long long)dice(99, (uint64_t)i, 1000));
    if (f) fclose(f);
    int status = command("prepare --tokenizer byte --out %s %s", command_shard, command_book);
    check(status == 0 && command_said("1 documents, "), "commands: prepare makes a shard of a text", "%s",
        command_out);
}

static void commands_schedule(void) {
    int status = command("schedule --schedule dist --sp 8 --json");
    double makespan = command_number("forward", "makespan");
    check(status == 0 && json_whole(command_out) && makespan == 4,
        "commands: schedule --json tells the makespan", "makespan %g", makespan);
    status = command("schedule --schedule dist-paper --sp 8");
    check(status == 0 && command_said("makespan 4.5 units, ideal 4") && command_said("idle"),
        "commands: schedule draws where ranks are idle", "dist-paper P=8 %s",
        status ? command_out : "drawn, with its idle half step");
}

// Eight sequences of 4096 on eight ranks: nothing to exchange beats anything to exchange; where one rank has
// no room a sequence must be split.
static void commands_plan(void) {
    const char* shape = "plan --layers 2 --heads 2 --channels 64 --seq-len 2048";
    const char* long_shape =
        "plan --layers 4 --heads 4 --channels 256 --vocab 257 --seq-len 4096 --gflops 1000 "
        "--link-gbs 1 --copy-gbs 10 --sp 8";
    int status = command("%s --sp 4 --json --gflops 50 --link-gbs 5", shape);
    double total = command_number("memory_bytes", "total");
    check(status == 0 && json_whole(command_out) && total > 0, "commands: plan --json tells a rank's memory",
        "%.0f bytes a rank", total);
    status = command("%s --batch-size 8", long_shape);
    check(status == 0 && command_said("--dp 8 --sp 1 would give") &&
            command_said("sequences of 4096 fit one rank"),
        "commands: plan advises data parallelism", "%s", status ? command_out : "--dp 8 --sp 1");
    status = command("%s --memory-gb 0.15 --json", long_shape);
    double sp = command_number("best_split", "sp"), speedup = command_number("best_split", "speedup");
    check(status == 0 && json_whole(command_out) && sp > 1 && speedup >= 1,
        "commands: plan splits a sequence that has no room on one rank", "--sp %g is the best, %.3f x", sp,
        speedup);
    check(command_said("\"sp\": 256, \"seconds\"") && !command_said("\"sp\": 512"),
        "commands: plan projects up to as many ranks as --sp takes", "%.40s", command_out);
    status = command("%s", shape);
    check(status == 0 && command_said("the longest context that fits"),
        "commands: plan tells the longest context that fits", "%.60s...", command_out);
}

static void commands_train(void) {
    const char *run = command_folder, *shard = command_shard;
    const char* small = "--layers 1 --heads 2 --channels 32 --seq-len 128 --threads 1 --lr 1e-2 --save-every "
                        "4 --val-every 3 --val-sequences 2";
    int status = command("train --data %s --val-data %s --out %s %s --sp 3 --batch-size 2 --steps 6", shard,
        shard, run, small);
    check(status == 0 && command_said("step     6/6") && command_said("saved"),
        "commands: train trains and saves", "%s", status ? command_out : "6 steps, saved");
    status = command(
        "train --data %s --val-data %s --out %s %s --dp 2 --zero 3 --steps 8", shard, shard, run, small);
    check(status == 0 && command_said("(resumed)") && command_said("step     7/8"),
        "commands: train goes on at another shape", "%s", status ? command_out : "steps 7 and 8");
}

// The log of those two: validated every third step and at the end of each.
static void commands_log(void) {
    static const char* const keys[] = {"step", "loss", "grad_norm", "lr", "tokens", "ms", "tok_per_s"};
    char path[600], text[4096];
    int lines = -1, good = 0;   // the first line is a validation before step 1
    snprintf(path, sizeof path, "%s/log.jsonl", command_folder);
    FILE* f = fopen(path, "r");
    while (f && fgets(text, sizeof text, f)) {
        int whole = json_whole(text), step = ++lines;
        double value = 0;
        for (int i = 0; i < 7; i++)
            whole &= json_get_double(text, strlen(text), keys[i], &value) ==
                (step > 0 || strcmp(keys[i], "step") == 0 || strcmp(keys[i], "tokens") == 0 ||
                    strcmp(keys[i], "ms") == 0);
        whole &= json_get_double(text, strlen(text), "step", &value) == 1 && value == step;
        whole &= json_get_double(text, strlen(text), "val_loss", &value) ==
            (step % 3 == 0 || step == 8 || step == 6);
        good += whole;
    }
    if (f) fclose(f);
    check(lines == 8 && good == 9, "commands: log.jsonl has every step with all columns",
        "%d lines, %d of them one JSON object with all columns", lines + 1, good);
}

static void commands_use(void) {
    double bits = NAN;
    int status = command(
        "eval --from %s --data %s --val-sequences 3 --json --threads 1", command_folder, command_shard);
    int found = json_get_double(command_out, strlen(command_out), "bits_per_byte", &bits);
    check(status == 0 && json_whole(command_out) && found == 1 && bits > 0 && bits < 9,
        "commands: eval --json tells bits per byte", "%.4f bits per byte %s", bits,
        status ? command_out : "");
    status =
        command("sample --from %s --prompt Line --length 12 --temperature 0 --threads 1", command_folder);
    check(status == 0 && strncmp(command_out, "Line", 4) == 0, "commands: sample continues the prompt",
        "%.40s", status == 0 && strlen(command_out) > 4 ? "continues the prompt" : command_out);
    const char *text = scratch("s.jsonl"), *shard = scratch("s.tok");
    status = command("synth --out %s --docs 3 --doc-bytes 600 --facts 2", text);
    check(status == 0 && file_length(text) > 1800, "commands: synth writes its documents", "%s", command_out);
    status = command("prepare --out %s %s", shard, text);
    check(status == 0 && command_said("3 documents, "), "commands: prepare takes documents of .jsonl", "%s",
        command_out);
}

// An evaluation and the recall test give the same figures whatever ranks share them, also where the last
// batch of the replicas is not full.
static void commands_eval_split(void) {
    static const char* const splits[] = {"--sp 1", "--sp 3", "--sp 4 --schedule zigzag", "--dp 2 --sp 2",
        "--dp 3 --sp 1", "--sp 2 --schedule ring --doc-mask 0"};
    double loss[6], tokens[6], needle[6], asked[6], worst = 0;
    int alike = 0, count = (int)(sizeof splits / sizeof splits[0]);
    for (int i = 0; i < count; i++) {
        int status = command("eval --from %s --data %s --val-sequences 5 --needle 4 --facts 1 --seq-len 117 "
                             "--json --threads 1 %s",
            command_folder, command_shard, splits[i]);
        size_t n = strlen(command_out);
        loss[i] = tokens[i] = needle[i] = asked[i] = NAN;
        json_get_double(command_out, n, "loss", &loss[i]),
            json_get_double(command_out, n, "tokens", &tokens[i]);
        json_get_double(command_out, n, "needle", &needle[i]);
        json_get_double(command_out, n, "needle_asked", &asked[i]);
        double apart = fabs(loss[i] / loss[0] - 1);
        if (!(apart <= worst)) worst = apart;
        alike += status == 0 && tokens[i] == 5 * 117 && needle[i] == needle[0] && asked[i] == 4;
    }
    check(alike == count && worst < 1e-6, "commands: eval gives the same figures for every split",
        "loss %.7f, %.1e apart; %d of %d alike, %g of %g facts", loss[0], worst, alike, count,
        needle[0] * asked[0], asked[0]);
}

static void commands_refused(void) {
    static const struct {
        const char *line, *part;
    } refused[] = {{"eval --from /nowhere --data x", "/nowhere: is not there"}, {"eval", "nothing to do"},
        {"sample", "no model given: --from RUN"}, {"prepare --out /tmp/x.tok", "no input"},
        {"prepare x.txt", "no --out"}, {"synth", "no --out"}, {"train", "no token shards given"},
        {"schedule --schedule dist-paper --sp 5", "leaves out pairs at odd --sp"},
        {"plan --heads 3 --channels 64", "not divisible by --heads 3"}};
    int told = 0, count = (int)(sizeof refused / sizeof refused[0]);
    for (int i = 0; i < count; i++) {
        if (command("%s", refused[i].line) == -1 && command_said(refused[i].part)) told++;
        else printf("     %s: %s\n", refused[i].line, command_out);
    }
    check(told == count, "commands: what cannot be done is refused", "%d of %d", told, count);
    int helped = 0;
    for (int i = 0; i < COMMAND_COUNT; i++)
        helped += command("%s --help", COMMANDS[i].name) == 1 && command_said("usage: ./train_gpt2_sp") &&
            command_said("--config FILE");
    check(helped == COMMAND_COUNT, "commands: --help shows a command's usage and options",
        "%d of %d commands", helped, COMMAND_COUNT);
}

static void test_commands(void) {
    snprintf(command_book, sizeof command_book, "%s", scratch("book.txt"));
    snprintf(command_shard, sizeof command_shard, "%s", scratch("book.tok"));
    snprintf(command_folder, sizeof command_folder, "%s", scratch("book_run"));
    commands_prepare();
    commands_schedule();
    commands_plan();
    commands_train();
    commands_log();
    commands_use();
    commands_eval_split();
    commands_refused();
}

#include "dev/test_rates.h"

#include "dev/test_positions.h"

#include "dev/test_library.h"

// ===== groups ===================================================================================

#ifdef GPT2_SP_GPU
#include "dev/test_gpu.h"
#else
#include "dev/test_figures.h"
#include "dev/test_sampling.h"
#include "dev/test_tokenized.h"
#include "dev/test_export.h"
#include "dev/test_launches.h"
#include "dev/test_evaluations.h"
#include "dev/test_pictures.h"
#include "dev/test_pipelines.h"
#endif

static const struct {
    const char* name;
    void (*run)(void);
} GROUPS[] = {
#ifdef GPT2_SP_GPU
    {"host", test_gpu_host},   // the only one that needs no GPU
    {"kernels", test_kernels},
    {"products", test_products},
    {"oracle", test_oracle},
    {"training", test_training},
    {"rates", test_rates},
    {"positions", test_positions},
    {"cancel", test_cancel},
    {"own-data", test_own_data},
    {"tensors", test_tensors},
    {"resume", test_crossing},
    {"sampling", test_gpu_sampling},
    {"memory", test_gpu_memory},
    {"verify", test_verify},
    {"ranks", test_ranks},
    {"ranks-runs", test_ranks_runs},
#else
    {"data", test_data},
    {"tokenizer", test_bpe},
    {"prepare", test_prepare},
    {"safetensors", test_safetensors},
    {"schedules", test_schedules},
    {"attention", test_attention},
    {"layers", test_layers},
    {"model", test_model},
    {"fixture", test_fixture},
    {"runs", test_runs},
    {"rates", test_rates},
    {"positions", test_positions},
    {"memory", test_memory},
    {"resume", test_resume},
    {"loader", test_loader},
    {"options", test_options},
    {"sampling", test_sampling},
    {"net", test_net},
    {"transport", test_transport},
    {"commands", test_commands},
    {"library", test_library},
    {"cancel", test_cancel},
    {"own-data", test_own_data},
    {"tensors", test_tensors},
    {"proofs", test_proofs},
    {"figures", test_figures},
    {"generated", test_generated},
    {"drawing", test_drawing},
    {"sharing", test_sharing},
    {"import", test_import},
    {"export", test_export},
    {"told", test_told},
    {"launches", test_launches},
    {"tokenized", test_tokenized},
    {"evaluations", test_evaluations},
    {"pictures", test_pictures},
    {"pipelines", test_pipelines},
#endif
};
enum { GROUP_COUNT = (int)(sizeof GROUPS / sizeof GROUPS[0]) };

int main(int argc, char** argv) {
    int named = 0;
    const char* wish = getenv("GPT2_SP_QUICK");
    quick = wish && strcmp(wish, "1") == 0;
    for (int i = 1; i < argc; i++) {
        int fewest = strcmp(argv[i], "few") == 0, known = fewest || strcmp(argv[i], "quick") == 0;
        quick |= known;
        few |= fewest;
        for (int j = 0; j < GROUP_COUNT; j++)
            if (strcmp(argv[i], GROUPS[j].name) == 0) known = 1, named++;
        if (known) continue;
        fprintf(stderr, "test_gpt2_sp: no group `%s`; there are: quick few", argv[i]);
        for (int j = 0; j < GROUP_COUNT; j++) fprintf(stderr, " %s", GROUPS[j].name);
        fprintf(stderr, "\n");
        return 2;
    }
#ifdef GPT2_SP_GPU
    char host[] = "host", *host_only[] = {argv[0], host};
    if (!gpu_here()) {
        named = 1, argc = 2;
        argv = host_only;
    }
#endif
    for (int j = 0; j < GROUP_COUNT; j++) {
        int wanted = named == 0;
        for (int i = 1; i < argc; i++) wanted |= strcmp(argv[i], GROUPS[j].name) == 0;
        if (!wanted) continue;
        double start = now_ms();
        GROUPS[j].run();
        printf("---- %s, %s: %.1f s\n", GROUPS[j].name, IS_DOUBLE ? "double" : "float",
            1e-3 * (now_ms() - start));
        fflush(stdout);
    }
    if (scratch_folder[0]) remove_tree(scratch_folder);
    printf("%d passed, %d failed", passed, failed);
    if (skipped) printf(", %d skipped", skipped);
    printf("\n");
    return failed > 0;
}
