// bpe_tool: data/bpe.h as a program, for dev/check_tokenizer.py and for looking at a tokenizer.
//
//     bpe_tool info VOCAB [PATTERN]              what it is: sizes, pattern, end token, fingerprint
//     bpe_tool encode VOCAB [PATTERN]            standard input, one document, to tokens of 4 bytes
//     bpe_tool encode-special VOCAB [PATTERN]    special tokens in the text are themselves
//     bpe_tool batch VOCAB [PATTERN]             many documents, 4 bytes of length before each, and before
//                                                the tokens of each
//     bpe_tool decode VOCAB [PATTERN]            tokens of 4 bytes to text
//     bpe_tool save VOCAB PATTERN FOLDER         writes Hugging Face's files (PATTERN - = none)
//     bpe_tool bench VOCAB PATTERN FILE...       bytes, tokens and MB/s of processor time, the best of five
//
// Errors are one line on stderr, status 1.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "../data/bpe.h"

#include <time.h>

static char err[512];

static int fail(void) {
    fprintf(stderr, "bpe_tool: %s\n", err);
    return 1;
}

static int encode(const bpe* b, int specials) {
    bpe_encoder e;
    static char chunk[1 << 16];
    size_t n;
    int rc = bpe_encoder_open(&e, b, specials, err, sizeof err);
    do {
        n = fread(chunk, 1, sizeof chunk, stdin);
        rc = rc || bpe_encode(&e, chunk, n, n == 0, err, sizeof err);
        if (e.tokens) fwrite(e.token, sizeof *e.token, e.tokens, stdout);
        e.tokens = 0;
    } while (n > 0 && rc == 0);
    bpe_encoder_close(&e);
    return rc ? fail() : 0;
}

static int batch(const bpe* b) {
    bpe_encoder e;
    char* text = NULL;
    size_t capacity = 0;
    uint32_t length;
    int rc = bpe_encoder_open(&e, b, 0, err, sizeof err);
    while (rc == 0 && fread(&length, sizeof length, 1, stdin) == 1) {
        text = (char*)bpe_grow(text, &capacity, length, 1);
        if (!text || fread(text, 1, length, stdin) != length) {
            snprintf(err, sizeof err, "standard input: %" PRIu32 " bytes of a document expected", length);
            rc = -1;
            break;
        }
        e.tokens = 0;
        rc = bpe_encode(&e, text, length, 1, err, sizeof err);
        uint32_t tokens = (uint32_t)e.tokens;
        fwrite(&tokens, sizeof tokens, 1, stdout);
        fwrite(e.token, sizeof *e.token, e.tokens, stdout);
    }
    free(text);
    bpe_encoder_close(&e);
    return rc ? fail() : 0;
}

static int decode(const bpe* b) {
    unsigned char out[BPE_MAX_TOKEN + 4];
    bpe_decoder d;
    uint32_t id;
    memset(&d, 0, sizeof d);
    while (fread(&id, sizeof id, 1, stdin) == 1) {
        long n = bpe_decode(b, &d, id, out);
        if (n < 0) {
            snprintf(err, sizeof err, "%" PRIu32 " is no token", id);
            return fail();
        }
        fwrite(out, 1, (size_t)n, stdout);
    }
    fwrite(out, 1, (size_t)bpe_decode_end(&d, out), stdout);
    return 0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int bench(const bpe* b, char** files) {
    for (; *files; files++) {
        double best = 1e30;
        size_t length, tokens = 0;
        bpe_reader r = {NULL, *files, err, sizeof err, 0, 0};
        char* text = bpe_read(&r, &length, NULL);
        if (!text) return fail();
        for (int i = 0; i < 5; i++) {
            bpe_encoder e;
            double start = now();
            int rc = bpe_encoder_open(&e, b, 0, err, sizeof err) ||
                bpe_encode(&e, text, length, 1, err, sizeof err);
            double took = now() - start;
            tokens = e.tokens;
            if (took < best) best = took;
            bpe_encoder_close(&e);
            if (rc) return fail();
        }
        printf("%zu bytes %zu tokens %.1f MB/s %s\n", length, tokens, 1e-6 * (double)length / best, *files);
        free(text);
    }
    return 0;
}

int main(int argc, char** argv) {
    const char *what = argc > 1 ? argv[1] : "", *pattern = argc > 3 && strcmp(argv[3], "-") ? argv[3] : NULL;
    bpe b;
    int status = 0;
    if (argc < 3) {
        fprintf(stderr,
            "usage: bpe_tool info|encode|encode-special|batch|decode|save|bench VOCAB [PATTERN ...]\n");
        return 2;
    }
    if (bpe_load(&b, argv[2], pattern, err, sizeof err)) return fail();
    if (strcmp(what, "info") == 0)
        printf("%" PRIu32 " ids, %" PRIu32 " merges, %" PRIu32 " special, pattern %s%s, end token %" PRIu32
               ", fingerprint %016" PRIx64 "\n",
            b.vocab_size, b.merges, b.specials, BPE_PATTERNS[b.pattern].name, b.whole ? ", whole pieces" : "",
            b.eot, b.fingerprint);
    else if (strcmp(what, "encode") == 0) status = encode(&b, 0);
    else if (strcmp(what, "encode-special") == 0) status = encode(&b, 1);
    else if (strcmp(what, "batch") == 0) status = batch(&b);
    else if (strcmp(what, "decode") == 0) status = decode(&b);
    else if (strcmp(what, "save") == 0 && argc > 4)
        status = bpe_save(&b, argv[4], 0, err, sizeof err) ? fail() : 0;
    else if (strcmp(what, "bench") == 0) status = bench(&b, argv + (argc > 4 ? 4 : argc));
    else {
        fprintf(stderr, "bpe_tool: no command %s\n", what);
        status = 2;
    }
    bpe_free(&b);
    if (fflush(stdout) || ferror(stdout)) status = 1;
    return status;
}
