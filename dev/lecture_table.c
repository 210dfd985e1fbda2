/* `make lecture-table`: what long-context training costs, measured: activation memory of a rank, runtime of a step and
 * forward calls, for the plain backward pass, for recompute-based checkpointing, and for it with the sequence split
 * over ranks.
 *
 * Every row makes a trainer on random tokens, runs a few steps and reads: what the ranks' arenas handed out (and beside
 * it what the plan said before), by how much the resident memory of the process grew, the counters of forward calls,
 * and the time of the fastest step. The run fails if an arena and its plan differ.
 */
#define GPT2_SP_NO_MAIN
#include "../train_gpt2_sp.c"

enum { LAYERS = 9, HEADS = 2, CHANNELS = 128, STEPS = 3, ROWS = 7, CONTEXTS = 4 };

typedef struct {
    const char* name;
    int sp, recompute;
} Row;
static const Row TABLE[ROWS] = {
    {"vanilla", 1, GPT2_SP_NONE},
    {"checkpointing (sqrt)", 1, GPT2_SP_SQRT},
    {"checkpointing (layer)", 1, GPT2_SP_LAYER},
    {"checkpointing (attn)", 1, GPT2_SP_ATTN},
    {"+ sequence parallelism", 2, GPT2_SP_ATTN},
    {"+ sequence parallelism", 4, GPT2_SP_ATTN},
    {"+ sequence parallelism", 8, GPT2_SP_ATTN},
};
static const int CONTEXT[CONTEXTS] = {1024, 2048, 4096, 8192};

typedef struct {
    double kept, held, planned;            // bytes of the fullest rank: activations kept, all of them, and by the plan
    double grew;                           // bytes by which the process grew, all ranks, their weights and optimizer included
    double arenas;                         // bytes of all ranks' arenas
    double layer_calls, attention_calls;   // per layer and step
    double seconds;                        // of the fastest step: other work on the machine only makes one slower
} Measure;

static double arena_activations(const Arena* a) {
    return (double)(a->group[MEMORY_KEPT] + a->group[MEMORY_WORK] + a->group[MEMORY_LOGITS] + a->group[MEMORY_EXCHANGE]);
}

static double resident_bytes(void) {
    long pages = 0, total = 0;
    FILE* f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &total, &pages) != 2) pages = 0;
    if (f) fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

// A shard of random bytes, long enough for one sequence of the longest context.
static int data_write(const char* path, Error* e) {
    tok_writer w;
    int32_t tokens[1024];
    if (tok_writer_open(&w, path, TOK_BYTE, 257, 256, TOK_BLOCK_TOKENS, e->text, sizeof e->text) != 0) return -1;
    int status = 0;
    for (int block = 0; status == 0 && block <= CONTEXT[CONTEXTS - 1] / 1024; block++) {
        for (int i = 0; i < 1024; i++) tokens[i] = (int32_t)(random_bits(1, 1, (uint64_t)(block * 1024 + i)) & 255);
        status = tok_writer_add(&w, tokens, 1024, e->text, sizeof e->text);
    }
    if (status == 0) status = tok_writer_end_document(&w, 1024, e->text, sizeof e->text);
    if (status == 0) return tok_writer_finish(&w, e->text, sizeof e->text);
    tok_writer_abandon(&w);
    return status;
}

static int row_measure(const Row* row, int context, const char* data, Measure* m, Error* e) {
    gpt2_sp_options o;
    gpt2_sp_stats stats;
    double before = resident_bytes();
    memset(m, 0, sizeof *m);
    m->seconds = INFINITY;
    gpt2_sp_defaults(&o);
    snprintf(o.data, sizeof o.data, "%s", data);
    o.layers = LAYERS, o.heads = HEADS, o.channels = CHANNELS, o.seq_len = context, o.steps = STEPS;
    o.sp = row->sp, o.recompute = row->recompute;
    gpt2_sp* g = gpt2_sp_create(&o, e->text, sizeof e->text);
    if (!g) return -1;
    int status = 0;
    int steps = context < 8192 ? STEPS : STEPS - 1;   // the whole table in two minutes
    for (int i = 0; status == 0 && i < steps; i++) {
        status = gpt2_sp_step(g, &stats);
        if (status == 0) m->seconds = fmin(m->seconds, stats.ms / 1e3);
    }
    if (status != 0) *e = g->error;
    m->grew = resident_bytes() - before;
    for (int i = 0; status == 0 && i < g->mesh.world; i++) {
        const Rank* r = &g->ranks[i];
        Arena plan = rank_plan(&g->mesh, &g->layout, i);
        if (arena_activations(&r->arena) != arena_activations(&plan) || r->arena.used != plan.used)
            status = fail(e, "rank %d holds %zu bytes, the plan said %zu", i, r->arena.used, plan.used);
        m->kept = fmax(m->kept, (double)r->arena.group[MEMORY_KEPT]);
        m->held = fmax(m->held, arena_activations(&r->arena)), m->planned = fmax(m->planned, arena_activations(&plan));
        m->arenas += (double)r->arena.used;
        m->layer_calls = fmax(m->layer_calls, (double)r->layer_forwards / (LAYERS * steps));
        m->attention_calls = fmax(m->attention_calls, (double)r->attention_forwards / (LAYERS * steps));
    }
    gpt2_sp_destroy(g);
    return status;
}

// Activation memory of one rank alone by the plan, for another number of layers; 0 if it cannot be planned.
static double planned_activations(int layers, int context, int recompute) {
    gpt2_sp_options o;
    Schedule schedules[2];
    Mesh mesh;
    Layout layout;
    Error e;
    double bytes = 0;
    memset(schedules, 0, sizeof schedules);
    memset(&layout, 0, sizeof layout);
    gpt2_sp_defaults(&o);
    o.layers = layers, o.heads = HEADS, o.channels = CHANNELS, o.seq_len = context, o.recompute = recompute, o.threads = 1;
    if (mesh_init(&mesh, schedules, &o, 257, 1, &CPU_DEVICE, &e) == 0 && layout_init(&layout, &mesh.shape, 1, &e) == 0) {
        Arena arena = rank_plan(&mesh, &layout, 0);
        bytes = arena_activations(&arena);
    }
    free(layout.units);
    schedule_free(&schedules[0]);
    schedule_free(&schedules[1]);
    return bytes;
}

// The fewest layers from which on `sqrt` needs less than `mode`, up to 512; 0: none.
static int sqrt_wins_from(int mode) {
    int from = 0;
    for (int layers = 512; layers > 0; layers--) {
        if (planned_activations(layers, 8192, GPT2_SP_SQRT) >= planned_activations(layers, 8192, mode)) break;
        from = layers;
    }
    return from;
}

static void explain(void) {
    static const int modes[] = {GPT2_SP_NONE, GPT2_SP_GELU, GPT2_SP_ATTN, GPT2_SP_LAYER, GPT2_SP_SQRT};
    printf("\nact: all activation memory of the fullest rank (kept for the backward pass, work, logits and exchange buffers), as "
           "its\n"
           "arena handed it out; plan: the same before anything ran. all: every rank's whole arena, weights and optimizer "
           "included;\n"
           "grew: resident memory of the process, all ranks in it. calls: forward calls of a layer + of its attention, per layer "
           "and\n"
           "step. This machine has %ld cores: ranks beyond that share them, so here the memory of a rank falls with P, the time "
           "does\n"
           "not; and each rank holds all weights and moments (--zero 0), so `all` grows with P.\n",
        sysconf(_SC_NPROCESSORS_ONLN));
    printf(
        "\nThe lecture: vanilla keeps O(N L); checkpointing O(N sqrt(L)) for twice the forward calls; split over P ranks, a P-th "
        "of it.\n"
        "`attn` runs a layer's forward twice but its attention, and so its exchange, once. `sqrt` needs a work space of sqrt(L)\n"
        "whole layers, the others of one. By the plan it needs less than `attn` from %d layers on, than `layer` from %d.\n",
        sqrt_wins_from(GPT2_SP_ATTN), sqrt_wins_from(GPT2_SP_LAYER));
    printf("\nplanned, one rank, N = 8192, same width, MiB of activations\n  layers ");
    for (int i = 0; i < 5; i++) printf("%9s", recompute_name(modes[i]));
    printf("\n");
    for (int layers = 12; layers <= 48; layers += 12) {
        printf("  %6d ", layers);
        for (int i = 0; i < 5; i++) printf("%9.1f", planned_activations(layers, 8192, modes[i]) / 1048576);
        printf("\n");
    }
}

int main(void) {
    char path[] = "/tmp/gpt2_sp_lecture_XXXXXX";
    Error e = {{0}};
    int fd = mkstemp(path), status = fd < 0 ? fail(&e, "cannot make %s: %s", path, strerror(errno)) : 0;
    if (fd >= 0) close(fd);
    if (status == 0) status = data_write(path, &e);
    if (status == 0)
        printf("%d layers, %d heads, %d channels, fp32, one sequence of N random tokens; the fastest of %d steps (8192: %d); MiB\n\n",
            LAYERS, HEADS, CHANNELS, STEPS, STEPS - 1);
    for (int c = 0; status == 0 && c < CONTEXTS; c++) {
        printf("%s   N  what                     P     kept      act     plan      all     grew  calls  step s   tok/s\n",
            c ? "\n" : "");
        for (int i = 0; status == 0 && i < ROWS; i++) {
            Measure m;
            status = row_measure(&TABLE[i], CONTEXT[c], path, &m, &e);
            if (status != 0) break;
            printf("%4d  %-22s %3d %8.1f %8.1f %8.1f %8.1f %8.1f  %.0f + %.0f %7.3f %7.0f\n", CONTEXT[c], TABLE[i].name,
                TABLE[i].sp, m.kept / 1048576, m.held / 1048576, m.planned / 1048576, m.arenas / 1048576, m.grew / 1048576,
                m.layer_calls, m.attention_calls, m.seconds, CONTEXT[c] / m.seconds);
            fflush(stdout);
        }
    }
    if (status == 0) explain();
    if (fd >= 0) unlink(path);
    if (status != 0) fprintf(stderr, "lecture_table: %s\n", e.text);
    return status != 0;
}
