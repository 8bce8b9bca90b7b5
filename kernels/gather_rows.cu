// gather_rows: out[t] = table[ids[t]]. carry_tokens: tokens[t] = choices[sources[t] - 1] where sources[t] > 0. overwrite:
// the words of a step from host memory, and the same for the tokens that they begin with. read_back: words to host memory.
//
// Variants: UNIT=4|2|16
//
// A block copies one row, a thread every blockDim.x-th unit of UNIT bytes, the widest that divides the rows. Moves each
// byte once each way. Any number of rows and columns; `stride` is in units.

#if UNIT == 16
typedef uint4 Unit;
#elif UNIT == 4
typedef unsigned int Unit;
#else
typedef unsigned short Unit;
#endif

extern "C" __global__ void gather_rows(const Unit* table, long long stride, const int* ids, Unit* out, int units) {
    start_next_kernel();
    wait_for_previous_kernel();
    const Unit* row = table + ids[blockIdx.x] * stride;
    Unit* to = out + (long long)blockIdx.x * units;
    for (int i = threadIdx.x; i < units; i += blockDim.x) {
        to[i] = row[i];
    }
}

// A thread takes a token. What was chosen stays on the device, so that a step can be enqueued before the choices of the one
// before it are known. Moves a few bytes per token: it is as long as its launch. Any UNIT.
extern "C" __global__ void carry_tokens(int* tokens, const int* sources, const int* choices, int count) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t < count && sources[t] > 0) {
        tokens[t] = choices[sources[t] - 1];
    }
}

// A thread takes a word. `from` is pinned host memory, which the threads of a warp read with one request: a copy engine would
// have to wait for the kernels before it and they for the engine. The first `tokens` words are tokens, whose sources are words
// from `sources` on; `choices` is null where none is carried. `from` may be `to`. Any UNIT.
extern "C" __global__ void overwrite(
    int* to, const int* from, int count, const int* choices, int tokens, int sources) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int word = from[i];
    if (choices != nullptr && i < tokens) {
        int source = from[sources + i];
        if (source > 0) word = choices[source - 1];
    }
    to[i] = word;
}

// A thread takes a word. `to` is pinned host memory, in which the words are when an event after the kernel has happened.
extern "C" __global__ void read_back(int* to, const int* from, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = from[i];
}
