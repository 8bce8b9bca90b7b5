//! Counter-based random numbers and the two functions of them that sampling needs, with the same bits on every backend.
//!
//! A draw depends on its seed, position and token alone. Logarithm and exponential are polynomials (Moshier's Cephes) of
//! single multiplications and additions, because the functions that processors and GPUs bring differ in their last bits;
//! `kernels/sample.cu` and `shaders/sample.wgsl` do the same operations in the same order.

/// No Gumbel draw is larger: minus the logarithm of the smallest exponential draw, 2^-33, rounded up.
pub(super) const GUMBEL_MAX: f32 = 22.9;

/// The generator's state for one draw: what is left to mix in is the token.
pub(super) fn key(seed: u64, position: u32) -> [u32; 2] {
    let base = mix(mix((seed as u32).wrapping_add(0x9e37_79b9)) ^ (seed >> 32) as u32);
    let first = mix(base ^ position);
    [first, mix(first.wrapping_add(0x9e37_79b9) ^ base.rotate_left(16))]
}

/// 32 random bits for a candidate token: the finaliser of MurmurHash3, keyed before and between its rounds.
pub(super) fn bits([first, second]: [u32; 2], token: u32) -> u32 {
    let mut state = token ^ first;
    state ^= state >> 16;
    state = state.wrapping_mul(0x85eb_ca6b).wrapping_add(second);
    state ^= state >> 13;
    state = state.wrapping_mul(0xc2b2_ae35);
    state ^ (state >> 16)
}

/// A standard Gumbel draw; the largest of `logit + gumbel` is distributed as `softmax(logits)` (Gumbel, 1954).
///
/// Large draws come from small uniform ones, of which there are 2^32, so that a token among very many is not chosen more
/// often than its neighbour for want of distinct draws.
pub(super) fn gumbel(bits: u32) -> f32 {
    let uniform = (bits as f32 * (1.0 / 4_294_967_296.0) + 1.0 / 8_589_934_592.0).min(1.0 - 1.0 / 16_777_216.0);
    let exponential = if uniform < 1.0 / 64.0 {
        // -ln(1 - uniform), where subtracting from one would lose the digits.
        let series = uniform * 0.25 + 0.333_333_34;
        let series = uniform * series + 0.5;
        uniform * (uniform * series) + uniform
    } else {
        -ln(1.0 - uniform)
    };
    -ln(exponential)
}

/// The natural logarithm of a normal positive number.
pub(super) fn ln(x: f32) -> f32 {
    // x = 2^exponent * (1 + r), with 1 + r between the square roots of 1/2 and 2.
    let exponent = (x.to_bits() as i32).wrapping_sub(0x3f35_04f3) >> 23;
    let r = f32::from_bits((x.to_bits() as i32).wrapping_sub(exponent << 23) as u32) - 1.0;
    let exponent = exponent as f32;
    let square = r * r;
    let coefficients = [
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let series = coefficients.iter().fold(7.037_683_6e-2f32, |series, coefficient| series * r + coefficient);
    let low = series * r * square + exponent * -2.121_944_4e-4;
    let low = low + square * -0.5;
    (r + low) + exponent * 0.693_359_4
}

/// `exp(difference)` in units of 2^-31, for a difference that is not positive: integers add up to the same sum in any
/// order.
pub(super) fn weight(difference: f32) -> u32 {
    if difference < -22.0 {
        return 0;
    }
    let power = (difference * std::f32::consts::LOG2_E + 0.5).floor();
    let r = difference - power * 0.693_359_4;
    let r = r - power * -2.121_944_4e-4;
    let coefficients = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.0e-1];
    let series = coefficients.iter().fold(1.987_569_1e-4f32, |series, coefficient| series * r + coefficient);
    let mantissa = series * (r * r) + r;
    let scale = f32::from_bits(((power as i32 + 31 + 127) as u32) << 23);
    ((mantissa + 1.0) * scale + 0.5) as u32
}

/// The finaliser of MurmurHash3: every input bit changes every output bit with probability one half.
fn mix(mut state: u32) -> u32 {
    state ^= state >> 16;
    state = state.wrapping_mul(0x85eb_ca6b);
    state ^= state >> 13;
    state = state.wrapping_mul(0xc2b2_ae35);
    state ^ (state >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_uniform_over_tokens_positions_and_seeds() {
        let mut counts = [0u32; 10];
        for seed in 0..20u64 {
            for position in 0..20 {
                let key = key((seed << 40) | seed, position);
                (0..50).for_each(|token| counts[((u64::from(bits(key, token)) * 10) >> 32) as usize] += 1);
            }
        }
        // 20,000 draws: 2,000 expected in each tenth, standard deviation 42.
        assert!(counts.iter().all(|count| count.abs_diff(2000) < 210), "{counts:?}");
    }

    #[test]
    fn gumbel_draws_follow_their_definition_to_both_ends() {
        for bits in [0u32, 1, 2, 255, 1 << 16, (1 << 26) - 1, 1 << 26, 1 << 30, 1 << 31, u32::MAX - 255, u32::MAX] {
            let uniform = ((f64::from(bits) + 0.5) / 4_294_967_296.0).min(1.0 - 1.0 / 16_777_216.0);
            let expected = -(-(-uniform).ln_1p()).ln();
            let got = gumbel(bits);
            assert!((f64::from(got) - expected).abs() < 2e-5, "{bits}: {got} for {expected}");
            assert!(got <= GUMBEL_MAX);
        }
    }

    #[test]
    fn logarithms_and_weights_are_right_to_their_last_digits() {
        let mut x = 1.2e-10f32;
        while x < 30.0 {
            let expected = f64::from(x).ln();
            assert!((f64::from(ln(x)) - expected).abs() <= 2e-7 * expected.abs().max(1.0), "ln {x}");
            let difference = -x.min(21.0);
            let expected = f64::from(difference).exp() * 2_147_483_648.0;
            let got = f64::from(weight(difference));
            assert!((got - expected).abs() <= 2e-7 * expected + 0.5, "exp {difference}: {got} for {expected}");
            x *= 1.013;
        }
        assert_eq!((weight(0.0), weight(-30.0), weight(f32::NEG_INFINITY)), (1 << 31, 0, 0));
    }
}
