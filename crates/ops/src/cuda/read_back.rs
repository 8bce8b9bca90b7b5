//! Reading without waiting: the copy is enqueued now and waited for later.

use std::sync::mpsc;

use burn::tensor::ExecutionError;
use burn_cubecl::tensor::CubeTensor;
use cubecl_common::device::Device as _;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_environment::stream::StreamId;
use cubecl_runtime::server::{CopyDescriptor, Server};

use super::launch::CudaServer;
use crate::read_back::Reading;

/// The contents of a tensor of 32-bit integers at this point of its stream.
pub(crate) fn read_back(tensor: &CubeTensor) -> Reading {
    let cubecl::Device::Cuda(device) = &tensor.device else { unreachable!("read elsewhere") };
    let handle = tensor.handle.clone();
    let length = handle.size_in_used() as usize;
    let descriptor = CopyDescriptor::new(handle.binding(), [length].into(), [1].into(), 1);
    let stream = StreamId::current();
    let (sender, receiver) = mpsc::channel();
    let device = DeviceHandle::<CudaServer>::new(device.to_id());
    device.submit(move |server| {
        // Nobody listens any more when the step was given up.
        let _ = sender.send(server.read(vec![descriptor], stream));
    });
    device.flush_queue();
    Box::pin(async move {
        let failed = |reason: String| ExecutionError::WithContext { reason };
        let reading = receiver.recv().map_err(|_| failed("the device's thread has ended".into()))?;
        let bytes = reading.await.map_err(|error| failed(format!("{error}")))?;
        Ok(bytemuck::pod_collect_to_vec(&bytes[0]))
    })
}
