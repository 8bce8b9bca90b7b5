//! Q8_0: `[scale f16][32 signed bytes]`.

pub(super) fn decode(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = super::scale(block, 0);
    for (byte, value) in block[2..].iter().zip(out) {
        *value = f32::from(*byte as i8) * scale;
    }
}
