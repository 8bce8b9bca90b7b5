// The activations, of whatever the including text calls a `Value`: floats or vectors of them.
#if GELU_TANH
fn apply(x: Value) -> Value {
    let inner = 0.7978845608 * (x + 0.044715 * x * x * x); // √(2/π)
    // tanh through the exponential; beyond 10 it is 1 to the last bit.
    let tanh_inner = 1.0 - 2.0 / (exp(2.0 * clamp(inner, Value(-10.0), Value(10.0))) + 1.0);
    return 0.5 * x * (1.0 + tanh_inner);
}
#end
#if GELU_ERF
// erf with an absolute error below 1.5e-7 (Abramowitz and Stegun, 7.1.26).
fn apply(x: Value) -> Value {
    let z = abs(x) * 0.7071067812;
    let t = 1.0 / (1.0 + 0.3275911 * z);
    let p = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    let erf = sign(x) * (1.0 - p * exp(-z * z));
    return 0.5 * x * (1.0 + erf);
}
#end
#if SILU
fn apply(x: Value) -> Value {
    // Below -87 the exponential would overflow; the result is 0 to 36 places.
    return x / (1.0 + exp(min(-x, Value(87.0))));
}
#end
#if RELU
fn apply(x: Value) -> Value {
    return max(x, Value());
}
#end
