//! Whether this machine can run the CUDA backend, asked step by step: nothing here panics when something is missing.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use cubecl::cuda::CudaDevice;
use cubecl_common::device::Device as _;
use cubecl_common::device_handle::DeviceHandle;
use cudarc::driver::result as driver;
use cudarc::driver::sys::{CUdevice_attribute, CUlimit};

use super::gpu::{Gpu, limit_capability};
use super::launch::CudaServer;
use super::module_cache::{built_ahead, can_compile, compiler_version, supported_targets};
use crate::device::DeviceError;

/// The oldest GPU that the kernels are written for.
const CAPABILITY_MIN: u32 = 70;

/// Of a thread's stack: more than any kernel here has.
const STACK_BYTES: usize = 64;

/// The first CUDA device, or what is missing.
pub(crate) fn open() -> Result<Device, DeviceError> {
    find().map_err(|reason| DeviceError::Unavailable { backend: "cuda", reason })?;
    check_software().map_err(unusable)?;
    keep_stacks_small();
    IS_OPEN.store(true, Ordering::Relaxed);
    Ok(Device::cuda(0))
}

/// The driver keeps stacks for all threads that a GPU can run, by default 1,024 bytes each: 264 MiB of an H200, which keys and
/// values had better have. Where a kernel needs more than this, the driver makes room when the kernel first runs.
fn keep_stacks_small() {
    let device = DeviceHandle::<CudaServer>::new(CudaDevice::new(0).to_id());
    // Refused, memory is lost and nothing else.
    let _ = device.submit_blocking(|_| driver::ctx::set_limit(CUlimit::CU_LIMIT_STACK_SIZE, STACK_BYTES));
}

fn unusable(reason: String) -> DeviceError {
    DeviceError::Unusable { backend: "cuda", reason }
}

/// Whether there is a GPU.
fn find() -> Result<(), String> {
    // SAFETY: the call only tries to load a library by name.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err("no NVIDIA driver is installed (libcuda cannot be loaded)".into());
    }
    driver::init().map_err(|error| format!("the NVIDIA driver does not start: {:?}", error.0))?;
    match driver::device::get_count() {
        Ok(1..) => Ok(()),
        Ok(_) => Err("the NVIDIA driver sees no GPU".into()),
        Err(error) => Err(format!("the NVIDIA driver does not count its GPUs: {:?}", error.0)),
    }
}

/// Whether the GPU is one that the kernels are written for, and everything is there that launches them.
fn check_software() -> Result<(), String> {
    let libraries = "it is part of the CUDA toolkit; put its library folder on LD_LIBRARY_PATH";
    if !can_compile() && built_ahead().is_none() {
        return Err(format!(
            "the kernel compiler NVRTC (libnvrtc) cannot be loaded; {libraries}, or name a folder with kernels that \
             `firebrick kernels build` has made (--kernels)"
        ));
    }
    // SAFETY: the call only tries to load a library by name.
    if !unsafe { cudarc::cublaslt::sys::is_culib_present() } {
        return Err(format!("the matrix library cuBLASLt (libcublasLt) cannot be loaded; {libraries}"));
    }
    if built_ahead().is_none() {
        check_headers()?;
    }
    check_capability()
}

/// Whether [`open`] has succeeded in this process.
static IS_OPEN: AtomicBool = AtomicBool::new(false);

/// Waits until the device's thread has done everything it was given, such as releasing memory: work that it finds after
/// the process has begun to end, and the driver with it, would fail.
pub(crate) fn settle() {
    if IS_OPEN.load(Ordering::Relaxed) {
        // A device that has failed has nothing left to do.
        let _ = DeviceHandle::<CudaServer>::new(CudaDevice::new(0).to_id()).submit_blocking(|_| ());
    }
}

/// Chooses and compiles kernels for an older card from now on.
pub(crate) fn use_kernels_of(capability: u32) -> Result<(), DeviceError> {
    open()?;
    limit_to(capability).map_err(unusable)
}

fn limit_to(capability: u32) -> Result<(), String> {
    let own = compute_capability()?;
    let [of_gpu, wanted] = [own, capability].map(|capability| format!("{}.{}", capability / 10, capability % 10));
    if capability > own {
        return Err(format!("GPU 0 has compute capability {of_gpu} and cannot run kernels for {wanted}"));
    }
    if !can_compile() {
        return Err(format!(
            "kernels for {wanted} run on this card only where NVRTC (libnvrtc) compiles them; install it"
        ));
    }
    let supported = supported_targets();
    if !supported.contains(&capability) {
        return Err(format!("NVRTC does not compile for compute capability {wanted}, only for {supported:?}"));
    }
    limit_capability(capability)
        .map_err(|decided| format!("this process runs the kernels for {}.{} already", decided / 10, decided % 10))
}

/// Whether the matrix units of the kernels in use take bfloat16.
pub(crate) fn has_bfloat16() -> bool {
    Gpu::current().capability >= 80
}

/// The compute capability from which matrix units multiply codes of 8 bits.
pub(super) const FP8_CAPABILITY: u32 = 89;

/// Whether the matrix units multiply codes of 8 bits.
pub(crate) fn multiplies_fp8() -> bool {
    capability_in_use() >= FP8_CAPABILITY
}

/// The card's, or the one whose kernels are to be used.
pub(crate) fn capability_in_use() -> u32 {
    Gpu::current().capability
}

/// Burn compiles its own kernels, where a model needs any, and stops the process when it finds no toolkit for them.
pub(crate) fn check_headers() -> Result<(), String> {
    let folders = match std::env::var_os("CUDA_PATH") {
        Some(folder) => vec![PathBuf::from(folder)],
        None => ["/usr/local/cuda", "/opt/cuda", "/usr"].map(PathBuf::from).to_vec(),
    };
    let has_headers = folders.iter().any(|folder| folder.join("include").join("cuda_fp16.h").exists());
    if cfg!(windows) || has_headers {
        return Ok(());
    }
    let searched: Vec<String> = folders.iter().map(|folder| folder.join("include").display().to_string()).collect();
    Err(format!("the CUDA headers are not in {}; set CUDA_PATH to a CUDA toolkit", searched.join(", ")))
}

/// The compute capability of the first device, as 10 · major + minor.
fn compute_capability() -> Result<u32, String> {
    let device = driver::device::get(0).map_err(|error| format!("GPU 0 does not answer: {:?}", error.0))?;
    let attribute = |attribute| {
        // SAFETY: the driver just returned the device.
        let value = unsafe { driver::device::get_attribute(device, attribute) };
        value.map(|value| value as u32).map_err(|error| format!("GPU 0 does not answer: {:?}", error.0))
    };
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(10 * major + minor)
}

fn check_capability() -> Result<(), String> {
    let capability = compute_capability()?;
    let (major, minor) = (capability / 10, capability % 10);
    if capability < CAPABILITY_MIN {
        return Err(format!("GPU 0 has compute capability {major}.{minor}; 7.0 (Volta) or newer is needed"));
    }
    if !can_compile() {
        return Ok(());
    }
    let supported = supported_targets();
    if !supported.contains(&capability) {
        let (compiler_major, compiler_minor) = compiler_version();
        return Err(format!(
            "NVRTC {compiler_major}.{compiler_minor} does not compile for compute capability {major}.{minor} of GPU 0, \
             only for {supported:?}; install a CUDA toolkit that does"
        ));
    }
    Ok(())
}
