// Causal attention of one token's query head over its sequence's keys and values in the paged cache.
//
// A token's context is taken in spans of SPAN positions, whose results are joined in order (`common/spans.wgsl`). A
// workgroup takes one head of one token and all its spans or, with PARTIAL, one span, whose result it leaves for
// paged_attention_join: one way for many workgroups, the other for few, with the same bits.
//
// It walks a span in tiles of WORKGROUP positions with a running softmax (Dao et al., 2022): a thread scores one position
// of the tile, then the threads sum the tile's values, SLICES threads to an element of the head, each taking every
// SLICES-th position. The order of every sum depends on the token's position and the constants alone, never on the batch.
// Memory: reads the context's keys and values once per query head (heads of a group share them through the cache).
// Limits: a workgroup's memory holds a query and the tile, below 4 KiB for HEAD_DIM 256; elements of a cache below 2^32.

struct Parameters {
    workgroups: u32,
    blocks_per_row: u32, // of `block_tables`
    window: u32,         // positions that a token sees, itself included
    scale: f32,
    softcap: f32,
    spans: u32,          // PARTIAL: workgroups side by side for a head of a token
}

const SLICES = max(1u, $WORKGROUPu / WIDTH);              // threads that share an element of the result
const OWNED = (WIDTH + $WORKGROUPu - 1u) / $WORKGROUPu;   // elements of the result that a thread sums
const MAXIMA = 16u;                                       // partial maxima of a tile

@group(0) @binding(_) var<storage, read_write> qkv: array<Element>;        // [T, HEADS + 2 * KV_HEADS, WIDTH]
@group(0) @binding(_) var<storage, read_write> keys: array<Element>;       // [slots, KV_HEADS, WIDTH]
@group(0) @binding(_) var<storage, read_write> values: array<Element>;     // [slots, KV_HEADS, WIDTH]
@group(0) @binding(_) var<storage, read_write> positions: array<i32>;      // [T]
@group(0) @binding(_) var<storage, read_write> sequences: array<i32>;      // [T]
@group(0) @binding(_) var<storage, read_write> block_tables: array<i32>;   // [S, blocks_per_row]
@group(0) @binding(_) var<storage, read_write> out: array<Element>;        // [T, HEADS, WIDTH], PARTIAL: see the file of spans
@group(0) @binding(_) var<uniform> parameters: Parameters;

var<workgroup> query: array<Element, WIDTH>;
var<workgroup> scores: array<f32, $WORKGROUP>;
var<workgroup> maxima: array<f32, MAXIMA>;
var<workgroup> weights: array<f32, $WORKGROUP>;
var<workgroup> rows: array<u32, $WORKGROUP>;         // where each position's key and value begin in the cache
var<workgroup> slices: array<Element, $WORKGROUP>;   // partial results, [SLICES, WIDTH]
var<workgroup> token_position: u32;

// The result of a span: the elements of it that this thread owns, not yet divided by the sum of the weights.
var<private> span_sums: array<Element, OWNED>;
var<private> span_state: SpanState;

@compute @workgroup_size($WORKGROUP)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_index(id, count);
    if (index >= parameters.workgroups) {
        return;
    }
#if PARTIAL
    let pair = index / parameters.spans;
#else
    let pair = index;
#end
    let token = pair / $HEADSu;
    let head = pair % $HEADSu;
    let kv_head = head / ($HEADSu / $KV_HEADSu);
    for (var at = thread; at < WIDTH; at += $WORKGROUPu) {
        query[at] = qkv[(token * ($HEADSu + 2u * $KV_HEADSu) + head) * WIDTH + at];
    }
    if (thread == 0u) {
        token_position = u32(positions[token]);
    }
    let position = workgroupUniformLoad(&token_position);
    let first = first_position(position, parameters.window);
    let table = u32(sequences[token]) * parameters.blocks_per_row;
#if PARTIAL
    let begin = first + index % parameters.spans * $SPANu;
    if (begin > position) {
        return;
    }
    attend(thread, begin, min(begin + $SPANu, position + 1u), table, kv_head);
    let start = index * SPAN_ELEMENTS;
    for (var owned = 0u; owned < OWNED; owned++) {
        let element = owned * $WORKGROUPu + thread;
        if (element < WIDTH) {
            out[start + element] = span_sums[owned];
        }
    }
    if (thread == 0u) {
#if VECTOR
        out[start + WIDTH] = vec4(span_state.largest, span_state.total, 0.0, 0.0);
#else
        out[start + WIDTH] = span_state.largest;
        out[start + WIDTH + 1u] = span_state.total;
#end
    }
#else
    var sums: array<Element, OWNED>;
    var state = SpanState(LOWEST, 0.0);
    for (var begin = first; begin <= position; begin += $SPANu) {
        attend(thread, begin, min(begin + $SPANu, position + 1u), table, kv_head);
        let shares = shares_of(state, span_state);
        for (var owned = 0u; owned < OWNED; owned++) {
            sums[owned] = joined(shares, sums[owned], span_sums[owned]);
        }
        state = joined_state(shares, state, span_state);
    }
    for (var owned = 0u; owned < OWNED; owned++) {
        let element = owned * $WORKGROUPu + thread;
        if (element < WIDTH) {
            out[pair * WIDTH + element] = sums[owned] / state.total;
        }
    }
#end
}

// Attends to the positions from `begin` to `end`, one at least; the result is in `span_sums` and `span_state`.
fn attend(thread: u32, begin: u32, end: u32, table: u32, kv_head: u32) {
    let slice = thread / WIDTH; // used where SLICES > 1
    var sums: array<Element, OWNED>;
    var largest = LOWEST;
    var total = 0.0; // of this thread's weights
    for (var tile = begin; tile < end; tile += $WORKGROUPu) {
        let tile_len = min($WORKGROUPu, end - tile);
        var row = 0u;
        var score = LOWEST;
        if (thread < tile_len) {
            let at = tile + thread;
            let slot = u32(block_tables[table + at / $BLOCK_SIZEu]) * $BLOCK_SIZEu + at % $BLOCK_SIZEu;
            row = (slot * $KV_HEADSu + kv_head) * WIDTH;
            score = score_of(row);
        }
        scores[thread] = score;
        workgroupBarrier();
        if (thread < MAXIMA) {
            var maximum = LOWEST;
            for (var at = thread; at < $WORKGROUPu; at += MAXIMA) {
                maximum = max(maximum, scores[at]);
            }
            maxima[thread] = maximum;
        }
        workgroupBarrier();
        let before = largest;
        for (var at = 0u; at < MAXIMA; at++) {
            largest = max(largest, maxima[at]);
        }
        let shrink = exp(before - largest);
        let weight = select(0.0, exp(score - largest), thread < tile_len);
        total = total * shrink + weight;
        // Every thread is past the sums of the tile before: it has seen this tile's barriers.
        weights[thread] = weight;
        rows[thread] = row;
        workgroupBarrier();
        if (SLICES > 1u) {
            var sum = sums[0] * shrink;
            if (slice < SLICES) {
                for (var at = slice; at < tile_len; at += SLICES) {
                    sum = fma(Element(weights[at]), values[rows[at] + thread % WIDTH], sum);
                }
            }
            sums[0] = sum;
        } else {
            for (var owned = 0u; owned < OWNED; owned++) {
                let element = owned * $WORKGROUPu + thread;
                var sum = sums[owned] * shrink;
                if (element < WIDTH) {
                    for (var at = 0u; at < tile_len; at++) {
                        sum = fma(Element(weights[at]), values[rows[at] + element], sum);
                    }
                }
                sums[owned] = sum;
            }
        }
    }

    span_state = SpanState(largest, workgroup_sum(thread, total));
    if (SLICES > 1u) {
        slices[thread] = sums[0];
        workgroupBarrier();
        if (thread < WIDTH) {
            var sum = slices[thread];
            for (var other = 1u; other < SLICES; other++) {
                sum += slices[other * WIDTH + thread];
            }
            sums[0] = sum;
        }
    }
    span_sums = sums;
}

// The scaled and capped product of the query with the key at `row`.
fn score_of(row: u32) -> f32 {
    var product = 0.0;
    for (var at = 0u; at < WIDTH; at++) {
        product = product_sum(query[at], keys[row + at], product);
    }
    let score = product * parameters.scale;
#if SOFTCAP
    // tanh through the exponential; beyond 10 it is 1 to the last bit.
    let doubled = 2.0 * clamp(score / parameters.softcap, -10.0, 10.0);
    return parameters.softcap * (1.0 - 2.0 / (exp(doubled) + 1.0));
#else
    return score;
#end
}
