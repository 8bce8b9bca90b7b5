// Draws and weights, which have the bits of `crates/ops/src/sample/random.rs`, unless the adapter contracts multiply-adds.

fn natural_log(x: f32) -> f32 {
    let bits = bitcast<i32>(x);
    let shift = (bits - 0x3f3504f3) >> 23u;
    let r = bitcast<f32>(bits - (shift << 23u)) - 1.0;
    let exponent = f32(shift);
    let square = r * r;
    var series = 7.0376836e-2 * r + -1.151461e-1;
    series = series * r + 1.16769984e-1;
    series = series * r + -1.2420141e-1;
    series = series * r + 1.4249323e-1;
    series = series * r + -1.6668057e-1;
    series = series * r + 2.0000715e-1;
    series = series * r + -2.4999994e-1;
    series = series * r + 3.333333e-1;
    var low = series * r * square + exponent * -2.1219444e-4;
    low += square * -0.5;
    return (r + low) + exponent * 0.6933594;
}

fn uniform_of(bits: u32) -> f32 {
    return min(f32(bits) * (1.0 / 4294967296.0) + 1.0 / 8589934592.0, 1.0 - 1.0 / 16777216.0);
}

fn gumbel(draw: f32) -> f32 {
    if (draw < 1.0 / 64.0) {
        var series = draw * 0.25 + 0.33333334;
        series = draw * series + 0.5;
        return -natural_log(draw * (draw * series) + draw);
    }
    return -natural_log(-natural_log(1.0 - draw));
}

fn weight(difference: f32) -> u32 {
    if (difference < -22.0) {
        return 0u;
    }
    let power = floor(difference * 1.44269504 + 0.5);
    var r = difference - power * 0.6933594;
    r -= power * -2.1219444e-4;
    var series = 1.9875691e-4 * r + 1.3982e-3;
    series = series * r + 8.333452e-3;
    series = series * r + 4.1665796e-2;
    series = series * r + 1.6666665e-1;
    series = series * r + 5.0e-1;
    let mantissa = series * (r * r) + r + 1.0;
    return u32(mantissa * bitcast<f32>(u32(i32(power) + 31 + 127) << 23u) + 0.5);
}
