//! Writing small model files, sound or not.

#![allow(dead_code, reason = "each test binary uses its part")]

use serde_json::{Map, Value, json};

/// Appends a GGUF string.
pub fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A GGUF file under construction.
pub struct GgufBuilder {
    pub version: u32,
    pub num_tensors: Option<u64>,
    pub num_values: Option<u64>,
    pub values: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
    pub data: Vec<u8>,
}

impl GgufBuilder {
    /// A model of one layer without tensors.
    pub fn new(architecture: &str) -> Self {
        let (version, num_tensors, num_values) = (3, None, None);
        let empty = Self { version, num_tensors, num_values, values: vec![], tensors: vec![], data: vec![] };
        let mut builder = empty.text("general.architecture", architecture);
        let sizes = [
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("attention.head_count", 2),
        ];
        for (key, value) in sizes {
            builder = builder.u32(&format!("{architecture}.{key}"), value);
        }
        let epsilon = if architecture == "gpt2" { "layer_norm_epsilon" } else { "layer_norm_rms_epsilon" };
        builder.f32(&format!("{architecture}.attention.{epsilon}"), 1e-5)
    }

    fn value(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        let mut entry = Vec::new();
        text(&mut entry, key);
        entry.extend(kind.to_le_bytes());
        entry.extend(bytes);
        self.values.push(entry);
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.value(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.value(key, 6, &value.to_le_bytes())
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.value(key, 8, &bytes)
    }

    pub fn texts(self, key: &str, values: &[&str]) -> Self {
        let mut bytes = Vec::new();
        values.iter().for_each(|value| text(&mut bytes, value));
        self.array(key, 8, values.len() as u64, &bytes)
    }

    /// An array whose count need not be that of its bytes.
    pub fn array(self, key: &str, kind: u32, count: u64, bytes: &[u8]) -> Self {
        let mut array = Vec::new();
        array.extend(kind.to_le_bytes());
        array.extend(count.to_le_bytes());
        array.extend(bytes);
        self.value(key, 9, &array)
    }

    /// A table entry as it is written: sizes innermost first.
    pub fn entry(mut self, name: &str, sizes: &[u64], kind: u32, offset: u64) -> Self {
        let mut entry = Vec::new();
        text(&mut entry, name);
        entry.extend((sizes.len() as u32).to_le_bytes());
        sizes.iter().for_each(|size| entry.extend(size.to_le_bytes()));
        entry.extend(kind.to_le_bytes());
        entry.extend(offset.to_le_bytes());
        self.tensors.push(entry);
        self
    }

    /// An f32 tensor of 0, 1, 2, …; `shape` outermost first.
    pub fn tensor(mut self, name: &str, shape: &[u64]) -> Self {
        let offset = self.data.len().next_multiple_of(32);
        self.data.resize(offset, 0);
        let elements: u64 = shape.iter().product();
        self.data.extend((0..elements).flat_map(|i| (i as f32).to_le_bytes()));
        let sizes: Vec<u64> = shape.iter().rev().copied().collect();
        self.entry(name, &sizes, 0, offset as u64)
    }

    pub fn build(self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.num_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.num_values.unwrap_or(self.values.len() as u64).to_le_bytes());
        bytes.extend(self.values.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(self.data);
        bytes
    }
}

/// A safetensors file with this header.
pub fn safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A sound safetensors file of f32 tensors of 0, 1, 2, ….
pub fn sound_safetensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        data.extend((0..shape.iter().product::<usize>()).flat_map(|i| (i as f32).to_le_bytes()));
        header.insert((*name).to_owned(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    safetensors(&header.into(), &data)
}

/// config.json of a tiny Llama.
pub fn llama_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 4, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16, "rms_norm_eps": 1e-5,
        "eos_token_id": 3
    })
}

/// A repeatable stream of numbers.
pub struct Lcg(pub u64);

impl Lcg {
    pub fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}
