// Layer normalisation.
//
// A workgroup takes one row; a thread every WORKGROUP-th element of it.
// Memory: reads the row three times (from cache after the first), writes it once.
// Limits: rows times columns below 2^32.

struct Parameters {
    rows: u32,
    elements: u32, // of a row
    columns: f32,  // of a row
    eps: f32,
}

@group(0) @binding(_) var<storage, read_write> x: array<Element>;      // [rows, elements]
@group(0) @binding(_) var<storage, read_write> weight: array<Element>; // [elements]
@group(0) @binding(_) var<storage, read_write> bias: array<Element>;   // [elements]
@group(0) @binding(_) var<storage, read_write> out: array<Element>;    // [rows, elements]
@group(0) @binding(_) var<uniform> parameters: Parameters;

@compute @workgroup_size($WORKGROUP)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = workgroup_index(id, count);
    if (row >= parameters.rows) {
        return;
    }
    let start = row * parameters.elements;
    var values = Element();
    for (var at = thread; at < parameters.elements; at += $WORKGROUPu) {
        values += x[start + at];
    }
    let mean = workgroup_sum(thread, sum_of(values)) / parameters.columns;
    var squares = Element();
    for (var at = thread; at < parameters.elements; at += $WORKGROUPu) {
        let centred = x[start + at] - mean;
        squares += centred * centred;
    }
    let variance = workgroup_sum(thread, sum_of(squares)) / parameters.columns;
    let scale = 1.0 / sqrt(variance + parameters.eps);
    for (var at = thread; at < parameters.elements; at += $WORKGROUPu) {
        out[start + at] = (x[start + at] - mean) * scale * weight[at] + bias[at];
    }
}
