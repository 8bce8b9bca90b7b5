// The next token of each row of logits, after edits, temperature, min_p, top_k and top_p, and its log-probability.
//
// A workgroup takes one row (CHOICE); a thread every WORKGROUP-th token of it. Long rows are divided into `parts`, of which
// a workgroup takes one and leaves what it found: first their best draws (SURVEY), then, if rows have filters, the sums by
// which the best draw of the row is judged (WEIGHING). The choice begins with what they left (SURVEYED, WEIGHED).
// Memory: reads the row once; rows with filters once more per round of a draw and a judgement, mostly one or two, and once
// (four times for a large top_k) where both top_k and top_p are given; rows with log-probabilities twice more.
// Limits: elements of the logits below 2^32.
//
// Draws and weights have the bits of `crates/ops/src/sample/random.rs`, unless the adapter contracts multiply-adds.
// Sums are integers of 64 bits in two words, the low one first, and so the same in any order.

struct Parameters {
    rows: u32,
    tokens: u32, // of a row
    parts: u32,  // of a row that are surveyed
}

@group(0) @binding(_) var<storage, read_write> logits: array<u32>; // [N, tokens], bits of floats
@group(0) @binding(_) var<storage, read_write> plan: array<u32>;   // records, edits and masks
#if LONG
@group(0) @binding(_) var<storage, read_write> surveys: array<vec4<u32>>; // [rows, parts]: best, largest, not_finite
#end
#if WEIGHED
@group(0) @binding(_) var<storage, read_write> weighed: array<vec4<u32>>; // [rows, parts, 2]: total, before; best, count, –
#end
#if CHOICE
@group(0) @binding(_) var<storage, read_write> out: array<u32>;
#end
@group(0) @binding(_) var<uniform> parameters: Parameters;

// As in `crates/ops/src/sample/plan.rs`.
const ROW_WORDS = 24u;
const EDIT_WORDS = 3u;
const ACTIVE = 1u;
const GREEDY = 2u;
const FILTERED = 4u;
const LOGPROBS = 8u;
const EDIT_SUPPRESSED = 0x80000000u;
const EDIT_SEEN = 0x40000000u;
const TOP_P_BITS = 24u;
const DETAIL_WORDS = 42u;
const LOGPROBS_MAX = 20u;
// Most tokens that are taken one by one; the last of more is found by digits.
const TAKEN_MAX = 64u;
const GUMBEL_MAX = 22.9;
// By how much a bound on a draw may be wrong.
const BOUND_ERROR = 0.001;
const FLOAT_MIN = -3.4028234e38;

// The words of the row's record.
var<workgroup> record: array<u32, 16>;
var<workgroup> partial: array<vec2<u32>, $WORKGROUP>;

fn number(index: u32) -> f32 {
    return bitcast<f32>(record[index]);
}

// Unsigned integers in the order of floats; 0 is no float.
fn ordered(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    if ((bits << 1u) == 0u) {
        return 0x80000000u; // one zero
    }
    return bits ^ select(0x80000000u, 0xffffffffu, (bits >> 31u) == 1u);
}

fn unordered(order: u32) -> f32 {
    return bitcast<f32>(order ^ select(0xffffffffu, 0x80000000u, (order >> 31u) == 1u));
}

// A candidate's rank: the order of its value, then its inverted token, so that the lowest token is first among equals.
fn rank_of(value: f32, token: u32) -> vec2<u32> {
    return vec2(ordered(value), ~token);
}

fn is_before(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y > b.y);
}

fn add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2(low, a.y + b.y + u32(low < a.x));
}

fn is_less(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

fn product(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let middle = (a >> 16u) * (b & 0xffffu);
    let other = (a & 0xffffu) * (b >> 16u);
    let high = (a >> 16u) * (b >> 16u);
    let sum = add(vec2(low, high), vec2(middle << 16u, middle >> 16u));
    return add(sum, vec2(other << 16u, other >> 16u));
}

fn first_of_workgroup(thread: u32, value: vec2<u32>) -> vec2<u32> {
    partial[thread] = value;
    workgroupBarrier();
    for (var width = $WORKGROUPu / 2u; width > 0u; width /= 2u) {
        if (thread < width && is_before(partial[thread + width], partial[thread])) {
            partial[thread] = partial[thread + width];
        }
        workgroupBarrier();
    }
    return workgroupUniformLoad(&partial[0]);
}

fn total_of_workgroup(thread: u32, value: vec2<u32>) -> vec2<u32> {
    partial[thread] = value;
    workgroupBarrier();
    for (var width = $WORKGROUPu / 2u; width > 0u; width /= 2u) {
        if (thread < width) {
            partial[thread] = add(partial[thread], partial[thread + width]);
        }
        workgroupBarrier();
    }
    return workgroupUniformLoad(&partial[0]);
}

// As in random.rs; the other functions of it are in `common/random.wgsl`.
fn random_bits(token: u32) -> u32 {
    var state = token ^ record[6];
    state ^= state >> 16u;
    state = state * 0x85ebca6bu + record[7];
    state ^= state >> 13u;
    state *= 0xc2b2ae35u;
    return state ^ (state >> 16u);
}

fn raw_bits(token: u32) -> u32 {
    return logits[record[0] * parameters.tokens + token];
}

// The bits of four of a thread's tokens, read at once: a pass over a row waits for memory more than it computes.
fn four_raw_bits(first: u32) -> vec4<u32> {
    let tokens = min(vec4(first) + vec4(0u, 1u, 2u, 3u) * $WORKGROUPu, vec4(parameters.tokens - 1u));
    return vec4(raw_bits(tokens.x), raw_bits(tokens.y), raw_bits(tokens.z), raw_bits(tokens.w));
}

// A token's tempered logit after its edit, if it has one.
struct Candidate {
    possible: bool,
    value: f32,
}

fn candidate(token: u32) -> Candidate {
    return candidate_of(token, raw_bits(token));
}

// The same of a logit that has been read.
fn candidate_of(token: u32, bits: u32) -> Candidate {
    let mask = record[10];
    if (mask != 0u && ((plan[mask + token / 32u] >> (token % 32u)) & 1u) == 0u) {
        return Candidate(false, 0.0);
    }
    var logit = bitcast<f32>(bits);
    var low = 0u;
    var high = record[9];
    while (low < high) {
        let middle = (low + high) / 2u;
        if (plan[record[8] + middle * EDIT_WORDS] < token) {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    let at = record[8] + low * EDIT_WORDS;
    if (low < record[9] && plan[at] == token) {
        let changes = plan[at + 2u];
        if ((changes & EDIT_SUPPRESSED) != 0u) {
            return Candidate(false, 0.0);
        }
        logit += bitcast<f32>(plan[at + 1u]);
        let repetition = number(11u);
        if ((changes & EDIT_SEEN) != 0u && repetition != 1.0) {
            logit = select(logit * repetition, logit / repetition, logit > 0.0);
        }
        let count = changes & (EDIT_SEEN - 1u);
        if (count > 0u) {
            logit -= number(12u) * f32(count) + number(13u);
        }
    }
    return Candidate(true, logit * number(2u));
}

// What a pass over the row finds.
struct Pass {
    best: vec2<u32>,
    largest: u32, // ordered
    not_finite: u32,
}

// The tokens from `begin` to `end`.
fn first_pass(thread: u32, greedy: bool, begin: u32, end: u32) -> Pass {
    var found = Pass(vec2(0u), 0u, 0u);
    var bar = FLOAT_MIN;
    for (var token = begin + thread; token < end; token += $WORKGROUPu) {
        if ((raw_bits(token) & 0x7f800000u) == 0x7f800000u) {
            found.not_finite = 1u;
            break;
        }
        let it = candidate(token);
        if (!it.possible) {
            continue;
        }
        found.largest = max(found.largest, ordered(it.value));
        var value = it.value;
        if (!greedy) {
            if (value + GUMBEL_MAX < bar) {
                continue;
            }
            let draw = uniform_of(random_bits(token));
            if (value - log(draw) + BOUND_ERROR < bar) {
                continue;
            }
            value += gumbel(draw);
        }
        let rank = rank_of(value, token);
        if (is_before(rank, found.best)) {
            found.best = rank;
            bar = value;
        }
    }
    return found;
}

#if SURVEY
#else
// The weight that the tokens before a kept one must not reach.
fn wanted_of(total: vec2<u32>, top_p: u32) -> vec2<u32> {
    let below = (1u << TOP_P_BITS) - 1u;
    let parts = (total.y << (32u - TOP_P_BITS)) | (total.x >> TOP_P_BITS);
    let rest = add(product(total.x & below, top_p), vec2(below, 0u));
    return add(product(parts, top_p), vec2((rest.y << (32u - TOP_P_BITS)) | (rest.x >> TOP_P_BITS), 0u));
}

// What the sums of a round are made of.
struct Filters {
    top_k: u32,
    top_p: u32,
    least: u32, // ordered; candidates below fall
    by_p: bool,
    both: bool, // of top_k and top_p: the sum is one of `top_k` candidates
}

fn row_filters(largest: f32) -> Filters {
    let top_k = workgroupUniformLoad(&record[4]);
    let top_p = workgroupUniformLoad(&record[5]);
    let min_p_bits = workgroupUniformLoad(&record[3]);
    // -inf: no floor. The order of the lowest finite value stands for it.
    var least = 0x00800000u;
    if (min_p_bits != 0xff800000u) {
        least = max(least, ordered(largest + bitcast<f32>(min_p_bits)));
    }
    let by_p = top_p < (1u << TOP_P_BITS);
    return Filters(top_k, top_p, least, by_p, by_p && top_k != 0xffffffffu);
}

// What a thread, or a workgroup, found of the candidates beside the one that is judged.
struct Weights {
    total: vec2<u32>,
    above: vec2<u32>,  // of those above `least`
    before: vec2<u32>, // of those before the judged one
    counts: vec2<u32>, // before it, above `least`
    best: vec2<u32>,   // draw among those before it
}

// The thread's tokens from `begin` to `end`.
fn weigh(thread: u32, begin: u32, end: u32, pivot: vec2<u32>, least: u32, largest: f32) -> Weights {
    var found = Weights(vec2(0u), vec2(0u), vec2(0u), vec2(0u), vec2(0u));
    for (var first = begin + thread; first < end; first += 4u * $WORKGROUPu) {
        let bits = four_raw_bits(first);
        for (var place = 0u; place < 4u; place++) {
            let other = first + place * $WORKGROUPu;
            if (other >= end) {
                break;
            }
            let it = candidate_of(other, bits[place]);
            let rank = rank_of(it.value, other);
            if (!it.possible || rank.x < least) {
                continue;
            }
            let own = vec2(weight(it.value - largest), 0u);
            found.total = add(found.total, own);
            if (rank.x > least) {
                found.above = add(found.above, own);
                found.counts.y += 1u;
            }
            if (is_before(rank, pivot)) {
                found.before = add(found.before, own);
                found.counts.x += 1u;
                let draw = rank_of(it.value + gumbel(uniform_of(random_bits(other))), other);
                if (is_before(draw, found.best)) {
                    found.best = draw;
                }
            }
        }
    }
    return found;
}

// A token's rank among the candidates. Every thread would find the same; browsers refuse barriers after a decision that
// they cannot see to be uniform.
fn rank_of_chosen(thread: u32, token: u32) -> vec2<u32> {
    if (thread == 0u) {
        partial[0] = rank_of(candidate(token).value, token);
    }
    return workgroupUniformLoad(&partial[0]);
}

#if CHOICE
#if WEIGHED
// What the workgroups of a row's parts left, summed by thread. They know no `least` of both filters.
fn left_by_parts(thread: u32, row: u32) -> Weights {
    var found = Weights(vec2(0u), vec2(0u), vec2(0u), vec2(0u), vec2(0u));
    for (var part = thread; part < parameters.parts; part += $WORKGROUPu) {
        let sums = weighed[2u * (row * parameters.parts + part)];
        let rest = weighed[2u * (row * parameters.parts + part) + 1u];
        found.total = add(found.total, sums.xy);
        found.before = add(found.before, sums.zw);
        found.counts.x += rest.z;
        if (is_before(rest.xy, found.best)) {
            found.best = rest.xy;
        }
    }
    return found;
}
#end

// Rounds of a draw and a judgement: what is kept is the beginning of the order by value, so that after a candidate that
// falls only those before it remain.
fn draw_by_rounds(thread: u32, row: u32, first: u32, largest: f32) -> u32 {
    let filters = row_filters(largest);
    var least = filters.least;
    if (filters.both) {
        least = value_at(thread, filters.top_k, least);
    }
    var token = first;
    for (var round = 0u; round < parameters.tokens; round++) {
        let pivot = rank_of_chosen(thread, token);
        var found: Weights;
#if WEIGHED
        if (round == 0u && !filters.both) {
            found = left_by_parts(thread, row);
        } else {
            found = weigh(thread, 0u, parameters.tokens, pivot, least, largest);
        }
#else
        found = weigh(thread, 0u, parameters.tokens, pivot, least, largest);
#end
        var total = total_of_workgroup(thread, found.total);
        let before = total_of_workgroup(thread, found.before);
        let num_before = total_of_workgroup(thread, vec2(found.counts.x, 0u)).x;
        if (filters.both) {
            // Of the tokens that are equal to the last of `top_k`, only as many count as it has room for.
            let above = total_of_workgroup(thread, found.above);
            let room = filters.top_k - total_of_workgroup(thread, vec2(found.counts.y, 0u)).x;
            let sum = add(above, product(weight(unordered(least) - largest), room));
            if (is_less(sum, total)) {
                total = sum;
            }
        }
        let next = first_of_workgroup(thread, found.best);
        let enough = filters.by_p && !is_less(before, wanted_of(total, filters.top_p));
        let kept = pivot.x >= least && num_before < filters.top_k && !enough;
        if (kept || next.x == 0u) {
            return token;
        }
        token = ~next.y;
    }
    return token;
}

// The row's log-probabilities under its logits as they came.
fn report(thread: u32, row: u32, token: u32) {
    let wanted = min(workgroupUniformLoad(&record[14]), parameters.tokens);
    hold(thread, true, vec2(0xffffffffu));
    let largest = unordered(first_of_workgroup(thread, held0).x);
    let chosen = bitcast<f32>(raw_bits(token));
    var total = vec2(0u);
    var above = 0u;
    for (var first = thread; first < parameters.tokens; first += 4u * $WORKGROUPu) {
        let bits = four_raw_bits(first);
        for (var place = 0u; place < 4u; place++) {
            if (first + place * $WORKGROUPu < parameters.tokens) {
                let value = bitcast<f32>(bits[place]);
                total = add(total, vec2(weight(value - largest), 0u));
                above += u32(value > chosen);
            }
        }
    }
    total = total_of_workgroup(thread, total);
    above = total_of_workgroup(thread, vec2(above, 0u)).x;
    let normaliser = largest + natural_log(f32(total.y) * 2.0 + f32(total.x) * (1.0 / 2147483648.0));
    let detail = 2u * parameters.rows + row * DETAIL_WORDS;
    if (thread == 0u) {
        out[detail] = bitcast<u32>(chosen - normaliser);
        out[detail + 1u] = above + 1u;
    }
    for (var place = 0u; place < wanted; place++) {
        let best = take_best(thread, true);
        if (thread == 0u) {
            out[detail + 2u + place] = ~best.y;
            out[detail + 2u + LOGPROBS_MAX + place] = bitcast<u32>(unordered(best.x) - normaliser);
        }
    }
}

#end
#end
@compute @workgroup_size($WORKGROUP)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_index(id, count);
#if CHOICE
    let row = index;
#else
    let row = index / parameters.parts;
    let part_len = (parameters.tokens + parameters.parts - 1u) / parameters.parts;
    let begin = index % parameters.parts * part_len;
    let end = min(begin + part_len, parameters.tokens);
#end
    if (row >= parameters.rows) {
        return;
    }
    if (thread < 16u) {
        record[thread] = plan[row * ROW_WORDS + thread];
    }
    let flags = workgroupUniformLoad(&record[1]);
#if WEIGHING
    if ((flags & FILTERED) == 0u) {
        return;
    }
#end
    if ((flags & ACTIVE) == 0u) {
#if CHOICE
        if (thread == 0u) {
            out[row] = 0u;
            out[parameters.rows + row] = 0u;
        }
#end
        return;
    }
#if SURVEYED
    var found = Pass(vec2(0u), 0u, 0u);
    for (var part = thread; part < parameters.parts; part += $WORKGROUPu) {
        let survey = surveys[row * parameters.parts + part];
        if (is_before(survey.xy, found.best)) {
            found.best = survey.xy;
        }
        found.largest = max(found.largest, survey.z);
        found.not_finite = max(found.not_finite, survey.w);
    }
#else
#if SURVEY
    let found = first_pass(thread, (flags & GREEDY) != 0u, begin, end);
#else
    let found = first_pass(thread, (flags & GREEDY) != 0u, 0u, parameters.tokens);
#end
#end
    let best = first_of_workgroup(thread, found.best);
    let bounds = first_of_workgroup(thread, vec2(found.largest, 0u));
    let not_finite = first_of_workgroup(thread, vec2(found.not_finite, 0u)).x;
#if SURVEY
    if (thread == 0u) {
        surveys[index] = vec4(best, bounds.x, not_finite);
    }
#end
#if WEIGHING
    if (best.x == 0u || not_finite != 0u) {
        return;
    }
    let largest = unordered(bounds.x);
    let filters = row_filters(largest);
    let pivot = rank_of_chosen(thread, ~best.y);
    let own = weigh(thread, begin, end, pivot, filters.least, largest);
    let total = total_of_workgroup(thread, own.total);
    let before = total_of_workgroup(thread, own.before);
    let num_before = total_of_workgroup(thread, vec2(own.counts.x, 0u)).x;
    let next = first_of_workgroup(thread, own.best);
    if (thread == 0u) {
        weighed[2u * index] = vec4(total, before);
        weighed[2u * index + 1u] = vec4(next, num_before, 0u);
    }
#end
#if CHOICE
    var token = 0u;
    if (best.x != 0u && not_finite == 0u) {
        token = ~best.y;
        if ((flags & FILTERED) != 0u) {
            token = draw_by_rounds(thread, row, token, unordered(bounds.x));
        }
    }
    if (thread == 0u) {
        out[row] = token;
        out[parameters.rows + row] = not_finite;
    }
    if ((flags & LOGPROBS) != 0u && not_finite == 0u) {
        report(thread, row, token);
    }
#end
}
