/* `make lecture-table` and, on GPUs, `make lecture-table-gpu`: what long-context training costs, measured: activation memory
 * of a rank, runtime of a step and forward calls, for the plain backward pass, for recompute-based checkpointing, and for it
 * with the sequence split over ranks.
 *
 *     lecture_table [--quick] [--json FILE]      --quick: the shortest context only; on GPUs, 4 layers instead of 12
 *
 * Every row makes a trainer on random tokens, runs a few steps and reads: what the ranks' arenas handed out (and beside
 * it what the plan said before), by how much the memory that the process takes grew (resident; on GPUs, of the devices), the
 * counters of forward calls, and the time of the fastest step. The run fails if an arena and its plan differ. The JSON file
 * has an object for each row.
 */
#define GPT2_SP_NO_MAIN
#ifdef GPT2_SP_GPU
#define GPT2_SP_GPU_NO_MAIN
#include "../train_gpt2_sp.cu"
#else
#include "../train_gpt2_sp.c"
#endif

typedef struct {
    const char* name;
    int sp, recompute;
} Row;
#ifdef GPT2_SP_GPU
enum {
    LAYERS = 12,
    QUICK_LAYERS = 4,
    HEADS = 12,
    CHANNELS = 768,
    VOCAB = 50257,
    STEPS = 6,
    LONG_STEPS = 6,
    ROWS = 8,
    CONTEXTS = 2
};
#define ARITHMETIC "bf16"
static const Row TABLE[ROWS] = {
    {"vanilla", 1, GPT2_SP_NONE},
    {"checkpointing (sqrt)", 1, GPT2_SP_SQRT},
    {"checkpointing (layer)", 1, GPT2_SP_LAYER},
    {"checkpointing (attn)", 1, GPT2_SP_ATTN},
    {"SP, vanilla", 2, GPT2_SP_NONE},
    {"SP, sqrt", 2, GPT2_SP_SQRT},
    {"SP, layer", 2, GPT2_SP_LAYER},
    {"SP, attn", 2, GPT2_SP_ATTN},
};
static const int CONTEXT[CONTEXTS] = {8192, 32768};
#else
enum {
    LAYERS = 9,
    QUICK_LAYERS = 9,
    HEADS = 2,
    CHANNELS = 128,
    VOCAB = 257,
    STEPS = 3,
    LONG_STEPS = 2,
    ROWS = 7,
    CONTEXTS = 4
};
#define ARITHMETIC (sizeof(real) == 8 ? "fp64" : "fp32")
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
#endif
static int layers = LAYERS;

typedef struct {
    double kept, held, planned;   // bytes of the fullest rank: activations kept, all of them, and by the plan
    double grew;     // bytes by which the process grew, all ranks, their weights and optimizer included
    double arenas;   // bytes of all ranks' arenas
    double layer_calls, attention_calls;   // per layer and step
    double seconds;   // of the fastest step: other work on the machine only makes one slower
} Measure;

static double arena_activations(const Arena* a) {
    return (double)(a->group[MEMORY_KEPT] + a->group[MEMORY_WORK] + a->group[MEMORY_LOGITS] +
        a->group[MEMORY_EXCHANGE]);
}

#ifdef GPT2_SP_GPU
// Of all GPUs that this process sees, CUDA's own included.
static double process_bytes(void) {
    int count = gpu_count(INT_MAX);
    double taken = 0;
    for (int i = 0; i < count; i++) {
        size_t left = 0, total = 0;
        if (cudaSetDevice(i) == cudaSuccess && cudaMemGetInfo(&left, &total) == cudaSuccess)
            taken += (double)(total - left);
    }
    cudaSetDevice(0);
    return taken;
}
#else
static double process_bytes(void) {
    long pages = 0, total = 0;
    FILE* f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &total, &pages) != 2) pages = 0;
    if (f) fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}
#endif

// A shard of random tokens, long enough for one sequence of the longest context.
static int data_write(const char* path, Error* e) {
    tok_writer w;
    int32_t tokens[1024];
    if (tok_writer_open(&w, path, VOCAB == 257 ? TOK_BYTE : TOK_GPT2, VOCAB, VOCAB - 1, TOK_BLOCK_TOKENS,
            e->text, sizeof e->text) != 0)
        return -1;
    int status = 0;
    for (int block = 0; status == 0 && block <= CONTEXT[CONTEXTS - 1] / 1024; block++) {
        for (int i = 0; i < 1024; i++)
            tokens[i] = (int32_t)(random_bits(1, 1, (uint64_t)(block * 1024 + i)) % (VOCAB - 1));
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
    double before = process_bytes();
    memset(m, 0, sizeof *m);
    m->seconds = INFINITY;
    options_default(&o);
    snprintf(o.data, sizeof o.data, "%s", data);
    o.layers = layers, o.heads = HEADS, o.channels = CHANNELS, o.seq_len = context, o.steps = STEPS;
    o.sp = row->sp, o.recompute = row->recompute;
    gpt2_sp* g = gpt2_sp_create(&o, e);
    if (!g) return -1;
    int status = 0;
    int steps = context < 8192 ? STEPS : LONG_STEPS;   // the whole table in two minutes
    int64_t calls[2] = {0, 0};   // of the first step, which on a GPU runs twice to settle
    for (int i = 0; status == 0 && i < steps; i++) {
        stats.size = sizeof stats;
        status = gpt2_sp_step(g, &stats);
        if (status == 0) m->seconds = fmin(m->seconds, stats.ms / 1e3);
        if (i == 0) calls[0] = g->ranks[0].layer_forwards, calls[1] = g->ranks[0].attention_forwards;
    }
    if (status != 0) *e = g->error;
    m->grew = process_bytes() - before;
    m->layer_calls = (double)(g->ranks[0].layer_forwards - calls[0]) / (layers * (steps - 1));
    m->attention_calls = (double)(g->ranks[0].attention_forwards - calls[1]) / (layers * (steps - 1));
    for (int i = 0; status == 0 && i < g->mesh.world; i++) {
        const Rank* r = &g->ranks[i];
        Arena plan = g->device->plan(&g->mesh, &g->layout, i);
        if (arena_activations(&r->arena) != arena_activations(&plan) || r->arena.used != plan.used)
            status = fail(e, "rank %d holds %zu bytes, the plan said %zu", i, r->arena.used, plan.used);
        m->kept = fmax(m->kept, (double)r->arena.group[MEMORY_KEPT]);
        m->held = fmax(m->held, arena_activations(&r->arena)),
        m->planned = fmax(m->planned, arena_activations(&plan));
        m->arenas += (double)r->arena.used;
    }
    gpt2_sp_destroy(g);
    return status;
}

// Activation memory of one rank alone by the plan, for another number of layers; 0 if it cannot be planned.
static double planned_activations(int count, int context, int recompute) {
    gpt2_sp_options o;
    Schedule schedules[2];
    Mesh mesh;
    Layout layout;
    Error e;
    double bytes = 0;
    memset(schedules, 0, sizeof schedules);
    memset(&layout, 0, sizeof layout);
    options_default(&o);
    o.layers = count, o.heads = HEADS, o.channels = CHANNELS, o.seq_len = context, o.recompute = recompute,
    o.sp = o.threads = 1;
    if (mesh_init(&mesh, schedules, &o, VOCAB, 1, gpt2_sp_device, &e) == 0 &&
        layout_init(&layout, &mesh, &e) == 0) {
        Arena arena = gpt2_sp_device->plan(&mesh, &layout, 0);
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
    for (int count = 512; count > 0; count--) {
        if (planned_activations(count, 8192, GPT2_SP_SQRT) >= planned_activations(count, 8192, mode)) break;
        from = count;
    }
    return from;
}

static void wins_print(const char* than, int from) {
    if (from > 0) printf("%s from %d layers on", than, from);
    else printf("%s never (up to 512 layers)", than);
}

static void explain(void) {
    static const int modes[] = {GPT2_SP_NONE, GPT2_SP_GELU, GPT2_SP_ATTN, GPT2_SP_LAYER, GPT2_SP_SQRT};
    printf("\nact: all activation memory of the fullest rank (kept for the backward pass, work, logits and "
           "exchange buffers), as "
           "its\n"
           "arena handed it out; plan: the same before anything ran. all: every rank's whole arena, weights "
           "and optimizer "
           "included;\n");
#ifdef GPT2_SP_GPU
    int gpus = gpu_count(2);
    printf("grew: memory taken on all GPUs, that of CUDA, cuBLAS and peer access in it. calls: forward calls "
           "of a layer + of its\n"
           "attention, per layer and step. ");
    if (gpus >= 2) printf("P = 2: a rank on each of two GPUs.\n");
    else
        printf("P = 2: two virtual ranks on one GPU: their memory is as on two, the time is not (half of it "
               "would "
               "be the ideal).\n");
    printf("Each rank holds all weights and moments (--zero 0), so `all` grows with P.\n");
#else
    printf("grew: resident memory of the process, all ranks in it. calls: forward calls of a layer + of its "
           "attention, per layer "
           "and\n"
           "step. This machine has %ld cores: ranks beyond that share them, so here the memory of a rank "
           "falls with P, the time "
           "does\n"
           "not; and each rank holds all weights and moments but the positions' (--zero 0), so `all` grows "
           "with P.\n",
        sysconf(_SC_NPROCESSORS_ONLN));
#endif
    printf("\nThe lecture: vanilla keeps O(N L); checkpointing O(N sqrt(L)) for twice the forward calls; "
           "split over P ranks, a P-th "
           "of it.\n"
           "`attn` runs a layer's forward twice but its attention, and so its exchange, once. `sqrt` needs a "
           "work space of sqrt(L)\n"
           "whole layers, the others of one. By the plan it needs less");
    wins_print(" than `attn`", sqrt_wins_from(GPT2_SP_ATTN));
    wins_print(", than `layer`", sqrt_wins_from(GPT2_SP_LAYER));
    printf(".\n");
    printf("\nplanned, one rank, N = 8192, same width, MiB of activations\n  layers ");
    for (int i = 0; i < 5; i++) printf("%9s", recompute_name(modes[i]));
    printf("\n");
    for (int count = 12; count <= 48; count += 12) {
        printf("  %6d ", count);
        for (int i = 0; i < 5; i++) printf("%9.1f", planned_activations(count, 8192, modes[i]) / 1048576);
        printf("\n");
    }
}

static void row_json(FILE* f, int first, int context, const Row* row, const Measure* m) {
    int gpus = 0;
#ifdef GPT2_SP_GPU
    gpus = gpu_count(row->sp);
#endif
    fprintf(f,
        "%s\n{\"name\": \"%s\", \"layers\": %d, \"heads\": %d, \"channels\": %d, \"seq_len\": %d, \"sp\": "
        "%d, \"gpus\": %d, "
        "\"virtual\": %s, \"recompute\": \"%s\", \"kept_bytes\": %.0f, \"activation_bytes\": %.0f, "
        "\"planned_activation_bytes\": "
        "%.0f, "
        "\"arena_bytes\": %.0f, \"grew_bytes\": %.0f, \"layer_forwards\": %g, \"attention_forwards\": %g, "
        "\"seconds\": %.6g, "
        "\"tok_per_s\": %.6g}",
        first ? "[" : ",", row->name, layers, HEADS, CHANNELS, context, row->sp, gpus,
        gpus > 0 && gpus < row->sp ? "true" : "false", recompute_name(row->recompute), m->kept, m->held,
        m->planned, m->arenas, m->grew, m->layer_calls, m->attention_calls, m->seconds, context / m->seconds);
}

int main(int argc, char** argv) {
    char path[] = "/tmp/gpt2_sp_lecture_XXXXXX";
    Error e = {0, {0}};
    const char* json_path = NULL;
    FILE* json = NULL;
    int contexts = CONTEXTS;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) contexts = 1, layers = QUICK_LAYERS;
        else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc) json_path = argv[++i];
        else return fprintf(stderr, "usage: lecture_table [--quick] [--json FILE]\n"), 1;
    }
    int fd = mkstemp(path), status = fd < 0 ? fail(&e, "cannot make %s: %s", path, strerror(errno)) : 0;
    if (fd >= 0) {   // only the name is taken from it: a shard replaces no file of another kind
        close(fd);
        unlink(path);
    }
    if (status == 0) status = data_write(path, &e);
    if (status == 0 && json_path && !(json = fopen(json_path, "w")))
        status = fail(&e, "cannot write %.900s: %s", json_path, strerror(errno));
    if (status == 0) {
        printf(
            "%d layers, %d heads, %d channels, %s, one sequence of N random tokens; the fastest of %d steps",
            layers, HEADS, CHANNELS, ARITHMETIC, STEPS);
        if (STEPS != LONG_STEPS) printf(" (8192: %d)", LONG_STEPS);
        printf("; MiB\n\n");
    }
    for (int c = 0; status == 0 && c < contexts; c++) {
        printf("%s    N  what                     P     kept      act     plan      all     grew  calls  "
               "step s   tok/s\n",
            c ? "\n" : "");
        for (int i = 0; status == 0 && i < ROWS; i++) {
            Measure m;
            status = row_measure(&TABLE[i], CONTEXT[c], path, &m, &e);
            if (status != 0) break;
            printf("%5d  %-22s %3d %8.1f %8.1f %8.1f %8.1f %8.1f  %.0f + %.0f %7.4g %7.0f\n", CONTEXT[c],
                TABLE[i].name, TABLE[i].sp, m.kept / 1048576, m.held / 1048576, m.planned / 1048576,
                m.arenas / 1048576, m.grew / 1048576, m.layer_calls, m.attention_calls, m.seconds,
                CONTEXT[c] / m.seconds);
            fflush(stdout);
            if (json) row_json(json, c + i == 0, CONTEXT[c], &TABLE[i], &m);
        }
    }
    if (status == 0) explain();
    if (json && fprintf(json, "\n]\n") < 0) status = fail(&e, "cannot write %.900s", json_path);
    if (json && fclose(json) != 0 && status == 0)
        status = fail(&e, "cannot write %.900s: %s", json_path, strerror(errno));
    if (fd >= 0) unlink(path);
    if (status != 0) fprintf(stderr, "lecture_table: %s\n", e.text);
    return status != 0;
}
