//! Offline generation.

use std::collections::HashMap;

use firebrick_engine::{EventKind, FinishReason, Pipeline, Request, RequestId, SamplingParams, TokenId};
use firebrick_text::{Message, RenderOptions};

use crate::{Error, Loaded, Options, resolve};

/// A model that generates text, several prompts at a time.
pub struct Llm {
    loaded: Loaded,
}

/// One prompt's continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The text, without special tokens.
    pub text: String,
    /// The tokens, with the one that ended the text.
    pub tokens: Vec<TokenId>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// A continuation in the making.
#[derive(Default)]
struct Progress {
    tokens: Vec<TokenId>,
    text_tokens: Vec<TokenId>,
}

impl Llm {
    /// Loads a model: a Hugging Face id, a folder or a `.gguf` file.
    pub fn load(source: &str, options: Options) -> Result<Self, Error> {
        let path = resolve(source)?.path;
        Ok(Self { loaded: Loaded::load(&path, &options, &mut |_| ())? })
    }

    /// Wraps a model that is already loaded.
    pub fn new(loaded: Loaded) -> Self {
        Self { loaded }
    }

    /// The model's parts.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// Continues each prompt; the results are in the prompts' order.
    pub fn generate(&mut self, prompts: &[&str], params: &SamplingParams) -> Result<Vec<Completion>, Error> {
        let encoded: Vec<_> = prompts.iter().map(|prompt| self.loaded.tokenizer.encode(prompt, true)).collect();
        self.generate_tokens(encoded, params)
    }

    /// Answers a conversation.
    pub fn chat(&mut self, messages: &[Message], params: &SamplingParams) -> Result<Completion, Error> {
        let template = self.loaded.chat_template.as_ref().ok_or(Error::NoTemplate)?;
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let prompt = template.render(messages, &options)?;
        let tokens = self.loaded.tokenizer.encode(&prompt, false);
        Ok(self.generate_tokens(vec![tokens], params)?.remove(0))
    }

    /// Continues each tokenised prompt; the results are in the prompts' order.
    pub fn generate_tokens(
        &mut self,
        prompts: Vec<Vec<TokenId>>,
        params: &SamplingParams,
    ) -> Result<Vec<Completion>, Error> {
        self.generate_streaming(prompts, params, |_, _| ())
    }

    /// As [`generate_tokens`](Self::generate_tokens); calls `on_text` with a prompt's index and each piece of its text.
    pub fn generate_streaming(
        &mut self,
        prompts: Vec<Vec<TokenId>>,
        params: &SamplingParams,
        mut on_text: impl FnMut(usize, &str),
    ) -> Result<Vec<Completion>, Error> {
        let mut order: HashMap<RequestId, usize> = HashMap::new();
        let mut running: Vec<Progress> = Vec::new();
        let mut detokenizers = Vec::new();
        let mut done: Vec<Option<Completion>> = vec![None; prompts.len()];
        for (index, prompt) in prompts.into_iter().enumerate() {
            let eos_token_ids = self.loaded.eos_token_ids.clone();
            let request = Request { eos_token_ids, ..Request::new(prompt, params.clone()) };
            order.insert(self.loaded.engine.add_request(request)?, index);
            running.push(Progress::default());
            detokenizers.push(self.loaded.tokenizer.detokenizer(true));
        }
        let mut pipeline = Pipeline::new();
        while self.loaded.engine.has_work() {
            for event in pollster::block_on(pipeline.step(&mut self.loaded.engine))? {
                let Some(&index) = order.get(&event.request) else { continue };
                let progress = &mut running[index];
                match event.kind {
                    EventKind::Scheduled { .. } | EventKind::Prompt(_) => {}
                    EventKind::Token { token, is_stop, .. } => {
                        progress.tokens.push(token);
                        if !is_stop {
                            progress.text_tokens.push(token);
                            let text = detokenizers[index].push(token);
                            if !text.is_empty() {
                                on_text(index, &text);
                            }
                        }
                    }
                    EventKind::Finished { reason } => {
                        let rest = detokenizers[index].finish();
                        if !rest.is_empty() {
                            on_text(index, &rest);
                        }
                        let Progress { tokens, text_tokens } = std::mem::take(progress);
                        let text = self.loaded.tokenizer.decode(&text_tokens, true);
                        done[index] = Some(Completion { text, tokens, finish_reason: reason });
                    }
                }
            }
        }
        Ok(done.into_iter().map(|completion| completion.expect("an idle engine has finished every request")).collect())
    }
}
