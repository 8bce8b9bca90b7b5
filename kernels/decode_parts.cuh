// What a block of decode attention takes of a context: a part of it, all of it mostly.
//
// Put between decode_plan.cuh and the source. If CLUSTERED, the blocks of a cluster share a part. Where contexts are `divided`, a block
// has several parts, as paged_attention_plan.cu has planned.

constexpr int WARPS = HEAD_DIM <= 64 ? 8 : 4;
constexpr int THREADS = WARPS * WARP;
constexpr int HEADS = 8; // columns of the instructions
constexpr int PASSES = (GROUP + HEADS - 1) / HEADS, TAKEN = PASSES == 1 ? GROUP : HEADS; // query heads of a block
// Whether contexts may be divided: not where rows come fresh, nor in clusters.
constexpr bool MAY_DIVIDE = !FRESH && !CLUSTERED;

// The blocks of a cluster, which are neighbours, this one's place, and the cluster's.
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
__device__ __forceinline__ int cluster_index() {
    int index = blockIdx.x;
#if CLUSTERED && __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
#endif
    return index;
}
// The warps that take a part's tiles in turn: a power of two. And this one's place.
__device__ __forceinline__ int sharing_warps() { return WARPS * cluster_blocks(); }
__device__ __forceinline__ int own_place() { return WARPS * cluster_rank() + (int)(threadIdx.x / WARP); }

// The query heads that a block takes, which share a KV head.
struct HeadGroup {
    int first, count, kv_head;
    __device__ __forceinline__ HeadGroup() {
        int in_group = PASSES == 1 ? 0 : cluster_index() % PASSES * HEADS;
        kv_head = cluster_index() / PASSES;
        first = kv_head * GROUP + in_group;
        count = min(TAKEN, GROUP - in_group);
    }
    // Where the block's queries and results of a token begin, in rows of `num_heads` heads.
    __device__ __forceinline__ long long in_row(int token, int num_heads) const {
        return ((long long)token * num_heads + first) * HEAD_DIM;
    }
};

// One part of one sequence's context. An empty one is none.
struct Part {
    int sequence, token;    // token: the sequence's, in the batch
    int begin, end;         // positions
    bool is_first, is_last; // whether it begins and ends with the context
    __device__ __forceinline__ bool is_none() const { return end <= begin; }
    __device__ __forceinline__ bool is_whole() const { return is_first && is_last; }
    // Tiles are counted from here.
    __device__ __forceinline__ int origin() const { return begin & -TILE; }
    __device__ __forceinline__ int tiles() const { return (end - origin() + TILE - 1) / TILE; }
    // Whether the block takes the tile of the context's last position.
    __device__ __forceinline__ bool has_last_tile() const {
        return is_last && ((tiles() - 1) & (sharing_warps() - 1)) / WARPS == cluster_rank();
    }
};
// As `planned_part` wrote it.
__device__ __forceinline__ Part part_of(int4 planned) {
    return {planned.x, planned.y, planned.z >> 1, planned.w >> 1, (planned.z & 1) == 0, (planned.w & 1) == 0};
}
// All that a sequence's token sees.
__device__ __forceinline__ Part whole_context(int sequence, const int* query_starts, const int* context_lens, const Shape& shape) {
    int context = context_of(sequence, query_starts, context_lens, shape.mixed);
    return {sequence, token_of(sequence, query_starts, shape.mixed), first_visible(context, shape.window), context, true, true};
}

// What is planned for a block: its first part, which waits for no second look, the places of that and of the one behind the last,
// and where the contexts of these two begin.
struct Planned {
    Part first;
    int first_place, end_place;
    int first_block, count;           // blocks that have parts of the first part's context
    int last_first_block, last_count; // of the last part's, 0 if that is the same
};
__device__ __forceinline__ Planned planned_of(const int4* plans, int block) {
    const int4* from = plans + PLANNED * block;
    int4 first = __ldcg(from), places = __ldcg(from + 1), last = __ldcg(from + 2);
    return {part_of(first), places.x, places.y, places.z, places.w, last.x, last.y};
}

// The block's parts behind the first, one after the other.
struct Line {
    const int4* parts;
    int next, end;
    int4 ahead; // the next one, which is read before it is needed

    __device__ __forceinline__ void begin(const int4* all, int second, int behind) {
        parts = all, next = second, end = behind;
        look_ahead();
    }
    __device__ __forceinline__ void look_ahead() { ahead = next < end ? __ldcg(parts + next) : make_int4(0, 0, 0, 0); }
    __device__ __forceinline__ Part take() {
        Part part = part_of(ahead);
        next++;
        look_ahead();
        return part;
    }
};
