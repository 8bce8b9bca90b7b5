//! Counter-based random numbers: a draw depends on its seed, position and token alone, in 32-bit arithmetic that every
//! backend has.

/// One uniform draw in `(0, 1)`, with 24 bits, for a candidate token.
pub(crate) fn uniform(seed: u64, position: u32, token: u32) -> f32 {
    let mut state = mix(token.wrapping_add(0x9e37_79b9));
    state = mix(state ^ position);
    state = mix(state ^ (seed >> 32) as u32);
    state = mix(state ^ seed as u32);
    ((state >> 8) as f32 + 0.5) / (1 << 24) as f32
}

/// A standard Gumbel draw; the largest of `logit + gumbel` is distributed as `softmax(logits)` (Gumbel, 1954).
pub(crate) fn gumbel(seed: u64, position: u32, token: u32) -> f32 {
    -(-uniform(seed, position, token).ln()).ln()
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
        let draws =
            (0..20u64).flat_map(|seed| (0..20).flat_map(move |at| (0..50).map(move |id| uniform(seed, at, id))));
        let mut counts = [0u32; 10];
        for draw in draws {
            assert!(draw > 0.0 && draw < 1.0);
            counts[(draw * 10.0) as usize] += 1;
        }
        // 20,000 draws: 2,000 expected in each tenth, standard deviation 42.
        assert!(counts.iter().all(|count| count.abs_diff(2000) < 210), "{counts:?}");
    }
}
