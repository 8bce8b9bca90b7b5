// linear: out = x * weight^T + bias + residual, for any number of rows and any mixture of dtypes, in ordinary arithmetic.
//
// Variants: ELEMENT:WEIGHT=f32:f32|f32:f16|f32:bf16|f16:f16|bf16:bf16|f32:e4m3|f16:e4m3|bf16:e4m3
//
// `x` is [M, K], `weight` [N, K], both with rows apart by a stride; `scales` [N], `bias` [N] and `residual` [M, N], or
// null; `out` [M, N]. A warp takes one
// output and ROWS rows of x (blockIdx.y is the group of rows), a lane every 32nd group of V inputs: each weight is read
// once for ROWS rows. The order of every sum depends on K alone, so that a row's result is the same to the last bit
// whatever M is.

struct Shape {
    int rows, outputs, inputs; // M, N, K
    long long x_stride, weight_stride, residual_stride;
};

// Weights are read once: they must not push x out of the first-level cache.
__device__ __forceinline__ uint4 stream_16_bytes(const void* from) {
    uint4 raw;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
        : "l"(from));
    return raw;
}

constexpr int WARPS = 8, ROWS = 8;

template <int V>
__device__ void dot_rows(const ELEMENT* x, const WEIGHT* row, int rows, const Shape& shape, float (&sum)[ROWS]) {
    for (int k = threadIdx.x % WARP * V; k < shape.inputs; k += WARP * V) {
        float factor[V];
        if constexpr (V == 1 || sizeof(WEIGHT) == 1) {
            load<V>(row + k, factor);
        } else {
            widen_16_bytes(stream_16_bytes(row + k), WEIGHT{}, factor);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (r >= rows) break;
            const ELEMENT* from = x + r * shape.x_stride + k;
            if constexpr (V == 1) {
                sum[r] = fmaf(widen(*from), factor[0], sum[r]);
            } else {
                constexpr int STEP = WIDEST<ELEMENT>;
#pragma unroll
                for (int i = 0; i < V; i += STEP) {
                    float value[STEP];
                    load<STEP>(from + i, value);
#pragma unroll
                    for (int v = 0; v < STEP; v++) sum[r] = fmaf(value[v], factor[i + v], sum[r]);
                }
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(WARPS* WARP)
    any_rows(const ELEMENT* x, const WEIGHT* weight, const float* scales, const float* bias, const ELEMENT* residual,
             ELEMENT* out, const __grid_constant__ Shape shape) {
    int output = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (output >= shape.outputs) return;
    int first = blockIdx.y * ROWS;
    int rows = min(ROWS, shape.rows - first);
    const ELEMENT* from = x + first * shape.x_stride;
    const WEIGHT* row = weight + output * shape.weight_stride;
    float sum[ROWS] = {};
    bool wide = rows_on_16_bytes(x, shape.x_stride) && rows_on_16_bytes(weight, shape.weight_stride) &&
                shape.inputs % WIDEST<WEIGHT> == 0;
    if (wide) {
        dot_rows<WIDEST<WEIGHT>>(from, row, rows, shape, sum);
    } else {
        dot_rows<1>(from, row, rows, shape, sum);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float total = sum_of_warp(sum[r]);
        if (r < rows && threadIdx.x % WARP == 0) {
            if (scales != nullptr) total *= scales[output];
            if (bias != nullptr) total += bias[output];
            if (residual != nullptr) total += widen(residual[(first + r) * shape.residual_stride + output]);
            narrow(total, out[(long long)(first + r) * shape.outputs + output]);
        }
    }
}

// For where the matrix library cannot add a 32-bit bias itself: blockIdx.x is the row; a thread takes one output.
extern "C" __global__ void add_bias(ELEMENT* out, const float* bias, int outputs) {
    int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= outputs) return;
    ELEMENT* at = out + (long long)blockIdx.x * outputs + column;
    narrow(widen(*at) + bias[column], *at);
}
