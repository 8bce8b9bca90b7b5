// layer_norm: out = (x - mean) / sqrt(variance + eps) * weight + bias for each row.
//
// Variants: ELEMENT=f32|f16|bf16
//
// A block takes one row and reads it three times, from the cache after the first: for the mean, for the variance around
// it, and to scale. The order of the sums depends on the row's length alone.

template <int V>
__device__ void norm_row(const ELEMENT* x, const float* weight, const float* bias, ELEMENT* out, int columns, float eps) {
    float sum = 0.0f;
    for (int i = threadIdx.x * V; i < columns; i += blockDim.x * V) {
        float value[V];
        load<V>(x + i, value);
#pragma unroll
        for (int v = 0; v < V; v++) sum += value[v];
    }
    float mean = sum_of_block(sum) / columns;
    float squares = 0.0f;
    for (int i = threadIdx.x * V; i < columns; i += blockDim.x * V) {
        float value[V];
        load<V>(x + i, value);
#pragma unroll
        for (int v = 0; v < V; v++) squares = fmaf(value[v] - mean, value[v] - mean, squares);
    }
    float scale = 1.0f / sqrtf(sum_of_block(squares) / columns + eps);
    for (int i = threadIdx.x * V; i < columns; i += blockDim.x * V) {
        float value[V], factor[V], shift[V];
        load<V>(x + i, value);
        load_floats<V>(weight + i, factor);
        load_floats<V>(bias + i, shift);
#pragma unroll
        for (int v = 0; v < V; v++) value[v] = fmaf((value[v] - mean) * scale, factor[v], shift[v]);
        store<V>(out + i, value);
    }
}

extern "C" __global__ void layer_norm(const ELEMENT* x, long long x_stride, const float* weight, const float* bias,
                                      ELEMENT* out, int columns, float eps) {
    start_next_kernel();
    wait_for_previous_kernel();
    const ELEMENT* row = x + blockIdx.x * x_stride;
    ELEMENT* to = out + (long long)blockIdx.x * columns;
    bool wide = rows_on_16_bytes(x, x_stride) && rows_on_16_bytes(out, columns) && on_16_bytes(weight) && on_16_bytes(bias);
    if (wide) {
        norm_row<WIDEST<ELEMENT>>(row, weight, bias, to, columns, eps);
    } else {
        norm_row<1>(row, weight, bias, to, columns, eps);
    }
}
