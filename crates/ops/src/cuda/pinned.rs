//! Pinned host memory: the copy engine reads it without the driver's help, and kernels read and write it where it lies.

use cudarc::driver::sys::{self, CUdeviceptr, CUevent, CUstream};

use super::driver::check;

/// Bytes of one half of a [`Ring`].
const HALF_BYTES: usize = 1 << 20;
/// Most bytes of a piece of a [`Ring`]. More is left to the copy engine.
pub(super) const PIECE_BYTES_MAX: usize = HALF_BYTES / 4;
/// Where pieces begin: a request to host memory is of so many bytes.
const ALIGNMENT: usize = 128;

/// A pinned buffer, and an event after the last work that uses it.
pub(super) struct Pinned {
    /// Never freed.
    pub memory: &'static mut [u8],
    /// Not yet recorded: it has happened.
    pub used: Event,
}

impl Pinned {
    pub(super) fn new(bytes: usize) -> Result<Self, String> {
        let used = Event::new()?;
        let mut memory = std::ptr::null_mut();
        // SAFETY: a context is current on the device's thread; the result is written to a live variable.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut memory, bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP) })?;
        // SAFETY: fresh memory of the system's is zeros, and nobody else knows of it.
        Ok(Self { memory: unsafe { std::slice::from_raw_parts_mut(memory.cast(), bytes) }, used })
    }
}

/// Where kernels find pinned memory; an error where the device cannot reach it.
pub(super) fn address_on_device(memory: &mut [u8]) -> Result<CUdeviceptr, String> {
    let mut address = 0;
    // SAFETY: the driver looks the pointer up, whatever it is; the result is written to a live variable.
    let found = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, memory.as_mut_ptr().cast(), 0) };
    check("cuMemHostGetDevicePointer", found).map(|()| address)
}

/// An event without a time, which costs the device nothing.
pub(super) struct Event(CUevent);

// SAFETY: an event is a handle of the driver's, which any thread may use.
unsafe impl Send for Event {}

impl Event {
    pub(super) fn new() -> Result<Self, String> {
        let mut event = std::ptr::null_mut();
        // A thread that waits sleeps: it has nothing to do for as long as a step takes.
        let flags =
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        // SAFETY: a context is current on the device's thread; the result is written to a live variable.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(Self(event))
    }

    /// Lets it happen after all that was enqueued on the stream before. Where the driver refuses that, waits for all of it.
    pub(super) fn record(&self, stream: CUstream) -> Result<(), String> {
        // SAFETY: the event lives, and the stream is the runtime's.
        let recorded = check("cuEventRecord", unsafe { sys::cuEventRecord(self.0, stream) });
        // SAFETY: the stream is the runtime's.
        recorded.or_else(|_| check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream) }))
    }

    /// Returns when it has happened, at once if it was never recorded; an error when the device has failed.
    pub(super) fn wait(&self) -> Result<(), String> {
        // SAFETY: the event lives.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody uses the event any more; the driver keeps what work in progress needs of it.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// Words for kernels of one stream. A piece stays as it is until its kernel is over: there are two halves, and a half is
/// begun again when what was enqueued before it was left is done.
pub(super) struct Ring {
    halves: [(Pinned, CUdeviceptr); 2],
    turn: usize,
    /// Bytes of the half whose turn it is that are given out.
    used: usize,
}

impl Ring {
    pub(super) fn new() -> Result<Self, String> {
        let half = || {
            let pinned = Pinned::new(HALF_BYTES)?;
            let address = address_on_device(pinned.memory)?;
            Ok::<_, String>((pinned, address))
        };
        Ok(Self { halves: [half()?, half()?], turn: 0, used: 0 })
    }

    /// Where a kernel that is enqueued on the ring's stream next finds these bytes, of which there are at most
    /// [`PIECE_BYTES_MAX`].
    pub(super) fn place(&mut self, bytes: &[u8], stream: CUstream) -> Result<CUdeviceptr, String> {
        assert!(bytes.len() <= PIECE_BYTES_MAX, "a piece of {} bytes for kernels to read", bytes.len());
        if self.used + bytes.len() > HALF_BYTES {
            self.halves[self.turn].0.used.record(stream)?;
            (self.turn, self.used) = (1 - self.turn, 0);
            self.halves[self.turn].0.used.wait()?;
        }
        let start = self.used;
        let (pinned, address) = &mut self.halves[self.turn];
        pinned.memory[start..][..bytes.len()].copy_from_slice(bytes);
        self.used = (start + bytes.len()).next_multiple_of(ALIGNMENT);
        Ok(*address + start as u64)
    }
}
