// A row of logits, as the kernels that choose its token see it: edits, draws, and visits of all its tokens.
//
// Put between common.cuh and the source.

constexpr int THREADS = 256;
constexpr int WIDE_THREADS = 1024;
// Words of a record and of an edit, and their bits, as in `crates/ops/src/sample/plan.rs`.
constexpr int ROW_WORDS = 24, EDIT_WORDS = 3;
constexpr unsigned int ACTIVE = 1, GREEDY = 2, FILTERED = 4, LOGPROBS = 8;
constexpr unsigned int EDIT_SUPPRESSED = 1u << 31, EDIT_SEEN = 1u << 30;
constexpr unsigned int TOP_P_BITS = 24;
constexpr int DETAIL_WORDS = 42, LOGPROBS_MAX = 20;
// The largest draw; by how much a bound on a sum with one may be wrong, by itself and for its size.
constexpr float GUMBEL_MAX = 22.9f, BOUND_ERROR = 0.002f, BOUND_ERROR_OF_SIZE = 1.0f / 1048576.0f;
// Most tokens that are searched for by collecting them, and the room for them and those of equal rank.
constexpr unsigned int COLLECT_MAX = 512, COLLECTED_MAX = 1536;

typedef unsigned int u32;
typedef unsigned long long u64;

struct Record {
    u32 logits_row, flags;
    float inverse_temperature, min_p_ln;
    u32 top_k, top_p, key[2], edits_at, num_edits, mask_at;
    float repetition, frequency, presence;
    u32 num_logprobs, unused;
    u64 best;        // ordered value and inverted token of the best candidate so far; 0: none
    u32 largest;     // ordered
    u32 not_finite;
    u32 parts_done;
    u32 unused_too[3];
};
static_assert(sizeof(Record) == ROW_WORDS * 4, "a record");

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }
// Unsigned integers in the order of floats; 0 is no float.
__device__ __forceinline__ u32 ordered(float value) {
    u32 bits = __float_as_uint(__fadd_rn(value, 0.0f)); // one zero
    return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float unordered(u32 bits) {
    return __uint_as_float(bits ^ ((bits >> 31) ? 0x80000000u : 0xffffffffu));
}
// The largest rank is the largest value, the lowest token among equals.
__device__ __forceinline__ u64 rank_of(float value, u32 token) { return ((u64)ordered(value) << 32) | (0xffffffffu - token); }
__device__ __forceinline__ u32 token_of(u64 rank) { return 0xffffffffu - (u32)rank; }
__device__ __forceinline__ float value_of(u64 rank) { return unordered((u32)(rank >> 32)); }

// The functions of random.rs.
__device__ __forceinline__ u32 random_bits(const u32* key, u32 token) {
    u32 state = token ^ key[0];
    state ^= state >> 16;
    state = state * 0x85ebca6bu + key[1];
    state ^= state >> 13;
    state *= 0xc2b2ae35u;
    return state ^ (state >> 16);
}
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); }
__device__ __forceinline__ float natural_log(float x) {
    int exponent_bits = ((int)__float_as_uint(x) - 0x3f3504f3) >> 23;
    float r = __fadd_rn(__uint_as_float(__float_as_uint(x) - ((u32)exponent_bits << 23)), -1.0f);
    float exponent = (float)exponent_bits, square = __fmul_rn(r, r);
    float series = multiply_add(7.0376836e-2f, r, -1.151461e-1f);
    series = multiply_add(series, r, 1.16769984e-1f);
    series = multiply_add(series, r, -1.2420141e-1f);
    series = multiply_add(series, r, 1.4249323e-1f);
    series = multiply_add(series, r, -1.6668057e-1f);
    series = multiply_add(series, r, 2.0000715e-1f);
    series = multiply_add(series, r, -2.4999994e-1f);
    series = multiply_add(series, r, 3.333333e-1f);
    float low = __fadd_rn(__fmul_rn(__fmul_rn(series, r), square), __fmul_rn(exponent, -2.1219444e-4f));
    low = __fadd_rn(low, __fmul_rn(square, -0.5f));
    return __fadd_rn(__fadd_rn(r, low), __fmul_rn(exponent, 0.6933594f));
}
__device__ __forceinline__ float uniform_of(u32 bits) {
    return fminf(multiply_add((float)bits, 1.0f / 4294967296.0f, 1.0f / 8589934592.0f), 1.0f - 1.0f / 16777216.0f);
}
__device__ __forceinline__ float gumbel(float uniform) {
    float exponential;
    if (uniform < 1.0f / 64.0f) {
        float series = multiply_add(uniform, 0.25f, 0.33333334f);
        series = multiply_add(uniform, series, 0.5f);
        exponential = multiply_add(uniform, __fmul_rn(uniform, series), uniform);
    } else {
        exponential = -natural_log(__fadd_rn(1.0f, -uniform));
    }
    return -natural_log(exponential);
}
__device__ __forceinline__ u32 weight(float difference) {
    if (!(difference >= -22.0f)) return 0;
    float power = floorf(multiply_add(difference, 1.44269504f, 0.5f));
    float r = __fadd_rn(difference, -__fmul_rn(power, 0.6933594f));
    r = __fadd_rn(r, -__fmul_rn(power, -2.1219444e-4f));
    float series = multiply_add(1.9875691e-4f, r, 1.3982e-3f);
    series = multiply_add(series, r, 8.333452e-3f);
    series = multiply_add(series, r, 4.1665796e-2f);
    series = multiply_add(series, r, 1.6666665e-1f);
    series = multiply_add(series, r, 5.0e-1f);
    float mantissa = __fadd_rn(__fadd_rn(__fmul_rn(series, __fmul_rn(r, r)), r), 1.0f);
    float scale = __uint_as_float((u32)((int)power + 31 + 127) << 23);
    return (u32)multiply_add(mantissa, scale, 0.5f);
}

// Reductions over the block, for every thread.
__device__ __forceinline__ u64 larger(u64 a, u64 b) { return a > b ? a : b; }
template <bool MAX> __device__ u64 reduce_block(u64 value) {
    __shared__ u64 of_warp[32];
    for (int offset = 16; offset > 0; offset /= 2) {
        u64 other = __shfl_xor_sync(ALL_LANES, value, offset);
        value = MAX ? larger(value, other) : value + other;
    }
    __syncthreads(); // an earlier call may still be reading `of_warp`
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = value;
    __syncthreads();
    u64 total = of_warp[0];
    for (u32 warp = 1; warp < blockDim.x / WARP; warp++) total = MAX ? larger(total, of_warp[warp]) : total + of_warp[warp];
    return total;
}
__device__ __forceinline__ u64 max_of_block(u64 value) { return reduce_block<true>(value); }
__device__ __forceinline__ u64 total_of_block(u64 value) { return reduce_block<false>(value); }

// A part of a row of logits, and what is done to it.
struct Part {
    const ELEMENT* logits;
    const Record* record;
    const u32 *edits, *allowed; // null: none
    u32* edited;                // a bit per token of the part, in shared memory
    float scale;
    int begin, end, first_edit, last_edit;
    bool wide;
};

__device__ bool is_allowed(const Part& part, u32 token) {
    return part.allowed == nullptr || ((part.allowed[token / 32] >> (token % 32)) & 1u);
}
__device__ int first_edit_from(const u32* edits, int count, u32 token) {
    int low = 0, high = count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (edits[middle * EDIT_WORDS] < token) low = middle + 1; else high = middle;
    }
    return low;
}
// Logits as the model gave them.
__device__ Part plain_part(const ELEMENT* row, const Record* record, int begin, int end, bool wide) {
    return Part{row, record, nullptr, nullptr, nullptr, 1.0f, begin, end, 0, 0, wide};
}
// Logits as the request wants them. Every thread of the block calls it; `begin` is a multiple of 32.
__device__ Part edited_part(Part part, const u32* plan, u32* shared_bits) {
    const Record* record = part.record;
    part.scale = record->inverse_temperature;
    if (record->mask_at != 0) part.allowed = plan + record->mask_at;
    if (record->num_edits == 0) return part;
    part.edits = plan + record->edits_at;
    part.edited = shared_bits;
    part.first_edit = first_edit_from(part.edits, record->num_edits, part.begin);
    part.last_edit = first_edit_from(part.edits, record->num_edits, part.end);
    for (int word = threadIdx.x; word < (part.end - part.begin + 31) / 32; word += blockDim.x) shared_bits[word] = 0;
    __syncthreads();
    for (int i = part.first_edit + threadIdx.x; i < part.last_edit; i += blockDim.x) {
        u32 at = part.edits[i * EDIT_WORDS] - part.begin;
        atomicOr(&shared_bits[at / 32], 1u << (at % 32));
    }
    __syncthreads();
    return part;
}
__device__ float edited_logit(const Part& part, const u32* edit) {
    const Record& record = *part.record;
    u32 bits = edit[2];
    float logit = __fadd_rn(widen(part.logits[edit[0]]), __uint_as_float(edit[1]));
    if (bits & EDIT_SUPPRESSED) logit = -infinity();
    if ((bits & EDIT_SEEN) && record.repetition != 1.0f) {
        logit = logit > 0.0f ? __fdiv_rn(logit, record.repetition) : __fmul_rn(logit, record.repetition);
    }
    u32 count = bits & (EDIT_SEEN - 1);
    return count > 0 ? __fadd_rn(logit, -multiply_add(record.frequency, (float)count, record.presence)) : logit;
}

// Shows a visitor every logit (`raw`), every possible token with its tempered logit, in groups without the hidden ones
// (`tokens`) or single (`token`), and the ends of groups, at which whole warps meet (`meet`).
template <int V, class Visitor> __device__ void visit_by(const Part& part, Visitor& visitor) {
    for (int base = part.begin; base < part.end; base += blockDim.x * V) {
        int token = base + threadIdx.x * V;
        if (token < part.end) {
            float value[V];
            load<V>(part.logits + token, value);
            u32 hidden = part.allowed == nullptr ? 0 : ~(part.allowed[token / 32] >> (token % 32));
            int at = token - part.begin;
            if (part.edited != nullptr) hidden |= part.edited[at / 32] >> (at % 32);
#pragma unroll
            for (int v = 0; v < V; v++) visitor.raw(value[v]);
#pragma unroll
            for (int v = 0; v < V; v++) value[v] = __fmul_rn(value[v], part.scale);
            visitor.tokens(value, token, hidden & ((1u << V) - 1));
        }
        visitor.meet();
    }
    for (int i = part.first_edit + threadIdx.x; i < part.last_edit; i += blockDim.x) {
        const u32* edit = part.edits + i * EDIT_WORDS;
        float logit = edited_logit(part, edit);
        if (logit > -infinity() && is_allowed(part, edit[0])) visitor.token(__fmul_rn(logit, part.scale), edit[0]);
    }
}
template <class Visitor> __device__ void visit(const Part& part, Visitor& visitor) {
    if (part.wide) visit_by<WIDEST<ELEMENT>>(part, visitor); else visit_by<1>(part, visitor);
}

// What visitors do that do not say otherwise.
template <class Self> struct Visitor {
    __device__ void raw(float) {}
    __device__ void meet() {}
    template <int V> __device__ void tokens(const float (&value)[V], u32 token, u32 hidden) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            if (!((hidden >> v) & 1u)) static_cast<Self*>(this)->token(value[v], token + v);
        }
    }
};
template <int V> __device__ __forceinline__ float largest_of(float (&value)[V], u32 hidden) {
    if (hidden != 0) {
#pragma unroll
        for (int v = 0; v < V; v++) value[v] = (hidden >> v) & 1u ? -infinity() : value[v];
    }
    float largest = value[0];
#pragma unroll
    for (int v = 1; v < V; v++) largest = fmaxf(largest, value[v]);
    return largest;
}

// The token with the largest value, the lowest among equals; and whether every logit is finite.
struct Largest : Visitor<Largest> {
    float best = -infinity(), poison = 0.0f;
    u32 id = 0xffffffffu;
    // A thread's groups come in the order of tokens.
    template <int V> __device__ void tokens(float (&value)[V], u32 token, u32 hidden) {
        float largest = largest_of(value, hidden);
        if (!(largest > best)) return;
        best = largest;
#pragma unroll
        for (int v = V - 1; v >= 0; v--) id = value[v] == largest ? token + v : id;
    }
    __device__ void raw(float logit) { poison = fmaf(logit, 0.0f, poison); }
    __device__ void token(float value, u32 token) {
        if (value > best || (value == best && token < id)) best = value, id = token;
    }
    __device__ u64 rank() const { return id == 0xffffffffu ? 0 : rank_of(best, id); }
};

// The token whose value and draw together are largest. A draw is at most -ln(uniform), and a warp knows the best sum that
// its lanes have seen, so that for most tokens the bits of the draw are enough to pass them over.
struct Draw : Largest {
    u32 key[2], meetings = 0;
    float bar = -infinity(), largest = -infinity();
    __device__ Draw(const Record& record) : key{record.key[0], record.key[1]} {}
    __device__ void token(float value, u32 token) {
        largest = fmaxf(largest, value);
        if (may_win(value, random_bits(key, token))) draw(value, token);
    }
    template <int V> __device__ void tokens(float (&value)[V], u32 token, u32 hidden) {
        float most = largest_of(value, hidden);
        largest = fmaxf(largest, most);
        if (most + GUMBEL_MAX < bar) return;
        u32 winners = 0;
#pragma unroll
        for (int v = 0; v < V; v++) winners |= may_win(value[v], random_bits(key, token + v)) ? 1u << v : 0;
        winners &= ~hidden;
        while (winners != 0) {
            int winner = __ffs(winners) - 1;
            float its = value[0];
#pragma unroll
            for (int v = 1; v < V; v++) its = v == winner ? value[v] : its;
            draw(its, token + winner);
            winners &= winners - 1;
        }
    }
    // Whether uniform <= exp(value - bar), or nearly.
    __device__ __forceinline__ bool may_win(float value, u32 bits) const {
        float bound;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(bound) : "f"(fmaf(value - bar, 1.44269504f, 32.0f)));
        return !((float)bits > bound);
    }
    __device__ __forceinline__ void draw(float value, u32 token) {
        Largest::token(__fadd_rn(value, gumbel(uniform_of(random_bits(key, token)))), token);
    }
    // Late bars do no harm.
    __device__ void meet() {
        if ((meetings++ & 3) >= 2) return;
        float seen = max_of_warp(best);
        bar = seen - BOUND_ERROR - fabsf(seen) * BOUND_ERROR_OF_SIZE;
    }
};

__device__ const ELEMENT* row_of(const ELEMENT* logits, long long stride, const Record& record) {
    return logits + record.logits_row * stride;
}
