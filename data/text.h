// text.h: documents from text files, JSON lines and folders of them.
//
//     int one(void* user, const char* bytes, size_t length, const char* path, uint64_t line) { return 0; }
//     if (text_documents("corpus/", one, user, err, sizeof err)) ...   // err says what is wrong, and where
//
// What becomes a document:
//     x.jsonl      each line that is not blank: an object, whose "text" string is the document; other fields
//                  are only checked to be JSON. Escapes are undone to UTF-8, a surrogate without its partner
//                  becomes U+FFFD.
//                  Not JSON, no "text", two of them, or one that is no string: an error with file:line
//     any other    the whole file, whatever its name, if it was named: a regular file without NUL bytes
//     a folder     its files of the kinds in text_kinds, and its folders' down to TEXT_MAX_DEPTH, in the
//                  order of their names' bytes; hidden entries are left out, links to files are read,
//                  links to folders are not followed
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
// text_documents returns 0, or -1 with one line in err. Needs libc and POSIX; under -std=c11 define
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

typedef struct {   // what is handed down from call to call
    text_callback cb;
    void* user;
    uint64_t documents;   // given to cb so far
    char* err;
    size_t err_size;
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
    if (r->cb(r->user, bytes, length, path, line) == 0) return 0;
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
// files

// Adds what is left of fd, up to `limit` bytes in all, to a growing buffer of *length bytes. With `line`,
// stops as soon as a newline is among the new bytes. Returns 1 at the end of the file, 0 before it, -1 on
// error.
GPT2_SP_LEAF int text_fill(const text_reader* r, int fd, char** buffer, size_t* capacity, size_t* length,
    int line, const char* path) {
    for (;;) {
        if (*length == *capacity) {
            // One byte over the limit is read, so that a document of exactly the limit is told from a longer
            // one.
            size_t wanted = *capacity ? *capacity * 2 : 1 << 16;
            if (wanted > TEXT_MAX_DOCUMENT + 1) wanted = TEXT_MAX_DOCUMENT + 1;
            char* grown = wanted > *capacity ? (char*)realloc(*buffer, wanted) : NULL;
            if (!grown)
                return text_error(r, "%s: %s longer than %zu bytes, or no memory", path,
                    line ? "a line" : "a document", wanted > *capacity ? *capacity : TEXT_MAX_DOCUMENT);
            *buffer = grown;
            *capacity = wanted;
        }
        ssize_t n = read(fd, *buffer + *length, *capacity - *length);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return text_error(r, "%s: reading: %s", path, strerror(errno));
        if (n == 0) return 1;
        *length += (size_t)n;
        if (line && memchr(*buffer + *length - n, '\n', (size_t)n)) return 0;
    }
}

GPT2_SP_LEAF size_t text_mark(const char* bytes, size_t length) {
    return length >= 3 && memcmp(bytes, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
}

// All lines of a .jsonl file.
GPT2_SP_LEAF int text_lines(text_reader* r, int fd, char** buffer, const char* path) {
    size_t capacity = 0, length = 0;
    uint64_t number = 0;
    for (int end = 0; !end;) {
        end = text_fill(r, fd, buffer, &capacity, &length, 1, path);
        if (end < 0) return -1;
        size_t at = number == 0 ? text_mark(*buffer, length) : 0;
        while (at <
            // the whole lines that are there, and at the end of the file a last one without newline
            length) {
            char* newline = (char*)memchr(*buffer + at, '\n', length - at);
            if (!newline && !end) break;
            size_t n = newline ? (size_t)(newline - *buffer) - at : length - at;
            if (text_line(r, *buffer + at, n, path, ++number)) return -1;
            at += n + (newline != NULL);
        }
        memmove(*buffer, *buffer + at, length - at);
        length -= at;
    }
    return 0;
}

// A whole file as one document.
GPT2_SP_LEAF int text_whole(text_reader* r, int fd, char** buffer, uint64_t size, const char* path) {
    if (size > TEXT_MAX_DOCUMENT)
        return text_error(
            r, "%s: a document of %" PRIu64 " bytes, expected at most %zu", path, size, TEXT_MAX_DOCUMENT);
    size_t capacity = (size_t)size + 1,
           length = 0;   // should the file grow while it is read, text_fill bounds that
    *buffer = (char*)malloc(capacity);
    if (!*buffer) return text_error(r, "%s: no memory for %" PRIu64 " bytes", path, size);
    if (text_fill(r, fd, buffer, &capacity, &length, 0, path) < 0) return -1;
    const char* nul = (const char*)memchr(*buffer, 0, length);
    if (nul) return text_error(r, "%s: byte %zu is NUL, expected text", path, (size_t)(nul - *buffer));
    size_t mark = text_mark(*buffer, length);
    return text_give(r, *buffer + mark, length - mark, path, 1);
}

// The kinds of files taken from folders: endings, and one whole name.
static const char* const text_kinds[] = {
    ".txt", ".jsonl", ".md", ".rst", ".tex", ".c", ".h", ".cu", ".cuh", ".py", ".sh"};

GPT2_SP_LEAF int text_has_ending(const char* path, const char* ending) {
    size_t n = strlen(path), m = strlen(ending);
    return n > m && path[n - m - 1] != '/' && strcmp(path + n - m, ending) == 0;
}

GPT2_SP_LEAF int text_is_kind(const char* name) {
    for (size_t i = 0; i < sizeof text_kinds / sizeof *text_kinds; i++)
        if (text_has_ending(name, text_kinds[i])) return 1;
    return strcmp(name, "Makefile") == 0;
}

GPT2_SP_LEAF int text_file(text_reader* r, const char* path) {
    struct stat st;
    char* buffer = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK),
        rc;   // NONBLOCK: a pipe is refused, not waited for
    if (fd < 0) return text_error(r, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st)) rc = text_error(r, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode)) rc = text_error(r, "%s: neither a regular file nor a folder", path);
    else if (text_has_ending(path, ".jsonl")) rc = text_lines(r, fd, &buffer, path);
    else rc = text_whole(r, fd, &buffer, (uint64_t)st.st_size, path);
    free(buffer);
    close(fd);
    return rc;
}

// ================================================================================
// folders

GPT2_SP_LEAF int text_by_name(const void* a, const void* b) {
    return strcmp(*(char* const*)a, *(char* const*)b);
}

// The paths of a folder's entries that are not hidden, sorted, to *paths (to be freed one by one, also on
// error).
GPT2_SP_LEAF int text_list(const text_reader* r, const char* path, char*** paths, size_t* count) {
    size_t capacity = 0, length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;   // "a//" and "b" -> "a/b"
    DIR* folder = opendir(path);
    if (!folder) return text_error(r, "%s: %s", path, strerror(errno));
    int rc = 0;
    struct dirent* entry;
    while (errno = 0, (entry = readdir(folder)) != NULL) {
        if (entry->d_name[0] == '.') continue;
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

GPT2_SP_LEAF int text_folder(text_reader* r, const char* path, int depth) {
    char** paths = NULL;
    size_t count = 0;
    if (depth > TEXT_MAX_DEPTH)
        return text_error(r, "%s: more than %d folders inside each other", path, (int)TEXT_MAX_DEPTH);
    int rc = text_list(r, path, &paths, &count);
    for (size_t i = 0; i < count; i++) {
        struct stat st;
        const char* name = strrchr(paths[i], '/') + 1;
        if (rc == 0 && lstat(paths[i], &st)) rc = text_error(r, "%s: %s", paths[i], strerror(errno));
        int link = rc == 0 && S_ISLNK(st.st_mode);
        if (link && text_is_kind(name) && stat(paths[i], &st))
            rc = text_error(r, "%s: %s (a link)", paths[i], strerror(errno));
        if (rc == 0 && !link && S_ISDIR(st.st_mode)) rc = text_folder(r, paths[i], depth + 1);
        if (rc == 0 && S_ISREG(st.st_mode) && text_is_kind(name)) rc = text_file(r, paths[i]);
        free(paths[i]);
    }
    free(paths);
    return rc;
}

// Calls cb(user, ...) for every document of the file or folder `path`.
GPT2_SP_LEAF int text_documents(const char* path, text_callback cb, void* user, char* err, size_t err_size) {
    text_reader r = {cb, user, 0, err, err_size};
    struct stat st;
    if (stat(path, &st)) return text_error(&r, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode)) return text_file(&r, path);
    if (text_folder(&r, path, 0)) return -1;
    if (r.documents == 0)
        return text_error(&r,
            "%s: no documents in this folder, expected .txt, .jsonl, .md or source files with text", path);
    return 0;
}

#endif
