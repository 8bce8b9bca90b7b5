// How decode attention divides contexts among blocks, and what a block takes of one.
//
// Put between heads.cuh and the source. A context is one part, which a block has, or, if CLUSTERED, the blocks of a cluster
// share. Where contexts are `divided`, the blocks of each group of heads cut the contexts of all sequences, laid end to end,
// into pieces that take equally long: a block has the parts in its piece. So no block waits for one that has more, however
// different contexts are, and most of them stay whole.

constexpr int WARPS = HEAD_DIM <= 64 ? 8 : 4;
constexpr int THREADS = WARPS * WARP;
constexpr int TILE = 16;
constexpr int HEADS = 8; // columns of the instructions
constexpr int PASSES = (GROUP + HEADS - 1) / HEADS, TAKEN = PASSES == 1 ? GROUP : HEADS; // query heads of a block
// Whether contexts may be divided: not where rows come fresh, nor in clusters.
constexpr bool MAY_DIVIDE = !FRESH && !CLUSTERED;
// In tiles: what takes as long as beginning and finishing a part, the least that a part of a context has, and how much more than
// the mean a block may have if contexts stay whole: about what merging parts takes. Measured.
constexpr int ENDS = HEAD_DIM <= 64 ? 16 : 8, LEAST = HEAD_DIM <= 64 ? 16 : 12, EXCESS = HEAD_DIM <= 64 ? 40 : 20;

// The blocks of a cluster, and this one's place.
__device__ __forceinline__ int cluster_blocks() {
    int blocks = 1;
#if CLUSTERED && __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(blocks));
#endif
    return blocks;
}
__device__ __forceinline__ int cluster_rank() {
    int rank = 0;
#if CLUSTERED && __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}
// The warps that take a part's tiles in turn: a power of two. And this one's place.
__device__ __forceinline__ int sharing_warps() { return WARPS * cluster_blocks(); }
__device__ __forceinline__ int own_place() { return WARPS * cluster_rank() + (int)(threadIdx.x / WARP); }

// One part of one sequence's context.
struct Part {
    int sequence, heads_index; // which group of heads
    int begin, end, origin;    // positions, and where tiles are counted from
    bool is_first, is_last;    // whether it begins and ends with the context
    __device__ __forceinline__ bool is_whole() const { return is_first && is_last; }
    __device__ __forceinline__ int end_tile() const { return (end - origin + TILE - 1) / TILE; }
    // The warp's first tile: tiles keep their warps when a window begins later.
    __device__ __forceinline__ int first_tile() const {
        int first = (begin - origin) / TILE, tile = (first & -sharing_warps()) + own_place();
        return tile < first ? tile + sharing_warps() : tile;
    }
    // Whether the block takes the tile of the context's last position.
    __device__ __forceinline__ bool has_last_tile() const {
        return is_last && ((end_tile() - 1) & (sharing_warps() - 1)) / WARPS == cluster_rank();
    }
};

__device__ __forceinline__ int first_visible(int context, const Shape& shape) {
    return shape.window > 0 ? max(0, context - shape.window) : 0;
}
// The positions of a sequence's context, 0 when another kernel takes the sequence.
__device__ __forceinline__ int context_of(int sequence, const int* query_starts, const int* context_lens,
                                          const Shape& shape) {
    int context = context_lens[sequence];
    bool is_other = shape.mixed && query_starts[sequence + 1] - query_starts[sequence] != 1;
    return is_other ? 0 : context;
}
__device__ __forceinline__ Part whole_context(int sequence, int heads_index, int context, const Shape& shape) {
    return {sequence, heads_index, first_visible(context, shape), context, 0, true, true};
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

// The contexts of all sequences end to end, in tiles: where each begins, with room for ENDS behind it, and its positions.
struct List {
    int *starts, *contexts;
};

// Makes the list; its length is starts[num_sequences]. `of_warp` has room for a number of each warp.
__device__ void list_contexts(int* of_warp, const List& list, const int* query_starts, const int* context_lens,
                              const Shape& shape) {
    auto length_of = [&](int context) {
        return context <= 0 ? 0 : (context + TILE - 1) / TILE - first_visible(context, shape) / TILE + ENDS;
    };
    int each = (shape.num_sequences + THREADS - 1) / THREADS;
    int first = min((int)threadIdx.x * each, shape.num_sequences), end = min(first + each, shape.num_sequences);
    int own = 0;
    for (int s = first; s < end; s++) {
        list.contexts[s] = context_of(s, query_starts, context_lens, shape);
        own += length_of(list.contexts[s]);
    }
    int before = own, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        int other = __shfl_up_sync(ALL_LANES, before, offset);
        if (lane >= offset) before += other;
    }
    if (lane == WARP - 1) of_warp[warp] = before;
    __syncthreads();
    before -= own;
    for (int w = 0; w < warp; w++) before += of_warp[w];
    for (int s = first; s < end; s++) {
        list.starts[s] = before;
        before += length_of(list.contexts[s]);
    }
    if (threadIdx.x == THREADS - 1) list.starts[shape.num_sequences] = before;
    __syncthreads();
}

// What a block takes of the list. Where whole contexts leave no block much more than the mean, it takes every so many-th of
// them. Else it has a piece, from one cut to the next, of which there are as many as blocks of a group of heads; a cut that
// would leave fewer than LEAST tiles to one side is at that end of the context instead.
struct Piece {
    List list;
    const Shape& shape;
    bool is_whole;
    int own, heads_index, step = 0;        // this block's place among those of a group of heads, and between its sequences
    int blocks, length, each, begin, end;  // pieces, and where this one is
    int sequence = 0;                      // whose part comes next

    // All threads call.
    __device__ __forceinline__ void find(int per_part) {
        int all = gridDim.x / per_part;
        own = blockIdx.x / per_part, heads_index = blockIdx.x % per_part;
        length = list.starts[shape.num_sequences];
        each = max(LEAST, (length + all - 1) / all);
        blocks = (length + each - 1) / each;
        begin = cut(own), end = cut(own + 1);
        is_whole = fits_whole(all);
        step = is_whole ? all : 1;
        sequence = is_whole ? own : shape.num_sequences;
        if (is_whole || own >= blocks) return;
        sequence = sequence_at(begin);
        int at = begin - list.starts[sequence], tiles = tiles_of(sequence);
        if (at >= least_of(tiles) && at > tiles - least_of(tiles)) sequence++;
    }
    // Whether no block has much more than the mean if contexts stay whole.
    __device__ __forceinline__ bool fits_whole(int all) const {
        bool is_long = false;
        for (int block = threadIdx.x; block < all; block += THREADS) {
            int of_block = 0;
            for (int s = block; s < shape.num_sequences; s += all) of_block += list.starts[s + 1] - list.starts[s];
            is_long |= of_block > each + EXCESS;
        }
        return !__syncthreads_or(is_long);
    }
    __device__ __forceinline__ int cut(int block) const { return min(block * each, length); }
    // The first cut at or behind a place.
    __device__ __forceinline__ int cut_behind(int place) const { return (place + each - 1) / each; }
    __device__ __forceinline__ int tiles_of(int s) const { return list.starts[s + 1] - list.starts[s] - ENDS; }
    __device__ __forceinline__ int least_of(int tiles) const { return tiles / 2 < LEAST ? tiles / 2 + 1 : LEAST; }
    // Whole warps call.
    __device__ __forceinline__ int sequence_at(int place) const {
        int lane = threadIdx.x % WARP, low = 0, high = shape.num_sequences;
        while (high - low > 1) { // every lane looks at one of 32 places
            int stride = (high - low + (int)WARP - 1) / (int)WARP, looked_at = low + lane * stride;
            bool is_before = looked_at < high && list.starts[looked_at] <= place;
            low += (__popc(__ballot_sync(ALL_LANES, is_before)) - 1) * stride;
            high = min(high, low + stride);
        }
        return low;
    }

    // The next part, if there is one.
    __device__ __forceinline__ bool next(Part& part) {
        while (sequence < shape.num_sequences && list.contexts[sequence] == 0 &&
               (is_whole || list.starts[sequence] < end)) sequence += step;
        if (sequence >= shape.num_sequences || list.contexts[sequence] == 0) return false;
        int context = list.contexts[sequence];
        if (is_whole) {
            part = whole_context(sequence, heads_index, context, shape);
            return true;
        }
        int start = list.starts[sequence], tiles = tiles_of(sequence), least = least_of(tiles);
        if (start + least > end) return false;
        int first = first_visible(context, shape), first_tile = first / TILE;
        part.sequence = sequence, part.heads_index = heads_index;
        part.is_first = begin - start < least, part.is_last = end - start > tiles - least;
        part.origin = (first_tile + (part.is_first ? 0 : begin - start)) * TILE;
        part.begin = max(first, part.origin);
        part.end = part.is_last ? context : (first_tile + end - start) * TILE;
        return true;
    }

    // The sequence whose context a cut divides, or -1. Whole warps call.
    __device__ __forceinline__ int divided_at(int cut) const {
        if (own >= blocks || cut >= length || is_whole) return -1;
        int s = sequence_at(cut), at = cut - list.starts[s], tiles = tiles_of(s);
        return at >= least_of(tiles) && at <= tiles - least_of(tiles) ? s : -1;
    }
    // The first of a group of heads' blocks that have parts of a divided context, and how many parts there are.
    __device__ __forceinline__ int first_block_of(int s) const {
        return cut_behind(list.starts[s] + least_of(tiles_of(s))) - 1;
    }
    __device__ __forceinline__ int num_parts_of(int s) const {
        return cut_behind(list.starts[s + 1] - ENDS - least_of(tiles_of(s)) + 1) - first_block_of(s);
    }
};
