// paged_attention_single: attention of tokens that are alone of their sequence, with the bits that paged_attention_wgmma gives them.
//
// Variants: ELEMENT=f16|bf16 HEAD_DIM:GROUP:CONSUMERS:VALUE_STAGES:BLOCK_SIZE:COPIED:CAPPED=64:3:1:3:16:16:0|64:1:1:3:8:8:1|128:4:1:1:16:16:0|128:4:1:2:24:8:1|128:16:1:1:256:128:0|256:4:1:2:16:16:0|256:9:1:2:16:16:1
// Targets: sm_90a
// Needs: attention.cuh wgmma.cuh attention_copies.cuh
//
// An item is the token and a KV head: GROUP rows; sequences are taken in `order`, where there is one. One warp copies an item's context
// as attention_copies.cuh describes it, and begins before the kernel before has ended; four share a tile of keys, each with a quarter of them and of the columns of values.
//
// Few rows make few products, so that what counts is how long they wait for each other. As many tiles as there is room for go through
// each step together: scores; weights, for which warps tell each other the largest scores; values, for which they tell the weights.
//
// Keys, and columns of values, are the 16 rows of a matrix instruction, and the GROUP rows its 8 columns: the other way round most of
// its 16 rows would not exist. The instructions of a warp give the bits of those of a warpgroup, also with operands exchanged. Sums over
// columns and over keys have the same order there, and a row's weights have a total for each quarter of the keys.
//
// Limits: memory; with few items the chain of products, maxima and exponentials of the longest context. GROUP is at most 16.

static_assert(CONSUMERS == 1 && GROUP <= 16, "shared memory has room for the weights of 16 rows");
constexpr int THREADS = CONSUMER_THREADS + WARP; // and those that copy
constexpr int WARPS = 4;
constexpr int BATCH = KEY_STAGES; // tiles that go through a step together
constexpr int OWN_KEYS = KEYS / WARPS, OWN_COLUMNS = HEAD_DIM / WARPS;
constexpr int STEPS = HEAD_DIM / 16, VALUE_STEPS = KEYS / 16;
constexpr int EIGHTS = (GROUP + 7) / 8; // of rows
constexpr int RESIDENT = HEAD_DIM <= 128 ? 2 : 1;
constexpr int WEIGHT_ROW = KEYS * 2 + 16; // bytes: rows begin in different banks

// What the warps tell each other of a tile, and in the end.
struct __align__(16) Exchange {
    char weights[BATCH][8 * EIGHTS * WEIGHT_ROW];
    float largest[BATCH][WARPS][8 * EIGHTS], totals[WARPS][8 * EIGHTS][4];
};
struct Shared : Copied {
    Exchange exchange;
};
// Of a row of each eight, the lane's: pairs of keys beside each other, 8 apart.
typedef float Scores[EIGHTS][OWN_KEYS / 8][2];
// Queries as the instruction takes them: columns of the row lane / 4 of each eight.
typedef unsigned int Queries[STEPS][EIGHTS][2];
// What a thread keeps of all tiles: products of two rows, a quarter of its warp's columns; and of its row.
struct State {
    float sums[EIGHTS][OWN_COLUMNS / 16][4];
    float largest[EIGHTS], total[EIGHTS];
};

// A row of eight has four lanes, which have every fourth pair of keys or of columns.
__device__ __forceinline__ int row_of_lane() { return threadIdx.x % 4 * 2 + threadIdx.x / 4 % 2; }
__device__ __forceinline__ int pair_of_lane() { return threadIdx.x % WARP / 8; }
// The instruction gives a lane one column of two rows, twice. Of two lanes, one takes the pairs of the first row, the other of the second.
__device__ __forceinline__ void take_pairs(float (&of_row)[2][2], const float (&products)[4]) {
    bool is_second = threadIdx.x / 4 % 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float first = products[2 * i], second = products[2 * i + 1];
        float other = __shfl_xor_sync(ALL_LANES, is_second ? first : second, 4);
        of_row[i][0] = is_second ? other : first;
        of_row[i][1] = is_second ? second : other;
    }
}

// 16 bytes of a row of panels of swizzled rows.
__device__ __forceinline__ uint4* swizzled(char* panels, int row, int chunk) {
    return reinterpret_cast<uint4*>(panels + chunk / 8 * CONTEXT_PANEL + row * 128 + ((chunk ^ row) % 8) * 16);
}
// Rows that do not exist are zeros.
__device__ __forceinline__ void read_queries(Queries& queries, const ELEMENT* from) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < 2 * EIGHTS * STEPS; i++) {
        int row = i / 2 % EIGHTS * 8 + lane / 4, column = i / (2 * EIGHTS) * 16 + i % 2 * 8 + lane % 4 * 2;
        queries[i / (2 * EIGHTS)][i / 2 % EIGHTS][i % 2] =
            row < GROUP ? *reinterpret_cast<const unsigned int*>(from + row * HEAD_DIM + column) : 0;
    }
}
// Products of the warp's keys with all columns.
__device__ __forceinline__ void multiply_keys(Scores& scores, const Queries& queries, char* keys) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float products[EIGHTS][OWN_KEYS / 16][4];
#pragma unroll
    for (int i = 0; i < EIGHTS * OWN_KEYS / 4; i++) products[i * 4 / OWN_KEYS][i / 4 % (OWN_KEYS / 16)][i % 4] = 0.0f;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int sixteen = 0; sixteen < OWN_KEYS / 16; sixteen++) {
            unsigned int a[4];
            load_fragments(a, swizzled(keys, warp * OWN_KEYS + sixteen * 16 + lane % 16, 2 * step + lane / 16));
#pragma unroll
            for (int eight = 0; eight < EIGHTS; eight++) multiply(products[eight][sixteen], a, queries[step][eight], ELEMENT{});
        }
    }
#pragma unroll
    for (int eight = 0; eight < EIGHTS; eight++) {
#pragma unroll
        for (int sixteen = 0; sixteen < OWN_KEYS / 16; sixteen++) {
            take_pairs(reinterpret_cast<float(&)[2][2]>(scores[eight][2 * sixteen]), products[eight][sixteen]);
        }
    }
}
// Of the values of 16 keys, as the instruction takes them, those of keys from `count` on become zeros: what the cache holds there may
// be no number.
__device__ __forceinline__ void clear_from(unsigned int (&values)[4], int count) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int key = i / 2 * 8 + threadIdx.x % 4 * 2;
        values[i] = key + 1 < count ? values[i] : key < count ? values[i] & 0xffff : 0;
    }
}
// Products of the warp's columns with the weights of all keys, or of the first `count`.
template <bool IS_PARTIAL>
__device__ __forceinline__ void multiply_values(State& state, const char* weights, char* values, int count) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int two = 0; two < VALUE_STEPS / 2; two++) {
        unsigned int b[EIGHTS][4];
#pragma unroll
        for (int eight = 0; eight < EIGHTS; eight++) {
            const char* row = weights + (eight * 8 + lane % 8) * WEIGHT_ROW;
            load_fragments(b[eight], reinterpret_cast<const uint4*>(row + two * 64 + lane / 8 * 16));
        }
#pragma unroll
        for (int i = 0; i < 2 * OWN_COLUMNS / 16; i++) {
            int half = i * 16 / OWN_COLUMNS, sixteen = i % (OWN_COLUMNS / 16);
            int key = (2 * two + half) * 16;
            unsigned int a[4];
            load_transposed(a, swizzled(values, key + lane / 16 * 8 + lane % 8, (warp * OWN_COLUMNS + sixteen * 16) / 8 + lane / 8 % 2));
            if (IS_PARTIAL) clear_from(a, count - key);
#pragma unroll
            for (int eight = 0; eight < EIGHTS; eight++) {
                multiply(state.sums[eight][sixteen], a, {b[eight][2 * half], b[eight][2 * half + 1]}, ELEMENT{});
            }
        }
    }
}

// Caps and masks the scores of the tile at `first`, and tells the largest.
__device__ __forceinline__ void tell_largest(Scores& scores, float (&largest_of)[WARPS][8 * EIGHTS], int first, const Tile& tile,
                                             const Shape& shape) {
    int warp = threadIdx.x / WARP;
    bool is_masked = first + KEYS > tile.context || shape.window > 0;
    int last = tile.context - 1 - (first + warp * OWN_KEYS + pair_of_lane() * 2); // seen, counted from the lane's first key
    int begin = shape.window > 0 ? last - shape.window : -KEYS;                  // sees (begin, last]
#pragma unroll
    for (int eight = 0; eight < EIGHTS; eight++) {
        if (CAPPED) {
#pragma unroll
            for (int i = 0; i < OWN_KEYS / 4; i++) scores[eight][i / 2][i % 2] = score_of(scores[eight][i / 2][i % 2], shape);
        }
        if (is_masked) {
#pragma unroll
            for (int i = 0; i < OWN_KEYS / 4; i++) {
                int key = i / 2 * 8 + i % 2;
                if (key > last || key <= begin) scores[eight][i / 2][i % 2] = MINUS_INFINITY;
            }
        }
        float largest = MINUS_INFINITY;
#pragma unroll
        for (int i = 0; i < OWN_KEYS / 4; i++) largest = fmaxf(largest, scores[eight][i / 2][i % 2]);
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 8));
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 16));
        if (pair_of_lane() == 0) largest_of[warp][eight * 8 + row_of_lane()] = largest;
    }
}
// Scores become weights relative to the largest score so far, which the warp tells, and totals come to it. What earlier sums of both rows
// are to be multiplied by is `earlier`.
__device__ __forceinline__ void tell_weights(State& state, float (&earlier)[EIGHTS][2], const Scores& scores,
                                             const float (&largest_of)[WARPS][8 * EIGHTS], char* tile_weights, const Shape& shape) {
    int warp = threadIdx.x / WARP;
    float factor = CAPPED ? 1.0f : shape.scale * LOG2_E;
#pragma unroll
    for (int eight = 0; eight < EIGHTS; eight++) {
        int row = eight * 8 + row_of_lane();
        float largest = state.largest[eight];
#pragma unroll
        for (int other = 0; other < WARPS; other++) largest = fmaxf(largest, largest_of[other][row]);
        // A row that has seen nothing yet has no largest score; 0 keeps its weights 0.
        float common = largest == MINUS_INFINITY ? 0.0f : largest, base = common * factor;
        float total = 0.0f, own = power_of_two((state.largest[eight] - common) * factor);
        float other = __shfl_xor_sync(ALL_LANES, own, 4);
        bool is_second = threadIdx.x / 4 % 2;
        earlier[eight][0] = is_second ? other : own, earlier[eight][1] = is_second ? own : other;
        state.largest[eight] = largest;
        char* weights = tile_weights + row * WEIGHT_ROW + (warp * OWN_KEYS + pair_of_lane() * 2) * 2;
#pragma unroll
        for (int n = 0; n < OWN_KEYS / 8; n++) {
            float weight[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                weight[i] = power_of_two(fmaf(scores[eight][n][i], factor, -base));
                total += weight[i];
            }
            *reinterpret_cast<unsigned int*>(weights + n * 16) = packed(weight[0], weight[1], ELEMENT{});
        }
        state.total[eight] = fmaf(state.total[eight], own, total);
    }
}
__device__ __forceinline__ void write_rows(const State& state, const Exchange& exchange, ELEMENT* out, const Item& item, const Shape& shape) {
    int warp = threadIdx.x / WARP;
#pragma unroll
    for (int eight = 0; eight < EIGHTS; eight++) {
        int row = eight * 8 + row_of_lane();
        auto of = [&](int other) { return exchange.totals[other][row][pair_of_lane()]; };
        float total = (of(0) + of(1)) + (of(2) + of(3));
        total += __shfl_xor_sync(ALL_LANES, total, 8);
        total += __shfl_xor_sync(ALL_LANES, total, 16);
        float inverse = 1.0f / total;
        long long head = (long long)item.tile.first_token * shape.num_heads + item.kv_head * GROUP + row;
        ELEMENT* to = out + head * HEAD_DIM + warp * OWN_COLUMNS + pair_of_lane() * 2;
#pragma unroll
        for (int sixteen = 0; sixteen < OWN_COLUMNS / 16; sixteen++) {
            float pairs[2][2];
            take_pairs(pairs, state.sums[eight][sixteen]);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                unsigned int two = packed(pairs[i][0] * inverse, pairs[i][1] * inverse, ELEMENT{});
                if (row < GROUP) *reinterpret_cast<unsigned int*>(to + sixteen * 16 + i * 8) = two;
            }
        }
    }
}

// A warp's last reads are done.
__device__ __forceinline__ void release(unsigned long long& empty) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) arrive(empty);
}
// A warp that computes.
struct Consumer {
    Shared& shared;
    const Shape& shape;
    Ring<KEY_STAGES> keys;
    Ring<VALUE_STAGES> values;

    __device__ __forceinline__ void score(Scores (&scores)[BATCH], const Queries& queries, int first, const Tile& tile) {
#pragma unroll
        for (int t = 0; t < BATCH && first < tile.context; t++, first += KEYS) {
            wait_for(shared.keys_full[keys.stage], keys.parity);
            multiply_keys(scores[t], queries, shared.keys[keys.stage]);
            release(shared.keys_empty[keys.stage]);
            keys.advance();
            tell_largest(scores[t], shared.exchange.largest[t], first, tile, shape);
        }
    }
    __device__ __forceinline__ void weigh(State& state, float (&earlier)[BATCH][EIGHTS][2], const Scores (&scores)[BATCH], int first,
                                          const Tile& tile) {
        Exchange& exchange = shared.exchange;
#pragma unroll
        for (int t = 0; t < BATCH && first < tile.context; t++, first += KEYS) {
            tell_weights(state, earlier[t], scores[t], exchange.largest[t], exchange.weights[t], shape);
        }
#pragma unroll
        for (int eight = 0; eight < EIGHTS; eight++) {
            exchange.totals[threadIdx.x / WARP][eight * 8 + row_of_lane()][pair_of_lane()] = state.total[eight];
        }
    }
    __device__ __forceinline__ void add_values(State& state, const float (&earlier)[BATCH][EIGHTS][2], int first, const Tile& tile) {
#pragma unroll
        for (int t = 0; t < BATCH && first < tile.context; t++, first += KEYS) {
            wait_for(shared.values_full[values.stage], values.parity);
            char* tile_values = shared.values[values.stage];
#pragma unroll
            for (int i = 0; i < EIGHTS * OWN_COLUMNS / 4; i++) {
                int eight = i * 4 / OWN_COLUMNS;
                state.sums[eight][i / 4 % (OWN_COLUMNS / 16)][i % 4] *= earlier[t][eight][i % 2];
            }
            if (first + KEYS > tile.context) {
                multiply_values<true>(state, shared.exchange.weights[t], tile_values, tile.context - first);
            } else {
                multiply_values<false>(state, shared.exchange.weights[t], tile_values, KEYS);
            }
            release(shared.values_empty[values.stage]);
            values.advance();
        }
    }
    __device__ __forceinline__ void attend(const Item& item, const ELEMENT* qkv, ELEMENT* out) {
        const Tile& tile = item.tile;
        Queries queries;
        wait_for_previous_kernel();
        read_queries(queries, qkv + tile.first_token * shape.row_stride + item.kv_head * (GROUP * HEAD_DIM));
        State state;
#pragma unroll
        for (int eight = 0; eight < EIGHTS; eight++) {
            state.largest[eight] = MINUS_INFINITY, state.total[eight] = 0.0f;
#pragma unroll
            for (int i = 0; i < OWN_COLUMNS / 4; i++) state.sums[eight][i / 4][i % 4] = 0.0f;
        }
#pragma unroll 1
        for (int first = span_of(tile, shape).begin; first < tile.context; first += BATCH * KEYS) {
            Scores scores[BATCH];
            float earlier[BATCH][EIGHTS][2];
            score(scores, queries, first, tile);
            meet(1, CONSUMER_THREADS); // the largest scores of all warps are there
            weigh(state, earlier, scores, first, tile);
            meet(1, CONSUMER_THREADS); // weights and totals of all warps are there
            add_values(state, earlier, first, tile);
        }
        write_rows(state, shared.exchange, out, item, shape);
    }
    __device__ __forceinline__ void run(const ELEMENT* qkv, ELEMENT* out) {
        for (Ring<ITEMS> place;; place.advance()) {
            wait_for(shared.announced[place.stage], place.parity);
            Item item = shared.item[place.stage];
            item.tile.sequence = uniform(item.tile.sequence);
            item.tile.context = uniform(item.tile.context); // the compiler takes what follows for divergent otherwise
            release(shared.item_empty[place.stage]);
            if (item.tile.sequence < 0) break;
            attend(item, qkv, out);
        }
    }
};

// The warp that copies.
struct Producer : Copier {
    const int* order; // absent where no block takes a second item

    // The KV heads of a sequence are side by side, as in the cache. A context of 0: nothing is to be done.
    __device__ __forceinline__ Item item_of(int index) const {
        Item item;
        Tile& tile = item.tile;
        int place = index / shape.num_kv_heads;
        item.kv_head = index % shape.num_kv_heads;
        tile.sequence = order != nullptr && place < shape.num_sequences ? order[place] : place;
        tile.first_row = 0, tile.num_rows = GROUP, tile.first_token = tile.sequence, tile.context = 0;
        if (tile.sequence < shape.num_sequences) {
            tile.context = context_lens[tile.sequence];
            if (shape.mixed) {
                tile.first_token = query_starts[tile.sequence];
                if (query_starts[tile.sequence + 1] - tile.first_token != 1) tile.context = 0; // the other form's
            }
        }
        tile.first_position = tile.context - 1;
        return item;
    }
    __device__ __forceinline__ void announce(const Item& item) {
        wait_for(shared.item_empty[place.stage], place.parity ^ 1);
        if (is_elected()) {
            shared.item[place.stage] = item;
            arrive(shared.announced[place.stage]);
        }
        __syncwarp();
        place.advance();
    }
    __device__ __forceinline__ void run() {
        int items = shape.num_sequences * shape.num_kv_heads, index = blockIdx.x;
        bool shares = items > (int)gridDim.x;
        Item item = item_of(index);
        Progress at = start_of(item);
        bool is_announced = item.tile.context > 0;
        if (is_announced) announce(item);
        // No kernel of a step that may still run writes lengths, tables, the order, or keys and values before the last position: as many tiles as there is
        // room for are read before this step's queries are there.
        for (int stage = 0; stage < VALUE_STAGES && at.first + KEYS < item.tile.context; stage++) {
            int later = block_at(at.first + 2 * KEYS, item.tile);
            copy_keys(slot_of(at.block, at.first), at.first, item);
            copy_values(slot_of(at.block, at.first), at.first, item);
            at = {at.first + KEYS, at.next_block, later};
        }
        bool has_keys = KEY_STAGES > VALUE_STAGES && at.first + KEYS < item.tile.context;
        if (has_keys) copy_keys(slot_of(at.block, at.first), at.first, item);
        wait_for_previous_kernel();
        start_next_kernel();
        // What is asked for is there when it is needed: an item is taken, and the next one's blocks are looked up, when the last
        // values of this one are left, and its length is read when this one begins.
        int taken = shares ? take() : 0;
        while (index < items) {
            bool has_work = item.tile.context > 0;
            if (has_work && !is_announced) announce(item);
            if (has_work && !has_keys) copy_keys(slot_of(at.block, at.first), at.first, item);
            is_announced = has_keys = false;
            index = shares ? item_of_taken(taken) : items;
            Item next = item_of(index);
            while (at.first + KEYS < item.tile.context) {
                int later = block_at(at.first + 2 * KEYS, item.tile);
                copy_keys(slot_of(at.next_block, at.first + KEYS), at.first + KEYS, item);
                copy_values(slot_of(at.block, at.first), at.first, item);
                at = {at.first + KEYS, at.next_block, later};
            }
            Progress start = start_of(next);
            if (index < items) taken = take();
            if (has_work) copy_values(slot_of(at.block, at.first), at.first, item);
            item = next, at = start;
        }
        item.tile.sequence = -1;
        announce(item);
        if (shares) leave_counters();
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    attend_single(const ELEMENT* qkv, const __grid_constant__ TensorMap keys, const __grid_constant__ TensorMap values,
                  const int* query_starts, const int* context_lens, const int* tables, const int* order, ELEMENT* out, int* counters,
                  const __grid_constant__ Shape shape) {
    extern __shared__ char memory[];
    // Swizzled rows repeat every 1024 bytes.
    Shared& shared = *reinterpret_cast<Shared*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
    if (threadIdx.x == 0) shared.init(WARPS, WARPS);
    __syncthreads();
    if (uniform(threadIdx.x / WARP) < WARPS) { // the compiler sees no divergence within a warp
        Consumer{shared, shape}.run(qkv, out);
    } else {
        Producer{{shared, keys, values, query_starts, context_lens, tables, counters, shape}, order}.run();
    }
}
