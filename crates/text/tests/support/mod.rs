//! Reads the tokenizer out of a GGUF file.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::Path;

use firebrick_text::GgufVocabulary;

#[path = "../../../../tests/support/fetched.rs"]
pub mod fetched;

/// A small deterministic generator (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).expect("below a usize")
    }

    /// Cuts a text at random character boundaries.
    pub fn split<'t>(&mut self, text: &'t str) -> Vec<&'t str> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let num_chars = 1 + self.below(4);
            let at = rest.char_indices().nth(num_chars).map_or(rest.len(), |(at, _)| at);
            let (piece, tail) = rest.split_at(at);
            pieces.push(piece);
            rest = tail;
        }
        pieces
    }
}

/// The values of a GGUF header that tokenizers need.
#[derive(Debug, Default)]
pub struct GgufHeader {
    pub strings: HashMap<String, String>,
    pub numbers: HashMap<String, u64>,
    pub string_lists: HashMap<String, Vec<String>>,
    pub float_lists: HashMap<String, Vec<f32>>,
    pub int_lists: HashMap<String, Vec<i32>>,
}

struct Reader<'b> {
    bytes: &'b [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, tail) = self.bytes.split_at(N);
        self.bytes = tail;
        head.try_into().expect("N bytes")
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
    fn string(&mut self) -> String {
        let length = usize::try_from(self.u64()).expect("fits");
        let (head, tail) = self.bytes.split_at(length);
        self.bytes = tail;
        String::from_utf8(head.to_vec()).expect("GGUF strings are UTF-8")
    }
    fn number(&mut self, kind: u32) -> u64 {
        match kind {
            0 | 1 | 7 => u64::from(self.take::<1>()[0]),
            2 | 3 => u64::from(u16::from_le_bytes(self.take())),
            4..=6 => u64::from(self.u32()),
            10..=12 => self.u64(),
            _ => panic!("unknown GGUF value type {kind}"),
        }
    }
}

impl GgufHeader {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("the file was found");
        let mut reader = Reader { bytes: &bytes };
        assert_eq!(&reader.take::<4>(), b"GGUF");
        let (_version, _tensors, num_values) = (reader.u32(), reader.u64(), reader.u64());
        let mut header = Self::default();
        for _ in 0..num_values {
            let key = reader.string();
            match reader.u32() {
                8 => drop(header.strings.insert(key, reader.string())),
                9 => header.read_list(key, &mut reader),
                kind => drop(header.numbers.insert(key, reader.number(kind))),
            }
        }
        header
    }

    fn read_list(&mut self, key: String, reader: &mut Reader<'_>) {
        let kind = reader.u32();
        let length = reader.u64();
        match kind {
            8 => drop(self.string_lists.insert(key, (0..length).map(|_| reader.string()).collect())),
            6 => drop(self.float_lists.insert(key, (0..length).map(|_| f32::from_le_bytes(reader.take())).collect())),
            5 => drop(self.int_lists.insert(key, (0..length).map(|_| i32::from_le_bytes(reader.take())).collect())),
            kind => (0..length).for_each(|_| {
                reader.number(kind);
            }),
        }
    }

    pub fn vocabulary(&self) -> GgufVocabulary {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let id = |name: &str| self.numbers.get(&key(name)).map(|&id| u32::try_from(id).expect("a token id"));
        let flag = |name: &str, default: bool| self.numbers.get(&key(name)).map_or(default, |&value| value != 0);
        let model = self.strings[&key("model")].clone();
        let is_sentencepiece = model == "llama";
        GgufVocabulary {
            pre: self.strings.get(&key("pre")).cloned(),
            tokens: self.string_lists[&key("tokens")].clone(),
            scores: self.float_lists.get(&key("scores")).cloned().unwrap_or_default(),
            token_types: self.int_lists.get(&key("token_type")).cloned().unwrap_or_default(),
            merges: self.string_lists.get(&key("merges")).cloned().unwrap_or_default(),
            bos: id("bos_token_id"),
            eos: id("eos_token_id"),
            unknown: id("unknown_token_id"),
            add_bos: flag("add_bos_token", is_sentencepiece),
            add_eos: flag("add_eos_token", false),
            add_space_prefix: flag("add_space_prefix", is_sentencepiece),
            model,
        }
    }
}
