//! Q8_0: `[scale f16][32 signed bytes]`.

use super::Group;

pub(super) fn decode(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = super::scale(block, 0);
    for (byte, value) in block[2..].iter().zip(out) {
        *value = f32::from(*byte as i8) * scale;
    }
}

pub(super) fn groups(block: &[u8; 34]) -> [Group; 1] {
    [Group { codes: std::array::from_fn(|i| block[2 + i] as i8), first: super::scale(block, 0), second: 0.0 }]
}
