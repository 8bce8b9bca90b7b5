// linear_wgmma: out = after(x * weight^T + bias) for tens to hundreds of rows of x, with the asynchronous matrix instructions
// of Hopper; 16-bit elements.
//
// Variants: ELEMENT=f16|bf16 AFTER:KIND:ROWS:SPLIT:WEIGHT_STAGES:X_STAGES:ORDERED=STORE:RELU:128:2:4:4:0|STORE:RELU:64:8:6:6:0|STORE:RELU:64:4:7:5:0|STORE:RELU:96:1:6:5:0|GATE:SILU:128:1:6:4:0|GATE:GELU_TANH:96:2:5:5:0|GATE:SILU:64:2:7:6:0|ACTIVATE:GELU_ERF:64:1:8:6:0|STORE:RELU:64:4:7:5:1|STORE:RELU:64:2:6:6:1|STORE:RELU:128:1:6:4:1|GATE:SILU:64:2:6:6:1|GATE:SILU:128:1:6:4:1|ACTIVATE:GELU_ERF:64:1:8:6:1
// Targets: sm_90a
// Needs: wgmma.cuh wgmma_products.cuh
//
// `x` is [M, K], `weight` [N, K], both with rows apart by a stride. AFTER is as in linear_few_rows: STORE, with a residual if
// there is one, ACTIVATE or GATE, each result rounded where the separate operations round it.
//
// A block multiplies 64 rows of the weights, which are the rows of an instruction, by ROWS rows of x, which are its columns,
// for a part of the inputs: the SPLIT blocks of a cluster share those. So small weights keep most multiprocessors busy
// without each of them reading all of x. Each block finishes a part of the rows of x: the others put their sums for those
// into its shared memory, and it adds them in the order of the inputs. Gates come with the values that they are multiplied
// by: 8 rows of the one, 8 of the other, so that a thread has both. (Tried: blocks beside each other that copy parts of x into
// each other's shared memory as well; 1.3 to 3 times slower.)
//
// ORDERED gives each row the bits that linear_few_rows gives it: a quarter of the chunks after the other has a pair of sums, one
// for either half of its chunks. The blocks of a cluster share the quarters.
//
// One warp copies weights into a ring, chunk after chunk of 64 inputs, and begins before the kernel before this one has
// ended; another copies x, which waits for it; a warpgroup multiplies. A block takes less than half of a multiprocessor's
// shared memory, so that the next kernel's first weights have room beside it.
//
// Memory: x is read by every tile of outputs, from the second-level cache; weights by every tile of rows.
// Limits: K a multiple of 8, N of 16, everything on 16-byte boundaries.

static_assert(!ORDERED || PAIRS % SPLIT == 0, "blocks have equal numbers of pairs of sums");
// Quarters of a block, and the sums that it then has, which others need.
constexpr int QUARTERS = ORDERED ? PAIRS / SPLIT : 1, KEPT = SPLIT == 1 ? 1 : QUARTERS;

constexpr int OUTPUTS = 64; // of a block, gates and values counted
constexpr int CONSUMERS = 128, THREADS = CONSUMERS + 2 * WARP;
constexpr int WEIGHT_BYTES = OUTPUTS * INPUTS * 2, X_BYTES = ROWS * INPUTS * 2;
// What a block finishes: rows of x, sums of a thread for them, columns of the results.
constexpr int OWN_ROWS = ROWS / SPLIT, OWN_SUMS = ROWS / 2 / SPLIT, COLUMNS = AFTER == GATE ? OUTPUTS / 2 : OUTPUTS;
static_assert(OWN_ROWS % 8 == 0, "blocks finish whole columns of the instruction");
// A row of results in shared memory; rows are apart by what spreads them over the banks.
constexpr int RESULT_BYTES = COLUMNS * 2 + 16;
// 16-byte groups of a row of results, and how many a thread writes.
constexpr int GROUPS = COLUMNS / 8, GROUPS_OF_THREAD = (OWN_ROWS * GROUPS + CONSUMERS - 1) / CONSUMERS;

struct Shape {
    int rows, width, inputs; // M, columns of the result, K
    int padding;
    long long residual_stride;
};

struct Shared {
    char weights[WEIGHT_STAGES][WEIGHT_BYTES], x[X_STAGES][X_BYTES];
    float4 received[SPLIT == 1 ? 1 : (SPLIT - 1) * KEPT][SPLIT == 1 ? 1 : OWN_SUMS / 4][SPLIT == 1 ? 1 : CONSUMERS]; // by other blocks
    unsigned long long weights_full[WEIGHT_STAGES], weights_empty[WEIGHT_STAGES], x_full[X_STAGES], x_empty[X_STAGES];
    unsigned long long all_received;
};
static_assert(OWN_ROWS * RESULT_BYTES <= WEIGHT_STAGES * WEIGHT_BYTES + X_STAGES * X_BYTES, "results have room in the rings");

// Four numbers to the shared memory of another block, whose barrier counts their bytes.
__device__ __forceinline__ void send(unsigned int to, const float* four, unsigned int barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "f"(four[0]), "f"(four[1]), "f"(four[2]), "f"(four[3]), "r"(barrier)
                 : "memory");
}
// 8 x 8 results from a thread's pairs to rows of 16 bytes, rows and columns exchanged; lanes 0 to 7 name the first matrix's
// rows, 8 to 15 the second's.
__device__ __forceinline__ void write_matrix(unsigned int to, unsigned int pairs) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(to), "r"(pairs) : "memory");
}
__device__ __forceinline__ void write_matrices(unsigned int to, unsigned int first, unsigned int second) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to), "r"(first), "r"(second) : "memory");
}
// With the quick forms of exponential and division, whose error is far below that of a 16-bit result.
__device__ __forceinline__ float activated(float x) {
    if constexpr (KIND == SILU && !ORDERED) return __fdividef(x, 1.0f + __expf(-x));
    return activate<KIND>(x);
}

// Chunks [begin, end) of the inputs are this block's.
struct Span {
    int begin, end;
};

__device__ void produce_weights(Shared& shared, const TensorMap& weights, Span span) {
    Ring<WEIGHT_STAGES> ring;
    for (int chunk = span.begin; chunk < span.end; chunk++, ring.advance()) {
        wait_for(shared.weights_empty[ring.stage], ring.parity ^ 1);
        expect_bytes(shared.weights_full[ring.stage], WEIGHT_BYTES);
        copy_weights(shared.weights[ring.stage], weights, chunk * INPUTS, blockIdx.y * (OUTPUTS / 16),
                     shared.weights_full[ring.stage]);
    }
}
__device__ void produce_x(Shared& shared, const TensorMap& x, Span span) {
    Ring<X_STAGES> ring;
    for (int chunk = span.begin; chunk < span.end; chunk++, ring.advance()) {
        wait_for(shared.x_empty[ring.stage], ring.parity ^ 1);
        expect_bytes(shared.x_full[ring.stage], X_BYTES);
        copy_x(shared.x[ring.stage], x, chunk * INPUTS, blockIdx.z * ROWS, shared.x_full[ring.stage]);
    }
}

// Where the consumers are in the rings.
struct Places {
    Ring<WEIGHT_STAGES> weights;
    Ring<X_STAGES> x;
};

// Products of the 16 inputs from `FIRST` * 16 on, and of so many more.
template <int FIRST, int COUNT>
__device__ __forceinline__ void start_products(float (&sums)[ROWS / 2], const char* weights, const char* x, bool adds) {
#pragma unroll
    for (int step = FIRST; step < FIRST + COUNT; step++) {
        multiply_shared(sums, operand(weights + step * 32, 16), operand(x + step * 32, 16), adds || step > FIRST);
    }
}

// The sums over chunks [begin, end); where they are `ORDERED`, over the first half of each chunk and over the second.
__device__ __forceinline__ void multiply_chunks(float (&sums)[ROWS / 2], float (&others)[ROWS / 2], Shared& shared,
                                                Places& places, int begin, int end) {
    Places before;
    for (int chunk = begin; chunk < end; chunk++) {
        wait_for(shared.weights_full[places.weights.stage], places.weights.parity);
        wait_for(shared.x_full[places.x.stage], places.x.parity);
        const char *weights = shared.weights[places.weights.stage], *x = shared.x[places.x.stage];
        fence_multiplications();
        if constexpr (ORDERED) {
            start_products<0, 2>(sums, weights, x, chunk > begin);
            start_products<2, 2>(others, weights, x, chunk > begin);
        } else {
            start_products<0, 4>(sums, weights, x, chunk > begin);
        }
        commit_multiplications();
        wait_for_multiplications<1>();
        if (chunk > begin && threadIdx.x == 0) {
            arrive(shared.weights_empty[before.weights.stage]);
            arrive(shared.x_empty[before.x.stage]);
        }
        before = places;
        places.weights.advance(), places.x.advance();
    }
    wait_for_multiplications<0>();
    settle(sums);
    if constexpr (ORDERED) settle(others);
    if (QUARTERS > 1 && begin < end && threadIdx.x == 0) {
        arrive(shared.weights_empty[before.weights.stage]);
        arrive(shared.x_empty[before.x.stage]);
    }
}

// The sums of all of the block's chunks, of every quarter if others need them.
__device__ __forceinline__ void multiply_all(float (&kept)[KEPT][ROWS / 2], Shared& shared, Span span, int chunks) {
    Places places;
    if constexpr (!ORDERED) {
        multiply_chunks(kept[0], kept[0], shared, places, span.begin, span.end);
        return;
    }
#pragma unroll(KEPT)
    for (int own = 0; own < QUARTERS; own++) {
        float sums[ROWS / 2] = {}, others[ROWS / 2] = {};
        int quarter = blockIdx.x * QUARTERS + own;
        multiply_chunks(sums, others, shared, places, begin_of(quarter, chunks), begin_of(quarter + 1, chunks));
#pragma unroll
        for (int i = 0; i < ROWS / 2; i++) kept[KEPT == 1 ? 0 : own][i] += sums[i] + others[i];
    }
}

// Sums of the rows that are another block's go there; of this block's rows, `own` becomes the sum over all inputs.
__device__ __forceinline__ void exchange(float (&own)[OWN_SUMS], const float (&kept)[KEPT][ROWS / 2], Shared& shared) {
    int rank = blockIdx.x;
    float mine[KEPT][OWN_SUMS];
    wait_for_cluster(); // the others have begun
#pragma unroll
    for (int to = 0; to < SPLIT; to++) {
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            if (to == rank) {
#pragma unroll
                for (int i = 0; i < OWN_SUMS; i++) mine[k][i] = kept[k][to * OWN_SUMS + i];
            } else {
                int place = (rank < to ? rank : rank - 1) * KEPT + k;
                unsigned int there = shared_address_of(to, &shared.received[place][0][threadIdx.x]);
                unsigned int barrier = shared_address_of(to, &shared.all_received);
#pragma unroll
                for (int i = 0; i < OWN_SUMS; i += 4) send(there + i / 4 * CONSUMERS * 16, kept[k] + to * OWN_SUMS + i, barrier);
            }
        }
    }
    wait_for(shared.all_received, 0);
#pragma unroll
    for (int i = 0; i < OWN_SUMS; i++) own[i] = 0.0f;
#pragma unroll
    for (int from = 0; from < SPLIT; from++) {
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            if (from == rank) {
#pragma unroll
                for (int i = 0; i < OWN_SUMS; i++) own[i] += mine[k][i];
            } else {
                int place = (from < rank ? from : from - 1) * KEPT + k;
#pragma unroll
                for (int i = 0; i < OWN_SUMS; i += 4) {
                    float4 four = shared.received[place][i / 4][threadIdx.x];
                    own[i] += four.x, own[i + 1] += four.y, own[i + 2] += four.z, own[i + 3] += four.w;
                }
            }
        }
    }
}

// A thread has two of every eight rows of x for two of its warp's 16 outputs, the first of which may be the other's gate.
__device__ __forceinline__ void write_results(const float (&own)[OWN_SUMS], const float (&bias)[2], char* results) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    unsigned int to = shared_address(results) + lane % 8 * RESULT_BYTES;
    to += AFTER == GATE ? warp * 16 : warp * 32 + lane / 8 % 2 * 16;
#pragma unroll
    for (int i = 0; i < OWN_SUMS; i += 4, to += 8 * RESULT_BYTES) {
        float first[2] = {own[i] + bias[0], own[i + 1] + bias[0]}, second[2] = {own[i + 2] + bias[1], own[i + 3] + bias[1]};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            if (AFTER != STORE) first[j] = activated(rounded(first[j]));
            if (AFTER == ACTIVATE) second[j] = activated(rounded(second[j]));
            if (AFTER == GATE) first[j] *= rounded(second[j]);
        }
        unsigned int pairs = narrow_pair<ELEMENT>(first[0], first[1]);
        if constexpr (AFTER == GATE) {
            write_matrix(to, pairs);
        } else {
            write_matrices(to, pairs, narrow_pair<ELEMENT>(second[0], second[1]));
        }
    }
}

// A 16-byte group of a row of results.
struct Group {
    int row, column, in_batch; // the first two in the block's part
    int output;
    bool present;

    __device__ __forceinline__ Group(int index, const Shape& shape) {
        row = index / GROUPS;
        column = index % GROUPS * 8;
        in_batch = blockIdx.z * ROWS + blockIdx.x * OWN_ROWS + row;
        output = blockIdx.y * COLUMNS + column;
        present = row < OWN_ROWS && in_batch < shape.rows && output < shape.width;
    }
};

__device__ __forceinline__ void read_residual(uint4 (&residual)[GROUPS_OF_THREAD], const ELEMENT* from, const Shape& shape) {
#pragma unroll
    for (int i = 0; i < GROUPS_OF_THREAD; i++) {
        Group group(threadIdx.x + i * CONSUMERS, shape);
        if (!group.present) continue;
        residual[i] = *reinterpret_cast<const uint4*>(from + group.in_batch * shape.residual_stride + group.output);
    }
}
__device__ __forceinline__ void copy_results(const char* results, const uint4 (&residual)[GROUPS_OF_THREAD], bool adds,
                                             ELEMENT* out, const Shape& shape) {
#pragma unroll
    for (int i = 0; i < GROUPS_OF_THREAD; i++) {
        Group group(threadIdx.x + i * CONSUMERS, shape);
        if (!group.present) continue;
        uint4 raw = *reinterpret_cast<const uint4*>(results + group.row * RESULT_BYTES + group.column * 2);
        if (adds) {
            store_sum(out + (long long)group.in_batch * shape.width + group.output, raw, residual[i]);
        } else {
            *reinterpret_cast<uint4*>(out + (long long)group.in_batch * shape.width + group.output) = raw;
        }
    }
}

__device__ __forceinline__ void read_bias(float (&two)[2], const float* bias, const Shape& shape) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int first = blockIdx.y * COLUMNS + warp * (COLUMNS / 4) + lane / 4, second = first + (AFTER == GATE ? shape.width : 8);
    if (bias == nullptr || blockIdx.y * COLUMNS + warp * (COLUMNS / 4) >= shape.width) return;
    two[0] = bias[first], two[1] = bias[second];
}

__device__ __forceinline__ void consume(Shared& shared, const float* bias, const ELEMENT* residual, ELEMENT* out,
                                        const Shape& shape, Span span) {
    float two[2] = {};
    read_bias(two, bias, shape);
    wait_for_previous_kernel();
    bool adds = AFTER == STORE && residual != nullptr;
    uint4 added[GROUPS_OF_THREAD];
    if (adds) read_residual(added, residual, shape);
    float sums[KEPT][ROWS / 2] = {};
    multiply_all(sums, shared, span, chunks_of(shape.inputs));
    char* results = shared.weights[0];
    float own[OWN_SUMS];
    if constexpr (SPLIT > 1) {
        exchange(own, sums, shared);
    } else {
#pragma unroll
        for (int i = 0; i < OWN_SUMS; i++) own[i] = sums[0][i];
    }
    meet(1, CONSUMERS); // no warp multiplies any more: the rings become the place of the results
    write_results(own, two, results);
    meet(1, CONSUMERS);
    copy_results(results, added, adds, out, shape);
}

// blockIdx: the part of the inputs, the tile of outputs, the tile of rows.
extern "C" __global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(SPLIT, 1, 1)
    linear_wgmma(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights, const float* bias,
                 const ELEMENT* residual, ELEMENT* out, const __grid_constant__ Shape shape) {
    start_next_kernel();
    extern __shared__ __align__(1024) char memory[]; // swizzled rows repeat every 1024 bytes
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == CONSUMERS) {
        prefetch_map(weights);
        for (int stage = 0; stage < WEIGHT_STAGES; stage++) {
            init_barrier(shared.weights_full[stage], 1);
            init_barrier(shared.weights_empty[stage], 1);
        }
        for (int stage = 0; stage < X_STAGES; stage++) {
            init_barrier(shared.x_full[stage], 1);
            init_barrier(shared.x_empty[stage], 1);
        }
        if constexpr (SPLIT > 1) {
            init_barrier(shared.all_received, 1);
            expect_bytes(shared.all_received, (SPLIT - 1) * KEPT * OWN_SUMS * CONSUMERS * 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    int chunks = chunks_of(shape.inputs);
    Span span = {(int)blockIdx.x * chunks / SPLIT, ((int)blockIdx.x + 1) * chunks / SPLIT};
    if (threadIdx.x < CONSUMERS) {
        if constexpr (SPLIT > 1) arrive_in_cluster();
        consume(shared, bias, residual, out, shape, span);
    } else if (threadIdx.x == CONSUMERS) {
        produce_weights(shared, weights, span);
    } else if (threadIdx.x == CONSUMERS + WARP) {
        prefetch_map(x);
        wait_for_previous_kernel();
        produce_x(shared, x, span);
    }
}
