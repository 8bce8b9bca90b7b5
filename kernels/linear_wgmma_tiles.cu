// linear_wgmma_tiles: out = after(x * weight^T + bias) for hundreds of rows of x and more, with the asynchronous matrix
// instructions of Hopper; 16-bit elements.
//
// Variants: ELEMENT=f16|bf16 AFTER:KIND:CLUSTER:ORDERED:OUTPUTS:HEAD:CACHE=STORE:RELU:2:1:128:128:ELEMENT|GATE:SILU:2:1:128:128:ELEMENT|GATE:GELU_TANH:1:1:128:128:ELEMENT|ACTIVATE:GELU_ERF:1:1:128:128:ELEMENT|ACTIVATE:RELU:2:1:128:128:ELEMENT|GATE:SILU:2:0:192:128:ELEMENT|GATE:SILU:1:0:128:128:ELEMENT|ACTIVATE:GELU_ERF:1:0:128:128:ELEMENT|ROTATE:RELU:2:0:128:128:ELEMENT|ROTATE:RELU:1:0:128:64:ELEMENT|ROTATE:RELU:2:0:128:128:e4m3
// Targets: sm_90a
// Needs: heads.cuh qkv_rows.cuh wgmma.cuh wgmma_products.cuh
//
// Operands and AFTER are those of linear_wgmma, and ROTATE: heads of HEAD elements of queries and keys are normalised and
// rotated, queries stored in `out`, keys and values in the KV cache alone, all with the bits that rope_and_store_kv gives them.
// Where it is ORDERED, every row has the bits that linear_wgmma and linear_few_rows give it then.
//
// As many blocks as multiprocessors take tiles of ROWS rows of x and OUTPUTS outputs, in an order in which those that run
// together share weights and rows that the second-level cache holds. One thread copies chunks of both into a ring, into the
// next tile while results are written. The blocks of a cluster take neighbouring rows of the same outputs, and each copies a
// part of the weights to all of them, so that less is read from the cache.
//
// ORDERED, two warpgroups multiply 64 rows of a tile each. A thread has three sets of sums: a pair of those that the order
// has, and the total of the pairs before. A tile takes its multiplications at the rate of the tensor cores, and 2.8 us for the
// ends of quarters and its results, in which they wait.
//
// Else the warpgroups take whole tiles by turns, so that one multiplies while the other's results are finished and written. Gates' may
// have 192 outputs: a row or a weight is then read for more products, which saves energy, by which prompts are limited. Those
// of ROTATE take longer than the multiplications of 1,024 inputs: ORDERED, where nothing would hide them, is without.
//
// Limits: K a multiple of 8, N of 16, everything on 16-byte boundaries.

constexpr int WARPGROUPS = 2, CONSUMERS = 128 * WARPGROUPS, THREADS = CONSUMERS + 128;
constexpr int ROWS = 64 * WARPGROUPS, STAGES = OUTPUTS == 128 ? 6 : 5;
static_assert(OUTPUTS == 128 || (AFTER == GATE && !ORDERED), "what is finished otherwise has no room for more");
constexpr int X_BYTES = ROWS * INPUTS * 2, WEIGHT_BYTES = OUTPUTS * INPUTS * 2, PART_BYTES = WEIGHT_BYTES / CLUSTER;
constexpr int SUMS = OUTPUTS / 2; // of a thread
constexpr int COLUMNS = AFTER == GATE ? OUTPUTS / 2 : OUTPUTS;
constexpr int TURNS = ORDERED ? 1 : WARPGROUPS;
constexpr int SLABS = ORDERED ? 1 : 2; // of 64 rows that a warpgroup takes of a tile
// A row of results in shared memory; what spreads rows over the banks holds the bias of four outputs.
constexpr int RESULT_BYTES = COLUMNS * 2 + 16;
constexpr int GROUPS = COLUMNS / 8; // of 16 bytes in a row of results
constexpr int BIASES = (OUTPUTS + 127) / 128; // that a thread brings

struct Shape {
    int rows, width, inputs; // M, columns of the result, K
    int output_tiles, row_tiles, band; // tiles of rows are those of a cluster; `band` of them go through all outputs together
    long long residual_stride;
};

struct Shared {
    char x[STAGES][X_BYTES], weights[STAGES][WEIGHT_BYTES];
    char results[WARPGROUPS][64 * RESULT_BYTES];
    unsigned long long full[STAGES], empty[STAGES];
};

// A part of the weights to the same place in every block of the cluster, whose barriers count its bytes.
__device__ __forceinline__ void copy_weights_to_all(void* to, const TensorMap& map, int column, int group, unsigned long long& barrier) {
    if constexpr (CLUSTER == 1) {
        copy_weights(to, map, column, group, barrier);
    } else {
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
                     " [%0], [%1, {%2, 0, 0, %3}], [%4], %5;" ::"r"(shared_address(to)),
                     "l"(&map), "r"(column), "r"(group), "r"(shared_address(&barrier)), "h"((unsigned short)((1 << CLUSTER) - 1))
                     : "memory");
    }
}
__device__ __forceinline__ void arrive_at(int rank, const unsigned long long& barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(shared_address_of(rank, &barrier)) : "memory");
}
__device__ __forceinline__ void write_four_matrices(unsigned int to, const unsigned int (&pairs)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(pairs[0]), "r"(pairs[1]),
                 "r"(pairs[2]), "r"(pairs[3])
                 : "memory");
}

// What a block computes at a time.
struct Tile {
    int first_row, output_tile;

    __device__ __forceinline__ Tile(int item, const Shape& shape) {
        int in_band = shape.band * shape.output_tiles, band = item / in_band, within = item % in_band;
        int tiles = min(shape.band, shape.row_tiles - band * shape.band);
        output_tile = within / tiles;
        first_row = ((band * shape.band + within % tiles) * CLUSTER + blockIdx.x % CLUSTER) * ROWS;
    }
};
// Every so many of a block's tiles.
struct Items {
    int next, end, step;

    __device__ __forceinline__ Items(const Shape& shape, int first, int turns)
        : end(shape.row_tiles * shape.output_tiles), step(gridDim.x / CLUSTER) {
        next = blockIdx.x / CLUSTER + first * step;
        step *= turns;
    }
};

__device__ void produce(Shared& shared, const TensorMap& x, const TensorMap& weights, const Shape& shape) {
    int chunks = chunks_of(shape.inputs), rank = blockIdx.x % CLUSTER;
    Ring<STAGES> ring;
    for (Items items(shape, 0, 1); items.next < items.end; items.next += items.step) {
        Tile tile(items.next, shape);
        int group = tile.output_tile * (OUTPUTS / 16) + rank * (OUTPUTS / 16 / CLUSTER);
        for (int chunk = 0; chunk < chunks; chunk++, ring.advance()) {
            wait_for(shared.empty[ring.stage], ring.parity ^ 1); // in all blocks
            unsigned long long& full = shared.full[ring.stage];
            expect_bytes(full, X_BYTES + WEIGHT_BYTES);
            copy_x(shared.x[ring.stage], x, chunk * INPUTS, tile.first_row, full);
            copy_weights_to_all(shared.weights[ring.stage] + rank * PART_BYTES, weights, chunk * INPUTS, group, full);
        }
    }
}

// Places of stages, the same for all lanes; what is multiplied as operands.
struct Bases {
    unsigned int full;
    unsigned long long x, weights;

    __device__ __forceinline__ explicit Bases(Shared& shared)
        : full(uniform(shared_address(shared.full))), x(operand(shared.x, 16)), weights(operand(shared.weights, 16)) {}
    __device__ __forceinline__ void wait(const Ring<STAGES>& ring) const { wait_for(full + ring.stage * 8, ring.parity); }
    // With `bytes` within a row.
    __device__ __forceinline__ unsigned long long x_at(int stage, int bytes) const { return x + (stage * X_BYTES + bytes >> 4); }
    __device__ __forceinline__ unsigned long long weights_at(int stage, int bytes) const {
        return weights + (stage * WEIGHT_BYTES + bytes >> 4);
    }
};

// Products of the 16 inputs from `FIRST` * 16 on, and of the next 16.
template <int FIRST>
__device__ __forceinline__ void start_products(float (&sums)[SUMS], unsigned long long x, unsigned long long weights, bool adds) {
    multiply_shared(sums, x + FIRST * (32 >> 4), weights + FIRST * (32 >> 4), adds);
    multiply_shared(sums, x + (FIRST + 1) * (32 >> 4), weights + (FIRST + 1) * (32 >> 4), true);
}
__device__ __forceinline__ void release(Shared& shared, int stage) {
    int rank = threadIdx.x % 128;
    if (rank >= CLUSTER) return;
    if constexpr (CLUSTER == 1) {
        arrive(shared.empty[stage]);
    } else {
        arrive_at(rank, shared.empty[stage]);
    }
}

__device__ __forceinline__ void multiply_all(float (&total)[SUMS], Shared& shared, Ring<STAGES>& ring, int chunks) {
    int rows = (uniform(threadIdx.x / 128) - 1) * 64 * 128;
    Bases bases(shared);
    ring = ring.as_uniform();
#pragma unroll
    for (int i = 0; i < SUMS; i++) total[i] = 0.0f;
#pragma unroll 1
    for (int quarter = 0; quarter < PAIRS; quarter++) {
        float sums[SUMS], others[SUMS];
        int begin = begin_of(quarter, chunks), end = begin_of(quarter + 1, chunks), before = 0;
        if (begin == end) continue; // nothing to add
        for (int chunk = begin; chunk < end; chunk++) {
            bases.wait(ring);
            unsigned long long x = bases.x_at(ring.stage, rows), weights = bases.weights_at(ring.stage, 0);
            fence_multiplications();
            start_products<0>(sums, x, weights, chunk > begin);
            start_products<2>(others, x, weights, chunk > begin);
            commit_multiplications();
            wait_for_multiplications<1>();
            if (chunk > begin) release(shared, before);
            before = ring.stage;
            ring.advance();
        }
        wait_for_multiplications<0>();
        settle(sums);
        settle(others);
        release(shared, before);
#pragma unroll
        for (int i = 0; i < SUMS; i++) total[i] += sums[i] + others[i];
    }
}

// Warpgroups multiply one after the other. A barrier tells only whether the phase of a parity is over: who waited for the chunks
// of a later tile would take those of an earlier one for them.
__device__ __forceinline__ void wait_for_turn(int group) { meet(1 + WARPGROUPS + group, CONSUMERS); }
__device__ __forceinline__ void give_turn(int group) { let_go(1 + WARPGROUPS + group, CONSUMERS); }

// The sums of whole tiles: of the first 64 rows and of the others.
__device__ __forceinline__ void multiply_all(float (&sums)[2][SUMS], Shared& shared, Ring<STAGES>& ring, int chunks,
                                             bool is_last) {
    int before = 0, group = uniform(threadIdx.x / 128) - 1;
    // Zeros, where the first products could start anew: for the compiler they depend on what the registers held before, and
    // products that do are not asynchronous where that was written in a branch.
#pragma unroll
    for (int i = 0; i < 2 * SUMS; i++) sums[i / SUMS][i % SUMS] = 0.0f;
    Bases bases(shared);
    Ring<STAGES> place = ring.as_uniform();
    wait_for_turn(group);
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
        bases.wait(place);
        unsigned long long x = bases.x_at(place.stage, 0), weights = bases.weights_at(place.stage, 0);
        fence_multiplications();
#pragma unroll
        for (int i = 0; i < INPUTS / 16; i++) {
#pragma unroll
            for (int slab = 0; slab < 2; slab++)
                multiply_shared(sums[slab], x + (slab * 64 * 128 + i * 32 >> 4), weights + (i * 32 >> 4), true);
        }
        commit_multiplications();
        wait_for_multiplications<1>();
        if (chunk > 0) release(shared, before);
        before = place.stage;
        place.advance();
    }
    ring = place;
    if (!is_last) give_turn(1 - group);
    wait_for_multiplications<0>();
    settle(sums[0]);
    settle(sums[1]);
    release(shared, before);
}

// Where the bias of an output of the tile is; that of the next one is beside it if `output` is even.
__device__ __forceinline__ float* bias_at(char* results, int output) {
    return reinterpret_cast<float*>(results + output / 4 * RESULT_BYTES + COLUMNS * 2) + output % 4;
}
// Position and slot of a row of ROTATE, behind the bias of all outputs.
__device__ __forceinline__ int2* token_at(char* results, int row) {
    return reinterpret_cast<int2*>(results + (32 + row / 2) * RESULT_BYTES + COLUMNS * 2) + row % 2;
}
__device__ __forceinline__ int2 token_of(int row, const Operands& operands, const Rows& rows) {
    bool present = AFTER == ROTATE && row < rows.num_tokens;
    return present ? make_int2(operands.positions[row], operands.slots[row]) : make_int2(0, -1);
}
// Of a thread's sums, 8 columns of which two are its own: rounded results of row `half` of its two.
__device__ __forceinline__ unsigned int result(const float (&sums)[SUMS], int eight, int half, char* results) {
    int gates = AFTER == GATE ? 2 * eight : eight, at = 4 * gates + 2 * half, output = gates * 8 + threadIdx.x % 4 * 2;
    float2 added = *reinterpret_cast<const float2*>(bias_at(results, output));
    float2 value = make_float2(sums[at] + added.x, sums[at + 1] + added.y);
    if constexpr (AFTER == ACTIVATE || AFTER == GATE) {
        value = make_float2(activate<KIND>(rounded(value.x)), activate<KIND>(rounded(value.y)));
    }
    if constexpr (AFTER == GATE) {
        float2 other = *reinterpret_cast<const float2*>(bias_at(results, output + 8));
        value.x *= rounded(sums[at + 4] + other.x), value.y *= rounded(sums[at + 5] + other.y);
    }
    return narrow_pair<ELEMENT>(value.x, value.y);
}
__device__ __forceinline__ void write_results(const float (&sums)[SUMS], char* results) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x % 128 / WARP;
    unsigned int to = shared_address(results) + (warp * 16 + lane % 16) * RESULT_BYTES + lane / 16 * 16;
#pragma unroll
    for (int eight = 0; eight < COLUMNS / 8; eight += 2) {
        unsigned int pairs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) pairs[i] = result(sums, eight + i / 2, i % 2, results);
        write_four_matrices(to + eight * 16, pairs);
    }
}
// The bias of output `index` of a tile.
__device__ __forceinline__ float bias_of(int index, const float* bias, int first, const Shape& shape) {
    bool is_value = AFTER == GATE && index / 8 % 2 == 1;
    int column = first + (AFTER == GATE ? index / 16 * 8 + index % 8 : index);
    return bias != nullptr && column < shape.width ? bias[column + (is_value ? shape.width : 0)] : 0.0f;
}
// Asks for what will be added to a warpgroup's results.
__device__ __forceinline__ void prefetch_residual(const ELEMENT* residual, int first_row, int first, const Shape& shape) {
    int row = first_row + threadIdx.x % 128 / 2, column = first + threadIdx.x % 2 * 64;
    if (AFTER != STORE || residual == nullptr || row >= shape.rows || column >= shape.width) return;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(residual + row * shape.residual_stride + column));
}
__device__ __forceinline__ void copy_results(const char* results, const ELEMENT* residual, ELEMENT* out, int first_row, int first,
                                             const Shape& shape) {
    constexpr int AT_ONCE = GROUPS % 8 == 0 ? 4 : 3;
    static_assert(64 * GROUPS % (AT_ONCE * 128) == 0, "no thread goes beyond the results");
#pragma unroll 1
    for (int first_index = threadIdx.x % 128; first_index < 64 * GROUPS; first_index += AT_ONCE * 128) {
        uint4 added[AT_ONCE];
        bool present[AT_ONCE];
        long long at[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int index = first_index + i * 128, row = first_row + index / GROUPS, column = first + index % GROUPS * 8;
            present[i] = row < shape.rows && column < shape.width;
            at[i] = (long long)row * shape.width + column;
            if (AFTER != STORE || residual == nullptr || !present[i]) continue;
            added[i] = *reinterpret_cast<const uint4*>(residual + row * shape.residual_stride + column);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (!present[i]) continue;
            int index = first_index + i * 128;
            uint4 raw = *reinterpret_cast<const uint4*>(results + index / GROUPS * RESULT_BYTES + index % GROUPS * 16);
            if (AFTER == STORE && residual != nullptr) raw = sum_of(raw, added[i]);
            *reinterpret_cast<uint4*>(out + at[i]) = raw;
        }
    }
}

// What rope_and_store_kv does, of 64 rows of a tile. Several rows of a thread under way at once take as long.
__device__ __forceinline__ void store_heads(char* results, int first_row, int first, const Operands& operands, const Rows& rows,
                                            Rotation rotation) {
    constexpr int V = 8, LANES = HEAD / (2 * V), HEADS = OUTPUTS / HEAD, TOGETHER = 128 / (LANES * HEADS);
    int head_of_tile = threadIdx.x / LANES % HEADS;
    Place place(first / HEAD + head_of_tile, threadIdx.x % LANES, rows);
    Head head = place.head(operands, rows, rotation);
    rotation.lanes = LANES, head.dim = HEAD, head.half = HEAD / 2; // known here, and even if nothing is rotated
    bool rotates = rotation.rotary_dim > 0 && place.present && !place.is_value;
    bool only_values = __all_sync(ALL_LANES, place.is_value);
    const char* from = results + (head_of_tile * HEAD + place.lane * V) * 2;
    Factors<V> factors;
    if (place.present) factors.read_weights(head, place.lane);
#pragma unroll 1
    for (int row = threadIdx.x % 128 / (LANES * HEADS); row < 64; row += TOGETHER) {
        int2 token = *token_at(results, row);
        head.angles = rotates ? rotation.angles(operands.table, token.x) : nullptr;
        factors.read_angles(head, place.lane);
        const char* at = from + row * RESULT_BYTES;
        uint4 raw[2] = {*reinterpret_cast<const uint4*>(at), *reinterpret_cast<const uint4*>(at + HEAD)};
        bool present = place.present && first_row + row < rows.num_tokens;
        if (present) place.of_token(head, first_row + row, token.y, operands, rows);
        if (only_values) {
            if (present && head.stored != nullptr) copy_halves(head, raw, place.lane);
            continue;
        }
        float value[2][V];
        widen_16_bytes(raw[0], ELEMENT{}, value[0]);
        widen_16_bytes(raw[1], ELEMENT{}, value[1]);
        transform_halves(head, factors, value, present, place.lane, rotation);
    }
}

// What becomes of sums: `operands.qkv` is the output, the rest of it is of ROTATE.
struct Finish {
    const float* bias;
    const ELEMENT* residual;
    const Operands& operands;
    const Shape& shape;
    const Rows& rows;
    const Rotation& rotation;

    // 64 rows of a tile. A thread brings the bias of every 128th output of the tile, and the token of one of its rows.
    __device__ __forceinline__ void take(float (&sums)[SUMS], char* results, const float (&own_bias)[BIASES], int2 own_token,
                                         int slab, int first_row, int first) const {
        int group = threadIdx.x / 128 - 1;
#pragma unroll
        for (int i = 0; i < BIASES; i++) {
            int output = threadIdx.x % 128 + i * 128;
            if (output < OUTPUTS) *bias_at(results, output) = own_bias[i];
        }
        meet(1 + group, 128); // and the results before are written
        if (AFTER == ROTATE && threadIdx.x % 128 / 64 == slab) *token_at(results, threadIdx.x % 64) = own_token;
        write_results(sums, results);
        meet(1 + group, 128);
        if constexpr (AFTER == ROTATE) {
            store_heads(results, first_row, first, operands, rows, rotation);
        } else {
            copy_results(results, residual, operands.qkv, first_row, first, shape);
        }
    }
};

__device__ void consume(Shared& shared, const Finish& finish) {
    const Shape& shape = finish.shape;
    int chunks = chunks_of(shape.inputs), group = uniform(threadIdx.x / 128) - 1;
    char* results = shared.results[group];
    Ring<STAGES> ring;
    if constexpr (!ORDERED) {
        ring.skip(group * chunks); // the other warpgroup's tile
        if (group == 1) give_turn(0);
    }
    for (Items items(shape, ORDERED ? 0 : group, TURNS); items.next < items.end; items.next += items.step) {
        Tile tile(items.next, shape);
        int first = tile.output_tile * COLUMNS, first_row = tile.first_row + (ORDERED ? group * 64 : 0);
        float own_bias[BIASES];
#pragma unroll
        for (int i = 0; i < BIASES; i++) own_bias[i] = bias_of(threadIdx.x % 128 + i * 128, finish.bias, first, shape);
        int2 own_token = token_of(first_row + threadIdx.x % 128, finish.operands, finish.rows);
        for (int slab = 0; slab < SLABS; slab++) prefetch_residual(finish.residual, first_row + slab * 64, first, shape);
        if constexpr (ORDERED) {
            float total[SUMS];
            multiply_all(total, shared, ring, chunks);
            finish.take(total, results, own_bias, own_token, 0, first_row, first);
        } else {
            float sums[2][SUMS];
            multiply_all(sums, shared, ring, chunks, items.next + items.step / TURNS >= items.end);
            ring.skip(chunks);
#pragma unroll
            for (int slab = 0; slab < 2; slab++)
                finish.take(sums[slab], results, own_bias, own_token, slab, first_row + slab * 64, first);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
    linear_wgmma_tiles(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights, const float* bias,
                       const ELEMENT* residual, ELEMENT* out, const float* query_norm, const float* key_norm, const float* table,
                       const int* positions, const int* slots, CACHE* keys, CACHE* values, const __grid_constant__ Shape shape,
                       const __grid_constant__ Rows rows, const __grid_constant__ Rotation rotation) {
    start_next_kernel();
    extern __shared__ __align__(1024) char memory[]; // swizzled rows repeat every 1024 bytes
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == 0) {
        prefetch_map(weights);
        prefetch_map(x);
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(shared.full[stage], 1);
            init_barrier(shared.empty[stage], ORDERED ? CLUSTER * WARPGROUPS : CLUSTER);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    arrive_in_cluster();
    wait_for_cluster(); // barriers of all blocks are ready
    wait_for_previous_kernel();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) produce(shared, x, weights, shape);
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        Operands operands = {out, query_norm, key_norm, table, positions, slots, keys, values};
        consume(shared, {bias, residual, operands, shape, rows, rotation});
    }
    // No block copies to one that has ended, or tells it that a stage is free.
    arrive_in_cluster();
    wait_for_cluster();
}
