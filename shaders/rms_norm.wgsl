// Root-mean-square normalisation; with RESIDUAL, of the sum with the residual, which is kept.
//
// A workgroup takes one row; a thread every WORKGROUP-th element of it.
// Memory: reads the row twice (the second time from cache), writes it once, with RESIDUAL reads and writes one row more.
// Limits: rows times columns below 2^32.

struct Parameters {
    rows: u32,
    elements: u32, // of a row
    columns: f32,  // of a row
    eps: f32,
}

@group(0) @binding(_) var<storage, read_write> x: array<Element>;      // [rows, elements]
#if RESIDUAL
@group(0) @binding(_) var<storage, read_write> residual: array<Element>; // [rows, elements]
@group(0) @binding(_) var<storage, read_write> sum: array<Element>;    // [rows, elements]
#end
@group(0) @binding(_) var<storage, read_write> weight: array<Element>; // [elements]
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
    var squares = Element();
    for (var at = thread; at < parameters.elements; at += $WORKGROUPu) {
#if RESIDUAL
        let value = x[start + at] + residual[start + at];
        sum[start + at] = value;
#else
        let value = x[start + at];
#end
        squares = fma(value, value, squares); // so written that `linear` with NORM has the same bits
    }
    let mean_square = workgroup_sum(thread, sum_of(squares)) / parameters.columns;
    let scale = 1.0 / sqrt(mean_square + parameters.eps);
    for (var at = thread; at < parameters.elements; at += $WORKGROUPu) {
#if RESIDUAL
        let value = sum[start + at];
#else
        let value = x[start + at];
#end
        out[start + at] = value * scale * weight[at];
    }
}
