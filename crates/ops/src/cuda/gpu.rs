//! What kernels are chosen and sized by: facts about the GPU, asked once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::DType;
use cudarc::driver::result as driver;
use cudarc::driver::sys::CUdevice_attribute;

use super::element;
use super::kernel::Kernel;
use crate::e4m3::E4M3;

/// Shared memory of a block that the driver keeps for itself.
const SHARED_BYTES_RESERVED: usize = 1024;

/// Facts about the first CUDA device, the one that is opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gpu {
    /// 10 · major + minor.
    pub capability: u32,
    pub multiprocessors: usize,
    /// Shared memory that one block may use, and that the blocks of one multiprocessor share.
    shared_bytes_max: usize,
    shared_bytes_of_multiprocessor: usize,
}

impl Gpu {
    /// The device's facts, as far as [they are to be used](limit_capability); a failing driver has none, and shows at the
    /// first launch.
    pub(super) fn current() -> Self {
        let capability_max = CAPABILITY_MAX.get().copied().unwrap_or(u32::MAX);
        #[cfg(test)]
        let capability_max = capability_max.min(limited::CAPABILITY_MAX.get());
        Self::whole().limited(capability_max)
    }

    /// The device's own facts.
    pub(super) fn whole() -> Self {
        static GPU: OnceLock<Gpu> = OnceLock::new();
        *GPU.get_or_init(Self::ask)
    }

    /// As if it were a card of at most this compute capability.
    fn limited(self, capability_max: u32) -> Self {
        let capability = self.capability.min(capability_max);
        let of_multiprocessor = match capability {
            _ if capability == self.capability => self.shared_bytes_of_multiprocessor,
            ..80 => 64 << 10,
            80 => 164 << 10,
            81..90 => 100 << 10,
            90.. => self.shared_bytes_of_multiprocessor,
        };
        let of_block =
            if capability < 80 { of_multiprocessor } else { of_multiprocessor.saturating_sub(SHARED_BYTES_RESERVED) };
        Self {
            capability,
            shared_bytes_max: self.shared_bytes_max.min(of_block),
            shared_bytes_of_multiprocessor: self.shared_bytes_of_multiprocessor.min(of_multiprocessor),
            ..self
        }
    }

    /// The smallest and the largest card of a compute capability: they differ in multiprocessors, of which a kernel that was
    /// made for any number of them may be the same.
    pub(super) fn of_architecture(capability: u32) -> [Self; 2] {
        let (shared_bytes, smallest, largest) = match capability {
            ..75 => (96 << 10, 80, 84),
            75..80 => (64 << 10, 14, 72),
            80 => (164 << 10, 56, 128),
            81..89 => (100 << 10, 8, 84),
            89 => (100 << 10, 8, 142),
            90 => (228 << 10, 66, 132),
            100..110 => (228 << 10, 100, 160),
            _ => (100 << 10, 8, 188),
        };
        [smallest, largest].map(|multiprocessors| Self {
            capability,
            multiprocessors,
            shared_bytes_max: if capability < 80 { shared_bytes } else { shared_bytes - SHARED_BYTES_RESERVED },
            shared_bytes_of_multiprocessor: shared_bytes,
        })
    }

    /// Cards with as many multiprocessors as this one, as `largest`, and as any card between them: they come in pairs.
    pub(super) fn up_to(self, largest: &Self) -> impl Iterator<Item = Self> + use<> {
        let counts = (self.multiprocessors..=largest.multiprocessors).step_by(2);
        counts.map(move |multiprocessors| Self { multiprocessors, ..self })
    }

    fn ask() -> Self {
        let attribute = |attribute| {
            let device = driver::device::get(0).ok()?;
            // SAFETY: the driver just returned the device.
            unsafe { driver::device::get_attribute(device, attribute) }.ok()
        };
        let number = |name| attribute(name).map_or(0, |value| value.max(0) as usize);
        let (major, minor) = (
            number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        );
        Self {
            capability: (10 * major + minor) as u32,
            multiprocessors: number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).max(1),
            shared_bytes_max: number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            shared_bytes_of_multiprocessor: number(
                CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            ),
        }
    }

    /// `kernel`, compiled for a cache of `cache`: cards before 8.9 convert codes of 8 bits without instructions for it.
    pub(super) fn with_cache(&self, kernel: Kernel, cache: DType) -> Kernel {
        let kernel = kernel.word("CACHE", element(cache));
        if cache == E4M3 && self.capability < 89 { kernel.number("E4M3_BY_INTEGERS", 1) } else { kernel }
    }

    /// Shared memory of a block when a multiprocessor is to run `blocks` of them at a time.
    pub(super) fn shared_bytes_of_block(&self, blocks: usize) -> usize {
        let share = (self.shared_bytes_of_multiprocessor / blocks).saturating_sub(SHARED_BYTES_RESERVED);
        share.min(self.shared_bytes_max)
    }
}

/// The compute capability up to which kernels are chosen and compiled, for the whole process.
static CAPABILITY_MAX: OnceLock<u32> = OnceLock::new();

/// From now on, kernels are those for cards of this compute capability (10 · major + minor), with the shared memory of
/// such cards. The first call of a process decides; an error says what was decided before.
pub(crate) fn limit_capability(capability: u32) -> Result<(), u32> {
    let decided = *CAPABILITY_MAX.get_or_init(|| capability);
    if decided == capability { Ok(()) } else { Err(decided) }
}

/// Whether every row of a result has the same bits in every batch.
static IS_BATCH_INVARIANT: AtomicBool = AtomicBool::new(false);

/// From now on, the whole process runs only kernels that give a row the same bits in every batch.
pub(crate) fn use_batch_invariant_kernels() {
    IS_BATCH_INVARIANT.store(true, Ordering::Relaxed);
}

/// Whether only such kernels are to be run.
pub(super) fn is_batch_invariant() -> bool {
    #[cfg(test)]
    if limited::IS_BATCH_INVARIANT.get() {
        return true;
    }
    IS_BATCH_INVARIANT.load(Ordering::Relaxed)
}

/// Lets tests run the kernels of older cards, and those that give the same bits in every batch.
#[cfg(test)]
pub(super) mod limited {
    use std::cell::Cell;

    thread_local! {
        pub(super) static CAPABILITY_MAX: Cell<u32> = const { Cell::new(u32::MAX) };
        pub(super) static IS_BATCH_INVARIANT: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs `test` as if the card had at most this compute capability and the shared memory that came with it.
    pub(in crate::cuda) fn with_capability(capability: u32, test: impl FnOnce()) {
        CAPABILITY_MAX.set(capability);
        test();
        CAPABILITY_MAX.set(u32::MAX);
    }

    /// Runs `test` with kernels that give a row the same bits in every batch.
    pub(in crate::cuda) fn with_batch_invariance(test: impl FnOnce()) {
        IS_BATCH_INVARIANT.set(true);
        test();
        IS_BATCH_INVARIANT.set(false);
    }
}
