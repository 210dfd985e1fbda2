// test_sampling.h: the test of how tokens are drawn, group `drawing`; part of test_gpt2_sp.c.

// ===== drawing ==================================================================================
// Held: what a token is drawn from is what a naive reading of the filters' definitions gives, which are
// Transformers'; the continuations of a prompt that is read once are those of prompts read anew; the caller
// hears every token and can end the text. A filter that cuts a token too few is not seen in a text.

// The probabilities (V) that the filters leave, each by its definition and over the whole vocabulary: a token
// counts as before another if it is likelier, or as likely and of a smaller number.
static void naive_filters(
    double* p, const real* logits, int64_t V, const gpt2_sp_sampling* how, const int32_t* seen) {
    double* score = doubles(V);
    double* before = doubles(V);
    double sum = 0, most = 0;
    int64_t* place = (int64_t*)need((size_t)V, sizeof *place);
    int64_t k = how->temperature == 0 ? 1 : how->top_k > 0 && how->top_k < V ? how->top_k : V;
    for (int64_t v = 0; v < V; v++) {
        score[v] = (double)logits[v];
        if (seen[v]) score[v] *= score[v] > 0 ? 1 / how->repetition_penalty : how->repetition_penalty;
    }
    for (int64_t v = 0; v < V; v++)
        for (int64_t w = 0; w < V; w++) place[v] += score[w] > score[v] || (score[w] == score[v] && w < v);
    for (int64_t v = 0; v < V; v++) {
        p[v] = place[v] < k ? exp(score[v] / (how->temperature == 0 ? 1 : how->temperature)) : 0;
        sum += p[v];
    }
    for (int64_t v = 0; v < V; v++)
        for (int64_t w = 0; w < V; w++) before[v] += place[w] < place[v] ? p[w] / sum : 0;
    for (int64_t v = 0; v < V; v++) {
        if (how->top_p < 1 && place[v] > 0 && before[v] >= how->top_p) p[v] = 0;
        most = p[v] > most ? p[v] : most;
    }
    sum = 0;
    for (int64_t v = 0; v < V; v++) {
        if (p[v] < how->min_p * most) p[v] = 0;
        sum += p[v];
    }
    for (int64_t v = 0; v < V; v++) p[v] /= sum;
    free(score);
    free(before);
    free(place);
}

// Any filters together, against that. Logits are multiples of 1/4, so that many are alike; thresholds are no
// sums of their probabilities.
static void drawing_filters(void) {
    enum { N = 40 };
    real logits[N];
    double expected[N], most = 0, kept = 0;
    int32_t seen[N];
    Candidate candidates[N];
    Distribution d = {candidates, 0, 0};
    int cases = 0, failed_cases = 0, penalised = 0;
    for (uint64_t i = 0; i < 600; i++, cases++) {
        static const double temperatures[] = {0, 0.3, 1, 1.7}, penalties[] = {1, 1.3, 0.7, 5};
        gpt2_sp_sampling how = drawing(temperatures[dice(301, i, 4)], (int64_t)dice(302, i, 3) * 9,
            dice(303, i, 2) ? 1 : (double)(dice(304, i, 97) + 1) / 101, 0);
        how.min_p = dice(305, i, 2) ? 0 : (double)(dice(306, i, 97) + 1) / 211;
        how.repetition_penalty = penalties[dice(307, i, 4)];
        for (int v = 0; v < N; v++) {
            logits[v] = (real)(floor(8 * noise(308, (int64_t)i * N + v)) / 4);
            seen[v] = dice(309, i * N + (uint64_t)v, 4) == 0 ? 1 + (int32_t)dice(310, i, 3) : 0;
        }
        naive_filters(expected, logits, N, &how, seen);
        failed_cases += distribution_make(&d, logits, N, &how, seen) != 0;
        for (int64_t c = 0; c < d.count; c++)
            expected[candidates[c].token] -= (double)candidates[c].weight / d.sum;
        for (int v = 0; v < N; v++) most = worst(most, fabs(expected[v]));
        kept += (double)d.count / 600;
        penalised += how.repetition_penalty != 1;
    }
    check(failed_cases == 0 && most <= 40 * EPS + 1e-15 && kept > 3 && kept < 30,
        "drawing: the filters leave what their definitions leave",
        "%d cases of temperature, top-k, top-p, min-p, %d with a penalty: probabilities off by %.3g, at most "
        "%.3g; %.1f of 40 tokens are left",
        cases, penalised, most, 40 * EPS + 1e-15, kept);
}

// The likeliest of a vocabulary of several blocks, wherever it is; of two that are alike the first.
static void drawing_likeliest(void) {
    enum { N = 2 * CANDIDATE_BLOCK + 300 };
    real* logits = reals(N);
    Candidate* candidates = (Candidate*)need(N, sizeof *candidates);
    const gpt2_sp_sampling how = drawing(0, 0, 1, 0);
    int right = 0;
    for (uint64_t i = 0; i < 200; i++) {
        int32_t one = (int32_t)dice(317, i, N), other = (int32_t)dice(318, i, N);
        for (int v = 0; v < N; v++) logits[v] = (real)(-1 - (double)dice(319, i * N + (uint64_t)v, 5));
        logits[one] = logits[other] = (real)(i % 2 ? 2 : -0.5);
        right += token_drawn(logits, N, &how, 0.5, candidates) == (one < other ? one : other);
    }
    check(
        right == 200, "drawing: the likeliest of many tokens is found, of two the first", "%d of 200", right);
    free(logits);
    free(candidates);
}

// Logits that are not finite, wherever they are, and a sampling struct out of range.
static void drawing_unsound(void) {
    enum { N = 20 };
    static const real odd[] = {(real)NAN, (real)INFINITY, -(real)INFINITY};
    real logits[N];
    Candidate candidates[N];
    int told = 0, refused = 0;
    for (int i = 0; i < 3 * N; i++) {
        const gpt2_sp_sampling how = drawing(i % 2, 0, 1, 0);
        for (int v = 0; v < N; v++) logits[v] = (real)v;
        logits[i / 3] = odd[i % 3];
        told += token_drawn(logits, N, &how, 0.5, candidates) == -1;
    }
    gpt2_sp_options o = options_of("layers=1 heads=1 channels=16 seq-len=16 threads=1");
    gpt2_sp* g = bare_trainer(&o, CACHED_VOCAB);
    if (!g) return;
    const int32_t prompt[1] = {3};
    int32_t out[4];
    for (int i = 0; i < 6; i++) {
        gpt2_sp_sampling how = drawing(1, 0, 1, 0);
        if (i == 0) how.temperature = -1;
        if (i == 1) how.top_p = NAN;
        if (i == 2) how.min_p = 1.5;
        if (i == 3) how.repetition_penalty = 0;
        if (i == 4) how.top_k = -1;
        refused += gpt2_sp_generate(g, prompt, 1, out, 4, &how) == GPT2_SP_INVALID &&
            strstr(gpt2_sp_error(g), "must be");
    }
    check(told == 3 * N && refused == 5, "drawing: logits and figures that make no sense are refused",
        "%d of %d logits not finite, %d of 5 figures out of range: %s", told, 3 * N, refused,
        gpt2_sp_error(g));
    gpt2_sp_destroy(g);
}

// What the callback heard; it ends the text with the token numbered `last`.
typedef struct {
    int32_t tokens[64];
    int64_t count, last;
} Heard;
static int hear(void* user, int32_t token) {
    Heard* h = (Heard*)user;
    h->tokens[h->count++] = token;
    return h->count == h->last;
}

enum { CONTINUED = 12, CONTINUATIONS = 5 };

// Several continuations of one prompt, with and without a penalty, each against a prompt that is read anew.
static void drawing_continuations(void) {
    gpt2_sp_options o = options_of("layers=2 heads=2 channels=32 seq-len=320 threads=1");
    gpt2_sp* g = bare_trainer(&o, CACHED_VOCAB);
    int32_t prompt[300], all[CONTINUATIONS][CONTINUED], anew[CONTINUED];
    int equal = 0, unlike = 0, heard_all = 0, repeated = 0, first_seen = 0;
    if (!g) return;
    g->eot = -1;
    ranks_run(g, rank_noise, NULL);
    for (int i = 0; i < 300; i++) prompt[i] = (int32_t)dice(311, (uint64_t)i, 100);
    gpt2_sp_generator* x = gpt2_sp_generator_open(g, NULL, prompt, 300, CONTINUED);
    for (int i = 0; x && i < CONTINUATIONS; i++) {
        Heard heard = {{0}, 0, 0};
        gpt2_sp_sampling how = drawing(i == 3 ? 0 : 1, 0, 1, 9);
        how.continuation = (uint64_t)i, how.token = hear;
        how.user = &heard;
        if (i == 4) how.repetition_penalty = 100, how.temperature = 0.1;
        int64_t made = gpt2_sp_generator_run(x, all[i], CONTINUED, &how);
        heard_all +=
            made == CONTINUED && heard.count == made && memcmp(heard.tokens, all[i], sizeof all[i]) == 0;
        how.token = NULL;
        equal += gpt2_sp_generate(g, prompt, 300, anew, CONTINUED, &how) == CONTINUED &&
            memcmp(anew, all[i], sizeof anew) == 0;
        for (int j = 0; j < i; j++) unlike += memcmp(all[j], all[i], sizeof anew) != 0;
        heard.count = 0, heard.last = 5;
        how.token = hear;
        heard_all += gpt2_sp_generator_run(x, anew, CONTINUED, &how) == 5 && heard.count == 5 &&
            memcmp(anew, all[i], 5 * sizeof *anew) == 0;
    }
    for (int i = 0; i < CONTINUED; i++) {
        for (int j = 0; j < i; j++) repeated += all[4][i] == all[4][j];
        for (int j = 0; j < 300; j++) first_seen += all[4][i] == prompt[j];
    }
    gpt2_sp_generated stats = {0, 0, 0, 0, 0, 0, 0, 0, 0};
    if (x) generated_of(x, &stats);
    check(equal == CONTINUATIONS && unlike == CONTINUATIONS * (CONTINUATIONS - 1) / 2,
        "drawing: continuations of a prompt read once are those of prompts read anew",
        "%d of %d equal, %d of 10 pairs differ", equal, (int)CONTINUATIONS, unlike);
    check(heard_all == 2 * CONTINUATIONS && stats.prompt == 300 &&
            stats.tokens == CONTINUATIONS * (CONTINUED + 5),
        "drawing: the caller hears each token and can end the text", "%d of %d runs; %lld tokens counted",
        heard_all, 2 * CONTINUATIONS, (long long)stats.tokens);
    check(repeated == 0 && first_seen == 0, "drawing: a penalty keeps tokens of the text away",
        "penalty 100: %d repeated, %d times one of the prompt's", repeated, first_seen);
    int64_t more = x ? gpt2_sp_generator_run(x, anew, CONTINUED + 1, NULL) : 0;
    const int no_room = more == GPT2_SP_INVALID && strstr(gpt2_sp_error(g), "room for 0 to 12") != NULL;
    gpt2_sp_sampling how = drawing(1, 0, 1, 9);
    how.size = 3;
    const int64_t small = x ? gpt2_sp_generator_run(x, anew, 1, &how) : 0;
    const int no_size = small == GPT2_SP_INVALID && strstr(gpt2_sp_error(g), "gpt2_sp_sampling") != NULL;
    g->step++;
    int64_t later = x ? gpt2_sp_generator_run(x, anew, 1, NULL) : 0;
    check(no_room && no_size && later == GPT2_SP_INVALID && strstr(gpt2_sp_error(g), "made a step"),
        "drawing: more than there is room for, a struct of no size, and a prompt read before a step, are "
        "refused",
        "%s", gpt2_sp_error(g));
    gpt2_sp_generator_close(x);
    gpt2_sp_destroy(g);
}

// Are the logits of tokens that are read together those of tokens that are read one by one, bit for bit? For
// widths that fill the vector registers and others, after a prompt and from the first token on.
static void drafting_rows(const char* shape) {
    gpt2_sp_options o = options_of("layers=2 seq-len=320 threads=2");
    options_apply(&o, shape);
    gpt2_sp* g = bare_trainer(&o, CACHED_VOCAB);
    if (!g) return;
    const int64_t Vp = g->mesh.shape.Vp;
    int32_t tokens[320];
    int64_t equal = 0, all = 0;
    ranks_run(g, rank_noise, NULL);
    for (int i = 0; i < 320; i++) tokens[i] = (int32_t)dice(312, (uint64_t)i, CACHED_VOCAB);
    void *one = decoder_open(g, 320), *many = decoder_open(g, 320);
    real *alone = reals(Vp), *together = reals(FEW_ROWS * Vp);
    for (int64_t start = 0; start <= 290; start += 290) {
        if (start > 0) decoder_read(one, tokens, start, 0, 1, alone);
        if (start > 0) decoder_read(many, tokens, start, 0, 1, alone);
        for (int64_t p = start, n = 1; p + n <= 320 && n <= FEW_ROWS; p += n, n += n % 3 + 1) {
            decoder_read(many, tokens + p, n, p, n, together);
            for (int64_t i = 0; i < n; i++, all++) {
                decoder_read(one, tokens + p + i, 1, p + i, 1, alone);
                equal += memcmp(alone, together + i * Vp, CACHED_VOCAB * sizeof *alone) == 0;
            }
        }
    }
    check(equal == all && all > 60, "drafting: tokens read together have the logits of tokens read alone",
        "%s: %lld of %lld rows alike to the bit", shape, (long long)equal, (long long)all);
    decoder_close(one);
    decoder_close(many);
    free(alone);
    free(together);
    gpt2_sp_destroy(g);
}

// A trainer of a shape, its weights noise of that size: small ones make all tokens about as likely.
static double noise_scale;
static int rank_scale(Rank* r, gpt2_sp* g, void* argument) {
    (void)g, (void)argument;
    real* w = r->state[STATE_WEIGHTS];
    for (int64_t i = 0; i < r->layout->buffer[STATE_WEIGHTS]; i++)
        w[i] *= (real)(w[i] == 1 ? 1 : noise_scale);
    return 0;
}
static gpt2_sp* drafting_trainer(const char* shape, int64_t vocab, double scale) {
    gpt2_sp_options o = options_of("threads=1");
    options_apply(&o, shape);
    gpt2_sp* g = bare_trainer(&o, vocab);
    if (!g) return NULL;
    ranks_run(g, rank_noise, NULL);
    noise_scale = scale;
    ranks_run(g, rank_scale, NULL);
    g->eot = -1;
    return g;
}

// Notes by position what a draft reads. When the model then reads its own last token and the proposals, the
// draft must have read the same text, all but the last proposal, and nothing beyond its context.
static struct {
    int32_t text[512];
    int64_t furthest, wrong, reads;
} draft_notes;
static int draft_read_noted(
    void* decoder, const int32_t* tokens, int64_t n, int64_t p, int64_t rows, real* logits) {
    draft_notes.furthest = max_i64(draft_notes.furthest, p + n), draft_notes.reads++;
    if (n < 1 || p + n > ((Decoder*)decoder)->capacity) {
        draft_notes.wrong++;
        return -1;
    }
    memcpy(draft_notes.text + p, tokens, (size_t)n * sizeof *tokens);
    return decoder_read(decoder, tokens, n, p, rows, logits);
}
static int model_read_noted(
    void* decoder, const int32_t* tokens, int64_t n, int64_t p, int64_t rows, real* logits) {
    if (draft_notes.reads > 0 && n > 1 && p > 0)
        draft_notes.wrong += memcmp(draft_notes.text + p, tokens, (size_t)(n - 1) * sizeof *tokens) != 0;
    return decoder_read(decoder, tokens, n, p, rows, logits);
}

// Greedy text with a draft, against that without: by drafts that agree always (the model itself), sometimes
// and hardly ever, one whose context is full on the way, and one that the prompt does not fit in.
static void drafting_greedy(void) {
    enum { MOST = 60 };
    gpt2_sp* g = drafting_trainer("layers=2 heads=2 channels=32 seq-len=400", 61, 1);
    gpt2_sp* drafts[4] = {g, drafting_trainer("layers=2 heads=2 channels=32 seq-len=400", 61, 0.8),
        drafting_trainer("layers=1 heads=1 channels=16 seq-len=40", 61, 1),
        drafting_trainer("layers=1 heads=1 channels=16 seq-len=5", 61, 1)};
    Device noted[2] = {CPU_DEVICE, CPU_DEVICE};
    int64_t furthest[4] = {0}, wrong = 0;
    int equal = 0, all = 0;
    noted[0].decoder_read = model_read_noted, noted[1].decoder_read = draft_read_noted;
    int64_t drafted[4] = {0}, accepted[4] = {0}, passes[4] = {0};
    for (uint64_t i = 0; g && drafts[1] && drafts[2] && drafts[3] && i < (quick ? 32 : 200); i++, all++) {
        int32_t prompt[30], alone[MOST], out[MOST];
        int which = (int)(i % 4);
        int64_t n = 6 + (int64_t)dice(313, i, 24), count = MOST - (int64_t)dice(314, i, 3);
        for (int64_t k = 0; k < n; k++) prompt[k] = (int32_t)dice(315, 100 * i + (uint64_t)k, 61);
        gpt2_sp_sampling how = drawing(0, 0, 1, i);
        how.repetition_penalty = i % 8 < 4 ? 1.2 : 1;
        how.draft_tokens = 1 + (int64_t)dice(316, i, GPT2_SP_DRAFT_TOKENS);
        g->eot = drafts[1]->eot = drafts[2]->eot = drafts[3]->eot = i % 16 < 8 ? -1 : (int64_t)(i % 61);
        int64_t made = gpt2_sp_generate(g, prompt, n, alone, count, &how);
        memset(&draft_notes, 0, sizeof draft_notes);
        if (which > 0) g->device = &noted[0], drafts[which]->device = &noted[1];
        gpt2_sp_generator* x = gpt2_sp_generator_open(g, drafts[which], prompt, n, count);
        gpt2_sp_generated stats = {0, 0, 0, 0, 0, 0, 0, 0, 0};
        for (int again = 0; x && again < 2; again++)
            equal += gpt2_sp_generator_run(x, out, count, &how) == made && made >= 0 &&
                memcmp(out, alone, (size_t)made * sizeof *out) == 0;
        if (x) generated_of(x, &stats);
        drafted[which] += stats.drafted, accepted[which] += stats.accepted;
        passes[which] += stats.passes;
        furthest[which] = max_i64(furthest[which], draft_notes.furthest), wrong += draft_notes.wrong;
        gpt2_sp_generator_close(x);
        g->device = drafts[which]->device = &CPU_DEVICE;
    }
    check(wrong == 0 && furthest[1] > 60 && furthest[2] == 40 && furthest[3] == 0,
        "drafting: a draft reads the text that is drawn, up to its context",
        "%lld wrong; drafts of 400, 40 and 5 tokens' context read up to %lld, %lld and %lld",
        (long long)wrong, (long long)furthest[1], (long long)furthest[2], (long long)furthest[3]);
    check(equal == 2 * all && all > 0, "drafting: greedy text is the same with a draft",
        "%d of %d runs, %d prompts: the model itself as draft, a like one, one of 40 tokens' context, one of "
        "5",
        equal, 2 * all, all);
    check(accepted[0] > 0 && accepted[0] == drafted[0] && accepted[1] > 0 && accepted[1] < drafted[1] &&
            accepted[2] < drafted[2] / 2 && drafted[3] == 0 && passes[0] < passes[3] / 2,
        "drafting: what a draft proposes is taken as often as it agrees",
        "taken %lld of %lld, %lld of %lld, %lld of %lld, %lld of %lld", (long long)accepted[0],
        (long long)drafted[0], (long long)accepted[1], (long long)drafted[1], (long long)accepted[2],
        (long long)drafted[2], (long long)accepted[3], (long long)drafted[3]);
    gpt2_sp* odd = drafting_trainer("layers=1 heads=1 channels=16 seq-len=40", 62, 1);
    const int32_t prompt[1] = {3};
    if (g && odd) odd->eot = g->eot;
    gpt2_sp_generator* x = g && odd ? gpt2_sp_generator_open(g, odd, prompt, 1, 1) : NULL;
    check(g && !x && strstr(gpt2_sp_error(g), "has 62 tokens") && strstr(gpt2_sp_error(g), "61"),
        "drafting: a draft of another vocabulary is refused", "%s", g ? gpt2_sp_error(g) : "");
    if (drafts[1]) drafts[1]->eot++;
    x = g && drafts[1] ? gpt2_sp_generator_open(g, drafts[1], prompt, 1, 1) : NULL;
    check(g && !x && strstr(gpt2_sp_error(g), "ends documents with token"),
        "drafting: a draft of another end token is refused", "%s", g ? gpt2_sp_error(g) : "");
    for (int i = 0; i < 4; i++) gpt2_sp_destroy(drafts[i]);
    gpt2_sp_destroy(odd);
}

enum { SMALL = 5, DRAWN = 3, TEXTS = SMALL * SMALL * SMALL };

// The probability of each text of DRAWN tokens after the prompt, by the model alone and the naive filters.
static void text_probabilities(
    gpt2_sp* g, const int32_t* prompt, int64_t n, const gpt2_sp_sampling* how, double probabilities[TEXTS]) {
    real* logits = reals(g->mesh.shape.Vp);
    void* decoder = decoder_open(g, n + DRAWN);
    for (int text = 0; text < TEXTS; text++) {
        int32_t tokens[16], seen[SMALL] = {0};
        int rest = text;
        memcpy(tokens, prompt, (size_t)n * sizeof *tokens);
        probabilities[text] = 1;
        for (int64_t i = 0; i < n; i++) seen[prompt[i]]++;
        for (int i = 0; i < DRAWN; i++, rest /= SMALL) {
            double p[SMALL];
            decoder_read(decoder, tokens, n + i, 0, 1, logits);
            naive_filters(p, logits, SMALL, how, seen);
            tokens[n + i] = rest % SMALL;
            probabilities[text] *= p[rest % SMALL];
            seen[rest % SMALL]++;
        }
    }
    decoder_close(decoder);
    free(logits);
}

// Chi-square of `draws` texts against their probabilities, in units of its standard deviation from its mean;
// infinite if a text came that cannot. *cells: texts that can come.
static double chi_square(const int counts[TEXTS], const double p[TEXTS], int draws, int* cells) {
    double sum = 0, few = 0, few_counts = 0;
    *cells = 0;
    for (int i = 0; i < TEXTS; i++) {
        double expected = p[i] * draws;
        if (p[i] == 0 && counts[i] > 0) return INFINITY;
        if (expected < 5) few += expected, few_counts += counts[i];
        else sum += (counts[i] - expected) * (counts[i] - expected) / expected, *cells += 1;
    }
    if (few >= 5) sum += (few_counts - few) * (few_counts - few) / few, *cells += 1;
    return (sum - (*cells - 1)) / sqrt(2.0 * (*cells - 1));
}

// Sampled text with a draft has the model's distribution: the whole texts, so that what follows a token that
// was taken or not is seen too. The draft is unlike the model, so that many proposals are not taken.
static void drafting_distribution(void) {
    static const struct {
        const char* what;
        double temperature, top_p, min_p, penalty;
        int64_t top_k, draft_tokens;
    } cases[] = {{"no filter", 1, 1, 0, 1, 0, 2}, {"temperature 0.7, top-k 3", 0.7, 1, 0, 1, 3, 1},
        {"top-p 0.8", 1, 0.8, 0, 1, 0, 2}, {"min-p 0.3", 1, 1, 0.3, 1, 0, 4},
        {"all filters, penalty 1.5", 1.3, 0.9, 0.1, 1.5, 4, 2}};
    const int draws = quick ? 4000 : 20000;
    const int32_t prompt[4] = {1, 0, 3, 3};
    gpt2_sp* g = drafting_trainer("layers=1 heads=2 channels=16 seq-len=16", SMALL, 1);
    gpt2_sp* draft = drafting_trainer("layers=1 heads=1 channels=8 seq-len=16", SMALL, 1.3);
    for (size_t c = 0; g && draft && c < sizeof cases / sizeof cases[0]; c++) {
        gpt2_sp_sampling how = drawing(cases[c].temperature, cases[c].top_k, cases[c].top_p, 11);
        how.min_p = cases[c].min_p, how.repetition_penalty = cases[c].penalty;
        how.draft_tokens = cases[c].draft_tokens;
        double p[TEXTS], away[2];
        int cells = 0;
        gpt2_sp_generated stats = {0, 0, 0, 0, 0, 0, 0, 0, 0};
        text_probabilities(g, prompt, 4, &how, p);
        for (int drafted = 0; drafted < 2; drafted++) {
            int counts[TEXTS] = {0};
            gpt2_sp_generator* x = gpt2_sp_generator_open(g, drafted ? draft : NULL, prompt, 4, DRAWN);
            for (int i = 0; x && i < draws; i++) {
                int32_t out[DRAWN] = {0};
                how.continuation = (uint64_t)(i + drafted * draws);
                gpt2_sp_generator_run(x, out, DRAWN, &how);
                counts[out[0] + SMALL * (out[1] + SMALL * out[2])]++;
            }
            if (x) generated_of(x, &stats);
            gpt2_sp_generator_close(x);
            away[drafted] = chi_square(counts, p, draws, &cells);
        }
        double taken = (double)stats.accepted / (double)stats.drafted;
        check(away[1] < 4 && away[0] < 4 && cells > 4 && taken > 0.05 && taken < 0.95,
            "drafting: sampled texts have the model's distribution",
            "%s: chi-square of %d texts over %d cells %.2f deviations above its mean, without a draft %.2f, "
            "at "
            "most 4; %.0f %% taken",
            cases[c].what, draws, cells, away[1], away[0], 100 * taken);
    }
    gpt2_sp_destroy(g);
    gpt2_sp_destroy(draft);
}

static void test_drawing(void) {
    drawing_filters();
    drawing_likeliest();
    drawing_unsound();
    drawing_continuations();
    drafting_rows("heads=2 channels=64");
    drafting_rows("heads=3 channels=33");
    drafting_rows("heads=1 channels=40 center=0");
    drafting_greedy();
    drafting_distribution();
}

// A trainer that does not learn, of P ranks: its weights are the noise of a rank alone.
static int rank_weights_copy(Rank* r, gpt2_sp* g, void* weights) {
    (void)g;
    memcpy(r->state[STATE_WEIGHTS], weights, (size_t)r->layout->buffer[STATE_WEIGHTS] * sizeof(real));
    return 0;
}
static gpt2_sp* sharing_trainer(const char* shape, int64_t vocab, int ranks, const gpt2_sp* weights) {
    gpt2_sp_options o = options_of("threads=1");
    options_apply(&o, shape);
    o.sp = ranks;
    gpt2_sp* g = trainer_new(&o);
    if (!g || trainer_init(g, vocab, 0) != 0) {
        check(0, "sharing: a trainer is made", "%s", g ? g->error.text : "out of memory");
        gpt2_sp_destroy(g);
        return NULL;
    }
    g->eot = -1;
    const Layout *to = &g->layout, *from = &weights->layout;   // padded to the ranks
    real* all = (real*)calloc((size_t)to->buffer[STATE_WEIGHTS], sizeof *all);
    for (int u = 0; u < to->count; u++)
        memcpy(all + to->units[u].offset, weights->ranks[0].state[STATE_WEIGHTS] + from->units[u].offset,
            (size_t)to->units[u].elements * sizeof *all);
    ranks_run(g, rank_weights_copy, all);
    free(all);
    return g;
}

// Every position is kept by one rank, at the place that the positions before it leave; by stretches as by
// single positions; and no rank keeps more than a block above another.
static void sharing_positions(void) {
    enum { END = 400 };
    int64_t wrong = 0, owners = 0, uneven = 0, stretches = 0;
    for (int ranks = 1; ranks <= 5; ranks++)
        for (int64_t block = 1; block <= 64; block += 21) {
            int64_t next[5] = {0};
            for (int64_t p = 0; p < END; p++) {
                int owner = (int)(p / block % ranks);
                for (int i = 0; i < ranks; i++) {
                    const CacheShare s = {ranks, i, block};
                    int64_t begin = -1, until = -1;
                    int any = cache_next(&s, p, END, &begin, &until), first = (int)(begin / block % ranks);
                    wrong += cache_kept(&s, p) != next[i];
                    owners += any && begin == p;
                    wrong += (any && begin == p) != (i == owner);
                    wrong += any && (first != i || until <= begin || until > END || begin < p);
                    wrong += any && cache_kept(&s, until) - cache_kept(&s, begin) != until - begin;
                    wrong += cache_kept(&s, any ? begin : (int64_t)END) != next[i];
                    stretches += any;
                    uneven += next[i] > next[0] || next[0] - next[i] > block;
                }
                next[owner]++;
            }
            wrong += cache_most(ranks, block, END) != next[0];
        }
    check(wrong == 0 && uneven == 0 && owners == 20 * END,
        "sharing: every position has one rank and one place, and ranks have as many",
        "%lld wrong, %lld uneven of %lld stretches; %lld owners of %d positions", (long long)wrong,
        (long long)uneven, (long long)stretches, (long long)owners, 20 * END);
}

// Logits of tokens read in pieces of all kinds of lengths, up to several blocks: those of one rank, within
// rounding; and to the bit those of tokens read one by one.
static void sharing_logits(const char* shape) {
    enum { END = 700 };
    static const int64_t reads[] = {1, 1, 1, 125, 1, 3, 250, 2, 16, 130, 1, 150};   // their sum: 681
    gpt2_sp_options o = options_of("threads=1");
    options_apply(&o, shape);
    gpt2_sp* one = bare_trainer(&o, CACHED_VOCAB);
    if (!one) return;
    ranks_run(one, rank_noise, NULL);
    const int64_t V = CACHED_VOCAB, Vp = one->mesh.shape.Vp;
    real *found = reals(FEW_ROWS * Vp), *reference = reals(FEW_ROWS * Vp);
    double* expected = doubles(V);
    int32_t tokens[END];
    for (int i = 0; i < END; i++) tokens[i] = (int32_t)dice(331, (uint64_t)i, CACHED_VOCAB);
    for (int ranks = 2; ranks <= 4; ranks++) {
        gpt2_sp* g = sharing_trainer(shape, CACHED_VOCAB, ranks, one);
        void *alone = decoder_open(one, END), *many = g ? decoder_open(g, END) : NULL;
        double most = 0;
        int64_t compared = 0, together = 0;
        const size_t count = sizeof reads / sizeof reads[0];
        for (int64_t i = 0, p = 0; many && i < (int64_t)count; p += reads[i++]) {
            int64_t rows = reads[i] <= FEW_ROWS ? reads[i] : 1;
            if (decoder_read(alone, tokens + p, reads[i], p, rows, reference) != 0 ||
                decoder_read(many, tokens + p, reads[i], p, rows, found) != 0)
                most = NAN;
            for (int64_t k = 0; k < rows; k++, compared++) {
                for (int64_t v = 0; v < V; v++) expected[v] = (double)reference[k * Vp + v];
                most = worst(most, distance(found + k * Vp, expected, V));
            }
            if (rows < 2) continue;
            for (int64_t k = 0; k < rows; k++) {   // one by one, with the same bits
                if (decoder_read(many, tokens + p + k, 1, p + k, 1, reference) != 0) most = NAN;
                together += memcmp(reference, found + k * Vp, (size_t)V * sizeof *found) == 0;
            }
        }
        double limit = 1e-5;
        check(most <= limit && compared == 30 && together == 21,
            "sharing: the logits of ranks that share the cache are one rank's",
            "%s, %d ranks: %.3g apart, at most %.3g, %lld rows; %lld of 21 alike to the bit when read alone",
            shape, ranks, most, limit, (long long)compared, (long long)together);
        if (alone) decoder_close(alone);
        if (many) decoder_close(many);
        gpt2_sp_destroy(g);
    }
    free(found);
    free(reference);
    free(expected);
    gpt2_sp_destroy(one);
}

// Greedy and sampled text, with and without a draft, several continuations of a prompt: the same tokens for
// every number of ranks; also of prompts shorter than that number.
static void sharing_text(void) {
    enum { MOST = 40 };
    static const int64_t prompts[] = {1, 2, 3, 100, 127, 128, 129, 300};
    static const char shape[] = "layers=2 heads=2 channels=32 seq-len=400";
    gpt2_sp* one = drafting_trainer(shape, 61, 1);
    gpt2_sp* draft = drafting_trainer("layers=1 heads=1 channels=16 seq-len=350", 61, 1);
    int equal = 0, all = 0, continuations = quick ? 1 : 2;
    int64_t drawn = 0, accepted = 0;
    for (int ranks = 2; one && draft && ranks <= 4; ranks++) {
        gpt2_sp* g = sharing_trainer(shape, 61, ranks, one);
        for (int i = 0; g && i < 8; i++)
            for (int how = 0; how < 4; how++) {   // bit 0: sampled; bit 1: with a draft
                int32_t prompt[300], out[2][MOST];
                gpt2_sp_sampling s = drawing(how & 1, 0, 1, (uint64_t)(10 * i + how));
                for (int64_t k = 0; k < prompts[i]; k++)
                    prompt[k] = (int32_t)dice(333, 1000 * (uint64_t)i + (uint64_t)k, 61);
                gpt2_sp* of[2] = {one, g};
                int64_t made[2] = {-2, -3};
                for (s.continuation = 0; s.continuation < (uint64_t)continuations; s.continuation++, all++) {
                    for (int w = 0; w < 2; w++) {
                        gpt2_sp_generated stats;
                        gpt2_sp_generator* x =
                            gpt2_sp_generator_open(of[w], how & 2 ? draft : NULL, prompt, prompts[i], MOST);
                        made[w] = x ? gpt2_sp_generator_run(x, out[w], MOST, &s) : -1;
                        if (x) generated_of(x, &stats), accepted += stats.accepted;
                        gpt2_sp_generator_close(x);
                    }
                    equal += made[0] == MOST && made[1] == MOST && memcmp(out[0], out[1], sizeof out[0]) == 0;
                    drawn += max_i64(made[1], 0);
                }
            }
        gpt2_sp_destroy(g);
    }
    check(equal == all && all == 3 * 8 * 4 * continuations && accepted > 0,
        "sharing: text is the same for every number of ranks",
        "%d of %d texts, %lld tokens, of 2 to 4 ranks against one; %lld drafted ones taken", equal, all,
        (long long)drawn, (long long)accepted);
    gpt2_sp_destroy(one);
    gpt2_sp_destroy(draft);
}

// P ranks need a P-th of the cache each, and a cache that no memory holds is refused with what would fit.
static void sharing_memory(void) {
    static const char shape[] = "layers=2 heads=2 channels=32 seq-len=1024";
    gpt2_sp* one = drafting_trainer(shape, 61, 1);
    int right = 0, refused = 0;
    char said[GPT2_SP_TEXT] = "";
    for (int ranks = 1; one && ranks <= 4; ranks++) {
        gpt2_sp* g = sharing_trainer(shape, 61, ranks, one);
        if (!g) continue;
        Decoder* d = (Decoder*)decoder_open(g, 1024);
        int64_t most = ceil_div(1024 / BK, ranks) * BK, rows = DECODE_ROWS * 10L * 32;
        int64_t parts = ranks * DECODE_ROWS * (32L + 2 * 2);
        if (d) right += d->kept == most && decoder_part(d, NULL) == 2 * 2 * 32 * most + rows + parts;
        if (d) decoder_close(d);
        void* none = decoder_open(g, (int64_t)1 << 44);
        refused += !none && strstr(gpt2_sp_error(g), "tokens would fit") != NULL;
        snprintf(said, sizeof said, "%s", gpt2_sp_error(g));
        if (none) decoder_close(none);
        gpt2_sp_destroy(g);
    }
    check(right == 4 && refused == 4,
        "sharing: each rank has its part of the cache, and too large a one is refused",
        "%d of 4 sizes, %d of 4 refused: %s", right, refused, said);
    if (one) {
        cache_refuse(one, 1000, BK, 1 << 20, 1 << 20, 101 << 20);
        check(strstr(gpt2_sp_error(one), ": 100 tokens would fit") &&
                strstr(gpt2_sp_error(one), "takes 0.98 GiB, beside the model, and there are 0.10"),
            "sharing: the refusal says how many tokens would fit", "%s", gpt2_sp_error(one));
        gpt2_sp* g = sharing_trainer(shape, 61, 3, one);
        if (g) cache_refuse(g, 3 * 1000, 100, 1 << 20, 1 << 20, 302 << 20);
        check(g && strstr(gpt2_sp_error(g), ": 900 tokens would fit") &&
                strstr(gpt2_sp_error(g), "0.98 GiB on each of 3 ranks"),
            "sharing: the refusal counts whole blocks of every rank", "%s", g ? gpt2_sp_error(g) : "");
        gpt2_sp_destroy(g);
    }
    gpt2_sp_destroy(one);
}

static void test_sharing(void) {
    sharing_positions();
    sharing_logits("layers=2 heads=2 channels=64 seq-len=720");
    sharing_logits("layers=2 heads=3 channels=33 seq-len=720 center=0");
    sharing_text();
    sharing_memory();
}
