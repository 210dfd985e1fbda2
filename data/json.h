// json.h: a strict JSON reader over text in memory, and a string writer.
//
// For the small JSON a trainer meets: safetensors headers, config.json, state.json, vocab.json, lines of a
// .jsonl file. It follows RFC 8259 to the letter (no comments, no trailing commas, no NaN, no leading zeros,
// no lone surrogates, no bytes that are not UTF-8), allocates nothing and keeps no state: a value is a span
// of the text it was found in.
//
//     uint64_t layers;                                             // one number of a flat document:
//     if (json_get_u64(text, len, "n_layer", &layers) != 1) ...   // 1 found, 0 absent, -1 malformed
//
//     json_span doc = {text, len}, key, value;                     // every member of an object:
//     json_iter it;
//     int more = json_object(doc, &it);
//     while (more >= 0 && (more = json_next(&it, &key, &value)) == 1) ...
//     if (more < 0) ...                                            // malformed at it.p
//
// A walk checks all that it passes over, nested values too, so a walk that ends with 0 has validated the
// whole span. Walks do not look for duplicate keys (that would need memory); the json_get functions refuse a
// key that is there twice.

#ifndef GPT2_SP_JSON_H
#define GPT2_SP_JSON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <locale.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef GPT2_SP_LEAF
#define GPT2_SP_LEAF static __attribute__((unused))
#endif

enum {
    JSON_MAX_DEPTH = 64,
    JSON_MAX_NUMBER = 127
};   // levels of nesting; characters of a number read as a double

typedef struct {
    const char* s;   // first character; strings keep their quotes and escapes
    size_t n;        // bytes
} json_span;

typedef struct {
    const char* p;     // next unread character; after an error, where it is
    const char* end;   // of the span walked
    char close;        // '}' or ']'
    char first;        // nothing read yet, so no comma is due
    int depth;         // levels that may still open below
} json_iter;

// ---------------------------------------------------------------------------
// the grammar

// Returns the length (1..4) of the UTF-8 character at s, or 0 when the bytes there are none: cut short,
// longer than needed, a surrogate, or above U+10FFFF. s < end.
GPT2_SP_LEAF int json_utf8(const char* s, const char* end) {
    const unsigned char* p = (const unsigned char*)s;
    if (p[0] < 0x80) return 1;
    int n = p[0] >= 0xC2 && p[0] <= 0xDF ? 2
        : (p[0] & 0xF0) == 0xE0          ? 3
        : p[0] >= 0xF0 && p[0] <= 0xF4   ? 4
                                         : 0;
    if (n == 0 || end - s < n) return 0;
    for (int i = 1; i < n; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xF0 && p[1] < 0x90)) return 0;
    if ((p[0] == 0xED && p[1] > 0x9F) || (p[0] == 0xF4 && p[1] > 0x8F)) return 0;
    return n;
}

// Returns the first position that is not UTF-8, or end.
GPT2_SP_LEAF const char* json_utf8_check(const char* s, const char* end) {
    int n;
    while (s < end && (n = json_utf8(s, end)) > 0) s += n;
    return s;
}

GPT2_SP_LEAF const char* json_space(const char* p, const char* end) {
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')) p++;
    return p;
}

GPT2_SP_LEAF const char* json_digits(const char* p, const char* end) {
    while (p < end && *p >= '0' && *p <= '9') p++;
    return p;
}

// Four hexadecimal digits; -1 when there are not four.
GPT2_SP_LEAF int json_hex4(const char* p, const char* end) {
    int value = 0;
    if (end - p < 4) return -1;
    for (int i = 0; i < 4; i++) {
        int lower = p[i] | 32;
        if (p[i] >= '0' && p[i] <= '9') value = value * 16 + (p[i] - '0');
        else if (lower >= 'a' && lower <= 'f') value = value * 16 + (lower - 'a' + 10);
        else return -1;
    }
    return value;
}

// Decodes one character inside a string into out (at most 4 bytes of UTF-8) and moves *at past it.
// Returns the number of bytes, 0 at the closing quote (passed too), -1 for anything a string may not hold.
GPT2_SP_LEAF int json_char(const char** at, const char* end, char* out) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char* p = *at;
    if (p == end || (unsigned char)*p < 0x20) return -1;
    if (*p == '"') {
        *at = p + 1;
        return 0;
    }
    if (*p != '\\') {
        int n = json_utf8(p, end);
        if (n == 0) return -1;
        memcpy(out, p, (size_t)n);
        *at = p + n;
        return n;
    }
    if (++p == end) return -1;
    const char* simple = (const char*)memchr(from, *p, 8);
    if (simple) {
        out[0] = to[simple - from];
        *at = p + 1;
        return 1;
    }
    if (*p != 'u') return -1;
    int c = json_hex4(p + 1, end);
    if (c < 0) return -1;
    p += 5;
    if (c >= 0xD800 && c <= 0xDFFF) {   // half of a pair: the other half must follow
        int low = c <= 0xDBFF && end - p >= 6 && p[0] == '\\' && p[1] == 'u' ? json_hex4(p + 2, end) : -1;
        if (low < 0xDC00 || low > 0xDFFF) return -1;
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        p += 6;
    }
    int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const int lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (int i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)(lead[n] | c);
    *at = p;
    return n;
}

GPT2_SP_LEAF int json_skip(const char** at, const char* end, int depth);   // it and json_step call each other

// Moves to the next member or element. Returns 1, 0 past the closing bracket, -1 when the text is malformed
// at it->p.
GPT2_SP_LEAF int json_step(json_iter* it, json_span* key, json_span* value) {
    it->p = json_space(it->p, it->end);
    if (it->p == it->end) return -1;
    if (*it->p == it->close) {
        it->p++;
        return 0;
    }   // stands right after the opening bracket, or where a comma would
    if (!it->first) {
        if (*it->p != ',') return -1;
        it->p = json_space(it->p + 1, it->end);
    }
    it->first = 0;
    if (it->close == '}') {
        key->s = it->p;
        if (it->p == it->end || *it->p != '"' || json_skip(&it->p, it->end, 0)) return -1;
        key->n = (size_t)(it->p - key->s);
        it->p = json_space(it->p, it->end);
        if (it->p == it->end || *it->p != ':') return -1;
        it->p = json_space(it->p + 1, it->end);
    }
    value->s = it->p;
    if (json_skip(&it->p, it->end, it->depth)) return -1;
    value->n = (size_t)(it->p - value->s);
    return 1;
}

// Moves *at past one value that starts exactly there, checking all of it; at most depth levels of brackets.
// Returns 0, or -1 with *at near the fault.
GPT2_SP_LEAF int json_skip(const char** at, const char* end, int depth) {
    const char* p = *at;
    if (p == end) return -1;
    if (*p == '"') {
        char out[4];
        int n = 1;
        for (++*at; n > 0;) n = json_char(at, end, out);
        return n;
    }
    if (*p == '{' || *p == '[') {
        json_span key, value;
        json_iter it = {p + 1, end, *p == '{' ? '}' : ']', 1, depth - 1};
        int more = depth > 0 ? 1 : -1;
        while (more > 0) more = json_step(&it, &key, &value);
        *at = it.p;
        return more;
    }
    static const char* const word[] = {"true", "false", "null"};
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(word[i]);
        if ((size_t)(end - p) >= n && memcmp(p, word[i], n) == 0) {
            *at = p + n;
            return 0;
        }
    }
    if (*p == '-') p++;   // what is left can only be a number
    const char* digits = p;
    p = p < end && *p == '0' ? p + 1 : json_digits(p, end);
    if (p == digits) return -1;
    if (p < end && *p == '.') {
        digits = p + 1;
        p = json_digits(digits, end);
        if (p == digits) return -1;
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        digits = end - p > 1 && (p[1] == '+' || p[1] == '-') ? p + 2 : p + 1;
        p = json_digits(digits, end);
        if (p == digits) return -1;
    }
    *at = p;
    return 0;
}

// Checks that the text is one JSON value with nothing but white space around it. Returns 0, or -1 with the
// offset of the fault in *where (which may be NULL).
GPT2_SP_LEAF int json_validate(const char* text, size_t len, int max_depth, size_t* where) {
    const char *end = text + len, *p = json_space(text, end);
    int bad = json_skip(&p, end, max_depth);
    if (!bad) p = json_space(p, end);
    if (where) *where = (size_t)(p - text);
    return bad || p != end ? -1 : 0;
}

// ---------------------------------------------------------------------------
// walking and reading values

GPT2_SP_LEAF int json_open(json_span v, json_iter* it, char open, char close) {
    const char *end = v.s + v.n, *p = json_space(v.s, end);
    int ok = p < end && *p == open;
    it->p = p + ok;
    it->end = end;
    it->close = close;
    it->first = 1;
    it->depth = JSON_MAX_DEPTH - 1;
    return ok ? 0 : -1;
}

// Starts a walk over the members of an object, or the elements of an array. Returns 0, or -1 when v is
// something else.
GPT2_SP_LEAF int json_object(json_span v, json_iter* it) { return json_open(v, it, '{', '}'); }
GPT2_SP_LEAF int json_array(json_span v, json_iter* it) { return json_open(v, it, '[', ']'); }

// Next member (key, value) or element (value; key may be NULL). Returns 1, 0 at the end of the span, -1 when
// malformed: also when something other than white space follows the closing bracket.
GPT2_SP_LEAF int json_next(json_iter* it, json_span* key, json_span* value) {
    int more = json_step(it, key, value);
    if (more == 0) {
        it->p = json_space(it->p, it->end);
        if (it->p != it->end) return -1;
    }
    return more;
}

// Unescapes a string value into out, with a final NUL. Returns its length, or -1 when v is not a string, does
// not fit in size bytes, or holds a NUL character.
GPT2_SP_LEAF long json_string(json_span v, char* out, size_t size) {
    if (v.n < 2 || *v.s != '"' || size == 0) return -1;
    const char *p = v.s + 1, *end = v.s + v.n;
    char c[4];
    size_t at = 0;
    int n;
    while ((n = json_char(&p, end, c)) > 0) {
        if (c[0] == 0 || (size_t)n >= size - at) return -1;
        memcpy(out + at, c, (size_t)n);
        at += (size_t)n;
    }
    out[at] = 0;
    return n == 0 && p == end ? (long)at : -1;
}

// Is v a string that unescapes to text?
GPT2_SP_LEAF int json_equal(json_span v, const char* text) {
    if (v.n < 2 || *v.s != '"') return 0;
    const char *p = v.s + 1, *end = v.s + v.n;
    char c[4];
    int n;
    while ((n = json_char(&p, end, c)) > 0) {
        for (int i = 0; i < n; i++)
            if (*text == 0 || *text++ != c[i]) return 0;
    }
    return n == 0 && p == end && *text == 0;
}

// Reads an unsigned integer: digits only, exact. Returns 0, or -1 for a sign, fraction, exponent, leading
// zero or 2^64 and up.
GPT2_SP_LEAF int json_u64(json_span v, uint64_t* out) {
    const char *p = v.s, *end = v.s + v.n;
    uint64_t x = 0;
    if (p == end || (*p == '0' && v.n > 1)) return -1;
    for (; p < end; p++) {
        if (*p < '0' || *p > '9') return -1;
        uint64_t digit = (uint64_t)(*p - '0');
        if (x > (UINT64_MAX - digit) / 10) return -1;
        x = x * 10 + digit;
    }
    *out = x;
    return 0;
}

// The same with an optional minus sign, within int64_t.
GPT2_SP_LEAF int json_i64(json_span v, int64_t* out) {
    int negative = v.n > 0 && *v.s == '-';
    json_span digits = {v.s + negative, v.n - (size_t)negative};
    uint64_t x;
    if (json_u64(digits, &x) || x > (uint64_t)INT64_MAX + (uint64_t)negative) return -1;
    *out = !negative ? (int64_t)x : x == 0 ? 0 : -(int64_t)(x - 1) - 1;
    return 0;
}

// Reads any JSON number, to nearest. Returns 0, or -1 for another type, more than JSON_MAX_NUMBER characters,
// or overflow.
GPT2_SP_LEAF int json_double(json_span v, double* out) {
    char buf[JSON_MAX_NUMBER + 1];
    const char* p = v.s;
    if (v.n == 0 || v.n > JSON_MAX_NUMBER || (*p != '-' && (*p < '0' || *p > '9'))) return -1;
    if (json_skip(&p, v.s + v.n, 0) || p != v.s + v.n) return -1;
    memcpy(buf, v.s, v.n);
    buf[v.n] = 0;
    locale_t plain =
        newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);   // strtod's point is the program's around us
    if (!plain) return -1;
    double x = strtod_l(buf, NULL, plain);
    freelocale(plain);
    if (!isfinite(x)) return -1;
    *out = x;
    return 0;
}

GPT2_SP_LEAF int json_bool(json_span v, int* out) {
    int yes = v.n == 4 && memcmp(v.s, "true", 4) == 0, no = v.n == 5 && memcmp(v.s, "false", 5) == 0;
    if (yes || no) *out = yes;
    return yes || no ? 0 : -1;
}

// ---------------------------------------------------------------------------
// one key of a document: 1 found, 0 absent, -1 malformed, twice there, or of another type

GPT2_SP_LEAF int json_get(const char* text, size_t len, const char* name, json_span* value) {
    json_span doc = {text, len}, key, v;
    json_iter it;
    int found = 0, more = json_object(doc, &it);
    while (more >= 0 && (more = json_next(&it, &key, &v)) == 1) {
        if (!json_equal(key, name)) continue;
        if (found) return -1;
        found = 1;
        *value = v;
    }
    return more < 0 ? -1 : found;
}

GPT2_SP_LEAF int json_get_u64(const char* text, size_t len, const char* name, uint64_t* out) {
    json_span v;
    int found = json_get(text, len, name, &v);
    return found == 1 && json_u64(v, out) ? -1 : found;
}

GPT2_SP_LEAF int json_get_i64(const char* text, size_t len, const char* name, int64_t* out) {
    json_span v;
    int found = json_get(text, len, name, &v);
    return found == 1 && json_i64(v, out) ? -1 : found;
}

GPT2_SP_LEAF int json_get_double(const char* text, size_t len, const char* name, double* out) {
    json_span v;
    int found = json_get(text, len, name, &v);
    return found == 1 && json_double(v, out) ? -1 : found;
}

GPT2_SP_LEAF int json_get_bool(const char* text, size_t len, const char* name, int* out) {
    json_span v;
    int found = json_get(text, len, name, &v);
    return found == 1 && json_bool(v, out) ? -1 : found;
}

GPT2_SP_LEAF int json_get_string(const char* text, size_t len, const char* name, char* out, size_t size) {
    json_span v;
    int found = json_get(text, len, name, &v);
    return found == 1 && json_string(v, out, size) < 0 ? -1 : found;
}

// ---------------------------------------------------------------------------
// writing strings

// Encodes the character at *s for the inside of a JSON string (at most 6 bytes) and moves *s past it. Returns
// the number of bytes. A byte that is not UTF-8 becomes U+FFFD, so that what is written can always be read.
GPT2_SP_LEAF int json_escape(const char** s, const char* end, char* out) {
    static const char to[] = "\"\\bfnrt", from[] = "\"\\\b\f\n\r\t", hex[] = "0123456789abcdef";
    unsigned char c = (unsigned char)**s;
    const char* simple = (const char*)memchr(from, c, 7);
    int n = json_utf8(*s, end);
    *s += n > 0 ? n : 1;
    if (n == 0) memcpy(out, "\xEF\xBF\xBD", 3);
    else if (simple) {
        out[0] = '\\';
        out[1] = to[simple - from];
    } else if (c < 0x20) {
        memcpy(out, "\\u00", 4);
        out[4] = hex[c >> 4];
        out[5] = hex[c & 15];
    } else memcpy(out, *s - n, (size_t)n);
    return n == 0 ? 3 : simple ? 2 : c < 0x20 ? 6 : n;
}

// Writes s as a JSON string, quotes included. Returns 0, or -1 when the stream has an error.
GPT2_SP_LEAF int json_write_string(FILE* f, const char* s) {
    const char* end = s + strlen(s);
    char out[8];
    fputc('"', f);
    while (s < end) {
        size_t n = (size_t)json_escape(&s, end, out);
        fwrite(out, 1, n, f);
    }
    fputc('"', f);
    return ferror(f) ? -1 : 0;
}

// Appends s as a JSON string at buf[*at], keeping a final NUL. Returns 0, or -1 with buf[*at] = 0 again when
// size is too small.
GPT2_SP_LEAF int json_append_string(char* buf, size_t size, size_t* at, const char* s) {
    const char* end = s + strlen(s);
    char out[8];
    size_t i = *at, n = 1;
    for (out[0] = '"';; n = (size_t)json_escape(&s, end, out)) {
        if (i >= size || n + 2 > size - i) {   // what comes now, the closing quote and the NUL
            if (*at < size) buf[*at] = 0;
            return -1;
        }
        memcpy(buf + i, out, n);
        i += n;
        if (s == end) break;
    }
    buf[i++] = '"';
    buf[i] = 0;
    *at = i;
    return 0;
}

#endif
