// paged_attention_decode: paged_attention for the sequences that have one token in the batch, on tensor cores.
//
// Variants: ELEMENT=f16|bf16 HEAD_DIM:GROUP:BLOCK_SIZE:STAGES:RESIDENT:FRESH:CLUSTERED=64:3:16:3:2:1:1|64:1:48:3:2:0:0|80:20:16:3:2:1:0|96:8:16:3:2:0:1|128:4:32:3:2:1:0|128:2:16:2:3:0:0|256:4:16:1:2:1:1 CACHE=ELEMENT|e4m3
// Needs: attention.cuh heads.cuh decode_plan.cuh decode_parts.cuh fresh_rows.cuh decode_attention.cuh decode_merge.cuh
//
// A block takes one part of a sequence's context for one KV head and up to 8 of its GROUP query heads. Warps take tiles of TILE
// positions in turn. Each warp copies its keys and values into its own ring of STAGES tiles in shared memory, so that
// several tiles are on their way at any time, and multiplies S^T = K Q^T and O^T += V^T P^T, with positions or columns as
// the rows and heads as the 8 columns of the instructions.
//
// The results of the warps are merged in order. Where there are far fewer contexts than blocks (CLUSTERED), all blocks of a
// cluster share one, and send their results to each other.
//
// Where there are more contexts than blocks, or long ones, contexts are `divided`: a block has a piece of all of them, and
// its warps copy the next part's tiles while they finish this one. The block that finishes last merges a context's parts. How
// contexts are divided, and so their last bits, depends on all of them.
//
// In a batch with prompts, blocks run `beside` the kernel that takes those, on multiprocessors that it leaves: reading and
// multiplying take time together. More of them share a multiprocessor then (RESIDENT), since few multiprocessors read more with
// more warps.
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

// What a block works with.
struct Block {
    Shared& shared;
    Stage* stages; // the warp's ring
    HeadGroup heads;
    Context context;
    const int* tables;
    const ELEMENT* queries;
    long long query_stride;
    ELEMENT* out;
    float* partial;
    Scale scale;
    const Shape& shape;

    __device__ __forceinline__ void read_query_of(const Part& part, unsigned int (&query)[STEPS][2]) const {
        read_query(query, queries + part.token * query_stride + heads.first * HEAD_DIM, heads.count);
    }
    __device__ __forceinline__ void copy(Ring& ring, Feed& feed) const {
        copy_tile(stages[ring.copied++ % STAGES], feed, context);
    }
    // The oldest tile of the ring, which is the part's `tile`.
    __device__ __forceinline__ void attend(Ring& ring, State& state, const unsigned int (&query)[STEPS][2], const Part& part,
                                           int tile) const {
        ring.wait();
        Stage& stage = stages[ring.used % STAGES];
        float score[4], factor[2];
        multiply_keys(score, stage, query, part.origin() + tile * TILE, part, scale);
        weigh(state, score, factor);
        multiply_values(state, stage, score, factor);
        __syncwarp(); // the stage is free
        ring.used++;
    }
    // Merges what the warps have.
    __device__ __forceinline__ void finish(const State& state, const Part& part) const {
        share(shared, state);
        __syncthreads(); // the warps' sums are there
        ELEMENT* to = out + heads.in_row(part.token, shape.num_heads);
#if CLUSTERED
        merge_cluster(shared, heads.count, to);
#else
        merge_warps(shared, part, heads.count, to, partial);
#endif
    }
};

// Attends to the block's only part. The tile of the position that `begin` stores is copied after that; `begin` waits for the
// kernel before this one.
template <class Begin>
__device__ __forceinline__ void attend_one(const Block& block, const Part& part, int first_blocks, const Begin& begin) {
    Feed feed = feed_of(part, block.tables, first_blocks, block.shape);
    Ring ring;
    int later = part.has_last_tile() ? 1 : 0;
    while (ring.has_room() && feed.tile < feed.end_tile - later) block.copy(ring, feed);
    begin();
    unsigned int query[STEPS][2];
    block.read_query_of(part, query);
    State state;
    clear(state);
#pragma unroll 1
    for (int tile = own_place(), end = part.tiles();; tile += sharing_warps()) {
        while (ring.has_room() && feed.tile < feed.end_tile) block.copy(ring, feed);
        if (tile >= end) break;
        block.attend(ring, state, query, part, tile);
    }
    block.finish(state, part);
}

// Attends to `after` and the parts behind it in the line. Tiles are copied and queries read one part ahead, blocks looked up two.
// Each step of the work is written once, in one loop, whose first round attends to nothing and ends with what `begin` waits for:
// code that has not run for a while takes longer to be read than to run.
template <class Begin>
__device__ __forceinline__ void attend_several(const Block& block, Part after, int after_blocks, Line& line, const Begin& begin) {
    Part part = {}, next = {};
    unsigned int query[STEPS][2], next_query[STEPS][2] = {};
    Feed feed = {};
    Ring ring;
    bool has_begun = false;
    int later = after.has_last_tile() ? 1 : 0;
#pragma unroll 1
    while (true) {
        part = next, next = after;
        int next_blocks = after_blocks;
#pragma unroll
        for (int i = 0; i < 2 * STEPS; i++) query[i / 2][i % 2] = next_query[i / 2][i % 2];
        State state;
        clear(state);
        bool is_on_next = next.is_none(), has_taken = false, has_read = false;
#pragma unroll 1
        for (int tile = own_place(), end = part.tiles();; tile += sharing_warps()) {
            while (ring.has_room()) {
                if (feed.tile < feed.end_tile - later) {
                    block.copy(ring, feed);
                } else if (is_on_next) {
                    break;
                } else {
                    feed = feed_of(next, block.tables, next_blocks, block.shape);
                    is_on_next = true;
                }
            }
            if (!has_taken) {
                has_taken = true;
                after = line.take();
                after_blocks = first_blocks_of(after, block.tables, block.shape);
            }
            if (!has_begun) {
                has_begun = true;
                later = 0;
                begin();
                continue; // the last tile is copied while queries are read
            }
            if (!has_read) {
                has_read = true;
                if (!next.is_none()) block.read_query_of(next, next_query);
            }
            if (tile >= end) break;
            block.attend(ring, state, query, part, tile);
        }
        if (part.is_none()) continue;
        block.finish(state, part);
        if (next.is_none()) return;
        __syncthreads(); // the warps' sums are free
    }
}

// `partial` has room for two parts of every block; `finished` is zero before and after. The first FOR_OTHERS of that are left to a
// kernel that may run beside. `parts` and `plans` are what paged_attention_plan.cu writes, if contexts are divided. blockIdx: the
// group of heads, with the place in the cluster, and the sequence or the block of the plan.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    attend_decode(const ELEMENT* qkv, CACHE* keys, CACHE* values, const int* query_starts, const int* context_lens,
                  const int* tables, const int4* parts, const int4* plans, ELEMENT* out, float* partial, int* finished,
                  const __grid_constant__ Shape shape
#if FRESH
                  , const float* query_norm, const float* key_norm, const float* table, const int* positions,
                  const int* slots, const __grid_constant__ Rotation rotation
#endif
    ) {
    extern __shared__ __align__(128) char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    bool divided = MAY_DIVIDE && shape.divided;
    // No kernel of a step writes lengths, plans, tables, or keys and values before the last position: they are read, as far as
    // there is room, before this step's keys are there. The next kernel starts after that: its weights would take their time.
    Planned planned = {};
    Line line = {};
    Part first;
    if (divided) {
        planned = planned_of(plans, blockIdx.y);
        line.begin(parts, planned.first_place + 1, planned.end_place);
        first = planned.first;
    } else {
        first = whole_context(blockIdx.y, query_starts, context_lens, shape);
    }
    // The kernel after this one counts on the one before, too. Where blocks need nothing of that, one waits for it, at its end.
    bool waits = !shape.beside || (blockIdx.x == gridDim.x - 1 && blockIdx.y == gridDim.y - 1);
    if (first.is_none()) {
        if (waits) wait_for_previous_kernel();
        return;
    }
    HeadGroup heads;
    int first_blocks = first_blocks_of(first, tables, shape);
#if CLUSTERED
    expect_results(shared.sent, heads.count);
    meet_cluster();
#endif
    long long of_head = heads.kv_head * shape.head_stride;
    Context context = {keys + of_head, values + of_head, (int)shape.slot_stride};
    Block block = {shared, shared.ring[threadIdx.x / WARP], heads, context, tables, FRESH ? out : qkv,
                   FRESH ? (long long)shape.num_heads * HEAD_DIM : shape.row_stride, out, partial, scale_of(shape), shape};
    auto begin = [&] {
#if FRESH
        Fresh fresh = {qkv, query_norm, key_norm, table, positions, slots, out, keys, values};
        Preparation preparation;
        preparation.begin(fresh, first, heads, shape, rotation);
#endif
        if (!shape.beside) wait_for_previous_kernel();
        start_next_kernel();
#if FRESH
        preparation.finish(fresh, shape, rotation);
        __syncthreads();
#endif
    };
    if constexpr (MAY_DIVIDE) attend_several(block, first, first_blocks, line, begin);
    else attend_one(block, first, first_blocks, begin);
    if (divided && (planned.count > 1 || planned.last_count > 1)) {
        finish_divided(shared, planned, parts, heads, out, partial, finished, shape);
    }
    if (waits && shape.beside) wait_for_previous_kernel();
}
