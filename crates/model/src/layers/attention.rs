//! Self-attention over the paged cache.

use burn::tensor::Tensor;
use firebrick_checkpoint::LayerKind;
use firebrick_ops::{
    AttentionOptions, KvLayer, QkvOptions, QkvProjection, RopeTable, Stream, Then, gather_rows, project, project_onto,
    self_attention,
};

use super::{Linear, Norm};
use crate::kv_cache::head_layout;
use crate::loader::Loader;
use crate::{ForwardInput, LoadError};

/// Projections, rotary embedding, per-head norms and attention of one layer.
#[derive(Debug)]
pub struct Attention {
    qkv: Linear,
    output: Linear,
    norms: Option<(Tensor<1>, Tensor<1>)>,
    rope: Option<RopeTable>,
    qkv_options: QkvOptions,
    scale: f32,
    sliding_window: Option<usize>,
    softcap: Option<f32>,
    /// Nothing comes after this layer that mixes tokens.
    is_last: bool,
}

impl Attention {
    /// Projections named as in Llama (`q_proj`, `k_proj`, `v_proj`, `output`; or as in Phi 3 `qkv_proj`), with `q_norm` and
    /// `k_norm` where the configuration has them.
    pub(crate) fn load(
        loader: &mut Loader,
        name: &str,
        output: &str,
        layer: usize,
        rope: Option<RopeTable>,
    ) -> Result<Self, LoadError> {
        let config = loader.config();
        let (hidden, query, kv) = (config.hidden_size, config.query_size(), config.kv_size());
        let part = |part: &str, rows: usize| (format!("{name}.{part}"), rows);
        let parts = if config.architecture.fuses_projections() {
            vec![part("qkv_proj", query + 2 * kv)]
        } else {
            vec![part("q_proj", query), part("k_proj", kv), part("v_proj", kv)]
        };
        let qkv = Linear::load(loader, &parts, hidden, config.attention_bias)?;
        let output = Linear::load(loader, &[part(output, hidden)], query, config.attention_output_bias)?;
        let norms = if config.qk_norm {
            let query_norm = loader.norm_weight(&format!("{name}.q_norm.weight"), config.head_dim)?;
            Some((query_norm, loader.norm_weight(&format!("{name}.k_norm.weight"), config.head_dim)?))
        } else {
            None
        };
        Ok(Self { norms, ..Self::from_projections(loader, qkv, output, layer, rope) })
    }

    /// Attention with given projections and no per-head norms.
    pub(crate) fn from_projections(
        loader: &Loader,
        qkv: Linear,
        output: Linear,
        layer: usize,
        rope: Option<RopeTable>,
    ) -> Self {
        let config = loader.config();
        let rotary_dim = rope.as_ref().map_or(0, |table| table.0.dims()[1]);
        let norm_eps = config.qk_norm.then_some(config.norm_eps);
        let slides = config.layer_kinds[layer] == LayerKind::Sliding;
        Self {
            qkv,
            output,
            norms: None,
            rope,
            qkv_options: QkvOptions { heads: head_layout(config), rotary_dim, norm_eps },
            scale: config.attention_scale,
            sliding_window: config.sliding_window.filter(|_| slides),
            softcap: config.attention_softcap,
            is_last: layer + 1 == config.num_layers,
        }
    }

    /// `attention(x)` and `residual`, `[T, hidden]` each; stores the batch's keys and values in `cache`. In the last layer
    /// both are of the wanted rows alone, where those are fewer.
    pub fn forward(
        &self,
        x: Tensor<2>,
        residual: Tensor<2>,
        input: &ForwardInput,
        cache: &mut KvLayer,
    ) -> (Tensor<2>, Tensor<2>) {
        let heads = self.heads(x, None, input, cache);
        let (heads, residual) = self.wanted(heads, residual, input);
        (project(heads, self.output.after(None), Then::Keep), residual)
    }

    /// `hidden + attention(norm(hidden))`, of the same rows, which `next` is then applied to.
    pub fn add_forward(
        &self,
        hidden: Stream,
        (norm, next): (&Norm, &Norm),
        input: &ForwardInput,
        cache: &mut KvLayer,
    ) -> Stream {
        let heads = self.heads(hidden.clone(), Some(norm), input, cache);
        let (heads, hidden) = self.wanted(heads, hidden.into_rows(), input);
        project_onto(hidden, heads, self.output.after(None), Some(next.of_rows()))
    }

    /// What is computed on: behind the last layer's attention a row's result depends on that row alone.
    fn wanted(&self, heads: Tensor<2>, residual: Tensor<2>, input: &ForwardInput) -> (Tensor<2>, Tensor<2>) {
        match input.rows_of_last_layer().filter(|_| self.is_last) {
            Some(rows) => (gather_rows(&heads, rows), gather_rows(&residual, rows)),
            None => (heads, residual),
        }
    }

    /// The heads' outputs, side by side.
    fn heads(&self, x: impl Into<Stream>, norm: Option<&Norm>, input: &ForwardInput, cache: &mut KvLayer) -> Tensor<2> {
        let qkv = QkvProjection {
            projection: self.qkv.after(norm),
            head_norms: self.norms.as_ref().map(|(query, key)| (query, key)),
            rope: self.rope.as_ref(),
            options: self.qkv_options,
        };
        let options = AttentionOptions {
            heads: self.qkv_options.heads,
            block_size: cache.block_size(),
            scale: self.scale,
            sliding_window: self.sliding_window,
            softcap: self.softcap,
        };
        self_attention(x, qkv, &input.metadata, (cache, options))
    }
}
