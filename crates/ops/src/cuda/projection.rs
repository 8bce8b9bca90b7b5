//! Products with what stands before and after them: one kernel for few rows, for many what is faster than the single operations.

use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::linear::multiply;
use super::linear_few_rows::{After, FewRows, Norm, Rotation, fits};
use super::linear_fp8::{ManyRows, multiplies};
use super::linear_wgmma::{self, HeadsProduct, SomeRows, UnfinishedNorm};
use super::matrix::{Matrix, Weights, dense};
use super::paged_attention::attend_fresh;
use super::{activation, gated_activation, paged_attention, rope_and_store_kv};
use crate::attention::AttentionOptions;
use crate::backend::{Activated, BatchTensors, PreparedNorm, ProjectionInputs};
use crate::cube::{QkvInputs, QkvTarget};
use crate::e4m3::E4M3;
use crate::rope_and_store_kv::QkvOptions;

/// The operands, with tensors as the kernels take them.
struct Operands {
    x: Matrix,
    norm: Option<Norm>,
    /// The rows times its weight and what else it needs, where that was prepared.
    prepared: Option<(Matrix, UnfinishedNorm)>,
    /// What `x` lacks that the kernel of the product does.
    unfinished: Option<UnfinishedNorm>,
    weights: Weights,
    bias: Option<CubeTensor>,
    residual: Option<Matrix>,
    activated: Activated,
}

pub(crate) fn project(inputs: ProjectionInputs<CubeBackend>) -> CubeTensor {
    Operands::of(inputs).project()
}

/// With what the norm of the rows needs, if the kernel prepares it: the rows times its weight, and their sums of squares.
pub(crate) fn project_onto(
    inputs: ProjectionInputs<CubeBackend>,
    norm_weight: CubeTensor,
) -> (CubeTensor, Option<(CubeTensor, CubeTensor)>) {
    let operands = Operands::of(inputs);
    if !operands.are_some_rows() {
        return (operands.project(), None);
    }
    operands.some_rows().run_for_norm(dense(norm_weight))
}

/// Rows of queries, keys and values.
enum Rows {
    /// Normalised, rotated and stored.
    Ready(CubeTensor),
    /// As the product has them.
    Fresh(CubeTensor),
}

pub(crate) fn self_attention(
    inputs: ProjectionInputs<CubeBackend>,
    target: QkvTarget,
    (batch, options): (&BatchTensors<CubeBackend>, AttentionOptions),
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let target = target.for_kernels();
    let attention = |qkv, keys: &CubeTensor, values: &CubeTensor| {
        batch.attention_inputs(qkv, (keys.clone(), values.clone()), options)
    };
    let (qkv, keys, values) = match Operands::of(inputs).project_qkv(&target) {
        Rows::Ready(qkv) => (qkv, target.key_cache, target.value_cache),
        Rows::Fresh(qkv) => {
            let inputs = attention(qkv.clone(), &target.key_cache, &target.value_cache);
            if let Some(out) = attend_fresh(inputs, &target) {
                return (out, target.key_cache, target.value_cache);
            }
            rope_and_store_kv(QkvInputs { qkv, target })
        }
    };
    (paged_attention(attention(qkv, &keys, &values)), keys, values)
}

/// Whether the kernel of few rows does the rotation as well: of whole heads, and it does not wait for the rest of a head to
/// normalise it.
pub(super) fn rotates(options: &QkvOptions, dtype: DType, cache: DType) -> bool {
    let head_dim = options.heads.head_dim;
    options.norm_eps.is_none()
        && head_dim.is_multiple_of(2)
        && (options.rotary_dim == 0 || options.rotary_dim == head_dim)
        && [dtype, E4M3].contains(&cache)
}

impl Operands {
    fn of(inputs: ProjectionInputs<CubeBackend>) -> Self {
        let norm_bias = inputs.norm_bias.given().map(dense);
        let norm = inputs.norm_weight.given().map(|weight| Norm {
            weight: dense(weight),
            bias: norm_bias,
            eps: inputs.norm_eps,
        });
        let prepared = match inputs.prepared {
            PreparedNorm::Given(scaled, squares) => {
                Some((Matrix::of(scaled), UnfinishedNorm { squares: dense(squares), eps: inputs.norm_eps }))
            }
            PreparedNorm::Absent => None,
        };
        Self {
            x: Matrix::of(inputs.x),
            norm,
            prepared,
            unfinished: None,
            weights: Weights::of(inputs.weight),
            bias: inputs.bias.given().map(dense),
            residual: inputs.residual.given().map(Matrix::of),
            activated: inputs.activated,
        }
    }

    fn project(self) -> CubeTensor {
        if !fits(&self.x, &self.weights) {
            return self.of_many_rows();
        }
        let Self { x, norm, weights, bias, residual, activated, .. } = self;
        let after = match activated {
            Activated::Not => After::Store(residual),
            Activated::All(kind) => After::Activate(kind),
            Activated::Gated(kind) => After::Gate(kind),
        };
        FewRows { x, norm, weights, bias, after }.run()
    }

    /// The product with what few rows can have in the same kernel.
    fn project_qkv(self, target: &QkvTarget) -> Rows {
        if !fits(&self.x, &self.weights) {
            return self.project_many_qkv(target);
        }
        let QkvOptions { heads, rotary_dim, .. } = target.options;
        let rotates = rotates(&target.options, self.x.tensor.dtype, target.key_cache.dtype);
        let Self { x, norm, weights, bias, .. } = self;
        if !rotates {
            return Rows::Fresh(FewRows { x, norm, weights, bias, after: After::Store(None) }.run());
        }
        let rotation = Rotation {
            table: target.table.clone(),
            positions: target.positions.clone(),
            slots: target.slot_mapping.clone(),
            keys: target.key_cache.clone(),
            values: target.value_cache.clone(),
            heads,
            rotary_dim,
        };
        Rows::Ready(FewRows { x, norm, weights, bias, after: After::Rotate(rotation) }.run())
    }

    /// The product of more rows, finished in the same kernel where there is one.
    fn project_many_qkv(mut self, target: &QkvTarget) -> Rows {
        if self.weights.scales.is_some() {
            return Rows::Fresh(self.of_many_rows());
        }
        let Some(heads) = HeadsProduct::of(&self.x, &self.weights, target) else {
            return Rows::Fresh(self.separately());
        };
        self.apply_norm(heads.finishes_norms());
        Rows::Ready(heads.run(self.some_rows()))
    }

    /// Normalises the rows by a kernel of its own, unless that of the product `finishes` what was prepared.
    fn apply_norm(&mut self, finishes: bool) {
        let Some(norm) = self.norm.take() else { return };
        match self.prepared.take().filter(|_| finishes) {
            Some((scaled, unfinished)) => (self.x, self.unfinished) = (scaled, Some(unfinished)),
            None => self.x = Matrix::of(norm.of(self.x.tensor.clone())),
        }
    }

    fn of_many_rows(self) -> CubeTensor {
        let Self { x, norm, weights: Weights { matrix, scales }, bias, residual, activated, .. } = self;
        match scales {
            Some(scales) if multiplies(&x, &matrix) => {
                let residual = residual.map(|residual| residual.tensor);
                ManyRows { x, norm, codes: matrix, scales, bias, residual, activated }.run()
            }
            scales => {
                let weights = Weights { matrix, scales };
                Self { x, norm, weights, bias, residual, activated, ..self }.separately()
            }
        }
    }

    fn separately(mut self) -> CubeTensor {
        let residual = self.residual.as_ref();
        self.apply_norm(linear_wgmma::finishes_norms(&self.x, &self.weights, residual, self.activated));
        if self.are_some_rows() {
            return self.some_rows().run();
        }
        let out = multiply(self.x, self.weights, self.bias, self.residual);
        match self.activated {
            Activated::Not => out,
            Activated::All(kind) => activation(out, kind),
            Activated::Gated(kind) => gated_activation(out, kind),
        }
    }

    /// Whether [`SomeRows`] can be multiplied, without a norm that is still to be applied.
    fn are_some_rows(&self) -> bool {
        self.norm.is_none()
            && !fits(&self.x, &self.weights)
            && linear_wgmma::fits(&self.x, &self.weights, self.residual.as_ref(), self.activated)
    }

    fn some_rows(self) -> SomeRows {
        let Self { x, unfinished, weights, bias, residual, activated, .. } = self;
        SomeRows { x, norm: unfinished, weight: weights.matrix, bias, residual, activated }
    }
}
