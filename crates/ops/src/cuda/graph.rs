//! A computation recorded once as a CUDA graph and replayed with one launch.

use burn::tensor::{Device, Graph, capture};

type Closure<T> = Box<dyn FnMut() -> T + Send>;

/// A recorded computation.
pub struct CapturedGraph<T> {
    graph: Graph<T, Closure<T>>,
}

impl<T: Clone> CapturedGraph<T> {
    /// Runs `closure` a few times and then records it. It must read its inputs from the same tensors each time, wait for
    /// nothing, and own (or share) every tensor that it touches.
    ///
    /// `None` when the device's runtime could not record it.
    pub fn record(device: &Device, closure: impl FnMut() -> T + Send + 'static) -> Option<Self> {
        let graph = capture(device, Box::new(closure) as Closure<T>);
        graph.is_hardware().then_some(Self { graph })
    }

    /// Runs the recorded work on what its inputs hold now. The result's buffers are overwritten by the next replay.
    pub fn replay(&mut self) -> T {
        // SAFETY: the closure is 'static, so the graph keeps every tensor that it captured alive, and the output too.
        // Whoever replays writes the inputs and reads the output from the thread that recorded, on its stream.
        unsafe { self.graph.replay() }.clone()
    }
}
