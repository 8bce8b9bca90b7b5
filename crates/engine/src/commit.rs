//! The second half of a step: results become tokens, full blocks are published, sequences end or go on.
//!
//! A block enters the prefix cache only once a token was sampled from finite logits of a context that contains it: keys
//! and values that are not finite would poison every request that shares them.

use crate::block_pool::Published;
use crate::scheduler::Scheduler;
use crate::sequence::{Appended, Sequence};
use crate::sequence_table::SequenceKey;
use crate::{EventKind, ExecuteError, FinishReason, PromptOutput, SampleOutcome, SampledToken, StepOutput};

/// Why a sequence ended whose logits were not finite.
pub const NOT_FINITE: &str = "the model's output was not finite";

impl Scheduler {
    /// Takes the results of the oldest step in flight.
    pub(crate) fn commit(&mut self, output: StepOutput) -> Result<(), ExecuteError> {
        let step = self.in_flight.front().expect("results belong to a step in flight");
        let got = (output.samples.len(), output.prompts.len());
        let expected = (step.num_samples, step.prompt_rows.len());
        if got != expected {
            let message = format!("the executor returned {got:?} results for {expected:?} samples and prompt rows");
            return Err(ExecuteError(message));
        }
        let (mut outcomes, mut prompts) = (output.samples.into_iter(), output.prompts.into_iter());
        let step = self.in_flight.pop_front().expect("it is there, as above");
        self.finished_tokens = Some(step.num_tokens);
        for row in step.rows {
            let outcome = if row.samples { outcomes.next() } else { None };
            let reported = row.reports_to.zip(if row.reports_to.is_some() { prompts.next() } else { None });
            // A sequence may have ended after this step was planned: its row was in vain.
            let Some(id) = self.sequences.get(row.key).map(Sequence::id) else { continue };
            if self.is_leaving(id) {
                continue;
            }
            self.counters.computed_tokens += u64::from(row.num_tokens);
            self.sequences[row.key].num_computed_tokens += row.num_tokens;
            if let Some((end, result)) = reported {
                self.sequences[row.key].num_reported = end;
                self.tell(id, EventKind::Prompt(result));
            }
            let Some(outcome) = outcome else {
                self.finish_computed(row.key);
                continue;
            };
            self.sequences[row.key].num_unknown -= 1;
            if id.index == 0 {
                self.bring_forth_choices(id.request);
            }
            match outcome {
                SampleOutcome::Token(sampled) => self.accept_token(row.key, sampled),
                SampleOutcome::NotFinite => {
                    self.finish(row.key, FinishReason::Error(NOT_FINITE.into()));
                }
            }
        }
        self.apply_deferred_aborts();
        Ok(())
    }

    /// Ends a sequence that was to be computed and not continued, once it is.
    fn finish_computed(&mut self, key: SequenceKey) {
        let sequence = &self.sequences[key];
        if sequence.facts.generates() || sequence.num_computed_tokens < sequence.len() {
            return;
        }
        let is_pooled = matches!(sequence.facts.prompt_output, Some(PromptOutput::Pooled(_)));
        self.finish(key, if is_pooled { FinishReason::Stop(None) } else { FinishReason::Length });
    }

    /// Forgets the steps in flight, whose results will never come. Their tokens are computed again into the same slots.
    pub(crate) fn abandon(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        self.in_flight.clear();
        for (_, key) in &self.running {
            self.sequences[*key].abandon_planned();
        }
        self.apply_deferred_aborts();
    }

    fn accept_token(&mut self, key: SequenceKey, sampled: SampledToken) {
        self.publish_full_blocks(key);
        let sequence = &mut self.sequences[key];
        let id = sequence.id();
        let is_stop = sequence.is_stop(sampled.token);
        let appended = sequence.append(sampled.token);
        if let Appended::Refused(reason) = appended {
            self.finish(key, reason);
            return;
        }
        self.counters.generated_tokens += 1;
        self.tell(id, EventKind::Token { token: sampled.token, logprobs: sampled.logprobs, is_stop });
        if let Appended::Last(reason) = appended {
            self.finish(key, reason);
        }
    }

    /// Offers the blocks that have become full to the prefix cache.
    ///
    /// When another sequence has published the same content first, this one moves over to that block and gives its own
    /// back: equal full blocks exist once, and whoever references a cached block references all its ancestors.
    fn publish_full_blocks(&mut self, key: SequenceKey) {
        let Self { sequences, pool, config, .. } = self;
        let block_size = config.block_size;
        let sequence = &mut sequences[key];
        let num_full = sequence.num_computed_tokens / block_size;
        if !sequence.publishing || sequence.num_published == num_full {
            return;
        }
        sequence.hash_blocks(num_full, block_size, pool.cache().hasher());
        while sequence.num_published < num_full {
            let index = sequence.num_published;
            let blocks = sequence.table.blocks();
            let parent = index.checked_sub(1).map(|index| blocks[index as usize]);
            let block = blocks[index as usize];
            let block_key = sequence.block_key(index, parent, block_size).expect("a publishing sequence shares");
            match pool.publish(block, &block_key) {
                Published::Here => {}
                Published::Elsewhere(existing) => {
                    pool.share(existing);
                    pool.release(sequence.table.replace(index as usize, existing));
                }
                Published::Not => {
                    sequence.publishing = false;
                    return;
                }
            }
            sequence.num_published += 1;
        }
    }
}
