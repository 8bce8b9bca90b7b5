//! Q4_K: `[scale f16][minimum f16][12 bytes of group scales and minima][128 bytes]`; eight groups of 32.
//! Each 32 bytes hold two groups: the low nibbles, then the high ones.

use super::Group;

pub(super) fn decode(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, minimum) = (super::scale(block, 0), super::scale(block, 2));
    let (scales, minima) = super::k_scales(&block[4..16]);
    let (groups, _) = out.as_chunks_mut::<32>();
    for (group, values) in groups.iter_mut().enumerate() {
        let (scale, minimum) = (scale * f32::from(scales[group]), minimum * f32::from(minima[group]));
        let shift = group % 2 * 4;
        let nibbles = &block[16 + group / 2 * 32..][..32];
        for (byte, value) in nibbles.iter().zip(values) {
            *value = scale * f32::from(byte >> shift & 0x0f) - minimum;
        }
    }
}

pub(super) fn groups(block: &[u8; 144]) -> [Group; 8] {
    let (scale, minimum) = (super::scale(block, 0), super::scale(block, 2));
    let (scales, minima) = super::k_scales(&block[4..16]);
    std::array::from_fn(|group| Group {
        codes: std::array::from_fn(|i| (block[16 + group / 2 * 32 + i] >> (group % 2 * 4) & 0x0f) as i8),
        first: scale * f32::from(scales[group]),
        second: -(minimum * f32::from(minima[group])),
    })
}
