// Multiplication of few rows of few inputs by a weight matrix, summed as `common/product.wgsl` says.
//
// A workgroup takes ROWS rows and WORKGROUP / 16 * OUTPUTS outputs, as in `linear.wgsl`. Such a product waits for memory more
// than it computes. So its rows are read once, by all threads together, into the workgroup's memory, normalised on the way
// (NORM); and a lane reads the weights of UNROLL quads at once, the first ones before it waits for the rows.
// Workgroups that share weights are neighbours, so that the weights come from cache for all but the first.
// With NORM a row's root mean square is summed in the order of rms_norm: CHAINS sums of the quads of every
// CHAINS * WORKGROUP-th thread, STEPS long.
// Limits: ROWS rows of inputs and 64 * ROWS * OUTPUTS floats within 16 KiB of workgroup memory.

var<workgroup> staged: array<vec4<f32>, $STAGED_QUADS * $ROWS>; // [ROWS, STAGED_QUADS]

@compute @workgroup_size($WORKGROUP)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_index(id, count);
    let row_groups = (parameters.rows + $ROWSu - 1u) / $ROWSu;
    let strip = index / row_groups;
    if (strip >= parameters.strips) {
        return;
    }
    let first_row = index % row_groups * $ROWSu;
    let first_output = strip * ($WORKGROUPu / LANES * $COLUMNSu);
    // Rows, outputs and quads past the end are those at the end, and not stored or added.
    let last = parameters.quads - 1u;
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
#for U in UNROLL
#for N in OUTPUTS
    var weight$U$N = weight_quad(output$N, min(lane + $Uu * LANES, last));
#end
#end
#for C in CHAINS
#for S in STEPS
    let place$C$S = thread + ($Su * $CHAINSu + $Cu) * $WORKGROUPu;
#for M in ROWS
    var x$M$C$S = x_quad(row$M, min(place$C$S, last));
#end
#if NORM
    let norm$C$S = norm_weight[min(place$C$S, last)];
#end
#end
#end
#if NORM
#for M in ROWS
#for C in CHAINS
    var squares$M$C = vec4<f32>();
#for S in STEPS
    squares$M$C = select(squares$M$C, fma(x$M$C$S, x$M$C$S, squares$M$C), place$C$S <= last);
#end
    let square$M$C = (squares$M$C.x + squares$M$C.y) + (squares$M$C.z + squares$M$C.w);
#end
#if FOLDED
    lane_sums[$M * $WORKGROUPu + thread] = (square$M0 + square$M2) + (square$M1 + square$M3);
#else
    lane_sums[$M * $WORKGROUPu + thread] = square$M0;
#end
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
#for C in CHAINS
#for S in STEPS
    x$M$C$S = x$M$C$S * factor$M * norm$C$S;
#end
#end
#end
#end
#for M in ROWS
#for C in CHAINS
#for S in STEPS
    if (place$C$S <= last) {
        staged[$Mu * $STAGED_QUADSu + place$C$S] = x$M$C$S;
    }
#end
#end
#end
    workgroupBarrier(); // after which `lane_sums` may be written again, too
#for M in ROWS
#for N in OUTPUTS
    var sum$M$N = 0.0;
#end
#end
#for R in ROUNDS
#for U in UNROLL
#for M in ROWS
    let input$R$U$M = staged[$Mu * $STAGED_QUADSu + min(lane + ($Ru * $UNROLLu + $Uu) * LANES, last)];
#for N in OUTPUTS
    sum$M$N = select(
        sum$M$N,
        accumulate(input$R$U$M, weight$U$N, sum$M$N),
        lane + ($Ru * $UNROLLu + $Uu) * LANES <= last,
    );
#end
#end
    // For the next round; compilers leave out the reads after the last one.
#for N in OUTPUTS
    weight$U$N = weight_quad(output$N, min(lane + (($Ru + 1u) * $UNROLLu + $Uu) * LANES, last));
#end
#end
#end
#for M in ROWS
#for N in OUTPUTS
    lane_sums[($M * $OUTPUTSu + $N) * $WORKGROUPu + thread] = sum$M$N;
#end
#end
    workgroupBarrier();
    store_results(thread, first_row, first_output);
}
