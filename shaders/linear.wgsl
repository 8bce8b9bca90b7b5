// Multiplication by a weight matrix.
//
// A product of a row of x with a row of weights is summed in LANES = 16 lanes: lane l takes the quads (four inputs) l,
// l + 16, … in ascending order, each with fused multiply-adds; the lanes are then added as a tree. ROWS, OUTPUTS and
// UNROLL divide the work but never change this order, so a result has the same bits under all of them.
//
// A lane takes its quads in rounds of UNROLL, whose reads are all under way at once: a product of few rows waits for memory
// more than it computes. A few inputs are ONE_ROUND, and their weights are on the way while the rows are normalised.
//
// A workgroup takes ROWS rows and WORKGROUP / 16 * OUTPUTS outputs. Its 16 threads of a group are the lanes of ROWS by
// OUTPUTS products, kept in registers; they read 16 consecutive quads of a row at once.
// Memory: reads the weights once per ROWS rows and x once per workgroup, all but the first time from cache. Keeping
// tiles in the workgroup's memory instead was slower: on an NVIDIA H200, 2048 rows from 4096 inputs to 14336 outputs
// took 19.5 ms in tiles of 32 by 32, and take 10.9 ms with ROWS 8 and OUTPUTS 4; on lavapipe it was no faster either.
// Quantised weights (PACKED) are read as they are in the file and widened in registers.
//
// With NORM, for few rows, the rows of x are normalised by their root mean square first: every workgroup finds the factors
// of its rows, in the order of rms_norm, which takes less time than another dispatch. With GATED an output is an activated
// gate times the output `outputs` rows further on; with ACTIVATED every output is activated. Bits are those of the single
// operations.
// Limits: ROWS * OUTPUTS at most 64 (16 KiB of workgroup memory); elements of each operand below 2^32.

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

// What thread `first` of NORM_THREADS of rms_norm sums.
fn sum_of_squares(row: u32, first: u32) -> f32 {
    var squares = vec4<f32>();
#if NORM_STEPS
#for S in NORM_STEPS
    let value$S = x_quad(row, min(first + $Su * $NORM_THREADSu, parameters.quads - 1u));
#end
#for S in NORM_STEPS
    squares = select(squares, fma(value$S, value$S, squares), first + $Su * $NORM_THREADSu < parameters.quads);
#end
#else
    for (var quad = first; quad < parameters.quads; quad += $NORM_THREADSu) {
        let value = x_quad(row, quad);
        squares = fma(value, value, squares);
    }
#end
    return (squares.x + squares.y) + (squares.z + squares.w);
}

// What stands in thread `thread` of rms_norm's tree once WORKGROUP threads are left in it.
fn first_sum_of_squares(row: u32, thread: u32) -> f32 {
#if NORM_FOLDED
    return (sum_of_squares(row, thread) + sum_of_squares(row, thread + 128u))
        + (sum_of_squares(row, thread + 64u) + sum_of_squares(row, thread + 192u));
#else
    return sum_of_squares(row, thread);
#end
}

fn input_quad(row: u32, quad: u32, factor: f32) -> vec4<f32> {
    return x_quad(row, quad) * factor * norm_weight[quad];
}
#else
fn input_quad(row: u32, quad: u32, factor: f32) -> vec4<f32> {
    return x_quad(row, quad);
}
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

@compute @workgroup_size($WORKGROUP)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_index(id, count);
    let first_row = index / parameters.strips * $ROWSu;
    if (first_row >= parameters.rows) {
        return;
    }
    let first_output = index % parameters.strips * ($WORKGROUPu / LANES * $COLUMNSu);
    // Rows and outputs past the end are computed again from the last one, and not stored.
#for M in ROWS
    let row$M = min(first_row + $Mu, parameters.rows - 1u);
#end
#if GATED
    let output0 = min(first_output + thread / LANES, parameters.outputs - 1u);
    let output1 = output0 + parameters.outputs;
#else
#for N in OUTPUTS
    let output$N = min(first_output + thread / LANES * $OUTPUTSu + $Nu, parameters.outputs - 1u);
#end
#end
    let lane = thread % LANES;
#if ONE_ROUND
#for U in UNROLL
    let quad$U = min(lane + $Uu * LANES, parameters.quads - 1u);
#for N in OUTPUTS
    let weight$U$N = weight_quad(output$N, quad$U);
#end
#end
#end
#if NORM
#for M in ROWS
    lane_sums[$M * $WORKGROUPu + thread] = first_sum_of_squares(row$M, thread);
#end
    workgroupBarrier();
    for (var width = $WORKGROUPu / 2u; width > 0u; width /= 2u) {
        if (thread < width) {
#for M in ROWS
            lane_sums[$M * $WORKGROUPu + thread] += lane_sums[$M * $WORKGROUPu + thread + width];
#end
        }
        workgroupBarrier();
    }
#for M in ROWS
    let factor$M = 1.0 / sqrt(lane_sums[$M * $WORKGROUPu] / parameters.columns + parameters.eps);
#end
    workgroupBarrier(); // `lane_sums` may be written again
#else
#for M in ROWS
    let factor$M = 1.0;
#end
#end
#for M in ROWS
#for N in OUTPUTS
    var sum$M$N = 0.0;
#end
#end
#if ONE_ROUND
#for M in ROWS
#for U in UNROLL
    let x$M$U = input_quad(row$M, quad$U, factor$M);
#end
#for U in UNROLL
#for N in OUTPUTS
    sum$M$N = select(sum$M$N, accumulate(x$M$U, weight$U$N, sum$M$N), lane + $Uu * LANES < parameters.quads);
#end
#end
#end
#else
    var quad = lane;
    for (; quad + ($UNROLLu - 1u) * LANES < parameters.quads; quad += $UNROLLu * LANES) {
#for U in UNROLL
#for N in OUTPUTS
        let weight$U$N = weight_quad(output$N, quad + $Uu * LANES);
#end
#end
#for M in ROWS
#for U in UNROLL
        let x$M$U = input_quad(row$M, quad + $Uu * LANES, factor$M);
#for N in OUTPUTS
        sum$M$N = accumulate(x$M$U, weight$U$N, sum$M$N);
#end
#end
#end
    }
    for (; quad < parameters.quads; quad += LANES) {
#for N in OUTPUTS
        let weight$N = weight_quad(output$N, quad);
#end
#for M in ROWS
        let x$M = input_quad(row$M, quad, factor$M);
#for N in OUTPUTS
        sum$M$N = accumulate(x$M, weight$N, sum$M$N);
#end
#end
    }
#end
#for M in ROWS
#for N in OUTPUTS
    lane_sums[($M * $OUTPUTSu + $N) * $WORKGROUPu + thread] = sum$M$N;
#end
#end
    workgroupBarrier();
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

fn sum_of_lanes(start: u32) -> f32 {
#for L in 8
    let pair$L = lane_sums[start + $Lu] + lane_sums[start + $Lu + 8u];
#end
    return ((pair0 + pair4) + (pair2 + pair6)) + ((pair1 + pair5) + (pair3 + pair7));
}
