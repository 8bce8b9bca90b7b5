//! Index tensors on their way to the host.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use burn::tensor::{ExecutionError, Int, Tensor};

/// The contents of a tensor, once the device has them.
pub(crate) type Reading = Pin<Box<dyn Future<Output = Result<Vec<i32>, ExecutionError>>>>;

/// Starts reading a tensor of 32-bit integers: what it holds is copied in order with the work enqueued before and after
/// this call, whenever the result is asked for.
pub(crate) fn read_back(tensor: Tensor<1, Int>) -> Reading {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if crate::backend_of(&tensor.device()) != crate::Backend::Cpu {
        return on_gpus::read_back(tensor);
    }
    begun(Box::pin(async move {
        let data = tensor.into_data_async().await?;
        Ok(data.as_slice::<i32>().expect("made as 32-bit integers").to_vec())
    }))
}

/// The same future after its first poll, which enqueues the copy.
fn begun(mut reading: Reading) -> Reading {
    match reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(values) => Box::pin(std::future::ready(values)),
        Poll::Pending => reading,
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) mod on_gpus {
    use std::sync::{Arc, Mutex};

    use burn::backend::{Backend, Dispatch, backend_extension, tensor::IntTensor};

    use super::*;

    /// Starts reading, on backend tensors.
    #[backend_extension(Cube)]
    pub trait ReadBack: Backend {
        /// Leaves the contents of the tensor, which is returned, in `started`.
        fn read_back(tensor: IntTensor<Self>, started: Started) -> IntTensor<Self>;
    }

    /// Where a backend leaves what it started.
    #[derive(Clone, Default)]
    pub struct Started(Arc<Mutex<Option<Reading>>>);

    impl Started {
        pub(crate) fn put(&self, reading: Reading) {
            *self.0.lock().expect("nobody panics with it") = Some(reading);
        }
    }

    pub(super) fn read_back(tensor: Tensor<1, Int>) -> Reading {
        let started = Started::default();
        drop(Tensor::<1, Int>::from_dispatch(Dispatch::read_back(tensor.into_dispatch(), started.clone())));
        let reading = started.0.lock().expect("nobody panics with it").take();
        reading.expect("the backend starts reading at once")
    }
}
