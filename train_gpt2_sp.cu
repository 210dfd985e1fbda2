/* gpt2_sp on the GPU: the program of train_gpt2_sp.c, which this file includes whole, with the model's work
 * done by CUDA kernels.
 *
 *     make train_gpt2_spcu
 *     ./train_gpt2_spcu train --data shards --out runs/a --model d12 --seq-len 32768 --recompute attn
 *     ./train_gpt2_spcu train --data shards --model d12 --seq-len 1024 --verify 1     compares with the CPU
 *
 * Contents (`grep -n '^// =====' train_gpt2_sp.cu` prints them with their lines)
 *      1. errors and files               9. optimizer
 *         a rank's GPU                  10. trainer
 *      4. transports                    11. checkpoints
 *      6. parameters and memory plan    12. evaluation and sampling
 *      7. layers (forward, backward)    13. plan
 *      8. model                         14. training loop
 *                                       15. commands and main
 * The numbers and titles are the .c's; a section here holds what is different on a GPU: how ranks reach each
 * other (4), where the memory is (6), the kernels (7), the order in which they run (8), the update (9).
 * Options (2), shards and loader (3) and schedules (5) are the .c's alone, and so are letters, formats and
 * logs. The .c calls this file through one table of functions, GPU_DEVICE, just before main.
 *
 * Numbers. Master weights, gradients and AdamW's moments are fp32, in the .c's layout of units. Matrix
 * products read bf16, of the weights a bf16 copy, and sum in fp32; a weight's gradient is added in fp32 by
 * the product itself (D = A B + D). The residual stream is bf16: the fp32 epilogue of a product does each of
 * the 2L additions and rounds once, which halves what recomputation keeps and what the norms read.
 * Embeddings and the norms' gains and biases are read in fp32; log-sum-exp and the norms' 1/rms are fp32.
 *
 * --center 1. The .c centres the rows that a projection adds to the residual stream. Here the projection's
 * weights and bias are centred over their outputs instead, once a step, when they are rounded to bf16; so are
 * their gradients, before the norm is taken. The mathematics is the same, and no kernel of a layer does more
 * work for it. Only the embedding is centred row by row.
 *
 * Memory. One cudaMalloc, laid out by one function that `plan` walks too. Buffers share memory where one is
 * dead before the other is written (section 6).
 */
#include <cub/device/device_radix_sort.cuh>
#include <cublasLt.h>
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <vector>

#ifdef GPT2_SP_NCCL
#include <nccl.h>
#endif

#define GPT2_SP_NO_MAIN
#define GPT2_SP_LOGITS_CHUNK 8192
#define GPT2_SP_DEVICE GPU_DEVICE
#include "train_gpt2_sp.c"

// ===== 1. errors and files ======================================================================

// Calls CUDA, or cuBLASLt. If the call fails, the function returns -1 with the call and the reason in e.
#define CUDA_TRY(e, call) \
    do { \
        cudaError_t status_ = (call); \
        if (status_ != cudaSuccess) return fail(e, "%s: %s", #call, cudaGetErrorString(status_)); \
    } while (0)
#define LT_TRY(e, call) \
    do { \
        cublasStatus_t status_ = (call); \
        if (status_ != CUBLAS_STATUS_SUCCESS) return fail(e, "%s: cuBLASLt status %d", #call, (int)status_); \
    } while (0)

// ===== a rank's GPU =============================================================================
//
// What a rank has on its GPU is one struct, Gpu: streams, events, the way to its peers, and memory. Before it
// stand the types that it holds.

typedef __nv_bfloat16 bf16;

// --- arguments of attention ---
enum { ATTN_AUTO, ATTN_PORTABLE };   // kernels: the best for this GPU and shape, or the portable ones
// A (B, NH, T, HS) tensor in place. Strides count numbers; the HS numbers of a token are neighbours.
struct AttnView {
    void* p;   // NULL = absent
    int64_t token, head, batch;

    // Where in p the numbers of token t of head h of sequence b begin.
    __device__ int64_t index(int64_t b, int64_t h, int64_t t) const {
        return b * batch + h * head + t * token;
    }
    // The first number of that head; number d of that token. E: bf16 or float.
    template <class E> __device__ E* of(int64_t b, int64_t h) const { return (E*)p + b * batch + h * head; }
    template <class E> __device__ E* at(int64_t b, int64_t h, int64_t t, int d) const {
        return (E*)p + index(b, h, t) + d;
    }
};
// A (B, NH, T) fp32 tensor, a number for each row of attention.
struct AttnRows {
    float* p;   // NULL = absent
    int64_t head, batch;

    // The first number of head h of sequence b; that of token t.
    __device__ float* of(int64_t b, int64_t h) const { return p + b * batch + h * head; }
    __device__ float* at(int64_t b, int64_t h, int64_t t) const { return p + b * batch + h * head + t; }
};
struct AttnShape {
    int B, NH, Tq, Tk;
    int q_pos, k_pos;       // absolute position of query row 0 and key row 0
    int causal;             // 1: key j is visible to query i only if j <= i
    float scale;            // > 0, 1/sqrt(HS) as a rule
    const int* doc_start;   // (B, Tq) absolute position of the first token of each row's document, which does
                            // not decrease along a sequence; or NULL
    int64_t doc_batch;      // batch stride of doc_start
    int HS = 64;            // head size: a multiple of 16 from 32 to 128
    int path = ATTN_AUTO;   // or ATTN_PORTABLE

    // doc_start of sequence b (Tq), or NULL.
    __device__ const int* doc(int b) const { return doc_start ? doc_start + b * doc_batch : NULL; }
};
// What attention over some of the keys leaves for the others: fp32 O~, and for each row the
// exponent offset (base 2, -inf = nothing seen) and the sum.
struct AttnCarry {
    AttnView acc;
    AttnRows m, l;
};
struct AttnForward {
    AttnShape s;
    AttnView q, k, v;   // bf16 (B, NH, Tq|Tk, HS)
    AttnView o;         // bf16 out, or absent
    AttnRows lse;       // out, natural log, or absent
    AttnView acc;       // fp32 carry O~; with m and l, read if carry_in, written if carry_out
    AttnRows m, l;      // fp32 carry: exponent offset (base 2, -inf = nothing seen) and sum
    int carry_in, carry_out;
    int* work;   // >= 4 bytes of device memory, zero before the first call, which every call leaves zero: the
                 // counter of tiles
};
struct AttnBackward {
    AttnShape s;
    AttnView q, k, v, dout;   // bf16
    AttnRows lse, delta;      // of the whole row, over all key chunks
    AttnView dq;              // fp32 (B, NH, Tq, HS), unscaled; added to (zeroed first if !accumulate_dq)
    AttnView dk, dv;          // fp32 (added to if accumulate_dkv), or bf16 (dkv_bf16 = 1, overwritten)
    int dkv_bf16, accumulate_dq, accumulate_dkv, deterministic;
    int* work;   // >= attention_backward_work() bytes of device memory, the first 8 as the forward pass has
                 // its 4
};

// What the rest of the program calls of the kernels in section 7.
namespace attn {
static cudaError_t attention_forward(const AttnForward& a, cudaStream_t stream);
static cudaError_t attention_backward(const AttnBackward& a, cudaStream_t stream);
static size_t attention_backward_work(const AttnShape& s);
static int attn_sms();
}   // namespace attn

// --- what it holds ---

// A rectangle of memory: `rows` rows of `width` bytes; a row begins `pitch` bytes after the one before it.
typedef struct {
    char* data;
    size_t pitch, width;
    int64_t rows;
} Block;
// A message is contiguous, so parts of wider rows are packed first: `rows` rows of `width` bytes go from
// `source`, where they begin `source_pitch` bytes apart, to `data`, where they follow each other.
typedef struct {
    char* data;
    size_t width;
    int64_t rows;
    const char* source;
    size_t source_pitch;
} PackJob;
enum { MAX_RANKS = 64 };   // of a run

// What a rank offers one peer during a step of a table; empty while pieces is NULL. The peer may read from
// the event `ready` on. It empties the box and leaves `taken`, after which this rank may overwrite what it
// offered.
typedef struct {
    const Piece* pieces;
    int count;
    cudaEvent_t ready, taken;
} GpuBox;

struct Gpu;

// Activations of a layer: name, numbers per row, their type, and the recompute modes that keep them for every
// layer. qkv is (R, 3C), and attention reads it in place; lse is (B, NH, Tl); fch is the MLP before the GELU,
// and in the backward pass scratch after it; without a gelu of their own, layers use `wide`.
// clang-format off
#define GPU_ACTIVATIONS(X) \
    X(x,     s->C,     bf16,  KEEP_NONE | KEEP_GELU | KEEP_ATTN | KEEP_LAYER) /* the layer's input */ \
    X(ln1,   s->C,     bf16,  KEEP_NONE) \
    X(rstd1, 1,        float, KEEP_NONE) \
    X(qkv,   3 * s->C, bf16,  KEEP_NONE | KEEP_GELU) \
    X(atty,  s->C,     bf16,  KEEP_NONE | KEEP_GELU | KEEP_ATTN) \
    X(lse,   s->NH,    float, KEEP_NONE | KEEP_GELU | KEEP_ATTN) \
    X(x2,    s->C,     bf16,  KEEP_NONE | KEEP_GELU) \
    X(ln2,   s->C,     bf16,  KEEP_NONE) \
    X(rstd2, 1,        float, KEEP_NONE) \
    X(fch,   4 * s->C, bf16,  KEEP_NONE | KEEP_GELU) \
    X(gelu,  4 * s->C, bf16,  KEEP_NONE)
// clang-format on

// G_x, G_ln1, ...: the activation's row in the table.
enum {
#define X(name, columns, type, keep) G_##name,
    GPU_ACTIVATIONS(X)
#undef X
        GPU_ACTIVATION_COUNT
};
// A row of the table for a shape: name, numbers per row of the batch, bytes of one, KEEP_... bits.
typedef struct {
    const char* name;
    int64_t columns;
    size_t size;
    int keep;
} GpuActivation;
static GpuActivation gpu_activation(const Shape* s, int id) {
    const GpuActivation table[] = {
#define X(name, columns, type, keep) {#name, columns, sizeof(type), keep},
        GPU_ACTIVATIONS(X)
#undef X
    };
    return table[id];
}
// Whether the mesh's recompute mode keeps an activation for every layer.
static int gpu_kept(const Mesh* mesh, int id) {
    return gpu_activation(&mesh->shape, id).keep >> mesh->recompute & 1;
}
// For how many layers an activation has a place at a time: all if it is kept, else those that are computed
// again together, one without training. 0: it has none; gelu is then in `wide`.
static int64_t gpu_copies(const Mesh* mesh, int id) {
    if (!mesh->training) return id != G_gelu;
    if (gpu_kept(mesh, id)) return mesh->shape.L;
    return id == G_gelu ? 0 : min_i64(mesh->shape.L, segment_layers(&mesh->shape, mesh->recompute));
}

// Figures of a step, fp64 on the device.
enum {
    STAT_LOSS,       // this rank's sum of losses
    STAT_SQUARE,     // the square of the norm of what this rank holds of the gradient
    STAT_SCALE,      // what clipping multiplies the gradient with; -1: loss or norm is not finite, no update
    STAT_ALL_LOSS,   // the two above for all ranks
    STAT_ALL_SQUARE,
    STAT_COUNT
};
// Sizes of launches whose partial sums a second kernel adds, and the widths that kernels are made for.
enum {
    NORM_BLOCKS = 1056,     // most blocks of the norms' backward pass
    NORM_ROWS = 4,          // rows that such a block works on at a time
    MAX_CHANNELS = 8192,    // a thread of the norms has 8, a block at most 1024 threads
    SUM_BLOCKS = 192,       // blocks along the rows of a sum of columns
    SQUARE_BLOCKS = 1024,   // blocks of a sum of squares of gradients
    BUCKET_ROWS = 64        // sorted rows of a block of the embedding's backward pass
};
enum { LEAST_LOGITS = 4096 };   // rows whose products run at full speed
// Shapes of products of a rank, algorithms that are tried for one, marks of a step.
enum { MAX_PLANS = 128, PROPOSALS = 32, MAX_MARKS = 8192 };
// Buffers for single units: one each of the embeddings, the final norm and the positions, and two that the
// layers take in turn.
enum { UNIT_BUFFERS = 5 };
static const size_t LT_WORKSPACE = 32 << 20;   // bytes for cuBLASLt

// --trace: a span (the .c's Span) before its times are known. A lane is one of the rank's streams; a layer's
// span lies between two marks instead of events.
enum { MAX_SPANS = 1 << 16 };
typedef struct {
    int lane, kind;   // LANE_..., SPAN_...
    char name[28];
    int first, last;   // SPAN_LAYER: the marks
    cudaEvent_t begin, end;
} GpuSpan;

// A point of a step on `stream`: after a layer, or after what has no layer. When a GPU does not come back,
// the last point that it reached says where it hangs.
typedef struct {
    const char* what;
    int64_t layer;   // -1: none
    cudaEvent_t event;
} Progress;
enum { MAX_PROGRESS = 256 };

// A matrix product D (m, n) = A (m, k) B (k, n); the algorithm that was chosen for one; both with the
// descriptors that the library needs to run it.
typedef struct {
    int64_t m, n, k;
    int transposed_a, transposed_b, flags;   // MATMUL_...
} MatmulShape;
typedef struct {
    MatmulShape shape;
    cublasLtMatmulAlgo_t algorithm;
} MatmulChoice;
typedef struct {
    MatmulShape shape;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algorithm;
} MatmulPlan;

// A place of D at which algorithms are compared with fp64.
typedef struct {
    int64_t at;           // in D, by columns
    double sum, square;   // of the terms of A B, and of their squares
    double before;        // what C holds there
} MatmulSample;
enum { MATMUL_SAMPLES = 16384, MATMUL_LEAST_SAMPLES = 1024 };
// Terms of all samples of a product together, where that leaves enough samples.
static const int64_t MATMUL_SAMPLED_TERMS = 1 << 28;
// cuBLASLt's workspace, and behind it the samples and the two figures of a comparison.
static const size_t MATMUL_WORKSPACE =
    LT_WORKSPACE + MATMUL_SAMPLES * sizeof(MatmulSample) + 2 * sizeof(double);

// The GPU's part of a rank. Pointers go into its arena.
struct Gpu {
    Arena arena;
    int ordinal;    // which GPU of the process
    int64_t B, R;   // sequences and rows at a time: all of a pass, or a part (gpu_sequences)
    cudaStream_t stream, beside, copies, gathers;   // what each does: section 4
    // Exchange and collectives: `stream`, or `beside`, has reached a point; both have, seen from `copies`.
    cudaEvent_t ready, beside_ready, complete;
    cudaEvent_t launched[2];     // the last op on `stream`, on `beside`, may start
    cudaEvent_t done, arrived;   // this rank has read in a collective; a step's receives are here
    // A layer's gradients are made on `stream`; the peers' parts of them are in `staged`.
    cudaEvent_t differentiated, staged_there;
    cudaEvent_t updated[UNIT_KINDS];   // this rank's part of the units of a kind is updated
    cudaEvent_t taken[MAX_RANKS];      // this rank has read what the peer offered
    // A buffer of single units: its unit is gathered; nobody reads the unit that was there before.
    cudaEvent_t unit_there[UNIT_BUFFERS], unit_free[UNIT_BUFFERS];
    Progress progress[MAX_PROGRESS];   // the step's last points: a ring
    int64_t progress_count;
    int nccl, stuck;   // ranks exchange through NCCL; the GPU did not come back in time
#ifdef GPT2_SP_NCCL
    ncclComm_t comms[2];   // for the streams `stream` and `copies`; for `gathers`
#endif
    GpuBox* boxes;   // (world, world): from, to; one array for all ranks
    Gpu** peers;     // (world)
    void* offered;   // what the peers read during a collective
    // (L + 3) each: this rank's gradient of a unit is whole; its slice is the sum of all ranks'; the unit's
    // weights are gathered.
    cudaEvent_t *made, *summed, *together;
    // (L + 3) --zero 1, 2: the unit's updated weights are being gathered, and its bf16 copy is not made yet.
    unsigned char* gather_pending;
    int last_micro_batch;   // it completes the step's gradients: a layer's are summed once they are made
    cublasLtHandle_t lt;
    MatmulPlan plans[MAX_PLANS];
    int plan_count;
    char products[GPT2_SP_TEXT + 16];   // --products of this process; "": none
    int products_shown;                 // --profile: which algorithms were taken, and which not and why
    // A rehearsal is a step without attention, whose results nobody uses: there timing chooses algorithms.
    int rehearsing, rehearsed;
    int deterministic, attention;   // attention: ATTN_AUTO or ATTN_PORTABLE
    cudaEvent_t timer[2];

    float* state[STATES];                 // fp32: what this rank holds (see held)
    bf16* half;                           // bf16 copies of wte and the layers, where it holds whole units
    float* whole_unit[2][UNIT_BUFFERS];   // gathered weights of a unit, its unsummed gradient (unit_buffer)
    bf16* unit_half[UNIT_BUFFERS];        // bf16 copies of those weights
    int gathered[UNIT_BUFFERS];           // which unit's weights are there, or on their way; -1: none
    float* staged;                     // (world - 1, slice) the peers' parts of a layer's slice of gradients
    void* act[GPU_ACTIVATION_COUNT];   // (copies, R, columns)
    bf16* segment_inputs;              // --recompute sqrt
    bf16 *x_final, *lnf, *dx;          // (R, C)
    float* rstdf;                      // (R)
    bf16* wide;                        // (R, 4C)
    float* delta;                      // (B, NH, Tl)
    float* dkv[2];                     // (R, C) each: sums of dK and dV, with several ranks
    char** slots[2];                   // exchange buffers of the forward and the backward table
    char* packed[2];                   // what this rank sends of its own rows during a step of either table
    PackJob* jobs;                     // what this rank packs for the step in hand
    int job_count;
    char *pack_begin, *pack_next;   // where they go in the run in hand; where the next of them goes
    bf16* logits;                   // (logits_chunk, Vp)
    int64_t logits_chunk;
    float* partial;                                     // partial sums of columns
    double* squares;                                    // (SQUARE_BLOCKS)
    double *stats, *all_stats;                          // (STAT_COUNT), (world, STAT_COUNT)
    float* rates;                                       // (units, PARAMETER_COUNT): Unit.rate of each
    int* attention_work[2];                             // of kernels on `stream`, on `beside`
    void* workspace;                                    // (MATMUL_WORKSPACE bytes)
    int32_t *tokens, *labels;                           // (B, Tl) of the pass
    int32_t *positions, *doc_start;                     // (B, Tl), or NULL; (B, T): as RankBatch has them
    int32_t *keys, *sorted_keys, *rows, *sorted_rows;   // (R) embedding backward
    void* sort_work;
    size_t sort_bytes;
    float* token_loss;          // (R)
    unsigned char* token_hit;   // (R)

    double* host_stats;                             // pinned
    void* pinned;                                   // batches, losses and hits of the host
    int marking, tracing, mark_count, span_count;   // --profile or --trace record the step; --trace does
    GpuSpan* spans;                                 // (MAX_SPANS)
    cudaEvent_t* marks;                             // (MAX_MARKS)
    const char* mark_group[MAX_MARKS];
    float mark_time[MAX_MARKS];   // ms since the first
};

// --- its number, its streams and events ---

// How many GPUs this process sees and `ranks` ranks can use.
static int gpu_count(int ranks) {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    return count < ranks ? count : ranks;
}
// Whether a launcher shows each process its own GPUs only: exactly as many as its `local` of the machine's
// `ranks` ranks.
static int gpu_bound(int ranks, int local) { return local < ranks && gpu_count(ranks) == local; }
// Which of the GPUs that its process sees a rank uses. Where GPUs are fewer than ranks, neighbours in a
// sequence share one.
static int gpu_of(const Mesh* mesh, int world_rank) {
    int64_t ranks = mesh->local_ranks * mesh->local_processes, local = world_rank - mesh->first_rank;
    if (gpu_bound((int)ranks, mesh->local_ranks)) return (int)local;
    return (int)((mesh->local_process * mesh->local_ranks + local) * gpu_count((int)ranks) / ranks);
}

// Chooses the rank's GPU for the calling thread: every job of a rank begins with it, on a thread of its own.
static int gpu_enter(Rank* r) {
    CUDA_TRY(&r->error, cudaSetDevice(((Gpu*)r->device)->ordinal));
    return 0;
}

// Where the stream of a lane (LANE_...) is kept; the stream.
static cudaStream_t* gpu_stream(Gpu* d, int lane) {
    cudaStream_t* const streams[LANES] = {&d->stream, &d->beside, &d->copies, &d->gathers};
    return streams[lane];
}
static cudaStream_t lane_stream(const Gpu* d, int lane) { return *gpu_stream((Gpu*)d, lane); }

// All events of a rank that measure no time, to make and to destroy them.
static std::vector<cudaEvent_t*> gpu_events(Gpu* d, int units) {
    std::vector<cudaEvent_t*> events = {&d->ready, &d->beside_ready, &d->complete, &d->launched[0],
        &d->launched[1], &d->done, &d->arrived, &d->differentiated, &d->staged_there};
    for (cudaEvent_t& event : d->updated) events.push_back(&event);
    for (cudaEvent_t& event : d->taken) events.push_back(&event);
    for (cudaEvent_t& event : d->unit_there) events.push_back(&event);
    for (cudaEvent_t& event : d->unit_free) events.push_back(&event);
    for (Progress& p : d->progress) events.push_back(&p.event);
    for (cudaEvent_t* of_units : {d->made, d->summed, d->together})
        for (int u = 0; of_units && u < units; u++) events.push_back(&of_units[u]);
    return events;
}

// Puts what the options say of the GPU into the rank's part.
static void gpu_settings(Rank* r, const gpt2_sp* g) {
    Gpu* d = (Gpu*)r->device;
    const gpt2_sp_options* o = &g->options;
    d->deterministic = (int)o->deterministic;
    d->attention = (int)o->attention;
    d->products_shown = (int)o->profile;
    process_path(d->products, g, o->products);
}

// --- what --profile and --trace measure ---

// --profile and --trace: marks the end of some work of a group on `stream`. The group gets the time since the
// mark before it.
static void mark(Gpu* d, const char* group) {
    if (!d->marking || d->mark_count == MAX_MARKS) return;
    d->mark_group[d->mark_count] = group;
    cudaEventRecord(d->marks[d->mark_count++], d->stream);
}

// --trace: a span is what is enqueued on its lane between these two calls. NULL outside of the traced step,
// or when there is no room for more.
static GpuSpan* span_begin(Gpu* d, int lane, const char* format, ...) {
    if (!d->tracing || d->span_count == MAX_SPANS) return NULL;
    GpuSpan* span = &d->spans[d->span_count++];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(span->name, sizeof span->name, format, arguments);
    va_end(arguments);
    span->lane = lane;
    span->kind = lane == LANE_COPY ? SPAN_MESSAGE : lane == LANE_GATHER ? SPAN_GATHER : SPAN_OP;
    if (!span->begin) cudaEventCreate(&span->begin), cudaEventCreate(&span->end);
    cudaEventRecord(span->begin, lane_stream(d, lane));
    return span;
}
static void span_end(Gpu* d, GpuSpan* span) {
    if (span) cudaEventRecord(span->end, lane_stream(d, span->lane));
}
// The span of a layer, from mark `first` to the last one so far, if there were any between.
static void span_layer(Gpu* d, int first, int64_t l, const char* what) {
    if (!d->tracing || d->span_count == MAX_SPANS || d->mark_count - 1 == first) return;
    GpuSpan* span = &d->spans[d->span_count++];
    snprintf(span->name, sizeof span->name, "layer %lld %s", (long long)l, what);
    span->lane = LANE_COMPUTE, span->kind = SPAN_LAYER;
    span->first = first, span->last = d->mark_count - 1;
}

// ===== 4. transports ============================================================================
//
// The ranks of a process are threads; each has a GPU, or a part of one (virtual ranks). Their hosts meet as
// the CPU program's do (ThreadWorld) and run ahead of the GPUs; a GPU waits for another through events. Each
// rank has four streams (LANE_...):
//
//     stream     the step: products, norms, every other op of attention, sums of gradients, the update
//     beside     the other ops of attention; clears buffers ahead of their use
//     copies     what attention's tables send from rank to rank
//     gathers    parts of gradients and slices of weights, from rank to rank
//
// Inside a process every rank reads its peers' memory. Copy engines, which take no multiprocessor's time,
// bring operands and slices. A kernel sums gradients in the order of the ranks, so that two GPUs give the
// same bits as two virtual ranks on one. Between processes NCCL does both, with one communicator for `stream`
// and `copies` and a second for `gathers`, so that a unit of --zero 3 can come while attention's operands do.

// --- the way to the peers: their memory, or NCCL ---

#ifdef GPT2_SP_NCCL
// NCCL never blocks here: waits until communicator `comm` has taken up the call that gave `result`. Fails,
// and ends the communicator, when the call has failed, another rank has failed, or the time limit passes.
static int nccl_settle(Rank* r, int comm, ncclResult_t result, const char* doing) {
    Gpu* d = (Gpu*)r->device;
    ThreadWorld* w = (ThreadWorld*)r->transport.state;
    double deadline = world_deadline(w, 1);
    int status = 0;
    while (status == 0 && (result == ncclInProgress || result == ncclSuccess)) {
        ncclResult_t state = ncclSuccess;
        result = ncclCommGetAsyncError(d->comms[comm], &state);
        if (result == ncclSuccess && state == ncclSuccess) return 0;
        if (result == ncclSuccess) result = state;
        status = world_aborted(w, &r->error);
        r->transport.doing = doing;
        if (status == 0 && deadline > 0 && now_ms() > deadline)
            status = transport_late(&r->transport, "NCCL", &r->error);
        sched_yield();
    }
    if (status == 0)
        fail(&r->error, "rank %d: NCCL, %s: %s", r->world_rank, doing, ncclGetErrorString(result));
    // the other ranks are told first: ending NCCL may wait for what runs on the other communicator
    r->transport.abort(&r->transport, &r->error);
    ncclCommAbort(d->comms[comm]);
    d->comms[comm] = NULL;
    return -1;
}
// Calls NCCL on a communicator; if the call fails, the function returns -1 with the reason in r's error.
#define NCCL_TRY(r, comm, call) \
    do { \
        ncclResult_t result_ = (call); \
        if (result_ != ncclSuccess && nccl_settle(r, comm, result_, #call) != 0) return -1; \
    } while (0)

// Makes both communicators with all ranks, from ids that rank 0 draws and shares.
static int nccl_join(Rank* r) {
    Gpu* d = (Gpu*)r->device;
    int world = r->mesh->world, status = 0;
    // two ids of each rank, of which only rank 0's are used
    ncclUniqueId* ids = (ncclUniqueId*)calloc((size_t)(2 * world), sizeof *ids);
    if (!ids) return fail(&r->error, "out of memory");
    for (int i = 0; r->world_rank == 0 && i < 2; i++)
        if (ncclGetUniqueId(&ids[i]) != ncclSuccess)
            status = fail(&r->error, "NCCL: %s", ncclGetLastError(NULL));
    if (status == 0) status = r->transport.share(&r->transport, &r->all, ids, 2 * sizeof *ids, &r->error);
    for (int i = 0; status == 0 && i < 2; i++) {
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 0;
        status =
            nccl_settle(r, i, ncclCommInitRankConfig(&d->comms[i], world, ids[i], r->world_rank, &config),
                "the meeting of all ranks");
    }
    free(ids);
    return status;
}
#endif

// Makes the rank's streams and events and enters it among the peers of its process. Ranks do so one after the
// other; the first makes the arrays that all share.
static int gpu_connect(Rank* r, Error* e) {
    Gpu* d = (Gpu*)r->device;
    ThreadWorld* w = (ThreadWorld*)r->transport.state;
    int units = r->layout->count, low = 0, high = 0;
    CUDA_TRY(e, cudaDeviceGetStreamPriorityRange(&low, &high));
    // the GPU takes up the work of `copies` and `gathers` before that of the other two
    for (int lane = 0; lane < LANES; lane++)
        CUDA_TRY(e,
            cudaStreamCreateWithPriority(gpu_stream(d, lane), cudaStreamNonBlocking,
                lane == LANE_COPY || lane == LANE_GATHER ? high : low));
    for (cudaEvent_t** of_units : {&d->made, &d->summed, &d->together}) {
        *of_units = (cudaEvent_t*)calloc((size_t)units, sizeof **of_units);
        if (!*of_units) return fail(e, "out of memory");
    }
    d->gather_pending = (unsigned char*)calloc((size_t)units, 1);
    if (!d->gather_pending) return fail(e, "out of memory");
    for (cudaEvent_t* event : gpu_events(d, units))
        CUDA_TRY(e, cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    for (int i = 0; i < UNIT_BUFFERS; i++) d->gathered[i] = -1;
    if (!w->devices) {
        w->devices = (void**)calloc((size_t)w->local_ranks, sizeof *w->devices);
        w->gpu_boxes = calloc((size_t)w->local_ranks * (size_t)w->local_ranks, sizeof(GpuBox));
        if (!w->devices || !w->gpu_boxes) return fail(e, "out of memory for %d ranks", w->local_ranks);
    }
    w->devices[r->world_rank - w->first] = d;
    d->peers = (Gpu**)w->devices, d->boxes = (GpuBox*)w->gpu_boxes;
    return 0;
}

// Opens the way to the other ranks: NCCL's communicators, or access to the memory of this process' other
// GPUs. All ranks call it together; if it is open already, nothing changes.
static int gpu_join(Rank* r, const gpt2_sp_options* o) {
    Gpu* d = (Gpu*)r->device;
    const Mesh* mesh = r->mesh;
    if (mesh->world == 1) return 0;
#ifdef GPT2_SP_NCCL
    d->nccl = o->transport == GPT2_SP_NCCL_ONLY || mesh->processes > 1;
    if (d->nccl && gpu_count(mesh->local_ranks) < mesh->local_ranks)
        return fail(&r->error, "NCCL needs a GPU for every rank: this process has %d ranks and %d GPUs",
            mesh->local_ranks, gpu_count(mesh->local_ranks));
    if (d->nccl) return d->comms[0] ? 0 : nccl_join(r);
#endif
    (void)o;
    for (int i = 0; i < gpu_count(mesh->local_ranks); i++) {
        int can = 0;
        if (i == d->ordinal) continue;
        CUDA_TRY(&r->error, cudaDeviceCanAccessPeer(&can, d->ordinal, i));
        if (!can)
            return fail(
                &r->error, "GPU %d cannot read the memory of GPU %d: try --transport nccl", d->ordinal, i);
        cudaError_t status = cudaDeviceEnablePeerAccess(i, 0);
        if (status == cudaErrorPeerAccessAlreadyEnabled) (void)cudaGetLastError();
        else CUDA_TRY(&r->error, status);
    }
    return r->transport.barrier(&r->transport, &r->all, &r->error);   // nobody reads before all may
}

// Notes that `stream` has come to a point of the step; layer -1: it belongs to no layer.
static void progress(Gpu* d, const char* what, int64_t layer) {
    Progress* p = &d->progress[d->progress_count++ % MAX_PROGRESS];
    p->what = what, p->layer = layer;
    cudaEventRecord(p->event, d->stream);
}
// Fails with the line of a rank whose GPU does not come back: the last point that it reached.
static int gpu_overdue(Rank* r) {
    Gpu* d = (Gpu*)r->device;
    char last[64] = "nothing";
    for (int64_t i = max_i64(0, d->progress_count - MAX_PROGRESS); i < d->progress_count; i++) {
        const Progress* p = &d->progress[i % MAX_PROGRESS];
        if (cudaEventQuery(p->event) != cudaSuccess) break;
        if (p->layer >= 0) snprintf(last, sizeof last, "the %s of layer %lld", p->what, (long long)p->layer);
        else snprintf(last, sizeof last, "the %s", p->what);
    }
    return fail(&r->error,
        "%s: GPU %d did not finish the step within %g s: the last it finished is %s, its copies are %s",
        transport_label(&r->transport).text, d->ordinal,
        ((const ThreadWorld*)r->transport.state)->timeout / 1e3, last,
        cudaStreamQuery(d->copies) == cudaSuccess ? "done" : "under way");
}
// Waits until `stream` has come to an event, or (NULL) has done all that it was given. Fails when another
// rank has failed or the time limit passes. The CPU is offered to other threads meanwhile; other ranks and
// NCCL are looked at once a millisecond.
static int gpu_await(Rank* r, const cudaEvent_t* event) {
    Gpu* d = (Gpu*)r->device;
    ThreadWorld* w = (ThreadWorld*)r->transport.state;
    // a single rank waits for nobody, so that nobody can be late
    double deadline = r->mesh->world > 1 ? world_deadline(w, 0) : 0, look = now_ms() + 1;
    cudaError_t status;
    while ((status = event ? cudaEventQuery(*event) : cudaStreamQuery(d->stream)) == cudaErrorNotReady) {
        sched_yield();
        if (now_ms() < look) continue;
        look = now_ms() + 1;
        if (world_aborted(w, &r->error) != 0) return -1;
#ifdef GPT2_SP_NCCL
        for (int i = 0; d->nccl && i < 2; i++)
            if (nccl_settle(r, i, ncclSuccess, "a step") != 0) return -1;
#endif
        if (deadline > 0 && now_ms() > deadline) {
            d->stuck = 1;
            return gpu_overdue(r);
        }
    }
    CUDA_TRY(&r->error, status);
    CUDA_TRY(&r->error, cudaGetLastError());
    return 0;
}
static int gpu_finish(Rank* r) { return gpu_await(r, NULL); }

// Waits until a rank's streams have done all that they were given, and until those of all ranks have: then no
// peer reads this rank's memory any more, and no operand is under way.
static int gpu_drain(Rank* r) {
    Gpu* d = (Gpu*)r->device;
    for (int lane = 0; lane < LANES; lane++) {
        CUDA_TRY(&r->error, cudaEventRecord(d->differentiated, lane_stream(d, lane)));
        CUDA_TRY(&r->error, cudaStreamWaitEvent(d->stream, d->differentiated, 0));
    }
    if (gpu_finish(r) != 0) return -1;
    r->transport.doing = "the wait for all GPUs";
    return r->transport.barrier(&r->transport, &r->all, &r->error);
}

// Ends a layer's forward or backward pass over the sequences in hand, all of which is enqueued. Where a
// program hears of the job, the host waits until the GPU has done all but the step's last two points, so that
// what is heard is real and a cancel takes effect at once. After a cancel all ranks' streams are empty.
static int gpu_layer_done(Rank* r) {
    Gpu* d = (Gpu*)r->device;
    if (!r->report || d->rehearsing) return 0;
    if (d->progress_count > 1 &&
        gpu_await(r, &d->progress[(d->progress_count - 2) % MAX_PROGRESS].event) != 0)
        return -1;
    if (layer_done(r, d->B) == 0) return 0;
    if (r->cancelled) d->last_micro_batch = 0;
    if (r->cancelled && gpu_drain(r) != 0) r->cancelled = 0;   // an error: all ranks are told
    return -1;
}

// --- exchange: a step's operands and results, while the step computes ---
//
// A step of a table on one rank's streams, time from left to right:
//
//     stream    pack | op 1       | op 3       |          wait | merge | pack, next step
//     beside         |   op 2     |   op 4     |          wait |
//     copies         | from rank 1 | from rank 3 | arrived
//
//     gpu_pieces   says where each item lies that travels; own rows that are not contiguous become pack jobs
//     gpu_post     packs; lets `copies` wait for all that both streams were given so far (`complete`), when
//                  sends are whole and what receives overwrite has been read; offers the sends in boxes
//     gpu_op       enqueues attention, in turn on `stream` and `beside` unless ops meet (op_begin)
//     gpu_wait     enqueues the copies on `copies`, each after its sender's `complete`, and leaves `taken` to
//                  the sender; `stream` and `beside` wait for `arrived` and for the receivers' `taken`
//     gpu_merge    adds arrived results, on `stream`
//
// The host enqueues a step's ops before its copies, but the copies wait only for what came before the ops,
// and so run under them. With NCCL, gpu_post enqueues sends and receives on `copies`; boxes stay empty.

enum {
    PACK_JOBS = 8,      // of a launch
    PACK_BLOCKS = 512   // of a job: some four for each multiprocessor
};
typedef struct {
    PackJob job[PACK_JOBS];
} PackJobs;
// One job, a word at a time. Its indices are divided in 32 bits where they fit.
template <typename Word> __device__ __forceinline__ void job_pack(const PackJob& x) {
    uint32_t words = (uint32_t)(x.width / sizeof(Word));
    int64_t all = x.rows * words;
    for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < all; i += (int64_t)gridDim.x * 256) {
        int64_t row = all >> 32 ? i / words : (int64_t)((uint32_t)i / words);
        *((Word*)x.data + i) = *((const Word*)(x.source + row * (int64_t)x.source_pitch) + (i - row * words));
    }
}
// data[row] = source[row] for the rows of some jobs; blockIdx.y is the job. Each byte is read and written
// once, 16 at a time, or 4 where log-sum-exps of an odd number of rows are not aligned to more.
__global__ void rows_pack_kernel(PackJobs jobs) {
    const PackJob& x = jobs.job[blockIdx.y];
    if (((uintptr_t)x.source | x.source_pitch | x.width) % 16 == 0) job_pack<uint4>(x);
    else job_pack<uint32_t>(x);
}
// Packs what the step sends, on `stream`, which takes some microseconds. On `copies` the kernel would find no
// free multiprocessor until the step's attention ends, whose blocks stay for all of a launch.
static void gpu_pack(Gpu* d) {
    PackJobs launch;
    for (int i = 0, n; i < d->job_count; i += n) {
        n = (int)min_i64(PACK_JOBS, d->job_count - i);
        memcpy(launch.job, d->jobs + i, (size_t)n * sizeof *d->jobs);
        rows_pack_kernel<<<dim3(PACK_BLOCKS, (unsigned)n), 256, 0, d->stream>>>(launch);
    }
    d->job_count = 0;
}

#ifdef GPT2_SP_NCCL
// Enqueues a step's sends and receives on `copies`, as one group of NCCL, and `arrived` behind them.
static int nccl_exchange(Rank* r, const Exchange* x) {
    Gpu* d = (Gpu*)r->device;
    GpuSpan* span = span_begin(d, LANE_COPY, "NCCL");
    NCCL_TRY(r, 0, ncclGroupStart());
    for (int i = 0; i < x->send_count; i++) {
        const Piece* p = &x->sends[i];
        NCCL_TRY(r, 0, ncclSend(p->data, p->bytes, ncclInt8, p->peer, d->comms[0], d->copies));
    }
    for (int i = 0; i < x->receive_count; i++) {
        const Piece* p = &x->receives[i];
        NCCL_TRY(r, 0, ncclRecv(p->data, p->bytes, ncclInt8, p->peer, d->comms[0], d->copies));
    }
    NCCL_TRY(r, 0, ncclGroupEnd());
    if (nccl_settle(r, 0, ncclSuccess, "the exchange of attention's operands") != 0) return -1;
    span_end(d, span);
    CUDA_TRY(&r->error, cudaEventRecord(d->arrived, d->copies));
    return 0;
}
#endif

// Opens the exchange of a step. Copies may start once everything enqueued so far has finished: sends are then
// complete and receive buffers free.
static int gpu_post(Rank* r, void* run, const Exchange* x) {
    (void)run;
    Gpu* d = (Gpu*)r->device;
    ThreadWorld* w = (ThreadWorld*)r->transport.state;
    if (x->send_count + x->receive_count == 0) return 0;
    gpu_pack(d);
    d->pack_next = d->pack_begin;
    CUDA_TRY(&r->error, cudaEventRecord(d->ready, d->stream));
    CUDA_TRY(&r->error, cudaEventRecord(d->beside_ready, d->beside));
    CUDA_TRY(&r->error, cudaStreamWaitEvent(d->copies, d->ready, 0));
    CUDA_TRY(&r->error, cudaStreamWaitEvent(d->copies, d->beside_ready, 0));
    CUDA_TRY(&r->error, cudaEventRecord(d->complete, d->copies));
#ifdef GPT2_SP_NCCL
    if (d->nccl) return nccl_exchange(r, x);
#endif
    pthread_mutex_lock(&w->mutex);
    for (int i = 0; i < x->send_count; i++) {
        GpuBox* box = &d->boxes[r->world_rank * w->local_ranks + x->sends[i].peer];
        box->pieces = x->sends, box->count = x->send_count;
        box->ready = d->complete;
    }
    if (x->send_count > 0) pthread_cond_broadcast(&w->changed);
    int status = thread_aborted(w, &r->error);
    pthread_mutex_unlock(&w->mutex);
    return status;
}

// Enqueues on `copies` all that a peer offers this rank, then `taken`. Pieces pair up in the order of both
// lists.
static int gpu_receive(Rank* r, int peer, const GpuBox* box, const Exchange* x) {
    Gpu *d = (Gpu*)r->device, *other = d->peers[peer];
    int sent = 0;
    CUDA_TRY(&r->error, cudaStreamWaitEvent(d->copies, box->ready, 0));
    GpuSpan* span = span_begin(d, LANE_COPY, "from rank %d", peer);
    for (int i = 0; i < x->receive_count; i++) {
        const Piece *to = &x->receives[i], *from;
        if (to->peer != peer) continue;
        while (sent < box->count && box->pieces[sent].peer != r->world_rank) sent++;
        from = &box->pieces[sent];
        if (sent++ == box->count || from->bytes != to->bytes)
            return fail(&r->error, "rank %d expects other pieces than rank %d sends", r->world_rank, peer);
        CUDA_TRY(&r->error,
            cudaMemcpyPeerAsync(to->data, d->ordinal, from->data, other->ordinal, to->bytes, d->copies));
    }
    span_end(d, span);
    CUDA_TRY(&r->error, cudaEventRecord(d->taken[peer], d->copies));
    return 0;
}

// The host waits until a box is full, or empty, and gets what is in it then.
static int gpu_await_box(Rank* r, GpuBox* box, int full, int peer, double deadline, GpuBox* out) {
    ThreadWorld* w = (ThreadWorld*)r->transport.state;
    int status = 0;
    pthread_mutex_lock(&w->mutex);
    while ((status = thread_aborted(w, &r->error)) == 0 && (box->pieces != NULL) != full)
        if (world_await(w, deadline) != 0 && !w->aborted && (box->pieces != NULL) != full) {
            status = transport_late_rank(&r->transport, peer, &r->error);
            break;
        }
    *out = *box;
    pthread_mutex_unlock(&w->mutex);
    return status;
}

// Lets both streams of ops, `stream` and `beside`, wait for an event.
static int ops_wait(Rank* r, cudaEvent_t event) {
    Gpu* d = (Gpu*)r->device;
    CUDA_TRY(&r->error, cudaStreamWaitEvent(d->stream, event, 0));
    CUDA_TRY(&r->error, cudaStreamWaitEvent(d->beside, event, 0));
    return 0;
}

// Whether a piece before number i goes to or comes from the same peer.
static int peer_seen(const Piece* pieces, int i) {
    int seen = 0;
    for (int j = 0; j < i; j++) seen |= pieces[j].peer == pieces[i].peer;
    return seen;
}
// Closes the exchange of a step: enqueues the receives, and lets both streams wait for them and for the peers
// that take this rank's sends. The host waits until each peer has posted the step and enqueued its receives.
static int gpu_wait(Rank* r, void* run, const Exchange* x) {
    (void)run;
    Gpu* d = (Gpu*)r->device;
    ThreadWorld* w = (ThreadWorld*)r->transport.state;
    double deadline = world_deadline(w, 0);
    int status = 0;
    r->transport.doing = "the exchange of attention's operands";
#ifdef GPT2_SP_NCCL
    if (d->nccl) return x->send_count + x->receive_count > 0 ? ops_wait(r, d->arrived) : 0;
#endif
    for (int i = 0; status == 0 && i < x->receive_count; i++) {
        int peer = x->receives[i].peer;
        if (peer_seen(x->receives, i)) continue;
        GpuBox *box = &d->boxes[peer * w->local_ranks + r->world_rank], offer;
        status = gpu_await_box(r, box, 1, peer, deadline, &offer);
        if (status == 0) status = gpu_receive(r, peer, &offer, x);
        pthread_mutex_lock(&w->mutex);
        box->pieces = NULL, box->taken = d->taken[peer];
        pthread_cond_broadcast(&w->changed);
        pthread_mutex_unlock(&w->mutex);
    }
    for (int i = 0; status == 0 && i < x->send_count; i++) {
        if (peer_seen(x->sends, i)) continue;
        GpuBox *box = &d->boxes[r->world_rank * w->local_ranks + x->sends[i].peer], taken;
        status = gpu_await_box(r, box, 0, x->sends[i].peer, deadline, &taken);
        if (status == 0) status = ops_wait(r, taken.taken);
    }
    if (status != 0 || x->receive_count == 0) return status;
    CUDA_TRY(&r->error, cudaEventRecord(d->arrived, d->copies));
    return ops_wait(r, d->arrived);
}

// --- collectives among the ranks of a process ---

// Begins a collective: shows this rank's memory to the ranks of a group, whose hosts meet, and lets `stream`
// wait until all that they had enqueued before is done, so that what they show is whole.
static int collective_begin(Rank* r, const Group* g, void* offered) {
    Gpu* d = (Gpu*)r->device;
    d->offered = offered;
    CUDA_TRY(&r->error, cudaEventRecord(d->ready, d->stream));
    if (r->transport.barrier(&r->transport, g, &r->error) != 0) return -1;
    for (int i = 0; i < g->size; i++)
        if (i != g->index)
            CUDA_TRY(&r->error, cudaStreamWaitEvent(d->stream, d->peers[group_rank(g, i)]->ready, 0));
    return 0;
}
// Ends it: lets `stream` wait until all ranks of the group have read what they were shown.
static int collective_end(Rank* r, const Group* g) {
    Gpu* d = (Gpu*)r->device;
    CUDA_TRY(&r->error, cudaEventRecord(d->done, d->stream));
    if (r->transport.barrier(&r->transport, g, &r->error) != 0) return -1;
    for (int i = 0; i < g->size; i++)
        if (i != g->index)
            CUDA_TRY(&r->error, cudaStreamWaitEvent(d->stream, d->peers[group_rank(g, i)]->done, 0));
    return 0;
}

// What the ranks of a group show, in the order of the group.
typedef struct {
    const void* p[MAX_RANKS];
} Offers;
static Offers gpu_offers(const Rank* r, const Group* g) {
    Offers o;
    memset(&o, 0, sizeof o);
    for (int i = 0; i < g->size; i++) o.p[i] = ((Gpu*)r->device)->peers[group_rank(g, i)]->offered;
    return o;
}

// out (4 n4) = (`add`: +=) the sum of the ranks' numbers from `at` on, added in the order of the ranks.
// Threads walk over groups of 4 numbers; 4 bytes a number of each rank, 4 of out, 4 more with `add`.
__global__ void sum_ranks_kernel(float* out, Offers offers, int world, int64_t at, int64_t n4, int add) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n4;
         i += (int64_t)gridDim.x * blockDim.x) {
        float4 sum = *((const float4*)((const float*)offers.p[0] + at) + i);
#pragma unroll 4
        for (int p = 1; p < world; p++) {
            float4 x = *((const float4*)((const float*)offers.p[p] + at) + i);
            sum.x += x.x, sum.y += x.y;
            sum.z += x.z, sum.w += x.w;
        }
        float4* to = (float4*)out + i;
        if (add) {
            float4 x = *to;
            sum.x += x.x, sum.y += x.y;
            sum.z += x.z, sum.w += x.w;
        }
        *to = sum;
    }
}
static void sum_ranks(Rank* r, float* out, const Offers& offers, int64_t at, int64_t n, int add) {
    sum_ranks_kernel<<<(unsigned)min_i64(ceil_div(n / 4, 256), 8 * attn::attn_sms()), 256, 0,
        ((Gpu*)r->device)->stream>>>(out, offers, r->sharing.size, at, n / 4, add);
}

// ===== 6. parameters and memory plan ============================================================
//
// A rank's device memory is one allocation. gpu_layout hands it out, in this order:
//
//     | weights, gradients, m, v, | kept for   | one layer: its other activations, `wide` | exchange |
//     | unit buffers, scratch     | all layers | or the head: lnf, logits of a chunk      |          |
//
// Two buffers share memory where the first is dead before the second is written:
//     dx in x_final       the norm's backward kernel reads a row before it writes that row's gradient
//     head over layer     the head runs between the layers' forward and backward passes; what it overwrites
//                         was not to be kept, and the backward pass computes it again
//     qkv, ln1 in fch     --recompute attn computes them again once the MLP is differentiated
//     dQ in x2, ln2       the same mode: their last reader, the MLP's backward pass, is over; in fch else
//     dqkv, dO in `wide`  the MLP's gradients before the GELU, which were there, have been used
//     exchange            what layers leave unused while attention runs (exchange_rooms), then memory of its
//                         own, the same for both directions, which never run at the same time

// Whether attention's inputs (ln1, qkv) are computed again late. --recompute attn keeps attention's output,
// so the backward pass needs the inputs only after it has differentiated the MLP; they then go where the
// MLP's activations were.
static int gpu_inputs_again(const Mesh* mesh) { return mesh->training && mesh->recompute == GPT2_SP_ATTN; }

// How many of a pass' B sequences are worked on at a time. With recomputation it is the smallest divisor of B
// that gives a rank MICRO_TOKENS tokens. Products of so many rows run as fast as those of the whole pass,
// activations need memory for these rows only, and gradients add up as they do over passes.
enum { MICRO_TOKENS = 32768 };
static int64_t gpu_sequences(const Mesh* mesh) {
    const Shape* s = &mesh->shape;
    if (mesh->training && mesh->recompute != GPT2_SP_NONE)
        for (int64_t n = 1; n < s->B; n++)
            if (s->B % n == 0 && n * (s->T / mesh->sp) >= MICRO_TOKENS) return n;
    return s->B;
}

// Elements of `size` bytes from the arena, in whole 256 bytes.
static void* gpu_take(Arena* a, int group, int64_t elements, size_t size) {
    return arena_take(a, group, (int64_t)round_up((int64_t)((size_t)elements * size), 256), 1);
}

// Bytes of scratch with which CUB sorts R keys; where there is no GPU to ask, more than it needs.
static size_t embedding_sort_bytes(int64_t R) {
    size_t bytes = 0;
    if (cub::DeviceRadixSort::SortPairs(NULL, bytes, (const int32_t*)NULL, (int32_t*)NULL,
            (const int32_t*)NULL, (int32_t*)NULL, (int)R, 0, 20) != cudaSuccess) {
        (void)cudaGetLastError();   // no GPU here
        bytes = (size_t)R * 2 + (1 << 20);
    }
    return bytes;
}

// Attention of `rows` rows of each sequence against themselves: where a sequence has one rank, all of its
// attention. doc_start (B, T), or NULL.
static AttnShape attention_shape(const Mesh* mesh, int64_t rows, const int32_t* doc_start) {
    const Shape* s = &mesh->shape;
    AttnShape a = {(int)gpu_sequences(mesh), (int)s->NH, (int)rows, (int)rows, 0, 0, 1,
        1 / sqrtf((float)s->HS), doc_start, s->T, (int)s->HS};
    return a;
}

// Numbers from a layer's unit to the next layer's in a state's buffer.
static int64_t unit_stride(const Layout* layout, int state) {
    const Unit* unit = &layout->units[1];
    return layout->sharded[state] ? unit[1].shard_offset - unit->shard_offset : unit[1].offset - unit->offset;
}
// Where unit u begins in `half`, the bf16 copies: wte, then the layers' units as they are in fp32.
static int64_t half_offset(const Layout* layout, const Shape* s, int u) {
    return u == 0 ? 0 : layout->units[u].offset - layout->units[1].offset + round_up(s->Vp * s->C, 128);
}
// The first unit of a kind.
static int kind_unit(const Layout* layout, int kind) {
    return kind == UNIT_EMBED    ? 0
        : kind == UNIT_LAYER     ? 1
        : kind == UNIT_POSITIONS ? positions_unit(layout)
                                 : layout->count - 2;
}
// Whether a unit has a bf16 copy: positions and the final norm are read in fp32 only.
static int unit_halved(const Layout* layout, int u) {
    return layout->units[u].kind == UNIT_EMBED || layout->units[u].kind == UNIT_LAYER;
}
// Which of the UNIT_BUFFERS a unit uses.
static int unit_buffer(const Layout* layout, int u) {
    int kind = layout->units[u].kind;
    return kind == UNIT_EMBED ? 0 : kind == UNIT_FINAL ? 1 : kind == UNIT_POSITIONS ? 2 : 3 + u % 2;
}
// The first unit that uses buffer b; the others that use it are as large.
static int buffer_unit(const Layout* layout, int b) {
    static const int kinds[UNIT_BUFFERS] = {UNIT_EMBED, UNIT_FINAL, UNIT_POSITIONS, UNIT_LAYER, UNIT_LAYER};
    return kind_unit(layout, kinds[b]);
}
// Numbers of a whole unit, with its padding.
static int64_t unit_whole(const Layout* layout, int u) { return layout->units[u].slice * layout->world; }

// Bytes of a number of an item's tensor i (ITEM_TENSORS): q, k, v and dO are bf16, results and what rows have
// one number of a head fp32. Tensors of HS numbers a row and head are (B, rows, heads * HS), the others (B,
// heads, rows).
static size_t item_size(int kind, int i) {
    return ITEM_TENSORS[kind].wide[i] && !item_is_result(kind) ? 2 : 4;
}
// Bytes of such a tensor for some heads and rows, in whole 256 bytes.
static size_t item_tensor_bytes(const Mesh* mesh, int kind, int i, int64_t heads, int64_t rows) {
    int64_t elements = gpu_sequences(mesh) * rows * heads * (ITEM_TENSORS[kind].wide[i] ? mesh->shape.HS : 1);
    return (size_t)round_up((int64_t)((size_t)elements * item_size(kind, i)), 256);
}
// Bytes of all tensors of an item, as they lie in a slot.
static size_t item_tensors_bytes(const Mesh* mesh, int kind, int64_t heads, int64_t rows) {
    size_t bytes = 0;
    for (int i = 0; i < ITEM_TENSORS[kind].count; i++) bytes += item_tensor_bytes(mesh, kind, i, heads, rows);
    return bytes;
}
// Numbers from one token to the next of tensor i in the rank's own memory, where q, k and v are parts of qkv.
// For tensors with one number a row and head: from one sequence to the next.
static int64_t own_stride(const Mesh* mesh, int kind, int i, int64_t rows) {
    if (!ITEM_TENSORS[kind].wide[i]) return mesh->shape.NH * rows;
    return item_is_result(kind) || (kind == ITEM_QDO && i == 1) ? mesh->shape.C : 3 * mesh->shape.C;
}
// Whether so many heads of that tensor are not contiguous there, so that they must be packed to travel.
static int own_apart(const Mesh* mesh, int kind, int i, int64_t heads, int64_t rows) {
    int tokens = ITEM_TENSORS[kind].wide[i];
    return gpu_sequences(mesh) * (tokens ? rows : 1) > 1 &&
        own_stride(mesh, kind, i, rows) != heads * (tokens ? mesh->shape.HS : rows);
}
// Makes bytes[slot] large enough for an item of some head parts; nothing for slot -1, the rank's own memory.
static void slot_grow(const Mesh* mesh, const Schedule* table, size_t* bytes, int slot, int kind, int h0,
    int h1, int64_t rows) {
    size_t need = item_tensors_bytes(mesh, kind, part_heads(&mesh->shape, table, h0, h1).count, rows);
    if (slot >= 0 && need > bytes[slot]) bytes[slot] = need;
}
// bytes (slots): what each slot of a rank needs for the largest item that a table ever has in it.
static void slots_measure(const Mesh* mesh, const Schedule* table, int rank, int64_t rows, size_t* bytes) {
    for (int i = 0; i < table->op_count; i++) {
        const ScheduleOp* op = &table->ops[i];
        if (op->rank != rank) continue;
        slot_grow(mesh, table, bytes, op->q_slot, table->backward ? ITEM_QDO : ITEM_Q, op->h0, op->h1, rows);
        slot_grow(mesh, table, bytes, op->kv_slot, ITEM_KV, op->h0, op->h1, rows);
        slot_grow(
            mesh, table, bytes, op->dq_slot, table->backward ? ITEM_DQ : ITEM_OUT, op->h0, op->h1, rows);
        slot_grow(mesh, table, bytes, op->dkv_slot, ITEM_DKV, op->h0, op->h1, rows);
    }
    for (int i = 0; i < table->message_count; i++) {
        const ScheduleMessage* m = &table->messages[i];
        if (m->from == rank)
            slot_grow(mesh, table, bytes, m->src, m->item.kind, m->item.h0, m->item.h1, rows);
        if (m->to == rank) slot_grow(mesh, table, bytes, m->dst, m->item.kind, m->item.h0, m->item.h1, rows);
        if (m->to == rank) slot_grow(mesh, table, bytes, m->into, m->item.kind, m->item.h0, m->item.h1, rows);
    }
}
// Most bytes that a rank packs of its own rows during one step of a table.
static size_t packed_bytes(const Mesh* mesh, const Schedule* table, int rank, int64_t rows) {
    size_t most = 0, bytes = 0;
    for (int i = 0, step = -1; i < table->message_count; i++) {
        const ScheduleMessage* m = &table->messages[i];
        if (m->from != rank || m->src >= 0) continue;
        if (m->step != step) bytes = 0, step = m->step;
        int64_t heads = part_heads(&mesh->shape, table, m->item.h0, m->item.h1).count;
        for (int j = 0; j < ITEM_TENSORS[m->item.kind].count; j++)
            if (own_apart(mesh, m->item.kind, j, heads, rows))
                bytes += item_tensor_bytes(mesh, m->item.kind, j, heads, rows);
        if (bytes > most) most = bytes;
    }
    return most;
}
// Most rows of a sequence that a rank holds; they differ by a token or two.
static int64_t most_rows(const Mesh* mesh) {
    int64_t most = 0;
    for (int i = 0; i < mesh->sp; i++)
        most = max_i64(most, rank_segments(mesh->schedule->kind, mesh->sp, mesh->shape.T, i).total);
    return most;
}

// Memory that is free while a layer's attention runs over the ranks.
typedef struct {
    char* p;
    size_t bytes;
} Room;
// Fills `rooms` with what is free while attention runs in a direction and returns how many there are, in this
// order:
//   1. `wide`. Forward: all but the running softmax (acc, m, l). Backward: all but dO. dqkv is written there
//      after attention, from dkv, so dkv must not be here.
//   2. x2 and ln2, neighbours: layer mode, and forward in attn mode, whose backward pass has dQ there.
//   3. fch: layer mode; backward all but dQ.
//   4. atty: backward in layer mode. Its last reader, delta, is done before any copy starts (gpu_post) and
//      before any op on `beside` does (gpu_run); the next layer computes its own atty again.
enum { ROOMS = 4 };
static int exchange_rooms(const Gpu* d, const Mesh* mesh, int backward, Room rooms[ROOMS]) {
    const Shape* s = &mesh->shape;
    size_t matrix = (size_t)(d->R * s->C) * 2;   // of (R, C) bf16
    size_t softmax = (size_t)round_up((int64_t)(2 * matrix) + d->R * s->NH * 8, 256),
           dq = (size_t)round_up((int64_t)(2 * matrix), 256);
    int layer = mesh->training && mesh->recompute == GPT2_SP_LAYER, count = 0;
    Room wide = {(char*)d->wide + (backward ? 0 : softmax),
        backward                   ? 3 * matrix
            : softmax < 4 * matrix ? 4 * matrix - softmax
                                   : 0};
    rooms[count++] = wide;
    if (layer || (gpu_inputs_again(mesh) && !backward)) {
        Room norm = {(char*)d->act[G_x2], 2 * matrix};
        rooms[count++] = norm;
    }
    if (layer) {
        Room mlp = {(char*)d->act[G_fch] + (backward ? dq : 0), backward ? 4 * matrix - dq : 4 * matrix};
        rooms[count++] = mlp;
    }
    if (layer && backward) {
        Room output = {(char*)d->act[G_atty], matrix};
        rooms[count++] = output;
    }
    return count;
}
// Takes bytes from the first room that is large enough, else from the arena.
static void* exchange_take(Arena* a, Room* rooms, int count, size_t bytes) {
    bytes = (size_t)round_up((int64_t)bytes, 256);
    for (int i = 0; i < count; i++) {
        char* p = rooms[i].p;
        if (bytes > rooms[i].bytes) continue;
        rooms[i].p += bytes, rooms[i].bytes -= bytes;
        return p;
    }
    return gpu_take(a, MEMORY_EXCHANGE, (int64_t)bytes, 1);
}
// Whether a result for the rank's own sums arrives in this slot in a backward table's last step. Such a slot
// is placed outside `wide`: qkv_finish, which writes dqkv there, then adds the result in passing
// (leave_to_end). Not with --recompute layer, which is there to save memory.
static int slot_is_last(const Mesh* mesh, const Schedule* table, int rank, int slot) {
    int last = 0;
    for (int i = 0; i < table->message_count && table->backward && mesh->recompute != GPT2_SP_LAYER; i++) {
        const ScheduleMessage* m = &table->messages[i];
        last |= m->step == table->steps - 1 && m->to == rank && m->merge && m->into < 0 && m->dst == slot;
    }
    return last;
}
// The slots, the packing buffer and dkv of the forward and the backward table. The two never run at the same
// time, so that both directions begin at the same byte of the arena.
static void exchange_layout(Gpu* d, Arena* a, const Rank* r) {
    const Mesh* mesh = r->mesh;
    size_t begin = a->used, largest = 0, before = a->group[MEMORY_EXCHANGE];
    for (int direction = 0; direction <= mesh->training; direction++) {
        const Schedule* table = &mesh->schedule[direction];
        size_t bytes[MAX_SLOTS + 1] = {0};
        Room rooms[ROOMS];
        int count = exchange_rooms(d, mesh, direction, rooms);
        slots_measure(mesh, table, r->place.sp, most_rows(mesh), bytes);
        a->used = begin, a->group[MEMORY_EXCHANGE] = before;
        for (int i = 0; direction == 1 && i < 2; i++)
            d->dkv[i] = (float*)exchange_take(a, rooms + 1, count - 1, (size_t)(d->R * mesh->shape.C) * 4);
        int slots = table->slot_count[r->place.sp];
        bytes[slots] = packed_bytes(mesh, table, r->place.sp, most_rows(mesh));
        for (;;) {   // the largest first
            int i = 0;
            for (int k = 1; k <= slots; k++)
                if (bytes[k] > bytes[i]) i = k;
            if (bytes[i] == 0) break;
            int outside = i < slots && slot_is_last(mesh, table, r->place.sp, i);
            char* p = (char*)exchange_take(a, rooms + outside, count - outside, bytes[i]);
            if (i == slots) d->packed[direction] = p;
            else if (d->slots[direction]) d->slots[direction][i] = p;
            bytes[i] = 0;
        }
        if (a->used - begin > largest) largest = a->used - begin;
    }
    a->used = begin + largest, a->group[MEMORY_EXCHANGE] = before + largest;
}

// Walks through all device memory of a rank: with an arena that has no base to measure it, with one that has
// to set d's pointers (see Arena in the .c).
static void gpu_layout(Gpu* d, Arena* a, const Rank* r) {
    const Mesh* mesh = r->mesh;
    const Layout* layout = r->layout;
    const Shape* s = &mesh->shape;
    int64_t C = s->C, R = gpu_sequences(mesh) * r->Tl;
    d->B = gpu_sequences(mesh), d->R = R;
    const int* sharded = layout->sharded;
    d->state[STATE_WEIGHTS] = (float*)gpu_take(a, MEMORY_WEIGHTS, layout->buffer[STATE_WEIGHTS], 4);
    d->half = (bf16*)gpu_take(a, MEMORY_WEIGHTS,
        sharded[STATE_WEIGHTS] ? 0 : half_offset(layout, s, kind_unit(layout, UNIT_FINAL)), 2);
    for (int i = 0; i < UNIT_BUFFERS; i++) {
        int u = buffer_unit(layout, i);
        for (int state = STATE_WEIGHTS; state <= (mesh->training ? STATE_GRADIENTS : STATE_WEIGHTS);
             state++) {
            int64_t whole = holding(layout, state, u) == HELD_SLICE ? unit_whole(layout, u) : 0;
            if (!sharded[state]) continue;
            d->whole_unit[state][i] = (float*)gpu_take(a, STATE_MEMORY[state], whole, 4);
            if (state == STATE_WEIGHTS)
                d->unit_half[i] = (bf16*)gpu_take(a, MEMORY_WEIGHTS, unit_halved(layout, u) ? whole : 0, 2);
        }
    }
    if (mesh->training) {
        d->state[STATE_GRADIENTS] = (float*)gpu_take(a, MEMORY_GRADIENTS, layout->buffer[STATE_GRADIENTS], 4);
        d->staged = (float*)gpu_take(a, MEMORY_GRADIENTS,
            sharded[STATE_GRADIENTS] ? 0 : (mesh->world - 1) * layout->units[1].slice, 4);
        d->state[STATE_M] = (float*)gpu_take(a, MEMORY_OPTIMIZER, layout->buffer[STATE_M], 4);
        d->state[STATE_V] = (float*)gpu_take(a, MEMORY_OPTIMIZER, layout->buffer[STATE_V], 4);
        d->segment_inputs = (bf16*)gpu_take(a, MEMORY_KEPT,
            mesh->recompute == GPT2_SP_SQRT ? ceil_div(s->L, segment_layers(s, GPT2_SP_SQRT)) * R * C : 0, 2);
    }
    d->x_final = (bf16*)gpu_take(a, MEMORY_WORK, R * C, 2);
    d->rstdf = (float*)gpu_take(a, MEMORY_WORK, R, 4);
    if (mesh->training) {
        d->dx = d->x_final;   // its gradient takes its place, row by row
        d->delta = (float*)gpu_take(a, MEMORY_WORK, R * s->NH, 4);
        d->partial = (float*)gpu_take(a, MEMORY_WORK,
            max_i64(max_i64(NORM_BLOCKS * 3 * C, SUM_BLOCKS * 4 * C), ceil_div(R, BUCKET_ROWS) * 2 * C), 4);
        d->squares = (double*)gpu_take(a, MEMORY_WORK, SQUARE_BLOCKS, 8);
        d->rates = (float*)gpu_take(a, MEMORY_WORK, layout->count * PARAMETER_COUNT, 4);
        d->keys = (int32_t*)gpu_take(a, MEMORY_WORK, R, 4);
        d->sorted_keys = (int32_t*)gpu_take(a, MEMORY_WORK, R, 4);
        d->rows = (int32_t*)gpu_take(a, MEMORY_WORK, R, 4);
        d->sorted_rows = (int32_t*)gpu_take(a, MEMORY_WORK, R, 4);
        d->sort_bytes = embedding_sort_bytes(R);
        d->sort_work = gpu_take(a, MEMORY_WORK, (int64_t)d->sort_bytes, 1);
    }
    d->stats = (double*)gpu_take(a, MEMORY_WORK, STAT_COUNT, 8);
    d->all_stats = (double*)gpu_take(a, MEMORY_WORK, mesh->world * STAT_COUNT, 8);
    for (int i = 0; i < (mesh->sp > 1 ? 2 : 1); i++)
        d->attention_work[i] = (int*)gpu_take(a, MEMORY_WORK,
            (int64_t)attn::attention_backward_work(attention_shape(mesh, most_rows(mesh), NULL)), 1);
    d->workspace = gpu_take(a, MEMORY_WORK, (int64_t)MATMUL_WORKSPACE, 1);
    d->token_loss = (float*)gpu_take(a, MEMORY_LOGITS, R, 4);
    d->token_hit = (unsigned char*)gpu_take(a, MEMORY_LOGITS, R, 1);
    d->tokens = (int32_t*)gpu_take(a, MEMORY_DATA, R, 4);
    d->labels = (int32_t*)gpu_take(a, MEMORY_DATA, R, 4);
    d->positions = positions_told(mesh) ? (int32_t*)gpu_take(a, MEMORY_DATA, R, 4) : NULL;
    d->doc_start = (int32_t*)gpu_take(a, MEMORY_DATA, mesh->doc_mask ? d->B * s->T : 0, 4);
    for (int id = 0; id < GPU_ACTIVATION_COUNT; id++) {   // the head must not touch what is kept
        GpuActivation act = gpu_activation(s, id);
        int kept = mesh->training && gpu_kept(mesh, id);
        if (kept) d->act[id] = gpu_take(a, MEMORY_KEPT, gpu_copies(mesh, id) * R * act.columns, act.size);
    }
    // from here on the layers' buffers and the head's take the same memory
    size_t shared = a->used, work = a->group[MEMORY_WORK];
    for (int id = 0; id < GPU_ACTIVATION_COUNT; id++) {
        GpuActivation act = gpu_activation(s, id);
        if (!(mesh->training && gpu_kept(mesh, id)) &&
            !(gpu_inputs_again(mesh) && (id == G_ln1 || id == G_qkv)))
            d->act[id] = gpu_take(a, MEMORY_WORK, gpu_copies(mesh, id) * R * act.columns, act.size);
    }
    d->wide = (bf16*)gpu_take(a, MEMORY_WORK, R * 4 * C, 2);
    if (gpu_inputs_again(mesh))
        d->act[G_qkv] = d->act[G_fch], d->act[G_ln1] = (bf16*)d->act[G_fch] + 3 * R * C;
    size_t layers = a->used - shared;
    a->used = shared;
    d->lnf = (bf16*)gpu_take(a, MEMORY_WORK, R * C, 2);
    // where memory is short, no more logits at a time than fit in the layers' buffers, but enough for the
    // speed of their products
    d->logits_chunk = min_i64(mesh->logits_chunk, R);
    if (mesh->training && mesh->recompute != GPT2_SP_NONE)
        while (d->logits_chunk > LEAST_LOGITS && (size_t)(R * C + d->logits_chunk * s->Vp) * 2 > layers)
            d->logits_chunk /= 2;
    d->logits = (bf16*)gpu_take(a, MEMORY_WORK, d->logits_chunk * s->Vp, 2);
    size_t head = a->used - shared, most = head > layers ? head : layers;
    a->used = shared + most, a->group[MEMORY_WORK] = work + layers;
    a->group[MEMORY_LOGITS] += most - layers;   // what the logits need beyond the layers' buffers
    if (mesh->sp > 1) exchange_layout(d, a, r);
}

// Refuses what the GPU program cannot do; the line names the option.
static int gpu_check(const Mesh* mesh, const gpt2_sp_options* o, Error* e) {
    if (mesh->world > MAX_RANKS)
        return fail(e, "--dp %d --sp %d: a run of the GPU program has at most %d ranks", mesh->dp, mesh->sp,
            MAX_RANKS);
    if (mesh->zero > 0 && mesh->world == 1)
        return fail(e, "--zero %d: one rank has nothing to share its state with; use --zero 0", mesh->zero);
    if (o->transport == GPT2_SP_PEER && mesh->processes > 1)
        return fail(e, "--transport peer: copies go between the ranks of one process, this run has %d",
            mesh->processes);
#ifndef GPT2_SP_NCCL
    if (o->transport == GPT2_SP_NCCL_ONLY)
        return fail(e, "--transport nccl: this program was built without NCCL");
#endif
    if (o->verify && mesh->world > 1)
        return fail(e, "--verify: compares one rank with the CPU; --check compares several with one");
    const Shape* s = &mesh->shape;
    if (s->HS % 16 != 0 || s->HS < 32 || s->HS > 128)
        return fail(e,
            "head size %lld (--channels %lld / --heads %lld): the GPU's attention has the multiples of 16 "
            "from 32 to 128",
            (long long)s->HS, (long long)s->C, (long long)s->NH);
    if (s->C > MAX_CHANNELS)
        return fail(
            e, "--channels %lld: the GPU's norms take at most %d", (long long)s->C, (int)MAX_CHANNELS);
    return 0;
}

// Measures a rank's device memory by the walk that gpu_allocate takes, and allocates nothing.
static Arena gpu_plan(const Mesh* mesh, const Layout* layout, int world_rank) {
    Gpu* d = (Gpu*)calloc(1, sizeof *d);
    Rank r;
    Arena a;
    memset(&a, 0, sizeof a);
    // CUB asks a GPU for its bytes: one of this process, if there is any
    if (cudaSetDevice(gpu_of(mesh, mesh->first_rank)) != cudaSuccess) (void)cudaGetLastError();
    rank_place(&r, mesh, layout, world_rank);
    if (d) gpu_layout(d, &a, &r);
    free(d);
    return a;
}

// Bytes that all ranks of this machine may take together, judged by the free memory of the GPUs of this
// process' ranks. It asks no other GPU, because a process that does takes memory there until it ends. Where
// there is no GPU it answers as if each rank had an H200, so that `plan` works anywhere.
static uint64_t gpu_memory(const Mesh* mesh) {
    int ranks = mesh->local_ranks * mesh->local_processes, count = gpu_count(ranks), before = 0;
    if (count == 0) return ((uint64_t)143771 << 20) * (uint64_t)ranks;
    uint64_t least = UINT64_MAX;
    cudaGetDevice(&before);
    for (int i = gpu_of(mesh, mesh->first_rank); i <= gpu_of(mesh, mesh->first_rank + mesh->local_ranks - 1);
         i++) {
        size_t free_bytes = 0, total = 0;
        if (cudaSetDevice(i) != cudaSuccess || cudaMemGetInfo(&free_bytes, &total) != cudaSuccess)
            free_bytes = 0;
        if (free_bytes < least) least = free_bytes;
    }
    cudaSetDevice(before);
    return (gpu_bound(ranks, mesh->local_ranks) ? least : least / (uint64_t)ceil_div(ranks, count)) *
        (uint64_t)ranks;
}

// Host memory of run_table: pieces, pack jobs, and flags of slots, ops and messages, for the larger of the
// two tables.
static int gpu_tables(Rank* r, Error* e) {
    const Mesh* mesh = r->mesh;
    Gpu* d = (Gpu*)r->device;
    int64_t slots = 1, ops = 1, messages = 1;
    for (int i = 0; i <= mesh->training; i++) {
        const Schedule* table = &mesh->schedule[i];
        int count = table->slot_count[r->place.sp];
        d->slots[i] = (char**)calloc((size_t)count + 1, sizeof *d->slots[i]);
        if (!d->slots[i]) return fail(e, "out of memory");
        slots = max_i64(slots, count), ops = max_i64(ops, table->op_count);
        messages = max_i64(messages, table->message_count);
    }
    size_t pieces = (size_t)(MAX_PIECES * (2 * mesh->sp + 2));   // of one step: sends, then receives
    r->pieces = (Piece*)calloc(2 * pieces, sizeof *r->pieces);
    d->jobs = (PackJob*)calloc(pieces, sizeof *d->jobs);
    r->slot_filled = (unsigned char*)calloc((size_t)slots, 1);
    r->op_active = (unsigned char*)calloc((size_t)ops, 1);
    r->message_active = (unsigned char*)calloc((size_t)messages, 1);
    r->mark = (unsigned char*)calloc((size_t)mesh->sp * (size_t)mesh->sp * ITEM_KINDS, 1);
    r->first_key = (int64_t*)calloc((size_t)mesh->schedule->chunks, sizeof *r->first_key);
    if (!r->pieces || !d->jobs || !r->slot_filled || !r->op_active || !r->message_active || !r->mark ||
        !r->first_key)
        return fail(e, "out of memory");
    return 0;
}

// Copies the parameters' rates (Unit.rate) to the GPU, which has no room for them where nothing is trained.
static int rates_store(Rank* r, Error* e) {
    Gpu* d = (Gpu*)r->device;
    size_t count = (size_t)r->layout->count * PARAMETER_COUNT;
    if (!r->mesh->training) return 0;
    float* rates = (float*)malloc(count * sizeof *rates);
    if (!rates) return fail(e, "out of memory");
    for (size_t i = 0; i < count; i++)
        rates[i] = (float)r->layout->units[i / PARAMETER_COUNT].rate[i % PARAMETER_COUNT];
    cudaError_t status =
        cudaMemcpyAsync(d->rates, rates, count * sizeof *rates, cudaMemcpyHostToDevice, d->stream);
    if (status == cudaSuccess) status = cudaStreamSynchronize(d->stream);
    free(rates);
    return status == cudaSuccess ? 0 : fail(e, "copying rates: %s", cudaGetErrorString(status));
}

// Makes the GPU's part of a rank: streams and events, its device memory in one piece, and pinned memory on
// the host for batches, token losses and hits. The host's is walked twice, to measure it and to hand it out.
static int gpu_allocate(Rank* r, Error* e) {
    const Mesh* mesh = r->mesh;
    Gpu* d = (Gpu*)calloc(1, sizeof *d);
    if (!d) return fail(e, "out of memory");
    r->device = d;
    Arena plan = gpu_plan(mesh, r->layout, r->world_rank);
    void* base = NULL;
    int major = 0, minor = 0;
    d->ordinal = gpu_of(mesh, r->world_rank);
    CUDA_TRY(e, cudaSetDevice(d->ordinal));
    CUDA_TRY(e, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, d->ordinal));
    CUDA_TRY(e, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, d->ordinal));
    if (major < 8) {
        cudaDeviceProp found;
        CUDA_TRY(e, cudaGetDeviceProperties(&found, d->ordinal));
        return fail(e,
            "this GPU is a %s of compute capability %d.%d: this program needs 8.0 (A100, RTX 30) or newer",
            found.name, major, minor);
    }
    if (gpu_connect(r, e) != 0 || gpu_tables(r, e) != 0) return -1;
    LT_TRY(e, cublasLtCreate(&d->lt));
    CUDA_TRY(e, cudaEventCreate(&d->timer[0]));
    CUDA_TRY(e, cudaEventCreate(&d->timer[1]));
    if (cudaMalloc(&base, plan.used) != cudaSuccess)
        return fail(e, "the GPU has no %.2f GiB in one piece: see `plan`", (double)plan.used / 1073741824);
    d->arena.base = (char*)base;
    gpu_layout(d, &d->arena, r);
    CUDA_TRY(e, cudaMemsetAsync(base, 0, plan.used, d->stream));
    r->arena = d->arena, r->arena.base = NULL;
    int64_t sequences = mesh->shape.B, numbers = 0;
    int32_t* at = NULL;
    for (int walk = 0; walk < 2; walk++) {
        if (walk == 1) CUDA_TRY(e, cudaMallocHost(&d->pinned, (size_t)(numbers * 4 + r->R * 5 + 256)));
        at = (int32_t*)d->pinned;
        for (int i = 0; i < 3; i++) {
            int64_t count = i == 2 ? sequences
                : mesh->training   ? mesh->passes * sequences
                                   : 0,
                    n = count * r->Tl;
            int64_t docs = mesh->doc_mask ? count * mesh->shape.T : 0, told = positions_told(mesh) ? n : 0;
            if (walk == 0) numbers += 2 * n + told + docs;
            else {
                r->batches[i].tokens = at, r->batches[i].labels = at + n;
                at += 2 * n;
                if (told) r->batches[i].positions = at, at += told;
                if (mesh->doc_mask) r->batches[i].doc_start = at, at += docs;
            }
        }
    }
    d->host_stats = (double*)(void*)(((uintptr_t)at + 63) & ~(uintptr_t)63);
    r->token_loss = (real*)(d->host_stats + STAT_COUNT);
    r->token_hit = (unsigned char*)(r->token_loss + r->R);
    CUDA_TRY(e, cudaStreamSynchronize(d->stream));
    return rates_store(r, e);
}

// Frees the library's descriptors of a plan; of all plans of a rank.
static void matmul_plan_free(MatmulPlan* p) {
    if (p->operation) cublasLtMatmulDescDestroy(p->operation);
    for (cublasLtMatrixLayout_t layout : {p->a, p->b, p->d})
        if (layout) cublasLtMatrixLayoutDestroy(layout);
}
static void matmul_plans_release(Gpu* d) {
    for (int i = 0; i < d->plan_count; i++) matmul_plan_free(&d->plans[i]);
    d->plan_count = 0;
}

// Waits, ten seconds at most, until nothing runs that the ranks of this process have enqueued: copies that a
// failed rank left behind read this rank's memory too. 0: something still runs. Ranks that were released
// before are absent from `peers`.
static int gpu_quiet(Rank* r) {
    const Gpu* d = (const Gpu*)r->device;
    const ThreadWorld* w = (const ThreadWorld*)r->transport.state;
    double until = now_ms() + 10e3;
    for (int i = 0; d->peers && i < w->local_ranks; i++)
        if (d->peers[i] && d->peers[i]->stuck) until = 0;
    for (int i = 0; d->peers && i < w->local_ranks; i++) {
        if (!d->peers[i]) continue;
        cudaSetDevice(d->peers[i]->ordinal);
        for (int lane = 0; lane < LANES; lane++) {
            cudaStream_t stream = lane_stream(d->peers[i], lane);
            while (stream && cudaStreamQuery(stream) == cudaErrorNotReady)
                if (now_ms() > until)   // `stuck`: the ranks released after this one do not wait again
                    return d->peers[i]->stuck = 1, 0;
        }
    }
    return 1;
}

// Frees the GPU's part of a rank. Where something still runs, which may use what would be freed, it leaves
// all as it is.
static void gpu_release(Rank* r) {
    Gpu* d = (Gpu*)r->device;
    if (!d) return;
    if (!gpu_quiet(r)) return;
    cudaSetDevice(d->ordinal);
    cudaDeviceSynchronize();
#ifdef GPT2_SP_NCCL
    for (int i = 0; i < 2; i++)
        if (d->comms[i]) ncclCommAbort(d->comms[i]);   // all is done: nothing is left to agree upon
#endif
    matmul_plans_release(d);
    for (int i = 0; d->marks && i < MAX_MARKS; i++) cudaEventDestroy(d->marks[i]);
    free(d->marks);
    for (int i = 0; d->spans && i < MAX_SPANS; i++)
        if (d->spans[i].begin) cudaEventDestroy(d->spans[i].begin), cudaEventDestroy(d->spans[i].end);
    free(d->spans);
    if (d->lt) cublasLtDestroy(d->lt);
    for (int lane = 0; lane < LANES; lane++)
        if (lane_stream(d, lane)) cudaStreamDestroy(lane_stream(d, lane));
    for (cudaEvent_t* event : gpu_events(d, r->layout->count))
        if (*event) cudaEventDestroy(*event);
    for (cudaEvent_t timer : d->timer)
        if (timer) cudaEventDestroy(timer);
    cudaFree(d->arena.base);
    cudaFreeHost(d->pinned);
    free(d->made), free(d->summed), free(d->together), free(d->gather_pending);
    if (d->peers) d->peers[r->world_rank - ((const ThreadWorld*)r->transport.state)->first] = NULL;
    free(d->slots[0]), free(d->slots[1]), free(r->pieces), free(d->jobs);
    free(r->slot_filled), free(r->op_active), free(r->message_active), free(r->mark), free(r->first_key);
    free(d);
    r->device = NULL;
}

// ===== 7. layers (forward, backward) ============================================================
//
// What a layer is made of, forward and backward, in this order:
//
//     matrix products          cuBLASLt: a plan for each shape, whose algorithm is compared with fp64
//     attention kernels        a chunk of queries against a chunk of keys: for Hopper, and for every GPU
//     elementwise              embedding, norms, GELU, sums of columns, cross entropy
//     distributed attention    what the executor of tables (the .c's run_table) asks of the GPU

// --- matrix products: cuBLASLt, a plan per shape ---
//
// When a shape is first met, the library is asked for algorithms. It proposes some that do not compute the
// product: cuBLASLt 13.1 splits sums of K numbers whose last tile is not full (K = 1,154 in tiles of 64,
// three parts of six tiles) and leaves that tile out, among its own first proposals too, and
// cublasLtMatmulAlgoCheck allows it. In the gradient of a weight K is the number of rows: the last tokens
// would be missing from it. So a proposal is taken only if all of this holds:
//     the library allows it for this very product, in the workspace there is;
//     partial sums are added in fp32;
//     where the sum is split, its length is a multiple of the tile;
//     its result on the operands at hand agrees with sums in fp64 at sampled places.
// Of those the fastest is chosen while a step is rehearsed, else (and with --deterministic 1) the first.
// The other ranks of the process take what one has chosen for the same product.

// What a product has beside A B.
enum {
    MATMUL_FP32 = 1,        // the result is fp32, not bf16
    MATMUL_BIAS = 2,        // + bias, one number a row of D
    MATMUL_ADD = 4,         // + C
    MATMUL_GELU = 8,        // the GELU of all that
    MATMUL_GELU_AUX = 16,   // the same, and what it is of goes to aux
    MATMUL_DGELU = 32       // times the GELU's slope at aux
};

// What a product works on: D (m, n) = A B (+ C) (+ bias). Columns are contiguous, as BLAS has them: by rows
// that is D^T. NULL: the product has no such operand.
typedef struct {
    void* out;
    const bf16 *a, *b;
    const void* c;
    const bf16* bias;
    void* aux;   // (m, n) bf16
} MatmulOperands;

// Makes the library's descriptors for p->shape: types, transpositions, epilogue, layouts. The algorithm is
// not chosen yet.
static int matmul_plan_make(Gpu* d, MatmulPlan* p, Error* e) {
    const MatmulShape* s = &p->shape;
    cudaDataType_t out = s->flags & MATMUL_FP32 ? CUDA_R_32F : CUDA_R_16BF;
    cublasOperation_t yes = CUBLAS_OP_T, no = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    if (s->flags & MATMUL_BIAS)
        epilogue = s->flags & MATMUL_GELU_AUX ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS
            : s->flags & MATMUL_GELU          ? CUBLASLT_EPILOGUE_GELU_BIAS
                                              : CUBLASLT_EPILOGUE_BIAS;
    if (s->flags & MATMUL_DGELU) epilogue = CUBLASLT_EPILOGUE_DGELU;
    (void)d;
    p->operation = NULL;
    p->a = p->b = p->d = NULL;   // after a failure matmul_plan_free frees what was made
    LT_TRY(e, cublasLtMatmulDescCreate(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
#define SET(attribute, value) \
    LT_TRY(e, cublasLtMatmulDescSetAttribute(p->operation, attribute, &(value), sizeof(value)))
    SET(CUBLASLT_MATMUL_DESC_TRANSA, s->transposed_a ? yes : no);
    SET(CUBLASLT_MATMUL_DESC_TRANSB, s->transposed_b ? yes : no);
    SET(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (s->flags & (MATMUL_GELU_AUX | MATMUL_DGELU)) SET(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, s->m);
#undef SET
    int64_t a_rows = s->transposed_a ? s->k : s->m, b_rows = s->transposed_b ? s->n : s->k;
    LT_TRY(e,
        cublasLtMatrixLayoutCreate(
            &p->a, CUDA_R_16BF, (uint64_t)a_rows, (uint64_t)(s->m * s->k / a_rows), a_rows));
    LT_TRY(e,
        cublasLtMatrixLayoutCreate(
            &p->b, CUDA_R_16BF, (uint64_t)b_rows, (uint64_t)(s->n * s->k / b_rows), b_rows));
    LT_TRY(e, cublasLtMatrixLayoutCreate(&p->d, out, (uint64_t)s->m, (uint64_t)s->n, s->m));
    return 0;
}

// Whether two products are the same to the library.
static int matmul_same(const MatmulShape* p, const MatmulShape* q) {
    return p->m == q->m && p->n == q->n && p->k == q->k && p->transposed_a == q->transposed_a &&
        p->transposed_b == q->transposed_b && p->flags == q->flags;
}

// Bytes of D.
static size_t matmul_bytes(const MatmulShape* s) {
    return (size_t)(s->m * s->n) * (s->flags & MATMUL_FP32 ? 4 : 2);
}

// Enqueues a product on `stream` with an algorithm, which may be another than the plan's.
static cublasStatus_t matmul_run(
    Gpu* d, const MatmulPlan* p, const MatmulOperands* x, const cublasLtMatmulAlgo_t* algorithm) {
    float one = 1, zero = 0;
    return cublasLtMatmul(d->lt, p->operation, &one, x->a, p->a, x->b, p->b,
        p->shape.flags & MATMUL_ADD ? &one : &zero, x->c ? x->c : x->out, p->d, x->out, p->d, algorithm,
        d->workspace, LT_WORKSPACE, d->stream);
}

// --- what the library proposes ---

// The settings of an algorithm that matter here.
typedef struct {
    int32_t id, splits;   // parts of the sum; 1 or 0: it is not split
    uint32_t tile, stages, reduction;
} MatmulSettings;
// Asks an algorithm for them; what it does not tell stays as it is set here.
static MatmulSettings matmul_settings(const cublasLtMatmulAlgo_t* algorithm) {
    MatmulSettings s = {-1, 1, 0, 0, 0};
    size_t written = 0;
    cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_ID, &s.id, sizeof s.id, &written);
    cublasLtMatmulAlgoConfigGetAttribute(
        algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &s.splits, sizeof s.splits, &written);
    cublasLtMatmulAlgoConfigGetAttribute(
        algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID, &s.tile, sizeof s.tile, &written);
    cublasLtMatmulAlgoConfigGetAttribute(
        algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID, &s.stages, sizeof s.stages, &written);
    cublasLtMatmulAlgoConfigGetAttribute(
        algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &s.reduction, sizeof s.reduction, &written);
    return s;
}
// How many terms of the sum a tile takes, by the stages' id (cublasLtMatmulStages_t: 7 is 32x1, 35 is
// 64xAUTO). An unknown id gives 768, a multiple of all these.
static int64_t matmul_tile_depth(uint32_t stages) {
    static const struct {
        uint32_t first, last;
        int depth;
    } known[] = {{1, 6, 16}, {7, 12, 32}, {13, 18, 64}, {19, 24, 128}, {25, 25, 32}, {26, 26, 8},
        {27, 27, 16}, {28, 28, 8}, {31, 31, 8}, {32, 32, 8}, {33, 33, 16}, {34, 34, 32}, {35, 35, 64},
        {36, 36, 128}, {37, 37, 256}};
    for (auto& k : known)
        if (stages >= k.first && stages <= k.last) return k.depth;
    return 768;
}

// Partial sums may be added in the type of the result (in place or not) only where that is fp32.
static uint32_t matmul_reductions(const MatmulShape* s) {
    return CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE |
        (s->flags & MATMUL_FP32 ? CUBLASLT_REDUCTION_SCHEME_INPLACE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE
                                : 0);
}

// The library's proposals for a plan, the best by its own estimate first; perhaps none.
// Without any of `reductions` it proposes none that splits the sum.
static int matmul_proposals(Gpu* d, const MatmulPlan* p, uint32_t reductions,
    cublasLtMatmulHeuristicResult_t found[PROPOSALS], int* count, Error* e) {
    static const cublasLtMatmulPreferenceAttributes_t aligned[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const MatmulShape* s = &p->shape;
    cublasLtMatmulPreference_t preference;
    uint32_t alignment = 32;
    LT_TRY(e, cublasLtMatmulPreferenceCreate(&preference));
    cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &LT_WORKSPACE, sizeof LT_WORKSPACE);
    cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions);
    for (int i = 0; i < 4; i++)
        cublasLtMatmulPreferenceSetAttribute(preference, aligned[i], &alignment, sizeof alignment);
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        d->lt, p->operation, p->a, p->b, p->d, p->d, preference, PROPOSALS, found, count);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS) *count = 0;
    if (status == CUBLAS_STATUS_SUCCESS || status == CUBLAS_STATUS_NOT_SUPPORTED) return 0;
    return fail(e, "cuBLASLt has no matrix product of %lld x %lld x %lld (flags %d): status %d",
        (long long)s->m, (long long)s->n, (long long)s->k, s->flags, (int)status);
}

// Adds to `found` what the library proposes for the same product of other numbers of rows. It gives eight at
// most, and for another size often one that is faster here.
static int matmul_propose_more(Gpu* d, const MatmulPlan* p, uint32_t reductions,
    cublasLtMatmulHeuristicResult_t found[PROPOSALS], int* count, Error* e) {
    // rows to ask for, in halves of the product's: half as many, twice, four times
    static const int halves[] = {1, 4, 8};
    for (int i = 0; i < 3; i++) {
        cublasLtMatmulHeuristicResult_t more[PROPOSALS];
        MatmulPlan other = *p;
        // a weight's gradient sums over the rows
        int64_t* rows = p->shape.flags & MATMUL_FP32 ? &other.shape.k : &other.shape.n;
        int extra = 0;
        *rows = round_up(*rows * halves[i] / 2, 16);
        if (*rows == 0) continue;
        if (matmul_plan_make(d, &other, e) != 0) {
            matmul_plan_free(&other);
            return -1;
        }
        Error none;
        if (matmul_proposals(d, &other, reductions, more, &extra, &none) != 0) extra = 0;
        matmul_plan_free(&other);
        for (int k = 0; k < extra && *count < PROPOSALS; k++) {
            int known = 0;
            for (int j = 0; j < *count; j++)
                known |= memcmp(&found[j].algo, &more[k].algo, sizeof more[k].algo) == 0;
            if (!known) found[(*count)++] = more[k];
        }
    }
    return 0;
}

// --- which of them compute the product ---

// At how many places of D algorithms are compared: fewer the longer the sums, as the sum in fp64 takes time.
static int matmul_samples(const MatmulShape* s) {
    int64_t most = min_i64(MATMUL_SAMPLES, max_i64(MATMUL_LEAST_SAMPLES, MATMUL_SAMPLED_TERMS / s->k));
    return (int)min_i64(most, s->m * s->n);
}

// samples[i].sum = the sum over l of A(row, l) B(l, column) in fp64, at one place in every 1 / count of D, at
// random there; .square likewise. A warp has a sample; it reads 4 k bytes.
__global__ void matmul_sample_kernel(
    MatmulSample* samples, int count, const bf16* a, const bf16* b, MatmulShape s) {
    int i = (int)(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32), lane = (int)threadIdx.x % 32;
    if (i >= count) return;
    int64_t from = s.m * s.n * i / count, to = s.m * s.n * (i + 1) / count;
    uint32_t hash = (uint32_t)i * 2654435761u;
    hash ^= hash >> 15, hash *= 0x846ca68bu;
    hash ^= hash >> 16;
    int64_t at = from + hash % (to - from), row = at % s.m, column = at / s.m;
    double sum = 0, square = 0;
    for (int64_t l = lane; l < s.k; l += 32) {
        double x = __bfloat162float(s.transposed_a ? a[l + row * s.k] : a[row + l * s.m]),
               y = __bfloat162float(s.transposed_b ? b[column + l * s.n] : b[l + column * s.k]);
        sum += x * y, square += x * y * x * y;
    }
    for (int step = 16; step; step >>= 1)
        sum += __shfl_xor_sync(~0u, sum, step), square += __shfl_xor_sync(~0u, square, step);
    if (lane == 0) samples[i].at = at, samples[i].sum = sum, samples[i].square = square;
}
// samples[i].before = C there, read before the product writes D, which may be C. A thread has a sample.
__global__ void matmul_before_kernel(MatmulSample* samples, int count, const void* c, int fp32) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    int64_t at = samples[i].at;
    samples[i].before = !c ? 0
        : fp32             ? (double)((const float*)c)[at]
                           : (double)__bfloat162float(((const bf16*)c)[at]);
}

// The GELU in its tanh form and its slope, in fp64.
__device__ __forceinline__ double gelu_exact(double x) {
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}
__device__ __forceinline__ double gelu_slope_exact(double x) {
    double t = tanh(0.7978845608028654 * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
}

// The larger of two shares; a NaN is larger than any.
__host__ __device__ __forceinline__ double larger_share(double a, double b) {
    return a > b || a != a ? a : b;
}

// Compares D with the samples. out[0]: the largest error, as a share of its place's tolerance. out[1]: the
// rms of the errors as a share of the rms of the tolerances. NaN where D is not a number and should be one.
// One block of 1024 threads, each with every 1024th sample.
//
// The tolerance of a place. A tensor core multiplies exactly and cuts each addition, of at least eight terms,
// to fp32: 2^-23 of what the sum has grown to, k / 8 times. That is about the larger of the sum and the root
// of its terms' squares. C and the bias are added likewise. A result is rounded once more: 2^-24 of it in
// fp32, 2^-8 in bf16. The GELU's slope is below 1.13. The hardware's tanh is good to 2^-11 of itself; the
// GELU weighs that with x / 2, the GELU's slope at y with 1/2 + |y| (0.8 + 0.11 y^2).
__global__ void matmul_compare_kernel(
    double* out, const MatmulSample* samples, int count, MatmulOperands x, MatmulShape s) {
    __shared__ double most[32], errors[32], tolerances[32];
    double largest = 0, error_square = 0, tolerance_square = 0;
    for (int i = (int)threadIdx.x; i < count; i += (int)blockDim.x) {
        int64_t at = samples[i].at;
        double bias = s.flags & MATMUL_BIAS ? (double)__bfloat162float(x.bias[at % s.m]) : 0;
        double expected = samples[i].sum + samples[i].before + bias;
        double size =
            fmax(fabs(samples[i].sum), sqrt(samples[i].square)) + fabs(samples[i].before) + fabs(bias);
        double tolerance = 0x1p-23 * ((double)s.k / 8 + 8) * size + 1e-36;
        double found = s.flags & MATMUL_FP32 ? (double)((const float*)x.out)[at]
                                             : (double)__bfloat162float(((const bf16*)x.out)[at]);
        double rounding = s.flags & MATMUL_FP32 ? 0x1p-24 : 0x1p-8;
        if (!(size < 1e30)) continue;   // operands that are not finite, or nearly: nothing can be said
        if (s.flags & MATMUL_GELU_AUX) {
            double error = fabs((double)__bfloat162float(((const bf16*)x.aux)[at]) - expected);
            double share = error / (tolerance + rounding * fabs(expected));
            largest = larger_share(largest, share);
        }
        if (s.flags & (MATMUL_GELU | MATMUL_GELU_AUX))
            tolerance = 1.13 * tolerance + 0x1p-12 * fabs(expected), expected = gelu_exact(expected);
        if (s.flags & MATMUL_DGELU) {
            double y = (double)__bfloat162float(((const bf16*)x.aux)[at]);
            double slope = 0x1p-11 * (0.5 + fabs(y) * (0.8 + 0.11 * y * y));
            tolerance = 1.13 * (tolerance + rounding * fabs(expected)) + slope * fabs(expected);
            expected *= gelu_slope_exact(y);
        }
        tolerance += rounding * fabs(expected);
        double error = fabs(found - expected), share = error / tolerance;
        largest = larger_share(largest, share);
        error_square += error * error, tolerance_square += tolerance * tolerance;
    }
    for (int step = 16; step; step >>= 1) {
        largest = larger_share(largest, __shfl_xor_sync(~0u, largest, step));
        error_square += __shfl_xor_sync(~0u, error_square, step);
        tolerance_square += __shfl_xor_sync(~0u, tolerance_square, step);
    }
    int warp = (int)threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) {
        most[warp] = largest;
        errors[warp] = error_square, tolerances[warp] = tolerance_square;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < 32; i++) {
        largest = larger_share(largest, most[i]);
        error_square += errors[i], tolerance_square += tolerances[i];
    }
    out[0] = largest, out[1] = tolerance_square > 0 ? sqrt(error_square / tolerance_square) : 0;
}
static const double MATMUL_LARGEST = 4, MATMUL_RMS = 1;   // the most that out[0] and out[1] may be

// The samples lie in the workspace, behind the library's part.
static MatmulSample* matmul_sample_memory(const Gpu* d) {
    return (MatmulSample*)((char*)d->workspace + LT_WORKSPACE);
}

// Why an algorithm is not to be taken for a product, by its settings alone; "" if they raise no objection.
static Error matmul_objection(Gpu* d, const MatmulPlan* p, const cublasLtMatmulAlgo_t* algorithm) {
    MatmulSettings settings = matmul_settings(algorithm);
    cublasLtMatmulHeuristicResult_t result;
    Error why = {0, {0}};
    int64_t depth = matmul_tile_depth(settings.stages), k = p->shape.k;
    cublasStatus_t status =
        cublasLtMatmulAlgoCheck(d->lt, p->operation, p->a, p->b, p->d, p->d, algorithm, &result);
    if (status != CUBLAS_STATUS_SUCCESS)
        fail(&why, "the library does not allow it here: status %d", (int)status);
    else if (result.workspaceSize > LT_WORKSPACE)
        fail(&why, "it needs a workspace of %zu bytes", result.workspaceSize);
    else if (settings.reduction & ~matmul_reductions(&p->shape)) fail(&why, "it adds partial sums in bf16");
    else if (settings.splits != 0 && settings.splits != 1 && k % depth != 0)
        fail(&why, "it splits a sum of %lld numbers, no multiple of its tile of %lld", (long long)k,
            (long long)depth);
    return why;
}

// Runs an algorithm on the operands and compares D with the samples, whose sums matmul_sample has made. 0, or
// -1 with a line. Waits for `stream`.
static int matmul_agrees(Gpu* d, const MatmulPlan* p, const MatmulOperands* x,
    const cublasLtMatmulAlgo_t* algorithm, double shares[2], Error* why) {
    const MatmulShape* s = &p->shape;
    MatmulSample* samples = matmul_sample_memory(d);
    double* out = (double*)(samples + MATMUL_SAMPLES);
    int count = matmul_samples(s);
    matmul_before_kernel<<<(unsigned)ceil_div(count, 256), 256, 0, d->stream>>>(
        samples, count, x->c, s->flags & MATMUL_FP32);
    cublasStatus_t status = matmul_run(d, p, x, algorithm);
    if (status != CUBLAS_STATUS_SUCCESS) return fail(why, "the library refuses it: status %d", (int)status);
    matmul_compare_kernel<<<1, 1024, 0, d->stream>>>(out, samples, count, *x, *s);
    CUDA_TRY(why, cudaMemcpyAsync(shares, out, 2 * sizeof *shares, cudaMemcpyDeviceToHost, d->stream));
    CUDA_TRY(why, cudaStreamSynchronize(d->stream));
    if (shares[0] <= MATMUL_LARGEST && shares[1] <= MATMUL_RMS) return 0;
    return fail(why, "it is wrong on these operands: by %.3g times what rounding allows, %.3g in the rms",
        shares[0], shares[1]);
}
// Chooses the samples of a product and enqueues their sums.
static void matmul_sample(Gpu* d, const MatmulShape* s, const MatmulOperands* x) {
    int count = matmul_samples(s);
    matmul_sample_kernel<<<(unsigned)ceil_div(count, 8), 256, 0, d->stream>>>(
        matmul_sample_memory(d), count, x->a, x->b, *s);
}

// --profile: prints an algorithm of a product, and why it was refused or chosen.
static void matmul_report(const MatmulShape* s, const cublasLtMatmulAlgo_t* algorithm, const char* text) {
    MatmulSettings a = matmul_settings(algorithm);
    printf("matmul %6lld x %6lld x %6lld flags %2d, algorithm %2d tile %3u stages %2u split %2d: %s\n",
        (long long)s->m, (long long)s->n, (long long)s->k, s->flags, a.id, a.tile, a.stages, a.splits, text);
}

// Puts the proposals that compute the product into `good`, `wanted` at most, and fails if there is none. If
// several are wanted, the library is asked for more than it proposes first.
static int matmul_candidates(Gpu* d, const MatmulPlan* p, const MatmulOperands* x, int wanted,
    cublasLtMatmulAlgo_t good[PROPOSALS], int* count, Error* e) {
    const MatmulShape* s = &p->shape;
    Error why = {0, "it proposes none"};
    int asked = 0;
    *count = 0;
    matmul_sample(d, s, x);
    // Where a sum is no multiple of 64 nearly all that split it would be left out, and often nothing else is
    // proposed: then only the others are asked for, as where nothing at all was taken.
    for (int whole = s->k % 64 != 0; whole < 2 && *count == 0; whole++) {
        cublasLtMatmulHeuristicResult_t found[PROPOSALS];
        uint32_t reductions = whole ? CUBLASLT_REDUCTION_SCHEME_NONE : matmul_reductions(s);
        int proposed = 0;
        if (matmul_proposals(d, p, reductions, found, &proposed, e) != 0) return -1;
        if (wanted > 1 && matmul_propose_more(d, p, reductions, found, &proposed, e) != 0) return -1;
        asked += proposed;
        for (int i = 0; i < proposed && *count < wanted; i++) {
            double shares[2];
            why = matmul_objection(d, p, &found[i].algo);
            int bad = why.text[0] != 0 || matmul_agrees(d, p, x, &found[i].algo, shares, &why) != 0;
            if (!bad) good[(*count)++] = found[i].algo;
            else if (d->products_shown) matmul_report(s, &found[i].algo, why.text);
            // what a bad one left in C, perhaps not finite, would spoil the comparison of the next
            if (bad && x->c == x->out) CUDA_TRY(e, cudaMemsetAsync(x->out, 0, matmul_bytes(s), d->stream));
        }
    }
    CUDA_TRY(e, cudaGetLastError());
    if (*count > 0) return 0;
    return fail(e,
        "cuBLASLt proposes %d algorithms for the product %lld x %lld x %lld (flags %d), none to be taken; "
        "the last: %s",
        asked, (long long)s->m, (long long)s->n, (long long)s->k, s->flags, why.text);
}

// Times the candidates on these very operands, three runs each after one that is not counted: `chosen` is the
// fastest one's number.
static int matmul_fastest(Gpu* d, const MatmulPlan* p, const MatmulOperands* x,
    const cublasLtMatmulAlgo_t* good, int count, int* chosen, Error* e) {
    float best = INFINITY, first = 0;
    *chosen = 0;
    for (int i = 0; i < count; i++) {
        float ms = 0, elapsed = 0;
        for (int j = 0; j < 4; j++) {
            if (j == 1) cudaEventRecord(d->timer[0], d->stream);
            if (matmul_run(d, p, x, &good[i]) != CUBLAS_STATUS_SUCCESS) ms = INFINITY;
        }
        cudaEventRecord(d->timer[1], d->stream);
        CUDA_TRY(e, cudaEventSynchronize(d->timer[1]));
        cudaEventElapsedTime(&elapsed, d->timer[0], d->timer[1]);
        ms += elapsed / 3;
        if (i == 0) first = ms;
        if (ms < best) best = ms, *chosen = i;
    }
    char text[128];
    snprintf(text, sizeof text, "chosen, %d of %d, %.3f ms = %.0f TFLOP/s (the first: %.3f ms)", *chosen + 1,
        count, best, 2e-9 * (double)p->shape.m * (double)p->shape.n * (double)p->shape.k / best, first);
    if (d->products_shown) matmul_report(&p->shape, &good[*chosen], text);
    return 0;
}

// --- choices that are kept ---

// --products FILE, a text file. Its first line names the library and the GPU. Each other line is a product: m
// n k, whether A and B are transposed, flags, the eight words of the algorithm in hexadecimal, and, for the
// reader only, what these say.
static int products_header(char* line, size_t size, Error* e) {
    cudaDeviceProp gpu;
    int device = 0;
    CUDA_TRY(e, cudaGetDevice(&device));
    CUDA_TRY(e, cudaGetDeviceProperties(&gpu, device));
    snprintf(line, size, "gpt2_sp products 1, cuBLASLt %zu, %s\n", cublasLtGetVersion(), gpu.name);
    return 0;
}
// Looks a product up in the file. 1: `algorithm` is the file's choice; 0: the file does not have the product,
// or there is no file; -1: it cannot be read, or was made by another library or for another GPU.
static int products_find(const char* path, const MatmulShape* s, cublasLtMatmulAlgo_t* algorithm, Error* e) {
    char expected[320], line[512] = "";
    int found = 0, number = 1;
    if (products_header(expected, sizeof expected, e) != 0) return -1;
    if (access(path, F_OK) != 0 && errno == ENOENT) return 0;
    struct stat info;
    int fd = input_open(NULL, path, &info, e);
    FILE* f = fd < 0 ? NULL : fdopen(fd, "r");
    if (!f) return fd < 0 ? -1 : fail_file(e, "open --products", path);
    if (!fgets(line, sizeof line, f)) {   // an empty file is begun like one that is not there
        int bad = ferror(f);
        fclose(f);
        return bad ? fail_file(e, "read --products", path) : 0;
    }
    if (strcmp(line, expected) != 0) {
        fclose(f);
        expected[strcspn(expected, "\n")] = line[strcspn(line, "\n")] = 0;
        return fail(e, "--products %.400s: its first line is '%.100s', this program's would be '%.160s'",
            path, line, expected);
    }
    while (found == 0 && fgets(line, sizeof line, f)) {
        MatmulShape t;
        long long m, n, k;
        unsigned long long word[8];
        number++;
        int read = sscanf(line, "%lld %lld %lld %d %d %d %llx %llx %llx %llx %llx %llx %llx %llx", &m, &n, &k,
            &t.transposed_a, &t.transposed_b, &t.flags, &word[0], &word[1], &word[2], &word[3], &word[4],
            &word[5], &word[6], &word[7]);
        t.m = m, t.n = n;
        t.k = k;
        if (read != 14 || !strchr(line, '\n'))
            found = fail(e, "--products %.900s: line %d is no product", path, number);
        else if (matmul_same(&t, s)) {
            for (int i = 0; i < 8; i++) algorithm->data[i] = word[i];
            found = 1;
        }
    }
    fclose(f);
    return found;
}
// Adds a choice to the file, which it begins if there is none.
static int products_append(
    const char* path, const MatmulShape* s, const cublasLtMatmulAlgo_t* algorithm, Error* e) {
    char header[320];
    MatmulSettings a = matmul_settings(algorithm);
    if (products_header(header, sizeof header, e) != 0) return -1;
    FILE* f = fopen(path, "a");
    if (!f) return fail_file(e, "write --products", path);
    if (fseek(f, 0, SEEK_END) == 0 && ftell(f) == 0) fputs(header, f);
    fprintf(f, "%lld %lld %lld %d %d %d", (long long)s->m, (long long)s->n, (long long)s->k, s->transposed_a,
        s->transposed_b, s->flags);
    for (int i = 0; i < 8; i++) fprintf(f, " %llx", (unsigned long long)algorithm->data[i]);
    fprintf(f, "   algorithm %d, tile %u, stages %u, split %d\n", a.id, a.tile, a.stages, a.splits);
    int bad = ferror(f);
    if (fclose(f) != 0 || bad) return fail_file(e, "write --products", path);
    return 0;
}

// Takes the file's choice for a plan. 1: taken; 0: the file has none; -1: an error, also if the choice does
// not pass the tests that every proposal must pass.
static int products_take(Gpu* d, MatmulPlan* p, const MatmulOperands* x, Error* e) {
    Error why = {0, {0}};
    double shares[2];
    int found = products_find(d->products, &p->shape, &p->algorithm, e);
    if (found != 1) return found;
    why = matmul_objection(d, p, &p->algorithm);
    matmul_sample(d, &p->shape, x);
    if (why.text[0] || matmul_agrees(d, p, x, &p->algorithm, shares, &why) != 0)
        return fail(e,
            "--products %.400s: its algorithm for %lld x %lld x %lld (flags %d) is not to be taken: %.300s",
            d->products, (long long)p->shape.m, (long long)p->shape.n, (long long)p->shape.k, p->shape.flags,
            why.text);
    return 1;
}

// Choices by timing serve all ranks of the process, whose GPUs are alike: ranks with the same shapes then use
// the same algorithms. matmul_forced >= 0 (tests) takes candidate number matmul_forced modulo their number.
static MatmulChoice matmul_chosen[2 * MAX_PLANS];
static int matmul_chosen_count, matmul_forced = -1;
// Sets p->algorithm. In this order: the choice of --products; in a rehearsal, an earlier choice of the
// process, then the fastest candidate; else, and with --deterministic 1, the first candidate.
static int matmul_decide(Gpu* d, MatmulPlan* p, const MatmulOperands* x, Error* e) {
    int timed = d->rehearsing && !d->deterministic, count = 0, best = 0;
    cublasLtMatmulAlgo_t good[PROPOSALS];
    int found = d->products[0] ? products_take(d, p, x, e) : 0;
    if (found != 0) return found < 0 ? -1 : 0;
    for (int i = 0; timed && matmul_forced < 0 && i < matmul_chosen_count && !found; i++)
        if (matmul_same(&matmul_chosen[i].shape, &p->shape))
            p->algorithm = matmul_chosen[i].algorithm, found = 1;
    if (!found) {
        if (matmul_candidates(d, p, x, timed || matmul_forced >= 0 ? PROPOSALS : 1, good, &count, e) != 0)
            return -1;
        if (matmul_forced >= 0) best = matmul_forced % count;
        else if (timed && matmul_fastest(d, p, x, good, count, &best, e) != 0) return -1;
        p->algorithm = good[best];
        if (timed && matmul_forced < 0 && matmul_chosen_count < 2 * MAX_PLANS)
            matmul_chosen[matmul_chosen_count++] = {p->shape, p->algorithm};
    }
    return d->products[0] ? products_append(d->products, &p->shape, &p->algorithm, e) : 0;
}

// Chooses a plan's algorithm, one rank at a time, so that none disturbs another's timing. Trying algorithms
// changes D where it is added to. A rehearsal throws D away; elsewhere D is saved before and put back after.
static int matmul_choose(Gpu* d, MatmulPlan* p, const MatmulOperands* x, Error* e) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    size_t bytes = matmul_bytes(&p->shape);
    void* kept = NULL;
    int keep = x->c == x->out && !d->rehearsing;
    if (keep) {
        CUDA_TRY(e, cudaMalloc(&kept, bytes));
        CUDA_TRY(e, cudaMemcpyAsync(kept, x->out, bytes, cudaMemcpyDeviceToDevice, d->stream));
    }
    pthread_mutex_lock(&mutex);
    int status = matmul_decide(d, p, x, e);
    pthread_mutex_unlock(&mutex);
    if (!keep) return status;
    cudaError_t back = cudaMemcpyAsync(x->out, kept, bytes, cudaMemcpyDeviceToDevice, d->stream);
    if (back == cudaSuccess) back = cudaStreamSynchronize(d->stream);
    cudaFree(kept);
    if (status == 0) CUDA_TRY(e, back);
    return status;
}

// Enqueues D = A B on `stream` as shape and operands say. The first use of a shape makes its plan and chooses
// its algorithm, for which the host waits.
static int matmul(Gpu* d, const MatmulShape& shape, const MatmulOperands& x, Error* e) {
    MatmulPlan* p = NULL;
    for (int i = 0; i < d->plan_count && !p; i++)
        if (matmul_same(&d->plans[i].shape, &shape)) p = &d->plans[i];
    int fresh = !p;
    if (fresh) {
        if (d->plan_count == MAX_PLANS) return fail(e, "more than %d shapes of matrix products", MAX_PLANS);
        p = &d->plans[d->plan_count];
        memset(p, 0, sizeof *p);
        p->shape = shape;
        if (matmul_plan_make(d, p, e) != 0) {
            matmul_plan_free(p);
            return -1;
        }
        d->plan_count++;
    }
    if (x.bias)
        LT_TRY(e,
            cublasLtMatmulDescSetAttribute(
                p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &x.bias, sizeof x.bias));
    if (x.aux)
        LT_TRY(e,
            cublasLtMatmulDescSetAttribute(
                p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &x.aux, sizeof x.aux));
    if (fresh && matmul_choose(d, p, &x, e) != 0) {
        matmul_plan_free(p);   // a plan without an algorithm must not stay
        d->plan_count--;
        return -1;
    }
    LT_TRY(e, matmul_run(d, p, &x, &p->algorithm));
    return 0;
}

// out (R, OC) = inp (R, C) weight (OC, C)^T + bias (OC) [+ add (R, OC)]
static int matmul_forward(Gpu* d, bf16* out, const bf16* inp, const bf16* weight, const bf16* bias,
    const bf16* add, int64_t R, int64_t C, int64_t OC, Error* e) {
    int flags = (bias ? MATMUL_BIAS : 0) | (add ? MATMUL_ADD : 0);
    return matmul(d, {OC, R, C, 1, 0, flags}, {out, weight, inp, add, bias, NULL}, e);
}
// out = the GELU of that; the value before the GELU goes to aux (R, OC) unless aux is NULL
static int matmul_gelu_forward(Gpu* d, bf16* out, bf16* aux, const bf16* inp, const bf16* weight,
    const bf16* bias, int64_t R, int64_t C, int64_t OC, Error* e) {
    int flags = MATMUL_BIAS | (aux ? MATMUL_GELU_AUX : MATMUL_GELU);
    return matmul(d, {OC, R, C, 1, 0, flags}, {out, weight, inp, NULL, bias, aux}, e);
}
// dinp (R, C) = dout (R, OC) weight (OC, C) [times gelu'(aux)]
static int matmul_backward_input(Gpu* d, bf16* dinp, const bf16* dout, const bf16* weight, const bf16* aux,
    int64_t R, int64_t C, int64_t OC, Error* e) {
    return matmul(
        d, {C, R, OC, 0, 0, aux ? MATMUL_DGELU : 0}, {dinp, weight, dout, NULL, NULL, (void*)aux}, e);
}
// dweight (OC, C) += dout^T inp, in fp32; dweight NULL: nothing
static int matmul_backward_weight(
    Gpu* d, float* dweight, const bf16* dout, const bf16* inp, int64_t R, int64_t C, int64_t OC, Error* e) {
    if (!dweight) return 0;
    return matmul(
        d, {C, OC, R, 0, 1, MATMUL_FP32 | MATMUL_ADD}, {dweight, inp, dout, dweight, NULL, NULL}, e);
}

// --- attention kernels ---
//
// Exact attention of one chunk of queries over one chunk of keys, forward and backward. The kernels
// that follow run on Hopper (sm_90a) for head sizes 64 and 128, the portable ones after them on
// every GPU from sm_80 on for all head sizes up to 128. attention_forward and attention_backward,
// at the end, choose between them; what one kind carries, the other reads.
//
// For each sequence b and head h, with the absolute positions i = q_pos + row and j = k_pos + column:
//     visible(i,j) = (not causal or j <= i) and (no doc_start or j >= doc_start[row])
//     lse_i   = ln sum over visible j of exp(scale q_i . k_j)
//     P_ij    = exp(scale q_i . k_j - lse_i), 0 if j is not visible        O = P V
//     delta_i = dO_i . O_i                                                 dS = P * (dO V^T - delta)
//     dV += P^T dO          dQ += dS K (without scale, see below)          dK += scale dS^T Q
// A row that sees no key gives O = 0 and lse = -inf, and adds nothing to any gradient.
//
// Chunks. Those of a sequence may be at hand at different times, or on different GPUs. A forward
// launch hands the next one over the same queries a carry in fp32, (O~, m, l): with s_j = scale
// log2(e) q . k_j and p_j = 2^(s_j - m) these are O~ = sum of p_j v_j and l = sum of p_j. m, in
// base-2 units, is any number that keeps the powers in range: the row's maximum, or one within 8 of
// it. The last launch divides, and writes O and lse. A backward launch needs the lse and delta of
// the whole row, and then only adds, in fp32, to dQ, dK and dV. dQ is summed without the factor
// `scale`, which attention_dq_finish applies when it casts.
//
//     attention_forward(args, stream)      one (query chunk, key chunk) pair; carry in and out optional
//     attention_merge(...)                 adds two carries of the same rows, or turns one into O and lse
//     attention_delta(...)                 delta = rowsum(dO * O)
//     attention_backward(args, stream)     one pair; args.deterministic orders the additions into dQ
//     attention_dq_finish(...)             dQ (fp32, unscaled) -> scale * dQ (bf16)
// All are asynchronous, work on the current device, and keep nothing between calls, so that threads
// with a device each may call them at the same time.
//
// Tensors are views (AttnView): the packed output of a QKV product (token stride 3C, head stride HS) and
// head-major tensors are both read in place. What is copied into shared memory needs a base aligned to
// 16 bytes and strides of a multiple of 16 bytes; anything else is refused with cudaErrorInvalidValue.
//
// The letters: B batch, NH heads, HS head size (D where kernels are made for it), Tq and Tk rows of
// this chunk of queries and keys, g = lane / 4 and t = lane % 4 of a thread (t2 = 2t).
//
// Ideas: FlashAttention-2/3 (warp specialisation, ping-pong, transposed S in backward, dQ by bulk
// reduction), ThunderKittens (accumulators preloaded with -lse). Build: nvcc -O3 -std=c++17
// -gencode=arch=compute_90a,code=sm_90a; a C75xx line from ptxas means that products were put one
// after the other, at half the speed: treat it as an error.

// --- PTX in small pieces ---
//
// Instructions that C++ has no name for, a function each.
//
// In registers. Of the 64 x N accumulator of a wgmma, warp w of the warpgroup owns rows 16w to 16w
// + 15, and a thread rows g and g + 8 of these and columns 8j + 2t, 8j + 2t + 1: d[4j], d[4j+1] are
// of row g, d[4j+2], d[4j+3] of row g + 8. Rounded to bf16 in pairs it is exactly the register A
// operand of the next wgmma.
//
// In shared memory. A tile is rows of 64 numbers, 128 bytes, in the 128-byte swizzle: 16-byte piece c
// of row r lies at 128 r + 16 (c ^ (r % 8)), so that 8 rows of one column of pieces lie in different
// banks. Head size 128 takes two tiles, one for each 64 columns, the second right after the first.
namespace attn {
static const float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

// The address of p in shared memory. Accesses through the pointer would be generic, several times slower.
__device__ __forceinline__ uint32_t smem_of(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// Two floats as bf16x2, lo in the low half.
__device__ __forceinline__ uint32_t pack(float lo, float hi) {
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
    return y;
}

// mbarriers. A phase of one ends when `count` arrivals and all bytes that it was told to expect are in.
__device__ __forceinline__ void bar_init(uint64_t* b, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_of(b)), "r"(count));
}
// After the last bar_init, before the copy engine arrives on any of them.
__device__ __forceinline__ void bar_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void bar_arrive(uint64_t* b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_of(b)) : "memory");
}
__device__ __forceinline__ void bar_expect(uint64_t* b, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_of(b)), "r"(bytes)
                 : "memory");
}
// Waits for the end of the phase of this parity: the first phase of a barrier has parity 0, and the
// one before it, parity 1, has ended from the beginning.
__device__ __forceinline__ void bar_wait(uint64_t* b, int parity) {
#ifdef ATTN_JITTER   // one wait in that many begins some microseconds late: no order of the warps may matter
    uint32_t x = ((uint32_t)clock() + (threadIdx.x >> 5) * 0x9E3779B9u) * 0x85EBCA6Bu;
    if ((x >> 8) % ATTN_JITTER == 0) __nanosleep(x >> 20);
#endif
    asm volatile("{\n.reg .pred P;\n"
                 "AGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 P, [%0], %1;\n"
                 "@P bra DONE;\nbra AGAIN;\nDONE:\n}\n" ::"r"(smem_of(b)),
                 "r"(parity)
                 : "memory");
}
// The next buffer of a ring of N, and the parity to wait for there. A reader begins with {0, 0}: it
// waits for the end of phase 0 of `full`. A writer begins with {1, 0}: phase 1 of `empty` has ended
// from the beginning.
template <int N> struct Ring {
    int phase, stage;
    __device__ void next() {
        if (++stage == N) stage = 0, phase ^= 1;
    }
};
// One thread arrives on an mbarrier for all that have read or written the buffer that it guards.
// What has brought these together:
//     q_full, forward        one thread has written a tile's number, which the consumers read: nothing to do
//     q_empty, forward       128 threads have read it: a product and the wait for it, or a named barrier
//     q_full, backward       32 lanes have written the rows' numbers: proxy_fence, __syncwarp
//     q_empty, backward      128 threads, or their products, have read these: the wait for a product
//     tile_full, backward    one thread has written a tile's number, which 352 threads read: nothing to do
//     tile_empty, backward   128 threads have read it: a named barrier; or 32 have: __syncwarp
// A warpgroup's product is of all four warps together. racecheck follows an mbarrier only from
// threads that arrive on it themselves, so for its sake all of them do with ATTN_ALL_ARRIVE (make
// sanitize-gpu), and then it must find nothing.
#ifdef ATTN_ALL_ARRIVE
static const int WARP_ARRIVALS = 32, GROUP_ARRIVALS = 128;
#else
static const int WARP_ARRIVALS = 1, GROUP_ARRIVALS = 1;
#endif
// Whether this thread, by its number in the warp or warpgroup, is one that arrives.
__device__ __forceinline__ bool arrives(int thread) { return GROUP_ARRIVALS > 1 || thread == 0; }

// Named barriers: THREADS threads meet at barrier `id`, of which some wait and others only arrive.
template <int THREADS> __device__ __forceinline__ void named_sync(int id) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}
template <int THREADS> __device__ __forceinline__ void named_arrive(int id) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}

// The tensor copy engine (TMA) between device and shared memory: a box of a tensor map from (col,
// row, head, batch) on. A load arrives on `bar`; stores and additions are waited for in groups.
static const uint64_t L2_FIRST = 0x12F0000000000000ull,   // cache policies: evict_first
    L2_LAST = 0x14F0000000000000ull;                      // evict_last
__device__ __forceinline__ void tma_load(
    void* dst, const CUtensorMap* map, uint64_t* bar, int col, int row, int head, int batch, uint64_t hint) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(smem_of(dst)),
                 "l"(map), "r"(col), "r"(row), "r"(head), "r"(batch), "r"(smem_of(bar)), "l"(hint)
                 : "memory");
}
// ROWS tokens of a head of D numbers, its columns 64 at a time: tiles of 64 columns one after the other.
template <int D, int ROWS>
__device__ __forceinline__ void tma_load_tile(
    bf16* dst, const CUtensorMap* map, uint64_t* bar, int row, int head, int batch, uint64_t hint) {
#pragma unroll
    for (int col = 0; col < D; col += 64) tma_load(dst + ROWS * col, map, bar, col, row, head, batch, hint);
}
__device__ __forceinline__ void tma_store(
    const CUtensorMap* map, const void* src, int col, int row, int head, int batch) {
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(map),
        "r"(col), "r"(row), "r"(head), "r"(batch), "r"(smem_of(src))
        : "memory");
}
__device__ __forceinline__ void tma_add(
    const CUtensorMap* map, const void* src, int col, int row, int head, int batch) {
    asm volatile("cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.bulk_group "
                 "[%0, {%1, %2, %3, %4}], [%5];" ::"l"(map),
                 "r"(col), "r"(row), "r"(head), "r"(batch), "r"(smem_of(src))
                 : "memory");
}
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until this thread's groups have read shared memory.
__device__ __forceinline__ void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
// Waits until they are done.
__device__ __forceinline__ void bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// Orders this thread's accesses before those of the copy engine and of wgmma: to shared memory; to any.
__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void proxy_fence_all() { asm volatile("fence.proxy.async;" ::: "memory"); }

// 0 for every x, NaN patterns too, but not to the compiler: a dependence on x that costs two instructions.
__device__ __forceinline__ int opaque_zero(int x) {
    int y;
    asm volatile("popc.b32 %0, %1;" : "=r"(y) : "r"(x));
    return y >> 6;
}
// A number that all lanes of the warp have, and that the compiler then knows to be one: a uniform register.
__device__ __forceinline__ int warp_uniform(int x) { return __reduce_max_sync(~0u, x); }

// Shared memory by address: 1, 2 or 4 words.
__device__ __forceinline__ int lds1(uint32_t a) {
    int v;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(a) : "memory");
    return v;
}
__device__ __forceinline__ float lds1_volatile(uint32_t a) {
    float v;
    asm volatile("ld.volatile.shared.f32 %0, [%1];" : "=f"(v) : "r"(a) : "memory");
    return v;
}
__device__ __forceinline__ float2 lds2(uint32_t a) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(a) : "memory");
    return v;
}
__device__ __forceinline__ uint4 lds4(uint32_t a) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(a)
                 : "memory");
    return v;
}
__device__ __forceinline__ void sts1(uint32_t a, uint32_t x) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(a), "r"(x) : "memory");
}
__device__ __forceinline__ void sts2(uint32_t a, float x, float y) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(a), "f"(x), "f"(y) : "memory");
}
__device__ __forceinline__ void sts4(uint32_t a, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(a), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}
// Four 8 x 8 matrices of bf16 from registers; lanes 8i to 8i + 7 give the addresses of the rows of
// matrix i. The second: transposed.
__device__ __forceinline__ void stmatrix4(uint32_t addr, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(addr), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
}
__device__ __forceinline__ void stmatrix4_trans(
    uint32_t addr, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(addr), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
}

// p[0] += x, p[1] += y in device memory, without waiting for it.
__device__ __forceinline__ void red2(float* p, float x, float y) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(p), "f"(x), "f"(y) : "memory");
#else
    asm volatile("red.global.add.f32 [%0], %1;\nred.global.add.f32 [%0 + 4], %2;" ::"l"(p), "f"(x), "f"(y)
                 : "memory");
#endif
}
// A counter in device memory by which blocks of threads take turns.
__device__ __forceinline__ int load_acquire(const int* p) {
    int v;
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ void add_release(int* p, int x) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}

// wgmma, the product of a warpgroup: asynchronous, waited for in groups.
//
// Low word of the matrix descriptor of a swizzled tile: rows of 128 bytes, groups of 8 rows 1024
// bytes apart (the high word is constant: 1024 / 16 and the swizzle mode). K-major operands step 16
// of K by +32 bytes (+2), M/N-major ones by 16 rows = +2048 bytes (+128). lbo: distance to the next
// 64 columns, used by N-major operands wider than 64 only.
__device__ __forceinline__ uint32_t desc_of(const void* p, uint32_t lbo = 16) {
    return (smem_of(p) & 0x3FFFF) >> 4 | (lbo >> 4) << 16;
}
__device__ __forceinline__ void mma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void mma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most N groups are not done.
template <int N> __device__ __forceinline__ void mma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Keeps the compiler from moving uses of these registers across the asm around it.
template <int N> __device__ __forceinline__ void hold(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N> __device__ __forceinline__ void hold(uint32_t (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(d[i])::"memory");
}
template <int N> __device__ __forceinline__ void zero(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) d[i] = 0.f;
}
// Registers of a thread from here on, of all threads of a warpgroup.
template <int N> __device__ __forceinline__ void regs_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void regs_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// The accumulators of the wrappers below come first: as operands, and as they are called in the instruction.
#define ACC_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ACC_8(d, i) ACC_4(d, i), ACC_4(d, i + 4)
#define ACC_32(d, i) ACC_8(d, i), ACC_8(d, i + 8), ACC_8(d, i + 16), ACC_8(d, i + 24)
#define ACC_0_31 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ACC_32_63 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d (64 x N) = A (64 x 16, shared) * B (16 x N, shared) + (accumulate ? d : 0), N = 128 and 64.
// TA/TB = 1: that operand is M/N-major.
template <int TA, int TB>
__device__ __forceinline__ void wgmma_ss(float (&d)[64], uint32_t a, uint32_t b, int accumulate) {
    asm volatile("{\n.reg .pred p;\n.reg .b64 da, db;\nsetp.ne.b32 p, %66, 0;\n"
                 "mov.b64 da, {%64, 0x40000040};\nmov.b64 db, {%65, 0x40000040};\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" ACC_0_31 ", " ACC_32_63
                 "}, da, db, p, 1, 1, %67, %68;\n}\n"
                 : ACC_32(d, 0), ACC_32(d, 32)
                 : "r"(a), "r"(b), "r"(accumulate), "n"(TA), "n"(TB));
}
template <int TA, int TB>
__device__ __forceinline__ void wgmma_ss(float (&d)[32], uint32_t a, uint32_t b, int accumulate) {
    asm volatile("{\n.reg .pred p;\n.reg .b64 da, db;\nsetp.ne.b32 p, %34, 0;\n"
                 "mov.b64 da, {%32, 0x40000040};\nmov.b64 db, {%33, 0x40000040};\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" ACC_0_31
                 "}, da, db, p, 1, 1, %35, %36;\n}\n"
                 : ACC_32(d, 0)
                 : "r"(a), "r"(b), "r"(accumulate), "n"(TA), "n"(TB));
}

// d = A (64 x 16) * B (16 x N), both shared, K-major and not swizzled: core matrices of 8 rows of
// 16 bytes, B's of 8 columns each one after the other (128 / 16 in the descriptor's high word). A
// has the same core matrix in all its rows (0 there).
__device__ __forceinline__ void wgmma_pick(float (&d)[64], uint32_t a, uint32_t b) {
    asm volatile("{\n.reg .pred p;\n.reg .b64 da, db;\nsetp.ne.b32 p, 0, 0;\n"
                 "mov.b64 da, {%64, 0};\nmov.b64 db, {%65, 8};\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" ACC_0_31 ", " ACC_32_63
                 "}, da, db, p, 1, 1, 0, 0;\n}\n"
                 : ACC_32(d, 0), ACC_32(d, 32)
                 : "r"(a), "r"(b));
}
__device__ __forceinline__ void wgmma_pick(float (&d)[32], uint32_t a, uint32_t b) {
    asm volatile("{\n.reg .pred p;\n.reg .b64 da, db;\nsetp.ne.b32 p, 0, 0;\n"
                 "mov.b64 da, {%32, 0};\nmov.b64 db, {%33, 8};\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" ACC_0_31
                 "}, da, db, p, 1, 1, 0, 0;\n}\n"
                 : ACC_32(d, 0)
                 : "r"(a), "r"(b));
}

// d (64 x N) += A (64 x 16, registers) * B (16 x N, shared), N = 64 and 128.
template <int TB>
__device__ __forceinline__ void wgmma_rs(
    float (&d)[32], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b) {
    asm volatile("{\n.reg .pred p;\n.reg .b64 db;\nsetp.eq.b32 p, 0, 0;\nmov.b64 db, {%36, 0x40000040};\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" ACC_0_31
                 "}, {%32, %33, %34, %35}, db, p, 1, 1, %37;\n}\n"
                 : ACC_32(d, 0)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b), "n"(TB));
}
template <int TB>
__device__ __forceinline__ void wgmma_rs(
    float (&d)[64], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b) {
    asm volatile("{\n.reg .pred p;\n.reg .b64 db;\nsetp.eq.b32 p, 0, 0;\nmov.b64 db, {%68, 0x40000040};\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" ACC_0_31 ", " ACC_32_63
                 "}, {%64, %65, %66, %67}, db, p, 1, 1, %69;\n}\n"
                 : ACC_32(d, 0), ACC_32(d, 32)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b), "n"(TB));
}

// --- forward ---
//
// One block of threads per SM stays for the whole launch and takes tiles by a counter in device
// memory: ROWS queries of a head, whose keys come in blocks of 128, from the last that any of them
// sees to the first. Warpgroup 0 loads: one of its threads has the copy engine bring Q, and K and V
// block by block, into rings of buffers in shared memory. Each of the other warpgroups, the
// consumers, owns 64 of the queries, whose S, P and O never leave its registers. It passes over the
// blocks that its rows do not see, and never waits for another consumer, only for the loader.
//
//     barriers                  who arrives                             who waits, for what
//     q_full, k_full, v_full    the copy (q_full too: no more tiles)    consumers, to read the buffer
//     q_empty, k_empty, v_empty all consumers, done with it             loader, to fill it again
//     BAR_GROUP + wg            the four warps of consumer wg           each other
//
//     A consumer in block n, from left to right (head size 64; two halves instead of quarters with 128):
//     tensor cores   S(n)              PV 1/4   PV 2/4   PV 3/4   PV 4/4   S(n-1)
//     arithmetic           max    exp 1/4  exp 2/4  exp 3/4  exp 4/4                max    exp 1/4 ...
//     waits for                ^ v_full(n), k_full(n-1)
//     arrives on                                                  v_empty(n) ^    ^ k_empty(n-1)
static const int FWD_COLS = 128;   // keys of a block
template <int D> struct FwdTile {
    static const int GROUPS = D == 64 ? 3 : 2;   // consumers
    static const int ROWS = 64 * GROUPS;         // queries
    static const int STAGES = D == 64 ? 3 : 2;   // blocks of K, and of V, in shared memory
    static const int THREADS = 128 + 128 * GROUPS;
    // Registers of a thread of the loader, and of a consumer, whose S and O take 64 + D / 2 of them.
    static const int REGS_LOAD = D == 64 ? 32 : 24, REGS = D == 64 ? 160 : 240;
    // P is computed in so many parts, each followed by its share of P V. With head size 128, where
    // a share is twice the work, two are 3 % faster than four.
    static const int PARTS = D == 64 ? 4 : 2;
};

template <int D> struct FwdSmem {
    static const int STAGES = FwdTile<D>::STAGES;
    bf16 q[2][FwdTile<D>::ROWS * D];   // of this tile, and of the next one, which loads meanwhile
    bf16 k[STAGES][FWD_COLS * D];
    bf16 v[STAGES][FWD_COLS * D];
    bf16 unused[D == 64 ? 1024 : 512];    // nothing; the kernel has not been timed without it
    bf16 o[FwdTile<D>::GROUPS][64 * D];   // each consumer's O on its way to memory
    uint64_t q_full[2], q_empty[2];
    uint64_t k_full[STAGES], k_empty[STAGES];
    uint64_t v_full[STAGES], v_empty[STAGES];
    int tile[2];   // number of the tile in q[i], -1 = no more
};
enum { BAR_GROUP = 4 };   // named barrier, + the consumer's number
struct FwdParams {
    CUtensorMap q, k, v, o;
    AttnForward a;
    int tiles, row_tiles;   // of all heads, of one
    int section;            // heads whose K and V stay in L2 together
    int before;             // rows of the first tile that lie before row 0, a multiple of 64, so that the
                            // short tile is the one with the fewest keys
};

// A piece of work of a block of threads.
struct Tile {
    int row, head, batch;   // row: number of the row tile; backward: of the block of keys
};
// Tile number t. Sections of heads come one after the other; inside a section the last row tiles of
// its heads, which see the most keys, come first.
__device__ __forceinline__ Tile fwd_tile(const FwdParams& p, int t) {
    int per = p.section * p.row_tiles, sec = t / per;
    int r = t - sec * per;
    int heads = min(p.section, p.a.s.B * p.a.s.NH - sec * p.section);
    int row = r / heads, bh = sec * p.section + r - row * heads;
    return {p.row_tiles - 1 - row, bh % p.a.s.NH, bh / p.a.s.NH};
}
// Blocks [lo, hi) of COLS keys that hold any key that rows r0 to r1 of sequence b see.
template <int COLS>
__device__ __forceinline__ void key_range(const AttnShape& s, int b, int r0, int r1, int& lo, int& hi) {
    int end = s.causal ? min(s.Tk, s.q_pos - s.k_pos + r1 + 1) : s.Tk;
    hi = end > 0 ? (end + COLS - 1) / COLS : 0;
    lo = s.doc_start ? max(0, s.doc_start[b * s.doc_batch + r0] - s.k_pos) / COLS : 0;
    lo = min(lo, hi);
}
// The same for a tile, [lo, hi), and of these [first, end) that a consumer's rows r0 to r1, if it
// has `any`, see: lo <= first <= end <= hi.
struct FwdSpan {
    int hi, end, first, lo;
};
template <int ROWS>
__device__ __forceinline__ FwdSpan fwd_span(
    const AttnShape& shape, int batch, int tile_row, int r0, int r1, bool any) {
    FwdSpan x;
    key_range<FWD_COLS>(shape, batch, max(tile_row, 0), min(tile_row + ROWS, shape.Tq) - 1, x.lo, x.hi);
    x.first = x.end = x.lo;
    if (any) key_range<FWD_COLS>(shape, batch, r0, r1, x.first, x.end);
    if (x.first >= x.end) x.first = x.end = x.lo;
    x.lo = warp_uniform(x.lo);
    x.hi = warp_uniform(x.hi);
    x.first = warp_uniform(x.first);
    x.end = warp_uniform(x.end);
    return x;
}

// S = Q K^T of a consumer's 64 rows and a block of keys. Asynchronous. dq, dk: descriptors of Q and K.
template <int D> __device__ __forceinline__ void fwd_scores(float (&s)[64], uint32_t dq, uint32_t dk) {
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
        wgmma_ss<0, 0>(s, dq + (kk >> 2) * 8 * FwdTile<D>::ROWS + (kk & 3) * 2,
            dk + (kk >> 2) * 8 * FWD_COLS + (kk & 3) * 2, kk != 0);
    mma_commit();
}
// Scores of keys that a row does not see become -inf: of a thread's rows `row` and row + 8, in
// block n. rel: position of query row 0 after key 0; doc: doc_start of the sequence, or NULL.
__device__ __forceinline__ void fwd_mask(
    float (&s)[64], const AttnShape& shape, const int* doc, int rel, int row, int n, int t2) {
    const int k0 = n * FWD_COLS;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int end = (shape.causal ? min(shape.Tk, rel + row + 8 * r + 1) : shape.Tk) - k0 - t2;
        int begin = doc ? doc[min(row + 8 * r, shape.Tq - 1)] - shape.k_pos - k0 - t2 : -1 << 30;
#pragma unroll
        for (int j = 0; j < 16; j++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (8 * j + e >= end || 8 * j + e < begin) s[4 * j + 2 * r + e] = -INFINITY;
    }
}
// Sum over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}
// Largest of this thread's 32 scores of row r (0: g, 1: g + 8).
__device__ __forceinline__ float max_of_row(const float (&s)[64], int r) {
    float a = fmaxf(s[2 * r], s[2 * r + 1]), b = fmaxf(s[2 * r + 32], s[2 * r + 33]);
#pragma unroll
    for (int j = 1; j < 8; j++) {
        a = fmaxf(a, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
        b = fmaxf(b, fmaxf(s[4 * j + 2 * r + 32], s[4 * j + 2 * r + 33]));
    }
    return fmaxf(a, b);
}
// The same by comparing the floats' bits as integers, in half the instructions. Negative ones
// compare the wrong way round: right if any score is >= 0, otherwise one of the scores.
__device__ __forceinline__ float imax_of_row(const float (&s)[64], int r) {
    int u[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        u[h] = max(__float_as_int(s[2 * r + 32 * h]), __float_as_int(s[2 * r + 32 * h + 1]));
#pragma unroll
        for (int j = 1; j < 8; j++)
            u[h] = __vimax3_s32(u[h], __float_as_int(s[4 * j + 2 * r + 32 * h]),
                __float_as_int(s[4 * j + 2 * r + 32 * h + 1]));
    }
    return __int_as_float(max(u[0], u[1]));
}
// The exponent offsets m of a thread's two rows, and what follows from them.
struct Offset {
    float m[2];       // base 2, -inf = nothing seen yet
    float minus[2];   // -m, 0 if m = -inf
    float limit[2];   // scores above (m + 8) / c move m; c = scale * log2(e)
    int exact;        // some row of this warp has m < -64: find maxima by float comparison
};
__device__ __forceinline__ void offset_set(Offset& f, float inv_c) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        f.minus[r] = f.m[r] == -INFINITY ? 0.f : -f.m[r];
        f.limit[r] = (f.m[r] + 8.f) * inv_c;
    }
    f.exact = __any_sync(~0u, fminf(f.m[0], f.m[1]) < -64.f);
}
// Where a score exceeds its row's m by more than 8 in base 2, moves m, and rescales O~ and l. As a
// rule there is none, and the lanes exchange no more than a vote. With integer maxima (m >= -64) a
// row whose scores are all negative may keep an m that they exceed by less than 64: powers below
// 2^64, in range for bf16 and fp32.
template <int NO>
__device__ __forceinline__ void offset_update(
    const float (&s)[64], float (&o)[NO], float (&l)[2], Offset& f, float c, float inv_c) {
    float x[2];
    if (!f.exact) x[0] = imax_of_row(s, 0), x[1] = imax_of_row(s, 1);
    else x[0] = max_of_row(s, 0), x[1] = max_of_row(s, 1);
    if (!__any_sync(~0u, x[0] > f.limit[0] || x[1] > f.limit[1])) return;
    float alpha[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        x[r] = fmaxf(x[r], __shfl_xor_sync(~0u, x[r], 1));
        x[r] = fmaxf(x[r], __shfl_xor_sync(~0u, x[r], 2)) * c;
        float to = fmaxf(f.m[r], x[r]);
        alpha[r] = to == -INFINITY ? 1.f : exp2_fast(f.m[r] - to);
        f.m[r] = to;
        l[r] *= alpha[r];
    }
#pragma unroll
    for (int i = 0; i < NO; i++) o[i] *= alpha[(i >> 1) & 1];
    offset_set(f, inv_c);
}
// O~ += P V for a block of keys, where P = 2^(c S - m) takes the place of S: part by part, each
// sent to the tensor cores while the next one is computed. Asynchronous. dv: descriptor of V; sum
// += this thread's share of the two rows' sums of P.
template <int D>
__device__ __forceinline__ void fwd_weigh_values(
    float (&o)[D / 2], float (&s)[64], float (&sum)[2], const Offset& f, float c, uint32_t dv) {
    const int PARTS = FwdTile<D>::PARTS;
    uint32_t pr[32];   // P in bf16
    hold(o);
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
#pragma unroll
        for (int e = 0; e < 64 / PARTS; e++) {
            const int i = part * (64 / PARTS) + e;
            s[i] = exp2_fast(fmaf(s[i], c, f.minus[(i >> 1) & 1]));
        }
#pragma unroll
        for (int e = 0; e < 32 / PARTS; e++) {
            const int i = part * (32 / PARTS) + e;
            pr[i] = pack(s[2 * i], s[2 * i + 1]);
            sum[i & 1] += s[2 * i], sum[i & 1] += s[2 * i + 1];
        }
        if (part == PARTS - 1) hold(s);
#pragma unroll
        for (int e = 0; e < 32 / PARTS; e++) asm volatile("" : "+r"(pr[part * (32 / PARTS) + e])::"memory");
        mma_fence();
#pragma unroll
        for (int e = 0; e < 8 / PARTS; e++) {
            const int kk = part * (8 / PARTS) + e;
            wgmma_rs<1>(o, pr[4 * kk], pr[4 * kk + 1], pr[4 * kk + 2], pr[4 * kk + 3], dv + 128 * kk);
        }
        mma_commit();
    }
}

// What a thread has of O~, l and m of its rows `row` and row + 8 when a tile begins: the carry, or
// nothing seen. rows: whether the consumer has any.
template <int D>
__device__ __forceinline__ void fwd_begin(float (&o)[D / 2], float (&l)[2], Offset& f, const AttnForward& a,
    const Tile& w, int row, int t2, bool rows) {
    if (a.carry_in) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            bool in = rows && row + 8 * r < a.s.Tq;
            const float* acc = a.acc.at<float>(w.batch, w.head, row + 8 * r, t2);
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                float2 x = in ? *(const float2*)(acc + 8 * j) : make_float2(0.f, 0.f);
                o[4 * j + 2 * r] = x.x, o[4 * j + 2 * r + 1] = x.y;
            }
            f.m[r] = in ? a.m.at(w.batch, w.head, row)[8 * r] : -INFINITY;
            l[r] = in && t2 == 0 ? a.l.at(w.batch, w.head, row)[8 * r] : 0.f;
        }
    } else {
#pragma unroll
        for (int i = 0; i < D / 2; i++) o[i] = 0.f;
        f.m[0] = f.m[1] = -INFINITY;
        l[0] = l[1] = 0.f;
    }
}
// Writes a thread's part of the carry and of lse.
template <int D>
__device__ __forceinline__ void fwd_write_rows(const float (&o)[D / 2], const float (&l)[2], const Offset& f,
    const AttnForward& a, const Tile& w, int row, int t2, bool rows) {
    if (a.carry_out) {
#pragma unroll
        for (int r = 0; r < 2; r++)
            if (rows && row + 8 * r < a.s.Tq) {
                float* acc = a.acc.at<float>(w.batch, w.head, row + 8 * r, t2);
#pragma unroll
                for (int j = 0; j < D / 8; j++)
                    *(float2*)(acc + 8 * j) = make_float2(o[4 * j + 2 * r], o[4 * j + 2 * r + 1]);
                if (t2 == 0) {
                    a.m.at(w.batch, w.head, row)[8 * r] = f.m[r];
                    a.l.at(w.batch, w.head, row)[8 * r] = l[r];
                }
            }
    }
    if (a.lse.p && t2 == 0) {
#pragma unroll
        for (int r = 0; r < 2; r++)
            if (rows && row + 8 * r < a.s.Tq)
                a.lse.at(w.batch, w.head, row)[8 * r] =
                    l[r] == 0.f ? -INFINITY : (f.m[r] + log2_fast(l[r])) * LN2;
    }
}
// O = O~ / l of a consumer's 64 rows from r0 on, in bf16, through its staging area to memory.
template <int D>
__device__ __forceinline__ void fwd_write_output(const FwdParams& p, FwdSmem<D>& sm, const float (&o)[D / 2],
    const float (&inv)[2], const Tile& w, int r0, int wg, int tid) {
    if (tid == 0) bulk_wait_read();   // the O of the tile before has left the staging area
    named_sync<128>(BAR_GROUP + wg);
    const int lane = tid & 31;
    uint32_t base = smem_of(sm.o[wg]);
    int r = (tid >> 5) * 16 + (lane & 15);
#pragma unroll
    for (int j = 0; j < D / 16; j++) {   // rows 0-7 and 8-15 of piece 2j, then of piece 2j + 1
        uint32_t addr = base + (j >> 2) * 8192 + r * 128 + (((2 * (j & 3) + (lane >> 4)) ^ (r & 7)) << 4);
        stmatrix4(addr, pack(o[8 * j] * inv[0], o[8 * j + 1] * inv[0]),
            pack(o[8 * j + 2] * inv[1], o[8 * j + 3] * inv[1]),
            pack(o[8 * j + 4] * inv[0], o[8 * j + 5] * inv[0]),
            pack(o[8 * j + 6] * inv[1], o[8 * j + 7] * inv[1]));
    }
    proxy_fence();
    named_sync<128>(BAR_GROUP + wg);
    if (tid == 0) {
#pragma unroll
        for (int col = 0; col < D; col += 64) tma_store(&p.o, sm.o[wg] + 64 * col, col, r0, w.head, w.batch);
        bulk_commit();
    }
}

// Consumer wg of the forward kernel: rows 64 wg to 64 wg + 63 of every tile that the loader announces.
template <int D>
__device__ __forceinline__ void fwd_consumer(const FwdParams& p, FwdSmem<D>& sm, const int wg) {
    const int ROWS = FwdTile<D>::ROWS, STAGES = FwdTile<D>::STAGES;
    const AttnShape& shape = p.a.s;
    const int tid = threadIdx.x & 127, lane = tid & 31;
    const int g = lane >> 2, t2 = (lane & 3) * 2;
    const int wrow = (tid >> 5) * 16 + g;   // the first of this thread's two rows of 64
    const float c = shape.scale * LOG2E, inv_c = 1.f / c;
    float s[64], o[D / 2], l[2];
    Offset f;
    Ring<STAGES> k = {0, 0}, v = {0, 0};   // the next block of K, and of V
    for (int it = 0;; it++) {
        const int qs = it & 1;
        bar_wait(&sm.q_full[qs], (it >> 1) & 1);
        const int number = warp_uniform(sm.tile[qs]);
        if (number < 0) break;
        const Tile w = fwd_tile(p, number);
        const int tile_row = w.row * ROWS - p.before;
        const int r0 = tile_row + wg * 64, r1 = min(r0 + 63, shape.Tq - 1);
        const bool rows = r0 >= 0 && r0 < shape.Tq;   // whether this consumer has any
        const FwdSpan span = fwd_span<ROWS>(shape, w.batch, tile_row, r0, r1, rows);
        // All its rows see the keys below `whole` that are not below doc_last: only blocks from
        // mask_from on and below mask_below need a mask.
        const int rel = shape.q_pos - shape.k_pos;
        const int whole = shape.causal ? min(shape.Tk, rel + r0 + 1) : shape.Tk;
        const int* doc = shape.doc(w.batch);
        const int doc_last = doc && rows ? doc[r1] - shape.k_pos : 0;
        const int mask_from = warp_uniform(max(whole, 0) / FWD_COLS);
        const int mask_below = warp_uniform((max(doc_last, 0) + FWD_COLS - 1) / FWD_COLS);
        const uint32_t dq = desc_of(sm.q[qs] + wg * 64 * 64);
        const int row = r0 + wrow;
        fwd_begin<D>(o, l, f, p.a, w, row, t2, rows);
        offset_set(f, inv_c);

        // Thread 0 gives a buffer back for the whole consumer, so all four warps must be done with
        // it. After a product they are, as wgmma is of all four together. Where none came first,
        // this barrier brings them together: without it a warp could still be waiting for a phase
        // of an mbarrier when the next but one begins, and miss it.
        auto together = [&]() { named_sync<128>(BAR_GROUP + wg); };
        auto skip = [&]() {   // a block that only other consumers use
            bar_wait(&sm.k_full[k.stage], k.phase);
            bar_wait(&sm.v_full[v.stage], v.phase);
            together();
            if (tid == 0) bar_arrive(&sm.k_empty[k.stage]), bar_arrive(&sm.v_empty[v.stage]);
            k.next();
            v.next();
        };
        auto scores_done = [&]() {
            if (tid == 0) bar_arrive(&sm.k_empty[k.stage]);
            k.next();
        };
        // Block n, whose S is there: O~ += P V, then S of block n - 1 if there is `more`.
        auto block = [&](int n, bool more) {
            if (n >= mask_from || n < mask_below) fwd_mask(s, shape, doc, rel, row, n, t2);
            offset_update(s, o, l, f, c, inv_c);
            bar_wait(&sm.v_full[v.stage], v.phase);
            if (more) bar_wait(&sm.k_full[k.stage], k.phase);
            float sum[2] = {0.f, 0.f};
            fwd_weigh_values<D>(o, s, sum, f, c, desc_of(sm.v[v.stage], D > 64 ? FWD_COLS * 128 : 16));
            if (more) fwd_scores<D>(s, dq, desc_of(sm.k[k.stage]));
            l[0] += sum[0], l[1] += sum[1];
            if (more) {
                mma_wait<1>();
                if (tid == 0) bar_arrive(&sm.v_empty[v.stage]);
            }
            mma_wait<0>();
            hold(s), hold(o);
            if (more) scores_done();
            else if (tid == 0) bar_arrive(&sm.v_empty[v.stage]);
            v.next();
        };

#pragma unroll 1
        for (int i = span.hi - span.end; i > 0; i--) skip();
        if (span.first < span.end) {
            bar_wait(&sm.k_full[k.stage], k.phase);
            hold(s);
            mma_fence();
            fwd_scores<D>(s, dq, desc_of(sm.k[k.stage]));
            mma_wait<0>();
            hold(s);
            scores_done();
#pragma unroll 1
            for (int n = span.end - 1; n > span.first; n--) block(n, true);
            block(span.first, false);
        } else together();
        if (arrives(tid)) bar_arrive(&sm.q_empty[qs]);
#pragma unroll 1
        for (int i = span.first - span.lo; i > 0; i--) skip();

        l[0] = quad_sum(l[0]);
        l[1] = quad_sum(l[1]);
        fwd_write_rows<D>(o, l, f, p.a, w, row, t2, rows);
        if (p.a.o.p && rows) {
            const float inv[2] = {l[0] > 0.f ? 1.f / l[0] : 0.f, l[1] > 0.f ? 1.f / l[1] : 0.f};
            fwd_write_output<D>(p, sm, o, inv, w, r0, wg, tid);
        }
    }
    if (tid == 0) bulk_wait();
}

// The loader of the forward kernel, one thread: takes tiles by number until there are no more,
// announces them to the consumers, and has their operands copied. It takes a number one tile ahead.
template <int D> __device__ __forceinline__ void fwd_loader(const FwdParams& p, FwdSmem<D>& sm) {
    const int ROWS = FwdTile<D>::ROWS, STAGES = FwdTile<D>::STAGES;
    Ring<STAGES> k = {1, 0};
    int next = atomicAdd(p.a.work, 1);
    for (int it = 0;; it++) {
        int qs = it & 1, number = next;
        bar_wait(&sm.q_empty[qs], ((it >> 1) & 1) ^ 1);
        if (number >= p.tiles) {
            // The last number that any block draws: the counter is as it was before the launch.
            if (number == p.tiles + (int)gridDim.x - 1) *p.a.work = 0;
            sm.tile[qs] = -1;
            bar_arrive(&sm.q_full[qs]);
            break;
        }
        sm.tile[qs] = number;
        next = atomicAdd(p.a.work, 1);
        const Tile w = fwd_tile(p, number);
        int r0 = w.row * ROWS - p.before, lo, hi;
        key_range<FWD_COLS>(p.a.s, w.batch, max(r0, 0), min(r0 + ROWS, p.a.s.Tq) - 1, lo, hi);
        bar_expect(&sm.q_full[qs], sizeof sm.q[0]);
        tma_load_tile<D, ROWS>(sm.q[qs], &p.q, &sm.q_full[qs], r0, w.head, w.batch, L2_FIRST);
        // In the order in which the consumers need them: K(n), K(n-1), V(n), K(n-2), V(n-1), ...
        Ring<STAGES> v = k;
#pragma unroll 1
        for (int n = hi - 1; n >= lo - 1; n--) {
            if (n >= lo) {
                bar_wait(&sm.k_empty[k.stage], k.phase);
                bar_expect(&sm.k_full[k.stage], sizeof sm.k[0]);
                tma_load_tile<D, FWD_COLS>(
                    sm.k[k.stage], &p.k, &sm.k_full[k.stage], n * FWD_COLS, w.head, w.batch, L2_LAST);
                k.next();
            }
            if (n < hi - 1) {
                bar_wait(&sm.v_empty[v.stage], v.phase);
                bar_expect(&sm.v_full[v.stage], sizeof sm.v[0]);
                tma_load_tile<D, FWD_COLS>(
                    sm.v[v.stage], &p.v, &sm.v_full[v.stage], (n + 1) * FWD_COLS, w.head, w.batch, L2_LAST);
                v.next();
            }
        }
    }
}

// O = softmax(scale Q K^T + mask) V, with a carry in and out.
// Mapping: a block of threads per SM takes tiles of 192 rows (128 with head size 128); a warpgroup owns 64.
// Work: 4 D FLOP and one exponential per visible (row, key). Bytes: Q and O once; K and V once per row
//     tile, from L2, as a section of heads fits there; a carry is 4 D + 8 bytes per row, in and out.
// From: FlashAttention-3 (three consumers, 192 x 128 tiles, P in registers), FlashAttention-4 (lazy
//     rescaling). Its own: P V goes out part by part while the next part is exponentiated, maxima
//     by three-input integer compare, no exchange between lanes unless the maximum has moved.
template <int D>
__global__ void __launch_bounds__(FwdTile<D>::THREADS, 1)
    attention_forward_kernel(const __grid_constant__ FwdParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ uint8_t raw[];
    FwdSmem<D>& sm = *(FwdSmem<D>*)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    const int GROUPS = FwdTile<D>::GROUPS;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            bar_init(&sm.q_full[i], 1);
            bar_init(&sm.q_empty[i], GROUPS * GROUP_ARRIVALS);
        }
        for (int i = 0; i < FwdTile<D>::STAGES; i++) {
            bar_init(&sm.k_full[i], 1);
            bar_init(&sm.v_full[i], 1);
            bar_init(&sm.k_empty[i], GROUPS);
            bar_init(&sm.v_empty[i], GROUPS);
        }
        bar_init_fence();
    }
    proxy_fence();
    __syncthreads();
    if (threadIdx.x < 128) {
        regs_down<FwdTile<D>::REGS_LOAD>();
        if (threadIdx.x == 0) fwd_loader<D>(p, sm);
    } else {
        regs_up<FwdTile<D>::REGS>();
        fwd_consumer<D>(p, sm, warp_uniform((int)(threadIdx.x >> 7) - 1));
    }
#else
    asm volatile("trap;");   // built without sm_90a and not told so
#endif
}

// --- backward ---
//
// One block of threads per SM stays for the whole launch and takes tiles by a counter in device
// memory: 128 keys of a head, with every tile of ROWS queries that sees any of them, a step each,
// upwards from the diagonal. Warpgroups 1 and 2, the consumers, own 64 of the keys each and compute
// everything transposed, keys by queries: P^T and dS^T are then in the registers that dV and dK
// take their operands from, and dV and dK stay in registers too. dQ = dS K needs the dS of both,
// which goes through shared memory; each computes half of dQ a step later, so that they need not be
// in step. Warpgroup 0 serves them: warp 0 has K, V, Q and dO copied, warp 1 brings the rows'
// numbers, warps 2 and 3 have the halves of dQ added to device memory.
//
//     barriers                   who arrives                       who waits, for what
//     tile_full, tile_empty      warp 0 | all others               all others, what tile | warp 0
//     kv_full, kv_empty          the copy | consumers              consumers, to read K, V | warp 0
//     q_full, q_empty            the copy, warp 1 | consumers      consumers, to read Q, numbers | warps 0, 1
//     do_full, do_empty          the copy | consumers              consumers, to read dO | warp 0
//     ds_full, ds_free           all warps of consumers            consumers, to read dS | to write it again
//     BAR_DQ_FULL, _EMPTY + wg   consumer wg | warp 2 + wg         warp 2 + wg, to add dQ | consumer wg
//     BAR_READ + wg              the four warps of consumer wg     each other
//
//     A consumer in step m, from left to right. S(m) is there from the step before.
//     tensor cores   dQ(m-2)           dP(m)                      dV(m), dK(m)  S(m+1)     dQ(m-1)
//     arithmetic     exp 3/4           exp 1/4   P(m), dS(m)                                    exp 3/4 ...
//     waits for              ^ do_full(m)                ^ ds_free(m-2)                    ^ ds_full(m-1)
//     arrives on               ^ ds_free(m-2), DQ_FULL              ^ ds_full(m)         ^ do_empty, q_empty
static const int BWD_COLS = 128;   // keys of a block
static const int BWD_Q = 3;        // tiles of Q in shared memory: S runs one step ahead
// Head size 128 has steps of half the queries, so that a step's products, tiles and registers are
// as large as with 64: S and dP give up what dK and dV need.
template <int D> struct BwdTile {
    static const int ROWS = D == 64 ? 128 : 64;   // queries of a step
    static const int EARLY = ROWS * 3 / 8;    // exponentials, of ROWS / 2 of a thread, before dP is issued
    static const bool BY_QUERIES = D == 64;   // a consumer's half of dQ: 64 queries, or 64 columns
};

template <int D> struct BwdSmem {
    static const int ROWS = BwdTile<D>::ROWS;
    bf16 k[BWD_COLS * D], v[BWD_COLS * D];
    bf16 q[BWD_Q][ROWS * D], dout[2][ROWS * D];
    bf16 ds[2][2][ROWS * 64];   // dS of two steps (ROWS queries, 128 keys), halves of the keys apart
    float dq[2][2][64 * 32];    // dQ on its way to memory: [half = consumer][half of its 64 columns]
    // What S and dP begin with: -lse / scale and -delta of each query, each as the sum of three
    // bf16 numbers, and two zeros. A product with `pick` spreads them over the accumulators; loads
    // would bring every register through shared memory. Where one of a query's numbers is not
    // finite, all that comes of the query is NaN.
    bf16 stats[BWD_Q][ROWS * 8];
    // Core matrices that add up the three numbers of lse: ones for these, then, for K 8 to 15,
    // zeros; the same for delta.
    bf16 pick[4][64];
    int doc[BWD_Q][ROWS];   // first visible key column of each query
    uint64_t kv_full, kv_empty;
    uint64_t q_full[BWD_Q], q_empty[BWD_Q];
    uint64_t do_full[2], do_empty[2], ds_full[2], ds_free[2], tile_full[2], tile_empty[2];
    // Of a tile and, meanwhile, the next one: its number, -1 = no more; its steps [m_lo, m_hi); m_lo
    // minus the steps of all tiles before, by which the rings of dO and dS go on; parity of kv_full.
    int tile[2], m_lo[2], m_hi[2], shift[2], kv_parity[2];
    float c;   // scale * log2(e)
};
enum { BAR_DQ_FULL = 2, BAR_DQ_EMPTY = 4, BAR_READ = 6 };   // named barriers, + the consumer's number
struct BwdParams {
    CUtensorMap q, k, v, dout, dq;
    AttnBackward a;
    int row_tiles, col_tiles;   // of a head
    int section;                // heads whose Q and dO stay in L2 together
    int tiles;                  // blocks of keys of all heads
    int* turn;                  // (B*NH, row_tiles, 2) how many blocks of keys have added to this half of dQ,
                                // for the deterministic order
};

// Tile number t. Sections of heads come one after the other; inside a section the first blocks of
// keys of its heads, which most queries see, come first.
__device__ __forceinline__ Tile bwd_tile(const BwdParams& p, int t) {
    int per = p.section * p.col_tiles, sec = t / per;
    int r = t - sec * per;
    int heads = min(p.section, p.a.s.B * p.a.s.NH - sec * p.section);
    int n = r / heads, bh = sec * p.section + r - n * heads;
    return {n, bh % p.a.s.NH, bh / p.a.s.NH};
}
// Tiles [lo, hi) of ROWS queries of sequence b that see any key of block n of COLS keys.
template <int ROWS, int COLS>
__device__ __forceinline__ void query_range(const AttnShape& s, int b, int n, int& lo, int& hi) {
    int k0 = n * COLS, k1 = min(k0 + COLS, s.Tk) - 1;
    int end = s.Tq;
    lo = s.causal ? max(0, k0 + s.k_pos - s.q_pos) / ROWS : 0;
    if (s.doc_start) {   // the first row whose document starts after key k1
        const int* doc = s.doc_start + b * s.doc_batch;
        int a = 0;
        while (a < end) {
            int mid = (a + end) >> 1;
            if (doc[mid] > s.k_pos + k1) end = mid;
            else a = mid + 1;
        }
    }
    hi = max(lo, (end + ROWS - 1) / ROWS);
}

// A query's eight numbers of `stats` to p: a as the sum of three bf16 numbers, each the rounded
// rest of those before it (3 x 8 bits: all of fp32's 24), b likewise, and two zeros.
__device__ __forceinline__ void store_stats(bf16* p, float a, float b) {
    float rest[2] = {a, b};
    uint32_t part[3];
#pragma unroll
    for (int i = 0; i < 3; i++) {
        part[i] = pack(rest[0], rest[1]);
        rest[0] -= __uint_as_float(part[i] << 16);
        rest[1] -= __uint_as_float(part[i] & 0xFFFF0000u);
    }
    sts4(smem_of(p), __byte_perm(part[0], part[1], 0x5410), __byte_perm(part[2], part[0], 0x7610),
        __byte_perm(part[1], part[2], 0x7632), 0);
}
// Scores of keys that a query does not see become -inf: of a thread's keys k0 + row and k0 + row +
// 8, and the queries of row tile m, whose first visible keys are `doc` in shared memory.
template <int ROWS>
__device__ __forceinline__ void bwd_mask(
    float (&s)[ROWS / 2], const AttnShape& shape, const int* doc, int rel, int k0, int row, int m, int t2) {
#pragma unroll
    for (int j = 0; j < ROWS / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int col = 8 * j + t2 + e, key = k0 + row;
            int end = shape.causal ? min(shape.Tk - 1, m * ROWS + col + rel) : shape.Tk - 1;
            int begin = shape.doc_start ? lds1(smem_of(&doc[col])) : -1 << 30;
            if (key > end || key < begin) s[4 * j + e] = -INFINITY;
            if (key + 8 > end || key + 8 < begin) s[4 * j + e + 2] = -INFINITY;
        }
}
// d (64 keys x ROWS queries) = keys queries^T + pick stats: S^T or dP^T with what it begins with.
// Asynchronous. Descriptors: of `pick` K 8 to 15, which are zeros, are 128 bytes on; of `stats`
// they are K 0 to 7 once more, 0 bytes on.
template <int D>
__device__ __forceinline__ void bwd_product(
    float (&d)[BwdTile<D>::ROWS / 2], uint32_t pick, uint32_t stats, uint32_t keys, uint32_t queries) {
    const int KEYS_ON = 8 * BWD_COLS, QUERIES_ON = 8 * BwdTile<D>::ROWS;   // to the head's second 64 columns
    wgmma_pick(d, pick, stats);
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
        wgmma_ss<0, 0>(
            d, keys + (kk >> 2) * KEYS_ON + (kk & 3) * 2, queries + (kk >> 2) * QUERIES_ON + (kk & 3) * 2, 1);
    mma_commit();
}
// S^T = K Q^T - lse / scale for the Q of ring position `stage`. Asynchronous. da_k: this consumer's keys.
template <int D>
__device__ __forceinline__ void bwd_scores(
    float (&s)[BwdTile<D>::ROWS / 2], BwdSmem<D>& sm, int stage, uint32_t da_lse, uint32_t da_k) {
    const uint32_t db_q = desc_of(sm.q[stage]);
    bwd_product<D>(s, da_lse, desc_of(sm.stats[stage], 0), da_k, db_q);
}
// The same for the first step of a tile, and the wait for it.
template <int D>
__device__ __forceinline__ void bwd_first_scores(
    float (&s)[BwdTile<D>::ROWS / 2], BwdSmem<D>& sm, int stage, uint32_t da_lse, uint32_t da_k) {
    hold(s);
    mma_fence();
    bwd_scores(s, sm, stage, da_lse, da_k);
    mma_wait<0>();
    hold(s);
}
// dP^T = V dO^T - delta. Asynchronous.
template <int D>
__device__ __forceinline__ void bwd_dp(
    float (&dp)[BwdTile<D>::ROWS / 2], uint32_t stats, uint32_t da_delta, uint32_t da_v, uint32_t db_do) {
    hold(dp);
    mma_fence();
    bwd_product<D>(dp, da_delta, stats, da_v, db_do);
}
// d (64 keys x D) += w (64 keys x ROWS queries, bf16) x queries: dV += P^T dO, or dK += dS^T Q.
// Asynchronous, not committed yet.
template <int D>
__device__ __forceinline__ void bwd_weigh_queries(
    float (&d)[D / 2], const uint32_t (&w)[BwdTile<D>::ROWS / 4], uint32_t queries) {
    // The instruction steps to the head's second 64 columns by itself: ROWS rows of 128 bytes on.
    const int ROWS = BwdTile<D>::ROWS, ACROSS = D > 64 ? (8 * ROWS - 1) << 16 : 0;
#pragma unroll
    for (int kk = 0; kk < ROWS / 16; kk++)
        wgmma_rs<1>(d, w[4 * kk], w[4 * kk + 1], w[4 * kk + 2], w[4 * kk + 3], queries + ACROSS + 128 * kk);
}
// dV += P^T dO and dK += dS^T Q. Asynchronous.
template <int D>
__device__ __forceinline__ void bwd_add_gradients(float (&dv)[D / 2], float (&dk)[D / 2],
    uint32_t (&pr)[BwdTile<D>::ROWS / 4], uint32_t (&ds)[BwdTile<D>::ROWS / 4], uint32_t dout, uint32_t q) {
    hold(dv), hold(pr), hold(dk), hold(ds);
    mma_fence();
    bwd_weigh_queries<D>(dv, pr, dout);
    bwd_weigh_queries<D>(dk, ds, q);
    mma_commit();
}
// Consumer wg's half of dQ (64 x 64) = dS K of step `it`, over the 128 keys, when both have stored
// their dS. Asynchronous. db_k: K, or its columns for this half.
template <int D>
__device__ __forceinline__ void bwd_weigh_keys(
    float (&dq)[32], BwdSmem<D>& sm, int it, int wg, uint32_t db_k) {
    bar_wait(&sm.ds_full[it & 1], (it >> 1) & 1);
    const uint32_t da_ds = desc_of(sm.ds[it & 1][0] + (BwdTile<D>::BY_QUERIES ? wg * 64 * 64 : 0));
    hold(dq);
    mma_fence();
#pragma unroll
    for (int kk = 0; kk < 8; kk++)
        wgmma_ss<0, 1>(dq, da_ds + (kk >> 2) * 8 * BwdTile<D>::ROWS + (kk & 3) * 2, db_k + 128 * kk, kk != 0);
    mma_commit();
}
// dQ (64 x 64) to consumer wg's staging area, and on to warp 2 + wg. By the order of rows of dS,
// lane group g holds query `gq`: 0, 2, 4, 6, 1, 3, 5, 7. The lanes that store together then hold
// every other row, and the swizzled pieces of these fall into different banks.
template <int D>
__device__ __forceinline__ void bwd_send_dq(
    BwdSmem<D>& sm, const float (&dq)[32], int wg, int warp, int g, int t2) {
    named_sync<160>(BAR_DQ_EMPTY + wg);
    const int gq = (g & 3) * 2 + (g >> 2);
    const uint32_t at = smem_of(sm.dq[wg][0]) + (warp * 16 + gq) * 128 + (t2 & 2) * 4;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        uint32_t base = at + (j >> 2) * 8192 + (((2 * (j & 3) + (t2 >> 2)) ^ gq) << 4);
        sts2(base, dq[4 * j], dq[4 * j + 1]);
        sts2(base + 8 * 128, dq[4 * j + 2], dq[4 * j + 3]);
    }
    proxy_fence();
    named_arrive<160>(BAR_DQ_FULL + wg);
}
// The first N of a thread's s become 2^(c s). Returns bits that depend on all of them.
template <int N, int NS> __device__ __forceinline__ int bwd_exp_early(float (&s)[NS], float c) {
#pragma unroll
    for (int i = 0; i < N; i++) s[i] = exp2_fast(s[i] * c);
    int bits = 0;
#pragma unroll
    for (int i = 0; i < N; i++) bits |= __float_as_int(s[i]);
    return bits;
}
// P^T and dS^T = P^T * (dP^T - delta) in bf16. dp holds the difference.
template <int N>
__device__ __forceinline__ void bwd_round(
    uint32_t (&pr)[N], uint32_t (&ds)[N], const float (&p)[2 * N], const float (&dp)[2 * N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        pr[i] = pack(p[2 * i], p[2 * i + 1]);
        ds[i] = pack(p[2 * i] * dp[2 * i], p[2 * i + 1] * dp[2 * i + 1]);
    }
}
// dS^T from the registers of a consumer to dS in shared memory, whose queries 0 to 7 of a core
// matrix lie in rows 0, 4, 1, 5, 2, 6, 3, 7 (bwd_send_dq says why): the bytes from its beginning to
// this lane's row of the transposed store, and the store. Lanes 0-7 and 8-15 give 8 queries for the
// pieces 2 warp and 2 warp + 1 of keys, lanes 16-31 the next 8 queries.
__device__ __forceinline__ uint32_t bwd_ds_offset(int lane, int warp) {
    const int in_eight = (lane & 1) * 4 + ((lane & 7) >> 1);
    const int row = in_eight + ((lane >> 4) << 3), piece = 2 * warp + ((lane >> 3) & 1);
    return row * 128 + ((piece ^ in_eight) << 4);
}
template <int N> __device__ __forceinline__ void bwd_store_ds(uint32_t to, const uint32_t (&ds)[N]) {
#pragma unroll
    for (int j = 0; j < N / 4; j++)
        stmatrix4_trans(to + j * 2048, ds[4 * j], ds[4 * j + 1], ds[4 * j + 2], ds[4 * j + 3]);
}
// Writes a thread's part of dK and dV, or adds it to what is there: keys key0 and key0 + 8 of tile w's head.
template <int D>
__device__ __forceinline__ void bwd_write_gradients(const float (&dk)[D / 2], const float (&dv)[D / 2],
    const AttnBackward& a, const Tile& w, int key0, int t2) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int key = key0 + 8 * r;
        if (key >= a.s.Tk) continue;
        int64_t at_k = a.dk.index(w.batch, w.head, key), at_v = a.dv.index(w.batch, w.head, key);
        if (a.dkv_bf16) {
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                *(uint32_t*)((bf16*)a.dk.p + at_k + 8 * j + t2) =
                    pack(dk[4 * j + 2 * r] * a.s.scale, dk[4 * j + 2 * r + 1] * a.s.scale);
                *(uint32_t*)((bf16*)a.dv.p + at_v + 8 * j + t2) =
                    pack(dv[4 * j + 2 * r], dv[4 * j + 2 * r + 1]);
            }
        } else {
            float *to_k = (float*)a.dk.p + at_k + t2, *to_v = (float*)a.dv.p + at_v + t2;
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                float2 x = make_float2(dk[4 * j + 2 * r] * a.s.scale, dk[4 * j + 2 * r + 1] * a.s.scale),
                       y = make_float2(dv[4 * j + 2 * r], dv[4 * j + 2 * r + 1]);
                if (a.accumulate_dkv) red2(to_k + 8 * j, x.x, x.y), red2(to_v + 8 * j, y.x, y.y);
                else *(float2*)(to_k + 8 * j) = x, *(float2*)(to_v + 8 * j) = y;
            }
        }
    }
}

// How a consumer learns of tile t: its number, < 0 if there are no more, its steps [lo, hi), and sm.shift.
template <int D>
__device__ __forceinline__ int bwd_announced(BwdSmem<D>& sm, int t, int& lo, int& hi, int& shift) {
    bar_wait(&sm.tile_full[t & 1], (t >> 1) & 1);
    const int number = warp_uniform(sm.tile[t & 1]);
    lo = warp_uniform(sm.m_lo[t & 1]);
    hi = warp_uniform(sm.m_hi[t & 1]);
    shift = warp_uniform(sm.shift[t & 1]);
    return number;
}
// Consumer wg (0, 1) of the backward kernel: 64 keys of S^T, dP^T, dV and dK of every tile that
// warp 0 announces, and its half of dQ.
template <int D>
__device__ __forceinline__ void bwd_consumer(const BwdParams& p, BwdSmem<D>& sm, const int wg) {
    const int ROWS = BwdTile<D>::ROWS, NS = ROWS / 2, EARLY = BwdTile<D>::EARLY;
    const AttnShape& shape = p.a.s;
    const int tid = threadIdx.x & 127, warp = tid >> 5, lane = tid & 31;
    const int g = lane >> 2, t2 = (lane & 3) * 2;
    const float c = shape.scale * LOG2E;
    const int rel = shape.q_pos - shape.k_pos;
    // Descriptors: this consumer's rows of K and V; K for its half of dQ; `pick` for lse and delta.
    const uint32_t da_k = desc_of(sm.k + wg * 64 * 64), da_v = desc_of(sm.v + wg * 64 * 64);
    const uint32_t db_k = desc_of(sm.k + (BwdTile<D>::BY_QUERIES ? 0 : wg * BWD_COLS * 64));
    int lo, hi, k0, shift;   // of the tile: its steps, its first key of this consumer, sm.shift
    float s[NS], dk[D / 2], dv[D / 2], dq[32];
    Ring<BWD_Q> q = {0, 0};   // Q(m)
    const uint32_t da_lse = desc_of(sm.pick[0], 128), da_delta = desc_of(sm.pick[2], 128);
    // Step m, the tile's `first`, and whether there is one `more`. On entry S(m) is done and
    // dQ(m-2) may still be running. The tensor cores always have something queued.
    auto step = [&](int m, bool first, bool more) {
        const int it = m - shift;
        const int st = it & 1, ph = (it >> 1) & 1;
        float dp[NS];
        // Keys past Tk are zeros, whose exp(0 - lse) may overflow where lse is far below 0.
        const bool edge = (shape.causal && m * ROWS + rel < k0 + 63) || k0 + 64 > shape.Tk;
        if (edge || (shape.doc_start && lds1(smem_of(&sm.doc[q.stage][ROWS - 1])) > k0))
            bwd_mask<ROWS>(s, shape, sm.doc[q.stage], rel, k0, warp * 16 + g, m, t2);
        // ptxas would sink these exponentials below the wait for dQ; a zero in the parity that
        // depends on them keeps them here.
        int bits = bwd_exp_early<EARLY>(s, c);
        bar_wait(&sm.do_full[st], ph | opaque_zero(bits));
        mma_wait<0>();
        hold(dq);
        if (!first && m - lo > 1) {
            if (lane == 0) bar_arrive(&sm.ds_free[st]);
            bwd_send_dq(sm, dq, wg, warp, g, t2);
        }
        const uint32_t db_do = desc_of(sm.dout[st]), db_q = desc_of(sm.q[q.stage]);
        bwd_dp<D>(dp, desc_of(sm.stats[q.stage], 0), da_delta, da_v, db_do);
        Ring<BWD_Q> next = q;
        next.next();
        if (more) bar_wait(&sm.q_full[next.stage], next.phase);
        else bar_wait(&sm.do_full[st], ph);
        // The other exponentials under dP: with c again, from memory, so that ptxas cannot hoist
        // them above the products, and the zero as before.
        const float c2 = lds1_volatile(smem_of(&sm.c));
#pragma unroll
        for (int i = EARLY; i < NS; i++) s[i] = exp2_fast(s[i] * c2), bits |= __float_as_int(s[i]);
        if (EARLY < NS) bar_wait(&sm.do_full[st], ph | opaque_zero(bits));
        mma_wait<0>();
        hold(dp);
        uint32_t pr[NS / 2], ds[NS / 2];
        bwd_round(pr, ds, s, dp);
        const uint32_t ds_at = smem_of(sm.ds[st][wg]) + bwd_ds_offset(lane, warp);
        if (it > 1) bar_wait(&sm.ds_free[st], ph ^ 1);   // both consumers are done with dS(m-2)
        bwd_store_ds(ds_at, ds);
        hold(s);
        bwd_add_gradients<D>(dv, dk, pr, ds, db_do, db_q);
        if (more) bwd_scores(s, sm, next.stage, da_lse, da_k);
        proxy_fence();
        __syncwarp();
        if (lane == 0) bar_arrive(&sm.ds_full[st]);
        if (more) mma_wait<1>();
        else mma_wait<0>();
        hold(dv), hold(pr), hold(dk), hold(ds);
        if (tid == 0) bar_arrive(&sm.do_empty[st]);
        if (arrives(tid)) bar_arrive(&sm.q_empty[q.stage]);
        if (!first) bwd_weigh_keys(dq, sm, it - 1, wg, db_k);
        if (more && first) mma_wait<0>();
        else if (more) mma_wait<1>();
        hold(s);
        q = next;
    };
    for (int t = 0;; t++) {
        const int number = bwd_announced(sm, t, lo, hi, shift);
        if (number < 0) break;
        k0 = warp_uniform(bwd_tile(p, number).row * BWD_COLS + wg * 64);
        zero(dk), zero(dv), zero(dq);
        if (lo < hi) {
            bar_wait(&sm.kv_full, lds1(smem_of(&sm.kv_parity[t & 1])));
            bar_wait(&sm.q_full[q.stage], q.phase);
            bwd_first_scores(s, sm, q.stage, da_lse, da_k);
            if (hi - lo == 1) {
                step(lo, true, false);
            } else {
                step(lo, true, true);
#pragma unroll 1
                for (int m = lo + 1; m < hi - 1; m++) step(m, false, true);
                step(hi - 1, false, false);
                mma_wait<0>();   // dQ of the last step but one
                hold(dq);
                if (lane == 0) bar_arrive(&sm.ds_free[(hi - shift) & 1]);
                bwd_send_dq(sm, dq, wg, warp, g, t2);
            }
            bwd_weigh_keys(dq, sm, hi - 1 - shift, wg, db_k);
            mma_wait<0>();
            hold(dq);
            if (lane == 0) bar_arrive(&sm.ds_free[(hi - 1 - shift) & 1]);
            // The next tile's keys load while this one's gradients are stored.
            if (tid == 0) bar_arrive(&sm.kv_empty);
            bwd_send_dq(sm, dq, wg, warp, g, t2);
        }
        // The number is read again: no register lives that long.
        const Tile w = bwd_tile(p, lds1(smem_of(&sm.tile[t & 1])));
        named_sync<128>(BAR_READ + wg);
        if (arrives(tid)) bar_arrive(&sm.tile_empty[t & 1]);
        bwd_write_gradients<D>(dk, dv, p.a, w, w.row * BWD_COLS + wg * 64 + warp * 16 + g, t2);
    }
}

// How warps 1 to 3 learn of tile t: what it is and its steps [lo, hi). False: there are no more.
template <int D>
__device__ __forceinline__ bool bwd_next_tile(
    const BwdParams& p, BwdSmem<D>& sm, int t, int lane, Tile& w, int& lo, int& hi) {
    bar_wait(&sm.tile_full[t & 1], (t >> 1) & 1);
    int number = sm.tile[t & 1];
    lo = sm.m_lo[t & 1], hi = sm.m_hi[t & 1];
    __syncwarp();
    if (arrives(lane)) bar_arrive(&sm.tile_empty[t & 1]);
    if (number >= 0) w = bwd_tile(p, number);
    return number >= 0;
}
// Warp 0, one thread: takes tiles by number until there are no more, announces them to all others,
// and has their operands copied.
template <int D> __device__ __forceinline__ void bwd_loader(const BwdParams& p, BwdSmem<D>& sm) {
    const int ROWS = BwdTile<D>::ROWS;
    Ring<BWD_Q> q = {1, 0};
    int it = 0, kv_phase = 1;
    for (int t = 0;; t++) {
        // Numbers are drawn in order, so what a block waits for in the deterministic order, a lower
        // number, is surely worked on. This thread is some steps ahead of the consumers: early enough
        // for the loads, and late enough that the longest tiles are drawn first. In the deterministic
        // order it draws a number when that tile can begin, since all higher ones wait for it.
        if (p.a.deterministic) bar_wait(&sm.kv_empty, kv_phase);
        const int number = atomicAdd(p.a.work + 1, 1);
        int lo = 0, hi = 0;
        const Tile w = bwd_tile(p, min(number, p.tiles - 1));
        query_range<ROWS, BWD_COLS>(p.a.s, w.batch, w.row, lo, hi);
        bar_wait(&sm.tile_empty[t & 1], ((t >> 1) & 1) ^ 1);
        sm.tile[t & 1] = number < p.tiles ? number : -1;
        sm.m_lo[t & 1] = lo;
        sm.m_hi[t & 1] = hi;
        sm.shift[t & 1] = lo - it;
        sm.kv_parity[t & 1] = kv_phase ^ 1;
        bar_arrive(&sm.tile_full[t & 1]);
        if (number >= p.tiles) {
            // The last number that any block draws: the counter is as it was before the launch.
            if (number == p.tiles + (int)gridDim.x - 1) p.a.work[1] = 0;
            break;
        }
        if (lo < hi) {
            bar_wait(&sm.kv_empty, kv_phase);
            kv_phase ^= 1;
            bar_expect(&sm.kv_full, sizeof sm.k + sizeof sm.v);
            tma_load_tile<D, BWD_COLS>(sm.k, &p.k, &sm.kv_full, w.row * BWD_COLS, w.head, w.batch, L2_FIRST);
            tma_load_tile<D, BWD_COLS>(sm.v, &p.v, &sm.kv_full, w.row * BWD_COLS, w.head, w.batch, L2_FIRST);
        }
#pragma unroll 1
        for (int m = lo; m < hi; m++, it++) {
            int st = it & 1, ph = ((it >> 1) & 1) ^ 1;
            bar_wait(&sm.q_empty[q.stage], q.phase);
            bar_expect(&sm.q_full[q.stage], sizeof sm.q[0]);
            tma_load_tile<D, ROWS>(
                sm.q[q.stage], &p.q, &sm.q_full[q.stage], m * ROWS, w.head, w.batch, L2_LAST);
            q.next();
            bar_wait(&sm.do_empty[st], ph);
            bar_expect(&sm.do_full[st], sizeof sm.dout[0]);
            tma_load_tile<D, ROWS>(sm.dout[st], &p.dout, &sm.do_full[st], m * ROWS, w.head, w.batch, L2_LAST);
        }
    }
}
// Warp 1: lse, delta and the first visible key of each step's queries, which arrive with its Q.
template <int D>
__device__ __forceinline__ void bwd_statistics(const BwdParams& p, BwdSmem<D>& sm, int lane) {
    const int ROWS = BwdTile<D>::ROWS;
    const AttnShape& shape = p.a.s;
    const float inv = 1.f / shape.scale;
    Ring<BWD_Q> q = {1, 0};
    int lo, hi;
    Tile w;
    for (int t = 0; bwd_next_tile(p, sm, t, lane, w, lo, hi); t++) {
        const float *lse = p.a.lse.of(w.batch, w.head), *delta = p.a.delta.of(w.batch, w.head);
        const int* doc = shape.doc(w.batch);
#pragma unroll 1
        for (int m = lo; m < hi; m++) {
            float a[ROWS / 32], b[ROWS / 32];
            int d[ROWS / 32];
#pragma unroll
            for (int i = 0; i < ROWS / 32; i++) {
                int row = m * ROWS + 32 * i + lane;
                bool in = row < shape.Tq;
                float x = in ? lse[row] : -INFINITY;
                // P = 0 for a row that sees nothing, or is not there.
                a[i] = x == -INFINITY ? -3e38f : -x * inv;
                b[i] = in ? -delta[row] : 0.f;
                d[i] = doc ? doc[min(row, shape.Tq - 1)] - shape.k_pos : 0;
            }
            bar_wait(&sm.q_empty[q.stage], q.phase);
#pragma unroll
            for (int i = 0; i < ROWS / 32; i++) {
                sm.doc[q.stage][32 * i + lane] = d[i];
                store_stats(sm.stats[q.stage] + (32 * i + lane) * 8, a[i], b[i]);
            }
            proxy_fence();
            __syncwarp();
            if (arrives(lane)) bar_arrive(&sm.q_full[q.stage]);
            q.next();
        }
    }
}
// Warp 2 + wg: has consumer wg's half of each step's dQ added to device memory, in any order, or,
// if deterministic, by blocks of keys in the order of their numbers.
template <int D>
__device__ __forceinline__ void bwd_dq_adder(const BwdParams& p, BwdSmem<D>& sm, int wg, int lane) {
    const int ROWS = BwdTile<D>::ROWS;
    const bool BY_QUERIES = BwdTile<D>::BY_QUERIES;
    const AttnShape& shape = p.a.s;
    int lo, hi;
    Tile w;
    for (int t = 0; bwd_next_tile(p, sm, t, lane, w, lo, hi); t++) {
        const int* doc = shape.doc(w.batch);
        const int bh = w.batch * shape.NH + w.head;
#pragma unroll 1
        for (int m = lo; m < hi; m++) {
            named_arrive<160>(BAR_DQ_EMPTY + wg);
            named_sync<160>(BAR_DQ_FULL + wg);
            if (lane == 0) {
                const int row = m * ROWS + (BY_QUERIES ? wg * 64 : 0), col = BY_QUERIES ? 0 : wg * 64;
                int *turn = NULL, mine = 0;
                if (p.a.deterministic) {   // the first block is the one that holds the first row's first key
                    turn = p.turn + ((int64_t)bh * p.row_tiles + m) * 2 + wg;
                    mine = w.row - (doc ? max(0, doc[m * ROWS] - shape.k_pos) / BWD_COLS : 0);
                    while (load_acquire(turn) != mine) {}
                }
                if (row < shape.Tq) {
                    tma_add(&p.dq, sm.dq[wg][0], col, row, w.head, w.batch);
                    tma_add(&p.dq, sm.dq[wg][1], col + 32, row, w.head, w.batch);
                    bulk_commit();
                }
                if (p.a.deterministic) {
                    bulk_wait();
                    proxy_fence_all();
                    add_release(turn, 1);
                } else bulk_wait_read();
            }
            __syncwarp();
        }
    }
    if (lane == 0) bulk_wait();
}

// dV += P^T dO, dK += scale dS^T Q, dQ += dS K with dS = P * (dO V^T - delta), P recomputed from Q,
// K and lse.
// Mapping: a block of threads per SM takes tiles of 128 keys and goes through all queries that see
//     them; a warpgroup owns 64 keys.
// Work: 10 D FLOP and one exponential per visible (row, key). Bytes: K, V, dK and dV once; Q and dO,
//     4 D per row, are read and dQ, 4 D per row, is added to once per block of keys, mostly in L2.
// From: FlashAttention-3 (transposed S and dP, so that P^T and dS^T feed dV and dK from registers;
//     dQ by bulk reduction), ThunderKittens (-lse in the accumulator; here -delta too). Its own: a
//     product brings both there; S runs a step ahead and dQ a step behind, so that the consumers
//     drift apart and share the tensor cores.
template <int D>
__global__ void __launch_bounds__(384, 1) attention_backward_kernel(const __grid_constant__ BwdParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ uint8_t raw[];
    BwdSmem<D>& sm = *(BwdSmem<D>*)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    if (threadIdx.x == 0) {
        bar_init(&sm.kv_full, 1), bar_init(&sm.kv_empty, 2);
        for (int i = 0; i < BWD_Q; i++) {
            bar_init(&sm.q_full[i], 1 + WARP_ARRIVALS);
            bar_init(&sm.q_empty[i], 2 * GROUP_ARRIVALS);
        }
        for (int i = 0; i < 2; i++) {
            bar_init(&sm.do_full[i], 1), bar_init(&sm.do_empty[i], 2);
            bar_init(&sm.ds_full[i], 8), bar_init(&sm.ds_free[i], 8);
            bar_init(&sm.tile_full[i], 1);
            bar_init(&sm.tile_empty[i], 2 * GROUP_ARRIVALS + 3 * WARP_ARRIVALS);
        }
        bar_init_fence();
        sm.c = p.a.s.scale * LOG2E;
    }
    if (threadIdx.x < 4 * 64) {   // in each row of `pick` ones where the three parts are
        int at = threadIdx.x >> 6, column = threadIdx.x & 7;
        sm.pick[at][threadIdx.x & 63] = __float2bfloat16(at % 2 == 0 && column / 3 == at / 2 ? 1.f : 0.f);
    }
    proxy_fence();
    __syncthreads();
    if (threadIdx.x < 128) {
        regs_down<24>();
        const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
        if (warp == 0) {
            if (lane == 0) bwd_loader<D>(p, sm);
        } else if (warp == 1) bwd_statistics<D>(p, sm, lane);
        else bwd_dq_adder<D>(p, sm, warp - 2, lane);
    } else {
        regs_up<240>();
        bwd_consumer<D>(p, sm, warp_uniform((int)(threadIdx.x >> 7) - 1));
    }
#else
    asm volatile("trap;");   // built without sm_90a and not told so
#endif
}

// --- delta, merged carries, the end of dQ ---
//
// Kernels with 8 threads per row, 32 rows per block of threads; blockIdx.y is the head, blockIdx.z
// the sequence. All are bound by memory.

// delta = rowsum(dO * O). A thread owns 16 bytes of the row, twice if HS > 64. 2 HS FLOP, reads 4
// HS bytes and writes 4 per row.
__global__ void attention_delta_kernel(AttnView dout, AttnView o, AttnRows delta, int T, int HS) {
    int row = blockIdx.x * 32 + threadIdx.x / 8, part = threadIdx.x % 8;
    float x = 0.f;
    for (int c = part * 8; row < T && c < HS; c += 64) {
        uint4 a = *(const uint4*)dout.at<bf16>(blockIdx.z, blockIdx.y, row, c);
        uint4 b = *(const uint4*)o.at<bf16>(blockIdx.z, blockIdx.y, row, c);
        const uint32_t *u = &a.x, *w = &b.x;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x = fmaf(__uint_as_float(u[i] << 16), __uint_as_float(w[i] << 16), x);
            x = fmaf(__uint_as_float(u[i] & 0xffff0000u), __uint_as_float(w[i] & 0xffff0000u), x);
        }
    }
#pragma unroll
    for (int i = 4; i; i >>= 1) x += __shfl_xor_sync(~0u, x, i);
    if (row < T && part == 0) *delta.at(blockIdx.z, blockIdx.y, row) = x;
}
// Two carries of the same rows into one, at the place of the first: m = max(m, m_b), O~ and l of both
// rescaled to it and added. Without acc_b the first alone; with o, divides and writes O and lse instead.
// A thread owns 8 columns at a time. Reads 2 x (4 HS + 8) bytes per row, writes 4 HS + 8 or 2 HS + 4.
__global__ void attention_merge_kernel(AttnView acc, AttnRows m, AttnRows l, AttnView acc_b, AttnRows m_b,
    AttnRows l_b, AttnView o, AttnRows lse, int T, int HS) {
    int row = blockIdx.x * 32 + threadIdx.x / 8, part = threadIdx.x % 8;
    int h = blockIdx.y, b = blockIdx.z;
    if (row >= T) return;
    float* acc_row = acc.at<float>(b, h, row, 0);
    float *m_row = m.at(b, h, row), *l_row = l.at(b, h, row);
    float m_new = *m_row, l_new = *l_row;
    const float* acc_b_row = NULL;
    float factor = 1.f, factor_b = 1.f;
    if (acc_b.p) {
        acc_b_row = acc_b.at<float>(b, h, row, 0);
        float from_b = *m_b.at(b, h, row), sum_b = *l_b.at(b, h, row);
        float to = fmaxf(m_new, from_b);
        if (to != -INFINITY) factor = exp2_fast(m_new - to), factor_b = exp2_fast(from_b - to);
        l_new = l_new * factor + sum_b * factor_b;
        m_new = to;
    }
    __syncwarp(0xFFu << (threadIdx.x & 24));   // the 8 threads of the row have read m and l
    const float inv = l_new > 0.f ? 1.f / l_new : 0.f;
    for (int c = part * 8; c < HS; c += 64) {
        float x[8];
        for (int i = 0; i < 8; i++)
            x[i] = acc_b_row ? acc_row[c + i] * factor + acc_b_row[c + i] * factor_b : acc_row[c + i];
        if (o.p)
            *(uint4*)o.at<bf16>(b, h, row, c) = make_uint4(pack(x[0] * inv, x[1] * inv),
                pack(x[2] * inv, x[3] * inv), pack(x[4] * inv, x[5] * inv), pack(x[6] * inv, x[7] * inv));
        else
            for (int i = 0; i < 8; i++) acc_row[c + i] = x[i];
    }
    if (part > 0) return;
    if (!o.p) *m_row = m_new, *l_row = l_new;
    else if (lse.p) *lse.at(b, h, row) = l_new == 0.f ? -INFINITY : (m_new + log2_fast(l_new)) * LN2;
}
// out (bf16) = scale * dq (fp32), or dq = 0 if out is absent. A thread owns 8 columns at a time.
// Reads 4 HS bytes per row and writes 2 HS, or writes 4 HS.
__global__ void attention_dq_kernel(AttnView dq, AttnView out, float scale, int T, int HS) {
    int row = blockIdx.x * 32 + threadIdx.x / 8, part = threadIdx.x % 8;
    for (int c = part * 8; row < T && c < HS; c += 64) {
        float4* x = (float4*)dq.at<float>(blockIdx.z, blockIdx.y, row, c);
        if (!out.p) {
            x[0] = x[1] = make_float4(0.f, 0.f, 0.f, 0.f);
            continue;
        }
        float4 a = x[0], b = x[1];
        *(uint4*)out.at<bf16>(blockIdx.z, blockIdx.y, row, c) = make_uint4(pack(a.x * scale, a.y * scale),
            pack(a.z * scale, a.w * scale), pack(b.x * scale, b.y * scale), pack(b.z * scale, b.w * scale));
    }
}

// --- launchers ---
// Bytes of L2 that a section of heads may fill; 12 and 256 MB were slower (bench_attention).
static const int ATTN_SECTION = 32 << 20;
// cuTensorMapEncodeTiled of the driver, the same for every device; NULL if it has none.
static PFN_cuTensorMapEncodeTiled_v12000 attn_encoder() {
    cudaDriverEntryPointQueryResult found;
    void* f = NULL;
#if CUDART_VERSION >= 12050
    cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found);
#else   // CUDA 13 has only the one above, CUDA 12.4 and before only this one
    cudaError_t status = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &f, cudaEnableDefault, &found);
#endif
    return status == cudaSuccess && found == cudaDriverEntryPointSuccess
        ? (PFN_cuTensorMapEncodeTiled_v12000)f
        : NULL;
}
// Tensor map of a view of T tokens: boxes of `rows` tokens x `cols` numbers of one head, 128-byte
// swizzle; rows past T are read as zero and not written.
static cudaError_t attn_map(
    CUtensorMap* map, const AttnView& v, int is_float, const AttnShape& s, int T, int cols, int rows) {
    static const PFN_cuTensorMapEncodeTiled_v12000 encode = attn_encoder();
    if (!encode) return cudaErrorNotSupported;
    const int64_t size = is_float ? 4 : 2;
    // a dimension of extent 1 is never stepped over: any legal stride will do
    cuuint64_t dims[4] = {(cuuint64_t)s.HS, (cuuint64_t)T, (cuuint64_t)s.NH, (cuuint64_t)s.B};
    cuuint64_t strides[3] = {(cuuint64_t)((T == 1 ? s.HS : v.token) * size),
        (cuuint64_t)((s.NH == 1 ? s.HS : v.head) * size), (cuuint64_t)((s.B == 1 ? s.HS : v.batch) * size)};
    cuuint32_t box[4] = {(cuuint32_t)cols, (cuuint32_t)rows, 1, 1}, step[4] = {1, 1, 1, 1};
    CUresult r = encode(map, is_float ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
        v.p, dims, strides, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return r == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
static int attn_shape_ok(const AttnShape& s) {
    return s.B > 0 && s.NH > 0 && s.Tq > 0 && s.Tk > 0 && s.scale > 0.f && s.HS >= 32 && s.HS <= 128 &&
        s.HS % 16 == 0;
}
// Whether kernels may access it two fp32 numbers at a time.
static int attn_pairs_ok(const AttnView& v) {
    return (uintptr_t)v.p % 8 == 0 && v.token % 2 == 0 && v.head % 2 == 0 && v.batch % 2 == 0;
}
// Whether the rows of queries lie without gaps, by heads or by tokens.
static int attn_dense(const AttnView& v, const AttnShape& s) {
    return v.batch == (int64_t)s.NH * s.Tq * s.HS &&
        ((v.token == s.HS && v.head == (int64_t)s.Tq * s.HS) ||
            (v.head == s.HS && v.token == (int64_t)s.NH * s.HS));
}
// How many heads of T rows of so many bytes fit in `budget` bytes of L2: at least one.
static int attn_section(const AttnShape& s, int64_t bytes_per_row, int T, int64_t budget) {
    int64_t heads = budget / (bytes_per_row * T), all = (int64_t)s.B * s.NH;
    return (int)(heads < 1 ? 1 : heads > all ? all : heads);
}
struct AttnDevice {     // the current device
    int major, sms;     // compute capability, multiprocessors
    int shared_bytes;   // shared memory that a block of threads may have
};
static cudaError_t attn_device(AttnDevice* d) {
    int device;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&d->major, cudaDevAttrComputeCapabilityMajor, device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&d->sms, cudaDevAttrMultiProcessorCount, device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&d->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return e;
}
static int attn_sms() {
    AttnDevice d;
    return attn_device(&d) == cudaSuccess ? d.sms : 1;
}
#define ATTN_TRY(x) \
    do { \
        cudaError_t e_ = (x); \
        if (e_ != cudaSuccess) return e_; \
    } while (0)

// Device bytes that AttnBackward.work needs: three counters and, per row tile of a head, the most
// turns of any kernel.
static inline size_t attention_backward_work(const AttnShape& s) {
    return 4 * (3 + (size_t)s.B * s.NH * ((s.Tq + 31) / 32) * 8);
}

static cudaError_t forward_check(const AttnForward& a) {
    if (!attn_shape_ok(a.s) || !a.q.p || !a.k.p || !a.v.p || !a.work) return cudaErrorInvalidValue;
    if ((a.carry_in || a.carry_out) && (!a.acc.p || !a.m.p || !a.l.p)) return cudaErrorInvalidValue;
    if ((a.carry_in || a.carry_out) && !attn_pairs_ok(a.acc)) return cudaErrorInvalidValue;
    return cudaSuccess;
}
static cudaError_t backward_check(const AttnBackward& a) {
    if (!attn_shape_ok(a.s) || !a.q.p || !a.k.p || !a.v.p || !a.dout.p || !a.lse.p || !a.delta.p || !a.dq.p ||
        !a.dk.p || !a.dv.p)
        return cudaErrorInvalidValue;
    if (!a.work || (a.dkv_bf16 && a.accumulate_dkv)) return cudaErrorInvalidValue;
    if (!attn_pairs_ok(a.dk) || !attn_pairs_ok(a.dv)) return cudaErrorInvalidValue;
    return cudaSuccess;
}

// The kernels for Hopper, for arguments that the checks above have passed.
template <int D> static cudaError_t hopper_forward(const AttnForward& a, cudaStream_t stream) {
    const int ROWS = FwdTile<D>::ROWS;
    FwdParams p;
    p.a = a;
    ATTN_TRY(attn_map(&p.q, a.q, 0, a.s, a.s.Tq, 64, ROWS));
    ATTN_TRY(attn_map(&p.k, a.k, 0, a.s, a.s.Tk, 64, FWD_COLS));
    ATTN_TRY(attn_map(&p.v, a.v, 0, a.s, a.s.Tk, 64, FWD_COLS));
    ATTN_TRY(attn_map(&p.o, a.o.p ? a.o : a.q, 0, a.s, a.s.Tq, 64, 64));
    p.row_tiles = (a.s.Tq + ROWS - 1) / ROWS;
    p.tiles = p.row_tiles * a.s.B * a.s.NH;
    p.before = a.s.causal && a.s.Tq % 64 == 0 ? p.row_tiles * ROWS - a.s.Tq : 0;
    p.section = attn_section(a.s, 4 * D, a.s.Tk, ATTN_SECTION);
    const int bytes = sizeof(FwdSmem<D>) + 1024;   // which begins at a multiple of 1024
    ATTN_TRY(cudaFuncSetAttribute(
        attention_forward_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    const int blocks = min(p.tiles, attn_sms());
    attention_forward_kernel<D><<<blocks, FwdTile<D>::THREADS, bytes, stream>>>(p);
    return cudaGetLastError();
}
template <int D> static cudaError_t hopper_backward(const AttnBackward& a, cudaStream_t stream) {
    const int ROWS = BwdTile<D>::ROWS;
    BwdParams p;
    p.a = a;
    ATTN_TRY(attn_map(&p.q, a.q, 0, a.s, a.s.Tq, 64, ROWS));
    ATTN_TRY(attn_map(&p.k, a.k, 0, a.s, a.s.Tk, 64, BWD_COLS));
    ATTN_TRY(attn_map(&p.v, a.v, 0, a.s, a.s.Tk, 64, BWD_COLS));
    ATTN_TRY(attn_map(&p.dout, a.dout, 0, a.s, a.s.Tq, 64, ROWS));
    ATTN_TRY(attn_map(&p.dq, a.dq, 1, a.s, a.s.Tq, 32, 64));
    p.row_tiles = (a.s.Tq + ROWS - 1) / ROWS;
    p.col_tiles = (a.s.Tk + BWD_COLS - 1) / BWD_COLS;
    p.section = attn_section(a.s, 8 * D, a.s.Tq, ATTN_SECTION);
    p.turn = a.work + 2;
    p.tiles = p.col_tiles * a.s.B * a.s.NH;
    const int bytes = sizeof(BwdSmem<D>) + 1024;
    ATTN_TRY(cudaFuncSetAttribute(
        attention_backward_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    if (a.deterministic)
        ATTN_TRY(cudaMemsetAsync(p.turn, 0, 4 * ((size_t)a.s.B * a.s.NH * p.row_tiles * 2), stream));
    const int blocks = min(p.tiles, attn_sms());
    attention_backward_kernel<D><<<blocks, 384, bytes, stream>>>(p);
    return cudaGetLastError();
}

// into += from, two carries of attention_forward over different keys; `from` may be absent. With o
// present it writes O and lse and leaves the carry as it was.
static inline cudaError_t attention_merge(const AttnCarry& into, const AttnCarry& from, const AttnView& o,
    const AttnRows& lse, int B, int NH, int T, cudaStream_t stream, int HS = 64) {
    attention_merge_kernel<<<dim3((T + 31) / 32, NH, B), 256, 0, stream>>>(
        into.acc, into.m, into.l, from.acc, from.m, from.l, o, lse, T, HS);
    return cudaGetLastError();
}
// delta (B, NH, T) = rowsum(dO * O), both bf16 (B, NH, T, HS).
static inline cudaError_t attention_delta(const AttnView& dout, const AttnView& o, const AttnRows& delta,
    int B, int NH, int T, cudaStream_t stream, int HS = 64) {
    attention_delta_kernel<<<dim3((T + 31) / 32, NH, B), 256, 0, stream>>>(dout, o, delta, T, HS);
    return cudaGetLastError();
}
// dq (fp32) holds the sum over all launches; writes scale * dq in bf16, or zeroes dq if out is absent.
static inline cudaError_t attention_dq_finish(const AttnView& dq, const AttnView& out, float scale, int B,
    int NH, int T, cudaStream_t stream, int HS = 64) {
    attention_dq_kernel<<<dim3((T + 31) / 32, NH, B), 256, 0, stream>>>(dq, out, scale, T, HS);
    return cudaGetLastError();
}
}   // namespace attn

// --- portable attention kernels ---
//
// The same contract as the kernels above with the instructions of sm_80 (mma.sync, ldmatrix,
// cp.async), so for every GPU from A100 and RTX 30 on, and for any head size HS <= 128 that is a
// multiple of 16. Kernels are made for D = 32, 64, 96 and 128 columns; HS < D is filled up with
// zeros in shared memory. All warps do the same work on rows, or keys, of their own: one barrier
// per block of keys, or step, tells them that what they copied for it is there, and that all are
// past the one before, whose buffers the next copies go to.
//
//     forward, block n      barrier | K(n-1), V(n-1) begin to arrive | S | max | exp, P V, 16 keys at a time
//     backward, step m      barrier | Q, dO of m+1 begin to arrive | dQ of m-1 | S^T, dP^T | dS | dV, dK
//
// m16n8k16: d (16 x 8) += A (16 x 16) B (16 x 8). A thread owns d[0], d[1] = row g, columns 2t, 2t+1
// and d[2], d[3] = row g+8. Two neighbouring accumulators, rounded to bf16 in pairs, are the A
// operand of a product over their columns: P feeds P V without leaving registers. Shared tiles are
// rows of D + 8 numbers: the pitch is an odd number of 16-byte pieces, so that 8 rows of one column
// of pieces lie in different banks and every address is a constant away from one of the thread's own.
//
// Ideas: FlashAttention-2 (warps own whole rows, one pass over the keys, dK and dV in registers),
// FlashAttention-3 (S and dP transposed in the backward pass), FlashAttention-4 (lazy rescaling).
namespace attn {
// 16 or 4 bytes from device to shared memory, or zeros; asynchronous.
__device__ __forceinline__ void cp16(uint32_t dst, const void* src, bool in) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(in ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void cp4(uint32_t dst, const void* src, bool in) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(in ? 4 : 0)
                 : "memory");
}
__device__ __forceinline__ void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void cp_wait() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
// Four 8 x 8 matrices; lanes 8i to 8i + 7 give the addresses of the rows of matrix i. The second:
// transposed.
__device__ __forceinline__ void ldsm(uint32_t (&r)[4], uint32_t a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}
__device__ __forceinline__ void ldsm_trans(uint32_t (&r)[4], uint32_t a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}
__device__ __forceinline__ void mma16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The first of a sum: d = A B.
__device__ __forceinline__ void mma16816_first(
    float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
}
// d (16 x 16, two accumulators) += A B, or = if `first`, a constant after unrolling.
__device__ __forceinline__ void mma_pair(
    float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], bool first = false) {
    if (first) mma16816_first(d0, a, b[0], b[1]), mma16816_first(d1, a, b[2], b[3]);
    else mma16816(d0, a, b[0], b[1]), mma16816(d1, a, b[2], b[3]);
}
// ROWS rows from `row` on of one head, into a tile of pitch D + 8; rows past T and columns past HS
// are zeros. THREADS threads together. token: stride of rows in memory.
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void load_tile(
    uint32_t dst, const bf16* src, int64_t token, int row, int T, int HS) {
    const int PIECES = D / 8, N = ROWS * PIECES;
#pragma unroll
    for (int i = 0; i < (N + THREADS - 1) / THREADS; i++) {
        int at = i * THREADS + (int)threadIdx.x;
        if (N % THREADS && at >= N) break;
        int r = at / PIECES, c = at % PIECES;
        bool in = row + r < T && c * 8 < HS;
        cp16(dst + r * (D + 8) * 2 + c * 16, in ? src + (row + r) * token + c * 8 : src, in);
    }
}

// --- forward ---
struct PortableForward {
    AttnForward a;
    int row_tiles;   // of a head
    int section;     // heads whose K and V stay in L2 together
};
// 32 rows per warp: each piece of K and V that a warp reads serves two products.
static const int PFWD_ROWS = 128, PFWD_THREADS = 128;
template <int D> struct PortableForwardTile {
    static const int COLS = D == 128 ? 32 : 64;   // keys of a block
    static const int PITCH = D + 8;               // numbers from a row to the next
    static const bool Q_IN_REGISTERS = D <= 64;   // Q then only passes through the buffers of V
    static const int Q_BYTES = Q_IN_REGISTERS ? 0 : PFWD_ROWS * PITCH * 2;
    static const int STAGE = COLS * PITCH * 2;   // bytes of a block of K or V, of which two are there
    static const int BYTES = Q_BYTES + 4 * STAGE;
    static_assert(
        !Q_IN_REGISTERS || 2 * STAGE >= PFWD_ROWS * PITCH * 2, "Q and O pass through the buffers of V");
};
// What a thread has of its four rows 16 mt + 8 r + g of the warp's 32.
template <int D> struct PortableRows {
    float o[2][D / 8][4];   // O~: [mt][j][2 r + e] is column 8 j + t2 + e
    float l[2][2];          // its share of the sum of P
    float m[2][2];          // exponent offset, base 2, -inf = nothing seen yet
    float minus[2][2];      // -m, 0 if m = -inf
};
// They begin as the carry, or with nothing seen. r0: the warp's first row.
template <int D>
__device__ __forceinline__ void portable_begin(
    PortableRows<D>& x, const AttnForward& a, const Tile& w, int HS, int r0, int g, int t2) {
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = r0 + 16 * mt + 8 * r + g;
            const bool in = a.carry_in && row < a.s.Tq;
            const float* acc = a.acc.at<float>(w.batch, w.head, row, t2);
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                float2 y = in && 8 * j < HS ? *(const float2*)(acc + 8 * j) : make_float2(0.f, 0.f);
                x.o[mt][j][2 * r] = y.x, x.o[mt][j][2 * r + 1] = y.y;
            }
            x.m[mt][r] = in ? *a.m.at(w.batch, w.head, row) : -INFINITY;
            x.l[mt][r] = in && t2 == 0 ? *a.l.at(w.batch, w.head, row) : 0.f;
            x.minus[mt][r] = x.m[mt][r] == -INFINITY ? 0.f : -x.m[mt][r];
        }
}
// S = Q K^T of a warp's 32 rows and a block of 8 NT keys. Q from registers, or from shared memory at q_at.
template <int D, int NT, int KEPT>
__device__ __forceinline__ void portable_scores(
    float (&s)[2][NT][4], uint32_t (&q)[KEPT][2][4], uint32_t q_at, uint32_t k_at) {
    const int PITCH_BYTES = (D + 8) * 2;
    const bool Q_IN_REGISTERS = PortableForwardTile<D>::Q_IN_REGISTERS;
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
        uint32_t a[2][4];
        if (!Q_IN_REGISTERS) ldsm(a[0], q_at + kk * 32), ldsm(a[1], q_at + 16 * PITCH_BYTES + kk * 32);
#pragma unroll
        for (int j = 0; j < NT; j += 2) {
            uint32_t b[4];
            ldsm(b, k_at + j * 8 * PITCH_BYTES + kk * 32);
#pragma unroll
            for (int mt = 0; mt < 2; mt++)
                mma_pair(s[mt][j], s[mt][j + 1], Q_IN_REGISTERS ? q[Q_IN_REGISTERS ? kk : 0][mt] : a[mt], b,
                    kk == 0);
        }
    }
}
// Scores of keys that a row does not see become -inf. r0: the warp's first row, k0: the block's
// first key, rel: position of query row 0 after key 0, doc: doc_start of the sequence, or NULL.
template <int NT>
__device__ __forceinline__ void portable_mask(
    float (&s)[2][NT][4], const AttnShape& shape, const int* doc, int rel, int r0, int k0, int g, int t2) {
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = r0 + 16 * mt + 8 * r + g;
            const int end = (shape.causal ? min(shape.Tk, rel + row + 1) : shape.Tk) - k0 - t2;
            const int begin = doc ? doc[min(row, shape.Tq - 1)] - shape.k_pos - k0 - t2 : -1 << 30;
#pragma unroll
            for (int j = 0; j < NT; j++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (8 * j + e >= end || 8 * j + e < begin) s[mt][j][2 * r + e] = -INFINITY;
        }
}
// Where a score exceeds its row's m by more than 8 in base 2, moves m, and rescales O~ and l. As a
// rule there is none, and the lanes exchange no more than a vote.
template <int D, int NT>
__device__ __forceinline__ void portable_offset_update(
    PortableRows<D>& x, const float (&s)[2][NT][4], float c) {
    float most[2][2];
    bool moves = false;
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float even = fmaxf(s[mt][0][2 * r], s[mt][0][2 * r + 1]),
                  odd = fmaxf(s[mt][1][2 * r], s[mt][1][2 * r + 1]);
#pragma unroll
            for (int j = 2; j < NT; j += 2) {
                even = fmaxf(even, fmaxf(s[mt][j][2 * r], s[mt][j][2 * r + 1]));
                odd = fmaxf(odd, fmaxf(s[mt][j + 1][2 * r], s[mt][j + 1][2 * r + 1]));
            }
            most[mt][r] = fmaxf(even, odd) * c;
            moves |= most[mt][r] > x.m[mt][r] + 8.f;
        }
    if (!__any_sync(~0u, moves)) return;
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float y = most[mt][r];
            y = fmaxf(y, __shfl_xor_sync(~0u, y, 1));
            y = fmaxf(y, __shfl_xor_sync(~0u, y, 2));
            const float to = fmaxf(x.m[mt][r], y);
            const float alpha = to == -INFINITY ? 1.f : exp2_fast(x.m[mt][r] - to);
            x.m[mt][r] = to;
            x.minus[mt][r] = to == -INFINITY ? 0.f : -to;
            x.l[mt][r] *= alpha;
#pragma unroll
            for (int j = 0; j < D / 8; j++) x.o[mt][j][2 * r] *= alpha, x.o[mt][j][2 * r + 1] *= alpha;
        }
}
// O~ += P V with P = 2^(c S - m), 16 keys at a time, whose exponentials run under the products of
// the 16 before. v_at: this lane's row of V.
template <int D, int NT>
__device__ __forceinline__ void portable_weigh_values(
    PortableRows<D>& x, float (&s)[2][NT][4], float c, uint32_t v_at) {
    const int PITCH_BYTES = (D + 8) * 2;
#pragma unroll
    for (int j = 0; j < NT; j += 2) {
        uint32_t pr[2][4];   // P in bf16
#pragma unroll
        for (int mt = 0; mt < 2; mt++) {
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float& y = s[mt][j + i][e];
                    y = exp2_fast(fmaf(y, c, x.minus[mt][e >> 1]));
                    x.l[mt][e >> 1] += y;
                }
#pragma unroll
            for (int i = 0; i < 4; i++)
                pr[mt][i] = pack(s[mt][j + (i >> 1)][2 * (i & 1)], s[mt][j + (i >> 1)][2 * (i & 1) + 1]);
        }
#pragma unroll
        for (int d = 0; d < D / 8; d += 2) {
            uint32_t b[4];
            ldsm_trans(b, v_at + j * 8 * PITCH_BYTES + d * 16);
#pragma unroll
            for (int mt = 0; mt < 2; mt++) mma_pair(x.o[mt][d], x.o[mt][d + 1], pr[mt], b);
        }
    }
}
// Writes a thread's part of the carry and of lse, and O~ / l in bf16 to the tile's rows at `stage`
// in shared memory.
template <int D>
__device__ __forceinline__ void portable_write_rows(const PortableRows<D>& x, const AttnForward& a,
    const Tile& w, int HS, int r0, int warp, int g, int t2, uint32_t stage) {
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = r0 + 16 * mt + 8 * r + g;
            const float l = quad_sum(x.l[mt][r]);
            const float inv = l > 0.f ? 1.f / l : 0.f;
            if (row < a.s.Tq) {
                if (a.carry_out) {
                    float* acc = a.acc.at<float>(w.batch, w.head, row, t2);
#pragma unroll
                    for (int j = 0; j < D / 8; j++)
                        if (8 * j < HS)
                            *(float2*)(acc + 8 * j) = make_float2(x.o[mt][j][2 * r], x.o[mt][j][2 * r + 1]);
                    if (t2 == 0) {
                        *a.m.at(w.batch, w.head, row) = x.m[mt][r];
                        *a.l.at(w.batch, w.head, row) = l;
                    }
                }
                if (a.lse.p && t2 == 0)
                    *a.lse.at(w.batch, w.head, row) =
                        l == 0.f ? -INFINITY : (x.m[mt][r] + log2_fast(l)) * LN2;
            }
            const uint32_t at = stage + (warp * 32 + 16 * mt + 8 * r + g) * ((D + 8) * 2) + t2 * 2;
#pragma unroll
            for (int j = 0; j < D / 8; j++)
                sts1(at + 16 * j, pack(x.o[mt][j][2 * r] * inv, x.o[mt][j][2 * r + 1] * inv));
        }
}

// O = softmax(scale Q K^T + mask) V, with a carry in and out, keys from right to left in blocks of COLS.
// Mapping: a block of threads per tile of 128 rows, 4 warps of 32 rows; the next K and V arrive
//     while this one is used.
// Work: 4 D FLOP and one exponential per visible (row, key). Bytes: Q and O once; K and V once per row
//     tile, from L2, as a section of heads fits there; a carry is 4 HS + 8 bytes per row, in and out.
template <int D>
__global__ void __launch_bounds__(PFWD_THREADS, 2)
    portable_forward_kernel(const __grid_constant__ PortableForward p) {
    typedef PortableForwardTile<D> Size;
    const int COLS = Size::COLS, PITCH_BYTES = Size::PITCH * 2;
    extern __shared__ __align__(16) uint8_t portable_smem[];
    const AttnShape& shape = p.a.s;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int g = lane >> 2, t2 = (lane & 3) * 2;
    const int HS = shape.HS;
    // The order of tiles is fwd_tile's.
    const int per = p.section * p.row_tiles, sec = blockIdx.x / per;
    const int in_sec = blockIdx.x - sec * per;
    const int heads = min(p.section, shape.B * shape.NH - sec * p.section);
    const int bh = sec * p.section + in_sec % heads;
    const int head = bh % shape.NH, batch = bh / shape.NH;
    const Tile w = {p.row_tiles - 1 - in_sec / heads, head, batch};
    const int tile_row = w.row * PFWD_ROWS, r0 = tile_row + warp * 32;
    // In shared memory: Q, or nothing; two blocks of K; two of V. O goes where Q or V was.
    const uint32_t sq = smem_of(portable_smem);
    const uint32_t sk = sq + Size::Q_BYTES, sv = sk + 2 * Size::STAGE;
    const uint32_t sq_or_o = Size::Q_IN_REGISTERS ? sv : sq;
    const bf16 *q = p.a.q.of<bf16>(w.batch, w.head), *k = p.a.k.of<bf16>(w.batch, w.head),
               *v = p.a.v.of<bf16>(w.batch, w.head);
    const float c = shape.scale * LOG2E;

    // Blocks of keys: [lo, hi) that the tile sees, [first, end) that this warp's rows see. All its
    // rows see the keys below `whole` that are not below doc_last.
    int lo, hi, end = 0, first = 0;
    key_range<COLS>(shape, w.batch, tile_row, min(tile_row + PFWD_ROWS, shape.Tq) - 1, lo, hi);
    if (r0 < shape.Tq) key_range<COLS>(shape, w.batch, r0, min(r0 + 31, shape.Tq - 1), first, end);
    const int rel = shape.q_pos - shape.k_pos;
    const int* doc = shape.doc(w.batch);
    const int whole = shape.causal ? min(shape.Tk, rel + r0 + 1) : shape.Tk;
    const int doc_last = doc && r0 < shape.Tq ? doc[min(r0 + 31, shape.Tq - 1)] - shape.k_pos : 0;

    load_tile<D, PFWD_ROWS, PFWD_THREADS>(sq_or_o, q, p.a.q.token, tile_row, shape.Tq, HS);
    if (lo < hi) {
        load_tile<D, COLS, PFWD_THREADS>(sk, k, p.a.k.token, (hi - 1) * COLS, shape.Tk, HS);
        if (!Size::Q_IN_REGISTERS)
            load_tile<D, COLS, PFWD_THREADS>(sv, v, p.a.v.token, (hi - 1) * COLS, shape.Tk, HS);
    }
    cp_commit();
    // This lane's row of its 8 x 8 matrices: of A operands and transposed B operands; of B operands
    // as they lie.
    const uint32_t a_at = (lane & 15) * PITCH_BYTES + (lane >> 4) * 16,
                   b_at = ((lane & 7) + ((lane >> 4) << 3)) * PITCH_BYTES + ((lane >> 3) & 1) * 16;
    const uint32_t q_at = sq_or_o + warp * 32 * PITCH_BYTES + a_at;
    uint32_t q_kept[Size::Q_IN_REGISTERS ? D / 16 : 1][2][4];
    if (Size::Q_IN_REGISTERS) {
        cp_wait();
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++)
            ldsm(q_kept[kk][0], q_at + kk * 32), ldsm(q_kept[kk][1], q_at + 16 * PITCH_BYTES + kk * 32);
        __syncthreads();
        if (lo < hi) load_tile<D, COLS, PFWD_THREADS>(sv, v, p.a.v.token, (hi - 1) * COLS, shape.Tk, HS);
        cp_commit();
    }
    PortableRows<D> x;
    portable_begin<D>(x, p.a, w, HS, r0, g, t2);

#pragma unroll 1
    for (int n = hi - 1; n >= lo; n--) {
        const int st = (hi - 1 - n) & 1;
        cp_wait();
        __syncthreads();
        if (n > lo) {
            load_tile<D, COLS, PFWD_THREADS>(
                sk + (st ^ 1) * Size::STAGE, k, p.a.k.token, (n - 1) * COLS, shape.Tk, HS);
            load_tile<D, COLS, PFWD_THREADS>(
                sv + (st ^ 1) * Size::STAGE, v, p.a.v.token, (n - 1) * COLS, shape.Tk, HS);
            cp_commit();
        }
        if (n >= end || n < first) continue;
        float s[2][COLS / 8][4];
        const uint32_t k_at = sk + st * Size::STAGE + b_at, v_at = sv + st * Size::STAGE + a_at;
        portable_scores<D>(s, q_kept, q_at, k_at);
        const int k0 = n * COLS;
        if (k0 + COLS > whole || k0 < doc_last) portable_mask(s, shape, doc, rel, r0, k0, g, t2);
        portable_offset_update(x, s, c);
        portable_weigh_values(x, s, c, v_at);
    }

    cp_wait();         // of Q, where no row sees any key
    __syncthreads();   // all are done with Q or V
    portable_write_rows<D>(x, p.a, w, HS, r0, warp, g, t2, sq_or_o);
    __syncwarp();
    if (p.a.o.p)
        for (int i = lane; i < 32 * (D / 8); i += 32) {
            const int r = i / (D / 8), piece = i % (D / 8);
            const uint4 y = lds4(sq_or_o + (warp * 32 + r) * PITCH_BYTES + piece * 16);
            if (r0 + r < shape.Tq && piece * 8 < HS)
                *(uint4*)p.a.o.at<bf16>(w.batch, w.head, r0 + r, piece * 8) = y;
        }
}

// --- backward ---
struct PortableBackward {
    AttnBackward a;
    int row_tiles, col_tiles;   // of a head
    int section;                // heads whose Q and dO stay in L2 together
    int* turn;                  // (B*NH, row_tiles, 8 warps) how many blocks of keys have added to this part
                                // of dQ, for the deterministic order
};
// ROWS queries per step against COLS = 16 MT KEYS keys: KEYS groups of two warps have 16 MT keys each,
// of a group each warp half of the queries. V_IN_REGISTERS: V only passes through shared memory, and
// the second buffer of dS takes its place. Offsets and sizes in shared memory are in bytes.
template <int D, int ROWS_, int MT_, int KEYS_, int V_IN_REGISTERS_> struct PortableBackwardTile {
    static const int MT = MT_, ROWS = ROWS_;
    static const int COLS = 16 * MT * KEYS_, THREADS = 64 * KEYS_;
    static const int PITCH = D + 8, S_PITCH = ROWS + 8;   // numbers from a row to the next; of dS
    static const int V_IN_REGISTERS = V_IN_REGISTERS_;
    static const int K_BYTES = COLS * PITCH * 2, Q_BYTES = ROWS * PITCH * 2;
    static const int S_BYTES = COLS * S_PITCH * 2;
    static const int STATS = ROWS * 3 * 4;   // lse, delta, first visible key
    static const int V = K_BYTES, DS1 = V_IN_REGISTERS ? V : V + K_BYTES;
    static const int DS0 = DS1 + (V_IN_REGISTERS && K_BYTES > S_BYTES ? K_BYTES : S_BYTES);
    static const int Q = DS0 + S_BYTES, STAGE = 2 * Q_BYTES + STATS;   // two stages of Q, dO and STATS
    static const int USED = Q + 2 * STAGE;
    static const int SUM = THREADS / 2 * MT * D * 4;   // dK or dV of every warp, at the end
    static const int BYTES = USED > SUM ? USED : SUM;
};

template <int M, int N> __device__ __forceinline__ void zero(float (&d)[M][N][4]) {
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) d[i][j][e] = 0.f;
}
// The rows of V of a warp's keys into registers, if they are kept there. kw: the warp's first key
// in the tile.
template <class Size, int KEPT>
__device__ __forceinline__ void portable_keep(
    uint32_t (&v)[Size::MT][KEPT][4], uint32_t sv, int kw, uint32_t a_at) {
#pragma unroll
    for (int mt = 0; mt < Size::MT; mt++)
#pragma unroll
        for (int kk = 0; kk < (Size::V_IN_REGISTERS ? KEPT : 0); kk++)
            ldsm(v[mt][kk], sv + (kw + 16 * mt) * (Size::PITCH * 2) + a_at + kk * 32);
}
// lse, delta and doc of the queries of row tile m to the STATS of a stage. Asynchronous.
template <class Size>
__device__ __forceinline__ void portable_load_stats(
    uint32_t stage, const float* lse, const float* delta, const int* doc, int m, int Tq) {
    const int ROWS = Size::ROWS;
#pragma unroll
    for (int i = threadIdx.x; i < 3 * ROWS; i += Size::THREADS) {
        const int row = m * ROWS + i % ROWS;
        const uint32_t to = stage + 2 * Size::Q_BYTES + i * 4;
        if (i < ROWS) cp4(to, row < Tq ? lse + row : lse, row < Tq);
        else if (i < 2 * ROWS) cp4(to, row < Tq ? delta + row : delta, row < Tq);
        else if (doc) cp4(to, doc + min(row, Tq - 1), true);
    }
}
// d (16 MT keys x ROWS / 2 queries of a warp) = keys x queries^T: S^T or dP^T. `a`: the warp's
// keys, KEPT in registers, or, if 1, read from shared memory as they are needed. kw, qw: the warp's
// first key and query in the tiles; a_at, b_at: this lane's row of its matrices.
template <class Size, int D, int KEPT>
__device__ __forceinline__ void portable_product(float (&d)[Size::MT][Size::ROWS / 16][4],
    uint32_t (&a)[Size::MT][KEPT][4], uint32_t keys, int kw, uint32_t a_at, uint32_t queries, int qw,
    uint32_t b_at) {
    const int PITCH_BYTES = Size::PITCH * 2;
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
        const int at = KEPT > 1 ? kk : 0;
#pragma unroll
        for (int mt = 0; mt < (KEPT > 1 ? 0 : Size::MT); mt++)
            ldsm(a[mt][0], keys + (kw + 16 * mt) * PITCH_BYTES + a_at + kk * 32);
#pragma unroll
        for (int j = 0; j < Size::ROWS / 16; j += 2) {
            uint32_t b[4];
            ldsm(b, queries + (qw + 8 * j) * PITCH_BYTES + b_at + kk * 32);
#pragma unroll
            for (int mt = 0; mt < Size::MT; mt++) mma_pair(d[mt][j], d[mt][j + 1], a[mt][at], b, kk == 0);
        }
    }
}
// S becomes P = 2^(c S - lse log2(e)). stats: this lane's first query in the step's STATS.
template <class Size>
__device__ __forceinline__ void portable_exp(
    float (&s)[Size::MT][Size::ROWS / 16][4], uint32_t stats, float c) {
#pragma unroll
    for (int j = 0; j < Size::ROWS / 16; j++) {
        const float2 lse = lds2(stats + j * 32);   // of two queries
#pragma unroll
        for (int mt = 0; mt < Size::MT; mt++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[mt][j][e] = exp2_fast(fmaf(s[mt][j][e], c, -((e & 1) ? lse.y : lse.x) * LOG2E));
    }
}
// P of keys that a query does not see becomes 0. i0, j0: the warp's first query and key; rel:
// position of query row 0 after key 0.
template <class Size>
__device__ __forceinline__ void portable_mask_queries(float (&s)[Size::MT][Size::ROWS / 16][4],
    const AttnShape& shape, const int* doc, uint32_t stats, int i0, int j0, int rel, int g, int t2) {
    const int MT = Size::MT, ROWS = Size::ROWS;
#pragma unroll
    for (int j = 0; j < ROWS / 16; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int end = shape.causal ? min(shape.Tk - 1, i0 + 8 * j + t2 + e + rel) : shape.Tk - 1;
            const int begin = doc ? lds1(stats + (2 * ROWS + 8 * j + e) * 4) - shape.k_pos : -1 << 30;
#pragma unroll
            for (int mt = 0; mt < MT; mt++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const int key = j0 + 16 * mt + 8 * r + g;
                    if (key > end || key < begin) s[mt][j][2 * r + e] = 0.f;
                }
        }
}
// P^T and dS^T = P^T * (dP^T - delta) in bf16; dS^T also to shared memory, ds_to.
template <class Size>
__device__ __forceinline__ void portable_round(uint32_t (&pr)[Size::MT][Size::ROWS / 16][2],
    uint32_t (&ds)[Size::MT][Size::ROWS / 16][2], const float (&p)[Size::MT][Size::ROWS / 16][4],
    const float (&dp)[Size::MT][Size::ROWS / 16][4], uint32_t stats, uint32_t ds_to) {
#pragma unroll
    for (int j = 0; j < Size::ROWS / 16; j++) {
        const float2 delta = lds2(stats + Size::ROWS * 4 + j * 32);   // of two queries
#pragma unroll
        for (int mt = 0; mt < Size::MT; mt++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                pr[mt][j][r] = pack(p[mt][j][2 * r], p[mt][j][2 * r + 1]);
                ds[mt][j][r] = pack(p[mt][j][2 * r] * (dp[mt][j][2 * r] - delta.x),
                    p[mt][j][2 * r + 1] * (dp[mt][j][2 * r + 1] - delta.y));
                sts1(ds_to + (16 * mt + 8 * r) * (Size::S_PITCH * 2) + j * 16, ds[mt][j][r]);
            }
    }
}
// The dS^T of a warp none of whose queries sees any of its keys.
template <class Size> __device__ __forceinline__ void portable_zero_ds(uint32_t ds_to) {
#pragma unroll
    for (int mt = 0; mt < Size::MT; mt++)
#pragma unroll
        for (int j = 0; j < Size::ROWS / 16; j++)
#pragma unroll
            for (int r = 0; r < 2; r++) sts1(ds_to + (16 * mt + 8 * r) * (Size::S_PITCH * 2) + j * 16, 0);
}
// d (16 MT keys x D) += w (16 MT keys x ROWS / 2 queries, bf16) x queries: dV += P^T dO, or dK += dS^T Q.
template <class Size, int D>
__device__ __forceinline__ void portable_weigh_queries(float (&d)[Size::MT][D / 8][4],
    const uint32_t (&w)[Size::MT][Size::ROWS / 16][2], uint32_t queries, int qw, uint32_t a_at) {
#pragma unroll
    for (int j = 0; j < Size::ROWS / 16; j += 2)
#pragma unroll
        for (int col = 0; col < D / 8; col += 2) {
            uint32_t b[4];
            ldsm_trans(b, queries + (qw + 8 * j) * (Size::PITCH * 2) + a_at + col * 16);
#pragma unroll
            for (int mt = 0; mt < Size::MT; mt++) {
                const uint32_t a[4] = {w[mt][j][0], w[mt][j][1], w[mt][j + 1][0], w[mt][j + 1][1]};
                mma_pair(d[mt][col], d[mt][col + 1], a, b);
            }
        }
}
// dQ += dS K for row tile m and the keys of block n, of head bh of all sequences': 16 rows and D /
// COL_GROUPS columns per warp, to memory. ds, keys: this lane's rows of dS, transposed, and of K.
template <class Size, int D>
__device__ __forceinline__ void portable_add_dq(const PortableBackward& p, float* dq, const int* doc, int bh,
    int n, int m, uint32_t ds, uint32_t keys, int HS) {
    const int ROWS = Size::ROWS, COLS = Size::COLS;
    const int ROW_GROUPS = ROWS / 16;
    const int COL_GROUPS = Size::THREADS / 32 / ROW_GROUPS, N = D / COL_GROUPS / 8;
    static_assert(N % 2 == 0, "columns come 16 at a time");
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int g = lane >> 2, t2 = (lane & 3) * 2;
    const int row_group = warp % ROW_GROUPS, col0 = warp / ROW_GROUPS * (D / COL_GROUPS);
    float x[N][4];
    const uint32_t ds_at = ds + row_group * 32, k_at = keys + col0 * 2;
#pragma unroll
    for (int kk = 0; kk < COLS / 16; kk++) {
        uint32_t a[4];
        ldsm_trans(a, ds_at + kk * 16 * (Size::S_PITCH * 2));
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            uint32_t b[4];
            ldsm_trans(b, k_at + kk * 16 * (Size::PITCH * 2) + j * 16);
            mma_pair(x[j], x[j + 1], a, b, kk == 0);
        }
    }
    int* turn = NULL;
    if (p.a.deterministic) {   // by blocks of keys in the order of their numbers, from the one with the first
                               // row's first key on
        turn = p.turn + ((int64_t)bh * p.row_tiles + m) * 8 + warp;
        const int mine = n - (doc ? max(0, doc[m * ROWS] - p.a.s.k_pos) / COLS : 0);
        while (load_acquire(turn) != mine) {}
    }
    const int row = m * ROWS + row_group * 16 + g;
    float* to = dq + row * p.a.dq.token + col0 + t2;
#pragma unroll
    for (int j = 0; j < N; j++)
        if (col0 + 8 * j < HS) {
            if (row < p.a.s.Tq) red2(to + 8 * j, x[j][0], x[j][1]);
            if (row + 8 < p.a.s.Tq) red2(to + 8 * p.a.dq.token + 8 * j, x[j][2], x[j][3]);
        }
    if (p.a.deterministic) {
        __threadfence();
        __syncwarp();
        if (lane == 0) add_release(turn, 1);
    }
}
// Adds up the two halves of the queries and writes dK and dV, or adds them to what is there: even warps
// give away dK and finish dV, odd ones the other way round. key0: the warp's first key; box: shared memory.
template <class Size, int D>
__device__ __forceinline__ void portable_write_gradients(const float (&dk)[Size::MT][D / 8][4],
    const float (&dv)[Size::MT][D / 8][4], const AttnBackward& a, const Tile& w, float4* box, int HS,
    int key0, int warp, int lane) {
    const int MT = Size::MT, DT = D / 8;
    const int g = lane >> 2, t2 = (lane & 3) * 2;
    const bool odd = warp & 1;
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int j = 0; j < DT; j++) {
            float4 x;
            x.x = odd ? dv[mt][j][0] : dk[mt][j][0];
            x.y = odd ? dv[mt][j][1] : dk[mt][j][1];
            x.z = odd ? dv[mt][j][2] : dk[mt][j][2];
            x.w = odd ? dv[mt][j][3] : dk[mt][j][3];
            box[((warp * MT + mt) * DT + j) * 32 + lane] = x;
        }
    __syncthreads();
    const AttnView& view = odd ? a.dk : a.dv;
    const float factor = odd ? a.s.scale : 1.f;
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int j = 0; j < DT; j++) {
            const float4 y = box[(((warp ^ 1) * MT + mt) * DT + j) * 32 + lane];
            if (8 * j >= HS) continue;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int key = key0 + 16 * mt + 8 * r + g;
                if (key >= a.s.Tk) continue;
                const int64_t at = view.index(w.batch, w.head, key) + 8 * j + t2;
                float2 x =
                    make_float2(((odd ? dk[mt][j][2 * r] : dv[mt][j][2 * r]) + (r ? y.z : y.x)) * factor,
                        ((odd ? dk[mt][j][2 * r + 1] : dv[mt][j][2 * r + 1]) + (r ? y.w : y.y)) * factor);
                if (a.dkv_bf16) *(uint32_t*)((bf16*)view.p + at) = pack(x.x, x.y);
                else {
                    float2* to = (float2*)((float*)view.p + at);
                    if (a.accumulate_dkv) x.x += to->x, x.y += to->y;
                    *to = x;
                }
            }
        }
}

// dV += P^T dO, dK += scale dS^T Q, dQ += dS K with dS = P * (dO V^T - delta), P recomputed from Q, K and
// lse: for one block of COLS keys against all tiles of ROWS queries that see it, upwards from the diagonal.
// Mapping: a block of threads per block of keys; warp w has key group w / 2 and half w % 2 of the
//     queries of S^T, dP^T, dV and dK, whose two halves are added at the end; dQ of a step is
//     shared out among the warps a step later, so that one barrier per step is enough.
// Work: 10 D FLOP and one exponential per visible (row, key). Bytes: K, V, dK and dV once; Q and dO,
//     4 HS per row, are read and dQ, 4 HS per row, is added to once per block of keys, mostly in L2.
template <int D, class Size, int BLOCKS>
__global__ void __launch_bounds__(Size::THREADS, BLOCKS)
    portable_backward_kernel(const __grid_constant__ PortableBackward p) {
    const int MT = Size::MT, THREADS = Size::THREADS;
    const int ROWS = Size::ROWS, COLS = Size::COLS;
    const int QT = ROWS / 16;   // tiles of 8 queries of a warp
    const int PITCH_BYTES = Size::PITCH * 2, S_PITCH_BYTES = Size::S_PITCH * 2;
    extern __shared__ __align__(16) uint8_t portable_smem[];
    __shared__ int ticket;
    const AttnShape& shape = p.a.s;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int g = lane >> 2, t2 = (lane & 3) * 2;
    const int HS = shape.HS;
    // A block may wait for those with lower numbers. It draws its own, so that these are surely
    // running; blockIdx promises no order.
    int number = blockIdx.x;
    if (p.a.deterministic) {
        if (threadIdx.x == 0) ticket = atomicAdd(p.a.work + 2, 1);
        __syncthreads();
        number = ticket;
    }
    // The order of tiles is bwd_tile's.
    const int per = p.section * p.col_tiles, sec = number / per;
    const int heads = min(p.section, shape.B * shape.NH - sec * p.section), n = (number - sec * per) / heads;
    const int bh = sec * p.section + (number - sec * per) % heads;
    const int head = bh % shape.NH, batch = bh / shape.NH;
    int lo, hi;
    query_range<ROWS, COLS>(shape, batch, n, lo, hi);
    const int* doc = shape.doc(batch);
    const bf16 *q = p.a.q.of<bf16>(batch, head), *k = p.a.k.of<bf16>(batch, head),
               *v = p.a.v.of<bf16>(batch, head), *dout = p.a.dout.of<bf16>(batch, head);
    const float *lse = p.a.lse.of(batch, head), *delta = p.a.delta.of(batch, head);
    float* dq = p.a.dq.of<float>(batch, head);
    const float c = shape.scale * LOG2E;
    const uint32_t sk = smem_of(portable_smem), sv = sk + Size::V;
    const uint32_t sds0 = sk + Size::DS0, sds1 = sk + Size::DS1;
    const uint32_t sstage = sk + Size::Q;
    const int kw = (warp >> 1) * 16 * MT, qw = (warp & 1) * (ROWS / 2);   // the warp's first key and query
    const int rel = shape.q_pos - shape.k_pos, k0 = n * COLS;

    auto load = [&](int m, int st) {   // Q, dO and the rows' numbers of tile m
        const uint32_t at = sstage + st * Size::STAGE;
        load_tile<D, ROWS, THREADS>(at, q, p.a.q.token, m * ROWS, shape.Tq, HS);
        load_tile<D, ROWS, THREADS>(at + Size::Q_BYTES, dout, p.a.dout.token, m * ROWS, shape.Tq, HS);
        portable_load_stats<Size>(at, lse, delta, doc, m, shape.Tq);
        cp_commit();
    };
    // This lane's row of its 8 x 8 matrices: of A operands and transposed B operands; of B operands
    // as they lie; of transposed A operands.
    const uint32_t a_at = (lane & 15) * PITCH_BYTES + (lane >> 4) * 16,
                   b_at = ((lane & 7) + ((lane >> 4) << 3)) * PITCH_BYTES + ((lane >> 3) & 1) * 16,
                   ta_at = ((lane & 7) + ((lane >> 4) << 3)) * S_PITCH_BYTES + ((lane >> 3) & 1) * 16;
    float dk[MT][D / 8][4], dv[MT][D / 8][4];
    zero(dk), zero(dv);
    auto add_dq = [&](int m, int it) {   // of row tile m from dS of step `it`
        portable_add_dq<Size, D>(p, dq, doc, bh, n, m, ((it & 1) ? sds1 : sds0) + ta_at, sk + a_at, HS);
    };

    if (lo < hi) {
        load_tile<D, COLS, THREADS>(sk, k, p.a.k.token, k0, shape.Tk, HS);
        load_tile<D, COLS, THREADS>(sv, v, p.a.v.token, k0, shape.Tk, HS);
        load(lo, 0);
        cp_wait();
        __syncthreads();
        uint32_t v_kept[MT][Size::V_IN_REGISTERS ? D / 16 : 1][4];
        portable_keep<Size>(v_kept, sv, kw, a_at);
#pragma unroll 1
        for (int m = lo; m < hi; m++) {
            const int it = m - lo, st = it & 1;
            cp_wait();
            __syncthreads();
            if (m + 1 < hi) load(m + 1, st ^ 1);
            if (it > 0) add_dq(m - 1, it - 1);
            const uint32_t sq = sstage + st * Size::STAGE, sdo = sq + Size::Q_BYTES,
                           stats = sq + 2 * Size::Q_BYTES + (qw + t2) * 4;
            const uint32_t ds_to = ((it & 1) ? sds1 : sds0) + (kw + g) * S_PITCH_BYTES + (qw + t2) * 2;
            const int i0 = m * ROWS + qw, j0 = k0 + kw;           // first query and key of this warp
            if (shape.causal && i0 + ROWS / 2 - 1 + rel < j0) {   // its queries see none of its keys
                portable_zero_ds<Size>(ds_to);
                continue;
            }
            float s[MT][QT][4], dp[MT][QT][4];
            uint32_t keys[MT][1][4];
            portable_product<Size, D>(s, keys, sk, kw, a_at, sq, qw, b_at);       // S^T = K Q^T
            portable_product<Size, D>(dp, v_kept, sv, kw, a_at, sdo, qw, b_at);   // dP^T = V dO^T
            portable_exp<Size>(s, stats, c);
            const bool edge = (shape.causal && i0 + rel < j0 + 16 * MT - 1) || j0 + 16 * MT > shape.Tk;
            if (edge ||
                (doc && lds1(sq + 2 * Size::Q_BYTES + (2 * ROWS + qw + ROWS / 2 - 1) * 4) - shape.k_pos > j0))
                portable_mask_queries<Size>(s, shape, doc, stats, i0, j0, rel, g, t2);
            uint32_t pr[MT][QT][2], ds[MT][QT][2];
            portable_round<Size>(pr, ds, s, dp, stats, ds_to);
            portable_weigh_queries<Size, D>(dv, pr, sdo, qw, a_at);
            portable_weigh_queries<Size, D>(dk, ds, sq, qw, a_at);
        }
        __syncthreads();
        add_dq(hi - 1, hi - 1 - lo);
    }
    __syncthreads();   // all are done with shared memory
    const Tile w = {n, head, batch};
    portable_write_gradients<Size, D>(dk, dv, p.a, w, (float4*)portable_smem, HS, k0 + kw, warp, lane);
}

// --- launchers ---
// Whether kernels may read it 16 bytes at a time.
static int attn_pieces_ok(const AttnView& v, const AttnShape& s) {
    return (uintptr_t)v.p % 16 == 0 && v.token % 8 == 0 && (s.NH == 1 || v.head % 8 == 0) &&
        (s.B == 1 || v.batch % 8 == 0);
}
template <int D> static cudaError_t portable_forward_of(const AttnForward& a, cudaStream_t stream) {
    PortableForward p;
    p.a = a;
    p.row_tiles = (a.s.Tq + PFWD_ROWS - 1) / PFWD_ROWS;
    p.section = attn_section(a.s, 4 * D, a.s.Tk, ATTN_SECTION);
    const int bytes = PortableForwardTile<D>::BYTES, blocks = p.row_tiles * a.s.B * a.s.NH;
    ATTN_TRY(
        cudaFuncSetAttribute(portable_forward_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    portable_forward_kernel<D><<<blocks, PFWD_THREADS, bytes, stream>>>(p);
    return cudaGetLastError();
}
template <int D, class Size, int BLOCKS>
static cudaError_t portable_backward_of(const AttnBackward& a, cudaStream_t stream) {
    PortableBackward p;
    p.a = a;
    p.row_tiles = (a.s.Tq + Size::ROWS - 1) / Size::ROWS;
    p.col_tiles = (a.s.Tk + Size::COLS - 1) / Size::COLS;
    p.section = attn_section(a.s, 8 * D, a.s.Tq, ATTN_SECTION);
    p.turn = a.work + 3;
    auto kernel = portable_backward_kernel<D, Size, BLOCKS>;
    const int bytes = Size::BYTES;
    ATTN_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    if (a.deterministic)   // the counter of numbers and the turns
        ATTN_TRY(cudaMemsetAsync(a.work + 2, 0, 4 * (1 + (size_t)a.s.B * a.s.NH * p.row_tiles * 8), stream));
    kernel<<<p.col_tiles * a.s.B * a.s.NH, Size::THREADS, bytes, stream>>>(p);
    return cudaGetLastError();
}
static cudaError_t portable_forward(const AttnForward& a, cudaStream_t stream) {
    if (!attn_pieces_ok(a.q, a.s) || !attn_pieces_ok(a.k, a.s) || !attn_pieces_ok(a.v, a.s) ||
        (a.o.p && !attn_pieces_ok(a.o, a.s)))
        return cudaErrorInvalidValue;
    switch ((a.s.HS + 31) / 32) {
    case 1: return portable_forward_of<32>(a, stream);
    case 2: return portable_forward_of<64>(a, stream);
    case 3: return portable_forward_of<96>(a, stream);
    default: return portable_forward_of<128>(a, stream);
    }
}
static cudaError_t portable_backward(const AttnBackward& a, int shared_bytes, cudaStream_t stream) {
    if (!attn_pieces_ok(a.q, a.s) || !attn_pieces_ok(a.k, a.s) || !attn_pieces_ok(a.v, a.s) ||
        !attn_pieces_ok(a.dout, a.s) || !attn_pairs_ok(a.dq))
        return cudaErrorInvalidValue;
    // Of GPUs whose blocks of threads may have more than 99 KiB of shared memory.
    typedef PortableBackwardTile<64, 64, 2, 4, 0> Large64;
    typedef PortableBackwardTile<128, 64, 1, 4, 1> Large128;
    // Of all.
    typedef PortableBackwardTile<32, 64, 2, 4, 1> Small32;
    typedef PortableBackwardTile<64, 64, 2, 4, 1> Small64;
    typedef PortableBackwardTile<96, 64, 1, 4, 1> Small96;
    typedef PortableBackwardTile<128, 32, 1, 4, 1> Small128;
    switch ((a.s.HS + 31) / 32) {
    case 1: return portable_backward_of<32, Small32, 1>(a, stream);
    case 2:
        return shared_bytes >= Large64::BYTES ? portable_backward_of<64, Large64, 1>(a, stream)
                                              : portable_backward_of<64, Small64, 1>(a, stream);
    case 3: return portable_backward_of<96, Small96, 1>(a, stream);
    default:
        return shared_bytes >= Large128::BYTES ? portable_backward_of<128, Large128, 1>(a, stream)
                                               : portable_backward_of<128, Small128, 1>(a, stream);
    }
}
#ifndef ATTN_HOPPER
#define ATTN_HOPPER 1   // 0: a build without sm_90a, whose kernels for Hopper are empty
#endif
// Whether the kernels for Hopper take it.
static int attn_hopper(const AttnShape& s, const AttnDevice& d) {
    return ATTN_HOPPER && s.path == ATTN_AUTO && (s.HS == 64 || s.HS == 128) && d.major == 9;
}

// One chunk pair; the conventions are at the top of the attention kernels. Asynchronous on
// `stream`, on the device that is current.
static inline cudaError_t attention_forward(const AttnForward& a, cudaStream_t stream) {
    AttnDevice d;
    ATTN_TRY(attn_device(&d));
    ATTN_TRY(forward_check(a));
    if (!attn_hopper(a.s, d)) return portable_forward(a, stream);
    return a.s.HS == 64 ? hopper_forward<64>(a, stream) : hopper_forward<128>(a, stream);
}
static inline cudaError_t attention_backward(const AttnBackward& a, cudaStream_t stream) {
    AttnDevice d;
    ATTN_TRY(attn_device(&d));
    ATTN_TRY(backward_check(a));
    const size_t dq_bytes = (size_t)a.s.B * a.s.NH * a.s.Tq * a.s.HS * 4;
    if (!a.accumulate_dq && attn_dense(a.dq, a.s)) ATTN_TRY(cudaMemsetAsync(a.dq.p, 0, dq_bytes, stream));
    else if (!a.accumulate_dq) {
        AttnView none = {NULL, 0, 0, 0};
        ATTN_TRY(attention_dq_finish(a.dq, none, 1.f, a.s.B, a.s.NH, a.s.Tq, stream, a.s.HS));
    }
    if (!attn_hopper(a.s, d)) return portable_backward(a, d.shared_bytes, stream);
    return a.s.HS == 64 ? hopper_backward<64>(a, stream) : hopper_backward<128>(a, stream);
}
}   // namespace attn

// --- elementwise: 8 bf16 in 16 bytes per access ---
//
// The launchers down to the loss enqueue on `stream`. dx, x, inp and out are bf16; gains, biases and
// gradients of parameters fp32. Sums over many rows take two kernels: blocks leave partial sums, and the
// second kernel adds them in the order of the blocks, so that every run gives the same bits.

// f = the 8 bf16 of u, and back, rounded to the nearest.
__device__ __forceinline__ void unpack8(float (&f)[8], const uint4& u) {
    const uint32_t w[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
        f[2 * i] = __uint_as_float(w[i] << 16), f[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
}
__device__ __forceinline__ uint4 pack8(const float (&f)[8]) {
    return make_uint4(
        attn::pack(f[0], f[1]), attn::pack(f[2], f[3]), attn::pack(f[4], f[5]), attn::pack(f[6], f[7]));
}
// f = 8 fp32 from p, which is aligned to 16 bytes.
__device__ __forceinline__ void load8(float (&f)[8], const float* p) {
    float4 a = *(const float4*)p, b = *(const float4*)(p + 4);
    f[0] = a.x, f[1] = a.y;
    f[2] = a.z, f[3] = a.w;
    f[4] = b.x, f[5] = b.y;
    f[6] = b.z, f[7] = b.w;
}
// The sum, or the largest, of a warp's x, for all of its lanes.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int i = 16; i; i >>= 1) x += __shfl_xor_sync(~0u, x, i);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int i = 16; i; i >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

// The sum of x over a block of 256 threads, for all of them. A kernel can call it once: a second call would
// overwrite `sums` while others read it.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float sums[8];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) x += sums[i];
    return x;
}
// The sum of x over the threads of a row.
template <int LANES> __device__ __forceinline__ float row_sum(float x) {
    return LANES == 32 ? warp_sum(x) : block_sum(x);
}

// A row of C <= 2048 numbers belongs to one warp, a longer one to a block of 256 threads: LANES = 32 or 256.
// A lane has the columns 8 (i LANES + lane) to 8 (i LANES + lane) + 7 of each piece i < NV. BY_WIDTH makes a
// call with the constants NV and LANES that fit C. EACH_PIECE(c) loops over a lane's pieces inside the row; c
// is the first column.
#define OF_WIDTH(N, L, CALL) \
    { \
        constexpr int NV = N, LANES = L; \
        CALL; \
    } \
    break;
#define BY_WIDTH(C, CALL) \
    switch (ceil_div(C, 256)) { \
    case 1: OF_WIDTH(1, 32, CALL) \
    case 2: OF_WIDTH(2, 32, CALL) \
    case 3: OF_WIDTH(3, 32, CALL) \
    case 4: OF_WIDTH(4, 32, CALL) \
    case 5: OF_WIDTH(5, 32, CALL) \
    case 6: OF_WIDTH(6, 32, CALL) \
    case 7: OF_WIDTH(7, 32, CALL) \
    case 8: OF_WIDTH(8, 32, CALL) \
    default: OF_WIDTH(MAX_CHANNELS / 2048, 256, CALL) \
    }
#define EACH_PIECE(c) \
    _Pragma("unroll") for (int i = 0; i < NV; i++) if (int c = (i * LANES + lane) * 8; c < C)

// Where a rank's rows of a sequence stand: their positions in it, or, with own positions, in the rows of wpe
// that the rank has. There is one run of positions, or two (see Segments).
//     rows            rows of a sequence
//     first           of these, rows of the first run
//     begin, begin2   row t stands at t + begin in the first run, at t + begin2 in the second
//     N               rows of wpe: of the model, or those that the rank has
typedef struct {
    int64_t rows, first, begin, begin2, N;
} RowPlaces;
// Rows of wpe where gpu_weight points.
static int64_t positions_count(const Rank* r) {
    return positions_apart(r->layout) ? r->Tl : r->mesh->shape.N;
}
// The places of the rank's own rows.
static RowPlaces row_places(const Rank* r) {
    const Segments g = position_rows(r);
    RowPlaces p = {r->Tl, g.rows[0], g.begin[0], g.begin[1] - g.rows[0], positions_count(r)};
    return p;
}
// Where row `row` of the batch stands.
__device__ __forceinline__ int64_t row_position(const RowPlaces& p, int64_t row) {
    int64_t t = row % p.rows;
    return t + (t < p.first ? p.begin : p.begin2);
}

// x (R, C) = wte[token] + wpe[position], without the row's mean if `center`. positions (R), or NULL: where
// `places` has a row. A warp or a block has a row; it reads 8 C bytes and writes 2 C.
template <int NV, int LANES>
__global__ void embedding_forward_kernel(bf16* x, const int32_t* tokens, const int32_t* positions,
    const float* wte, const float* wpe, int center, RowPlaces places, int64_t R, int C) {
    int64_t row = (int64_t)blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    if (row >= R) return;
    int64_t position = positions ? positions[row] : row_position(places, row);
    if (position >= places.N) position = places.N - 1;   // rows that pad a prompt
    const float *a = wte + (int64_t)tokens[row] * C, *b = wpe + position * C;
    float f[NV][8], sum = 0;
    EACH_PIECE(c) {
        float g[8];
        load8(f[i], a + c), load8(g, b + c);
#pragma unroll
        for (int j = 0; j < 8; j++) f[i][j] += g[j], sum += f[i][j];
    }
    float mean = center ? row_sum<LANES>(sum) / (float)C : 0;
    EACH_PIECE(c) {
#pragma unroll
        for (int j = 0; j < 8; j++) f[i][j] -= mean;
        *(uint4*)(x + row * C + c) = pack8(f[i]);
    }
}
// wte (V, C), wpe (places.N, C), tokens (R).
static int embedding_forward(Gpu* d, bf16* x, const int32_t* tokens, const int32_t* positions,
    const float* wte, const float* wpe, int center, RowPlaces places, int64_t R, int64_t C) {
    BY_WIDTH(C,
        (embedding_forward_kernel<NV, LANES><<<(unsigned)ceil_div(R, 256 / LANES), 256, 0, d->stream>>>(
            x, tokens, positions, wte, wpe, center, places, R, (int)C)));
    return 0;
}

// If `center`, dx (R, C) loses its rows' means, in place: 4 C bytes a row. For the sort that follows,
// rows[row] = row, and keys[row] = key_of[row], the row's token or its row of wpe. A warp or a block has a
// row.
template <int NV, int LANES>
__global__ void embedding_center_kernel(
    bf16* dx, int32_t* keys, int32_t* rows, const int32_t* key_of, int center, int64_t R, int C) {
    int64_t row = (int64_t)blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    if (row >= R) return;
    if (lane == 0) rows[row] = (int32_t)row, keys[row] = key_of[row];
    if (!center) return;
    float f[NV][8], sum = 0;
    EACH_PIECE(c) {
        unpack8(f[i], *(const uint4*)(dx + row * C + c));
#pragma unroll
        for (int j = 0; j < 8; j++) sum += f[i][j];
    }
    float mean = row_sum<LANES>(sum) / (float)C;
    EACH_PIECE(c) {
#pragma unroll
        for (int j = 0; j < 8; j++) f[i][j] -= mean;
        *(uint4*)(dx + row * C + c) = pack8(f[i]);
    }
}

// p[0] to p[7] += f; p is aligned to 16 bytes.
__device__ __forceinline__ void add8(float* p, const float (&f)[8]) {
    float4 a = *(float4*)p, b = *(float4*)(p + 4);
    *(float4*)p = make_float4(a.x + f[0], a.y + f[1], a.z + f[2], a.w + f[3]);
    *(float4*)(p + 4) = make_float4(b.x + f[4], b.y + f[5], b.z + f[6], b.w + f[7]);
}

// dweight[key] += dx[row] over rows sorted by key, always added in the same order. A block has BUCKET_ROWS
// rows of the sorted list, a thread 8 columns; 2 C bytes a row, 8 C a key. A run of one key that lies inside
// a block goes straight to the gradient. A run over several blocks leaves its sums in partial (blocks, 2, C):
// [0] of a run that began in an earlier block, [1] of a run that begins in this one.
__global__ void embedding_backward_kernel(float* dweight, float* partial, const bf16* dx, const int32_t* keys,
    const int32_t* rows, int64_t R, int C) {
    int64_t begin = (int64_t)blockIdx.x * BUCKET_ROWS,
            end = begin + BUCKET_ROWS < R ? begin + BUCKET_ROWS : R;
    int c = threadIdx.x * 8;
    float sum[8] = {0};
    bool earlier = begin > 0 && keys[begin - 1] == keys[begin];
    int32_t key = keys[begin];
#pragma unroll 4
    for (int64_t i = begin; i < end; i++) {
        float f[8];
        unpack8(f, *(const uint4*)(dx + (int64_t)rows[i] * C + c));
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += f[j];
        int32_t next = i + 1 < R ? keys[i + 1] : -1;
        if (next == key && i + 1 < end) continue;
        if (!earlier && next != key) add8(dweight + (int64_t)key * C + c, sum);
        else {
            float* out = partial + ((int64_t)blockIdx.x * 2 + !earlier) * C + c;
            *(float4*)out = make_float4(sum[0], sum[1], sum[2], sum[3]),
            *(float4*)(out + 4) = make_float4(sum[4], sum[5], sum[6], sum[7]);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] = 0;
        earlier = false, key = next;
    }
}
// Adds the sums of each run over several blocks to its dweight[key]: the block with the same number as the
// one where the run begins does it, in the order of the blocks. A thread has 8 columns.
__global__ void embedding_backward_finish_kernel(
    float* dweight, const float* partial, const int32_t* keys, int64_t R, int C) {
    int64_t block = blockIdx.x, begin = block * BUCKET_ROWS, end = begin + BUCKET_ROWS;
    if (end >= R) return;
    int32_t key = keys[end - 1];
    if (keys[end] != key) return;                                            // the last run goes no further
    if (keys[begin] == key && begin > 0 && keys[begin - 1] == key) return;   // it began earlier
    int c = threadIdx.x * 8;
    float sum[8], f[8];
    load8(sum, partial + (block * 2 + 1) * C + c);
    for (int64_t b = block + 1; b * BUCKET_ROWS < R && keys[b * BUCKET_ROWS] == key; b++) {
        load8(f, partial + b * 2 * C + c);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += f[j];
        if ((b + 1) * BUCKET_ROWS < R && keys[(b + 1) * BUCKET_ROWS - 1] != key) break;
    }
    add8(dweight + (int64_t)key * C + c, sum);
}
// dwpe[position of t] += the sum over the sequences of dx[b, t]. A thread has 8 columns of a row; 2 B + 8
// bytes a number.
__global__ void position_backward_kernel(float* dwpe, const bf16* dx, RowPlaces places, int64_t B, int C) {
    int64_t T = places.rows, at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= T * C) return;
    float sum[8] = {0};
    for (int64_t b = 0; b < B; b++) {
        float f[8];
        unpack8(f, *(const uint4*)(dx + b * T * C + at));
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += f[j];
    }
    add8(dwpe + row_position(places, at / C) * C + at % C, sum);
}
// dweight (keys, C) += rows of d->dx (R, C), by d->keys and d->rows, which are sorted first; dweight NULL:
// nothing.
static int sorted_backward(Gpu* d, float* dweight, int64_t keys, int64_t R, int64_t C, Error* e) {
    int bits = 1;
    if (!dweight) return 0;
    while (bits < 31 && (1ll << bits) < keys) bits++;
    size_t bytes = d->sort_bytes;
    CUDA_TRY(e,
        cub::DeviceRadixSort::SortPairs(d->sort_work, bytes, d->keys, d->sorted_keys, d->rows, d->sorted_rows,
            (int)R, 0, bits, d->stream));
    unsigned blocks = (unsigned)ceil_div(R, BUCKET_ROWS);
    embedding_backward_kernel<<<blocks, (unsigned)(C / 8), 0, d->stream>>>(
        dweight, d->partial, d->dx, d->sorted_keys, d->sorted_rows, R, (int)C);
    embedding_backward_finish_kernel<<<blocks, (unsigned)(C / 8), 0, d->stream>>>(
        dweight, d->partial, d->sorted_keys, R, (int)C);
    return 0;
}
// dwte[token] += dx, dwpe[position] += dx, each unless it is NULL. dx is centred in place first if `center`.
// Where positions (R) is NULL, row t of every sequence has the same position, so that wpe needs no sort.
static int embedding_backward(Gpu* d, float* dwte, float* dwpe, const int32_t* positions, int center,
    RowPlaces places, int64_t V, int64_t B, int64_t C, Error* e) {
    int64_t R = B * places.rows;
    BY_WIDTH(C,
        (embedding_center_kernel<NV, LANES><<<(unsigned)ceil_div(R, 256 / LANES), 256, 0, d->stream>>>(
            d->dx, d->keys, d->rows, d->tokens, center, R, (int)C)));
    if (sorted_backward(d, dwte, V, R, C, e) != 0) return -1;
    if (!dwpe) return 0;
    if (!positions)
        position_backward_kernel<<<(unsigned)ceil_div(places.rows * C / 8, 256), 256, 0, d->stream>>>(
            dwpe, d->dx, places, B, (int)C);
    else {
        BY_WIDTH(C,
            (embedding_center_kernel<NV, LANES><<<(unsigned)ceil_div(R, 256 / LANES), 256, 0, d->stream>>>(
                d->dx, d->keys, d->rows, positions, 0, R, (int)C)));
        if (sorted_backward(d, dwpe, places.N, R, C, e) != 0) return -1;
    }
    return 0;
}

// out = inp * rstd * weight + bias, rstd (R) = 1 / sqrt(mean(inp^2) + 1e-5). A warp or a block has a row; it
// reads 2 C bytes and writes 2 C.
template <int NV, int LANES>
__global__ void rmsnorm_forward_kernel(
    bf16* out, float* rstd, const bf16* inp, const float* weight, const float* bias, int64_t R, int C) {
    int64_t row = (int64_t)blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    if (row >= R) return;
    uint4 u[NV];
    float sum = 0;
    EACH_PIECE(c) u[i] = *(const uint4*)(inp + row * C + c);
    EACH_PIECE(c) {
        float f[8];
        unpack8(f, u[i]);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += f[j] * f[j];
    }
    float scale = rsqrtf(row_sum<LANES>(sum) / (float)C + 1e-5f);
    EACH_PIECE(c) {
        float f[8], w[8], b[8];
        unpack8(f, u[i]), load8(w, weight + c), load8(b, bias + c);
#pragma unroll
        for (int j = 0; j < 8; j++) f[j] = f[j] * scale * w[j] + b[j];
        *(uint4*)(out + row * C + c) = pack8(f);
    }
    if (lane == 0) rstd[row] = scale;
}
static int rmsnorm_forward(Gpu* d, bf16* out, float* rstd, const bf16* inp, const float* weight,
    const float* bias, int64_t R, int64_t C) {
    BY_WIDTH(C,
        (rmsnorm_forward_kernel<NV, LANES><<<(unsigned)ceil_div(R, 256 / LANES), 256, 0, d->stream>>>(
            out, rstd, inp, weight, bias, R, (int)C)));
    return 0;
}

// dx = (`add`: +=) rstd * (g - inp * rstd^2 * mean(g * inp)), g = dout * weight. A thread has 8 columns, a
// block whole rows, ROWS at a time with all loads in flight together; 6 C bytes a row, 8 C with `add`.
// THREADS: the most that a row takes. dx may be inp: a row is read before it is written. Sums of columns go
// to partial (blocks, 3, C) in passing: dout * inp * rstd (dweight), dout (dbias), and the new dx, which is
// the gradient of the bias of the projection that added to this row of the residual stream.
template <int ROWS, int THREADS>
__global__ void __launch_bounds__(THREADS) rmsnorm_backward_kernel(bf16* dx, float* partial, const bf16* dout,
    const bf16* inp, const float* rstd, const float* weight, int add, int64_t R, int C) {
    __shared__ float dots[2][ROWS][32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, c = threadIdx.x * 8,
        phase = 0;
    bool mine = c < C;
    float w[8] = {0}, gain[8] = {0}, shift[8] = {0}, bias[8] = {0};
    if (mine) load8(w, weight + c);
    for (int64_t first = (int64_t)blockIdx.x * ROWS; first < R;
         first += (int64_t)gridDim.x * ROWS, phase ^= 1) {
        uint4 x[ROWS] = {}, y[ROWS] = {}, z[ROWS] = {};
        float scale[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            int64_t row = first + k < R ? first + k : R - 1, at = row * C + c;
            scale[k] = rstd[row];
            if (!mine) continue;
            x[k] = *(const uint4*)(inp + at), y[k] = *(const uint4*)(dout + at);
            if (add) z[k] = *(const uint4*)(dx + at);
        }
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            float f[8], g[8], dot = 0;
            unpack8(f, x[k]), unpack8(g, y[k]);
#pragma unroll
            for (int j = 0; j < 8; j++) dot += g[j] * w[j] * f[j];
            dot = warp_sum(dot);
            if (lane == 0) dots[phase][k][warp] = dot;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            if (first + k >= R || !mine) continue;
            float f[8], g[8], h[8], dot = 0;
            for (int i = 0; i < warps; i++) dot += dots[phase][k][i];
            float pull = dot / (float)C * scale[k] * scale[k];
            unpack8(f, x[k]), unpack8(g, y[k]), unpack8(h, z[k]);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                gain[j] += g[j] * f[j] * scale[k], shift[j] += g[j];
                h[j] += scale[k] * (g[j] * w[j] - f[j] * pull);
                bias[j] += h[j];
            }
            *(uint4*)(dx + (first + k) * C + c) = pack8(h);
        }
    }
    if (!mine) return;
    float* out = partial + (int64_t)blockIdx.x * 3 * C + c;
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = gain[j], out[C + j] = shift[j], out[2 * C + j] = bias[j];
}
// Gradients, `width` numbers each, that columns of partial sums belong to; NULL: nobody wants them.
typedef struct {
    float* to[3];
} ColumnTargets;
// Threads for a column. Few blocks run, so each thread's chain of additions is what takes time.
enum { FINISHERS = 32 };
// to[column / width][column % width] += the sum of a column of partial (blocks, N). A block of 32 x FINISHERS
// threads has 32 columns; 4 bytes a number.
__global__ void columns_finish_kernel(
    ColumnTargets targets, const float* partial, int blocks, int width, int N) {
    __shared__ float sums[FINISHERS][33];
    int column = blockIdx.x * 32 + threadIdx.x;
    float sum = 0;
    if (column < N)
#pragma unroll 4
        for (int b = threadIdx.y; b < blocks; b += FINISHERS) sum += partial[(int64_t)b * N + column];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= N) return;
    for (int i = 1; i < FINISHERS; i++) sum += sums[i][threadIdx.x];
    float* to = targets.to[column / width];
    if (to) to[column % width] += sum;
}
// dweight, dbias and dprojection (C), each of which may be NULL, += the three column sums. The blocks are one
// full wave.
static int rmsnorm_backward(Gpu* d, bf16* dx, float* dweight, float* dbias, float* dprojection,
    const bf16* dout, const bf16* inp, const float* rstd, const float* weight, int add, int64_t R,
    int64_t C) {
    int threads = (int)round_up(C / 8, 32), fit = 1;
    auto kernel = threads <= 512 ? rmsnorm_backward_kernel<NORM_ROWS, 512>
                                 : rmsnorm_backward_kernel<1, MAX_CHANNELS / 8>;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, kernel, threads, 0);
    int blocks = (int)min_i64(min_i64(NORM_BLOCKS, (int64_t)fit * attn::attn_sms()), ceil_div(R, NORM_ROWS));
    kernel<<<blocks, threads, 0, d->stream>>>(dx, d->partial, dout, inp, rstd, weight, add, R, (int)C);
    ColumnTargets targets = {{dweight, dbias, dprojection}};
    columns_finish_kernel<<<(unsigned)ceil_div(3 * C, 32), dim3(32, FINISHERS), 0, d->stream>>>(
        targets, d->partial, blocks, (int)C, (int)(3 * C));
    return 0;
}

// The hardware's tanh, good to 2^-11 of itself.
__device__ __forceinline__ float tanh_fast(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// out = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), n numbers. A thread has 8; 4 bytes a number.
__global__ void gelu_forward_kernel(bf16* out, const bf16* inp, int64_t n) {
    int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= n) return;
    float f[8];
    unpack8(f, *(const uint4*)(inp + at));
#pragma unroll
    for (int j = 0; j < 8; j++)
        f[j] = 0.5f * f[j] * (1 + tanh_fast(0.7978845608f * (f[j] + 0.044715f * f[j] * f[j] * f[j])));
    *(uint4*)(out + at) = pack8(f);
}
static int gelu_forward(Gpu* d, bf16* out, const bf16* inp, int64_t n) {
    gelu_forward_kernel<<<(unsigned)ceil_div(n / 8, 256), 256, 0, d->stream>>>(out, inp, n);
    return 0;
}

// What the end of attention's backward pass makes dqkv of: matrices p (R, N) of fp32; `add`, still to be
// added to their columns begin to end - 1, with rows `stride` apart, or NULL; and the factor `scale` of the
// sums.
typedef struct {
    const float *p[3], *add[3];
    int64_t stride[3], begin[3], end[3];
    float scale[3];
} WideRows;
// Sums of columns of inp, (R, N) bf16 with rows `pitch` apart, to partial (SUM_BLOCKS, all). WIDE makes inp
// first, = scale (p + add) from the matrices of `wide`, matrix blockIdx.z in the N columns from N blockIdx.z
// on. A thread has 8 columns, a block 256 columns and every SUM_BLOCKS-th group of 8 rows; 2 N bytes a row,
// with WIDE 6 N.
template <int WIDE>
__global__ void columns_kernel(
    float* partial, bf16* inp, WideRows wide, int64_t R, int N, int pitch, int all) {
    __shared__ float sums[8][256];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.x * 256 + lane * 8;
    const float *from = WIDE ? wide.p[blockIdx.z] : NULL, *add = WIDE ? wide.add[blockIdx.z] : NULL,
                scale = WIDE ? wide.scale[blockIdx.z] : 1;
    if (add && (c < wide.begin[blockIdx.z] || c >= wide.end[blockIdx.z])) add = NULL;
    if (add) add += c - wide.begin[blockIdx.z];
    inp += blockIdx.z * N, partial += blockIdx.z * N;
    float sum[8] = {0};
    if (c < N)
#pragma unroll 4
        for (int64_t row = blockIdx.y * 8 + warp; row < R; row += SUM_BLOCKS * 8) {
            float f[8];
            if (WIDE) {
                load8(f, from + row * N + c);
                if (add) {
                    float more[8];
                    load8(more, add + row * wide.stride[blockIdx.z]);
#pragma unroll
                    for (int j = 0; j < 8; j++) f[j] += more[j];
                }
#pragma unroll
                for (int j = 0; j < 8; j++) f[j] *= scale;
                *(uint4*)(inp + row * pitch + c) = pack8(f);
            } else unpack8(f, *(const uint4*)(inp + row * pitch + c));
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] += f[j];
        }
#pragma unroll
    for (int j = 0; j < 8; j++) sums[warp][lane * 8 + j] = sum[j];
    __syncthreads();
    c = blockIdx.x * 256 + threadIdx.x;
    if (c >= N) return;
    float total = 0;
    for (int w = 0; w < 8; w++) total += sums[w][threadIdx.x];
    partial[(int64_t)blockIdx.y * all + c] = total;
}
// dbias (N) += what columns_kernel left.
static void columns_finish(Gpu* d, float* dbias, int64_t N) {
    ColumnTargets targets = {{dbias, NULL, NULL}};
    columns_finish_kernel<<<(unsigned)ceil_div(N, 32), dim3(32, FINISHERS), 0, d->stream>>>(
        targets, d->partial, SUM_BLOCKS, (int)N, (int)N);
}
// dbias += column sums of dout (R, N); dbias NULL: nothing
static int columns_backward(Gpu* d, float* dbias, bf16* dout, int64_t R, int64_t N) {
    WideRows none;
    if (!dbias) return 0;
    memset(&none, 0, sizeof none);
    int n = (int)N;
    columns_kernel<0><<<dim3((unsigned)ceil_div(N, 256), SUM_BLOCKS), 256, 0, d->stream>>>(
        d->partial, dout, none, R, n, n, n);
    columns_finish(d, dbias, N);
    return 0;
}
// dqkv (R, 3C) from sums (R, C) of dQ, dK and dV, and dbias (3C), which may be NULL, += its column sums.
// Where dK and dV are absent, attention has written them to dqkv already.
static void qkv_finish(Gpu* d, float* dbias, bf16* dqkv, const WideRows& wide, int64_t R, int64_t C) {
    int c = (int)C, matrices = wide.p[1] ? 3 : 1;
    columns_kernel<1><<<dim3((unsigned)ceil_div(C, 256), SUM_BLOCKS, matrices), 256, 0, d->stream>>>(
        d->partial, dqkv, wide, R, c, 3 * c, 3 * c);
    if (matrices == 1 && dbias)
        columns_kernel<0><<<dim3((unsigned)ceil_div(2 * C, 256), SUM_BLOCKS), 256, 0, d->stream>>>(
            d->partial + C, dqkv + C, wide, R, 2 * c, 3 * c, 3 * c);
    if (dbias) columns_finish(d, dbias, 3 * C);
}

// f = piece i (8 numbers, u) of a row of logits; in the vocabulary's padding -inf, whose probability is 0.
__device__ __forceinline__ void logits8(float (&f)[8], const uint4& u, int i, int V) {
    unpack8(f, u);
    if (i * 8 + 8 > V) {
#pragma unroll
        for (int j = 0; j < 8; j++) f[j] = i * 8 + j < V ? f[j] : -INFINITY;
    }
}
// losses[t] = log(sum of e^logits) - logits[label], hits[t] = the label has the largest logit; the gradient
// grad_scale (softmax - [label]) overwrites the row unless grad_scale is 0. A label below 0 counts nothing. A
// block has a row. It reads the row once into shared memory (`cached`), or from global memory each time where
// it does not fit, for maximum, sum and gradient; 4 V bytes a row if cached. NaN stays NaN through the sum.
__global__ void __launch_bounds__(512) crossentropy_kernel(float* losses, unsigned char* hits, bf16* logits,
    const int32_t* labels, float grad_scale, int V, int Vp, int cached) {
    extern __shared__ uint4 row_cache[];
    __shared__ float scratch[33];
    int t = blockIdx.x, label = labels[t], lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    bf16* row = logits + (int64_t)t * Vp;
    uint4* pieces = (uint4*)row;
    if (label < 0) {
        if (threadIdx.x == 0) losses[t] = 0, hits[t] = 0;
        for (int i = threadIdx.x; grad_scale != 0 && i < Vp / 8; i += 512) pieces[i] = make_uint4(0, 0, 0, 0);
        return;
    }
    float target = __bfloat162float(row[label]), most = -INFINITY, sum = 0;
    const uint4* again = cached ? row_cache : pieces;
    if (cached) {   // a thread reads back only what it copied: no barrier
#pragma unroll 4
        for (int i = threadIdx.x; i < Vp / 8; i += 512)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(attn::smem_of(&row_cache[i])),
                         "l"(pieces + i)
                         : "memory");
        asm volatile("cp.async.wait_all;" ::: "memory");
    }
#pragma unroll 2
    for (int i = threadIdx.x; i < Vp / 8; i += 512) {
        float f[8];
        logits8(f, again[i], i, V);
#pragma unroll
        for (int j = 0; j < 8; j++) most = fmaxf(most, f[j]);
    }
    most = warp_max(most);
    if (lane == 0) scratch[warp] = most;
    __syncthreads();
    most = warp_max(lane < 16 ? scratch[lane] : -INFINITY);
    __syncthreads();
    float shift = most * attn::LOG2E;
#pragma unroll 2
    for (int i = threadIdx.x; i < Vp / 8; i += 512) {
        float f[8];
        logits8(f, again[i], i, V);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += attn::exp2_fast(fmaf(f[j], attn::LOG2E, -shift));
    }
    sum = warp_sum(sum);
    if (lane == 0) scratch[warp] = sum;
    __syncthreads();
    sum = warp_sum(lane < 16 ? scratch[lane] : 0.f);
    if (threadIdx.x == 0) losses[t] = logf(sum) + most - target, hits[t] = target == most;
    if (grad_scale == 0) return;
    shift -= attn::log2_fast(grad_scale / sum);   // the factor goes into the exponent
#pragma unroll 2
    for (int i = threadIdx.x; i < Vp / 8; i += 512) {
        float f[8];
        logits8(f, again[i], i, V);
#pragma unroll
        for (int j = 0; j < 8; j++) f[j] = attn::exp2_fast(fmaf(f[j], attn::LOG2E, -shift));
        if (i == label / 8) {
#pragma unroll
            for (int j = 0; j < 8; j++) f[j] -= j == (label & 7) ? grad_scale : 0.f;
        }
        pieces[i] = pack8(f);
    }
}
// logits (R, Vp), labels (R). The row is cached where the GPU's shared memory has room for it.
static int crossentropy(Gpu* d, float* losses, unsigned char* hits, bf16* logits, const int32_t* labels,
    float grad_scale, int64_t R, int64_t V, int64_t Vp, Error* e) {
    attn::AttnDevice device;
    CUDA_TRY(e, attn::attn_device(&device));
    int bytes = (int)min_i64(Vp * 2, 1 << 30),
        cached = bytes <= min_i64(200 * 1024, device.shared_bytes - 256);
    if (!cached) bytes = 0;
    CUDA_TRY(
        e, cudaFuncSetAttribute(crossentropy_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    crossentropy_kernel<<<(unsigned)R, 512, bytes, d->stream>>>(
        losses, hits, logits, labels, grad_scale, (int)V, (int)Vp, cached);
    return 0;
}
// stats[STAT_LOSS] += the sum of n losses, in one block of 1024 threads, so in one order.
__global__ void loss_sum_kernel(double* stats, const float* losses, int64_t n) {
    __shared__ double sums[1024];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += 1024) sum += losses[i];
    sums[threadIdx.x] = sum;
    for (int half = 512; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) stats[STAT_LOSS] += sums[0];
}

// --- distributed attention: what the executor of tables asks of the GPU, on the attention kernels ---

enum { MAX_UNSEEN = 4 };
// What one run of a table works on: the sequences in hand, in one layer. Tensors are the rank's own rows.
typedef struct {
    const Schedule* table;
    char** slots;
    bf16 *qkv, *out, *dout;     // (R, 3C), read in place; forward: (R, C), the output; backward: (R, C)
    float *lse, *delta;         // (B, NH, Tl)
    float *acc, *m, *l;         // forward: (R, C), (B, NH, Tl) x 2, the running softmax
    float *dq, *dkv[2];         // backward: (R, C) each, sums
    WideRows* sums;             // their end, which also adds what arrives last
    const int32_t* doc_start;   // (B, T), or NULL
    // For each of the rank's chunks, a bit for each head part: the own sums hold something; the output is
    // written. And how many additions to a part's output are still to come.
    uint64_t filled[2], written[2];
    int missing[2][MAX_RANKS];
    // Ops run on LANE_COMPUTE (side 0) or LANE_BESIDE (1). `last`: the last op, whose side is `side`;
    // `unseen`: each side's ops that the other side has not waited for; `merged`: side 0 has added arrived
    // results since side 1 last waited for it.
    const ScheduleOp *last, *unseen[2][MAX_UNSEEN];
    int ops, side, unseen_count[2], merged;
} GpuAttention;

// Bits h0 to h1 - 1, where h0 < 64.
static uint64_t part_bits(int h0, int h1) { return ((h1 < 64 ? 1ull << h1 : 0) - 1) & ~((1ull << h0) - 1); }

// A tensor of an item: where its first head begins, and numbers from one token to the next (with one number a
// row and head: from one sequence to the next).
typedef struct {
    char* p;
    int64_t stride;
} GpuItemView;
// Tensor i of an item in a slot, where tensors of its heads follow each other, or (slot -1) in the rank's
// own.
static GpuItemView gpu_item_view(const Rank* r, const GpuAttention* run, Item item, int slot, int i) {
    const Mesh* mesh = r->mesh;
    int64_t rows = rank_rows(r, item.of), C = mesh->shape.C, HS = mesh->shape.HS;
    Heads heads = part_heads(&mesh->shape, run->table, item.h0, item.h1);
    int tokens = ITEM_TENSORS[item.kind].wide[i];
    GpuItemView v = {NULL, tokens ? heads.count * HS : heads.count * rows};
    if (slot >= 0) {
        v.p = run->slots[slot];
        for (int j = 0; j < i; j++) v.p += item_tensor_bytes(mesh, item.kind, j, heads.count, rows);
        return v;
    }
    bf16* operands[] = {
        run->qkv, i == 0 ? run->qkv + C : run->qkv + 2 * C, NULL, i == 0 ? run->qkv : run->dout};
    float* stats[] = {NULL, NULL, i == 1 ? run->m : run->l, i == 2 ? run->lse : run->delta};
    float* results[] = {NULL, NULL, run->acc, NULL, run->dq, run->dkv[i & 1]};   // i < 2 where it counts
    v.stride = own_stride(mesh, item.kind, i, rows);
    if (!tokens) v.p = (char*)(stats[item.kind] + heads.first * rows);
    else if (item_is_result(item.kind)) v.p = (char*)(results[item.kind] + heads.first * HS);
    else v.p = (char*)(operands[item.kind] + heads.first * HS);
    return v;
}
// An item's tensors as blocks; returns how many. 0 where its parts have no heads (fewer heads than parts).
static int item_blocks(const Rank* r, const GpuAttention* run, Item item, int slot, Block* out) {
    const Shape* s = &r->mesh->shape;
    int64_t B = ((Gpu*)r->device)->B, rows = rank_rows(r, item.of);
    int64_t heads = part_heads(s, run->table, item.h0, item.h1).count;
    if (heads == 0) return 0;
    for (int i = 0; i < ITEM_TENSORS[item.kind].count; i++) {
        GpuItemView v = gpu_item_view(r, run, item, slot, i);
        int wide = ITEM_TENSORS[item.kind].wide[i];
        size_t size = item_size(item.kind, i);
        out[i].data = v.p, out[i].pitch = (size_t)v.stride * size;
        out[i].width = (size_t)(heads * (wide ? s->HS : rows)) * size;
        out[i].rows = wide ? B * rows : B;
        if (out[i].rows == 1) out[i].pitch = out[i].width;
    }
    return ITEM_TENSORS[item.kind].count;
}
// Makes a block contiguous: it gets a place at *next, and a job that will pack it there.
static void pack_place(Block* block, char** next, PackJob* job) {
    *job = {*next, block->width, block->rows, block->data, block->pitch};
    block->data = *next, block->pitch = block->width;
    *next += round_up((int64_t)(block->width * (size_t)block->rows), 256);
}
// TableOps.pieces: an item's tensors as pieces, a contiguous one each; those that must be packed become jobs
// of the step.
static int gpu_pieces(Rank* r, void* run, Item item, int slot, int peer, int sending, Piece* out) {
    Gpu* d = (Gpu*)r->device;
    Block blocks[ITEM_PARTS];
    int count = item_blocks(r, (const GpuAttention*)run, item, slot, blocks);
    for (int i = 0; i < count; i++) {
        if (sending && blocks[i].pitch != blocks[i].width)
            pack_place(&blocks[i], &d->pack_next, &d->jobs[d->job_count++]);
        out[i].peer = peer, out[i].data = blocks[i].data;
        out[i].bytes = blocks[i].width * (size_t)blocks[i].rows;
    }
    return count;
}

// Tensor i of an item, of which attention sees a chunk's rows only: HS numbers a row and head; one number.
static AttnView chunk_tokens(
    const Rank* r, const GpuAttention* run, Item item, int slot, int i, const Chunk* c) {
    GpuItemView v = gpu_item_view(r, run, item, slot, i);
    size_t size = item_size(item.kind, i);
    AttnView view = {
        v.p + (size_t)(c->at * v.stride) * size, v.stride, r->mesh->shape.HS, v.stride * c->of_owner};
    return view;
}
static AttnRows chunk_rows(
    const Rank* r, const GpuAttention* run, Item item, int slot, int i, const Chunk* c) {
    GpuItemView v = gpu_item_view(r, run, item, slot, i);
    AttnRows rows = {(float*)v.p + c->at, c->of_owner, v.stride};
    return rows;
}
static AttnCarry chunk_carry(const Rank* r, const GpuAttention* run, Item item, int slot, const Chunk* c) {
    AttnCarry carry = {chunk_tokens(r, run, item, slot, 0, c), chunk_rows(r, run, item, slot, 1, c),
        chunk_rows(r, run, item, slot, 2, c)};
    return carry;
}

// Counts an addition to the outputs of some head parts of a chunk. 1: it is the last for all of them, so that
// whoever adds it also writes the output.
static int contribution_is_last(GpuAttention* run, int second, int h0, int h1) {
    int last = 1;
    for (int part = h0; part < h1; part++) last &= --run->missing[second][part] == 0;
    if (last) run->written[second] |= part_bits(h0, h1);
    return last;
}
// The rank's output, and its log-sum-exp, from row `at` of each sequence and from a head on.
static AttnView output_view(const Rank* r, const GpuAttention* run, int64_t at, int64_t head) {
    const Shape* s = &r->mesh->shape;
    AttnView v = {run->out + at * s->C + head * s->HS, s->C, s->HS, s->C * r->Tl};
    return v;
}
static AttnRows lse_view(const Rank* r, const GpuAttention* run, int64_t at, int64_t head) {
    AttnRows v = {run->lse + head * r->Tl + at, r->Tl, r->mesh->shape.NH * r->Tl};
    return v;
}

// Prepares a slot for an op's result; *there tells the op to add to what the slot holds. An empty slot is
// cleared, on the op's stream, and then added to, where attention always adds (dQ) or where an op fills one
// of the result's two chunks only. Elsewhere the op overwrites it.
static int gpu_result_begin(Rank* r, const GpuAttention* run, int slot, int kind, int of, int h0, int h1,
    int* there, cudaStream_t stream) {
    *there = r->slot_filled[slot];
    if (!*there && (kind == ITEM_DQ || run->table->chunks > run->table->P)) {
        if (kind == ITEM_OUT) return fail(&r->error, "this schedule sends outputs of two chunks");
        size_t bytes = item_tensors_bytes(
            r->mesh, kind, part_heads(&r->mesh->shape, run->table, h0, h1).count, rank_rows(r, of));
        CUDA_TRY(&r->error, cudaMemsetAsync(run->slots[slot], 0, bytes, stream));
        *there = 1;
    }
    r->slot_filled[slot] = 1;
    return 0;
}
// p (rows, columns) = value, `stride` numbers between rows. A thread has a number.
__global__ void rows_fill_kernel(float* p, int64_t stride, int64_t rows, int64_t columns, float value) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows * columns) p[i / columns * stride + i % columns] = value;
}
// The same for the rank's own sums of a chunk. Where some of the heads hold something and others nothing,
// these are emptied (0, and -inf for m), so that the op can add to all.
static int own_begin(
    Rank* r, GpuAttention* run, int kind, int second, int h0, int h1, int* there, cudaStream_t stream) {
    const Gpu* d = (const Gpu*)r->device;
    const Schedule* table = run->table;
    uint64_t bits = part_bits(h0, h1), in = run->filled[second] & bits;
    *there = in != 0, run->filled[second] |= bits;
    Chunk c = chunk_place(r, table, second ? 2 * table->P - 1 - r->place.sp : r->place.sp);
    for (int part = h0; in != 0 && part < h1; part++) {
        if (in >> part & 1) continue;
        Item item = {kind, r->place.sp, part, part + 1};
        int64_t heads = part_heads(&r->mesh->shape, table, part, part + 1).count;
        for (int i = 0; heads > 0 && i < ITEM_TENSORS[kind].count; i++) {
            int tokens = ITEM_TENSORS[kind].wide[i];
            GpuItemView v = gpu_item_view(r, run, item, -1, i);
            // Tensors of one number a row and head, (B, heads, Tl), are emptied for all rows of the rank.
            // That is one chunk: tables with two chunks a rank do not split the heads and never come here.
            int64_t columns = heads * (tokens ? r->mesh->shape.HS : c.of_owner), rows = tokens ? c.rows : 1;
            for (int64_t b = 0; b < d->B; b++)
                rows_fill_kernel<<<(unsigned)ceil_div(rows * columns, 256), 256, 0, stream>>>(
                    (float*)v.p + (tokens ? (b * c.of_owner + c.at) : b) * v.stride, v.stride, rows, columns,
                    kind == ITEM_OUT && i == 1 ? -INFINITY : 0.f);
        }
    }
    return 0;
}

// Lets `stream` (beside 0) or `beside` (1) wait for all that the other was given so far.
static int stream_follow(Rank* r, int beside) {
    Gpu* d = (Gpu*)r->device;
    CUDA_TRY(&r->error, cudaEventRecord(beside ? d->ready : d->beside_ready, beside ? d->stream : d->beside));
    CUDA_TRY(&r->error,
        cudaStreamWaitEvent(beside ? d->beside : d->stream, beside ? d->ready : d->beside_ready, 0));
    return 0;
}
// The same during a run, which remembers that the ops of the other stream have been waited for.
static int ops_follow(Rank* r, GpuAttention* run, int beside) {
    if (stream_follow(r, beside) != 0) return -1;
    run->unseen_count[!beside] = 0;
    if (beside) run->merged = 0;
    return 0;
}
// Whether an op reads or writes a slot.
static int op_uses(const ScheduleOp* op, int slot) {
    return slot >= 0 &&
        (slot == op->q_slot || slot == op->kv_slot || slot == op->dq_slot || slot == op->dkv_slot);
}
// Whether two ops must run one after the other: one uses a slot that the other writes, or both add to the
// same heads of the rank's own sums.
static int ops_meet(const ScheduleOp* a, const ScheduleOp* b, int backward) {
    int heads = a->h0 < b->h1 && b->h0 < a->h1;
    return op_uses(a, b->dq_slot) || op_uses(a, b->dkv_slot) || op_uses(b, a->dq_slot) ||
        op_uses(b, a->dkv_slot) ||
        (heads && ((a->dq_slot < 0 && b->dq_slot < 0) || (backward && a->dkv_slot < 0 && b->dkv_slot < 0)));
}
// Chooses the stream of the next op, run->side, and lets it wait for the ops of the other stream that it
// meets. An op that meets the op before it stays on that one's stream. Otherwise the streams alternate: the
// blocks of the second op start where those of the first end, one multiprocessor after the other.
static int op_begin(Rank* r, GpuAttention* run, const ScheduleOp* op) {
    int backward = run->table->backward, before = run->side;
    int side = run->ops == 0                ? 0
        : ops_meet(op, run->last, backward) ? before
                                            : !before,
        meet = side && run->merged;
    for (int i = 0; i < run->unseen_count[!side]; i++) meet |= ops_meet(op, run->unseen[!side][i], backward);
    if (meet && ops_follow(r, run, side) != 0) return -1;
    if (run->unseen_count[side] == MAX_UNSEEN && ops_follow(r, run, !side) != 0) return -1;
    run->unseen[side][run->unseen_count[side]++] = op;
    run->ops++, run->last = op;
    run->side = side;
    return 0;
}
// Some 7 microseconds of one thread: twice what a launch took to follow an event on its stream, by --trace.
__global__ void pause_kernel() {
    for (int64_t until = clock64() + 12000; clock64() < until;) {}
}
// Makes an op ask for multiprocessors after the op before it, where that is on the other stream. Who asks
// first gets them, and an op's results travel while the next op runs, so the earlier op must be first. CUDA
// has an event for "may start" (`launched`), none for "has started": hence the pause after it. The first two
// ops may start in any order, since nobody waits for their results before the third. Only speed depends on
// this.
static int op_turn(Rank* r, const GpuAttention* run, int before) {
    Gpu* d = (Gpu*)r->device;
    cudaStream_t stream = lane_stream(d, run->side);
    if (run->ops > 2 && run->side != before) {
        CUDA_TRY(&r->error, cudaStreamWaitEvent(stream, d->launched[before], 0));
        pause_kernel<<<1, 1, 0, stream>>>();
    }
    CUDA_TRY(&r->error, cudaEventRecord(d->launched[run->side], stream));
    return 0;
}

// TableOps.op: enqueues attention of a query chunk against a key chunk on the stream that op_begin chooses.
// Forward adds to a carry (acc, m, l); the last addition to an own output writes atty and lse instead.
// Backward adds to dQ, dK, dV.
static int gpu_op(Rank* r, void* argument, const ScheduleOp* op) {
    GpuAttention* run = (GpuAttention*)argument;
    const Schedule* table = run->table;
    const Shape* s = &r->mesh->shape;
    Gpu* d = (Gpu*)r->device;
    Chunk q = chunk_place(r, table, op->q), k = chunk_place(r, table, op->k);
    Heads heads = part_heads(&r->mesh->shape, table, op->h0, op->h1);
    Item rows = {table->backward ? ITEM_QDO : ITEM_Q, q.owner, op->h0, op->h1},
         keys = {ITEM_KV, k.owner, op->h0, op->h1};
    int before = run->side, there = 0;
    if (heads.count == 0) return 0;   // fewer heads than parts
    if (op_begin(r, run, op) != 0) return -1;
    cudaStream_t stream = lane_stream(d, run->side);
    GpuSpan* span = NULL;
    AttnShape shape = {(int)d->B, (int)heads.count, (int)q.rows, (int)k.rows, (int)q.position,
        (int)k.position, 1, 1 / sqrtf((float)s->HS), run->doc_start ? run->doc_start + q.position : NULL,
        s->T, (int)s->HS, d->attention};
    if (!table->backward) {
        Item result = {ITEM_OUT, q.owner, op->h0, op->h1};
        AttnForward a;
        memset(&a, 0, sizeof a);
        a.s = shape, a.work = d->attention_work[run->side];
        a.q = chunk_tokens(r, run, rows, op->q_slot, 0, &q);
        a.k = chunk_tokens(r, run, keys, op->kv_slot, 0, &k),
        a.v = chunk_tokens(r, run, keys, op->kv_slot, 1, &k);
        a.acc = chunk_tokens(r, run, result, op->dq_slot, 0, &q);
        a.m = chunk_rows(r, run, result, op->dq_slot, 1, &q),
        a.l = chunk_rows(r, run, result, op->dq_slot, 2, &q);
        a.carry_out = 1;
        if (op->dq_slot >= 0) {
            if (gpu_result_begin(r, run, op->dq_slot, ITEM_OUT, q.owner, op->h0, op->h1, &there, stream) != 0)
                return -1;
        } else {
            if (own_begin(r, run, ITEM_OUT, q.second, op->h0, op->h1, &there, stream) != 0) return -1;
            if (contribution_is_last(run, q.second, op->h0, op->h1))
                a.carry_out = 0, a.o = output_view(r, run, q.at, heads.first),
                a.lse = lse_view(r, run, q.at, heads.first);
        }
        a.carry_in = there;
        if (op_turn(r, run, before) != 0) return -1;
        span = span_begin(d, run->side, "q%d k%d", op->q, op->k);
        CUDA_TRY(&r->error, attn::attention_forward(a, stream));
        span_end(d, span);
        return 0;
    }
    Item dq = {ITEM_DQ, q.owner, op->h0, op->h1}, dkv = {ITEM_DKV, k.owner, op->h0, op->h1};
    AttnBackward a;
    memset(&a, 0, sizeof a);
    a.s = shape, a.deterministic = d->deterministic;
    a.work = d->attention_work[run->side];
    a.q = chunk_tokens(r, run, rows, op->q_slot, 0, &q),
    a.dout = chunk_tokens(r, run, rows, op->q_slot, 1, &q);
    a.lse = chunk_rows(r, run, rows, op->q_slot, 2, &q),
    a.delta = chunk_rows(r, run, rows, op->q_slot, 3, &q);
    a.k = chunk_tokens(r, run, keys, op->kv_slot, 0, &k),
    a.v = chunk_tokens(r, run, keys, op->kv_slot, 1, &k);
    a.dq = chunk_tokens(r, run, dq, op->dq_slot, 0, &q);
    a.dk = chunk_tokens(r, run, dkv, op->dkv_slot, 0, &k),
    a.dv = chunk_tokens(r, run, dkv, op->dkv_slot, 1, &k);
    if (op->dq_slot >= 0 &&
        gpu_result_begin(r, run, op->dq_slot, ITEM_DQ, q.owner, op->h0, op->h1, &there, stream) != 0)
        return -1;
    a.accumulate_dq = 1;   // gpu_attention_clear has made the own sums zero
    if (op->dkv_slot >= 0
            ? gpu_result_begin(r, run, op->dkv_slot, ITEM_DKV, k.owner, op->h0, op->h1, &there, stream) != 0
            : own_begin(r, run, ITEM_DKV, k.second, op->h0, op->h1, &there, stream) != 0)
        return -1;
    a.accumulate_dkv = there;
    if (op_turn(r, run, before) != 0) return -1;
    span = span_begin(d, run->side, "q%d k%d backward", op->q, op->k);
    CUDA_TRY(&r->error, attn::attention_backward(a, stream));
    span_end(d, span);
    return 0;
}

// out += inp, rows of `columns` fp32 numbers (a multiple of 4) at their strides. A thread has 4 numbers; 12
// bytes a number.
__global__ void rows_add_kernel(
    float* out, int64_t out_stride, const float* inp, int64_t inp_stride, int64_t rows, int columns) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x,
            row = i >> 32 ? i / (columns / 4) : (uint32_t)i / (columns / 4u);
    int column = (int)(i - row * (columns / 4)) * 4;
    if (row >= rows) return;
    float4 a = *(float4*)(out + row * out_stride + column),
           b = *(const float4*)(inp + row * inp_stride + column);
    *(float4*)(out + row * out_stride + column) = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// Leaves the addition of a result that arrives in a backward table's last step to qkv_finish, which reads the
// rank's own sums anyway. 0: it must be added now, because it came earlier, another one was left already, or
// qkv_finish would overwrite its slot.
static int leave_to_end(const Rank* r, GpuAttention* run, const ScheduleMessage* msg) {
    const Gpu* d = (const Gpu*)r->device;
    int first = msg->item.kind == ITEM_DQ ? 0 : 1, count = ITEM_TENSORS[msg->item.kind].count;
    Heads heads = part_heads(&r->mesh->shape, run->table, msg->item.h0, msg->item.h1);
    const char* slot = run->slots[msg->dst];
    if (msg->step != run->table->steps - 1 || !run->table->backward || run->sums->add[first]) return 0;
    // qkv_finish writes dqkv there
    if (slot >= (char*)d->wide && slot < (char*)(d->wide + 3 * d->R * r->mesh->shape.C)) return 0;
    for (int i = 0; i < count; i++) {
        GpuItemView v = gpu_item_view(r, run, msg->item, msg->dst, i);
        run->sums->add[first + i] = (const float*)v.p, run->sums->stride[first + i] = v.stride;
        run->sums->begin[first + i] = heads.first * r->mesh->shape.HS;
        run->sums->end[first + i] = (heads.first + heads.count) * r->mesh->shape.HS;
    }
    return 1;
}

// TableOps.merge: adds a result that has arrived to the rank's own sums, or to the slot in which it travels
// on; where that holds nothing yet, it becomes the result. All of it is on `stream`, after the ops of
// `beside`.
static int gpu_merge(Rank* r, void* argument, const ScheduleMessage* msg) {
    GpuAttention* run = (GpuAttention*)argument;
    const Shape* s = &r->mesh->shape;
    Gpu* d = (Gpu*)r->device;
    const Schedule* table = run->table;
    int own = msg->into < 0, there = 1, last = own && msg->item.kind == ITEM_OUT;
    int64_t rows = rank_rows(r, msg->item.of);
    Heads heads = part_heads(&r->mesh->shape, table, msg->item.h0, msg->item.h1);
    if (heads.count == 0) return 0;   // fewer heads than parts
    if (ops_follow(r, run, 0) != 0) return -1;
    run->merged = 1;
    Chunk whole = {msg->item.of, 0, rows, 0, rows, 0};
    if (own)
        for (int second = 0; second < table->chunks / table->P; second++) {
            if (msg->item.kind != ITEM_DQ &&
                own_begin(r, run, msg->item.kind, second, msg->item.h0, msg->item.h1, &there, d->stream) != 0)
                return -1;
            if (msg->item.kind == ITEM_OUT)
                last &= contribution_is_last(run, second, msg->item.h0, msg->item.h1);
        }
    else there = r->slot_filled[msg->into], r->slot_filled[msg->into] = 1;
    if (msg->item.kind == ITEM_OUT && (there || last)) {
        AttnCarry in = chunk_carry(r, run, msg->item, msg->dst, &whole), none = {};
        AttnCarry sum = there ? chunk_carry(r, run, msg->item, msg->into, &whole) : in;
        AttnView o = {};
        AttnRows lse = {};
        if (last) o = output_view(r, run, 0, heads.first), lse = lse_view(r, run, 0, heads.first);
        CUDA_TRY(&r->error,
            attn::attention_merge(sum, there ? in : none, o, lse, (int)d->B, (int)heads.count, (int)rows,
                d->stream, (int)s->HS));
        return 0;
    }
    if (own && there && leave_to_end(r, run, msg)) return 0;
    Block to[ITEM_PARTS], from[ITEM_PARTS];
    int count = item_blocks(r, run, msg->item, msg->into, to);
    item_blocks(r, run, msg->item, msg->dst, from);
    for (int i = 0; i < count; i++)
        if (there)
            rows_add_kernel<<<(unsigned)ceil_div(to[i].rows * (int64_t)to[i].width / 16, 256), 256, 0,
                d->stream>>>((float*)to[i].data, (int64_t)to[i].pitch / 4, (const float*)from[i].data,
                (int64_t)from[i].pitch / 4, to[i].rows, (int)to[i].width / 4);
        else
            CUDA_TRY(&r->error,
                cudaMemcpy2DAsync(to[i].data, to[i].pitch, from[i].data, from[i].pitch, to[i].width,
                    (size_t)to[i].rows, cudaMemcpyDeviceToDevice, d->stream));
    return 0;
}

// Counts how many additions each of the rank's outputs will get in a forward table, by ops and by results.
static void outputs_count(Rank* r, GpuAttention* run) {
    const Schedule* table = run->table;
    for (int i = 0; i < table->op_count && !table->backward; i++) {
        const ScheduleOp* op = &table->ops[i];
        if (op->rank != r->place.sp || !r->op_active[i] || op->dq_slot >= 0) continue;
        for (int part = op->h0; part < op->h1; part++) run->missing[op->q >= table->P][part]++;
    }
    for (int i = 0; i < table->message_count && !table->backward; i++) {
        const ScheduleMessage* m = &table->messages[i];
        if (m->to != r->place.sp || !r->message_active[i] || m->item.kind != ITEM_OUT || !m->merge ||
            m->into >= 0)
            continue;
        for (int second = 0; second < table->chunks / table->P; second++)
            for (int part = m->item.h0; part < m->item.h1; part++) run->missing[second][part]++;
    }
}

// Writes the outputs that no op and no merge has written: of parts whose last addition was also an addition,
// but not the last one, to other parts.
static int outputs_finish(Rank* r, GpuAttention* run) {
    const Schedule* table = run->table;
    const Shape* s = &r->mesh->shape;
    Gpu* d = (Gpu*)r->device;
    for (int second = 0; second < r->segments.count; second++)
        for (int part = 0; part < table->head_parts; part++) {
            if (run->written[second] >> part & 1) continue;
            Chunk c = chunk_place(r, table, second ? 2 * table->P - 1 - r->place.sp : r->place.sp);
            Item item = {ITEM_OUT, r->place.sp, part, part + 1};
            Heads heads = part_heads(&r->mesh->shape, table, part, part + 1);
            if (heads.count == 0) continue;
            AttnCarry none = {};
            CUDA_TRY(&r->error,
                attn::attention_merge(chunk_carry(r, run, item, -1, &c), none,
                    output_view(r, run, c.at, heads.first), lse_view(r, run, c.at, heads.first), (int)d->B,
                    (int)heads.count, (int)c.rows, d->stream, (int)s->HS));
        }
    return 0;
}

// What run_table asks of the GPU.
static const TableOps GPU_TABLE_OPS = {gpu_pieces, gpu_post, gpu_op, gpu_wait, gpu_merge};

// Runs a table for the sequences in hand. host_docs is the host's copy of run->doc_start. In the end `stream`
// has waited for everything.
static int gpu_run(Rank* r, GpuAttention* run, const int32_t* host_docs) {
    Gpu* d = (Gpu*)r->device;
    const Schedule* table = run->table;
    d->job_count = 0;
    d->pack_next = d->pack_begin = d->packed[table->backward];
    table_begin(r, table, host_docs, d->B);
    outputs_count(r, run);
    if (ops_follow(r, run, 1) != 0 || run_table(r, table, &GPU_TABLE_OPS, run) != 0) return -1;
    if (ops_follow(r, run, 0) != 0) return -1;
    return table->backward ? 0 : outputs_finish(r, run);
}

// A tensor of HS numbers a head whose tokens are `token` numbers apart, T tokens a sequence.
static AttnView view_of(void* p, int64_t token, int64_t T, int64_t HS) {
    AttnView v = {p, token, HS, token * T};
    return v;
}
// atty (R, C), lse (B, NH, Tl) = attention of qkv (R, 3C) over all ranks of the sequence. docs (B, T): the
// host's doc_start.
static int gpu_attention_forward(
    Rank* r, bf16* atty, float* lse, bf16* qkv, const int32_t* doc_start, const int32_t* docs) {
    const Shape* s = &r->mesh->shape;
    Gpu* d = (Gpu*)r->device;
    int64_t T = r->Tl;
    if (r->mesh->sp > 1) {
        GpuAttention run;
        memset(&run, 0, sizeof run);
        run.table = &r->mesh->schedule[0], run.slots = d->slots[0];
        run.qkv = qkv, run.out = atty;
        run.lse = lse;
        run.acc = (float*)d->wide, run.m = run.acc + d->R * s->C;
        run.l = run.m + d->R * s->NH, run.doc_start = doc_start;
        return gpu_run(r, &run, docs);
    }
    AttnForward a;
    memset(&a, 0, sizeof a);
    a.s = attention_shape(r->mesh, T, doc_start), a.s.path = d->attention;
    a.q = view_of(qkv, 3 * s->C, T, s->HS), a.k = view_of(qkv + s->C, 3 * s->C, T, s->HS);
    a.v = view_of(qkv + 2 * s->C, 3 * s->C, T, s->HS), a.o = view_of(atty, s->C, T, s->HS);
    a.lse.p = lse, a.lse.head = T;
    a.lse.batch = s->NH * T;
    a.work = d->attention_work[0];
    GpuSpan* span = span_begin(d, LANE_COMPUTE, "attention");
    CUDA_TRY(&r->error, attn::attention_forward(a, d->stream));
    span_end(d, span);
    return 0;
}
// Clears dQ (R, C) fp32 on `beside`, while `stream` runs the products that come before attention.
static int gpu_attention_clear(Rank* r, float* dq) {
    Gpu* d = (Gpu*)r->device;
    if (stream_follow(r, 1) != 0) return -1;
    CUDA_TRY(&r->error, cudaMemsetAsync(dq, 0, (size_t)(d->R * r->mesh->shape.C) * 4, d->beside));
    return 0;
}
// dqkv (R, 3C) from datty (R, C) and what the forward pass left; dbias (3C) += its column sums. dq (R, C)
// fp32 is scratch that gpu_attention_clear has cleared.
static int gpu_attention_backward(Rank* r, bf16* dqkv, float* dbias, float* dq, bf16* datty, bf16* atty,
    float* lse, bf16* qkv, const int32_t* doc_start, const int32_t* docs) {
    const Shape* s = &r->mesh->shape;
    Gpu* d = (Gpu*)r->device;
    int64_t T = r->Tl;
    AttnRows delta = {d->delta, T, s->NH * T};
    WideRows sums;
    memset(&sums, 0, sizeof sums);
    sums.p[0] = dq, sums.scale[0] = 1 / sqrtf((float)s->HS);
    sums.scale[1] = sums.scale[2] = 1;
    if (stream_follow(r, 0) != 0) return -1;   // dq is clear
    CUDA_TRY(&r->error,
        attn::attention_delta(view_of(datty, s->C, T, s->HS), view_of(atty, s->C, T, s->HS), delta, (int)d->B,
            (int)s->NH, (int)T, d->stream, (int)s->HS));
    if (r->mesh->sp > 1) {
        GpuAttention run;
        memset(&run, 0, sizeof run);
        run.table = &r->mesh->schedule[1], run.slots = d->slots[1];
        run.qkv = qkv, run.dout = datty;
        run.lse = lse;
        run.delta = d->delta, run.dq = dq;
        run.dkv[0] = d->dkv[0], run.dkv[1] = d->dkv[1];
        run.doc_start = doc_start;
        run.sums = &sums, sums.p[1] = d->dkv[0];
        sums.p[2] = d->dkv[1];
        if (gpu_run(r, &run, docs) != 0) return -1;
        qkv_finish(d, dbias, dqkv, sums, d->R, s->C);
        return 0;
    }
    AttnBackward a;
    memset(&a, 0, sizeof a);
    a.s = attention_shape(r->mesh, T, doc_start), a.s.path = d->attention;
    a.q = view_of(qkv, 3 * s->C, T, s->HS), a.k = view_of(qkv + s->C, 3 * s->C, T, s->HS);
    a.v = view_of(qkv + 2 * s->C, 3 * s->C, T, s->HS), a.dout = view_of(datty, s->C, T, s->HS);
    a.lse.p = lse, a.lse.head = T;
    a.lse.batch = s->NH * T;
    a.delta = delta;
    a.dq = view_of(dq, s->C, T, s->HS), a.dk = view_of(dqkv + s->C, 3 * s->C, T, s->HS);
    a.dv = view_of(dqkv + 2 * s->C, 3 * s->C, T, s->HS);
    a.dkv_bf16 = 1, a.accumulate_dq = 1;
    a.deterministic = d->deterministic, a.work = d->attention_work[0];
    GpuSpan* span = span_begin(d, LANE_COMPUTE, "attention backward");
    CUDA_TRY(&r->error, attn::attention_backward(a, d->stream));
    span_end(d, span);
    qkv_finish(d, dbias, dqkv, sums, d->R, s->C);
    return 0;
}

// ===== 8. model =================================================================================
//
// A gradient's way, in one process with --zero 0 or 1, during the last micro-batch of a step. Names at the
// arrows are events that one stream records and another waits for; peers wait for `made` and `summed`.
//
//     stream     backward of u | backward of u - 1: MLP, attention | sum of u | QKV | backward of u - 2
//                              v differentiated       staged_there ^          v summed
//     gathers                  | centre u | peers' parts of u |               | parts of u - 1 | slices of u
//                                         v made
//
//     made      unit_sum_begin: this rank's gradient of layer u is whole, and centred with --center 1
//     staged    the same call: the peers' parts of this rank's slice, each after its `made`, are in `staged`
//     summed    unit_sum_add, after the attention of layer u - 1: the parts, added in the order of the ranks
//     fetched   unit_sum_fetch, if ranks update whole units: the peers' slices, each after its `summed`
//
// Attention has `copies` and `beside` meanwhile. units_sum_end sums the units that are not layers and waits.
// In earlier micro-batches gradients only add up. NCCL sums all units at the end. With --zero 2 and 3
// gpu_unit_gradient_end sums each unit on `stream` as soon as it is made.

// Where the layers find the weights, or the gradients, of unit u in fp32.
static float* gpu_in_use(const Rank* r, int state, int u) {
    const Gpu* d = (const Gpu*)r->device;
    if (holding(r->layout, state, u) == HELD_SLICE) return d->whole_unit[state][unit_buffer(r->layout, u)];
    return d->state[state] + held(r, state, u).at;
}
// Parameter `id` of unit u: its weights in fp32 here, below its bf16 copy and its gradient.
static float* gpu_weight(const Rank* r, int u, int id) {
    return gpu_in_use(r, STATE_WEIGHTS, u) + r->layout->within[id];
}
// The bf16 copy of a unit.
static bf16* gpu_halves(const Rank* r, int u) {
    const Gpu* d = (const Gpu*)r->device;
    if (holding(r->layout, STATE_WEIGHTS, u) == HELD_SLICE) return d->unit_half[unit_buffer(r->layout, u)];
    return d->half + half_offset(r->layout, &r->mesh->shape, u);
}
static bf16* gpu_half(const Rank* r, int u, int id) { return gpu_halves(r, u) + r->layout->within[id]; }
static float* gpu_gradient(const Rank* r, int u, int id) {   // NULL of a frozen one: nothing is computed
    if (r->layout->units[u].rate[id] == 0) return NULL;
    return gpu_in_use(r, STATE_GRADIENTS, u) + r->layout->within[id];
}

// The parameters of a unit by their names: weights or gradients (float), or bf16 copies. Those of other units
// are NULL, and gradients of frozen ones.
template <typename T> struct ParametersOf {
#define X(name, hf, of, rows, columns, transposed, decay, centred, init) T* name;
    PARAMETERS(X)
#undef X
};
template <typename T> static ParametersOf<T> gpu_parameters(const Layout* layout, int u, T* unit) {
    ParametersOf<T> p = {};
#define X(name, hf, of, rows, columns, transposed, decay, centred, init) \
    if (layout->units[u].kind == of) p.name = unit + layout->within[P_##name];
    PARAMETERS(X)
#undef X
    return p;
}
static ParametersOf<float> gpu_weights_of(const Rank* r, int u) {
    return gpu_parameters(r->layout, u, gpu_in_use(r, STATE_WEIGHTS, u));
}
static ParametersOf<float> gpu_gradients_of(const Rank* r, int u) {
    ParametersOf<float> p = {};
#define X(name, hf, of, rows, columns, transposed, decay, centred, init) \
    if (r->layout->units[u].kind == of) p.name = gpu_gradient(r, u, P_##name);
    PARAMETERS(X)
#undef X
    return p;
}
static ParametersOf<bf16> gpu_halves_of(const Rank* r, int u) {
    return gpu_parameters(r->layout, u, gpu_halves(r, u));
}

// Layer l's activation `id`, (R, columns) for the sequences in hand; NULL: it has no place of its own.
static void* gpu_act(const Rank* r, int id, int64_t l) {
    const Gpu* d = (const Gpu*)r->device;
    GpuActivation a = gpu_activation(&r->mesh->shape, id);
    int64_t copies = gpu_copies(r->mesh, id);
    return copies == 0 ? NULL : (char*)d->act[id] + (size_t)(l % copies * d->R * a.columns) * a.size;
}
// Layer l's activations by their names.
typedef struct {
#define X(name, columns, type, keep) type* name;
    GPU_ACTIVATIONS(X)
#undef X
} GpuActivations;
static GpuActivations gpu_activations_of(const Rank* r, int64_t l) {
    GpuActivations a;
#define X(name, columns, type, keep) a.name = (type*)gpu_act(r, G_##name, l);
    GPU_ACTIVATIONS(X)
#undef X
    return a;
}

// Whether a unit's gradients need no sum at the end of the step: a layer's in the last micro-batch, which
// were summed while the layers below were differentiated, or those of a unit of which no other rank has
// gradients.
static int unit_is_summed(const Rank* r, int u) {
    int layer = r->layout->units[u].kind == UNIT_LAYER;
    return holding(r->layout, STATE_GRADIENTS, u) == HELD_OWN ||
        (((const Gpu*)r->device)->last_micro_batch && layer);
}

// In a buffer of all units, this rank's slice of every unit = the sum of all ranks' slices, on `stream`; not
// of units that unit_is_summed excepts.
static int reduce_scatter_units(Rank* r, float* units) {
    const Layout* layout = r->layout;
#ifdef GPT2_SP_NCCL
    Gpu* d = (Gpu*)r->device;
    if (d->nccl) {
        NCCL_TRY(r, 0, ncclGroupStart());
        for (int u = 0; u < layout->count; u++) {
            float* whole = units + layout->units[u].offset;
            size_t slice = (size_t)layout->units[u].slice;
            if (unit_is_summed(r, u)) continue;
            NCCL_TRY(r, 0,
                ncclReduceScatter(whole, whole + (size_t)r->sharing.index * slice, slice, ncclFloat32,
                    ncclSum, d->comms[0], d->stream));
        }
        NCCL_TRY(r, 0, ncclGroupEnd());
        return nccl_settle(r, 0, ncclSuccess, "the sums of gradients");
    }
#endif
    if (collective_begin(r, &r->sharing, units) != 0) return -1;
    for (int u = 0; u < layout->count; u++) {
        if (unit_is_summed(r, u)) continue;
        int64_t at = layout->units[u].offset + slice_begin(r, u);
        sum_ranks(r, units + at, gpu_offers(r, &r->sharing), at, layout->units[u].slice, 0);
    }
    return collective_end(r, &r->sharing);
}
// out (slice) += this rank's slice of the sum of all ranks' `whole` (world, slice), on `stream`.
static int reduce_scatter_unit(Rank* r, float* out, float* whole, int64_t slice) {
#ifdef GPT2_SP_NCCL
    Gpu* d = (Gpu*)r->device;
    if (d->nccl) {
        float* own = whole + r->sharing.index * slice;
        NCCL_TRY(
            r, 0, ncclReduceScatter(whole, own, (size_t)slice, ncclFloat32, ncclSum, d->comms[0], d->stream));
        if (nccl_settle(r, 0, ncclSuccess, "the sum of a unit's gradients") != 0) return -1;
        rows_add_kernel<<<(unsigned)ceil_div(slice / 4, 256), 256, 0, d->stream>>>(
            out, 16, own, 16, slice / 16, 16);
        return 0;
    }
#endif
    if (collective_begin(r, &r->sharing, whole) != 0) return -1;
    sum_ranks(r, out, gpu_offers(r, &r->sharing), r->sharing.index * slice, slice, 1);
    return collective_end(r, &r->sharing);
}

// In a buffer of all units, fetches the slices of every unit from the ranks that own them, on `stream`; not
// of units that unit_is_summed excepts.
static int all_gather_units(Rank* r, float* units) {
    Gpu* d = (Gpu*)r->device;
#ifdef GPT2_SP_NCCL
    if (d->nccl) {
        NCCL_TRY(r, 0, ncclGroupStart());
        for (int u = 0; u < r->layout->count; u++) {
            float* whole = units + r->layout->units[u].offset;
            size_t slice = (size_t)r->layout->units[u].slice;
            if (unit_is_summed(r, u)) continue;
            NCCL_TRY(r, 0,
                ncclAllGather(whole + (size_t)r->sharing.index * slice, whole, slice, ncclFloat32,
                    d->comms[0], d->stream));
        }
        NCCL_TRY(r, 0, ncclGroupEnd());
        return nccl_settle(r, 0, ncclSuccess, "the gathering of all slices");
    }
#endif
    if (collective_begin(r, &r->sharing, units) != 0) return -1;
    for (int step = 1; step < r->sharing.size; step++) {
        // each rank begins with another peer
        int number = (r->sharing.index + step) % r->sharing.size, p = group_rank(&r->sharing, number);
        for (int u = 0; u < r->layout->count; u++) {
            const Unit* unit = &r->layout->units[u];
            int64_t at = unit->offset + number * unit->slice;
            if (unit_is_summed(r, u)) continue;
            CUDA_TRY(&r->error,
                cudaMemcpyPeerAsync(units + at, d->ordinal, (const float*)d->peers[p]->offered + at,
                    d->peers[p]->ordinal, (size_t)unit->slice * sizeof(float), d->stream));
        }
    }
    return collective_end(r, &r->sharing);
}

// --- --zero 0 and 1 in one process: a layer's gradients are summed while those below it are made ---

template <typename Out>
static void projections_center(
    Rank* r, int count, const float* units, Out* out, int64_t stride, cudaStream_t stream);

// Fetches the peers' slices of a layer's gradients on `gathers`, each once its owner has summed it. Called
// when the hosts have met after all ranks enqueued these sums.
static int unit_sum_fetch(Rank* r, int u) {
    Gpu* d = (Gpu*)r->device;
    const Unit* unit = &r->layout->units[u];
    for (int step = 1; step < r->sharing.size; step++) {
        int number = (r->sharing.index + step) % r->sharing.size, p = group_rank(&r->sharing, number);
        int64_t at = unit->offset + number * unit->slice;
        CUDA_TRY(&r->error, cudaStreamWaitEvent(d->gathers, d->peers[p]->summed[u], 0));
        CUDA_TRY(&r->error,
            cudaMemcpyPeerAsync(d->state[STATE_GRADIENTS] + at, d->ordinal,
                d->peers[p]->state[STATE_GRADIENTS] + at, d->peers[p]->ordinal,
                (size_t)unit->slice * sizeof(float), d->gathers));
    }
    return 0;
}

// Begins the sum of layer unit u, whose gradient is now whole on this rank: on `gathers`, centres its
// projections and fetches the peers' parts of this rank's slice to `staged`. Where every rank updates all of
// a unit, it then fetches the slices of unit u + 1, whose sums all ranks have enqueued when their hosts meet
// here. Only copies and the centring, which can start at once, go to `gathers`: a kernel that waits for a
// peer would next wait for multiprocessors that this rank's attention holds, and `copies` would wait behind
// it.
static int unit_sum_begin(Rank* r, int u) {
    Gpu* d = (Gpu*)r->device;
    const Unit* unit = &r->layout->units[u];
    float* whole = d->state[STATE_GRADIENTS] + unit->offset;
    if (!d->last_micro_batch) return 0;
    CUDA_TRY(&r->error, cudaEventRecord(d->differentiated, d->stream));
    CUDA_TRY(&r->error, cudaStreamWaitEvent(d->gathers, d->differentiated, 0));
    if (r->mesh->center) projections_center(r, 1, whole, whole, 0, d->gathers);
    CUDA_TRY(&r->error, cudaEventRecord(d->made[u], d->gathers));
    r->transport.doing = "the sums of gradients";
    if (r->transport.barrier(&r->transport, &r->all, &r->error) != 0) return -1;
    GpuSpan* span = span_begin(d, LANE_GATHER, "parts of unit %d", u);
    for (int step = 1; step < r->sharing.size; step++) {
        int number = (r->sharing.index + step) % r->sharing.size, p = group_rank(&r->sharing, number);
        CUDA_TRY(&r->error, cudaStreamWaitEvent(d->gathers, d->peers[p]->made[u], 0));
        CUDA_TRY(&r->error,
            cudaMemcpyPeerAsync(d->staged + (step - 1) * unit->slice, d->ordinal,
                d->peers[p]->state[STATE_GRADIENTS] + unit->offset + slice_begin(r, u), d->peers[p]->ordinal,
                (size_t)unit->slice * sizeof(float), d->gathers));
    }
    CUDA_TRY(&r->error, cudaEventRecord(d->staged_there, d->gathers));
    if (holding(r->layout, STATE_M, u) == HELD_WHOLE && u < r->mesh->shape.L && unit_sum_fetch(r, u + 1) != 0)
        return -1;
    span_end(d, span);
    return 0;
}
// Sums this rank's slice of layer unit u on `stream`, in the order of the ranks as reduce_scatter_units does;
// its parts came to `staged` while the layer below was differentiated. Nothing for other units.
static int unit_sum_add(Rank* r, int u) {
    Gpu* d = (Gpu*)r->device;
    const Unit* unit = &r->layout->units[u];
    float* own = d->state[STATE_GRADIENTS] + unit->offset + slice_begin(r, u);
    Offers parts;
    if (!unit_is_summed(r, u)) return 0;
    memset(&parts, 0, sizeof parts);
    parts.p[r->sharing.index] = own;
    for (int step = 1; step < r->sharing.size; step++)
        parts.p[(r->sharing.index + step) % r->sharing.size] = d->staged + (step - 1) * unit->slice;
    CUDA_TRY(&r->error, cudaStreamWaitEvent(d->stream, d->staged_there, 0));
    sum_ranks(r, own, parts, 0, unit->slice, 0);
    CUDA_TRY(&r->error, cudaEventRecord(d->summed[u], d->stream));
    mark(d, "gradient sums");
    return 0;
}

// The rest of the sums: the first layer's slices, and the units that are whole only now. Lets `stream` wait
// for all of `gathers`.
static int units_sum_end(Rank* r) {
    Gpu* d = (Gpu*)r->device;
    // the hosts meet in the second call: all ranks have then enqueued their sums of the first layer
    if (unit_sum_add(r, 1) != 0 || reduce_scatter_units(r, d->state[STATE_GRADIENTS]) != 0) return -1;
    int updates_all = !r->layout->sharded[STATE_M];   // every rank needs the sums of all slices
    if (updates_all && d->last_micro_batch) {
        if (unit_sum_fetch(r, 1) != 0) return -1;
        CUDA_TRY(&r->error, cudaEventRecord(d->staged_there, d->gathers));   // all of `gathers`
        CUDA_TRY(&r->error, cudaStreamWaitEvent(d->stream, d->staged_there, 0));
    }
    if (updates_all && all_gather_units(r, d->state[STATE_GRADIENTS]) != 0) return -1;
    d->last_micro_batch = 0;
    return 0;
}

// --- units whose weights are gathered from the ranks' slices, and whose gradients are summed into them ---

static void unit_cast(
    Rank* r, int u, int count, const float* weights, int64_t stride, bf16* half, cudaStream_t stream);
static void units_cast(Rank* r, int u, int count, cudaStream_t stream);

// --zero 3: begins to gather a unit's weights from the ranks' slices and to make their bf16 copy, on
// `gathers`. That first waits for all that `stream` was given so far: nobody then reads the unit that was in
// the buffer. The peers' slices need no event: they change only at the end of a step, after which the hosts
// meet.
static int unit_prefetch(Rank* r, int u) {
    Gpu* d = (Gpu*)r->device;
    const Unit* unit = &r->layout->units[u];
    int b = unit_buffer(r->layout, u);
    if (holding(r->layout, STATE_WEIGHTS, u) != HELD_SLICE || d->gathered[b] == u) return 0;
    float* whole = d->whole_unit[STATE_WEIGHTS][b];
    d->gathered[b] = u;
    CUDA_TRY(&r->error, cudaEventRecord(d->unit_free[b], d->stream));
    CUDA_TRY(&r->error, cudaStreamWaitEvent(d->gathers, d->unit_free[b], 0));
    GpuSpan* span = span_begin(d, LANE_GATHER, "unit %d", u);
#ifdef GPT2_SP_NCCL
    if (d->nccl) {
        NCCL_TRY(r, 1,
            ncclAllGather(d->state[STATE_WEIGHTS] + unit->shard_offset, whole, (size_t)unit->slice,
                ncclFloat32, d->comms[1], d->gathers));
        if (nccl_settle(r, 1, ncclSuccess, "the gathering of a unit") != 0) return -1;
    }
#endif
    for (int step = 0; !d->nccl && step < r->sharing.size; step++) {
        int number = (r->sharing.index + step) % r->sharing.size, p = group_rank(&r->sharing, number);
        CUDA_TRY(&r->error,
            cudaMemcpyPeerAsync(whole + number * unit->slice, d->ordinal,
                d->peers[p]->state[STATE_WEIGHTS] + unit->shard_offset, d->peers[p]->ordinal,
                (size_t)unit->slice * sizeof(float), d->gathers));
    }
    unit_cast(r, u, 1, whole, 0, d->unit_half[b], d->gathers);
    span_end(d, span);
    CUDA_TRY(&r->error, cudaEventRecord(d->unit_there[b], d->gathers));
    return 0;
}
// --zero 1, 2: whether the next forward pass needs the unit at once. Its bf16 copy is then made on `gathers`,
// where its slices are gathered, while the hosts go from one step to the next (weights_spread).
static int unit_is_first(int u) { return u <= 1; }
// Lets `stream` wait until a unit's weights are where gpu_weight and gpu_half point. --zero 3: gathers them
// if no prefetch has. --zero 1, 2, after an update: makes the bf16 copies of what weights_spread has
// gathered, of all layers from u on at once.
static int gpu_unit_gather(Rank* r, int u) {
    Gpu* d = (Gpu*)r->device;
    if (holding(r->layout, STATE_WEIGHTS, u) != HELD_SLICE) {
        // all layers but the first at once: the centring of one fills no GPU
        int count = unit_is_first(u) || u > r->mesh->shape.L ? 1 : (int)r->mesh->shape.L + 1 - u;
        if (!d->gather_pending[u]) return 0;
        memset(d->gather_pending + u, 0, (size_t)count);
        CUDA_TRY(&r->error, cudaStreamWaitEvent(d->stream, d->together[u + count - 1], 0));
        if (!unit_is_first(u)) units_cast(r, u, count, d->stream);
        mark(d, "weights gathered");
        return 0;
    }
    if (unit_prefetch(r, u) != 0) return -1;
    CUDA_TRY(&r->error, cudaStreamWaitEvent(d->stream, d->unit_there[unit_buffer(r->layout, u)], 0));
    return 0;
}

// --zero 2 and 3: layers add a unit's gradient to a whole, cleared buffer (begin), which is then summed into
// the ranks' slices (end). Nothing is to be done for units that a rank holds whole, or whose slice is its
// own.
static int gpu_unit_gradient_begin(Rank* r, int u) {
    Gpu* d = (Gpu*)r->device;
    if (holding(r->layout, STATE_GRADIENTS, u) != HELD_SLICE) return 0;
    size_t bytes = (size_t)unit_whole(r->layout, u) * sizeof(float);
    CUDA_TRY(&r->error, cudaMemsetAsync(gpu_in_use(r, STATE_GRADIENTS, u), 0, bytes, d->stream));
    return 0;
}
static int gpu_unit_gradient_end(Rank* r, int u) {
    Gpu* d = (Gpu*)r->device;
    const Unit* unit = &r->layout->units[u];
    if (holding(r->layout, STATE_GRADIENTS, u) != HELD_SLICE) return 0;
    float* whole = gpu_in_use(r, STATE_GRADIENTS, u);
    if (r->mesh->center && unit->kind == UNIT_LAYER) projections_center(r, 1, whole, whole, 0, d->stream);
    if (reduce_scatter_unit(r, d->state[STATE_GRADIENTS] + unit->shard_offset, whole, unit->slice) != 0)
        return -1;
    mark(d, "gradient sums");
    return 0;
}

// A step of a list: a call; if it fails, the function returns -1. `group` is its name for --profile and
// --trace.
#define STEP(group, call) \
    do { \
        if ((call) != 0) return -1; \
        mark(d, group); \
    } while (0)

// What a layer's forward pass works on: R tokens, the layer's weights, where its activations go, and which of
// them are wanted. A decoder's activations are places in its cache.
struct GpuLayer {
    int64_t l, R;
    ParametersOf<float> w;
    ParametersOf<bf16> h;
    GpuActivations a;
    bf16* gelu;                                     // (R, 4C): the MLP's after the GELU
    bf16* next;                                     // the next layer's x; NULL: not wanted
    unsigned needed;                                // bits of the activations that are computed
    int keep_fch;                                   // somebody reads the MLP's values before the GELU
    int (*attention)(Rank* r, const GpuLayer* x);   // a.qkv -> a.atty, a.lse
    const int32_t *doc_start, *docs;   // (B, T) the documents' on the device, on the host; or NULL
    void* decoder;
};

// One layer: a.x -> next, on `stream`. Each line makes one activation; those that `needed` leaves out are
// there already, or nobody reads them.
static int gpu_layer_forward(Rank* r, const GpuLayer* x) {
    Gpu* d = (Gpu*)r->device;
    Error* e = &r->error;
    const ParametersOf<float>& w = x->w;
    const ParametersOf<bf16>& h = x->h;
    const GpuActivations& a = x->a;
    int64_t R = x->R, C = r->mesh->shape.C;
    bf16* fch = x->keep_fch ? a.fch : NULL;
#define NEED(name, group, call) \
    if (x->needed >> G_##name & 1) STEP(group, call)
    NEED(ln1, "norm forward", rmsnorm_forward(d, a.ln1, a.rstd1, a.x, w.ln1w, w.ln1b, R, C));
    NEED(qkv, "qkv forward", matmul_forward(d, a.qkv, a.ln1, h.qkvw, h.qkvb, NULL, R, C, 3 * C, e));
    NEED(atty, "attention forward", x->attention(r, x));
    NEED(x2, "attproj forward", matmul_forward(d, a.x2, a.atty, h.attprojw, h.attprojb, a.x, R, C, C, e));
    NEED(ln2, "norm forward", rmsnorm_forward(d, a.ln2, a.rstd2, a.x2, w.ln2w, w.ln2b, R, C));
    NEED(fch, "fc forward", matmul_gelu_forward(d, x->gelu, fch, a.ln2, h.fcw, h.fcb, R, C, 4 * C, e));
    NEED(gelu, "gelu forward", gelu_forward(d, x->gelu, a.fch, R * 4 * C));
    if (!x->next) return 0;
    STEP("fcproj forward", matmul_forward(d, x->next, x->gelu, h.fcprojw, h.fcprojb, a.x2, R, 4 * C, C, e));
    return 0;
#undef NEED
}

// Attention of a layer of the model, over all ranks of the sequence. A rehearsal has none: it copies ln1 to
// the output, numbers of the same kind.
static int gpu_layer_attention(Rank* r, const GpuLayer* x) {
    Gpu* d = (Gpu*)r->device;
    size_t bytes = (size_t)(x->R * r->mesh->shape.C) * sizeof(bf16);
    r->attention_forwards++;
    if (!d->rehearsing) return gpu_attention_forward(r, x->a.atty, x->a.lse, x->a.qkv, x->doc_start, x->docs);
    CUDA_TRY(&r->error, cudaMemcpyAsync(x->a.atty, x->a.ln1, bytes, cudaMemcpyDeviceToDevice, d->stream));
    return 0;
}
// Layer l of the model. With `again` it computes only what --recompute did not keep: of attention's inputs,
// of the rest, or of both. `output`: the next layer's x too.
enum { AGAIN_INPUTS = 1, AGAIN_REST = 2, AGAIN_ALL = 3 };
static int gpu_model_layer(
    Rank* r, int64_t l, int again, int output, const int32_t* doc_start, const int32_t* docs) {
    const Mesh* mesh = r->mesh;
    Gpu* d = (Gpu*)r->device;
    int u = (int)l + 1, none = mesh->training && mesh->recompute == GPT2_SP_NONE,
        last = l + 1 == mesh->shape.L, before = d->mark_count - 1;
    if (gpu_unit_gather(r, u) != 0) return -1;
    if (!again && !last && unit_prefetch(r, u + 1) != 0) return -1;
    GpuLayer x = {};
    x.l = l, x.R = d->R;
    x.doc_start = doc_start, x.docs = docs;
    x.attention = gpu_layer_attention;
    x.w = gpu_weights_of(r, u), x.h = gpu_halves_of(r, u);
    x.a = gpu_activations_of(r, l);
    x.gelu = none ? x.a.gelu : d->wide;
    for (int id = 0; id < GPU_ACTIVATION_COUNT; id++) {
        int part = id == G_ln1 || id == G_qkv ? AGAIN_INPUTS : AGAIN_REST;
        if (!again || (!gpu_kept(mesh, id) && again & part)) x.needed |= 1u << id;
    }
    if (x.needed >> G_fch & 1) x.needed &= ~(1u << G_gelu);   // made by the same product
    x.keep_fch = again || none || (mesh->training && gpu_kept(mesh, G_fch));
    if (output) x.next = last ? d->x_final : mesh->training ? (bf16*)gpu_act(r, G_x, l + 1) : x.a.x;
    r->layer_forwards += x.needed >> G_fch & 1;
    if (gpu_layer_forward(r, &x) != 0) return -1;
    span_layer(d, before, l, again ? "recompute" : "forward");
    if (!again && output) progress(d, "forward pass", l);
    return 0;
}

// The mirror: dx, the gradient of the layer's output, becomes that of its input. The norm's backward pass
// also sums the columns of the new dx, which is the gradient of the bias of the projection below it: of
// attprojb, then of the fcprojb of layer l - 1.
static int gpu_layer_backward(Rank* r, int64_t l, const int32_t* doc_start, const int32_t* docs) {
    Gpu* d = (Gpu*)r->device;
    Error* e = &r->error;
    int64_t R = d->R, C = r->mesh->shape.C;
    int u = (int)l + 1, none = r->mesh->recompute == GPT2_SP_NONE, late = gpu_inputs_again(r->mesh);
    int before = d->mark_count - 1;
    const ParametersOf<float> w = gpu_weights_of(r, u), g = gpu_gradients_of(r, u);
    const ParametersOf<bf16> h = gpu_halves_of(r, u);
    const GpuActivations a = gpu_activations_of(r, l);
    // where gradients go, (R, C) or (R, 4C): each over an activation or gradient that nobody reads any more
    bf16 *dx = d->dx, *wide = d->wide, *gelu = none ? a.gelu : wide, *narrow = a.fch,
         *datty = wide + 3 * R * C;
    bf16* dln1 = late ? a.x2 : a.fch;
    float* dq = (float*)dln1;   // in attn mode over x2 and ln2, which are neighbours
    float* below = l > 0 ? gpu_gradient(r, u - 1, P_fcprojb) : NULL;
    if (gpu_unit_gather(r, u) != 0) return -1;
    if (l > 0 && (unit_prefetch(r, u - 1) != 0 || gpu_unit_gradient_begin(r, u - 1) != 0)) return -1;

    STEP("fcproj dweight", matmul_backward_weight(d, g.fcprojw, dx, gelu, R, 4 * C, C, e));
    STEP("fcproj dinput", matmul_backward_input(d, wide, dx, h.fcprojw, a.fch, R, 4 * C, C, e));
    STEP("fc dbias", columns_backward(d, g.fcb, wide, R, 4 * C));
    STEP("fc dweight", matmul_backward_weight(d, g.fcw, wide, a.ln2, R, C, 4 * C, e));
    STEP("fc dinput", matmul_backward_input(d, narrow, wide, h.fcw, NULL, R, C, 4 * C, e));
    STEP("norm backward",
        rmsnorm_backward(d, dx, g.ln2w, g.ln2b, g.attprojb, narrow, a.x2, a.rstd2, w.ln2w, 1, R, C));

    if (!d->rehearsing && gpu_attention_clear(r, dq) != 0) return -1;
    STEP("attproj dweight", matmul_backward_weight(d, g.attprojw, dx, a.atty, R, C, C, e));
    STEP("attproj dinput", matmul_backward_input(d, datty, dx, h.attprojw, NULL, R, C, C, e));
    if (late && gpu_model_layer(r, l, AGAIN_INPUTS, 0, doc_start, docs) != 0) return -1;
    if (!d->rehearsing &&
        gpu_attention_backward(r, wide, g.qkvb, dq, datty, a.atty, a.lse, a.qkv, doc_start, docs) != 0)
        return -1;
    mark(d, "attention backward");
    if (unit_sum_add(r, u + 1) != 0) return -1;
    STEP("qkv dweight", matmul_backward_weight(d, g.qkvw, wide, a.ln1, R, C, 3 * C, e));
    STEP("qkv dinput", matmul_backward_input(d, dln1, wide, h.qkvw, NULL, R, C, 3 * C, e));
    STEP(
        "norm backward", rmsnorm_backward(d, dx, g.ln1w, g.ln1b, below, dln1, a.x, a.rstd1, w.ln1w, 1, R, C));
    progress(d, "backward pass", l);
    if (unit_sum_begin(r, u) != 0 || gpu_unit_gradient_end(r, u) != 0) return -1;
    span_layer(d, before, l, "backward");
    return 0;
}

// Final norm, then for a chunk of tokens at a time logits and loss and, in training, at once their gradients.
// In the end dx is the gradient of the last layer's output. The gradient of the final norm's output
// overwrites that output, chunk by chunk.
static int gpu_head_forward_backward(Rank* r) {
    const Shape* s = &r->mesh->shape;
    Gpu* d = (Gpu*)r->device;
    Error* e = &r->error;
    int64_t C = s->C;
    int u = (int)s->L + 1;
    float scale = r->learn ? (float)(1.0 / (double)max_i64(1, r->valid_tokens)) : 0;
    if (gpu_unit_gather(r, u) != 0 || gpu_unit_gather(r, 0) != 0) return -1;
    if (r->learn &&
        (stream_follow(r, 0) != 0 || gpu_unit_gradient_begin(r, 0) != 0 ||
            gpu_unit_gradient_begin(r, u) != 0 || gpu_unit_gradient_begin(r, u - 1) != 0))
        return -1;
    const ParametersOf<float> w = gpu_weights_of(r, u), g = gpu_gradients_of(r, u),
                              embed = gpu_gradients_of(r, 0);
    const bf16* wte = gpu_half(r, 0, P_wte);
    STEP("norm forward", rmsnorm_forward(d, d->lnf, d->rstdf, d->x_final, w.lnfw, w.lnfb, d->R, C));
    for (int64_t t = 0; t < d->R; t += d->logits_chunk) {
        int64_t rows = min_i64(d->logits_chunk, d->R - t);
        bf16* lnf = d->lnf + t * C;
        STEP("head forward", matmul_forward(d, d->logits, lnf, wte, NULL, NULL, rows, C, s->Vp, e));
        STEP("cross-entropy",
            crossentropy(d, d->token_loss + t, d->token_hit + t, d->logits, d->labels + t, scale, rows, s->V,
                s->Vp, e));
        if (!r->learn) continue;
        STEP("head dweight", matmul_backward_weight(d, embed.wte, d->logits, lnf, rows, C, s->Vp, e));
        STEP("head dinput", matmul_backward_input(d, lnf, d->logits, wte, NULL, rows, C, s->Vp, e));
    }
    if (!r->learn) return 0;
    loss_sum_kernel<<<1, 1024, 0, d->stream>>>(d->stats, d->token_loss, d->R);
    float* below = gpu_gradient(r, u - 1, P_fcprojb);   // the last layer's
    STEP("norm backward",
        rmsnorm_backward(d, d->dx, g.lnfw, g.lnfb, below, d->lnf, d->x_final, d->rstdf, w.lnfw, 0, d->R, C));
    return gpu_unit_gradient_end(r, u);
}

// A micro-batch: the d->B sequences from row `at` of the batch on. In training it adds to loss and gradients,
// and the host waits for nothing on the device; without learning it waits for the losses and hits of the
// tokens.
static int gpu_micro_batch(Rank* r, int64_t at) {
    const Shape* s = &r->mesh->shape;
    Gpu* d = (Gpu*)r->device;
    Error* e = &r->error;
    int64_t L = s->L, C = s->C, R = d->R, k = segment_layers(s, r->mesh->recompute);
    int mode = r->learn ? r->mesh->recompute : GPT2_SP_NONE, positions = positions_unit(r->layout);
    size_t row = (size_t)R * sizeof(int32_t);
    CUDA_TRY(e, cudaMemcpyAsync(d->tokens, r->batch->tokens + at, row, cudaMemcpyHostToDevice, d->stream));
    CUDA_TRY(e, cudaMemcpyAsync(d->labels, r->batch->labels + at, row, cudaMemcpyHostToDevice, d->stream));
    const int32_t *told = r->batch->positions, *doc_start = r->mesh->doc_mask ? d->doc_start : NULL,
                  *docs = doc_start ? r->batch->doc_start + at / r->Tl * s->T : NULL;
    if (told) CUDA_TRY(e, cudaMemcpyAsync(d->positions, told + at, row, cudaMemcpyHostToDevice, d->stream));
    if (doc_start)
        CUDA_TRY(e,
            cudaMemcpyAsync(d->doc_start, docs, (size_t)(d->B * s->T) * sizeof(int32_t),
                cudaMemcpyHostToDevice, d->stream));
    mark(d, "copies");

    if (gpu_unit_gather(r, 0) != 0 || gpu_unit_gather(r, positions) != 0) return -1;
    embedding_forward(d, (bf16*)gpu_act(r, G_x, 0), d->tokens, d->positions, gpu_weight(r, 0, P_wte),
        gpu_weight(r, positions, P_wpe), r->mesh->center, row_places(r), R, C);
    mark(d, "embedding forward");
    for (int64_t l = 0; l < L; l++) {
        if (mode == GPT2_SP_SQRT && l % k == 0)
            CUDA_TRY(e,
                cudaMemcpyAsync(d->segment_inputs + l / k * R * C, gpu_act(r, G_x, l), (size_t)(R * C) * 2,
                    cudaMemcpyDeviceToDevice, d->stream));
        if (gpu_model_layer(r, l, 0, 1, doc_start, docs) != 0 || gpu_layer_done(r) != 0) return -1;
    }
    if (gpu_head_forward_backward(r) != 0) return -1;
    if (!r->learn) {
        CUDA_TRY(e,
            cudaMemcpyAsync(
                r->token_loss + at % r->R, d->token_loss, (size_t)R * 4, cudaMemcpyDeviceToHost, d->stream));
        CUDA_TRY(e,
            cudaMemcpyAsync(
                r->token_hit + at % r->R, d->token_hit, (size_t)R, cudaMemcpyDeviceToHost, d->stream));
        return gpu_finish(r);
    }
    for (int64_t l = L - 1; l >= 0; l--) {
        int64_t first = mode == GPT2_SP_SQRT ? l / k * k : l;
        // at a segment's last layer the whole segment is computed again
        if (mode == GPT2_SP_SQRT && (l == L - 1 || l % k == k - 1)) {
            CUDA_TRY(e,
                cudaMemcpyAsync(gpu_act(r, G_x, first), d->segment_inputs + l / k * R * C,
                    (size_t)(R * C) * 2, cudaMemcpyDeviceToDevice, d->stream));
            for (int64_t j = first; j <= l; j++)
                if (gpu_model_layer(r, j, AGAIN_ALL, j < l, doc_start, docs) != 0) return -1;
        } else if (mode == GPT2_SP_SQRT)   // `wide` holds one layer's GELU at a time
            gelu_forward(d, d->wide, (bf16*)gpu_act(r, G_fch, l), R * 4 * C);
        else if (gpu_model_layer(
                     r, l, gpu_inputs_again(r->mesh) ? AGAIN_REST : AGAIN_ALL, 0, doc_start, docs) != 0)
            return -1;
        if (gpu_layer_backward(r, l, doc_start, docs) != 0 || gpu_layer_done(r) != 0) return -1;
    }
    if (gpu_unit_gradient_begin(r, positions) != 0 ||
        embedding_backward(d, gpu_gradient(r, 0, P_wte), gpu_gradient(r, positions, P_wpe), d->positions,
            r->mesh->center, row_places(r), s->V, d->B, C, e) != 0)
        return -1;
    mark(d, "embedding backward");
    if (gpu_unit_gradient_end(r, 0) != 0 || gpu_unit_gradient_end(r, positions) != 0) return -1;
    CUDA_TRY(e, cudaGetLastError());
    return 0;
}

// One pass over B sequences, d->B at a time. Without NCCL, and where ranks hold whole gradients,
// layers are summed as they are made in the last micro-batch of the step's last pass.
static int gpu_pass(Rank* r, int64_t pass) {
    Gpu* d = (Gpu*)r->device;
    const Mesh* mesh = r->mesh;
    if (gpu_enter(r) != 0) return -1;
    for (int64_t at = pass * r->R, end = at + r->R; at < end; at += d->R) {
        int last = r->learn && pass + 1 == mesh->passes && at + d->R == end;
        d->last_micro_batch = last && mesh->world > 1 && !r->layout->sharded[STATE_GRADIENTS] && !d->nccl;
        if (gpu_micro_batch(r, at) != 0) return -1;
    }
    return 0;
}

// ===== 9. optimizer =============================================================================
//
// The end of a step. Its figures stay on the device: AdamW's kernel reads from `stats` whether to update and
// how far to clip, so the host enqueues all of this without waiting for the GPU.
//
//     gradients -> centred -> summed over ranks -> norm, clipping -> AdamW -> weights gathered -> bf16 copies
//                 --center 1                           stats                    --zero 1, 2

// out (rows, columns) = inp without the means of its columns, for gridDim.y matrices. A block has 32 columns
// of a matrix, and 32 threads for each; a number is read twice, 8 bytes, and written once.
enum { CENTER_ROWS = 32 };
template <typename Out>
__global__ void center_columns_kernel(
    Out* out, const float* inp, int rows, int columns, int64_t out_stride, int64_t inp_stride) {
    __shared__ float sums[CENTER_ROWS][33];
    int column = blockIdx.x * 32 + threadIdx.x;
    inp += blockIdx.y * inp_stride, out += blockIdx.y * out_stride;
    float sum = 0;
    for (int i = threadIdx.y; column < columns && i < rows; i += CENTER_ROWS)
        sum += inp[(int64_t)i * columns + column];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    float mean = 0;
    for (int i = 0; i < CENTER_ROWS; i++) mean += sums[i][threadIdx.x];
    mean /= (float)rows;
    for (int i = threadIdx.y; column < columns && i < rows; i += CENTER_ROWS)
        out[(int64_t)i * columns + column] = (Out)(inp[(int64_t)i * columns + column] - mean);
}
// Centres the projections of `count` layers, whose units are `stride` apart, over their outputs: out = the
// fp32 parameters themselves, or their bf16 copies.
template <typename Out>
static void projections_center(
    Rank* r, int count, const float* units, Out* out, int64_t stride, cudaStream_t stream) {
    for (int id = 0; id < PARAMETER_COUNT; id++) {
        Parameter p = parameter(&r->mesh->shape, id);
        int columns = (int)max_i64(1, p.columns);
        int64_t at = r->layout->within[id];
        if (!p.centred) continue;
        dim3 grid((unsigned)ceil_div(columns, 32), (unsigned)count);
        center_columns_kernel<Out><<<grid, dim3(32, CENTER_ROWS), 0, stream>>>(
            out + at, units + at, (int)p.rows, columns, stride, stride);
    }
}

// out (SQUARE_BLOCKS) += the squares of n gradients (a multiple of 4) of each of `count` units, `stride`
// apart; a sum for each block, always in one order. Threads walk over groups of 4 numbers; 4 bytes a number.
__global__ void squares_kernel(double* out, const float* g, int64_t n, int count, int64_t stride) {
    __shared__ double sums[256];
    double all = 0;
    for (int unit = 0; unit < count; unit++, g += stride) {
        float sum = 0;
        for (int64_t i = ((int64_t)blockIdx.x * 256 + threadIdx.x) * 4; i < n;
             i += (int64_t)SQUARE_BLOCKS * 1024) {
            float4 x = *(const float4*)(g + i);
            sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        }
        all += sum;
    }
    sums[threadIdx.x] = all;
    for (int half = 128; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) out[blockIdx.x] += sums[0];
}
// stats[STAT_SQUARE] = the sum of the blocks' sums, in one block.
__global__ void squares_finish_kernel(double* stats, const double* parts) {
    __shared__ double sums[SQUARE_BLOCKS];
    sums[threadIdx.x] = parts[threadIdx.x];
    for (int half = SQUARE_BLOCKS / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) stats[STAT_SQUARE] = sums[0];
}
// The step's loss, squared norm and scale from the ranks' stats, added in the order of the ranks. `whole`:
// each rank's square is that of the whole gradient already. One thread.
__global__ void stats_finish_kernel(double* stats, Offers offers, int world, int whole, double clip) {
    double loss = 0, square = 0;
    for (int i = 0; i < world; i++) {
        const double* other = (const double*)offers.p[i];
        loss += other[STAT_LOSS], square = whole ? other[STAT_SQUARE] : square + other[STAT_SQUARE];
    }
    double norm = sqrt(square);
    stats[STAT_ALL_LOSS] = loss, stats[STAT_ALL_SQUARE] = square;
    stats[STAT_SCALE] = !isfinite(loss) || !isfinite(norm) ? -1
        : clip > 0                                         ? fmin(1.0, clip / (norm + 1e-6))
                                                           : 1;
}

// offers: where every rank's stats can be read. Without NCCL it begins a collective, which the caller ends.
static int stats_share(Rank* r, Offers* offers) {
    Gpu* d = (Gpu*)r->device;
#ifdef GPT2_SP_NCCL
    if (d->nccl) {
        NCCL_TRY(
            r, 0, ncclAllGather(d->stats, d->all_stats, STAT_COUNT, ncclFloat64, d->comms[0], d->stream));
        for (int i = 0; i < r->all.size; i++) offers->p[i] = d->all_stats + i * STAT_COUNT;
        return nccl_settle(r, 0, ncclSuccess, "the sum of the losses");
    }
#endif
    if (collective_begin(r, &r->all, d->stats) != 0) return -1;
    *offers = gpu_offers(r, &r->all);
    return 0;
}

// Leaves loss, norm and scale of the step in `stats`, alike on all ranks, from the gradients, which are
// summed.
static int gpu_gradients_norm(Rank* r, double clip) {
    Gpu* d = (Gpu*)r->device;
    const Layout* layout = r->layout;
    int summed = layout->sharded[STATE_GRADIENTS];
    float* gradients = d->state[STATE_GRADIENTS];
    CUDA_TRY(&r->error, cudaMemsetAsync(d->squares, 0, SQUARE_BLOCKS * sizeof(double), d->stream));
    // where each rank updates all of the model, its square is that of all; else it is that of its slices, and
    // the ranks' are added
    int whole = holds_all(layout, STATE_M);
    for (int kind = UNIT_EMBED; !summed && !whole && kind < UNIT_KINDS; kind++) {   // its slices lie apart
        int u = kind_unit(layout, kind);
        squares_kernel<<<SQUARE_BLOCKS, 256, 0, d->stream>>>(d->squares,
            gradients + held_at(r, STATE_GRADIENTS, u, slice_begin(r, u)), layout->units[u].slice,
            kind == UNIT_LAYER ? (int)r->mesh->shape.L : 1, unit_stride(layout, STATE_GRADIENTS));
    }
    if (summed || whole)
        squares_kernel<<<SQUARE_BLOCKS, 256, 0, d->stream>>>(
            d->squares, gradients, layout->buffer[STATE_GRADIENTS], 1, 0);
    squares_finish_kernel<<<1, SQUARE_BLOCKS, 0, d->stream>>>(d->stats, d->squares);
    Offers offers;
    if (stats_share(r, &offers) != 0) return -1;
    stats_finish_kernel<<<1, 1, 0, d->stream>>>(d->stats, offers, r->mesh->world, whole, clip);
    mark(d, "gradient norm"), progress(d, "gradient norm", -1);
    return d->nccl ? 0 : collective_end(r, &r->all);
}

// Sums the gradients of all ranks, the projections' centred first with --center 1: whole units with --zero 0,
// each rank's slices with 1; with 2 and 3 that happened unit by unit. Then their norm.
static int gpu_gradients_reduce(Rank* r, double clip) {
    Gpu* d = (Gpu*)r->device;
    const Layout* layout = r->layout;
    int summed = layout->sharded[STATE_GRADIENTS];   // unit by unit, while they were made
    float* gradients = d->state[STATE_GRADIENTS];
    if (!summed && r->mesh->center && !d->last_micro_batch) {
        float* layers = gradients + layout->units[1].offset;
        projections_center(
            r, (int)r->mesh->shape.L, layers, layers, unit_stride(layout, STATE_GRADIENTS), d->stream);
    }
    if (!summed && r->mesh->world > 1) {
        if (units_sum_end(r) != 0) return -1;
        mark(d, "gradient sums");
    }
    return gpu_gradients_norm(r, clip);
}

// The parameters of a unit of a kind: where they begin, their numbers in PARAMETERS, whether AdamW decays
// them, whether their bf16 copy is a plain one (centred ones are made afterwards). wpe's new rows stand in it
// as a parameter of their own.
typedef struct {
    int count;
    int64_t begin[PARAMETER_COUNT + 1];
    unsigned char id[PARAMETER_COUNT], decay[PARAMETER_COUNT], copied[PARAMETER_COUNT];
    float new_rate[PARAMETER_COUNT];   // its rate is so many times the parameter's
} UnitTable;
static UnitTable unit_table(const Rank* r, int kind) {
    UnitTable t;
    memset(&t, 0, sizeof t);
    for (int id = 0; id < PARAMETER_COUNT; id++) {
        Parameter p = parameter(&r->mesh->shape, id);
        if (p.unit != kind) continue;
        int centred = r->mesh->center && p.centred;
        t.begin[t.count] = r->layout->within[id];
        t.id[t.count] = (unsigned char)id, t.decay[t.count] = (unsigned char)p.decay;
        t.copied[t.count] = (unsigned char)(id == P_wte || (kind == UNIT_LAYER && !centred));
        t.new_rate[t.count] = 1;
        if (id == P_wpe && r->layout->known_positions < p.rows) {
            t.begin[++t.count] = r->layout->within[id] + r->layout->known_positions * p.columns;
            t.id[t.count] = (unsigned char)id, t.new_rate[t.count] = (float)r->layout->new_rate;
        }
        t.begin[++t.count] = r->layout->within[id] + parameter_elements(&p);
    }
    return t;
}

// AdamW's numbers in a step; wpe is multiplied by `fade`; correct1 and correct2 are 1 / (1 - beta^step), of
// either moment. rates (units of the kind, PARAMETER_COUNT): of each parameter, as Unit has them.
typedef struct {
    const float* rates;
    float lr, beta1, beta2, eps, weight_decay, fade, correct1, correct2;
} GpuAdamW;

// An array of the units of a kind: a number of the first unit, and how far on that of the next unit is.
template <typename T> struct UnitArray {
    T* p;
    int64_t stride;
};

// AdamW (Loshchilov & Hutter 2019) on numbers begin to begin + n - 1 of each unit of a kind, and their plain
// bf16 copies (half.p NULL: none): m = beta1 m + (1 - beta1) g, v likewise of g^2, w -= lr (m' / (sqrt(v') +
// eps) + decay w), with lr times the parameter's rate. Nothing if stats says so, or of a frozen parameter. A
// thread has 4 numbers of unit blockIdx.y; 30 bytes a parameter.
__global__ void adamw_kernel(UnitArray<float> w, UnitArray<bf16> half, UnitArray<float> m, UnitArray<float> v,
    UnitArray<float> g, const double* stats, UnitTable table, int64_t begin, int64_t n, GpuAdamW a) {
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4, in_unit = begin + i;
    if (i >= n || in_unit >= table.begin[table.count]) return;
    int id = 0;
    while (in_unit >= table.begin[id + 1]) id++;
    float4* weights = (float4*)(w.p + blockIdx.y * w.stride + i);
    float4 x = *weights;
    float* xs = &x.x;
    float scale = (float)stats[STAT_SCALE],
          rate = a.rates[blockIdx.y * PARAMETER_COUNT + table.id[id]] * table.new_rate[id];
    if (table.id[id] == P_wpe && a.fade != 1) {   // --positions none: its rate is 0
#pragma unroll
        for (int j = 0; j < 4; j++) xs[j] = a.fade == 0 ? 0 : xs[j] * a.fade;   // no -0
        *weights = x;
    }
    if (scale < 0 || rate == 0) return;
    float4 *moment = (float4*)(m.p + blockIdx.y * m.stride + i),
           *square = (float4*)(v.p + blockIdx.y * v.stride + i);
    float4 grad = *(const float4*)(g.p + blockIdx.y * g.stride + i), first = *moment, second = *square;
    float *gs = &grad.x, *ms = &first.x, *vs = &second.x;
    float lr = a.lr * rate, shrink = table.decay[id] ? lr * a.weight_decay : 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float q = gs[j] * scale;
        ms[j] = a.beta1 * ms[j] + (1 - a.beta1) * q;
        vs[j] = a.beta2 * vs[j] + (1 - a.beta2) * q * q;
        xs[j] -= lr * (ms[j] * a.correct1 / (sqrtf(vs[j] * a.correct2) + a.eps)) + shrink * xs[j];
    }
    *weights = x;
    *moment = first, *square = second;
    if (half.p && table.copied[id])
        *(uint2*)(half.p + blockIdx.y * half.stride + i) =
            make_uint2(attn::pack(xs[0], xs[1]), attn::pack(xs[2], xs[3]));
}

// half = w in bf16, of the n numbers of each unit of a kind. A thread has 8 of unit blockIdx.y, so that
// enough loads are under way; 6 bytes a parameter.
__global__ void cast_kernel(UnitArray<bf16> half, UnitArray<float> w, UnitTable table, int64_t n) {
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= n) return;
    float f[8];
    load8(f, w.p + blockIdx.y * w.stride + i);
    int id = 0;
    while (i >= table.begin[id + 1]) id++;   // parameters are multiples of 16 numbers
    if (table.copied[id]) *(uint4*)(half.p + blockIdx.y * half.stride + i) = pack8(f);
}

// Makes the bf16 copies of `count` units of a kind from unit u on, whose weights are `stride` apart; the
// centred ones with --center 1.
static void unit_cast(
    Rank* r, int u, int count, const float* weights, int64_t stride, bf16* half, cudaStream_t stream) {
    const Unit* unit = &r->layout->units[u];
    UnitArray<float> w = {(float*)weights, stride};
    UnitArray<bf16> h = {half, stride};
    if (!unit_halved(r->layout, u)) return;
    cast_kernel<<<dim3((unsigned)ceil_div(unit->elements / 8, 256), (unsigned)count), 256, 0, stream>>>(
        h, w, unit_table(r, unit->kind), unit->elements);
    if (r->mesh->center && unit->kind == UNIT_LAYER)
        projections_center(r, count, weights, half, stride, stream);
}
// The same where the rank holds the weights whole; of all units.
static void units_cast(Rank* r, int u, int count, cudaStream_t stream) {
    Gpu* d = (Gpu*)r->device;
    const Unit* unit = &r->layout->units[u];
    unit_cast(r, u, count, d->state[STATE_WEIGHTS] + unit->offset, unit_stride(r->layout, STATE_WEIGHTS),
        d->half + half_offset(r->layout, &r->mesh->shape, u), stream);
}
static void gpu_weights_cast(Rank* r) {
    if (r->layout->sharded[STATE_WEIGHTS]) return;
    units_cast(r, 0, 1, ((Gpu*)r->device)->stream);
    units_cast(r, 1, (int)r->mesh->shape.L, ((Gpu*)r->device)->stream);
}

// --zero 1 and 2 in one process: enqueues on `gathers` the copies of the peers' slices of the updated
// weights, unit by unit, in the order in which the next forward pass waits for them (gpu_unit_gather). It
// makes the bf16 copies too; those of the first units are made here. A slice stays as it is while peers copy
// it: its owner updates it again only after the next sums of gradients, where it waits for `stream` of every
// rank, which by then has waited for all units.
static int weights_spread(Rank* r) {
    Gpu* d = (Gpu*)r->device;
    const Layout* layout = r->layout;
    float* weights = d->state[STATE_WEIGHTS];
    r->transport.doing = "the spreading of weights";
    // when the hosts have met, all have enqueued their updates
    if (r->transport.barrier(&r->transport, &r->all, &r->error) != 0) return -1;
    for (int i = 0; i < layout->count; i++) {
        int u = i == 0 ? 0 : i == 1 ? positions_unit(layout) : i - 1;   // both are wanted first
        const Unit* unit = &layout->units[u];
        if (holding(layout, STATE_WEIGHTS, u) == HELD_OWN) continue;
        GpuSpan* span = span_begin(d, LANE_GATHER, "weights of unit %d", u);
        for (int step = 1; step < r->sharing.size; step++) {
            int number = (r->sharing.index + step) % r->sharing.size, p = group_rank(&r->sharing, number);
            int64_t at = unit->offset + number * unit->slice;
            CUDA_TRY(&r->error, cudaStreamWaitEvent(d->gathers, d->peers[p]->updated[unit->kind], 0));
            CUDA_TRY(&r->error,
                cudaMemcpyPeerAsync(weights + at, d->ordinal, d->peers[p]->state[STATE_WEIGHTS] + at,
                    d->peers[p]->ordinal, (size_t)unit->slice * sizeof(float), d->gathers));
        }
        if (unit_is_first(u)) {
            CUDA_TRY(&r->error, cudaStreamWaitEvent(d->gathers, d->updated[unit->kind], 0));
            units_cast(r, u, 1, d->gathers);
        }
        CUDA_TRY(&r->error, cudaEventRecord(d->together[u], d->gathers));
        span_end(d, span);
        d->gather_pending[u] = 1;
    }
    return 0;
}

// Updates what this rank holds moments for, all of the model or its slices, then gathers the peers' weights
// where it holds those whole, and makes bf16 copies.
static int gpu_weights_update(Rank* r, const AdamW* adamw) {
    Gpu* d = (Gpu*)r->device;
    const Layout* layout = r->layout;
    const int* sharded = layout->sharded;
    GpuAdamW a;
    a.lr = (float)adamw->lr, a.beta1 = (float)adamw->beta1;
    a.beta2 = (float)adamw->beta2, a.eps = (float)adamw->eps;
    a.weight_decay = (float)adamw->weight_decay, a.fade = (float)adamw->fade;
    a.correct1 = (float)(1 / (1 - pow(adamw->beta1, (double)adamw->step))),
    a.correct2 = (float)(1 / (1 - pow(adamw->beta2, (double)adamw->step)));
    for (int kind = UNIT_EMBED; kind < UNIT_KINDS; kind++) {
        int u = kind_unit(layout, kind);
        Held h = held(r, STATE_M, u);
        UnitArray<float> of[STATES];
        for (int state = 0; state < STATES; state++)
            of[state] = {d->state[state] + held_at(r, state, u, h.begin), unit_stride(layout, state)};
        int halved = !sharded[STATE_M] && unit_halved(layout, u);   // else once the slices have come together
        UnitArray<bf16> half = {
            halved ? d->half + half_offset(layout, &r->mesh->shape, u) : NULL, of[STATE_WEIGHTS].stride};
        dim3 grid((unsigned)ceil_div(h.n / 4, 256), kind == UNIT_LAYER ? (unsigned)r->mesh->shape.L : 1);
        a.rates = d->rates + u * PARAMETER_COUNT;
        adamw_kernel<<<grid, 256, 0, d->stream>>>(of[STATE_WEIGHTS], half, of[STATE_M], of[STATE_V],
            of[STATE_GRADIENTS], d->stats, unit_table(r, kind), h.begin, h.n, a);
        CUDA_TRY(&r->error, cudaEventRecord(d->updated[kind], d->stream));
    }
    if (!sharded[STATE_M] && r->mesh->center)
        projections_center(r, (int)r->mesh->shape.L, d->state[STATE_WEIGHTS] + layout->units[1].offset,
            d->half + half_offset(layout, &r->mesh->shape, 1), unit_stride(layout, STATE_WEIGHTS), d->stream);
    mark(d, "adamw"), progress(d, "update", -1);
    int spread = sharded[STATE_M] && !sharded[STATE_WEIGHTS];   // the others' slices are wanted here too
    if (spread && !d->nccl && weights_spread(r) != 0) return -1;
    if (spread && d->nccl) {
        if (all_gather_units(r, d->state[STATE_WEIGHTS]) != 0) return -1;
        gpu_weights_cast(r);
        mark(d, "weights gathered");
    }
    for (int b = 0; b < UNIT_BUFFERS; b++) d->gathered[b] = -1;
    return 0;
}

// ===== 10. trainer ==============================================================================
//
// A step of a rank, the gradients of --check, and what the .c's Trace gets of a step:
//
//     --profile    marks on `stream` at the end of every group of kernels: time between marks, by group
//     --trace      the same as spans of the compute lane, and the spans of all four streams

// Writes into the rank's Trace what the marks and spans of its step have become: times in ms since the first
// mark.
static int trace_times(Gpu* d, Trace* t, Error* e) {
    // marks are on `stream`, which has finished the step; what the others do may go on under the next one
    for (int lane = 0; t->tracing && lane < LANES; lane++)
        CUDA_TRY(e, cudaStreamSynchronize(lane_stream(d, lane)));
    d->mark_time[0] = 0;
    for (int i = 1; i < d->mark_count; i++) {
        CUDA_TRY(e, cudaEventElapsedTime(&d->mark_time[i], d->marks[0], d->marks[i]));
        t->marked = d->mark_time[i];
        group_add(t, d->mark_group[i], d->mark_time[i] - d->mark_time[i - 1]);
        span_add(t, LANE_COMPUTE, SPAN_GROUP, d->mark_time[i - 1], t->marked, "%s", d->mark_group[i]);
    }
    for (int i = 0; i < d->span_count; i++) {
        const GpuSpan* span = &d->spans[i];
        float from = 0, to = 0;
        if (span->kind == SPAN_LAYER) from = d->mark_time[span->first], to = d->mark_time[span->last];
        else {
            CUDA_TRY(e, cudaEventElapsedTime(&from, d->marks[0], span->begin));
            CUDA_TRY(e, cudaEventElapsedTime(&to, d->marks[0], span->end));
        }
        span_add(t, span->lane, span->kind, from, to, "%s", span->name);
    }
    return 0;
}

// Enqueues all passes of a step and the sums of their gradients, with the loss and the norm in `stats`.
static int gpu_gradients_compute(Rank* r, double clip) {
    Gpu* d = (Gpu*)r->device;
    size_t bytes = (size_t)r->layout->buffer[STATE_GRADIENTS] * sizeof(float);
    // cleared beside the forward pass, once the last step's update has read them
    if (stream_follow(r, 1) != 0) return -1;
    CUDA_TRY(&r->error, cudaMemsetAsync(d->state[STATE_GRADIENTS], 0, bytes, d->beside));
    CUDA_TRY(&r->error, cudaMemsetAsync(d->stats, 0, STAT_COUNT * sizeof(double), d->stream));
    for (int64_t pass = 0; pass < r->mesh->passes; pass++)
        if (gpu_pass(r, pass) != 0) return -1;
    return gpu_gradients_reduce(r, clip);
}

// Rehearses the first micro-batch before the first step, without attention, to choose the algorithms of the
// matrix products. Nothing uses its results.
static int gpu_rehearse(Rank* r) {
    Gpu* d = (Gpu*)r->device;
    r->learn = 1;
    if (d->rehearsed) return 0;
    d->rehearsing = d->rehearsed = 1;
    if (gpu_micro_batch(r, 0) != 0 || gpu_finish(r) != 0) return -1;
    d->rehearsing = 0;
    return 0;
}

// Device.pass, of an evaluation. It may come before the first step of a run: the rehearsal comes first then
// too, or products would keep the algorithms that were chosen without timing.
static int gpu_evaluation_pass(Rank* r, int64_t pass) {
    if (r->mesh->training && (gpu_enter(r) != 0 || gpu_rehearse(r) != 0)) return -1;
    r->learn = 0;
    return gpu_pass(r, pass);
}

// Waits for the step's loss and norm. The process' first rank gets the mean loss and the norm's square; the
// others only wait.
static int gpu_stats_read(Rank* r, double* loss, double* square) {
    Gpu* d = (Gpu*)r->device;
    size_t bytes = STAT_COUNT * sizeof(double);
    CUDA_TRY(&r->error, cudaMemcpyAsync(d->host_stats, d->stats, bytes, cudaMemcpyDeviceToHost, d->stream));
    if (gpu_finish(r) != 0) return -1;
    if (r->world_rank != r->mesh->first_rank) return 0;
    *loss = d->host_stats[STAT_ALL_LOSS] / (double)max_i64(1, r->valid_tokens);
    *square = d->host_stats[STAT_ALL_SQUARE];
    return 0;
}

// Job (Device.step): gradients, update, loss and norm, or a part of it. The device decides whether and how
// far to update; the host waits once, at the end, for the loss and the norm. The loss stays in `stats`
// between the parts of a step.
static int gpu_step(Rank* r, gpt2_sp* g, void* argument) {
    Gpu* d = (Gpu*)r->device;
    StepJob* step = (StepJob*)argument;
    Error* e = &r->error;
    const gpt2_sp_options* o = &g->options;
    if (gpu_enter(r) != 0 || gpu_rehearse(r) != 0) return -1;
    if ((o->trace[0] || o->profile) && !d->marks) {
        d->marks = (cudaEvent_t*)calloc(MAX_MARKS, sizeof *d->marks);
        d->spans = (GpuSpan*)calloc(MAX_SPANS, sizeof *d->spans);
        if (!d->marks || !d->spans) return fail(e, "out of memory");
        for (int i = 0; i < MAX_MARKS; i++) CUDA_TRY(e, cudaEventCreate(&d->marks[i]));
    }
    int gradients = step->parts & STEP_GRADIENTS, update = step->parts & STEP_UPDATE;
    Trace* trace = NULL;
    if (gradients && step_begin(r, o, &trace) != 0) return -1;
    d->marking = trace != NULL, d->tracing = trace && trace->tracing;
    d->mark_count = d->span_count = 0;
    mark(d, "start");
    if ((gradients ? gpu_gradients_compute(r, o->grad_clip) : gpu_gradients_norm(r, o->grad_clip)) != 0)
        return -1;
    if (update && gpu_weights_update(r, &step->adamw) != 0) return -1;
    if (gpu_stats_read(r, &step->loss, &step->square) != 0) return -1;
    if (r->world_rank == r->mesh->first_rank)
        step->updated = update && isfinite(step->loss) && isfinite(step->square);
    if (!trace) return 0;
    d->marking = d->tracing = 0;
    trace->computed = "kernels";
    snprintf(trace->device, sizeof trace->device, "GPU %d", d->ordinal);
    return trace_times(d, trace, e) != 0 ? -1 : step_end(r, g, trace);
}

// Job (Device.gradients) for --check: the gradients of the step's batches, each rank's slices to the array of
// its argument, without an update.
static int gpu_gradients(Rank* r, gpt2_sp* g, void* argument) {
    Gpu* d = (Gpu*)r->device;
    Gradients* out = (Gradients*)argument;
    (void)g;
    const Layout* layout = r->layout;
    if (gpu_enter(r) != 0 || gpu_rehearse(r) != 0 || gpu_gradients_compute(r, 0) != 0 || gpu_finish(r) != 0)
        return -1;
    for (int u = 0; u < layout->count; u++) {
        const Unit* unit = &layout->units[u];
        CUDA_TRY(&r->error,
            cudaMemcpyAsync(out->all + unit->offset + slice_begin(r, u),
                d->state[STATE_GRADIENTS] + held_at(r, STATE_GRADIENTS, u, slice_begin(r, u)),
                (size_t)unit->slice * sizeof(float), cudaMemcpyDeviceToHost, d->stream));
    }
    return gpu_stats_read(r, &out->loss, &out->square);
}

// ===== 11. checkpoints ==========================================================================
//
// The .c's functions write and read checkpoints from host memory, in buffers that exist only meanwhile:
//
//     save          host_begin copies from the GPU -> rank_save -> host_end frees
//     load, init    host_begin -> rank_load or weights_init -> host_end copies to the GPU and frees

// Makes buffers on the host for the first `count` of SAVED_STATES, and buffers for a whole unit where ranks
// hold slices. `fetch`: fills them from the GPU, which the host waits for.
static int host_begin(Rank* r, int count, int fetch) {
    Gpu* d = (Gpu*)r->device;
    const Layout* layout = r->layout;
    if (gpu_enter(r) != 0) return -1;
    for (int u = 0; !layout->sharded[STATE_WEIGHTS] && u < layout->count; u++)
        if (gpu_unit_gather(r, u) != 0) return -1;   // weights may still be on their way from the peers
    // where every rank has all, rank 0's are saved, and of the others only their own positions; calloc's
    // pages that nobody writes take no memory
    int first_has_all = !layout->sharded[STATE_M] && r->world_rank != 0;
    int64_t from = first_has_all ? layout->units[positions_unit(layout)].offset : 0;
    for (int i = 0; i < count; i++) {
        int state = SAVED_STATES[i];
        size_t n = (size_t)layout->buffer[state];
        r->state[state] = (real*)calloc(n, sizeof(real));
        if (!r->state[state])
            return fail(
                &r->error, "out of memory for %zu bytes of the checkpoint on the host", n * sizeof(float));
        if (fetch)
            CUDA_TRY(&r->error,
                cudaMemcpyAsync(r->state[state] + from, d->state[state] + from,
                    (n - (size_t)from) * sizeof(float), cudaMemcpyDeviceToHost, d->stream));
    }
    for (int state = 0; layout->sharded[STATE_M] && state <= STATE_GRADIENTS; state++) {
        r->whole_unit[state] = (real*)calloc((size_t)layout->largest, sizeof(real));
        if (!r->whole_unit[state]) return fail(&r->error, "out of memory for a unit on the host");
    }
    r->gathered = -1;
    CUDA_TRY(&r->error, cudaStreamSynchronize(d->stream));
    return 0;
}
// Frees the host's buffers. `store`: first copies them to the GPU and makes the bf16 copies of the
// weights. What came before may have failed (`done` -1): then nothing is stored, and its error stays.
static int host_end(Rank* r, int count, int store, int done) {
    Gpu* d = (Gpu*)r->device;
    cudaError_t status = cudaSuccess;
    store = store && done == 0;
    for (int i = 0; i < SAVED_COUNT; i++) {
        int state = SAVED_STATES[i];
        size_t bytes = (size_t)r->layout->buffer[state] * sizeof(float);
        if (store && i < count && r->state[state] && status == cudaSuccess)
            status =
                cudaMemcpyAsync(d->state[state], r->state[state], bytes, cudaMemcpyHostToDevice, d->stream);
        if (status == cudaSuccess) status = cudaStreamSynchronize(d->stream);
        free(r->state[state]);
        r->state[state] = NULL;
    }
    for (int state = 0; state <= STATE_GRADIENTS; state++) {
        free(r->whole_unit[state]);
        r->whole_unit[state] = NULL;
    }
    if (status == cudaSuccess && store) {
        gpu_weights_cast(r);
        for (int b = 0; b < UNIT_BUFFERS; b++) d->gathered[b] = -1;
        status = cudaStreamSynchronize(d->stream);
        if (status == cudaSuccess) status = cudaGetLastError();
    }
    if (done != 0 || status == cudaSuccess) return done;
    return fail(&r->error, "copying weights: %s", cudaGetErrorString(status));
}

// Jobs (Device.init, .load, .save): fresh weights from the seed; weights and, to resume, moments from a
// checkpoint; a checkpoint of both.
static int gpu_init(Rank* r, gpt2_sp* g, void* argument) {
    (void)argument;
    gpu_settings(r, g);
    if (gpu_enter(r) != 0 || gpu_join(r, &g->options) != 0) return -1;
    int status = host_begin(r, 1, 0);
    if (status == 0) weights_init(r, (uint64_t)g->options.seed), positions_drop(r, g);
    return host_end(r, 1, 1, status);
}
static int gpu_load(Rank* r, gpt2_sp* g, void* argument) {
    int count = ((const LoadJob*)argument)->moments ? SAVED_COUNT : 1;
    gpu_settings(r, g);
    if (gpu_enter(r) != 0 || gpu_join(r, &g->options) != 0) return -1;
    int status = host_begin(r, count, 0) == 0 ? rank_load(r, g, argument) : -1;
    return host_end(r, count, 1, status);
}
static int gpu_save(Rank* r, gpt2_sp* g, void* argument) {
    if (r->world_rank != 0 && holds_all(r->layout, STATE_M)) return 0;   // rank 0 saves all
    int status = host_begin(r, SAVED_COUNT, 1) == 0 ? rank_save(r, g, argument) : -1;
    return host_end(r, SAVED_COUNT, 0, status);
}

// Device.numbers_read and .numbers_set, for tensors of the program's: the host waits for the copy.
static int gpu_numbers_read(Rank* r, int state, int u, int64_t begin, int64_t n, real* out) {
    Gpu* d = (Gpu*)r->device;
    if (gpu_enter(r) != 0) return -1;
    CUDA_TRY(&r->error,
        cudaMemcpyAsync(out, d->state[state] + held_at(r, state, u, begin), (size_t)n * sizeof *out,
            cudaMemcpyDeviceToHost, d->stream));
    return gpu_finish(r);
}
// Of weights the bf16 copies too. Before any rank's weights change, all ranks have those that were on their
// way from the peers.
static int gpu_numbers_set(Rank* r, int state, int u, int64_t begin, int64_t n, const real* from) {
    Gpu* d = (Gpu*)r->device;
    const Layout* layout = r->layout;
    int weights = state == STATE_WEIGHTS, whole = !layout->sharded[STATE_WEIGHTS];
    if (gpu_enter(r) != 0) return -1;
    for (int i = 0; weights && whole && i < layout->count; i++)
        if (gpu_unit_gather(r, i) != 0) return -1;
    if (gpu_drain(r) != 0) return -1;
    if (n > 0)
        CUDA_TRY(&r->error,
            cudaMemcpyAsync(d->state[state] + held_at(r, state, u, begin), from, (size_t)n * sizeof *from,
                cudaMemcpyHostToDevice, d->stream));
    if (weights && whole && holding(layout, state, u) == HELD_WHOLE) units_cast(r, u, 1, d->stream);
    for (int b = 0; weights && b < UNIT_BUFFERS; b++) d->gathered[b] = -1;
    return gpu_drain(r);
}

// ===== 12. evaluation and sampling ==============================================================
//
// Evaluation is the .c's, on gpu_pass without learning, and so is the loop that samples. Here is the decoder
// that the loop feeds, on the process' first rank, or on the ranks that keep the cache together. Each layer
// writes QKV straight to its cache, behind those of earlier tokens. There are two ways to read:
//
//     many rows   a prompt, up to PREFILL_ROWS at a time, through gpu_layer_forward: the kernels of training,
//                 with an attention that begins at the cache's front
//     few rows    what is sampled or drafted, at most FEW_ROWS: kernels of their own, which read the weights
//                 at the speed of memory; five a layer, all of them one CUDA graph (of one rank):
//
//         few_embed -> L x (few_linear: norm, qkv -> few_attention -> few_linear: attproj, + x
//                           -> few_linear: norm, fc, gelu -> few_linear: fcproj, + x) -> few_linear: head
//
// A token's time is that of reading the weights (2 bytes each) and the cache (4 C bytes a token and layer),
// and some 5 L starts of kernels. The residual stream x is fp32 here.
//
// Where ranks keep the cache together, QKV goes to a buffer, from which each copies the rows that it keeps.
// Attention then leaves a part (O~, exponent offsets, sums); every rank reads all parts where they are, and
// merges them in the order of the ranks.
//
// A row's numbers do not depend on the others: every sum of few rows has an order that the number of rows
// does not change. So a draft's tokens are judged by the very logits that the model has without a draft.

// --- kernels of few rows ---

// What a read of few rows is about, on the device.
struct FewRead {
    int32_t position;   // of the first
    int32_t tokens[FEW_ROWS];
};

// A kernel of a graph may start while those before it run: it reads what this graph does not write (weights,
// what the read is about, the cache of earlier reads), then waits here for what they write. few_next lets the
// next one start so. Below sm_90, and where a kernel is launched without that attribute, both do nothing.
__device__ __forceinline__ void few_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void few_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
template <typename... P, typename... A>
static cudaError_t few_launch(cudaStream_t stream, int early, dim3 grid, int threads, size_t shared,
    void (*kernel)(P...), A... arguments) {
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid, config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared, config.stream = stream;
    config.attrs = &attribute, config.numAttrs = early ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, P(arguments)...);
}

// x (R, C) = wte[token] + wpe[position], without the row's mean if `center`. A block has a row. wpe begins at
// the row of position 0; `own`: at that of the first token.
__global__ void few_embed_kernel(
    float* x, const FewRead* read, const float* wte, const float* wpe, int own, int center, int C) {
    int row = (int)blockIdx.x, position = own ? row : read->position + row;
    const float *a = wte + (int64_t)read->tokens[row] * C, *b = wpe + (int64_t)position * C;
    float sum = 0;
    few_next();
    few_wait();
    for (int c = (int)threadIdx.x; c < C; c += 256) sum += a[c] + b[c];
    float mean = center ? block_sum(sum) / (float)C : 0;
    for (int c = (int)threadIdx.x; c < C; c += 256) x[(int64_t)row * C + c] = a[c] + b[c] - mean;
}

// x (C) = the bf16 row: what a prompt's last layer leaves for the head.
__global__ void few_widen_kernel(float* x, const bf16* row, int C) {
    int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (c < C) x[c] = __bfloat162float(row[c]);
}

// A product of few rows: out (R, O) = in (R, K) w (O, K)^T + bias. Where `in` is NULL the input is the norm
// of x (R, K). What becomes of the result:
enum {
    FEW_STORE,   // to out, bf16, its rows out_row apart, the first at the position read (no `read`: at 0)
    FEW_GELU,    // its GELU to out, bf16
    FEW_ADD,     // is added to x (R, O)
    FEW_LOGITS   // to out, fp32
};
struct FewLinear {
    const bf16 *w, *bias, *in;
    float* x;
    const float *gain, *shift;   // of the norm
    void* out;
    int64_t out_row;
    const FewRead* read;
    int R, K, O;
};

// Bytes between the normed rows in shared memory: 64 beyond a multiple of 128, so that the rows that a warp
// reads together are in different banks.
static __host__ __device__ __forceinline__ int few_stride(int K) { return (2 * K + 127) / 128 * 128 + 64; }

// acc (16 rows, 8 outputs) += a piece of 16 k. A warp's registers as mma.m16n8k16 has them.
__device__ __forceinline__ void few_mma(
    float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four numbers of a vector of K, from c on; zeros beyond it.
__device__ __forceinline__ float4 few_four(const float* p, int c, int K) {
    return c < K ? __ldg((const float4*)(p + c)) : make_float4(0, 0, 0, 0);
}

// The norms of x's rows, as bf16 into `shared`, rows few_stride apart, zeros from K to a multiple of 32. All
// 256 threads take part in each row, whatever R is. gain, shift: the thread's first four.
__device__ __forceinline__ void few_norm(char* shared, const FewLinear& p, float4 gain, float4 shift) {
    __shared__ float sums[8][FEW_ROWS];
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, stride = few_stride(p.K);
    for (int r = 0; r < p.R; r++) {
        float sum = 0;
        for (int c = 4 * (int)threadIdx.x; c < p.K; c += 1024) {
            float4 f = *(const float4*)(p.x + (int64_t)r * p.K + c);
            sum += f.x * f.x + f.y * f.y + f.z * f.z + f.w * f.w;
        }
        sum = warp_sum(sum);
        if (lane == 0) sums[warp][r] = sum;
    }
    __syncthreads();
    for (int r = 0; r < p.R; r++) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < 8; w++) sum += sums[w][r];
        float scale = rsqrtf(sum / (float)p.K + 1e-5f);
        for (int c = 4 * (int)threadIdx.x; c < (p.K + 31) / 32 * 32; c += 1024) {
            uint2 packed = make_uint2(0, 0);
            if (c < p.K) {
                float4 f = *(const float4*)(p.x + (int64_t)r * p.K + c), w = gain, b = shift;
                if (c >= 1024) w = few_four(p.gain, c, p.K), b = few_four(p.shift, c, p.K);
                packed.x = attn::pack(f.x * scale * w.x + b.x, f.y * scale * w.y + b.y);
                packed.y = attn::pack(f.z * scale * w.z + b.z, f.w * scale * w.w + b.w);
            }
            *(uint2*)(shared + r * stride + 2 * c) = packed;
        }
    }
    __syncthreads();
}

// What becomes of the sum of row r and output o. bias, and x before it is added to, are read beforehand.
template <int HOW>
__device__ __forceinline__ void few_result(
    const FewLinear& p, int64_t position, int r, int o, float sum, float bias, float before) {
    int64_t at = (int64_t)r * p.O + o;
    sum += bias;
    if (HOW == FEW_STORE) ((bf16*)p.out)[(position + r) * p.out_row + o] = __float2bfloat16(sum);
    if (HOW == FEW_GELU) {
        float u = 0.7978845608f * (sum + 0.044715f * sum * sum * sum);
        ((bf16*)p.out)[at] = __float2bfloat16(0.5f * sum * (1 + tanhf(u)));
    }
    if (HOW == FEW_ADD) p.x[at] = before + sum;
    if (HOW == FEW_LOGITS) ((float*)p.out)[at] = sum;
}

// A warp has 8 outputs at a time and 1/SPLIT of K; lane (g, t) reads 16 bytes of the weights of output g in
// each block of 32 k, AHEAD blocks before their use. The two products of a block take its k in the lanes'
// order: t's first four numbers, its last four, the same of weights and of inputs. Rows beyond R are zeros;
// WIDE: there are more than 8. It reads 2 K O bytes, and each block the R rows, from the L2 cache.
template <int NORM, int HOW, int SPLIT, int WIDE>
__global__ void __launch_bounds__(256) few_linear_kernel(FewLinear p) {
    enum { AHEAD = 8, TILES = 8 / SPLIT };
    extern __shared__ uint4 few_shared[];
    __shared__ float partial[SPLIT > 1 ? 8 : 1][16][8];
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int blocks = (p.K + 31) / 32, per = (blocks + SPLIT - 1) / SPLIT, begin = warp % SPLIT * per;
    int end = begin + per < blocks ? begin + per : blocks, tiles = p.O / 8, stride = few_stride(p.K);
    int groups = (per + AHEAD - 1) / AHEAD;
    uint4 ahead[AHEAD], zero = make_uint4(0, 0, 0, 0);
    auto weights = [&](int tile, int kb) {
        int k = 32 * kb + 8 * t;
        return tile < tiles && kb < end && k < p.K
            ? __ldg((const uint4*)(p.w + (int64_t)(8 * tile + g) * p.K + k))
            : zero;
    };
    auto inputs = [&](int row, int kb) {
        int k = 32 * kb + 8 * t;
        if (row >= p.R || kb >= end) return zero;
        if (NORM) return *(const uint4*)((const char*)few_shared + row * stride + 2 * k);
        return k < p.K ? *(const uint4*)(p.in + (int64_t)row * p.K + k) : zero;
    };
    int tile = (int)blockIdx.x * TILES + warp / SPLIT, step = (int)gridDim.x * TILES;
    int row = (int)threadIdx.x / 8, column = (int)threadIdx.x % 8,
        output = 8 * tile + column;   // if SPLIT > 1
    bool mine = SPLIT > 1 && row < p.R;
    float4 gain = make_float4(0, 0, 0, 0), shift = gain;
    few_next();
#pragma unroll
    for (int u = 0; u < AHEAD; u++) ahead[u] = weights(tile, begin + u);
    if (NORM)
        gain = few_four(p.gain, 4 * (int)threadIdx.x, p.K),
        shift = few_four(p.shift, 4 * (int)threadIdx.x, p.K);
    float bias = mine && p.bias ? __bfloat162float(p.bias[output]) : 0;
    int64_t position = HOW == FEW_STORE && p.read ? p.read->position : 0;
    few_wait();
    float before = mine && HOW == FEW_ADD ? p.x[(int64_t)row * p.O + output] : 0;
    if (NORM) few_norm((char*)few_shared, p, gain, shift);
    for (; tile < tiles; tile += step) {
        float acc[2][4] = {};
        for (int i = 0; i < groups; i++) {
            int kb = begin + i * AHEAD, next = i + 1 < groups ? kb + AHEAD : begin;
            int of = i + 1 < groups ? tile : tile + step;
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                uint4 b = ahead[u], a = inputs(g, kb + u), c = WIDE ? inputs(g + 8, kb + u) : zero;
                ahead[u] = weights(of, next + u);
                few_mma(acc[0], a.x, c.x, a.y, c.y, b.x, b.y);
                few_mma(acc[1], a.z, c.z, a.w, c.w, b.z, b.w);
            }
        }
#pragma unroll
        for (int i = 0; i < (WIDE ? 4 : 2); i++) {
            int r = g + i / 2 * 8, o = 2 * t + i % 2;
            float sum = acc[0][i] + acc[1][i];
            if (SPLIT > 1) partial[warp][r][o] = sum;
            else if (r < p.R) few_result<HOW>(p, position, r, 8 * tile + o, sum, 0, 0);
        }
    }
    if (SPLIT == 1) return;
    __syncthreads();
    if (!mine) return;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < 8; w++) sum += partial[w][row][column];
    few_result<HOW>(p, position, row, output, sum, bias, before);
}

// The head has SPLIT 1 and no bias: a block goes through many outputs. With SPLIT 8 it has 8.
template <int NORM, int HOW, int SPLIT>
static int few_linear(Gpu* d, int early, const FewLinear& p, Error* e) {
    auto kernel = p.R > 8 ? few_linear_kernel<NORM, HOW, SPLIT, 1> : few_linear_kernel<NORM, HOW, SPLIT, 0>;
    size_t shared = NORM ? (size_t)p.R * few_stride(p.K) : 0;
    unsigned blocks =
        SPLIT > 1 ? (unsigned)(p.O / 8) : (unsigned)min_i64(ceil_div(p.O, 64), 2 * attn::attn_sms());
    if (shared > 40960)
        CUDA_TRY(e, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    CUDA_TRY(e, few_launch(d->stream, early, dim3(blocks), 256, shared, kernel, p));
    return 0;
}

// Attention of few rows over a layer's cache, or this rank's share of it.
enum { FEW_KEYS = 512 };   // keys of a block, at most
struct FewAttention {
    const bf16* qkv;           // (capacity, 3C)
    const bf16* rows;          // (R, 3C): the rows' queries; NULL: they are in the cache
    bf16* out;                 // (R, C), or
    float* share;              // what the rank's keys leave (see GpuDecoder.parts); NULL: it has all of them
    int ranks, index, block;   // as in CacheShare
    float* parts;              // (splits, NH, FEW_ROWS, HS + 2): O~, exponent offset, sum
    unsigned* arrived;         // (2, NH): blocks that have written theirs; zero before and after
    const FewRead* read;
    int R, NH, HS, keys;   // keys: of a block
    float scale;           // of q k: log2(e) / sqrt(HS)
};

// CacheShare's cache_kept.
__device__ __forceinline__ int few_kept(const FewAttention& p, int positions) {
    if (p.ranks == 1) return positions;
    int round = p.block * p.ranks, rest = positions % round - p.index * p.block;
    return positions / round * p.block + (rest < 0 ? 0 : rest < p.block ? rest : p.block);
}

// The last block of a head adds up what all have left: for each row those whose keys it sees, in their order.
template <int LANES, int ROWS>
__device__ __forceinline__ void few_combine(
    const FewAttention& p, float (&sums)[4][ROWS][8 * LANES], int position, int first, int rows) {
    enum { WIDTH = 8 * LANES, SHARES = 128 / WIDTH };
    int h = (int)blockIdx.x, d = (int)threadIdx.x % WIDTH, share = (int)threadIdx.x / WIDTH;
    int64_t part = p.HS + 2, split = (int64_t)p.NH * FEW_ROWS * part;
    __shared__ float l_sums[4];
    for (int r = 0; r < rows; r++) {
        const float* from = p.parts + ((int64_t)h * FEW_ROWS + first + r) * part;
        int count = (few_kept(p, position + r + 1) + p.keys - 1) / p.keys;
        float most = -INFINITY, o = 0, l = 0;
#pragma unroll 8
        for (int s = 0; s < count; s++) most = fmaxf(most, __ldcg(from + s * split + p.HS));
#pragma unroll 4
        for (int s = share; s < count; s += SHARES) {
            float w = exp2f(__ldcg(from + s * split + p.HS) - most);
            l = fmaf(w, __ldcg(from + s * split + p.HS + 1), l);
            if (d < p.HS) o = fmaf(w, __ldcg(from + s * split + d), o);
        }
        sums[share][0][d] = o;
        if (d == 0) l_sums[share] = l;
        __syncthreads();
        if (share == 0 && d < p.HS) {
            o = 0, l = 0;
#pragma unroll
            for (int i = 0; i < SHARES; i++) o += sums[i][0][d], l += l_sums[i];
            int64_t row = first + r, at = (row * p.NH + h) * p.HS + d;
            if (!p.share) p.out[at] = __float2bfloat16(o / l);
            else {
                float* m = p.share + (int64_t)p.R * p.NH * p.HS + (int64_t)h * p.R + row;
                p.share[at] = o;
                if (d == 0) m[0] = most, m[(int64_t)p.NH * p.R] = l;
            }
        }
        __syncthreads();
    }
}

// The scores of a block's rows (count) become their softmax without its division. A warp has a row; it leaves
// the exponent offset and the sum behind the row's part.
template <int ROWS>
__device__ __forceinline__ void few_softmax(
    const FewAttention& p, float (&scores)[ROWS][FEW_KEYS], float* part, int rows, int count) {
    int lane = (int)threadIdx.x % 32;
    for (int r = (int)threadIdx.x / 32; r < rows; r += 4) {
        float most = -INFINITY, sum = 0, *end = part + r * (p.HS + 2) + p.HS;
        for (int i = lane; i < count; i += 32) most = fmaxf(most, scores[r][i]);
#pragma unroll
        for (int w = 16; w > 0; w /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, w));
        for (int i = lane; i < count; i += 32) {
            float s = most == -INFINITY ? 0 : exp2f(scores[r][i] - most);
            scores[r][i] = s, sum += s;
        }
        sum = warp_sum(sum);
        if (lane == 0) end[0] = most, end[1] = sum;
    }
}

// A block has a head, `keys` keys and up to ROWS rows: 128 / LANES groups of threads have a key each, a
// thread 8 of its numbers. It reads 4 HS bytes a key. Split over blocks as Flash-Decoding does (Dao et al.
// 2023), the blocks at fixed places.
template <int LANES, int ROWS>
__global__ void __launch_bounds__(128, ROWS == 1 ? 6 : 1) few_attention_kernel(FewAttention p) {
    enum { GROUPS = 128 / LANES, AHEAD = 4 };
    __shared__ float scores[ROWS][FEW_KEYS], sums[4][ROWS][8 * LANES];
    __shared__ int last;
    int h = (int)blockIdx.x, begin = (int)blockIdx.y * p.keys, first = (int)blockIdx.z * 8;
    int tid = (int)threadIdx.x, warp = tid / 32, lane = tid % 32, group = tid / LANES, j = tid % LANES;
    int rows = p.R - first < ROWS ? p.R - first : ROWS;
    bool mine = 8 * j < p.HS;
    int64_t C = (int64_t)p.NH * p.HS, pitch = 3 * C;
    int position = p.read->position + first, earlier = few_kept(p, p.read->position) - begin;
    int beyond = few_kept(p, position + rows) - begin, count = beyond < p.keys ? beyond : p.keys;
    if (beyond <= 0 && begin > 0) return;   // the first block speaks for a rank without keys
    if (earlier > count) earlier = count;
    int seen[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) seen[r] = few_kept(p, position + r + 1) - begin;
    const bf16* k = p.qkv + begin * pitch + C + h * p.HS + 8 * j;
    float q[ROWS][8] = {}, o[ROWS][8] = {};
    uint4 keys[AHEAD] = {}, values[AHEAD] = {};
    // the pieces of the keys from `low` to `high` among those that follow `base`
    auto load = [&](uint4(&piece)[AHEAD], const bf16* from, int base, int low, int high) {
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            int i = base + u * GROUPS;
            if (i >= low && i < high && mine) piece[u] = *(const uint4*)(from + i * pitch);
        }
    };
    few_next();
    load(keys, k, group, 0, earlier), load(values, k + C, group, 0, earlier);
    few_wait();
    load(keys, k, group, earlier, count), load(values, k + C, group, earlier, count);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const bf16* row = p.rows ? p.rows + (first + r) * pitch : p.qkv + (position + r) * pitch;
        if (r < rows && mine) unpack8(q[r], *(const uint4*)(row + h * p.HS + 8 * j));
#pragma unroll
        for (int i = 0; i < 8; i++) q[r][i] *= p.scale;
    }
    for (int base = group; base - group < count; base += GROUPS * AHEAD) {
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            int i = base + u * GROUPS;
            float f[8];
            unpack8(f, keys[u]);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float s = 0;
#pragma unroll
                for (int c = 0; c < 8; c++) s = fmaf(q[r][c], f[c], s);
#pragma unroll
                for (int w = LANES / 2; w > 0; w /= 2) s += __shfl_xor_sync(~0u, s, w);
                if (j == 0 && i < count) scores[r][i] = i < seen[r] ? s : -INFINITY;
            }
        }
        load(keys, k, base + GROUPS * AHEAD, 0, count);
    }
    __syncthreads();
    float* part = p.parts + (((int64_t)blockIdx.y * p.NH + h) * FEW_ROWS + first) * (p.HS + 2);
    few_softmax(p, scores, part, rows, count);
    __syncthreads();
    for (int base = group; base < count; base += GROUPS * AHEAD) {
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            int i = base + u * GROUPS;
            float f[8];
            if (i >= count) continue;
            unpack8(f, values[u]);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float s = r < rows ? scores[r][i] : 0;
#pragma unroll
                for (int c = 0; c < 8; c++) o[r][c] = fmaf(s, f[c], o[r][c]);
            }
        }
        load(values, k + C, base + GROUPS * AHEAD, 0, count);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int c = 0; c < 8; c++) {
#pragma unroll
            for (int w = LANES; w < 32; w *= 2) o[r][c] += __shfl_xor_sync(~0u, o[r][c], w);
            if (lane < LANES) sums[warp][r][8 * j + c] = o[r][c];
        }
    __syncthreads();
    for (int i = tid; i < rows * p.HS; i += 128) {
        int r = i / p.HS, d = i % p.HS;
        part[r * (p.HS + 2) + d] = sums[0][r][d] + sums[1][r][d] + sums[2][r][d] + sums[3][r][d];
    }
    __threadfence();
    __syncthreads();
    unsigned* arrived = p.arrived + blockIdx.z * p.NH + h;
    int kept = few_kept(p, position + rows), others = kept > 0 ? (kept - 1) / p.keys : 0;
    if (tid == 0) last = atomicAdd(arrived, 1) == (unsigned)others;
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (tid == 0) *arrived = 0;
    few_combine<LANES, ROWS>(p, sums, position, first, rows);
}

static int few_attention(Gpu* d, int early, const FewAttention& p, int64_t capacity, Error* e) {
    typedef void (*Kernel)(FewAttention);
    static const Kernel kernels[3][3] = {
        {few_attention_kernel<4, 1>, few_attention_kernel<4, 4>, few_attention_kernel<4, 8>},
        {few_attention_kernel<8, 1>, few_attention_kernel<8, 4>, few_attention_kernel<8, 8>},
        {few_attention_kernel<16, 1>, few_attention_kernel<16, 4>, few_attention_kernel<16, 8>}};
    Kernel kernel = kernels[p.HS <= 32 ? 0 : p.HS <= 64 ? 1 : 2][p.R == 1 ? 0 : p.R <= 4 ? 1 : 2];
    dim3 grid((unsigned)p.NH, (unsigned)ceil_div(capacity, p.keys), (unsigned)ceil_div(p.R, 8));
    CUDA_TRY(e, few_launch(d->stream, early, grid, 128, 0, kernel, p));
    return 0;
}

// out (R, C) = the attention of R rows from the parts that the ranks of a sequence leave (GpuDecoder.parts),
// merged in the order of the ranks. A block has a row and head, a thread a number. It reads 4 HS + 8 bytes of
// each rank.
__global__ void parts_merge_kernel(bf16* out, Offers offers, int ranks, int64_t R, int NH, int HS) {
    int64_t row = blockIdx.x / (unsigned)NH;
    int h = (int)(blockIdx.x % (unsigned)NH), d = (int)threadIdx.x;
    int64_t m = R * NH * HS + h * R + row, at = (row * NH + h) * HS + d;
    float most = -INFINITY, o = 0, l = 0;
    for (int i = 0; i < ranks; i++) most = fmaxf(most, ((const float*)offers.p[i])[m]);
    for (int i = 0; i < ranks; i++) {
        const float* part = (const float*)offers.p[i];
        float w = exp2f(part[m] - most);
        l = fmaf(w, part[m + NH * R], l);
        if (d < HS) o = fmaf(w, part[at], o);
    }
    if (d < HS) out[at] = __float2bfloat16(o / l);
}

// --- the decoder ---

enum {
    PREFILL_ROWS = 8192,   // rows of a prompt that are read at a time, at most
    KEPT_BLOCK = 512       // CacheShare.block: attention to the rows being read takes a launch for each
};

// What a rank of the decoder holds: its share of the cache, and activations of one layer for the tokens being
// read. A decoder is an array of them, of the ranks that keep the cache.
typedef struct {
    gpt2_sp* g;
    Rank* r;
    CacheShare share;
    bf16* qkv;      // (rows, 3C), where several ranks keep the cache: of the rows being read
    float* parts;   // there: what this rank's keys leave of R rows: O~ (R, NH, HS), exponent offsets (base 2)
                    // and sums, (NH, R) each
    int64_t capacity, position, count;    // tokens that fit in the cache; of those being read; how many
    int64_t rows, together;               // many rows that are read at a time; few rows
    bf16 *cache, *x, *ln, *atty, *wide;   // (L, capacity, 3C); (rows, ..)
    float *rstd, *lse;
    float* wpe;   // (rows, C): rows of positions that the ranks have of their own
    int32_t* tokens;
    // of few rows, FEW_ROWS each
    float *few_x, *few_logits, *few_parts;
    bf16 *few_atty, *few_wide;
    FewRead* read;
    unsigned* arrived;
    int keys;                               // of a block of few_attention
    cudaGraphExec_t graphs[FEW_ROWS + 1];   // that read so many rows, made when first used
    FewRead* host_read;                     // pinned
    float* host_logits;
    void* memory;
} GpuDecoder;

// Rows that the next pass over `left` tokens of a prompt has: PREFILL_ROWS, or a smaller power of two from
// 256 on, so that the products have few shapes. At most a quarter of them is padding, or there are 256.
static int64_t prefill_rows(const GpuDecoder* c, int64_t left) {
    int64_t rows = c->rows;
    while (rows > 256 && left <= rows * 3 / 4) rows /= 2;
    return rows;
}

// -1, with a line in g->error, if a rank does not get `bytes` for a decoder of `capacity` tokens. Ranks may
// share a GPU, so the first looks before any takes memory.
static int gpu_decoder_room(const GpuDecoder* c, gpt2_sp* g, int64_t capacity, int64_t kept, size_t bytes) {
    const Mesh* mesh = &g->mesh;
    size_t room = 0, total = 0;
    if (c->share.index > 0) return 0;
    if (cudaMemGetInfo(&room, &total) != cudaSuccess) return 0;
    if (c->share.ranks > 1)
        room = (size_t)(gpu_memory(mesh) / (uint64_t)(mesh->local_ranks * mesh->local_processes));
    if (bytes <= room) return 0;
    uint64_t token = (uint64_t)(mesh->shape.L * 3 * mesh->shape.C) * sizeof(bf16);
    return cache_refuse(g, capacity, KEPT_BLOCK, bytes - token * (uint64_t)kept, token, room);
}

// Makes a rank's part of a decoder for `capacity` tokens: device memory in one piece, walked twice to measure
// and to hand out.
static int gpu_decoder_init(GpuDecoder* c, gpt2_sp* g, int64_t capacity, CacheShare share) {
    Rank* r = &g->ranks[share.index];
    const Shape* s = &g->mesh.shape;
    int64_t C = s->C, F = FEW_ROWS, kept = cache_most(share.ranks, share.block, capacity);
    const int split = share.ranks > 1;
    if (((Gpu*)r->device)->nccl && !holds_all(&g->layout, STATE_WEIGHTS))
        return fail(&r->error, "sampling during a run over NCCL with %s: sample from a checkpoint instead",
            g->layout.sharded[STATE_WEIGHTS] ? "--zero 3"
                                             : "--sp, whose ranks have the positions of their own rows only");
    if (gpu_enter(r) != 0) return -1;
    c->g = g, c->r = r;
    c->share = share;
    for (c->rows = 256; c->rows < min_i64(capacity, PREFILL_ROWS);) c->rows *= 2;
    c->capacity = split ? kept : capacity + max_i64(256, c->rows / 4);   // and what pads a prompt
    // the norms of the rows that are read together are in shared memory; sm_80 has 163 KB of it
    c->together = F * few_stride((int)C) <= 98304 ? F : 8;
    c->keys = (int)min_i64(FEW_KEYS, max_i64(64, round_up(ceil_div(capacity, 64), 64)));
    int64_t n = c->rows, splits = ceil_div(c->capacity, c->keys);
    for (int walk = 0; walk < 2; walk++) {
        Arena a;
        memset(&a, 0, sizeof a);
        a.base = (char*)c->memory;
        c->cache = (bf16*)gpu_take(&a, 0, s->L * c->capacity * 3 * C, 2);
        c->x = (bf16*)gpu_take(&a, 0, n * C, 2), c->ln = (bf16*)gpu_take(&a, 0, n * C, 2);
        c->atty = (bf16*)gpu_take(&a, 0, n * C, 2);
        c->wide = (bf16*)gpu_take(&a, 0, n * 4 * C, 2);
        c->rstd = (float*)gpu_take(&a, 0, n, 4), c->lse = (float*)gpu_take(&a, 0, n * s->NH, 4);
        c->wpe = (float*)gpu_take(&a, 0, positions_apart(r->layout) ? n * C : 0, 4);
        c->tokens = (int32_t*)gpu_take(&a, 0, n, 4);
        c->qkv = (bf16*)gpu_take(&a, 0, split * n * 3 * C, 2);
        c->parts = (float*)gpu_take(&a, 0, split * n * (C + 2 * s->NH), 4);
        c->few_x = (float*)gpu_take(&a, 0, F * C, 4), c->few_logits = (float*)gpu_take(&a, 0, F * s->Vp, 4);
        c->few_parts = (float*)gpu_take(&a, 0, splits * s->NH * F * (s->HS + 2), 4);
        c->few_atty = (bf16*)gpu_take(&a, 0, F * C, 2), c->few_wide = (bf16*)gpu_take(&a, 0, F * 4 * C, 2);
        c->read = (FewRead*)gpu_take(&a, 0, 1, sizeof(FewRead));
        c->arrived = (unsigned*)gpu_take(&a, 0, 2 * s->NH, 4);
        if (walk == 0 && gpu_decoder_room(c, g, capacity, kept, a.used) != 0) {
            r->error = g->error;
            return -1;
        }
        if (walk == 0 && cudaMalloc(&c->memory, a.used) != cudaSuccess)
            return fail(
                &r->error, "out of memory on the GPU for a cache of %lld tokens", (long long)capacity);
    }
    CUDA_TRY(&r->error, cudaMemset(c->arrived, 0, (size_t)(2 * s->NH) * sizeof(unsigned)));
    CUDA_TRY(&r->error, cudaMallocHost((void**)&c->host_read, sizeof(FewRead)));
    CUDA_TRY(&r->error, cudaMallocHost((void**)&c->host_logits, (size_t)(F * s->Vp) * sizeof(float)));
    return 0;
}

// Device.decoder_close. After a read that failed GPUs may be at work still, and read each other's parts.
static void gpu_decoder_close(void* decoder) {
    GpuDecoder* c = (GpuDecoder*)decoder;
    const int ranks = cache_ranks(&c->g->mesh);
    for (int i = 0; i < ranks; i++)
        if (c[i].memory) cudaStreamSynchronize(((Gpu*)c[i].r->device)->stream);
    for (int i = 0; i < ranks; i++) {
        for (int n = 0; n <= FEW_ROWS; n++)
            if (c[i].graphs[n]) cudaGraphExecDestroy(c[i].graphs[n]);
        cudaFree(c[i].memory);
        cudaFreeHost(c[i].host_read);
        cudaFreeHost(c[i].host_logits);
    }
    free(c);
}

// Device.decoder_open: a decoder for `capacity` tokens; NULL, with a line in g->error.
static void* gpu_decoder_open(gpt2_sp* g, int64_t capacity) {
    const int ranks = cache_ranks(&g->mesh);
    GpuDecoder* c = (GpuDecoder*)calloc((size_t)ranks, sizeof *c);
    if (!c) {
        fail(&g->error, "out of memory");
        return NULL;
    }
    c->g = g;
    for (int i = 0; i < ranks; i++) {
        const CacheShare share = {ranks, i, KEPT_BLOCK};
        if (gpu_decoder_init(&c[i], g, capacity, share) == 0) continue;
        g->error = g->ranks[i].error;
        gpu_decoder_close(c);
        return NULL;
    }
    return c;
}

// Fetches rows p to p + n - 1 of wpe from the ranks that have them as own positions, on `stream`. It needs no
// event: the peers wait for this rank, and change no weights meanwhile.
static int gpu_decoder_positions(GpuDecoder* c, int64_t n, int64_t p) {
    Rank* r = c->r;
    Gpu* d = (Gpu*)r->device;
    const Unit* unit = &r->layout->units[positions_unit(r->layout)];
    int64_t C = r->mesh->shape.C, rows = unit->slice / C;
    int64_t at = held(r, STATE_WEIGHTS, positions_unit(r->layout)).at;   // alike on all ranks
    for (int64_t i = 0, count; i < n; i += count) {
        int owner = (int)((p + i) / rows);
        count = min_i64(n - i, (owner + 1) * rows - (p + i));
        CUDA_TRY(&r->error,
            cudaMemcpyPeerAsync(c->wpe + i * C, d->ordinal,
                d->peers[owner]->state[STATE_WEIGHTS] + at + (p + i) % rows * C, d->peers[owner]->ordinal,
                (size_t)(count * C) * sizeof(float), d->stream));
    }
    return 0;
}

// Enqueues the copies of the rows being read, qkv (.., 3C), that this rank keeps, to its cache of layer l.
static int gpu_cache_keep(const GpuDecoder* c, int64_t l, const bf16* qkv) {
    Rank* r = c->r;
    int64_t p = c->position, end = p + c->count, row = 3 * r->mesh->shape.C;
    for (int64_t begin, until = p; cache_next(&c->share, until, end, &begin, &until);)
        CUDA_TRY(&r->error,
            cudaMemcpyAsync(c->cache + (l * c->capacity + cache_kept(&c->share, begin)) * row,
                qkv + (begin - p) * row, (size_t)((until - begin) * row) * sizeof(bf16),
                cudaMemcpyDeviceToDevice, ((Gpu*)r->device)->stream));
    return 0;
}

// atty (R, C) = the attention of R rows, from the parts of all ranks.
static int gpu_parts_merge(const GpuDecoder* c, bf16* atty, int64_t R) {
    Rank* r = c->r;
    const Shape* s = &r->mesh->shape;
    if (collective_begin(r, &r->sequence, c->parts) != 0) return -1;
    parts_merge_kernel<<<(unsigned)(R * s->NH), (unsigned)round_up(s->HS, 32), 0,
        ((Gpu*)r->device)->stream>>>(
        atty, gpu_offers(r, &r->sequence), c->share.ranks, R, (int)s->NH, (int)s->HS);
    return collective_end(r, &r->sequence);
}

// gpu_decoder_attention where several ranks keep the cache: over this rank's earlier keys, then over each
// stretch of the rows being read that it keeps, by the rows that see it.
static int gpu_parts_attention(Rank* r, const GpuLayer* x) {
    const GpuDecoder* c = (const GpuDecoder*)x->decoder;
    Gpu* d = (Gpu*)r->device;
    const Shape* s = &r->mesh->shape;
    int64_t C = s->C, R = x->R, p = c->position, earlier = cache_kept(&c->share, p);
    float *m = c->parts + R * C, *l = m + R * s->NH;
    if (gpu_cache_keep(c, x->l, x->a.qkv) != 0) return -1;
    CUDA_TRY(
        &r->error, cudaMemsetAsync(c->parts, 0, (size_t)(R * (C + 2 * s->NH)) * sizeof(float), d->stream));
    rows_fill_kernel<<<(unsigned)ceil_div(R * s->NH, 256), 256, 0, d->stream>>>(
        m, R * s->NH, 1, R * s->NH, -INFINITY);
    // the first turn is that of the earlier keys, which all rows see
    for (int64_t begin = p, until = p, turn = 0;; turn++) {
        if (turn > 0 && !cache_next(&c->share, until, p + c->count, &begin, &until)) break;
        int64_t first = begin - p, keys = turn == 0 ? earlier : until - begin;
        if (keys == 0) continue;
        bf16* k =
            c->cache + (x->l * c->capacity + (turn == 0 ? 0 : cache_kept(&c->share, begin))) * 3 * C + C;
        AttnForward a;
        memset(&a, 0, sizeof a);
        a.s = attention_shape(r->mesh, R - first, NULL), a.s.path = d->attention;
        a.s.B = 1, a.s.Tk = (int)keys;
        a.s.q_pos = (int)(turn == 0 ? earlier : 0);
        a.q = view_of(x->a.qkv + first * 3 * C, 3 * C, R - first, s->HS);
        a.k = view_of(k, 3 * C, keys, s->HS), a.v = view_of(k + C, 3 * C, keys, s->HS);
        a.acc = view_of(c->parts + first * C, C, R - first, s->HS);
        a.m.p = m + first, a.l.p = l + first;
        a.m.head = a.l.head = R, a.m.batch = a.l.batch = R * s->NH;
        a.carry_in = a.carry_out = 1, a.work = d->attention_work[0];
        CUDA_TRY(&r->error, attn::attention_forward(a, d->stream));
    }
    return gpu_parts_merge(c, x->a.atty, R);
}

// Attention of the rows being read over the layer's cache, to which they belong: it begins c->position rows
// before them.
static int gpu_decoder_attention(Rank* r, const GpuLayer* x) {
    const GpuDecoder* c = (const GpuDecoder*)x->decoder;
    if (c->share.ranks > 1) return gpu_parts_attention(r, x);
    Gpu* d = (Gpu*)r->device;
    const Shape* s = &r->mesh->shape;
    int64_t C = s->C, R = x->R, p = c->position;
    bf16* layer = x->a.qkv - p * 3 * C;
    AttnForward a;
    memset(&a, 0, sizeof a);
    a.s = attention_shape(r->mesh, R, NULL), a.s.path = d->attention;
    a.s.B = 1, a.s.Tk = (int)(p + R);
    a.s.q_pos = (int)p;
    a.q = view_of(x->a.qkv, 3 * C, R, s->HS), a.k = view_of(layer + C, 3 * C, p + R, s->HS);
    a.v = view_of(layer + 2 * C, 3 * C, p + R, s->HS), a.o = view_of(x->a.atty, C, R, s->HS);
    a.lse.p = x->a.lse, a.lse.head = R;
    a.lse.batch = R * s->NH, a.work = d->attention_work[0];
    CUDA_TRY(&r->error, attn::attention_forward(a, d->stream));
    return 0;
}

// Enqueues the final norm and the logits of the first n rows of few_x, which the first rank computes.
static int gpu_decoder_head(GpuDecoder* c, int early, int64_t n) {
    Rank* r = c->r;
    const Shape* s = &r->mesh->shape;
    int last = (int)s->L + 1;
    if (c->share.index > 0) return 0;
    if (gpu_unit_gather(r, last) != 0 || gpu_unit_gather(r, 0) != 0) return -1;
    const ParametersOf<float> w = gpu_weights_of(r, last);
    FewLinear head = {gpu_half(r, 0, P_wte), NULL, NULL, c->few_x, w.lnfw, w.lnfb, c->few_logits, 0, NULL,
        (int)n, (int)s->C, (int)s->Vp};
    return few_linear<1, FEW_LOGITS, 1>((Gpu*)r->device, early, head, &r->error);
}

// Enqueues the reading of n few rows, which c->read tells, up to their logits. early: the kernels may start
// early, as all weights are in their places.
static int gpu_few_rows(GpuDecoder* c, int early, int64_t n) {
    Rank* r = c->r;
    Gpu* d = (Gpu*)r->device;
    Error* e = &r->error;
    const Shape* s = &r->mesh->shape;
    int R = (int)n, C = (int)s->C, positions = positions_unit(r->layout), own = positions_apart(r->layout);
    const int split = c->share.ranks > 1;
    if (gpu_unit_gather(r, 0) != 0 || gpu_unit_gather(r, positions) != 0) return -1;
    CUDA_TRY(e,
        few_launch(d->stream, 0, dim3((unsigned)R), 256, 0, few_embed_kernel, c->few_x, c->read,
            gpu_weight(r, 0, P_wte), own ? c->wpe : gpu_weight(r, positions, P_wpe), own, r->mesh->center,
            C));
    for (int64_t l = 0; l < s->L; l++) {
        int u = (int)l + 1;
        if (gpu_unit_gather(r, u) != 0 || (u < (int)s->L && unit_prefetch(r, u + 1) != 0)) return -1;
        const ParametersOf<float> w = gpu_weights_of(r, u);
        const ParametersOf<bf16> h = gpu_halves_of(r, u);
        bf16* cache = c->cache + l * c->capacity * 3 * C;
        FewLinear qkv = {h.qkvw, h.qkvb, NULL, c->few_x, w.ln1w, w.ln1b, split ? c->qkv : cache, 3 * C,
            split ? NULL : c->read, R, C, 3 * C};
        FewAttention attention = {cache, split ? c->qkv : NULL, c->few_atty, split ? c->parts : NULL,
            c->share.ranks, c->share.index, (int)c->share.block, c->few_parts, c->arrived, c->read, R,
            (int)s->NH, (int)s->HS, c->keys, 1.4426950409f / sqrtf((float)s->HS)};
        FewLinear attproj = {
            h.attprojw, h.attprojb, c->few_atty, c->few_x, NULL, NULL, NULL, 0, NULL, R, C, C};
        FewLinear fc = {h.fcw, h.fcb, NULL, c->few_x, w.ln2w, w.ln2b, c->few_wide, 0, NULL, R, C, 4 * C};
        FewLinear fcproj = {
            h.fcprojw, h.fcprojb, c->few_wide, c->few_x, NULL, NULL, NULL, 0, NULL, R, 4 * C, C};
        if (few_linear<1, FEW_STORE, 8>(d, early, qkv, e) != 0 ||
            (split && gpu_cache_keep(c, l, c->qkv) != 0) ||
            few_attention(d, early, attention, c->capacity, e) != 0 ||
            (split && gpu_parts_merge(c, c->few_atty, R) != 0) ||
            few_linear<0, FEW_ADD, 8>(d, early, attproj, e) != 0 ||
            few_linear<1, FEW_GELU, 8>(d, early, fc, e) != 0 ||
            few_linear<0, FEW_ADD, 8>(d, early, fcproj, e) != 0)
            return -1;
    }
    return gpu_decoder_head(c, early, n);
}

// Makes the graph that reads n few rows. Only where the rank holds all weights: each kernel then finds them
// where it did when the graph was made.
static int gpu_few_graph(GpuDecoder* c, int64_t n) {
    Gpu* d = (Gpu*)c->r->device;
    Error* e = &c->r->error;
    cudaGraph_t graph = NULL;
    int major = 0;
    for (int u = 0; u < c->g->layout.count; u++)
        if (gpu_unit_gather(c->r, u) != 0) return -1;   // what is under way is no part of the graph
    CUDA_TRY(e, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, d->ordinal));
    CUDA_TRY(e, cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
    cudaError_t copied =
        cudaMemcpyAsync(c->read, c->host_read, sizeof(FewRead), cudaMemcpyHostToDevice, d->stream);
    int status = gpu_few_rows(c, major >= 9, n);
    cudaError_t ended = cudaStreamEndCapture(d->stream, &graph);
    if (status == 0 && copied == cudaSuccess && ended == cudaSuccess)
        ended = cudaGraphInstantiate(&c->graphs[n], graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (status != 0) return -1;
    CUDA_TRY(e, copied);
    CUDA_TRY(e, ended);
    return 0;
}

// Reads n <= c->together tokens at positions p.. in the way of few rows; all their logits are in few_logits.
static int gpu_read_few(GpuDecoder* c, const int32_t* tokens, int64_t n, int64_t p) {
    Rank* r = c->r;
    Gpu* d = (Gpu*)r->device;
    Error* e = &r->error;
    CUDA_TRY(e, cudaStreamSynchronize(d->stream));   // the last read has taken its tokens
    c->host_read->position = (int32_t)p;
    memcpy(c->host_read->tokens, tokens, (size_t)n * sizeof *tokens);
    c->position = p, c->count = n;
    if (c->share.ranks == 1 && holds_all(&c->g->layout, STATE_WEIGHTS)) {
        if (!c->graphs[n] && gpu_few_graph(c, n) != 0) return -1;
        CUDA_TRY(e, cudaGraphLaunch(c->graphs[n], d->stream));
        return 0;
    }
    CUDA_TRY(e, cudaMemcpyAsync(c->read, c->host_read, sizeof(FewRead), cudaMemcpyHostToDevice, d->stream));
    if (positions_apart(r->layout) && gpu_decoder_positions(c, n, p) != 0) return -1;
    return gpu_few_rows(c, 0, n);
}

// Reads n tokens of a prompt at positions p.., padded to R rows, in the way of training. logits: that of the
// last is wanted, in few_logits.
static int gpu_read_many(GpuDecoder* c, const int32_t* tokens, int64_t n, int64_t p, int64_t R, int logits) {
    Rank* r = c->r;
    Gpu* d = (Gpu*)r->device;
    Error* e = &r->error;
    const Shape* s = &r->mesh->shape;
    int64_t C = s->C;
    CUDA_TRY(e, cudaMemsetAsync(c->tokens, 0, (size_t)R * 4, d->stream));
    CUDA_TRY(e, cudaMemcpyAsync(c->tokens, tokens, (size_t)n * 4, cudaMemcpyHostToDevice, d->stream));
    RowPlaces places = {R, R, p, p, s->N}, fetched = {R, R, 0, 0, n};
    int positions = positions_unit(r->layout), own = positions_apart(r->layout);
    if (gpu_unit_gather(r, 0) != 0 || gpu_unit_gather(r, positions) != 0) return -1;
    if (own && gpu_decoder_positions(c, n, p) != 0) return -1;
    embedding_forward(d, c->x, c->tokens, NULL, gpu_weight(r, 0, P_wte),
        own ? c->wpe : gpu_weight(r, positions, P_wpe), r->mesh->center, own ? fetched : places, R, C);
    GpuLayer x = {};
    x.R = R, x.needed = ~(1u << G_gelu);
    x.attention = gpu_decoder_attention, x.decoder = c;
    c->position = p, c->count = n;
    x.a.x = x.a.x2 = x.next = c->x, x.a.ln1 = x.a.ln2 = c->ln;
    x.a.atty = c->atty, x.gelu = c->wide;
    x.a.rstd1 = x.a.rstd2 = c->rstd, x.a.lse = c->lse;
    for (x.l = 0; x.l < s->L; x.l++) {
        int u = (int)x.l + 1;
        if (gpu_unit_gather(r, u) != 0 || (u < (int)s->L && unit_prefetch(r, u + 1) != 0)) return -1;
        x.w = gpu_weights_of(r, u), x.h = gpu_halves_of(r, u);
        x.a.qkv = c->share.ranks > 1 ? c->qkv : c->cache + (x.l * c->capacity + p) * 3 * C;
        if (gpu_layer_forward(r, &x) != 0) return -1;
    }
    if (!logits) return 0;
    few_widen_kernel<<<(unsigned)ceil_div(C, 256), 256, 0, d->stream>>>(c->few_x, c->x + (n - 1) * C, (int)C);
    return gpu_decoder_head(c, 0, 1);
}

// Device.decoder_read by one rank, its error in the rank's. The first has the logits. The host waits.
static int gpu_decode(
    GpuDecoder* c, const int32_t* tokens, int64_t n, int64_t p, int64_t rows, real* logits) {
    Gpu* d = (Gpu*)c->r->device;
    Error* e = &c->r->error;
    const Shape* s = &c->r->mesh->shape;
    if (gpu_enter(c->r) != 0) return -1;
    for (int64_t done = 0, R, count; done < n; done += count) {
        R = n <= FEW_ROWS ? c->together : prefill_rows(c, n - done);
        count = min_i64(R, n - done);
        int64_t wanted = min_i64(count, max_i64(0, rows - (n - done - count)));   // of these rows' logits
        int status = n <= FEW_ROWS ? gpu_read_few(c, tokens + done, count, p + done)
                                   : gpu_read_many(c, tokens + done, count, p + done, R, wanted > 0);
        if (status != 0) return -1;
        if (wanted == 0 || c->share.index > 0) continue;
        int64_t from = n <= FEW_ROWS ? count - wanted : 0, numbers = wanted * s->Vp;
        CUDA_TRY(e,
            cudaMemcpyAsync(c->host_logits, c->few_logits + from * s->Vp, (size_t)numbers * sizeof(float),
                cudaMemcpyDeviceToHost, d->stream));
        CUDA_TRY(e, cudaStreamSynchronize(d->stream));
        for (int64_t i = 0; i < numbers; i++) logits[i] = c->host_logits[i];
        logits += numbers;
    }
    if (c->share.index > 0) CUDA_TRY(e, cudaStreamSynchronize(d->stream));
    CUDA_TRY(e, cudaGetLastError());
    return 0;
}

// A job of the ranks that keep the cache.
static int gpu_rank_decode(Rank* r, gpt2_sp* g, void* argument) {
    const DecoderRead* read = (const DecoderRead*)argument;
    (void)g;
    if (r->place.dp > 0) return 0;
    GpuDecoder* c = (GpuDecoder*)read->decoder + r->place.sp;
    return gpu_decode(c, read->tokens, read->n, read->p, read->rows, read->logits);
}

// Device.decoder_read: the same, its error as the trainer's.
static int gpu_decoder_read(
    void* decoder, const int32_t* tokens, int64_t n, int64_t p, int64_t rows, real* logits) {
    GpuDecoder* c = (GpuDecoder*)decoder;
    DecoderRead read = {decoder, tokens, n, p, rows, logits};
    if (c->share.ranks > 1) return ranks_run(c->g, gpu_rank_decode, &read);
    if (gpu_decode(c, tokens, n, p, rows, logits) == 0) return 0;
    c->g->error = c->r->error;
    return -1;
}

// ===== 13. plan =================================================================================
//
// The rates that `plan` reckons with, measured on the kernels that training runs.

// Milliseconds that `count` calls take on stream 0, after one that is not counted; 0 if they fail.
template <typename Call> static float gpu_timed(int count, Call call) {
    cudaEvent_t from = NULL, to = NULL;
    float ms = 0;
    int status = cudaEventCreate(&from) != cudaSuccess || cudaEventCreate(&to) != cudaSuccess;
    for (int i = 0; status == 0 && i <= count; i++) {
        if (i == 1) status = cudaEventRecord(from, 0) != cudaSuccess;
        if (status == 0) status = call();
    }
    if (status != 0 || cudaEventRecord(to, 0) != cudaSuccess || cudaEventSynchronize(to) != cudaSuccess ||
        cudaEventElapsedTime(&ms, from, to) != cudaSuccess)
        ms = 0;
    if (from) cudaEventDestroy(from);
    if (to) cudaEventDestroy(to);
    return ms;
}

// Device.rates, what `plan` projects with: a product of a model's kind, attention in the mesh's heads, and
// copies in memory, timed on this GPU. What cannot be measured, and the link between GPUs, is an H200's.
static int gpu_rates(Rates* rates, const Mesh* mesh, Error* e) {
    const int64_t n = 4096, m = 16384, T = 8192, C = mesh->shape.C, NH = mesh->shape.NH, HS = mesh->shape.HS;
    // attention: q, k, v, O, dO, dK, dV (T, C) bf16, dQ fp32, LSE and delta, the tile counters
    AttnShape shape = {1, (int)NH, (int)T, (int)T, 0, 0, 1, 1 / sqrtf((float)HS), NULL, 0, (int)HS};
    const size_t work_bytes = attn::attention_backward_work(shape),
                 attention_bytes = (size_t)(T * C * 18 + T * NH * 8) + work_bytes;
    const size_t product_bytes = (size_t)(2 * m * n + n * n) * 2 + MATMUL_WORKSPACE;
    const size_t bytes = product_bytes > attention_bytes ? product_bytes : attention_bytes,
                 random_bytes = (size_t)(m * n) * 2;
    Gpu* d = (Gpu*)calloc(1, sizeof *d);
    uint32_t* random = (uint32_t*)malloc(random_bytes);
    bf16* memory = NULL;
    Error ignored;
    float ms = 0;
    (void)e;
    rates->gflops = 6e5, rates->attention_gflops = 5e5;
    rates->link_gbs = 370, rates->copy_gbs = 4000;
    for (size_t i = 0; random && i < random_bytes / 4; i++) {   // two bf16 of -2 .. 2 at a time
        uint32_t bits = (uint32_t)random_bits(1, 2, (uint64_t)i);
        random[i] = (bits & 0x807f807fu) | 0x3f003f00u | (bits & 0x00800080u);
    }
    if (d && random && cudaMalloc((void**)&memory, bytes) == cudaSuccess &&
        cublasLtCreate(&d->lt) == CUBLAS_STATUS_SUCCESS) {
        cudaMemcpy(memory, random, random_bytes, cudaMemcpyHostToDevice);
        cudaMemcpy(memory + m * n, random, (size_t)(n * n) * 2, cudaMemcpyHostToDevice);
        d->workspace = memory + 2 * m * n + n * n;
        ms = gpu_timed(4, [&] {
            return matmul_forward(
                d, memory + m * n + n * n, memory, memory + m * n, NULL, NULL, m, n, n, &ignored);
        });
        if (ms > 0) rates->gflops = 4 * 2e-6 * (double)m * (double)n * (double)n / ms;
        ms = gpu_timed(4, [&] {
            return cudaMemcpyAsync(memory + m * n, memory, random_bytes / 2, cudaMemcpyDeviceToDevice, 0) !=
                    cudaSuccess
                ? -1
                : 0;
        });
        if (ms > 0) rates->copy_gbs = 4e-6 * (double)random_bytes / ms;   // half of it, read and written
        matmul_plans_release(d);
        cublasLtDestroy(d->lt);
    }
    // q, k, v and dO are random numbers, the rest begins with zeros
    if (memory && T * C * 10 <= (int64_t)bytes) {
        char* at = (char*)memory + T * C * 8;
        for (int i = 0; i < 4; i++)
            for (int64_t j = 0; j < T * C * 2; j += (int64_t)random_bytes)
                cudaMemcpy((char*)memory + i * T * C * 2 + j, random,
                    (size_t)min_i64((int64_t)random_bytes, T * C * 2 - j), cudaMemcpyHostToDevice);
        cudaMemsetAsync(at, 0, attention_bytes - (size_t)(T * C * 8), 0);
        bf16* x[7];   // q, k, v, dO, O, dK, dV
        for (int i = 0; i < 7; i++) x[i] = memory + i * T * C;
        float *dq = (float*)(x[6] + T * C), *lse = dq + T * C, *delta = lse + T * NH;
        auto view = [&](void* p) { return view_of(p, C, T, HS); };
        AttnRows lse_rows = {lse, T, NH * T}, delta_rows = {delta, T, NH * T};
        AttnForward f = {};
        f.s = shape, f.q = view(x[0]);
        f.k = view(x[1]), f.v = view(x[2]);
        f.o = view(x[4]), f.lse = lse_rows;
        f.work = (int*)(delta + T * NH);
        AttnBackward g = {};
        g.s = shape, g.q = f.q;
        g.k = f.k, g.v = f.v;
        g.dout = view(x[3]), g.lse = lse_rows;
        g.delta = delta_rows, g.dq = view(dq);
        g.dk = view(x[5]), g.dv = view(x[6]);
        g.dkv_bf16 = 1, g.accumulate_dq = 1;
        g.work = f.work;
        ms = gpu_timed(4, [&] {
            return attn::attention_forward(f, 0) != cudaSuccess ||
                    attn::attention_delta(g.dout, f.o, delta_rows, 1, (int)NH, (int)T, 0, (int)HS) !=
                        cudaSuccess ||
                    attn::attention_backward(g, 0) != cudaSuccess
                ? -1
                : 0;
        });
        if (ms > 0) rates->attention_gflops = 4 * 3.5 * 2e-6 * (double)T * (double)T * (double)C / ms;
    }
    cudaFree(memory);
    free(random);
    free(d);
    return 0;
}

// ===== 14. training loop ========================================================================
//
// What only the GPU program's loop has: --verify, which compares a step with the CPU reference. And the table
// by which the .c's loop, and all else, calls this file.

// --- --verify: the same batch through the CPU reference ---

// Each tensor's error is measured against what bf16 must cost it. Rounding a number to bf16 moves it by 2^-9
// of itself at most, by 0.4 of that in the rms over mantissas. Independent roundings add in quadrature, so a
// value with n of them behind it is off by about 0.4 2^-9 sqrt(n) of its norm, where nothing cancels; a
// tensor may have VERIFY_SAFETY times that. The roundings behind it, counted:
//     a layer forward      12   4 copies of weights; ln1, qkv, P, atty, x2, ln2, fch or gelu, the next x
//     the head          3 + 3   the copy of wte, lnf, the logits; backward the logits' gradient, lnf's, dx
//     a layer backward     16   the 4 copies again; gelu', its product, narrow, dx, datty, P, dS, dqkv,
//                               narrow, dx; of the activations kept ln1 and atty
enum { VERIFY_FORWARD = 12, VERIFY_HEAD = 3, VERIFY_BACKWARD = 16 };
static const double VERIFY_SAFETY = 4;
// The relative error that so many roundings leave, and how many are behind: an activation of layer l, its
// output included; the loss; a gradient of layer l (-1: the embeddings, L: the final norm).
static double rounding_noise(double roundings) { return 0.4 / 512 * sqrt(roundings); }
static int64_t roundings_of_activation(int64_t l) { return VERIFY_FORWARD * (l + 1); }
static int64_t roundings_of_loss(int64_t L) { return VERIFY_FORWARD * L + VERIFY_HEAD; }
static int64_t roundings_of_gradient(int64_t L, int64_t l) {
    return roundings_of_loss(L) + VERIFY_HEAD + VERIFY_BACKWARD * (L - max_i64(l, 0));
}
// A unit's layer, in these numbers.
static int64_t unit_layer(const Layout* layout, int u) { return u == positions_unit(layout) ? -1 : u - 1; }

// What --verify has found so far.
typedef struct {
    int rows, wrong;       // tensors compared; with more error than they may have
    double worst, share;   // the largest error, and the largest share of what was allowed
    char what[128];        // the tensor of that share
} Verification;

// Prints |gpu - cpu| / |cpu| of a tensor of n numbers with so many roundings behind it, and keeps the worst;
// a NaN anywhere is worse than all numbers.
static void verify_row(Verification* v, const char* name, int64_t l, int64_t roundings, const real* cpu,
    const float* gpu, int64_t n) {
    double norm, error = relative_error(gpu, cpu, n, &norm),
                 allowed = VERIFY_SAFETY * rounding_noise((double)roundings);
    if (!isnan(v->worst) && !(error <= v->worst)) v->worst = error;   // once NaN, it stays NaN
    if (!isnan(v->share) && !(error / allowed <= v->share)) {
        v->share = error / allowed;
        snprintf(v->what, sizeof v->what, "%s %lld has an error of %.3e, expected at most %.3e", name,
            (long long)l, error, allowed);
    }
    v->rows++, v->wrong += !(error <= allowed);
    printf("  %-12s %3lld  error %.3e  of %.3e   norm %.4e\n", name, (long long)l, error, allowed, norm);
}

// Compares the activations that the GPU has kept, the head's, and the token losses. Skips the activations
// where the GPU works on a part of the pass at a time.
static int verify_activations(Verification* v, Rank* r, Rank* c) {
    static const int ids[] = {G_x, G_ln1, G_atty, G_lse, G_x2, G_ln2, G_fch, G_gelu},
                     cpu_ids[] = {A_x, A_ln1, A_atty, A_lse, A_x2, A_ln2, A_fch, A_gelu};
    const Shape* s = &r->mesh->shape;
    Gpu* d = (Gpu*)r->device;
    float* values = (float*)malloc((size_t)(r->R * 4 * s->C) * 4);
    bf16* halves = (bf16*)malloc((size_t)(r->R * 4 * s->C) * 2);
    int status = values && halves ? 0 : fail(&r->error, "out of memory");
    for (int i = 0; status == 0 && i < 8 && d->R == r->R; i++) {
        GpuActivation a = gpu_activation(s, ids[i]);
        int64_t n = r->R * a.columns;
        for (int64_t l = 0; l < s->L && gpu_kept(r->mesh, ids[i]); l++) {
            if (cudaMemcpy(a.size == 2 ? (void*)halves : (void*)values, gpu_act(r, ids[i], l),
                    (size_t)n * a.size, cudaMemcpyDeviceToHost) != cudaSuccess)
                status = fail(&r->error, "cannot copy %s", a.name);
            for (int64_t j = 0; a.size == 2 && j < n; j++) values[j] = __bfloat162float(halves[j]);
            verify_row(v, a.name, l, roundings_of_activation(l), act(c, cpu_ids[i], l), values, n);
        }
    }
    bf16* tails[2] = {d->x_final, d->lnf};
    const real* cpu_tails[2] = {c->x_final, c->lnf};
    for (int i = 0; status == 0 && i < 2 && d->R == r->R; i++) {
        if (cudaMemcpy(halves, tails[i], (size_t)(r->R * s->C) * 2, cudaMemcpyDeviceToHost) != cudaSuccess)
            status = fail(&r->error, "cannot copy");
        for (int64_t j = 0; j < r->R * s->C; j++) values[j] = __bfloat162float(halves[j]);
        verify_row(
            v, i ? "lnf" : "x_final", s->L, roundings_of_loss(s->L), cpu_tails[i], values, r->R * s->C);
    }
    verify_row(v, "token_loss", 0, roundings_of_loss(s->L), c->token_loss, r->token_loss, r->R);
    free(values);
    free(halves);
    return status;
}

// Gives the CPU's trainer the GPU's weights and both the step's batch. Compares the forward pass of the first
// pass, then the gradients of the step, and prints loss and norm of both. Between the two a rehearsal chooses
// the products' algorithms, as in training.
static int gpu_verify_run(gpt2_sp* g, gpt2_sp* cpu, Verification* v) {
    Rank *r = &g->ranks[0], *c = &cpu->ranks[0];
    Gpu* d = (Gpu*)r->device;
    Error* e = &g->error;
    CUDA_TRY(e,
        cudaMemcpy(c->state[STATE_WEIGHTS], d->state[STATE_WEIGHTS], (size_t)r->layout->elements * 4,
            cudaMemcpyDeviceToHost));
    Batch* batch = loader_take(&g->loader, e);
    if (!batch) return -1;
    r->batch = c->batch = &batch->ranks[0], r->valid_tokens = c->valid_tokens = batch->valid;
    printf("forward pass of the step's first batch: |GPU - CPU| / |CPU|\n");
    r->learn = c->learn = 0;
    if (gpu_pass(r, 0) != 0 || model_forward_backward(c, 0) != 0 || verify_activations(v, r, c) != 0)
        return *e = r->error, -1;
    printf("gradients of the step\n");
    r->learn = c->learn = 1, c->loss_sum = 0;
    memset(c->state[STATE_GRADIENTS], 0, (size_t)c->layout->elements * sizeof(real));
    d->rehearsing = d->rehearsed = 1;
    if (gpu_pass(r, 0) != 0) return *e = r->error, -1;
    d->rehearsing = 0;
    if (gpu_gradients_compute(r, 0) != 0) return *e = r->error, -1;
    for (int64_t pass = 0; pass < c->mesh->passes; pass++)
        if (model_forward_backward(c, pass) != 0) return *e = c->error, -1;
    float* values = (float*)malloc((size_t)r->layout->elements * 4);
    if (!values) return fail(e, "out of memory");
    double stats[STAT_COUNT], square = 0;
    if (cudaMemcpyAsync(values, d->state[STATE_GRADIENTS], (size_t)r->layout->elements * 4,
            cudaMemcpyDeviceToHost, d->stream) != cudaSuccess ||
        cudaStreamSynchronize(d->stream) != cudaSuccess ||
        cudaMemcpy(stats, d->stats, sizeof stats, cudaMemcpyDeviceToHost) != cudaSuccess) {
        free(values);
        return fail(e, "the GPU failed: %s", cudaGetErrorString(cudaGetLastError()));
    }
    for (int u = 0; u < r->layout->count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(&r->mesh->shape, id);
            if (p.unit == r->layout->units[u].kind && r->layout->units[u].rate[id] > 0)
                verify_row(v, p.hf, unit_layer(r->layout, u),
                    roundings_of_gradient(r->mesh->shape.L, unit_layer(r->layout, u)), gradient(c, u, id),
                    values + r->layout->units[u].offset + r->layout->within[id], parameter_elements(&p));
        }
    for (int64_t i = 0; i < c->layout->elements; i++)
        square += (double)c->state[STATE_GRADIENTS][i] * (double)c->state[STATE_GRADIENTS][i];
    printf("loss  GPU %.6f  CPU %.6f\nnorm  GPU %.6f  CPU %.6f\n",
        stats[STAT_ALL_LOSS] / (double)batch->valid, c->loss_sum / (double)batch->valid,
        sqrt(stats[STAT_ALL_SQUARE]), sqrt(square));
    free(values);
    return 0;
}

// Device.verify: makes a CPU trainer of the same model and data, compares with it, and fails if a tensor has
// more error than roundings explain.
static int gpu_verify(gpt2_sp* g) {
    gpt2_sp_options o = g->options;
    Verification v;
    memset(&v, 0, sizeof v);
    if (gpu_enter(&g->ranks[0]) != 0) return g->error = g->ranks[0].error, -1;
    o.out[0] = o.products[0] = 0, o.recompute = GPT2_SP_NONE;
    o.verify = o.profile = o.attention = 0, o.init_from[0] = 0;
    o.grow = GPT2_SP_TILE, o.lr_scale_new = 1;   // nothing is updated
    o.trace[0] = 0, o.transport = GPT2_SP_AUTO;
    o.logits_chunk = 1024;
    gpt2_sp* cpu = trainer_new(&o);
    if (!cpu) return fail(&g->error, "out of memory");
    cpu->device = &CPU_DEVICE;
    int status = trainer_create(cpu);
    if (status != 0) g->error = cpu->error;
    else status = gpu_verify_run(g, cpu, &v);
    gpt2_sp_destroy(cpu);
    if (status != 0) return -1;
    printf("%d tensors compared, the worst error %.3e; closest to its limit, at %.2f of it: %s\n", v.rows,
        v.worst, v.share, v.what);
    return v.wrong ? fail(&g->error, "--verify: %d of %d tensors are too far from the reference; %s", v.wrong,
                         v.rows, v.what)
                   : 0;
}

#ifdef GPT2_SP_NCCL
enum { GPU_PROCESSES = 1 };
#else
enum { GPU_PROCESSES = 0 };
#endif
// All that the .c knows of this file.
const Device GPU_DEVICE = {
    gpu_check,             // check
    gpu_plan,              // plan
    gpu_memory,            // memory
    gpu_allocate,          // allocate
    gpu_release,           // release
    gpu_init,              // init
    gpu_load,              // load
    gpu_save,              // save
    gpu_step,              // step
    gpu_gradients,         // gradients
    gpu_numbers_read,      // numbers_read
    gpu_numbers_set,       // numbers_set
    gpu_evaluation_pass,   // pass
    gpu_decoder_open,      // decoder_open
    gpu_decoder_read,      // decoder_read
    gpu_decoder_close,     // decoder_close
    gpu_verify,            // verify
    gpu_rates,             // rates
    {2, 2, 4, 2, 4, 4},    // item_bytes: item_size of each kind's first tensor
    gpu_count,             // count
    GPU_PROCESSES,         // processes
};

// ===== 15. commands and main ====================================================================

#ifndef GPT2_SP_GPU_NO_MAIN
int main(int argc, char** argv) { return program(argc, argv); }
#endif
