//! A part of an index tensor, seen without copying it.

use burn::backend::{Backend, Dispatch, backend_extension, tensor::IntTensor};
use burn::tensor::{Int, Tensor};

/// Sections start on multiples of this many elements (256 bytes: what every GPU can bind).
pub const SECTION_ALIGNMENT: usize = 64;

/// Takes a part of an index tensor, on backend tensors.
#[backend_extension(Flex: cfg(feature = "cpu"), Cube: cfg(any(feature = "wgpu", feature = "cuda")))]
pub trait Section: Backend {
    /// See [`section`].
    fn section(source: IntTensor<Self>, start: usize, len: usize) -> IntTensor<Self>;
}

/// The elements `start..start + len`. On GPUs the result is the very memory of `source`: what is
/// [written](crate::overwrite) there later shows in both.
pub fn section(source: &Tensor<1, Int>, start: usize, len: usize) -> Tensor<1, Int> {
    let [total] = source.dims();
    assert!(start.is_multiple_of(SECTION_ALIGNMENT), "section: start {start}");
    assert!(start + len <= total, "section: {start} + {len} of {total}");
    Tensor::from_dispatch(Dispatch::section(source.clone().into_dispatch(), start, len))
}

#[cfg(feature = "cpu")]
impl Section for burn_flex::Flex {
    fn section(source: IntTensor<Self>, start: usize, len: usize) -> IntTensor<Self> {
        let values = source.as_slice::<i32>().expect("made by `int_tensor`: contiguous, 32 bits");
        let part = values[start..start + len].to_vec();
        burn_flex::FlexTensor::from_data(burn::tensor::TensorData::new(part, [len]))
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
impl Section for burn_cubecl::CubeBackend {
    fn section(source: IntTensor<Self>, start: usize, len: usize) -> IntTensor<Self> {
        let total = source.meta.num_elements();
        let bytes = |elements: usize| (elements * source.dtype.size()) as u64;
        let handle = source.handle.clone().offset_start(bytes(start)).offset_end(bytes(total - start - len));
        burn_cubecl::tensor::CubeTensor::new_contiguous(
            source.client.clone(),
            source.device.clone(),
            [len].into(),
            handle,
            source.dtype,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::for_each_device;
    use crate::{Backend, backend_of, int_tensor, overwrite};

    fn values<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i32> {
        tensor.into_data().try_to_vec().expect("32-bit integers")
    }

    #[test]
    fn a_section_has_its_part_and_shows_what_is_written_later() {
        for_each_device(|device| {
            let source = int_tensor((0..150).collect(), [150], device);
            let part = section(&source, 64, 6);
            assert_eq!(values(part.clone().reshape([2, 3]) + 1), vec![65, 66, 67, 68, 69, 70]);
            drop(overwrite(source, (0..150).rev().collect()));
            if backend_of(device) != Backend::Cpu {
                assert_eq!(values(part + 0), vec![85, 84, 83, 82, 81, 80]);
            }
        });
    }
}
