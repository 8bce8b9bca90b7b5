//! What requests learn about their prompts: every position once, whatever happens in between.

mod support;

use firebrick_engine::{
    Engine, EngineConfig, EventKind, FinishReason, Pooling, PromptOutput, PromptResult, Rejected, Request, RequestId,
    SamplingParams, ScriptedExecutor, TokenEvent, TokenId,
};
use support::{config, engine, finish, outputs};

fn request(prompt: Vec<TokenId>, max_tokens: u32, output: PromptOutput) -> Request {
    let params = SamplingParams { max_tokens: Some(max_tokens), seed: Some(1), ..SamplingParams::default() };
    Request { prompt_output: Some(output), ..Request::new(prompt, params) }
}

fn results(events: &[TokenEvent], id: RequestId) -> Vec<PromptResult> {
    let of_request = events.iter().filter(|event| event.request == id);
    let result = |event: &TokenEvent| match &event.kind {
        EventKind::Prompt(result) => Some(result.clone()),
        _ => None,
    };
    of_request.filter_map(result).collect()
}

/// The tokens whose log-probabilities were reported, in the order of the events.
fn reported_tokens(events: &[TokenEvent], id: RequestId) -> Vec<TokenId> {
    let tokens = |result| match result {
        PromptResult::Logprobs(entries) => entries.into_iter().map(|(token, _)| token).collect::<Vec<_>>(),
        PromptResult::HiddenSum { .. } => panic!("log-probabilities were asked for"),
    };
    results(events, id).into_iter().flat_map(tokens).collect()
}

/// How many hidden states were summed: the scripted model counts them in the first number.
fn num_summed(events: &[TokenEvent], id: RequestId) -> Vec<f32> {
    let count = |result| match result {
        PromptResult::HiddenSum { sum, .. } => sum[0],
        PromptResult::Logprobs(_) => panic!("hidden states were asked for"),
    };
    results(events, id).into_iter().map(count).collect()
}

fn chunked() -> EngineConfig {
    EngineConfig { max_num_batched_tokens: 8, ..config() }
}

#[test]
fn every_token_but_the_first_is_reported_once_whatever_the_chunks() {
    for config in [config(), chunked()] {
        let mut engine = engine(config, 100);
        let prompt: Vec<TokenId> = (10..40).collect();
        let id = engine.add_request(request(prompt.clone(), 3, PromptOutput::Logprobs(2))).expect("accepted");
        let events = finish(&mut engine);
        assert_eq!(reported_tokens(&events, id), prompt[1..]);
        assert_eq!(outputs(&events)[&(id, 0)].0.len(), 3);
    }
}

#[test]
fn a_preempted_prompt_is_reported_once() {
    let mut engine = engine(chunked(), 12);
    let prompts: Vec<Vec<TokenId>> = (0..4).map(|number| (number * 50..number * 50 + 18).collect()).collect();
    let add = |engine: &mut Engine<ScriptedExecutor>, prompt: &Vec<TokenId>| {
        engine.add_request(request(prompt.clone(), 20, PromptOutput::Logprobs(0))).expect("accepted")
    };
    let ids: Vec<RequestId> = prompts.iter().map(|prompt| add(&mut engine, prompt)).collect();
    let events = finish(&mut engine);
    assert!(engine.stats().preemptions > 0, "the pool is meant to be too small");
    for (id, prompt) in ids.into_iter().zip(prompts) {
        assert_eq!(reported_tokens(&events, id), prompt[1..]);
    }
}

#[test]
fn what_is_reported_is_never_taken_from_the_cache() {
    let mut engine = engine(config(), 100);
    let prompt: Vec<TokenId> = (10..31).collect();
    let plain = Request { prompt_output: None, ..request(prompt.clone(), 2, PromptOutput::Logprobs(0)) };
    engine.add_request(plain).expect("accepted");
    finish(&mut engine);
    for (output, cached) in [
        (PromptOutput::Logprobs(1), 0),
        (PromptOutput::Pooled(Pooling::Mean), 0),
        (PromptOutput::Pooled(Pooling::Cls), 0),
        (PromptOutput::Pooled(Pooling::Last), 20),
    ] {
        let id = engine.add_request(request(prompt.clone(), 2, output)).expect("accepted");
        let events = finish(&mut engine);
        assert_eq!(events[0].kind, EventKind::Scheduled { cached_tokens: cached }, "{output:?}");
        assert!(!results(&events, id).is_empty(), "{output:?}");
    }
}

#[test]
fn pooling_sums_the_states_of_its_positions() {
    for (pooling, counts) in
        [(Pooling::Mean, vec![8.0, 8.0, 5.0]), (Pooling::Last, vec![1.0]), (Pooling::Cls, vec![1.0])]
    {
        let mut engine = engine(chunked(), 100);
        let request = request((10..31).collect(), 0, PromptOutput::Pooled(pooling));
        let id = engine.add_request(request).expect("accepted");
        let events = finish(&mut engine);
        assert_eq!(num_summed(&events, id), counts, "{pooling:?}");
        assert_eq!(outputs(&events)[&(id, 0)], (vec![], Some(FinishReason::Stop(None))));
        assert_eq!((engine.stats().generated_tokens, engine.stats().blocks_used), (0, 0));
    }
}

#[test]
fn without_tokens_to_generate_a_request_ends_with_its_prompt() {
    let mut engine = engine(chunked(), 100);
    let id = engine.add_request(request(vec![5; 200], 0, PromptOutput::Logprobs(1))).expect("as long as the model");
    let events = finish(&mut engine);
    assert_eq!(reported_tokens(&events, id).len(), 199);
    assert_eq!(outputs(&events)[&(id, 0)], (vec![], Some(FinishReason::Length)));

    let asked = request(vec![5, 6], 0, PromptOutput::Logprobs(1));
    let refused = [
        (Request { prompt_output: None, ..asked.clone() }, "max_tokens"),
        (Request { n: 2, ..asked.clone() }, "n"),
        (Request { prompt_output: Some(PromptOutput::Logprobs(21)), ..asked }, "prompt_logprobs"),
    ];
    for (request, name) in refused {
        match engine.add_request(request) {
            Err(Rejected::Parameter { name: named, .. }) => assert_eq!(named, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn the_first_choice_alone_reports_the_prompt() {
    let mut engine = engine(config(), 100);
    let prompt: Vec<TokenId> = (10..30).collect();
    let asked = Request { n: 3, ..request(prompt.clone(), 2, PromptOutput::Logprobs(0)) };
    let id = engine.add_request(asked).expect("accepted");
    let events = finish(&mut engine);
    assert_eq!(reported_tokens(&events, id), prompt[1..]);
    let of_others = events.iter().filter(|event| event.index > 0 && matches!(event.kind, EventKind::Prompt(_)));
    assert_eq!(of_others.count(), 0);
}

#[test]
fn a_trace_with_reported_prompts_replays() {
    let mut engine = engine(chunked(), 12);
    engine.start_recording(1000);
    engine.add_request(request((10..31).collect(), 4, PromptOutput::Logprobs(1))).expect("accepted");
    engine.add_request(request((10..28).collect(), 0, PromptOutput::Pooled(Pooling::Mean))).expect("accepted");
    finish(&mut engine);
    let trace = engine.take_trace().expect("recorded");
    assert_eq!(trace.replay(), Ok(()));
}
