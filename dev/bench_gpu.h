// bench_gpu.h: what the benchmarks of the GPU program share: the program itself, its errors, random numbers,
// a model to sample from.
#define GPT2_SP_GPU_NO_MAIN
#include "../train_gpt2_sp.cu"
#define CHECK(call) \
    do { \
        cudaError_t status_ = (call); \
        if (status_ != cudaSuccess) \
            printf("%s: %s (line %d)\n", #call, cudaGetErrorString(status_), __LINE__), exit(2); \
    } while (0)

__global__ void fill(bf16* p, int64_t n, uint32_t seed) {   // sum of two uniforms, unit variance
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u + seed;
        x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
        uint32_t y = x * 747796405u + 2891336453u;
        y ^= y >> 15;
        p[i] = __float2bfloat16(((x >> 8) * 0x1p-24f + (y >> 8) * 0x1p-24f - 1) * 2.4494897f);
    }
}

// A model to sample from, a run or a folder, on one rank; ends the program where it cannot be had.
MAIN_ONLY static gpt2_sp* load(const char* folder) {
    gpt2_sp_options o;
    Error e;
    options_default(&o);
    snprintf(o.from, sizeof o.from, "%s", folder);
    o.sp = 1;
    gpt2_sp* g = trainer_make(&o, trainer_load, &e);
    if (!g) printf("%s\n", e.text), exit(1);
    g->eot = -1;   // drawn on, whatever is drawn
    return g;
}
