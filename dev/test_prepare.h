// test_prepare.h: the tests of data/html.h, of the documents that data/text.h makes of JSON lines and pages,
// and of data/prepare.h, as one function test_prepare(), the group `prepare`. To be included once, behind
// test_bpe.h, from which it has a vocabulary and texts.
//
// What is held: pages and lines give the text and the masks written here; a shard is, byte by byte, the one
// that a plain loop writes, whatever the number of threads, the sizes of the pieces and what was taken back
// on the way; duplicates and the validation's documents are those of a plain comparison; the report counts
// what the shard holds; memory does not grow with the text. A document that is lost, cut or masked in the
// wrong place on eight threads would train a model that nothing shows to be wrong.
#ifndef GPT2_SP_TEST_PREPARE_H
#define GPT2_SP_TEST_PREPARE_H

#include "../data/prepare.h"

static char test_prepare_err[1024];

// ================================================================================
// pages

// A page and its text. An upright bar in the text stands for a line's end.
static const char* const test_prepare_pages[][2] = {{"plain <b>text</b>", "plain text"},
    {"<p>one</p><p>two</p>", "one|two|"}, {"<h1>A</h1>\n\n <p> b\n  c </p>\n", "A|b c|"},
    {"a<br>b<br/><br>c", "a|b||c"}, {"a<script>if (a < b) x('</p>'); </script>b", "ab"},
    {"a<SCRIPT x>y</SCRIPT >b", "ab"}, {"a<script>x</scripty></script>b", "ab"}, {"a<script src=x/>b", "ab"},
    {"a<style>p > a { b: \"c\" }</style>b", "ab"}, {"a<!-- <p>c</p> -- > -->b", "ab"}, {"a<!-->b", "ab"},
    {"a<!--->b", "ab"}, {"a<!-- b", "a"}, {"<!DOCTYPE html><?xml version='1'?>a<![CDATA[x]]>b", "ab"},
    {"<a title=\"x > y\" href='a>b'>c</a>", "c"}, {"<a title=it's>c</a>", "c"}, {"<a b = '>'>c</a>", "c"},
    {"1 < 2 && 3 > 2", "1 < 2 && 3 > 2"}, {"a<b", "a"}, {"a<", "a<"}, {"a</>b</ x>c", "abc"},
    {"&amp;&lt;&gt;&quot;&apos;&mdash;&eacute;", "&<>\"'\xE2\x80\x94\xC3\xA9"},
    {"&copy2020 &notit; &copyright &AMP;",
        "\xC2\xA9"
        "2020 \xC2\xACit; \xC2\xA9right &"},
    {"&hellip &nosuch; &; & &#; &#x; &", "&hellip &nosuch; &; & &#; &#x; &"},
    {"&#65;&#x41;&#X4a;&#66x&#8212;&#x1F600;", "AAJBx\xE2\x80\x94\xF0\x9F\x98\x80"},
    {"&#150;&#0;&#xD800;&#x110000;&#99999999999999999999;",
        "\xE2\x80\x93\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
    {"&amp", "&"}, {"&nbsp;", "\xC2\xA0"}, {"a&#10;b", "a b"}, {"&#65a;&#x41g", "Aa;Ag"},
    {"<ul><li>a<li>b</ul>c", "a|b|c"}, {"<table><tr><td>a</td><td>b</td></tr><tr><th>c</table>", "a b|c|"},
    {"x<pre>\n  a  b\n\n c\n</pre>y", "x|  a  b|| c|y"}, {"<pre>\r\n a\r\n</pre>", "a|"},
    {"a<noscript><p>b<noscript>c</noscript>d</noscript>e", "ae"}, {"a<svg><text>b</text></svg>c", "ac"},
    {"a<template>b", "a"}, {"a<svg/>b<template></template>c", "abc"}, {"a<p/>b", "a|b"},
    {"<title>T &amp; U</title><body>b", "T & U|b"}, {"  <p> </p> ", ""}, {"", ""}, {"a <b> b</b>", "a b"},
    {"a<noscriptnoscript>b</noscriptnoscript>", "ab"}, {"<meta charset=\"utf-8\">\xC3\xA9", "\xC3\xA9"},
    {"<meta charset=latin1>\xE9\x96", "\xC3\xA9\xE2\x80\x93"},
    {"<META http-equiv='Content-Type' content='text/html; charset=ISO-8859-1'>\xE9", "\xC3\xA9"},
    {"<meta name=x content=y>\xE9", "\xE9"}, {"<meta charset=shift_jis>a", "!shift_jis"},
    {"<!-- <meta charset=shift_jis> -->a", "a"}};

// The text of a page fed in pieces of `step` bytes, with bars for lines' ends; 0 if it is not as written.
static int test_prepare_page(const char* page, const char* text, size_t step) {
    html_reader h;
    memset(&h, 0, sizeof h);
    size_t n = strlen(page);
    int rc = 0;
    for (size_t at = 0; at < n && rc == 0; at += step)
        rc = html_feed(&h, page + at, n - at < step ? n - at : step, 0);
    if (rc == 0) rc = html_feed(&h, "", 0, 1);
    for (size_t i = 0; i < h.bytes; i++)
        if (h.out[i] == '\n') h.out[i] = '|';
    int good = text[0] == '!'
        ? rc == -1 && strcmp(h.refused, text + 1) == 0
        : rc == 0 && h.bytes == strlen(text) && (!*text || memcmp(h.out, text, h.bytes) == 0);
    if (!good) printf("  %s\n  by %zu: %.*s %s\n", page, step, (int)h.bytes, h.out, h.refused);
    html_free(&h);
    return good;
}

static void test_prepare_html(void) {
    static const size_t steps[] = {1 << 20, 1, 2, 7};
    int count = (int)(sizeof test_prepare_pages / sizeof *test_prepare_pages), whole = 0, cut = 0;
    for (int i = 0; i < count; i++)
        for (int k = 0; k < 4; k++)
            *(k ? &cut : &whole) +=
                test_prepare_page(test_prepare_pages[i][0], test_prepare_pages[i][1], steps[k]);
    check(whole == count, "html: a page gives the text that is written here", "%d of %d", whole, count);
    check(
        cut == 3 * count, "html: how a page is cut into pieces changes nothing", "%d of %d", cut, 3 * count);
    int found = 0, names = (int)(sizeof HTML_NAMES / sizeof *HTML_NAMES);
    for (int i = 0; i < names; i++)
        found += html_named(HTML_NAMES[i].name, strlen(HTML_NAMES[i].name)) == HTML_NAMES[i].code &&
            (i == 0 || strcmp(HTML_NAMES[i - 1].name, HTML_NAMES[i].name) < 0);
    check(found == names && html_named("amps", 4) == 0 && html_named("am", 2) == 0,
        "html: every name is found, and no other", "%d of %d", found, names);
}

// In a folder and named, packed, with a mark, longer than what is in memory; what is no page of ours.
static void test_prepare_html_files(void) {
    enum { ROWS = 20000 };
    const char *page = test_data_path("a.html"), *packed = test_data_path("b.XHTML.gz");
    char* text = (char*)malloc(ROWS * 16);
    size_t n = 0, want = 0;
    test_data_texts t;
    test_data_write(page, "\xEF\xBB\xBF<p>a&amp;b", 13);
    int ok = test_data_text(page, &t) == 0 && strcmp(t.out, "a.html:1=a&b|") == 0;
    test_data_pack(packed, "wb", "<i>x</i><script>y", 17);
    ok += test_data_text(packed, &t) == 0 && strcmp(t.out, "b.XHTML.gz:1=x|") == 0;
    for (int i = 0; i < ROWS; i++) n += (size_t)sprintf(text + n, "<p>r%d</p>\n", i);
    for (int i = 0; i < ROWS; i++) want += (size_t)snprintf(NULL, 0, "r%d\n", i);
    test_data_write(page, text, n);
    test_data_flow flow = {0, 0, 0, 0};
    text_reader r = test_data_reading(&t);
    r.document = test_data_flowing;
    r.user = &flow;
    ok += text_documents(&r, page) == 0 && flow.bytes == want && r.documents == 1 && flow.pieces > 2;
    mkdir(test_data_path("pages"), 0700);
    test_data_write(test_data_path("pages/a.htm"), "<p>good</p>", 11);
    test_data_write(test_data_path("pages/b.html"), "ab<meta charset=big5>c", 22);
    test_data_write(test_data_path("pages/c.html"), "<p>a\0b", 6);
    test_data_write(test_data_path("pages/d.txt"), "a\0b", 3);
    r = test_data_reading(&t);
    r.skip = test_data_left_out;
    int rc = text_documents(&r, test_data_path("pages"));
    ok += rc == 0 && r.documents == 1 &&
        strstr(t.out,
            "a.htm:1=good\n|pages/b.html: its charset |pages/c.html: its content |pages/d.txt: its "
            "content ") != NULL;
    rc = test_data_text(test_data_path("pages/b.html"), &t);
    ok += test_data_refused(rc, "its charset is \"big5\", expected utf-8", "b.html");
    ok += test_data_refused(test_data_text(test_data_path("pages/c.html"), &t), "byte 4 is NUL", "c.html");
    ok += test_data_refused(test_data_text(test_data_path("pages/d.txt"), &t), "byte 1 is NUL", "d.txt");
    if (ok != 7) printf("  %s\n  %s\n", t.out, test_data_err);
    free(text);
    check(ok == 7, "text: pages are read, also packed and long; what is none is left out or refused",
        "%d of 7", ok);
}

// ================================================================================
// lines

// --field ("": none), a line, what comes of it: * before a masked part, ^ between parts, |* a masked end; or
// with ! a part of the refusal.
static const char* const test_prepare_lines[][3] = {{"", "{\"prompt\":\"a\",\"completion\":\"b\"}", "*a^b|"},
    {"", "{\"completion\":\"b\",\"prompt\":\"a\"}", "*a^b|"},
    {"", "{\"prompt\":\"a\",\"completion\":\"\"}", "*a|"},
    {"", "{\"prompt\":\"\",\"completion\":\"b\"}", "b|"}, {"", "{\"prompt\":\"\",\"completion\":\"\"}", ""},
    {"",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"content\":\"ho\",\"x\":[1],\"role\":"
        "\"assistant\"}]}",
        "*hi\n^ho\n|"},
    {"",
        "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\"},{\"role\":\"tool\",\"content\":\"b\\n\"}]"
        "}",
        "a\n^*b\n\n|*"},
    {"", "{\"messages\":[]}", ""}, {"", "{\"messages\":[{\"role\":\"user\",\"content\":\"\"}]}", "*\n|*"},
    {"", "{\"prompt\":\"a\"}", "!\"completion\" too"}, {"", "{\"completion\":\"a\"}", "!\"prompt\" too"},
    {"", "{\"prompt\":1,\"completion\":\"a\"}", "!a string as \"prompt\""},
    {"", "{\"prompt\":\"a\",\"completion\":[]}", "!a string as \"completion\""},
    {"", "{\"text\":\"a\",\"prompt\":\"b\",\"completion\":\"c\"}", "!one of \"text\""},
    {"", "{\"text\":\"a\",\"messages\":[]}", "!one of \"text\""},
    {"", "{\"prompt\":\"a\",\"prompt\":\"b\",\"completion\":\"c\"}", "!one field \"prompt\""},
    {"", "{\"messages\":\"a\"}", "!an array as \"messages\""}, {"", "{\"messages\":[\"a\"]}", "!a message"},
    {"", "{\"messages\":[{\"role\":\"user\"}]}", "!a \"role\" and a \"content\""},
    {"", "{\"messages\":[{\"content\":\"user\"}]}", "!a \"role\" and a \"content\""},
    {"", "{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "!a string"},
    {"", "{\"messages\":[{\"role\":\"a\",\"role\":\"b\",\"content\":\"c\"}]}", "!one \"role\""},
    {"", "{\"messages\":[{\"role\":\"a\",\"content\":\"c\"},]}", "!a message"},
    {"", "{\"messages\":[{\"role\":\"a\",\"content\":\"c\"}", "!a comma or ]"},
    {"", "{\"messages\":[{\"role\":\"a\" \"content\":\"c\"}]}", "!a comma or }"},
    {"", "{\"messages\":[{\"role\":\"a\",\"content\":\"c\",}]}", "!a string"},
    {"body", "{\"text\":\"a\",\"body\":\"b\",\"prompt\":3}", "b|"},
    {"body", "{\"text\":\"a\"}", "!one field \"body\""}, {"body", "{\"body\":1}", "!one field \"body\""},
    {"body", "{\"body\":\"a\",\"body\":\"b\"}", "!one field \"body\""},
    {"a.b", "{\"b\":\"x\",\"a\":{\"a\":\"y\",\"b\":\"z\"}}", "z|"},
    {"a.b", "{\"a.b\":\"z\",\"a\":{\"c\":1}}", "z|"},
    {"a.b", "{\"a.b\":\"z\",\"a\":{\"b\":\"y\"}}", "!one field \"a.b\""},
    {"a.b", "{\"a\":[{\"b\":\"y\"}]}", "!one field"}, {"a.b.c", "{\"a\":{\"b\":{\"c\":\"deep\"}}}", "deep|"},
    {"a.b.c", "{\"a\":{\"b.c\":\"deep\"}}", "deep|"}, {"a", "{\"ab\":\"x\"}", "!one field \"a\""},
    {"ab", "{\"a\":{\"b\":\"x\"}}", "!one field \"ab\""}, {"a", "{\"a\\u0000b\":\"y\",\"a\":\"x\"}", "x|"},
    {"talk", "{\"talk\":[{\"role\":\"assistant\",\"content\":\"c\"}],\"messages\":0}", "c\n|"}};

static void test_prepare_json(void) {
    const char* path = test_data_path("f.jsonl");
    int count = (int)(sizeof test_prepare_lines / sizeof *test_prepare_lines), ok = 0;
    for (int i = 0; i < count; i++) {
        const char *field = test_prepare_lines[i][0], *line = test_prepare_lines[i][1];
        const char* want = test_prepare_lines[i][2];
        char full[512];
        test_data_texts t;
        text_reader r = test_data_reading(&t);
        r.field = *field ? field : NULL;
        test_data_write(path, line, strlen(line));
        int rc = text_documents(&r, path);
        snprintf(full, sizeof full, "%s%s", *want ? "f.jsonl:1=" : "", want);
        int good = *want == '!' ? test_data_refused(rc, want + 1, "f.jsonl:1: column ")
                                : rc == 0 && t.wrong == 0 && !t.inside && strcmp(t.out, full) == 0;
        if (!good) printf("  %s: %s\n  gave: %s, %s\n", field, line, t.out, test_data_err);
        ok += good;
    }
    check(ok == count, "text: prompts, messages and named fields give their parts and masks", "%d of %d", ok,
        count);
}

// ================================================================================
// shards

typedef struct {
    char* text;
    size_t length;
    int masked;
} test_prepare_part;

typedef struct {   // three parts at most; the end is masked as the last part, or by itself
    test_prepare_part part[3];
    int parts, undone, end_masked;
    size_t bytes;
} test_prepare_document;

enum { TEST_PREPARE_DOCUMENTS = 400 };
static test_prepare_document test_prepare_documents[TEST_PREPARE_DOCUMENTS];

// Text of at least n bytes, with stretches of one kind that are longer than a batch in `dense` ones.
static char* test_prepare_text(size_t n, int dense, size_t* length) {
    char* text = (char*)malloc(n + 4096);
    size_t at = 0;
    while (at < n) {
        if (dense && test_bpe_random(40) == 0)
            for (int i = 0; i < 3000 && at < n; i++) text[at++] = dense == 2 ? 'x' : '-';
        else at += test_bpe_text(60, text + at, NULL, NULL);
    }
    *length = n;
    return text;
}

// Documents of all lengths, of one to three parts, some of them alike, also the longest, some taken back.
static void test_prepare_make(void) {
    enum { LONGEST = 307, LAST_COPY = 390 };
    static const size_t long_ones[] = {PREPARE_BATCH - 1, PREPARE_BATCH, 3 * PREPARE_BATCH + 17,
        PREPARE_FRONT - 1, PREPARE_FRONT, PREPARE_FRONT + 1, 6 * PREPARE_BATCH};
    memset(test_prepare_documents, 0, sizeof test_prepare_documents);
    for (int d = 0; d < TEST_PREPARE_DOCUMENTS; d++) {
        test_prepare_document* one = test_prepare_documents + d;
        int large = d % 50 == 7 ? d / 50 % 7 : -1;
        one->parts = test_bpe_random(3) ? 1 : 1 + (int)test_bpe_random(3);
        one->undone = large >= 0 ? large % 2 : test_bpe_random(20) == 0;
        for (int k = 0; k < one->parts; k++) {
            size_t n = 1 + test_bpe_random(test_bpe_random(4) ? 200 : 9000);
            if (large >= 0 && k == 0) n = long_ones[large];
            one->part[k].text =
                test_prepare_text(n, large >= 0 ? 1 + large / 2 % 2 : 0, &one->part[k].length);
            one->part[k].masked = one->parts > 1 && test_bpe_random(2);
            one->end_masked = one->part[k].masked;
            one->bytes += one->part[k].length;
        }
        int of = d == LAST_COPY ? LONGEST : (int)test_bpe_random((uint32_t)(d > 0 ? d : 1));
        if (d != LAST_COPY && (test_bpe_random(5) || d < 50)) continue;
        if (d != LAST_COPY && test_prepare_documents[of].bytes > 50000) continue;
        for (int k = 0; k < one->parts; k++) free(one->part[k].text);
        *one = test_prepare_documents[of];
        for (int k = 0; k < one->parts; k++) {
            one->part[k].text = (char*)malloc(one->part[k].length);
            memcpy(one->part[k].text, test_prepare_documents[of].part[k].text, one->part[k].length);
        }
        if (d != LAST_COPY && test_bpe_random(4) == 0)
            one->part[0].text[one->part[0].length / 2] ^= 1;   // nearly
    }
}

static int test_prepare_same(const test_prepare_document* a, const test_prepare_document* b) {
    int same = a->parts == b->parts && a->end_masked == b->end_masked;
    for (int k = 0; same && k < a->parts; k++)
        same = a->part[k].length == b->part[k].length && a->part[k].masked == b->part[k].masked &&
            memcmp(a->part[k].text, b->part[k].text, a->part[k].length) == 0;
    return same;
}

// What a shard is made with.
typedef struct {
    const bpe* b;
    int specials, dedup, threads;
    double val_fraction;
    uint64_t seed, block_tokens;
    uint64_t piece;   // bytes of a piece at most
} test_prepare_how;

// Which of the documents a plain loop leaves out: taken back, or with dedup there before.
static int test_prepare_left_out(const test_prepare_how* how, int d) {
    const test_prepare_document* one = test_prepare_documents + d;
    if (one->undone) return 1;
    for (int i = 0; how->dedup && i < d; i++)
        if (!test_prepare_documents[i].undone && test_prepare_same(one, test_prepare_documents + i)) return 1;
    return 0;
}

static void test_prepare_open(tok_writer* w, const test_prepare_how* how, const char* path) {
    if (tok_writer_open(w, path, 3, how->b->vocab_size, how->b->eot, (uint32_t)how->block_tokens,
            test_prepare_err, sizeof test_prepare_err) == 0)
        return;
    fprintf(stderr, "%s\n", test_prepare_err);
    exit(1);
}

// The plain loop. `side` is that of each document, or NULL, and `want` the one that is written.
static void test_prepare_plain(const test_prepare_how* how, const char* path, const int* side, int want) {
    tok_writer w;
    bpe_encoder e;
    int rc = 0;
    test_prepare_open(&w, how, path);
    bpe_encoder_open(&e, how->b, how->specials, test_prepare_err, sizeof test_prepare_err);
    for (int d = 0; d < TEST_PREPARE_DOCUMENTS && rc == 0; d++) {
        const test_prepare_document* one = test_prepare_documents + d;
        if (test_prepare_left_out(how, d) || (side && side[d] != want)) continue;
        for (int k = 0; k < one->parts && rc == 0; k++) {
            e.tokens = 0;
            rc = bpe_encode(
                &e, one->part[k].text, one->part[k].length, 1, test_prepare_err, sizeof test_prepare_err);
            w.masked = one->part[k].masked;
            if (rc == 0)
                rc = tok_writer_add(&w, (const int32_t*)(const void*)e.token, e.tokens, test_prepare_err,
                    sizeof test_prepare_err);
        }
        w.masked = one->end_masked;
        if (rc == 0) rc = tok_writer_end_document(&w, one->bytes, test_prepare_err, sizeof test_prepare_err);
    }
    if (rc == 0) rc = tok_writer_finish(&w, test_prepare_err, sizeof test_prepare_err);
    if (rc) printf("  %s\n", test_prepare_err);
    bpe_encoder_close(&e);
}

// Hands a document to p in pieces of random sizes.
static int test_prepare_give(prepare* p, const test_prepare_document* one, uint64_t most) {
    int begin = TEXT_BEGIN, rc = 0;
    for (int k = 0; k < one->parts; k++) {
        const test_prepare_part* part = one->part + k;
        for (size_t at = 0; at < part->length && rc == 0;) {
            size_t n = 1 + test_bpe_random((uint32_t)most);
            if (n > part->length - at) n = part->length - at;
            int edge = at + n == part->length ? TEXT_EDGE : 0;
            text_piece piece = {part->text + at, n, "d", 1, begin | edge | (part->masked ? TEXT_MASKED : 0)};
            rc = prepare_piece(p, &piece);
            begin = 0;
            at += n;
        }
    }
    text_piece end = {
        "", 0, "d", 1, TEXT_END | (one->end_masked ? TEXT_MASKED : 0) | (one->undone ? TEXT_UNDONE : 0)};
    return rc || prepare_piece(p, &end);
}

// The documents, from `first` on in turn, through data/prepare.h. The report of both sides goes to report.
static int test_prepare_run(
    const test_prepare_how* how, const char* path, const char* val, int first, prepare_report* report) {
    prepare p;
    memset(&p, 0, sizeof p);
    p.tokenizer = how->b;
    p.specials = how->specials, p.dedup = how->dedup;
    p.threads = how->threads;
    p.val_fraction = how->val_fraction;
    p.seed = how->seed;
    test_prepare_open(&p.writer[0], how, path);
    if (val) test_prepare_open(&p.writer[1], how, val);
    int rc = prepare_start(&p, test_prepare_err, sizeof test_prepare_err);
    for (int i = 0; i < TEST_PREPARE_DOCUMENTS && rc == 0; i++)
        rc = test_prepare_give(&p, test_prepare_documents + (first + i) % TEST_PREPARE_DOCUMENTS, how->piece);
    if (rc == 0) rc = prepare_finish(&p, test_prepare_err, sizeof test_prepare_err);
    if (rc) printf("  %s %s\n", test_prepare_err, p.err);
    if (report) memcpy(report, p.report, sizeof p.report);
    prepare_stop(&p);
    return rc;
}

// Are two files the same?
static int test_prepare_equal(const char* one, const char* other) {
    FILE *f = fopen(one, "rb"), *g = fopen(other, "rb");
    int a = 0, b = 0;
    while (f && g && a == b && a != EOF) a = getc_unlocked(f), b = getc_unlocked(g);
    int same = f && g && a == b;
    if (f) fclose(f);
    if (g) fclose(g);
    return same;
}

// By any number of threads, with blocks of a few tokens and of many, every pattern.
static void test_prepare_threads(void) {
    static const struct {
        int threads, dedup, specials;
        const char* pattern;
        uint64_t block_tokens, piece;
    } runs[] = {{1, 0, 0, "gpt2", 1000, 70000}, {2, 0, 0, "gpt2", 1000, 300000},
        {3, 1, 0, "cl100k", 65536, 999}, {7, 1, 0, "llama3", 999, 70000}, {4, 1, 1, "qwen2", 2048, 200000},
        {1, 1, 0, NULL, 1 << 20, 100000}, {5, 0, 1, NULL, 4096, 70000}};
    const char *found = test_data_path("found.tok"), *want = test_data_path("want.tok");
    int same = 0, count = quick ? 5 : (int)(sizeof runs / sizeof *runs);
    uint64_t tokens = 0, undone = 0, copies = 0;
    for (int i = 0; i < count; i++) {
        bpe b;
        if (runs[i].pattern) test_bpe_load(&b, "x.tiktoken", runs[i].pattern);
        else bpe_load_bytes(&b, test_prepare_err, sizeof test_prepare_err);
        test_prepare_how how = {
            &b, runs[i].specials, runs[i].dedup, runs[i].threads, 0, 1, runs[i].block_tokens, runs[i].piece};
        prepare_report report[PREPARE_SIDES];
        test_prepare_plain(&how, want, NULL, 0);
        int rc = test_prepare_run(&how, found, NULL, 0, report);
        int good = rc == 0 && test_prepare_equal(found, want);
        if (!good) printf("  %d threads, run %d: not the same\n", runs[i].threads, i);
        same += good;
        tokens += report[0].tokens;
        bpe_free(&b);
    }
    for (int d = 0; d < TEST_PREPARE_DOCUMENTS; d++) {
        test_prepare_how all = {NULL, 0, 1, 0, 0, 0, 0, 0};
        undone += (uint64_t)test_prepare_documents[d].undone;
        copies += !test_prepare_documents[d].undone && test_prepare_left_out(&all, d);
    }
    check(same == count && undone > 10 && copies > 10,
        "prepare: a shard is the one that a plain loop writes, whatever the threads",
        "%d of %d shards, %llu tokens; %llu documents taken back, %llu duplicates", same, count,
        (unsigned long long)tokens, (unsigned long long)undone, (unsigned long long)copies);
}

// Whether a text is UTF-8 is told the same whatever pieces it comes in, and as by the check of a whole one.
static void test_prepare_utf8(void) {
    static const char pieces[][5] = {"a", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xED\x9F\xBF",
        "\xEE\x80\x80", "\xF4\x8F\xBF\xBF", "text",   // and what is none: 8 on
        "\xE9", "\xC0\x80", "\xE0\x9F\x80", "\xED\xA0\x80", "\xF0\x8F\x80\x80", "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80", "\xC3"};
    int right = 0, wrong = 0, cases = quick ? 2000 : 20000;
    for (int i = 0; i < cases; i++) {
        char text[128];
        size_t n = 0;
        int bad = i % 2 ? i / 2 % 12 : -1;   // where one of those that are none stands
        for (int k = 0; k < 12; k++) {
            int kind = (int)(prepare_mix((uint64_t)(i * 12 + k)) % 8) + (k == bad ? 8 : 0);
            size_t length = strnlen(pieces[kind], sizeof pieces[kind]);
            memcpy(text + n, pieces[kind], length), n += length;
        }
        prepare_utf8 u;
        memset(&u, 0, sizeof u);
        for (size_t at = 0, piece; at < n; at += piece) {
            piece = 1 + (size_t)(prepare_mix((uint64_t)i * 128 + at + 1000000007) % 24);
            if (piece > n - at) piece = n - at;
            prepare_utf8_add(&u, text + at, piece);
        }
        int valid = json_utf8_check(text, text + n) == text + n;
        right += (u.wrong || u.left > 0) == !valid;
        wrong += !valid;
    }
    check(right == cases && wrong > cases / 4 && wrong <= cases / 2,
        "prepare: whether a text is UTF-8 does not depend on the pieces it comes in",
        "%d of %d texts, of which %d are not", right, cases, wrong);
}

// The documents of each side are the same in any order, a share of them as large as asked for, and nothing is
// on both sides or on neither.
static void test_prepare_sides(void) {
    const char *train = test_data_path("train.tok"), *val = test_data_path("val.tok");
    const char* want = test_data_path("want.tok");
    static int side[TEST_PREPARE_DOCUMENTS];
    bpe b;
    test_bpe_load(&b, "x.tiktoken", "gpt2");
    int good = 0, moved = 0;
    uint64_t count[2] = {0, 0}, seeds[2] = {0, 0};
    for (uint64_t seed = 1; seed <= 2; seed++) {
        test_prepare_how how = {&b, 0, 1, 3, 0.3, seed, 500, 70000};
        prepare_report ahead[PREPARE_SIDES], turned[PREPARE_SIDES];
        prepare p;
        memset(&p, 0, sizeof p);
        p.val_fraction = how.val_fraction, p.seed = seed;
        for (int d = 0; d < TEST_PREPARE_DOCUMENTS; d++) {   // the side of the front of its text
            const test_prepare_document* one = test_prepare_documents + d;
            uint64_t hash = 0;
            size_t left = PREPARE_FRONT;
            for (int k = 0; k < one->parts && left > 0; k++) {
                prepare_hash h;
                memset(&h, 0, sizeof h);
                size_t n = one->part[k].length < left ? one->part[k].length : left;
                prepare_hash_add(&h, one->part[k].text, n);
                hash = prepare_mix(hash) ^ prepare_hash_end(&h);
                if (one->part[k].masked && n < left) hash += 0x9E3779B97F4A7C15u;
                left -= n;
            }
            int now = prepare_side(&p, hash);
            moved += seed == 2 && now != side[d];
            side[d] = now;
        }
        int rc = test_prepare_run(&how, train, val, 0, ahead);
        for (int s = 0; s < 2 && rc == 0; s++) {
            test_prepare_plain(&how, want, side, s);
            good += test_prepare_equal(s ? val : train, want);
            count[s] += ahead[s].documents;
        }
        rc = rc || test_prepare_run(&how, train, val, 200, turned);
        good += rc == 0 && ahead[0].documents == turned[0].documents &&
            ahead[1].documents == turned[1].documents && ahead[0].tokens == turned[0].tokens &&
            ahead[1].tokens == turned[1].tokens;
        seeds[seed - 1] = ahead[1].documents;
    }
    double share = (double)count[1] / (double)(count[0] + count[1]);
    bpe_free(&b);
    check(good == 6 && moved > 50 && fabs(share - 0.3) < 0.08,
        "prepare: a document's side is its text's, in any order",
        "%.3f on the second, of 0.3; %llu and %llu "
        "documents by two seeds; %d of 6",
        share, (unsigned long long)seeds[0], (unsigned long long)seeds[1], good);
}

// What the report says, counted from the shard.
static void test_prepare_reports(void) {
    const char* path = test_data_path("found.tok");
    bpe b;
    bpe_load_bytes(&b, test_prepare_err, sizeof test_prepare_err);
    test_prepare_how how = {&b, 0, 0, 2, 0, 1, 4096, 70000};
    prepare_report report[PREPARE_SIDES], *r = report;
    int rc = test_prepare_run(&how, path, NULL, 0, report);
    tok_shard s;
    rc = rc || tok_open(&s, path, TOK_FORMAT_AUTO, test_prepare_err, sizeof test_prepare_err);
    static const uint64_t far[] = {1024, 8192, 32768};
    uint64_t masked = 0, lengths[PREPARE_LENGTHS] = {0}, of[PREPARE_LENGTHS] = {0}, beyond[3] = {0, 0, 0},
             wrong = 0;
    for (uint64_t i = 0; rc == 0 && i < s.spans; i++) masked += s.span[i].count;
    for (uint64_t d = 0; rc == 0 && d < s.documents; d++)
        for (uint64_t at = s.document_start[d], n = s.document_start[d + 1] - at, i = 0; i < n; i++) {
            int power = (int)floor(log2((double)n));
            lengths[power] += i == 0, of[power]++;
            for (int k = 0; k < 3; k++) beyond[k] += i >= far[k];
        }
    for (int i = 0; i < PREPARE_LENGTHS; i++)
        wrong += lengths[i] != r->length_documents[i] || of[i] != r->length_tokens[i];
    for (int i = 0; i < 3; i++) wrong += beyond[i] != r->beyond[i];
    check(rc == 0 && wrong == 0 && masked == r->masked && masked > 1000 && s.tokens == r->tokens &&
            s.documents == r->documents && s.text_bytes == r->text_bytes && beyond[2] > 1000,
        "prepare: the report counts what the shard holds",
        "%llu documents, %llu masked, %llu beyond 32768; %d wrong", (unsigned long long)r->documents,
        (unsigned long long)masked, (unsigned long long)beyond[2], (int)wrong);
    if (rc == 0) tok_close(&s);
    bpe_free(&b);
}

// A document of 16 MiB, and then as many small ones, in the memory of a few batches. The shard is not kept.
static void test_prepare_flows(void) {
    enum { PIECE = 1 << 16 };
    const size_t total = quick ? 6 << 20 : 16 << 20;
    size_t length, peak[2];
    uint64_t seen = 0;
    bpe b;
    test_bpe_load(&b, "x.tiktoken", "gpt2");
    char* text = test_prepare_text(PIECE, 0, &length);
    int rc = 0;
    for (int small = 0; small < 2; small++) {
        test_prepare_how how = {&b, 0, 1, 2, 0, 1, 0, 0};
        prepare p;
        memset(&p, 0, sizeof p);
        p.tokenizer = &b, p.threads = 2;
        memory_mark();
        size_t before = memory_now();
        test_prepare_open(&p.writer[0], &how, test_data_path("flow.tok"));
        rc = rc || prepare_start(&p, test_prepare_err, sizeof test_prepare_err);
        for (size_t at = 0; at < total && rc == 0; at += PIECE) {
            text_piece piece = {text, PIECE, "d", 1, 0};
            piece.flags = (small || at == 0 ? TEXT_BEGIN : 0) | (small || at + PIECE >= total ? TEXT_END : 0);
            rc = prepare_piece(&p, &piece);
        }
        rc = rc || prepare_finish(&p, test_prepare_err, sizeof test_prepare_err);
        peak[small] = memory_peak - before;
        seen += p.report[0].text_bytes;
        prepare_stop(&p);
    }
    free(text);
    bpe_free(&b);
    double most = (double)(peak[0] > peak[1] ? peak[0] : peak[1]) / (1 << 20);
    check(rc == 0 && seen == 2 * total && most < 16,
        "prepare: text flows through, in one document and in many",
        "%.0f MiB of text twice on 2 threads, at most %.1f MiB of memory", (double)total / (1 << 20), most);
}

// Errors end it, leave no file, and name what is wrong: a stretch that cannot be cut; a full disk; a side
// without documents; no documents.
static void test_prepare_refusals(void) {
    const char *path = test_data_path("none.tok"), *val = test_data_path("none2.tok");
    bpe b;
    test_bpe_load(&b, "x.tiktoken", "gpt2");
    int ok = 0;
    for (int k = 0; k < 4; k++) {
        test_prepare_how how = {&b, 0, 0, 2, k == 2 ? 1e-9 : 0, 1, 0, 0};
        prepare p;
        memset(&p, 0, sizeof p);
        p.tokenizer = &b, p.threads = 2;
        p.val_fraction = how.val_fraction;
        test_prepare_open(&p.writer[0], &how, path);
        if (k == 2) test_prepare_open(&p.writer[1], &how, val);
        int rc = prepare_start(&p, test_prepare_err, sizeof test_prepare_err);
        if (k == 1)
            close(p.writer[0].out.fd), p.writer[0].out.fd = open("/dev/null", O_RDONLY);   // writes fail
        size_t n = (size_t)BPE_MAX_PIECE + 2 * PREPARE_BATCH;
        char* text = (char*)malloc(n);
        memset(text, '-', n);
        for (size_t i = 0; k > 0 && i < n; i += 2) text[i] = (char)('a' + i % 26);
        if (k > 1) n = 1000;
        text_piece piece = {text, k == 3 ? 0 : n, "name", 7, TEXT_BEGIN | TEXT_END};
        if (rc == 0 && k < 3) rc = prepare_piece(&p, &piece);
        rc = rc || prepare_finish(&p, test_prepare_err, sizeof test_prepare_err);
        static const char* const why[] = {
            "name:7: text of more than", "writing: ", "of 1 documents none is on this side", "no documents"};
        const char* told = p.failed ? p.err : test_prepare_err;
        int good = rc != 0 && strstr(told, why[k]) && !test_data_exists(path) && !test_data_exists(val);
        if (!good) printf("  %d: %s\n", k, told);
        ok += good;
        prepare_stop(&p);
        free(text);
    }
    bpe_free(&b);
    unlink(test_data_path("none.tok.tmp"));   // of the one whose file was taken from it
    check(ok == 4, "prepare: what cannot be ends it and leaves no shard", "%d of 4", ok);
}

// The hash is the same however the bytes come, and different for texts that differ a little.
static void test_prepare_hashes(void) {
    enum { TEXTS = 1 << 18 };
    prepare p;
    memset(&p, 0, sizeof p);
    char text[100];
    uint64_t some[TEXTS / 1024];
    int wrong = 0, again = 0, bits[64] = {0};
    for (int i = 0; i < 300; i++) {
        prepare_hash h, g;
        memset(&h, 0, sizeof h), memset(&g, 0, sizeof g);
        size_t n = test_bpe_random(sizeof text), cut = test_bpe_random((uint32_t)n + 1);
        for (size_t k = 0; k < n; k++) text[k] = (char)test_bpe_random(256);
        prepare_hash_add(&h, text, n);
        prepare_hash_add(&g, text, cut);
        prepare_hash_add(&g, text + cut, n - cut);
        wrong += prepare_hash_end(&h) != prepare_hash_end(&g);
    }
    uint64_t before = 0;
    for (int i = 0; i < TEXTS; i++) {   // numbers with zeros before them, and bytes of zeros of every length
        prepare_hash h;
        memset(&h, 0, sizeof h);
        memset(text, i % 2 ? '0' : 0, sizeof text);
        size_t n = i % 2 ? (size_t)snprintf(text, sizeof text, "%0*d", 1 + i % 40, i) : (size_t)i / 2 % 100;
        if (!(i % 2) && i >= 200) memcpy(text + 16 * (i % 3), &i, sizeof i), n = 100;
        prepare_hash_add(&h, text, n);
        uint64_t hash = prepare_hash_end(&h);
        again += prepare_seen(&p, hash) != 0;
        if (i % 1024 == 0) some[i / 1024] = hash;
        for (int k = 0; k < 64; k++) bits[k] += (int)((hash ^ before) >> k & 1);
        before = hash;
    }
    for (int i = 0; i < TEXTS / 1024; i++) wrong += prepare_seen(&p, some[i]) != 1;   // none is forgotten
    double worst_bit = 0;
    for (int k = 0; k < 64; k++) worst_bit = worst(worst_bit, fabs((double)bits[k] / TEXTS - 0.5));
    double slot = (double)p.seen_slots * 8 / (double)p.seen_count;
    check(wrong == 0 && again == 0 && worst_bit < 0.01 && p.seen_count == TEXTS && slot < 22,
        "prepare: different texts have different hashes, one text one",
        "%d of %d twice, each bit changes in "
        "%.3f to %.3f of cases, %.1f bytes each",
        again, TEXTS, 0.5 - worst_bit, 0.5 + worst_bit, slot);
    free(p.seen);
}

static void test_prepare(void) {
    if (test_data_begin("prepare") || test_bpe_begin()) return;
    test_prepare_html();
    test_prepare_html_files();
    test_prepare_json();
    test_prepare_make();
    test_prepare_threads();
    test_prepare_utf8();
    test_prepare_sides();
    test_prepare_reports();
    test_prepare_flows();
    test_prepare_refusals();
    test_prepare_hashes();
    for (int d = 0; d < TEST_PREPARE_DOCUMENTS; d++)
        for (int k = 0; k < test_prepare_documents[d].parts; k++)
            free(test_prepare_documents[d].part[k].text);
    int rc = nftw(test_data_folder, test_data_remove, 16, FTW_DEPTH | FTW_PHYS);
    rc = rc || nftw(test_bpe_folder, test_data_remove, 16, FTW_DEPTH | FTW_PHYS);
    check(rc == 0, "prepare: the tests' folders are removed", "%d", rc);
}

#endif
