//! Q6_K: `[128 bytes of low nibbles][64 bytes of high bit pairs][16 signed group scales][scale f16]`; groups of 16.
//! Each half of the block (128 numbers) is four runs of 32: run r takes its nibbles from bytes `r % 2 * 32..` (low for
//! runs 0 and 1, high for 2 and 3) and bit pair r of the half's 32 high bytes; less 32.

use super::Group;

pub(super) fn decode(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = super::scale(block, 208);
    let (runs, _) = out.as_chunks_mut::<32>();
    for (run, values) in runs.iter_mut().enumerate() {
        let (half, run_in_half) = (run / 4, run % 4);
        let nibbles = &block[half * 64 + run_in_half % 2 * 32..][..32];
        let pairs = &block[128 + half * 32..][..32];
        let (nibble_shift, pair_shift) = (run_in_half / 2 * 4, run_in_half * 2);
        let (groups, _) = values.as_chunks_mut::<16>();
        for (group, values) in groups.iter_mut().enumerate() {
            let scale = scale * f32::from(block[192 + run * 2 + group] as i8);
            for (i, value) in values.iter_mut().enumerate() {
                let (nibble, pair) = (nibbles[group * 16 + i] >> nibble_shift, pairs[group * 16 + i] >> pair_shift);
                let number = (nibble & 0x0f) | (pair & 3) << 4;
                *value = scale * f32::from(number as i8 - 32);
            }
        }
    }
}

pub(super) fn groups(block: &[u8; 210]) -> [Group; 8] {
    let scale = super::scale(block, 208);
    std::array::from_fn(|run| {
        let (half, run_in_half) = (run / 4, run % 4);
        let nibble = |i| block[half * 64 + run_in_half % 2 * 32 + i] >> (run_in_half / 2 * 4) & 0x0f;
        let pair = |i| block[128 + half * 32 + i] >> (run_in_half * 2) & 3;
        Group {
            codes: std::array::from_fn(|i| (nibble(i) | pair(i) << 4) as i8 - 32),
            first: scale * f32::from(block[192 + run * 2] as i8),
            second: scale * f32::from(block[192 + run * 2 + 1] as i8),
        }
    })
}
