// Where heads of rows of queries, keys and values are, and go.
//
// Put between heads.cuh and the source.

// Sizes and strides in elements.
struct Rows {
    int num_heads, num_kv_heads, head_dim, num_tokens;
    long long row_stride, slot_stride, head_stride;
};

struct Operands {
    ELEMENT* qkv;
    const float *query_norm, *key_norm, *table;
    const int *positions, *slots;
    CACHE *keys, *values;
};

// Which head of a row a thread takes, and its place among those that take it.
struct Place {
    int index, lane;
    bool present, is_query, is_value;

    __device__ __forceinline__ Place(int index, int lane, const Rows& rows) : index(index), lane(lane) {
        present = index < rows.num_heads + 2 * rows.num_kv_heads;
        is_query = index < rows.num_heads;
        is_value = index >= rows.num_heads + rows.num_kv_heads;
    }

    // The head of any token: `of_token` says where it is.
    __device__ __forceinline__ Head head(const Operands& operands, const Rows& rows, const Rotation& rotation) const {
        Head head = {};
        head.dim = rows.head_dim;
        head.half = rotation.rotary_dim / 2;
        head.eps = rotation.eps;
        head.weight = rotation.normalise && !is_value ? (is_query ? operands.query_norm : operands.key_norm) : nullptr;
        return head;
    }

    __device__ __forceinline__ void of_token(Head& head, int token, int slot, const Operands& operands, const Rows& rows) const {
        ELEMENT* at = operands.qkv + token * rows.row_stride + (long long)index * rows.head_dim;
        head.from = at;
        head.to = is_query ? at : nullptr;
        int kv_head = index - rows.num_heads - (is_value ? rows.num_kv_heads : 0);
        CACHE* cache = is_value ? operands.values : operands.keys;
        // A negative slot marks a token whose keys and values are not kept: padding of a batch.
        bool kept = !is_query && slot >= 0;
        head.stored = kept ? cache + slot * rows.slot_stride + kv_head * rows.head_stride : nullptr;
    }
};

// Stores a lane's elements of both halves as they were read.
__device__ __forceinline__ void copy_halves(const Head& head, const uint4 (&raw)[2], int lane) {
    constexpr int V = WIDEST<ELEMENT>;
    CACHE* to = head.stored + lane * V;
    if constexpr (IS_SAME<ELEMENT, CACHE>) {
        *reinterpret_cast<uint4*>(to) = raw[0];
        *reinterpret_cast<uint4*>(to + head.half) = raw[1];
    } else {
        float value[V];
        widen_16_bytes(raw[0], ELEMENT{}, value);
        store<V>(to, value);
        widen_16_bytes(raw[1], ELEMENT{}, value);
        store<V>(to + head.half, value);
    }
}
