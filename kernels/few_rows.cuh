// How linear_few_rows brings weights and rows of x to the matrix units: rings of copies, codes as elements, a row's norm.
//
// Put between products.cuh and the source.

enum Norm { NO_NORM, RMS_NORM, LAYER_NORM };
enum After { STORE, ACTIVATE, GATE, ROTATE };

constexpr bool CODES = sizeof(WEIGHT) == 1;
static_assert(!ORDERED || !CODES, "linear_wgmma takes no codes");
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
// A lane's share of 32 inputs of a row at `row`: 4 of the first 16, which are `first` bytes behind it, and 4 of the last.
__device__ __forceinline__ uint4 read_shared_halves(unsigned int row, int first) {
    uint4 raw;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(raw.x), "=r"(raw.y) : "r"(row + first));
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(raw.z), "=r"(raw.w) : "r"(row + (first ^ 32)));
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

// Where a lane's 16 bytes of 8 rows are; if halves of them are read, those of two rows in four change places, to spread over the banks.
__device__ __forceinline__ int place_of_lane() {
    return (threadIdx.x % WARP ^ (ORDERED ? threadIdx.x % WARP / 8 % 2 * 2 : 0)) * 16;
}
// Where a lane's group of x is in a slot; two groups of a row change places in every other row.
__device__ __forceinline__ int x_at(int tile, int group) {
    if (ORDERED) return tile * 512 + place_of_lane();
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

// The chunks of a warp: its first one's first input, and how many it has, `STEP` inputs apart.
struct Chunks {
    int first, count;
    __device__ __forceinline__ Chunks(int inputs) {
        int warp = threadIdx.x / WARP;
        if constexpr (ORDERED) {
            int all = (inputs + 2 * CHUNK - 1) / (2 * CHUNK), begin = warp / 2 * all / 4; // pairs of chunks
            first = begin * 2 * CHUNK + warp % 2 * CHUNK, count = (warp / 2 + 1) * all / 4 - begin;
        } else {
            first = warp * CHUNK, count = ((inputs + CHUNK - 1) / CHUNK - warp + WARPS - 1) / WARPS;
        }
    }
};
constexpr int STEP = (ORDERED ? 2 : WARPS) * CHUNK;
// What a normalised row is filled up to with zeros: chunks, of both warps of a quarter.
constexpr int WHOLE = (ORDERED ? 2 : 1) * CHUNK;

// A lane's place in them: its first input, and how many chunks of the tile come after this one.
struct Place {
    int k, later;
    __device__ __forceinline__ void start(const Chunks& chunks) {
        k = chunks.first + threadIdx.x % 4 * LANE_INPUTS;
        later = chunks.count - 1;
    }
};

// The ring of a warp in shared memory.
struct Slots {
    unsigned int begin, end, bytes;
    __device__ __forceinline__ unsigned int next(unsigned int slot) const { return slot + bytes == end ? begin : slot + bytes; }
};

// The weights that a lane copies for its warp, chunk after chunk and tile after tile.
struct Weights {
    const WEIGHT* from[PASSES][2];
    Place place;
    Chunks chunks;
    int tile, tiles;

    __device__ __forceinline__ Weights(const WEIGHT* weight, const Shape& shape) : chunks(shape.inputs) {
        tiles = (shape.pairs + PAIRS - 1) / PAIRS;
        tile = chunks.count > 0 ? blockIdx.x : tiles;
        start_tile(weight, shape);
    }
    // Outputs that do not exist have the weights of others; nobody takes their sums.
    __device__ __forceinline__ void start_tile(const WEIGHT* weight, const Shape& shape) {
        place.start(chunks);
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            int output = first_output(tile * PAIRS + pass * 8 + threadIdx.x % WARP / 4, shape.half);
#pragma unroll
            for (int second = 0; second < 2; second++) {
                int at = min(output + second * shape.half, shape.outputs - 1);
                from[pass][second] = weight + at * shape.weight_stride + place.k;
            }
        }
    }
    __device__ __forceinline__ bool has_more() const { return tile < tiles; }
    __device__ __forceinline__ void copy(unsigned int slot, const WEIGHT* weight, const Shape& shape) {
        bool inside = place.k < shape.inputs;
#pragma unroll
        for (int i = 0; i < 2 * PASSES; i++) {
            copy_16_bytes(slot + i * WARP * 16, from[i / 2][i % 2], inside);
            from[i / 2][i % 2] += STEP;
        }
        place.k += STEP;
        if (place.later-- == 0) {
            tile += gridDim.x;
            start_tile(weight, shape);
        }
    }
};

// The rows of x that a lane copies for its warp, likewise; every tile takes the same.
struct Rows {
    const ELEMENT* from[TILES];
    Place place;
    int taken; // of TILES

    __device__ __forceinline__ void start(const ELEMENT* x, const Chunks& chunks, const Shape& shape) {
        place.start(chunks);
        taken = 0;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            int row = t * 8 + threadIdx.x % WARP / 4;
            if (row < shape.rows) taken = t + 1;
            from[t] = x + row * shape.x_stride + place.k;
        }
    }
    __device__ __forceinline__ void copy(unsigned int slot, const ELEMENT* x, const Chunks& chunks, const Shape& shape) {
        bool inside = place.k < shape.inputs;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            if (t < taken) {
#pragma unroll
                for (int g = 0; g < X_GROUPS; g++) copy_16_bytes(slot + x_at(t, g), from[t] + g * 8, inside);
            }
            from[t] += STEP;
        }
        place.k += STEP;
        if (place.later-- == 0) start(x, chunks, shape);
    }
};

// A single row that is normalised: the groups of 8 inputs that a thread takes, and the norm's vectors, which are there before
// the row is. Longer rows are read when they are needed.
struct Normalisation {
    static constexpr int HELD = 2;
    float factor[HELD][8], shift[HELD][8];

    __device__ __forceinline__ void read_vectors(float (&factor)[8], float (&shift)[8], int group, const Operands& operands) const {
        load_constants<8>(operands.norm_weight + group * 8, factor);
        if (NORM == LAYER_NORM) load_constants<8>(operands.norm_bias + group * 8, shift);
    }
    __device__ __forceinline__ void begin(const Operands& operands, const Shape& shape) {
#pragma unroll
        for (int h = 0; h < HELD; h++) {
            int g = threadIdx.x + h * THREADS;
            if (g < shape.inputs / 8) read_vectors(factor[h], shift[h], g, operands);
        }
    }

    // The sum of the row, or of the squares of its distances to `mean`; `sums` is used once.
    template <bool SQUARES>
    __device__ __forceinline__ float sum(const uint4 (&held)[HELD], const uint4* row, int groups, float mean, float* sums) const {
        float sum = 0.0f;
        auto add = [&](uint4 group) {
            float value[8];
            widen_16_bytes(group, ELEMENT{}, value);
#pragma unroll
            for (int v = 0; v < 8; v++) sum = SQUARES ? fmaf(value[v] - mean, value[v] - mean, sum) : sum + value[v];
        };
#pragma unroll
        for (int h = 0; h < HELD; h++) {
            if (threadIdx.x + h * THREADS < groups) add(held[h]);
        }
#pragma unroll 1
        for (int g = threadIdx.x + HELD * THREADS; g < groups; g += THREADS) add(row[g]);
        return sum_of_8_warps(sum, sums);
    }

    // Normalises the row into `kept`, whose end is filled up with zeros to whole chunks, in the same operations and the same
    // order as rms_norm.cu and layer_norm.cu. `sums` holds two numbers of each warp.
    __device__ __forceinline__ void keep(uint4* kept, float* sums, const Operands& operands, const Shape& shape) {
        static_assert(WARPS == 8, "as sum_of_8_warps has them");
        const uint4* row = reinterpret_cast<const uint4*>(operands.x);
        int groups = shape.inputs / 8;
        uint4 held[HELD];
#pragma unroll
        for (int h = 0; h < HELD; h++) {
            if (threadIdx.x + h * THREADS < groups) held[h] = row[threadIdx.x + h * THREADS];
        }
        float mean = NORM == LAYER_NORM ? sum<false>(held, row, groups, 0.0f, sums) / shape.inputs : 0.0f;
        float variance = sum<true>(held, row, groups, mean, sums + WARPS) / shape.inputs;
        float scale = 1.0f / sqrtf(variance + shape.eps);
        auto normalise = [&](int g, uint4 raw, const float (&factor)[8], const float (&shift)[8]) {
            float value[8];
            widen_16_bytes(raw, ELEMENT{}, value);
#pragma unroll
            for (int v = 0; v < 8; v++) {
                value[v] = NORM == LAYER_NORM ? fmaf((value[v] - mean) * scale, factor[v], shift[v])
                                              : value[v] * scale * factor[v];
            }
            store<8>(reinterpret_cast<ELEMENT*>(kept + g), value);
        };
#pragma unroll
        for (int h = 0; h < HELD; h++) {
            int g = threadIdx.x + h * THREADS;
            if (g < groups) normalise(g, held[h], factor[h], shift[h]);
        }
#pragma unroll 1
        for (int g = threadIdx.x + HELD * THREADS; g < groups; g += THREADS) {
            read_vectors(factor[0], shift[0], g, operands);
            normalise(g, row[g], factor[0], shift[0]);
        }
        int end = (shape.inputs + WHOLE - 1) / WHOLE * (WHOLE / 8);
        if (groups + threadIdx.x < end) kept[groups + threadIdx.x] = make_uint4(0, 0, 0, 0);
        __syncthreads();
    }
};
