// paged_attention_plan: how blocks divide the contexts of a batch, and which come first where blocks take whole ones, for every layer
// of a step.
//
// Variants: HEAD_DIM=64|128
// Needs: decode_plan.cuh
//
// The contexts of all sequences, laid end to end, with some room behind each for what beginning and finishing it takes, are
// divided among the blocks of each group of heads alike. Where whole contexts leave no block much more than the mean, a block takes
// every so many-th of them. Else they are cut into pieces that take equally long, from one cut to the next, of which there are as
// many as blocks: a block has the parts in its piece. A cut that would leave fewer than LEAST tiles to one side is at that end of the
// context instead. So no block waits for one that has more, however different contexts are, and most of them stay whole.
//
// Whole contexts that blocks take as they get to them begin with the longest, so that none is left for the end: `order_contexts`
// writes the sequences by how many ranges of 2^shift positions their contexts fill, of which there are at most RANGES.
//
// One block. `parts` has room for num_sequences + blocks, `plans` for PLANNED * blocks; decode_parts.cuh says what is in them.
// Shared memory: `List`.

constexpr int THREADS = 1024; // and blocks at most
// In tiles: what takes as long as beginning and finishing a part, the least that a part of a context has, and how much more than
// the mean a block may have if contexts stay whole: about what merging parts takes. Measured.
constexpr int ENDS = HEAD_DIM <= 64 ? 16 : 8, LEAST = HEAD_DIM <= 64 ? 16 : 12, EXCESS = HEAD_DIM <= 64 ? 40 : 20;

constexpr int RANGES = 256;

struct Batch {
    const int *query_starts, *context_lens;
    int num_sequences, window, mixed, blocks; // window 0: tokens see all; mixed: some sequences are another kernel's
};

// The contexts end to end, in tiles: where each begins, [num_sequences + 1], and its positions.
struct List {
    int *starts, *contexts;

    __device__ __forceinline__ List(int* memory, int num_sequences) : starts(memory), contexts(memory + num_sequences + 1) {}
    __device__ __forceinline__ int tiles_of(int s) const { return starts[s + 1] - starts[s] - ENDS; }
    // The least that either side of a cut has.
    __device__ __forceinline__ int least_of(int s) const {
        int half = tiles_of(s) / 2;
        return half < LEAST ? half + 1 : LEAST;
    }
    __device__ __forceinline__ int sequence_at(int place, int num_sequences) const {
        int low = 0, high = num_sequences;
        while (high - low > 1) {
            int middle = (low + high) / 2;
            if (starts[middle] <= place) low = middle;
            else high = middle;
        }
        return low;
    }
};

// The sum over the threads before this one; `total` over all.
__device__ int sum_before(int own, int& total) {
    __shared__ int of_warp[THREADS / WARP];
    int before = own, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        int other = __shfl_up_sync(ALL_LANES, before, offset);
        if (lane >= offset) before += other;
    }
    __syncthreads(); // an earlier call may still be reading
    if (lane == WARP - 1) of_warp[warp] = before;
    __syncthreads();
    int of_lane = lane < THREADS / WARP ? of_warp[lane] : 0, of_others = lane < warp ? of_lane : 0;
    for (int offset = 16; offset > 0; offset /= 2) {
        of_lane += __shfl_xor_sync(ALL_LANES, of_lane, offset);
        of_others += __shfl_xor_sync(ALL_LANES, of_others, offset);
    }
    total = of_lane;
    return of_others + before - own;
}

__device__ void make_list(const List& list, const Batch& batch) {
    auto length_of = [&](int context) {
        return context <= 0 ? 0 : (context + TILE - 1) / TILE - first_visible(context, batch.window) / TILE + ENDS;
    };
    int each = (batch.num_sequences + THREADS - 1) / THREADS;
    int first = min((int)threadIdx.x * each, batch.num_sequences), end = min(first + each, batch.num_sequences);
    int own = 0, total;
    for (int s = first; s < end; s++) {
        list.contexts[s] = context_of(s, batch.query_starts, batch.context_lens, batch.mixed);
        own += length_of(list.contexts[s]);
    }
    int before = sum_before(own, total);
    for (int s = first; s < end; s++) {
        list.starts[s] = before;
        before += length_of(list.contexts[s]);
    }
    if (threadIdx.x == 0) list.starts[batch.num_sequences] = total;
    __syncthreads();
}

// What the thread's block takes of the list; threads beyond the blocks take nothing.
struct Piece {
    const List& list;
    const Batch& batch;
    int length, each;              // of the list, and of a piece
    bool is_whole;                 // whether contexts stay whole
    int begin = 0, end = 0;        // of the piece
    int first_sequence, step;

    // All threads call.
    __device__ __forceinline__ Piece(const List& of, const Batch& in) : list(of), batch(in) {
        int own = threadIdx.x, all = batch.blocks, of_block = 0;
        length = list.starts[batch.num_sequences];
        each = max(LEAST, (length + all - 1) / all);
        for (int s = own; own < all && s < batch.num_sequences; s += all) of_block += list.starts[s + 1] - list.starts[s];
        is_whole = !__syncthreads_or(of_block > each + EXCESS);
        step = is_whole ? all : 1;
        first_sequence = is_whole && own < all ? own : batch.num_sequences;
        if (is_whole || own >= all || own * each >= length) return;
        begin = own * each, end = min(begin + each, length);
        first_sequence = list.sequence_at(begin, batch.num_sequences);
        int at = begin - list.starts[first_sequence], tiles = list.tiles_of(first_sequence), least = list.least_of(first_sequence);
        if (at >= least && at > tiles - least) first_sequence++;
    }
    // The first cut at or behind a place.
    __device__ __forceinline__ int cut_behind(int place) const { return (place + each - 1) / each; }
    __device__ __forceinline__ int first_block_of(int s) const { return cut_behind(list.starts[s] + list.least_of(s)) - 1; }
    __device__ __forceinline__ int count_of(int s) const {
        return cut_behind(list.starts[s + 1] - ENDS - list.least_of(s) + 1) - first_block_of(s);
    }
    // The part of a sequence, if there is one.
    __device__ __forceinline__ bool part_of(int s, int4& part, bool& is_divided) const {
        int context = list.contexts[s];
        if (context <= 0) return false;
        int first = first_visible(context, batch.window), last = context;
        bool is_first = true, is_last = true;
        if (!is_whole) {
            int start = list.starts[s], tiles = list.tiles_of(s), least = list.least_of(s), first_tile = first / TILE;
            if (start + least > end) return false;
            is_first = begin - start < least, is_last = end - start > tiles - least;
            if (!is_first) first = (first_tile + begin - start) * TILE;
            if (!is_last) last = (first_tile + end - start) * TILE;
        }
        is_divided = !is_first || !is_last;
        part = planned_part(s, token_of(s, batch.query_starts, batch.mixed), first, last, is_first, is_last);
        return true;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    divide_contexts(const int* query_starts, const int* context_lens, int4* parts, int4* plans, int num_sequences, int window,
                    int mixed, int blocks) {
    extern __shared__ __align__(128) char memory[];
    List list(reinterpret_cast<int*>(memory), num_sequences);
    Batch batch = {query_starts, context_lens, num_sequences, window, mixed, blocks};
    make_list(list, batch);
    Piece piece(list, batch);
    // Twice: to count the parts, and to write them.
    int first_part = 0, end_part = 0, total;
    int4 first = {}, merged[2] = {};
    for (int pass = 0; pass < 2; pass++) {
        int next = first_part;
        for (int s = piece.first_sequence; s < num_sequences && (piece.is_whole || list.starts[s] < piece.end); s += piece.step) {
            int4 part;
            bool is_divided;
            if (!piece.part_of(s, part, is_divided)) continue;
            if (pass == 1) {
                parts[next] = part;
                if (next == first_part) first = part;
                if (is_divided) merged[next == first_part ? 0 : 1] = make_int4(piece.first_block_of(s), piece.count_of(s), 0, 0);
            }
            next++;
        }
        if (pass == 0) first_part = sum_before(next, total), end_part = first_part + next;
    }
    if ((int)threadIdx.x < blocks) {
        int4* to = plans + PLANNED * threadIdx.x;
        to[0] = first, to[1] = make_int4(first_part, end_part, merged[0].x, merged[0].y), to[2] = merged[1];
    }
    // The next kernel may read the plan before it waits for this one: it does not start before this one has ended.
    __threadfence();
}

extern "C" __global__ void __launch_bounds__(THREADS)
    order_contexts(const int* query_starts, const int* context_lens, int* order, int num_sequences, int shift, int mixed) {
    __shared__ int counts[RANGES];
    auto range_of = [&](int s) {
        int context = context_of(s, query_starts, context_lens, mixed);
        return RANGES - 1 - min(RANGES - 1, (context + (1 << shift) - 1) >> shift); // the longest first, what is nobody's last
    };
    if (threadIdx.x < RANGES) counts[threadIdx.x] = 0;
    __syncthreads();
    for (int s = threadIdx.x; s < num_sequences; s += THREADS) atomicAdd(&counts[range_of(s)], 1);
    __syncthreads();
    int total, before = sum_before(threadIdx.x < RANGES ? counts[threadIdx.x] : 0, total);
    if (threadIdx.x < RANGES) counts[threadIdx.x] = before;
    __syncthreads();
    for (int s = threadIdx.x; s < num_sequences; s += THREADS) order[atomicAdd(&counts[range_of(s)], 1)] = s;
    // As above: the next kernel may read the order before it waits.
    __threadfence();
}
