// Positions for long contexts. Held: a sample's positions are what its number and the data say, on every
// rank of every split; a shifted sequence is the model whose table begins there, in loss and in every
// gradient; the blocks of a window ramp are sequences of their own; a run that goes on with longer sequences
// keeps what it has learnt, its new rows begin as --grow says with moments of zero, and take the rate of
// --lr-scale-new; wpe fades in a straight line to exactly zero. All of it bit for bit over a resume, and the
// same over every split. A row of wpe that is read one place off still trains: who then meets a text of the
// full length finds rows that were never what they seemed.

// A trainer of the runs below; NULL, after a failed check, if it cannot be made.
static gpt2_sp* placed_trainer(const char* more, const char* out, const char* from) {
    char text[512], error[GPT2_SP_TEXT];
    snprintf(text, sizeof text, "%s %s", RATES_RUN, more);
    gpt2_sp_options o = run_options(text);
    snprintf(o.out, sizeof o.out, "%s", out);
    snprintf(o.init_from, sizeof o.init_from, "%s", from);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    if (!g) check(0, "a test's trainer is made", "%s: %s", text, error);
    return g;
}
static void placed_steps(gpt2_sp* g, int steps) {
    gpt2_sp_stats stats;
    for (int i = 0; g && i < steps; i++)
        if (step_of(g, &stats) != 0) check(0, "a test's step succeeds", "%s", gpt2_sp_error(g));
}
// wpe (N, C) of a trainer, or its gradient or a moment, wherever ranks keep it. The caller frees it.
static real* placed_table(const gpt2_sp* g, int state) {
    const int64_t n = g->mesh.shape.N * g->mesh.shape.C;
    real *all = reals(g->layout.elements), *table = reals(n);
    collect(g, state, all);
    memcpy(table, all + g->layout.units[positions_unit(&g->layout)].offset, (size_t)n * sizeof *table);
    free(all);
    return table;
}
// A folder for a run, empty.
static const char* placed_folder(const char* name) {
    remove_tree(scratch(name));
    return scratch(name);
}

// A run of 2 steps with sequences of 30 tokens, saved in a folder of that name.
static const char* placed_short(const char* name) {
    const char* folder = placed_folder(name);
    gpt2_sp* g = placed_trainer("seq-len=30 steps=6", folder, "");
    placed_steps(g, 2);
    if (g && gpt2_sp_save(g) != 0) check(0, "a test's run is saved", "%s", gpt2_sp_error(g));
    gpt2_sp_destroy(g);
    return folder;
}

// --lr-scale-new: a step of a model that has grown from 30 to 60 rows, at the scale and without it.
static void positions_new_rate(void) {
    static const char* const splits[] = {"batch-size=2", "batch-size=2 sp=2", "batch-size=2 sp=2 zero=1",
        "batch-size=1 dp=2 zero=2", "batch-size=2 sp=2 zero=3", "batch-size=2 sp=3 zero=1 doc-mask=1"};
    const double scale = 8;
    char from[512];
    snprintf(from, sizeof from, "%s", placed_short("placed-short"));
    for (int i = 0; i < 6; i += quick ? 3 : 1) {
        char plain[256], scaled[300];
        snprintf(plain, sizeof plain, "seq-len=60 lr=1e-4 warmup=0 %s", splits[i]);
        snprintf(scaled, sizeof scaled, "%s lr-scale-new=%g", plain, scale);
        gpt2_sp *a = placed_trainer(plain, "", from), *b = placed_trainer(scaled, "", from);
        real* before = a ? placed_table(a, STATE_WEIGHTS) : NULL;
        placed_steps(a, 1), placed_steps(b, 1);
        if (!a || !b) continue;
        real *one = placed_table(a, STATE_WEIGHTS), *other = placed_table(b, STATE_WEIGHTS);
        const int64_t C = a->mesh.shape.C, old = 30 * C, n = 60 * C;
        double most = 0, moved = 0;
        int64_t same = 0;
        for (int64_t k = 0; k < n; k++) {
            double way = (double)one[k] - before[k], far = (double)other[k] - before[k];
            if (k < old) same += one[k] == other[k];
            else most = worst(most, fabs(far - scale * way)), moved += fabs(way) > 0;
        }
        // a step of lr 1e-4 is at most some 2e-4; each weight is rounded to EPS / 2 of at most 0.1
        double limit = scale * EPS * 0.1 + 4 * EPS * scale * 1e-4;
        check(same == old && most <= limit && moved > 0.05 * (double)(n - old),
            "positions: new rows of wpe move --lr-scale-new times as far, old ones as without it",
            "%s: %lld of %lld old numbers the same bits; new ones differ by %.3g from %g times, at most %.3g",
            splits[i], (long long)same, (long long)old, most, scale, limit);
        free(before), free(one);
        free(other);
        gpt2_sp_destroy(a);
        gpt2_sp_destroy(b);
    }
}

// --positions none: wpe after every step, and that nothing else of it moves.
static void positions_fading(void) {
    static const char* const splits[] = {"batch-size=2", "batch-size=2 sp=2", "batch-size=2 sp=2 zero=1",
        "batch-size=1 dp=2 zero=2", "batch-size=2 sp=3 zero=3", "batch-size=1 dp=2 sp=2 zero=1 doc-mask=1"};
    enum { FADE = 3 };
    for (int i = 0; i < 6; i += quick ? 2 : 1) {
        char text[256];
        snprintf(text, sizeof text, "seq-len=60 positions=none fade-steps=%d %s", FADE, splits[i]);
        gpt2_sp* g = placed_trainer(text, "", "");
        if (!g) continue;
        real* before = placed_table(g, STATE_WEIGHTS);
        const int64_t n = g->mesh.shape.N * g->mesh.shape.C;
        double most = 0;
        int64_t zero = 0, moments = 0;
        for (int step = 1; step <= FADE + 1; step++) {
            placed_steps(g, 1);
            real* now = placed_table(g, STATE_WEIGHTS);
            for (int64_t k = 0; k < n; k++) {
                double expected = step < FADE ? before[k] * (1 - (double)step / FADE) : 0;
                most = worst(most, fabs(now[k] - expected) / fmax(fabs(before[k]), 1e-30));
                zero += step >= FADE && now[k] == 0 && !signbit(now[k]);
            }
            free(now);
        }
        real *m = placed_table(g, STATE_M), *v = placed_table(g, STATE_V);
        for (int64_t k = 0; k < n; k++) moments += m[k] != 0 || v[k] != 0;
        check(most <= 2 * FADE * EPS && zero == 2 * n && moments == 0,
            "positions: wpe fades in a straight line to exactly zero",
            "%s, %d steps: largest difference %.3g of wpe, at most %.3g; %lld of %lld zeros, %lld moments",
            splits[i], FADE, most, 2 * FADE * EPS, (long long)zero, (long long)(2 * n), (long long)moments);
        free(before), free(m);
        free(v);
        gpt2_sp_destroy(g);
    }
}

// A run that goes on with 60 tokens instead of 30: what it has before its first step, against what was saved.
static void positions_longer(void) {
    static const char* const splits[] = {
        "", "sp=2", "sp=2 zero=3", "sp=3 zero=1 n-positions=90", "dp=2 batch-size=1 zero=2 doc-mask=0"};
    for (int i = 0; i < 5; i += quick ? 2 : 1) {
        char text[256], folder[512];
        snprintf(folder, sizeof folder, "%s", placed_short("placed-stage"));
        gpt2_sp* short_run = placed_trainer("seq-len=30 steps=6", folder, "");
        if (!short_run) continue;
        real *w = placed_table(short_run, STATE_WEIGHTS), *m = placed_table(short_run, STATE_M);
        const int64_t C = short_run->mesh.shape.C, next = (int64_t)short_run->next_sample;
        gpt2_sp_destroy(short_run);
        snprintf(text, sizeof text, "seq-len=60 steps=6 %s", splits[i]);
        gpt2_sp* g = placed_trainer(text, folder, "");
        if (!g) continue;
        const int64_t N = g->mesh.shape.N;
        real *now = placed_table(g, STATE_WEIGHTS), *first = placed_table(g, STATE_M);
        int64_t wrong = 0, kept = 0;
        for (int64_t k = 0; k < N * C; k++) {
            wrong += now[k] != w[k / C % 30 * C + k % C];
            wrong += first[k] != (k < 30 * C ? m[k] : 0);
            kept += first[k] != 0;
        }
        int64_t read = (next * 30 + 59) / 60;   // both lie in the first epoch
        check(wrong == 0 && kept > 0 && g->step == 2 && (int64_t)g->next_sample == read &&
                g->layout.known_positions == 30,
            "positions: a longer run keeps its rows and moments, repeats its rows, and its place in the data",
            "%s: %lld of %lld numbers wrong, %lld moments; sample %lld of 30 tokens -> %lld of 60", text,
            (long long)wrong, (long long)(2 * N * C), (long long)kept, (long long)next,
            (long long)g->next_sample);
        free(w), free(m);
        free(now), free(first);
        gpt2_sp_destroy(g);
    }
}

#ifndef GPT2_SP_GPU

// Where the first document of a sample that begins at p begins, and how many of the T tokens are its own.
static void placed_document(const int32_t* stream, int64_t p, int64_t T, int64_t* before, int64_t* rows) {
    *before = 0, *rows = 0;
    while (*before < p && stream[p - 1 - *before] != 256) ++*before;
    while (*rows < T && (*rows == 0 || stream[p + *rows - 1] != 256)) ++*rows;
}

// The position of token t of a sample that begins at p of the stream, without a shift.
static int64_t placed_expected(
    const int32_t* stream, int64_t p, int64_t t, int documents, int from, int64_t N) {
    int64_t before, rows, start = t;
    placed_document(stream, p, LOADER_T, &before, &rows);
    if (!documents) return t;
    while (start > 0 && stream[p + start - 1] != 256) start--;
    if (!from || t >= rows) return t - start;
    return (before + rows <= N ? before : before % (N - rows + 1)) + t;
}

// What the loader gives all ranks of a split, against the stream. offset (LOADER_SAMPLES): how far on each
// sample begins, -1: not known yet. The number of rows that are not where they should be.
typedef struct {
    int doc_mask, from;
    double shift;
    int64_t N;
} Placing;
static int placed_wrong(Dataset* d, const int32_t* stream, LoaderShape shape, const Placing* how,
    uint64_t first, int64_t* offset) {
    static LoaderTrial t;
    Error e;
    int wrong = 0;
    loader_trial_begin(&t, d, shape, how->doc_mask, UINT64_MAX);
    Loader* l = &t.loader;
    l->pos_from = how->from, l->pos_shift = how->shift;
    l->N = how->N;
    for (int w = 0; w < l->local_ranks; w++)
        t.ranks[w].positions = (int32_t*)need((size_t)(shape.passes * shape.B * LOADER_T), 4);
    wrong += loader_fill(l, &l->batch[0], first, &e) != 0;
    for (int w = 0; w < l->local_ranks; w++)
        for (int64_t row = 0; row < shape.passes * shape.B; row++) {
            int64_t sample = (row / shape.B * l->dp + w / l->sp) * shape.B + row % shape.B;
            int64_t p = (int64_t)sample_window(d, LOADER_T, first + (uint64_t)sample, 1, 9).position;
            const Segments* seg = &t.segments[w % l->sp];
            const int32_t* found = t.ranks[w].positions + row * seg->total;
            for (int s = 0; s < seg->count; s++)
                for (int64_t at = seg->begin[s]; at < seg->begin[s] + seg->rows[s]; at++, found++) {
                    int64_t by = *found - placed_expected(stream, p, at, how->doc_mask, how->from, how->N);
                    if (offset[sample] < 0) offset[sample] = by;
                    wrong += by != offset[sample] || by < 0 || by > how->N - LOADER_T || *found >= how->N;
                    wrong += how->shift == 0 && by != 0;
                }
        }
    for (int w = 0; w < l->local_ranks; w++) free(t.ranks[w].positions);
    loader_trial_end(&t);
    return wrong;
}

static void positions_loaded(Dataset* d, const int32_t* stream) {
    static const LoaderShape shapes[] = {{1, 1, GPT2_SP_DIST, 12, 1}, {1, 1, GPT2_SP_DIST, 1, 12},
        {2, 1, GPT2_SP_DIST, 3, 2}, {2, 3, GPT2_SP_RING, 2, 3}, {3, 4, GPT2_SP_ZIGZAG, 2, 2}};
    static const Placing ways[] = {{0, 0, 0, 37}, {1, 0, 0, 37}, {1, 1, 0, 37}, {1, 1, 0, 50}, {1, 1, 0, 200},
        {0, 0, 1, 38}, {0, 0, 0.5, 100}, {1, 0, 0.5, 100}};
    for (size_t k = 0; k < sizeof ways / sizeof ways[0]; k++) {
        int wrong = 0, rows = 0;
        for (uint64_t first = 0; first < 126; first += 12) {
            int64_t offset[LOADER_SAMPLES];
            for (int i = 0; i < LOADER_SAMPLES; i++) offset[i] = -1;
            for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++, rows += LOADER_SAMPLES * LOADER_T)
                wrong += placed_wrong(d, stream, shapes[i], &ways[k], first, offset);
        }
        check(wrong == 0,
            "positions: each row has the one that its sample and its document say, on all ranks",
            "doc-mask %d, from %s, shift %g, %lld rows of wpe: %d of %d wrong", ways[k].doc_mask,
            ways[k].from ? "document" : "sample", ways[k].shift, (long long)ways[k].N, wrong, rows);
    }
}

// How far samples are shifted: the share, the ends, the mean of those that are.
static void positions_spread(Dataset* d) {
    enum { SAMPLES = 20000, ROOM = 10 };
    Loader l;
    int count[ROOM + 1] = {0}, other = 0;
    memset(&l, 0, sizeof l);
    l.data = d, l.T = LOADER_T;
    l.N = LOADER_T + ROOM, l.pos_shift = 0.25;
    l.seed = 9;
    Loader reseeded = l;
    reseeded.seed = 10;
    for (uint64_t i = 0; i < SAMPLES; i++) {
        int64_t begin = sample_place(&l, i, 0).begin;
        if (begin >= 0 && begin <= ROOM) count[begin]++;
        other += begin != sample_place(&reseeded, i, 0).begin;
    }
    double all = count[0], most = 0, each = 0.25 / (ROOM + 1), sigma = sqrt(each * (1 - each) / SAMPLES);
    for (int i = 1; i <= ROOM; i++) {
        all += count[i];
        most = worst(most, fabs((double)count[i] / SAMPLES - each) / sigma);
    }
    double first = fabs((double)count[0] / SAMPLES - (0.75 + each)) / sqrt(0.25 * 0.75 / SAMPLES);
    check(all == SAMPLES && most <= 5 && first <= 5 && other > SAMPLES / 5,
        "positions: a quarter of the samples begins anywhere in the room there is, evenly",
        "%d samples, %d places: the farthest is off by %.2f sigma, place 0 by %.2f; another seed moves %d",
        SAMPLES, ROOM + 1, most, first, other);
}

// Copies a's weights to b, which differs in the rows of wpe only: b's are those of a from `row` on.
static void placed_copy(const gpt2_sp* a, gpt2_sp* b, int64_t row) {
    const int64_t C = a->mesh.shape.C, at = a->layout.units[positions_unit(&a->layout)].offset;
    memcpy(b->ranks[0].state[STATE_WEIGHTS], a->ranks[0].state[STATE_WEIGHTS], (size_t)at * sizeof(real));
    memcpy(b->ranks[0].state[STATE_WEIGHTS] + at, a->ranks[0].state[STATE_WEIGHTS] + at + row * C,
        (size_t)(b->mesh.shape.N * C) * sizeof(real));
}

static gpt2_sp* placed_cpu(const char* more) {
    char error[GPT2_SP_TEXT];
    gpt2_sp_options o = run_options(more);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    if (!g) check(0, "a test's trainer is made", "%s: %s", more, error);
    return g;
}

// A sequence that begins at row o of wpe is that of a model whose table begins there.
static void positions_shifted(void) {
    gpt2_sp *a = placed_cpu("batch-size=1 n-positions=160 pos-shift=1"), *b = placed_cpu("batch-size=1");
    int64_t shifted = 0, wrong = 0, beside = 0;
    for (uint64_t sample = 0; a && b && sample < 8; sample++) {
        Gradients found, expected;
        int status = gradients_collect(a, sample, 0, &found);
        const int64_t begin = a->ranks[0].batch->positions[0], C = a->mesh.shape.C, T = a->mesh.shape.T,
                      at = a->layout.units[positions_unit(&a->layout)].offset, n = a->mesh.shape.N;
        placed_copy(a, b, begin);
        if (status != 0 || gradients_collect(b, sample, 0, &expected) != 0) {
            check(0, "a test's gradients are made", "%s%s", gpt2_sp_error(a), gpt2_sp_error(b));
            break;
        }
        shifted += begin > 0;
        wrong += found.loss != expected.loss || found.all[at + begin * C] == 0;
        wrong += memcmp(found.all, expected.all, (size_t)at * sizeof(real)) != 0;
        wrong += memcmp(found.all + at + begin * C, expected.all + at, (size_t)(T * C) * sizeof(real)) != 0;
        for (int64_t k = 0; k < n * C; k++)
            beside += (k < begin * C || k >= (begin + T) * C) && found.all[at + k] != 0;
        free(found.all);
        free(expected.all);
    }
    check(wrong == 0 && beside == 0 && shifted >= 6,
        "positions: a shifted sequence has the loss and gradients of the model whose table begins there",
        "8 samples, %lld shifted: %lld tensors or losses of other bits, %lld numbers beside the rows",
        (long long)shifted, (long long)wrong, (long long)beside);
    gpt2_sp_destroy(a);
    gpt2_sp_destroy(b);
}

// The course of the window, and that its blocks are like sequences of their own.
static void positions_window(void) {
    static const struct {
        int64_t done, window;
    } course[] = {{0, 8}, {1, 18}, {4, 48}, {5, 58}, {6, 58}, {1000000, 58}};
    gpt2_sp_options o = options_of("steps=10 seq-len=58 doc-mask=1 window-ramp=8 ramp-share=0.5"), none = o;
    int right = 0;
    for (int i = 0; i < 6; i++) right += ramp_window(&o, course[i].done) == course[i].window;
    none.window_ramp = 0, right += ramp_window(&none, 3) == 0;
    o.ramp_share = 0, right += ramp_window(&o, 0) == 58;
    o.window_ramp = 58, o.ramp_share = 1;
    right += ramp_window(&o, 3) == 58;
    check(right == 9, "positions: the window grows in a straight line, by the step alone", "%d of 9", right);

    enum { T = 60, W = 20 };
    gpt2_sp* a = placed_cpu("batch-size=1 seq-len=60 doc-mask=1 window-ramp=20 ramp-share=1");
    gpt2_sp* b = placed_cpu("batch-size=3 seq-len=20 n-positions=60 doc-mask=1");
    double most = 0, loss = 0;
    int64_t documents = 0, elsewhere = 0;
    for (uint64_t sample = 0; a && b && sample < 4; sample++) {
        Gradients found, expected = {reals(b->layout.elements), 0, 0};
        const Batch* batch =
            gradients_collect(a, sample, 0, &found) == 0 ? loader_take(&b->loader, &b->error) : NULL;
        if (!batch) break;
        batch_give(b, batch);
        const RankBatch *from = a->ranks[0].batch, *to = b->ranks[0].batch;
        placed_copy(a, b, 0);
        memcpy(to->tokens, from->tokens, T * 4), memcpy(to->labels, from->labels, T * 4);
        memcpy(to->positions, from->positions, T * 4);
        for (int t = 0; t < T; t++) {
            int begins = t % W == 0 || from->tokens[t - 1] == 256;
            to->doc_start[t] = begins ? t % W : to->doc_start[t - 1];
            documents += begins && t % W > 0;
            elsewhere += from->positions[t] != t % W - to->doc_start[t];
        }
        b->ranks[0].valid_tokens = a->ranks[0].valid_tokens;
        if (ranks_run(b, b->device->gradients, &expected) != 0) break;
        double size, error = relative_error(found.all, expected.all, a->layout.elements, &size);
        most = worst(most, error), loss = worst(loss, fabs(found.loss - expected.loss) / expected.loss);
        free(found.all);
        free(expected.all);
        loader_request(&b->loader, 0, 0);
    }
    check(most <= 100 * EPS && loss <= 100 * EPS && a && b && documents > 0 && elsewhere == 0,
        "positions: blocks of a window are sequences of their own, each from position 0 on",
        "4 samples with %lld documents, 3 blocks each: gradients differ by %.3g, losses by %.3g, at most "
        "%.3g; %lld tokens at other positions",
        (long long)documents, most, loss, 100 * EPS, (long long)elsewhere);
    gpt2_sp_destroy(a);
    gpt2_sp_destroy(b);
}

// A run that goes on longer, then again from its own checkpoint, is that which goes on once.
static void positions_stages(void) {
    static const char* const stages[] = {"seq-len=60 batch-size=2", "seq-len=60 batch-size=2 sp=2",
        "seq-len=50 n-positions=60 batch-size=2 sp=3 zero=3 pos-shift=0.5 lr-scale-new=4"};
    for (int i = 0; i < 3; i++) {
        double loss[2][4] = {{0}, {1}};
        real* w[2] = {NULL, NULL};
        int64_t count = 0;
        for (int again = 0; again < 2; again++) {
            char folder[512], error[GPT2_SP_TEXT] = "";
            snprintf(folder, sizeof folder, "%s", placed_short("placed-stages"));
            gpt2_sp_stats stats;
            gpt2_sp* g = placed_trainer(stages[i], folder, "");
            for (int step = 0; g && step < 4; step++) {
                if (step_of(g, &stats) != 0) snprintf(error, sizeof error, "%s", gpt2_sp_error(g));
                loss[again][step] = stats.loss;
                if (!again || step == 3) continue;
                if (gpt2_sp_save(g) != 0) snprintf(error, sizeof error, "%s", gpt2_sp_error(g));
                gpt2_sp_destroy(g);
                g = placed_trainer(stages[i], folder, "");
            }
            if (error[0]) check(0, "a test's run goes on", "%s", error);
            if (!g) continue;
            count = g->layout.elements, w[again] = reals(count);
            collect(g, STATE_WEIGHTS, w[again]);
            gpt2_sp_destroy(g);
        }
        int same = w[0] && w[1] && memcmp(w[0], w[1], (size_t)count * sizeof(real)) == 0 &&
            memcmp(loss[0], loss[1], sizeof loss[0]) == 0 && isfinite(loss[0][3]);
        check(same, "positions: a run that has grown goes on bit for bit after every step",
            "30 -> %s: 4 steps, loss %.6f", stages[i], loss[0][3]);
        free(w[0]);
        free(w[1]);
    }
}

// A run that goes on with longer sequences forgets the best validation of shorter ones, and only then.
static void positions_validations(void) {
    char same[1000], longer[1024];
    const char* folder = placed_folder("placed-validations");
    snprintf(same, sizeof same, "seq-len=30 steps=6 val-data=%s", run_data());
    snprintf(longer, sizeof longer, "%s seq-len=60", same);
    gpt2_sp* g = placed_trainer(same, folder, "");
    double loss = NAN;
    int64_t best[2] = {0, 0};
    placed_steps(g, 2);
    int status = g && train_validate(g, &loss) == 0 ? gpt2_sp_save(g) : -1;
    gpt2_sp_destroy(g);
    for (int i = 0; i < 2; i++) {
        g = placed_trainer(i ? longer : same, folder, "");
        if (g) best[i] = g->validations.best_step;
        gpt2_sp_destroy(g);
    }
    check(status == 0 && best[0] == 2 && best[1] == -1,
        "positions: validations of shorter sequences do not count in a longer run",
        "the best was after step %lld; of a run that goes on %lld", (long long)best[0], (long long)best[1]);
}

// What resuming at another length tells and refuses, and where the run stands in later epochs.
static void positions_moved(void) {
    char folder[512], text[256];
    Dataset d;
    Error e;
    const DataHow how = {0, 257, 0};
    snprintf(folder, sizeof folder, "%s", placed_short("placed-refused"));
    static const char* const refused[][2] = {{"seq-len=29", "--seq-len 30, found 29"},
        {"seq-len=30 n-positions=20", "--n-positions 20: a sequence"},
        {"seq-len=20 n-positions=25", "found 20"},
        {"seq-len=30 lr-scale-new=2", "none of the 30 rows of wpe is new"}};
    for (int i = 0; i < 4; i++) {
        char error[GPT2_SP_TEXT];
        snprintf(text, sizeof text, "%s %s", RATES_RUN, refused[i][0]);
        gpt2_sp_options o = run_options(text);
        snprintf(o.out, sizeof o.out, "%s", folder);
        gpt2_sp* g = trainer_of(&o, error, sizeof error);
        check(!g && strstr(error, refused[i][1]), "positions: a run does not go on with fewer", "%s",
            g ? "accepted" : error);
        gpt2_sp_destroy(g);
    }
    int wrong = 0, status = dataset_open(&d, run_data(), &how, &e);
    for (uint64_t sample = 0; status == 0 && sample < 700; sample++) {   // 6000 tokens: 200 windows, then 100
        uint64_t moved = sample_moved(&d, 30, 60, sample), epoch = sample / 200, read = sample % 200 * 30;
        wrong += moved != epoch * 100 + (read + 59) / 60;
    }
    check(status == 0 && wrong == 0, "positions: a longer run has read as much of its epoch as before",
        "%d of 700 samples elsewhere", wrong);
    if (status == 0) dataset_close(&d);
}

// A model with more positions than a sequence has tokens, as its files have it, and what is made of them.
static void positions_files(const char* folder, const char* data) {
    int status =
        command("train %s --layers 1 --heads 1 --channels 16 --seq-len 20 --n-positions 50 --doc-mask 1 "
                "--pos-from document --window-ramp 4 --ramp-share 1 --steps 4 --out %s",
            data, folder);
    check(status == 0 && command_said("positions 50, for sequences of 20 tokens") &&
            command_said("  window 4") && command_said("  window 16"),
        "positions: train tells of the table and of the window", "%.200s", status ? command_out : "told");
    char path[600], *text;
    size_t size;
    Error e;
    uint64_t number = 0;
    snprintf(path, sizeof path, "%s/log.jsonl", folder);
    text = file_read_text(path, 1 << 20, &size, &e);
    int told = text && json_get_u64(text, strcspn(text, "\n"), "window", &number) == 1;
    check(told && number == 4, "positions: log.jsonl has the window", "%llu", (unsigned long long)number);
    free(text);
    snprintf(path, sizeof path, "%s/step_00000004/config.json", folder);
    text = file_read_text(path, 1 << 20, &size, &e);
    told = text && json_get_u64(text, size, "n_positions", &number) == 1;
    check(told && number == 50, "positions: config.json has the table's rows", "n_positions %llu",
        (unsigned long long)number);
    free(text);
}

// The same model in other hands.
static void positions_read_again(const char* folder, const char* data) {
    char file[512];
    Error e;
    uint64_t number = 0;
    snprintf(file, sizeof file, "%s", scratch("placed.bin"));
    int status = command("export --from %s --format llmc --out %s", folder, file);
    LlmcFile llmc;
    int opened = status == 0 && llmc_open(&llmc, file, &e) == 0;
    check(opened && llmc.shape.N == 50, "positions: llm.c's file has the table's rows", "%s",
        opened ? "50" : e.text);
    if (opened) close(llmc.fd);
    double loss[4];
    const char* const evals[] = {
        "--seq-len 50", "--seq-len 20 --doc-mask 1", "--seq-len 20 --doc-mask 1 --pos-from document", ""};
    for (int i = 0; i < 4; i++) {
        status = command("eval --from %s %s --json %s", i == 3 ? file : folder, data, evals[i]);
        if (status != 0 || json_get_double(command_out, strlen(command_out), "loss", &loss[i]) != 1)
            loss[i] = NAN;
    }
    check(fabs(loss[0] - loss[3]) <= 1e-6 && isfinite(loss[1]) && isfinite(loss[2]) && loss[1] != loss[2],
        "positions: eval has the model's context, shorter windows, and places in documents",
        "%.6f of 50 tokens, %.6f from llm.c's file; %.6f of 20, %.6f where they stand", loss[0], loss[3],
        loss[1], loss[2]);
    status = command("sample --from %s --prompt-tokens 65,66 --length 90 --threads 1", folder);
    int commas = 0;
    for (const char* c = command_out; *c; c++) commas += *c == ',';
    check(status == 0 && (commas == 47 || commas == 49),
        "positions: a model samples as far as its table goes", "%d tokens behind 2, of 50", commas + 1);
    status = command(
        "plan --layers 1 --heads 1 --channels 16 --vocab 257 --seq-len 20 --n-positions 50 --gflops 1 "
        "--link-gbs 1 --copy-gbs 1 --json");
    check(status == 0 && json_get_u64(command_out, strlen(command_out), "n_positions", &number) == 1 &&
            number == 50,
        "positions: plan --json has the table's rows", "%llu", (unsigned long long)number);
}

// --positions none beyond the fade: from the start, at resume, and what cannot be.
static void positions_none(void) {
    char folder[512], text[256], error[GPT2_SP_TEXT];
    snprintf(folder, sizeof folder, "%s", placed_short("placed-none"));
    gpt2_sp* g = placed_trainer("seq-len=60 positions=none steps=9", folder, "");
    real* now = g ? placed_table(g, STATE_WEIGHTS) : NULL;
    int64_t other = 0, n = g ? g->mesh.shape.N * g->mesh.shape.C : 0;
    for (int64_t k = 0; k < n; k++) other += now[k] != 0;
    placed_steps(g, 1);
    int saved = g ? gpt2_sp_save(g) : -1;
    gpt2_sp_destroy(g);
    free(now);
    g = placed_trainer("seq-len=100 batch-size=1", "", folder);   // the model of zeros, longer
    now = g ? placed_table(g, STATE_WEIGHTS) : NULL;
    for (int64_t k = 0; g && k < g->mesh.shape.N * g->mesh.shape.C; k++) other += now[k] != 0;
    check(saved == 0 && g && n > 0 && other == 0, "positions: none is zero from the start, at any length",
        "%lld of %lld numbers not zero", (long long)other, (long long)n);
    free(now);
    gpt2_sp_destroy(g);
    g = placed_trainer("seq-len=20 positions=none", "", "");
    now = g ? placed_table(g, STATE_WEIGHTS) : NULL;
    for (int64_t k = 0; g && k < g->mesh.shape.N * g->mesh.shape.C; k++) other += now[k] != 0;
    check(g && other == 0, "positions: none is zero before the first step", "%lld numbers not zero",
        (long long)other);
    free(now);
    gpt2_sp_destroy(g);
    snprintf(text, sizeof text, "%s seq-len=60 steps=9", RATES_RUN);
    gpt2_sp_options o = run_options(text);
    snprintf(o.out, sizeof o.out, "%s", folder);
    g = trainer_of(&o, error, sizeof error);
    check(!g && strstr(error, "--positions none, found learned"),
        "positions: what is faded does not come back", "%s", g ? "accepted" : error);
    gpt2_sp_destroy(g);
}

static void positions_refused(void) {
    static const char* const cases[][2] = {{"n-positions=60", "--n-positions 60: a sequence of --seq-len 61"},
        {"pos-shift=0.5", "--pos-shift 0.5 has no effect: --n-positions is --seq-len"},
        {"pos-from=document", "--pos-from document needs --doc-mask 1"},
        {"pos-from=document doc-mask=1 pos-shift=1 n-positions=90", "with --pos-from document a sequence"},
        {"window-ramp=8", "--window-ramp 8 needs --doc-mask 1"},
        {"window-ramp=62 doc-mask=1", "--window-ramp 62 is longer than --seq-len 61"},
        {"fade-steps=3", "--fade-steps 3 needs --positions none"},
        {"positions=none pos-shift=1 n-positions=90", "--pos-shift 1 has no effect: with --positions none"},
        {"positions=none lr-scale=wpe.weight=2", "--lr-scale wpe.weight=2 has no effect"},
        {"lr-scale-new=2", "none of the 61 rows of wpe is new"},
        {"lr-scale-new=2 freeze=wpe.weight", "wpe is not trained"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char error[GPT2_SP_TEXT];
        gpt2_sp_options o = run_options(cases[i][0]);
        gpt2_sp* g = trainer_of(&o, error, sizeof error);
        check(!g && strstr(error, cases[i][1]), "positions: what has no effect or no meaning is refused",
            "%s", g ? "accepted" : error);
        gpt2_sp_destroy(g);
    }
}

// Whole runs: every split, and every resume, of each of the ways.
static void positions_runs(void) {
    static const char* const ways[] = {"n-positions=100 pos-shift=0.5",
        "doc-mask=1 n-positions=100 pos-from=document", "doc-mask=1 window-ramp=8 ramp-share=0.5",
        "seq-len=60 positions=none fade-steps=3"};
    static const char* const shapes[] = {
        "batch-size=2", "batch-size=1 dp=2 sp=2 zero=3", "batch-size=2 sp=3 zero=1 grad-accum=2"};
    for (int i = 0; i < 4; i++) {
        runs_splits(ways[i], i, 3);
        for (int k = 0; k < 3; k++) {
            char text[256];
            snprintf(text, sizeof text, "%s %s steps=5", shapes[k], ways[i]);
            Run whole = run_steps(text, 5);
            int equal = 0;
            for (int at = quick ? 3 : 0; at < 5; at++) {
                Run run = run_resumed(text, text, at, 5);
                if (run.steps == 5 && run.weights) equal += run_equal(&run, &whole);
                free(run.weights);
            }
            check(equal == (quick ? 2 : 5), "positions: a run goes on bit for bit after every step",
                "%s: %d resumes end with the same losses and weights", text, equal);
            free(whole.weights);
        }
    }
}
#endif

static void test_positions(void) {
    positions_new_rate();
    positions_fading();
    positions_longer();
#ifndef GPT2_SP_GPU
    Dataset d;
    Error e = {0, {0}};
    int32_t* stream = loader_dataset(&d, &e);
    if (d.count == 3) {
        positions_loaded(&d, stream);
        positions_spread(&d);
    }
    dataset_close(&d);
    free(stream);
    positions_shifted();
    positions_window();
    positions_stages();
    positions_moved();
    positions_validations();
    char folder[512], data[600];
    snprintf(folder, sizeof folder, "%s", placed_folder("placed-files"));
    snprintf(data, sizeof data, "--data %s --threads 1", run_data());
    positions_files(folder, data);
    positions_read_again(folder, data);
    positions_none();
    positions_refused();
    positions_runs();
#endif
}
