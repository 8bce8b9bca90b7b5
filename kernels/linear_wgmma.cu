// linear_wgmma: out = after(x * weight^T + bias) for tens to hundreds of rows of x, with the asynchronous matrix instructions
// of Hopper; 16-bit elements.
//
// Variants: ELEMENT=f16|bf16 AFTER:KIND:WARPGROUPS:ROWS:SPLIT:WEIGHT_STAGES:X_STAGES:ORDERED:HEAD:CACHE=STORE:RELU:1:128:2:4:4:0:64:ELEMENT|STORE:RELU:1:64:8:6:6:0:64:ELEMENT|STORE:RELU:1:64:4:7:5:0:64:ELEMENT|STORE:RELU:1:64:2:9:8:0:64:ELEMENT|STORE:RELU:1:96:1:6:5:0:64:ELEMENT|GATE:SILU:1:128:1:6:4:0:64:ELEMENT|GATE:GELU_TANH:1:96:2:5:5:0:64:ELEMENT|GATE:SILU:1:64:2:7:6:0:64:ELEMENT|ACTIVATE:GELU_ERF:1:64:1:8:6:0:64:ELEMENT|STORE:RELU:1:64:4:7:5:1:64:ELEMENT|STORE:RELU:1:64:2:6:6:1:64:ELEMENT|STORE:RELU:1:128:1:6:4:1:64:ELEMENT|GATE:SILU:1:64:2:6:6:1:64:ELEMENT|GATE:SILU:1:128:1:6:4:1:64:ELEMENT|ACTIVATE:GELU_ERF:1:64:1:8:6:1:64:ELEMENT|ROTATE:RELU:2:64:1:5:4:0:128:ELEMENT|ROTATE:RELU:2:64:2:9:6:0:128:ELEMENT|ROTATE:RELU:2:128:1:4:3:0:128:ELEMENT|ROTATE:RELU:1:64:4:7:5:0:64:ELEMENT|ROTATE:RELU:1:96:1:6:5:0:64:e4m3|ROTATE:RELU:1:64:4:7:5:1:64:ELEMENT|ROTATE:RELU:2:64:4:3:4:1:128:ELEMENT|ROTATE:RELU:2:64:2:3:4:1:128:ELEMENT|ROTATE:RELU:2:64:1:5:4:1:128:e4m3
// Targets: sm_90a
// Needs: heads.cuh qkv_rows.cuh wgmma.cuh wgmma_products.cuh finish_rows.cuh
//
// `x` is [M, K], `weight` [N, K], both with rows apart by a stride. AFTER is as in linear_few_rows: STORE, with a residual if
// there is one, ACTIVATE or GATE, each result rounded where the separate operations round it; and ROTATE, as in
// linear_wgmma_tiles: heads of HEAD elements are finished with the bits that rope_and_store_kv gives them.
//
// Each of a block's WARPGROUPS multiplies 64 rows of the weights, which are the rows of an instruction, by ROWS rows of x, which
// are its columns, for a part of the inputs: the SPLIT blocks of a cluster share those. So small weights keep most
// multiprocessors busy without each of them reading all of x. Each block finishes a part of the rows of x: the others put their
// sums for those into its shared memory, and it adds them in the order of the inputs. Gates come with the values that they are
// multiplied by: 8 rows of the one, 8 of the other, so that a thread has both. A block has all of a head: two that had half of
// it each, and waited for each other's sums of squares, took 5 us longer for 256 rows. (Tried: blocks beside each other that
// copy parts of x into each other's shared memory as well; 1.3 to 3 times slower.)
//
// Norms by root mean square have no kernel of their own between two such products. The first writes its rows a second time, times
// the weight of the norm, and for each tile of outputs the sum of the squares of every row; the second multiplies those rows, and
// its sums by what the sums of squares come to.
//
// ORDERED gives each row the bits that linear_few_rows gives it: a quarter of the chunks after the other has a pair of sums, one
// for either half of its chunks. The blocks of a cluster share the quarters.
//
// One warp copies weights into a ring, chunk after chunk of 64 inputs, and begins before the kernel before this one has
// ended; another copies x, which waits for it; the warpgroups multiply. Most blocks take less than half of a
// multiprocessor's shared memory, so that the next kernel's first weights have room beside them.
//
// Memory: x is read by every tile of outputs, from the second-level cache; weights by every tile of rows.
// Limits: K a multiple of 8, N of 16, everything on 16-byte boundaries.

// Four numbers to the shared memory of another block, whose barrier counts their bytes.
__device__ __forceinline__ void send(unsigned int to, const float* four, unsigned int barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "f"(four[0]), "f"(four[1]), "f"(four[2]), "f"(four[3]), "r"(barrier)
                 : "memory");
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
        copy_weights(to, weights, chunk * INPUTS, blockIdx.y * (OUTPUTS / 16), barrier);
    }
}
// Of rows that all fit into the block no more are copied: the copy engine takes long for those that are not there. What is
// behind them becomes results that nobody reads.
__device__ void produce_x(Shared& shared, const TensorMap& x, Span span, int rows) {
    Ring<X_STAGES> ring;
#pragma unroll 1
    for (int chunk = span.begin; chunk < span.end; chunk++, ring.advance()) {
        wait_for(shared.x_empty[ring.stage], ring.parity ^ 1);
        expect_bytes(shared.x_full[ring.stage], min(rows, ROWS) * INPUTS * 2);
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
        int warpgroup = WARPGROUPS == 1 ? 0 : uniform(threadIdx.x / 128);
        weights = operand_at(within(shared.weights) + warpgroup * (WEIGHT_BYTES / WARPGROUPS), 16);
        x = operand_at(within(shared.x), 16);
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
        if (chunk > begin && threadIdx.x % 128 == 0) {
            arrive(bases.weights_empty + before.weights.stage * 8);
            arrive(bases.x_empty + before.x.stage * 8);
        }
        before = places;
        places.weights.advance(), places.x.advance();
    }
    wait_for_multiplications<0>();
    settle(sums);
    if constexpr (ORDERED) settle(others);
    if (QUARTERS > 1 && begin < end && threadIdx.x % 128 == 0) {
        arrive(bases.weights_empty + before.weights.stage * 8);
        arrive(bases.x_empty + before.x.stage * 8);
    }
}

// The sums of all of the block's chunks, of every quarter if others need them.
__device__ __forceinline__ void multiply_all(float (&kept)[KEPT][ROWS / 2], const Bases& bases, Span span, int chunks) {
    Places places;
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
    unsigned int there = shared_address_of(to, &shared.received[place][0][threadIdx.x]);
    unsigned int barrier = shared_address_of(to, &shared.all_received);
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

// What threads have before the kernel before this one has ended. Until it has, code is read, and the time is free.
struct Work {
    Bases bases;
    RowNorm norm;
    float bias[2] = {}, sums[KEPT][ROWS / 2];

    __device__ __forceinline__ Work(Shared& shared, const float* bias_of, const float* squares, const Shape& shape)
        : bases(shared), norm(FINISHES_NORM ? squares : nullptr, shape) {
        read_bias(bias, bias_of, shape);
#pragma unroll
        for (int i = 0; i < KEPT * ROWS / 2; i++) {
            float& sum = sums[i / (ROWS / 2)][i % (ROWS / 2)];
            if constexpr (ORDERED) {
                sum = 0.0f;
            } else {
                asm volatile("" : "=f"(sum)); // anything: every block has inputs, and their first products replace it
            }
        }
    }

    // The products of all inputs, rounded, in the shared memory of the block that finishes them.
    __device__ __forceinline__ char* multiply(Shared& shared, int2 own_token, const Shape& shape, Span span) {
        if (FINISHES_NORM) norm.read();
        multiply_all(sums, bases, span, chunks_of(shape.inputs));
        char* results = shared.weights[0];
        float own[OWN_SUMS];
        if constexpr (SPLIT > 1) {
            wait_for_cluster(); // the others have begun
            exchange(own, sums, shared);
        } else {
#pragma unroll
            for (int i = 0; i < OWN_SUMS; i++) own[i] = sums[0][i];
        }
        meet(1, CONSUMERS); // no warp multiplies any more: the rings become the place of the results
        if constexpr (FINISHES_NORM || AFTER == ROTATE) {
            if (threadIdx.x < OWN_ROWS) {
                if constexpr (FINISHES_NORM) of_rows(results).scales[threadIdx.x] = norm.scale(shape);
                if constexpr (AFTER == ROTATE) of_rows(results).tokens[threadIdx.x] = own_token;
            }
            meet(1, CONSUMERS);
        }
        write_results(own, bias, results);
        meet(1, CONSUMERS);
        return results;
    }
};

__device__ __forceinline__ void consume(Shared& shared, const float* bias, const ELEMENT* residual, const float* squares,
                                        const Next& next, const Operands& operands, const Shape& shape, const Rows& rows,
                                        const Rotation& rotation, Span span) {
    Work work(shared, bias, squares, shape);
    if constexpr (AFTER == ROTATE) {
        Heads heads(operands, rows, rotation);
        wait_for_previous_kernel();
        heads.finish(work.multiply(shared, heads.own_token, shape, span));
    } else {
        Finish finish = {residual, operands.qkv, next, shape};
        finish.begin();
        wait_for_previous_kernel();
        finish.read();
        finish.run(work.multiply(shared, make_int2(0, 0), shape, span));
    }
}

// blockIdx: the part of the inputs, the tile of outputs, the tile of rows.
extern "C" __global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(SPLIT, 1, 1)
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
            init_barrier(shared.weights_empty[stage], WARPGROUPS);
        }
        for (int stage = 0; stage < X_STAGES; stage++) {
            init_barrier(shared.x_full[stage], 1);
            init_barrier(shared.x_empty[stage], WARPGROUPS);
        }
        if constexpr (SPLIT > 1) {
            init_barrier(shared.all_received, 1);
            expect_bytes(shared.all_received, SENDERS * KEPT * OWN_SUMS * CONSUMERS * 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    int chunks = chunks_of(shape.inputs);
    Span span = {(int)blockIdx.x * chunks / SPLIT, ((int)blockIdx.x + 1) * chunks / SPLIT};
    if (threadIdx.x < CONSUMERS) {
        if constexpr (SPLIT > 1) arrive_in_cluster();
        Operands operands = {out, query_norm, key_norm, table, positions, slots, keys, values};
        Next next = {next_norm, scaled, next_squares};
        consume(shared, bias, residual, squares, next, operands, shape, rows, rotation, span);
    } else if (threadIdx.x == CONSUMERS) {
        produce_weights(shared, weights, span);
    } else if (threadIdx.x == CONSUMERS + WARP) {
        prefetch_map(x);
        wait_for_previous_kernel();
        produce_x(shared, x, span, shape.rows);
    }
}
