// linear_wgmma: out = after(x * weight^T + bias) for tens to hundreds of rows of x, with the asynchronous matrix instructions
// of Hopper; 16-bit elements.
//
// Variants: ELEMENT=f16|bf16 AFTER:KIND:ROWS:SPLIT:WEIGHT_STAGES:X_STAGES:ORDERED:HEAD:CACHE=STORE:RELU:128:2:4:4:0:64:ELEMENT|STORE:RELU:64:8:6:6:0:64:ELEMENT|STORE:RELU:64:4:7:5:0:64:ELEMENT|STORE:RELU:96:1:6:5:0:64:ELEMENT|GATE:SILU:128:1:6:4:0:64:ELEMENT|GATE:GELU_TANH:96:2:5:5:0:64:ELEMENT|GATE:SILU:64:2:7:6:0:64:ELEMENT|ACTIVATE:GELU_ERF:64:1:8:6:0:64:ELEMENT|STORE:RELU:64:4:7:5:1:64:ELEMENT|STORE:RELU:64:2:6:6:1:64:ELEMENT|STORE:RELU:128:1:6:4:1:64:ELEMENT|GATE:SILU:64:2:6:6:1:64:ELEMENT|GATE:SILU:128:1:6:4:1:64:ELEMENT|ACTIVATE:GELU_ERF:64:1:8:6:1:64:ELEMENT|ROTATE:RELU:64:2:7:6:0:128:ELEMENT|ROTATE:RELU:64:4:7:5:0:128:e4m3|ROTATE:RELU:64:4:7:5:0:64:ELEMENT|ROTATE:RELU:128:1:6:4:0:64:ELEMENT|ROTATE:RELU:96:1:6:5:0:64:e4m3
// Targets: sm_90a
// Needs: heads.cuh qkv_rows.cuh wgmma.cuh wgmma_products.cuh
//
// `x` is [M, K], `weight` [N, K], both with rows apart by a stride. AFTER is as in linear_few_rows: STORE, with a residual if
// there is one, ACTIVATE or GATE, each result rounded where the separate operations round it; and ROTATE, as in
// linear_wgmma_tiles: heads of HEAD elements are finished with the bits that rope_and_store_kv gives them.
//
// A block multiplies 64 rows of the weights, which are the rows of an instruction, by ROWS rows of x, which are its columns,
// for a part of the inputs: the SPLIT blocks of a cluster share those. So small weights keep most multiprocessors busy
// without each of them reading all of x. Each block finishes a part of the rows of x: the others put their sums for those
// into its shared memory, and it adds them in the order of the inputs. Gates come with the values that they are multiplied
// by: 8 rows of the one, 8 of the other, so that a thread has both. Elements of heads come with those that they are rotated with:
// a block has a head of 64 elements, or of one of 128 every other eight, and its neighbour in the cluster has the rest. (Tried:
// blocks beside each other that copy parts of x into each other's shared memory as well; 1.3 to 3 times slower.)
//
// Norms by root mean square have no kernel of their own between two such products. The first writes its rows a second time, times
// the weight of the norm, and for each tile of outputs the sum of the squares of every row; the second multiplies those rows, and
// its sums by what the sums of squares come to.
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
// Blocks that send their sums to one.
constexpr int SENDERS = SPLIT == 2 ? 1 : SPLIT;

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

// Blocks that have a head together, and lanes of a block that take a row of it.
constexpr int PARTS = AFTER == ROTATE ? HEAD / OUTPUTS : 1, LANES = OUTPUTS / 16, HELD = (OWN_ROWS * LANES + CONSUMERS - 1) / CONSUMERS;
static_assert(AFTER != ROTATE || HEAD == PARTS * OUTPUTS, "blocks have heads of 64 or 128 elements");

// Whether norms are finished here, if they were begun, or begun for the next product. Less code is faster: most is read once.
constexpr bool FINISHES_NORM = !ORDERED && AFTER != STORE, BEGINS_NORM = !ORDERED && AFTER == STORE;

struct Shape {
    int rows, width, inputs; // M, columns of the result, K
    float eps;               // of the norm of x, where that is unfinished
    long long residual_stride;
};

// What the norm of the results needs, if there is one.
struct Next {
    const float* weight;
    ELEMENT* scaled; // results times the weight
    float* squares;  // [M, tiles of outputs]
};

struct Shared {
    char weights[WEIGHT_STAGES][WEIGHT_BYTES], x[X_STAGES][X_BYTES];
    float4 received[SPLIT == 1 ? 1 : SENDERS * KEPT][SPLIT == 1 ? 1 : OWN_SUMS / 4][SPLIT == 1 ? 1 : CONSUMERS];
    unsigned long long weights_full[WEIGHT_STAGES], weights_empty[WEIGHT_STAGES], x_full[X_STAGES], x_empty[X_STAGES];
    unsigned long long all_received, squares_received;
    float squares[PARTS == 1 ? 1 : OWN_ROWS]; // of the neighbour's part of heads
};
static_assert(OWN_ROWS * (RESULT_BYTES + 4) <= WEIGHT_STAGES * WEIGHT_BYTES + X_STAGES * X_BYTES, "results have room in the rings");

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
#pragma unroll 1
    for (int chunk = span.begin; chunk < span.end; chunk++, ring.advance()) {
        wait_for(shared.weights_empty[ring.stage], ring.parity ^ 1);
        expect_bytes(shared.weights_full[ring.stage], WEIGHT_BYTES);
        char* to = shared.weights[ring.stage];
        unsigned long long& barrier = shared.weights_full[ring.stage];
        if constexpr (AFTER == ROTATE) {
            int group = blockIdx.y / PARTS * (HEAD / 16), eight = blockIdx.y % PARTS;
            copy_weights(to, weights, chunk * INPUTS, group, barrier, eight);
            copy_weights(to + WEIGHT_BYTES / 2, weights, chunk * INPUTS, group + HEAD / 32, barrier, eight);
        } else {
            copy_weights(to, weights, chunk * INPUTS, blockIdx.y * (OUTPUTS / 16), barrier);
        }
    }
}
__device__ void produce_x(Shared& shared, const TensorMap& x, Span span) {
    Ring<X_STAGES> ring;
#pragma unroll 1
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
__device__ __forceinline__ void start_products(float (&sums)[ROWS / 2], unsigned long long weights, unsigned long long x, bool adds) {
#pragma unroll
    for (int step = FIRST; step < FIRST + COUNT; step++) {
        multiply_shared(sums, weights + step * (32 >> 4), x + step * (32 >> 4), adds || step > FIRST);
    }
}

// Addresses in shared memory that warps compute once, and know to be the same for all lanes.
struct Bases {
    unsigned int weights_full, weights_empty, x_full, x_empty;
    unsigned long long weights, x; // as operands

    __device__ __forceinline__ Bases(const Shared& shared) {
        unsigned int at = uniform(shared_address(&shared));
        auto within = [&](const void* member) { return at + (unsigned int)((const char*)member - (const char*)&shared); };
        weights = operand_at(within(shared.weights), 16), x = operand_at(within(shared.x), 16);
        weights_full = within(shared.weights_full), weights_empty = within(shared.weights_empty);
        x_full = within(shared.x_full), x_empty = within(shared.x_empty);
    }
};

// The sums over chunks [begin, end); where they are `ORDERED`, over the first half of each chunk and over the second.
__device__ __forceinline__ void multiply_chunks(float (&sums)[ROWS / 2], float (&others)[ROWS / 2], const Bases& bases,
                                                Places& places, int begin, int end) {
    Places before;
#pragma unroll 1
    for (int chunk = begin; chunk < end; chunk++) {
        wait_for(bases.weights_full + places.weights.stage * 8, places.weights.parity);
        wait_for(bases.x_full + places.x.stage * 8, places.x.parity);
        unsigned long long weights = bases.weights + places.weights.stage * (WEIGHT_BYTES >> 4);
        unsigned long long x = bases.x + places.x.stage * (X_BYTES >> 4);
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
            arrive(bases.weights_empty + before.weights.stage * 8);
            arrive(bases.x_empty + before.x.stage * 8);
        }
        before = places;
        places.weights.advance(), places.x.advance();
    }
    wait_for_multiplications<0>();
    settle(sums);
    if constexpr (ORDERED) settle(others);
    if (QUARTERS > 1 && begin < end && threadIdx.x == 0) {
        arrive(bases.weights_empty + before.weights.stage * 8);
        arrive(bases.x_empty + before.x.stage * 8);
    }
}

// The sums of all of the block's chunks, of every quarter if others need them.
__device__ __forceinline__ void multiply_all(float (&kept)[KEPT][ROWS / 2], Shared& shared, Span span, int chunks) {
    Places places;
    Bases bases(shared);
    if constexpr (!ORDERED) {
        multiply_chunks(kept[0], kept[0], bases, places, span.begin, span.end);
        return;
    }
#pragma unroll(KEPT)
    for (int own = 0; own < QUARTERS; own++) {
        float sums[ROWS / 2] = {}, others[ROWS / 2] = {};
        int quarter = blockIdx.x * QUARTERS + own;
        multiply_chunks(sums, others, bases, places, begin_of(quarter, chunks), begin_of(quarter + 1, chunks));
#pragma unroll
        for (int i = 0; i < ROWS / 2; i++) kept[KEPT == 1 ? 0 : own][i] += sums[i] + others[i];
    }
}

// Where block `to` of those that share inputs has what this block sends it, and the barrier that counts its bytes.
__device__ __forceinline__ void send_sums(const float* sums, int to, int place, Shared& shared) {
    int rank = blockIdx.y % PARTS * SPLIT + to;
    unsigned int there = shared_address_of(rank, &shared.received[place][0][threadIdx.x]);
    unsigned int barrier = shared_address_of(rank, &shared.all_received);
#pragma unroll
    for (int i = 0; i < OWN_SUMS; i += 4) send(there + i / 4 * CONSUMERS * 16, sums + i, barrier);
}
__device__ __forceinline__ void add_received(float (&own)[OWN_SUMS], int place, const Shared& shared) {
#pragma unroll
    for (int i = 0; i < OWN_SUMS; i += 4) {
        float4 four = shared.received[place][i / 4][threadIdx.x];
        own[i] += four.x, own[i + 1] += four.y, own[i + 2] += four.z, own[i + 3] += four.w;
    }
}

// Sums of the rows that are another block's go there; of this block's rows, `own` becomes the sum over all inputs, in their
// order. Few instructions are best: two blocks choose what to send, more send their own to themselves as well.
__device__ __forceinline__ void exchange(float (&own)[OWN_SUMS], const float (&kept)[KEPT][ROWS / 2], Shared& shared) {
    int rank = blockIdx.x;
    float mine[KEPT][OWN_SUMS];
    if constexpr (SPLIT == 2) {
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            float others[OWN_SUMS];
#pragma unroll
            for (int i = 0; i < OWN_SUMS; i++) {
                mine[k][i] = rank == 0 ? kept[k][i] : kept[k][OWN_SUMS + i];
                others[i] = rank == 0 ? kept[k][OWN_SUMS + i] : kept[k][i];
            }
            send_sums(others, rank ^ 1, k, shared);
        }
    } else {
#pragma unroll
        for (int to = 0; to < SPLIT; to++) {
#pragma unroll
            for (int k = 0; k < KEPT; k++) send_sums(kept[k] + to * OWN_SUMS, to, rank * KEPT + k, shared);
        }
    }
    wait_for(shared.all_received, 0);
#pragma unroll
    for (int i = 0; i < OWN_SUMS; i++) own[i] = 0.0f;
    if constexpr (SPLIT == 2) {
        auto add_mine = [&] {
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
#pragma unroll
                for (int i = 0; i < OWN_SUMS; i++) own[i] += mine[k][i];
            }
        };
        // Of two terms the order does not matter.
        if (KEPT == 1 || rank == 0) add_mine();
#pragma unroll
        for (int k = 0; k < KEPT; k++) add_received(own, k, shared);
        if (KEPT > 1 && rank == 1) add_mine();
    } else {
#pragma unroll
        for (int place = 0; place < SPLIT * KEPT; place++) add_received(own, place, shared);
    }
}

// The sums of the squares of rows have so many numbers each, on 16 bytes: one for each tile of outputs that a row had.
__device__ __forceinline__ int squares_stride(int columns) { return (columns + 4 * OUTPUTS - 1) / (4 * OUTPUTS) * 4; }

// The norm of the thread's row of those that the block finishes, from the sums of the squares of its parts.
struct RowNorm {
    static constexpr int AT_ONCE = 4; // groups of sums, which are under way together; the last of them while products are computed
    float4 squares[AT_ONCE] = {};
    float sum = 0.0f;

    __device__ __forceinline__ RowNorm(const float* from, const Shape& shape) {
        int row = blockIdx.z * ROWS + blockIdx.x * OWN_ROWS + threadIdx.x, stride = squares_stride(shape.inputs);
        if (from == nullptr || threadIdx.x >= OWN_ROWS || row >= shape.rows) return;
        const float4* of_row = reinterpret_cast<const float4*>(from + (long long)row * stride);
#pragma unroll 1
        for (int first = 0; first < stride / 4; first += AT_ONCE) {
            sum = total();
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) squares[i] = first + i < stride / 4 ? of_row[first + i] : make_float4(0, 0, 0, 0);
        }
    }
    __device__ __forceinline__ float total() const {
        float all = sum;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) all += squares[i].x + squares[i].y + (squares[i].z + squares[i].w);
        return all;
    }
    // What the row is multiplied by.
    __device__ __forceinline__ float scale(const Shape& shape) const {
        return rsqrtf(__fdividef(total(), shape.inputs) + shape.eps);
    }
};
// Where the rows' are, behind the results.
__device__ __forceinline__ float* scales_of(char* results) { return reinterpret_cast<float*>(results + OWN_ROWS * RESULT_BYTES); }

// A thread has two of every eight rows of x for two of its warp's 16 outputs, the first of which may be the other's gate.
__device__ __forceinline__ void write_results(const float (&own)[OWN_SUMS], const float (&bias)[2], bool scales, char* results) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    unsigned int to = shared_address(results) + lane % 8 * RESULT_BYTES;
    to += AFTER == GATE ? warp * 16 : warp * 32 + lane / 8 % 2 * 16;
#pragma unroll
    for (int i = 0; i < OWN_SUMS; i += 4, to += 8 * RESULT_BYTES) {
        float2 scale = make_float2(1.0f, 1.0f);
        if (FINISHES_NORM && scales) scale = reinterpret_cast<const float2*>(scales_of(results))[i + lane % 4];
        float first[2] = {fmaf(own[i], scale.x, bias[0]), fmaf(own[i + 1], scale.y, bias[0])};
        float second[2] = {fmaf(own[i + 2], scale.x, bias[1]), fmaf(own[i + 3], scale.y, bias[1])};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            if (AFTER == ACTIVATE || AFTER == GATE) first[j] = activated(rounded(first[j]));
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
// The lanes that have a row call together.
__device__ __forceinline__ void prepare_norm(const float (&value)[8], const float (&weight)[8], const Group& group, const Next& next,
                                             const Shape& shape) {
    float squares = 0.0f, scaled[8];
#pragma unroll
    for (int v = 0; v < 8; v++) squares = fmaf(value[v], value[v], squares), scaled[v] = value[v] * weight[v];
    squares = sum_of_lanes(squares, GROUPS);
    if (!group.present) return;
    // With the last tile go the zeros that make a group of four of it.
    int stride = squares_stride(shape.width), lane = group.column / 8, tile = blockIdx.y + lane;
    if (lane == 0 || (blockIdx.y + 1 == gridDim.y && tile < stride)) {
        next.squares[(long long)group.in_batch * stride + tile] = lane == 0 ? squares : 0.0f;
    }
    store<8>(next.scaled + (long long)group.in_batch * shape.width + group.output, scaled);
}
__device__ __forceinline__ void copy_results(const char* results, const uint4 (&residual)[GROUPS_OF_THREAD], bool adds,
                                             const float (&norm_weight)[8], const Next& next, ELEMENT* out, const Shape& shape) {
#pragma unroll
    for (int i = 0; i < GROUPS_OF_THREAD; i++) {
        Group group(threadIdx.x + i * CONSUMERS, shape);
        uint4 raw = make_uint4(0, 0, 0, 0);
        if (group.present) {
            raw = *reinterpret_cast<const uint4*>(results + group.row * RESULT_BYTES + group.column * 2);
            if (adds) raw = sum_of(raw, residual[i]);
            *reinterpret_cast<uint4*>(out + (long long)group.in_batch * shape.width + group.output) = raw;
        }
        if (!BEGINS_NORM || next.weight == nullptr) continue;
        float value[8];
        widen_16_bytes(raw, ELEMENT{}, value);
        prepare_norm(value, norm_weight, group, next, shape);
    }
}

// Which output a row of the instruction is.
__device__ __forceinline__ int output_of(int row) {
    if constexpr (AFTER == GATE) return blockIdx.y * COLUMNS + row / 16 * 8 + row % 8;
    if constexpr (AFTER == ROTATE) {
        int eight = row % 32 / 8 * PARTS + blockIdx.y % PARTS;
        return blockIdx.y / PARTS * HEAD + row / 32 * (HEAD / 2) + eight * 8 + row % 8;
    }
    return blockIdx.y * COLUMNS + row;
}
__device__ __forceinline__ void read_bias(float (&two)[2], const float* bias, const Shape& shape) {
    int row = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4, first = output_of(row);
    if (bias == nullptr || first >= shape.width) return;
    two[0] = bias[first], two[1] = bias[AFTER == GATE ? first + shape.width : output_of(row + 8)];
}

// A thread's part of the block's heads: the same elements of several rows, with what they are multiplied by.
struct Heads {
    static constexpr int V = 8, TOGETHER = CONSUMERS / LANES;
    Place place;
    Head head;
    Factors<V> factors[HELD];
    int slots[HELD];

    static __device__ __forceinline__ int row_of(int held) { return held * TOGETHER + threadIdx.x / LANES; }
    static __device__ __forceinline__ int token_of(int held) { return blockIdx.z * ROWS + blockIdx.x * OWN_ROWS + row_of(held); }
    static __device__ __forceinline__ bool is_present(int held, const Rows& rows) {
        return row_of(held) < OWN_ROWS && token_of(held) < rows.num_tokens;
    }

    // Reads what no kernel of a step writes.
    __device__ __forceinline__ Heads(const Operands& operands, const Rows& rows, const Rotation& rotation)
        : place(blockIdx.y / PARTS, threadIdx.x % LANES * PARTS + blockIdx.y % PARTS, rows),
          head(place.head(operands, rows, rotation)) {
        head.dim = HEAD, head.half = HEAD / 2; // known here, and even if nothing is rotated
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            slots[i] = -1;
            head.angles = nullptr;
            if (is_present(i, rows)) {
                slots[i] = operands.slots[token_of(i)];
                if (!place.is_value) head.angles = rotation.angles(operands.table, operands.positions[token_of(i)]);
            }
            factors[i].read_angles(head, place.lane);
            factors[i].read_weights(head, place.lane);
        }
    }

    __device__ __forceinline__ void finish(const char* results, Shared& shared, const Operands& operands, const Rows& rows,
                                           const Rotation& rotation) {
        uint4 raw[HELD][2];
        float value[HELD][2][V], squares[HELD] = {};
        bool normalise = rotation.normalise && !place.is_value;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const char* at = results + min(row_of(i), OWN_ROWS - 1) * RESULT_BYTES + threadIdx.x % LANES * 16;
            raw[i][0] = *reinterpret_cast<const uint4*>(at), raw[i][1] = *reinterpret_cast<const uint4*>(at + OUTPUTS);
            widen_16_bytes(raw[i][0], ELEMENT{}, value[i][0]);
            widen_16_bytes(raw[i][1], ELEMENT{}, value[i][1]);
            if (!normalise) continue;
            squares[i] = sum_of_lanes(squares_of(value[i]), LANES);
            if (PARTS > 1 && row_of(i) < OWN_ROWS && threadIdx.x % LANES == 0) send_squares(squares[i], row_of(i), shared);
        }
        if (PARTS > 1 && normalise) wait_for(shared.squares_received, 0);
        head.angles = place.is_value || rotation.rotary_dim == 0 ? nullptr : operands.table;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if (!is_present(i, rows)) continue;
            place.of_token(head, token_of(i), slots[i], operands, rows);
            if (place.is_value) {
                if (head.stored != nullptr) copy_halves(head, raw[i], place.lane);
                continue;
            }
            if (PARTS > 1 && normalise) squares[i] += shared.squares[row_of(i)];
            finish_halves(head, factors[i], value[i], squares[i], place.lane, rotation);
        }
    }

    // To the neighbour, whose barrier counts the bytes.
    __device__ __forceinline__ void send_squares(float squares, int row, Shared& shared) const {
        int neighbour = (blockIdx.y % PARTS ^ 1) * SPLIT + blockIdx.x;
        unsigned int to = shared_address_of(neighbour, &shared.squares[row]);
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to), "f"(squares),
                     "r"(shared_address_of(neighbour, &shared.squares_received))
                     : "memory");
    }
};

// The sums of all inputs, rounded, in the shared memory of the block that finishes them.
__device__ __forceinline__ char* multiply(Shared& shared, const float (&bias)[2], const float* squares, const Shape& shape, Span span) {
    RowNorm norm(FINISHES_NORM ? squares : nullptr, shape);
    float sums[KEPT][ROWS / 2] = {};
    multiply_all(sums, shared, span, chunks_of(shape.inputs));
    char* results = shared.weights[0];
    float own[OWN_SUMS];
    if constexpr (SPLIT * PARTS > 1) wait_for_cluster(); // the others have begun
    if constexpr (SPLIT > 1) {
        exchange(own, sums, shared);
    } else {
#pragma unroll
        for (int i = 0; i < OWN_SUMS; i++) own[i] = sums[0][i];
    }
    meet(1, CONSUMERS); // no warp multiplies any more: the rings become the place of the results
    bool scales = FINISHES_NORM && squares != nullptr;
    if (scales) {
        if (threadIdx.x < OWN_ROWS) scales_of(results)[threadIdx.x] = norm.scale(shape);
        meet(1, CONSUMERS);
    }
    write_results(own, bias, scales, results);
    meet(1, CONSUMERS);
    return results;
}

__device__ __forceinline__ void consume(Shared& shared, const float* bias, const ELEMENT* residual, const float* squares,
                                        const Next& next, const Operands& operands, const Shape& shape, const Rows& rows,
                                        const Rotation& rotation, Span span) {
    float two[2] = {};
    read_bias(two, bias, shape);
    if constexpr (AFTER == ROTATE) {
        Heads heads(operands, rows, rotation);
        wait_for_previous_kernel();
        heads.finish(multiply(shared, two, squares, shape, span), shared, operands, rows, rotation);
    } else {
        float norm_weight[8] = {};
        int output = blockIdx.y * COLUMNS + threadIdx.x % GROUPS * 8;
        if (BEGINS_NORM && next.weight != nullptr && output < shape.width) load_constants<8>(next.weight + output, norm_weight);
        wait_for_previous_kernel();
        bool adds = AFTER == STORE && residual != nullptr;
        uint4 added[GROUPS_OF_THREAD];
        if (adds) read_residual(added, residual, shape);
        char* results = multiply(shared, two, squares, shape, span);
        copy_results(results, added, adds, norm_weight, next, operands.qkv, shape);
    }
}

// blockIdx: the part of the inputs, the tile of outputs, the tile of rows.
extern "C" __global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(SPLIT, PARTS, 1)
    linear_wgmma(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights, const float* bias,
                 const ELEMENT* residual, const float* squares, const float* next_norm, ELEMENT* scaled, float* next_squares,
                 ELEMENT* out, const float* query_norm, const float* key_norm, const float* table,
                 const int* positions, const int* slots, CACHE* keys, CACHE* values, const __grid_constant__ Shape shape,
                 const __grid_constant__ Rows rows, const __grid_constant__ Rotation rotation) {
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
            expect_bytes(shared.all_received, SENDERS * KEPT * OWN_SUMS * CONSUMERS * 4);
        }
        if constexpr (PARTS > 1) {
            init_barrier(shared.squares_received, 1);
            expect_bytes(shared.squares_received, OWN_ROWS * 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    int chunks = chunks_of(shape.inputs);
    Span span = {(int)blockIdx.x * chunks / SPLIT, ((int)blockIdx.x + 1) * chunks / SPLIT};
    if (threadIdx.x < CONSUMERS) {
        if constexpr (SPLIT * PARTS > 1) arrive_in_cluster();
        Operands operands = {out, query_norm, key_norm, table, positions, slots, keys, values};
        Next next = {next_norm, scaled, next_squares};
        consume(shared, bias, residual, squares, next, operands, shape, rows, rotation, span);
    } else if (threadIdx.x == CONSUMERS) {
        produce_weights(shared, weights, span);
    } else if (threadIdx.x == CONSUMERS + WARP) {
        prefetch_map(x);
        wait_for_previous_kernel();
        produce_x(shared, x, span);
    }
}
