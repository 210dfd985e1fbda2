// text.h: documents from text files, pages, JSON lines and folders of them, also packed by gzip.
//
//     int one(void* user, const text_piece* piece) { return 0; }
//     text_reader r = {one, user, err, sizeof err};      // what else it has is set by name
//     if (text_documents(&r, "corpus/")) ...             // err says what is wrong, and where
//
// A document comes in one or more pieces, so that one of any length fits in memory. TEXT_BEGIN marks the
// first, TEXT_END the last, which may be empty. Documents are made of parts, most of one: the pieces up to
// one with TEXT_EDGE. No token may lie across the edge of two. TEXT_MASKED marks what is read but not learnt:
// the tokens of the piece, and in the last piece the token that ends the document. TEXT_UNDONE, in a last
// piece, takes the document back: it was none.
//
// What becomes a document, by the ending of a file's name (letters' case does not matter):
//     .jsonl, .ndjson  each line that is not blank: an object. Other fields than these are only checked to be
//                      JSON. Escapes are undone to UTF-8, a surrogate without its partner becomes U+FFFD.
//                          "text"                      the document
//                          "prompt", "completion"      two parts, the first masked
//                          "messages"                  an array of objects with "role" and "content": each
//                                                      content and a newline is a part, masked but for the
//                                                      role "assistant"; the end token is masked if the last
//                                                      part is
//                      With `field` only what has that name counts: a string is the document, an array is
//                      messages. a.b is the member "b" of an object "a", or a member "a.b".
//                      Not JSON, none of these, two of them, or another type: an error with file:line
//     .html .htm .xhtml  the text of the page (html.h)
//     text             .txt, .md and others (TEXT_WHOLE in text_endings): the whole file
//     .gz behind one   the same, of what is packed in it; inflated piece by piece
//     .xml, .csv ...   no text as they are (text_reasons): refused where named, left out of a folder. Who
//                      wants the bytes as they are gives the file a name that ends in .txt
//     any other        the whole file if it was named; of a folder, only a name without an ending (README,
//                      Makefile)
// A file of text is a regular file without NUL bytes; in a folder one with such bytes is left out. The path -
// is standard input, of the kind r->format.
//
// A folder gives its files in the order of their names' bytes, and its folders' down to TEXT_MAX_DEPTH; the
// merges.txt of a tokenizer and the log.jsonl of a run are none (text_beside). Links to files are read.
// `skip` is told of whatever is left out, hidden entries and links to folders too.
//
// A UTF-8 byte order mark at the start of a file is dropped, all other bytes are passed on as they are. A
// document of no bytes holds nothing to learn and is passed over. A folder without any document is an error.
//
// Memory: TEXT_PIECE bytes of a file, or a line of JSON, at most TEXT_MAX_LINE bytes; a longer one is
// refused. The paths of a folder's entries, and those of the folders around it, are in memory too.
//
// The bytes given to the callback are its to read until it returns, and are not NUL-terminated; line counts
// from 1 (1 for a whole file). A callback that returns non-zero ends it all: text_documents then returns -1,
// with the callback's own message if it put one in the same err.
//
// With measure = 1 nothing is read: text_documents only adds the sizes of the files that it would read to
// `size`. Later `consumed` says how many of those bytes have been read.
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
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "html.h"

#ifndef GPT2_SP_LEAF
#define GPT2_SP_LEAF static __attribute__((unused))
#endif
#ifndef TEXT_MAX_LINE
#define TEXT_MAX_LINE ((size_t)1 << 30)   // bytes of a line of JSON
#endif
enum {
    TEXT_MAX_DEPTH = 64,     // folders inside folders
    TEXT_MAX_NESTING = 64,   // arrays and objects inside each other, in a line of JSON
    TEXT_PIECE = 1 << 16     // bytes of a file in memory
};
enum {                 // what a piece is, as bits
    TEXT_BEGIN = 1,    // the first of its document
    TEXT_EDGE = 2,     // the last of its part
    TEXT_END = 4,      // the last of its document, and of its part
    TEXT_MASKED = 8,   // its tokens are not learnt
    TEXT_UNDONE = 16   // the document is taken back
};

typedef struct {
    const char* bytes;
    size_t length;
    const char* path;   // where it stands, for messages
    uint64_t line;
    int flags;
} text_piece;

typedef int (*text_callback)(void* user, const text_piece* piece);
// Told of an entry of a folder that is left out, and why: a line that stays.
typedef void (*text_skip)(void* user, const char* path, const char* why);

typedef struct {
    text_callback document;
    void* user;   // of both functions
    char* err;
    size_t err_size;
    text_skip skip;               // NULL: nobody is told
    const char* field;            // of JSON lines; NULL: those above
    int format;                   // of standard input: TEXT_WHOLE, TEXT_LINES or TEXT_HTML
    const struct stat* outputs;   // files that are being written, and so must not be read
    int output_count;
    const volatile sig_atomic_t* stop;   // non-zero: give up. NULL: nobody asks for that
    int measure;                         // only look how much there is
    uint64_t size, consumed;             // bytes of files, as they lie on the disk
    uint64_t documents;                  // given so far
    uint64_t skipped;                    // entries left out so far, and the first of them
    char first_skipped[400];
    int open;          // a document has begun and not ended
    int input_taken;   // standard input was read
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

// Hands a piece to the callback, and marks the first of its document. Where there is nothing it goes
// without: a document without bytes never begins.
GPT2_SP_LEAF int text_give(
    text_reader* r, const char* bytes, size_t length, const char* path, uint64_t line, int flags) {
    if (length == 0 && !(r->open && (flags & TEXT_END))) return 0;
    text_piece piece = {bytes, length, path, line, flags | (r->open ? 0 : TEXT_BEGIN)};
    r->open = !(flags & TEXT_END);
    r->documents += (flags & (TEXT_END | TEXT_UNDONE)) == TEXT_END;
    if (r->err && r->err_size) r->err[0] = 0;
    if (r->document(r->user, &piece) == 0) return 0;
    if (r->err && r->err_size && r->err[0]) return -1;
    return text_error(r, "%s:%" PRIu64 ": stopped at this document", path, line);
}

// ================================================================================ JSON: one value at a time
// from a line [p, end). Functions return the place behind what they read, or NULL with what was expected in
// j->expected and where in j->at.

typedef struct {
    char* bytes;
    size_t length;
    int masked;
} text_part;

enum { TEXT_FIELD_TEXT, TEXT_FIELD_PROMPT, TEXT_FIELD_COMPLETION, TEXT_FIELD_MESSAGES, TEXT_FIELDS };

typedef struct {
    char* end;
    const char* expected;
    char* at;
    const char* field;                      // the only member that counts; NULL: those that text_fields names
    char named[160];                        // the same, for messages
    text_part found[TEXT_FIELD_MESSAGES];   // bytes NULL: not there
    int messages;                           // an array of messages was there
    text_part* part;                        // their contents, with a newline behind each (count)
    size_t count, capacity;
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

// A string, decoded in place: no escape is shorter than what it stands for.
GPT2_SP_LEAF char* text_json_string(text_json* j, char* p, char** text, size_t* length) {
    if (p >= j->end || *p != '"') return text_json_error(j, p, "a string");
    char* out = ++p;
    *text = out;
    while (p < j->end && *p != '"') {
        char* run = p;
        while (p < j->end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20) p++;
        if (out != run) memmove(out, run, (size_t)(p - run));
        out += p - run;
        if (p == j->end || *p == '"') break;
        if (*p != '\\') return text_json_error(j, p, "no control character in a string");
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
        out = html_utf8(out, u);
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

// The members that count where `field` is NULL, in the order of TEXT_FIELD_TEXT and so on.
static const char* const text_fields[TEXT_FIELDS] = {"text", "prompt", "completion", "messages"};

// Where a member's name leads on the way to `path`, of which NULL has left the way: the rest of the path, ""
// at its end, or NULL. "a" and "a." both begin a path "a.b".
GPT2_SP_LEAF const char* text_json_way(const char* path, const char* name, size_t n) {
    if (!path || strlen(path) < n || memcmp(path, name, n) != 0) return NULL;
    return path[n] == '.' ? path + n + 1 : path[n] == 0 ? path + n : NULL;
}

GPT2_SP_LEAF char* text_json_value(text_json* j, char* p, int depth, const char* way);

// A member whose name is text_fields[which], or with a `field` the one of that name.
GPT2_SP_LEAF char* text_json_string_of(text_json* j, char* p, int which) {
    static const char* const wanted[] = {
        "a string as \"text\"", "a string as \"prompt\"", "a string as \"completion\""};
    text_part* found = &j->found[which];
    if (p >= j->end || *p != '"') return text_json_error(j, p, j->field ? j->named : wanted[which]);
    found->masked = which == TEXT_FIELD_PROMPT;
    return text_json_string(j, p, &found->bytes, &found->length);
}

// One message, at its brace: an object with a "role" and a "content". Adds the content.
GPT2_SP_LEAF char* text_json_message(text_json* j, char* p) {
    static const char* const names[] = {"role", "content"};
    static const char* const twice[] = {"one \"role\"", "one \"content\""};
    text_part is[2] = {{NULL, 0, 0}, {NULL, 0, 0}};
    char* start = p;
    if (p >= j->end || *p != '{')
        return text_json_error(j, p, "a message: {\"role\": ..., \"content\": ...}");
    p = text_json_space(j, p + 1);
    for (int more = p < j->end && *p != '}'; more;) {
        char *key, *member = p;
        size_t n;
        int which = 0;
        p = text_json_string(j, p, &key, &n);
        if (p) p = text_json_space(j, p);
        if (p && (p >= j->end || *p != ':')) p = text_json_error(j, p, "a colon");
        if (!p) return NULL;
        p = text_json_space(j, p + 1);
        while (which < 2 && (n != strlen(names[which]) || memcmp(key, names[which], n) != 0)) which++;
        if (which < 2 && is[which].bytes) return text_json_error(j, member, twice[which]);
        p = which < 2 ? text_json_string(j, p, &is[which].bytes, &is[which].length)
                      : text_json_value(j, p, 3, NULL);
        if (p) p = text_json_space(j, p);
        if (!p) return NULL;
        more = p < j->end && *p == ',';
        if (more) p = text_json_space(j, p + 1);
    }
    if (p >= j->end || *p != '}') return text_json_error(j, p, "a comma or }");
    if (!is[0].bytes || !is[1].bytes) return text_json_error(j, start, "a \"role\" and a \"content\"");
    if (j->count == j->capacity) {
        size_t wanted = 2 * j->capacity + 16;
        text_part* grown = (text_part*)realloc(j->part, wanted * sizeof *grown);
        if (!grown) return text_json_error(j, p, "less: no memory for so many messages");
        j->part = grown;
        j->capacity = wanted;
    }
    is[1].bytes[is[1].length] = '\n';   // where its quote or what was escaped stood
    is[1].length++;
    is[1].masked = is[0].length != 9 || memcmp(is[0].bytes, "assistant", 9) != 0;
    j->part[j->count++] = is[1];
    return p + 1;
}

// The array of messages.
GPT2_SP_LEAF char* text_json_messages(text_json* j, char* p) {
    if (p >= j->end || *p != '[') return text_json_error(j, p, "an array as \"messages\"");
    j->messages = 1;
    p = text_json_space(j, p + 1);
    if (p < j->end && *p == ']') return p + 1;
    for (;;) {
        p = text_json_message(j, p);
        if (!p) return NULL;
        p = text_json_space(j, p);
        if (p < j->end && *p == ']') return p + 1;
        if (p >= j->end || *p != ',') return text_json_error(j, p, "a comma or ]");
        p = text_json_space(j, p + 1);
    }
}

// The value of a member, at p; `member` is where the member starts, `way` where its name leads. At depth 0,
// that of the outermost object's members, and on the way to `field`, it may be what is looked for.
GPT2_SP_LEAF char* text_json_member(
    text_json* j, char* member, char* p, const char* name, size_t n, int depth, const char* way) {
    int which = TEXT_FIELDS;
    if (j->field && way && !*way) which = p < j->end && *p == '[' ? TEXT_FIELD_MESSAGES : TEXT_FIELD_TEXT;
    else if (!j->field && depth == 0)
        for (which = 0; which < TEXT_FIELDS; which++)
            if (n == strlen(text_fields[which]) && memcmp(name, text_fields[which], n) == 0) break;
    if (which == TEXT_FIELDS) return text_json_value(j, p, depth + 1, way);
    static const char* const once[] = {
        "one field \"text\"", "one field \"prompt\"", "one field \"completion\"", "one field \"messages\""};
    if (j->field && (j->messages || j->found[TEXT_FIELD_TEXT].bytes))
        return text_json_error(j, member, j->named);
    if (which == TEXT_FIELD_MESSAGES ? j->messages : j->found[which].bytes != NULL)
        return text_json_error(j, member, once[which]);
    return which == TEXT_FIELD_MESSAGES ? text_json_messages(j, p) : text_json_string_of(j, p, which);
}

// Any value at nesting `depth`; the outermost object's own members are at depth 1. `way`: what is left of the
// path to `field` from here, NULL where this is not on it.
GPT2_SP_LEAF char* text_json_value(text_json* j, char* p, int depth, const char* way) {
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
    if (depth >= TEXT_MAX_NESTING) return text_json_error(j, p, "at most 64 nested values");
    int object = *p == '{';
    char close = object ? '}' : ']';
    p = text_json_space(j, p + 1);
    if (p < j->end && *p == close) return p + 1;
    for (;;) {
        char *key = NULL, *start = p;
        size_t n = 0;
        if (object) {
            p = text_json_string(j, p, &key, &n);
            if (!p) return NULL;
            p = text_json_space(j, p);
            if (p >= j->end || *p != ':') return text_json_error(j, p, "a colon");
            p = text_json_space(j, p + 1);
            p = text_json_member(j, start, p, key, n, depth, text_json_way(way, key, n));
        } else {
            p = text_json_value(j, p, depth + 1, NULL);
        }
        if (!p) return NULL;
        p = text_json_space(j, p);
        if (p < j->end && *p == close) return p + 1;
        if (p >= j->end || *p != ',') return text_json_error(j, p, object ? "a comma or }" : "a comma or ]");
        p = text_json_space(j, p + 1);
    }
}

// What the object in a line holds, as parts in j->part. Returns NULL, or what was expected instead.
GPT2_SP_LEAF const char* text_json_parts(text_json* j) {
    const text_part* f = j->found;
    int text = f[TEXT_FIELD_TEXT].bytes != NULL, prompt = f[TEXT_FIELD_PROMPT].bytes != NULL,
        completion = f[TEXT_FIELD_COMPLETION].bytes != NULL;
    if (text + (prompt || completion) + j->messages > 1)
        return "one of \"text\", \"prompt\" with \"completion\", and \"messages\", or that a field is named";
    if (!text && !j->messages && j->field) return j->named;
    if (prompt != completion) return prompt ? "a field \"completion\" too" : "a field \"prompt\" too";
    if (!text && !prompt && !j->messages)
        return "a field \"text\", or \"prompt\" and \"completion\", or \"messages\"";
    return NULL;
}

// Hands on what a line holds: the parts one after the other, then the end of the document.
GPT2_SP_LEAF int text_line_give(text_reader* r, const text_json* j, const char* path, uint64_t number) {
    const text_part *parts = j->part, *f = j->found;
    size_t count = j->count;
    if (!j->messages) {
        int pair = f[TEXT_FIELD_PROMPT].bytes != NULL;
        parts = pair ? f + TEXT_FIELD_PROMPT : f + TEXT_FIELD_TEXT;
        count = pair ? 2 : 1;
    }
    int mask = 0;
    for (size_t i = 0; i < count; i++) {
        mask = parts[i].masked ? TEXT_MASKED : 0;
        if (text_give(r, parts[i].bytes, parts[i].length, path, number, TEXT_EDGE | mask)) return -1;
    }
    return text_give(r, "", 0, path, number, TEXT_END | mask);
}

// One line of a .jsonl file; it is decoded in place.
GPT2_SP_LEAF int text_line(text_reader* r, char* line, size_t length, const char* path, uint64_t number) {
    text_json j;
    memset(&j, 0, sizeof j);
    j.end = line + length;
    j.field = r->field;
    if (j.field) snprintf(j.named, sizeof j.named, "one field \"%.100s\", a string or messages", j.field);
    char* p = text_json_space(&j, line);
    if (p == j.end) return 0;
    if (*p != '{') p = text_json_error(&j, p, "an object");
    else p = text_json_value(&j, p, 0, j.field);
    if (p && text_json_space(&j, p) != j.end)
        p = text_json_error(&j, text_json_space(&j, p), "the end of the line");
    const char* lacks = p ? text_json_parts(&j) : NULL;
    if (lacks) p = text_json_error(&j, line, lacks);
    int status = p ? text_line_give(r, &j, path, number) : -1;
    free(j.part);
    if (p) return status;
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
    TEXT_HTML,
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
    {".ndjson", TEXT_LINES}, {".html", TEXT_HTML}, {".htm", TEXT_HTML}, {".xhtml", TEXT_HTML},
    {".xml", TEXT_MARKUP}, {".csv", TEXT_TABLE}, {".tsv", TEXT_TABLE}, {".parquet", TEXT_TABLE},
    {".arrow", TEXT_TABLE}, {".feather", TEXT_TABLE}, {".json", TEXT_JSON}, {".zip", TEXT_PACKED},
    {".tar", TEXT_PACKED}, {".tgz", TEXT_PACKED}, {".bz2", TEXT_PACKED}, {".xz", TEXT_PACKED},
    {".zst", TEXT_PACKED}, {".7z", TEXT_PACKED}, {".pdf", TEXT_PAGES}, {".doc", TEXT_PAGES},
    {".docx", TEXT_PAGES}, {".odt", TEXT_PAGES}, {".epub", TEXT_PAGES}, {".rtf", TEXT_PAGES}};

// Why a kind is not read as it is; NULL: it is.
static const char* const text_reasons[] = {NULL, NULL, NULL,
    "its tags are no text: take the text out of it, to .txt or .jsonl",
    "a table: data/to_jsonl.py makes .jsonl of it (in each line an object with \"text\")",
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

typedef struct {   // a file that is read from front to back
    const char* path;
    int fd;
    int gzip, inside;        // packed; within one of the streams that a packed file is made of
    int streams, filled;     // it has one at least; zeros behind the last have begun, which fill it up
    z_stream z;              // if packed
    unsigned char* packed;   // (TEXT_PIECE)
} text_source;

// read() of up to n bytes; a pipe is waited for until r->stop. -1 with a message.
GPT2_SP_LEAF long text_read(text_reader* r, const text_source* s, void* out, size_t n) {
    ssize_t got = -1;
    do {
        struct pollfd ready = {s->fd, POLLIN, 0};
        while (r->stop && !*r->stop && poll(&ready, 1, 200) == 0) continue;   // always ready if it is a file
        if (r->stop && *r->stop) return text_error(r, "%s: stopped", s->path);
        got = read(s->fd, out, n);
    } while (got < 0 && errno == EINTR);
    if (got < 0) return text_error(r, "%s: reading: %s", s->path, strerror(errno));
    r->consumed += (uint64_t)got;
    return got;
}

// Reads up to n bytes of the text. Returns their number, 0 at the end, -1 on error.
GPT2_SP_LEAF long text_get(text_reader* r, text_source* s, char* out, size_t n) {
    if (n > (size_t)1 << 30) n = (size_t)1 << 30;
    if (!s->gzip) return text_read(r, s, out, n);
    s->z.next_out = (unsigned char*)out;
    s->z.avail_out = (uInt)n;
    for (;;) {
        long got = 1;
        if (s->z.avail_in == 0) {
            got = text_read(r, s, s->packed, TEXT_PIECE);
            if (got < 0) return -1;
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

// Adds to a growing buffer of *length bytes, of up to TEXT_MAX_LINE and one more, until a newline is among
// the new ones. Returns 1 at the end of the file, 0 before it, -1 on error.
GPT2_SP_LEAF int text_fill(text_reader* r, text_source* s, char** buffer, size_t* capacity, size_t* length) {
    for (;;) {
        if (*length == *capacity) {
            // One byte over the limit is read, so that a line of exactly the limit is told from a longer one.
            size_t wanted = *capacity ? *capacity * 2 : (size_t)TEXT_PIECE;
            if (wanted > TEXT_MAX_LINE + 1) wanted = TEXT_MAX_LINE + 1;
            char* grown = wanted > *capacity ? (char*)realloc(*buffer, wanted) : NULL;
            if (!grown)
                return text_error(r, "%s: a line longer than %zu bytes, or no memory", s->path,
                    wanted > *capacity ? *capacity : TEXT_MAX_LINE);
            *buffer = grown;
            *capacity = wanted;
        }
        long n = text_get(r, s, *buffer + *length, *capacity - *length);
        if (n <= 0) return n < 0 ? -1 : 1;
        *length += (size_t)n;
        if (memchr(*buffer + *length - n, '\n', (size_t)n)) return 0;
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
        end = text_fill(r, s, buffer, &capacity, &length);
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

// Leaves out a file whose document has perhaps begun. Returns 0, or -1.
GPT2_SP_LEAF int text_undo(text_reader* r, const char* path, const char* why) {
    if (text_give(r, "", 0, path, 1, TEXT_END | TEXT_UNDONE)) return -1;
    return text_left_out(r, path, why);
}

// A page that cannot be read: out of memory, or in a charset that is not known here.
GPT2_SP_LEAF int text_refused(text_reader* r, const text_source* s, const html_reader* html, int maybe) {
    if (!html->refused[0]) return text_error(r, "%s: no memory", s->path);
    if (maybe) return text_undo(r, s->path, "its charset is not utf-8, iso-8859-1 or windows-1252");
    return text_error(
        r, "%s: its charset is \"%s\", expected utf-8, iso-8859-1 or windows-1252", s->path, html->refused);
}

// A whole file as one document, piece by piece, or with `html` the text of a page. `maybe`: it is left out if
// it is no text.
GPT2_SP_LEAF int text_whole(text_reader* r, text_source* s, char* buffer, html_reader* html, int maybe) {
    uint64_t at = 0;
    size_t held = 0;   // bytes that are there already
    for (long n = 1; n > 0;) {
        n = text_get(r, s, buffer + held, TEXT_PIECE - held);
        if (n < 0) return -1;
        held += (size_t)n;
        if (at == 0 && held < 3 && n > 0) continue;   // too few to tell a mark
        const char* nul = (const char*)memchr(buffer, 0, held);
        if (nul && maybe) return text_undo(r, s->path, "its content has NUL bytes: no text");
        if (nul)
            return text_error(
                r, "%s: byte %" PRIu64 " is NUL, expected text", s->path, at + (uint64_t)(nul - buffer));
        size_t mark = at == 0 ? text_mark(buffer, held) : 0;
        const char* bytes = buffer + mark;
        size_t length = held - mark;
        if (html) {
            if (html_feed(html, bytes, length, n == 0)) return text_refused(r, s, html, maybe);
            bytes = html->out, length = html->bytes;
            html->bytes = 0;
        }
        if (text_give(r, bytes, length, s->path, 1, 0)) return -1;
        at += held;
        held = 0;
    }
    return text_give(r, "", 0, s->path, 1, TEXT_END);
}

// Starts to inflate what an open file packs.
GPT2_SP_LEAF int text_unpack(const text_reader* r, text_source* s) {
    s->packed = (unsigned char*)malloc(TEXT_PIECE);
    if (s->packed && inflateInit2(&s->z, 15 + 16) == Z_OK) return 0;   // 16: with gzip's header and check
    free(s->packed);
    s->packed = NULL;
    return text_error(r, "%s: no memory", s->path);
}

// Reads the documents of an open file of this kind.
GPT2_SP_LEAF int text_contents(text_reader* r, text_source* s, int kind, int maybe) {
    html_reader html;
    memset(&html, 0, sizeof html);
    char* buffer = kind == TEXT_LINES ? NULL : (char*)malloc(TEXT_PIECE);
    int rc = kind == TEXT_LINES || buffer ? 0 : text_error(r, "%s: no memory", s->path);
    if (rc == 0 && s->gzip) rc = text_unpack(r, s);
    if (rc == 0 && kind == TEXT_LINES) rc = text_lines(r, s, &buffer);
    else if (rc == 0) rc = text_whole(r, s, buffer, kind == TEXT_HTML ? &html : NULL, maybe);
    if (s->packed) inflateEnd(&s->z);
    free(s->packed);
    free(buffer);
    html_free(&html);
    return rc;
}

// Whether an open file is being written.
GPT2_SP_LEAF int text_is_output(const text_reader* r, const struct stat* st) {
    for (int i = 0; i < r->output_count; i++)
        if (st->st_dev == r->outputs[i].st_dev && st->st_ino == r->outputs[i].st_ino) return 1;
    return 0;
}

// Reads one file: `named` by the user, or else found in a folder.
GPT2_SP_LEAF int text_file(text_reader* r, const char* path, int named) {
    struct stat st;
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
    else if (text_is_output(r, &st)) rc = text_error(r, "%s: an input that is the output too", path);
    if (rc == 0) r->size += (uint64_t)st.st_size;
    if (rc == 0 && r->measure) rc = 0;
    else if (rc == 0 && st.st_size == 0 && !named) rc = text_left_out(r, path, "empty");
    else if (rc == 0) rc = text_contents(r, &s, kind, !named);
    close(s.fd);
    return rc;
}

// Reads standard input, once. It may be a pipe.
GPT2_SP_LEAF int text_input(text_reader* r) {
    struct stat st;
    text_source s;
    memset(&s, 0, sizeof s);
    s.path = "standard input";
    s.fd = STDIN_FILENO;
    if (r->measure) return 0;
    if (r->input_taken) return text_error(r, "%s: an input twice", s.path);
    r->input_taken = 1;
    if (fstat(s.fd, &st)) return text_error(r, "%s: %s", s.path, strerror(errno));
    if (text_is_output(r, &st)) return text_error(r, "%s: an input that is the output too", s.path);
    return text_contents(r, &s, r->format, 0);
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

// Why a file whose name could be a text's is none, by what lies beside it: the merges of a tokenizer, the
// log of a run. NULL: it may be one.
GPT2_SP_LEAF const char* text_beside(const char* path) {
    static const char* const found[][3] = {{"merges.txt", "vocab.json", "a tokenizer's file"},
        {"merges.txt", "tokenizer.json", "a tokenizer's file"}, {"log.jsonl", "run.cfg", "a run's log"}};
    const char* name = strrchr(path, '/') + 1;
    char other[4096];
    for (int i = 0; i < 3; i++)
        if (strcmp(name, found[i][0]) == 0 &&
            snprintf(other, sizeof other, "%.*s%s", (int)(name - path), path, found[i][1]) <
                (int)sizeof other &&
            access(other, F_OK) == 0)
            return found[i][2];
    return NULL;
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
    const char* beside = text_beside(path);
    if (beside) return text_left_out(r, path, beside);
    if (!S_ISREG(st.st_mode)) return text_left_out(r, path, "neither a regular file nor a folder");
    if (kind == TEXT_OTHER && text_is_output(r, &st)) return 0;   // nobody takes that for an input
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
    if (strcmp(path, "-") == 0) return text_input(r);
    if (stat(path, &st)) return text_error(r, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode)) return text_file(r, path, 1);
    r->skipped = 0;
    if (text_folder(r, path, 0)) return -1;
    if (r->measure) return 0;
    if (r->documents == documents && r->skipped == 0)
        return text_error(r,
            "%s: no documents in this folder, expected .txt, .jsonl, .html, .md or source files with text",
            path);
    if (r->documents == documents)
        return text_error(r,
            "%s: no documents in this folder, expected .txt, .jsonl, .html, .md or source files with text; "
            "%" PRIu64 " left out, the first: %s",
            path, r->skipped, r->first_skipped);
    r->skipped += skipped;
    return 0;
}

#endif
