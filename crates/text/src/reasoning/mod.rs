//! What a model thinks before it speaks: the tags around it, and the reader that tells the two apart.

mod reader;

pub(crate) use reader::{Portion, ReasoningReader};

/// Tags around reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReasoningFormat {
    /// Begins reasoning.
    pub start: &'static str,
    /// Ends reasoning.
    pub end: &'static str,
    /// Answers are reasoning from their first word, whether or not the model or its template writes the start.
    pub is_implied: bool,
}

const THINK: ReasoningFormat = tags("<think>", "</think>");

const fn tags(start: &'static str, end: &'static str) -> ReasoningFormat {
    ReasoningFormat { start, end, is_implied: false }
}

const fn implied(format: ReasoningFormat) -> ReasoningFormat {
    ReasoningFormat { is_implied: true, ..format }
}

/// The names under which a format can be asked for.
const NAMES: [(&str, ReasoningFormat); 15] = [
    ("qwen3", THINK),
    ("deepseek_r1", implied(THINK)),
    ("deepseek_v3", THINK),
    ("glm45", THINK),
    ("olmo3", THINK),
    ("ernie45", implied(THINK)),
    ("step3", implied(THINK)),
    ("minimax_m2", implied(THINK)),
    ("nemotron", THINK),
    ("think", THINK),
    ("hunyuan_a13b", THINK),
    ("mistral", tags("[THINK]", "[/THINK]")),
    ("seed_oss", tags("<seed:think>", "</seed:think>")),
    ("kimi", tags("◁think▷", "◁/think▷")),
    ("granite", tags("Here is my thought process:", "Here is my response:")),
];

impl ReasoningFormat {
    /// The format with this name.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|&(_, format)| format)
    }

    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|&(name, _)| name)
    }

    /// The format that a chat template knows, as far as its text tells.
    pub fn of_template(source: &str) -> Option<Self> {
        let known = ["think", "mistral", "seed_oss", "kimi"].map(|name| Self::named(name).expect("listed above"));
        known.into_iter().find(|format| source.contains(format.end))
    }

    /// Whether an answer to this prompt begins inside reasoning.
    pub fn is_open_after(&self, prompt: &str) -> bool {
        self.is_implied || prompt.trim_end().ends_with(self.start)
    }

    /// The tags may be special tokens, which texts usually leave out.
    pub fn markers(&self) -> [&'static str; 2] {
        [self.start, self.end]
    }
}
