// The operands of a multiplication by a weight matrix, four inputs at a time (a quad), and the order of every sum.
//
// A product of a row of x with a row of weights is summed in LANES = 16 lanes: lane l takes the quads l, l + 16, …
// in ascending order, each with fused multiply-adds; the lanes are then added as a tree. Kernels divide the work as they
// like, but never change this order, so that a result has the same bits in every one of them.

struct Parameters {
    rows: u32,
    outputs: u32,
    inputs: u32,
    quads: u32,  // of a row: inputs / 4, rounded up; missing inputs count as 0
    strips: u32, // workgroups that share the outputs
}

const LANES = 16u;

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
#if BIAS
@group(0) @binding(_) var<storage, read_write> bias: array<f32>; // [outputs]
#end
@group(0) @binding(_) var<storage, read_write> out: array<f32>; // [rows, outputs]
@group(0) @binding(_) var<uniform> parameters: Parameters;

// One step of a lane.
fn accumulate(x: vec4<f32>, weight: vec4<f32>, sum: f32) -> f32 {
    return fma(x.w, weight.w, fma(x.z, weight.z, fma(x.y, weight.y, fma(x.x, weight.x, sum))));
}

fn store(row: u32, output: u32, sum: f32) {
    if (row < parameters.rows && output < parameters.outputs) {
#if BIAS
        out[row * parameters.outputs + output] = sum + bias[output];
#else
        out[row * parameters.outputs + output] = sum;
#end
    }
}

