// What the tensor-core kernels of paged_attention share: the shape of a call, where a row's context is, matrix fragments.
//
// Put between common.cuh and the source. A row is one query head of one token. The `GROUP` query heads that share a KV head
// are packed: row r of a sequence is token r / GROUP and head r % GROUP of the group, so that a KV head is read once.

#define MINUS_INFINITY __int_as_float(0xff800000)
constexpr float LOG2_E = 1.4426950408889634f;

struct Shape {
    int num_tokens, num_sequences, num_heads, num_kv_heads, block_size, blocks_per_row;
    int window;     // positions that a token sees, itself included; 0: all
    int divided;    // whether a block has a piece of all contexts instead of one context (decode)
    int mixed;      // whether sequences with one token and with several are in the batch, and each has its own kernel
    int beside;     // whether the kernel before takes the other sequences, and nothing of it is needed (decode)
    float scale, softcap; // softcap 0: none
    long long row_stride, slot_stride, head_stride; // in elements
};

// The product's factor, such that a power of two of the result is the weight: cap(q * k) * log2(e).
__device__ __forceinline__ float score_of(float product, const Shape& shape) {
    if (shape.softcap == 0.0f) return product * (shape.scale * LOG2_E);
    return tanhf(product * shape.scale / shape.softcap) * (shape.softcap * LOG2_E);
}
__device__ __forceinline__ float power_of_two(float exponent) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
    return power;
}

// c += a * b for a 16 x 16 tile of `a` and 16 x 8 of `b`, in 32-bit floats.
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2], f16) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
    for (int half = 0; half < 2; half++) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
#endif
}
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2], bf16) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap(); // no such instruction: the caller takes the kernel without tensor cores
#endif
}

// Two results as one register of 16-bit elements, `low` in the lower half.
template <class T> __device__ __forceinline__ unsigned int packed(float low, float high, T) {
    return narrow_pair<T>(low, high);
}

// Elements of keys and values. Codes are multiplied as f16, which holds each of them exactly.
#ifndef CACHE
#define CACHE ELEMENT
#endif
constexpr bool HAS_CODES = sizeof(CACHE) == 1;
template <bool> struct FactorOf {
    typedef ELEMENT type;
};
template <> struct FactorOf<true> {
    typedef f16 type;
};
typedef FactorOf<HAS_CODES>::type FACTOR;

// Two elements of a query as factors: what f16 cannot hold becomes the nearest that it can.
__device__ __forceinline__ unsigned int as_factors(unsigned int pair, f16) { return pair; }
__device__ __forceinline__ unsigned int as_factors(unsigned int pair, bf16) {
    constexpr float LARGEST = 65504.0f;
    if constexpr (!HAS_CODES) return pair;
    float two[2];
    widen_pair(pair, bf16{}, two[0], two[1]);
#pragma unroll
    for (int i = 0; i < 2; i++) two[i] = two[i] > LARGEST ? LARGEST : two[i] < -LARGEST ? -LARGEST : two[i];
    return packed(two[0], two[1], f16{});
}
// Four codes as two registers of f16.
__device__ __forceinline__ void widen_codes(unsigned int codes, unsigned int& low, unsigned int& high) {
    low = widen_codes(codes);
    high = widen_codes(codes >> 16);
}
// Bytes 0 and 2, then 1 and 3: of two columns of two positions, each column's.
__device__ __forceinline__ unsigned int by_column(unsigned int codes) { return __byte_perm(codes, 0, 0x3120); }

// Rows of CHUNKS times 16 bytes in shared memory: swizzled, or an odd number of chunks apart, so that 8 rows hit all banks.
template <int CHUNKS> constexpr int ROW_CHUNKS = CHUNKS % 8 == 0 ? CHUNKS : CHUNKS | 1;
template <int CHUNKS> __device__ __forceinline__ uint4* chunk_at(uint4* rows, int row, int chunk) {
    return rows + row * ROW_CHUNKS<CHUNKS> + (CHUNKS % 8 == 0 ? chunk ^ (row & 7) : chunk);
}

// 16 bytes to shared memory, or zeros.
__device__ __forceinline__ void copy_chunk(uint4* to, const void* from, bool is_present) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(is_present ? 16 : 0));
#else
    *to = is_present ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#endif
}
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;");
#endif
}
// Waits until all but the last `PENDING` groups of copies of this thread have arrived.
template <int PENDING> __device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}
__device__ __forceinline__ void load_fragments(unsigned int (&to)[4], const uint4* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from)) : "memory");
}
// With codes, a lane's register holds two columns of two positions.
__device__ __forceinline__ void load_transposed(unsigned int (&to)[4], const uint4* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from)) : "memory");
}

__device__ __forceinline__ void load_transposed(unsigned int (&to)[2], const uint4* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1]) : "r"(shared_address(from)) : "memory");
}

// Rows of one sequence's tokens that a block takes together.
struct Tile {
    int sequence, first_row, num_rows; // rows of the sequence from `first_row`; `num_rows` 0: none
    int first_token, context;          // the sequence's first token in the batch, and its positions in the cache
    int first_position;                // of the sequence's first token
};

// The sequence of tile `index`, when the tiles of sequence s begin at query_starts[s] * GROUP / ROWS + s: a bound that
// needs no sum over the sequences and leaves at most one tile of each empty. Every warp searches for itself.
template <int ROWS>
__device__ __forceinline__ int sequence_of_tile(int index, const int* query_starts, int num_sequences) {
    int lane = threadIdx.x % WARP, low = 0, high = num_sequences; // the answer is in [low, high)
    while (high - low > 1) {
        int stride = (high - low + (int)WARP - 1) / (int)WARP, at = low + lane * stride;
        bool is_before = at < high && query_starts[at] * GROUP / ROWS + at <= index;
        int last = __popc(__ballot_sync(ALL_LANES, is_before)) - 1;
        low += last * stride;
        high = min(high, low + stride);
    }
    return low;
}
template <int ROWS>
__device__ __forceinline__ Tile tile_of(int index, const int* query_starts, const int* context_lens, const Shape& shape) {
    Tile tile;
    tile.sequence = sequence_of_tile<ROWS>(index, query_starts, shape.num_sequences);
    tile.first_token = query_starts[tile.sequence];
    tile.context = context_lens[tile.sequence];
    int tokens = query_starts[tile.sequence + 1] - tile.first_token;
    tile.first_position = tile.context - tokens;
    tile.first_row = (index - (tile.first_token * GROUP / ROWS + tile.sequence)) * ROWS;
    tile.num_rows = shape.mixed && tokens == 1 ? 0 : max(0, min(ROWS, tokens * GROUP - tile.first_row));
    return tile;
}
