// paged_attention_decode: paged_attention for the sequences that have one token in the batch, on tensor cores.
//
// Variants: ELEMENT=f16|bf16 HEAD_DIM:GROUP:BLOCK_SIZE:STAGES=64:3:16:3|64:1:48:3|80:20:16:3|96:8:16:3|128:4:32:3|256:4:16:1 CACHE=ELEMENT|e4m3
// Needs: attention.cuh
//
// A block takes one part of a sequence's context for one KV head and up to 8 of its GROUP query heads. Warps take tiles of TILE
// positions in turn. Each warp copies its keys and values into its own ring of STAGES tiles in shared memory, so that
// several tiles are on their way at any time, and multiplies S^T = K Q^T and O^T += V^T P^T, with positions or columns as
// the rows and heads as the 8 columns of the instructions.
//
// The results of the warps are merged in order, and those of the parts too: by the block that finishes last, in the same
// launch. How a context is divided follows from its length alone, so a token has the same bits in every batch.
//
// Where there are more parts than blocks (`dense`), a block takes every gridDim.x-th of a list without gaps; its warps copy
// the next part's tiles while they finish this one. Waiting for other blocks would keep it from that, so that a second
// kernel, merge_decode, merges the parts.
//
// A cache of e4m3 is copied as the bytes that it is and widened in registers to f16, which holds every code exactly; queries
// and weights are f16 then, whatever ELEMENT is. The instructions that load 16-bit fragments give a lane pairs of codes:
// four columns of a key, two columns of two positions of values. Which column is which of a step follows from that.
//
// Limits: reads 2 * HEAD_DIM elements per position and KV head, and nothing twice; bound by memory.

constexpr int WARPS = HEAD_DIM <= 64 ? 8 : 4;
constexpr int THREADS = WARPS * WARP;
constexpr int TILE = 16;
constexpr int HEADS = 8; // columns of the instructions
constexpr int PASSES = (GROUP + HEADS - 1) / HEADS, TAKEN = PASSES == 1 ? GROUP : HEADS; // query heads of a block
// One part for contexts of up to 1024 positions, else parts of at least 512, at most 16 of them.
constexpr int WHOLE_SHIFT = 10, WHOLE_CONTEXT = 1 << WHOLE_SHIFT, PART_SHIFT = 9, PARTS = 16;
constexpr int STEPS = HEAD_DIM / 16;
constexpr int CHUNK = 16 / sizeof(CACHE), CHUNKS = HEAD_DIM / CHUNK; // elements of 16 bytes, and these in a row
static_assert(HEAD_DIM % 16 == 0, "matrix instructions take 16 columns");
static_assert(PARTS < WARP, "a warp merges the parts of a head");

// The keys and values of TILE positions.
struct Stage {
    uint4 keys[TILE * ROW_CHUNKS<CHUNKS>], values[TILE * ROW_CHUNKS<CHUNKS>];
};
struct Factors {
    float of_part[TAKEN][WARP], total[TAKEN];
};
struct Shared {
    Stage ring[WARPS][STAGES];
    float sums[WARPS][TAKEN][HEAD_DIM + 8];
    float largest[WARPS][HEADS], total[WARPS][HEADS];
    Factors factors;
    int of_warp[WARPS];
    int is_last;
};

// One part of one sequence's context.
struct Part {
    int sequence, heads_index; // which group of heads
    int index, count;          // which part of how many
    int begin, end, origin;    // positions, and where the part would begin without a window
    __device__ __forceinline__ int end_tile() const { return (end - origin + TILE - 1) / TILE; }
    // The warp's first tile: tiles keep their warps when a window begins later.
    __device__ __forceinline__ int first_tile() const {
        int first = (begin - origin) / TILE, tile = first / WARPS * WARPS + (int)(threadIdx.x / WARP);
        return tile < first ? tile + WARPS : tile;
    }
};

// Positions of a part, from those that the token sees: a power of two.
__device__ __forceinline__ int part_shift(int visible) {
    if (visible <= WHOLE_CONTEXT) return WHOLE_SHIFT;
    return max(PART_SHIFT, 32 - __clz((visible - 1) / PARTS));
}
__device__ __forceinline__ int first_visible(int context, const Shape& shape) {
    return shape.window > 0 ? max(0, context - shape.window) : 0;
}
__device__ __forceinline__ int num_parts(int context, const Shape& shape) {
    if (context <= 0) return 0;
    int first = first_visible(context, shape), shift = part_shift(context - first);
    return ((context - 1) >> shift) - (first >> shift) + 1;
}
// The positions of a sequence's context, 0 when another kernel takes the sequence.
__device__ __forceinline__ int context_of(int sequence, const int* query_starts, const int* context_lens,
                                          const Shape& shape) {
    int context = context_lens[sequence];
    bool is_other = shape.mixed && query_starts[sequence + 1] - query_starts[sequence] != 1;
    return is_other ? 0 : context;
}
__device__ __forceinline__ Part part_of(int sequence, int index, int heads_index, int context, const Shape& shape) {
    int first = first_visible(context, shape), shift = part_shift(context - first);
    Part part;
    part.sequence = sequence, part.heads_index = heads_index, part.index = index;
    part.count = ((context - 1) >> shift) - (first >> shift) + 1;
    part.origin = ((first >> shift) + index) << shift;
    part.begin = max(first, part.origin);
    part.end = min(context, part.origin + (1 << shift));
    return part;
}

// What one block works on: addresses that follow from a part.
struct Work {
    int first_head, heads, kv_head, token;
};
__device__ __forceinline__ Work work_of(const Part& part, const int* query_starts, const Shape& shape) {
    int in_group = part.heads_index % PASSES * HEADS;
    Work work;
    work.kv_head = part.heads_index / PASSES;
    work.first_head = work.kv_head * GROUP + in_group;
    work.heads = min(TAKEN, GROUP - in_group);
    work.token = shape.mixed ? query_starts[part.sequence] : part.sequence;
    return work;
}

// Where a warp's tiles come from: the next one to copy.
struct Feed {
    const CACHE *keys, *values;
    const int* table;
    int begin, end, origin; // of the part
    int tile, end_tile;
    int slots; // lanes 0..16: of `tile`'s positions, the others of the tile after it, and so on by turns
    bool is_second;
    __device__ __forceinline__ bool is_empty() const { return tile >= end_tile; }
};
// Starts to look up the slots of a warp's tile and its next.
__device__ __forceinline__ int slots_of(int tile, const int* table, int origin, int begin, int end) {
    int lane = threadIdx.x % WARP;
    int position = origin + (tile + lane / TILE * WARPS) * TILE + lane % TILE;
    position = min(max(position, begin), end - 1);
    return table[position / BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE;
}
__device__ __forceinline__ int first_slots_of(const Part& part, const int* tables, const Shape& shape) {
    const int* table = tables + (long long)part.sequence * shape.blocks_per_row;
    return slots_of(part.first_tile(), table, part.origin, part.begin, part.end);
}
__device__ __forceinline__ Feed feed_of(const Part& part, const Work& work, const CACHE* keys, const CACHE* values,
                                        const int* tables, int first_slots, const Shape& shape) {
    Feed feed;
    feed.keys = keys + work.kv_head * shape.head_stride;
    feed.values = values + work.kv_head * shape.head_stride;
    feed.table = tables + (long long)part.sequence * shape.blocks_per_row;
    feed.begin = part.begin, feed.end = part.end, feed.origin = part.origin;
    feed.tile = part.first_tile(), feed.end_tile = part.end_tile();
    feed.slots = first_slots, feed.is_second = false;
    return feed;
}

// Starts to copy the feed's next tile.
__device__ __forceinline__ void copy_tile(Stage& stage, Feed& feed, const Shape& shape) {
    constexpr bool FILLS_PASSES = TILE * CHUNKS % WARP == 0;
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int pass = 0; pass < (TILE * CHUNKS + (int)WARP - 1) / (int)WARP; pass++) {
        int row = (pass * WARP + lane) / CHUNKS, chunk = (pass * WARP + lane) % CHUNKS;
        int from = (FILLS_PASSES ? row : min(row, TILE - 1)) + (feed.is_second ? TILE : 0);
        long long at = __shfl_sync(ALL_LANES, feed.slots, from) * shape.slot_stride + chunk * CHUNK;
        if (!FILLS_PASSES && row >= TILE) break;
        copy_chunk(chunk_at<CHUNKS>(stage.keys, row, chunk), feed.keys + at, true);
        copy_chunk(chunk_at<CHUNKS>(stage.values, row, chunk), feed.values + at, true);
    }
    commit_copies();
    feed.tile += WARPS;
    if (feed.is_second && !feed.is_empty()) {
        feed.slots = slots_of(feed.tile, feed.table, feed.origin, feed.begin, feed.end);
    }
    feed.is_second = !feed.is_second;
}
// A warp's ring: how many tiles it has begun to copy and has used.
struct Ring {
    int copied = 0, used = 0;
    // Copies as many tiles as there is room for; the part's last `later` ones come another time.
    __device__ __forceinline__ void fill(Stage* stages, Feed& feed, const Shape& shape, int later = 0) {
        while (copied - used < STAGES && feed.tile < feed.end_tile - later) {
            copy_tile(stages[copied++ % STAGES], feed, shape);
        }
    }
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

__device__ __forceinline__ void multiply_keys(float (&score)[4], Stage& stage, const unsigned int (&query)[STEPS][2],
                                              int position, const Part& part, const Shape& shape) {
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
    for (int i = 0; i < 4; i++) {
        int at = position + lane / 4 + i / 2 * 8;
        bool is_seen = at >= part.begin && at < part.end;
        score[i] = is_seen ? score_of(product[0][i] + product[1][i], shape) : MINUS_INFINITY;
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

// The queries as columns: lane / 4 is the head. A lane has elements of a step as it has those of keys.
__device__ __forceinline__ void read_query(unsigned int (&query)[STEPS][2], const ELEMENT* qkv, const Work& work, const Shape& shape) {
    int head = threadIdx.x % WARP / 4;
    constexpr int FIRST = HAS_CODES ? 4 : 2, SECOND = HAS_CODES ? 2 : 8;
    const ELEMENT* row = qkv + work.token * shape.row_stride + (work.first_head + head) * HEAD_DIM + threadIdx.x % 4 * FIRST;
#pragma unroll
    for (int i = 0; i < 2 * STEPS; i++) {
        const ELEMENT* pair = row + i / 2 * 16 + i % 2 * SECOND;
        query[i / 2][i % 2] = head < work.heads ? as_factors(*reinterpret_cast<const unsigned int*>(pair), ELEMENT{}) : 0;
    }
}

// The warp's tiles of a part, into shared memory. `feed` goes on to `next` when it has no more.
__device__ __forceinline__ void attend_part(Shared& shared, Ring& ring, Feed& feed, Feed& next, const unsigned int (&query)[STEPS][2],
                                            const Part& part, const Shape& shape) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, column = lane / 4 * COLUMN, pair = lane % 4 * 2;
    Stage* stages = shared.ring[warp];
    State state;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) state.sums[step][i] = 0.0f;
    }
#pragma unroll
    for (int head = 0; head < 2; head++) state.largest[head] = MINUS_INFINITY, state.total[head] = 0.0f;
    bool is_on_next = false;
    int end = part.end_tile();
    for (int tile = part.first_tile();; tile += WARPS) {
        ring.fill(stages, feed, shape);
        if (feed.is_empty() && !is_on_next) {
            feed = next;
            is_on_next = true;
            ring.fill(stages, feed, shape);
        }
        if (tile >= end) break;
        ring.wait();
        Stage& stage = stages[ring.used % STAGES];
        float score[4], factor[2];
        multiply_keys(score, stage, query, part.origin + tile * TILE, part, shape);
        weigh(state, score, factor);
        multiply_values(state, stage, score, factor);
        __syncwarp(); // the stage is free
        ring.used++;
    }
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

// The parts of all sequences in one list: where those of sequence s begin, and its context.
struct List {
    int *starts, *contexts;
};
// The part that comes `item`-th in the list, with groups of heads side by side.
__device__ __forceinline__ Part part_of_list(int item, const List& list, int per_part, const Shape& shape) {
    int at = item / per_part, lane = threadIdx.x % WARP, low = 0, high = shape.num_sequences;
    while (high - low > 1) { // every lane looks at one of 32 places
        int stride = (high - low + (int)WARP - 1) / (int)WARP, place = low + lane * stride;
        bool is_before = place < high && list.starts[place] <= at;
        low += (__popc(__ballot_sync(ALL_LANES, is_before)) - 1) * stride;
        high = min(high, low + stride);
    }
    return part_of(low, at - list.starts[low], item % per_part, list.contexts[low], shape);
}

// Makes the list; its length is starts[num_sequences].
__device__ void list_parts(Shared& shared, const List& list, const int* query_starts, const int* context_lens,
                           const Shape& shape) {
    int each = (shape.num_sequences + THREADS - 1) / THREADS;
    int first = min((int)threadIdx.x * each, shape.num_sequences), end = min(first + each, shape.num_sequences);
    int own = 0;
    for (int s = first; s < end; s++) {
        list.contexts[s] = context_of(s, query_starts, context_lens, shape);
        own += num_parts(list.contexts[s], shape);
    }
    int before = own, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        int other = __shfl_up_sync(ALL_LANES, before, offset);
        if (lane >= offset) before += other;
    }
    if (lane == WARP - 1) shared.of_warp[warp] = before;
    __syncthreads();
    before -= own;
    for (int w = 0; w < warp; w++) before += shared.of_warp[w];
    for (int s = first; s < end; s++) {
        list.starts[s] = before;
        before += num_parts(list.contexts[s], shape);
    }
    if (threadIdx.x == THREADS - 1) list.starts[shape.num_sequences] = before;
    __syncthreads();
}

// Merges the warps' results into `out`, or, as one of several parts, into `sums` and `scales`.
__device__ __forceinline__ void merge_warps(Shared& shared, int heads, bool is_whole, ELEMENT* out, float* sums,
                                            float* scales, long long part_stride) {
    for (int i = threadIdx.x; i < heads * HEAD_DIM; i += THREADS) {
        int head = i / HEAD_DIM, column = i % HEAD_DIM;
        float largest = MINUS_INFINITY, sum = 0.0f, total = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) largest = fmaxf(largest, shared.largest[warp][head]);
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            float factor = power_of_two(shared.largest[warp][head] - largest);
            sum += factor * shared.sums[warp][head][column];
            total += factor * shared.total[warp][head];
        }
        if (is_whole) {
            narrow(sum / total, out[i]);
        } else {
            sums[head * part_stride * HEAD_DIM + column] = sum;
            if (column == 0) *reinterpret_cast<float2*>(scales + head * part_stride * 2) = make_float2(largest, total);
        }
    }
}

// The factors of the parts relative to the largest score of all, and the total, per head: a warp per head.
__device__ __forceinline__ void weigh_parts(Factors& factors, int heads, int count, const float* scales, long long part_stride) {
    int lane = threadIdx.x % WARP;
    for (int head = threadIdx.x / WARP; head < heads; head += WARPS) {
        const float2* scale = reinterpret_cast<const float2*>(scales + head * part_stride * 2);
        float2 own = lane < count ? __ldcg(scale + lane) : make_float2(MINUS_INFINITY, 0.0f);
        float factor = power_of_two(own.x - max_of_warp(own.x));
        factors.of_part[head][lane] = factor;
        float total = sum_of_warp(factor * own.y);
        if (lane == 0) factors.total[head] = total;
    }
}

// Merges what all parts have written. Several sums are read at a time; they are added in the order of the parts.
__device__ __forceinline__ void merge_parts(Factors& factors, int heads, int count, ELEMENT* out, const float* sums,
                                            const float* scales, long long part_stride) {
    constexpr int AT_ONCE = 16;
    weigh_parts(factors, heads, count, scales, part_stride);
    __syncthreads();
    for (int i = threadIdx.x; i < heads * HEAD_DIM; i += THREADS) {
        int head = i / HEAD_DIM;
        const float* from = sums + head * part_stride * HEAD_DIM + i % HEAD_DIM;
        float sum = 0.0f;
        for (int first = 0; first < count; first += AT_ONCE) {
            float value[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                value[k] = first + k < count ? __ldcg(from + (long long)(first + k) * HEAD_DIM) : 0.0f;
            }
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) sum = fmaf(factors.of_part[head][first + k], value[k], sum);
        }
        narrow(sum / factors.total[head], out[i]);
    }
}

// Adds one, after everything that this block wrote and before everything that it reads from here on.
__device__ __forceinline__ int count_up(int* counter) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

// Merges a part's warps, and, without a list, the parts when this is the last to finish. The sums of the warps are in
// shared memory, which is free again when it returns.
__device__ __forceinline__ void finish_part(Shared& shared, const Part& part, const Work& work, ELEMENT* out, float* partial,
                                            int* finished, int per_part, const Shape& shape) {
    ELEMENT* to = out + ((long long)work.token * shape.num_heads + work.first_head) * HEAD_DIM;
    long long row = ((long long)part.sequence * shape.num_heads + work.first_head) * shape.parts_max;
    float* sums = partial + row * HEAD_DIM;
    float* scales = partial + (long long)shape.num_sequences * shape.num_heads * shape.parts_max * HEAD_DIM + row * 2;
    merge_warps(shared, work.heads, part.count == 1, to, sums + (long long)part.index * HEAD_DIM, scales + part.index * 2,
                shape.parts_max);
    __syncthreads();
    if (part.count == 1 || shape.dense) return;
    if (threadIdx.x == 0) {
        int* count = finished + part.sequence * per_part + part.heads_index;
        shared.is_last = count_up(count) == part.count - 1;
        if (shared.is_last) *count = 0;
    }
    __syncthreads();
    if (shared.is_last) merge_parts(shared.factors, work.heads, part.count, to, sums, scales, shape.parts_max);
}

// `partial` holds [S, num_heads, parts_max, HEAD_DIM] sums and then as many pairs of the largest score and the total.
// `finished` counts the parts of each sequence and group of heads; it is zero before and after.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attend_decode(const ELEMENT* qkv, const CACHE* keys, const CACHE* values, const int* query_starts,
                  const int* context_lens, const int* tables, ELEMENT* out, float* partial, int* finished,
                  const __grid_constant__ Shape shape) {
    extern __shared__ __align__(128) char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    List list;
    list.starts = reinterpret_cast<int*>(memory + sizeof(Shared));
    list.contexts = list.starts + shape.num_sequences + 1;
    int per_part = shape.num_kv_heads * PASSES;
    int item = blockIdx.x, items = gridDim.x;
    bool has_part;
    Part part = {};
    // No kernel of a step writes lengths, tables, or keys and values before the last position: they are read, as far as
    // there is room, before this step's keys are there.
    start_next_kernel();
    if (shape.dense) {
        list_parts(shared, list, query_starts, context_lens, shape);
        items = list.starts[shape.num_sequences] * per_part;
        has_part = item < items;
        if (has_part) part = part_of_list(item, list, per_part, shape);
    } else {
        int sequence = item / per_part / shape.parts_max, index = item / per_part % shape.parts_max;
        int context = context_of(sequence, query_starts, context_lens, shape);
        has_part = index < num_parts(context, shape);
        if (has_part) part = part_of(sequence, index, item % per_part, context, shape);
    }
    if (!has_part) {
        wait_for_previous_kernel(); // the next kernel counts on it
        return;
    }
    Work work = work_of(part, query_starts, shape);
    Feed feed = feed_of(part, work, keys, values, tables, first_slots_of(part, tables, shape), shape);
    Ring ring;
    bool has_last = part.index == part.count - 1; // the tile of the last position
    ring.fill(shared.ring[threadIdx.x / WARP], feed, shape, has_last);
    wait_for_previous_kernel();
    unsigned int query[STEPS][2], next_query[STEPS][2];
    read_query(query, qkv, work, shape);
    ring.fill(shared.ring[threadIdx.x / WARP], feed, shape);
    // Slots are looked up two parts ahead, tiles copied and queries read one part ahead.
    int step = gridDim.x, next_slots = 0;
    if (item + step < items) next_slots = first_slots_of(part_of_list(item + step, list, per_part, shape), tables, shape);
    while (true) {
        item += step;
        bool has_next = item < items;
        Part next_part = part;
        Work next_work = work;
        Feed next = feed;
        next.tile = next.end_tile; // empty
        if (has_next) {
            next_part = part_of_list(item, list, per_part, shape);
            next_work = work_of(next_part, query_starts, shape);
            next = feed_of(next_part, next_work, keys, values, tables, next_slots, shape);
            read_query(next_query, qkv, next_work, shape);
        }
        if (item + step < items) next_slots = first_slots_of(part_of_list(item + step, list, per_part, shape), tables, shape);
        attend_part(shared, ring, feed, next, query, part, shape);
        __syncthreads(); // the warps' sums are there
        finish_part(shared, part, work, out, partial, finished, per_part, shape);
        if (!has_next) return;
        part = next_part;
        work = next_work;
#pragma unroll
        for (int i = 0; i < 2 * STEPS; i++) query[i / 2][i % 2] = next_query[i / 2][i % 2];
    }
}

// Merges the parts after a launch with a list: a block per sequence and group of heads.
extern "C" __global__ void __launch_bounds__(THREADS)
    merge_decode(const int* query_starts, const int* context_lens, ELEMENT* out, const float* partial,
                 const __grid_constant__ Shape shape) {
    __shared__ Factors factors;
    start_next_kernel();
    wait_for_previous_kernel();
    int per_part = shape.num_kv_heads * PASSES;
    int sequence = blockIdx.x / per_part, count = num_parts(context_of(sequence, query_starts, context_lens, shape), shape);
    if (count <= 1) return;
    Part part;
    part.sequence = sequence, part.heads_index = blockIdx.x % per_part;
    Work work = work_of(part, query_starts, shape);
    long long row = ((long long)sequence * shape.num_heads + work.first_head) * shape.parts_max;
    const float* scales = partial + (long long)shape.num_sequences * shape.num_heads * shape.parts_max * HEAD_DIM + row * 2;
    ELEMENT* to = out + ((long long)work.token * shape.num_heads + work.first_head) * HEAD_DIM;
    merge_parts(factors, work.heads, count, to, partial + row * HEAD_DIM, scales, shape.parts_max);
}
