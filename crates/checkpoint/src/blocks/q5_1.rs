//! Q5_1: `[scale f16][minimum f16][32 fifth bits][16 bytes]`; as Q5_0, unsigned above the minimum.

use super::Group;

pub(super) fn decode(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (super::scale(block, 0), super::scale(block, 2));
    let fifth = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for i in 0..16 {
        let byte = block[8 + i];
        let low = (byte & 0x0f) | ((fifth >> i & 1) as u8) << 4;
        let high = (byte >> 4) | ((fifth >> (16 + i) & 1) as u8) << 4;
        out[i] = scale * f32::from(low) + minimum;
        out[16 + i] = scale * f32::from(high) + minimum;
    }
}

pub(super) fn groups(block: &[u8; 24]) -> [Group; 1] {
    let codes = super::five_bits(&block[8..], &block[4..8]);
    [Group { codes, first: super::scale(block, 0), second: super::scale(block, 2) }]
}
