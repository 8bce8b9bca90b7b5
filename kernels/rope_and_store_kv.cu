// rope_and_store_kv: normalises, rotates and stores the heads of rows of queries, keys and values. Queries change in place,
// keys and values go to the KV cache alone.
//
// Variants: ELEMENT=f32|f16|bf16 CACHE=f32|f16|bf16|e4m3
// Needs: heads.cuh qkv_rows.cuh
//
// A block takes blockDim.x / lanes heads of token blockIdx.x. Where rotations are `in_halves`, the entry for many rows takes
// TOKENS tokens: a thread reads what it multiplies its head by once, and has the elements of all its tokens under way.

__device__ __forceinline__ Place place_of_thread(const Rows& rows, int lanes) {
    return Place(blockIdx.y * (blockDim.x / lanes) + threadIdx.x / lanes, threadIdx.x % lanes, rows);
}

// Heads of `TOKENS` tokens from blockIdx.x * TOKENS on, where rotations are `in_halves`. Whole warps call. What no kernel of a
// step writes is read before the kernel before this one has ended.
template <int TOKENS>
__device__ __forceinline__ void take_halves(const Operands& operands, const Rows& rows, const Rotation& rotation) {
    constexpr int V = WIDEST<ELEMENT>;
    Place place = place_of_thread(rows, rotation.lanes);
    Head head = place.head(operands, rows, rotation);
    int first = blockIdx.x * TOKENS;
    int position[TOKENS], slot[TOKENS];
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        bool present = place.present && first + t < rows.num_tokens;
        position[t] = present ? operands.positions[first + t] : -1;
        slot[t] = present ? operands.slots[first + t] : -1;
    }
    Factors<V> factors;
    auto read_angles = [&](int t) {
        head.angles = position[t] >= 0 && !place.is_value ? rotation.angles(operands.table, position[t]) : nullptr;
        factors.read_angles(head, place.lane);
    };
    if (place.present) factors.read_weights(head, place.lane);
    if (TOKENS == 1) read_angles(0);
    wait_for_previous_kernel();
    uint4 raw[TOKENS][2];
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        raw[t][0] = raw[t][1] = make_uint4(0, 0, 0, 0);
        if (!place.present || first + t >= rows.num_tokens) continue;
        place.of_token(head, first + t, -1, operands, rows);
        raw[t][0] = *reinterpret_cast<const uint4*>(head.from + place.lane * V);
        raw[t][1] = *reinterpret_cast<const uint4*>(head.from + head.half + place.lane * V);
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        place.of_token(head, first + t, slot[t], operands, rows);
        if (__all_sync(ALL_LANES, place.is_value)) {
            // Nothing happens to them, and a warp of nothing else need not wait for a sum.
            if (head.stored != nullptr) copy_halves(head, raw[t], place.lane);
            continue;
        }
        if (TOKENS > 1) read_angles(t);
        float value[2][V];
        widen_16_bytes(raw[t][0], ELEMENT{}, value[0]);
        widen_16_bytes(raw[t][1], ELEMENT{}, value[1]);
        transform_halves(head, factors, value, position[t] >= 0, place.lane, rotation);
    }
}

extern "C" __global__ void rope_and_store_kv(ELEMENT* qkv, const float* query_norm, const float* key_norm,
                                             const float* table, const int* positions, const int* slots, CACHE* keys,
                                             CACHE* values, const __grid_constant__ Rows rows,
                                             const __grid_constant__ Rotation rotation) {
    start_next_kernel();
    Operands operands = {qkv, query_norm, key_norm, table, positions, slots, keys, values};
    if constexpr (WIDEST<ELEMENT> == WIDEST<CACHE>) {
        if (rotation.in_halves) return take_halves<1>(operands, rows, rotation);
    }
    wait_for_previous_kernel();
    Place place = place_of_thread(rows, rotation.lanes);
    int token = blockIdx.x;
    Head head = place.head(operands, rows, rotation);
    head.angles = place.is_value ? nullptr : rotation.angles(table, positions[token]);
    place.of_token(head, token, slots[token], operands, rows);
    if constexpr (WIDEST<ELEMENT> == WIDEST<CACHE>) {
        if (rotation.wide) return transform<WIDEST<ELEMENT>>(head, place.present, place.lane, rotation);
    }
    transform<1>(head, place.present, place.lane, rotation);
}

constexpr int TOKENS = 2;

extern "C" __global__ void __launch_bounds__(128)
    rope_and_store_many(ELEMENT* qkv, const float* query_norm, const float* key_norm, const float* table,
                        const int* positions, const int* slots, CACHE* keys, CACHE* values,
                        const __grid_constant__ Rows rows, const __grid_constant__ Rotation rotation) {
    start_next_kernel();
    if constexpr (WIDEST<ELEMENT> == WIDEST<CACHE>) {
        take_halves<TOKENS>({qkv, query_norm, key_norm, table, positions, slots, keys, values}, rows, rotation);
    }
}
