//! Attention of each token's query heads over the paged cache.

use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous, dims2, elements, empty2, vector};
use super::shader_text;
use crate::attention::AttentionOptions;
use crate::cube::AttentionInputs;
use crate::rope_and_store_kv::QkvOptions;

static SHADER: Shader = Shader {
    name: "paged_attention",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/element.wgsl"),
        shader_text!("common/sum.wgsl"),
        shader_text!("common/spans.wgsl"),
        shader_text!("common/rotate.wgsl"),
        shader_text!("paged_attention.wgsl"),
    ],
};

static JOIN: Shader = Shader {
    name: "paged_attention_join",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/element.wgsl"),
        shader_text!("common/spans.wgsl"),
        shader_text!("paged_attention_join.wgsl"),
    ],
};

/// Positions of a tile. On an H200 one token over 2048 positions of 32 heads takes 162 µs with 64, 102 with 128 and 87
/// with 256, which is slower where contexts are short.
const WORKGROUP: u32 = 128;
/// Positions whose results are made apart and then joined.
const SPAN: usize = 256;
/// Workgroups that keep a GPU busy without a workgroup for each span.
const WORKGROUPS_ENOUGH: usize = 1024;
const JOIN_WORKGROUP: u32 = 64;

/// What the kernel reads.
pub(crate) struct AttentionOperands {
    pub qkv: CubeTensor,
    pub key_cache: CubeTensor,
    pub value_cache: CubeTensor,
    pub positions: CubeTensor,
    pub sequence_of_token: CubeTensor,
    pub block_tables: CubeTensor,
    pub options: AttentionOptions,
}

/// How a row of queries, keys and values becomes what attention reads, where attention does so itself.
struct Rotation {
    /// Absent where nothing is rotated.
    table: Option<CubeTensor>,
    rotary_dim: usize,
}

/// Whether [`rotating_attention`] has a kernel for rows of this kind. Weights of head norms would be more than 8 buffers.
pub(crate) fn rotates(options: QkvOptions) -> bool {
    let head_dim = options.heads.head_dim;
    let is_whole = |elements: usize| vector(head_dim) == 0 || (elements / 2).is_multiple_of(4);
    options.norm_eps.is_none() && is_whole(options.rotary_dim)
}

/// Attention of tokens that are the only ones of their sequences, after what `rope_and_store_kv` does; a token's slot is
/// the one that its sequence's block table names. Returns the cache too.
pub(crate) fn rotating_attention(
    operands: AttentionOperands,
    table: CubeTensor,
    options: QkvOptions,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let (key_cache, value_cache) = (contiguous(operands.key_cache), contiguous(operands.value_cache));
    let rotary_dim = options.rotary_dim;
    let rotation = Rotation { table: (rotary_dim > 0).then(|| contiguous(table)), rotary_dim };
    let (keys, values) = (key_cache.clone(), value_cache.clone());
    let out = attention(AttentionOperands { key_cache, value_cache, ..operands }, Some(rotation));
    (out, keys, values)
}

pub(crate) fn paged_attention(inputs: AttentionInputs) -> CubeTensor {
    let AttentionInputs { qkv, key_cache, value_cache, positions, sequence_of_token, block_tables, options, .. } =
        inputs;
    let operands =
        AttentionOperands { qkv, key_cache, value_cache, positions, sequence_of_token, block_tables, options };
    attention(operands, None)
}

fn attention(inputs: AttentionOperands, rotation: Option<Rotation>) -> CubeTensor {
    let heads = inputs.options.heads;
    let inputs = AttentionOperands {
        qkv: contiguous(inputs.qkv),
        key_cache: contiguous(inputs.key_cache),
        value_cache: contiguous(inputs.value_cache),
        positions: contiguous(inputs.positions),
        sequence_of_token: contiguous(inputs.sequence_of_token),
        block_tables: contiguous(inputs.block_tables),
        ..inputs
    };
    let [tokens, _] = dims2(&inputs.qkv);
    let [_, blocks_per_row] = dims2(&inputs.block_tables);
    let out = empty2(&inputs.qkv, tokens, heads.output_len());
    let window = inputs.options.sliding_window.unwrap_or(usize::MAX);
    let (pairs, spans) =
        (tokens * heads.num_heads, window.min(blocks_per_row * inputs.options.block_size).div_ceil(SPAN));
    if spans <= 1 || pairs >= WORKGROUPS_ENOUGH {
        attend(&inputs, rotation.as_ref(), &out, None);
        return out;
    }
    let width = elements(heads.head_dim);
    let span_numbers = if vector(heads.head_dim) == 1 { heads.head_dim + 4 } else { heads.head_dim + 2 };
    let parts = empty2(&inputs.qkv, pairs * spans, span_numbers);
    attend(&inputs, rotation.as_ref(), &parts, Some(spans));
    let launch = Launch {
        shader: &JOIN,
        constants: vec![
            ("HEADS", heads.num_heads as u32),
            ("WIDTH", width),
            ("VECTOR", vector(heads.head_dim)),
            ("SPAN", SPAN as u32),
            ("WORKGROUP", JOIN_WORKGROUP),
        ],
        tensors: &[&parts, &inputs.positions, &out],
        parameters: &[pairs as u32, spans as u32, window_word(window)],
        workgroups: pairs,
    };
    launch.enqueue();
    out
}

/// Writes the results, or with `spans` those of each span, of which a context has as many at most.
fn attend(inputs: &AttentionOperands, rotation: Option<&Rotation>, out: &CubeTensor, spans: Option<usize>) {
    let options = inputs.options;
    let heads = options.heads;
    let [tokens, _] = dims2(&inputs.qkv);
    let [_, blocks_per_row] = dims2(&inputs.block_tables);
    let workgroups = tokens * heads.num_heads * spans.unwrap_or(1);
    let width = elements(heads.head_dim);
    let element_len = heads.head_dim / width as usize;
    let half_width = rotation.map_or(0, |rotation| rotation.rotary_dim / 2 / element_len);
    let key_batch = [8, 4, 2].into_iter().find(|&batch| width.is_multiple_of(batch)).unwrap_or(1);
    let mut tensors = vec![
        &inputs.qkv,
        &inputs.key_cache,
        &inputs.value_cache,
        &inputs.positions,
        &inputs.sequence_of_token,
        &inputs.block_tables,
    ];
    tensors.extend(rotation.and_then(|rotation| rotation.table.as_ref()));
    tensors.push(out);
    let launch = Launch {
        shader: &SHADER,
        constants: vec![
            ("HEADS", heads.num_heads as u32),
            ("KV_HEADS", heads.num_kv_heads as u32),
            ("WIDTH", width),
            ("VECTOR", vector(heads.head_dim)),
            ("ROTATED", u32::from(rotation.is_some())),
            ("HALF_WIDTH", half_width as u32),
            ("KEY_BATCH", key_batch),
            ("BLOCK_SIZE", options.block_size as u32),
            ("SOFTCAP", u32::from(options.softcap.is_some())),
            ("SPAN", SPAN as u32),
            ("PARTIAL", u32::from(spans.is_some())),
            ("WORKGROUP", WORKGROUP),
        ],
        tensors: &tensors,
        parameters: &[
            workgroups as u32,
            blocks_per_row as u32,
            window_word(options.sliding_window.unwrap_or(usize::MAX)),
            options.scale.to_bits(),
            options.softcap.unwrap_or(0.0).to_bits(),
            spans.unwrap_or(1) as u32,
        ],
        workgroups,
    };
    launch.enqueue();
}

fn window_word(window: usize) -> u32 {
    window.try_into().unwrap_or(u32::MAX)
}
