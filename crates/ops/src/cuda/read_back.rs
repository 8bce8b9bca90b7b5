//! Reading without waiting: the copy is enqueued now and waited for later.
//!
//! A kernel writes a few words into the host's memory; what is longer, a copy engine brings, for which the kernels before and
//! after it have to wait.

use std::sync::mpsc;

use burn::tensor::ExecutionError;
use burn_cubecl::tensor::CubeTensor;
use cubecl_common::bytes::{AllocationProperty, Bytes};
use cubecl_common::device::Device as _;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_environment::stream::StreamId;
use cubecl_runtime::server::{BufferBinding, CopyDescriptor, Server, ServerError};

use super::GATHER_ROWS;
use super::kernel::Kernel;
use super::launch::{Argument, CudaServer, Grid, failure, read};
use super::pinned::{Event, address_on_device};
use crate::read_back::Reading;

/// Most bytes that a kernel brings.
const BYTES_MAX: usize = 64 << 10;
const THREADS: usize = 256;

/// The contents of a tensor of 32-bit integers at this point of its stream.
pub(crate) fn read_back(tensor: &CubeTensor) -> Reading {
    let cubecl::Device::Cuda(device) = &tensor.device else { unreachable!("read elsewhere") };
    let length = tensor.meta.num_elements() * size_of::<i32>();
    let binding = tensor.handle.clone().binding();
    let stream = StreamId::current();
    let (sender, receiver) = mpsc::channel();
    let device = DeviceHandle::<CudaServer>::new(device.to_id());
    device.submit(move |server| {
        let written = written_by_kernel(server, stream, (&binding, length));
        // Nobody listens any more when the step was given up.
        let _ = sender.send(match written {
            Ok(Some(written)) => Started::Kernel(written),
            Ok(None) => {
                let descriptor = CopyDescriptor::new(binding, [length].into(), [1].into(), 1);
                Started::Copy(server.read(vec![descriptor], stream))
            }
            Err(error) => Started::Copy(Box::pin(std::future::ready(Err(error)))),
        });
    });
    device.flush_queue();
    Box::pin(async move {
        let failed = |reason: String| ExecutionError::WithContext { reason };
        match receiver.recv().map_err(|_| failed("the device's thread has ended".into()))? {
            Started::Kernel(mut written) => Ok(bytemuck::pod_collect_to_vec(written.wait().map_err(failed)?)),
            Started::Copy(reading) => {
                let bytes = reading.await.map_err(|error| failed(format!("{error}")))?;
                Ok(bytemuck::pod_collect_to_vec(&bytes[0]))
            }
        }
    })
}

/// What is under way.
enum Started {
    Kernel(Written),
    Copy(cubecl_environment::future::DynFut<Result<Vec<Bytes>, ServerError>>),
}

/// Memory of the host's that a kernel writes.
struct Written {
    /// Taken out only where the device has failed.
    bytes: Option<Bytes>,
    done: Event,
}

impl Written {
    /// The contents, when the kernel is over.
    fn wait(&mut self) -> Result<&[u8], String> {
        if let Err(error) = self.done.wait() {
            // Nobody knows what a device that has failed still writes.
            std::mem::forget(self.bytes.take());
            return Err(error);
        }
        Ok(self.bytes.as_deref().unwrap_or_default())
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = self.wait();
    }
}

/// Enqueues the kernel; `None` where there are too many words or the device cannot reach the host's memory. An error is that
/// of the work that should have written the tensor, or of this.
fn written_by_kernel(
    server: &mut CudaServer,
    stream: StreamId,
    (binding, length): (&BufferBinding, usize),
) -> Result<Option<Written>, ServerError> {
    if length == 0 || length > BYTES_MAX {
        return Ok(None);
    }
    let Some(mut bytes) = server.staging(&[length], stream)?.pop() else { return Ok(None) };
    if bytes.property() != AllocationProperty::Pinned {
        return Ok(None);
    }
    let Ok(to) = address_on_device(&mut bytes) else { return Ok(None) };
    let written = Written { bytes: Some(bytes), done: Event::new().map_err(failure)? };
    let done = &written.done;
    read(server, stream, std::slice::from_ref(binding), |mut session| {
        let count = length / size_of::<i32>();
        let kernel = Kernel::new(&GATHER_ROWS, "read_back").number("UNIT", 4);
        let grid = Grid::new([count.div_ceil(THREADS), 1, 1], THREADS);
        session.launch(&kernel, grid, &[Argument::Word(to), Argument::Address(0), count.into()])?;
        done.record(session.stream)
    })?;
    Ok(Some(written))
}
