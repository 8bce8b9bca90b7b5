// The operands of a product with a weight matrix, what becomes of its sums, and the order in which they are made.
//
// A product of a row of x with a row of weights is summed in LANES = 16 lanes: lane l takes the quads (four inputs) l,
// l + 16, … in ascending order, each with fused multiply-adds; the lanes are then added as a tree. ROWS, OUTPUTS and
// UNROLL divide the work but never change this order, so a result has the same bits under all of them.
//
// Quantised weights (PACKED) are read as they are in the file and widened in registers. With GATED an output is an activated
// gate times the output `outputs` rows further on; with ACTIVATED every output is activated. Bits are those of the single
// operations.
// Limits: elements of each operand below 2^32.

struct Parameters {
    rows: u32,
    outputs: u32,
    inputs: u32,
    quads: u32,  // of a row: inputs / 4, rounded up; missing inputs count as 0
    strips: u32, // workgroups side by side along the outputs
    columns: f32, // inputs
    eps: f32,     // of the norm
}

const LANES = 16u;
#if ACTIVATED
alias Value = f32;
#end

#if VECTOR
@group(0) @binding(_) var<storage, read_write> x: array<vec4<f32>>; // [rows, quads]

fn x_quad(row: u32, quad: u32) -> vec4<f32> {
    return x[row * parameters.quads + quad];
}
#else
@group(0) @binding(_) var<storage, read_write> x: array<f32>; // [rows, inputs]

fn x_at(row: u32, input: u32) -> f32 {
    let value = x[row * parameters.inputs + min(input, parameters.inputs - 1u)];
    return select(0.0, value, input < parameters.inputs);
}

fn x_quad(row: u32, quad: u32) -> vec4<f32> {
    let at = 4u * quad;
    return vec4(x_at(row, at), x_at(row, at + 1u), x_at(row, at + 2u), x_at(row, at + 3u));
}
#end
#if NORM
@group(0) @binding(_) var<storage, read_write> norm_weight: array<vec4<f32>>; // [quads]
#end
#if PACKED
@group(0) @binding(_) var<storage, read_write> packed_words: array<u32>; // [outputs, quads / 8, GROUP_WORDS]

fn weight_quad(output: u32, quad: u32) -> vec4<f32> {
    return packed_quad(output * parameters.quads + quad);
}
#else
#if HALF
#if VECTOR
@group(0) @binding(_) var<storage, read_write> weight: array<vec2<u32>>; // [outputs, quads] of halfs

fn weight_quad(output: u32, quad: u32) -> vec4<f32> {
    let packed = weight[output * parameters.quads + quad];
    return vec4(unpack2x16float(packed.x), unpack2x16float(packed.y));
}
#else
@group(0) @binding(_) var<storage, read_write> weight: array<u32>; // [outputs, inputs] of halfs

fn weight_at(output: u32, input: u32) -> f32 {
    let index = output * parameters.inputs + min(input, parameters.inputs - 1u);
    let value = unpack2x16float(weight[index / 2u] >> (index % 2u * 16u)).x;
    return select(0.0, value, input < parameters.inputs);
}
#end
#else
#if VECTOR
@group(0) @binding(_) var<storage, read_write> weight: array<vec4<f32>>; // [outputs, quads]

fn weight_quad(output: u32, quad: u32) -> vec4<f32> {
    return weight[output * parameters.quads + quad];
}
#else
@group(0) @binding(_) var<storage, read_write> weight: array<f32>; // [outputs, inputs]

fn weight_at(output: u32, input: u32) -> f32 {
    let value = weight[output * parameters.inputs + min(input, parameters.inputs - 1u)];
    return select(0.0, value, input < parameters.inputs);
}
#end
#end
#if VECTOR
#else
fn weight_quad(output: u32, quad: u32) -> vec4<f32> {
    let at = 4u * quad;
    return vec4(weight_at(output, at), weight_at(output, at + 1u), weight_at(output, at + 2u), weight_at(output, at + 3u));
}
#end
#end
#if BIAS
@group(0) @binding(_) var<storage, read_write> bias: array<f32>; // [outputs]
#end
#if RESIDUAL
@group(0) @binding(_) var<storage, read_write> residual: array<f32>; // [rows, outputs]
#end
@group(0) @binding(_) var<storage, read_write> out: array<f32>; // [rows, outputs]
@group(0) @binding(_) var<uniform> parameters: Parameters;

// One step of a lane.
fn accumulate(x: vec4<f32>, weight: vec4<f32>, sum: f32) -> f32 {
    return fma(x.w, weight.w, fma(x.z, weight.z, fma(x.y, weight.y, fma(x.x, weight.x, sum))));
}

#if GATED
fn store_gated(row: u32, output: u32, gate_sum: f32, sum: f32) {
    if (row < parameters.rows && output < parameters.outputs) {
        var gate = gate_sum;
        var total = sum;
#if BIAS
        gate += bias[output];
        total += bias[output + parameters.outputs];
#end
        out[row * parameters.outputs + output] = apply(gate) * total;
    }
}
#else
fn store(row: u32, output: u32, sum: f32) {
    if (row < parameters.rows && output < parameters.outputs) {
        var total = sum;
#if BIAS
        total += bias[output];
#end
#if ACTIVATED
        total = apply(total);
#end
#if RESIDUAL
        total += residual[row * parameters.outputs + output];
#end
        out[row * parameters.outputs + output] = total;
    }
}
#end

var<workgroup> lane_sums: array<f32, $WORKGROUP * $ROWS * $OUTPUTS>;

fn sum_of_lanes(start: u32) -> f32 {
#for L in 8
    let pair$L = lane_sums[start + $Lu] + lane_sums[start + $Lu + 8u];
#end
    return ((pair0 + pair4) + (pair2 + pair6)) + ((pair1 + pair5) + (pair3 + pair7));
}

// Adds the lanes of what all threads have left in `lane_sums`, [ROWS, OUTPUTS, WORKGROUP], and stores the results.
fn store_results(thread: u32, first_row: u32, first_output: u32) {
    let groups = $WORKGROUPu / LANES;
#if GATED
    // [ROWS, WORKGROUP / 16] results of two sums each, one to a thread.
    for (var at = thread; at < $ROWSu * groups; at += $WORKGROUPu) {
        let start = at / groups * 2u * $WORKGROUPu + at % groups * LANES;
        let gate = sum_of_lanes(start);
        let sum = sum_of_lanes(start + $WORKGROUPu);
        store_gated(first_row + at / groups, first_output + at % groups, gate, sum);
    }
#else
    // [ROWS, OUTPUTS, WORKGROUP / 16] results, one to a thread.
    for (var at = thread; at < $ROWSu * $OUTPUTSu * groups; at += $WORKGROUPu) {
        let row = first_row + at / (groups * $OUTPUTSu);
        let output = first_output + at % groups * $OUTPUTSu + at / groups % $OUTPUTSu;
        store(row, output, sum_of_lanes(at * LANES));
    }
#end
}
