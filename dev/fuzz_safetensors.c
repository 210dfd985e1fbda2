// fuzz_safetensors.c: throws bytes at the JSON and safetensors readers.
//
//   clang -g -O1 -fsanitize=fuzzer,address,undefined dev/fuzz_safetensors.c -o build/fuzz_safetensors -lm
//   build/fuzz_safetensors -max_total_time=120 build/corpus
//   cc -g -O1 -fsanitize=address,undefined -DSTANDALONE dev/fuzz_safetensors.c -o build/fuzz_safetensors -lm && build/fuzz_safetensors [mutations [seed]]
//
// An input whose first byte is odd is a header: the target puts its length in front and, after it, as many
// bytes of data as the second byte says, so that the JSON is reached. Any other input is a whole file after
// its first byte. Beyond memory errors it aborts when
//   validating a text and walking it disagree, or a value read from valid text breaks its own rules;
//   an accepted file is not consistent: sizes, order, lookup, reading every value;
//   the header of an accepted file, written anew, is not read back the same.

#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1
#endif
#include <stdlib.h>
#include <unistd.h>

#include "../data/safetensors.h"

#define MUST(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

static char path[ST_PATH_MAX];   // the file under test, made once
static int fd = -1;
static long accepted;

static void remove_file(void) { unlink(path); }

static void put_file(const void* a, size_t a_size, const void* b, size_t b_size, uint64_t total) {
    if (fd < 0) {
        const char* folder = getenv("TMPDIR");
        snprintf(path, sizeof(path), "%s/gpt2_sp_fuzz_XXXXXX", folder && *folder ? folder : "/tmp");
        fd = mkstemp(path);
        MUST(fd >= 0 && atexit(remove_file) == 0);
    }
    MUST(pwrite(fd, a, a_size, 0) == (ssize_t)a_size &&
        pwrite(fd, b, b_size, (off_t)a_size) == (ssize_t)b_size);
    MUST(ftruncate(fd, (off_t)total) == 0);
}

// Reads a valid value in every way, and walks into it.
static void read_value(json_span v, int depth) {
    char text[64], *copy = (char*)malloc(v.n + 1);
    uint64_t u = 0;
    int64_t i = 0;
    double d = 0;
    json_iter it;
    json_span key, inner;
    int is_u = json_u64(v, &u) == 0, is_i = json_i64(v, &i) == 0, is_d = json_double(v, &d) == 0, more;
    long length = json_string(v, text, sizeof(text)), whole = json_string(v, copy, v.n + 1);
    MUST(length <= (long)sizeof(text) - 1 &&
        (length < 0 || (length == whole && strcmp(text, copy) == 0 && json_equal(v, copy))));
    MUST(!is_u || v.n > JSON_MAX_NUMBER || is_d);
    MUST(!(is_u && is_i) || (uint64_t)i == u);
    MUST(!is_i || d == (double)i);
    MUST(!is_d || isfinite(d));
    if (whole >= 0) {   // what is read can be written and read again
        size_t at = 0, size = 6 * (size_t)whole + 3;
        char* quoted = (char*)malloc(size);
        MUST(json_append_string(quoted, size, &at, copy) == 0);
        json_span q = {quoted, at};
        MUST(json_validate(quoted, at, 1, NULL) == 0 && json_equal(q, copy));
        free(quoted);
    }
    free(copy);
    if (depth == 0 || (json_object(v, &it) && json_array(v, &it))) return;
    while ((more = json_next(&it, &key, &inner)) == 1) {
        MUST(json_validate(inner.s, inner.n, JSON_MAX_DEPTH, NULL) == 0);
        read_value(inner, depth - 1);
    }
    MUST(more == 0);
}

static void fuzz_json(const char* text, size_t len) {
    size_t where = 0;
    int valid = json_validate(text, len, JSON_MAX_DEPTH, &where) == 0, more;
    MUST(where <= len && (!valid || json_utf8_check(text, text + len) == text + len));
    json_span doc = {text, len}, key, v;
    json_iter it;
    if (json_object(doc, &it) == 0 || json_array(doc, &it) == 0) {
        while ((more = json_next(&it, &key, &v)) == 1) read_value(v, 3);
        MUST((more == 0) == valid && it.p >= text && it.p <= text + len);
        uint64_t u;
        int found = json_get_u64(text, len, "shape", &u);
        MUST(found >= -1 && found <= 1);
    }
}

static int by_offset(const void* a, const void* b) { return st_by_offset(a, b); }

static void fuzz_file(void) {
    st_file f, g;
    st_header h;
    char err[300] = "";
    if (st_open(&f, path, err, sizeof(err))) {
        MUST(err[0] && f.fd == -1 && f.tensors == NULL && f.metadata == NULL);
        return;
    }
    accepted++;
    uint64_t total = 0, bytes = 0;
    for (int i = 0; i < f.count; i++) {
        const st_tensor* t = &f.tensors[i];
        MUST(st_bytes(t->dtype, t->ndim, t->shape, &bytes) == 0 && bytes == t->end - t->begin &&
            t->end <= f.data_bytes);
        MUST(st_find(&f, t->name) == t && (i == 0 || strcmp(t[-1].name, t->name) < 0));
        uint64_t n = st_elements(t);
        float* out = (float*)malloc(n * 4 + 1);
        int bad = st_read_f32(&f, t, 0, n, out, err, sizeof(err));
        MUST(bad == (t->dtype <= ST_BF16 ? 0 : -1) && st_read_f32(&f, t, 1, n, out, err, sizeof(err)) == -1);
        free(out);
        total += bytes;
    }
    MUST(total == f.data_bytes);
    st_tensor* sorted = (st_tensor*)malloc(sizeof(st_tensor) * (size_t)f.count + 1);
    if (f.count) memcpy(sorted, f.tensors, sizeof(st_tensor) * (size_t)f.count);
    qsort(sorted, (size_t)f.count, sizeof(st_tensor), by_offset);
    unsigned char* head = NULL;
    size_t n = 0;
    st_header_init(&h);
    for (int i = 0; i < f.count; i++)
        MUST(st_header_add(&h, sorted[i].name, sorted[i].dtype, sorted[i].ndim, sorted[i].shape, err,
                 sizeof(err)) == 0);
    MUST(st_header_finish(&h, f.metadata, &head, &n, err, sizeof(err)) == 0 && n % 8 == 0);
    put_file(head, n, "", 0, n + total);
    MUST(st_open(&g, path, err, sizeof(err)) == 0 && g.count == f.count &&
        strcmp(g.metadata, f.metadata) == 0);
    for (int i = 0; i < f.count; i++) MUST(memcmp(&f.tensors[i], &g.tensors[i], sizeof(st_tensor)) == 0);
    free(head);
    free(sorted);
    st_header_free(&h);
    st_close(&g);
    st_close(&f);
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 2) return 0;
    if (data[0] & 1) {
        uint64_t length = size - 2;
        put_file(&length, 8, data + 2, size - 2, 8 + length + data[1]);
        fuzz_json((const char*)data + 2, size - 2);
    } else {
        put_file(data + 1, size - 1, "", 0, size - 1);
    }
    fuzz_file();
    return 0;
}

#ifdef STANDALONE

static uint64_t state;

// xorshift64*: a number below n
static size_t below(size_t n) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (size_t)((state * 0x2545F4914F6CDD1Du) >> 33) % n;
}

// One change of the text in buf: a byte, a token put in, a piece taken out, a piece doubled, a number
// replaced.
static size_t mutate(uint8_t* buf, size_t n, size_t max) {
    static const char* const tokens[] = {"{", "}", "[", "]", ",", ":", "\"", "\\u0000", "\\ud800", "\\\"",
        "0", "-1", "1e9", "18446744073709551615", "18446744073709551616", "4294967296", "\"dtype\"",
        "\"shape\"", "\"data_offsets\"", "\"__metadata__\"", "\"F64\"", "\"F8_E4M3\"", "\"a\"", "null",
        "true", " ", "\xC3\xA9", "\xED\xA0\x80", "\xFF", "[[[[[[[[", "{\"a\":{\"a\":", "[0,0]"};
    size_t at = n ? below(n) : 0, len = 0;
    const char* token = tokens[below(sizeof(tokens) / sizeof(tokens[0]))];
    switch (below(5)) {
    case 0:
        if (n) buf[at] = (uint8_t)(below(2) ? below(256) : buf[at] ^ (1u << below(8)));
        return n;
    case 1: len = 0; break;
    case 2:
        token = "";
        len = n ? below(n - at < 16 ? n - at : 16) + 1 : 0;
        break;
    case 3:
        len = n ? below(n - at) + 1 : 0;
        if (n + len > max) return n;
        memmove(buf + at + len, buf + at, n - at);
        return n + len;
    default:   // the number at or after this place
        while (at < n && (buf[at] < '0' || buf[at] > '9')) at++;
        while (at + len < n && buf[at + len] >= '0' && buf[at + len] <= '9') len++;
        token = tokens[10 + below(6)];
        break;
    }
    size_t put = strlen(token);
    if (len > n - at) len = n - at;
    if (n - len + put > max) return n;
    memmove(buf + at + put, buf + at + len, n - at - len);
    memcpy(buf + at, token, put);
    return n - len + put;
}

int main(int argc, char** argv) {
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":["
                                 "2,3],\"data_offsets\":[16,28]},"
                                 "\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]},\"c\":{"
                                 "\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[28,36]}}  ";
    long count = argc > 1 ? atol(argv[1]) : 20000, i;
    uint8_t buf[2048];
    state = argc > 2 ? strtoull(argv[2], NULL, 10) * 2 + 1 : 1;
    for (i = 0; i < count; i++) {
        size_t n = sizeof(header) - 1, changes = below(4);
        memcpy(buf + 2, header, n);
        for (; changes > 0; changes--) n = mutate(buf + 2, n, sizeof(buf) - 2);
        buf[0] = 1;
        buf[1] = (uint8_t)(below(8) ? 36 : below(256));
        if (i % 16 == 15) {   // a whole file whose length field, or whose end, is off
            uint64_t length = n + (below(2) ? below(64) : 0) - (below(2) ? below(64) : 0);
            if (below(8) == 0) length ^= (uint64_t)1 << below(64);
            memmove(buf + 9, buf + 2, n = n < sizeof(buf) - 9 - 36 ? n : sizeof(buf) - 9 - 36);
            memcpy(buf + 1, &length, 8);
            memset(buf + 9 + n, 7, 36);
            buf[0] = 0;
            n += 7 + below(37);
        }
        LLVMFuzzerTestOneInput(buf, n + 2);
    }
    printf("fuzz_safetensors: %ld mutations, %ld accepted as files, all consistent\n", i, accepted);
    return accepted > 0 ? 0 : 1;
}

#endif
