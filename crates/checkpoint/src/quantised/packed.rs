//! Integers of 4 or 8 bits in 32-bit words, with a scale and a zero point for each group of inputs of an output: the
//! formats of GPTQ, AWQ and compressed-tensors.

use super::parts::{FLOATS, Part, Parts};
use crate::blocks::Group;
use crate::error::Fault;
use crate::file::ModelFile;
use crate::packed::{Codes, PackedForm};
use safetensors::Dtype;

const WORDS: [Dtype; 1] = [Dtype::I32];
const WORD_BITS: usize = 32;
/// The place of each of 8 outputs in a word of AWQ.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Where in the words the integer of an output and an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// `[in / n, out]`: a word has n inputs of an output.
    Gptq,
    /// `[in, out / n]`: a word has n outputs of an input.
    Awq,
    /// `[out, in / n]`: a word has n inputs of an output.
    Rows,
}

/// How integers are packed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PackedFormat {
    pub(super) order: Order,
    /// 4 or 8.
    pub(super) bits: usize,
    /// Added to stored zero points: 1 in the first version of GPTQ's format.
    pub(super) zero_offset: i32,
}

/// A weight `(integer - zero) · scale`.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    /// `[out, in]`.
    pub(super) shape: [usize; 2],
    format: PackedFormat,
    groups: usize,
    parts: Parts,
    names: Names,
}

/// A weight's parts, read but for the words.
struct Opened<'a> {
    words: &'a [[u8; 4]],
    format: PackedFormat,
    shape: [usize; 2],
    /// `[groups, out]`.
    scales: Vec<f32>,
    zeros: Vec<i32>,
    group_of_input: Vec<usize>,
}

impl Opened<'_> {
    fn integer(&self, output: usize, input: usize) -> i32 {
        let ([outputs, inputs], PackedFormat { order, bits, .. }) = (self.shape, self.format);
        let in_word = WORD_BITS / bits;
        let (at, place) = match order {
            Order::Gptq => (input / in_word * outputs + output, input % in_word),
            Order::Awq => (input * (outputs / in_word) + output / in_word, AWQ_PLACES[output % in_word]),
            Order::Rows => (output * (inputs / in_word) + input / in_word, input % in_word),
        };
        (u32::from_le_bytes(self.words[at]) >> (place * bits) & ((1 << bits) - 1)) as i32
    }
}

/// What the formats call the parts.
#[derive(Clone, Copy, Debug)]
struct Names {
    words: &'static str,
    scales: &'static str,
    zeros: &'static str,
    /// Of each input: to which group it belongs.
    group_of_input: &'static str,
}

const GPTQ_NAMES: Names = Names { words: "qweight", scales: "scales", zeros: "qzeros", group_of_input: "g_idx" };
const ROWS_NAMES: Names = Names {
    words: "weight_packed",
    scales: "weight_scale",
    zeros: "weight_zero_point",
    group_of_input: "weight_g_idx",
};

impl Packed {
    pub(super) fn new(format: PackedFormat, parts: Parts) -> Result<Self, Fault> {
        let names = if format.order == Order::Rows { ROWS_NAMES } else { GPTQ_NAMES };
        let words = parts.of_format(names.words, &WORDS)?;
        let scales = parts.of_format(names.scales, &FLOATS)?;
        let [first, second] = pair(&parts, names.words, words)?;
        let [scale_rows, scale_columns] = pair(&parts, names.scales, scales)?;
        let in_word = WORD_BITS / format.bits;
        let (outputs, inputs, groups) = match format.order {
            Order::Gptq => (second, first.saturating_mul(in_word), scale_rows),
            Order::Awq => (second.saturating_mul(in_word), first, scale_rows),
            Order::Rows => (first, second.saturating_mul(in_word), scale_columns),
        };
        let packed = Self { shape: [outputs, inputs], format, groups, parts, names };
        packed.check()?;
        Ok(packed)
    }

    /// The other parts fit the words.
    fn check(&self) -> Result<(), Fault> {
        let (Self { groups, parts, names, .. }, [outputs, inputs]) = (self, self.shape);
        let in_word = WORD_BITS / self.format.bits;
        let (scales, zeros) = match self.format.order {
            Order::Rows => ([outputs, *groups], [outputs.div_ceil(in_word), *groups]),
            _ => ([*groups, outputs], [*groups, outputs.div_ceil(in_word)]),
        };
        parts.required(names.scales, &FLOATS, &scales)?;
        // Without zero points the integers are symmetric around the middle.
        if self.format.order != Order::Rows || parts.optional(names.zeros).is_some() {
            parts.required(names.zeros, &WORDS, &zeros)?;
        }
        match parts.optional(names.group_of_input) {
            Some(_) => parts.required(names.group_of_input, &WORDS, &[inputs]).map(drop),
            None if inputs.is_multiple_of(*groups) => Ok(()),
            None => Err(parts.fault(names.scales, format!("has {groups} groups, which do not divide {inputs} inputs"))),
        }
    }

    /// Writes rows of the weight, from the one that it is given on.
    pub(super) fn reader<'a>(&'a self, files: &'a [ModelFile]) -> Result<impl FnMut(usize, &mut [f32]) + 'a, Fault> {
        let ([outputs, inputs], opened) = (self.shape, self.open(files)?);
        Ok(move |first: usize, values: &mut [f32]| {
            let rows = values.len() / inputs;
            for input in 0..inputs {
                let group = opened.group_of_input[input] * outputs;
                for row in 0..rows {
                    let of_group = group + first + row;
                    let centred = opened.integer(first + row, input) - opened.zeros[of_group];
                    values[row * inputs + input] = centred as f32 * opened.scales[of_group];
                }
            }
        })
    }

    /// The codes that hold the integers, where devices can keep them: scales are short enough that scale and zero point
    /// multiply exactly, and groups are consecutive inputs, at least those that share a word of scales.
    pub(super) fn codes(&self, files: &[ModelFile]) -> Option<Codes> {
        let [_, inputs] = self.shape;
        let scales = self.parts.optional(self.names.scales)?;
        let group = inputs / self.groups;
        let in_order = || {
            let groups = self.group_of_input(files);
            groups.is_ok_and(|groups| groups.iter().enumerate().all(|(input, found)| *found == input / group))
        };
        let keeps = matches!(scales.dtype, Dtype::F16 | Dtype::BF16)
            && inputs.is_multiple_of(self.groups)
            && group.is_multiple_of(PackedForm::GROUP)
            && in_order();
        keeps.then_some(if self.format.bits == 4 { Codes::FourBits } else { Codes::Bytes })
    }

    /// The groups of a row, by their index in it.
    pub(super) fn group_reader<'a>(
        &'a self,
        files: &'a [ModelFile],
    ) -> Result<impl Fn(usize, usize) -> Group + 'a, Fault> {
        let ([outputs, _], opened) = (self.shape, self.open(files)?);
        // Bytes are signed where the integers are not.
        let middle = if self.format.bits == 4 { 0 } else { 128 };
        Ok(move |row: usize, index: usize| {
            let first_input = index * PackedForm::GROUP;
            let of_group = opened.group_of_input[first_input] * outputs + row;
            let scale = opened.scales[of_group];
            Group {
                codes: std::array::from_fn(|i| (opened.integer(row, first_input + i) - middle) as i8),
                first: scale,
                second: (middle - opened.zeros[of_group]) as f32 * scale,
            }
        })
    }

    fn open<'a>(&self, files: &'a [ModelFile]) -> Result<Opened<'a>, Fault> {
        Ok(Opened {
            words: self.parts.of_format(self.names.words, &WORDS)?.words(files),
            format: self.format,
            shape: self.shape,
            scales: self.scales(files)?,
            zeros: self.zeros(files)?,
            group_of_input: self.group_of_input(files)?,
        })
    }

    /// `[groups, out]`.
    fn scales(&self, files: &[ModelFile]) -> Result<Vec<f32>, Fault> {
        let scales = self.parts.of_format(self.names.scales, &FLOATS)?.floats(files);
        Ok(if self.format.order == Order::Rows { self.transposed(&scales) } else { scales })
    }

    /// `[groups, out]`.
    fn zeros(&self, files: &[ModelFile]) -> Result<Vec<i32>, Fault> {
        let [outputs, _] = self.shape;
        let (in_word, mask) = (WORD_BITS / self.format.bits, (1u32 << self.format.bits) - 1);
        let Some(part) = self.parts.optional(self.names.zeros) else {
            return Ok(vec![1 << (self.format.bits - 1); self.groups * outputs]);
        };
        let words = part.words(files);
        let zero = |group: usize, output: usize| {
            let (at, place) = match self.format.order {
                Order::Gptq => (group * outputs.div_ceil(in_word) + output / in_word, output % in_word),
                Order::Awq => (group * (outputs / in_word) + output / in_word, AWQ_PLACES[output % in_word]),
                Order::Rows => (output / in_word * self.groups + group, output % in_word),
            };
            (u32::from_le_bytes(words[at]) >> (place * self.format.bits) & mask) as i32 + self.format.zero_offset
        };
        Ok((0..self.groups)
            .flat_map(|group| (0..outputs).map(move |output| (group, output)))
            .map(|(g, o)| zero(g, o))
            .collect())
    }

    fn group_of_input(&self, files: &[ModelFile]) -> Result<Vec<usize>, Fault> {
        let [_, inputs] = self.shape;
        let Some(part) = self.parts.optional(self.names.group_of_input) else {
            return Ok((0..inputs).map(|input| input / (inputs / self.groups)).collect());
        };
        let group = |word: &[u8; 4]| {
            let group = u32::from_le_bytes(*word) as usize;
            let problem = || format!("names group {group} of {}", self.groups);
            if group < self.groups { Ok(group) } else { Err(self.parts.fault(self.names.group_of_input, problem())) }
        };
        part.words(files).iter().map(group).collect()
    }

    /// `[out, groups]` as `[groups, out]`.
    fn transposed(&self, values: &[f32]) -> Vec<f32> {
        let groups = self.groups;
        (0..groups).flat_map(|group| values[group..].iter().step_by(groups).copied()).collect()
    }
}

/// The two sizes of a matrix, neither of them zero.
fn pair(parts: &Parts, suffix: &str, part: &Part) -> Result<[usize; 2], Fault> {
    match part.shape[..] {
        [first @ 1..=usize::MAX, second @ 1..=usize::MAX] => Ok([first, second]),
        _ => Err(parts.fault(suffix, format!("has shape {:?}, expected a matrix", part.shape))),
    }
}
