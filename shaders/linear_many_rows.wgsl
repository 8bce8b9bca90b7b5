// Multiplication of many rows by a weight matrix, in tiles of 32 rows by 32 outputs.
//
// A workgroup of 256 threads takes one tile; its 16 threads of a cell, the lanes, share 8 rows by 8 outputs, each
// summing all 64 products over its own quads. A step reads 16 quads of the 32 rows on both sides into the workgroup's
// memory while the ones before are multiplied. At the end the lanes are added, 2 of the 8 rows at a time.
// Memory: reads the weights once per 32 rows and x once per 32 outputs.
// Limits: exactly 16 KiB of workgroup memory, WebGPU's guaranteed size; elements of the weights below 2^32.

const TILE = 32u;
const CELL = 8u;                    // rows and outputs of a cell
const CELLS = TILE / CELL;          // along each side
const WEIGHTS = TILE * LANES;       // where the weights begin in `tile`
const REST = $WORKGROUPu / LANES;   // rows of a tile that one read of all threads covers

var<workgroup> tile: array<vec4<f32>, 1024>; // [x: 32 rows, weights: 32 outputs][16 quads]

fn x_or_zero(row: u32, quad: u32) -> vec4<f32> {
    if (quad < parameters.quads) {
        return x_quad(min(row, parameters.rows - 1u), quad);
    }
    return vec4<f32>();
}

fn weight_or_zero(output: u32, quad: u32) -> vec4<f32> {
    if (quad < parameters.quads) {
        return weight_quad(min(output, parameters.outputs - 1u), quad);
    }
    return vec4<f32>();
}

@compute @workgroup_size($WORKGROUP)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_index(id, count);
    let first_row = index / parameters.strips * TILE;
    if (first_row >= parameters.rows) {
        return;
    }
    let first_output = index % parameters.strips * TILE;
    let lane = thread % LANES;
    let cell = thread / LANES;
    let cell_row = cell / CELLS * CELL;
    let cell_output = cell % CELLS * CELL;
#for M in 8
#for N in 8
    var sum$M$N = 0.0;
#end
#end
    var x_next0 = x_or_zero(first_row + cell, lane);
    var x_next1 = x_or_zero(first_row + cell + REST, lane);
    var weight_next0 = weight_or_zero(first_output + cell, lane);
    var weight_next1 = weight_or_zero(first_output + cell + REST, lane);
    for (var step = 0u; step < parameters.quads; step += LANES) {
        tile[thread] = x_next0;
        tile[thread + $WORKGROUPu] = x_next1;
        tile[WEIGHTS + thread] = weight_next0;
        tile[WEIGHTS + thread + $WORKGROUPu] = weight_next1;
        workgroupBarrier();
        let quad = step + LANES + lane;
        x_next0 = x_or_zero(first_row + cell, quad);
        x_next1 = x_or_zero(first_row + cell + REST, quad);
        weight_next0 = weight_or_zero(first_output + cell, quad);
        weight_next1 = weight_or_zero(first_output + cell + REST, quad);
#for M in 8
        let x$M = tile[(cell_row + $Mu) * LANES + lane];
#end
#for N in 8
        let weight$N = tile[WEIGHTS + (cell_output + $Nu) * LANES + lane];
#for M in 8
        sum$M$N = accumulate(x$M, weight$N, sum$M$N);
#end
#end
        workgroupBarrier();
    }
    // One row of every cell at a time: [2 quads of outputs][16 cells][16 lanes].
#for M in 8
    tile[thread] = vec4(sum$M0, sum$M1, sum$M2, sum$M3);
    tile[thread + $WORKGROUPu] = vec4(sum$M4, sum$M5, sum$M6, sum$M7);
    workgroupBarrier();
    if (thread < 2u * $WORKGROUPu / LANES) {
        let sums = sum_of_lanes(thread * LANES);
        let of_cell = thread % (CELLS * CELLS);
        let row = first_row + of_cell / CELLS * CELL + $Mu;
        let output = first_output + of_cell % CELLS * CELL + thread / (CELLS * CELLS) * 4u;
        store(row, output, sums.x);
        store(row, output + 1u, sums.y);
        store(row, output + 2u, sums.z);
        store(row, output + 3u, sums.w);
    }
    workgroupBarrier();
#end
}

fn sum_of_lanes(start: u32) -> vec4<f32> {
#for L in 8
    let pair$L = tile[start + $Lu] + tile[start + $Lu + 8u];
#end
    return ((pair0 + pair4) + (pair2 + pair6)) + ((pair1 + pair5) + (pair3 + pair7));
}
