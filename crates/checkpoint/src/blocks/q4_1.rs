//! Q4_1: `[scale f16][minimum f16][16 bytes]`; nibbles as in Q4_0, unsigned above the minimum.

use super::Group;

pub(super) fn decode(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (super::scale(block, 0), super::scale(block, 2));
    for i in 0..16 {
        let byte = block[4 + i];
        out[i] = scale * f32::from(byte & 0x0f) + minimum;
        out[16 + i] = scale * f32::from(byte >> 4) + minimum;
    }
}

pub(super) fn groups(block: &[u8; 20]) -> [Group; 1] {
    [Group { codes: super::nibbles(&block[4..]), first: super::scale(block, 0), second: super::scale(block, 2) }]
}
