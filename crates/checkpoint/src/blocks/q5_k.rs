//! Q5_K: `[scale f16][minimum f16][12 bytes of group scales and minima][32 bytes of fifth bits][128 bytes]`; as Q4_K,
//! with number i of group g topped by bit g of fifth byte i.

use super::Group;

pub(super) fn decode(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, minimum) = (super::scale(block, 0), super::scale(block, 2));
    let (scales, minima) = super::k_scales(&block[4..16]);
    let fifth = &block[16..48];
    let (groups, _) = out.as_chunks_mut::<32>();
    for (group, values) in groups.iter_mut().enumerate() {
        let (scale, minimum) = (scale * f32::from(scales[group]), minimum * f32::from(minima[group]));
        let shift = group % 2 * 4;
        let nibbles = &block[48 + group / 2 * 32..][..32];
        for ((byte, fifth), value) in nibbles.iter().zip(fifth).zip(values) {
            let number = (byte >> shift & 0x0f) | (fifth >> group & 1) << 4;
            *value = scale * f32::from(number) - minimum;
        }
    }
}

pub(super) fn groups(block: &[u8; 176]) -> [Group; 8] {
    let (scale, minimum) = (super::scale(block, 0), super::scale(block, 2));
    let (scales, minima) = super::k_scales(&block[4..16]);
    std::array::from_fn(|group| {
        let nibble = |i| block[48 + group / 2 * 32 + i] >> (group % 2 * 4) & 0x0f;
        Group {
            codes: std::array::from_fn(|i| (nibble(i) | (block[16 + i] >> group & 1) << 4) as i8),
            first: scale * f32::from(scales[group]),
            second: -(minimum * f32::from(minima[group])),
        }
    })
}
