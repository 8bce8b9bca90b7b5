// Elementwise activation; with GATED, of the gates, times the values beside them.
//
// A thread takes one element of the result.
// Memory: reads and writes everything once.
// Limits: elements of the input below 2^32.

struct Parameters {
    elements: u32, // of the result
    width: u32,    // elements of a row of the result
}

@group(0) @binding(_) var<storage, read_write> x: array<Element>;   // [rows, width], GATED: [rows, 2, width]
@group(0) @binding(_) var<storage, read_write> out: array<Element>; // [rows, width]
@group(0) @binding(_) var<uniform> parameters: Parameters;

alias Value = Element;

@compute @workgroup_size($WORKGROUP)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = workgroup_index(id, count) * $WORKGROUPu + thread;
    if (at >= parameters.elements) {
        return;
    }
#if GATED
    let gate = at + at / parameters.width * parameters.width;
    out[at] = apply(x[gate]) * x[gate + parameters.width];
#else
    out[at] = apply(x[at]);
#end
}
