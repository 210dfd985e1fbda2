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
        refused += gpt2_sp_generate(g, prompt, 1, out, 4, &how) == -1 && strstr(gpt2_sp_error(g), "must be");
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
    gpt2_sp_generator* x = gpt2_sp_generator_open(g, prompt, 300, CONTINUED);
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
    gpt2_sp_generated stats = {0, 0, 0, 0};
    if (x) gpt2_sp_generator_stats(x, &stats);
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
    const int no_room = more == -1 && strstr(gpt2_sp_error(g), "room for 0 to 12") != NULL;
    g->step++;
    int64_t later = x ? gpt2_sp_generator_run(x, anew, 1, NULL) : 0;
    check(no_room && later == -1 && strstr(gpt2_sp_error(g), "read at step 0"),
        "drawing: more than there is room for, and a prompt read before a step, are refused", "%s",
        gpt2_sp_error(g));
    gpt2_sp_generator_close(x);
    gpt2_sp_destroy(g);
}

static void test_drawing(void) {
    drawing_filters();
    drawing_unsound();
    drawing_continuations();
}
