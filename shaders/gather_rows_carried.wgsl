// Tokens that the step before has chosen: tokens[t] = choices[sources[t] - 1] where sources[t] > 0.
//
// A thread takes one token. Memory: reads a source and at most one choice of each, writes at most one token.
// Limits: tokens below 2^32.

struct Parameters {
    tokens: u32,
}

@group(0) @binding(_) var<storage, read_write> tokens: array<i32>;
@group(0) @binding(_) var<storage, read_write> sources: array<i32>; // [tokens]
@group(0) @binding(_) var<storage, read_write> choices: array<i32>;
@group(0) @binding(_) var<uniform> parameters: Parameters;

@compute @workgroup_size($WORKGROUP)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = workgroup_index(id, count) * $WORKGROUPu + thread;
    if (at < parameters.tokens && sources[at] > 0) {
        tokens[at] = choices[sources[at] - 1];
    }
}
