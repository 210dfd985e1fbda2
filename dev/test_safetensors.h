// test_safetensors.h: the tests of data/json.h and data/safetensors.h, included by test_gpt2_sp.c, as one
// function test_safetensors(), the group `safetensors`. Before including it, define
//     static void check(int ok, const char* name, const char* format, ...);
// which records one result and prints it with its figure. Its files lie in a folder of its own under $TMPDIR
// or /tmp.
//
// What is held: the readers take exactly the documents and files that tell one consistent story, refuse all
// others with a message that says why, and give numbers back bit for bit as they were written. Model files
// come from strangers: a header that lies must not make the reader look outside the file or allocate what it
// asks for, and a weight that is read a little wrong would show as nothing but a slightly worse model.

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../data/safetensors.h"

static char stt_path[ST_PATH_MAX];   // the one file all tests write

// Makes the file: n bytes of head, with its length in front when with_length, then data_bytes bytes that
// count.
static void stt_write(const void* head, size_t n, int with_length, size_t data_bytes) {
    FILE* f = fopen(stt_path, "wb");
    uint64_t length = n;
    if (f == NULL) return;   // the check that follows fails
    if (with_length) fwrite(&length, 1, 8, f);
    fwrite(head, 1, n, f);
    for (size_t i = 0; i < data_bytes; i++) fputc((int)(i & 255), f);
    fclose(f);
}

// Is what st_open accepted one consistent story? Reads every value there is, and one too many.
static int stt_consistent(const st_file* f) {
    struct stat s;
    uint64_t total = 0, bytes;
    char err[512];
    if (fstat(f->fd, &s) || f->data_start + f->data_bytes != (uint64_t)s.st_size) return 0;
    if (json_validate(f->metadata, strlen(f->metadata), JSON_MAX_DEPTH, NULL)) return 0;
    for (int i = 0; i < f->count; i++) {
        const st_tensor* t = &f->tensors[i];
        uint64_t n = st_elements(t);
        if (st_bytes(t->dtype, t->ndim, t->shape, &bytes) || bytes != t->end - t->begin ||
            t->end > f->data_bytes)
            return 0;
        if ((i > 0 && strcmp(t[-1].name, t->name) >= 0) || st_find(f, t->name) != t) return 0;
        double* out = (double*)malloc(n * 8 + 8);
        int floating = t->dtype <= ST_BF16, bad = st_read_f64(f, t, 0, n, out, err, sizeof(err));
        int beyond = st_read_f64(f, t, 1, n, out, err, sizeof(err)),
            after = st_read_f64(f, t, n + 1, 0, out, err, sizeof(err));
        free(out);
        if (bad != (floating ? 0 : -1) || beyond != -1 || after != -1) return 0;
        total += bytes;
    }
    return total == f->data_bytes;
}

// Opens the file. Returns 1 accepted and consistent, 0 refused with a message that names the file, -1 else.
static int stt_try(char* err, size_t err_size) {
    st_file f;
    err[0] = 0;
    if (st_open(&f, stt_path, err, err_size))
        return f.fd == -1 && f.tensors == NULL && strstr(err, "t.safetensors") ? 0 : -1;
    int ok = stt_consistent(&f);
    st_close(&f);
    st_close(&f);   // harmless
    return ok ? 1 : -1;
}

// One literal file that must be refused with a message that says why.
static void stt_refused(
    const char* what, const void* head, size_t n, int with_length, size_t data_bytes, const char* why) {
    char err[512], name[96];
    stt_write(head, n, with_length, data_bytes);
    int result = stt_try(err, sizeof(err));
    const char* from = strstr(err, "t.safetensors");
    snprintf(name, sizeof(name), "refused, and told why: %s", what);
    check(result == 0 && strstr(err, why) != NULL, name, "%.140s", from ? from : err);
}

// ---------------------------------------------------------------------------

static void stt_json_documents(void) {
    static const char* const good[] = {"0", "-0", " [ ] ", "{}", "[1,2]", "\"\"", "null", "true", "false",
        "1e5", "1E-5", "0.5e+10", "{\"a\":{\"b\":[null,{}]}}", "\"\\ud83d\\ude00 \\u00e9\"",
        "\"\xC3\xA9\xF0\x9F\x98\x80\x7F\"", "\t\r\n1\n"};
    static const char* const bad[] = {"", " ", "01", "+1", "1.", ".5", "1e", "1e+", "-", "--1", "0x1", "NaN",
        "Infinity", "nul", "nulll", "True", "[1,]", "[,1]", "[1 2]", "{\"a\":1,}", "{\"a\"}", "{\"a\" 1}",
        "{a:1}", "{1:1}", "{\"a\":}", "[1", "{", "{\"a\":1", "]", "\"", "\"a", "\"\\x\"", "\"\\u12\"",
        "\"\\u12g4\"", "\"\\ud83d\"", "\"\\ude00\"", "\"\\ud83d\\u0041\"", "\"\n\"", "'a'", "1 2", "{}{}",
        "[]x", "// c\n1", "\"\x80\"", "\"\xC0\xAF\"", "\"\xC1\xBF\"", "\"\xE0\x9F\xBF\"", "\"\xED\xA0\x80\"",
        "\"\xF0\x8F\xBF\xBF\"", "\"\xF4\x90\x80\x80\"", "\"\xF5\x80\x80\x80\"", "\"\xC3\"", "\"\xE2\x82\"",
        "\"\xFF\"", "\xEF\xBB\xBF{}", "\v1", "1\xC2\xA0", "[\"a\":1]", "{\"a\",1}"};
    int n_good = 0, n_bad = 0;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        if (json_validate(good[i], strlen(good[i]), JSON_MAX_DEPTH, NULL) == 0) n_good++;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (json_validate(bad[i], strlen(bad[i]), JSON_MAX_DEPTH, NULL) == -1) n_bad++;
    check(n_good == (int)(sizeof(good) / sizeof(good[0])), "json accepts valid documents", "%d", n_good);
    check(n_bad == (int)(sizeof(bad) / sizeof(bad[0])), "json refuses invalid documents", "%d", n_bad);
}

static void stt_json_depth(void) {
    int deep_ok = 0, deep_bad = 0;
    char deep[2 * JSON_MAX_DEPTH + 3];
    for (int levels = JSON_MAX_DEPTH; levels <= JSON_MAX_DEPTH + 1; levels++) {
        memset(deep, '[', (size_t)levels);
        memset(deep + levels, ']', (size_t)levels);
        json_span doc = {deep, (size_t)(2 * levels)}, v;
        json_iter it;
        int walk = json_array(doc, &it) ? -1 : json_next(&it, NULL, &v);
        int result = json_validate(deep, doc.n, JSON_MAX_DEPTH, NULL);
        if (levels == JSON_MAX_DEPTH) deep_ok = result == 0 && walk == 1;
        else deep_bad = result == -1 && walk == -1;
    }
    size_t where = 0;
    json_validate("[1,x]", 5, 4, &where);
    check(deep_ok && deep_bad, "json nests to its limit and no deeper", "%d levels accepted, %d refused",
        JSON_MAX_DEPTH, JSON_MAX_DEPTH + 1);
    check(where == 3, "json names the place of a fault", "byte %zu of [1,x]", where);
}

// Every code point in UTF-8, and every sequence of two bytes.
static void stt_json_utf8(void) {
    int code_points = 0, pairs = 0;
    for (long c = 0; c < 0x120000; c++) {
        char s[4];
        int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        s[0] = (char)(n == 1 ? c : n == 2 ? 0xC0 | c >> 6 : n == 3 ? 0xE0 | c >> 12 : 0xF0 | c >> 18);
        for (int i = 1; i < n; i++) s[i] = (char)(0x80 | ((c >> 6 * (n - 1 - i)) & 63));
        int want = c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF) ? 0 : n;
        code_points += json_utf8(s, s + n) == want && (n == 1 || json_utf8(s, s + n - 1) == 0);
    }
    for (int c = 0; c < 65536; c++) {
        char s[2];
        s[0] = (char)(c >> 8);
        s[1] = (char)c;
        pairs += json_utf8_check(s, s + 2) == s + 2;
    }
    check(code_points == 0x120000, "json takes the UTF-8 of every code point, of surrogates none",
        "%d of %d as they should be", code_points, 0x120000);
    check(pairs == 128 * 128 + 30 * 64, "json takes the pairs of bytes that are UTF-8 and no others",
        "%d valid of 65536, expected %d", pairs, 128 * 128 + 30 * 64);
}

static const struct {
    const char* text;
    int u, i, d;   // is it one?
    uint64_t u64;
    int64_t i64;
    double f64;
} STT_NUMBERS[] = {
    {"0", 1, 1, 1, 0, 0, 0.0},
    {"-0", 0, 1, 1, 0, 0, 0.0},
    {"7", 1, 1, 1, 7, 7, 7.0},
    {"-7", 0, 1, 1, 0, -7, -7.0},
    {"9007199254740993", 1, 1, 1, 9007199254740993u, 9007199254740993, 9007199254740992.0},
    {"9223372036854775807", 1, 1, 1, 9223372036854775807u, INT64_MAX, 9223372036854775808.0},
    {"9223372036854775808", 1, 0, 1, 9223372036854775808u, 0, 9223372036854775808.0},
    {"-9223372036854775808", 0, 1, 1, 0, INT64_MIN, -9223372036854775808.0},
    {"-9223372036854775809", 0, 0, 1, 0, 0, -9223372036854775808.0},
    {"18446744073709551615", 1, 0, 1, UINT64_MAX, 0, 18446744073709551616.0},
    {"18446744073709551616", 0, 0, 1, 0, 0, 18446744073709551616.0},
    {"99999999999999999999", 0, 0, 1, 0, 0, 1e20},
    {"1.5", 0, 0, 1, 0, 0, 1.5},
    {"1.0", 0, 0, 1, 0, 0, 1.0},
    {"1e3", 0, 0, 1, 0, 0, 1000.0},
    {"1e-05", 0, 0, 1, 0, 0, 1e-5},
    {"1e308", 0, 0, 1, 0, 0, 1e308},
    {"1e309", 0, 0, 0, 0, 0, 0.0},
    {"-1e999", 0, 0, 0, 0, 0, 0.0},
    {"1e-999", 0, 0, 1, 0, 0, 0.0},
    {"5e-324", 0, 0, 1, 0, 0, 5e-324},
    {"0.1", 0, 0, 1, 0, 0, 0.1},
    {"01", 0, 0, 0, 0, 0, 0.0},
    {"-01", 0, 0, 0, 0, 0, 0.0},
    {"+1", 0, 0, 0, 0, 0, 0.0},
    {"", 0, 0, 0, 0, 0, 0.0},
    {"-", 0, 0, 0, 0, 0, 0.0},
    {"1 ", 0, 0, 0, 0, 0, 0.0},
    {"\"1\"", 0, 0, 0, 0, 0, 0.0},
    {"true", 0, 0, 0, 0, 0, 0.0},
    {"0x10", 0, 0, 0, 0, 0, 0.0},
    {"inf", 0, 0, 0, 0, 0, 0.0},
};

static void stt_json_numbers(void) {
    int n = (int)(sizeof(STT_NUMBERS) / sizeof(STT_NUMBERS[0])), right = 0;
    for (int k = 0; k < n; k++) {
        const char* text = STT_NUMBERS[k].text;
        json_span v = {text, strlen(text)};
        uint64_t u = 0;
        int64_t i = 0;
        double d = 0;
        int ok = json_u64(v, &u) == STT_NUMBERS[k].u - 1 && u == STT_NUMBERS[k].u64;
        ok = ok && json_i64(v, &i) == STT_NUMBERS[k].i - 1 && i == STT_NUMBERS[k].i64;
        ok = ok && json_double(v, &d) == STT_NUMBERS[k].d - 1 && d == STT_NUMBERS[k].f64;
        if (!ok)
            check(0, "json reads a number as what it is", "%s read as %" PRIu64 ", %" PRId64 ", %g", text, u,
                i, d);
        right += ok;
    }
    check(right == n, "json reads numbers exactly up to their limits", "%d of %d", right, n);
    char digits[JSON_MAX_NUMBER + 2];
    memset(digits, '1', sizeof(digits));
    json_span longest = {digits, JSON_MAX_NUMBER}, longer = {digits, JSON_MAX_NUMBER + 1};
    double d;
    check(json_double(longest, &d) == 0 && json_double(longer, &d) == -1,
        "json takes the longest number and none longer", "%d characters accepted, one more refused",
        JSON_MAX_NUMBER);
}

// A document's fields by their names: found once, with the type that is asked for, or not at all.
static void stt_json_get(void) {
    const char* text = "{\"n\": 12, \"neg\":-3, \"lr\": 3e-4, \"name\": \"a\\n\\u00e9\\ud83d\\ude00\", "
                       "\"twice\":1, \"t\\u0077ice\":1,"
                       " \"list\": [1, [2], {\"x\": \"]\"}], \"on\": true}";
    size_t len = strlen(text);
    uint64_t u = 0;
    int64_t i = 0;
    double d = 0;
    char s[16], tight[9];
    int on = 0;
    int ok = json_get_u64(text, len, "n", &u) == 1 && u == 12 && json_get_i64(text, len, "neg", &i) == 1 &&
        i == -3;
    ok = ok && json_get_double(text, len, "lr", &d) == 1 && d == 3e-4 &&
        json_get_bool(text, len, "on", &on) == 1 && on == 1;
    ok = ok && json_get_string(text, len, "name", s, sizeof(s)) == 1 &&
        strcmp(s, "a\n\xC3\xA9\xF0\x9F\x98\x80") == 0;
    check(ok, "json_get finds a value of each type", "%d, %d, %g, %d", (int)u, (int)i, d, on);
    check(json_get_u64(text, len, "absent", &u) == 0 && json_get_u64(text, len, "twice", &u) == -1 &&
            json_get_u64(text, len, "neg", &u) == -1 && json_get_u64(text, len, "lr", &u) == -1 &&
            json_get_string(text, len, "n", s, sizeof(s)) == -1 &&
            json_get_u64(text, len - 1, "n", &u) == -1 && json_get_u64("{\"n\":1}x", 8, "n", &u) == -1 &&
            json_get_u64("[1]", 3, "n", &u) == -1,
        "json_get tells what is absent from what is twice, of another type, cut, trailing", "0 and -1");
    int fits = json_get_string(text, len, "name", tight, sizeof(tight)),
        short_of_one = json_get_string(text, len, "name", tight, 8);
    check(fits == 1 && short_of_one == -1, "json string fits its buffer or is refused",
        "8 bytes into 9: %d, into 8: %d", fits, short_of_one);

    json_span list, v;
    json_iter it;
    int elements = 0, more = json_get(text, len, "list", &list) == 1 ? json_array(list, &it) : -1;
    while (more >= 0 && (more = json_next(&it, NULL, &v)) == 1) elements++;
    check(more == 0 && elements == 3, "json walks an array to its end", "%d elements", elements);
}

// What the writer writes, the reader reads back; bytes that are no UTF-8 become U+FFFD.
static void stt_json_strings(void) {
    char raw[256], quoted[2048], back[1024];
    size_t at = 0;
    for (int c = 1; c < 128; c++) raw[c - 1] = (char)c;
    memcpy(raw + 127, "\xC3\xA9\xF0\x9F\x98\x80", 7);
    int wrote = json_append_string(quoted, sizeof(quoted), &at, raw);
    json_span q = {quoted, at};
    int ok = wrote == 0 && json_validate(quoted, at, 1, NULL) == 0 &&
        json_string(q, back, sizeof(back)) == (long)strlen(raw) && strcmp(raw, back) == 0 &&
        json_equal(q, raw);
    check(ok, "json string comes back as it was written", "%zu bytes as %zu", strlen(raw), at);
    const size_t needed = at + 1;
    size_t none = 0, all = 0;
    int too_small = 0;
    for (size_t size = 0; size < needed; size++)
        too_small += json_append_string(quoted, size, &none, raw) == -1 && none == 0;
    check(too_small == (int)needed && json_append_string(quoted, needed, &all, raw) == 0 && all == at,
        "json string is refused by every smaller buffer", "%d refused", too_small);
    at = 0;
    json_append_string(quoted, sizeof(quoted), &at, "a\xFF\xE2\x82z");
    check(strcmp(quoted, "\"a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBDz\"") == 0,
        "json writer mends what is not UTF-8", "%zu bytes", at);
    FILE* f = fopen(stt_path, "w+b");
    size_t got = 0;
    if (f) {
        json_write_string(f, raw);
        rewind(f);
        got = fread(quoted, 1, sizeof(quoted), f);
        fclose(f);
    }
    json_span w = {quoted, got};
    check(json_equal(w, raw), "json string goes to a stream as to a buffer", "%zu bytes", got);
}

// ---------------------------------------------------------------------------

enum { STT_N = 65536, STT_WIDE = 10 };
static const double STT_WIDE_VALUES[STT_WIDE] = {
    0.0, -0.0, 1.0 + 0x1p-24, 1.0 + 0x1p-24 + 0x1p-50, 1e300, -1e-300, 0x1p-149, 0x1.8p-150, INFINITY, 0.1};
static uint32_t stt_bits[STT_N];   // of the tensor "single"
static float stt_floats[STT_N];    // what is read
static double stt_doubles[STT_N];

// Writes all 65536 halves and bfloat16s, ten doubles, and a float for every upper half (infinities, quiet and
// signalling NaN among them) into one file. -1 if it cannot.
static int stt_conversions_write(char* err, size_t err_size) {
    st_header h;
    unsigned char* head = NULL;
    size_t n = 0;
    uint64_t many[1] = {STT_N}, few[1] = {STT_WIDE};
    st_header_init(&h);
    int bad = st_header_add(&h, "half", ST_F16, 1, many, err, err_size) ||
        st_header_add(&h, "bfloat", ST_BF16, 1, many, err, err_size) ||
        st_header_add(&h, "wide", ST_F64, 1, few, err, err_size) ||
        st_header_add(&h, "single", ST_F32, 1, many, err, err_size) ||
        st_header_finish(&h, NULL, &head, &n, err, err_size);
    FILE* file = bad ? NULL : fopen(stt_path, "wb");
    if (file) {
        fwrite(head, 1, n, file);
        for (unsigned i = 0; i < 2 * STT_N; i++) {
            uint16_t half = (uint16_t)i;
            fwrite(&half, 1, 2, file);
        }
        fwrite(STT_WIDE_VALUES, 1, sizeof(STT_WIDE_VALUES), file);
        for (uint32_t i = 0; i < STT_N; i++) stt_bits[i] = i * 65537u;
        fwrite(stt_bits, 1, sizeof(stt_bits), file);
        fclose(file);
    }
    st_header_free(&h);
    free(head);
    return file ? 0 : -1;
}

// What the bits of a half or bfloat16 stand for, by the definition.
static double stt_sixteen(int bits, int exponent_bits, int fraction_bits) {
    int top = (1 << exponent_bits) - 1, bias = top / 2;
    int e = (bits >> fraction_bits) & top, m = bits & ((1 << fraction_bits) - 1);
    double value = e == 0 ? ldexp(m, 1 - bias - fraction_bits)
                          : ldexp(m + (1 << fraction_bits), e - bias - fraction_bits);
    if (e == top) value = m ? NAN : INFINITY;
    return bits >> 15 ? -value : value;
}

static void stt_convert_sixteens(const st_file* f, int kind) {
    int right = 0;
    char err[512] = "";
    const st_tensor* t = st_find(f, kind ? "bfloat" : "half");
    int bad = st_read_f32(f, t, 0, STT_N, stt_floats, err, sizeof(err)) ||
        st_read_f64(f, t, 0, STT_N, stt_doubles, err, sizeof(err));
    for (int i = 0; i < STT_N && !bad; i++) {
        double value = kind ? stt_sixteen(i, 8, 7) : stt_sixteen(i, 5, 10), x = (double)stt_floats[i];
        double y = stt_doubles[i];
        if (isnan(value)) right += isnan(x) && isnan(y);
        else
            right +=
                x == value && y == value && !signbit(x) == !signbit(value) && !signbit(y) == !signbit(value);
    }
    check(right == STT_N, kind ? "every bfloat16 is read exactly" : "every half is read exactly", "%d of %d",
        right, STT_N);
}

static void stt_convert_wide(const st_file* f) {
    int right = 0;
    char err[512] = "";
    const st_tensor *wide = st_find(f, "wide"), *single = st_find(f, "single");
    int bad = st_read_f32(f, wide, 0, STT_WIDE, stt_floats, err, sizeof(err)) ||
        st_read_f64(f, wide, 0, STT_WIDE, stt_doubles, err, sizeof(err));
    for (int i = 0; i < STT_WIDE && !bad; i++)
        right += stt_floats[i] == (float)STT_WIDE_VALUES[i] &&
            memcmp(&stt_doubles[i], &STT_WIDE_VALUES[i], 8) == 0;
    check(right == STT_WIDE, "F64 becomes the nearest float, and a double bit for bit", "%d of %d", right,
        STT_WIDE);
    bad = st_read_f32(f, single, 0, STT_N, stt_floats, err, sizeof(err));
    check(!bad && memcmp(stt_floats, stt_bits, sizeof(stt_bits)) == 0, "F32 becomes a float bit for bit",
        "%d values, NaN payloads too", STT_N);
}

static void stt_convert_parts(const st_file* f) {
    int pieces = 0;
    char err[512] = "";
    for (uint64_t first = 0; first < STT_N; first = first * 3 + 1)
        for (uint64_t count = 1; first + count <= STT_N; count = count * 7 + 1) {
            int same = !st_read_f64(f, st_find(f, "bfloat"), first, count, stt_doubles, err, sizeof(err));
            for (uint64_t i = 0; i < count && same; i++) {
                double value = (double)st_from_bf16((uint16_t)(first + i));
                same = stt_doubles[i] == value || isnan(value);
            }
            if (!same)
                check(0, "a part of a tensor is read as in the whole", "%" PRIu64 " from %" PRIu64 ": %s",
                    count, first, err);
            pieces += same;
        }
    check(pieces > 20, "parts of a tensor are read as in the whole", "%d parts", pieces);
}

static void stt_conversions(void) {
    st_file f;
    char err[512] = "";
    if (stt_conversions_write(err, sizeof(err)) != 0) {
        check(0, "conversions: the file is made", "%s", err);
        return;
    }
    if (st_open(&f, stt_path, err, sizeof(err))) {
        check(0, "conversions: the file opens", "%s", err);
        return;
    }
    stt_convert_sixteens(&f, 0);
    stt_convert_sixteens(&f, 1);
    stt_convert_wide(&f);
    stt_convert_parts(&f);
    int cut = truncate(stt_path, 5000) == 0;
    int read = st_read_f32(&f, st_find(&f, "single"), 0, STT_N, stt_floats, err, sizeof(err));
    check(cut && read == -1 && strstr(err, "ends early"), "a file cut after it was opened is told", "%.120s",
        strstr(err, "t.safe") ? strstr(err, "t.safe") : err);
    st_close(&f);
}

// A header with a tensor of every kind of type, shape and name, written and read back.
static void stt_roundtrip_tensors(st_header* h) {
    static const char* const names[] = {"transformer.wte.weight", "a \"quoted\\\" \n name",
        "\xC3\xA9\xF0\x9F\x98\x80", "", "scalar", "empty", "rank 8"};
    static const int dtypes[] = {ST_F32, ST_F64, ST_BF16, ST_U8, ST_F64, ST_I32, ST_I64};
    static const int ranks[] = {2, 1, 1, 1, 0, 2, 8};
    static const uint64_t shapes[][8] = {{3, 5}, {4}, {7}, {3}, {0}, {5, 0}, {1, 1, 2, 1, 1, 1, 3, 1}};
    st_file f;
    unsigned char* head = NULL;
    size_t n = 0;
    char err[512] = "", format[8] = "";
    int bad = 0, same = 0;
    for (int i = 0; i < 7; i++)
        bad = bad || st_header_add(h, names[i], dtypes[i], ranks[i], shapes[i], err, sizeof(err));
    bad = bad || st_header_finish(h, "{\"format\":\"pt\"}", &head, &n, err, sizeof(err));
    if (!bad) stt_write(head, n, 0, h->data_bytes);
    free(head);
    bad = bad || st_open(&f, stt_path, err, sizeof(err));
    check(!bad && n % 8 == 0, "a header that was written is accepted", "%d tensors, %zu bytes%s", h->count, n,
        err);
    if (bad) return;
    for (int i = 0; i < 7; i++) {
        const st_tensor* t = st_find(&f, names[i]);
        same += t && t->dtype == dtypes[i] && t->ndim == ranks[i] &&
            memcmp(t->shape, shapes[i], 8 * (size_t)ranks[i]) == 0 && t->begin == h->tensors[i].begin &&
            t->end == h->tensors[i].end;
    }
    check(same == 7 && st_find(&f, "absent") == NULL && stt_consistent(&f),
        "types, shapes and offsets survive", "%d of 7", same);
    int told = json_get_string(f.metadata, strlen(f.metadata), "format", format, sizeof(format)) == 1;
    check(told && strcmp(format, "pt") == 0, "metadata survives", "format %s", format);
    st_close(&f);
}

// The writer refuses what the reader would refuse. The header has a tensor "scalar"; it is empty afterwards.
static void stt_roundtrip_refused(st_header* h) {
    char name[ST_NAME_MAX + 1], err[512] = "";
    uint64_t big[2] = {(uint64_t)1 << 33, (uint64_t)1 << 33}, one[1] = {1};
    unsigned char* head = (unsigned char*)name;   // where a refusal must leave NULL
    size_t n = 0;
    memset(name, 'x', ST_NAME_MAX);
    name[ST_NAME_MAX] = 0;
    int refused = st_header_add(h, name, ST_F32, 1, one, err, sizeof(err)) == -1;
    refused += st_header_add(h, "r", ST_F32, 9, one, err, sizeof(err)) == -1;
    refused += st_header_add(h, "d", ST_DTYPE_COUNT, 1, one, err, sizeof(err)) == -1;
    refused += st_header_add(h, "big", ST_F32, 2, big, err, sizeof(err)) == -1;
    refused += st_header_finish(h, "{\"format\":1}", &head, &n, err, sizeof(err)) == -1 && head == NULL;
    refused += st_header_finish(h, "{},\"x\":{}", &head, &n, err, sizeof(err)) == -1 && head == NULL;
    refused += st_header_add(h, "scalar", ST_F32, 0, NULL, err, sizeof(err)) == 0 &&
        st_header_finish(h, NULL, &head, &n, err, sizeof(err)) == -1;
    st_header_free(h);
    refused += st_header_add(h, "\xFF", ST_F32, 0, NULL, err, sizeof(err)) == -1;
    check(refused == 8, "writer refuses long name, rank, dtype, overflow, metadata, duplicate, UTF-8",
        "%d of 8", refused);
}

// No tensors at all, as many as allowed, and one more, which the writer refuses and which is then put in by
// hand in place of the closing bracket. The header is empty before.
static void stt_roundtrip_counts(st_header* h) {
    char name[32], err[512] = "";
    uint64_t one[1] = {1};
    unsigned char* head = NULL;
    size_t n = 0;
    int bad = st_header_finish(h, NULL, &head, &n, err, sizeof(err));
    if (!bad) stt_write(head, n, 0, 0);
    check(
        !bad && stt_try(err, sizeof(err)) == 1, "a file without tensors is accepted", "%zu bytes %s", n, err);
    free(head);
    for (int i = 0; i < ST_MAX_TENSORS; i++) {
        snprintf(name, sizeof(name), "t%d", i);
        bad = bad || st_header_add(h, name, ST_F16, 1, one, err, sizeof(err));
    }
    int one_more = st_header_add(h, "more", ST_F16, 1, one, err, sizeof(err));
    bad = bad || st_header_finish(h, NULL, &head, &n, err, sizeof(err));
    if (!bad) stt_write(head, n, 0, h->data_bytes);
    check(!bad && one_more == -1 && stt_try(err, sizeof(err)) == 1,
        "as many tensors as allowed are accepted, one more is refused", "%d, a header of %zu bytes", h->count,
        n);
    char* more = bad ? NULL : (char*)malloc(n + 128);
    if (more) {
        size_t end = n - 8;
        memcpy(more, head + 8, n - 8);
        while (more[end - 1] != '}') end--;
        size_t extra = (size_t)snprintf(
            more + end - 1, 128, ",\"more\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
        stt_refused("one tensor too many", more, end - 1 + extra, 1, h->data_bytes, "ST_MAX_TENSORS");
    }
    free(more);
    free(head);
}

static void stt_roundtrip(void) {
    st_header h;
    st_header_init(&h);
    stt_roundtrip_tensors(&h);
    stt_roundtrip_refused(&h);
    stt_roundtrip_counts(&h);
    st_header_free(&h);
}

static const struct {
    const char *name, *header;
    size_t data;
    const char* why;
} STT_BAD_HEADERS[] = {
    {"empty header", "", 0, "begin with '{'"},
    {"not UTF-8", "{\"\xFF\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "UTF-8"},
    {"not an object", "[]", 0, "begin with '{'"},
    {"white space first", " {}", 0, "begin with '{'"},
    {"JSON after the header", "{} {}", 0, "strict JSON"},
    {"NUL padding", "{}\0\0", 0, "strict JSON"},
    {"cut JSON", "{\"a\":", 0, "strict JSON"},
    {"trailing comma", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},}", 1, "strict JSON"},
    {"duplicate tensor",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"\\u0061\":{\"dtype\":\"U8\","
        "\"shape\":[1],\"data_offsets\":[1,2]}}",
        2, "duplicate"},
    {"duplicate key in a tensor",
        "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "duplicate"},
    {"duplicate metadata", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate"},
    {"duplicate key in metadata", "{\"__metadata__\":{\"a\":\"1\",\"b\":\"\",\"\\u0061\":\"2\"}}", 0,
        "duplicate"},
    {"metadata not an object", "{\"__metadata__\":\"x\"}", 0, "not an object"},
    {"metadata not strings", "{\"__metadata__\":{\"a\":\"1\",\"b\":2}}", 0, "not a string"},
    {"overlap",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\","
        "\"shape\":[2],\"data_offsets\":[1,3]}}",
        3, "overlap"},
    {"same place",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\","
        "\"shape\":[2],\"data_offsets\":[0,2]}}",
        2, "overlap"},
    {"hole",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\","
        "\"shape\":[2],\"data_offsets\":[3,5]}}",
        5, "hole"},
    {"hole at the start", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}", 3, "hole"},
    {"out of the file", "{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", 2,
        "holds 2 bytes"},
    {"far out of the file",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[18446744073709551615],\"data_offsets\":[0,"
        "18446744073709551615]}}",
        2, "holds 2 bytes"},
    {"begin after end", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,0]}}", 2,
        "begin is after"},
    {"negative offset", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[-2,0]}}", 2,
        "two unsigned"},
    {"three offsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2,2]}}", 2, "two unsigned"},
    {"offset past 64 bits",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,18446744073709551618]}}", 2,
        "two unsigned"},
    {"shape product overflow",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
        "overflows"},
    {"shape times size overflow",
        "{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0, "overflows"},
    {"fractional shape", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2.0],\"data_offsets\":[0,2]}}", 2,
        "unsigned integers"},
    {"nested shape", "{\"a\":{\"dtype\":\"U8\",\"shape\":[[2]],\"data_offsets\":[0,2]}}", 2,
        "unsigned integers"},
    {"size mismatch", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,7]}}", 7, "do not match"},
    {"unknown dtype", "{\"a\":{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, "unknown dtype"},
    {"dtype not a string", "{\"a\":{\"dtype\":1,\"shape\":[2],\"data_offsets\":[0,2]}}", 2, "unknown dtype"},
    {"unknown key", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2],\"x\":1}}", 2,
        "other than"},
    {"missing key", "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,2]}}", 2, "lacks"},
    {"tensor not an object", "{\"a\":[]}", 0, "not an object"},
    {"trailing bytes", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 3, "1 bytes after"},
    {"data without tensors", "{}", 1, "1 bytes after"},
    {"NUL in a name", "{\"a\\u0000\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2,
        "ST_NAME_MAX"},
    {"rank 9", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1,
        "ST_MAX_RANK"},
};

static void stt_error_headers(void) {
    for (size_t i = 0; i < sizeof(STT_BAD_HEADERS) / sizeof(STT_BAD_HEADERS[0]); i++) {
        const char *name = STT_BAD_HEADERS[i].name, *header = STT_BAD_HEADERS[i].header;
        size_t n = strcmp(name, "NUL padding") == 0 ? 4 : strlen(header);
        stt_refused(name, header, n, 1, STT_BAD_HEADERS[i].data, STT_BAD_HEADERS[i].why);
    }
}

// Lengths of the header that the file has no room for, or that no header may have.
static void stt_error_lengths(void) {
    static const unsigned char huge[9] = {0, 0, 0, 0, 0, 0, 0, 0x80, '{'};   // a header of 2^63 bytes
    char err[512];
    stt_refused("shorter than 8 bytes", "\2\0\0\0\0\0\0", 7, 0, 0, "at least 8");
    stt_refused("header length 2^63", huge, 9, 0, 0, "ST_MAX_HEADER");
    uint64_t length = ST_MAX_HEADER;
    stt_refused("header past the end of the file", &length, 8, 0, 100, "with 100 after");
    length++;
    stt_write(&length, 8, 0, 0);
    int grown = truncate(stt_path, 8 + (off_t)length) == 0;   // a sparse file that does hold that much
    check(grown && stt_try(err, sizeof(err)) == 0 && strstr(err, "ST_MAX_HEADER"),
        "refused, and told why: header one byte over the limit", "%.120s", strstr(err, "t.safe"));
}

// Nesting inside metadata, the length of a name: on both sides of the limit.
static void stt_error_names(void) {
    char err[512], text[4096];
    size_t n = (size_t)snprintf(text, sizeof(text), "{\"__metadata__\":{\"a\":");
    memset(text + n, '[', 1000);
    memset(text + n + 1000, ']', 1000);
    n += 2000 + (size_t)snprintf(text + n + 2000, 3, "}}");
    stt_refused("deep nesting", text, n, 1, 0, "strict JSON");
    for (int bytes = ST_NAME_MAX - 1; bytes <= ST_NAME_MAX; bytes++) {
        char name[ST_NAME_MAX + 1];
        memset(name, 'n', sizeof(name));
        name[bytes] = 0;
        n = (size_t)snprintf(
            text, sizeof(text), "{\"%s\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", name);
        if (bytes == ST_NAME_MAX) stt_refused("name too long", text, n, 1, 2, "ST_NAME_MAX");
        else {
            stt_write(text, n, 1, 2);
            check(stt_try(err, sizeof(err)) == 1, "the longest name is accepted", "%d bytes %s", bytes, err);
        }
    }
}

// The number of metadata entries, on both sides of the limit.
static void stt_error_metadata(void) {
    char err[512], *many = (char*)malloc(64 * ST_MAX_METADATA + 64);
    for (int entries = ST_MAX_METADATA; many && entries <= ST_MAX_METADATA + 1; entries++) {
        size_t n = (size_t)sprintf(many, "{\"__metadata__\":{");
        for (int i = 0; i < entries; i++) n += (size_t)sprintf(many + n, "%s\"k%d\":\"\"", i ? "," : "", i);
        n += (size_t)sprintf(many + n, "}}");
        if (entries > ST_MAX_METADATA)
            stt_refused("too many metadata entries", many, n, 1, 0, "ST_MAX_METADATA");
        else {
            stt_write(many, n, 1, 0);
            check(stt_try(err, sizeof(err)) == 1, "the most metadata entries are accepted", "%d %s", entries,
                err);
        }
    }
    free(many);
}

static void stt_error_classes(void) {
    st_file f;
    char err[512];
    stt_error_lengths();
    stt_error_headers();
    stt_error_names();
    stt_error_metadata();
    int missing = st_open(&f, "/nonexistent/file", err, sizeof(err)),
        folder = st_open(&f, "/", err, sizeof(err));
    check(missing == -1 && folder == -1 && f.fd == -1, "an absent file and a folder are refused", "%s", err);
    check(st_open(&f, "/nonexistent", NULL, 0) == -1, "an error needs no place for its message", "-1");
}

// Every truncation of a small file is refused; every byte changed is either refused or still one consistent
// file.
static const char* const STT_SMALL = "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\","
                                     "\"shape\":[2,3],\"data_offsets\":[16,28]},"
                                     "\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]},"
                                     "\"c\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[28,36]}}  ";

// Sets byte i of the open file to each of many values, and back. What opening it gives: result[0] refused,
// [1] accepted, [2] neither, or the byte could not be changed.
static void stt_damage_byte(int fd, size_t i, int result[3]) {
    static const unsigned char values[] = {0, 1, ' ', '"', ',', '-', '.', '0', '1', '9', ':', '[', '\\', ']',
        'e', '{', '}', 0x7F, 0x80, 0xC3, 0xFF};
    const int count = (int)sizeof(values);
    unsigned char was = 0;
    char err[512];
    result[2] += pread(fd, &was, 1, (off_t)i) != 1;
    for (int v = 0; v < count + 8; v++) {
        unsigned char c = (unsigned char)(v < count ? values[v] : was ^ (1 << (v - count)));
        if (c == was || pwrite(fd, &c, 1, (off_t)i) != 1) continue;
        int found = stt_try(err, sizeof(err));
        result[found < 0 ? 2 : found]++;
        if (found < 0)
            check(0, "a changed byte is refused or leaves a consistent file", "byte %zu set to %d: %s", i, c,
                err);
    }
    result[2] += pwrite(fd, &was, 1, (off_t)i) != 1;
}

static void stt_damage(void) {
    size_t length = strlen(STT_SMALL), size = 8 + length + 36;
    char err[512];
    int cut = 0, result[3] = {0, 0, 0};
    stt_write(STT_SMALL, length, 1, 36);
    int whole = stt_try(err, sizeof(err));
    check(whole == 1, "the small file is accepted", "%zu bytes %s", size, err);
    for (size_t n = 0; n < size; n++) {
        stt_write(STT_SMALL, length, 1, 36);
        cut += truncate(stt_path, (off_t)n) == 0 && stt_try(err, sizeof(err)) == 0;
    }
    check(cut == (int)size, "every truncation is refused", "%d of %zu", cut, size);
    stt_write(STT_SMALL, length, 1, 36);
    int fd = open(stt_path, O_RDWR);
    for (size_t i = 0; i < size; i++) stt_damage_byte(fd, i, result);
    close(fd);
    check(result[2] == 0 && result[0] > 1000 && result[1] >= 36 * 8,
        "every changed byte is refused or leaves a consistent file", "%d refused, %d still consistent",
        result[0], result[1]);
}

static void stt_fixture(void) {
    st_file f;
    char err[512] = "", format[8] = "";
    int bad = st_open(&f, "dev/fixtures/model.safetensors", err, sizeof(err));
    const st_tensor* t = bad ? NULL : st_find(&f, "transformer.h.1.attn.c_attn.weight");
    int ok = t && f.count == 28 && t->dtype == ST_F32 && t->ndim == 2 && t->shape[0] == 32 &&
        t->shape[1] == 96 && stt_consistent(&f) &&
        json_get_string(f.metadata, strlen(f.metadata), "format", format, sizeof(format)) == 1;
    check(ok, "a file of the reference writer is accepted", "%d tensors, format %s%s", bad ? 0 : f.count,
        format, err);
    st_close(&f);
}

// Is `found` the number of a 16-bit format that is nearest to x, the even one of two that are? The format's
// numbers of one sign lie in the order of their bits.
static int stt_is_nearest(
    double x, uint16_t found, float (*back)(uint16_t), double largest, uint16_t infinite) {
    const uint16_t size = found & 0x7FFF;
    const double value = (double)back(size), away = fabs(fabs(x) - value);
    if ((found >> 15 != 0) != (signbit(x) != 0)) return 0;
    if (size == infinite) return fabs(x) >= largest + (largest - (double)back((uint16_t)(infinite - 2))) / 2;
    for (int step = -1; step <= 1; step += 2) {
        if (size == 0 && step < 0) continue;
        const uint16_t next = (uint16_t)(size + step);
        // what is infinite stands where the next number would
        const double other =
            next == infinite ? 2 * largest - (double)back((uint16_t)(infinite - 2)) : (double)back(next);
        const double there = fabs(fabs(x) - other);
        if (!(away < there || (away == there && size % 2 == 0))) return 0;
    }
    return 1;
}

// Both formats of 16 bits: every number of one comes back as it was, and a double becomes the nearest one.
static void stt_halves(void) {
    static const struct {
        const char* name;
        uint16_t (*to)(double);
        float (*back)(uint16_t);
        double largest;
        uint16_t infinite;
        int low, high;   // exponents of two to try
    } formats[] = {{"F16", st_to_f16, st_from_f16, 65504, 0x7C00, -28, 18},
        {"BF16", st_to_bf16, st_from_bf16, 0x1.FEp127, 0x7F80, -138, 130}};
    for (int k = 0; k < 2; k++) {
        int same = 0, nearest = 0, tried = 0;
        for (int i = 0; i < 65536; i++) {
            const double x = (double)formats[k].back((uint16_t)i);
            same += isnan(x) ? isnan(formats[k].back(formats[k].to(x))) : formats[k].to(x) == i;
        }
        check(same == 65536, "every number of 16 bits comes back from a double as it was", "%s: %d of 65536",
            formats[k].name, same);
        for (int e = formats[k].low; e <= formats[k].high; e++)
            for (int i = 0; i < 4000; i++, tried++) {
                uint64_t bits = (uint64_t)i * 0x9E3779B97F4A7C15ull;
                bits ^= bits >> 29;
                // every other one lies halfway between two numbers, or next to that
                const uint64_t fraction = i % 2 ? bits & 0xFFFFFFFFFFFFFull : (bits & 0xFFF) << 40;
                double x = ldexp(1 + (double)fraction * 0x1p-52, e);
                x = i % 4 == 2 ? nextafter(x, i % 8 == 2 ? 0 : INFINITY) : x;
                x = i % 3 ? x : -x;
                nearest += stt_is_nearest(
                    x, formats[k].to(x), formats[k].back, formats[k].largest, formats[k].infinite);
            }
        check(nearest == tried, "a double becomes the nearest number of 16 bits, ties the even one",
            "%s: %d of %d", formats[k].name, nearest, tried);
    }
}

static void test_safetensors(void) {
    const char* parent = getenv("TMPDIR");
    char folder[ST_PATH_MAX - 32];
    snprintf(folder, sizeof(folder), "%s/gpt2_sp_test_XXXXXX", parent && *parent ? parent : "/tmp");
    if (mkdtemp(folder) == NULL) {
        check(0, "a folder for test files is made", "%s: %s", folder, strerror(errno));
        return;
    }
    snprintf(stt_path, sizeof(stt_path), "%s/t.safetensors", folder);
    stt_json_documents();
    stt_json_depth();
    stt_json_utf8();
    stt_json_numbers();
    stt_json_get();
    stt_json_strings();
    stt_conversions();
    stt_halves();
    stt_roundtrip();
    stt_error_classes();
    stt_damage();
    stt_fixture();
    unlink(stt_path);
    rmdir(folder);
}
