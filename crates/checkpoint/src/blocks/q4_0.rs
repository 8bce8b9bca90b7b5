//! Q4_0: `[scale f16][16 bytes]`; number i is in the low nibble of byte i, number 16 + i in the high one, less 8.

use super::Group;

pub(super) fn decode(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = super::scale(block, 0);
    for i in 0..16 {
        let byte = block[2 + i];
        out[i] = scale * f32::from((byte & 0x0f) as i8 - 8);
        out[16 + i] = scale * f32::from((byte >> 4) as i8 - 8);
    }
}

pub(super) fn groups(block: &[u8; 18]) -> [Group; 1] {
    let scale = super::scale(block, 0);
    [Group { codes: super::nibbles(&block[2..]), first: scale, second: -8.0 * scale }]
}
