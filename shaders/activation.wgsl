// Elementwise activation; with GATED, of the gates, times the values beside them.
//
// A thread takes one element of the result.
// Memory: reads and writes everything once.
// Limits: elements of the input below 2^32.

struct Parameters {
    elements: u32, // of the result
    width: u32,    // elements of a row of the result
}

@group(0) @binding(_) var<storage, read_write> x: array<Element>;   // [rows, width], GATED: [rows, 2, width]
@group(0) @binding(_) var<storage, read_write> out: array<Element>; // [rows, width]
@group(0) @binding(_) var<uniform> parameters: Parameters;

#if GELU_TANH
fn apply(x: Element) -> Element {
    let inner = 0.7978845608 * (x + 0.044715 * x * x * x); // √(2/π)
    // tanh through the exponential; beyond 10 it is 1 to the last bit.
    let tanh_inner = 1.0 - 2.0 / (exp(2.0 * clamp(inner, Element(-10.0), Element(10.0))) + 1.0);
    return 0.5 * x * (1.0 + tanh_inner);
}
#end
#if GELU_ERF
// erf with an absolute error below 1.5e-7 (Abramowitz and Stegun, 7.1.26).
fn apply(x: Element) -> Element {
    let z = abs(x) * 0.7071067812;
    let t = 1.0 / (1.0 + 0.3275911 * z);
    let p = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    let erf = sign(x) * (1.0 - p * exp(-z * z));
    return 0.5 * x * (1.0 + erf);
}
#end
#if SILU
fn apply(x: Element) -> Element {
    // Below -87 the exponential would overflow; the result is 0 to 36 places.
    return x / (1.0 + exp(min(-x, Element(87.0))));
}
#end
#if RELU
fn apply(x: Element) -> Element {
    return max(x, Element());
}
#end

@compute @workgroup_size($WORKGROUP)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = workgroup_index(id, count) * $WORKGROUPu + thread;
    if (at >= parameters.elements) {
        return;
    }
#if GATED
    let gate = at + at / parameters.width * parameters.width;
    out[at] = apply(x[gate]) * x[gate + parameters.width];
#else
    out[at] = apply(x[at]);
#end
}
