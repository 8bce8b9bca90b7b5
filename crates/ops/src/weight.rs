//! A weight matrix on a device: dense, packed as a quantised file has it, or in FP8.

use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};
use bytes::Bytes;
use half::f16;

#[cfg(feature = "cuda")]
use crate::upload::{upload, upload_codes};

use crate::e4m3::{E4M3, decoded};
use crate::{Backend, backend_of, float_tensor, holds_packed_weights, tensor_bytes_max};

/// A weight matrix `[N, K]`: `N` outputs, `K` inputs, as Hugging Face stores linear layers.
///
/// A device limits the size of one tensor (on wgpu 128 MiB is all that is guaranteed), so a matrix may be held in parts:
/// consecutive ranges of its rows.
#[derive(Clone, Debug)]
pub struct Weight {
    parts: Vec<Part>,
}

/// Consecutive rows of a matrix.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a few for each layer, made once
pub(crate) enum Part {
    /// `[rows, K]` in a float dtype.
    Dense(Tensor<2>),
    /// `[rows, K / 32 * packing.words()]` 32-bit words.
    Packed(Tensor<2, Int>, Packing),
    /// `[rows, K]` [codes](crate::e4m3) of 8 bits, and `[rows]` factors: a number is its code's times the row's factor.
    Fp8(Tensor<2, Int>, Tensor<1>),
}

/// How quantised numbers lie: every 32 of a row are a group of one or two words of scales, then the codes, the first in the
/// lowest bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packing {
    /// The codes.
    pub codes: Codes,
    /// The words before them.
    pub scales: Scales,
}

/// What stands for a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codes {
    /// Unsigned, eight in a word.
    FourBits,
    /// Signed, four in a word.
    Bytes,
}

/// What makes numbers of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scales {
    /// One word: a scale, and above it what is added, in half precision.
    Halves,
    /// Two words: a scale, then what is added, in single precision. The scale has so few bits that its product with a code
    /// is exact (at most 17: a half times an integer of six bits, as in GGUF's Q4_K and Q5_K): whether a compiler fuses the
    /// addition with the multiplication, as NVIDIA's does on Vulkan, then makes no difference.
    Singles,
    /// Two words in single precision: the scale of the first 16 numbers, then that of the others.
    TwoRuns,
}

impl Packing {
    /// Numbers in a group.
    pub const GROUP: usize = 32;
    /// Every packing.
    pub const ALL: [Self; 6] = [
        Self { codes: Codes::FourBits, scales: Scales::Halves },
        Self { codes: Codes::FourBits, scales: Scales::Singles },
        Self { codes: Codes::FourBits, scales: Scales::TwoRuns },
        Self { codes: Codes::Bytes, scales: Scales::Halves },
        Self { codes: Codes::Bytes, scales: Scales::Singles },
        Self { codes: Codes::Bytes, scales: Scales::TwoRuns },
    ];

    /// Words of scales in a group.
    pub const fn scale_words(self) -> usize {
        if matches!(self.scales, Scales::Halves) { 1 } else { 2 }
    }

    /// Words of a group.
    pub const fn words(self) -> usize {
        let codes = match self.codes {
            Codes::FourBits => Self::GROUP / 8,
            Codes::Bytes => Self::GROUP / 4,
        };
        self.scale_words() + codes
    }

    /// The numbers of one group.
    fn numbers(self, group: &[u32]) -> [f32; Self::GROUP] {
        let (scales, codes) = group.split_at(self.scale_words());
        let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
        std::array::from_fn(|i| {
            let code = match self.codes {
                Codes::FourBits => (codes[i / 8] >> (i % 8 * 4) & 15) as f32,
                Codes::Bytes => f32::from((codes[i / 4] >> (i % 4 * 8)) as i8),
            };
            match self.scales {
                Scales::Halves => half(scales[0]) * code + half(scales[0] >> 16),
                Scales::Singles => f32::from_bits(scales[0]) * code + f32::from_bits(scales[1]),
                Scales::TwoRuns => f32::from_bits(scales[i / 16]) * code,
            }
        })
    }
}

impl Weight {
    /// A dense matrix in any float dtype of the device.
    pub fn dense(values: Tensor<2>) -> Self {
        Self { parts: vec![Part::Dense(values)] }
    }

    /// The matrix whose rows are those of the given ones, one after the other.
    pub fn join(matrices: Vec<Weight>) -> Self {
        let parts: Vec<Part> = matrices.into_iter().flat_map(|matrix| matrix.parts).collect();
        let columns = parts.first().expect("a matrix has a part").dims()[1];
        assert!(parts.iter().all(|part| part.dims()[1] == columns), "join: row length");
        Self { parts }
    }

    /// A matrix `[N, K]` from its bytes in row-major order, which are those of the pieces one after the other; in as many
    /// parts as the device wants.
    pub fn from_bytes(pieces: Vec<Bytes>, [rows, columns]: [usize; 2], (device, dtype): (&Device, DType)) -> Self {
        #[cfg(feature = "cuda")]
        if let Some(values) = upload(&pieces, [rows, columns], (device, dtype)) {
            return Self::dense(values);
        }
        let parts = in_parts(joined(pieces), [rows, columns], (device, dtype));
        Self { parts: parts.into_iter().map(|data| Part::Dense(kept(data, (device, dtype)))).collect() }
    }

    /// A quantised matrix `[N, K]` from its packed bytes, on a device that [holds such](holds_packed_weights).
    pub fn packed(pieces: Vec<Bytes>, [rows, columns]: [usize; 2], (device, packing): (&Device, Packing)) -> Self {
        assert!(holds_packed_weights(device), "packed: this device has dense weights only");
        assert!(columns.is_multiple_of(Packing::GROUP), "packed: {columns} inputs are not whole groups");
        let words = columns / Packing::GROUP * packing.words();
        let parts = in_parts(joined(pieces), [rows, words], (device, DType::I32));
        let part = |data| {
            let words =
                device.memory_persistent_allocations(data, |data| Tensor::from_data(data, (device, DType::I32)));
            Part::Packed(words, packing)
        };
        Self { parts: parts.into_iter().map(part).collect() }
    }

    /// A matrix `[N, K]` in FP8: the bytes of its [codes](crate::e4m3), and a scale for each row. Products with it are fast on
    /// devices that [hold such](crate::holds_fp8_weights); others compute them by the reference, and wgpu has no bytes.
    pub fn fp8(pieces: Vec<Bytes>, scales: Vec<f32>, [rows, columns]: [usize; 2], device: &Device) -> Self {
        assert!(backend_of(device) != Backend::Wgpu, "fp8: wgpu has no tensors of bytes");
        assert_eq!(scales.len(), rows, "fp8: a scale for each row");
        #[cfg(feature = "cuda")]
        if let Some(codes) = upload_codes(&pieces, [rows, columns], device) {
            return Self { parts: vec![Part::Fp8(codes, kept_vector(scales, device))] };
        }
        let mut scales = scales.into_iter();
        let part = |data: TensorData| {
            let scales = scales.by_ref().take(data.shape()[0]).collect();
            let codes = device.memory_persistent_allocations(data, |data| Tensor::from_data(data, (device, E4M3)));
            Part::Fp8(codes, kept_vector(scales, device))
        };
        Self { parts: in_parts(joined(pieces), [rows, columns], (device, E4M3)).into_iter().map(part).collect() }
    }

    /// `[N, K]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.parts.iter().map(|part| part.dims()[0]).sum(), self.parts[0].dims()[1]]
    }

    /// Bytes on the device.
    pub fn num_bytes(&self) -> usize {
        let bytes = |part: &Part| match part {
            Part::Dense(values) => values.dims().iter().product::<usize>() * values.dtype().size(),
            Part::Packed(words, _) => words.dims().iter().product::<usize>() * DType::I32.size(),
            Part::Fp8(codes, scales) => codes.dims().iter().product::<usize>() + scales.dims()[0] * DType::F32.size(),
        };
        self.parts.iter().map(bytes).sum()
    }

    /// Consecutive ranges of rows that make up the matrix.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The matrix as one dense tensor, if it is that.
    #[cfg(test)]
    pub(crate) fn single_dense(&self) -> Option<&Tensor<2>> {
        match &self.parts[..] {
            [Part::Dense(values)] => Some(values),
            _ => None,
        }
    }

    /// The matrix as 32-bit floats in plain tensor operations, for references; packed parts are read back.
    pub(crate) fn to_dense(&self) -> Tensor<2> {
        Tensor::cat(self.parts.iter().map(Part::to_dense).collect(), 0)
    }
}

impl Part {
    pub(crate) fn dims(&self) -> [usize; 2] {
        match self {
            Part::Dense(values) => values.dims(),
            Part::Packed(words, packing) => {
                let [rows, words] = words.dims();
                [rows, words / packing.words() * Packing::GROUP]
            }
            Part::Fp8(codes, _) => codes.dims(),
        }
    }

    /// As 32-bit floats in plain tensor operations.
    pub(crate) fn to_dense(&self) -> Tensor<2> {
        match self {
            Part::Dense(values) => values.clone().cast(DType::F32),
            Part::Packed(words, packing) => {
                let device = words.device();
                let words: Vec<i32> = words.clone().into_data().try_to_vec().expect("made of 32-bit integers");
                let words: Vec<u32> = words.into_iter().map(i32::cast_unsigned).collect();
                let values = words.chunks(packing.words()).flat_map(|group| packing.numbers(group)).collect();
                float_tensor(values, self.dims(), &device)
            }
            Part::Fp8(codes, scales) => decoded(codes.clone()) * scales.clone().unsqueeze_dim(1),
        }
    }
}

/// The pieces as one.
fn joined(mut pieces: Vec<Bytes>) -> Vec<u8> {
    match pieces.len() {
        1 => pieces.remove(0).into(),
        _ => pieces.concat(),
    }
}

/// Row-major bytes cut between rows into tensors that the device can hold.
fn in_parts(bytes: Vec<u8>, [rows, columns]: [usize; 2], (device, dtype): (&Device, DType)) -> Vec<TensorData> {
    let row_len = columns * dtype.size();
    assert_eq!(bytes.len(), rows * row_len, "a matrix from bytes: length");
    let rows_per_part = (tensor_bytes_max(device) / row_len.max(1)).max(1);
    let data = |bytes: Vec<u8>, rows: usize| TensorData::from_bytes_vec(bytes, Shape::from([rows, columns]), dtype);
    if rows <= rows_per_part {
        return vec![data(bytes, rows)];
    }
    let chunks = bytes.chunks(rows_per_part * row_len);
    chunks.map(|chunk| data(chunk.to_vec(), chunk.len() / row_len)).collect()
}

/// The vector in memory of its own.
fn kept_vector(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let length = values.len();
    device.memory_persistent_allocations(values, |values| float_tensor(values, [length], device))
}

/// The tensor in memory of its own: pages for activations would otherwise be as large as the largest weight.
fn kept(data: TensorData, (device, dtype): (&Device, DType)) -> Tensor<2> {
    device.memory_persistent_allocations(data, |data| Tensor::from_data(data, (device, dtype)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{for_each_device, weight_dtypes};

    #[test]
    fn a_matrix_from_bytes_holds_them_in_order() {
        for_each_device(|device| {
            for dtype in weight_dtypes(device) {
                let bytes: Vec<u8> = (0..15 * dtype.size()).map(|at| at as u8 % 60).collect();
                let pieces = vec![bytes[..4].to_vec().into(), bytes[4..].to_vec().into()];
                let weight = Weight::from_bytes(pieces, [5, 3], (device, dtype));
                assert_eq!((weight.dims(), weight.num_bytes()), ([5, 3], bytes.len()));
                let held = weight.single_dense().expect("one dense tensor").clone();
                assert_eq!(held.into_data().bytes().to_vec(), bytes);
            }
        });
    }

    #[test]
    fn codes_with_a_scale_for_each_row_stand_for_the_numbers_worked_out_by_hand() {
        for_each_device(|device| {
            if backend_of(device) == Backend::Wgpu {
                return; // which has no tensors of bytes
            }
            // 1, -1.5, 448 and the smallest, 2^-9, then 0, 2, -2 and 1.125.
            let pieces = vec![vec![0x38, 0xbc, 0x7e, 0x01, 0x00].into(), vec![0x40, 0xc0, 0x39].into()];
            let weight = Weight::fp8(pieces, vec![2.0, 0.25], [2, 4], device);
            assert_eq!((weight.dims(), weight.num_bytes()), ([2, 4], 8 + 2 * 4));
            let numbers: Vec<f32> = weight.to_dense().into_data().try_to_vec().expect("32-bit floats");
            assert_eq!(numbers, [2.0, -3.0, 896.0, 0.00390625, 0.0, 0.5, -0.5, 0.28125]);
        });
    }

    #[test]
    fn groups_give_the_numbers_worked_out_by_hand() {
        let halves = u32::from(f16::from_f32(0.5).to_bits()) | u32::from(f16::from_f32(-3.0).to_bits()) << 16;
        let four = Packing { codes: Codes::FourBits, scales: Scales::Halves };
        let numbers = four.numbers(&[halves, 0x0000_00f1, 0, 0, 0x7000_0000]);
        assert_eq!((numbers[0], numbers[1], numbers[2], numbers[31]), (-2.5, 4.5, -3.0, 0.5));
        let singles = Packing { codes: Codes::FourBits, scales: Scales::Singles };
        let group = [2.0f32.to_bits(), 1.0f32.to_bits(), 3, 0, 0, 0];
        assert_eq!(singles.numbers(&group)[..2], [7.0, 1.0]);
        let runs = Packing { codes: Codes::Bytes, scales: Scales::TwoRuns };
        let group = [2.0f32.to_bits(), 0.5f32.to_bits(), 0x0000_80ff, 0, 0, 0, 0, 0, 0, 0x0700_0000];
        let numbers = runs.numbers(&group);
        assert_eq!((numbers[0], numbers[1], numbers[31]), (-2.0, -256.0, 3.5));
    }
}
