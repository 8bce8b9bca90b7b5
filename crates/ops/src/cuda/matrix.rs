//! Tensors as kernels see them: adjacent elements within a row, rows apart by a stride.

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use super::recorded_memory;
use crate::backend::WeightTensors;

/// A matrix whose rows may be apart: Burn pads rows of its own tensors, and slices are views.
#[derive(Clone)]
pub(super) struct Matrix {
    pub tensor: CubeTensor,
    pub rows: usize,
    pub columns: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl Matrix {
    /// Whether rows begin on 16-byte boundaries and are made up of accesses of `group` elements.
    pub(super) fn has_groups_of(&self, group: usize) -> bool {
        on_16_bytes(&self.tensor) && [self.stride, self.columns].iter().all(|size| size.is_multiple_of(group))
    }

    /// A view of a tensor of rank 2; a copy only when the elements of a row are not adjacent.
    pub(super) fn of(tensor: CubeTensor) -> Self {
        let (shape, strides) = (&tensor.meta.shape, &tensor.meta.strides);
        let adjacent = !tensor.meta.is_tiled() && (strides[1] == 1 || shape[1] == 1);
        let tensor = if adjacent { tensor } else { into_contiguous(tensor) };
        let (rows, columns) = (tensor.meta.shape[0], tensor.meta.shape[1]);
        // The stride of a single row says nothing.
        let stride = if rows == 1 { columns } else { tensor.meta.strides[0] };
        Self { tensor, rows, columns, stride }
    }

    /// A new one, not yet written.
    pub(super) fn like(&self, columns: usize) -> CubeTensor {
        empty(&self.tensor, [self.rows, columns], self.tensor.dtype)
    }
}

/// The weights of a product.
pub(super) struct Weights {
    pub matrix: Matrix,
    /// Of each row, where the matrix holds [codes](crate::e4m3).
    pub scales: Option<CubeTensor>,
}

impl Weights {
    pub(super) fn of(tensors: WeightTensors<CubeBackend>) -> Self {
        match tensors {
            WeightTensors::Floats(values) => Self { matrix: Matrix::of(values), scales: None },
            WeightTensors::Codes(codes, scales) => Self { matrix: Matrix::of(codes), scales: Some(dense(scales)) },
        }
    }
}

/// A tensor of rank 1 or of any rank without gaps.
pub(super) fn dense(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// A tensor that no one else holds, to be changed in place; a copy of one that is shared.
pub(super) fn owned(tensor: CubeTensor) -> CubeTensor {
    if recorded_memory::can_change(&tensor) { tensor } else { tensor.copy() }
}

/// A new tensor without gaps on the device of `like`, not yet written.
pub(super) fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D], dtype: DType) -> CubeTensor {
    let (client, device, shape) = (like.client.clone(), like.device.clone(), Shape::from(shape));
    match recorded_memory::take(like, &shape, dtype) {
        Some(handle) => CubeTensor::new_contiguous(client, device, shape, handle, dtype),
        None => empty_device_contiguous_dtype(client, device, shape, dtype),
    }
}

/// Whether a tensor's first element is on a 16-byte boundary: allocations are, views may not be.
pub(super) fn on_16_bytes(tensor: &CubeTensor) -> bool {
    tensor.handle.offset_start.unwrap_or(0).is_multiple_of(16)
}

/// Elements that the widest access moves: 16 bytes, and as many codes of 8 bits as 16-bit elements.
pub(super) fn widest(dtype: DType) -> usize {
    (16 / dtype.size()).min(8)
}
