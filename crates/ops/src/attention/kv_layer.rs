//! The keys and values of one layer, in blocks.

use burn::tensor::{DType, Device, Tensor};

use crate::HeadLayout;
use crate::device::zero_tensor;
use crate::float_tensor;

/// One layer's KV cache: `[num_blocks * block_size, num_kv_heads, head_dim]` keys and as many values.
///
/// Slot `block * block_size + offset` holds one token. Operations write in place, so the layer must be the only owner of
/// its tensors; that is why it cannot be cloned.
#[derive(Debug)]
pub struct KvLayer {
    tensors: Option<(Tensor<3>, Tensor<3>)>,
    block_size: usize,
    /// Stands in for weights that an operation does not read.
    pub(crate) absent: Tensor<1>,
}

impl KvLayer {
    /// A zeroed layer of 32-bit floats.
    pub fn new(num_blocks: usize, block_size: usize, heads: HeadLayout, device: &Device) -> Self {
        Self::with_dtype(num_blocks, block_size, heads, (device, DType::F32))
    }

    /// A zeroed layer in the given dtype, which must be one the backend's kernels store: see
    /// [`activation_dtype`](crate::activation_dtype).
    pub fn with_dtype(
        num_blocks: usize,
        block_size: usize,
        heads: HeadLayout,
        (device, dtype): (&Device, DType),
    ) -> Self {
        let shape = [num_blocks * block_size, heads.num_kv_heads, heads.head_dim];
        let zeros = || zero_tensor(shape, (device, dtype));
        Self { tensors: Some((zeros(), zeros())), block_size, absent: float_tensor(vec![0.0], [1], device) }
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The keys. Holding the result makes the next write copy; for tests.
    pub fn keys(&self) -> Tensor<3> {
        self.present().0.clone()
    }

    /// The values. Holding the result makes the next write copy; for tests.
    pub fn values(&self) -> Tensor<3> {
        self.present().1.clone()
    }

    pub(crate) fn take(&mut self) -> (Tensor<3>, Tensor<3>) {
        self.tensors.take().expect("an operation that takes the cache puts it back")
    }

    pub(crate) fn put(&mut self, keys: Tensor<3>, values: Tensor<3>) {
        self.tensors = Some((keys, values));
    }

    fn present(&self) -> &(Tensor<3>, Tensor<3>) {
        self.tensors.as_ref().expect("an operation that takes the cache puts it back")
    }
}
