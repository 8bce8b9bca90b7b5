//! Layer normalisation, one row at a time.

use burn_flex::FlexTensor;

use super::lanes::Lanes;
use super::math::sum_by;
use super::{dims2, floats, tensor2};
use crate::launch::{SimdTask, with_simd};

struct Normalise<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl SimdTask for Normalise<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<f32> {
        let columns = self.weight.len();
        let mut out = Vec::with_capacity(self.x.len());
        for row in self.x.chunks_exact(columns) {
            let mean = sum_by(row, |value| value) / columns as f32;
            let variance = sum_by(row, |value| (value - mean) * (value - mean)) / columns as f32;
            let scale = 1.0 / (variance + self.eps).sqrt();
            let affine = self.weight.iter().zip(self.bias);
            out.extend(row.iter().zip(affine).map(|(value, (weight, bias))| (value - mean) * scale * weight + bias));
        }
        out
    }
}

pub(super) fn layer_norm(x: &FlexTensor, weight: &FlexTensor, bias: &FlexTensor, eps: f32) -> FlexTensor {
    let [rows, columns] = dims2(x);
    let task = Normalise { x: &floats(x), weight: &floats(weight), bias: &floats(bias), eps };
    tensor2(with_simd(task), rows, columns)
}
