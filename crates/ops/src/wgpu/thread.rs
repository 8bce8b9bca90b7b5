//! What is asked of the thread that talks to the GPU without waiting for it.
//!
//! A recording is encoded dispatch by dispatch, in a third of a millisecond for a small model's step. Burn's own call
//! waits for that; meanwhile the thread that schedules can prepare the next step.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};

use burn::backend::DispatchDevice;
use burn::tensor::ExecutionError;
use burn_cubecl::tensor::CubeTensor;
use cubecl_common::bytes::Bytes;
use cubecl_common::device::{Device as _, DeviceId, DeviceService, ServerUtilitiesHandle};
use cubecl_common::device_handle::DeviceHandle;
use cubecl_environment::future::DynFut;
use cubecl_environment::stream::StreamId;
use cubecl_runtime::runtime::Runtime;
use cubecl_runtime::server::{CopyDescriptor, Server as _, ServerError};

use crate::graph::Recorded;
use crate::launch;
use crate::read_back::Reading;

type Server = <cubecl::wgpu::WgpuRuntime as Runtime>::Server;

/// Replays after everything that this thread has enqueued on the device.
pub(crate) fn replay(recorded: Arc<Recorded>) {
    let DispatchDevice::Cube(device) = recorded.device.as_dispatch() else { unreachable!("recorded by wgpu") };
    let thread = DeviceHandle::<Bystander>::new(id(device));
    thread.submit(move |_| {
        if let Err(error) = launch::replay(&recorded) {
            tracing::error!(?error, "a step was not replayed");
        }
    });
    thread.flush_queue();
}

/// Lets the GPU begin with what this thread has enqueued.
pub(super) fn begin(device: &cubecl::Device) {
    let stream = StreamId::current();
    let thread = DeviceHandle::<Server>::new(id(device));
    thread.submit(move |server| {
        // A device that has failed says so when results are read.
        let _ = server.flush(stream);
    });
    thread.flush_queue();
}

/// The contents of a tensor of 32-bit integers after what this thread has enqueued.
pub(crate) fn read_back(tensor: &CubeTensor) -> Reading {
    let length = tensor.meta.num_elements() * size_of::<i32>();
    let descriptor = CopyDescriptor::new(tensor.handle.clone().binding(), [length].into(), [1].into(), 1);
    let stream = StreamId::current();
    let (sender, receiver) = mpsc::channel();
    let thread = DeviceHandle::<Server>::new(id(&tensor.device));
    thread.submit(move |server| {
        // Whoever asked listens until the answer is there.
        let _ = sender.send(server.read(vec![descriptor], stream));
    });
    thread.flush_queue();
    Box::pin(UnderWay { started: Some(receiver), reading: None })
}

/// What the runtime answers to a read.
type Answer = DynFut<Result<Vec<Bytes>, ServerError>>;

/// A read that may not have reached the device's thread yet.
struct UnderWay {
    started: Option<mpsc::Receiver<Answer>>,
    reading: Option<Answer>,
}

impl Future for UnderWay {
    type Output = Result<Vec<i32>, ExecutionError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Self::Output> {
        let failed = |reason: String| Poll::Ready(Err(ExecutionError::WithContext { reason }));
        if let Some(started) = self.started.take() {
            self.reading = started.recv().ok();
        }
        let Some(reading) = &mut self.reading else { return failed("the device's thread has ended".into()) };
        let answer = std::task::ready!(reading.as_mut().poll(context));
        self.reading = None;
        match answer {
            Ok(bytes) => Poll::Ready(Ok(bytemuck::pod_collect_to_vec(&bytes[0]))),
            Err(error) => failed(format!("{error}")),
        }
    }
}

impl Drop for UnderWay {
    /// The buffer of a read that is dropped goes to the next one, though it may still be mapped for this one.
    fn drop(&mut self) {
        if let Some(started) = self.started.take() {
            self.reading = started.recv().ok();
        }
        let Some(reading) = self.reading.take() else { return };
        // A browser does not let its threads wait: the few bytes of a step that is given up stay with nobody.
        #[cfg(target_family = "wasm")]
        std::mem::forget(reading);
        #[cfg(not(target_family = "wasm"))]
        drop(cubecl_environment::future::block_on(reading));
    }
}

fn id(device: &cubecl::Device) -> DeviceId {
    let cubecl::Device::Wgpu(device) = device else { unreachable!("a tensor of wgpu's") };
    device.to_id()
}

/// Lives on the device's thread beside Burn's runtime. A task given to the runtime itself could not call it.
struct Bystander;

impl DeviceService for Bystander {
    fn init(_: DeviceId) -> Self {
        Self
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        Arc::new(())
    }
}
