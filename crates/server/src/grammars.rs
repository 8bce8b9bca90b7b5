//! Grammars of requests: compiled before the engine sees the request, followed while the device computes.
//!
//! Compiling runs on threads of its own, a few at a time, with a deep stack and a deadline. A source that does not
//! compile in time is refused; its thread keeps its turn until its fuel is spent, so hostile sources can only delay each
//! other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use firebrick_engine::{Constraint, ConstraintState, NotFollowed, Progress, TokenConstraint, TokenId, TokenMask};
use firebrick_text::{
    COMPILE_STACK_BYTES, Grammar, GrammarCompiler, GrammarError, GrammarMatcher, TOO_COMPLEX, Tokenizer,
};
use tokio::sync::{Semaphore, oneshot};

use crate::error::{ApiError, ErrorKind};
use crate::mask_workers::MaskWorkers;
use crate::state::Model;
use crate::structured_output::AskedGrammar;

/// Grammars that are compiled at the same time.
const COMPILERS_MAX: usize = 2;
/// Preparing a large vocabulary, once for each model, on a slow machine.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time on a processor for one mask. A mask takes some 20 ms of steps at most, by the limits of the matcher; a request
/// whose grammar takes longer all the same ends, so that it delays its neighbours once.
const MASK_TIME_MAX: Duration = Duration::from_millis(50);

/// What a model needs for grammars; prepared behind as soon as the model is in service.
pub struct Grammars {
    compiler: Arc<OnceLock<Result<GrammarCompiler, GrammarError>>>,
    turns: Arc<Semaphore>,
    workers: Arc<MaskWorkers>,
}

impl Default for Grammars {
    fn default() -> Self {
        Self { compiler: Arc::default(), turns: Arc::new(Semaphore::new(COMPILERS_MAX)), workers: Arc::default() }
    }
}

/// Compiles what a request asked for, within `timeout`, the wait for a turn included.
pub(crate) async fn compile(
    model: &Arc<Model>,
    asked: AskedGrammar,
    timeout: Duration,
) -> Result<Constraint, ApiError> {
    let AskedGrammar { field, source } = asked;
    prepare(model).await?;
    let compiling = on_thread(model, move |compiler| compiler.compile(&source));
    let compiled = tokio::time::timeout(timeout, compiling).await.map_err(|_| {
        let message = format!("{field}: the grammar takes longer than {} s to compile", timeout.as_secs_f64());
        ApiError::parameter(field, message)
    })?;
    let grammar = compiled?.map_err(|error| match &error {
        GrammarError::Vocabulary { .. } => {
            ApiError { param: Some(field.to_owned()), ..ApiError::new(ErrorKind::NotImplemented, error.to_string()) }
        }
        _ => ApiError::parameter(field, format!("{field}: {error}")),
    })?;
    Ok(Constraint::new(Arc::new(FollowedGrammar { grammar, workers: model.grammars.workers.clone() })))
}

/// Begins to prepare the vocabulary on a thread of its own, so that the first grammar finds it ready.
pub(crate) fn prepare_behind(model: &Model) {
    // The thread keeps the vocabulary and not the model, which may be unloaded meanwhile.
    let (vocabulary, compiler) = (Vocabulary::of(model), model.grammars.compiler.clone());
    let body = move || {
        let begun = Instant::now();
        // What is wrong with the vocabulary is told when a grammar is compiled with it.
        if compiler.get_or_init(|| vocabulary.prepare()).is_ok() {
            tracing::debug!("vocabulary prepared for grammars in {} ms", begun.elapsed().as_millis());
        }
    };
    let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILE_STACK_BYTES);
    if let Err(error) = thread.spawn(body) {
        tracing::warn!(%error, "the vocabulary is prepared when the first grammar is asked for");
    }
}

/// What grammars know of a model.
struct Vocabulary {
    tokenizer: Tokenizer,
    size: u32,
    end_tokens: Vec<TokenId>,
}

impl Vocabulary {
    fn of(model: &Model) -> Self {
        let Model { tokenizer, eos_token_ids, engine, .. } = model;
        Self { tokenizer: tokenizer.clone(), size: engine.config().vocab_size, end_tokens: eos_token_ids.clone() }
    }

    fn prepare(&self) -> Result<GrammarCompiler, GrammarError> {
        GrammarCompiler::new(&self.tokenizer, self.size, &self.end_tokens)
    }
}

/// Waits until the vocabulary is prepared.
async fn prepare(model: &Arc<Model>) -> Result<(), ApiError> {
    if model.grammars.compiler.get().is_some() {
        return Ok(());
    }
    let prepared = tokio::time::timeout(PREPARE_TIMEOUT, on_thread(model, |_| Ok(()))).await;
    let late = || ApiError::new(ErrorKind::Unavailable, "the vocabulary is still being prepared for grammars");
    // What is wrong with the vocabulary is told when a grammar is compiled with it.
    prepared.map_err(|_| late())?.map(drop)
}

/// Runs `work` with the compiler on a thread of its own, when it is its turn.
async fn on_thread<T: Send + 'static>(
    model: &Arc<Model>,
    work: impl FnOnce(&GrammarCompiler) -> Result<T, GrammarError> + Send + 'static,
) -> Result<Result<T, GrammarError>, ApiError> {
    let internal = |what: &str| ApiError::new(ErrorKind::Internal, what);
    let turn = model.grammars.turns.clone().acquire_owned().await.map_err(|_| internal("internal error"))?;
    let (reply, answer) = oneshot::channel();
    let (model, compiler) = (model.clone(), model.grammars.compiler.clone());
    let body = move || {
        let _turn = turn;
        let compiler = compiler.get_or_init(|| Vocabulary::of(&model).prepare());
        let result = compiler.as_ref().map_err(Clone::clone).and_then(work);
        // A client that left or waited too long wants no answer.
        let _ = reply.send(result);
    };
    let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILE_STACK_BYTES);
    thread.spawn(body).map_err(|_| ApiError::new(ErrorKind::Unavailable, "no thread for a grammar can be started"))?;
    answer.await.map_err(|_| internal("internal error"))
}

/// A grammar as the engine sees it.
struct FollowedGrammar {
    grammar: Grammar,
    workers: Arc<MaskWorkers>,
}

impl TokenConstraint for FollowedGrammar {
    fn start(&self) -> Box<dyn ConstraintState> {
        let matcher = SharedMatcher { grammar: self.grammar.clone(), matcher: Arc::default(), is_late: Arc::default() };
        let mask = matcher.mask(&self.workers);
        Box::new(FollowedText { matcher, workers: self.workers.clone(), mask })
    }
}

/// One sequence within its grammar.
struct FollowedText {
    matcher: SharedMatcher,
    workers: Arc<MaskWorkers>,
    /// What may come next; under way from the moment at which the token before it was known.
    mask: TokenMask,
}

impl ConstraintState for FollowedText {
    fn allowed(&mut self) -> TokenMask {
        self.mask.clone()
    }

    fn accept(&mut self, token: TokenId) -> Result<Progress, NotFollowed> {
        if self.matcher.is_late.load(Ordering::Acquire) {
            let limit = MASK_TIME_MAX.as_millis();
            return Err(NotFollowed::Failed(format!("{TOO_COMPLEX}: it takes longer than {limit} ms for a token")));
        }
        let is_complete = self.matcher.with(|matcher| {
            matcher.accept(token)?;
            Ok::<_, GrammarError>(matcher.is_complete())
        });
        let reason = |error| match error {
            GrammarError::DeadEnd => NotFollowed::DeadEnd,
            error => NotFollowed::Failed(error.to_string()),
        };
        if is_complete.map_err(reason)? {
            return Ok(Progress::Complete);
        }
        self.mask = self.matcher.mask(&self.workers);
        Ok(Progress::Open)
    }
}

/// A matcher that the engine's thread and a worker take turns with; it is made by whoever needs it first.
#[derive(Clone)]
struct SharedMatcher {
    grammar: Grammar,
    matcher: Arc<Mutex<Option<GrammarMatcher>>>,
    /// A mask took too long.
    is_late: Arc<AtomicBool>,
}

impl SharedMatcher {
    fn with<T>(&self, work: impl FnOnce(&mut GrammarMatcher) -> T) -> T {
        let mut matcher: MutexGuard<'_, _> = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        work(matcher.get_or_insert_with(|| self.grammar.matcher()))
    }

    /// The mask of the present state. When it cannot be computed it allows nothing, and the next token is refused with
    /// the reason.
    fn mask(&self, workers: &MaskWorkers) -> TokenMask {
        let (mask, sender) = TokenMask::later();
        let matcher = self.clone();
        workers.run(move || {
            let clock = ProcessorClock::start();
            let allowed = matcher.with(GrammarMatcher::allowed);
            if clock.elapsed() > MASK_TIME_MAX {
                matcher.is_late.store(true, Ordering::Release);
            } else if let Ok(words) = allowed {
                sender.send(words);
            }
        });
        mask
    }
}

/// How long this thread has computed; waiting for a processor on a busy machine does not count where the system tells
/// the two apart.
struct ProcessorClock {
    begun: Instant,
    computed: Option<Duration>,
}

impl ProcessorClock {
    fn start() -> Self {
        Self { begun: Instant::now(), computed: computed() }
    }

    fn elapsed(&self) -> Duration {
        let waited_too = self.begun.elapsed();
        // The system is asked only where it matters.
        match self.computed {
            Some(before) if waited_too > MASK_TIME_MAX => computed().map_or(waited_too, |now| now - before),
            _ => waited_too,
        }
    }
}

/// The time for which this thread has had a processor.
fn computed() -> Option<Duration> {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    times.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_is_not_computing_where_the_system_can_tell() {
        let clock = ProcessorClock::start();
        std::thread::sleep(MASK_TIME_MAX + Duration::from_millis(20));
        let is_told_apart = computed().is_some();
        assert_eq!(clock.elapsed() < Duration::from_millis(40), is_told_apart, "{:?}", clock.elapsed());
    }
}
