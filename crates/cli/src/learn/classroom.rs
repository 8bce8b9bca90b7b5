//! Requests of the lesson: served by the real engine, and measured on the way.

use std::collections::HashMap;
use std::time::Instant;

use firebrick::{Loaded, SamplingParams, TokenId};
use firebrick_engine::{EngineSnapshot, EventKind, Request, RequestId};

use crate::failure::Failure;

/// A text to continue.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Its tokens.
    pub prompt: Vec<TokenId>,
    /// New tokens, no more and no fewer.
    pub length: u32,
    /// How freely they are chosen.
    pub temperature: f32,
    /// Where the draws begin.
    pub seed: u64,
}

/// Who may be served at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Everybody.
    All,
    /// Groups of so many: the next begins when the slowest of the last has ended.
    Static(usize),
    /// So many: whoever ends makes room at once.
    Continuous(usize),
}

/// One answer, measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Its text.
    pub text: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: u32,
    /// New tokens.
    pub tokens: Vec<TokenId>,
    /// Blocks in its block table, at most.
    pub blocks: usize,
    /// Seconds from its arrival to the first token.
    pub first: f64,
    /// Seconds from its arrival to its end.
    pub total: f64,
}

/// What serving a few requests took.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// In the order of the requests.
    pub answers: Vec<Measured>,
    /// Steps of the engine.
    pub steps: u64,
    /// Seconds in all.
    pub seconds: f64,
    /// The state of the engine when most blocks were in use.
    pub fullest: Option<EngineSnapshot>,
}

impl Run {
    /// New tokens of all answers.
    pub fn tokens(&self) -> usize {
        self.answers.iter().map(|answer| answer.tokens.len()).sum()
    }

    /// New tokens a second.
    pub fn rate(&self) -> f64 {
        self.tokens() as f64 / self.seconds.max(1e-9)
    }
}

/// A model with its engine.
pub struct Classroom {
    /// The model.
    pub loaded: Loaded,
}

impl Classroom {
    /// Wraps a model.
    pub fn new(loaded: Loaded) -> Self {
        Self { loaded }
    }

    /// A text as a greedy request.
    pub fn ask(&self, text: &str, length: u32) -> Result<Ask, Failure> {
        let prompt = self.loaded.tokenizer.try_encode(text, true).map_err(firebrick::Error::from)?;
        Ok(Ask { prompt, length, temperature: 0.0, seed: 1 })
    }

    /// Serves all requests and waits for the last.
    pub fn serve(&mut self, asks: &[Ask], admission: Admission) -> Result<Run, Failure> {
        let started = Instant::now();
        let steps_before = self.loaded.engine.stats().steps;
        let mut run = Run { answers: vec![Measured::default(); asks.len()], ..Run::default() };
        let mut live: HashMap<RequestId, (usize, Instant)> = HashMap::new();
        let mut next = 0;
        while next < asks.len() || !live.is_empty() {
            let free = match admission {
                Admission::All => asks.len(),
                Admission::Static(places) if live.is_empty() => places,
                Admission::Static(_) => 0,
                Admission::Continuous(places) => places - live.len(),
            };
            for ask in asks.iter().skip(next).take(free) {
                let id = self.add(ask)?;
                run.answers[next].prompt_tokens = ask.prompt.len();
                live.insert(id, (next, Instant::now()));
                next += 1;
            }
            self.step(&mut run, &mut live)?;
        }
        for answer in &mut run.answers {
            answer.text = self.loaded.tokenizer.decode(&answer.tokens, true);
        }
        run.steps = self.loaded.engine.stats().steps - steps_before;
        run.seconds = started.elapsed().as_secs_f64();
        Ok(run)
    }

    fn add(&mut self, ask: &Ask) -> Result<RequestId, Failure> {
        let params = SamplingParams {
            temperature: ask.temperature,
            seed: Some(ask.seed),
            max_tokens: Some(ask.length),
            ignore_eos: true,
            ..SamplingParams::default()
        };
        let request = Request::new(ask.prompt.clone(), params);
        Ok(self.loaded.engine.add_request(request).map_err(firebrick::Error::from)?)
    }

    fn step(&mut self, run: &mut Run, live: &mut HashMap<RequestId, (usize, Instant)>) -> Result<(), Failure> {
        let engine = &mut self.loaded.engine;
        let Some(running) = engine.begin_step().map_err(firebrick::Error::from)? else {
            return Err(Failure::Run("the engine has requests and nothing to run".into()));
        };
        let snapshot = engine.snapshot();
        for sequence in &snapshot.sequences {
            if let Some((index, _)) = live.get(&sequence.id.request) {
                let answer = &mut run.answers[*index];
                answer.blocks = answer.blocks.max(sequence.blocks.len());
            }
        }
        if run.fullest.as_ref().is_none_or(|fullest| fullest.stats.blocks_used < snapshot.stats.blocks_used) {
            run.fullest = Some(snapshot);
        }
        let result = pollster::block_on(running);
        for event in engine.finish_step(result).map_err(firebrick::Error::from)? {
            let Some((index, since)) = live.get(&event.request).copied() else { continue };
            let answer = &mut run.answers[index];
            match event.kind {
                EventKind::Scheduled { cached_tokens } => answer.cached_tokens = cached_tokens,
                EventKind::Prompt(_) => {}
                EventKind::Token { token, .. } => {
                    if answer.tokens.is_empty() {
                        answer.first = since.elapsed().as_secs_f64();
                    }
                    answer.tokens.push(token);
                }
                EventKind::Finished { .. } => {
                    answer.total = since.elapsed().as_secs_f64();
                    live.remove(&event.request);
                }
            }
        }
        Ok(())
    }
}
