// linear_fp8: out = after(sums * scale of the row * scale of the output + bias), where the sums are those of products of
// codes of 8 bits, which the vendor's library computed.
//
// Variants: ELEMENT=f16|bf16 AFTER:KIND=STORE:RELU|ACTIVATE:GELU_TANH|GATE:SILU
//
// `sums` is [M, N] of 1 / `factor` times the sums, `x_scales` [M], `scales` [N]; `bias` [N] and `residual` [M, N] (rows
// apart by a stride) or null. `out` is [M, N], with GATE [M, N / 2]: kind(first half) * second half. N, and with GATE its
// half, are multiples of 8, and rows begin on 16-byte boundaries. Each result is rounded where the separate operations
// round it.
//
// blockIdx.x is the row; a thread takes 8 adjacent results. 2 M N bytes are read, as many written (half with GATE).

enum After { STORE, ACTIVATE, GATE };

constexpr int V = 8;

struct Shape {
    int outputs, columns; // of the sums, of the results
    long long residual_stride;
    float factor;
};

struct Sums {
    const ELEMENT* row;
    const float *scales, *bias;
    float scale;

    // Sums of 8 adjacent outputs, rounded.
    __device__ __forceinline__ void read(int output, float (&value)[V]) const {
        float factor[V], added[V] = {};
        load<V>(row + output, value);
        load_floats<V>(scales + output, factor);
        if (bias != nullptr) load_floats<V>(bias + output, added);
#pragma unroll
        for (int v = 0; v < V; v++) {
            ELEMENT rounded;
            narrow(fmaf(value[v] * scale, factor[v], added[v]), rounded);
            value[v] = widen(rounded);
        }
    }
};

extern "C" __global__ void linear_fp8(const ELEMENT* sums, const float* x_scales, const float* scales, const float* bias,
                                      const ELEMENT* residual, ELEMENT* out, const __grid_constant__ Shape shape) {
    start_next_kernel();
    wait_for_previous_kernel();
    int column = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    if (column >= shape.columns) return;
    long long row = blockIdx.x;
    Sums of_row = {sums + row * shape.outputs, scales, bias, x_scales[row] * shape.factor};
    float value[V], other[V];
    of_row.read(column, value);
    if constexpr (AFTER == GATE) of_row.read(column + shape.columns, other);
    if (AFTER == STORE && residual != nullptr) load<V>(residual + row * shape.residual_stride + column, other);
#pragma unroll
    for (int v = 0; v < V; v++) {
        if constexpr (AFTER == ACTIVATE) value[v] = activate<KIND>(value[v]);
        if constexpr (AFTER == GATE) value[v] = activate<KIND>(value[v]) * other[v];
        if (AFTER == STORE && residual != nullptr) value[v] += other[v];
    }
    store<V>(out + row * shape.columns + column, value);
}
