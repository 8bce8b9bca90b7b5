//! Runs work on the device's thread, in order with Burn's own, with tensors resolved to addresses.

use std::cell::RefCell;

use burn_cubecl::tensor::CubeTensor;
use bytemuck::NoUninit;
use cubecl_common::device::Device as _;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::stream::StreamId;
use cubecl_runtime::runtime::Runtime;
use cubecl_runtime::server::{BufferBinding, ServerError, ServerStorage};
use cubecl_server::stream::{ExecuteScope, ScopedOutcome, WriteScoped, failed_writing};
use cudarc::driver::sys::CUstream;

use super::driver::Driver;
use super::kernel::Kernel;
use super::stream;
use super::tensor_map::TensorMap;

/// The runtime's state on the device's thread.
pub(super) type CudaServer = <cubecl::cuda::CudaRuntime as Runtime>::Server;

thread_local! {
    /// Each device has one thread, which alone talks to its driver.
    static DRIVER: RefCell<Option<Driver>> = const { RefCell::new(None) };
}

/// The tensors that a piece of work reads and writes.
#[derive(Default)]
pub(super) struct Operands {
    bindings: Vec<BufferBinding>,
    written: Vec<BufferBinding>,
}

impl Operands {
    /// Adds a tensor that is only read; returns its index among the addresses.
    pub(super) fn read(&mut self, tensor: &CubeTensor) -> usize {
        self.bindings.push(tensor.handle.clone().binding());
        self.bindings.len() - 1
    }

    /// Adds a tensor that is written, and perhaps read.
    pub(super) fn write(&mut self, tensor: &CubeTensor) -> usize {
        let index = self.read(tensor);
        self.written.push(self.bindings[index].clone());
        index
    }
}

/// What a piece of work finds on the device's thread.
pub(super) struct Session<'a> {
    /// What is kept between calls.
    pub driver: &'a mut Driver,
    /// Where to enqueue.
    pub stream: CUstream,
    /// The addresses of the operands, in the order in which they were added.
    pub addresses: &'a [u64],
}

/// Enqueues `work` after everything that this thread enqueued before. An error marks the tensors it was to write.
pub(super) fn submit(
    on: &CubeTensor,
    operands: Operands,
    work: impl FnOnce(Session) -> Result<(), String> + Send + 'static,
) {
    let cubecl::Device::Cuda(device) = &on.device else { unreachable!("a CUDA kernel for a tensor elsewhere") };
    let stream = StreamId::current();
    DeviceHandle::<CudaServer>::new(device.to_id()).submit(move |server| run(server, stream, operands, work));
}

fn run(
    server: &mut CudaServer,
    stream: StreamId,
    operands: Operands,
    work: impl FnOnce(Session) -> Result<(), String>,
) {
    let Operands { bindings, written } = operands;
    let (addresses, _held) = match resolve(server, stream, &bindings) {
        Ok(resolved) => resolved,
        Err(error) => return failed_writing(server, stream, written, error),
    };
    let outcome = ExecuteScope::over(server, stream, written).execute(|server| enter(server, stream, &addresses, work));
    if let ScopedOutcome::Failed(error) = outcome {
        tracing::error!("CUDA: {error}");
    }
}

/// Runs `work` on the device's thread, for which it only reads tensors. An error is its own or that of the work that should
/// have written them.
pub(super) fn read(
    server: &mut CudaServer,
    stream: StreamId,
    tensors: &[BufferBinding],
    work: impl FnOnce(Session) -> Result<(), String>,
) -> Result<(), ServerError> {
    let (addresses, _held) = resolve(server, stream, tensors)?;
    enter(server, stream, &addresses, work)
}

/// The addresses of tensors, and what holds the memory in place until work with them is enqueued: its reuse is ordered
/// after that.
fn resolve(
    server: &mut CudaServer,
    stream: StreamId,
    bindings: &[BufferBinding],
) -> Result<(Vec<u64>, impl Sized + use<>), ServerError> {
    let resources: Result<Vec<_>, ServerError> =
        bindings.iter().map(|binding| server.get_resource(binding.clone(), stream)).collect();
    let resources = resources?;
    // A graph that is being recorded must keep the pages it will touch.
    if let Some(capture) = server.capturing(stream) {
        for binding in bindings {
            capture.touch(binding.stream, binding.memory.descriptor().location());
        }
    }
    Ok((resources.iter().map(|resource| resource.resource().ptr).collect(), resources))
}

fn enter(
    server: &mut CudaServer,
    stream: StreamId,
    addresses: &[u64],
    work: impl FnOnce(Session) -> Result<(), String>,
) -> Result<(), ServerError> {
    let raw = stream::raw(server, stream).ok_or_else(|| failure("the runtime has no CUDA stream".into()))?;
    DRIVER.with_borrow_mut(|driver| {
        let driver = driver.get_or_insert_with(Driver::new);
        work(Session { driver, stream: raw, addresses }).map_err(failure)
    })
}

pub(super) fn failure(reason: String) -> ServerError {
    ServerError::Generic { reason, backtrace: BackTrace::capture() }
}

/// One argument of a kernel.
#[derive(Clone)]
pub(super) enum Argument {
    /// The address of an operand, by its index.
    Address(usize),
    /// A description of an operand, by its index, for the bulk copy engine.
    Mapped(usize, TensorMap),
    /// The address of [`COUNTERS`](super::driver::COUNTERS) numbers that are zero between launches.
    Counters,
    /// No address.
    Null,
    /// Anything of up to 8 bytes, in its low bytes.
    Word(u64),
    /// A structure, passed by value; padded to whole words.
    Structure(Vec<u64>),
}

impl Argument {
    pub(super) fn structure<T: NoUninit>(value: &T) -> Self {
        let bytes = bytemuck::bytes_of(value);
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Argument::Structure(words)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Argument::Word(value.to_bits().into())
    }
}

/// Sizes and strides: 32-bit in the kernels where they are counts, 64-bit where they are strides; both read these bytes.
impl From<usize> for Argument {
    fn from(value: usize) -> Self {
        Argument::Word(value as u64)
    }
}

/// The size of a launch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub blocks: [usize; 3],
    pub threads: usize,
    /// Dynamic shared memory.
    pub shared_bytes: usize,
    /// Neighbouring blocks, in the first dimension, that run together and see each other's shared memory (from sm_90 on).
    pub cluster: usize,
    /// Whether blocks may start before the kernel before has ended, in graphs and elsewhere (from sm_90 on).
    pub early: bool,
}

impl Grid {
    pub(super) fn new(blocks: [usize; 3], threads: usize) -> Self {
        Self { blocks, threads, shared_bytes: 0, cluster: 1, early: false }
    }

    pub(super) fn with_shared(self, shared_bytes: usize) -> Self {
        Self { shared_bytes, ..self }
    }

    /// For a kernel that reads nothing before it waits for the one before, or only what that one has waited for.
    pub(super) fn starting_early(self) -> Self {
        Self { early: true, ..self }
    }

    /// `blocks` counts whole clusters' blocks.
    pub(super) fn in_clusters(self, cluster: usize) -> Self {
        Self { cluster, ..self }
    }
}

/// A kernel launch that is being put together.
pub(super) struct Launch {
    kernel: Kernel,
    grid: Grid,
    operands: Operands,
    arguments: Vec<Argument>,
}

impl Launch {
    pub(super) fn new(kernel: Kernel, grid: Grid) -> Self {
        Self { kernel, grid, operands: Operands::default(), arguments: Vec::new() }
    }

    /// The next argument: a tensor that is read.
    pub(super) fn read(mut self, tensor: &CubeTensor) -> Self {
        let index = self.operands.read(tensor);
        self.value(Argument::Address(index))
    }

    /// The next arguments: tensors that are read.
    pub(super) fn read_all<'a>(self, tensors: impl IntoIterator<Item = &'a CubeTensor>) -> Self {
        tensors.into_iter().fold(self, Self::read)
    }

    /// The next arguments: so many tensors that are not there.
    pub(super) fn absent(mut self, count: usize) -> Self {
        self.arguments.extend(std::iter::repeat_n(Argument::Null, count));
        self
    }

    /// The next argument: a tensor that is read, or none.
    pub(super) fn read_if(self, tensor: Option<&CubeTensor>) -> Self {
        match tensor {
            Some(tensor) => self.read(tensor),
            None => self.absent(1),
        }
    }

    /// The next argument: a description of a tensor that is read.
    pub(super) fn read_mapped(mut self, tensor: &CubeTensor, map: TensorMap) -> Self {
        let index = self.operands.read(tensor);
        self.value(Argument::Mapped(index, map))
    }

    /// The next argument: a tensor that is written.
    pub(super) fn write(mut self, tensor: &CubeTensor) -> Self {
        let index = self.operands.write(tensor);
        self.value(Argument::Address(index))
    }

    /// The next argument: a value.
    pub(super) fn value(mut self, value: impl Into<Argument>) -> Self {
        self.arguments.push(value.into());
        self
    }

    /// Enqueues the launch on the device of `on`.
    pub(super) fn submit(self, on: &CubeTensor) {
        let Self { kernel, grid, operands, arguments } = self;
        submit(on, operands, move |mut session| session.launch(&kernel, grid, &arguments));
    }
}

impl Session<'_> {
    /// Enqueues one kernel.
    pub(super) fn launch(&mut self, kernel: &Kernel, grid: Grid, arguments: &[Argument]) -> Result<(), String> {
        let words = self.words(arguments)?;
        self.driver.launch(kernel, grid, self.stream, &words)
    }

    /// The arguments as the kernel sees them.
    fn words(&mut self, arguments: &[Argument]) -> Result<Vec<Vec<u64>>, String> {
        let words = |argument: &Argument| {
            Ok(match argument {
                Argument::Address(index) => vec![self.addresses[*index]],
                Argument::Mapped(index, map) => map.encode(self.addresses[*index])?,
                Argument::Counters => vec![self.driver.counters(self.stream)?],
                Argument::Null => vec![0],
                Argument::Word(word) => vec![*word],
                Argument::Structure(words) => words.clone(),
            })
        };
        arguments.iter().map(words).collect()
    }
}
