// test_bpe.h: the tests of data/bpe.h, as one function test_bpe(), the group `tokenizer`. To be included
// once, behind test_data.h and behind
//     static void check(int ok, const char* name, const char* format, ...);
// The vocabulary is trained here, on a text made here, and its files are written here, by other code than
// what reads them. The oracle of encoding follows the patterns alternative by alternative, with a table of
// its own of the few characters that the texts have, and merges by going through the list of merges again
// for each merge.
//
// What is held: the same tokens from every form of the files, from text in any chunks, and as the oracle's;
// any bytes come back; no text takes quadratic time or memory that grows with it; what is not understood is
// refused. A tokenizer that cuts one word in a thousand otherwise would train a model that nothing shows to
// be wrong.
#ifndef GPT2_SP_TEST_BPE_H
#define GPT2_SP_TEST_BPE_H

#include <ftw.h>
#include <sys/stat.h>
#include <time.h>

#include "../data/bpe.h"

enum { TEST_BPE_MERGES = 300, TEST_BPE_TOKENS = 256 + TEST_BPE_MERGES, TEST_BPE_LONGEST = 64 };

static char test_bpe_folder[512];
static char test_bpe_err[1024];

static struct
{   // bytes are tokens 0 to 255 in descending order; then what the merges make, then <|endoftext|>
    unsigned char bytes[TEST_BPE_TOKENS][TEST_BPE_LONGEST];
    int length[TEST_BPE_TOKENS];
    int merge[TEST_BPE_MERGES][2];
} test_bpe_vocab;

static uint64_t test_bpe_state;
static uint32_t test_bpe_random(uint32_t below) {
    test_bpe_state = test_bpe_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(test_bpe_state >> 33) % below;
}

// The path of a file in the test's folder; the pointer is good for four calls.
static const char* test_bpe_path(const char* name) {
    static char path[4][700];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", test_bpe_folder, name);
    return path[next];
}

static double test_bpe_seconds(void) { return (double)clock() / CLOCKS_PER_SEC; }

// ================================================================================
// texts and a vocabulary

// What the texts are made of, each with its kind: l letter, n number, s white space, o other.
static const struct {
    const char* text;
    uint32_t code;
    char kind;
} test_bpe_characters[] = {{"a", 'a', 'l'}, {"e", 'e', 'l'}, {"t", 't', 'l'}, {"s", 's', 'l'},
    {"l", 'l', 'l'}, {"r", 'r', 'l'}, {"v", 'v', 'l'}, {"L", 'L', 'l'}, {"D", 'D', 'l'}, {" ", ' ', 's'},
    {" ", ' ', 's'}, {" ", ' ', 's'}, {"\n", '\n', 's'}, {"\r", '\r', 's'}, {"\t", '\t', 's'},
    {"'", '\'', 'o'}, {"!", '!', 'o'}, {"-", '-', 'o'}, {"1", '1', 'n'}, {"7", '7', 'n'},
    {"\xC3\xA9", 0xE9, 'l'}, {"\xC5\xBF", 0x17F, 'l'}, {"\xE6\xBC\xA2", 0x6F22, 'l'},
    {"\xE3\x80\x80", 0x3000, 's'}, {"\xE2\x80\xA8", 0x2028, 's'}, {"\xC2\xBD", 0xBD, 'n'},
    {"\xD9\xA3", 0x663, 'n'}, {"\xCC\x81", 0x301, 'o'}, {"\xF0\x9F\x98\x80", 0x1F600, 'o'},
    {"\xF0\x90\x8C\x80", 0x10300, 'l'}, {"\xFF", 0xFF00FF, 'o'}, {"\xC0", 0xFF00C0, 'o'}};
enum { TEST_BPE_CHARACTERS = (int)(sizeof test_bpe_characters / sizeof test_bpe_characters[0]) };

// A text of `count` characters, also as code points and kinds where those are not NULL. Returns its bytes.
static size_t test_bpe_text(int count, char* text, uint32_t* code, char* kind) {
    size_t n = 0;
    for (int i = 0, which = 0; i < count; i++) {
        if (i == 0 || test_bpe_random(3)) which = (int)test_bpe_random(TEST_BPE_CHARACTERS);
        size_t length = strlen(test_bpe_characters[which].text);
        memcpy(text + n, test_bpe_characters[which].text, length);
        n += length;
        if (code) code[i] = test_bpe_characters[which].code;
        if (kind) kind[i] = test_bpe_characters[which].kind;
    }
    return n;
}

// Trains the merges: of the pairs in a text, the most frequent becomes a token, again and again.
static void test_bpe_train(void) {
    enum { LENGTH = 3000, SIDE = TEST_BPE_TOKENS };
    char* text = (char*)malloc(4 * LENGTH);
    int *count = (int*)malloc(sizeof(int) * SIDE * SIDE), *id = (int*)malloc(sizeof(int) * 4 * LENGTH);
    size_t n = test_bpe_text(LENGTH, text, NULL, NULL), kept;
    for (int i = 0; i < 256; i++) {
        test_bpe_vocab.bytes[i][0] = (unsigned char)(255 - i);
        test_bpe_vocab.length[i] = 1;
    }
    for (size_t i = 0; i < n; i++) id[i] = 255 - (unsigned char)text[i];
    for (int merge = 0; merge < TEST_BPE_MERGES; merge++) {
        int best = 0, made = 256 + merge;
        memset(count, 0, sizeof(int) * SIDE * SIDE);
        for (size_t i = 0; i + 1 < n; i++)
            if (test_bpe_vocab.length[id[i]] + test_bpe_vocab.length[id[i + 1]] <= TEST_BPE_LONGEST)
                count[id[i] * SIDE + id[i + 1]]++;
        for (int i = 0; i < SIDE * SIDE; i++)
            if (count[i] > count[best]) best = i;
        int a = best / SIDE, b = best % SIDE, length = test_bpe_vocab.length[a];
        test_bpe_vocab.merge[merge][0] = a;
        test_bpe_vocab.merge[merge][1] = b;
        memcpy(test_bpe_vocab.bytes[made], test_bpe_vocab.bytes[a], (size_t)length);
        memcpy(
            test_bpe_vocab.bytes[made] + length, test_bpe_vocab.bytes[b], (size_t)test_bpe_vocab.length[b]);
        test_bpe_vocab.length[made] = length + test_bpe_vocab.length[b];
        kept = 0;
        for (size_t i = 0; i < n; i++) {
            int both = i + 1 < n && id[i] == a && id[i + 1] == b;
            id[kept++] = both ? made : id[i];
            i += (size_t)both;
        }
        n = kept;
    }
    free(text);
    free(count);
    free(id);
}

// ================================================================================
// the oracle

typedef struct {
    const uint32_t* code;
    const char* kind;
    int n;
} test_bpe_line;

static int test_bpe_run(const test_bpe_line* t, int i, char kind) {
    while (i < t->n && t->kind[i] == kind) i++;
    return i;
}
static int test_bpe_is_end(const test_bpe_line* t, int i) {
    return i < t->n && (t->code[i] == '\n' || t->code[i] == '\r');
}

// '(?:[sdmt]|ll|ve|re), with the flag i where fold is 1. Returns the place behind, or i.
static int test_bpe_suffix(const test_bpe_line* t, int i, int fold) {
    static const char* const all[] = {"s", "d", "m", "t", "ll", "ve", "re"};
    if (t->code[i] != '\'') return i;
    for (int w = 0; w < 7; w++) {
        int j = 0, n = (int)strlen(all[w]);
        for (; j < n && i + 1 + j < t->n; j++) {
            uint32_t c = t->code[i + 1 + j];
            if (fold && c == 0x17F) c = 's';
            if (fold && c >= 'A' && c <= 'Z') c += 32;
            if (c != (uint32_t)all[w][j]) break;
        }
        if (j == n) return i + 1 + n;
    }
    return i;
}

// The place behind the piece that starts at i, trying the pattern's alternatives in their order.
static int test_bpe_piece(const test_bpe_line* t, int i, int pattern) {
    int gpt2 = pattern == BPE_GPT2, k = test_bpe_suffix(t, i, !gpt2);
    if (k > i) return k;
    int behind = i + (t->code[i] == ' ');
    if (gpt2) {
        if ((k = test_bpe_run(t, behind, 'l')) > behind) return k;
        if ((k = test_bpe_run(t, behind, 'n')) > behind) return k;
        if ((k = test_bpe_run(t, behind, 'o')) > behind) return k;
    } else {
        if (!test_bpe_is_end(t, i) && t->kind[i] != 'l' && t->kind[i] != 'n' &&
            (k = test_bpe_run(t, i + 1, 'l')) > i + 1)
            return k;
        if ((k = test_bpe_run(t, i, 'l')) > i) return k;
        int most = i + (pattern == BPE_QWEN2 ? 1 : 3);
        if ((k = test_bpe_run(t, i, 'n')) > i) return k < most ? k : most;
        if ((k = test_bpe_run(t, behind, 'o')) > behind) {
            while (test_bpe_is_end(t, k)) k++;
            return k;
        }
    }
    int run = test_bpe_run(t, i, 's');
    if (pattern == BPE_CL100K && run == t->n) return run;
    for (k = run; k >= i && !gpt2; k--)
        if (test_bpe_is_end(t, k)) return k + 1;
    for (k = run; k > i; k--)
        if (k == t->n || t->kind[k] == 's') return k;
    return run;
}

// Merges `n` bytes. Returns the number of tokens.
static int test_bpe_merge(const unsigned char* p, int n, uint32_t* out) {
    for (int i = 0; i < n; i++) out[i] = 255u - p[i];
    for (;;) {
        int best = TEST_BPE_MERGES, at = 0;
        for (int i = 0; i + 1 < n; i++)
            for (int m = 0; m < best; m++)
                if (out[i] == (uint32_t)test_bpe_vocab.merge[m][0] &&
                    out[i + 1] == (uint32_t)test_bpe_vocab.merge[m][1])
                    best = m, at = i;
        if (best == TEST_BPE_MERGES) return n;
        out[at] = 256u + (uint32_t)best;
        for (int i = at + 1; i + 1 < n; i++) out[i] = out[i + 1];
        n--;
    }
}

// ================================================================================
// the vocabulary's files

// GPT-2's spelling of a token, with what JSON wants escaped where json is 1.
static void test_bpe_spell(FILE* f, int id, int json) {
    for (int i = 0; i < test_bpe_vocab.length[id]; i++) {
        int c = test_bpe_vocab.bytes[id][i], code = c;
        if (c <= 32) code = 256 + c;
        else if (c >= 127 && c <= 160) code = 256 + 33 + c - 127;
        else if (c == 173) code = 256 + 67;
        if (json && (c == '"' || c == '\\')) fputc('\\', f);
        if (code < 128) fputc(code, f);
        else fprintf(f, "%c%c", 0xC0 | (code >> 6), 0x80 | (code & 63));
    }
}

static void test_bpe_put_tiktoken(FILE* f) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int id = 0; id < TEST_BPE_TOKENS; id++) {
        const unsigned char* p = test_bpe_vocab.bytes[id];
        int n = test_bpe_vocab.length[id];
        for (int i = 0; i < n; i += 3) {
            int bits = p[i] << 16 | (i + 1 < n ? p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0);
            fprintf(f, "%c%c%c%c", digit[bits >> 18], digit[bits >> 12 & 63],
                i + 1 < n ? digit[bits >> 6 & 63] : '=', i + 2 < n ? digit[bits & 63] : '=');
        }
        fprintf(f, " %d\n", id);
    }
}

static void test_bpe_put_vocab(FILE* f) {
    fprintf(f, "{\"<|endoftext|>\": %d", TEST_BPE_TOKENS);
    for (int id = TEST_BPE_TOKENS; id-- > 0;) {   // the order of the lines means nothing
        fprintf(f, ", \"");
        test_bpe_spell(f, id, 1);
        fprintf(f, "\": %d", id);
    }
    fprintf(f, "}");
}

static void test_bpe_put_merges(
    FILE* f, const char* before, const char* between, const char* after, int json) {
    for (int m = 0; m < TEST_BPE_MERGES; m++) {
        fprintf(f, "%s%s", json && m ? "," : "", before);
        test_bpe_spell(f, test_bpe_vocab.merge[m][0], json);
        fprintf(f, "%s", between);
        test_bpe_spell(f, test_bpe_vocab.merge[m][1], json);
        fprintf(f, "%s", after);
    }
}

static const char test_bpe_byte_level[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}";
static const char test_bpe_special[] =
    "{\"id\":556,\"content\":\"<|endoftext|>\",\"special\":true,\"normalized\":false}";

static void test_bpe_put_json(FILE* f, const char* pre_tokenizer, int pairs) {
    fprintf(f, "{\"version\":\"1.0\",\"added_tokens\":[%s],\"normalizer\":null,\"pre_tokenizer\":%s,",
        test_bpe_special, pre_tokenizer);
    fprintf(f, "\"decoder\":%s,\"model\":{\"type\":\"BPE\",\"dropout\":null,\"vocab\":", test_bpe_byte_level);
    test_bpe_put_vocab(f);
    fprintf(f, ",\"merges\":[");
    test_bpe_put_merges(f, pairs ? "[\"" : "\"", pairs ? "\",\"" : " ", pairs ? "\"]" : "\"", 1);
    fprintf(f, "]}}");
}

static FILE* test_bpe_create(const char* name) {
    FILE* f = fopen(test_bpe_path(name), "wb");
    if (!f) {
        perror(test_bpe_path(name));
        exit(1);
    }
    return f;
}

static void test_bpe_write_files(void) {
    static const char* const folders[] = {"vocab", "json", "saved"};
    for (int i = 0; i < 3; i++) mkdir(test_bpe_path(folders[i]), 0777);
    FILE* f = test_bpe_create("x.tiktoken");
    test_bpe_put_tiktoken(f);
    fclose(f);
    f = test_bpe_create("vocab/vocab.json");
    test_bpe_put_vocab(f);
    fclose(f);
    f = test_bpe_create("vocab/merges.txt");
    fprintf(f, "#version: 0.2\n");
    test_bpe_put_merges(f, "", " ", "\n", 0);
    fclose(f);
    for (int pairs = 0; pairs < 2; pairs++) {
        f = test_bpe_create(pairs ? "pairs.json" : "json/tokenizer.json");
        test_bpe_put_json(f, test_bpe_byte_level, pairs);
        fclose(f);
    }
    f = test_bpe_create("pattern.json");
    char split[600] = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":";
    size_t at = strlen(split);
    json_append_string(split, sizeof split, &at, BPE_PATTERNS[BPE_CL100K].spelling[0]);
    snprintf(split + at, sizeof split - at, "},\"behavior\":\"Isolated\",\"invert\":false},%.*s,%s]}",
        (int)strlen(test_bpe_byte_level) - 1, test_bpe_byte_level, "\"use_regex\":false}");
    test_bpe_put_json(f, split, 0);
    fclose(f);
}

// ================================================================================
// encoding

// Loads or ends the tests: what they need is broken.
static void test_bpe_load(bpe* b, const char* name, const char* pattern) {
    if (bpe_load(b, test_bpe_path(name), pattern, test_bpe_err, sizeof test_bpe_err) == 0) return;
    fprintf(stderr, "%s\n", test_bpe_err);
    exit(1);
}

// Encodes a text in chunks of `chunk` bytes, 0 = of random sizes. The tokens are e->token[0 .. e->tokens).
static int test_bpe_encode(bpe_encoder* e, const char* text, size_t n, size_t chunk) {
    int rc = 0;
    e->tokens = 0;
    for (size_t at = 0; rc == 0;) {
        size_t take = chunk ? chunk : test_bpe_random(40);
        if (take > n - at) take = n - at;
        rc = bpe_encode(e, text + at, take, at + take == n, test_bpe_err, sizeof test_bpe_err);
        at += take;
        if (at == n) break;
    }
    return rc;
}

// Do the tokens stand for the text?
static int test_bpe_same_text(const bpe_encoder* e, const char* text, size_t n) {
    size_t at = 0, length = 0;
    for (size_t i = 0; i < e->tokens; i++) {
        const unsigned char* bytes = bpe_bytes(e->b, e->token[i], &length);
        if (!bytes || length > n - at || memcmp(text + at, bytes, length) != 0) return 0;
        at += length;
    }
    return at == n;
}

static void test_bpe_forms(void) {
    static const char* const names[] = {
        "x.tiktoken", "vocab", "vocab/vocab.json", "json", "json/tokenizer.json", "pairs.json"};
    enum { FORMS = 6, LENGTH = 20000 };
    char* text = (char*)malloc(4 * LENGTH);
    size_t n = test_bpe_text(LENGTH, text, NULL, NULL), tokens = 0;
    uint64_t fingerprint = 0;
    uint32_t* first = NULL;
    int differ = 0;
    for (int i = 0; i < FORMS; i++) {
        bpe b;
        bpe_encoder e;
        test_bpe_load(&b, names[i], i == 0 ? "gpt2" : NULL);
        bpe_encoder_open(&e, &b, 0, test_bpe_err, sizeof test_bpe_err);
        differ += test_bpe_encode(&e, text, n, n) != 0;
        if (i == 0) {
            fingerprint = b.fingerprint;
            tokens = e.tokens;
            first = (uint32_t*)malloc(tokens * sizeof *first);
            memcpy(first, e.token, tokens * sizeof *first);
        }
        differ += b.fingerprint != fingerprint || b.eot != TEST_BPE_TOKENS || e.tokens != tokens ||
            memcmp(first, e.token, tokens * sizeof *first) != 0;
        bpe_encoder_close(&e);
        bpe_free(&b);
    }
    check(differ == 0, "tokenizer: every form of the files gives the same tokens and fingerprint",
        "%d forms, %zu bytes, %zu tokens, %d differ", (int)FORMS, n, tokens, differ);
    bpe b, c;
    test_bpe_load(&b, "x.tiktoken", "cl100k");
    test_bpe_load(&c, "pattern.json", NULL);
    check(b.fingerprint == c.fingerprint && b.fingerprint != fingerprint && c.pattern == BPE_CL100K,
        "tokenizer: the fingerprint is another with another pattern", "%016" PRIx64 " and %016" PRIx64,
        fingerprint, b.fingerprint);
    bpe_free(&b);
    bpe_free(&c);
    free(first);
    free(text);
}

// Texts by chance, longer ones rarer, by every pattern.
static void test_bpe_oracle(void) {
    enum { LONGEST = 300 };
    char text[4 * LONGEST], kind[LONGEST];
    uint32_t code[LONGEST], want[4 * LONGEST];
    for (int pattern = 0; pattern < BPE_PATTERN_COUNT; pattern++) {
        bpe b;
        bpe_encoder e;
        size_t tokens = 0;
        int differ = 0, texts = quick ? 200 : 2000;
        test_bpe_load(&b, "x.tiktoken", BPE_PATTERNS[pattern].name);
        bpe_encoder_open(&e, &b, 0, test_bpe_err, sizeof test_bpe_err);
        for (int i = 0; i < texts; i++) {
            int n = 1 + (int)test_bpe_random(i % 50 ? 30 : LONGEST), from = 0;
            size_t length = test_bpe_text(n, text, code, kind), count = 0, at = 0;
            test_bpe_line line = {code, kind, n};
            for (; from < n;) {
                int to = test_bpe_piece(&line, from, pattern), bytes = 0;
                for (; from < to; from++) {
                    int lead = (unsigned char)text[at + (size_t)bytes];
                    bytes += lead < 0xC2 || lead > 0xF4 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
                }
                count += (size_t)test_bpe_merge((unsigned char*)text + at, bytes, want + count);
                at += (size_t)bytes;
            }
            tokens += count;
            differ += test_bpe_encode(&e, text, length, length) != 0 || e.tokens != count ||
                memcmp(e.token, want, count * sizeof *want) != 0 || !test_bpe_same_text(&e, text, length);
        }
        bpe_encoder_close(&e);
        bpe_free(&b);
        check(differ == 0, "tokenizer: encodes as the naive reference",
            "pattern %s, %d texts, %zu tokens, %d differ", BPE_PATTERNS[pattern].name, texts, tokens, differ);
    }
}

// Pieces on both sides of BPE_SHORT bytes and far beyond, letters by chance and runs of one.
static void test_bpe_pieces(void) {
    enum { LONGEST = 1000 };
    char text[LONGEST];
    uint32_t want[LONGEST];
    int differ = 0, pieces = quick ? 100 : 600;
    bpe b;
    bpe_encoder e;
    test_bpe_load(&b, "x.tiktoken", "gpt2");
    bpe_encoder_open(&e, &b, 0, test_bpe_err, sizeof test_bpe_err);
    for (int i = 0; i < pieces; i++) {
        int n = i < 100 ? i + 1 : 1 + (int)test_bpe_random(LONGEST);
        for (int j = 0; j < n; j++)
            text[j] = j > 0 && (i % 3 == 0 || test_bpe_random(3) == 0) ? text[j - 1]
                                                                       : "aetslrvLD"[test_bpe_random(9)];
        int count = test_bpe_merge((unsigned char*)text, n, want);
        differ += test_bpe_encode(&e, text, (size_t)n, (size_t)n) != 0 || e.tokens != (size_t)count ||
            memcmp(e.token, want, (size_t)count * sizeof *want) != 0;
    }
    check(differ == 0, "tokenizer: merges a piece as the naive reference",
        "%d pieces of up to %d bytes, %d differ", pieces, (int)LONGEST, differ);
    bpe_encoder_close(&e);
    bpe_free(&b);
}

static void test_bpe_bytes(void) {
    enum { LENGTH = 100000 };
    char* text = (char*)malloc(LENGTH);
    int bad = 0;
    for (int pattern = 0; pattern < BPE_PATTERN_COUNT; pattern++) {
        bpe b;
        bpe_encoder e;
        test_bpe_load(&b, "x.tiktoken", BPE_PATTERNS[pattern].name);
        bpe_encoder_open(&e, &b, 1, test_bpe_err, sizeof test_bpe_err);
        for (int i = 0; i < LENGTH; i++) text[i] = (char)test_bpe_random(i < LENGTH / 2 ? 256 : 6) * 37;
        bad += test_bpe_encode(&e, text, LENGTH, LENGTH) != 0 || !test_bpe_same_text(&e, text, LENGTH);
        bpe_encoder_close(&e);
        bpe_free(&b);
    }
    check(bad == 0, "tokenizer: any bytes come back", "%d bytes by chance by each pattern, %d wrong",
        (int)LENGTH, bad);
    free(text);
}

// ================================================================================
// chunks, long pieces, special tokens

static void test_bpe_chunks(void) {
    static const size_t chunk[] = {1, 2, 3, 7, 64, 4096, 0};
    enum { LENGTH = 3000 };
    char* text = (char*)malloc(4 * LENGTH + 100);
    int cases = 0, differ = 0;
    for (int pattern = 0; pattern < BPE_PATTERN_COUNT; pattern++) {
        bpe b;
        bpe_encoder whole, parts;
        test_bpe_load(&b, "x.tiktoken", BPE_PATTERNS[pattern].name);
        for (int specials = 0; specials < 2; specials++) {
            bpe_encoder_open(&whole, &b, specials, test_bpe_err, sizeof test_bpe_err);
            bpe_encoder_open(&parts, &b, specials, test_bpe_err, sizeof test_bpe_err);
            for (int i = 0; i < (quick ? 7 : 140); i++, cases++) {
                size_t n =
                    test_bpe_text(1 + (int)test_bpe_random(i % 7 == 6 ? LENGTH : 40), text, NULL, NULL);
                for (int j = 0; j < 3 && n > 20; j++)   // special tokens, whole and broken off
                    memcpy(text + test_bpe_random((uint32_t)n - 13), "<|endoftext|>", 6 + test_bpe_random(8));
                test_bpe_encode(&whole, text, n, n);
                test_bpe_encode(&parts, text, n, chunk[i % 7]);
                differ += whole.tokens != parts.tokens || !test_bpe_same_text(&whole, text, n) ||
                    memcmp(whole.token, parts.token, whole.tokens * sizeof *whole.token) != 0;
            }
            bpe_encoder_close(&whole);
            bpe_encoder_close(&parts);
        }
        bpe_free(&b);
    }
    check(differ == 0, "tokenizer: text in chunks gives the tokens of the whole", "%d texts, %d differ",
        cases, differ);
    free(text);
}

// Whether the tokens of a text are those of its two halves.
static int test_bpe_halves(bpe_encoder* e, const char* text, size_t n, size_t cut, uint32_t* whole) {
    int rc = test_bpe_encode(e, text, n, 0);
    size_t all = e->tokens;
    memcpy(whole, e->token, all * sizeof *whole);
    rc = rc || test_bpe_encode(e, text, cut, 0);
    size_t front = e->tokens;
    if (rc || front > all || memcmp(whole, e->token, front * sizeof *whole) != 0) return 0;
    rc = test_bpe_encode(e, text + cut, n - cut, 0);
    return rc == 0 && front + e->tokens == all &&
        memcmp(whole + front, e->token, e->tokens * sizeof *whole) == 0;
}

// At each place that bpe_cut allows, in texts of all kinds of characters, of bytes that are none, and of
// special tokens whole and in parts; that there are few is a failure too.
static void test_bpe_cuts(void) {
    enum { TEXTS = 1500, MOST = 60 };
    static const char* const seen[] = {
        "<|endoftext|>", "<|endof", "text|>", "\xF0\x9F", "\x80", "\xFF ", "e|> "};
    int wrong = 0;
    long cuts = 0, places = 0;
    for (int k = 0; k < 2 * BPE_PATTERN_COUNT; k++) {
        bpe b;
        bpe_encoder e;
        test_bpe_load(&b, "x.tiktoken", BPE_PATTERNS[k / 2].name);
        bpe_encoder_open(&e, &b, k % 2, test_bpe_err, sizeof test_bpe_err);
        for (int i = 0; i < TEXTS; i++) {
            char text[8 * MOST];
            uint32_t code[MOST], whole[8 * MOST];
            char kind[MOST];
            size_t n = 0;
            for (int part = 0; part < 4; part++) {
                n += test_bpe_text((int)test_bpe_random(MOST / 6), text + n, code, kind);
                const char* word = seen[test_bpe_random(7)];
                if (test_bpe_random(3) == 0) n += (size_t)sprintf(text + n, "%s", word);
            }
            places += (long)n;
            size_t margin = k % 2 ? 13 : 4, end = n;   // what is looked at behind a place
            for (size_t cut; (cut = bpe_cut(&b, k % 2, text, end, 0)) > 0; end = cut + margin - 1) {
                cuts++;
                wrong += cut >= end || !test_bpe_halves(&e, text, n, cut, whole);
            }
        }
        bpe_encoder_close(&e);
        bpe_free(&b);
    }
    check(wrong == 0 && cuts > places / 40, "tokenizer: text cut where bpe_cut says has the same tokens",
        "%ld cuts in %ld bytes, %d wrong", cuts, places, wrong);
}

// A long document of short pieces must not be held.
static void test_bpe_memory(void) {
    enum { CHUNK = 4096 };
    static char text[4 * CHUNK];
    bpe b;
    bpe_encoder e;
    size_t bytes = 0, most = 0;
    int rc = 0;
    test_bpe_load(&b, "x.tiktoken", "gpt2");
    bpe_encoder_open(&e, &b, 1, test_bpe_err, sizeof test_bpe_err);
    for (int i = 0; i < 500 && rc == 0; i++) {
        size_t n = test_bpe_text(CHUNK, text, NULL, NULL);
        rc = bpe_encode(&e, text, n, 0, test_bpe_err, sizeof test_bpe_err);
        bytes += n;
        e.tokens = 0;
        size_t held = e.held_capacity + 4 * e.capacity + 24 * e.work_capacity;
        if (held > most) most = held;
    }
    check(rc == 0 && most < 200000, "tokenizer: memory does not grow with a document",
        "%zu bytes of text, at most %zu held", bytes, most);
    bpe_encoder_close(&e);
    bpe_free(&b);
}

// Ten times the text may take thirty times as long: n log n, and a cache that no longer holds it.
static void test_bpe_runs(void) {
    static const char* const what[] = {
        "equal letters", "spaces", "letters by chance", "bytes that are no UTF-8"};
    enum { LENGTH = 100000 };
    char* text = (char*)malloc(10 * LENGTH);
    bpe b;
    bpe_encoder e;
    test_bpe_load(&b, "x.tiktoken", "gpt2");
    bpe_encoder_open(&e, &b, 0, test_bpe_err, sizeof test_bpe_err);
    for (int i = 0; i < 4; i++) {
        double took[2] = {0, 0};
        int bad = 0;
        for (int j = 0; j < 10 * LENGTH; j++)
            text[j] = i == 0 ? 'a' : i == 1 ? ' ' : i == 2 ? "aetslrv"[test_bpe_random(7)] : '\xFF';
        for (int round = 0; round < 2; round++) {
            size_t n = round ? 10 * LENGTH : LENGTH;
            double start = test_bpe_seconds();
            bad += test_bpe_encode(&e, text, n, 64) != 0;
            took[round] = test_bpe_seconds() - start;
            bad += !test_bpe_same_text(&e, text, n);
        }
        check(bad == 0 && took[1] < 30 * took[0] + 0.5,
            "tokenizer: a piece of n bytes takes no n squared steps",
            "%s: %d in %.1f ms, ten times that in %.1f ms", what[i], (int)LENGTH, 1e3 * took[0],
            1e3 * took[1]);
    }
    bpe_encoder_close(&e);
    bpe_free(&b);
    free(text);
}

static void test_bpe_specials(void) {
    static const char text[] = "a<|endoftext|><|endoftext|> a<|endoftext|";
    bpe b;
    bpe_encoder e;
    int found[2] = {0, 0}, back = 0;
    test_bpe_load(&b, "json", NULL);
    for (int specials = 0; specials < 2; specials++) {
        bpe_encoder_open(&e, &b, specials, test_bpe_err, sizeof test_bpe_err);
        test_bpe_encode(&e, text, strlen(text), 0);
        for (size_t i = 0; i < e.tokens; i++) found[specials] += e.token[i] == b.eot;
        back += test_bpe_same_text(&e, text, strlen(text));
        bpe_encoder_close(&e);
    }
    check(found[0] == 0 && found[1] == 2 && back == 2,
        "tokenizer: special tokens in a text are text unless asked for", "%d, and %d when asked", found[0],
        found[1]);
    bpe_free(&b);
}

// Token by token of one byte each, only whole characters come out, and bytes that are none at once.
static void test_bpe_decoding(void) {
    static const char text[] =
        "a\xC3\xA9\xE6\xBC\xA2\xF0\x9F\x98\x80\xF0\x9F!\xED\xA0\x80\xC3\xF4\x90\xE0\x9F.\xF0\x9F\x98";
    static const int out_at_once[] = {
        1, 0, 2, 0, 0, 3, 0, 0, 0, 4, 0, 0, 3, 0, 2, 1, 0, 1, 2, 0, 2, 1, 0, 0, 0};
    unsigned char out[BPE_MAX_TOKEN + 4], all[64];
    size_t count = 0;
    int n = (int)sizeof text - 1, wrong = 0;
    bpe b;
    bpe_decoder d;
    memset(&d, 0, sizeof d);
    test_bpe_load(&b, "json", NULL);
    for (int i = 0; i < n; i++) {
        long got = bpe_decode(&b, &d, b.byte[(unsigned char)text[i]], out);
        wrong += got != out_at_once[i];
        if (got > 0) memcpy(all + count, out, (size_t)got), count += (size_t)got;
    }
    long rest = bpe_decode_end(&d, all + count);
    wrong += rest != 3 || (int)count + rest != n || memcmp(all, text, (size_t)n) != 0;
    wrong += bpe_decode(&b, &d, b.vocab_size, out) != -1;
    check(wrong == 0, "tokenizer: decoding gives whole characters, and other bytes as they are",
        "%d bytes, %d wrong", n, wrong);
    bpe_free(&b);
}

// ================================================================================
// saving, refusals

static void test_bpe_saving(void) {
    bpe b, c;
    int same = 0, rc, again;
    test_bpe_load(&b, "x.tiktoken", "gpt2");
    rc = bpe_save(&b, test_bpe_path("saved"), 1024, test_bpe_err, sizeof test_bpe_err);
    for (int i = 0; i < 3; i++) {
        test_bpe_load(&c, i == 0 ? "saved" : i == 1 ? "saved/vocab.json" : "saved/tokenizer.json", NULL);
        same += c.fingerprint == b.fingerprint;
        bpe_free(&c);
    }
    again = bpe_save(&b, test_bpe_path("saved"), 0, test_bpe_err, sizeof test_bpe_err);
    check(rc == 0 && same == 3 && again == -1 && strstr(test_bpe_err, "tokenizer.json"),
        "tokenizer: what is saved reads back the same, and nothing is replaced", "%d forms; then: %s", same,
        test_bpe_err);
    bpe_free(&b);
}

typedef struct {
    const char *file, *from, *to;   // the text `from` of the file is replaced
    const char* part;               // what the message must say
} test_bpe_fault;

static const test_bpe_fault TEST_BPE_FAULTS[] = {
    {"json/tokenizer.json", "\"type\":\"BPE\"", "\"type\":\"WordPiece\"", "WordPiece"},
    {"json/tokenizer.json", "\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}", "NFC"},
    {"json/tokenizer.json", "\"dropout\":null", "\"dropout\":0.1", "dropout"},
    {"json/tokenizer.json", "\"dropout\":null", "\"byte_fallback\":true", "byte_fallback"},
    {"json/tokenizer.json", "\"dropout\":null", "\"end_of_word_suffix\":\"</w>\"", "end_of_word_suffix"},
    {"json/tokenizer.json", "\"dropout\":null", "\"novelty\":1", "novelty"},
    {"json/tokenizer.json", "\"version\":\"1.0\"", "\"truncation\":{\"max_length\":8}", "truncation"},
    {"json/tokenizer.json", "\"add_prefix_space\":false", "\"add_prefix_space\":true", "add_prefix_space"},
    {"json/tokenizer.json", "\"add_prefix_space\":false", "\"add_prefix_space\":false,\"use_regex\":false",
        "use_regex"},
    {"json/tokenizer.json", "\"type\":\"ByteLevel\"", "\"type\":\"Metaspace\"", "Metaspace"},
    {"json/tokenizer.json", "\"special\":true", "\"special\":false", "not special"},
    {"json/tokenizer.json", "\"special\":true", "\"special\":true,\"lstrip\":true", "lstrip"},
    {"json/tokenizer.json", "<|endoftext|>", "<|end|>", "556"},
    {"json/tokenizer.json",
        "\"decoder\":", "\"decoder\":{\"type\":\"WordPiece\"},\"post_processor\":", "WordPiece"},
    {"json/tokenizer.json", "\"decoder\":",
        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"special_tokens\":{\"<s>\":{}}},\"decoder\":",
        "with special tokens"},
    {"json/tokenizer.json", "\"merges\":[", "\"merges\":[\"a\",", "merge 1"},
    {"json/tokenizer.json", "\"merges\":[", "\"merges\":[[\"a\",\"a\",\"a\"],", "merge 1"},
    {"json/tokenizer.json", "\"merges\":[", "\"merges\":[", "not JSON"},   // cut short there
    {"json/tokenizer.json", "\"vocab\":{", "\"vocab\":{\"\\u0144\": 557, ", "spells no bytes"},
    {"pattern.json", "\\\\p{N}{1,3}", "\\\\p{N}{1,2}", "not known"},
    {"pattern.json", "\\\\p{N}{1,3}|", "\\\\p{N}{1,3}+|", "not known"},
    {"pattern.json", "Isolated", "MergedWithNext", "MergedWithNext"},
    {"pattern.json", "\"use_regex\":false", "\"use_regex\":true", "use_regex"},
    {"vocab/vocab.json", "\"a\": 158, ", "", "0x61"},
    {"vocab/vocab.json", "\"a\": 158", "\"a\": 159", "159 is there twice"},
    {"vocab/vocab.json", "\"a\": 158", "\"a\": 1048576", "1048576"},
    {"vocab/vocab.json", "\"a\": 158", "\"a\": -1", "id is expected"},
    {"x.tiktoken", "YQ== 158", "YQ= 158", "line 159"},
    {"x.tiktoken", "YQ== 158", "YR== 158", "line 159"},
    {"x.tiktoken", "YQ== 158", "YQ== 157", "157 is there twice"},
    {"x.tiktoken", "YQ== 158", "YQ==", "line 159"},
    {"x.tiktoken", "YQ== 158", "YWF6enl4cXc= 158", "0x61"},
};

// Writes `broken`: a file in which the text `from` is replaced by `to`, or which ends there where both are
// the same. Returns whether the text is there.
static int test_bpe_break(const char* file, const char* from, const char* to, const char* name) {
    size_t n;
    bpe_reader r = {NULL, test_bpe_path(file), test_bpe_err, sizeof test_bpe_err, 0, 0};
    char* text = bpe_read(&r, &n, NULL);
    char* at = text ? strstr(text, from) : NULL;
    FILE* f = test_bpe_create(name);
    if (at) {
        fwrite(text, 1, (size_t)(at - text), f);
        fputs(to, f);
        if (strcmp(from, to) != 0) fputs(at + strlen(from), f);
    }
    fclose(f);
    free(text);
    test_bpe_err[0] = 0;
    return at != NULL;
}

// Writes the file with the fault and reads it. 1 if it is refused in one line that says what is wrong.
static int test_bpe_refuses(const test_bpe_fault* fault) {
    bpe b;
    int vocab = strncmp(fault->file, "vocab", 5) == 0;   // merges.txt must be beside it
    const char* name = vocab ? "vocab/broken" : "broken";
    int there = test_bpe_break(fault->file, fault->from, fault->to, name);
    const char* pattern = strstr(fault->file, "tiktoken") ? "gpt2" : NULL;
    int rc = bpe_load(&b, test_bpe_path(name), pattern, test_bpe_err, sizeof test_bpe_err);
    int ok = there && rc == -1 && strstr(test_bpe_err, fault->part) && strstr(test_bpe_err, "broken") &&
        !strchr(test_bpe_err, '\n');
    if (!ok) printf("  %s, %s: returned %d, message: %s\n", fault->file, fault->to, rc, test_bpe_err);
    if (rc == 0) bpe_free(&b);
    return ok;
}

// With ignore_merges, a piece that is a token is that token though no merge makes it. Where every token is
// made by merges it changes nothing, and not the fingerprint. Nor does a template without special tokens.
static void test_bpe_whole(void) {
    static const char* const with[] = {"\"ignore_merges\":false,", "\"ignore_merges\":true,"};
    static const char from[] = "\"dropout\":null,", extra[] = "\"vocab\":{\"zqz\": 557, ";
    char to[100];
    uint64_t fingerprint[2];
    size_t tokens[2];
    bpe b;
    bpe_encoder e;
    test_bpe_break("json/tokenizer.json", "\"decoder\":",
        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\",\"type_"
        "id\":0}}],"
        "\"special_tokens\":{}},\"decoder\":",
        "template.json");
    test_bpe_load(&b, "template.json", NULL);
    uint64_t processed = b.fingerprint;
    bpe_free(&b);
    for (int whole = 0; whole < 2; whole++) {
        test_bpe_break("json/tokenizer.json", from, with[whole], "whole.json");
        test_bpe_load(&b, "whole.json", NULL);
        fingerprint[whole] = b.fingerprint;
        bpe_free(&b);
        snprintf(to, sizeof to, "%s%s", with[whole], extra);
        test_bpe_break("json/tokenizer.json", "\"dropout\":null,\"vocab\":{", to, "whole.json");
        test_bpe_load(&b, "whole.json", NULL);
        bpe_encoder_open(&e, &b, 0, test_bpe_err, sizeof test_bpe_err);
        test_bpe_encode(&e, "zqz", 3, 3);
        tokens[whole] = e.tokens;
        bpe_encoder_close(&e);
        bpe_free(&b);
    }
    check(processed == fingerprint[0], "tokenizer: a template without special tokens changes nothing",
        "%016" PRIx64, processed);
    check(tokens[0] == 3 && tokens[1] == 1 && fingerprint[0] == fingerprint[1],
        "tokenizer: ignore_merges takes whole pieces, and counts only where it changes something",
        "%zu tokens, with it %zu", tokens[0], tokens[1]);
}

// Of two special tokens where one starts as the other, the longer is taken, also when text comes byte by
// byte.
static void test_bpe_longest(void) {
    static const char one[] = "a<|endoftext|>1 a<|endoftext|>2<|endoftext|>12<|endoftext|>1";
    static const uint32_t want[] = {558, 556, 557, 558};
    enum { TIMES = 40, LENGTH = (int)sizeof one - 1 };
    char to[300], text[TIMES * LENGTH];
    bpe b;
    bpe_encoder e;
    int wrong = 0;
    for (int i = 0; i < TIMES; i++) memcpy(text + i * LENGTH, one, LENGTH);
    snprintf(to, sizeof to,
        "%s,{\"id\":557,\"content\":\"<|endoftext|>12\",\"special\":true},"
        "{\"id\":558,\"content\":\"<|endoftext|>1\",\"special\":true}",
        test_bpe_special);
    test_bpe_break("json/tokenizer.json", test_bpe_special, to, "longest.json");
    test_bpe_load(&b, "longest.json", NULL);
    bpe_encoder_open(&e, &b, 1, test_bpe_err, sizeof test_bpe_err);
    for (size_t chunk = 0; chunk < 100; chunk++) {
        size_t found = 0;
        wrong += test_bpe_encode(&e, text, sizeof text, chunk) != 0;
        for (size_t i = 0; i < e.tokens; i++)
            if (e.token[i] >= 556) wrong += e.token[i] != want[found++ % 4];
        wrong += found != 4 * TIMES;
    }
    check(wrong == 0, "tokenizer: the longest special token is taken",
        "%d bytes in chunks of 1 to 99 bytes, %d wrong", (int)sizeof text, wrong);
    bpe_encoder_close(&e);
    bpe_free(&b);
}

static void test_bpe_refusals(void) {
    int count = (int)(sizeof TEST_BPE_FAULTS / sizeof TEST_BPE_FAULTS[0]), refused = 0;
    for (int i = 0; i < count; i++) refused += test_bpe_refuses(TEST_BPE_FAULTS + i);
    check(
        refused == count, "tokenizer: what is not understood is refused by name", "%d of %d", refused, count);
    bpe b;
    mkfifo(test_bpe_path("fifo"), 0666);
    mkdir(test_bpe_path("empty"), 0777);
    static const struct {
        const char *file, *pattern, *part;
    } other[] = {{"fifo", NULL, "regular"}, {"empty", NULL, "neither"}, {"absent", NULL, "No such file"},
        {"x.tiktoken", NULL, "556 ranks"}, {"x.tiktoken", "gpt3", "gpt3"}, {"json", "gpt2", "pattern"}};
    refused = 0;
    for (int i = 0; i < 6; i++) {
        int rc =
            bpe_load(&b, test_bpe_path(other[i].file), other[i].pattern, test_bpe_err, sizeof test_bpe_err);
        refused += rc == -1 && strstr(test_bpe_err, other[i].part) && strstr(test_bpe_err, other[i].file);
    }
    check(refused == 6, "tokenizer: a wrong file, folder or pattern is refused", "%d of 6", refused);
}

// Bytes changed by chance: refused or read, and what is read can encode.
static void test_bpe_damage(void) {
    static const char* const files[] = {"x.tiktoken", "json/tokenizer.json", "pattern.json"};
    int read = 0, refused = 0, bad = 0, rounds = quick ? 20 : 200;
    for (int i = 0; i < 3 * rounds; i++) {
        size_t n;
        bpe b;
        bpe_reader r = {NULL, test_bpe_path(files[i % 3]), test_bpe_err, sizeof test_bpe_err, 0, 0};
        char* text = bpe_read(&r, &n, NULL);
        for (uint32_t j = 0; text && j < 1 + test_bpe_random(3); j++)
            text[test_bpe_random((uint32_t)n)] = "\"\\{}[],:0 9a=\n\xFF"[test_bpe_random(15)];
        FILE* f = test_bpe_create("broken");
        if (text) fwrite(text, 1, test_bpe_random(10) ? n : test_bpe_random((uint32_t)n), f);
        fclose(f);
        free(text);
        if (bpe_load(&b, test_bpe_path("broken"), i % 3 ? NULL : "gpt2", test_bpe_err, sizeof test_bpe_err)) {
            refused++;
            bad += strchr(test_bpe_err, '\n') != NULL || !strstr(test_bpe_err, "broken");
            continue;
        }
        bpe_encoder e;
        read++;
        bpe_encoder_open(&e, &b, 1, test_bpe_err, sizeof test_bpe_err);
        bad += test_bpe_encode(&e, "let's see\r\n 123", 15, 0) != 0 ||
            !test_bpe_same_text(&e, "let's see\r\n 123", 15);
        bpe_encoder_close(&e);
        bpe_free(&b);
    }
    check(bad == 0 && refused > 0, "tokenizer: damaged files are refused or sound",
        "%d refused, %d read, %d wrong", refused, read, bad);
}

// A folder for the tests with the files in it, and random numbers from the start. 0, or 1 and a test failed.
static int test_bpe_begin(void) {
    const char* base = getenv("TMPDIR");
    snprintf(test_bpe_folder, sizeof test_bpe_folder, "%s/gpt2_sp_bpe_XXXXXX",
        base && *base && strlen(base) < 400 ? base : "/tmp");
    if (!mkdtemp(test_bpe_folder)) {
        check(0, "tokenizer: a folder for the tests is made", "%s: %s", test_bpe_folder, strerror(errno));
        return 1;
    }
    test_bpe_state = 1;
    test_bpe_train();
    test_bpe_write_files();
    return 0;
}

static void test_bpe(void) {
    if (test_bpe_begin()) return;
    test_bpe_forms();
    test_bpe_oracle();
    test_bpe_pieces();
    test_bpe_bytes();
    test_bpe_chunks();
    test_bpe_cuts();
    test_bpe_memory();
    test_bpe_runs();
    test_bpe_specials();
    test_bpe_decoding();
    test_bpe_saving();
    test_bpe_whole();
    test_bpe_longest();
    test_bpe_refusals();
    test_bpe_damage();
    int rc = nftw(test_bpe_folder, test_data_remove, 16, FTW_DEPTH | FTW_PHYS);
    check(rc == 0, "tokenizer: the tests' folder is removed", "%d", rc);
}

#endif
