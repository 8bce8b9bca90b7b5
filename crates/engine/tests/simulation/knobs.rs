//! What one seed tries: a random engine, a random workload and random faults.
//!
//! Each knob is drawn by itself and many are off in most seeds (swarm testing): a feature that is always on hides the
//! bugs that need it off.

use firebrick_engine::{EngineConfig, Pooling, PromptOutput, Request, SamplingParams, SchedulingPolicy, TokenId};

use super::random::Random;

/// Everything that a seed decides before the first step.
pub struct Knobs {
    pub config: EngineConfig,
    pub kv_blocks: u32,
    pub num_requests: u32,
    /// Steps between arrivals, on average; 0: all come at once.
    pub arrival_gap: u32,
    pub prompt_len_max: u32,
    pub max_tokens_max: u32,
    pub num_choices_max: u32,
    /// Prompts begin with one of these.
    pub prefixes: Vec<Vec<TokenId>>,
    pub salts: Vec<Option<String>>,
    pub priorities: u32,
    pub stop_tokens: u32,
    pub penalties: bool,
    /// Some requests want to know about their prompts.
    pub prompt_outputs: bool,
    /// Steps between these faults, on average; 0: never.
    pub abort_one_in: u32,
    pub dropped_step_one_in: u32,
    /// Steps between those planned ahead of the results before them, on average; 0: never.
    pub ahead_one_in: u32,
    /// Draws between those that are not finite; 0: never.
    pub not_finite_one_in: u32,
    pub fail_at_step: Option<u64>,
    pub drain_one_in: u32,
}

impl Knobs {
    pub fn new(random: &mut Random) -> Self {
        let config = draw_config(random);
        let prompt_len_max = random.between(1, config.max_model_len - 1);
        let max_tokens_max = random.between(1, config.max_model_len.min(200));
        // Most seeds have little more room than one large request needs, so that sequences fight for blocks.
        let needed = (prompt_len_max + max_tokens_max).div_ceil(config.block_size);
        let tight = (needed + random.between(0, 8 * needed)).clamp(2, 4096);
        let kv_blocks = if random.once_in(4) { random.skewed(2, 256, 4096) } else { tight };
        let prefixes =
            (0..random.between(0, 4)).map(|_| draw_tokens(random, config.vocab_size, prompt_len_max)).collect();
        Self {
            num_requests: random.skewed(1, 100, 300),
            arrival_gap: if random.once_in(2) { 0 } else { random.magnitude(1, 32) },
            prompt_len_max,
            max_tokens_max,
            num_choices_max: if random.once_in(3) { random.between(2, config.max_choices) } else { 1 },
            prefixes,
            salts: (0..if random.once_in(2) { 3 } else { 1 }).map(salt).collect(),
            priorities: if random.once_in(2) { 3 } else { 1 },
            stop_tokens: if random.once_in(2) { random.between(1, 3) } else { 0 },
            penalties: random.once_in(3),
            prompt_outputs: random.once_in(3),
            abort_one_in: if random.once_in(2) { random.magnitude(2, 500) } else { 0 },
            dropped_step_one_in: if random.once_in(6) { random.magnitude(2, 50) } else { 0 },
            ahead_one_in: if random.once_in(2) { random.magnitude(1, 8) } else { 0 },
            not_finite_one_in: if random.once_in(4) { random.magnitude(16, 1000) } else { 0 },
            fail_at_step: random.once_in(10).then(|| u64::from(random.magnitude(1, 1000))),
            drain_one_in: if random.once_in(10) { 200 } else { 0 },
            config,
            kv_blocks,
        }
    }

    /// A request that the engine must accept unless it is larger than the pool or the step.
    pub fn draw_request(&self, random: &mut Random) -> Request {
        let vocab_size = self.config.vocab_size;
        let mut prompt = if self.prefixes.is_empty() { Vec::new() } else { random.pick(&self.prefixes).clone() };
        let keep = random.between(0, prompt.len() as u32) as usize;
        prompt.truncate(if random.once_in(2) { prompt.len() } else { keep });
        let tail = random.magnitude(1, self.prompt_len_max) as usize;
        prompt.truncate(self.prompt_len_max as usize - tail.min(self.prompt_len_max as usize));
        prompt.extend(draw_tokens(random, vocab_size, tail as u32));
        let room = self.config.max_model_len - prompt.len() as u32;
        let max_tokens = random.between(1, self.max_tokens_max).min(room);
        let mut request = Request::new(prompt, self.draw_params(random, max_tokens));
        request.n = random.between(1, self.num_choices_max);
        request.priority = random.between(0, self.priorities - 1) as i32 - 1;
        request.eos_token_ids = (0..self.stop_tokens).map(|_| random.between(0, vocab_size - 1)).collect();
        request.cache_salt = random.pick(&self.salts).clone();
        if self.prompt_outputs && random.once_in(2) {
            let outputs = [
                PromptOutput::Logprobs(2),
                PromptOutput::Pooled(Pooling::Mean),
                PromptOutput::Pooled(Pooling::Last),
                PromptOutput::Pooled(Pooling::Cls),
            ];
            request.prompt_output = Some(*random.pick(&outputs));
            if random.once_in(3) && request.n == 1 {
                request.params.max_tokens = Some(0);
                request.params.min_tokens = 0;
            }
        }
        request
    }

    fn draw_params(&self, random: &mut Random, max_tokens: u32) -> SamplingParams {
        let vocab_size = self.config.vocab_size;
        let stop_tokens = if random.once_in(2) { self.stop_tokens } else { 0 };
        let bounded = !random.once_in(20);
        SamplingParams {
            temperature: random.between(0, 3) as f32 / 2.0,
            seed: random.once_in(2).then(|| random.next()),
            max_tokens: bounded.then_some(max_tokens),
            min_tokens: if bounded && random.once_in(4) { random.between(0, max_tokens) } else { 0 },
            ignore_eos: random.once_in(4),
            stop_token_ids: (0..stop_tokens).map(|_| random.between(0, vocab_size - 1)).collect(),
            presence_penalty: if self.penalties && random.once_in(2) { 0.5 } else { 0.0 },
            logprobs: random.once_in(8).then(|| random.between(0, 3)),
            ..SamplingParams::default()
        }
    }
}

fn draw_config(random: &mut Random) -> EngineConfig {
    let max_num_seqs = if random.once_in(3) { random.skewed(1, 32, 512) } else { random.between(2, 48) };
    EngineConfig {
        block_size: random.magnitude(1, 64),
        max_model_len: if random.once_in(8) { random.between(2, 16) } else { random.magnitude(16, 400) },
        max_num_seqs,
        max_num_batched_tokens: max_num_seqs + random.magnitude(1, 256) - 1,
        max_waiting: if random.once_in(3) { random.magnitude(1, 300) } else { 300 },
        max_choices: 5,
        vocab_size: if random.once_in(4) { random.magnitude(2, 1000) } else { 1000 },
        enable_prefix_caching: !random.once_in(3),
        enable_chunked_prefill: !random.once_in(3),
        policy: if random.once_in(2) { SchedulingPolicy::Fcfs } else { SchedulingPolicy::Priority },
        seed: random.next(),
        hash_key: [random.next(), random.next()],
    }
}

fn draw_tokens(random: &mut Random, vocab_size: u32, num: u32) -> Vec<TokenId> {
    (0..num).map(|_| random.between(0, vocab_size - 1)).collect()
}

fn salt(number: u32) -> Option<String> {
    (number > 0).then(|| format!("salt {number}"))
}
