// What the copying warps of paged_attention_wgmma and paged_attention_single do: they find the items of their block, and bring
// their queries, keys and values into shared memory.
//
// CONSUMERS is 2 in the first, which takes tiles of rows, and 1 in the second, which takes single tokens.
//
// Put between wgmma.cuh and the source, which is compiled with HEAD_DIM, GROUP, CONSUMERS, VALUE_STAGES, BLOCK_SIZE and COPIED, the
// positions of a copy.
//
// A tile of keys is 8 or 16 copies of some blocks of the cache, and a lane that had its own block's to do would wait for those of
// the others: the engine takes addresses from registers of the warp. So one lane does all, and every address is the warp's.

constexpr int CONSUMER_THREADS = 128 * CONSUMERS;
constexpr int THREADS = CONSUMERS == 1 ? CONSUMER_THREADS + WARP : CONSUMER_THREADS + 128; // and those that copy
constexpr int TOKENS = CONSUMERS == 1 ? 1 : 64 * CONSUMERS / GROUP; // of a tile
constexpr int ROWS = TOKENS * GROUP; // at most 64 per warpgroup; the rest of the last one is idle
constexpr int KEYS = HEAD_DIM <= 128 ? 128 : 64;
constexpr int KEY_STAGES = CONSUMERS == 1 && HEAD_DIM == 64 ? 3 : 2; // tiles that there is room for
constexpr int QUERIES = CONSUMERS == 1 || HEAD_DIM <= 128 ? 2 : 1; // items whose queries are there
constexpr int COPIES = KEYS / COPIED; // of a tile, of positions that are beside each other
static_assert(COPIED % 8 == 0 && KEYS % COPIED == 0 && BLOCK_SIZE % COPIED == 0, "copies bring whole swizzled rows of one block");
constexpr int PANELS = HEAD_DIM / 64; // of 64 columns: 128 bytes, the width of a swizzled row
// Bytes. Of a single token there are as many rows as it has: what is behind them becomes rows that nobody reads.
constexpr int QUERY_PANEL = CONSUMERS == 1 ? (GROUP + 7) / 8 * 1024 : 64 * CONSUMERS * 128, CONTEXT_PANEL = KEYS * 128;
static_assert(HEAD_DIM % 64 == 0, "panels have 64 columns");
static_assert(ROWS <= 64 * CONSUMERS, "a warpgroup takes 64 rows");

// What a block takes at a time: rows of a sequence for one KV head.
struct Item {
    Tile tile;
    int kv_head;
};

struct __align__(16) Shared {
    char query[QUERIES][PANELS * QUERY_PANEL];
    char keys[KEY_STAGES][PANELS * CONTEXT_PANEL], values[VALUE_STAGES][PANELS * CONTEXT_PANEL];
    unsigned long long query_full[QUERIES], query_empty[QUERIES], announced[QUERIES];
    unsigned long long keys_full[KEY_STAGES], keys_empty[KEY_STAGES];
    unsigned long long values_full[VALUE_STAGES], values_empty[VALUE_STAGES];
    Item item[QUERIES]; // of the queries, once it is announced; sequence -1: there are no more

    // So many tell that a stage of queries, or of keys or values, can be copied to again.
    __device__ __forceinline__ void init(int of_queries, int of_context) {
        for (int stage = 0; stage < QUERIES; stage++) {
            init_barrier(query_full[stage], 1);
            init_barrier(query_empty[stage], of_queries);
            init_barrier(announced[stage], 1);
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
__device__ __forceinline__ void copy_queries(void* to, const TensorMap& map, int column, int kv_head, int token,
                                             unsigned long long& barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, 0, %3, %4}], [%5];" ::
                     "r"(shared_address(to)), "l"(&map), "r"(column), "r"(kv_head), "r"(token), "r"(shared_address(&barrier))
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
// One lane copies; each of the first `copies` lanes has the slot of a copy. All copies of a tile are written out where many tiles are
// copied; of single tokens that would be more code to read than time to save.
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
    if constexpr (CONSUMERS == 1) {
#pragma unroll 1
        for (int i = 0; i < copies; i++) {
            int at = __shfl_sync(ALL_LANES, slot, i);
            if (is_copying) copy(i, at);
        }
    } else {
        int slots[COPIES];
#pragma unroll
        for (int i = 0; i < COPIES; i++) slots[i] = __shfl_sync(ALL_LANES, slot, i);
        if (is_copying) {
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                if (i < copies) copy(i, slots[i]);
            }
        }
    }
    __syncwarp();
}
// The lane's block of a tile, where that is in the cache, and how many lanes have one.
__device__ __forceinline__ int block_at(int first, const Tile& tile, const int* tables, const Shape& shape) {
    int behind = threadIdx.x % WARP * COPIED, position = first + behind;
    if (behind >= KEYS || position >= tile.context) return 0;
    const int* table = tables + (long long)tile.sequence * shape.blocks_per_row;
    return table[position / BLOCK_SIZE];
}
__device__ __forceinline__ int slot_of(int block, int first) {
    return block * BLOCK_SIZE + (first + threadIdx.x % WARP * COPIED) % BLOCK_SIZE;
}
__device__ __forceinline__ int copies_at(int first, const Tile& tile) {
    return (min(KEYS, tile.context - first) + COPIED - 1) / COPIED;
}

// Values of positions from `count` on become zeros: what the cache holds there may be no number. For all threads that compute.
__device__ __forceinline__ void clear_values(char* values, int count, int thread) {
#pragma unroll 1
    for (int panel = 0; panel < PANELS; panel++, values += CONTEXT_PANEL) {
        for (int i = count * 8 + thread; i < KEYS * 8; i += CONSUMER_THREADS) {
            reinterpret_cast<uint4*>(values)[i] = make_uint4(0, 0, 0, 0);
        }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); // the copy engine and warpgroups see it
}

struct Producer {
    Shared& shared;
    const TensorMap &queries, &keys, &values;
    const int *query_starts, *context_lens, *tables;
    int* counters;
    const Shape& shape;
    Ring<QUERIES> place;
    Ring<KEY_STAGES> key_ring;
    Ring<VALUE_STAGES> value_ring;

    // The item with its queries; behind the last item one that says that there are no more.
    __device__ __forceinline__ void send_queries(const Item& item) {
        wait_for(shared.query_empty[place.stage], place.parity ^ 1);
        if (is_elected()) {
            const Tile& tile = item.tile;
            unsigned long long& full = shared.query_full[place.stage];
            shared.item[place.stage] = item;
            if (CONSUMERS > 1) arrive(shared.announced[place.stage]);
            expect_bytes(full, PANELS * ROWS * 128);
#pragma unroll
            for (int panel = 0; panel < PANELS; panel++) {
                copy_queries(shared.query[place.stage] + panel * QUERY_PANEL, queries, panel * 64, item.kv_head,
                             tile.first_token + tile.first_row / GROUP, full);
            }
        }
        __syncwarp();
        place.advance();
    }
    __device__ __forceinline__ void send_end() {
        wait_for(shared.query_empty[place.stage], place.parity ^ 1);
        if (is_elected()) {
            shared.item[place.stage].tile.sequence = -1;
            if (CONSUMERS > 1) arrive(shared.announced[place.stage]);
            arrive(shared.query_full[place.stage]);
        }
    }
    // The tile at `first`, of which the lane's block is at `slot`. Keys are copied a tile before values: so they are needed.
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
    // Blocks take items as they get to them: the first gridDim.x are theirs, `counters[0]` further ones are taken. Lane 0
    // takes, all lanes learn what was taken. The compiler hands the result of atomicAdd to other lanes, and so waits for it.
    __device__ __forceinline__ int take() {
        return threadIdx.x % WARP == 0 ? atomicInc(reinterpret_cast<unsigned int*>(counters), 0x7fffffff) : 0;
    }
    __device__ __forceinline__ int item_of_taken(int taken) { return gridDim.x + __shfl_sync(ALL_LANES, taken, 0); }
    // The last block leaves the counters as it found them.
    __device__ __forceinline__ void leave_counters() {
        if (threadIdx.x % WARP == 0 && atomicAdd(counters + 1, 1) == (int)gridDim.x - 1) counters[0] = counters[1] = 0;
    }

    __device__ __forceinline__ void run();
    __device__ __forceinline__ void run_values();
};

// Where the copying of an item has come to: the tile at `first`, and the lane's blocks of it and of the next, which are
// looked up a tile before they are needed.
struct Progress {
    int first, block, next_block;
};
__device__ __forceinline__ Progress start_of(const Item& item, const Producer& of) {
    int first = span_of(item.tile, of.shape).begin;
    return {first, block_at(first, item.tile, of.tables, of.shape), block_at(first + KEYS, item.tile, of.tables, of.shape)};
}
#if CONSUMERS == 1
// The KV heads of a sequence are side by side, as in the cache. A context of 0: nothing is to be done.
__device__ __forceinline__ Item item_of(int index, const Producer& of) {
    Item item;
    Tile& tile = item.tile;
    tile.sequence = index / of.shape.num_kv_heads, item.kv_head = index % of.shape.num_kv_heads;
    tile.first_row = 0, tile.num_rows = GROUP, tile.first_token = tile.sequence, tile.context = 0;
    if (tile.sequence < of.shape.num_sequences) {
        tile.context = of.context_lens[tile.sequence];
        if (of.shape.mixed) {
            tile.first_token = of.query_starts[tile.sequence];
            if (of.query_starts[tile.sequence + 1] - tile.first_token != 1) tile.context = 0; // the other form's
        }
    }
    tile.first_position = tile.context - 1;
    return item;
}
__device__ __forceinline__ void Producer::run() {
    int items = shape.num_sequences * shape.num_kv_heads, index = blockIdx.x;
    bool shares = items > (int)gridDim.x;
    prefetch_map(queries);
    Item item = item_of(index, *this);
    Progress at = start_of(item, *this);
    // No kernel of a step writes lengths, tables, or keys and values before the last position: as many tiles as there is
    // room for are read before this step's queries are there.
    for (int stage = 0; stage < VALUE_STAGES && at.first + KEYS < item.tile.context; stage++) {
        int later = block_at(at.first + 2 * KEYS, item.tile, tables, shape);
        copy_keys(slot_of(at.block, at.first), at.first, item);
        copy_values(slot_of(at.block, at.first), at.first, item);
        at = {at.first + KEYS, at.next_block, later};
    }
    bool has_keys = KEY_STAGES > VALUE_STAGES && at.first + KEYS < item.tile.context;
    if (has_keys) copy_keys(slot_of(at.block, at.first), at.first, item);
    wait_for_previous_kernel();
    start_next_kernel();
    // What is asked for is there when it is needed: an item is taken, and the next one's blocks are looked up, when the last
    // values of this one are left, and its length is read when this one begins.
    int taken = shares ? take() : 0;
    while (index < items) {
        bool has_work = item.tile.context > 0;
        if (has_work) {
            send_queries(item);
            if (!has_keys) copy_keys(slot_of(at.block, at.first), at.first, item);
            has_keys = false;
        }
        index = shares ? item_of_taken(taken) : items;
        Item next = item_of(index, *this);
        while (at.first + KEYS < item.tile.context) {
            int later = block_at(at.first + 2 * KEYS, item.tile, tables, shape);
            copy_keys(slot_of(at.next_block, at.first + KEYS), at.first + KEYS, item);
            copy_values(slot_of(at.block, at.first), at.first, item);
            at = {at.first + KEYS, at.next_block, later};
        }
        Progress start = start_of(next, *this);
        if (index < items) taken = take();
        if (has_work) copy_values(slot_of(at.block, at.first), at.first, item);
        item = next, at = start;
    }
    send_end();
    if (shares) leave_counters();
}
#else
constexpr int HEADS_AT_ONCE = 8;
// A few heads at a time, so that their keys and values stay in the cache; the last tiles of a long context are the longest work
// and go first. Without rows, nothing is to be done.
__device__ __forceinline__ Item item_of(int index, const Producer& of) {
    int tiles = of.shape.num_tokens / TOKENS + of.shape.num_sequences;
    int first_head = index / (tiles * HEADS_AT_ONCE) * HEADS_AT_ONCE;
    int heads = min(HEADS_AT_ONCE, of.shape.num_kv_heads - first_head), within = index - first_head * tiles;
    Item item;
    item.kv_head = first_head + within % heads;
    item.tile = tile_of<ROWS>(tiles - 1 - within / heads, of.query_starts, of.context_lens, of.shape);
    return item;
}
// Queries and keys, by one warp. It takes the next item with this one's last keys, and finds it while they are under way.
__device__ __forceinline__ void Producer::run() {
    int items = (shape.num_tokens / TOKENS + shape.num_sequences) * shape.num_kv_heads;
    int taken = 0;
    for (int index = blockIdx.x; index < items; index = item_of_taken(taken)) {
        Item item = item_of(index, *this);
        if (item.tile.num_rows == 0) {
            taken = take();
            continue;
        }
        Progress at = start_of(item, *this);
        int last_seen = span_of(item.tile, shape).last_seen;
        send_queries(item);
        for (; at.first <= last_seen; at.first += KEYS) {
            int later = block_at(at.first + 2 * KEYS, item.tile, tables, shape);
            if (at.first + KEYS > last_seen) taken = take();
            copy_keys(slot_of(at.block, at.first), at.first, item);
            at.block = at.next_block, at.next_block = later;
        }
    }
    send_end();
    leave_counters();
}
// Values, by another.
__device__ __forceinline__ void Producer::run_values() {
    for (;; place.advance()) {
        wait_for(shared.announced[place.stage], place.parity);
        Item item = shared.item[place.stage];
        __syncwarp();
        if (is_elected()) arrive(shared.query_empty[place.stage]);
        if (item.tile.sequence < 0) break;
        int last_seen = span_of(item.tile, shape).last_seen;
        for (Progress at = start_of(item, *this); at.first <= last_seen; at.first += KEYS) {
            int later = block_at(at.first + 2 * KEYS, item.tile, tables, shape);
            copy_values(slot_of(at.block, at.first), at.first, item);
            at.block = at.next_block, at.next_block = later;
        }
    }
}
#endif
