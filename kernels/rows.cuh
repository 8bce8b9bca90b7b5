// What kernels with a block for each row share.
//
// Put between common.cuh and the source.

// The sum of a row's squares. A thread takes every blockDim.x-th group of V elements; the order depends on the row's length
// and the number of threads alone. Every thread gets the sum.
template <int V> __device__ __forceinline__ float sum_of_squares(const ELEMENT* x, int columns) {
    float sum = 0.0f;
    for (int i = threadIdx.x * V; i < columns; i += blockDim.x * V) {
        float value[V];
        load<V>(x + i, value);
#pragma unroll
        for (int v = 0; v < V; v++) sum = fmaf(value[v], value[v], sum);
    }
    return sum_of_block(sum);
}
