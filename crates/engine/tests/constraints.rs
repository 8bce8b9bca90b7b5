//! Constraints and token sets from outside: what they allow, how they end a sequence, and that a sequence's own tokens
//! alone decide.

mod support;

use std::sync::Arc;

use firebrick_engine::{
    Constraint, ConstraintState, EventKind, FinishReason, NotFollowed, Progress, Rejected, Request, RequestId,
    SamplingParams, SequenceId, TokenConstraint, TokenId, TokenMask,
};
use support::{config, engine, finish, outputs, ready};

/// Tokens climb by 1 to `step` each, and the first at or above `last` completes the sequence.
struct Climb {
    step: TokenId,
    last: TokenId,
}

struct Climbing {
    step: TokenId,
    last: TokenId,
    at: TokenId,
}

impl TokenConstraint for Climb {
    fn start(&self) -> Box<dyn ConstraintState> {
        Box::new(Climbing { step: self.step, last: self.last, at: 0 })
    }
}

impl ConstraintState for Climbing {
    fn allowed(&mut self) -> TokenMask {
        let tokens: Vec<TokenId> = (self.at + 1..=self.at + self.step).collect();
        let (mask, sender) = TokenMask::later();
        sender.send(TokenMask::of(&tokens).to_vec());
        mask
    }

    fn accept(&mut self, token: TokenId) -> Result<Progress, NotFollowed> {
        if self.step == 0 {
            return Err(NotFollowed::DeadEnd);
        }
        if !(self.at + 1..=self.at + self.step).contains(&token) {
            return Err(NotFollowed::Failed(format!("{token} does not follow {}", self.at)));
        }
        self.at = token;
        Ok(if token >= self.last { Progress::Complete } else { Progress::Open })
    }
}

fn climb(step: TokenId, last: TokenId) -> Option<Constraint> {
    Some(Constraint::new(Arc::new(Climb { step, last })))
}

fn request(seed: u64, prompt_len: u32, max_tokens: u32) -> Request {
    let first = seed as u32 * 50;
    let params = SamplingParams { max_tokens: Some(max_tokens), seed: Some(seed), ..SamplingParams::default() };
    Request::new((first..first + prompt_len).collect(), params)
}

fn check_climb(tokens: &[TokenId], step: TokenId, last: TokenId) {
    let mut at = 0;
    for (index, token) in tokens.iter().enumerate() {
        assert!((at + 1..=at + step).contains(token), "{tokens:?}");
        at = *token;
        assert_eq!(at >= last, index + 1 == tokens.len(), "{tokens:?}");
    }
}

#[test]
fn every_choice_follows_its_own_state_and_a_complete_one_stops() {
    let mut engine = engine(config(), 100);
    let id = engine.add_request(Request { n: 4, constraint: climb(9, 60), ..request(1, 10, 70) }).expect("accepted");
    let outputs = outputs(&finish(&mut engine));
    let mut texts: Vec<_> = (0..4).map(|index| outputs[&(id, index)].clone()).collect();
    for (tokens, end) in &texts {
        check_climb(tokens, 9, 60);
        assert_eq!(end, &Some(FinishReason::Stop(None)));
    }
    texts.dedup();
    assert_eq!(texts.len(), 4, "choices draw on their own");
}

#[test]
fn preemption_and_neighbours_change_no_constrained_token() {
    let requests: Vec<Request> =
        (0..8).map(|seed| Request { constraint: climb(5 + seed as u32, 100), ..request(seed, 8, 40) }).collect();
    let alone: Vec<_> = requests
        .iter()
        .map(|request| {
            let mut engine = engine(config(), 100);
            let id = engine.add_request(request.clone()).expect("accepted");
            outputs(&finish(&mut engine))[&(id, 0)].clone()
        })
        .collect();
    let mut engine = engine(config(), 14);
    let ids: Vec<_> = requests.iter().map(|request| engine.add_request(request.clone()).expect("accepted")).collect();
    let together = outputs(&finish(&mut engine));
    assert!(engine.stats().preemptions > 0);
    for ((id, alone), step) in ids.iter().zip(&alone).zip(5..) {
        assert_eq!(&together[&(*id, 0)], alone);
        check_climb(&alone.0, step, 100);
    }
}

#[test]
fn an_abandoned_step_asks_the_state_again_and_changes_nothing() {
    let constrained = Request { constraint: climb(7, 50), ..request(3, 8, 60) };
    let mut plain = engine(config(), 100);
    let id = plain.add_request(constrained.clone()).expect("accepted");
    let expected = outputs(&finish(&mut plain))[&(id, 0)].clone();
    let mut engine = engine(config(), 100);
    let id = engine.add_request(constrained).expect("accepted");
    let mut events = Vec::new();
    while engine.has_work() {
        drop(engine.begin_step().expect("works"));
        events.extend(ready(engine.step()).expect("works"));
    }
    assert_eq!(outputs(&events)[&(id, 0)], expected);
}

/// Follows [`Climbing`] until so many calls have been made of it; what comes then fails.
struct Failing {
    climbing: Climbing,
    calls_left: u32,
}

struct FailAfter(u32);

impl TokenConstraint for FailAfter {
    fn start(&self) -> Box<dyn ConstraintState> {
        Box::new(Failing { climbing: Climbing { step: 9, last: 1000, at: 0 }, calls_left: self.0 })
    }
}

impl Failing {
    fn fails_now(&mut self) -> bool {
        let fails = self.calls_left == 0;
        self.calls_left = self.calls_left.saturating_sub(1);
        fails
    }
}

impl ConstraintState for Failing {
    fn allowed(&mut self) -> TokenMask {
        // A mask that is never computed allows nothing.
        if self.fails_now() { TokenMask::later().0 } else { self.climbing.allowed() }
    }

    fn accept(&mut self, token: TokenId) -> Result<Progress, NotFollowed> {
        if self.fails_now() {
            return Err(NotFollowed::Failed("a planted failure".to_owned()));
        }
        self.climbing.accept(token)
    }
}

#[test]
fn a_constraint_that_fails_at_any_call_ends_its_own_request_alone() {
    let neighbours: Vec<Request> =
        (0..3).map(|seed| Request { constraint: climb(5, 80), ..request(seed, 8, 30) }).collect();
    let run = |failing: Option<u32>| {
        let mut engine = engine(config(), 14);
        let ids: Vec<_> = neighbours.iter().map(|request| engine.add_request(request.clone())).collect();
        let bad = failing.map(|calls| {
            let constraint = Some(Constraint::new(Arc::new(FailAfter(calls))));
            engine.add_request(Request { constraint, ..request(9, 8, 40) }).expect("accepted")
        });
        let outputs = outputs(&finish(&mut engine));
        assert_eq!((engine.stats().running, engine.stats().blocks_used), (0, 0));
        let sound: Vec<_> = ids.into_iter().map(|id| outputs[&(id.expect("accepted"), 0)].clone()).collect();
        (sound, bad.map(|id| outputs[&(id, 0)].1.clone()))
    };
    let alone = run(None).0;
    for calls in 0..40 {
        let (sound, end) = run(Some(calls));
        assert_eq!(sound, alone, "call {calls}");
        let end = end.expect("it was added").expect("it has an end");
        assert!(matches!(end, FinishReason::Error(_) | FinishReason::Impossible), "call {calls}: {end:?}");
    }
}

#[test]
fn a_request_that_contradicts_itself_ends_as_impossible() {
    // The only token that is allowed is suppressed, so the executor has nothing right to choose.
    let mut request = Request { constraint: climb(1, 3), ..request(1, 4, 9) };
    request.params.bad_words = vec![vec![2]];
    let mut engine = engine(config(), 100);
    let id = engine.add_request(request).expect("accepted");
    let (tokens, end) = outputs(&finish(&mut engine))[&(id, 0)].clone();
    assert_eq!(tokens, [1]);
    assert_eq!(end, Some(FinishReason::Impossible));
    let mut request = self::request(1, 4, 9);
    request.params.allowed_token_ids = vec![7, 8];
    request.params.bad_words = vec![vec![7], vec![8]];
    let id = engine.add_request(request).expect("accepted");
    assert_eq!(outputs(&finish(&mut engine))[&(id, 0)], (vec![], Some(FinishReason::Impossible)));
}

#[test]
fn the_length_ends_an_unfinished_sequence() {
    let mut engine = engine(config(), 100);
    let id = engine.add_request(Request { constraint: climb(1, 100), ..request(1, 4, 5) }).expect("accepted");
    assert_eq!(outputs(&finish(&mut engine))[&(id, 0)], (vec![1, 2, 3, 4, 5], Some(FinishReason::Length)));
}

#[test]
fn only_allowed_tokens_are_generated() {
    let mut request = request(1, 4, 30);
    request.params.allowed_token_ids = vec![7, 500, 999];
    let mut engine = engine(config(), 100);
    let id = engine.add_request(request.clone()).expect("accepted");
    let tokens = outputs(&finish(&mut engine))[&(id, 0)].0.clone();
    assert!(tokens.iter().all(|token| [7, 500, 999].contains(token)), "{tokens:?}");
    request.constraint = climb(1, 2);
    let refused = engine.add_request(request);
    assert!(matches!(refused, Err(Rejected::Parameter { name: "allowed_token_ids", .. })), "{refused:?}");
}

#[test]
fn bad_words_never_appear_and_their_parts_do() {
    const A: TokenId = 1;
    const B: TokenId = 2;
    const C: TokenId = 3;
    let run = |bad_words: Vec<Vec<TokenId>>| {
        let mut request = request(1, 4, 150);
        request.params.allowed_token_ids = vec![A, B, C];
        request.params.bad_words = bad_words;
        let mut engine = engine(config(), 100);
        let id = engine.add_request(request).expect("accepted");
        outputs(&finish(&mut engine))[&(id, 0)].0.clone()
    };
    let runs = |tokens: &[TokenId], word: &[TokenId]| tokens.windows(word.len()).filter(|run| *run == word).count();
    let free = run(Vec::new());
    assert!(runs(&free, &[A, B]) > 0 && runs(&free, &[C]) > 0 && runs(&free, &[B, B, A]) > 0);
    let held = run(vec![vec![A, B], vec![C], vec![B, B, A]]);
    assert_eq!([runs(&held, &[A, B]), runs(&held, &[C]), runs(&held, &[B, B, A])], [0, 0, 0]);
    assert!(runs(&held, &[A]) > 0 || runs(&held, &[B]) > 0);
}

#[test]
fn aborting_one_choice_leaves_the_others_alone() {
    let expected = {
        let mut engine = engine(config(), 100);
        let id = engine.add_request(Request { n: 3, ..request(1, 13, 20) }).expect("accepted");
        let outputs = outputs(&finish(&mut engine));
        [0, 1, 2].map(|index| outputs[&(id, index)].clone())
    };
    for (aborted, after_steps) in [(0, 0), (0, 3), (1, 0), (1, 3), (2, 5)] {
        for in_flight in [false, true] {
            let mut engine = engine(config(), 100);
            let id = engine.add_request(Request { n: 3, ..request(1, 13, 20) }).expect("accepted");
            let mut events = Vec::new();
            for _ in 0..after_steps {
                events.extend(ready(engine.step()).expect("works"));
            }
            let running = in_flight.then(|| engine.begin_step().expect("works").expect("something to do"));
            engine.abort_choice(SequenceId { request: id, index: aborted });
            if let Some(running) = running {
                events.extend(engine.finish_step(ready(running)).expect("works"));
            }
            events.extend(finish(&mut engine));
            let outputs = outputs(&events);
            for index in 0..3 {
                let (tokens, end) = &outputs[&(id, index)];
                if index == aborted {
                    assert_eq!(end, &Some(FinishReason::Abort));
                    assert!(expected[index as usize].0.starts_with(tokens));
                } else {
                    assert_eq!((tokens, end), (&expected[index as usize].0, &expected[index as usize].1));
                }
            }
            assert_eq!(engine.stats().blocks_used, 0);
            engine.abort_choice(SequenceId { request: id, index: aborted });
            engine.abort_choice(SequenceId { request: RequestId(99), index: 0 });
            assert!(!engine.has_work(), "nothing is left to end");
        }
    }
}

#[test]
fn a_trace_replays_constraints_in_memory_and_refuses_them_when_stored() {
    let mut engine = engine(config(), 100);
    engine.start_recording(1000);
    let id = engine.add_request(Request { n: 2, constraint: climb(9, 60), ..request(1, 10, 70) }).expect("accepted");
    let mut events = ready(engine.step()).expect("works");
    engine.abort_choice(SequenceId { request: id, index: 1 });
    events.extend(finish(&mut engine));
    assert!(events.iter().any(|event| matches!(event.kind, EventKind::Finished { .. })));
    let trace = engine.take_trace().expect("recorded");
    trace.replay().expect("the same decisions");
    let stored = serde_json::to_string(&trace).expect("a trace can be stored");
    let read: firebrick_engine::Trace = serde_json::from_str(&stored).expect("and read");
    let refused = read.replay().expect_err("the grammar is not in it");
    assert!(refused.to_string().contains("does not hold grammars"), "{refused}");
}

#[test]
fn a_constraint_without_a_next_token_ends_as_impossible_also_at_a_stop_token() {
    for eos in [vec![], (0..support::VOCAB_SIZE).collect()] {
        let mut engine = engine(config(), 100);
        let asked = Request { eos_token_ids: eos, constraint: climb(0, 60), ..request(1, 10, 70) };
        let id = engine.add_request(asked).expect("accepted");
        let outputs = outputs(&finish(&mut engine));
        assert_eq!(outputs[&(id, 0)], (vec![], Some(FinishReason::Impossible)));
    }
}
