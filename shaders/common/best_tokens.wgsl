// The best tokens of a row, one by one, and the value that a number of tokens reach. Part of `sample.wgsl`.

#if CHOICE
// The best tokens of a thread's that have not been taken yet, in their order; 0 is none. A thread reads its tokens again only
// when all that it held are taken.
var<private> held0: vec2<u32>;
var<private> held1: vec2<u32>;
var<private> held2: vec2<u32>;
var<private> held3: vec2<u32>;

// Ranks among the logits as they came, or among the candidates.
fn rank_at(is_raw: bool, token: u32, bits: u32) -> vec2<u32> {
    if (is_raw) {
        return rank_of(bitcast<f32>(bits), token);
    }
    let it = candidate_of(token, bits);
    return select(vec2(0u), rank_of(it.value, token), it.possible);
}

fn offer(rank: vec2<u32>) {
    if (!is_before(rank, held3)) {
        return;
    }
    held3 = rank;
    if (is_before(held3, held2)) {
        let behind = held2;
        held2 = held3;
        held3 = behind;
    }
    if (is_before(held2, held1)) {
        let behind = held1;
        held1 = held2;
        held2 = behind;
    }
    if (is_before(held1, held0)) {
        let behind = held0;
        held0 = held1;
        held1 = behind;
    }
}

// Holds the best of the thread's tokens behind `limit`.
fn hold(thread: u32, is_raw: bool, limit: vec2<u32>) {
    held0 = vec2(0u);
    held1 = vec2(0u);
    held2 = vec2(0u);
    held3 = vec2(0u);
    for (var first = thread; first < parameters.tokens; first += 4u * $WORKGROUPu) {
        let bits = four_raw_bits(first);
        for (var place = 0u; place < 4u; place++) {
            let token = first + place * $WORKGROUPu;
            if (token >= parameters.tokens) {
                break;
            }
            let rank = rank_at(is_raw, token, bits[place]);
            if (is_before(limit, rank)) {
                offer(rank);
            }
        }
    }
}

// The best token of the row that has not been taken yet, which is taken; 0 is none.
fn take_best(thread: u32, is_raw: bool) -> vec2<u32> {
    let best = first_of_workgroup(thread, held0);
    if (best.x != 0u && held0.x == best.x && held0.y == best.y) {
        held0 = held1;
        held1 = held2;
        held2 = held3;
        held3 = vec2(0u);
        if (held0.x == 0u) {
            hold(thread, is_raw, best);
        }
    }
    return best;
}

// How many candidates have each value of the digit that is looked at.
var<workgroup> bins: array<atomic<u32>, 256>;

// The ordered value that at least `count` tokens reach, the largest; `least` if fewer tokens than that reach it.
fn value_at(thread: u32, count: u32, least: u32) -> u32 {
    if (count > TAKEN_MAX) {
        return value_by_digits(thread, count, least);
    }
    hold(thread, false, vec2(0xffffffffu));
    var last = vec2(0u);
    for (var place = 0u; place < count; place++) {
        last = take_best(thread, false);
        if (last.x == 0u) {
            return least;
        }
    }
    return max(last.x, least);
}

// The same, digit by digit of eight bits, from the highest: only candidates with the digits found so far are counted.
fn value_by_digits(thread: u32, count: u32, least: u32) -> u32 {
    var digits = 0u;
    var wanted = count; // of the candidates with these digits
    for (var shift = 32u; shift > 0u;) {
        shift -= 8u;
        for (var bin = thread; bin < 256u; bin += $WORKGROUPu) {
            atomicStore(&bins[bin], 0u);
        }
        workgroupBarrier();
        for (var first = thread; first < parameters.tokens; first += 4u * $WORKGROUPu) {
            let bits = four_raw_bits(first);
            for (var place = 0u; place < 4u; place++) {
                let token = first + place * $WORKGROUPu;
                if (token >= parameters.tokens) {
                    break;
                }
                let it = candidate_of(token, bits[place]);
                let rest = ordered(it.value) >> shift;
                if (it.possible && (rest >> 8u) == digits) {
                    atomicAdd(&bins[rest & 255u], 1u);
                }
            }
        }
        workgroupBarrier();
        if (thread == 0u) {
            var bin = 255u;
            var left = wanted;
            var here = atomicLoad(&bins[bin]);
            while (here < left && bin > 0u) {
                left -= here;
                bin -= 1u;
                here = atomicLoad(&bins[bin]);
            }
            partial[0] = vec2(bin, select(left, 0u, here < left));
        }
        let found = workgroupUniformLoad(&partial[0]);
        if (found.y == 0u) {
            return least;
        }
        digits = (digits << 8u) | found.x;
        wanted = found.y;
    }
    return max(digits, least);
}
#end
