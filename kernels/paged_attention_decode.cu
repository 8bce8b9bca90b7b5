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
// The results of the warps are merged in order. Where there are far fewer contexts than blocks (CLUSTERED), all blocks of a
// cluster share one, and send their results to each other.
//
// Where there are more contexts than blocks, or long ones, contexts are `divided`: a block has a piece of all of them, and
// its warps copy the next part's tiles while they finish this one. The block that finishes last merges a context's parts. How
// contexts are divided, and so their last bits, depends on all of them.
//
// In a batch with prompts, blocks run `beside` the kernel that takes those, on multiprocessors that it leaves: reading and
// multiplying take time together.
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

// `partial` has room for two parts of every block; `finished` is zero before and after. The first FOR_OTHERS of that are left to a
// kernel that may run beside.
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
    bool divided = MAY_DIVIDE && shape.divided;
    int per_part = shape.num_kv_heads * PASSES;
    List list;
    list.starts = reinterpret_cast<int*>(memory + sizeof(Shared));
    list.contexts = list.starts + shape.num_sequences + 1;
    // No kernel of a step writes lengths, tables, or keys and values before the last position: they are read, as far as
    // there is room, before this step's keys are there. The next kernel starts after that: its weights would take their time.
    if (divided) list_contexts(shared.of_warp, list, query_starts, context_lens, shape);
    Piece piece = {list, shape};
    Part part = {};
    bool has_part;
    if (divided) {
        piece.find(per_part);
        if (threadIdx.x < WARP) { // both are one where the piece is inside a context
            int ended = piece.divided_at(piece.begin), begun = piece.divided_at(piece.end);
            if (threadIdx.x == 0) shared.divided[0] = ended, shared.divided[1] = begun == ended ? -1 : begun;
        }
        has_part = piece.next(part);
    } else {
        int item = blockIdx.x / cluster_blocks(), context = context_of(item / per_part, query_starts, context_lens, shape);
        has_part = context > 0;
        part = whole_context(item / per_part, item % per_part, context, shape);
    }
    // The kernel after this one counts on the one before, too. Where blocks need nothing of that, one waits for it, at its end.
    bool waits = !shape.beside || blockIdx.x == gridDim.x - 1;
    if (!has_part) {
        if (waits) wait_for_previous_kernel();
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
    if (!shape.beside) wait_for_previous_kernel();
    start_next_kernel();
    const ELEMENT* queries = qkv;
    long long query_stride = shape.row_stride;
#endif
    unsigned int query[STEPS][2], next_query[STEPS][2];
    read_query(query, queries, query_stride, work);
    if (MAY_DIVIDE) ring.fill(shared.ring[threadIdx.x / WARP], feed, shape);
    // Blocks are looked up two parts ahead, tiles copied and queries read one part ahead.
    int next_blocks = 0;
    auto look_up_next = [&] {
        Part next_part;
        if (divided && piece.next(next_part)) next_blocks = first_blocks_of(next_part, tables, shape);
    };
    piece.sequence += piece.step;
    look_up_next();
    while (true) {
        Part next_part = part;
        Work next_work = work;
        Feed next = feed;
        next.tile = next.end_tile; // empty
        bool has_next = divided && piece.next(next_part);
        if (has_next) {
            next_work = work_of(next_part, query_starts, shape);
            next = feed_of(next_part, next_work, keys, values, tables, next_blocks, shape);
            read_query(next_query, queries, query_stride, next_work);
        }
        piece.sequence += piece.step;
        look_up_next();
        attend_part(shared, ring, feed, next, query, part, shape);
        __syncthreads(); // the warps' sums are there
        finish_part(shared, part, work, out, partial, shape);
        if (!has_next) break;
        __syncthreads(); // the warps' sums are free
        part = next_part;
        work = next_work;
#pragma unroll
        for (int i = 0; i < 2 * STEPS; i++) query[i / 2][i % 2] = next_query[i / 2][i % 2];
    }
    if (divided && !piece.is_whole) finish_divided(shared, piece, per_part, query_starts, out, partial, finished, shape);
    if (waits && shape.beside) wait_for_previous_kernel();
}
