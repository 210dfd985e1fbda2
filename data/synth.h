// synth.h: synthetic long documents whose facts are asked for far away, to test recall over long range.
//
//     synth_doc d; char err[256];
//     if (synth_document(seed, index, 65536, 8, 0, &d, err, sizeof err)) ...     // err says what is wrong
//     ... d.text[d.facts[i].answer] is the first byte of answer i ...
//     synth_free(&d);
//
// A document is filler sentences, and among them, for each fact, a statement and, later, its question:
//     The code of <key> is <value>.   ...   What is the code of <key>? It is <value>.
// Keys ("the first amber falcon") are distinct within a document, values (4 to 6 digits or capital letters)
// are random and distinct: nothing but the statement tells the answer. Between the two, where there is room,
// one more statement with another key distracts; it is never asked for. All is a function of (seed, index,
// bytes, facts, distance), in integers, the same on every machine.
//
// distance = byte of the answer's value - first byte of its statement. Given, it holds exactly for every
// fact; 0 draws each fact's from a log-uniform law between the shortest possible and what the document
// allows. The length is exactly `bytes`. Both are exact since filler can be made of any length (1 to 3 bytes
// are line breaks).
//
// As text, a document is a line of JSON (synth_write_line), by which synth_is_text knows such a file again:
//     {"text": "...", "facts": [{"statement": N, "answer": N, "length": N}, ...]}
#ifndef GPT2_SP_SYNTH_H
#define GPT2_SP_SYNTH_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef GPT2_SP_LEAF
#define GPT2_SP_LEAF static __attribute__((unused))
#endif
enum { SYNTH_MIN_BYTES = 64, SYNTH_MAX_BYTES = 1 << 30, SYNTH_MAX_FACTS = 1024 };

typedef struct {
    size_t statement;    // byte where "The code of" starts
    size_t answer;       // byte where the value starts, in "It is <value>."
    int answer_length;   // bytes of the value
} synth_fact;

typedef struct {
    char* text;   // `length` bytes and a NUL
    size_t length;
    synth_fact* facts;   // in the order of their questions
    int fact_count;
} synth_doc;

typedef struct {   // a sentence with its place
    size_t at;
    int length;   // with the space behind it
    char text[96];
} synth_sentence;

// Leaves one line in err and returns -1.
__attribute__((format(printf, 3, 4))) GPT2_SP_LEAF int synth_error(
    char* err, size_t err_size, const char* format, ...) {
    va_list args;
    va_start(args, format);
    if (err && err_size) vsnprintf(err, err_size, format, args);
    va_end(args);
    return -1;
}

// The next of a stream of random numbers: a counter, mixed (splitmix64, Steele, Lea and Flood 2014).
GPT2_SP_LEAF uint64_t synth_random(uint64_t* state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

// Below n. The bias of the remainder is under n / 2^64.
GPT2_SP_LEAF size_t synth_below(uint64_t* state, size_t n) { return (size_t)(synth_random(state) % n); }

// log2(x) in 1/65536: exact at powers of two and linear between, so that it needs no libm and no rounding.
GPT2_SP_LEAF size_t synth_log2(size_t x) {
    size_t k = 0;
    while (x >> (k + 1)) k++;
    return (k << 16) + (((x - ((size_t)1 << k)) << 16) >> k);
}

// From least .. most, log-uniform up to the (at most 0.09 octaves of) error of synth_log2.
GPT2_SP_LEAF size_t synth_log_uniform(uint64_t* state, size_t least, size_t most) {
    size_t low = synth_log2(least), t = low + synth_below(state, synth_log2(most) - low + 1);
    size_t x = ((65536 + (t & 65535)) << (t >> 16)) >> 16;
    return x < least ? least : x > most ? most : x;
}

static const char* const synth_adjectives[32] = {"amber", "bitter", "calm", "dusty", "early", "faint",
    "gentle", "hollow", "icy", "jagged", "keen", "lonely", "mossy", "narrow", "old", "pale", "quiet", "rusty",
    "silver", "tall", "upper", "velvet", "warm", "young", "bright", "crooked", "distant", "famous", "golden",
    "heavy", "little", "modern"};
static const char* const synth_nouns[32] = {"anchor", "bridge", "candle", "dragon", "engine", "falcon",
    "garden", "harbor", "island", "jacket", "kettle", "ladder", "mirror", "needle", "orchard", "piano",
    "quarry", "river", "saddle", "tower", "umbrella", "valley", "window", "yard", "barrel", "castle",
    "desert", "forest", "hammer", "lantern", "market", "temple"};
static const char* const synth_verbs[8] = {
    "follows", "watches", "passes", "guards", "finds", "leaves", "faces", "reaches"};
// By length, 2 to 9 letters, to end a sentence at any byte.
static const char* const synth_fillers[8] = {
    "so", "now", "here", "again", "slowly", "forever", "silently", "yesterday"};

// Writes exactly n bytes of filler: sentences, the last one made of words that fit; fewer than 4 bytes are
// line breaks.
GPT2_SP_LEAF void synth_fill(uint64_t* state, char* out, size_t n) {
    char s[128];
    if (n < 4) {
        memset(out, '\n', n);
        return;
    }
    while (n > 0) {
        uint64_t x = synth_random(state);
        int length = snprintf(s, sizeof s, "The %s %s %s the %s %s. ", synth_adjectives[x & 31],
            synth_nouns[x >> 5 & 31], synth_verbs[x >> 10 & 7], synth_adjectives[x >> 13 & 31],
            synth_nouns[x >> 18 & 31]);
        if ((size_t)length == n || (size_t)length + 4 <= n) {
            memcpy(out, s, (size_t)length);
            out += length;
            n -= (size_t)length;
            continue;
        }
        for (size_t left = n - 2;
             left > 0;) {   // words and spaces; a word of w leaves nothing, or a space and 2 letters
            size_t w = left <= 9 ? left : 2 + synth_below(state, left - 5 < 8 ? left - 5 : 8);
            memcpy(out, synth_fillers[w - 2], w);
            if (left == n - 2) out[0] = (char)(out[0] - 'a' + 'A');
            out += w;
            left -= w;
            if (left > 0) {
                *out++ = ' ';
                left--;
            }
        }
        memcpy(out, ". ", 2);
        return;
    }
}

// Could [at, at + length) be taken: does it overlap none of the sentences that are placed?
GPT2_SP_LEAF int synth_is_free(const synth_sentence* s, int count, size_t at, size_t length) {
    for (int i = 0; i < count; i++)
        if (at < s[i].at + (size_t)s[i].length && s[i].at < at + length) return 0;
    return 1;
}

GPT2_SP_LEAF int synth_by_place(const void* a, const void* b) {
    size_t x = ((const synth_sentence*)a)->at, y = ((const synth_sentence*)b)->at;
    return x < y ? -1 : x > y;
}

GPT2_SP_LEAF int synth_by_answer(const void* a, const void* b) {
    size_t x = ((const synth_fact*)a)->answer, y = ((const synth_fact*)b)->answer;
    return x < y ? -1 : x > y;
}

// A value of 4 to 6 digits or capital letters, other than those of `count` earlier ones.
GPT2_SP_LEAF int synth_value(uint64_t* state, char (*values)[8], int count) {
    for (;;) {
        int n = 4 + (int)synth_below(state, 3), letters = (int)synth_below(state, 2), i;
        for (i = 0; i < n; i++)
            values[count][i] = (char)(letters ? 'A' + synth_below(state, 26) : '0' + synth_below(state, 10));
        values[count][n] = 0;
        for (i = 0; i < count && strcmp(values[i], values[count]) != 0;) i++;
        if (i == count) return n;
    }
}

// Makes the sentences of the next fact: its statement, its question, and the statement that distracts from
// it. Keys go through all 2048 of them with an odd step. Returns the bytes of the answer.
GPT2_SP_LEAF int synth_sentences(
    uint64_t* state, size_t* key, size_t step, char (*values)[8], int* used, synth_sentence* q) {
    int answer = 0;
    for (int k = 0; k < 3; k += 2) {
        char name[40];
        snprintf(name, sizeof name, "the %s %s %s", *key & 1 ? "first" : "last",
            synth_adjectives[*key >> 1 & 31], synth_nouns[*key >> 6 & 31]);
        int length = synth_value(state, values, *used);
        q[k].length = snprintf(q[k].text, sizeof q[k].text, "The code of %s is %s. ", name, values[*used]);
        if (k == 0) {
            q[1].length = snprintf(
                q[1].text, sizeof q[1].text, "What is the code of %s? It is %s. ", name, values[*used]);
            answer = length;
        }
        ++*used;
        *key += step;
    }
    return answer;
}

// Chooses places for statement q[0] and, `distance` bytes on, for the value at byte `inside` of question
// q[1]: tries 64 at random and then, with `all`, every place in turn. 0 if there is none.
GPT2_SP_LEAF int synth_place(uint64_t* state, const synth_sentence* s, int count, size_t bytes,
    synth_sentence* q, size_t inside, size_t distance, int all) {
    size_t places = bytes - distance - ((size_t)q[1].length - inside) + 1;   // for the statement
    for (size_t i = 0; i < 64 + (all ? places : 0); i++) {
        size_t at = i < 64 ? synth_below(state, places) : i - 64, question = at + distance - inside;
        if (!synth_is_free(s, count, at, (size_t)q[0].length) ||
            !synth_is_free(s, count, question, (size_t)q[1].length))
            continue;
        q[0].at = at;
        q[1].at = question;
        return 1;
    }
    return 0;
}

// Places all facts, then the distractors: each between its fact's statement and answer, where there is room.
// s has space for three sentences per fact, values for two. Returns how many sentences were placed, or -1.
GPT2_SP_LEAF int synth_plan(uint64_t* state, size_t bytes, int facts, size_t distance, synth_sentence* s,
    char (*values)[8], synth_fact* fact, char* err, size_t err_size) {
    size_t key = synth_below(state, 2048), step = 2 * synth_below(state, 1024) + 1;
    int count = 0, used = 0;
    for (int f = 0; f < facts; f++) {
        synth_sentence q[3];
        fact[f].answer_length = synth_sentences(state, &key, step, values, &used, q);
        size_t tail = (size_t)fact[f].answer_length + 2,
               inside = (size_t)q[1].length - tail;   // tail: the value, '.' and ' '
        size_t least = (size_t)q[0].length + inside, most = bytes - tail, d = distance;
        int placed = 0;
        for (int attempt = 0; !placed && attempt < (distance ? 1 : 64); attempt++) {
            if (least > most || (distance && (distance < least || distance > most))) break;
            if (!distance) d = synth_log_uniform(state, least, most);
            placed = synth_place(state, s, count, bytes, q, inside, d, distance != 0);
        }
        if (!placed)
            return synth_error(err, err_size,
                "synthetic document of %zu bytes: no room for fact %d of %d at distance %zu, expected "
                "%zu to %zu or 0, and more bytes or fewer facts",
                bytes, f + 1, facts, distance, least, most);
        fact[f].statement = q[0].at;
        fact[f].answer = q[1].at + inside;
        s[count++] = q[0];
        s[count++] = q[1];
        s[2 * facts + f] = q[2];   // waits behind the others until all of these are placed
    }
    for (int f = 0; f < facts; f++) {
        synth_sentence d = s[2 * facts + f];
        for (int attempt = 0; attempt < 64; attempt++) {
            d.at = fact[f].statement + synth_below(state, fact[f].answer - fact[f].statement);
            if (!synth_is_free(s, count, d.at, (size_t)d.length)) continue;
            s[count++] = d;
            break;
        }
    }
    return count;
}

// Makes document `index` of the series `seed`. Returns 0, or -1 with one line in err and nothing to free.
GPT2_SP_LEAF int synth_document(uint64_t seed, uint64_t index, size_t bytes, int facts, size_t distance,
    synth_doc* out, char* err, size_t err_size) {
    memset(out, 0, sizeof *out);
    if (bytes < SYNTH_MIN_BYTES || bytes > SYNTH_MAX_BYTES || facts < 0 || facts > SYNTH_MAX_FACTS ||
        distance > bytes)
        return synth_error(err, err_size,
            "synthetic document of %zu bytes with %d facts at distance %zu, expected %d..%d bytes, "
            "0..%d facts and a distance within the document",
            bytes, facts, distance, (int)SYNTH_MIN_BYTES, (int)SYNTH_MAX_BYTES, (int)SYNTH_MAX_FACTS);
    uint64_t state = seed;
    state =
        synth_random(&state) ^ index;   // mixed one after the other: (1, 2) and (2, 1) have nothing in common
    size_t n = (size_t)facts + 1, at = 0;
    synth_sentence* s = (synth_sentence*)calloc(3 * n, sizeof *s);
    char(*values)[8] = (char(*)[8])calloc(2 * n, 8);
    out->facts = (synth_fact*)calloc(n, sizeof *out->facts);
    out->text = (char*)malloc(bytes + 1);
    int count = -1;
    if (!s || !values || !out->facts || !out->text)
        synth_error(err, err_size, "synthetic document of %zu bytes: no memory", bytes);
    else count = synth_plan(&state, bytes, facts, distance, s, values, out->facts, err, err_size);
    if (count >= 0) {
        qsort(s, (size_t)count, sizeof *s, synth_by_place);
        qsort(out->facts, (size_t)facts, sizeof *out->facts, synth_by_answer);
        for (int i = 0; i < count; i++) {
            synth_fill(&state, out->text + at, s[i].at - at);
            memcpy(out->text + s[i].at, s[i].text, (size_t)s[i].length);
            at = s[i].at + (size_t)s[i].length;
        }
        synth_fill(&state, out->text + at, bytes - at);
        out->text[bytes - 1] = '\n';   // in place of a space
        out->text[bytes] = 0;
        out->length = bytes;
        out->fact_count = facts;
    } else {
        free(out->text);
        free(out->facts);
        memset(out, 0, sizeof *out);
    }
    free(s);
    free(values);
    return count < 0 ? -1 : 0;
}

// Frees; harmless on zeros and twice.
GPT2_SP_LEAF void synth_free(synth_doc* d) {
    free(d->text);
    free(d->facts);
    memset(d, 0, sizeof *d);
}

static const char synth_head[] = "{\"text\": \"";   // what a line begins with

// Writes a document as a line, without its first `skip` bytes, of synth_head. Its text has no character but
// the line break that JSON would escape.
GPT2_SP_LEAF int synth_write_line(FILE* f, const synth_doc* d, int skip) {
    fputs(synth_head + skip, f);
    for (size_t i = 0; i < d->length; i++)
        if (d->text[i] == '\n') fputs("\\n", f);
        else fputc(d->text[i], f);
    fprintf(f, "\", \"facts\": [");
    for (int i = 0; i < d->fact_count; i++)
        fprintf(f, "%s{\"statement\": %zu, \"answer\": %zu, \"length\": %d}", i ? ", " : "",
            d->facts[i].statement, d->facts[i].answer, d->facts[i].answer_length);
    fprintf(f, "]}\n");
    return ferror(f) ? -1 : 0;
}

// Is this what the stream goes on with?
GPT2_SP_LEAF int synth_reads(FILE* f, const char* text) {
    while (*text && getc_unlocked(f) == *text) text++;
    return *text == 0;
}

// Does the stream go on with this and a number?
GPT2_SP_LEAF int synth_reads_number(FILE* f, const char* text) {
    int digits = 0, c = synth_reads(f, text) ? getc_unlocked(f) : EOF;
    for (; c >= '0' && c <= '9'; digits++) c = getc_unlocked(f);
    if (c != EOF) ungetc(c, f);
    return digits > 0;
}

// Does the stream go on with a line of synth_write_line's?
GPT2_SP_LEAF int synth_reads_line(FILE* f) {
    int c = synth_reads(f, synth_head) ? getc_unlocked(f) : EOF;
    for (; c != '"'; c = getc_unlocked(f))
        if (c < ' ' || c > '~' || (c == '\\' && getc_unlocked(f) != 'n')) return 0;
    if (!synth_reads(f, ", \"facts\": [")) return 0;
    do {
        if (!synth_reads_number(f, "{\"statement\": ") || !synth_reads_number(f, ", \"answer\": ") ||
            !synth_reads_number(f, ", \"length\": ") || !synth_reads(f, "}"))
            return 0;
        c = getc_unlocked(f);
    } while (c == ',' && getc_unlocked(f) == ' ');
    return c == ']' && synth_reads(f, "}\n");
}

// Does an open file hold such lines, at least one, and nothing else?
GPT2_SP_LEAF int synth_is_text(int fd) {
    int own = dup(fd), lines = 0, c = EOF;
    FILE* f = own < 0 ? NULL : fdopen(own, "r");
    if (!f) {
        if (own >= 0) close(own);
        return 0;
    }
    rewind(f);
    while ((c = getc_unlocked(f)) != EOF && ungetc(c, f) != EOF && synth_reads_line(f)) lines++;
    int ok = lines > 0 && c == EOF && !ferror(f);
    fclose(f);
    return ok;
}

#endif
