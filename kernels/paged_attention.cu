// paged_attention: for each token, softmax(scale * q * K^T) * V over the positions of its sequence up to itself.
//
// Variants: ELEMENT:CACHE=f32:f32|f16:f16|bf16:bf16|f32:bf16|bf16:f32|f32:e4m3|bf16:e4m3 HEAD_DIM:GROUP:WIDE=64:3:1|128:4:1|128:8:1|256:8:1|80:3:1|10:2:0
//
// A block takes one token, one KV head and up to GROUP of the query heads that share it, and a context is divided into
// chunks of CHUNK positions, counted from its start. Per chunk, each key and value is read once: subgroups of LANES lanes
// score keys against all queries, a warp per query turns scores into weights, and each thread sums the values of one
// group of WIDTH columns. Chunks are merged in order, each with its own maximum.
//
// attend_whole takes the chunks of a token one after the other; attend_chunk takes one, and merge_chunks merges them with
// the same operations in the same order: both give the same bits, and neither depends on other tokens.

constexpr int CHUNK = 256;
constexpr int THREADS = 128;
constexpr int KEYS_IN_FLIGHT = 4, VALUES_IN_FLIGHT = 4;

// Elements of a key or value that one access reads.
constexpr int WIDTH = WIDE ? WIDEST<CACHE> : 1;
constexpr int GROUPS_OF_WIDTH = HEAD_DIM / WIDTH;
static_assert(HEAD_DIM % WIDTH == 0, "wide accesses divide a head");

// Lanes that share a key: the largest power of two up to 8 that leaves none without a part.
constexpr int LANES = GROUPS_OF_WIDTH >= 8 ? 8 : GROUPS_OF_WIDTH >= 4 ? 4 : GROUPS_OF_WIDTH >= 2 ? 2 : 1;
constexpr int SUBGROUPS = THREADS / LANES;
constexpr int GROUPS_PER_LANE = (GROUPS_OF_WIDTH + LANES - 1) / LANES;

// Threads that read the same columns of different values.
constexpr int SHARES = THREADS / GROUPS_OF_WIDTH > 0 ? THREADS / GROUPS_OF_WIDTH : 1;
constexpr int COLUMN_PASSES = (GROUPS_OF_WIDTH + THREADS - 1) / THREADS;
// Elements of the result that one thread finishes.
constexpr int RESULTS = (GROUP * HEAD_DIM + THREADS - 1) / THREADS;

struct Shape {
    int num_heads, num_kv_heads, block_size, blocks_per_row, window, chunks_max;
    long long row_stride, slot_stride, head_stride; // in elements
    float scale, softcap;                           // softcap 0: none
};

// Shared memory, sized by the caller with the same expressions.
struct Shared {
    float query[GROUP][HEAD_DIM];
    float sums[SHARES][GROUP][HEAD_DIM];
    float weights[GROUP][CHUNK];
    float largest[GROUP], total[GROUP];           // of the chunk
    float merged_largest[GROUP], merged_total[GROUP]; // of the chunks before it
    int slots[CHUNK];
};

// What one block works on.
struct Work {
    int token, kv_head, first_head, heads; // `heads` query heads from `first_head`
    int first, last;                       // positions that the token sees
    const int* table;
};

__device__ __forceinline__ Work work_of_block(const int* positions, const int* sequences, const int* tables,
                                              const Shape& shape) {
    int group = shape.num_heads / shape.num_kv_heads;
    int passes = (group + GROUP - 1) / GROUP;
    Work work;
    work.token = blockIdx.x;
    work.kv_head = blockIdx.y / passes;
    int in_group = blockIdx.y % passes * GROUP;
    work.first_head = work.kv_head * group + in_group;
    work.heads = min(GROUP, group - in_group);
    work.last = positions[work.token];
    work.first = shape.window > 0 ? max(0, work.last + 1 - shape.window) : 0;
    work.table = tables + (long long)sequences[work.token] * shape.blocks_per_row;
    return work;
}

__device__ void read_query(Shared& shared, const ELEMENT* qkv, const Work& work, const Shape& shape) {
    const ELEMENT* from = qkv + work.token * shape.row_stride + (long long)work.first_head * HEAD_DIM;
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) {
        shared.query[i / HEAD_DIM][i % HEAD_DIM] = i < work.heads * HEAD_DIM ? widen(from[i]) : 0.0f;
    }
}

// The scores of positions `begin .. begin + count`, as weights[head][position].
__device__ void score_keys(Shared& shared, const CACHE* keys, int count, const Shape& shape) {
    int subgroup = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    for (int base = 0; base < count; base += SUBGROUPS * KEYS_IN_FLIGHT) {
        const CACHE* key[KEYS_IN_FLIGHT];
        float dot[KEYS_IN_FLIGHT][GROUP] = {};
#pragma unroll
        for (int k = 0; k < KEYS_IN_FLIGHT; k++) {
            int at = base + k * SUBGROUPS + subgroup;
            key[k] = keys + shared.slots[at < count ? at : 0] * shape.slot_stride;
        }
#pragma unroll
        for (int j = 0; j < GROUPS_PER_LANE; j++) {
            int column = (j * LANES + lane) * WIDTH;
            if (column >= HEAD_DIM) break;
            float value[KEYS_IN_FLIGHT][WIDTH];
#pragma unroll
            for (int k = 0; k < KEYS_IN_FLIGHT; k++) load<WIDTH>(key[k] + column, value[k]);
#pragma unroll
            for (int h = 0; h < GROUP; h++) {
                float query[WIDTH];
                load_floats<WIDTH>(&shared.query[h][column], query);
#pragma unroll
                for (int k = 0; k < KEYS_IN_FLIGHT; k++) {
#pragma unroll
                    for (int w = 0; w < WIDTH; w++) dot[k][h] = fmaf(query[w], value[k][w], dot[k][h]);
                }
            }
        }
#pragma unroll
        for (int k = 0; k < KEYS_IN_FLIGHT; k++) {
            int at = base + k * SUBGROUPS + subgroup;
#pragma unroll
            for (int h = 0; h < GROUP; h++) {
                float score = sum_of_lanes(dot[k][h], LANES);
                if (lane == 0 && at < count) shared.weights[h][at] = score * shape.scale;
            }
        }
    }
}

// Turns scores into exp(score - largest), and sums them: a warp per head.
__device__ void weigh(Shared& shared, int count, const Shape& shape) {
    int lane = threadIdx.x % WARP;
    for (int h = threadIdx.x / WARP; h < GROUP; h += THREADS / WARP) {
        float* weights = shared.weights[h];
        float largest = -__uint_as_float(0x7f800000u);
        for (int i = lane; i < count; i += WARP) {
            float score = weights[i];
            if (shape.softcap > 0.0f) {
                score = shape.softcap * tanhf(score / shape.softcap);
                weights[i] = score;
            }
            largest = fmaxf(largest, score);
        }
        largest = max_of_warp(largest);
        float total = 0.0f;
        for (int i = lane; i < count; i += WARP) {
            float weight = expf(weights[i] - largest);
            weights[i] = weight;
            total += weight;
        }
        total = sum_of_warp(total);
        if (lane == 0) {
            shared.largest[h] = largest;
            shared.total[h] = total;
        }
    }
}

// sums[share][head][column] = sum of weight * value over the share's positions.
__device__ void sum_values(Shared& shared, const CACHE* values, int count, const Shape& shape) {
#pragma unroll
    for (int pass = 0; pass < COLUMN_PASSES; pass++) {
        int index = pass * THREADS + threadIdx.x;
        int share = COLUMN_PASSES == 1 ? index / GROUPS_OF_WIDTH : 0;
        int column = (COLUMN_PASSES == 1 ? index % GROUPS_OF_WIDTH : index) * WIDTH;
        if (share >= SHARES || column >= HEAD_DIM) continue;
        float sum[GROUP][WIDTH] = {};
        for (int base = share; base < count; base += SHARES * VALUES_IN_FLIGHT) {
            float value[VALUES_IN_FLIGHT][WIDTH];
#pragma unroll
            for (int k = 0; k < VALUES_IN_FLIGHT; k++) {
                int at = base + k * SHARES;
                load<WIDTH>(values + shared.slots[at < count ? at : 0] * shape.slot_stride + column, value[k]);
            }
#pragma unroll
            for (int k = 0; k < VALUES_IN_FLIGHT; k++) {
                int at = base + k * SHARES;
                if (at >= count) break;
#pragma unroll
                for (int h = 0; h < GROUP; h++) {
                    float weight = shared.weights[h][at];
#pragma unroll
                    for (int w = 0; w < WIDTH; w++) sum[h][w] = fmaf(weight, value[k][w], sum[h][w]);
                }
            }
        }
#pragma unroll
        for (int h = 0; h < GROUP; h++) {
#pragma unroll
            for (int w = 0; w < WIDTH; w++) shared.sums[share][h][column + w] = sum[h][w];
        }
    }
}

// One chunk: its largest scores, totals and sums are in shared memory when it returns.
__device__ void attend(Shared& shared, const CACHE* keys, const CACHE* values, const Work& work, int chunk,
                       const Shape& shape) {
    int begin = max(work.first, chunk * CHUNK);
    int count = min(work.last + 1, (chunk + 1) * CHUNK) - begin;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        int position = begin + i;
        shared.slots[i] = work.table[position / shape.block_size] * shape.block_size + position % shape.block_size;
    }
    long long head = work.kv_head * shape.head_stride;
    __syncthreads(); // slots and query
    score_keys(shared, keys + head, count, shape);
    __syncthreads();
    weigh(shared, count, shape);
    __syncthreads();
    sum_values(shared, values + head, count, shape);
    __syncthreads();
}

__device__ __forceinline__ float sum_of_shares(const Shared& shared, int head, int column) {
    float sum = shared.sums[0][head][column];
#pragma unroll
    for (int share = 1; share < SHARES; share++) sum += shared.sums[share][head][column];
    return sum;
}

// Sums relative to different largest scores, added: `sum * e^(largest - common) + other * e^(other_largest - common)`.
__device__ __forceinline__ float merged(float sum, float largest, float other, float other_largest) {
    float common = fmaxf(largest, other_largest);
    return __fmaf_rn(other, expf(other_largest - common), __fmul_rn(sum, expf(largest - common)));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attend_whole(const ELEMENT* qkv, const CACHE* keys, const CACHE* values, const int* positions, const int* sequences,
                 const int* tables, ELEMENT* out, const __grid_constant__ Shape shape) {
    start_next_kernel();
    wait_for_previous_kernel();
    extern __shared__ __align__(16) char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    Work work = work_of_block(positions, sequences, tables, shape);
    read_query(shared, qkv, work, shape);
    float result[RESULTS];
    int first_chunk = work.first / CHUNK;
    for (int chunk = first_chunk; chunk <= work.last / CHUNK; chunk++) {
        attend(shared, keys, values, work, chunk, shape);
#pragma unroll
        for (int r = 0; r < RESULTS; r++) {
            int i = r * THREADS + threadIdx.x;
            if (i >= GROUP * HEAD_DIM) break;
            int head = i / HEAD_DIM;
            float sum = sum_of_shares(shared, head, i % HEAD_DIM);
            bool is_first = chunk == first_chunk;
            result[r] = is_first ? sum : merged(result[r], shared.merged_largest[head], sum, shared.largest[head]);
        }
        __syncthreads();
        if (threadIdx.x < GROUP) {
            int head = threadIdx.x;
            float largest = shared.merged_largest[head], other = shared.largest[head];
            bool is_first = chunk == first_chunk;
            shared.merged_total[head] =
                is_first ? shared.total[head] : merged(shared.merged_total[head], largest, shared.total[head], other);
            shared.merged_largest[head] = is_first ? other : fmaxf(largest, other);
        }
        __syncthreads();
    }
    ELEMENT* to = out + ((long long)work.token * shape.num_heads + work.first_head) * HEAD_DIM;
#pragma unroll
    for (int r = 0; r < RESULTS; r++) {
        int i = r * THREADS + threadIdx.x;
        if (i < work.heads * HEAD_DIM) narrow(result[r] / shared.merged_total[i / HEAD_DIM], to[i]);
    }
}

// Chunk blockIdx.z into sums [T, num_heads, chunks_max, HEAD_DIM] and scales [T, num_heads, chunks_max, 2] (the largest
// score and the total). Chunks that the token does not see are left unwritten.
extern "C" __global__ void __launch_bounds__(THREADS)
    attend_chunk(const ELEMENT* qkv, const CACHE* keys, const CACHE* values, const int* positions, const int* sequences,
                 const int* tables, float* sums, float* scales, const __grid_constant__ Shape shape) {
    start_next_kernel();
    wait_for_previous_kernel();
    extern __shared__ __align__(16) char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    Work work = work_of_block(positions, sequences, tables, shape);
    int chunk = blockIdx.z;
    if (chunk < work.first / CHUNK || chunk > work.last / CHUNK) return;
    read_query(shared, qkv, work, shape);
    attend(shared, keys, values, work, chunk, shape);
    long long first = ((long long)work.token * shape.num_heads + work.first_head) * shape.chunks_max + chunk;
#pragma unroll
    for (int r = 0; r < RESULTS; r++) {
        int i = r * THREADS + threadIdx.x;
        if (i >= work.heads * HEAD_DIM) break;
        int head = i / HEAD_DIM, column = i % HEAD_DIM;
        sums[(first + (long long)head * shape.chunks_max) * HEAD_DIM + column] = sum_of_shares(shared, head, column);
    }
    if (threadIdx.x < work.heads) {
        float* scale = scales + (first + (long long)threadIdx.x * shape.chunks_max) * 2;
        scale[0] = shared.largest[threadIdx.x];
        scale[1] = shared.total[threadIdx.x];
    }
}

// A block takes one token and one query head, a thread every THREADS-th column.
extern "C" __global__ void __launch_bounds__(THREADS)
    merge_chunks(const float* sums, const float* scales, const int* positions, ELEMENT* out,
                 const __grid_constant__ Shape shape) {
    start_next_kernel();
    wait_for_previous_kernel();
    int last = positions[blockIdx.x];
    int first = shape.window > 0 ? max(0, last + 1 - shape.window) : 0;
    long long index = (long long)blockIdx.x * shape.num_heads + blockIdx.y;
    for (int column = threadIdx.x; column < HEAD_DIM; column += THREADS) {
        long long at = index * shape.chunks_max + first / CHUNK;
        float result = sums[at * HEAD_DIM + column], largest = scales[at * 2], total = scales[at * 2 + 1];
        for (int chunk = first / CHUNK + 1; chunk <= last / CHUNK; chunk++) {
            at++;
            float other = scales[at * 2];
            result = merged(result, largest, sums[at * HEAD_DIM + column], other);
            total = merged(total, largest, scales[at * 2 + 1], other);
            largest = fmaxf(largest, other);
        }
        narrow(result / total, out[index * HEAD_DIM + column]);
    }
}
