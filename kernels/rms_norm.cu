// rms_norm: out = x / sqrt(mean(x^2) + eps) * weight for each row, alone and after adding a residual.
//
// Variants: ELEMENT=f32|f16|bf16
// Needs: rows.cuh
//
// A block takes one row; a thread takes every blockDim.x-th group of V elements, once to sum the squares and once to
// scale, where the second reading hits the cache. The order of the sum depends on the row's length alone.

template <int V>
__device__ void scale_row(const ELEMENT* x, const float* weight, ELEMENT* out, int columns, float mean_square, float eps) {
    float scale = 1.0f / sqrtf(mean_square + eps);
    for (int i = threadIdx.x * V; i < columns; i += blockDim.x * V) {
        float value[V], factor[V];
        load<V>(x + i, value);
        load_floats<V>(weight + i, factor);
#pragma unroll
        for (int v = 0; v < V; v++) value[v] = value[v] * scale * factor[v];
        store<V>(out + i, value);
    }
}

template <int V> __device__ void norm_row(const ELEMENT* x, const float* weight, ELEMENT* out, int columns, float eps) {
    scale_row<V>(x, weight, out, columns, sum_of_squares<V>(x, columns) / columns, eps);
}

// The squares summed are those of the rounded sums, which is what the next layer reads as its residual.
template <int V>
__device__ void add_norm_row(const ELEMENT* x, const ELEMENT* residual, const float* weight, ELEMENT* total, ELEMENT* out,
                             int columns, float eps) {
    float sum = 0.0f;
    for (int i = threadIdx.x * V; i < columns; i += blockDim.x * V) {
        float value[V], other[V];
        load<V>(x + i, value);
        load<V>(residual + i, other);
#pragma unroll
        for (int v = 0; v < V; v++) {
            ELEMENT rounded;
            narrow(value[v] + other[v], rounded);
            value[v] = widen(rounded);
            sum = fmaf(value[v], value[v], sum);
        }
        store<V>(total + i, value);
    }
    scale_row<V>(total, weight, out, columns, sum_of_block(sum) / columns, eps);
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
