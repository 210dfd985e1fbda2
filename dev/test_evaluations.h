/*
 * test_evaluations.h: what `eval` tells of a model, part of test_gpt2_sp.c.
 *
 * Held: the loss of every label is that of a plain pass over its window alone, whatever windows lie side by
 * side and whatever ranks share them, and every label counts once; each figure is the one that its formula
 * gives from losses that are known beforehand; a model that knows nothing gains nothing, and one that reads
 * answers every question; two models that are one differ by zero; what cannot be evaluated is refused. A
 * label that counts twice, or with less context than is said, makes a long context look better or worse than
 * it is, and nothing else would show it.
 */

// --- windows and losses ---

// Every label once, new to its window, with at least W - S tokens before it and inside the data.
static void windows_cover(void) {
    int wrong = 0, kinds = 0;
    for (int64_t tokens = 2; tokens < 70; tokens++)
        for (int64_t W = 1; W < tokens; W = W < 9 ? W + 1 : W + 7)
            for (int64_t S = 1; S <= W; S++, kinds++) {
                int times[70] = {0};
                const int64_t n = windows_count(tokens, W, S);
                for (int64_t i = 0; i < n; i++) {
                    Window w = window_at((uint64_t)tokens, W, S, (uint64_t)i);
                    const int64_t begin = (int64_t)w.position;
                    wrong += begin < 0 || begin + W + 1 > tokens || (i < n - 1 && begin != i * S);
                    wrong += w.seen >= W || (i > 0 && w.seen < W - S);
                    for (int64_t t = w.seen; t < W; t++) times[begin + t + 1]++;
                }
                for (int64_t p = 0; p < tokens; p++) wrong += times[p] != (p > 0);
            }
    check(wrong == 0 && kinds > 1000, "evaluations: windows of any length and stride count every label once",
        "2 to 69 tokens, %d kinds of windows, %d faults", kinds, wrong);
}

enum { LABELS_T = 60, LABELS_TOKENS = 401 };

// An evaluation of run_data's first tokens by a trainer without a model; -1 if it cannot be made.
static int eval_open(Eval* v, gpt2_sp_options* asked, const char* more, int64_t tokens) {
    gpt2_sp_options o = options_of("layers=1 heads=2 channels=16 threads=1 doc-mask=1");
    Error e = {0, {0}};
    options_apply(&o, more);
    memset(v, 0, sizeof *v);
    v->o = asked, v->tokens = tokens;
    v->g = bare_trainer(&o, 257);
    if (v->g && dataset_open(&v->data, run_data(), &DATA_DOCUMENTS, &e) == 0) return 0;
    check(0, "a test's evaluation is made", "%s", e.text);
    gpt2_sp_destroy(v->g);
    return -1;
}
static void eval_close(Eval* v) {
    for (int i = 0; i < v->losses_count; i++) free(v->losses[i].loss);
    free(v->key);
    dataset_close(&v->data);
    gpt2_sp_destroy(v->g);
}

// The losses of the tokens begin..begin+n-1 of the data as labels of what is before them, read alone by a
// trainer whose sequence has no mask; out[i]: of token begin + 1 + i.
static int losses_alone(gpt2_sp* one, Dataset* d, int64_t begin, int64_t n, double* out) {
    int32_t tokens[LABELS_T + 1];
    const RankBatch* batch = &one->ranks[0].batches[2];
    Error e;
    if (dataset_read(d, d->cursors, (uint64_t)begin, (uint64_t)n + 1, tokens, &e) != 0) return -1;
    for (int64_t t = 0; t < one->mesh.shape.T; t++) {
        batch->tokens[t] = t < n ? tokens[t] : 0;
        batch->labels[t] = t < n ? tokens[t + 1] : -1;
    }
    if (ranks_run(one, rank_read, NULL) != 0) return -1;
    for (int64_t t = 0; t < n; t++) out[t] = (double)one->ranks[0].token_loss[t];
    return 0;
}

// The losses of all labels by the definition: windows of W tokens that begin every S; a label counts in the
// first that has it; with documents only the window's tokens of its own document are read. Returns how many
// labels there are, -1 on an error.
static int64_t losses_by_definition(
    gpt2_sp* one, Dataset* d, int64_t W, int64_t S, int doc_mask, double* losses) {
    int64_t labels = 0, next = 1;   // the first label that no window has had
    for (int64_t p = 0; p < LABELS_TOKENS; p++) losses[p] = NAN;
    for (int64_t begin = 0; next < LABELS_TOKENS; begin += S) {
        int64_t at = begin + W < LABELS_TOKENS ? begin : LABELS_TOKENS - 1 - W;
        for (int64_t from = at; from < at + W;) {
            uint64_t document, end = (uint64_t)(at + W + 1);
            double found[LABELS_T];
            if (doc_mask) dataset_document(d, (uint64_t)from, &document, &end);
            int64_t last = min_i64(at + W, (int64_t)end - 1);   // the last token with a label of the document
            if (last > from && losses_alone(one, d, from, last - from, found) != 0) return -1;
            for (int64_t p = max_i64(from + 1, next); p <= last; p++)
                losses[p] = found[p - from - 1], labels++;
            from = doc_mask ? (int64_t)end : at + W;
        }
        next = at + W + 1;
    }
    return labels;
}

// The losses that all splits collect, against the definition.
static void labels_by_definition(void) {
    static const char* const splits[] = {
        "sp=1", "sp=3", "sp=4 schedule=zigzag", "dp=2", "dp=2 sp=2 schedule=allgather"};
    static const int64_t windows[][2] = {{60, 60}, {60, 30}, {29, 14}, {16, 5}, {7, 1}};
    gpt2_sp_options o = options_of("layers=1 heads=2 channels=16 threads=1 seq-len=60"),
                    asked = options_of("");
    gpt2_sp* one = bare_trainer(&o, 257);
    if (!one) return;
    ranks_run(one, rank_noise, NULL);
    for (int k = 0; k < 10; k++) {
        const int64_t W = windows[k / 2][0], S = windows[k / 2][1];
        double expected[LABELS_TOKENS], most = 0;
        int64_t labels = -1, counted = 0, splits_counted = 0;
        asked.doc_mask = k % 2;
        for (int i = 0; i < 5; i++) {
            Eval v;
            char more[128];
            snprintf(more, sizeof more, "seq-len=%d %s", LABELS_T, splits[i]);
            if (eval_open(&v, &asked, more, LABELS_TOKENS) != 0) continue;
            if (i == 0) labels = losses_by_definition(one, &v.data, W, S, k % 2, expected);
            LabelLosses l = {W, S, (float*)need(LABELS_TOKENS, sizeof(float))};
            ranks_run(v.g, rank_noise, NULL);
            int status = losses_collect(&v, &l);
            counted = 0;
            for (int64_t p = 0; status == 0 && p < LABELS_TOKENS; p++) {
                counted += !isnan(l.loss[p]);
                if (isnan(l.loss[p]) != isnan(expected[p])) counted = -LABELS_TOKENS;
                if (!isnan(expected[p]))
                    most = worst(most, fabs((double)l.loss[p] - expected[p]) / fmax(1, expected[p]));
            }
            splits_counted += counted == labels;
            if (status != 0) printf("     %s: %s\n", splits[i], gpt2_sp_error(v.g));
            free(l.loss);
            eval_close(&v);
        }
        check(splits_counted == 5 && labels > 300 && most < 1e-5,
            "evaluations: the loss of a label is that of its window alone",
            "W %d, S %d%s: %d labels, in %d of 5 splits, %.1e apart", (int)W, (int)S,
            k % 2 ? ", documents" : "", (int)labels, (int)splits_counted, most);
    }
    gpt2_sp_destroy(one);
}

// --- figures from losses that are known ---

// The loss that the pass below gives a row with `context` tokens before it and a label.
static double loss_given(int64_t context, int32_t label) { return 6.0 / (1 + (double)context) + label % 4; }
static int pass_given(Rank* r, int64_t pass) {
    (void)pass;
    for (int64_t t = 0; t < r->R; t++)
        r->token_loss[t] = (real)loss_given(t - r->batch->doc_start[t], r->batch->labels[t]);
    return 0;
}

// Replicas share the windows: a pass for each round of all replicas' windows.
static int64_t passes_counted;
static int pass_counted(Rank* r, int64_t pass) {
    passes_counted += r->place.dp == 0;
    return pass_given(r, pass);
}
static void replicas_share(void) {
    gpt2_sp_options asked = options_of("");
    int64_t passes[2] = {0, 0};
    for (int dp = 1; dp <= 2; dp++) {
        Eval v;
        LabelLosses l = {LABELS_T, LABELS_T, (float*)need(LABELS_TOKENS, sizeof(float))};
        if (eval_open(&v, &asked, dp == 1 ? "seq-len=60" : "seq-len=60 dp=2", LABELS_TOKENS) != 0) return;
        Device device = *v.g->device;
        passes_counted = 0;
        device.pass = pass_counted;
        v.g->mesh.device = &device;
        if (losses_collect(&v, &l) == 0) passes[dp - 1] = passes_counted;
        free(l.loss);
        eval_close(&v);
    }
    check(passes[0] == 7 && passes[1] == 4, "evaluations: replicas share the windows",
        "7 windows: %d passes of one replica, %d of two", (int)passes[0], (int)passes[1]);
}

// What the figures of the losses of pass_given must be, over all labels one by one.
typedef struct {
    double loss, count, first, second, second_count;   // of all; at position 0; at positions 2 and 3
    double gain, gain_count, key, key_loss, sliding;
    double second_gain, second_gain_count;   // the gain at positions 2 and 3
} FiguresGiven;
static FiguresGiven figures_given(const Eval* v, const int32_t* stream, int64_t T, int64_t N) {
    FiguresGiven f;
    memset(&f, 0, sizeof f);
    for (int64_t p = 1; p < v->tokens; p++) {
        uint64_t begin, end;
        dataset_document(&v->data, (uint64_t)p - 1, &begin, &end);
        if (v->o->doc_mask && (uint64_t)p == end) continue;
        int64_t in_document = v->o->doc_mask ? p - 1 - (int64_t)begin : p - 1, S = N / 2;
        int64_t whole = min_i64(in_document, (p - 1) % T), last = v->tokens - 1 - T;
        if ((p - 1) / T * T > last) whole = min_i64(in_document, p - 1 - last);
        int64_t part = p - 1 < N ? p - 1 : N - S + (p - 1 - N) % S;   // in windows of N that move by S
        if (p - 1 >= N && p - 1 - part > v->tokens - 1 - N) part = p - 1 - (v->tokens - 1 - N);
        part = min_i64(in_document, part);
        double with = loss_given(whole, stream[p]), without = loss_given(part, stream[p]);
        f.loss += with, f.count += 1;
        f.sliding += without;
        if (whole == 0) f.first += with;
        if (whole == 2 || whole == 3) f.second += with, f.second_count += 1;
        if (whole < N) continue;
        f.gain += without - with, f.gain_count += 1;
        if (whole < 4) f.second_gain += without - with, f.second_gain_count += 1;
        if (without - with > 2 && with < 2) f.key += 1, f.key_loss += with;
    }
    return f;
}

// Loss, loss by position, context gain, LongPPL, sliding perplexity.
static void figures_by_definition(int doc_mask) {
    enum { TOKENS = 1500 };
    gpt2_sp_options asked = options_of("");
    Error e = {0, {0}};
    Eval v;
    static int32_t stream[TOKENS];
    const int64_t T = LABELS_T, N = 2;
    asked.doc_mask = doc_mask, asked.context_gain = N;
    snprintf(asked.data, sizeof asked.data, "x");
    snprintf(asked.sliding, sizeof asked.sliding, "%d,2", LABELS_T);
    EvalTable* t = (EvalTable*)need(3, sizeof *t);
    if (eval_open(&v, &asked, "seq-len=60", TOKENS) != 0) return;
    Device device = *v.g->device;
    device.pass = pass_given;
    v.g->mesh.device = &device;
    int status = losses_plan(&v, T, &e) != 0 || losses_allocate(&v, 1 << 20, &e) != 0 ||
        dataset_read(&v.data, v.data.cursors, 0, TOKENS, stream, &e) != 0;
    for (int i = 0; i < v.losses_count && status == 0; i++) status = losses_collect(&v, &v.losses[i]);
    int planned = v.losses_count;   // the windows of 2 serve two evaluations
    for (int i = 0; i < 3 && status == 0; i++) status = EVALUATIONS[i].measure(&v, &t[i]);
    const FiguresGiven f = figures_given(&v, stream, T, N);
    const double found[] = {t[0].total[0], t[0].total[1], t[0].total[3], t[0].row[0].figure[0],
        t[0].row[2].figure[0], t[0].row[2].count, t[1].total[0], t[1].total[3], t[1].total[4], t[1].total[5],
        t[1].total[6], t[2].row[1].figure[0], t[2].row[1].figure[1], t[2].row[1].count, t[1].row[0].figure[2],
        t[1].row[0].count};
    const double expected[] = {f.loss / f.count, f.count, exp(f.loss / f.count), f.first / t[0].row[0].count,
        f.second / f.second_count, f.second_count, f.gain / f.gain_count, f.gain_count,
        exp(f.key_loss / f.key), f.key, f.key / f.gain_count, f.sliding / f.count, exp(f.sliding / f.count),
        f.count, f.second_gain / f.second_gain_count, f.second_gain_count};
    static const char* const names[] = {"loss", "tokens", "perplexity", "loss at position 0", "at 2 and 3",
        "labels there", "gain", "its labels", "LongPPL", "key tokens", "their share", "sliding loss",
        "its perplexity", "its labels", "gain at 2 and 3", "labels there"};
    double most = 0;
    for (int i = 0; i < 16; i++) {
        double apart = fabs(found[i] - expected[i]) / fmax(1, fabs(expected[i]));
        if (!(apart < 1e-6)) printf("     %s: %.9g, expected %.9g\n", names[i], found[i], expected[i]);
        most = worst(most, apart);
    }
    check(status == 0 && most < 1e-6 && f.key > 5 && f.key < f.gain_count / 2 && planned == 3,
        "evaluations: figures are those of their formulas",
        "%s16 figures, %.1e apart; %g of %g are key tokens; %d kinds of windows %s%s",
        doc_mask ? "documents: " : "", most, f.key, f.gain_count, planned, e.text, gpt2_sp_error(v.g));
    free(t);
    eval_close(&v);
}

// A model whose tokens are all alike: the loss is ln V with any context, a context gains nothing, there is no
// key token, and every question is a tie.
static void uniform_model(void) {
    gpt2_sp_options asked = options_of("");
    Error e = {0, {0}};
    Eval v;
    asked.context_gain = 20, asked.probe = GPT2_SP_ALL_PROBES;
    asked.probe_items = 2;
    snprintf(asked.data, sizeof asked.data, "x");
    snprintf(asked.sliding, sizeof asked.sliding, "1");
    EvalTable* t = (EvalTable*)need(4, sizeof *t);
    if (eval_open(&v, &asked, "seq-len=300 sp=2", 1000) != 0) return;
    int status = bpe_load_bytes(&v.g->tokenizer, e.text, sizeof e.text) != 0 ||
        losses_plan(&v, 300, &e) != 0 || losses_allocate(&v, 1 << 20, &e) != 0;
    for (int i = 0; i < v.losses_count && status == 0; i++) status = losses_collect(&v, &v.losses[i]);
    for (int i = 0; i < 4 && status == 0; i++) status = EVALUATIONS[i].measure(&v, &t[i]);
    double apart = fabs(t[0].total[0] - log(257)) + fabs(t[0].total[3] / 257 - 1);
    for (int i = 0; i < t[0].rows; i++) apart = worst(apart, fabs(t[0].row[i].figure[0] - log(257)));
    for (int i = 0; i < t[2].rows; i++) apart = worst(apart, fabs(t[2].row[i].figure[1] / 257 - 1));
    check(status == 0 && apart < 1e-5 && t[2].rows == 2 && t[2].row[0].key[0] == 256 &&
            t[2].row[0].key[1] == 128,
        "evaluations: a uniform model's loss is ln V at every position and in every window",
        "%.1e apart, %d windows %s", apart, t[2].rows, e.text);
    check(t[1].total[0] == 0 && t[1].total[5] == 0 && isnan(t[1].total[4]) && t[1].total[3] > 500,
        "evaluations: a uniform model gains nothing by context", "gain %g, %g key tokens of %g",
        t[1].total[0], t[1].total[5], t[1].total[3]);
    int ties = 0;
    for (int i = 0; i < t[3].rows; i++)
        for (int d = 0; d < PROBE_DEPTHS; d++) ties += t[3].row[i].figure[d] == 0.25;
    check(ties == 40 && t[3].rows == 8 && fabs(t[3].total[0] - 0.25) < 1e-12 && t[3].total[1] == 0.25,
        "evaluations: a uniform model answers by chance", "%d of 40 shares are 1/4, in all %g", ties,
        t[3].total[0]);
    free(t);
    eval_close(&v);
}

// --- questions ---

// Whether a text, which ends with an answer, ends with the right one, by reading it as a person would.
static int answer_right(int kind, const char* text, size_t length) {
    char question[600];
    const char* at;
    size_t answer = length;
    while (answer > 0 && text[answer - 1] != ' ') answer--;
    if (kind == PROBE_NEEDLE || kind == PROBE_MULTIKEY) {
        char key[64];
        snprintf(question, sizeof question, "%.90s", text + (length > 90 ? length - 90 : 0));
        at = strstr(question, "What is the code of ");
        if (!at || sscanf(at, "What is the code of %60[^?]", key) != 1) return 0;
        snprintf(question, sizeof question, " The code of %s is %s.", key, text + answer);
    } else if (kind == PROBE_TRACKING) {
        char name = text[answer - 4];   // "c = 47153"
        for (int links = 0;; links++) {
            snprintf(question, sizeof question, " %c = ", name);
            at = strstr(text, question);
            if (!at || at + 5 > text + answer || links > 3) return 0;
            if (at[5] >= '0' && at[5] <= '9') return links == 2 && strncmp(at + 5, text + answer, 5) == 0;
            name = at[5];
        }
    } else {
        size_t words = answer;   // the seven words and the answer: 8 x 7 bytes
        snprintf(question, sizeof question, "%s.", text + words - 50);
    }
    return strstr(text, question) != NULL;
}

// A pass that finds a right answer's bytes certain and others not, or the other way round.
static struct { int kind, wrong; } reader;
static int pass_reader(Rank* r, int64_t pass) {
    (void)pass;
    for (int64_t t = 0; t < r->R; t++) {
        r->token_loss[t] = 0;
        if (r->batch->labels[t] < 0 || (t + 1 < r->R && r->batch->labels[t + 1] >= 0)) continue;
        char text[1200];   // up to the last label of a sequence
        int64_t begin = r->batch->doc_start[t], n = 0;
        for (int64_t i = begin; i <= t; i++) text[n++] = (char)r->batch->tokens[i];
        text[n++] = (char)r->batch->labels[t];
        text[n] = 0;
        int64_t first = t;   // the answer's first label: of the blank before it
        while (first > begin && r->batch->labels[first - 1] >= 0) first--;
        int whole =
            text[first - begin + 1] == ' ' && !memchr(text + (first - begin + 2), ' ', (size_t)(t - first));
        int right = whole && answer_right(reader.kind, text, (size_t)n);
        r->token_loss[t] = right != reader.wrong ? (real)0.5 : (real)2;
    }
    return 0;
}

// A model that reads answers every question; one that prefers what is wrong, none.
static void questions_answered(void) {
    gpt2_sp_options asked = options_of("");
    Error e = {0, {0}};
    Eval v;
    double right[2] = {0, 0};
    int rows = 0;
    asked.probe_items = 3;
    if (eval_open(&v, &asked, "seq-len=1000", 100) != 0) return;
    int status = bpe_load_bytes(&v.g->tokenizer, e.text, sizeof e.text);
    Device device = *v.g->device;
    device.pass = pass_reader;
    v.g->mesh.device = &device;
    for (int k = 0; k < 2 * PROBE_KINDS && status == 0; k++) {
        EvalTable* t = (EvalTable*)need(1, sizeof *t);
        reader.kind = k / 2, reader.wrong = k % 2;
        asked.probe = GPT2_SP_FIRST_PROBE + reader.kind;
        status = measure_probe(&v, t);
        for (int i = 0; i < t->rows; i++)
            for (int d = 0; d < PROBE_DEPTHS; d++) right[k % 2] += t->row[i].figure[d];
        rows += t->rows;
        free(t);
    }
    check(status == 0 && rows == 24 && fabs(right[0] - 60) < 1e-9 && right[1] == 0,
        "evaluations: who reads the text answers every question, who prefers the wrong none",
        "4 kinds, lengths 256, 512, 1000, 5 depths: %g of 60 and %g %s", right[0], right[1],
        gpt2_sp_error(v.g));
    eval_close(&v);
}

// Texts have just the length that is asked for, and the fact where it is asked for; they are the same again
// for the same numbers, and others for others.
static void questions_made(void) {
    char err[256] = "", text[5000];
    bpe bytes;
    probe_maker m, again;
    int wrong = 0, made = 0, others = 0;
    if (bpe_load_bytes(&bytes, err, sizeof err) != 0) return;
    int status =
        probe_open(&m, &bytes, 4096, err, sizeof err) | probe_open(&again, &bytes, 4096, err, sizeof err);
    for (int k = 0; status == 0 && k < PROBE_KINDS; k++)
        for (int64_t length = 256; length <= 4096; length *= 4)
            for (int depth = 0; depth < PROBE_DEPTHS; depth++)
                for (int64_t item = 0; item < 4; item++, made++) {
                    status |= probe_make(&m, k, 5, item, length, depth, err, sizeof err);
                    status |= probe_make(&again, k, 5, item, length, depth, err, sizeof err);
                    wrong += m.prompt_tokens + m.candidate[0].count != length;
                    wrong += k == PROBE_MULTIKEY &&
                        m.pieces !=
                            (length == 256           ? 4
                                    : length == 4096 ? 32
                                                     : m.pieces);
                    wrong += memcmp(m.prompt, again.prompt, (size_t)m.prompt_tokens * sizeof *m.prompt) != 0;
                    for (int i = 0; i < PROBE_CANDIDATES; i++)
                        wrong += m.candidate[i].count != m.candidate[0].count;
                    for (int64_t i = 0; i < m.prompt_tokens; i++) text[i] = (char)m.prompt[i];
                    text[m.prompt_tokens] = 0;
                    char answer[16] = "";
                    for (int i = 0; i < m.candidate[0].count; i++) answer[i] = (char)m.candidate[0].token[i];
                    if (k == PROBE_NGRAM)
                        snprintf(answer, sizeof answer, "%.7s", text + m.prompt_tokens - 49);
                    const char* at = strstr(text, answer);   // of the filler stands depth / 4 before it
                    double place = at ? (double)(at - text) / (double)length : -1;
                    // the other facts take up to half of the text
                    double slack = (k == PROBE_MULTIKEY ? 0.55 : 0.02) + 160.0 / (double)length;
                    wrong += k != PROBE_NGRAM && !(fabs(place - depth / 4.0) < slack);
                    status |= probe_make(&again, k, 5, item + 1, length, depth, err, sizeof err);
                    others += memcmp(m.prompt, again.prompt, 200 * sizeof *m.prompt) != 0;
                }
    check(status == 0 && made == 240 && wrong == 0 && others == made,
        "evaluations: questions have their length, their depth, and are functions of their numbers",
        "%d made, %d faults, %d unlike the next %s", made, wrong, others, err);
    probe_close(&m);
    probe_close(&again);
    bpe_free(&bytes);
}

// --- the command ---

// The distance of two JSON texts, as the largest of numbers |a - b| / max(1, |a|); NAN if they differ in more
// than numbers.
static double json_distance(const char* a, const char* b) {
    double most = 0;
    int text = 0;   // inside quotes, where a digit is no number
    while (*a && *b) {
        char *after_a, *after_b;
        text ^= *a == '"';
        int number = !text && ((*a >= '0' && *a <= '9') || *a == '-');
        if (!number) {
            if (*a++ != *b++) return NAN;
            continue;
        }
        double x = strtod(a, &after_a), y = strtod(b, &after_b);
        if (after_b == b) return NAN;
        most = worst(most, fabs(x - y) / fmax(1, fabs(x)));
        a = after_a, b = after_b;
    }
    return *a == *b ? most : NAN;
}

// All figures are the same for every split; of a model and itself all differences are zero.
static void evaluations_command(const char* run, const char* other, const char* shard) {
    static const char* const splits[] = {
        "--sp 1", "--sp 2", "--sp 3 --schedule ring", "--dp 2", "--dp 2 --sp 2"};
    static const char* const asked =
        "--val-sequences 4 --context-gain 64 --sliding 1 --probe all --probe-items 2 "
        "--needle 2 --facts 1 --json --threads 1";
    static char first[65536];
    double most = 0;
    int whole = 0, compared = 0;
    for (int i = 0; i < 5; i += quick ? 2 : 1, compared++) {
        int status = command("eval --from %s,%s --data %s %s %s", run, other, shard, asked, splits[i]);
        if (i == 0) snprintf(first, sizeof first, "%s", command_out);
        double apart = json_distance(first, command_out);
        whole += status == 0 && json_whole(command_out);
        if (!(apart < 1e-4)) printf("     %s: %.300s\n", splits[i], command_out);
        most = worst(most, apart);
    }
    check(whole == compared && most < 1e-4, "evaluations: every split gives the same figures",
        "%d splits, %.1e apart", compared, most);
    int status = command("eval --from %s,%s --data %s %s", run, run, shard, asked);
    const char* at = status == 0 ? strstr(command_out, "\"difference\"") : NULL;
    static const char* const zero[] = {
        "\"loss\": ", "\"perplexity\": ", "\"bits_per_byte\": ", "\"mean\": ", "\"short\": ", "\"gain\": ",
        "\"context_gain\": ", "\"needle\": ", "\"depth_50\": ", "\"probe_right\": "};
    int zeros = 0, found = 0;
    for (int i = 0; at && i < 10; i++) {
        const char* value = strstr(at, zero[i]);
        found += value != NULL;
        for (; value; value = strstr(value + 1, zero[i])) zeros += strtod(value + strlen(zero[i]), NULL) == 0;
        for (value = strstr(at, zero[i]); value; value = strstr(value + 1, zero[i])) zeros--;
    }
    check(status == 0 && found == 10 && zeros == 0, "evaluations: a model and itself differ by zero",
        "%d of 10 kinds of figures, %d that are not zero", found, -zeros);
    status = command("eval --from %s,%s --data %s --threads 1", run, other, shard);
    check(
        status == 0 && command_said("first model: ") && command_said("difference") && command_said("\nloss "),
        "evaluations: two models are told side by side", "%.60s", command_out);
}

// What cannot be evaluated is refused, by a line that names it.
static void evaluations_refused(const char* run, const char* other, const char* shard, const char* numbers) {
    static const struct {
        const char *format, *part;   // of the run, another, the data, a run of token numbers
    } cases[] = {
        {"eval --from %1$s --data %3$s --context-gain 300", "--context-gain 300: the whole context has 300"},
        {"eval --from %1$s --data %3$s --sliding 64,301", "--sliding 301: must be from 2 to 300"},
        {"eval --from %1$s --data %3$s --sliding 1,64", "--sliding 1: must be from 2"},
        {"eval --from %1$s --context-gain 10", "--context-gain needs --data"},
        {"eval --from %1$s --sliding 1", "--sliding needs --data"},
        {"eval --from %1$s,%2$s,%1$s --data %3$s", "more than two models"},
        {"eval --from %1$s,%4$s --data %3$s --seq-len 16", "the second model"},
        {"eval --from %1$s,%2$s --data %3$s --seq-len 400", "the model's context is 300"},
        {"eval --from %1$s,/nowhere --data %3$s", "/nowhere: is not there"},
        {"eval --from %4$s --probe needle", "no tokenizer beside the model"},
        {"eval --from %1$s --probe tracking --seq-len 40 --threads 1",
            "--probe tracking: a text of 40 tokens has no room"},
        {"eval --from %1$s --data %3$s --doc-mask 1 --context-gain 299 --threads 1",
            "no label of the data has so many tokens before it"}};
    int told = 0, count = (int)(sizeof cases / sizeof cases[0]);
    for (int i = 0; i < count; i++) {
        char line[2048];
        snprintf(line, sizeof line, cases[i].format, run, other, shard, numbers);
        told += told_by(line, cases[i].part);
    }
    check(told == count, "evaluations: what cannot be evaluated is refused", "%d of %d", told, count);
    gpt2_sp_options o = options_of("");
    Error e = {0, {0}};
    Eval v;
    memset(&v, 0, sizeof v);
    o.context_gain = 16, v.o = &o;
    v.tokens = 1 << 30;
    snprintf(o.data, sizeof o.data, "x");
    int status = losses_plan(&v, 1024, &e) != 0 ? 0 : losses_allocate(&v, (uint64_t)1 << 33, &e);
    check(
        status == -1 && strstr(e.text, "need 9.00 GiB and the machine has 8.00: with --val-sequences 466033"),
        "evaluations: losses that do not fit in memory are refused", "%s", e.text);
}

static void test_evaluations(void) {
    char run[512], other[512], numbers[512], raw[512];
    snprintf(run, sizeof run, "%s", scratch("long_model"));
    snprintf(other, sizeof other, "%s", scratch("other_model"));
    snprintf(numbers, sizeof numbers, "%s", scratch("number_model"));
    snprintf(raw, sizeof raw, "%s", scratch("evaluated.u16"));
    FILE* f = fopen(raw, "wb");   // tokens of no tokenizer that is known
    for (int i = 0; f && i < 400; i++) fputc(i % 250, f), fputc(i % 2, f);
    if (f) fclose(f);
    static const char* const sizes = "--layers 1 --heads 2 --channels 16 --threads 1 --lr 0.01";
    int made = command("train --data %s %s --seq-len 300 --steps 12 --out %s", run_data(), sizes, run) == 0 &&
        command("train --data %s %s --seq-len 320 --steps 3 --out %s", run_data(), sizes, other) == 0 &&
        command("train --data %s --raw-u16 1 --vocab 506 %s --seq-len 16 --steps 1 --out %s", raw, sizes,
            numbers) == 0;
    check(made, "evaluations: models are made", "%.80s", made ? "three" : command_out);
    windows_cover();
    labels_by_definition();
    replicas_share();
    figures_by_definition(0);
    figures_by_definition(1);
    uniform_model();
    questions_made();
    questions_answered();
    evaluations_command(run, other, run_data());
    int status = command("eval --from %s --data %s --raw-u16 1 --context-gain 8 --threads 1", numbers, raw);
    check(status == 0 && command_said("context gain"), "evaluations: data need not tell its documents",
        "status %d", status);
    evaluations_refused(run, other, run_data(), numbers);
}
