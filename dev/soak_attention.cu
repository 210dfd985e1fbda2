/* The forward attention kernel as a rank of several launches it, over and over: the diagonal of a long chunk, which adds to a carry and leaves
   one (in), leaves one (out) or ends it (done). Warps then meet no barrier between tiles, so that they drift apart as in no other use.
       nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a -Xcompiler -fopenmp,-w dev/soak_attention.cu -o soak -lcublasLt -lz -lm -lpthread
       ./soak 20000 16384 12 64      launches, tokens, heads, head size
   -DATTN_JITTER delays warps at random; -DSOURCE='"FILE"' takes the kernels of another version. Stops with 3 when launches do not come to an
   end, and with 1 when two launches over the same operands differ. */
#ifndef SOURCE
#define SOURCE "../train_gpt2_sp.cu"
#endif
#define GPT2_SP_GPU_NO_MAIN
#define main program_main
#include SOURCE
#undef main
#define CK(call) \
    do { \
        cudaError_t status_ = (call); \
        if (status_ != cudaSuccess) \
            return fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(status_)), 2; \
    } while (0)

__global__ void numbers_kernel(bf16* p, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) p[i] = __float2bfloat16((float)((i * 2654435761u >> 12) % 2048) / 1024.f - 1.f);
}
int main(int argc, char** argv) {
    int launches = argc > 1 ? atoi(argv[1]) : 20000, T = argc > 2 ? atoi(argv[2]) : 16384,
        NH = argc > 3 ? atoi(argv[3]) : 12;
    int HS = argc > 4 ? atoi(argv[4]) : 64;
    int64_t C = HS * NH, n = (int64_t)T * C;
    bf16 *qkv, *o[2];
    float *acc, *lse[2];
    int* work;
    cudaEvent_t ended;
    CK(cudaMalloc(&qkv, (size_t)n * 6));
    CK(cudaMalloc(&acc, (size_t)(n + 2 * NH * T) * 4));
    CK(cudaMalloc(&work, 64));
    CK(cudaMemset(work, 0, 64));
    CK(cudaMemset(acc, 0, (size_t)(n + 2 * NH * T) * 4));
    CK(cudaEventCreate(&ended));
    for (int i = 0; i < 2; i++) {
        CK(cudaMalloc(&o[i], (size_t)n * 2));
        CK(cudaMalloc(&lse[i], (size_t)NH * T * 4));
    }
    numbers_kernel<<<(unsigned)((3 * n + 255) / 256), 256>>>(qkv, 3 * n);
    AttnForward a;
    memset(&a, 0, sizeof a);
    a.s.B = 1, a.s.NH = NH, a.s.Tq = a.s.Tk = T, a.s.q_pos = a.s.k_pos = T, a.s.causal = 1,
    a.s.scale = 0.125f;
#ifndef SOURCE_WITHOUT_HS
    a.s.HS = HS;
#endif
    AttnView q = {qkv, 3 * C, HS, 3 * n}, k = {qkv + C, 3 * C, HS, 3 * n},
             v = {qkv + 2 * C, 3 * C, HS, 3 * n};
    AttnView sum = {acc, C, HS, n};
    AttnRows m = {acc + n, T, (int64_t)NH * T}, l = {acc + n + NH * T, T, (int64_t)NH * T};
    a.q = q, a.k = k, a.v = v, a.acc = sum, a.m = m, a.l = l, a.work = work;
    for (int i = 0; i < launches; i++) {
        int step = i % 3, twin = i / 3 % 2;   // out, in and out, done
        a.carry_in = step > 0, a.carry_out = step < 2;
        a.o.p = NULL, a.lse.p = NULL;
        if (step == 2) {
            AttnView out = {o[twin], C, HS, n};
            AttnRows rows = {lse[twin], T, (int64_t)NH * T};
            a.o = out, a.lse = rows;
        }
        CK(attn::attention_forward(a, 0));
        if (i % 100 != 99 && i + 1 < launches) continue;
        CK(cudaEventRecord(ended, 0));
        double start = now_ms();
        cudaError_t status;
        while ((status = cudaEventQuery(ended)) == cudaErrorNotReady)
            if (now_ms() - start > 10000) {
                printf("launches %d to %d do not end\n", i - i % 100, i);
                fflush(stdout);
                _exit(3);
            }
        CK(status);
    }
    bf16* host[2];
    for (int i = 0; i < 2; i++) {
        host[i] = (bf16*)malloc((size_t)n * 2);
        CK(cudaMemcpy(host[i], o[i], (size_t)n * 2, cudaMemcpyDeviceToHost));
    }
    int same = memcmp(host[0], host[1], (size_t)n * 2) == 0;
    printf("%d launches ended, twins %s\n", launches, same ? "equal" : "DIFFER");
    return !same;
}
