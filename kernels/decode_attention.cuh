// How decode attention attends to a part: tiles through a ring of each warp, whose sums the warps then share, as
// paged_attention_decode.cu describes it.
//
// Put between fresh_rows.cuh and decode_merge.cuh.

constexpr int STEPS = HEAD_DIM / 16;
constexpr int CHUNK = 16 / sizeof(CACHE), CHUNKS = HEAD_DIM / CHUNK; // elements of 16 bytes, and these in a row
static_assert(HEAD_DIM % 16 == 0, "matrix instructions take 16 columns");
constexpr int CLUSTER_MAX = 8; // blocks
constexpr int FOR_OTHERS = 32; // counters

// The keys and values of TILE positions.
struct Stage {
    uint4 keys[TILE * ROW_CHUNKS<CHUNKS>], values[TILE * ROW_CHUNKS<CHUNKS>];
};
// What the blocks of a cluster send to each other: sums, [blocks, share of the columns], and the largest score and the total.
struct __align__(16) Sent {
    float sums[TAKEN * HEAD_DIM + 4 * CLUSTER_MAX];
    float2 scales[CLUSTER_MAX][TAKEN];
    unsigned long long arrived;
};
struct Shared {
    Stage ring[WARPS][STAGES];
    float sums[WARPS][TAKEN][HEAD_DIM + 8];
    float largest[WARPS][HEADS], total[WARPS][HEADS];
#if CLUSTERED
    Sent sent;
#endif
    bool merges[2]; // whether the block merges the context that its first part belongs to, and its last
};

// Where a warp's tiles come from: a part.
struct Feed {
    const int* table;
    int begin, end, origin; // of the part
    int tile = 0, end_tile = 0;
    int blocks, index; // lane l: the block of the l-th tile of 32, of which `index` are used
};
// Tiles do not cross blocks.
constexpr bool TILES_FIT = BLOCK_SIZE % TILE == 0;
// Starts to look up the blocks of the warp's next 32 tiles.
__device__ __forceinline__ int blocks_of(int tile, int end_tile, const int* table, int origin) {
    int at = origin + min(tile + (int)(threadIdx.x % WARP) * sharing_warps(), end_tile - 1) * TILE;
    return TILES_FIT ? table[at / BLOCK_SIZE] : 0;
}
__device__ __forceinline__ const int* table_of(const Part& part, const int* tables, const Shape& shape) {
    return tables + (long long)part.sequence * shape.blocks_per_row;
}
__device__ __forceinline__ int first_blocks_of(const Part& part, const int* tables, const Shape& shape) {
    return part.is_none() ? 0 : blocks_of(own_place(), part.tiles(), table_of(part, tables, shape), part.origin());
}
__device__ __forceinline__ Feed feed_of(const Part& part, const int* tables, int first_blocks, const Shape& shape) {
    return {table_of(part, tables, shape), part.begin, part.end, part.origin(), own_place(), part.tiles(), first_blocks, 0};
}

// The cache's rows for the block's KV head.
struct Context {
    const CACHE *keys, *values;
    int slot_stride;
};
// Starts to copy the feed's next tile. Rows before and after what the token sees are copies of the first and the last that it
// sees: what else is in the cache may be no numbers.
__device__ __forceinline__ void copy_tile(Stage& stage, Feed& feed, const Context& context) {
    constexpr bool FILLS_PASSES = TILE * CHUNKS % WARP == 0;
    int lane = threadIdx.x % WARP, start = feed.origin + feed.tile * TILE;
    if (feed.index == WARP) {
        feed.blocks = blocks_of(feed.tile, feed.end_tile, feed.table, feed.origin);
        feed.index = 0;
    }
    int first_slot = __shfl_sync(ALL_LANES, feed.blocks, feed.index) * BLOCK_SIZE + start % BLOCK_SIZE;
    int first_row = feed.begin - start, last_row = feed.end - 1 - start;
#pragma unroll 2
    for (int pass = 0; pass < (TILE * CHUNKS + (int)WARP - 1) / (int)WARP; pass++) {
        int row = (pass * WARP + lane) / CHUNKS, chunk = (pass * WARP + lane) % CHUNKS;
        if (!FILLS_PASSES && row >= TILE) break;
        int from = min(max(row, first_row), last_row);
        int slot = first_slot + from;
        if (!TILES_FIT) slot = feed.table[(start + from) / BLOCK_SIZE] * BLOCK_SIZE + (start + from) % BLOCK_SIZE;
        long long at = (long long)slot * context.slot_stride + chunk * CHUNK;
        copy_chunk(chunk_at<CHUNKS>(stage.keys, row, chunk), context.keys + at, true);
        copy_chunk(chunk_at<CHUNKS>(stage.values, row, chunk), context.values + at, true);
    }
    commit_copies();
    feed.tile += sharing_warps();
    feed.index++;
}
// A warp's ring: how many tiles it has begun to copy and has used.
struct Ring {
    int copied = 0, used = 0;
    __device__ __forceinline__ bool has_room() const { return copied - used < STAGES; }
    // Waits for the oldest tile in it.
    __device__ __forceinline__ void wait() const {
        int later = copied - used - 1;
        if (later == 0) wait_for_copies<0>();
        else if (later == 1) wait_for_copies<1>();
        else wait_for_copies<2>();
        __syncwarp();
    }
};
static_assert(STAGES <= 3, "at most two tiles come after the one that is waited for");

__device__ __forceinline__ unsigned int transposed(unsigned int fragment) {
    unsigned int result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(fragment));
    return result;
}
__device__ __forceinline__ float max_of_rows(float value) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, offset));
    return value;
}
__device__ __forceinline__ float sum_of_rows(float value) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
    return value;
}

// What a warp keeps of the tiles it has seen: a lane has heads 2 * (lane % 4) and the next one.
struct State {
    float sums[STEPS][4]; // of each step's 16 columns: COLUMN * (lane / 4) for both heads, and NEXT_COLUMN further
    float largest[2], total[2];
};
constexpr int COLUMN = HAS_CODES ? 2 : 1, NEXT_COLUMN = HAS_CODES ? 1 : 8;

// As for 16-bit keys, where a lane's register holds four columns of a key: two go to each half of a step, as with queries.
__device__ __forceinline__ void multiply_codes(float (&product)[2][4], Stage& stage, const unsigned int (&query)[STEPS][2]) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < STEPS; step += 2) {
        unsigned int codes[4]; // positions 0..8 and 8..16 of the step, and of the next one
        load_fragments(codes, chunk_at<CHUNKS>(stage.keys, lane % 16, min(step + lane / 16, STEPS - 1)));
#pragma unroll
        for (int next = 0; next < 2 && step + next < STEPS; next++) {
            unsigned int a[4];
            widen_codes(codes[2 * next], a[0], a[2]);
            widen_codes(codes[2 * next + 1], a[1], a[3]);
            multiply(product[next], a, query[step + next], FACTOR{});
        }
    }
}

// From products to scores whose power of two is the weight: cap(q * k) * log2(e). One branch for all, as caps are rare.
struct Scale {
    float inner, outer; // inner 0: scores are not capped
    __device__ __forceinline__ void apply(float (&score)[4]) const {
        if (inner != 0.0f) {
#pragma unroll
            for (int i = 0; i < 4; i++) score[i] = tanhf(score[i] * inner);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) score[i] *= outer;
    }
};
__device__ __forceinline__ Scale scale_of(const Shape& shape) {
    if (shape.softcap == 0.0f) return {0.0f, shape.scale * LOG2_E};
    return {__fdividef(shape.scale, shape.softcap), shape.softcap * LOG2_E};
}
__device__ __forceinline__ void multiply_keys(float (&score)[4], Stage& stage, const unsigned int (&query)[STEPS][2],
                                              int position, const Part& part, const Scale& scale) {
    int lane = threadIdx.x % WARP;
    float product[2][4] = {};
    if constexpr (HAS_CODES) {
        multiply_codes(product, stage, query);
    } else {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            unsigned int a[4];
            load_fragments(a, chunk_at<CHUNKS>(stage.keys, lane % 16, 2 * step + lane / 16));
            multiply(product[step % 2], a, query[step], FACTOR{});
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) score[i] = product[0][i] + product[1][i];
    scale.apply(score);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int at = position + lane / 4 + i / 2 * 8;
        if (at < part.begin || at >= part.end) score[i] = MINUS_INFINITY;
    }
}
__device__ __forceinline__ void weigh(State& state, float (&score)[4], float (&factor)[2]) {
#pragma unroll
    for (int head = 0; head < 2; head++) {
        float largest = fmaxf(state.largest[head], max_of_rows(fmaxf(score[head], score[head + 2])));
        factor[head] = power_of_two(state.largest[head] - largest);
        state.largest[head] = largest;
        score[head] = power_of_two(score[head] - largest);
        score[head + 2] = power_of_two(score[head + 2] - largest);
        state.total[head] = state.total[head] * factor[head] + (score[head] + score[head + 2]);
    }
}
__device__ __forceinline__ void multiply_values(State& state, Stage& stage, const float (&weight)[4], const float (&factor)[2]) {
    int lane = threadIdx.x % WARP;
    unsigned int weights[2] = {transposed(packed(weight[0], weight[1], FACTOR{})),
                               transposed(packed(weight[2], weight[3], FACTOR{}))};
    unsigned int codes[4]; // positions 0..8 and 8..16 of an even step, and of the next one
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        unsigned int a[4];
        if constexpr (HAS_CODES) {
            if (step % 2 == 0) {
                load_transposed(codes, chunk_at<CHUNKS>(stage.values, lane % 16, min(step + lane / 16, STEPS - 1)));
            }
            widen_codes(by_column(codes[step % 2 * 2]), a[0], a[1]);
            widen_codes(by_column(codes[step % 2 * 2 + 1]), a[2], a[3]);
        } else {
            load_transposed(a, chunk_at<CHUNKS>(stage.values, lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
        }
#pragma unroll
        for (int i = 0; i < 4; i++) state.sums[step][i] *= factor[i % 2];
        multiply(state.sums[step], a, weights, FACTOR{});
    }
}

// A token's queries as columns: lane / 4 is the head. A lane has elements of a step as it has those of keys. `from`: the first.
__device__ __forceinline__ void read_query(unsigned int (&query)[STEPS][2], const ELEMENT* from, int heads) {
    int head = threadIdx.x % WARP / 4;
    constexpr int FIRST = HAS_CODES ? 4 : 2, SECOND = HAS_CODES ? 2 : 8;
    const ELEMENT* row = from + head * HEAD_DIM + threadIdx.x % 4 * FIRST;
#pragma unroll
    for (int i = 0; i < 2 * STEPS; i++) {
        const ELEMENT* pair = row + i / 2 * 16 + i % 2 * SECOND;
        query[i / 2][i % 2] = head < heads ? as_factors(*reinterpret_cast<const unsigned int*>(pair), ELEMENT{}) : 0;
    }
}

__device__ __forceinline__ void clear(State& state) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) state.sums[step][i] = 0.0f;
    }
#pragma unroll
    for (int head = 0; head < 2; head++) state.largest[head] = MINUS_INFINITY, state.total[head] = 0.0f;
}
// What the warp keeps, into shared memory.
__device__ __forceinline__ void share(Shared& shared, const State& state) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, column = lane / 4 * COLUMN, pair = lane % 4 * 2;
#pragma unroll
    for (int head = 0; head < 2; head++) {
        float total = sum_of_rows(state.total[head]);
        if (column == 0) {
            shared.largest[warp][pair + head] = state.largest[head];
            shared.total[warp][pair + head] = total;
        }
        if (pair + head < TAKEN) {
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                shared.sums[warp][pair + head][step * 16 + column] = state.sums[step][head];
                shared.sums[warp][pair + head][step * 16 + column + NEXT_COLUMN] = state.sums[step][head + 2];
            }
        }
    }
}
