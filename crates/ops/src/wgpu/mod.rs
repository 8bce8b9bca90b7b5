//! WGSL kernels.

use burn_cubecl::tensor::CubeTensor;

use crate::activation::Activation;
use crate::cube::{AttentionInputs, QkvInputs};

pub(crate) fn gather_rows(_table: CubeTensor, _ids: CubeTensor) -> CubeTensor {
    unimplemented!()
}

pub(crate) fn rms_norm(_x: CubeTensor, _weight: CubeTensor, _eps: f32) -> CubeTensor {
    unimplemented!()
}

pub(crate) fn add_rms_norm(
    _x: CubeTensor,
    _residual: CubeTensor,
    _weight: CubeTensor,
    _eps: f32,
) -> (CubeTensor, CubeTensor) {
    unimplemented!()
}

pub(crate) fn layer_norm(_x: CubeTensor, _weight: CubeTensor, _bias: CubeTensor, _eps: f32) -> CubeTensor {
    unimplemented!()
}

pub(crate) fn linear(_x: CubeTensor, _weight: CubeTensor, _bias: Option<CubeTensor>) -> CubeTensor {
    unimplemented!()
}

pub(crate) fn activation(_x: CubeTensor, _kind: Activation) -> CubeTensor {
    unimplemented!()
}

pub(crate) fn gated_activation(_gate_up: CubeTensor, _kind: Activation) -> CubeTensor {
    unimplemented!()
}

pub(crate) fn rope_and_store_kv(_inputs: QkvInputs) -> (CubeTensor, CubeTensor, CubeTensor) {
    unimplemented!()
}

pub(crate) fn paged_attention(_inputs: AttentionInputs) -> CubeTensor {
    unimplemented!()
}
