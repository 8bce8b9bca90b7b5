// How decode attention merges what has been attended to: the warps of a block, then the blocks of a cluster, or the parts of a divided
// context.
//
// Put between decode_attention.cuh and the source.

// How much the sums of each of a block's warps count, of which perhaps none had a tile.
struct WarpFactors {
    float of_warp[WARPS], largest, total;
};
__device__ __forceinline__ WarpFactors weigh_warps(const Shared& shared, int head) {
    WarpFactors factors = {{}, MINUS_INFINITY, 0.0f};
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) factors.largest = fmaxf(factors.largest, shared.largest[warp][head]);
    float common = CLUSTERED && factors.largest == MINUS_INFINITY ? 0.0f : factors.largest;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
        factors.of_warp[warp] = power_of_two(shared.largest[warp][head] - common);
        factors.total += factors.of_warp[warp] * shared.total[warp][head];
    }
    return factors;
}

#if CLUSTERED
// Lets the blocks of the cluster send to each other: `expect_results` before they meet, then `meet_cluster`. A barrier of the
// cluster that also orders what was written waits for the memory of the whole GPU; numbers that are counted when they
// arrive need no such.
__device__ __forceinline__ int columns_of_block(int columns) { return ((columns + cluster_blocks() - 1) / cluster_blocks() + 3) & ~3; }
__device__ __forceinline__ void expect_results(Sent& sent, int heads) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x > 0) return;
    int columns = heads * HEAD_DIM, share = columns_of_block(columns);
    int own = max(0, min(share, columns - cluster_rank() * share));
    init_barrier(sent.arrived, 1);
    expect_bytes(sent.arrived, cluster_blocks() * (own * (int)sizeof(float) + heads * (int)sizeof(float2)));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void meet_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait.acquire;" ::: "memory");
#else
    __trap(); // there are no clusters
#endif
}
// Numbers to a place in block `rank`'s shared memory, whose barrier counts their bytes.
__device__ __forceinline__ void send(Sent& sent, int rank, float* place, float4 four) {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                     shared_address_of(rank, place)), "f"(four.x), "f"(four.y), "f"(four.z), "f"(four.w),
                 "r"(shared_address_of(rank, &sent.arrived))
                 : "memory");
#endif
}
__device__ __forceinline__ void send(Sent& sent, int rank, float2* place, float2 two) {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
                     shared_address_of(rank, place)), "f"(two.x), "f"(two.y), "r"(shared_address_of(rank, &sent.arrived))
                 : "memory");
#endif
}

// Merges the warps of each block, then the blocks of the cluster in their order. Each block has a share of the columns, which
// all send to it, itself too.
__device__ __forceinline__ void merge_cluster(Shared& shared, int heads, ELEMENT* out) {
    int blocks = cluster_blocks(), rank = cluster_rank(), columns = heads * HEAD_DIM, share = columns_of_block(columns);
    Sent& sent = shared.sent;
#pragma unroll 1
    for (int i = threadIdx.x * 4; i < columns; i += THREADS * 4) {
        int head = i / HEAD_DIM, column = i % HEAD_DIM;
        WarpFactors factors = weigh_warps(shared, head);
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            float factor = factors.of_warp[warp];
            float4 of_warp = *reinterpret_cast<const float4*>(&shared.sums[warp][head][column]);
            sum.x += factor * of_warp.x, sum.y += factor * of_warp.y, sum.z += factor * of_warp.z, sum.w += factor * of_warp.w;
        }
        send(sent, i / share, &sent.sums[rank * share + i % share], sum);
        for (int to = column / 4; to < blocks; to += HEAD_DIM / 4) {
            send(sent, to, &sent.scales[rank][head], make_float2(factors.largest, factors.total));
        }
    }
#if __CUDA_ARCH__ >= 900
    wait_for(sent.arrived, 0);
#endif
#pragma unroll 1
    for (int at = threadIdx.x; at < min(share, columns - rank * share); at += THREADS) {
        int i = rank * share + at, head = i / HEAD_DIM;
        float2 scale[CLUSTER_MAX];
        float largest = MINUS_INFINITY, sum = 0.0f, total = 0.0f;
#pragma unroll
        for (int r = 0; r < CLUSTER_MAX; r++) {
            scale[r] = r < blocks ? sent.scales[r][head] : make_float2(MINUS_INFINITY, 0.0f);
            largest = fmaxf(largest, scale[r].x);
        }
#pragma unroll
        for (int r = 0; r < CLUSTER_MAX; r++) {
            float factor = power_of_two(scale[r].x - largest);
            if (r < blocks) sum = fmaf(factor, sent.sums[r * share + at], sum);
            total = fmaf(factor, scale[r].y, total);
        }
        narrow(__fdividef(sum, total), out[i]);
    }
}
#endif

// Where the results of parts wait for the others: sums, and the largest score and the total, of each head. A block has a place for
// a context's first part, with which its piece may end, and one for a later part, with which it may begin.
struct Partial {
    float* sums;
    float2* scales;
    __device__ __forceinline__ Partial(float* partial, int block, bool is_first) {
        int place = 2 * (block * (int)gridDim.x + (int)blockIdx.x) + (is_first ? 1 : 0), places = 2 * gridDim.x * gridDim.y;
        sums = partial + place * (TAKEN * HEAD_DIM);
        scales = reinterpret_cast<float2*>(partial + places * (TAKEN * HEAD_DIM)) + place * TAKEN;
    }
};

// Merges the warps' results into `out`, or, as one of several parts, into its place in `partial`.
__device__ __forceinline__ void merge_warps(const Shared& shared, const Part& part, int heads, ELEMENT* out, float* partial) {
    Partial own(partial, blockIdx.y, part.is_first);
#pragma unroll 1
    for (int i = threadIdx.x; i < heads * HEAD_DIM; i += THREADS) {
        int head = i / HEAD_DIM, column = i % HEAD_DIM;
        WarpFactors factors = weigh_warps(shared, head);
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) sum += factors.of_warp[warp] * shared.sums[warp][head][column];
        if (part.is_whole()) {
            narrow(__fdividef(sum, factors.total), out[i]);
        } else {
            own.sums[i] = sum;
            if (column == 0) own.scales[head] = make_float2(factors.largest, factors.total);
        }
    }
}

// Merges what all `count` parts of a context have written, in their order, of which `first_block` has the first. Several are
// read at a time.
__device__ __forceinline__ void merge_parts(float* partial, int first_block, int count, int heads, ELEMENT* out) {
    constexpr int AT_ONCE = 8;
#pragma unroll 1
    for (int i = threadIdx.x; i < heads * HEAD_DIM; i += THREADS) {
        float largest = MINUS_INFINITY, total = 0.0f, sum = 0.0f;
#pragma unroll 1
        for (int first = 0; first < count; first += AT_ONCE) {
            float value[AT_ONCE];
            float2 scale[AT_ONCE];
            float common = largest;
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                int index = min(first + k, count - 1);
                Partial part(partial, first_block + index, index == 0);
                value[k] = __ldcg(part.sums + i);
                scale[k] = __ldcg(part.scales + i / HEAD_DIM);
            }
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) common = fmaxf(common, scale[k].x);
            float factor = power_of_two(largest - common);
            sum *= factor, total *= factor, largest = common;
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                factor = first + k < count ? power_of_two(scale[k].x - common) : 0.0f;
                sum = fmaf(factor, value[k], sum), total = fmaf(factor, scale[k].y, total);
            }
        }
        narrow(__fdividef(sum, total), out[i]);
    }
}

// Adds one, after everything that this block wrote and before everything that it reads from here on.
__device__ __forceinline__ int count_up(int* counter) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

// Tells the others that this block's parts are done, and merges the contexts of its first and its last part if they are divided
// and complete. Nothing is being copied then: the writes of a block are waited for together with its copies. `finished` counts
// at a context's first block.
__device__ __forceinline__ void finish_divided(Shared& shared, const Planned& planned, const int4* parts, const HeadGroup& heads,
                                               ELEMENT* out, float* partial, int* finished, const Shape& shape) {
    __syncthreads(); // all threads have written
    if (threadIdx.x < 2) {
        int first = threadIdx.x == 0 ? planned.first_block : planned.last_first_block;
        int count = threadIdx.x == 0 ? planned.count : planned.last_count;
        bool merges = false;
        if (count > 1) {
            int* counter = finished + FOR_OTHERS + first * gridDim.x + blockIdx.x;
            merges = count_up(counter) == count - 1;
            if (merges) *counter = 0;
        }
        shared.merges[threadIdx.x] = merges;
    }
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < 2; i++) {
        if (!shared.merges[i]) continue;
        int token = part_of(__ldcg(parts + (i == 0 ? planned.first_place : planned.end_place - 1))).token;
        ELEMENT* to = out + heads.in_row(token, shape.num_heads);
        int first = i == 0 ? planned.first_block : planned.last_first_block, count = i == 0 ? planned.count : planned.last_count;
        merge_parts(partial, first, count, heads.count, to);
    }
}
