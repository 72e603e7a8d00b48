// Just enough of CUDA to run the kernels of kernels.cu on a CPU, a block at a time, its threads taking turns at barriers.

#include <cmath>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __restrict__
#define __launch_bounds__(threads)

struct Index { int x, y; };
static Index blockIdx, threadIdx, gridDim;
static std::vector<ucontext_t> fibers;
static std::vector<char> running;
static std::vector<float> given;
static ucontext_t scheduler;

static void __syncthreads() { swapcontext(&fibers[threadIdx.x], &scheduler); }

static float __shfl_xor_sync(unsigned, float number, int far) {
    given[threadIdx.x] = number;
    __syncthreads();
    float other = given[threadIdx.x ^ far];
    __syncthreads();
    return other;
}

static float __uint_as_float(unsigned bits) { float f; std::memcpy(&f, &bits, 4); return f; }
static unsigned __float_as_uint(float f) { unsigned bits; std::memcpy(&bits, &f, 4); return bits; }

// All kernels take pointers alone, 12 at most.
typedef void (*Kernel)(void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*);

static Kernel kernel;
static void** pointers;

static void run() {
    void** p = pointers;
    kernel(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11]);
    running[threadIdx.x] = 0;
}

extern "C" void launch(Kernel function, int columns, int rows, int threads, void** arguments) {
    constexpr int STACK = 1 << 16;
    static std::vector<char> stacks;
    stacks.resize(size_t(threads) * STACK);
    fibers.resize(threads);
    given.resize(threads);
    kernel = function, pointers = arguments, gridDim = {columns, rows};
    for (blockIdx.y = 0; blockIdx.y < rows; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < columns; blockIdx.x++) {
            running.assign(threads, 1);
            for (int i = 0; i < threads; i++) {
                getcontext(&fibers[i]);
                fibers[i].uc_stack.ss_sp = &stacks[size_t(i) * STACK];
                fibers[i].uc_stack.ss_size = STACK;
                fibers[i].uc_link = &scheduler;
                makecontext(&fibers[i], run, 0);
            }
            for (bool some = true; some;) {
                some = false;
                for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
                    if (running[threadIdx.x]) some = true, swapcontext(&scheduler, &fibers[threadIdx.x]);
            }
        }
}
