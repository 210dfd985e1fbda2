// fuzz_tok.c: feeds damaged token shards and JSON lines to data/tok.h and data/text.h.
//
//     clang -g -O1 -fsanitize=fuzzer,address,undefined dev/fuzz_tok.c -o build/fuzz_tok -lz && build/fuzz_tok -max_len=4096
//     cc -g -O1 -DSTANDALONE -fsanitize=address,undefined dev/fuzz_tok.c -o build/fuzz_tok -lz && build/fuzz_tok [rounds]
//
// The second needs no libFuzzer: it makes a fixed series of mutations of valid files, by default 20000
// rounds, and exits with 1 if a damaged .tok was read without an error. Both abort at the first wrong result.
//
// The first byte of an input says what the rest is: bit 0 JSON lines (else a shard), bit 1 make all CRCs of
// the shard right again, so that the damage gets past them, bit 2 take a file without magic for raw u16.
#define TEXT_MAX_LINE ((size_t)4096)   // so that the limit is met
#include "../data/tok.h"
#include "../data/text.h"
#ifdef __linux__
#include <sys/mman.h>
#endif

static void demand(int ok, const char* what) {
    if (ok) return;
    fprintf(stderr, "fuzz_tok: %s\n", what);
    abort();
}

// Puts the bytes into a file that has a path but, on Linux, no place on a disk. Returns its descriptor.
static int fuzz_file(const unsigned char* bytes, size_t length, char* path, size_t path_size) {
#ifdef __linux__
    int fd = memfd_create("fuzz_tok", MFD_CLOEXEC);
    snprintf(path, path_size, "/proc/self/fd/%d", fd);
#else
    snprintf(path, path_size, "/tmp/fuzz_tok_XXXXXX");
    int fd = mkstemp(path);
#endif
    demand(fd >= 0 && (length == 0 || write(fd, bytes, length) == (ssize_t)length) &&
            lseek(fd, 0, SEEK_SET) == 0,
        "no file to work with");
    return fd;
}

static void fuzz_file_close(int fd, const char* path) {
    close(fd);
#ifndef __linux__
    unlink(path);
#endif
    (void)path;
}

// Makes the CRCs right of whatever blocks and indexes the header points to inside the file.
static void fuzz_fix(unsigned char* b, uint64_t size) {
    if (size < TOK_HEADER || memcmp(b, TOK_MAGIC, 8) != 0) return;
    uint64_t documents = tok_get_le(b + 40, 8), blocks = tok_get_le(b + 48, 8),
             block_index = tok_get_le(b + 64, 8), document_index = tok_get_le(b + 72, 8);
    if (block_index <= size && blocks <= (size - block_index) / 16) {
        for (uint64_t i = 0; i < blocks; i++) {
            unsigned char* e = b + block_index + 16 * i;
            uint64_t at = tok_get_le(e, 8), bytes = tok_get_le(e + 8, 4);
            if (at <= size && bytes <= size - at) tok_put_le(e + 12, tok_crc(0, b + at, bytes), 4);
        }
        tok_put_le(b + 80, tok_crc(0, b + block_index, 16 * blocks), 4);
    }
    if (document_index <= size && documents <= (size - document_index) / 8)
        tok_put_le(b + 84, tok_crc(0, b + document_index, 8 * documents), 4);
    tok_put_le(b + 92, tok_crc(0, b, 92), 4);
}

// Opens and reads a shard in two ways and compares them. 0 = whole, -1 = refused.
static int fuzz_shard(const unsigned char* bytes, size_t length, int format) {
    char path[64], err[512];
    int fd = fuzz_file(bytes, length, path, sizeof path);
    tok_shard s;
    tok_cursor c, d;
    memset(&c, 0, sizeof c);
    memset(&d, 0, sizeof d);
    err[0] = 0;
    int rc = tok_open(&s, path, format, err, sizeof err);
    if (rc == 0) {
        uint64_t n = s.tokens < 100000 ? s.tokens : 100000, first = s.tokens - n;
        int32_t *all = (int32_t*)malloc(n * sizeof *all), *part = (int32_t*)malloc(n * sizeof *part);
        demand(all && part && n > 0, "opened without tokens, or no memory");
        rc = tok_read(&s, &c, first, n, all, err, sizeof err);
        if (rc == 0) rc = tok_index_documents(&s, err, sizeof err);
        if (rc == 0) {
            demand(s.documents >= 1 && s.document_start[0] == 0 && s.document_start[s.documents] == s.tokens,
                "document index");
            for (uint64_t i = 0; i < s.documents; i++)
                demand(s.document_start[i] < s.document_start[i + 1], "document index order");
            for (uint64_t i = 0; i < n; i++)
                demand(all[i] >= 0 && (uint32_t)all[i] < s.vocab_size, "token out of range");
            for (uint64_t step = 1 + n / 7, at = 0; at < n; at += step) {
                uint64_t from = n - at < step ? 0 : n - at - step;   // from behind
                demand(tok_read(&s, &d, first + from, n - at - from, part, err, sizeof err) == 0 &&
                        memcmp(part, all + from, (n - at - from) * sizeof *part) == 0,
                    "two ways of reading differ");
            }
        }
        free(all);
        free(part);
        tok_close(&s);
    }
    demand((rc == 0) == (err[0] == 0) && !strchr(err, '\n'), "return code and message disagree");
    tok_cursor_free(&c);
    tok_cursor_free(&d);
    fuzz_file_close(fd, path);
    return rc;
}

// Every byte of a document is read; it must lie within the limit.
static int fuzz_text(void* user, const text_piece* piece) {
    uint64_t* sum = (uint64_t*)user;
    int begins = piece->flags & TEXT_BEGIN, ends = piece->flags & TEXT_END;
    demand(piece->length <= TEXT_MAX_LINE && piece->path && piece->line > 0, "text given");
    demand(piece->length > 0 || (ends && !begins), "a piece of nothing");
    demand((sum[2] != 0) == !begins, "a document begins once, and ends before the next");
    sum[1] += ends != 0;
    sum[2] = !ends;
    for (size_t i = 0; i < piece->length; i++) sum[0] += (unsigned char)piece->bytes[i];
    return 0;
}

static int fuzz_json(const unsigned char* bytes, size_t length) {
    char path[64], err[512], *buffer = NULL;
    int fd = fuzz_file(bytes, length, path, sizeof path);
    uint64_t sum[3] = {0, 0, 0};
    text_reader r;
    text_source source;
    memset(&r, 0, sizeof r);
    memset(&source, 0, sizeof source);
    r.document = fuzz_text;
    r.user = sum;
    r.err = err;
    r.err_size = sizeof err;
    source.path = "fuzz.jsonl";
    source.fd = fd;
    err[0] = 0;
    int rc = text_lines(&r, &source, &buffer);
    demand((rc == 0) == (err[0] == 0) && sum[1] == r.documents, "return code and message disagree");
    free(buffer);
    fuzz_file_close(fd, path);
    return rc;
}

#ifdef __cplusplus
extern "C"
#endif
    int
    LLVMFuzzerTestOneInput(const unsigned char* data, size_t size);

int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
    if (size == 0) return 0;
    if (data[0] & 1) {
        fuzz_json(data + 1, size - 1);
        return 0;
    }
    unsigned char* copy = (unsigned char*)malloc(size);
    demand(copy != NULL, "no memory");
    memcpy(copy, data + 1, size - 1);
    if (data[0] & 2) fuzz_fix(copy, size - 1);
    fuzz_shard(copy, size - 1, data[0] & 4 ? TOK_FORMAT_RAW_U16 : TOK_FORMAT_AUTO);
    free(copy);
    return 0;
}

#ifdef STANDALONE
static uint64_t fuzz_state = 1;

// xorshift64 (Marsaglia 2003)
static uint64_t fuzz_random(uint64_t below) {
    fuzz_state ^= fuzz_state << 13;
    fuzz_state ^= fuzz_state >> 7;
    fuzz_state ^= fuzz_state << 17;
    return fuzz_state % below;
}

// Changes 1 to 4 things; the buffer has space for 64 bytes more. Returns the new length.
static size_t fuzz_mutate(unsigned char* b, size_t length) {
    static const uint64_t values[] = {0, 1, 2, 4, 16, 255, 256, 257, 65535, 65536, 1 << 20, 0x7FFFFFFF,
        0x80000000, 0xFFFFFFFF, (uint64_t)1 << 48, (uint64_t)1 << 60, (uint64_t)1 << 63, UINT64_MAX - 15,
        UINT64_MAX};
    for (uint64_t k = 1 + fuzz_random(4); k > 0 && length > 8; k--) {
        uint64_t at = fuzz_random(length), bytes = fuzz_random(2) ? 8 : 4;
        switch (fuzz_random(8)) {
        case 0: b[at] ^= (unsigned char)(1 << fuzz_random(8)); break;
        case 1: b[at] = (unsigned char)fuzz_random(256); break;
        case 2:
            if (at > 8) length = at;
            break;
        case 3:
            memmove(b + at + 1, b + at, length - at);
            length++;
            break;
        case 4: b[at] = (unsigned char)"\"\\u{}[]:,\nD8\xFF"[fuzz_random(13)]; break;
        default:   // a number of the header or of an index, at its place
            at &= ~(uint64_t)3;
            if (at + bytes > length) break;
            if (fuzz_random(2))
                tok_put_le(b + at, values[fuzz_random(sizeof values / sizeof *values)], (int)bytes);
            else tok_put_le(b + at, tok_get_le(b + at, (int)bytes) + fuzz_random(9) - 4, (int)bytes);
        }
    }
    return length;
}

static size_t fuzz_slurp(const char* path, unsigned char* bytes, size_t size) {
    FILE* f = fopen(path, "rb");
    demand(f != NULL, "a shard just written");
    size_t n = fread(bytes, 1, size, f);
    fclose(f);
    unlink(path);
    return n;
}

int main(int argc, char** argv) {
    static const char json[] = "{\"a\": [1, -2.5e3, {\"b\": null}], \"text\": \"caf\\u00e9 \\ud83d\\ude00 "
                               "\\\"q\\\"\\n\", \"c\": true}\n\n"
                               "{\"text\": \"two\"}\r\n{\"completion\": \"b\", \"prompt\": \"a\"}\n"
                               "{\"messages\": [{\"role\": \"assistant\", \"content\": \"c\"}]}\n"
                               "{\"t\\u0065xt\": \"\xC3\xA9 three \\\\ \\/ \\ud83d\", "
                               "\"d\": {\"text\": 0}}\n";
    long rounds = argc > 1 ? atol(argv[1]) : 20000;
    char path[64] = "/tmp/fuzz_tok_XXXXXX", err[512];
    unsigned char seed[3][4096], b[8192];
    size_t length[3];
    for (int k = 0; k < 2; k++) {   // two valid shards, of 2 and of 4 bytes per token
        int32_t tokens[40];
        tok_writer w;
        int fd = mkstemp(path),
            rc = fd < 0 || close(fd) || unlink(path) ||   // an empty file is nothing that this program wrote
            tok_writer_open(&w, path, k ? 3 : 1, k ? 70000 : 257, k ? 69999 : 256, 16, err, sizeof err);
        for (int d = 0; rc == 0 && d < 4; d++) {
            for (int i = 0; i < 40; i++) tokens[i] = (int32_t)fuzz_random(k ? 69999 : 256);
            rc = tok_writer_add(&w, tokens, 10 * (uint64_t)d, err, sizeof err) ||
                tok_writer_end_document(&w, 100, err, sizeof err);
        }
        demand(rc == 0 && tok_writer_finish(&w, err, sizeof err) == 0, "writing a shard");
        length[k] = fuzz_slurp(path, seed[k], sizeof seed[k]);
        strcpy(path, "/tmp/fuzz_tok_XXXXXX");
        demand(fuzz_shard(seed[k], length[k], TOK_FORMAT_AUTO) == 0, "the shard as written");
    }
    memcpy(seed[2], json, length[2] = sizeof json - 1);
    demand(fuzz_json(seed[2], length[2]) == 0, "the lines as written");

    for (size_t n = 4090; n <= 4100;
         n++) {   // the longest line, with and without its newline: the limit, and beyond
        memset(b, ' ', sizeof b);
        memcpy(b + n - 12, "{\"text\":\"x\"}", 12);
        b[n] = '\n';
        demand((fuzz_json(b, n) == 0) == (n <= TEXT_MAX_LINE) &&
                (fuzz_json(b, n + 1) == 0) == (n <= TEXT_MAX_LINE),
            "the limit of a line");
    }

    long silent = 0, same = 0, fixed = 0, fixed_whole = 0, refused = 0, lines = 0, lines_whole = 0;
    for (long i = 0; i < rounds; i++) {
        int k = (int)fuzz_random(3), fix = (int)fuzz_random(2);
        memcpy(b, seed[k], length[k]);
        size_t n = fuzz_mutate(b, length[k]);
        if (k == 2) {
            lines++;
            lines_whole += fuzz_json(b, n) == 0;
        } else if (fix) {
            fuzz_fix(b, n);
            fixed++;
            fixed_whole += fuzz_shard(b, n, TOK_FORMAT_AUTO) == 0;
        } else if (n == length[k] && memcmp(b, seed[k], n) == 0) {
            same++;
        } else {
            int rc = fuzz_shard(b, n, TOK_FORMAT_AUTO);
            refused += rc != 0;
            silent += rc == 0;
        }
    }
    printf("fuzz_tok: %ld damaged shards: %ld refused, %ld accepted; %ld with CRCs made right: %ld refused, "
           "%ld whole; "
           "%ld files of JSON lines: %ld refused, %ld whole\n",
        rounds - same - fixed - lines, refused, silent, fixed, fixed - fixed_whole, fixed_whole, lines,
        lines - lines_whole, lines_whole);
    return silent != 0;
}
#endif
