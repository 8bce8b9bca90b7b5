//! Root-mean-square normalisation, one row at a time.

use burn_flex::FlexTensor;

use super::lanes::Lanes;
use super::math::sum_by;
use super::{dims2, floats, floats_mut, tensor2};
use crate::launch::{SimdTask, with_simd};

struct Normalise<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl SimdTask for Normalise<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<f32> {
        let columns = self.weight.len();
        let mut out = Vec::with_capacity(self.x.len());
        for row in self.x.chunks_exact(columns) {
            out.extend(normalised(row, self.weight, self.eps));
        }
        out
    }
}

/// `row / rms(row) * weight`.
#[inline(always)]
pub(super) fn normalised<'a>(row: &'a [f32], weight: &'a [f32], eps: f32) -> impl Iterator<Item = f32> + use<'a> {
    let mean_square = sum_by(row, |value| value * value) / row.len() as f32;
    let scale = 1.0 / (mean_square + eps).sqrt();
    row.iter().zip(weight).map(move |(value, weight)| value * scale * weight)
}

pub(super) fn rms_norm(x: &FlexTensor, weight: &FlexTensor, eps: f32) -> FlexTensor {
    let [rows, columns] = dims2(x);
    tensor2(with_simd(Normalise { x: &floats(x), weight: &floats(weight), eps }), rows, columns)
}

pub(super) fn add_rms_norm(
    x: &FlexTensor,
    residual: FlexTensor,
    weight: &FlexTensor,
    eps: f32,
) -> (FlexTensor, FlexTensor) {
    let mut sum = residual;
    for (sum, x) in floats_mut(&mut sum).iter_mut().zip(floats(x).iter()) {
        *sum += x;
    }
    (rms_norm(&sum, weight, eps), sum)
}
