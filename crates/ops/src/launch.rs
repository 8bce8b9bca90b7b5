//! Calling code that is compiled for the processor's widest vectors, and replaying recorded launches.

use burn::backend::{Backend as _, Dispatch};
use burn::tensor::ExecutionError;

#[cfg(feature = "cpu")]
use crate::cpu::lanes::{Lanes, Portable};
use crate::graph::Recorded;

/// Runs what a graph has recorded once more.
pub(crate) fn replay(recorded: &Recorded) -> Result<(), ExecutionError> {
    // SAFETY: the recorded closure is 'static and belongs to `recorded`, which so keeps every tensor that it touches alive.
    // Whoever replays writes the inputs and reads the output, which the graph's pages outlive, on the stream that recorded.
    unsafe { Dispatch::graph_replay(recorded.device.as_dispatch(), &recorded.graph) }
}

/// Work that is compiled once per instruction set. Implementations mark `run` `#[inline(always)]`, so that its loops are
/// compiled with the caller's vector width.
#[cfg(feature = "cpu")]
pub(crate) trait SimdTask {
    /// What the work returns.
    type Output;

    /// Does the work with vectors `L`.
    fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs a task with the widest vectors of this processor.
#[cfg(feature = "cpu")]
pub(crate) fn with_simd<T: SimdTask>(task: T) -> T::Output {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::cpu::lanes::x86::{Avx2, Avx512};
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn avx512<T: SimdTask>(task: T) -> T::Output {
            task.run::<Avx512>()
        }
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2<T: SimdTask>(task: T) -> T::Output {
            task.run::<Avx2>()
        }
        let has_avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if has_avx2 && has_avx512 {
            // SAFETY: every feature that `avx512` enables was just detected on this processor.
            return unsafe { avx512(task) };
        }
        if has_avx2 {
            // SAFETY: every feature that `avx2` enables was just detected on this processor.
            return unsafe { avx2(task) };
        }
    }
    task.run::<Portable>()
}
