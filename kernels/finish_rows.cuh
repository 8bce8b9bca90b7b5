// What linear_wgmma does with the products of a block: norms, activations and residuals, or heads.
//
// Put between wgmma_products.cuh and the source. Results wait in shared memory, a row behind the other; what follows goes through
// them in a loop that is written once.

static_assert(!ORDERED || PAIRS % SPLIT == 0, "blocks have equal numbers of pairs of sums");
// Quarters of a block, and the sums that it then has, which others need.
constexpr int QUARTERS = ORDERED ? PAIRS / SPLIT : 1, KEPT = SPLIT == 1 ? 1 : QUARTERS;
// Blocks that send their sums to one.
constexpr int SENDERS = SPLIT == 2 ? 1 : SPLIT;

constexpr int OUTPUTS = 64 * WARPGROUPS; // of a block, gates and values counted
constexpr int SQUARED = 64; // results of a row whose squares are added up for a norm
constexpr int CONSUMERS = 128 * WARPGROUPS, THREADS = CONSUMERS + 2 * WARP;
constexpr int WEIGHT_BYTES = OUTPUTS * INPUTS * 2, X_BYTES = ROWS * INPUTS * 2;
// What a block finishes: rows of x, sums of a thread for them, columns of the output.
constexpr int OWN_ROWS = ROWS / SPLIT, OWN_SUMS = ROWS / 2 / SPLIT, COLUMNS = AFTER == GATE ? OUTPUTS / 2 : OUTPUTS;
static_assert(OWN_ROWS % 8 == 0, "blocks finish whole columns of the instruction");
// A row of products in shared memory; rows are apart by what spreads them over the banks.
constexpr int RESULT_BYTES = OUTPUTS * 2 + 16;
// Lanes that take a row of them: eight columns each, or twice eight that belong together.
constexpr int LANES = AFTER == GATE || AFTER == ROTATE ? OUTPUTS / 16 : OUTPUTS / 8;
static_assert(AFTER != ROTATE || HEAD == OUTPUTS, "a block has a head");

// Whether norms are finished here, if they were begun, or begun for the next product. Less code is faster: most is read once.
constexpr bool FINISHES_NORM = !ORDERED && AFTER != STORE, BEGINS_NORM = !ORDERED && AFTER == STORE;
static_assert(!BEGINS_NORM || OUTPUTS == SQUARED, "a tile has a sum of squares");

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
    unsigned long long all_received;
};
// What is known of rows, behind the products in shared memory.
struct OfRows {
    float scales[OWN_ROWS];  // which finish their norms
    int2 tokens[OWN_ROWS];   // position and slot
};
static_assert(OWN_ROWS * RESULT_BYTES + sizeof(OfRows) <= WEIGHT_STAGES * WEIGHT_BYTES + X_STAGES * X_BYTES, "results have room in the rings");

// Twice 8 x 8 results from a thread's pairs to rows of 16 bytes, rows and columns exchanged; lanes 0 to 7 name the first
// matrix's rows, 8 to 15 the second's.
__device__ __forceinline__ void write_matrices(unsigned int to, unsigned int first, unsigned int second) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to), "r"(first), "r"(second) : "memory");
}
// With the quick forms of exponential and division, whose error is far below that of a 16-bit result.
__device__ __forceinline__ float activated(float x) {
    if constexpr (KIND == SILU && !ORDERED) return __fdividef(x, 1.0f + __expf(-x));
    return activate<KIND>(x);
}

// The sums of the squares of rows have so many numbers each, on 16 bytes: one for every 64 results of a row.
__device__ __forceinline__ int squares_stride(int columns) { return (columns + 4 * SQUARED - 1) / (4 * SQUARED) * 4; }

// The norm of the thread's row of those that the block finishes, from the sums of the squares of its parts.
struct RowNorm {
    static constexpr int AT_ONCE = 4; // groups of sums, which are under way together; the last of them while products are computed
    const float4* all;
    long long first_of_row;
    int groups;
    float4 squares[AT_ONCE] = {};
    float sum = 0.0f;

    __device__ __forceinline__ RowNorm(const float* from, const Shape& shape) : all(reinterpret_cast<const float4*>(from)) {
        int row = blockIdx.z * ROWS + blockIdx.x * OWN_ROWS + threadIdx.x, stride = squares_stride(shape.inputs);
        groups = from != nullptr && threadIdx.x < OWN_ROWS && row < shape.rows ? stride / 4 : 0;
        first_of_row = (long long)row * (stride / 4);
        asm volatile("" : "+l"(first_of_row), "+r"(groups)); // now, not when it is needed
    }
    __device__ __forceinline__ void read(int first) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) squares[i] = first + i < groups ? all[first_of_row + first + i] : make_float4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void read() {
        read(0);
#pragma unroll 1
        for (int first = AT_ONCE; first < groups; first += AT_ONCE) {
            sum = total();
            read(first);
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
        return groups == 0 ? 1.0f : rsqrtf(__fdividef(total(), shape.inputs) + shape.eps);
    }
};
__device__ __forceinline__ OfRows& of_rows(char* results) { return *reinterpret_cast<OfRows*>(results + OWN_ROWS * RESULT_BYTES); }

// A thread has two of every eight rows of x for two of its warp's 16 outputs.
__device__ __forceinline__ void write_results(const float (&own)[OWN_SUMS], const float (&bias)[2], char* results) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    unsigned int to = shared_address(results) + lane % 8 * RESULT_BYTES + warp * 32 + lane / 8 % 2 * 16;
    const float2* scale_of = reinterpret_cast<const float2*>(of_rows(results).scales) + lane % 4;
#pragma unroll
    for (int i = 0; i < OWN_SUMS; i += 4, to += 8 * RESULT_BYTES) {
        float2 scale = FINISHES_NORM ? scale_of[i] : make_float2(1.0f, 1.0f);
        unsigned int first = narrow_pair<ELEMENT>(fmaf(own[i], scale.x, bias[0]), fmaf(own[i + 1], scale.y, bias[0]));
        unsigned int second = narrow_pair<ELEMENT>(fmaf(own[i + 2], scale.x, bias[1]), fmaf(own[i + 3], scale.y, bias[1]));
        write_matrices(to, first, second);
    }
}

// Eight columns of a row of the output, of index * 8 on. What follows is a loop over them that is written once: reading code
// takes longer than running it.
struct Group {
    int row, lane, in_batch, output; // the first two in the block's part
    bool present;

    __device__ __forceinline__ Group(int index, const Shape& shape) {
        row = index / LANES, lane = index % LANES;
        in_batch = blockIdx.z * ROWS + blockIdx.x * OWN_ROWS + row;
        output = blockIdx.y * COLUMNS + lane * 8;
        present = row < OWN_ROWS && in_batch < shape.rows && output < shape.width;
    }
    __device__ __forceinline__ long long place(const Shape& shape) const { return (long long)in_batch * shape.width + output; }
    __device__ __forceinline__ long long residual(const Shape& shape) const { return in_batch * shape.residual_stride + output; }
};

// The lanes that have a row call together.
__device__ __forceinline__ void begin_norm(uint4 raw, const float (&weight)[8], const Group& group, const Next& next,
                                           const Shape& shape) {
    float value[8], squares = 0.0f;
    widen_16_bytes(raw, ELEMENT{}, value);
#pragma unroll
    for (int v = 0; v < 8; v++) squares = fmaf(value[v], value[v], squares), value[v] *= weight[v];
    squares = sum_of_lanes(squares, LANES);
    if (group.in_batch >= shape.rows) return;
    // With the last tile go the zeros that make a group of four of it, by lanes with columns or without.
    int stride = squares_stride(shape.width), tile = blockIdx.y + group.lane;
    if (group.lane == 0 || (blockIdx.y + 1 == gridDim.y && tile < stride)) {
        next.squares[(long long)group.in_batch * stride + tile] = group.lane == 0 ? squares : 0.0f;
    }
    if (group.present) store<8>(next.scaled + group.place(shape), value);
}

// Of eight products, or of as many gates, with what they are multiplied by.
__device__ __forceinline__ uint4 activated_group(uint4 raw, uint4 others) {
    float value[8], other[8];
    widen_16_bytes(raw, ELEMENT{}, value);
    widen_16_bytes(others, ELEMENT{}, other);
#pragma unroll
    for (int v = 0; v < 8; v++) value[v] = AFTER == GATE ? activated(value[v]) * other[v] : activated(value[v]);
    uint4 result;
    store<8>(reinterpret_cast<ELEMENT*>(&result), value);
    return result;
}

struct Finish {
    const ELEMENT* residual;
    ELEMENT* out;
    const Next& next;
    const Shape& shape;
    float norm_weight[8] = {};
    long long first_residual = -1;
    uint4 added = {}; // to the next group

    // Reads what no kernel of a step writes.
    __device__ __forceinline__ void begin() {
        Group group(threadIdx.x, shape);
        if (AFTER == STORE && residual != nullptr && group.present) first_residual = group.residual(shape);
        asm volatile("" : "+l"(first_residual));
        if (BEGINS_NORM && next.weight != nullptr && group.output < shape.width) {
            load_constants<8>(next.weight + group.output, norm_weight);
        }
    }
    __device__ __forceinline__ void read() {
        if (AFTER == STORE && first_residual >= 0) added = *reinterpret_cast<const uint4*>(residual + first_residual);
    }
    __device__ __forceinline__ void run(const char* results) {
#pragma unroll 1
        for (int index = threadIdx.x; index < OWN_ROWS * LANES; index += CONSUMERS) {
            Group group(index, shape);
            const char* at = results + group.row * RESULT_BYTES + group.lane * (OUTPUTS / LANES) * 2;
            uint4 raw = *reinterpret_cast<const uint4*>(at);
            if constexpr (AFTER == STORE) {
                if (residual != nullptr) {
                    raw = sum_of(raw, added);
                    Group following(index + CONSUMERS, shape);
                    if (following.present) added = *reinterpret_cast<const uint4*>(residual + following.residual(shape));
                }
            } else {
                raw = activated_group(raw, AFTER == GATE ? *reinterpret_cast<const uint4*>(at + 16) : raw);
            }
            if (group.present) *reinterpret_cast<uint4*>(out + group.place(shape)) = raw;
            if (BEGINS_NORM && next.weight != nullptr) begin_norm(raw, norm_weight, group, next, shape);
        }
    }
};

// Which output a row of the instruction is.
__device__ __forceinline__ int output_of(int row) {
    if constexpr (AFTER == GATE) return blockIdx.y * COLUMNS + row / 16 * 8 + row % 8;
    return blockIdx.y * COLUMNS + row;
}
__device__ __forceinline__ void read_bias(float (&two)[2], const float* bias, const Shape& shape) {
    int row = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4, first = output_of(row);
    if (bias == nullptr || first >= shape.width) return;
    two[0] = bias[first], two[1] = bias[AFTER == GATE ? first + shape.width : output_of(row + 8)];
}

// A thread's part of the block's heads: the same elements of several rows.
struct Heads {
    static constexpr int V = 8, TOGETHER = CONSUMERS / LANES;
    // Whether the angles of two of the thread's rows are read before products are there, not of one: of 64 rows, two warpgroups
    // have no more each.
    static constexpr bool READS_AHEAD = WARPGROUPS > 1 && !ORDERED && OWN_ROWS > TOGETHER;
    const Operands& operands;
    const Rows& rows;
    const Rotation& rotation;
    Place place;
    Head head;
    Factors<V> factors;
    Factors<V> following; // the angles of the thread's next row
    int2 own_token; // of the row that the thread has the number of

    static __device__ __forceinline__ int in_batch(int row) { return blockIdx.z * ROWS + blockIdx.x * OWN_ROWS + row; }
    __device__ __forceinline__ int2 token_of(int row) const {
        bool present = row < OWN_ROWS && in_batch(row) < rows.num_tokens;
        return present ? make_int2(operands.positions[in_batch(row)], operands.slots[in_batch(row)]) : make_int2(0, -1);
    }
    __device__ __forceinline__ void read_angles(int2 token, Factors<V>& of_row) {
        head.angles = place.is_value ? nullptr : rotation.angles(operands.table, token.x);
        of_row.read_angles(head, place.lane);
    }

    // Reads what no kernel of a step writes.
    __device__ __forceinline__ Heads(const Operands& operands, const Rows& rows, const Rotation& rotation)
        : operands(operands), rows(rows), rotation(rotation), place(blockIdx.y, threadIdx.x % LANES, rows),
          head(place.head(operands, rows, rotation)), own_token(token_of(threadIdx.x)) {
        head.dim = HEAD, head.half = HEAD / 2; // known here, and even if nothing is rotated
        factors.read_weights(head, place.lane);
        read_angles(token_of(threadIdx.x / LANES), factors);
        if (READS_AHEAD) read_angles(token_of(threadIdx.x / LANES + TOGETHER), following);
    }

    static __device__ __forceinline__ void read(const char* results, int row, uint4 (&raw)[2]) {
        const char* at = results + row * RESULT_BYTES + threadIdx.x % LANES * 16;
        raw[0] = *reinterpret_cast<const uint4*>(at);
        raw[1] = *reinterpret_cast<const uint4*>(at + OUTPUTS / 2 * 2);
    }
    static __device__ __forceinline__ void widen_halves(const uint4 (&raw)[2], float (&value)[2][V]) {
        widen_16_bytes(raw[0], ELEMENT{}, value[0]);
        widen_16_bytes(raw[1], ELEMENT{}, value[1]);
    }

    __device__ __forceinline__ void finish(char* results) {
        bool normalise = rotation.normalise && !place.is_value;
#pragma unroll 1
        for (int row = threadIdx.x / LANES; row < OWN_ROWS; row += TOGETHER) {
            int2 token = of_rows(results).tokens[row];
            if (!READS_AHEAD && row >= TOGETHER) read_angles(token, factors);
            uint4 raw[2];
            float value[2][V];
            read(results, row, raw);
            place.of_token(head, in_batch(row), token.y, operands, rows);
            bool present = in_batch(row) < rows.num_tokens;
            if (place.is_value) {
                if (present && head.stored != nullptr) copy_halves(head, raw, place.lane);
                continue;
            }
            widen_halves(raw, value);
            float squares = normalise ? sum_of_lanes(squares_of(value), LANES) : 0.0f;
            if (present) finish_halves(head, factors, value, squares, place.lane, rotation);
            if (!READS_AHEAD) continue;
            factors.take_angles(following);
            if (row + 2 * TOGETHER < OWN_ROWS) read_angles(of_rows(results).tokens[row + 2 * TOGETHER], following);
        }
    }
};
