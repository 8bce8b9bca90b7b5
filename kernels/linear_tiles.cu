// linear_tiles: out = x * weight^T + bias + residual for many rows, with the bits that linear_few_rows gives each row.
//
// Variants: ELEMENT:MT:NT:SPAN=f16:4:8:1|bf16:4:8:1|bf16:4:4:2|f16:2:4:4|bf16:1:4:4|bf16:1:1:4
// Needs: products.cuh
// Targets: sm_80 sm_86 sm_89 sm_90a
//
// `x` is [M, K], `weight` [N, K], `residual` [M, N] or null, rows apart by a stride; `bias` [N] or null; `out` [M, N].
//
// A block takes OUTPUTS outputs of ROWS rows; 8 warps, 2 along the outputs and 4 along the rows, take 16 MT outputs and
// 8 NT rows each. linear_few_rows lets 8 warps take turns at chunks of 32 inputs and adds up their sums: here a warp goes
// through the chunks of each of those 8 itself, one after the other, so that every sum has the same order, and adds up the
// sums of 8 passes. Fragments are read as there: a lane takes 16 bytes of a row, the 8 inputs of two multiplications.
//
// Memory: a ring of STAGES times SPAN chunks of both matrices for the block, with a barrier for every SPAN. The sums of finished passes are in shared memory, where
// each thread has its own; after the last, the results take the place of the ring, to be written in whole rows.

constexpr int WARPS = 8, THREADS = WARPS * WARP, CHUNK = 32, PASSES = 8, STAGES = 4;
constexpr int OUTPUTS = 32 * MT, ROWS = 32 * NT;
// 16-byte groups of a chunk's row, of a chunk, and of a stage.
constexpr int GROUPS = CHUNK / 8, CHUNK_GROUPS = (OUTPUTS + ROWS) * GROUPS, STAGE_GROUPS = SPAN * CHUNK_GROUPS;
// Rows of results are apart by what spreads them over the banks.
constexpr int RESULT_STRIDE = OUTPUTS + 8;
static_assert(STAGES * STAGE_GROUPS * 16 >= ROWS * RESULT_STRIDE * (int)sizeof(ELEMENT), "the results fit into the ring");

struct Shape {
    int rows, outputs, inputs; // M, N, K
    int padding;
    long long x_stride, weight_stride, residual_stride;
};

__device__ __forceinline__ void copy_16_bytes(const uint4* to, const void* from, bool present) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned int)__cvta_generic_to_shared(to)), "l"(from),
                 "r"(present ? 16 : 0));
}
// The order of chunks: those of the first pass, PASSES apart, then those of the second.
struct Order {
    int pass = 0, chunk = 0;
    __device__ __forceinline__ bool ends_pass(int chunks) const { return chunk + PASSES >= chunks; }
    __device__ __forceinline__ void advance(int chunks) { chunk = ends_pass(chunks) ? ++pass : chunk + PASSES; }
};

// What a block reads: its outputs' weights and its rows of x.
struct Source {
    const ELEMENT *weight, *x;
    int outputs, rows; // that are there
};

__device__ __forceinline__ void copy_chunk(uint4* to, const Source& source, int chunk, const Shape& shape) {
#pragma unroll
    for (int i = 0; i < (CHUNK_GROUPS + THREADS - 1) / THREADS; i++) {
        int at = i * THREADS + threadIdx.x;
        if (CHUNK_GROUPS % THREADS != 0 && at >= CHUNK_GROUPS) break;
        int row = at / GROUPS, k = chunk * CHUNK + at % GROUPS * 8;
        bool is_weight = row < OUTPUTS;
        int own = is_weight ? row : row - OUTPUTS;
        bool present = k < shape.inputs && own < (is_weight ? source.outputs : source.rows);
        const ELEMENT* from = is_weight ? source.weight + own * shape.weight_stride : source.x + own * shape.x_stride;
        copy_16_bytes(to + at, present ? from + k : source.weight, present);
    }
}

// Starts to copy the next SPAN chunks, as far as there are so many.
__device__ __forceinline__ void copy_stage(uint4* stage, const Source& source, Order& order, int begin, int chunks,
                                           const Shape& shape) {
#pragma unroll
    for (int s = 0; s < SPAN; s++) {
        if (begin + s < chunks) copy_chunk(stage + s * CHUNK_GROUPS, source, order.chunk, shape);
        order.advance(chunks);
    }
    commit_copies();
}

// One chunk's products of a warp's outputs and rows.
__device__ __forceinline__ void add_products(float (&sum)[MT][NT][4], const uint4* chunk) {
    int warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4, quad = threadIdx.x % 4;
    const uint4* weight = chunk + (warp / 4 * MT * 16 + group) * GROUPS + quad;
    const uint4* x = chunk + (OUTPUTS + warp % 4 * NT * 8 + group) * GROUPS + quad;
    uint4 u[MT], w[MT];
#pragma unroll
    for (int m = 0; m < MT; m++) u[m] = weight[m * 16 * GROUPS], w[m] = weight[(m * 16 + 8) * GROUPS];
#pragma unroll
    for (int n = 0; n < NT; n++) {
        uint4 v = x[n * 8 * GROUPS];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            multiply(sum[m][n], u[m].x, w[m].x, u[m].y, w[m].y, v.x, v.y);
            multiply(sum[m][n], u[m].z, w[m].z, u[m].w, w[m].w, v.z, v.w);
        }
    }
}

// Adds a pass's sums to those of the passes before it.
__device__ __forceinline__ void finish_pass(float (&sum)[MT][NT][4], float4* totals, bool is_first) {
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float4* at = totals + (m * NT + n) * THREADS + threadIdx.x;
            float4 total = is_first ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : *at;
            float(&own)[4] = sum[m][n];
            *at = make_float4(total.x + own[0], total.y + own[1], total.z + own[2], total.w + own[3]);
            own[0] = own[1] = own[2] = own[3] = 0.0f;
        }
    }
}

// The rounded sums with their bias, as rows of OUTPUTS.
__device__ __forceinline__ void round_results(ELEMENT* results, const float4* totals, const float* bias, int outputs) {
    int warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < MT; m++) {
        int output = (warp / 4 * MT + m) * 16 + group;
        float first = bias != nullptr && output < outputs ? bias[output] : 0.0f;
        float second = bias != nullptr && output + 8 < outputs ? bias[output + 8] : 0.0f;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float4 total = totals[(m * NT + n) * THREADS + threadIdx.x];
            ELEMENT* at = results + ((warp % 4 * NT + n) * 8 + quad * 2) * RESULT_STRIDE + output;
            narrow(total.x + first, at[0]);
            narrow(total.y + first, at[RESULT_STRIDE]);
            narrow(total.z + second, at[8]);
            narrow(total.w + second, at[RESULT_STRIDE + 8]);
        }
    }
}

__device__ __forceinline__ void write_results(const ELEMENT* results, const ELEMENT* residual, ELEMENT* out, const Source& there,
                                              const Shape& shape) {
    bool is_wide = shape.outputs % 8 == 0 && residual == nullptr;
    for (int at = threadIdx.x; at < there.rows * (OUTPUTS / 8); at += THREADS) {
        int row = at / (OUTPUTS / 8), output = at % (OUTPUTS / 8) * 8;
        const ELEMENT* from = results + row * RESULT_STRIDE + output;
        ELEMENT* to = out + (long long)row * shape.outputs + output;
        if (is_wide && output + 8 <= there.outputs) {
            *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
            continue;
        }
        for (int i = 0; i < 8 && output + i < there.outputs; i++) {
            if (residual == nullptr) {
                to[i] = from[i];
            } else {
                narrow(widen(from[i]) + widen(residual[row * shape.residual_stride + output + i]), to[i]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    linear_tiles(const ELEMENT* x, const ELEMENT* weight, const float* bias, const ELEMENT* residual, ELEMENT* out,
                 const __grid_constant__ Shape shape) {
    extern __shared__ __align__(16) char memory[];
    uint4* ring = reinterpret_cast<uint4*>(memory);
    float4* totals = reinterpret_cast<float4*>(ring + STAGES * STAGE_GROUPS);
    // Rows change fastest, so that blocks that run together share weights.
    int first_row = blockIdx.x * ROWS, first_output = blockIdx.y * OUTPUTS;
    Source source = {weight + first_output * shape.weight_stride, x + first_row * shape.x_stride,
                     min(OUTPUTS, shape.outputs - first_output), min(ROWS, shape.rows - first_row)};
    int chunks = (shape.inputs + CHUNK - 1) / CHUNK;
    start_next_kernel();
    wait_for_previous_kernel();

    Order copied, used;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) copy_stage(ring + s * STAGE_GROUPS, source, copied, s * SPAN, chunks, shape);
    float sum[MT][NT][4] = {};
    bool is_first = true;
    for (int step = 0; step * SPAN < chunks; step++) {
        wait_for_copies<STAGES - 2>();
        __syncthreads(); // the stage is there, and the one before it is used up
        int next = step + STAGES - 1;
        copy_stage(ring + next % STAGES * STAGE_GROUPS, source, copied, next * SPAN, chunks, shape);
#pragma unroll
        for (int s = 0; s < SPAN; s++) {
            if (step * SPAN + s >= chunks) break;
            add_products(sum, ring + step % STAGES * STAGE_GROUPS + s * CHUNK_GROUPS);
            if (used.ends_pass(chunks)) {
                finish_pass(sum, totals, is_first);
                is_first = false;
            }
            used.advance(chunks);
        }
    }
    wait_for_copies<0>();
    __syncthreads(); // the ring is free
    ELEMENT* results = reinterpret_cast<ELEMENT*>(memory);
    round_results(results, totals, bias == nullptr ? nullptr : bias + first_output, source.outputs);
    __syncthreads();
    if (residual != nullptr) residual += first_row * shape.residual_stride + first_output;
    write_results(results, residual, out + (long long)first_row * shape.outputs + first_output, source, shape);
}
