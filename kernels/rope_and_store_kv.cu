// rope_and_store_kv: normalises, rotates and stores the heads of rows of queries, keys and values. Queries and keys change
// in place.
//
// Variants: ELEMENT=f32|f16|bf16 CACHE=f32|f16|bf16|e4m3
// Needs: heads.cuh
//
// A block takes blockDim.x / lanes heads of token blockIdx.x.

// Sizes and strides in elements.
struct Rows {
    int num_heads, num_kv_heads, head_dim, unused;
    long long row_stride, slot_stride, head_stride;
};

extern "C" __global__ void rope_and_store_kv(ELEMENT* qkv, const float* query_norm, const float* key_norm,
                                             const float* table, const int* positions, const int* slots, CACHE* keys,
                                             CACHE* values, const __grid_constant__ Rows rows,
                                             const __grid_constant__ Rotation rotation) {
    start_next_kernel();
    wait_for_previous_kernel();
    int heads_per_block = blockDim.x / rotation.lanes;
    int index = blockIdx.y * heads_per_block + threadIdx.x / rotation.lanes;
    int lane = threadIdx.x % rotation.lanes;
    bool present = index < rows.num_heads + 2 * rows.num_kv_heads;
    bool is_query = index < rows.num_heads;
    bool is_value = index >= rows.num_heads + rows.num_kv_heads;
    int token = blockIdx.x;

    Head head;
    head.from = head.to = qkv + token * rows.row_stride + (long long)index * rows.head_dim;
    head.dim = rows.head_dim;
    head.half = rotation.rotary_dim / 2;
    head.eps = rotation.eps;
    head.weight = rotation.normalise && !is_value ? (is_query ? query_norm : key_norm) : nullptr;
    head.angles = is_value ? nullptr : rotation.angles(table, positions[token]);
    int kv_head = index - rows.num_heads - (is_value ? rows.num_kv_heads : 0);
    CACHE* cache = is_value ? values : keys;
    int slot = slots[token];
    // A negative slot marks a token whose keys and values are not kept: padding of a batch.
    bool kept = !is_query && slot >= 0;
    head.stored = kept ? cache + slot * rows.slot_stride + kv_head * rows.head_stride : nullptr;

    if constexpr (WIDEST<ELEMENT> == WIDEST<CACHE>) {
        if (rotation.in_halves) {
            Factors<WIDEST<ELEMENT>> factors;
            if (present) factors.read(head, lane);
            transform_halves(head, factors, present, lane, rotation);
            return;
        }
        if (rotation.wide) {
            transform<WIDEST<ELEMENT>>(head, present, lane, rotation);
            return;
        }
    }
    transform<1>(head, present, lane, rotation);
}
