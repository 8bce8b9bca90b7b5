//! The wire format of `/v1/completions`.

use firebrick_engine::TokenId;

use crate::answer::{AnswerHead, Collected, CollectedChoice};
use crate::choice::{Delta, ReportedToken};
use crate::error::ApiError;
use crate::event_frame::EventFrame;
use crate::openai::{
    CompletionChoice, CompletionChunk, CompletionLogprobs, CompletionResponse, Field, TopLogprobs, Usage, VllmStats,
};
use crate::prompt_report::CollectedPrompt;

/// Where the next token's text begins in each choice, in characters.
struct TextOffsets(Vec<usize>);

impl TextOffsets {
    /// Offsets after the echoed prompts, if any.
    fn new(echoes: &[String], num_choices: u32) -> Self {
        let echoed = |index: usize| echoes.get(index).map_or(0, |text| text.chars().count());
        Self((0..num_choices as usize).map(echoed).collect())
    }

    fn logprobs(&mut self, index: u32, tokens: &[ReportedToken]) -> Option<CompletionLogprobs> {
        let offset = self.0.get_mut(index as usize)?;
        let mut logprobs = CompletionLogprobs::default();
        for token in tokens {
            logprobs.text_offset.push(*offset);
            logprobs.token_logprobs.push(Some(token.chosen.logprob));
            logprobs.top_logprobs.push(Some(TopLogprobs::new(&token.top, &token.chosen)));
            logprobs.tokens.push(token.chosen.text.clone());
            *offset += token.chosen.text.chars().count();
        }
        (!tokens.is_empty()).then_some(logprobs)
    }
}

/// Writes a streamed completion.
pub struct CompletionWriter {
    offsets: TextOffsets,
    /// Choices whose prompt has not been shown yet.
    prompts: Vec<Option<Vec<TokenId>>>,
    /// Results of the prompts, by their numbers, and whether each choice has shown them: they come before its first token.
    reports: Vec<CollectedPrompt>,
    opened: Vec<bool>,
}

impl CompletionWriter {
    /// Before the first event.
    pub fn new(head: &AnswerHead) -> Self {
        let prompts = (0..head.num_choices).map(|index| head.prompt_token_ids(index)).collect();
        let num_choices = head.num_choices as usize;
        Self {
            offsets: TextOffsets::new(&head.echoes, head.num_choices),
            prompts,
            reports: vec![CollectedPrompt::default(); num_choices],
            opened: vec![!head.report.is_echoed(); num_choices],
        }
    }

    /// What every choice begins with, before its first token.
    pub fn begin(&self, frame: &mut EventFrame) {
        if frame.head.report.is_echoed() {
            return;
        }
        for (index, text) in (0..).zip(&frame.head.echoes) {
            let choice = CompletionChoice { index, text: text.clone(), ..CompletionChoice::default() };
            frame.event(&chunk_of(frame.head, vec![choice], frame.chunk_usage()));
        }
    }

    /// The echoed prompt of a choice with its log-probabilities, once they are there.
    fn open(&mut self, frame: &mut EventFrame, index: u32) {
        if self.opened.get_mut(index as usize).is_none_or(|opened| std::mem::replace(opened, true)) {
            return;
        }
        let number = frame.head.prompt_number(index);
        let text = frame.head.echoes.get(index as usize).cloned().unwrap_or_default();
        let logprobs = self.reports.get(number).and_then(|prompt| frame.head.report.echoed_logprobs(number, prompt));
        let choice = CompletionChoice { index, text, logprobs, ..CompletionChoice::default() };
        frame.event(&chunk_of(frame.head, vec![choice], frame.chunk_usage()));
    }

    /// More of a choice.
    pub fn add(&mut self, frame: &mut EventFrame, delta: Delta) {
        if let Some(part) = delta.prompt {
            if let Some(report) = self.reports.get_mut(frame.head.prompt_number(delta.index)) {
                report.add(part);
            }
            return;
        }
        self.open(frame, delta.index);
        let token_ids = frame.head.token_ids(delta.token_ids);
        if delta.text.is_empty() && delta.tokens.is_empty() && delta.finish.is_none() && token_ids.is_none() {
            return;
        }
        let choice = CompletionChoice {
            index: delta.index,
            logprobs: self.offsets.logprobs(delta.index, &delta.tokens),
            text: delta.text,
            finish_reason: delta.finish.as_ref().map(|finish| finish.reason),
            stop_reason: delta.finish.map(|finish| finish.stop_reason),
            token_ids,
            prompt_token_ids: self.prompts.get_mut(delta.index as usize).and_then(Option::take),
            prompt_logprobs: None,
        };
        frame.event(&chunk_of(frame.head, vec![choice], frame.chunk_usage()));
    }

    /// The end of the stream.
    pub fn end(&self, frame: &mut EventFrame) {
        if frame.options.include_usage {
            frame.event(&usage_chunk(frame.head, frame.generation.usage(), frame.generation.stats()));
        }
        frame.done();
    }

    /// The end of a stream that failed.
    pub fn fail(&self, frame: &mut EventFrame, error: &ApiError) {
        frame.event(&error.body());
        frame.done();
    }
}

/// The whole answer.
pub fn response(head: AnswerHead, collected: Collected, usage: Usage, stats: VllmStats) -> CompletionResponse {
    let Collected { choices, prompts } = collected;
    let mut offsets = TextOffsets::new(&head.echoes, choices.len() as u32);
    let choice = |(index, collected): (u32, CollectedChoice)| {
        let number = head.prompt_number(index);
        let prompt = prompts.get(number);
        let mut logprobs = prompt.and_then(|prompt| head.report.echoed_logprobs(number, prompt));
        if let Some(of_text) = offsets.logprobs(index, &collected.tokens) {
            logprobs.get_or_insert_default().extend(of_text);
        }
        CompletionChoice {
            index,
            logprobs,
            finish_reason: Some(collected.finish_reason()),
            text: head.echoes.get(index as usize).cloned().unwrap_or_default() + &collected.text,
            token_ids: head.returns_token_ids().then_some(collected.token_ids),
            prompt_token_ids: head.prompt_token_ids(index),
            prompt_logprobs: prompt.and_then(|prompt| head.report.prompt_logprobs(prompt)),
            stop_reason: Some(collected.finish.and_then(|finish| finish.stop_reason)),
        }
    };
    let choices = (0..).zip(choices).map(choice).collect();
    CompletionResponse {
        id: head.id,
        object: "text_completion",
        created: head.created,
        model: head.model,
        choices,
        usage,
        vllm_stats: stats,
    }
}

/// The last chunk of a stream whose client asked for usage.
fn usage_chunk(head: &AnswerHead, usage: Usage, stats: VllmStats) -> CompletionChunk<'_> {
    CompletionChunk { vllm_stats: Some(stats), ..chunk_of(head, Vec::new(), Some(Some(usage))) }
}

fn chunk_of(head: &AnswerHead, choices: Vec<CompletionChoice>, usage: Field<Usage>) -> CompletionChunk<'_> {
    CompletionChunk {
        id: &head.id,
        object: "text_completion",
        created: head.created,
        model: &head.model,
        choices,
        usage,
        vllm_stats: None,
    }
}
