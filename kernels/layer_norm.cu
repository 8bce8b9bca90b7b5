// layer_norm: out = (x - mean) / sqrt(variance + eps) * weight + bias for each row.
//
// Variants: ELEMENT=f32|f16|bf16
//
// A block of 8 warps takes one row; a thread takes every THREADS-th group of V elements and keeps the first of them, with
// their weights, which it reads before the kernel before this one has ended. The mean comes first, then the variance around
// it. The order of the sums depends on the row's length alone.

constexpr int THREADS = 256;
// Groups that a thread keeps; of longer rows it reads the others again.
constexpr int HELD = 2;

template <bool SQUARES, int V> __device__ __forceinline__ void add(const float (&group)[V], float mean, float& sum) {
#pragma unroll
    for (int v = 0; v < V; v++) sum = SQUARES ? fmaf(group[v] - mean, group[v] - mean, sum) : sum + group[v];
}

// The sum of a row, or of the squares of its distances to `mean`. `sums` is used once.
template <bool SQUARES, int V>
__device__ __forceinline__ float sum_of_row(const float (&held)[HELD][V], const ELEMENT* x, int columns, float mean, float* sums) {
    float sum = 0.0f;
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        if (((int)threadIdx.x + h * THREADS) * V < columns) add<SQUARES, V>(held[h], mean, sum);
    }
    for (int i = ((int)threadIdx.x + HELD * THREADS) * V; i < columns; i += THREADS * V) {
        float more[V];
        load<V>(x + i, more);
        add<SQUARES, V>(more, mean, sum);
    }
    return sum_of_8_warps(sum, sums);
}

template <int V>
__device__ __forceinline__ void norm_row(const ELEMENT* x, const float* weight, const float* bias, ELEMENT* out, int columns, float eps) {
    __shared__ __align__(16) float sums[2][THREADS / WARP];
    float value[HELD][V], factor[HELD][V], shift[HELD][V];
    auto place = [&](int h) { return ((int)threadIdx.x + h * THREADS) * V; };
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        if (place(h) < columns) load_constants<V>(weight + place(h), factor[h]), load_constants<V>(bias + place(h), shift[h]);
    }
    wait_for_previous_kernel();
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        if (place(h) < columns) load<V>(x + place(h), value[h]);
    }
    float mean = sum_of_row<false, V>(value, x, columns, 0.0f, sums[0]) / columns;
    float scale = 1.0f / sqrtf(sum_of_row<true, V>(value, x, columns, mean, sums[1]) / columns + eps);
    auto normalise = [&](float (&group)[V], const float (&factor)[V], const float (&shift)[V], int i) {
#pragma unroll
        for (int v = 0; v < V; v++) group[v] = fmaf((group[v] - mean) * scale, factor[v], shift[v]);
        store<V>(out + i, group);
    };
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        if (place(h) < columns) normalise(value[h], factor[h], shift[h], place(h));
    }
    for (int i = place(HELD); i < columns; i += THREADS * V) {
        load<V>(x + i, value[0]);
        load_constants<V>(weight + i, factor[0]);
        load_constants<V>(bias + i, shift[0]);
        normalise(value[0], factor[0], shift[0], i);
    }
}

extern "C" __global__ void layer_norm(const ELEMENT* x, long long x_stride, const float* weight, const float* bias,
                                      ELEMENT* out, int columns, float eps) {
    start_next_kernel();
    const ELEMENT* row = x + blockIdx.x * x_stride;
    ELEMENT* to = out + (long long)blockIdx.x * columns;
    bool wide = rows_on_16_bytes(x, x_stride) && rows_on_16_bytes(out, columns) && on_16_bytes(weight) && on_16_bytes(bias);
    if (wide) {
        norm_row<WIDEST<ELEMENT>>(row, weight, bias, to, columns, eps);
    } else {
        norm_row<1>(row, weight, bias, to, columns, eps);
    }
}
