//! How often a stream says something: tokens of a choice are held back until there are enough of them for a chunk.

use crate::choice::Delta;

/// Puts the tokens of each choice together. The first token and the end of a choice never wait.
pub struct StreamPace {
    interval: u32,
    choices: Vec<Pending>,
}

/// What a choice has said and nobody has been told.
#[derive(Clone, Default)]
struct Pending {
    begun: bool,
    held: Option<Delta>,
}

impl StreamPace {
    /// Chunks of `interval` tokens; 0 and 1 hold nothing back.
    pub fn new(interval: u32, num_choices: u32) -> Self {
        Self { interval, choices: vec![Pending::default(); num_choices as usize] }
    }

    /// Takes what a choice has said, and returns what is to be told now.
    pub fn pass(&mut self, delta: Delta) -> Option<Delta> {
        // What is told about a prompt comes before the first token, in chunks of its own.
        if self.interval <= 1 || delta.prompt.is_some() {
            return Some(delta);
        }
        let Some(pending) = self.choices.get_mut(delta.index as usize) else { return Some(delta) };
        let said = match pending.held.take() {
            None => delta,
            Some(mut said) => {
                said.extend(delta);
                said
            }
        };
        if pending.begun && said.num_tokens < self.interval && said.finish.is_none() {
            pending.held = Some(said);
            return None;
        }
        pending.begun |= said.num_tokens > 0;
        Some(said)
    }

    /// What is still held back, for a stream that ends before its choices do.
    pub fn rest(&mut self) -> impl Iterator<Item = Delta> + '_ {
        self.choices.iter_mut().filter_map(|pending| pending.held.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Finish;

    fn token(index: u32, text: &str) -> Delta {
        Delta { index, text: text.to_owned(), num_tokens: 1, token_ids: vec![7], ..Delta::default() }
    }

    fn end(index: u32) -> Delta {
        Delta { index, finish: Some(Finish { reason: "stop", stop_reason: None }), ..Delta::default() }
    }

    #[test]
    fn the_first_token_and_the_end_never_wait() {
        let mut pace = StreamPace::new(3, 1);
        let letters = ["a", "b", "c", "d", "e"].map(|letter| token(0, letter));
        let told: Vec<_> = letters.into_iter().chain([end(0)]).filter_map(|delta| pace.pass(delta)).collect();
        let texts: Vec<_> = told.iter().map(|delta| (delta.text.as_str(), delta.token_ids.len())).collect();
        assert_eq!(texts, [("a", 1), ("bcd", 3), ("e", 1)]);
        assert!(told[2].finish.is_some() && pace.rest().next().is_none());
    }

    #[test]
    fn each_choice_has_its_own_pace() {
        let mut pace = StreamPace::new(2, 2);
        let said = [token(0, "a"), token(1, "x"), token(0, "b"), token(1, "y"), token(1, "z"), token(0, "c")];
        let told: Vec<_> = said.into_iter().filter_map(|delta| pace.pass(delta)).map(|delta| delta.text).collect();
        assert_eq!(told, ["a", "x", "yz", "bc"]);
    }

    #[test]
    fn what_is_held_back_is_told_when_the_stream_fails() {
        let mut pace = StreamPace::new(8, 1);
        let told = ["a", "b", "c"].into_iter().filter_map(|letter| pace.pass(token(0, letter))).count();
        let rest: Vec<_> = pace.rest().map(|delta| delta.text).collect();
        assert_eq!((told, rest), (1, vec!["bc".to_owned()]));
    }

    #[test]
    fn an_interval_of_one_holds_nothing_back() {
        let mut pace = StreamPace::new(1, 1);
        assert_eq!(["a", "b"].into_iter().filter_map(|letter| pace.pass(token(0, letter))).count(), 2);
    }
}
