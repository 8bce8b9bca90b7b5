//! Bytes from host memory to the device: several threads fill one pinned buffer while the other one is copied.
//!
//! A copy from memory that is not pinned waits for the driver, which copies it into memory of its own by one thread.

use std::num::NonZero;
use std::sync::mpsc;
use std::thread::available_parallelism;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use bytes::Bytes;
use cubecl_common::device::Device as _;
use cubecl_common::device_handle::DeviceHandle;
use cudarc::driver::sys::{self, CUdeviceptr, CUstream};

use super::driver::check;
use super::launch::{CudaServer, Operands, submit};
use super::matrix::empty;
use super::pinned::Pinned;

/// A pinned buffer.
const BUFFER_BYTES: usize = 32 << 20;
/// What is worth a thread of its own, and threads at most: more than the memory keeps busy gain nothing.
const THREAD_BYTES: usize = 2 << 20;
const THREADS_MAX: usize = 8;

/// A new matrix of these bytes on the device of `like`.
pub(crate) fn upload(like: &CubeTensor, pieces: Vec<Bytes>, shape: [usize; 2], dtype: DType) -> CubeTensor {
    let target = empty(like, shape, dtype);
    let mut operands = Operands::default();
    operands.write(&target);
    let (done, read) = mpsc::channel::<()>();
    submit(&target, operands, move |session| {
        let copied = session.driver.staging()?.copy(&pieces, session.addresses[0], session.stream);
        drop((pieces, done));
        copied
    });
    let cubecl::Device::Cuda(device) = &target.device else { unreachable!("an upload to a device that is not CUDA's") };
    DeviceHandle::<CudaServer>::new(device.to_id()).flush_queue();
    // Ends when the work is over, done or failed: a failure marks the tensor.
    let _ = read.recv();
    target
}

/// Two pinned buffers, used by turns.
pub(super) struct Staging {
    /// Each waits for the last copy out of it.
    buffers: [Pinned; 2],
    turn: usize,
    threads: usize,
}

impl Staging {
    pub(super) fn new() -> Result<Self, String> {
        let threads = available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX);
        Ok(Self { buffers: [Pinned::new(BUFFER_BYTES)?, Pinned::new(BUFFER_BYTES)?], turn: 0, threads })
    }

    /// Enqueues copies of the pieces, one after the other, to `to`. They have been read when it returns.
    fn copy(&mut self, pieces: &[Bytes], mut to: CUdeviceptr, stream: CUstream) -> Result<(), String> {
        for part in pieces.iter().flat_map(|piece| piece.chunks(BUFFER_BYTES)) {
            let buffer = &mut self.buffers[self.turn];
            self.turn = 1 - self.turn;
            buffer.used.wait()?;
            fill(&mut buffer.memory[..part.len()], part, self.threads);
            // SAFETY: the caller's memory has room for all pieces, the buffer stays as it is until the event, and the
            // stream is the runtime's.
            unsafe {
                let from = buffer.memory.as_ptr().cast();
                check("cuMemcpyHtoDAsync", sys::cuMemcpyHtoDAsync_v2(to, from, part.len(), stream))?;
            }
            buffer.used.record(stream)?;
            to += part.len() as u64;
        }
        Ok(())
    }
}

/// Copies by as many threads as are worth it.
fn fill(to: &mut [u8], from: &[u8], threads_max: usize) {
    let threads = from.len().div_ceil(THREAD_BYTES).clamp(1, threads_max);
    let each = from.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let mut shares = to.chunks_mut(each).zip(from.chunks(each));
        let own = shares.next();
        for (to, from) in shares {
            scope.spawn(move || to.copy_from_slice(from));
        }
        if let Some((to, from)) = own {
            to.copy_from_slice(from);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_make_up_the_whole() {
        for length in [0, 1, THREAD_BYTES, 3 * THREAD_BYTES + 5] {
            let from: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            for threads in [1, 3, 8] {
                let mut to = vec![0; length];
                fill(&mut to, &from, threads);
                assert!(to == from, "{length} bytes, {threads} threads");
            }
        }
    }
}
