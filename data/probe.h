// probe.h: texts that end with a question about something far before, and candidates for the answer, to test
// whether a model finds the right one the likeliest. Made in tokens, so that their lengths are exact.
//
//     probe_maker m; char err[256];
//     if (probe_open(&m, &tokenizer, 32768, err, sizeof err)) ...               // err says what is wrong
//     if (probe_make(&m, PROBE_NEEDLE, seed, item, 4096, 2, err, sizeof err)) ...
//     ... m.prompt[0 .. m.prompt_tokens), then any of m.candidate: the first one is right ...
//     probe_close(&m);
//
// The text is filler of data/synth.h's kind, a sentence after another, each encoded by itself. Its beginning
// is cut so that prompt and longest candidate have just the length asked for. Among the sentences stand, at
// depth 0 (the beginning) to 4 (right before the question), in quarters of the filler:
//
//     needle     The code of the last pale engine is 47153.
//                    What is the code of the last pale engine? It is ...
//     multikey   the same among 3 to 31 other such sentences at random places; the candidates are their codes
//     tracking   f = 47153.  k = f.  p = k.  at the depth and later, among 3 other numbers given to letters
//                    p = ...
//     ngram      seven words and an eighth; at the end the seven again
//
// The candidates have the same number of bytes; but for needle and ngram, each stands in the text. All is a
// function of seed, kind, item, length, depth and tokenizer, in integers, the same on every machine.
#ifndef GPT2_SP_PROBE_H
#define GPT2_SP_PROBE_H

#include "bpe.h"
#include "synth.h"

enum { PROBE_NEEDLE, PROBE_MULTIKEY, PROBE_TRACKING, PROBE_NGRAM, PROBE_KINDS };
static const char* const probe_names[PROBE_KINDS] = {"needle", "multikey", "tracking", "ngram"};
enum { PROBE_CANDIDATES = 4, PROBE_DEPTHS = 5 };
enum { PROBE_FACTS = 32, PROBE_CHAIN = 3, PROBE_WORDS = 8 };   // most of multikey; of tracking; of ngram
enum { PROBE_PIECE = 256, PROBE_VALUE = 5 };   // tokens of a sentence at most; characters of a code

typedef struct {
    int32_t token[PROBE_PIECE];
    int count;
    int64_t at;   // tokens of filler that stand before it, at least
} probe_piece;

typedef struct {
    bpe_encoder encoder;
    int64_t longest;   // text that there is room for
    int32_t* prompt;   // (longest)
    int64_t prompt_tokens;
    probe_piece candidate[PROBE_CANDIDATES];
    probe_piece piece[PROBE_FACTS];   // what stands among the filler
    int pieces;
    probe_piece question;
    int32_t* filler;         // (longest + PROBE_PIECE)
    unsigned char* begins;   // (longest + PROBE_PIECE + 1) a sentence begins there
} probe_maker;

GPT2_SP_LEAF void probe_close(probe_maker* m) {
    bpe_encoder_close(&m->encoder);
    free(m->prompt);
    free(m->filler);
    free(m->begins);
    memset(m, 0, sizeof *m);
}

// Starts to make texts of up to `longest` tokens. The tokenizer stays the caller's and must outlive it. After
// an error there is nothing to close.
GPT2_SP_LEAF int probe_open(
    probe_maker* m, const bpe* tokenizer, int64_t longest, char* err, size_t err_size) {
    memset(m, 0, sizeof *m);
    if (bpe_encoder_open(&m->encoder, tokenizer, 0, err, err_size) != 0) return -1;
    m->longest = longest;
    m->prompt = (int32_t*)malloc((size_t)longest * sizeof *m->prompt);
    m->filler = (int32_t*)malloc((size_t)(longest + PROBE_PIECE) * sizeof *m->filler);
    m->begins = (unsigned char*)malloc((size_t)longest + PROBE_PIECE + 1);
    if (m->prompt && m->filler && m->begins) return 0;
    probe_close(m);
    return synth_error(err, err_size, "no memory for a text of %lld tokens", (long long)longest);
}

// The tokens of a sentence.
GPT2_SP_LEAF int probe_encode(
    probe_maker* m, const char* text, probe_piece* piece, char* err, size_t err_size) {
    bpe_encoder* e = &m->encoder;
    e->tokens = 0;
    if (bpe_encode(e, text, strlen(text), 1, err, err_size) != 0) return -1;
    if (e->tokens > PROBE_PIECE)
        return synth_error(err, err_size, "%zu tokens of a sentence of %zu bytes", e->tokens, strlen(text));
    piece->count = (int)e->tokens;
    for (size_t i = 0; i < e->tokens; i++) piece->token[i] = (int32_t)e->token[i];
    return 0;
}

// The next of a series of keys, which are all different: "the first amber falcon".
GPT2_SP_LEAF void probe_key(size_t* key, size_t step, char name[48]) {
    snprintf(name, 48, "the %s %s %s", *key & 1 ? "first" : "last", synth_adjectives[*key >> 1 & 31],
        synth_nouns[*key >> 6 & 31]);
    *key += step;
}

// A code of PROBE_VALUE digits or capital letters, other than `count` earlier ones.
GPT2_SP_LEAF void probe_value(uint64_t* state, int letters, char (*values)[PROBE_VALUE + 1], int count) {
    for (;;) {
        int i;
        for (i = 0; i < PROBE_VALUE; i++)
            values[count][i] = (char)(letters ? 'A' + synth_below(state, 26) : '0' + synth_below(state, 10));
        values[count][PROBE_VALUE] = 0;
        for (i = 0; i < count && strcmp(values[i], values[count]) != 0;) i++;
        if (i == count) return;
    }
}

// Adds a sentence that stands among the filler.
GPT2_SP_LEAF int probe_add(probe_maker* m, const char* text, int64_t at, char* err, size_t err_size) {
    probe_piece* piece = &m->piece[m->pieces++];
    piece->at = at;
    return probe_encode(m, text, piece, err, err_size);
}

// The sentences of needle and multikey. Of the latter as many as take up half of the length, at least 4. A
// place among the filler, which has no length yet, is told in 1024ths of it.
GPT2_SP_LEAF int probe_facts(
    probe_maker* m, int many, uint64_t* state, int64_t length, int depth, char* err, size_t err_size) {
    size_t key = synth_below(state, 2048), step = 2 * synth_below(state, 1024) + 1;
    int letters = (int)synth_below(state, 2), status = 0;
    char values[PROBE_FACTS][PROBE_VALUE + 1], name[48], text[320];
    int64_t taken = 0, last = 0;   // tokens of all sentences so far; the next one has about as many as this
    for (int i = 0; status == 0 && i < PROBE_FACTS; i++) {
        probe_key(&key, step, name);
        probe_value(state, letters, values, i);
        int stated = i == 0 || (many && (i < PROBE_CANDIDATES || taken + last <= length / 2));
        if (!stated && i >= PROBE_CANDIDATES) break;
        snprintf(text, sizeof text, " The code of %s is %s.", name, values[i]);
        if (stated) {
            status =
                probe_add(m, text, i == 0 ? 256 * depth : (int64_t)synth_below(state, 1025), err, err_size);
            last = m->piece[m->pieces - 1].count;
            taken += last;
        }
        snprintf(text, sizeof text, " %s", values[i]);
        if (status == 0 && i < PROBE_CANDIDATES)
            status = probe_encode(m, text, &m->candidate[i], err, err_size);
        snprintf(text, sizeof text, " What is the code of %s? It is", name);
        if (status == 0 && i == 0) status = probe_encode(m, text, &m->question, err, err_size);
    }
    return status;
}

// The sentences of tracking. The links of the chain divide the filler behind the first one evenly.
GPT2_SP_LEAF int probe_chain(probe_maker* m, uint64_t* state, int depth, char* err, size_t err_size) {
    static const size_t steps[4] = {3, 5, 7, 9};   // have no divisor in common with 26
    size_t letter = synth_below(state, 26), step = steps[synth_below(state, 4)];
    char values[PROBE_CANDIDATES][PROBE_VALUE + 1], text[32];
    int status = 0;
    for (int i = 0; status == 0 && i < PROBE_CANDIDATES; i++) {
        probe_value(state, 0, values, i);
        snprintf(text, sizeof text, " %s", values[i]);
        status = probe_encode(m, text, &m->candidate[i], err, err_size);
    }
    for (int i = 0; status == 0 && i < PROBE_CHAIN; i++) {
        char own = (char)('a' + (letter + (size_t)i * step) % 26);
        char before = (char)('a' + (letter + (size_t)(i + 25) * step) % 26);
        if (i == 0) snprintf(text, sizeof text, " %c = %s.", own, values[0]);
        else snprintf(text, sizeof text, " %c = %c.", own, before);
        status = probe_add(m, text, 256 * depth + (1024 - 256 * depth) * i / PROBE_CHAIN, err, err_size);
        snprintf(text, sizeof text, " %c =", own);
        if (status == 0 && i == PROBE_CHAIN - 1) status = probe_encode(m, text, &m->question, err, err_size);
    }
    for (int i = 1; status == 0 && i < PROBE_CANDIDATES; i++) {
        char own = (char)('a' + (letter + (size_t)(PROBE_CHAIN - 1 + i) * step) % 26);
        snprintf(text, sizeof text, " %c = %s.", own, values[i]);
        status = probe_add(m, text, (int64_t)synth_below(state, 1025), err, err_size);
    }
    return status;
}

// The sentence of ngram: words of six letters, in an order of their own.
GPT2_SP_LEAF int probe_words(probe_maker* m, uint64_t* state, int depth, char* err, size_t err_size) {
    const char* words[32];
    char text[128], word[16];
    int count = 0, status;
    for (int i = 0; i < 32; i++)
        if (strlen(synth_nouns[i]) == 6) words[count++] = synth_nouns[i];
    for (int i = 0; i < PROBE_WORDS + PROBE_CANDIDATES - 1; i++) {
        int other = i + (int)synth_below(state, (size_t)(count - i));
        const char* chosen = words[other];
        words[other] = words[i];
        words[i] = chosen;
    }
    size_t length = 0;
    for (int i = 0; i < PROBE_WORDS - 1; i++)
        length += (size_t)snprintf(text + length, sizeof text - length, " %s", words[i]);
    status = probe_encode(m, text, &m->question, err, err_size);
    snprintf(text + length, sizeof text - length, " %s.", words[PROBE_WORDS - 1]);
    if (status == 0) status = probe_add(m, text, 256 * depth, err, err_size);
    for (int i = 0; status == 0 && i < PROBE_CANDIDATES; i++) {
        snprintf(word, sizeof word, " %s", words[PROBE_WORDS - 1 + i]);
        status = probe_encode(m, word, &m->candidate[i], err, err_size);
    }
    return status;
}

// Makes n tokens of filler, the last of whole sentences.
GPT2_SP_LEAF int probe_fill(probe_maker* m, uint64_t* state, int64_t n, char* err, size_t err_size) {
    int64_t made = 0;
    memset(m->begins, 0, (size_t)n + PROBE_PIECE + 1);
    while (made < n) {
        probe_piece sentence;
        char text[128];
        uint64_t x = synth_random(state);
        snprintf(text, sizeof text, " The %s %s %s the %s %s.", synth_adjectives[x & 31],
            synth_nouns[x >> 5 & 31], synth_verbs[x >> 10 & 7], synth_adjectives[x >> 13 & 31],
            synth_nouns[x >> 18 & 31]);
        if (probe_encode(m, text, &sentence, err, err_size) != 0) return -1;
        m->begins[made] = 1;
        memcpy(m->filler + made, sentence.token, (size_t)sentence.count * sizeof *m->filler);
        made += sentence.count;
    }
    memmove(m->filler, m->filler + (made - n), (size_t)n * sizeof *m->filler);
    memmove(m->begins, m->begins + (made - n), (size_t)n);
    m->begins[n] = 1;
    return 0;
}

// Appends tokens to the prompt.
GPT2_SP_LEAF void probe_put(probe_maker* m, const int32_t* tokens, int64_t n) {
    memcpy(m->prompt + m->prompt_tokens, tokens, (size_t)n * sizeof *tokens);
    m->prompt_tokens += n;
}

// Makes item `item` of a kind, `length` tokens long with its longest candidate, at a depth of 0 to
// PROBE_DEPTHS - 1. 0, or -1 where the sentences alone are longer.
GPT2_SP_LEAF int probe_make(probe_maker* m, int kind, uint64_t seed, int64_t item, int64_t length, int depth,
    char* err, size_t err_size) {
    const uint64_t parts[4] = {(uint64_t)kind, (uint64_t)length, (uint64_t)depth, (uint64_t)item};
    uint64_t state = seed;
    for (int i = 0; i < 4; i++) state = synth_random(&state) ^ parts[i];
    m->pieces = 0, m->prompt_tokens = 0;
    int status = kind == PROBE_TRACKING ? probe_chain(m, &state, depth, err, err_size)
        : kind == PROBE_NGRAM           ? probe_words(m, &state, depth, err, err_size)
                              : probe_facts(m, kind == PROBE_MULTIKEY, &state, length, depth, err, err_size);
    int64_t needed = m->question.count, longest = 0;
    for (int i = 0; i < m->pieces; i++) needed += m->piece[i].count;
    for (int i = 0; i < PROBE_CANDIDATES; i++)
        if (m->candidate[i].count > longest) longest = m->candidate[i].count;
    int64_t filler = length - needed - longest;
    if (status == 0 && (filler < 0 || length > m->longest))
        return synth_error(err, err_size,
            "a text of %lld tokens has no room for its sentences, which have %lld", (long long)length,
            (long long)(needed + longest));
    if (status == 0) status = probe_fill(m, &state, filler, err, err_size);
    for (int i = 0; i < m->pieces; i++) {   // in the order of their places; the array is short
        m->piece[i].at = filler * m->piece[i].at / 1024;
        for (int j = i; j > 0 && m->piece[j - 1].at > m->piece[j].at; j--) {
            probe_piece later = m->piece[j - 1];
            m->piece[j - 1] = m->piece[j];
            m->piece[j] = later;
        }
    }
    if (status != 0) return -1;
    int64_t read = 0;
    for (int i = 0; i < m->pieces; i++) {
        int64_t place = m->piece[i].at > read ? m->piece[i].at : read;
        while (!m->begins[place]) place++;
        probe_put(m, m->filler + read, place - read);
        probe_put(m, m->piece[i].token, m->piece[i].count);
        read = place;
    }
    probe_put(m, m->filler + read, filler - read);
    probe_put(m, m->question.token, m->question.count);
    return 0;
}

#endif
