// What happens to the heads of a projected row before attention: they are normalised (queries and keys), rotated (queries
// and keys), and copied into the KV cache (keys and values).
//
// Put between common.cuh and the source. `lanes` neighbouring lanes take one head. A lane takes the same group of V elements
// in both rotated halves, so that it alone reads and writes them, and rows may change in place. Where a lane has one group in
// each half and nothing else (`in_halves`), it keeps them in registers: heads are read once. Else those that are normalised
// are read twice. A cache of e4m3 gets the nearest codes of what a row would hold. Both ways have the same bits.

struct Head {
    const ELEMENT* from; // the projected head
    ELEMENT* to;         // where the result goes, or null
    CACHE* stored;       // else its place in the KV cache, or null
    const float* weight; // of the normalisation, or null
    const float* angles; // `half` cosines, then `half` sines, or null
    int dim;
    int half; // of the rotated elements
    float eps;
};

// The same for all heads of a call.
struct Rotation {
    long long table_stride; // from one position's angles to the next's
    int rotary_dim, normalise, lanes, wide, in_halves;
    float eps;
    __device__ __forceinline__ const float* angles(const float* table, int position) const {
        return rotary_dim == 0 ? nullptr : table + position * table_stride;
    }
};

template <int V>
__device__ __forceinline__ void write(const Head& head, int first, const float (&value)[V]) {
    if constexpr (IS_SAME<ELEMENT, CACHE>) {
        ELEMENT* to = head.to != nullptr ? head.to : reinterpret_cast<ELEMENT*>(head.stored);
        if (to != nullptr) store<V>(to + first, value);
    } else if (head.to != nullptr) {
        store<V>(head.to + first, value);
    } else if (head.stored != nullptr) {
        float kept[V];
#pragma unroll
        for (int v = 0; v < V; v++) kept[v] = as_kept<ELEMENT, CACHE>(value[v]);
        store<V>(head.stored + first, kept);
    }
}

template <int V>
__device__ __forceinline__ void read_normalised(const Head& head, int first, float scale, float (&value)[V]) {
    load<V>(head.from + first, value);
    if (head.weight != nullptr) {
        float factor[V];
        load_constants<V>(head.weight + first, factor);
#pragma unroll
        for (int v = 0; v < V; v++) value[v] = value[v] * scale * factor[v];
    }
}

// The factor that normalises the head. All lanes of the warp must call.
template <int V> __device__ __forceinline__ float norm_scale(const Head& head, bool present, int lane, int lanes) {
    float sum = 0.0f;
    if (present) {
        for (int i = lane * V; i < head.dim; i += lanes * V) {
            float value[V];
            load<V>(head.from + i, value);
#pragma unroll
            for (int v = 0; v < V; v++) sum = fmaf(value[v], value[v], sum);
        }
    }
    return 1.0f / sqrtf(sum_of_lanes(sum, lanes) / head.dim + head.eps);
}

// Whole warps call, with some lanes' heads `present`. Values take part in the sums too: a warp may hold heads of several
// kinds.
template <int V> __device__ __forceinline__ void transform(const Head& head, bool present, int lane, const Rotation& rotation) {
    int lanes = rotation.lanes;
    float scale = rotation.normalise ? norm_scale<V>(head, present, lane, lanes) : 1.0f;
    if (!present) return;
    int half = head.angles == nullptr ? 0 : head.half;
    for (int i = lane * V; i < half; i += lanes * V) {
        float first[V], second[V], cosine[V], sine[V];
        read_normalised<V>(head, i, scale, first);
        read_normalised<V>(head, half + i, scale, second);
        load_constants<V>(head.angles + i, cosine);
        load_constants<V>(head.angles + half + i, sine);
#pragma unroll
        for (int v = 0; v < V; v++) rotate_pair(first[v], second[v], cosine[v], sine[v]);
        write<V>(head, i, first);
        write<V>(head, half + i, second);
    }
    if (head.weight == nullptr && head.stored == nullptr && head.to == head.from) return;
    for (int i = 2 * half + lane * V; i < head.dim; i += lanes * V) {
        float value[V];
        read_normalised<V>(head, i, scale, value);
        write<V>(head, i, value);
    }
}

// What a lane multiplies its elements of a head by: no kernel of a step writes it, so that it can be read before the
// elements are there.
template <int V> struct Factors {
    float weight[2][V], cosine[V], sine[V];
    __device__ __forceinline__ void read(const Head& head, int lane) {
        read_weights(head, lane);
        read_angles(head, lane);
    }
    __device__ __forceinline__ void read_weights(const Head& head, int lane) {
        if (head.weight != nullptr) {
            load_constants<V>(head.weight + lane * V, weight[0]);
            load_constants<V>(head.weight + head.half + lane * V, weight[1]);
        }
    }
    __device__ __forceinline__ void read_angles(const Head& head, int lane) {
        if (head.angles != nullptr) {
            load_constants<V>(head.angles + lane * V, cosine);
            load_constants<V>(head.angles + head.half + lane * V, sine);
        }
    }
    __device__ __forceinline__ void take_angles(const Factors& other) {
#pragma unroll
        for (int v = 0; v < V; v++) cosine[v] = other.cosine[v], sine[v] = other.sine[v];
    }
};

template <int V> __device__ __forceinline__ float squares_of(const float (&value)[2][V]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * V; i++) sum = fmaf(value[i / V][i % V], value[i / V][i % V], sum);
    return sum;
}

// Normalises, by the sum of the head's squares, rotates and writes the lane's elements of either half.
template <int V>
__device__ __forceinline__ void finish_halves(const Head& head, const Factors<V>& factors, float (&value)[2][V], float squares,
                                              int lane, const Rotation& rotation) {
    if (rotation.normalise && head.weight != nullptr) {
        // Lengths are powers of two here: the product is the quotient that `norm_scale` takes.
        float scale = 1.0f / sqrtf(squares * (1.0f / head.dim) + head.eps);
#pragma unroll
        for (int i = 0; i < 2 * V; i++) value[i / V][i % V] = value[i / V][i % V] * scale * factors.weight[i / V][i % V];
    }
    if (head.angles != nullptr) {
#pragma unroll
        for (int v = 0; v < V; v++) rotate_pair(value[0][v], value[1][v], factors.cosine[v], factors.sine[v]);
    }
    write<V>(head, lane * V, value[0]);
    write<V>(head, head.half + lane * V, value[1]);
}

// `transform` where rotations are `in_halves`, of the lane's elements of either half.
template <int V>
__device__ __forceinline__ void transform_halves(const Head& head, const Factors<V>& factors, float (&value)[2][V],
                                                 bool present, int lane, const Rotation& rotation) {
    float squares = rotation.normalise ? sum_of_lanes(squares_of(value), rotation.lanes) : 0.0f;
    if (present) finish_halves<V>(head, factors, value, squares, lane, rotation);
}

// The same, with the elements still to be read.
template <int V>
__device__ __forceinline__ void transform_halves(const Head& head, const Factors<V>& factors, bool present, int lane,
                                                 const Rotation& rotation) {
    float value[2][V] = {};
    if (present) {
        load<V>(head.from + lane * V, value[0]);
        load<V>(head.from + head.half + lane * V, value[1]);
    }
    transform_halves<V>(head, factors, value, present, lane, rotation);
}
