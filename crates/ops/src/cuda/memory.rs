//! How much memory the GPU has.

use cudarc::driver::result as driver;

/// Bytes of the first GPU's memory; `None` when the driver does not answer.
pub(crate) fn total_memory() -> Option<u64> {
    driver::init().ok()?;
    let device = driver::device::get(0).ok()?;
    // SAFETY: the driver just returned the device.
    unsafe { driver::device::total_mem(device) }.ok().map(|bytes| bytes as u64)
}
