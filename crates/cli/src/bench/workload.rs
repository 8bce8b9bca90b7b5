//! What is asked: random prompts of given lengths, some with beginnings in common.

use clap::{Args, ValueEnum};

use super::arrivals::Chance;
use crate::args::quantity;
use crate::failure::Failure;

/// Words that most vocabularies have as one token each, with the space before them.
const WORDS: [&str; 64] = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system", "program",
    "question", "work", "number", "night", "point", "home", "water", "room", "mother", "area", "money", "story",
    "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue", "side", "kind",
    "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end", "member", "law", "car",
    "city",
];

/// `--dataset-name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dataset {
    /// Nothing in common
    Random,
    /// Beginnings in common, as with one system prompt
    #[value(alias = "prefix_repetition", alias = "prefix-repetition")]
    SharedPrefix,
}

/// What is asked.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Workload")]
pub struct WorkloadArgs {
    /// random, or shared-prefix, where requests begin alike
    #[arg(long, value_enum, default_value = "random")]
    pub dataset_name: Dataset,

    /// Requests
    #[arg(long, value_name = "REQUESTS", default_value = "100", value_parser = quantity)]
    pub num_prompts: usize,

    /// Tokens of a prompt, beside those it shares
    #[arg(long, alias = "input-len", value_name = "TOKENS", default_value = "128", value_parser = quantity)]
    pub random_input_len: usize,

    /// Tokens of an answer
    #[arg(long, alias = "output-len", value_name = "TOKENS", default_value = "64", value_parser = quantity)]
    pub random_output_len: usize,

    /// Lengths vary evenly by this share up and down, such as 0.5
    #[arg(long, value_name = "SHARE", default_value = "0")]
    pub random_range_ratio: f64,

    /// Tokens that prompts share at their beginning [default: 0; with shared-prefix --random-input-len]
    #[arg(long, value_name = "TOKENS", value_parser = quantity)]
    pub random_prefix_len: Option<usize>,

    /// Different beginnings
    #[arg(long, value_name = "PREFIXES", default_value = "1", value_parser = quantity)]
    pub num_prefixes: usize,

    /// The same seed gives the same requests at the same times
    #[arg(long, default_value = "0")]
    pub seed: u64,
}

/// One request, before it has tokens or text: numbers that stand for either.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Seed of each piece of the prompt.
    pub pieces: Vec<u64>,
    /// Tokens of the answer.
    pub output_len: usize,
}

impl WorkloadArgs {
    /// The requests.
    pub fn items(&self) -> Result<Vec<Item>, Failure> {
        if self.num_prompts == 0 || self.random_output_len == 0 {
            return Err(Failure::Usage("--num-prompts and --random-output-len must be at least 1".into()));
        }
        if !(0.0..1.0).contains(&self.random_range_ratio) {
            let message = format!("--random-range-ratio is {}, but must be from 0 to below 1", self.random_range_ratio);
            return Err(Failure::Usage(message));
        }
        let prefix_len = self.prefix_len();
        if prefix_len + self.random_input_len == 0 {
            return Err(Failure::Usage("a prompt needs at least one token; see --random-input-len".into()));
        }
        let mut chance = Chance::new(self.seed);
        let numbers = |chance: &mut Chance, count| (0..count).map(|_| chance.next()).collect::<Vec<u64>>();
        let prefixes: Vec<Vec<u64>> = (0..self.num_prefixes.max(1)).map(|_| numbers(&mut chance, prefix_len)).collect();
        let item = |index: usize| {
            let input_len = self.vary(self.random_input_len, &mut chance).max(usize::from(prefix_len == 0));
            let output_len = self.vary(self.random_output_len, &mut chance).max(1);
            let own = numbers(&mut chance, input_len);
            Item { pieces: [prefixes[index % prefixes.len()].clone(), own].concat(), output_len }
        };
        Ok((0..self.num_prompts).map(item).collect())
    }

    fn prefix_len(&self) -> usize {
        self.random_prefix_len.unwrap_or(match self.dataset_name {
            Dataset::Random => 0,
            Dataset::SharedPrefix => self.random_input_len,
        })
    }

    fn vary(&self, length: usize, chance: &mut Chance) -> usize {
        let spread = (length as f64 * self.random_range_ratio) as usize;
        if spread == 0 { length } else { length - spread + chance.below(2 * spread as u64 + 1) as usize }
    }
}

impl Item {
    /// As tokens of a vocabulary.
    pub fn tokens(&self, vocab_size: usize) -> Vec<u32> {
        // The first tokens are often control tokens.
        let first = (vocab_size / 10).min(1000) as u64;
        let range = (vocab_size as u64 - first).max(1);
        self.pieces.iter().map(|piece| (first + piece % range) as u32).collect()
    }

    /// As a text of common words, of about one token each.
    pub fn text(&self) -> String {
        let words: Vec<&str> = self.pieces.iter().map(|piece| WORDS[(piece % 64) as usize]).collect();
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dataset_name: Dataset) -> WorkloadArgs {
        WorkloadArgs {
            dataset_name,
            num_prompts: 40,
            random_input_len: 10,
            random_output_len: 8,
            random_range_ratio: 0.0,
            random_prefix_len: None,
            num_prefixes: 2,
            seed: 0,
        }
    }

    #[test]
    fn requests_that_share_a_beginning_differ_after_it() {
        let items = args(Dataset::SharedPrefix).items().expect("valid");
        assert_eq!(items[0].pieces.len(), 20);
        assert_eq!(items[0].pieces[..10], items[2].pieces[..10]);
        assert_ne!(items[0].pieces[..10], items[1].pieces[..10]);
        assert_ne!(items[0].pieces[10..], items[2].pieces[10..]);
    }

    #[test]
    fn lengths_vary_within_their_range_and_repeat_with_the_seed() {
        let args = WorkloadArgs { random_range_ratio: 0.5, ..args(Dataset::Random) };
        let items = args.items().expect("valid");
        assert!(items.iter().all(|item| (5..=15).contains(&item.pieces.len()) && (4..=12).contains(&item.output_len)));
        assert!(items.iter().any(|item| item.pieces.len() != 10));
        assert_eq!(items, args.items().expect("valid"));
    }

    #[test]
    fn tokens_are_in_the_vocabulary() {
        let item = args(Dataset::Random).items().expect("valid").remove(0);
        assert!(item.tokens(50).iter().all(|&token| (5..50).contains(&token)));
    }
}
