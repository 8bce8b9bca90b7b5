//! A weight matrix as the shaders take it: rows of floats, or packed words that `common/packed.wgsl` widens.

use burn_cubecl::tensor::CubeTensor;

use super::kernel::{contiguous, dims2, half, vector};
use super::template::Constants;
use crate::{Codes, Packing, Scales};

/// A weight matrix `[rows, columns]`.
pub(super) struct Matrix {
    /// What the shader binds.
    pub tensor: CubeTensor,
    packing: Option<Packing>,
}

impl Matrix {
    /// A matrix of floats.
    pub fn dense(values: CubeTensor) -> Self {
        Self { tensor: contiguous(values), packing: None }
    }

    /// A matrix of packed words.
    pub fn packed(words: CubeTensor, packing: Packing) -> Self {
        Self { tensor: contiguous(words), packing: Some(packing) }
    }

    /// `[rows, columns]`.
    pub fn dims(&self) -> [usize; 2] {
        let [rows, width] = dims2(&self.tensor);
        match self.packing {
            None => [rows, width],
            Some(packing) => [rows, width / packing.words() * Packing::GROUP],
        }
    }

    /// What the shader must know of its elements. Packed ones are always read four at a time.
    pub fn constants(&self) -> Constants {
        let [_, columns] = self.dims();
        let Some(packing) = self.packing else {
            return vec![("PACKED", 0), ("VECTOR", vector(columns)), ("HALF", half(&self.tensor))];
        };
        vec![
            ("PACKED", 1),
            ("VECTOR", 1),
            ("FOUR_BITS", u32::from(packing.codes == Codes::FourBits)),
            ("HALVES", u32::from(packing.scales == Scales::Halves)),
            ("TWO_RUNS", u32::from(packing.scales == Scales::TwoRuns)),
            ("SCALE_WORDS", packing.scale_words() as u32),
            ("GROUP_WORDS", packing.words() as u32),
        ]
    }
}
