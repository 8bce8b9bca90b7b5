//! Text in which certain words announce something else.

use crate::message_event::EventSink;
use crate::stop::StopMatcher;

/// Watches for words; what could become one is held back.
#[derive(Debug, Clone)]
pub(crate) struct Triggers {
    fresh: StopMatcher,
    matcher: StopMatcher,
}

impl Triggers {
    /// Watches for these words.
    pub fn new(words: &[&str]) -> Self {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let fresh = StopMatcher::new(&words, false);
        Self { matcher: fresh.clone(), fresh }
    }

    /// Takes a character, passes on what is text, and gives the number of the word that ends here.
    pub fn step(&mut self, c: char, text: impl FnOnce(&str)) -> Option<usize> {
        let output = self.matcher.push(c.encode_utf8(&mut [0; 4]));
        if !output.text.is_empty() {
            text(&output.text);
        }
        if output.matched.is_some() {
            self.matcher = self.fresh.clone();
        }
        output.matched
    }

    /// The text ends: what was held back is text.
    pub fn finish(&mut self) -> String {
        let text = self.matcher.finish();
        self.matcher = self.fresh.clone();
        text
    }

    /// As [`step`](Self::step), into a sink.
    pub fn step_into(&mut self, c: char, sink: &mut EventSink) -> Option<usize> {
        self.step(c, |text| sink.text(text))
    }
}
