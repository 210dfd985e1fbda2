/* `make bench-schedules`: all schedules side by side, projected from the times of their ops on one GPU.
       bench_schedules [--quick] [--link-gbs 370] [--latency-us 3] [--heads 12] [--json FILE]
   For GPT-2 124M's attention (heads of 64, one sequence of T = 8k, 32k, 128k tokens, P = 2, 4, 8 ranks) every different op of
   a table is timed alone: its rows, heads, causal or whole, with operands and sums as the executor (gpu_op) has them, own
   or in a slot, carried in and out. So is every addition of a result that comes home. Then the table is played by the clock
   (schedule_play): a rank computes while its messages travel, waits for those that are late, and adds. A tensor of a message
   takes the latency and its bytes at the link's rate; both defaults are those of copies between two H200s by NVLink. Left out:
   packing of parts of rows, what ops gain that run side by side, and whatever the ops of a rank would lose to the copies of
   its neighbours. One GPU's time, a single launch for the whole sequence, divided by P is the ideal. Times are medians over
   batches of calls; random data; the GPU is otherwise idle. */
#include "bench_gpu.h"
#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

enum { HEAD = 64 };
static int NH = 12;
static const int LENGTHS[] = {8192, 32768, 131072}, RANKS[] = {2, 4, 8};

// One sequence's tensors, of which an op takes as many rows and heads as it needs: queries and sums from the
// front, keys from row 0 or, if they are others, the queries from the row behind the keys.
static bf16 *qkv, *dout, *out;          // (T, 3C), (T, C), (T, C)
static float *acc, *dq, *dkv, *other;   // (T, C), (T, C), (2, T, C), (T, C): a result that has arrived
static float *m, *l, *lse, *delta;      // (NH, T)
static int* work;

__global__ void fill_float(float* p, int64_t n, float value) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        p[i] = value;
}

static void memory_take(int64_t T) {
    const int64_t C = NH * HEAD;
    AttnShape whole = {1, NH, (int)T, (int)T, 0, 0, 1, 0.125f, NULL, 0};
    const size_t work_bytes = attn::attention_backward_work(whole);
    CHECK(cudaMalloc(&qkv, T * 3 * C * 2));
    for (bf16** p : {&dout, &out}) CHECK(cudaMalloc(p, T * C * 2));
    for (float** p : {&acc, &dq, &other}) CHECK(cudaMalloc(p, T * C * 4));
    CHECK(cudaMalloc(&dkv, T * 2 * C * 4));
    for (float** p : {&m, &l, &lse, &delta}) CHECK(cudaMalloc(p, NH * T * 4));
    CHECK(cudaMalloc(&work, work_bytes));
    CHECK(cudaMemset(work, 0, work_bytes));
    fill<<<1024, 256>>>(qkv, T * 3 * C, 1);
    fill<<<1024, 256>>>(dout, T * C, 0x9E3779B9u);
    for (float* p : {acc, dq, other}) fill_float<<<1024, 256>>>(p, T * C, 0);
    fill_float<<<1024, 256>>>(dkv, T * 2 * C, 0);
    for (float* p : {m, delta}) fill_float<<<1024, 256>>>(p, NH * T, 0);
    fill_float<<<1024, 256>>>(l, NH * T, 1);
    fill_float<<<1024, 256>>>(lse, NH * T, logf((float)T));   // so that no probability overflows
    CHECK(cudaDeviceSynchronize());
}

// Seconds of a call: median over batches of calls, each behind one that keeps the GPU busy while the host
// enqueues them.
template <typename Call> static double median_seconds(Call call) {
    enum { BATCHES = 7 };
    cudaEvent_t from, to;
    float ms = 0;
    int count = 1;
    std::vector<float> times;
    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    for (int i = -2; i < BATCHES; i++) {
        call();
        CHECK(cudaEventRecord(from));
        for (int j = 0; j < count; j++) call();
        CHECK(cudaEventRecord(to));
        CHECK(cudaEventSynchronize(to));
        CHECK(cudaEventElapsedTime(&ms, from, to));
        if (i >= 0) times.push_back(ms / count);
        else
            count =
                std::max(1, std::min(32, (int)(1 / (ms / count + 1e-6f))));   // about a millisecond a batch
    }
    CHECK(cudaEventDestroy(from));
    CHECK(cudaEventDestroy(to));
    std::sort(times.begin(), times.end());
    return 1e-3 * times[BATCHES / 2];
}

// What an op's time depends on.
typedef struct {
    int backward, heads, q_rows, k_rows, diagonal;
    int q_own, k_own;   // operands and sums are the rank's own: parts of wider rows
    int add_q, add_k;   // it adds to its queries' sums (forward: carry in), to its keys'
    int last;   // forward: writes the output, no carry out; backward: all keys' gradients at once, in bf16
} Op;

static AttnView view(void* p, int64_t token, int rows) {
    AttnView v = {p, token, HEAD, token * rows};
    return v;
}
static AttnRows statistics(float* p, int heads, int rows) {
    AttnRows v = {p, rows, (int64_t)heads * rows};
    return v;
}

static double op_time(const Op& o) {
    const int64_t C = NH * HEAD, wide = o.q_own ? C : o.heads * HEAD, k_wide = o.k_own ? C : o.heads * HEAD;
    const int64_t q_token = o.q_own ? 3 * C : wide, k_token = o.k_own ? 3 * C : k_wide;
    const int n = o.q_rows, k = o.k_rows, at = o.diagonal ? 0 : k;
    AttnForward f = {};
    f.s = {1, o.heads, n, k, at, 0, 1, 0.125f, NULL, 0};
    f.work = work, f.q = view(qkv + at * q_token, q_token, n);
    f.k = view(qkv + (o.k_own ? C : 0), k_token, k),
    f.v = view(qkv + (o.k_own ? 2 * C : k * k_wide), k_token, k);
    if (!o.backward) {
        f.carry_in = o.add_q, f.carry_out = !o.last, f.acc = view(acc, wide, n);
        f.m = statistics(m, o.heads, n), f.l = statistics(l, o.heads, n);
        if (o.last) f.o = view(out, C, n), f.lse = statistics(other, o.heads, n);
        return median_seconds([&] { CHECK(attn::attention_forward(f, 0)); });
    }
    AttnBackward g = {};
    g.s = f.s, g.work = work, g.q = f.q, g.k = f.k, g.v = f.v, g.dout = view(dout, wide, n),
    g.dq = view(dq, wide, n);
    g.lse = statistics(lse, o.heads, n), g.delta = statistics(delta, o.heads, n);
    g.dkv_bf16 = o.last, g.accumulate_dq = o.add_q, g.accumulate_dkv = o.add_k;
    if (o.last) g.dk = view((bf16*)dkv, k_token, k), g.dv = view((bf16*)dkv + C, k_token, k);
    else g.dk = view(dkv, k_wide, k), g.dv = view(dkv + k * k_wide, k_wide, k);
    return median_seconds([&] { CHECK(attn::attention_backward(g, 0)); });
}

// Adding a result of `rows` x `heads` that has come.
static double merge_time(int kind, int heads, int rows) {
    const int64_t C = NH * HEAD, wide = heads * HEAD;
    if (kind == ITEM_OUT) {
        AttnRows absent = {NULL, 0, 0};
        AttnView none = {NULL, 0, 0, 0};
        AttnCarry sum = {view(acc, C, rows), statistics(m, heads, rows), statistics(l, heads, rows)};
        AttnCarry come = {
            view(other, wide, rows), statistics(delta, heads, rows), statistics(lse, heads, rows)};
        return median_seconds(
            [&] { CHECK(attn::attention_merge(sum, come, none, absent, 1, heads, rows, 0, HEAD)); });
    }
    return median_seconds([&] {
        for (int i = 0; i < item_width(kind); i++)
            rows_add_kernel<<<(unsigned)ceil_div(rows * wide / 4, 256), 256>>>(
                dkv + i * rows * C, C, other, wide, rows, (int)wide);
        CHECK(cudaGetLastError());
    });
}

// Times are kept: many ops of many tables are alike.
typedef std::tuple<int, int, int, int, int, int, int, int, int, int> Key;
static std::map<Key, double> times;
static double op_seconds(const Op& o) {
    Key key(o.backward, o.heads, o.q_rows, o.k_rows, o.diagonal, o.q_own, o.k_own, o.add_q, o.add_k, o.last);
    if (!times.count(key)) times[key] = op_time(o);
    return times[key];
}
static double merge_seconds(int kind, int heads, int rows) {
    Key key(-1, heads, rows, kind, 0, 0, 0, 0, 0, 0);
    if (!times.count(key)) times[key] = merge_time(kind, heads, rows);
    return times[key];
}

static int heads_of(const Schedule* s, int h0, int h1) {
    return (int)(NH * h1 / s->head_parts - NH * h0 / s->head_parts);
}
static int overlap(int a0, int a1, int b0, int b1) { return a0 < b1 && b0 < a1; }

// The op as the executor runs it: whether there is something in the sums before it, and something to come
// after.
static Op op_of(const Schedule* s, int64_t T, int index) {
    const ScheduleOp* op = &s->ops[index];
    int rows = (int)(T / s->chunks), later = 0;
    Op o = {s->backward, heads_of(s, op->h0, op->h1), rows, rows, op->q == op->k, op->q_slot < 0,
        op->kv_slot < 0, 0, 0, 0};
    for (int i = 0; i < s->op_count; i++) {
        const ScheduleOp* other_op = &s->ops[i];
        if (i == index || other_op->rank != op->rank || !overlap(op->h0, op->h1, other_op->h0, other_op->h1))
            continue;
        if (other_op->q == op->q) o.add_q |= i<index, later |= i> index;
        if (other_op->k == op->k) o.add_k |= i < index;
    }
    for (int i = 0; i < s->message_count; i++) {
        const ScheduleMessage* msg = &s->messages[i];
        int mine = msg->to == op->rank && overlap(op->h0, op->h1, msg->item.h0, msg->item.h1);
        if (mine && msg->item.kind == ITEM_OUT && msg->item.of == chunk_owner(s, op->q))
            o.add_q |= msg->step < op->step, later |= msg->step >= op->step;
        if (mine && msg->item.kind == ITEM_DKV && msg->item.of == chunk_owner(s, op->k))
            o.add_k |= msg->step < op->step;
    }
    if (s->backward) o.add_q |= o.q_own;   // the own sums begin at zero
    else o.add_k = 0, o.last = o.q_own && !later;
    return o;
}

typedef struct {
    double seconds[2], bytes, exchange;   // forward, backward; sent per rank in both; of the fullest rank
} Result;

// One direction of a table; bytes sent per rank are added.
static double table_seconds(
    const Mesh* mesh, const Schedule* s, double link_gbs, double latency, double* bytes_sent) {
    const int64_t T = mesh->shape.T;
    std::vector<double> op(s->op_count + 1), message(s->message_count + 1), merge(s->message_count + 1);
    for (int i = 0; i < s->op_count; i++)
        op[i] = heads_of(s, s->ops[i].h0, s->ops[i].h1) ? op_seconds(op_of(s, T, i)) : 0;
    for (int i = 0; i < s->message_count; i++) {
        const ScheduleMessage* msg = &s->messages[i];
        const int heads = heads_of(s, msg->item.h0, msg->item.h1), rows = (int)(T / s->P);
        double bytes = 0;
        for (int j = 0; j < ITEM_TENSORS[msg->item.kind].count; j++)
            bytes += (double)item_tensor_bytes(mesh, msg->item.kind, j, heads, rows);
        message[i] = latency * ITEM_TENSORS[msg->item.kind].count + bytes / (link_gbs * 1e9),
        *bytes_sent += bytes / s->P;
        if (msg->merge) merge[i] = merge_seconds(msg->item.kind, heads, rows);
    }
    return schedule_play(s, op.data(), message.data(), merge.data());
}

// -1, with a line, where there is no such table.
static int schedule_project(
    Result* r, int kind, int64_t T, int P, double link_gbs, double latency, Error* e) {
    gpt2_sp_options o;
    Schedule schedules[2];
    Mesh mesh;
    Layout layout;
    memset(r, 0, sizeof *r);
    memset(schedules, 0, sizeof schedules);
    memset(&layout, 0, sizeof layout);
    options_default(&o);
    o.layers = 12, o.heads = NH, o.channels = NH * HEAD, o.seq_len = T, o.sp = P, o.schedule = kind;
    int status =
        mesh_init(&mesh, schedules, &o, 50257, 1, &GPU_DEVICE, e) != 0 || layout_init(&layout, &mesh, e) != 0
        ? -1
        : 0;
    for (int rank = 0; status == 0 && rank < P; rank++)
        r->exchange = fmax(r->exchange, (double)gpu_plan(&mesh, &layout, rank).group[MEMORY_EXCHANGE]);
    for (int d = 0; status == 0 && d < 2; d++)
        r->seconds[d] = table_seconds(&mesh, &schedules[d], link_gbs, latency, &r->bytes);
    free(layout.units);
    schedule_free(&schedules[0]);
    schedule_free(&schedules[1]);
    return status;
}

int main(int argc, char** argv) {
    double link_gbs = 370, latency_us = 3;
    int quick = 0, wrong = 0;
    const char* path = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) quick = 1;
        else if (strcmp(argv[i], "--link-gbs") == 0 && i + 1 < argc) link_gbs = atof(argv[++i]);
        else if (strcmp(argv[i], "--latency-us") == 0 && i + 1 < argc) latency_us = atof(argv[++i]);
        else if (strcmp(argv[i], "--heads") == 0 && i + 1 < argc) NH = atoi(argv[++i]);
        else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc) path = argv[++i];
        else wrong = 1;
    }
    if (wrong || link_gbs <= 0 || latency_us < 0 || NH < 1 || NH > 64)
        return fprintf(stderr,
                   "usage: bench_schedules [--quick] [--link-gbs N] [--latency-us N] [--heads N] [--json "
                   "FILE]\n"),
               1;
    FILE* json = path ? fopen(path, "w") : NULL;
    if (path && !json)
        return fprintf(stderr, "bench_schedules: cannot write %s: %s\n", path, strerror(errno)), 1;
    memory_take(LENGTHS[quick ? 1 : 2]);
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    printf("projected from per-op times on one GPU (%s), %d heads of %d; links of %g GB/s each way, %g us "
           "per tensor\n"
           "attention of one layer, ms; ideal: one GPU's time / P; sent and exchange buffers in MiB per "
           "rank, forward and "
           "backward\n",
        device.name, NH, (int)HEAD, link_gbs, latency_us);
    const char* comma = "";
    if (json) fprintf(json, "[");
    for (int t = quick ? 1 : 0; t < (quick ? 2 : 3); t++) {
        const int T = LENGTHS[t];
        Op whole[2] = {{0, NH, T, T, 1, 1, 1, 0, 0, 1},
            {1, NH, T, T, 1, 1, 1, 1, 0, 1}};   // own operands, nothing to add to, one launch
        const double one[2] = {op_seconds(whole[0]), op_seconds(whole[1])};
        printf("\n      T  P  schedule      forward  backward    together  of ideal      sent  exchange\n%7d "
               " 1  %-10s %10.3f "
               "%9.3f %11.3f\n",
            T, "one GPU", 1e3 * one[0], 1e3 * one[1], 1e3 * (one[0] + one[1]));
        for (int P : RANKS)
            for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
                Result r;
                Error e = {0, {0}};
                if (schedule_project(&r, kind, T, P, link_gbs, latency_us * 1e-6, &e) != 0) {
                    printf("%7d %2d  %-10s %s\n", T, P, schedule_name(kind), e.text);
                    continue;
                }
                const double both = r.seconds[0] + r.seconds[1], share = (one[0] + one[1]) / P / both;
                printf("%7d %2d  %-10s %10.3f %9.3f %11.3f %8.1f%% %9.1f %9.1f\n", T, P, schedule_name(kind),
                    1e3 * r.seconds[0], 1e3 * r.seconds[1], 1e3 * both, 100 * share, r.bytes / 1048576,
                    r.exchange / 1048576);
                fflush(stdout);
                if (!json) continue;
                fprintf(json,
                    "%s\n{\"projected\": true, \"seq_len\": %d, \"sp\": %d, \"schedule\": \"%s\", "
                    "\"forward_ms\": %.6g, "
                    "\"backward_ms\": %.6g, "
                    "\"one_gpu_forward_ms\": %.6g, \"one_gpu_backward_ms\": %.6g, \"share_of_ideal\": %.6g, "
                    "\"sent_bytes\": "
                    "%.0f, "
                    "\"exchange_bytes\": %.0f, \"link_gbs\": %g, \"latency_us\": %g, \"heads\": %d}",
                    comma, T, P, schedule_name(kind), 1e3 * r.seconds[0], 1e3 * r.seconds[1], 1e3 * one[0],
                    1e3 * one[1], share, r.bytes, r.exchange, link_gbs, latency_us, NH);
                comma = ",";
            }
    }
    CHECK(cudaDeviceSynchronize());
    if (json && (fprintf(json, "\n]\n") < 0 || fclose(json) != 0))
        return fprintf(stderr, "bench_schedules: cannot write %s\n", path), 1;
    return 0;
}
