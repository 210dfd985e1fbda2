// test_tokenized.h: tests of tokenizers and loss masks inside the program, as one function test_tokenized(),
// the group `tokenized`. To be included once, behind test_bpe.h and the tests of the commands.
//
// What is held: a masked token is never a label, whoever holds it and whatever documents do, and the labels
// are as many as the indexes alone tell; a tokenizer goes with the text from the shard into every checkpoint
// and on to samples and evaluations; a model and data of two tokenizers do not meet.
#ifndef GPT2_SP_TEST_TOKENIZED_H
#define GPT2_SP_TEST_TOKENIZED_H

// A stream in three shards, with masks that begin and end at their borders and elsewhere, drawn.
enum { MASK_STREAM = 700, MASK_T = 37 };
typedef struct {
    int32_t tokens[MASK_STREAM];
    char masked[MASK_STREAM];
    char list[1700];   // of the shards
} MaskStream;

static int mask_stream_write(MaskStream* m) {
    static const int ends[3] = {200, 237, MASK_STREAM};
    char error[256] = "", name[32];
    int status = 0;
    m->list[0] = 0;
    for (int i = 0; i < MASK_STREAM; i++) {
        m->tokens[i] = (int32_t)dice(91, (uint64_t)i, 40);
        if (dice(92, (uint64_t)i, 9) == 0 || i == 199 || i == 236 || i == MASK_STREAM - 1) m->tokens[i] = 256;
        m->masked[i] = (char)(dice(93, (uint64_t)i / 6, 3) == 0 || (i > 190 && i < 205) || i == 237);
    }
    for (int s = 0, i = 0; s < 3 && status == 0; s++) {
        tok_writer w;
        snprintf(name, sizeof name, "masked%d.tok", s);
        const char* path = scratch(name);
        size_t used = strlen(m->list);
        snprintf(m->list + used, sizeof m->list - used, "%s%.500s", s ? "," : "", path);
        status = tok_writer_open(&w, path, TOK_BYTE, 257, 256, 16, error, sizeof error);
        for (; i < ends[s] && status == 0; i++) {
            w.masked = m->masked[i];
            status = m->tokens[i] == 256 ? tok_writer_end_document(&w, 0, error, sizeof error)
                                         : tok_writer_add(&w, &m->tokens[i], 1, error, sizeof error);
        }
        if (status == 0) status = tok_writer_finish(&w, error, sizeof error);
    }
    if (status != 0) printf("  %s\n", error);
    return status;
}

// The labels of every window, for a rank that holds two pieces of it, against the stream's own.
static void tokenized_labels(void) {
    static MaskStream m;
    static const Segments pieces = {2, {3, 20}, {9, 17}, 26};
    const Segments whole = {1, {0, 0}, {MASK_T, 0}, MASK_T};
    int wrong = 0, counted = 0, seen = 0, spans = 0;
    Dataset d;
    Error e = {0, {0}};
    int open = mask_stream_write(&m) == 0 && dataset_open(&d, m.list, &DATA_DOCUMENTS, &e) == 0;
    for (int i = 0; open && i < d.count; i++) spans += (int)d.shards[i].spans;
    for (int doc_mask = 0; open && doc_mask < 2; doc_mask++)
        for (uint64_t at = 0; at + MASK_T < MASK_STREAM; at++) {
            int32_t tokens[MASK_T], labels[MASK_T], part[MASK_T], starts[MASK_T];
            int64_t valid = 0;
            wrong +=
                sample_fill(&d, d.cursors, at, MASK_T, doc_mask, &whole, tokens, labels, starts, &e) != 0 ||
                sample_fill(&d, d.cursors, at, MASK_T, doc_mask, &pieces, tokens, part, starts, &e) != 0;
            for (int t = 0; t < MASK_T; t++) {
                int none = m.masked[at + (uint64_t)t + 1] || (doc_mask && m.tokens[at + (uint64_t)t] == 256);
                wrong += labels[t] != (none ? -1 : m.tokens[at + (uint64_t)t + 1]);
                valid += !none, seen++;
            }
            for (int t = 0; t < 26; t++) wrong += part[t] != labels[t < 9 ? 3 + t : 11 + t];
            wrong += window_valid(&d, at, MASK_T, doc_mask) != valid;
            counted += (int)valid;
        }
    check(open && wrong == 0 && counted > 1000 && counted < seen,
        "tokenized: a masked token is no label, on whatever rank, and is not counted",
        "%d of %d labels counted, %d spans, %d wrong %s", counted, seen, spans, wrong, e.text);
    if (open) dataset_close(&d);
}

// A run on masked data: what it evaluates are the labels that are left, the same for any split.
static void tokenized_loss(void) {
    static MaskStream m;
    gpt2_sp_options o = options_of("layers=1 heads=2 channels=16 seq-len=36 threads=1 steps=2");
    double loss[3] = {0};
    int64_t tokens[3] = {0};
    char error[GPT2_SP_TEXT] = "";
    int made = mask_stream_write(&m) == 0;
    snprintf(o.data, sizeof o.data, "%.1000s", m.list);
    for (int i = 0; made && i < 3; i++) {
        gpt2_sp_stats stats;
        memset(&stats, 0, sizeof stats);
        o.sp = i == 1 ? 3 : 1, o.dp = i == 2 ? 2 : 1, o.batch_size = i == 2 ? 1 : 2;
        gpt2_sp* g = trainer_of(&o, error, sizeof error);
        for (int step = 0; g && step < 2; step++)
            if (step_of(g, &stats) != 0) snprintf(error, sizeof error, "%s", gpt2_sp_error(g));
        loss[i] = stats.loss, tokens[i] = stats.tokens;
        gpt2_sp_destroy(g);
    }
    double spread = fmax(fabs(loss[1] / loss[0] - 1), fabs(loss[2] / loss[0] - 1));
    check(spread < 1e-5 && tokens[0] == tokens[1] && tokens[0] == tokens[2] && tokens[0] < 144,
        "tokenized: the loss of masked data is the same for every split", "%.7f, %.1e apart, %d tokens %s",
        loss[0], spread, (int)tokens[0], error);
}

// Data all of which is masked has nothing to learn.
static void tokenized_nothing(void) {
    tok_writer w;
    char error[256] = "", path[512];
    int32_t tokens[64] = {0};
    snprintf(path, sizeof path, "%s", scratch("all_masked.tok"));
    int status = tok_writer_open(&w, path, TOK_BYTE, 257, 256, 16, error, sizeof error);
    w.masked = 1;
    if (status == 0) status = tok_writer_add(&w, tokens, 64, error, sizeof error);
    if (status == 0) status = tok_writer_end_document(&w, 64, error, sizeof error);
    if (status == 0) status = tok_writer_finish(&w, error, sizeof error);
    int ran = command("train --data %s --layers 1 --heads 1 --channels 8 --seq-len 16 --threads 1", path);
    check(status == 0 && ran == -1 && command_said("nothing to learn"),
        "tokenized: data that is masked altogether is refused", "%.100s", command_out);
}

// Numbers of tokenizers: bytes and GPT-2 have theirs, others their fingerprint's, and who numbers in another
// way is not known to differ.
static void tokenized_numbers(void) {
    static const struct {
        uint32_t a, b;
        int differ;
    } pairs[] = {{TOK_BYTE, TOK_GPT2, 1}, {TOK_BYTE, TOK_BYTE, 0}, {TOK_GPT2, 0x80000001u, 1},
        {0x80000001u, 0x80000002u, 1}, {0x80000001u, 0x80000001u, 0}, {7, TOK_GPT2, 0}, {0, TOK_BYTE, 0},
        {TOK_BYTE, 0, 0}, {7, 8, 0}};
    int ok = 0, count = (int)(sizeof pairs / sizeof pairs[0]);
    char error[256];
    bpe b;
    for (int i = 0; i < count; i++) ok += tokenizers_differ(pairs[i].a, pairs[i].b) == pairs[i].differ;
    int bytes = bpe_load_bytes(&b, error, sizeof error) == 0 && tokenizer_number(&b) == TOK_BYTE;
    if (bytes) bpe_free(&b);
    int other = bpe_load(&b, test_bpe_path("vocab"), NULL, error, sizeof error) == 0 &&
        tokenizer_number(&b) >> 31 == 1;
    if (other) bpe_free(&b);
    check(ok == count && bytes && other, "tokenized: tokenizers have numbers by their fingerprints",
        "%d of %d pairs, bytes %d, another %d", ok, count, bytes, other);
}

// The bytes that a file of a checkpoint and one that the tokenizer's own writer makes have alike.
static int tokenized_file_same(const char* step, const char* name) {
    char path[700], kept[64];
    size_t n[2] = {0, 0};
    snprintf(path, sizeof path, "%s/%s", step, name);
    unsigned char* a = test_data_slurp(path, &n[0]);
    snprintf(kept, sizeof kept, "kept/%s", name);
    unsigned char* b = test_data_slurp(test_bpe_path(kept), &n[1]);
    int same = a && b && n[0] == n[1] && memcmp(a, b, n[0]) == 0;
    free(a);
    free(b);
    return same;
}

// A text of the test's own tokenizer through all commands.
typedef struct {
    char text[512], shard[512], run[512], step[600];
} TokenizedRun;
static int tokenized_prepare(TokenizedRun* r) {
    snprintf(r->text, sizeof r->text, "%s", scratch("tokenized.txt"));
    snprintf(r->shard, sizeof r->shard, "%s", scratch("tokenized.tok"));
    snprintf(r->run, sizeof r->run, "%s", scratch("tokenized"));
    snprintf(r->step, sizeof r->step, "%s/step_00000003", r->run);
    FILE* f = fopen(r->text, "wb");
    for (int i = 0; f && i < 400; i++) fprintf(f, "a letter ses later, %d s's tale \303\251t\303\251\n", i);
    if (f) fclose(f);
    return command("prepare --tokenizer %s --out %s %s", test_bpe_path("vocab"), r->shard, r->text) == 0 &&
        command("train --data %s --layers 1 --heads 2 --channels 16 --seq-len 24 --steps 3 --save-every 1 "
                "--threads 1 --out %s",
            r->shard, r->run) == 0;
}

static void tokenized_checkpoint(const TokenizedRun* r) {
    char error[256] = "", path[700];
    bpe b, own;
    memset(&b, 0, sizeof b), memset(&own, 0, sizeof own);
    int read = bpe_load(&b, r->step, NULL, error, sizeof error) == 0 &&
        bpe_load(&own, test_bpe_path("vocab"), NULL, error, sizeof error) == 0;
    mkdir(test_bpe_path("kept"), 0777);
    int same = read && bpe_save(&own, test_bpe_path("kept"), 24, error, sizeof error) == 0;
    for (int i = 0; i < BPE_FILE_COUNT; i++) same += same && tokenized_file_same(r->step, BPE_FILES[i]);
    check(read && b.fingerprint == own.fingerprint && same == 5,
        "tokenized: a checkpoint has its tokenizer's files, as from the shard", "%d of 4 files alike %s",
        same - 1, error);
    bpe_free(&b), bpe_free(&own);
    snprintf(path, sizeof path, "%s/step_00000001", r->run);   // --keep 2
    check(access(path, F_OK) != 0, "tokenized: a checkpoint is removed with its tokenizer's files", "%s",
        strrchr(path, '/'));
    // a manifest that says too much or too little
    static const char* const lines[] = {"merges.txt 1 00000000", "notes.txt 1 00000000", NULL};
    static const char* const told[] = {"and twice", "no file of a checkpoint", "does not name state.json"};
    int ok = 0;
    char manifest[700], changed[4096];
    Error e;
    size_t n;
    snprintf(manifest, sizeof manifest, "%s/manifest.txt", r->step);
    char* text = (char*)test_data_slurp(manifest, &n);
    for (int i = 0; text && i < 3; i++) {
        char* seal = strstr(text, "\ncrc ") + 1;
        snprintf(changed, sizeof changed, "%.*s%s%s", (int)(seal - text), text, lines[i] ? lines[i] : "",
            lines[i] ? "\n" : "");
        char* state = strstr(changed, "state.json");
        if (!lines[i]) memmove(state, strchr(state, '\n') + 1, strlen(strchr(state, '\n') + 1) + 1);
        snprintf(changed + strlen(changed), 32, "crc %08x\n",
            (unsigned)crc32(0, (unsigned char*)changed, (unsigned)strlen(changed)));
        test_data_write(manifest, changed, strlen(changed));
        ok += checkpoint_verify(r->step, &e) == -1 && strstr(e.text, told[i]) != NULL;
    }
    if (text) test_data_write(manifest, text, n);
    check(ok == 3 && checkpoint_verify(r->step, &e) == 0,
        "tokenized: a manifest names the files of a checkpoint, each once", "%d of 3 refused", ok);
    free(text);
}

// Text goes in and comes out, as the token numbers that it stands for do.
static void tokenized_text(const TokenizedRun* r) {
    char numbers[2048] = "", out[COMMAND_OUT], error[256] = "", prompt[512];
    const char* const text = "a letter \303\251t";
    bpe b;
    bpe_encoder e;
    int open = bpe_load(&b, r->step, NULL, error, sizeof error) == 0 &&
        bpe_encoder_open(&e, &b, 0, error, sizeof error) == 0;
    if (!open || bpe_encode(&e, text, strlen(text), 1, error, sizeof error) != 0) {
        check(0, "tokenized: a text and its tokens are continued alike", "%s", error);
        return;
    }
    for (size_t i = 0; i < e.tokens; i++)
        snprintf(numbers + strlen(numbers), 16, i ? ",%u" : "%u", e.token[i]);
    size_t tokens = e.tokens;
    int ran = command(
        "sample --from %s --prompt-tokens %s --length 9 --temperature 0 --threads 1", r->run, numbers);
    unsigned char whole[4096];
    size_t n = strlen(text);
    memcpy(whole, text, n);
    for (char* p = command_out; ran == 0 && *p && *p != '\n'; p += strcspn(p, ",\n") + (*p == ',')) {
        size_t length;
        if (*p == ',') p++;
        const unsigned char* bytes = bpe_bytes(&b, (uint32_t)strtoul(p, &p, 10), &length);
        if (bytes) memcpy(whole + n, bytes, length), n += length;
        if (*p != ',') break;
    }
    whole[n] = 0;
    snprintf(prompt, sizeof prompt, "%s", scratch("prompt.txt"));
    test_data_write(prompt, text, strlen(text));
    ran |=
        command("sample --from %s --prompt-file %s --length 9 --temperature 0 --threads 1", r->run, prompt);
    snprintf(out, sizeof out, "%s", command_out);
    check(ran == 0 && tokens < strlen(text) && n > strlen(text) && strncmp(out, (char*)whole, n) == 0 &&
            out[n] == '\n',
        "tokenized: a text and its tokens are continued alike", "%d tokens of %d bytes, %d bytes come out",
        (int)tokens, (int)strlen(text), (int)n);
    bpe_encoder_close(&e), bpe_free(&b);
    ran = command("sample --from %s --prompt-file %s --specials 1 --length 1 --threads 1", r->run, prompt);
    test_data_write(prompt, "a<|endoftext|>", 14);
    int asked =
        command("sample --from %s --prompt-file %s --specials 1 --length 22 --threads 1", r->run, prompt);
    check(ran == 0 && asked == 0, "tokenized: special tokens in a prompt are taken as such where asked",
        "2 tokens and 22 more in a context of 24");
}

// A continuation ends where --stop first stands in it, wherever tokens end, and whatever of it came before; the
// prompt may have it.
static void tokenized_stop(const TokenizedRun* r) {
    static const char* const repeated[] = {"aab", "aa", "abab", "a"};
    char whole[COMMAND_OUT], stop[16];
    const size_t prompt = strlen("aletter");
    int ok = 0, tried = 0;
    for (uint64_t seed = 1; seed < 4; seed++) {
        static const char line[] =
            "sample --from %s --prompt aletter --length 12 --seed %d --temperature 3 --threads 1 %s%s%s";
        if (command(line, r->run, (int)seed, "", "", "") != 0) break;
        snprintf(whole, sizeof whole, "%s", command_out);
        size_t n = strcspn(whole, "\n");
        for (size_t at = 0; at < 16; at++, tried++) {
            size_t length = 1 + at % 4, begin = prompt + at * (n - prompt) / 16;
            snprintf(stop, sizeof stop, "%.*s", (int)length, whole + begin);
            if (at % 5 == 4) snprintf(stop, sizeof stop, "%s", repeated[at / 5]);
            if (strpbrk(stop, "'\n\"\\ ") || strlen(stop) < 1) {
                ok++;
                continue;
            }
            const char* found = strstr(whole + prompt, stop);
            size_t kept = found && found < whole + n ? (size_t)(found - whole) : n;
            int ran = command(line, r->run, (int)seed, "--stop ", stop, "");
            int same = ran == 0 && strncmp(command_out, whole, kept) == 0 && command_out[kept] == '\n';
            if (!same) printf("     --stop %s: %s\n", stop, command_out);
            ok += same;
        }
    }
    check(tried == 48 && ok == tried, "tokenized: a continuation ends before --stop", "%d of %d", ok, tried);
    int numbers = command("sample --from %s --prompt-tokens 1,2 --stop x --threads 1", r->run);
    check(numbers == -1 && command_said("--stop is text"), "tokenized: --stop among token numbers is refused",
        "%.80s", command_out);
}

// Two tokenizers do not meet: in training, resuming, starting from a model, evaluating.
static void tokenized_mismatch(const TokenizedRun* r) {
    const char* const bytes = run_data();
    char other[512];
    snprintf(other, sizeof other, "%s", scratch("other_tokenizer"));
    static const char* const sizes = "--layers 1 --heads 2 --channels 16 --seq-len 24 --threads 1";
    int told = 0;
    told += command("eval --from %s --data %s --threads 1", r->run, bytes) == -1 &&
        command_said("data has the byte");
    told += command("train --data %s %s --steps 4 --out %s", bytes, sizes, r->run) == -1 &&
        command_said("data has the byte");
    told += command("train --data %s --init-from %s --steps 4 --out %s", bytes, r->run, other) == -1 &&
        command_said("data has the byte");
    told += command("train --data %s --val-data %s %s", r->shard, bytes, sizes) == -1 &&
        command_said("val-data has the byte");
    told += command("train --data %s,%s %s", r->shard, bytes, sizes) == -1 &&
        command_said("the shards before it have tokenizer");
    int trained = command("train --data %s --init-from %s --steps 1 --out %s", r->shard, r->run, other) == 0;
    check(told == 5 && trained, "tokenized: a model and data of two tokenizers do not meet", "%d of 5 told",
        told);
    int evaluated = command("eval --from %s --data %s --threads 1 --json", other, r->shard) == 0;
    check(evaluated && command_said("bits_per_byte"), "tokenized: bits per byte are known for any tokenizer",
        "%.60s", command_out);
}

// --specials 1: a text that spells out the end token ends its document there; else it is letters.
static void tokenized_specials(const TokenizedRun* r) {
    char text[512], out[512];
    uint64_t documents[2] = {0, 0}, bytes[2] = {0, 0};
    snprintf(text, sizeof text, "%s", scratch("specials.txt"));
    snprintf(out, sizeof out, "%s", scratch("specials.tok"));
    test_data_write(text, "one<|endoftext|><|endoftext|>two<|endoftext|>", 45);
    for (int i = 0; i < 2; i++) {
        tok_shard s;
        char error[256];
        if (command("prepare --tokenizer %s --specials %d --out %s %s", r->step, i, out, text) != 0) break;
        if (tok_open(&s, out, TOK_FORMAT_AUTO, error, sizeof error) != 0) break;
        documents[i] = s.documents, bytes[i] = s.text_bytes;
        tok_close(&s);
    }
    check(documents[0] == 1 && documents[1] == 2 && bytes[0] == 45 && bytes[1] == 45,
        "tokenized: special tokens in a text are text, unless asked for", "%d documents, and %d",
        (int)documents[0], (int)documents[1]);
}

// A shard that carries another tokenizer than it names is refused.
static void tokenized_carried(const TokenizedRun* r) {
    char path[512], error[256] = "", *file = NULL;
    size_t size = 0;
    tok_writer w;
    bpe b;
    int32_t tokens[64] = {0};
    snprintf(path, sizeof path, "%s", scratch("carries.tok"));
    int status = bpe_load(&b, r->step, NULL, error, sizeof error);
    FILE* f = status == 0 ? open_memstream(&file, &size) : NULL;
    if (f) bpe_write(&b, 0, 0, f), fclose(f);
    if (status == 0)
        status = tok_writer_open(&w, path, 0x80000001u, b.vocab_size, b.eot, 64, error, sizeof error) ||
            tok_writer_tokenizer(&w, file, size, error, sizeof error) ||
            tok_writer_add(&w, tokens, 64, error, sizeof error) ||
            tok_writer_end_document(&w, 64, error, sizeof error) ||
            tok_writer_finish(&w, error, sizeof error);
    int ran = command("train --data %s --layers 1 --heads 1 --channels 8 --seq-len 16 --threads 1", path);
    check(status == 0 && ran == -1 && command_said("says that it has tokenizer 80000001, and carries"),
        "tokenized: a shard that carries another tokenizer than it names is refused", "%.120s %s",
        command_out, error);
    free(file);
    if (b.token) bpe_free(&b);
}

// A shard of synth in which only the answers are labels: its tokens are those of the shard without, and the
// tokens that are labels are the answers', in their order.
static void tokenized_answers(void) {
    enum { DOCS = 5, BYTES = 900, FACTS = 3 };
    char all[600], answers[600];
    Dataset whole, asked;
    Error e = {0, {0}};
    int wrong = 0, labels = 0, expected = 0;
    snprintf(all, sizeof all, "%s", scratch("synth-all.tok"));
    snprintf(answers, sizeof answers, "%s", scratch("synth-answers.tok"));
    int status = command("synth --out %s --docs 5 --doc-bytes 900 --facts 3 --seed 4", all) |
        command("synth --out %s --docs 5 --doc-bytes 900 --facts 3 --seed 4 --answers-only 1", answers);
    if (status == 0) status = dataset_open(&whole, all, &DATA_DOCUMENTS, &e);
    if (status == 0 && (status = dataset_open(&asked, answers, &DATA_DOCUMENTS, &e)) != 0)
        dataset_close(&whole);
    for (uint64_t d = 0; status == 0 && d < DOCS; d++) {
        synth_doc doc;
        int32_t tokens[2][BYTES + 1];
        int label[BYTES + 1];
        uint64_t at = d * (BYTES + 1), first, last;
        for (int i = 0; i < 2; i++)
            wrong += dataset_read(i ? &asked : &whole, i ? asked.cursors : whole.cursors, at, BYTES + 1,
                         tokens[i], &e) != 0;
        wrong += memcmp(tokens[0], tokens[1], sizeof tokens[0]) != 0;
        for (int t = 0; t <= BYTES; t++) label[t] = 1;
        for (uint64_t from = at; dataset_span(&asked, from, at + BYTES + 1, &first, &last); from = last)
            for (uint64_t t = first; t < last; t++) label[t - at] = 0;
        wrong += synth_document(4, d, BYTES, FACTS, 0, &doc, e.text, sizeof e.text) != 0;
        for (int t = 0; t <= BYTES; t++) {
            int answer = 0;
            for (int i = 0; i < doc.fact_count; i++)
                answer |= t >= (int)doc.facts[i].answer &&
                    t < (int)doc.facts[i].answer + doc.facts[i].answer_length;
            labels += label[t], expected += answer;
            wrong += label[t] != answer;
        }
        synth_free(&doc);
    }
    if (status == 0) dataset_close(&whole), dataset_close(&asked);
    check(status == 0 && wrong == 0 && labels == expected && labels > 4 * DOCS * FACTS - 1,
        "masks: --answers-only leaves a shard's answers alone as labels",
        "%d labels of %d bytes of answers, %d wrong %s", labels, expected, wrong, e.text);
}

static void test_tokenized(void) {
    tokenized_answers();
    TokenizedRun r;
    snprintf(test_bpe_folder, sizeof test_bpe_folder, "%s", scratch("tokenizers"));
    mkdir(test_bpe_folder, 0777);
    test_bpe_state = 1;
    test_bpe_train();
    test_bpe_write_files();
    tokenized_labels();
    tokenized_loss();
    tokenized_nothing();
    tokenized_numbers();
    if (!tokenized_prepare(&r)) {
        check(0, "tokenized: a text of another tokenizer is prepared and trained on", "%s", command_out);
        return;
    }
    tokenized_checkpoint(&r);
    tokenized_text(&r);
    tokenized_stop(&r);
    tokenized_mismatch(&r);
    tokenized_specials(&r);
    tokenized_carried(&r);
}

#endif
