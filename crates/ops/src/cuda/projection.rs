//! Products with what stands before and after them: one kernel for few rows, the single operations for many.

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::linear_few_rows::{After, FewRows, Norm, Rotation, fits};
use super::matrix::{Matrix, dense, owned};
use super::{activation, gated_activation, linear, rope_and_store_kv};
use crate::backend::{Activated, ProjectionInputs};
use crate::cube::{QkvInputs, QkvTarget};
use crate::e4m3::E4M3;

/// The operands, with tensors as the kernels take them.
struct Operands {
    x: Matrix,
    norm: Option<Norm>,
    weight: Matrix,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
    activated: Activated,
}

pub(crate) fn project(inputs: ProjectionInputs<CubeBackend>) -> CubeTensor {
    let operands = Operands::of(inputs);
    if !fits(&operands.x, &operands.weight) {
        return operands.separately();
    }
    let Operands { x, norm, weight, bias, residual, activated } = operands;
    let after = match activated {
        Activated::Not => After::Store(residual.map(Matrix::of)),
        Activated::All(kind) => After::Activate(kind),
        Activated::Gated(kind) => After::Gate(kind),
    };
    FewRows { x, norm, weight, bias, after }.run()
}

pub(crate) fn project_qkv(
    inputs: ProjectionInputs<CubeBackend>,
    target: QkvTarget,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let operands = Operands::of(inputs);
    let (heads, options) = (target.options.heads, target.options);
    // The kernel rotates whole heads, and does not wait for the rest of a head to normalise it.
    let rotates = options.norm_eps.is_none()
        && heads.head_dim.is_multiple_of(2)
        && (options.rotary_dim == 0 || options.rotary_dim == heads.head_dim)
        && [operands.x.tensor.dtype, E4M3].contains(&target.key_cache.dtype);
    if !fits(&operands.x, &operands.weight) {
        return rope_and_store_kv(QkvInputs { qkv: operands.separately(), target });
    }
    let Operands { x, norm, weight, bias, .. } = operands;
    if !rotates {
        let qkv = FewRows { x, norm, weight, bias, after: After::Store(None) }.run();
        return rope_and_store_kv(QkvInputs { qkv, target });
    }
    let (keys, values) = (owned(target.key_cache), owned(target.value_cache));
    let rotation = Rotation {
        table: dense(target.table),
        positions: dense(target.positions),
        slots: dense(target.slot_mapping),
        keys: keys.clone(),
        values: values.clone(),
        heads,
        rotary_dim: options.rotary_dim,
    };
    let qkv = FewRows { x, norm, weight, bias, after: After::Rotate(rotation) }.run();
    (qkv, keys, values)
}

impl Operands {
    fn of(inputs: ProjectionInputs<CubeBackend>) -> Self {
        let norm_bias = inputs.norm_bias.given().map(dense);
        let norm = inputs.norm_weight.given().map(|weight| Norm {
            weight: dense(weight),
            bias: norm_bias,
            eps: inputs.norm_eps,
        });
        Self {
            x: Matrix::of(inputs.x),
            norm,
            weight: Matrix::of(inputs.weight),
            bias: inputs.bias.given().map(dense),
            residual: inputs.residual.given(),
            activated: inputs.activated,
        }
    }

    fn separately(self) -> CubeTensor {
        let x = match self.norm {
            Some(norm) => norm.of(self.x.tensor),
            None => self.x.tensor,
        };
        let out = linear(x, self.weight.tensor, self.bias, self.residual);
        match self.activated {
            Activated::Not => out,
            Activated::All(kind) => activation(out, kind),
            Activated::Gated(kind) => gated_activation(out, kind),
        }
    }
}
