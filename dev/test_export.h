/* export: what `export` writes, what --init-from reads of llm.c, how positions grow: of test_gpt2_sp.c.
 *
 * Held: a model that leaves the program comes back bit for bit, in the types that can hold it, and rounded
 * once to the nearest number in those that cannot; llm.c's file has the bytes that llm.c reads, number by
 * number in its order; a model whose context grew is the same model up to its old length, to the last bit.
 * A number that is lost on the way out is found by nobody here: the model is somebody else's then.
 */

enum { EXPORT_LAYERS = 2, EXPORT_C = 8, EXPORT_T = 16 };
static const char* const EXPORTED =
    "layers=2 heads=2 channels=8 seq-len=16 batch-size=2 threads=1 keep=3 steps=2";

// A run of the tiny model, with the checkpoint of its second step; the trainer that saved it, or NULL.
// `change`, if not NULL, changes its weights before.
static gpt2_sp* export_run(gpt2_sp_options* o, const char* name, const char* more, void (*change)(gpt2_sp*)) {
    char error[GPT2_SP_TEXT] = "";
    gpt2_sp_stats stats;
    *o = run_options(EXPORTED);
    options_apply(o, more);
    snprintf(o->out, sizeof o->out, "%s", scratch(name));
    remove_tree(o->out);
    gpt2_sp* g = trainer_of(o, error, sizeof error);
    int status = g && step_of(g, &stats) == 0 && step_of(g, &stats) == 0 ? 0 : -1;
    if (status == 0 && change) change(g);
    if (status == 0) status = gpt2_sp_save(g);
    if (status != 0) check(0, "a test's run is saved", "%s", g ? gpt2_sp_error(g) : error);
    if (status == 0) return g;
    gpt2_sp_destroy(g);
    return NULL;
}

// A trainer that starts from the model at `path`; NULL, with a line in error.
static gpt2_sp* export_back(const char* path, const char* more, char* error) {
    gpt2_sp_options o = run_options("batch-size=2 threads=1 steps=2");
    o.layers = o.heads = o.channels = o.seq_len = 0;
    snprintf(o.init_from, sizeof o.init_from, "%s", path);
    options_apply(&o, more);
    return trainer_of(&o, error, GPT2_SP_TEXT);
}

static char* export_bytes(const char* path, size_t* size) {
    Error e = {0, {0}};
    *size = 0;
    return file_read_text(path, 1 << 24, size, &e);
}
static int export_same_files(const char* a, const char* b) {
    size_t n = 0, m = 0;
    char *x = export_bytes(a, &n), *y = export_bytes(b, &m);
    int same = x && y && n > 0 && n == m && memcmp(x, y, n) == 0;
    free(x);
    free(y);
    return same;
}

// llm.c's file of a trainer's weights, written out as its train_gpt2.c reads it. The caller frees it.
static unsigned char* export_llmc_expected(const gpt2_sp* g, int bf16, size_t* size) {
    static const int order[] = {P_wte, P_wpe, P_ln1w, P_ln1b, P_qkvw, P_qkvb, P_attprojw, P_attprojb, P_ln2w,
        P_ln2b, P_fcw, P_fcb, P_fcprojw, P_fcprojb, P_lnfw, P_lnfb};
    const int32_t numbers[] = {20240326, bf16 ? 5 : 3, EXPORT_T, 257, EXPORT_LAYERS, 2, EXPORT_C, 384};
    unsigned char* file = (unsigned char*)need(1 << 20, 1);
    memcpy(file, numbers, sizeof numbers);
    memcpy(file + 32, "gpt2_sp", 8);
    size_t at = 1024;
    for (int i = 0; i < 16; i++) {
        Parameter p = parameter(&g->mesh.shape, order[i]);
        int layers = i >= 2 && i < 14 ? EXPORT_LAYERS : 1;
        for (int layer = 0; layer < layers; layer++) {
            int u = i >= 14 ? EXPORT_LAYERS + 1 : i == 1 ? EXPORT_LAYERS + 2 : i == 0 ? 0 : layer + 1;
            const real* from = weight(&g->ranks[0], u, order[i]);
            for (int64_t k = 0; k < parameter_elements(&p); k++) {
                float value = i == 0 && k >= 257 * EXPORT_C ? 0 : (float)from[k];   // wte's padding
                uint16_t half = st_to_bf16((double)from[k]);
                if (i == 0 && k >= 257 * EXPORT_C) half = 0;
                if (bf16) memcpy(file + at, &half, 2);
                else memcpy(file + at, &value, 4);
                at += bf16 ? 2 : 4;
            }
        }
    }
    *size = at;
    return file;
}

static void export_llmc_file(const gpt2_sp* g, const char* run) {
    const char* path = scratch("model.bin");
    for (int bf16 = 0; bf16 < 2; bf16++) {
        size_t size, found_size;
        int status =
            command("export --from %s --out %s --format llmc --dtype %s", run, path, bf16 ? "bf16" : "fp32");
        unsigned char* expected = export_llmc_expected(g, bf16, &size);
        char* found = export_bytes(path, &found_size);
        size_t same = 0;
        while (found && same < size && same < found_size && (unsigned char)found[same] == expected[same])
            same++;
        check(status == 0 && same == size && found_size == size,
            "export: llm.c's file has its bytes, head, order, padding",
            "%s: %zu of %zu bytes, of %zu expected %s", bf16 ? "version 5" : "version 3", same, found_size,
            size, status ? command_out : "");
        free(expected);
        free(found);
    }
}

// How far the weights of b are from a's rounded to a type: the number of those that differ.
static int64_t export_differing(const gpt2_sp* a, const gpt2_sp* b, int dtype) {
    int64_t differ = 0;
    for (int64_t i = 0; i < a->layout.elements; i++) {
        double x = (double)a->ranks[0].state[STATE_WEIGHTS][i];
        double rounded = dtype == GPT2_SP_FP32 ? (double)(float)x
            : dtype == GPT2_SP_BF16            ? (double)st_from_bf16(st_to_bf16(x))
                                               : (double)st_from_f16(st_to_f16(x));
        differ += !(rounded == (double)b->ranks[0].state[STATE_WEIGHTS][i]);
    }
    return differ;
}

// Sequences shorter than the model's context leave it all of its positions, unless fewer are asked for.
static void export_shorter(const gpt2_sp* g, const char* run) {
    char error[GPT2_SP_TEXT] = "";
    gpt2_sp* b = export_back(run, "seq-len=8", error);
    gpt2_sp* fewer = b ? export_back(run, "seq-len=8 n-positions=12", error) : NULL;
    int64_t rows = b ? b->mesh.shape.N : 0, asked = fewer ? fewer->mesh.shape.N : 0;
    int64_t differ = rows == EXPORT_T ? 0 : -1;
    for (int64_t i = 0; differ >= 0 && i < g->layout.elements; i++)   // a run has them as they are computed
        differ += !(g->ranks[0].state[STATE_WEIGHTS][i] == b->ranks[0].state[STATE_WEIGHTS][i]);
    check(differ == 0 && b->mesh.shape.T == 8 && asked == 12,
        "export: a model that goes on with shorter sequences keeps its positions",
        "%lld rows of %d, %lld numbers differ; %lld where 12 are asked for %s", (long long)rows, EXPORT_T,
        (long long)differ, (long long)asked, error);
    gpt2_sp_destroy(b);
    gpt2_sp_destroy(fewer);
}

// Out in every type and form, and back in; out again from there, and through the other form: the same file.
static void export_round_trips(const gpt2_sp* g, const char* run) {
    static const char *const types[] = {"fp32", "bf16", "fp16"}, *const forms[] = {"hf", "llmc"};
    char error[GPT2_SP_TEXT] = "", first[600], again[600], model[2][700];
    for (int type = 0; type < 3; type++)
        for (int form = 0; form < (type == 2 ? 1 : 2); form++) {
            snprintf(first, sizeof first, "%s", scratch("first"));
            snprintf(again, sizeof again, "%s", scratch("again"));
            remove_tree(first), remove_tree(again);
            int status = command(
                "export --from %s --out %s --dtype %s --format %s", run, first, types[type], forms[form]);
            gpt2_sp* b = status == 0 ? export_back(first, "", error) : NULL;
            int64_t differ =
                b && b->layout.elements == g->layout.elements ? export_differing(g, b, type) : -1;
            check(differ == 0, "export: a model comes back bit for bit, or as the nearest of its type",
                "%s %s: %lld of %lld numbers differ %s", forms[form], types[type], (long long)differ,
                (long long)g->layout.elements, b ? "" : error);
            gpt2_sp_destroy(b);
            status |= command(
                "export --from %s --out %s --dtype %s --format %s", first, again, types[type], forms[form]);
            for (int i = 0; i < 2; i++)
                snprintf(
                    model[i], sizeof model[i], "%s%s", i ? again : first, form ? "" : "/model.safetensors");
            int same = status == 0 && export_same_files(model[0], model[1]);
            if (type < 2) {   // through the other form and back
                const char* other = scratch("other");
                remove_tree(other);
                status |= command("export --from %s --out %s --dtype %s --format %s", first, other,
                    types[type], forms[!form]);
                status |= command("export --from %s --out %s --dtype %s --format %s", other, again,
                    types[type], forms[form]);
                same &= status == 0 && export_same_files(model[0], model[1]);
            }
            check(same, "export: what is exported again is the same file", "%s %s, also by way of the other",
                forms[form], types[type]);
        }
}

// A tensor that is written in several pieces.
static void export_pieces(void) {
    static const char* const forms[] = {"hf", "llmc"};
    gpt2_sp_options o;
    gpt2_sp* g = export_run(&o, "large", "layers=1 vocab=40000", NULL);
    for (int form = 0; g && form < 2; form++) {
        char error[GPT2_SP_TEXT] = "";
        const char* out = scratch(forms[form]);
        int status = command("export --from %s --out %s --format %s", o.out, out, forms[form]);
        gpt2_sp* b = status == 0 ? export_back(out, "", error) : NULL;
        int64_t differ = b ? export_differing(g, b, GPT2_SP_FP32) : -1;
        check(differ == 0, "export: a tensor of several pieces comes back",
            "%s, 40000 x 8: %lld numbers differ %s", forms[form], (long long)differ, b ? "" : error);
        gpt2_sp_destroy(b);
    }
    gpt2_sp_destroy(g);
}

// What no export wrote is refused and stays: a folder of Transformers, an export with another file in it, a
// model file of llm.c's own.
static void export_strangers(const char* run) {
    static const char* const names[] = {"theirs", "theirs_more", "theirs.bin"};
    static const char* const words[] = {"no export of this program", "holds notes.txt", "a file is there"};
    int right = 0;
    for (int i = 0; i < 3; i++) {
        char out[600], file[700];
        size_t before = 0, after = 0;
        snprintf(out, sizeof out, "%s", scratch(names[i]));
        snprintf(file, sizeof file, "%s%s", out, i == 2 ? "" : i == 1 ? "/notes.txt" : "/config.json");
        int status = i ? command("export --from %s --out %s --format %s", run, out, i == 2 ? "llmc" : "hf")
                       : mkdir(out, 0777);
        FILE* f = fopen(file, i == 2 ? "r+" : "w");
        if (f && i == 2)
            fseek(f, 32, SEEK_SET), fwrite("\0\0\0\0\0\0\0", 1, 8, f);   // as llm.c leaves its head
        else if (f) fprintf(f, "{}");
        if (f) fclose(f);
        char* was = export_bytes(file, &before);
        int refused =
            command("export --from %s --out %s --format %s", run, out, i == 2 ? "llmc" : "hf") == -1 &&
            command_said(words[i]);
        char* is = export_bytes(file, &after);
        int good = status == 0 && refused && was && is && before == after && memcmp(was, is, before) == 0;
        if (!good) printf("     %s: %s\n", names[i], command_out);
        right += good;
        free(was);
        free(is);
    }
    check(right == 3, "export: what no export wrote is refused and stays", "%d of 3", right);
}

// A folder that another export holds, and so writes, stays; once it is let go it is a leftover.
static void export_held(const char* run) {
    char held[600], manifest[700], out[512];
    snprintf(out, sizeof out, "%s", scratch("contested"));
    snprintf(held, sizeof held, "%s.tmp", out);
    snprintf(manifest, sizeof manifest, "%s/manifest.txt", held);
    int status = mkdir(held, 0777);
    FILE* f = fopen(manifest, "w");
    if (f) fprintf(f, "gpt2_sp export 1\n"), fclose(f);
    int fd = open(held, O_RDONLY | O_DIRECTORY);
    status |= flock(fd, LOCK_EX) | command("export --from %s --out %s", run, out);
    int stays = access(manifest, F_OK) == 0;
    close(fd);
    status |= command("export --from %s --out %s", run, out);
    int gone = access(held, F_OK) != 0;
    check(status == 0 && stays && gone, "export: a folder that another process writes stays, a leftover goes",
        "held: %s, let go: %s", stays ? "stays" : "gone", gone ? "gone" : "stays");
}

// What stands in an export's config.json.
static void export_config(const char* run) {
    static const char *const types[] = {"fp32", "bf16", "fp16"},
                             *const torch[] = {"float32", "bfloat16", "float16"};
    char path[700];
    int right = 0;
    const char* folder = scratch("configured");
    for (int type = 0; type < 3; type++) {
        char word[32] = "";
        uint64_t eos = 0, pad = 0;
        size_t size = 0, other_size = 0;
        int status = command("export --from %s --out %s --dtype %s", run, folder, types[type]);
        snprintf(path, sizeof path, "%s/config.json", folder);
        char* text = export_bytes(path, &size);
        snprintf(path, sizeof path, "%s/generation_config.json", folder);
        char* other = export_bytes(path, &other_size);
        right += status == 0 && text && other &&
            json_get_string(text, size, "torch_dtype", word, sizeof word) == 1 &&
            strcmp(word, torch[type]) == 0 && json_get_u64(text, size, "eos_token_id", &eos) == 1 &&
            eos == 256 && json_get_u64(other, other_size, "pad_token_id", &pad) == 1 && pad == 256 &&
            json_whole(text) && json_whole(other) && strstr(text, "auto_map") == NULL;
        free(text);
        free(other);
    }
    check(right == 3, "export: config.json names the type and the end token", "%d of 3 types", right);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    file_flip(path, file_length(path) - 3, 1);
    int status = command("sample --from %s --length 1", folder);
    check(status == -1 && command_said("model.safetensors: CRC"), "export: a damaged export is refused",
        "%.200s", command_out);
}

// Numbers at and beyond the largest of fp16; and none at all.
static void export_set(gpt2_sp* g, double value) { weight(&g->ranks[0], 2, P_fcw)[5] = (real)value; }
static void export_set_largest(gpt2_sp* g) { export_set(g, -65504); }
static void export_set_beyond(gpt2_sp* g) { export_set(g, -65505); }
static void export_set_nan(gpt2_sp* g) { export_set(g, NAN); }
static void export_overflow(void) {
    static const struct {
        void (*change)(gpt2_sp*);
        const char *dtype, *word;   // NULL: it is taken
    } cases[] = {{export_set_largest, "fp16", NULL},
        {export_set_beyond, "fp16", "-65505: the largest number of fp16 is 65504"},
        {export_set_beyond, "bf16", NULL}, {export_set_nan, "fp32", "nan: the largest number of fp32"},
        {export_set_nan, "bf16", "nan"}};
    int right = 0;
    char said[GPT2_SP_TEXT] = "";
    for (int i = 0; i < 5; i++) {
        gpt2_sp_options o;
        gpt2_sp_destroy(export_run(&o, "overflow", "", cases[i].change));
        const char* out = scratch("overflown");
        remove_tree(out);
        int status = command("export --from %s --out %s --dtype %s", o.out, out, cases[i].dtype);
        int named = command_said("tensor `transformer.h.1.mlp.c_fc.weight` holds") != 0;
        char left[600];
        snprintf(left, sizeof left, "%s.tmp", out);
        int none = access(out, F_OK) != 0 && access(left, F_OK) != 0;
        int good = cases[i].word ? status == -1 && named && command_said(cases[i].word) && none : status == 0;
        if (i == 1) snprintf(said, sizeof said, "%.300s", command_out);
        if (!good) printf("     case %d: %s\n", i, command_out);
        right += good;
    }
    check(right == 5, "export: a number that the type cannot hold is refused, with its tensor", "%d of 5; %s",
        right, said);
}

// Heads of llm.c's file that tell what cannot be, and lengths that are not the head's.
static void export_llmc_damaged(const char* run) {
    static const struct {
        int at, value;
        const char* word;
    } heads[] = {{0, 20240327, "no model file of llm.c"}, {1, 1, "version 1"}, {1, 4, "version 4"},
        {1, 5, "by its head"}, {2, 0, "seq-len 0"}, {2, 17, "by its head"}, {3, 0, "vocab 0"},
        {3, 385, "vocabulary of 385 in 384 rows"}, {4, -1, "layers -1"}, {4, 100000, "layers 100000"},
        {5, 0, "heads 0"}, {5, 3, "not divisible"}, {6, 1 << 20, "channels"}, {7, 256, "257 in 256 rows"},
        {7, 512, "by its head"}};
    const char *path = scratch("whole.bin"), *bad = scratch("bad.bin");
    int status = command("export --from %s --out %s --format llmc", run, path), right = 0;
    size_t size;
    char* file = export_bytes(path, &size);
    int count = (int)(sizeof heads / sizeof heads[0]);
    for (int i = -2; file && i < count; i++) {
        char error[GPT2_SP_TEXT] = "";
        FILE* f = fopen(bad, "w");
        int32_t was, now = i < 0 ? 0 : heads[i].value;
        memcpy(&was, file + 4 * (i < 0 ? 0 : heads[i].at), 4);
        if (i >= 0) memcpy(file + 4 * heads[i].at, &now, 4);
        if (f) fwrite(file, 1, i == -2 ? 1000 : i == -1 ? size - 1 : size, f), fclose(f);
        memcpy(file + 4 * (i < 0 ? 0 : heads[i].at), &was, 4);
        gpt2_sp* g = export_back(bad, "", error);
        const char* word = i == -2 ? "no model file" : i == -1 ? "by its head" : heads[i].word;
        int good = !g && strstr(error, word) != NULL;
        if (!good) printf("     %d: %s\n", i, g ? "accepted" : error);
        right += good;
        gpt2_sp_destroy(g);
    }
    check(status == 0 && right == count + 2,
        "export: a file that is not one of llm.c's, or not whole, is refused", "%d of %d", right, count + 2);
    free(file);
}

// A model of --center 0: for Transformers with its program, not for llm.c; it comes back as what it is.
static void export_uncentred(void) {
    gpt2_sp_options o;
    char path[700], error[GPT2_SP_TEXT] = "";
    gpt2_sp* g = export_run(&o, "uncentred", "center=0", NULL);
    const char* folder = scratch("uncentred_out");
    size_t size = 0, program_size = 0;
    int status = command("export --from %s --out %s", o.out, folder);
    snprintf(path, sizeof path, "%s/config.json", folder);
    char* text = export_bytes(path, &size);
    snprintf(path, sizeof path, "%s/modeling_gpt2_sp.py", folder);
    char* program = export_bytes(path, &program_size);
    json_span map;
    char name[64] = "";
    int right = status == 0 && text && program && strcmp(program, MODELING_PY) == 0 && json_whole(text) &&
        json_get(text, size, "auto_map", &map) == 1 &&
        json_get_string(map.s, map.n, "AutoModelForCausalLM", name, sizeof name) == 1 &&
        strncmp(name, "modeling_gpt2_sp.", 17) == 0 && strstr(program, name + 17) != NULL;
    check(right, "export: a model with RMSNorm brings the program that Transformers runs", "%s", name);
    gpt2_sp* b = export_back(folder, "center=0", error);
    check(g && b && export_differing(g, b, GPT2_SP_FP32) == 0, "export: a model with RMSNorm comes back",
        "%s", b ? "" : error);
    status = command("export --from %s --out %s --format llmc", o.out, scratch("uncentred.bin"));
    check(status == -1 && command_said("LayerNorm"), "export: a model with RMSNorm is refused for llm.c",
        "%.200s", command_out);
    free(text);
    free(program);
    gpt2_sp_destroy(g);
    gpt2_sp_destroy(b);
}

// --- positions that grow ---

// The largest distance of a grown table's rows from where they should be, as a share of what rounding allows:
// the part of the way, the distance between the rows and their product are each rounded by half a spacing,
// and so is the sum. `tile` and the table's own rows must be the same bits.
static double grow_error(const gpt2_sp* g, const gpt2_sp* old, int interp) {
    const int64_t T = g->mesh.shape.T, C = EXPORT_C, n = EXPORT_T, own = T / g->mesh.sp;
    const real* from = weight(&old->ranks[0], positions_unit(&old->layout), P_wpe);
    double worst = 0;
    for (int64_t t = 0; t < T; t++) {
        const real* to = weight(&g->ranks[t / own], positions_unit(&g->layout), P_wpe) + t % own * C;
        long double at = (long double)t * (n - 1) / (T - 1);   // of the old table
        int64_t low = (int64_t)floorl(at), high = low + 1 < n ? low + 1 : n - 1;
        for (int64_t c = 0; c < C; c++) {
            int exact = !interp || t < n || t == T - 1;
            int64_t row = t < n ? t : interp ? n - 1 : t % n;
            long double a = from[low * C + c], way = (at - low) * (from[high * C + c] - a), value = a + way;
            double error = exact
                ? (to[c] == from[row * C + c] ? 0 : HUGE_VAL)
                : (double)(fabsl(to[c] - value) / (EPS / 2 * (fabsl(value) + 3 * fabsl(way))));
            if (!(error <= worst)) worst = error;
        }
    }
    return worst;
}

static void grow_tables(const gpt2_sp* g, const char* run) {
    static const struct {
        const char* more;
        int interp;
    } cases[] = {{"seq-len=40", 0}, {"seq-len=40 grow=interp", 1}, {"seq-len=40 grow=interp sp=2", 1},
        {"seq-len=17 grow=interp", 1}, {"seq-len=33 grow=interp", 1}, {"seq-len=320 grow=interp", 1},
        {"seq-len=320 grow=tile sp=2", 0}};
    for (int i = 0; i < 7; i++) {
        char error[GPT2_SP_TEXT] = "";
        gpt2_sp* b = export_back(run, cases[i].more, error);
        double worst = b ? grow_error(b, g, cases[i].interp) : NAN;
        check(worst <= 1,
            "grow: positions are repeated, or lie on the line between two, those of old unchanged",
            "%s: %.2f of what rounding allows %s", cases[i].more, worst, error);
        gpt2_sp_destroy(b);
    }
    char error[GPT2_SP_TEXT] = "";
    gpt2_sp_options o = run_options("grow=interp");
    gpt2_sp* b = trainer_of(&o, error, sizeof error);
    check(!b && strstr(error, "--grow needs --init-from"), "grow: without a model to grow it is refused",
        "%s", b ? "accepted" : error);
    gpt2_sp_destroy(b);
}

// The logits after each of the first n tokens of a text, as the decoder gives them, (n, V).
static real* grow_logits(gpt2_sp* g, int64_t n) {
    const int64_t V = g->mesh.shape.V;
    real *all = reals(n * V), *row = reals(g->mesh.shape.Vp);
    Host host = host_enter();
#ifdef _OPENMP
    omp_set_num_threads(g->mesh.threads);
#endif
    void* decoder = g->device->decoder_open(g, n);
    for (int64_t t = 0; t < n; t++) {
        int32_t token = (int32_t)dice(7, (uint64_t)t, 257);
        if (!decoder || g->device->decoder_read(decoder, &token, 1, t, 1, row) != 0) row[0] = NAN;
        memcpy(all + t * V, row, (size_t)V * sizeof(real));
    }
    if (decoder) g->device->decoder_close(decoder);
    host_leave(&host);
    free(row);
    return all;
}

// Loss of a saved model on windows of a length.
static double grow_loss(const char* run, int64_t length) {
    int status = command("eval --from %s --data %s --seq-len %d --val-sequences 20 --json --threads 1", run,
        run_data(), (int)length);
    double loss = NAN;
    return status == 0 && json_get_double(command_out, strlen(command_out), "loss", &loss) == 1 ? loss : NAN;
}

// A model that grew, saved before its first step: on its old length the same logits and loss to the last bit.
static void grow_same_model(gpt2_sp* g, const char* run) {
    static const char* const ways[] = {"tile", "interp"};
    real* before = grow_logits(g, EXPORT_T);
    double loss = grow_loss(run, EXPORT_T);
    for (int i = 0; i < 2; i++) {
        char more[600], error[GPT2_SP_TEXT] = "", grown[512];
        snprintf(grown, sizeof grown, "%s", scratch("grown"));
        remove_tree(grown);
        snprintf(more, sizeof more, "seq-len=64 grow=%s", ways[i]);
        gpt2_sp_options o = run_options("batch-size=2 threads=1 steps=2");
        o.layers = o.heads = o.channels = o.seq_len = 0;
        snprintf(o.init_from, sizeof o.init_from, "%s", run);
        snprintf(o.out, sizeof o.out, "%s", grown);
        options_apply(&o, more);
        gpt2_sp* b = trainer_of(&o, error, sizeof error);
        real* after = b ? grow_logits(b, EXPORT_T) : NULL;
        int64_t count = EXPORT_T * g->mesh.shape.V, same = 0;
        for (int64_t k = 0; after && k < count; k++) same += before[k] == after[k];
        check(same == count && b->mesh.shape.T == 64,
            "grow: the logits up to the old length are the same bits", "%s, 16 -> 64: %lld of %lld %s",
            ways[i], (long long)same, (long long)count, error);
        int saved = b ? gpt2_sp_save(b) : -1;
        double now = saved == 0 ? grow_loss(grown, EXPORT_T) : NAN;
        check(now == loss && isfinite(loss), "grow: the loss on windows of the old length is the same bits",
            "%s: %.17g, %.17g before", ways[i], now, loss);
        free(after);
        gpt2_sp_destroy(b);
    }
    free(before);
}

static void test_export(void) {
    gpt2_sp_options o;
    char run[600];
    gpt2_sp* g = export_run(&o, "exported", "", NULL);
    if (!g) return;
    snprintf(run, sizeof run, "%.590s", o.out);
    export_llmc_file(g, run);
    export_shorter(g, run);
    export_round_trips(g, run);
    export_pieces();
    export_held(run);
    export_strangers(run);
    export_config(run);
    export_overflow();
    export_llmc_damaged(run);
    export_uncentred();
    grow_tables(g, run);
    grow_same_model(g, run);
    gpt2_sp_destroy(g);
}
