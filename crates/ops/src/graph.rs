//! A computation recorded once as a graph and replayed with one call: a CUDA graph, or on wgpu the list of dispatches with
//! everything resolved that a launch looks up. The processor has none.

use std::any::Any;
use std::sync::{Arc, Mutex};

use burn::backend::{Backend as _, BackendGraph, Dispatch};
use burn::tensor::{Device, ExecutionError};

use crate::attention::forget_derived;
use crate::device::with_device_alone;
use crate::{Backend, backend_of, launch};

/// Memory that recordings share which are never replayed at the same time, because all are recorded and replayed in one
/// [`WorkStream`](crate::WorkStream). Clones are the same memory.
#[derive(Clone, Default)]
pub struct GraphMemory {
    #[cfg(feature = "cuda")]
    recorded: crate::cuda::RecordedMemory,
}

impl GraphMemory {
    /// Runs `work`, of which only results keep memory when it is over.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "no other backend needs it"))]
    fn hold<R: Send>(&self, device: &Device, work: impl FnOnce() -> R + Send) -> R {
        #[cfg(feature = "cuda")]
        return self.recorded.hold_new_tensors_of(device, work);
        #[cfg(not(feature = "cuda"))]
        work()
    }
}

/// A recorded computation.
pub struct CapturedGraph<T> {
    recorded: Arc<Recorded>,
    output: T,
}

/// What a replay needs. A replay under way shares it.
pub(crate) struct Recorded {
    pub(crate) device: Device,
    pub(crate) graph: BackendGraph<Dispatch>,
    /// The recorded closure, which keeps every tensor that it captured; nobody calls it again.
    _closure: Mutex<Box<dyn Any + Send>>,
}

impl<T: Clone + Send + 'static> CapturedGraph<T> {
    /// Runs `closure` once or a few times and then records it. It must read its inputs from the same tensors each time,
    /// wait for nothing, and own (or share) every tensor that it touches.
    ///
    /// On CUDA a replay may overwrite what other recordings with this memory have computed, results of later ones included: who
    /// needs those enqueues their reading before it.
    ///
    /// `None` when the device's runtime could not record it.
    pub fn record(
        memory: &GraphMemory,
        device: &Device,
        mut closure: impl FnMut() -> T + Send + 'static,
    ) -> Option<Self> {
        let recorded_on = device.clone();
        // With the device to itself a recording meets nobody's allocations, which CUDA refuses meanwhile. And on wgpu what a run
        // allocates does not depend on how far ahead the host is: recording finds all memory that the run before it has given
        // back, as it must; that memory stays apart from the pages that activations share.
        let recorded = match backend_of(device) {
            Backend::Cpu => return None,
            Backend::Cuda => {
                let (memory, held_on) = (memory.clone(), device.clone());
                let work = move || memory.hold(&held_on, &mut closure);
                with_device_alone(device, move || record_after(WARM_UPS_CUDA, &recorded_on, work))?
            }
            Backend::Wgpu => with_device_alone(device, move || {
                recorded_on.memory_persistent_allocations(closure, |closure| record_after(1, &recorded_on, closure))
            })?,
        };
        recorded.inspect_err(|error| tracing::debug!(?error, "a computation could not be recorded")).ok()
    }

    /// Runs the recorded work on what its inputs hold now; an error when the device has failed. The result's buffers are
    /// overwritten by the next replay.
    ///
    /// On wgpu the device's thread takes hundreds of microseconds to encode a step, for which nobody waits: a failure
    /// shows when the result is read.
    pub fn replay(&self) -> Result<T, ExecutionError> {
        match backend_of(&self.recorded.device) {
            #[cfg(feature = "wgpu")]
            Backend::Wgpu => crate::wgpu::replay(Arc::clone(&self.recorded)),
            _ => launch::replay(&self.recorded)?,
        }
        Ok(self.output.clone())
    }
}

/// Runs before a recording on CUDA, after which every library has the memory that it wants.
const WARM_UPS_CUDA: usize = 3;

/// Nothing may be allocated while a computation is recorded: the runs before leave what it needs.
fn record_after<T: Send + 'static>(
    warm_ups: usize,
    device: &Device,
    mut closure: impl FnMut() -> T + Send + 'static,
) -> Result<CapturedGraph<T>, ExecutionError> {
    let dispatch = device.as_dispatch();
    Dispatch::graph_prepare(dispatch)?;
    for _ in 0..warm_ups {
        forget_derived();
        let output = closure();
        if backend_of(device) == Backend::Cuda {
            Dispatch::sync(dispatch).inspect_err(|_| {
                // Ends what was prepared.
                let _ = Dispatch::graph_stop_capture(dispatch);
            })?;
        }
        drop(output);
    }
    Dispatch::graph_start_capture(dispatch)?;
    forget_derived();
    let output = closure();
    // It ends the recording whether it succeeds or not.
    let graph = Dispatch::graph_stop_capture(dispatch)?;
    let recorded = Recorded { device: device.clone(), graph, _closure: Mutex::new(Box::new(closure)) };
    Ok(CapturedGraph { recorded: Arc::new(recorded), output })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use burn::tensor::Tensor;

    use super::*;
    use crate::testing::{Seeded, assert_close, for_each_device};
    use crate::{WorkStream, float_tensor, gather_rows, int_tensor, overwrite, rms_norm};

    #[test]
    fn a_replay_computes_anew_what_its_inputs_hold() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(60);
            let table: Tensor<2> = seeded.tensor([9, 48], device);
            let weight = seeded.tensor([48], device);
            let step = move |ids: &Tensor<1, burn::tensor::Int>| {
                (0..20).fold(gather_rows(&table, ids), |rows, _| rms_norm(rows.clone(), &weight, 1e-5) + rows)
            };
            let ids = int_tensor(vec![0, 1, 2], [3], device);
            let (recorded_step, recorded_ids) = (step.clone(), ids.clone());
            let Some(graph) =
                CapturedGraph::record(&GraphMemory::default(), device, move || recorded_step(&recorded_ids))
            else {
                assert_eq!(backend_of(device), Backend::Cpu);
                return;
            };
            // Later allocations take nothing that the graph writes.
            let others: Vec<Tensor<2>> = (0..4).map(|_| seeded.tensor([3, 48], device)).collect();
            for rows in [vec![3, 4, 5], vec![8, 0, 8]] {
                drop(overwrite(ids.clone(), rows.clone()));
                let got = graph.replay().expect("the device works");
                assert_close(got, step(&int_tensor(rows, [3], device)), 0.0);
            }
            let mut again = Seeded::new(60);
            let _: (Tensor<2>, Tensor<1>) = (again.tensor([9, 48], device), again.tensor([48], device));
            for other in others {
                assert_close(other, again.tensor([3, 48], device), 0.0);
            }
        });
    }

    #[test]
    fn recordings_and_who_uses_the_device_meanwhile_do_not_disturb_each_other() {
        for_each_device(|device| {
            if backend_of(device) == Backend::Cpu {
                return;
            }
            let is_over = Arc::new(AtomicBool::new(false));
            let (others, others_end) = (device.clone(), Arc::clone(&is_over));
            let other = std::thread::spawn(move || {
                WorkStream::new().enter(|| {
                    let mut rounds = 0;
                    while rounds == 0 || !others_end.load(Ordering::Relaxed) {
                        // Of another size each time, so that memory is allocated.
                        let values: Vec<f32> = (0..64 * (1 + rounds % 512)).map(|value| value as f32).collect();
                        let table = float_tensor(values.clone(), [values.len() / 64, 64], &others);
                        let row = rounds % (values.len() / 64);
                        let got = gather_rows(&table, &int_tensor(vec![row as i32], [1], &others));
                        assert_close(got, float_tensor(values[row * 64..][..64].to_vec(), [1, 64], &others), 0.0);
                        rounds += 1;
                    }
                    rounds
                })
            });
            WorkStream::new().enter(|| {
                let memory = GraphMemory::default();
                for round in 1..40 {
                    let table = Seeded::new(61).tensor([9, 16 * round], device);
                    let ids = int_tensor(vec![2, 7, 1], [3], device);
                    let step = move || gather_rows(&table, &ids) * 2.0;
                    let graph = CapturedGraph::record(&memory, device, step.clone()).expect("the device records");
                    assert_close(graph.replay().expect("the device works"), step(), 0.0);
                }
            });
            is_over.store(true, Ordering::Relaxed);
            let rounds = other.join().expect("who uses the device meanwhile is not disturbed");
            println!("{rounds} rounds beside 39 recordings");
        });
    }
}
