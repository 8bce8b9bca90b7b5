// linear_quantize: codes of 8 bits and one scale for each row, of x or of its root-mean-square norm: x = code * scale.
//
// Variants: ELEMENT=f16|bf16 NORM=NO_NORM|RMS_NORM
//
// `x` is [M, K] with rows apart by a stride and on 16-byte boundaries, K a multiple of 8; `codes` [M, K], `scales` [M]. The
// largest magnitude of a row becomes the largest code's, 448; a row of zeros has the scale 1. A norm is rounded as
// rms_norm rounds it.
//
// A block takes one row; a thread takes every blockDim.x-th group of 8 elements, for each of the sums, the largest and the
// codes. After the first reading they come from the cache: 2 M K bytes read and M K written, at least.

enum Norm { NO_NORM, RMS_NORM };

constexpr int V = 8;
constexpr float LARGEST_CODE = 448.0f;
// Rows below this are zeros: 448 divided by their largest would not be a number.
constexpr float SMALLEST = 1e-30f;

__device__ __forceinline__ float max_of_block(float value) {
    __shared__ float of_warp[32];
    unsigned int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    value = max_of_warp(value);
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();
    return max_of_warp(lane < blockDim.x / WARP ? of_warp[lane] : 0.0f);
}

// The sum of a row's squares, in the order of rms_norm.cu.
__device__ __forceinline__ float sum_of_squares(const ELEMENT* x, int columns) {
    float sum = 0.0f;
    for (int i = threadIdx.x * V; i < columns; i += blockDim.x * V) {
        float value[V];
        load<V>(x + i, value);
#pragma unroll
        for (int v = 0; v < V; v++) sum = fmaf(value[v], value[v], sum);
    }
    return sum_of_block(sum);
}

struct Row {
    const ELEMENT* x;
    const float* norm_weight;
    float scale; // of the norm

    __device__ __forceinline__ void read(int i, float (&value)[V]) const {
        load<V>(x + i, value);
        if constexpr (NORM == RMS_NORM) {
            float factor[V];
            load_floats<V>(norm_weight + i, factor);
#pragma unroll
            for (int v = 0; v < V; v++) {
                ELEMENT rounded;
                narrow(value[v] * scale * factor[v], rounded);
                value[v] = widen(rounded);
            }
        }
    }
};

extern "C" __global__ void quantize_rows(const ELEMENT* x, long long x_stride, const float* norm_weight, float eps,
                                         e4m3* codes, float* scales, int columns) {
    start_next_kernel();
    wait_for_previous_kernel();
    Row row = {x + blockIdx.x * x_stride, norm_weight, 1.0f};
    if constexpr (NORM == RMS_NORM) row.scale = 1.0f / sqrtf(sum_of_squares(row.x, columns) / columns + eps);
    float largest = 0.0f, value[V];
    for (int i = threadIdx.x * V; i < columns; i += blockDim.x * V) {
        row.read(i, value);
#pragma unroll
        for (int v = 0; v < V; v++) largest = fmaxf(largest, fabsf(value[v]));
    }
    largest = max_of_block(largest);
    bool is_zero = largest < SMALLEST;
    float per_unit = is_zero ? 0.0f : LARGEST_CODE / largest;
    if (threadIdx.x == 0) scales[blockIdx.x] = is_zero ? 1.0f : largest / LARGEST_CODE;
    for (int i = threadIdx.x * V; i < columns; i += blockDim.x * V) {
        row.read(i, value);
#pragma unroll
        for (int v = 0; v < V; v++) value[v] *= per_unit;
        store<V>(codes + (long long)blockIdx.x * columns + i, value);
    }
}
