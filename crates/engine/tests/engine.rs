//! The engine from outside: what a caller sees, one claim each.

mod support;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use firebrick_engine::{
    Batch, Engine, EngineConfig, EngineError, EventKind, ExecuteError, Executor, FinishReason, Pipeline, Rejected,
    Replay, Request, RequestId, SamplingParams, SchedulingPolicy, Script, ScriptedExecutor, StepOutput, StepResult,
    TokenEvent, TokenId, TraceEntry,
};
use support::{VOCAB_SIZE, config, engine, executor, finish, outputs, ready};

fn params(max_tokens: u32) -> SamplingParams {
    SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() }
}

fn request(first: TokenId, prompt_len: u32, max_tokens: u32) -> Request {
    let mut params = params(max_tokens);
    params.seed = Some(u64::from(first));
    Request::new((first..first + prompt_len).collect(), params)
}

fn tokens_alone(request: &Request) -> Vec<TokenId> {
    let mut engine = engine(config(), 100);
    let id = engine.add_request(request.clone()).expect("accepted");
    outputs(&finish(&mut engine))[&(id, 0)].0.clone()
}

fn cached_tokens(events: &[TokenEvent], id: RequestId, index: u32) -> u32 {
    let of_choice = events.iter().filter(|event| event.request == id && event.index == index);
    let mut scheduled = of_choice.filter_map(|event| match event.kind {
        EventKind::Scheduled { cached_tokens } => Some(cached_tokens),
        _ => None,
    });
    scheduled.next().expect("scheduled once")
}

#[test]
fn a_request_runs_to_its_length() {
    let mut engine = engine(config(), 100);
    let id = engine.add_request(request(1, 10, 7)).expect("accepted");
    let events = finish(&mut engine);
    assert_eq!(events[0].kind, EventKind::Scheduled { cached_tokens: 0 });
    let (tokens, end) = &outputs(&events)[&(id, 0)];
    assert_eq!((tokens.len(), end), (7, &Some(FinishReason::Length)));
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.generated_tokens, stats.computed_tokens), (10, 7, 16));
    assert_eq!((stats.blocks_used, stats.finished.length), (0, 1));
}

#[test]
fn the_same_tokens_come_out_in_any_company() {
    let requests: Vec<Request> = (0..12).map(|number| request(number * 50, 5 + number * 3, 20)).collect();
    let alone: Vec<Vec<TokenId>> = requests.iter().map(tokens_alone).collect();
    let tiny_pool = |config| engine(config, 20);
    let engines = [
        engine(config(), 1000),
        tiny_pool(config()),
        tiny_pool(EngineConfig { enable_prefix_caching: false, ..config() }),
        tiny_pool(EngineConfig { max_num_batched_tokens: 8, ..config() }),
        tiny_pool(EngineConfig { enable_chunked_prefill: false, max_num_batched_tokens: 38, ..config() }),
    ];
    for mut engine in engines {
        let ids: Vec<_> = requests.iter().map(|request| engine.add_request(request.clone()).expect("fits")).collect();
        let outputs = outputs(&finish(&mut engine));
        for (id, alone) in ids.iter().zip(&alone) {
            assert_eq!(&outputs[&(*id, 0)].0, alone);
        }
    }
}

#[test]
fn a_preempted_sequence_resumes_with_the_same_tokens() {
    let requests = [request(0, 8, 30), request(100, 8, 30), request(200, 8, 30)];
    let mut engine = engine(config(), 12);
    let ids = requests.clone().map(|request| engine.add_request(request).expect("accepted"));
    let outputs = outputs(&finish(&mut engine));
    assert!(engine.stats().preemptions > 0);
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(outputs[&(*id, 0)].0, tokens_alone(request));
    }
}

#[test]
fn a_second_request_starts_behind_the_cached_prefix_and_computes_the_last_token() {
    let mut engine = engine(config(), 100);
    engine.add_request(request(1, 12, 3)).expect("accepted");
    finish(&mut engine);
    let same = engine.add_request(request(1, 12, 3)).expect("accepted");
    let longer = engine.add_request(request(1, 14, 3)).expect("accepted");
    let events = finish(&mut engine);
    assert_eq!(cached_tokens(&events, same, 0), 8, "the third block holds the last token, which is computed again");
    assert_eq!(cached_tokens(&events, longer, 0), 12);
    assert_eq!((engine.stats().prefix_cache_queries, engine.stats().prefix_cache_hits), (38, 20));
}

#[test]
fn salts_share_only_with_themselves() {
    let mut engine = engine(config(), 100);
    let mut salted = request(1, 12, 3);
    engine.add_request(salted.clone()).expect("accepted");
    finish(&mut engine);
    salted.cache_salt = Some("mine".into());
    let first = engine.add_request(salted.clone()).expect("accepted");
    assert_eq!(cached_tokens(&finish(&mut engine), first, 0), 0);
    let second = engine.add_request(salted).expect("accepted");
    assert_eq!(cached_tokens(&finish(&mut engine), second, 0), 8);
}

#[test]
fn choices_share_the_prompt_even_without_prefix_caching() {
    for enable_prefix_caching in [true, false] {
        let mut engine = engine(EngineConfig { enable_prefix_caching, ..config() }, 100);
        let id = engine.add_request(Request { n: 3, ..request(1, 13, 5) }).expect("accepted");
        let events = finish(&mut engine);
        assert_eq!([0, 1, 2].map(|index| cached_tokens(&events, id, index)), [0, 12, 12]);
        let outputs = outputs(&events);
        assert_ne!(outputs[&(id, 0)].0, outputs[&(id, 1)].0, "choices draw from their own seeds");
        assert_eq!(engine.stats().prompt_tokens, 13, "a request's choices have one prompt");

        let other = engine.add_request(request(1, 13, 5)).expect("accepted");
        let cached = cached_tokens(&finish(&mut engine), other, 0);
        assert_eq!(cached, if enable_prefix_caching { 12 } else { 0 });
    }
}

#[test]
fn equal_prompts_computed_at_once_end_up_in_one_set_of_blocks() {
    let mut engine = engine(config(), 100);
    for _ in 0..2 {
        engine.add_request(request(1, 12, 20)).expect("accepted");
    }
    ready(engine.step()).expect("works");
    assert_eq!(engine.stats().blocks_used, 3, "the second moved over to the blocks of the first");
    finish(&mut engine);
}

#[test]
fn a_stop_token_ends_a_sequence_and_is_marked() {
    let config = config();
    let script = Script::Tokens(vec![5, 6, 7, 8]);
    let mut engine = Engine::new(config.clone(), ScriptedExecutor::new(10, config.block_size, script)).expect("valid");
    let mut request = request(1, 3, 10);
    request.eos_token_ids = vec![7];
    engine.add_request(request.clone()).expect("accepted");
    let events = finish(&mut engine);
    let stop = EventKind::Token { token: 7, logprobs: None, is_stop: true };
    let end = EventKind::Finished { reason: FinishReason::Stop(None) };
    assert_eq!(events[events.len() - 2..].iter().map(|event| event.kind.clone()).collect::<Vec<_>>(), [stop, end]);

    request.params.stop_token_ids = vec![6];
    let id = engine.add_request(request.clone()).expect("accepted");
    assert_eq!(outputs(&finish(&mut engine))[&(id, 0)].1, Some(FinishReason::Stop(Some(6))));

    request.params.stop_token_ids.clear();
    request.params.ignore_eos = true;
    let id = engine.add_request(request).expect("accepted");
    assert_eq!(outputs(&finish(&mut engine))[&(id, 0)].1, Some(FinishReason::Length));
}

#[test]
fn min_tokens_makes_stops_impossible() {
    let mut engine = engine(config(), 100);
    let mut request = request(1, 3, 20);
    request.params.min_tokens = 15;
    request.eos_token_ids = (0..VOCAB_SIZE - 1).collect();
    let id = engine.add_request(request).expect("accepted");
    let (tokens, end) = outputs(&finish(&mut engine))[&(id, 0)].clone();
    assert!(tokens.len() > 15 && tokens[..15].iter().all(|token| *token == VOCAB_SIZE - 1));
    assert_eq!(end, Some(FinishReason::Stop(None)));
}

#[test]
fn without_max_tokens_the_model_is_the_limit() {
    let mut engine = engine(config(), 100);
    let id = engine.add_request(Request::new(vec![1; 50], SamplingParams::default())).expect("accepted");
    assert_eq!(outputs(&finish(&mut engine))[&(id, 0)].0.len(), 150);
}

#[test]
fn an_abort_frees_at_once_and_the_next_step_tells_without_running() {
    let mut engine = engine(config(), 100);
    let id = engine.add_request(Request { n: 2, ..request(1, 12, 20) }).expect("accepted");
    ready(engine.step()).expect("works");
    engine.abort(id);
    engine.abort(id);
    assert_eq!((engine.stats().blocks_used, engine.stats().waiting), (0, 0));
    let steps = engine.stats().steps;
    let events = ready(engine.step()).expect("works");
    let aborted = |index| TokenEvent { request: id, index, kind: EventKind::Finished { reason: FinishReason::Abort } };
    assert_eq!(events, [aborted(0), aborted(1)]);
    assert_eq!(engine.stats().steps, steps);
    assert!(!engine.has_work());
}

#[test]
fn an_abort_in_flight_takes_effect_when_the_step_returns() {
    let mut engine = engine(config(), 100);
    let id = engine.add_request(request(1, 12, 20)).expect("accepted");
    let other = engine.add_request(request(100, 12, 2)).expect("accepted");
    let running = engine.begin_step().expect("alive").expect("something to run");
    engine.abort(id);
    let late = engine.add_request(request(200, 4, 2)).expect("a step in flight does not close the door");
    assert_eq!(engine.stats().blocks_used, 6, "the device may still write to the blocks");
    let events = engine.finish_step(ready(running)).expect("works");
    let outputs = outputs(&events);
    assert_eq!(outputs[&(id, 0)], (vec![], Some(FinishReason::Abort)));
    assert_eq!(outputs[&(other, 0)].0.len(), 1);
    assert_eq!(engine.stats().blocks_used, 3);
    assert!(support::outputs(&finish(&mut engine)).contains_key(&(late, 0)));
}

/// Answers only when it is asked the second time, as a device does.
struct SlowExecutor(ScriptedExecutor);

impl Executor for SlowExecutor {
    fn kv_blocks(&self) -> u32 {
        self.0.kv_blocks()
    }

    fn execute(&mut self, batch: &Batch) -> impl Future<Output = StepResult> + 'static {
        let mut result = Some(self.0.run(batch));
        let mut asked = false;
        std::future::poll_fn(move |_| match std::mem::replace(&mut asked, true) {
            false => Poll::Pending,
            true => Poll::Ready(result.take().expect("asked once more")),
        })
    }

    fn can_run_ahead(&self) -> bool {
        true
    }
}

#[test]
fn a_dropped_step_is_run_again_and_loses_no_token() {
    let request = request(1, 12, 20);
    let mut engine = Engine::new(config(), SlowExecutor(executor(&config(), 100))).expect("valid");
    let id = engine.add_request(request.clone()).expect("accepted");
    let mut events = Vec::new();
    let mut context = Context::from_waker(Waker::noop());
    for turn in 0.. {
        if !engine.has_work() {
            break;
        }
        let mut step: Pin<Box<dyn Future<Output = _>>> = Box::pin(engine.step());
        let _ = step.as_mut().poll(&mut context);
        if turn % 3 != 0
            && let Poll::Ready(result) = step.as_mut().poll(&mut context)
        {
            events.extend(result.expect("works"));
        }
    }
    assert_eq!(outputs(&events)[&(id, 0)].0, tokens_alone(&request));
}

#[test]
fn a_device_error_ends_every_request_once_and_then_the_engine_is_dead() {
    let config = EngineConfig { max_num_seqs: 1, ..config() };
    let mut engine = Engine::new(config.clone(), executor(&config, 100).failing_at(3)).expect("valid");
    let running = engine.add_request(Request { n: 2, ..request(1, 12, 20) }).expect("accepted");
    let waiting = engine.add_request(request(100, 12, 20)).expect("accepted");
    let outputs = outputs(&finish(&mut engine));
    let message = "device error: scripted failure of step 3";
    for choice in [(running, 0), (running, 1), (waiting, 0)] {
        assert_eq!(outputs[&choice].1, Some(FinishReason::Error(message.into())));
    }
    assert!(engine.is_dead() && !engine.has_work());
    assert_eq!(engine.add_request(request(1, 1, 1)), Err(Rejected::NotAccepting));
    let error = EngineError::Execute(ExecuteError("scripted failure of step 3".into()));
    assert_eq!(ready(engine.step()), Err(error));
    assert_eq!(engine.stats().blocks_used, 0);
}

#[test]
fn a_wrong_number_of_outcomes_is_a_device_error() {
    let mut engine = engine(config(), 100);
    engine.add_request(request(1, 12, 20)).expect("accepted");
    let running = engine.begin_step().expect("alive").expect("something to run");
    drop(running);
    let events = engine.finish_step(Ok(StepOutput::default())).expect("events come first");
    assert!(matches!(&events.last().expect("an end").kind, EventKind::Finished { reason: FinishReason::Error(_) }));
    assert!(engine.is_dead());
}

#[test]
fn logits_that_are_not_finite_end_only_their_sequence_and_leave_nothing_in_the_cache() {
    let config = config();
    let mut engine = Engine::new(config.clone(), executor(&config, 100).with_not_finite(1)).expect("valid");
    let id = engine.add_request(Request { n: 2, ..request(1, 12, 20) }).expect("accepted");
    let outputs = outputs(&finish(&mut engine));
    for index in 0..2 {
        assert!(matches!(outputs[&(id, index)].1, Some(FinishReason::Error(_))));
    }
    assert_eq!(engine.stats().blocks_cached, 0);
    assert_eq!(engine.stats().finished.error, 2);
    assert!(!engine.is_dead());
}

#[test]
fn draining_refuses_new_requests_and_finishes_the_old() {
    let mut engine = engine(config(), 100);
    let id = engine.add_request(request(1, 12, 5)).expect("accepted");
    engine.stop_accepting();
    assert_eq!(engine.add_request(request(1, 12, 5)), Err(Rejected::NotAccepting));
    assert_eq!(outputs(&finish(&mut engine))[&(id, 0)].1, Some(FinishReason::Length));
}

#[test]
fn a_full_queue_refuses_until_a_request_has_started() {
    let mut engine = engine(EngineConfig { max_waiting: 2, ..config() }, 100);
    for _ in 0..2 {
        engine.add_request(request(1, 12, 5)).expect("accepted");
    }
    assert_eq!(engine.add_request(request(1, 12, 5)), Err(Rejected::QueueFull { waiting: 2 }));
    ready(engine.step()).expect("works");
    assert!(engine.add_request(request(1, 12, 5)).is_ok());
}

#[test]
fn priority_decides_who_runs_first() {
    let config = EngineConfig { policy: SchedulingPolicy::Priority, max_num_seqs: 1, ..config() };
    let mut engine = engine(config, 100);
    let late = engine.add_request(Request { priority: 5, ..request(1, 4, 2) }).expect("accepted");
    let early = engine.add_request(Request { priority: -5, ..request(100, 4, 2) }).expect("accepted");
    let events = finish(&mut engine);
    let order: Vec<_> = events
        .iter()
        .filter(|event| matches!(event.kind, EventKind::Finished { .. }))
        .map(|event| event.request)
        .collect();
    assert_eq!(order, [early, late]);
}

#[test]
fn a_long_prompt_does_not_stop_those_that_are_generating() {
    let config = EngineConfig { max_num_batched_tokens: 8, ..config() };
    let mut engine = engine(config, 100);
    let short = engine.add_request(request(1, 4, 40)).expect("accepted");
    ready(engine.step()).expect("works");
    engine.add_request(request(100, 100, 2)).expect("accepted");
    for _ in 0..14 {
        let events = ready(engine.step()).expect("works");
        let generated = |event: &TokenEvent| event.request == short && matches!(event.kind, EventKind::Token { .. });
        assert!(events.iter().any(generated));
        assert_eq!(engine.stats().last_step_tokens, 8);
    }
    finish(&mut engine);
}

#[test]
fn an_idle_step_does_nothing() {
    let mut engine = engine(config(), 100);
    assert_eq!(ready(engine.step()), Ok(vec![]));
    assert_eq!(engine.stats().steps, 0);
}

#[test]
fn a_recording_replays_and_survives_json() {
    let mut engine = engine(config(), 12);
    engine.start_recording(10_000);
    for number in 0..4 {
        engine.add_request(Request { n: 2, ..request(number * 50, 9, 12) }).expect("accepted");
    }
    ready(engine.step()).expect("works");
    engine.abort(RequestId(2));
    finish(&mut engine);
    let trace = engine.take_trace().expect("recorded");
    assert!(!trace.truncated);
    assert_eq!(trace.replay(), Ok(()));

    let json = serde_json::to_string(&trace).expect("serialisable");
    let mut trace: firebrick_engine::Trace = serde_json::from_str(&json).expect("readable");
    assert_eq!(trace.replay(), Ok(()));
    trace.kv_blocks = 13;
    assert!(trace.replay().is_err(), "other decisions with other blocks");
}

#[test]
fn a_recording_taken_in_pieces_replays_as_one() {
    let mut engine = engine(config(), 12);
    // A limit that holds between two pieces only.
    engine.start_recording(16);
    let mut replay = Replay::new(engine.config().clone(), 12).expect("the same configuration");
    let mut num_entries = 0;
    for number in 0..40 {
        engine.add_request(request(number * 20, 9, 12)).expect("accepted");
        ready(engine.step()).expect("works");
        for entry in engine.take_recorded() {
            num_entries += 1;
            assert_eq!(replay.feed(&entry), Ok(()));
        }
    }
    assert_eq!(num_entries, 120, "a request, a plan and a result for each step");
    assert!(!engine.take_trace().expect("recorded").truncated);
    let divergence = replay.feed(&TraceEntry::Begin(None)).expect_err("requests are running");
    assert_eq!((divergence.entry, divergence.difference.as_str()), (120, "a batch was planned, recorded is none"));
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let refused = |config: EngineConfig| {
        let executor = ScriptedExecutor::new(10, 4, Script::Hash { vocab_size: VOCAB_SIZE });
        Engine::new(config, executor).err().expect("refused").name
    };
    assert_eq!(refused(EngineConfig { block_size: 0, ..config() }), "block_size");
    assert_eq!(refused(EngineConfig { max_num_batched_tokens: 7, ..config() }), "max_num_batched_tokens");
    assert_eq!(refused(EngineConfig { max_model_len: 1, ..config() }), "max_model_len");
}

/// Steps until nothing is left, one ahead of the results, and returns all events.
fn pipelined<E: Executor>(engine: &mut Engine<E>) -> Vec<TokenEvent> {
    let (mut pipeline, mut events) = (Pipeline::new(), Vec::new());
    while engine.has_work() || engine.is_step_in_flight() {
        events.extend(ready(pipeline.step(engine)).expect("the device works"));
    }
    engine.audit();
    events
}

#[test]
fn a_pipeline_has_two_steps_in_flight_and_yields_the_same() {
    let requests = [request(1, 12, 20), request(50, 3, 9), Request { n: 3, ..request(80, 5, 7) }];
    let mut engine = engine(config(), 100);
    let ids = requests.clone().map(|request| engine.add_request(request).expect("accepted"));
    let (mut pipeline, mut events, mut most) = (Pipeline::new(), Vec::new(), 0);
    while engine.has_work() || engine.is_step_in_flight() {
        events.extend(ready(pipeline.step(&mut engine)).expect("works"));
        // Of the two one has just returned.
        most = most.max(1 + engine.num_steps_in_flight());
    }
    assert_eq!(most, 2);
    let outputs = outputs(&events);
    for (id, request) in ids.into_iter().zip(&requests) {
        assert_eq!(outputs[&(id, 0)].0, tokens_alone(request));
    }
    assert_eq!(engine.stats().blocks_used, 0);
}

#[test]
fn the_tokens_of_a_finished_step_are_its_own_and_not_those_of_the_step_begun_ahead() {
    let mut engine = engine(config(), 100);
    engine.add_request(request(1, 12, 4)).expect("accepted");
    let (mut pipeline, mut finished) = (Pipeline::new(), Vec::new());
    while engine.has_work() || engine.is_step_in_flight() {
        ready(pipeline.step(&mut engine)).expect("works");
        finished.push(engine.take_finished_tokens());
    }
    assert_eq!(finished, [Some(12), Some(1), Some(1), Some(1)]);
    ready(pipeline.step(&mut engine)).expect("nothing to do");
    assert_eq!(engine.take_finished_tokens(), None);
}

#[test]
fn a_draw_that_depends_on_the_token_before_it_waits_for_it() {
    let mut engine = engine(config(), 100);
    let mut penalised = request(1, 12, 20);
    penalised.params.presence_penalty = 0.5;
    let id = engine.add_request(penalised.clone()).expect("accepted");
    let running = engine.begin_step().expect("alive").expect("something to run");
    assert!(engine.begin_ahead().is_none());
    let mut events = engine.finish_step(ready(running)).expect("works");
    events.extend(pipelined(&mut engine));
    assert_eq!(outputs(&events)[&(id, 0)].0, tokens_alone(&penalised));
}

#[test]
fn a_row_planned_for_a_sequence_that_has_ended_is_in_vain() {
    let config = config();
    let script = Script::Tokens(vec![5, 6, 7]);
    let mut engine = Engine::new(config.clone(), ScriptedExecutor::new(100, config.block_size, script)).expect("valid");
    let mut stopping = request(1, 3, 20);
    stopping.params.stop_token_ids = vec![6];
    let id = engine.add_request(stopping).expect("accepted");
    let outputs = outputs(&pipelined(&mut engine));
    assert_eq!(outputs[&(id, 0)], (vec![5, 6], Some(FinishReason::Stop(Some(6)))));
    let stats = engine.stats();
    assert_eq!((stats.steps, stats.generated_tokens, stats.blocks_used), (3, 2, 0));
}

#[test]
fn a_dropped_step_of_a_pipeline_is_run_again_and_loses_no_token() {
    let request = request(1, 12, 20);
    let mut engine = Engine::new(config(), SlowExecutor(executor(&config(), 100))).expect("valid");
    let id = engine.add_request(request.clone()).expect("accepted");
    let (mut pipeline, mut events) = (Pipeline::new(), Vec::new());
    let mut context = Context::from_waker(Waker::noop());
    for turn in 0.. {
        if !engine.has_work() {
            break;
        }
        let mut step: Pin<Box<dyn Future<Output = _>>> = Box::pin(pipeline.step(&mut engine));
        let mut polled = step.as_mut().poll(&mut context);
        if turn % 3 != 0 && polled.is_pending() {
            polled = step.as_mut().poll(&mut context);
        }
        if let Poll::Ready(result) = polled {
            events.extend(result.expect("works"));
        }
    }
    assert_eq!(outputs(&events)[&(id, 0)].0, tokens_alone(&request));
}

#[test]
fn a_device_error_ends_a_pipeline_whose_next_step_is_on_the_way() {
    let mut engine = Engine::new(config(), executor(&config(), 100).failing_at(3)).expect("valid");
    let id = engine.add_request(request(1, 12, 20)).expect("accepted");
    let outputs = outputs(&pipelined(&mut engine));
    assert!(matches!(outputs[&(id, 0)].1, Some(FinishReason::Error(_))));
    assert!(engine.is_dead() && !engine.is_step_in_flight());
    assert!(ready(Pipeline::new().step(&mut engine)).is_err());
}

#[test]
fn an_abort_while_two_steps_are_in_flight_ends_the_request_with_the_first() {
    let mut engine = engine(config(), 100);
    let leaving = engine.add_request(request(1, 12, 20)).expect("accepted");
    let staying = engine.add_request(request(50, 12, 20)).expect("accepted");
    let first = engine.begin_step().expect("alive").expect("something to run");
    let second = engine.begin_ahead().expect("nothing depends on a token");
    engine.abort(leaving);
    let mut events = engine.finish_step(ready(first)).expect("works");
    assert_eq!(outputs(&events)[&(leaving, 0)], (vec![], Some(FinishReason::Abort)));
    events.extend(engine.finish_step(ready(second)).expect("works"));
    events.extend(pipelined(&mut engine));
    assert_eq!(outputs(&events)[&(staying, 0)].0, tokens_alone(&request(50, 12, 20)));
}
