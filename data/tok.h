// tok.h: token shards. Reads and writes `.tok`; reads llm.c's `.bin` and headerless u16 files.
//
//     tok_shard s; tok_cursor c = {0}; char err[256];                    // one cursor per reading thread
//     if (tok_open(&s, "train.tok", TOK_FORMAT_AUTO, err, sizeof err)) ...      // err says what is wrong
//     if (tok_read(&s, &c, first, count, tokens, err, sizeof err)) ...          // any range, in any order
//     tok_cursor_free(&c); tok_close(&s);
//
// Needs libc, POSIX (pread) and zlib; under -std=c11 define _GNU_SOURCE before the first include.
//
// A .tok file. All integers are little-endian and unsigned.
//
//     offset  bytes  header
//          0      8  magic D4 CF CB 67 70 74 32 0A: "TOK" with the top bits set, "gpt2", newline
//          8      4  version, 1 or 2. Only magic and version keep their place in later versions
//         12      4  width: bytes of a token, 2 or 4
//         16      4  tokenizer: 1 = bytes (vocabulary 257, eot 256), 2 = GPT-2 (50257, 50256), others free;
//                    this program writes a tokenizer's fingerprint with the top bit set
//         20      4  vocab_size: every token is below it; 1..65536 for width 2, 1..2^31-1 for width 4
//         24      4  eot: the token that ends each document, < vocab_size
//         28      4  block_tokens: tokens of every block but the last, 1..2^20
//         32      8  tokens, 1..2^48
//         40      8  documents, 1..tokens
//         48      8  blocks = ceil(tokens / block_tokens)
//         56      8  text_bytes: bytes of text the tokens stand for, eot not counted (for bits per byte)
//         64      8  block_index: its offset
//         72      8  document_index: its offset
//         80      4  CRC-32 of the block index
//         84      4  CRC-32 of the document index
//         88      4  zero
//         92      4  CRC-32 of header bytes 0..91. Here the header of version 1 ends; in version 2 this is
//                    the CRC-32 of the span index
//         96      8  spans
//        104      4  tokenizer_packed: bytes of the tokenizer's file, compressed; 0 = it has none
//        108      4  tokenizer_bytes: the same inflated, 0..2^27
//        112      4  CRC-32 of the compressed bytes
//        116      4  CRC-32 of header bytes 0..115
//
//     96 or 120 ..       blocks, back to back: the tokens of a block, `width` bytes each, as one zlib stream
//     block_index ..     16 bytes per block: offset (8), compressed bytes (4), CRC-32 of those bytes (4)
//     document_index ..  8 bytes per document: its first token
//     and behind it ..   16 bytes per span of the loss mask: its first token (8), how many (8)
//     and behind it ..   the tokenizer's file as one zlib stream: what turns tokens into text again
//
// Spans are tokens that are read but not learnt: a prompt whose answer is. Version 1, which has neither spans
// nor a tokenizer's file, is read but no longer written.
//
// Valid means: the parts touch and fill the file, so that no byte is without a check; blocks lie in order;
// each inflates to exactly its tokens, uses up its bytes and has at most n + n/4 + 64 of them for n bytes
// inflated; documents start at token 0 and strictly increase below `tokens`; each ends with eot; spans are
// not empty, lie in order inside the tokens and do not touch.
//
// The CRC of a block covers the compressed bytes: damage is found before zlib sees it, and also where it
// would not change the result (spare bits of a stream). The inflated bytes have zlib's own Adler-32. The
// header's CRC covers the indexes' CRCs, and those the blocks': that one number stands for the whole content
// and is the shard's fingerprint.
//
// Sizes are believed only as far as the file's real size and the limits above allow, before anything is
// allocated; a block inflates into a buffer of its known size, so a bomb ends there.
//
// The other two formats carry no CRC and name no vocabulary. Both are taken to be GPT-2 tokens, 2 bytes each,
// where an eot *precedes* each document, unless tok_flat_vocab is told another vocabulary:
//     llm.c .bin   1024-byte header of i32: 20240520, 1, tokens, 0 ...; the size must be 1024 + 2*tokens
//     raw u16      no header. Neither magic above is a pair of GPT-2 tokens (53204, 55432 >= 50257), so
//                  asking for raw only says what a file without a magic is: lists may mix all three
// Their documents are found by a scan when asked for (tok_index_documents): one starts at token 0 and at
// every eot. Their fingerprint is the CRC of the size and of 64 pieces of 4 KiB spread over the file.
//
// Functions return 0, or -1 with one line in err that names the file, what was found and what was expected.
#ifndef GPT2_SP_TOK_H
#define GPT2_SP_TOK_H

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
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#ifndef GPT2_SP_LEAF
#define GPT2_SP_LEAF static __attribute__((unused))
#endif

enum { TOK_BYTE = 1, TOK_GPT2 = 2 };                    // tokenizer ids
enum { TOK_FORMAT_AUTO = 0, TOK_FORMAT_RAW_U16 = 1 };   // what a file without a magic is: refused, or raw u16
enum {
    TOK_VERSION = 2,               // the newest
    TOK_HEADER = 120,              // bytes, of version 2
    TOK_HEADER_1 = 96,             // and of version 1
    TOK_MAX_TOKENIZER = 1 << 27,   // bytes of a tokenizer's file
    // zlib's level. Of GPT-2's tokens of novels, and of their bytes: level 1 makes 0.68 and 0.31 of what they
    // were, 4 0.65 and 0.26, 6 0.64 and 0.24; 4 takes 1.4 to 1.7 times as long as 1, 6 3.4 to 6 times.
    TOK_LEVEL = 4,
    TOK_BIN_HEADER = 1024,           // bytes of llm.c's
    TOK_BLOCK_TOKENS = 65536,        // the default: 128 KiB of tokens, about a millisecond to inflate
    TOK_MAX_BLOCK_TOKENS = 1 << 20   // so a reader needs at most 12 MiB
};
#define TOK_NO_EOT UINT32_MAX   // eot of a flat file in whose vocabulary no token ends documents
#define TOK_MAX_TOKENS ((uint64_t)1 << 48)
#define TOK_MAGIC "\xD4\xCF\xCBgpt2\n"
#define TOK_UNFINISHED "\xD4\xCF\xCBtemp\n"   // the first 8 bytes of a file that is being written

typedef struct {
    uint64_t offset;       // in the file
    uint32_t bytes, crc;   // compressed
} tok_block;

typedef struct {
    uint64_t first, count;   // tokens that are no labels
} tok_span;

typedef struct {
    char* path;   // own copy, for messages; NULL = not open
    int fd;
    uint32_t tokenizer, vocab_size, eot;
    uint32_t width, block_tokens;             // bytes of a token; tokens of a block (0 = flat: .bin and raw)
    uint32_t fingerprint;                     // CRC-32 of what identifies the content
    uint64_t tokens, documents, text_bytes;   // text_bytes 0 = not known
    const uint64_t* document_start;   // documents + 1 entries, the last = tokens; NULL = not indexed yet
    tok_block* block;                 // the block index; NULL when flat
    tok_span* span;                   // (spans) the loss mask
    uint64_t spans;
    uint64_t tokenizer_at;   // where the tokenizer's file lies
    uint32_t tokenizer_packed, tokenizer_bytes, tokenizer_crc;
    uint64_t data;   // where the tokens of a flat file start
    int32_t* held;   // the tokens of a shard in memory (tok_open_memory); NULL: of a file
} tok_shard;

typedef struct {             // the block last inflated by one reader; start from zeros
    unsigned char* memory;   // block_tokens int32, then the block inflated, then the block as in the file
    size_t capacity;         // bytes of memory
    int valid;               // memory holds the block (of shard) described by the next three
    uint32_t fingerprint;
    uint64_t index;
    tok_block block;
} tok_cursor;

typedef struct {        // a file that is being written as PATH.tmp and takes its name when it is whole
    char *path, *tmp;   // path NULL = not open
    int fd;             // of PATH.tmp, locked for as long
    int (*ours)(int);   // is an open file of the kind that is being written? Only such a one is replaced
    const char* what;   // that kind, for messages: "token shard"
} tok_output;

typedef struct tok_writer {   // any error abandons it
    tok_output out;
    uint32_t tokenizer, vocab_size, eot, width, block_tokens;
    int masked;                    // the caller's to set: the tokens that come next are no labels
    uint32_t fill;                 // tokens in raw
    unsigned char *raw, *packed;   // the block being filled, and compressed
    // Takes w->raw with w->fill tokens, to be compressed elsewhere and then given to tok_writer_block, each
    // in its turn, and leaves another raw. NULL: done here.
    int (*take)(void* user, struct tok_writer* w, char* err, size_t err_size);
    void* user;   // of take
    uint64_t tokens, documents, blocks, text_bytes, offset;
    uint64_t document;   // first token of the current document
    tok_block* block;    // the indexes so far
    uint64_t* document_start;
    tok_span* span;
    uint64_t spans, block_capacity, document_capacity, span_capacity;
    unsigned char* tokenizer_file;   // compressed
    uint32_t tokenizer_packed, tokenizer_bytes;
} tok_writer;

typedef struct {   // where a writer stood between two documents; start from zeros
    uint64_t tokens, documents, spans, text_bytes;
    tok_span last;        // the last span
    uint32_t fill;        // tokens in raw
    unsigned char* raw;   // a copy of the block that was being filled
} tok_mark;

// ================================================================================
// bytes, files, messages

// Leaves one line in err and returns -1.
__attribute__((format(printf, 3, 4))) GPT2_SP_LEAF int tok_error(
    char* err, size_t err_size, const char* format, ...) {
    va_list args;
    va_start(args, format);
    if (err && err_size) vsnprintf(err, err_size, format, args);
    va_end(args);
    return -1;
}

GPT2_SP_LEAF void tok_put_le(unsigned char* p, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) p[i] = (unsigned char)(value >> (8 * i));
}

GPT2_SP_LEAF uint64_t tok_get_le(const unsigned char* p, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)p[i] << (8 * i);
    return value;
}

// CRC-32 (zlib's) of any number of bytes, going on from crc.
GPT2_SP_LEAF uint32_t tok_crc(uint32_t crc, const unsigned char* p, uint64_t bytes) {
    while (bytes > 0) {
        uInt n = bytes < (1u << 30) ? (uInt)bytes : 1u << 30;
        crc = (uint32_t)crc32(crc, p, n);
        p += n;
        bytes -= n;
    }
    return crc;
}

// malloc of count * each bytes, NULL also where that does not fit a size_t.
GPT2_SP_LEAF void* tok_malloc(uint64_t count, size_t each) {
    return count > SIZE_MAX / each ? NULL : malloc(count ? (size_t)count * each : 1);
}

// The most bytes a block of `bytes` may have compressed. Not zlib's compressBound: that is not the same in
// all zlibs.
GPT2_SP_LEAF uint64_t tok_bound(uint64_t bytes) { return bytes + bytes / 4 + 64; }

// Room for `count` elements in a growing array: returns the (moved) array, or NULL with the old one
// untouched.
GPT2_SP_LEAF void* tok_grow(void* array, uint64_t* capacity, uint64_t count, size_t each) {
    if (array && count <= *capacity) return array;
    uint64_t wanted = *capacity * 2 > count ? *capacity * 2 : count + 64;
    void* grown = wanted > SIZE_MAX / each ? NULL : realloc(array, (size_t)wanted * each);
    if (grown) *capacity = wanted;
    return grown;
}

// Reads exactly bytes at offset; `what` is for the message.
GPT2_SP_LEAF int tok_pread(const tok_shard* s, void* out, uint64_t bytes, uint64_t offset, const char* what,
    char* err, size_t err_size) {
    unsigned char* p = (unsigned char*)out;
    while (bytes > 0) {
        ssize_t n = pread(s->fd, p, bytes < (1u << 30) ? (size_t)bytes : (size_t)1 << 30, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return tok_error(err, err_size, "%s: reading %s: %s", s->path, what, strerror(errno));
        if (n == 0)
            return tok_error(err, err_size,
                "%s: reading %s: the file ends at byte %" PRIu64 ", expected %" PRIu64 " more", s->path, what,
                offset, bytes);
        p += n;
        offset += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

// What the header fields that reader and writer share must satisfy.
GPT2_SP_LEAF int tok_check_shape(const char* path, uint32_t tokenizer, uint32_t vocab_size, uint32_t eot,
    uint32_t width, uint32_t block_tokens, char* err, size_t err_size) {
    if (width != 2 && width != 4)
        return tok_error(err, err_size, "%s: token width is %" PRIu32 ", expected 2 or 4", path, width);
    if (vocab_size < 1 || vocab_size > (width == 2 ? 65536u : 0x7FFFFFFFu) || eot >= vocab_size)
        return tok_error(err, err_size,
            "%s: vocabulary of %" PRIu32 " with eot %" PRIu32 ", expected 1..%s and an eot below it", path,
            vocab_size, eot, width == 2 ? "65536" : "2147483647");
    uint32_t known = tokenizer == TOK_BYTE ? 257 : tokenizer == TOK_GPT2 ? 50257 : vocab_size;
    if (tokenizer == 0 || vocab_size != known || (tokenizer <= TOK_GPT2 && eot != known - 1))
        return tok_error(err, err_size,
            "%s: tokenizer %" PRIu32 " with vocabulary %" PRIu32 " and eot %" PRIu32
            ", expected 1 (bytes: 257, 256), 2 (GPT-2: 50257, 50256) or another id above 2",
            path, tokenizer, vocab_size, eot);
    if (block_tokens < 1 || block_tokens > TOK_MAX_BLOCK_TOKENS)
        return tok_error(err, err_size, "%s: blocks of %" PRIu32 " tokens, expected 1..%d", path,
            block_tokens, (int)TOK_MAX_BLOCK_TOKENS);
    return 0;
}

// ================================================================================
// opening

// Tokens of block i.
GPT2_SP_LEAF uint32_t tok_block_length(const tok_shard* s, uint64_t i) {
    uint64_t left = s->tokens - i * s->block_tokens;
    return left < s->block_tokens ? (uint32_t)left : s->block_tokens;
}

// Reads one index into a new buffer and checks its CRC. NULL on error.
GPT2_SP_LEAF unsigned char* tok_read_index(const tok_shard* s, uint64_t entries, size_t each, uint64_t offset,
    uint64_t crc, const char* what, char* err, size_t err_size) {
    unsigned char* raw = (unsigned char*)tok_malloc(entries, each);
    if (!raw) {
        tok_error(err, err_size, "%s: no memory for the %s of %" PRIu64 " entries", s->path, what, entries);
        return NULL;
    }
    if (tok_pread(s, raw, entries * each, offset, what, err, err_size) == 0) {
        uint32_t found = tok_crc(0, raw, entries * each);
        if (found == crc) return raw;
        tok_error(err, err_size, "%s: %s at byte %" PRIu64 ": CRC-32 is %08" PRIx32 ", expected %08" PRIx64,
            s->path, what, offset, found, crc);
    }
    free(raw);
    return NULL;
}

// What the header of a .tok file says of its parts.
typedef struct {
    uint64_t start;   // of the blocks
    uint64_t blocks, block_index, document_index;
    uint32_t block_crc, document_crc, span_crc;
} tok_parts;

// Reads the header, the part of it that all versions have and the rest, and holds what it says against the
// file's size.
GPT2_SP_LEAF int tok_open_header(tok_shard* s, tok_parts* p, uint64_t size, char* err, size_t err_size) {
    unsigned char h[TOK_HEADER];
    if (size < 12)
        return tok_error(err, err_size, "%s: truncated: %" PRIu64 " bytes, a header has 96", s->path, size);
    if (tok_pread(s, h, size < sizeof h ? size : sizeof h, 0, "header", err, err_size)) return -1;
    uint32_t version = (uint32_t)tok_get_le(h + 8, 4);
    if (version > TOK_VERSION)
        return tok_error(err, err_size,
            "%s: made by a newer version: format %" PRIu32 ", this program reads %d", s->path, version,
            (int)TOK_VERSION);
    if (version < 1)
        return tok_error(err, err_size, "%s: format version is %" PRIu32 ", expected 1 or %d", s->path,
            version, (int)TOK_VERSION);
    uint32_t header = version == 1 ? TOK_HEADER_1 : TOK_HEADER;
    if (size < header)
        return tok_error(
            err, err_size, "%s: truncated: %" PRIu64 " bytes, a header has %" PRIu32, s->path, size, header);
    s->fingerprint = tok_crc(0, h, header - 4);
    if (s->fingerprint != tok_get_le(h + header - 4, 4))
        return tok_error(err, err_size, "%s: header: CRC-32 is %08" PRIx32 ", expected %08" PRIx64, s->path,
            s->fingerprint, tok_get_le(h + header - 4, 4));
    s->width = (uint32_t)tok_get_le(h + 12, 4);
    s->tokenizer = (uint32_t)tok_get_le(h + 16, 4);
    s->vocab_size = (uint32_t)tok_get_le(h + 20, 4);
    s->eot = (uint32_t)tok_get_le(h + 24, 4);
    s->block_tokens = (uint32_t)tok_get_le(h + 28, 4);
    s->tokens = tok_get_le(h + 32, 8);
    s->documents = tok_get_le(h + 40, 8);
    s->text_bytes = tok_get_le(h + 56, 8);
    p->start = header;
    p->blocks = tok_get_le(h + 48, 8);
    p->block_index = tok_get_le(h + 64, 8);
    p->document_index = tok_get_le(h + 72, 8);
    p->block_crc = (uint32_t)tok_get_le(h + 80, 4);
    p->document_crc = (uint32_t)tok_get_le(h + 84, 4);
    p->span_crc = version == 1 ? 0 : (uint32_t)tok_get_le(h + 92, 4);
    s->spans = version == 1 ? 0 : tok_get_le(h + 96, 8);
    s->tokenizer_packed = version == 1 ? 0 : (uint32_t)tok_get_le(h + 104, 4);
    s->tokenizer_bytes = version == 1 ? 0 : (uint32_t)tok_get_le(h + 108, 4);
    s->tokenizer_crc = version == 1 ? 0 : (uint32_t)tok_get_le(h + 112, 4);
    if (tok_check_shape(
            s->path, s->tokenizer, s->vocab_size, s->eot, s->width, s->block_tokens, err, err_size))
        return -1;
    if (tok_get_le(h + 88, 4) != 0)
        return tok_error(err, err_size, "%s: header byte 88..91 is not zero", s->path);
    if (s->tokens < 1 || s->tokens > TOK_MAX_TOKENS || s->documents < 1 || s->documents > s->tokens)
        return tok_error(err, err_size,
            "%s: %" PRIu64 " tokens in %" PRIu64 " documents, expected 1..2^48 and 1..tokens", s->path,
            s->tokens, s->documents);
    if (p->blocks != (s->tokens + s->block_tokens - 1) / s->block_tokens)
        return tok_error(err, err_size, "%s: %" PRIu64 " blocks, expected %" PRIu64 " for %" PRIu64 " tokens",
            s->path, p->blocks, (s->tokens + s->block_tokens - 1) / s->block_tokens, s->tokens);
    if (s->tokenizer_bytes > TOK_MAX_TOKENIZER || (s->tokenizer_bytes == 0) != (s->tokenizer_packed == 0))
        return tok_error(err, err_size, "%s: a tokenizer's file of %" PRIu32 " bytes in %" PRIu32, s->path,
            s->tokenizer_bytes, s->tokenizer_packed);
    return 0;
}

// Do the parts touch and fill the file? Every count is held against the bytes that are there: entries <=
// size / entry bytes, so nothing overflows.
GPT2_SP_LEAF int tok_parts_fit(tok_shard* s, const tok_parts* p, uint64_t size, char* err, size_t err_size) {
    uint64_t span_index = p->document_index + 8 * s->documents;
    s->tokenizer_at = span_index + 16 * s->spans;
    if (p->blocks > size / 16 || s->documents > size / 8 || s->spans > size / 16 ||
        p->document_index > size || p->block_index > size || p->block_index < p->start ||
        p->block_index + 16 * p->blocks != p->document_index || s->tokenizer_at + s->tokenizer_packed != size)
        return tok_error(err, err_size,
            "%s: %" PRIu64 " bytes do not fit the header: %" PRIu64 " blocks indexed at %" PRIu64 ", %" PRIu64
            " documents indexed at %" PRIu64 ", %" PRIu64 " spans and %" PRIu32
            " bytes to the end (truncated, or bytes added)",
            s->path, size, p->blocks, p->block_index, s->documents, p->document_index, s->spans,
            s->tokenizer_packed);
    return 0;
}

// Reads the block index.
GPT2_SP_LEAF int tok_open_blocks(tok_shard* s, const tok_parts* p, char* err, size_t err_size) {
    unsigned char* raw =
        tok_read_index(s, p->blocks, 16, p->block_index, p->block_crc, "block index", err, err_size);
    if (!raw) return -1;
    s->block = (tok_block*)tok_malloc(p->blocks, sizeof *s->block);
    if (!s->block) {
        free(raw);
        return tok_error(err, err_size, "%s: no memory for %" PRIu64 " blocks", s->path, p->blocks);
    }
    uint64_t at = p->start;   // where the next block has to start
    for (uint64_t i = 0; i < p->blocks; i++) {
        tok_block b = {tok_get_le(raw + 16 * i, 8), (uint32_t)tok_get_le(raw + 16 * i + 8, 4),
            (uint32_t)tok_get_le(raw + 16 * i + 12, 4)};
        uint64_t most = tok_bound((uint64_t)tok_block_length(s, i) * s->width);
        if (b.offset != at || b.bytes < 1 || b.bytes > most || b.bytes > p->block_index - at) {
            free(raw);
            return tok_error(err, err_size,
                "%s: block %" PRIu64 ": %" PRIu32 " bytes at byte %" PRIu64 ", expected 1..%" PRIu64
                " bytes at byte %" PRIu64 " and before byte %" PRIu64,
                s->path, i, b.bytes, b.offset, most, at, p->block_index);
        }
        s->block[i] = b;
        at += b.bytes;
    }
    free(raw);
    if (at == p->block_index) return 0;
    return tok_error(
        err, err_size, "%s: blocks end at byte %" PRIu64 ", expected %" PRIu64, s->path, at, p->block_index);
}

// Reads the document index.
GPT2_SP_LEAF int tok_open_documents(tok_shard* s, const tok_parts* p, char* err, size_t err_size) {
    unsigned char* raw = tok_read_index(
        s, s->documents, 8, p->document_index, p->document_crc, "document index", err, err_size);
    if (!raw) return -1;
    uint64_t* start = (uint64_t*)tok_malloc(s->documents + 1, sizeof *start);
    s->document_start = start;
    for (uint64_t i = 0; start && i < s->documents; i++) {
        start[i] = tok_get_le(raw + 8 * i, 8);
        if (i == 0 ? start[i] != 0 : start[i] <= start[i - 1] || start[i] >= s->tokens) {
            free(raw);
            return tok_error(err, err_size,
                "%s: document %" PRIu64 " at token %" PRIu64 ", expected %s and below %" PRIu64, s->path, i,
                start[i], i == 0 ? "0" : "more than the one before", s->tokens);
        }
    }
    free(raw);
    if (!start)
        return tok_error(err, err_size, "%s: no memory for %" PRIu64 " documents", s->path, s->documents);
    start[s->documents] = s->tokens;
    return 0;
}

// Reads the spans of the loss mask.
GPT2_SP_LEAF int tok_open_spans(tok_shard* s, const tok_parts* p, char* err, size_t err_size) {
    if (s->spans == 0) return 0;
    unsigned char* raw = tok_read_index(
        s, s->spans, 16, p->document_index + 8 * s->documents, p->span_crc, "span index", err, err_size);
    if (!raw) return -1;
    s->span = (tok_span*)tok_malloc(s->spans, sizeof *s->span);
    uint64_t free_from = 0;   // the first token that the next span may have
    for (uint64_t i = 0; s->span && i < s->spans; i++) {
        tok_span span = {tok_get_le(raw + 16 * i, 8), tok_get_le(raw + 16 * i + 8, 8)};
        if (span.count < 1 || span.first < free_from || span.first >= s->tokens ||
            span.count > s->tokens - span.first) {
            free(raw);
            return tok_error(err, err_size,
                "%s: span %" PRIu64 " has %" PRIu64 " tokens from token %" PRIu64
                " on, expected at least one, from %" PRIu64 " on and below %" PRIu64,
                s->path, i, span.count, span.first, free_from, s->tokens);
        }
        s->span[i] = span;
        free_from = span.first + span.count + 1;
    }
    free(raw);
    return s->span ? 0 : tok_error(err, err_size, "%s: no memory for %" PRIu64 " spans", s->path, s->spans);
}

// A .tok file of `size` bytes: its header, then its indexes.
GPT2_SP_LEAF int tok_open_tok(tok_shard* s, uint64_t size, char* err, size_t err_size) {
    tok_parts p;
    memset(&p, 0, sizeof p);
    return tok_open_header(s, &p, size, err, err_size) || tok_parts_fit(s, &p, size, err, err_size) ||
            tok_open_blocks(s, &p, err, err_size) || tok_open_documents(s, &p, err, err_size) ||
            tok_open_spans(s, &p, err, err_size)
        ? -1
        : 0;
}

// The tokenizer's file that a shard carries, with a NUL behind; the caller frees it. NULL without a message:
// it carries none; with one: it cannot be read.
GPT2_SP_LEAF char* tok_tokenizer(const tok_shard* s, size_t* length, char* err, size_t err_size) {
    *length = s->tokenizer_bytes;
    if (err && err_size) err[0] = 0;
    if (s->tokenizer_bytes == 0) return NULL;
    unsigned char* packed = (unsigned char*)tok_malloc(s->tokenizer_packed, 1);
    char* text = (char*)tok_malloc((uint64_t)s->tokenizer_bytes + 1, 1);
    uLongf got = s->tokenizer_bytes;
    uLong used = s->tokenizer_packed;
    int rc = packed && text ? 0 : tok_error(err, err_size, "%s: no memory for its tokenizer", s->path);
    if (rc == 0) rc = tok_pread(s, packed, s->tokenizer_packed, s->tokenizer_at, "tokenizer", err, err_size);
    if (rc == 0 &&
        (tok_crc(0, packed, s->tokenizer_packed) != s->tokenizer_crc ||
            uncompress2((unsigned char*)text, &got, packed, &used) != Z_OK || got != s->tokenizer_bytes ||
            used != s->tokenizer_packed))
        rc = tok_error(err, err_size, "%s: the tokenizer's file in it is damaged", s->path);
    free(packed);
    if (rc == 0) {
        text[got] = 0;
        return text;
    }
    free(text);
    return NULL;
}

// A flat file of GPT-2 tokens from byte s->data on.
GPT2_SP_LEAF int tok_open_flat(tok_shard* s, uint64_t size, char* err, size_t err_size) {
    s->width = 2;
    s->tokenizer = TOK_GPT2;
    s->vocab_size = 50257;
    s->eot = 50256;
    s->tokens = (size - s->data) / 2;
    unsigned char piece[4096];
    tok_put_le(piece, size, 8);
    s->fingerprint = tok_crc(0, piece, 8);
    for (uint64_t i = 0; i < 64; i++) {
        uint64_t last = size > sizeof piece ? size - sizeof piece : 0;
        uint64_t at = size <= 64 * sizeof piece ? i * sizeof piece : last / 63 * i + last % 63 * i / 63;
        if (at >= size) break;
        uint64_t n = size - at < sizeof piece ? size - at : sizeof piece;
        if (tok_pread(s, piece, n, at, "tokens", err, err_size)) return -1;
        s->fingerprint = tok_crc(s->fingerprint, piece, n);
    }
    return 0;
}

// Closes and frees; harmless on a shard of zeros, on one that failed to open, and twice.
GPT2_SP_LEAF void tok_close(tok_shard* s) {
    if (!s->path) return;
    if (s->fd >= 0) close(s->fd);
    free(s->path);
    free(s->block);
    free(s->span);
    free((void*)s->document_start);
    free(s->held);
    memset(s, 0, sizeof *s);
    s->fd = -1;
}

// Finds out which of the three formats the open file is.
GPT2_SP_LEAF int tok_open_any(tok_shard* s, int format, char* err, size_t err_size) {
    struct stat st;
    unsigned char h[12] = {0};
    if (fstat(s->fd, &st)) return tok_error(err, err_size, "%s: %s", s->path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return tok_error(err, err_size, "%s: not a regular file", s->path);
    uint64_t size = (uint64_t)st.st_size;
    if (size == 0) return tok_error(err, err_size, "%s: empty file, expected a token shard", s->path);
    if (tok_pread(s, h, size < sizeof h ? size : sizeof h, 0, "header", err, err_size)) return -1;
    if (memcmp(h, TOK_MAGIC, 8) == 0) return tok_open_tok(s, size, err, err_size);
    uint32_t magic = (uint32_t)tok_get_le(h, 4), version = (uint32_t)tok_get_le(h + 4, 4);
    uint64_t tokens = tok_get_le(h + 8, 4);
    if (size >= 4 && magic == 20240520) {
        if (size < sizeof h || version != 1)
            return tok_error(err, err_size,
                "%s: llm.c shard of version %" PRIu32 " and %" PRIu64 " bytes, expected version 1", s->path,
                version, size);
        if (tokens < 1 || tokens > 0x7FFFFFFF || size != TOK_BIN_HEADER + 2 * tokens)
            return tok_error(err, err_size,
                "%s: llm.c shard of %" PRIu64 " tokens has %" PRIu64 " bytes, expected %" PRIu64
                " and at least one token",
                s->path, tokens, size, TOK_BIN_HEADER + 2 * tokens);
        s->data = TOK_BIN_HEADER;
        return tok_open_flat(s, size, err, err_size);
    }
    if (size >= 4 && (magic == 20240801 || magic == 20240522))
        return tok_error(err, err_size,
            "%s: llm.c file with magic %" PRIu32 " (Llama 3 tokens or eval data), expected 20240520", s->path,
            magic);
    if (format != TOK_FORMAT_RAW_U16)
        return tok_error(err, err_size,
            "%s: starts with bytes %02x %02x %02x %02x, expected a .tok or llm.c .bin token shard", s->path,
            h[0], h[1], h[2], h[3]);
    if (size % 2)
        return tok_error(
            err, err_size, "%s: %" PRIu64 " bytes, expected an even number for raw u16", s->path, size);
    return tok_open_flat(s, size, err, err_size);
}

// Opens a shard and reads its indexes. On error *s holds nothing to close. The shard may then be read by any
// number of threads at once.
GPT2_SP_LEAF int tok_open(tok_shard* s, const char* path, int format, char* err, size_t err_size) {
    memset(s, 0, sizeof *s);
    s->fd = -1;
    s->path = (char*)tok_malloc(strlen(path) + 1, 1);
    if (!s->path) return tok_error(err, err_size, "%s: no memory", path);
    memcpy(s->path, path, strlen(path) + 1);
    s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);   // NONBLOCK: a pipe is refused, not waited for
    if (s->fd < 0) tok_error(err, err_size, "%s: %s", path, strerror(errno));
    if (s->fd >= 0 && tok_open_any(s, format, err, err_size) == 0) return 0;
    tok_close(s);
    return -1;
}

// Makes a shard in memory of a copy of `count` tokens below vocab, whose documents end with eot (TOK_NO_EOT:
// there is one). It has no tokenizer; `name` stands for a path. On error *s holds nothing to close.
GPT2_SP_LEAF int tok_open_memory(tok_shard* s, const char* name, const int32_t* tokens, uint64_t count,
    uint32_t vocab, uint32_t eot, char* err, size_t err_size) {
    uint64_t documents = 0;
    memset(s, 0, sizeof *s);
    s->fd = -1;
    for (uint64_t i = 0; i < count; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab)
            return tok_error(err, err_size, "%s: token %" PRIu64 " is %" PRId32 ", expected below %" PRIu32,
                name, i, tokens[i], vocab);
        documents += (uint32_t)tokens[i] == eot || i + 1 == count;
    }
    s->path = (char*)tok_malloc(strlen(name) + 1, 1);
    s->held = (int32_t*)tok_malloc(count, sizeof *s->held);
    uint64_t* start = (uint64_t*)tok_malloc(documents + 1, sizeof *start);
    s->document_start = start;
    if (!s->path || !s->held || !start) {
        free(s->path);
        free(s->held);
        free(start);
        memset(s, 0, sizeof *s);
        return tok_error(err, err_size, "%s: no memory for %" PRIu64 " tokens", name, count);
    }
    memcpy(s->path, name, strlen(name) + 1);
    if (count > 0) memcpy(s->held, tokens, (size_t)count * sizeof *s->held);
    for (uint64_t i = 0; i < count; i++)
        if (i == 0 || (uint32_t)tokens[i - 1] == eot) start[s->documents++] = i;
    start[s->documents] = count;
    s->tokens = count, s->width = 4;
    s->vocab_size = vocab, s->eot = eot;
    unsigned char sizes[8];
    tok_put_le(sizes, vocab, 4);
    tok_put_le(sizes + 4, eot, 4);
    s->fingerprint = tok_crc(tok_crc(0, sizes, 8), (const unsigned char*)s->held, count * sizeof *s->held);
    return 0;
}

// ================================================================================
// reading

// Inflates block `index` into the cursor, unless it is there: CRC, exact length and the range of every token.
GPT2_SP_LEAF int tok_load(const tok_shard* s, tok_cursor* c, uint64_t index, char* err, size_t err_size) {
    const tok_block* b = &s->block[index];
    if (c->valid && c->index == index && c->fingerprint == s->fingerprint && c->block.offset == b->offset &&
        c->block.bytes == b->bytes && c->block.crc == b->crc)
        return 0;
    c->valid = 0;
    size_t length = tok_block_length(s, index), bytes = length * s->width;
    size_t need =
        length * 4 + bytes + b->bytes;   // at most 4 + 4 + 4 bytes per token of a bounded block, and a little
    if (c->capacity < need) {
        unsigned char* grown = (unsigned char*)realloc(c->memory, need);
        if (!grown)
            return tok_error(err, err_size, "%s: no memory for a block of %zu tokens", s->path, length);
        c->memory = grown;
        c->capacity = need;
    }
    int32_t* tokens = (int32_t*)(void*)c->memory;
    unsigned char *raw = c->memory + length * 4, *packed = raw + bytes;
    if (tok_pread(s, packed, b->bytes, b->offset, "block", err, err_size)) return -1;
    uint32_t crc = tok_crc(0, packed, b->bytes);
    if (crc != b->crc)
        return tok_error(err, err_size,
            "%s: block %" PRIu64 " at byte %" PRIu64 ": CRC-32 is %08" PRIx32 ", expected %08" PRIx32,
            s->path, index, b->offset, crc, b->crc);
    uLongf got = (uLongf)bytes;
    uLong used = b->bytes;
    int rc = uncompress2(raw, &got, packed, &used);
    if (rc != Z_OK || got != bytes || used != b->bytes)
        return tok_error(err, err_size,
            "%s: block %" PRIu64 " at byte %" PRIu64 ": zlib %s, %lu bytes from %lu, expected "
            "%zu from %" PRIu32,
            s->path, index, b->offset, rc == Z_BUF_ERROR ? "stream of another size" : zError(rc),
            (unsigned long)got, (unsigned long)used, bytes, b->bytes);
    for (size_t i = 0; i < length; i++) {
        uint32_t token = (uint32_t)tok_get_le(raw + i * s->width, (int)s->width);
        if (token >= s->vocab_size)
            return tok_error(err, err_size, "%s: token %" PRIu64 " is %" PRIu32 ", expected below %" PRIu32,
                s->path, index * s->block_tokens + i, token, s->vocab_size);
        tokens[i] = (int32_t)token;
    }
    c->valid = 1;
    c->fingerprint = s->fingerprint;
    c->index = index;
    c->block = *b;
    return 0;
}

// Copies tokens first .. first+count-1 to out. Any number of threads may read one shard, each with its own
// cursor; a cursor may serve several shards. On error what is in out is not to be used.
GPT2_SP_LEAF int tok_read(const tok_shard* s, tok_cursor* c, uint64_t first, uint64_t count, int32_t* out,
    char* err, size_t err_size) {
    if (first > s->tokens || count > s->tokens - first)
        return tok_error(err, err_size,
            "%s: %" PRIu64 " tokens from token %" PRIu64 " on asked for, it has %" PRIu64, s->path, count,
            first, s->tokens);
    while (count > 0) {
        uint64_t n;
        if (s->held) {
            n = count;
            memcpy(out, s->held + first, (size_t)n * sizeof *out);
        } else if (s->block_tokens) {
            uint64_t index = first / s->block_tokens, skip = first % s->block_tokens;
            if (tok_load(s, c, index, err, err_size)) return -1;
            n = tok_block_length(s, index) - skip;
            if (n > count) n = count;
            memcpy(out, c->memory + skip * 4, (size_t)n * 4);
        } else {
            unsigned char raw[8192];
            n = count < sizeof raw / 2 ? count : sizeof raw / 2;
            if (tok_pread(s, raw, n * 2, s->data + first * 2, "tokens", err, err_size)) return -1;
            for (uint64_t i = 0; i < n; i++) {
                out[i] = (int32_t)tok_get_le(raw + 2 * i, 2);
                if ((uint32_t)out[i] >= s->vocab_size)
                    return tok_error(err, err_size,
                        "%s: token %" PRIu64 " is %" PRId32 ", expected below %" PRIu32, s->path, first + i,
                        out[i], s->vocab_size);
            }
        }
        first += n;
        count -= n;
        out += n;
    }
    return 0;
}

GPT2_SP_LEAF void tok_cursor_free(tok_cursor* c) {
    free(c->memory);
    memset(c, 0, sizeof *c);
}

// Gives a flat file its document_start by one scan; nothing to do where there is one. Call before sharing the
// shard.
GPT2_SP_LEAF int tok_index_documents(tok_shard* s, char* err, size_t err_size) {
    if (s->document_start) return 0;
    int32_t chunk[4096];
    tok_cursor none = {NULL, 0, 0, 0, 0, {0, 0, 0}};   // flat files need no block
    uint64_t documents = 1, capacity = 0;
    uint64_t* start = (uint64_t*)tok_grow(NULL, &capacity, 2, sizeof *start);
    if (start) start[0] = 0;
    for (uint64_t at = 0; start && at < s->tokens; at += 4096) {
        uint64_t n = s->tokens - at < 4096 ? s->tokens - at : 4096;
        if (tok_read(s, &none, at, n, chunk, err, err_size)) {
            free(start);
            return -1;
        }
        for (uint64_t i = 0; i < n; i++) {
            if ((uint32_t)chunk[i] != s->eot || at + i == 0) continue;
            uint64_t* grown = (uint64_t*)tok_grow(start, &capacity, documents + 2, sizeof *start);
            if (!grown) {
                free(start);
                return tok_error(
                    err, err_size, "%s: no memory for %" PRIu64 " documents", s->path, documents);
            }
            start = grown;
            start[documents++] = at + i;
        }
    }
    if (!start) return tok_error(err, err_size, "%s: no memory for a document index", s->path);
    start[documents] = s->tokens;
    s->document_start = start;
    s->documents = documents;
    return 0;
}

// Gives a flat file a vocabulary of `vocab` tokens in place of GPT-2's, after a look at every token;
// nothing to do for a .tok, which names its own, and for 0. A larger one only has room for more: tokens
// that all are GPT-2's stay so. In a smaller one no token is known to end a document. Call before sharing
// the shard.
GPT2_SP_LEAF int tok_flat_vocab(tok_shard* s, uint64_t vocab, char* err, size_t err_size) {
    tok_cursor none;
    int32_t chunk[4096], largest = 0;
    const uint32_t usual = s->vocab_size;
    if (s->block_tokens || vocab == 0 || vocab == usual) return 0;
    memset(&none, 0, sizeof none);
    s->vocab_size = 65536;
    for (uint64_t at = 0; at < s->tokens; at += 4096) {
        uint64_t n = s->tokens - at < 4096 ? s->tokens - at : 4096;
        if (tok_read(s, &none, at, n, chunk, err, err_size)) return -1;
        for (uint64_t i = 0; i < n; i++) {
            largest = chunk[i] > largest ? chunk[i] : largest;
            if ((uint64_t)chunk[i] >= vocab)
                return tok_error(err, err_size,
                    "%s: token %" PRIu64 " is %" PRId32 ", expected below the vocabulary's %" PRIu64, s->path,
                    at + i, chunk[i], vocab);
        }
    }
    if (vocab > usual && (uint32_t)largest < usual) vocab = usual;
    s->vocab_size = vocab < 65536 ? (uint32_t)vocab : 65536;
    if (s->vocab_size < usual) {
        s->tokenizer = 0;
        s->eot = TOK_NO_EOT;
    }
    return 0;
}

// ================================================================================
// outputs: any file that takes its name only when it is whole
//
// A file is written as PATH.tmp, locked, and renamed. PATH.tmp is made, never opened: nothing is written
// through a link or into a file that is there, and a second writer of the same PATH is refused. What stands
// at PATH is replaced only if it is a file of the kind that is being written. A PATH.tmp that begins with
// the mark TOK_UNFINISHED, and that nobody has locked, was left by a writer that ended before its time: it
// is removed.

// Does an open file begin with these 8 bytes?
GPT2_SP_LEAF int tok_begins(int fd, const char* magic) {
    char found[8];
    return pread(fd, found, 8, 0) == 8 && memcmp(found, magic, 8) == 0;
}
GPT2_SP_LEAF int tok_is_shard(int fd) { return tok_begins(fd, TOK_MAGIC); }

// 0 if PATH is free, or holds what may be replaced.
GPT2_SP_LEAF int tok_output_free(const tok_output* o, char* err, size_t err_size) {
    struct stat st;
    if (lstat(o->path, &st)) {
        if (errno == ENOENT || errno == ENOTDIR) return 0;   // if no file can be there, making PATH.tmp tells
        return tok_error(err, err_size, "%s: %s", o->path, strerror(errno));
    }
    if (!S_ISREG(st.st_mode))
        return tok_error(err, err_size, "%s: %s is there, and stays; expected a new name, or a %s", o->path,
            S_ISLNK(st.st_mode)       ? "a link"
                : S_ISDIR(st.st_mode) ? "a folder"
                                      : "a device, pipe or socket",
            o->what);
    int fd = open(o->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return tok_error(err, err_size, "%s: %s", o->path, strerror(errno));
    int ours = o->ours(fd);
    close(fd);
    if (ours) return 0;
    return tok_error(err, err_size,
        "%s: a file is there that is no %s, and stays; expected a new name, or a %s that this program wrote",
        o->path, o->what, o->what);
}

// Is PATH.tmp the open file still? Somebody may have removed it, and another writer begun its own.
GPT2_SP_LEAF int tok_output_holds(const tok_output* o, int fd) {
    struct stat held, named;
    return fstat(fd, &held) == 0 && lstat(o->tmp, &named) == 0 && held.st_ino == named.st_ino &&
        held.st_dev == named.st_dev;
}

// PATH.tmp is there: removes it if a writer that is gone has left it. -1 if one is at work, or if it is
// anything else.
GPT2_SP_LEAF int tok_output_leftover(const tok_output* o, char* err, size_t err_size) {
    struct stat st;
    int rc = 0, fd = open(o->tmp, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) return 0;
    if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode))
        rc = tok_error(
            err, err_size, "%s: no regular file, and stays: choose another name, or remove it", o->tmp);
    else if (flock(fd, LOCK_EX | LOCK_NB))
        rc = errno == EWOULDBLOCK
            ? tok_error(err, err_size, "%s: another process is writing it", o->path)
            : tok_error(err, err_size,
                  "%s: whether another process writes it cannot be told (%s): remove it if none does", o->tmp,
                  strerror(errno));
    else if (tok_output_holds(o, fd)) {
        // an empty one: its writer ended before the mark
        if (st.st_size > 0 && !tok_begins(fd, TOK_UNFINISHED) && !o->ours(fd))
            rc = tok_error(err, err_size,
                "%s: nothing that this program left, and stays: choose another name, or remove it", o->tmp);
        else if (unlink(o->tmp)) rc = tok_error(err, err_size, "%s: %s", o->tmp, strerror(errno));
    }
    if (fd >= 0) close(fd);
    return rc;
}

GPT2_SP_LEAF int tok_output_put(
    tok_output* o, const void* bytes, uint64_t count, uint64_t offset, char* err, size_t err_size) {
    const unsigned char* p = (const unsigned char*)bytes;
    for (uint64_t done = 0; done < count;) {
        size_t n = count - done < (1u << 30) ? (size_t)(count - done) : (size_t)1 << 30;
        ssize_t written = pwrite(o->fd, p + done, n, (off_t)(offset + done));
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0)
            return tok_error(
                err, err_size, "%s: writing: %s", o->tmp, written < 0 ? strerror(errno) : "no progress");
        done += (uint64_t)written;
    }
    return 0;
}

// Gives everything up and removes PATH.tmp. Harmless on zeros, after the end, and twice.
GPT2_SP_LEAF void tok_output_abandon(tok_output* o) {
    if (!o->path) return;
    if (o->fd >= 0) {
        if (tok_output_holds(o, o->fd)) unlink(o->tmp);   // before the lock is given back
        close(o->fd);
    }
    free(o->path);
    free(o->tmp);
    memset(o, 0, sizeof *o);
    o->fd = -1;
}

// Starts PATH.tmp with the mark of an unfinished file in its first 8 bytes, which the caller writes last. On
// error there is nothing to abandon. What PATH names is looked at now and again at the end.
GPT2_SP_LEAF int tok_output_open(
    tok_output* o, const char* path, const char* what, int (*ours)(int), char* err, size_t err_size) {
    size_t length = strlen(path);
    memset(o, 0, sizeof *o);
    o->fd = -1;
    o->ours = ours;
    o->what = what;
    o->path = (char*)tok_malloc(length + 1, 1);
    o->tmp = (char*)tok_malloc(length + 5, 1);
    int rc = o->path && o->tmp ? 0 : tok_error(err, err_size, "%s: no memory", path);
    if (rc == 0) {
        memcpy(o->path, path, length + 1);
        memcpy(o->tmp, path, length);
        memcpy(o->tmp + length, ".tmp", 5);
        rc = tok_output_free(o, err, err_size);
    }
    while (rc == 0 && o->fd < 0) {
        // EXCL: nothing that is there is opened, no link followed; of several processes one makes the file
        o->fd = open(o->tmp, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (o->fd < 0 && errno != EEXIST) rc = tok_error(err, err_size, "%s: %s", o->tmp, strerror(errno));
        else if (o->fd < 0) rc = tok_output_leftover(o, err, err_size);
    }
    // Whoever finds the file holds its lock for a moment only. Where there are no locks, EXCL still serves.
    while (rc == 0 && flock(o->fd, LOCK_EX) && errno == EINTR) {}
    if (rc == 0) rc = tok_output_put(o, TOK_UNFINISHED, 8, 0, err, err_size);
    if (rc && o->path && !o->tmp) free(o->path), o->path = NULL;
    if (rc) tok_output_abandon(o);
    return rc;
}

// Makes the rename last: fsync of the folder that holds path. File systems that cannot do it say EINVAL.
GPT2_SP_LEAF int tok_sync_parent(const char* path, char* err, size_t err_size) {
    const char* slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) + 1 : 1;   // "a/b" -> "a/", "/b" -> "/", "b" -> "."
    char* folder = (char*)tok_malloc(length + 1, 1);
    if (!folder) return tok_error(err, err_size, "%s: no memory", path);
    memcpy(folder, slash ? path : ".", length);
    folder[length] = 0;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;
    if (fd < 0 || (fsync(fd) && errno != EINVAL))
        rc = tok_error(err, err_size, "%s: fsync of its folder: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    free(folder);
    return rc;
}

// Gives PATH.tmp, which is whole, its name. It is not open any more, also on error.
GPT2_SP_LEAF int tok_output_finish(tok_output* o, char* err, size_t err_size) {
    int rc = fsync(o->fd) ? tok_error(err, err_size, "%s: fsync: %s", o->tmp, strerror(errno)) : 0;
    if (rc == 0) rc = tok_output_free(o, err, err_size);
    if (rc == 0 && !tok_output_holds(o, o->fd))
        rc = tok_error(err, err_size, "%s: removed while it was written", o->tmp);
    if (rc == 0 && rename(o->tmp, o->path))
        rc = tok_error(err, err_size, "%s: rename: %s", o->tmp, strerror(errno));
    if (rc == 0) {
        close(o->fd);   // it is on the disk, fsync said so
        o->fd = -1;
        rc = tok_sync_parent(o->path, err, err_size);
    }
    tok_output_abandon(o);
    return rc;
}

// ================================================================================
// writing shards

// Gives everything up and removes PATH.tmp. Harmless on a writer of zeros, after finish, and twice.
GPT2_SP_LEAF void tok_writer_abandon(tok_writer* w) {
    tok_output_abandon(&w->out);
    free(w->raw);
    free(w->packed);
    free(w->block);
    free(w->document_start);
    free(w->span);
    free(w->tokenizer_file);
    memset(w, 0, sizeof *w);
    w->out.fd = -1;
}

// Appends to PATH.tmp.
GPT2_SP_LEAF int tok_writer_append(
    tok_writer* w, const unsigned char* p, uint64_t bytes, char* err, size_t err_size) {
    if (tok_output_put(&w->out, p, bytes, w->offset, err, err_size)) return -1;
    w->offset += bytes;
    return 0;
}

// Compresses `bytes` of tokens to at most tok_bound(bytes); how many are left goes to *packed_bytes. Returns
// 0 or zlib's error.
GPT2_SP_LEAF int tok_pack(
    const unsigned char* raw, uint64_t bytes, unsigned char* packed, uint32_t* packed_bytes) {
    uLongf n = (uLongf)tok_bound(bytes);
    int rc = compress2(packed, &n, raw, (uLong)bytes, TOK_LEVEL);
    *packed_bytes = (uint32_t)n;
    return rc == Z_OK ? 0 : rc;
}

// Writes the next block, compressed.
GPT2_SP_LEAF int tok_writer_block(
    tok_writer* w, const unsigned char* packed, uint32_t bytes, char* err, size_t err_size) {
    tok_block* grown = (tok_block*)tok_grow(w->block, &w->block_capacity, w->blocks + 1, sizeof *grown);
    if (!grown)
        return tok_error(err, err_size, "%s: no memory for %" PRIu64 " blocks", w->out.tmp, w->blocks + 1);
    w->block = grown;
    tok_block b = {w->offset, bytes, tok_crc(0, packed, bytes)};
    w->block[w->blocks++] = b;
    return tok_writer_append(w, packed, bytes, err, err_size);
}

// The block in w->raw is complete: compresses and writes it, or gives it to who does.
GPT2_SP_LEAF int tok_writer_flush(tok_writer* w, char* err, size_t err_size) {
    uint32_t bytes;
    if (w->take && w->take(w->user, w, err, err_size)) return -1;
    if (!w->take) {
        int rc = tok_pack(w->raw, (uint64_t)w->fill * w->width, w->packed, &bytes);
        if (rc) return tok_error(err, err_size, "%s: zlib: %s", w->out.tmp, zError(rc));
        if (tok_writer_block(w, w->packed, bytes, err, err_size)) return -1;
    }
    w->fill = 0;
    return 0;
}

// The next n tokens are no labels: the last span grows by them, or a new one begins.
GPT2_SP_LEAF int tok_writer_mask(tok_writer* w, uint64_t n, char* err, size_t err_size) {
    if (w->spans > 0 && w->span[w->spans - 1].first + w->span[w->spans - 1].count == w->tokens) {
        w->span[w->spans - 1].count += n;
        return 0;
    }
    tok_span* grown = (tok_span*)tok_grow(w->span, &w->span_capacity, w->spans + 1, sizeof *grown);
    if (!grown)
        return tok_error(err, err_size, "%s: no memory for %" PRIu64 " spans", w->out.tmp, w->spans + 1);
    w->span = grown;
    tok_span one = {w->tokens, n};
    w->span[w->spans++] = one;
    return 0;
}

// Appends tokens of the vocabulary, whatever they are.
GPT2_SP_LEAF int tok_writer_store(
    tok_writer* w, const int32_t* tokens, uint64_t count, char* err, size_t err_size) {
    if (count > TOK_MAX_TOKENS - w->tokens)
        return tok_error(err, err_size, "%s: more than 2^48 tokens", w->out.path);
    while (count > 0) {
        if (w->fill == w->block_tokens && tok_writer_flush(w, err, err_size)) return -1;
        uint64_t n = w->block_tokens - w->fill < count ? w->block_tokens - w->fill : count;
        if (w->masked && tok_writer_mask(w, n, err, err_size)) return -1;
        unsigned char* p = w->raw + (size_t)w->fill * w->width;
        if (w->width == 2)
            for (uint64_t i = 0; i < n; i++) tok_put_le(p + 2 * i, (uint32_t)tokens[i], 2);
        else
            for (uint64_t i = 0; i < n; i++) tok_put_le(p + 4 * i, (uint32_t)tokens[i], 4);
        w->fill += (uint32_t)n;
        w->tokens += n;
        tokens += n;
        count -= n;
    }
    return 0;
}

// Ends every failed call of the writer: once something went wrong, no file can come of it.
GPT2_SP_LEAF int tok_writer_fail(tok_writer* w) {
    tok_writer_abandon(w);
    return -1;
}

// Starts PATH.tmp. Tokens take 2 bytes where the vocabulary allows it. block_tokens 0 = the default.
GPT2_SP_LEAF int tok_writer_open(tok_writer* w, const char* path, uint32_t tokenizer, uint32_t vocab_size,
    uint32_t eot, uint32_t block_tokens, char* err, size_t err_size) {
    memset(w, 0, sizeof *w);
    w->out.fd = -1;
    w->tokenizer = tokenizer;
    w->vocab_size = vocab_size;
    w->eot = eot;
    w->width = vocab_size <= 65536 ? 2 : 4;
    w->block_tokens = block_tokens ? block_tokens : (uint32_t)TOK_BLOCK_TOKENS;
    w->offset = TOK_HEADER;
    if (tok_check_shape(path, tokenizer, vocab_size, eot, w->width, w->block_tokens, err, err_size))
        return -1;
    size_t bytes = (size_t)w->block_tokens * w->width;
    if (tok_output_open(&w->out, path, "token shard", tok_is_shard, err, err_size)) return -1;
    w->raw = (unsigned char*)tok_malloc(bytes, 1);
    w->packed = (unsigned char*)tok_malloc(tok_bound(bytes), 1);
    if (w->raw && w->packed) return 0;
    tok_error(err, err_size, "%s: no memory for a block of %" PRIu32 " tokens", path, w->block_tokens);
    return tok_writer_fail(w);
}

// Gives the shard its tokenizer's file, to carry. Comes before the first token.
GPT2_SP_LEAF int tok_writer_tokenizer(
    tok_writer* w, const void* file, uint64_t bytes, char* err, size_t err_size) {
    uLongf packed = bytes <= TOK_MAX_TOKENIZER ? compressBound((uLong)bytes) : 0;
    if (bytes < 1 || bytes > TOK_MAX_TOKENIZER || w->tokens > 0) {
        tok_error(err, err_size, "%s: a tokenizer's file of %" PRIu64 " bytes, expected 1..%d", w->out.path,
            bytes, (int)TOK_MAX_TOKENIZER);
        return tok_writer_fail(w);
    }
    w->tokenizer_file = (unsigned char*)tok_malloc(packed, 1);
    int rc = w->tokenizer_file
        ? compress2(w->tokenizer_file, &packed, (const unsigned char*)file, (uLong)bytes, 9)
        : Z_MEM_ERROR;
    w->tokenizer_packed = (uint32_t)packed, w->tokenizer_bytes = (uint32_t)bytes;
    if (rc == Z_OK) return 0;
    tok_error(err, err_size, "%s: the tokenizer's file: zlib: %s", w->out.tmp, zError(rc));
    return tok_writer_fail(w);
}

// What tok_writer_add and tok_writer_end_document do, without giving the writer up on an error: other threads
// may have its blocks in hand.
GPT2_SP_LEAF int tok_writer_put(
    tok_writer* w, const int32_t* tokens, uint64_t count, char* err, size_t err_size) {
    for (uint64_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= w->vocab_size || (uint32_t)tokens[i] == w->eot)
            return tok_error(err, err_size,
                "%s: token %" PRIu64 " is %" PRId32 ", expected 0..%" PRIu32 " and not eot %" PRIu32,
                w->out.path, w->tokens + i, tokens[i], w->vocab_size - 1, w->eot);
    return tok_writer_store(w, tokens, count, err, err_size);
}
GPT2_SP_LEAF int tok_writer_end(tok_writer* w, uint64_t text_bytes, char* err, size_t err_size) {
    int32_t eot = (int32_t)w->eot;
    uint64_t* grown =
        (uint64_t*)tok_grow(w->document_start, &w->document_capacity, w->documents + 1, sizeof *grown);
    if (!grown)
        return tok_error(
            err, err_size, "%s: no memory for %" PRIu64 " documents", w->out.tmp, w->documents + 1);
    w->document_start = grown;
    if (tok_writer_store(w, &eot, 1, err, err_size)) return -1;
    w->document_start[w->documents++] = w->document;
    w->document = w->tokens;
    w->text_bytes += text_bytes;
    return 0;
}

// Adds tokens to the current document. An eot among them is refused: only tok_writer_end_document writes it.
GPT2_SP_LEAF int tok_writer_add(
    tok_writer* w, const int32_t* tokens, uint64_t count, char* err, size_t err_size) {
    if (!w->out.path) return tok_error(err, err_size, "token shard writer is not open");
    return tok_writer_put(w, tokens, count, err, err_size) ? tok_writer_fail(w) : 0;
}

// Ends the current document with an eot and records where it began; text_bytes is the size of its text.
GPT2_SP_LEAF int tok_writer_end_document(tok_writer* w, uint64_t text_bytes, char* err, size_t err_size) {
    if (!w->out.path) return tok_error(err, err_size, "token shard writer is not open");
    return tok_writer_end(w, text_bytes, err, err_size) ? tok_writer_fail(w) : 0;
}

// Notes where the writer stands, which is between two documents. m->raw is the caller's to free.
GPT2_SP_LEAF int tok_writer_mark(const tok_writer* w, tok_mark* m, char* err, size_t err_size) {
    tok_span none = {0, 0};
    if (!m->raw) m->raw = (unsigned char*)tok_malloc((uint64_t)w->block_tokens * w->width, 1);
    if (!m->raw) return tok_error(err, err_size, "%s: no memory for a block", w->out.tmp);
    memcpy(m->raw, w->raw, (size_t)w->fill * w->width);
    m->tokens = w->tokens, m->documents = w->documents;
    m->spans = w->spans, m->text_bytes = w->text_bytes;
    m->last = w->spans ? w->span[w->spans - 1] : none;
    m->fill = w->fill;
    return 0;
}

// Takes back what came since the mark. All blocks that `take` has taken must have been written.
GPT2_SP_LEAF void tok_writer_back(tok_writer* w, const tok_mark* m) {
    uint64_t blocks = (m->tokens - m->fill) / w->block_tokens;
    if (blocks < w->blocks) w->offset = w->block[blocks].offset;
    w->blocks = blocks;
    memcpy(w->raw, m->raw, (size_t)m->fill * w->width);
    w->tokens = w->document = m->tokens;
    w->documents = m->documents;
    w->spans = m->spans, w->text_bytes = m->text_bytes;
    if (m->spans) w->span[m->spans - 1] = m->last;
    w->fill = m->fill;
}

// Writes `entries` of an index in pieces of 4 KiB and leaves its CRC; an entry is one number of 8 bytes, or
// also a second.
typedef enum { TOK_BLOCK_INDEX, TOK_DOCUMENT_INDEX, TOK_SPAN_INDEX } tok_index;
GPT2_SP_LEAF int tok_writer_index(tok_writer* w, tok_index which, uint32_t* crc, char* err, size_t err_size) {
    unsigned char piece[4096];
    size_t each = which == TOK_DOCUMENT_INDEX ? 8 : 16, fill = 0;
    uint64_t entries = which == TOK_BLOCK_INDEX ? w->blocks
        : which == TOK_DOCUMENT_INDEX           ? w->documents
                                                : w->spans;
    *crc = 0;
    for (uint64_t i = 0; i < entries; i++) {
        switch (which) {
        case TOK_BLOCK_INDEX:
            tok_put_le(piece + fill, w->block[i].offset, 8);
            tok_put_le(piece + fill + 8, w->block[i].bytes, 4);
            tok_put_le(piece + fill + 12, w->block[i].crc, 4);
            break;
        case TOK_DOCUMENT_INDEX: tok_put_le(piece + fill, w->document_start[i], 8); break;
        default:
            tok_put_le(piece + fill, w->span[i].first, 8);
            tok_put_le(piece + fill + 8, w->span[i].count, 8);
        }
        fill += each;
        if (fill < sizeof piece && i + 1 < entries) continue;
        *crc = tok_crc(*crc, piece, fill);
        if (tok_writer_append(w, piece, fill, err, err_size)) return -1;
        fill = 0;
    }
    return 0;
}

// Everything that finish does on PATH.tmp before it is closed.
GPT2_SP_LEAF int tok_writer_complete(tok_writer* w, char* err, size_t err_size) {
    if (w->document != w->tokens)
        return tok_error(err, err_size, "%s: document %" PRIu64 " was not ended", w->out.path, w->documents);
    if (w->documents == 0)
        return tok_error(err, err_size, "%s: no documents, expected at least one", w->out.path);
    if (w->fill && tok_writer_flush(w, err, err_size)) return -1;
    unsigned char h[TOK_HEADER] = {0};
    uint32_t block_crc, document_crc, span_crc;
    uint64_t block_index = w->offset;
    if (tok_writer_index(w, TOK_BLOCK_INDEX, &block_crc, err, err_size)) return -1;
    uint64_t document_index = w->offset;
    if (tok_writer_index(w, TOK_DOCUMENT_INDEX, &document_crc, err, err_size) ||
        tok_writer_index(w, TOK_SPAN_INDEX, &span_crc, err, err_size) ||
        tok_writer_append(w, w->tokenizer_file, w->tokenizer_packed, err, err_size))
        return -1;
    if (ftruncate(w->out.fd, (off_t)w->offset))   // what was taken back may have reached further
        return tok_error(err, err_size, "%s: truncating: %s", w->out.tmp, strerror(errno));
    memcpy(h, TOK_MAGIC, 8);
    tok_put_le(h + 8, TOK_VERSION, 4);
    tok_put_le(h + 12, w->width, 4);
    tok_put_le(h + 16, w->tokenizer, 4);
    tok_put_le(h + 20, w->vocab_size, 4);
    tok_put_le(h + 24, w->eot, 4);
    tok_put_le(h + 28, w->block_tokens, 4);
    tok_put_le(h + 32, w->tokens, 8);
    tok_put_le(h + 40, w->documents, 8);
    tok_put_le(h + 48, w->blocks, 8);
    tok_put_le(h + 56, w->text_bytes, 8);
    tok_put_le(h + 64, block_index, 8);
    tok_put_le(h + 72, document_index, 8);
    tok_put_le(h + 80, block_crc, 4);
    tok_put_le(h + 84, document_crc, 4);
    tok_put_le(h + 92, span_crc, 4);
    tok_put_le(h + 96, w->spans, 8);
    tok_put_le(h + 104, w->tokenizer_packed, 4);
    tok_put_le(h + 108, w->tokenizer_bytes, 4);
    tok_put_le(h + 112, tok_crc(0, w->tokenizer_file, w->tokenizer_packed), 4);
    tok_put_le(h + 116, tok_crc(0, h, 116), 4);
    return tok_output_put(&w->out, h, sizeof h, 0, err, err_size);   // last: until now the file is no shard
}

// Completes the shard and renames it to PATH. Refuses a shard without documents, or with one not ended.
GPT2_SP_LEAF int tok_writer_finish(tok_writer* w, char* err, size_t err_size) {
    if (!w->out.path) return tok_error(err, err_size, "token shard writer is not open");
    if (tok_writer_complete(w, err, err_size)) return tok_writer_fail(w);
    int rc = tok_output_finish(&w->out, err, err_size);
    tok_writer_abandon(w);   // only frees
    return rc;
}

#endif
