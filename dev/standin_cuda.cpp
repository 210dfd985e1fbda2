/* standin_cuda.cpp: a stand-in for the CUDA runtime, cuBLASLt and NCCL, under which the whole host side of the GPU program runs
 * without a GPU.
 *
 *     sh dev/test_standin.sh                                   builds it and runs the tests (part standin of make test)
 *     STANDIN_GPUS=2 build/standin/train train --sp 2 ...      one run; its last line is what the stand-in saw
 *
 * Kernels do nothing, device memory is address space that nobody may touch, and what is copied to the host is bytes of 1: small
 * positive numbers of every type. What is real is the order of things. A stream is a sequence of operations in one of
 * STANDIN_QUEUES hardware queues of its GPU, which streams share in turn; a queue holds STANDIN_DEPTH operations, and a call that
 * finds it full waits with the lock of the GPU's context held, as the driver does, so that no other call of that GPU gets
 * through. A copy between GPUs takes both contexts' locks. A wait refers to what its event had last recorded when the wait was
 * called. When nothing moves for some seconds the heads of all queues are printed, and the exit status is 99.
 *
 * Order. Every operation has a vector clock with a place for each stream. An operation follows those before it in its stream,
 * those that a wait for an event brought into it, and those that the host thread that enqueued it has waited for (synchronise, or
 * a query that said "done"); a host thread learns what another knows by taking a mutex that the other had, or by being created or
 * joined. Hardware queues add no order: that two streams share one is luck. For every operation the bytes that it reads and
 * writes are known: of copies and fills from the call, of matrix products from their layouts, of the program's kernels from their
 * arguments, found by the kernel's registered name. Two that overlap, one of them a write, and that nothing puts in order are a
 * race, whatever happened in this run. Status 98.
 *
 * Not seen: what the host itself reads and writes, pageable host memory, CUB's radix sort, which rows of the embedding's gradient
 * a kernel adds to (its first stands for all), and anything inside a kernel. Order between hosts is that of their mutexes in this
 * run: it can hide a race at the end of a step, where hosts have waited for their GPUs, and nowhere else.
 *
 * Also counted: streams, events, handles, descriptions and memory that are not given back at exit, use of those that were, and
 * kernels of the program that this file does not know. Status 97.
 *
 * Environment: STANDIN_GPUS 2, STANDIN_QUEUES 8, STANDIN_DEPTH 1024; STANDIN_SLOW 3 (us that an operation takes at most, on
 * average half), STANDIN_HOST 0 (1: host threads are held up at random), STANDIN_SEED 1, STANDIN_ORDER 1 (0: no clocks),
 * STANDIN_FAIL 0 (K: the K-th call that enqueues something fails), STANDIN_LOSE 0 (K: a queue never gets beyond the K-th record).
 * To see that the checker sees: STANDIN_SITES=1 prints where the program waits, and records what is waited for;
 * STANDIN_DROP=ADDRESS ignores what is called there, STANDIN_DROP_EVERY=K every K-th wait, STANDIN_DROP_SYNC=1 what hosts learn
 * by waiting.
 */
#include <cublasLt.h>
#include <cuda.h>
#include <cuda_runtime.h>
#ifdef GPT2_SP_NCCL
#include <nccl.h>
#endif
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "standin_arguments.h"   // the structures of "--- arguments of attention ---" in train_gpt2_sp.cu

typedef uint64_t u64;
static u64 setting(const char* name, u64 otherwise) {
    const char* s = getenv(name);
    return s ? strtoull(s, NULL, 0) : otherwise;
}
static const int GPUS = (int)setting("STANDIN_GPUS", 2), QUEUES = (int)setting("STANDIN_QUEUES", 8);
static const size_t DEPTH = setting("STANDIN_DEPTH", 1024);
static const unsigned SLOW = (unsigned)setting("STANDIN_SLOW", 3),
                      HOST = (unsigned)setting("STANDIN_HOST", 0),
                      SEED = (unsigned)setting("STANDIN_SEED", 1);
static const bool ORDER = setting("STANDIN_ORDER", 1), LIST_SITES = setting("STANDIN_SITES", 0),
                  DROP_SYNC = setting("STANDIN_DROP_SYNC", 0);
static const u64 FAIL = setting("STANDIN_FAIL", 0);
static const u64 LOSE = setting("STANDIN_LOSE", 0);
static const u64 DROP = setting("STANDIN_DROP", 0), DROP_EVERY = setting("STANDIN_DROP_EVERY", 0);
enum { MAX_GPUS = 64, STATUS_LEAK = 97, STATUS_RACE = 98, STATUS_STUCK = 99 };

// ===== clocks ====================================================================================

typedef std::vector<unsigned>
    Clock;   // of stream i: how many of its operations are known to be done; missing: 0
static void join(Clock& a, const Clock& b) {
    if (a.size() < b.size()) a.resize(b.size());
    for (size_t i = 0; i < b.size(); i++) a[i] = std::max(a[i], b[i]);
}

struct Event {
    u64 recorded, done;   // records that were called; that the GPU has come to
    Clock clock;          // at the last record
    u64 site;             // that called it
    bool alive;
};
struct Op {
    enum { WORK, RECORD, WAIT, WAIT_BLINDLY } kind;   // blindly: waits, but promises no order
    Event* event;
    u64 version;
};
struct Queue {
    std::deque<Op> ops;
    u64 in, out;
    std::chrono::steady_clock::time_point busy;   // the head is under way until then
};
struct Stream {
    int gpu, id;
    Queue* queue;
    Clock clock;
    bool alive;
};

// One lock for all that is below. The contexts' locks, which a call may hold while it waits, are taken before
// it.
static std::mutex state;
static std::mutex context[MAX_GPUS];
static std::condition_variable moved;
static std::vector<Queue> queues;    // (GPUS, QUEUES)
static std::deque<Stream> streams;   // never freed: what is used after its end can be told
static std::deque<Event> events;
static Stream* null_stream[MAX_GPUS];
static int streams_of[MAX_GPUS];
static std::thread worker;
static bool ended;
static u64 calls, times_full, waits, operations;
static std::map<std::string, long> made;   // what was made less what was given back
static std::map<std::string, long> complaints;
struct Site {
    const char* kind;
    long calls, used;   // used: waits, and records that a stream waited for
};
static std::map<u64, Site> sites;   // where the program waits and records
static thread_local int current;
static thread_local cudaError_t last_error;
static thread_local Clock host;   // what this host thread knows to be done

static void complain(const std::string& what) {
    if (complaints[what]++ == 0 && complaints.size() < 20) fprintf(stderr, "standin: %s\n", what.c_str());
}

// ===== who touches what ==========================================================================

// `rows` rows of `width` bytes, `pitch` apart, that operation `count` of a stream reads or writes.
struct Access {
    u64 begin, end, pitch, width, rows;
    int stream;
    unsigned count;
    bool write, pageable;   // pageable: it may be memory of the host that CUDA does not know
    const char* name;
    u64 site;
};
struct Memory {   // an allocation: accesses that nothing later stands for
    u64 begin, end;
    std::vector<Access> accesses;
};
static std::map<u64, Memory> memory;   // by its end
static Memory* memory_of(u64 address) {
    auto it = memory.upper_bound(address);
    return it != memory.end() && address >= it->second.begin ? &it->second : NULL;
}

static bool row_meets(const Access& a, u64 begin, u64 end) {   // whether any row of a meets [begin, end)
    if (begin >= a.end || end <= a.begin) return false;
    u64 row = begin <= a.begin ? 0 : (begin - a.begin) / a.pitch;
    for (; row < a.rows && a.begin + row * a.pitch < end; row++)
        if (a.begin + row * a.pitch + a.width > begin) return true;
    return false;
}
static bool overlap(const Access& a, const Access& b) {
    if (a.begin >= b.end || b.begin >= a.end) return false;
    const Access &few = a.rows <= b.rows ? a : b, &many = a.rows <= b.rows ? b : a;
    if (a.pitch == b.pitch && a.rows > 1 && b.rows > 1) {   // columns of the same matrix
        u64 apart = (many.begin + many.pitch - few.begin % many.pitch) % many.pitch;
        return apart < few.width || apart + many.width > many.pitch;
    }
    for (u64 row = 0; row < few.rows; row++)
        if (row_meets(many, few.begin + row * few.pitch, few.begin + row * few.pitch + few.width))
            return true;
    return false;
}
static bool covers(const Access& a, const Access& b) {
    if (a.rows == 1) return a.begin <= b.begin && b.end <= a.end;
    return a.begin == b.begin && a.pitch == b.pitch && a.width >= b.width && a.rows >= b.rows;
}
static const char* stream_name(int id) {
    static thread_local char text[2][40];
    static thread_local int next;
    char* s = text[next++ % 2];
    snprintf(s, sizeof *text, "stream %d of GPU %d", id, streams[(size_t)id].gpu);
    return s;
}

// Compares an access with those before it. Those that come before it in order and that it covers need not be
// kept: what is not in order with them is not in order with it.
static void touch(Access x, const Clock& clock) {
    Memory* m = memory_of(x.begin);
    if (!ORDER || x.rows == 0 || x.width == 0) return;
    if (!m) {
        if (!x.pageable) complain(std::string(x.name) + " goes where nothing is allocated");
        return;
    }
    if (x.pitch == x.width || x.rows == 1) x.width += (x.rows - 1) * x.pitch, x.rows = 1, x.pitch = x.width;
    x.end = x.begin + (x.rows - 1) * x.pitch + x.width;
    if (x.end > m->end) complain(std::string(x.name) + " goes beyond its allocation");
    size_t kept = 0;
    for (Access& y : m->accesses) {
        bool keep = true;
        if (x.begin < y.end && y.begin < x.end) {
            bool ordered = (size_t)y.stream < clock.size() && clock[(size_t)y.stream] >= y.count;
            if (ordered) keep = !((x.write || !y.write) && covers(x, y));
            else if ((x.write || y.write) && overlap(x, y)) {
                char text[400];
                snprintf(text, sizeof text, "RACE: %s %s what %s %s", x.name, x.write ? "writes" : "reads",
                    y.name, y.write ? "writes" : "reads");
                if (!complaints.count(text))
                    fprintf(stderr,
                        "standin: bytes %llu..%llu of an arena on %s (0x%llx), %llu..%llu on %s (0x%llx):\n",
                        (unsigned long long)(x.begin - m->begin), (unsigned long long)(x.end - m->begin),
                        stream_name(x.stream), (unsigned long long)x.site,
                        (unsigned long long)(y.begin - m->begin), (unsigned long long)(y.end - m->begin),
                        stream_name(y.stream), (unsigned long long)y.site);
                complain(text);
            }
        }
        if (keep) m->accesses[kept++] = y;
    }
    m->accesses.resize(kept);
    m->accesses.push_back(x);
}

// What one operation touches, collected before it is enqueued.
struct Touches {
    const char* name;
    std::vector<Access> list;
    bool pageable;
    void add(const void* p, u64 width, bool write, u64 rows = 1, u64 pitch = 0) {
        if (p)
            list.push_back({(u64)p, 0, pitch ? pitch : width, width, rows, 0, 0, write, pageable, name, 0});
    }
    void reads(const void* p, u64 width, u64 rows = 1, u64 pitch = 0) { add(p, width, false, rows, pitch); }
    void writes(const void* p, u64 width, u64 rows = 1, u64 pitch = 0) { add(p, width, true, rows, pitch); }
    // heads of a (B, NH, T, HS) view whose heads are neighbours, as all of the program's are
    void view(const AttnView& v, u64 size, bool write, u64 B, u64 NH, u64 T, u64 HS) {
        for (u64 b = 0; b < B && v.p; b++)
            for (u64 h = 0; h < (v.head == (int64_t)HS ? 1 : NH); h++)
                add((char*)v.p + (b * (u64)v.batch + h * (u64)v.head) * size,
                    (v.head == (int64_t)HS ? NH : 1) * HS * size, write, T, (u64)v.token * size);
    }
    void rows(const AttnRows& v, bool write, u64 B, u64 NH, u64 T) {
        for (u64 b = 0; b < B && v.p; b++) add(v.p + b * (u64)v.batch, T * 4, write, NH, (u64)v.head * 4);
    }
};

// ----- the program's kernels: their arguments are listed where they are defined

struct Launch {
    void** arguments;
    dim3 grid;
    const char* mangled;
    template <typename T> const T& at(int i) const { return *(const T*)arguments[i]; }
    u64 n(int i) const { return (u64)at<int64_t>(i); }   // of an int64_t
    u64 k(int i) const { return (u64)at<int>(i); }       // of an int
    char* p(int i) const { return at<char*>(i); }
};
static void forward_touches(Touches& t, const AttnForward& a) {
    const AttnShape& s = a.s;
    u64 B = (u64)s.B, NH = (u64)s.NH, Tq = (u64)s.Tq, Tk = (u64)s.Tk, HS = (u64)s.HS;
    t.view(a.q, 2, false, B, NH, Tq, HS), t.view(a.k, 2, false, B, NH, Tk, HS),
        t.view(a.v, 2, false, B, NH, Tk, HS);
    t.reads(s.doc_start, Tq * 4, B, (u64)s.doc_batch * 4), t.writes(a.work, 4);
    for (int write = 0; write < 2; write++)
        if (write ? a.carry_out : a.carry_in)
            t.view(a.acc, 4, write, B, NH, Tq, HS), t.rows(a.m, write, B, NH, Tq),
                t.rows(a.l, write, B, NH, Tq);
    if (!a.carry_out) t.view(a.o, 2, true, B, NH, Tq, HS), t.rows(a.lse, true, B, NH, Tq);
}
static void backward_touches(Touches& t, const AttnBackward& a) {
    const AttnShape& s = a.s;
    u64 B = (u64)s.B, NH = (u64)s.NH, Tq = (u64)s.Tq, Tk = (u64)s.Tk, HS = (u64)s.HS,
        out = a.dkv_bf16 ? 2 : 4;
    t.view(a.q, 2, false, B, NH, Tq, HS), t.view(a.k, 2, false, B, NH, Tk, HS),
        t.view(a.v, 2, false, B, NH, Tk, HS);
    t.view(a.dout, 2, false, B, NH, Tq, HS), t.rows(a.lse, false, B, NH, Tq),
        t.rows(a.delta, false, B, NH, Tq);
    t.reads(s.doc_start, Tq * 4, B, (u64)s.doc_batch * 4), t.writes(a.work, 8);
    t.view(a.dq, 4, true, B, NH, Tq, HS), t.view(a.dk, out, true, B, NH, Tk, HS),
        t.view(a.dv, out, true, B, NH, Tk, HS);
}
struct HopperForward {
    CUtensorMap maps[4];   // q, k, v, o
    AttnForward a;
};
struct HopperBackward {
    CUtensorMap maps[5];   // q, k, v, dout, dq
    AttnBackward a;
};
struct Product {   // MatmulOperands, MatmulShape
    char *out, *a, *b, *c, *bias, *aux;
};
struct ProductShape {
    int64_t m, n, k;
    int transposed_a, transposed_b, flags;
};
struct Units {   // UnitArray
    char* p;
    int64_t stride;
};
struct Job {   // PackJob
    char* data;
    u64 width;
    int64_t rows;
    const char* source;
    u64 source_pitch;
};
struct Places {   // RowPlaces
    int64_t rows, first, begin, begin2, N;
};
struct Linear {   // FewLinear
    char *w, *bias, *in, *x, *gain, *shift, *out;
    int64_t out_row;
    char* read;
    int R, K, O;
};
struct FewOver {   // FewAttention
    char *qkv, *rows, *out, *share;
    int ranks, index, block;
    char *parts, *arrived, *read;
    int R, NH, HS;
};
enum { READ_BYTES = 68 };   // of a FewRead
enum { SUM_BLOCKS = 192, SQUARE_BLOCKS = 1024, BUCKET_ROWS = 64 };   // as in section 6 of the program

typedef void (*Decoder)(Touches& t, const Launch& x);
// clang-format off
static const struct { const char* name; Decoder decode; } decoders[] = {
    {"attention_forward_kernel",  [](Touches& t, const Launch& x) { forward_touches(t, x.at<HopperForward>(0).a); }},
    {"portable_forward_kernel",   [](Touches& t, const Launch& x) { forward_touches(t, x.at<AttnForward>(0)); }},
    {"attention_backward_kernel", [](Touches& t, const Launch& x) { backward_touches(t, x.at<HopperBackward>(0).a); }},
    {"portable_backward_kernel",  [](Touches& t, const Launch& x) { backward_touches(t, x.at<AttnBackward>(0)); }},
    {"attention_delta_kernel", [](Touches& t, const Launch& x) {   // dout, o, delta, T, HS
        u64 B = x.grid.z, NH = x.grid.y, T = x.k(3), HS = x.k(4);
        for (int i = 0; i < 2; i++) t.view(x.at<AttnView>(i), 2, false, B, NH, T, HS);
        t.rows(x.at<AttnRows>(2), true, B, NH, T); }},
    // acc, m, l, those of the other, o, lse, T, HS
    {"attention_merge_kernel", [](Touches& t, const Launch& x) {
        u64 B = x.grid.z, NH = x.grid.y, T = x.k(8), HS = x.k(9);
        bool ends = x.at<AttnView>(6).p != NULL;
        t.view(x.at<AttnView>(0), 4, !ends, B, NH, T, HS), t.view(x.at<AttnView>(3), 4, false, B, NH, T, HS);
        for (int i : {1, 2}) t.rows(x.at<AttnRows>(i), !ends, B, NH, T);
        for (int i : {4, 5}) t.rows(x.at<AttnRows>(i), false, B, NH, T);
        t.view(x.at<AttnView>(6), 2, true, B, NH, T, HS), t.rows(x.at<AttnRows>(7), true, B, NH, T); }},
    {"attention_dq_kernel", [](Touches& t, const Launch& x) {   // dq, out, scale, T, HS
        u64 B = x.grid.z, NH = x.grid.y, T = x.k(3), HS = x.k(4);
        t.view(x.at<AttnView>(0), 4, !x.at<AttnView>(1).p, B, NH, T, HS), t.view(x.at<AttnView>(1), 2, true, B, NH, T, HS); }},
    {"matmul_sample_kernel", [](Touches& t, const Launch& x) {   // samples, count, a, b, shape
        const ProductShape& s = x.at<ProductShape>(4);
        t.writes(x.p(0), x.k(1) * 32), t.reads(x.p(2), (u64)(s.m * s.k) * 2), t.reads(x.p(3), (u64)(s.k * s.n) * 2); }},
    // samples, count, c: its first number stands for all, fp32
    {"matmul_before_kernel", [](Touches& t, const Launch& x) {
        t.writes(x.p(0), x.k(1) * 32);
        if (x.p(2)) t.reads(x.p(2), 2); }},
    {"matmul_compare_kernel", [](Touches& t, const Launch& x) {   // out, samples, count, operands, shape
        const Product& p = x.at<Product>(3);
        const ProductShape& s = x.at<ProductShape>(4);
        t.writes(x.p(0), 16), t.reads(x.p(1), x.k(2) * 32), t.reads(p.out, (u64)(s.m * s.n) * (s.flags & 1 ? 4 : 2));
        if (p.bias) t.reads(p.bias, (u64)s.m * 2);
        if (p.aux) t.reads(p.aux, (u64)(s.m * s.n) * 2); }},
    {"rows_fill_kernel", [](Touches& t, const Launch& x) { t.writes(x.p(0), x.n(3) * 4, x.n(2), x.n(1) * 4); }},
    {"pause_kernel", [](Touches&, const Launch&) {}},
    {"rows_pack_kernel", [](Touches& t, const Launch& x) {   // jobs, of which grid.y are there
        for (u64 i = 0; i < x.grid.y; i++) {
            const Job& p = (&x.at<Job>(0))[i];
            t.writes(p.data, p.width * (u64)p.rows), t.reads(p.source, p.width, (u64)p.rows, p.source_pitch);
        } }},
    {"rows_add_kernel", [](Touches& t, const Launch& x) {   // out, its stride, inp, its stride, rows, columns
        t.writes(x.p(0), x.k(5) * 4, x.n(4), x.n(1) * 4), t.reads(x.p(2), x.k(5) * 4, x.n(4), x.n(3) * 4); }},
    {"sum_ranks_kernel", [](Touches& t, const Launch& x) {   // out, offers, world, at, n4, add
        for (u64 i = 0; i < x.k(2); i++) t.reads((&x.at<char*>(1))[i] + x.n(3) * 4, x.n(4) * 16);
        t.writes(x.p(0), x.n(4) * 16); }},
    // out, inp, rows, columns, out's stride, inp's
    {"center_columns_kernel", [](Touches& t, const Launch& x) {
        u64 size = strstr(x.mangled, "kernelIf") ? 4 : 2, n = x.k(2) * x.k(3);
        for (u64 y = 0; y < x.grid.y; y++)
            t.reads(x.p(1) + y * x.n(5) * 4, n * 4), t.writes(x.p(0) + y * x.n(4) * size, n * size); }},
    {"squares_kernel", [](Touches& t, const Launch& x) {   // out, g, n, count, stride
        t.writes(x.p(0), SQUARE_BLOCKS * 8), t.reads(x.p(1), x.n(2) * 4, x.k(3), x.n(4) * 4); }},
    {"squares_finish_kernel", [](Touches& t, const Launch& x) { t.writes(x.p(0) + 8, 8), t.reads(x.p(1), SQUARE_BLOCKS * 8); }},
    // stats, offers, world: two of each, three sums
    {"stats_finish_kernel", [](Touches& t, const Launch& x) {
        for (u64 i = 0; i < x.k(2); i++) t.reads((&x.at<char*>(1))[i], 16);
        t.writes(x.p(0) + 16, 24); }},
    {"adamw_kernel", [](Touches& t, const Launch& x) {   // w, half, m, v, g, stats, table, begin, n, a
        for (u64 y = 0; y < x.grid.y; y++) {
            for (int i : {0, 2, 3, 4}) {
                const Units& u = x.at<Units>(i);
                t.add(u.p + y * (u64)u.stride * 4, x.n(8) * 4, i != 4);
            }
            const Units& half = x.at<Units>(1);
            if (half.p) t.writes(half.p + y * (u64)half.stride * 2, x.n(8) * 2);
        }
        t.reads(x.p(5) + 16, 8), t.reads(x.p(9), x.grid.y * 64); }},   // a begins with the rates
    {"cast_kernel", [](Touches& t, const Launch& x) {   // half, w, table, n
        for (u64 y = 0; y < x.grid.y; y++) {
            const Units &half = x.at<Units>(0), &w = x.at<Units>(1);
            t.writes(half.p + y * (u64)half.stride * 2, x.n(3) * 2), t.reads(w.p + y * (u64)w.stride * 4, x.n(3) * 4);
        } }},
    {"loss_sum_kernel", [](Touches& t, const Launch& x) { t.writes(x.p(0), 8), t.reads(x.p(1), x.n(2) * 4); }},
    {"crossentropy_kernel", [](Touches& t, const Launch& x) {   // losses, hits, logits, labels, scale, V, Vp
        u64 R = x.grid.x;
        t.writes(x.p(0), R * 4), t.writes(x.p(1), R), t.writes(x.p(2), R * x.k(6) * 2), t.reads(x.p(3), R * 4); }},
    // partial, inp, wide: pointers and factors, R, N, pitch, all
    {"columns_kernel", [](Touches& t, const Launch& x) {
        bool wide = !strstr(x.mangled, "kernelILi0");
        for (u64 z = 0; z < x.grid.z; z++) {
            t.writes(x.p(0) + z * x.k(4) * 4, x.k(4) * 4, SUM_BLOCKS, x.k(6) * 4);
            // sums, what is to be added, its stride, its first column and the end: three of each
            if (wide) {
                const char* const* sums = &x.at<char*>(2);
                const int64_t* of_added = (const int64_t*)(sums + 6);
                t.reads(sums[z], x.n(3) * x.k(4) * 4);
                if (sums[3 + z])
                    t.reads(sums[3 + z], (u64)(of_added[6 + z] - of_added[3 + z]) * 4, x.n(3), (u64)of_added[z] * 4);
            }
            t.add(x.p(1) + z * x.k(4) * 2, x.k(4) * 2, wide, x.n(3), x.k(5) * 2);
        } }},
    {"columns_finish_kernel", [](Touches& t, const Launch& x) {   // targets, partial, blocks, width, N
        t.reads(x.p(1), x.k(2) * x.k(4) * 4);
        for (u64 i = 0; i * x.k(3) < x.k(4); i++) t.writes((&x.at<char*>(0))[i], x.k(3) * 4); }},
    {"gelu_forward_kernel", [](Touches& t, const Launch& x) { t.writes(x.p(0), x.n(2) * 2), t.reads(x.p(1), x.n(2) * 2); }},
    {"rmsnorm_forward_kernel", [](Touches& t, const Launch& x) {   // out, rstd, inp, weight, bias, R, C
        u64 R = x.n(5), C = x.k(6);
        t.writes(x.p(0), R * C * 2), t.writes(x.p(1), R * 4), t.reads(x.p(2), R * C * 2);
        t.reads(x.p(3), C * 4), t.reads(x.p(4), C * 4); }},
    // dx, partial, dout, inp, rstd, weight, add, R, C
    {"rmsnorm_backward_kernel", [](Touches& t, const Launch& x) {
        u64 R = x.n(7), C = x.k(8);
        t.writes(x.p(0), R * C * 2), t.writes(x.p(1), x.grid.x * 3 * C * 4), t.reads(x.p(2), R * C * 2);
        t.reads(x.p(3), R * C * 2), t.reads(x.p(4), R * 4), t.reads(x.p(5), C * 4); }},
    // x, tokens, doc_start, wte, wpe, center, places, R, C
    {"embedding_forward_kernel", [](Touches& t, const Launch& x) {
        const Places& places = x.at<Places>(6);
        u64 R = x.n(7), C = x.k(8);
        t.writes(x.p(0), R * C * 2), t.reads(x.p(1), R * 4), t.reads(x.p(2), R * 4);
        t.reads(x.p(3), C * 4), t.reads(x.p(4), (u64)places.N * C * 4); }},   // of wte one row: which ones the tokens say
    // dx, keys, rows, key_of, center, R, C
    {"embedding_center_kernel", [](Touches& t, const Launch& x) {
        u64 R = x.n(5);
        t.add(x.p(0), R * x.k(6) * 2, x.k(4)), t.writes(x.p(1), R * 4), t.writes(x.p(2), R * 4), t.reads(x.p(3), R * 4); }},
    // dweight, partial, dx, keys, rows, R, C
    {"embedding_backward_kernel", [](Touches& t, const Launch& x) {
        u64 R = x.n(5), C = x.k(6);
        t.writes(x.p(0), C * 4), t.writes(x.p(1), x.grid.x * 2 * C * 4), t.reads(x.p(2), R * C * 2), t.reads(x.p(3), R * 4);
        t.reads(x.p(4), R * 4); }},
    {"embedding_backward_finish_kernel", [](Touches& t, const Launch& x) {   // dweight, partial, keys, R, C
        t.writes(x.p(0), x.k(4) * 4), t.reads(x.p(1), x.grid.x * 2 * x.k(4) * 4), t.reads(x.p(2), x.n(3) * 4); }},
    {"position_backward_kernel", [](Touches& t, const Launch& x) {   // dwpe, dx, places, B, C
        const Places& p = x.at<Places>(2);
        u64 row = x.k(4) * 4;
        t.reads(x.p(1), x.n(3) * (u64)p.rows * x.k(4) * 2), t.writes(x.p(0) + (u64)p.begin * row, (u64)p.first * row);
        if (p.rows > p.first) t.writes(x.p(0) + (u64)(p.begin2 + p.first) * row, (u64)(p.rows - p.first) * row); }},
    // x, read, wte, wpe, own, center, C: one row of wte and wpe
    {"few_embed_kernel", [](Touches& t, const Launch& x) {
        t.writes(x.p(0), x.grid.x * x.k(6) * 4), t.reads(x.p(1), READ_BYTES);
        for (int i : {2, 3}) t.reads(x.p(i), x.k(6) * 4); }},
    {"few_widen_kernel", [](Touches& t, const Launch& x) { t.writes(x.p(0), x.k(2) * 4), t.reads(x.p(1), x.k(2) * 2); }},
    // NORM, HOW: store, GELU, add, logits. Where in a cache it stores the position says, so that row 0 stands for all
    {"few_linear_kernel", [](Touches& t, const Launch& x) {
        const Linear& p = x.at<Linear>(0);
        const int how = strstr(x.mangled, "kernelILi")[13] - '0', norm = strstr(x.mangled, "kernelILi")[9] == '1';
        u64 R = (u64)p.R, K = (u64)p.K, O = (u64)p.O;
        t.reads(p.w, K * O * 2), t.reads(p.bias, O * 2), t.reads(p.in, R * K * 2), t.reads(p.read, READ_BYTES);
        if (norm) t.reads(p.x, R * K * 4), t.reads(p.gain, K * 4), t.reads(p.shift, K * 4);
        if (how == 0) t.writes(p.out, O * 2, p.read ? 1 : R, (u64)p.out_row * 2);
        else if (how == 2) t.writes(p.x, R * O * 4);
        else t.writes(p.out, R * O * (how == 1 ? 2 : 4)); }},
    // of the cache one row, of the parts of blocks one block's
    {"few_attention_kernel", [](Touches& t, const Launch& x) {
        const FewOver& p = x.at<FewOver>(0);
        u64 R = (u64)p.R, NH = (u64)p.NH, C = NH * (u64)p.HS;
        t.reads(p.qkv, C * 6), t.reads(p.rows, R * C * 6), t.reads(p.read, READ_BYTES);
        t.writes(p.parts, R * (u64)(p.HS + 2) * 4), t.writes(p.arrived, NH * 4);
        if (p.share) t.writes(p.share, R * (C + 2 * NH) * 4);
        else t.writes(p.out, R * C * 2); }},
    {"parts_merge_kernel", [](Touches& t, const Launch& x) {   // out, offers, ranks, R, NH, HS
        u64 R = x.n(3), C = x.k(4) * x.k(5);
        for (u64 i = 0; i < x.k(2); i++) t.reads((&x.at<char*>(1))[i], R * (C + 2 * x.k(4)) * 4);
        t.writes(x.p(0), R * C * 2); }},
};
// clang-format on
struct Kernel {
    const char *mangled, *name;
    Decoder decode;
};
static std::map<const void*, Kernel>& kernels() {   // by the host's function; filled before main
    static std::map<const void*, Kernel> all;
    return all;
}

// ===== the GPUs ==================================================================================

// Takes operations from the heads of the queues, for all GPUs. It naps while nothing moves, so that queues
// fill.
static void work() {
    typedef std::chrono::steady_clock Time;
    std::mt19937 random(SEED);
    u64 seen = 0, records = 0;
    auto last = Time::now();
    for (;;) {
        bool progress = false, timed = false, pending = false;
        {
            std::lock_guard<std::mutex> lock(state);
            if (ended) return;
            auto now = Time::now();
            for (Queue& q : queues)
                for (int i = 0; i < 64 && !q.ops.empty(); i++) {
                    Op& op = q.ops.front();
                    if (q.busy > now) {
                        timed |= q.busy != Time::time_point::max();
                        break;
                    }
                    if (op.kind >= Op::WAIT && op.event->done < op.version) break;
                    if (op.kind == Op::RECORD && ++records == LOSE) {
                        q.busy = Time::time_point::max();
                        break;
                    }
                    if (op.kind == Op::RECORD) op.event->done = std::max(op.event->done, op.version);
                    if (op.kind == Op::WORK && SLOW && random() % 64 == 0)
                        q.busy = now + std::chrono::microseconds(random() % (SLOW * 64));
                    q.ops.pop_front();
                    q.out++, progress = true;
                }
            for (Queue& q : queues) pending |= !q.ops.empty();
            if (progress || timed || !pending || calls != seen) last = now, seen = calls;
            if (now - last > std::chrono::seconds(3)) {
                fprintf(stderr, "standin: nothing moves after %llu calls\n", (unsigned long long)calls);
                for (size_t i = 0; i < queues.size(); i++) {
                    if (queues[i].ops.empty()) continue;
                    const Op& op = queues[i].ops.front();
                    fprintf(stderr,
                        "  GPU %zu queue %zu: %zu operations, the first waits for record %llu of an event at "
                        "%llu of %llu\n",
                        i / (size_t)QUEUES, i % (size_t)QUEUES, queues[i].ops.size(),
                        (unsigned long long)op.version, (unsigned long long)(op.event ? op.event->done : 0),
                        (unsigned long long)(op.event ? op.event->recorded : 0));
                }
                _exit(STATUS_STUCK);
            }
        }
        if (progress) moved.notify_all();
        else std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
}

static void report() {
    {
        std::lock_guard<std::mutex> lock(state);
        ended = true;
    }
    worker.join();
    long leaks = 0, races = 0, others = 0;
    for (auto& x : made) {
        if (x.second) fprintf(stderr, "standin: %s: %ld not given back\n", x.first.c_str(), x.second);
        leaks += x.second != 0;
    }
    for (auto& x : complaints) (x.first.compare(0, 4, "RACE") ? others : races)++;
    for (auto& x : sites)
        if (LIST_SITES && x.second.used)
            fprintf(stderr, "standin: site 0x%llx %s %ld\n", (unsigned long long)x.first, x.second.kind,
                x.second.calls);
    fprintf(stderr,
        "standin: %llu operations, %llu times a queue was full, %ld kinds of races, %ld leaks, %ld other "
        "faults\n",
        (unsigned long long)operations, (unsigned long long)times_full, races, leaks, others);
    fflush(NULL);
    if (races) _exit(STATUS_RACE);
    if (leaks || others) _exit(STATUS_LEAK);
}

static Stream* stream_new(int gpu, int queue) {   // with the lock
    streams.push_back({gpu, (int)streams.size(), &queues[(size_t)(gpu * QUEUES + queue)], Clock(), true});
    return &streams.back();
}
static void start() {
    static std::once_flag once;
    std::call_once(once, [] {
        queues.resize((size_t)(GPUS * QUEUES));
        for (int i = 0; i < GPUS; i++) null_stream[i] = stream_new(i, 0);
        worker = std::thread(work);
        atexit(report);
    });
}
static Stream* stream_of(cudaStream_t s) {   // with the lock
    Stream* stream = s ? (Stream*)s : null_stream[current];
    if (!stream->alive) complain("a stream is used after its end");
    return stream;
}

// Enqueues an operation, with what it touches.
// What a stream is given while it is captured is noted, and enqueued by every launch of the graph.
struct Graph {
    std::vector<Touches> work;
};
static thread_local Graph* captured;
static thread_local cudaStream_t captured_stream;

static cudaError_t push(cudaStream_t s, int kind, Event* event, Touches* touches, int other, u64 site) {
    start();
    if (captured && s == captured_stream) {
        if (kind == Op::WORK) captured->work.push_back(*touches);
        else {
            std::lock_guard<std::mutex> lock(state);
            complain("an event is recorded or waited for in a captured stream");
        }
        return cudaSuccess;
    }
    static thread_local std::mt19937 random((unsigned)(uintptr_t)&random + SEED);
    if (HOST && random() % 400 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
    int a, b;
    {
        std::lock_guard<std::mutex> lock(state);
        a = stream_of(s)->gpu, b = other < 0 ? a : other;
    }
    std::unique_lock<std::mutex> first(context[std::min(a, b)]), second;
    if (a != b) second = std::unique_lock<std::mutex>(context[std::max(a, b)]);
    std::unique_lock<std::mutex> lock(state);
    Stream* stream = stream_of(s);
    Queue* q = stream->queue;
    if (++calls == FAIL) return last_error = cudaErrorLaunchFailure;
    if (event && !event->alive) complain("an event is used after its end");
    if (kind != Op::WORK && site) {
        Site& called = sites[site];
        called.kind = kind == Op::WAIT ? "wait" : "record", called.calls++, called.used += kind == Op::WAIT;
        if (kind == Op::WAIT && event->recorded && event->site) sites[event->site].used++;
        if (site == DROP) return cudaSuccess;
        if (kind == Op::WAIT && DROP_EVERY && ++waits % DROP_EVERY == 0) return cudaSuccess;
    }
    if (q->ops.size() >= DEPTH) times_full++;
    while (q->ops.size() >= DEPTH) moved.wait(lock);
    operations++;
    size_t id = (size_t)stream->id;
    if (ORDER) {
        if (stream->clock.size() <= id) stream->clock.resize(id + 1);
        join(stream->clock, host);
        stream->clock[id]++;
    }
    u64 version = 0;
    if (kind == Op::RECORD) version = ++event->recorded, event->clock = stream->clock, event->site = site;
    if (kind >= Op::WAIT) version = event->recorded;
    if (kind == Op::WAIT) join(stream->clock, event->clock);
    if (touches && ORDER)
        for (Access& x : touches->list) {
            x.stream = stream->id, x.count = stream->clock[id], x.site = site;
            touch(x, stream->clock);
        }
    q->ops.push_back({(decltype(Op::kind))kind, event, version});
    q->in++;
    return cudaSuccess;
}
static void learn(const Clock& clock) {
    if (!DROP_SYNC && ORDER) join(host, clock);
}
static void drain(
    std::unique_lock<std::mutex>& lock, Stream* s) {   // waits for what is in the stream's queue now
    u64 to = s->queue->in;
    Clock clock = s->clock;
    while (s->queue->out < to) moved.wait(lock);
    learn(clock);
}
static void count(const char* what, long n) {
    std::lock_guard<std::mutex> lock(state);
    made[what] += n;
}
static void copy_touches(
    Touches& t, void* to, const void* from, size_t width, size_t rows, size_t to_pitch, size_t from_pitch) {
    t.reads(from, width, rows, from_pitch), t.writes(to, width, rows, to_pitch);
}
#define SITE ((u64)__builtin_return_address(0))

// ===== the runtime's functions ===================================================================

extern "C" {
cudaError_t cudaSetDevice(int d) { return current = d, cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { return *d = current, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* n) { return *n = GPUS, cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 1, cudaSuccess; }
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr a, int) {   // a Hopper
    *value = a == cudaDevAttrComputeCapabilityMajor    ? 9
        : a == cudaDevAttrComputeCapabilityMinor       ? 0
        : a == cudaDevAttrMultiProcessorCount          ? 132
        : a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 232448
        : a == cudaDevAttrMaxSharedMemoryPerBlock      ? 49152
        : a == cudaDevAttrMaxGridDimX                  ? 2147483647
                                                       : 1;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) { return memset(p, 0, sizeof *p), cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* low, int* high) {
    return *low = 0, *high = -1, cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
    memset(a, 0, sizeof *a);
    a->ptxVersion = a->binaryVersion = 80;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* n, const void*, int, size_t, unsigned) {
    return *n = 1, cudaSuccess;
}
static CUresult tensor_map_encode(...) { return CUDA_SUCCESS; }
#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(
    const char*, void** f, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* found) {
#else
cudaError_t cudaGetDriverEntryPoint(
    const char*, void** f, unsigned long long, cudaDriverEntryPointQueryResult* found) {
#endif
    return *f = (void*)tensor_map_encode, *found = cudaDriverEntryPointSuccess, cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in"; }
cudaError_t cudaGetLastError() {
    cudaError_t status = last_error;
    return last_error = cudaSuccess, status;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

// --- streams and events ---
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) {
    start();
    std::lock_guard<std::mutex> in(context[current]), lock(state);
    *s = (cudaStream_t)stream_new(current, streams_of[current]++ % QUEUES);
    made["streams"]++;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    std::lock_guard<std::mutex> lock(state);
    stream_of(s)->alive = false;
    made["streams"]--;
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
    start();
    std::lock_guard<std::mutex> lock(state);
    Stream* stream = stream_of(s);
    if (!stream->queue->ops.empty()) return cudaErrorNotReady;
    learn(stream->clock);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    start();
    std::unique_lock<std::mutex> lock(state);
    drain(lock, stream_of(s));
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    start();
    std::unique_lock<std::mutex> lock(state);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i].gpu == current) drain(lock, &streams[i]);
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
    std::lock_guard<std::mutex> lock(state);
    events.push_back({0, 0, Clock(), 0, true});
    *e = (cudaEvent_t)&events.back();
    made["events"]++;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    std::lock_guard<std::mutex> lock(state);
    if (!((Event*)e)->alive) complain("an event is used after its end");
    ((Event*)e)->alive = false;
    made["events"]--;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    return push(s, Op::RECORD, (Event*)e, NULL, -1, SITE);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    return push(s, Op::WAIT, (Event*)e, NULL, -1, SITE);
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
    std::lock_guard<std::mutex> lock(state);
    if (((Event*)e)->done < ((Event*)e)->recorded) return cudaErrorNotReady;
    learn(((Event*)e)->clock);
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    std::unique_lock<std::mutex> lock(state);
    Clock clock = ((Event*)e)->clock;
    u64 to = ((Event*)e)->recorded;
    while (((Event*)e)->done < to) moved.wait(lock);
    learn(clock);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { return *ms = 0.01f, cudaSuccess; }

// --- memory ---
static void memory_add(void* p, size_t bytes, const char* what) {
    std::lock_guard<std::mutex> lock(state);
    memory[(u64)p + bytes] = {(u64)p, (u64)p + bytes, {}};
    made[what]++;
}
// Freed memory must be done with, as far as the host that frees it knows.
static size_t memory_remove(void* p, const char* what) {
    std::lock_guard<std::mutex> lock(state);
    Memory* m = memory_of((u64)p);
    if (!m) return complain("memory is freed that was not allocated"), (size_t)0;
    for (const Access& x : m->accesses)
        if (host.size() <= (size_t)x.stream || host[(size_t)x.stream] < x.count)
            complain(std::string("RACE: memory is freed that ") + x.name + (x.write ? " writes" : " reads"));
    size_t bytes = m->end - m->begin;
    memory.erase(m->end);
    made[what]--;
    return bytes;
}
cudaError_t cudaMalloc(void** p, size_t n) {
    start();
    *p = mmap(0, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*p == MAP_FAILED) return cudaErrorMemoryAllocation;
    memory_add(*p, n, "device memory");
    return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
    if (!p) return cudaSuccess;
    size_t bytes = memory_remove(p, "device memory");
    if (bytes) munmap(p, bytes);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void** p, size_t n) {
    *p = calloc(n, 1);
    memory_add(*p, n, "pinned memory");
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
    if (p && memory_remove(p, "pinned memory")) free(p);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* left, size_t* total) {
    return *left = *total = (size_t)140 << 30, cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind kind, cudaStream_t s) {
    Touches t = {"a copy", {}, true};
    copy_touches(t, to, from, n, 1, n, n);
    cudaError_t status = push(s, Op::WORK, NULL, &t, -1, SITE);
    if (kind == cudaMemcpyDeviceToHost) memset(to, 1, n);
    return status;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind kind) {
    Touches t = {"a blocking copy", {}, true};
    copy_touches(t, to, from, n, 1, n, n);
    push(0, Op::WORK, NULL, &t, -1, SITE);
    if (kind == cudaMemcpyDeviceToHost) memset(to, 1, n);
    return cudaStreamSynchronize(0);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
    size_t rows, cudaMemcpyKind, cudaStream_t s) {
    Touches t = {"a copy of rows", {}, false};
    copy_touches(t, to, from, width, rows, to_pitch, from_pitch);
    return push(s, Op::WORK, NULL, &t, -1, SITE);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int other, size_t n, cudaStream_t s) {
    Touches t = {"a copy from a peer", {}, false};
    copy_touches(t, to, from, n, 1, n, n);
    return push(s, Op::WORK, NULL, &t, other, SITE);
}
cudaError_t cudaMemsetAsync(void* p, int, size_t n, cudaStream_t s) {
    Touches t = {"a fill", {}, false};
    t.writes(p, n);
    return push(s, Op::WORK, NULL, &t, -1, SITE);
}
cudaError_t cudaMemset(void* p, int, size_t n) {
    Touches t = {"a blocking fill", {}, false};
    t.writes(p, n);
    push(0, Op::WORK, NULL, &t, -1, SITE);
    return cudaStreamSynchronize(0);
}

// --- graphs: a graph and what is made from it are the list of its work ---
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    return captured = new Graph, captured_stream = s, count("graphs", 1), cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    *graph = (cudaGraph_t)captured;
    return captured = NULL, cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made_of, cudaGraph_t graph, unsigned long long) {
    *made_of = (cudaGraphExec_t) new Graph(*(Graph*)graph);
    return count("graphs to launch", 1), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t s) {
    for (Touches t : ((Graph*)graph)->work) {
        cudaError_t status = push(s, Op::WORK, NULL, &t, -1, SITE);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return delete (Graph*)graph, count("graphs", -1), cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    return delete (Graph*)graph, count("graphs to launch", -1), cudaSuccess;
}

// --- kernels: how nvcc's host code registers and launches them ---
static cudaError_t launch(const void* function, dim3 grid, void** arguments, cudaStream_t s, u64 site) {
    Kernel& k = kernels()[function];
    Touches t = {k.name ? k.name : "an unknown kernel", {}, false};
    if (!k.decode && !(k.mangled && strstr(k.mangled, "cub"))) {
        std::lock_guard<std::mutex> lock(state);
        complain(std::string("a kernel is not in the table of decoders: ") + (k.mangled ? k.mangled : "?"));
    }
    if (k.decode && ORDER) k.decode(t, {arguments, grid, k.mangled});
    return push(s, Op::WORK, NULL, &t, -1, site);
}
cudaError_t __cudaGetKernel(cudaKernel_t* k, const void* f) { return *k = (cudaKernel_t)f, cudaSuccess; }
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 grid, dim3, void** arguments, size_t, cudaStream_t s) {
    return launch((const void*)k, grid, arguments, s, SITE);
}
cudaError_t cudaLaunchKernel(const void* f, dim3 grid, dim3, void** arguments, size_t, cudaStream_t s) {
    return launch(f, grid, arguments, s, SITE);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void** arguments) {
    return launch(f, c->gridDim, arguments, c->stream, SITE);
}
static thread_local struct {
    dim3 grid, block;
    size_t bytes;
    cudaStream_t stream;
} configured;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t bytes, cudaStream_t s) {
    return configured.grid = grid, configured.block = block, configured.bytes = bytes, configured.stream = s,
           0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* bytes, void* s) {
    *grid = configured.grid, *block = configured.block, *bytes = configured.bytes,
    *(cudaStream_t*)s = configured.stream;
    return cudaSuccess;
}
void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(
    void**, const char* host_function, char*, const char* mangled, int, void*, void*, void*, void*, int*) {
    Kernel k = {mangled, NULL, NULL};
    size_t longest = 0;
    for (auto& d : decoders)   // the name with its length, as it is mangled: one name may end with another
        if (strstr(mangled, (std::to_string(strlen(d.name)) + d.name).c_str()) && strlen(d.name) > longest)
            k.name = d.name, k.decode = d.decode, longest = strlen(d.name);
    kernels()[(const void*)host_function] = k;
}

// --- cuBLASLt ---
struct Layout {
    u64 columns, ld, size;
};
struct Description {
    u64 aux_ld;
    void *bias, *aux;
    cublasLtEpilogue_t epilogue;
};
#undef cublasLtCreate
cublasStatus_t cublasLtCreate(cublasLtHandle_t* h) {
    return *h = (cublasLtHandle_t)8, count("cuBLASLt handles", 1), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t) {
    return count("cuBLASLt handles", -1), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(
    cublasLtMatrixLayout_t* l, cudaDataType type, uint64_t, uint64_t columns, int64_t ld) {
    *l = (cublasLtMatrixLayout_t) new Layout{columns, (u64)ld, type == CUDA_R_32F ? 4ull : 2ull};
    return count("matrix layouts", 1), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    delete (Layout*)l;
    return count("matrix layouts", -1), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t, cudaDataType_t) {
    *d = (cublasLtMatmulDesc_t) new Description{0, NULL, NULL, CUBLASLT_EPILOGUE_DEFAULT};
    return count("matrix products", 1), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    delete (Description*)d;
    return count("matrix products", -1), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(
    cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, const void* p, size_t n) {
    Description* x = (Description*)d;
    void* to = a == CUBLASLT_MATMUL_DESC_BIAS_POINTER    ? (void*)&x->bias
        : a == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER ? (void*)&x->aux
        : a == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD      ? (void*)&x->aux_ld
        : a == CUBLASLT_MATMUL_DESC_EPILOGUE             ? (void*)&x->epilogue
                                                         : NULL;
    if (to) memcpy(to, p, n);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* p) {
    return *p = (cublasLtMatmulPreference_t)8, count("preferences", 1), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t) {
    return count("preferences", -1), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void*, size_t) {
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
    cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
    cublasLtMatmulHeuristicResult_t* found, int* n) {
    memset(found, 0, 2 * sizeof *found);
    return *n = 2, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
    cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t*,
    cublasLtMatmulHeuristicResult_t* result) {
    memset(result, 0, sizeof *result);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(
    const cublasLtMatmulAlgo_t*, cublasLtMatmulAlgoConfigAttributes_t, void*, size_t, size_t* written) {
    return *written = 0, CUBLAS_STATUS_SUCCESS;   // the caller's own numbers: a sum that is not split
}
size_t cublasLtGetVersion(void) { return 1; }
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const void*, const void* a,
    cublasLtMatrixLayout_t la, const void* b, cublasLtMatrixLayout_t lb, const void* beta, const void* c,
    cublasLtMatrixLayout_t lc, void* d, cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t*,
    void* workspace, size_t bytes, cudaStream_t s) {
    const Description* x = (const Description*)operation;
    const Layout* out = (const Layout*)ld;
    Touches t = {"a matrix product", {}, false};
    auto extent = [](cublasLtMatrixLayout_t l) {
        return ((const Layout*)l)->columns * ((const Layout*)l)->ld * ((const Layout*)l)->size;
    };
    t.reads(a, extent(la)), t.reads(b, extent(lb)), t.writes(d, extent(ld)), t.writes(workspace, bytes);
    if (*(const float*)beta != 0) t.reads(c, extent(lc));
    if (x->epilogue == CUBLASLT_EPILOGUE_BIAS || x->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS ||
        x->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS)
        t.reads(x->bias, out->ld * 2);
    if (x->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS || x->epilogue == CUBLASLT_EPILOGUE_DGELU)
        t.add(x->aux, x->aux_ld * out->columns * 2, x->epilogue != CUBLASLT_EPILOGUE_DGELU);
    return push(s, Op::WORK, NULL, &t, -1, SITE) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                                : CUBLAS_STATUS_EXECUTION_FAILED;
}

// --- NCCL, among the ranks of this process ---
//
// A group is enqueued when every rank that it concerns has made its call; until then it is "in progress". It
// begins when they have all come to theirs. What is received follows what its sender did before; a sender
// learns nothing of the receiver, since what is small is buffered.
#ifdef GPT2_SP_NCCL
struct Call {
    enum { SEND, RECEIVE, GATHER, REDUCE } kind;
    int peer;
    const void* from;
    void* to;
    u64 bytes;   // that one rank has, or gets
};
struct Group {
    std::vector<Call> calls;
    Event* start;
    cudaStream_t stream;
    u64 site;
};
typedef std::pair<Event*, u64> Post;   // the start of a group, and the bytes of the call
struct Meeting {
    int world;
    std::map<std::pair<int, int>, std::deque<Post>> sends, receives;   // by from and to
    std::vector<std::deque<Post>> collectives;                         // of each rank
};
struct Comm {
    Meeting* meeting;
    int rank;
    std::deque<Group> pending;
    u64 seen;                                            // collectives that went through
    std::map<std::pair<int, int>, u64> sent, received;   // by from and to
};
static std::map<std::string, Meeting*> meetings;
static thread_local int group_depth;
static thread_local Comm* group_comm;
static thread_local Group group;

// The posts of all that a group concerns, if they are all there. Posts stay where they are: each side finds
// them by number.
static bool group_ready(Comm* c, const Group& g, std::vector<std::pair<Event*, bool>>& waits_for) {
    Meeting* m = c->meeting;
    u64 seen = c->seen;
    auto sent = c->sent, received = c->received;
    for (const Call& call : g.calls) {
        if (call.kind == Call::SEND || call.kind == Call::RECEIVE) {
            bool send = call.kind == Call::SEND;
            std::pair<int, int> way =
                send ? std::make_pair(c->rank, call.peer) : std::make_pair(call.peer, c->rank);
            std::deque<Post>& others = send ? m->receives[way] : m->sends[way];
            u64& number = send ? sent[way] : received[way];
            if (others.size() <= number) return false;
            if (others[number].second != call.bytes)
                complain("NCCL: a receive of other bytes than the send has");
            waits_for.push_back({others[number++].first, !send});
            continue;
        }
        for (int i = 0; i < m->world; i++) {
            if (m->collectives[(size_t)i].size() <= seen) return false;
            if (m->collectives[(size_t)i][seen].second != call.bytes * 2 + (call.kind == Call::REDUCE))
                complain("NCCL: the ranks differ in what they gather or reduce");
            if (i != c->rank) waits_for.push_back({m->collectives[(size_t)i][seen].first, true});
        }
        seen++;
    }
    c->seen = seen, c->sent = sent, c->received = received;
    return true;
}
static ncclResult_t group_post(Comm* c, Group& g) {
    {
        std::lock_guard<std::mutex> lock(state);
        events.push_back({0, 0, Clock(), 0, true});
        g.start = &events.back();
    }
    if (push(g.stream, Op::RECORD, g.start, NULL, -1, 0) != cudaSuccess) return ncclUnhandledCudaError;
    std::lock_guard<std::mutex> lock(state);
    Meeting* m = c->meeting;
    for (const Call& call : g.calls)
        if (call.kind == Call::SEND) m->sends[{c->rank, call.peer}].push_back({g.start, call.bytes});
        else if (call.kind == Call::RECEIVE)
            m->receives[{call.peer, c->rank}].push_back({g.start, call.bytes});
        else
            m->collectives[(size_t)c->rank].push_back(
                {g.start, call.bytes * 2 + (call.kind == Call::REDUCE)});
    c->pending.push_back(g);
    g = Group();
    return ncclInProgress;
}
static ncclResult_t group_add(Comm* c, Call call, cudaStream_t stream, u64 site) {
    group.calls.push_back(call), group.stream = stream, group.site = site;
    group_comm = c;
    return group_depth ? ncclSuccess : group_post(c, group);
}
static u64 size_of(ncclDataType_t type) { return type == ncclInt8 ? 1 : type == ncclFloat64 ? 8 : 4; }
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    static std::atomic<int> number;
    memset(id, 0, sizeof *id);
    snprintf((char*)id, sizeof *id, "meeting %d", ++number);
    return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int world, ncclUniqueId id, int rank, ncclConfig_t*) {
    std::lock_guard<std::mutex> lock(state);
    Meeting*& m = meetings[(const char*)&id];
    if (!m) m = new Meeting(), m->world = world, m->collectives.resize((size_t)world);
    Comm* c = new Comm();
    c->meeting = m, c->rank = rank;
    *comm = (ncclComm_t)c;
    made["communicators"]++;
    return ncclInProgress;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
    std::lock_guard<std::mutex> lock(state);
    delete (Comm*)comm;
    made["communicators"]--;
    return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* result) {
    Comm* c = (Comm*)comm;
    *result = ncclSuccess;
    while (!c->pending.empty()) {
        Group& g = c->pending.front();
        std::vector<std::pair<Event*, bool>> waits_for;
        {
            std::lock_guard<std::mutex> lock(state);
            if (!group_ready(c, g, waits_for)) return *result = ncclInProgress, ncclSuccess;
        }
        Touches t = {"NCCL", {}, false};
        u64 world = (u64)c->meeting->world;
        for (const Call& call : g.calls)
            t.reads(call.from, call.bytes * (call.kind == Call::REDUCE ? world : 1)),
                t.writes(call.to, call.bytes * (call.kind == Call::GATHER ? world : 1));
        for (auto& other : waits_for)
            push(g.stream, other.second ? Op::WAIT : Op::WAIT_BLINDLY, other.first, NULL, -1, 0);
        if (push(g.stream, Op::WORK, NULL, &t, -1, g.site) != cudaSuccess) *result = ncclUnhandledCudaError;
        c->pending.pop_front();
    }
    return ncclSuccess;
}
ncclResult_t ncclGroupStart() { return group_depth++, ncclSuccess; }
ncclResult_t ncclGroupEnd() {
    if (--group_depth > 0 || group.calls.empty()) return ncclSuccess;
    return group_post(group_comm, group);
}
ncclResult_t ncclSend(const void* p, size_t n, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t s) {
    return group_add((Comm*)c, {Call::SEND, peer, p, NULL, n * size_of(type)}, s, SITE);
}
ncclResult_t ncclRecv(void* p, size_t n, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t s) {
    return group_add((Comm*)c, {Call::RECEIVE, peer, NULL, p, n * size_of(type)}, s, SITE);
}
ncclResult_t ncclAllGather(
    const void* from, void* to, size_t n, ncclDataType_t type, ncclComm_t c, cudaStream_t s) {
    return group_add((Comm*)c, {Call::GATHER, -1, from, to, n * size_of(type)}, s, SITE);
}
ncclResult_t ncclReduceScatter(
    const void* from, void* to, size_t n, ncclDataType_t type, ncclRedOp_t, ncclComm_t c, cudaStream_t s) {
    return group_add((Comm*)c, {Call::REDUCE, -1, from, to, n * size_of(type)}, s, SITE);
}
const char* ncclGetErrorString(ncclResult_t) { return "an error of the stand-in"; }
const char* ncclGetLastError(ncclComm_t) { return "an error of the stand-in"; }
#endif
}

// ===== host threads ==============================================================================
//
// objcopy gives the program's calls of these names the prefix standin_.

extern "C" {
static std::map<const void*, Clock>
    passed;   // what a mutex, or a thread that ended, has to tell; under the lock
static void tell(const void* to) {
    std::lock_guard<std::mutex> lock(state);
    join(passed[to], host);
}
static void hear(const void* from) {
    std::lock_guard<std::mutex> lock(state);
    auto it = passed.find(from);
    if (it != passed.end()) join(host, it->second);
}
int standin_pthread_mutex_lock(pthread_mutex_t* m) {
    int status = pthread_mutex_lock(m);
    return hear(m), status;
}
int standin_pthread_mutex_timedlock(pthread_mutex_t* m, const struct timespec* until) {
    int status = pthread_mutex_timedlock(m, until);
    if (status == 0) hear(m);
    return status;
}
int standin_pthread_mutex_unlock(pthread_mutex_t* m) { return tell(m), pthread_mutex_unlock(m); }
int standin_pthread_cond_wait(pthread_cond_t* c, pthread_mutex_t* m) {
    tell(m);
    int status = pthread_cond_wait(c, m);
    return hear(m), status;
}
int standin_pthread_cond_timedwait(pthread_cond_t* c, pthread_mutex_t* m, const struct timespec* until) {
    tell(m);
    int status = pthread_cond_timedwait(c, m, until);
    return hear(m), status;
}
struct Thread {
    void* (*function)(void*);
    void* argument;
    Clock host;
};
static void* thread_main(void* p) {
    Thread* t = (Thread*)p;
    void* (*function)(void*) = t->function;
    void* argument = t->argument;
    host = t->host;
    delete t;
    void* result = function(argument);
    tell((const void*)pthread_self());
    return result;
}
int standin_pthread_create(
    pthread_t* thread, const pthread_attr_t* a, void* (*function)(void*), void* argument) {
    return pthread_create(thread, a, thread_main, new Thread{function, argument, host});
}
int standin_pthread_join(pthread_t thread, void** result) {
    int status = pthread_join(thread, result);
    return hear((const void*)thread), status;
}
}
