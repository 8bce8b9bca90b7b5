//! Grammars of requests: compiled before the engine sees the request, followed while the device computes.
//!
//! Compiling runs on threads of its own, a few at a time, with a deep stack and a deadline. A source that does not
//! compile in time is refused; its thread keeps its turn until its fuel is spent, so hostile sources can only delay each
//! other.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use firebrick_engine::{Constraint, ConstraintState, Progress, TokenConstraint, TokenId, TokenMask};
use firebrick_text::{COMPILE_STACK_BYTES, Grammar, GrammarCompiler, GrammarError, GrammarMatcher};
use tokio::sync::{Semaphore, oneshot};

use crate::error::{ApiError, ErrorKind};
use crate::mask_workers::MaskWorkers;
use crate::state::Model;
use crate::structured_output::AskedGrammar;

/// Grammars that are compiled at the same time.
const COMPILERS_MAX: usize = 2;
/// Preparing a large vocabulary, once for each model, on a slow machine.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a model needs for grammars. Nothing is prepared before the first one is asked for.
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

/// Prepares the vocabulary, the first time.
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
        let compiler = compiler.get_or_init(|| {
            let vocab_size = model.engine.config().vocab_size;
            GrammarCompiler::new(&model.tokenizer, vocab_size, &model.eos_token_ids)
        });
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
        let matcher = SharedMatcher { grammar: self.grammar.clone(), matcher: Arc::default() };
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

    fn accept(&mut self, token: TokenId) -> Result<Progress, String> {
        let is_complete = self.matcher.with(|matcher| {
            matcher.accept(token)?;
            Ok::<_, GrammarError>(matcher.is_complete())
        });
        if is_complete.map_err(|error| error.to_string())? {
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
            if let Ok(words) = matcher.with(GrammarMatcher::allowed) {
                sender.send(words);
            }
        });
        mask
    }
}
