// paged_attention_decode: paged_attention for the sequences that have one token in the batch, on tensor cores.
//
// Variants: ELEMENT=f16|bf16 HEAD_DIM:GROUP:BLOCK_SIZE:STAGES:FRESH:CLUSTERED=64:3:16:3:1:1|64:1:48:3:0:0|80:20:16:3:1:0|96:8:16:3:0:1|128:4:32:3:1:0|256:4:16:1:1:1 CACHE=ELEMENT|e4m3
// Needs: attention.cuh heads.cuh decode_parts.cuh fresh_rows.cuh decode_attention.cuh
//
// A block takes one part of a sequence's context for one KV head and up to 8 of its GROUP query heads. Warps take tiles of TILE
// positions in turn. Each warp copies its keys and values into its own ring of STAGES tiles in shared memory, so that
// several tiles are on their way at any time, and multiplies S^T = K Q^T and O^T += V^T P^T, with positions or columns as
// the rows and heads as the 8 columns of the instructions.
//
// The results of the warps are merged in order, and those of the parts too: by the block that finishes last, in the same
// launch. Where there are far fewer parts than blocks (CLUSTERED), all blocks of a cluster share a context, and send
// their results to each other.
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
    // there is room, before this step's keys are there. The next kernel starts after that: its weights would take their time.
    if (MAY_SHARE && shape.dense) {
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
#if CLUSTERED
    expect_results(shared.sent, work.heads);
    meet_cluster();
#endif
    Feed feed = feed_of(part, work, keys, values, tables, first_blocks_of(part, tables, shape), shape);
    Ring ring;
    ring.fill(shared.ring[threadIdx.x / WARP], feed, shape, part.has_last_tile());
#if FRESH
    Fresh fresh = {qkv, query_norm, key_norm, table, positions, slots, out, keys, values};
    Preparation preparation;
    preparation.begin(fresh, part, query_starts, shape, rotation);
    wait_for_previous_kernel();
    start_next_kernel();
    preparation.finish(fresh, shape, rotation);
    __syncthreads();
    const ELEMENT* queries = out;
    long long query_stride = (long long)shape.num_heads * HEAD_DIM;
#else
    wait_for_previous_kernel();
    start_next_kernel();
    const ELEMENT* queries = qkv;
    long long query_stride = shape.row_stride;
#endif
    unsigned int query[STEPS][2], next_query[STEPS][2];
    read_query(query, queries, query_stride, work);
    if (MAY_SHARE) ring.fill(shared.ring[threadIdx.x / WARP], feed, shape);
    // Blocks are looked up two parts ahead, tiles copied and queries read one part ahead.
    int step = gridDim.x, next_blocks = 0;
    if (MAY_SHARE && item + step < items) {
        next_blocks = first_blocks_of(part_of_list(item + step, list, per_part, shape), tables, shape);
    }
    while (true) {
        item += step;
        bool has_next = MAY_SHARE && item < items;
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
        if (MAY_SHARE && item + step < items) {
            next_blocks = first_blocks_of(part_of_list(item + step, list, per_part, shape), tables, shape);
        }
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

// Merges the parts after a launch with a list: a block takes every gridDim.x-th sequence and group of heads. Where no
// context has several parts, it ends as soon as the launch before it has.
extern "C" __global__ void __launch_bounds__(THREADS)
    merge_decode(const int* query_starts, const int* context_lens, ELEMENT* out, const float* partial,
                 const __grid_constant__ Shape shape) {
    __shared__ PartFactors factors;
    start_next_kernel();
    int per_part = shape.num_kv_heads * PASSES, items = shape.num_sequences * per_part;
    auto parts_of_item = [&](int item) {
        return num_parts(context_of(item / per_part, query_starts, context_lens, shape), shape);
    };
    bool has_parts = false;
    for (int item = blockIdx.x + threadIdx.x * gridDim.x; item < items; item += THREADS * gridDim.x) {
        has_parts |= parts_of_item(item) > 1;
    }
    has_parts = __syncthreads_or(has_parts);
    wait_for_previous_kernel();
    if (!has_parts) return;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        int sequence = item / per_part, count = parts_of_item(item);
        if (count <= 1) continue;
        Part part;
        part.sequence = sequence, part.heads_index = item % per_part;
        Work work = work_of(part, query_starts, shape);
        long long row = ((long long)sequence * shape.num_heads + work.first_head) * shape.parts_max;
        const float* scales = partial + (long long)shape.num_sequences * shape.num_heads * shape.parts_max * HEAD_DIM + row * 2;
        ELEMENT* to = out + ((long long)work.token * shape.num_heads + work.first_head) * HEAD_DIM;
        merge_parts(factors, work.heads, count, to, partial + row * HEAD_DIM, scales, shape.parts_max);
        __syncthreads(); // the factors are free
    }
}
