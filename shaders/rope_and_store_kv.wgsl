// Per-head normalisation (NORM) and rotation (ROTARY_DIM > 0) of queries and keys in place, and the copy of keys and
// values into their slots of the cache.
//
// A workgroup takes one head of one token, of the HEADS queries, KV_HEADS keys and KV_HEADS values from FIRST_HEAD on;
// a thread takes every WORKGROUP-th pair (i, i + ROTARY_DIM / 2) and every WORKGROUP-th element after the rotated ones.
// Each element belongs to one thread throughout, so that no barrier is needed but in the sum of squares.
// Memory: reads the row once more with NORM, writes it once, keys and values twice.
// Limits: elements of a cache below 2^32; 8 storage bindings with NORM and rotation, WebGPU's guaranteed number.

struct Parameters {
    workgroups: u32,
    eps: f32,
}

const ROW_HEADS = $HEADSu + 2u * $KV_HEADSu;
const HALF_DIM = $ROTARY_DIMu / 2u;

@group(0) @binding(_) var<storage, read_write> qkv: array<f32>;        // [T, ROW_HEADS, HEAD_DIM]
#if NORM
@group(0) @binding(_) var<storage, read_write> query_norm: array<f32>; // [HEAD_DIM]
@group(0) @binding(_) var<storage, read_write> key_norm: array<f32>;   // [HEAD_DIM]
#end
#if ROTARY_DIM
@group(0) @binding(_) var<storage, read_write> table: array<f32>;      // [positions, 2, HALF_DIM]: cosines, sines
@group(0) @binding(_) var<storage, read_write> positions: array<i32>;  // [T]
#end
@group(0) @binding(_) var<storage, read_write> slots: array<i32>;      // [T]
@group(0) @binding(_) var<storage, read_write> keys: array<f32>;       // [slots, KV_HEADS, HEAD_DIM]
@group(0) @binding(_) var<storage, read_write> values: array<f32>;     // [slots, KV_HEADS, HEAD_DIM]
@group(0) @binding(_) var<uniform> parameters: Parameters;

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
    let token = index / (ROW_HEADS - $FIRST_HEADu);
    let head = $FIRST_HEADu + index % (ROW_HEADS - $FIRST_HEADu);
    let start = (token * ROW_HEADS + head) * $HEAD_DIMu;
    if (head >= $HEADSu + $KV_HEADSu) {
        let slot = (u32(slots[token]) * $KV_HEADSu + head - $HEADSu - $KV_HEADSu) * $HEAD_DIMu;
        for (var at = thread; at < $HEAD_DIMu; at += $WORKGROUPu) {
            values[slot + at] = qkv[start + at];
        }
        return;
    }
    var scale = 1.0;
#if NORM
    var squares = 0.0;
    for (var at = thread; at < HALF_DIM; at += $WORKGROUPu) {
        let first = qkv[start + at];
        let second = qkv[start + HALF_DIM + at];
        squares += first * first + second * second;
    }
    for (var at = 2u * HALF_DIM + thread; at < $HEAD_DIMu; at += $WORKGROUPu) {
        squares += qkv[start + at] * qkv[start + at];
    }
    scale = 1.0 / sqrt(workgroup_sum(thread, squares) / f32($HEAD_DIM) + parameters.eps);
#end
    let is_key = head >= $HEADSu;
    let slot = (u32(slots[token]) * $KV_HEADSu + head - $HEADSu) * $HEAD_DIMu; // of a key
#if ROTARY_DIM
    let angles = u32(positions[token]) * 2u * HALF_DIM;
    for (var at = thread; at < HALF_DIM; at += $WORKGROUPu) {
        let a = normed(start, at, scale, is_key);
        let b = normed(start, HALF_DIM + at, scale, is_key);
        let cosine = table[angles + at];
        let sine = table[angles + HALF_DIM + at];
        let first = rotated_first(a, b, cosine, sine);
        let second = rotated_second(a, b, cosine, sine);
        qkv[start + at] = first;
        qkv[start + HALF_DIM + at] = second;
        if (is_key) {
            keys[slot + at] = first;
            keys[slot + HALF_DIM + at] = second;
        }
    }
#end
    for (var at = 2u * HALF_DIM + thread; at < $HEAD_DIMu; at += $WORKGROUPu) {
        let value = normed(start, at, scale, is_key);
        qkv[start + at] = value;
        if (is_key) {
            keys[slot + at] = value;
        }
    }
}

fn normed(start: u32, at: u32, scale: f32, is_key: bool) -> f32 {
#if NORM
    let weight = select(query_norm[at], key_norm[at], is_key);
    return qkv[start + at] * scale * weight;
#else
    return qkv[start + at];
#end
}
