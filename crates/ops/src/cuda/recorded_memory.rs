//! Memory that the recordings of one stream share.
//!
//! The runtime keeps every page that a recording touches for that recording alone, although a replay needs most of its memory
//! only until it ends, and no two of a stream run at the same time. So what is computed while recording lies in slots that
//! belong to all recordings of a stream: one of them is free again when the last tensor in it is dropped, as in the runtime's
//! own pools. No later recording takes the slots of a result that is still there; an earlier one may have.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Shape};
use burn_cubecl::tensor::CubeTensor;
use cubecl_runtime::server::Handle;

/// A slot is taken for a tensor that fills at least one part in so many of it.
const PARTS_MAX: u64 = 4;
/// A slot of this size is taken for any tensor.
const SMALL_BYTES: u64 = 64 << 10;
/// Sizes are multiples of this, so that many a shape finds the slot of another.
const UNIT_BYTES: u64 = 512;

thread_local! {
    /// Where this thread's new tensors lie while it records.
    static CURRENT: RefCell<Option<RecordedMemory>> = const { RefCell::new(None) };
}

/// What several recordings need at different times.
#[derive(Clone, Default)]
pub(crate) struct RecordedMemory {
    /// Whole slots. In use are those of which somebody else has a handle.
    slots: Arc<Mutex<Vec<Handle>>>,
}

impl RecordedMemory {
    /// Runs `work`, whose new tensors lie in this memory, but for those that Burn's own operations make: these have memory of
    /// exactly their size, which is not shared.
    pub(crate) fn hold_new_tensors_of<R: Send>(&self, device: &Device, work: impl FnOnce() -> R + Send) -> R {
        struct Restore(Option<RecordedMemory>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _restore = Restore(CURRENT.replace(Some(self.clone())));
        let DispatchDevice::Cube(device) = device.as_dispatch() else { return work() };
        device.client().memory_persistent_allocation((), |()| work())
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Handle>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for `bytes` beside everything that is alive: the smallest free slot that suits, or a new one.
    fn take(&self, like: &CubeTensor, bytes: u64) -> Handle {
        let needed = bytes.max(1).next_multiple_of(UNIT_BYTES);
        let most = (needed * PARTS_MAX).max(SMALL_BYTES);
        let mut slots = self.slots();
        let suiting = slots.iter().filter(|slot| (needed..=most).contains(&slot.size()) && slot.can_mut());
        let slot = match suiting.min_by_key(|slot| slot.size()) {
            Some(slot) => slot.clone(),
            None => {
                let size = usize::try_from(needed).expect("a tensor's size is in the range of addresses");
                let slot = like.client.memory_persistent_allocation(size, |size| like.client.empty(size));
                slots.push(slot.clone());
                slot
            }
        };
        let rest = slot.size() - bytes;
        slot.offset_end(rest)
    }

    /// Whether nobody but this memory has another handle of that slot.
    fn is_sole(&self, handle: &Handle) -> bool {
        let id = handle.memory.descriptor().id;
        let mut slots = self.slots();
        let Some(place) = slots.iter().position(|slot| slot.memory.descriptor().id == id) else { return false };
        drop(slots.swap_remove(place));
        let is_sole = handle.can_mut();
        let mut slot = handle.clone();
        (slot.offset_start, slot.offset_end) = (None, None);
        slots.push(slot);
        is_sole
    }
}

/// Memory of a new tensor, if this thread records.
pub(super) fn take(like: &CubeTensor, shape: &Shape, dtype: DType) -> Option<Handle> {
    let bytes = (shape.num_elements() * dtype.size()) as u64;
    CURRENT.with_borrow(|memory| memory.as_ref().map(|memory| memory.take(like, bytes)))
}

/// Whether a tensor may be changed in place: nobody else has it.
pub(super) fn can_change(tensor: &CubeTensor) -> bool {
    let is_sole = || CURRENT.with_borrow(|memory| memory.as_ref().is_some_and(|memory| memory.is_sole(&tensor.handle)));
    tensor.handle.can_mut() || is_sole()
}
