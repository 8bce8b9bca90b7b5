// What a plan of decode attention looks like, which one kernel writes and the others read, and what both know of contexts.
//
// Put between common.cuh and the source.

constexpr int TILE = 16;    // positions
constexpr int PLANNED = 3;  // of 16 bytes for a block: its first part, places and contexts, as `Planned` has them

// A part as the plan has it: positions twice, and one more where the context goes on.
__device__ __forceinline__ int4 planned_part(int sequence, int token, int begin, int end, bool is_first, bool is_last) {
    return make_int4(sequence, token, 2 * begin + !is_first, 2 * end + !is_last);
}

// The positions of a sequence's context; 0 when another kernel takes the sequence (`mixed`: it has not one token), or it is padding.
__device__ __forceinline__ int context_of(int sequence, const int* query_starts, const int* context_lens, bool mixed) {
    int context = context_lens[sequence];
    bool is_other = mixed && query_starts[sequence + 1] - query_starts[sequence] != 1;
    return is_other ? 0 : context;
}
__device__ __forceinline__ int token_of(int sequence, const int* query_starts, bool mixed) {
    return mixed ? query_starts[sequence] : sequence;
}
// The first position that the context's last token sees; window 0: all.
__device__ __forceinline__ int first_visible(int context, int window) { return window > 0 ? max(0, context - window) : 0; }
