//! How much memory the GPU has, and memory without contents.

use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::CudaDevice;
use cubecl_common::device::Device as _;
use cubecl_common::device_handle::DeviceHandle;
use cudarc::driver::result as driver;
use cudarc::driver::sys;

use super::driver::check;
use super::launch::{CudaServer, Operands, submit};

/// Bytes of the first GPU's memory; `None` when the driver does not answer.
pub(crate) fn total_memory() -> Option<u64> {
    driver::init().ok()?;
    let device = driver::device::get(0).ok()?;
    // SAFETY: the driver just returned the device.
    unsafe { driver::device::total_mem(device) }.ok().map(|bytes| bytes as u64)
}

/// Bytes that no process has allocated; `None` when the driver does not answer.
pub(crate) fn free_memory(device: &CudaDevice) -> Option<u64> {
    let device = DeviceHandle::<CudaServer>::new(device.to_id());
    let info = device.submit_blocking(|_| driver::mem_get_info()).ok()?;
    info.ok().map(|(free, _)| free as u64)
}

/// A new tensor of zeros, without gaps, on the device of `like`. No kernel has to be compiled for it.
pub(crate) fn clear(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    let tensor = empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype);
    let bytes = tensor.meta.num_elements() * tensor.dtype.size();
    let mut operands = Operands::default();
    operands.write(&tensor);
    submit(&tensor, operands, move |session| {
        // SAFETY: the memory is the operand's, which has no gaps and so many bytes; the stream is the runtime's.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(session.addresses[0], 0, bytes, session.stream) })
    });
    tensor
}
