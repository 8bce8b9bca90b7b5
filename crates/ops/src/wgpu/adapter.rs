//! Finds out whether there is an adapter that the kernels can run on, before Burn would panic for lack of one.

use burn::tensor::Device;
#[cfg(target_family = "wasm")]
use burn::tensor::DeviceKind;

use crate::DeviceError;

/// Dispatches of a submission, at most. A GPU is idle for some 20 µs between two of them, and a replayed step is encoded
/// while the one before it runs; where it cannot be, the GPU waits until so many are encoded. Browsers, which encode a step
/// when the one before it is over, keep the runtime's 32; so does what is launched kernel by kernel (`kernel.rs`).
#[cfg(not(target_family = "wasm"))]
const SUBMITTED_MAX: usize = 64;

/// The best adapter, `WGPU_*` environment variables and `VK_DRIVER_FILES` permitting.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn open() -> Result<Device, DeviceError> {
    // Once in a process: Vulkan loaders do not bear instances that come and go on several threads.
    static OPENED: std::sync::OnceLock<Result<Device, DeviceError>> = std::sync::OnceLock::new();
    let open = || {
        probe()?;
        let opened = Device::wgpu_options().tasks_max(SUBMITTED_MAX).init();
        opened.map_err(|error| DeviceError::Unavailable { backend: "wgpu", reason: error.to_string() })
    };
    OPENED.get_or_init(open).clone()
}

#[cfg(not(target_family = "wasm"))]
fn probe() -> Result<(), DeviceError> {
    let unavailable = |reason: String| DeviceError::Unavailable { backend: "wgpu", reason };
    let instance = ::wgpu::Instance::new(::wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = ::cubecl::future::block_on(instance.enumerate_adapters(::wgpu::Backends::PRIMARY));
    if adapters.is_empty() {
        return Err(unavailable("no adapter answers; is a Vulkan, Metal or DirectX 12 driver installed?".into()));
    }
    let reasons: Vec<String> = adapters.iter().filter_map(shortcoming).collect();
    if reasons.len() == adapters.len() {
        return Err(unavailable(reasons.join("; ")));
    }
    Ok(())
}

/// In a browser a device can only be awaited: [`open_async`] has done so.
#[cfg(target_family = "wasm")]
pub(crate) fn open() -> Result<Device, DeviceError> {
    Ok(Device::wgpu(DeviceKind::DefaultDevice))
}

/// As [`open`], for programs that must not block.
#[cfg(not(target_family = "wasm"))]
pub(crate) async fn open_async() -> Result<Device, DeviceError> {
    open()
}

/// Asks the browser for its best adapter, with the adapter's own limits. Once in a worker's life.
#[cfg(target_family = "wasm")]
pub(crate) async fn open_async() -> Result<Device, DeviceError> {
    let opened = Device::wgpu_options().device_kind(DeviceKind::DefaultDevice).init_async().await;
    opened.map_err(|error| DeviceError::Unavailable { backend: "wgpu", reason: error.to_string() })
}

/// What an adapter lacks for the kernels, if anything: all of it is in WebGPU's guaranteed limits.
#[cfg(not(target_family = "wasm"))]
fn shortcoming(adapter: &::wgpu::Adapter) -> Option<String> {
    let limits = adapter.limits();
    let needs = [
        ("threads of a workgroup", limits.max_compute_invocations_per_workgroup, 256),
        ("bytes of a workgroup's memory", limits.max_compute_workgroup_storage_size, 16 << 10),
        ("storage buffers of a shader", limits.max_storage_buffers_per_shader_stage, 8),
    ];
    let (what, has, needed) = needs.into_iter().find(|(_, has, needed)| has < needed)?;
    Some(format!("adapter {} has {has} {what}, {needed} are needed", adapter.get_info().name))
}
