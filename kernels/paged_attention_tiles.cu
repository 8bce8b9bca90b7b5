// paged_attention_tiles: paged_attention for sequences with several tokens in the batch, on tensor cores.
//
// Variants: ELEMENT=f16|bf16 HEAD_DIM:GROUP=64:3|80:1|96:1|128:4|256:4 CACHE=ELEMENT|e4m3
// Needs: attention.cuh
//
// A block takes ROWS rows of one sequence and one KV head, and goes through the positions they see in tiles of KEYS that
// start at multiples of KEYS: products of the queries with the keys, softmax over what has been seen so far, products of
// the weights with the values. A warp has WARP_ROWS rows and all columns. Keys and values are gathered through the block
// table into shared memory by copies that run beside the arithmetic: values while the keys are multiplied, the next keys
// while the values are.
//
// A cache of e4m3 is widened from shared memory to f16 in registers, by every warp for itself; queries become f16 once, in
// the order in which lanes have the columns of codes: see paged_attention_decode.
//
// A row's result follows from its query and its context: a tile in which it sees nothing leaves it as it is.
//
// Limits: tensor cores; each key and value is read once per ROWS rows, from the level-2 cache but for the first time.

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int ROW_TILES = HEAD_DIM <= 128 ? 2 : 1; // of 16 rows, per warp: as many as the registers hold
constexpr int WARP_ROWS = 16 * ROW_TILES;
constexpr int ROWS = WARPS * WARP_ROWS;
constexpr int KEYS = 64;
constexpr int QUERY_CHUNKS = HEAD_DIM / 8;                       // 16-byte chunks of a row
constexpr int CHUNK = 16 / sizeof(CACHE), CHUNKS = HEAD_DIM / CHUNK; // and those of keys and values
constexpr int STEPS = HEAD_DIM / 16;
static_assert(HEAD_DIM % 16 == 0, "matrix instructions take 16 columns");

struct Shared {
    uint4 query[ROWS * ROW_CHUNKS<QUERY_CHUNKS>], keys[KEYS * ROW_CHUNKS<CHUNKS>], values[KEYS * ROW_CHUNKS<CHUNKS>];
    int slots[2][KEYS]; // of the tile's positions; -1 beyond the context
};

__device__ __forceinline__ void copy_query(Shared& shared, const ELEMENT* qkv, const Tile& tile, int kv_head,
                                           const Shape& shape) {
    for (int i = threadIdx.x; i < ROWS * QUERY_CHUNKS; i += THREADS) {
        int row = i / QUERY_CHUNKS, chunk = i % QUERY_CHUNKS;
        bool is_present = row < tile.num_rows;
        int at = tile.first_row + (is_present ? row : 0);
        const ELEMENT* from = qkv + (tile.first_token + at / GROUP) * shape.row_stride +
                              (kv_head * GROUP + at % GROUP) * HEAD_DIM + chunk * 8;
        copy_chunk(chunk_at<QUERY_CHUNKS>(shared.query, row, chunk), from, is_present);
    }
}
// Queries as factors for codes, of which a lane's register holds four columns: those of a step are in the order in which
// lanes then have them, columns 4 * lane and the next in its first half.
__device__ __forceinline__ void order_query(Shared& shared) {
    for (int i = threadIdx.x; i < ROWS * STEPS; i += THREADS) {
        uint4* first = chunk_at<QUERY_CHUNKS>(shared.query, i / STEPS, i % STEPS * 2);
        uint4* second = chunk_at<QUERY_CHUNKS>(shared.query, i / STEPS, i % STEPS * 2 + 1);
        uint4 low = *first, high = *second;
        ELEMENT e = {};
        *first = make_uint4(as_factors(low.x, e), as_factors(low.z, e), as_factors(high.x, e), as_factors(high.z, e));
        *second = make_uint4(as_factors(low.y, e), as_factors(low.w, e), as_factors(high.y, e), as_factors(high.w, e));
    }
}
__device__ __forceinline__ void look_up_slots(int* slots, int first, const int* table, const Tile& tile, const Shape& shape) {
    if (threadIdx.x < KEYS) {
        int position = first + threadIdx.x, slot = -1;
        if (position < tile.context) {
            slot = table[position / shape.block_size] * shape.block_size + position % shape.block_size;
        }
        slots[threadIdx.x] = slot;
    }
}
__device__ __forceinline__ void copy_context(uint4* to, const CACHE* cache, const int* slots, const Shape& shape) {
#pragma unroll
    for (int pass = 0; pass < (KEYS * CHUNKS + THREADS - 1) / THREADS; pass++) {
        int i = pass * THREADS + threadIdx.x;
        if (KEYS * CHUNKS % THREADS != 0 && i >= KEYS * CHUNKS) break;
        int row = i / CHUNKS, chunk = i % CHUNKS, slot = slots[row];
        copy_chunk(chunk_at<CHUNKS>(to, row, chunk), cache + max(slot, 0) * shape.slot_stride + chunk * CHUNK, slot >= 0);
    }
}

// What a thread keeps: for each 16-row tile, rows lane / 4 and lane / 4 + 8, and a quarter of the columns.
struct State {
    float sums[ROW_TILES][HEAD_DIM / 8][4]; // with codes, even columns of a step before the odd ones
    float largest[ROW_TILES][2], total[ROW_TILES][2]; // totals of this thread's columns
};

__device__ __forceinline__ void multiply_keys(float (&scores)[ROW_TILES][KEYS / 8][4], Shared& shared) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        unsigned int query[ROW_TILES][4];
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++) {
            int row = warp * WARP_ROWS + tile * 16 + lane % 16;
            load_fragments(query[tile], chunk_at<QUERY_CHUNKS>(shared.query, row, 2 * step + lane / 16));
        }
        unsigned int codes[4]; // of 32 positions
#pragma unroll
        for (int pair = 0; pair < KEYS / 16; pair++) {
            unsigned int keys[4]; // of positions 0..8 and 8..16 of the pair, each in two halves of the step
            if constexpr (HAS_CODES) {
                if (pair % 2 == 0) load_fragments(codes, chunk_at<CHUNKS>(shared.keys, pair * 16 + lane, step));
                widen_codes(codes[pair % 2 * 2], keys[0], keys[1]);
                widen_codes(codes[pair % 2 * 2 + 1], keys[2], keys[3]);
            } else {
                load_fragments(keys, chunk_at<CHUNKS>(shared.keys, pair * 16 + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
            }
            unsigned int low[2] = {keys[0], keys[1]}, high[2] = {keys[2], keys[3]};
#pragma unroll
            for (int tile = 0; tile < ROW_TILES; tile++) {
                multiply(scores[tile][2 * pair], query[tile], low, FACTOR{});
                multiply(scores[tile][2 * pair + 1], query[tile], high, FACTOR{});
            }
        }
    }
}

// Scores that the rows do not see become minus infinity. `first` is the tile's first position.
__device__ __forceinline__ void mask(float (&scores)[ROW_TILES][KEYS / 8][4], int first, const Tile& tile, const Shape& shape) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = tile.first_row + warp * WARP_ROWS + t * 16 + half * 8 + lane / 4;
            int last = tile.first_position + row / GROUP - first;
            int begin = shape.window > 0 ? last - shape.window : -1; // sees (begin, last]
            last = min(last, tile.context - 1 - first);
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int at = n * 8 + lane % 4 * 2 + i;
                    if (at > last || at <= begin) scores[t][n][2 * half + i] = MINUS_INFINITY;
                }
            }
        }
    }
}

// Scores become weights relative to the largest score so far; earlier sums are brought to it. `factor` turns a score into
// an exponent of two.
__device__ __forceinline__ void weigh(State& state, float (&scores)[ROW_TILES][KEYS / 8][4], float factor) {
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float largest = state.largest[t][half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                largest = fmaxf(largest, fmaxf(scores[t][n][2 * half], scores[t][n][2 * half + 1]));
            }
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
            // A row that has seen nothing yet has no largest score; 0 keeps its weights 0.
            float common = largest == MINUS_INFINITY ? 0.0f : largest, base = common * factor;
            // Exactly 1 when the largest score stays the same.
            float earlier = power_of_two((state.largest[t][half] - common) * factor);
            state.largest[t][half] = largest;
            float total = 0.0f;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& score = scores[t][n][2 * half + i];
                    score = power_of_two(fmaf(score, factor, -base));
                    total += score;
                }
            }
            state.total[t][half] = state.total[t][half] * earlier + total;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) {
                state.sums[t][n][2 * half] *= earlier;
                state.sums[t][n][2 * half + 1] *= earlier;
            }
        }
    }
}

__device__ __forceinline__ void multiply_values(State& state, const float (&weights)[ROW_TILES][KEYS / 8][4], Shared& shared) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        unsigned int a[ROW_TILES][4];
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* two = &weights[t][2 * step + i / 2][i % 2 * 2];
                a[t][i] = packed(two[0], two[1], FACTOR{});
            }
        }
#pragma unroll
        for (int pair = 0; pair < HEAD_DIM / 16; pair++) {
            unsigned int values[4];
            if constexpr (HAS_CODES) {
                unsigned int codes[2]; // of positions 0..8 and 8..16
                load_transposed(codes, chunk_at<CHUNKS>(shared.values, step * 16 + lane % 16, pair));
                widen_codes(by_column(codes[0]), values[0], values[2]);
                widen_codes(by_column(codes[1]), values[1], values[3]);
            } else {
                load_transposed(values, chunk_at<CHUNKS>(shared.values, step * 16 + lane % 16, 2 * pair + lane / 16));
            }
            unsigned int low[2] = {values[0], values[1]}, high[2] = {values[2], values[3]};
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++) {
                multiply(state.sums[t][2 * pair], a[t], low, FACTOR{});
                multiply(state.sums[t][2 * pair + 1], a[t], high, FACTOR{});
            }
        }
    }
}

__device__ __forceinline__ void write_rows(State& state, ELEMENT* out, const Tile& tile, int kv_head, const Shape& shape) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = state.total[t][half];
            total += __shfl_xor_sync(ALL_LANES, total, 1);
            total += __shfl_xor_sync(ALL_LANES, total, 2);
            int row = warp * WARP_ROWS + t * 16 + half * 8 + lane / 4;
            if (row >= tile.num_rows) continue;
            int at = tile.first_row + row;
            long long first = ((long long)(tile.first_token + at / GROUP) * shape.num_heads + kv_head * GROUP + at % GROUP) * HEAD_DIM;
            float inverse = 1.0f / total;
            if constexpr (HAS_CODES) {
#pragma unroll
                for (int pair = 0; pair < HEAD_DIM / 16; pair++) {
                    const float *even = &state.sums[t][2 * pair][2 * half], *odd = &state.sums[t][2 * pair + 1][2 * half];
                    *reinterpret_cast<uint2*>(out + first + pair * 16 + lane % 4 * 4) =
                        make_uint2(packed(even[0] * inverse, odd[0] * inverse, ELEMENT{}),
                                   packed(even[1] * inverse, odd[1] * inverse, ELEMENT{}));
                }
                continue;
            }
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) {
                const float* two = &state.sums[t][n][2 * half];
                *reinterpret_cast<unsigned int*>(out + first + n * 8 + lane % 4 * 2) =
                    packed(two[0] * inverse, two[1] * inverse, ELEMENT{});
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attend_tiles(const ELEMENT* qkv, const CACHE* keys, const CACHE* values, const int* query_starts,
                 const int* context_lens, const int* tables, ELEMENT* out, const __grid_constant__ Shape shape) {
    start_next_kernel();
    wait_for_previous_kernel();
    extern __shared__ __align__(16) char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    // The last tiles of a long context are the longest work: they go first.
    int block = gridDim.x - 1 - blockIdx.x, kv_head = block % shape.num_kv_heads;
    Tile tile = tile_of<ROWS>(block / shape.num_kv_heads, query_starts, context_lens, shape);
    if (tile.num_rows == 0) return;
    const int* table = tables + (long long)tile.sequence * shape.blocks_per_row;
    keys += kv_head * shape.head_stride;
    values += kv_head * shape.head_stride;
    int first_seen = tile.first_position + tile.first_row / GROUP; // the last position that the first row sees
    int last_seen = tile.first_position + (tile.first_row + tile.num_rows - 1) / GROUP;
    int begin = shape.window > 0 ? max(0, first_seen + 1 - shape.window) / KEYS * KEYS : 0;
    // Positions below this are within the windows of all rows.
    int in_all_windows = shape.window > 0 ? last_seen + 1 - shape.window : 0;

    copy_query(shared, qkv, tile, kv_head, shape);
    look_up_slots(shared.slots[0], begin, table, tile, shape);
    __syncthreads();
    copy_context(shared.keys, keys, shared.slots[0], shape);
    commit_copies();
    State state;
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) state.sums[t][n][i] = 0.0f;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) state.largest[t][half] = MINUS_INFINITY, state.total[t][half] = 0.0f;
    }
    if constexpr (HAS_CODES) {
        wait_for_copies<0>();
        __syncthreads();
        order_query(shared);
    }
    float factor = shape.softcap > 0.0f ? 1.0f : shape.scale * LOG2_E;
    int parity = 0;
    for (int first = begin; first <= last_seen; first += KEYS, parity ^= 1) {
        wait_for_copies<0>();
        __syncthreads(); // the keys are here, and nobody reads the last values any more
        copy_context(shared.values, values, shared.slots[parity], shape);
        commit_copies();
        bool has_next = first + KEYS <= last_seen;
        if (has_next) look_up_slots(shared.slots[parity ^ 1], first + KEYS, table, tile, shape);
        float scores[ROW_TILES][KEYS / 8][4] = {};
        multiply_keys(scores, shared);
        if (shape.softcap > 0.0f) {
#pragma unroll
            for (int i = 0; i < ROW_TILES * KEYS / 2; i++) {
                float& score = scores[i / (KEYS / 2)][i / 4 % (KEYS / 8)][i % 4];
                score = score_of(score, shape);
            }
        }
        if (first + KEYS - 1 > first_seen || first < in_all_windows) mask(scores, first, tile, shape);
        weigh(state, scores, factor);
        wait_for_copies<0>();
        __syncthreads(); // the values are here, and nobody reads the keys any more
        if (has_next) {
            copy_context(shared.keys, keys, shared.slots[parity ^ 1], shape);
            commit_copies();
        }
        multiply_values(state, scores, shared);
    }
    write_rows(state, out, tile, kv_head, shape);
}
