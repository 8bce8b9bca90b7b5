// paged_attention_decode: paged_attention for the sequences that have one token in the batch, on tensor cores.
//
// Variants: ELEMENT=f16|bf16 HEAD_DIM:GROUP:BLOCK_SIZE:STAGES:FRESH:CLUSTERED=64:3:16:3:1:1|64:1:48:3:0:0|80:20:16:3:1:0|96:8:16:3:0:1|128:4:32:3:1:0|256:4:16:1:1:1 CACHE=ELEMENT|e4m3
// Needs: attention.cuh heads.cuh decode_parts.cuh fresh_rows.cuh
//
// A block takes one part of a sequence's context for one KV head and up to 8 of its GROUP query heads. Warps take tiles of TILE
// positions in turn. Each warp copies its keys and values into its own ring of STAGES tiles in shared memory, so that
// several tiles are on their way at any time, and multiplies S^T = K Q^T and O^T += V^T P^T, with positions or columns as
// the rows and heads as the 8 columns of the instructions.
//
// The results of the warps are merged in order, and those of the parts too: by the block that finishes last, in the same
// launch. Where there are far fewer parts than blocks (CLUSTERED), all blocks of a cluster share a context, and read each
// other's results in shared memory.
//
// Where there are more parts than blocks (`dense`), a block takes every gridDim.x-th of a list without gaps; its warps copy
// the next part's tiles while they finish this one. Waiting for other blocks would keep it from that, so that a second
// kernel, merge_decode, merges the parts.
//
// A cache of e4m3 is copied as the bytes that it is and widened in registers to f16, which holds every code exactly; queries
// and weights are f16 then, whatever ELEMENT is. The instructions that load 16-bit fragments give a lane pairs of codes:
// four columns of a key, two columns of two positions of values. Which column is which of a step follows from that.
//
// With FRESH, which is for blocks that have one part each, the rows come as the projection left them: before a block attends
// to its part, it normalises and rotates the part's queries, which wait in `out` for that, and, if it has the last position,
// stores its key and value. So that is no kernel of its own, whose start takes longer than its work.
//
// Limits: reads 2 * HEAD_DIM elements per position and KV head, and nothing twice; bound by memory.

constexpr int STEPS = HEAD_DIM / 16;
constexpr int CHUNK = 16 / sizeof(CACHE), CHUNKS = HEAD_DIM / CHUNK; // elements of 16 bytes, and these in a row
static_assert(HEAD_DIM % 16 == 0, "matrix instructions take 16 columns");
constexpr int CLUSTER_MAX = 8; // blocks
static_assert(PARTS < WARP, "a warp merges the parts of a head");

// The keys and values of TILE positions.
struct Stage {
    uint4 keys[TILE * ROW_CHUNKS<CHUNKS>], values[TILE * ROW_CHUNKS<CHUNKS>];
};
struct PartFactors {
    float of_part[TAKEN][WARP], total[TAKEN];
};
struct Shared {
    Stage ring[WARPS][STAGES];
    float sums[WARPS][TAKEN][HEAD_DIM + 8];
    float largest[WARPS][HEADS], total[WARPS][HEADS];
    PartFactors factors;
    int of_warp[WARPS];
    int is_last;
};

// Where a warp's tiles come from: the next one to copy.
struct Feed {
    const CACHE *keys, *values;
    const int* table;
    int begin, end, origin; // of the part
    int tile, end_tile;
    int blocks, index; // lane l: the block of the l-th tile of 32, of which `index` are used
    __device__ __forceinline__ bool is_empty() const { return tile >= end_tile; }
};
// Tiles do not cross blocks.
constexpr bool TILES_FIT = BLOCK_SIZE % TILE == 0;
// Starts to look up the blocks of the warp's next 32 tiles.
__device__ __forceinline__ int blocks_of(int tile, int end_tile, const int* table, int origin) {
    int at = origin + min(tile + (int)(threadIdx.x % WARP) * sharing_warps(), end_tile - 1) * TILE;
    return TILES_FIT ? table[at / BLOCK_SIZE] : 0;
}
__device__ __forceinline__ int first_blocks_of(const Part& part, const int* tables, const Shape& shape) {
    const int* table = tables + (long long)part.sequence * shape.blocks_per_row;
    return blocks_of(part.first_tile(), part.end_tile(), table, part.origin);
}
__device__ __forceinline__ Feed feed_of(const Part& part, const Work& work, const CACHE* keys, const CACHE* values,
                                        const int* tables, int first_blocks, const Shape& shape) {
    Feed feed;
    feed.keys = keys + work.kv_head * shape.head_stride;
    feed.values = values + work.kv_head * shape.head_stride;
    feed.table = tables + (long long)part.sequence * shape.blocks_per_row;
    feed.begin = part.begin, feed.end = part.end, feed.origin = part.origin;
    feed.tile = part.first_tile(), feed.end_tile = part.end_tile();
    feed.blocks = first_blocks, feed.index = 0;
    return feed;
}

// Starts to copy the feed's next tile. Rows before and after what the token sees are copies of the first and the last that it
// sees: what else is in the cache may be no numbers.
__device__ __forceinline__ void copy_tile(Stage& stage, Feed& feed, const Shape& shape) {
    constexpr bool FILLS_PASSES = TILE * CHUNKS % WARP == 0;
    int lane = threadIdx.x % WARP, start = feed.origin + feed.tile * TILE;
    if (feed.index == WARP) {
        feed.blocks = blocks_of(feed.tile, feed.end_tile, feed.table, feed.origin);
        feed.index = 0;
    }
    int first_slot = __shfl_sync(ALL_LANES, feed.blocks, feed.index) * BLOCK_SIZE + start % BLOCK_SIZE;
    int first_row = feed.begin - start, last_row = feed.end - 1 - start;
#pragma unroll
    for (int pass = 0; pass < (TILE * CHUNKS + (int)WARP - 1) / (int)WARP; pass++) {
        int row = (pass * WARP + lane) / CHUNKS, chunk = (pass * WARP + lane) % CHUNKS;
        if (!FILLS_PASSES && row >= TILE) break;
        int from = min(max(row, first_row), last_row);
        int slot = first_slot + from;
        if (!TILES_FIT) slot = feed.table[(start + from) / BLOCK_SIZE] * BLOCK_SIZE + (start + from) % BLOCK_SIZE;
        long long at = slot * shape.slot_stride + chunk * CHUNK;
        copy_chunk(chunk_at<CHUNKS>(stage.keys, row, chunk), feed.keys + at, true);
        copy_chunk(chunk_at<CHUNKS>(stage.values, row, chunk), feed.values + at, true);
    }
    commit_copies();
    feed.tile += sharing_warps();
    feed.index++;
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
__device__ __forceinline__ void read_query(unsigned int (&query)[STEPS][2], const ELEMENT* queries, long long row_stride,
                                           const Work& work) {
    int head = threadIdx.x % WARP / 4;
    constexpr int FIRST = HAS_CODES ? 4 : 2, SECOND = HAS_CODES ? 2 : 8;
    const ELEMENT* row = queries + work.token * row_stride + (work.first_head + head) * HEAD_DIM + threadIdx.x % 4 * FIRST;
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
    for (int tile = part.first_tile();; tile += sharing_warps()) {
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

// A column of a head, merged from the block's warps, of which perhaps none had a tile.
struct Merged {
    float largest, total, sum;
};
__device__ __forceinline__ Merged merged_warps(const Shared& shared, int head, int column) {
    Merged merged = {MINUS_INFINITY, 0.0f, 0.0f};
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) merged.largest = fmaxf(merged.largest, shared.largest[warp][head]);
    float common = CLUSTERED && merged.largest == MINUS_INFINITY ? 0.0f : merged.largest;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
        float factor = power_of_two(shared.largest[warp][head] - common);
        merged.sum += factor * shared.sums[warp][head][column];
        merged.total += factor * shared.total[warp][head];
    }
    return merged;
}

// All blocks of the cluster meet; what they wrote to shared memory before is there.
__device__ __forceinline__ void meet_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#else
    __trap(); // there are no clusters
#endif
}
// A number in another block's shared memory, where this block has `own`.
__device__ __forceinline__ float of_block(const float& own, int rank) {
    float value = 0.0f;
#if __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(shared_address_of(rank, &own)));
#endif
    return value;
}

// Merges the warps of each block, then the blocks of the cluster in their order; each block writes a share of the result.
__device__ __forceinline__ void merge_cluster(Shared& shared, int heads, ELEMENT* out) {
    int blocks = cluster_blocks(), rank = cluster_rank();
    for (int i = threadIdx.x; i < heads * HEAD_DIM; i += THREADS) {
        int head = i / HEAD_DIM, column = i % HEAD_DIM;
        Merged merged = merged_warps(shared, head, column);
        shared.sums[0][head][column] = merged.sum; // which this thread alone has read
        if (column == 0) shared.factors.of_part[head][0] = merged.largest, shared.factors.total[head] = merged.total;
    }
    meet_cluster();
    for (int i = rank * THREADS + threadIdx.x; i < heads * HEAD_DIM; i += blocks * THREADS) {
        int head = i / HEAD_DIM, column = i % HEAD_DIM;
        Merged of[CLUSTER_MAX];
        float largest = MINUS_INFINITY, sum = 0.0f, total = 0.0f;
#pragma unroll
        for (int r = 0; r < CLUSTER_MAX; r++) {
            of[r].largest = r < blocks ? of_block(shared.factors.of_part[head][0], r) : MINUS_INFINITY;
            of[r].total = r < blocks ? of_block(shared.factors.total[head], r) : 0.0f;
            of[r].sum = r < blocks ? of_block(shared.sums[0][head][column], r) : 0.0f;
            largest = fmaxf(largest, of[r].largest);
        }
#pragma unroll
        for (int r = 0; r < CLUSTER_MAX; r++) {
            float factor = power_of_two(of[r].largest - largest);
            sum = fmaf(factor, of[r].sum, sum);
            total = fmaf(factor, of[r].total, total);
        }
        narrow(sum / total, out[i]);
    }
    meet_cluster(); // nobody ends while others read
}

// Merges the warps' results into `out`, or, as one of several parts, into `sums` and `scales`.
__device__ __forceinline__ void merge_warps(Shared& shared, int heads, bool is_whole, ELEMENT* out, float* sums,
                                            float* scales, long long part_stride) {
    for (int i = threadIdx.x; i < heads * HEAD_DIM; i += THREADS) {
        int head = i / HEAD_DIM, column = i % HEAD_DIM;
        Merged merged = merged_warps(shared, head, column);
        if (is_whole) {
            narrow(merged.sum / merged.total, out[i]);
        } else {
            sums[head * part_stride * HEAD_DIM + column] = merged.sum;
            if (column == 0) {
                *reinterpret_cast<float2*>(scales + head * part_stride * 2) = make_float2(merged.largest, merged.total);
            }
        }
    }
}

// The factors of the parts relative to the largest score of all, and the total, per head: a warp per head.
__device__ __forceinline__ void weigh_parts(PartFactors& factors, int heads, int count, const float* scales, long long part_stride) {
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
__device__ __forceinline__ void merge_parts(PartFactors& factors, int heads, int count, ELEMENT* out, const float* sums,
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
    if (CLUSTERED) {
        merge_cluster(shared, work.heads, to);
        return;
    }
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
    attend_decode(const ELEMENT* qkv, CACHE* keys, CACHE* values, const int* query_starts, const int* context_lens,
                  const int* tables, ELEMENT* out, float* partial, int* finished, const __grid_constant__ Shape shape
#if FRESH
                  , const float* query_norm, const float* key_norm, const float* table, const int* positions,
                  const int* slots, const __grid_constant__ Rotation rotation
#endif
    ) {
    extern __shared__ __align__(128) char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    List list;
    list.starts = reinterpret_cast<int*>(memory + sizeof(Shared));
    list.contexts = list.starts + shape.num_sequences + 1;
    int per_part = shape.num_kv_heads * PASSES;
    int item = blockIdx.x / cluster_blocks(), items = gridDim.x / cluster_blocks();
    bool has_part;
    Part part = {};
    // No kernel of a step writes lengths, tables, or keys and values before the last position: they are read, as far as
    // there is room, before this step's keys are there.
    start_next_kernel();
    if (shape.dense) {
        list_parts(shared.of_warp, list, query_starts, context_lens, shape);
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
    Feed feed = feed_of(part, work, keys, values, tables, first_blocks_of(part, tables, shape), shape);
    Ring ring;
    ring.fill(shared.ring[threadIdx.x / WARP], feed, shape, part.has_last_tile());
#if FRESH
    Fresh fresh = {qkv, query_norm, key_norm, table, positions, slots, out, keys, values};
    Preparation preparation;
    preparation.begin(fresh, part, query_starts, shape, rotation);
    wait_for_previous_kernel();
    preparation.finish(fresh, shape, rotation);
    __syncthreads();
    const ELEMENT* queries = out;
    long long query_stride = (long long)shape.num_heads * HEAD_DIM;
#else
    wait_for_previous_kernel();
    const ELEMENT* queries = qkv;
    long long query_stride = shape.row_stride;
#endif
    unsigned int query[STEPS][2], next_query[STEPS][2];
    read_query(query, queries, query_stride, work);
    ring.fill(shared.ring[threadIdx.x / WARP], feed, shape);
    // Blocks are looked up two parts ahead, tiles copied and queries read one part ahead.
    int step = gridDim.x, next_blocks = 0;
    if (item + step < items) next_blocks = first_blocks_of(part_of_list(item + step, list, per_part, shape), tables, shape);
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
            next = feed_of(next_part, next_work, keys, values, tables, next_blocks, shape);
            read_query(next_query, queries, query_stride, next_work);
        }
        if (item + step < items) next_blocks = first_blocks_of(part_of_list(item + step, list, per_part, shape), tables, shape);
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
    __shared__ PartFactors factors;
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
