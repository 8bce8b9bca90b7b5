//! Compiled grammars by their source: in memory only, bounded in bytes, the least recently used goes first.

use std::collections::HashMap;

use super::compiler::Grammar;

/// What compiled grammars take beside their source, as a rough multiple of it: rules, lexer and first automaton states.
const BYTES_PER_SOURCE_BYTE: usize = 64;
const BYTES_PER_GRAMMAR: usize = 64 << 10;

/// The grammars compiled last.
#[derive(Default)]
pub(super) struct GrammarCache {
    entries: HashMap<String, Entry>,
    bytes: usize,
    clock: u64,
}

struct Entry {
    grammar: Grammar,
    used: u64,
}

fn cost(source: &str) -> usize {
    BYTES_PER_GRAMMAR + source.len() * BYTES_PER_SOURCE_BYTE
}

impl GrammarCache {
    pub fn get(&mut self, source: &str) -> Option<Grammar> {
        self.clock += 1;
        let entry = self.entries.get_mut(source)?;
        entry.used = self.clock;
        Some(entry.grammar.clone())
    }

    pub fn insert(&mut self, source: String, grammar: Grammar, bytes_max: usize) {
        self.clock += 1;
        if self.entries.contains_key(&source) || cost(&source) > bytes_max {
            return;
        }
        self.bytes += cost(&source);
        self.entries.insert(source, Entry { grammar, used: self.clock });
        while self.bytes > bytes_max {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(source, _)| source.clone());
            let oldest = oldest.expect("bytes are counted for entries only");
            self.entries.remove(&oldest);
            self.bytes -= cost(&oldest);
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }
}
