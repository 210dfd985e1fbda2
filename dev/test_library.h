// What a program around the trainer can do besides steps: hear how far a step is and cancel it. Held, for
// every way to split a step: what it hears counts up to the whole; a step that is cancelled, wherever,
// leaves no trace, so that what follows is what would have been, to the bit; a cancel in one process is one
// in all. A cancel that leaves a message under way, a gradient or a place in the data changed shows only
// steps later, as a loss that is a little other.

// As RUN, but for what the GPU program needs: heads of 64 channels.
static const char* const LIBRARY_RUN =
    "layers=3 heads=1 channels=64 batch-size=2 seq-len=60 deterministic=1 lr=3e-3 warmup=3 seed=5 threads=1";
static const char* const LIBRARY_SPLITS[] = {"", "sp=2 zero=1 doc-mask=1",
    "sp=2 zero=2 recompute=sqrt grad-accum=2", "dp=2 batch-size=1 zero=3", "sp=3 zero=3 schedule=ring",
    "sp=2 dp=2 batch-size=1 grad-accum=2 recompute=layer",
    "sp=2 schedule=zigzag pos-shift=0.5 n-positions=90 doc-mask=1",
    "sp=4 schedule=allgather zero=2 window-ramp=20 doc-mask=1"};
enum { LIBRARY_SPLIT_COUNT = (int)(sizeof LIBRARY_SPLITS / sizeof LIBRARY_SPLITS[0]) };

static int gradients_made(gpt2_sp* g, gpt2_sp_stats* stats) {
    stats->size = sizeof *stats;
    return gpt2_sp_gradients(g, stats);
}
static int update_of(gpt2_sp* g, gpt2_sp_stats* stats) {
    stats->size = sizeof *stats;
    return gpt2_sp_update(g, stats);
}
static int tensor_of(const gpt2_sp* g, int64_t i, gpt2_sp_tensor* tensor) {
    tensor->size = sizeof *tensor;
    return gpt2_sp_tensor_info(g, i, tensor);
}

static int library_stride(void) { return few ? 4 : quick ? 2 : 1; }

static gpt2_sp_options trial_options(const char* split) {
    gpt2_sp_options o = options_of(LIBRARY_RUN);
    snprintf(o.data, sizeof o.data, "%s", run_data());
    snprintf(o.val_data, sizeof o.val_data, "%s", run_data());
    o.steps = 8;
    options_apply(&o, split);
    return o;
}
static gpt2_sp* library_trainer(const gpt2_sp_options* o, const char* split) {
    char error[GPT2_SP_TEXT];
    gpt2_sp* g = trainer_of(o, error, sizeof error);
    if (!g) check(0, "a test's trainer is made", "%s: %s", split, error);
    return g;
}

// All weights and moments of a trainer, as one number.
static uint64_t library_state(const gpt2_sp* g) {
    static const int states[] = {STATE_WEIGHTS, STATE_M, STATE_V};
    real* all = reals(g->layout.elements);
    uint64_t sum = (uint64_t)g->step;
    for (int i = 0; i < 3; i++) {
        const unsigned char* bytes = (const unsigned char*)all;
        collect(g, states[i], all);
        for (size_t k = 0; k < (size_t)g->layout.elements * sizeof(real); k++)
            sum = (sum ^ bytes[k]) * 0x100000001B3ull;
    }
    free(all);
    return sum;
}

// What a program hears of its calls, and where it cancels.
typedef struct {
    int64_t calls, cancel_at;   // at this call; 0: never
    int64_t wrong;              // calls that do not follow the one before, or come on another thread
    gpt2_sp_progress last;
    pthread_t thread;
    int rounding;   // calls that did not see the program's own rounding
} Hearing;
static int library_hear(void* user, const gpt2_sp_progress* p) {
    Hearing* h = (Hearing*)user;
    int follows = p->size == sizeof *p && p->done > (h->calls ? h->last.done : 0) && p->done <= p->total &&
        p->pass == (p->done - 1) * p->passes / p->total && (!h->calls || p->total == h->last.total);
    h->wrong += !follows || !pthread_equal(pthread_self(), h->thread);
    h->rounding += fegetround() != FE_UPWARD;
    h->last = *p;
    return ++h->calls == h->cancel_at;
}
static Hearing library_hearing(int64_t cancel_at) {
    Hearing h;
    memset(&h, 0, sizeof h);
    h.cancel_at = cancel_at, h.thread = pthread_self();
    return h;
}

// A step that hears; its status.
static int library_step(gpt2_sp* g, Hearing* h, gpt2_sp_stats* stats) {
    gpt2_sp_on_progress(g, library_hear, h);
    int status = step_of(g, stats);
    gpt2_sp_on_progress(g, NULL, NULL);
    return status;
}

// Three steps, each of which is cancelled at some layers before it is done; 0, or what was not as it must
// be.
static const char* library_cancels(
    gpt2_sp* g, const gpt2_sp_stats* expected, const uint64_t* states, int64_t calls) {
    for (int i = 0; i < 3; i++) {
        gpt2_sp_stats stats;
        double loss;
        const int64_t at[] = {1, calls, 1 + (int64_t)dice(77, (uint64_t)i, (uint64_t)calls), calls / 2 + 1};
        uint64_t before = library_state(g);
        for (int k = 0; k < (quick ? 2 : 4); k++) {
            Hearing h = library_hearing(at[(i + k) % 4]);
            if (library_step(g, &h, &stats) != GPT2_SP_CANCELLED) return "a cancelled step says that it is";
            if (h.calls != h.cancel_at) return "nothing is heard of a step behind its cancel";
            if (library_state(g) != before) return "a cancelled step leaves weights and moments";
            if (k == 1 && gpt2_sp_validate(g, 2, &loss) != 0) return "a validation between both succeeds";
        }
        if (step_of(g, &stats) != 0) return gpt2_sp_error(g);
        if (memcmp(&stats.loss, &expected[i].loss, 8) != 0 ||
            memcmp(&stats.grad_norm, &expected[i].grad_norm, 8) != 0 || stats.tokens != expected[i].tokens)
            return "the next step is the one that was cancelled";
        if (library_state(g) != states[i]) return "the next step leaves the weights that it would have left";
    }
    return NULL;
}

static void library_cancel(void) {
    for (int i = 0; i < LIBRARY_SPLIT_COUNT; i += library_stride()) {
        gpt2_sp_options o = trial_options(LIBRARY_SPLITS[i]);
        gpt2_sp *plain = library_trainer(&o, LIBRARY_SPLITS[i]), *g = library_trainer(&o, LIBRARY_SPLITS[i]);
        gpt2_sp_stats expected[3];
        uint64_t states[3] = {0};
        Hearing h = library_hearing(0);
        int stepped = plain && g;
        for (int k = 0; stepped && k < 3; k++) {
            h = library_hearing(0);
            stepped = library_step(plain, &h, &expected[k]) == 0;
            states[k] = library_state(plain);
        }
        const gpt2_sp_progress* p = &h.last;
        int64_t layers = 2 * 3 * o.batch_size * o.grad_accum;   // forward and backward, of each sequence
        check(stepped && h.wrong == 0 && p->done == p->total && p->total == layers && h.calls >= 6 &&
                p->passes == o.grad_accum && p->pass == o.grad_accum - 1 && p->step == 3 &&
                p->doing == GPT2_SP_IN_STEP,
            "cancel: a step tells how far it is, layer by layer, to the end",
            "%s: %d calls, %d of %d, %d wrong", LIBRARY_SPLITS[i], (int)h.calls, (int)p->done, (int)p->total,
            (int)h.wrong);
        const char* wrong = stepped ? library_cancels(g, expected, states, h.calls) : "the runs step";
        check(!wrong, "cancel: a cancelled step leaves no trace, and the next one is what it would have been",
            "%s: 3 steps, cancelled at up to 4 of %d places each; %s", LIBRARY_SPLITS[i], (int)h.calls,
            wrong ? wrong : "alike bit for bit");
        gpt2_sp_destroy(plain);
        gpt2_sp_destroy(g);
    }
}

// A validation tells how far it is, and can be cancelled too.
static void library_validation(void) {
    gpt2_sp_options o = trial_options("sp=2");
    gpt2_sp* g = library_trainer(&o, "sp=2");
    double whole = 0, again = 0, none = 7;
    Hearing all = library_hearing(0), some = library_hearing(4);
    if (!g) return;
    gpt2_sp_on_progress(g, library_hear, &all);
    int status = gpt2_sp_validate(g, 5, &whole);
    gpt2_sp_on_progress(g, library_hear, &some);
    int cancelled = gpt2_sp_validate(g, 5, &none);
    gpt2_sp_on_progress(g, NULL, NULL);
    status |= gpt2_sp_validate(g, 5, &again);
    check(status == 0 && all.wrong == 0 && all.last.doing == GPT2_SP_IN_VALIDATION && all.last.passes == 3 &&
            all.last.done == all.last.total && all.last.total == 3 * 2 * 3,
        "cancel: a validation tells how far it is", "%d of %d layers in %d passes, %d wrong",
        (int)all.last.done, (int)all.last.total, (int)all.last.passes, (int)all.wrong);
    check(cancelled == GPT2_SP_CANCELLED && none == 7 && whole == again && some.calls == 4,
        "cancel: a validation can be cancelled and made again", "%.9g and %.9g", whole, again);
    gpt2_sp_destroy(g);
}

static int library_drawn(void* user, int32_t token) {
    Hearing* h = (Hearing*)user;
    (void)token;
    h->rounding += fegetround() != FE_UPWARD;
    h->calls++;
    return 0;
}
// The program's rounding: another than the usual one changes no loss, stays, and is there in callbacks.
static void library_floating(void) {
    gpt2_sp_options o = trial_options("");
    gpt2_sp *plain = library_trainer(&o, ""), *g = library_trainer(&o, "");
    gpt2_sp_stats expected, stats;
    memset(&stats, 0, sizeof stats);
    Hearing h = library_hearing(0);
    int status = plain && g ? step_of(plain, &expected) : -1;
    fesetround(FE_UPWARD);
    if (status == 0) status = library_step(g, &h, &stats);
    gpt2_sp_sampling how = drawing(0, 0, 1, 1);
    int32_t prompt = 65, out[4];
    how.token = library_drawn, how.user = &h;
    if (status == 0) status = gpt2_sp_generate(g, &prompt, 1, out, 4, &how) == 4 ? 0 : -1;
    int stayed = fegetround() == FE_UPWARD;
    fesetround(FE_TONEAREST);
    check(status == 0 && stayed && h.rounding == 0 && stats.loss == expected.loss &&
            stats.grad_norm == expected.grad_norm,
        "library: the program's rounding stays, is there in a callback, and changes nothing",
        "loss %.9g rounding up, %.9g; %d of %d callbacks without it", stats.loss, expected.loss, h.rounding,
        (int)h.calls);
    gpt2_sp_destroy(plain);
    gpt2_sp_destroy(g);
}

// What the library has to say besides: to the program's callback, and to nobody where there is none.
static void library_line(void* user, int level, const char* text) {
    char* lines = (char*)user;
    size_t used = strlen(lines);
    snprintf(lines + used, 2048 - used, "%d: %s\n", level, text);
}
static void library_told(void) {
    char error[GPT2_SP_TEXT] = "", lines[2048] = "", path[1400], printed[512];
    gpt2_sp_options o = trial_options("");
    gpt2_sp_stats stats;
    snprintf(o.out, sizeof o.out, "%s", scratch("told"));
    o.log = SILENT;   // a program's default
    snprintf(printed, sizeof printed, "%s", scratch("told-stderr"));
    snprintf(path, sizeof path, "%s/step_00000002/model.safetensors", o.out);
    gpt2_sp* g = library_trainer(&o, "");
    int status = g ? 0 : -1;
    for (int k = 0; status == 0 && k < 2; k++) status = step_of(g, &stats) | gpt2_sp_save(g);
    gpt2_sp_destroy(g);
    status |= truncate(path, 100);
    fflush(stderr);
    int kept = dup(2), to = open(printed, O_RDWR | O_CREAT | O_TRUNC, 0600);
    status |= dup2(to, 2) < 0;
    gpt2_sp* silent = trainer_of(&o, error, sizeof error);
    int64_t resumed = silent ? gpt2_sp_steps(silent) : -1;
    gpt2_sp_destroy(silent);
    status |= gpt2_sp_on_log(&o, library_line, lines);
    gpt2_sp* told = trainer_of(&o, error, sizeof error);
    int64_t again = told ? gpt2_sp_steps(told) : -1;
    gpt2_sp_destroy(told);
    fflush(stderr);
    int64_t bytes = lseek(to, 0, SEEK_END);
    dup2(kept, 2), close(kept);
    close(to);
    check(status == 0 && resumed == 1 && again == 1 && !error[0] && bytes == 0 &&
            strncmp(lines, "1: ", 3) == 0 && strstr(lines, "step_00000002 is not whole") &&
            strstr(lines, "trying an older one"),
        "library: a damaged checkpoint is told to the program, and nothing is printed",
        "%d bytes on stderr; %.120s %s", (int)bytes, lines, error);
    check(gpt2_sp_on_log(NULL, NULL, NULL) == GPT2_SP_INVALID &&
            gpt2_sp_feed(NULL, 0, NULL, NULL, 0, NULL) == GPT2_SP_INVALID &&
            gpt2_sp_feed(&o, 2, NULL, NULL, 0, NULL) == GPT2_SP_INVALID &&
            gpt2_sp_feed_tokens(&o, 0, NULL, 5, 0, NULL) == GPT2_SP_INVALID &&
            gpt2_sp_on_progress(NULL, NULL, NULL) == GPT2_SP_INVALID &&
            gpt2_sp_losses(NULL, NULL, 2, NULL) == GPT2_SP_INVALID &&
            gpt2_sp_logits(NULL, NULL, 1, 0, 1, NULL) == GPT2_SP_INVALID &&
            gpt2_sp_update(NULL, NULL) == GPT2_SP_INVALID,
        "library: what is missing is an error, with its code", "8 functions");
}

// A run's file of options that lies in another folder than it names: read as that folder's, and told.
static void library_config_moved(void) {
    char lines[2048] = "", folder[GPT2_SP_TEXT], path[GPT2_SP_TEXT + 16];
    gpt2_sp_options* o = gpt2_sp_options_new();
    snprintf(folder, sizeof folder, "%s", scratch("told"));
    snprintf(path, sizeof path, "%s/log.jsonl", folder);
    FILE* f = fopen(path, "w");
    if (f) fclose(f);
    snprintf(path, sizeof path, "%s/run.cfg", folder);
    f = fopen(path, "w");
    if (f) fputs("out = /nowhere/run\nsteps = 7\n", f), fclose(f);
    int status = gpt2_sp_on_log(o, library_line, lines) | gpt2_sp_load_config(o, path, NULL);
    check(status == 0 && o->steps == 7 && strcmp(o->out, folder) == 0 && strncmp(lines, "1: ", 3) == 0 &&
            strstr(lines, "was in /nowhere/run"),
        "library: that a run's options were moved is told to the program", "%.120s", lines);
    gpt2_sp_options_free(o);
}

// --- own data ---

// A stream of few windows, so that a run reads it several times, and its shard. With `masked` some spans of
// it are no labels.
enum { OWN_TOKENS = 613, OWN_MASKED = 7 };
static const int32_t* own_stream(void) {
    static int32_t* stream;
    if (!stream) stream = stream_make(31, OWN_TOKENS, 40);
    return stream;
}
static int own_masked(int64_t i) { return i / OWN_MASKED % 3 == 1 && own_stream()[i] != 256; }
static const char* own_shard(int masked) {
    static char paths[2][512];
    tok_writer w;
    char error[256] = "";
    const int32_t* stream = own_stream();
    if (paths[masked][0]) return paths[masked];
    snprintf(paths[masked], sizeof paths[0], "%s", scratch(masked ? "own-masked.tok" : "own.tok"));
    int status = tok_writer_open(&w, paths[masked], TOK_BYTE, 257, 256, 64, error, sizeof error);
    for (int64_t i = 0, begin = 0; status == 0 && i < OWN_TOKENS; i++) {
        w.masked = masked && own_masked(i);
        if (stream[i] != 256) status = tok_writer_add(&w, stream + i, 1, error, sizeof error);
        else status = tok_writer_end_document(&w, (uint64_t)(i - begin), error, sizeof error), begin = i + 1;
    }
    if (status == 0) status = tok_writer_finish(&w, error, sizeof error);
    if (status != 0) check(0, "a test's shard is written", "%s", error);
    return paths[masked];
}

// A program that gives what the loader would read of that shard, and notes how it is asked.
typedef struct {
    int masked, shuffled, fails, inside;   // fails: how what it gives is wrong; inside: a call is under way
    uint64_t unlabelled[2];                // the samples from..until-1 have no label
    int64_t calls, wrong;                  // calls out of turn, or that do not show what they must
    uint64_t next;                         // sample
    int documents;
} OwnProgram;
enum {
    OWN_RIGHT,
    OWN_TOKEN,
    OWN_LAST,
    OWN_LABEL,
    OWN_LATE,
    OWN_FALLING,
    OWN_NEGATIVE,
    OWN_ANSWER,
    OWN_FAILURES
};
static int own_fill(void* user, gpt2_sp_sample* x) {
    OwnProgram* p = (OwnProgram*)user;
    const int32_t* stream = own_stream();
    const int64_t T = x->seq_len;
    const uint64_t windows = (OWN_TOKENS - 1 + (uint64_t)T - 1) / (uint64_t)T;
    uint64_t window = x->sample % windows;
    int turn = __atomic_exchange_n(&p->inside, 1, __ATOMIC_SEQ_CST) == 0 && x->sample == p->next;
    if (p->shuffled) window = permute(window, windows, 5, x->sample / windows);
    int64_t begin = (int64_t)window * T, latest = OWN_TOKENS - 1 - T, start = 0;
    if (begin > latest) begin = latest;
    for (int64_t t = 0; t < T; t++)
        turn &= x->labels[t] == GPT2_SP_NEXT && x->tokens[t] == 0 && (!x->doc_start || x->doc_start[t] == 0);
    p->wrong += !turn || x->size != sizeof *x || !x->doc_start != !p->documents;
    memcpy(x->tokens, stream + begin, (size_t)(T + 1) * 4);
    for (int64_t t = 0; t < T; t++) {
        if ((p->masked && own_masked(begin + t + 1)) ||
            (x->sample >= p->unlabelled[0] && x->sample < p->unlabelled[1]))
            x->labels[t] = GPT2_SP_NO_LABEL;
        if (t > 0 && stream[begin + t - 1] == 256) start = t;
        if (x->doc_start) x->doc_start[t] = (int32_t)start;
    }
    // the end of a sample may be that of a document, which only the program knows
    if (x->doc_start && stream[begin + T - 1] == 256) x->labels[T - 1] = GPT2_SP_NO_LABEL;
    if (p->fails == OWN_TOKEN) x->tokens[T / 2] = 257;
    if (p->fails == OWN_LAST) x->tokens[T] = -1;
    if (p->fails == OWN_LABEL) x->labels[3] = -3;
    if (p->fails == OWN_LATE && x->doc_start) x->doc_start[4] = 5;
    if (p->fails == OWN_FALLING && x->doc_start) x->doc_start[8] = 8, x->doc_start[9] = 7;
    if (p->fails == OWN_NEGATIVE && x->doc_start) x->doc_start[0] = -1;
    p->calls++, p->next = x->sample + 1;
    __atomic_store_n(&p->inside, 0, __ATOMIC_SEQ_CST);
    return p->fails == OWN_ANSWER ? 7 : 0;
}
static OwnProgram own_program(const gpt2_sp_options* o, int masked, int shuffled) {
    OwnProgram p;
    memset(&p, 0, sizeof p);
    p.masked = masked, p.shuffled = shuffled;
    p.documents = o->doc_mask != 0;
    return p;
}

static gpt2_sp_options own_options(const char* split, const char* data) {
    gpt2_sp_options o = trial_options(split);
    snprintf(o.data, sizeof o.data, "%s", data);
    snprintf(o.val_data, sizeof o.val_data, "%s", data);
    if (data[0]) return o;
    o.vocab = 257;
    options_apply(&o, split);
    return o;
}

// A trainer whose data are the program's; NULL, with a line in error.
static int own_given(gpt2_sp_options* o, int use, const Feed* f, gpt2_sp_failure* failure) {
    if (!f) return 0;
    return f->fill ? gpt2_sp_feed(o, use, f->fill, f->user, f->fingerprint, failure)
                   : gpt2_sp_feed_tokens(o, use, f->tokens, f->count, f->eot, failure);
}
static gpt2_sp* own_trainer(const gpt2_sp_options* o, const Feed* data, const Feed* val, char* error) {
    gpt2_sp_failure failure = {0, {0}};
    gpt2_sp_options with = *o;
    gpt2_sp* g = NULL;
    if (own_given(&with, GPT2_SP_TRAINING, data, &failure) == 0 &&
        own_given(&with, GPT2_SP_VALIDATION, val, &failure) == 0)
        g = gpt2_sp_create(&with, &failure);
    free(with.feed.tokens);   // a trainer has its own
    free(with.val_feed.tokens);
    error[0] = 0;
    if (failure.text[0])
        snprintf(error, GPT2_SP_TEXT, "%.900s (%s)", failure.text, gpt2_sp_code_name(failure.code));
    return g;
}
static Feed own_feed(OwnProgram* p) {
    Feed f = {own_fill, p, 0x1234567 + (uint64_t)p->masked, NULL, 0, 0};
    return f;
}
static Feed own_tokens(int64_t eot) {
    Feed f = {NULL, NULL, 0, (int32_t*)(uintptr_t)own_stream(), OWN_TOKENS, eot};
    return f;
}

// Steps of two trainers side by side: how many are alike to the bit, with a validation of the first windows
// behind them.
enum { OWN_STEPS = 8, OWN_VALIDATED = 5 };
static int steps_of_both(void) { return few ? 3 : OWN_STEPS; }
static int own_alike(gpt2_sp* a, gpt2_sp* b, double* loss) {
    gpt2_sp_stats of[2];
    double found[2] = {0, 1};
    int alike = 0;
    if (!a || !b) return -1;
    for (int i = 0; i < steps_of_both(); i++) {
        if (step_of(a, &of[0]) != 0 || step_of(b, &of[1]) != 0) {
            printf("     %s%s\n", gpt2_sp_error(a), gpt2_sp_error(b));
            return alike;
        }
        alike +=
            of[0].loss == of[1].loss && of[0].grad_norm == of[1].grad_norm && of[0].tokens == of[1].tokens;
    }
    int status =
        gpt2_sp_validate(a, OWN_VALIDATED, &found[0]) | gpt2_sp_validate(b, OWN_VALIDATED, &found[1]);
    *loss = of[0].loss;
    return alike + (status == 0 && found[0] == found[1]) + (library_state(a) == library_state(b));
}

// A buffer of tokens, and a callback that gives what the loader would read, train as the shard of these
// tokens does: steps over several epochs (of few cases: of one), a validation, weights and moments.
static void own_equal(void) {
    for (int i = 0; i < LIBRARY_SPLIT_COUNT; i += library_stride())
        for (int masked = 0; masked < 2; masked++) {
            char error[GPT2_SP_TEXT] = "";
            const char* split = LIBRARY_SPLITS[i];
            gpt2_sp_options from_file = own_options(split, own_shard(masked)), o = own_options(split, "");
            OwnProgram train = own_program(&o, masked, 1), val = own_program(&o, masked, 0);
            Feed data = own_feed(&train), val_data = own_feed(&val), tokens = own_tokens(256);
            gpt2_sp *file = library_trainer(&from_file, split),
                    *fed = own_trainer(&o, &data, &val_data, error),
                    *held = masked ? NULL : own_trainer(&o, &tokens, &tokens, error);
            double loss = 0;
            int alike = own_alike(file, fed, &loss),
                samples = fed ? (int)(step_samples(&fed->mesh) * (steps_of_both() + 1)) : 0;
            gpt2_sp_destroy(file);
            gpt2_sp_destroy(fed);   // nobody reads ahead any more
            check(alike == steps_of_both() + 2 && train.wrong == 0 && val.wrong == 0 &&
                    train.calls == samples && val.calls == OWN_VALIDATED,
                "own data: samples of a callback train as the shard that has them, bit for bit",
                "%s%s: %d of %d alike, loss %.6f; %d calls of %d, %d out of turn %s", split,
                masked ? ", some of them no labels" : "", alike, steps_of_both() + 2, loss, (int)train.calls,
                samples, (int)(train.wrong + val.wrong), error);
            if (!masked) file = library_trainer(&from_file, split), alike = own_alike(file, held, &loss);
            if (!masked)
                check(alike == steps_of_both() + 2,
                    "own data: a buffer of tokens trains as its shard, bit for bit",
                    "%s: %d of %d alike, loss %.6f %s", split, alike, steps_of_both() + 2, loss, error);
            if (!masked) gpt2_sp_destroy(file);
            gpt2_sp_destroy(held);
        }
}

// How far the losses of a model that has hardly begun may be apart, as a share of them, where the same sums
// come in another order. On a GPU: what bf16 leaves in logits of the size 0.02 sqrt C after some steps.
static double losses_apart(const gpt2_sp* g, double loss) {
#ifdef GPT2_SP_GPU
    const Shape* s = &g->mesh.shape;
    return 2 * rounding_noise((double)roundings_of_gradient(s->L, 0)) * 0.02 * sqrt((double)s->C) / loss;
#else
    (void)g, (void)loss;
    return IS_DOUBLE ? 1e-13 : 2e-6;
#endif
}

// Losses do not depend on how the program's samples are split.
static void own_splits(void) {
    static const char* const splits[] = {"sp=1 batch-size=4", "sp=2 batch-size=4", "sp=3 batch-size=4",
        "dp=2 batch-size=2", "grad-accum=4 batch-size=1", "dp=2 sp=3 batch-size=1 grad-accum=2 zero=3"};
    double losses[6][3], most = 0, allowed = 0;
    for (int i = 0; i < 6; i++) {
        char error[GPT2_SP_TEXT] = "", split[128];
        snprintf(split, sizeof split, "%s doc-mask=1 val-data=", splits[i]);
        gpt2_sp_options o = own_options(split, "");
        OwnProgram train = own_program(&o, 1, 1);
        Feed data = own_feed(&train);
        gpt2_sp* g = own_trainer(&o, &data, NULL, error);
        gpt2_sp_stats stats;
        for (int k = 0; k < 3; k++) {
            losses[i][k] = g && step_of(g, &stats) == 0 ? stats.loss : NAN;
            most = worst(most, fabs(losses[i][k] - losses[0][k]) / losses[0][k]);
        }
        if (!g) printf("     %s\n", error);
        if (g) allowed = losses_apart(g, losses[i][0]);
        gpt2_sp_destroy(g);
    }
    check_below(most, allowed, "own data: losses do not depend on sp, dp or passes",
        "6 ways, 3 steps of 4 masked samples: apart by");
}

// A step whose samples have no label leaves the weights as they are, and the next one learns.
static void own_unlabelled(void) {
    static const char* const splits[] = {"sp=1 batch-size=4", "dp=2 sp=2 batch-size=2 zero=3"};
    for (int i = 0; i < 2; i++) {
        char error[GPT2_SP_TEXT] = "";
        gpt2_sp_options o = own_options(splits[i], "");
        OwnProgram train = own_program(&o, 0, 1);
        train.unlabelled[0] = 4, train.unlabelled[1] = 8;   // step 2's
        Feed data = own_feed(&train);
        gpt2_sp* g = own_trainer(&o, &data, NULL, error);
        gpt2_sp_stats stats;
        float first[64], now[64];
        int moved[3] = {0, 0, 0}, updated[3] = {0, 0, 0};
        for (int k = 0; g && k < 3; k++) {
            int there = gpt2_sp_tensor_read(g, GPT2_SP_WEIGHTS, "ln_f.bias", first, 64) == 0;
            updated[k] = there && step_of(g, &stats) == 0 && stats.step == k + 1 ? stats.updated : -1;
            there = gpt2_sp_tensor_read(g, GPT2_SP_WEIGHTS, "ln_f.bias", now, 64) == 0;
            moved[k] = there ? memcmp(first, now, sizeof now) != 0 : -1;
        }
        check(moved[0] && !moved[1] && moved[2] && updated[0] == 1 && updated[1] == 0 && updated[2] == 1,
            "own data: a step without a label leaves the weights",
            "%s: weights moved %d %d %d, told %d %d %d %s", splits[i], moved[0], moved[1], moved[2],
            updated[0], updated[1], updated[2], g ? gpt2_sp_error(g) : error);
        gpt2_sp_destroy(g);
    }
}

// What is no sample is an error, whose line says what of which sample; what cannot be known is refused.
static void own_refused(void) {
    static const char* const parts[OWN_FAILURES] = {"", "token 30 is 257, expected 0 to 256",
        "token 60 is -1", "label 3 is -3", "token 4 begins at 5, expected",
        "token 9 begins at 7, expected 8 to 9", "token 0 begins at -1, expected 0 to 0",
        "its callback returned 7"};
    char error[GPT2_SP_TEXT] = "";
    int told = 0;
    gpt2_sp_options o = own_options("doc-mask=1", "");
    for (int k = OWN_RIGHT + 1; k < OWN_FAILURES; k++) {
        OwnProgram train = own_program(&o, 0, 1);
        Feed data = own_feed(&train);
        gpt2_sp_stats stats;
        train.fails = k;
        gpt2_sp* g = own_trainer(&o, &data, NULL, error);
        int status = g ? step_of(g, &stats) : 0;
        int right =
            g && status < 0 && strstr(gpt2_sp_error(g), parts[k]) && strstr(gpt2_sp_error(g), "sample 0");
        told += right;
        if (!right) printf("     %s: %s\n", parts[k], g ? gpt2_sp_error(g) : error);
        gpt2_sp_destroy(g);
    }
    check(told == OWN_FAILURES - 1, "own data: what is no sample is an error that says what", "%d of %d",
        told, OWN_FAILURES - 1);
    const struct {
        const char *split, *part;
        Feed feed;
    } refused[] = {{"vocab=0", "name no vocabulary", own_tokens(256)},
        {"vocab=100", "token 6 is 256, expected below 100", own_tokens(-1)},
        {"seq-len=613", "has 613 tokens, one sequence needs 614", own_tokens(256)}};
    told = 0;
    for (int k = 0; k < 3; k++) {
        gpt2_sp_options with = own_options(refused[k].split, "");
        gpt2_sp* g = own_trainer(&with, &refused[k].feed, NULL, error);
        told += !g && strstr(error, refused[k].part);
        if (g || !strstr(error, refused[k].part)) printf("     %s: %s\n", refused[k].split, error);
        gpt2_sp_destroy(g);
    }
    OwnProgram train = own_program(&o, 0, 1);
    Feed data = own_feed(&train);
    gpt2_sp_options with = own_options("", own_shard(0)), document = own_options("doc-mask=1", "");
    document.pos_from = GPT2_SP_FROM_DOCUMENT;
    told += !own_trainer(&with, &data, NULL, error) && strstr(error, "the program gives data of its own");
    told += !own_trainer(&document, &data, NULL, error) && strstr(error, "--pos-from document");
    check(told == 5, "own data: what cannot be known is refused", "%d of 5; %s", told, error);
}

// A run goes on with the sample behind the last, bit for bit, and only with the data that it began with.
static void own_resumed(void) {
    char error[GPT2_SP_TEXT] = "", other[GPT2_SP_TEXT] = "", longer[GPT2_SP_TEXT] = "";
    gpt2_sp_options o = own_options("sp=2 doc-mask=1", "");
    OwnProgram train = own_program(&o, 1, 1), again = train;
    Feed data = own_feed(&train), next = own_feed(&again);
    gpt2_sp_stats stats, expected;
    memset(&stats, 0, sizeof stats);
    memset(&expected, 0, sizeof expected);
    snprintf(o.out, sizeof o.out, "%s", scratch("own-run"));
    gpt2_sp* g = own_trainer(&o, &data, NULL, error);
    int status = g ? 0 : -1;
    for (int k = 0; status == 0 && k < 5; k++) {
        status = step_of(g, &expected);
        if (k == 2) status |= gpt2_sp_save(g);
    }
    gpt2_sp_destroy(g);
    again.next = 3 * 2;
    g = own_trainer(&o, &next, NULL, error);
    for (int k = 0; status == 0 && g && k < 2; k++) status = step_of(g, &stats);
    gpt2_sp_destroy(g);
    check(status == 0 && g && again.wrong == 0 && stats.step == 5 && stats.loss == expected.loss &&
            stats.grad_norm == expected.grad_norm && stats.tokens == expected.tokens,
        "own data: a run goes on with the next sample, bit for bit",
        "loss %.9g after step %d, %.9g in one go %s", stats.loss, (int)stats.step, expected.loss, error);
    next.fingerprint++;
    gpt2_sp* none = own_trainer(&o, &next, NULL, other);
    next.fingerprint--, o.seq_len = 90;
    gpt2_sp* also = own_trainer(&o, &next, NULL, longer);
    check(!none && strstr(other, "was made with the data") && strstr(other, "GPT2_SP_MISMATCH") && !also &&
            strstr(longer, "--seq-len 90"),
        "own data: a run goes on only with the data and the length that it began with", "%s; %s", other,
        longer);
    gpt2_sp_destroy(none);
    gpt2_sp_destroy(also);
}

// A callback that calls its own trainer is told so, and the call that it interrupts is not disturbed.
typedef struct {
    gpt2_sp* g;
    int calls, refused;
} Nested;
static int nested_progress(void* user, const gpt2_sp_progress* progress) {
    Nested* n = (Nested*)user;
    gpt2_sp_stats stats;
    double loss;
    n->calls++;
    n->refused += step_of(n->g, &stats) == GPT2_SP_INVALID && gpt2_sp_save(n->g) == GPT2_SP_INVALID &&
        gpt2_sp_validate(n->g, 1, &loss) == GPT2_SP_INVALID && gpt2_sp_steps(n->g) == progress->step - 1;
    return 0;
}
static void library_nested(void) {
    gpt2_sp_options o = trial_options("");
    gpt2_sp *plain = library_trainer(&o, ""), *g = library_trainer(&o, "");
    Nested n = {g, 0, 0};
    gpt2_sp_stats expected, stats;
    int status = !g || !plain ? -1 : step_of(plain, &expected) | gpt2_sp_on_progress(g, nested_progress, &n);
    status = status == 0 ? step_of(g, &stats) : status;
    check(status == 0 && n.calls > 2 && n.refused == n.calls && stats.loss == expected.loss &&
            library_state(g) == library_state(plain) && !gpt2_sp_error(g)[0] && gpt2_sp_code(g) == GPT2_SP_OK,
        "library: a callback that calls its own trainer is refused, and disturbs nothing",
        "%d of %d calls refused", n.refused, n.calls);
    gpt2_sp_destroy(plain);
    gpt2_sp_destroy(g);
}

// What programs get wrong: the code, and the line while it is the last call's.
static void library_mistakes(void) {
    static const int32_t tokens[] = {1, 2, 3, 256, 5, 6, 257, 8};
    gpt2_sp_failure failure = {0, {0}};
    gpt2_sp_options o = own_options("val-data=", ""), *named = gpt2_sp_options_new();
    double loss;
    char error[GPT2_SP_TEXT] = "";
    const Feed late = own_tokens(257), wrong = {NULL, NULL, 0, (int32_t*)(uintptr_t)tokens, 8, -1};
    int told = gpt2_sp_feed_tokens(named, 0, tokens, 8, (int64_t)1 << 40, &failure) == GPT2_SP_INVALID;
    gpt2_sp* g = own_trainer(&o, &late, NULL, error);
    told += !g && strstr(error, "end documents with 257, expected below 257") != NULL;
    g = own_trainer(&o, &wrong, NULL, error);
    told += !g && strstr(error, "token 6 is 257") && strstr(error, "GPT2_SP_INVALID");
    told += gpt2_sp_set(named, "--lr", "1", &failure) == GPT2_SP_INVALID &&
        strstr(failure.text, "without --") != NULL;
    told += gpt2_sp_get(named, "schedule", NULL, 0, NULL) == 4;
    told += !gpt2_sp_create(named, &failure) && failure.code == GPT2_SP_INVALID;   // there are no data
    o = trial_options("");
    o.val_data[0] = 0;
    snprintf(o.out, sizeof o.out, "%s", scratch("removed"));
    g = library_trainer(&o, "");
    told += g && gpt2_sp_validate(g, 1, &loss) == GPT2_SP_INVALID && gpt2_sp_error(g)[0];
    told += g && gpt2_sp_set_lr(g, 1) == 0 && !gpt2_sp_error(g)[0] && gpt2_sp_code(g) == GPT2_SP_OK;
    remove_tree(o.out);
    told += g && gpt2_sp_save(g) == GPT2_SP_FILE && strstr(gpt2_sp_error(g), "removed or replaced") != NULL;
    check(told == 9, "library: a program's mistakes have their codes and lines", "%d of 9; %s; %s", told,
        failure.text, g ? gpt2_sp_error(g) : error);
    gpt2_sp_destroy(g);
    gpt2_sp_options_free(named);
}

// --- tensors, and a step in two ---

#ifdef GPT2_SP_GPU
static const double LIBRARY_APART = 4 * 0x1p-8;   // bf16 products, in another order
#else
static const double LIBRARY_APART = sizeof(real) == 8 ? 1e-6 : 2e-5;   // what is read is fp32
#endif

// A tensor of a trainer, read; the caller frees it. NULL, with a failed check, if that fails.
static float* tensor_got(gpt2_sp* g, int what, const gpt2_sp_tensor* x) {
    float* numbers = (float*)need((size_t)x->elements, sizeof *numbers);
    if (gpt2_sp_tensor_read(g, what, x->name, numbers, x->elements) == 0) return numbers;
    check(0, "a test's tensor is read", "%s: %s", x->name, gpt2_sp_error(g));
    free(numbers);
    return NULL;
}
// Whether two arrays of a tensor's numbers are the same to the bit. Frees both.
static int tensor_same(float* a, float* b, int64_t n) {
    int same = a && b && memcmp(a, b, (size_t)n * sizeof *a) == 0;
    free(a);
    free(b);
    return same;
}

// What is read is what the checkpoint has, whose files other code writes and Transformers reads: weights in
// the same layout, moments as they lie in memory.
static int tensors_saved(gpt2_sp* g, const char* folder) {
    int right = 0;
    for (int i = 0; i < gpt2_sp_tensor_count(g); i++) {
        gpt2_sp_tensor x;
        if (tensor_of(g, i, &x) != 0) return right;
        for (int what = GPT2_SP_WEIGHTS; what <= GPT2_SP_MOMENT2; what++) {
            char name[128], path[2000], error[256];
            st_file f;
            if (what == GPT2_SP_GRADIENTS) continue;
            int weights = what == GPT2_SP_WEIGHTS;
            const char* prefix = weights ? "" : what == GPT2_SP_MOMENT1 ? "m." : "v.";
            snprintf(path, sizeof path, "%s/%s.safetensors", folder, weights ? "model" : "optimizer");
            snprintf(name, sizeof name, "%s%s", prefix, x.name);
            float *numbers = tensor_got(g, what, &x), *saved = (float*)need((size_t)x.elements, 4);
            int moved =
                what != GPT2_SP_WEIGHTS && x.dims == 2 && (strstr(x.name, "attn.") || strstr(x.name, "mlp."));
            int64_t rows = x.shape[0], columns = x.shape[1];
            const st_tensor* t = st_open(&f, path, error, sizeof error) == 0 ? st_find(&f, name) : NULL;
            int same = t && t->ndim == x.dims && (int64_t)t->shape[moved ? 1 : 0] == rows &&
                st_read_f32(&f, t, 0, (uint64_t)x.elements, saved, error, sizeof error) == 0;
            for (int64_t k = 0; same && numbers && k < x.elements; k++)
                same = numbers[k] == saved[moved ? k % columns * rows + k / columns : k];
            right += same && numbers;
            st_close(&f);
            free(numbers);
            free(saved);
        }
    }
    return right;
}

static void tensors_read(void) {
    for (int i = 0; i < LIBRARY_SPLIT_COUNT; i += library_stride()) {
        char text[64], folder[1200];
        gpt2_sp_options o = trial_options(LIBRARY_SPLITS[i]);
        snprintf(text, sizeof text, "tensors-%d", i);
        snprintf(o.out, sizeof o.out, "%s", scratch(text));
        snprintf(folder, sizeof folder, "%s/step_00000002", o.out);
        gpt2_sp* g = library_trainer(&o, LIBRARY_SPLITS[i]);
        gpt2_sp_stats stats;
        int status = g && step_of(g, &stats) == 0 && step_of(g, &stats) == 0 ? gpt2_sp_save(g) : -1;
        int count = (int)gpt2_sp_tensor_count(g), right = status == 0 ? tensors_saved(g, folder) : 0;
        check(count == 2 + 3 * 12 + 2 && right == 3 * count,
            "tensors: what is read is what model.safetensors and optimizer.safetensors have",
            "%s: %d of %d tensors, weights and both moments", LIBRARY_SPLITS[i], right, 3 * count);
        gpt2_sp_destroy(g);
    }
}

// Writes noise to every tensor of a state, that of the tensor's own stream; how many were read again as they
// were written.
static int tensors_noise(gpt2_sp* g, int what, double scale) {
    int same = 0;
    for (int i = 0; i < gpt2_sp_tensor_count(g); i++) {
        gpt2_sp_tensor x;
        tensor_of(g, i, &x);
        float* numbers = (float*)need((size_t)x.elements, 4);
        for (int64_t k = 0; k < x.elements; k++) {
            double n = scale * noise((uint64_t)(900 + 50 * what + i), k);
            numbers[k] = (float)(what == GPT2_SP_MOMENT2 ? n * n : strstr(x.name, "ln_") ? 1 + n : n);
        }
        // by its name without the prefix
        if (gpt2_sp_tensor_write(g, what, x.name + strlen("transformer."), numbers, x.elements) != 0)
            printf("     %s\n", gpt2_sp_error(g));
        same += tensor_same(numbers, tensor_got(g, what, &x), x.elements);
    }
    return same;
}

// What is written is read again to the bit, and trained from there, whatever the split: noise in weights,
// moments and gradients, then the update and another step.
static void tensors_written(void) {
    static const char* const splits[] = {"batch-size=4", "batch-size=4 sp=2 zero=1",
        "batch-size=2 dp=2 zero=2", "batch-size=4 sp=3 zero=3", "batch-size=1 dp=2 sp=2 grad-accum=2",
        "batch-size=4 sp=4 zero=3 schedule=ring"};
    double first[3] = {0}, most = 0;
    for (int i = 0; i < 6; i++) {
        char split[128];
        snprintf(split, sizeof split, "%s grad-clip=0 lr=0.01 warmup=0", splits[i]);
        gpt2_sp_options o = trial_options(split);
        gpt2_sp* g = library_trainer(&o, split);
        gpt2_sp_stats stats[3];
        memset(stats, 0, sizeof stats);
        int status = g ? gradients_made(g, &stats[0]) : -1, same = 0, count = 0;
        for (int what = GPT2_SP_WEIGHTS; status == 0 && what <= GPT2_SP_MOMENT2; what++)
            same += tensors_noise(g, what, what == GPT2_SP_WEIGHTS ? 0.05 : 0.01), count += 40;
        if (status == 0) status = update_of(g, &stats[0]) | step_of(g, &stats[1]);
        double found[3] = {stats[0].grad_norm, stats[1].loss, stats[1].grad_norm};
        for (int k = 0; k < 3; k++) {
            if (i == 0) first[k] = found[k];
            most = worst(most, fabs(found[k] / first[k] - 1));
        }
        check(status == 0 && same == count && count == 160,
            "tensors: what is written is read again, bit for bit",
            "%s: %d of %d tensors; norm %.6f of written gradients, then loss %.6f %s", splits[i], same, count,
            found[0], found[1], g ? gpt2_sp_error(g) : "");
        gpt2_sp_destroy(g);
    }
    check_below(most, LIBRARY_APART, "tensors: a run goes on from what is written, however it is split",
        "norm, loss and norm of 6 splits apart by");
}

// gradients and update are a step, to the bit, also with a cancel, a validation, losses and logits in
// between.
static void parts_alike(void) {
    for (int i = 0; i < LIBRARY_SPLIT_COUNT; i += library_stride()) {
        gpt2_sp_options o = trial_options(LIBRARY_SPLITS[i]);
        gpt2_sp *whole = library_trainer(&o, LIBRARY_SPLITS[i]),
                *parts = library_trainer(&o, LIBRARY_SPLITS[i]);
        int alike = 0, told = 0, updated = 0;
        float losses[20], *logits = (float*)need(257 * 3, 4);
        for (int k = 0; whole && parts && k < 3; k++) {
            gpt2_sp_stats of[3];
            double loss;
            Hearing h = library_hearing(3);
            gpt2_sp_on_progress(parts, library_hear, &h);
            int status = step_of(whole, &of[0]), cancelled = gradients_made(parts, &of[1]);
            gpt2_sp_on_progress(parts, NULL, NULL);
            uint64_t before = library_state(parts);
            status |= gradients_made(parts, &of[1]);
            updated += of[1].updated || library_state(parts) != before || gpt2_sp_steps(parts) != k;
            told += cancelled == GPT2_SP_CANCELLED && of[1].loss == of[0].loss &&
                of[1].grad_norm == of[0].grad_norm;
            status |= gpt2_sp_validate(parts, 2, &loss) | gpt2_sp_losses(parts, own_stream(), 21, losses);
            status |= gpt2_sp_logits(parts, own_stream(), 9, 2, 3, logits);
            status |= update_of(parts, &of[2]);
            alike += status == 0 && of[2].loss == of[0].loss && of[2].grad_norm == of[0].grad_norm &&
                of[2].tokens == of[0].tokens && of[2].lr == of[0].lr && of[2].step == of[0].step &&
                of[2].updated && library_state(parts) == library_state(whole);
            if (status != 0) printf("     %s\n", gpt2_sp_error(parts));
        }
        check(alike == 3 && told == 3 && updated == 0,
            "steps in two: gradients and update are a step, bit for bit, whatever is done in between",
            "%s: %d of 3 steps, %d told beforehand, %d updated too early", LIBRARY_SPLITS[i], alike, told,
            updated);
        free(logits);
        gpt2_sp_destroy(whole);
        gpt2_sp_destroy(parts);
    }
}

// Multiplies all gradients by a factor, in fp32.
static int gradients_scale(gpt2_sp* g, float factor) {
    int status = 0;
    for (int i = 0; i < gpt2_sp_tensor_count(g); i++) {
        gpt2_sp_tensor x;
        tensor_of(g, i, &x);
        float* numbers = tensor_got(g, GPT2_SP_GRADIENTS, &x);
        for (int64_t k = 0; numbers && k < x.elements; k++) numbers[k] *= factor;
        status |= !numbers || gpt2_sp_tensor_write(g, GPT2_SP_GRADIENTS, x.name, numbers, x.elements);
        free(numbers);
    }
    return status;
}

// The update takes the gradients as they are then: halved ones have half the norm, and those that the
// program clips are clipped as --grad-clip would.
static void gradients_changed(void) {
    static const char* const splits[] = {"", "sp=2 zero=2", "dp=2 batch-size=1 zero=3"};
    for (int i = 0; i < 3; i++) {
        char clipped[128], open[128];
        snprintf(clipped, sizeof clipped, "%s grad-clip=0.25 warmup=0", splits[i]);
        snprintf(open, sizeof open, "%s grad-clip=0 warmup=0", splits[i]);
        gpt2_sp_options with = trial_options(clipped), without = trial_options(open);
        gpt2_sp *a = library_trainer(&with, clipped), *b = library_trainer(&without, open);
        gpt2_sp_stats of[2], then;
        memset(of, 0, sizeof of), memset(&then, 0, sizeof then);
        int status = a && b ? step_of(a, &of[0]) | gradients_made(b, &of[1]) : -1;
        float factor = (float)fmin(1, 0.25 / (of[1].grad_norm + 1e-6));
        if (status == 0) status = gradients_scale(b, factor) | update_of(b, &then);
        double most = 0, norm = then.grad_norm;
        for (int k = 0; status == 0 && k < gpt2_sp_tensor_count(a); k++) {
            gpt2_sp_tensor x;
            double size;
            tensor_of(a, k, &x);
            float *m = tensor_got(a, GPT2_SP_MOMENT1, &x), *n = tensor_got(b, GPT2_SP_MOMENT1, &x);
            real *p = reals(x.elements), *q = reals(x.elements);
            for (int64_t j = 0; m && n && j < x.elements; j++) p[j] = (real)m[j], q[j] = (real)n[j];
            most = worst(most, relative_error(p, q, x.elements, &size));
            free(m), free(n);
            free(p), free(q);
        }
        check(status == 0 && fabs(norm - 0.25) < 1e-5 && factor < 0.9 && most < 1e-6,
            "steps in two: gradients that the program clips are clipped as --grad-clip does",
            "%s: norm %.6f, clipped to %.6f; moments apart by %.2g", splits[i], of[1].grad_norm, norm, most);
        if (status == 0) status = gradients_made(b, &of[0]) | gradients_scale(b, 0.5f);
        if (status == 0) status = update_of(b, &then);
        // in fp64 they are rounded to fp32 on the way
        check(status == 0 && fabs(2 * then.grad_norm / of[0].grad_norm - 1) <= (IS_DOUBLE ? 1e-6 : 0),
            "steps in two: the norm is that of the gradients as they are", "%s: %.9g, half of %.9g",
            splits[i], then.grad_norm, of[0].grad_norm);
        gpt2_sp_destroy(a);
        gpt2_sp_destroy(b);
    }
}

// A rate that the program sets is that of the steps until it takes it away.
static void library_rate(void) {
    gpt2_sp_options o = trial_options("sp=2");
    gpt2_sp *a = library_trainer(&o, "sp=2"), *b = library_trainer(&o, "sp=2");
    gpt2_sp_stats of[2];
    int alike = 0, right = 0;
    for (int k = 0; a && b && k < 3; k++) {
        int status = step_of(a, &of[0]);
        if (k < 2) status |= gpt2_sp_set_lr(b, of[0].lr);
        else status |= gpt2_sp_set_lr(b, -1);
        status |= step_of(b, &of[1]);
        alike += status == 0 && of[0].lr == of[1].lr && library_state(a) == library_state(b);
    }
    gpt2_sp_tensor x;
    tensor_of(b, 3, &x);
    float* before = tensor_got(b, GPT2_SP_WEIGHTS, &x);
    right += gpt2_sp_set_lr(b, 0) == 0 && step_of(b, &of[1]) == 0 && of[1].lr == 0;
    right += tensor_same(before, tensor_got(b, GPT2_SP_WEIGHTS, &x), x.elements);
    right += gpt2_sp_set_lr(b, NAN) == GPT2_SP_INVALID && gpt2_sp_set_lr(NULL, 1) == GPT2_SP_INVALID;
    check(alike == 3 && right == 3, "steps in two: the program's learning rate is that of its steps",
        "%d of 3 steps as by the schedule, %d of 3 with 0 or none", alike, right);
    gpt2_sp_destroy(a);
    gpt2_sp_destroy(b);
}

// Writes half of what a tensor of weights has.
static int tensor_halved(gpt2_sp* g, const char* name) {
    gpt2_sp_tensor x;
    for (int i = 0; i < gpt2_sp_tensor_count(g); i++) {
        tensor_of(g, i, &x);
        if (!strstr(x.name, name)) continue;
        float* numbers = tensor_got(g, GPT2_SP_WEIGHTS, &x);
        for (int64_t k = 0; numbers && k < x.elements; k++) numbers[k] /= 2;
        int status = gpt2_sp_tensor_write(g, GPT2_SP_WEIGHTS, x.name, numbers, x.elements);
        free(numbers);
        return status;
    }
    return -1;
}

// Losses of given tokens: their mean is a validation's, and each is what the logits say.
static void library_losses(void) {
    static const char* const splits[] = {"", "sp=2", "sp=2 schedule=zigzag dp=2 batch-size=1",
        "sp=3 zero=3 schedule=ring", "sp=2 zero=3 doc-mask=1 batch-size=2",
        "sp=4 pos-shift=0.5 n-positions=90 schedule=allgather"};
    enum { T = 60, ROWS = 37, FIRST = 9 };
    for (int i = 0; i < 6; i += quick ? 2 : 1) {
        char split[128];
        snprintf(split, sizeof split, "%s lr=0.03", splits[i]);
        gpt2_sp_options o = own_options(split, own_shard(0));
        gpt2_sp* g = library_trainer(&o, split);
        float losses[T], fewer[20], *logits = (float*)need(ROWS * 257, 4);
        double mean = 0, whole = NAN, apart = 0;
        int labels = 0, prefix = 1;
        gpt2_sp_stats stats;
        int status = g ? 0 : -1;
        for (int k = 0; status == 0 && k < 4; k++) status = step_of(g, &stats);
        const int32_t* tokens = own_stream();
        if (status == 0)
            status = gpt2_sp_losses(g, tokens, T + 1, losses) | gpt2_sp_losses(g, tokens, 21, fewer);
        if (status == 0) status = gpt2_sp_validate(g, 1, &whole);
        if (status == 0) status = gpt2_sp_logits(g, tokens, FIRST + ROWS + 4, FIRST, ROWS, logits);
        int one = 1;   // whole is the mean of this document alone
        for (int t = 0; t < T; t++) {
            one &= !o.doc_mask || tokens[t] != 256;
            mean += (double)losses[t], labels++;
            if (t < 20) prefix &= fabs((double)(losses[t] - fewer[t])) <= LIBRARY_APART;
        }
        for (int t = 0; status == 0 && t < ROWS; t++) {
            const float* row = logits + t * 257;
            double sum = 0;
            for (int v = 0; v < 257; v++) sum += exp((double)row[v]);
            double loss = log(sum) - (double)row[tokens[FIRST + t + 1]];
            apart = worst(apart, fabs(loss - (double)losses[FIRST + t]));
        }
        mean /= labels;
        check(status == 0 && prefix && (!one || fabs(mean / whole - 1) < LIBRARY_APART),
            "losses: of given tokens, their mean is the validation's", "%s: %.7f, %.7f of %d tokens %s",
            splits[i], mean, whole, labels, g ? gpt2_sp_error(g) : "");
        check(status == 0 && apart < 5 * LIBRARY_APART, "logits: each loss is what the logits say",
            "%s: %d rows, apart by %.2g", splits[i], (int)ROWS, apart);
        float again[20];
        if (status == 0)
            status = tensor_halved(g, "wte.weight") | gpt2_sp_losses(g, tokens, 21, fewer) |
                gpt2_sp_losses(g, tokens, 21, again);
        int changed = 0, same = 0;
        for (int t = 0; t < 20; t++) changed += fewer[t] != losses[t], same += fewer[t] == again[t];
        check(status == 0 && changed == 20 && same == 20,
            "losses: they are those of weights that were written just before",
            "%s: %d of 20 are others, %d the same when read again", splits[i], changed, same);
        free(logits);
        gpt2_sp_destroy(g);
    }
}

// What cannot be is an error, with a line.
static void library_misused(void) {
    gpt2_sp_options o = trial_options("freeze=h.1.*");
    gpt2_sp* g = library_trainer(&o, "");
    gpt2_sp_stats stats;
    gpt2_sp_tensor x;
    float numbers[64] = {0};
    int32_t tokens[62] = {0};
    int right = 0;
    const char* e = "";
    if (!g) return;
#define REFUSED(call, part) \
    right += (call) < 0 && gpt2_sp_code(g) == GPT2_SP_INVALID && strstr(e = gpt2_sp_error(g), part) \
        ? 1 \
        : (printf("     %s\n", e), 0)
    REFUSED(update_of(g, &stats), "gpt2_sp_gradients makes them");
    REFUSED(gpt2_sp_tensor_read(g, GPT2_SP_GRADIENTS, "ln_f.bias", numbers, 64),
        "there are no gradients to read");
    right += step_of(g, &stats) == 0;
    right += gpt2_sp_tensor_read(g, GPT2_SP_GRADIENTS, "ln_f.bias", numbers, 64) == 0 && numbers[5] != 0;
    REFUSED(gpt2_sp_tensor_write(g, GPT2_SP_GRADIENTS, "ln_f.bias", numbers, 64), "no gradients to write to");
    right += gradients_made(g, &stats) == 0;
    REFUSED(gpt2_sp_tensor_write(g, GPT2_SP_GRADIENTS, "h.1.ln_1.bias", numbers, 64), "is frozen");
    REFUSED(
        gpt2_sp_tensor_read(g, GPT2_SP_WEIGHTS, "h.3.ln_1.bias", numbers, 64), "no tensor `h.3.ln_1.bias`");
    REFUSED(gpt2_sp_tensor_read(g, GPT2_SP_WEIGHTS, "ln_f.bias", numbers, 63), "has 64 numbers, found 63");
    REFUSED(gpt2_sp_tensor_read(g, 4, "ln_f.bias", numbers, 64), "none of GPT2_SP_WEIGHTS");
    REFUSED(gpt2_sp_tensor_read(g, GPT2_SP_WEIGHTS, NULL, numbers, 64), "needs a name");
    REFUSED(gpt2_sp_losses(g, tokens, 62, numbers), "62 tokens, expected 2 to 61");
    REFUSED(gpt2_sp_losses(g, tokens, 1, numbers), "1 tokens, expected 2 to 61");
    tokens[3] = 257;
    REFUSED(gpt2_sp_losses(g, tokens, 5, numbers), "token 3 is 257");
    REFUSED(gpt2_sp_logits(g, tokens, 3, 2, 2, numbers), "logits of 2 tokens from token 2 on");
    right += tensor_of(g, 40, &x) == GPT2_SP_INVALID && tensor_of(g, -1, &x) < 0 &&
        tensor_of(NULL, 0, &x) < 0 && gpt2_sp_tensor_count(NULL) == 0;
#undef REFUSED
    check(right == 16, "tensors: what cannot be is an error that says why", "%d of 16", right);
    gpt2_sp_destroy(g);
}

// --- several trainers at the same time, each in a thread of its own ---

enum { ALONG_STEPS = 4, ALONG_TRAINERS = 3 };
typedef struct {
    const gpt2_sp_options* o;
    OwnProgram program;
    Hearing hearing;
    double loss[ALONG_STEPS + 1];   // of the steps, of the validation
    uint64_t state;
    char error[GPT2_SP_TEXT];
} Along;
static void* along_run(void* argument) {
    Along* a = (Along*)argument;
    a->program = own_program(a->o, 0, 1);
    a->hearing = library_hearing(0);
    OwnProgram val = own_program(a->o, 0, 0);
    Feed data = own_feed(&a->program), val_data = own_feed(&val);
    gpt2_sp* g = own_trainer(a->o, &data, &val_data, a->error);
    for (int k = 0; g && k < ALONG_STEPS; k++) {
        gpt2_sp_stats stats;
        int32_t prompt[3] = {1, 6, 31}, out[8];
        gpt2_sp_on_progress(g, library_hear, &a->hearing);
        int status = step_of(g, &stats);
        gpt2_sp_on_progress(g, NULL, NULL);
        a->hearing.calls = 0;   // each step counts from its first layer
        if (generated(g, prompt, 3, out, 8, 0.9, 0, 1, (uint64_t)k) != 8) status = -1;
        a->loss[k] = status == 0 ? stats.loss : NAN;
    }
    if (g && gpt2_sp_validate(g, 3, &a->loss[ALONG_STEPS]) == 0) a->state = library_state(g);
    gpt2_sp_destroy(g);
    return NULL;
}

// They do what each does alone, to the bit.
static void library_along(void) {
    static const char* const splits[ALONG_TRAINERS] = {
        "sp=2 zero=3", "doc-mask=1 recompute=sqrt", "dp=2 batch-size=1"};
    Along alone[ALONG_TRAINERS], along[ALONG_TRAINERS];
    gpt2_sp_options o[ALONG_TRAINERS];
    pthread_t thread[ALONG_TRAINERS];
    int alike = 0, wrong = 0;
    memset(alone, 0, sizeof alone), memset(along, 0, sizeof along);
    (void)own_stream();   // made before the threads ask for it
    for (int i = 0; i < ALONG_TRAINERS; i++) {
        o[i] = own_options(splits[i], "");
        alone[i].o = along[i].o = &o[i];
        along_run(&alone[i]);
    }
    for (int i = 0; i < ALONG_TRAINERS; i++) pthread_create(&thread[i], NULL, along_run, &along[i]);
    for (int i = 0; i < ALONG_TRAINERS; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < ALONG_TRAINERS; i++) {
        alike += memcmp(alone[i].loss, along[i].loss, sizeof alone[i].loss) == 0 && along[i].loss[0] > 0 &&
            alone[i].state == along[i].state;
        wrong += (int)(along[i].hearing.wrong + along[i].program.wrong);
    }
    check(alike == ALONG_TRAINERS && wrong == 0,
        "library: several trainers in several threads do what each does alone, bit for bit",
        "%d of %d with %d steps, a validation and samples each; %d callbacks out of turn; loss %.6f %s",
        alike, ALONG_TRAINERS, ALONG_STEPS, wrong, along[0].loss[ALONG_STEPS - 1], along[0].error);
}

#ifndef GPT2_SP_GPU
// --- several processes, which here are threads of this one ---

enum { LIBRARY_PROCESSES = 2, LIBRARY_STEPS = 3 };
enum { LIBRARY_FILES, LIBRARY_OWN, LIBRARY_OTHER };
typedef struct LibraryProcess LibraryProcess;
struct LibraryProcess {
    int process, port;
    const char* split;
    int data;   // from files; the program's own; and of one process other than of the other
    void (*work)(LibraryProcess* p, gpt2_sp* g);
    OwnProgram program;
    double figure[8];   // what it finds
    char error[GPT2_SP_TEXT];
};
static void* library_process(void* argument) {
    LibraryProcess* p = (LibraryProcess*)argument;
    gpt2_sp_options o = p->data ? own_options(p->split, "") : trial_options(p->split);
    p->program = own_program(&o, 1, 1);
    Feed feed = own_feed(&p->program);
    feed.fingerprint += p->data == LIBRARY_OTHER && p->process == 1;
    o.rank = p->process, o.world = LIBRARY_PROCESSES;
    o.timeout = 30;
    snprintf(o.master, sizeof o.master, "127.0.0.1:%d", p->port);
    gpt2_sp* g = p->data ? own_trainer(&o, &feed, NULL, p->error) : trainer_of(&o, p->error, sizeof p->error);
    if (g) p->work(p, g), snprintf(p->error, sizeof p->error, "%s", gpt2_sp_error(g));
    gpt2_sp_destroy(g);
    return NULL;
}
static void library_processes(
    LibraryProcess* p, const char* split, void (*work)(LibraryProcess* p, gpt2_sp* g), int data) {
    pthread_t thread[LIBRARY_PROCESSES];
    int port = free_port();
    memset(p, 0, LIBRARY_PROCESSES * sizeof *p);
    for (int i = 0; i < LIBRARY_PROCESSES; i++) {
        p[i].process = i, p[i].port = port;
        p[i].split = split, p[i].work = work;
        p[i].data = data;
        pthread_create(&thread[i], NULL, library_process, &p[i]);
    }
    for (int i = 0; i < LIBRARY_PROCESSES; i++) pthread_join(thread[i], NULL);
}

// Only process 1 hears, and cancels the second step once.
static void library_cancel_one(LibraryProcess* p, gpt2_sp* g) {
    for (int i = 0; i < LIBRARY_STEPS; i++) {
        Hearing h = library_hearing(5);
        gpt2_sp_stats stats;
        if (i == 1 && p->process == 1) gpt2_sp_on_progress(g, library_hear, &h);
        if (i == 1) p->figure[LIBRARY_STEPS] = step_of(g, &stats);
        gpt2_sp_on_progress(g, NULL, NULL);
        p->figure[i] = step_of(g, &stats) == 0 ? stats.loss : NAN;
    }
}
static void library_between_processes(void) {
    static const char* const splits[] = {"sp=2", "sp=4 zero=3", "dp=2 sp=2 batch-size=1 zero=1"};
    for (int i = 0; i < 3; i++) {
        LibraryProcess p[LIBRARY_PROCESSES];
        gpt2_sp_options o = trial_options(splits[i]);
        gpt2_sp* g = library_trainer(&o, splits[i]);
        int alike = 0;
        library_processes(p, splits[i], library_cancel_one, LIBRARY_FILES);
        for (int k = 0; g && k < LIBRARY_STEPS; k++) {
            gpt2_sp_stats stats;
            if (step_of(g, &stats) != 0) break;
            alike += stats.loss == p[0].figure[k] && stats.loss == p[1].figure[k];
        }
        check(alike == LIBRARY_STEPS && p[0].figure[LIBRARY_STEPS] == GPT2_SP_CANCELLED &&
                p[1].figure[LIBRARY_STEPS] == GPT2_SP_CANCELLED,
            "cancel: one of two processes cancels a step of both, and the run is as without",
            "%s: %d of %d losses those of one process; %s%s", splits[i], alike, LIBRARY_STEPS, p[0].error,
            p[1].error);
        gpt2_sp_destroy(g);
    }
}

// Two processes, of which each asks for all samples.
static void own_steps(LibraryProcess* p, gpt2_sp* g) {
    gpt2_sp_stats stats;
    for (int i = 0; i < LIBRARY_STEPS; i++) p->figure[i] = step_of(g, &stats) == 0 ? stats.loss : NAN;
}
static void own_between_processes(void) {
    static const char* const splits[] = {"sp=2 doc-mask=1", "dp=2 batch-size=1 doc-mask=1 zero=2"};
    for (int i = 0; i < 2; i++) {
        LibraryProcess p[LIBRARY_PROCESSES];
        char error[GPT2_SP_TEXT] = "";
        gpt2_sp_options o = own_options(splits[i], "");
        OwnProgram train = own_program(&o, 1, 1);
        Feed data = own_feed(&train);
        gpt2_sp* g = own_trainer(&o, &data, NULL, error);
        int alike = 0, calls = 0;
        library_processes(p, splits[i], own_steps, LIBRARY_OWN);
        for (int k = 0; g && k < LIBRARY_STEPS; k++) {
            gpt2_sp_stats stats;
            if (step_of(g, &stats) != 0) break;
            alike += stats.loss == p[0].figure[k] && stats.loss == p[1].figure[k];
        }
        for (int k = 0; k < LIBRARY_PROCESSES; k++)
            calls += p[k].program.wrong == 0 ? (int)p[k].program.calls : 0;
        check(alike == LIBRARY_STEPS && calls == 2 * (LIBRARY_STEPS + 1) * 2,
            "own data: every process asks for all samples, and the losses are those of one process",
            "%s: %d of %d losses, %d calls %s%s", splits[i], alike, LIBRARY_STEPS, calls, p[0].error,
            p[1].error);
        library_processes(p, splits[i], own_steps, LIBRARY_OTHER);
        check(strstr(p[0].error, "fingerprint") && strstr(p[1].error, "fingerprint"),
            "own data: processes with other data are refused", "%s: %s", splits[i], p[0].error);
        gpt2_sp_destroy(g);
    }
}

// Two processes: what both read is what one process reads, and what both write is trained from.
static void tensors_of_process(LibraryProcess* p, gpt2_sp* g) {
    gpt2_sp_stats stats;
    int status = gradients_made(g, &stats);
    p->figure[0] = tensors_noise(g, GPT2_SP_WEIGHTS, 0.05) + tensors_noise(g, GPT2_SP_GRADIENTS, 0.01);
    status |= gpt2_sp_set_lr(g, 0.01) | update_of(g, &stats);
    p->figure[1] = stats.grad_norm;
    status |= step_of(g, &stats);
    p->figure[2] = stats.loss;
    float losses[20];
    status |= gpt2_sp_losses(g, own_stream(), 21, losses);
    p->figure[3] = (double)losses[19];
    p->figure[4] = status;
    if (status == 0) p->figure[5] = gpt2_sp_set_lr(g, 0.01 + p->process);   // not alike
}
static void tensors_between_processes(void) {
    static const char* const splits[] = {"sp=2", "sp=4 zero=3", "dp=2 batch-size=1 zero=1"};
    for (int i = 0; i < 3; i++) {
        LibraryProcess p[LIBRARY_PROCESSES], one;
        gpt2_sp_options o = trial_options(splits[i]);
        gpt2_sp* g = library_trainer(&o, splits[i]);
        memset(&one, 0, sizeof one);
        if (g) tensors_of_process(&one, g);
        library_processes(p, splits[i], tensors_of_process, LIBRARY_FILES);
        int alike = 0;
        for (int k = 0; k < 5; k++)
            alike += p[0].figure[k] == one.figure[k] && p[1].figure[k] == one.figure[k];
        check(alike == 5 && one.figure[0] == 80 && one.figure[4] == 0 && p[0].figure[5] == GPT2_SP_MISMATCH &&
                p[1].figure[5] == GPT2_SP_MISMATCH,
            "tensors: two processes read and write what one does",
            "%s: %d of 5 figures, norm %.6f, loss %.6f; %s", splits[i], alike, one.figure[1], one.figure[2],
            p[0].error);
        gpt2_sp_destroy(g);
    }
}
#endif

static void test_own_data(void) {
    own_equal();
    own_splits();
    own_unlabelled();
    own_refused();
    own_resumed();
#ifndef GPT2_SP_GPU
    own_between_processes();
#endif
}

static void test_tensors(void) {
    tensors_read();
    tensors_written();
    parts_alike();
    gradients_changed();
    library_rate();
    library_losses();
    library_misused();
#ifndef GPT2_SP_GPU
    tensors_between_processes();
#endif
}

static void test_cancel(void) {
    library_cancel();
    library_validation();
    library_floating();
    library_told();
    library_config_moved();
    library_nested();
    library_mistakes();
    library_along();
#ifndef GPT2_SP_GPU
    library_between_processes();
#endif
}
