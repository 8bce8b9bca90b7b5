//! The keys and values of one layer, in blocks.

use burn::backend::{
    Backend, Dispatch, ExtensionType,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Device, Tensor};

use crate::device::{zero_bytes, zero_tensor};
use crate::e4m3::{E4M3, decoded};
use crate::{HeadLayout, float_tensor};

/// Keys and values as they lie in memory, on backend tensors: `[slots, num_kv_heads, head_dim]` each.
#[derive(ExtensionType)]
pub enum KvTensors<B: Backend> {
    /// Elements of a float dtype.
    Floats(FloatTensor<B>, FloatTensor<B>),
    /// Bytes that are [codes](crate::e4m3) of floats.
    Codes(IntTensor<B>, IntTensor<B>),
}

/// One layer's KV cache: `[num_blocks * block_size, num_kv_heads, head_dim]` keys and as many values.
///
/// Slot `block * block_size + offset` holds one token. Operations write in place, so the layer must be the only owner of
/// its tensors; that is why it cannot be cloned.
pub struct KvLayer {
    tensors: Option<KvTensors<Dispatch>>,
    block_size: usize,
    /// Stands in for weights that an operation does not read.
    pub(crate) absent: Tensor<1>,
}

impl KvLayer {
    /// A zeroed layer of 32-bit floats.
    pub fn new(num_blocks: usize, block_size: usize, heads: HeadLayout, device: &Device) -> Self {
        Self::with_dtype(num_blocks, block_size, heads, (device, DType::F32))
    }

    /// A zeroed layer in the given dtype: one of floats that the backend's kernels store (see
    /// [`activation_dtype`](crate::activation_dtype)), or [`E4M3`] where it
    /// [keeps codes](crate::holds_fp8_cache).
    pub fn with_dtype(
        num_blocks: usize,
        block_size: usize,
        heads: HeadLayout,
        (device, dtype): (&Device, DType),
    ) -> Self {
        let shape = [num_blocks * block_size, heads.num_kv_heads, heads.head_dim];
        let tensors = if dtype == E4M3 {
            let zeros = || zero_bytes(shape, device).into_dispatch();
            KvTensors::Codes(zeros(), zeros())
        } else {
            let zeros = || zero_tensor(shape, (device, dtype)).into_dispatch();
            KvTensors::Floats(zeros(), zeros())
        };
        Self { tensors: Some(tensors), block_size, absent: float_tensor(vec![0.0], [1], device) }
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The keys as floats. On GPUs the result shows what is written later; for tests.
    pub fn keys(&self) -> Tensor<3> {
        match self.shared() {
            KvTensors::Floats(keys, _) => Tensor::from_dispatch(keys),
            KvTensors::Codes(keys, _) => decoded(Tensor::from_dispatch(keys)),
        }
    }

    /// The values as floats. On GPUs the result shows what is written later; for tests.
    pub fn values(&self) -> Tensor<3> {
        match self.shared() {
            KvTensors::Floats(_, values) => Tensor::from_dispatch(values),
            KvTensors::Codes(_, values) => decoded(Tensor::from_dispatch(values)),
        }
    }

    /// The tensors, to be read.
    pub(crate) fn shared(&self) -> KvTensors<Dispatch> {
        match self.tensors.as_ref().expect("an operation that takes the cache puts it back") {
            KvTensors::Floats(keys, values) => KvTensors::Floats(keys.clone(), values.clone()),
            KvTensors::Codes(keys, values) => KvTensors::Codes(keys.clone(), values.clone()),
        }
    }

    pub(crate) fn take(&mut self) -> KvTensors<Dispatch> {
        self.tensors.take().expect("an operation that takes the cache puts it back")
    }

    pub(crate) fn put(&mut self, tensors: KvTensors<Dispatch>) {
        self.tensors = Some(tensors);
    }
}

impl std::fmt::Debug for KvLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("KvLayer").field("block_size", &self.block_size).finish_non_exhaustive()
    }
}
