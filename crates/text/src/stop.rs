//! Finds stop strings in streamed text and holds back only what could still become one.

use std::collections::HashMap;
use std::sync::Arc;

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::noncontiguous::NFA;
use aho_corasick::{Anchored, MatchKind};

/// Watches a stream of text for stop strings.
///
/// The earliest end wins: text is cut where the first complete stop string ends, and among those that end together the
/// longest one (the one that begins first) is the match. The cost per byte does not depend on the number of stops.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    /// `None` without stop strings: everything passes.
    search: Option<Search>,
    include_stop: bool,
    matched: bool,
}

#[derive(Debug, Clone)]
struct Search {
    automaton: Arc<NFA>,
    /// How many bytes of a stop string each state of the automaton has seen.
    depths: Arc<HashMap<StateID, usize>>,
    lengths: Vec<usize>,
    /// The number each automaton pattern has in the caller's list: empty stop strings are left out of the automaton.
    numbers: Vec<usize>,
    state: StateID,
    /// Text that is not released yet, because its end could be the beginning of a stop string.
    held: String,
}

/// What a piece of text brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOutput {
    /// Text that can be shown now.
    pub text: String,
    /// The number of the stop string that was found; the stream is over.
    pub matched: Option<usize>,
}

impl StopMatcher {
    /// Watches for `stops`; an empty stop string never matches. With `include_stop`, the stop string itself is part of
    /// the text.
    pub fn new(stops: &[String], include_stop: bool) -> Self {
        Self { search: Search::new(stops), include_stop, matched: false }
    }

    /// Adds a piece of text. After a match, later pieces give nothing.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.matched {
            return StopOutput::default();
        }
        let Some(search) = &mut self.search else {
            return StopOutput { text: text.to_owned(), matched: None };
        };
        let output = search.push(text, self.include_stop);
        self.matched = output.matched.is_some();
        output
    }

    /// Adds a piece of text in which no stop string may end yet. One that begins in it may end in a later piece.
    pub fn pass(&mut self, text: &str) -> String {
        match &mut self.search {
            _ if self.matched => String::new(),
            Some(search) => search.pass(text),
            None => text.to_owned(),
        }
    }

    /// The stream ended without a stop string: what was held back is text after all.
    pub fn finish(&mut self) -> String {
        match &mut self.search {
            Some(search) if !self.matched => {
                self.matched = true;
                std::mem::take(&mut search.held)
            }
            _ => String::new(),
        }
    }
}

impl Search {
    fn new(stops: &[String]) -> Option<Self> {
        let (numbers, patterns): (Vec<usize>, Vec<&String>) =
            stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty()).unzip();
        if patterns.is_empty() {
            return None;
        }
        let automaton = NFA::builder()
            .match_kind(MatchKind::Standard)
            .build(&patterns)
            .expect("stop strings are far below the automaton's limit of two thousand million states");
        let start = automaton.start_state(Anchored::No).expect("the automaton is built for unanchored search");
        let mut depths = HashMap::new();
        for pattern in &patterns {
            let mut state = start;
            for (index, byte) in pattern.bytes().enumerate() {
                state = automaton.next_state(Anchored::No, state, byte);
                depths.insert(state, index + 1);
            }
        }
        let lengths = patterns.iter().map(|pattern| pattern.len()).collect();
        Some(Self {
            automaton: automaton.into(),
            depths: depths.into(),
            lengths,
            numbers,
            state: start,
            held: String::new(),
        })
    }

    fn push(&mut self, text: &str, include_stop: bool) -> StopOutput {
        for (index, byte) in text.bytes().enumerate() {
            self.state = self.automaton.next_state(Anchored::No, self.state, byte);
            if self.automaton.is_match(self.state) {
                return self.found(&text[..=index], include_stop);
            }
        }
        StopOutput { text: self.release(text), matched: None }
    }

    fn pass(&mut self, text: &str) -> String {
        let follow = |state, byte| self.automaton.next_state(Anchored::No, state, byte);
        self.state = text.bytes().fold(self.state, follow);
        self.release(text)
    }

    /// What is certain once `text` has come, which the automaton has seen.
    fn release(&mut self, text: &str) -> String {
        self.held.push_str(text);
        // What the automaton remembers is the beginning of a stop string, so it begins at a character.
        let keep = self.depths.get(&self.state).copied().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// `text` ends where the stop string ends.
    fn found(&mut self, text: &str, include_stop: bool) -> StopOutput {
        let count = self.automaton.match_len(self.state);
        let pattern = (0..count)
            .map(|index| self.automaton.match_pattern(self.state, index).as_usize())
            .max_by_key(|&pattern| (self.lengths[pattern], std::cmp::Reverse(pattern)))
            .expect("a match state has a pattern");
        let mut whole = std::mem::take(&mut self.held);
        whole.push_str(text);
        if !include_stop {
            whole.truncate(whole.len() - self.lengths[pattern]);
        }
        StopOutput { text: whole, matched: Some(self.numbers[pattern]) }
    }
}
