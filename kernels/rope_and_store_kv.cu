// rope_and_store_kv: per head of a row of queries, keys and values: normalise (queries and keys), rotate (queries and
// keys), and copy keys and values into the token's slot of the cache. Queries and keys change in place.
//
// Variants: ELEMENT=f32|f16|bf16 CACHE=f32|f16|bf16|e4m3
//
// `lanes` neighbouring lanes take one head, a block blockDim.x / lanes heads of token blockIdx.x. A lane takes the same
// group of V elements in both rotated halves, so that it alone reads and writes them. Reads each head once (twice when
// it is normalised, from the cache) and writes it once, keys and values also into the cache.
// A cache of e4m3 gets the nearest codes of what the row holds.

struct Head {
    ELEMENT* at;         // the head in the row
    CACHE* stored;       // its place in the KV cache, or null
    const float* weight; // of the normalisation, or null
    const float* angles; // `half` cosines, then `half` sines, or null
    int dim;
    int half; // of the rotated elements
    float eps;
};

template <int V>
__device__ __forceinline__ void write(const Head& head, int first, const float (&value)[V]) {
    store<V>(head.at + first, value);
    if (head.stored == nullptr) return;
    float kept[V];
#pragma unroll
    for (int v = 0; v < V; v++) kept[v] = as_kept<ELEMENT, CACHE>(value[v]);
    store<V>(head.stored + first, kept);
}

template <int V>
__device__ __forceinline__ void read_normalised(const Head& head, int first, float scale, float (&value)[V]) {
    load<V>(head.at + first, value);
    if (head.weight != nullptr) {
        float factor[V];
        load_floats<V>(head.weight + first, factor);
#pragma unroll
        for (int v = 0; v < V; v++) value[v] = value[v] * scale * factor[v];
    }
}

// The factor that normalises the head. All lanes of the warp must call.
template <int V> __device__ float norm_scale(const Head& head, bool present, int lane, int lanes) {
    float sum = 0.0f;
    if (present) {
        for (int i = lane * V; i < head.dim; i += lanes * V) {
            float value[V];
            load<V>(head.at + i, value);
#pragma unroll
            for (int v = 0; v < V; v++) sum = fmaf(value[v], value[v], sum);
        }
    }
    return 1.0f / sqrtf(sum_of_lanes(sum, lanes) / head.dim + head.eps);
}

template <int V> __device__ void transform(const Head& head, bool present, int lane, int lanes, bool normalise) {
    float scale = normalise ? norm_scale<V>(head, present, lane, lanes) : 1.0f;
    if (!present) return;
    int half = head.angles == nullptr ? 0 : head.half;
    for (int i = lane * V; i < half; i += lanes * V) {
        float first[V], second[V], cosine[V], sine[V];
        read_normalised<V>(head, i, scale, first);
        read_normalised<V>(head, half + i, scale, second);
        load_floats<V>(head.angles + i, cosine);
        load_floats<V>(head.angles + half + i, sine);
#pragma unroll
        for (int v = 0; v < V; v++) rotate_pair(first[v], second[v], cosine[v], sine[v]);
        write<V>(head, i, first);
        write<V>(head, half + i, second);
    }
    if (head.weight == nullptr && head.stored == nullptr) return;
    for (int i = 2 * half + lane * V; i < head.dim; i += lanes * V) {
        float value[V];
        read_normalised<V>(head, i, scale, value);
        write<V>(head, i, value);
    }
}

// Sizes and strides in elements.
struct Shape {
    int num_heads, num_kv_heads, head_dim, rotary_dim;
    long long row_stride, table_stride, slot_stride, head_stride;
    float eps;
    int normalise, lanes, wide;
};

extern "C" __global__ void rope_and_store_kv(ELEMENT* qkv, const float* query_norm, const float* key_norm,
                                             const float* table, const int* positions, const int* slots, CACHE* keys,
                                             CACHE* values, const __grid_constant__ Shape shape) {
    start_next_kernel();
    wait_for_previous_kernel();
    int heads_per_block = blockDim.x / shape.lanes;
    int index = blockIdx.y * heads_per_block + threadIdx.x / shape.lanes;
    int lane = threadIdx.x % shape.lanes;
    bool present = index < shape.num_heads + 2 * shape.num_kv_heads;
    bool is_query = index < shape.num_heads;
    bool is_value = index >= shape.num_heads + shape.num_kv_heads;
    int token = blockIdx.x;

    Head head;
    head.at = qkv + token * shape.row_stride + (long long)index * shape.head_dim;
    head.dim = shape.head_dim;
    head.half = shape.rotary_dim / 2;
    head.eps = shape.eps;
    head.weight = shape.normalise && !is_value ? (is_query ? query_norm : key_norm) : nullptr;
    head.angles = shape.rotary_dim != 0 && !is_value ? table + positions[token] * shape.table_stride : nullptr;
    int kv_head = index - shape.num_heads - (is_value ? shape.num_kv_heads : 0);
    CACHE* cache = is_value ? values : keys;
    int slot = slots[token];
    // A negative slot marks a token whose keys and values are not kept: padding of a batch.
    bool kept = !is_query && slot >= 0;
    head.stored = kept ? cache + slot * shape.slot_stride + kv_head * shape.head_stride : nullptr;

    // Values reach the sum over lanes too: a warp may hold heads of several kinds.
    if constexpr (WIDEST<ELEMENT> == WIDEST<CACHE>) {
        if (shape.wide) {
            transform<WIDEST<ELEMENT>>(head, present, lane, shape.lanes, shape.normalise);
            return;
        }
    }
    transform<1>(head, present, lane, shape.lanes, shape.normalise);
}
