// What products with weights by the asynchronous matrix instructions of Hopper share: bulk copies of chunks of inputs, and how results
// are rounded.
//
// Put between wgmma.cuh and the source.

enum After { STORE, ACTIVATE, GATE, ROTATE };

constexpr int INPUTS = 64; // of a chunk: 128 bytes, the width of a swizzled row
__device__ __forceinline__ int chunks_of(int inputs) { return (inputs + INPUTS - 1) / INPUTS; }
// In order, so many parts of the chunks have a pair of sums each; where a part begins.
constexpr int PAIRS = 4;
__device__ __forceinline__ int begin_of(int quarter, int chunks) { return quarter * chunks / PAIRS; }

// Groups of 16 outputs.
__device__ __forceinline__ void copy_weights(void* to, const TensorMap& map, int column, int group, unsigned long long& barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, 0, 0, %3}], [%4];" ::
                     "r"(shared_address(to)), "l"(&map), "r"(column), "r"(group), "r"(shared_address(&barrier))
                 : "memory");
}
__device__ __forceinline__ void copy_x(void* to, const TensorMap& map, int column, int row, unsigned long long& barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
                     "r"(shared_address(to)), "l"(&map), "r"(column), "r"(row), "r"(shared_address(&barrier))
                 : "memory");
}
// Orders nothing but what is fenced otherwise: with release it would wait for the memory of the whole GPU.
__device__ __forceinline__ void arrive_in_cluster() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait_for_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

__device__ __forceinline__ float rounded(float value) {
    ELEMENT narrowed;
    narrow(value, narrowed);
    return widen(narrowed);
}

// The sums of two groups of 8 elements.
__device__ __forceinline__ uint4 sum_of(uint4 one, uint4 other) {
    float value[8], added[8];
    uint4 sum;
    widen_16_bytes(one, ELEMENT{}, value);
    widen_16_bytes(other, ELEMENT{}, added);
#pragma unroll
    for (int v = 0; v < 8; v++) value[v] += added[v];
    store<8>(reinterpret_cast<ELEMENT*>(&sum), value);
    return sum;
}
