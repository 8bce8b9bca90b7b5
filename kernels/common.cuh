// What every kernel source starts with: element types, 16-byte loads and stores, reductions.
//
// The text is put before each source, so that a kernel needs no include path. Elements are f32, f16 or bf16, those of a KV
// cache also e4m3; arithmetic is always in 32-bit floats, and conversions are spelled out, so that cards without bf16 or
// fp8 instructions run the same code.

struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};
struct e4m3 {
    unsigned char bits;
};
typedef float f32;

template <class A, class B> constexpr bool IS_SAME = false;
template <class A> constexpr bool IS_SAME<A, A> = true;

constexpr unsigned int WARP = 32;
constexpr unsigned int ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(f16 value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}
__device__ __forceinline__ float widen(bf16 value) { return __uint_as_float((unsigned int)value.bits << 16); }

// Rounds to the nearest, ties to even, as the conversion instructions do.
__device__ __forceinline__ void narrow(float value, float& out) { out = value; }
__device__ __forceinline__ void narrow(float value, f16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value)); }
__device__ __forceinline__ void narrow(float value, bf16& out) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
#else
    unsigned int bits = __float_as_uint(value);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    unsigned int rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out.bits = is_nan ? 0x7fffu : (unsigned short)rounded;
#endif
}

// Cards before compute capability 8.9 have no instructions for e4m3.
#if __CUDA_ARCH__ >= 890 && !defined(E4M3_BY_INTEGERS)
#define E4M3_INSTRUCTIONS 1
#else
#define E4M3_INSTRUCTIONS 0
#endif

// The two codes in the lower half of `codes` as numbers, which f16 holds exactly; the first in the lower half.
__device__ __forceinline__ unsigned int widen_codes(unsigned int codes) {
    unsigned int pair;
#if E4M3_INSTRUCTIONS
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"((unsigned short)codes));
#else
    unsigned int at = __byte_perm(codes, 0, 0x1404); // a code in the upper half of each element
    unsigned int magnitude = at & 0x7f007f00u;
    unsigned int nan = (magnitude + 0x01000100u) & 0x80008000u;
    // With the same bits for exponent and fraction, f16 is smaller by 2^8.
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"((at & 0x80008000u) | magnitude >> 1), "r"(0x5c005c00u));
    pair |= nan - (nan >> 6);
#endif
    return pair;
}
__device__ __forceinline__ float widen(e4m3 value) {
    return widen(f16{(unsigned short)widen_codes(value.bits)});
}

// The two nearest codes, ties to even ones, numbers beyond the largest becoming it; `low` in the lower byte.
__device__ __forceinline__ unsigned int code_of(float value) {
    float magnitude = fabsf(value);
    unsigned int bits = __float_as_uint(magnitude);
    unsigned int code = ((bits + 0x7ffffu + ((bits >> 20) & 1u)) >> 20) - ((127 - 7) << 3);
    // The sum rounds numbers without a whole fraction to units of 2^-9.
    if (magnitude < 0.015625f) code = __float_as_uint(__fadd_rn(magnitude, 16384.0f)) - __float_as_uint(16384.0f);
    if (magnitude > 448.0f) code = 0x7e;
    return value == value ? code | (__float_as_uint(value) >> 31 << 7) : 0x7f;
}
__device__ __forceinline__ unsigned int narrow_codes(float low, float high) {
#if E4M3_INSTRUCTIONS
    unsigned short codes;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    return codes;
#else
    return code_of(low) | code_of(high) << 8;
#endif
}
__device__ __forceinline__ void narrow(float value, e4m3& out) { out.bits = (unsigned char)narrow_codes(value, 0.0f); }

// What is to be stored in a cache of C for a value that its row holds as a T: for codes, what the row holds.
template <class T, class C> __device__ __forceinline__ float as_kept(float value) {
    if constexpr (sizeof(C) > 1) return value;
    T held;
    narrow(value, held);
    return widen(held);
}

// The widest number of elements that one access moves; of codes as many as of 16-bit elements.
template <class T> constexpr int WIDEST = 16 / sizeof(T);
template <> constexpr int WIDEST<e4m3> = 8;

// Two 16-bit elements of one register.
__device__ __forceinline__ void widen_pair(unsigned int pair, f16, float& low, float& high) {
    low = widen(f16{(unsigned short)pair});
    high = widen(f16{(unsigned short)(pair >> 16)});
}
__device__ __forceinline__ void widen_pair(unsigned int pair, bf16, float& low, float& high) {
    low = __uint_as_float(pair << 16);
    high = __uint_as_float(pair & 0xffff0000u);
}
template <class T> __device__ __forceinline__ unsigned int narrow_pair(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned int pair;
    if constexpr (IS_SAME<T, bf16>) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    }
    return pair;
#else
    T a, b;
    narrow(low, a);
    narrow(high, b);
    return (unsigned int)a.bits | ((unsigned int)b.bits << 16);
#endif
}

// The elements of one 16-byte register group.
__device__ __forceinline__ void widen_16_bytes(uint4 raw, f32, float (&at)[4]) {
    at[0] = __uint_as_float(raw.x);
    at[1] = __uint_as_float(raw.y);
    at[2] = __uint_as_float(raw.z);
    at[3] = __uint_as_float(raw.w);
}
template <class T> __device__ __forceinline__ void widen_16_bytes(uint4 raw, T, float (&at)[8]) {
    widen_pair(raw.x, T{}, at[0], at[1]);
    widen_pair(raw.y, T{}, at[2], at[3]);
    widen_pair(raw.z, T{}, at[4], at[5]);
    widen_pair(raw.w, T{}, at[6], at[7]);
}

__device__ __forceinline__ void widen_8_codes(uint2 raw, float (&at)[8]) {
    widen_pair(widen_codes(raw.x), f16{}, at[0], at[1]);
    widen_pair(widen_codes(raw.x >> 16), f16{}, at[2], at[3]);
    widen_pair(widen_codes(raw.y), f16{}, at[4], at[5]);
    widen_pair(widen_codes(raw.y >> 16), f16{}, at[6], at[7]);
}

// `V` consecutive elements, widened. `V` is 1, or WIDEST<T> with `from` on a 16-byte boundary.
template <int V, class T> __device__ __forceinline__ void load(const T* from, float (&at)[V]) {
    if constexpr (V == 1) {
        at[0] = widen(*from);
    } else {
        static_assert(V == WIDEST<T>, "loads are one element or as many as an access moves");
        if constexpr (sizeof(T) == 1) {
            widen_8_codes(*reinterpret_cast<const uint2*>(from), at);
        } else {
            widen_16_bytes(*reinterpret_cast<const uint4*>(from), T{}, at);
        }
    }
}
template <int V, class T> __device__ __forceinline__ void store(T* to, const float (&at)[V]) {
    if constexpr (V == 1) {
        narrow(at[0], *to);
    } else if constexpr (sizeof(T) == 4) {
        *reinterpret_cast<float4*>(to) = make_float4(at[0], at[1], at[2], at[3]);
    } else if constexpr (sizeof(T) == 1) {
        uint2 raw;
        raw.x = narrow_codes(at[0], at[1]) | narrow_codes(at[2], at[3]) << 16;
        raw.y = narrow_codes(at[4], at[5]) | narrow_codes(at[6], at[7]) << 16;
        *reinterpret_cast<uint2*>(to) = raw;
    } else {
        uint4 raw;
        raw.x = narrow_pair<T>(at[0], at[1]);
        raw.y = narrow_pair<T>(at[2], at[3]);
        raw.z = narrow_pair<T>(at[4], at[5]);
        raw.w = narrow_pair<T>(at[6], at[7]);
        *reinterpret_cast<uint4*>(to) = raw;
    }
}
// `V` consecutive 32-bit floats; on a 16-byte boundary when `V` is not 1.
template <int V> __device__ __forceinline__ void load_floats(const float* from, float (&at)[V]) {
    if constexpr (V == 1) {
        at[0] = *from;
    } else {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            float4 four = *reinterpret_cast<const float4*>(from + i);
            at[i] = four.x;
            at[i + 1] = four.y;
            at[i + 2] = four.z;
            at[i + 3] = four.w;
        }
    }
}

// The same of constants: what no kernel of a step writes, so that the order among stores does not matter.
template <int V> __device__ __forceinline__ void load_constants(const float* from, float (&at)[V]) {
    if constexpr (V == 1) {
        at[0] = __ldg(from);
    } else {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            float4 four = __ldg(reinterpret_cast<const float4*>(from + i));
            at[i] = four.x;
            at[i + 1] = four.y;
            at[i + 2] = four.z;
            at[i + 3] = four.w;
        }
    }
}

__device__ __forceinline__ bool on_16_bytes(const void* pointer) { return ((unsigned long long)pointer & 15u) == 0; }
// Whether every row of a matrix can be read with 16-byte accesses.
template <class T> __device__ __forceinline__ bool rows_on_16_bytes(const T* first, long long row_stride) {
    return on_16_bytes(first) && row_stride % WIDEST<T> == 0;
}

// Sums over the `LANES` neighbouring lanes of a warp, in an order that depends on the lane numbers alone.
__device__ __forceinline__ float sum_of_lanes(float value, int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, offset);
    }
    return value;
}
__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, offset);
    }
    return value;
}
__device__ __forceinline__ float max_of_warp(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, offset));
    }
    return value;
}

// Sums over a block of whole warps; every thread gets the sum. Its order depends on the number of threads alone.
__device__ __forceinline__ float sum_of_block(float value) {
    __shared__ float of_warp[32];
    unsigned int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    value = sum_of_warp(value);
    __syncthreads(); // an earlier call may still be reading `of_warp`
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();
    return sum_of_warp(lane < blockDim.x / WARP ? of_warp[lane] : 0.0f);
}

// The same for a block of 8 warps, in the same order; `sums` is shared memory on 16 bytes that nothing else uses, so that one
// barrier is enough.
__device__ __forceinline__ float sum_of_8_warps(float value, float* sums) {
    value = sum_of_warp(value);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = value;
    __syncthreads();
    float4 low = *reinterpret_cast<const float4*>(sums), high = *reinterpret_cast<const float4*>(sums + 4);
    return ((low.x + high.x) + (low.z + high.z)) + ((low.y + high.y) + (low.w + high.w));
}

__device__ __forceinline__ unsigned int shared_address(const void* pointer) {
    return (unsigned int)__cvta_generic_to_shared(pointer);
}

// A value that the lanes of a warp share, as one that the compiler knows to be so: it keeps what follows from it in registers of
// the warp.
__device__ __forceinline__ unsigned int uniform(unsigned int value) { return __shfl_sync(ALL_LANES, value, 0); }

// Where block `rank` of the cluster has in its shared memory what this block has at `here`.
__device__ __forceinline__ unsigned int shared_address_of(int rank, const void* here) {
    unsigned int there = 0;
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(here)), "r"(rank));
#endif
    return there;
}

#if __CUDA_ARCH__ >= 900
// Barriers in shared memory that count arrivals, and bytes that are copied or sent there.
__device__ __forceinline__ void init_barrier(unsigned long long& barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals));
}
__device__ __forceinline__ void arrive(unsigned int barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void arrive(unsigned long long& barrier) { arrive(shared_address(&barrier)); }
__device__ __forceinline__ void expect_bytes(unsigned long long& barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait_for(unsigned int barrier, unsigned int parity) {
    asm volatile("{\n.reg .pred done;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra.uni finished;\nbra.uni again;\nfinished:\n}" ::"r"(barrier), "r"(parity)
                 : "memory");
}
__device__ __forceinline__ void wait_for(unsigned long long& barrier, unsigned int parity) {
    wait_for(shared_address(&barrier), parity);
}
#endif

// Of the kernels of a captured graph, the next may be started while this one runs, and wait for its results. Nothing that
// an earlier kernel writes may be read, and nothing written, before `wait_for_previous_kernel` returns.
__device__ __forceinline__ void start_next_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Activation functions.
enum Kind { SILU, GELU_TANH, GELU_ERF, RELU };

template <Kind KIND_OF_ACTIVATION> __device__ __forceinline__ float activate(float x) {
    if constexpr (KIND_OF_ACTIVATION == SILU) {
        return __fdividef(x, 1.0f + expf(-x)); // to 2 units in the last place; rounding to the nearest takes a tenth longer
    } else if constexpr (KIND_OF_ACTIVATION == GELU_TANH) {
        constexpr float SQRT_2_OVER_PI = 0.7978845608f;
        return 0.5f * x * (1.0f + tanhf(SQRT_2_OVER_PI * (x + 0.044715f * x * x * x)));
    } else if constexpr (KIND_OF_ACTIVATION == GELU_ERF) {
        constexpr float SQRT_HALF = 0.7071067812f;
        return 0.5f * x * (1.0f + erff(x * SQRT_HALF));
    } else {
        return fmaxf(x, 0.0f);
    }
}

// The rotation of the rotary embedding. Which products are fused is spelled out, so that every kernel rounds alike.
__device__ __forceinline__ void rotate_pair(float& a, float& b, float cosine, float sine) {
    float first = fmaf(a, cosine, -__fmul_rn(b, sine));
    b = fmaf(b, cosine, __fmul_rn(a, sine));
    a = first;
}
