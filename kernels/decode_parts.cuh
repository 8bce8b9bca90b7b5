// How decode attention divides contexts into parts, and what a block takes of one.
//
// Put between heads.cuh and the source. A context's division follows from its length, and, if CLUSTERED, from the number of
// blocks of a cluster: there a context is one part, which the blocks of a cluster share.

constexpr int WARPS = HEAD_DIM <= 64 ? 8 : 4;
constexpr int THREADS = WARPS * WARP;
constexpr int TILE = 16;
constexpr int HEADS = 8; // columns of the instructions
constexpr int PASSES = (GROUP + HEADS - 1) / HEADS, TAKEN = PASSES == 1 ? GROUP : HEADS; // query heads of a block
// Whether blocks may share a list of parts: not where rows come fresh, nor in clusters.
constexpr bool MAY_SHARE = !FRESH && !CLUSTERED;
// One part for contexts of up to 1024 positions, else parts of at least 512, at most 16 of them.
constexpr int WHOLE_SHIFT = 10, WHOLE_CONTEXT = 1 << WHOLE_SHIFT, PART_SHIFT = 9, PARTS = 16;

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
    int index, count;          // which part of how many
    int begin, end, origin;    // positions, and where the part would begin without a window
    __device__ __forceinline__ int end_tile() const { return (end - origin + TILE - 1) / TILE; }
    // The warp's first tile: tiles keep their warps when a window begins later.
    __device__ __forceinline__ int first_tile() const {
        int first = (begin - origin) / TILE, tile = (first & -sharing_warps()) + own_place();
        return tile < first ? tile + sharing_warps() : tile;
    }
    // Whether the block takes the tile of the context's last position.
    __device__ __forceinline__ bool has_last_tile() const {
        return index == count - 1 && ((end_tile() - 1) & (sharing_warps() - 1)) / WARPS == cluster_rank();
    }
};

// Positions of a part, from those that the token sees: a power of two.
__device__ __forceinline__ int part_shift(int visible) {
    if (CLUSTERED) return 30;
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

// Makes the list; its length is starts[num_sequences]. `of_warp` has room for a number of each warp.
__device__ void list_parts(int* of_warp, const List& list, const int* query_starts, const int* context_lens,
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
    if (lane == WARP - 1) of_warp[warp] = before;
    __syncthreads();
    before -= own;
    for (int w = 0; w < warp; w++) before += of_warp[w];
    for (int s = first; s < end; s++) {
        list.starts[s] = before;
        before += num_parts(list.contexts[s], shape);
    }
    if (threadIdx.x == THREADS - 1) list.starts[shape.num_sequences] = before;
    __syncthreads();
}
