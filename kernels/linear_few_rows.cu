// linear_few_rows: out = after(norm(x) * weight^T + bias) for a few rows of x, through the matrix units; 16-bit elements,
// weights also as codes of 8 bits with a scale for each output.
//
// Variants: ELEMENT=f16|bf16 NORM:AFTER:KIND:TILES:PASSES:STAGES:WEIGHT=NO_NORM:STORE:RELU:1:1:6:ELEMENT|NO_NORM:STORE:RELU:2:2:5:ELEMENT|NO_NORM:STORE:RELU:4:1:5:ELEMENT|NO_NORM:GATE:SILU:4:2:4:ELEMENT|RMS_NORM:GATE:SILU:1:1:6:ELEMENT|LAYER_NORM:ACTIVATE:RELU:1:1:6:ELEMENT|RMS_NORM:ROTATE:SILU:1:2:6:ELEMENT|NO_NORM:GATE:GELU_TANH:2:1:6:ELEMENT|NO_NORM:ROTATE:SILU:2:2:5:ELEMENT|NO_NORM:STORE:RELU:1:2:6:e4m3|RMS_NORM:GATE:SILU:1:2:6:e4m3|LAYER_NORM:ACTIVATE:RELU:1:1:6:e4m3|NO_NORM:GATE:SILU:4:2:4:e4m3|RMS_NORM:ROTATE:SILU:2:2:5:e4m3 CACHE=ELEMENT|e4m3
// Needs: products.cuh
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
// a row's result is the same to the last bit whatever M is.
//
// Memory: each weight is read once, through a ring of STAGES chunks per warp in shared memory; a lane copies what it will
// read itself, so the ring needs no barrier. Reading begins before the kernel before this one has ended: weights are
// nothing that it writes. A normalised row is kept in shared memory; others come through the ring. At least N K bytes per
// element of the weights, and of a few rows, have to be moved: half as many with codes.
//
// Codes (e4m3) are widened in registers by moving their bits to where a 16-bit element has sign, exponent and fraction:
// the numbers are those of the codes, below one too, times a power of two, without conversions or multiplications. With
// bf16 that is 2^-120, of which x takes back 2^64, so that neither products nor sums leave the range of f32; the scale of
// the output takes the rest. Codes of "not a number" would count as 480: weights that have any are not held as codes.

enum Norm { NO_NORM, RMS_NORM, LAYER_NORM };
enum After { STORE, ACTIVATE, GATE, ROTATE };

constexpr bool CODES = sizeof(WEIGHT) == 1;
constexpr int WARPS = 8, THREADS = WARPS * WARP;
// 16-byte groups of x that a lane takes of a chunk, and the inputs of a chunk: a lane takes a quarter of them.
constexpr int X_GROUPS = CODES ? 2 : 1, CHUNK = 32 * X_GROUPS, LANE_INPUTS = CHUNK / 4;
constexpr int ROWS = 8 * TILES, PAIRS = 8 * PASSES, OUTPUTS = 2 * PAIRS;
constexpr bool PAIRED = AFTER == GATE || AFTER == ROTATE;
// Chunks that a warp reads before it multiplies them: reading takes as long as multiplying.
constexpr int AT_ONCE = !CODES && TILES * PASSES <= 2 ? 2 : 1;
// Columns of a block's results, and how many of them a thread finishes.
constexpr int COLUMNS = PAIRED ? PAIRS : OUTPUTS;
constexpr int RESULTS = (ROWS * COLUMNS + THREADS - 1) / THREADS;
// Rows of partial sums are apart by what spreads them over the banks.
constexpr int PARTIAL_STRIDE = OUTPUTS + 4;
constexpr int PARTIAL_FLOATS = WARPS * ROWS * PARTIAL_STRIDE;
constexpr int WEIGHT_BYTES = PASSES * 2 * WARP * 16;
constexpr int NORM_VECTORS = NORM == LAYER_NORM ? 2 : NORM == RMS_NORM ? 1 : 0;
// Codes as elements: how far exponent and fraction move to the right, what an element has of them, and what the sums have
// to be multiplied by: with f16 2^8, with bf16 2^(120 - 64).
constexpr bool IS_HALF = IS_F16<ELEMENT>;
constexpr int CODE_SHIFT = IS_HALF ? 1 : 4;
constexpr unsigned int CODE_SIGNS = 0x80008000u, CODE_MAGNITUDES = 0x7f007f00u >> CODE_SHIFT;
constexpr float CODE_FACTOR = IS_HALF ? 256.0f : 72057594037927936.0f;

struct Shape {
    int rows, outputs, inputs; // M, N, K
    int half, pairs;           // distance of a pair's outputs, and number of pairs
    long long x_stride, weight_stride, residual_stride;
    float eps;
    // Of ROTATE: strides in elements; rotary_dim is 0 or 2 * half.
    int num_heads, num_kv_heads, rotary_dim;
    long long slot_stride, head_stride;
};

struct Operands {
    const ELEMENT *x, *residual;                  // residual may be null
    const WEIGHT* weight;
    const float* scales;                          // of the outputs, where weights are codes
    const float *norm_weight, *norm_bias, *bias;  // may be null
    const float* table;                           // of ROTATE, like the rest
    const int *positions, *slots;
    CACHE *keys, *values;
    ELEMENT* out;
};

__device__ __forceinline__ void copy_16_bytes(unsigned int to, const void* from, bool present) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(present ? 16 : 0));
}
__device__ __forceinline__ uint4 read_shared(unsigned int from) {
    uint4 raw;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w) : "r"(from));
    return raw;
}

__device__ __forceinline__ float rounded(float value) {
    ELEMENT narrowed;
    narrow(value, narrowed);
    return widen(narrowed);
}

// The first output of a pair; the other is `half` further on.
__device__ __forceinline__ int first_output(int pair, int half) {
    if (!PAIRED) half = 8;
    return pair / half * 2 * half + pair % half;
}

// Where a lane's group of x is in a slot; two groups of a row change places in every other row, to spread over the banks.
__device__ __forceinline__ int x_at(int tile, int group) {
    int lane = threadIdx.x % WARP, row = tile * 8 + lane / 4;
    return ((row * X_GROUPS + (CODES ? group ^ (row & 1) : 0)) * 4 + lane % 4) * 16;
}

// Codes 0 and 2, and codes 1 and 3, of four as elements.
__device__ __forceinline__ unsigned int even_codes(unsigned int codes) {
    return ((codes << 8) & CODE_SIGNS) | ((codes << (8 - CODE_SHIFT)) & CODE_MAGNITUDES);
}
__device__ __forceinline__ unsigned int odd_codes(unsigned int codes) {
    return (codes & CODE_SIGNS) | ((codes >> CODE_SHIFT) & CODE_MAGNITUDES);
}
// A pair of x for a pair of codes.
__device__ __forceinline__ unsigned int for_codes(unsigned int pair) {
    if constexpr (!IS_HALF) {
        // Times 2^64, plus -0.
        asm("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(pair) : "r"(0x5f805f80u), "r"(0x80008000u));
    }
    return pair;
}

// What a lane copies for its warp, chunk after chunk and tile after tile.
struct Stream {
    const WEIGHT* row[PASSES][2];
    bool present[PASSES][2];
    int tile, chunk, tiles, chunks;
    unsigned int slot, ring, slot_bytes;

    __device__ __forceinline__ void start(unsigned int memory, int bytes, const WEIGHT* weight, const Shape& shape) {
        int warp = threadIdx.x / WARP;
        tiles = (shape.pairs + PAIRS - 1) / PAIRS;
        chunks = (shape.inputs + CHUNK - 1) / CHUNK;
        chunk = warp;
        tile = warp < chunks ? blockIdx.x : tiles;
        slot_bytes = bytes;
        ring = slot = memory + warp * STAGES * bytes;
        start_tile(weight, shape);
    }

    __device__ __forceinline__ unsigned int next(unsigned int slot) const {
        return slot + slot_bytes == ring + STAGES * slot_bytes ? ring : slot + slot_bytes;
    }

    __device__ __forceinline__ void start_tile(const WEIGHT* weight, const Shape& shape) {
        int group = threadIdx.x % WARP / 4;
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            int pair = tile * PAIRS + pass * 8 + group;
            int output = first_output(pair, shape.half);
#pragma unroll
            for (int second = 0; second < 2; second++) {
                int at = output + second * shape.half;
                present[pass][second] = tile < tiles && pair < shape.pairs && at < shape.outputs;
                row[pass][second] = weight + (present[pass][second] ? at * shape.weight_stride : 0);
            }
        }
    }

    // Copies of the weights of the chunk under way into its slot.
    __device__ __forceinline__ void copy_weights(const Shape& shape) const {
        int lane = threadIdx.x % WARP;
        int k = chunk * CHUNK + lane % 4 * LANE_INPUTS;
        bool inside = k < shape.inputs;
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
#pragma unroll
            for (int second = 0; second < 2; second++) {
                bool copied = inside && present[pass][second];
                copy_16_bytes(slot + ((pass * 2 + second) * WARP + lane) * 16, row[pass][second] + (copied ? k : 0), copied);
            }
        }
    }

    __device__ __forceinline__ void copy_x(const ELEMENT* x, const Shape& shape) const {
        int lane = threadIdx.x % WARP;
        int k = chunk * CHUNK + lane % 4 * LANE_INPUTS;
        bool inside = k < shape.inputs && tile < tiles;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            int index = t * 8 + lane / 4;
            if (index >= shape.rows) break;
            const ELEMENT* from = x + index * shape.x_stride + (inside ? k : 0);
#pragma unroll
            for (int g = 0; g < X_GROUPS; g++) copy_16_bytes(slot + WEIGHT_BYTES + x_at(t, g), from + g * 8, inside);
        }
    }

    __device__ __forceinline__ void advance(const WEIGHT* weight, const Shape& shape) {
        slot = next(slot);
        chunk += WARPS;
        if (chunk >= chunks) {
            chunk = threadIdx.x / WARP;
            tile += gridDim.x;
            start_tile(weight, shape);
        }
    }
};

template <bool SQUARES> __device__ __forceinline__ float sum_of_row(const uint4* row, int groups, float mean) {
    float sum = 0.0f;
#pragma unroll 1
    for (int g = threadIdx.x; g < groups; g += THREADS) {
        float value[8];
        widen_16_bytes(row[g], ELEMENT{}, value);
#pragma unroll
        for (int v = 0; v < 8; v++) sum = SQUARES ? fmaf(value[v] - mean, value[v] - mean, sum) : sum + value[v];
    }
    return sum_of_block(sum);
}

// Normalises a row into `kept`, whose end is filled up with zeros to whole chunks, in the same operations and the same
// order as rms_norm.cu and layer_norm.cu. `vectors` holds the norm's weight, then its bias.
__device__ __forceinline__ void keep_normalised(const ELEMENT* x, uint4* kept, const float* vectors, const Shape& shape) {
    int groups = shape.inputs / 8;
    // What a thread copies it alone reads, until the last barrier.
#pragma unroll 1
    for (int g = threadIdx.x; g < groups; g += THREADS) kept[g] = reinterpret_cast<const uint4*>(x)[g];
    float mean = NORM == LAYER_NORM ? sum_of_row<false>(kept, groups, 0.0f) / shape.inputs : 0.0f;
    float variance = sum_of_row<true>(kept, groups, mean) / shape.inputs;
    float scale = 1.0f / sqrtf(variance + shape.eps);
    wait_for_copies<STAGES>(); // the vectors were the first
#pragma unroll 1
    for (int g = threadIdx.x; g < (shape.inputs + CHUNK - 1) / CHUNK * (CHUNK / 8); g += THREADS) {
        float value[8] = {}, factor[8], shift[8];
        if (g < groups) {
            widen_16_bytes(kept[g], ELEMENT{}, value);
            load_floats<8>(vectors + g * 8, factor);
            if (NORM == LAYER_NORM) load_floats<8>(vectors + shape.inputs + g * 8, shift);
#pragma unroll
            for (int v = 0; v < 8; v++) {
                value[v] = NORM == LAYER_NORM ? fmaf((value[v] - mean) * scale, factor[v], shift[v])
                                              : value[v] * scale * factor[v];
            }
        }
        store<8>(reinterpret_cast<ELEMENT*>(kept + g), value);
    }
    __syncthreads();
}

// One result of a block's tile: what it needs besides the sums, read before they are ready. What no kernel of a step writes is
// read before the kernel before this one has ended.
struct Result {
    int row, column, output, pair;
    bool present;
    float bias[2], scale[2];
    ELEMENT residual;
    float cosine, sine;
    int slot, position;

    __device__ __forceinline__ void prepare(int index, int tile, const Operands& operands, const Shape& shape) {
        row = index / COLUMNS;
        int local = index % COLUMNS;
        int in_tile = PAIRED ? local : local / 16 * 8 + local % 8;
        int second = PAIRED ? 0 : local / 8 % 2;
        column = in_tile / 8 * 16 + second * 8 + in_tile % 8;
        pair = tile * PAIRS + in_tile;
        output = first_output(pair, shape.half) + second * shape.half;
        present = row < shape.rows && pair < shape.pairs && output < shape.outputs;
        if (!present) return;
        bias[0] = operands.bias == nullptr ? 0.0f : operands.bias[output];
        if constexpr (PAIRED) bias[1] = operands.bias == nullptr ? 0.0f : operands.bias[output + shape.half];
        if constexpr (CODES) {
            scale[0] = operands.scales[output] * CODE_FACTOR;
            if constexpr (PAIRED) scale[1] = operands.scales[output + shape.half] * CODE_FACTOR;
        }
        if constexpr (AFTER == ROTATE) {
            slot = operands.slots[row];
            if (shape.rotary_dim != 0) position = operands.positions[row];
        }
    }

    // It is not widened here, where that would wait for it.
    __device__ __forceinline__ void prepare_residual(const Operands& operands, const Shape& shape) {
        if (AFTER != STORE || !present || operands.residual == nullptr) return;
        residual = operands.residual[row * shape.residual_stride + output];
    }

    __device__ __forceinline__ void prepare_rotation(const Operands& operands, const Shape& shape) {
        bool is_value = pair / shape.half >= shape.num_heads + shape.num_kv_heads;
        if (AFTER != ROTATE || shape.rotary_dim == 0 || !present || is_value) return;
        const float* angle = operands.table + (long long)position * shape.rotary_dim + pair % shape.half;
        cosine = angle[0];
        sine = angle[shape.half];
    }

    // The first or the second sum of a pair.
    __device__ __forceinline__ float sum(const float* partial, int second) const {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) total += partial[(w * ROWS + row) * PARTIAL_STRIDE + column + 8 * second];
        return CODES ? fmaf(total, scale[second], bias[second]) : total + bias[second];
    }

    __device__ __forceinline__ void finish(const float* partial, const Operands& operands, const Shape& shape) const {
        if (!present) return;
        float value = sum(partial, 0);
        if constexpr (AFTER == STORE) {
            if (operands.residual != nullptr) value = rounded(value) + widen(residual);
            narrow(value, operands.out[(long long)row * shape.outputs + output]);
        } else if constexpr (AFTER == ACTIVATE) {
            narrow(activate<KIND>(rounded(value)), operands.out[(long long)row * shape.outputs + output]);
        } else {
            float other = sum(partial, 1);
            if constexpr (AFTER == GATE) {
                narrow(activate<KIND>(rounded(value)) * rounded(other), operands.out[(long long)row * shape.half + output]);
            } else {
                rotate_and_store(rounded(value), rounded(other), operands, shape);
            }
        }
    }

    __device__ __forceinline__ void rotate_and_store(float a, float b, const Operands& operands, const Shape& shape) const {
        int head = pair / shape.half, at = pair % shape.half;
        if (shape.rotary_dim != 0 && head < shape.num_heads + shape.num_kv_heads) rotate_pair(a, b, cosine, sine);
        ELEMENT* to = operands.out + (long long)row * shape.outputs + output;
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

// Starts copies of the norm's weight, and of its bias after it.
__device__ __forceinline__ void copy_vectors(float* vectors, const Operands& operands, const Shape& shape) {
    unsigned int to = (unsigned int)__cvta_generic_to_shared(vectors);
#pragma unroll 1
    for (int i = threadIdx.x * 8; i < shape.inputs; i += THREADS * 8) {
#pragma unroll
        for (int v = 0; v < 8; v += 4) {
            copy_16_bytes(to + (i + v) * 4, operands.norm_weight + i + v, true);
            if (NORM == LAYER_NORM) copy_16_bytes(to + (shape.inputs + i + v) * 4, operands.norm_bias + i + v, true);
        }
    }
    commit_copies();
}

// What a lane multiplies of one chunk: 8 inputs of its outputs' weights and of its rows of x.
struct Chunk {
    uint4 weight[PASSES][2], x[TILES][X_GROUPS];

    // `kept` is the chunk of the normalised row.
    __device__ __forceinline__ void read(unsigned int slot, unsigned int kept, int rows) {
        int lane = threadIdx.x % WARP;
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            weight[pass][0] = read_shared(slot + (pass * 2 * WARP + lane) * 16);
            weight[pass][1] = read_shared(slot + ((pass * 2 + 1) * WARP + lane) * 16);
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int g = 0; g < X_GROUPS; g++) {
                x[t][g] = make_uint4(0, 0, 0, 0);
                if (t * 8 + lane / 4 >= rows) continue;
                unsigned int of_kept = kept + (lane % 4 * X_GROUPS + g) * 16;
                x[t][g] = read_shared(NORM == NO_NORM ? slot + WEIGHT_BYTES + x_at(t, g) : of_kept);
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

// Shared memory: the ring of every warp, partial sums, then what a norm needs: its vectors and the normalised row.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    linear_few_rows(const ELEMENT* x, const WEIGHT* weight, const float* scales, const ELEMENT* residual,
                    const float* norm_weight, const float* norm_bias, const float* bias, const float* table,
                    const int* positions, const int* slots, CACHE* keys, CACHE* values, ELEMENT* out,
                    const __grid_constant__ Shape shape) {
    extern __shared__ __align__(16) char memory[];
    start_next_kernel();
    Operands operands = {x,    residual,  weight, scales, norm_weight, norm_bias, bias, table,
                         positions, slots, keys,   values, out};
    int slot_bytes = WEIGHT_BYTES + (NORM == NO_NORM ? shape.rows * CHUNK * 2 : 0);
    float* partial_sums = reinterpret_cast<float*>(memory + WARPS * STAGES * slot_bytes);
    float* vectors = partial_sums + 2 * PARTIAL_FLOATS;
    uint4* kept = reinterpret_cast<uint4*>(vectors + NORM_VECTORS * shape.inputs);

    // Weights and vectors of the norm are on their way before the results of the kernel before this one are there.
    Stream stream;
    stream.start((unsigned int)__cvta_generic_to_shared(memory), slot_bytes, weight, shape);
    if constexpr (NORM != NO_NORM) copy_vectors(vectors, operands, shape);
    Stream beginning = stream;
#pragma unroll 1
    for (int s = 0; s < STAGES; s++) {
        stream.copy_weights(shape);
        commit_copies();
        stream.advance(weight, shape);
    }
    Result results[RESULTS];
#pragma unroll
    for (int i = 0; i < RESULTS; i++) results[i].prepare(i * THREADS + threadIdx.x, blockIdx.x, operands, shape);
    wait_for_previous_kernel();
    if constexpr (NORM == NO_NORM) {
#pragma unroll 1
        for (int s = 0; s < STAGES; s++) {
            beginning.copy_x(x, shape);
            commit_copies();
            beginning.advance(weight, shape);
        }
    } else {
        keep_normalised(x, kept, vectors, shape);
    }

    unsigned int slot = stream.ring, kept_at = (unsigned int)__cvta_generic_to_shared(kept);
    int buffer = 0;
    for (int tile = blockIdx.x; tile < stream.tiles; tile += gridDim.x) {
#pragma unroll
        for (int i = 0; i < RESULTS; i++) {
            if (tile != blockIdx.x) results[i].prepare(i * THREADS + threadIdx.x, tile, operands, shape);
            results[i].prepare_residual(operands, shape);
            results[i].prepare_rotation(operands, shape);
        }
        float sum[PASSES][TILES][4] = {};
        for (int index = threadIdx.x / WARP; index < stream.chunks; index += WARPS * AT_ONCE) {
            wait_for_copies<STAGES - AT_ONCE>();
            int present = min(AT_ONCE, (stream.chunks - index + WARPS - 1) / WARPS);
            Chunk chunk[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (i < present) chunk[i].read(slot, kept_at + (index + i * WARPS) * CHUNK * 2, shape.rows), slot = stream.next(slot);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (i < present) chunk[i].add_products(sum);
            }
            // Into the slots that these were read from.
#pragma unroll 1
            for (int i = 0; i < present; i++) {
                stream.copy_weights(shape);
                if constexpr (NORM == NO_NORM) stream.copy_x(x, shape);
                commit_copies();
                stream.advance(weight, shape);
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
