// linear_few_rows: out = x * weight^T + bias for up to 16 rows of x, through the matrix units; 16-bit elements.
//
// Variants: ELEMENT=f16|bf16
// Targets: sm_80 sm_90a
//
// `x` is [M, K], `weight` [N, K], both with rows apart by a stride; `bias` [N] or null; `out` [M, N]. A block of 8 warps
// takes 16 outputs; its warps take turns at chunks of 32 inputs and are summed at the end, in order. A tile is
// mma.m16n8k16 with 16 outputs as m and 8 rows of x as n. A lane reads 16 bytes of a weight row and of a row of x: the 8
// inputs feed two multiplications, in the same order on both sides, which is all that a sum over inputs needs. Each
// weight is read once; x is read by every block, from the cache. The order of every sum depends on K alone, so that a
// row's result is the same to the last bit whatever M is.

template <class T> constexpr bool IS_F16 = false;
template <> constexpr bool IS_F16<f16> = true;

struct Shape {
    int rows, outputs, inputs; // M, N, K
    long long x_stride, weight_stride;
};

// Weights are read once: they must not push x out of the first-level cache.
__device__ __forceinline__ uint4 stream_16_bytes(const void* from) {
    uint4 raw;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
        : "l"(from));
    return raw;
}

constexpr int OUTPUTS = 16, ROWS_PER_TILE = 8, WARPS = 8, CHUNK = 32, CHUNKS_IN_FLIGHT = 4;

__device__ __forceinline__ void multiply(float (&sum)[4], unsigned int a0, unsigned int a1, unsigned int a2,
                                         unsigned int a3, unsigned int b0, unsigned int b1) {
    if constexpr (IS_F16<ELEMENT>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
}

// Inputs `k .. k + 8` of a row, zero beyond the row's end.
template <bool WIDE, bool STREAM>
__device__ __forceinline__ uint4 read_inputs(const ELEMENT* row, bool present, int k, int inputs) {
    uint4 raw = make_uint4(0, 0, 0, 0);
    if (!present) return raw;
    if constexpr (WIDE) {
        if (k < inputs) raw = STREAM ? stream_16_bytes(row + k) : *reinterpret_cast<const uint4*>(row + k);
    } else {
        unsigned short element[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            element[i] = k + i < inputs ? reinterpret_cast<const unsigned short*>(row)[k + i] : 0;
        }
        raw.x = element[0] | (unsigned int)element[1] << 16;
        raw.y = element[2] | (unsigned int)element[3] << 16;
        raw.z = element[4] | (unsigned int)element[5] << 16;
        raw.w = element[6] | (unsigned int)element[7] << 16;
    }
    return raw;
}

template <int TILES, bool WIDE>
__device__ void multiply_rows(const ELEMENT* x, const ELEMENT* weight, const Shape& shape, float (&sum)[TILES][4]) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int group = lane / 4, quad = lane % 4;
    int output = blockIdx.x * OUTPUTS + group;
    bool first_present = output < shape.outputs, second_present = output + 8 < shape.outputs;
    const ELEMENT* first = weight + output * shape.weight_stride;
    const ELEMENT* second = first + 8 * shape.weight_stride;
    const ELEMENT* row = x + group * shape.x_stride;
    for (int k = warp * CHUNK + quad * 8; k - quad * 8 < shape.inputs; k += WARPS * CHUNK * CHUNKS_IN_FLIGHT) {
        uint4 a[CHUNKS_IN_FLIGHT][2], b[CHUNKS_IN_FLIGHT][TILES];
#pragma unroll
        for (int c = 0; c < CHUNKS_IN_FLIGHT; c++) {
            int at = k + c * WARPS * CHUNK;
            a[c][0] = read_inputs<WIDE, true>(first, first_present, at, shape.inputs);
            a[c][1] = read_inputs<WIDE, true>(second, second_present, at, shape.inputs);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                bool present = tile * ROWS_PER_TILE + group < shape.rows;
                b[c][tile] = read_inputs<WIDE, false>(row + tile * ROWS_PER_TILE * shape.x_stride, present, at, shape.inputs);
            }
        }
#pragma unroll
        for (int c = 0; c < CHUNKS_IN_FLIGHT; c++) {
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                uint4 u = a[c][0], w = a[c][1], v = b[c][tile];
                multiply(sum[tile], u.x, w.x, u.y, w.y, v.x, v.y);
                multiply(sum[tile], u.z, w.z, u.w, w.w, v.z, v.w);
            }
        }
    }
}

template <int TILES>
__device__ void few_rows_tiles(const ELEMENT* x, const ELEMENT* weight, const float* bias, ELEMENT* out, const Shape& shape) {
    constexpr int ROWS = TILES * ROWS_PER_TILE;
    __shared__ float partial[WARPS][ROWS][OUTPUTS + 1];
    float sum[TILES][4] = {};
    bool wide = rows_on_16_bytes(x, shape.x_stride) && rows_on_16_bytes(weight, shape.weight_stride) && shape.inputs % 8 == 0;
    if (wide) {
        multiply_rows<TILES, true>(x, weight, shape, sum);
    } else {
        multiply_rows<TILES, false>(x, weight, shape, sum);
    }
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int group = lane / 4, quad = lane % 4;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        int row = tile * ROWS_PER_TILE + quad * 2;
        partial[warp][row][group] = sum[tile][0];
        partial[warp][row + 1][group] = sum[tile][1];
        partial[warp][row][group + 8] = sum[tile][2];
        partial[warp][row + 1][group + 8] = sum[tile][3];
    }
    __syncthreads();
    int row = threadIdx.x / OUTPUTS, column = threadIdx.x % OUTPUTS;
    int output = blockIdx.x * OUTPUTS + column;
    if (row >= ROWS || row >= shape.rows || output >= shape.outputs) return;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += partial[w][row][column];
    if (bias != nullptr) total += bias[output];
    narrow(total, out[(long long)row * shape.outputs + output]);
}

// At most 16 rows; blocks of 256 threads, one per 16 outputs.
extern "C" __global__ void __launch_bounds__(WARPS* WARP)
    linear_few_rows(const ELEMENT* x, const ELEMENT* weight, const float* bias, ELEMENT* out, const __grid_constant__ Shape shape) {
    if (shape.rows <= ROWS_PER_TILE) {
        few_rows_tiles<1>(x, weight, bias, out, shape);
    } else {
        few_rows_tiles<2>(x, weight, bias, out, shape);
    }
}

