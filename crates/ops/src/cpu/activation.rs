//! Elementwise activations.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::lanes::Lanes;
use super::math::{erf, exp, tanh};
use super::{dims2, floats, floats_mut, tensor2};
use crate::activation::Activation;
use crate::launch::{SimdTask, with_simd};

/// Elements per thread below which starting one costs more than it saves.
const ELEMENTS_PER_TASK: usize = 1 << 15;

#[inline(always)]
fn apply(kind: Activation, x: f32) -> f32 {
    match kind {
        Activation::Silu => x / (1.0 + exp(-x)),
        Activation::GeluTanh => {
            const SQRT_2_OVER_PI: f32 = 0.797_884_6;
            0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
        }
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::Relu => x.max(0.0),
    }
}

/// One row: `out = kind(gate) * up`, or `kind(gate)` without `up`.
struct Row<'a> {
    kind: Activation,
    gate: &'a [f32],
    up: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Row<'_> {
    #[inline(always)]
    fn of_kind(self, kind: Activation) {
        let (gate, out) = (&self.gate[..self.out.len()], self.out);
        match self.up {
            Some(up) => {
                let up = &up[..out.len()];
                for index in 0..out.len() {
                    out[index] = apply(kind, gate[index]) * up[index];
                }
            }
            None => {
                for index in 0..out.len() {
                    out[index] = apply(kind, gate[index]);
                }
            }
        }
    }
}

impl SimdTask for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // One loop per kind, so that the choice is outside it.
        match self.kind {
            Activation::Silu => self.of_kind(Activation::Silu),
            Activation::GeluTanh => self.of_kind(Activation::GeluTanh),
            Activation::GeluErf => self.of_kind(Activation::GeluErf),
            Activation::Relu => self.of_kind(Activation::Relu),
        }
    }
}

pub(super) fn activation(x: FlexTensor, kind: Activation) -> FlexTensor {
    let mut out = x.clone();
    let x = floats(&x);
    let parts = floats_mut(&mut out).par_chunks_mut(ELEMENTS_PER_TASK).zip(x.par_chunks(ELEMENTS_PER_TASK));
    parts.for_each(|(out, gate)| with_simd(Row { kind, gate, up: None, out }));
    out
}

pub(super) fn gated_activation(gate_up: &FlexTensor, kind: Activation) -> FlexTensor {
    let [rows, columns] = dims2(gate_up);
    let half = columns / 2;
    let values = floats(gate_up);
    let mut out = vec![0.0; rows * half];
    let rows_per_task = (ELEMENTS_PER_TASK / half.max(1)).max(1);
    let parts = out.par_chunks_mut(rows_per_task * half).zip(values.par_chunks(rows_per_task * columns));
    parts.for_each(|(out, values)| {
        for (out, row) in out.chunks_exact_mut(half).zip(values.chunks_exact(columns)) {
            with_simd(Row { kind, gate: &row[..half], up: Some(&row[half..]), out });
        }
    });
    tensor2(out, rows, half)
}
