// sample: the next token of each row of logits, after edits, temperature, min_p, top_k and top_p, and its log-probability.
//
// Variants: ELEMENT=f32|f16|bf16
// Needs: logit_rows.cuh
//
// `sample` gives each row to gridDim.x blocks of THREADS, one part of the row each; a thread takes every THREADS-th group
// of V tokens. The parts meet in the row's record by atomic maxima, whose order does not matter. Every logit is read once.
// `sample_filtered` and `sample_logprobs` give each row that asks for it to one block of WIDE_THREADS, which reads the
// row from the second-level cache twice, or a few times more where that does not decide.
//
// Draws and weights have the bits of `crates/ops/src/sample/random.rs`: single roundings, spelled out, because contracted
// multiply-adds would give others. Sums are integers, and so the same in any order. Rows of fewer than 2^31 tokens.

extern "C" __global__ void __launch_bounds__(THREADS)
    sample(const ELEMENT* logits, long long stride, u32* plan, int* out, int tokens, int tokens_per_part) {
    extern __shared__ u32 shared_bits[];
    u32 index = blockIdx.y, rows = gridDim.y;
    Record* record = reinterpret_cast<Record*>(plan) + index;
    if (!(record->flags & ACTIVE)) {
        if (blockIdx.x == 0 && threadIdx.x == 0) out[index] = 0, out[rows + index] = 0;
        return;
    }
    int begin = blockIdx.x * tokens_per_part, end = min(begin + tokens_per_part, tokens);
    bool wide = rows_on_16_bytes(logits, stride) && tokens % WIDEST<ELEMENT> == 0;
    Part part = plain_part(row_of(logits, stride, *record), record, begin, end, wide);
    part = edited_part(part, plan, shared_bits);
    u64 best;
    float poison, largest = -infinity();
    if (record->flags & GREEDY) {
        Largest visitor;
        visit(part, visitor);
        best = visitor.rank(), poison = visitor.poison;
    } else {
        Draw visitor(*record);
        visit(part, visitor);
        best = visitor.rank(), poison = visitor.poison, largest = visitor.largest;
    }
    best = max_of_block(best);
    bool not_finite = __syncthreads_or(!(poison == 0.0f));
    if (record->flags & FILTERED) largest = unordered((u32)max_of_block(ordered(largest)));
    if (threadIdx.x != 0) return;
    atomicMax(&record->best, best);
    if (record->flags & FILTERED) atomicMax(&record->largest, ordered(largest));
    if (not_finite) atomicOr(&record->not_finite, 1u);
    __threadfence();
    if (atomicAdd(&record->parts_done, 1u) + 1 < gridDim.x) return;
    // The last part: every other has been counted, and so has written.
    best = atomicMax(&record->best, 0ull);
    not_finite = atomicOr(&record->not_finite, 0u) != 0;
    out[index] = best == 0 || not_finite ? 0 : (int)token_of(best);
    out[rows + index] = not_finite;
    record->parts_done = 0, record->not_finite = 0;
    // `sample_filtered` still needs these; it is launched when a row is filtered.
    if (!(record->flags & FILTERED)) record->best = 0, record->largest = 0;
}

// The largest values that each thread sees, unless they are above `limit`.
struct ThreadMax : Visitor<ThreadMax> {
    u64 best = 0;
    __device__ void token(float value, u32 token) { best = larger(best, rank_of(value, token)); }
};
template <class Self> struct CollectInto : Visitor<Self> {
    u64 bound, *list;
    u32* count;
    __device__ CollectInto(u64 bound, u64* list, u32* count) : bound(bound), list(list), count(count) {}
    __device__ void token(float value, u32 token) {
        u64 rank = rank_of(value, token);
        if (rank < bound) return;
        u32 at = atomicAdd(count, 1u);
        if (at < COLLECTED_MAX) list[at] = rank;
    }
};
struct Collect : CollectInto<Collect> {
    using CollectInto::CollectInto;
};

// A rank that at least `count` tokens of the row reach, because the largest tokens of as many threads do; 0, which every
// token reaches, if so many threads have none.
__device__ u64 bound_of(u64 largest_of_thread, u32 count) {
    u32 own = (u32)(largest_of_thread >> 32), bound = 0;
    for (u32 bit = 1u << 31; bit != 0; bit >>= 1) {
        if (__syncthreads_count(own >= (bound | bit)) >= (int)count) bound |= bit;
    }
    return (u64)bound << 32;
}

// Collects the tokens from `bound` on; their number, or more than COLLECTED_MAX if there is no room.
__device__ u32 collect(const Part& part, u64 bound, u64* list) {
    __shared__ u32 count;
    __syncthreads();
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    Collect visitor(bound, list, &count);
    visit(part, visitor);
    __syncthreads();
    return count;
}

// The weight that the tokens before a kept one must not reach.
__device__ u64 wanted_of(u64 total, u32 top_p) {
    u64 low = (1ull << TOP_P_BITS) - 1;
    return (total >> TOP_P_BITS) * top_p + (((total & low) * top_p + low) >> TOP_P_BITS);
}

// The draw among collected tokens, which contain the first `top_k`.
__device__ u64 draw_collected(const Record& record, const u64* list, u32 count, float largest) {
    u64 total = 0, best = 0;
    u64 before[2] = {0, 0}; // weights before this thread's tokens
    u32 floor = ordered(__fadd_rn(largest, record.min_p_ln));
    bool kept[2] = {false, false};
    for (int slot = 0; slot < 2; slot++) {
        u32 i = threadIdx.x + slot * WIDE_THREADS;
        if (i >= count || (u32)(list[i] >> 32) < floor) continue;
        u32 above = 0;
        for (u32 j = 0; j < count; j++) {
            if (list[j] > list[i]) above++, before[slot] += weight(value_of(list[j]) - largest);
        }
        kept[slot] = above < record.top_k;
        if (kept[slot]) total += weight(value_of(list[i]) - largest);
    }
    u64 wanted = wanted_of(total_of_block(total), record.top_p);
    for (int slot = 0; slot < 2; slot++) {
        if (!kept[slot] || (record.top_p < 1u << TOP_P_BITS && before[slot] >= wanted)) continue;
        u64 rank = list[threadIdx.x + slot * WIDE_THREADS];
        float draw = gumbel(uniform_of(random_bits(record.key, token_of(rank))));
        best = larger(best, rank_of(__fadd_rn(value_of(rank), draw), token_of(rank)));
    }
    return max_of_block(best);
}

// How many tokens reach a value.
struct CountFrom : Visitor<CountFrom> {
    u32 bound, count = 0;
    __device__ CountFrom(u32 bound) : bound(bound) {}
    __device__ void token(float value, u32) { count += ordered(value) >= bound; }
};
// The largest value that at least `count` tokens reach; `least` if fewer tokens than that reach it.
__device__ u32 value_at(const Part& part, u32 count, u32 least) {
    u32 low = least, high = 0xff800001u; // above every finite value
    while (high - low > 1) {
        u32 middle = low + (high - low) / 2;
        CountFrom visitor(middle);
        visit(part, visitor);
        if (total_of_block(visitor.count) >= count) low = middle; else high = middle;
    }
    return low;
}

// What decides about a candidate: the weights of the candidates, and number and weight of those before it; and the next
// candidate should it fall: all that are kept come before it.
struct Judge : Draw {
    u64 pivot, total = 0, above_least = 0, before = 0;
    u32 least, num_before = 0, num_above_least = 0;
    float most;
    __device__ Judge(const Record& record, u64 candidate, u32 least, float most)
        : Draw(record), pivot(candidate), least(least), most(most) {}
    template <int V> __device__ void tokens(float (&value)[V], u32 token, u32 hidden) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            if (!((hidden >> v) & 1u)) this->token(value[v], token + v);
        }
    }
    __device__ void token(float value, u32 token) {
        u32 order = ordered(value);
        if (order < least) return;
        u32 own = weight(value - most);
        total += own;
        if (order > least) above_least += own, num_above_least++;
        if (!(rank_of(value, token) > pivot)) return;
        before += own, num_before++;
        Draw::token(value, token);
    }
};

// Rounds of a draw and a judgement. `rank` orders a candidate by its logit, as `top_k` and `top_p` do.
__device__ u32 draw_by_rounds(const Part& part, u32 token, float largest) {
    const Record& record = *part.record;
    bool by_p = record.top_p < 1u << TOP_P_BITS;
    u32 least = ordered(__fadd_rn(largest, record.min_p_ln));
    bool both = by_p && record.top_k < 0xffffffffu;
    if (both) least = value_at(part, record.top_k, least);
    while (true) {
        float logit = widen(part.logits[token]);
        if (part.edited != nullptr && ((part.edited[token / 32] >> (token % 32)) & 1u)) {
            logit = edited_logit(part, part.edits + first_edit_from(part.edits, record.num_edits, token) * EDIT_WORDS);
        }
        float value = __fmul_rn(logit, part.scale);
        Judge judge(record, rank_of(value, token), least, largest);
        visit(part, judge);
        u64 total = total_of_block(judge.total), before = total_of_block(judge.before);
        u64 num_before = total_of_block(judge.num_before);
        if (both) {
            // Of the tokens that are equal to the last of `top_k`, only as many count as it has room for.
            u64 above = total_of_block(judge.above_least), num_above = total_of_block(judge.num_above_least);
            u64 room = (u64)weight(unordered(least) - largest) * (record.top_k - num_above);
            total = above + room < total ? above + room : total;
        }
        bool kept = ordered(value) >= least && num_before < record.top_k;
        if (by_p) kept = kept && before < wanted_of(total, record.top_p);
        u64 next = max_of_block(judge.rank());
        if (kept || next == 0) return token;
        token = token_of(next);
    }
}

extern "C" __global__ void __launch_bounds__(WIDE_THREADS)
    sample_filtered(const ELEMENT* logits, long long stride, u32* plan, int* out, int tokens) {
    extern __shared__ u32 shared_bits[];
    __shared__ u64 list[COLLECTED_MAX];
    u32 index = blockIdx.x;
    Record* record = reinterpret_cast<Record*>(plan) + index;
    if ((record->flags & (ACTIVE | FILTERED)) != (ACTIVE | FILTERED)) return;
    u64 best = record->best;
    float largest = unordered(record->largest);
    u32 token = token_of(best);
    if (best != 0 && out[gridDim.x + index] == 0) {
        bool wide = rows_on_16_bytes(logits, stride) && tokens % WIDEST<ELEMENT> == 0;
        Part part = plain_part(row_of(logits, stride, *record), record, 0, tokens, wide);
        part = edited_part(part, plan, shared_bits);
        u32 count = COLLECTED_MAX + 1;
        if (record->top_k <= COLLECT_MAX) {
            ThreadMax visitor;
            visit(part, visitor);
            count = collect(part, bound_of(visitor.best, record->top_k), list);
        }
        token = count <= COLLECTED_MAX ? token_of(draw_collected(*record, list, count, largest))
                                       : draw_by_rounds(part, token, largest);
        if (threadIdx.x == 0) out[index] = (int)token;
    }
    __syncthreads();
    if (threadIdx.x == 0) record->best = 0, record->largest = 0;
}

// Weights of all tokens and the number of more likely ones than the chosen, while the most likely are collected.
struct Measure : CollectInto<Measure> {
    float largest, chosen;
    u64 total = 0;
    u32 above = 0;
    __device__ Measure(u64 bound, u64* list, u32* count) : CollectInto(bound, list, count) {}
    __device__ void token(float value, u32 token) {
        total += weight(value - largest);
        above += value > chosen;
        CollectInto::token(value, token);
    }
};
// The first token after `limit` in rank.
struct Next : Visitor<Next> {
    u64 limit, best = 0;
    __device__ Next(u64 limit) : limit(limit) {}
    __device__ void token(float value, u32 token) {
        u64 rank = rank_of(value, token);
        if (rank < limit) best = larger(best, rank);
    }
};

extern "C" __global__ void __launch_bounds__(WIDE_THREADS)
    sample_logprobs(const ELEMENT* logits, long long stride, const u32* plan, int* out, int tokens) {
    __shared__ u64 list[COLLECTED_MAX];
    __shared__ u32 count;
    u32 index = blockIdx.x, rows = gridDim.x;
    const Record* record = reinterpret_cast<const Record*>(plan) + index;
    if ((record->flags & (ACTIVE | LOGPROBS)) != (ACTIVE | LOGPROBS) || out[rows + index] != 0) return;
    bool wide = rows_on_16_bytes(logits, stride) && tokens % WIDEST<ELEMENT> == 0;
    Part part = plain_part(row_of(logits, stride, *record), record, 0, tokens, wide);
    ThreadMax thread_max;
    visit(part, thread_max);
    u32 wanted = min(record->num_logprobs, (u32)tokens);
    u64 bound = wanted == 0 ? ~0ull : bound_of(thread_max.best, wanted);
    u64 first = max_of_block(thread_max.best);
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    Measure measure(bound, list, &count);
    measure.largest = value_of(first), measure.chosen = widen(part.logits[out[index]]);
    visit(part, measure);
    float total = (float)total_of_block(measure.total) * (1.0f / 2147483648.0f);
    float normaliser = __fadd_rn(measure.largest, natural_log(total));
    u64 above = total_of_block(measure.above);
    int* detail = out + 2 * rows + (long long)index * DETAIL_WORDS;
    if (threadIdx.x == 0) {
        detail[0] = __float_as_int(__fadd_rn(measure.chosen, -normaliser));
        detail[1] = (int)above + 1;
    }
    auto write = [&](u32 place, u64 rank) {
        detail[2 + place] = (int)token_of(rank);
        detail[2 + LOGPROBS_MAX + place] = __float_as_int(__fadd_rn(value_of(rank), -normaliser));
    };
    if (count <= COLLECTED_MAX) {
        for (u32 i = threadIdx.x; i < count; i += WIDE_THREADS) {
            u32 place = 0;
            for (u32 j = 0; j < count; j++) place += list[j] > list[i];
            if (place < wanted) write(place, list[i]);
        }
        return;
    }
    u64 limit = ~0ull;
    for (u32 place = 0; place < wanted; place++) {
        Next next(limit);
        visit(part, next);
        limit = max_of_block(next.best);
        if (threadIdx.x == 0) write(place, limit);
    }
}
