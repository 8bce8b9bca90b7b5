// rms_norm: out = x / sqrt(mean(x^2) + eps) * weight for each row, alone and after adding a residual.
//
// Variants: ELEMENT=f32|f16|bf16
// Needs: rows.cuh
//
// A block takes one row; a thread takes every blockDim.x-th group of V elements, once to sum the squares and once to
// scale, where the second reading hits the cache. For many short rows there are entries in which a warp takes a row and
// keeps it in registers: all of it is under way at once, and nothing waits for a barrier. The order of the sum depends on
// the row's length alone: that of a block of 256 threads, also where a warp takes the row.

template <int V> __device__ void scale_row(const ELEMENT* x, const float* weight, ELEMENT* out, int columns, float mean_square, float eps) {
    float scale = 1.0f / sqrtf(mean_square + eps);
    for (int i = threadIdx.x * V; i < columns; i += blockDim.x * V) {
        float value[V], factor[V];
        load<V>(x + i, value);
        load_constants<V>(weight + i, factor);
#pragma unroll
        for (int v = 0; v < V; v++) value[v] = value[v] * scale * factor[v];
        store<V>(out + i, value);
    }
}

template <int V> __device__ void norm_row(const ELEMENT* x, const float* weight, ELEMENT* out, int columns, float eps) {
    scale_row<V>(x, weight, out, columns, sum_of_squares<V>(x, columns) / columns, eps);
}

// Adds groups and rounds: the squares summed are those of the rounded sums, which is what the next layer reads as its
// residual.
template <int V> __device__ __forceinline__ void add_rounded(float (&value)[V], const float (&other)[V]) {
#pragma unroll
    for (int v = 0; v < V; v++) {
        ELEMENT rounded;
        narrow(value[v] + other[v], rounded);
        value[v] = widen(rounded);
    }
}

template <int V>
__device__ void add_norm_row(const ELEMENT* x, const ELEMENT* residual, const float* weight, ELEMENT* total, ELEMENT* out,
                             int columns, float eps) {
    float sum = 0.0f;
    for (int i = threadIdx.x * V; i < columns; i += blockDim.x * V) {
        float value[V], other[V];
        load<V>(x + i, value);
        load<V>(residual + i, other);
        add_rounded<V>(value, other);
#pragma unroll
        for (int v = 0; v < V; v++) sum = fmaf(value[v], value[v], sum);
        store<V>(total + i, value);
    }
    scale_row<V>(total, weight, out, columns, sum_of_block(sum) / columns, eps);
}

// The sum over a warp of N numbers of each lane, where number n is what the lane of the same number in warp n of a block
// holds: the sums of sum_of_block in the same order. Lanes with a set bit sum the upper half of the numbers, the others the
// lower, until each has one.
template <int N> __device__ __forceinline__ float sum_as_block(float (&number)[N]) {
    int lane = threadIdx.x % WARP, offset = WARP / 2;
#pragma unroll
    for (int half = N / 2; half > 0; half /= 2, offset /= 2) {
        bool upper = lane & offset;
#pragma unroll
        for (int n = 0; n < half; n++) {
            float own = upper ? number[n + half] : number[n], other = upper ? number[n] : number[n + half];
            number[n] = own + __shfl_xor_sync(ALL_LANES, other, offset);
        }
    }
    float sum = number[0];
#pragma unroll
    for (; offset > 0; offset /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    offset = WARP / 2;
#pragma unroll
    for (int half = N / 2; half > 0; half /= 2, offset /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    return sum;
}

// Groups that a lane of a warp keeps.
constexpr int N = 4;

// A row of up to N groups for each lane of a warp; without `ADDS` there is no `residual` and no `total`.
template <bool ADDS>
__device__ __forceinline__ void norm_short_row(const ELEMENT* x, const ELEMENT* residual, const float* weight, ELEMENT* total,
                                               ELEMENT* out, int columns, float eps) {
    constexpr int V = WIDEST<ELEMENT>;
    int lane = threadIdx.x % WARP;
    uint4 kept[N], added[N];
    float squares[N];
#pragma unroll
    for (int n = 0; n < N; n++) {
        int i = (n * WARP + lane) * V;
        kept[n] = i < columns ? *reinterpret_cast<const uint4*>(x + i) : make_uint4(0, 0, 0, 0);
        if constexpr (ADDS) added[n] = i < columns ? *reinterpret_cast<const uint4*>(residual + i) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
        int i = (n * WARP + lane) * V;
        float value[V];
        widen_16_bytes(kept[n], ELEMENT{}, value);
        if constexpr (ADDS) {
            float other[V];
            widen_16_bytes(added[n], ELEMENT{}, other);
            add_rounded<V>(value, other);
            store<V>(reinterpret_cast<ELEMENT*>(&kept[n]), value);
            if (i < columns) *reinterpret_cast<uint4*>(total + i) = kept[n];
        }
        squares[n] = 0.0f;
#pragma unroll
        for (int v = 0; v < V; v++) squares[n] = fmaf(value[v], value[v], squares[n]);
    }
    float scale = 1.0f / sqrtf(sum_as_block<N>(squares) / columns + eps);
#pragma unroll
    for (int n = 0; n < N; n++) {
        int i = (n * WARP + lane) * V;
        if (i >= columns) return;
        float value[V], factor[V];
        widen_16_bytes(kept[n], ELEMENT{}, value);
        load_constants<V>(weight + i, factor);
#pragma unroll
        for (int v = 0; v < V; v++) value[v] = value[v] * scale * factor[v];
        store<V>(out + i, value);
    }
}

extern "C" __global__ void rms_norm(const ELEMENT* x, long long x_stride, const float* weight, ELEMENT* out, int columns,
                                    float eps) {
    start_next_kernel();
    wait_for_previous_kernel();
    const ELEMENT* row = x + blockIdx.x * x_stride;
    ELEMENT* to = out + (long long)blockIdx.x * columns;
    bool wide = rows_on_16_bytes(x, x_stride) && rows_on_16_bytes(out, columns) && on_16_bytes(weight);
    if (wide) {
        norm_row<WIDEST<ELEMENT>>(row, weight, to, columns, eps);
    } else {
        norm_row<1>(row, weight, to, columns, eps);
    }
}

extern "C" __global__ void add_rms_norm(const ELEMENT* x, long long x_stride, const ELEMENT* residual,
                                        long long residual_stride, const float* weight, ELEMENT* out, ELEMENT* total,
                                        int columns, float eps) {
    start_next_kernel();
    wait_for_previous_kernel();
    const ELEMENT* row = x + blockIdx.x * x_stride;
    const ELEMENT* other = residual + blockIdx.x * residual_stride;
    long long first = (long long)blockIdx.x * columns;
    bool wide = rows_on_16_bytes(x, x_stride) && rows_on_16_bytes(residual, residual_stride) &&
                rows_on_16_bytes(out, columns) && on_16_bytes(total) && on_16_bytes(weight);
    if (wide) {
        add_norm_row<WIDEST<ELEMENT>>(row, other, weight, total + first, out + first, columns, eps);
    } else {
        add_norm_row<1>(row, other, weight, total + first, out + first, columns, eps);
    }
}

// The entries for rows of at most N * WARP groups, on 16 bytes. A block takes a row for each of its warps.
extern "C" __global__ void rms_norm_short(const ELEMENT* x, long long x_stride, const float* weight, ELEMENT* out,
                                          int columns, float eps, int rows) {
    start_next_kernel();
    wait_for_previous_kernel();
    int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    norm_short_row<false>(x + row * x_stride, nullptr, weight, nullptr, out + (long long)row * columns, columns, eps);
}

extern "C" __global__ void add_rms_norm_short(const ELEMENT* x, long long x_stride, const ELEMENT* residual,
                                              long long residual_stride, const float* weight, ELEMENT* out, ELEMENT* total,
                                              int columns, float eps, int rows) {
    start_next_kernel();
    wait_for_previous_kernel();
    int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    long long first = (long long)row * columns;
    norm_short_row<true>(x + row * x_stride, residual + row * residual_stride, weight, total + first, out + first, columns, eps);
}
