//! Normalises and rotates queries and keys in place, and copies keys and values into their slots.

use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous, dims2, exclusive};
use super::shader_text;
use crate::cube::QkvInputs;

static SHADER: Shader = Shader {
    name: "rope_and_store_kv",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/element.wgsl"),
        shader_text!("common/sum.wgsl"),
        shader_text!("common/rotate.wgsl"),
        shader_text!("rope_and_store_kv.wgsl"),
    ],
};

pub(crate) fn rope_and_store_kv(inputs: QkvInputs) -> (CubeTensor, CubeTensor, CubeTensor) {
    let QkvInputs { qkv, target: inputs } = inputs;
    let options = inputs.options;
    let heads = options.heads;
    let qkv = exclusive(qkv);
    // The cache is written where it is: it has one owner, though work under way may seem to be another.
    let (keys, values) = (contiguous(inputs.key_cache), contiguous(inputs.value_cache));
    let (query_norm, key_norm) = (contiguous(inputs.query_norm), contiguous(inputs.key_norm));
    let (table, positions) = (contiguous(inputs.table), contiguous(inputs.positions));
    let slots = contiguous(inputs.slot_mapping);

    let mut tensors = vec![&qkv];
    if options.norm_eps.is_some() {
        tensors.extend([&query_norm, &key_norm]);
    }
    if options.rotary_dim > 0 {
        tensors.extend([&table, &positions]);
    }
    tensors.extend([&slots, &keys, &values]);

    let [tokens, _] = dims2(&qkv);
    let row_heads = heads.num_heads + 2 * heads.num_kv_heads;
    // Queries that are neither normalised nor rotated stay as they are.
    let unchanged = options.norm_eps.is_none() && options.rotary_dim == 0;
    let first_head = if unchanged { heads.num_heads } else { 0 };
    let workgroups = tokens * (row_heads - first_head);
    let launch = Launch {
        shader: &SHADER,
        constants: vec![
            ("HEADS", heads.num_heads as u32),
            ("KV_HEADS", heads.num_kv_heads as u32),
            ("HEAD_DIM", heads.head_dim as u32),
            ("ROTARY_DIM", options.rotary_dim as u32),
            ("FIRST_HEAD", first_head as u32),
            ("NORM", u32::from(options.norm_eps.is_some())),
            ("VECTOR", 0),
            // A thread takes two elements of a pair.
            ("WORKGROUP", if heads.head_dim > 64 { 64 } else { 32 }),
        ],
        tensors: &tensors,
        parameters: &[workgroups as u32, options.norm_eps.unwrap_or(0.0).to_bits()],
        workgroups,
    };
    launch.enqueue();
    (qkv, keys, values)
}
