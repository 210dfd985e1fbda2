// test_data.h: the tests of data/tok.h, data/text.h and data/synth.h, as one function test_data(). To be
// included once, behind those headers and behind
//     static void check(int ok, const char* name, const char* format, ...);
// which counts a result and prints the name with a figure. Files go to a folder of their own under $TMPDIR or
// /tmp, which is removed at the end.
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
    static char path[64][640];
    size_t skip = strlen(test_data_folder) + 1;
    int i = 0;
    while (i < 63 && path[i][0] && strcmp(path[i] + skip, name) != 0) i++;
    snprintf(path[i], sizeof path[i], "%s/%s", test_data_folder, name);
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
    tok_put_le(f->bytes + 92, tok_crc(0, f->bytes, 92), 4);
}

// A shard of one document and one block, whose payload is given as it is to be in the file.
static void test_data_build(test_data_file* f, const unsigned char* payload, size_t bytes, uint32_t tokens,
    int width, uint32_t vocab_size) {
    memset(f->bytes, 0, TOK_HEADER);
    memcpy(f->bytes, TOK_MAGIC, 8);
    const uint32_t small[] = {
        TOK_VERSION, (uint32_t)width, vocab_size == 257 ? 1u : 7u, vocab_size, vocab_size - 1, tokens};
    const uint64_t large[] = {tokens, 1, 1, 5, TOK_HEADER + bytes, TOK_HEADER + bytes + 16};
    for (int i = 0; i < 6; i++) tok_put_le(f->bytes + 8 + 4 * i, small[i], 4);
    for (int i = 0; i < 6; i++) tok_put_le(f->bytes + 32 + 8 * i, large[i], 8);
    memcpy(f->bytes + TOK_HEADER, payload, bytes);
    f->block_index = TOK_HEADER + bytes;
    f->document_index = f->block_index + 16;
    f->length = f->document_index + 8;
    tok_put_le(f->bytes + f->block_index, TOK_HEADER, 8);
    tok_put_le(f->bytes + f->block_index + 8, bytes, 4);
    tok_put_le(f->bytes + f->document_index, 0, 8);
    test_data_fix(f, 1, 1);
}

// Writes documents of the given lengths (without eot) of pseudo-random tokens; *tokens gets all of them, eots
// included.
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

static void test_data_roundtrip(void) {
    static const struct {
        uint32_t tokenizer, vocab_size;
    } kinds[] = {{TOK_BYTE, 257}, {TOK_GPT2, 50257}, {3, 65536}, {3, 65537}};
    static const uint32_t block_tokens[] = {1, 7, 64, 1000, 0, TOK_MAX_BLOCK_TOKENS};
    static const int lengths[] = {
        63, 0, 1, 511, 0, 200, 217, 0};   // 992 + 8 eots = 1000 tokens; empty documents too
    const char* path = test_data_path("round.tok");
    int32_t tokens[1000];
    uint64_t count;
    int shards = 0, wrong = 0, reads = 0, wrong_reads = 0, wrong_starts = 0;
    for (int k = 0; k < 4; k++) {
        for (int b = 0; b < 6; b++, shards++) {
            tok_shard s;
            if (test_data_shard(path, kinds[k].tokenizer, kinds[k].vocab_size, block_tokens[b], lengths, 8,
                    tokens, &count) ||
                test_data_exists(test_data_path("round.tok.tmp")) ||
                tok_open(&s, path, TOK_FORMAT_AUTO, test_data_err, sizeof test_data_err)) {
                printf("  %s\n", test_data_err);
                wrong++;
                continue;
            }
            wrong += s.tokens != 1000 || s.documents != 8 || s.text_bytes != 3 * 992 ||
                s.tokenizer != kinds[k].tokenizer || s.vocab_size != kinds[k].vocab_size ||
                s.eot != kinds[k].vocab_size - 1 || s.width != (kinds[k].vocab_size > 65536 ? 4u : 2u) ||
                tok_index_documents(&s, test_data_err, sizeof test_data_err) != 0;
            uint64_t at = 0;
            for (int d = 0; d < 8; at += (uint64_t)lengths[d++] + 1)
                wrong_starts += s.document_start[d] != at;
            wrong_starts += s.document_start[8] != 1000;
            test_data_reader r[3];
            pthread_t thread[3];
            for (int t = 0; t < 3; t++) {
                test_data_reader one = {&s, tokens, (uint64_t)(t + 10 * b + 100 * k), 0, 0};
                r[t] = one;
                pthread_create(&thread[t], NULL, test_data_ranges, &r[t]);
            }
            for (int t = 0; t < 3; t++) {
                pthread_join(thread[t], NULL);
                reads += r[t].reads;
                wrong_reads += r[t].wrong;
            }
            tok_cursor c;
            int32_t out[2];
            memset(&c, 0, sizeof c);
            wrong += tok_read(&s, &c, 1000, 1, out, test_data_err, sizeof test_data_err) != -1;
            wrong += tok_read(&s, &c, 1001, 0, out, test_data_err, sizeof test_data_err) != -1;
            wrong += tok_read(&s, &c, 1, UINT64_MAX, out, test_data_err, sizeof test_data_err) != -1;
            wrong += tok_read(&s, &c, 1000, 0, out, test_data_err, sizeof test_data_err) != 0;
            tok_cursor_free(&c);
            tok_close(&s);
            tok_close(&s);
        }
    }
    check(wrong == 0, "tok: shards written and opened again",
        "%d of %d, widths 2 and 4, blocks of 1 to 2^20 tokens", shards - wrong, shards);
    check(wrong_starts == 0, "tok: document starts", "%d wrong of %d", wrong_starts, shards * 9);
    check(wrong_reads == 0 && reads == shards * 900, "tok: random ranges, three threads at once",
        "%d of %d equal", reads - wrong_reads, reads);

    // One cursor, two shards that differ only in their tokens: its cached block must not be taken for the
    // other's.
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
    check(rc == 0 && sa.fingerprint != sb.fingerprint, "tok: one cursor, two shards in turn",
        "fingerprints %08x %08x", (unsigned)sa.fingerprint, (unsigned)sb.fingerprint);
    tok_cursor_free(&c);
    tok_close(&sa);
    tok_close(&sb);
}

// ================================================================================
// .tok: damage

static void test_data_damage(void) {
    static const int lengths[] = {20, 0, 30};
    const char* path = test_data_path("small.tok");
    int32_t tokens[64];
    uint64_t count;
    test_data_shard(path, TOK_BYTE, 257, 16, lengths, 3, tokens, &count);
    size_t length;
    unsigned char* bytes = test_data_slurp(path, &length);
    check(test_data_read_all(path, 0, tokens, count) == 0, "tok: the small shard is whole",
        "%zu bytes, %d tokens", length, (int)count);
    int refused = 0, named = 0;
    for (size_t n = 0; n < length; n++) {
        test_data_write(path, bytes, n);
        refused += test_data_read_all(path, 0, tokens, count) == -1;
        named += strstr(test_data_err, path) != NULL;
    }
    check(refused == (int)length && named == refused, "tok: every truncation is refused, naming the file",
        "%d of %zu", refused, length);
    int silent = 0;
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
        "tok: a trailing byte", "%zu + 1 bytes", length);

    // A block that goes bad after opening is named by its place.
    tok_shard s;
    tok_cursor c;
    int32_t out[64];
    memset(&c, 0, sizeof c);
    test_data_write(path, bytes, length);
    int rc = tok_open(&s, path, 0, test_data_err, sizeof test_data_err);
    if (rc == 0) {
        int fd = open(path, O_WRONLY);
        rc = fd < 0 || pwrite(fd, "?", 1, (off_t)s.block[1].offset + 3) != 1 || close(fd);
        int first = tok_read(&s, &c, 0, 16, out, test_data_err, sizeof test_data_err);
        int bad = tok_read(&s, &c, 10, 10, out, test_data_err, sizeof test_data_err);
        check(rc == 0 && first == 0 && test_data_refused(bad, "block 1 at byte", path),
            "tok: a block damaged later", "%s", strrchr(test_data_err, '/'));
        rc = truncate(path, 100);
        bad = tok_read(&s, &c, 30, 10, out, test_data_err, sizeof test_data_err);
        check(rc == 0 && test_data_refused(bad, "the file ends at byte", path), "tok: a file cut short later",
            "%s", strrchr(test_data_err, '/'));
    } else {
        check(0, "tok: a block damaged later", "%s", test_data_err);
    }
    tok_cursor_free(&c);
    tok_close(&s);
    free(bytes);
}

// Headers and indexes that lie, with every CRC right: each is refused, before anything is allocated for it.
static void test_data_hostile(void) {
    static const struct {
        int at, bytes;
        uint64_t value;
        const char* message;
    } lies[] = {{8, 4, 2, "made by a newer version"}, {8, 4, 0xFFFFFFFF, "made by a newer version"},
        {8, 4, 0, "format version is 0"}, {12, 4, 0, "token width"}, {12, 4, 3, "token width"},
        {12, 4, 4, "block 0"}, {16, 4, 0, "tokenizer 0"}, {16, 4, 2, "tokenizer 2"}, {20, 4, 0, "vocabulary"},
        {20, 4, 256, "vocabulary"}, {20, 4, 258, "tokenizer 1"}, {20, 4, 65537, "vocabulary"},
        {24, 4, 257, "vocabulary"}, {24, 4, 255, "tokenizer 1"}, {28, 4, 0, "blocks of 0"},
        {28, 4, (1 << 20) + 1, "blocks of 1048577"}, {28, 4, 0xFFFFFFFF, "blocks of"},
        {28, 4, 8, "4 blocks, expected 7"}, {32, 8, 0, "0 tokens"}, {32, 8, UINT64_MAX, "tokens"},
        {32, 8, TOK_MAX_TOKENS + 1, "tokens"}, {32, 8, TOK_MAX_TOKENS, "blocks, expected"},
        {32, 8, 65, "blocks, expected"}, {32, 8, 49, "block 3 at byte"}, {40, 8, 0, "0 documents"},
        {40, 8, 54, "54 documents"}, {40, 8, UINT64_MAX, "documents"}, {40, 8, 4, "do not fit"},
        {40, 8, 2, "do not fit"}, {48, 8, 5, "5 blocks, expected 4"}, {48, 8, 0, "0 blocks"},
        {48, 8, (uint64_t)1 << 60, "blocks, expected"}, {64, 8, 0, "do not fit"},
        {64, 8, UINT64_MAX, "do not fit"}, {64, 8, UINT64_MAX - 63, "do not fit"}, {72, 8, 0, "do not fit"},
        {72, 8, UINT64_MAX - 23, "do not fit"}, {72, 8, UINT64_MAX, "do not fit"}, {88, 4, 1, "not zero"}};
    const int LIES = (int)(sizeof lies / sizeof lies[0]);
    // at: a byte of the block index (16 per block) or, from 64 on, of the document index (8 per document)
    static const struct {
        int at, bytes;
        uint64_t value;
        const char* message;
    } index_lies[] = {{0, 8, 95, "block 0"}, {0, 8, 0, "block 0"}, {0, 8, UINT64_MAX, "block 0"},
        {8, 4, 0, "block 0"}, {8, 4, 0xFFFFFFFF, "block 0"}, {8, 4, 1, "block 1"}, {16, 8, 96, "block 1"},
        {16, 8, 4096, "block 1"}, {56, 4, 0, "block 3"}, {56, 4, 1, "blocks end"}, {64, 8, 1, "document 0"},
        {64, 8, UINT64_MAX, "document 0"}, {72, 8, 0, "document 1"}, {80, 8, 21, "document 2"},
        {80, 8, 53, "document 2"}, {80, 8, UINT64_MAX, "document 2"}};
    const int INDEX_LIES = (int)(sizeof index_lies / sizeof index_lies[0]);
    static const int lengths[] = {20, 0, 30};
    static test_data_file f, g;
    const char* path = test_data_path("hostile.tok");
    int32_t tokens[64];
    uint64_t count;
    test_data_shard(path, TOK_BYTE, 257, 16, lengths, 3, tokens, &count);
    unsigned char* bytes = test_data_slurp(path, &f.length);
    memcpy(f.bytes, bytes, f.length);
    free(bytes);
    f.block_index = (size_t)tok_get_le(f.bytes + 64, 8);
    f.document_index = (size_t)tok_get_le(f.bytes + 72, 8);
    g = f;
    test_data_fix(&g, 4, 3);
    check(memcmp(&f, &g, sizeof f) == 0, "tok: a shard's CRCs computed again are the same", "%zu bytes",
        f.length);
    int refused = 0;
    size_t bomb = 0;
    for (int i = 0; i < LIES; i++) {
        g = f;
        tok_put_le(g.bytes + lies[i].at, lies[i].value, lies[i].bytes);
        tok_put_le(g.bytes + 92, tok_crc(0, g.bytes, 92), 4);
        test_data_write(path, g.bytes, g.length);
        refused += test_data_refused(test_data_read_all(path, 0, tokens, count), lies[i].message, path);
    }
    check(refused == LIES, "tok: hostile headers, CRC right", "%d of %d refused with the expected message",
        refused, (int)LIES);
    refused = 0;
    for (int i = 0; i < INDEX_LIES; i++) {
        g = f;
        tok_put_le(g.bytes + g.block_index + index_lies[i].at, index_lies[i].value, index_lies[i].bytes);
        test_data_fix(&g, 4, 3);
        test_data_write(path, g.bytes, g.length);
        refused += test_data_refused(test_data_read_all(path, 0, tokens, count), index_lies[i].message, path);
    }
    g = f;   // two blocks swapped in the index: the same bytes are covered, in the wrong order
    memcpy(g.bytes + g.block_index, f.bytes + f.block_index + 16, 16);
    memcpy(g.bytes + g.block_index + 16, f.bytes + f.block_index, 16);
    test_data_fix(&g, 4, 3);
    test_data_write(path, g.bytes, g.length);
    refused += test_data_refused(test_data_read_all(path, 0, tokens, count), "block 0", path);
    check(refused == INDEX_LIES + 1, "tok: hostile indexes, CRC right",
        "%d of %d refused with the expected message", refused, (int)INDEX_LIES + 1);

    // Payloads of a single block of n tokens.
    enum { N = 65536, BOMB = 32 << 20 };
    unsigned char *raw = (unsigned char*)calloc(BOMB, 1), *packed = (unsigned char*)malloc(1 << 18);
    struct {
        const char* what;
        size_t raw_bytes;
        int token, value, width;
        size_t cut, extra;
        const char* message;
    } blocks[] = {{"as it should be", 2 * N, -1, 0, 2, 0, 0, NULL},
        {"a zip bomb of 32 MiB", BOMB, -1, 0, 2, 0, 0, "stream of another size"},
        {"one byte too many", 2 * N + 1, -1, 0, 2, 0, 0, "stream of another size"},
        {"one byte too few", 2 * N - 1, -1, 0, 2, 0, 0, "expected 131072"},
        {"no bytes at all", 0, -1, 0, 2, 0, 0, "expected 131072"},
        {"a stream that is cut", 2 * N, -1, 0, 2, 5, 0, "zlib"},
        {"a byte behind the stream", 2 * N, -1, 0, 2, 0, 1, "expected 131072"},
        {"the last token = vocab_size", 2 * N, N - 1, 257, 2, 0, 0, "token 65535 is 257"},
        {"the first token 65535", 2 * N, 0, 65535, 2, 0, 0, "token 0 is 65535"},
        {"a 4-byte token with its top bit set", 4 * N, 9, -1, 4, 0, 0, "token 9 is 4294967295"}};
    const int BLOCKS = (int)(sizeof blocks / sizeof blocks[0]);
    refused = 0;
    for (int i = 0; i < BLOCKS; i++) {
        uLongf got = 1 << 18;
        if (blocks[i].token >= 0)
            tok_put_le(raw + blocks[i].token * blocks[i].width, (uint64_t)blocks[i].value, blocks[i].width);
        compress2(packed, &got, raw, (uLong)blocks[i].raw_bytes, 9);
        memset(raw, 0, 4 * N);
        packed[got] = 0;
        if (blocks[i].raw_bytes == BOMB) bomb = got;
        test_data_build(&g, packed, got - blocks[i].cut + blocks[i].extra, N, blocks[i].width,
            blocks[i].width == 4 ? 100000 : 257);
        test_data_write(path, g.bytes, g.length);
        int rc = test_data_read_all(path, 0, NULL, 0);
        refused += blocks[i].message ? test_data_refused(rc, blocks[i].message, path) : rc == 0;
    }
    memset(packed, 0xA5, 64);   // and one that is no zlib stream
    test_data_build(&g, packed, 64, 64, 2, 257);
    test_data_write(path, g.bytes, g.length);
    refused += test_data_refused(test_data_read_all(path, 0, NULL, 0), "zlib data error", path);
    check(refused == BLOCKS + 1, "tok: hostile blocks, CRC right",
        "%d of %d as expected, a 32-MiB bomb in %zu bytes among them", refused, (int)BLOCKS + 1, bomb);
    free(raw);
    free(packed);

    test_data_write(path, "", 0);
    int rc = test_data_read_all(path, 0, NULL, 0);
    int ok = test_data_refused(rc, "empty file", path);
    ok += test_data_refused(
        test_data_read_all(test_data_folder, 0, NULL, 0), "not a regular file", test_data_folder);
    ok += test_data_refused(
        test_data_read_all(test_data_path("none.tok"), 0, NULL, 0), "No such file", "none.tok");
    mkfifo(test_data_path("pipe.tok"), 0600);
    ok += test_data_refused(
        test_data_read_all(test_data_path("pipe.tok"), 0, NULL, 0), "not a regular file", "pipe.tok");
    check(ok == 4, "tok: empty file, folder, nothing, pipe", "%d of 4 refused", ok);
}

// ================================================================================
// llm.c's .bin, raw u16

static void test_data_flat(void) {
    enum { N = 9001 };
    const char* path = test_data_path("flat.bin");
    unsigned char* bytes = (unsigned char*)calloc(TOK_BIN_HEADER + 2 * N + 2, 1);
    int32_t* tokens = (int32_t*)malloc(N * sizeof *tokens);
    uint64_t state = 1;
    static const int eots[] = {0, 1, 500, 4095, 4096, 8191, 8192, 9000};
    for (int i = 0; i < N; i++) tokens[i] = (int32_t)synth_below(&state, 50256);
    for (int i = 0; i < 8; i++) tokens[eots[i]] = 50256;
    for (int i = 0; i < N; i++) tok_put_le(bytes + TOK_BIN_HEADER + 2 * i, (uint64_t)tokens[i], 2);
    int wrong = 0, reads = 0, wrong_starts = 0;
    uint32_t prints[3] = {0, 0, 0};
    for (int kind = 0; kind < 3; kind++) {   // .bin; raw that starts with an eot; raw that does not
        tok_shard s;
        uint64_t skip = kind == 2 ? 2 : 0;
        tok_put_le(bytes, 20240520, 4);
        tok_put_le(bytes + 4, 1, 4);
        tok_put_le(bytes + 8, N, 4);
        if (kind == 0) test_data_write(path, bytes, TOK_BIN_HEADER + 2 * N);
        else test_data_write(path, bytes + TOK_BIN_HEADER + 2 * skip, 2 * (N - skip));
        int rc = tok_open(
            &s, path, kind ? TOK_FORMAT_RAW_U16 : TOK_FORMAT_AUTO, test_data_err, sizeof test_data_err);
        if (rc == 0)
            rc = s.documents != 0 || s.document_start != NULL ||
                tok_index_documents(&s, test_data_err, sizeof test_data_err);
        if (rc) {
            printf("  %s\n", test_data_err);
            wrong++;
            continue;
        }
        static const uint64_t starts[2][9] = {
            {0, 1, 500, 4095, 4096, 8191, 8192, 9000, N}, {0, 498, 4093, 4094, 8189, 8190, 8998, N - 2}};
        wrong += s.tokens != N - skip || s.documents != (skip ? 7u : 8u) || s.vocab_size != 50257 ||
            s.eot != 50256 || s.tokenizer != TOK_GPT2 || s.width != 2 || s.text_bytes != 0;
        for (uint64_t d = 0; d <= s.documents && d < 9; d++)
            wrong_starts += s.document_start[d] != starts[skip != 0][d];
        test_data_reader r = {&s, tokens + skip, 7, 0, 0};
        test_data_ranges(&r);
        reads += r.reads;
        wrong += r.wrong;
        prints[kind] = s.fingerprint;
        tok_close(&s);
    }
    check(wrong == 0 && reads == 900, "bin and raw: random ranges", "%d of %d equal", reads - wrong, reads);
    check(wrong_starts == 0, "bin and raw: a document starts at token 0 and at every eot", "%d wrong",
        wrong_starts);
    test_data_write(path, bytes, TOK_BIN_HEADER + 2 * N);
    bytes[TOK_BIN_HEADER + 100] ^= 1;
    tok_shard s;
    test_data_write(path, bytes, TOK_BIN_HEADER + 2 * N);
    wrong = tok_open(&s, path, 0, test_data_err, sizeof test_data_err) || s.fingerprint == prints[0];
    tok_close(&s);
    check(wrong == 0 && prints[0] != prints[1] && prints[1] != prints[2],
        "bin and raw: fingerprints tell contents apart", "%08x %08x %08x", (unsigned)prints[0],
        (unsigned)prints[1], (unsigned)prints[2]);

    static const struct {
        int at;
        uint32_t value;
        int more, format;
        const char* message;
    } lies[] = {{0, 20240520, 0, 0, NULL}, {0, 20240520, 0, TOK_FORMAT_RAW_U16, NULL},
        {0, 20240520, 1, 0, "bytes, expected"}, {0, 20240520, -1, 0, "bytes, expected"},
        {0, 20240520, 2, 0, "bytes, expected"}, {8, 0, 0, 0, "of 0 tokens"},
        {8, 0x80000000, 0, 0, "bytes, expected"}, {8, N + 1, 0, 0, "bytes, expected"},
        {4, 2, 0, 0, "version 2"}, {0, 20240801, 0, 0, "Llama 3"}, {0, 20240522, 0, 0, "eval data"},
        {0, 20240521, 0, 0, "expected a .tok or llm.c .bin"},
        {TOK_BIN_HEADER + 2 * 4321, 50257, 0, 0, "token 4321 is 50257"},
        {0, 7, 1, TOK_FORMAT_RAW_U16, "even number"},
        {0, 0xD400CFD4, -1 - TOK_BIN_HEADER - 2 * N + 3, TOK_FORMAT_RAW_U16, "token 0 is 53204"}};
    int refused = 0, count = (int)(sizeof lies / sizeof *lies);
    for (int i = 0; i < count; i++) {
        unsigned char kept[4];
        memcpy(kept, bytes + lies[i].at, 4);
        tok_put_le(bytes + lies[i].at, lies[i].value, lies[i].at >= TOK_BIN_HEADER ? 2 : 4);
        test_data_write(path, bytes, (size_t)(TOK_BIN_HEADER + 2 * N + lies[i].more));
        memcpy(bytes + lies[i].at, kept, 4);
        int rc = test_data_read_all(path, lies[i].format, NULL, 0);
        refused += lies[i].message ? test_data_refused(rc, lies[i].message, path) : rc == 0;
    }
    check(refused == count, "bin and raw: wrong sizes, versions, magics and tokens", "%d of %d as expected",
        refused, count);
    free(bytes);
    free(tokens);
}

// ================================================================================
// .tok: writers that fail

static void test_data_writer(void) {
    static const int lengths[] = {100, 100};
    static const int32_t tokens[] = {1, 2, 256, 257, -1};
    const char *path = test_data_path("w.tok"), *tmp = test_data_path("w.tok.tmp");
    char* e = test_data_err;
    size_t n = sizeof test_data_err;
    int32_t out[256];
    uint64_t count;
    tok_writer w;
    int ok = 0, left = 0, of = 0;
    for (int i = 0; i < 8; i++, of++) {
        int rc = tok_writer_open(&w, path, TOK_BYTE, 257, 256, 16, e, n);
        if (rc == 0 && i > 0) rc = tok_writer_add(&w, tokens, 2, e, n);
        if (rc || !test_data_exists(tmp)) break;
        switch (i) {
        case 0: ok += test_data_refused(tok_writer_finish(&w, e, n), "no documents", path); break;
        case 1: ok += test_data_refused(tok_writer_finish(&w, e, n), "not ended", path); break;
        case 2: ok += test_data_refused(tok_writer_add(&w, tokens + 2, 1, e, n), "not eot", path); break;
        case 3:
            ok += test_data_refused(tok_writer_add(&w, tokens + 3, 1, e, n), "token 2 is 257", path);
            break;
        case 4:
            ok += test_data_refused(tok_writer_add(&w, tokens + 4, 1, e, n), "token 2 is -1", path);
            break;
        case 5: tok_writer_abandon(&w), ok++; break;
        case 6:   // the folder's name is taken by the time of the rename
            mkdir(path, 0700);
            ok += tok_writer_end_document(&w, 2, e, n) == 0 &&
                test_data_refused(tok_writer_finish(&w, e, n), "rename", path);
            rmdir(path);
            break;
        case 7:   // the limit of 2^48 tokens, which nobody reaches by writing
            w.tokens = TOK_MAX_TOKENS;
            ok += test_data_refused(tok_writer_end_document(&w, 2, e, n), "2^48", path);
        }
        // All further calls say that there is nothing open, and abandoning again does no harm.
        ok -= tok_writer_add(&w, tokens, 2, e, n) != -1 || tok_writer_end_document(&w, 0, e, n) != -1 ||
            tok_writer_finish(&w, e, n) != -1;
        tok_writer_abandon(&w);
        left += test_data_exists(tmp) + test_data_exists(path);
    }
    check(ok == of && of == 8 && left == 0, "tok writer: misuse is refused", "%d of %d, %d files left", ok,
        of, left);

    ok = test_data_refused(tok_writer_open(&w, test_data_path("none/w.tok"), TOK_BYTE, 257, 256, 0, e, n),
        "No such file", "none/w.tok.tmp");
    ok += test_data_refused(tok_writer_open(&w, test_data_path("a.tok/w.tok"), TOK_BYTE, 257, 256, 0, e, n),
        "Not a directory", "w.tok.tmp");
    ok += test_data_refused(tok_writer_open(&w, path, TOK_BYTE, 258, 256, 0, e, n), "tokenizer 1", path);
    ok += test_data_refused(tok_writer_open(&w, path, TOK_GPT2, 50257, 0, 0, e, n), "tokenizer 2", path);
    ok += test_data_refused(tok_writer_open(&w, path, 3, 10, 10, 0, e, n), "vocabulary", path);
    ok += test_data_refused(tok_writer_open(&w, path, 3, 0x80000000u, 1, 0, e, n), "vocabulary", path);
    ok += test_data_refused(
        tok_writer_open(&w, path, 3, 10, 1, TOK_MAX_BLOCK_TOKENS + 1, e, n), "blocks of", path);
    check(ok == 7 && !test_data_exists(tmp), "tok writer: wrong folder or shape", "%d of 7 refused", ok);

    // A disk that is full from the start, then one that fills up after any number of bytes.
    of = ok = 0;
    if (access("/dev/full", W_OK) == 0 && symlink("/dev/full", tmp) == 0) {
        of++;
        ok += test_data_refused(
                  test_data_shard(path, TOK_BYTE, 257, 16, lengths, 2, out, &count), "No space left", path) &&
            !test_data_exists(tmp);
        unlink(tmp);
    }
    test_data_shard(path, TOK_BYTE, 257, 16, lengths, 2, out, &count);
    size_t length;
    free(test_data_slurp(path, &length));
    struct rlimit limit, small;
    getrlimit(RLIMIT_FSIZE, &limit);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    left = 0;
    for (size_t bytes = 0; bytes <= length; bytes++, of++) {
        unlink(path);
        small = limit;
        small.rlim_cur = bytes;
        setrlimit(RLIMIT_FSIZE, &small);
        int rc = test_data_shard(path, TOK_BYTE, 257, 16, lengths, 2, out, &count);
        setrlimit(RLIMIT_FSIZE, &limit);   // before anything is printed: the output may be a file
        if (bytes < length) ok += test_data_refused(rc, "w.tok.tmp: writing: ", path);
        else ok += rc == 0 && test_data_read_all(path, 0, out, count) == 0;
        left += test_data_exists(tmp) + (bytes < length && test_data_exists(path));
    }
    signal(SIGXFSZ, handler);
    check(ok == of && left == 0, "tok writer: a disk that is full after any number of bytes",
        "%d of %d as expected, %d files left", ok, of, left);

    // A failed second version leaves the first one whole.
    int32_t other[256];
    small.rlim_cur = 100;
    handler = signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    uint64_t ignored;
    int rc = test_data_shard(path, TOK_BYTE, 257, 32, lengths, 2, other, &ignored);
    setrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, handler);
    int same = test_data_read_all(path, 0, out, count) == 0;
    check(rc == -1 && same, "tok writer: the shard that was there survives a failed one", "%d tokens",
        (int)count);
}

// ================================================================================
// text

typedef struct {
    char out[4096];
    size_t length;
    int documents, stop_at;
} test_data_texts;

// Collects "name:line=text|" of each document, the name without the test's folder.
static int test_data_collect(void* user, const char* bytes, size_t length, const char* path, uint64_t line) {
    test_data_texts* t = (test_data_texts*)user;
    size_t skip = strlen(test_data_folder) + 1, show = length < 100 ? length : 100;
    if (++t->documents == t->stop_at) return -1;
    if (t->length + strlen(path) + show + 64 > sizeof t->out) return -1;
    t->length += (size_t)sprintf(t->out + t->length, "%s:%d=", path + skip, (int)line);
    memcpy(t->out + t->length, bytes, show);
    t->length += show;
    t->out[t->length++] = '|';
    t->out[t->length] = 0;
    return 0;
}

// Runs text_documents on a file or folder; t->out has what came.
static int test_data_text(const char* path, test_data_texts* t) {
    memset(t, 0, sizeof *t);
    test_data_err[0] = 0;
    return text_documents(path, test_data_collect, t, test_data_err, sizeof test_data_err);
}

static void test_data_json(void) {
    // What a line holds, and the document or (with '!') a part of the error that has to come of it.
    static const char* const lines[][2] = {{"{\"text\":\"plain\"}", "plain"},
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
        {"{\"text\":\"\\uFFFF\\u007f\\u0080\\u07ff\\u0800\"}",
            "\xEF\xBF\xBF\x7F\xC2\x80\xDF\xBF\xE0\xA0\x80"},
        {"{\"text\":\"raw \xC3\xA9 \xFF\"}", "raw \xC3\xA9 \xFF"}, {"{\"text\":\"\"}", ""}, {"", ""},
        {"  \r", ""}, {"{}", "!a field \"text\""}, {"{\"a\":\"text\"}", "!a field \"text\""},
        {"[\"text\"]", "!an object"}, {"\"text\"", "!an object"}, {"{\"text\":1}", "!a string as \"text\""},
        {"{\"text\":null}", "!a string as \"text\""}, {"{\"text\":[\"x\"]}", "!a string as \"text\""},
        {"{\"text\":\"a\",\"text\":\"b\"}", "!one field \"text\""}, {"{\"text\":\"a\"", "!a comma or }"},
        {"{\"text\":\"a", "!the end of a string"}, {"{\"text\":\"a\"}}", "!the end of the line"},
        {"{\"text\":\"a\"} {\"text\":\"b\"}", "!the end of the line"}, {"{\"text\" \"a\"}", "!a colon"},
        {"{\"text\":\"a\",}", "!a string"}, {"{,\"text\":\"a\"}", "!a string"}, {"{text:\"a\"}", "!a string"},
        {"{'text':'a'}", "!a string"}, {"{\"text\":\"a\\x\"}", "!one of"},
        {"{\"text\":\"a\\u12g4\"}", "!one of"}, {"{\"text\":\"\\u12", "!one of"},
        {"{\"text\":\"\\", "!one of"}, {"{\"text\":\"tab\there\"}", "!no control"},
        {"{\"a\":01,\"text\":\"x\"}", "!a comma"}, {"{\"a\":1.,\"text\":\"x\"}", "!a digit"},
        {"{\"a\":-,\"text\":\"x\"}", "!a digit"}, {"{\"a\":1e,\"text\":\"x\"}", "!a digit"},
        {"{\"a\":+1}", "!a value"}, {"{\"a\":NaN}", "!a value"}, {"{\"a\":nul}", "!a value"},
        {"{\"a\":truex}", "!a comma"}, {"{\"a\":[1,]}", "!a value"}, {"{\"a\":[1 2]}", "!a comma or ]"},
        {"{", "!a string"}, {"{\"a\":", "!a value"}, {"x", "!an object"}};
    int count = (int)(sizeof lines / sizeof *lines), ok = 0;
    const char* path = test_data_path("j.jsonl");
    for (int i = 0; i < count;
         i++) {   // as the third of three lines, and, every second time, without its newline
        char file[512], want[512];
        test_data_texts t;
        snprintf(file, sizeof file, "{\"text\":\"first\"}\n\n%s%s", lines[i][0], i % 2 ? "\n" : "");
        test_data_write(path, file, strlen(file));
        int rc = test_data_text(path, &t);
        snprintf(want, sizeof want, "j.jsonl:1=first|%s%s%s", *lines[i][1] ? "j.jsonl:3=" : "", lines[i][1],
            *lines[i][1] ? "|" : "");
        int good = lines[i][1][0] == '!' ? test_data_refused(rc, lines[i][1] + 1, "j.jsonl:3: column ")
                                         : rc == 0 && strcmp(t.out, want) == 0;
        if (!good) printf("  line: %s\n  gave: %s, message: %s\n", lines[i][0], t.out, test_data_err);
        ok += good;
    }
    check(ok == count, "text: lines of JSON, good and bad", "%d of %d as expected", ok, count);

    char nested[512] = "{\"text\":\"deep\",\"a\":";   // 63 arrays inside the object are allowed, 64 are not
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

    // Lines around the sizes of the reader's buffer, a mark at the start, a NUL in a line.
    enum { LONG = 300000 };
    char* file = (char*)malloc(3 * LONG);
    ok = 0;
    for (int i = 0; i < 6; i++) {
        static const size_t sizes[] = {65520, 65535, 65536, 65537, 131072, LONG};
        size_t at = (size_t)sprintf(file, "\xEF\xBB\xBF{\"text\":\"");
        memset(file + at, 'x', sizes[i]);
        at += sizes[i];
        at += (size_t)sprintf(file + at, "\"}\r\n\n{\"text\":\"second\"}");
        test_data_write(path, file, at);
        ok += test_data_text(path, &t) == 0 && t.documents == 2 && strstr(t.out, "j.jsonl:3=second|") != NULL;
    }
    test_data_write(path, "{\"text\":\"a\0b\"}", 14);
    ok += test_data_refused(
        test_data_text(path, &t), "found byte 00, expected no control", "j.jsonl:1: column 11");
    test_data_write(path, "{\"text\":\"a\\u0000b\"}", 19);
    ok += test_data_text(path, &t) == 0 && t.length == strlen("j.jsonl:1=") + 4 &&
        memcmp(t.out + t.length - 4, "a\0b|", 4) == 0;
    check(ok == 8, "text: long lines, mark, CRLF, NUL", "%d of 8, lines up to %d bytes", ok, (int)LONG);
    free(file);
}

static void test_data_walk(void) {
    static const char* const files[][2] = {// in the order in which they have to come, '-' = not at all
        {"tree/.hidden.txt", "-"}, {"tree/.git/x.txt", "-"}, {"tree/A.md", "one"}, {"tree/Makefile", "two"},
        {"tree/Makefile.am", "-"}, {"tree/a-b/x.c", "three"}, {"tree/a.txt", "four"},
        {"tree/a/b/c/deep.rst", "five"}, {"tree/a/z.cuh", "six"}, {"tree/b.bin", "-"}, {"tree/b.h", "seven"},
        {"tree/b.json", "-"}, {"tree/c.cu", "eight"},
        {"tree/d.jsonl", "{\"text\":\"nine\"}\n{\"text\":\"ten\"}\n"}, {"tree/e.py", "eleven"},
        {"tree/empty.txt", ""}, {"tree/f.sh", "twelve"}, {"tree/g.tex", "\xEF\xBB\xBFthirteen"},
        {"tree/txt", "-"}};
    static const char* const folders[] = {
        "tree", "tree/.git", "tree/a-b", "tree/a", "tree/a/b", "tree/a/b/c", "tree/folder.txt", "bare"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) mkdir(test_data_path(folders[i]), 0700);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        test_data_write(test_data_path(files[i][0]), files[i][1], strlen(files[i][1]));
    test_data_write(test_data_path("outside.txt"), "fourteen", 8);
    int rc = symlink("../outside.txt", test_data_path("tree/link.txt")) ||
        symlink(".", test_data_path("tree/loop")) || symlink("../bare", test_data_path("tree/loop.txt"));
    static const char want[] = "tree/A.md:1=one|tree/Makefile:1=two|tree/a/b/c/deep.rst:1=five|tree/a/"
                               "z.cuh:1=six|tree/a-b/x.c:1=three|"
                               "tree/a.txt:1=four|tree/b.h:1=seven|tree/c.cu:1=eight|tree/"
                               "d.jsonl:1=nine|tree/d.jsonl:2=ten|tree/e.py:1=eleven|"
                               "tree/f.sh:1=twelve|tree/g.tex:1=thirteen|tree/link.txt:1=fourteen|";
    test_data_texts t;
    rc = rc || test_data_text(test_data_path("tree"), &t) || strcmp(t.out, want) != 0;
    if (rc) printf("  %s\n  %s\n", t.out, test_data_err);
    check(rc == 0, "text: a folder, in order, without hidden entries and linked folders", "%d documents",
        t.documents);
    rc = test_data_text(test_data_path("tree//"), &t) || strcmp(t.out, want) != 0;
    check(rc == 0, "text: the same with slashes behind", "%d documents", t.documents);

    int ok = 0;
    ok += test_data_text(test_data_path("tree/b.bin"), &t) == 0 &&
        strcmp(t.out, "tree/b.bin:1=-|") == 0;   // named, so taken
    ok += test_data_text(test_data_path("tree/empty.txt"), &t) == 0 && t.documents == 0;
    ok += test_data_refused(test_data_text(test_data_path("bare"), &t), "no documents", "/bare:");
    ok += test_data_refused(test_data_text(test_data_path("none"), &t), "No such file", "/none:");
    ok += test_data_refused(
        test_data_text(test_data_path("pipe.tok"), &t), "neither a regular file", "pipe.tok");
    test_data_write(test_data_path("nul.txt"), "ab\0c", 4);
    ok += test_data_refused(test_data_text(test_data_path("nul.txt"), &t), "byte 2 is NUL", "nul.txt");
    rc = truncate(test_data_path("outside.txt"), (off_t)((size_t)TEXT_MAX_DOCUMENT + 1));   // sparse
    ok += rc == 0 &&
        test_data_refused(
            test_data_text(test_data_path("outside.txt"), &t), "expected at most", "outside.txt");
    unlink(test_data_path("outside.txt"));
    ok += test_data_refused(test_data_text(test_data_path("tree"), &t), "(a link)", "tree/link.txt");
    unlink(test_data_path("tree/link.txt"));
    memset(&t, 0, sizeof t);
    t.stop_at = 4;   // a callback that stops, without and with a message of its own
    ok += test_data_refused(
        text_documents(test_data_path("tree"), test_data_collect, &t, test_data_err, sizeof test_data_err),
        "stopped at this document", "z.cuh:1");
    check(ok == 9, "text: named files, nothing, pipe, NUL, too large, dead link, stop", "%d of 9 as expected",
        ok);

    char deep[1024];
    int made = 0;
    snprintf(deep, sizeof deep, "%s/deep", test_data_folder);
    mkdir(deep, 0700);
    for (; made < TEXT_MAX_DEPTH; made++) {
        strcat(deep, "/d");
        mkdir(deep, 0700);
    }
    test_data_write(strcat(deep, "/x.txt"), "bottom", 6);
    ok = test_data_text(test_data_path("deep"), &t) == 0 && t.documents == 1;
    deep[strlen(deep) - 5] = 0;
    mkdir(strcat(deep, "d"), 0700);
    ok += test_data_refused(test_data_text(test_data_path("deep"), &t), "folders inside each other", "/d/d/");
    check(ok == 2, "text: folders nested to the limit, and one more", "%d", (int)TEXT_MAX_DEPTH);
}

// ================================================================================
// synthetic documents

// Is every fact of d where it says, stated once before it is asked for? Returns what is wrong, or NULL.
static const char* test_data_synth_wrong(const synth_doc* d, size_t bytes, int facts, size_t distance) {
    if (d->length != bytes || strlen(d->text) != bytes || d->fact_count != facts) return "length";
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)d->text[i] >= 127 || ((unsigned char)d->text[i] < 32 && d->text[i] != '\n'))
            return "a byte that is not text";
    for (int i = 0; i < facts; i++) {
        const synth_fact* f = &d->facts[i];
        const char *statement = d->text + f->statement, *answer = d->text + f->answer, *key = statement + 12;
        char value[16], question[128];
        const char* is = strstr(statement, " is ");
        if (memcmp(statement, "The code of ", 12) != 0 || !is || is > statement + 60) return "statement";
        snprintf(value, sizeof value, "%.*s", f->answer_length, answer);
        int n = snprintf(
            question, sizeof question, "What is the code of %.*s? It is %s.", (int)(is - key), key, value);
        if (f->answer_length < 4 || f->answer_length > 6) return "answer length";
        if (memcmp(is + 4, value, (size_t)f->answer_length) != 0 || is[4 + f->answer_length] != '.')
            return "value";
        if (memcmp(answer + f->answer_length + 1 - n, question, (size_t)n) != 0) return "question";
        if (distance && f->answer - f->statement != distance) return "distance";
        if (f->statement >= f->answer || (i && f->answer < d->facts[i - 1].answer)) return "order";
        char stated[128];   // the key is stated once, and its question asked once
        snprintf(stated, sizeof stated, "he code of %.*s ", (int)(is - key), key);
        const char* first = strstr(d->text, stated);
        if (first != statement + 1 || strstr(first + 1, stated)) return "a key stated twice";
        if (strstr(d->text, question) != answer + f->answer_length + 1 - n) return "a key asked twice";
    }
    return NULL;
}

static void test_data_synth(void) {
    static const struct {
        size_t bytes;
        int facts;
        size_t distance;
    } good[] = {{64, 0, 0}, {65, 0, 0}, {67, 0, 0}, {110, 1, 0}, {300, 1, 0}, {300, 1, 200}, {4096, 1, 1000},
        {4096, 4, 0}, {4096, 4, 3000}, {4096, 8, 150}, {65536, 1, 65000}, {65536, 32, 0}, {65536, 32, 30000},
        {65536, 100, 5000}, {250000, 64, 0}, {250000, 1024, 100000}};
    synth_doc d, again;
    int documents = 0, facts = 0, distractors = 0, different = 0;
    const char* wrong = NULL;
    uint32_t crc = 0;
    for (size_t i = 0; i < sizeof good / sizeof *good && !wrong; i++) {
        for (uint64_t index = 0; index < (good[i].bytes <= 4096 ? 50 : 2) && !wrong; index++, documents++) {
            if (synth_document(5, index, good[i].bytes, good[i].facts, good[i].distance, &d, test_data_err,
                    sizeof test_data_err) ||
                synth_document(5, index, good[i].bytes, good[i].facts, good[i].distance, &again,
                    test_data_err, sizeof test_data_err)) {
                wrong = test_data_err;
                break;
            }
            wrong = test_data_synth_wrong(&d, good[i].bytes, good[i].facts, good[i].distance);
            if (!wrong &&
                (memcmp(d.text, again.text, d.length) != 0 ||
                    (d.fact_count &&
                        memcmp(d.facts, again.facts, sizeof *d.facts * (size_t)d.fact_count) != 0)))
                wrong = "not the same twice";
            if (wrong)
                printf("  %zu bytes, %d facts, distance %zu, index %d\n", good[i].bytes, good[i].facts,
                    good[i].distance, (int)index);
            if (good[i].bytes <= 4096) crc = tok_crc(crc, (const unsigned char*)d.text, d.length);
            facts += d.fact_count;
            for (const char* p = d.text; (p = strstr(p, "The code of ")) != NULL; p++) distractors++;
            synth_free(&again);
            synth_document(5, index + 1, good[i].bytes, good[i].facts, good[i].distance, &again,
                test_data_err, sizeof test_data_err);
            different += memcmp(d.text, again.text, d.length) != 0;
            synth_free(&again);
            synth_free(&d);
        }
    }
    check(!wrong, "synth: lengths, places, distances exact", "%d documents, %d facts, %s", documents, facts,
        wrong ? wrong : "all right");
    check(different == documents, "synth: other indexes, other texts", "%d of %d", different, documents);
    check(distractors - facts > facts / 2, "synth: statements that are not asked for", "%d beside %d facts",
        distractors - facts, facts);
    check(crc == 0x1D9F24D7, "synth: the same text on every machine", "CRC-32 %08x", (unsigned)crc);

    int buckets[8] = {0},
        errors = 0;   // distance 0: octaves from 2^8 to 2^15 of a 64-KiB document, all about as often
    for (uint64_t index = 0; index < 200; index++) {
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
    check(errors == 0 && least > 100 && most < 300, "synth: distances spread over the octaves",
        "%d to %d of 1600 in each of 8", least, most);

    // The limits: for one fact in 200 bytes every distance either works exactly or is refused; both happen.
    int exact = 0, refused = 0, bad = 0;
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
    check(bad == 0 && exact > 50 && refused > 50, "synth: every distance in 200 bytes",
        "%d exact, %d refused, %d wrong", exact, refused, bad);
    static const struct {
        size_t bytes;
        int facts;
        size_t distance;
    } no[] = {{0, 0, 0}, {63, 0, 0}, {(size_t)SYNTH_MAX_BYTES + 1, 0, 0}, {80, 1, 0}, {4096, -1, 0},
        {4096, 1025, 0}, {4096, 1, 4097}, {4096, 1, 4095}, {4096, 1, 10}, {4096, 200, 0}, {4096, 30, 4000}};
    int count = (int)(sizeof no / sizeof *no);
    refused = 0;
    for (int i = 0; i < count; i++)
        refused += test_data_refused(synth_document(1, 1, no[i].bytes, no[i].facts, no[i].distance, &d,
                                         test_data_err, sizeof test_data_err),
            "expected", "synthetic document of");
    check(refused == count, "synth: what cannot be is refused", "%d of %d", refused, count);
}

// ================================================================================

static void test_data(void) {
    const char* base = getenv("TMPDIR");
    snprintf(test_data_folder, sizeof test_data_folder, "%s/gpt2_sp_data_XXXXXX",
        base && *base && strlen(base) < 400 ? base : "/tmp");
    if (!mkdtemp(test_data_folder)) {
        check(0, "data: a folder for the tests", "%s: %s", test_data_folder, strerror(errno));
        return;
    }
    test_data_roundtrip();
    test_data_damage();
    test_data_hostile();
    test_data_flat();
    test_data_writer();
    test_data_json();
    test_data_walk();
    test_data_synth();
    int rc = nftw(test_data_folder, test_data_remove, 16, FTW_DEPTH | FTW_PHYS);
    check(rc == 0, "data: the tests' folder is removed", "%d", rc);
}

#endif
