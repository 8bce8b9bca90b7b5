//! Q5_0: `[scale f16][32 fifth bits][16 bytes]`; nibbles as in Q4_0, topped by the fifth bits, less 16.

use super::Group;

pub(super) fn decode(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = super::scale(block, 0);
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for i in 0..16 {
        let byte = block[6 + i];
        let low = (byte & 0x0f) | ((fifth >> i & 1) as u8) << 4;
        let high = (byte >> 4) | ((fifth >> (16 + i) & 1) as u8) << 4;
        out[i] = scale * f32::from(low as i8 - 16);
        out[16 + i] = scale * f32::from(high as i8 - 16);
    }
}

pub(super) fn groups(block: &[u8; 22]) -> [Group; 1] {
    let codes = super::five_bits(&block[6..], &block[2..6]).map(|code| code - 16);
    [Group { codes, first: super::scale(block, 0), second: 0.0 }]
}
