/* Every algorithm that the library proposes for the products of a step: a leaf of dev/test_gpu.h, the group
 * `products`.
 *
 * For each product of a step (forward with every epilogue, with and without a residual; gradients of inputs
 * and of weights; the head) and row counts from 1 to 4,096, on and off the tiles, all proposals are run, not
 * only the one that would be chosen:
 *     ones      A and B all ones, the bias 1, C 2: D is a whole number, the same everywhere, and every
 *               element must be it exactly
 *     noise     against fp64, computed here by a kernel of the test's own, every element within the bound of
 *               its arithmetic
 *     program   matmul_objection and matmul_agrees, which decide what the program takes
 * Held: what the program takes is right by both; what it leaves out is counted, and how much of that was
 * wrong. Timing chooses among the proposals, on each machine others: one that is wrong for some number of
 * rows would spoil the runs of a few users and of nobody who looks for it.
 */

enum { PRODUCT_KINDS = 10 };
static const struct {
    const char* name;
    int flags, of_weight, backward;
} PRODUCTS[PRODUCT_KINDS] = {{"forward", 0, 0, 0}, {"forward, bias", MATMUL_BIAS, 0, 0},
    {"forward, residual", MATMUL_ADD, 0, 0}, {"forward, bias, residual", MATMUL_BIAS | MATMUL_ADD, 0, 0},
    {"forward, bias, gelu", MATMUL_BIAS | MATMUL_GELU, 0, 0},
    {"forward, bias, gelu, aux", MATMUL_BIAS | MATMUL_GELU_AUX, 0, 0}, {"dinput", 0, 0, 1},
    {"dinput, gelu'", MATMUL_DGELU, 0, 1}, {"dweight", MATMUL_FP32, 1, 1},
    {"dweight, added", MATMUL_FP32 | MATMUL_ADD, 1, 1}};
static MatmulShape product_shape(int kind, int64_t R, int64_t C, int64_t OC) {
    int flags = PRODUCTS[kind].flags;
    if (PRODUCTS[kind].of_weight) return {C, OC, R, 0, 1, flags};
    if (PRODUCTS[kind].backward) return {C, R, OC, 0, 0, flags};
    return {OC, R, C, 1, 0, flags};
}

// ones == 0: noise
__global__ void product_fill_kernel(void* out, int64_t n, int fp32, uint32_t seed, float ones) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u + seed;
        x = (x ^ x >> 16) * 0x7feb352du;
        x = (x ^ x >> 15) * 0x846ca68bu;
        x ^= x >> 16;
        float f = ones != 0 ? ones : 3.4641016f * ((float)(x >> 8) * 0x1p-24f - 0.5f);   // of unit variance
        if (fp32) ((float*)out)[i] = f;
        else ((bf16*)out)[i] = __float2bfloat16(f);
    }
}
static void product_fill(void* out, int64_t n, int fp32, uint32_t seed, float ones) {
    product_fill_kernel<<<264, 256>>>(out, n, fp32, seed, ones);
}
__device__ __forceinline__ double product_number(const void* p, int64_t i, int fp32) {
    return fp32 ? (double)((const float*)p)[i] : (double)__bfloat162float(((const bf16*)p)[i]);
}
// expected (m, n, 2): A B + C + bias in fp64, and the sum of the absolute values of its terms.
__global__ void product_exact_kernel(double* expected, MatmulOperands x, MatmulShape s) {
    for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < s.m * s.n;
         at += (int64_t)gridDim.x * blockDim.x) {
        int64_t i = at % s.m, j = at / s.m;
        double sum = 0, size = 0;
        for (int64_t l = 0; l < s.k; l++) {
            double term = product_number(x.a, s.transposed_a ? i * s.k + l : l * s.m + i, 0) *
                product_number(x.b, s.transposed_b ? l * s.n + j : j * s.k + l, 0);
            sum += term, size += fabs(term);
        }
        double c = s.flags & MATMUL_ADD ? product_number(x.c, at, s.flags & MATMUL_FP32) : 0;
        double bias = s.flags & MATMUL_BIAS ? product_number(x.bias, i, 0) : 0;
        expected[2 * at] = sum + c + bias, expected[2 * at + 1] = size + fabs(c) + fabs(bias);
    }
}
// out[0]: the largest error in its bound (as in kernel_matmul: 2^-23 of the terms an addition, and the
// rounding of the result); out[1]: squares of the errors; out[2]: squares of what they may be in the rms,
// where the additions' errors stand for the root of the terms' number instead of their number. NaN counts as
// 1e30. exact: the bound is 0.
__global__ void product_compare_kernel(
    double* out, const double* expected, MatmulOperands x, MatmulShape s, int exact) {
    double most = 0, errors = 0;
    double allowed = 0;
    int fp32 = s.flags & MATMUL_FP32;
    for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < s.m * s.n;
         at += (int64_t)gridDim.x * blockDim.x) {
        double sum = expected[2 * at], size = expected[2 * at + 1];
        double ulp = fp32 ? 0x1p-24 : 0x1p-8;
        double bound = (double)(s.k + 8) * 0x1p-23 * size, root = 0x1p-23 * sqrt((double)s.k + 8) * size;
        if (s.flags & MATMUL_GELU_AUX) {
            double aux = product_number(x.aux, at, 0),
                   error = fabs(aux - (double)(float)__float2bfloat16((float)sum));
            double share = exact ? error * 1e30 : fabs(aux - sum) / (bound + ulp * fabs(sum));
            most = fmax(most, isnan(share) ? 1e30 : share);
        }
        if (s.flags & (MATMUL_GELU | MATMUL_GELU_AUX)) {
            bound = 1.13 * bound + 0x1p-12 * fabs(sum), root = 1.13 * root + 0x1p-12 * fabs(sum);
            sum = 0.5 * sum * (1 + tanh(0.7978845608028654 * (sum + 0.044715 * sum * sum * sum)));
        }
        if (s.flags & MATMUL_DGELU) {
            double y = product_number(x.aux, at, 0),
                   t = tanh(0.7978845608028654 * (y + 0.044715 * y * y * y));
            double slack = fabs(sum) * (0.5 + fabs(y) * (0.8 + 0.11 * y * y)) / 2048;
            slack +=
                ulp * fabs(sum);   // some algorithms round the product before its factor, which is below 1.13
            bound = 1.13 * bound + 1.13 * slack, root = 1.13 * root + 1.13 * slack;
            sum *= 0.5 * (1 + t) + 0.5 * y * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * y * y);
        }
        double found = product_number(x.out, at, fp32), error = fabs(found - sum);
        if (exact)
            error = fabs(found - (fp32 ? (double)(float)sum : (double)(float)__float2bfloat16((float)sum)));
        double share = exact ? error * 1e30 : error / (bound + ulp * fabs(sum));
        most = fmax(most, isnan(share) ? 1e30 : share);
        error = isnan(error) ? 1e30 : error;
        errors += error * error;
        allowed += (root + ulp * fabs(sum)) * (root + ulp * fabs(sum));
    }
    for (int step = 16; step; step >>= 1) {
        most = fmax(most, __shfl_xor_sync(~0u, most, step));
        errors += __shfl_xor_sync(~0u, errors, step);
        allowed += __shfl_xor_sync(~0u, allowed, step);
    }
    if (threadIdx.x % 32 != 0) return;
    // positive: ordered as integers
    atomicMax((unsigned long long*)&out[0], (unsigned long long)__double_as_longlong(most));
    atomicAdd(&out[1], errors);
    atomicAdd(&out[2], allowed);
}

// The operands of the largest product of a case, and what is measured of one algorithm.
typedef struct {
    Tensor a, b, c, bias, aux, out, expected, figures;
} ProductMemory;
typedef struct {
    int64_t proposals, taken;
    int64_t objected, disagreed;   // left out by what is known of it; by what it computed alone
    int64_t wrong, unnoticed;      // of all proposals; of those, that computed what the program agrees with
    int64_t bad;                   // of those, that it takes
    double share, rms, program;    // the worst of what is taken; and by matmul_agrees
    char worst[160];
} ProductCount;

static void product_operands(const ProductMemory* t, const MatmulShape* s, MatmulOperands* x, float ones) {
    int fp32 = s->flags & MATMUL_FP32;
    product_fill(t->a.p, s->m * s->k, 0, 11, ones);
    product_fill(t->b.p, s->k * s->n, 0, 12, ones);
    product_fill(t->c.p, s->m * s->n, fp32, 13, 2 * ones);
    product_fill(t->bias.p, s->m, 0, 14, ones);
    product_fill(t->aux.p, s->m * s->n, 0, 15, 30 * ones);   // where the GELU's slope is 1
    *x = {t->out.p, (bf16*)t->a.p, (bf16*)t->b.p, s->flags & MATMUL_ADD ? t->c.p : NULL,
        s->flags & MATMUL_BIAS ? (bf16*)t->bias.p : NULL,
        s->flags & (MATMUL_GELU_AUX | MATMUL_DGELU) ? t->aux.p : NULL};
    product_exact_kernel<<<2112, 128>>>((double*)t->expected.p, *x, *s);
}
// Runs an algorithm into a poisoned result: figures of product_compare_kernel, NaN if it cannot run.
static void product_measure(Gpu* d, const MatmulPlan* p, MatmulOperands x, const ProductMemory* t,
    const cublasLtMatmulAlgo_t* a, int exact, double out[3]) {
    cuda_need(cudaMemset(t->figures.p, 0, 24), "figures");
    cuda_need(cudaMemset(x.out, 0xFF, matmul_bytes(&p->shape)), "a result");
    if (p->shape.flags & MATMUL_GELU_AUX)
        cuda_need(cudaMemset(x.aux, 0xFF, (size_t)(p->shape.m * p->shape.n) * 2), "aux");
    out[0] = out[1] = out[2] = NAN;
    if (matmul_run(d, p, &x, a) != CUBLAS_STATUS_SUCCESS) return;
    product_compare_kernel<<<528, 256>>>((double*)t->figures.p, (double*)t->expected.p, x, p->shape, exact);
    cuda_need(cudaMemcpy(out, t->figures.p, 24, cudaMemcpyDeviceToHost), "figures");
}

// What is known of a proposal before its numbers are looked at: why the program will not take it, and its
// error on ones.
typedef struct {
    Error objection;
    double ones;
} Proposal;

// Runs all proposals on ones.
static std::vector<Proposal> proposals_on_ones(Gpu* d, const MatmulPlan* p, const ProductMemory* t,
    const cublasLtMatmulHeuristicResult_t* found, int count) {
    std::vector<Proposal> all((size_t)count);
    MatmulOperands x;
    product_operands(t, &p->shape, &x, 1);
    if (x.bias)
        cublasLtMatmulDescSetAttribute(
            p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &x.bias, sizeof x.bias);
    if (x.aux)
        cublasLtMatmulDescSetAttribute(
            p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &x.aux, sizeof x.aux);
    for (int i = 0; i < count; i++) {
        double figures[3];
        all[(size_t)i].objection = matmul_objection(d, p, &found[i].algo);
        product_measure(d, p, x, t, &found[i].algo, 1, figures);
        all[(size_t)i].ones = figures[0];
    }
    return all;
}

// One proposal on noise, the operands x: counted with what the program thinks of it.
static void proposal_on_noise(Gpu* d, const MatmulPlan* p, const ProductMemory* t, const MatmulOperands* x,
    const cublasLtMatmulAlgo_t* algo, const Proposal* known, ProductCount* n) {
    double figures[3], shares[2] = {NAN, NAN};
    Error disagrees;
    const int objected = known->objection.text[0] != 0;
    const int agrees = matmul_agrees(d, p, x, algo, shares, &disagrees) == 0;
    product_measure(d, p, *x, t, algo, 0, figures);
    const double rms = sqrt(figures[1] / figures[2]);
    const int right = known->ones == 0 && figures[0] <= 1 && rms <= 1;
    n->proposals++;
    n->taken += agrees && !objected;
    n->objected += objected;
    n->disagreed += !objected && !agrees;
    n->wrong += !right;
    n->unnoticed += !right && agrees && !isnan(figures[0]);   // by the comparison alone
    if (!agrees || objected) return;
    n->share = worst(n->share, figures[0]);
    n->rms = worst(n->rms, rms);
    n->program = worst(n->program, fmax(shares[0] / MATMUL_LARGEST, shares[1] / MATMUL_RMS));
    if (right) return;
    const MatmulSettings a = matmul_settings(algo);
    n->bad++;
    snprintf(n->worst, sizeof n->worst,
        "%lld x %lld x %lld, algorithm %d tile %u stages %u split %d: ones %.2g, %.2g, rms %.2g",
        (long long)p->shape.m, (long long)p->shape.n, (long long)p->shape.k, a.id, a.tile, a.stages, a.splits,
        known->ones, figures[0], rms);
}

static void product_proposals(Gpu* d, const MatmulPlan* p, const ProductMemory* t, ProductCount* n) {
    cublasLtMatmulHeuristicResult_t found[PROPOSALS];
    cublasLtMatmulAlgo_t good[PROPOSALS];
    int count = 0, good_count;
    Error e;
    const uint32_t reductions = matmul_reductions(&p->shape);
    if (matmul_proposals(d, p, reductions, found, &count, &e) != 0 ||
        matmul_propose_more(d, p, reductions, found, &count, &e) != 0) {
        n->bad++;
        snprintf(n->worst, sizeof n->worst, "%.150s", e.text);
        return;
    }
    const std::vector<Proposal> known = proposals_on_ones(d, p, t, found, count);
    MatmulOperands x;
    product_operands(t, &p->shape, &x, 0);
    matmul_sample(d, &p->shape, &x);
    for (int i = 0; i < count; i++) proposal_on_noise(d, p, t, &x, &found[i].algo, &known[(size_t)i], n);
    if (matmul_candidates(d, p, &x, 1, good, &good_count, &e) == 0) return;
    n->bad++;
    snprintf(n->worst, sizeof n->worst, "%.150s", e.text);
}

static const int64_t PRODUCT_ROWS[] = {1, 2, 3, 7, 8, 16, 31, 64, 65, 100, 127, 192, 255, 257, 289, 500, 513,
    577, 578, 640, 777, 1000, 1024, 1154, 1999, 2049, 2500, 3000, 3073, 4095, 4096};
static void products_of(int64_t C, int64_t OC, int kind, int64_t most_rows) {
    const int64_t side = max_i64(most_rows, OC) * max_i64(C, OC);
    const int64_t D = (PRODUCTS[kind].of_weight ? OC : most_rows) * (PRODUCTS[kind].backward ? C : OC);
    ProductMemory t = {tensor_poisoned(side, 2), tensor_poisoned(side, 2), tensor_poisoned(D, 4),
        tensor_poisoned(max_i64(C, OC), 2), tensor_poisoned(D, 2), tensor_poisoned(D, 4),
        tensor_poisoned(2 * D, 8), tensor_poisoned(3, 8)};
    Gpu* d = gpu_bare();
    ProductCount n;
    char name[96];
    int shapes = 0;
    memset(&n, 0, sizeof n);
    snprintf(name, sizeof name, "products: %s %lldx%lld", PRODUCTS[kind].name, (long long)C, (long long)OC);
    for (size_t i = 0; i < sizeof PRODUCT_ROWS / sizeof PRODUCT_ROWS[0]; i += quick ? 6 : 1) {
        MatmulPlan p;
        Error e;
        if (PRODUCT_ROWS[i] > most_rows) continue;
        memset(&p, 0, sizeof p);
        p.shape = product_shape(kind, PRODUCT_ROWS[i], C, OC);
        if (matmul_plan_make(d, &p, &e) != 0) check(0, statement(name, "a plan is made"), "%s", e.text);
        else product_proposals(d, &p, &t, &n);
        matmul_plan_free(&p);
        shapes++;
    }
    check(n.bad == 0 && n.unnoticed == 0, statement(name, "what the program takes is right"),
        "%d row counts to %lld: %lld of %lld proposals taken, all exact on ones, at most %.2f of the bound, "
        "rms "
        "%.2f, by the program %.2f; left out by rule %lld, by the comparison %lld; wrong %lld, unnoticed by "
        "the "
        "comparison alone %lld%s%s",
        shapes, (long long)most_rows, (long long)n.taken, (long long)n.proposals, n.share, n.rms, n.program,
        (long long)n.objected, (long long)n.disagreed, (long long)n.wrong, (long long)n.unnoticed,
        n.bad ? "; taken and WRONG: " : "", n.worst);
    tensors_release(name);
}

// Weight gradients sum over all tokens of a pass, on and off the tiles: an algorithm is found for each, one
// alone (--deterministic 1) and to be timed.
static void products_long(void) {
    static const int64_t tokens[] = {8191, 16380, 32767, 65528, 65533, 65600, 131071};
    static const int64_t widths[][2] = {{768, 768}, {768, 3072}, {2304, 768}};
    Gpu* d = gpu_bare();
    int64_t most = tokens[6], least[2] = {PROPOSALS, PROPOSALS};
    Tensor a = tensor_poisoned(most * 2304, 2), b = tensor_poisoned(most * 3072, 2),
           out = tensor_poisoned(2304 * 3072, 4);
    int wrong = 0, shapes = 0;
    Error e = {0, {0}};
    product_fill(a.p, most * 2304, 0, 21, 0);
    product_fill(b.p, most * 3072, 0, 22, 0);
    product_fill(out.p, 2304 * 3072, 1, 23, 0);
    for (int w = 0; w < 3; w++)
        for (int i = 0; i < 7; i += quick ? 3 : 1)
            for (int timed = 0; timed < 2; timed++) {
                cublasLtMatmulAlgo_t good[PROPOSALS];
                MatmulPlan p;
                MatmulOperands x = {out.p, (bf16*)a.p, (bf16*)b.p, out.p, NULL, NULL};
                int count = 0;
                memset(&p, 0, sizeof p);
                p.shape = {widths[w][0], widths[w][1], tokens[i], 0, 1, MATMUL_FP32 | MATMUL_ADD};
                int status = matmul_plan_make(d, &p, &e);
                if (status == 0)
                    status = matmul_candidates(d, &p, &x, timed ? PROPOSALS : 1, good, &count, &e);
                wrong += status != 0;
                if (status == 0 && count < least[timed]) least[timed] = count;
                matmul_plan_free(&p);
                shapes++;
            }
    check(wrong == 0, "products: a sum over any number of tokens finds an algorithm",
        "%d of %d without any; at least %lld, and %lld to be timed; %s", wrong, shapes, (long long)least[0],
        (long long)least[1], e.text);
    tensors_release("products_long");
}

// The largest relative error of a tensor of gradients beside another trainer's.
static double gradients_apart(const BatchGradients* batch, const BatchGradients* first) {
    const gpt2_sp* g = batch->g;
    double most = 0;
    for (int u = 0; batch->found.all && first->found.all && u < g->layout.count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(&g->mesh.shape, id);
            const int64_t offset = g->layout.units[u].offset + g->layout.within[id];
            double size;
            if (p.unit != g->layout.units[u].kind) continue;
            most = worst(most,
                relative_error(
                    batch->found.all + offset, first->found.all + offset, parameter_elements(&p), &size));
        }
    return most;
}

// The same batch's gradients, and 20 steps, with one after the other of the algorithms that the program may
// take: what timing picks does not matter beyond rounding, here that of --check (check_bound).
static void products_forced(const TrainingCase* c) {
    const int choices = quick ? 2 : 12, steps = quick ? 2 : RUN_STEPS;
    char text[256];
    BatchGradients first = {NULL, {NULL, NAN, NAN}};
    Run first_run;
    double most = 0, most_steps = 0;
    memset(&first_run, 0, sizeof first_run);
    snprintf(text, sizeof text, "%s threads=4 deterministic=0", c->options);
    for (matmul_forced = 0; matmul_forced < choices; matmul_forced++) {
        int at = 0;
        BatchGradients batch = gradients_of(&GPU_DEVICE, text);
        Run run = run_on(&GPU_DEVICE, text, steps);
        if (matmul_forced == 0) {
            first = batch, first_run = run;
            continue;
        }
        most = worst(most, gradients_apart(&batch, &first));
        most_steps = worst(most_steps, training_share(&run, &first_run, c->layers, c->channels, &at));
        gradients_free(&batch);
        free(run.weights);
    }
    matmul_forced = -1;
    check(first.g && most <= check_bound(first.g) && most_steps <= 1,
        "products: it does not matter which is chosen",
        "%s: %d choices; gradients at most %.2e of a tensor apart, allowed %.2e; losses of %d steps at most "
        "%.2f of "
        "the tolerance apart",
        c->options, choices, most, first.g ? check_bound(first.g) : NAN, steps, most_steps);
    gradients_free(&first);
    free(first_run.weights);
}

// --products: what the first run chose, the second takes; what is not for here is refused.
static void products_file(void) {
    char path[512], text[1024], error[GPT2_SP_TEXT], line[512] = "";
    snprintf(path, sizeof path, "%s", scratch("products.txt"));
    unlink(path);
    snprintf(text, sizeof text,
        "layers=2 heads=2 channels=128 seq-len=577 batch-size=2 threads=4 products=%s", path);
    Run runs[2];
    long lengths[2], lines = 0;
    for (int i = 0; i < 2; i++) {
        matmul_forced = 3 - 3 * i;   // the second would choose others
        runs[i] = run_on(&GPU_DEVICE, text, 4);
        lengths[i] = file_length(path);
    }
    matmul_forced = -1;
    FILE* f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) lines++;
    if (f) fclose(f);
    int same = memcmp(runs[0].loss, runs[1].loss, sizeof runs[0].loss) == 0;
    check(runs[1].steps == 4 && lengths[0] > 0 && lengths[0] == lengths[1] && lines > 10,
        "products: a second run takes what the file has",
        "%ld lines written, %ld bytes, after a run that reads them %ld; losses of 4 steps %s", lines,
        lengths[0], lengths[1], same ? "bit for bit" : "as attention's order of additions leaves them");
    for (int i = 0; i < 2; i++) free(runs[i].weights);
    f = fopen(path, "w");
    if (f) {
        fputs("gpt2_sp products 1, cuBLASLt 1, another GPU\n", f);
        fclose(f);
    }
    gpt2_sp_options o = run_options(text);
    gpt2_sp_stats stats;
    gpt2_sp* g = trainer_of(&o, error, sizeof error);
    int status = g ? step_of(g, &stats) : 0;
    check(status < 0 && strstr(gpt2_sp_error(g), "cuBLASLt 1, another GPU"),
        "products: another library's file is refused", "%s", status < 0 ? gpt2_sp_error(g) : error);
    gpt2_sp_destroy(g);
}

static void test_products(void) {
    static const int64_t shapes[][3] = {{96, 384, 4096}, {384, 96, 4096}, {128, 128, 4096}, {320, 960, 4096},
        {160, 160, 2049}, {768, 3072, 4096}, {64, 50304, 1999}};
    static const TrainingCase forced[] = {
        {"layers=4 heads=2 channels=96 seq-len=577 batch-size=2 grad-accum=2 logits-chunk=333", 4, 96},
        {"layers=2 heads=4 channels=256 seq-len=1154 batch-size=1 recompute=none", 2, 256},
        {"layers=3 heads=2 channels=128 seq-len=577 batch-size=2 sp=2 zero=1", 3, 128}};
    EACH_CASE(shapes, i)
    for (int kind = 0; kind < PRODUCT_KINDS; kind++) {
        int head = shapes[i][1] > 8192;
        if (!head || PRODUCTS[kind].flags == 0 || PRODUCTS[kind].of_weight)
            products_of(shapes[i][0], shapes[i][1], kind, shapes[i][2]);
    }
    products_long();
    for (size_t i = 0; i < sizeof forced / sizeof forced[0]; i++) products_forced(&forced[i]);
    products_file();
}
