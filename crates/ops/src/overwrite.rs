//! New contents for an index tensor that a captured graph reads.

use burn::backend::{Backend, Dispatch, backend_extension, tensor::IntTensor};
use burn::tensor::{Int, Tensor};

/// Replaces the contents of a tensor, on backend tensors.
#[backend_extension(Flex: cfg(feature = "cpu"), Cube: cfg(any(feature = "wgpu", feature = "cuda")))]
pub trait Overwrite: Backend {
    /// See [`overwrite`].
    fn overwrite(target: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self>;
}

/// Gives `target` new values of the same number. On GPUs they are written into the very buffer of `target`, in order with
/// the work enqueued before and after; the returned tensor is the one to use from then on.
pub fn overwrite<const D: usize>(target: Tensor<D, Int>, values: Vec<i32>) -> Tensor<D, Int> {
    assert_eq!(target.shape().num_elements(), values.len(), "overwrite: size");
    Tensor::from_dispatch(Dispatch::overwrite(target.into_dispatch(), values))
}

#[cfg(feature = "cpu")]
impl Overwrite for burn_flex::Flex {
    fn overwrite(mut target: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self> {
        target.storage_mut::<i32>().copy_from_slice(&values);
        target
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
impl Overwrite for burn_cubecl::CubeBackend {
    fn overwrite(target: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self> {
        target.client.write(&target.handle, cubecl::bytes::Bytes::from_elems(values));
        target
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int_tensor;
    use crate::testing::for_each_device;

    #[test]
    fn a_tensor_has_its_new_values() {
        for_each_device(|device| {
            let tensor = overwrite(int_tensor(vec![1, 2, 3], [3], device), vec![4, -5, 6]);
            let values: Vec<i32> = tensor.into_data().try_to_vec().expect("32-bit integers");
            assert_eq!(values, vec![4, -5, 6]);
        });
    }
}
