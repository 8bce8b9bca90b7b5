//! Is a planned batch right? Every check is against the book and the batch alone.

use firebrick_engine::{Batch, PromptRows, PromptWanted, SampleRow, Script, ScriptedExecutor, SequenceId};

use super::book::{Book, DuePrompt, Order, Place};
use super::knobs::Knobs;
use super::{Violation, ensure};

/// What a row of the step in flight will yield.
pub struct ExpectedRow {
    pub id: SequenceId,
    pub context_len: u32,
    /// The token, or `None` for logits that are not finite; outside: no draw.
    pub outcome: Option<Option<u32>>,
    /// What is reported of the prompt.
    pub prompt: Option<DuePrompt>,
}

/// Scratch and memory of the checks: who wrote each block.
pub struct BatchChecks {
    block_size: u32,
    /// `[blocks]` salt of the last writer.
    salts: Vec<Option<u64>>,
    /// `[blocks]` the last step and row that wrote to it.
    writers: Vec<(u64, u32)>,
}

impl BatchChecks {
    pub fn new(knobs: &Knobs) -> Self {
        let num_blocks = knobs.kv_blocks as usize;
        Self { block_size: knobs.config.block_size, salts: vec![None; num_blocks], writers: vec![(0, 0); num_blocks] }
    }

    /// Checks a batch and moves the book's choices to where they are now.
    pub fn check(
        &mut self,
        batch: &Batch,
        ids: &[SequenceId],
        book: &mut Book,
        knobs: &Knobs,
    ) -> Result<Vec<ExpectedRow>, Violation> {
        check_shape(batch, ids, knobs)?;
        check_places(batch, ids, book, self.block_size)?;
        // A batch planned ahead may have rows of choices that turned out to have ended: they must only harm nobody.
        let is_vain = |book: &Book, id: &SequenceId| book.place(*id) == Some(Place::Over);
        for (row, id) in ids.iter().enumerate() {
            match is_vain(book, id) {
                true => self.note_writes(batch, row)?,
                false => self.check_row(batch, row, *id, book)?,
            }
        }
        // All writes are noted by now: nobody may write to what another reads.
        for (row, id) in ids.iter().enumerate().filter(|(_, id)| !is_vain(book, id)) {
            self.check_readers(batch, row, *id, book)?;
        }
        let mut samples = batch.samples.iter().peekable();
        let mut prompt_rows = batch.prompt_rows.iter();
        let mut expected = Vec::with_capacity(ids.len());
        for (row, id) in ids.iter().enumerate() {
            let context_len = batch.context_lens[row];
            let mut outcome = None;
            if is_vain(book, id) {
                samples.next_if(|sample| sample.row as usize == row);
                expected.push(ExpectedRow { id: *id, context_len, outcome, prompt: None });
                continue;
            }
            let entry = &book.entries[&id.request.0];
            let prompt = entry.due_prompt(id.index, context_len);
            if let Some(due) = &prompt {
                check_prompt(prompt_rows.next(), (batch, row), due)?;
            }
            if context_len == entry.len(id.index) && entry.request.params.max_tokens != Some(0) {
                let sample = samples.next_if(|sample| sample.row as usize == row);
                let sample = sample.ok_or_else(|| Violation::new(9, format!("{id:?} has all tokens and no draw")))?;
                outcome = Some(check_draw(sample, *id, book, knobs)?);
            }
            expected.push(ExpectedRow { id: *id, context_len, outcome, prompt });
        }
        ensure(samples.next().is_none(), 9, || "a draw for a row that has not all tokens".into())?;
        ensure(prompt_rows.next().is_none(), 7, || "results of a prompt that nobody waits for".into())?;
        Ok(expected)
    }

    /// Invariant 11 for one row: the right tokens in the right slots, in order, without holes.
    fn check_row(&mut self, batch: &Batch, row: usize, id: SequenceId, book: &mut Book) -> Result<(), Violation> {
        let entry = &book.entries[&id.request.0];
        let tokens = batch.query_starts[row] as usize..batch.query_starts[row + 1] as usize;
        let start = batch.positions[tokens.start];
        let computed = entry.choices[id.index as usize].computed;
        ensure(start == computed, 11, || format!("{id:?} goes on at {start}, computed are {computed}"))?;
        let context_len = batch.context_lens[row];
        let end = start + tokens.len() as u32;
        ensure(end == context_len, 11, || format!("{id:?} ends at {end}, context is {context_len}"))?;
        ensure(end <= entry.len(id.index), 11, || format!("{id:?} computes tokens that it does not have"))?;
        let table = table(batch, row);
        for (position, at) in (start..).zip(tokens) {
            ensure(batch.positions[at] == position, 11, || format!("{id:?} has a hole before {position}"))?;
            let right = entry.token(id.index, position);
            ensure(batch.tokens[at] == right, 11, || format!("{id:?} has another token at {position}"))?;
            let block = table[(position / self.block_size) as usize];
            let slot = block * self.block_size + position % self.block_size;
            ensure(batch.slot_mapping[at] == slot, 11, || {
                format!("{id:?} writes {position} to a slot outside its table")
            })?;
            self.note_write(batch.step, row, block)?;
            self.salts[block as usize] = Some(entry.salt);
        }
        Ok(())
    }

    fn note_writes(&mut self, batch: &Batch, row: usize) -> Result<(), Violation> {
        let tokens = batch.query_starts[row] as usize..batch.query_starts[row + 1] as usize;
        let mut slots = batch.slot_mapping[tokens].iter();
        slots.try_for_each(|slot| self.note_write(batch.step, row, slot / self.block_size))
    }

    /// Invariant 4: one row writes to a block.
    fn note_write(&mut self, batch_step: u64, row: usize, block: u32) -> Result<(), Violation> {
        let (step, other) = std::mem::replace(&mut self.writers[block as usize], (batch_step, row as u32));
        ensure(step != batch_step || other == row as u32, 4, || format!("two rows write to block {block}"))
    }

    /// Invariants 4 and 6 for one row: nobody else writes to its blocks, and nobody of another salt has.
    fn check_readers(&self, batch: &Batch, row: usize, id: SequenceId, book: &Book) -> Result<(), Violation> {
        let salt = book.entries[&id.request.0].salt;
        let used = batch.context_lens[row].div_ceil(self.block_size) as usize;
        for block in &table(batch, row)[..used] {
            let (step, writer) = self.writers[*block as usize];
            ensure(step != batch.step || writer == row as u32, 4, || {
                format!("{id:?} shares block {block} with its writer")
            })?;
            let written = self.salts[*block as usize];
            ensure(written == Some(salt), 6, || format!("{id:?} of salt {salt} reads block {block} of {written:?}"))?;
        }
        Ok(())
    }
}

/// Whether the last token of a row is one that the step before chooses.
fn carries(batch: &Batch, row: usize) -> bool {
    let last = batch.query_starts[row + 1] - 1;
    batch.carried.iter().any(|carried| carried.token == last)
}

fn table(batch: &Batch, row: usize) -> &[u32] {
    &batch.block_tables[row * batch.blocks_per_row..(row + 1) * batch.blocks_per_row]
}

/// Invariant 11: limits, and arrays that fit each other.
fn check_shape(batch: &Batch, ids: &[SequenceId], knobs: &Knobs) -> Result<(), Violation> {
    let (tokens, rows) = (batch.num_tokens(), batch.num_sequences());
    let config = &knobs.config;
    ensure(tokens as u32 <= config.max_num_batched_tokens, 11, || format!("{tokens} tokens in a step"))?;
    ensure(rows as u32 <= config.max_num_seqs, 11, || format!("{rows} sequences in a step"))?;
    let fits = ids.len() == rows
        && batch.query_starts.len() == rows + 1
        && batch.query_starts[0] == 0
        && batch.query_starts.is_sorted_by(|a, b| a < b)
        && batch.query_starts[rows] as usize == tokens
        && batch.positions.len() == tokens
        && batch.slot_mapping.len() == tokens
        && batch.block_tables.len() == rows * batch.blocks_per_row
        && batch.block_tables.iter().all(|block| *block < knobs.kv_blocks);
    let widest = batch.context_lens.iter().max().map_or(0, |longest| longest.div_ceil(config.block_size));
    ensure(fits && batch.blocks_per_row == widest as usize, 11, || "the batch's arrays do not fit each other".into())
}

/// Invariants 8, 12, 13 and 15: who is in the batch, who came in, who had to go.
fn check_places(batch: &Batch, ids: &[SequenceId], book: &mut Book, block_size: u32) -> Result<(), Violation> {
    let running_before: Vec<Order> = book.running.iter().copied().collect();
    let mut admitted = Vec::new();
    let mut stayed = std::collections::BTreeSet::new();
    for (row, id) in ids.iter().enumerate() {
        let Some(entry) = book.entries.get(&id.request.0) else {
            return Err(Violation::new(8, format!("{id:?} was never accepted")));
        };
        let place = entry.choices[id.index as usize].place;
        // Ended while its row was on the way.
        if place == Place::Over && carries(batch, row) {
            continue;
        }
        ensure(!entry.aborted, 15, || format!("{id:?} runs after its abort"))?;
        let order = book.order(*id);
        match place {
            Place::Running => ensure(stayed.insert(order), 8, || format!("{id:?} is in the batch twice"))?,
            Place::Waiting => {
                let first = book.waiting.pop_first();
                ensure(first == Some(order), 12, || format!("{id:?} came in before {first:?}"))?;
                admitted.push((*id, batch.positions[batch.query_starts[row] as usize]));
            }
            place => return Err(Violation::new(8, format!("{id:?} runs while {place:?}"))),
        }
    }
    // Whoever ran and is not in the batch was preempted; it must be behind all that stayed.
    for order in running_before.iter().filter(|order| !stayed.contains(order)) {
        let last = stayed.last();
        ensure(last.is_none_or(|last| last < order), 13, || format!("{order:?} was preempted before {last:?}"))?;
        book.running.remove(order);
        book.waiting.insert(*order);
        let choice = &mut book.entries.get_mut(&order.1).expect("known").choices[order.2 as usize];
        (choice.place, choice.computed) = (Place::Waiting, 0);
        book.expected.preemptions += 1;
    }
    let lost_all = stayed.is_empty() && !running_before.is_empty();
    ensure(!lost_all, 13, || "every running sequence was preempted at once".into())?;
    admitted.into_iter().try_for_each(|(id, cached)| book.admit(id, cached, block_size))
}

/// Invariant 7: each position of a prompt is reported once, in order.
fn check_prompt(rows: Option<&PromptRows>, (batch, row): (&Batch, usize), due: &DuePrompt) -> Result<(), Violation> {
    let Some(rows) = rows else { return Err(Violation::new(7, format!("row {row} does not report {due:?}"))) };
    let last = batch.query_starts[row + 1] - (batch.context_lens[row] - due.positions.end);
    let first = last - due.positions.len() as u32;
    ensure(rows.tokens == (first..last), 7, || format!("row {row} reports {:?}, right is {due:?}", rows.tokens))?;
    let right = match &rows.wanted {
        PromptWanted::Logprobs { next, .. } => due.next.as_ref() == Some(next),
        PromptWanted::HiddenSum => due.next.is_none(),
    };
    ensure(right, 7, || format!("row {row} reports {:?}, right is {due:?}", rows.wanted))
}

/// Invariant 9: a draw depends on its own request alone. Returns what it yields.
fn check_draw(sample: &SampleRow, id: SequenceId, book: &mut Book, knobs: &Knobs) -> Result<Option<u32>, Violation> {
    let entry = book.entries.get_mut(&id.request.0).expect("checked");
    ensure(sample.sequence == id, 9, || format!("the draw of {id:?} is that of {:?}", sample.sequence))?;
    let request = &entry.request;
    ensure(*sample.params == request.params, 9, || format!("{id:?} draws with another's parameters"))?;
    ensure(sample.position == entry.len(id.index), 9, || format!("{id:?} draws at {}", sample.position))?;
    ensure(sample.suppressed == entry.suppressed(id.index), 9, || {
        format!("{id:?} suppresses {:?}", sample.suppressed)
    })?;
    let choice = &entry.choices[id.index as usize];
    let history = match &sample.history {
        None => !request.params.needs_history(),
        Some(history) => {
            request.params.needs_history() && history.prompt[..] == request.prompt && history.output == choice.output
        }
    };
    ensure(history, 9, || format!("{id:?} draws with a wrong history"))?;
    let twin = entry
        .choices
        .iter()
        .enumerate()
        .find(|(index, choice)| choice.seed == Some(sample.seed) && *index != id.index as usize);
    ensure(twin.is_none(), 9, || format!("{id:?} draws with a sibling's seed"))?;
    let choice = &mut entry.choices[id.index as usize];
    let seed = *choice.seed.get_or_insert(sample.seed);
    ensure(seed == sample.seed, 9, || format!("the seed of {id:?} has changed"))?;
    let one_in = u64::from(knobs.not_finite_one_in);
    if one_in > 0 && ScriptedExecutor::is_not_finite(one_in, choice.history, sample) {
        return Ok(None);
    }
    let script = Script::Hash { vocab_size: knobs.config.vocab_size };
    Ok(Some(script.outcome(choice.history, sample, 0)))
}
