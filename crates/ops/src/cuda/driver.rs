//! What the device's thread keeps between launches: loaded kernels and the matrix library.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_void};
use std::time::Instant;

use cudarc::driver::sys::{self, CUdeviceptr, CUfunction, CUfunction_attribute, CUmodule, CUresult, CUstream};

use super::cublaslt::Blas;
use super::gpu::Gpu;
use super::kernel::{Kernel, Module};
use super::launch::Grid;
use super::module_cache::{Target, can_compile, compile, not_built, stored};
use super::pinned::Ring;
use super::upload::Staging;

/// Dynamic shared memory that a kernel may use without asking.
const SHARED_BYTES_DEFAULT: usize = 48 * 1024;

/// Numbers with which blocks of a launch count each other.
pub(super) const COUNTERS: usize = 4096;

/// A loaded kernel.
#[derive(Clone, Copy)]
struct Function {
    raw: CUfunction,
    /// Dynamic shared memory it may use.
    shared_bytes: usize,
    /// It may be started before the kernel before it has ended, for whose results it waits itself.
    starts_early: bool,
}

/// What a source calls, in every entry, when its kernels may be started early.
const WAITS: &str = "wait_for_previous_kernel();";

/// The percentage of a multiprocessor's memory that is to be shared memory: the same for all kernels, because those that
/// divide it differently cannot be on a multiprocessor together, and changing the division takes time.
const SHARED_MEMORY_PERCENT: i32 = 100;

/// The state of one device's thread.
pub(super) struct Driver {
    /// What kernels are compiled for.
    pub target: Target,
    modules: HashMap<Module, CUmodule>,
    functions: HashMap<Kernel, Function>,
    blas: Option<Blas>,
    /// Of each stream: launches of different streams may run at the same time.
    counters: HashMap<CUstream, CUdeviceptr>,
    staging: Option<Staging>,
    rings: HashMap<CUstream, Ring>,
}

impl Driver {
    /// Of the first device, whose context is current on this thread.
    pub(super) fn new() -> Self {
        let target = Target::of(Gpu::current().capability, Gpu::whole().capability);
        let (modules, functions) = (HashMap::new(), HashMap::new());
        let (counters, rings) = (HashMap::new(), HashMap::new());
        Self { target, modules, functions, blas: None, counters, staging: None, rings }
    }

    /// The matrix library, opened at the first use.
    pub(super) fn blas(&mut self) -> Result<&mut Blas, String> {
        if self.blas.is_none() {
            self.blas = Some(Blas::new(self.target)?);
        }
        Ok(self.blas.as_mut().expect("opened above"))
    }

    /// The buffers through which weights go to the device, made at the first use.
    pub(super) fn staging(&mut self) -> Result<&mut Staging, String> {
        if self.staging.is_none() {
            self.staging = Some(Staging::new()?);
        }
        Ok(self.staging.as_mut().expect("made above"))
    }

    /// The host memory in which kernels of a stream find words, made at the first use.
    pub(super) fn ring(&mut self, stream: CUstream) -> Result<&mut Ring, String> {
        Ok(match self.rings.entry(stream) {
            Entry::Occupied(ring) => ring.into_mut(),
            Entry::Vacant(place) => place.insert(Ring::new()?),
        })
    }

    /// The address of [`COUNTERS`] 32-bit zeros of a stream, which every launch that counts with them leaves zero. Allocated once.
    pub(super) fn counters(&mut self, stream: CUstream) -> Result<CUdeviceptr, String> {
        let place = match self.counters.entry(stream) {
            Entry::Occupied(counters) => return Ok(*counters.get()),
            Entry::Vacant(place) => place,
        };
        let address = allocate(COUNTERS * size_of::<u32>())?;
        // SAFETY: the memory was just allocated with this size, and the stream is the runtime's.
        check("cuMemsetD32Async", unsafe { sys::cuMemsetD32Async(address, 0, COUNTERS, stream) })?;
        Ok(*place.insert(address))
    }

    /// Enqueues a kernel. The first use compiles it, or finds it compiled on disk.
    ///
    /// `arguments` must be those of the entry, in order and size, which the operation that names it ensures.
    pub(super) fn launch(
        &mut self,
        kernel: &Kernel,
        grid: Grid,
        stream: CUstream,
        arguments: &[Vec<u64>],
    ) -> Result<(), String> {
        let [x, y, z] = grid.blocks.map(|blocks| blocks as u32);
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let function = self.function(kernel, grid.shared_bytes)?;
        let mut addresses: Vec<*mut c_void> = arguments.iter().map(|words| words.as_ptr() as *mut c_void).collect();
        // A kernel may read weights before it waits. Only in a graph they are sure to be long written.
        let early = (function.starts_early && (grid.early || is_capturing(stream)?)).then(early_start);
        let cluster = (grid.cluster > 1).then(|| cluster_of(grid.cluster));
        let mut attributes: Vec<_> = early.into_iter().chain(cluster).collect();
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: grid.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes as u32,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the function is loaded, the stream is the runtime's, and the driver copies the attributes and the
        // arguments, which are those of this entry, before it returns.
        let result =
            unsafe { sys::cuLaunchKernelEx(&config, function.raw, addresses.as_mut_ptr(), std::ptr::null_mut()) };
        check("cuLaunchKernelEx", result)
            .map_err(|error| format!("kernel {} of {}.cu with {grid:?}: {error}", kernel.entry, kernel.module.name()))
    }

    fn function(&mut self, kernel: &Kernel, shared_bytes: usize) -> Result<Function, String> {
        let mut function = match self.functions.get(kernel) {
            Some(function) => *function,
            None => self.load_function(kernel)?,
        };
        if shared_bytes > function.shared_bytes {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded and stays so.
            let result = unsafe { sys::cuFuncSetAttribute(function.raw, attribute, shared_bytes as i32) };
            check("cuFuncSetAttribute", result)
                .map_err(|error| format!("{shared_bytes} bytes of shared memory for {}: {error}", kernel.entry))?;
            function.shared_bytes = shared_bytes;
            self.functions.insert(kernel.clone(), function);
        }
        Ok(function)
    }

    fn load_function(&mut self, kernel: &Kernel) -> Result<Function, String> {
        let module = match self.modules.get(&kernel.module) {
            Some(module) => *module,
            None => {
                let module = self.load_module(&kernel.module)?;
                self.modules.insert(kernel.module.clone(), module);
                module
            }
        };
        let name = CString::new(kernel.entry).expect("entries are identifiers");
        let mut raw = std::ptr::null_mut();
        // SAFETY: the module is loaded and never unloaded; the name ends with a zero byte.
        check("cuModuleGetFunction", unsafe { sys::cuModuleGetFunction(&mut raw, module, name.as_ptr()) })
            .map_err(|error| format!("entry {} of {}.cu: {error}", kernel.entry, kernel.module.name()))?;
        let starts_early = self.target.major >= 9 && kernel.module.contains(WAITS);
        if self.target.major >= 9 {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            // SAFETY: the function was just loaded and stays so.
            let result = unsafe { sys::cuFuncSetAttribute(raw, attribute, SHARED_MEMORY_PERCENT) };
            check("cuFuncSetAttribute", result)?;
        }
        let function = Function { raw, shared_bytes: SHARED_BYTES_DEFAULT, starts_early };
        self.functions.insert(kernel.clone(), function);
        Ok(function)
    }

    /// Loads what is compiled on disk, or compiles when there is nothing or the driver refuses it.
    fn load_module(&self, module: &Module) -> Result<CUmodule, String> {
        let name = module.name();
        if let Some(image) = stored(module, self.target)
            && let Ok(module) = load_image(&image)
        {
            return Ok(module);
        }
        if !can_compile() {
            return Err(not_built(module, self.target));
        }
        let started = Instant::now();
        let image = compile(module, self.target)?;
        tracing::info!("compiled {name}.cu in {:.1} s, when it was needed", started.elapsed().as_secs_f64());
        load_image(&image).map_err(|error| format!("{name}.cu compiled, but {error}"))
    }
}

/// Device memory that is never freed, of the context that is current on the device's thread.
pub(super) fn allocate(bytes: usize) -> Result<CUdeviceptr, String> {
    let mut address = 0;
    // SAFETY: the address is written to a live variable.
    check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut address, bytes) }).map(|()| address)
}

/// Whether work on the stream is being recorded.
fn is_capturing(stream: CUstream) -> Result<bool, String> {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the stream is the runtime's; the status is written to a live variable.
    check("cuStreamIsCapturing", unsafe { sys::cuStreamIsCapturing(stream, &mut status) })?;
    Ok(status == sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE)
}

/// The attribute of a launch that lets it start before the kernel before it has ended.
fn early_start() -> sys::CUlaunchAttribute {
    let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
    let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}

/// The attribute of a launch whose neighbouring blocks run together.
fn cluster_of(blocks: usize) -> sys::CUlaunchAttribute {
    let size = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks as u32, y: 1, z: 1 };
    let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    sys::CUlaunchAttribute { id, pad: [0; 4], value: sys::CUlaunchAttributeValue { clusterDim: size } }
}

fn load_image(image: &[u8]) -> Result<CUmodule, String> {
    let mut module = std::ptr::null_mut();
    // SAFETY: the image is a whole cubin in live memory, with its own length in its header; a context is current.
    check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) })?;
    Ok(module)
}

/// An error of the driver as text.
pub(super) fn check(call: &str, result: CUresult) -> Result<(), String> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        error => Err(format!("{call} returned {error:?}")),
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::DispatchDevice;
    use cubecl_common::device::Device as _;
    use cubecl_common::device_handle::DeviceHandle;
    use cubecl_environment::stream::StreamId;

    use super::super::kernel::Kernel;
    use super::super::launch::{CudaServer, read};
    use super::super::{PAGED_ATTENTION_PLAN, PAGED_ATTENTION_SINGLE, PAGED_ATTENTION_WGMMA, Source};
    use super::WAITS;
    use crate::testing::for_each_device;
    use crate::{WorkStream, int_tensor};

    #[test]
    fn kernels_start_early_that_wait_themselves_or_in_what_they_need() {
        static IN_WHAT_IT_NEEDS: Source = Source { needs: WAITS, ..PAGED_ATTENTION_PLAN };
        let waits = |source| Kernel::new(source, "any").module.contains(WAITS);
        assert!(waits(&PAGED_ATTENTION_SINGLE) && waits(&PAGED_ATTENTION_WGMMA));
        assert!(waits(&IN_WHAT_IT_NEEDS) && !waits(&PAGED_ATTENTION_PLAN));
    }

    /// As two models', whose kernels would count each other's blocks.
    #[test]
    fn streams_that_may_run_at_the_same_time_share_no_memory_that_kernels_write() {
        for_each_device(|device| {
            let DispatchDevice::Cube(cubecl::Device::Cuda(gpu)) = device.as_dispatch() else { return };
            let server = DeviceHandle::<CudaServer>::new(gpu.to_id());
            let addresses = || {
                // A stream begins with the first work in it.
                let (_tensor, stream) =
                    WorkStream::new().enter(|| (int_tensor(vec![0], [1], device), StreamId::current()));
                let found = server.submit_blocking(move |server| {
                    let mut addresses = Vec::new();
                    let found = read(server, stream, &[], |session| {
                        addresses.push(session.driver.counters(session.stream)?);
                        addresses.push(session.driver.blas()?.workspace(session.stream)?);
                        Ok(())
                    });
                    found.map(|()| addresses)
                });
                found.expect("the device works").expect("there is memory")
            };
            let [one, other] = [addresses(), addresses()];
            assert!(one.iter().all(|address| !other.contains(address)), "{one:?} and {other:?}");
        });
    }
}
