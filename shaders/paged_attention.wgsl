// Causal attention of one token's query head over its sequence's keys and values in the paged cache.
//
// A token's context is taken in spans of SPAN positions, whose results are joined in order (`common/spans.wgsl`). A
// workgroup takes one head of one token and all its spans or, with PARTIAL, one span, whose result it leaves for
// paged_attention_join: one way for many workgroups, the other for few, with the same bits.
//
// With ROTATED, for tokens that are the only ones of their sequences, the row comes as it was projected: every workgroup
// rotates its query and the token's key, takes that key and the value from the row, and the first head of a group stores
// both in the token's slot, which no other workgroup reads. That saves the dispatch of rope_and_store_kv, with its bits.
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
const ROW_HEADS = $HEADSu + 2u * $KV_HEADSu;
const GROUP = $HEADSu / $KV_HEADSu;                       // query heads of a KV head
const OWNERS = min(WIDTH, $WORKGROUPu);                   // threads that own different elements
const MAXIMA = 16u;                                       // partial maxima of a tile

@group(0) @binding(_) var<storage, read_write> qkv: array<Element>;        // [T, HEADS + 2 * KV_HEADS, WIDTH]
@group(0) @binding(_) var<storage, read_write> keys: array<Element>;       // [slots, KV_HEADS, WIDTH]
@group(0) @binding(_) var<storage, read_write> values: array<Element>;     // [slots, KV_HEADS, WIDTH]
@group(0) @binding(_) var<storage, read_write> positions: array<i32>;      // [T]
@group(0) @binding(_) var<storage, read_write> sequences: array<i32>;      // [T]
@group(0) @binding(_) var<storage, read_write> block_tables: array<i32>;   // [S, blocks_per_row]
#if HALF_WIDTH
@group(0) @binding(_) var<storage, read_write> table: array<Element>;      // [positions, 2, HALF_WIDTH]: cosines, sines
#end
@group(0) @binding(_) var<storage, read_write> out: array<Element>;        // [T, HEADS, WIDTH], PARTIAL: see the file of spans
@group(0) @binding(_) var<uniform> parameters: Parameters;

var<workgroup> query: array<Element, WIDTH>;
var<workgroup> scores: array<f32, $WORKGROUP>;
var<workgroup> maxima: array<f32, MAXIMA>;
var<workgroup> weights: array<f32, $WORKGROUP>;
var<workgroup> rows: array<u32, $WORKGROUP>;         // where each position's key and value begin in the cache
var<workgroup> slices: array<Element, $WORKGROUP>;   // partial results, [SLICES, WIDTH]
var<workgroup> token_position: u32;
#if ROTATED
var<workgroup> token_key: array<Element, WIDTH>;
var<private> token_value: array<Element, OWNED>;      // the elements that this thread sums
#end
var<private> query_position: u32;

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
    let kv_head = head / GROUP;
    let query_start = (token * ROW_HEADS + head) * WIDTH;
    query_position = u32(positions[token]);
#if ROTATED
    let key_start = (token * ROW_HEADS + $HEADSu + kv_head) * WIDTH;
    let value_start = key_start + $KV_HEADSu * WIDTH;
    for (var at = thread; at < WIDTH; at += $WORKGROUPu) {
        query[at] = rotated(query_start, at);
    }
    // Other threads, where there are enough.
    for (var at = $WORKGROUPu - 1u - thread; at < WIDTH; at += $WORKGROUPu) {
        token_key[at] = rotated(key_start, at);
    }
    for (var owned = 0u; owned < OWNED; owned++) {
        token_value[owned] = qkv[value_start + min(owned * $WORKGROUPu + thread % OWNERS, WIDTH - 1u)];
    }
#else
    for (var at = thread; at < WIDTH; at += $WORKGROUPu) {
        query[at] = qkv[query_start + at];
    }
#end
    if (thread == 0u) {
        token_position = query_position;
    }
    let position = workgroupUniformLoad(&token_position);
    let first = first_position(position, parameters.window);
    let table_row = u32(sequences[token]) * parameters.blocks_per_row;
#if PARTIAL
    let begin = first + index % parameters.spans * $SPANu;
    if (begin > position) {
        return;
    }
    attend(thread, begin, min(begin + $SPANu, position + 1u), table_row, kv_head);
#if ROTATED
    if (position - begin < $SPANu && head % GROUP == 0u) {
        store_token(thread, position, table_row, kv_head, value_start);
    }
#end
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
        attend(thread, begin, min(begin + $SPANu, position + 1u), table_row, kv_head);
        let shares = shares_of(state, span_state);
        for (var owned = 0u; owned < OWNED; owned++) {
            sums[owned] = joined(shares, sums[owned], span_sums[owned]);
        }
        state = joined_state(shares, state, span_state);
    }
#if ROTATED
    if (head % GROUP == 0u) {
        store_token(thread, position, table_row, kv_head, value_start);
    }
#end
    for (var owned = 0u; owned < OWNED; owned++) {
        let element = owned * $WORKGROUPu + thread;
        if (element < WIDTH) {
            out[pair * WIDTH + element] = sums[owned] / state.total;
        }
    }
#end
}

// Where the key and the value of a position begin in the cache.
fn cache_row(at: u32, table_row: u32, kv_head: u32) -> u32 {
    let slot = u32(block_tables[table_row + at / $BLOCK_SIZEu]) * $BLOCK_SIZEu + at % $BLOCK_SIZEu;
    return (slot * $KV_HEADSu + kv_head) * WIDTH;
}

#if ROTATED
// Element `at` of the head that begins at `start`, rotated to the token's position.
fn rotated(start: u32, at: u32) -> Element {
    let element = qkv[start + at];
#if HALF_WIDTH
    let angles = query_position * 2u * $HALF_WIDTHu;
    if (at < $HALF_WIDTHu) {
        let second = qkv[start + $HALF_WIDTHu + at];
        return rotated_first(element, second, table[angles + at], table[angles + $HALF_WIDTHu + at]);
    }
    if (at < 2u * $HALF_WIDTHu) {
        let first = qkv[start + at - $HALF_WIDTHu];
        return rotated_second(first, element, table[angles + at - $HALF_WIDTHu], table[angles + at]);
    }
#end
    return element;
}

// Copies the token's key and value into its slot.
fn store_token(thread: u32, position: u32, table_row: u32, kv_head: u32, value_start: u32) {
    let row = cache_row(position, table_row, kv_head);
    for (var at = thread; at < WIDTH; at += $WORKGROUPu) {
        keys[row + at] = token_key[at];
        values[row + at] = qkv[value_start + at];
    }
}
#end

// Attends to the positions from `begin` to `end`, one at least; the result is in `span_sums` and `span_state`.
fn attend(thread: u32, begin: u32, end: u32, table_row: u32, kv_head: u32) {
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
            row = cache_row(at, table_row, kv_head);
            score = score_of(row, at);
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
                sum = weighted(slice, SLICES, tile, tile_len, 0u, thread % WIDTH, sum);
            }
            sums[0] = sum;
        } else {
            for (var owned = 0u; owned < OWNED; owned++) {
                let element = owned * $WORKGROUPu + thread;
                var sum = sums[owned] * shrink;
                if (element < WIDTH) {
                    sum = weighted(0u, 1u, tile, tile_len, owned, element, sum);
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

// `sum` and the weighted values of every `step`-th position of the tile from `first` on, at an element of the head.
// Several reads are under way at once.
fn weighted(first: u32, step: u32, tile: u32, tile_len: u32, owned: u32, element: u32, start: Element) -> Element {
    var sum = start;
    for (var at = first; at < tile_len; at += 8u * step) {
#for U in 8
        let at$U = min(at + $Uu * step, tile_len - 1u);
#if ROTATED
        let value$U = select(values[rows[at$U] + element], token_value[owned], tile + at$U == query_position);
#else
        let value$U = values[rows[at$U] + element];
#end
#end
#for U in 8
        sum = select(sum, fma(Element(weights[at$U]), value$U, sum), at + $Uu * step < tile_len);
#end
    }
    return sum;
}

// The scaled and capped product of the query with the key of position `position` at `row`.
fn score_of(row: u32, position: u32) -> f32 {
    var product = 0.0;
    for (var at = 0u; at < WIDTH; at += $KEY_BATCHu) {
#for U in KEY_BATCH
#if ROTATED
        let key$U = select(keys[row + at + $Uu], token_key[at + $Uu], position == query_position);
#else
        let key$U = keys[row + at + $Uu];
#end
#end
#for U in KEY_BATCH
        product = product_sum(query[at + $Uu], key$U, product);
#end
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
