// test_data.h: the tests of data/tok.h, data/text.h and data/synth.h, as one function test_data(), the group
// `data`. To be included once, behind those headers and behind
//     static void check(int ok, const char* name, const char* format, ...);
// which counts a result and prints the name with a figure. Files go to a folder of their own under $TMPDIR or
// /tmp, which is removed at the end.
//
// What is held: a shard gives back the tokens and documents that were written, and no damage to it, by
// accident or by intent, is read as something else; what is written replaces only what this program wrote;
// text comes from files and folders whole and in order, and what is left out is told; the synthetic
// documents state each fact where they say. A run reads its data for weeks and never looks at it: a block
// taken for another or a document begun elsewhere would not stop it, only teach it something else.
#ifndef GPT2_SP_TEST_DATA_H
#define GPT2_SP_TEST_DATA_H

#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

static char test_data_folder[512];
static char test_data_err[1024];

// The path of a file in the test's folder. The same name gives the same pointer, good until the end.
static const char* test_data_path(const char* name) {
    static char path[256][640];
    char wanted[640];
    int i = 0;
    snprintf(wanted, sizeof wanted, "%s/%s", test_data_folder, name);
    while (i < 255 && path[i][0] && strcmp(path[i], wanted) != 0) i++;
    memcpy(path[i], wanted, sizeof wanted);
    return path[i];
}

static int test_data_remove(const char* path, const struct stat* st, int type, struct FTW* walk) {
    (void)st, (void)type, (void)walk;
    return remove(path);
}

static void test_data_write(const char* path, const void* bytes, size_t length) {
    FILE* f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, length, f) != length || fclose(f)) {
        perror(path);
        exit(1);
    }
}

static unsigned char* test_data_slurp(const char* path, size_t* length) {
    FILE* f = fopen(path, "rb");
    unsigned char* bytes = (unsigned char*)malloc(1 << 20);
    if (!f || !bytes) {
        perror(path);
        exit(1);
    }
    *length = fread(bytes, 1, 1 << 20, f);
    fclose(f);
    return bytes;
}

static int test_data_exists(const char* path) {
    struct stat st;
    return lstat(path, &st) == 0;
}

// Did it fail, with a message that has `part` and the name of the file?
static int test_data_refused(int rc, const char* part, const char* name) {
    int ok = rc == -1 && strstr(test_data_err, part) && strstr(test_data_err, name) &&
        !strchr(test_data_err, '\n');
    if (!ok) printf("  returned %d, message: %s (expected: %s)\n", rc, test_data_err, part);
    return ok;
}

// Opens and reads all of a file: 0 or -1 like tok_read, 1 = other tokens than `want` (unless that is NULL).
static int test_data_read_all(const char* path, int format, const int32_t* want, uint64_t count) {
    tok_shard s;
    tok_cursor c;
    memset(&c, 0, sizeof c);
    if (tok_open(&s, path, format, test_data_err, sizeof test_data_err)) return -1;
    uint64_t n = s.tokens < (1 << 20) ? s.tokens : 1 << 20;
    int32_t* tokens = (int32_t*)malloc(n * sizeof *tokens);
    int rc = tok_read(&s, &c, 0, n, tokens, test_data_err, sizeof test_data_err);
    size_t length;
    char* tokenizer = rc == 0 ? tok_tokenizer(&s, &length, test_data_err, sizeof test_data_err) : NULL;
    if (rc == 0 && !tokenizer && test_data_err[0]) rc = -1;
    free(tokenizer);
    if (rc == 0 && want && (n != count || memcmp(tokens, want, n * sizeof *want) != 0)) rc = 1;
    free(tokens);
    tok_cursor_free(&c);
    tok_close(&s);
    return rc;
}

// ================================================================================
// building shards, also wrong ones

typedef struct {   // a .tok file in memory, with where its parts are
    unsigned char bytes[1 << 18];
    size_t length, block_index, document_index;
} test_data_file;

// Makes the header's CRC right again, of either version.
static void test_data_fix_header(test_data_file* f) {
    int end = tok_get_le(f->bytes + 8, 4) == 1 ? 92 : 116;
    tok_put_le(f->bytes + end, tok_crc(0, f->bytes, (uint64_t)end), 4);
}

// Makes all CRCs right again, blocks' included; the parts are where they were.
static void test_data_fix(test_data_file* f, int blocks, int documents) {
    for (int i = 0; i < blocks; i++) {
        unsigned char* e = f->bytes + f->block_index + 16 * (size_t)i;
        uint64_t at = tok_get_le(e, 8), bytes = tok_get_le(e + 8, 4);
        if (at <= f->length && bytes <= f->length - at)
            tok_put_le(e + 12, tok_crc(0, f->bytes + at, bytes), 4);
    }
    tok_put_le(f->bytes + 80, tok_crc(0, f->bytes + f->block_index, 16 * (size_t)blocks), 4);
    tok_put_le(f->bytes + 84, tok_crc(0, f->bytes + f->document_index, 8 * (size_t)documents), 4);
    if (tok_get_le(f->bytes + 8, 4) == 2) {
        size_t spans = f->document_index + 8 * (size_t)documents,
               bytes = 16 * (size_t)tok_get_le(f->bytes + 96, 8);
        tok_put_le(f->bytes + 92, tok_crc(0, f->bytes + spans, bytes), 4);
        tok_put_le(f->bytes + 112, tok_crc(0, f->bytes + spans + bytes, tok_get_le(f->bytes + 104, 4)), 4);
    }
    test_data_fix_header(f);
}

// A shard of one document and one block, whose payload is given as it is to be in the file.
static void test_data_build(test_data_file* f, int version, const unsigned char* payload, size_t bytes,
    uint32_t tokens, int width, uint32_t vocab_size) {
    size_t header = version == 1 ? TOK_HEADER_1 : TOK_HEADER;
    memset(f->bytes, 0, header);
    memcpy(f->bytes, TOK_MAGIC, 8);
    const uint32_t small[] = {
        (uint32_t)version, (uint32_t)width, vocab_size == 257 ? 1u : 7u, vocab_size, vocab_size - 1, tokens};
    const uint64_t large[] = {tokens, 1, 1, 5, header + bytes, header + bytes + 16};
    for (int i = 0; i < 6; i++) tok_put_le(f->bytes + 8 + 4 * i, small[i], 4);
    for (int i = 0; i < 6; i++) tok_put_le(f->bytes + 32 + 8 * i, large[i], 8);
    memcpy(f->bytes + header, payload, bytes);
    f->block_index = header + bytes;
    f->document_index = f->block_index + 16;
    f->length = f->document_index + 8;
    tok_put_le(f->bytes + f->block_index, header, 8);
    tok_put_le(f->bytes + f->block_index + 8, bytes, 4);
    tok_put_le(f->bytes + f->document_index, 0, 8);
    test_data_fix(f, 1, 1);
}

// Writes documents of the given lengths (without eot) of pseudo-random tokens; *tokens gets all of them, with
// the eots.
static int test_data_shard(const char* path, uint32_t tokenizer, uint32_t vocab_size, uint32_t block_tokens,
    const int* lengths, int documents, int32_t* tokens, uint64_t* count) {
    tok_writer w;
    uint64_t state = vocab_size + block_tokens;
    *count = 0;
    int rc = tok_writer_open(
        &w, path, tokenizer, vocab_size, vocab_size - 1, block_tokens, test_data_err, sizeof test_data_err);
    for (int d = 0; rc == 0 && d < documents; d++) {
        int32_t* first = tokens + *count;
        for (int i = 0; i < lengths[d]; i++)
            tokens[(*count)++] = (int32_t)synth_below(&state, vocab_size - 1);
        int half = lengths[d] / 2;   // in two calls
        rc = tok_writer_add(&w, first, (uint64_t)half, test_data_err, sizeof test_data_err);
        if (rc == 0)
            rc = tok_writer_add(
                &w, first + half, (uint64_t)(lengths[d] - half), test_data_err, sizeof test_data_err);
        if (rc == 0)
            rc = tok_writer_end_document(&w, 3 * (uint64_t)lengths[d], test_data_err, sizeof test_data_err);
        tokens[(*count)++] = (int32_t)vocab_size - 1;
    }
    return rc ? rc : tok_writer_finish(&w, test_data_err, sizeof test_data_err);
}

// ================================================================================
// .tok: reading what was written

typedef struct {
    const tok_shard* s;
    const int32_t* want;
    uint64_t seed;
    int reads, wrong;
} test_data_reader;

// Random ranges, many of them across blocks, with a cursor of its own.
static void* test_data_ranges(void* argument) {
    test_data_reader* r = (test_data_reader*)argument;
    tok_cursor c;
    char err[256];
    memset(&c, 0, sizeof c);
    int32_t* out = (int32_t*)malloc((r->s->tokens + 1) * sizeof *out);
    for (int i = 0; i < 300; i++) {
        uint64_t first = synth_below(&r->seed, r->s->tokens + 1),
                 count = synth_below(&r->seed, r->s->tokens - first + 1);
        if (i % 3) count %= 20;
        out[count] = -77;   // nothing behind the range may be touched
        r->reads++;
        r->wrong += tok_read(r->s, &c, first, count, out, err, sizeof err) != 0 ||
            memcmp(out, r->want + first, count * sizeof *out) != 0 || out[count] != -77;
    }
    free(out);
    tok_cursor_free(&c);
    return NULL;
}

typedef struct {
    int shards, wrong;   // what they say of themselves, and reads beyond their end
    int starts_wrong;    // of the documents
    int reads, reads_wrong;
} test_data_rounds;
static const int test_data_round_lengths[8] = {
    63, 0, 1, 511, 0, 200, 217, 0};   // 992 + 8 eots = 1000 tokens; empty documents too

// What an open shard of those documents says of itself.
static void test_data_round_facts(
    tok_shard* s, uint32_t tokenizer, uint32_t vocab_size, test_data_rounds* n) {
    uint64_t at = 0;
    n->wrong += s->tokens != 1000 || s->documents != 8 || s->text_bytes != 3 * 992 ||
        s->tokenizer != tokenizer || s->vocab_size != vocab_size || s->eot != vocab_size - 1 ||
        s->width != (vocab_size > 65536 ? 4u : 2u) ||
        tok_index_documents(s, test_data_err, sizeof test_data_err) != 0;
    for (int d = 0; d < 8; at += (uint64_t)test_data_round_lengths[d++] + 1)
        n->starts_wrong += s->document_start[d] != at;
    n->starts_wrong += s->document_start[8] != 1000;
}

// Three threads read ranges at once, each with its own cursor; then reads on both sides of the shard's end.
static void test_data_round_reads(
    const tok_shard* s, const int32_t* tokens, uint64_t seed, test_data_rounds* n) {
    test_data_reader r[3];
    pthread_t thread[3];
    for (int t = 0; t < 3; t++) {
        test_data_reader one = {s, tokens, (uint64_t)t + seed, 0, 0};
        r[t] = one;
        pthread_create(&thread[t], NULL, test_data_ranges, &r[t]);
    }
    for (int t = 0; t < 3; t++) {
        pthread_join(thread[t], NULL);
        n->reads += r[t].reads;
        n->reads_wrong += r[t].wrong;
    }
    tok_cursor c;
    int32_t out[2];
    memset(&c, 0, sizeof c);
    n->wrong += tok_read(s, &c, 1000, 1, out, test_data_err, sizeof test_data_err) != -1;
    n->wrong += tok_read(s, &c, 1001, 0, out, test_data_err, sizeof test_data_err) != -1;
    n->wrong += tok_read(s, &c, 1, UINT64_MAX, out, test_data_err, sizeof test_data_err) != -1;
    n->wrong += tok_read(s, &c, 1000, 0, out, test_data_err, sizeof test_data_err) != 0;
    tok_cursor_free(&c);
}

static void test_data_roundtrip(void) {
    static const struct {
        uint32_t tokenizer, vocab_size;
    } kinds[] = {{TOK_BYTE, 257}, {TOK_GPT2, 50257}, {3, 65536}, {3, 65537}};
    static const uint32_t block_tokens[] = {1, 7, 64, 1000, 0, TOK_MAX_BLOCK_TOKENS};
    const char* path = test_data_path("round.tok");
    int32_t tokens[1000];
    uint64_t count;
    test_data_rounds n;
    memset(&n, 0, sizeof n);
    for (int k = 0; k < 4; k++)
        for (int b = 0; b < 6; b++, n.shards++) {
            tok_shard s;
            if (test_data_shard(path, kinds[k].tokenizer, kinds[k].vocab_size, block_tokens[b],
                    test_data_round_lengths, 8, tokens, &count) ||
                test_data_exists(test_data_path("round.tok.tmp")) ||
                tok_open(&s, path, TOK_FORMAT_AUTO, test_data_err, sizeof test_data_err)) {
                printf("  %s\n", test_data_err);
                n.wrong++;
                continue;
            }
            test_data_round_facts(&s, kinds[k].tokenizer, kinds[k].vocab_size, &n);
            test_data_round_reads(&s, tokens, (uint64_t)(10 * b + 100 * k), &n);
            tok_close(&s);
            tok_close(&s);
        }
    check(n.wrong == 0, "tok: a shard opens as it was written",
        "%d of %d, widths 2 and 4, blocks of 1 to 2^20 tokens", n.shards - n.wrong, n.shards);
    check(n.starts_wrong == 0, "tok: documents start where they were begun", "%d wrong of %d", n.starts_wrong,
        n.shards * 9);
    check(n.reads_wrong == 0 && n.reads == n.shards * 900,
        "tok: any range is read as it was written, by three threads at once", "%d of %d equal",
        n.reads - n.reads_wrong, n.reads);
}

// One cursor, two shards that differ only in their tokens: its cached block of one is not taken for the
// other's.
static void test_data_two_shards(void) {
    static const int one[] = {40}, two[] = {41};
    int32_t a[64], b[64], out[64];
    uint64_t na, nb;
    tok_shard sa, sb;
    tok_cursor c;
    memset(&c, 0, sizeof c);
    memset(&sa, 0, sizeof sa);
    memset(&sb, 0, sizeof sb);
    int rc = test_data_shard(test_data_path("a.tok"), 3, 300, 64, one, 1, a, &na) ||
        test_data_shard(test_data_path("b.tok"), 3, 301, 64, two, 1, b, &nb) ||
        tok_open(&sa, test_data_path("a.tok"), 0, test_data_err, sizeof test_data_err) ||
        tok_open(&sb, test_data_path("b.tok"), 0, test_data_err, sizeof test_data_err);
    for (int i = 0; rc == 0 && i < 6; i++) {
        rc = tok_read(i % 2 ? &sb : &sa, &c, 0, 40, out, test_data_err, sizeof test_data_err) ||
            memcmp(out, i % 2 ? b : a, 160) != 0;
    }
    check(rc == 0 && sa.fingerprint != sb.fingerprint, "tok: one cursor reads two shards in turn",
        "fingerprints %08x %08x", (unsigned)sa.fingerprint, (unsigned)sb.fingerprint);
    tok_cursor_free(&c);
    tok_close(&sa);
    tok_close(&sb);
}

// A shard of three documents and four blocks, at the path and in memory. Tokens 3 to 6 and 30 to 52 are no
// labels; the second span crosses three blocks and ends with the shard. What it carries as its tokenizer's
// file are ten bytes.
static void test_data_honest(const char* path, test_data_file* f, int32_t tokens[64], uint64_t* count) {
    static const int ends[] = {20, 20, 50};
    tok_writer w;
    uint64_t state = 5;
    *count = 0;
    int rc = tok_writer_open(&w, path, TOK_BYTE, 257, 256, 16, test_data_err, sizeof test_data_err) ||
        tok_writer_tokenizer(&w, "a tokenize", 10, test_data_err, sizeof test_data_err);
    for (int d = 0, i = 0; rc == 0 && d < 3; d++) {
        for (; rc == 0 && i < ends[d]; i++) {
            w.masked = (*count >= 3 && *count < 7) || *count >= 30;
            tokens[*count] = (int32_t)synth_below(&state, 256);
            rc = tok_writer_add(&w, tokens + (*count)++, 1, test_data_err, sizeof test_data_err);
        }
        if (rc == 0) rc = tok_writer_end_document(&w, 20, test_data_err, sizeof test_data_err);
        tokens[(*count)++] = 256;
    }
    if (rc != 0 || tok_writer_finish(&w, test_data_err, sizeof test_data_err) != 0)
        printf("  %s\n", test_data_err);
    unsigned char* bytes = test_data_slurp(path, &f->length);
    memcpy(f->bytes, bytes, f->length);
    free(bytes);
    f->block_index = (size_t)tok_get_le(f->bytes + 64, 8);
    f->document_index = (size_t)tok_get_le(f->bytes + 72, 8);
}

// What that shard says of its mask and of its tokenizer.
static void test_data_carried(void) {
    static test_data_file f;
    const char* path = test_data_path("carried.tok");
    int32_t tokens[64];
    uint64_t count;
    size_t length = 0;
    tok_shard s;
    test_data_honest(path, &f, tokens, &count);
    int open = tok_open(&s, path, 0, test_data_err, sizeof test_data_err) == 0;
    int spans = open && s.spans == 2 && s.span[0].first == 3 && s.span[0].count == 4 &&
        s.span[1].first == 30 && s.span[1].count == 23 && count == 53;
    check(spans, "tok: tokens that are no labels come back as the spans they were", "%d spans of %d tokens",
        open ? (int)s.spans : -1, open && s.spans == 2 ? (int)(s.span[0].count + s.span[1].count) : -1);
    char* text = open ? tok_tokenizer(&s, &length, test_data_err, sizeof test_data_err) : NULL;
    check(text && length == 10 && strcmp(text, "a tokenize") == 0,
        "tok: a shard carries its tokenizer's file", "%d bytes", (int)length);
    free(text);
    if (open) tok_close(&s);
}

// ================================================================================
// .tok: damage

// A block that goes bad after opening is named by its place, and so is the end of a file that was cut.
static void test_data_damaged_later(const char* path) {
    tok_shard s;
    tok_cursor c;
    int32_t out[64];
    memset(&c, 0, sizeof c);
    if (tok_open(&s, path, 0, test_data_err, sizeof test_data_err) != 0) {
        check(0, "tok: a block damaged after opening is named by its place", "%s", test_data_err);
        return;
    }
    int fd = open(path, O_WRONLY);
    int rc = fd < 0 || pwrite(fd, "?", 1, (off_t)s.block[1].offset + 3) != 1 || close(fd);
    int first = tok_read(&s, &c, 0, 16, out, test_data_err, sizeof test_data_err);
    int bad = tok_read(&s, &c, 10, 10, out, test_data_err, sizeof test_data_err);
    check(rc == 0 && first == 0 && test_data_refused(bad, "block 1 at byte", path),
        "tok: a block damaged after opening is named by its place", "%s", strrchr(test_data_err, '/'));
    rc = truncate(path, 100);
    bad = tok_read(&s, &c, 30, 10, out, test_data_err, sizeof test_data_err);
    check(rc == 0 && test_data_refused(bad, "the file ends at byte", path),
        "tok: a file cut short after opening is told", "%s", strrchr(test_data_err, '/'));
    tok_cursor_free(&c);
    tok_close(&s);
}

static void test_data_damage(void) {
    static test_data_file f;
    const char* path = test_data_path("small.tok");
    int32_t tokens[64];
    uint64_t count;
    test_data_honest(path, &f, tokens, &count);
    size_t length;
    unsigned char* bytes = test_data_slurp(path, &length);
    check(test_data_read_all(path, 0, tokens, count) == 0, "tok: the small shard is whole",
        "%zu bytes, %d tokens", length, (int)count);
    int refused = 0, named = 0;
    int silent = 0;
    for (size_t n = 0; n < length; n++) {
        test_data_write(path, bytes, n);
        refused += test_data_read_all(path, 0, tokens, count) == -1;
        named += strstr(test_data_err, path) != NULL;
    }
    check(refused == (int)length && named == refused, "tok: every truncation is refused, naming the file",
        "%d of %zu", refused, length);
    for (size_t bit = 0; bit < 8 * length; bit++) {
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        test_data_write(path, bytes, length);
        silent += test_data_read_all(path, 0, tokens, count) != -1;
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    check(silent == 0, "tok: every single-bit flip is refused", "%d of %zu accepted silently", silent,
        8 * length);
    bytes[length] = 0;
    test_data_write(path, bytes, length + 1);
    check(test_data_refused(test_data_read_all(path, 0, tokens, count), "bytes added", path),
        "tok: a trailing byte is refused", "%zu + 1 bytes", length);
    test_data_write(path, bytes, length);
    free(bytes);
    test_data_damaged_later(path);
}

// Shards that lie, with every CRC right: each is refused, before anything is allocated for it.

typedef struct {
    int at, bytes;   // where the lie is, and how wide
    uint64_t value;
    const char* message;
} test_data_lie;
static const test_data_lie test_data_header_lies[] = {{8, 4, 3, "made by a newer version"},
    {8, 4, 0xFFFFFFFF, "made by a newer version"}, {8, 4, 0, "format version is 0"},
    {12, 4, 0, "token width"}, {12, 4, 3, "token width"}, {12, 4, 4, "block 0"}, {16, 4, 0, "tokenizer 0"},
    {16, 4, 2, "tokenizer 2"}, {20, 4, 0, "vocabulary"}, {20, 4, 256, "vocabulary"},
    {20, 4, 258, "tokenizer 1"}, {20, 4, 65537, "vocabulary"}, {24, 4, 257, "vocabulary"},
    {24, 4, 255, "tokenizer 1"}, {28, 4, 0, "blocks of 0"}, {28, 4, (1 << 20) + 1, "blocks of 1048577"},
    {28, 4, 0xFFFFFFFF, "blocks of"}, {28, 4, 8, "4 blocks, expected 7"}, {32, 8, 0, "0 tokens"},
    {32, 8, UINT64_MAX, "tokens"}, {32, 8, TOK_MAX_TOKENS + 1, "tokens"},
    {32, 8, TOK_MAX_TOKENS, "blocks, expected"}, {32, 8, 65, "blocks, expected"}, {32, 8, 49, "span 1"},
    {40, 8, 0, "0 documents"}, {40, 8, 54, "54 documents"}, {40, 8, UINT64_MAX, "documents"},
    {40, 8, 4, "do not fit"}, {40, 8, 2, "do not fit"}, {48, 8, 5, "5 blocks, expected 4"},
    {48, 8, 0, "0 blocks"}, {48, 8, (uint64_t)1 << 60, "blocks, expected"}, {64, 8, 0, "do not fit"},
    {64, 8, UINT64_MAX, "do not fit"}, {64, 8, UINT64_MAX - 63, "do not fit"}, {72, 8, 0, "do not fit"},
    {72, 8, UINT64_MAX - 23, "do not fit"}, {72, 8, UINT64_MAX, "do not fit"}, {88, 4, 1, "not zero"},
    {96, 8, 1, "do not fit"}, {96, 8, 3, "do not fit"}, {96, 8, (uint64_t)1 << 60, "do not fit"},
    {96, 8, UINT64_MAX, "do not fit"}, {96, 8, ((uint64_t)1 << 60) + 2, "do not fit"},
    {104, 4, 0, "a tokenizer's file of"}, {104, 4, 0xFFFFFFFF, "do not fit"},
    {108, 4, 0, "a tokenizer's file of"}, {108, 4, 9, "damaged"}, {108, 4, 11, "damaged"},
    {108, 4, TOK_MAX_TOKENIZER + 1, "a tokenizer's file of"}, {112, 4, 0, "damaged"}};
// at: a byte of the block index (16 per block), from 64 on of the document index (8 per document), from 88
// on of the span index (16 per span)
static const test_data_lie test_data_index_lies[] = {{0, 8, 119, "block 0"}, {0, 8, 0, "block 0"},
    {0, 8, UINT64_MAX, "block 0"}, {8, 4, 0, "block 0"}, {8, 4, 0xFFFFFFFF, "block 0"}, {8, 4, 1, "block 1"},
    {16, 8, 120, "block 1"}, {16, 8, 4096, "block 1"}, {56, 4, 0, "block 3"}, {56, 4, 1, "blocks end"},
    {64, 8, 1, "document 0"}, {64, 8, UINT64_MAX, "document 0"}, {72, 8, 0, "document 1"},
    {80, 8, 21, "document 2"}, {80, 8, 53, "document 2"}, {80, 8, UINT64_MAX, "document 2"},
    {88, 8, 53, "span 0"}, {88, 8, 29, "span 1"}, {88, 8, UINT64_MAX, "span 0"}, {96, 8, 0, "span 0"},
    {96, 8, 28, "span 1"}, {96, 8, UINT64_MAX - 1, "span 0"}, {104, 8, 0, "span 1"}, {104, 8, 7, "span 1"},
    {112, 8, 0, "span 1"}, {112, 8, 24, "span 1"}};

static void test_data_hostile_headers(const char* path) {
    static test_data_file f, g;
    int32_t tokens[64];
    uint64_t count;
    int lies = (int)(sizeof test_data_header_lies / sizeof *test_data_header_lies), refused = 0;
    test_data_honest(path, &f, tokens, &count);
    g = f;
    test_data_fix(&g, 4, 3);
    check(memcmp(&f, &g, sizeof f) == 0, "tok: a shard's CRCs computed again are the same", "%zu bytes",
        f.length);
    for (int i = 0; i < lies; i++) {
        const test_data_lie* lie = &test_data_header_lies[i];
        g = f;
        tok_put_le(g.bytes + lie->at, lie->value, lie->bytes);
        test_data_fix_header(&g);
        test_data_write(path, g.bytes, g.length);
        refused += test_data_refused(test_data_read_all(path, 0, tokens, count), lie->message, path);
    }
    check(refused == lies, "tok: hostile headers are refused, their CRC right",
        "%d of %d refused with the expected message", refused, lies);
}

static void test_data_hostile_indexes(const char* path) {
    static test_data_file f, g;
    int32_t tokens[64];
    uint64_t count;
    int lies = (int)(sizeof test_data_index_lies / sizeof *test_data_index_lies), refused = 0;
    test_data_honest(path, &f, tokens, &count);
    for (int i = 0; i < lies; i++) {
        const test_data_lie* lie = &test_data_index_lies[i];
        g = f;
        tok_put_le(g.bytes + g.block_index + lie->at, lie->value, lie->bytes);
        test_data_fix(&g, 4, 3);
        test_data_write(path, g.bytes, g.length);
        refused += test_data_refused(test_data_read_all(path, 0, tokens, count), lie->message, path);
    }
    g = f;   // two blocks swapped in the index: the same bytes are covered, in the wrong order
    memcpy(g.bytes + g.block_index, f.bytes + f.block_index + 16, 16);
    memcpy(g.bytes + g.block_index + 16, f.bytes + f.block_index, 16);
    test_data_fix(&g, 4, 3);
    test_data_write(path, g.bytes, g.length);
    refused += test_data_refused(test_data_read_all(path, 0, tokens, count), "block 0", path);
    check(refused == lies + 1, "tok: hostile indexes are refused, their CRC right",
        "%d of %d refused with the expected message", refused, lies + 1);
}

// Numbers of documents that cannot be, in a file whose index has just so many entries: none, and more than
// tokens.
static void test_data_hostile_documents(const char* path) {
    static test_data_file f;
    static const int none[] = {0, 54};
    int32_t tokens[64];
    uint64_t count;
    int refused = 0;
    for (int i = 0; i < 2; i++) {
        char expected[32];
        test_data_honest(path, &f, tokens, &count);
        for (int d = 3; d < none[i]; d++) tok_put_le(f.bytes + f.document_index + 8 * d, (uint64_t)d + 30, 8);
        f.length = f.document_index + 8 * (size_t)none[i];
        tok_put_le(f.bytes + 40, (uint64_t)none[i], 8);
        test_data_fix(&f, 4, none[i]);
        test_data_write(path, f.bytes, f.length);
        snprintf(expected, sizeof expected, "in %d documents", none[i]);
        refused += test_data_refused(test_data_read_all(path, 0, tokens, count), expected, path);
    }
    check(refused == 2, "tok: no documents, or more than tokens, are refused with a whole index",
        "%d of 2 refused with the expected message", refused);
}

// Payloads of a single block of n tokens.
enum { TEST_DATA_TOKENS = 65536, TEST_DATA_BOMB = 32 << 20 };
static const struct {
    const char* what;
    size_t raw_bytes;
    int token, value, width;   // token: the one that is `value`; -1: none
    size_t cut, extra;         // bytes of the stream
    const char* message;       // NULL: it is read
} test_data_blocks[] = {{"as it should be", 2 * TEST_DATA_TOKENS, -1, 0, 2, 0, 0, NULL},
    {"a zip bomb of 32 MiB", TEST_DATA_BOMB, -1, 0, 2, 0, 0, "stream of another size"},
    {"one byte too many", 2 * TEST_DATA_TOKENS + 1, -1, 0, 2, 0, 0, "stream of another size"},
    {"one byte too few", 2 * TEST_DATA_TOKENS - 1, -1, 0, 2, 0, 0, "expected 131072"},
    {"no bytes at all", 0, -1, 0, 2, 0, 0, "expected 131072"},
    {"a stream that is cut", 2 * TEST_DATA_TOKENS, -1, 0, 2, 5, 0, "zlib"},
    {"a byte behind the stream", 2 * TEST_DATA_TOKENS, -1, 0, 2, 0, 1, "expected 131072"},
    {"the last token = vocab_size", 2 * TEST_DATA_TOKENS, TEST_DATA_TOKENS - 1, 257, 2, 0, 0,
        "token 65535 is 257"},
    {"the first token 65535", 2 * TEST_DATA_TOKENS, 0, 65535, 2, 0, 0, "token 0 is 65535"},
    {"a 4-byte token with its top bit set", 4 * TEST_DATA_TOKENS, 9, -1, 4, 0, 0, "token 9 is 4294967295"}};

static void test_data_hostile_blocks(const char* path) {
    static test_data_file g;
    unsigned char *raw = (unsigned char*)calloc(TEST_DATA_BOMB, 1), *packed = (unsigned char*)malloc(1 << 18);
    int count = (int)(sizeof test_data_blocks / sizeof *test_data_blocks), refused = 0;
    size_t bomb = 0;
    for (int i = 0; i < count; i++) {
        size_t raw_bytes = test_data_blocks[i].raw_bytes;
        int token = test_data_blocks[i].token, width = test_data_blocks[i].width;
        const char* message = test_data_blocks[i].message;
        uLongf got = 1 << 18;
        if (token >= 0) tok_put_le(raw + token * width, (uint64_t)test_data_blocks[i].value, width);
        compress2(packed, &got, raw, (uLong)raw_bytes, 9);
        memset(raw, 0, 4 * TEST_DATA_TOKENS);
        packed[got] = 0;
        if (raw_bytes == TEST_DATA_BOMB) bomb = got;
        test_data_build(&g, 1 + i % 2, packed, got - test_data_blocks[i].cut + test_data_blocks[i].extra,
            TEST_DATA_TOKENS, width, width == 4 ? 100000 : 257);
        test_data_write(path, g.bytes, g.length);
        int rc = test_data_read_all(path, 0, NULL, 0);
        refused += message ? test_data_refused(rc, message, path) : rc == 0;
    }
    memset(packed, 0xA5, 64);   // and one that is no zlib stream
    test_data_build(&g, 2, packed, 64, 64, 2, 257);
    test_data_write(path, g.bytes, g.length);
    refused += test_data_refused(test_data_read_all(path, 0, NULL, 0), "zlib data error", path);
    check(refused == count + 1, "tok: hostile blocks are refused, their CRC right",
        "%d of %d as expected, a 32-MiB bomb in %zu bytes among them", refused, count + 1, bomb);
    free(raw);
    free(packed);
}

static void test_data_no_shard(const char* path) {
    const char* pipe_path = test_data_path("pipe.tok");
    test_data_write(path, "", 0);
    int ok = test_data_refused(test_data_read_all(path, 0, NULL, 0), "empty file", path);
    ok += test_data_refused(
        test_data_read_all(test_data_folder, 0, NULL, 0), "not a regular file", test_data_folder);
    ok += test_data_refused(
        test_data_read_all(test_data_path("none.tok"), 0, NULL, 0), "No such file", "none.tok");
    mkfifo(pipe_path, 0600);
    ok += test_data_refused(test_data_read_all(pipe_path, 0, NULL, 0), "not a regular file", "pipe.tok");
    check(ok == 4, "tok: an empty file, a folder, nothing and a pipe are refused", "%d of 4 refused", ok);
}

static void test_data_hostile(void) {
    const char* path = test_data_path("hostile.tok");
    test_data_carried();
    test_data_hostile_headers(path);
    test_data_hostile_indexes(path);
    test_data_hostile_documents(path);
    test_data_hostile_blocks(path);
    test_data_no_shard(path);
}

// ================================================================================
// llm.c's .bin, raw u16

enum { TEST_DATA_FLAT = 9001 };   // tokens

// Those tokens, with documents that end around the edges of the index's blocks, as a .bin.
static unsigned char* test_data_flat_make(int32_t* tokens) {
    static const int eots[] = {0, 1, 500, 4095, 4096, 8191, 8192, 9000};
    unsigned char* bytes = (unsigned char*)calloc(TOK_BIN_HEADER + 2 * TEST_DATA_FLAT + 2, 1);
    uint64_t state = 1;
    for (int i = 0; i < TEST_DATA_FLAT; i++) tokens[i] = (int32_t)synth_below(&state, 50256);
    for (int i = 0; i < 8; i++) tokens[eots[i]] = 50256;
    for (int i = 0; i < TEST_DATA_FLAT; i++)
        tok_put_le(bytes + TOK_BIN_HEADER + 2 * i, (uint64_t)tokens[i], 2);
    tok_put_le(bytes, 20240520, 4);
    tok_put_le(bytes + 4, 1, 4);
    tok_put_le(bytes + 8, TEST_DATA_FLAT, 4);
    return bytes;
}

// Reads flat.bin, whose fingerprint it returns. kind 0: a .bin; 1: raw tokens, the first an eot; 2: the same
// without the first two.
static uint32_t test_data_flat_read(int kind, const int32_t* tokens, test_data_rounds* n) {
    static const uint64_t starts[2][9] = {{0, 1, 500, 4095, 4096, 8191, 8192, 9000, TEST_DATA_FLAT},
        {0, 498, 4093, 4094, 8189, 8190, 8998, TEST_DATA_FLAT - 2}};
    uint64_t skip = kind == 2 ? 2 : 0;
    tok_shard s;
    int rc = tok_open(&s, test_data_path("flat.bin"), kind ? TOK_FORMAT_RAW_U16 : TOK_FORMAT_AUTO,
        test_data_err, sizeof test_data_err);
    if (rc == 0)
        rc = s.documents != 0 || s.document_start != NULL ||
            tok_index_documents(&s, test_data_err, sizeof test_data_err);
    if (rc) {
        printf("  %s\n", test_data_err);
        n->wrong++;
        return 0;
    }
    n->wrong += s.tokens != TEST_DATA_FLAT - skip || s.documents != (skip ? 7u : 8u) ||
        s.vocab_size != 50257 || s.eot != 50256 || s.tokenizer != TOK_GPT2 || s.width != 2 ||
        s.text_bytes != 0;
    for (uint64_t d = 0; d <= s.documents && d < 9; d++)
        n->starts_wrong += s.document_start[d] != starts[skip != 0][d];
    test_data_reader r = {&s, tokens + skip, 7, 0, 0};
    test_data_ranges(&r);
    n->reads += r.reads;
    n->wrong += r.wrong;
    uint32_t fingerprint = s.fingerprint;
    tok_close(&s);
    return fingerprint;
}

static void test_data_flat_lies(unsigned char* bytes) {
    static const struct {
        int at;
        uint32_t value;
        int more, format;
        const char* message;
    } lies[] = {{0, 20240520, 0, 0, NULL}, {0, 20240520, 0, TOK_FORMAT_RAW_U16, NULL},
        {0, 20240520, 1, 0, "bytes, expected"}, {0, 20240520, -1, 0, "bytes, expected"},
        {0, 20240520, 2, 0, "bytes, expected"}, {8, 0, 0, 0, "of 0 tokens"},
        {8, 0x80000000, 0, 0, "bytes, expected"}, {8, TEST_DATA_FLAT + 1, 0, 0, "bytes, expected"},
        {4, 2, 0, 0, "version 2"}, {0, 20240801, 0, 0, "Llama 3"}, {0, 20240522, 0, 0, "eval data"},
        {0, 20240521, 0, 0, "expected a .tok or llm.c .bin"},
        {TOK_BIN_HEADER + 2 * 4321, 50257, 0, 0, "token 4321 is 50257"},
        {0, 7, 1, TOK_FORMAT_RAW_U16, "even number"},
        {0, 0xD400CFD4, -1 - TOK_BIN_HEADER - 2 * TEST_DATA_FLAT + 3, TOK_FORMAT_RAW_U16,
            "token 0 is 53204"}};
    const char* path = test_data_path("flat.bin");
    int refused = 0, count = (int)(sizeof lies / sizeof *lies);
    for (int i = 0; i < count; i++) {
        unsigned char kept[4];
        memcpy(kept, bytes + lies[i].at, 4);
        tok_put_le(bytes + lies[i].at, lies[i].value, lies[i].at >= TOK_BIN_HEADER ? 2 : 4);
        test_data_write(path, bytes, (size_t)(TOK_BIN_HEADER + 2 * TEST_DATA_FLAT + lies[i].more));
        memcpy(bytes + lies[i].at, kept, 4);
        int rc = test_data_read_all(path, lies[i].format, NULL, 0);
        refused += lies[i].message ? test_data_refused(rc, lies[i].message, path) : rc == 0;
    }
    check(refused == count, "bin and raw: wrong sizes, versions, magics and tokens are refused",
        "%d of %d as expected", refused, count);
}

static void test_data_flat(void) {
    const char* path = test_data_path("flat.bin");
    int32_t* tokens = (int32_t*)malloc(TEST_DATA_FLAT * sizeof *tokens);
    unsigned char *bytes = test_data_flat_make(tokens), *raw = bytes + TOK_BIN_HEADER;
    test_data_rounds n;
    uint32_t prints[3] = {0, 0, 0};
    memset(&n, 0, sizeof n);
    for (int kind = 0; kind < 3; kind++) {
        size_t skip = kind == 2 ? 2 : 0;
        if (kind == 0) test_data_write(path, bytes, TOK_BIN_HEADER + 2 * TEST_DATA_FLAT);
        else test_data_write(path, raw + 2 * skip, 2 * (TEST_DATA_FLAT - skip));
        prints[kind] = test_data_flat_read(kind, tokens, &n);
    }
    check(n.wrong == 0 && n.reads == 900, "bin and raw: any range is read as it was written",
        "%d of %d equal", n.reads - n.wrong, n.reads);
    check(n.starts_wrong == 0, "bin and raw: a document starts at token 0 and at every eot", "%d wrong",
        n.starts_wrong);
    raw[100] ^= 1;
    tok_shard s;
    test_data_write(path, bytes, TOK_BIN_HEADER + 2 * TEST_DATA_FLAT);
    int wrong = tok_open(&s, path, 0, test_data_err, sizeof test_data_err) || s.fingerprint == prints[0];
    tok_close(&s);
    check(wrong == 0 && prints[0] != prints[1] && prints[1] != prints[2],
        "bin and raw: fingerprints tell contents apart", "%08x %08x %08x", (unsigned)prints[0],
        (unsigned)prints[1], (unsigned)prints[2]);
    test_data_flat_lies(bytes);
    free(bytes);
    free(tokens);
}

// A flat file's vocabulary is what its reader says, if every token fits it.
static void test_data_flat_vocab(void) {
    static const struct {
        int largest;
        uint64_t vocab;
        uint32_t size;   // 0: refused
        uint32_t eot;
    } cases[] = {{50256, 0, 50257, 50256}, {50256, 50257, 50257, 50256}, {50256, 50304, 50257, 50256},
        {50303, 50304, 50304, 50256}, {50304, 50304, 0, 0}, {65535, 65536, 65536, 50256},
        {65535, 1 << 20, 65536, 50256}, {64, 65, 65, TOK_NO_EOT}, {65, 65, 0, 0},
        {31999, 32000, 32000, TOK_NO_EOT}, {32000, 32000, 0, 0}, {50256, 50256, 0, 0},
        {50255, 50256, 50256, TOK_NO_EOT}};
    enum { TOKENS = 5000 };   // the largest one in the second piece that is read
    const char* path = test_data_path("v.bin");
    unsigned char* raw = (unsigned char*)calloc(TOKENS, 2);
    int ok = 0, count = (int)(sizeof cases / sizeof *cases);
    for (int i = 0; i < count; i++) {
        tok_shard s;
        tok_cursor none;
        int32_t last = 0;
        memset(&none, 0, sizeof none);
        tok_put_le(raw + 2 * (TOKENS - 1), (uint64_t)cases[i].largest, 2);
        test_data_write(path, raw, 2 * TOKENS);
        int rc = tok_open(&s, path, TOK_FORMAT_RAW_U16, test_data_err, sizeof test_data_err);
        if (rc == 0) rc = tok_flat_vocab(&s, cases[i].vocab, test_data_err, sizeof test_data_err);
        if (!cases[i].size) ok += test_data_refused(rc, "token 4999 is", path);
        else
            ok += rc == 0 && s.vocab_size == cases[i].size && s.eot == cases[i].eot &&
                s.tokenizer == (cases[i].size < 50257 ? 0u : (uint32_t)TOK_GPT2) &&
                tok_read(&s, &none, TOKENS - 1, 1, &last, test_data_err, sizeof test_data_err) == 0 &&
                last == cases[i].largest &&
                tok_index_documents(&s, test_data_err, sizeof test_data_err) == 0 &&
                s.documents == (cases[i].largest == 50256 ? 2u : 1u);
        tok_close(&s);
    }
    free(raw);
    check(ok == count, "bin and raw: any vocabulary that holds every token, no other", "%d of %d", ok, count);
}

// ================================================================================
// .tok: writers that fail

// What a writer of two tokens is asked in case i: is it refused as it should be?
static int test_data_misuse(tok_writer* w, int i, const char* path) {
    static const int32_t tokens[] = {256, 257, -1};
    char* e = test_data_err;
    size_t n = sizeof test_data_err;
    int ok;
    switch (i) {
    case 0: return test_data_refused(tok_writer_finish(w, e, n), "no documents", path);
    case 1: return test_data_refused(tok_writer_finish(w, e, n), "not ended", path);
    case 2: return test_data_refused(tok_writer_add(w, tokens, 1, e, n), "not eot", path);
    case 3: return test_data_refused(tok_writer_add(w, tokens + 1, 1, e, n), "token 2 is 257", path);
    case 4: return test_data_refused(tok_writer_add(w, tokens + 2, 1, e, n), "token 2 is -1", path);
    case 5: tok_writer_abandon(w); return 1;
    case 6:   // the file's name is taken by the time of the rename
        mkdir(path, 0700);
        ok = tok_writer_end_document(w, 2, e, n) == 0 &&
            test_data_refused(tok_writer_finish(w, e, n), "a folder is there, and stays", path);
        rmdir(path);
        return ok;
    default:   // the limit of 2^48 tokens, which nobody reaches by writing
        w->tokens = TOK_MAX_TOKENS;
        return test_data_refused(tok_writer_end_document(w, 2, e, n), "2^48", path);
    }
}

static void test_data_writer_misuse(const char* path, const char* tmp) {
    static const int32_t tokens[] = {1, 2};
    char* e = test_data_err;
    size_t n = sizeof test_data_err;
    tok_writer w;
    int ok = 0, of = 0;
    int left = 0;
    for (; of < 8; of++) {
        int rc = tok_writer_open(&w, path, TOK_BYTE, 257, 256, 16, e, n);
        if (rc == 0 && of > 0) rc = tok_writer_add(&w, tokens, 2, e, n);
        if (rc || !test_data_exists(tmp)) break;
        ok += test_data_misuse(&w, of, path);
        // All further calls say that there is nothing open, and abandoning again does no harm.
        ok -= tok_writer_add(&w, tokens, 2, e, n) != -1 || tok_writer_end_document(&w, 0, e, n) != -1 ||
            tok_writer_finish(&w, e, n) != -1;
        tok_writer_abandon(&w);
        left += test_data_exists(tmp) + test_data_exists(path);
    }
    check(ok == of && of == 8 && left == 0, "tok writer: misuse is refused", "%d of %d, %d files left", ok,
        of, left);
}

static void test_data_writer_shapes(const char* path, const char* tmp) {
    const char *none = test_data_path("none/w.tok"), *under = test_data_path("a.tok/w.tok");
    const uint32_t most = TOK_MAX_BLOCK_TOKENS;
    char* e = test_data_err;
    size_t n = sizeof test_data_err;
    tok_writer w;
    int ok = test_data_refused(
        tok_writer_open(&w, none, TOK_BYTE, 257, 256, 0, e, n), "No such file", "none/w.tok.tmp");
    ok += test_data_refused(
        tok_writer_open(&w, under, TOK_BYTE, 257, 256, 0, e, n), "Not a directory", "w.tok.tmp");
    ok += test_data_refused(tok_writer_open(&w, path, TOK_BYTE, 258, 256, 0, e, n), "tokenizer 1", path);
    ok += test_data_refused(tok_writer_open(&w, path, TOK_GPT2, 50257, 0, 0, e, n), "tokenizer 2", path);
    ok += test_data_refused(tok_writer_open(&w, path, 3, 10, 10, 0, e, n), "vocabulary", path);
    ok += test_data_refused(tok_writer_open(&w, path, 3, 0x80000000u, 1, 0, e, n), "vocabulary", path);
    ok += test_data_refused(tok_writer_open(&w, path, 3, 10, 1, most + 1, e, n), "blocks of", path);
    check(ok == 7 && !test_data_exists(tmp), "tok writer: a wrong folder or shape is refused",
        "%d of 7 refused", ok);
}

static const int test_data_writer_lengths[] = {100, 100};

// Writes a shard with no more than `bytes` of a file allowed; what the writer returned.
static int test_data_writer_limited(
    const char* path, rlim_t bytes, uint32_t block_tokens, int32_t* out, uint64_t* count) {
    struct rlimit limit, small;
    getrlimit(RLIMIT_FSIZE, &limit);
    small = limit;
    small.rlim_cur = bytes;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    int rc = test_data_shard(path, TOK_BYTE, 257, block_tokens, test_data_writer_lengths, 2, out, count);
    setrlimit(RLIMIT_FSIZE, &limit);   // before anything is printed: the output may be a file
    signal(SIGXFSZ, handler);
    return rc;
}

// A disk that fills up after any number of bytes.
static void test_data_writer_full(const char* path, const char* tmp) {
    int32_t out[256];
    uint64_t count;
    size_t length;
    int ok = 0, of = 0;
    int left = 0;
    test_data_shard(path, TOK_BYTE, 257, 16, test_data_writer_lengths, 2, out, &count);
    free(test_data_slurp(path, &length));
    for (size_t bytes = 0; bytes <= length; bytes++, of++) {
        unlink(path);
        int rc = test_data_writer_limited(path, bytes, 16, out, &count);
        if (bytes < length) ok += test_data_refused(rc, "w.tok.tmp: writing: ", path);
        else ok += rc == 0 && test_data_read_all(path, 0, out, count) == 0;
        left += test_data_exists(tmp) + (bytes < length && test_data_exists(path));
    }
    check(ok == of && left == 0, "tok writer: a disk that is full after any number of bytes is told",
        "%d of %d as expected, %d files left", ok, of, left);

    int32_t other[256];   // a failed second version leaves the first one whole
    uint64_t ignored;
    int rc = test_data_writer_limited(path, 100, 32, other, &ignored);
    int same = test_data_read_all(path, 0, out, count) == 0;
    check(rc == -1 && same, "tok writer: the shard that was there survives a failed one", "%d tokens",
        (int)count);
}

// ================================================================================
// outputs

// Tries to write a shard at `name` of the test's folder: 0, or -1 with the message.
static int test_data_output(const char* name) {
    static const int lengths[] = {30};
    int32_t out[64];
    uint64_t count;
    return test_data_shard(test_data_path(name), TOK_BYTE, 257, 16, lengths, 1, out, &count);
}

// Does a file hold exactly this text?
static int test_data_holds(const char* path, const char* text) {
    size_t length;
    unsigned char* found = test_data_slurp(path, &length);
    int same = length == strlen(text) && memcmp(found, text, length) == 0;
    free(found);
    return same;
}

// What is there and is no shard of this program: refused, and as it was. The same in place of PATH.tmp.
static void test_data_output_foreign(void) {
    static const char* const texts[] = {"a text", "\n", "\xD4\xCF\xCBgpt", "{\"text\": \"mine\"}\n"};
    const char *path = test_data_path("o.tok"), *tmp = test_data_path("o.tok.tmp");
    const char* kept = test_data_path("kept.txt");
    int ok = 0, of = 0;
    for (int i = 0; i < 8; i++, of++) {
        const char *at = i % 2 ? tmp : path, *text = texts[i / 2];
        test_data_write(at, text, strlen(text));
        ok += test_data_refused(test_data_output("o.tok"), "and stays", "o.tok") && test_data_holds(at, text);
        unlink(at);
    }
    test_data_write(kept, "kept", 4);
    for (int i = 0; i < 8; i++, of++) {   // links to a text and to nothing, a pipe, a folder
        const char* at = i % 2 ? tmp : path;
        struct stat before, after;
        int made = i / 2 == 0 ? symlink("kept.txt", at)
            : i / 2 == 1      ? symlink("none", at)
            : i / 2 == 2      ? mkfifo(at, 0600)
                              : mkdir(at, 0700);
        ok += made == 0 && lstat(at, &before) == 0 &&
            test_data_refused(test_data_output("o.tok"), "and stays", "o.tok") && lstat(at, &after) == 0 &&
            before.st_ino == after.st_ino && before.st_mode == after.st_mode;
        remove(at);
    }
    ok += test_data_holds(kept, "kept") && !test_data_exists(test_data_path("none"));
    check(ok == of + 1 && !test_data_exists(path) && !test_data_exists(tmp),
        "outputs: what this program did not write is refused and stays", "%d of %d", ok, of + 1);
}

// A shard of its own is replaced; what a writer that is gone has left is removed; a second writer of the same
// file is refused, and the first one's shard is whole.
static void test_data_output_own(void) {
    static const int32_t tokens[] = {1, 2, 3};
    const char *path = test_data_path("o.tok"), *tmp = test_data_path("o.tok.tmp");
    char* e = test_data_err;
    size_t n = sizeof test_data_err;
    tok_writer w;
    int ok = test_data_output("o.tok") == 0 && test_data_output("o.tok") == 0;
    test_data_write(tmp, TOK_UNFINISHED "half a shard", 20);
    ok += test_data_output("o.tok") == 0 && !test_data_exists(tmp);
    unlink(path);
    int rc = tok_writer_open(&w, path, TOK_BYTE, 257, 256, 16, e, n) || tok_writer_add(&w, tokens, 3, e, n);
    ok += rc == 0 && test_data_refused(test_data_output("o.tok"), "another process is writing it", "o.tok");
    rc = rc || tok_writer_end_document(&w, 3, e, n) || tok_writer_finish(&w, e, n);
    static const int32_t want[] = {1, 2, 3, 256};
    ok += rc == 0 && test_data_read_all(path, 0, want, 4) == 0;
    check(ok == 4, "outputs: a shard of this program is replaced, a second writer refused", "%d of 4", ok);

    unlink(path);   // what happens between the start and the end
    rc = tok_writer_open(&w, path, TOK_BYTE, 257, 256, 16, e, n) || tok_writer_add(&w, tokens, 3, e, n) ||
        tok_writer_end_document(&w, 3, e, n);
    test_data_write(path, "come later", 10);
    ok = rc == 0 && test_data_refused(tok_writer_finish(&w, e, n), "and stays", "o.tok") &&
        test_data_holds(path, "come later") && !test_data_exists(tmp);
    unlink(path);
    rc = tok_writer_open(&w, path, TOK_BYTE, 257, 256, 16, e, n) || tok_writer_add(&w, tokens, 3, e, n) ||
        tok_writer_end_document(&w, 3, e, n) || unlink(tmp);
    test_data_write(tmp, "another's", 9);
    ok += rc == 0 && test_data_refused(tok_writer_finish(&w, e, n), "removed while", "o.tok") &&
        test_data_holds(tmp, "another's") && !test_data_exists(path);
    unlink(tmp);
    check(ok == 2, "outputs: what comes to stand there while a shard is written stays", "%d of 2", ok);
}

// The text of synth is known by its lines, all of them.
static void test_data_output_synth(void) {
    static const char line[] =
        "{\"text\": \"The code of\", \"facts\": [{\"statement\": 1, \"answer\": 22, \"length\": 4}]}\n";
    static const char* const no[] = {"", "\n", "{\"text\": \"mine\"}\n", "x\n", "{\"text\": \"mine\"", NULL};
    const char* path = test_data_path("s.jsonl");
    char text[1024];
    int ok = 0, of = 0, fd;
    for (int i = 0; i < 12; i++, of++) {   // synth's own of several sizes, then with something foreign
        if (i < 2) snprintf(text, sizeof text, "%s%s", line, i ? line : "");
        else snprintf(text, sizeof text, "%s%s%s", i % 2 ? line : "", no[(i - 2) / 2], i % 2 ? line : "");
        if (i == 3) continue;   // nothing between two lines
        test_data_write(path, text, strlen(text));
        fd = open(path, O_RDONLY);
        int right = synth_is_text(fd) == (i < 2);
        if (!right) printf("  %s\n", text);
        ok += right;
        close(fd);
    }
    int documents = 0;
    for (int facts = 1; facts < 200; facts += 66, of++, documents++) {
        synth_doc d;
        FILE* f = fopen(path, "w+");
        int rc = f ? synth_document(1, 2, 40000, facts, 0, &d, test_data_err, sizeof test_data_err) : -1;
        ok += rc == 0 && synth_write_line(f, &d, 0) == 0 && synth_write_line(f, &d, 0) == 0 &&
            fflush(f) == 0 && synth_is_text(fileno(f)) && ftruncate(fileno(f), ftello(f) - 1) == 0 &&
            !synth_is_text(fileno(f));
        if (rc == 0) synth_free(&d);
        if (f) fclose(f);
    }
    check(ok == of - 1, "outputs: synth's text is known by its lines", "%d of %d, %d of synth's documents",
        ok, of - 1, documents);
}

static void test_data_outputs(void) {
    test_data_output_foreign();
    test_data_output_own();
    test_data_output_synth();
}

// Documents d0 to d1 - 1, of up to 40 tokens; the odd ones are masked, and some ends.
static int test_data_some(tok_writer* w, int d0, int d1) {
    int rc = 0;
    for (int d = d0; d < d1 && rc == 0; d++) {
        int32_t tokens[40];
        for (int i = 0; i < 40; i++) tokens[i] = (7 * d + i) % 256;
        w->masked = d % 2;
        rc = tok_writer_add(w, tokens, (uint64_t)(d * 13 % 41), test_data_err, sizeof test_data_err);
        w->masked = d % 4 < 2;
        rc = rc || tok_writer_end_document(w, (uint64_t)d, test_data_err, sizeof test_data_err);
    }
    return rc;
}

// What comes between a mark and going back to it is as if it had never been written, wherever in a block and
// in a span the mark is, and however much it was.
static void test_data_writer_back(const char* path) {
    const char* plain = test_data_path("plain.tok");
    int same = 0, of = 0;
    for (int at = 0; at < 20; at++)
        for (int more = 0; more < 3; more++, of++) {
            tok_writer w;
            tok_mark mark;
            size_t n[2];
            memset(&mark, 0, sizeof mark);
            int rc = tok_writer_open(&w, plain, 1, 257, 256, 32, test_data_err, sizeof test_data_err) ||
                test_data_some(&w, 0, at) || test_data_some(&w, 100, 110) ||
                tok_writer_finish(&w, test_data_err, sizeof test_data_err);
            rc = rc || tok_writer_open(&w, path, 1, 257, 256, 32, test_data_err, sizeof test_data_err) ||
                test_data_some(&w, 0, at) ||
                tok_writer_mark(&w, &mark, test_data_err, sizeof test_data_err) ||
                test_data_some(&w, at, at + 30 * more + 1);
            if (rc == 0) tok_writer_back(&w, &mark);
            rc = rc || test_data_some(&w, 100, 110) ||
                tok_writer_finish(&w, test_data_err, sizeof test_data_err);
            unsigned char *a = test_data_slurp(plain, &n[0]), *b = test_data_slurp(path, &n[1]);
            same += rc == 0 && n[0] == n[1] && memcmp(a, b, n[0]) == 0;
            free(a);
            free(b);
            free(mark.raw);
        }
    check(same == of, "data: what is taken back leaves no trace in a shard", "%d of %d", same, of);
}

static void test_data_writer(void) {
    const char *path = test_data_path("w.tok"), *tmp = test_data_path("w.tok.tmp");
    test_data_writer_misuse(path, tmp);
    test_data_writer_shapes(path, tmp);
    test_data_writer_back(path);
    test_data_writer_full(path, tmp);
}

// ================================================================================
// text

typedef struct {
    char out[4096];
    size_t length;
    size_t shown;      // bytes of this document
    size_t begun_at;   // where it begins in out
    int documents, stop_at, inside, wrong;
} test_data_texts;

// Collects "name:line=text|" of each document, the name without the test's folder and of the text the first
// 100 bytes. Behind a part that is not the last stands ^, and before a masked one *; |* ends a document whose
// end is masked. Pieces out of order count as wrong.
static int test_data_collect(void* user, const text_piece* piece) {
    test_data_texts* t = (test_data_texts*)user;
    int begins = piece->flags & TEXT_BEGIN, ends = piece->flags & TEXT_END;
    size_t skip = strncmp(piece->path, test_data_folder, strlen(test_data_folder)) == 0
        ? strlen(test_data_folder) + 1
        : 0;
    t->wrong += t->inside == (begins != 0) || (piece->length == 0 && begins);
    t->inside = !ends;
    if (begins && ++t->documents == t->stop_at) return -1;
    if (t->length + strlen(piece->path) + 164 > sizeof t->out) return -1;
    if (begins) {
        t->begun_at = t->length;
        t->length += (size_t)sprintf(t->out + t->length, "%s:%d=", piece->path + skip, (int)piece->line);
        t->shown = 0;
    }
    size_t show = piece->length < 100 - t->shown ? piece->length : 100 - t->shown;
    if (show && (piece->flags & TEXT_MASKED)) t->out[t->length++] = '*';
    memcpy(t->out + t->length, piece->bytes, show);
    t->length += show, t->shown += show;
    if (piece->flags & TEXT_EDGE) t->out[t->length++] = '^';
    if (ends && t->out[t->length - 1] == '^') t->length--;   // the last part's
    if (ends) t->out[t->length++] = '|';
    if (ends && (piece->flags & TEXT_MASKED)) t->out[t->length++] = '*';
    if (piece->flags & TEXT_UNDONE) t->length = t->begun_at, t->documents--;
    t->out[t->length] = 0;
    return 0;
}

static text_reader test_data_reading(test_data_texts* t) {
    text_reader r;
    memset(t, 0, sizeof *t);
    memset(&r, 0, sizeof r);
    r.document = test_data_collect;
    r.user = t;
    r.err = test_data_err;
    r.err_size = sizeof test_data_err;
    return r;
}

// Runs text_documents on a file or folder; t->out has what came.
static int test_data_text(const char* path, test_data_texts* t) {
    text_reader r = test_data_reading(t);
    test_data_err[0] = 0;
    int rc = text_documents(&r, path);
    return rc == 0 && (t->inside || t->wrong) ? 1 : rc;
}

// What a line holds, and the document or (with '!') a part of the error that has to come of it.
static const char* const test_data_lines[][2] = {{"{\"text\":\"plain\"}", "plain"},
    {" \t{ \"text\" : \"spaces\" } \r", "spaces"},
    {"{\"a\":[1,-2.5e+10,0,{\"text\":\"inner\"}],\"b\":{\"text\":[]},\"text\":\"outer\",\"c\":null,\"d\":"
     "true,\"e\":false}",
        "outer"},
    {"{\"te\\u0078t\":\"escaped key\"}", "escaped key"},
    {"{\"text\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"}", "\"\\/\b\f\n\r\t"},
    {"{\"text\":\"\\u0041\\u00e9\\u20AC\\uD83D\\uDE00\"}", "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"},
    {"{\"text\":\"\\ud800\\udc00 \\uDBFF\\uDFFF\"}", "\xF0\x90\x80\x80 \xF4\x8F\xBF\xBF"},
    {"{\"text\":\"\\uD83Dx\\uDE00y\\uD83D\\uD83D\\uDE00\\uD83D\"}",
        "\xEF\xBF\xBDx\xEF\xBF\xBDy\xEF\xBF\xBD\xF0\x9F\x98\x80\xEF\xBF\xBD"},
    {"{\"text\":\"\\uD83D\\n\"}", "\xEF\xBF\xBD\n"},
    {"{\"text\":\"\\uFFFF\\u007f\\u0080\\u07ff\\u0800\"}", "\xEF\xBF\xBF\x7F\xC2\x80\xDF\xBF\xE0\xA0\x80"},
    {"{\"text\":\"raw \xC3\xA9 \xFF\"}", "raw \xC3\xA9 \xFF"}, {"{\"text\":\"\"}", ""}, {"", ""},
    {"  \r", ""}, {"{}", "!a field \"text\""}, {"{\"a\":\"text\"}", "!a field \"text\""},
    {"[\"text\"]", "!an object"}, {"\"text\"", "!an object"}, {"{\"text\":1}", "!a string as \"text\""},
    {"{\"text\":null}", "!a string as \"text\""}, {"{\"text\":[\"x\"]}", "!a string as \"text\""},
    {"{\"text\":\"a\",\"text\":\"b\"}", "!one field \"text\""}, {"{\"text\":\"a\"", "!a comma or }"},
    {"{\"text\":\"a", "!the end of a string"}, {"{\"text\":\"a\"}}", "!the end of the line"},
    {"{\"text\":\"a\"} {\"text\":\"b\"}", "!the end of the line"}, {"{\"text\" \"a\"}", "!a colon"},
    {"{\"text\":\"a\",}", "!a string"}, {"{,\"text\":\"a\"}", "!a string"}, {"{text:\"a\"}", "!a string"},
    {"{'text':'a'}", "!a string"}, {"{\"text\":\"a\\x\"}", "!one of"}, {"{\"text\":\"a\\u12g4\"}", "!one of"},
    {"{\"text\":\"\\u12", "!one of"}, {"{\"text\":\"\\", "!one of"},
    {"{\"text\":\"tab\there\"}", "!no control"}, {"{\"a\":01,\"text\":\"x\"}", "!a comma"},
    {"{\"a\":1.,\"text\":\"x\"}", "!a digit"}, {"{\"a\":-,\"text\":\"x\"}", "!a digit"},
    {"{\"a\":1e,\"text\":\"x\"}", "!a digit"}, {"{\"a\":+1}", "!a value"}, {"{\"a\":NaN}", "!a value"},
    {"{\"a\":nul}", "!a value"}, {"{\"a\":truex}", "!a comma"}, {"{\"a\":[1,]}", "!a value"},
    {"{\"a\":[1 2]}", "!a comma or ]"}, {"{", "!a string"}, {"{\"a\":", "!a value"}, {"x", "!an object"}};

// Each as the third of three lines, and, every second time, without its newline.
static void test_data_json_lines(const char* path) {
    int count = (int)(sizeof test_data_lines / sizeof *test_data_lines), ok = 0;
    for (int i = 0; i < count; i++) {
        const char *line = test_data_lines[i][0], *text = test_data_lines[i][1];
        char file[512], want[512];
        test_data_texts t;
        snprintf(file, sizeof file, "{\"text\":\"first\"}\n\n%s%s", line, i % 2 ? "\n" : "");
        test_data_write(path, file, strlen(file));
        int rc = test_data_text(path, &t);
        snprintf(
            want, sizeof want, "j.jsonl:1=first|%s%s%s", *text ? "j.jsonl:3=" : "", text, *text ? "|" : "");
        int good = text[0] == '!' ? test_data_refused(rc, text + 1, "j.jsonl:3: column ")
                                  : rc == 0 && strcmp(t.out, want) == 0;
        if (!good) printf("  line: %s\n  gave: %s, message: %s\n", line, t.out, test_data_err);
        ok += good;
    }
    check(ok == count, "text: good lines of JSON give their text, bad ones are refused",
        "%d of %d as expected", ok, count);
}

// 63 arrays inside the object are allowed, 64 are not.
static void test_data_json_nested(const char* path) {
    char nested[512] = "{\"text\":\"deep\",\"a\":";
    size_t n = strlen(nested);
    test_data_texts t;
    memset(nested + n, '[', 63);
    memset(nested + n + 63, ']', 63);
    memcpy(nested + n + 126, "}", 2);
    test_data_write(path, nested, n + 127);
    int rc = test_data_text(path, &t);
    memset(nested + n, '[', 64);
    test_data_write(path, nested, n + 64);
    check(rc == 0 && t.documents == 1 && test_data_refused(test_data_text(path, &t), "nested", "j.jsonl:1:"),
        "text: 64 nested values are the limit", "%d", (int)TEXT_MAX_NESTING);
}

// Lines around the sizes of the reader's buffer, a mark at the start, a NUL in a line.
static void test_data_json_long(const char* path) {
    enum { LONG = 300000 };
    static const size_t sizes[] = {65520, 65535, 65536, 65537, 131072, LONG};
    char* file = (char*)malloc(3 * LONG);
    test_data_texts t;
    int ok = 0;
    for (int i = 0; i < 6; i++) {
        size_t at = (size_t)sprintf(file, "\xEF\xBB\xBF{\"text\":\"");
        memset(file + at, 'x', sizes[i]);
        at += sizes[i];
        at += (size_t)sprintf(file + at, "\"}\r\n\n{\"text\":\"second\"}");
        test_data_write(path, file, at);
        ok += test_data_text(path, &t) == 0 && t.documents == 2 && strstr(t.out, "j.jsonl:3=second|") != NULL;
    }
    free(file);
    test_data_write(path, "{\"text\":\"a\0b\"}", 14);
    int rc = test_data_text(path, &t);
    ok += test_data_refused(rc, "found byte 00, expected no control", "j.jsonl:1: column 11");
    test_data_write(path, "{\"text\":\"a\\u0000b\"}", 19);
    ok += test_data_text(path, &t) == 0 && t.length == strlen("j.jsonl:1=") + 4 &&
        memcmp(t.out + t.length - 4, "a\0b|", 4) == 0;
    check(ok == 8, "text: long lines, a mark and CRLF are read, a NUL only if it is escaped",
        "%d of 8, lines up to %d bytes", ok, (int)LONG);
}

static void test_data_json(void) {
    const char* path = test_data_path("j.jsonl");
    test_data_json_lines(path);
    test_data_json_nested(path);
    test_data_json_long(path);
}

// A folder with files in the order in which they have to come ('-': not at all), hidden ones, links to a
// file, to folders and to itself.
static void test_data_walk_folder(void) {
    static const char* const files[][2] = {{"tree/.hidden.txt", "-"}, {"tree/.git/x.txt", "-"},
        {"tree/A.md", "one"}, {"tree/Makefile", "two"}, {"tree/Makefile.am", "-"}, {"tree/a-b/x.c", "three"},
        {"tree/a.txt", "four"}, {"tree/a/b/c/deep.rst", "five"}, {"tree/a/z.cuh", "six"}, {"tree/b.bin", "-"},
        {"tree/b.h", "seven"}, {"tree/b.json", "-"}, {"tree/c.cu", "eight"},
        {"tree/d.jsonl", "{\"text\":\"nine\"}\n{\"text\":\"ten\"}\n"}, {"tree/e.py", "eleven"},
        {"tree/empty.txt", ""}, {"tree/f.sh", "twelve"}, {"tree/g.tex", "\xEF\xBB\xBFthirteen"},
        {"tree/txt", "fourteen and a half"}};
    static const char* const folders[] = {
        "tree", "tree/.git", "tree/a-b", "tree/a", "tree/a/b", "tree/a/b/c", "tree/folder.txt", "bare"};
    static const char want[] = "tree/A.md:1=one|tree/Makefile:1=two|tree/a/b/c/deep.rst:1=five|tree/a/"
                               "z.cuh:1=six|tree/a-b/x.c:1=three|"
                               "tree/a.txt:1=four|tree/b.h:1=seven|tree/c.cu:1=eight|tree/"
                               "d.jsonl:1=nine|tree/d.jsonl:2=ten|tree/e.py:1=eleven|"
                               "tree/f.sh:1=twelve|tree/g.tex:1=thirteen|tree/link.txt:1=fourteen|"
                               "tree/txt:1=fourteen and a half|";
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) mkdir(test_data_path(folders[i]), 0700);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        test_data_write(test_data_path(files[i][0]), files[i][1], strlen(files[i][1]));
    test_data_write(test_data_path("outside.txt"), "fourteen", 8);
    int rc = symlink("../outside.txt", test_data_path("tree/link.txt")) ||
        symlink(".", test_data_path("tree/loop")) || symlink("../bare", test_data_path("tree/loop.txt"));
    test_data_texts t;
    rc = rc || test_data_text(test_data_path("tree"), &t) || strcmp(t.out, want) != 0;
    if (rc) printf("  %s\n  %s\n", t.out, test_data_err);
    check(rc == 0, "text: a folder comes in order, without hidden entries and linked folders", "%d documents",
        t.documents);
    rc = test_data_text(test_data_path("tree//"), &t) || strcmp(t.out, want) != 0;
    check(rc == 0, "text: slashes behind a folder change nothing", "%d documents", t.documents);
}

// A named file is taken whatever it is called, unless it is no text; in the folder of test_data_walk_folder.
static void test_data_walk_named(void) {
    const char *outside = test_data_path("outside.txt"), *nul = test_data_path("nul.txt");
    test_data_texts t;
    int ok = test_data_text(test_data_path("tree/b.bin"), &t) == 0 && strcmp(t.out, "tree/b.bin:1=-|") == 0;
    ok += test_data_text(test_data_path("tree/empty.txt"), &t) == 0 && t.documents == 0;
    ok += test_data_refused(test_data_text(test_data_path("bare"), &t), "no documents", "/bare:");
    ok += test_data_refused(test_data_text(test_data_path("none"), &t), "No such file", "/none:");
    ok += test_data_refused(
        test_data_text(test_data_path("pipe.tok"), &t), "neither a regular file", "pipe.tok");
    test_data_write(nul, "ab\0c", 4);
    ok += test_data_refused(test_data_text(nul, &t), "byte 2 is NUL", "nul.txt");
    unlink(outside);
    ok += test_data_refused(test_data_text(test_data_path("tree"), &t), "(a link)", "tree/link.txt");
    unlink(test_data_path("tree/link.txt"));
    text_reader r = test_data_reading(&t);
    t.stop_at = 4;   // a callback that stops without a message of its own
    int rc = text_documents(&r, test_data_path("tree"));
    ok += test_data_refused(rc, "stopped at this document", "z.cuh:1");
    check(ok == 8, "text: a named file is taken; nothing, pipe, NUL, dead link, stop are told",
        "%d of 8 as expected", ok);
}

static void test_data_walk_deep(void) {
    char deep[1024];
    test_data_texts t;
    snprintf(deep, sizeof deep, "%s/deep", test_data_folder);
    mkdir(deep, 0700);
    for (int made = 0; made < TEXT_MAX_DEPTH; made++) {
        strcat(deep, "/d");
        mkdir(deep, 0700);
    }
    test_data_write(strcat(deep, "/x.txt"), "bottom", 6);
    int ok = test_data_text(test_data_path("deep"), &t) == 0 && t.documents == 1;
    deep[strlen(deep) - 5] = 0;
    mkdir(strcat(deep, "d"), 0700);
    ok += test_data_refused(test_data_text(test_data_path("deep"), &t), "folders inside each other", "/d/d/");
    check(ok == 2, "text: folders nest to the limit and no deeper", "%d", (int)TEXT_MAX_DEPTH);
}

// Collects "name: why|" of each entry that is left out.
static void test_data_left_out(void* user, const char* path, const char* why) {
    test_data_texts* t = (test_data_texts*)user;
    size_t skip = strlen(test_data_folder) + 1;
    t->length +=
        (size_t)snprintf(t->out + t->length, sizeof t->out - t->length, "%s: %.12s|", path + skip, why);
}

// What is left out of a folder is told with the reason, whatever the letters' case of its ending; named by
// the user it is refused with the same reason.
static void test_data_walk_left_out(void) {
    static const char* const files[] = {"mix/.x", "mix/A.TXT", "mix/B.Md", "mix/C.JSONL", "mix/README",
        "mix/data.csv", "mix/e.HTML", "mix/f.parquet", "mix/g.xml.gz", "mix/h.tar.gz", "mix/i.json",
        "mix/j.pdf", "mix/k.log", "mix/l.txt"};
    static const char want[] =
        "mix/.x: hidden|mix/A.TXT:1={}|mix/B.Md:1={}|mix/C.JSONL:1=x|mix/README:1={}|mix/data.csv: a table: "
        "dat|mix/e.HTML:1={}|mix/empty.txt: empty|mix/f.parquet: a table: dat|mix/g.xml.gz: its tags are|"
        "mix/h.tar.gz: an archive: |mix/i.json: JSON: write |mix/j.pdf: pages with t|mix/k.log: not a kind t|"
        "mix/l.txt:1={}|mix/pipe: neither a re|mix/prog: its content |mix/there: a link to a |";
    mkdir(test_data_path("mix"), 0700);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        test_data_write(test_data_path(files[i]), i == 3 ? "{\"text\":\"x\"}" : "{}", i == 3 ? 12 : 2);
    test_data_write(test_data_path("mix/prog"), "\177ELF\0", 5);
    test_data_write(test_data_path("mix/empty.txt"), "", 0);
    int rc = symlink("../bare", test_data_path("mix/there")) || mkfifo(test_data_path("mix/pipe"), 0600);
    test_data_texts t;
    text_reader r = test_data_reading(&t);
    r.skip = test_data_left_out;
    rc = rc || text_documents(&r, test_data_path("mix")) || strcmp(t.out, want) != 0 || r.skipped != 12;
    if (rc) printf("  %s\n  %s\n", t.out, test_data_err);
    check(rc == 0, "text: what is left out of a folder is told with the reason", "%d taken, %d left out",
        t.documents, (int)r.skipped);
    static const struct {
        const char *name, *why;
    } named[] = {{"mix/g.xml.gz", "its tags are no text"}, {"mix/data.csv", "to_jsonl.py"},
        {"mix/f.parquet", "a table"}, {"mix/i.json", ".jsonl"}, {"mix/h.tar.gz", "an archive"},
        {"mix/j.pdf", "pages"}};
    int ok = 0, count = (int)(sizeof named / sizeof *named);
    for (int i = 0; i < count; i++)
        ok += test_data_refused(
                  test_data_text(test_data_path(named[i].name), &t), named[i].why, named[i].name) &&
            strstr(test_data_err, "end in .txt") != NULL;
    ok += test_data_text(test_data_path("mix/k.log"), &t) == 0 && t.documents == 1;
    ok += test_data_refused(test_data_text(test_data_path("mix/prog"), &t), "byte 4 is NUL", "mix/prog");
    check(ok == count + 2, "text: what is no text is refused where it is named", "%d of %d as expected", ok,
        count + 2);
    mkdir(test_data_path("none_of_it"), 0700);
    test_data_write(test_data_path("none_of_it/a.csv"), "a", 1);
    ok = test_data_refused(
        test_data_text(test_data_path("none_of_it"), &t), "1 left out, the first: ", "a.csv: a");
    r.outputs = NULL;
    struct stat out;   // an input that is being written
    r = test_data_reading(&t);
    ok += stat(test_data_path("mix/B.Md"), &out) == 0;
    r.outputs = &out;
    r.output_count = 1;
    ok += test_data_refused(text_documents(&r, test_data_path("mix")), "the output too", "mix/B.Md");
    check(ok == 3, "text: a folder without text says what is there; an input that is the output is refused",
        "%d of 3", ok);
}

// Packs bytes as gzip does, appended to a file.
static void test_data_pack(const char* path, const char* mode, const char* bytes, size_t length) {
    gzFile f = gzopen(path, mode);
    if (!f || gzwrite(f, bytes, (unsigned)length) != (int)length || gzclose(f) != Z_OK) {
        perror(path);
        exit(1);
    }
}

// A packed file gives what its content would; one that is damaged or cut short anywhere is refused.
static void test_data_gzip(void) {
    const char *text = test_data_path("z.TXT.gz"), *lines = test_data_path("z.jsonl.gz");
    const char* bare = test_data_path("Z.gz");
    test_data_texts t;
    size_t length;
    test_data_pack(text, "wb", "\xEF\xBB\xBFpacked", 9);
    int ok = test_data_text(text, &t) == 0 && strcmp(t.out, "z.TXT.gz:1=packed|") == 0;
    test_data_pack(text, "ab", " twice", 6);   // one stream behind the other is one text
    ok += test_data_text(text, &t) == 0 && strcmp(t.out, "z.TXT.gz:1=packed twice|") == 0;
    test_data_pack(lines, "wb", "{\"text\":\"a\"}\n\n{\"text\":\"b\"}", 26);
    ok += test_data_text(lines, &t) == 0 && strcmp(t.out, "z.jsonl.gz:1=a|z.jsonl.gz:3=b|") == 0;
    test_data_pack(bare, "wb", "bare", 4);
    ok += test_data_text(bare, &t) == 0 && strcmp(t.out, "Z.gz:1=bare|") == 0;
    test_data_write(bare, "plain", 5);
    ok += test_data_refused(test_data_text(bare, &t), "not what gzip packs", "Z.gz");
    test_data_pack(bare, "wb", "a\0b", 3);
    ok += test_data_refused(test_data_text(bare, &t), "byte 1 is NUL", "Z.gz");
    check(ok == 6, "text: .gz of texts and lines is read as what it packs", "%d of 6", ok);

    // zeros may fill up what is packed, as on a tape: nothing may stand behind them, or between streams
    static const char zeros[70000] = {0};
    int filled = 0;
    for (int more = 0; more < 4; more++) {
        test_data_pack(bare, "wb", "bare", 4);
        if (more == 3) test_data_write(bare, "", 0);
        FILE* f = fopen(bare, "ab");
        if (f) fwrite(zeros, 1, more == 1 ? sizeof zeros : 3, f), fputs(more == 2 ? "x" : "", f), fclose(f);
        int rc = test_data_text(bare, &t);
        if (more < 2) filled += rc == 0 && strcmp(t.out, "Z.gz:1=bare|") == 0;
        else
            filled +=
                test_data_refused(rc, more == 2 ? "nothing behind the zeros" : "not what gzip packs", "Z.gz");
    }
    test_data_pack(bare, "ab", "bare", 4);
    filled += test_data_refused(test_data_text(bare, &t), "not what gzip packs", "Z.gz");
    check(filled == 5, "text: zeros may fill up a .gz, and nothing else", "%d of 5", filled);

    unsigned char* bytes = test_data_slurp(lines, &length);
    int refused = 0, of = 0;
    for (size_t n = 1; n < length; n++, of++) {
        test_data_write(lines, bytes, n);
        refused += test_data_refused(test_data_text(lines, &t), "z.jsonl.gz: ", "z.jsonl.gz");
    }
    for (size_t i = 0; i < length; i++) {   // header bytes 3 to 9 say nothing of the content
        if (i >= 3 && i < 10) continue;
        bytes[i] ^= 0x55;
        test_data_write(lines, bytes, length);
        refused += test_data_text(lines, &t) == -1;
        bytes[i] ^= 0x55;
        of++;
    }
    free(bytes);
    check(refused == of, "text: a packed file that is cut short or damaged is refused", "%d of %d", refused,
        of);
}

typedef struct {
    uint64_t bytes, pieces;
    long first, most;   // pages of memory in use
} test_data_flow;

static long test_data_pages(void) {
    long all = 0, resident = 0;
    FILE* f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &all, &resident) != 2) resident = 0;
    if (f) fclose(f);
    return resident;
}

static int test_data_flowing(void* user, const text_piece* piece) {
    test_data_flow* t = (test_data_flow*)user;
    t->bytes += piece->length;
    t->pieces++;
    if (piece->line % 1000 != 1) return 0;
    long pages = test_data_pages();
    if (t->first == 0) t->first = pages;
    if (pages > t->most) t->most = pages;
    return 0;
}

// 64 MiB of packed lines go through the memory of a few of them.
static void test_data_gzip_flows(void) {
    enum { LINES = 16384, LINE = 4096 };
    const char* path = test_data_path("flow.jsonl.gz");
    char line[LINE + 1];
    test_data_flow t = {0, 0, 0, 0};
    text_reader r;
    memset(&r, 0, sizeof r);
    memset(line, 'x', LINE);
    memcpy(line, "{\"text\":\"", 9);
    memcpy(line + LINE - 3, "\"}\n", 3);
    gzFile f = gzopen(path, "wb1");
    int written = 0;
    for (int i = 0; f && i < LINES; i++) written += gzwrite(f, line, LINE) == LINE;
    if (f) gzclose(f);
    r.document = test_data_flowing;
    r.user = &t;
    r.err = test_data_err;
    r.err_size = sizeof test_data_err;
    int rc = text_documents(&r, path);
    double grown = (double)(t.most - t.first) * (double)sysconf(_SC_PAGESIZE) / (1 << 20);
    check(rc == 0 && written == LINES && t.bytes == (uint64_t)LINES * (LINE - 12) && t.first > 0 && grown < 4,
        "text: packed lines flow through, whatever their number", "%.1f MiB of text, memory grew by %.1f MiB",
        (double)t.bytes / (1 << 20), grown);
}

static void test_data_walk(void) {
    test_data_walk_folder();
    test_data_walk_named();
    test_data_walk_deep();
    test_data_walk_left_out();
    test_data_gzip();
    test_data_gzip_flows();
}

// ================================================================================
// synthetic documents

// Is fact f of d stated once, and asked for and answered once at its distance behind? What is wrong, or NULL.
static const char* test_data_fact_wrong(const synth_doc* d, const synth_fact* f, size_t distance) {
    const char *statement = d->text + f->statement, *answer = d->text + f->answer;
    const char *key = statement + 12, *is = strstr(statement, " is ");
    char value[16], question[128], stated[128];
    if (memcmp(statement, "The code of ", 12) != 0 || !is || is > statement + 60) return "statement";
    snprintf(value, sizeof value, "%.*s", f->answer_length, answer);
    int n = snprintf(
        question, sizeof question, "What is the code of %.*s? It is %s.", (int)(is - key), key, value);
    if (f->answer_length < 4 || f->answer_length > 6) return "answer length";
    if (memcmp(is + 4, value, (size_t)f->answer_length) != 0 || is[4 + f->answer_length] != '.')
        return "value";
    if (memcmp(answer + f->answer_length + 1 - n, question, (size_t)n) != 0) return "question";
    if (distance && f->answer - f->statement != distance) return "distance";
    snprintf(stated, sizeof stated, "he code of %.*s ", (int)(is - key), key);
    const char* first = strstr(d->text, stated);
    if (first != statement + 1 || strstr(first + 1, stated)) return "a key stated twice";
    if (strstr(d->text, question) != answer + f->answer_length + 1 - n) return "a key asked twice";
    return NULL;
}

// Is every fact of d where it says, stated once before it is asked for? Returns what is wrong, or NULL.
static const char* test_data_synth_wrong(const synth_doc* d, size_t bytes, int facts, size_t distance) {
    if (d->length != bytes || strlen(d->text) != bytes || d->fact_count != facts) return "length";
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)d->text[i] >= 127 || ((unsigned char)d->text[i] < 32 && d->text[i] != '\n'))
            return "a byte that is not text";
    for (int i = 0; i < facts; i++) {
        const synth_fact* f = &d->facts[i];
        const char* wrong = test_data_fact_wrong(d, f, distance);
        if (wrong) return wrong;
        if (f->statement >= f->answer || (i && f->answer < d->facts[i - 1].answer)) return "order";
    }
    return NULL;
}

typedef struct {
    size_t bytes;
    int facts;
    size_t distance;   // between a statement and its answer; 0: any
} test_data_shape;
static const test_data_shape test_data_shapes[] = {{64, 0, 0}, {65, 0, 0}, {67, 0, 0}, {110, 1, 0},
    {300, 1, 0}, {300, 1, 200}, {4096, 1, 1000}, {4096, 4, 0}, {4096, 4, 3000}, {4096, 8, 150},
    {65536, 1, 65000}, {65536, 32, 0}, {65536, 32, 30000}, {65536, 100, 5000}, {250000, 64, 0},
    {250000, 1024, 100000}};

typedef struct {
    int documents, facts;
    int statements, different;   // all of them; documents unlike the next one
    uint32_t crc;                // of the documents of up to 4096 bytes
} test_data_synths;

static int test_data_synth_make(const test_data_shape* s, uint64_t index, synth_doc* d) {
    return synth_document(5, index, s->bytes, s->facts, s->distance, d, test_data_err, sizeof test_data_err);
}

// One document, the same again and the next one. What is wrong, or NULL.
static const char* test_data_synth_one(const test_data_shape* s, uint64_t index, test_data_synths* n) {
    synth_doc d, again;
    if (test_data_synth_make(s, index, &d) || test_data_synth_make(s, index, &again)) return test_data_err;
    const char* wrong = test_data_synth_wrong(&d, s->bytes, s->facts, s->distance);
    size_t facts_bytes = sizeof *d.facts * (size_t)d.fact_count;
    if (!wrong && memcmp(d.text, again.text, d.length) != 0) wrong = "not the same text twice";
    if (!wrong && d.fact_count && memcmp(d.facts, again.facts, facts_bytes) != 0)
        wrong = "not the same twice";
    if (wrong)
        printf(
            "  %zu bytes, %d facts, distance %zu, index %d\n", s->bytes, s->facts, s->distance, (int)index);
    if (s->bytes <= 4096) n->crc = tok_crc(n->crc, (const unsigned char*)d.text, d.length);
    n->facts += d.fact_count;
    for (const char* p = d.text; (p = strstr(p, "The code of ")) != NULL; p++) n->statements++;
    synth_free(&again);
    test_data_synth_make(s, index + 1, &again);
    n->different += memcmp(d.text, again.text, d.length) != 0;
    synth_free(&again);
    synth_free(&d);
    return wrong;
}

static void test_data_synth_documents(void) {
    const char* wrong = NULL;
    test_data_synths n;
    memset(&n, 0, sizeof n);
    for (size_t i = 0; i < sizeof test_data_shapes / sizeof *test_data_shapes && !wrong; i++) {
        uint64_t count = test_data_shapes[i].bytes <= 4096 ? 50 : 2;
        for (uint64_t index = 0; index < count && !wrong; index++, n.documents++)
            wrong = test_data_synth_one(&test_data_shapes[i], index, &n);
    }
    check(!wrong, "synth: lengths, places and distances are exact", "%d documents, %d facts, %s", n.documents,
        n.facts, wrong ? wrong : "all right");
    check(n.different == n.documents, "synth: another index is another text", "%d of %d", n.different,
        n.documents);
    check(n.statements - n.facts > n.facts / 2, "synth: many statements are not asked for",
        "%d beside %d facts", n.statements - n.facts, n.facts);
    check(
        n.crc == 0x1D9F24D7, "synth: the text is the same on every machine", "CRC-32 %08x", (unsigned)n.crc);
}

// Distance 0: octaves from 2^8 to 2^15 of a 64-KiB document, all about as often.
static void test_data_synth_octaves(void) {
    int buckets[8] = {0}, errors = 0;
    for (uint64_t index = 0; index < 200; index++) {
        synth_doc d;
        if (synth_document(9, index, 65536, 8, 0, &d, test_data_err, sizeof test_data_err)) {
            errors++;
            continue;
        }
        for (int i = 0; i < 8; i++) {
            size_t x = d.facts[i].answer - d.facts[i].statement, k = 0;
            while (x >> (k + 1)) k++;
            if (k >= 8 && k <= 15) buckets[k - 8]++;
        }
        synth_free(&d);
    }
    int least = 1600, most = 0;
    for (int i = 0; i < 8; i++) {
        least = buckets[i] < least ? buckets[i] : least;
        most = buckets[i] > most ? buckets[i] : most;
    }
    check(errors == 0 && least > 100 && most < 300, "synth: distances are spread over the octaves",
        "%d to %d of 1600 in each of 8", least, most);
}

// For one fact in 200 bytes every distance either works exactly or is refused; both happen.
static void test_data_synth_limits(void) {
    static const test_data_shape no[] = {{0, 0, 0}, {63, 0, 0}, {(size_t)SYNTH_MAX_BYTES + 1, 0, 0},
        {80, 1, 0}, {4096, -1, 0}, {4096, 1025, 0}, {4096, 1, 4097}, {4096, 1, 4095}, {4096, 1, 10},
        {4096, 200, 0}, {4096, 30, 4000}};
    synth_doc d;
    int exact = 0, refused = 0;
    int bad = 0;
    for (size_t distance = 1; distance <= 201; distance++) {
        if (synth_document(1, 2, 200, 1, distance, &d, test_data_err, sizeof test_data_err) == 0) {
            if (test_data_synth_wrong(&d, 200, 1, distance)) bad++;
            exact++;
        } else {
            bad += d.text != NULL || !strstr(test_data_err, "200 bytes");
            refused++;
        }
        synth_free(&d);
    }
    check(bad == 0 && exact > 50 && refused > 50, "synth: every distance in 200 bytes is exact or refused",
        "%d exact, %d refused, %d wrong", exact, refused, bad);
    int count = (int)(sizeof no / sizeof *no);
    refused = 0;
    for (int i = 0; i < count; i++) {
        int rc = synth_document(
            1, 1, no[i].bytes, no[i].facts, no[i].distance, &d, test_data_err, sizeof test_data_err);
        refused += test_data_refused(rc, "expected", "synthetic document of");
    }
    check(refused == count, "synth: what cannot be is refused", "%d of %d", refused, count);
}

static void test_data_synth(void) {
    test_data_synth_documents();
    test_data_synth_octaves();
    test_data_synth_limits();
}

// ================================================================================

// A folder for the tests of a group. 0, or 1 and a test failed.
static int test_data_begin(const char* group) {
    const char* base = getenv("TMPDIR");
    snprintf(test_data_folder, sizeof test_data_folder, "%s/gpt2_sp_%s_XXXXXX",
        base && *base && strlen(base) < 400 ? base : "/tmp", group);
    if (mkdtemp(test_data_folder)) return 0;
    check(0, "data: a folder for the tests is made", "%s: %s", test_data_folder, strerror(errno));
    return 1;
}

static void test_data(void) {
    if (test_data_begin("data")) return;
    test_data_roundtrip();
    test_data_two_shards();
    test_data_damage();
    test_data_hostile();
    test_data_flat();
    test_data_flat_vocab();
    test_data_writer();
    test_data_outputs();
    test_data_json();
    test_data_walk();
    test_data_synth();
    int rc = nftw(test_data_folder, test_data_remove, 16, FTW_DEPTH | FTW_PHYS);
    check(rc == 0, "data: the tests' folder is removed", "%d", rc);
}

#endif
