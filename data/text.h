// text.h: documents from text files, JSON lines and folders of them, also packed by gzip.
//
//     int one(void* user, const char* bytes, size_t length, const char* path, uint64_t line) { return 0; }
//     text_reader r = {one, user, err, sizeof err};      // what else it has is set by name
//     if (text_documents(&r, "corpus/")) ...             // err says what is wrong, and where
//
// What becomes a document, by the ending of a file's name (letters' case does not matter):
//     .jsonl, .ndjson  each line that is not blank: an object, whose "text" string is the document; other
//                      fields are only checked to be JSON. Escapes are undone to UTF-8, a surrogate without
//                      its partner becomes U+FFFD.
//                      Not JSON, no "text", two of them, or one that is no string: an error with file:line
//     text             .txt, .md and others (TEXT_WHOLE in text_endings): the whole file
//     .gz behind one   the same, of what is packed in it; inflated piece by piece
//     .html, .csv ...  no text as they are (text_reasons): refused where named, left out of a folder. Who
//                      wants the bytes as they are gives the file a name that ends in .txt
//     any other        the whole file if it was named; of a folder, only a name without an ending (README,
//                      Makefile) whose content has no NUL byte
// A file of text is a regular file without NUL bytes.
//
// A folder gives its files in the order of their names' bytes, and its folders' down to TEXT_MAX_DEPTH. Links
// to files are read. `skip` is told of whatever is left out, hidden entries and links to folders too.
//
// A UTF-8 byte order mark at the start of a file is dropped, all other bytes are passed on as they are. A
// document of no bytes holds nothing to learn and is passed over. A folder without any document is an error.
//
// Memory: one document, or one line, at a time, at most TEXT_MAX_DOCUMENT bytes each; longer ones are
// refused.
//
// The bytes given to the callback are its to read until it returns, and are not NUL-terminated; line counts
// from 1 (1 for a whole file). A callback that returns non-zero ends it all: text_documents then returns -1,
// with the callback's own message if it put one in the same err.
//
// text_documents returns 0, or -1 with one line in err. Needs libc, POSIX and zlib; under -std=c11 define
// _GNU_SOURCE before the first include.
#ifndef GPT2_SP_TEXT_H
#define GPT2_SP_TEXT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#ifndef GPT2_SP_LEAF
#define GPT2_SP_LEAF static __attribute__((unused))
#endif
#ifndef TEXT_MAX_DOCUMENT
#define TEXT_MAX_DOCUMENT ((size_t)1 << 30)   // bytes of a document, and of a line of JSON
#endif
enum {
    TEXT_MAX_DEPTH = 64,    // folders inside folders
    TEXT_MAX_NESTING = 64   // arrays and objects inside each other, in a line of JSON
};

typedef int (*text_callback)(void* user, const char* bytes, size_t length, const char* path, uint64_t line);
// Told of an entry of a folder that is left out, and why: a line that stays.
typedef void (*text_skip)(void* user, const char* path, const char* why);

typedef struct {
    text_callback document;
    void* user;   // of both functions
    char* err;
    size_t err_size;
    text_skip skip;               // NULL: nobody is told
    const struct stat* outputs;   // files that are being written, and so must not be read
    int output_count;
    uint64_t documents;   // given so far
    uint64_t skipped;     // entries left out so far, and the first of them
    char first_skipped[400];
} text_reader;

// Leaves one line in err and returns -1.
__attribute__((format(printf, 2, 3))) GPT2_SP_LEAF int text_error(
    const text_reader* r, const char* format, ...) {
    va_list args;
    va_start(args, format);
    if (r->err && r->err_size) vsnprintf(r->err, r->err_size, format, args);
    va_end(args);
    return -1;
}

// Hands one document to the callback.
GPT2_SP_LEAF int text_give(
    text_reader* r, const char* bytes, size_t length, const char* path, uint64_t line) {
    if (length == 0) return 0;
    r->documents++;
    if (r->err && r->err_size) r->err[0] = 0;
    if (r->document(r->user, bytes, length, path, line) == 0) return 0;
    if (r->err && r->err_size && r->err[0]) return -1;
    return text_error(r, "%s:%" PRIu64 ": stopped at this document", path, line);
}

// ================================================================================ JSON: one value at a time
// from a line [p, end). Functions return the place behind what they read, or NULL with what was expected in
// j->expected and where in j->at.

typedef struct {
    char* end;
    const char* expected;
    char* at;
} text_json;

GPT2_SP_LEAF char* text_json_error(text_json* j, char* at, const char* expected) {
    if (!j->expected) {
        j->expected = expected;
        j->at = at;
    }
    return NULL;
}

GPT2_SP_LEAF char* text_json_space(const text_json* j, char* p) {
    while (p < j->end && (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n')) p++;
    return p;
}

// Four hexadecimal digits, or -1.
GPT2_SP_LEAF long text_json_hex(const text_json* j, const char* p) {
    long value = 0;
    if (j->end - p < 4) return -1;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int digit = c >= '0' && c <= '9' ? c - '0'
            : c >= 'a' && c <= 'f'       ? c - 'a' + 10
            : c >= 'A' && c <= 'F'       ? c - 'A' + 10
                                         : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

// Writes code point u as UTF-8, 1 to 4 bytes, and returns the place behind.
GPT2_SP_LEAF char* text_utf8(char* out, long u) {
    if (u < 0x80) {
        *out++ = (char)u;
        return out;
    }
    if (u < 0x800) {
        *out++ = (char)(0xC0 | (u >> 6));
    } else {
        if (u < 0x10000) {
            *out++ = (char)(0xE0 | (u >> 12));
        } else {
            *out++ = (char)(0xF0 | (u >> 18));
            *out++ = (char)(0x80 | ((u >> 12) & 63));
        }
        *out++ = (char)(0x80 | ((u >> 6) & 63));
    }
    *out++ = (char)(0x80 | (u & 63));
    return out;
}

// A string, decoded in place: no escape is shorter than what it stands for.
GPT2_SP_LEAF char* text_json_string(text_json* j, char* p, char** text, size_t* length) {
    if (p >= j->end || *p != '"') return text_json_error(j, p, "a string");
    char* out = ++p;
    *text = out;
    while (p < j->end && *p != '"') {
        if ((unsigned char)*p < 0x20) return text_json_error(j, p, "no control character in a string");
        if (*p != '\\') {
            *out++ = *p++;
            continue;
        }
        static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
        const char* known = p + 1 < j->end && p[1] ? strchr(from, p[1]) : NULL;
        long u = p + 1 < j->end && p[1] == 'u' ? text_json_hex(j, p + 2) : -1;
        if (known) {
            *out++ = to[known - from];
            p += 2;
            continue;
        }
        if (u < 0) return text_json_error(j, p, "one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX");
        p += 6;
        if (u >= 0xD800 && u <= 0xDFFF) {
            long low =
                u <= 0xDBFF && j->end - p >= 6 && p[0] == '\\' && p[1] == 'u' ? text_json_hex(j, p + 2) : -1;
            if (low >= 0xDC00 && low <= 0xDFFF) {
                u = 0x10000 + ((u - 0xD800) << 10) + (low - 0xDC00);
                p += 6;
            } else {
                u = 0xFFFD;
            }
        }
        out = text_utf8(out, u);
    }
    if (p >= j->end) return text_json_error(j, p, "the end of a string");
    *length = (size_t)(out - *text);
    return p + 1;
}

GPT2_SP_LEAF char* text_json_digits(text_json* j, char* p) {
    char* start = p;
    while (p < j->end && *p >= '0' && *p <= '9') p++;
    return p > start ? p : text_json_error(j, p, "a digit");
}

GPT2_SP_LEAF char* text_json_number(text_json* j, char* p) {
    if (*p == '-') p++;
    p = p < j->end && *p == '0' ? p + 1 : text_json_digits(j, p);
    if (p && p < j->end && *p == '.') p = text_json_digits(j, p + 1);
    if (p && p < j->end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < j->end && (*p == '+' || *p == '-')) p++;
        p = text_json_digits(j, p);
    }
    return p;
}

// Any value at nesting `depth`. Of the outermost object, the place and length of "text" go to *text, *length;
// its own members are at depth 1.
GPT2_SP_LEAF char* text_json_value(text_json* j, char* p, int depth, char** text, size_t* length) {
    static const char* const words[] = {"true", "false", "null"};
    if (p >= j->end) return text_json_error(j, p, "a value");
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(words[i]);
        if ((size_t)(j->end - p) >= n && memcmp(p, words[i], n) == 0) return p + n;
    }
    char* ignored;
    size_t ignored_length;
    if (*p == '"') return text_json_string(j, p, &ignored, &ignored_length);
    if (*p == '-' || (*p >= '0' && *p <= '9')) return text_json_number(j, p);
    if (*p != '{' && *p != '[') return text_json_error(j, p, "a value");
    if (depth == TEXT_MAX_NESTING) return text_json_error(j, p, "at most 64 nested values");
    int object = *p == '{';
    char close = object ? '}' : ']';
    p = text_json_space(j, p + 1);
    if (p < j->end && *p == close) return p + 1;
    for (;;) {
        char *key = NULL, *start = p;
        size_t key_length = 0;
        if (object) {
            p = text_json_string(j, p, &key, &key_length);
            if (!p) return NULL;
            p = text_json_space(j, p);
            if (p >= j->end || *p != ':') return text_json_error(j, p, "a colon");
            p = text_json_space(j, p + 1);
        }
        if (depth == 0 && key_length == 4 && memcmp(key, "text", 4) == 0) {
            if (*text) return text_json_error(j, start, "one field \"text\"");
            if (p >= j->end || *p != '"') return text_json_error(j, p, "a string as \"text\"");
            p = text_json_string(j, p, text, length);
        } else {
            p = text_json_value(j, p, depth + 1, text, length);
        }
        if (!p) return NULL;
        p = text_json_space(j, p);
        if (p < j->end && *p == close) return p + 1;
        if (p >= j->end || *p != ',') return text_json_error(j, p, object ? "a comma or }" : "a comma or ]");
        p = text_json_space(j, p + 1);
    }
}

// One line of a .jsonl file; it is decoded in place.
GPT2_SP_LEAF int text_line(text_reader* r, char* line, size_t length, const char* path, uint64_t number) {
    text_json j = {line + length, NULL, NULL};
    char *text = NULL, *p = text_json_space(&j, line);
    size_t text_length = 0;
    if (p == j.end) return 0;
    if (*p != '{') p = text_json_error(&j, p, "an object");
    else p = text_json_value(&j, p, 0, &text, &text_length);
    if (p && text_json_space(&j, p) != j.end)
        p = text_json_error(&j, text_json_space(&j, p), "the end of the line");
    if (p && !text) p = text_json_error(&j, line, "a field \"text\"");
    if (p) return text_give(r, text, text_length, path, number);
    char found[16] = "the end";
    if (j.at < j.end) {
        unsigned char c = (unsigned char)*j.at;
        snprintf(found, sizeof found, c > 32 && c < 127 ? "'%c'" : "byte %02x", c);
    }
    return text_error(r, "%s:%" PRIu64 ": column %zu: found %s, expected %s", path, number,
        (size_t)(j.at - line) + 1, found, j.expected);
}

// ================================================================================
// kinds of files

enum {
    TEXT_WHOLE,
    TEXT_LINES,
    TEXT_MARKUP,
    TEXT_TABLE,
    TEXT_JSON,
    TEXT_PACKED,
    TEXT_PAGES,
    TEXT_UNNAMED,
    TEXT_OTHER
};

static const struct {
    const char* ending;   // in small letters
    int kind;
} text_endings[] = {{".txt", TEXT_WHOLE}, {".text", TEXT_WHOLE}, {".md", TEXT_WHOLE},
    {".markdown", TEXT_WHOLE}, {".rst", TEXT_WHOLE}, {".tex", TEXT_WHOLE}, {".c", TEXT_WHOLE},
    {".h", TEXT_WHOLE}, {".cc", TEXT_WHOLE}, {".cpp", TEXT_WHOLE}, {".hpp", TEXT_WHOLE}, {".cu", TEXT_WHOLE},
    {".cuh", TEXT_WHOLE}, {".py", TEXT_WHOLE}, {".sh", TEXT_WHOLE}, {".jsonl", TEXT_LINES},
    {".ndjson", TEXT_LINES}, {".html", TEXT_MARKUP}, {".htm", TEXT_MARKUP}, {".xhtml", TEXT_MARKUP},
    {".xml", TEXT_MARKUP}, {".csv", TEXT_TABLE}, {".tsv", TEXT_TABLE}, {".parquet", TEXT_TABLE},
    {".arrow", TEXT_TABLE}, {".feather", TEXT_TABLE}, {".json", TEXT_JSON}, {".zip", TEXT_PACKED},
    {".tar", TEXT_PACKED}, {".tgz", TEXT_PACKED}, {".bz2", TEXT_PACKED}, {".xz", TEXT_PACKED},
    {".zst", TEXT_PACKED}, {".7z", TEXT_PACKED}, {".pdf", TEXT_PAGES}, {".doc", TEXT_PAGES},
    {".docx", TEXT_PAGES}, {".odt", TEXT_PAGES}, {".epub", TEXT_PAGES}, {".rtf", TEXT_PAGES}};

// Why a kind is not read as it is; NULL: it is.
static const char* const text_reasons[] = {NULL, NULL,
    "its tags and scripts are no text: take the text out of it, to .txt or .jsonl",
    "a table: write its column of texts to .jsonl (in each line an object with \"text\")",
    "JSON: write a line of .jsonl (an object with \"text\") for each document",
    "an archive: unpack it; only .gz of texts and .jsonl is read",
    "pages with their layout: take the text out of it, to .txt or .jsonl", NULL, NULL};

// Does `name`, of length n, end in `ending` (small letters), and begin before it?
GPT2_SP_LEAF int text_ends(const char* name, size_t n, const char* ending) {
    size_t m = strlen(ending);
    if (n <= m) return 0;
    for (size_t i = 0; i < m; i++) {
        char c = name[n - m + i];
        if ((c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c) != ending[i])
            return 0;   // not by the locale's letters
    }
    return 1;
}

// The kind of a file by its name; *gzip: packed.
GPT2_SP_LEAF int text_kind(const char* path, int* gzip) {
    const char* name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    size_t n = strlen(name);
    *gzip = text_ends(name, n, ".gz");
    if (*gzip) n -= 3;
    for (size_t i = 0; i < sizeof text_endings / sizeof *text_endings; i++)
        if (text_ends(name, n, text_endings[i].ending)) return text_endings[i].kind;
    return memchr(name, '.', n) ? TEXT_OTHER : TEXT_UNNAMED;
}

// Leaves an entry of a folder out. Returns 0.
GPT2_SP_LEAF int text_left_out(text_reader* r, const char* path, const char* why) {
    if (r->skipped++ == 0) snprintf(r->first_skipped, sizeof r->first_skipped, "%.250s: %s", path, why);
    if (r->skip) r->skip(r->user, path, why);
    return 0;
}

// ================================================================================
// files

enum { TEXT_PIECE = 1 << 16 };   // bytes of a packed file in memory

typedef struct {   // a file that is read from front to back
    const char* path;
    int fd;
    int gzip, inside;        // packed; within one of the streams that a packed file is made of
    int streams, filled;     // it has one at least; zeros behind the last have begun, which fill it up
    z_stream z;              // if packed
    unsigned char* packed;   // (TEXT_PIECE)
} text_source;

// Reads up to n bytes. Returns their number, 0 at the end, -1 on error.
GPT2_SP_LEAF long text_get(const text_reader* r, text_source* s, char* out, size_t n) {
    unsigned char* to = s->gzip ? s->packed : (unsigned char*)out;
    if (n > (size_t)1 << 30) n = (size_t)1 << 30;
    s->z.next_out = (unsigned char*)out;
    s->z.avail_out = (uInt)n;
    for (;;) {
        ssize_t got = 1;
        if (!s->gzip || s->z.avail_in == 0) {
            do got = read(s->fd, to, s->gzip ? (size_t)TEXT_PIECE : n);
            while (got < 0 && errno == EINTR);
            if (got < 0) return text_error(r, "%s: reading: %s", s->path, strerror(errno));
            if (!s->gzip) return got;
            s->z.next_in = s->packed;
            s->z.avail_in = (uInt)got;
        }
        if (got == 0) return s->inside ? text_error(r, "%s: the packed data ends early", s->path) : 0;
        for (; s->streams && !s->inside && s->z.avail_in > 0 && *s->z.next_in == 0; s->filled = 1)
            s->z.next_in++, s->z.avail_in--;
        if (s->filled && s->z.avail_in > 0)
            return text_error(r, "%s: expected nothing behind the zeros after what gzip packed", s->path);
        if (s->filled) continue;
        if (!s->inside) inflateReset(&s->z);   // a packed file is one such stream after the other
        int rc = inflate(&s->z, Z_NO_FLUSH);
        s->inside = rc != Z_STREAM_END;
        s->streams |= !s->inside;
        if (rc != Z_OK && rc != Z_STREAM_END && rc != Z_BUF_ERROR)
            return text_error(
                r, "%s: not what gzip packs, or damaged: %s", s->path, s->z.msg ? s->z.msg : zError(rc));
        if (s->z.avail_out < (uInt)n) return (long)(n - s->z.avail_out);
    }
}

// Adds what is left of a file, up to TEXT_MAX_DOCUMENT bytes in all, to a growing buffer of *length bytes.
// With `line`, stops as soon as a newline is among the new bytes. Returns 1 at the end of the file, 0
// before it, -1 on error.
GPT2_SP_LEAF int text_fill(
    const text_reader* r, text_source* s, char** buffer, size_t* capacity, size_t* length, int line) {
    for (;;) {
        if (*length == *capacity) {
            // One byte over the limit is read, so that a document of exactly the limit is told from a longer
            // one.
            size_t wanted = *capacity ? *capacity * 2 : 1 << 16;
            if (wanted > TEXT_MAX_DOCUMENT + 1) wanted = TEXT_MAX_DOCUMENT + 1;
            char* grown = wanted > *capacity ? (char*)realloc(*buffer, wanted) : NULL;
            if (!grown)
                return text_error(r, "%s: %s longer than %zu bytes, or no memory", s->path,
                    line ? "a line" : "a document", wanted > *capacity ? *capacity : TEXT_MAX_DOCUMENT);
            *buffer = grown;
            *capacity = wanted;
        }
        long n = text_get(r, s, *buffer + *length, *capacity - *length);
        if (n <= 0) return n < 0 ? -1 : 1;
        *length += (size_t)n;
        if (line && memchr(*buffer + *length - n, '\n', (size_t)n)) return 0;
    }
}

GPT2_SP_LEAF size_t text_mark(const char* bytes, size_t length) {
    return length >= 3 && memcmp(bytes, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
}

// All lines of a .jsonl file.
GPT2_SP_LEAF int text_lines(text_reader* r, text_source* s, char** buffer) {
    size_t capacity = 0, length = 0;
    uint64_t number = 0;
    for (int end = 0; !end;) {
        end = text_fill(r, s, buffer, &capacity, &length, 1);
        if (end < 0) return -1;
        size_t at = number == 0 ? text_mark(*buffer, length) : 0;
        // the whole lines that are there, and at the end of the file a last one without newline
        while (at < length) {
            char* newline = (char*)memchr(*buffer + at, '\n', length - at);
            if (!newline && !end) break;
            size_t n = newline ? (size_t)(newline - *buffer) - at : length - at;
            if (text_line(r, *buffer + at, n, s->path, ++number)) return -1;
            at += n + (newline != NULL);
        }
        memmove(*buffer, *buffer + at, length - at);
        length -= at;
    }
    return 0;
}

// A whole file, of `size` bytes on the disk, as one document. With `maybe` it is left out if it is no text.
GPT2_SP_LEAF int text_whole(text_reader* r, text_source* s, char** buffer, uint64_t size, int maybe) {
    static const char no_text[] = "its name has no ending and its content NUL bytes: no text";
    char front[4096];
    ssize_t n = maybe && !s->gzip ? pread(s->fd, front, sizeof front, 0) : 0;
    if (n > 0 && memchr(front, 0, (size_t)n)) return text_left_out(r, s->path, no_text);
    if (size > TEXT_MAX_DOCUMENT && !s->gzip)
        return text_error(
            r, "%s: a document of %" PRIu64 " bytes, expected at most %zu", s->path, size, TEXT_MAX_DOCUMENT);
    // should the file grow while it is read, text_fill bounds that
    size_t capacity = s->gzip ? (size_t)TEXT_PIECE : (size_t)size + 1, length = 0;
    *buffer = (char*)malloc(capacity);
    if (!*buffer) return text_error(r, "%s: no memory for %zu bytes", s->path, capacity);
    if (text_fill(r, s, buffer, &capacity, &length, 0) < 0) return -1;
    const char* nul = (const char*)memchr(*buffer, 0, length);
    if (nul && maybe) return text_left_out(r, s->path, no_text);
    if (nul) return text_error(r, "%s: byte %zu is NUL, expected text", s->path, (size_t)(nul - *buffer));
    size_t mark = text_mark(*buffer, length);
    return text_give(r, *buffer + mark, length - mark, s->path, 1);
}

// Starts to inflate what an open file packs.
GPT2_SP_LEAF int text_unpack(const text_reader* r, text_source* s) {
    s->packed = (unsigned char*)malloc(TEXT_PIECE);
    if (s->packed && inflateInit2(&s->z, 15 + 16) == Z_OK) return 0;   // 16: with gzip's header and check
    free(s->packed);
    s->packed = NULL;
    return text_error(r, "%s: no memory", s->path);
}

// Reads one file: `named` by the user, or else found in a folder.
GPT2_SP_LEAF int text_file(text_reader* r, const char* path, int named) {
    struct stat st;
    char* buffer = NULL;
    text_source s;
    memset(&s, 0, sizeof s);
    s.path = path;
    int kind = text_kind(path, &s.gzip), rc = 0;
    if (text_reasons[kind] && !named) return text_left_out(r, path, text_reasons[kind]);
    s.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);   // NONBLOCK: a pipe is refused, not waited for
    if (s.fd < 0) return text_error(r, "%s: %s", path, strerror(errno));
    if (fstat(s.fd, &st)) rc = text_error(r, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode)) rc = text_error(r, "%s: neither a regular file nor a folder", path);
    else if (text_reasons[kind])
        rc = text_error(
            r, "%s: %s. To have its bytes as they are, let its name end in .txt", path, text_reasons[kind]);
    for (int i = 0; rc == 0 && i < r->output_count; i++)
        if (st.st_dev == r->outputs[i].st_dev && st.st_ino == r->outputs[i].st_ino)
            rc = text_error(r, "%s: an input that is the output too", path);
    if (rc == 0 && s.gzip) rc = text_unpack(r, &s);
    if (rc == 0 && st.st_size == 0 && !named) text_left_out(r, path, "empty");
    else if (rc == 0 && kind == TEXT_LINES) rc = text_lines(r, &s, &buffer);
    else if (rc == 0) rc = text_whole(r, &s, &buffer, (uint64_t)st.st_size, kind == TEXT_UNNAMED && !named);
    if (s.packed) inflateEnd(&s.z);
    free(s.packed);
    free(buffer);
    close(s.fd);
    return rc;
}

// ================================================================================
// folders

GPT2_SP_LEAF int text_by_name(const void* a, const void* b) {
    return strcmp(*(char* const*)a, *(char* const*)b);
}

// The paths of a folder's entries, sorted by their bytes in any locale, to *paths (to be freed one by one,
// also on error).
GPT2_SP_LEAF int text_list(const text_reader* r, const char* path, char*** paths, size_t* count) {
    size_t capacity = 0, length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;   // "a//" and "b" -> "a/b"
    DIR* folder = opendir(path);
    if (!folder) return text_error(r, "%s: %s", path, strerror(errno));
    int rc = 0;
    struct dirent* entry;
    while (errno = 0, (entry = readdir(folder)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (*count == capacity) {
            capacity = capacity * 2 + 64;
            char** grown = (char**)realloc(*paths, capacity * sizeof *grown);
            if (!grown) break;
            *paths = grown;
        }
        size_t bytes = length + strlen(entry->d_name) + 2;
        char* child = (char*)malloc(bytes);
        if (!child) break;
        snprintf(
            child, bytes, "%.*s%s%s", (int)length, path, path[length - 1] == '/' ? "" : "/", entry->d_name);
        (*paths)[(*count)++] = child;
    }
    if (entry || errno) rc = text_error(r, "%s: listing: %s", path, entry ? "no memory" : strerror(errno));
    closedir(folder);
    if (*count) qsort(*paths, *count, sizeof **paths, text_by_name);
    return rc;
}

// One entry of a folder. Returns 0, -1, or 1 for a folder, which is to be walked.
GPT2_SP_LEAF int text_entry(text_reader* r, const char* path) {
    struct stat st;
    const char* name = strrchr(path, '/') + 1;
    int gzip, kind = text_kind(path, &gzip);
    if (lstat(path, &st)) return text_error(r, "%s: %s", path, strerror(errno));
    if (name[0] == '.') return text_left_out(r, path, "hidden");
    if (S_ISLNK(st.st_mode)) {
        if (stat(path, &st)) {
            if (kind != TEXT_OTHER && !text_reasons[kind])
                return text_error(r, "%s: %s (a link)", path, strerror(errno));
            return text_left_out(r, path, "a link to nothing");
        }
        if (S_ISDIR(st.st_mode)) return text_left_out(r, path, "a link to a folder");
    }
    if (S_ISDIR(st.st_mode)) return 1;
    if (!S_ISREG(st.st_mode)) return text_left_out(r, path, "neither a regular file nor a folder");
    if (kind == TEXT_OTHER)
        return text_left_out(
            r, path, "not a kind that is taken from a folder: name the file to have it read");
    return text_file(r, path, 0);
}

GPT2_SP_LEAF int text_folder(text_reader* r, const char* path, int depth) {
    char** paths = NULL;
    size_t count = 0;
    if (depth > TEXT_MAX_DEPTH)
        return text_error(r, "%s: more than %d folders inside each other", path, (int)TEXT_MAX_DEPTH);
    int rc = text_list(r, path, &paths, &count);
    for (size_t i = 0; i < count; i++) {
        if (rc == 0) rc = text_entry(r, paths[i]);
        if (rc > 0) rc = text_folder(r, paths[i], depth + 1);
        free(paths[i]);
    }
    free(paths);
    return rc;
}

// Calls r->document for every document of the file or folder `path`.
GPT2_SP_LEAF int text_documents(text_reader* r, const char* path) {
    struct stat st;
    uint64_t documents = r->documents, skipped = r->skipped;
    if (stat(path, &st)) return text_error(r, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode)) return text_file(r, path, 1);
    r->skipped = 0;
    if (text_folder(r, path, 0)) return -1;
    if (r->documents == documents && r->skipped == 0)
        return text_error(
            r, "%s: no documents in this folder, expected .txt, .jsonl, .md or source files with text", path);
    if (r->documents == documents)
        return text_error(r,
            "%s: no documents in this folder, expected .txt, .jsonl, .md or source files with text; %" PRIu64
            " left out, the first: %s",
            path, r->skipped, r->first_skipped);
    r->skipped += skipped;
    return 0;
}

#endif
