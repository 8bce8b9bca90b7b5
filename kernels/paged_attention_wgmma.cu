// paged_attention_wgmma: what paged_attention_tiles computes, with the asynchronous matrix instructions of Hopper.
//
// Variants: ELEMENT=f16|bf16 HEAD_DIM:GROUP:CONSUMERS:VALUE_STAGES:BLOCK_SIZE:COPIED:CAPPED=64:3:2:2:16:16:0|64:1:2:2:16:16:1|128:4:2:2:16:16:0|128:4:2:2:8:8:0|128:1:2:2:24:8:1|256:4:2:2:16:16:0|256:4:2:2:128:64:1|128:128:2:2:256:128:0
// Targets: sm_90a
// Needs: attention.cuh wgmma.cuh attention_copies.cuh
//
// As many blocks as run at a time take items as they get to them; `counters` are zero before and after. In each, queries, keys
// and values are copied into shared memory with the bulk copy engine, block of the cache by block, some tiles ahead: queries and
// keys by one warp, values by another. CONSUMERS warpgroups of 64 rows each compute. A warpgroup multiplies the next keys, then the
// values of the tile before; beside the latter it turns scores into weights. The two take turns with the tensor cores, so that one
// computes exponentials while the other multiplies.
//
// A row's result follows from its query and its context: a tile in which it sees nothing leaves it as it is.
//
// Limits: tensor cores and, for a head of 64, exponentials. Blocks of the cache have a multiple of 8 positions.

constexpr int THREADS = CONSUMER_THREADS + 128; // and those that copy
constexpr int TOKENS = 64 * CONSUMERS / GROUP; // of a tile
constexpr int ROWS = TOKENS * GROUP; // at most 64 per warpgroup; the rest of the last one is idle
static_assert(ROWS <= 64 * CONSUMERS, "a warpgroup takes 64 rows");
constexpr int QUERY_PANEL = 64 * CONSUMERS * 128; // bytes
constexpr int WIDTH = HEAD_DIM < 128 ? HEAD_DIM : 128; // columns of values that one instruction takes
constexpr int WIDTHS = HEAD_DIM / WIDTH;
// All threads cannot have as many registers as those need that compute.
constexpr int COPYING_REGISTERS = 56, REGISTERS = 224;

struct Queries {
    char query[ITEMS][PANELS * QUERY_PANEL];
};
struct Shared : Queries, Copied {
    unsigned long long query_full[ITEMS];
    __device__ __forceinline__ void init() {
        for (unsigned long long& full : query_full) init_barrier(full, 1);
        Copied::init(CONSUMERS + 1, CONSUMERS); // queries: and who copies values
    }
};
// What a thread keeps: rows lane / 4 and lane / 4 + 8 of its warp's 16, a quarter of the columns. Weights have a total for each
// quarter of the tiles' keys, which are added in the end: the additions wait less for each other.
constexpr int QUARTERS = 4;
struct State {
    float sums[WIDTHS][WIDTH / 2];
    float largest[2], total[2][QUARTERS];
};

__device__ __forceinline__ void start_keys(float (&scores)[KEYS / 2], unsigned long long query, unsigned long long keys) {
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
        int panel = step / 4, within = step % 4 * 32; // bytes
        multiply_shared(scores, query + (panel * QUERY_PANEL + within >> 4), keys + (panel * CONTEXT_PANEL + within >> 4), step > 0);
    }
    commit_multiplications();
}
__device__ __forceinline__ void start_values(State& state, const unsigned int (&weights)[KEYS / 16][4], unsigned long long values) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
#pragma unroll
        for (int w = 0; w < WIDTHS; w++) {
            multiply_weights(state.sums[w], weights[step],
                             values + (w * (WIDTH / 64) * CONTEXT_PANEL + step * 16 * 128 >> 4));
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
#pragma unroll
        for (int quarter = 0; quarter < QUARTERS; quarter++) {
            float total = 0.0f;
#pragma unroll
            for (int n = quarter * (KEYS / 8 / QUARTERS); n < (quarter + 1) * (KEYS / 8 / QUARTERS); n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& score = scores[4 * n + 2 * half + i];
                    score = power_of_two(fmaf(score, factor, -base));
                    total += score;
                }
            }
            state.total[half][quarter] = fmaf(state.total[half][quarter], earlier[half], total);
        }
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
    for (int i = 0; i < KEYS / 4; i++) {
        weights[i / 4][i % 4] = packed(scores[2 * i], scores[2 * i + 1], ELEMENT{});
    }
}
__device__ __forceinline__ float total_of(const State& state, int half) {
    const float(&total)[QUARTERS] = state.total[half];
    return (total[0] + total[1]) + (total[2] + total[3]);
}
// What the source has before this is computed before what it has after. The compiler moves the computation of weights behind the
// wait for products otherwise, which would be finished beside it. A total is never negative.
__device__ __forceinline__ void keep_before(float (&scores)[KEYS / 2], const State& state) {
    settle(scores);
    asm volatile("{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p nanosleep.u32 1;\n}" ::"f"(total_of(state, 0) + total_of(state, 1))
                 : "memory");
}
__device__ __forceinline__ void write_rows(State& state, ELEMENT* out, int row, int kv_head, const Tile& tile, const Shape& shape) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = total_of(state, half);
        total += __shfl_xor_sync(ALL_LANES, total, 1);
        total += __shfl_xor_sync(ALL_LANES, total, 2);
        int at = tile.first_row + row + 8 * half;
        bool exists = row + 8 * half < tile.num_rows;
        long long first = ((long long)(tile.first_token + at / GROUP) * shape.num_heads + kv_head * GROUP + at % GROUP) * HEAD_DIM;
        float inverse = 1.0f / total;
        // A pair of lanes exchanges halves, so that what a row gets from four lanes are whole sectors of memory.
        int odd = threadIdx.x % 2;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n += 2) {
            unsigned int own[2];
#pragma unroll
            for (int next = 0; next < 2; next++) {
                const float* two = &state.sums[(n + next) * 8 / WIDTH][(n + next) * 8 % WIDTH / 2 + 2 * half];
                own[next] = packed(two[0] * inverse, two[1] * inverse, ELEMENT{});
            }
            unsigned int got = __shfl_xor_sync(ALL_LANES, odd ? own[0] : own[1], 1);
            if (exists) {
                *reinterpret_cast<uint2*>(out + first + (n + odd) * 8 + threadIdx.x % 4 / 2 * 4) =
                    odd ? make_uint2(got, own[1]) : make_uint2(own[0], got);
            }
        }
    }
}

// Values of positions from `count` on become zeros: what the cache holds there may be no number. For all threads that compute.
__device__ __forceinline__ void clear_values(char* values, int count, int thread) {
#pragma unroll 1
    for (int panel = 0; panel < PANELS; panel++, values += CONTEXT_PANEL) {
        for (int i = count * 8 + thread; i < KEYS * 8; i += CONSUMER_THREADS) {
            reinterpret_cast<uint4*>(values)[i] = make_uint4(0, 0, 0, 0);
        }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); // the copy engine and warpgroups see it
}

__device__ void consume(Shared& shared, ELEMENT* out, const Shape& shape) {
    int group = uniform(threadIdx.x / 128) - 1, lane = threadIdx.x % WARP;
    int row = group * 64 + threadIdx.x % 128 / WARP * 16 + lane / 4; // in the tile
    bool is_first = threadIdx.x % 128 == 0;
    int own_turn = 1 + group, others_turn = 2 - group;
    if (group == 1) let_go(others_turn, CONSUMER_THREADS);
    float factor = CAPPED ? 1.0f : shape.scale * LOG2_E;
    Ring<ITEMS> place;
    Ring<KEY_STAGES> keys;
    Ring<VALUE_STAGES> values;
    // What is multiplied, of the first stages.
    unsigned long long first_query = operand(shared.query[0] + group * 64 * 128, 16), first_keys = operand(shared.keys[0], 16),
                       first_values = operand(shared.values[0], CONTEXT_PANEL);
    auto of_keys = [&] { return first_keys + (keys.stage * PANELS * CONTEXT_PANEL >> 4); };
    auto of_values = [&] { return first_values + (values.stage * PANELS * CONTEXT_PANEL >> 4); };
    for (;; place.advance()) {
        wait_for(shared.query_full[place.stage], place.parity);
        unsigned long long query = first_query + (place.stage * PANELS * QUERY_PANEL >> 4);
        Tile tile = shared.item[place.stage].tile;
        int kv_head = shared.item[place.stage].kv_head;
        if ((int)uniform(tile.sequence) < 0) break;
        Span span = span_of(tile, shape);
        span.begin = uniform(span.begin), span.last_seen = uniform(span.last_seen);
        int in_all_windows = shape.window > 0 ? span.last_seen + 1 - shape.window : 0;
        State state;
        settle_sums(state);
#pragma unroll
        for (int w = 0; w < WIDTHS; w++) {
#pragma unroll
            for (int i = 0; i < WIDTH / 2; i++) state.sums[w][i] = 0.0f;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            state.largest[half] = MINUS_INFINITY;
#pragma unroll
            for (float& total : state.total[half]) total = 0.0f;
        }
        float scores[KEYS / 2], earlier[2];
        unsigned int weights[KEYS / 16][4];
        auto finish_scores = [&](int first) {
            if (CAPPED) {
#pragma unroll
                for (int i = 0; i < KEYS / 2; i++) scores[i] = score_of(scores[i], shape);
            }
            if (first + KEYS - 1 > span.first_seen || first < in_all_windows) {
                mask(scores, first, tile.first_row + row, tile, shape);
            }
            weigh(state, scores, earlier, factor);
        };
        wait_for(shared.keys_full[keys.stage], keys.parity);
        fence_multiplications();
        start_keys(scores, query, of_keys());
        wait_for_multiplications<0>();
        settle(scores);
        if (is_first) arrive(shared.keys_empty[keys.stage]);
        keys.advance();
        finish_scores(span.begin);
        pack(weights, scores);
        int first = span.begin + KEYS;
        for (; first <= span.last_seen; first += KEYS) {
            wait_for(shared.keys_full[keys.stage], keys.parity);
            meet(own_turn, CONSUMER_THREADS);
            fence_multiplications();
            start_keys(scores, query, of_keys());
            wait_for(shared.values_full[values.stage], values.parity);
            start_values(state, weights, of_values());
            let_go(others_turn, CONSUMER_THREADS);
            wait_for_multiplications<1>();
            settle(scores);
            if (is_first) arrive(shared.keys_empty[keys.stage]);
            keys.advance();
            finish_scores(first);
            keep_before(scores, state);
            wait_for_multiplications<0>();
            settle_sums(state);
            if (is_first) arrive(shared.values_empty[values.stage]);
            values.advance();
            rescale(state, earlier);
            pack(weights, scores);
        }
        if (is_first) arrive(shared.item_empty[place.stage]);
        wait_for(shared.values_full[values.stage], values.parity);
        if (tile.context < first) {
            clear_values(shared.values[values.stage], tile.context - (first - KEYS), threadIdx.x - 128);
            meet(3, CONSUMER_THREADS);
        }
        fence_multiplications();
        start_values(state, weights, of_values());
        wait_for_multiplications<0>();
        settle_sums(state);
        if (is_first) arrive(shared.values_empty[values.stage]);
        values.advance();
        write_rows(state, out, row, kv_head, tile, shape);
    }
}

__device__ __forceinline__ void copy_queries(void* to, const TensorMap& map, int column, int kv_head, int token,
                                             unsigned long long& barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, 0, %3, %4}], [%5];" ::
                     "r"(shared_address(to)), "l"(&map), "r"(column), "r"(kv_head), "r"(token), "r"(shared_address(&barrier))
                 : "memory");
}

constexpr int HEADS_AT_ONCE = 8;

// Who copies queries and keys, and who copies values.
struct Producer : Copier {
    Shared& room; // of queries, too
    const TensorMap& queries;

    // A few heads at a time, so that their keys and values stay in the cache; the last tiles of a long context are the longest work
    // and go first. Without rows, nothing is to be done.
    __device__ __forceinline__ Item item_of(int index) const {
        int tiles = shape.num_tokens / TOKENS + shape.num_sequences;
        int first_head = index / (tiles * HEADS_AT_ONCE) * HEADS_AT_ONCE;
        int heads = min(HEADS_AT_ONCE, shape.num_kv_heads - first_head), within = index - first_head * tiles;
        Item item;
        item.kv_head = first_head + within % heads;
        item.tile = tile_of<ROWS>(tiles - 1 - within / heads, query_starts, context_lens, shape);
        return item;
    }
    __device__ __forceinline__ void send_queries(const Item& item) {
        wait_for(shared.item_empty[place.stage], place.parity ^ 1);
        if (is_elected()) {
            const Tile& tile = item.tile;
            unsigned long long& full = room.query_full[place.stage];
            shared.item[place.stage] = item;
            arrive(shared.announced[place.stage]);
            expect_bytes(full, PANELS * ROWS * 128);
#pragma unroll
            for (int panel = 0; panel < PANELS; panel++) {
                copy_queries(room.query[place.stage] + panel * QUERY_PANEL, queries, panel * 64, item.kv_head,
                             tile.first_token + tile.first_row / GROUP, full);
            }
        }
        __syncwarp();
        place.advance();
    }
    // Behind the last item.
    __device__ __forceinline__ void send_end() {
        wait_for(shared.item_empty[place.stage], place.parity ^ 1);
        if (is_elected()) {
            shared.item[place.stage].tile.sequence = -1;
            arrive(shared.announced[place.stage]);
            arrive(room.query_full[place.stage]);
        }
    }
    // Queries and keys, by one warp. It takes the next item with this one's last keys, and finds it while they are under way.
    __device__ __forceinline__ void run() {
        int items = (shape.num_tokens / TOKENS + shape.num_sequences) * shape.num_kv_heads;
        int taken = 0;
        for (int index = blockIdx.x; index < items; index = item_of_taken(taken)) {
            Item item = item_of(index);
            if (item.tile.num_rows == 0) {
                taken = take();
                continue;
            }
            Progress at = start_of(item);
            int last_seen = span_of(item.tile, shape).last_seen;
            send_queries(item);
            for (; at.first <= last_seen; at.first += KEYS) {
                int later = block_at(at.first + 2 * KEYS, item.tile);
                if (at.first + KEYS > last_seen) taken = take();
                copy_keys(slot_of(at.block, at.first), at.first, item);
                at.block = at.next_block, at.next_block = later;
            }
        }
        send_end();
        leave_counters();
    }
    // Values, by another.
    __device__ __forceinline__ void run_values() {
        for (;; place.advance()) {
            wait_for(shared.announced[place.stage], place.parity);
            Item item = shared.item[place.stage];
            __syncwarp();
            if (is_elected()) arrive(shared.item_empty[place.stage]);
            if (item.tile.sequence < 0) break;
            int last_seen = span_of(item.tile, shape).last_seen;
            for (Progress at = start_of(item); at.first <= last_seen; at.first += KEYS) {
                int later = block_at(at.first + 2 * KEYS, item.tile);
                copy_values(slot_of(at.block, at.first), at.first, item);
                at.block = at.next_block, at.next_block = later;
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attend_wgmma(const __grid_constant__ TensorMap queries, const __grid_constant__ TensorMap keys,
                 const __grid_constant__ TensorMap values, const int* query_starts, const int* context_lens,
                 const int* tables, ELEMENT* out, int* counters, const __grid_constant__ Shape shape) {
    wait_for_previous_kernel();
    start_next_kernel(); // which may count on what came before
    extern __shared__ char memory[];
    // Swizzled rows repeat every 1024 bytes.
    Shared& shared = *reinterpret_cast<Shared*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
    if (threadIdx.x == 0) shared.init();
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPYING_REGISTERS));
        int warp = uniform(threadIdx.x / WARP);
        Producer producer = {{shared, keys, values, query_starts, context_lens, tables, counters, shape}, shared, queries};
        if (warp == 0) producer.run();
        if (warp == 1) producer.run_values();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
        consume(shared, out, shape);
    }
}
