//! Which kernel: an entry of a source that is compiled with some macros.

use std::hash::{Hash, Hasher};

use super::{COMMON, Source};

/// The value of a macro that a source is compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Definition {
    Word(&'static str),
    Number(usize),
}

/// One variant of a source.
#[derive(Clone, Debug)]
pub(super) struct Module {
    source: &'static Source,
    definitions: Vec<(&'static str, Definition)>,
}

impl PartialEq for Module {
    fn eq(&self, other: &Self) -> bool {
        self.source.name == other.source.name && self.definitions == other.definitions
    }
}

impl Eq for Module {}

impl Hash for Module {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source.name.hash(state);
        self.definitions.hash(state);
    }
}

impl Module {
    /// The source's file, without its extension.
    pub(super) fn name(&self) -> &'static str {
        self.source.name
    }

    /// Whether the source, or what it needs, has this in it.
    pub(super) fn contains(&self, text: &str) -> bool {
        self.source.text.contains(text) || self.source.needs.contains(text)
    }

    /// The macros, for people: `ELEMENT=bf16 HEAD_DIM=64`.
    pub(super) fn variant(&self) -> String {
        let definition = |(name, value): &(&str, Definition)| match value {
            Definition::Word(word) => format!("{name}={word}"),
            Definition::Number(number) => format!("{name}={number}"),
        };
        self.definitions.iter().map(definition).collect::<Vec<_>>().join(" ")
    }

    /// The text that is compiled.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.definitions {
            match value {
                Definition::Word(word) => text.push_str(&format!("#define {name} {word}\n")),
                Definition::Number(number) => text.push_str(&format!("#define {name} {number}\n")),
            }
        }
        text + COMMON + self.source.needs + self.source.text
    }
}

/// One entry of one variant of a source.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Kernel {
    pub module: Module,
    pub entry: &'static str,
}

impl Kernel {
    pub(super) fn new(source: &'static Source, entry: &'static str) -> Self {
        Self { module: Module { source, definitions: Vec::new() }, entry }
    }

    /// Compiled with `name` defined as a word.
    pub(super) fn word(mut self, name: &'static str, value: &'static str) -> Self {
        self.module.definitions.push((name, Definition::Word(value)));
        self
    }

    /// Compiled with `name` defined as a number.
    pub(super) fn number(mut self, name: &'static str, value: usize) -> Self {
        self.module.definitions.push((name, Definition::Number(value)));
        self
    }
}
