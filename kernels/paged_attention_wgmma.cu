// paged_attention_wgmma: what paged_attention_tiles computes, with the asynchronous matrix instructions of Hopper.
//
// Variants: ELEMENT=f16|bf16 HEAD_DIM:GROUP:CONSUMERS:VALUE_STAGES=64:3:2:2|64:1:2:2|128:4:2:2|128:1:2:2|256:4:2:2|64:3:1:3|64:1:1:3|128:4:1:1|128:4:1:2|128:1:1:1|256:4:1:2
// Targets: sm_90a
// Needs: attention.cuh wgmma.cuh attention_copies.cuh
//
// As many blocks as run at a time take items as they get to them; `counters` are zero before and after. In each, one warp
// copies queries, keys and values into shared memory with the bulk copy engine, block of the cache by block, some tiles
// ahead; CONSUMERS warpgroups of 64 rows each compute. A warpgroup multiplies the next keys while it turns scores into weights.
//
// With 2 consumers an item is a tile of ROWS rows, and the two take turns with the tensor cores, so that one computes
// exponentials while the other multiplies. With 1 it is the only token of a sequence and a KV head: few rows, and all the
// time goes into reading the context. So the copying warp finds the next item while it copies this one, goes on to it while
// this one is computed, and begins before the kernel before has ended. Both give a token the same bits.
//
// A row's result follows from its query and its context: a tile in which it sees nothing leaves it as it is.
//
// Limits: tensor cores and, for a head of 64, exponentials; with 1 consumer memory. Blocks of the cache have a multiple of 8
// positions. With 1 consumer GROUP is at most 64.

constexpr int WIDTH = HEAD_DIM < 128 ? HEAD_DIM : 128; // columns of values that one instruction takes
constexpr int WIDTHS = HEAD_DIM / WIDTH;
// Of a thread's two rows, 8 apart, those that exist.
constexpr int HALVES = CONSUMERS == 1 && GROUP <= 8 ? 1 : 2;
// Blocks of a multiprocessor that have registers, and, where all threads cannot have as many as they need, those of threads that
// copy and of those that compute.
constexpr int RESIDENT = CONSUMERS == 1 && HEAD_DIM <= 128 ? 2 : 1;
constexpr bool MOVES_REGISTERS = THREADS * RESIDENT > 256;
constexpr int COPYING_REGISTERS = CONSUMERS == 1 ? 56 : 24, REGISTERS = CONSUMERS == 1 ? 200 : 240;

// What a thread keeps: rows lane / 4 and lane / 4 + 8 of its warp's 16, a quarter of the columns.
struct State {
    float sums[WIDTHS][WIDTH / 2];
    float largest[2], total[2];
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
    for (int half = 0; half < HALVES; half++) {
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
    for (int half = 0; half < HALVES; half++) {
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
        for (int i = 0; i < WIDTH / 2; i++) {
            if (i / 2 % 2 < HALVES) state.sums[w][i] *= earlier[i / 2 % 2];
        }
    }
}
__device__ __forceinline__ void pack(unsigned int (&weights)[KEYS / 16][4], const float (&scores)[KEYS / 2]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) {
        weights[i / 4][i % 4] = i % 2 < HALVES ? packed(scores[2 * i], scores[2 * i + 1], ELEMENT{}) : 0;
    }
}
__device__ __forceinline__ void clear(unsigned int (&weights)[KEYS / 16][4]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) weights[i / 4][i % 4] = 0;
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
    for (int half = 0; half < HALVES; half++) {
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
    int group = uniform(threadIdx.x / 128) - 1, lane = threadIdx.x % WARP;
    int row = group * 64 + threadIdx.x % 128 / WARP * 16 + lane / 4; // in the tile
    bool is_first = threadIdx.x % 128 == 0;
    int own_turn = 1 + group, others_turn = 2 - group;
    if (group == 1) let_go(others_turn, CONSUMER_THREADS);
    float factor = shape.softcap > 0.0f ? 1.0f : shape.scale * LOG2_E;
    // Warps without rows multiply with the others, and have no weights.
    bool has_rows = CONSUMERS > 1 || threadIdx.x % 128 / WARP * 16 < GROUP;
    Ring<QUERIES> place;
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
        for (int half = 0; half < 2; half++) state.largest[half] = MINUS_INFINITY, state.total[half] = 0.0f;
        float scores[KEYS / 2], earlier[2];
        unsigned int weights[KEYS / 16][4];
        if constexpr (CONSUMERS == 1) clear(weights);
        auto finish_scores = [&](int first) {
            if (shape.softcap > 0.0f) {
#pragma unroll
                for (int i = 0; i < KEYS / 2; i++) {
                    if (i / 2 % 2 < HALVES) scores[i] = score_of(scores[i], shape);
                }
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
        if (has_rows) {
            finish_scores(span.begin);
            pack(weights, scores);
        }
        int first = span.begin + KEYS;
        for (; first <= span.last_seen; first += KEYS) {
            wait_for(shared.keys_full[keys.stage], keys.parity);
            if constexpr (CONSUMERS > 1) meet(own_turn, CONSUMER_THREADS);
            fence_multiplications();
            start_keys(scores, query, of_keys());
            wait_for(shared.values_full[values.stage], values.parity);
            start_values(state, weights, of_values());
            if constexpr (CONSUMERS > 1) let_go(others_turn, CONSUMER_THREADS);
            wait_for_multiplications<1>();
            settle(scores);
            if (is_first) arrive(shared.keys_empty[keys.stage]);
            keys.advance();
            if (has_rows) finish_scores(first);
            wait_for_multiplications<0>();
            settle_sums(state);
            if (is_first) arrive(shared.values_empty[values.stage]);
            values.advance();
            if (has_rows) {
                rescale(state, earlier);
                pack(weights, scores);
            }
        }
        if (is_first) arrive(shared.query_empty[place.stage]);
        wait_for(shared.values_full[values.stage], values.parity);
        if (tile.context < first) clear_values(shared.values[values.stage], tile.context - (first - KEYS));
        fence_multiplications();
        start_values(state, weights, of_values());
        wait_for_multiplications<0>();
        settle_sums(state);
        if (is_first) arrive(shared.values_empty[values.stage]);
        values.advance();
        write_rows(state, out, row, kv_head, tile, shape);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    attend_wgmma(const __grid_constant__ TensorMap queries, const __grid_constant__ TensorMap keys,
                 const __grid_constant__ TensorMap values, const int* query_starts, const int* context_lens,
                 const int* tables, ELEMENT* out, int* counters, const __grid_constant__ Shape shape) {
#if CONSUMERS > 1
    wait_for_previous_kernel();
    start_next_kernel(); // which may count on what came before
#endif
    extern __shared__ char memory[];
    // Swizzled rows repeat every 1024 bytes.
    Shared& shared = *reinterpret_cast<Shared*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < QUERIES; stage++) {
            init_barrier(shared.query_full[stage], 1);
            init_barrier(shared.query_empty[stage], CONSUMERS);
        }
        for (int stage = 0; stage < KEY_STAGES; stage++) {
            init_barrier(shared.keys_full[stage], 1);
            init_barrier(shared.keys_empty[stage], CONSUMERS);
        }
        for (int stage = 0; stage < VALUE_STAGES; stage++) {
            init_barrier(shared.values_full[stage], 1);
            init_barrier(shared.values_empty[stage], CONSUMERS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        if constexpr (MOVES_REGISTERS) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPYING_REGISTERS));
        if (threadIdx.x < WARP) {
            Producer{shared, queries, keys, values, query_starts, context_lens, tables, counters, shape}.run();
        }
    } else {
        if constexpr (MOVES_REGISTERS) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
        consume(shared, out, shape);
    }
}
