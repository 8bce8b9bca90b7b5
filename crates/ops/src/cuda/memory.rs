//! How much memory the GPU has.

use cubecl::cuda::CudaDevice;
use cubecl_common::device::Device as _;
use cubecl_common::device_handle::DeviceHandle;
use cudarc::driver::result as driver;

use super::launch::CudaServer;

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
