//! FP8 with 4 bits of exponent and 3 of fraction, without infinities (OCP 8-bit floating point, E4M3): one byte of a KV cache,
//! or of a weight.
//!
//! Numbers are rounded to the nearest code, ties to even ones; those beyond the largest, 448, become it. That is what
//! `cvt.rn.satfinite.e4m3x2.f32` does on NVIDIA GPUs.

use burn::tensor::{DType, Int, Tensor};

use crate::float_tensor;

/// The dtype of a KV cache of such codes: bytes. Tensors have no floats of 8 bits.
pub const E4M3: DType = DType::U8;

/// Codes of the largest number and of "not a number"; the eighth bit is the sign.
const LARGEST: u32 = 0x7e;
const NOT_A_NUMBER: u8 = 0x7f;
const LARGEST_NUMBER: f32 = 448.0;
/// Rows whose largest magnitude is below this are zeros: 448 divided by it would not be a number.
const SMALLEST_LARGEST: f32 = 1e-30;
/// Bits of the fraction of 32-bit floats that codes do not have.
const FRACTION_BITS_LOST: u32 = 20;
/// What the exponents of 32-bit floats are larger by, in place.
const EXPONENT_OFFSET: u32 = (127 - 7) << 3;
/// The smallest number with a whole fraction, and the numbers below it in units of the smallest.
const SMALLEST_NORMAL: f32 = 0.015625;
const UNITS_PER_ONE: f32 = 512.0;

/// The number of a code. Without branches, so that a loop over codes becomes one over vectors of them.
#[inline(always)]
pub fn decode(code: u8) -> f32 {
    let sign = (u32::from(code) >> 7) << 31;
    let magnitude = u32::from(code) & 0x7f;
    let whole = (magnitude + EXPONENT_OFFSET) << FRACTION_BITS_LOST;
    let units = (magnitude as i32 as f32 * (1.0 / UNITS_PER_ONE)).to_bits();
    let bits = if magnitude < 8 { units } else { whole };
    let bits = if magnitude == u32::from(NOT_A_NUMBER) { f32::NAN.to_bits() } else { bits };
    f32::from_bits(sign | bits)
}

/// The code of the number that is nearest.
pub fn encode(value: f32) -> u8 {
    let (sign, magnitude) = ((value.to_bits() >> 24) as u8 & 0x80, value.abs());
    if value.is_nan() {
        return NOT_A_NUMBER;
    }
    if magnitude < SMALLEST_NORMAL {
        return sign | (magnitude * UNITS_PER_ONE).round_ties_even() as u8;
    }
    let bits = magnitude.to_bits();
    let half = (1 << (FRACTION_BITS_LOST - 1)) - 1 + (bits >> FRACTION_BITS_LOST & 1);
    sign | (((bits + half) >> FRACTION_BITS_LOST) - EXPONENT_OFFSET).min(LARGEST) as u8
}

/// Rounds a row to codes of one scale, which it returns: a number becomes about its code's times the scale, the largest
/// magnitude the largest code's. As `linear_quantize.cu` does it.
///
/// # Panics
/// When there are not as many codes as numbers.
pub fn quantise_row(values: &[f32], codes: &mut [u8]) -> f32 {
    assert_eq!(values.len(), codes.len(), "quantise_row: lengths");
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    if largest < SMALLEST_LARGEST {
        codes.fill(0);
        return 1.0;
    }
    let per_unit = LARGEST_NUMBER / largest;
    for (code, value) in codes.iter_mut().zip(values) {
        *code = encode(value * per_unit);
    }
    largest / LARGEST_NUMBER
}

/// The numbers of a tensor of codes, in plain tensor operations.
pub(crate) fn decoded<const D: usize>(codes: Tensor<D, Int>) -> Tensor<D> {
    let (shape, device) = (codes.dims(), codes.device());
    let numbers = float_tensor((0..=255).map(decode).collect(), [256], &device);
    numbers.select(0, codes.cast(DType::I32).reshape([-1])).reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of a code by the words of the specification.
    fn specified(code: u8) -> f64 {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
        let magnitude =
            if exponent == 0 { fraction * 2f64.powi(-6) } else { (1.0 + fraction) * 2f64.powi(exponent - 7) };
        if code >= 0x80 { -magnitude } else { magnitude }
    }

    fn numbers() -> impl Iterator<Item = u8> {
        (0..=255).filter(|code| code & 0x7f != NOT_A_NUMBER)
    }

    #[test]
    fn every_code_has_the_number_of_the_specification_and_every_number_its_code() {
        for code in numbers() {
            let number = decode(code);
            assert_eq!(f64::from(number), specified(code), "{code:#x}");
            assert_eq!(number.is_sign_negative(), code >= 0x80, "{code:#x}");
            assert_eq!(encode(number), code);
        }
        assert_eq!((decode(0x7e), decode(0x08), decode(0x01)), (448.0, 0.015625, 0.001953125));
        assert!(decode(0x7f).is_nan() && decode(0xff).is_nan());
        assert_eq!([f32::NAN, -f32::NAN].map(encode), [0x7f; 2]);
    }

    #[test]
    fn numbers_between_two_codes_go_to_the_nearer_and_ties_to_the_even_one() {
        for code in (0..LARGEST as u8).flat_map(|code| [code, code | 0x80]) {
            let (low, high) = (decode(code), decode(code + 1));
            let tie = (low + high) / 2.0;
            let towards = |bits: u32| f32::from_bits(bits);
            assert_eq!(encode(tie), code + (code & 1), "the tie after {code:#x}");
            assert_eq!(encode(towards(tie.to_bits() - 1)), code, "just before it");
            assert_eq!(encode(towards(tie.to_bits() + 1)), code + 1, "just after it");
        }
    }

    #[test]
    fn a_row_keeps_its_largest_and_every_number_to_a_sixteenth() {
        let row = |values: &[f32]| {
            let mut codes = vec![0; values.len()];
            let scale = quantise_row(values, &mut codes);
            (codes, scale)
        };
        assert_eq!(row(&[0.5, -3.5, 0.0, 1.75]), (vec![0x68, 0xfe, 0x00, 0x76], 3.5 / 448.0));
        assert_eq!(row(&[0.0, -0.0]), (vec![0, 0], 1.0));
        assert_eq!(row(&[1e-35, 0.0]), (vec![0, 0], 1.0));
        let values: Vec<f32> = (1..=1000).map(|at| at as f32 * if at % 3 == 0 { -0.01 } else { 0.01 }).collect();
        let (codes, scale) = row(&values);
        for (value, code) in values.iter().zip(codes) {
            // Half a unit of the fraction's last place, or of the smallest number.
            let tolerance = (value.abs() / 16.0).max(scale / 1024.0) * 1.000_001;
            assert!((decode(code) * scale - value).abs() <= tolerance, "{value} became {}", decode(code) * scale);
        }
    }

    #[test]
    fn numbers_beyond_the_largest_become_it() {
        for large in [448.0, 449.0, 464.0, 465.0, 480.0, 1e9, f32::MAX, f32::INFINITY] {
            assert_eq!((encode(large), encode(-large)), (0x7e, 0xfe), "{large}");
        }
        assert_eq!((encode(1e-9), encode(-1e-9), encode(f32::MIN_POSITIVE)), (0, 0x80, 0));
    }
}
