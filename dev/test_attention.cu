/* Correctness of the attention kernels of train_gpt2_sp.cu against an fp64 oracle: test_attention [quick]
   Head sizes 64 and 128 with the kernels chosen for this GPU, with the portable ones, and with both by turns (a carry of one is read by the other);
   the other head sizes with the portable ones. Which of them ran is tested too. Every output is poisoned first, guards after each buffer must
   survive, a NaN fails. Bound: the rms error is at most 2 x, the largest 3 x that of a plain bf16 implementation (P, dS and results rounded to bf16,
   everything else exact) on the same inputs; the largest hangs on how single numbers happen to round. */
#ifndef ATTENTION_TEST_NO_MAIN   // test_gpt2_sp.c includes this file after the program, inside a namespace
#define GPT2_SP_GPU_NO_MAIN
#include "../train_gpt2_sp.cu"
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>
using namespace attn;
#define CK(x) \
    do { \
        cudaError_t e_ = (x); \
        if (e_ != cudaSuccess) { \
            printf("FATAL %s: %s (line %d)\n", #x, cudaGetErrorString(e_), __LINE__); \
            exit(2); \
        } \
    } while (0)

// ---------------------------------------------------------------- oracle: one thread block per row, fp64
// throughout
struct Ora {
    AttnShape s;
    AttnView q, k, v, dout;
    double *o, *lse;             // (B, NH, Tq, HS), (B, NH, Tq): exact
    int plain;                   // 1: the plain bf16 implementation
    float *out, *dq, *dk, *dv;   // (B, NH, T, HS)
    double* delta;
};
__device__ double ld(const AttnView& v, int b, int h, int64_t t, int d) {
    return (double)__bfloat162float(((const bf16*)v.p)[b * v.batch + h * v.head + t * v.token + d]);
}
__device__ double rnd(double x, int on) {
    return on ? (double)__bfloat162float(__float2bfloat16((float)x)) : x;
}
__device__ bool visible(const AttnShape& s, int b, int i, int j) {
    if (s.causal && s.k_pos + j > s.q_pos + i) return false;
    return !s.doc_start || s.k_pos + j >= s.doc_start[b * s.doc_batch + i];
}
__device__ double dot(const AttnView& x, const AttnView& y, int HS, int b, int h, int i, int j) {
    double a = 0;
    for (int d = 0; d < HS; d++) a += ld(x, b, h, i, d) * ld(y, b, h, j, d);
    return a;
}
__device__ double reduce(double x, int op) {
    __shared__ double r[128];
    __syncthreads();
    r[threadIdx.x] = x;
    __syncthreads();
    for (int n = 64; n; n >>= 1) {
        if (threadIdx.x < n)
            r[threadIdx.x] =
                op ? fmax(r[threadIdx.x], r[threadIdx.x + n]) : r[threadIdx.x] + r[threadIdx.x + n];
        __syncthreads();
    }
    return r[0];
}
__global__ void ora_forward(Ora a) {
    extern __shared__ double p[];
    int i = blockIdx.x, h = blockIdx.y, b = blockIdx.z, t = threadIdx.x;
    int64_t row = ((int64_t)b * a.s.NH + h) * a.s.Tq + i;
    double m = -INFINITY, l = 0;
    for (int j = t; j < a.s.Tk; j += 128)
        p[j] = visible(a.s, b, i, j) ? dot(a.q, a.k, a.s.HS, b, h, i, j) * a.s.scale : -INFINITY,
        m = fmax(m, p[j]);
    m = reduce(m, 1);
    for (int j = t; j < a.s.Tk; j += 128)
        p[j] = m == -INFINITY ? 0 : exp(p[j] - m), l += p[j], p[j] = rnd(p[j], a.plain);
    l = reduce(l, 0);   // as in any online softmax, P is rounded before it is divided by the sum
    if (t < a.s.HS) {
        double x = 0;
        for (int j = 0; j < a.s.Tk; j++)
            if (p[j] != 0) x += p[j] * ld(a.v, b, h, j, t);
        x = l > 0 ? x / l : 0;
        a.out[row * a.s.HS + t] = (float)rnd(x, a.plain);
        if (!a.plain) a.o[row * a.s.HS + t] = x;
    }
    if (t == 0 && !a.plain) a.lse[row] = l > 0 ? m + log(l) : -INFINITY;
}
__global__ void ora_delta(Ora a) {   // exact O, or O rounded to bf16
    int i = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    int64_t row = ((int64_t)b * a.s.NH + h) * a.s.Tq + i;
    double x = 0;
    for (int d = 0; d < a.s.HS; d++) x += ld(a.dout, b, h, i, d) * rnd(a.o[row * a.s.HS + d], a.plain);
    a.delta[row] = x;
}
__device__ void grad(const Ora& a, int b, int h, int i, int j, double& p, double& ds) {
    int64_t row = ((int64_t)b * a.s.NH + h) * a.s.Tq + i;
    if (!visible(a.s, b, i, j)) {
        p = ds = 0;
        return;
    }
    p = exp(dot(a.q, a.k, a.s.HS, b, h, i, j) * a.s.scale - a.lse[row]);
    ds = rnd(p * (dot(a.dout, a.v, a.s.HS, b, h, i, j) - a.delta[row]), a.plain);
    p = rnd(p, a.plain);
}
__global__ void ora_dq(Ora a) {
    extern __shared__ double p[];
    int i = blockIdx.x, h = blockIdx.y, b = blockIdx.z, t = threadIdx.x;
    double x;
    for (int j = t; j < a.s.Tk; j += 128) grad(a, b, h, i, j, x, p[j]);
    __syncthreads();
    if (t >= a.s.HS) return;
    x = 0;
    for (int j = 0; j < a.s.Tk; j++)
        if (p[j] != 0) x += p[j] * ld(a.k, b, h, j, t);
    a.dq[(((int64_t)b * a.s.NH + h) * a.s.Tq + i) * a.s.HS + t] = (float)rnd(x * a.s.scale, a.plain);
}
__global__ void ora_dkv(Ora a) {   // 2 HS threads: one per column of dV, one per column of dK
    extern __shared__ double p[];
    int j = blockIdx.x, h = blockIdx.y, b = blockIdx.z, HS = a.s.HS, t = threadIdx.x % HS,
        value = threadIdx.x < HS;
    double* ds = p + a.s.Tq;
    for (int i = threadIdx.x; i < a.s.Tq; i += blockDim.x) grad(a, b, h, i, j, p[i], ds[i]);
    __syncthreads();
    double x = 0;
    for (int i = 0; i < a.s.Tq; i++) {
        double w = value ? p[i] : ds[i];
        if (w != 0) x += w * ld(value ? a.dout : a.q, b, h, i, t);
    }
    int64_t at = (((int64_t)b * a.s.NH + h) * a.s.Tk + j) * HS + t;
    if (value) a.dv[at] = (float)rnd(x, a.plain);
    else a.dk[at] = (float)rnd(x * a.s.scale, a.plain);
}

// ---------------------------------------------------------------- buffers
static uint64_t seed = 1;
static float uniform() {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (float)(seed >> 40) / 16777216.f;
}
static float normal() { return (uniform() + uniform() + uniform() + uniform() - 2.f) * 1.7320508f; }
static std::vector<void*> owned;
static const size_t GUARD = 4096;
struct Buf {
    void* p;
    size_t bytes;
};
static Buf poisoned(size_t bytes) {   // NaN everywhere, a guard behind
    Buf b = {NULL, bytes};
    CK(cudaMalloc(&b.p, bytes + GUARD));
    CK(cudaMemset(b.p, 0xFF, bytes + GUARD));
    owned.push_back(b.p);
    return b;
}
static int guard_ok(const Buf& b) {
    unsigned char g[GUARD];
    CK(cudaMemcpy(g, (char*)b.p + b.bytes, GUARD, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < GUARD; i++)
        if (g[i] != 0xFF) return 0;
    return 1;
}
static int head_size = 64;     // head size of the case that runs
static int path = ATTN_AUTO;   // its kernels; MIXED: by turns
enum { MIXED = 2 };
static int path_of(int turn) { return path == MIXED ? turn & 1 : path; }
// layout 0 (B,NH,T,HS), 1 (B,T,NH,HS)
static AttnView view_of(void* p, int layout, int NH, int T) {
    AttnView v = {p, head_size, (int64_t)T * head_size, (int64_t)NH * T * head_size};
    if (layout) v.token = NH * head_size, v.head = head_size;
    return v;
}
static AttnView rows_from(AttnView v, int64_t row, int elem) {
    v.p = (char*)v.p + row * v.token * elem;
    return v;
}
static AttnRows rows_from(AttnRows r, int64_t row) {
    r.p += row;
    return r;
}

struct Case {
    const char* name;
    int B, NH, Tq, Tk, q_pos, k_pos, causal, doc, layout, cq, ck;
    float amp, bias;
};
static int passed, failed;
static void verdict(
    int ok, const char* fmt, const char* name, const char* what, double a, double b, double c, double d) {
    printf("%s  ", ok ? "ok  " : "FAIL");
    printf(fmt, name, what, a, b, c, d);
    ok ? passed++ : failed++;
}
static std::vector<float> fetch(const Buf& b, int is_float, size_t n) {
    std::vector<float> f(n);
    if (is_float) CK(cudaMemcpy(f.data(), b.p, n * 4, cudaMemcpyDeviceToHost));
    else {
        std::vector<uint16_t> u(n);
        CK(cudaMemcpy(u.data(), b.p, n * 2, cudaMemcpyDeviceToHost));
        for (size_t i = 0; i < n; i++) {
            uint32_t w = (uint32_t)u[i] << 16;
            memcpy(&f[i], &w, 4);
        }
    }
    return f;
}
static float* alloc_f(size_t n) {
    float* p;
    CK(cudaMalloc(&p, n * 4));
    owned.push_back(p);
    return p;
}
static double* alloc_d(size_t n) {
    double* p;
    CK(cudaMalloc(&p, n * 8));
    owned.push_back(p);
    return p;
}
// compares a tensor in `layout` with the oracle's (B,NH,T,HS)
static void compare(const char* name, const char* what, const Buf& b, int is_float, int layout, int B, int NH,
    int T, float* exact, float* plain) {
    size_t n = (size_t)B * NH * T * head_size;
    std::vector<float> x = fetch(b, is_float, n), e(n), p(n);
    CK(cudaMemcpy(e.data(), exact, n * 4, cudaMemcpyDeviceToHost));
    CK(cudaMemcpy(p.data(), plain, n * 4, cudaMemcpyDeviceToHost));
    double me = 0, mp = 0, se = 0, sp = 0;
    int bad = 0;
    for (int q = 0; q < B; q++)
        for (int h = 0; h < NH; h++)
            for (int t = 0; t < T; t++)
                for (int d = 0; d < head_size; d++) {
                    size_t i = (((size_t)q * NH + h) * T + t) * head_size + d,
                           j = layout ? (((size_t)q * T + t) * NH + h) * head_size + d : i;
                    double a = fabs((double)x[j] - e[i]), c = fabs((double)p[i] - e[i]);
                    if (!(a < 1e30)) bad++;
                    else me = fmax(me, a), se += a * a;
                    mp = fmax(mp, c), sp += c * c;
                }
    se = sqrt(se / n), sp = sqrt(sp / n);
    // where the exact result is 0, dP - delta leaves the rounding of two fp32 sums of head_size products
    int ok = !bad && me <= 3 * mp + 1e-6 && se <= 2 * sp + head_size * 4e-9 && guard_ok(b);
    verdict(ok, "%-34s %-4s max %.2e (plain bf16 %.2e) rms %.2e (%.2e)", name, what, me, mp, se, sp);
    if (bad) printf("  %d NaN or missing", bad);
    if (!guard_ok(b)) printf("  guard overwritten");
    printf("\n");
}

static void run_case(const Case& c) {
    const int B = c.B, NH = c.NH, Tq = c.Tq, Tk = c.Tk;
    seed = 12345 + Tq * 7 + Tk;
    size_t nq = (size_t)B * NH * Tq * head_size, nk = (size_t)B * NH * Tk * head_size,
           nr = (size_t)B * NH * Tq;
    auto make = [&](size_t n, float amp, float bias) {
        std::vector<uint16_t> h(n);
        for (size_t i = 0; i < n; i++) {
            __nv_bfloat16 x = __float2bfloat16(normal() * amp + bias);
            memcpy(&h[i], &x, 2);
        }
        Buf b = poisoned(n * 2);
        CK(cudaMemcpy(b.p, h.data(), n * 2, cudaMemcpyHostToDevice));
        return b;
    };
    Buf q = make(nq, c.amp, c.bias), k = make(nk, c.amp, -c.bias), v = make(nk, 1.f, 0.f),
        dout = make(nq, 1.f, 0.f);
    int* doc = NULL;
    if (c.doc) {   // documents of random length around c.doc, their edges on and beside tile edges too
        std::vector<int> d((size_t)B * Tq);
        for (int b = 0; b < B; b++) {
            int start = c.q_pos, next = c.q_pos + 1 + (int)(uniform() * c.doc);
            if (c.doc > 1000) start = -1 << 20;
            for (int i = 0; i < Tq; i++) {
                while (c.q_pos + i >= next) {
                    start = next, next += 1 + (int)(uniform() * 2 * c.doc);
                    if (uniform() < .3f) next = (next + 127) / 128 * 128 + (int)(uniform() * 3) - 1;
                    if (next <= start) next = start + 1;
                }
                d[(size_t)b * Tq + i] = start;
            }
        }
        CK(cudaMalloc(&doc, d.size() * 4));
        owned.push_back(doc);
        CK(cudaMemcpy(doc, d.data(), d.size() * 4, cudaMemcpyHostToDevice));
    }
    Ora a;
    const float scale = 1.f / sqrtf((float)head_size);
    a.s = {B, NH, Tq, Tk, c.q_pos, c.k_pos, c.causal, scale, doc, Tq, head_size, ATTN_AUTO};
    a.q = view_of(q.p, c.layout, NH, Tq), a.k = view_of(k.p, c.layout, NH, Tk),
    a.v = view_of(v.p, c.layout, NH, Tk), a.dout = view_of(dout.p, c.layout, NH, Tq);
    a.o = alloc_d(nq), a.lse = alloc_d(nr), a.delta = alloc_d(nr);
    float* res[2][4];
    size_t sm = (size_t)(2 * Tq > Tk ? 2 * Tq : Tk) * 8;
    CK(cudaFuncSetAttribute(ora_forward, cudaFuncAttributeMaxDynamicSharedMemorySize, 200000));
    CK(cudaFuncSetAttribute(ora_dq, cudaFuncAttributeMaxDynamicSharedMemorySize, 200000));
    CK(cudaFuncSetAttribute(ora_dkv, cudaFuncAttributeMaxDynamicSharedMemorySize, 200000));
    for (int plain = 0; plain < 2; plain++) {
        a.plain = plain;
        a.out = res[plain][0] = alloc_f(nq), a.dq = res[plain][1] = alloc_f(nq),
        a.dk = res[plain][2] = alloc_f(nk), a.dv = res[plain][3] = alloc_f(nk);
        ora_forward<<<dim3(Tq, NH, B), 128, sm>>>(a);
        ora_delta<<<dim3(Tq, NH, B), 1>>>(a);
        ora_dq<<<dim3(Tq, NH, B), 128, sm>>>(a);
        ora_dkv<<<dim3(Tk, NH, B), 2 * head_size, sm>>>(a);
        CK(cudaGetLastError());
    }
    CK(cudaDeviceSynchronize());

    // forward: every chunk of queries over all chunks of keys, last to first, carried in fp32
    Buf o = poisoned(nq * 2), lse = poisoned(nr * 4), acc = poisoned(nq * 4), m = poisoned(nr * 4),
        l = poisoned(nr * 4), work = poisoned(1 << 20);
    CK(cudaMemset(work.p, 0, 8));
    auto cut = [](int T, int n, int i) {
        return i == n
            ? T
            : (int)((int64_t)T * i / n) / (n > 3 ? 1 : 8) * (n > 3 ? 1 : 8) + (i > 0 && n == 2 ? 3 : 0);
    };
    AttnRows rl = {(float*)lse.p, Tq, (int64_t)NH * Tq}, rm = {(float*)m.p, Tq, (int64_t)NH * Tq},
             rs = {(float*)l.p, Tq, (int64_t)NH * Tq};
    for (int i = 0; i < c.cq; i++)
        for (int j = c.ck - 1; j >= 0; j--) {
            int q0 = cut(Tq, c.cq, i), q1 = cut(Tq, c.cq, i + 1), k0 = cut(Tk, c.ck, j),
                k1 = cut(Tk, c.ck, j + 1);
            AttnForward f;
            memset(&f, 0, sizeof f);
            f.s = a.s, f.s.Tq = q1 - q0, f.s.Tk = k1 - k0, f.s.q_pos += q0, f.s.k_pos += k0,
            f.s.path = path_of(i + j);
            if (doc) f.s.doc_start = doc + q0;
            f.q = rows_from(a.q, q0, 2), f.k = rows_from(a.k, k0, 2), f.v = rows_from(a.v, k0, 2);
            f.carry_in = j != c.ck - 1, f.carry_out = j != 0;
            if (c.ck > 1)
                f.acc = rows_from(view_of(acc.p, c.layout, NH, Tq), q0, 4), f.m = rows_from(rm, q0),
                f.l = rows_from(rs, q0);
            if (j == 0) f.o = rows_from(view_of(o.p, c.layout, NH, Tq), q0, 2), f.lse = rows_from(rl, q0);
            f.work = (int*)work.p;
            CK(attention_forward(f, 0));
        }
    CK(cudaDeviceSynchronize());
    compare(c.name, "O", o, 0, c.layout, B, NH, Tq, res[0][0], res[1][0]);
    std::vector<float> got = fetch(lse, 1, nr);
    std::vector<double> want(nr);
    CK(cudaMemcpy(want.data(), a.lse, nr * 8, cudaMemcpyDeviceToHost));
    const double lse_tol = 1e-4;
    double worst = 0;
    int bad = 0, empty = 0;
    for (size_t i = 0; i < nr; i++) {
        if (want[i] == -INFINITY) {
            empty++;
            bad += !(got[i] == -INFINITY);
            continue;
        }
        double e = fabs(got[i] - want[i]) / fmax(1., fabs(want[i]));
        if (!(e < 1e30)) bad++;
        else worst = fmax(worst, e);
    }
    verdict(!bad && worst <= lse_tol && guard_ok(lse) && guard_ok(acc) && guard_ok(m) && guard_ok(l),
        "%-34s %-4s max %.2e (bound %.0e), %.0f rows see nothing, %.0f wrong\n", c.name, "lse", worst,
        lse_tol, empty, bad);
    if (c.ck > 1 && c.cq == 1) {   // the same from separate carries, merged
        Buf acc2 = poisoned(nq * 4), m2 = poisoned(nr * 4), l2 = poisoned(nr * 4), lse2 = poisoned(nr * 4);
        AttnRows rm2 = {(float*)m2.p, Tq, (int64_t)NH * Tq}, rs2 = {(float*)l2.p, Tq, (int64_t)NH * Tq},
                 rl2 = {(float*)lse2.p, Tq, (int64_t)NH * Tq};
        AttnView va = view_of(acc.p, c.layout, NH, Tq), va2 = view_of(acc2.p, c.layout, NH, Tq),
                 none = {NULL, 0, 0, 0};
        AttnCarry carry = {va, rm, rs}, carry2 = {va2, rm2, rs2}, nothing = {none, rm2, rs2};
        CK(cudaMemset(o.p, 0xFF, o.bytes));
        for (int j = 0; j < c.ck; j++) {
            int k0 = cut(Tk, c.ck, j), k1 = cut(Tk, c.ck, j + 1);
            AttnForward f;
            memset(&f, 0, sizeof f);
            f.s = a.s, f.s.Tk = k1 - k0, f.s.k_pos += k0, f.s.path = path_of(j), f.q = a.q,
            f.k = rows_from(a.k, k0, 2), f.v = rows_from(a.v, k0, 2), f.carry_out = 1;
            f.acc = j ? va2 : va, f.m = j ? rm2 : rm, f.l = j ? rs2 : rs, f.work = (int*)work.p;
            CK(attention_forward(f, 0));
            if (j) CK(attention_merge(carry, carry2, none, rl2, B, NH, Tq, 0, head_size));
        }
        CK(attention_merge(carry, nothing, view_of(o.p, c.layout, NH, Tq), rl2, B, NH, Tq, 0, head_size));
        CK(cudaDeviceSynchronize());
        compare(c.name, "Omrg", o, 0, c.layout, B, NH, Tq, res[0][0], res[1][0]);
        std::vector<float> x = fetch(lse, 1, nr), y = fetch(lse2, 1, nr);
        double w = 0;
        for (size_t i = 0; i < nr; i++)
            if (!(x[i] == y[i]))
                w = fmax(w, fabs((double)x[i] - y[i]) < 1e30 ? fabs((double)x[i] - y[i]) : 1e30);
        verdict(w <= 1e-4, "%-34s %-4s merged and carried differ by %.2e\n", c.name, "lse", w, 0, 0, 0);
    }
    {
        // backward: all pairs of chunks, twice in the deterministic mode; dK, dV once more as bf16 if in one
        // piece
        Buf dq = poisoned(nq * 4), dqb = poisoned(nq * 2), dk = poisoned(nk * 4), dv = poisoned(nk * 4),
            delta = poisoned(nr * 4);
        AttnRows rd = {(float*)delta.p, Tq, (int64_t)NH * Tq};
        CK(attention_delta(a.dout, view_of(o.p, c.layout, NH, Tq), rd, B, NH, Tq, 0, head_size));
        std::vector<float> first, second;
        for (int mode = 0; mode < 3 + (c.cq * c.ck == 1); mode++) {
            int b16 = mode == 3;
            if (b16) dk = poisoned(nk * 2), dv = poisoned(nk * 2);
            for (Buf* b : {&dq, &dqb, &dk, &dv}) CK(cudaMemset(b->p, 0xFF, b->bytes));
            for (int i = 0; i < c.cq; i++)
                for (int j = c.ck - 1; j >= 0; j--) {
                    int q0 = cut(Tq, c.cq, i), q1 = cut(Tq, c.cq, i + 1), k0 = cut(Tk, c.ck, j),
                        k1 = cut(Tk, c.ck, j + 1);
                    AttnBackward f;
                    memset(&f, 0, sizeof f);
                    f.s = a.s, f.s.Tq = q1 - q0, f.s.Tk = k1 - k0, f.s.q_pos += q0, f.s.k_pos += k0,
                    f.s.path = path_of(i + j);
                    if (doc) f.s.doc_start = doc + q0;
                    f.q = rows_from(a.q, q0, 2), f.k = rows_from(a.k, k0, 2), f.v = rows_from(a.v, k0, 2),
                    f.dout = rows_from(a.dout, q0, 2);
                    f.lse = rows_from(rl, q0), f.delta = rows_from(rd, q0);
                    f.dq = rows_from(view_of(dq.p, c.layout, NH, Tq), q0, 4);
                    f.dk = rows_from(view_of(dk.p, c.layout, NH, Tk), k0, b16 ? 2 : 4),
                    f.dv = rows_from(view_of(dv.p, c.layout, NH, Tk), k0, b16 ? 2 : 4);
                    f.dkv_bf16 = b16, f.accumulate_dq = j != c.ck - 1, f.accumulate_dkv = i != 0;
                    f.deterministic = mode == 1 || mode == 2;
                    f.work = (int*)work.p;
                    CK(attention_backward(f, 0));
                }
            CK(attention_dq_finish(view_of(dq.p, c.layout, NH, Tq), view_of(dqb.p, c.layout, NH, Tq), scale,
                B, NH, Tq, 0, head_size));
            CK(cudaDeviceSynchronize());
            const char* tag[] = {"", "+det", "", "bf16"};
            if (mode != 2) {
                char what[3][8];
                snprintf(what[0], 8, "dQ%s", tag[mode]), snprintf(what[1], 8, "dK%s", tag[mode]),
                    snprintf(what[2], 8, "dV%s", tag[mode]);
                compare(c.name, what[0], dqb, 0, c.layout, B, NH, Tq, res[0][1], res[1][1]);
                compare(c.name, what[1], dk, !b16, c.layout, B, NH, Tk, res[0][2], res[1][2]);
                compare(c.name, what[2], dv, !b16, c.layout, B, NH, Tk, res[0][3], res[1][3]);
            }
            if (mode == 1) first = fetch(dq, 1, nq);
            if (mode == 2)
                second = fetch(dq, 1, nq),
                verdict(!memcmp(first.data(), second.data(), nq * 4) && guard_ok(dq),
                    "%-34s %-4s two deterministic runs give the same bits\n", c.name, "dQ", 0, 0, 0, 0);
        }
    }
    for (void* p : owned) cudaFree(p);
    owned.clear();
}

// Which kernels run: those of sm_90a take their tiles by counters in `work`, find no tile once the counters
// are past the last one, and leave what was there; the portable ones have no such counters.
static void run_which() {
    const int T = 64;
    const size_t n = (size_t)T * head_size;
    auto zeros = [&](size_t bytes) {
        Buf b = poisoned(bytes);
        CK(cudaMemset(b.p, 0, bytes));
        return b;
    };
    Buf x = zeros(n * 2), rows = zeros(T * 4), dq = zeros(n * 4), o = poisoned(n * 2), dk = poisoned(n * 4),
        dv = poisoned(n * 4), work = zeros(1 << 20);
    const int past[2] = {1 << 20, 1 << 20};
    CK(cudaMemcpy(work.p, past, sizeof past, cudaMemcpyHostToDevice));
    AttnForward f = {};
    f.s = {1, 1, T, T, 0, 0, 1, 0.125f, NULL, 0, head_size, path};
    f.q = f.k = f.v = view_of(x.p, 0, 1, T), f.o = view_of(o.p, 0, 1, T), f.work = (int*)work.p;
    CK(attention_forward(f, 0));
    AttnBackward g = {};
    g.s = f.s, g.q = g.k = g.v = g.dout = f.q, g.lse = g.delta = {(float*)rows.p, T, T}, g.work = f.work;
    g.dq = view_of(dq.p, 0, 1, T), g.dk = view_of(dk.p, 0, 1, T), g.dv = view_of(dv.p, 0, 1, T);
    CK(attention_backward(g, 0));
    CK(cudaDeviceSynchronize());
    AttnDevice device;
    CK(attn_device(&device));
    const int left = isnan(fetch(o, 0, n)[0]) + isnan(fetch(dk, 1, n)[0]),
              want = ATTN_HOPPER && device.major == 9 && path == ATTN_AUTO &&
            (head_size == 64 || head_size == 128)
        ? 2
        : 0;
    verdict(left == want, "%-34s %-4s %.0f of forward and backward ran the kernels of sm_90a, %.0f should\n",
        "64x64", "path", left, want, 0, 0);
    for (void* p : owned) cudaFree(p);
    owned.clear();
}

// NaN of either sign in one query and one key row: everything still ends, and reaches exactly the rows that
// see it.
static void run_nan() {
    const int T = 700, NH = 1, qrow = 300, krow = 500;
    size_t n = (size_t)T * head_size;
    std::vector<uint16_t> h(n);
    auto make = [&](int row, uint16_t bad) {
        for (size_t i = 0; i < n; i++) {
            __nv_bfloat16 x = __float2bfloat16(normal());
            memcpy(&h[i], &x, 2);
        }
        if (row >= 0) h[(size_t)row * head_size + 7] = bad;
        Buf b = poisoned(n * 2);
        CK(cudaMemcpy(b.p, h.data(), n * 2, cudaMemcpyHostToDevice));
        return b;
    };
    Buf q = make(qrow, 0xFFC0), k = make(krow, 0x7FC0), v = make(-1, 0), dout = make(-1, 0),
        o = poisoned(n * 2), lse = poisoned(T * 4), delta = poisoned(T * 4);
    Buf dq = poisoned(n * 4), dk = poisoned(n * 4), dv = poisoned(n * 4), work = poisoned(1 << 20);
    CK(cudaMemset(work.p, 0, 8));
    AttnForward f;
    memset(&f, 0, sizeof f);
    f.s = {1, NH, T, T, 0, 0, 1, 0.125f, NULL, 0, head_size, path_of(1)};
    f.q = view_of(q.p, 0, NH, T), f.k = view_of(k.p, 0, NH, T), f.v = view_of(v.p, 0, NH, T),
    f.o = view_of(o.p, 0, NH, T);
    f.lse = {(float*)lse.p, T, T}, f.work = (int*)work.p;
    CK(attention_forward(f, 0));
    AttnBackward g;
    memset(&g, 0, sizeof g);
    g.s = f.s, g.q = f.q, g.k = f.k, g.v = f.v, g.dout = view_of(dout.p, 0, NH, T), g.lse = f.lse,
    g.delta = {(float*)delta.p, T, T};
    g.dq = view_of(dq.p, 0, NH, T), g.dk = view_of(dk.p, 0, NH, T), g.dv = view_of(dv.p, 0, NH, T),
    g.work = f.work;
    CK(attention_delta(g.dout, f.o, g.delta, 1, NH, T, 0, head_size));
    CK(attention_backward(g, 0));
    CK(cudaDeviceSynchronize());
    std::vector<float> x = fetch(o, 0, n), y = fetch(dq, 1, n);
    int wrong = 0;
    for (int r = 0; r < T; r++)
        for (int d = 0; d < head_size; d++) {
            bool sees = r == qrow || r >= krow;
            wrong += isnan(x[r * head_size + d]) != sees;
            wrong += sees ? !isnan(y[r * head_size + d])
                          : r < krow / 128 * 128 &&
                    isnan(y[r * head_size + d]);   // beside the NaN key, 0 x NaN in the product dS K
        }
    verdict(!wrong, "%-34s %-4s NaN where a row sees one and not in tiles that hold none, %.0f wrong\n",
        "700x700 with NaN", "O,dQ", wrong, 0, 0, 0);
    for (void* p : owned) cudaFree(p);
    owned.clear();
}

static int attention_tests(int argc, char** argv) {
    const int quick = argc > 1 && !strcmp(argv[1], "quick");   // small cases only, for compute-sanitizer
    const Case cases[] = {
        // name                      B NH  Tq   Tk  qpos kpos causal doc lay cq ck amp bias
        {"1x1", 1, 1, 1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0},
        {"5x3 no mask", 2, 3, 5, 3, 0, 0, 0, 0, 1, 1, 1, 1, 0},
        {"64x64", 1, 2, 64, 64, 0, 0, 1, 0, 0, 1, 1, 1, 0},
        {"127x129", 1, 2, 127, 129, 2, 0, 1, 0, 1, 1, 1, 1, 0},
        {"128x128", 2, 2, 128, 128, 0, 0, 1, 0, 1, 1, 1, 1, 0},
        {"191x193 no mask", 1, 3, 191, 193, 0, 0, 0, 0, 0, 1, 1, 1, 0},
        {"192x256 bottom right", 1, 3, 192, 256, 64, 0, 1, 0, 1, 1, 1, 1, 0},
        {"193x255", 2, 1, 193, 255, 62, 0, 1, 0, 0, 1, 1, 1, 0},
        {"1000x1000", 2, 3, 1000, 1000, 0, 0, 1, 0, 1, 1, 1, 1, 0},
        {"1537x1537 sharp", 1, 2, 1537, 1537, 0, 0, 1, 0, 1, 1, 1, 3, 0},
        {"1000x1000 scores near -130", 1, 2, 1000, 1000, 0, 0, 1, 0, 1, 1, 1, 1, 4},
        {"191x193 no mask, scores near -130", 2, 3, 191, 193, 0, 0, 0, 0, 0, 1, 1, 1, 4},
        {"300x400 far", 1, 2, 300, 400, 500, 0, 1, 0, 0, 1, 1, 1, 0},
        {"400x300 keys later", 1, 2, 400, 300, 0, 100, 1, 0, 1, 1, 1, 1, 0},
        {"200x300 all masked", 1, 2, 200, 300, 0, 1000, 1, 0, 1, 1, 1, 1, 0},
        {"769x769 documents", 2, 2, 769, 769, 0, 0, 1, 100, 1, 1, 1, 1, 0},
        {"1300x1300 long documents", 1, 2, 1300, 1300, 0, 0, 1, 400, 0, 1, 1, 1, 0},
        {"700x900 documents, offset", 1, 2, 700, 900, 333, 100, 1, 150, 1, 1, 1, 1, 0},
        {"500x600 documents, not causal", 1, 2, 500, 600, 100, 0, 0, 90, 1, 1, 1, 1, 0},
        {"1000x1000 in 2x2 chunks", 1, 2, 1000, 1000, 0, 0, 1, 0, 1, 2, 2, 1, 0},
        {"1000x1000 in 1x3 chunks sharp", 2, 2, 1000, 1000, 0, 0, 1, 0, 0, 1, 3, 3, 0},
        {"600x900 in 1x4 chunks, keys later", 1, 2, 600, 900, 100, 0, 1, 0, 1, 1, 4, 1, 0},
        {"777x777 in 4x5 chunks, documents", 1, 2, 777, 777, 0, 0, 1, 200, 1, 4, 5, 1, 0},
    };
    const struct {
        int head_size, path;
        const char* name;
    } kinds[] = {{64, ATTN_AUTO, "the kernels for this GPU"}, {64, ATTN_PORTABLE, "portable"},
        {64, MIXED, "by turns"}, {32, ATTN_PORTABLE, "portable"}, {48, ATTN_PORTABLE, "portable"},
        {80, ATTN_PORTABLE, "portable"}, {96, ATTN_PORTABLE, "portable"}, {112, ATTN_PORTABLE, "portable"},
        {128, ATTN_AUTO, "the kernels for this GPU"}, {128, ATTN_PORTABLE, "portable"},
        {128, MIXED, "by turns"}};
    for (const auto& kind : kinds) {
        head_size = kind.head_size, path = kind.path;
        printf("head size %d, %s\n", head_size, kind.name);
        for (const Case& c : cases)
            if ((!quick || c.Tq * c.Tk <= 320 * 400) && (path != MIXED || c.cq * c.ck > 1)) run_case(c);
        if (path != MIXED) run_which(), run_nan();
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
#ifndef ATTENTION_TEST_NO_MAIN
int main(int argc, char** argv) { return attention_tests(argc, argv); }
#endif
