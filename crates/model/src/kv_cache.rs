//! The keys and values of every layer.

use burn::tensor::{DType, Device};
use firebrick_checkpoint::{KvDtype, ModelConfig};
use firebrick_ops::e4m3::E4M3;
use firebrick_ops::{HeadLayout, KvLayer, activation_dtype, tensor_bytes_max};

use crate::LoadError;
use crate::loader::burn_dtype;

/// One [`KvLayer`] per layer of the model; block ids mean the same block in all of them.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<KvLayer>,
}

impl KvCache {
    /// Allocates `num_blocks` blocks of `block_size` tokens in every layer. Floats have the form that the device computes
    /// in for weights of that form.
    pub fn new(
        config: &ModelConfig,
        dtype: KvDtype,
        (num_blocks, block_size): (usize, usize),
        device: &Device,
    ) -> Result<Self, LoadError> {
        let num_blocks_max = Self::num_blocks_max(config, (dtype, block_size), device);
        if num_blocks > num_blocks_max {
            return Err(LoadError::CacheTooLarge { num_blocks, block_size, num_blocks_max });
        }
        let heads = head_layout(config);
        let dtype = stored_dtype(dtype, device);
        let layer = |_| KvLayer::with_dtype(num_blocks, block_size, heads, (device, dtype));
        Ok(Self { layers: (0..config.num_layers).map(layer).collect() })
    }

    /// Blocks of which the keys of a layer fill the largest tensor that the device can hold.
    pub fn num_blocks_max(config: &ModelConfig, (dtype, block_size): (KvDtype, usize), device: &Device) -> usize {
        let number_bytes = stored_dtype(dtype, device).size();
        let block_bytes = block_size * config.num_kv_heads * config.head_dim * number_bytes;
        tensor_bytes_max(device) / block_bytes.max(1)
    }

    /// The cache of one layer.
    pub fn layer(&mut self, index: usize) -> &mut KvLayer {
        &mut self.layers[index]
    }
}

fn stored_dtype(dtype: KvDtype, device: &Device) -> DType {
    match dtype {
        KvDtype::Float(dtype) => activation_dtype(device, burn_dtype(dtype)),
        KvDtype::E4m3 => E4M3,
    }
}

/// How a model's fused projection is divided into heads.
pub(crate) fn head_layout(config: &ModelConfig) -> HeadLayout {
    HeadLayout { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim }
}
