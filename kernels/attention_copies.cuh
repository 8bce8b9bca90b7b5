// What the copying warps of paged_attention_wgmma and paged_attention_single share: the room for what they bring into shared memory,
// and copies of tiles of keys and values.
//
// CONSUMERS is 2 in the first, which takes tiles of rows, and 1 in the second, which takes single tokens.
//
// Put between wgmma.cuh and the source, which is compiled with HEAD_DIM, GROUP, CONSUMERS, VALUE_STAGES, BLOCK_SIZE and COPIED, the
// positions of a copy.
//
// A tile of keys is 8 or 16 copies of some blocks of the cache, and a lane that had its own block's to do would wait for those of
// the others: the engine takes addresses from registers of the warp. So one lane does all, and every address is the warp's.

constexpr int CONSUMER_THREADS = 128 * CONSUMERS;
constexpr int KEYS = HEAD_DIM <= 128 ? 128 : 64;
constexpr int KEY_STAGES = CONSUMERS == 1 && HEAD_DIM == 64 ? 3 : 2; // tiles that there is room for
constexpr int ITEMS = CONSUMERS == 1 || HEAD_DIM <= 128 ? 2 : 1; // that are announced at a time
constexpr int COPIES = KEYS / COPIED; // of a tile, of positions that are beside each other
static_assert(COPIED % 8 == 0 && KEYS % COPIED == 0 && BLOCK_SIZE % COPIED == 0, "copies bring whole swizzled rows of one block");
constexpr int PANELS = HEAD_DIM / 64; // of 64 columns: 128 bytes, the width of a swizzled row
constexpr int CONTEXT_PANEL = KEYS * 128; // bytes
static_assert(HEAD_DIM % 64 == 0, "panels have 64 columns");

// What a block takes at a time: rows of a sequence for one KV head.
struct Item {
    Tile tile;
    int kv_head;
};

// Places for keys and values, and for what is told of items.
struct __align__(16) Copied {
    char keys[KEY_STAGES][PANELS * CONTEXT_PANEL], values[VALUE_STAGES][PANELS * CONTEXT_PANEL];
    unsigned long long keys_full[KEY_STAGES], keys_empty[KEY_STAGES];
    unsigned long long values_full[VALUE_STAGES], values_empty[VALUE_STAGES];
    unsigned long long announced[ITEMS], item_empty[ITEMS];
    Item item[ITEMS]; // once it is announced; sequence -1: there are no more

    // So many tell that the place of an item, or of keys or values, can be written to again.
    __device__ __forceinline__ void init(int of_item, int of_context) {
        for (int stage = 0; stage < ITEMS; stage++) {
            init_barrier(announced[stage], 1);
            init_barrier(item_empty[stage], of_item);
        }
        for (int stage = 0; stage < KEY_STAGES; stage++) {
            init_barrier(keys_full[stage], 1);
            init_barrier(keys_empty[stage], of_context);
        }
        for (int stage = 0; stage < VALUE_STAGES; stage++) {
            init_barrier(values_full[stage], 1);
            init_barrier(values_empty[stage], of_context);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
};

__device__ __forceinline__ void copy_block(void* to, const TensorMap& map, int column, int kv_head, int slot,
                                           unsigned long long& barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
                     "r"(shared_address(to)), "l"(&map), "r"(column), "r"(kv_head), "r"(slot), "r"(shared_address(&barrier))
                 : "memory");
}

// The positions that a tile goes through: `begin`, a multiple of KEYS, to `last_seen`.
struct Span {
    int begin, first_seen, last_seen;
};
__device__ __forceinline__ Span span_of(const Tile& tile, const Shape& shape) {
    Span span;
    span.first_seen = tile.first_position + tile.first_row / GROUP;
    span.last_seen = tile.first_position + (tile.first_row + tile.num_rows - 1) / GROUP;
    span.begin = shape.window > 0 ? max(0, span.first_seen + 1 - shape.window) / KEYS * KEYS : 0;
    return span;
}

// Whether this lane is the one that does what one lane does for its warp. The compiler knows that it is one, and passes addresses to
// the copy engine without a loop over lanes.
__device__ __forceinline__ bool is_elected() {
    unsigned int elected = 0;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\n@p mov.u32 %0, 1;\n}" : "+r"(elected));
    return elected != 0;
}
// One lane copies; each of the first `copies` lanes has the slot of a copy. AT_ONCE of them are written out, so that lanes' slots do not
// wait for each other: all where many tiles are copied, and no more of single tokens' than pay for the code.
__device__ __forceinline__ void copy_context(char* to, const TensorMap& map, unsigned long long& full, unsigned long long& empty,
                                             unsigned int parity, int slot, int kv_head, int copies) {
    wait_for(empty, parity ^ 1);
    bool is_copying = is_elected();
    if (is_copying) expect_bytes(full, copies * COPIED * 128 * PANELS);
    auto copy = [&](int i, int at) {
#pragma unroll
        for (int panel = 0; panel < PANELS; panel++) {
            copy_block(to + panel * CONTEXT_PANEL + i * COPIED * 128, map, panel * 64, kv_head, at, full);
        }
    };
    constexpr int AT_ONCE = CONSUMERS == 1 && COPIES > 4 ? 4 : COPIES;
#pragma unroll 1
    for (int first = 0; first < (AT_ONCE == COPIES ? 1 : copies); first += AT_ONCE) {
        int slots[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) slots[i] = __shfl_sync(ALL_LANES, slot, first + i);
        if (is_copying) {
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (first + i < copies) copy(first + i, slots[i]);
            }
        }
    }
    __syncwarp();
}
__device__ __forceinline__ int copies_at(int first, const Tile& tile) {
    return (min(KEYS, tile.context - first) + COPIED - 1) / COPIED;
}

// Where the copying of an item has come to: the tile at `first`, and the lane's blocks of it and of the next, which are
// looked up a tile before they are needed.
struct Progress {
    int first, block, next_block;
};
// What copies for a block: it takes items as it gets to them, the first gridDim.x are theirs, `counters[0]` further ones are taken.
struct Copier {
    Copied& shared;
    const TensorMap &keys, &values;
    const int *query_starts, *context_lens, *tables;
    int* counters;
    const Shape& shape;
    Ring<ITEMS> place;
    Ring<KEY_STAGES> key_ring;
    Ring<VALUE_STAGES> value_ring;

    // The block of the cache with the lane's copy of those from position `first` on, where the sequence has one.
    __device__ __forceinline__ int block_at(int first, const Tile& tile) const {
        int behind = threadIdx.x % WARP * COPIED, position = first + behind;
        if (behind >= KEYS || position >= tile.context) return 0;
        return tables[(long long)tile.sequence * shape.blocks_per_row + position / BLOCK_SIZE];
    }
    __device__ __forceinline__ int slot_of(int block, int first) const {
        return block * BLOCK_SIZE + (first + threadIdx.x % WARP * COPIED) % BLOCK_SIZE;
    }
    __device__ __forceinline__ Progress start_of(const Item& item) const {
        int first = span_of(item.tile, shape).begin;
        return {first, block_at(first, item.tile), block_at(first + KEYS, item.tile)};
    }
    // The tile at `first`, of which the lane's copy is at `slot`.
    __device__ __forceinline__ void copy_keys(int slot, int first, const Item& item) {
        copy_context(shared.keys[key_ring.stage], keys, shared.keys_full[key_ring.stage], shared.keys_empty[key_ring.stage],
                     key_ring.parity, slot, item.kv_head, copies_at(first, item.tile));
        key_ring.advance();
    }
    __device__ __forceinline__ void copy_values(int slot, int first, const Item& item) {
        copy_context(shared.values[value_ring.stage], values, shared.values_full[value_ring.stage],
                     shared.values_empty[value_ring.stage], value_ring.parity, slot, item.kv_head,
                     copies_at(first, item.tile));
        value_ring.advance();
    }
    // Lane 0 takes, all lanes learn what was taken. The compiler hands the result of atomicAdd to other lanes, and so waits for it.
    __device__ __forceinline__ int take() {
        return threadIdx.x % WARP == 0 ? atomicInc(reinterpret_cast<unsigned int*>(counters), 0x7fffffff) : 0;
    }
    __device__ __forceinline__ int item_of_taken(int taken) { return gridDim.x + __shfl_sync(ALL_LANES, taken, 0); }
    // The last block leaves the counters as it found them.
    __device__ __forceinline__ void leave_counters() {
        if (threadIdx.x % WARP == 0 && atomicAdd(counters + 1, 1) == (int)gridDim.x - 1) counters[0] = counters[1] = 0;
    }
};
