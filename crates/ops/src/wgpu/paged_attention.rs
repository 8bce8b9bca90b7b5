//! Attention of each token's query heads over the paged cache.

use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Launch, Shader, contiguous, dims2, elements, empty2, vector};
use super::shader_text;
use crate::cube::AttentionInputs;

static SHADER: Shader = Shader {
    name: "paged_attention",
    parts: &[
        shader_text!("common/grid.wgsl"),
        shader_text!("common/element.wgsl"),
        shader_text!("common/sum.wgsl"),
        shader_text!("common/spans.wgsl"),
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

pub(crate) fn paged_attention(inputs: AttentionInputs) -> CubeTensor {
    let heads = inputs.options.heads;
    let inputs = AttentionInputs {
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
        attend(&inputs, &out, None);
        return out;
    }
    let width = elements(heads.head_dim);
    let span_numbers = if vector(heads.head_dim) == 1 { heads.head_dim + 4 } else { heads.head_dim + 2 };
    let parts = empty2(&inputs.qkv, pairs * spans, span_numbers);
    attend(&inputs, &parts, Some(spans));
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
fn attend(inputs: &AttentionInputs, out: &CubeTensor, spans: Option<usize>) {
    let options = inputs.options;
    let heads = options.heads;
    let [tokens, _] = dims2(&inputs.qkv);
    let [_, blocks_per_row] = dims2(&inputs.block_tables);
    let workgroups = tokens * heads.num_heads * spans.unwrap_or(1);
    let launch = Launch {
        shader: &SHADER,
        constants: vec![
            ("HEADS", heads.num_heads as u32),
            ("KV_HEADS", heads.num_kv_heads as u32),
            ("WIDTH", elements(heads.head_dim)),
            ("VECTOR", vector(heads.head_dim)),
            ("BLOCK_SIZE", options.block_size as u32),
            ("SOFTCAP", u32::from(options.softcap.is_some())),
            ("SPAN", SPAN as u32),
            ("PARTIAL", u32::from(spans.is_some())),
            ("WORKGROUP", WORKGROUP),
        ],
        tensors: &[
            &inputs.qkv,
            &inputs.key_cache,
            &inputs.value_cache,
            &inputs.positions,
            &inputs.sequence_of_token,
            &inputs.block_tables,
            out,
        ],
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
