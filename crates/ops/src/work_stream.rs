//! An order of device work that does not depend on the calling thread.

use std::future::Future;

/// Work that is enqueued within one `WorkStream` runs in the order of enqueueing, whichever threads enqueue it. Without
/// one the order is that of each thread, and what one thread has freed may have to be waited for by another.
///
/// Backends that know one order only ignore it.
#[derive(Clone, Copy, Debug)]
pub struct WorkStream {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    stream: cubecl_environment::stream::Stream,
}

impl WorkStream {
    /// An order of its own.
    #[allow(clippy::new_without_default, reason = "every one is different")]
    pub fn new() -> Self {
        Self {
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            stream: cubecl_environment::stream::Stream::new(),
        }
    }

    /// Runs `work`; everything that it enqueues belongs to this stream.
    pub fn enter<R>(&self, work: impl FnOnce() -> R) -> R {
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        return self.stream.enter(work);
        #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
        work()
    }

    /// A future whose every poll belongs to this stream.
    pub fn attach<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        return self.stream.attach(future);
        #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
        future
    }
}
