// How decode attention prepares the heads of its own part, from rows as the projection left them.
//
// Put between decode_parts.cuh and the source.

#if FRESH
// What makes queries, keys and values of fresh rows.
struct Fresh {
    const ELEMENT* qkv;
    const float *query_norm, *key_norm, *table;
    const int *positions, *slots;
    ELEMENT* queries; // [T, num_heads, HEAD_DIM]
    CACHE *keys, *values;
};

// One of a part's heads, by its index: the queries, then, for the block with the last position, its key and value.
__device__ __forceinline__ Head head_of(const Fresh& fresh, int token, const HeadGroup& heads, int index, const Shape& shape,
                                        const Rotation& rotation) {
    bool is_query = index < heads.count, is_value = index > heads.count;
    int slot = fresh.slots[token];
    int at = is_query ? heads.first + index : shape.num_heads + heads.kv_head + (is_value ? shape.num_kv_heads : 0);
    CACHE* stored = (is_value ? fresh.values : fresh.keys) + slot * shape.slot_stride + heads.kv_head * shape.head_stride;
    Head head;
    head.from = fresh.qkv + token * shape.row_stride + at * HEAD_DIM;
    head.to = is_query ? fresh.queries + heads.in_row(token, shape.num_heads) + index * HEAD_DIM : nullptr;
    head.stored = is_query || slot < 0 ? nullptr : stored;
    head.weight = rotation.normalise && !is_value ? (is_query ? fresh.query_norm : fresh.key_norm) : nullptr;
    head.angles = is_value ? nullptr : rotation.angles(fresh.table, fresh.positions[token]);
    head.dim = HEAD_DIM, head.half = HEAD_DIM / 2, head.eps = rotation.eps;
    return head;
}

// Lanes that take a head, as `rotation` has them where it is in halves.
constexpr int HEAD_LANES = HEAD_DIM / 2 / WIDEST<ELEMENT>;

// A lane's work on the heads of a block's part; groups of lanes take them in turn.
struct Preparation {
    HeadGroup heads;
    int token, count, index;
    Head head;
    Factors<WIDEST<ELEMENT>> factors;

    // Looks up what is there before the rows are.
    __device__ __forceinline__ void begin(const Fresh& fresh, const Part& part, const HeadGroup& of, const Shape& shape,
                                          const Rotation& rotation) {
        heads = of, token = part.token;
        count = heads.count + (part.has_last_tile() ? 2 : 0);
        index = threadIdx.x / HEAD_LANES;
        look_up(fresh, shape, rotation);
    }
    __device__ __forceinline__ void look_up(const Fresh& fresh, const Shape& shape, const Rotation& rotation) {
        if (index >= count) return;
        head = head_of(fresh, token, heads, index, shape, rotation);
        factors.read(head, threadIdx.x % HEAD_LANES);
    }
    // Whole warps call.
    __device__ __forceinline__ void finish(const Fresh& fresh, const Shape& shape, const Rotation& rotation) {
        int first = threadIdx.x % WARP / HEAD_LANES; // the warp's groups have the indices from index - first on
        while (true) {
            transform_halves(head, factors, index < count, threadIdx.x % HEAD_LANES, rotation);
            index += THREADS / HEAD_LANES;
            if (index - first >= count) return;
            look_up(fresh, shape, rotation);
        }
    }
};
#endif
