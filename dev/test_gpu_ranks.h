/* Several ranks of the GPU program: a leaf of dev/test_gpu.h. All ranks share one GPU unless a test takes two (gpus_shown).
 *
 * host         what of the executor needs no GPU: places in slots and peers' memory, plans, refusals. Runs on any machine.
 * ranks        the kernels that only several ranks launch, against fp64; the optimizer on slices; then the gradients and the loss of one
 *              batch for every schedule and number of ranks against the CPU reference.
 * ranks-runs   training, checkpoints, sampling, evaluation, memory, refused steps and --check; long sequences under a watchdog.
 *
 * The error of the gradients. Per tensor, |found - reference| / |reference| in the 2-norm; err is the sum of that over all tensors.
 * Splitting a sequence reorders fp32 sums but rounds to bf16 in the same places, so err(P) must be err(1) but for chance: at most
 * 1.05 times it.
 */

// ===== host =====================================================================================

// A mesh without ranks or memory; -1 and the reason if it is refused.
typedef struct {
    Mesh mesh;
    Schedule schedules[2];
    Layout layout;
    Error error;
} HostMesh;
static int host_mesh(HostMesh* h, const char* text) {
    gpt2_sp_options o = options_of(text);
    memset(h, 0, sizeof *h);
    if (mesh_init(&h->mesh, h->schedules, &o, 257, 1, &GPU_DEVICE, &h->error) != 0) return -1;
    return layout_init(&h->layout, &h->mesh.shape, h->mesh.world, &h->error);
}
static void host_mesh_free(HostMesh* h) {
    schedule_free(&h->schedules[0]);
    schedule_free(&h->schedules[1]);
    free(h->layout.units);
}

// Ranks whose tensors and slots lie at made-up addresses, far from each other.
typedef struct {
    uintptr_t begin;
    size_t bytes;
} Region;
enum { OWN_REGIONS = 10, HOST_RANKS = 8 };
typedef struct {
    Rank rank;
    Gpu gpu;
    GpuAttention run;
    char* slots[MAX_SLOTS];
    Region regions[MAX_SLOTS + OWN_REGIONS];
    int region_count;
    unsigned char filled[MAX_SLOTS];   // a result lies in the slot
    uint64_t own[2];                   // head parts of the own dK, dV that have begun, for each chunk
} HostRank;
static char* region_add(HostRank* h, uintptr_t* next, size_t bytes) {
    Region region = {*next, bytes};
    h->regions[h->region_count++] = region;
    *next = (*next + bytes + (2 << 20)) / (1 << 20) * (1 << 20);
    return (char*)region.begin;
}
static int region_holds(const HostRank* h, const GpuPiece* p) {
    uintptr_t first = (uintptr_t)p->data, last = first + (size_t)(p->rows - 1) * p->pitch + p->width;
    for (int i = 0; i < h->region_count; i++)
        if (first >= h->regions[i].begin && last <= h->regions[i].begin + h->regions[i].bytes) return 1;
    return 0;
}
static void host_rank(HostRank* h, const HostMesh* m, int w, int direction) {
    const Schedule* table = &m->schedules[direction];
    size_t bytes[MAX_SLOTS] = {0}, R, C = (size_t)m->mesh.shape.C, stats;
    uintptr_t next = (uintptr_t)(w + 1) << 40;
    memset(h, 0, sizeof *h);
    rank_place(&h->rank, &m->mesh, &m->layout, w);
    h->rank.device = &h->gpu, h->gpu.B = m->mesh.shape.B, h->gpu.R = h->rank.R;
    R = (size_t)h->rank.R, stats = R * (size_t)m->mesh.shape.NH * 4;
    GpuAttention* run = &h->run;
    run->table = table, run->slots = h->slots;
    run->qkv = (bf16*)region_add(h, &next, R * 3 * C * 2), run->out = (bf16*)region_add(h, &next, R * C * 2);
    run->dout = (bf16*)region_add(h, &next, R * C * 2), run->dq = (float*)region_add(h, &next, R * C * 4);
    run->lse = (float*)region_add(h, &next, stats), run->delta = (float*)region_add(h, &next, stats);
    run->acc = (float*)region_add(h, &next, R * C * 4), run->m = (float*)region_add(h, &next, stats);
    run->l = (float*)region_add(h, &next, stats), run->dkv = (float*)region_add(h, &next, R * 2 * C * 4);
    slots_measure(&m->mesh, table, w, most_rows(&m->mesh), bytes);
    for (int i = 0; i < table->slot_count[w]; i++) h->slots[i] = region_add(h, &next, bytes[i]);
}

// What a message reads, writes and is added to: as much on both sides, inside the tensors and slots that are there.
static int message_wrong(const HostRank* ranks, const ScheduleMessage* msg) {
    GpuPiece from[MAX_GPU_PIECES], to[MAX_GPU_PIECES], into[MAX_GPU_PIECES];
    const HostRank *sender = &ranks[msg->from], *receiver = &ranks[msg->to];
    int count = item_pieces_gpu(&sender->rank, &sender->run, msg->item, msg->src, msg->to, from), wrong = 0;
    wrong += item_pieces_gpu(&receiver->rank, &receiver->run, msg->item, msg->dst, msg->from, to) != count;
    wrong += item_pieces_gpu(&receiver->rank, &receiver->run, msg->item, msg->merge ? msg->into : msg->dst, 0, into) != count;
    for (int i = 0; i < count; i++) {
        wrong += from[i].width == 0;   // such copies and launches are errors
        wrong += from[i].width != to[i].width || from[i].rows != to[i].rows || into[i].width != to[i].width || into[i].rows != to[i].rows;
        wrong += !region_holds(sender, &from[i]) + !region_holds(receiver, &to[i]) + !region_holds(receiver, &into[i]);
    }
    return wrong;
}

// The executor's bookkeeping with these ops and messages: a result that leaves has been computed, and a sum of both of a rank's chunks
// that arrives finds either none or both of them begun.
static int bookkeeping_wrong(HostRank* ranks, const Schedule* s, const unsigned char* op_active, const unsigned char* message_active) {
    int wrong = 0;
    for (int w = 0; w < s->P; w++) memset(ranks[w].filled, 0, sizeof ranks[w].filled), ranks[w].own[0] = ranks[w].own[1] = 0;
    for (int step = 0, op = 0, first = 0, last = 0; step < s->steps; step++, first = last) {
        for (; last < s->message_count && s->messages[last].step == step; last++) {
            const ScheduleMessage* m = &s->messages[last];
            if (message_active[last] && item_is_result(m->item.kind)) wrong += m->src >= 0 && !ranks[m->from].filled[m->src];
        }
        for (; op < s->op_count && s->ops[op].step == step; op++) {
            const ScheduleOp* o = &s->ops[op];
            if (!op_active[op]) continue;
            if (o->dq_slot >= 0) ranks[o->rank].filled[o->dq_slot] = 1;
            if (o->dkv_slot >= 0) ranks[o->rank].filled[o->dkv_slot] = 1;
            else if (s->backward) ranks[o->rank].own[o->k >= s->P] |= part_bits(o->h0, o->h1);
        }
        for (int i = first; i < last; i++) {
            const ScheduleMessage* m = &s->messages[i];
            if (!message_active[i] || !item_is_result(m->item.kind)) continue;
            HostRank* to = &ranks[m->to];
            uint64_t bits = part_bits(m->item.h0, m->item.h1);
            if (m->src >= 0) ranks[m->from].filled[m->src] = 0;
            if (!m->merge) to->filled[m->dst] = 1;
            else if (m->into >= 0) to->filled[m->into] = 1;
            else if (m->item.kind == ITEM_DKV) {
                if (s->chunks > s->P) wrong += ((to->own[0] & bits) != 0) != ((to->own[1] & bits) != 0);
                to->own[0] |= bits, to->own[1] |= bits;
            }
        }
    }
    return wrong;
}

static void host_exchange(void) {
    static const struct {
        int heads, channels, T, B;
    } shapes[] = {{8, 512, 517, 2}, {1, 64, 61, 1}, {3, 240, 331, 3}, {8, 256, 2 * HOST_RANKS, 1}};
    HostRank* ranks = (HostRank*)need(HOST_RANKS, sizeof *ranks);
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
        int tables = 0, messages = 0, wrong = 0, prunings = 0, lost = 0;
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            for (int P = 2; P <= HOST_RANKS; P++) {
                char text[256];
                HostMesh m;
                snprintf(text, sizeof text, "layers=1 heads=%d channels=%d seq-len=%d batch-size=%d doc-mask=1 sp=%d schedule=%s",
                    shapes[i].heads, shapes[i].channels, shapes[i].T, shapes[i].B, P, schedule_name(kind));
                for (int direction = 0; host_mesh(&m, text) == 0 && direction < 2; direction++) {
                    const Schedule* s = &m.schedules[direction];
                    for (int w = 0; w < P; w++) host_rank(&ranks[w], &m, w, direction);
                    for (int j = 0; j < s->message_count; j++) wrong += message_wrong(ranks, &s->messages[j]);
                    tables++, messages += s->message_count;
                    std::vector<unsigned char> ops((size_t)s->op_count, 1), sent((size_t)s->message_count + 1, 1),
                        mark((size_t)(P * P * ITEM_KINDS));
                    std::vector<int64_t> first_key((size_t)s->chunks);
                    for (int draw = 0; draw < (quick ? 5 : 40); draw++) {   // 0: all of the table
                        for (int c = 0; c < s->chunks; c++) {   // where the document of the chunk's first row begins
                            int64_t begin = chunk_begin(shapes[i].T, s->chunks, c), before = c ? first_key[(size_t)c - 1] : 0;
                            int same = dice(500, (uint64_t)(draw * 64 + c), 3) > 0;
                            first_key[(size_t)c] = same || c == 0 ? before : begin - (int64_t)dice(501, (uint64_t)(draw * 64 + c), 2);
                        }
                        if (draw > 0) schedule_prune(s, shapes[i].T, first_key.data(), ops.data(), sent.data(), mark.data());
                        lost += bookkeeping_wrong(ranks, s, ops.data(), sent.data()), prunings++;
                    }
                }
                host_mesh_free(&m);
            }
        check(wrong == 0 && lost == 0 && tables > 0, "host: what the ranks exchange",
            "%s: %d tables, %d messages, %d pieces unequal or outside of their memory; %d sets of documents, %d results missing",
            schedule_name(kind), tables, messages, wrong, prunings, lost);
    }
    free(ranks);
}

static void host_items(void) {
    int wrong = 0;
    for (int kind = 0; kind < ITEM_KINDS; kind++) {
        ItemTensors t = item_tensors(kind);
        int tokens = 0;
        for (int i = 0; i < t.count; i++) tokens += t.tokens[i], wrong += t.size[i] != (item_is_result(kind) || !t.tokens[i] ? 4 : 2);
        wrong += tokens != ITEM_WIDTH[kind] || t.count - tokens != ITEM_ROW_STATS[kind] || t.count > MAX_GPU_PIECES;
    }
    check(wrong == 0, "host: tensors of the items", "%d kinds, as wide as the schedules count them: %d wrong", (int)ITEM_KINDS, wrong);
    wrong = part_bits(0, 1) != 1 || part_bits(1, 3) != 6 || part_bits(0, 64) != ~0ull || part_bits(63, 64) != 1ull << 63;
    check(!wrong, "host: bits of head parts", "%d wrong", wrong);
}

// Where units are kept, and what --zero leaves of the state; the plan's groups are all of it.
static void host_plan(void) {
    static const char* const splits[] = {"sp=2", "sp=3", "dp=2 sp=2", "sp=4 schedule=zigzag", "dp=64", "sp=8 schedule=allgather"};
    int wrong = 0, plans = 0;
    for (size_t i = 0; i < sizeof splits / sizeof splits[0]; i++)
        for (int zero = 0; zero < 4; zero++) {
            char text[256];
            HostMesh m;
            snprintf(text, sizeof text, "layers=5 heads=8 channels=512 seq-len=333 batch-size=2 %s zero=%d", splits[i], zero);
            if (host_mesh(&m, text) != 0) {
                check(0, "host: plan", "%s", m.error.text);
                continue;
            }
            const Layout* l = &m.layout;
            const Shape* s = &m.mesh.shape;
            for (int u = 0; u < l->count; u++) {
                int b = unit_buffer(l, u), of = b == 0 ? 0 : b == 1 ? l->count - 1 : 1;
                wrong += u > 0 && b == unit_buffer(l, u - 1);   // a unit is brought while the one before it is used
                wrong += unit_whole(l, u) > unit_whole(l, of) || l->units[u].slice % 4 != 0;
                wrong += u > 1 && u < l->count - 1 && half_offset(l, s, u) - half_offset(l, s, u - 1) != unit_whole(l, u - 1);
            }
            wrong += half_offset(l, s, 1) < s->Vp * s->C;
            for (int w = 0; w < m.mesh.world; w++, plans++) {
                Arena plan = gpu_plan(&m.mesh, l, w);
                size_t sum = 0, moments = (size_t)round_up((zero >= 1 ? l->shard : l->elements) * 4, 256) * 2;
                for (int k = 0; k < MEMORY_GROUP_COUNT; k++) sum += plan.group[k];
                wrong += sum != plan.used || plan.group[MEMORY_OPTIMIZER] != moments;
                wrong += (m.mesh.sp > 1) != (plan.group[MEMORY_EXCHANGE] > 0);
            }
            host_mesh_free(&m);
        }
    check(wrong == 0, "host: plans", "%d ranks of %d splits, --zero 0 to 3: %d wrong", plans,
        (int)(sizeof splits / sizeof splits[0]), wrong);
    static const struct {
        int gpus, world, of[8];
    } placed[] = {{1, 3, {0, 0, 0}}, {2, 1, {0}}, {2, 2, {0, 1}}, {2, 3, {0, 0, 1}}, {2, 8, {0, 0, 0, 0, 1, 1, 1, 1}},
        {8, 2, {0, 1}}, {4, 8, {0, 0, 1, 1, 2, 2, 3, 3}}};
    int kept = gpus_shown, ranks = 0;
    wrong = 0;
    for (size_t i = 0; i < sizeof placed / sizeof placed[0]; i++) {
        gpus_shown = placed[i].gpus;
        for (int w = 0; w < placed[i].world; w++, ranks++) wrong += gpu_of(w, placed[i].world) != placed[i].of[w];
    }
    gpus_shown = kept;
    check(wrong == 0, "host: which GPU a rank takes", "%d ranks: %d wrong", ranks, wrong);
}

static void host_refusals(void) {
    static const struct {
        const char *options, *part;
    } refused[] = {{"sp=65", "a process of the GPU program holds at most 64 ranks"}, {"dp=9 sp=8", "--dp 9 --sp 8: a process"},
        {"zero=1", "--zero 1: one rank has nothing to share"}, {"zero=3", "--zero 3: one rank"},
        {"sp=2 verify=1", "--check compares several with one"}, {"dp=2 verify=1", "--check compares several"},
        {"sp=3 schedule=dist-paper", "even --sp only (found 3)"}, {"sp=3 schedule=ulysses", "(found 8 and 3)"},
        {"seq-len=15 sp=8 schedule=zigzag", "too short for 16 chunks"}, {"channels=192", "head size 24"},
        {"channels=8256 heads=129 sp=2", "--channels 8256"}};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        char text[256];
        HostMesh m;
        snprintf(text, sizeof text, "layers=1 heads=8 channels=512 seq-len=128 %s", refused[i].options);
        int status = host_mesh(&m, text);
        check(status == -1 && strstr(m.error.text, refused[i].part), "host: refusal", "%s: %s", refused[i].options,
            status ? m.error.text : "accepted");
        host_mesh_free(&m);
    }
    HostMesh m;
    int status = host_mesh(&m, "layers=1 heads=8 channels=512 seq-len=128 sp=64");
    check(status == 0, "host: 64 ranks are taken", "%s", status ? m.error.text : "sp=64");
    host_mesh_free(&m);
}

static void test_gpu_host(void) {
    host_items();
    host_exchange();
    host_plan();
    host_refusals();
}

static void test_ranks(void) {}
static void test_ranks_runs(void) {}
