// paged_attention_wgmma: what paged_attention_tiles computes, with the asynchronous matrix instructions of Hopper.
//
// Variants: ELEMENT=f16|bf16 HEAD_DIM:GROUP=64:3|64:1|128:4|128:1|256:4
// Targets: sm_90a
// Needs: attention.cuh wgmma.cuh
//
// As many blocks as multiprocessors take tiles of ROWS rows as they get to them; `counters` are zero before and after. In each, one warp copies queries, keys and
// values into shared memory with the bulk copy engine, block of the cache by block, some tiles ahead; two warpgroups of
// 64 rows each compute. A warpgroup multiplies the next keys while it turns scores into weights, and the two take turns
// with the tensor cores, so that one computes exponentials while the other multiplies.
//
// A row's result follows from its query and its context: a tile in which it sees nothing leaves it as it is.
//
// Limits: tensor cores and, for a head of 64, exponentials. Blocks of the cache have a multiple of 8 positions.

constexpr int CONSUMERS = 2; // warpgroups
constexpr int THREADS = 128 * (1 + CONSUMERS);
constexpr int CONSUMER_THREADS = 128 * CONSUMERS;
constexpr int TOKENS = 64 * CONSUMERS / GROUP; // of a tile
constexpr int ROWS = TOKENS * GROUP;           // at most 64 per warpgroup; the rest of the last one is idle
constexpr int KEYS = HEAD_DIM <= 128 ? 128 : 64;
constexpr int STAGES = 2;
constexpr int HEADS_AT_ONCE = 8;
constexpr int PANELS = HEAD_DIM / 64;          // of 64 columns: 128 bytes, the width of a swizzled row
constexpr int WIDTH = HEAD_DIM < 128 ? HEAD_DIM : 128; // columns of values that one instruction takes
constexpr int WIDTHS = HEAD_DIM / WIDTH;
constexpr int QUERY_PANEL = 64 * CONSUMERS * 128, CONTEXT_PANEL = KEYS * 128; // bytes
static_assert(HEAD_DIM % 64 == 0, "panels have 64 columns");

struct Shared {
    char query[PANELS * QUERY_PANEL];
    char keys[STAGES][PANELS * CONTEXT_PANEL], values[STAGES][PANELS * CONTEXT_PANEL];
    unsigned long long query_full, query_empty;
    unsigned long long keys_full[STAGES], keys_empty[STAGES], values_full[STAGES], values_empty[STAGES];
    Tile tile; // of the queries; sequence -1: there are no more
    int kv_head;
};

// A place in a ring of stages, and how often it was passed.
struct Ring {
    int stage = 0;
    unsigned int parity = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void copy_block(void* to, const TensorMap& map, int column, int kv_head, int slot,
                                           unsigned long long& barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
                     "r"(shared_address(to)), "l"(&map), "r"(column), "r"(kv_head), "r"(slot), "r"(shared_address(&barrier))
                 : "memory");
}
__device__ __forceinline__ void copy_queries(void* to, const TensorMap& map, int column, int kv_head, int token,
                                             unsigned long long& barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, 0, %3, %4}], [%5];" ::
                     "r"(shared_address(to)), "l"(&map), "r"(column), "r"(kv_head), "r"(token), "r"(shared_address(&barrier))
                 : "memory");
}

// The positions that a tile goes through: `begin`, a multiple of KEYS, to `last_seen`.
struct Span {
    int begin, first_seen, last_seen;
};
__device__ __forceinline__ Span span_of(const Tile& tile, const Shape& shape) {
    Span span;
    span.first_seen = tile.first_position + tile.first_row / GROUP;
    span.last_seen = tile.first_position + (tile.first_row + tile.num_rows - 1) / GROUP;
    span.begin = shape.window > 0 ? max(0, span.first_seen + 1 - shape.window) / KEYS * KEYS : 0;
    return span;
}

// The copying warp: a lane per block of the cache. `dense` of the shape is the number of positions of one copy.
__device__ void copy_context(char* to, const TensorMap& map, unsigned long long& full, unsigned long long& empty,
                             unsigned int parity, int slot, int kv_head, int copies, int positions) {
    int lane = threadIdx.x % WARP;
    wait_for(empty, parity ^ 1);
    if (lane == 0) expect_bytes(full, copies * positions * 128 * PANELS);
    __syncwarp();
    if (lane < copies) {
#pragma unroll
        for (int panel = 0; panel < PANELS; panel++) {
            copy_block(to + panel * CONTEXT_PANEL + lane * positions * 128, map, panel * 64, kv_head, slot, full);
        }
    }
}
// Blocks take items as they get to them: the first gridDim.x are theirs, `counters[0]` further ones are taken.
__device__ __forceinline__ int next_item(int* counters) {
    int taken = threadIdx.x % WARP == 0 ? atomicAdd(counters, 1) : 0;
    return gridDim.x + __shfl_sync(ALL_LANES, taken, 0);
}
__device__ void produce(Shared& shared, const TensorMap& queries, const TensorMap& keys, const TensorMap& values,
                        const int* query_starts, const int* context_lens, const int* tables, int* counters,
                        const Shape& shape) {
    int lane = threadIdx.x % WARP, positions = shape.dense;
    int tiles = shape.num_tokens / TOKENS + shape.num_sequences, items = tiles * shape.num_kv_heads;
    unsigned int query_parity = 0;
    Ring ring;
    for (int item = blockIdx.x; item < items; item = next_item(counters)) {
        // A few heads at a time, so that their keys and values stay in the cache; the last tiles of a long context are
        // the longest work and go first.
        int first_head = item / (tiles * HEADS_AT_ONCE) * HEADS_AT_ONCE;
        int heads = min(HEADS_AT_ONCE, shape.num_kv_heads - first_head), within = item - first_head * tiles;
        int kv_head = first_head + within % heads;
        Tile tile = tile_of<ROWS>(tiles - 1 - within / heads, query_starts, context_lens, shape);
        if (tile.num_rows == 0) continue;
        Span span = span_of(tile, shape);
        const int* table = tables + (long long)tile.sequence * shape.blocks_per_row;
        wait_for(shared.query_empty, query_parity ^ 1);
        query_parity ^= 1;
        if (lane == 0) {
            shared.tile = tile;
            shared.kv_head = kv_head;
            expect_bytes(shared.query_full, PANELS * ROWS * 128);
            for (int panel = 0; panel < PANELS; panel++) {
                copy_queries(shared.query + panel * QUERY_PANEL, queries, panel * 64, kv_head,
                             tile.first_token + tile.first_row / GROUP, shared.query_full);
            }
        }
        auto slot_at = [&](int first) {
            int position = first + lane * positions;
            if (lane * positions >= KEYS || position >= tile.context) return 0;
            return table[position / shape.block_size] * shape.block_size + position % shape.block_size;
        };
        auto copies_at = [&](int first) { return (min(KEYS, tile.context - first) + positions - 1) / positions; };
        int slot = slot_at(span.begin), copies = copies_at(span.begin);
        copy_context(shared.keys[ring.stage], keys, shared.keys_full[ring.stage], shared.keys_empty[ring.stage],
                     ring.parity, slot, kv_head, copies, positions);
        for (int first = span.begin; first <= span.last_seen; first += KEYS) {
            Ring next = ring;
            next.advance();
            int next_slot = 0, next_copies = 0;
            if (first + KEYS <= span.last_seen) {
                next_slot = slot_at(first + KEYS), next_copies = copies_at(first + KEYS);
                copy_context(shared.keys[next.stage], keys, shared.keys_full[next.stage], shared.keys_empty[next.stage],
                             next.parity, next_slot, kv_head, next_copies, positions);
            }
            copy_context(shared.values[ring.stage], values, shared.values_full[ring.stage], shared.values_empty[ring.stage],
                         ring.parity, slot, kv_head, copies, positions);
            slot = next_slot, copies = next_copies, ring = next;
        }
    }
    wait_for(shared.query_empty, query_parity ^ 1);
    if (lane == 0) {
        shared.tile.sequence = -1;
        arrive(shared.query_full);
        // The last block leaves the counters as it found them.
        if (atomicAdd(counters + 1, 1) == (int)gridDim.x - 1) counters[0] = counters[1] = 0;
    }
}

// What a thread keeps: rows lane / 4 and lane / 4 + 8 of its warp's 16, a quarter of the columns.
struct State {
    float sums[WIDTHS][WIDTH / 2];
    float largest[2], total[2];
};

__device__ __forceinline__ void start_keys(float (&scores)[KEYS / 2], const char* query, const char* keys) {
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
        int panel = step / 4, within = step % 4 * 32; // bytes
        multiply_shared(scores, operand(query + panel * QUERY_PANEL + within, 16),
                        operand(keys + panel * CONTEXT_PANEL + within, 16), step > 0);
    }
    commit_multiplications();
}
__device__ __forceinline__ void start_values(State& state, const unsigned int (&weights)[KEYS / 16][4], const char* values) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
#pragma unroll
        for (int w = 0; w < WIDTHS; w++) {
            multiply_weights(state.sums[w], weights[step],
                             operand(values + w * (WIDTH / 64) * CONTEXT_PANEL + step * 16 * 128, CONTEXT_PANEL));
        }
    }
    commit_multiplications();
}
__device__ __forceinline__ void settle_sums(State& state) {
#pragma unroll
    for (int w = 0; w < WIDTHS; w++) settle(state.sums[w]);
}

// Scores that the rows do not see become minus infinity. `row` is the thread's first row in the sequence.
__device__ __forceinline__ void mask(float (&scores)[KEYS / 2], int first, int row, const Tile& tile, const Shape& shape) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int last = tile.first_position + (row + 8 * half) / GROUP - first - threadIdx.x % 4 * 2;
        int begin = shape.window > 0 ? last - shape.window : -KEYS; // sees (begin, last]
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int at = n * 8 + i;
                if (at > last || at <= begin) scores[4 * n + 2 * half + i] = MINUS_INFINITY;
            }
        }
    }
}
// Scores become weights relative to the largest score so far; `earlier` brings earlier sums to it.
__device__ __forceinline__ void weigh(State& state, float (&scores)[KEYS / 2], float (&earlier)[2], float factor) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float largest = state.largest[half];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            largest = fmaxf(largest, fmaxf(scores[4 * n + 2 * half], scores[4 * n + 2 * half + 1]));
        }
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
        // A row that has seen nothing yet has no largest score; 0 keeps its weights 0.
        float common = largest == MINUS_INFINITY ? 0.0f : largest, base = common * factor;
        // Exactly 1 when the largest score stays the same.
        earlier[half] = power_of_two((state.largest[half] - common) * factor);
        state.largest[half] = largest;
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float& score = scores[4 * n + 2 * half + i];
                score = power_of_two(fmaf(score, factor, -base));
                total += score;
            }
        }
        state.total[half] = state.total[half] * earlier[half] + total;
    }
}
__device__ __forceinline__ void rescale(State& state, const float (&earlier)[2]) {
#pragma unroll
    for (int w = 0; w < WIDTHS; w++) {
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) state.sums[w][i] *= earlier[i / 2 % 2];
    }
}
__device__ __forceinline__ void pack(unsigned int (&weights)[KEYS / 16][4], const float (&scores)[KEYS / 2]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) weights[i / 4][i % 4] = packed(scores[2 * i], scores[2 * i + 1], ELEMENT{});
}
// Values of positions from `count` on become zeros: what the cache holds there may be no number.
__device__ __forceinline__ void clear_values(char* values, int count) {
    for (int i = threadIdx.x - 128; i < (KEYS - count) * 8 * PANELS; i += CONSUMER_THREADS) {
        int row = count + i / 8 % (KEYS - count), panel = i / 8 / (KEYS - count);
        reinterpret_cast<uint4*>(values + panel * CONTEXT_PANEL + row * 128)[i % 8] = make_uint4(0, 0, 0, 0);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    meet(3, CONSUMER_THREADS);
}
__device__ __forceinline__ void write_rows(State& state, ELEMENT* out, int row, int kv_head, const Tile& tile, const Shape& shape) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = state.total[half];
        total += __shfl_xor_sync(ALL_LANES, total, 1);
        total += __shfl_xor_sync(ALL_LANES, total, 2);
        int at = tile.first_row + row + 8 * half;
        if (row + 8 * half >= tile.num_rows) continue;
        long long first = ((long long)(tile.first_token + at / GROUP) * shape.num_heads + kv_head * GROUP + at % GROUP) * HEAD_DIM;
        float inverse = 1.0f / total;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
            const float* two = &state.sums[n * 8 / WIDTH][n * 8 % WIDTH / 2 + 2 * half];
            *reinterpret_cast<unsigned int*>(out + first + n * 8 + threadIdx.x % 4 * 2) =
                packed(two[0] * inverse, two[1] * inverse, ELEMENT{});
        }
    }
}

__device__ void consume(Shared& shared, ELEMENT* out, const Shape& shape) {
    int group = threadIdx.x / 128 - 1, lane = threadIdx.x % WARP;
    int row = group * 64 + threadIdx.x % 128 / WARP * 16 + lane / 4; // in the tile
    bool is_first = threadIdx.x % 128 == 0;
    const char* query = shared.query + group * 64 * 128;
    int own_turn = 1 + group, others_turn = 2 - group;
    if (group == 1) let_go(others_turn, CONSUMER_THREADS);
    float factor = shape.softcap > 0.0f ? 1.0f : shape.scale * LOG2_E;
    unsigned int query_parity = 0;
    Ring ring;
    while (true) {
        wait_for(shared.query_full, query_parity);
        query_parity ^= 1;
        Tile tile = shared.tile;
        int kv_head = shared.kv_head;
        if (tile.sequence < 0) break;
        Span span = span_of(tile, shape);
        int in_all_windows = shape.window > 0 ? span.last_seen + 1 - shape.window : 0;
        State state;
        settle_sums(state);
#pragma unroll
        for (int w = 0; w < WIDTHS; w++) {
#pragma unroll
            for (int i = 0; i < WIDTH / 2; i++) state.sums[w][i] = 0.0f;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) state.largest[half] = MINUS_INFINITY, state.total[half] = 0.0f;
        float scores[KEYS / 2], earlier[2];
        unsigned int weights[KEYS / 16][4];
        auto finish_scores = [&](int first) {
            if (shape.softcap > 0.0f) {
#pragma unroll
                for (int i = 0; i < KEYS / 2; i++) scores[i] = score_of(scores[i], shape);
            }
            if (first + KEYS - 1 > span.first_seen || first < in_all_windows) {
                mask(scores, first, tile.first_row + row, tile, shape);
            }
            weigh(state, scores, earlier, factor);
        };
        wait_for(shared.keys_full[ring.stage], ring.parity);
        fence_multiplications();
        start_keys(scores, query, shared.keys[ring.stage]);
        wait_for_multiplications<0>();
        settle(scores);
        if (is_first) arrive(shared.keys_empty[ring.stage]);
        finish_scores(span.begin);
        pack(weights, scores);
        int first = span.begin + KEYS;
        for (; first <= span.last_seen; first += KEYS) {
            Ring next = ring;
            next.advance();
            wait_for(shared.keys_full[next.stage], next.parity);
            meet(own_turn, CONSUMER_THREADS);
            fence_multiplications();
            start_keys(scores, query, shared.keys[next.stage]);
            wait_for(shared.values_full[ring.stage], ring.parity);
            start_values(state, weights, shared.values[ring.stage]);
            let_go(others_turn, CONSUMER_THREADS);
            wait_for_multiplications<1>();
            settle(scores);
            if (is_first) arrive(shared.keys_empty[next.stage]);
            finish_scores(first);
            wait_for_multiplications<0>();
            settle_sums(state);
            if (is_first) arrive(shared.values_empty[ring.stage]);
            rescale(state, earlier);
            pack(weights, scores);
            ring = next;
        }
        if (is_first) arrive(shared.query_empty);
        wait_for(shared.values_full[ring.stage], ring.parity);
        if (tile.context < first) clear_values(shared.values[ring.stage], tile.context - (first - KEYS));
        fence_multiplications();
        start_values(state, weights, shared.values[ring.stage]);
        wait_for_multiplications<0>();
        settle_sums(state);
        if (is_first) arrive(shared.values_empty[ring.stage]);
        ring.advance();
        write_rows(state, out, row, kv_head, tile, shape);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attend_wgmma(const __grid_constant__ TensorMap queries, const __grid_constant__ TensorMap keys,
                 const __grid_constant__ TensorMap values, const int* query_starts, const int* context_lens,
                 const int* tables, ELEMENT* out, int* counters, const __grid_constant__ Shape shape) {
    start_next_kernel();
    wait_for_previous_kernel();
    extern __shared__ char memory[];
    // Swizzled rows repeat every 1024 bytes.
    Shared& shared = *reinterpret_cast<Shared*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
    if (threadIdx.x == 0) {
        init_barrier(shared.query_full, 1);
        init_barrier(shared.query_empty, CONSUMERS);
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(shared.keys_full[stage], 1);
            init_barrier(shared.values_full[stage], 1);
            init_barrier(shared.keys_empty[stage], CONSUMERS);
            init_barrier(shared.values_empty[stage], CONSUMERS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x < WARP) produce(shared, queries, keys, values, query_starts, context_lens, tables, counters, shape);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        consume(shared, out, shape);
    }
}
