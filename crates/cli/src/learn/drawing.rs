//! The block pool and the block tables, in text.

use std::collections::BTreeMap;
use std::fmt::Write;

use firebrick_engine::EngineSnapshot;

/// Blocks of the pool that are drawn; the rest is counted.
const BLOCKS_DRAWN: usize = 128;

/// A letter for each sequence: the same in the pool and in front of its table.
fn letter(place: usize) -> char {
    (b'A' + (place % 26) as u8) as char
}

/// The pool: `.` free, `c` kept by the prefix cache, a letter for its owner, `#` shared.
pub fn pool(snapshot: &EngineSnapshot) -> String {
    let mut owners: BTreeMap<u32, char> = BTreeMap::new();
    for (place, sequence) in snapshot.sequences.iter().enumerate() {
        for block in &sequence.blocks {
            owners.entry(*block).and_modify(|owner| *owner = '#').or_insert(letter(place));
        }
    }
    let mut drawn: String = (0..)
        .zip(&snapshot.blocks)
        .take(BLOCKS_DRAWN)
        .map(|(id, block)| match owners.get(&id) {
            Some(owner) => *owner,
            None if block.cached => 'c',
            None => '.',
        })
        .collect();
    if snapshot.blocks.len() > BLOCKS_DRAWN {
        let _ = write!(drawn, " … {} more", snapshot.blocks.len() - BLOCKS_DRAWN);
    }
    drawn
}

/// A line for each sequence: its letter, its tokens and the numbers of its blocks, each with its used slots.
pub fn tables(snapshot: &EngineSnapshot) -> Vec<String> {
    let size = snapshot.block_size;
    let line = |(place, sequence): (usize, &firebrick_engine::SequenceSnapshot)| {
        let blocks = (0..).zip(&sequence.blocks).map(|(index, block)| {
            let used = sequence.tokens.saturating_sub(index * size).min(size);
            format!("[{block}: {used}/{size}]")
        });
        let blocks: Vec<String> = blocks.collect();
        format!("{} {:>4} tokens  {}", letter(place), sequence.tokens, blocks.join(" "))
    };
    snapshot.sequences.iter().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebrick_engine::{BlockSnapshot, EngineStats, RequestId, SequenceId, SequenceSnapshot, SequenceState};

    #[test]
    fn owners_shared_cached_and_free_blocks_look_different() {
        let sequence = |request, tokens, blocks: &[u32]| SequenceSnapshot {
            id: SequenceId { request: RequestId(request), index: 0 },
            state: SequenceState::Running,
            prompt_tokens: 1,
            tokens,
            computed_tokens: tokens,
            published_blocks: 0,
            blocks: blocks.to_vec(),
            blocks_left_out: 0,
        };
        let block = |references, cached| BlockSnapshot { references, cached };
        let snapshot = EngineSnapshot {
            block_size: 4,
            max_num_batched_tokens: 8,
            blocks: vec![block(2, true), block(1, false), block(1, false), block(0, true), block(0, false)],
            sequences: vec![sequence(1, 6, &[0, 1]), sequence(2, 5, &[0, 2])],
            rows: Vec::new(),
            stats: EngineStats::default(),
        };
        assert_eq!(pool(&snapshot), "#ABc.");
        assert_eq!(tables(&snapshot), ["A    6 tokens  [0: 4/4] [1: 2/4]", "B    5 tokens  [0: 4/4] [2: 1/4]"]);
    }
}
