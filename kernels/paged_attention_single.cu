// paged_attention_single: attention of tokens that are alone of their sequence, with the bits that paged_attention_wgmma gives them.
//
// Variants: ELEMENT=f16|bf16 HEAD_DIM:GROUP:CONSUMERS:VALUE_STAGES:BLOCK_SIZE:COPIED=64:3:1:3:16:16|64:1:1:3:8:8|128:4:1:1:16:16|128:4:1:2:24:8|128:16:1:1:256:128|256:4:1:2:16:16|256:9:1:2:16:16
// Targets: sm_90a
// Needs: attention.cuh wgmma.cuh attention_copies.cuh
//
// An item is the token and a KV head: GROUP rows. One warp copies its context as attention_copies.cuh describes it, and begins before
// the kernel before has ended; four share a tile of keys, each with a quarter of them and of the columns of values. Few rows make
// few products, so that what counts is how long they wait for each other: the next keys are multiplied together with values.
//
// The instructions of a warp give the bits of those of a warpgroup. Sums over columns and over keys have the same order there, and a
// row's weights have a total for each quarter of the keys.
//
// Limits: memory; with few items the chain of products, maxima and exponentials of the longest context. GROUP is at most 16.

static_assert(CONSUMERS == 1 && GROUP <= 16, "a matrix instruction takes 16 rows");
constexpr int WARPS = 4;
constexpr int OWN_KEYS = KEYS / WARPS, OWN_COLUMNS = HEAD_DIM / WARPS;
constexpr int STEPS = HEAD_DIM / 16, VALUE_STEPS = KEYS / 16;
constexpr int HALVES = GROUP <= 8 ? 1 : 2; // of a thread's two rows, 8 apart, those that exist
constexpr int RESIDENT = HEAD_DIM <= 128 ? 2 : 1;
constexpr int WEIGHT_ROW = KEYS * 2 + 16; // bytes: rows begin in different banks

// What the warps tell each other, behind what is copied.
struct __align__(16) Exchange {
    char weights[16 * WEIGHT_ROW];
    float largest[WARPS][16], totals[WARPS][16][4];
};
// What a thread keeps: rows lane / 4 and lane / 4 + 8, a quarter of its warp's columns and keys.
struct State {
    float sums[OWN_COLUMNS / 8][4];
    float largest[2], total[2];
};

// The lane's row of a matrix that is read in fragments of 8 rows. Rows that do not exist are copies of those that do.
__device__ __forceinline__ int fragment_row() { return threadIdx.x % (8 * HALVES); }
// 16 bytes of a row of panels of swizzled rows, `panel_bytes` apart.
__device__ __forceinline__ const uint4* swizzled(const char* panels, int panel_bytes, int row, int chunk) {
    return reinterpret_cast<const uint4*>(panels + chunk / 8 * panel_bytes + row * 128 + ((chunk ^ row) % 8) * 16);
}
__device__ __forceinline__ void read_query(unsigned int (&query)[STEPS][4], const char* from) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        load_fragments(query[step], swizzled(from, QUERY_PANEL, fragment_row(), 2 * step + threadIdx.x % WARP / 16));
    }
}
// Products of 16 columns with the warp's keys.
__device__ __forceinline__ void multiply_keys(float (&scores)[OWN_KEYS / 8][4], const unsigned int (&query)[4], const char* keys, int step) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int sixteen = 0; sixteen < OWN_KEYS / 16; sixteen++) {
        unsigned int b[4];
        int row = warp * OWN_KEYS + sixteen * 16 + lane / 16 * 8 + lane % 8;
        load_fragments(b, swizzled(keys, CONTEXT_PANEL, row, 2 * step + lane / 8 % 2));
        multiply(scores[2 * sixteen], query, {b[0], b[1]}, ELEMENT{});
        multiply(scores[2 * sixteen + 1], query, {b[2], b[3]}, ELEMENT{});
    }
}
// Products of the weights of 16 keys with the warp's columns.
__device__ __forceinline__ void multiply_values(State& state, const Exchange& exchange, const char* values, int step) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    unsigned int weights[4];
    load_fragments(weights, reinterpret_cast<const uint4*>(exchange.weights + fragment_row() * WEIGHT_ROW + step * 32 + lane / 16 * 16));
#pragma unroll
    for (int sixteen = 0; sixteen < OWN_COLUMNS / 16; sixteen++) {
        unsigned int b[4];
        int row = step * 16 + lane % 16, chunk = (warp * OWN_COLUMNS + sixteen * 16) / 8 + lane / 16;
        load_transposed(b, swizzled(values, CONTEXT_PANEL, row, chunk));
        multiply(state.sums[2 * sixteen], weights, {b[0], b[1]}, ELEMENT{});
        multiply(state.sums[2 * sixteen + 1], weights, {b[2], b[3]}, ELEMENT{});
    }
}
// Scores of the next keys, and of the tile before what its weights make of its values: neither waits for its own results while there
// is something to do of the other.
template <bool HAS_VALUES>
__device__ __forceinline__ void multiply_tiles(State& state, float (&scores)[OWN_KEYS / 8][4], const unsigned int (&query)[STEPS][4],
                                               const Exchange& exchange, const char* values, const char* keys) {
#pragma unroll
    for (int n = 0; n < OWN_KEYS / 8; n++) {
#pragma unroll
        for (float& score : scores[n]) score = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < (STEPS > VALUE_STEPS ? STEPS : VALUE_STEPS); step++) {
        if (HAS_VALUES && step < VALUE_STEPS) multiply_values(state, exchange, values, step);
        if (step < STEPS) multiply_keys(scores, query[step], keys, step);
    }
}

// Scores become weights relative to the largest score so far, which all warps learn, and sums and totals come to it.
__device__ __forceinline__ void weigh(State& state, float (&scores)[OWN_KEYS / 8][4], Exchange& exchange, int first, const Tile& tile,
                                      const Shape& shape) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int last = tile.context - 1 - (first + warp * OWN_KEYS + lane % 4 * 2); // seen, counted from the lane's first key
    int begin = shape.window > 0 ? last - shape.window : -KEYS;             // sees (begin, last]
    float factor = shape.softcap > 0.0f ? 1.0f : shape.scale * LOG2_E;
    // One branch for all: each skipped one is code that has to be read from elsewhere.
    if (shape.softcap > 0.0f) {
#pragma unroll
        for (int i = 0; i < OWN_KEYS / 2; i++) scores[i / 4][i % 4] = score_of(scores[i / 4][i % 4], shape);
    }
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        float largest = MINUS_INFINITY;
#pragma unroll
        for (int n = 0; n < OWN_KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float& score = scores[n][2 * half + i];
                if (n * 8 + i > last || n * 8 + i <= begin) score = MINUS_INFINITY;
                largest = fmaxf(largest, score);
            }
        }
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
        if (lane % 4 == 0) exchange.largest[warp][lane / 4 + 8 * half] = largest;
    }
    meet(1, CONSUMER_THREADS);
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        int row = lane / 4 + 8 * half;
        float largest = state.largest[half];
#pragma unroll
        for (int other = 0; other < WARPS; other++) largest = fmaxf(largest, exchange.largest[other][row]);
        // A row that has seen nothing yet has no largest score; 0 keeps its weights 0.
        float common = largest == MINUS_INFINITY ? 0.0f : largest, base = common * factor;
        float earlier = power_of_two((state.largest[half] - common) * factor), total = 0.0f;
        state.largest[half] = largest;
        char* weights = exchange.weights + row * WEIGHT_ROW + (warp * OWN_KEYS + lane % 4 * 2) * 2;
#pragma unroll
        for (int n = 0; n < OWN_KEYS / 8; n++) {
            float weight[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                weight[i] = power_of_two(fmaf(scores[n][2 * half + i], factor, -base));
                total += weight[i];
            }
            *reinterpret_cast<unsigned int*>(weights + n * 16) = packed(weight[0], weight[1], ELEMENT{});
        }
        state.total[half] = fmaf(state.total[half], earlier, total);
#pragma unroll
        for (int n = 0; n < OWN_COLUMNS / 8; n++) state.sums[n][2 * half] *= earlier, state.sums[n][2 * half + 1] *= earlier;
    }
}
__device__ __forceinline__ void write_rows(const State& state, Exchange& exchange, ELEMENT* out, const Item& item, const Shape& shape) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int half = 0; half < HALVES; half++) exchange.totals[warp][lane / 4 + 8 * half][lane % 4] = state.total[half];
    meet(1, CONSUMER_THREADS);
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        int row = lane / 4 + 8 * half;
        auto of = [&](int other) { return exchange.totals[other][row][lane % 4]; };
        float total = (of(0) + of(1)) + (of(2) + of(3));
        total += __shfl_xor_sync(ALL_LANES, total, 1);
        total += __shfl_xor_sync(ALL_LANES, total, 2);
        if (row >= GROUP) continue;
        float inverse = 1.0f / total;
        long long head = (long long)item.tile.first_token * shape.num_heads + item.kv_head * GROUP + row;
        ELEMENT* to = out + head * HEAD_DIM + warp * OWN_COLUMNS + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < OWN_COLUMNS / 8; n++) {
            const float* two = &state.sums[n][2 * half];
            *reinterpret_cast<unsigned int*>(to + n * 8) = packed(two[0] * inverse, two[1] * inverse, ELEMENT{});
        }
    }
}

// A warp's last reads of a stage are done.
__device__ __forceinline__ void release(unsigned long long& empty) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) arrive(empty);
}
__device__ void consume(Shared& shared, Exchange& exchange, ELEMENT* out, const Shape& shape) {
    Ring<QUERIES> place;
    Ring<KEY_STAGES> keys;
    Ring<VALUE_STAGES> values;
    for (;; place.advance()) {
        wait_for(shared.query_full[place.stage], place.parity);
        Item item = shared.item[place.stage];
        const Tile& tile = item.tile;
        if (tile.sequence < 0) break;
        unsigned int query[STEPS][4];
        read_query(query, shared.query[place.stage]);
        release(shared.query_empty[place.stage]);
        State state;
#pragma unroll
        for (int n = 0; n < OWN_COLUMNS / 8; n++) {
#pragma unroll
            for (float& sum : state.sums[n]) sum = 0.0f;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) state.largest[half] = MINUS_INFINITY, state.total[half] = 0.0f;
        float scores[OWN_KEYS / 8][4];
        wait_for(shared.keys_full[keys.stage], keys.parity);
        multiply_tiles<false>(state, scores, query, exchange, nullptr, shared.keys[keys.stage]);
        release(shared.keys_empty[keys.stage]);
        keys.advance();
        for (int first = span_of(tile, shape).begin; first < tile.context; first += KEYS, values.advance()) {
            weigh(state, scores, exchange, first, tile, shape);
            wait_for(shared.values_full[values.stage], values.parity);
            char* tile_values = shared.values[values.stage];
            bool is_last = first + KEYS >= tile.context;
            if (tile.context < first + KEYS) clear_values(tile_values, tile.context - first, threadIdx.x);
            meet(1, CONSUMER_THREADS); // weights of all warps are there
            // Behind the last tile other keys are multiplied for nothing, which is less code than to leave them.
            if (!is_last) wait_for(shared.keys_full[keys.stage], keys.parity);
            multiply_tiles<true>(state, scores, query, exchange, tile_values, shared.keys[keys.stage]);
            if (!is_last) {
                release(shared.keys_empty[keys.stage]);
                keys.advance();
            }
            release(shared.values_empty[values.stage]);
        }
        write_rows(state, exchange, out, item, shape);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    attend_single(const __grid_constant__ TensorMap queries, const __grid_constant__ TensorMap keys,
                  const __grid_constant__ TensorMap values, const int* query_starts, const int* context_lens, const int* tables,
                  ELEMENT* out, int* counters, const __grid_constant__ Shape shape) {
    extern __shared__ char memory[];
    // Swizzled rows repeat every 1024 bytes.
    Shared& shared = *reinterpret_cast<Shared*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
    if (threadIdx.x == 0) shared.init(WARPS, WARPS);
    __syncthreads();
    if (threadIdx.x < CONSUMER_THREADS) {
        consume(shared, *reinterpret_cast<Exchange*>(&shared + 1), out, shape);
    } else {
        Producer{shared, queries, keys, values, query_starts, context_lens, tables, counters, shape}.run();
    }
}
