//! Divides an answer into reasoning and what follows.

use crate::triggers::Triggers;

use super::ReasoningFormat;

/// Reads an answer one character at a time.
#[derive(Debug, Clone)]
pub(crate) struct ReasoningReader {
    format: ReasoningFormat,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// At the beginning, where the start tag may come; what has come so far.
    Start(String),
    Inside {
        triggers: Box<Triggers>,
        /// White space that is reasoning only if more follows.
        space: String,
        begun: bool,
    },
    /// Behind the end tag; white space before the answer is dropped.
    Behind,
    Answer,
}

/// What a character belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Portion {
    Nothing,
    Reasoning(String),
    Answer(String),
}

impl ReasoningReader {
    /// At the beginning of an answer; `open`: the prompt ends inside reasoning.
    pub fn new(format: ReasoningFormat, open: bool) -> Self {
        let place = if open { inside(format) } else { Place::Start(String::new()) };
        Self { format, place }
    }

    /// Whether what comes now would be reasoning.
    pub fn is_inside(&self) -> bool {
        matches!(self.place, Place::Inside { .. })
    }

    pub fn step(&mut self, c: char) -> Portion {
        match &mut self.place {
            Place::Start(held) => {
                held.push(c);
                let begun = held.trim_start();
                if begun == self.format.start {
                    self.place = inside(self.format);
                } else if !self.format.start.starts_with(begun) {
                    let held = std::mem::take(held);
                    self.place = Place::Answer;
                    return Portion::Answer(held);
                }
                Portion::Nothing
            }
            Place::Inside { triggers, space, begun } => {
                let mut portion = Portion::Nothing;
                let tag = triggers.step(c, |text| portion = think(text, space, begun));
                if tag == Some(0) {
                    self.place = Place::Behind;
                }
                portion
            }
            Place::Behind if c.is_whitespace() => Portion::Nothing,
            Place::Behind | Place::Answer => {
                self.place = Place::Answer;
                Portion::Answer(c.to_string())
            }
        }
    }

    /// The answer ends; what was held back belongs somewhere after all.
    pub fn finish(&mut self) -> Portion {
        match &mut self.place {
            Place::Start(held) => Portion::Answer(std::mem::take(held)),
            Place::Inside { triggers, space, begun } => think(&triggers.finish(), space, begun),
            Place::Behind | Place::Answer => Portion::Nothing,
        }
    }
}

fn inside(format: ReasoningFormat) -> Place {
    // A start tag inside says nothing: models write it although the prompt has done so already.
    let triggers = Box::new(Triggers::new(&[format.end, format.start]));
    Place::Inside { triggers, space: String::new(), begun: false }
}

/// Reasoning without the white space around it.
fn think(text: &str, space: &mut String, begun: &mut bool) -> Portion {
    let visible = text.trim_end();
    if visible.is_empty() {
        space.push_str(text);
        return Portion::Nothing;
    }
    let before = std::mem::take(space);
    let visible = if *begun { before + visible } else { visible.trim_start().to_owned() };
    space.push_str(&text[text.trim_end().len()..]);
    *begun = true;
    Portion::Reasoning(visible)
}
