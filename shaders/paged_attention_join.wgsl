// Joins what paged_attention has left of the spans of each token's context.
//
// A workgroup takes one head of one token, a thread every WORKGROUP-th element of it.
// Memory: reads the spans' results and writes the joined one once.
// Limits: elements of the spans' results below 2^32.

struct Parameters {
    workgroups: u32,
    spans: u32,  // that there is room for
    window: u32, // positions that a token sees, itself included
}

@group(0) @binding(_) var<storage, read_write> parts: array<Element>;  // [T, HEADS, spans, SPAN_ELEMENTS]
@group(0) @binding(_) var<storage, read_write> positions: array<i32>;  // [T]
@group(0) @binding(_) var<storage, read_write> out: array<Element>;    // [T, HEADS, WIDTH]
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
    let position = u32(positions[index / $HEADSu]);
    let seen = position + 1u - first_position(position, parameters.window);
    let spans = (seen + $SPANu - 1u) / $SPANu;
    for (var element = thread; element < WIDTH; element += $WORKGROUPu) {
        var sum = Element();
        var state = SpanState(LOWEST, 0.0);
        for (var span = 0u; span < spans; span++) {
            let start = (index * parameters.spans + span) * SPAN_ELEMENTS;
#if VECTOR
            let words = parts[start + WIDTH];
            let next = SpanState(words.x, words.y);
#else
            let next = SpanState(parts[start + WIDTH], parts[start + WIDTH + 1u]);
#end
            let shares = shares_of(state, next);
            sum = joined(shares, sum, parts[start + element]);
            state = joined_state(shares, state, next);
        }
        out[index * WIDTH + element] = sum / state.total;
    }
}
