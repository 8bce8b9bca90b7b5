// linear_few_rows: out = after(norm(x) * weight^T + bias) for a few rows of x, through the matrix units; 16-bit elements,
// weights also as codes of 8 bits with a scale for each output.
//
// Variants: ELEMENT=f16|bf16 NORM:AFTER:KIND:TILES:PASSES:STAGES:WEIGHT:ORDERED=NO_NORM:STORE:RELU:1:1:6:ELEMENT:0|NO_NORM:STORE:RELU:2:2:5:ELEMENT:0|NO_NORM:STORE:RELU:4:1:5:ELEMENT:0|NO_NORM:GATE:SILU:4:2:4:ELEMENT:0|RMS_NORM:GATE:SILU:1:3:4:ELEMENT:0|NO_NORM:STORE:RELU:1:1:8:ELEMENT:0|LAYER_NORM:ACTIVATE:RELU:1:1:6:ELEMENT:0|RMS_NORM:ROTATE:SILU:1:2:6:ELEMENT:0|NO_NORM:GATE:GELU_TANH:2:1:6:ELEMENT:0|NO_NORM:ROTATE:SILU:2:2:5:ELEMENT:0|NO_NORM:STORE:RELU:1:2:6:e4m3:0|RMS_NORM:GATE:SILU:1:2:6:e4m3:0|LAYER_NORM:ACTIVATE:RELU:1:1:6:e4m3:0|NO_NORM:GATE:SILU:4:2:4:e4m3:0|RMS_NORM:ROTATE:SILU:2:2:5:e4m3:0|NO_NORM:STORE:RELU:1:1:6:ELEMENT:1|NO_NORM:GATE:SILU:2:2:5:ELEMENT:1|RMS_NORM:GATE:SILU:1:3:4:ELEMENT:1|RMS_NORM:ROTATE:SILU:1:2:6:ELEMENT:1 CACHE=ELEMENT|e4m3
// Needs: products.cuh few_rows.cuh
// Targets: sm_80 sm_86 sm_89 sm_90a
//
// `x` is [M, K], `weight` [N, K], both with rows apart by a stride. What comes before and after the product is done on the
// way, each result rounded where the separate operations round it:
//   NORM   rms_norm or layer_norm of x, for a single row: every block computes it for itself, which for more rows takes
//          longer than a kernel of its own;
//   AFTER  STORE: the sum, plus a residual if there is one; ACTIVATE: kind(sum); GATE: kind(gate) * up, where the first
//          half of the outputs are gates; ROTATE: rotates queries and keys, and stores keys and values in the KV cache.
//
// A block of 8 warps takes PAIRS pairs of outputs at a time, those of a pair `half` apart, so that a gate is beside its
// value and an element of a head beside the one that it is rotated with. Its warps take turns at chunks of 32 inputs (64
// where weights are codes) and are summed at the end, in order. A tile is mma.m16n8k16 with 16 outputs as m and 8 rows of x
// as n. A lane takes 16 bytes of a weight row and as many numbers of a row of x: 8 inputs feed two multiplications, in the
// same order on both sides, which is all that a sum over inputs needs. The order of every sum depends on K alone, so that
// a row's result is the same to the last bit whatever M is. ORDERED gives it the bits that linear_wgmma gives among many
// rows: a multiplication takes 16 neighbouring inputs, whose order within does not matter, so that lanes read what others
// have copied; two warps take a quarter of the inputs, and their sums are added up in pairs.
//
// Memory: each weight is read once, through a ring of STAGES chunks per warp in shared memory; a lane copies what it will
// read itself, so the ring needs no barrier. Reading begins before the kernel before this one has ended: weights are
// nothing that it writes. A normalised row is kept in shared memory; others come through the ring. At least N K bytes per
// element of the weights, and of a few rows, have to be moved: half as many with codes.
//
// With small weights the time goes into instructions between the end of the kernel before and the last store, so that
// addresses are found before that end, and move on by additions.
//
// Codes (e4m3) are widened in registers by moving their bits to where a 16-bit element has sign, exponent and fraction:
// the numbers are those of the codes, below one too, times a power of two, without conversions or multiplications. With
// bf16 that is 2^-120, of which x takes back 2^64, so that neither products nor sums leave the range of f32; the scale of
// the output takes the rest. Codes of "not a number" would count as 480: weights that have any are not held as codes.

// One result of a block's tile: what it needs besides the sums. What no kernel of a step writes is read before the kernel
// before this one has ended.
struct Result {
    int pair, from; // `from`: its place among the sums of a warp
    bool present;
    ELEMENT* to;
    const ELEMENT* residual_from; // may be null
    float bias[2], scale[2];
    ELEMENT residual;
    float cosine, sine;
    int slot;

    __device__ __forceinline__ void prepare(int index, int tile, const Operands& operands, const Shape& shape) {
        int row = index / COLUMNS, local = index % COLUMNS;
        int in_tile = PAIRED ? local : local / 16 * 8 + local % 8;
        int second = PAIRED ? 0 : local / 8 % 2;
        from = row * PARTIAL_STRIDE + in_tile / 8 * 16 + second * 8 + in_tile % 8;
        pair = tile * PAIRS + in_tile;
        int output = first_output(pair, shape.half) + second * shape.half;
        present = row < shape.rows && pair < shape.pairs && output < shape.outputs;
        if (!present) return;
        to = operands.out + (long long)row * (AFTER == GATE ? shape.half : shape.outputs) + output;
        residual_from = AFTER == STORE && operands.residual != nullptr ? operands.residual + row * shape.residual_stride + output
                                                                       : nullptr;
        bias[0] = operands.bias == nullptr ? 0.0f : operands.bias[output];
        if constexpr (PAIRED) bias[1] = operands.bias == nullptr ? 0.0f : operands.bias[output + shape.half];
        if constexpr (CODES) {
            scale[0] = operands.scales[output] * CODE_FACTOR;
            if constexpr (PAIRED) scale[1] = operands.scales[output + shape.half] * CODE_FACTOR;
        }
        if constexpr (AFTER == ROTATE) {
            slot = operands.slots[row];
            bool is_value = pair / shape.half >= shape.num_heads + shape.num_kv_heads;
            if (shape.rotary_dim == 0 || is_value) return;
            const float* angle = operands.table + (long long)operands.positions[row] * shape.rotary_dim + pair % shape.half;
            cosine = angle[0];
            sine = angle[shape.half];
        }
    }

    // It is not widened here, where that would wait for it.
    __device__ __forceinline__ void prepare_residual() {
        if (AFTER == STORE && present && residual_from != nullptr) residual = *residual_from;
    }

    // The first or the second sum of a pair.
    __device__ __forceinline__ float sum(const float* partial, int second) const {
        float total = 0.0f;
        auto of_warp = [&](int w) { return partial[w * ROWS * PARTIAL_STRIDE + from + 8 * second]; };
#pragma unroll
        for (int w = 0; w < WARPS; w += 1 + ORDERED) total += ORDERED ? of_warp(w) + of_warp(w + 1) : of_warp(w);
        return CODES ? fmaf(total, scale[second], bias[second]) : total + bias[second];
    }

    __device__ __forceinline__ void finish(const float* partial, const Operands& operands, const Shape& shape) const {
        if (!present) return;
        float value = sum(partial, 0);
        if constexpr (AFTER == STORE) {
            if (residual_from != nullptr) value = rounded(value) + widen(residual);
            narrow(value, *to);
        } else if constexpr (AFTER == ACTIVATE) {
            narrow(activate<KIND>(rounded(value)), *to);
        } else {
            float other = sum(partial, 1);
            if constexpr (AFTER == GATE) {
                narrow(activate<KIND>(rounded(value)) * rounded(other), *to);
            } else {
                rotate_and_store(rounded(value), rounded(other), operands, shape);
            }
        }
    }

    __device__ __forceinline__ void rotate_and_store(float a, float b, const Operands& operands, const Shape& shape) const {
        int head = pair / shape.half, at = pair % shape.half;
        if (shape.rotary_dim != 0 && head < shape.num_heads + shape.num_kv_heads) rotate_pair(a, b, cosine, sine);
        narrow(a, to[0]);
        narrow(b, to[shape.half]);
        int kv_head = head - shape.num_heads;
        // A negative slot marks a token whose keys and values are not kept: padding of a batch.
        if (kv_head < 0 || slot < 0) return;
        bool is_value = kv_head >= shape.num_kv_heads;
        if (is_value) kv_head -= shape.num_kv_heads;
        CACHE* cache = is_value ? operands.values : operands.keys;
        CACHE* stored = cache + slot * shape.slot_stride + kv_head * shape.head_stride + at;
        narrow(as_kept<ELEMENT, CACHE>(a), stored[0]);
        narrow(as_kept<ELEMENT, CACHE>(b), stored[shape.half]);
    }
};

// What a lane multiplies of one chunk: 8 inputs of its outputs' weights and of its rows of x.
struct Chunk {
    uint4 weight[PASSES][2], x[TILES][X_GROUPS];

    // From a slot, and from where x is: in the slot, or in the chunk of the normalised row.
    __device__ __forceinline__ void read(unsigned int slot, unsigned int inputs, int rows) {
        int lane = threadIdx.x % WARP, first = lane % 4 * 8 ^ lane / 8 % 2 * 32;
#pragma unroll
        for (int i = 0; i < 2 * PASSES; i++) {
            unsigned int at = slot + i * WARP * 16;
            weight[i / 2][i % 2] = ORDERED ? read_shared_halves(at + lane / 4 * 64, first) : read_shared(at + lane * 16);
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            int row = t * 8 + lane / 4;
#pragma unroll
            for (int g = 0; g < X_GROUPS; g++) {
                x[t][g] = make_uint4(0, 0, 0, 0);
                if (row >= rows) continue;
                if constexpr (ORDERED) {
                    x[t][g] = NORM == NO_NORM ? read_shared_halves(inputs + row * 64, first) : read_shared_halves(inputs, lane % 4 * 8);
                } else {
                    x[t][g] = read_shared(inputs + (NORM == NO_NORM ? x_at(t, g) : (lane % 4 * X_GROUPS + g) * 16));
                }
            }
        }
    }

    // Groups of four codes against the same inputs of x, even ones apart from odd ones.
    __device__ __forceinline__ void add_products_of_codes(float (&sum)[PASSES][TILES][4]) const {
        unsigned int even[TILES][4], odd[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int four = 0; four < 4; four++) {
                uint4 of_x = x[t][four / 2];
                unsigned int first = four % 2 ? of_x.z : of_x.x, second = four % 2 ? of_x.w : of_x.y;
                even[t][four] = for_codes(__byte_perm(first, second, 0x5410));
                odd[t][four] = for_codes(__byte_perm(first, second, 0x7632));
            }
        }
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            unsigned int u[4] = {weight[pass][0].x, weight[pass][0].y, weight[pass][0].z, weight[pass][0].w};
            unsigned int w[4] = {weight[pass][1].x, weight[pass][1].y, weight[pass][1].z, weight[pass][1].w};
#pragma unroll
            for (int four = 0; four < 4; four++) {
                unsigned int even_u = even_codes(u[four]), odd_u = odd_codes(u[four]);
                unsigned int even_w = even_codes(w[four]), odd_w = odd_codes(w[four]);
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    multiply(sum[pass][t], even_u, even_w, odd_u, odd_w, even[t][four], odd[t][four]);
                }
            }
        }
    }

    __device__ __forceinline__ void add_products_of_elements(float (&sum)[PASSES][TILES][4]) const {
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                uint4 u = weight[pass][0], w = weight[pass][1], v = x[t][0];
                multiply(sum[pass][t], u.x, w.x, u.y, w.y, v.x, v.y);
                multiply(sum[pass][t], u.z, w.z, u.w, w.w, v.z, v.w);
            }
        }
    }

    __device__ __forceinline__ void add_products(float (&sum)[PASSES][TILES][4]) const {
        if constexpr (CODES) {
            add_products_of_codes(sum);
        } else {
            add_products_of_elements(sum);
        }
    }
};

// A warp's sums, where the threads that add up the warps' find them.
__device__ __forceinline__ void keep_sums(const float (&sum)[PASSES][TILES][4], float* partial) {
    int warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            float* at = partial + (warp * ROWS + t * 8 + quad * 2) * PARTIAL_STRIDE + pass * 16 + group;
            at[0] = sum[pass][t][0];
            at[PARTIAL_STRIDE] = sum[pass][t][1];
            at[8] = sum[pass][t][2];
            at[PARTIAL_STRIDE + 8] = sum[pass][t][3];
        }
    }
}

// Shared memory: the ring of every warp, partial sums, then, for a norm, the sums of its warps and the normalised row.
extern "C" __global__ void __launch_bounds__(THREADS, TILES > 2 ? 1 : 2)
    linear_few_rows(const ELEMENT* x, const WEIGHT* weight, const float* scales, const ELEMENT* residual,
                    const float* norm_weight, const float* norm_bias, const float* bias, const float* table,
                    const int* positions, const int* slots, CACHE* keys, CACHE* values, ELEMENT* out,
                    const __grid_constant__ Shape shape) {
    extern __shared__ __align__(16) char memory[];
    start_next_kernel();
    Operands operands = {x,    residual,  weight, scales, norm_weight, norm_bias, bias, table,
                         positions, slots, keys,   values, out};
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    Slots ring;
    ring.bytes = WEIGHT_BYTES + (NORM == NO_NORM ? shape.rows * CHUNK * 2 : 0);
    ring.begin = shared_address(memory) + warp * STAGES * ring.bytes;
    ring.end = ring.begin + STAGES * ring.bytes;
    float* partial_sums = reinterpret_cast<float*>(memory + WARPS * STAGES * ring.bytes);
    float* norm_sums = partial_sums + 2 * PARTIAL_FLOATS;
    uint4* kept = reinterpret_cast<uint4*>(norm_sums + 2 * WARPS);

    // Weights and vectors of the norm are on their way before the results of the kernel before this one are there.
    Weights weights(weight, shape);
#pragma unroll 1
    for (unsigned int slot = ring.begin; slot != ring.end; slot += ring.bytes) {
        if (weights.has_more()) weights.copy(slot + place_of_lane(), weight, shape);
        commit_copies();
    }
    Normalisation normalisation;
    if constexpr (NORM != NO_NORM) normalisation.begin(operands, shape);
    Rows rows;
    rows.start(x, weights.chunks, shape);
    Result results[RESULTS];
#pragma unroll
    for (int i = 0; i < RESULTS; i++) results[i].prepare(i * THREADS + threadIdx.x, blockIdx.x, operands, shape);
    wait_for_previous_kernel();
    if constexpr (NORM == NO_NORM) {
        unsigned int slot = ring.begin + WEIGHT_BYTES;
#pragma unroll
        for (int s = 0; s < STAGES; s++) {
            rows.copy(slot, x, weights.chunks, shape);
            commit_copies();
            slot += ring.bytes;
        }
    }
#pragma unroll
    for (int i = 0; i < RESULTS; i++) results[i].prepare_residual();
    if constexpr (NORM != NO_NORM) normalisation.keep(kept, norm_sums, operands, shape);

    unsigned int slot = ring.begin, kept_at = shared_address(kept) + weights.chunks.first * 2;
    int buffer = 0;
    for (int tile = blockIdx.x; tile < weights.tiles; tile += gridDim.x) {
        if (tile != blockIdx.x) {
#pragma unroll
            for (int i = 0; i < RESULTS; i++) {
                results[i].prepare(i * THREADS + threadIdx.x, tile, operands, shape);
                results[i].prepare_residual();
            }
        }
        float sum[PASSES][TILES][4] = {};
        unsigned int inputs = kept_at;
        for (int left = weights.chunks.count; left > 0; left -= AT_ONCE) {
            wait_for_copies<STAGES - AT_ONCE>();
            if (ORDERED) __syncwarp(); // other lanes' copies are there
            Chunk chunk[AT_ONCE];
            unsigned int at = slot;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (i < left) {
                    chunk[i].read(at, NORM == NO_NORM ? at + WEIGHT_BYTES : inputs, shape.rows);
                    at = ring.next(at);
                    inputs += STEP * 2;
                }
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (i < left) chunk[i].add_products(sum);
            }
            if (ORDERED) __syncwarp(); // other lanes have read theirs
            // Into the slots that these were read from.
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (i < left) {
                    if (weights.has_more()) {
                        weights.copy(slot + place_of_lane(), weight, shape);
                        if constexpr (NORM == NO_NORM) rows.copy(slot + WEIGHT_BYTES, x, weights.chunks, shape);
                    }
                    commit_copies();
                    slot = ring.next(slot);
                }
            }
        }
        float* partial = partial_sums + buffer * PARTIAL_FLOATS;
        buffer ^= 1;
        keep_sums(sum, partial);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < RESULTS; i++) results[i].finish(partial, operands, shape);
    }
}
