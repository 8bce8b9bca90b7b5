// Multiplication of a few rows by a weight matrix: reading the weights once is all that matters.
//
// A workgroup takes ROWS rows and WORKGROUP / 16 * OUTPUTS outputs; 16 threads, the lanes, share OUTPUTS outputs, and
// read 16 consecutive quads of a row of weights at once.
// Memory: reads the weights once per ROWS rows, and x once per workgroup, from cache.
// Limits: elements of the weights below 2^32.

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
    let first_output = index % parameters.strips * ($WORKGROUPu / LANES * $OUTPUTSu);
    // Rows and outputs past the end are computed again from the last one, and not stored.
#for M in ROWS
    let row$M = min(first_row + $Mu, parameters.rows - 1u);
#end
#for N in OUTPUTS
    let output$N = min(first_output + thread / LANES * $OUTPUTSu + $Nu, parameters.outputs - 1u);
#end
#for M in ROWS
#for N in OUTPUTS
    var sum$M$N = 0.0;
#end
#end
    var quad = thread % LANES;
    // Several reads under way at once.
    for (; quad + ($UNROLLu - 1u) * LANES < parameters.quads; quad += $UNROLLu * LANES) {
#for U in UNROLL
#for N in OUTPUTS
        let weight$U$N = weight_quad(output$N, quad + $Uu * LANES);
#end
#end
#for M in ROWS
#for U in UNROLL
        let x$M$U = x_quad(row$M, quad + $Uu * LANES);
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
        let x$M = x_quad(row$M, quad);
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
    // [ROWS, OUTPUTS, WORKGROUP / 16] results, one to a thread.
    let groups = $WORKGROUPu / LANES;
    for (var at = thread; at < $ROWSu * $OUTPUTSu * groups; at += $WORKGROUPu) {
        let row = first_row + at / (groups * $OUTPUTSu);
        let output = first_output + at % groups * $OUTPUTSu + at / groups % $OUTPUTSu;
        store(row, output, sum_of_lanes(at * LANES));
    }
}

fn sum_of_lanes(start: u32) -> f32 {
#for L in 8
    let pair$L = lane_sums[start + $Lu] + lane_sums[start + $Lu + 8u];
#end
    return ((pair0 + pair4) + (pair2 + pair6)) + ((pair1 + pair5) + (pair3 + pair7));
}
