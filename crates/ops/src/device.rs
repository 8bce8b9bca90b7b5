//! Which device runs the model, and how host data becomes tensors on it.

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};
use thiserror::Error;

#[cfg(feature = "cuda")]
use crate::upload::{cleared, cleared_bytes};

/// A way to run the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Plain Rust on the processor's cores.
    Cpu,
    /// WGSL through Vulkan, Metal, DirectX 12 or WebGPU.
    Wgpu,
    /// CUDA C++ on NVIDIA GPUs.
    Cuda,
}

impl Backend {
    /// The backends of this build, best first.
    pub const BUILT: &'static [Backend] = &[
        #[cfg(feature = "cuda")]
        Backend::Cuda,
        #[cfg(feature = "wgpu")]
        Backend::Wgpu,
        #[cfg(feature = "cpu")]
        Backend::Cpu,
    ];

    /// The name used by `--device`.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Wgpu => "wgpu",
            Backend::Cuda => "cuda",
        }
    }
}

/// A device that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// The binary was built without this backend.
    #[error("this build has no {0} backend; rebuild with `--features {0}`")]
    NotBuilt(&'static str),
    /// The machine has no such device, or its driver does not answer.
    #[error("no {backend} device: {reason}")]
    Unavailable {
        /// The backend's name.
        backend: &'static str,
        /// What is missing.
        reason: String,
    },
    /// There is a device, but not all that it takes to compute on it.
    #[error("the {backend} device cannot be used: {reason}")]
    Unusable {
        /// The backend's name.
        backend: &'static str,
        /// What is missing.
        reason: String,
    },
    /// Kernels are missing, or cannot be compiled.
    #[error("{0}")]
    Kernels(String),
}

/// Opens the first device of a backend, after checking that there is one: a missing driver is an error, not a panic.
pub fn open_device(backend: Backend) -> Result<Device, DeviceError> {
    let device = open(backend)?;
    #[cfg(all(target_os = "linux", any(feature = "wgpu", feature = "cuda")))]
    crate::device_thread::let_sleep(&device);
    Ok(device)
}

fn open(backend: Backend) -> Result<Device, DeviceError> {
    match backend {
        #[cfg(feature = "cpu")]
        Backend::Cpu => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        Backend::Cuda => crate::cuda::open(),
        #[cfg(feature = "wgpu")]
        Backend::Wgpu => crate::wgpu::open(),
        #[allow(unreachable_patterns)]
        other => Err(DeviceError::NotBuilt(other.name())),
    }
}

/// Waits until devices have done what they were given; for the end of a process.
pub fn settle_devices() {
    #[cfg(feature = "cuda")]
    crate::cuda::settle();
}

/// Makes CUDA devices run the kernels for cards of this compute capability (10 · major + minor) instead of their own: what
/// a T4 (75) or an A100 (80) runs can be tested on a newer card. The first call decides for the whole process.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub fn use_cuda_kernels_of(capability: u32) -> Result<(), DeviceError> {
    #[cfg(feature = "cuda")]
    return crate::cuda::use_kernels_of(capability);
    #[cfg(not(feature = "cuda"))]
    Err(DeviceError::NotBuilt("cuda"))
}

/// Makes a row's results the same to the last bit in every batch: alone, among others, in chunks, after preemption or a
/// prefix hit. For the whole process; on CUDA it costs speed, the other backends always do so.
pub fn use_batch_invariant_kernels() {
    #[cfg(feature = "cuda")]
    crate::cuda::use_batch_invariant_kernels();
}

/// Whether a device computes with numbers of this form.
pub fn computes_in(device: &Device, dtype: DType) -> bool {
    match (backend_of(device), dtype) {
        (Backend::Wgpu, DType::BF16) => false,
        #[cfg(feature = "cuda")]
        (Backend::Cuda, DType::BF16) => crate::cuda::has_bfloat16(),
        _ => true,
    }
}

/// As [`open_device`], where a device can only be awaited: in a browser.
pub async fn open_device_async(backend: Backend) -> Result<Device, DeviceError> {
    match backend {
        #[cfg(feature = "wgpu")]
        Backend::Wgpu => crate::wgpu::open_async().await,
        other => open_device(other),
    }
}

/// Bytes of memory of a device's own; `None` where it shares the machine's, or does not say.
pub fn device_memory(device: &Device) -> Option<u64> {
    match backend_of(device) {
        #[cfg(feature = "cuda")]
        Backend::Cuda => crate::cuda::total_memory(),
        _ => None,
    }
}

/// Compute capability (10 · major + minor) of a CUDA device, or the one whose kernels it runs; `None` on other devices.
pub fn compute_capability(device: &Device) -> Option<u32> {
    match backend_of(device) {
        #[cfg(feature = "cuda")]
        Backend::Cuda => Some(crate::cuda::capability_in_use()),
        _ => None,
    }
}

/// Bytes of the device's memory that no process has allocated, where the device tells.
pub fn free_device_memory(device: &Device) -> Option<u64> {
    match device.as_dispatch() {
        #[cfg(feature = "cuda")]
        DispatchDevice::Cube(cubecl::Device::Cuda(device)) => crate::cuda::free_memory(device),
        _ => None,
    }
}

/// The backend that a device belongs to.
pub fn backend_of(device: &Device) -> Backend {
    match device.as_dispatch() {
        #[cfg(feature = "cpu")]
        DispatchDevice::Flex(_) => Backend::Cpu,
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        DispatchDevice::Cube(cubecl::Device::Cuda(_)) => Backend::Cuda,
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        DispatchDevice::Cube(_) => Backend::Wgpu,
        #[allow(unreachable_patterns)]
        _ => unreachable!("tensors live on devices that `open_device` opened"),
    }
}

/// The dtype of activations and of the KV cache for weights of a dtype: CUDA kernels compute in the weights' own, the
/// others widen to 32 bits.
pub fn activation_dtype(device: &Device, weights: DType) -> DType {
    match backend_of(device) {
        Backend::Cuda => weights,
        Backend::Cpu | Backend::Wgpu => DType::F32,
    }
}

/// Whether a device computes with quantised weights as they are. CUDA is given dense ones: its kernels read floats only.
pub fn holds_packed_weights(device: &Device) -> bool {
    backend_of(device) != Backend::Cuda
}

/// Whether a device can keep keys and values as [codes](crate::e4m3) of 8 bits. wgpu's kernels read 32-bit floats only.
pub fn holds_fp8_cache(device: &Device) -> bool {
    backend_of(device) != Backend::Wgpu
}

/// Whether a device multiplies by weights in [FP8](crate::Weight::fp8) faster than by 16-bit ones: CUDA cards of compute
/// capability 8.9 and later, whose matrix units take codes of 8 bits.
pub fn holds_fp8_weights(device: &Device) -> bool {
    match backend_of(device) {
        #[cfg(feature = "cuda")]
        Backend::Cuda => crate::cuda::multiplies_fp8(),
        _ => false,
    }
}

/// Bytes of the largest tensor that a device can hold.
pub fn tensor_bytes_max(device: &Device) -> usize {
    match device.as_dispatch() {
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        DispatchDevice::Cube(device) => device.client().properties().memory.max_page_size as usize,
        #[allow(unreachable_patterns)]
        _ => usize::MAX,
    }
}

/// Runs `task` on the thread that talks to the device, which does nothing else for anybody meanwhile; `None` when it panicked,
/// or there is no GPU.
pub(crate) fn with_device_alone<R: Send + 'static>(device: &Device, task: impl FnOnce() -> R + Send) -> Option<R> {
    match device.as_dispatch() {
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        DispatchDevice::Cube(device) => device.client().exclusive(task).ok(),
        #[allow(unreachable_patterns)]
        _ => {
            drop(task);
            None
        }
    }
}

/// A tensor of 32-bit integers, the form in which indices reach every kernel.
pub fn int_tensor<const D: usize>(values: Vec<i32>, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::I32))
}

/// Such a list that stays: its memory is its own, not part of the pages that activations share.
pub fn kept_int_tensor(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let length = values.len();
    device.memory_persistent_allocations(values, |values| int_tensor(values, [length], device))
}

/// A tensor of 32-bit floats.
pub fn float_tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    let shape = Shape::from(shape);
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// As [`zero_tensor`], of bytes.
pub(crate) fn zero_bytes<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    let dtype = DType::U8;
    if backend_of(device) == Backend::Cpu {
        let zeros = TensorData::new(vec![0u8; shape.iter().product()], shape);
        return Tensor::from_data(zeros, (device, dtype));
    }
    #[cfg(feature = "cuda")]
    if backend_of(device) == Backend::Cuda {
        return device.memory_persistent_allocations(shape, |shape| cleared_bytes(shape, device));
    }
    device.memory_persistent_allocations(shape, |shape| Tensor::zeros(shape, (device, dtype)))
}

/// A tensor of zeros that stays: its memory is its own, not part of the pages that activations share, which are as large
/// as the largest tensor among them. On the CPU its memory is not touched, so that pages are taken only once they are used.
pub(crate) fn zero_tensor<const D: usize>(shape: [usize; D], (device, dtype): (&Device, DType)) -> Tensor<D> {
    if backend_of(device) == Backend::Cpu && dtype == DType::F32 {
        return float_tensor(vec![0.0; shape.iter().product()], shape, device);
    }
    #[cfg(feature = "cuda")]
    if backend_of(device) == Backend::Cuda {
        return device.memory_persistent_allocations(shape, |shape| cleared(shape, (device, dtype)));
    }
    device.memory_persistent_allocations(shape, |shape| Tensor::zeros(shape, (device, dtype)))
}
