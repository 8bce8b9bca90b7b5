//! What a model needs and what a device has, before anything is loaded.
//!
//! Weights and KV cache are exact; activations are an upper estimate of what is alive at the widest point of a layer.
//! Every layer is counted as keeping every token, sliding layers too.

use crate::config::ModelConfig;
use crate::dtype::{Dtype, KvDtype};
use crate::gpu::{BatchLimits, GPUS, Gpu};
use std::fmt;

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOptions {
    /// Name of the device, for people.
    pub device: String,
    /// Memory of one device.
    pub memory_bytes: u64,
    /// Devices that share the model.
    pub num_devices: usize,
    /// Share of the memory that may be used, above 0 and at most 1.
    pub memory_utilization: f32,
    /// Taken by drivers, kernels and allocators before any model.
    pub runtime_bytes: u64,
    /// What other models on the device take, or will.
    pub others_bytes: u64,
    /// KV caches among which the rest is divided, this model's included.
    pub num_kv_caches: u64,
    /// Format of weights and activations.
    pub dtype: Dtype,
    /// Bytes of all weights where quantised ones stay packed; `None` where every weight is in `dtype`.
    pub packed_weight_bytes: Option<u64>,
    /// Format of keys and values.
    pub kv_dtype: KvDtype,
    /// Tokens per KV block.
    pub block_size: usize,
    /// Prompt and output together, at most.
    pub max_model_len: usize,
    /// Sequences in one batch, at most.
    pub max_num_seqs: usize,
    /// Tokens in one batch, at most.
    pub max_num_batched_tokens: usize,
    /// Logits are in `dtype`, and tokens are chosen from them where they are, as on CUDA; elsewhere they are in single precision,
    /// and copied.
    pub keeps_logits: bool,
}

impl PlanOptions {
    /// The server's defaults for a model on a device.
    pub fn new(config: &ModelConfig, device: &str, memory_bytes: u64) -> Self {
        // A context with small stacks, as an H200's.
        const RUNTIME_BYTES: u64 = 280 << 20;
        Self {
            device: device.to_owned(),
            memory_bytes,
            num_devices: 1,
            memory_utilization: 0.9,
            runtime_bytes: RUNTIME_BYTES,
            others_bytes: 0,
            num_kv_caches: 1,
            dtype: config.dtype,
            packed_weight_bytes: None,
            kv_dtype: config.dtype.into(),
            block_size: 16,
            max_model_len: config.max_position_embeddings,
            max_num_seqs: BatchLimits::DEFAULT.sequences,
            max_num_batched_tokens: BatchLimits::DEFAULT.tokens,
            keeps_logits: false,
        }
    }

    /// With these limits of a batch.
    pub fn with_limits(self, BatchLimits { sequences, tokens }: BatchLimits) -> Self {
        Self { max_num_seqs: sequences, max_num_batched_tokens: tokens, ..self }
    }

    /// The defaults on a known GPU with CUDA: float16 instead of bfloat16 where the GPU has none.
    pub fn on_gpu(config: &ModelConfig, gpu: &Gpu) -> Self {
        let options = Self::new(config, gpu.name, gpu.memory_bytes).with_limits(gpu.batch_limits());
        let mut options = Self { keeps_logits: true, ..options };
        if options.dtype == Dtype::BF16 && !gpu.has_bfloat16() {
            (options.dtype, options.kv_dtype) = (Dtype::F16, Dtype::F16.into());
        }
        options
    }
}

/// Where one device's memory goes.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    /// What was asked for.
    pub options: PlanOptions,
    /// The model's name in config.json.
    pub model: &'static str,
    /// What the whole device may use.
    pub budget_bytes: u64,
    /// This device's share of the weights.
    pub weight_bytes: u64,
    /// The largest batch's intermediate values and logits.
    pub activation_bytes: u64,
    /// Keys and values of one token on this device.
    pub kv_bytes_per_token: u64,
    /// KV blocks that fit into what is left.
    pub num_blocks: u64,
}

impl MemoryPlan {
    /// Plans for `num_parameters` weights ([`ModelConfig::num_parameters`], or the checkpoint's own count).
    pub fn new(config: &ModelConfig, num_parameters: u64, options: PlanOptions) -> Self {
        let devices = options.num_devices.max(1);
        let kv_heads = config.num_kv_heads.div_ceil(devices);
        let kv_numbers = 2 * (config.num_layers * kv_heads * config.head_dim) as u64;
        let utilization = f64::from(options.memory_utilization.clamp(0.0, 1.0));
        let weight_bytes = options.packed_weight_bytes.unwrap_or(num_parameters * options.dtype.size() as u64);
        let mut plan = Self {
            model: config.architecture.name(),
            budget_bytes: (options.memory_bytes as f64 * utilization) as u64,
            weight_bytes: weight_bytes.div_ceil(devices as u64),
            activation_bytes: activation_bytes(config, &options),
            kv_bytes_per_token: kv_numbers * options.kv_dtype.size() as u64,
            num_blocks: 0,
            options,
        };
        let left = plan.budget_bytes.saturating_sub(plan.fixed_bytes());
        plan.num_blocks = left / plan.options.num_kv_caches.max(1) / plan.block_bytes();
        plan
    }

    /// Everything but the KV caches that are still to be made.
    fn fixed_bytes(&self) -> u64 {
        self.weight_bytes + self.activation_bytes + self.options.runtime_bytes + self.options.others_bytes
    }

    fn block_bytes(&self) -> u64 {
        (self.kv_bytes_per_token * self.options.block_size as u64).max(1)
    }

    fn blocks_of(&self, tokens: usize) -> u64 {
        tokens.div_ceil(self.options.block_size.max(1)) as u64
    }

    /// Memory of the KV cache.
    pub fn kv_bytes(&self) -> u64 {
        self.num_blocks * self.block_bytes()
    }

    /// Tokens the KV cache holds.
    pub fn kv_tokens(&self) -> u64 {
        self.num_blocks * self.options.block_size as u64
    }

    /// Sequences of `tokens` tokens that fit at once, within `max_num_seqs`.
    pub fn num_sequences(&self, tokens: usize) -> u64 {
        (self.num_blocks / self.blocks_of(tokens).max(1)).min(self.options.max_num_seqs as u64)
    }

    /// One sequence of full length fits; else a refusal with the numbers and what would help.
    pub fn check(&self) -> Result<(), PlanRefusal> {
        let needed_blocks = self.blocks_of(self.options.max_model_len);
        if self.num_blocks >= needed_blocks {
            return Ok(());
        }
        let needed_bytes = self.fixed_bytes() + needed_blocks * self.block_bytes() * self.options.num_kv_caches.max(1);
        Err(PlanRefusal { plan: Box::new(self.clone()), needed_bytes })
    }
}

/// At the widest point of a layer the residual stream, its normalised copy and the next one are alive beside either
/// queries, keys, values and attention's output, or the MLP's inner values; then come logits, as [`PlanOptions::keeps_logits`] says,
/// and capped ones beside those that they are made of.
fn activation_bytes(config: &ModelConfig, options: &PlanOptions) -> u64 {
    let devices = options.num_devices.max(1);
    let attention = 2 * config.query_size() + 2 * config.kv_size();
    let inputs = if config.has_gated_mlp() { 2 } else { 1 };
    let inner = (attention.max((inputs + 1) * config.intermediate_size)).div_ceil(devices);
    let per_token = ((3 * config.hidden_size + inner) * options.dtype.size()) as u64;
    let logit = match (options.keeps_logits, config.final_logit_softcap) {
        (true, None) => options.dtype.size(),
        (true, Some(_)) => 2 * options.dtype.size(),
        (false, _) => 2 * Dtype::F32.size(),
    };
    let logits = (config.vocab_size * logit) as u64;
    let rows = options.max_num_seqs.min(options.max_num_batched_tokens) as u64;
    options.max_num_batched_tokens as u64 * per_token + rows * logits
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        let share = format!("{} x {:.2}", Size(options.memory_bytes), options.memory_utilization);
        let devices = if options.num_devices > 1 { format!("{} x ", options.num_devices) } else { String::new() };
        writeln!(f, "{} in {} on {devices}{} ({share})", self.model, options.dtype, options.device)?;
        let lines = [
            ("budget", self.budget_bytes, String::new()),
            ("weights", self.weight_bytes, options.packed_weight_bytes.map_or("", |_| "some in fewer bits").to_owned()),
            ("activations", self.activation_bytes, format!("{} tokens a step", options.max_num_batched_tokens)),
            ("runtime", options.runtime_bytes, String::new()),
            ("KV cache", self.kv_bytes(), format!("{} blocks of {} tokens", self.num_blocks, options.block_size)),
            ("KV per token", self.kv_bytes_per_token, options.kv_dtype.to_string()),
        ];
        let others = (options.others_bytes > 0).then_some(("other models", options.others_bytes, String::new()));
        for (name, bytes, note) in lines.into_iter().chain(others) {
            let line = format!("  {name:<14}{:>12}  {note}", Size(bytes).to_string());
            writeln!(f, "{}", line.trim_end())?;
        }
        writeln!(f, "  sequences at once (at most {}):", options.max_num_seqs)?;
        for tokens in lengths(options.max_model_len) {
            writeln!(f, "  {:>14}{:>12}", format!("{tokens} tokens"), self.num_sequences(tokens))?;
        }
        Ok(())
    }
}

/// Powers of two from 512, then the full length.
fn lengths(max_model_len: usize) -> impl Iterator<Item = usize> {
    let powers = std::iter::successors(Some(512), |length: &usize| length.checked_mul(2));
    powers.take_while(move |length| *length < max_model_len).chain([max_model_len])
}

/// Bytes for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match UNITS.iter().find(|(unit, _)| self.0 >= *unit) {
            Some((unit, name)) => write!(f, "{:.2} {name}", self.0 as f64 / *unit as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// The model does not fit: the numbers, and each single change that would make it fit.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanRefusal {
    plan: Box<MemoryPlan>,
    needed_bytes: u64,
}

impl PlanRefusal {
    /// Memory that one sequence of full length needs in all.
    pub fn needed_bytes(&self) -> u64 {
        self.needed_bytes
    }

    /// Single changes that would fit, the least intrusive first.
    pub fn remedies(&self) -> Vec<String> {
        let options = &self.plan.options;
        let mut remedies = Vec::new();
        let longest = self.plan.kv_tokens();
        if longest > 0 {
            remedies.push(format!("--max-model-len {longest}"));
        }
        // Above this the driver and the display have too little left.
        const UTILIZATION_MAX: f64 = 0.97;
        let share = (self.needed_bytes as f64 / options.memory_bytes.max(1) as f64 * 100.0).ceil() / 100.0;
        if share <= UTILIZATION_MAX {
            remedies.push(format!("--gpu-memory-utilization {share:.2}"));
        }
        let is_single = options.dtype == Dtype::F32 && options.packed_weight_bytes.is_none();
        if is_single && self.halved_bytes() <= self.plan.budget_bytes {
            remedies.push("--dtype float16".to_owned());
        }
        let larger = GPUS.iter().find(|gpu| {
            let budget = gpu.memory_bytes as f64 * f64::from(options.memory_utilization);
            gpu.memory_bytes > options.memory_bytes && budget >= self.needed_bytes as f64
        });
        remedies.extend(larger.map(|gpu| format!("a GPU such as {} ({})", gpu.name, Size(gpu.memory_bytes))));
        remedies
    }

    /// Everything that follows the dtype at half its size; logits are counted full, which errs on the safe side.
    fn halved_bytes(&self) -> u64 {
        let plan = &self.plan;
        let kv_bytes = self.needed_bytes - plan.fixed_bytes();
        plan.options.runtime_bytes
            + plan.options.others_bytes
            + plan.weight_bytes / 2
            + plan.activation_bytes
            + kv_bytes / 2
    }
}

impl fmt::Display for PlanRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        let options = &plan.options;
        let others = match options.others_bytes {
            0 => String::new(),
            bytes => format!(", other models {}", Size(bytes)),
        };
        let caches = match options.num_kv_caches {
            0 | 1 => String::new(),
            caches => format!(" in each of {caches} KV caches"),
        };
        write!(
            f,
            "{} in {} does not fit: weights {}, activations {}, runtime {}{others} and KV cache for one sequence of {} \
             tokens{caches} {} make {}, but {} may use {} ({} x {:.2})",
            plan.model,
            options.dtype,
            Size(plan.weight_bytes),
            Size(plan.activation_bytes),
            Size(options.runtime_bytes),
            options.max_model_len,
            Size(self.needed_bytes - plan.fixed_bytes()),
            Size(self.needed_bytes),
            options.device,
            Size(plan.budget_bytes),
            Size(options.memory_bytes),
            options.memory_utilization,
        )?;
        match &self.remedies()[..] {
            [] => write!(f, "; no known GPU holds it, split it over several"),
            remedies => write!(f, "; any of these would fit: {}", remedies.join(", ")),
        }
    }
}

impl std::error::Error for PlanRefusal {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::from_json;

    fn llama2_7b() -> ModelConfig {
        let text = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
            "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "max_position_embeddings": 4096, "torch_dtype": "float16"}"#;
        from_json(text, Dtype::F32).unwrap()
    }

    fn plan(change: impl Fn(&mut PlanOptions), gpu: &str) -> MemoryPlan {
        let config = llama2_7b();
        let mut options = PlanOptions::on_gpu(&config, Gpu::find(gpu).unwrap());
        change(&mut options);
        MemoryPlan::new(&config, config.num_parameters(), options)
    }

    #[test]
    fn figures_are_those_worked_out_by_hand() {
        let plan = plan(|_| (), "A100-40GB");
        assert_eq!(plan.weight_bytes, 6_738_415_616 * 2);
        assert_eq!(plan.kv_bytes_per_token, 2 * 32 * 4096 * 2);
        // 2048 tokens x (3 x 4096 + 3 x 11008) x 2 bytes + 256 rows x 32000 x 2 bytes
        let inner = 2048 * (3 * 4096 + 3 * 11008) * 2;
        assert_eq!(plan.activation_bytes, inner + 256 * 32_000 * 2);
        let copied = self::plan(|options| options.keeps_logits = false, "A100-40GB");
        assert_eq!(copied.activation_bytes, inner + 256 * 32_000 * 4 * 2);
        assert_eq!(plan.budget_bytes, (42_949_672_960.0 * f64::from(0.9f32)) as u64);
        let left = plan.budget_bytes - plan.weight_bytes - plan.activation_bytes - (280 << 20);
        assert_eq!(plan.num_blocks, left / (524_288 * 16));
        assert_eq!(plan.num_sequences(4096), plan.num_blocks / 256);
        assert_eq!(plan.check(), Ok(()));
    }

    #[test]
    fn models_on_one_device_share_what_their_weights_leave() {
        let alone = plan(|_| (), "A100-80GB");
        let others = 10 << 30;
        let shared = plan(|options| (options.others_bytes, options.num_kv_caches) = (others, 2), "A100-80GB");
        let left = alone.budget_bytes - alone.fixed_bytes() - others;
        assert_eq!(shared.num_blocks, left / 2 / (524_288 * 16));
        let tight = plan(|options| (options.others_bytes, options.num_kv_caches) = (56 << 30, 2), "A100-80GB");
        let refusal = tight.check().unwrap_err();
        assert!(refusal.to_string().contains("other models 56.00 GiB") && refusal.to_string().contains("2 KV caches"));
        assert!(shared.check().is_ok());
    }

    #[test]
    fn every_remedy_of_a_refusal_works() {
        let tight = plan(|options| options.max_model_len = 4096, "T4");
        let refusal = tight.check().unwrap_err();
        let text = refusal.to_string();
        assert!(text.contains("weights 12.55 GiB") && text.contains("T4"), "{text}");
        for remedy in refusal.remedies() {
            let fixed = plan(
                |options| match remedy.split_once(' ').unwrap() {
                    ("--max-model-len", length) => options.max_model_len = length.parse().unwrap(),
                    ("--gpu-memory-utilization", share) => options.memory_utilization = share.parse().unwrap(),
                    ("--dtype", _) => (options.dtype, options.kv_dtype) = (Dtype::F16, Dtype::F16.into()),
                    ("a", gpu) => {
                        let name = gpu.strip_prefix("GPU such as ").unwrap().split(" (").next().unwrap();
                        options.memory_bytes = Gpu::find(name).unwrap().memory_bytes;
                    }
                    other => panic!("{other:?}"),
                },
                "T4",
            );
            assert_eq!(fixed.check(), Ok(()), "{remedy}");
        }
        assert!(!refusal.remedies().is_empty());
    }

    #[test]
    fn a_model_beyond_every_gpu_is_refused_without_remedy() {
        let config = llama2_7b();
        let refusal = MemoryPlan::new(&config, 1_000_000_000_000, PlanOptions::new(&config, "H200", 150 << 30)).check();
        assert!(refusal.unwrap_err().to_string().contains("split it"));
    }

    #[test]
    fn single_precision_is_told_of_half() {
        let change = |options: &mut PlanOptions| (options.dtype, options.kv_dtype) = (Dtype::F32, Dtype::F32.into());
        let refusal = plan(change, "L4").check().unwrap_err();
        assert!(refusal.remedies().contains(&"--dtype float16".to_owned()), "{refusal}");
    }

    #[test]
    fn more_devices_share_weights_and_heads() {
        let (one, two) = (plan(|_| (), "L4"), plan(|options| options.num_devices = 2, "L4"));
        assert_eq!(two.weight_bytes * 2, one.weight_bytes);
        assert_eq!(two.kv_bytes_per_token * 2, one.kv_bytes_per_token);
    }

    #[test]
    fn the_table_reads_as_expected() {
        let text = plan(|options| options.max_model_len = 2048, "A10").to_string();
        assert_eq!(
            text,
            "LlamaForCausalLM in float16 on A10 (22.49 GiB x 0.90)\n  \
               budget           20.24 GiB\n  \
               weights          12.55 GiB\n  \
               activations     192.62 MiB  2048 tokens a step\n  \
               runtime         280.00 MiB\n  \
               KV cache          7.23 GiB  925 blocks of 16 tokens\n  \
               KV per token    512.00 KiB  float16\n  \
               sequences at once (at most 256):\n      \
                 512 tokens          28\n     \
                1024 tokens          14\n     \
                2048 tokens           7\n"
        );
    }
}
