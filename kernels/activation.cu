// activation: out = kind(x); gated_activation: out = kind(gate) * up, where a row holds the gates and then the values.
//
// Variants: ELEMENT=f32|f16|bf16 KIND=SILU|GELU_TANH|GELU_ERF|RELU
//
// blockIdx.x is the row; a thread takes one group of V elements of it. Reads each input once, writes each output once.

template <int V> __device__ void activate_group(const ELEMENT* gate, const ELEMENT* up, ELEMENT* out, int columns) {
    int first = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    if (first >= columns) return;
    float value[V];
    load<V>(gate + first, value);
#pragma unroll
    for (int v = 0; v < V; v++) value[v] = activate<KIND>(value[v]);
    if (up != nullptr) {
        float factor[V];
        load<V>(up + first, factor);
#pragma unroll
        for (int v = 0; v < V; v++) value[v] *= factor[v];
    }
    store<V>(out + first, value);
}

// `columns` are those of the result; the grid covers them in groups of WIDEST elements.
__device__ __forceinline__ void activate_row(const ELEMENT* x, long long x_stride, bool gated, ELEMENT* out, int columns) {
    const ELEMENT* gate = x + blockIdx.x * x_stride;
    const ELEMENT* up = gated ? gate + columns : nullptr;
    ELEMENT* to = out + (long long)blockIdx.x * columns;
    if (rows_on_16_bytes(x, x_stride) && rows_on_16_bytes(out, columns)) {
        activate_group<WIDEST<ELEMENT>>(gate, up, to, columns);
    } else {
        for (int step = 0; step < WIDEST<ELEMENT>; step++) {
            int first = (step * gridDim.y + blockIdx.y) * blockDim.x + threadIdx.x;
            if (first >= columns) return;
            float value = activate<KIND>(widen(gate[first]));
            if (gated) value *= widen(up[first]);
            narrow(value, to[first]);
        }
    }
}

extern "C" __global__ void activation(const ELEMENT* x, long long x_stride, ELEMENT* out, int columns) {
    start_next_kernel();
    wait_for_previous_kernel();
    activate_row(x, x_stride, false, out, columns);
}

extern "C" __global__ void gated_activation(const ELEMENT* gate_up, long long stride, ELEMENT* out, int columns) {
    start_next_kernel();
    wait_for_previous_kernel();
    activate_row(gate_up, stride, true, out, columns);
}
