// What lies between the matrix products of a training step on a GPU, in one kernel each: see fused.py.
//
// Compiled with B, the batch's images, Z, the codes' dimensions, and BF16 if `number` is to be bfloat16 in place of float.
// Maps are (B, H, W, C), in one piece; phases are as in phases.py. Nothing is included, so that any compiler takes it.

#ifdef BF16
typedef unsigned short number;
__device__ inline float wide(number n) { return __uint_as_float((unsigned)n << 16); }
__device__ inline number narrow(float f) {  // to nearest, ties to even
    unsigned bits = __float_as_uint(f);
    return f != f ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#else
typedef float number;
__device__ inline float wide(number n) { return n; }
__device__ inline number narrow(float f) { return f; }
#endif

// Numbers that are read and written at once.
constexpr int UNIT = 16 / sizeof(number);
struct alignas(16) Unit { number of[UNIT]; };
struct alignas(2 * sizeof(number)) Two { number of[2]; };
struct alignas(4 * sizeof(number)) Four { number of[4]; };

constexpr int MAP = 7 * 7 * 64;          // linear2's map, and conv2's
constexpr int THREADS = 7 * 64, WARPS = THREADS / 32;  // a row of it
constexpr int Z_ROW = (Z / 8 + 1) * 8;   // codes, with ones behind them
constexpr int ROWS_AT_ONCE = Z > 8 ? 1 : 7;  // of a map: with Z = 32 all compile in 1.3 s, with 7 rows in 2
constexpr int ROW1 = 9 * 32 + 8, ROW3 = 4 * 64 + 8, ROW4 = ROW3;  // of windows, with ones behind them

// Lets NaN through, as far as the loss, where it is noticed; its gradients need not.
__device__ inline float relu(float f) { return f > 0 || f != f ? f : 0; }

// The sums over the block of each thread's `numbers`, for each warp.
template <int COUNT> __device__ inline void sum_warps(float (&numbers)[COUNT], float (&sums)[WARPS][COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
#pragma unroll
        for (int far = 16; far; far /= 2) numbers[i] += __shfl_xor_sync(~0u, numbers[i], far);
        if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32][i] = numbers[i];
    }
    __syncthreads();
}

// Weights in another order: each has the address of where it comes from, or none if it is 0.
extern "C" __global__ void __launch_bounds__(256) arrange(
    const float* const* __restrict__ sources, number* __restrict__ memory)
{
    int i = blockIdx.x * 256 + threadIdx.x;
    memory[i] = sources[i] ? narrow(*sources[i]) : 0;
}

extern "C" __global__ void __launch_bounds__(256) arrange_wide(
    const float* const* __restrict__ sources, float* __restrict__ memory)
{
    int i = blockIdx.x * 256 + threadIdx.x;
    memory[i] = sources[i] ? *sources[i] : 0;
}

// The next batch. A block reads an image.
extern "C" __global__ void __launch_bounds__(256) read_batch(
    const unsigned char* __restrict__ images,  // (N, 28, 28)
    const float* __restrict__ noise,           // (N, Z)
    const long long* __restrict__ rows,        // (B,)
    float* __restrict__ pixels,                // (B, 28, 28), in [0, 1]
    number* __restrict__ image,                // (B, 30, 30), with its border
    number* __restrict__ windows0,             // (B, 14, 14, 16), of which 9 are written; 0 beyond the border
    float* __restrict__ eps)                   // (B, Z)
{
    long long row = rows[blockIdx.x];
    for (int at = threadIdx.x; at < 784; at += 256) {
        int y = at / 28 + 1, x = at % 28 + 1;
        float pixel = images[row * 784 + at] / 255.0f;
        pixels[blockIdx.x * 784 + at] = pixel;
        image[(blockIdx.x * 30 + y) * 30 + x] = narrow(pixel);
#pragma unroll
        for (int tap = 0; tap < 9; tap++) {
            int down = y - tap / 3, right = x - tap % 3;
            if (down >= 0 && down < 28 && right >= 0 && right < 28 && down % 2 == 0 && right % 2 == 0)
                windows0[((blockIdx.x * 14 + down / 2) * 14 + right / 2) * 16 + tap] = narrow(pixel);
        }
    }
    if (threadIdx.x < Z) eps[blockIdx.x * Z + threadIdx.x] = noise[row * Z + threadIdx.x];
}

// conv1 and the windows of its map, for conv2. A block computes half an image, a thread a channel of a column.
extern "C" __global__ void __launch_bounds__(THREADS) conv1(
    const number* __restrict__ image,   // (B, 30, 30), with its border
    const number* __restrict__ weight,  // (32, 9)
    const number* __restrict__ bias,    // (32,)
    number* __restrict__ h1,            // (B, 14, 14, 32)
    number* __restrict__ rows1)         // (B * 7 * 7, ROW1); 0 where the windows reach over the map's border
{
    int channel = threadIdx.x % 32, x = threadIdx.x / 32;
    float taps[9];
#pragma unroll
    for (int tap = 0; tap < 9; tap++) taps[tap] = wide(weight[channel * 9 + tap]);
    float start = wide(bias[channel]);
#pragma unroll 2
    for (int y = blockIdx.y * 7; y < blockIdx.y * 7 + 7; y++) {
        float sum = start;
#pragma unroll
        for (int tap = 0; tap < 9; tap++)
            sum += taps[tap] * wide(image[(blockIdx.x * 30 + 2 * y + tap / 3) * 30 + 2 * x + tap % 3]);
        number h = narrow(relu(sum));
        h1[((blockIdx.x * 14 + y) * 14 + x) * 32 + channel] = h;
        // The one or two rows of windows that have this one, and likewise columns.
        for (int down = (y + 1) % 2; down < 3; down += 2) {
            int row = (y + 1 - down) / 2;
            for (int right = (x + 1) % 2; right < 3; right += 2) {
                int column = (x + 1 - right) / 2;
                if (row < 7 && column < 7)
                    rows1[((blockIdx.x * 7 + row) * 7 + column) * ROW1 + (down * 3 + right) * 32 + channel] = h;
            }
        }
    }
}

// From conv2's map through the codes to linear2's and its windows, for deconv1. A block computes an image.
extern "C" __global__ void __launch_bounds__(THREADS) through_codes(
    const number* __restrict__ h2,            // (B, MAP)
    const float* __restrict__ heads,          // (2 Z, MAP): of mean and log-variance
    const float* __restrict__ heads_bias,     // (2 Z,)
    const float* __restrict__ eps,            // (B, Z)
    const number* __restrict__ linear2,       // (Z, MAP)
    const number* __restrict__ linear2_bias,  // (MAP,)
    float* __restrict__ codes,                // (B, 2 Z)
    float* __restrict__ reach,                // (B, Z): the distances of z from the mean
    number* __restrict__ z,                   // (B, Z_ROW)
    number* __restrict__ h3,                  // (B, MAP)
    number* __restrict__ rows3)               // (B * 8 * 8, ROW3); 0 where the windows reach over the map's border
{
    __shared__ float sums[WARPS][2 * Z], code[Z];
    int thread = threadIdx.x, image = blockIdx.x;
    float own[2 * Z] = {};
#pragma unroll(ROWS_AT_ONCE)
    for (int y = 0; y < 7; y++) {
        int at = y * THREADS + thread;
        float h = wide(h2[image * MAP + at]);
#pragma unroll
        for (int i = 0; i < 2 * Z; i++) own[i] += h * heads[i * MAP + at];
    }
    sum_warps(own, sums);
    if (thread < Z) {
        float mean = heads_bias[thread], logvar = heads_bias[Z + thread];
        for (int warp = 0; warp < WARPS; warp++) {
            mean += sums[warp][thread];
            logvar += sums[warp][Z + thread];
        }
        codes[image * 2 * Z + thread] = mean;
        codes[image * 2 * Z + Z + thread] = logvar;
        float moved = reach[image * Z + thread] = expf(logvar / 2) * eps[image * Z + thread];
        number rounded = narrow(mean + moved);
        z[image * Z_ROW + thread] = rounded;
        code[thread] = wide(rounded);
    }
    __syncthreads();
#pragma unroll(ROWS_AT_ONCE)
    for (int y = 0; y < 7; y++) {
        int at = y * THREADS + thread, x = thread / 64;
        float sum = wide(linear2_bias[at]);
#pragma unroll
        for (int i = 0; i < Z; i++) sum += code[i] * wide(linear2[i * MAP + at]);
        number h = narrow(relu(sum));
        h3[image * MAP + at] = h;
#pragma unroll
        for (int tap = 0; tap < 4; tap++) {
            int window = (image * 8 + y + 1 - tap / 2) * 8 + x + 1 - tap % 2;
            rows3[window * ROW3 + tap * 64 + thread % 64] = h;
        }
    }
}

// The windows of deconv1's map, for deconv2, from its phases. A thread copies a unit of each of a window's four pixels.
extern "C" __global__ void __launch_bounds__(256) windows_of_phases(
    const Unit* __restrict__ phases4,  // (B, 8, 8, 4 * 64)
    Unit* __restrict__ rows4)          // (B * 16 * 16, ROW4)
{
    constexpr int UNITS = 64 / UNIT;
    int index = blockIdx.x * 256 + threadIdx.x;
    int unit = index % UNITS, window = index / UNITS;
    int image = window / 256, y = window / 16 % 16, x = window % 16;
#pragma unroll
    for (int tap = 0; tap < 4; tap++) {
        int row = y + tap / 2 - 1, column = x + tap % 2 - 1;
        Unit pixel = {};
        if (row >= 0 && row < 15 && column >= 0 && column < 15) {
            int place = (image * 8 + row / 2) * 8 + column / 2;
            pixel = phases4[(place * 4 + row % 2 * 2 + column % 2) * UNITS + unit];
        }
        rows4[window * (ROW4 / UNIT) + tap * UNITS + unit] = pixel;
    }
}

// The logits, and their gradient but for 1 / B. A thread computes a pixel.
extern "C" __global__ void __launch_bounds__(112) logits_and_slopes(
    const number* __restrict__ planes,  // (B, 16, 16, 4, 16): products of deconv2's map with each of conv3's taps
    const float* __restrict__ bias,     // (1,)
    const float* __restrict__ pixels,   // (B, 28, 28)
    float* __restrict__ logits,         // (B, 28, 28)
    number* __restrict__ slopes)        // (B, 35, 32, 4): at (y + 3, x + s, 3 - s), for s from 0 to 3; the rest is 0
{
    int image = blockIdx.x, y = blockIdx.y * 4 + threadIdx.x / 28, x = threadIdx.x % 28;
    float sum = *bias;
#pragma unroll
    for (int tap = 0; tap < 16; tap++) {
        int row = y + tap / 4, column = x + tap % 4;
        int place = (image * 16 + row / 2) * 16 + column / 2;
        sum += wide(planes[(place * 4 + row % 2 * 2 + column % 2) * 16 + tap]);
    }
    int at = (image * 28 + y) * 28 + x;
    logits[at] = sum;
    number slope = narrow(1 / (1 + expf(-sum)) - pixels[at]);
#pragma unroll
    for (int s = 0; s < 4; s++) slopes[((image * 35 + y + 3) * 32 + x + s) * 4 + 3 - s] = slope;
}

// The gradient at deconv2's phases. 16 threads compute all four of a place, each 2 channels.
extern "C" __global__ void __launch_bounds__(256) back_through_conv3(
    const Four* __restrict__ slopes,    // (B, 35, 32, 4)
    const Two* __restrict__ mirrored,   // (16, 32): conv3's taps from the last to the first
    const Two* __restrict__ phases5,    // (B, 16, 16, 4 * 32)
    Four* __restrict__ around,          // (B * 16 * 16 * 4, 16): the slopes that a pixel has a part in
    Two* __restrict__ d5)               // (B, 16, 16, 4 * 32)
{
    int part = threadIdx.x % 16;
    float taps[16][2];
#pragma unroll
    for (int tap = 0; tap < 16; tap++)
        for (int i = 0; i < 2; i++) taps[tap][i] = wide(mirrored[tap * 16 + part].of[i]) * (1.0f / B);
#pragma unroll 1
    for (int place = blockIdx.x * 64 + threadIdx.x / 16; place < blockIdx.x * 64 + 64; place += 16) {
        const Four* near = slopes + (place / 256 * 35 + place / 16 % 16 * 2) * 32 + place % 16 * 2;
        around[place * 16 + part] = near[(part / 8 + part % 4) * 32 + part / 4 % 2];
        float sums[4][2] = {};
#pragma unroll
        for (int down = 0; down < 5; down++) {
#pragma unroll
            for (int column = 0; column < 2; column++) {
                Four row = near[down * 32 + column];
#pragma unroll
                for (int right = 0; right < 4; right++) {
                    float slope = wide(row.of[right]);
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        if (down < 4) sums[column][i] += slope * taps[down * 4 + right][i];
                        if (down > 0) sums[2 + column][i] += slope * taps[down * 4 - 4 + right][i];
                    }
                }
            }
        }
#pragma unroll
        for (int phase = 0; phase < 4; phase++) {
            int at = (place * 4 + phase) * 16 + part;
            Two h = phases5[at], d;
#pragma unroll
            for (int i = 0; i < 2; i++) d.of[i] = wide(h.of[i]) > 0 ? narrow(sums[phase][i]) : 0;
            d5[at] = d;
        }
    }
}

// The gradient at deconv1's map as that at its phases. A thread copies a unit.
extern "C" __global__ void __launch_bounds__(256) gradient_of_phases(
    const Unit* __restrict__ d_map4,   // (B, 15, 15, 64)
    const Unit* __restrict__ phases4,  // (B, 8, 8, 4 * 64)
    Unit* __restrict__ d4)             // (B, 8, 8, 4 * 64); 0 outside
{
    constexpr int UNITS = 64 / UNIT;
    int index = blockIdx.x * 256 + threadIdx.x;
    int unit = index % UNITS, phase = index / UNITS % 4, place = index / UNITS / 4;
    int row = place / 8 % 8 * 2 + phase / 2, column = place % 8 * 2 + phase % 2;
    Unit d = {};
    if (row < 15 && column < 15) {
        Unit h = phases4[index], whole = d_map4[((place / 64 * 15 + row) * 15 + column) * UNITS + unit];
#pragma unroll
        for (int i = 0; i < UNIT; i++) d.of[i] = wide(h.of[i]) > 0 ? whole.of[i] : 0;
    }
    d4[index] = d;
}

// From linear2's map back through the codes to conv2's. A block computes an image.
extern "C" __global__ void __launch_bounds__(THREADS) back_through_codes(
    const number* __restrict__ d_map3,    // (B, MAP), before the ReLU's part
    const number* __restrict__ h3,        // (B, MAP)
    const number* __restrict__ linear2,   // (Z, MAP)
    const float* __restrict__ codes,      // (B, 2 Z)
    const float* __restrict__ reach,      // (B, Z)
    const float* __restrict__ kl_weight,  // ()
    const float* __restrict__ heads,      // (2 Z, MAP)
    const number* __restrict__ h2,        // (B, MAP)
    number* __restrict__ d3,              // (B, MAP)
    float* __restrict__ d_codes,          // (B, 2 Z)
    number* __restrict__ d2)              // (B, MAP)
{
    __shared__ float sums[WARPS][Z], d_code[2 * Z];
    int thread = threadIdx.x, image = blockIdx.x;
    float own[Z] = {};
#pragma unroll(ROWS_AT_ONCE)
    for (int y = 0; y < 7; y++) {
        int at = y * THREADS + thread;
        number d = wide(h3[image * MAP + at]) > 0 ? d_map3[image * MAP + at] : 0;
        d3[image * MAP + at] = d;
#pragma unroll
        for (int i = 0; i < Z; i++) own[i] += wide(d) * wide(linear2[i * MAP + at]);
    }
    sum_warps(own, sums);
    if (thread < Z) {
        float mean = codes[image * 2 * Z + thread], logvar = codes[image * 2 * Z + Z + thread];
        float dz = 0, pull = *kl_weight / B;  // that of the KL term
        for (int warp = 0; warp < WARPS; warp++) dz += sums[warp][thread];
        float d_mean = pull * mean + dz;
        float d_logvar = pull * expm1f(logvar) / 2 + dz * reach[image * Z + thread] / 2;
        d_codes[image * 2 * Z + thread] = d_code[thread] = d_mean;
        d_codes[image * 2 * Z + Z + thread] = d_code[Z + thread] = d_logvar;
    }
    __syncthreads();
#pragma unroll(ROWS_AT_ONCE)
    for (int y = 0; y < 7; y++) {
        int at = y * THREADS + thread;
        float d = 0;
#pragma unroll
        for (int i = 0; i < 2 * Z; i++) d += d_code[i] * heads[i * MAP + at];
        d2[image * MAP + at] = wide(h2[image * MAP + at]) > 0 ? narrow(d) : 0;
    }
}

// The gradients of heads and linear2. A block computes up to 8 of a pixel's, a thread a part of the images for a channel.
extern "C" __global__ void __launch_bounds__(512) gradients_at_codes(
    const number* __restrict__ h2,        // (B, MAP)
    const float* __restrict__ d_codes,    // (B, 2 Z)
    const number* __restrict__ d3,        // (B, MAP)
    const number* __restrict__ z,         // (B, Z_ROW)
    float* __restrict__ of_mean,          // (Z, 64, 49)
    float* __restrict__ of_mean_bias,     // (Z,)
    float* __restrict__ of_logvar,        // (Z, 64, 49)
    float* __restrict__ of_logvar_bias,   // (Z,)
    float* __restrict__ of_linear2,       // (64, 49, Z)
    float* __restrict__ of_linear2_bias)  // (64, 49)
{
    constexpr int PARTS = 8;
    __shared__ float sums[8][PARTS][64];
    int pixel = blockIdx.x, channel = threadIdx.x % 64, part = threadIdx.x / 64, first = blockIdx.y * 8;
    if (pixel == 49) {  // that is outside: the biases of the heads
        for (int i = threadIdx.x; i < 2 * Z && first == 0; i += 512) {
            float sum = 0;
            for (int image = 0; image < B; image++) sum += d_codes[image * 2 * Z + i];
            (i < Z ? of_mean_bias : of_logvar_bias)[i % Z] = sum;
        }
        return;
    }
    float own[8] = {};
#pragma unroll 4
    for (int image = part; image < B; image += PARTS) {
        float h = wide(h2[image * MAP + pixel * 64 + channel]), d = wide(d3[image * MAP + pixel * 64 + channel]);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int code = first + i;  // of mean, log-variance, z, and of the ones behind it
            if (code < 2 * Z) own[i] += h * d_codes[image * 2 * Z + code];
            else if (code <= 3 * Z) own[i] += d * wide(z[image * Z_ROW + code - 2 * Z]);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) sums[i][part][channel] = own[i];
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int each = 0; each < PARTS; each++) sum += sums[part][each][channel];
    int code = first + part, place = channel * 49 + pixel;
    if (code < Z) of_mean[code * MAP + place] = sum;
    else if (code < 2 * Z) of_logvar[(code - Z) * MAP + place] = sum;
    else if (code < 3 * Z) of_linear2[place * Z + code - 2 * Z] = sum;
    else if (code == 3 * Z) of_linear2_bias[place] = sum;
}

// The parts that each image has in conv1's gradients. A block computes an image, a thread a channel's part of a column.
extern "C" __global__ void __launch_bounds__(THREADS) gradients_of_conv1(
    const number* __restrict__ d_map1,   // (B, 14, 14, 32), before the ReLU's part
    const number* __restrict__ h1,       // (B, 14, 14, 32)
    const Unit* __restrict__ windows0,   // (B, 14, 14, 16): 9 pixels, a one and zeros
    float* __restrict__ of_images)       // (B, 10, 32): of the 9 taps and the bias
{
    __shared__ float sums[WARPS][10][32];
    int channel = threadIdx.x % 32, x = threadIdx.x / 32;
    float own[10] = {};
#pragma unroll 2
    for (int y = 0; y < 14; y++) {
        int pixel = (blockIdx.x * 14 + y) * 14 + x;
        float d = wide(h1[pixel * 32 + channel]) > 0 ? wide(d_map1[pixel * 32 + channel]) : 0;
#pragma unroll
        for (int tap = 0; tap < 10; tap++)
            own[tap] += d * wide(windows0[pixel * (16 / UNIT) + tap / UNIT].of[tap % UNIT]);
    }
#pragma unroll
    for (int tap = 0; tap < 10; tap++) sums[x][tap][channel] = own[tap];
    __syncthreads();
    if (threadIdx.x < 320) {
        float sum = 0;
        for (int each = 0; each < WARPS; each++) sum += sums[each][x][channel];
        of_images[blockIdx.x * 320 + threadIdx.x] = sum;
    }
}

// Their sums. A block computes a tap or the bias, a thread a channel's part of the images.
extern "C" __global__ void __launch_bounds__(512) sum_of_conv1(
    const float* __restrict__ of_images,  // (B, 10, 32)
    float* __restrict__ of_weight,        // (32, 9)
    float* __restrict__ of_bias)          // (32,)
{
    __shared__ float sums[16][32];
    int channel = threadIdx.x % 32, part = threadIdx.x / 32, tap = blockIdx.x;
    float own = 0;
#pragma unroll 4
    for (int image = part; image < B; image += 16) own += of_images[(image * 10 + tap) * 32 + channel];
    sums[part][channel] = own;
    __syncthreads();
    if (part) return;
    float sum = 0;
#pragma unroll
    for (int each = 0; each < 16; each++) sum += sums[each][channel];
    if (tap < 9) of_weight[channel * 9 + tap] = sum;
    else of_bias[channel] = sum;
}
