// prepare.h: documents to token shards, on several threads.
//
//     prepare p;
//     memset(&p, 0, sizeof p);
//     p.tokenizer = &tokenizer, p.threads = 8;               // what else it has is set by name
//     if (tok_writer_open(&p.writer[0], ...)) ...            // the shard; [1] is for validation
//     if (prepare_start(&p, err, sizeof err)) ...
//     text_reader r = {prepare_piece, &p, err, sizeof err};  // text.h calls it for every piece of a document
//     rc = text_documents(&r, "corpus/");
//     if (rc == 0) rc = prepare_finish(&p, err, sizeof err);
//     prepare_stop(&p);                                      // always; gives up what is not finished
//
// The shards are the same, byte by byte, whatever the number of threads. The work, in the order in which it
// is done to a piece of text:
//
//     read      by the thread that calls prepare_piece: text is gathered into batches of about PREPARE_BATCH
//               bytes. A document ends wherever it ends in a batch; a long one is cut into several batches at
//               places where that changes no token (bpe_cut)
//     encode    by any thread: the tokens of a batch
//     merge     in the batches' order, by one thread at a time: tokens go to the block that is being filled
//     pack      by any thread: a full block is compressed
//     write     in the blocks' order, by one thread at a time
//
// Batches and blocks wait in two rings; a thread takes what is ready, the last in that list first, so that
// the rings empty. The reader helps where there is no free batch: one thread alone does everything.
//
// A document that turns out to be a duplicate, or to be taken back (TEXT_UNDONE), after its front has left
// the reader is taken out of the shard again (tok_mark).
//
// The side of a document, training or validation, is decided by the hash of its first PREPARE_FRONT bytes and
// the seed: the same text falls on the same side wherever it stands. Duplicates are documents of the same
// parts, bytes and masks by a 64-bit hash: of n different documents one is taken for another with a
// probability of n * n / 2^65.
//
// Memory: about 4 MiB a thread, and in all for each document 8 bytes in the shard's index (16 more for a
// masked part) and with dedup 11 to 32 for its hash.
//
// Functions return 0, or -1 with one line in err. Needs text.h, bpe.h, tok.h and POSIX threads.
#ifndef GPT2_SP_PREPARE_H
#define GPT2_SP_PREPARE_H

#include <pthread.h>

#include "bpe.h"
#include "text.h"
#include "tok.h"

enum {
    PREPARE_BATCH = 1 << 18,   // bytes of text from which on a batch is handed on
    PREPARE_PARTS = 1 << 14,   // or parts
    PREPARE_FRONT = 1 << 16,   // bytes of a document that decide its side
    PREPARE_SIDES = 2,         // training, validation
    PREPARE_LENGTHS = 49,      // of documents, by powers of 2
    PREPARE_FAR = 3            // the distances of prepare_far
};
// Tokens that lie at least so far behind the start of their document are counted.
GPT2_SP_LEAF const uint64_t prepare_far[PREPARE_FAR] = {1024, 8192, 32768};

enum { PREPARE_MARK = 64 };   // a part's flag beside text.h's: its document may yet be taken back

typedef struct {           // text that is encoded on its own, or the end of a document
    size_t begin, bytes;   // in the batch's text
    size_t tokens;         // it has, once encoded
    int flags;             // TEXT_MASKED, TEXT_END, TEXT_UNDONE, PREPARE_MARK
    int side;              // 0 training, 1 validation
    uint64_t text_bytes;   // TEXT_END: of the whole document
} prepare_part;

enum { PREPARE_FREE, PREPARE_FULL, PREPARE_BUSY, PREPARE_DONE };   // of a batch or block

typedef struct {
    int state;
    char* text;
    size_t bytes, capacity;
    prepare_part* part;
    size_t parts, part_capacity;
    uint32_t* token;   // of all parts
    size_t token_capacity;
} prepare_batch;

typedef struct {
    int state;
    tok_writer* writer;
    unsigned char *raw, *packed;
    uint32_t raw_bytes, packed_bytes;
} prepare_block;

typedef struct {   // running; start from zeros
    uint64_t a, b, length;
    unsigned char held[16];   // length % 16 bytes that are not in a and b yet
} prepare_hash;

typedef struct {                 // of a text that comes in pieces, whether it is UTF-8; starts from zeros
    int left;                    // bytes that the character in hand still needs
    unsigned char least, most;   // what the next of them may be
    int wrong;
} prepare_utf8;

struct prepare;
typedef struct {
    struct prepare* p;
    bpe_encoder encoder;
    pthread_t thread;
    int started;
} prepare_worker;

typedef struct {                                      // of one shard
    uint64_t documents, tokens, text_bytes, masked;   // masked: tokens that are no labels
    uint64_t length_documents[PREPARE_LENGTHS];   // documents of 2^i to 2^(i+1) - 1 tokens, the end token one
    uint64_t length_tokens[PREPARE_LENGTHS];      // and how many tokens those have
    uint64_t beyond[PREPARE_FAR];                 // tokens that lie so far behind their document's start
} prepare_report;

typedef struct prepare {
    // set by the caller
    const bpe* tokenizer;
    int specials, dedup, threads;   // threads in all, at least 1
    double val_fraction;            // of the documents, to the second writer
    uint64_t seed;
    tok_writer writer[PREPARE_SIDES];   // open; the second if val_fraction > 0
    // told
    uint64_t duplicates, duplicate_bytes;
    uint64_t not_utf8;                      // documents whose bytes are no UTF-8
    uint64_t given;                         // bytes of text so far, of whatever documents
    prepare_report report[PREPARE_SIDES];   // behind prepare_finish
    // the rings: batches are filled at head, encoded at encoding, merged at merging; numbers only grow
    prepare_batch* batch;
    prepare_block* block;
    uint64_t slots;   // of each ring
    uint64_t head, encoding, merging;
    uint64_t block_head, packing, writing;
    int merge_busy, write_busy;   // a thread merges; a thread writes
    pthread_mutex_t lock;         // of all that stands above, and of states and failed
    pthread_cond_t changed;
    int started, stopping, failed;
    char err[512];            // why
    prepare_worker* worker;   // (threads); the first is the reader
    tok_mark mark;
    // the reader's document
    prepare_hash text_hash;                   // of the part so far
    prepare_utf8 utf8;                        // of the document so far
    uint64_t hash, bytes;                     // of the parts before; of text so far
    int side;                                 // -1: not known yet
    size_t first_part;                        // its first part in this batch,
    int continued;                            // and whether it began in an earlier one
    int part_open;                            // the last part in the batch goes on
    size_t searched;                          // of that part's text, where there is no place to cut it
    uint64_t *seen, seen_count, seen_slots;   // hashes of documents, an open table; 0: free
} prepare;

// ================================================================================
// hashes

// A number from which all of 64 bits of the next can be told: the finalizer of splitmix64 (Steele, Lea, Flood
// 2014).
GPT2_SP_LEAF uint64_t prepare_mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

GPT2_SP_LEAF void prepare_hash_16(prepare_hash* h, const unsigned char* p) {
    uint64_t one, two;
    memcpy(&one, p, 8);
    memcpy(&two, p + 8, 8);
    const uint16_t order = 1;
    if (*(const unsigned char*)&order == 0) one = tok_get_le(p, 8), two = tok_get_le(p + 8, 8);
    one = (h->a ^ one) * 0x9E3779B97F4A7C15u;
    h->a = (one ^ (one >> 32)) + h->b;
    two = (h->b ^ two) * 0xD6E8FEB86659FD93u;
    h->b = (two ^ (two >> 32)) ^ h->a;
}

GPT2_SP_LEAF void prepare_hash_add(prepare_hash* h, const void* bytes, size_t n) {
    const unsigned char* p = (const unsigned char*)bytes;
    size_t held = (size_t)(h->length % 16);
    h->length += n;
    if (held) {
        size_t take = 16 - held < n ? 16 - held : n;
        memcpy(h->held + held, p, take);
        if (held + take < 16) return;
        prepare_hash_16(h, h->held);
        p += take, n -= take;
    }
    for (; n >= 16; p += 16, n -= 16) prepare_hash_16(h, p);
    memcpy(h->held, p, n);
}

GPT2_SP_LEAF uint64_t prepare_hash_end(const prepare_hash* so_far) {
    prepare_hash h = *so_far;
    memset(h.held + h.length % 16, 0, 16 - h.length % 16);
    prepare_hash_16(&h, h.held);
    return prepare_mix(h.a ^ prepare_mix(h.b + h.length));
}

// Adds a hash to those seen. Returns 1 if it was there, 0 if not, -1 without memory.
GPT2_SP_LEAF int prepare_seen(prepare* p, uint64_t hash) {
    hash += hash == 0;
    if (4 * (p->seen_count + 1) > 3 * p->seen_slots) {
        uint64_t slots = p->seen_slots ? 2 * p->seen_slots : 1024;
        uint64_t* seen = slots > SIZE_MAX / 8 ? NULL : (uint64_t*)calloc((size_t)slots, sizeof *seen);
        if (!seen) return -1;
        for (uint64_t i = 0; i < p->seen_slots; i++) {
            uint64_t at = p->seen[i] & (slots - 1);
            while (p->seen[i] && seen[at]) at = (at + 1) & (slots - 1);
            if (p->seen[i]) seen[at] = p->seen[i];
        }
        free(p->seen);
        p->seen = seen;
        p->seen_slots = slots;
    }
    uint64_t at = hash & (p->seen_slots - 1);
    while (p->seen[at] && p->seen[at] != hash) at = (at + 1) & (p->seen_slots - 1);
    if (p->seen[at]) return 1;
    p->seen[at] = hash;
    p->seen_count++;
    return 0;
}

// The side of a document whose front has this hash.
GPT2_SP_LEAF int prepare_side(const prepare* p, uint64_t front) {
    double at = (double)(prepare_mix(front ^ prepare_mix(p->seed)) >> 11) / 9007199254740992.0;   // 2^53
    return at < p->val_fraction;
}

// ================================================================================
// the work

// The first failure is kept; all threads end. With the lock held.
GPT2_SP_LEAF void prepare_fail(prepare* p, const char* why) {
    if (!p->failed) snprintf(p->err, sizeof p->err, "%s", why);
    p->failed = 1;
    pthread_cond_broadcast(&p->changed);
}

// The tokens of a batch.
GPT2_SP_LEAF int prepare_encode(prepare_batch* b, bpe_encoder* e, char* err, size_t err_size) {
    uint32_t* token = e->token;
    size_t capacity = e->capacity;
    int rc = 0;
    e->token = b->token, e->capacity = b->token_capacity;   // it fills the batch's own array
    e->tokens = 0;
    for (size_t i = 0; i < b->parts && rc == 0; i++) {
        prepare_part* part = b->part + i;
        size_t before = e->tokens;
        if (part->bytes) rc = bpe_encode(e, b->text + part->begin, part->bytes, 1, err, err_size);
        part->tokens = e->tokens - before;
    }
    b->token = e->token, b->token_capacity = e->capacity;
    e->token = token, e->capacity = capacity;
    e->tokens = 0;
    return rc;
}

GPT2_SP_LEAF int prepare_work(prepare* p, prepare_worker* w);   // it and merging call each other

// tok_writer.take: puts a full block into the ring. Called by who merges, without the lock.
GPT2_SP_LEAF int prepare_take(void* user, tok_writer* writer, char* err, size_t err_size) {
    prepare_worker* w = (prepare_worker*)user;
    prepare* p = w->p;
    pthread_mutex_lock(&p->lock);
    while (!p->failed && p->block_head - p->writing == p->slots)
        if (!prepare_work(p, w)) pthread_cond_wait(&p->changed, &p->lock);
    int rc = p->failed ? tok_error(err, err_size, "%s", p->err) : 0;
    prepare_block* b = p->block + p->block_head % p->slots;
    if (rc == 0) {
        unsigned char* raw = b->raw;
        b->raw = writer->raw;
        writer->raw = raw;
        b->raw_bytes = writer->fill * writer->width;
        b->writer = writer;
        b->state = PREPARE_FULL;
        p->block_head++;
        pthread_cond_broadcast(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
    return rc;
}

// Waits until every block that was taken is written. Returns 0, or -1 if something failed.
GPT2_SP_LEAF int prepare_drain(prepare* p, prepare_worker* w) {
    pthread_mutex_lock(&p->lock);
    while (!p->failed && p->block_head != p->writing)
        if (!prepare_work(p, w)) pthread_cond_wait(&p->changed, &p->lock);
    int rc = p->failed ? -1 : 0;
    pthread_mutex_unlock(&p->lock);
    return rc;
}

// Adds the tokens of a part to its shard. With specials a text may end documents by itself.
GPT2_SP_LEAF int prepare_add(
    tok_writer* writer, const int32_t* tokens, size_t count, int specials, char* err, size_t err_size) {
    size_t begin = 0;
    for (size_t i = 0; specials && i < count; i++) {
        if ((uint32_t)tokens[i] != writer->eot) continue;
        if (tok_writer_put(writer, tokens + begin, i - begin, err, err_size)) return -1;
        begin = i + 1;
        if (writer->tokens > writer->document && tok_writer_end(writer, 0, err, err_size)) return -1;
    }
    return tok_writer_put(writer, tokens + begin, count - begin, err, err_size);
}

// Adds a batch, whose turn it is, to the shards. Without the lock.
GPT2_SP_LEAF int prepare_merge(
    prepare* p, prepare_worker* w, const prepare_batch* b, char* err, size_t err_size) {
    const int32_t* tokens = (const int32_t*)(const void*)b->token;
    for (size_t i = 0; i < b->parts; i++) {
        const prepare_part* part = b->part + i;
        tok_writer* writer = p->writer + part->side;
        writer->take = prepare_take;
        writer->user = w;
        writer->masked = (part->flags & TEXT_MASKED) != 0;
        if (part->flags & TEXT_UNDONE) {
            if (prepare_drain(p, w)) return -1;
            tok_writer_back(writer, &p->mark);
            continue;
        }
        if ((part->flags & PREPARE_MARK) && tok_writer_mark(writer, &p->mark, err, err_size)) return -1;
        if (prepare_add(writer, tokens, part->tokens, p->specials, err, err_size)) return -1;
        tokens += part->tokens;
        if (!(part->flags & TEXT_END)) continue;
        if (writer->tokens == writer->document) writer->text_bytes += part->text_bytes;   // it ended itself
        else if (tok_writer_end(writer, part->text_bytes, err, err_size)) return -1;
    }
    return 0;
}

// Makes room in a batch for the next one. What an unusually large one took is given back.
GPT2_SP_LEAF void prepare_empty(prepare_batch* b) {
    if (b->capacity > 8 * PREPARE_BATCH) {
        free(b->text);
        free(b->token);
        b->text = NULL, b->token = NULL;
        b->capacity = b->token_capacity = 0;
    }
    b->bytes = b->parts = 0;
}

// Does one thing that is ready to be done. Called with the lock, which it gives back meanwhile. Returns 0 if
// there is nothing.
GPT2_SP_LEAF int prepare_work(prepare* p, prepare_worker* w) {
    char err[512] = "";
    int rc = 0;
    prepare_block* packed = p->block + p->writing % p->slots;
    prepare_batch* encoded = p->batch + p->merging % p->slots;
    if (p->failed) return 0;
    if (!p->write_busy && p->writing < p->block_head && packed->state == PREPARE_DONE) {
        p->write_busy = 1;
        pthread_mutex_unlock(&p->lock);
        rc = tok_writer_block(packed->writer, packed->packed, packed->packed_bytes, err, sizeof err);
        pthread_mutex_lock(&p->lock);
        p->write_busy = 0;
        packed->state = PREPARE_FREE;
        p->writing++;
    } else if (p->packing < p->block_head) {
        prepare_block* b = p->block + p->packing++ % p->slots;
        b->state = PREPARE_BUSY;
        pthread_mutex_unlock(&p->lock);
        rc = tok_pack(b->raw, b->raw_bytes, b->packed, &b->packed_bytes);
        if (rc) tok_error(err, sizeof err, "%s: zlib: %s", b->writer->out.tmp, zError(rc));
        pthread_mutex_lock(&p->lock);
        b->state = PREPARE_DONE;
    } else if (!p->merge_busy && p->merging < p->head && encoded->state == PREPARE_DONE) {
        p->merge_busy = 1;
        pthread_mutex_unlock(&p->lock);
        rc = prepare_merge(p, w, encoded, err, sizeof err);
        prepare_empty(encoded);
        pthread_mutex_lock(&p->lock);
        p->merge_busy = 0;
        encoded->state = PREPARE_FREE;
        p->merging++;
    } else if (p->encoding < p->head) {
        prepare_batch* b = p->batch + p->encoding++ % p->slots;
        b->state = PREPARE_BUSY;
        pthread_mutex_unlock(&p->lock);
        rc = prepare_encode(b, &w->encoder, err, sizeof err);
        pthread_mutex_lock(&p->lock);
        b->state = PREPARE_DONE;
    } else {
        return 0;
    }
    if (rc) prepare_fail(p, err);
    pthread_cond_broadcast(&p->changed);
    return 1;
}

// A thread beside the reader.
GPT2_SP_LEAF void* prepare_thread(void* user) {
    prepare_worker* w = (prepare_worker*)user;
    prepare* p = w->p;
    pthread_mutex_lock(&p->lock);
    while (!p->stopping && !p->failed)
        if (!prepare_work(p, w)) pthread_cond_wait(&p->changed, &p->lock);
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

// ================================================================================
// the reader

// Every part of the document that is in this batch is of its side.
GPT2_SP_LEAF void prepare_set_side(prepare* p, prepare_batch* b) {
    for (size_t i = p->first_part; i < b->parts; i++) b->part[i].side = p->side;
}

// Waits until `filled` or fewer batches, the one that is being filled not counted, are not merged. Returns 0,
// or -1 if something failed.
GPT2_SP_LEAF int prepare_wait(prepare* p, uint64_t filled, char* err, size_t err_size) {
    pthread_mutex_lock(&p->lock);
    while (!p->failed && p->head - p->merging > filled)
        if (!prepare_work(p, p->worker)) pthread_cond_wait(&p->changed, &p->lock);
    int rc = p->failed ? tok_error(err, err_size, "%s", p->err) : 0;
    pthread_mutex_unlock(&p->lock);
    return rc;
}

// Hands on the batch that is being filled, and begins the next.
GPT2_SP_LEAF void prepare_hand_on(prepare* p) {
    pthread_mutex_lock(&p->lock);
    p->batch[p->head % p->slots].state = PREPARE_FULL;
    p->head++;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    p->first_part = 0;
}

// Adds a part, or an end, to the batch that is being filled.
GPT2_SP_LEAF int prepare_new_part(prepare* p, int flags, char* err, size_t err_size) {
    prepare_batch* b = p->batch + p->head % p->slots;
    prepare_part* part = (prepare_part*)bpe_grow(b->part, &b->part_capacity, b->parts + 1, sizeof *part);
    if (!part) return tok_error(err, err_size, "no memory for %zu documents", b->parts + 1);
    b->part = part;
    part += b->parts++;
    memset(part, 0, sizeof *part);
    part->begin = b->bytes;
    part->flags = flags;
    p->part_open = !(flags & TEXT_END);
    p->searched = 0;
    return 0;
}

// Room for n more bytes of text in a batch.
GPT2_SP_LEAF int prepare_room(prepare_batch* b, size_t n, char* err, size_t err_size) {
    char* text = (char*)bpe_grow(b->text, &b->capacity, b->bytes + n, 1);
    if (!text) return tok_error(err, err_size, "no memory for %zu bytes of text", b->bytes + n);
    b->text = text;
    return 0;
}

// Cuts the part that is open where its tokens do not change, and hands the batch on up to there. Where there
// is no such place the batch grows.
GPT2_SP_LEAF int prepare_cut(prepare* p, const text_piece* at, char* err, size_t err_size) {
    prepare_batch* b = p->batch + p->head % p->slots;
    prepare_part* part = b->part + b->parts - 1;
    const char* text = b->text + part->begin;
    size_t most = p->tokenizer->longest_special + 4;
    size_t cut = bpe_cut(p->tokenizer, p->specials, text, part->bytes, p->searched);
    if (cut == 0) {
        p->searched = part->bytes < most ? 0 : part->bytes - most;
        if (part->bytes <= (size_t)BPE_MAX_PIECE) return 0;
        return tok_error(err, err_size,
            "%s:%" PRIu64 ": text of more than %d bytes without a place to cut it", at->path, at->line,
            (int)BPE_MAX_PIECE);
    }
    if (prepare_wait(p, p->slots - 2, err, err_size)) return -1;
    prepare_batch* next = p->batch + (p->head + 1) % p->slots;
    size_t tail = part->bytes - cut;
    if (prepare_room(next, tail, err, err_size)) return -1;
    if (tail) memcpy(next->text, text + cut, tail);
    part->bytes = cut;
    b->bytes -= tail;
    if (!p->continued) b->part[p->first_part].flags |= PREPARE_MARK;
    prepare_set_side(p, b);
    int masked = part->flags & TEXT_MASKED;
    prepare_hand_on(p);
    p->continued = 1;
    if (prepare_new_part(p, masked, err, err_size)) return -1;
    next->bytes = next->part->bytes = tail;
    return 0;
}

// Goes on with n bytes of the text (the table of well-formed sequences of Unicode, 3.9).
GPT2_SP_LEAF void prepare_utf8_add(prepare_utf8* u, const char* bytes, size_t n) {
    const unsigned char *at = (const unsigned char*)bytes, *end = at + n;
    for (uint64_t eight; at < end && !u->wrong;) {
        if (u->left > 0) {
            u->wrong = *at < u->least || *at > u->most;
            u->least = 0x80, u->most = 0xBF, u->left--, at++;
            continue;
        }
        while (end - at >= 8 && (memcpy(&eight, at, 8), (eight & 0x8080808080808080u) == 0)) at += 8;
        while (at < end && *at < 0x80) at++;
        if (at == end) break;
        unsigned char lead = *at++;
        u->wrong = lead < 0xC2 || lead > 0xF4;
        u->left = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
        u->least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
        u->most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    }
}

// Adds text to the part that is open.
GPT2_SP_LEAF int prepare_text(
    prepare* p, const text_piece* at, const char* bytes, size_t n, char* err, size_t err_size) {
    prepare_utf8_add(&p->utf8, bytes, n);
    while (n > 0) {
        prepare_batch* b = p->batch + p->head % p->slots;
        size_t take = n < (size_t)PREPARE_FRONT ? n : (size_t)PREPARE_FRONT;
        if (p->side < 0 && p->bytes + take > PREPARE_FRONT) take = (size_t)(PREPARE_FRONT - p->bytes);
        if (prepare_room(b, take, err, err_size)) return -1;
        memcpy(b->text + b->bytes, bytes, take);
        b->bytes += take;
        b->part[b->parts - 1].bytes += take;
        p->bytes += take;
        p->given += take;
        if (p->dedup || p->side < 0) prepare_hash_add(&p->text_hash, bytes, take);
        if (p->side < 0 && p->bytes == PREPARE_FRONT)
            p->side = prepare_side(p, prepare_mix(p->hash) ^ prepare_hash_end(&p->text_hash));
        bytes += take;
        n -= take;
        if (b->bytes >= (size_t)PREPARE_BATCH && p->side >= 0 && prepare_cut(p, at, err, err_size)) return -1;
    }
    return 0;
}

// The part ends: its hash goes into the document's.
GPT2_SP_LEAF void prepare_end_part(prepare* p, int masked) {
    p->hash = prepare_mix(p->hash) ^ prepare_hash_end(&p->text_hash);
    p->hash += masked ? 0x9E3779B97F4A7C15u : 0;
    memset(&p->text_hash, 0, sizeof p->text_hash);
    p->part_open = 0;
}

// The document ends, or is taken back.
GPT2_SP_LEAF int prepare_end_document(prepare* p, int flags, char* err, size_t err_size) {
    if (p->side < 0) p->side = prepare_side(p, p->hash);
    int undone = (flags & TEXT_UNDONE) != 0, mask = flags & TEXT_MASKED;
    if (p->dedup && !undone) {
        undone = prepare_seen(p, p->hash + (mask ? 1 : 0));
        if (undone < 0) return tok_error(err, err_size, "no memory for the hashes of documents");
        p->duplicates += (uint64_t)undone;
        if (undone) p->duplicate_bytes += p->bytes;
    }
    p->not_utf8 += !undone && (p->utf8.wrong || p->utf8.left > 0);
    prepare_batch* b = p->batch + p->head % p->slots;
    if (undone && b->parts > p->first_part) {   // what has not left yet need not
        b->bytes = b->part[p->first_part].begin;
        b->parts = p->first_part;
    }
    if (!undone || p->continued) {
        if (prepare_new_part(p, TEXT_END | mask | (undone ? TEXT_UNDONE : 0), err, err_size)) return -1;
        b->part[b->parts - 1].text_bytes = p->bytes;
    }
    prepare_set_side(p, b);
    p->part_open = 0;
    if (b->bytes < (size_t)PREPARE_BATCH && b->parts < (size_t)PREPARE_PARTS) return 0;
    if (prepare_wait(p, p->slots - 2, err, err_size)) return -1;
    prepare_hand_on(p);
    return 0;
}

// A text_callback: takes a piece of a document. `user` is the prepare, whose err it uses on an error.
GPT2_SP_LEAF int prepare_piece(void* user, const text_piece* piece) {
    prepare* p = (prepare*)user;
    char err[512];
    if (piece->flags & TEXT_BEGIN) {
        prepare_batch* b = p->batch + p->head % p->slots;
        memset(&p->text_hash, 0, sizeof p->text_hash);
        memset(&p->utf8, 0, sizeof p->utf8);
        p->hash = p->bytes = 0;
        p->side = p->val_fraction > 0 ? -1 : 0;
        p->first_part = b->parts;
        p->continued = p->part_open = 0;
    }
    int masked = piece->flags & TEXT_MASKED, rc = 0;
    if (piece->length > 0) {
        if (!p->part_open) rc = prepare_new_part(p, masked, err, sizeof err);
        if (rc == 0) rc = prepare_text(p, piece, piece->bytes, piece->length, err, sizeof err);
    }
    if (rc == 0 && p->part_open && (piece->flags & (TEXT_EDGE | TEXT_END))) prepare_end_part(p, masked);
    if (rc == 0 && (piece->flags & TEXT_END)) rc = prepare_end_document(p, piece->flags, err, sizeof err);
    if (rc == 0) return 0;
    pthread_mutex_lock(&p->lock);
    prepare_fail(p, err);
    pthread_mutex_unlock(&p->lock);
    return -1;
}

// ================================================================================
// beginning and end

// Starts the threads. The writers are open, and stay the caller's if it fails.
GPT2_SP_LEAF int prepare_start(prepare* p, char* err, size_t err_size) {
    if (p->threads < 1) p->threads = 1;
    p->slots = 2 * (uint64_t)p->threads + 2;
    p->batch = (prepare_batch*)calloc((size_t)p->slots, sizeof *p->batch);
    p->block = (prepare_block*)calloc((size_t)p->slots, sizeof *p->block);
    p->worker = (prepare_worker*)calloc((size_t)p->threads, sizeof *p->worker);
    int rc = p->batch && p->block && p->worker
        ? 0
        : tok_error(err, err_size, "no memory for %d threads", p->threads);
    uint64_t bytes = (uint64_t)p->writer[0].block_tokens * p->writer[0].width;
    for (uint64_t i = 0; rc == 0 && i < p->slots; i++) {
        p->block[i].raw = (unsigned char*)tok_malloc(bytes, 1);
        p->block[i].packed = (unsigned char*)tok_malloc(tok_bound(bytes), 1);
        if (!p->block[i].raw || !p->block[i].packed) rc = tok_error(err, err_size, "no memory for blocks");
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    p->started = 1;
    for (int i = 0; rc == 0 && i < p->threads; i++) {
        prepare_worker* w = p->worker + i;
        w->p = p;
        rc = bpe_encoder_open(&w->encoder, p->tokenizer, p->specials, err, err_size);
        if (rc || i == 0) continue;
        int code = pthread_create(&w->thread, NULL, prepare_thread, w);
        w->started = code == 0;
        if (code) rc = tok_error(err, err_size, "thread %d of %d: %s", i + 1, p->threads, strerror(code));
    }
    return rc;
}

// Ends the threads and frees everything, the writers too. Harmless on zeros, and twice.
GPT2_SP_LEAF void prepare_stop(prepare* p) {
    if (p->started) {
        pthread_mutex_lock(&p->lock);
        p->stopping = 1;
        pthread_cond_broadcast(&p->changed);
        pthread_mutex_unlock(&p->lock);
    }
    for (int i = 0; p->worker && i < p->threads; i++) {
        if (p->worker[i].started) pthread_join(p->worker[i].thread, NULL);
        bpe_encoder_close(&p->worker[i].encoder);
    }
    for (uint64_t i = 0; i < p->slots; i++) {
        if (p->batch) free(p->batch[i].text), free(p->batch[i].part), free(p->batch[i].token);
        if (p->block) free(p->block[i].raw), free(p->block[i].packed);
    }
    if (p->started) {
        pthread_mutex_destroy(&p->lock);
        pthread_cond_destroy(&p->changed);
    }
    free(p->batch);
    free(p->block);
    free(p->worker);
    free(p->mark.raw);
    free(p->seen);
    for (int i = 0; i < PREPARE_SIDES; i++) tok_writer_abandon(&p->writer[i]);
    p->batch = NULL, p->block = NULL;
    p->worker = NULL;
    p->mark.raw = NULL;
    p->seen = NULL;
    p->slots = 0;
    p->started = 0;
}

// What a shard holds, from the index that its writer has in memory.
GPT2_SP_LEAF void prepare_count(const tok_writer* w, prepare_report* r) {
    memset(r, 0, sizeof *r);
    r->documents = w->documents;
    r->tokens = w->tokens;
    r->text_bytes = w->text_bytes;
    for (uint64_t i = 0; i < w->spans; i++) r->masked += w->span[i].count;
    for (uint64_t i = 0; i < w->documents; i++) {
        uint64_t end = i + 1 < w->documents ? w->document_start[i + 1] : w->tokens;
        uint64_t length = end - w->document_start[i];
        int power = 0;
        while (length >> power > 1) power++;
        r->length_documents[power]++;
        r->length_tokens[power] += length;
        for (int k = 0; k < PREPARE_FAR; k++)
            if (length > prepare_far[k]) r->beyond[k] += length - prepare_far[k];
    }
}

// Everything that prepare_finish does before the shards take their names.
GPT2_SP_LEAF int prepare_complete(prepare* p, char* err, size_t err_size) {
    prepare_hand_on(p);
    if (prepare_wait(p, 0, err, err_size)) return -1;
    for (int i = 0; i < PREPARE_SIDES; i++) {
        tok_writer* w = p->writer + i;
        if (!w->out.path) continue;
        w->user = p->worker;
        if (w->documents == 0 && p->writer[1].out.path)
            return tok_error(err, err_size,
                "%s: of %" PRIu64
                " documents none is on this side: another fraction or seed, or more documents",
                w->out.path, p->writer[1 - i].documents);
        if (w->fill && tok_writer_flush(w, err, err_size)) return -1;
        if (prepare_drain(p, p->worker)) return tok_error(err, err_size, "%s", p->err);
        prepare_count(w, &p->report[i]);
        if (tok_writer_complete(w, err, err_size)) return -1;
    }
    return 0;
}

// Ends the shards. Both are whole before the first takes its name.
GPT2_SP_LEAF int prepare_finish(prepare* p, char* err, size_t err_size) {
    int rc = prepare_complete(p, err, err_size);
    for (int i = PREPARE_SIDES - 1; i >= 0 && rc == 0; i--)
        if (p->writer[i].out.path) rc = tok_output_finish(&p->writer[i].out, err, err_size);
    return rc;
}

#endif
