//! The keys and values of every layer.

use burn::tensor::Device;
use firebrick_checkpoint::{Dtype, ModelConfig};
use firebrick_ops::{HeadLayout, KvLayer, activation_dtype};

use crate::loader::burn_dtype;

/// One [`KvLayer`] per layer of the model; block ids mean the same block in all of them.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<KvLayer>,
}

impl KvCache {
    /// Allocates `num_blocks` blocks of `block_size` tokens in every layer, in the dtype that the device keeps keys and
    /// values in for weights of `dtype`.
    pub fn new(config: &ModelConfig, dtype: Dtype, (num_blocks, block_size): (usize, usize), device: &Device) -> Self {
        let heads = head_layout(config);
        let dtype = activation_dtype(device, burn_dtype(dtype));
        let layer = |_| KvLayer::with_dtype(num_blocks, block_size, heads, (device, dtype));
        Self { layers: (0..config.num_layers).map(layer).collect() }
    }

    /// The cache of one layer.
    pub fn layer(&mut self, index: usize) -> &mut KvLayer {
        &mut self.layers[index]
    }
}

/// How a model's fused projection is divided into heads.
pub(crate) fn head_layout(config: &ModelConfig) -> HeadLayout {
    HeadLayout { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim }
}
