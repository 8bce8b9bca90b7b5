//! The file of workloads and the rule that makes its token ids.

use std::path::Path;

use firebrick_engine::TokenId;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::failure::Failure;

/// The rule's stream numbers of the prefix workload: its prefix, its two tails, and the prompts with nothing in common.
const PREFIX_STREAM: u64 = 900;
const TAIL_STREAMS: [u64; 2] = [910, 920];
const UNSHARED_STREAM: u64 = 930;

/// A model of the file.
pub struct Model {
    /// Its name there.
    pub name: String,
    /// Its config.json.
    pub config: String,
    /// Prompt and answer together, at most.
    pub max_model_len: usize,
}

/// One workload.
pub struct Workload {
    /// Its name.
    pub name: String,
    /// How its requests are handed over.
    pub kind: Kind,
    /// Measured repetitions.
    pub repetitions: u64,
    /// Its place in the file's order, from 1.
    place: u64,
    lengths: Vec<(u32, u32)>,
}

/// How requests are handed over.
pub enum Kind {
    /// All at once.
    Burst,
    /// So many at a time.
    ClosedLoop {
        /// How many.
        in_flight: usize,
    },
    /// Three bursts whose prompts begin alike or not.
    Prefix {
        /// Tokens in common.
        shared: u32,
    },
}

/// One request.
pub struct Item {
    /// Its prompt.
    pub tokens: Vec<TokenId>,
    /// Tokens of its answer.
    pub output: u32,
}

/// The file.
pub struct Workloads {
    seed: u64,
    models: Vec<Model>,
    workloads: Vec<Workload>,
}

#[derive(Deserialize)]
struct File {
    about: About,
    order: Vec<String>,
    workloads: Map<String, Value>,
    lengths: Map<String, Value>,
    models: Map<String, Value>,
}

#[derive(Deserialize)]
struct About {
    seed: u64,
}

#[derive(Deserialize)]
struct Entry {
    kind: String,
    #[serde(default)]
    requests: Vec<(u32, u32)>,
    lengths: Option<String>,
    #[serde(default)]
    n: usize,
    #[serde(default)]
    prompt: u32,
    #[serde(default)]
    output: u32,
    #[serde(default)]
    shared: u32,
    #[serde(default)]
    unique: u32,
    #[serde(default)]
    in_flight: usize,
    reps: u64,
}

impl Workloads {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let problem = |error: String| Failure::Run(format!("{}: {error}; check --workloads", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
        Self::parse(&text).map_err(problem)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let model = |(name, value): (&String, &Value)| Model {
            name: name.clone(),
            config: value["config"].to_string(),
            max_model_len: value["max_model_len"].as_u64().unwrap_or(4096) as usize,
        };
        let models = file.models.iter().map(model).collect();
        let workload = |(index, name): (usize, &String)| {
            let value =
                file.workloads.get(name).ok_or_else(|| format!("`order` names {name}, `workloads` does not"))?;
            let entry = Entry::deserialize(value).map_err(|error| format!("{name}: {error}"))?;
            Workload::new(name, index as u64 + 1, entry, &file.lengths)
        };
        let workloads = file.order.iter().enumerate().map(workload).collect::<Result<_, _>>()?;
        Ok(Self { seed: file.about.seed, models, workloads })
    }

    /// The models of these names, or all.
    pub fn models(&self, names: &[String]) -> Result<Vec<&Model>, Failure> {
        chosen(&self.models, names, |model| &model.name, "--models")
    }

    /// The workloads of these names, or all.
    pub fn chosen(&self, names: &[String]) -> Result<Vec<&Workload>, Failure> {
        chosen(&self.workloads, names, |workload| &workload.name, "--only")
    }

    /// The requests of one repetition; 0 is the warm-up.
    pub fn items(&self, workload: &Workload, repetition: u64, vocab_size: u32) -> Vec<Item> {
        let stream = if repetition == 0 { 0 } else { workload.place * 64 + repetition - 1 };
        let item = |(index, &(prompt, output)): (usize, &(u32, u32))| Item {
            tokens: self.tokens(stream, index as u64, prompt, vocab_size),
            output,
        };
        workload.lengths.iter().enumerate().map(item).collect()
    }

    /// The requests of one part of a prefix workload: 0 has nothing in common, 1 and 2 have the same beginning, 3 is the
    /// warm-up.
    pub fn prefix_items(&self, workload: &Workload, part: usize, vocab_size: u32) -> Vec<Item> {
        let Kind::Prefix { shared } = workload.kind else { return Vec::new() };
        let prefix = self.tokens(PREFIX_STREAM, 0, shared, vocab_size);
        let item = |(index, &(prompt, output)): (usize, &(u32, u32))| {
            let own = |stream, length| self.tokens(stream, index as u64, length, vocab_size);
            let tokens = match part {
                0 => own(UNSHARED_STREAM, prompt),
                3 => own(0, prompt),
                _ => [prefix.clone(), own(TAIL_STREAMS[part - 1], prompt - shared)].concat(),
            };
            Item { tokens, output }
        };
        workload.lengths.iter().enumerate().map(item).collect()
    }

    fn tokens(&self, stream: u64, request: u64, length: u32, vocab_size: u32) -> Vec<TokenId> {
        let start = self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add((stream << 40) + (request << 20));
        let token = |index: u64| 16 + (splitmix64(start.wrapping_add(index)) % u64::from(vocab_size - 32)) as u32;
        (0..u64::from(length)).map(token).collect()
    }
}

impl Workload {
    fn new(name: &str, place: u64, entry: Entry, lengths: &Map<String, Value>) -> Result<Self, String> {
        let lengths = match &entry.lengths {
            Some(list) => {
                let value = lengths.get(list).ok_or_else(|| format!("{name}: there are no lengths called {list}"))?;
                Vec::<(u32, u32)>::deserialize(value).map_err(|error| format!("{list}: {error}"))?
            }
            None if entry.n > 0 => vec![(entry.prompt.max(entry.shared + entry.unique), entry.output); entry.n],
            None => entry.requests,
        };
        let kind = match entry.kind.as_str() {
            "burst" => Kind::Burst,
            "closed_loop" => Kind::ClosedLoop { in_flight: entry.in_flight.max(1) },
            "prefix" => Kind::Prefix { shared: entry.shared },
            other => return Err(format!("{name}: kind {other} is not burst, closed_loop or prefix")),
        };
        Ok(Self { name: name.to_owned(), kind, repetitions: entry.reps.max(1), place, lengths })
    }

    /// Tokens of the longest request, its answer included.
    pub fn longest(&self) -> usize {
        self.lengths.iter().map(|&(prompt, output)| (prompt + output) as usize).max().unwrap_or(0)
    }

    /// Requests that are with the engine at a time.
    pub fn in_flight(&self) -> usize {
        match self.kind {
            Kind::ClosedLoop { in_flight } => in_flight,
            _ => usize::MAX,
        }
    }
}

fn chosen<'a, T>(
    all: &'a [T],
    names: &[String],
    name_of: impl Fn(&T) -> &String,
    flag: &str,
) -> Result<Vec<&'a T>, Failure> {
    if names.is_empty() {
        return Ok(all.iter().collect());
    }
    let find = |name: &String| {
        let known: Vec<&str> = all.iter().map(|item| name_of(item).as_str()).collect();
        let unknown = || Failure::Usage(format!("{flag}: {name} is not in the file, which has {}", known.join(", ")));
        all.iter().find(|item| name_of(item) == name).ok_or_else(unknown)
    };
    names.iter().map(find).collect()
}

/// Steele, Lea and Flood, 2014.
fn splitmix64(state: u64) -> u64 {
    let x = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"about": {"seed": 7}, "order": ["one", "loop", "prefix"],
        "lengths": {"some": [[3, 2], [5, 1]]}, "models": {"m": {"config": {"vocab_size": 100}, "max_model_len": 64}},
        "workloads": {"one": {"kind": "burst", "requests": [[4, 2]], "reps": 3},
            "loop": {"kind": "closed_loop", "lengths": "some", "in_flight": 8, "reps": 1},
            "prefix": {"kind": "prefix", "n": 2, "shared": 6, "unique": 2, "output": 1, "reps": 1}}}"#;

    #[test]
    fn repetitions_have_different_prompts_of_the_same_lengths() {
        let workloads = Workloads::parse(FILE).expect("a valid file");
        let one = workloads.chosen(&["one".into()]).expect("it is there")[0];
        let tokens = |repetition| workloads.items(one, repetition, 100)[0].tokens.clone();
        assert_eq!((tokens(1).len(), tokens(1)), (4, tokens(1)));
        assert_ne!(tokens(1), tokens(2));
        assert!(tokens(1).iter().all(|token| (16..84).contains(token)));
    }

    #[test]
    fn prompts_of_the_prefix_workload_begin_alike_and_end_differently() {
        let workloads = Workloads::parse(FILE).expect("a valid file");
        let prefix = workloads.chosen(&["prefix".into()]).expect("it is there")[0];
        let items = [0, 1, 2].map(|part| workloads.prefix_items(prefix, part, 100));
        assert!(items.iter().flatten().all(|item| item.tokens.len() == 8));
        assert_eq!(prefix.longest(), 9);
        assert_eq!(items[1][0].tokens[..6], items[2][1].tokens[..6]);
        assert_ne!(items[1][0].tokens[6..], items[2][0].tokens[6..]);
        assert_ne!(items[0][0].tokens[..6], items[1][0].tokens[..6]);
    }

    #[test]
    fn what_is_not_in_the_file_is_named() {
        let workloads = Workloads::parse(FILE).expect("a valid file");
        let Err(Failure::Usage(message)) = workloads.chosen(&["two".into()]) else {
            panic!("there is no such workload")
        };
        assert!(message.contains("one, loop, prefix"), "{message}");
    }
}
