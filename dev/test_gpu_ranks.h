/* Several ranks of the GPU program: a leaf of dev/test_gpu.h. All share one GPU unless a test takes two.
 *
 * host         what of the executor needs no GPU: places in slots and peers' memory, plans, refusals. Runs on
 *              any machine.
 * ranks        the kernels that only several ranks launch, against fp64; the optimizer on slices; then the
 *              gradients and the loss of one batch for every schedule and number of ranks against the CPU
 *              reference.
 * ranks-runs   training, checkpoints, sampling, evaluation, memory, refused steps and --check; long sequences
 *              under a watchdog.
 *
 * The error of the gradients. Per tensor, |found - reference| / |reference| in the 2-norm; err is the sum of
 * that over all tensors. Splitting a sequence reorders fp32 sums but rounds to bf16 in the same places, so
 * err(P) must be err(1) but for chance: at most 1.05 times it.
 */

// ===== host =====================================================================================
// What ranks do with each other's memory, worked out with made-up addresses. Held: every message reads,
// writes and adds equal pieces inside the memory of its ranks; a result that leaves has been computed;
// buffers that are in use at the same time share no byte, in any mode; what the GPU program cannot run is
// refused. On a GPU such a fault writes over a neighbour's numbers, seldom and without a message.

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
    return layout_init(&h->layout, &h->mesh, &h->error);
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
enum { OWN_REGIONS = 11, HOST_RANKS = 8 };
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
static int region_holds(const HostRank* h, const Block* p) {
    uintptr_t first = (uintptr_t)p->data, last = first + (size_t)(p->rows - 1) * p->pitch + p->width;
    for (int i = 0; i < h->region_count; i++)
        if (first >= h->regions[i].begin && last <= h->regions[i].begin + h->regions[i].bytes) return 1;
    return 0;
}
static void host_rank(HostRank* h, const HostMesh* m, int w, int direction) {
    const Schedule* table = &m->schedules[direction];
    size_t bytes[MAX_SLOTS] = {0};
    uintptr_t next = (uintptr_t)(w + 1) << 40;
    memset(h, 0, sizeof *h);
    rank_place(&h->rank, &m->mesh, &m->layout, w);
    h->rank.device = &h->gpu;
    h->gpu.B = m->mesh.shape.B, h->gpu.R = h->rank.R;
    const size_t R = (size_t)h->rank.R, C = (size_t)m->mesh.shape.C;
    const size_t half = R * C * 2, full = R * C * 4;
    const size_t stats = R * (size_t)m->mesh.shape.NH * 4;
    GpuAttention* run = &h->run;
    run->table = table, run->slots = h->slots;
    run->qkv = (bf16*)region_add(h, &next, 3 * half);
    run->out = (bf16*)region_add(h, &next, half);
    run->dout = (bf16*)region_add(h, &next, half);
    run->dq = (float*)region_add(h, &next, full);
    run->lse = (float*)region_add(h, &next, stats);
    run->delta = (float*)region_add(h, &next, stats);
    run->acc = (float*)region_add(h, &next, full);
    run->m = (float*)region_add(h, &next, stats);
    run->l = (float*)region_add(h, &next, stats);
    run->dkv[0] = (float*)region_add(h, &next, full);
    run->dkv[1] = (float*)region_add(h, &next, full);
    slots_measure(&m->mesh, table, w, most_rows(&m->mesh), bytes);
    for (int i = 0; i < table->slot_count[w]; i++) h->slots[i] = region_add(h, &next, bytes[i]);
}

// What a message reads, writes and is added to: as much on both sides, inside the tensors and slots that are
// there.
static int message_wrong(const HostRank* ranks, const ScheduleMessage* msg) {
    Block from[ITEM_PARTS], to[ITEM_PARTS], into[ITEM_PARTS];
    const HostRank *sender = &ranks[msg->from], *receiver = &ranks[msg->to];
    int count = item_blocks(&sender->rank, &sender->run, msg->item, msg->src, from), wrong = 0;
    wrong += item_blocks(&receiver->rank, &receiver->run, msg->item, msg->dst, to) != count;
    wrong += item_blocks(&receiver->rank, &receiver->run, msg->item, msg->merge ? msg->into : msg->dst,
                 into) != count;
    for (int i = 0; i < count; i++) {
        wrong += from[i].width == 0;   // such copies and launches are errors
        wrong += from[i].width != to[i].width || from[i].rows != to[i].rows || into[i].width != to[i].width ||
            into[i].rows != to[i].rows;
        wrong += !region_holds(sender, &from[i]) + !region_holds(receiver, &to[i]) +
            !region_holds(receiver, &into[i]);
    }
    return wrong;
}

// A rank's pieces of a step that do not lie in one piece: no more than there is room for.
static int packed_wrong(const HostRank* ranks, const HostMesh* m, const Schedule* s) {
    int wrong = 0;
    for (int w = 0; w < s->P; w++) {
        size_t room = packed_bytes(&m->mesh, s, w, most_rows(&m->mesh));
        char* const begin = (char*)(1ll << 50);
        char* packed = begin;
        for (int i = 0, step = -1; i < s->message_count; i++) {
            const ScheduleMessage* msg = &s->messages[i];
            Block blocks[ITEM_PARTS];
            PackJob job;
            if (msg->step != step) packed = begin, step = msg->step;
            if (msg->from != w) continue;
            int count = item_blocks(&ranks[w].rank, &ranks[w].run, msg->item, msg->src, blocks);
            for (int k = 0; k < count; k++)
                if (blocks[k].pitch != blocks[k].width) pack_place(&blocks[k], &packed, &job);
            wrong += (size_t)(packed - begin) > room;
        }
    }
    return wrong;
}

// The ops of a table and its messages, as a pruned table leaves them active.
typedef struct {
    const Schedule* s;
    const unsigned char *ops, *messages;
} ActiveTable;

// What leaves a rank in a step (messages first to last - 1): results that have not been computed.
static int results_leave_wrong(const HostRank* ranks, const ActiveTable* t, int first, int last) {
    int wrong = 0;
    for (int i = first; i < last; i++) {
        const ScheduleMessage* m = &t->s->messages[i];
        if (t->messages[i] && item_is_result(m->item.kind) && m->src >= 0)
            wrong += !ranks[m->from].filled[m->src];
    }
    return wrong;
}

// The op computes: its results lie in their slots, or the rank's own sums of its head parts have begun.
static void results_begin(HostRank* ranks, const Schedule* s, const ScheduleOp* o) {
    HostRank* r = &ranks[o->rank];
    if (o->dq_slot >= 0) r->filled[o->dq_slot] = 1;
    if (o->dkv_slot >= 0) r->filled[o->dkv_slot] = 1;
    else if (s->backward) r->own[o->k >= s->P] |= part_bits(o->h0, o->h1);
}

// What arrives in a step. A sum of both of a rank's chunks must find either none or both of them begun.
static int results_arrive_wrong(HostRank* ranks, const ActiveTable* t, int first, int last) {
    int wrong = 0;
    for (int i = first; i < last; i++) {
        const ScheduleMessage* m = &t->s->messages[i];
        if (!t->messages[i] || !item_is_result(m->item.kind)) continue;
        HostRank* to = &ranks[m->to];
        const uint64_t bits = part_bits(m->item.h0, m->item.h1);
        if (m->src >= 0) ranks[m->from].filled[m->src] = 0;
        if (!m->merge) to->filled[m->dst] = 1;
        else if (m->into >= 0) to->filled[m->into] = 1;
        else if (m->item.kind == ITEM_DKV) {
            if (t->s->chunks > t->s->P) wrong += ((to->own[0] & bits) != 0) != ((to->own[1] & bits) != 0);
            to->own[0] |= bits, to->own[1] |= bits;
        }
    }
    return wrong;
}

// The executor's bookkeeping with these ops and messages: results that are missing where they leave or
// arrive.
static int bookkeeping_wrong(HostRank* ranks, const ActiveTable* t) {
    const Schedule* s = t->s;
    int wrong = 0, op = 0;
    for (int w = 0; w < s->P; w++) {
        memset(ranks[w].filled, 0, sizeof ranks[w].filled);
        ranks[w].own[0] = ranks[w].own[1] = 0;
    }
    for (int step = 0, first = 0; step < s->steps; step++) {
        int last = first;
        while (last < s->message_count && s->messages[last].step == step) last++;
        wrong += results_leave_wrong(ranks, t, first, last);
        for (; op < s->op_count && s->ops[op].step == step; op++)
            if (t->ops[op]) results_begin(ranks, s, &s->ops[op]);
        wrong += results_arrive_wrong(ranks, t, first, last);
        first = last;
    }
    return wrong;
}

typedef struct {
    int tables, messages, wrong;   // pieces unequal or outside
    int prunings, lost;            // sets of documents; results missing
} ExchangeCount;

// One direction of a mesh: all of its table, then as random documents leave it.
static void host_exchange_table(HostRank* ranks, const HostMesh* m, int direction, ExchangeCount* n) {
    const Schedule* s = &m->schedules[direction];
    const int64_t T = m->mesh.shape.T;
    for (int w = 0; w < s->P; w++) host_rank(&ranks[w], m, w, direction);
    for (int j = 0; j < s->message_count; j++) n->wrong += message_wrong(ranks, &s->messages[j]);
    n->wrong += packed_wrong(ranks, m, s);
    n->tables++;
    n->messages += s->message_count;
    std::vector<unsigned char> ops((size_t)s->op_count, 1), sent((size_t)s->message_count + 1, 1);
    std::vector<unsigned char> mark((size_t)(s->P * s->P * ITEM_KINDS));
    std::vector<int64_t> first_key((size_t)s->chunks);   // where the document of a chunk's first row begins
    const ActiveTable active = {s, ops.data(), sent.data()};
    for (int draw = 0; draw < (quick ? 5 : 40); draw++, n->prunings++) {
        for (int c = 0; c < s->chunks; c++) {
            const uint64_t roll = (uint64_t)(draw * 64 + c);
            const int64_t begin = chunk_begin(T, s->chunks, c), before = c ? first_key[(size_t)c - 1] : 0;
            if (c == 0 || dice(500, roll, 3) > 0) first_key[(size_t)c] = before;
            else first_key[(size_t)c] = begin - (int64_t)dice(501, roll, 2);
        }
        if (draw > 0) schedule_prune(s, T, first_key.data(), ops.data(), sent.data(), mark.data());
        n->lost += bookkeeping_wrong(ranks, &active);
    }
}

// Where tensor i of a rank's own item begins for a head, and how far apart its tokens (or, with one number a
// row and head, its sequences) are, in numbers.
static char* own_place(const HostRank* h, int kind, int i, int64_t head, int64_t* stride) {
    const GpuAttention* run = &h->run;
    const int64_t C = h->rank.mesh->shape.C, HS = h->rank.mesh->shape.HS, rows = h->rank.Tl;
    float* const stats[] = {run->m, run->l, run->lse, run->delta};
    *stride = ITEM_TENSORS[kind].wide[i] ? C : h->rank.mesh->shape.NH * rows;
    if (kind == ITEM_OUT) return (char*)(i == 0 ? run->acc + head * HS : stats[i - 1] + head * rows);
    if (kind == ITEM_DQ) return (char*)(run->dq + head * HS);
    if (kind == ITEM_DKV) return (char*)(run->dkv[i] + head * HS);
    if (kind == ITEM_QDO && i > 0)
        return i == 1 ? (char*)(run->dout + head * HS) : (char*)(stats[i] + head * rows);
    *stride = 3 * C;
    return (char*)(run->qkv + (kind == ITEM_KV ? i + 1 : 0) * C + head * HS);
}

// The blocks of an item of two heads, in the rank's own tensors and in a slot, where tensors follow each
// other in whole 256 bytes.
static int views_wrong(HostRank* h, int kind, int part, int64_t heads) {
    const int64_t B = h->gpu.B, HS = h->rank.mesh->shape.HS, rows = h->rank.Tl;
    Item item = {kind, h->rank.place.sp, part, part + 1};
    Block own[ITEM_PARTS], slot[ITEM_PARTS];
    int count = ITEM_TENSORS[kind].count;
    int wrong = item_blocks(&h->rank, &h->run, item, -1, own) != count;
    wrong += item_blocks(&h->rank, &h->run, item, 0, slot) != count;
    char* at = h->slots[0];
    for (int i = 0; i < count; i++) {
        const int wide = ITEM_TENSORS[kind].wide[i],
                  size = wide && kind != ITEM_OUT && kind < ITEM_DQ ? 2 : 4;
        int64_t stride;
        const char* place = own_place(h, kind, i, part * heads, &stride);
        const size_t width = (size_t)(heads * (wide ? HS : rows) * size), n = (size_t)(wide ? B * rows : B);
        wrong += own[i].data != place || own[i].pitch != (size_t)(stride * size) || own[i].width != width ||
            (size_t)own[i].rows != n;
        wrong += slot[i].data != at || slot[i].pitch != width || slot[i].width != width ||
            (size_t)slot[i].rows != n;
        at += (width * n + 255) / 256 * 256;
    }
    return wrong;
}

// What is sent of own rows is packed, piece behind piece; what is received, or lies in a slot, is not.
static int packing_wrong(HostRank* h) {
    char* const begin = (char*)(1ll << 50);
    Item item = {ITEM_QDO, h->rank.place.sp, 1, 2};
    Piece pieces[ITEM_PARTS];
    PackJob jobs[ITEM_PARTS];
    h->gpu.jobs = jobs, h->gpu.job_count = 0;
    h->gpu.pack_next = begin;
    char* next = begin;
    int wrong = gpu_pieces(&h->rank, &h->run, item, 0, 1, 1, pieces) != 4 || h->gpu.job_count != 0;
    wrong += gpu_pieces(&h->rank, &h->run, item, -1, 1, 0, pieces) != 4 || h->gpu.job_count != 0;
    wrong += gpu_pieces(&h->rank, &h->run, item, -1, 1, 1, pieces) != 4 || h->gpu.job_count != 4;
    for (int i = 0; wrong == 0 && i < 4; i++) {
        int64_t stride;
        wrong += pieces[i].data != next || jobs[i].data != next || pieces[i].peer != 1 ||
            pieces[i].bytes != jobs[i].width * (size_t)jobs[i].rows ||
            jobs[i].source != own_place(h, ITEM_QDO, i, 2, &stride);
        next += (pieces[i].bytes + 255) / 256 * 256;
    }
    return wrong + (h->gpu.pack_next != next);
}

static void host_views(void) {
    HostRank* h = (HostRank*)need(1, sizeof *h);
    HostMesh m;
    int views = 0, wrong = 0, packed = 0;
    if (host_mesh(&m, "layers=1 heads=8 channels=512 seq-len=514 batch-size=2 sp=4 schedule=ulysses") == 0)
        for (int w = 0; w < 4; w++) {
            host_rank(h, &m, w, 1);
            for (int kind = 0; kind < ITEM_KINDS; kind++)
                for (int part = 0; part < 4; part++, views++) wrong += views_wrong(h, kind, part, 2);
            packed += packing_wrong(h);
        }
    check(views > 0 && wrong == 0 && packed == 0, "host: items are the heads that they are named for",
        "%d items, own and in a slot: %d places wrong; %d ways to pack", views, wrong, packed);
    host_mesh_free(&m);
    free(h);
}

static void host_exchange(void) {
    static const struct {
        int heads, channels, T, B;
    } shapes[] = {{8, 512, 517, 2}, {1, 64, 61, 1}, {3, 240, 331, 3}, {8, 256, 2 * HOST_RANKS, 1}};
    HostRank* ranks = (HostRank*)need(HOST_RANKS, sizeof *ranks);
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
        ExchangeCount n = {0, 0, 0, 0, 0};
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            for (int P = 2; P <= HOST_RANKS; P++) {
                char text[256];
                HostMesh m;
                snprintf(text, sizeof text,
                    "layers=1 heads=%d channels=%d seq-len=%d batch-size=%d doc-mask=1 sp=%d schedule=%s",
                    shapes[i].heads, shapes[i].channels, shapes[i].T, shapes[i].B, P, schedule_name(kind));
                for (int direction = 0; host_mesh(&m, text) == 0 && direction < 2; direction++)
                    host_exchange_table(ranks, &m, direction, &n);
                host_mesh_free(&m);
            }
        check(n.wrong == 0 && n.lost == 0 && n.tables > 0,
            "host: ranks exchange equal pieces of their memory, and no result is missing",
            "%s: %d tables, %d messages, %d pieces unequal or outside of their memory; %d sets of documents, "
            "%d results missing",
            schedule_name(kind), n.tables, n.messages, n.wrong, n.prunings, n.lost);
    }
    free(ranks);
}

static void host_items(void) {
    int wrong = 0;
    for (int kind = 0; kind < ITEM_KINDS; kind++) {
        int count = ITEM_TENSORS[kind].count;
        for (int i = 0; i < count; i++)
            wrong += item_size(kind, i) != (item_is_result(kind) || !ITEM_TENSORS[kind].wide[i] ? 4u : 2u);
        wrong += (size_t)GPU_DEVICE.item_bytes[kind] != item_size(kind, 0);
        wrong += item_width(kind) + item_stats(kind) != count || count > ITEM_PARTS || count > MAX_PIECES;
    }
    check(wrong == 0, "host: tensors of the items are as wide as the schedules count them",
        "%d kinds: %d wrong", (int)ITEM_KINDS, wrong);
    wrong = part_bits(0, 1) != 1 || part_bits(1, 3) != 6 || part_bits(0, 64) != ~0ull ||
        part_bits(63, 64) != 1ull << 63;
    check(!wrong, "host: bits of head parts go from the first to the last", "%d wrong", wrong);
}

// Where units are kept: apart from the one before, which is used while a unit is brought, and not beyond
// their buffer.
static int units_wrong(const Layout* l, const Shape* s) {
    int wrong = half_offset(l, s, 1) < s->Vp * s->C;
    for (int kind = 0; kind < UNIT_KINDS; kind++) wrong += l->units[kind_unit(l, kind)].kind != kind;
    for (int u = 0; u < l->count; u++) {
        const int b = unit_buffer(l, u);
        wrong += u > 0 && b == unit_buffer(l, u - 1);
        wrong += unit_whole(l, u) > unit_whole(l, buffer_unit(l, b)) || l->units[u].slice % 4 != 0;
        wrong +=
            u > 1 && u <= s->L && half_offset(l, s, u) - half_offset(l, s, u - 1) != unit_whole(l, u - 1);
    }
    return wrong;
}

// What --zero leaves of a rank's state; its plan's groups are all of it.
static int plan_wrong(const HostMesh* m, int w) {
    const Arena plan = gpu_plan(&m->mesh, &m->layout, w);
    size_t sum = 0, moments = (size_t)round_up(m->layout.buffer[STATE_M] * 4, 256) * 2;
    for (int k = 0; k < MEMORY_GROUP_COUNT; k++) sum += plan.group[k];
    return (sum != plan.used || plan.group[MEMORY_OPTIMIZER] != moments) +
        ((m->mesh.sp > 1) != (plan.group[MEMORY_EXCHANGE] > 0));
}

static void host_plan(void) {
    static const char* const splits[] = {
        "sp=2", "sp=3", "dp=2 sp=2", "sp=4 schedule=zigzag", "dp=64", "sp=8 schedule=allgather"};
    const int count = (int)(sizeof splits / sizeof splits[0]);
    int wrong = 0, plans = 0;
    for (int i = 0; i < 4 * count; i++) {
        char text[256];
        HostMesh m;
        snprintf(text, sizeof text, "layers=5 heads=8 channels=512 seq-len=333 batch-size=2 %s zero=%d",
            splits[i / 4], i % 4);
        if (host_mesh(&m, text) != 0) {
            check(0, "host: a mesh is made", "%s", m.error.text);
            continue;
        }
        wrong += units_wrong(&m.layout, &m.mesh.shape);
        for (int w = 0; w < m.mesh.world; w++, plans++) wrong += plan_wrong(&m, w);
        host_mesh_free(&m);
    }
    check(wrong == 0, "host: plans keep units apart and add up",
        "%d ranks of %d splits, --zero 0 to 3: %d wrong", plans, count, wrong);
}

static void host_gpus(void) {
    static const struct {
        int gpus, world, of[8];
    } placed[] = {{1, 3, {0, 0, 0}}, {2, 1, {0}}, {2, 2, {0, 1}}, {2, 3, {0, 0, 1}},
        {2, 8, {0, 0, 0, 0, 1, 1, 1, 1}}, {8, 2, {0, 1}}, {4, 8, {0, 0, 1, 1, 2, 2, 3, 3}}};
    const int kept = gpus_shown;
    int wrong = 0, ranks = 0;
    for (size_t i = 0; i < sizeof placed / sizeof placed[0]; i++) {
        gpus_shown = placed[i].gpus;
        Mesh mesh;
        memset(&mesh, 0, sizeof mesh);
        mesh.world = mesh.local_ranks = placed[i].world;
        mesh.processes = mesh.local_processes = 1;
        for (int w = 0; w < placed[i].world; w++, ranks++) wrong += gpu_of(&mesh, w) != placed[i].of[w];
    }
    // two processes of two ranks on one machine: GPUs shared, or those that a launcher shows to each alone
    static const struct {
        int gpus, of[4];
    } shared[] = {{4, {0, 1, 2, 3}}, {3, {0, 0, 1, 2}}, {1, {0, 0, 0, 0}}, {2, {0, 1, 0, 1}}};
    for (size_t i = 0; i < sizeof shared / sizeof shared[0]; i++) {
        gpus_shown = shared[i].gpus;
        for (int w = 0; w < 4; w++, ranks++) {
            Mesh mesh;
            memset(&mesh, 0, sizeof mesh);
            mesh.world = 4, mesh.local_ranks = 2;
            mesh.processes = mesh.local_processes = 2;
            mesh.process = mesh.local_process = w / 2, mesh.first_rank = w / 2 * 2;
            wrong += gpu_of(&mesh, w) != shared[i].of[w];
        }
    }
    gpus_shown = 4;
    wrong += gpu_count(3) != 3 || gpu_count(9) != 4;
    gpus_shown = kept;
    check(wrong == 0, "host: ranks are spread evenly over the GPUs", "%d ranks: %d wrong", ranks, wrong);
}

// Sequences of a pass that are worked on at a time: the smallest divisor of the batch that gives a rank 32768
// tokens; all of them where nothing is computed again.
static void host_sequences(void) {
    static const struct {
        const char* text;
        int64_t sequences;
    } cases[] = {{"seq-len=8192 batch-size=12", 4}, {"seq-len=8192 batch-size=10", 5},
        {"seq-len=8192 batch-size=12 sp=2", 12}, {"seq-len=8192 batch-size=36 sp=2", 9},
        {"seq-len=32768 batch-size=3", 1}, {"seq-len=32768 batch-size=3 recompute=none", 3},
        {"seq-len=1024 batch-size=7", 7}};
    int right = 0, count = (int)(sizeof cases / sizeof cases[0]);
    for (int i = 0; i < count; i++) {
        char text[128];
        HostMesh m;
        snprintf(text, sizeof text, "layers=1 heads=8 channels=512 %s", cases[i].text);
        if (host_mesh(&m, text) == 0) right += gpu_sequences(&m.mesh) == cases[i].sequences;
        else printf("     %s\n", m.error.text);
        host_mesh_free(&m);
    }
    gpt2_sp g;
    char path[GPT2_SP_TEXT + 16];
    memset(&g, 0, sizeof g);
    g.mesh.process = 3, g.mesh.processes = 1;
    process_path(path, &g, "a/b");
    int named = strcmp(path, "a/b") == 0;
    g.mesh.processes = 4, process_path(path, &g, "a/b");
    named += strcmp(path, "a/b.3") == 0;
    process_path(path, &g, "");
    check(right == count && named == 2 && path[0] == 0,
        "host: batches are divided, and files of several processes named, as promised",
        "%d of %d meshes, %d of 2 names", right, count, named);
}

// The memory of a rank as gpu_layout gives it out from a made-up address.
typedef struct {
    HostMesh m;
    Rank r;
    Gpu* d;
    Arena a;
} HostPlaces;
static int host_places_make(HostPlaces* h, const char* text) {
    if (host_mesh(&h->m, text) != 0) return -1;
    h->d = (Gpu*)need(1, sizeof *h->d);
    rank_place(&h->r, &h->m.mesh, &h->m.layout, h->m.mesh.sp / 2);
    for (int b = 0; b < 2; b++) h->d->slots[b] = (char**)need(MAX_SLOTS, sizeof *h->d->slots[b]);
    memset(&h->a, 0, sizeof h->a);
    h->a.base = (char*)(1ll << 40);
    gpu_layout(h->d, &h->a, &h->r);
    return 0;
}
static void host_places_free(HostPlaces* h) {
    free(h->d->slots[0]);
    free(h->d->slots[1]);
    free(h->d);
    host_mesh_free(&h->m);
}

static Region region_of(const void* p, size_t bytes) { return {(uintptr_t)p, bytes}; }
static int regions_meet(const Region& x, const Region& y) {
    return x.bytes && y.bytes && x.begin < y.begin + y.bytes && y.begin < x.begin + x.bytes;
}

// What is in use while a table runs.
static std::vector<Region> places_alive(const HostPlaces* h, int backward) {
    const Gpu* d = h->d;
    const Mesh* mesh = &h->m.mesh;
    const size_t matrix = (size_t)(d->R * mesh->shape.C) * 2, stats = (size_t)(d->R * mesh->shape.NH) * 4;
    std::vector<Region> alive = {region_of(d->act[G_x], matrix), region_of(d->act[G_qkv], 3 * matrix),
        region_of(d->act[G_lse], stats), region_of(d->act[G_ln1], matrix)};
    if (!backward || mesh->recompute != GPT2_SP_LAYER) alive.push_back(region_of(d->act[G_atty], matrix));
    if (!backward) {
        alive.push_back(region_of(d->wide, 2 * matrix + 2 * stats));
        return alive;
    }
    alive.push_back(region_of((char*)d->wide + 3 * matrix, matrix));
    alive.push_back(region_of(gpu_inputs_again(mesh) ? d->act[G_x2] : d->act[G_fch], 2 * matrix));   // dq
    alive.push_back(region_of(d->dx, matrix));
    alive.push_back(region_of(d->delta, stats));
    return alive;
}

// The table's own buffers: backward two sums of dK and dV, then what is packed, then its slots.
static std::vector<Region> places_taken(const HostPlaces* h, int backward) {
    const Gpu* d = h->d;
    const Mesh* mesh = &h->m.mesh;
    const Schedule* s = &h->m.schedules[backward];
    const int rank = h->r.place.sp;
    const size_t matrix = (size_t)(d->R * mesh->shape.C) * 2;
    size_t bytes[MAX_SLOTS] = {0};
    std::vector<Region> taken;
    slots_measure(mesh, s, rank, most_rows(mesh), bytes);
    for (int j = 0; backward && j < 2; j++) taken.push_back(region_of(d->dkv[j], 2 * matrix));
    taken.push_back(region_of(d->packed[backward], packed_bytes(mesh, s, rank, most_rows(mesh))));
    for (int j = 0; j < s->slot_count[rank]; j++) taken.push_back(region_of(d->slots[backward][j], bytes[j]));
    return taken;
}

// What is used at the same time as a table's exchange buffers must not share bytes with them, nor dK and
// dV's sums with what is made of them.
static int places_wrong(const HostPlaces* h, int backward, int* places) {
    const std::vector<Region> alive = places_alive(h, backward), taken = places_taken(h, backward);
    const Region dqkv = region_of(h->d->wide, 3 * (size_t)(h->d->R * h->m.mesh.shape.C) * 2);
    const uintptr_t end = (uintptr_t)h->a.base + h->a.used;
    int wrong = 0;
    for (size_t j = 0; j < taken.size(); j++, ++*places) {
        for (const Region& other : alive) wrong += regions_meet(taken[j], other);
        for (size_t l = 0; l < j; l++) wrong += regions_meet(taken[j], taken[l]);
        wrong += (taken[j].bytes > 0 && taken[j].begin < (uintptr_t)h->a.base) ||
            taken[j].begin + taken[j].bytes > end || taken[j].begin % 256 != 0;
        if (backward && j < 2) wrong += regions_meet(taken[j], dqkv);
    }
    return wrong;
}

// All that is said to be free while a table's direction runs is: it meets nothing that is in use, whether a
// slot is put there or not.
static int rooms_wrong(const HostPlaces* h, int backward, int* count) {
    Room rooms[ROOMS];
    const std::vector<Region> alive = places_alive(h, backward);
    const int n = exchange_rooms(h->d, &h->m.mesh, backward, rooms);
    int wrong = 0;
    for (int i = 0; i < n; i++, ++*count)
        for (const Region& other : alive) wrong += regions_meet(region_of(rooms[i].p, rooms[i].bytes), other);
    return wrong;
}

static void host_places(void) {
    static const char* const splits[] = {"sp=2", "sp=3", "sp=4 schedule=zigzag", "sp=2 schedule=ulysses",
        "dp=2 sp=5 zero=3", "sp=4 schedule=ring", "sp=8", "sp=8 schedule=allgather"};
    static const char* const modes[] = {"none", "gelu", "attn", "layer", "sqrt"};
    int places = 0, wrong = 0, rooms = 0, used = 0;
    for (size_t i = 0; i < sizeof splits / sizeof splits[0]; i++)
        for (int k = 0; k < 5; k++) {
            char text[256];
            HostPlaces h;
            snprintf(text, sizeof text,
                "layers=4 heads=8 channels=256 seq-len=331 batch-size=2 %s recompute=%s", splits[i],
                modes[k]);
            if (host_places_make(&h, text) != 0) {
                wrong++;
                continue;
            }
            for (int backward = 0; backward < 2; backward++)
                wrong += places_wrong(&h, backward, &places), used += rooms_wrong(&h, backward, &rooms);
            host_places_free(&h);
        }
    check(wrong == 0, "host: exchange buffers share no bytes with what is in use", "%d places: %d wrong",
        places, wrong);
    check(rooms > 0 && used == 0, "host: what exchange buffers may take is not in use",
        "%d rooms: %d meet what is in use", rooms, used);
    HostMesh m;
    size_t bytes = 0;
    wrong = host_mesh(&m, "layers=4 heads=8 channels=256 seq-len=4096 sp=2 recompute=layer");
    for (int w = 0; wrong == 0 && w < 2; w++) bytes += gpu_plan(&m.mesh, &m.layout, w).group[MEMORY_EXCHANGE];
    check(wrong == 0 && bytes == 0, "host: two ranks in layer mode exchange through what is free",
        "%zu bytes beside it", bytes);
    host_mesh_free(&m);
}

static void host_refusals(void) {
    static const struct {
        const char *options, *part;
    } refused[] = {{"sp=65", "a run of the GPU program has at most 64 ranks"},
        {"dp=9 sp=8", "--dp 9 --sp 8: a run"}, {"zero=1", "--zero 1: one rank has nothing to share"},
        {"zero=3", "--zero 3: one rank"}, {"sp=2 verify=1", "--check compares several with one"},
        {"dp=2 verify=1", "--check compares several"},
        {"sp=2 world=2 transport=peer", "--transport peer: copies go between the ranks of one process"},
        {"channels=128", "head size 16"}, {"channels=320", "head size 40"},
        {"channels=1152", "head size 144"},
        {"sp=3 schedule=dist-paper", "leaves out pairs at odd --sp (found 3)"},
        {"sp=3 schedule=ulysses", "(found 8 and 3)"},
        {"seq-len=15 sp=8 schedule=zigzag", "too short for 16 chunks"}, {"channels=192", "head size 24"},
        {"channels=8256 heads=129 sp=2", "--channels 8256"}};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        char text[256];
        HostMesh m;
        snprintf(text, sizeof text, "layers=1 heads=8 channels=512 seq-len=128 %s", refused[i].options);
        int status = host_mesh(&m, text);
        check(status == -1 && strstr(m.error.text, refused[i].part),
            "host: what the GPU program cannot run is refused", "%s: %s", refused[i].options,
            status ? m.error.text : "accepted");
        host_mesh_free(&m);
    }
    HostMesh m;
    int status = host_mesh(&m, "layers=1 heads=8 channels=512 seq-len=128 sp=64");
    check(status == 0, "host: 64 ranks are taken", "%s", status ? m.error.text : "sp=64");
    host_mesh_free(&m);
}

// The worst of a comparison of products: NaN, wherever it comes, hides nothing and is not hidden.
static void host_larger_share(void) {
    const double orders[][3] = {{NAN, 0.1, 0.2}, {0.1, NAN, 0.2}, {0.1, 0.2, NAN}};
    int lost = 0;
    for (auto& o : orders) lost += !isnan(larger_share(larger_share(o[0], o[1]), o[2]));
    check(lost == 0 && larger_share(0.1, 0.2) == 0.2 && larger_share(0.2, 0.1) == 0.2,
        "host: a NaN is the largest share", "%d of 3 orders lose it", lost);
}

static void test_gpu_host(void) {
    host_larger_share();
    host_items();
    host_views();
    host_exchange();
    host_plan();
    host_gpus();
    host_sequences();
    host_places();
    host_refusals();
}

// ===== the watchdog =============================================================================

// Ranks that wait for each other wait for ever if one of them is wrong. What runs is noted here; if it takes
// longer than it may, a thread says so, and how far ranks and streams are, and ends the program with status
// 3. quick: compute-sanitizer slows it down a hundred times.
enum { WATCH_SECONDS = 60, WATCH_SECONDS_QUICK = 900 };
static struct {
    pthread_mutex_t mutex;
    const gpt2_sp* g;   // NULL: not to be looked into
    char doing[256];
    int step, started;
    double deadline;   // ms; 0: nothing runs
} watch = {PTHREAD_MUTEX_INITIALIZER};

// How far rank w of the trainer that is watched has come: offers that wait for a peer, streams that are busy.
static void watch_rank(const gpt2_sp* g, int w) {
    static const char* const names[LANES] = {"compute", "beside", "copies", "gathers"};
    const Gpu* d = (const Gpu*)g->ranks[w].device;
    printf("     rank %d, GPU %d:", w, d->ordinal);
    for (int p = 0; p < g->mesh.world; p++)
        if (d->boxes[w * g->mesh.world + p].pieces) printf(" rank %d has not taken its offer;", p);
    fflush(stdout);
    for (int i = 0; i < LANES; i++) {
        cudaError_t status = cudaStreamQuery(lane_stream(d, i));
        if (status == cudaSuccess) printf(" %s idle", names[i]);
        else printf(" %s %s", names[i], status == cudaErrorNotReady ? "busy" : cudaGetErrorString(status));
    }
    printf("\n");
    fflush(stdout);
}
static void watch_report(void) {
    printf("FAIL watchdog: %s: not done after %d s; it was at step %d\n", watch.doing,
        quick ? WATCH_SECONDS_QUICK : WATCH_SECONDS, watch.step);
    fflush(stdout);
    alarm(10);   // should a question to the driver hang too
    const gpt2_sp* g = watch.g;
    if (!g) return;
    printf("     %d of %d hosts at a barrier%s\n", g->world.meetings[OVER_ALL * g->mesh.world].arrived,
        g->mesh.world, g->world.aborted ? ", aborted" : "");
    for (int w = 0; w < g->mesh.world; w++) watch_rank(g, w);
}
static void* limit_thread(void* unused) {
    for (;; usleep(200000)) {
        pthread_mutex_lock(&watch.mutex);
        if (watch.deadline > 0 && now_ms() > watch.deadline) watch_report(), _exit(3);
        pthread_mutex_unlock(&watch.mutex);
    }
    return unused;
}
static void watch_note(const gpt2_sp* g, const char* doing, int step) {   // doing == NULL: nothing runs
    pthread_t thread;
    pthread_mutex_lock(&watch.mutex);
    if (!watch.started && pthread_create(&thread, NULL, limit_thread, NULL) == 0)
        watch.started = 1, pthread_detach(thread);
    watch.g = g, watch.step = step;
    watch.deadline = doing ? now_ms() + 1e3 * (quick ? WATCH_SECONDS_QUICK : WATCH_SECONDS) : 0;
    if (doing) snprintf(watch.doing, sizeof watch.doing, "%s", doing);
    pthread_mutex_unlock(&watch.mutex);
}

// ===== kernels of several ranks =================================================================
// Group `ranks`, its first half: what only ranks that share a model launch. Held: sums over ranks,
// statistics and merged attention are those of fp64 or the very bits, on the rows and heads that were asked
// for and on no others; the optimizer makes of slices what it makes of the whole. Every rank adds to what
// others have written here: one that adds twice, or a row too many, makes ranks drift apart.

// Numbers that must be the very same; two NaN are.
static void judge_same(
    const char* name, const char* what, const double* found, const double* exact, int64_t n) {
    char holds[96];
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; i++) wrong += !(found[i] == exact[i] || (isnan(found[i]) && isnan(exact[i])));
    snprintf(holds, sizeof holds, "%s: not a bit is wrong", what);
    check(wrong == 0, statement(name, holds), "%lld of %lld numbers differ", (long long)wrong, (long long)n);
}

static const int64_t ROWS_CASES[][4] = {   // rows, columns, strides of the sum and of what is added
    {1, 64, 64, 64}, {77, 64, 192, 64}, {333, 320, 320, 960}, {5, 4, 12, 8}, {1031, 128, 512, 256}};
static void kernel_rows(const int64_t c[4]) {
    const int64_t rows = c[0], columns = c[1];
    const int64_t n = rows * c[2];
    char name[64];
    snprintf(name, sizeof name, "rows %lldx%lld", (long long)rows, (long long)columns);
    Tensor out = tensor_noise(n, 4, 600, 1, 0), inp = tensor_noise(rows * c[3], 4, 601, 1, 0),
           filled = tensor_poisoned(n, 4), empty = tensor_poisoned(n, 4);
    rows_add_kernel<<<(unsigned)ceil_div(rows * columns / 4, 256), 256>>>(
        (float*)out.p, c[2], (const float*)inp.p, c[3], rows, (int)columns);
    rows_fill_kernel<<<(unsigned)ceil_div(rows * columns, 256), 256>>>(
        (float*)filled.p, c[2], rows, columns, -INFINITY);
    rows_fill_kernel<<<(unsigned)ceil_div(rows * columns, 256), 256>>>(
        (float*)empty.p, c[2], rows, columns, 0);
    cuda_need(cudaGetLastError(), name);
    double *sum = host_zeros(n), *low = host_zeros(n);
    double* zero = host_zeros(n);
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = i / c[2], column = i % c[2];
        const int within = column < columns;
        sum[i] = out.host[i];
        if (within) sum[i] = (double)((float)out.host[i] + (float)inp.host[row * c[3] + column]);
        low[i] = within ? -INFINITY : NAN;
        zero[i] = within ? 0 : NAN;
    }
    judge_same(name, "added", tensor_read(out), sum, n);
    judge_same(name, "filled with -inf", tensor_read(filled), low, n);
    judge_same(name, "filled with 0", tensor_read(empty), zero, n);
    tensors_release(name);
}

// The ranks' numbers lie in one buffer; in place: the sum goes where one of them lies, as it does with
// --zero 0 and 1.
typedef struct {
    int world;
    int64_t at, n;
    int add, in_place;
} SumCase;
static const SumCase SUM_CASES[] = {{1, 0, 4, 0, 0}, {2, 128, 1024, 0, 1}, {3, 16, 4100, 1, 0},
    {5, 0, 20000, 0, 1}, {8, 64, 777 * 4, 1, 0}, {64, 4, 516, 0, 0}};
static void kernel_sum_ranks(const SumCase* c) {
    char name[64];
    int64_t stride = c->at + c->n + 4;
    snprintf(name, sizeof name, "sum of %d ranks%s%s", c->world, c->add ? ", added" : "",
        c->in_place ? ", in place" : "");
    Tensor parts = tensor_noise(c->world * stride, 4, 610, 1, 0.1), out = tensor_noise(c->n, 4, 611, 1, 0);
    int own = c->world / 2;
    Offers offers;
    memset(&offers, 0, sizeof offers);
    for (int i = 0; i < c->world; i++) offers.p[i] = (float*)parts.p + i * stride;
    float* to = c->in_place ? (float*)parts.p + own * stride + c->at : (float*)out.p;
    sum_ranks_kernel<<<3, 256>>>(to, offers, c->world, c->at, c->n / 4, c->add);
    cuda_need(cudaGetLastError(), name);
    double *all = host_zeros(parts.n), *exact = host_zeros(c->n);
    for (int64_t i = 0; i < parts.n; i++) all[i] = parts.host[i];
    for (int64_t i = 0; i < c->n; i++) {
        float sum = (float)parts.host[c->at + i];
        for (int p = 1; p < c->world; p++) sum += (float)parts.host[p * stride + c->at + i];
        if (c->add) sum += (float)out.host[i];
        exact[i] = c->in_place ? out.host[i] : sum;
        if (c->in_place) all[own * stride + c->at + i] = sum;
    }
    judge_same(name, "the ranks' numbers", tensor_read(parts), all, parts.n);
    judge_same(name, "the sum", tensor_read(out), exact, c->n);
    tensors_release(name);
}

typedef struct {
    int world, whole;   // whole: every rank has the square of all gradients
    double clip;
    int spoilt, kind;   // the rank whose loss (kind 1) or square (kind 2) is not finite; -1: none
} StatsCase;

// What the ranks have before, and the sums that all of them must have after.
static std::vector<double> stats_make(const StatsCase* c, double* loss, double* square) {
    std::vector<double> host((size_t)(c->world * STAT_COUNT));
    *loss = *square = 0;
    for (int w = 0; w < c->world; w++) {
        double* s = &host[(size_t)(w * STAT_COUNT)];
        s[STAT_LOSS] = 5 + noise(620, w);
        s[STAT_SQUARE] = c->whole ? 3.25 : 1 + w;
        s[STAT_SCALE] = NAN;
        if (w == c->spoilt && c->kind == 1) s[STAT_LOSS] = NAN;
        if (w == c->spoilt && c->kind != 1) s[STAT_SQUARE] = INFINITY;
        *loss += s[STAT_LOSS];
        *square = c->whole ? s[STAT_SQUARE] : *square + s[STAT_SQUARE];
    }
    return host;
}

static void kernel_stats(const StatsCase* c) {
    char name[96];
    const char* spoilt = c->kind == 1 ? ", a loss is NaN" : ", a square is inf";
    snprintf(name, sizeof name, "stats of %d ranks%s, clip %g%s", c->world, c->whole ? ", whole" : "",
        c->clip, c->spoilt < 0 ? "" : spoilt);
    double loss, square;
    const std::vector<double> host = stats_make(c, &loss, &square);
    std::vector<double> found(host.size());
    Tensor stats = tensor_poisoned(2 * c->world * STAT_COUNT, 4);
    Offers offers;
    memset(&offers, 0, sizeof offers);
    for (int w = 0; w < c->world; w++) offers.p[w] = (double*)stats.p + w * STAT_COUNT;
    double scale = c->clip > 0 ? fmin(1, c->clip / (sqrt(square) + 1e-6)) : 1;
    if (c->spoilt >= 0) scale = -1;
    cuda_need(cudaMemcpy(stats.p, host.data(), host.size() * 8, cudaMemcpyHostToDevice), name);
    for (int w = 0; w < c->world; w++)
        stats_finish_kernel<<<1, 1>>>((double*)stats.p + w * STAT_COUNT, offers, c->world, c->whole, c->clip);
    cuda_need(cudaDeviceSynchronize(), name);
    cuda_need(cudaMemcpy(found.data(), stats.p, found.size() * 8, cudaMemcpyDeviceToHost), name);
    int wrong = 0;
    for (int w = 0; w < c->world; w++) {
        const double *f = &found[(size_t)(w * STAT_COUNT)], *h = &host[(size_t)(w * STAT_COUNT)];
        wrong +=
            memcmp(&f[STAT_LOSS], &h[STAT_LOSS], 8) != 0 || memcmp(&f[STAT_SQUARE], &h[STAT_SQUARE], 8) != 0;
        wrong += !(fabs(f[STAT_SCALE] - scale) <= 1e-14);
        wrong += c->spoilt < 0 &&
            !(fabs(f[STAT_ALL_LOSS] - loss) <= 1e-14 * loss &&
                fabs(f[STAT_ALL_SQUARE] - square) <= 1e-14 * square);
    }
    check(wrong == 0, statement(name, "every rank has the sums and the scale"),
        "scale %.9g, loss %.9g, square %.9g: %d wrong", scale, loss, square, wrong);
    tensors_release(name);
}

// What the executor asks of attention_merge: heads H0.. of a rank's own sums, which are (B, Tl, C) and (B,
// NH, Tl), and a slot's, which hold those heads only. Rows that have seen no key are in one, in the other,
// and in both.
enum {
    MERGE_ADD,
    MERGE_LAST,    // the end
    MERGE_ALONE,   // the end, of what arrives alone
    MERGE_CHUNK,   // the end, of the own sums' second chunk
    MERGE_FORMS
};
enum { MERGE_B = 2, MERGE_T = 77 };
enum { MERGE_NH = 4, MERGE_H0 = 1, MERGE_HEADS = 2 };
typedef struct {
    char name[96];
    int HS, form;
    int own, slot, last;     // the rank's own sums are there, the slot's are; the output is made
    int64_t at, C, W;        // first row; numbers of a row of the rank, of the slot
    Tensor acc, m, l;        // the rank's own
    Tensor in, in_m, in_l;   // the slot's
    Tensor o, lse;
    double *exact, *plain, *bound;   // of o, or the bound of acc
    double *lse_exact, *lse_bound;
    double *acc_exact, *m_exact;
    double *l_exact, *l_bound;
} MergeCase;

// Some rows of either side have seen no key: their sum is 0 and their maximum -inf.
static void merge_side(const MergeCase* t, int side) {
    const Tensor sum = side ? t->in : t->acc, top = side ? t->in_m : t->m;
    const Tensor part = side ? t->in_l : t->l;
    const int64_t T = MERGE_T, N = side ? MERGE_HEADS : MERGE_NH;
    const int64_t HS = t->HS;
    for (int64_t i = 0; i < MERGE_B * N * T; i++) {
        const int64_t b = i / (N * T), h = i / T % N;
        const int64_t row = i % T;
        const int unseen = row % (side ? 7 : 5) == 3;
        part.host[i] = unseen ? 0 : (double)(float)exp(noise(636, i + side * 100000));
        if (!unseen) continue;
        top.host[i] = -INFINITY;
        for (int64_t c = 0; c < HS; c++) sum.host[((b * T + row) * N + h) * HS + c] = 0;
    }
    tensor_write(sum, sum.host);
    tensor_write(top, top.host);
    tensor_write(part, part.host);
}

static void merge_begin(MergeCase* t, int HS, int form) {
    static const char* const forms[] = {
        "added", "added, the output", "what arrives alone, the output", "a chunk's output"};
    const int64_t rows = MERGE_B * MERGE_T;
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "merge, head size %d, %s", HS, forms[form]);
    t->HS = HS, t->form = form;
    t->own = form != MERGE_ALONE, t->slot = form != MERGE_CHUNK;
    t->last = form != MERGE_ADD;
    t->at = form == MERGE_CHUNK ? 45 : 0;
    t->C = MERGE_NH * HS, t->W = MERGE_HEADS * HS;
    t->acc = tensor_noise(rows * t->C, 4, 630, 1, 0);
    t->m = tensor_noise(rows * MERGE_NH, 4, 631, 3, 0);
    t->l = tensor_noise(rows * MERGE_NH, 4, 632, 0, 0);
    t->in = tensor_noise(rows * t->W, 4, 633, 1, 0);
    t->in_m = tensor_noise(rows * MERGE_HEADS, 4, 634, 3, 0);
    t->in_l = tensor_noise(rows * MERGE_HEADS, 4, 635, 0, 0);
    t->o = tensor_poisoned(rows * t->C, 2);
    t->lse = tensor_poisoned(rows * MERGE_NH, 4);
    merge_side(t, 0);
    merge_side(t, 1);
}

static cudaError_t merge_call(const MergeCase* t) {
    const int64_t T = MERGE_T, NH = MERGE_NH;
    const int64_t H0 = MERGE_H0, HS = t->HS;
    const int64_t C = t->C, W = t->W;
    const int64_t first = t->at * C + H0 * HS, stat = H0 * T + t->at;   // of the rank's own tensors
    const AttnView own = {(float*)t->acc.p + first, C, HS, C * T},
                   out = {(bf16*)t->o.p + first, C, HS, C * T};
    const AttnView slot = {t->in.p, W, HS, W * T}, none = {NULL, 0, 0, 0};
    const AttnRows own_m = {(float*)t->m.p + stat, T, NH * T}, own_l = {(float*)t->l.p + stat, T, NH * T};
    const AttnRows slot_m = {(float*)t->in_m.p, T, MERGE_HEADS * T};
    const AttnRows slot_l = {(float*)t->in_l.p, T, MERGE_HEADS * T};
    const AttnRows absent = {NULL, 0, 0}, out_lse = {(float*)t->lse.p + stat, T, NH * T};
    const int both = t->own && t->slot;
    const AttnCarry sum = {own, own_m, own_l}, come = {slot, slot_m, slot_l},
                    nothing = {none, absent, absent};
    return attn::attention_merge(t->own ? sum : come, both ? come : nothing, t->last ? out : none,
        t->last ? out_lse : absent, MERGE_B, MERGE_HEADS, (int)(T - t->at), 0, t->HS);
}

// Row `row` of head h of the slot, in sequence b.
static void merge_exact(MergeCase* t, int64_t b, int64_t h, int64_t row) {
    const int64_t T = MERGE_T, HS = t->HS;
    const int64_t i = (b * MERGE_NH + MERGE_H0 + h) * T + row, j = (b * MERGE_HEADS + h) * T + row;
    const double ma = t->own ? t->m.host[i] : -INFINITY, mb = t->slot ? t->in_m.host[j] : -INFINITY;
    const double to = fmax(ma, mb);
    const double fa = ma == -INFINITY ? 0 : exp2(ma - to), fb = mb == -INFINITY ? 0 : exp2(mb - to);
    const double sum = fa * t->l.host[i] + fb * t->in_l.host[j];
    if (t->last) {
        t->lse_exact[i] = sum > 0 ? (to + log2(sum)) * log(2.0) : -INFINITY;
        t->lse_bound[i] = 16 * U * (fabs(to) + fabs(log2(sum)) + 2);
    } else {
        t->m_exact[i] = to;
        t->l_exact[i] = sum, t->l_bound[i] = 32 * U * sum;
    }
    for (int64_t c = 0; c < HS; c++) {
        const int64_t k = (b * T + row) * t->C + (MERGE_H0 + h) * HS + c;
        const double x = fa * t->acc.host[k], y = fb * t->in.host[(b * T + row) * t->W + h * HS + c];
        if (t->last) {
            t->exact[k] = sum > 0 ? (x + y) / sum : 0;
            t->plain[k] = bf16_of(t->exact[k]);
            t->bound[k] = sum > 0 ? 64 * U * (fabs(x) + fabs(y)) / sum : 0;
        } else {
            t->acc_exact[k] = x + y;
            t->bound[k] = 32 * U * (fabs(x) + fabs(y));
        }
    }
}

static void merge_expect(MergeCase* t) {
    const int64_t n = t->acc.n, stats = t->m.n;
    t->exact = host_zeros(n), t->plain = host_zeros(n);
    t->bound = host_zeros(n);
    t->lse_exact = host_zeros(stats), t->lse_bound = host_zeros(stats);
    t->acc_exact = host_zeros(n), t->m_exact = host_zeros(stats);
    t->l_exact = host_zeros(stats), t->l_bound = host_zeros(stats);
    for (int64_t i = 0; i < n; i++) {
        t->exact[i] = NAN;
        t->acc_exact[i] = t->acc.host[i];
    }
    for (int64_t i = 0; i < stats; i++) {
        t->lse_exact[i] = NAN;
        t->m_exact[i] = t->m.host[i], t->l_exact[i] = t->l.host[i];
    }
    for (int64_t b = 0; b < MERGE_B; b++)
        for (int64_t h = 0; h < MERGE_HEADS; h++)
            for (int64_t row = t->at; row < MERGE_T; row++) merge_exact(t, b, h, row);
}

// Where NaN or -inf must be it is, and counts for nothing in the comparison of numbers.
static int64_t merge_untouched_wrong(MergeCase* t, double* found, double* found_lse) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < t->acc.n; i++) {
        wrong += isnan(found[i]) != isnan(t->exact[i]);
        if (isnan(t->exact[i])) found[i] = t->exact[i] = t->plain[i] = 0;
    }
    for (int64_t i = 0; i < t->m.n; i++) {
        wrong += isnan(found_lse[i]) != isnan(t->lse_exact[i]) ||
            (t->lse_exact[i] == -INFINITY && found_lse[i] != -INFINITY);
        if (!isfinite(t->lse_exact[i])) found_lse[i] = t->lse_exact[i] = t->lse_bound[i] = 0;
    }
    return wrong;
}

static void kernel_merge(int HS, int form) {
    MergeCase t;
    merge_begin(&t, HS, form);
    cuda_need(merge_call(&t), t.name);
    const int64_t n = t.acc.n, stats = t.m.n;
    double *found = tensor_read(t.o), *found_lse = tensor_read(t.lse);
    merge_expect(&t);
    int64_t wrong = merge_untouched_wrong(&t, found, found_lse);
    check(wrong == 0, statement(t.name, "only the heads and rows asked for are written"),
        "%lld numbers beside the heads and rows asked for were written, or rows without keys are wrong",
        (long long)wrong);
    if (t.last) {
        judge(t.name, "output", found, t.exact, t.plain, t.bound, n);
        judge(t.name, "lse", found_lse, t.lse_exact, NULL, t.lse_bound, stats);
    }
    judge(t.name, "sum", tensor_read(t.acc), t.acc_exact, NULL, t.last ? NULL : t.bound, n);
    judge(t.name, "l", tensor_read(t.l), t.l_exact, NULL, t.l_bound, stats);
    judge_same(t.name, "m", tensor_read(t.m), t.m_exact, stats);
    judge_same(t.name, "what arrived", tensor_read(t.in), t.in.host, t.in.n);
    tensors_release(t.name);
}

static void kernels_of_ranks(void) {
    EACH_CASE(ROWS_CASES, i) kernel_rows(ROWS_CASES[i]);
    EACH_CASE(SUM_CASES, i) kernel_sum_ranks(&SUM_CASES[i]);
    static const int worlds[] = {1, 2, 7, 64};
    EACH_CASE(worlds, i) {
        const int world = worlds[i];
        const StatsCase cases[] = {{world, 0, 1, -1, 0}, {world, 1, 0, -1, 0}, {world, 0, 1e6, -1, 0},
            {world, 0, 1, world - 1, 1}, {world, 0, 0, world / 2, 2}, {world, 1, 1, world - 1, 2}};
        for (int k = 0; k < 6; k++) kernel_stats(&cases[k]);
    }
    static const int sizes[] = {64, 32, 80, 128};
    EACH_CASE(sizes, i) for (int form = 0; form < MERGE_FORMS; form++) kernel_merge(sizes[i], form);
    static const struct {
        const char *split, *name;
        int center;
        double clip;
    } steps[] = {{"sp=3 zero=3", "optimizer, 3 ranks, --zero 3", 1, 1}, {"sp=3", "optimizer, 3 ranks", 1, 1},
        {"dp=3 zero=1", "optimizer, 3 ranks, --zero 1", 1, 1},
        {"sp=3 zero=2", "optimizer, 3 ranks, --zero 2", 1, 1},
        {"sp=2", "optimizer, 2 ranks, own positions", 1, 1},
        {"dp=2 zero=3", "optimizer, 2 ranks, --zero 3, not centred, not clipped", 0, 0},
        {"sp=2 zero=1", "optimizer, 2 ranks, own positions, --zero 1", 1, 1},
        {"sp=2 zero=2", "optimizer, 2 ranks, own positions, --zero 2", 1, 1},
        {"sp=4 zero=3", "optimizer, 4 ranks, own positions, --zero 3", 1, 1},
        {"sp=3 zero=3 freeze=h.?.attn.*,wpe.weight lr-scale=h.2.*=0.25",
            "optimizer, 3 ranks, --zero 3, rates", 1, 1},
        {"sp=2 zero=1 freeze=h.1.*,wte.weight lr-scale=*.bias=4", "optimizer, 2 ranks, --zero 1, rates", 1,
            1},
        {"sp=2 zero=2 freeze=h.1.*,*.bias lr-scale=w?e.weight=4", "optimizer, 2 ranks, --zero 2, rates", 0,
            1}};
    EACH_CASE(steps, i) {
        watch_note(NULL, steps[i].name, 0);
        optimizer_step(steps[i].split, steps[i].center, steps[i].clip, steps[i].name);
        watch_note(NULL, NULL, 0);
    }
}

// ===== gradients ================================================================================
// Group `ranks`, its second half: the gradients of one batch. Held: for every schedule and number of ranks
// they are the CPU reference's, and no worse than one rank's. It is the closest look at a step that there
// is: a rank that misses a block, or attends to a chunk twice, changes a few of its tensors, which a loss
// after twenty steps may hide.

// Documents of 200 tokens on average: some within a rank's rows, some over several ranks'.
static const char* gradient_data(void) {
    static char path[512];
    return stream_once(path, "gradients.tok", 31, 9000, 200);
}
// A trainer and the gradients of its first batch.
typedef struct {
    gpt2_sp* g;
    Gradients found;
} BatchGradients;
static BatchGradients gradients_of(const Device* device, const char* text) {
    char error[GPT2_SP_TEXT];
    gpt2_sp_options o = run_options("threads=4 seed=5 deterministic=1");
    options_apply(&o, text);
    snprintf(o.data, sizeof o.data, "%s", gradient_data());
    gpt2_sp_device = device;
    watch_note(NULL, text, -1);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    BatchGradients batch = {g, {NULL, NAN, NAN}};
    gpt2_sp_device = &GPU_DEVICE;
    watch_note(g, text, 0);
    if (!g || gradients_collect(g, g->next_sample, g->step, &batch.found) != 0)
        check(0, "a test's gradients are collected", "%s: %s", text, g ? gpt2_sp_error(g) : error);
    watch_note(NULL, NULL, 0);
    return batch;
}
static void gradients_free(BatchGradients* batch) {
    free(batch->found.all);
    gpt2_sp_destroy(batch->g);
}

typedef struct {
    double error;   // sum over all tensors of |found - reference| / |reference|
    double share;   // the largest of them, in what --verify allows it
    double loss;    // |found - reference|
    int tensors;
} GradientError;
static GradientError gradients_error(const BatchGradients* batch, const BatchGradients* reference) {
    const gpt2_sp *g = batch->g, *r = reference->g;
    GradientError e = {0, 0, NAN, 0};
    if (!batch->found.all || !reference->found.all) return e.error = e.share = NAN, e;
    const Layout *layout = &g->layout, *other = &r->layout;
    for (int u = 0; u < layout->count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(&g->mesh.shape, id);
            if (p.unit != layout->units[u].kind) continue;
            const real* found = batch->found.all + layout->units[u].offset + layout->within[id];
            const real* b = reference->found.all + other->units[u].offset + other->within[id];
            const std::vector<double> expected(b, b + parameter_elements(&p));
            const int64_t roundings = roundings_of_gradient(g->mesh.shape.L, unit_layer(layout, u));
            double error = distance(found, expected.data(), parameter_elements(&p));
            e.error += error;
            e.share = worst(e.share, error / (VERIFY_SAFETY * rounding_noise((double)roundings)));
            e.tensors++;
        }
    e.loss = fabs(batch->found.loss - reference->found.loss);
    return e;
}

// Every schedule with every number of ranks that it takes. strict: tensors are large enough for the 1.05;
// with 64 channels chance alone moves the error of a tensor by a tenth, and timing may choose products that
// round otherwise.
static const char* const ALL_SPLITS[] = {"sp=2", "sp=3", "sp=4", "sp=5", "sp=8", "sp=2 schedule=ring",
    "sp=3 schedule=ring", "sp=4 schedule=ring", "sp=5 schedule=ring", "sp=8 schedule=ring",
    "sp=2 schedule=zigzag", "sp=3 schedule=zigzag", "sp=4 schedule=zigzag", "sp=5 schedule=zigzag",
    "sp=8 schedule=zigzag", "sp=2 schedule=allgather", "sp=3 schedule=allgather", "sp=4 schedule=allgather",
    "sp=5 schedule=allgather", "sp=8 schedule=allgather", "sp=2 schedule=dist-paper",
    "sp=4 schedule=dist-paper", "sp=8 schedule=dist-paper", "sp=2 schedule=ulysses", "sp=4 schedule=ulysses",
    "sp=8 schedule=ulysses", "sp=3 zero=2", "sp=5 schedule=zigzag zero=3", "sp=4 zero=1", NULL};
static const char* const TWO_THREE[] = {"sp=2", "sp=3", NULL};
static const char* const EVEN_SPLITS[] = {
    "sp=2", "sp=4", "sp=3 schedule=zigzag", "sp=4 schedule=dist-paper", NULL};
static const char* const OWN_SPLITS[] = {"sp=2", "sp=4 zero=1", "sp=5 zero=2", "sp=8 zero=3",
    "sp=2 schedule=ring", "sp=2 schedule=ulysses", NULL};   // of 520 tokens
static const char* const QUICK_SPLITS[] = {"sp=3", "sp=2 schedule=zigzag", "sp=2 schedule=ulysses", NULL};
typedef struct {
    const char *options, *gpu_options;
    const char* const* splits;
    int L, C, strict, quick;
} GradientCase;
static const GradientCase GRADIENT_CASES[] = {
    {"layers=1 heads=2 channels=128 seq-len=133 batch-size=2 doc-mask=1", "", QUICK_SPLITS, 1, 128, 0, 1},
    {"layers=2 heads=8 channels=512 seq-len=517 batch-size=2", "", ALL_SPLITS, 2, 512, 1, 0},
    {"layers=2 heads=8 channels=512 seq-len=517 batch-size=2 doc-mask=1", "", ALL_SPLITS, 2, 512, 1, 0},
    {"layers=2 heads=8 channels=512 seq-len=520 batch-size=2", "", OWN_SPLITS, 2, 512, 1, 0},
    {"layers=2 heads=16 channels=512 seq-len=517 batch-size=2 doc-mask=1", "", TWO_THREE, 2, 512, 1, 0},
    {"layers=2 heads=8 channels=640 seq-len=517 batch-size=2", "", TWO_THREE, 2, 640, 1, 0},
    {"layers=2 heads=4 channels=512 seq-len=517 batch-size=2 doc-mask=1", "", EVEN_SPLITS, 2, 512, 1,
        0},   // heads of 128
    {"layers=2 heads=8 channels=512 seq-len=333 batch-size=2", "attention=portable", TWO_THREE, 2, 512, 1, 0},
    {"layers=2 heads=8 channels=512 seq-len=517 batch-size=2", "deterministic=0 recompute=layer", TWO_THREE,
        2, 512, 0, 0},
    {"layers=2 heads=1 channels=64 seq-len=301 batch-size=2 doc-mask=1", "", EVEN_SPLITS, 2, 64, 0,
        1},   // halves of one head, of three
    {"layers=2 heads=3 channels=192 seq-len=301 batch-size=1", "", EVEN_SPLITS, 2, 192, 0, 0},
};
static void ranks_gradients(const GradientCase* c) {
    char text[256];
    BatchGradients reference = gradients_of(&CPU_DEVICE, c->options);
    if (!reference.g) return;
    snprintf(text, sizeof text, "%s %s", c->options, c->gpu_options);
    BatchGradients one = gradients_of(&GPU_DEVICE, text);
    GradientError e1 = gradients_error(&one, &reference);
    double loss_limit = training_tolerance(NULL, 0, c->L, c->C);
    check(e1.share <= 1 && e1.loss <= loss_limit, "gradients: one rank's are the CPU reference's",
        "%s: err(1) %.5f over %d tensors, the largest at %.3f of its limit; loss %.6f off by %.2e, at most "
        "%.2e",
        text, e1.error, e1.tensors, e1.share, reference.found.loss, e1.loss, loss_limit);
    gradients_free(&one);
    for (int i = 0; c->splits[i]; i++) {
        snprintf(text, sizeof text, "%s %s %s", c->options, c->gpu_options, c->splits[i]);
        BatchGradients batch = gradients_of(&GPU_DEVICE, text);
        GradientError e = gradients_error(&batch, &reference);
        check(e.share <= 1 && e.loss <= loss_limit && (!c->strict || e.error <= 1.05 * e1.error),
            "gradients: several ranks' are the CPU reference's, as one rank's are",
            "%s: err %.5f = %.4f err(1)%s; the largest at %.3f of its limit; loss off by %.2e, at most %.2e",
            text, e.error, e.error / e1.error, c->strict ? ", at most 1.05" : "", e.share, e.loss,
            loss_limit);
        gradients_free(&batch);
    }
    gradients_free(&reference);
}

static void test_ranks(void) {
    kernels_of_ranks();
    for (size_t i = 0; i < sizeof GRADIENT_CASES / sizeof GRADIENT_CASES[0]; i++)
        if (!quick || GRADIENT_CASES[i].quick) ranks_gradients(&GRADIENT_CASES[i]);
}

// ===== training =================================================================================
// Group `ranks-runs`: whole runs of several ranks. Held: training follows the CPU reference and one rank,
// however it is split; --zero, repetition and a second GPU change no bit; checkpoints, sampling, evaluation
// and memory are one rank's; what is not finite on one rank stops all; --check finds a wrong weight; and no
// run waits for ever.

// Waits until the ranks' copies to each other are done, which may go on when a step has ended.
static void ranks_settle(const gpt2_sp* g) {
    for (int w = 0; w < g->mesh.world; w++) {
        cuda_need(cudaSetDevice(((Gpu*)g->ranks[w].device)->ordinal), "a rank's GPU");
        cuda_need(cudaDeviceSynchronize(), "a rank's copies");
    }
}
// Weights that all ranks hold whole (--zero 0 to 2, but own positions) and are not the first rank's, bit for
// bit.
static int replicas_differ(const gpt2_sp* g) {
    ranks_settle(g);
    const Unit* positions = &g->layout.units[positions_unit(&g->layout)];
    size_t whole = (size_t)(positions->own ? positions->offset : g->layout.elements);
    std::vector<float> first(whole), other(whole);
    int differ = 0;
    for (int w = 0; g->mesh.zero < 3 && w < g->mesh.world; w++) {
        std::vector<float>& to = w ? other : first;
        const float* from = ((Gpu*)g->ranks[w].device)->state[STATE_WEIGHTS];
        cuda_need(cudaMemcpy(to.data(), from, to.size() * 4, cudaMemcpyDeviceToHost), "weights");
        differ += w > 0 && memcmp(first.data(), other.data(), first.size() * 4) != 0;
    }
    return differ;
}
// run_steps on the GPU, watched. With `data` other tokens than the runs'. Losses and norms of the first
// RUN_STEPS steps are kept.
static Run run_watched(const char* text, const char* data, int steps) {
    Run run;
    memset(&run, 0, sizeof run);
    gpt2_sp_options o = run_options(text);
    gpt2_sp_stats stats;
    o.steps = steps > RUN_STEPS ? steps : RUN_STEPS;
    if (data) snprintf(o.data, sizeof o.data, "%s", data);
    watch_note(NULL, text, -1);
    gpt2_sp* g = trainer_of(&o, run.error, sizeof run.error);
    int status = g ? 0 : -1, done = 0;
    for (; status == 0 && done < steps; done++) {
        watch_note(g, text, done);
        status = step_of(g, &stats);
        if (status != 0 || done >= RUN_STEPS) continue;
        run.loss[done] = stats.loss, run.norm[done] = stats.grad_norm;
        run.steps++;
    }
    watch_note(NULL, NULL, 0);
    if (status != 0 && g) snprintf(run.error, sizeof run.error, "%s", gpt2_sp_error(g));
    if (status == 0 && replicas_differ(g)) {
        snprintf(run.error, sizeof run.error, "the ranks' weights differ");
        status = -1;
    }
    if (status == 0) run_finish(&run, g);
    else {
        run.steps = 0;
        printf("     %s: %s\n", text, run.error);
    }
    gpt2_sp_destroy(g);
    return run;
}

static const char* const RANKS =
    "layers=3 heads=2 channels=128 threads=4 lr=1e-3 seq-len=150 deterministic=1";

static const char* const RANKS_SPLITS[] = {"batch-size=4 sp=2", "batch-size=2 dp=2 sp=2 zero=3",
    "batch-size=4 sp=3 zero=2 schedule=zigzag", "batch-size=1 grad-accum=2 dp=2 sp=2 zero=2 recompute=none",
    "batch-size=4 sp=3", "batch-size=4 sp=4 schedule=ring zero=1", "batch-size=1 dp=4 zero=1",
    "batch-size=2 dp=2", "batch-size=1 grad-accum=4 sp=3 zero=3 recompute=sqrt schedule=zigzag",
    "batch-size=4 sp=2 recompute=layer zero=3", "batch-size=4 sp=5 recompute=gelu",
    "batch-size=4 sp=2 schedule=ulysses zero=1", "batch-size=4 sp=4 schedule=dist-paper",
    "batch-size=4 sp=3 schedule=allgather", "batch-size=4 sp=2 recompute=sqrt",
    "batch-size=2 grad-accum=2 sp=2 zero=1 logits-chunk=50", "batch-size=4 sp=8 zero=3",
    "batch-size=4 sp=3 deterministic=0", "batch-size=2 dp=2 sp=2 zero=3 deterministic=0 recompute=none",
    "batch-size=4 sp=2 attention=portable"};

// 4 sequences a step, whatever they are split into, beside the CPU reference and beside one rank on the GPU.
static void ranks_splits(const char* common, int first, int stride) {
    const int steps = quick ? 2 : RUN_STEPS, count = (int)(sizeof RANKS_SPLITS / sizeof RANKS_SPLITS[0]);
    char text[256];
    int at = 0;
    snprintf(text, sizeof text, "%s %s batch-size=4", RANKS, common);
    Run reference = run_on(&CPU_DEVICE, text, steps), one = run_watched(text, NULL, steps);
    for (int i = first; i < count; i += stride) {
        snprintf(text, sizeof text, "%s %s %s", RANKS, common, RANKS_SPLITS[i]);
        Run run = run_watched(text, NULL, steps);
        double share = training_share(&run, &reference, 3, 128, &at);
        double beside = training_share(&run, &one, 3, 128, &at);
        check(share <= 1 && beside <= 1, "ranks: training follows the CPU reference and one rank",
            "%s %s: %d steps, loss %.4f -> %.4f; largest share of the tolerance %.3f, beside one rank %.3f",
            common, RANKS_SPLITS[i], run.steps, run.loss[0], run.loss[steps - 1], share, beside);
        free(run.weights);
    }
    free(reference.weights);
    free(one.weights);
}

// The same sums in the same order whatever --zero is, with one pass and no clipping: the norm's own sum is
// taken by slices from 1 on, or by own ones, so a clipped step differs in its last bits.
static void ranks_zero_equal(const char* shape) {
    const int steps = quick ? 2 : 8;
    Run first;
    char text[256];
    for (int zero = 0; zero < 4; zero++) {
        snprintf(text, sizeof text, "%s %s grad-clip=0 zero=%d", RANKS, shape, zero);
        Run run = run_watched(text, NULL, steps);
        if (zero == 0) {
            first = run;
            continue;
        }
        double norms = 0;
        for (int j = 0; j < steps; j++) norms = worst(norms, fabs(run.norm[j] / first.norm[j] - 1));
        int same = run.steps == steps && first.steps == steps &&
            memcmp(run.loss, first.loss, sizeof run.loss) == 0 &&
            memcmp(run.weights, first.weights, (size_t)first.parameters * sizeof(real)) == 0;
        check(same && norms <= 1e-6, "ranks: --zero gives the same bits",
            "%s: --zero %d as 0, %d steps, %lld weights; norms within %.1e", shape, zero, run.steps,
            (long long)run.parameters, norms);
        free(run.weights);
    }
    free(first.weights);
}

// The same run twice on one GPU, and on two.
static void ranks_repeat(const char* shape, int gpus) {
    const int steps = quick ? 2 : 8;
    char text[256];
    snprintf(text, sizeof text, "%s seq-len=700 %s", RANKS, shape);
    Run a = run_watched(text, NULL, steps), b = run_watched(text, NULL, steps);
    check(run_equal(&a, &b), "ranks: --deterministic 1 repeats a run bit for bit",
        "%s: %d steps, losses, norms and %lld weights bit for bit", shape, a.steps, (long long)a.parameters);
    free(b.weights);
    if (gpus >= 2) {
        gpus_shown = 2;
        b = run_watched(text, NULL, steps);
        gpus_shown = 1;
        cuda_need(cudaSetDevice(0), "the first GPU");
        check(run_equal(&a, &b), "ranks: two GPUs give the bits of one",
            "%s: %d steps, losses, norms and %lld weights", shape, b.steps, (long long)b.parameters);
        free(b.weights);
    }
    free(a.weights);
}

// Saved by two ranks, and gone on with by the same and elsewhere: from own positions, and to them.
static const char* const RESUMED_FROM_OWN[] = {"batch-size=2 sp=2 zero=3", "batch-size=2 sp=1",
    "batch-size=2 sp=4 schedule=zigzag", "batch-size=1 dp=2 zero=1", "batch-size=1 dp=2 sp=2 zero=2"};
static const char* const RESUMED_TO_OWN[] = {"batch-size=1 dp=2 zero=1", "batch-size=2 sp=2",
    "batch-size=2 sp=3 zero=1", "batch-size=2 sp=2 zero=2", "batch-size=2 sp=3 zero=3"};
static void ranks_resume(const char* const to[5]) {
    const char* from = to[0];
    const int steps = quick ? 2 : 12;
    int at = 0;
    char text[256], then[256];
    snprintf(text, sizeof text, "%s %s", RANKS, from);
    Run whole = run_watched(text, NULL, steps);
    for (int i = 0; i < 5; i += quick ? 2 : 1) {
        snprintf(then, sizeof then, "%s %s", RANKS, to[i]);
        watch_note(NULL, then, -1);
        Run run = run_resumed(text, then, steps / 2, steps);
        watch_note(NULL, NULL, 0);
        double share = training_share(&run, &whole, 3, 128, &at);
        check(share <= 1 && (i > 0 || run_equal(&run, &whole)), "ranks: a run goes on at another shape",
            "%s -> %s: saved at step %d of %d, largest share of the tolerance %.3f%s", from, to[i], steps / 2,
            steps, share, i == 0 ? ", and bit for bit" : "");
        free(run.weights);
    }
    free(whole.weights);
}

// One checkpoint, loaded by one rank and by two that share all or have whole weights but for the positions.
enum { SAMPLERS = 3, PROMPTS = 3 };
static const char* const SAMPLER_SPLITS[SAMPLERS] = {"sp=1", "sp=2 zero=3", "sp=2 zero=1"};
typedef struct {
    double loss;
    int32_t out[PROMPTS][16];
} Continuation;

static int samplers_make(gpt2_sp* all[SAMPLERS]) {
    const int steps = quick ? 2 : 10;
    char text[256], error[GPT2_SP_TEXT];
    snprintf(text, sizeof text, "%s seq-len=600 batch-size=2", RANKS);
    gpt2_sp_options o = run_options(text);
    gpt2_sp_stats stats;
    snprintf(o.val_data, sizeof o.val_data, "%s", o.data);
    snprintf(o.out, sizeof o.out, "%s", scratch("ranks_sampling"));
    watch_note(NULL, "sampling with several ranks", -1);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    int status = g ? 0 : -1;
    for (int i = 0; status == 0 && i < steps; i++) status = step_of(g, &stats);
    if (status == 0) status = gpt2_sp_save(g);
    gpt2_sp_destroy(g);
    snprintf(o.init_from, sizeof o.init_from, "%.900s/step_%08d", o.out, steps);
    o.out[0] = 0;
    for (int i = 0; status == 0 && i < SAMPLERS; i++) {
        options_apply(&o, SAMPLER_SPLITS[i]);
        all[i] = trainer_of(&o, error, sizeof error);
        if (all[i]) all[i]->eot = -1;
        else status = -1;
    }
    if (status != 0) check(0, "ranks: a model is trained and loaded", "%s", error);
    return status;
}

// Validates and generates, after a step if round is 1.
static int sampler_use(gpt2_sp* g, int round, Continuation* s) {
    static const int64_t lengths[PROMPTS] = {1, 257, 300};
    int32_t prompt[300];
    gpt2_sp_stats stats;
    int status = 0;
    for (int64_t i = 0; i < 300; i++) prompt[i] = (int32_t)dice(97, (uint64_t)i, 64);
    s->loss = NAN;
    if (round == 1 && step_of(g, &stats) != 0) status = -1;
    if (gpt2_sp_validate(g, 5, &s->loss) != 0) status = -1;
    for (int k = 0; k < PROMPTS; k++) {
        const double temperature = k == 1 ? 0.8 : 0;
        if (generated(g, prompt, lengths[k], s->out[k], 16, temperature, 0, 1, 7) != 16) status = -1;
    }
    return status;
}

// A step later the weights differ in their last bits: what is generated then may differ.
static void samplers_judge(gpt2_sp* const all[SAMPLERS], const Continuation s[SAMPLERS], int round) {
    const Evaluation* one = &all[0]->evaluation;
    for (int i = 1; i < SAMPLERS; i++) {
        const int counts = one->count == all[i]->evaluation.count;
        check(counts && fabs(s[i].loss - s[0].loss) <= logits_limit() * s[0].loss,
            "ranks: evaluation is one rank's", "%s%s: %.6f, one rank %.6f, at most %.2g of it apart; %s",
            SAMPLER_SPLITS[i], round ? ", a step later" : "", s[i].loss, s[0].loss, logits_limit(),
            counts ? "the same tokens" : "OTHER TOKENS");
        if (round == 0)
            check(memcmp(s[0].out, s[i].out, sizeof s[0].out) == 0, "ranks: sampling is one rank's",
                "%s: prompts of 1, 257 and 300: 16 tokens each", SAMPLER_SPLITS[i]);
    }
}

static void ranks_sampling(void) {
    gpt2_sp* all[SAMPLERS] = {NULL, NULL, NULL};
    Continuation s[SAMPLERS];
    memset(s, 0, sizeof s);
    int status = samplers_make(all);
    for (int round = 0; status == 0 && round < 2; round++) {
        for (int i = 0; i < SAMPLERS; i++) {
            watch_note(all[i], SAMPLER_SPLITS[i], round);
            status |= sampler_use(all[i], round, &s[i]);
            if (status != 0)
                check(0, "ranks: a model generates and is validated", "%s", gpt2_sp_error(all[i]));
        }
        samplers_judge(all, s, round);
    }
    watch_note(NULL, NULL, 0);
    for (gpt2_sp* one : all) gpt2_sp_destroy(one);
}

// A model that is sampled from, by P ranks that keep the cache together; NULL after a failed check.
static gpt2_sp* sharer_make(const char* from, int ranks) {
    gpt2_sp_options o;
    options_default(&o);
    snprintf(o.from, sizeof o.from, "%.900s", from);
    o.sp = ranks;
    gpt2_sp* g = trainer_new(&o);
    if (g && trainer_load(g) == 0) return g;
    check(0, "ranks: a model is loaded to be sampled from", "%d ranks: %s", ranks,
        g ? g->error.text : "out of memory");
    gpt2_sp_destroy(g);
    return NULL;
}

// Tokens read in pieces, by the kernels of many rows and of few, in contexts of several blocks and of less
// than one: the logits against one rank's; and of few rows the bits of rows that are read alone.
static void ranks_share(gpt2_sp* one, const char* from, int ranks) {
    enum { END = 2100 };
    static const int64_t reads[] = {
        1, 1, 1, 5, 600, 16, 1, 500, 3, 513, 16, 1, 300, 9, 1};   // their sum: 1968
    gpt2_sp* g = sharer_make(from, ranks);
    if (!g) return;
    const int64_t V = g->mesh.shape.V, Vp = g->mesh.shape.Vp;
    void *alone = gpu_decoder_open(one, END), *many = gpu_decoder_open(g, END);
    real *found = reals(FEW_ROWS * Vp), *reference = reals(FEW_ROWS * Vp);
    double *expected = doubles(V), most = 0;
    int64_t equal = 0, all = 0, wrong = !alone || !many;
    int32_t tokens[END];
    for (int i = 0; i < END; i++) tokens[i] = (int32_t)dice(101, (uint64_t)i, 64);
    watch_note(g, "sampling with a shared cache", ranks);
    for (size_t i = 0, p = 0; !wrong && i < sizeof reads / sizeof reads[0]; p += (size_t)reads[i++]) {
        int64_t n = reads[i], rows = n <= FEW_ROWS ? n : 1;
        wrong |= gpu_decoder_read(alone, tokens + p, n, (int64_t)p, rows, reference);
        wrong |= gpu_decoder_read(many, tokens + p, n, (int64_t)p, rows, found);
        for (int64_t k = 0; k < rows; k++) {
            for (int64_t v = 0; v < V; v++) expected[v] = (double)reference[k * Vp + v];
            most = worst(most, distance(found + k * Vp, expected, V));
        }
        for (int64_t k = 0; n == rows && k < rows; k++, all++) {
            wrong |= gpu_decoder_read(many, tokens + p + k, 1, (int64_t)p + k, 1, reference);
            equal += memcmp(reference, found + k * Vp, (size_t)V * sizeof *found) == 0;
        }
    }
    watch_note(NULL, NULL, 0);
    check(!wrong && most > 0 && most <= logits_limit(),
        "ranks: the logits of ranks that share the cache are one rank's",
        "%d ranks: %.3g apart, at most %.3g %s", ranks, most, logits_limit(), wrong ? gpt2_sp_error(g) : "");
    check(!wrong && equal == all && all == 55,
        "ranks: tokens read together by a shared cache have the logits of tokens read alone",
        "%d ranks: %lld of %lld rows alike to the bit", ranks, (long long)equal, (long long)all);
    if (alone) gpu_decoder_close(alone);
    if (many) gpu_decoder_close(many);
    free(found);
    free(reference);
    free(expected);
    gpt2_sp_destroy(g);
}

static void ranks_sharing(void) {
    char text[256], error[GPT2_SP_TEXT], from[512];
    snprintf(text, sizeof text, "%s seq-len=2100 batch-size=1", RANKS);
    snprintf(from, sizeof from, "%s", scratch("ranks_sharing"));
    gpt2_sp_options o = run_options(text);
    gpt2_sp_stats stats;
    snprintf(o.out, sizeof o.out, "%s", from);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    int status = g ? 0 : -1;
    for (int i = 0; status == 0 && i < 2; i++) status = step_of(g, &stats);
    if (status == 0) status = gpt2_sp_save(g);
    if (status != 0) check(0, "ranks: a model to share is trained", "%s", g ? gpt2_sp_error(g) : error);
    gpt2_sp_destroy(g);
    gpt2_sp* one = status == 0 ? sharer_make(from, 1) : NULL;
    for (int ranks = 2; one && ranks <= 4; ranks++) ranks_share(one, from, ranks);
    gpt2_sp_destroy(one);
}

// One run: what its plans and its steps took otherwise than planned.
static size_t ranks_memory_wrong(const char* text, size_t* bytes) {
    gpt2_sp_options o = run_options(text);
    gpt2_sp_stats stats;
    Error e = {0, {0}};
    size_t wrong = 0, total = 0;
    size_t before = 0, after = 0;
    watch_note(NULL, text, -1);
    gpt2_sp* g = trainer_of(&o, e.text, sizeof e.text);
    for (int w = 0; g && w < g->mesh.world; w++) {
        const Arena plan = gpu_plan(&g->mesh, &g->layout, w), *arena = &((Gpu*)g->ranks[w].device)->arena;
        for (int k = 0; k < MEMORY_GROUP_COUNT; k++) wrong += plan.group[k] != arena->group[k];
        wrong += plan.used != arena->used;
        *bytes += arena->used;
    }
    int status = g ? step_of(g, &stats) : -1;
    cudaMemGetInfo(&before, &total);
    for (int k = 0; k < 2 && status == 0; k++) status = step_of(g, &stats);
    cudaMemGetInfo(&after, &total);
    wrong += status != 0 || before != after;
    if (status != 0) printf("     %s: %s\n", text, g ? gpt2_sp_error(g) : e.text);
    watch_note(NULL, NULL, 0);
    gpt2_sp_destroy(g);
    return wrong;
}

static void ranks_memory(void) {
    static const char* const splits[] = {"sp=3", "sp=2 schedule=ring", "sp=4 schedule=zigzag",
        "sp=3 schedule=allgather", "sp=4 schedule=dist-paper", "sp=2 schedule=ulysses", "dp=2", "dp=2 sp=2",
        "sp=2 doc-mask=0", "sp=3 doc-mask=0", "sp=2 doc-mask=0 n-positions=700 pos-shift=0.5"};
    for (size_t i = 0; i < sizeof splits / sizeof splits[0]; i += quick ? 5 : 1) {
        size_t wrong = 0, bytes = 0;
        for (int zero = 0; zero < 4; zero++) {
            char text[256];
            snprintf(
                text, sizeof text, "%s heads=4 batch-size=2 doc-mask=1 %s zero=%d", RANKS, splits[i], zero);
            wrong += ranks_memory_wrong(text, &bytes);
        }
        check(wrong == 0, "ranks: memory is as planned",
            "%s, --zero 0 to 3: %zu bytes in all; %zu plans or steps took others", splits[i], bytes, wrong);
    }
}

// A gain of the final norm: of the last rank, or where ranks share all (--zero 3) the only one.
static float* last_gain(const gpt2_sp* g) {
    const Unit* last = &g->layout.units[kind_unit(&g->layout, UNIT_FINAL)];
    const int shared = g->mesh.zero >= 3;
    const Gpu* d = (const Gpu*)g->ranks[shared ? 0 : g->mesh.world - 1].device;
    return d->state[STATE_WEIGHTS] + (shared ? last->shard_offset : last->offset) + 3;
}

// One rank's gain of the final norm is NaN: its loss is, and no rank updates. Once it is mended all go on.
// With --zero 1 and 2 the gather after the refused step mends it, since another rank owns that gain; with 3
// there is only one, which all read.
static void ranks_not_finite(const char* split) {
    char text[256], error[GPT2_SP_TEXT];
    snprintf(text, sizeof text, "%s batch-size=2 %s", RANKS, split);
    gpt2_sp_options o = run_options(text);
    watch_note(NULL, text, -1);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    if (!g) {
        check(0, "ranks: a trainer is made", "%s", error);
        return;
    }
    gpt2_sp_stats stats;
    const int shared = g->mesh.zero >= 3;
    int updated[3] = {-1, -1, -1};
    float nan_value = NAN, kept = 0;
    float* gain = last_gain(g);
    int status = step_of(g, &stats);
    updated[0] = stats.updated;
    ranks_settle(g);
    cuda_need(cudaMemcpy(&kept, gain, 4, cudaMemcpyDeviceToHost), "a gain");
    if (shared) cuda_need(cudaMemcpy(gain, &nan_value, 4, cudaMemcpyHostToDevice), "a gain");
    const std::vector<real> before = weights_and_m(g);
    if (!shared) cuda_need(cudaMemcpy(gain, &nan_value, 4, cudaMemcpyHostToDevice), "a gain");
    if (status == 0) status = step_of(g, &stats);
    updated[1] = stats.updated;
    const int changed = !same_bits(before, weights_and_m(g));
    cuda_need(cudaMemcpy(gain, &kept, 4, cudaMemcpyHostToDevice), "a gain");
    if (status == 0) status = step_of(g, &stats);
    updated[2] = stats.updated;
    int differ = replicas_differ(g);
    check(status == 0 && updated[0] == 1 && updated[1] == 0 && updated[2] == 1 && isfinite(stats.loss) &&
            !changed && !differ,
        "ranks: what is not finite on one rank stops the update of all",
        "%s: updates %d, then %d with weights and moments %s, mended %d, loss %.4f; %d replicas differ",
        split, updated[0], updated[1], changed ? "CHANGED" : "unchanged", updated[2], stats.loss, differ);
    watch_note(NULL, NULL, 0);
    gpt2_sp_destroy(g);
}

// --check: passes, and the run goes on; a weight that is wrong on one rank is found.
static void ranks_check(const char* split, int planted) {
    char text[256], error[GPT2_SP_TEXT], last[512] = "";
    snprintf(text, sizeof text, "%s batch-size=2 %s", RANKS, split);
    gpt2_sp_options o = run_options(text);
    gpt2_sp_stats stats;
    watch_note(NULL, text, -1);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    if (!g) {
        check(0, "ranks: a trainer is made", "%s", error);
        return;
    }
    const bf16 wrong = __float2bfloat16(4);
    bf16* to = gpu_half(&g->ranks[g->mesh.world - 1], 2, P_fcw) + 3 * 128 + 5;
    if (planted) cuda_need(cudaMemcpy(to, &wrong, 2, cudaMemcpyHostToDevice), "a weight");
    int status = quietly(trainer_check_ranks, g, last, sizeof last);
    int said = strstr(gpt2_sp_error(g), "ranks differ from one by") != NULL;
    if (planted)
        check(status == -1 && said, "ranks: --check finds one rank's wrong weight", "%s: %s", split,
            status ? gpt2_sp_error(g) : last);
    else {
        int stepped = status == 0 && step_of(g, &stats) == 0 && stats.updated == 1;
        check(stepped, "ranks: --check passes and the run goes on", "%s: %s %s", split, last,
            stepped ? "" : gpt2_sp_error(g));
    }
    watch_note(NULL, NULL, 0);
    gpt2_sp_destroy(g);
}

// GPT-2's width and long sequences, where kernels fill the GPU that the ranks share and copies are long:
// what would wait for ever does so here. Not deterministic, so that nothing but the schedule orders the
// work.
static void ranks_stress(void) {
    static const char* const splits[] = {
        "", "sp=2", "sp=2 schedule=zigzag zero=3 recompute=none", "sp=4 zero=2 schedule=ring"};
    char path[512], text[256];
    int32_t* tokens = stream_make(41, 60000, 4000);
    const int steps = quick ? 2 : 30;
    int at = 0;
    snprintf(path, sizeof path, "%s", scratch("stress.tok"));
    stream_write(path, tokens, 60000);
    free(tokens);
    Run one;
    for (int i = 0; i < (quick ? 2 : 4); i++) {
        snprintf(text, sizeof text,
            "layers=2 heads=12 channels=768 seq-len=%d batch-size=1 threads=4 lr=3e-4 deterministic=0 %s",
            quick ? 1500 : 16384, splits[i]);
        double start = now_ms();
        Run run = run_watched(text, path, steps);
        double seconds = 1e-3 * (now_ms() - start), share = i ? training_share(&run, &one, 2, 768, &at) : 0;
        check(run.steps > 0 && share <= 1, "ranks: long sequences end, as one rank's do",
            "%s: %d steps in %.1f s, loss %.4f -> %.4f; largest share of the tolerance beside one rank %.3f",
            text, steps, seconds, run.loss[0], run.loss[run.steps > 0 ? run.steps - 1 : 0], share);
        if (i == 0) one = run;
        else free(run.weights);
    }
    free(one.weights);
}

static void test_ranks_runs(void) {
    static const char* const common[] = {
        "doc-mask=0", "doc-mask=1 grad-clip=0.5", "center=0", "n-positions=300 pos-shift=0.5"};
    static const char* const zeros[] = {"batch-size=2 sp=2", "batch-size=2 dp=2 sp=2",
        "batch-size=2 sp=3 doc-mask=1 schedule=zigzag", "batch-size=2 dp=3 center=0",
        "batch-size=2 sp=3 schedule=ring",
        "batch-size=2 sp=4"};   // the first and the fifth with own positions
    static const char* const repeated[] = {"batch-size=2 sp=2",
        "batch-size=2 sp=2 schedule=zigzag zero=3 doc-mask=1", "batch-size=1 dp=2 sp=2 zero=2 schedule=ring",
        "batch-size=2 sp=4 schedule=dist zero=1 recompute=none"};
    static const char* const spoilt[] = {
        "sp=2", "sp=3 zero=1", "dp=2 sp=2 zero=2", "sp=2 zero=3", "dp=2 schedule=zigzag"};
    static const struct {
        const char* split;
        int planted;
    } checked[] = {{"sp=2", 0}, {"sp=2", 1}, {"sp=3 zero=3 doc-mask=1", 0},
        {"dp=2 sp=2 zero=2 schedule=zigzag grad-accum=2", 0}, {"dp=2 zero=1", 1}, {"sp=4 schedule=ring", 1}};
    int gpus = 0;
    for (int k = 0; k < (quick ? 1 : 4); k++) ranks_splits(common[k], k, quick ? 7 : k + 1);
    for (int i = 0; i < (quick ? 1 : 6); i++) ranks_zero_equal(zeros[i]);
    cuda_need(cudaGetDeviceCount(&gpus), "counting GPUs");
    if (gpus < 2) skip("ranks: two GPUs give the bits of one", "only one GPU is visible");
    for (int i = 0; i < (quick ? 1 : 4); i++) ranks_repeat(repeated[i], gpus);
    ranks_resume(RESUMED_FROM_OWN);
    if (!quick) ranks_resume(RESUMED_TO_OWN);
    ranks_sampling();
    ranks_sharing();
    ranks_memory();
    for (int i = 0; i < 5; i += quick ? 3 : 1) ranks_not_finite(spoilt[i]);
    for (int i = 0; i < (quick ? 2 : 6); i++) ranks_check(checked[i].split, checked[i].planted);
    ranks_stress();
}
