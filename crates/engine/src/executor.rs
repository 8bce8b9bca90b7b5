//! The seam between planning a step and running it.

use std::future::Future;

use crate::{Batch, ExecuteError, StepOutput};

/// Runs planned batches.
pub trait Executor {
    /// Size of the KV cache in blocks; constant.
    fn kv_blocks(&self) -> u32;

    /// Enqueues the batch now; the future only waits for the sampled ids, one outcome per `batch.samples`, and for one
    /// result per `batch.prompt_rows`, both in order.
    ///
    /// Batches run in the order in which they were enqueued, also when a future is dropped: a later batch may write to
    /// blocks that an earlier one reads. An error means that nothing can be run any more.
    ///
    /// The future borrows nothing, so that the next batch can be planned while this one runs. A batch with
    /// [carried tokens](Batch::carried) takes them from the batch enqueued right before it.
    fn execute(&mut self, batch: &Batch) -> impl Future<Output = Result<StepOutput, ExecuteError>> + 'static;

    /// Whether the next batch may take [carried tokens](Batch::carried) from the one enqueued last.
    fn can_run_ahead(&self) -> bool {
        false
    }
}
