// What kernels with the asynchronous matrix instructions of Hopper share: barriers that count bytes, bulk copies, and products
// of operands in shared memory.
//
// Put between common.cuh and the source, which is compiled with ELEMENT.

struct __align__(64) TensorMap {
    unsigned long long words[16];
};
__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// A place in a ring, and how often it was passed.
template <int STAGES> struct Ring {
    int stage = 0;
    unsigned int parity = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    // The same place, for a loop whose addresses are the same for all lanes.
    __device__ __forceinline__ Ring as_uniform() const {
        Ring same;
        same.stage = uniform(stage), same.parity = uniform(parity);
        return same;
    }
    __device__ __forceinline__ void skip(int count) {
        int passed = stage + count;
        stage = passed % STAGES;
        parity ^= passed / STAGES & 1;
    }
};

// Matrix operands in shared memory: rows of 128 swizzled bytes, 8 of them 1024 bytes. `across` is the distance of panels
// where the columns are the rows of the instruction.
__device__ __forceinline__ unsigned long long operand_at(unsigned int rows, int across) {
    return (unsigned long long)(rows >> 4) | (unsigned long long)(across >> 4) << 16 |
           (unsigned long long)(1024 >> 4) << 32 | 1ull << 62;
}
// The same for all lanes; `bytes` further it is that much plus `bytes` / 16.
__device__ __forceinline__ unsigned long long operand(const void* rows, int across) {
    return operand_at(uniform(shared_address(rows)), across);
}
#define TEXT_OF(word) #word
#define TEXT(word) TEXT_OF(word)
#define EIGHT(c, i) \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define THIRTY_TWO(c, i) EIGHT(c, i), EIGHT(c, i + 8), EIGHT(c, i + 16), EIGHT(c, i + 24)
#define NAMES_32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES_64 NAMES_32 "," "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES_48 NAMES_32 "," "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define NAMES_96 NAMES_64 "," "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define INSTRUCTION(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." TEXT(ELEMENT) "." TEXT(ELEMENT)

// c (+)= a * b^T for 64 rows of `a` and 192, 128, 96 or 64 of `b`, 16 columns of both, from shared memory.
__device__ __forceinline__ void multiply_shared(float (&c)[96], unsigned long long a, unsigned long long b, int accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n" INSTRUCTION(192) " {" NAMES_96 "}, %96, %97, p, 1, 1, 0, 0;\n}"
                 : THIRTY_TWO(c, 0), THIRTY_TWO(c, 32), THIRTY_TWO(c, 64) : "l"(a), "l"(b), "r"(accumulate));
}
__device__ __forceinline__ void multiply_shared(float (&c)[64], unsigned long long a, unsigned long long b, int accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" INSTRUCTION(128) " {" NAMES_64 "}, %64, %65, p, 1, 1, 0, 0;\n}"
                 : THIRTY_TWO(c, 0), THIRTY_TWO(c, 32) : "l"(a), "l"(b), "r"(accumulate));
}
__device__ __forceinline__ void multiply_shared(float (&c)[48], unsigned long long a, unsigned long long b, int accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n" INSTRUCTION(96) " {" NAMES_48 "}, %48, %49, p, 1, 1, 0, 0;\n}"
                 : THIRTY_TWO(c, 0), EIGHT(c, 32), EIGHT(c, 40) : "l"(a), "l"(b), "r"(accumulate));
}
__device__ __forceinline__ void multiply_shared(float (&c)[32], unsigned long long a, unsigned long long b, int accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n" INSTRUCTION(64) " {" NAMES_32 "}, %32, %33, p, 1, 1, 0, 0;\n}"
                 : THIRTY_TWO(c, 0) : "l"(a), "l"(b), "r"(accumulate));
}
// c += a * b for 64 rows and 16 columns of `a` in registers and 128 or 64 columns of `b`.
__device__ __forceinline__ void multiply_weights(float (&c)[64], const unsigned int (&a)[4], unsigned long long b) {
    asm volatile("{\n" INSTRUCTION(128) " {" NAMES_64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n}"
                 : THIRTY_TWO(c, 0), THIRTY_TWO(c, 32) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void multiply_weights(float (&c)[32], const unsigned int (&a)[4], unsigned long long b) {
    asm volatile("{\n" INSTRUCTION(64) " {" NAMES_32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n}"
                 : THIRTY_TWO(c, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void fence_multiplications() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_multiplications() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wait_for_multiplications() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// The compiler must not read results before the wait.
template <int N> __device__ __forceinline__ void settle(float (&c)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
}
__device__ __forceinline__ void meet(int barrier, int threads) {
    asm volatile("barrier.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void let_go(int barrier, int threads) {
    asm volatile("barrier.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
