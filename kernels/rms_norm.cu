// rms_norm: out = x / sqrt(mean(x^2) + eps) * weight for each row, alone and after adding a residual.
//
// Variants: ELEMENT=f32|f16|bf16
//
// A block of 8 warps takes one row; a thread takes every THREADS-th group of V elements and keeps the first of them, with
// their weights, which it reads before the kernel before this one has ended. For many short rows there are entries in which a warp takes a row and
// keeps it in registers: all of it is under way at once, and nothing waits for a barrier. The order of the sum depends on
// the row's length alone: that of a block of 256 threads, also where a warp takes the row.

constexpr int THREADS = 256;
// Groups that a thread of a block keeps; of longer rows it reads the others twice.
constexpr int HELD = 2;

template <int V> __device__ __forceinline__ void scale(float (&value)[V], const float (&factor)[V], float scale) {
#pragma unroll
    for (int v = 0; v < V; v++) value[v] = value[v] * scale * factor[v];
}
template <int V> __device__ __forceinline__ void scale_group(const ELEMENT* x, const float* weight, ELEMENT* out, float factor) {
    float value[V], weights[V];
    load<V>(x, value);
    load_constants<V>(weight, weights);
    scale<V>(value, weights, factor);
    store<V>(out, value);
}
template <int V> __device__ __forceinline__ void add_squares(const float (&value)[V], float& sum) {
#pragma unroll
    for (int v = 0; v < V; v++) sum = fmaf(value[v], value[v], sum);
}

template <int V> __device__ __forceinline__ void norm_row(const ELEMENT* x, const float* weight, ELEMENT* out, int columns, float eps) {
    __shared__ __align__(16) float sums[THREADS / WARP];
    float value[HELD][V], factor[HELD][V], sum = 0.0f;
    auto place = [&](int h) { return ((int)threadIdx.x + h * THREADS) * V; };
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        if (place(h) < columns) load_constants<V>(weight + place(h), factor[h]);
    }
    wait_for_previous_kernel();
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        if (place(h) < columns) load<V>(x + place(h), value[h]);
    }
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        if (place(h) < columns) add_squares<V>(value[h], sum);
    }
    for (int i = place(HELD); i < columns; i += THREADS * V) {
        float more[V];
        load<V>(x + i, more);
        add_squares<V>(more, sum);
    }
    float common = 1.0f / sqrtf(sum_of_8_warps(sum, sums) / columns + eps);
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        if (place(h) >= columns) return;
        scale<V>(value[h], factor[h], common);
        store<V>(out + place(h), value[h]);
    }
    for (int i = place(HELD); i < columns; i += THREADS * V) scale_group<V>(x + i, weight + i, out + i, common);
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
    __shared__ __align__(16) float sums[THREADS / WARP];
    float sum = 0.0f;
    for (int i = threadIdx.x * V; i < columns; i += THREADS * V) {
        float value[V], other[V];
        load<V>(x + i, value);
        load<V>(residual + i, other);
        add_rounded<V>(value, other);
        add_squares<V>(value, sum);
        store<V>(total + i, value);
    }
    float common = 1.0f / sqrtf(sum_of_8_warps(sum, sums) / columns + eps);
    for (int i = threadIdx.x * V; i < columns; i += THREADS * V) scale_group<V>(total + i, weight + i, out + i, common);
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
        add_squares<V>(value, squares[n]);
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
