//! The choice of tokens: the reference, rows spread over threads.

use burn::tensor::{Shape, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{dims2, floats, indices};
use crate::sample::{SampleOptions, pack, sample_row};

pub(super) fn sample(logits: &FlexTensor, plan: &FlexTensor, options: SampleOptions) -> FlexTensor {
    let [_, vocab_size] = dims2(logits);
    let (logits, plan) = (floats(logits), indices(plan));
    let row = |index| sample_row(&logits, vocab_size, (plan, index));
    let rows: Vec<_> = (0..options.rows).into_par_iter().map(row).collect();
    let mut words = vec![0i32; options.result_words()];
    for (index, row) in rows.iter().enumerate() {
        pack(row, (&mut words, index), options);
    }
    let length = words.len();
    FlexTensor::from_data(TensorData::new(words, Shape::from([length])))
}
