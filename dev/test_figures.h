/* Single figures and single checks: a leaf of test_gpt2_sp.c.
 *
 * proofs       one spoiled table for each check of the proof of schedules; what lies in slots
 * figures      what plan, optimizer, options and initial weights must give, written out as numbers
 * generated    what is generated, against a whole forward pass for each token; recall
 * import       model folders that are no GPT-2 of ours, or of another shape
 * told         single commands and files, as dev/test_cli.sh has them, in a tenth of its time
 */

// ===== proofs ===================================================================================
// A table that was never wrong says nothing about its proof. Held: each check of the proof refuses a table
// that only it can refuse, with its own message; slots hold what lies in them. A check that does not look
// lets a new kind of schedule overwrite keys in use, and a model attends to noise.

// The first op of rank r whose operands are not all its own, from op `from` on; and the first message that
// brings `kind` to rank `to`.
static ScheduleOp* op_of(Schedule* s, int rank, int from) {
    for (int i = from; i < s->op_count; i++)
        if (s->ops[i].rank == rank && (s->ops[i].q_slot >= 0 || s->ops[i].kv_slot >= 0)) return &s->ops[i];
    return NULL;
}
static ScheduleMessage* message_to(Schedule* s, int kind, int to, int step) {
    for (int i = 0; i < s->message_count; i++)
        if (s->messages[i].item.kind == kind && s->messages[i].to == to && s->messages[i].step >= step)
            return &s->messages[i];
    return NULL;
}
static void message_drop(Schedule* s, ScheduleMessage* m) {
    *m = s->messages[--s->message_count];
    schedule_sort(s);
}
static Item* slot_of(Schedule* s, int rank, int slot) { return &s->slot_items[rank * MAX_SLOTS + slot]; }

// The spoils. Of dist with 8 ranks, forward: rank 0 helps with q7k0 at step 1 and q6k0 at step 2; rank 7
// needs the keys of 6, 5 and 4 at the steps 1, 2 and 3.
static void spoil_place(Schedule* s) { op_of(s, 7, 0)->kv_slot = -1; }
static void spoil_result_place(Schedule* s) { op_of(s, 0, 0)->dq_slot = -1; }
static void spoil_operand(Schedule* s) { message_drop(s, message_to(s, ITEM_KV, 7, 0)); }
static void spoil_other_operand(Schedule* s) {
    ScheduleOp* op = op_of(s, 7, 0);
    op_of(s, 7, (int)(op - s->ops) + 1)->kv_slot = op->kv_slot;
}
static void spoil_result_stats(Schedule* s) { slot_of(s, 0, op_of(s, 0, 0)->dq_slot)->kind = ITEM_KV; }
static void spoil_result_heads(Schedule* s) { slot_of(s, 0, op_of(s, 0, 0)->dq_slot)->h1 = 1; }
static void spoil_result_width(Schedule* s) { slot_of(s, 3, op_of(s, 3, 0)->dkv_slot)->kind = ITEM_DQ; }
static void spoil_result_slot(Schedule* s) { op_of(s, 0, 0)->dq_slot = s->slot_count[0]; }
// the first result leaves a step late, and the second goes where it lies
static void spoil_unsent(Schedule* s) {
    ScheduleOp* first = op_of(s, 0, 0);
    message_to(s, ITEM_OUT, 7, 0)->step++;
    op_of(s, 0, (int)(first - s->ops) + 1)->dq_slot = first->dq_slot;
    schedule_sort(s);
}
static void spoil_in_use(Schedule* s) {
    ScheduleOp* op = op_of(s, 0, 0);
    slot_of(s, 0, op->q_slot)->kind = ITEM_OUT;
    op->dq_slot = op->q_slot;
}
static void spoil_itself(Schedule* s) { s->messages[0].to = s->messages[0].from; }
static void spoil_source(Schedule* s) { s->messages[0].src = 0; }
static void spoil_own_sums(Schedule* s) { s->messages[0].item.kind = ITEM_OUT; }
static void spoil_sends_nothing(Schedule* s) {
    ScheduleMessage* m = message_to(s, ITEM_OUT, 7, 0);
    m->step = 1, schedule_sort(s);
}
static void spoil_nowhere(Schedule* s) { s->messages[0].dst = -1; }
// the keys for step 2 come, during step 1, to where those of step 1 lie
static void spoil_received_in_use(Schedule* s) {
    ScheduleOp* op = op_of(s, 7, 0);
    message_to(s, ITEM_KV, 7, 1)->dst = op->kv_slot;
}
// ring: rank 1 passes on what lies in a slot to which the next keys come
static void spoil_received_in_transit(Schedule* s) {
    ScheduleMessage* m = message_to(s, ITEM_KV, 1, 2);
    for (int i = 0; i < s->message_count; i++)
        if (s->messages[i].from == 1 && s->messages[i].step == 2) m->dst = s->messages[i].src;
    for (int i = 0; i < s->op_count; i++)
        if (s->ops[i].rank == 1 && s->ops[i].step == 2) s->ops[i--] = s->ops[--s->op_count];
    schedule_sort(s);
}
static void spoil_received_size(Schedule* s) {
    ScheduleMessage* m = message_to(s, ITEM_KV, 7, 0);
    slot_of(s, 7, m->dst)->kind = ITEM_Q;
}
static void spoil_received_over(Schedule* s) {
    ScheduleMessage* m = message_to(s, ITEM_Q, 0, 2);
    slot_of(s, 0, op_of(s, 0, 0)->dq_slot)->h1 = 2;
    m->dst = op_of(s, 0, 0)->dq_slot;
    message_to(s, ITEM_OUT, 7, 0)->step = 3, schedule_sort(s);
}
static void spoil_not_added(Schedule* s) { message_to(s, ITEM_OUT, 7, 0)->merge = 0; }
// ring, backward: sums of keys' gradients go round
static void spoil_added_nowhere(Schedule* s) {
    for (int i = 0; i < s->message_count; i++)
        if (s->messages[i].into >= 0) {
            s->messages[i].into = s->messages[i].into ? 0 : 1;
            return;
        }
}
static void spoil_added_to_own(Schedule* s) {
    for (int i = 0; i < s->message_count; i++)
        if (s->messages[i].into >= 0) {
            s->messages[i].into = -1;
            return;
        }
}
// zigzag: rank 0 holds the first chunk and the last
static void spoil_future(Schedule* s) { s->ops[0].q = 0, s->ops[0].k = s->chunks - 1; }
static void spoil_heads(Schedule* s) { s->ops[0].h1 = s->head_parts + 1; }
static void spoil_heads_below(Schedule* s) { s->ops[0].h0 = -1; }
static void spoil_twice(Schedule* s) {
    schedule_op(s, 0, 0, 0, 0, 0, s->head_parts);
    schedule_sort(s);
}
static void spoil_stays_away(Schedule* s) { message_drop(s, message_to(s, ITEM_OUT, 2, 0)); }
static void spoil_left_out(Schedule* s) {
    s->ops[0] = s->ops[--s->op_count];
    schedule_sort(s);
}
static void spoil_order(Schedule* s) {
    ScheduleOp op = s->ops[0];
    s->ops[0] = s->ops[s->op_count - 1], s->ops[s->op_count - 1] = op;
}
static void spoil_message_order(Schedule* s) {
    schedule_send(s, 0, 1, 0, ITEM_KV, 1, 0, 1);
    s->messages[s->message_count - 1].dst = s->slot_count[0];
}
// ring, 2 ranks: rank 1's own pair waits for the last step; or keys come once more
static void spoil_slower(Schedule* s) {
    for (int i = 0; i < s->op_count; i++)
        if (s->ops[i].rank == 1 && s->ops[i].kv_slot < 0) s->ops[i].step = 2;
    schedule_sort(s);
}
static void spoil_more(Schedule* s) {
    ScheduleMessage again = s->messages[0];
    schedule_send(s, 2, again.from, again.to, ITEM_KV, again.item.of, 0, 1);
    s->messages[s->message_count - 1].dst = again.dst;
    schedule_sort(s);
}

static const struct {
    int kind, P, backward;
    void (*spoil)(Schedule* s);
    const char* message;
} SPOILS[] = {
    {GPT2_SP_DIST, 8, 0, spoil_place, "step 1 rank 7: q7k6 has an operand or result in the wrong place"},
    {GPT2_SP_DIST, 8, 0, spoil_result_place, "rank 0: q7k0 has an operand or result in the wrong place"},
    {GPT2_SP_DIST, 8, 0, spoil_operand, "step 1 rank 7: q7k6 has no operand of rank 6"},
    {GPT2_SP_DIST, 8, 0, spoil_other_operand, "step 2 rank 7: q7k5 has no operand of rank 5"},
    {GPT2_SP_DIST, 8, 0, spoil_result_stats, "the result of q7k0 is larger than its slot"},
    {GPT2_SP_DIST, 8, 0, spoil_result_heads, "the result of q7k0 is larger than its slot"},
    {GPT2_SP_RING, 4, 1, spoil_result_width, "is larger than its slot"},
    {GPT2_SP_DIST, 8, 0, spoil_result_slot, "the result of q7k0 is larger than its slot"},
    {GPT2_SP_DIST, 8, 0, spoil_unsent, "the result of q6k0 overwrites one not yet sent"},
    {GPT2_SP_DIST, 8, 0, spoil_in_use, "the result of q7k0 overwrites what is in use"},
    {GPT2_SP_DIST, 8, 0, spoil_itself, "sends to itself"},
    {GPT2_SP_DIST, 8, 0, spoil_source, "sends from the wrong place"},
    {GPT2_SP_RING, 4, 0, spoil_own_sums, "step 0: rank 0 sends its own sums away"},
    {GPT2_SP_DIST, 8, 0, spoil_sends_nothing, "step 1: rank 0 does not have what it sends to rank 7"},
    {GPT2_SP_DIST, 8, 0, spoil_nowhere, "receives into memory in use"},
    {GPT2_SP_DIST, 8, 0, spoil_received_in_use, "step 1: rank 7 receives into memory in use"},
    {GPT2_SP_RING, 8, 0, spoil_received_in_transit, "step 2: rank 1 receives into memory in use"},
    {GPT2_SP_DIST, 8, 0, spoil_received_size, "step 0: rank 7 receives what is larger than its slot"},
    {GPT2_SP_DIST, 8, 0, spoil_received_over, "step 2: rank 0 receives over a result not yet sent"},
    {GPT2_SP_DIST, 8, 0, spoil_not_added, "rank 7 does not add a result that came home"},
    {GPT2_SP_RING, 4, 1, spoil_added_nowhere, "adds to what is not there"},
    {GPT2_SP_RING, 4, 1, spoil_added_to_own, "result to its own"},
    {GPT2_SP_ZIGZAG, 4, 0, spoil_future, "step 0 rank 0: q0k7 is no causal pair"},
    {GPT2_SP_RING, 1, 0, spoil_heads, "q0k0 is no causal pair"},
    {GPT2_SP_RING, 1, 0, spoil_heads_below, "q0k0 is no causal pair"},
    {GPT2_SP_RING, 4, 0, spoil_twice, "q0k0 is computed twice"},
    {GPT2_SP_DIST, 3, 0, spoil_stays_away, "the result of q2k0 reaches its owner 0 times"},
    {GPT2_SP_RING, 4, 0, spoil_left_out, "q0k0 is never computed"},
    {GPT2_SP_RING, 2, 0, spoil_order, "the table is not in the order of its steps"},
    {GPT2_SP_RING, 4, 0, spoil_message_order, "the table is not in the order of its steps"},
    {GPT2_SP_RING, 2, 0, spoil_slower, "makespan 2, closed form 1.5"},
    {GPT2_SP_RING, 2, 0, spoil_more, "3 C per rank, closed form 2"}};

static void proofs_spoiled(void) {
    int told = 0, whole = 0, count = (int)(sizeof SPOILS / sizeof SPOILS[0]);
    for (int i = 0; i < count; i++) {
        Schedule s;
        Error e = {0, {0}};
        if (schedule_build(&s, SPOILS[i].kind, SPOILS[i].P, SPOILS[i].backward, SPOILS[i].P, &e) != 0)
            continue;
        whole += schedule_prove(&s, &e) == 0;
        SPOILS[i].spoil(&s);
        if (schedule_prove(&s, &e) == -1 && strstr(e.text, SPOILS[i].message)) told++;
        else printf("     spoil %d: %s (expected: %s)\n", i, e.text, SPOILS[i].message);
        schedule_free(&s);
    }
    check(told == count && whole == count, "proofs: every check refuses a table that is wrong in that alone",
        "%d of %d spoiled tables, each with its message; %d whole ones proved", told, count, whole);
}

// Whether an item fits in a slot, without slot_fits: tensors of HS numbers a row and head, and of one.
static int lies_in(const Schedule* s, int rank, int slot, int kind, int h0, int h1) {
    static const int wide[ITEM_KINDS] = {1, 2, 1, 2, 1, 2}, narrow[ITEM_KINDS] = {0, 0, 2, 2, 0, 0};
    if (slot < 0) return 1;
    if (slot >= s->slot_count[rank]) return 0;
    const Item* item = &s->slot_items[rank * MAX_SLOTS + slot];
    return wide[item->kind] >= wide[kind] && narrow[item->kind] >= narrow[kind] &&
        item->h1 - item->h0 >= h1 - h0;
}

static void proofs_slots(void) {
    int lying = 0, wrong = 0;
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++)
        for (int P = 1; P <= (quick ? 12 : 32); P++)
            for (int d = 0; d < 2 && schedule_exists(kind, P); d++) {
                Schedule s;
                Error e = {0, {0}};
                wrong += schedule_build(&s, kind, P, d, P, &e) != 0;
                for (int i = 0; i < s.op_count; i++) {
                    const ScheduleOp* op = &s.ops[i];
                    const int h0 = op->h0, h1 = op->h1, r = op->rank;
                    wrong += !lies_in(&s, r, op->q_slot, d ? ITEM_QDO : ITEM_Q, h0, h1) +
                        !lies_in(&s, r, op->kv_slot, ITEM_KV, h0, h1) +
                        !lies_in(&s, r, op->dq_slot, d ? ITEM_DQ : ITEM_OUT, h0, h1) +
                        !lies_in(&s, r, op->dkv_slot, ITEM_DKV, h0, h1);
                    lying += 4;
                }
                for (int i = 0; i < s.message_count; i++) {
                    const ScheduleMessage* m = &s.messages[i];
                    wrong += m->dst < 0 ||
                        !lies_in(&s, m->to, m->dst, m->item.kind, m->item.h0, m->item.h1) ||
                        !lies_in(&s, m->from, m->src, m->item.kind, m->item.h0, m->item.h1) ||
                        !lies_in(&s, m->to, m->into, m->item.kind, m->item.h0, m->item.h1);
                    lying++;
                }
                schedule_free(&s);
            }
    check(
        wrong == 0, "proofs: slots have room for what lies in them", "%d items, %d too large", lying, wrong);
}

// Steps of a table, those that only carry results home included.
static int steps_known(int kind, int P, int backward) {
    if (P == 1) return 1;
    switch (kind) {
    case GPT2_SP_DIST: return P / 2 + 2;
    case GPT2_SP_DIST_PAPER: return P / 2 + 1 + backward;
    case GPT2_SP_ALLGATHER: return 2 + backward;
    case GPT2_SP_ULYSSES: return 3;
    default: return P + backward;
    }
}

// One number of an op, of a message or of the kind of table is another.
static void proofs_hash(void) {
    Schedule s;
    Error e = {0, {0}};
    int alike = schedule_build(&s, GPT2_SP_DIST, 6, 1, 6, &e) != 0;
    const uint64_t hash = schedule_hash(&s);
    int* const numbers[6] = {&s.ops[3].kv_slot, &s.ops[s.op_count - 1].step, &s.messages[2].into,
        &s.messages[s.message_count - 1].step, &s.backward, &s.kind};
    for (int i = 0; i < 6; i++) {
        *numbers[i] ^= 1;
        alike += schedule_hash(&s) == hash;
        *numbers[i] ^= 1;
    }
    check(alike == 0 && schedule_hash(&s) == hash, "proofs: tables that differ in a number have other hashes",
        "%d of 6 have the same", alike);
    schedule_free(&s);
}

static void proofs_shape(void) {
    int tables = 0, steps = 0, ranks = 0, together = 0, uneven = 0;
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++)
        for (int P = 1; P <= 24; P++)
            for (int d = 0; d < 2 && schedule_exists(kind, P); d++) {
                Schedule s;
                Error e = {0, {0}};
                if (schedule_build(&s, kind, P, d, P, &e) != 0) continue;
                tables++, steps += s.steps == steps_known(kind, P, d);
                for (int i = 0; kind == GPT2_SP_DIST && P % 2 == 0 && i < s.op_count; i++)
                    for (int j = 0; s.ops[i].step == P / 2 && j < s.op_count; j++) {
                        const ScheduleOp *a = &s.ops[i], *b = &s.ops[j];
                        int last = b->step == P / 2 + 1 && a->rank == b->rank && a->q == a->rank;
                        ranks += last, together += last && a->h0 < b->h1 && b->h0 < a->h1;
                    }
                schedule_free(&s);
            }
    check(
        steps == tables, "proofs: no table has a step more than it needs", "%d of %d tables", steps, tables);
    check(ranks > 0 && together == 0, "proofs: dist: a rank's two last ops write different sums",
        "%d ranks with both, %d write the same heads", ranks, together);
    for (int P = 1; P <= 16; P++)
        for (int r = 0; r < P; r++) {
            Segments one = rank_segments(GPT2_SP_DIST, P, 1000, r),
                     two = rank_segments(GPT2_SP_ZIGZAG, P, 1000, r);
            uneven += one.total < 1000 / P || one.total > (999 + P) / P || two.rows[0] < 500 / P ||
                two.rows[1] < 500 / P || two.rows[0] > (999 + 2 * P) / (2 * P) ||
                two.rows[1] > (999 + 2 * P) / (2 * P);
        }
    check(uneven == 0, "proofs: chunks differ by at most a token", "1000 tokens, P 1..16: %d ranks uneven",
        uneven);
}

static void test_proofs(void) {
    proofs_spoiled();
    proofs_slots();
    proofs_hash();
    proofs_shape();
}

// ===== figures ==================================================================================
// Numbers that users and papers have, written out. Held: parameters are counted as GPT-2's are, FLOPs and
// bytes of a plan are those of its shapes, a norm is clipped and never raised, weights begin as GPT-2's do,
// and an option's range holds for whoever sets it. A plan that is wrong by a factor rents the wrong machine;
// weights that begin too large train to something worse, without a message.

static void figures_parameters(void) {
    static const struct {
        const char* model;
        double parameters;
    } sizes[] = {{"d12", 124439808}, {"d24", 354823168}, {"d36", 774030080}, {"d48", 1557611200}};
    int right = 0;
    for (int i = 0; i < 4; i++) {
        double found = 0;
        int status = command(
            "plan --model %s --gflops 1 --link-gbs 1 --copy-gbs 1 --memory-gb 1 --json", sizes[i].model);
        json_get_double(command_out, strlen(command_out), "parameters", &found);
        right += status == 0 && found == sizes[i].parameters;
        if (found != sizes[i].parameters) printf("     %s: %.0f\n", sizes[i].model, found);
    }
    double odd = 0;   // 257 x 33, 99 x 33, 12 x 33^2 + 13 x 33, 2 x 33: no padding of slices counts
    command("plan --layers 1 --heads 1 --channels 33 --vocab 257 --seq-len 99 --sp 3 --gflops 1 --link-gbs 1 "
            "--copy-gbs 1 --memory-gb 1 --json");
    json_get_double(command_out, strlen(command_out), "parameters", &odd);
    check(odd == 25311, "figures: plan counts no padding of slices", "%.0f parameters, expected 25311", odd);
    check(right == 4, "figures: plan counts GPT-2's parameters", "d12, d24, d36, d48: %d right", right);
}

// Many ranks are drawn as runs of ranks whose numbers go on evenly; the share of the ideal is at most 1.
static void figures_drawn(void) {
    command("schedule --sp 12 --schedule ring");
    check(command_said("makespan 11.5 units, ideal 6 (52.2 %)") && command_said("0-11: q0k0 .. q11k11") &&
            command_said("0-2: idle  3-11: q3k0 .. q11k8"),
        "figures: twelve ranks are drawn as runs of ranks", "%.80s", command_out);
    check(cells_even("q1k0 1/2", "q2k3 1/2", "q3k6 1/2") && !cells_even("q1k0", "q2k1", "q4k2") &&
            !cells_even("q1k0", "q2k1*", "q3k2") && !cells_even("idle", "q2k1", "q3k2"),
        "figures: only numbers that go on evenly are left out", "%s", "4 rows of cells");
    command("schedule --sp 3 --schedule zigzag");
    check(command_said("q0k0") && command_said("q5k0") && command_said("q5k5"),
        "figures: every pair of two chunks is drawn", "%.80s", command_out);
}

// What `plan` says of a step, of 2 layers, 4 heads, 64 channels, 3 passes of 2 sequences of 256 tokens.
typedef struct {
    double matmul, attention, attention_bytes, gradient_bytes, seconds;
} PlanFigures;
static PlanFigures plan_figures(const char* more) {
    int status =
        command("plan --layers 2 --heads 4 --channels 64 --vocab 257 --seq-len 256 --batch-size 2 "
                "--grad-accum 3 --gflops 3 --attention-gflops 2 --link-gbs 0.5 --copy-gbs 4 --json %s",
            more);
    PlanFigures f = {command_number("step", "matmul_flops_per_rank"),
        command_number("step", "attention_flops_per_rank"),
        command_number("step", "attention_bytes_per_rank"), command_number("step", "gradient_bytes_per_rank"),
        command_number("step", "projected_seconds")};
    if (status != 0) printf("     %s\n", command_out);
    return f;
}
static int near_six(double found, double expected) { return fabs(found - expected) <= 1e-5 * fabs(expected); }

// A rank has T / P rows of each sequence. A product of n numbers by m weights is 2 n m FLOPs; the backward
// pass has two for each of the forward's, and 8 of a layer's 12 C^2 are computed again. A pair of chunks is 4
// rows^2 C FLOPs forward, and 2.5 times that backward.
static void figures_plan(void) {
    static const struct {
        const char* more;
        double sp, again, attention_runs, passes_scattered, gathers, own;
    } cases[] = {{"", 1, 8.0 / 12, 1, 0, 0, 0}, {"--recompute none", 1, 0, 1, 0, 0, 0},
        {"--recompute gelu", 1, 0, 1, 0, 0, 0}, {"--recompute layer", 1, 8.0 / 12, 2, 0, 0, 0},
        {"--recompute sqrt", 1, 8.0 / 12, 2, 0, 0, 0},
        {"--sp 4 --zero 1 --doc-mask 1", 4, 8.0 / 12, 1, 1, 1, 0},
        {"--sp 4 --zero 2 --doc-mask 1", 4, 8.0 / 12, 1, 3, 1, 0},
        {"--sp 4 --zero 3 --doc-mask 1", 4, 8.0 / 12, 1, 3, 6, 0},
        {"--sp 4 --zero 3", 4, 8.0 / 12, 1, 3, 6, 1}};
    const double C = 64, T = 256, L = 2, sequences = 6, Vp = 384, word = sizeof(real);
    int right = 0, count = (int)(sizeof cases / sizeof cases[0]);
    for (int i = 0; i < count; i++) {
        const double sp = cases[i].sp, rows = T / sp, passes = sequences * L;
        const PlanFigures f = plan_figures(cases[i].more);
        double matmul =
            passes * 2 * rows * 12 * C * C * (3 + cases[i].again) + sequences * 3 * 2 * rows * C * Vp;
        double attention = passes * (cases[i].attention_runs + 2.5) * sp / 2 * 4 * rows * rows * C;
        double state = L * (12 * C * C + 13 * C) + 2 * C + Vp * C + (cases[i].own ? 0 : T * C);
        double gradients = state * word * (sp - 1) / sp * (cases[i].passes_scattered + cases[i].gathers);
        double alone = matmul / 3e9 + attention / 2e9;
        int good = near_six(f.matmul, matmul) && near_six(f.attention, attention) &&
            near_six(f.gradient_bytes, gradients) &&
            (sp > 1 || (near_six(f.seconds, alone) && f.attention_bytes == 0));
        right += good;
        if (!good)
            printf("     %s: matmul %g (%g), attention %g (%g), gradients %g (%g), %g s (%g)\n",
                cases[i].more, f.matmul, matmul, f.attention, attention, f.gradient_bytes, gradients,
                f.seconds, alone);
    }
    check(right == count, "figures: plan's FLOPs and bytes are those of the shapes", "%d of %d plans", right,
        count);
    // ring: 2 (P - 1) C forward, 2 (P - 1) (2P - 1) / P backward
    const PlanFigures ring = plan_figures("--sp 4 --schedule ring"),
                      twice = plan_figures("--sp 4 --schedule ring --recompute layer");
    double chunk = T / 4 * C * word, forward = 2 * 3 * chunk, backward = 2 * 3 * 7 / 4.0 * chunk;
    check(near_six(ring.attention_bytes, sequences * L * (forward + backward)) &&
            near_six(twice.attention_bytes, sequences * L * (2 * forward + backward)),
        "figures: plan's bytes of attention are those of its table", "ring, 4 ranks: %.0f, run again %.0f",
        ring.attention_bytes, twice.attention_bytes);
}

// ulysses, 4 ranks: three quarters of q, k, v in and of o out, with the two numbers of a row and head that a
// partial output has; backward q, dO, k, v in, with LSE and delta, and dq, dk, dv out.
static void figures_plan_bytes(void) {
    const PlanFigures f = plan_figures("--sp 4 --schedule ulysses");
    const double rows = 64, C = 64, NH = 4, word = sizeof(real);
    double bytes = 6 * 2 * 0.75 * rows * word * (4 * C + 2 * NH + 7 * C + 2 * NH);
    check(near_six(f.attention_bytes, bytes), "figures: plan's bytes have the numbers of rows and heads",
        "ulysses, 4 ranks: %.0f, expected %.0f", f.attention_bytes, bytes);
}

// The same ranks split otherwise: the sequences of a step are shared out evenly, at least one each, in passes
// of the asked batch where that divides them. What is advised fits, and is faster by a hundredth.
static void figures_splits(void) {
    const char* shape = "plan --layers 2 --heads 4 --channels 64 --vocab 257 --seq-len 64 --dp 2 --sp 4 "
                        "--batch-size 3 --grad-accum 2 --gflops 100";
    command("%s --link-gbs 0.01 --copy-gbs 10 --memory-gb 1 --json", shape);
    int splits = command_said("{\"dp\": 8, \"sp\": 1, \"batch_size\": 1, \"grad_accum\": 2,") +
        command_said("{\"dp\": 4, \"sp\": 2, \"batch_size\": 3, \"grad_accum\": 1,") +
        command_said("{\"dp\": 2, \"sp\": 4, \"batch_size\": 3, \"grad_accum\": 2,") +
        command_said("{\"dp\": 1, \"sp\": 8, \"batch_size\": 3, \"grad_accum\": 4,");
    int ranks = command_said("{\"sp\": 64, \"seconds\"") + !command_said("{\"sp\": 128, \"seconds\"");
    command("%s --link-gbs 0.01 --copy-gbs 10 --memory-gb 1", shape);
    int more =
        command_said("--dp 8 --sp 1 would give") && command_said("with 16 sequences a step instead of 12");
    command("%s --link-gbs 1e7 --copy-gbs 1e7 --memory-gb 1", shape);
    int hardly = command_said("no other split is faster than --dp 2 --sp 4 by a hundredth");
    check(splits == 4 && ranks == 2 && more && hardly, "figures: plan splits the same ranks evenly",
        "%d of 4 splits, ranks up to 64: %d; tells more sequences: %d, what is hardly faster: %d", splits,
        ranks == 2, more, hardly);
    char fits[96] = "?";
    command("plan --layers 4 --heads 4 --channels 256 --vocab 257 --seq-len 4096 --sp 8 --gflops 1000 "
            "--link-gbs 1 --copy-gbs 10 --memory-gb 0.15 --json");
    double dp = command_number("best_split", "dp"), sp = command_number("best_split", "sp");
    snprintf(fits, sizeof fits,
        "{\"dp\": %.0f, \"sp\": %.0f, \"batch_size\": 1, \"grad_accum\": 1, \"fits\": true", dp, sp);
    check(command_said(fits) && command_said("\"fits\": false"), "figures: what plan advises fits",
        "dp %g x sp %g", dp, sp);
}

// A split that would be faster but does not fit is not advised, also where it comes after one that fits.
static void figures_advised(void) {
    const char* shape = "plan --layers 2 --heads 4 --channels 256 --vocab 257 --seq-len 256 --sp 2 "
                        "--batch-size 3 --zero 3 --gflops 1000 --link-gbs 0.01 --copy-gbs 10 --json";
    double advised[2] = {0, 0}, total = 0, small = 0;
    for (int less = 0; less < 2; less++) {
        command("%s --memory-gb %.6f", shape, less ? 0.95 * total / 1073741824 : 1);
        total = command_number("memory_bytes", "total");
        advised[less] = command_number("best_split", "sp");
        if (less)
            small =
                command_said("{\"dp\": 2, \"sp\": 1, \"batch_size\": 1, \"grad_accum\": 2, \"fits\": true") &&
                command_said("{\"dp\": 1, \"sp\": 2, \"batch_size\": 3, \"grad_accum\": 1, \"fits\": false");
    }
    check(advised[0] == 2 && advised[1] == 1 && small == 1,
        "figures: a faster split that does not fit is not advised",
        "--sp %g, of %.0f bytes; with a twentieth less --sp %g", advised[0], total, advised[1]);
}

// Ranks share what the machine has: more than were measured share it, fewer have all cores, not more memory.
static void figures_rates(void) {
    gpt2_sp_options o = options_of("");
    const Rates measured = {100, 50, 10, 20, 4};
    const Rates eight = rates_of(&o, &measured, 8), two = rates_of(&o, &measured, 2);
    o.threads = 1;
    const Rates bound = rates_of(&o, &measured, 2);
    check(eight.gflops == 50 && eight.attention_gflops == 25 && eight.link_gbs == 5 && eight.copy_gbs == 10 &&
            two.gflops == 200 && two.link_gbs == 10 && two.copy_gbs == 20 && bound.gflops == 100,
        "figures: ranks share the machine", "8 of 4 measured: %g GFLOP/s, 2: %g, with a thread each %g",
        eight.gflops, two.gflops, bound.gflops);
}

// allgather, 2 ranks: half a unit of work while keys travel, half a unit; backward the same, 2.5 times as
// long, then the keys' gradients travel and are added, which reads two numbers and writes one.
static void figures_plan_seconds(void) {
    const PlanFigures f = plan_figures("--sp 2 --schedule allgather");
    const double layers = 6 * 2, half = 128 * 64 * sizeof(real), unit = 4.0 * 128 * 128 * 64 / 2e9;
    const double travel = 2 * half / 0.5e9;
    double seconds = layers * (fmax(unit / 2, travel) + unit / 2);
    seconds += layers * (fmax(2.5 * unit / 2, travel) + 2.5 * unit / 2 + travel + 3 * 2 * half / 4e9);
    seconds += f.matmul / 3e9 + f.gradient_bytes / 0.5e9;
    check(near_six(f.seconds, seconds), "figures: plan's time is that of its parts", "%.5f s, expected %.5f",
        f.seconds, seconds);
}

// A hand-made table for the clock. Ops and messages: step, rank, (to,) seconds.
typedef struct {
    int P, ops[3][3], messages[2][4];
    double seconds;
    const char* what;
} ClockCase;
static const ClockCase CLOCKS[] = {
    {2, {{0, 0, 5}, {0, 1, 1}, {2, 1, 3}}, {{1, 0, 1, 2}}, 10, "a receiver waits for the sender"},
    {3, {{0, 0, 5}, {0, 1, 1}, {0, 2, 5}}, {{1, 1, 0, 2}, {1, 1, 2, 2}}, 9,
        "a sender waits for its receivers"},
    {3, {{1, 0, 3}}, {{0, 0, 2, 1}, {0, 1, 2, 9}}, 13, "a sender waits until its message is taken"},
    {2, {{0, 0, 4}, {1, 1, 1}}, {{0, 0, 1, 3}}, 4, "a message travels beside the work"}};

static void figures_clock(void) {
    for (size_t i = 0; i < sizeof CLOCKS / sizeof CLOCKS[0]; i++) {
        const ClockCase* c = &CLOCKS[i];
        Schedule s;
        double ops[3] = {0}, messages[2] = {0}, merges[2] = {0};
        schedule_begin(&s, GPT2_SP_RING, c->P, 0);
        for (int j = 0; j < 3 && c->ops[j][2] > 0; j++)
            schedule_op(&s, c->ops[j][0], c->ops[j][1], 0, 0, 0, 1), ops[j] = c->ops[j][2];
        for (int j = 0; j < 2 && c->messages[j][3] > 0; j++)
            schedule_send(&s, c->messages[j][0], c->messages[j][1], c->messages[j][2], ITEM_KV, 0, 0, 1),
                messages[j] = c->messages[j][3];
        schedule_steps(&s);
        double found = schedule_play(&s, ops, messages, merges);
        check(found == c->seconds, "figures: by the clock", "%s: %g s, expected %g", c->what, found,
            c->seconds);
        schedule_free(&s);
    }
    Schedule s;
    ScheduleCost cost;
    Error e = {0, {0}};
    schedule_begin(&s, GPT2_SP_RING, 3, 0);
    schedule_op(&s, 0, 1, 1, 0, 0, 1), schedule_op(&s, 0, 2, 2, 2, 0, 1);   // 1 unit, half a unit
    schedule_send(&s, 1, 0, 1, ITEM_KV, 0, 0, 1), schedule_send(&s, 1, 0, 2, ITEM_KV, 0, 0, 1);
    schedule_steps(&s);
    int status = schedule_cost(&s, &cost, &e);
    check(status == 0 && cost.makespan == 1 && cost.steps == 1 && cost.ideal == 1.5 && cost.most_sent == 4 &&
            cost.most_received == 2 && fabs(cost.elements - 4.0 / 3) < 1e-12,
        "figures: the cost of a table", "makespan %g, %d step, ideal %g, sent %g C, received %g C",
        cost.makespan, cost.steps, cost.ideal, cost.most_sent, cost.most_received);
    schedule_free(&s);
}

// A rank's memory by hand: 2 x 61 rows of 64 channels, 4 heads. Layers share what is computed again; logits
// are those of the rows there are; documents take no memory without --doc-mask.
static void figures_memory(void) {
    static const struct {
        const char* more;
        int64_t shared, layers;   // numbers a row that are computed again; layers that have room for them
    } cases[] = {{"recompute=attn layers=4", 14 * 64 + 2, 1}, {"recompute=attn layers=7", 14 * 64 + 2, 1},
        {"recompute=none layers=3", 0, 0}, {"recompute=sqrt layers=10", 16 * 64 + 2 + 4, 4}};
    const int64_t R = 2 * 61, C = 64, NH = 4, Tl = 61, word = sizeof(real);
    for (int i = 0; i < 4; i++) {
        gpt2_sp_options o = options_of("heads=4 channels=64 seq-len=61 batch-size=2 grad-accum=3 threads=2");
        options_apply(&o, cases[i].more);
        gpt2_sp* g = bare_trainer(&o, 257);
        if (!g) continue;
        // x, lnf, rstd; QKV; two projections, dx; of one sequence out, m, l, dO, delta, dQ, dK, dV
        int64_t work = R * (2 * C + 1 + 4 * C + 3 * C) + Tl * (C + 2 * NH + C + NH + C + 2 * C);
        work = (work + R * cases[i].shared * cases[i].layers) * word +
            g->mesh.threads * (int64_t)sizeof(AttentionScratch);
        const size_t* group = g->ranks[0].arena.group;
        int64_t logits = R * 384 * word + R * (word + 1), data = 4 * R * 2 * (3 + 3 + 1);
        // each buffer is rounded up to 64 bytes
        int64_t off[3] = {(int64_t)group[MEMORY_WORK] - work, (int64_t)group[MEMORY_LOGITS] - logits,
            (int64_t)group[MEMORY_DATA] - data};
        check(off[0] >= 0 && off[0] < 40 * 64 && off[1] >= 0 && off[1] < 3 * 64 && off[2] >= 0 &&
                off[2] < 9 * 64,
            "figures: buffers are as large as what is in them",
            "%s: %lld bytes of work, %lld of logits, %lld of data; %lld, %lld, %lld more are taken",
            cases[i].more, (long long)work, (long long)logits, (long long)data, (long long)off[0],
            (long long)off[1], (long long)off[2]);
        gpt2_sp_destroy(g);
    }
}

// Numbers of a rank's slots.
static int64_t slots_numbers(const Schedule* s, int rank, int64_t rows, int64_t NH, int64_t HS) {
    static const int wide[ITEM_KINDS] = {1, 2, 1, 2, 1, 2}, narrow[ITEM_KINDS] = {0, 0, 2, 2, 0, 0};
    int64_t sum = 0;
    for (int i = 0; i < s->slot_count[rank]; i++) {
        const Item* item = &s->slot_items[rank * MAX_SLOTS + i];
        int64_t heads = (NH * (item->h1 - item->h0) + s->head_parts - 1) / s->head_parts;
        sum += heads * rows * (wide[item->kind] * HS + narrow[item->kind]);
    }
    return sum;
}

static void figures_exchange(void) {
    static const char* const shapes[] = {
        "sp=4 schedule=ulysses", "sp=4", "sp=8", "sp=5", "sp=4 schedule=ring", "sp=4 schedule=allgather"};
    int wrong = 0, count = (int)(sizeof shapes / sizeof shapes[0]);
    for (int i = 0; i < count; i++) {
        gpt2_sp_options o = options_of("layers=1 heads=8 channels=256 seq-len=960 threads=1");
        options_apply(&o, shapes[i]);
        gpt2_sp* g = bare_trainer(&o, 257);
        if (!g) continue;
        int64_t P = o.sp, most = 0, ops = 0, messages = 0, slots = 0;
        for (int d = 0; d < 2; d++) {
            const Schedule* s = &g->schedules[d];
            most = max_i64(most, slots_numbers(s, 0, 960 / P, 8, 32));
            ops = max_i64(ops, s->op_count), messages = max_i64(messages, s->message_count);
            slots = max_i64(slots, s->slot_count[0]);
        }
        int64_t lists = slots + 2 * MAX_PIECES * (2 * P + 2) * (int64_t)sizeof(Piece) + ops + messages;
        lists += P * P * ITEM_KINDS + 8 * g->schedules[0].chunks;
        int64_t taken = (int64_t)g->ranks[0].arena.group[MEMORY_EXCHANGE];
        int64_t off = taken - most * (int64_t)sizeof(real) - lists;
        wrong += off < 0 || off > 64 * (slots + 6);
        if (off < 0 || off > 64 * (slots + 6)) printf("     %s: %lld bytes off\n", shapes[i], (long long)off);
        gpt2_sp_destroy(g);
    }
    check(wrong == 0, "figures: exchange buffers are as large as the larger table's slots",
        "%d shapes, %d wrong", count, wrong);
    // the fullest rank's slots, in C: what is there at a time, and no slot larger than it need be
    static const struct {
        int kind, P, backward;
        double numbers;
    } known[] = {{GPT2_SP_RING, 8, 0, 4}, {GPT2_SP_RING, 8, 1, 10}, {GPT2_SP_DIST, 8, 0, 5.5},
        {GPT2_SP_DIST, 8, 1, 10}, {GPT2_SP_ALLGATHER, 8, 1, 28}, {GPT2_SP_ULYSSES, 8, 1, 6.125},
        {GPT2_SP_DIST, 7, 1, 9}, {GPT2_SP_DIST, 16, 1, 11}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        Schedule s;
        Error e = {0, {0}};
        const double one = 1024.0 * (1 << 20);
        double most = 0;
        if (schedule_build(&s, known[i].kind, known[i].P, known[i].backward, 16, &e) == 0)
            for (int r = 0; r < s.P; r++)
                most = fmax(most, (double)slots_numbers(&s, r, 1, 1024, 1 << 20) / one);
        check(most > 0 && most < known[i].numbers + 1e-3,
            "figures: slots take no more than lies in them at a time", "%s, %d ranks, %s: %.3f C, at most %g",
            schedule_name(known[i].kind), known[i].P, known[i].backward ? "backward" : "forward", most,
            known[i].numbers);
        schedule_free(&s);
    }
}

// The moments after the first step are (1 - beta1) of the gradient that was used.
static double first_moment(const char* more, double* norm) {
    gpt2_sp_options o = run_options("batch-size=2 beta1=0.9 sp=2");
    char error[GPT2_SP_TEXT];
    gpt2_sp_stats stats;
    double square = 0;
    options_apply(&o, more);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    if (!g || step_of(g, &stats) != 0) return NAN;
    real* m = reals(g->layout.elements);
    collect(g, STATE_M, m);
    for (int64_t i = 0; i < g->layout.elements; i++) square += (double)m[i] * (double)m[i];
    *norm = stats.grad_norm;
    free(m);
    gpt2_sp_destroy(g);
    return 10 * sqrt(square);
}
static void figures_clipping(void) {
    double norm = 0, free_norm = first_moment("grad-clip=0", &norm),
           below = first_moment("grad-clip=1e6", &norm);
    double above = first_moment("grad-clip=0.25", &norm);
    check(norm > 0.25 && fabs(free_norm / norm - 1) < 1e-4 && fabs(below / norm - 1) < 1e-4 &&
            fabs(above / 0.25 - 1) < 1e-4,
        "figures: a gradient's norm is clipped and never raised",
        "norm %.5f: used %.5f without a limit, %.5f below it, %.5f at 0.25", norm, free_norm, below, above);
}

// Standard deviations of fresh weights: 0.02, of the two projections into the stream 0.02 / sqrt(2L).
static void figures_init(void) {
    gpt2_sp_options o = options_of("layers=8 heads=2 channels=64 seq-len=200 threads=1 seed=3");
    gpt2_sp *g = bare_trainer(&o, 257), *other = NULL;
    o.layers = 2, o.seed = 4;
    int wrong = 0, equal = 0;
    if (g && (other = bare_trainer(&o, 257)) != NULL) {
        ranks_run(g, rank_weights_init, NULL), ranks_run(other, rank_weights_init, NULL);
        const real *w = g->ranks[0].state[STATE_WEIGHTS], *v = other->ranks[0].state[STATE_WEIGHTS];
        for (int u = 0; u < g->layout.count; u++)
            for (int id = 0; id < PARAMETER_COUNT; id++) {
                Parameter p = parameter(&g->mesh.shape, id);
                if (p.unit != g->layout.units[u].kind) continue;
                const real* at = w + g->layout.units[u].offset + g->layout.within[id];
                const char* tail = strrchr(p.hf, '.');
                int64_t n = id == P_wte ? 257 * 64 : parameter_elements(&p);
                int gain = strcmp(tail, ".weight") == 0 && strstr(p.hf, "ln_"),
                    bias = strcmp(tail, ".bias") == 0;
                double square = 0, expected = gain ? 1 : bias ? 0 : strstr(p.hf, "c_proj") ? 0.005 : 0.02;
                for (int64_t i = 0; i < n; i++) square += (double)at[i] * (double)at[i];
                double found = sqrt(square / (double)n);
                int good = fabs(found - expected) <= (gain || bias ? 0 : 0.04 * expected);
                for (int64_t i = 257 * 64; id == P_wte && i < p.rows * 64; i++) good &= at[i] == 0;
                if (!good) printf("     %s of unit %d: %g, expected %g\n", p.hf, u, found, expected);
                wrong += !good;
            }
        for (int i = 0; i < 1000; i++)   // tensors, layers and seeds have nothing in common
            equal += w[i] == v[i] ||
                w[g->layout.units[1].offset + g->layout.within[P_qkvw] + i] ==
                    w[g->layout.units[1].offset + g->layout.within[P_fcw] + i] ||
                w[i] == w[g->layout.units[1].offset + g->layout.within[P_fcw] + i] ||
                w[g->layout.units[1].offset + g->layout.within[P_qkvw] + i] ==
                    w[g->layout.units[2].offset + g->layout.within[P_qkvw] + i];
    }
    check(g && other && wrong == 0 && equal == 0, "figures: weights begin as GPT-2's do",
        "8 layers: %d tensors of another size, %d of 1000 numbers alike", wrong, equal);
    o.seed = 3;
    gpt2_sp* shallow = bare_trainer(&o, 257);
    if (g && shallow) {   // the positions of another depth
        ranks_run(shallow, rank_weights_init, NULL);
        const real* deep = g->ranks[0].state[STATE_WEIGHTS] + g->layout.units[10].offset;
        const real* same = shallow->ranks[0].state[STATE_WEIGHTS] + shallow->layout.units[4].offset;
        wrong += memcmp(deep, same, 200 * 64 * sizeof *deep) != 0;
    }
    gpt2_sp_destroy(shallow);
    check(wrong == 0, "figures: positions begin alike at every depth", "8 and 2 layers");
    gpt2_sp_destroy(g);
    gpt2_sp_destroy(other);
}

// |found - (x + y - mean of y)| of a row, in the largest element; mean 0 without `center`.
static double residual_error(const real* found, const real* x, const double* y, int64_t C, int center) {
    double mean = 0, most = 0;
    for (int64_t c = 0; center && c < C; c++) mean += y[c] / (double)C;
    for (int64_t c = 0; c < C; c++) most = worst(most, fabs((double)found[c] - (double)x[c] - (y[c] - mean)));
    return most;
}

// The stream after attention and after the MLP of every layer is what was there and the projection, whose
// mean is taken from it with --center 1 only.
static double stream_error(gpt2_sp* g, int center) {
    const Rank* r = &g->ranks[0];
    const int64_t C = 32;
    double y[32], most = 0;
    for (int64_t l = 0; l < 2; l++) {
        const Activations a = activations_of(r, l);
        const Parameters w = weights_of(r, (int)l + 1);
        const real* next = l == 0 ? act(r, A_x, 1) : r->x_final;
        for (int64_t t = 0; t < r->R; t++)
            for (int branch = 0; branch < 2; branch++) {
                const int64_t K = branch ? 4 * C : C;
                const real *in = (branch ? a.gelu : a.atty) + t * K,
                           *weight = branch ? w.fcprojw : w.attprojw;
                for (int64_t c = 0; c < C; c++) {
                    y[c] = (double)(branch ? w.fcprojb : w.attprojb)[c];
                    for (int64_t k = 0; k < K; k++) y[c] += (double)in[k] * (double)weight[c * K + k];
                }
                const real *from = branch ? a.x2 : a.x, *to = branch ? next : a.x2;
                most = worst(most, residual_error(to + t * C, from + t * C, y, C, center));
            }
    }
    return most;
}

static void figures_center(void) {
    for (int center = 0; center < 2; center++) {
        gpt2_sp_options o = options_of("layers=2 heads=2 channels=32 seq-len=50 recompute=none threads=1");
        o.center = center;
        gpt2_sp* g = bare_trainer(&o, CACHED_VOCAB);
        if (!g) continue;
        Rank* r = &g->ranks[0];
        ranks_run(g, rank_noise, NULL);
        noise_fill(weight(r, 1, P_attprojb), 32, 61, 1);
        noise_fill(weight(r, 1, P_fcprojb), 32, 62, 1);
        for (int64_t t = 0; t < 50; t++)
            r->batches[0].tokens[t] = (int32_t)dice(63, (uint64_t)t, CACHED_VOCAB);
        memset(r->batches[0].labels, 0, 50 * sizeof(int32_t));
        r->batch = &r->batches[0], r->valid_tokens = 50;
        double loss = trainer_loss(g), error = stream_error(g, center);
        check(isfinite(loss) && error <= 1000 * EPS, "figures: the stream is centred with --center 1 only",
            "--center %d, 2 layers: largest difference %.2g", center, error);
        gpt2_sp_destroy(g);
    }
    // a hit is the likeliest token, not one that is near it
    real logits[3 * 128] = {0}, losses[3];
    const int32_t labels[3] = {5, 5, -1};
    unsigned char hits[3] = {9, 9, 9};
    losses[2] = 7;
    logits[5] = 2, logits[6] = (real)2.01;
    logits[128 + 5] = 2, logits[128 + 6] = (real)1.99;
    cpu_crossentropy(losses, hits, logits, labels, 0, 3, 100, 128);
    check(hits[0] == 0 && hits[1] == 1 && hits[2] == 0 && losses[2] == 0 && losses[0] > losses[1] &&
            losses[1] > 0,
        "figures: a hit is the likeliest token", "%d %d %d, loss without a label %g", hits[0], hits[1],
        hits[2], (double)losses[2]);
}

// A slot that an op will add to begins as an empty sum, once.
static void figures_empty_sum(void) {
    gpt2_sp_options o = options_of("layers=1 heads=2 channels=32 seq-len=64 sp=4 threads=1");
    gpt2_sp* g = bare_trainer(&o, 257);
    if (!g) return;
    Rank* r = &g->ranks[0];
    AttentionRun run;
    memset(&run, 0, sizeof run);
    run.table = &g->schedules[0], run.slots = r->slots[0];
    const ScheduleOp* op = op_of(&g->schedules[0], 0, 0);
    Item item = {ITEM_OUT, op->q, op->h0, op->h1};
    const real empty[3] = {0, -(real)INFINITY, 0};
    int wrong = op->dq_slot < 0;
    memset(r->slot_filled, 0, (size_t)run.table->slot_count[0]);
    for (int again = 0; wrong == 0 && again < 2; again++) {
        for (int i = 0; i < 3; i++) {
            ItemView v = item_view(r, &run, item, op->dq_slot, i);
            for (int64_t j = 0; j < 2 * v.head; j++) v.p[j] = 7;
        }
        result_begin(r, &run, item, op->dq_slot);
        wrong += r->slot_filled[op->dq_slot] != 1;
        for (int i = 0; i < 3; i++) {
            ItemView v = item_view(r, &run, item, op->dq_slot, i);
            for (int64_t j = 0; j < 2 * v.head; j++) wrong += v.p[j] != (again ? 7 : empty[i]);
        }
    }
    check(wrong == 0, "figures: a sum begins as nothing, -inf and nothing, once", "%d numbers wrong", wrong);
    gpt2_sp_destroy(g);
}

// Ranks and processes share the cores; --sp 0 takes the devices there are.
static int six_devices(int ranks) { return ranks < 6 ? ranks : 6; }
static void figures_sharing(void) {
    gpt2_sp_options o = options_of("");
    Mesh mesh;
    memset(&mesh, 0, sizeof mesh);
    mesh.local_ranks = mesh.local_processes = 1;
    const int all = mesh_threads(&mesh, &o);
    mesh.local_ranks = 2;
    const int ranks = mesh_threads(&mesh, &o);
    mesh.local_ranks = 1, mesh.local_processes = 2;
    const int processes = mesh_threads(&mesh, &o);
    o.threads = 3;
    const int asked = mesh_threads(&mesh, &o), half = all > 1 ? all / 2 : 1;
#ifdef _OPENMP
    // where a launcher has bound the process to some of the cores, they are its own
    int bound;
    usable_cores(&bound);
    check(ranks == half && processes == (bound ? all : half) && asked == 3, "figures: ranks share the cores",
        "%d threads; two ranks %d each, two processes %d each, asked for 3: %d", all, ranks, processes,
        asked);
#else
    check(all == 1 && ranks == 1 && processes == 1 && asked == 1,
        "figures: without OpenMP a rank has a thread", "%d thread, of two ranks %d", all, half);
#endif
    static const struct {
        int dp, local, world, sp;   // sp 0: refused
    } cases[] = {{1, 1, 0, 6}, {2, 1, 0, 3}, {3, 1, 0, 2}, {4, 1, 0, 0}, {5, 1, 0, 0}, {6, 1, 0, 1},
        {8, 1, 0, 1}, {1, 2, 2, 6}, {4, 2, 4, 3}, {1, 7, 7, 7}};
    int right = 0, count = (int)(sizeof cases / sizeof cases[0]);
    Device device = CPU_DEVICE;
    device.count = six_devices;
    for (int i = 0; i < count; i++) {
        Error e = {0, {0}};
        o.dp = cases[i].dp, o.world = cases[i].world;
        o.sp = 0;
        int status = ranks_choose(&o, &device, cases[i].local, &e);
        right += cases[i].sp ? status == 0 && o.sp == cases[i].sp
                             : status == -1 && strstr(e.text, "6 ranks") && strstr(e.text, "divided evenly");
    }
    check(right == count, "figures: --sp 0 takes the devices that --dp leaves", "6 devices: %d of %d", right,
        count);
}

// The longest context for many sizes of memory: it fits, and neither one token more nor the next length that
// ranks share evenly does. Where little more than the shortest possible fits, that is found.
static void figures_longest(void) {
    static const char* const shapes[] = {"layers=2 heads=2 channels=64 sp=4 doc-mask=1",
        "layers=2 heads=3 channels=24 sp=4", "layers=1 heads=2 channels=40 sp=6",
        "layers=2 heads=2 channels=64 sp=3"};
    int wrong = 0, tried = 0;
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 12; k++) {
            gpt2_sp_options o = options_of(shapes[i]);
            o.threads = 1;
            size_t room = (size_t)(8 << 20) + (size_t)k * 1234567;
            int64_t T = longest_context(&o, 257, 1, &CPU_DEVICE, room), step = 2 * o.sp,
                    even = T - T % step + step;
            int good =
                T > 0 && memory_at(o, T) <= room && memory_at(o, T + 1) > room && memory_at(o, even) > room;
            if (!good) printf("     %s, %zu bytes: %lld\n", shapes[i], room, (long long)T);
            wrong += !good, tried++;
        }
    int shortest = 0;
    for (int sp = 2; sp <= 24; sp++) {
        gpt2_sp_options o = options_of("layers=1 heads=2 channels=32 schedule=zigzag threads=1");
        o.sp = sp;
        shortest += longest_context(&o, 257, 1, &CPU_DEVICE, memory_at(o, 2 * sp)) < 2 * sp;
    }
    check(wrong == 0 && shortest == 0, "figures: the longest context is found, whatever fits",
        "%d of %d sizes of memory wrong, %d of 23 where only the shortest fits", wrong, tried, shortest);
    gpt2_sp_options o = options_of("layers=1 heads=2 channels=32 seq-len=61 sp=2 threads=1");
    Schedule schedules[2];
    Mesh mesh;
    Layout layout;
    Error e = {0, {0}};
    memset(schedules, 0, sizeof schedules);
    int status =
        mesh_init(&mesh, schedules, &o, 257, 1, &CPU_DEVICE, &e) != 0 || layout_init(&layout, &mesh, &e) != 0;
    size_t one = status ? 0 : rank_plan(&mesh, &layout, 0).used,
           two = status ? 0 : rank_plan(&mesh, &layout, 1).used;
    size_t most = status ? 0 : fullest_rank(&mesh, &layout).used;
    check(one != two && most == (one > two ? one : two), "figures: the fullest rank is the one with most",
        "%zu of %zu and %zu bytes", most, one, two);
    if (!status) free(layout.units);
    schedule_free(&schedules[0]);
    schedule_free(&schedules[1]);
}

// --recompute sqrt has ceil(sqrt(L)) layers to compute again at a time; what a pass may hold.
static void figures_bounds(void) {
    static const int segments[][2] = {{1, 1}, {2, 2}, {4, 2}, {5, 3}, {9, 3}, {10, 4}, {48, 7}};
    int wrong = 0;
    for (int i = 0; i < 7; i++) {
        Shape s;
        memset(&s, 0, sizeof s);
        s.L = segments[i][0];
        wrong += segment_layers(&s, GPT2_SP_SQRT) != segments[i][1] || segment_layers(&s, GPT2_SP_LAYER) != 1;
    }
    check(wrong == 0, "figures: sqrt computes the root of the layers again at a time",
        "1 to 48 layers: %d wrong", wrong);
    int status =
        command("plan --layers 1 --channels 16 --heads 1 --batch-size 65536 --seq-len 32769 --gflops 1 "
                "--link-gbs 1 --copy-gbs 1 --memory-gb 1");
    check(status == -1 && command_said("more than 2^31 tokens in a pass"),
        "figures: a pass has at most 2^31 tokens", "%.90s", command_out);
}

// Positions depend on the seed alone; what a step tells; ten steps that update nothing end a run, if they are
// in a row; segments of --recompute sqrt that do not divide the layers.
static void figures_steps(void) {
    gpt2_sp_options o =
        run_options("batch-size=2 dp=2 grad-accum=3 sp=1 lr=1e-3 warmup=4 steps=50 grad-clip=0.5");
    char error[GPT2_SP_TEXT];
    gpt2_sp_stats stats, before = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    if (!g) {
        check(0, "a test's trainer is made", "%s", error);
        return;
    }
    int right = 0, status = 0;
    for (int i = 1; i <= 3; i++) {
        status |= step_of(g, &stats);
        right += stats.step == i && stats.tokens == i * 2 * 2 * 3 * 61 && stats.updated == 1 &&
            fabs(stats.lr - i * 1e-3 / 4) < 1e-12 && stats.loss != before.loss &&
            fabs(stats.tok_per_s * stats.ms / 1e3 / (2 * 2 * 3 * 61) - 1) < 1e-9;
        before = stats;
    }
    check(status == 0 && right == 3 && before.grad_norm > 0.5,
        "figures: a step tells its number, tokens, rate and norm", "%d of 3 steps", right);
    real* w = g->ranks[0].state[STATE_WEIGHTS] + g->layout.units[1].offset;
    const real kept = *w;
    int failed_at = 0;
    for (int i = 1; i <= 20 && status == 0; i++) {   // 9 that are not finite, one that is, 10 that are not
        for (int r = 0; r < 2; r++)
            g->ranks[r].state[STATE_WEIGHTS][g->layout.units[1].offset] = i == 10 ? kept : (real)NAN;
        status = step_of(g, &stats);
        failed_at = i;
    }
    check(status == GPT2_SP_NOT_FINITE && failed_at == 20 && strstr(gpt2_sp_error(g), "10 steps in a row"),
        "figures: ten steps in a row without an update are the end", "step %d of 20: %.60s", failed_at,
        status ? gpt2_sp_error(g) : "");
    gpt2_sp_destroy(g);
    Run none = run_steps("batch-size=1 layers=5 recompute=none", 2),
        root = run_steps("batch-size=1 layers=5 recompute=sqrt", 2);
    check(run_equal(&none, &root), "figures: sqrt gives the same bits where the last segment is shorter",
        "5 layers, 2 steps: %s", run_equal(&none, &root) ? "equal" : "different");
    free(none.weights);
    free(root.weights);
}

// AdamW decays matrices and wte, nothing else.
static void figures_decay(void) {
    static const char* const decay[] = {
        "wte.weight", "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"};
    Shape s;
    int wrong = 0;
    memset(&s, 0, sizeof s);
    for (int id = 0; id < PARAMETER_COUNT; id++) {
        int expected = 0;
        for (int i = 0; i < 5; i++) expected |= strcmp(parameter(&s, id).hf, decay[i]) == 0;
        wrong += parameter(&s, id).decay != expected;
    }
    check(wrong == 0, "figures: matrices and wte decay, nothing else", "%d parameters, %d wrong",
        PARAMETER_COUNT, wrong);
}

// Series of random numbers are the same in every version: weights, orders, samples come from them. No number
// is 0; distances of facts keep to their range, and their values are distinct; escapes are those of JSON.
static void figures_numbers(void) {
    check(random_bits(1, 2, 3) == 0x473703a859667d54ull && random_bits(5, 0, 0) == 0x9321406e9a41059dull &&
            random_unit(0) > 0 && random_unit(UINT64_MAX) < 1 &&
            random_unit(UINT64_MAX - 4096) < random_unit(UINT64_MAX) &&
            random_unit(1ull << 62) == 0.25 + 0x1p-54,
        "figures: random numbers are the same in every version", "%016llx",
        (unsigned long long)random_bits(1, 2, 3));
    uint64_t state = 4;
    int outside = 0, twice = 0;
    for (int i = 0; i < 200000; i++) {
        const size_t least = (i % 2 ? 60 : 1000003) + (size_t)i % 97, most = least + (size_t)i % 41,
                     x = synth_log_uniform(&state, least, most);
        outside += x < least || x > most;
    }
    char error[256] = "";
    int status = 0;
    for (uint64_t seed = 1; seed <= 4 && status == 0; seed++) {
        synth_doc doc;
        status = synth_document(seed, 1, 600000, 1024, 0, &doc, error, sizeof error);
        for (int i = 0; status == 0 && i < doc.fact_count; i++)
            for (int j = 0; j < i; j++)
                twice += doc.facts[i].answer_length == doc.facts[j].answer_length &&
                    memcmp(doc.text + doc.facts[i].answer, doc.text + doc.facts[j].answer,
                        (size_t)doc.facts[i].answer_length) == 0;
        if (status == 0) synth_free(&doc);
    }
    check(status == 0 && outside == 0 && twice == 0,
        "figures: facts keep to their distances, with distinct values",
        "%d of 200000 distances outside, %d of 4 x 1024 values twice %s", outside, twice, error);
    check(json_whole("\"\\u0041\"") && !json_whole("\"\\x0041\"") && !json_whole("\"\\U0041\""),
        "figures: escapes that there are not are refused", "%s", "u, x, U");
}

// Numbers that users write, and those that are written for them; the text of two shards.
static void figures_texts(void) {
    static const char* const none[] = {"", " ", "-", "k", ".", "e5", "1 2", "0x10"};
    int taken = 0;
    double value;
    for (int i = 0; i < 8; i++) taken += parse_number(none[i], 1, &value) == 0;
    gpt2_sp_options o = options_of(""), again = o;
    char text[64];
    Error e = {0, {0}};
    o.lr = 0.1 + 0.2;
    option_print(&o, option_find("lr"), text, sizeof text);
    int status = option_set(&again, option_find("lr"), text, &e);
    check(taken == 0 && status == 0 && again.lr == o.lr, "figures: numbers are read and written whole",
        "%d of 8 that are none are taken; %s", taken, text);
    char first[512], second[512], list[1100];
    snprintf(first, sizeof first, "%s", scratch("first.tok"));
    snprintf(second, sizeof second, "%s", scratch("second.tok"));
    snprintf(list, sizeof list, "%s,%s", first, second);
    command("synth --out %s --docs 3 --doc-bytes 700 --facts 2", first);
    command("synth --out %s --docs 2 --doc-bytes 900 --facts 2", second);
    Dataset d;
    status = dataset_open(&d, list, &DATA_PLAIN, &e);
    check(status == 0 && d.text_bytes == 3 * 700 + 2 * 900 && d.tokens == d.text_bytes + 5,
        "figures: the text of all shards counts", "%llu bytes %s",
        status ? 0ull : (unsigned long long)d.text_bytes, e.text);
    if (status == 0) dataset_close(&d);
}

// --check: gradients that are the same pass; one that is not, or is no number, wherever it stands, is told.
static void figures_check(void) {
    gpt2_sp_options o = options_of("layers=2 heads=1 channels=16 seq-len=16 threads=1");
    gpt2_sp* g = bare_trainer(&o, 257);
    if (!g) return;
    const int64_t n = g->layout.elements,
                  at[3] = {0, g->layout.units[1].offset + 5, g->layout.units[4].offset};
    Gradients found = {reals(n), 2, 1}, alone = {reals(n), 2, 1};
    noise_fill(alone.all, n, 64, 1e-6);
    memcpy(found.all, alone.all, (size_t)n * sizeof(real));
    int same = gradients_compare(g, &found, g, &alone) == 0, told = 0;
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 2; k++) {
            found.all[at[i]] = k ? (real)NAN : alone.all[at[i]] + (real)1e-6;
            told += gradients_compare(g, &found, g, &alone) == -1;
            found.all[at[i]] = alone.all[at[i]];
        }
    found.loss = 2.1;
    told += gradients_compare(g, &found, g, &alone) == -1;
    check(same && told == 7, "figures: --check tells a gradient that differs",
        "equal ones pass: %d; %d of 7 told", same, told);
    free(found.all);
    free(alone.all);
    gpt2_sp_destroy(g);
}

// A program writes into the struct of options: what `--name value` would refuse is refused there too.
static void figures_ranges(void) {
    int asked = 0, told = 0;
    for (int i = 0; i < OPTION_COUNT; i++)
        for (int side = 0; side < 2; side++) {
            const Option* option = &OPTIONS[i];
            gpt2_sp_options o = options_of("");
            Error e = {0, {0}};
            char name[64], *field = (char*)&o + option->offset;
            double value = side ? option->high + fmax(1, option->high / 1e6) : option->low - 1;
            if (option->kind == OPTION_FLAG || option->kind == OPTION_INT)
                *(int64_t*)(void*)field = (int64_t)value;
            else if (option->kind == OPTION_NUM) *(double*)(void*)field = side ? value : NAN;
            else if (option->kind == OPTION_CHO) *(int*)(void*)field = side ? 99 : -1;
            else
                memset(field, 'x', side ? GPT2_SP_TEXT : GPT2_SP_TEXT - 1),
                    field[GPT2_SP_TEXT - 1] = side ? 'x' : 0;
            snprintf(name, sizeof name, "--%s", option->name);
            asked++;
            if (options_check(&o, &e) == -1 && strncmp(e.text, name, strlen(name)) == 0) told++;
            else printf("     %s, %s: %s\n", name, side ? "above" : "below", e.text);
        }
    gpt2_sp_options o = options_of("");
    Error e = {0, {0}};
    check(told == asked && options_check(&o, &e) == 0, "figures: ranges hold for options that a program sets",
        "%d of %d values out of range are refused by name; the defaults are taken", told, asked);
}

static void test_figures(void) {
    figures_parameters();
    figures_drawn();
    figures_plan();
    figures_splits();
    figures_advised();
    figures_rates();
    figures_plan_seconds();
    figures_plan_bytes();
    figures_clock();
    figures_memory();
    figures_exchange();
    figures_clipping();
    figures_init();
    figures_steps();
    figures_decay();
    figures_bounds();
    figures_numbers();
    figures_texts();
    figures_check();
    figures_center();
    figures_empty_sum();
    figures_sharing();
    figures_longest();
    figures_ranges();
}

// ===== sampling and recall ======================================================================
// What is generated, against the long way. Held: each token is drawn from the logits that a whole forward
// pass has for it, by the number that its place and the seed give; a longer text begins with the shorter;
// recall counts an answer only if each of its tokens was the likeliest where it had to be said. A token that
// is read at the wrong place still makes text, only worse.

enum { LONG_PROMPT = 300, LONG_MADE = 24, LONG_T = LONG_PROMPT + LONG_MADE + 2 };

// The token that follows the first n of `tokens`, by a forward pass over all of them.
static int32_t token_by_pass(
    gpt2_sp* g, const int32_t* tokens, int64_t n, int64_t place, const gpt2_sp_sampling* how) {
    Rank* r = &g->ranks[0];
    const int64_t C = g->mesh.shape.C, V = g->mesh.shape.V, Vp = g->mesh.shape.Vp;
    RankBatch* batch = &r->batches[0];
    memset(batch->tokens, 0, LONG_T * sizeof *batch->tokens);
    memcpy(batch->tokens, tokens, (size_t)n * sizeof *tokens);
    memset(batch->labels, 0, LONG_T * sizeof *batch->labels);
    r->batch = batch, r->valid_tokens = LONG_T;
    trainer_loss(g);
    real *logits = reals(Vp), *wte = r->state[STATE_WEIGHTS] + g->layout.within[P_wte];
    Candidate* candidates = (Candidate*)need((size_t)V, sizeof *candidates);
    cpu_matmul_forward(logits, r->lnf + (n - 1) * C, wte, NULL, 1, C, Vp, r->scratch);
    double unit = random_unit(random_bits(how->seed, 0x73616D706C65, (uint64_t)place));
    int32_t token = token_drawn(logits, V, how, unit, candidates);
    free(logits);
    free(candidates);
    return token;
}

static void generated_by_pass(void) {
    const gpt2_sp_sampling hows[] = {
        drawing(0, 0, 1, 1), drawing(1, 0, 1, 7), drawing(0.7, 20, 1, 8), drawing(1.5, 0, 0.8, 9)};
    static const int64_t prompts[] = {1, 255, 256, 257, LONG_PROMPT};
    gpt2_sp_options o = options_of("layers=2 heads=2 channels=32 threads=1");
    o.seq_len = LONG_T;
    gpt2_sp* g = bare_trainer(&o, CACHED_VOCAB);
    int equal = 0, all = 0, prefixes = 0, distinct = 0;
    if (!g) return;
    g->eot = -1;
    ranks_run(g, rank_noise, NULL);
    for (int p = 0; p < 5; p++)
        for (int h = 0; h < 4; h++) {
            int32_t tokens[LONG_T], longer[LONG_MADE + 1];
            const gpt2_sp_sampling* how = &hows[h];
            const int64_t n = prompts[p];
            for (int64_t i = 0; i < n; i++)
                tokens[i] = (int32_t)dice(98, (uint64_t)(1000 * p + i), CACHED_VOCAB);
            gpt2_sp_generate(g, tokens, n, tokens + n, LONG_MADE, how);
            gpt2_sp_generate(g, tokens, n, longer, LONG_MADE + 1, how);
            prefixes += memcmp(longer, tokens + n, LONG_MADE * sizeof *longer) == 0;
            for (int64_t i = 0; i < LONG_MADE; i += quick ? 5 : 1, all++) {
                equal += token_by_pass(g, tokens, n + i, i, how) == tokens[n + i];
                distinct += i > 0 && tokens[n + i] != tokens[n + i - 1];
            }
        }
    check(equal == all && distinct > all / 4,
        "sampling: what is generated is what a forward pass for each token gives",
        "5 prompts of 1 to 300 tokens, 4 ways to draw: %d of %d tokens, %d unlike the one before", equal, all,
        distinct);
    check(prefixes == 20, "sampling: a longer text begins with the shorter", "%d of 20", prefixes);
    gpt2_sp_destroy(g);
}

// A pass that hits just the tokens of the answers, `late` tokens too late; and misses the one numbered
// `missed` of each answer.
static struct {
    uint64_t seed, document;
    int64_t T;
    int facts, late, missed;
} recall;
static int recall_pass(Rank* r, int64_t pass) {
    synth_doc doc;
    char error[256];
    (void)pass;
    memset(r->token_hit, 0, (size_t)r->R);
    memset(r->token_loss, 0, (size_t)r->R * sizeof *r->token_loss);
    if (synth_document(recall.seed ^ 0x6E6565646C65u, recall.document++, (size_t)recall.T, recall.facts, 0,
            &doc, error, sizeof error) != 0)
        return -1;
    for (int f = 0; f < doc.fact_count; f++)
        for (int i = 0; i < doc.facts[f].answer_length; i++)
            if (i != recall.missed) r->token_hit[(int64_t)doc.facts[f].answer - 1 + i + recall.late] = 1;
    int said = 1;   // the documents are those that are read
    for (int64_t t = 0; t < recall.T; t++) said &= r->batch->tokens[t] == (unsigned char)doc.text[t];
    for (int64_t t = 0; t + 1 < recall.T; t++) said &= r->batch->labels[t] == (unsigned char)doc.text[t + 1];
    synth_free(&doc);
    return said ? 0 : fail(&r->error, "another document");
}

// A pass of two replicas that looks whether every rank has its rows of its replica's document, and no labels
// beyond the third.
static uint64_t recall_rounds[4];   // that each rank has made
static int recall_rows(Rank* r, int64_t pass) {
    synth_doc doc;
    char error[256];
    uint64_t number = 2 * recall_rounds[r->world_rank]++ + (uint64_t)r->place.dp;
    int right = 1;
    (void)pass;
    memset(r->token_loss, 0, (size_t)r->R * sizeof *r->token_loss);
    if (synth_document(recall.seed ^ 0x6E6565646C65u, number, (size_t)recall.T, recall.facts, 0, &doc, error,
            sizeof error) != 0)
        return -1;
    for (int s = 0, row = 0; s < r->segments.count; s++)
        for (int64_t i = 0; i < r->segments.rows[s]; i++, row++) {
            int64_t t = r->segments.begin[s] + i;
            if (number >= 3) right &= r->batch->labels[row] == -1;
            else
                right &= r->batch->tokens[row] == (unsigned char)doc.text[t] &&
                    (t + 1 == recall.T || r->batch->labels[row] == (unsigned char)doc.text[t + 1]);
        }
    synth_free(&doc);
    return right ? 0 : fail(&r->error, "rank %d has not the rows of document %d", r->world_rank, (int)number);
}

// Three documents, two replicas of two ranks each: the second round has one document.
static void recall_split(void) {
    gpt2_sp_options o =
        options_of("layers=1 heads=1 channels=16 seq-len=600 facts=3 threads=1 seed=11 dp=2 sp=2");
    double right[POSITION_BUCKETS] = {0}, asked[POSITION_BUCKETS] = {0}, all = 0;
    gpt2_sp* g = bare_trainer(&o, 257);
    if (!g) return;
    Device device = *g->device;
    device.pass = recall_rows;
    g->mesh.device = &device;
    recall.seed = 11, recall.T = 600;
    recall.facts = 3;
    memset(recall_rounds, 0, sizeof recall_rounds);
    int status = evaluate_needle(g, 3, right, asked);
    for (int b = 0; b < POSITION_BUCKETS; b++) all += asked[b];
    check(status == 0 && all == 9 && recall_rounds[3] == 2,
        "figures: each replica reads a document of its own", "%g facts asked %s", all, g->error.text);
    gpt2_sp_destroy(g);
}

static void recall_counts(void) {
    static const struct {
        int late, missed;
        double right;
    } cases[] = {{0, -1, 12}, {1, -1, 0}, {-1, -1, 0}, {0, 0, 0}, {0, 3, 0}, {0, 1, 0}};
    gpt2_sp_options o = options_of("layers=1 heads=1 channels=16 seq-len=600 facts=3 threads=1 seed=11");
    gpt2_sp* g = bare_trainer(&o, 257);
    if (!g) return;
    Device device = *g->device;
    device.pass = recall_pass;
    g->mesh.device = &device;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double right[POSITION_BUCKETS] = {0}, asked[POSITION_BUCKETS] = {0}, all_right = 0, all_asked = 0,
               near = 0;
        recall.seed = 11, recall.document = 0;
        recall.T = 600, recall.facts = 3;
        recall.late = cases[i].late, recall.missed = cases[i].missed;
        int status = evaluate_needle(g, 4, right, asked);
        for (int b = 0; b < POSITION_BUCKETS; b++) all_right += right[b], all_asked += asked[b];
        for (uint64_t d = 0; d < 4; d++) {   // each fact is in the bucket of its distance
            synth_doc doc;
            char error[256];
            if (synth_document(11 ^ 0x6E6565646C65u, d, 600, 3, 0, &doc, error, sizeof error) != 0) continue;
            for (int f = 0; f < 3; f++) {
                int b = 0;
                while ((doc.facts[f].answer - doc.facts[f].statement) >> b) b++;
                asked[b] -= 1;
            }
            synth_free(&doc);
        }
        for (int b = 0; b < POSITION_BUCKETS; b++) near += fabs(asked[b]);
        check(status == 0 && all_right == cases[i].right && all_asked == 12 && near == 0,
            "evaluation: recall counts an answer whose every token was the likeliest",
            "%d tokens late, token %d missed: %g of %g facts, expected %g; %g in another bucket %s",
            cases[i].late, cases[i].missed, all_right, all_asked, cases[i].right, near,
            status ? gpt2_sp_error(g) : "");
    }
    gpt2_sp_destroy(g);
}

// Of equally likely tokens the first counts.
static void generated_ties(void) {
    const real logits[5] = {1, 3, 0, 3, 3};
    Candidate candidates[5];
    const gpt2_sp_sampling hows[] = {
        drawing(0, 0, 1, 1), drawing(1, 1, 1, 1), drawing(1, 0, 0, 1), drawing(1, 2, 0.5, 1)};
    int right = 0;
    for (int i = 0; i < 4; i++) right += token_drawn(logits, 5, &hows[i], 0.4, candidates) == 1;
    right += token_drawn(logits, 5, &hows[3], 0.999, candidates) == 1;
    check(right == 5, "sampling: of equally likely tokens the first counts", "%d of 5 ways to draw", right);
}

// Sampling has as many threads as its trainer has scratch memory for, whatever the caller's are set to.
static int decoder_threads;
static void* decoder_open_counted(gpt2_sp* g, int64_t capacity) {
    decoder_threads = thread_count();
    return decoder_open(g, capacity);
}
static void generated_threads(void) {
    gpt2_sp_options o = options_of("layers=1 heads=2 channels=32 seq-len=40 threads=2");
    gpt2_sp* g = bare_trainer(&o, CACHED_VOCAB);
    if (!g) return;
    const int32_t prompt[1] = {3};
    int32_t out[4];
    Device device = *g->device;
    device.decoder_open = decoder_open_counted;
    g->device = &device, g->eot = -1;
#ifdef _OPENMP
    const int before = omp_get_max_threads();
    omp_set_num_threads(5);
#endif
    int64_t made = generated(g, prompt, 1, out, 4, 1, 0, 1, 1);
    check(made == 4 && decoder_threads == g->mesh.threads, "sampling: has the trainer's number of threads",
        "the caller's are 5, the trainer's %d: %d", g->mesh.threads, decoder_threads);
    g->device = &CPU_DEVICE;
    gpt2_sp_destroy(g);
#ifdef _OPENMP
    omp_set_num_threads(before);
#endif
}

static void test_generated(void) {
    generated_threads();
    generated_ties();
    generated_by_pass();
    recall_counts();
    recall_split();
}

// ===== import ===================================================================================
// Model folders from elsewhere. Held: what is no GPT-2 of this program's kind, or of another shape than it
// says, is refused by the name of what differs; what is the same under another name is taken. A model that is
// read with another activation or another epsilon trains on, a little worse, for ever.

// Writes a model of one layer, one head, 8 channels and 16 positions. Tensor `odd` has another shape: one row
// more (by 1), one column more (by 2); is left out (3) or comes twice under another name (4).
static int import_write(const char* folder, const char* prefix, int odd, int how) {
    Shape s = {1, 1, 8, 8, 257, 384, 16, 1, 16};
    st_header header;
    char error[512], path[GPT2_SP_TEXT + 32];
    unsigned char* bytes = NULL;
    size_t size = 0;
    uint64_t data = 0;
    int status = 0;
    st_header_init(&header);
    for (int id = 0; id < PARAMETER_COUNT; id++) {
        Parameter p = parameter(&s, id);
        char name[ST_NAME_MAX];
        uint64_t rows = id == P_wte ? 257 : (uint64_t)p.rows, columns = (uint64_t)p.columns,
                 shape[2] = {rows, columns};
        if (p.transposed) shape[0] = columns, shape[1] = rows;
        if (id == odd && how == 3) continue;
        if (id == odd && how <= 2) shape[how - 1]++;
        if (id == odd && how == 5) columns = shape[1] = 2;   // a vector becomes a matrix
        tensor_name(name, sizeof name, prefix, &p, 1);
        for (int twice = 0; twice <= (id == odd && how == 4); twice++) {
            if (twice) strcat(name, "2");
            status |= st_header_add(&header, name, REAL_DTYPE, columns ? 2 : 1, shape, error, sizeof error);
            data += shape[0] * (columns ? shape[1] : 1) * sizeof(real);
        }
    }
    status |= st_header_finish(&header, "{\"format\":\"pt\"}", &bytes, &size, error, sizeof error);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FILE* f = fopen(path, "w");
    if (f) fwrite(bytes, 1, size, f);
    for (uint64_t i = 0; f && i < data; i++) fputc(0, f);
    status |= !f || fclose(f) != 0;
    free(bytes);
    st_header_free(&header);
    return status;
}

// Writes config.json of such a model, in which `part` is replaced by `other`.
static void import_config(const char* folder, const char* part, const char* other) {
    static const char* const text =
        "{\"model_type\": \"gpt2\", \"n_layer\": 1, \"n_head\": 1, \"n_embd\": 8, \"n_positions\": 16, "
        "\"vocab_size\": 257, \"activation_function\": \"gelu_new\", \"layer_norm_epsilon\": 1e-05, "
        "\"tie_word_embeddings\": true, \"scale_attn_weights\": true, "
        "\"scale_attn_by_inverse_layer_idx\": false, \"eos_token_id\": 256}";
    char path[GPT2_SP_TEXT + 32];
    const char* at = strstr(text, part);
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE* f = fopen(path, "w");
    if (f && at) fprintf(f, "%.*s%s%s", (int)(at - text), text, other, at + strlen(part));
    if (!f || !at || fclose(f) != 0) check(0, "a test's config.json is written", "%s", part);
}

static const struct {
    const char *part, *other, *message;   // NULL: it is taken
} CONFIGS[] = {{"gpt2", "gpt2", NULL}, {"gelu_new", "gelu_pytorch_tanh", NULL}, {"1e-05", "0.00001", NULL},
    {"\"activation_function\": \"gelu_new\", ", "", NULL}, {"\"layer_norm_epsilon\": 1e-05, ", "", NULL},
    {"\"tie_word_embeddings\": true, ", "", NULL}, {", \"eos_token_id\": 256", "", NULL},
    {"\"model_type\": \"gpt2\", ", "", "model_type"}, {"gpt2", "gpt_neo", "model_type `gpt_neo`"},
    {"gpt2", "gpt2_sp_rmsnorm", "--center"}, {"gelu_new", "relu", "expected activation_function `gelu_new`"},
    {"gelu_new", "gelu", "expected activation_function `gelu_new`"},
    {"1e-05", "1e-06", "expected layer_norm_epsilon 1e-05"},
    {"1e-05", "1.01e-05", "expected layer_norm_epsilon 1e-05"},
    {"true", "false", "tie_word_embeddings must be true"},
    {"weights\": true", "weights\": false", "scale_attn_weights must be true"},
    {"idx\": false", "idx\": true", "scale_attn_by_inverse_layer_idx must be false"},
    {"257", "0", "vocab_size"}, {"257", "1048577", "vocab_size 1048577"}, {"257", "256", "eos_token_id 256"},
    {"n_layer\": 1", "n_layer\": 0", "layer"}, {"n_embd\": 8", "n_embd\": 65537", "n_embd"},
    {"n_layer\": 1", "n_layer\": 2", "--layers 1: the model"},
    {"n_embd\": 8", "n_embd\": 16", "--channels 8: the model"},
    {"n_head\": 1", "n_head\": 2", "--heads 1: the model"}, {"n_head\": 1", "n_head\": 0", "n_head 0"},
    {"\"n_positions\": 16, ", "", "n_positions"}, {"256}", "257}", "eos_token_id 257"}};

static void import_configs(const char* folder, gpt2_sp_options* o) {
    int right = 0, count = (int)(sizeof CONFIGS / sizeof CONFIGS[0]);
    for (int i = 0; i < count; i++) {
        char error[GPT2_SP_TEXT] = "";
        import_config(folder, CONFIGS[i].part, CONFIGS[i].other);
        gpt2_sp* g = trainer_of(o, error, sizeof error);
        int good = CONFIGS[i].message ? !g && strstr(error, CONFIGS[i].message) != NULL : g != NULL;
        if (!good)
            printf("     `%s` for `%s`: %s\n", CONFIGS[i].other, CONFIGS[i].part, g ? "accepted" : error);
        right += good;
        gpt2_sp_destroy(g);
    }
    check(right == count, "import: a model folder of another kind is refused by what differs",
        "%d of %d, those that only write it otherwise are taken", right, count);
}

static void import_tensors(const char* folder, gpt2_sp_options* o) {
    int right = 0, tried = 0;
    import_config(folder, "gpt2", "gpt2");
    for (int id = 0; id < PARAMETER_COUNT; id++)
        for (int how = 1; how <= 5; how++) {
            Shape s = {1, 1, 8, 8, 257, 384, 16, 1, 16};
            Parameter p = parameter(&s, id);
            char error[GPT2_SP_TEXT] = "", name[ST_NAME_MAX];
            if ((how == 2 && p.columns == 0) || (how == 5 && p.columns > 0)) continue;
            tensor_name(name, sizeof name, "", &p, 1);
            const char* part = how <= 2 || how == 5 ? name
                : how == 3                          ? "15 tensors, expected the 16"
                                                    : "17 tensors, expected the 16";
            tried++;
            int written = import_write(folder, "transformer.", id, how) == 0;
            gpt2_sp* g = trainer_of(o, error, sizeof error);
            int good = written && !g && strstr(error, part) != NULL;
            if (!good) printf("     %s, %d: %s\n", name, how, g ? "accepted" : error);
            right += good;
            gpt2_sp_destroy(g);
        }
    check(right == tried, "import: tensors of another shape or number are refused",
        "a row more, a column more, missing, one too many: %d of %d", right, tried);
}

// The hub's files have no prefix before their names.
static void import_names(const char* folder, gpt2_sp_options* o) {
    static const char* const prefixes[] = {"transformer.", "", "model."};
    int taken[3] = {0};
    for (int i = 0; i < 3; i++) {
        char error[GPT2_SP_TEXT];
        if (import_write(folder, prefixes[i], -1, 0) != 0) continue;
        gpt2_sp* g = trainer_of(o, error, sizeof error);
        taken[i] = g != NULL;
        gpt2_sp_destroy(g);
    }
    check(taken[0] && taken[1] && !taken[2],
        "import: names with and without the prefix are known, others not",
        "`transformer.` %d, none %d, `model.` %d", taken[0], taken[1], taken[2]);
}

// A checkpoint that is named by hand is checked like one that is found.
static void import_damaged(void) {
    gpt2_sp_options o = tiny_run("damaged"), p = run_options(TINY);
    char error[GPT2_SP_TEXT] = "", path[600], said[GPT2_SP_TEXT];
    snprintf(p.init_from, sizeof p.init_from, "%.900s/step_00000003", o.out);
    snprintf(path, sizeof path, "%.500s/step_00000003/model.safetensors", o.out);
    file_flip(path, file_length(path) - 9, 1);
    gpt2_sp* g = trainer_of(&p, error, sizeof error);
    int sampled = command("sample --from %s --length 2", p.init_from);
    snprintf(said, sizeof said, "%.900s", command_out);
    check(!g && strstr(error, "model.safetensors: CRC") && sampled == -1 &&
            strstr(said, "model.safetensors: CRC"),
        "import: a damaged checkpoint named by hand is refused", "--init-from: %s", g ? "accepted" : error);
    gpt2_sp_destroy(g);
}

static void test_import(void) {
    gpt2_sp_options o = run_options(TINY);
    snprintf(o.init_from, sizeof o.init_from, "%s", scratch("import"));
    mkdir(o.init_from, 0777);
    if (import_write(o.init_from, "transformer.", -1, 0) != 0)
        check(0, "a test's model is written", "%s", o.init_from);
    import_configs(o.init_from, &o);
    import_tensors(o.init_from, &o);
    import_names(o.init_from, &o);
    import_damaged();
}

// ===== told =====================================================================================
// What single commands and files must be told. Held: what does not fit together is refused with what differs,
// a newer format is named as that, and figures that a command prints are those of its files.

// Does the command end with -1 and a line that holds `part`?
static int told_by(const char* line, const char* part) {
    int status = command("%s", line);
    if (status == -1 && command_said(part)) return 1;
    printf("     %s: %s (expected: %s)\n", line, command_out, part);
    return 0;
}

static void told_refusals(const char* shard, const char* run, const char* numbers) {
    static const struct {
        const char *format, *part;   // of the shard, of the run, of the run of token numbers
    } cases[] = {{"train --data %1$s --save-every 5", "--save-every 5 needs --out"},
        {"train --data %1$s --val-every 5", "--val-every 5 needs --val-data"},
        {"train --data %1$s --val-data %1$s --patience 5", "--patience 5 needs --val-every"},
        {"train --data %1$s --freeze h.9.* --layers 1 --heads 1 --channels 8 --seq-len 16",
            "--freeze h.9.*: no parameter"},
        {"eval --from %2$s:best --data %1$s", "was not validated"},
        {"train --data %1$s --seq-len 1m --layers 1 --heads 1 --channels 8 --threads 1",
            "one sequence needs"},
        {"train --data %1$s --vocab 100 --layers 1 --heads 1 --channels 8 --seq-len 16",
            "has a vocabulary of 257"},
        {"train --data %1$s --verify 1 --layers 1 --heads 1 --channels 8 --seq-len 16",
            "--verify: only the GPU"},
        {"eval --from %2$s --data %1$s --seq-len 17", "--seq-len 17: the model's context is 16"},
        {"sample --from %2$s --prompt-tokens 1,257", "257 is no token"},
        {"sample --from %2$s --prompt-tokens 12x", "expected token numbers"},
        {"sample --from %2$s --prompt-tokens 1+2", "expected token numbers"},
        {"sample --from %3$s --prompt It", "give --prompt-tokens"}};
    int told = 0, count = (int)(sizeof cases / sizeof cases[0]);
    for (int i = 0; i < count; i++) {
        char line[2048];
        snprintf(line, sizeof line, cases[i].format, shard, run, numbers);
        told += told_by(line, cases[i].part);
    }
    check(told == count, "told: what does not fit together is refused", "%d of %d", told, count);
    command("plan --layers 4 --heads 4 --channels 256 --vocab 257 --seq-len 4096 --sp 4 --memory-gb 0.01 "
            "--gflops 1 "
            "--link-gbs 1 --copy-gbs 1");
    check(command_said("no split fits"), "told: that no split of the ranks fits", "%.40s", command_out);
}

// Figures of files that commands print.
static void told_figures(const char* run) {
    char text[512], shard[512], line[64];
    snprintf(text, sizeof text, "%s", scratch("told.txt"));
    snprintf(shard, sizeof shard, "%s", scratch("told.tok"));
    FILE* f = fopen(text, "w");
    for (int i = 0; f && i < 100; i++) fprintf(f, "caf\303\251 %d\n", i % 10);   // 8 bytes each
    if (f) fclose(f);
    int prepared = command("prepare --out %s %s", shard, text) == 0 &&
        command_said("1 documents, 801 tokens, 800 bytes of");
    int status =
        command("eval --from %s --data %s --seq-len 8 --val-sequences 2 --json --threads 1", run, shard);
    double loss = 0, bits = 0, tokens = 0;
    json_get_double(command_out, strlen(command_out), "loss", &loss);
    json_get_double(command_out, strlen(command_out), "bits_per_byte", &bits);
    json_get_double(command_out, strlen(command_out), "tokens", &tokens);
    check(prepared && status == 0 && tokens == 16 && fabs(bits - loss / log(2)) < 1e-6 * bits,
        "told: the loss of so many tokens, in bits per byte", "%g tokens, loss %g, %g bits", tokens, loss,
        bits);
    snprintf(text, sizeof text, "%s", scratch("told.jsonl"));
    f = fopen(text, "w");
    for (int i = 0; f && i < 20; i++) fprintf(f, "{\"prompt\": \"abcd\", \"completion\": \"efghij\"}\n");
    if (f) fclose(f);
    command("prepare --out %s %s", shard, text);
    status = command("eval --from %s --data %s --json --threads 1", run, shard);
    json_get_double(command_out, strlen(command_out), "loss", &loss);
    json_get_double(command_out, strlen(command_out), "bits_per_byte", &bits);
    json_get_double(command_out, strlen(command_out), "tokens", &tokens);
    check(status == 0 && tokens == 140 && fabs(bits - 140 * loss / log(2) / 120) < 1e-6 * bits,
        "told: bits per byte are of the text that is learnt", "%g tokens, loss %g, %g bits", tokens, loss,
        bits);
    int begun = command("sample --from %s --prompt= --length 1 --temperature 0 --threads 1", run) == 0;
    check(begun && !command_said("endoftext"), "told: the end of the document before is not printed", "%.20s",
        command_out);
    int made = command("sample --from %s --prompt-tokens 1,2 --length 100 --temperature 0 --threads 1", run);
    double limit = 0;
    command("plan --memory-gb 2 --layers 1 --gflops 1 --link-gbs 1 --copy-gbs 1 --json");
    json_get_double(command_out, strlen(command_out), "memory_limit_bytes", &limit);
    json_number(line, sizeof line, NAN);
    check(made == 0 && limit == 2147483648.0 && strcmp(line, "null") == 0,
        "told: as much as the context holds, GiB, and null for what is no number", "%d, %.0f bytes, %s", made,
        limit, line);
    const int distances[5] = {name_distance("abcd", "abc"), name_distance("abc", "abcd"),
        name_distance("abc", "abd"), name_distance("", "abc"), name_distance("kitten", "sitting")};
    check(
        distances[0] == 1 && distances[1] == 1 && distances[2] == 1 && distances[3] == 3 && distances[4] == 3,
        "told: edits between names are counted", "%d %d %d %d %d", distances[0], distances[1], distances[2],
        distances[3], distances[4]);
}

// Data whose documents have one token each has no label inside them; a model with another end token.
static void told_data(const char* shard) {
    char path[512], line[2048], folder[512];
    tok_writer w;
    char error[256] = "";
    snprintf(path, sizeof path, "%s", scratch("ends.tok"));
    int status = tok_writer_open(&w, path, TOK_BYTE, 257, 256, 64, error, sizeof error);
    for (int i = 0; i < 100 && status == 0; i++) status = tok_writer_end_document(&w, 0, error, sizeof error);
    if (status == 0) status = tok_writer_finish(&w, error, sizeof error);
    snprintf(line, sizeof line, "train --data %s --doc-mask 1 --layers 1 --heads 1 --channels 8 --seq-len 16",
        path);
    int told = status == 0 && told_by(line, "nothing to learn");
    snprintf(folder, sizeof folder, "%s", scratch("other_end"));
    mkdir(folder, 0777);
    import_config(folder, "256}", "5}");
    if (import_write(folder, "", -1, 0) == 0) {
        snprintf(line, sizeof line, "eval --from %s --data %s", folder, shard);
        told += told_by(line, "another tokenizer");
    }
    check(told == 2, "told: data without a label, and of another tokenizer", "%d of 2", told);
}

// Replaces a part of a file of a checkpoint by one of the same length, and seals the manifest again.
static int checkpoint_edit(const char* folder, const char* name, const char* part, const char* other) {
    char path[600], sum[16];
    size_t size;
    Error e = {0, {0}};
    snprintf(path, sizeof path, "%.500s/%s", folder, name);
    char* text = file_read_text(path, 65536, &size, &e);
    char* at = text ? strstr(text, part) : NULL;
    if (!at) return -1;
    memcpy(at, other, strlen(other));
    test_data_write(path, text, size);
    if (strcmp(name, "manifest.txt") != 0) {   // its line there: name, bytes, CRC
        snprintf(sum, sizeof sum, "%08x", (unsigned)crc32(0, (const unsigned char*)text, (unsigned)size));
        free(text);
        snprintf(path, sizeof path, "%.500s/manifest.txt", folder);
        text = file_read_text(path, 65536, &size, &e);
        char* line = text ? strstr(text, name) : NULL;
        if (!line) return -1;
        memcpy(line + strcspn(line, "\n") - 8, sum, 8);
    }
    char* seal = strstr(text, "\ncrc ") + 1;
    snprintf(
        sum, sizeof sum, "%08x", (unsigned)crc32(0, (const unsigned char*)text, (unsigned)(seal - text)));
    memcpy(seal + 4, sum, 8);
    test_data_write(path, text, size);
    free(text);
    return 0;
}

static void told_formats(void) {
    static const struct {
        const char *file, *part, *other, *message;
    } cases[] = {{"manifest.txt", "checkpoint 1", "checkpoint 2", "version 2, made by a newer version"},
        {"state.json", "\"version\": 1", "\"version\": 2", "version 2, made by a newer version"},
        {"state.json", "\"version\": 1", "\"version\": 1", NULL}};
    int right = 0;
    for (int i = 0; i < 3; i++) {
        gpt2_sp_options o = tiny_run("formats");
        char error[GPT2_SP_TEXT] = "", folder[600], said[4096];
        for (int step = 1; step <= 2; step++) {
            snprintf(folder, sizeof folder, "%.500s/step_%08d", o.out, step);
            remove_tree(folder);
        }
        snprintf(folder, sizeof folder, "%.500s/step_00000003", o.out);
        int edited = checkpoint_edit(folder, cases[i].file, cases[i].part, cases[i].other);
        stderr_hide();
        gpt2_sp* g = trainer_of(&o, error, sizeof error);
        stderr_show(said, sizeof said);
        int good =
            edited == 0 && (cases[i].message ? !g && strstr(error, cases[i].message) != NULL : g != NULL);
        if (!good) printf("     %s: %s\n", cases[i].file, g ? "accepted" : error);
        right += good;
        gpt2_sp_destroy(g);
    }
    check(right == 3, "told: a newer format is refused as one", "%d of 3 checkpoints", right);
}

// A save between a validation and a step changes no number, though it brings all units together.
static void told_saved(void) {
    double losses[2] = {0, 1};
    for (int saves = 0; saves < 2; saves++) {
        gpt2_sp_options o = run_options("batch-size=1 dp=2 sp=2 zero=3 seq-len=60");
        char error[GPT2_SP_TEXT];
        gpt2_sp_stats stats = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
        double loss;
        snprintf(o.out, sizeof o.out, "%s", scratch("saved"));
        remove_tree(o.out);
        snprintf(o.val_data, sizeof o.val_data, "%s", o.data);
        gpt2_sp* g = trainer_of(&o, error, sizeof error);
        int status = g ? step_of(g, &stats) : -1;
        if (status == 0) status = gpt2_sp_validate(g, 2, &loss);
        if (status == 0 && saves) status = gpt2_sp_save(g);
        if (status == 0) status = step_of(g, &stats);
        if (status == 0) status = gpt2_sp_validate(g, 2, &losses[saves]);
        if (status != 0) printf("     %s\n", g ? gpt2_sp_error(g) : error);
        gpt2_sp_destroy(g);
    }
    check(losses[0] == losses[1], "told: a save changes no number of the run", "%.9g and %.9g", losses[0],
        losses[1]);
}

// A manifest that says the same in other letters has another CRC than it names.
static void told_seal(void) {
    char folder[600], path[700], text[4096];
    Error e = {0, {0}};
    snprintf(folder, sizeof folder, "%.500s/step_00000001", scratch("saved"));
    snprintf(path, sizeof path, "%s/manifest.txt", folder);
    int whole = checkpoint_verify(folder, &e) == 0;
    FILE* f = fopen(path, "r+");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    text[n] = 0;
    const char* space = strchr(text, '\n') ? strchr(strchr(text, '\n'), ' ') : NULL;   // behind a file's name
    if (space) {
        rewind(f);
        fprintf(f, "%.*s %s", (int)(space - text), text, space);
    }
    if (f) fclose(f);
    int status = checkpoint_verify(folder, &e);
    check(whole && space && status == -1 && strstr(e.text, "its own CRC"),
        "told: a manifest's own CRC is compared", "%d, %.60s", whole, e.text);
}

// A block that is damaged leaves the cursor without one: the block before is read again, not taken from it.
static void told_blocks(void) {
    char path[512], error[256] = "";
    tok_writer w;
    tok_shard s;
    tok_cursor c;
    int32_t tokens[64], out[16] = {0};
    memset(&c, 0, sizeof c);
    snprintf(path, sizeof path, "%s", scratch("blocks.tok"));
    for (int i = 0; i < 64; i++) tokens[i] = i < 24 ? 100 + i : (int32_t)dice(97, (uint64_t)i, 256);
    for (int i = 16; i < 20; i++) tokens[i] = i - 16;   // block 1 begins with tokens of a smaller vocabulary
    int status = tok_writer_open(&w, path, TOK_BYTE, 257, 256, 16, error, sizeof error);
    if (status == 0) status = tok_writer_add(&w, tokens, 64, error, sizeof error);
    if (status == 0) status = tok_writer_end_document(&w, 64, error, sizeof error);
    if (status == 0) status = tok_writer_finish(&w, error, sizeof error);
    if (status == 0) status = tok_open(&s, path, TOK_FORMAT_AUTO, error, sizeof error);
    if (status != 0) {
        check(0, "a test's shard is written", "%s", error);
        return;
    }
    long at = (long)s.block[1].offset + 3;
    int first = tok_read(&s, &c, 0, 16, out, error, sizeof error);
    s.vocab_size = 100;
    int beyond = tok_read(&s, &c, 16, 16, out, error, sizeof error);
    s.vocab_size = 257;
    first |= tok_read(&s, &c, 0, 16, out, error, sizeof error);
    check(first == 0 && beyond == -1 && memcmp(out, tokens, sizeof out) == 0,
        "told: a block that was read in part is read again", "%d, %d", first, beyond);
    file_flip(path, at, 1);
    int damaged = tok_read(&s, &c, 16, 16, out, error, sizeof error);
    memset(out, 0, sizeof out);
    int again = tok_read(&s, &c, 0, 16, out, error, sizeof error);
    check(first == 0 && damaged == -1 && again == 0 && memcmp(out, tokens, sizeof out) == 0,
        "told: what was not read is not taken for a block", "%d, %d, %d", first, damaged, again);
    tok_cursor_free(&c);
    tok_close(&s);
    unsigned char h[NET_HEADER];
    net_frame frame = {NULL, FRAME_TEXT, 0, 1, 3, 4, 4, NULL}, back;
    net_frame_encode(h, &frame);
    int whole = net_frame_decode(&back, h);
    net_put(h, 12345, 4), net_put(h + NET_HEADER - 4, crc32(0, h, NET_HEADER - 4), 4);
    check(whole == 0 && net_frame_decode(&back, h) == -1, "told: a frame has its magic number", "%d", whole);
}

// Two ranks share a machine: what would fit each is told, not what would fit one alone.
static void told_memory(void) {
    gpt2_sp_options o =
        options_of("layers=2 heads=1 channels=64 seq-len=5000 batch-size=60000 sp=2 threads=1");
    gpt2_sp* g = trainer_new(&o);
    Error e = {0, {0}};
    const uint64_t machine = (uint64_t)1 << 28;
    char part[64];
    memory_refuse(g, 257, 1, 2, 2 * machine, machine, &e);
    snprintf(part, sizeof part, "the largest batch is %lld",
        (long long)largest_fit(&o, 1, 257, 1, &CPU_DEVICE, machine / 2));
    check(strstr(e.text, part) != NULL, "told: what would fit a rank of two", "%s", e.text);
    gpt2_sp_destroy(g);
}

// A process whose run was aborted between two jobs is not ended by its watch, one that hangs in a job is.
static void told_watch(void) {
    int ends[2], status = 0;
    char said[1024] = "";
    fflush(stdout);
    pid_t child = pipe(ends) == 0 ? fork() : -1;
    if (child == 0) {
        gpt2_sp_options o = options_of("");
        gpt2_sp* g = trainer_new(&o);
        Watch watch;
        const struct timespec between = {1, 200000000}, hanging = {5, 0};
        dup2(ends[1], STDERR_FILENO);
        if (!g || world_open(&g->world, 300, &g->error) != 0) _exit(3);
        g->mesh.world = 2;
        g->world.aborted = 1;
        snprintf(g->world.reason.text, sizeof g->world.reason.text, "the disk is full");
        watch_start(&watch, g);
        nanosleep(&between, NULL);
        if (write(STDERR_FILENO, "lives. ", 7) != 7) _exit(4);
        pthread_mutex_lock(&g->world.mutex);
        g->world.working = 1;
        pthread_mutex_unlock(&g->world.mutex);
        nanosleep(&hanging, NULL);
        _exit(5);
    }
    close(ends[1]);
    for (size_t n = 0; n + 1 < sizeof said;) {
        ssize_t got = read(ends[0], said + n, sizeof said - 1 - n);
        if (got <= 0) break;
        n += (size_t)got, said[n] = 0;
    }
    close(ends[0]);
    waitpid(child, &status, 0);
    said[strcspn(said, "\n")] = 0;
    check(strncmp(said, "lives. ", 7) == 0 && strstr(said, "the disk is full; a rank of process 0") &&
            WIFEXITED(status) && WEXITSTATUS(status) == 1,
        "told: the watch counts while a job runs, and then ends what hangs", "status %d: %s",
        WIFEXITED(status) ? WEXITSTATUS(status) : -1, said);
}

// A log byte by byte, as log_scan's comment has it: the oracle of a reader by blocks.
static void log_by_bytes(const char* log, size_t size, LogScan* scan, char* good, char* rest) {
    size_t n = 0;   // of the piece before byte i
    int longer = 0, last = '\n';
    memset(scan, 0, sizeof *scan);
    *good = *rest = 0;
    for (size_t i = 0; i <= size; i++) {
        const int end = i == size, c = end ? -1 : log[i];
        const char* piece = log + i - n;
        char** to = &rest;
        if (last == 0 && c != 0) *rest++ = '\n';
        if (end || c == 0 || c == '\n' || n == 4096) {
            int line = (end || c == 0 || c == '\n') && !longer && n > 0 && *piece == '{' &&
                json_validate(piece, n, 8, NULL) == 0;
            if (line) to = &good, scan->lines++;
            else if (n > 0) scan->unreadable++, scan->bytes += (int64_t)n;
            memcpy(*to, piece, n), *to += n;
            if (n > 0) *(*to)++ = '\n';
            longer = n == 4096 && !(end || c == 0 || c == '\n');
            n = 0;
        }
        if (c == 0) scan->unreadable += last != 0, scan->bytes++, *rest++ = 0;
        else if (!end && c != '\n') n++;
        if (!end) last = c;
    }
    scan->ended = last == '\n';
    *good = *rest = 1;   // their ends
}

// Logs of whole lines, halves, NULs and lines of any length, across the blocks in which they are read.
static void told_logs(void) {
    enum { ROUNDS = 60, MOST = 1 << 19 };
    static const int longs[] = {4095, 4096, 4097, 8192, 8193, 65535, 65536, 65537, 140000};
    char *log = (char*)need(MOST, 1), *want[2] = {(char*)need(2 * MOST, 1), (char*)need(2 * MOST, 1)},
         path[600];
    int right = 0;
    for (int round = 0; round < ROUNDS; round++) {
        size_t n = 0, length[2];
        for (uint64_t k = 0; n < MOST / 2 && k < 40; k++) {
            const uint64_t roll = dice(70, 1000 * (uint64_t)round + k, 8);
            const size_t run = roll < 3 ? (size_t)dice(71, 1000 * (uint64_t)round + k, 30) + 1
                                        : (size_t)longs[dice(72, 1000 * (uint64_t)round + k, 9)];
            if (roll % 4 == 0) memset(log + n, 0, run), n += run;
            else if (roll % 4 == 1) memset(log + n, 'x', run), n += run;
            else if (roll % 4 == 2)
                n += (size_t)sprintf(log + n, "{\"step\": %d, \"pad\": \"%0*d\"}", 7, (int)run % 5000, 1);
            if (roll == 5) n += (size_t)sprintf(log + n, "{\"step\": 3}");   // no line: it does not begin one
            if (roll != 0) log[n++] = '\n';
            if (roll == 7) n += (size_t)sprintf(log + n, "{\"step\": 1}");
        }
        LogScan expected, found;
        memset(want[0], 2, 2 * MOST), memset(want[1], 2, 2 * MOST);
        log_by_bytes(log, n, &expected, want[0], want[1]);
        for (int i = 0; i < 2; i++)
            for (length[i] = 2 * MOST - 1; want[i][length[i]] != 1;) length[i]--;
        FILE *f = fopen(scratch("log.in"), "w+"), *out[2] = {fopen(scratch("log.good"), "w+"), NULL};
        snprintf(path, sizeof path, "%s", scratch("log.rest"));
        remove(path);
        out[1] = fopen(path, "a+");   // as a run's is opened
        if (!f || !out[0] || !out[1] || fwrite(log, 1, n, f) != n) break;
        int same = log_scan(f, &found, out[0], out[1]) == 0 && memcmp(&found, &expected, sizeof found) == 0;
        for (int i = 0; i < 2; i++) {
            fflush(out[i]), rewind(out[i]);
            same &= fread(log, 1, MOST, out[i]) == length[i] && memcmp(log, want[i], length[i]) == 0;
            fclose(out[i]);
        }
        fclose(f);
        right += same;
        if (!same)
            printf("     round %d: %lld lines (%lld)\n", round, (long long)found.lines,
                (long long)expected.lines);
    }
    check(right == ROUNDS, "told: a log read by blocks is the one read by bytes", "%d of %d logs", right,
        ROUNDS);
    for (int i = 0; i < 2; i++) free(want[i]);
    free(log);
}

// A crash that left a log with 256 MB of NULs: as little is read as there is on the disk.
static void told_sparse_log(void) {
    LogScan scan = {0, 0, 0, 0};
    struct stat info;
    memset(&info, 0, sizeof info);
    FILE *f = fopen(scratch("log.in"), "w+"), *rest;
    remove(scratch("log.rest"));
    rest = fopen(scratch("log.rest"), "a+");
    int made = f && rest && fputs("{}\n", f) >= 0 && fflush(f) == 0 && ftruncate(fileno(f), 1 << 28) == 0;
    const clock_t start = clock();
    int status = made ? log_scan(f, &scan, NULL, rest) : -1;
    const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    if (status == 0 && fflush(rest) == 0) status = fstat(fileno(rest), &info);
    check(status == 0 && scan.lines == 1 && scan.bytes == (1 << 28) - 3 && info.st_size == (1 << 28) - 2 &&
            info.st_blocks < 1000 && seconds < 0.2,
        "told: a hole of a log is neither read nor written", "%.2f s of a processor, %lld KB on the disk",
        seconds, (long long)info.st_blocks / 2);
    if (f) fclose(f);
    if (rest) fclose(rest);
    remove(scratch("log.in")), remove(scratch("log.rest"));
}

// Runs that go on with other options than those they were saved with: what happens to the learning rate.
static void told_rates(const char* shard) {
    static const struct {
        int saved, steps;       // a checkpoint at step 4 of a run of so many steps goes on to step `steps`
        const char* schedule;   // of the learning rate
        const char* part;       // of the warning; NULL: there is none
    } cases[] = {
        {4, 8, "linear", "the run was finished: its learning rate had come to 3.00e-05, and jumps to"},
        {8, 16, "linear", "the learning rate of step 5 is"}, {8, 8, "linear", NULL},
        {4, 8, "constant", NULL}};
    int right = 0;
    for (int i = 0; i < 4; i++) {
        char out[512], line[600];
        const char* shape =
            "--layers 1 --heads 1 --channels 8 --seq-len 16 --threads 1 --warmup 0 --save-every 4";
        snprintf(out, sizeof out, "%s", scratch("rates"));
        remove_tree(out);
        command("train --data %s %s --lr-schedule %s --out %s --steps %d", shard, shape, cases[i].schedule,
            out, cases[i].saved);
        snprintf(line, sizeof line, "%s/step_00000008", out);
        remove_tree(line);
        int status = command("train --data %s %s --lr-schedule %s --out %s --steps %d", shard, shape,
            cases[i].schedule, out, cases[i].steps);
        int good = status == 0 && command_said("(resumed)") &&
            (cases[i].part ? command_said(cases[i].part) : !command_said("warning"));
        if (!good) printf("     %d: %s\n", i, command_out);
        right += good;
    }
    check(
        right == 4, "told: a run that goes on tells where its learning rate does not", "%d of 4 runs", right);
}

// A run that goes on: options that are others now are named; the model that it began with cannot be another.
static void told_goes_on(const char* shard) {
    char out[512], other[512], shape[600];
    snprintf(out, sizeof out, "%s", scratch("goes_on"));
    snprintf(other, sizeof other, "%s", scratch("goes_from"));
    snprintf(shape, sizeof shape, "--data %s --layers 1 --heads 1 --channels 8 --threads 1", shard);
    remove_tree(out), remove_tree(other);
    command("train %s --seq-len 16 --out %s --steps 1 --freeze wte.weight", shape, other);
    int named = command("train %s --seq-len 16 --out %s --steps 2 --threads 2", shape, other) == 0 &&
        command_said("changed   --steps 1 -> 2, --freeze wte.weight -> (none)\n");
    check(named, "told: a run that goes on names the options that changed", "%.200s", command_out);
    named = command("train %s --seq-len 16 --out %s --steps 2 --threads 1", shape, other) == 0 &&
        !command_said("changed ");
    int began =
        command("train %s --seq-len 24 --grow interp --init-from %s --out %s --steps 1", shape, other, out);
    int refused = 0, stays = 0;
    for (int i = 0; i < 2; i++) {
        char line[2048];
        snprintf(line, sizeof line, "train %s --seq-len 24 --out %s --steps 3 --grow %s --init-from %s",
            shape, out, i ? "tile" : "interp", i ? other : "none");
        refused += told_by(line, "goes on from its own checkpoint, and began from ");
    }
    stays = command("train %s --seq-len 24 --out %s --steps 2", shape, out) == 0 &&
        command("train %s --seq-len 24 --grow interp --init-from %s --out %s --steps 3", shape, other, out) ==
            0;
    check(named && began == 0 && refused == 2 && stays,
        "told: a run that goes on cannot begin with another model, and keeps the one it began with",
        "%d of 2 refused, kept: %d", refused, stays);
}

// --- writes that a signal breaks off ---

static int told_pipe[2];
static pthread_t told_writer;
static volatile size_t told_taken;              // bytes that came out of the pipe
static volatile sig_atomic_t told_wrong;        // one of them was not the next
static volatile sig_atomic_t told_is_written;   // nobody need break off anything any more

// Takes out what is in the pipe: byte i is i % 251.
static void told_drain(int number) {
    unsigned char bytes[512];
    int before = errno;
    (void)number;
    for (ssize_t n; (n = read(told_pipe[0], bytes, sizeof bytes)) > 0;)
        for (ssize_t i = 0; i < n; i++, told_taken++) told_wrong |= bytes[i] != told_taken % 251;
    errno = before;
}

// Breaks the writer's write off, now and again.
static void* told_break(void* unused) {
    while (!told_is_written) {
        usleep(2000);
        pthread_kill(told_writer, SIGUSR2);
    }
    return unused;
}

// A file that is a pipe, full at first: no write can take all, and a signal ends each.
static void told_writes(void) {
    enum { FULL = 4096, BYTES = 50000 };
    struct sigaction action, before;
    unsigned char* bytes = (unsigned char*)malloc(FULL + BYTES);
    OutFile* f = (OutFile*)calloc(1, sizeof *f);
    Error e = {0, {0}};
    pthread_t breaker;
    memset(&action, 0, sizeof action);
    action.sa_handler = told_drain;   // without SA_RESTART
    told_writer = pthread_self(), told_taken = 0;
    told_wrong = told_is_written = 0;
    for (size_t i = 0; i < FULL + BYTES; i++) bytes[i] = (unsigned char)(i % 251);
    int status = pipe2(told_pipe, O_CLOEXEC);
    if (status == 0) status = fcntl(told_pipe[1], F_SETPIPE_SZ, FULL) == FULL ? 0 : -1;
    if (status == 0) status = fcntl(told_pipe[0], F_SETFL, O_NONBLOCK);
    if (status == 0) status = write(told_pipe[1], bytes, FULL) == FULL ? 0 : -1;
    sigaction(SIGUSR2, &action, &before);
    if (status == 0) status = pthread_create(&breaker, NULL, told_break, NULL);
    f->fd = told_pipe[1];
    if (status == 0) {
        status = file_write(f, bytes + FULL, BYTES, &e) != 0 || file_flush(f, &e) != 0 ? -1 : 0;
        told_is_written = 1;
        pthread_join(breaker, NULL);
    }
    sigaction(SIGUSR2, &before, NULL);
    told_drain(0);
    check(status == 0 && told_taken == FULL + BYTES && !told_wrong,
        "told: a write that a signal breaks off goes on where it was", "%zu of %d bytes %s",
        (size_t)told_taken, FULL + BYTES, e.text);
    close(told_pipe[0]), close(told_pipe[1]);
    free(bytes);
    free(f);
    char path[512];
    snprintf(path, sizeof path, "%s", scratch("told.file"));
    FILE* file = fopen(path, "w");
    if (file) fclose(file);
    check(folder_make(path, &e) == -1 && strstr(e.text, "is not a folder"), "told: a file is no folder",
        "%.60s", e.text);
}

static void test_told(void) {
    gpt2_sp_options o = tiny_run("told");
    char shard[512], numbers[512];
    snprintf(numbers, sizeof numbers, "%s", scratch("numbers.u16"));
    FILE* raw = fopen(numbers, "wb");   // tokens of no tokenizer that is known
    for (int i = 0; raw && i < 400; i++) fputc(i % 250, raw), fputc(i % 2, raw);
    if (raw) fclose(raw);
    snprintf(shard, sizeof shard, "%s", numbers);
    snprintf(numbers, sizeof numbers, "%s", scratch("numbers"));
    command("train --data %s --raw-u16 1 --vocab 506 --layers 1 --heads 1 --channels 8 --seq-len 16 --steps "
            "1 --threads "
            "1 --out %s",
        shard, numbers);
    snprintf(shard, sizeof shard, "%s", run_data());
    told_refusals(shard, o.out, numbers);
    told_figures(o.out);
    told_data(shard);
    told_formats();
    told_saved();
    told_seal();
    told_blocks();
    told_memory();
    told_rates(shard);
    told_goes_on(shard);
    told_watch();
    told_logs();
    told_sparse_log();
    told_writes();
}
