/* The tests of the GPU program: a leaf of test_gpt2_sp.c, built by nvcc with GPT2_SP_GPU (`make test-gpu`).
 *
 * Kernels. Each runs on random inputs, at sizes on and off the edges of its tiles, into buffers that hold
 * NaN and lie between two guard bands. The host computes the same in fp64 three ways at once: exactly; as
 * the plain bf16 implementation does, which rounds to bf16 whatever it stores in bf16 and nothing else; and
 * the sum of the absolute values of the terms, for the bound on fp32 sums, where n terms cost at most n
 * 2^-24 of that. A result may be off by twice the plain implementation's error, in the maximum and in the
 * rms, and beyond that by the bound: that is all that separates two orders of summation.
 *
 * Runs. The same options train on the GPU and on the CPU reference in this process; training_tolerance says
 * how far apart they may be.
 */
#include <vector>

static int gpu_here(void) {
    int count = 0;
    gpus_shown = 1;   // several ranks share it, unless a test takes more
    if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return 1;
    (void)cudaGetLastError();
    skip("make test-gpu", "it needs an NVIDIA GPU, and this machine has none");
    return 0;
}

// ===== buffers ==================================================================================

enum { GUARD_BYTES = 4096, MAX_TENSORS = 64, MAX_HOST_ARRAYS = 64 };

// Numbers on the device between two guard bands, and what they were on the host.
typedef struct {
    void* p;
    int64_t n;
    int size;       // bytes of a number: 2 is bf16, 4 fp32
    double* host;   // what was copied there; NULL: poisoned
} Tensor;
static Tensor tensors[MAX_TENSORS];
static double* host_arrays[MAX_HOST_ARRAYS];
static int tensor_count, host_array_count;

static void cuda_need(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    printf("FAIL %s: %s\n", what, cudaGetErrorString(status));
    exit(1);
}
static double* host_zeros(int64_t n) {   // until tensors_release
    if (host_array_count == MAX_HOST_ARRAYS)
        cuda_need(cudaErrorMemoryAllocation, "more arrays than a test has");
    return host_arrays[host_array_count++] = doubles(n);
}
static Tensor tensor_poisoned(int64_t n, int size) {
    Tensor t = {NULL, n, size, NULL};
    size_t bytes = (size_t)n * (size_t)size + 2 * GUARD_BYTES;
    cuda_need(cudaMalloc(&t.p, bytes), "a test's memory");
    cuda_need(cudaMemset(t.p, 0xFF, bytes), "a test's memory");
    t.p = (char*)t.p + GUARD_BYTES;
    if (tensor_count == MAX_TENSORS) cuda_need(cudaErrorMemoryAllocation, "more buffers than a test has");
    return tensors[tensor_count++] = t;
}
static double bf16_of(double x) { return (double)__bfloat162float(__float2bfloat16((float)x)); }
static double rounded(double x, int size) { return size == 2 ? bf16_of(x) : (double)(float)x; }
static void tensor_write(Tensor t, const double* values) {
    std::vector<char> bytes((size_t)t.n * (size_t)t.size);
    for (int64_t i = 0; i < t.n; i++) {
        if (t.size == 2) ((bf16*)bytes.data())[i] = __float2bfloat16((float)values[i]);
        else ((float*)bytes.data())[i] = (float)values[i];
    }
    cuda_need(cudaMemcpy(t.p, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "a test's copy");
}
static double* tensor_read(Tensor t) {
    std::vector<char> bytes((size_t)t.n * (size_t)t.size);
    double* out = host_zeros(t.n);
    cuda_need(cudaDeviceSynchronize(), "a kernel");
    cuda_need(cudaMemcpy(bytes.data(), t.p, bytes.size(), cudaMemcpyDeviceToHost), "a test's copy");
    for (int64_t i = 0; i < t.n; i++)
        out[i] = t.size == 2 ? (double)__bfloat162float(((bf16*)bytes.data())[i])
                             : (double)((float*)bytes.data())[i];
    return out;
}
static Tensor tensor_noise(int64_t n, int size, uint64_t stream, double scale, double shift) {
    Tensor t = tensor_poisoned(n, size);
    t.host = host_zeros(n);
    for (int64_t i = 0; i < n; i++) t.host[i] = rounded(shift + scale * noise(stream, i), size);
    tensor_write(t, t.host);
    return t;
}
static int32_t* tensor_integers(const int32_t* values, int64_t n) {
    Tensor t = tensor_poisoned(n, 4);
    if (values) cuda_need(cudaMemcpy(t.p, values, (size_t)n * 4, cudaMemcpyHostToDevice), "a test's copy");
    return (int32_t*)t.p;
}

// "name: what", for a check; the text is good until four calls later.
static const char* statement(const char* name, const char* what) {
    static char texts[4][192];
    static int next;
    char* text = texts[next++ % 4];
    snprintf(text, sizeof texts[0], "%s: %s", name, what);
    return text;
}

// Ends a test: looks at the guards and frees all.
static void tensors_release(const char* name) {
    std::vector<unsigned char> band(GUARD_BYTES);
    int64_t damaged = 0;
    cuda_need(cudaDeviceSynchronize(), name);
    for (int i = 0; i < tensor_count; i++)
        for (int end = 0; end < 2; end++) {
            char* at = (char*)tensors[i].p + (end ? tensors[i].n * tensors[i].size : -GUARD_BYTES);
            cuda_need(cudaMemcpy(band.data(), at, GUARD_BYTES, cudaMemcpyDeviceToHost), "a guard");
            for (int j = 0; j < GUARD_BYTES; j++) damaged += band[(size_t)j] != 0xFF;
        }
    check(damaged == 0, statement(name, "nothing beside its buffers is written"),
        "%lld bytes beside %d buffers were written", (long long)damaged, tensor_count);
    for (int i = 0; i < tensor_count; i++) cudaFree((char*)tensors[i].p - GUARD_BYTES);
    for (int i = 0; i < host_array_count; i++) free(host_arrays[i]);
    tensor_count = host_array_count = 0;
}

// Holds what a kernel found against the exact numbers. plain: those of a plain bf16 implementation, or NULL:
// nothing is rounded to bf16 there; bound: what fp32 sums may cost each number, or NULL: no sums.
static void judge(const char* name, const char* what, const double* found, const double* exact,
    const double* plain, const double* bound, int64_t n) {
    double most = 0, square = 0;
    double plain_most = 0, plain_square = 0;
    double share = 0;
    char holds[96];
    for (int64_t i = 0; i < n; i++) {
        double error = fabs(found[i] - exact[i]), slack = bound ? bound[i] : 0;
        double beyond = error > slack ? error - slack : 0;
        double rough = plain ? fabs(plain[i] - exact[i]) : 0;
        if (isnan(error) && !(isnan(found[i]) && isnan(exact[i]))) beyond = NAN;
        most = worst(most, beyond);
        square = worst(square, square + beyond * beyond);
        plain_most = fmax(plain_most, rough);
        plain_square += rough * rough;
        if (bound) share = worst(share, slack > 0 ? error / slack : error > 0 ? INFINITY : 0);
    }
    square = sqrt(square / (double)n);
    plain_square = sqrt(plain_square / (double)n);
    int ok = most <= 2 * plain_most && square <= 2 * plain_square;
    snprintf(holds, sizeof holds,
        plain ? "the error of %s is at most twice plain bf16's"
              : "the error of %s is within the bound of fp32 sums",
        what);
    if (plain)
        check(ok, statement(name, holds), "%s: max %.2e, rms %.2e; plain bf16 %.2e, %.2e; %lld numbers", what,
            most, square, plain_most, plain_square, (long long)n);
    else
        check(ok, statement(name, holds), "%s: at most %.2g of the bound; %lld numbers", what, share,
            (long long)n);
}

static Gpu* gpu_bare(void) {   // what kernels ask of a rank: scratch, as large as any test's
    static Gpu* d;
    if (d) return d;
    d = (Gpu*)need(1, sizeof *d);
    cuda_need(cudaMalloc(&d->workspace, MATMUL_WORKSPACE), "the workspace");
    if (cublasLtCreate(&d->lt) != CUBLAS_STATUS_SUCCESS) exit(1);
    cudaEventCreate(&d->timer[0]);
    cudaEventCreate(&d->timer[1]);
    return d;
}
static const double U = 1.0 / 16777216;   // 2^-24: a rounding of fp32, relative

// ===== kernels ==================================================================================
// Each kernel alone, against fp64 on the host, as the opening of this file says. Held: its numbers are as
// good as bf16 and fp32 let them be at every size, nothing beside its buffers is written, what is poisoned
// or NaN stays where it is. A kernel that drops the last rows of a tile, or rounds once more than it need,
// still trains: in a curve it would be taken for the model.

// tokens: 0 any of V, 1 all alike, 2 runs of 1 to 200. first: position of row 0, in a context of `limit`. P
// > 0: the rows are those of a rank of P with two chunks each, so two runs of positions of a sequence of T;
// then first = 0. doc: 0 positions are places in the sequence, 1 in documents, 2 each sequence is shifted.
typedef struct {
    const char* name;
    int64_t B, T, C, V;
    int doc, center, tokens;
    int64_t first, limit;
    int P, rank;
} EmbeddingCase;
static const EmbeddingCase EMBEDDING_CASES[] = {
    {"embedding 1x1x64", 1, 1, 64, 5, 0, 1, 0, 0, 1},
    {"embedding 2x63x192", 2, 63, 192, 100, 0, 1, 0, 0, 63},
    {"embedding 3x77x256, documents", 3, 77, 256, 17, 1, 1, 2, 0, 77},
    {"embedding 1x65x320, one token", 1, 65, 320, 9, 0, 0, 1, 0, 65},
    {"embedding 1x640x64, one token", 1, 640, 64, 9, 1, 1, 1, 0, 640},
    {"embedding 2x333x768, runs", 2, 333, 768, 40, 1, 0, 2, 0, 333},
    {"embedding 1x130x2048, runs", 1, 130, 2048, 300, 0, 1, 2, 0, 130},
    {"embedding 1x40x1088, a prompt's padding", 1, 40, 1088, 11, 0, 1, 0, 30, 51},
    {"embedding 2x331x192, rank 1 of 3 with two runs", 2, 331, 192, 40, 0, 1, 0, 0, 331, 3, 1},
    {"embedding 3x517x64, the last rank of 4 with two runs", 3, 517, 64, 9, 0, 0, 2, 0, 517, 4, 3},
    {"embedding 2x517x128, rank 0 of 5 with two runs, documents", 2, 517, 128, 17, 1, 1, 2, 0, 517, 5, 0},
    {"embedding 1x1031x320, rank 1 of 2 with two runs, documents", 1, 1031, 320, 300, 1, 0, 0, 0, 1031, 2, 1},
    {"embedding 5x130x192, shifted in 700 positions", 5, 130, 192, 40, 2, 1, 2, 0, 700},
    {"embedding 4x517x64, rank 1 of 3 with two runs, shifted", 4, 517, 64, 17, 2, 0, 0, 0, 1000, 3, 1},
};

// The rows of a case: which token each of them holds, and at which position of its document or sequence.
typedef struct {
    int64_t T, R;   // rows of a sequence, of all
    RowPlaces places;
    int32_t *tokens, *position;   // (R)
    int32_t* docs;                // (B, limit) where the document of each position begins
} EmbeddingRows;

static void embedding_tokens(const EmbeddingCase* c, EmbeddingRows* rows) {
    for (int64_t r = 0, left = 0; r < rows->R; r++, left--) {
        rows->tokens[r] = rows->tokens[r > 0 ? r - 1 : 0];
        if (left > 0) continue;
        rows->tokens[r] = (int32_t)dice(301, (uint64_t)r, (uint64_t)c->V);
        left = c->tokens == 1 ? rows->R : c->tokens == 2 ? 1 + (int64_t)dice(300, (uint64_t)r, 200) : 1;
    }
}
static EmbeddingRows embedding_rows(const EmbeddingCase* c) {
    const Segments g = rank_segments(GPT2_SP_ZIGZAG, c->P ? c->P : 1, c->T, c->rank);
    const int64_t T = c->P ? g.total : c->T, R = c->B * T;
    RowPlaces places = {T, T, c->first, c->first, c->limit};
    if (c->P) {
        places.first = g.rows[0];
        places.begin = g.begin[0], places.begin2 = g.begin[1] - g.rows[0];
    }
    EmbeddingRows rows = {T, R, places, (int32_t*)need((size_t)R, 4), (int32_t*)need((size_t)R, 4),
        (int32_t*)need((size_t)(c->B * c->limit), 4)};
    for (int64_t i = 0; i < c->B * c->limit; i++) {
        if (i % c->limit == 0) continue;   // 0
        rows.docs[i] = dice(302, (uint64_t)i, 25) == 0 ? (int32_t)(i % c->limit) : rows.docs[i - 1];
    }
    embedding_tokens(c, &rows);
    for (int64_t r = 0; r < R; r++) {
        int64_t at = c->first + r % T;
        if (c->P) at = r % T < g.rows[0] ? g.begin[0] + r % T : g.begin[1] + r % T - g.rows[0];
        if (c->doc == 1) rows.position[r] = (int32_t)(at - rows.docs[r / T * c->limit + at]);
        else if (c->doc == 2)
            rows.position[r] = (int32_t)(at + dice(303, (uint64_t)(r / T), (uint64_t)(c->limit - c->T + 1)));
        else rows.position[r] = (int32_t)min_i64(at, c->limit - 1);
    }
    return rows;
}

static void embedding_forward_judge(const EmbeddingCase* c, const EmbeddingRows* rows) {
    const int64_t C = c->C, R = rows->R;
    Gpu* d = gpu_bare();
    Tensor wte = tensor_noise(c->V * C, 4, 310, 1, 0), wpe = tensor_noise(c->limit * C, 4, 311, 1, 0.5);
    Tensor x = tensor_poisoned(R * C, 2);
    d->tokens = tensor_integers(rows->tokens, R);
    d->positions = c->doc ? tensor_integers(rows->position, R) : NULL;
    embedding_forward(
        d, (bf16*)x.p, d->tokens, d->positions, (float*)wte.p, (float*)wpe.p, c->center, rows->places, R, C);
    double *exact = host_zeros(R * C), *plain = host_zeros(R * C);
    for (int64_t r = 0; r < R; r++) {
        const double *token = wte.host + rows->tokens[r] * C, *position = wpe.host + rows->position[r] * C;
        double mean = 0;
        for (int64_t i = 0; i < C; i++) mean += exact[r * C + i] = token[i] + position[i];
        for (int64_t i = 0; i < C; i++) {
            exact[r * C + i] -= c->center ? mean / (double)C : 0;
            plain[r * C + i] = bf16_of(exact[r * C + i]);
        }
    }
    judge(c->name, "x", tensor_read(x), exact, plain, NULL, R * C);
}

// The gradient of one of the two tables, t, to whose row `to` of each row dx is added.
static void embedding_gradient_judge(const EmbeddingCase* c, const EmbeddingRows* rows, const char* what,
    Tensor t, const int32_t* to, const double* dx) {
    const int64_t C = c->C, R = rows->R;
    double *sum = host_zeros(t.n), *rough = host_zeros(t.n);
    double* bound = host_zeros(t.n);
    for (int64_t i = 0; i < t.n; i++) {
        sum[i] = rough[i] = t.host[i];
        bound[i] = fabs(t.host[i]);
    }
    for (int64_t r = 0; r < R; r++) {
        double mean = 0, size = 0;
        for (int64_t i = 0; c->center && i < C; i++) {
            mean += dx[r * C + i] / (double)C;
            size += fabs(dx[r * C + i]) / (double)C;
        }
        for (int64_t i = 0; i < C; i++) {
            const int64_t at = to[r] * C + i;
            double term = dx[r * C + i] - mean;
            sum[at] += term;
            rough[at] += c->center ? bf16_of(term) : term;
            bound[at] += fabs(term) + size;
        }
    }
    for (int64_t i = 0; i < t.n; i++) bound[i] *= (double)(R + 16) * U;
    judge(c->name, what, tensor_read(t), sum, c->center ? rough : NULL, bound, t.n);
}

static void embedding_backward_judge(const EmbeddingCase* c, const EmbeddingRows* rows) {
    const int64_t C = c->C, R = rows->R;
    Gpu* d = gpu_bare();
    Tensor dx = tensor_noise(R * C, 2, 312, 1, 0.25), dwte = tensor_noise(c->V * C, 4, 313, 1, 0);
    Tensor dwpe = tensor_noise(c->limit * C, 4, 314, 1, 0);
    d->dx = (bf16*)dx.p;
    d->keys = tensor_integers(NULL, R), d->sorted_keys = tensor_integers(NULL, R);
    d->rows = tensor_integers(NULL, R), d->sorted_rows = tensor_integers(NULL, R);
    d->sort_bytes = embedding_sort_bytes(R);
    d->sort_work = tensor_poisoned((int64_t)d->sort_bytes, 1).p;
    d->partial = (float*)tensor_poisoned(ceil_div(R, BUCKET_ROWS) * 2 * C, 4).p;
    Error e;
    int status = embedding_backward(
        d, (float*)dwte.p, (float*)dwpe.p, d->positions, c->center, rows->places, c->V, c->B, C, &e);
    if (status != 0) check(0, statement(c->name, "backward runs"), "%s", e.text);
    embedding_gradient_judge(c, rows, "dwte", dwte, rows->tokens, dx.host);
    embedding_gradient_judge(c, rows, "dwpe", dwpe, rows->position, dx.host);
}

static void kernel_embedding(const EmbeddingCase* c) {
    EmbeddingRows rows = embedding_rows(c);
    embedding_forward_judge(c, &rows);
    if (c->first == 0) embedding_backward_judge(c, &rows);   // else a prompt: nothing comes back
    free(rows.tokens);
    free(rows.position);
    free(rows.docs);
    tensors_release(c->name);
}

// add: dx is added to; same: dx is inp; projection: its bias gradient is wanted.
typedef struct {
    const char* name;
    int64_t R, C;
    int add, same, projection;
} NormCase;
static const NormCase NORM_CASES[] = {
    {"rmsnorm 1x64", 1, 64, 1, 0, 1},
    {"rmsnorm 7x192", 7, 192, 0, 1, 1},
    {"rmsnorm 9x256", 9, 256, 1, 0, 0},
    {"rmsnorm 129x320", 129, 320, 1, 0, 1},
    {"rmsnorm 4230x128", 4230, 128, 1, 0, 1},
    {"rmsnorm 67x768", 67, 768, 0, 0, 1},
    {"rmsnorm 34x2048", 34, 2048, 1, 0, 1},
    {"rmsnorm 21x1984", 21, 1984, 0, 1, 0},
};

typedef struct {
    Tensor inp, weight, bias, out, rstd;
    Tensor dout, dx, dweight, dbias, dprojection;
    double *scale, *exact, *plain;   // (R), of fp64; room for (R, C)
} NormTensors;

static void norm_forward_judge(const NormCase* c, NormTensors* t) {
    const int64_t R = c->R, C = c->C;
    const int64_t n = R * C;
    double* scale_bound = host_zeros(R);
    rmsnorm_forward(gpu_bare(), (bf16*)t->out.p, (float*)t->rstd.p, (bf16*)t->inp.p, (float*)t->weight.p,
        (float*)t->bias.p, R, C);
    for (int64_t r = 0; r < R; r++) {
        const double* row = t->inp.host + r * C;
        double square = 0;
        for (int64_t i = 0; i < C; i++) square += row[i] * row[i];
        t->scale[r] = 1 / sqrt(square / (double)C + 1e-5);
        scale_bound[r] = t->scale[r] * ((double)C / 8 + 16) * U;   // half of a sum's, and 2 ulp
        for (int64_t i = 0; i < C; i++) {
            double out = row[i] * t->scale[r] * t->weight.host[i] + t->bias.host[i];
            t->exact[r * C + i] = out;
            t->plain[r * C + i] = bf16_of(out);
        }
    }
    judge(c->name, "out", tensor_read(t->out), t->exact, t->plain, NULL, n);
    judge(c->name, "rstd", tensor_read(t->rstd), t->scale, NULL, scale_bound, R);
}

// Row r of the gradients: dx, and what it adds to the three sums over rows and to their bounds.
static void norm_backward_row(
    const NormCase* c, NormTensors* t, int64_t r, double* sums[3], double* bounds[3]) {
    const int64_t C = c->C;
    const double s = t->scale[r];
    double dot = 0, size = 0;
    for (int64_t i = 0; i < C; i++) {
        double term = t->dout.host[r * C + i] * t->weight.host[i] * t->inp.host[r * C + i];
        dot += term;
        size += fabs(term);
    }
    for (int64_t i = 0; i < C; i++) {
        const int64_t at = r * C + i;
        const double dout = t->dout.host[at], x = t->inp.host[at];
        double g = dout * t->weight.host[i], before = c->add ? t->dx.host[at] : 0;
        double h = before + s * (g - x * s * s * dot / (double)C);
        double terms[3] = {dout * x * s, dout, h};
        double sizes[3] = {fabs(terms[0]), fabs(terms[1]),
            fabs(before) + fabs(s * g) + fabs(s * s * s * x * size / (double)C)};
        t->exact[at] = h, t->plain[at] = bf16_of(h);
        for (int k = 0; k < 3; k++) {
            sums[k][i] += terms[k];
            bounds[k][i] += sizes[k];
        }
    }
}

static void norm_backward_judge(const NormCase* c, NormTensors* t) {
    static const char* const what[] = {"dweight", "dbias", "dprojection"};
    const int64_t R = c->R, C = c->C;
    const int64_t n = R * C;
    const Tensor columns[3] = {t->dweight, t->dbias, t->dprojection};
    double *sums[3], *bounds[3];
    rmsnorm_backward(gpu_bare(), (bf16*)t->dx.p, (float*)t->dweight.p, (float*)t->dbias.p,
        c->projection ? (float*)t->dprojection.p : NULL, (bf16*)t->dout.p, (bf16*)t->inp.p, (float*)t->rstd.p,
        (float*)t->weight.p, c->add, R, C);
    for (int k = 0; k < 3; k++) {
        sums[k] = host_zeros(C), bounds[k] = host_zeros(C);
        for (int64_t i = 0; i < C; i++) {
            sums[k][i] = columns[k].host[i];
            bounds[k][i] = fabs(columns[k].host[i]);
        }
    }
    for (int64_t r = 0; r < R; r++) norm_backward_row(c, t, r, sums, bounds);
    judge(c->name, "dx", tensor_read(t->dx), t->exact, t->plain, NULL, n);
    for (int k = 0; k < 2 + c->projection; k++) {
        for (int64_t i = 0; i < C; i++) bounds[k][i] *= (double)(R + C / 8 + 16) * U;
        judge(c->name, what[k], tensor_read(columns[k]), sums[k], NULL, bounds[k], C);
    }
}

static void kernel_rmsnorm(const NormCase* c) {
    const int64_t R = c->R, C = c->C;
    const int64_t n = R * C;
    NormTensors t;
    t.inp = tensor_noise(n, 2, 320, 1.5, 0.3);
    t.weight = tensor_noise(C, 4, 321, 0.5, 1);
    t.bias = tensor_noise(C, 4, 322, 0.5, 0);
    t.out = tensor_poisoned(n, 2);
    t.rstd = tensor_poisoned(R, 4);
    t.dout = tensor_noise(n, 2, 323, 1, 0.1);
    t.dx = c->same ? t.inp : c->add ? tensor_noise(n, 2, 324, 1, 0) : tensor_poisoned(n, 2);
    t.dweight = tensor_noise(C, 4, 325, 1, 0);
    t.dbias = tensor_noise(C, 4, 326, 1, 0);
    t.dprojection = tensor_noise(C, 4, 327, 1, 0);
    t.scale = host_zeros(R);
    t.exact = host_zeros(n), t.plain = host_zeros(n);
    gpu_bare()->partial = (float*)tensor_poisoned(NORM_BLOCKS * 3 * C, 4).p;
    norm_forward_judge(c, &t);
    norm_backward_judge(c, &t);
    tensors_release(c->name);
}

static double gelu_of(double x) {
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}
static double gelu_slope(double x) {
    double t = tanh(0.7978845608028654 * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
}
static void kernel_gelu(int64_t n) {
    char name[64];
    snprintf(name, sizeof name, "gelu %lld", (long long)n);
    Tensor inp = tensor_noise(n, 2, 330, 2, 0), out = tensor_poisoned(n, 2);
    double *exact = host_zeros(n), *plain = host_zeros(n);
    gelu_forward(gpu_bare(), (bf16*)out.p, (bf16*)inp.p, n);
    for (int64_t i = 0; i < n; i++) {
        exact[i] = gelu_of(inp.host[i]);
        plain[i] = bf16_of(exact[i]);
    }
    judge(name, "out", tensor_read(out), exact, plain, NULL, n);
    tensors_release(name);
}

// qkv: the end of attention's backward, with dq in fp32 beside (R, 3N), 2: dK and dV too, so that nothing is
// in the rows yet, 3: and with something to add to some columns of each; 0: plain column sums of (R, N).
typedef struct {
    const char* name;
    int64_t R, N;
    int qkv;
} ColumnsCase;
static const ColumnsCase COLUMNS_CASES[] = {
    {"columns 1x64", 1, 64, 0},
    {"columns 1537x264", 1537, 264, 0},
    {"columns 8x256", 8, 256, 0},
    {"columns 201x3072", 201, 3072, 0},
    {"qkv_finish 1x64", 1, 64, 1},
    {"qkv_finish 333x128", 333, 128, 1},
    {"qkv_finish 1545x320", 1545, 320, 1},
    {"qkv_finish 1x64, sums of dK and dV", 1, 64, 2},
    {"qkv_finish 333x512, sums of dK and dV", 333, 512, 2},
    {"qkv_finish 1545x320, sums of dK and dV", 1545, 320, 2},
    {"qkv_finish 333x512, sums with additions", 333, 512, 3},
    {"qkv_finish 1545x320, sums with additions", 1545, 320, 3},
};

typedef struct {
    Tensor dout, dbias;     // (R, width), (width)
    Tensor dq, dkv, more;   // what the rows are made of, and what is added to some of their columns
    WideRows sums;          // where those lie
} ColumnsTensors;

// Number `column` of row r of a matrix (0: dq, 1: dK, 2: dV; with qkv 0 the only one) as it must be written.
static double columns_number(
    const ColumnsCase* c, const ColumnsTensors* t, int64_t r, int64_t matrix, int64_t column) {
    const int64_t R = c->R, N = c->N;
    const int64_t width = c->qkv ? 3 * N : N;
    const WideRows* s = &t->sums;
    double x;
    if (!c->qkv || (matrix > 0 && c->qkv < 2)) x = t->dout.host[r * width + matrix * N + column];
    else if (matrix == 0) x = t->dq.host[r * N + column];
    else x = t->dkv.host[(matrix - 1) * R * N + r * N + column];
    if (c->qkv && s->add[matrix] && column >= s->begin[matrix] && column < s->end[matrix])
        x += t->more.host[r * s->stride[matrix] + column - s->begin[matrix]];
    return c->qkv && matrix == 0 ? x * 0.125 : x;
}

static void columns_judge(const ColumnsCase* c, const ColumnsTensors* t) {
    const int64_t R = c->R, N = c->N;
    const int64_t width = c->qkv ? 3 * N : N;
    double *exact = host_zeros(R * width), *plain = host_zeros(R * width);
    double *sum = host_zeros(width), *bound = host_zeros(width);
    for (int64_t i = 0; i < width; i++) {
        sum[i] = t->dbias.host[i];
        bound[i] = fabs(sum[i]);
    }
    for (int64_t r = 0; r < R; r++)
        for (int64_t i = 0; i < width; i++) {
            double x = columns_number(c, t, r, i / N, i % N);
            exact[r * width + i] = x, plain[r * width + i] = bf16_of(x);
            sum[i] += x, bound[i] += fabs(x);
        }
    for (int64_t i = 0; i < width; i++) bound[i] *= (double)(R + 16) * U;
    judge(c->name, "rows", tensor_read(t->dout), exact, plain, NULL, R * width);
    judge(c->name, "dbias", tensor_read(t->dbias), sum, NULL, bound, width);
}

static void kernel_columns(const ColumnsCase* c) {
    const int64_t R = c->R, N = c->N;
    const int64_t width = c->qkv ? 3 * N : N;
    const int wide = c->qkv >= 2;
    Gpu* d = gpu_bare();
    ColumnsTensors t;
    memset(&t, 0, sizeof t);
    t.dout = wide ? tensor_poisoned(R * width, 2) : tensor_noise(R * width, 2, 340, 1, 0.1);
    t.dbias = tensor_noise(width, 4, 341, 1, 0);
    t.dq = tensor_noise(c->qkv ? R * N : 8, 4, 342, 3, 0);
    t.dkv = tensor_noise(wide ? 2 * R * N : 8, 4, 343, 0.5, 0.1);
    t.more = tensor_noise(R * N, 4, 344, 2, 0);
    d->partial = (float*)tensor_poisoned(SUM_BLOCKS * width, 4).p;
    WideRows* s = &t.sums;
    s->p[0] = (float*)t.dq.p;
    s->scale[0] = 0.125f;
    s->scale[1] = s->scale[2] = 1;
    if (wide) {
        s->p[1] = (float*)t.dkv.p;
        s->p[2] = s->p[1] + R * N;
    }
    for (int i = 0; c->qkv == 3 && i < 3; i++) {   // columns 16 (i + 1) to N - 48, from narrower rows
        s->add[i] = (float*)t.more.p;
        s->begin[i] = 16 * (i + 1), s->end[i] = N - 48;
        s->stride[i] = s->end[i] - s->begin[i];
    }
    if (c->qkv) qkv_finish(d, (float*)t.dbias.p, (bf16*)t.dout.p, t.sums, R, N);
    else columns_backward(d, (float*)t.dbias.p, (bf16*)t.dout.p, R, N);
    columns_judge(c, &t);
    tensors_release(c->name);
}

// A cross-entropy's rows, and by fp64 what must come of them.
typedef struct {
    int64_t R, V, Vp;
    float scale;                     // of the gradient; 0: only the loss is wanted
    int64_t nan_row;                 // the row of logits with a NaN; -1: none
    int32_t* labels;                 // (R); -1: none
    double *loss, *loss_bound;       // (R)
    double *exact, *plain, *bound;   // (R, Vp) the gradient, or the logits where it is not wanted
} Entropy;

// The logits of the padding are poisoned: nothing may depend on them, and their gradient is 0. In a fifth of
// the rows the likeliest token is the label: the only hits.
static void entropy_rows(Entropy* t, double* logits) {
    const int64_t Vp = t->Vp;
    for (int64_t r = 0; r < t->R; r++) {
        double* row = logits + r * Vp;
        int32_t label = r % 5 == 4 ? -1 : (int32_t)dice(351, (uint64_t)r, (uint64_t)t->V);
        for (int64_t v = 0; r % 5 == 1 && v < t->V; v++)
            if (row[v] > row[label]) label = (int32_t)v;
        for (int64_t v = t->V; v < Vp; v++) row[v] = NAN;
        t->labels[r] = label;
    }
    if (t->nan_row >= 0) logits[t->nan_row * Vp + t->V / 2] = NAN;
}

// A row without a label costs nothing; a row with a NaN has a NaN for its loss and leaves the others alone.
// The exponent and its shift are rounded once each, exp2 and log are good to 2 ulp, and V terms are summed
// by 512 threads. In the gradient the factor scale / sum goes through log2 and exp2: what they cost p,
// before the label's 1 is taken off.
static void entropy_exact(Entropy* t, const double* logits, int64_t r) {
    const double* row = logits + r * t->Vp;
    const int32_t label = t->labels[r];
    double most = -INFINITY, size = 0;
    double sum = 0;
    for (int64_t v = 0; v < t->V; v++) {
        most = fmax(most, row[v]);
        size = fmax(size, fabs(row[v]));
    }
    for (int64_t v = 0; v < t->V; v++) sum += exp(row[v] - most);
    if (label >= 0) t->loss[r] = log(sum) + most - row[label];
    t->loss_bound[r] = label < 0 ? 0 : 2 * U * (4 + 4 * size) + ((double)t->V / 512 + 16) * U;
    for (int64_t v = 0; v < t->Vp; v++) {
        const int64_t at = r * t->Vp + v;
        double p = label < 0 || v >= t->V ? 0 : exp(row[v] - most) / sum, x = row[v];
        if (t->scale != 0) x = r == t->nan_row && label >= 0 ? NAN : t->scale * (p - (v == label));
        t->exact[at] = x;
        t->plain[at] = isnan(x) ? x : bf16_of(x);
        t->bound[at] = p == p ? t->scale * p * 4 * U * (4 + 2 * size + fabs(log2(sum * 77))) : 0;
    }
}

static void entropy_judge(const Entropy* t, const char* name, double* found, double* slopes) {
    int64_t wrong = 0, n = t->R * t->Vp;
    for (int64_t r = 0; r < t->R; r++) wrong += isnan(found[r]) != (r == t->nan_row);
    check(wrong == 0, statement(name, "a NaN stays in its row"), "NaN in row %lld: %lld rows wrong",
        (long long)t->nan_row, (long long)wrong);
    if (t->nan_row >= 0) found[t->nan_row] = t->loss[t->nan_row] = 0;
    // NaN is as NaN should be; the comparison that follows looks at the numbers
    for (int64_t i = 0; i < n; i++)
        if (isnan(slopes[i]) && isnan(t->exact[i])) slopes[i] = t->exact[i] = t->plain[i] = 0;
    judge(name, "loss", found, t->loss, NULL, t->loss_bound, t->R);
    judge(name, t->scale != 0 ? "gradient" : "the logits that stay", slopes, t->exact, t->plain, t->bound, n);
}

// Hits: the rows whose label has no likelier token beside it.
static int64_t entropy_hits_wrong(const Entropy* t, const double* logits, const unsigned char* hit) {
    int64_t wrong = 0;
    for (int64_t r = 0; r < t->R; r++) {
        const double* row = logits + r * t->Vp;
        int best = t->labels[r] >= 0;
        for (int64_t v = 0; best && v < t->V; v++) best = !(row[v] > row[t->labels[r]]);
        wrong += r != t->nan_row && hit[r] != best;
    }
    return wrong;
}

static void kernel_crossentropy(int64_t R, int64_t V, int learn) {
    char name[64];
    const int64_t Vp = round_up(V, 128), n = R * Vp;
    snprintf(name, sizeof name, "cross-entropy %lldx%lld%s", (long long)R, (long long)V,
        learn ? "" : ", loss only");
    Tensor logits = tensor_noise(n, 2, 350, 3, 1), losses = tensor_poisoned(R, 4);
    Tensor hits = tensor_poisoned(R, 1);
    Entropy t = {R, V, Vp, learn ? 1.0f / 77 : 0, R > 4 ? 3 : -1, (int32_t*)need((size_t)R, 4), host_zeros(R),
        host_zeros(R), host_zeros(n), host_zeros(n), host_zeros(n)};
    entropy_rows(&t, logits.host);
    tensor_write(logits, logits.host);
    for (int64_t r = 0; r < R; r++) entropy_exact(&t, logits.host, r);
    Error e;
    int32_t* labels = tensor_integers(t.labels, R);
    if (crossentropy(gpu_bare(), (float*)losses.p, (unsigned char*)hits.p, (bf16*)logits.p, labels, t.scale,
            R, V, Vp, &e) != 0)
        check(0, statement(name, "the kernel runs"), "%s", e.text);
    double *found = tensor_read(losses), *slopes = tensor_read(logits);
    entropy_judge(&t, name, found, slopes);
    std::vector<unsigned char> hit((size_t)R);
    cuda_need(cudaMemcpy(hit.data(), hits.p, (size_t)R, cudaMemcpyDeviceToHost), "hits");
    int64_t wrong = entropy_hits_wrong(&t, logits.host, hit.data());
    check(wrong == 0, statement(name, "hits are the rows whose label is likeliest"),
        "hits: %lld of %lld rows wrong", (long long)wrong, (long long)R);
    free(t.labels);
    tensors_release(name);
}

// Products of R rows with weights (OC, C). A product of bf16 numbers is exact in fp32 and the tensor cores
// cut each addition to fp32, which costs at most 2^-23 of the terms; a gradient of weights is added up in
// fp32. cuBLASLt's gelu' takes the hardware's tanh t(u), which is good to 2^-11 of itself: of (1 + t) / 2 + x
// (1 - t^2) u' / 2 that is at most 2^-11 (1/2 + |x u' t|), with u' = 0.8 + 0.11 x^2.
enum {
    MM_PLAIN,
    MM_BIAS,
    MM_ADD,
    MM_IN_PLACE,
    MM_GELU,
    MM_GELU_AUX,
    MM_DINPUT,
    MM_DGELU,
    MM_DWEIGHT,
    MM_KINDS
};
static const char* const MATMUL_NAMES[] = {"plain", "bias", "bias + residual", "bias + residual in place",
    "bias, gelu", "bias, gelu, aux", "dinput", "dinput gelu'", "dweight"};

typedef struct {
    char name[96];
    int64_t R, C, OC;
    int kind;
    int64_t rows, columns, depth;   // of the result, and terms of each of its sums
    Tensor inp, weight, dout;       // (R, C), (OC, C), (R, OC)
    Tensor bias, add, before;       // (OC), (R, OC), (R, C) what gelu' is taken of
    Tensor out, aux;                // (rows, columns), (R, OC) what gelu is taken of
} MatmulCase;

static MatmulCase matmul_case(int64_t R, int64_t C, int64_t OC, int kind) {
    MatmulCase t;
    memset(&t, 0, sizeof t);
    t.R = R, t.C = C;
    t.OC = OC, t.kind = kind;
    t.rows = kind == MM_DWEIGHT ? OC : R;
    t.columns = kind >= MM_DINPUT ? C : OC;
    t.depth = kind == MM_DWEIGHT ? R : kind >= MM_DINPUT ? OC : C;
    t.inp = tensor_noise(R * C, 2, 360, 1, 0.1);
    t.weight = tensor_noise(OC * C, 2, 361, 1 / sqrt((double)C), 0);
    t.dout = tensor_noise(R * OC, 2, 362, 1, 0);
    t.bias = tensor_noise(OC, 2, 363, 1, 0);
    t.add = tensor_noise(R * OC, 2, 364, 1, 0);
    t.before = tensor_noise(R * C, 2, 365, 1.5, 0);
    if (kind == MM_DWEIGHT) t.out = tensor_noise(t.rows * t.columns, 4, 366, 1, 0);
    else t.out = kind == MM_IN_PLACE ? t.add : tensor_poisoned(t.rows * t.columns, 2);
    t.aux = tensor_poisoned(R * OC, 2);
    return t;
}

static int matmul_call(Gpu* d, const MatmulCase* t, Error* e) {
    const int64_t R = t->R, C = t->C;
    const int64_t OC = t->OC;
    bf16 *x = (bf16*)t->inp.p, *w = (bf16*)t->weight.p;
    bf16 *b = (bf16*)t->bias.p, *g = (bf16*)t->dout.p;
    bf16 *o = (bf16*)t->out.p, *add = (bf16*)t->add.p;
    switch (t->kind) {
    case MM_DWEIGHT: return matmul_backward_weight(d, (float*)t->out.p, g, x, R, C, OC, e);
    case MM_DINPUT: return matmul_backward_input(d, o, g, w, NULL, R, C, OC, e);
    case MM_DGELU: return matmul_backward_input(d, o, g, w, (bf16*)t->before.p, R, C, OC, e);
    case MM_GELU: return matmul_gelu_forward(d, o, NULL, x, w, b, R, C, OC, e);
    case MM_GELU_AUX: return matmul_gelu_forward(d, o, (bf16*)t->aux.p, x, w, b, R, C, OC, e);
    case MM_PLAIN: return matmul_forward(d, o, x, w, NULL, NULL, R, C, OC, e);
    case MM_BIAS: return matmul_forward(d, o, x, w, b, NULL, R, C, OC, e);
    default: return matmul_forward(d, o, x, w, b, add, R, C, OC, e);
    }
}

// Term k of the sum at row i and column j of the result.
static double matmul_term(const MatmulCase* t, int64_t i, int64_t j, int64_t k) {
    const double *inp = t->inp.host, *weight = t->weight.host;
    const double* dout = t->dout.host;
    if (t->kind == MM_DWEIGHT) return dout[k * t->OC + i] * inp[k * t->C + j];
    if (t->kind >= MM_DINPUT) return dout[i * t->OC + k] * weight[k * t->C + j];
    return inp[i * t->C + k] * weight[j * t->C + k];
}

static void matmul_judge(const MatmulCase* t) {
    const int kind = t->kind;
    const int64_t n = t->rows * t->columns;
    double *exact = host_zeros(n), *plain = host_zeros(n);
    double* bound = host_zeros(n);
    double *aux_exact = host_zeros(t->R * t->OC), *aux_plain = host_zeros(t->R * t->OC);
    for (int64_t at = 0; at < n; at++) {
        const int64_t i = at / t->columns, j = at % t->columns;
        double sum = 0, size = 0;
        double tanh_error = 0;
        for (int64_t k = 0; k < t->depth; k++) {
            double term = matmul_term(t, i, j, k);
            sum += term, size += fabs(term);
        }
        double more[3] = {kind >= MM_BIAS && kind <= MM_GELU_AUX ? t->bias.host[j] : 0,
            kind == MM_ADD || kind == MM_IN_PLACE ? t->add.host[at] : 0,
            kind == MM_DWEIGHT ? t->out.host[at] : 0};
        for (int k = 0; k < 3; k++) sum += more[k], size += fabs(more[k]);
        if (kind == MM_GELU_AUX) aux_exact[at] = sum, aux_plain[at] = bf16_of(sum);
        if (kind == MM_GELU || kind == MM_GELU_AUX) sum = gelu_of(sum);
        if (kind == MM_DGELU) {
            const double x = t->before.host[at];
            tanh_error = fabs(sum) * (0.5 + fabs(x) * (0.8 + 0.11 * x * x)) / 2048;
            sum *= gelu_slope(x), size *= 1.2;
        }
        exact[at] = sum, plain[at] = bf16_of(sum);
        bound[at] = (double)(t->depth + 8) * 2 * U * size + tanh_error;
    }
    judge(t->name, "out", tensor_read(t->out), exact, kind == MM_DWEIGHT ? NULL : plain, bound, n);
    if (kind == MM_GELU_AUX) judge(t->name, "aux", tensor_read(t->aux), aux_exact, aux_plain, bound, n);
}

// tune: with the algorithm that timing chooses. It is chosen on its operands, which of a gradient of weights
// are added to: there only the next call counts.
static void kernel_matmul(int64_t R, int64_t C, int64_t OC, int kind, int tune) {
    Gpu* d = gpu_bare();
    Error e = {0, {0}};
    MatmulCase t = matmul_case(R, C, OC, kind);
    snprintf(t.name, sizeof t.name, "matmul %lldx%lldx%lld %s%s", (long long)R, (long long)C, (long long)OC,
        MATMUL_NAMES[kind], tune ? ", tuned" : "");
    if (tune) d->plan_count = 0, d->rehearsing = 1;
    int status = matmul_call(d, &t, &e);
    if (tune && kind == MM_DWEIGHT) {
        tensor_write(t.out, t.out.host);
        status = matmul_call(d, &t, &e);
    }
    d->rehearsing = 0;
    if (status != 0) check(0, statement(t.name, "the product runs"), "%s", e.text);
    matmul_judge(&t);
    tensors_release(t.name);
}

// The means of the columns of several matrices, with gaps between them that nothing is written to.
typedef struct {
    int64_t rows, columns, matrices, gap;   // gap: numbers from one to the next
    double *exact, *plain, *bound;
} CenterCase;

static void center_exact(const CenterCase* t, const double* inp) {
    for (int64_t column = 0; column < t->matrices * t->columns; column++) {
        const int64_t first = column / t->columns * t->gap + column % t->columns;
        double mean = 0, size = 0;
        for (int64_t r = 0; r < t->rows; r++) {
            const double x = inp[first + r * t->columns];
            mean += x / (double)t->rows;
            size += fabs(x) / (double)t->rows;
        }
        for (int64_t r = 0; r < t->rows; r++) {
            const int64_t at = first + r * t->columns;
            t->exact[at] = inp[at] - mean;
            t->plain[at] = bf16_of(t->exact[at]);
            t->bound[at] = ((double)t->rows / 8 + 16) * U * (size + fabs(inp[at]));
        }
    }
}

static void kernel_center(int64_t rows, int64_t columns, int64_t matrices) {
    char name[64];
    const int64_t n = rows * columns, gap = n + 32;
    snprintf(name, sizeof name, "centring %lldx%lldx%lld", (long long)matrices, (long long)rows,
        (long long)columns);
    Tensor inp = tensor_noise(matrices * gap, 4, 370, 1, 0.3), half = tensor_poisoned(matrices * gap, 2);
    dim3 grid((unsigned)ceil_div(columns, 32), (unsigned)matrices);
    center_columns_kernel<bf16>
        <<<grid, dim3(32, CENTER_ROWS)>>>((bf16*)half.p, (float*)inp.p, (int)rows, (int)columns, gap, gap);
    cuda_need(cudaGetLastError(), name);
    double* to_half = tensor_read(half);
    center_columns_kernel<float>
        <<<grid, dim3(32, CENTER_ROWS)>>>((float*)inp.p, (float*)inp.p, (int)rows, (int)columns, gap, gap);
    cuda_need(cudaGetLastError(), name);
    double* in_place = tensor_read(inp);
    CenterCase t = {rows, columns, matrices, gap, host_zeros(inp.n), host_zeros(inp.n), host_zeros(inp.n)};
    center_exact(&t, inp.host);
    int64_t untouched = 0;
    for (int64_t i = 0; i < inp.n; i++) {
        if (i % gap < n) continue;
        untouched += isnan(to_half[i]) && in_place[i] == inp.host[i];
        to_half[i] = in_place[i] = 0;
    }
    judge(name, "the bf16 copy", to_half, t.exact, t.plain, NULL, inp.n);
    judge(name, "the numbers in place", in_place, t.exact, NULL, t.bound, inp.n);
    check(untouched == 32 * matrices, statement(name, "nothing between the matrices is touched"),
        "%lld of %lld numbers between the matrices untouched", (long long)untouched,
        (long long)(32 * matrices));
    tensors_release(name);
}

static void kernel_loss_sum(int64_t n) {
    char name[64];
    snprintf(name, sizeof name, "loss_sum %lld", (long long)n);
    Tensor losses = tensor_noise(n, 4, 380, 1, 5), stats = tensor_poisoned(2 * STAT_COUNT, 4);
    double sum = 3, found[STAT_COUNT] = {3, 4, 5};
    cuda_need(cudaMemcpy(stats.p, found, sizeof found, cudaMemcpyHostToDevice), name);
    loss_sum_kernel<<<1, 1024>>>((double*)stats.p, (float*)losses.p, n);
    cuda_need(cudaGetLastError(), name);
    for (int64_t i = 0; i < n; i++) sum += losses.host[i];
    cuda_need(cudaMemcpy(found, stats.p, sizeof found, cudaMemcpyDeviceToHost), name);
    check(fabs(found[STAT_LOSS] - sum) <= 1e-14 * sum && found[STAT_SQUARE] == 4 && found[STAT_SCALE] == 5,
        statement(name, "the losses are added to the sum and to nothing else"), "%.12g, expected %.12g",
        found[STAT_LOSS], sum);
    tensors_release(name);
}

// The end of a step on a whole model's parameters: the ranks' gradients centred and summed, norm, clipping,
// AdamW and the bf16 copies, each against fp64, on every rank. What fp32 may cost a gradient (its sum over
// the ranks, its centring), then the moments, then the weight is followed through the formulas.
static int rank_optimizer_step(Rank* r, gpt2_sp* g, void* adamw) {
    if (gpu_enter(r) != 0) return -1;
    gpu_weights_cast(r);   // as after loading: the update leaves the copies of frozen parameters as they are
    if (gpu_gradients_reduce(r, g->options.grad_clip) != 0 || gpu_weights_update(r, (const AdamW*)adamw) != 0)
        return -1;
    CUDA_TRY(&r->error, cudaDeviceSynchronize());
    return 0;
}
// A rank's part, wherever --zero keeps it, of numbers in the layout of all units.
static void state_write(const gpt2_sp* g, int w, int state, const float* all) {
    const Gpu* d = (const Gpu*)g->ranks[w].device;
    for (int u = 0; u < g->layout.count; u++) {
        int whole = holding(&g->layout, state, u) == HELD_WHOLE;
        Held h = held(&g->ranks[w], state, u);
        int64_t from = g->layout.units[u].offset + h.begin, n = whole ? unit_whole(&g->layout, u) : h.n;
        cuda_need(cudaMemcpy(d->state[state] + h.at, all + from, (size_t)n * 4, cudaMemcpyHostToDevice),
            "a rank's state");
    }
}
// A rank's bf16 copies as half_offset has them; with --zero 3 the units are brought together one by one.
static void halves_read(gpt2_sp* g, int w, bf16* out) {
    Rank* r = &g->ranks[w];
    for (int u = 0; u <= g->mesh.shape.L; u++) {
        int64_t n = u == 0 ? g->mesh.shape.Vp * g->mesh.shape.C : g->layout.units[u].elements;
        if (gpu_enter(r) != 0 || gpu_unit_gather(r, u) != 0)
            check(0, "a test's unit is brought together", "%s", r->error.text);
        cuda_need(cudaDeviceSynchronize(), "a unit");
        cuda_need(cudaMemcpy(out + half_offset(&g->layout, &g->mesh.shape, u),
                      gpu_half(r, u, u == 0 ? P_wte : P_ln1w), (size_t)n * 2, cudaMemcpyDeviceToHost),
            "a unit");
    }
}
// The projections' gradients without the means of their columns; slack grows by what fp32 may cost that
// (slack / U: no less than the sizes of what the ranks add).
static void column_center(double* values, double* slack, int64_t rows, int64_t columns) {
    double mean = 0, size = 0;
    double carried = 0;
    for (int64_t i = 0; i < rows; i++) {
        const int64_t j = i * columns;
        mean += values[j] / (double)rows;
        size += (fabs(values[j]) + slack[j] / U) / (double)rows;
        carried += slack[j] / (double)rows;
    }
    for (int64_t i = 0; i < rows; i++) {
        const int64_t j = i * columns;
        slack[j] += carried + ((double)rows / 8 + 16) * U * (size + fabs(values[j]) + slack[j] / U);
        values[j] -= mean;
    }
}
static void values_center(const gpt2_sp* g, double* values, double* slack) {
    for (int l = 1; l <= g->mesh.shape.L; l++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(&g->mesh.shape, id);
            const int64_t columns = max_i64(1, p.columns),
                          at = g->layout.units[l].offset + g->layout.within[id];
            for (int64_t c = at; p.centred && c < at + columns; c++)
                column_center(values + c, slack + c, p.rows, columns);
        }
}

// One step of the optimizer: what the ranks begin with, and what fp64 makes of it, in the layout of all
// units.
typedef struct {
    const char* name;
    gpt2_sp* g;
    int center;
    double clip;
    int64_t n;                // numbers of all units
    double* values[STATES];   // before the step; the gradients as their sum over the ranks, centred
    double* slack;            // of those gradients
    double *w, *m, *v;        // after the step
    double *w_bound, *m_bound, *v_bound;
    AdamW adamw;
} OptimizerCase;

// One rank's numbers of a state, as far as the test's case has any for it.
static float optimizer_number(int state, int rank, int64_t at) {
    static const double scales[STATES] = {0.1, 0.3, 0.2, 0};
    if (state == STATE_V) return (float)(0.01 + pow(0.1 * noise(393, at), 2));
    double x = scales[state] * noise(390 + (uint64_t)(state + 100 * rank), at);
    return (float)(x + (state == STATE_GRADIENTS ? 0.1 : 0));
}

// Puts a state onto all ranks. Every rank has gradients of its own; from --zero 2 on they are summed and
// centred.
static void optimizer_fill(OptimizerCase* t, int state) {
    const gpt2_sp* g = t->g;
    const int W = g->mesh.world, gradients = state == STATE_GRADIENTS;
    const int parts = gradients && g->mesh.zero < 2;
    double *values = host_zeros(t->n), *slack = t->slack;
    t->values[state] = values;
    std::vector<float> host((size_t)t->n);
    for (int w = 0; w < W; w++) {
        for (int u = 0; (parts || w == 0) && u < g->layout.count; u++)
            for (int64_t i = 0; i < g->layout.units[u].elements; i++) {
                const Unit* unit = &g->layout.units[u];
                const int64_t at = unit->offset + i;
                const float x = host[(size_t)at] = optimizer_number(state, w, at);
                if (parts && unit->own && i / unit->slice != w)
                    continue;   // not this rank's: it has no place
                values[at] += (double)x;
                if (parts && !unit->own && W > 1) slack[at] += W * U * fabs((double)x);
            }
        if (gradients && !parts && t->center && w == 0) {
            values_center(g, values, slack);
            for (int64_t i = 0; i < t->n; i++) {
                host[(size_t)i] = (float)values[i];
                values[i] = host[(size_t)i];
                slack[i] = 0;
            }
        }
        state_write(g, w, state, host.data());
    }
    if (parts && t->center) values_center(g, values, slack);
}

static void stats_write(const OptimizerCase* t, int rank, const double stats[STAT_COUNT]) {
    const Gpu* d = (const Gpu*)t->g->ranks[rank].device;
    cuda_need(cudaMemcpy(d->stats, stats, STAT_COUNT * sizeof *stats, cudaMemcpyHostToDevice), t->name);
}
static void stats_read(const OptimizerCase* t, int rank, double stats[STAT_COUNT]) {
    const Gpu* d = (const Gpu*)t->g->ranks[rank].device;
    cuda_need(cudaMemcpy(stats, d->stats, STAT_COUNT * sizeof *stats, cudaMemcpyDeviceToHost), t->name);
}

// Runs the step, and holds the norm and the scale that it took. Returns the scale by fp64.
static double optimizer_norm(OptimizerCase* t) {
    const int W = t->g->mesh.world;
    const double* gradients = t->values[STATE_GRADIENTS];
    double stats[STAT_COUNT] = {2.5, NAN, NAN}, others[STAT_COUNT];
    double square = 0;
    for (int w = 0; w < W; w++) stats_write(t, w, stats);
    if (ranks_run(t->g, rank_optimizer_step, &t->adamw) != 0)
        check(0, statement(t->name, "the step runs"), "%s", t->g->error.text);
    for (int64_t i = 0; i < t->n; i++) square += gradients[i] * gradients[i];
    const double norm = sqrt(square), scale = t->clip > 0 ? fmin(1, t->clip / (norm + 1e-6)) : 1;
    const double bound = (64 + 8 * W) * U;
    int alike = 0;
    for (int k = W - 1; k >= 0; k--) {
        stats_read(t, k, stats);
        if (k == W - 1) memcpy(others, stats, sizeof others);
        alike += stats[STAT_ALL_LOSS] == 2.5 * W && stats[STAT_ALL_SQUARE] == others[STAT_ALL_SQUARE] &&
            stats[STAT_SCALE] == others[STAT_SCALE];
    }
    check(alike == W && fabs(stats[STAT_ALL_SQUARE] - square) <= bound * square &&
            fabs(stats[STAT_SCALE] - scale) <= bound * scale,
        statement(t->name, "all ranks take the norm and scale of all gradients"),
        "square of the norm %.9g, expected %.9g; scale %.9g, expected %.9g; alike on %d of %d ranks",
        stats[STAT_ALL_SQUARE], square, stats[STAT_SCALE], scale, alike, W);
    return scale;
}

// AdamW by fp64 on one number, whose learning rate is `rate` times that of the step, and how what fp32 may
// cost its gradient goes on into the moments and the weight. Rate 0: nothing changes.
static void optimizer_exact(OptimizerCase* t, int64_t at, double scale, double rate, int decay) {
    const AdamW* a = &t->adamw;
    const double lr = a->lr * rate;
    const double c1 = 1 / (1 - pow(a->beta1, 7)), c2 = 1 / (1 - pow(a->beta2, 7));
    const double weight = t->values[STATE_WEIGHTS][at], m = t->values[STATE_M][at],
                 v = t->values[STATE_V][at];
    const double q = t->values[STATE_GRADIENTS][at] * scale, dq = t->slack[at] * scale + 66 * U * fabs(q);
    t->m[at] = a->beta1 * m + (1 - a->beta1) * q;
    t->m_bound[at] = (1 - a->beta1) * dq + 4 * U * (fabs(m) + fabs(q));
    t->v[at] = a->beta2 * v + (1 - a->beta2) * q * q;
    t->v_bound[at] = (1 - a->beta2) * 2 * fabs(q) * dq + 8 * U * (v + q * q);
    const double root = sqrt(t->v[at] * c2), move = t->m[at] * c1 / (root + a->eps);
    const double shrink = decay ? lr * a->weight_decay : 0;
    t->w[at] = weight - lr * move - shrink * weight;
    t->w_bound[at] = lr *
            (t->m_bound[at] * c1 / root + fabs(move) * t->v_bound[at] * c2 / (2 * root * root) +
                16 * U * fabs(move)) +
        4 * U * fabs(weight);
    if (rate > 0) return;
    t->w[at] = weight, t->w_bound[at] = 0;
    t->m[at] = m, t->m_bound[at] = 0;
    t->v[at] = v, t->v_bound[at] = 0;
}

static void optimizer_judge(OptimizerCase* t, double scale) {
    const gpt2_sp* g = t->g;
    for (int u = 0; u < g->layout.count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(&g->mesh.shape, id);
            const int64_t first = g->layout.units[u].offset + g->layout.within[id];
            for (int64_t i = 0; p.unit == g->layout.units[u].kind && i < parameter_elements(&p); i++)
                optimizer_exact(t, first + i, scale, g->layout.units[u].rate[id], p.decay);
        }
    const struct {
        int state;
        const char* what;
        const double *exact, *bound;
    } states[3] = {{STATE_WEIGHTS, "weights", t->w, t->w_bound}, {STATE_M, "m", t->m, t->m_bound},
        {STATE_V, "v", t->v, t->v_bound}};
    for (int k = 0; k < 3; k++) {
        std::vector<float> host((size_t)t->n);
        collect(g, states[k].state, host.data());
        double* found = host_zeros(t->n);
        for (int64_t i = 0; i < t->n; i++) found[i] = host[(size_t)i];
        judge(t->name, states[k].what, found, states[k].exact, NULL, states[k].bound, t->n);
    }
}

// Numbers of the bf16 copies, one after the other.
typedef struct {
    double *exact, *plain, *bound, *found;
    int64_t count;
} Halves;

// The bf16 copy of a parameter of unit u: of its weights, without the means of their columns where it is
// centred.
static void halves_add(const OptimizerCase* t, int u, int id, const bf16* half, Halves* h) {
    const Layout* layout = &t->g->layout;
    Parameter p = parameter(&t->g->mesh.shape, id);
    const int64_t columns = max_i64(1, p.columns), from = layout->units[u].offset + layout->within[id];
    const bf16* copy = half + half_offset(layout, &t->g->mesh.shape, u) + layout->within[id];
    const int centred = t->center && p.centred;
    for (int64_t c = 0; c < columns; c++) {
        double mean = 0;
        for (int64_t i = 0; centred && i < p.rows; i++) mean += t->w[from + i * columns + c] / (double)p.rows;
        for (int64_t i = 0; i < p.rows; i++) {
            const int64_t at = from + i * columns + c, k = h->count++;
            h->exact[k] = t->w[at] - mean;
            h->plain[k] = bf16_of(h->exact[k]);
            h->bound[k] = 2 * t->w_bound[at];
            h->found[k] = (double)__bfloat162float(copy[i * columns + c]);
        }
    }
}

static void optimizer_halves(OptimizerCase* t) {
    gpt2_sp* g = t->g;
    const int64_t n = half_offset(&g->layout, &g->mesh.shape, kind_unit(&g->layout, UNIT_FINAL));
    std::vector<bf16> half((size_t)n);
    Halves h = {host_zeros(t->n), host_zeros(t->n), host_zeros(t->n), host_zeros(t->n), 0};
    for (int w = 0; w < g->mesh.world; w++) {
        halves_read(g, w, half.data());
        h.count = 0;
        for (int u = 0; u <= 3; u++)
            for (int id = 0; id < PARAMETER_COUNT; id++)
                if (parameter(&g->mesh.shape, id).unit == g->layout.units[u].kind && id != P_wpe)
                    halves_add(t, u, id, half.data(), &h);
        judge(t->name, "bf16 copies", h.found, h.exact, h.plain, h.bound, h.count);
    }
}

// A gradient or a loss that is not finite, on one rank: no number changes on any.
static void optimizer_not_finite(OptimizerCase* t) {
    static const double bad[3] = {INFINITY, NAN, NAN};
    static const int states[3] = {STATE_WEIGHTS, STATE_M, STATE_V};
    gpt2_sp* g = t->g;
    const int W = g->mesh.world;
    int64_t changed = 0, refused = 0;
    std::vector<float> kept[3], now((size_t)t->n);
    for (int s = 0; s < 3; s++) {
        collect(g, states[s], now.data());
        kept[s] = now;
    }
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < W; i++) {
            const int spoilt = i == W - 1;
            float gradient = spoilt && k < 2 ? (float)bad[k] : 0.5f;
            double fresh[STAT_COUNT] = {spoilt && k == 2 ? bad[k] : 2.5};
            float* to = ((const Gpu*)g->ranks[i].device)->state[STATE_GRADIENTS] + 12345;
            cuda_need(cudaMemcpy(to, &gradient, 4, cudaMemcpyHostToDevice), t->name);
            stats_write(t, i, fresh);
        }
        if (ranks_run(g, rank_optimizer_step, (void*)&t->adamw) != 0)
            check(0, statement(t->name, "the step runs"), "%s", g->error.text);
        for (int i = 0; i < W; i++) {
            double stats[STAT_COUNT];
            stats_read(t, i, stats);
            refused += stats[STAT_SCALE] == -1;
        }
        for (int s = 0; s < 3; s++) {
            collect(g, states[s], now.data());
            changed += memcmp(kept[s].data(), now.data(), (size_t)t->n * 4) != 0;
        }
    }
    check(changed == 0 && refused == 3 * W,
        statement(t->name, "what is not finite on one rank changes nothing on any"),
        "inf or NaN among a rank's gradients, NaN for its loss: %lld of 3 updates refused on %d ranks, %lld "
        "arrays changed",
        (long long)(refused / W), W, (long long)changed);
}

static void optimizer_step(const char* more, int center, double clip, const char* name) {
    char text[256];
    snprintf(text, sizeof text, "layers=3 heads=2 channels=128 seq-len=40 center=%d %s", center, more);
    gpt2_sp_options o = options_of(text);
    OptimizerCase t;
    memset(&t, 0, sizeof t);
    t.g = bare_trainer(&o, 131);
    if (!t.g) return;
    t.name = name;
    t.center = center, t.clip = clip;
    t.n = t.g->layout.elements;
    t.slack = host_zeros(t.n);
    t.w = host_zeros(t.n), t.w_bound = host_zeros(t.n);
    t.m = host_zeros(t.n), t.m_bound = host_zeros(t.n);
    t.v = host_zeros(t.n), t.v_bound = host_zeros(t.n);
    for (int state = 0; state < STATES; state++) optimizer_fill(&t, state);
    AdamW a = {1e-2, 0.9, 0.95, 1e-8, 0.1, 1, 1, 7};
    t.adamw = a;
    t.g->options.grad_clip = clip;
    double scale = optimizer_norm(&t);
    optimizer_judge(&t, scale);
    optimizer_halves(&t);
    optimizer_not_finite(&t);
    gpt2_sp_destroy(t.g);
    tensors_release(name);
}

#define EACH_CASE(table, i) for (size_t i = 0; i < sizeof table / sizeof table[0]; i += quick ? 3 : 1)
static void test_kernels(void) {
    EACH_CASE(EMBEDDING_CASES, i) kernel_embedding(&EMBEDDING_CASES[i]);
    EACH_CASE(NORM_CASES, i) kernel_rmsnorm(&NORM_CASES[i]);
    static const int64_t gelus[] = {8, 2048, 2056, 40008};
    EACH_CASE(gelus, i) kernel_gelu(gelus[i]);
    EACH_CASE(COLUMNS_CASES, i) kernel_columns(&COLUMNS_CASES[i]);
    static const int64_t entropies[][2] = {
        {7, 257}, {1, 1}, {3, 8}, {9, 128}, {12, 50257}, {6, 8200}, {6, 110001}};
    EACH_CASE(entropies, i)
    for (int learn = 0; learn < 2; learn++) kernel_crossentropy(entropies[i][0], entropies[i][1], learn);
    static const int64_t products[][3] = {
        {77, 64, 192}, {1, 128, 384}, {200, 192, 256}, {129, 320, 128}, {256, 128, 512}};
    EACH_CASE(products, i)
    for (int kind = 0; kind < MM_KINDS; kind++)
        kernel_matmul(products[i][0], products[i][1], products[i][2], kind, 0);
    for (int kind = 0; kind < MM_KINDS && !quick; kind++)
        if (kind != MM_IN_PLACE) kernel_matmul(200, 192, 256, kind, 1);
    static const int64_t centres[][3] = {{64, 64, 1}, {1, 5, 2}, {128, 1, 3}, {77, 100, 2}, {320, 33, 4}};
    EACH_CASE(centres, i) kernel_center(centres[i][0], centres[i][1], centres[i][2]);
    static const int64_t sums[] = {1, 1023, 1024, 5000};
    EACH_CASE(sums, i) kernel_loss_sum(sums[i]);
    optimizer_step("", 1, 1.0, "optimizer, centred, clipped");
    optimizer_step("freeze=h.0.*,wte.weight,h.2.mlp.c_proj.weight,ln_f.bias lr-scale=h.1.*=0.25,wpe.weight=3",
        1, 1.0, "optimizer, frozen and scaled parameters");
    if (quick) return;
    optimizer_step("", 0, 0, "optimizer, not centred, not clipped");
    optimizer_step("", 1, 1e6, "optimizer, centred, far from clipping");
}

// ===== the attention oracle =====================================================================
// The attention kernels against attention written out in fp64, in dev/test_attention.cu. Held: every head
// size, schedule of blocks and mask gives its numbers within what bf16 lets them be. They are the kernels
// that are hardest to get right and cost most when they are wrong in one tile: the loss of such a model only
// falls a little less.

namespace attention_oracle {
#define ATTENTION_TEST_NO_MAIN
#include "test_attention.cu"
}   // namespace attention_oracle
static void test_oracle(void) {
    char program[] = "test_attention", small[] = "quick";
    char* words[] = {program, small, NULL};
    attention_oracle::attention_tests(quick ? 2 : 1, words);
    passed += attention_oracle::passed;
    failed += attention_oracle::failed;
}

// ===== training =================================================================================
// Whole steps on the GPU beside the same steps on the CPU. Held: losses and the first norm follow the CPU
// reference within what bf16 explains; recomputation agrees, to the bit where it makes the same numbers
// again; --deterministic 1 repeats; a step that is not finite changes nothing. Kernels that are right alone
// may be called with another's buffer or a step too early: that shows here.

// How far the loss of a step on the GPU may be from the reference's. Rounding leaves each logit an error of
// rounding_noise(n) of the logits' size, n as in --verify; the loss moves with it by |p - y| <= sqrt 2 of
// that per token, and its mean by no more. At the start the logits' size is known: 0.02 sqrt C. Later it has
// grown by no less than the loss has moved, and each of those moves was made by gradients with noise of their
// own (n with the backward pass), which leaves the same share of it as an error in the weights: as much
// again, added as squares. So after the first step, 2 rounding_noise(n) of the start and of the length of the
// way that the loss has gone.
static double training_tolerance(const Run* reference, int step, int64_t L, int64_t C) {
    double size = 0.02 * sqrt((double)C);
    if (step == 0) return sqrt(2.0) * rounding_noise((double)roundings_of_loss(L)) * size;
    for (int i = 1; i <= step; i++) size += fabs(reference->loss[i] - reference->loss[i - 1]);
    return 2 * rounding_noise((double)roundings_of_gradient(L, 0)) * size;
}
// Largest share of the tolerance over all steps; NaN if a run is short.
static double training_share(const Run* found, const Run* reference, int64_t L, int64_t C, int* at) {
    double most = found->steps == reference->steps && found->steps > 0 ? 0 : NAN;
    for (int i = 0; i < found->steps; i++) {
        double share = fabs(found->loss[i] - reference->loss[i]) / training_tolerance(reference, i, L, C);
        if (!(share <= most)) *at = i;
        most = worst(most, share);
    }
    return most;
}
static Run run_on(const Device* device, const char* more, int steps) {
    gpt2_sp_device = device;
    Run run = run_steps(more, steps);
    gpt2_sp_device = &GPU_DEVICE;
    return run;
}

// The quick suite leaves the choice of matrix products by timing out: under compute-sanitizer each of its
// thousands of launches takes long.
static const char* model(void) {
    return quick ? "layers=3 heads=2 channels=128 threads=4 lr=1e-3 deterministic=1"
                 : "layers=3 heads=2 channels=128 threads=4 lr=1e-3";
}
typedef struct {
    const char* options;
    int layers, channels;
} TrainingCase;

// A run on the GPU in one mode, held against the reference's.
static void training_judge(
    const Run* run, const Run* reference, const TrainingCase* c, const char* mode, int steps) {
    int at = 0;
    double share = training_share(run, reference, c->layers, c->channels, &at);
    double tolerance = training_tolerance(reference, at, c->layers, c->channels);
    double norm = fabs(run->norm[0] / reference->norm[0] - 1);
    double norm_limit = VERIFY_SAFETY * rounding_noise((double)roundings_of_gradient(c->layers, 0));
    check(share <= 1 && norm <= norm_limit, "training: losses and norm are as the CPU reference's",
        "%s %s: %d steps, loss %.4f -> %.4f; largest share of the tolerance %.3f, at step %d: %.6f, "
        "reference "
        "%.6f, tolerance %.2e; first norm off by %.2e, at most %.2e",
        c->options, mode, run->steps, run->loss[0], run->loss[steps - 1], share, at + 1, run->loss[at],
        reference->loss[at], tolerance, norm, norm_limit);
}

static void training_follows(const TrainingCase* c) {
    static const char* const modes[] = {"attn", "none", "gelu", "layer", "sqrt"};
    int steps = quick ? 2 : RUN_STEPS;
    char text[256];
    snprintf(text, sizeof text, "%s %s", model(), c->options);
    Run reference = run_on(&CPU_DEVICE, text, steps), first;
    memset(&first, 0, sizeof first);
    for (int m = 0; m < (quick ? 2 : 5); m++) {
        int at = 0;
        snprintf(text, sizeof text, "%s %s recompute=%s", model(), c->options, modes[m]);
        Run run = run_on(&GPU_DEVICE, text, steps);
        training_judge(&run, &reference, c, modes[m], steps);
        if (m == 0) {
            first = run;
            continue;
        }
        double share = training_share(&run, &first, c->layers, c->channels, &at);
        check(share <= 1, "training: recompute modes agree",
            "%s: %s and attn: largest share of the tolerance %.3f", c->options, modes[m], share);
        free(run.weights);
    }
    free(first.weights);
    free(reference.weights);
}

// --deterministic 1: the same run twice, bit for bit, with more than one block of keys per row of the
// attention. `layer` makes again the numbers that `attn` keeps: the same bits. (gelu and sqrt take the GELU
// of a value already rounded to bf16.)
static void training_repeats(void) {
    static const char* const shapes[] = {"recompute=attn", "recompute=none", "recompute=attn doc-mask=1",
        "recompute=sqrt layers=4 doc-mask=1"};
    int steps = quick ? 2 : 8;
    char text[256];
    for (int i = 0; i < 4; i += quick ? 2 : 1) {
        snprintf(text, sizeof text, "%s seq-len=700 batch-size=2 %s deterministic=1", model(), shapes[i]);
        Run a = run_on(&GPU_DEVICE, text, steps), b = run_on(&GPU_DEVICE, text, steps);
        check(run_equal(&a, &b), "training: --deterministic 1 repeats a run bit for bit",
            "%s: %d steps, losses, norms and %lld weights bit for bit", shapes[i], a.steps,
            (long long)a.parameters);
        if (i == 0) {
            const char* layer = "seq-len=700 batch-size=2 recompute=layer deterministic=1";
            snprintf(text, sizeof text, "%s %s", model(), layer);
            Run other = run_on(&GPU_DEVICE, text, steps);
            check(run_equal(&a, &other), "training: recomputation gives the same bits",
                "attn and layer: %d steps", other.steps);
            free(other.weights);
        }
        free(a.weights);
        free(b.weights);
    }
}

// A pass that is worked on in pieces (gpu_sequences) adds up to the whole.
static void training_pieces(void) {
    static const char* const shape = "layers=1 heads=1 channels=64 seq-len=16384 batch-size=4";
    char path[512], text[256];
    int32_t* tokens = stream_make(21, 70000, 3000);
    int at = 0;
    snprintf(path, sizeof path, "%s", scratch("long.tok"));
    stream_write(path, tokens, 70000);
    free(tokens);
    gpt2_sp_options o = run_options(shape);
    gpt2_sp_stats stats[2];
    Run runs[2];
    memset(runs, 0, sizeof runs);
    snprintf(o.data, sizeof o.data, "%s", path);
    int64_t pieces[2] = {0, 0};
    for (int m = 0; m < 2; m++) {
        o.recompute = m ? GPT2_SP_ATTN : GPT2_SP_NONE;
        gpt2_sp* g = trainer_of(&o, text, sizeof text);
        for (int i = 0; g && i < 3 && step_of(g, &stats[m]) == 0; i++)
            runs[m].loss[runs[m].steps++] = stats[m].loss;
        if (g) pieces[m] = g->mesh.shape.B / ((Gpu*)g->ranks[0].device)->B;
        gpt2_sp_destroy(g);
    }
    double share = training_share(&runs[1], &runs[0], 1, 64, &at);
    check(share <= 1 && pieces[0] == 1 && pieces[1] == 2, "training: a pass in pieces adds up to the whole",
        "%s: %lld pieces and %lld; largest share of the tolerance %.3f", shape, (long long)pieces[0],
        (long long)pieces[1], share);
}

// A trainer's weights and moments, from wherever its ranks keep them.
static std::vector<real> weights_and_m(const gpt2_sp* g) {
    std::vector<real> all((size_t)(2 * g->layout.elements));
    collect(g, STATE_WEIGHTS, all.data());
    collect(g, STATE_M, all.data() + g->layout.elements);
    return all;
}
static int same_bits(const std::vector<real>& a, const std::vector<real>& b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(real)) == 0;
}

// A weight that is not finite: the step says so and changes nothing; ten such steps in a row end the run.
static void training_not_finite(void) {
    char text[256], error[GPT2_SP_TEXT];
    snprintf(text, sizeof text, "%s seq-len=100 batch-size=2", model());
    gpt2_sp_options o = run_options(text);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    if (!g) {
        check(0, "training: a trainer is made", "%s", error);
        return;
    }
    Gpu* d = (Gpu*)g->ranks[0].device;
    gpt2_sp_stats stats;
    int status = step_of(g, &stats), updated = stats.updated;
    int refused = 0, steps = 0;
    const float huge = 1e30f;
    const bf16 half = __float2bfloat16(huge);
    cuda_need(cudaMemcpy(d->state[STATE_WEIGHTS] + 7, &huge, 4, cudaMemcpyHostToDevice), "a weight");
    cuda_need(cudaMemcpy(d->half + 7, &half, 2, cudaMemcpyHostToDevice), "a weight");
    const std::vector<real> before = weights_and_m(g);
    for (; status == 0 && steps < 12; steps++) {
        status = step_of(g, &stats);
        refused += !stats.updated;
    }
    int same = same_bits(before, weights_and_m(g));
    check(updated == 1 && refused == steps && steps == 10 && status == GPT2_SP_NOT_FINITE && same,
        "training: a step that is not finite updates nothing, ten end the run",
        "%d of %d steps refused, weights and moments %s; then: %s", refused, steps,
        same ? "unchanged" : "CHANGED", gpt2_sp_error(g));
    gpt2_sp_destroy(g);
}

static void test_training(void) {
    static const TrainingCase cases[] = {{"seq-len=150 batch-size=2", 3, 128},
        {"seq-len=200 batch-size=2 doc-mask=1 grad-clip=0.5", 3, 128},
        {"seq-len=96 batch-size=3 center=0 grad-accum=2", 3, 128},
        {"seq-len=129 batch-size=2 layers=5 grad-accum=2 doc-mask=1", 5, 128},
        {"seq-len=333 batch-size=1 layers=2 heads=3 channels=192", 2, 192},
        {"seq-len=61 batch-size=4 layers=1 heads=1 channels=64 logits-chunk=50", 1, 64},
        {"seq-len=150 batch-size=3 n-positions=333 pos-shift=0.7", 3, 128},
        {"seq-len=160 batch-size=2 n-positions=256 doc-mask=1 pos-from=document window-ramp=40 ramp-share=1",
            3, 128},
        {"seq-len=100 batch-size=2 positions=none fade-steps=4", 3, 128}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i += quick ? 4 : 1) training_follows(&cases[i]);
    training_repeats();
    training_not_finite();
    if (!quick) training_pieces();
}

// ===== checkpoints between the programs =========================================================

// Group `resume`: a run that changes from one program to the other half way. Held: the weights are the same
// to the bit, and the curve goes on as the CPU reference's; from GPU to GPU all of it to the bit. A model
// that is trained on rented GPUs is loaded, looked at and gone on with elsewhere: the other program must
// find in it what was trained.
static void crossing(const char* text, const char* shape, const Run* reference, int way, int steps) {
    static const char* const names[] = {"GPU to CPU", "CPU to GPU", "GPU to GPU"};
    const Device *from = way == 1 ? &CPU_DEVICE : &GPU_DEVICE, *to = way == 0 ? &CPU_DEVICE : &GPU_DEVICE;
    const int half = steps / 2;
    int at = 0;
    Run before = run_on(from, text, half);
    gpt2_sp_device = from, resume_device = to;
    Run loaded = run_resumed(text, text, half, half);
    gpt2_sp_device = from;
    Run run = run_resumed(text, text, half, steps);
    gpt2_sp_device = &GPU_DEVICE, resume_device = NULL;
    int same = loaded.weights && before.parameters == loaded.parameters &&
        memcmp(before.weights, loaded.weights, (size_t)before.parameters * sizeof(real)) == 0;
    check(same, "resume: the weights are those that were saved", "%s, %s: %lld weights bit for bit",
        names[way], shape, (long long)before.parameters);
    double share = training_share(&run, reference, 3, 128, &at);
    check(share <= 1, "resume: the curve goes on as the reference's",
        "%s, %s: saved at step %d of %d, largest share of the tolerance %.3f at step %d", names[way], shape,
        half, steps, share, at + 1);
    if (way == 2) {
        Run whole = run_on(&GPU_DEVICE, text, steps);
        check(run_equal(&run, &whole), "resume: a run on the GPU goes on bit for bit",
            "%s: %d steps, deterministic", shape, steps);
        free(whole.weights);
    }
    free(before.weights);
    free(loaded.weights);
    free(run.weights);
}
static void test_crossing(void) {
    static const char* const shapes[] = {"seq-len=150 batch-size=2",
        "seq-len=120 batch-size=2 doc-mask=1 center=0",
        "seq-len=120 batch-size=2 n-positions=200 pos-shift=0.5 positions=none fade-steps=8"};
    int steps = quick ? 2 : 12;
    for (int i = 0; i < (quick ? 1 : 3); i++) {
        char text[256];
        snprintf(text, sizeof text, "%s %s deterministic=1", model(), shapes[i]);
        Run reference = run_on(&CPU_DEVICE, text, steps);
        for (int way = 0; way < 3; way++) crossing(text, shapes[i], &reference, way, steps);
        free(reference.weights);
    }
}

// ===== sampling and evaluation ==================================================================

// Group `sampling`: a checkpoint on both programs. Held: validation counts the same tokens and gives the
// same loss, the logits after prompts of every kind of length are the reference's, and of greedy text each
// token is the reference's likeliest or within the logits' error of it. Whoever trains on GPUs judges the
// model by these figures.

// The limit of a relative error of the loss and of logits, of the groups' model of three layers.
static double logits_limit(void) { return VERIFY_SAFETY * rounding_noise((double)roundings_of_loss(3)); }

// A model trained for some steps on the GPU and the same from its checkpoint on the CPU; -1 if one is
// missing.
static int sampling_trainers(gpt2_sp** g, gpt2_sp** cpu) {
    const int steps = quick ? 2 : 10;
    char text[256], error[GPT2_SP_TEXT];
    snprintf(text, sizeof text, "%s seq-len=600 batch-size=2", model());
    gpt2_sp_options o = run_options(text), v;
    gpt2_sp_stats stats;
    snprintf(o.val_data, sizeof o.val_data, "%s", o.data);
    snprintf(o.out, sizeof o.out, "%s", scratch("sampling"));
    *g = trainer_of(&o, error, sizeof error);
    int status = *g ? 0 : -1;
    for (int i = 0; status == 0 && i < steps; i++) status = step_of(*g, &stats);
    if (status == 0) status = gpt2_sp_save(*g);
    v = o;
    v.out[0] = 0;
    snprintf(v.init_from, sizeof v.init_from, "%.900s/step_%08d", o.out, steps);
    gpt2_sp_device = &CPU_DEVICE;
    *cpu = trainer_of(&v, error, sizeof error);
    gpt2_sp_device = &GPU_DEVICE;
    if (status == 0 && *cpu) return 0;
    check(0, "sampling: a model is trained and loaded", "%s", *g && status ? gpt2_sp_error(*g) : error);
    return -1;
}

static void sampling_validate(gpt2_sp* g, gpt2_sp* cpu) {
    double loss = NAN, reference = NAN;
    int status = gpt2_sp_validate(g, 5, &loss);
    const Evaluation found = g->evaluation;
    status |= gpt2_sp_validate(cpu, 5, &reference);
    int counts = found.count == cpu->evaluation.count;
    check(status == 0 && counts && fabs(loss - reference) <= logits_limit() * reference,
        "evaluation: the loss is the CPU reference's",
        "5 sequences: %.6f, reference %.6f, at most %.2g of it apart; %s", loss, reference, logits_limit(),
        counts ? "the same tokens" : "OTHER TOKENS");
}

// A prompt of n tokens and what the GPU says after it, token by token through both decoders.
static void sampling_follows(gpt2_sp* g, gpt2_sp* cpu, const int32_t* prompt, int64_t n) {
    const int64_t V = cpu->mesh.shape.V;
    int32_t out[16];
    int64_t made = generated(g, prompt, n, out, 16, 0, 0, 1, 1);
    double most = 0, regret = 0;
    void *decoder = decoder_open(cpu, n + 16), *gpu = gpu_decoder_open(g, n + 16);
    real *logits = reals(cpu->mesh.shape.Vp), *reference = reals(cpu->mesh.shape.Vp);
    double* expected = doubles(V);
    int wrong = !decoder || !gpu;
    if (!wrong) decoder_read(decoder, prompt, n, 0, 1, reference);
    wrong |= !wrong && gpu_decoder_read(gpu, prompt, n, 0, 1, logits) != 0;
    for (int64_t k = 0; !wrong && k < made; k++) {
        double best = -INFINITY, size = 0;
        for (int64_t t = 0; t < V; t++) {
            expected[t] = (double)reference[t];
            best = fmax(best, expected[t]);
            size = fmax(size, fabs(expected[t]));
        }
        most = worst(most, distance(logits, expected, V));
        regret = worst(regret, (best - expected[out[k]]) / size);
        decoder_read(decoder, out + k, 1, n + k, 1, reference);
        wrong |= gpu_decoder_read(gpu, out + k, 1, n + k, 1, logits) != 0;
    }
    check(!wrong && made == 16 && most <= logits_limit() && regret <= 2 * logits_limit(),
        "sampling: logits and greedy text are the CPU reference's",
        "a prompt of %lld and 16 tokens: logits off by %.3g, at most %.3g; tokens below the likeliest by "
        "%.3g of the "
        "largest logit",
        (long long)n, most, logits_limit(), regret);
    if (decoder) decoder_close(decoder);
    if (gpu) gpu_decoder_close(gpu);
    free(logits);
    free(reference);
    free(expected);
}

// The logits of 1 to FEW_ROWS rows, bit for bit those of single rows, where blocks of keys end too; and the
// logits of the same tokens as part of a longer prompt, which the kernels of training read.
static void sampling_rows(const char* shape) {
    enum { N = 700 };
    char text[256], error[GPT2_SP_TEXT];
    snprintf(text, sizeof text, "layers=2 seq-len=720 batch-size=1 %s", shape);
    gpt2_sp_options o = run_options(text);
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    if (!g) {
        check(0, "sampling: a trainer of few rows is made", "%s: %s", shape, error);
        return;
    }
    const int64_t V = g->mesh.shape.V, Vp = g->mesh.shape.Vp;
    void *one = gpu_decoder_open(g, N), *many = gpu_decoder_open(g, N), *whole = gpu_decoder_open(g, N);
    int32_t tokens[N];
    real *alone = reals(Vp), *together = reals(FEW_ROWS * Vp), *prompt = reals(Vp);
    double* expected = doubles(V);
    int64_t equal = 0, all = 0, wrong = !one || !many || !whole;
    double most = 0;
    for (int i = 0; i < N; i++) tokens[i] = (int32_t)dice(99, (uint64_t)i, 64);
    for (int64_t start = 0; !wrong && start < N; start += 570) {
        if (start > 0) wrong |= gpu_decoder_read(one, tokens, start, 0, 0, NULL);
        if (start > 0) wrong |= gpu_decoder_read(many, tokens, start, 0, 0, NULL);
        for (int64_t p = start, n = 1; p + n <= N && n <= FEW_ROWS; p += n, n++) {
            wrong |= gpu_decoder_read(many, tokens + p, n, p, n, together);
            for (int64_t i = 0; i < n; i++, all++) {
                wrong |= gpu_decoder_read(one, tokens + p + i, 1, p + i, 1, alone);
                equal += memcmp(alone, together + i * Vp, (size_t)V * sizeof *alone) == 0;
            }
        }
        int64_t read = start + FEW_ROWS * (FEW_ROWS + 1) / 2 < N ? start + FEW_ROWS * (FEW_ROWS + 1) / 2 : N;
        if (start > 0) read = 570 + 120;   // 1 + 2 + ... + 15
        wrong |= gpu_decoder_read(one, tokens + read - 1, 1, read - 1, 1, alone);
        wrong |= gpu_decoder_read(whole, tokens, read, 0, 1, prompt);
        for (int64_t v = 0; v < V; v++) expected[v] = (double)prompt[v];
        most = worst(most, distance(alone, expected, V));
    }
    check(!wrong && equal == all && all == 136 + 120,
        "sampling: tokens read together have the logits of tokens read alone",
        "%s: %lld of %lld rows alike to the bit %s", shape, (long long)equal, (long long)all,
        wrong ? gpt2_sp_error(g) : "");
    check(!wrong && most > 0 && most <= logits_limit(),
        "sampling: few rows have the logits that a prompt's rows have", "%s: %.3g apart, at most %.3g", shape,
        most, logits_limit());
    if (one) gpu_decoder_close(one);
    if (many) gpu_decoder_close(many);
    if (whole) gpu_decoder_close(whole);
    free(alone);
    free(together);
    free(prompt);
    free(expected);
    gpt2_sp_destroy(g);
}

// Greedy text with drafts that agree always, often and seldom is that without.
static void sampling_drafted(gpt2_sp* g) {
    char text[256], error[GPT2_SP_TEXT];
    snprintf(text, sizeof text, "%s seq-len=600 batch-size=2 seed=3", model());
    gpt2_sp_options o = run_options(text);
    gpt2_sp* other = trainer_of(&o, error, sizeof error);
    gpt2_sp_generated stats[2];
    int equal = 0, all = 0;
    memset(stats, 0, sizeof stats);
    if (other) other->eot = g->eot;
    for (uint64_t i = 0; other && i < 40; i++, all++) {
        int32_t prompt[300], alone[64], drafted[64];
        int64_t n = 1 + (int64_t)dice(101, i, 300);
        gpt2_sp_sampling how = drawing(0, 0, 1, 1);
        how.draft_tokens = 1 + (int64_t)(i % GPT2_SP_DRAFT_TOKENS);
        for (int64_t k = 0; k < n; k++) prompt[k] = (int32_t)dice(102, 1000 * i + (uint64_t)k, 64);
        gpt2_sp_generator* x = gpt2_sp_generator_open(g, i % 2 ? other : g, prompt, n, 64);
        gpt2_sp_generated done = {0, 0, 0, 0, 0, 0, 0, 0, 0};
        int64_t made = generated(g, prompt, n, alone, 64, 0, 0, 1, 1);
        equal += x && made == 64 && gpt2_sp_generator_run(x, drafted, 64, &how) == 64 &&
            memcmp(alone, drafted, sizeof alone) == 0;
        if (x) generated_of(x, &done);
        stats[i % 2].drafted += done.drafted, stats[i % 2].accepted += done.accepted;
        gpt2_sp_generator_close(x);
    }
    check(equal == all && all == 40 && stats[0].accepted == stats[0].drafted && stats[0].drafted > 0 &&
            stats[1].accepted < stats[1].drafted,
        "sampling: greedy text is the same with a draft",
        "%d of %d prompts; of the model itself %lld of %lld tokens are taken, of another %lld of %lld", equal,
        all, (long long)stats[0].accepted, (long long)stats[0].drafted, (long long)stats[1].accepted,
        (long long)stats[1].drafted);
    gpt2_sp_destroy(other);
}

static void test_gpu_sampling(void) {
    static const int64_t lengths[] = {1, 20, 256, 257, 300, 513};
    gpt2_sp *g, *cpu;
    int32_t prompt[600], out[16];
    if (sampling_trainers(&g, &cpu) != 0) return;
    sampling_validate(g, cpu);
    for (int64_t i = 0; i < 600; i++) prompt[i] = (int32_t)dice(97, (uint64_t)i, 64);
    g->eot = cpu->eot = -1;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i += quick ? 3 : 1)
        sampling_follows(g, cpu, prompt, lengths[i]);
    sampling_drafted(g);
    sampling_rows("heads=2 channels=128");
    sampling_rows("heads=3 channels=144 center=0");
    sampling_rows("heads=1 channels=32");
    sampling_rows("heads=5 channels=560");
    int64_t none = generated(g, prompt, 590, out, 16, 0, 0, 1, 1);
    check(none == GPT2_SP_INVALID && strstr(gpt2_sp_error(g), "590 tokens and 16 more"),
        "sampling: more tokens than the context holds are refused", "%s", gpt2_sp_error(g));
    gpt2_sp_destroy(g);
    gpt2_sp_destroy(cpu);
}

// ===== memory ===================================================================================

// What the GPU's memory takes. Held: the arena is as planned to the byte, steps take nothing beside it, and
// a context or a batch that has no room is refused with what would fit. A run that takes a little more in
// its thousandth step ends there, with nothing to show which of its allocations was one too many.

static void gpu_memory_planned(const char* shape) {
    char text[256], error[GPT2_SP_TEXT];
    snprintf(text, sizeof text, "%s %s", model(), shape);
    gpt2_sp_options o = run_options(text);
    gpt2_sp_stats stats;
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    if (!g) {
        check(0, "memory: the trainer is made", "%s", error);
        return;
    }
    const Arena plan = gpu_plan(&g->mesh, &g->layout, 0), *arena = &((Gpu*)g->ranks[0].device)->arena;
    size_t sum = 0, differ = 0;
    for (int k = 0; k < MEMORY_GROUP_COUNT; k++) {
        sum += plan.group[k];
        differ += plan.group[k] != arena->group[k];
    }
    check(differ == 0 && sum == plan.used && plan.used == arena->used, "memory: the arena is as planned",
        "%s: %zu bytes planned, %zu in groups, %zu taken", shape, plan.used, sum, arena->used);
    size_t after = 0, ended = 0;
    size_t total = 0;
    int status = step_of(g, &stats);
    cudaMemGetInfo(&after, &total);
    for (int k = 0; k < 2 && status == 0; k++) status = step_of(g, &stats);
    cudaMemGetInfo(&ended, &total);
    check(status == 0 && ended == after, "memory: steps need no more",
        "%s: %lld bytes of the GPU taken by two steps", shape, (long long)after - (long long)ended);
    gpt2_sp_destroy(g);
}

// Options that no GPU has room for: refused with these parts in the message.
static void gpu_memory_refused(
    const gpt2_sp_options* o, const char* name, const char* part, const char* other) {
    gpt2_sp* g = trainer_new(o);
    int status = g ? trainer_init(g, 50257, 1) : 0;
    check(status == -1 && strstr(g->error.text, part) && strstr(g->error.text, other), name, "%s",
        g ? g->error.text : "out of memory");
    gpt2_sp_destroy(g);
}

static void test_gpu_memory(void) {
    static const char* const shapes[] = {"batch-size=2 seq-len=150",
        "batch-size=4 seq-len=500 recompute=sqrt layers=5 doc-mask=1",
        "batch-size=1 seq-len=333 recompute=none grad-accum=3",
        "batch-size=2 seq-len=4000 recompute=layer logits-chunk=100"};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i += quick ? 3 : 1)
        gpu_memory_planned(shapes[i]);
    gpt2_sp_options o = options_of("layers=48 heads=25 channels=1600 seq-len=16000000 batch-size=1");
    gpu_memory_refused(&o, "memory: too long a context is refused with what would fit",
        "the longest context that fits is ", "no batch fits");
    options_apply(&o, "seq-len=1024 batch-size=2048 recompute=none");
    gpu_memory_refused(&o, "memory: too large a batch is refused with what would fit",
        "with --seq-len 1024 the largest batch is ", "with --seq-len 1024");
}

// ===== --verify =================================================================================

// What users have to trust a GPU that these tests never saw. Held: --verify finds a whole step right where
// it is, and wrong where one weight of the bf16 copy is off or NaN, at a layer or in the embedding: the
// reference does not follow. A check that passes whatever happens would be worse than none.

// A job's status, and the last line that it prints.
static int quietly(int (*job)(gpt2_sp*), gpt2_sp* g, char* last, size_t size) {
    fflush(stdout);
    int kept = dup(1), fd = open(scratch("verify"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    dup2(fd, 1);
    int status = job(g);
    fflush(stdout);
    dup2(kept, 1);
    close(kept);
    off_t end = lseek(fd, 0, SEEK_END), from = end > (off_t)size ? end - (off_t)size + 1 : 0;
    ssize_t n = pread(fd, last, size - 1, from);
    close(fd);
    last[n > 0 ? n - (last[n - 1] == '\n') : 0] = 0;
    char* line = strrchr(last, '\n');
    if (line) memmove(last, line + 1, strlen(line));
    return status;
}

static const char* const VERIFY_SHAPES[] = {"seq-len=150 batch-size=2 recompute=none",
    "seq-len=200 batch-size=2 recompute=attn doc-mask=1 grad-accum=2",
    "seq-len=300 batch-size=1 recompute=sqrt layers=5 center=0",
    "seq-len=129 batch-size=3 recompute=gelu layers=12 heads=4 channels=256",
    "seq-len=160 batch-size=3 recompute=none n-positions=300 pos-shift=1"};
static gpt2_sp* verify_trainer(const char* shape, char error[GPT2_SP_TEXT]) {
    char text[256];
    snprintf(text, sizeof text, "%s %s verify=1", model(), shape);
    gpt2_sp_options o = run_options(text);
    Error e = {0, {0}};
    gpt2_sp* g = trainer_new(&o);   // as `train` makes it: gpt2_sp_create refuses --verify
    g = trainer_checked(g, g ? trainer_create(g) : -1, &e);
    snprintf(error, GPT2_SP_TEXT, "%s", e.text);
    return g;
}

static void test_verify(void) {
    static const struct {
        const char* what;
        int unit, id, row;
        float value;
    } planted[] = {{"weight of V", 2, P_qkvw, 2 * 128 + 3, 0.5f}, {"fc weight", 1, P_fcw, 3, 0.5f},
        {"fcproj weight", 3, P_fcprojw, 3, 0.5f}, {"wte", 0, P_wte, 3, 0.5f}, {"NaN", 2, P_fcw, 3, NAN}};
    char error[GPT2_SP_TEXT], last[512];
    for (size_t i = 0; i < sizeof VERIFY_SHAPES / sizeof VERIFY_SHAPES[0]; i += quick ? 4 : 1) {
        gpt2_sp* g = verify_trainer(VERIFY_SHAPES[i], error);
        int status = g ? quietly(gpu_verify, g, last, sizeof last) : -1;
        check(status == 0, "--verify: a whole step is found right", "%s: %s %s", VERIFY_SHAPES[i],
            g ? last : error, g && status ? gpt2_sp_error(g) : "");
        gpt2_sp_destroy(g);
    }
    for (size_t i = 0; i < sizeof planted / sizeof planted[0]; i += quick ? 4 : 1) {
        gpt2_sp* g = verify_trainer(VERIFY_SHAPES[0], error);
        if (!g) continue;
        const bf16 value = __float2bfloat16(planted[i].value);
        bf16* to = gpu_half(&g->ranks[0], planted[i].unit, planted[i].id) + planted[i].row * 128 + 5;
        cuda_need(cudaMemcpy(to, &value, 2, cudaMemcpyHostToDevice), "a weight");
        int status = quietly(gpu_verify, g, last, sizeof last);
        check(status == -1 && strstr(gpt2_sp_error(g), "are too far from the reference"),
            "--verify: one wrong weight is found", "%s: %s", planted[i].what,
            status ? gpt2_sp_error(g) : last);
        gpt2_sp_destroy(g);
    }
}

#include "test_gpu_ranks.h"

#include "test_gpu_products.h"
