// bpe.h: byte-level byte-pair encoding. Reads the tokenizer files of GPT-2 and its kin, turns text to tokens
// and back, and writes the files again.
//
//     bpe b; bpe_encoder e; char err[256];
//     if (bpe_load(&b, "gpt2.tiktoken", NULL, err, sizeof err)) ...             // err says what is wrong
//     if (bpe_encoder_open(&e, &b, 0, err, sizeof err)) ...                     // one per thread
//     if (bpe_encode(&e, text, length, 1, err, sizeof err)) ...                 // e.token[0 .. e.tokens)
//     size_t n; const unsigned char* s = bpe_bytes(&b, e.token[0], &n);         // what a token stands for
//     bpe_encoder_close(&e); bpe_free(&b);
//
// Text is first cut into pieces by a pattern, each piece into bytes, and then the pair of neighbours that
// is first in the list of merges becomes one token, again and again (of equal ones the leftmost), until no
// pair is in the list. No token crosses the edge of a piece.
//
// What is read, told apart by its contents:
//     x.tiktoken        lines `base64(token) rank`. The merges are recovered: a token is made of the two
//                       that the merges of lower ranks leave of its bytes; a file where they leave another
//                       number than two is refused. Such a file names no pattern: 50,256 or 50,280 ranks are
//                       GPT-2's, 100,256 cl100k's, for others the caller names it
//     vocab.json        with merges.txt beside it, in GPT-2's spelling of bytes as characters; pattern gpt2.
//                       Tokens longer than a byte that no merge makes are special, and so are those of
//                       added_tokens.json
//     tokenizer.json    Hugging Face's: model BPE, byte-level; what it asks for beyond is refused by name
//     a folder          its tokenizer.json, else its vocab.json
// The end token is what tokenizer_config.json beside a JSON file names as eos_token, else <|endoftext|>,
// else the only special token there is. A .tiktoken file's <|endoftext|> is the lowest id without a rank;
// cl100k's five special tokens have their own ids.
//
// Patterns (of regular expressions only these are known, each by the spellings in BPE_PATTERNS):
//     gpt2      '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//     llama3    '(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|
//               \s*[\r\n]+|\s+(?!\S)|\s+
//     cl100k    llama3, but white space at the end of the text is one piece whatever line ends are in it
//     qwen2     llama3, but each digit is a piece
// Letters, numbers and white space are Unicode's (unicode.h). A byte that is no part of a valid UTF-8
// character is a character of its own, none of the three, and comes back as it was.
//
// The fingerprint, 64 bits, covers every token with its id, the merges in their order, the pattern, the
// special tokens and the end token. It is the same whichever files they came from.
//
// A tokenizer.json may also come from memory, out of a file that carries it (bpe_load_carried). The bytes
// themselves are such a tokenizer too (bpe_load_bytes): 256 tokens, no merges, and an end token.
//
// A document is given to an encoder in chunks of any size; the tokens do not depend on where they are cut.
// What is held back is the piece that is not yet complete, at most BPE_MAX_PIECE bytes; a longer one is an
// error. A piece of n bytes takes n log n steps.
//
// Special tokens spelled out in a text are text, unless the encoder was opened with specials = 1: then the
// leftmost, of those the longest, is cut out before the pattern sees the rest.
//
// Functions return 0, or -1 with one line in err that names the file and what would fit. Needs libc and
// POSIX; under -std=c11 define _GNU_SOURCE before the first include.
#ifndef GPT2_SP_BPE_H
#define GPT2_SP_BPE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
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

#include "json.h"
#include "unicode.h"

enum {
    BPE_MAX_FILE = 1 << 27,    // bytes of a tokenizer's file
    BPE_MAX_VOCAB = 1 << 20,   // ids
    BPE_MAX_TOKEN = 1024,      // bytes of a token
    BPE_MAX_SPECIALS = 4096,   // special tokens
    BPE_MAX_PIECE = 1 << 26,   // bytes of text without a place to cut it
    BPE_SHORT = 64,            // pieces up to this many bytes are merged by scanning them
    BPE_CACHED = 15,           // and up to this many are looked up before
    BPE_CACHE_BITS = 14,       // 16,384 entries of 32 bytes
    BPE_CHUNK = 1 << 16,       // bytes of text looked at in one go
    BPE_PAD = 16               // bytes that may be read behind a text
};
#define BPE_NONE UINT32_MAX
#define BPE_EOT "<|endoftext|>"

enum { BPE_GPT2, BPE_LLAMA3, BPE_CL100K, BPE_QWEN2, BPE_PATTERN_COUNT };

typedef struct {
    const char* name;
    const char* spelling[4];   // regular expressions that mean this; the first is the one written
} bpe_pattern;

#define BPE_OLD_SUFFIXES "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
#define BPE_LETTERS "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define BPE_OTHERS " ?[^\\s\\p{L}\\p{N}]+"
#define BPE_SPACES "|\\s+(?!\\S)|\\s+"

// tiktoken's own spelling of cl100k has \p{N}{1,3}+, by which it means the same; Hugging Face's engine
// takes that for any number of digits, so in tokenizer.json it is not known.
// clang-format off
GPT2_SP_LEAF const bpe_pattern BPE_PATTERNS[BPE_PATTERN_COUNT] = {
    {"gpt2", {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|" BPE_OTHERS BPE_SPACES,
        "'s|'t|'re|'ve|'m|'ll|'d| ?[\\p{L}]+| ?[\\p{N}]+|" BPE_OTHERS BPE_SPACES,
        "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+|" BPE_OTHERS BPE_SPACES,
        "'(?:[sdmt]|ll|ve|re)| ?\\p{L}++| ?\\p{N}++| ?[^\\s\\p{L}\\p{N}]++|\\s++$|\\s+(?!\\S)|\\s"}},
    {"llama3", {BPE_OLD_SUFFIXES BPE_LETTERS "\\p{N}{1,3}|" BPE_OTHERS "[\\r\\n]*|\\s*[\\r\\n]+" BPE_SPACES,
        "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|"
            "\\s*[\\r\\n]" BPE_SPACES, NULL, NULL}},
    {"cl100k", {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}|"
            " ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s", NULL, NULL, NULL}},
    {"qwen2", {BPE_OLD_SUFFIXES BPE_LETTERS "\\p{N}|" BPE_OTHERS "[\\r\\n]*|\\s*[\\r\\n]+" BPE_SPACES,
        NULL, NULL, NULL}},
};
// clang-format on

enum { BPE_ABSENT = 0, BPE_ORDINARY = 1, BPE_SPECIAL = 2 };   // kinds of a token

typedef struct {
    size_t at;         // in pool
    uint32_t length;   // bytes
    uint32_t kind;
} bpe_token;

typedef struct {
    uint32_t left, right, made;   // tokens
} bpe_merge;

typedef struct {
    uint64_t key;        // left << 32 | right; all ones: free
    uint32_t priority;   // place in the list of merges; BPE_NONE: free
} bpe_pair;

typedef struct {
    uint32_t vocab_size, eot;   // the highest id + 1; the end token
    uint32_t pattern;           // BPE_GPT2 ...
    int whole;                  // a piece that is a token is that token, whatever the merges say
    int direct;                 // the same, or the merges say so too: pieces may be looked up
    int bytes;                  // every ordinary token is one byte
    uint64_t fingerprint;
    bpe_token* token;      // (vocab_size)
    unsigned char* pool;   // the bytes of all tokens
    size_t pool_bytes, pool_capacity;
    uint32_t token_capacity;
    uint32_t* slot;   // ordinary tokens by their bytes, an open table: id or BPE_NONE
    uint32_t slots;   // a power of 2
    bpe_merge* merge;
    uint32_t merges;
    bpe_pair* pair;        // merges by their pair, an open table of 1 << (64 - pair_shift)
    uint32_t pair_shift;   // of a 64-bit product
    uint32_t* special;     // ids of the special tokens, ascending
    uint32_t specials;
    size_t longest_special;
    uint32_t byte[256];          // the token of each byte
    unsigned char* kinds;        // 2 bits for each code point: UNICODE_LETTER ...
    unsigned char ascii[256];    // the same for a byte below 128, 255 for others
    uint16_t spelled[256];       // the character by which vocab.json spells each byte
    int16_t unspelled[324];      // and back, -1 for none
    unsigned char starts[256];   // 1: a special token starts with this byte
} bpe;

typedef struct {
    uint64_t key[2];            // the bytes of a piece, its length in the last byte; zeros: free
    uint32_t count, token[3];   // at most three
} bpe_cached;

typedef struct {
    const bpe* b;      // NULL = not open
    int specials;      // 1: special tokens in the text are themselves
    uint32_t* token;   // what has been encoded; the caller sets tokens = 0 when it has taken them
    size_t tokens, capacity;
    unsigned char* held;   // text that is not encoded yet, with BPE_PAD bytes behind
    size_t held_bytes, held_capacity;
    size_t wait;   // look at it again when so many bytes are held
    bpe_cached* cache;
    uint32_t* work;         // for long pieces: id, next, previous, priority of each position,
    uint64_t* heap;         // and priority << 32 | position of the pairs that may be merged
    size_t work_capacity;   // positions
} bpe_encoder;

typedef struct {             // gives out whole characters only; starts from zeros
    unsigned char held[4];   // the start of a character
    uint32_t bytes;
} bpe_decoder;

typedef struct {   // what is handed down while a tokenizer is read
    bpe* b;
    const char* path;   // for messages
    char* err;
    size_t err_size;
    int carried;    // the text is no file of a folder, and
    uint32_t eot;   // this is its end token
} bpe_reader;

// ================================================================================
// messages, memory, files

// Leaves one line in err, with the file's name in front, and returns -1.
__attribute__((format(printf, 2, 3))) GPT2_SP_LEAF int bpe_error(
    const bpe_reader* r, const char* format, ...) {
    va_list args;
    int n = 0;
    if (!r->err || !r->err_size) return -1;
    if (r->path) n = snprintf(r->err, r->err_size, "%s: ", r->path);
    va_start(args, format);
    if (n >= 0 && (size_t)n < r->err_size) vsnprintf(r->err + n, r->err_size - (size_t)n, format, args);
    va_end(args);
    for (char* p = r->err; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7F)
            *p = '?';   // one line, also where a file's words are in it
    return -1;
}

// Room for `count` elements in a growing array. Returns it, moved or not, or NULL with the old one untouched.
GPT2_SP_LEAF void* bpe_grow(void* array, size_t* capacity, size_t count, size_t each) {
    if (array && count <= *capacity) return array;
    size_t wanted = *capacity + *capacity / 2 > count ? *capacity + *capacity / 2 : count + 64;
    void* grown = wanted > SIZE_MAX / each ? NULL : realloc(array, wanted * each);
    if (grown) *capacity = wanted;
    return grown;
}

// FOLDER/NAME, where folder may be empty; NULL without memory.
GPT2_SP_LEAF char* bpe_join(const char* folder, size_t length, const char* name) {
    size_t n = strlen(name), slash = length > 0 && folder[length - 1] != '/';
    char* path = (char*)malloc(length + slash + n + 1);
    if (!path) return NULL;
    memcpy(path, folder, length);
    if (slash) path[length] = '/';
    memcpy(path + length + slash, name, n + 1);
    return path;
}

// Reads all of a regular file into memory with a NUL behind. Returns it, or NULL with a message; where the
// file is absent and missing is not NULL, NULL with *missing = 1.
GPT2_SP_LEAF char* bpe_read(const bpe_reader* r, size_t* length, int* missing) {
    struct stat st;
    char* bytes = NULL;
    size_t done = 0;
    int fd = open(r->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);   // a pipe must not hold us up
    if (missing) *missing = fd < 0 && errno == ENOENT;
    if (fd < 0) {
        if (!missing || !*missing) bpe_error(r, "%s", strerror(errno));
        return NULL;
    }
    if (fstat(fd, &st)) bpe_error(r, "%s", strerror(errno));
    else if (!S_ISREG(st.st_mode)) bpe_error(r, "not a regular file");
    else if (st.st_size > BPE_MAX_FILE)
        bpe_error(r, "%lld bytes, at most %d expected", (long long)st.st_size, (int)BPE_MAX_FILE);
    else if (!(bytes = (char*)malloc((size_t)st.st_size + 1))) bpe_error(r, "no memory to read it");
    while (bytes && done < (size_t)st.st_size) {
        ssize_t n = read(fd, bytes + done, (size_t)st.st_size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n > 0) {
            done += (size_t)n;
            continue;
        }
        bpe_error(r, "reading: %s", n < 0 ? strerror(errno) : "the file became shorter");
        free(bytes);
        bytes = NULL;
    }
    close(fd);
    if (bytes) bytes[done] = 0;
    *length = done;
    return bytes;
}

// ================================================================================
// the vocabulary

GPT2_SP_LEAF void bpe_free(bpe* b) {
    free(b->token);
    free(b->pool);
    free(b->slot);
    free(b->merge);
    free(b->pair);
    free(b->special);
    free(b->kinds);
    memset(b, 0, sizeof *b);
}

// FNV-1a, 64 bits, going on from h.
GPT2_SP_LEAF uint64_t bpe_hash(uint64_t h, const void* bytes, size_t n) {
    const unsigned char* p = (const unsigned char*)bytes;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001B3u;
    return h;
}
#define BPE_HASH_START 0xCBF29CE484222325u

// The bytes that a token stands for, NULL for an id that is no token.
GPT2_SP_LEAF const unsigned char* bpe_bytes(const bpe* b, uint32_t id, size_t* length) {
    if (id >= b->vocab_size || b->token[id].kind == BPE_ABSENT) return NULL;
    *length = b->token[id].length;
    return b->pool + b->token[id].at;
}

// The place in the table of the ordinary token of these bytes, or the free one where it would be.
GPT2_SP_LEAF uint32_t* bpe_slot(const bpe* b, const void* bytes, size_t n) {
    uint64_t h = bpe_hash(BPE_HASH_START, bytes, n);
    for (uint32_t i = (uint32_t)(h ^ (h >> 32)) & (b->slots - 1);; i = (i + 1) & (b->slots - 1)) {
        uint32_t id = b->slot[i];
        if (id == BPE_NONE) return b->slot + i;
        if (b->token[id].length == n && memcmp(b->pool + b->token[id].at, bytes, n) == 0) return b->slot + i;
    }
}

// The ordinary token of these bytes, or BPE_NONE.
GPT2_SP_LEAF uint32_t bpe_id(const bpe* b, const void* bytes, size_t n) {
    return b->slots ? *bpe_slot(b, bytes, n) : BPE_NONE;
}

// The special token of this spelling, or BPE_NONE.
GPT2_SP_LEAF uint32_t bpe_special(const bpe* b, const char* text) {
    size_t n = strlen(text);
    for (uint32_t id = 0; id < b->vocab_size; id++) {
        const bpe_token* t = b->token + id;
        if (t->kind == BPE_SPECIAL && t->length == n && memcmp(b->pool + t->at, text, n) == 0) return id;
    }
    return BPE_NONE;
}

// Adds a token. Its id must be free.
GPT2_SP_LEAF int bpe_add(const bpe_reader* r, uint64_t id, const void* bytes, size_t n, uint32_t kind) {
    bpe* b = r->b;
    if (id >= BPE_MAX_VOCAB)
        return bpe_error(r, "token id %" PRIu64 ", at most %d expected", id, BPE_MAX_VOCAB - 1);
    if (n < 1 || n > BPE_MAX_TOKEN)
        return bpe_error(r, "token %" PRIu64 " has %zu bytes, 1 to %d expected", id, n, (int)BPE_MAX_TOKEN);
    size_t capacity = b->token_capacity;
    bpe_token* token = (bpe_token*)bpe_grow(b->token, &capacity, (size_t)id + 1, sizeof *token);
    if (token) b->token = token, b->token_capacity = (uint32_t)capacity;
    unsigned char* pool = (unsigned char*)bpe_grow(b->pool, &b->pool_capacity, b->pool_bytes + n, 1);
    if (pool) b->pool = pool;
    if (!token || !pool) return bpe_error(r, "no memory for %" PRIu64 " tokens", id + 1);
    for (; b->vocab_size <= id; b->vocab_size++) memset(token + b->vocab_size, 0, sizeof *token);
    if (token[id].kind != BPE_ABSENT) return bpe_error(r, "token %" PRIu64 " is there twice", id);
    memcpy(pool + b->pool_bytes, bytes, n);
    token[id].at = b->pool_bytes;
    token[id].length = (uint32_t)n;
    token[id].kind = kind;
    b->pool_bytes += n;
    return 0;
}

// Makes the table of ordinary tokens by their bytes. Each byte must be one, and no two may be the same.
GPT2_SP_LEAF int bpe_index(const bpe_reader* r) {
    bpe* b = r->b;
    free(b->slot);
    for (b->slots = 512; b->slots < 2 * b->vocab_size;) b->slots *= 2;
    b->slot = (uint32_t*)malloc(b->slots * sizeof *b->slot);
    if (!b->slot) return bpe_error(r, "no memory for a table of %" PRIu32 " tokens", b->vocab_size);
    memset(b->slot, 0xFF, b->slots * sizeof *b->slot);
    for (uint32_t id = 0; id < b->vocab_size; id++) {
        if (b->token[id].kind != BPE_ORDINARY) continue;
        uint32_t* slot = bpe_slot(b, b->pool + b->token[id].at, b->token[id].length);
        if (*slot != BPE_NONE)
            return bpe_error(r, "tokens %" PRIu32 " and %" PRIu32 " are the same", *slot, id);
        *slot = id;
    }
    for (int i = 0; i < 256; i++) {
        unsigned char c = (unsigned char)i;
        b->byte[i] = bpe_id(b, &c, 1);
        if (b->byte[i] == BPE_NONE)
            return bpe_error(r, "no token for the byte 0x%02X; byte-level BPE has one for each byte", i);
    }
    return 0;
}

// Makes room for `most` merges.
GPT2_SP_LEAF int bpe_merge_room(const bpe_reader* r, size_t most) {
    bpe* b = r->b;
    int bits = 10;
    while (((size_t)1 << bits) < 2 * most) bits++;
    b->pair_shift = (uint32_t)(64 - bits);
    b->merge = (bpe_merge*)malloc((most + 1) * sizeof *b->merge);
    b->pair = (bpe_pair*)malloc(sizeof(bpe_pair) << bits);
    if (!b->merge || !b->pair) return bpe_error(r, "no memory for %zu merges", most);
    memset(b->pair, 0xFF, sizeof(bpe_pair) << bits);
    return 0;
}

// The merge of a pair of tokens; its priority is BPE_NONE where there is none.
GPT2_SP_LEAF bpe_pair* bpe_find(const bpe* b, uint32_t left, uint32_t right) {
    uint64_t key = (uint64_t)left << 32 | right, mask = ~(uint64_t)0 >> b->pair_shift;
    uint64_t i = (key * 0x9E3779B97F4A7C15u) >> b->pair_shift;
    while (b->pair[i].key != key && b->pair[i].key != ~(uint64_t)0) i = (i + 1) & mask;
    return b->pair + i;
}

// Appends a merge to the list. There is room for it.
GPT2_SP_LEAF int bpe_add_merge(const bpe_reader* r, uint32_t left, uint32_t right, uint32_t made) {
    bpe* b = r->b;
    bpe_pair* pair = bpe_find(b, left, right);
    if (pair->priority != BPE_NONE)
        return bpe_error(
            r, "merges %" PRIu32 " and %" PRIu32 " are of the same pair", pair->priority + 1, b->merges + 1);
    pair->key = (uint64_t)left << 32 | right;
    pair->priority = b->merges;
    bpe_merge one = {left, right, made};
    b->merge[b->merges++] = one;
    return 0;
}

// GPT-2's spelling: a byte that prints is its own character, others are U+0100 and up in their order.
GPT2_SP_LEAF void bpe_spelling(bpe* b) {
    int next = 256;
    for (int i = 0; i < 324; i++) b->unspelled[i] = -1;
    for (int i = 0; i < 256; i++) {
        int prints = (i >= 33 && i <= 126) || (i >= 161 && i != 173);
        b->spelled[i] = (uint16_t)(prints ? i : next++);
        b->unspelled[b->spelled[i]] = (int16_t)i;
    }
}

// Decodes the valid UTF-8 character of n bytes at p.
GPT2_SP_LEAF uint32_t bpe_code(const unsigned char* p, int n) {
    static const uint32_t lead[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t code = p[0] & lead[n];
    for (int i = 1; i < n; i++) code = code << 6 | (p[i] & 0x3F);
    return code;
}

// Undoes the spelling of n bytes of text; out may be text. Returns the number of bytes, or -1 when a
// character spells no byte.
GPT2_SP_LEAF long bpe_unspell(const bpe* b, const char* text, size_t n, char* out) {
    long count = 0;
    const char* end = text + n;
    while (text < end) {
        int length = json_utf8(text, end);
        uint32_t code = length ? bpe_code((const unsigned char*)text, length) : 0;
        if (code >= 324 || b->unspelled[code] < 0) return -1;
        out[count++] = (char)b->unspelled[code];
        text += length;
    }
    return count;
}

// Writes the spelling of n bytes, at most 2 n of them, and returns its length.
GPT2_SP_LEAF size_t bpe_spell(const bpe* b, const unsigned char* bytes, size_t n, char* out) {
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned code = b->spelled[bytes[i]];
        if (code >= 0x80) out[at++] = (char)(0xC0 | (code >> 6));
        out[at++] = (char)(code < 0x80 ? code : 0x80 | (code & 0x3F));
    }
    return at;
}

// The tables of characters' kinds.
GPT2_SP_LEAF int bpe_classes(const bpe_reader* r) {
    bpe* b = r->b;
    b->kinds = (unsigned char*)calloc(0x110000 / 4, 1);
    if (!b->kinds) return bpe_error(r, "no memory for the classes of characters");
    for (int i = 0; i < UNICODE_RANGE_COUNT; i++)
        for (uint32_t code = UNICODE_RANGES[i].first; code <= UNICODE_RANGES[i].last; code++)
            b->kinds[code / 4] |= (unsigned char)(UNICODE_RANGES[i].kind << (code % 4 * 2));
    for (int i = 0; i < 256; i++)
        b->ascii[i] = i < 128 ? (unsigned char)(b->kinds[i / 4] >> (i % 4 * 2) & 3) : 255;
    return 0;
}

// ================================================================================
// merging the bytes of one piece

// A piece of 1 to BPE_SHORT bytes, by looking for the first merge again and again. Returns the number of
// tokens.
GPT2_SP_LEAF uint32_t bpe_merge_short(const bpe* b, const unsigned char* p, uint32_t n, uint32_t* out) {
    uint32_t priority[BPE_SHORT];   // of the pair at i and i + 1
    for (uint32_t i = 0; i < n; i++) out[i] = b->byte[p[i]];
    for (uint32_t i = 0; i + 1 < n; i++) priority[i] = bpe_find(b, out[i], out[i + 1])->priority;
    while (n > 1) {
        uint32_t best = BPE_NONE, at = 0;
        for (uint32_t i = 0; i + 1 < n; i++) {
            if (priority[i] >= best) continue;
            best = priority[i];
            at = i;
        }
        if (best == BPE_NONE) break;
        out[at] = b->merge[best].made;
        n--;
        for (uint32_t i = at + 1; i < n; i++) out[i] = out[i + 1];
        for (uint32_t i = at + 1; i + 1 < n; i++) priority[i] = priority[i + 1];
        if (at > 0) priority[at - 1] = bpe_find(b, out[at - 1], out[at])->priority;
        if (at + 1 < n) priority[at] = bpe_find(b, out[at], out[at + 1])->priority;
    }
    return n;
}

// Lets heap[i] sink to its place in a heap of n, the smallest on top.
GPT2_SP_LEAF void bpe_sink(uint64_t* heap, size_t n, size_t i) {
    uint64_t moved = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= moved) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

GPT2_SP_LEAF void bpe_rise(uint64_t* heap, size_t i, uint64_t moved) {
    for (; i > 0 && heap[(i - 1) / 2] > moved; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = moved;
}

// Memory for a piece of n bytes: a heap never has more than 2 n entries, since a merge takes one and adds
// two.
GPT2_SP_LEAF int bpe_work_room(bpe_encoder* e, size_t n) {
    if (n <= e->work_capacity) return 0;
    size_t wanted = n + n / 2;
    free(e->work);
    free(e->heap);
    e->work = (uint32_t*)malloc(4 * wanted * sizeof *e->work);
    e->heap = (uint64_t*)malloc(2 * wanted * sizeof *e->heap);
    e->work_capacity = e->work && e->heap ? wanted : 0;
    return e->work_capacity ? 0 : -1;
}

// A piece of any length up to BPE_MAX_PIECE, by a heap of the pairs that may be merged. A pair whose
// priority is no longer what its entry says was merged in between; the entry is passed over. Room for n
// tokens is at out. Returns the number of tokens, or -1 without memory.
GPT2_SP_LEAF long bpe_merge_long(bpe_encoder* e, const unsigned char* p, size_t n, uint32_t* out) {
    if (bpe_work_room(e, n)) return -1;
    const bpe* b = e->b;
    uint32_t *id = e->work, *next = id + n, *previous = next + n, *priority = previous + n;
    uint64_t* heap = e->heap;
    size_t entries = 0, count = 0;
    for (size_t i = 0; i < n; i++) {
        id[i] = b->byte[p[i]];
        next[i] = (uint32_t)(i + 1);
        previous[i] = (uint32_t)i - 1;
        priority[i] = i + 1 < n ? bpe_find(b, id[i], b->byte[p[i + 1]])->priority : BPE_NONE;
        if (priority[i] != BPE_NONE) heap[entries++] = (uint64_t)priority[i] << 32 | i;
    }
    for (size_t i = entries / 2; i-- > 0;) bpe_sink(heap, entries, i);
    while (entries > 0) {
        uint64_t top = heap[0];
        heap[0] = heap[--entries];
        bpe_sink(heap, entries, 0);
        uint32_t at = (uint32_t)top, best = (uint32_t)(top >> 32);
        if (priority[at] != best) continue;
        uint32_t gone = next[at], after = next[gone];
        id[at] = b->merge[best].made;
        priority[gone] = BPE_NONE;   // position `gone` is no more
        next[at] = after;
        if (after < n) previous[after] = at;
        priority[at] = after < n ? bpe_find(b, id[at], id[after])->priority : BPE_NONE;
        if (priority[at] != BPE_NONE) bpe_rise(heap, entries++, (uint64_t)priority[at] << 32 | at);
        if (at == 0) continue;
        uint32_t before = previous[at];
        priority[before] = bpe_find(b, id[before], id[at])->priority;
        if (priority[before] != BPE_NONE)
            bpe_rise(heap, entries++, (uint64_t)priority[before] << 32 | before);
    }
    for (size_t i = 0; i < n; i = next[i]) out[count++] = id[i];
    return (long)count;
}

// ================================================================================
// reading: what the forms share

// Puts the special tokens' ids and first bytes in order.
GPT2_SP_LEAF int bpe_list_specials(const bpe_reader* r) {
    bpe* b = r->b;
    for (uint32_t id = 0; id < b->vocab_size; id++) b->specials += b->token[id].kind == BPE_SPECIAL;
    b->special = (uint32_t*)malloc((b->specials + 1) * sizeof *b->special);
    if (!b->special) return bpe_error(r, "no memory for %" PRIu32 " special tokens", b->specials);
    if (b->specials > BPE_MAX_SPECIALS)
        return bpe_error(
            r, "%" PRIu32 " special tokens, at most %d expected", b->specials, (int)BPE_MAX_SPECIALS);
    b->specials = 0;
    for (uint32_t id = 0; id < b->vocab_size; id++) {
        const bpe_token* t = b->token + id;
        if (t->kind != BPE_SPECIAL) continue;
        for (uint32_t i = 0; i < b->specials; i++) {
            const bpe_token* other = b->token + b->special[i];
            if (other->length == t->length && !memcmp(b->pool + other->at, b->pool + t->at, t->length))
                return bpe_error(
                    r, "special tokens %" PRIu32 " and %" PRIu32 " are the same", b->special[i], id);
        }
        b->special[b->specials++] = id;
        b->starts[b->pool[t->at]] = 1;
        if (t->length > b->longest_special) b->longest_special = t->length;
    }
    return 0;
}

// The end token is `name` where that is given, else <|endoftext|>, else the only special token.
GPT2_SP_LEAF int bpe_choose_eot(const bpe_reader* r, const char* name) {
    bpe* b = r->b;
    if (r->carried) {
        b->eot = r->eot;
        return b->eot < b->vocab_size && b->token[b->eot].kind == BPE_SPECIAL
            ? 0
            : bpe_error(r, "its end token is %" PRIu32 ", which is no special token of it", r->eot);
    }
    b->eot = bpe_special(b, name ? name : BPE_EOT);
    if (b->eot == BPE_NONE && !name && b->specials == 1) b->eot = b->special[0];
    if (b->eot != BPE_NONE) return 0;
    if (name)
        return bpe_error(r, "no special token \"%s\", which tokenizer_config.json names as eos_token", name);
    return bpe_error(r,
        "no end token: none of its %" PRIu32 " special tokens is " BPE_EOT
        ", and no tokenizer_config.json beside it names an eos_token",
        b->specials);
}

GPT2_SP_LEAF uint64_t bpe_hash_number(uint64_t h, uint64_t value) {
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(value >> (8 * i));
    return bpe_hash(h, bytes, 8);
}

GPT2_SP_LEAF uint64_t bpe_fingerprint(const bpe* b) {
    uint64_t h = BPE_HASH_START;
    const char* name = BPE_PATTERNS[b->pattern].name;
    h = bpe_hash_number(h, b->vocab_size);
    for (uint32_t id = 0; id < b->vocab_size; id++) {
        const bpe_token* t = b->token + id;
        h = bpe_hash_number(h, (uint64_t)t->kind << 32 | t->length);
        h = bpe_hash(h, b->pool + t->at, t->length);
    }
    h = bpe_hash_number(h, b->merges);
    for (uint32_t i = 0; i < b->merges; i++) {
        h = bpe_hash_number(h, (uint64_t)b->merge[i].left << 32 | b->merge[i].right);
        h = bpe_hash_number(h, b->merge[i].made);
    }
    h = bpe_hash(h, name, strlen(name));
    return bpe_hash_number(h, (uint64_t)b->whole << 32 | b->eot);
}

// Does every token come out of its own bytes? Then a piece that is a token is that token by the merges too.
GPT2_SP_LEAF int bpe_all_reached(const bpe* b, int* yes) {
    bpe_encoder e;
    memset(&e, 0, sizeof e);
    e.b = b;
    uint32_t out[BPE_MAX_TOKEN];
    int rc = 0;
    *yes = 1;
    for (uint32_t id = 0; id < b->vocab_size && *yes && rc == 0; id++) {
        const bpe_token* t = b->token + id;
        if (t->kind != BPE_ORDINARY) continue;
        long n = t->length <= BPE_SHORT ? bpe_merge_short(b, b->pool + t->at, t->length, out)
                                        : bpe_merge_long(&e, b->pool + t->at, t->length, out);
        rc = n < 0 ? -1 : 0;
        *yes = n == 1 && out[0] == id;
    }
    free(e.work);
    free(e.heap);
    return rc;
}

// The last step of every form: vocabulary and merges are there.
GPT2_SP_LEAF int bpe_complete(const bpe_reader* r, const char* eot) {
    bpe* b = r->b;
    int reached;
    if (bpe_list_specials(r) || bpe_choose_eot(r, eot)) return -1;
    if (bpe_all_reached(b, &reached)) return bpe_error(r, "no memory");
    b->direct = b->whole || reached;
    if (reached) b->whole = 0;   // it would change nothing
    b->bytes = 1;
    for (uint32_t id = 0; id < b->vocab_size; id++)
        b->bytes &= b->token[id].kind != BPE_ORDINARY || b->token[id].length == 1;
    b->fingerprint = bpe_fingerprint(b);
    return 0;
}

// ================================================================================
// reading: .tiktoken

// Decodes the base64 of n characters into out, at most n / 4 * 3 bytes. Returns their number, or -1.
GPT2_SP_LEAF long bpe_base64(const char* s, size_t n, char* out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    long count = 0;
    if (n == 0 || n % 4 != 0) return -1;
    size_t padding = (size_t)(s[n - 1] == '=') + (s[n - 1] == '=' && s[n - 2] == '=');
    for (size_t i = 0; i < n; i += 4) {
        uint32_t bits = 0;
        size_t keep = i + 4 < n ? 4 : 4 - padding;
        for (size_t j = 0; j < 4; j++) {
            const char* d = j < keep ? (const char*)memchr(digits, s[i + j], 64) : digits;
            if (!d) return -1;
            bits = bits << 6 | (uint32_t)(d - digits);
        }
        if (bits & (keep == 4 ? 0u : keep == 3 ? 0xFFu : 0xFFFFu)) return -1;
        for (size_t j = 0; j + 1 < keep; j++) out[count++] = (char)(bits >> (16 - 8 * j));
    }
    return count;
}

// The next line of a text, without its line end. Returns 0 at the end.
GPT2_SP_LEAF int bpe_line(const char** at, const char* end, json_span* line) {
    if (*at == end) return 0;
    const char* newline = (const char*)memchr(*at, '\n', (size_t)(end - *at));
    line->s = *at;
    line->n = (size_t)((newline ? newline : end) - *at);
    if (line->n > 0 && line->s[line->n - 1] == '\r') line->n--;
    *at = newline ? newline + 1 : end;
    return 1;
}

// Adds the tokens of the lines. Returns their number in *ranks.
GPT2_SP_LEAF int bpe_ranks(const bpe_reader* r, const char* text, size_t length, uint32_t* ranks) {
    const char* end = text + length;
    char bytes[BPE_MAX_TOKEN + 8];
    json_span line, number;
    for (*ranks = 0; bpe_line(&text, end, &line); ++*ranks) {
        const char* space = (const char*)memchr(line.s, ' ', line.n);
        uint64_t rank;
        number.s = space ? space + 1 : line.s;
        number.n = space ? line.n - (size_t)(number.s - line.s) : 0;
        size_t digits = space ? (size_t)(space - line.s) : 0;
        long n = digits / 4 * 3 <= sizeof bytes ? bpe_base64(line.s, digits, bytes) : -1;
        if (n < 0 || json_u64(number, &rank))
            return bpe_error(r, "line %" PRIu32 ": base64 of at most %d bytes, a space and a rank expected",
                *ranks + 1, (int)BPE_MAX_TOKEN);
        if (bpe_add(r, rank, bytes, (size_t)n, BPE_ORDINARY)) return -1;
    }
    return 0;
}

// Recovers the merges: those found so far are of lower ranks, so what they leave of a token are its two
// parts.
GPT2_SP_LEAF int bpe_recover(const bpe_reader* r) {
    bpe_encoder e;
    memset(&e, 0, sizeof e);
    e.b = r->b;
    uint32_t out[BPE_MAX_TOKEN];
    int rc = 0;
    for (uint32_t id = 0; id < r->b->vocab_size && rc == 0; id++) {
        const bpe_token* t = r->b->token + id;
        if (t->kind != BPE_ORDINARY || t->length == 1) continue;
        const unsigned char* p = r->b->pool + t->at;
        long n = t->length <= BPE_SHORT ? bpe_merge_short(r->b, p, t->length, out)
                                        : bpe_merge_long(&e, p, t->length, out);
        if (n < 0) rc = bpe_error(r, "no memory to recover the merges");
        else if (n == 2) rc = bpe_add_merge(r, out[0], out[1], id);
        else
            rc = bpe_error(r,
                "rank %" PRIu32 " is no merge of two tokens: the ranks below leave %ld parts of it", id, n);
    }
    free(e.work);
    free(e.heap);
    return rc;
}

// Adds <|endoftext|> at the lowest free id, or cl100k's special tokens at theirs.
GPT2_SP_LEAF int bpe_tiktoken_specials(const bpe_reader* r, uint32_t ranks) {
    static const struct {
        uint32_t id;
        const char* name;
    } cl100k[] = {{100257, BPE_EOT}, {100258, "<|fim_prefix|>"}, {100259, "<|fim_middle|>"},
        {100260, "<|fim_suffix|>"}, {100276, "<|endofprompt|>"}};
    uint32_t id = 0;
    while (id < r->b->vocab_size && r->b->token[id].kind != BPE_ABSENT) id++;
    if (ranks != 100256 || r->b->pattern != BPE_CL100K)
        return bpe_add(r, id, BPE_EOT, strlen(BPE_EOT), BPE_SPECIAL);
    for (int i = 0; i < 5; i++)
        if (bpe_add(r, cl100k[i].id, cl100k[i].name, strlen(cl100k[i].name), BPE_SPECIAL)) return -1;
    return 0;
}

GPT2_SP_LEAF int bpe_load_tiktoken(const bpe_reader* r, const char* text, size_t length, int pattern) {
    uint32_t ranks;
    if (bpe_ranks(r, text, length, &ranks)) return -1;
    if (pattern < 0)
        pattern = ranks == 50256 || ranks == 50280 ? BPE_GPT2 : ranks == 100256 ? BPE_CL100K : -1;
    if (pattern < 0)
        return bpe_error(r,
            "%" PRIu32 " ranks, and such a file names no pattern: 50256 or 50280 (gpt2) or 100256 (cl100k) "
            "expected, or the pattern's name beside it",
            ranks);
    r->b->pattern = (uint32_t)pattern;
    if (bpe_index(r) || bpe_merge_room(r, ranks) || bpe_recover(r) || bpe_tiktoken_specials(r, ranks))
        return -1;
    return bpe_complete(r, NULL);
}

// ================================================================================
// reading: vocab.json, merges.txt, tokenizer.json

// A span's text for a message: where it starts, at most 40 bytes.
#define BPE_SPAN(v) (int)((v).n < 40 ? (v).n : 40), (v).s

GPT2_SP_LEAF int bpe_json_error(const bpe_reader* r, const char* what) {
    return bpe_error(r, "%s is malformed", what);
}

// Adds the members of {"spelling": id}. A special token that is there already may be among them. Where
// specials is 1, a key that spells no bytes is a special token.
GPT2_SP_LEAF int bpe_vocab(const bpe_reader* r, json_span vocab, int specials) {
    char text[2 * BPE_MAX_TOKEN + 1];
    json_span key, value;
    json_iter it;
    uint64_t id;
    int more = json_object(vocab, &it);
    while (more >= 0 && (more = json_next(&it, &key, &value)) == 1) {
        long n = json_string(key, text, sizeof text);
        if (n < 0)
            return bpe_error(r, "vocabulary: a token of at most %d bytes expected, not %.*s", BPE_MAX_TOKEN,
                BPE_SPAN(key));
        if (json_u64(value, &id))
            return bpe_error(
                r, "vocabulary: %.*s has %.*s where its id is expected", BPE_SPAN(key), BPE_SPAN(value));
        if (id < r->b->vocab_size && r->b->token[id].kind == BPE_SPECIAL && bpe_special(r->b, text) == id)
            continue;
        long bytes = bpe_unspell(r->b, text, (size_t)n, text);
        if (bytes < 0 && !specials)
            return bpe_error(r, "vocabulary: %.*s is not byte-level: it spells no bytes", BPE_SPAN(key));
        if (bytes < 0) n = json_string(key, text, sizeof text);
        if (bpe_add(r, id, text, (size_t)(bytes < 0 ? n : bytes), bytes < 0 ? BPE_SPECIAL : BPE_ORDINARY))
            return -1;
    }
    return more < 0 ? bpe_json_error(r, "the vocabulary") : 0;
}

// Appends the merge of two spellings, which must be tokens, and so must what they make.
GPT2_SP_LEAF int bpe_spelled_merge(const bpe_reader* r, json_span left, json_span right) {
    char bytes[2 * BPE_MAX_TOKEN];
    const bpe* b = r->b;
    if (left.n > BPE_MAX_TOKEN || right.n > BPE_MAX_TOKEN) left.n = 0;
    long n = bpe_unspell(b, left.s, left.n, bytes);
    long m = n > 0 ? bpe_unspell(b, right.s, right.n, bytes + n) : -1;
    uint32_t first = m > 0 ? bpe_id(b, bytes, (size_t)n) : BPE_NONE;
    uint32_t second = m > 0 ? bpe_id(b, bytes + n, (size_t)m) : BPE_NONE;
    uint32_t made = m > 0 ? bpe_id(b, bytes, (size_t)(n + m)) : BPE_NONE;
    if (first == BPE_NONE || second == BPE_NONE || made == BPE_NONE)
        return bpe_error(r, "merge %" PRIu32 ": two tokens expected that make a token, not \"%.*s %.*s\"",
            b->merges + 1, BPE_SPAN(left), BPE_SPAN(right));
    return bpe_add_merge(r, first, second, made);
}

// A merge "a b" of text.
GPT2_SP_LEAF int bpe_merge_line(const bpe_reader* r, json_span line) {
    const char* space = (const char*)memchr(line.s, ' ', line.n);
    json_span left = {line.s, space ? (size_t)(space - line.s) : line.n};
    json_span right = {space ? space + 1 : line.s, space ? line.n - left.n - 1 : 0};
    return bpe_spelled_merge(r, left, right);
}

GPT2_SP_LEAF int bpe_merges_txt(const bpe_reader* r, const char* text, size_t length) {
    const char *at = text, *end = text + length;
    json_span line;
    size_t lines = 0;
    while (bpe_line(&at, end, &line)) lines++;
    if (bpe_merge_room(r, lines)) return -1;
    for (at = text; bpe_line(&at, end, &line);) {
        int version = line.s == text && line.n >= 8 && memcmp(line.s, "#version", 8) == 0;
        if (line.n > 0 && !version && bpe_merge_line(r, line)) return -1;
    }
    return 0;
}

// The merges of tokenizer.json: "a b" or ["a", "b"] each.
GPT2_SP_LEAF int bpe_merges_json(const bpe_reader* r, json_span merges) {
    char text[2][4 * BPE_MAX_TOKEN + 2];
    json_span value, part, side[3];
    json_iter it, inner;
    size_t count = 0;
    int more = json_array(merges, &it);
    while (more >= 0 && (more = json_next(&it, NULL, &value)) == 1) count++;
    if (more < 0) return bpe_json_error(r, "the list of merges");
    if (bpe_merge_room(r, count)) return -1;
    for (more = json_array(merges, &it); more >= 0 && (more = json_next(&it, NULL, &value)) == 1;) {
        int sides = 0, left = json_array(value, &inner);
        if (left < 0) {
            long n = json_string(value, text[0], sizeof text[0]);
            json_span line = {text[0], n < 0 ? 0 : (size_t)n};
            if (bpe_merge_line(r, line)) return -1;
            continue;
        }
        while (sides < 3 && (left = json_next(&inner, NULL, &part)) == 1) {
            long n = sides < 2 ? json_string(part, text[sides], sizeof text[0]) : 0;
            side[sides].s = text[sides < 2 ? sides : 1];
            side[sides++].n = n < 0 ? 0 : (size_t)n;
        }
        if (left != 0 || sides != 2)
            return bpe_error(r, "merge %" PRIu32 ": two tokens expected", r->b->merges + 1);
        if (bpe_spelled_merge(r, side[0], side[1])) return -1;
    }
    return 0;
}

// Reads one of the files that may lie beside r->path: NULL with *missing = 1 where there is none.
GPT2_SP_LEAF char* bpe_beside(
    const bpe_reader* r, const char* name, char** path, size_t* length, int* missing) {
    const char* slash = strrchr(r->path, '/');
    *missing = 0;
    *path = bpe_join(r->path, slash ? (size_t)(slash - r->path) + 1 : 0, name);
    if (!*path) {
        bpe_error(r, "no memory");
        return NULL;
    }
    bpe_reader beside = {r->b, *path, r->err, r->err_size, 0, 0};
    return bpe_read(&beside, length, missing);
}

// The eos_token of the tokenizer_config.json beside r->path: a string, or an object with its "content".
// Leaves an empty name where there is neither.
GPT2_SP_LEAF int bpe_config_eot(const bpe_reader* r, char* name, size_t size) {
    char* path;
    size_t length;
    int missing, bad = 0;
    json_span value;
    char* text = bpe_beside(r, "tokenizer_config.json", &path, &length, &missing);
    name[0] = 0;
    if (text) {
        int found = json_get(text, length, "eos_token", &value);
        if (found == 1 && value.s[0] == '{') found = json_get(value.s, value.n, "content", &value);
        int null = found == 1 && value.n == 4 && memcmp(value.s, "null", 4) == 0;
        bpe_reader beside = {r->b, path, r->err, r->err_size, 0, 0};
        if (found < 0 || (found == 1 && !null && json_string(value, name, size) < 0))
            bad = bpe_error(&beside, "eos_token: a string expected, or an object with its \"content\"");
    }
    free(text);
    free(path);
    return text || missing ? bad : -1;
}

// vocab.json at r->path, its text given; merges.txt beside it, and added_tokens.json where it is.
GPT2_SP_LEAF int bpe_vocab_files(const bpe_reader* r, const char* text, size_t length) {
    char *path = NULL, *merges, *added;
    size_t bytes;
    int missing, rc = -1;
    json_span vocab = {text, length};
    if (bpe_vocab(r, vocab, 1)) return -1;
    added = bpe_beside(r, "added_tokens.json", &path, &bytes, &missing);
    bpe_reader list = {r->b, path, r->err, r->err_size, 0, 0};
    if (added || missing) {
        char name[BPE_MAX_TOKEN + 1];
        json_span doc = {added, bytes}, key, value;
        json_iter it;
        uint64_t id;
        int more = added ? json_object(doc, &it) : 0;
        while (added && more >= 0 && (more = json_next(&it, &key, &value)) == 1) {
            long n = json_string(key, name, sizeof name);
            if (n < 0 || json_u64(value, &id)) more = -2;
            else if (id < r->b->vocab_size && r->b->token[id].kind != BPE_ABSENT) continue;   // in both
            else if (bpe_add(&list, id, name, (size_t)n, BPE_SPECIAL)) more = -3;
        }
        rc = more == 0 ? 0 : more == -3 ? -1 : bpe_json_error(&list, "the list of added tokens");
    }
    free(added);
    free(path);
    if (rc || bpe_index(r)) return -1;
    merges = bpe_beside(r, "merges.txt", &path, &bytes, &missing);
    bpe_reader lines = {r->b, path, r->err, r->err_size, 0, 0};
    if (missing) rc = bpe_error(&lines, "it is expected beside vocab.json, and absent");
    else rc = merges ? bpe_merges_txt(&lines, merges, bytes) : -1;
    free(merges);
    free(path);
    return rc;
}

// Makes special tokens of those longer than a byte that no merge makes: vocab.json has no other word for it.
GPT2_SP_LEAF int bpe_unmade(const bpe_reader* r) {
    bpe* b = r->b;
    unsigned char* made = (unsigned char*)calloc(b->vocab_size, 1);
    char* spelled = (char*)malloc(2 * BPE_MAX_TOKEN);
    int rc = made && spelled ? 0 : bpe_error(r, "no memory");
    for (uint32_t i = 0; i < b->merges && rc == 0; i++) made[b->merge[i].made] = 1;
    for (uint32_t id = 0; id < b->vocab_size && rc == 0; id++) {
        bpe_token* t = b->token + id;
        if (t->kind != BPE_ORDINARY || t->length == 1 || made[id]) continue;
        size_t n = bpe_spell(b, b->pool + t->at, t->length, spelled);   // the text is what the file says
        t->kind = BPE_ABSENT;
        rc = bpe_add(r, id, spelled, n, BPE_SPECIAL);
    }
    free(made);
    free(spelled);
    return rc ? -1 : bpe_index(r);
}

GPT2_SP_LEAF int bpe_load_vocab(const bpe_reader* r, const char* text, size_t length) {
    char eot[BPE_MAX_TOKEN + 1];
    r->b->pattern = BPE_GPT2;
    if (bpe_vocab_files(r, text, length) || bpe_unmade(r) || bpe_config_eot(r, eot, sizeof eot)) return -1;
    return bpe_complete(r, eot[0] ? eot : NULL);
}

GPT2_SP_LEAF int bpe_is_null(json_span v) { return v.n == 4 && memcmp(v.s, "null", 4) == 0; }

// Members of an object by name, in the order of `names` (a NULL ends them); absent ones are empty spans.
// What is null counts as absent. Any other member is refused, and any that is there twice.
GPT2_SP_LEAF int bpe_members(
    const bpe_reader* r, json_span object, const char* what, const char* const* names, json_span* out) {
    json_span key, value;
    json_iter it;
    unsigned seen = 0;
    for (int i = 0; names[i]; i++) out[i].n = 0;
    int more = json_object(object, &it);
    while (more >= 0 && (more = json_next(&it, &key, &value)) == 1) {
        int i = 0;
        while (names[i] && !json_equal(key, names[i])) i++;
        if (!names[i]) return bpe_error(r, "%s: %.*s is not known here", what, BPE_SPAN(key));
        if (seen >> i & 1) return bpe_error(r, "%s: %s is there twice", what, names[i]);
        seen |= 1u << i;
        if (!bpe_is_null(value)) out[i] = value;
    }
    return more < 0 ? bpe_json_error(r, what) : 0;
}

// Is the value absent or what `want` says, a literal of JSON?
GPT2_SP_LEAF int bpe_is(json_span v, const char* want) {
    return v.n == 0 || (v.n == strlen(want) && memcmp(v.s, want, v.n) == 0);
}

// The added tokens of tokenizer.json. Only special ones whose text is taken as it stands.
GPT2_SP_LEAF int bpe_added(const bpe_reader* r, json_span list) {
    static const char* const names[] = {
        "id", "content", "special", "single_word", "lstrip", "rstrip", "normalized", NULL};
    char text[BPE_MAX_TOKEN + 1];
    json_span one, m[7];
    json_iter it;
    uint64_t id;
    int more = list.n ? json_array(list, &it) : 0;
    while (list.n && more >= 0 && (more = json_next(&it, NULL, &one)) == 1) {
        if (bpe_members(r, one, "added_tokens", names, m)) return -1;
        long n = json_string(m[1], text, sizeof text);
        if (n < 1 || json_u64(m[0], &id))
            return bpe_error(r, "added_tokens: an id and a content of 1 to %d bytes expected", BPE_MAX_TOKEN);
        if (!m[2].n || !bpe_is(m[2], "true"))
            return bpe_error(r, "added token \"%.40s\" is not special, which is not supported", text);
        for (int i = 3; i < 6; i++)
            if (!bpe_is(m[i], "false"))
                return bpe_error(r, "added token \"%.40s\": %s is not supported", text, names[i]);
        if (bpe_add(r, id, text, (size_t)n, BPE_SPECIAL)) return -1;
    }
    return more < 0 ? bpe_json_error(r, "the list of added_tokens") : 0;
}

// {"type": "ByteLevel"} as pre-tokenizer, decoder or post-processor. As pre-tokenizer it must not add a
// space; *regex says whether it cuts by GPT-2's pattern.
GPT2_SP_LEAF int bpe_byte_level(const bpe_reader* r, json_span v, const char* what, int* regex) {
    static const char* const names[] = {"type", "add_prefix_space", "trim_offsets", "use_regex", NULL};
    json_span type, m[4];
    if (json_get(v.s, v.n, "type", &type) != 1) return bpe_json_error(r, what);
    if (!json_equal(type, "ByteLevel"))
        return bpe_error(r, "%s %.*s is not supported; ByteLevel is", what, BPE_SPAN(type));
    if (bpe_members(r, v, what, names, m)) return -1;
    if (regex && (!m[1].n || !bpe_is(m[1], "false")))
        return bpe_error(r, "%s ByteLevel with add_prefix_space is not supported", what);
    if (regex) *regex = !m[3].n || bpe_is(m[3], "true");
    return 0;
}

// The post-processor: ByteLevel, or a template without special tokens, which adds nothing to a text.
GPT2_SP_LEAF int bpe_post_processor(const bpe_reader* r, json_span v) {
    json_span type, specials, key, value;
    json_iter it;
    int named = json_get(v.s, v.n, "type", &type) == 1 && json_equal(type, "TemplateProcessing");
    if (!named) return bpe_byte_level(r, v, "post_processor", NULL);
    if (json_get(v.s, v.n, "special_tokens", &specials) != 1 || json_object(specials, &it) < 0)
        return bpe_json_error(r, "post_processor");
    int more = json_next(&it, &key, &value);
    if (more < 0) return bpe_json_error(r, "post_processor");
    return more == 0 ? 0
                     : bpe_error(r, "post_processor TemplateProcessing with special tokens is not supported");
}

// {"type": "Split", "pattern": {"Regex": "..."}, ...}: which pattern is it?
GPT2_SP_LEAF int bpe_split(const bpe_reader* r, json_span v) {
    static const char* const names[] = {"type", "pattern", "behavior", "invert", NULL};
    json_span type, m[4], regex;
    if (json_get(v.s, v.n, "type", &type) != 1) return bpe_json_error(r, "pre_tokenizer");
    if (!json_equal(type, "Split"))
        return bpe_error(r, "pre_tokenizer %.*s is not supported; Split and ByteLevel are", BPE_SPAN(type));
    if (bpe_members(r, v, "pre_tokenizer Split", names, m)) return -1;
    int isolated = json_equal(m[2], "Isolated") && bpe_is(m[3], "false");
    int removed = json_equal(m[2], "Removed") && m[3].n && bpe_is(m[3], "true");   // what is between pieces
    if (!isolated && !removed)
        return bpe_error(
            r, "pre_tokenizer Split: behavior %.*s is not supported; Isolated is", BPE_SPAN(m[2]));
    if (json_get(m[1].s, m[1].n, "Regex", &regex) != 1)
        return bpe_error(r, "pre_tokenizer Split: pattern %.*s is no Regex", BPE_SPAN(m[1]));
    for (uint32_t i = 0; i < BPE_PATTERN_COUNT; i++)
        for (int j = 0; j < 4 && BPE_PATTERNS[i].spelling[j]; j++)
            if (json_equal(regex, BPE_PATTERNS[i].spelling[j])) {
                r->b->pattern = i;
                return 0;
            }
    return bpe_error(r,
        "pre_tokenizer Split: the pattern %.*s%s is not known; those of gpt2, llama3, cl100k and qwen2 are",
        BPE_SPAN(regex), regex.n > 40 ? "..." : "");
}

// ByteLevel with GPT-2's pattern, or a Split followed by ByteLevel without.
GPT2_SP_LEAF int bpe_pre_tokenizer(const bpe_reader* r, json_span v) {
    static const char* const names[] = {"type", "pretokenizers", NULL};
    json_span type, m[2], one[2];
    json_iter it;
    int regex = 0, count = 0, more;
    if (v.n == 0) return bpe_error(r, "no pre_tokenizer; ByteLevel or a Split and ByteLevel expected");
    if (json_get(v.s, v.n, "type", &type) != 1) return bpe_json_error(r, "pre_tokenizer");
    if (!json_equal(type, "Sequence")) {
        r->b->pattern = BPE_GPT2;
        if (bpe_byte_level(r, v, "pre_tokenizer", &regex)) return -1;
        return regex ? 0 : bpe_error(r, "pre_tokenizer ByteLevel without use_regex needs a Split before it");
    }
    if (bpe_members(r, v, "pre_tokenizer Sequence", names, m)) return -1;
    more = json_array(m[1], &it);
    while (more >= 0 && count < 2 && (more = json_next(&it, NULL, one + count)) == 1) count++;
    if (more >= 0 && count == 2) more = json_next(&it, NULL, &type);
    if (more != 0 || count != 2)
        return bpe_error(r, "pre_tokenizer Sequence: one Split and one ByteLevel expected");
    if (bpe_split(r, one[0]) || bpe_byte_level(r, one[1], "pre_tokenizer", &regex)) return -1;
    return regex ? bpe_error(r, "pre_tokenizer: ByteLevel with use_regex behind a Split is not supported")
                 : 0;
}

// The model of tokenizer.json: BPE, with nothing but vocabulary, merges and ignore_merges.
GPT2_SP_LEAF int bpe_model(const bpe_reader* r, json_span v) {
    static const char* const names[] = {"type", "vocab", "merges", "ignore_merges", "dropout", "fuse_unk",
        "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "unk_token", NULL};
    static const char* const plain[] = {"null", "false", "false", "\"\"", "\"\""};
    json_span type, m[10];
    if (json_get(v.s, v.n, "type", &type) == 1 && !json_equal(type, "BPE"))
        return bpe_error(r, "model %.*s is not supported; BPE is", BPE_SPAN(type));
    if (bpe_members(r, v, "model", names, m)) return -1;
    for (int i = 4; i < 9; i++)   // unk_token may be anything: every byte is a token
        if (!bpe_is(m[i], plain[i - 4])) return bpe_error(r, "model: %s is not supported", names[i]);
    if (!bpe_is(m[3], "false") && !bpe_is(m[3], "true"))
        return bpe_error(r, "model: ignore_merges is %.*s, true or false expected", BPE_SPAN(m[3]));
    if (!m[1].n || !m[2].n) return bpe_error(r, "model: vocab and merges expected");
    r->b->whole = m[3].n > 0 && bpe_is(m[3], "true");
    return bpe_vocab(r, m[1], 0) || bpe_index(r) || bpe_merges_json(r, m[2]) ? -1 : 0;
}

GPT2_SP_LEAF int bpe_load_json(const bpe_reader* r, const char* text, size_t length) {
    static const char* const names[] = {"version", "truncation", "padding", "added_tokens", "normalizer",
        "pre_tokenizer", "post_processor", "decoder", "model", NULL};
    char eot[BPE_MAX_TOKEN + 1] = "";
    json_span doc = {text, length}, m[9], type;
    if (bpe_members(r, doc, "tokenizer.json", names, m)) return -1;
    if (m[1].n) return bpe_error(r, "truncation is not supported; null expected");
    if (m[2].n) return bpe_error(r, "padding is not supported; null expected");
    if (m[4].n) {
        int named = json_get(m[4].s, m[4].n, "type", &type) == 1;
        return bpe_error(r, "normalizer %.*s is not supported; null expected", BPE_SPAN(named ? type : m[4]));
    }
    if (bpe_pre_tokenizer(r, m[5]) || (m[6].n && bpe_post_processor(r, m[6])) ||
        (m[7].n && bpe_byte_level(r, m[7], "decoder", NULL)) || bpe_added(r, m[3]) || bpe_model(r, m[8]) ||
        (!r->carried && bpe_config_eot(r, eot, sizeof eot)))
        return -1;
    return bpe_complete(r, eot[0] ? eot : NULL);
}

// Which form is the text? JSON with a model is tokenizer.json.
GPT2_SP_LEAF int bpe_load_text(const bpe_reader* r, const char* text, size_t length, int pattern) {
    json_span model;
    const char* start = json_space(text, text + length);
    if (start == text + length) return bpe_error(r, "empty; a tokenizer's file expected");
    size_t named = strlen(r->path), merges = strlen("merges.txt");
    if (*start != '{' && named >= merges && strcmp(r->path + named - merges, "merges.txt") == 0)
        return bpe_error(r, "merges are one half: name the vocab.json that belongs to them, or the folder");
    if (*start != '{') return bpe_load_tiktoken(r, text, length, pattern);
    size_t where;
    if (json_validate(text, length, JSON_MAX_DEPTH, &where)) return bpe_error(r, "byte %zu: not JSON", where);
    if (pattern >= 0) return bpe_error(r, "a pattern is named for .tiktoken files only");
    int found = json_get(text, length, "model", &model);
    if (found == 1 && model.s[0] == '{') return bpe_load_json(r, text, length);
    return found < 0 ? bpe_error(r, "\"model\" is there twice") : bpe_load_vocab(r, text, length);
}

// Reads a tokenizer from a file or folder. pattern is the name of a .tiktoken file's pattern, or NULL. On
// error nothing is left to free.
GPT2_SP_LEAF int bpe_load(bpe* b, const char* path, const char* pattern, char* err, size_t err_size) {
    static const char* const files[] = {"tokenizer.json", "vocab.json"};
    struct stat st;
    bpe_reader r = {b, path, err, err_size, 0, 0};
    int named = -1, missing = 0, rc = -1;
    char *text = NULL, *inside = NULL;
    size_t length;
    memset(b, 0, sizeof *b);
    for (int i = 0; pattern && i < BPE_PATTERN_COUNT; i++)
        if (strcmp(pattern, BPE_PATTERNS[i].name) == 0) named = i;
    if (pattern && named < 0)
        return bpe_error(&r, "no pattern \"%s\"; gpt2, llama3, cl100k and qwen2 are known", pattern);
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
        for (int i = 0; i < 2 && (i == 0 || missing); i++) {
            free(inside);
            inside = bpe_join(path, strlen(path), files[i]);
            r.path = inside ? inside : path;
            text = inside ? bpe_read(&r, &length, &missing) : NULL;
        }
        r.path = missing ? path : r.path;
        if (missing) bpe_error(&r, "neither tokenizer.json nor vocab.json in this folder");
        else if (!inside) bpe_error(&r, "no memory");
    } else text = bpe_read(&r, &length, NULL);
    if (text) {
        bpe_spelling(b);
        rc = bpe_classes(&r) || bpe_load_text(&r, text, length, named) ? -1 : 0;
    }
    if (rc) bpe_free(b);
    free(text);
    free(inside);
    return rc;
}

// Reads a tokenizer.json that a file carries; `name` is that file's, for messages, and eot the end token,
// which a tokenizer.json does not name. On error nothing is left to free.
GPT2_SP_LEAF int bpe_load_carried(
    bpe* b, const char* name, const char* text, size_t length, uint32_t eot, char* err, size_t err_size) {
    bpe_reader r = {b, name, err, err_size, 1, eot};
    size_t where;
    memset(b, 0, sizeof *b);
    bpe_spelling(b);
    int rc = json_validate(text, length, JSON_MAX_DEPTH, &where)
        ? bpe_error(&r, "its tokenizer, byte %zu: not JSON", where)
        : bpe_classes(&r) || bpe_load_json(&r, text, length) ? -1
                                                             : 0;
    if (rc) bpe_free(b);
    return rc;
}

// The tokenizer whose tokens are the bytes, each by its value, and token 256, <|endoftext|>.
GPT2_SP_LEAF int bpe_load_bytes(bpe* b, char* err, size_t err_size) {
    bpe_reader r = {b, NULL, err, err_size, 0, 0};
    memset(b, 0, sizeof *b);
    bpe_spelling(b);
    b->pattern = BPE_GPT2;
    int rc = bpe_classes(&r);
    for (uint32_t i = 0; i < 256 && rc == 0; i++) {
        unsigned char byte = (unsigned char)i;
        rc = bpe_add(&r, i, &byte, 1, BPE_ORDINARY);
    }
    if (rc == 0) rc = bpe_add(&r, 256, BPE_EOT, strlen(BPE_EOT), BPE_SPECIAL);
    if (rc == 0) rc = bpe_index(&r) || bpe_merge_room(&r, 0) || bpe_complete(&r, NULL) ? -1 : 0;
    if (rc) bpe_free(b);
    return rc;
}

// ================================================================================
// cutting text into pieces

// The kind of the character at p, and its bytes in *n. What is no valid UTF-8 is one byte of the kind other.
GPT2_SP_LEAF int bpe_kind(const bpe* b, const unsigned char* p, const unsigned char* end, int* n) {
    *n = 1;
    if (*p < 0x80) return b->ascii[*p];
    int length = json_utf8((const char*)p, (const char*)end);
    if (length == 0) return UNICODE_OTHER;
    uint32_t code = bpe_code(p, length);
    *n = length;
    return b->kinds[code / 4] >> (code % 4 * 2) & 3;
}

// The end of the run of characters of one kind that starts at p.
GPT2_SP_LEAF const unsigned char* bpe_run(
    const bpe* b, const unsigned char* p, const unsigned char* end, int kind) {
    for (int n;; p += n) {
        while (p < end && b->ascii[*p] == kind) p++;
        if (p == end || *p < 0x80 || bpe_kind(b, p, end, &n) != kind) return p;
    }
}

// The run of white space that starts at p. *last is where its last character starts, and *line the place
// behind its last CR or LF, NULL for none.
GPT2_SP_LEAF const unsigned char* bpe_space_run(const bpe* b, const unsigned char* p,
    const unsigned char* end, const unsigned char** last, const unsigned char** line) {
    int n;
    *line = NULL;
    for (; p < end && bpe_kind(b, p, end, &n) == UNICODE_SPACE; p += n) {
        *last = p;
        if (*p == '\n' || *p == '\r') *line = p + 1;
    }
    return p;
}

// The bytes of 's 't 'm 'd 'll 've 're at p, which is an apostrophe; 0 for none of them. With fold, capitals
// too, and the long s, whose capital is S.
GPT2_SP_LEAF size_t bpe_suffix(const unsigned char* p, const unsigned char* end, int fold) {
    size_t left = (size_t)(end - p);
    if (left < 2) return 0;
    int lower = fold ? 0x20 : 0, a = p[1] | lower;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (left < 3) return 0;
    int c = p[2] | lower;
    if ((a == 'l' && c == 'l') || (a == 'v' && c == 'e') || (a == 'r' && c == 'e')) return 3;
    return fold && p[1] == 0xC5 && p[2] == 0xBF ? 3 : 0;
}

// `\s+(?!\S)|\s+`: the run of white space up to `end`, less its last character where something follows and
// it has two.
GPT2_SP_LEAF size_t bpe_space(
    const unsigned char* p, const unsigned char* run, const unsigned char* last, const unsigned char* end) {
    return (size_t)((run < end && last > p ? last : run) - p);
}

// The bytes of the piece at p < end, where the text ends. *seen is how far it was looked at; a few bytes more
// may have been, BPE_LOOK at most.
enum { BPE_LOOK = 8 };
GPT2_SP_LEAF size_t bpe_piece_gpt2(
    const bpe* b, const unsigned char* p, const unsigned char* end, const unsigned char** seen) {
    const unsigned char *q = p, *last = p, *line;
    int n, kind = b->ascii[*p];
    size_t suffix = *p == '\'' ? bpe_suffix(p, end, 0) : 0;
    *seen = p + suffix;
    if (suffix) return suffix;
    if (*p == ' ' && end - p > 1) kind = b->ascii[*++q];
    if (kind == 255) kind = bpe_kind(b, q, end, &n);
    if (kind != UNICODE_SPACE) {
        *seen = bpe_run(b, q, end, kind);
        return (size_t)(*seen - p);
    }
    *seen = bpe_space_run(b, p, end, &last, &line);
    return bpe_space(p, *seen, last, end);
}

// The same for the patterns whose words may start with any character but a line end, letter or number.
GPT2_SP_LEAF size_t bpe_piece_cl100k(
    const bpe* b, const unsigned char* p, const unsigned char* end, const unsigned char** seen) {
    const unsigned char *q, *last = p, *line;
    int n, m, kind = bpe_kind(b, p, end, &n), most = b->pattern == BPE_QWEN2 ? 1 : 3;
    size_t suffix = *p == '\'' ? bpe_suffix(p, end, 1) : 0;
    *seen = p + suffix;
    if (suffix) return suffix;
    q = p + n;
    if (kind == UNICODE_NUMBER) {
        for (; --most > 0 && q < end && bpe_kind(b, q, end, &m) == UNICODE_NUMBER; q += m) continue;
        *seen = q;
        return (size_t)(q - p);
    }
    int line_end = *p == '\n' || *p == '\r';
    if (kind == UNICODE_LETTER || (!line_end && q < end && bpe_kind(b, q, end, &m) == UNICODE_LETTER)) {
        *seen = bpe_run(b, q, end, UNICODE_LETTER);
        return (size_t)(*seen - p);
    }
    q = *p == ' ' ? p + 1 : p;
    if (q < end && bpe_kind(b, q, end, &m) == UNICODE_OTHER) {
        for (q = bpe_run(b, q, end, UNICODE_OTHER); q < end && (*q == '\n' || *q == '\r');) q++;
        *seen = q;
        return (size_t)(q - p);
    }
    *seen = bpe_space_run(b, p, end, &last, &line);
    if (b->pattern == BPE_CL100K && *seen == end) return (size_t)(end - p);
    return line ? (size_t)(line - p) : bpe_space(p, *seen, last, end);
}

// Does a special token that is spelled out lie across place `at` of a text of n bytes?
GPT2_SP_LEAF int bpe_special_across(const bpe* b, const unsigned char* text, size_t n, size_t at) {
    for (uint32_t i = 0; i < b->specials; i++) {
        const bpe_token* t = b->token + b->special[i];
        for (size_t before = 1; before < t->length && before <= at; before++)
            if (t->length - before <= n - at && memcmp(text + at - before, b->pool + t->at, t->length) == 0)
                return 1;
    }
    return 0;
}

// The last place behind `from` where a text of n bytes, which goes on behind them, may be cut: the tokens of
// both halves, each encoded as a document of its own, are those of the whole. 0: none.
//
// Such places are behind a letter or a number, before a character of another kind, and behind a character
// that is none of letter, number and white space, before a blank. In all patterns a piece ends there: none
// goes on from a letter or a number to another kind, or from such a character to a blank. And no piece before
// it looks further, because only those that end in white space look at what follows them.
GPT2_SP_LEAF size_t bpe_cut(const bpe* b, int specials, const void* bytes, size_t n, size_t from) {
    const unsigned char* text = (const unsigned char*)bytes;
    size_t margin =
        specials && b->longest_special > 4 ? b->longest_special : 4;   // a whole character follows
    if (b->bytes && !specials) return n > from ? n : 0;
    for (size_t at = n < margin ? 0 : n - margin; at > from; at--) {
        int length, before = UNICODE_OTHER;
        size_t start = at - 1;
        while (start > 0 && at - start < 4 && (text[start] & 0xC0) == 0x80) start--;
        int kind = bpe_kind(b, text + start, text + at, &length);
        // else the byte before is a character of its own, or `at` is inside one, where there is no blank
        if (start + (size_t)length == at) before = kind;
        int after = bpe_kind(b, text + at, text + n, &length);
        int word = before == UNICODE_LETTER || before == UNICODE_NUMBER;
        if (word ? before == after : before != UNICODE_OTHER || text[at] != ' ') continue;
        if (!specials || !bpe_special_across(b, text, n, at)) return at;
    }
    return 0;
}

// ================================================================================
// encoding

GPT2_SP_LEAF void bpe_encoder_close(bpe_encoder* e) {
    free(e->token);
    free(e->held);
    free(e->cache);
    free(e->work);
    free(e->heap);
    memset(e, 0, sizeof *e);
}

// Starts an encoder; b stays the caller's and must outlive it.
GPT2_SP_LEAF int bpe_encoder_open(bpe_encoder* e, const bpe* b, int specials, char* err, size_t err_size) {
    memset(e, 0, sizeof *e);
    e->b = b;
    e->specials = specials;
    e->cache = (bpe_cached*)calloc((size_t)1 << BPE_CACHE_BITS, sizeof *e->cache);
    bpe_reader r = {NULL, NULL, err, err_size, 0, 0};
    return e->cache ? 0 : bpe_error(&r, "no memory for an encoder");
}

// A piece of up to BPE_CACHED bytes. There is room for BPE_SHORT tokens at out. Returns the number of tokens.
GPT2_SP_LEAF uint32_t bpe_encode_cached(bpe_encoder* e, const unsigned char* p, size_t n, uint32_t* out) {
    static const uint64_t keep[9] = {
        0, 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFF, 0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF, ~(uint64_t)0};
    uint64_t key[2];
    unsigned char bytes[16] = {0};
    memcpy(bytes, p, 16);   // what lies behind the piece is masked away
    memcpy(key, bytes, 16);
    int little = 1;
    if (*(const char*)&little) {
        key[0] &= keep[n < 8 ? n : 8];
        key[1] = (key[1] & keep[n < 8 ? 0 : n - 8]) | (uint64_t)n << 56;
    } else {
        memset(bytes + n, 0, 16 - n);
        bytes[15] = (unsigned char)n;
        memcpy(key, bytes, 16);
    }
    uint64_t h = (key[0] ^ key[1] * 0xD6E8FEB86659FD93u) * 0x9E3779B97F4A7C15u;
    bpe_cached* c = e->cache + (h >> (64 - BPE_CACHE_BITS));
    if (c->key[0] == key[0] && c->key[1] == key[1]) {
        memcpy(out, c->token, sizeof c->token);
        return c->count;
    }
    uint32_t whole = e->b->direct ? bpe_id(e->b, p, n) : BPE_NONE, count = 1;
    if (whole != BPE_NONE) *out = whole;
    else count = bpe_merge_short(e->b, p, (uint32_t)n, out);
    if (count > 3) return count;
    memcpy(c->key, key, sizeof key);
    memcpy(c->token, out, count * sizeof *out);
    c->count = count;
    return count;
}

// A longer piece.
GPT2_SP_LEAF long bpe_encode_piece(bpe_encoder* e, const unsigned char* p, size_t n, uint32_t* out) {
    uint32_t whole = e->b->direct && n <= BPE_MAX_TOKEN ? bpe_id(e->b, p, n) : BPE_NONE;
    if (whole == BPE_NONE)
        return n <= BPE_SHORT ? (long)bpe_merge_short(e->b, p, (uint32_t)n, out)
                              : bpe_merge_long(e, p, n, out);
    *out = whole;
    return 1;
}

// Room for `count` more tokens.
GPT2_SP_LEAF int bpe_token_room(bpe_encoder* e, size_t count) {
    if (e->token && e->capacity - e->tokens >= count) return 0;
    uint32_t* token = (uint32_t*)bpe_grow(e->token, &e->capacity, e->tokens + count, sizeof *token);
    if (!token) return -1;
    e->token = token;
    return 0;
}

// Encodes the pieces of [*at, end) and moves *at behind them. Unless the text ends there (closed), those at
// the end are left that more text might change.
GPT2_SP_LEAF int bpe_pieces(
    bpe_encoder* e, const unsigned char** at, const unsigned char* end, int closed, const bpe_reader* r) {
    const unsigned char *p = *at, *seen;
    int gpt2 = e->b->pattern == BPE_GPT2;
    for (; p < end; *at = p) {
        size_t n = gpt2 ? bpe_piece_gpt2(e->b, p, end, &seen) : bpe_piece_cl100k(e->b, p, end, &seen);
        if (!closed && end - seen < BPE_LOOK) return 0;
        if (n > BPE_MAX_PIECE)
            return bpe_error(
                r, "text of %zu bytes without a place to cut it, at most %d expected", n, (int)BPE_MAX_PIECE);
        if (bpe_token_room(e, n < BPE_SHORT ? (size_t)BPE_SHORT : n))
            return bpe_error(r, "no memory for tokens");
        uint32_t* out = e->token + e->tokens;
        long count = n <= BPE_CACHED ? (long)bpe_encode_cached(e, p, n, out) : bpe_encode_piece(e, p, n, out);
        if (count < 0) return bpe_error(r, "no memory for a piece of %zu bytes", n);
        e->tokens += (size_t)count;
        p += n;
    }
    return 0;
}

// The first special token in [p, end), the longest where several start: its place, with the id in *id; or
// NULL.
GPT2_SP_LEAF const unsigned char* bpe_find_special(
    const bpe* b, const unsigned char* p, const unsigned char* end, uint32_t* id) {
    for (; p < end; p++) {
        uint32_t longest = 0;
        if (!b->starts[*p]) continue;
        for (uint32_t i = 0; i < b->specials; i++) {
            const bpe_token* t = b->token + b->special[i];
            if (t->length <= longest || t->length > (size_t)(end - p)) continue;
            if (memcmp(b->pool + t->at, p, t->length) != 0) continue;
            longest = t->length;
            *id = b->special[i];
        }
        if (longest) return p;
    }
    return NULL;
}

// Encodes what is held as far as it is certain, all of it at the end of a document.
GPT2_SP_LEAF int bpe_drain(bpe_encoder* e, int last, const bpe_reader* r) {
    const unsigned char *p = e->held, *end = p + e->held_bytes;
    size_t margin = e->b->longest_special;
    for (;;) {
        uint32_t id = 0;
        const unsigned char* found = e->specials ? bpe_find_special(e->b, p, end, &id) : NULL;
        const unsigned char* stop = found ? found : end;
        if (e->specials &&
            !last) {   // one that ends behind the text may start, or be longer than the found one
            size_t left = (size_t)(end - p);
            const unsigned char* sure = left < margin ? p : end - margin + 1;
            if (!found || found >= sure) found = NULL, stop = sure;
        }
        if (bpe_pieces(e, &p, stop, last || found, r)) return -1;
        if (!found) break;
        if (bpe_token_room(e, 1)) return bpe_error(r, "no memory for tokens");
        e->token[e->tokens++] = id;
        p += e->b->token[id].length;
    }
    e->held_bytes = (size_t)(end - p);
    memmove(e->held, p, e->held_bytes);
    if (e->held_bytes <= (size_t)BPE_MAX_PIECE + 2 * BPE_CHUNK) return 0;
    return bpe_error(r, "text of more than %d bytes without a place to cut it", (int)BPE_MAX_PIECE);
}

// A chunk of a document whose tokens are bytes: nothing is ever held back.
GPT2_SP_LEAF int bpe_encode_bytes(bpe_encoder* e, const unsigned char* p, size_t n, const bpe_reader* r) {
    if (bpe_token_room(e, n)) return bpe_error(r, "no memory for %zu tokens", n);
    for (size_t i = 0; i < n; i++) e->token[e->tokens++] = e->b->byte[p[i]];
    return 0;
}

// Adds a chunk of a document, and ends the document where last is 1. Tokens that are certain are appended to
// e->token. On error the document is lost, and the encoder ready for the next.
GPT2_SP_LEAF int bpe_encode(
    bpe_encoder* e, const void* bytes, size_t n, int last, char* err, size_t err_size) {
    const unsigned char* p = (const unsigned char*)bytes;
    bpe_reader r = {NULL, NULL, err, err_size, 0, 0};
    int rc = 0;
    if (e->b->bytes && !e->specials) return bpe_encode_bytes(e, p, n, &r);
    do {   // as much as is held already, so that a long piece is not looked at too often
        size_t take = e->held_bytes > BPE_CHUNK ? e->held_bytes : (size_t)BPE_CHUNK;
        if (take > n) take = n;
        unsigned char* held =
            (unsigned char*)bpe_grow(e->held, &e->held_capacity, e->held_bytes + take + BPE_PAD, 1);
        if (!held) {
            rc = bpe_error(&r, "no memory for %zu bytes of text", e->held_bytes + take);
            break;
        }
        e->held = held;
        if (take) memcpy(held + e->held_bytes, p, take);
        e->held_bytes += take;
        memset(held + e->held_bytes, 0, BPE_PAD);
        p += take;
        n -= take;
        if (!(last && n == 0) && e->held_bytes < e->wait) continue;
        rc = bpe_drain(e, last && n == 0, &r);
        e->wait = 2 * e->held_bytes + BPE_SHORT;
    } while (n > 0 && rc == 0);
    if (rc) e->held_bytes = e->wait = 0;
    return rc;
}

// ================================================================================
// decoding

// Adds the bytes of a token to what the decoder holds, and writes all whole characters, and all bytes that
// can be part of none, to out, which has room for BPE_MAX_TOKEN + 4. Returns their number, or -1 for an id
// that is no token.
GPT2_SP_LEAF long bpe_decode(const bpe* b, bpe_decoder* d, uint32_t id, unsigned char* out) {
    size_t n;
    const unsigned char* bytes = bpe_bytes(b, id, &n);
    if (!bytes) return -1;
    memcpy(out, d->held, d->bytes);
    memcpy(out + d->bytes, bytes, n);
    n += d->bytes;
    d->bytes = 0;
    for (size_t back = 1; back <= 3 && back <= n;
         back++) {   // does a character start here that is not complete?
        unsigned char whole[4] = {0, 0x80, 0x80, 0x80};
        const unsigned char* p = out + n - back;
        if (*p < 0xC2) continue;
        size_t needs = *p < 0xE0 ? 2 : *p < 0xF0 ? 3 : 4;
        memcpy(whole, p, back);
        if (back == 1 && (*p == 0xE0 || *p == 0xF0)) whole[1] = 0xBF;   // which needs more than 0x80
        if (back < needs && json_utf8((const char*)whole, (const char*)whole + needs) == (int)needs) {
            memcpy(d->held, p, back);
            d->bytes = (uint32_t)back;
            n -= back;
        }
        break;
    }
    return (long)n;
}

// What is held at the end of a text: up to three bytes that are no character.
GPT2_SP_LEAF long bpe_decode_end(bpe_decoder* d, unsigned char* out) {
    long n = (long)d->bytes;
    memcpy(out, d->held, d->bytes);
    d->bytes = 0;
    return n;
}

// ================================================================================
// writing

enum { BPE_FILE_COUNT = 4 };
GPT2_SP_LEAF const char* const BPE_FILES[BPE_FILE_COUNT] = {
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"};

// How many of BPE_FILES a tokenizer has. vocab.json and merges.txt have no word for a pattern or for whole
// pieces: whoever reads them alone takes them for GPT-2's.
GPT2_SP_LEAF int bpe_files(const bpe* b) { return b->pattern == BPE_GPT2 && !b->whole ? 4 : 2; }

// Writes bytes inside a JSON string.
GPT2_SP_LEAF void bpe_put(FILE* f, const char* s, size_t n) {
    char out[8];
    for (const char* end = s + n; s < end;) {
        size_t count = (size_t)json_escape(&s, end, out);
        fwrite(out, 1, count, f);
    }
}

// Writes a token as the files spell it, inside a JSON string or not.
GPT2_SP_LEAF void bpe_put_token(const bpe* b, FILE* f, uint32_t id, int json) {
    char text[2 * BPE_MAX_TOKEN];
    const bpe_token* t = b->token + id;
    const unsigned char* bytes = b->pool + t->at;
    if (t->kind == BPE_SPECIAL) {
        bpe_put(f, (const char*)bytes, t->length);
        return;
    }
    size_t n = bpe_spell(b, bytes, t->length, text);
    if (json) bpe_put(f, text, n);
    else fwrite(text, 1, n, f);
}

// {"token":id,...}. Special tokens that spell bytes are among them, as in GPT-2's own; tokenizer.json lists
// all of them again.
GPT2_SP_LEAF void bpe_put_vocab(const bpe* b, FILE* f) {
    const char* comma = "";
    fputc('{', f);
    for (uint32_t id = 0; id < b->vocab_size; id++) {
        if (b->token[id].kind == BPE_ABSENT) continue;
        fprintf(f, "%s\"", comma);
        bpe_put_token(b, f, id, 1);
        fprintf(f, "\":%" PRIu32, id);
        comma = ",";
    }
    fputc('}', f);
}

GPT2_SP_LEAF void bpe_put_tokenizer(const bpe* b, FILE* f) {
    static const char level[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
                                "\"use_regex\":";
    fputs("{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[", f);
    for (uint32_t i = 0; i < b->specials; i++) {
        fprintf(f, "%s{\"id\":%" PRIu32 ",\"content\":\"", i ? "," : "", b->special[i]);
        bpe_put_token(b, f, b->special[i], 1);
        fputs("\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,"
              "\"special\":true}",
            f);
    }
    fputs("],\"normalizer\":null,\"pre_tokenizer\":", f);
    if (b->pattern == BPE_GPT2) fprintf(f, "%strue}", level);
    else {
        const char* regex = BPE_PATTERNS[b->pattern].spelling[0];
        fputs("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"", f);
        bpe_put(f, regex, strlen(regex));
        fprintf(f, "\"},\"behavior\":\"Isolated\",\"invert\":false},%sfalse}]}", level);
    }
    fprintf(f, ",\"post_processor\":%strue},\"decoder\":%strue},", level, level);
    fprintf(f,
        "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
        "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,"
        "\"byte_fallback\":false,\"ignore_merges\":%s,\"vocab\":",
        b->whole ? "true" : "false");
    bpe_put_vocab(b, f);
    fputs(",\"merges\":[", f);
    for (uint32_t i = 0; i < b->merges; i++) {
        fputs(i ? ",\"" : "\"", f);
        bpe_put_token(b, f, b->merge[i].left, 1);
        fputc(' ', f);
        bpe_put_token(b, f, b->merge[i].right, 1);
        fputc('"', f);
    }
    fputs("]}}\n", f);
}

// Writes BPE_FILES[which] to a stream. max_length: the model's context, 0 = not said. Returns 0, or -1 when
// the stream has an error.
GPT2_SP_LEAF int bpe_write(const bpe* b, int which, uint64_t max_length, FILE* f) {
    static const char* const names[] = {"bos_token", "eos_token", "unk_token"};
    switch (which) {
    case 0: bpe_put_tokenizer(b, f); break;
    case 1:
        fputs("{\"add_prefix_space\":false,", f);
        for (int i = 0; i < 3; i++) {
            fprintf(f, "\"%s\":\"", names[i]);
            bpe_put_token(b, f, b->eot, 1);
            fputs("\",", f);
        }
        if (max_length) fprintf(f, "\"model_max_length\":%" PRIu64 ",", max_length);
        fprintf(f, "\"tokenizer_class\":\"%s\"}\n",
            b->pattern == BPE_GPT2 && !b->whole ? "GPT2Tokenizer" : "PreTrainedTokenizerFast");
        break;
    case 2: bpe_put_vocab(b, f); break;
    default:
        fputs("#version: 0.2\n", f);
        for (uint32_t i = 0; i < b->merges; i++) {
            bpe_put_token(b, f, b->merge[i].left, 0);
            fputc(' ', f);
            bpe_put_token(b, f, b->merge[i].right, 0);
            fputc('\n', f);
        }
    }
    return ferror(f) ? -1 : 0;
}

// Writes all files of a tokenizer to a folder that is there. None of them may be there: nothing is replaced.
GPT2_SP_LEAF int bpe_save(const bpe* b, const char* folder, uint64_t max_length, char* err, size_t err_size) {
    int rc = 0;
    for (int i = 0; i < bpe_files(b) && rc == 0; i++) {
        char* path = bpe_join(folder, strlen(folder), BPE_FILES[i]);
        bpe_reader r = {NULL, path ? path : folder, err, err_size, 0, 0};
        int fd = path ? open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666) : -1;
        FILE* f = fd < 0 ? NULL : fdopen(fd, "wb");
        if (!path) rc = bpe_error(&r, "no memory");
        else if (!f) {
            rc = bpe_error(&r, "%s", strerror(errno));
            if (fd >= 0) close(fd);
        } else {
            int bad = bpe_write(b, i, max_length, f) || fflush(f) || fsync(fd);
            if (bad) rc = bpe_error(&r, "writing: %s", strerror(errno));
            if (fclose(f) && !bad) rc = bpe_error(&r, "closing: %s", strerror(errno));
        }
        free(path);
    }
    return rc;
}

#endif
