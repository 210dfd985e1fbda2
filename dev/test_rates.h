// Rates of parameters: --freeze and --lr-scale. Held, for every way to split a step: a frozen parameter, its
// moments and its gradient do not change, and the norm is that of all others; a parameter that is not frozen
// takes the step that it takes without --freeze, to the bit; a scale is a factor of the learning rate and so
// of the decay; patterns mean the parameters that their names say. Who trains the upper layers only, or the
// positions faster, sees a falling loss whether this is right or not: it must be held here.

// Every parameter of the runs below is frozen in one of these.
static const char* const FROZEN[] = {"freeze=h.0.*,wte.weight", "freeze=*.bias,wpe.weight,h.1.mlp.*",
    "freeze=*ln_*,h.?.attn.c_attn.weight,h.1.attn.c_[op]*,h.0.mlp.c_fc.*"};
// As RUN, but for what the GPU program needs: heads of 64 channels.
static const char* const RATES_RUN = "layers=2 heads=1 channels=64 batch-size=2 deterministic=1 grad-clip=0";
static const char* const RATES_SPLITS[] = {"", "sp=2 zero=1", "sp=2 zero=2 seq-len=60",
    "dp=2 batch-size=1 zero=3", "sp=2 seq-len=60", "sp=3 grad-accum=2 batch-size=1 recompute=layer",
    "sp=2 zero=3 center=0 doc-mask=1"};
enum { RATES_SPLIT_COUNT = (int)(sizeof RATES_SPLITS / sizeof RATES_SPLITS[0]) };

// All states of a trainer before its first step and after `steps`, in the layout of all units; its last norm.
typedef struct {
    gpt2_sp* g;   // NULL: it could not be made
    real *begun[STATES], *ended[STATES];
    double norm;
} RatedRun;
static RatedRun rated_run(const char* split, const char* rates, int steps) {
    RatedRun run;
    char text[512], error[GPT2_SP_TEXT];
    memset(&run, 0, sizeof run);
    snprintf(text, sizeof text, "%s %s %s", RATES_RUN, split, rates);
    gpt2_sp_options o = run_options(text);
    run.g = trainer_of(&o, error, sizeof error);
    if (!run.g) check(0, "a test's trainer is made", "%s: %s", text, error);
    for (int state = 0; run.g && state < STATES; state++) {
        run.begun[state] = reals(run.g->layout.elements), run.ended[state] = reals(run.g->layout.elements);
        if (state != STATE_GRADIENTS) collect(run.g, state, run.begun[state]);
    }
    for (int i = 0; run.g && i < steps; i++) {
        gpt2_sp_stats stats;
        if (step_of(run.g, &stats) != 0) check(0, "a test's step succeeds", "%s", gpt2_sp_error(run.g));
        run.norm = stats.grad_norm;
    }
    for (int state = 0; run.g && state < STATES; state++) collect(run.g, state, run.ended[state]);
    return run;
}
static void rated_free(RatedRun* run) {
    for (int state = 0; state < STATES; state++) free(run->begun[state]), free(run->ended[state]);
    gpt2_sp_destroy(run->g);
}

// Calls `each` for every parameter: its rate, where it begins in the layout of all units, its numbers.
typedef void (*RateVisitor)(void* user, const Parameter* p, double rate, int64_t at, int64_t n);
static void rates_visit(const gpt2_sp* g, RateVisitor each, void* user) {
    for (int u = 0; u < g->layout.count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(&g->mesh.shape, id);
            if (p.unit == g->layout.units[u].kind)
                each(user, &p, g->layout.units[u].rate[id], g->layout.units[u].offset + g->layout.within[id],
                    tensor_rows(&g->mesh.shape, id, &p) * max_i64(1, p.columns));
        }
}

// A run with frozen parameters, and the same run without.
typedef struct {
    const RatedRun *run, *free;
    int frozen, still, trained, moved,
        same;        // parameters: frozen; unchanged; not frozen; changed; as in `free`
    double square;   // of the free run's gradients of what is not frozen
} FrozenCase;
static int numbers_equal(const real* a, const real* b, int64_t at, int64_t n) {
    return memcmp(a + at, b + at, (size_t)n * sizeof *a) == 0;
}
static void frozen_visit(void* user, const Parameter* p, double rate, int64_t at, int64_t n) {
    FrozenCase* c = (FrozenCase*)user;
    const RatedRun *run = c->run, *other = c->free;
    static const int states[] = {STATE_WEIGHTS, STATE_M, STATE_V};
    int still = 1, moved = 1, same = 1;
    real* zeros = reals(at + n);
    for (int i = 0; i < 3; i++) {
        int s = states[i];
        int kept = numbers_equal(run->begun[s], run->ended[s], at, n);
        still &= kept, moved &= !kept;
        same &= numbers_equal(other->ended[s], run->ended[s], at, n);
    }
    (void)p;
    if (rate == 0) {
        c->frozen++;
        c->still += still && numbers_equal(run->ended[STATE_GRADIENTS], zeros, at, n);
    } else {
        c->trained++, c->moved += moved, c->same += same;
        for (int64_t i = at; i < at + n; i++)
            c->square += (double)other->ended[STATE_GRADIENTS][i] * (double)other->ended[STATE_GRADIENTS][i];
    }
    free(zeros);
}

static void rates_frozen(void) {
    for (int i = 0; i < RATES_SPLIT_COUNT; i += quick ? 2 : 1) {
        RatedRun whole = rated_run(RATES_SPLITS[i], "", 1);
        for (size_t k = 0; whole.g && k < sizeof FROZEN / sizeof FROZEN[0]; k++) {
            RatedRun one = rated_run(RATES_SPLITS[i], FROZEN[k], 1),
                     three = rated_run(RATES_SPLITS[i], FROZEN[k], 3);
            FrozenCase first = {&one, &whole, 0, 0, 0, 0, 0, 0}, later = {&three, &whole, 0, 0, 0, 0, 0, 0};
            if (one.g && three.g)
                rates_visit(one.g, frozen_visit, &first), rates_visit(three.g, frozen_visit, &later);
            check(first.frozen > 0 && later.still == later.frozen && later.moved == later.trained,
                "rates: what is frozen stays as it is, with moments and gradient, and all else moves",
                "%s, %s: %d of %d, %d of %d after 3 steps", RATES_SPLITS[i], FROZEN[k], later.still,
                later.frozen, later.moved, later.trained);
            check(first.trained > 0 && first.same == first.trained,
                "rates: what is not frozen steps as it does without --freeze, bit for bit",
                "%s, %s: weights and moments of %d of %d parameters", RATES_SPLITS[i], FROZEN[k], first.same,
                first.trained);
            double error = fabs(one.norm / sqrt(first.square) - 1), limit = 1e-5;
            check(error <= limit && one.norm < 0.999 * whole.norm,
                "rates: the norm is that of what is trained",
                "%s, %s: %.9g of %.9g, %.3g from the sum of its squares, at most %.3g", RATES_SPLITS[i],
                FROZEN[k], one.norm, whole.norm, error, limit);
            rated_free(&one);
            rated_free(&three);
        }
        rated_free(&whole);
    }
}

// A run with scales and the same run without, after a step from the same weights: how far the numbers' steps
// are from rate times what they were, in roundings of the weight.
typedef struct {
    const RatedRun *scaled, *plain;
    double most;
    int64_t moved;   // numbers of another rate than 1
} ScaledCase;
static void scaled_visit(void* user, const Parameter* p, double rate, int64_t at, int64_t n) {
    ScaledCase* c = (ScaledCase*)user;
    (void)p;
    for (int64_t i = at; i < at + n; i++) {
        double w = (double)c->plain->begun[STATE_WEIGHTS][i],
               step = (double)c->plain->ended[STATE_WEIGHTS][i] - w,
               found = (double)c->scaled->ended[STATE_WEIGHTS][i] - w;
        double rounding = (1 + rate) * EPS * (fabs(w) + fabs(step)) + 1e-300;
        c->moved += rate != 1 && step != 0;
        c->most = worst(c->most, fabs(found - rate * step) / rounding);
    }
}

// A factor of two is exact in every number: half the scale is half the learning rate, to the bit.
static void rates_scaled(void) {
    for (int i = 0; i < RATES_SPLIT_COUNT; i += quick ? 2 : 1) {
        RatedRun half = rated_run(RATES_SPLITS[i], "lr=4e-3 lr-scale=*=0.5 weight-decay=1", 3);
        RatedRun plain = rated_run(RATES_SPLITS[i], "lr=2e-3 weight-decay=1", 3);
        int equal = half.g && plain.g && half.norm == plain.norm;
        for (int s = 0; equal && s < STATES; s++)
            equal = numbers_equal(half.ended[s], plain.ended[s], 0, half.g->layout.elements);
        check(equal, "rates: all at half the scale are a run at half the learning rate, bit for bit",
            "%s: 3 steps, decay 1", RATES_SPLITS[i]);
        rated_free(&half);
        rated_free(&plain);
        RatedRun some =
            rated_run(RATES_SPLITS[i], "lr=2e-3 lr-scale=h.1.*=2,wpe.weight=0.25 weight-decay=1", 1);
        RatedRun none = rated_run(RATES_SPLITS[i], "lr=2e-3 weight-decay=1", 1);
        ScaledCase c = {&some, &none, some.g && none.g ? 0 : NAN, 0};
        if (some.g && none.g) rates_visit(some.g, scaled_visit, &c);
        check(c.most <= 2 && c.moved > 0,
            "rates: a scale multiplies the step of its parameters, decay and all",
            "%s: %lld numbers at 2 or 0.25 times the rate, %.3g roundings of the weight apart, at most 2",
            RATES_SPLITS[i], (long long)c.moved, c.most);
        rated_free(&some);
        rated_free(&none);
    }
}

// What patterns mean, without a step: the rate of a parameter by its name; and what is refused, with words of
// the line.
static const struct {
    const char *options, *name;
    double rate;
} RATE_CASES[] = {{"", "wte.weight", 1}, {"freeze=wte.weight", "wte.weight", 0},
    {"freeze=wte.weight", "wpe.weight", 1}, {"freeze=h.*", "h.1.mlp.c_fc.bias", 0},
    {"freeze=h.*", "ln_f.bias", 1}, {"freeze=h.1.*", "h.0.ln_1.bias", 1},
    {"freeze=h.1.*", "h.1.ln_1.bias", 0}, {"freeze=h.1.*", "h.10.ln_1.bias", 1},
    {"freeze=h.1*", "h.10.ln_1.bias", 0}, {"freeze=h.?.*", "h.10.ln_1.bias", 1},
    {"freeze=h.[2-9].*,h.10.*", "h.1.ln_1.bias", 1}, {"freeze=h.[2-9].*,h.10.*", "h.9.ln_1.bias", 0},
    {"freeze=h.[2-9].*,h.10.*", "h.10.ln_1.bias", 0}, {"freeze=transformer.wpe.weight", "wpe.weight", 0},
    {"freeze=*.bias", "ln_f.bias", 0}, {"freeze=*.bias", "ln_f.weight", 1},
    {"lr-scale=wte.weight=0.5", "wte.weight", 0.5}, {"lr-scale=*=2,wte.weight=0.5", "wte.weight", 0.5},
    {"lr-scale=*=2,wte.weight=0.5", "wpe.weight", 2},
    {"lr-scale=wte.weight=0.5,h.*.weight=3,h.3.*=4", "h.3.ln_1.weight", 4},
    {"lr-scale=h.0.*=0.5,*.weight=3", "h.0.ln_1.weight", 3},
    {"lr-scale=h.0.*=0.5,*.weight=3", "h.0.ln_1.bias", 0.5},
    {"lr-scale=*=2 freeze=wte.weight", "wte.weight", 0}, {"lr-scale=*=2 freeze=wte.weight", "wpe.weight", 2},
    {"lr-scale=wte.weight=0", "wte.weight", 0}};
static const struct {
    const char *options, *word, *near;
} RATE_REFUSALS[] = {{"freeze=h.11.*", "h.0 to h.10", "--freeze h.11.*"},
    {"freeze=wte", "wte.weight", "--freeze wte:"},
    {"freeze=h.0.attn.weight", "h.0.attn.c_attn.weight", "near ones"},
    {"freeze=wte.weight,", "--freeze :", "near"}, {"freeze=wpe.wieght", "near ones: wpe.weight", ""},
    {"freeze=*", "nothing to train", ""}, {"lr-scale=*=0", "nothing to train", ""},
    {"lr-scale=wte.weight", "expected PATTERN=X", "wte.weight"},
    {"lr-scale=wte.weight=fast", "fast: expected a number", ""},
    {"lr-scale=wte.weight=-1", "from 0 to 1000", "-1"}, {"lr-scale=wte.weight=1e4", "from 0 to 1000", "1e4"},
    {"lr-scale=wte.weight=nan", "number", "nan"}, {"lr-scale=h.12.*=2", "h.0 to h.10", "--lr-scale h.12.*"},
    {"lr-scale=h.1.*=2,h.*=3", "h.1.*=2 has no effect", "later pattern"},
    {"lr-scale=h.1.*=2 freeze=h.*", "h.1.*=2 has no effect", "--freeze"}};

static double rate_named(const char* options, const char* name, Error* e) {
    char own[64];
    gpt2_sp_options o = options_of(options);
    Shape s = {11, 1, 64, 64, 257, 384, 16, 1, 16};
    Unit units[14];
    Layout layout;
    memset(units, 0, sizeof units);
    memset(&layout, 0, sizeof layout);
    layout.units = units, layout.count = 14;
    for (int u = 0; u < 14; u++) {
        units[u].kind = u == 0 ? UNIT_EMBED : u <= 11 ? UNIT_LAYER : u == 12 ? UNIT_FINAL : UNIT_POSITIONS;
        for (int id = 0; id < PARAMETER_COUNT; id++) units[u].rate[id] = 1;
    }
    if (rates_choose(&layout, &s, &o, e) != 0) return -1;
    for (int u = 0; u < 14; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(&s, id);
            tensor_name(own, sizeof own, "", &p, u);
            if (p.unit == units[u].kind && strcmp(own, name) == 0) return units[u].rate[id];
        }
    return NAN;
}

static void rates_patterns(void) {
    int right = 0, refused = 0, count = (int)(sizeof RATE_CASES / sizeof RATE_CASES[0]),
        wrong = (int)(sizeof RATE_REFUSALS / sizeof RATE_REFUSALS[0]);
    for (int i = 0; i < count; i++) {
        Error e = {0, {0}};
        double rate = rate_named(RATE_CASES[i].options, RATE_CASES[i].name, &e);
        if (rate == RATE_CASES[i].rate) right++;
        else printf("     %s: %s has %g (%s)\n", RATE_CASES[i].options, RATE_CASES[i].name, rate, e.text);
    }
    check(right == count, "rates: a pattern means the parameters of its names, the last one counts",
        "%d of %d", right, count);
    for (int i = 0; i < wrong; i++) {
        Error e = {0, {0}};
        double rate = rate_named(RATE_REFUSALS[i].options, "wte.weight", &e);
        if (rate == -1 && strstr(e.text, RATE_REFUSALS[i].word) && strstr(e.text, RATE_REFUSALS[i].near))
            refused++;
        else printf("     %s: %g (%s)\n", RATE_REFUSALS[i].options, rate, e.text);
    }
    check(refused == wrong, "rates: what names no parameter, or has no effect, is refused with what is near",
        "%d of %d", refused, wrong);
}

#ifndef GPT2_SP_GPU
// Parameters that have moved and are frozen then, as by resuming with --freeze: their moments stay.
static void rates_frozen_later(void) {
    gpt2_sp_options o = run_options("zero=1 sp=2");
    char error[GPT2_SP_TEXT] = "";
    gpt2_sp_stats stats;
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    int status = g ? 0 : -1;
    for (int i = 0; status == 0 && i < 2; i++) status = step_of(g, &stats);
    int64_t n = g ? g->layout.elements : 0, moved = 0, changed = 0, other = 0;
    real *before = reals(n + 1), *after = reals(n + 1);
    for (int state = STATE_M; status == 0 && state <= STATE_V; state++) {
        collect(g, state, before);
        Unit* unit = &g->layout.units[1];   // the first layer
        for (int id = 0; id < PARAMETER_COUNT; id++) unit->rate[id] = 0;
        status = step_of(g, &stats);
        collect(g, state, after);
        for (int64_t i = 0; i < n; i++) {
            int frozen = i >= unit->offset && i < unit->offset + unit->elements;
            moved += frozen && before[i] != 0, changed += frozen && before[i] != after[i];
            other += !frozen && before[i] != after[i];
        }
    }
    check(status == 0 && moved > 1000 && changed == 0 && other > 1000,
        "rates: the moments of what is frozen later stay as they are", "%d of %d changed; %d others did %s",
        (int)changed, (int)moved, (int)other, g ? g->error.text : error);
    free(before);
    free(after);
    gpt2_sp_destroy(g);
}
#endif

static void test_rates(void) {
#ifndef GPT2_SP_GPU
    rates_frozen_later();
#endif
    rates_patterns();
    rates_frozen();
    rates_scaled();
}
