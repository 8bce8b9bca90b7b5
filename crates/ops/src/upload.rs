//! Weights on their way from files to a CUDA device, at the speed of the bus; and memory there that begins as zeros.

use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Device, Int, Shape, Tensor};
use bytes::Bytes;

use crate::e4m3::E4M3;
use crate::{backend_of, tensor_bytes_max};

/// Uploads, on backend tensors.
#[backend_extension(Cube)]
pub trait Upload: Backend {
    /// A new tensor on the device of `like`; see [`upload`].
    fn upload(like: FloatTensor<Self>, pieces: Vec<Bytes>, shape: [usize; 2], dtype: DType) -> FloatTensor<Self>;

    /// A new tensor of zeros, without gaps, on the device of `like`, for which no kernel is compiled.
    fn cleared(like: FloatTensor<Self>, shape: Shape, dtype: DType) -> FloatTensor<Self>;

    /// The same, of bytes.
    fn cleared_bytes(like: FloatTensor<Self>, shape: Shape) -> IntTensor<Self>;

    /// The same for codes of 8 bits; see [`upload_codes`].
    fn upload_codes(like: FloatTensor<Self>, pieces: Vec<Bytes>, shape: [usize; 2]) -> IntTensor<Self>;
}

/// A tensor of zeros on a CUDA device.
pub(crate) fn cleared<const D: usize>(shape: [usize; D], (device, dtype): (&Device, DType)) -> Tensor<D> {
    let like = Tensor::<1>::empty([1], device).into_dispatch();
    Tensor::from_dispatch(Dispatch::cleared(like, Shape::from(shape), dtype))
}

/// The same, of bytes.
pub(crate) fn cleared_bytes<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    let like = Tensor::<1>::empty([1], device).into_dispatch();
    Tensor::from_dispatch(Dispatch::cleared_bytes(like, Shape::from(shape)))
}

/// A matrix in memory of its own whose row-major bytes are those of the pieces, one after the other; `None` where the
/// device is no CUDA device or cannot hold it in one tensor. Returns when the pieces have been read.
pub(crate) fn upload(pieces: &[Bytes], shape: [usize; 2], (device, dtype): (&Device, DType)) -> Option<Tensor<2>> {
    let like = taker(pieces, shape, (device, dtype))?.into_dispatch();
    let upload = |pieces| Tensor::from_dispatch(Dispatch::upload(like.clone(), pieces, shape, dtype));
    Some(device.memory_persistent_allocations(pieces.to_vec(), upload))
}

/// The same for [codes](crate::e4m3) of 8 bits.
pub(crate) fn upload_codes(pieces: &[Bytes], shape: [usize; 2], device: &Device) -> Option<Tensor<2, Int>> {
    let like = taker(pieces, shape, (device, E4M3))?.into_dispatch();
    let upload = |pieces| Tensor::from_dispatch(Dispatch::upload_codes(like.clone(), pieces, shape));
    Some(device.memory_persistent_allocations(pieces.to_vec(), upload))
}

/// A tensor on the device, if that takes a matrix of this shape and dtype in one piece.
fn taker(pieces: &[Bytes], shape: [usize; 2], (device, dtype): (&Device, DType)) -> Option<Tensor<1>> {
    let length = shape.iter().product::<usize>() * dtype.size();
    if backend_of(device) != crate::Backend::Cuda || length == 0 || length > tensor_bytes_max(device) {
        return None;
    }
    assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), length, "a matrix from bytes: length");
    Some(Tensor::empty([1], device))
}
