/*
 * test_pipelines.h: the tables of pipelines, `schedule --pipeline`, part of test_gpt2_sp.c.
 *
 * Held: every kind is proved and has the closed forms of its papers, for p = 1 to 8, M = 1 to 4 (or p times
 * that), up to 16 slices and 3 chunks; tables with one fault are refused; the command prints what the table
 * has; a picture has a box for each op of the table, at its time; what does not go together is refused.
 */

// Whether the table that is asked for is proved, and its figures are those written out here.
static int pipeline_right(int kind, int p, int k, int M, int v) {
    Pipeline t;
    Error e = {0, {0}};
    int status = pipeline_build(&t, kind, p, k, M, v, &e), wrong = 0;
    if (status == 0) status = pipeline_prove(&t, &e);
    if (status != 0) {
        printf("     %s, p=%d, k=%d, M=%d, v=%d: %s\n", pipeline_name(kind), p, k, M, v, e.text);
        return 0;
    }
    PipelineCost cost = pipeline_cost(&t);
    double n = M * k, makespan = n + (double)(p - 1) / v;
    wrong += !(fabs(cost.makespan - makespan) < 1e-9) || !(fabs(cost.bubble - 1 + n / makespan) < 1e-9);
    wrong += !(fabs(cost.volume - (p > 1 ? 2.0 * v : 0)) < 1e-9) || !(fabs(cost.ideal - n) < 1e-9);
    for (int r = 0; r < p; r++) {
        const double held[] = {
            0, n, 1.0 * p - r, p + (p - 1.0 - 2 * r) / v, k + p - 1.0 - r, k + 2.0 * (p - 1 - r) / v};
        wrong += !(fabs((double)pipeline_most_held(&t, r) / v - fmin(n, held[kind])) < 1e-9);
    }
    wrong += t.wrap_buffers > 2 && p < 5;
    pipeline_free(&t);
    return wrong == 0;
}

static void pipelines_proved(void) {
    for (int kind = 1; kind < GPT2_SP_PIPELINES; kind++) {
        int good = 0, count = 0, chunked = pipeline_chunked(kind), sliced = pipeline_sliced(kind);
        for (int p = 1; p <= 8; p++)
            for (int m = 1; m <= 4; m++)
                for (int k = 1; k <= (sliced ? 16 : 1); k += quick ? 3 : 1)
                    for (int v = 1; v <= (chunked ? 3 : 1); v++) {
                        int M = kind == GPT2_SP_INTERLEAVED ? m * p : m;
                        if (kind == GPT2_SP_SLICES_INTERLEAVED && k % p != 0) continue;
                        good += pipeline_right(kind, p, k, M, v), count++;
                    }
        char name[96];
        snprintf(name, sizeof name, "pipelines: %s is proved, with its closed forms", pipeline_name(kind));
        check(good == count, name, "%d of %d tables", good, count);
    }
}

// --- tables with a fault ---

static void pipeline_swap(PipelineOp* a, PipelineOp* b) {
    PipelineOp kept = *a;
    *a = *b, *b = kept;
}

// Puts a fault into a table of four ranks; its name.
enum { PIPELINE_FAULTS = 11 };
static const char* pipeline_damage(Pipeline* t, int fault) {
    PipelineOp* op = t->ops;
    int backward = 0;   // the first of rank 0
    while (!op[backward].backward) backward++;
    switch (fault) {
    case 0:
        for (int i = 0; i < t->p * t->list; i++)
            if (op[i].backward) op[i].s = t->k - 1 - op[i].s, op[i].frees = op[i].s == 0;
        return "begins before its later slice's dK, dV";
    case 1: pipeline_list(t, t->p - 1, pipeline_warmup(t, t->p - 1) - 1); return "begins before its forward";
    case 2: pipeline_list(t, 0, pipeline_warmup(t, 0) - 1); return "holds";
    case 3:
        for (int i = 0; i < t->list; i++) op[i].frees = op[i].backward && op[i].s == t->k - 1;
        return "keys are not there";
    case 4:
        for (int i = 0; i < t->list; i++) op[i].frees = 0;
        return "never freed";
    case 5: op[backward] = op[backward - 1]; return "is there twice";
    case 6: pipeline_swap(&op[1], &op[2]); return "begins before its earlier keys";
    case 7: op[1].rank = 1; return "has not its stage";
    case 8:
        for (int i = 0; i < t->p * t->list; i++) op[i].slot = op[i].slot < 0 ? -1 : 0;
        return "overwrites a buffer";
    case 9: pipeline_swap(&op[0], &op[backward]); return "deadlock";
    default: op[backward].slot = -1; return "wrong buffer";
    }
}

// Slices 1F1B of four ranks with a fault: refused, each for what is wrong. Only chunks need a second buffer.
static void pipelines_faults(void) {
    int told = 0;
    for (int fault = 0; fault < PIPELINE_FAULTS; fault++) {
        Pipeline t;
        Error e = {0, {0}};
        int kind = fault == 8 ? GPT2_SP_SLICES_INTERLEAVED : GPT2_SP_SLICES;
        if (pipeline_build(&t, kind, 4, 4, 3, fault == 8 ? 2 : 1, &e) != 0) break;
        const char* part = pipeline_damage(&t, fault);
        if (pipeline_prove(&t, &e) != 0 && strstr(e.text, part)) told++;
        else printf("     fault %d: %s (expected: %s)\n", fault, e.text, part);
        pipeline_free(&t);
    }
    check(told == PIPELINE_FAULTS, "pipelines: a table with a fault is refused for it", "%d of %d faults",
        told, PIPELINE_FAULTS);
    // one warm-up forward less on every rank, in every kind that has one to spare
    int refused = 0, count = 0;
    for (int kind = GPT2_SP_1F1B; kind < GPT2_SP_PIPELINES; kind++)
        for (int p = 2; p <= 8; p++) {
            Pipeline t;
            Error e = {0, {0}};
            int k = pipeline_sliced(kind) ? 2 * p : 1;
            if (pipeline_build(&t, kind, p, k, 2 * p, pipeline_chunked(kind) ? 2 : 1, &e) != 0) break;
            for (int r = 0; r < p; r++)
                if (pipeline_warmup(&t, r) > 0) pipeline_list(&t, r, pipeline_warmup(&t, r) - 1);
            refused += pipeline_prove(&t, &e) != 0, count++;
            pipeline_free(&t);
        }
    check(refused == count && count == 28, "pipelines: one warm-up forward less is refused",
        "%d of %d tables", refused, count);
}

// --- the command ---

static void pipelines_command(void) {
    int status = command("schedule --pipeline slices --pp 4 --slices 8 --micro-batches 2 --json");
    Pipeline t;
    Error e = {0, {0}};
    char hash[64] = "";
    if (pipeline_build(&t, GPT2_SP_SLICES, 4, 8, 2, 1, &e) == 0) {
        snprintf(hash, sizeof hash, "\"hash\": \"%016llx\"", (unsigned long long)pipeline_hash(&t));
        pipeline_free(&t);
    }
    check(status == 0 && json_whole(command_out) &&
            command_said(
                "{\"pipeline\": \"slices\", \"pp\": 4, \"slices\": 8, \"micro_batches\": 2, \"chunks\": 1, "
                "\"makespan\": 19, \"bubble\": 0.1578947368, \"held\": [11, 10, 9, 8], "
                "\"bytes_per_link\": 2, \"buffers\": 2, ") &&
            command_said(hash),
        "pipelines: the command's JSON has the table's figures", "%s", command_out);
    status = command("schedule --pipeline interleaved --pp 2");
    check(status == 0 && command_said("interleaved, 2 ranks, 2 sequences in 1 slice: makespan 2.5 units") &&
            command_said("\n     2  F0.0/2  F1.0/1\n") && command_said("slices held at most: 2 1.5\n"),
        "pipelines: the drawing has a row a tick", "%zu bytes", strlen(command_out));
    static const struct {
        const char *line, *part;
    } refused[] = {{"--pipeline gpipe --sp 4", "does not go with --sp"},
        {"--pipeline gpipe --schedule ring", "does not go with --schedule"},
        {"--pipeline gpipe --messages", "does not go with --messages"},
        {"--pipeline 1f1b --slices 2", "1f1b has no --slices"},
        {"--pipeline interleaved --slices 2", "interleaved has no --slices"},
        {"--pipeline slices --chunks 2", "slices has no --chunks"},
        {"--pipeline interleaved --micro-batches 5", "divisible by --pp 4: 8 would fit (found 5)"},
        {"--pipeline slices-interleaved --slices 9", "divisible by --pp 4: 12 would fit (found 9)"},
        {"--pipeline slices --slices 4096 --micro-batches 4096", "at most 4194304 are supported"},
        {"--pipeline slices --pp 33 --svg x.svg", "at most 32 ranks"}, {"--pp 4", "need --pipeline"},
        {"--chunks 2", "need --pipeline"}, {"--pipeline zb", "expected one of none|gpipe|1f1b|"}};
    int told = 0, count = (int)(sizeof refused / sizeof refused[0]);
    for (int i = 0; i < count; i++) {
        int good = command("schedule %s", refused[i].line) != 0 && command_said(refused[i].part);
        if (!good) printf("     %s: %s\n", refused[i].line, command_out);
        told += good;
    }
    told += command("train --pipeline slices") != 0 && command_said("is not an option of `train`");
    told += command("plan --pp 4") != 0 && command_said("is not an option of `plan`");
    check(told == count + 2, "pipelines: what does not go together is refused", "%d of %d", told, count + 2);
}

// The boxes of a picture against the table: each op once, in its rank's row, at its time.
static int pipeline_picture_holds(int kind, int p, int k, int M, int v) {
    char path[512];
    Error e = {0, {0}};
    Pipeline t;
    size_t size;
    snprintf(path, sizeof path, "%s", scratch("pipeline.svg"));
    if (command("schedule --pipeline %s --pp %d --slices %d --micro-batches %d --chunks %d --svg %s",
            pipeline_name(kind), p, k, M, v, path) != 0 ||
        pipeline_build(&t, kind, p, k, M, v, &e) != 0)
        return 0;
    char* text = file_read_text(path, 1 << 24, &size, &e);
    int texts = 0, wrong = !text || !xml_whole(text) || svg_overlaps(text, &texts) != 0, boxes = 0;
    double total = 0, top = NAN, makespan = M * k + (double)(p - 1) / v;
    double tick = (FIGURE_WIDTH - FIGURE_LEFT - FIGURE_RIGHT) / (3 * v * makespan);
    const char* end = text ? text + size : NULL;
    for (const char* at = text; at && (at = svg_next(at, end, "<rect class=\"idle\"")); at++)
        total += svg_number(at, "width");
    for (const char* at = text; at && (at = svg_next(at, end, "<rect class=\"op\"")); at++, boxes++) {
        if (boxes >= p * t.list) continue;
        const PipelineOp* op = &t.ops[boxes];
        char name[PIPELINE_TEXT], tip[PIPELINE_TEXT + 16];
        pipeline_text(name, &t, op);
        snprintf(tip, sizeof tip, "<title>%s</title>", name);
        const char *said = strstr(at, "<title>"), *x = strstr(at, " x=");
        if (boxes == 0) top = svg_number(at, "y");
        total += svg_number(at, "width");
        wrong += !x || !said || strncmp(said, tip, strlen(tip)) != 0 ||
            !(fabs(svg_number(at, "x") - FIGURE_LEFT - op->begin * tick) < 0.011) ||
            !(fabs(svg_number(at, "width") - (1 + op->backward) * tick) < 0.011) ||
            !(fabs(svg_number(at, "y") - top - op->rank * row_height(p)) < 0.011);
    }
    wrong += boxes != p * t.list || !(fabs(total / (3 * v * tick) - p * makespan) < 0.01 * makespan);
    pipeline_free(&t);
    free(text);
    return wrong == 0;
}

static void test_pipelines(void) {
    pipelines_proved();
    pipelines_faults();
    pipelines_command();
    int good = pipeline_picture_holds(GPT2_SP_GPIPE, 4, 2, 3, 1);
    good += pipeline_picture_holds(GPT2_SP_1F1B, 8, 1, 8, 1);
    good += pipeline_picture_holds(GPT2_SP_INTERLEAVED, 4, 1, 8, 3);
    good += pipeline_picture_holds(GPT2_SP_SLICES, 32, 16, 1, 1);
    good += pipeline_picture_holds(GPT2_SP_SLICES_INTERLEAVED, 3, 6, 2, 2);
    good += pipeline_picture_holds(GPT2_SP_SLICES, 1, 1, 1, 1);
    check(good == 6, "pipelines: a picture has every op once, at its time", "%d of 6 pictures", good);
}
