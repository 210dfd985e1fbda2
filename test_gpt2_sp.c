/* test_gpt2_sp: the tests of gpt2_sp, built against the CPU program, which it includes whole.
 *
 *     make test                              builds and runs everything, in float and in double
 *     ./test_gpt2_sp                         all groups; `./test_gpt2_sp schedules resume` runs those two
 *     ./test_gpt2_sp quick                   fewer cases of each, for sanitizer builds (or GPT2_SP_QUICK=1)
 *
 * Every test prints what it compared and the figure, as `ok   name: figure` or `FAIL name: figure`; the last line is
 * `N passed, N failed`, and the exit status is 1 if any failed. A NaN fails every comparison. Run it in the repository's
 * root (it reads dev/fixtures); files of its own go to a folder under $TMPDIR or /tmp, which is removed at the end.
 *
 * Tolerances come from the arithmetic: EPS is the spacing of `real` at 1. A sum of n products has a relative error (in the
 * norm) of about sqrt(n) EPS; where a figure depends on more than one such sum the comment at the test says how many.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// All memory that the program asks for is counted, so that the memory tests see what no plan mentions.
static size_t memory_live, memory_peak;   // bytes

static void* counted(void* p) {
    if (!p) return p;
    size_t live = __atomic_add_fetch(&memory_live, malloc_usable_size(p), __ATOMIC_RELAXED), peak = __atomic_load_n(&memory_peak, __ATOMIC_RELAXED);
    while (live > peak && !__atomic_compare_exchange_n(&memory_peak, &peak, live, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
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
#define malloc(size) counted(malloc(size))
#define calloc(count, size) counted(calloc(count, size))
#define realloc(p, size) counted_realloc(p, size)
#define posix_memalign(p, alignment, size) counted_memalign(p, alignment, size)
#define free(p) counted_free(p)

#define GPT2_SP_NO_MAIN
#include "train_gpt2_sp.c"

// ===== results ==================================================================================

static int passed, failed, skipped;
static int quick;   // fewer cases

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

#include "dev/test_data.h"
#include "dev/test_safetensors.h"

static const double EPS = sizeof(real) == 8 ? 2.220446049250313e-16 : 1.1920928955078125e-07;
enum { IS_DOUBLE = sizeof(real) == 8 };

// The larger of two figures; once NaN, it stays NaN.
static double worst(double a, double b) { return isnan(a) || a > b ? a : b; }

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
static uint64_t dice(uint64_t stream, uint64_t k, uint64_t sides) { return random_bits(20240607, stream, k) % sides; }
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

// A path in the tests' own folder, which is made at the first call. The text is good until 8 calls later.
static char scratch_folder[256];
static const char* scratch(const char* name) {
    static char paths[8][512];
    static int next;
    if (!scratch_folder[0]) {
        const char* parent = getenv("TMPDIR");
        snprintf(scratch_folder, sizeof scratch_folder, "%.200s/gpt2_sp_test_XXXXXX", parent && parent[0] ? parent : "/tmp");
        if (!mkdtemp(scratch_folder)) {
            perror(scratch_folder);
            exit(1);
        }
    }
    char* path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", scratch_folder, name);
    return path;
}
static void remove_tree(const char* path) { nftw(path, test_data_remove, 16, FTW_DEPTH | FTW_PHYS); }

// Sets options from "name=value name=value".
static void options_apply(gpt2_sp_options* o, const char* text) {
    char name[64], value[256], error[GPT2_SP_TEXT];
    int used;
    for (; sscanf(text, " %63[^= ]=%255s%n", name, value, &used) == 2; text += used)
        if (gpt2_sp_set(o, name, value, error, sizeof error) != 0) check(0, "options of a test", "%s", error);
}
static gpt2_sp_options options_of(const char* text) {
    gpt2_sp_options o;
    gpt2_sp_defaults(&o);
    options_apply(&o, text);
    return o;
}

// A trainer without data or checkpoint: ranks, memory and schedules, the weights all zero.
static gpt2_sp* bare_trainer(const gpt2_sp_options* o, int64_t vocab) {
    gpt2_sp* g = trainer_new(o);
    if (g && trainer_init(g, vocab, 1) == 0) return g;
    check(0, "a test's trainer", "%s", g ? g->error.text : "out of memory");
    gpt2_sp_destroy(g);
    return NULL;
}

// All weights, gradients or moments of a trainer, whole, wherever its ranks keep them: (layout.elements).
enum { COLLECT_GRADIENTS = STATE_KINDS };
static void collect(const gpt2_sp* g, int kind, real* out) {
    int zero = g->mesh.zero, sharded = kind == STATE_WEIGHTS ? zero >= 3 : kind == COLLECT_GRADIENTS ? zero >= 2 : zero >= 1;
    for (int u = 0; u < g->layout.count; u++) {
        const Unit* unit = &g->layout.units[u];
        for (int w = 0; w < g->mesh.world; w++) {
            const Rank* r = &g->ranks[w];
            const real* from = kind == STATE_WEIGHTS ? r->weights : kind == COLLECT_GRADIENTS ? r->gradients : kind == STATE_M ? r->m : r->v;
            from += sharded ? unit->shard_offset : unit->offset + w * unit->slice;
            memcpy(out + unit->offset + w * unit->slice, from, (size_t)unit->slice * sizeof(real));
        }
    }
}

// ===== schedules ================================================================================

// Whether there is a table of that kind for P ranks (ulysses: any, with P heads).
static int schedule_exists(int kind, int P) { return kind != GPT2_SP_DIST_PAPER || P % 2 == 0 || P == 1; }

static void schedules_proved(void) {
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
        int tables = 0, wrong = 0, hashes = 0;
        uint64_t seen[128];
        Error e = {{0}}, first = {{0}};
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
        check(wrong == 0 && hashes == 0, "schedules: proof", "%s, P 1..64, both directions: %d tables, %d violations, %d equal hashes %s", schedule_name(kind), tables, wrong, hashes, first.text);
    }
}

// Figures that papers and the lecture give, as literals.
static void schedules_known(void) {
    static const struct { int kind, P, backward, steps; double makespan, elements; } known[] = {
        {GPT2_SP_DIST, 8, 0, 5, 4, 7},          {GPT2_SP_DIST, 8, 1, 5, 4, 3 * 3 + 3 * 4 / 16.0 + 1.75}, {GPT2_SP_DIST, 1, 0, 1, 0.5, 0},
        {GPT2_SP_DIST, 7, 0, 4, 3.5, 6},        {GPT2_SP_DIST_PAPER, 8, 0, 5, 4.5, 7},                   {GPT2_SP_RING, 8, 0, 8, 7.5, 14},
        {GPT2_SP_ZIGZAG, 8, 0, 8, 4, 14},       {GPT2_SP_ALLGATHER, 8, 1, 2, 4, 28},                     {GPT2_SP_ULYSSES, 8, 0, 1, 4, 3.5},
        {GPT2_SP_DIST, 2, 0, 2, 1, 1},          {GPT2_SP_DIST, 3, 0, 2, 1.5, 2},                         {GPT2_SP_RING, 4, 1, 4, 3.5, 10.5},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        Schedule s;
        ScheduleCost cost;
        Error e = {{0}};
        memset(&cost, 0, sizeof cost);
        if (schedule_build(&s, known[i].kind, known[i].P, known[i].backward, known[i].P, &e) == 0) schedule_cost(&s, &cost, &e);
        check(cost.steps == known[i].steps && fabs(cost.makespan - known[i].makespan) < 1e-12 && fabs(cost.elements - known[i].elements) < 1e-12, "schedules: known figures",
              "%s P=%d %s: %d steps, makespan %g, %g C", schedule_name(known[i].kind), known[i].P, known[i].backward ? "backward" : "forward", cost.steps, cost.makespan, cost.elements);
        schedule_free(&s);
    }
}

// LightSeq's released condition lets nobody help at the last step, also where P is odd: blocks are lost.
static void schedules_lightseq(void) {
    for (int P = 2; P <= 9; P++) {
        Schedule s;
        Error e = {{0}};
        schedule_begin(&s, GPT2_SP_DIST, P, 0);
        schedule_build_dist(&s, DIST_LIGHTSEQ);
        int built = schedule_finish(&s, &e), proved = built == 0 && schedule_prove(&s, &e) == 0;
        if (P % 2 == 1) check(!proved && strstr(e.text, "is never computed"), "schedules: LightSeq's odd P", "P=%d: %s", P, e.text);
        schedule_free(&s);
    }
}

static void schedules_refused(void) {
    static const struct { int kind, P, heads; const char* part; } refused[] = {{GPT2_SP_DIST_PAPER, 3, 4, "even --sp only (found 3)"}, {GPT2_SP_DIST_PAPER, 7, 4, "even --sp"}, {GPT2_SP_ULYSSES, 3, 4, "(found 4 and 3)"}, {GPT2_SP_ULYSSES, 8, 12, "(found 12 and 8)"}};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        Schedule s;
        Error e = {{0}};
        int status = schedule_build(&s, refused[i].kind, refused[i].P, 0, refused[i].heads, &e);
        check(status == -1 && strstr(e.text, refused[i].part), "schedules: refusal", "%s", e.text);
        schedule_free(&s);
    }
}

static const char* const PICTURE =
    "dist, 8 ranks, forward: 5 steps, makespan 4 units, ideal 4 (100.0 %), 7 C received per rank\n"
    "  step   rank 0      rank 1      rank 2      rank 3      rank 4      rank 5      rank 6      rank 7     \n"
    "     0   q0k0        q1k1        q2k2        q3k3        q4k4        q5k5        q6k6        q7k7       \n"
    "     1   q7k0*       q1k0        q2k1        q3k2        q4k3        q5k4        q6k5        q7k6       \n"
    "     2   q6k0*       q7k1*       q2k0        q3k1        q4k2        q5k3        q6k4        q7k5       \n"
    "     3   q5k0*       q6k1*       q7k2*       q3k0        q4k1        q5k2        q6k3        q7k4       \n"
    "     4   q4k0* 1/2   q5k1* 1/2   q6k2* 1/2   q7k3* 1/2   q4k0 1/2    q5k1 1/2    q6k2 1/2    q7k3 1/2   \n"
    "  qikj: query chunk i against key chunk j; *: done by the keys' owner; n/m: that share of the heads; +n: n more pairs\n";

static void schedules_drawn(void) {
    Schedule s;
    ScheduleCost cost;
    Error e = {{0}};
    char* text = NULL;
    size_t size = 0;
    FILE* out = open_memstream(&text, &size);
    if (out && schedule_build(&s, GPT2_SP_DIST, 8, 0, 0, &e) == 0 && schedule_cost(&s, &cost, &e) == 0) schedule_draw(&s, &cost, out);
    if (out) fclose(out);
    check(text && strcmp(text, PICTURE) == 0, "schedules: the lecture's picture", "dist P=8, %zu characters", size);
    if (text && strcmp(text, PICTURE) != 0) printf("%s", text);
    schedule_free(&s);
    free(text);
}

static Schedule schedule_copy(const Schedule* s) {
    Schedule c = *s;
    c.ops = (ScheduleOp*)need((size_t)s->op_count + 2, sizeof *c.ops), c.op_room = s->op_count + 2;
    c.messages = (ScheduleMessage*)need((size_t)s->message_count + 2, sizeof *c.messages), c.message_room = s->message_count + 2;
    c.slot_count = (int*)need((size_t)s->P, sizeof *c.slot_count);
    c.slot_items = (Item*)need((size_t)s->P * MAX_SLOTS, sizeof *c.slot_items);
    memcpy(c.ops, s->ops, (size_t)s->op_count * sizeof *c.ops);
    if (s->message_count > 0) memcpy(c.messages, s->messages, (size_t)s->message_count * sizeof *c.messages);
    memcpy(c.slot_count, s->slot_count, (size_t)s->P * sizeof *c.slot_count);
    memcpy(c.slot_items, s->slot_items, (size_t)s->P * MAX_SLOTS * sizeof *c.slot_items);
    return c;
}

// Damages a table at random; what the damage is called, or NULL if it left all as it was. `always`: no table so
// damaged can be right (the others may by chance only be late, or use another slot that is free).
enum { MUTATIONS = 18 };
static const char* schedule_mutate(Schedule* s, int mutation, uint64_t draw, int* always) {
    ScheduleOp* op = &s->ops[dice(71, 4 * draw, (uint64_t)s->op_count)];
    ScheduleMessage* m = s->message_count ? &s->messages[dice(71, 4 * draw + 1, (uint64_t)s->message_count)] : NULL;
    uint64_t roll = random_bits(20240607, 72, draw);
    int slot_to = m && s->slot_count[m->to] ? (int)(roll % (uint64_t)s->slot_count[m->to]) : -1, slot_op = s->slot_count[op->rank] ? (int)(roll % (uint64_t)s->slot_count[op->rank]) : -1;
    const char* name = NULL;
    int before;
    *always = mutation < 8;
    if (!m && mutation != 1 && mutation != 2 && mutation != 3) return NULL;
    switch (mutation) {
    case 0: name = "a message dropped", *m = s->messages[--s->message_count]; break;
    case 1: name = "a block dropped", *op = s->ops[--s->op_count]; break;
    case 2: name = "a block twice", s->ops[s->op_count++] = *op; break;
    case 3: name = "another key chunk", before = op->k, op->k = (int)(roll % (uint64_t)s->chunks); if (op->k == before) name = NULL; break;
    case 4: name = "another sender", before = m->from, m->from = (int)(roll % (uint64_t)s->P); if (m->from == before) name = NULL; break;
    case 5: name = "another receiver", before = m->to, m->to = (int)(roll % (uint64_t)s->P); if (m->to == before) name = NULL; break;
    case 6: name = "another rank's item", before = m->item.of, m->item.of = (int)(roll % (uint64_t)s->P); if (m->item.of == before) name = NULL; break;
    case 7: name = "added on arrival or not", m->merge = !m->merge; break;
    case 8: name = "a message one step later", m->step++; break;
    case 9: name = "a message one step earlier", m->step--; if (m->step < 0) name = NULL; break;
    case 10: name = "another slot to receive", before = m->dst, m->dst = slot_to; if (m->dst == before) name = NULL; break;
    case 11: name = "another slot to send", before = m->src, m->src = s->slot_count[m->from] ? (int)(roll % (uint64_t)s->slot_count[m->from]) : -1; if (m->src == before) name = NULL; break;
    case 12: name = "another slot to add to", before = m->into, m->into = roll % 3 ? slot_to : -1; if (m->into == before || !m->merge) name = NULL; break;
    case 13: name = "another slot of an operand", before = op->kv_slot, op->kv_slot = roll % 5 ? slot_op : -1; if (op->kv_slot == before) name = NULL; break;
    case 14: name = "another slot of a result", before = op->dq_slot, op->dq_slot = roll % 5 ? slot_op : -1; if (op->dq_slot == before) name = NULL; break;
    case 15: name = "another share of the heads", before = op->h1, op->h1 = (int)(roll % (uint64_t)(s->head_parts + 1)); if (op->h1 == before || op->h1 <= op->h0) name = NULL; break;
    case 16: name = "a block one step later", op->step++; break;
    default: name = "another slot of dK, dV", before = op->dkv_slot, op->dkv_slot = roll % 5 ? slot_op : -1; if (op->dkv_slot == before || !s->backward) name = NULL; break;
    }
    qsort(s->ops, (size_t)s->op_count, sizeof *s->ops, op_order);
    if (s->message_count > 0) qsort(s->messages, (size_t)s->message_count, sizeof *s->messages, message_order);
    for (int i = 0; i < s->op_count; i++) if (s->ops[i].step >= s->steps) s->steps = s->ops[i].step + 1;
    for (int i = 0; i < s->message_count; i++) if (s->messages[i].step >= s->steps) s->steps = s->messages[i].step + 1;
    return name;
}

static void test_schedules(void) {
    schedules_proved();
    schedules_known();
    schedules_lightseq();
    schedules_refused();
    schedules_drawn();
}

// ===== attention ================================================================================

// One sequence of one layer: inputs, what plain attention makes of them in double, and what the ranks made.
typedef struct {
    int64_t T, NH, HS;
    real *q, *kv, *dout;           // (NH, T, HS), (NH, 2, T, HS), (NH, T, HS)
    int32_t* doc_start;            // (T)
    int docs;                      // it is used
    double *expected[4];           // out, dq, dkv (NH, 2, T, HS), lse (NH, T)
    real *found[4];
    uint64_t sent[2];              // bytes, all ranks; forward, backward
} AttentionCase;
static AttentionCase attention_case;   // the one that the ranks work on

// Plain attention, O(T^2): softmax of whole rows, and its gradient.
static void attention_reference(AttentionCase* c) {
    int64_t T = c->T, HS = c->HS;
    double scale = 1 / sqrt((double)HS), *p = doubles(T), *dq = c->expected[1], *dkv = c->expected[2];
    memset(dq, 0, (size_t)(c->NH * T * HS) * sizeof *dq);
    memset(dkv, 0, (size_t)(c->NH * 2 * T * HS) * sizeof *dkv);
    for (int64_t h = 0; h < c->NH; h++)
        for (int64_t i = 0; i < T; i++) {
            const real *q = c->q + (h * T + i) * HS, *k = c->kv + 2 * h * T * HS, *v = k + T * HS, *dout = c->dout + (h * T + i) * HS;
            double most = -INFINITY, sum = 0, delta = 0, *out = c->expected[0] + (h * T + i) * HS;
            int64_t first = c->docs ? c->doc_start[i] : 0;
            for (int64_t j = first; j <= i; j++) {
                p[j] = 0;
                for (int64_t n = 0; n < HS; n++) p[j] += (double)q[n] * (double)k[j * HS + n];
                p[j] *= scale, most = fmax(most, p[j]);
            }
            for (int64_t j = first; j <= i; j++) sum += exp(p[j] - most);
            c->expected[3][h * T + i] = most + log(sum);
            for (int64_t n = 0; n < HS; n++) out[n] = 0;
            for (int64_t j = first; j <= i; j++) {
                p[j] = exp(p[j] - most) / sum;
                for (int64_t n = 0; n < HS; n++) out[n] += p[j] * (double)v[j * HS + n];
            }
            for (int64_t n = 0; n < HS; n++) delta += (double)dout[n] * out[n];
            for (int64_t j = first; j <= i; j++) {
                double dp = 0, *dk = dkv + (2 * h * T + j) * HS, *dv = dk + T * HS;
                for (int64_t n = 0; n < HS; n++) dp += (double)dout[n] * (double)v[j * HS + n], dv[n] += p[j] * (double)dout[n];
                double ds = p[j] * (dp - delta) * scale;
                for (int64_t n = 0; n < HS; n++) dq[(h * T + i) * HS + n] += ds * (double)k[j * HS + n], dk[n] += ds * (double)q[n];
            }
        }
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

static int rank_attention(Rank* r, gpt2_sp* g) {
    (void)g;
    AttentionCase* c = &attention_case;
    int64_t NH = c->NH, HS = c->HS, C = NH * HS;
    real *q = r->act[A_q], *kv = r->act[A_kv], *atty = r->act[A_atty], *lse = r->act[A_lse], *dqkv = r->wide, *rows = r->narrow;
    const int32_t* doc_start = c->docs ? c->doc_start : NULL;
    rows_copy(r, q, c->q, NH, HS, 0);
    rows_copy(r, kv, c->kv, 2 * NH, HS, 0);
    r->bytes_sent = 0;
    if (cpu_attention_forward(r, atty, lse, q, kv, doc_start) != 0) return -1;
    __atomic_add_fetch(&c->sent[0], r->bytes_sent, __ATOMIC_RELAXED);
    rows_copy(r, lse, c->found[3], NH, 1, 1);
    for (int64_t h = 0; h < NH; h++)
        for (int64_t t = 0; t < r->Tl; t++) memcpy(rows + (h * r->Tl + t) * HS, atty + t * C + h * HS, (size_t)HS * sizeof(real));
    rows_copy(r, rows, c->found[0], NH, HS, 1);
    rows_copy(r, rows, c->dout, NH, HS, 0);
    for (int64_t h = 0; h < NH; h++)
        for (int64_t t = 0; t < r->Tl; t++) memcpy(r->narrow2 + t * C + h * HS, rows + (h * r->Tl + t) * HS, (size_t)HS * sizeof(real));
    r->bytes_sent = 0;
    if (cpu_attention_backward(r, dqkv, r->narrow2, atty, lse, q, kv, doc_start) != 0) return -1;
    __atomic_add_fetch(&c->sent[1], r->bytes_sent, __ATOMIC_RELAXED);
    for (int64_t part = 0; part < 3; part++)
        for (int64_t h = 0; h < NH; h++) {
            for (int64_t t = 0; t < r->Tl; t++) memcpy(rows + t * HS, dqkv + t * 3 * C + part * C + h * HS, (size_t)HS * sizeof(real));
            rows_copy(r, rows, part == 0 ? c->found[1] + h * c->T * HS : c->found[2] + (2 * h + part - 1) * c->T * HS, 1, HS, 1);
        }
    return 0;
}

static void attention_begin(int64_t T, int64_t NH, int64_t HS) {
    AttentionCase* c = &attention_case;
    memset(c, 0, sizeof *c);
    int64_t n = NH * T * HS;
    c->T = T, c->NH = NH, c->HS = HS;
    c->q = reals(n), c->kv = reals(2 * n), c->dout = reals(n), c->doc_start = (int32_t*)need((size_t)T, sizeof(int32_t));
    for (int i = 0; i < 4; i++) c->expected[i] = doubles(2 * n), c->found[i] = reals(2 * n);
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

// Documents that begin on, one before and one behind the edges of 2P chunks, and some within; or one per chunk.
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
    o.heads = attention_case.NH, o.channels = attention_case.NH * attention_case.HS, o.seq_len = attention_case.T, o.sp = P, o.schedule = kind;
    return bare_trainer(&o, 128);
}

// Runs the case on a trainer's ranks; the largest of the errors of output, lse and gradients.
static double attention_run(gpt2_sp* g) {
    AttentionCase* c = &attention_case;
    int64_t n = c->NH * c->T * c->HS;
    for (int i = 0; i < 4; i++)
        for (int64_t j = 0; j < 2 * n; j++) c->found[i][j] = NAN;
    c->sent[0] = c->sent[1] = 0;
    if (ranks_run(g, rank_attention) != 0) {
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

// Every kind x P x documents x heads against plain attention; and not worse than one rank alone. The limits are the
// contract's; the 1.5 leaves room for the luck of rounding, the 2 EPS for errors that are all below the spacing.
static void attention_all(void) {
    double most[GPT2_SP_SCHEDULES] = {0}, growth[GPT2_SP_SCHEDULES] = {0}, limit = IS_DOUBLE ? 1e-12 : 1e-5;
    int cases[GPT2_SP_SCHEDULES] = {0};
    for (int P = 1; P <= 9; P++)
        for (int variant = 0; variant < (quick ? 2 : 4); variant++) {
            int64_t T = quick ? 167 : 331, NH = variant == 0 ? 3 : variant == 1 ? P : variant == 2 ? 1 : 2, HS = variant == 0 ? 20 : variant == 1 ? 12 : variant == 2 ? 64 : 32;
            attention_begin(T, NH, HS);
            for (int docs = 0; docs < 2; docs++) {
                attention_case.docs = docs;
                attention_documents(P, 0, (uint64_t)(100 + 10 * P + variant));
                attention_reference(&attention_case);
                double alone = attention_error(GPT2_SP_DIST, 1);
                for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
                    if (!schedule_exists(kind, P) || (kind == GPT2_SP_ULYSSES && NH % P != 0)) continue;
                    double error = attention_error(kind, P);
                    if (!(error <= limit)) printf("     %s P=%d T=%d heads %d x %d, documents %d: error %.3g\n", schedule_name(kind), P, (int)T, (int)NH, (int)HS, docs, error);
                    most[kind] = worst(most[kind], error), growth[kind] = worst(growth[kind], (error - 2 * EPS) / alone), cases[kind]++;
                }
            }
            attention_end();
        }
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
        check(most[kind] <= limit && cases[kind] > 0, "attention: against O(T^2)", "%s, P 1..9, documents off and on, %d cases: largest error %.3g, at most %.3g", schedule_name(kind), cases[kind], most[kind], limit);
        check(growth[kind] <= 1.5, "attention: error does not grow with P", "%s: largest error(P) / error(1) %.3g, at most 1.5", schedule_name(kind), growth[kind]);
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
        for (int P = 1; P <= 2; P++) most = worst(most, attention_error(P == 1 ? GPT2_SP_DIST : GPT2_SP_ZIGZAG, P));
    }
    attention_end();
    check_below(most, IS_DOUBLE ? 1e-12 : 1e-5, "attention: many blocks, documents", "largest error");
}

// Bytes on the wire: as the closed form (and, beside the tensors, LSE and delta); with documents no more.
static void attention_bytes(void) {
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
        int wrong = 0, more = 0, fewer = 0, silent = 0, runs = 0;
        for (int P = 2; P <= 8; P += quick ? 3 : 1) {
            if (!schedule_exists(kind, P)) continue;
            int64_t T = 24 * P, NH = kind == GPT2_SP_ULYSSES ? P : 2, HS = 4;
            attention_begin(T, NH, HS);
            gpt2_sp* g = attention_trainer(kind, P);
            if (!g) continue;
            attention_run(g);
            uint64_t whole[2] = {attention_case.sent[0], attention_case.sent[1]};
            for (int d = 0; d < 2; d++) {
                const Schedule* s = &g->schedules[d];
                double makespan, elements, stats = 0;
                schedule_closed_form(kind, P, d, &makespan, &elements);
                for (int i = 0; i < s->message_count; i++) {   // of l nothing travels: LSE = m + log l
                    Item item = s->messages[i].item;
                    int64_t heads = part_head(NH, s->head_parts, item.h1) - part_head(NH, s->head_parts, item.h0);
                    stats += (double)(heads * 24 * (item.kind == ITEM_OUT ? 1 : item.kind == ITEM_QDO ? 2 : 0));
                }
                double bytes = (elements * P * 24 * (double)(NH * HS) + stats) * sizeof(real);
                if (fabs(bytes - (double)whole[d]) > 0.5) wrong++, printf("     %s P=%d direction %d: %.0f bytes, expected %.0f\n", schedule_name(kind), P, d, (double)whole[d], bytes);
                runs++;
            }
            attention_case.docs = 1;
            attention_documents(P, 0, 300);
            attention_run(g);
            for (int d = 0; d < 2; d++) more += attention_case.sent[d] > whole[d], fewer += attention_case.sent[d] < whole[d];
            attention_documents(P, g->schedules[0].chunks, 0);
            attention_run(g);
            silent += attention_case.sent[0] == 0 && attention_case.sent[1] == 0;
            if (kind == GPT2_SP_ULYSSES) silent++;   // it exchanges heads, whatever the documents are
            gpt2_sp_destroy(g);
            attention_end();
        }
        check(wrong == 0, "attention: bytes", "%s: %d runs, %d unlike the closed form", schedule_name(kind), runs, wrong);
        check(more == 0 && (fewer > 0 || kind == GPT2_SP_ULYSSES) && silent == runs / 2, "attention: bytes with documents", "%s: %d of %d runs send fewer, %d more; with a document per chunk %d of %d send nothing", schedule_name(kind), fewer, runs, more, silent, runs / 2);
    }
}

// Random damage to tables: the proof refuses it, or it does no harm, which the same ranks show by running it.
static void attention_mutations(void) {
    int tried[MUTATIONS] = {0}, refused[MUTATIONS] = {0}, harmless[MUTATIONS] = {0}, harmful[MUTATIONS] = {0}, certain[MUTATIONS] = {0};
    const char* names[MUTATIONS] = {0};
    for (int P = 2; P <= 8; P++)
        for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
            if (!schedule_exists(kind, P)) continue;
            attention_begin(8 * P + 3, kind == GPT2_SP_ULYSSES ? P : 3, 8);
            attention_reference(&attention_case);
            gpt2_sp* g = attention_trainer(kind, P);
            for (int direction = 0; g && direction < 2; direction++) {
                Schedule whole = g->schedules[direction];
                for (int i = 0; i < MUTATIONS * (quick ? 2 : 12); i++) {
                    int always, mutation = i % MUTATIONS;
                    Error e = {{0}};
                    Schedule mutant = schedule_copy(&whole);
                    const char* name = schedule_mutate(&mutant, mutation, (uint64_t)(((P * 8 + kind) * 2 + direction) * 1000 + i), &always);
                    if (name) {
                        names[mutation] = name, certain[mutation] = always, tried[mutation]++;
                        g->schedules[direction] = mutant;
                        if (schedule_prove(&mutant, &e) != 0) refused[mutation]++;
                        else if (attention_run(g) <= (IS_DOUBLE ? 1e-12 : 1e-5)) harmless[mutation]++;
                        else harmful[mutation]++, printf("     %s P=%d direction %d: %s is not refused\n", schedule_name(kind), P, direction, name);
                        g->schedules[direction] = whole;
                    }
                    schedule_free(&mutant);
                    if (harmful[mutation] && g->world.aborted) i = 1 << 20;   // these ranks have stopped for good
                }
            }
            gpt2_sp_destroy(g);
            attention_end();
        }
    for (int i = 0; i < MUTATIONS; i++)
        check(tried[i] > 0 && harmful[i] == 0 && (!certain[i] || harmless[i] == 0), "attention: damaged tables", "%s: %d, refused %d, not refused but right %d, wrong %d", names[i] ? names[i] : "?", tried[i], refused[i], harmless[i], harmful[i]);
}

static void test_attention(void) {
    attention_all();
    attention_long();
    attention_bytes();
    attention_mutations();
}

// ===== fixture ==================================================================================

// What PyTorch and Hugging Face's GPT-2 (LayerNorm) computed in double from dev/fixtures/model.safetensors.
static double* fixture_read(const st_file* f, const char* name, int64_t count) {
    const st_tensor* t = st_find(f, name);
    double* out = doubles(count);
    char error[256];
    if (!t || (int64_t)st_elements(t) != count || st_read_f64(f, t, 0, (uint64_t)count, out, error, sizeof error) != 0) {
        check(0, "fixture: tensor", "%s has %lld numbers, expected %lld", name, t ? (long long)st_elements(t) : 0ll, (long long)count);
        for (int64_t i = 0; i < count; i++) out[i] = NAN;
    }
    return out;
}

static gpt2_sp* fixture_trainer(const char* more) {
    gpt2_sp_options o = options_of("layers=2 heads=2 channels=32 seq-len=24 batch-size=2 threads=1 lr=1e-2 beta1=0.9 beta2=0.95 eps=1e-8 weight-decay=0.1 grad-clip=1");
    options_apply(&o, more);
    gpt2_sp* g = bare_trainer(&o, 67);
    if (!g) return NULL;
    g->folder = "dev/fixtures";
    if (ranks_run(g, rank_load) == 0) return g;
    check(0, "fixture: weights", "%s", g->error.text);
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
                    r->batches[0].tokens[t] = (int32_t)x[at], r->batches[0].labels[t] = y[at] < 0 ? -1 : (int32_t)y[at];
                }
        for (int64_t i = 0; doc_start && i < s->B * s->T; i++) r->batches[0].doc_start[i] = (int32_t)doc_start[i];
        r->batch = &r->batches[0], r->valid_tokens = valid;
    }
}

static int rank_loss(Rank* r, gpt2_sp* g) {   // forward only; every rank's r->loss_sum
    (void)g;
    r->learn = 0, r->loss_sum = 0;
    return model_forward_backward(r, 0);
}
static double trainer_loss(gpt2_sp* g) {
    double sum = 0;
    if (ranks_run(g, rank_loss) != 0) return NAN;
    for (int w = 0; w < g->mesh.world; w++) sum += g->ranks[w].loss_sum;
    return sum / (double)g->ranks[0].valid_tokens;
}

// Largest error of a kind of tensors against the file's "<prefix>transformer.<name>", each in its norm.
static double fixture_compare(const gpt2_sp* g, int kind, const st_file* f, const char* prefix, int without_key_bias) {
    const Shape* s = &g->mesh.shape;
    real *whole = reals(g->layout.elements), *rows = reals(4 * s->C * s->C * 4);
    double most = 0;
    collect(g, kind, whole);
    for (int u = 0; u < g->layout.count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(s, id);
            char name[ST_NAME_MAX], full[ST_NAME_MAX + 32];
            if (p.unit != g->layout.units[u].kind) continue;
            tensor_name(name, sizeof name, "transformer.", &p, u);
            snprintf(full, sizeof full, "%s%s", prefix, name);
            int64_t R = tensor_rows(s, id, &p), columns = p.columns ? p.columns : 1;
            double* expected = fixture_read(f, full, R * columns);
            const real* found = whole + g->layout.units[u].offset + g->layout.within[id];
            for (int64_t i = 0; i < R; i++)
                for (int64_t c = 0; c < columns; c++) rows[p.transposed ? c * R + i : i * columns + c] = found[i * columns + c];
            if (id == P_qkvb && without_key_bias)
                for (int64_t i = s->C; i < 2 * s->C; i++) rows[i] = (real)expected[i];
            double error = distance(rows, expected, R * columns);
            for (int64_t i = R * columns; id == P_wte && i < s->Vp * s->C; i++)
                if (found[i] != 0) error = NAN;   // the padding of the vocabulary stays zero
            if (!(error < 1)) printf("     %s: %g\n", full, error);
            most = worst(most, error);
            free(expected);
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
                    cpu_matmul_forward(logits, r->lnf + t * s->C, weights + g->layout.within[P_wte], NULL, 1, s->C, s->Vp);
                    most = worst(most, distance(logits, expected + (b * s->T + r->segments.begin[seg] + i) * s->V, s->V));
                }
    }
    free(logits);
    free(weights);
    return most;
}

// Float: logits and gradients go through about 20 products of up to 128 terms, each with an error of a few EPS: 100 EPS
// bounds them. Adam divides a gradient by its own size, so where that is near 0 a step of 1e-2 is only as good as the
// gradient's relative error there: in the norm 1e-4 of the weights after three steps.
static void fixture_run(const char* file, const char* more) {
    char path[64], label[96];
    st_file f;
    snprintf(path, sizeof path, "dev/fixtures/%s", file);
    snprintf(label, sizeof label, "%s, %s", file, more);
    char error[256];
    if (st_open(&f, path, error, sizeof error) != 0) {
        check(0, "fixture: file", "%s (run the tests in the repository's root)", error);
        return;
    }
    int docs = st_find(&f, "doc_start") != NULL;
    gpt2_sp* g = fixture_trainer(more);
    double limit = IS_DOUBLE ? 1e-11 : 100 * EPS;
    double *x = fixture_read(&f, "x", 48), *y = fixture_read(&f, "y", 48), *starts = docs ? fixture_read(&f, "doc_start", 48) : NULL;
    double *logits = fixture_read(&f, "logits", 48 * 67), *loss = fixture_read(&f, "loss", 1), *norm = fixture_read(&f, "grad_norm", 1);
    if (g) {
        fixture_batch(g, x, y, starts);
        double found = trainer_loss(g), logit_error = fixture_logits(g, logits);
        check(logit_error <= limit, "fixture: logits", "%s: error %.3g, at most %.3g", label, logit_error, limit);
        check(fabs(found - loss[0]) <= limit * loss[0], "fixture: loss", "%s: %.12f, PyTorch %.12f", label, found, loss[0]);
        g->adamw.beta1 = g->options.beta1, g->adamw.beta2 = g->options.beta2, g->adamw.eps = g->options.eps, g->adamw.weight_decay = g->options.weight_decay, g->adamw.lr = g->options.lr;
        g->adamw.step = 1;
        int status = ranks_run(g, rank_step);
        double gradient_error = fixture_compare(g, COLLECT_GRADIENTS, &f, "grad.", 0), found_norm = sqrt(g->sums[1]);
        check(status == 0 && gradient_error <= limit, "fixture: every gradient", "%s: largest error of a tensor %.3g, at most %.3g", label, gradient_error, limit);
        check(fabs(found_norm - norm[0]) <= limit * norm[0] && fabs(g->sums[0] - loss[0]) <= limit * loss[0], "fixture: gradient norm", "%s: %.12f, PyTorch %.12f", label, found_norm, norm[0]);
        if (!docs) {
            double *losses = fixture_read(&f, "losses", 4), loss_error = 0, step_limit = IS_DOUBLE ? 1e-9 : 1e-4;
            for (int step = 2; step <= 3; step++) {
                g->adamw.step = step;
                if (ranks_run(g, rank_step) != 0) loss_error = NAN;
                loss_error = worst(loss_error, fabs(g->sums[0] - losses[step - 1]) / losses[step - 1]);
            }
            loss_error = worst(loss_error, fabs(trainer_loss(g) - losses[3]) / losses[3]);
            double weight_error = fixture_compare(g, STATE_WEIGHTS, &f, "step3.", !IS_DOUBLE);
            check(loss_error <= step_limit && weight_error <= step_limit, "fixture: three AdamW steps", "%s: losses %.3g, weights %.3g, at most %.3g", label, loss_error, weight_error, step_limit);
            free(losses);
        }
    }
    free(x);
    free(y);
    free(starts);
    free(logits);
    free(loss);
    free(norm);
    st_close(&f);
    gpt2_sp_destroy(g);
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

// A stream that can be learnt: each token is one of two followers of the one before. Documents end with 256.
static int32_t* stream_make(uint64_t stream, int64_t count, int document) {
    int32_t* tokens = (int32_t*)need((size_t)count, sizeof *tokens);
    int32_t last = 0;
    for (int64_t i = 0; i < count; i++) {
        last = (last * 5 + 1 + (int32_t)dice(stream, (uint64_t)i, 2)) % 64;
        tokens[i] = i == count - 1 || (document && dice(stream + 1, (uint64_t)i, (uint64_t)document) == 0) ? 256 : last;
    }
    return tokens;
}

static void stream_write(const char* path, const int32_t* tokens, int64_t count) {
    tok_writer w;
    char error[256] = "";
    int status = tok_writer_open(&w, path, TOK_BYTE, 257, 256, 64, error, sizeof error);
    for (int64_t i = 0, begin = 0; status == 0 && i < count; i++) {
        if (tokens[i] != 256) continue;
        if (i > begin) status = tok_writer_add(&w, tokens + begin, (uint64_t)(i - begin), error, sizeof error);
        if (status == 0) status = tok_writer_end_document(&w, (uint64_t)(i - begin), error, sizeof error);
        begin = i + 1;
    }
    if (status == 0) status = tok_writer_finish(&w, error, sizeof error);
    if (status != 0) check(0, "a test's shard", "%s", error);
}

// The run that all variants repeat: 4 sequences of 61 tokens a step, whatever they are split into.
static const char* const RUN = "layers=2 heads=4 channels=32 seq-len=61 threads=1 lr=3e-3 warmup=3 seed=5";
enum { RUN_STEPS = 20 };
typedef struct {
    double loss[RUN_STEPS], norm[RUN_STEPS];
    int steps;
    real* weights;           // at the end, all units without the padding of a world's slices
    int64_t parameters;
    int64_t layer_forwards, attention_forwards;   // of rank 0
    char error[GPT2_SP_TEXT];
} Run;

static const char* run_data(void) {
    static char path[512];
    if (!path[0]) {
        int32_t* tokens = stream_make(11, 6000, 40);
        snprintf(path, sizeof path, "%s", scratch("run.tok"));
        stream_write(path, tokens, 6000);
        free(tokens);
    }
    return path;
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
        memcpy(run->weights + run->parameters, whole + g->layout.units[u].offset, (size_t)g->layout.units[u].elements * sizeof(real));
        run->parameters += g->layout.units[u].elements;
    }
    run->layer_forwards = g->ranks[0].layer_forwards, run->attention_forwards = g->ranks[0].attention_forwards;
    free(whole);
}

static Run run_steps(const char* more, int steps) {
    Run run;
    memset(&run, 0, sizeof run);
    gpt2_sp_options o = run_options(more);
    gpt2_sp* g = gpt2_sp_create(&o, run.error, sizeof run.error);
    for (gpt2_sp_stats stats; g && run.steps < steps; run.steps++) {
        if (gpt2_sp_step(g, &stats) != 0) {
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
    for (int i = 0; i < a->steps; i++) most = worst(most, worst(fabs(a->loss[i] - b->loss[i]) / b->loss[i], fabs(a->norm[i] - b->norm[i]) / b->norm[i]));
    return most;
}
static int run_equal(const Run* a, const Run* b) {   // bit for bit
    return a->steps == b->steps && a->steps > 0 && memcmp(a->loss, b->loss, sizeof a->loss) == 0 && memcmp(a->norm, b->norm, sizeof a->norm) == 0 && a->parameters == b->parameters &&
           memcmp(a->weights, b->weights, (size_t)a->parameters * sizeof(real)) == 0;
}

// Rounding differs from split to split by a few EPS a step and Adam's division carries it on, growing with the steps: 1000
// EPS in double. In float Adam's first steps turn rounding into up to a full step where a gradient is near 0 (an element
// whose gradient is below 1e-7 of the norm): losses and norms differ by up to about 1e-3 of themselves after 20 steps; a
// token counted twice or lost would show as 4e-3 at once.
static void runs_splits(const char* common) {
    static const char* const splits[] = {
        "batch-size=4 sp=2", "batch-size=4 sp=3", "batch-size=4 sp=4", "batch-size=2 dp=2", "batch-size=1 dp=4", "batch-size=2 dp=2 sp=2", "batch-size=1 dp=2 sp=3 grad-accum=2", "batch-size=1 grad-accum=4",
        "batch-size=2 grad-accum=2 sp=2", "batch-size=4 threads=2",
        "batch-size=4 sp=3 schedule=ring", "batch-size=4 sp=2 schedule=dist-paper", "batch-size=4 sp=4 schedule=dist-paper", "batch-size=4 sp=3 schedule=zigzag", "batch-size=4 sp=3 schedule=allgather", "batch-size=4 sp=4 schedule=ulysses",
        "batch-size=4 sp=2 zero=1", "batch-size=4 sp=2 zero=2", "batch-size=4 sp=2 zero=3", "batch-size=2 dp=2 sp=2 zero=1", "batch-size=2 dp=2 sp=3 zero=2", "batch-size=1 grad-accum=2 dp=2 sp=2 zero=2 recompute=none", "batch-size=2 dp=2 sp=2 zero=3", "batch-size=1 grad-accum=4 sp=3 zero=3 recompute=sqrt schedule=zigzag",
        "batch-size=4 sp=3 recompute=layer zero=3", "batch-size=4 sp=2 logits-chunk=7", "batch-size=4 sp=5 schedule=dist", "batch-size=4 sp=7 schedule=dist recompute=gelu"};
    double most = 0, limit = IS_DOUBLE ? 1000 * EPS : 1e-3;
    char text[256], worst_split[256] = "";
    int count = (int)(sizeof splits / sizeof splits[0]), steps = quick ? 4 : RUN_STEPS, runs = 0;
    snprintf(text, sizeof text, "batch-size=4 %s", common);
    Run whole = run_steps(text, steps);
    for (int i = 0; i < count; i++) {
        if (quick && i % 3) continue;
        snprintf(text, sizeof text, "%s %s", splits[i], common);
        Run run = run_steps(text, steps);
        double error = run_distance(&run, &whole);
        if (!(error <= most)) most = worst(most, error), snprintf(worst_split, sizeof worst_split, "%s", splits[i]);
        if (!(error <= limit)) printf("     %s: %.3g\n", text, error);
        free(run.weights);
        runs++;
    }
    check(most <= limit, "runs: losses and norms of every split", "%d splits x %d steps, %s: largest difference %.3g (%s), at most %.3g", runs, steps, common, most, worst_split, limit);
    if (!quick) check(whole.loss[RUN_STEPS - 1] < 0.9 * whole.loss[0], "runs: the loss falls", "%s: %.4f -> %.4f", common, whole.loss[0], whole.loss[RUN_STEPS - 1]);
    free(whole.weights);
}

static void runs_recompute(void) {
    static const char* const shapes[] = {"batch-size=2 layers=5", "batch-size=2 sp=3 layers=4 schedule=zigzag", "batch-size=1 sp=2 dp=2 zero=3 layers=3 grad-accum=2 doc-mask=1", "batch-size=2 layers=1 center=0"};
    static const char* const modes[] = {"gelu", "attn", "layer", "sqrt"};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
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
        check(equal == 4, "runs: recompute modes equal none bit for bit", "%s: %d of 4 over %d steps", shapes[i], equal, steps);
        free(none.weights);
    }
}

static void runs_repeat(void) {
    static const char* const shapes[] = {"batch-size=2 sp=3 dp=2 zero=2", "batch-size=4 sp=4 schedule=ring", "batch-size=2 sp=4 zero=3 doc-mask=1"};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        Run a = run_steps(shapes[i], quick ? 2 : 8), b = run_steps(shapes[i], quick ? 2 : 8);
        check(run_equal(&a, &b), "runs: the same run twice", "%s: %d steps bit for bit", shapes[i], a.steps);
        free(a.weights);
        free(b.weights);
    }
    Run one = run_steps("batch-size=4 threads=1", quick ? 2 : 8), two = run_steps("batch-size=4 threads=2", quick ? 2 : 8), other = run_steps("batch-size=4 seed=6", quick ? 2 : 8);
    check(run_equal(&one, &two), "runs: the number of threads", "1 and 2 threads: %d steps bit for bit", one.steps);
    check(!run_equal(&one, &other) && run_distance(&other, &one) > 1e-3, "runs: another seed is another run", "difference %.3g", run_distance(&other, &one));
    free(one.weights);
    free(two.weights);
    free(other.weights);
}

// A step whose loss or gradient is not finite changes nothing, on no rank; ten in a row end the run.
static void runs_not_finite(void) {
    static const char* const shapes[] = {"batch-size=2 sp=2 dp=2 zero=0", "batch-size=2 sp=3 zero=1", "batch-size=2 sp=3 zero=3"};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        gpt2_sp_options o = run_options(shapes[i]);
        char error[GPT2_SP_TEXT];
        gpt2_sp* g = gpt2_sp_create(&o, error, sizeof error);
        if (!g) {
            check(0, "runs: not finite", "%s", error);
            continue;
        }
        gpt2_sp_stats stats;
        memset(&stats, 0, sizeof stats);
        int status = gpt2_sp_step(g, &stats), updated = stats.updated, refused = 0, steps = 0;
        for (int w = 0; w < g->mesh.world; w++) g->ranks[w].weights[7] = (real)1e30;   // a weight of wte: x^2 overflows in float, inf * 0 in double
        for (int w = 0; IS_DOUBLE && w < g->mesh.world; w++) g->ranks[w].weights[7] = (real)1e300;
        real *before = reals(g->layout.elements), *after = reals(g->layout.elements), *m = reals(g->layout.elements), *m2 = reals(g->layout.elements);
        collect(g, STATE_WEIGHTS, before);
        collect(g, STATE_M, m);
        for (; status == 0 && steps < 12; steps++) {
            status = gpt2_sp_step(g, &stats);
            refused += !stats.updated;
        }
        collect(g, STATE_WEIGHTS, after);
        collect(g, STATE_M, m2);
        int same = memcmp(before, after, (size_t)g->layout.elements * sizeof(real)) == 0 && memcmp(m, m2, (size_t)g->layout.elements * sizeof(real)) == 0;
        check(updated == 1 && refused == steps && steps == 10 && status == -1 && same, "runs: not finite, no update", "%s: %d of %d steps refused, weights and moments %s; then: %s", shapes[i], refused, steps, same ? "unchanged" : "CHANGED", gpt2_sp_error(g));
        free(before);
        free(after);
        free(m);
        free(m2);
        gpt2_sp_destroy(g);
    }
}

static void test_runs(void) {
    runs_splits("doc-mask=0");
    runs_splits("doc-mask=1 grad-clip=0.5");
    runs_splits("center=0");
    runs_recompute();
    runs_repeat();
    runs_not_finite();
}

// ===== resume ===================================================================================

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
    if (gpt2_sp_step(g, &stats) != 0) {
        printf("     %s\n", gpt2_sp_error(g));
        return;
    }
    run->loss[stats.step - 1] = stats.loss, run->norm[stats.step - 1] = stats.grad_norm, run->steps++;
}

// `steps` steps of which the first k are one run, which saves, and the others the same command line again, with
// other options if `then` says so.
static Run run_resumed(const char* first, const char* then, int k, int steps) {
    Run run;
    memset(&run, 0, sizeof run);
    gpt2_sp_options o = run_options(first);
    snprintf(o.out, sizeof o.out, "%s", scratch("resumed"));
    remove_tree(o.out);
    gpt2_sp* g = gpt2_sp_create(&o, run.error, sizeof run.error);
    for (int i = 0; g && i < k; i++) run_step_into(&run, g);
    if (g && gpt2_sp_save(g) != 0) snprintf(run.error, sizeof run.error, "%s", gpt2_sp_error(g));
    gpt2_sp_destroy(g);
    gpt2_sp_options again = run_options(then);
    memcpy(again.out, o.out, sizeof o.out);
    if (!run.error[0] && (g = gpt2_sp_create(&again, run.error, sizeof run.error)) != NULL) {
        if (gpt2_sp_steps(g) != k) snprintf(run.error, sizeof run.error, "resumed at step %lld of %d", (long long)gpt2_sp_steps(g), k);
        for (int i = k; i < steps; i++) run_step_into(&run, g);
        run_finish(&run, g);
        gpt2_sp_destroy(g);
    }
    if (run.error[0]) run.steps = 0, printf("     %s\n", run.error);
    return run;
}

static void resume_exact(void) {
    static const char* const shapes[] = {"batch-size=2", "batch-size=1 sp=2 dp=2 zero=3", "batch-size=2 sp=3 zero=0 grad-accum=2 doc-mask=1", "batch-size=2 sp=3 zero=1 center=0", "batch-size=2 sp=2 zero=2"};
    int steps = quick ? 3 : 5;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        Run whole = run_steps(shapes[i], steps);
        int equal = 0;
        for (int k = 0; k < steps; k++) {
            Run run = run_resumed(shapes[i], shapes[i], k, steps);
            if (run.steps == steps && run.weights) equal += run_equal(&run, &whole);
            free(run.weights);
        }
        check(equal == steps, "resume: bit for bit after every step", "%s: saved after each of %d steps, %d runs end with the same losses and weights", shapes[i], steps, equal);
        free(whole.weights);
    }
}

static void resume_elsewhere(void) {
    static const char* const from = "batch-size=2 sp=2 zero=1";
    static const char* const to[] = {"batch-size=2 sp=1", "batch-size=2 sp=3 zero=3", "batch-size=1 dp=2 sp=2 zero=2", "batch-size=1 grad-accum=2 dp=1 sp=4 schedule=ring", "batch-size=2 sp=2 zero=0 recompute=none schedule=zigzag"};
    int steps = quick ? 4 : 10;
    Run whole = run_steps(from, steps);
    double limit = IS_DOUBLE ? 1000 * EPS : 1e-3;   // as for the splits of a run
    for (size_t i = 0; i < sizeof to / sizeof to[0]; i++) {
        Run run = run_resumed(from, to[i], steps / 2, steps);
        double error = run_distance(&run, &whole);
        check(error <= limit, "resume: at another shape", "%s -> %s: difference %.3g, at most %.3g", from, to[i], error, limit);
        free(run.weights);
    }
    free(whole.weights);
}

static const char* const TINY = "layers=1 heads=1 channels=8 seq-len=16 batch-size=2 threads=1 keep=3 steps=5";

// Makes a run of the tiny model in `name` with checkpoints at steps 1, 2 and 3.
static gpt2_sp_options tiny_run(const char* name) {
    gpt2_sp_options o = run_options(TINY);
    char error[GPT2_SP_TEXT];
    gpt2_sp_stats stats;
    snprintf(o.out, sizeof o.out, "%s", scratch(name));
    remove_tree(o.out);
    gpt2_sp* g = gpt2_sp_create(&o, error, sizeof error);
    int status = g ? 0 : -1;
    for (int i = 0; status == 0 && i < 3; i++) status = gpt2_sp_step(g, &stats) != 0 || gpt2_sp_save(g) != 0;
    if (status != 0) check(0, "a test's checkpoints", "%s", g ? gpt2_sp_error(g) : error);
    gpt2_sp_destroy(g);
    return o;
}

static void resume_refused(void) {
    static const struct { const char *change, *saved, *asked; } cases[] = {
        {"layers=2", "--layers 1", "found 2"}, {"heads=2", "--heads 1", "found 2"}, {"channels=16", "--channels 8", "found 16"}, {"seq-len=17", "--seq-len 16", "found 17"}, {"seed=6", "--seed 5", "found 6"},
        {"center=0", "--center 1", "found 0"}, {"vocab=300", "--vocab 257", "found 300"}, {"doc-mask=1", "--doc-mask 0", "found 1"}};
    gpt2_sp_options o = tiny_run("refused");
    char error[GPT2_SP_TEXT];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gpt2_sp_options changed = o;
        options_apply(&changed, cases[i].change);
        gpt2_sp* g = gpt2_sp_create(&changed, error, sizeof error);
        check(!g && strstr(error, cases[i].saved) && strstr(error, cases[i].asked), "resume: refused", "%s", g ? "accepted" : error);
        gpt2_sp_destroy(g);
    }
    int32_t* tokens = stream_make(12, 3000, 40);
    gpt2_sp_options changed = o;
    snprintf(changed.data, sizeof changed.data, "%s", scratch("other.tok"));
    stream_write(changed.data, tokens, 3000);
    free(tokens);
    gpt2_sp* g = gpt2_sp_create(&changed, error, sizeof error);
    check(!g && strstr(error, "was made with the data ") && strstr(error, "--data is "), "resume: refused", "%s", g ? "accepted" : error);
    gpt2_sp_destroy(g);
    gpt2_sp* first = gpt2_sp_create(&o, error, sizeof error);
    g = gpt2_sp_create(&o, error, sizeof error);
    check(first && !g && strstr(error, "another trainer is at work"), "resume: two trainers in one folder", "%s", g ? "accepted" : error);
    gpt2_sp_destroy(first);
    gpt2_sp_destroy(g);
}

static long file_length(const char* path) {
    struct stat info;
    return stat(path, &info) == 0 ? (long)info.st_size : -1;
}
static void file_flip(const char* path, long at, int mask) {
    int fd = open(path, O_RDWR);
    unsigned char byte = 0;
    if (fd < 0 || pread(fd, &byte, 1, at) != 1) check(0, "a test's file", "%s at %ld", path, at);
    byte ^= (unsigned char)mask;
    if (pwrite(fd, &byte, 1, at) != 1) check(0, "a test's file", "%s at %ld", path, at);
    close(fd);
}

static const char* const CHECKPOINT_FILES[] = {"model.safetensors", "optimizer.safetensors", "config.json", "state.json", "manifest.txt"};

// Every byte of the small files, and many of the large ones, changed one at a time: never taken for whole.
static void resume_flips(void) {
    gpt2_sp_options o = tiny_run("flips");
    static const int masks[] = {1, 0x20, 0x80};
    for (int i = 0; i < 5; i++) {
        char folder[GPT2_SP_TEXT + 32], path[GPT2_SP_TEXT + 64];
        int tried = 0, taken = 0;
        Error e = {{0}};
        snprintf(folder, sizeof folder, "%.1000s/step_00000003", o.out);
        snprintf(path, sizeof path, "%.1000s/%s", folder, CHECKPOINT_FILES[i]);
        long length = file_length(path), step = i < 2 ? length / (quick ? 20 : 200) + 1 : quick ? 7 : 1;
        for (long at = 0; at < length; at += step)
            for (int m = 0; m < 3; m++) {
                file_flip(path, at, masks[m]);
                int status = checkpoint_verify(folder, &e);
                tried++, taken += status == 0;
                if (status == 0) printf("     %s, byte %ld ^ 0x%x\n", CHECKPOINT_FILES[i], at, (unsigned)masks[m]);
                file_flip(path, at, masks[m]);
            }
        int cuts = 0;
        for (long at = 0; at < length; at += length / 8 + 1) {   // cut off there, from a copy
            size_t size;
            char* text = file_read_text(path, 1 << 24, &size, &e);
            if (!text || truncate(path, at) != 0 || checkpoint_verify(folder, &e) == 0) taken++;
            else cuts++;
            test_data_write(path, text, size);
            free(text);
        }
        int whole = checkpoint_verify(folder, &e) == 0;
        check(taken == 0 && tried > 0 && whole, "resume: damaged files are refused", "%s: %d changed bytes and %d lengths, %d taken for whole", CHECKPOINT_FILES[i], tried, cuts, taken);
    }
}

// Damage to the newest checkpoint, in each file: the trainer falls back to the one before and says so; then to the
// first; with all damaged it refuses.
static void resume_fallback(void) {
    for (int i = 0; i < 6; i++) {
        gpt2_sp_options o = tiny_run("fallback");
        char path[3][GPT2_SP_TEXT + 64], error[GPT2_SP_TEXT], said[4096];
        long long found[3] = {-1, -1, -1};
        int told = 0;
        for (int step = 3; step >= 1; step--) {
            char* at = path[step - 1];
            snprintf(at, sizeof path[0], "%.1000s/step_%08d/%s", o.out, step, CHECKPOINT_FILES[i % 5]);
            if (i == 5 && unlink(at) != 0) check(0, "a test's file", "%s", at);
            else if (i < 5 && step == 2 && truncate(at, file_length(at) - 1) != 0) check(0, "a test's file", "%s", at);
            else if (i < 5 && step != 2) file_flip(at, file_length(at) / 2, 4);
            stderr_hide();
            gpt2_sp* g = gpt2_sp_create(&o, error, sizeof error);
            stderr_show(said, sizeof said);
            if (g) found[step - 1] = gpt2_sp_steps(g);
            told += strstr(said, "is not whole") != NULL && strstr(said, "trying an older one") != NULL;
            gpt2_sp_destroy(g);
        }
        check(found[2] == 2 && found[1] == 1 && found[0] == -1 && told == 3 && strstr(error, "none of the 3 checkpoints"), "resume: falls back to the newest whole one", "%s %s at 3: resumes %lld, at 3 and 2: %lld, at all: %.60s...",
              CHECKPOINT_FILES[i % 5], i == 5 ? "missing" : "damaged", found[2], found[1], error);
    }
}

// A damaged newest checkpoint is made again in its place; old ones go, at least `keep` stay; leftovers of a save go.
static void resume_housekeeping(void) {
    gpt2_sp_options o = tiny_run("housekeeping");
    char path[GPT2_SP_TEXT + 64], error[GPT2_SP_TEXT], said[64];
    int64_t* steps = NULL;
    Error e = {{0}};
    gpt2_sp_stats stats;
    snprintf(path, sizeof path, "%.1000s/step_00000003/model.safetensors", o.out);
    file_flip(path, 100, 1);
    snprintf(path, sizeof path, "%.1000s/step_00000009.tmp", o.out);
    mkdir(path, 0700);
    stderr_hide();
    gpt2_sp* g = gpt2_sp_create(&o, error, sizeof error);
    stderr_show(said, sizeof said);
    int status = g && gpt2_sp_steps(g) == 2 && gpt2_sp_step(g, &stats) == 0 && gpt2_sp_save(g) == 0 ? 0 : -1;
    snprintf(path, sizeof path, "%.1000s/step_00000003", o.out);
    check(status == 0 && checkpoint_verify(path, &e) == 0, "resume: a damaged step is saved anew", "%s", g ? gpt2_sp_error(g) : error);
    for (int i = 0; status == 0 && i < 3; i++) status = gpt2_sp_step(g, &stats) != 0 || gpt2_sp_save(g) != 0;
    int count = checkpoint_list(o.out, &steps, &e), others = 0;
    DIR* dir = opendir(o.out);
    for (struct dirent* entry; dir && (entry = readdir(dir)) != NULL;) others += strstr(entry->d_name, ".tmp") != NULL;
    if (dir) closedir(dir);
    check(status == 0 && count == 3 && steps[0] == 6 && steps[2] == 4 && others == 0, "resume: --keep 3", "%d checkpoints, the newest %lld, %d leftovers", count, count > 0 ? (long long)steps[0] : -1ll, others);
    free(steps);
    gpt2_sp_destroy(g);
}

// A saved run initialises another (--init-from): the same weights, at step 0; also with a longer context.
static void resume_init_from(void) {
    gpt2_sp_options o = tiny_run("init"), p = run_options(TINY);
    char error[GPT2_SP_TEXT];
    snprintf(p.init_from, sizeof p.init_from, "%.1000s/step_00000003", o.out);
    gpt2_sp *a = gpt2_sp_create(&o, error, sizeof error), *b = gpt2_sp_create(&p, error, sizeof error);
    int same = a && b && gpt2_sp_steps(b) == 0 && memcmp(a->ranks[0].weights, b->ranks[0].weights, (size_t)a->layout.elements * sizeof(real)) == 0;
    check(same, "resume: --init-from", "%s", same ? "the same weights at step 0" : error);
    gpt2_sp_destroy(b);
    p.seq_len = 40;
    b = gpt2_sp_create(&p, error, sizeof error);
    int stretched = a && b;
    for (int64_t t = 0; stretched && t < 40; t++) stretched = memcmp(b->ranks[0].weights + b->layout.within[P_wpe] + t * 8, a->ranks[0].weights + a->layout.within[P_wpe] + t % 16 * 8, 8 * sizeof(real)) == 0;
    check(stretched, "resume: --init-from with a longer context", "%s", stretched ? "wpe is repeated: 16 -> 40 rows" : error);
    gpt2_sp_destroy(a);
    gpt2_sp_destroy(b);
    options_apply(&p, "heads=2");
    b = gpt2_sp_create(&p, error, sizeof error);
    check(!b && strstr(error, "has 1 layers, 1 heads"), "resume: --init-from of another shape", "%s", b ? "accepted" : error);
    gpt2_sp_destroy(b);
}

static void test_resume(void) {
    resume_exact();
    resume_elsewhere();
    resume_refused();
    resume_flips();
    resume_fallback();
    resume_housekeeping();
    resume_init_from();
}

// ===== groups ===================================================================================

static const struct { const char* name; void (*run)(void); } GROUPS[] = {
    {"data", test_data}, {"safetensors", test_safetensors}, {"schedules", test_schedules}, {"attention", test_attention},
    {"fixture", test_fixture}, {"runs", test_runs}, {"resume", test_resume},
};
enum { GROUP_COUNT = (int)(sizeof GROUPS / sizeof GROUPS[0]) };

int main(int argc, char** argv) {
    int named = 0;
    const char* wish = getenv("GPT2_SP_QUICK");
    quick = wish && strcmp(wish, "1") == 0;
    for (int i = 1; i < argc; i++) {
        int known = strcmp(argv[i], "quick") == 0;
        quick |= known;
        for (int j = 0; j < GROUP_COUNT; j++)
            if (strcmp(argv[i], GROUPS[j].name) == 0) known = 1, named++;
        if (known) continue;
        fprintf(stderr, "test_gpt2_sp: no group `%s`; there are: quick", argv[i]);
        for (int j = 0; j < GROUP_COUNT; j++) fprintf(stderr, " %s", GROUPS[j].name);
        fprintf(stderr, "\n");
        return 2;
    }
    for (int j = 0; j < GROUP_COUNT; j++) {
        int wanted = named == 0;
        for (int i = 1; i < argc; i++) wanted |= strcmp(argv[i], GROUPS[j].name) == 0;
        if (!wanted) continue;
        double start = now_ms();
        GROUPS[j].run();
        printf("---- %s, %s: %.1f s\n", GROUPS[j].name, IS_DOUBLE ? "double" : "float", 1e-3 * (now_ms() - start));
    }
    if (scratch_folder[0]) remove_tree(scratch_folder);
    printf("%d passed, %d failed", passed, failed);
    if (skipped) printf(", %d skipped", skipped);
    printf("\n");
    return failed > 0;
}
