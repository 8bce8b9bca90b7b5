// Multiplication by a weight matrix, summed as `common/product.wgsl` says.
//
// A workgroup takes ROWS rows and WORKGROUP / 16 * OUTPUTS outputs. Its 16 threads of a group are the lanes of ROWS by
// OUTPUTS products, kept in registers; they read 16 consecutive quads of a row at once, UNROLL times before they add.
// Memory: reads the weights once per ROWS rows and x once per workgroup, all but the first time from cache. Keeping
// tiles in the workgroup's memory instead was slower: on an NVIDIA H200, 2048 rows from 4096 inputs to 14336 outputs
// took 19.5 ms in tiles of 32 by 32, and take 10.9 ms with ROWS 8 and OUTPUTS 4; on lavapipe it was no faster either.
//
// With NORM, for few rows, the rows of x are normalised by their root mean square first: every workgroup finds the factors
// of its rows, in the order of rms_norm, which takes less time than another dispatch.
// Limits: ROWS * OUTPUTS at most 64 (16 KiB of workgroup memory).

#if NORM
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
#for M in ROWS
#for N in OUTPUTS
    lane_sums[($M * $OUTPUTSu + $N) * $WORKGROUPu + thread] = sum$M$N;
#end
#end
    workgroupBarrier();
    store_results(thread, first_row, first_output);
}
