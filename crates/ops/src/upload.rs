//! Weights on their way from files to a CUDA device, at the speed of the bus.

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Device, Tensor};
use bytes::Bytes;

use crate::{backend_of, tensor_bytes_max};

/// Uploads, on backend tensors.
#[backend_extension(Cube)]
pub trait Upload: Backend {
    /// A new tensor on the device of `like`; see [`upload`].
    fn upload(like: FloatTensor<Self>, pieces: Vec<Bytes>, shape: [usize; 2], dtype: DType) -> FloatTensor<Self>;
}

/// A matrix in memory of its own whose row-major bytes are those of the pieces, one after the other; `None` where the
/// device is no CUDA device or cannot hold it in one tensor. Returns when the pieces have been read.
pub(crate) fn upload(pieces: &[Bytes], shape: [usize; 2], (device, dtype): (&Device, DType)) -> Option<Tensor<2>> {
    let length = shape.iter().product::<usize>() * dtype.size();
    if backend_of(device) != crate::Backend::Cuda || length == 0 || length > tensor_bytes_max(device) {
        return None;
    }
    assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), length, "a matrix from bytes: length");
    let like = Tensor::<1>::empty([1], device).into_dispatch();
    let upload = |pieces| Tensor::from_dispatch(Dispatch::upload(like.clone(), pieces, shape, dtype));
    Some(device.memory_persistent_allocations(pieces.to_vec(), upload))
}
