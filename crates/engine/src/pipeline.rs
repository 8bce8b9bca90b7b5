//! Steps one ahead of their results.

use std::future::Future;
use std::pin::Pin;

use crate::engine::StepResult;
use crate::{Engine, EngineError, Executor, TokenEvent};

/// Runs an engine's steps so that the device has the next one while the results of one are waited for.
///
/// One engine is run by one pipeline, or by [`Engine::step`], not by both in turn.
#[derive(Default)]
pub struct Pipeline {
    /// The step after the one that was waited for last.
    ahead: Option<Pin<Box<dyn Future<Output = StepResult>>>>,
}

impl Pipeline {
    /// A pipeline with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for one step, the oldest, and returns everything that has happened since the last one.
    ///
    /// It is as [`Engine::step`] otherwise. Requests that came meanwhile are in the step after next.
    pub async fn step<E: Executor>(&mut self, engine: &mut Engine<E>) -> Result<Vec<TokenEvent>, EngineError> {
        self.step_seen(engine, |_| ()).await
    }

    /// The same; `see` is shown the engine while the step that is waited for is in flight, if there is one.
    pub async fn step_seen<E: Executor>(
        &mut self,
        engine: &mut Engine<E>,
        see: impl FnOnce(&Engine<E>),
    ) -> Result<Vec<TokenEvent>, EngineError> {
        // A future of this function that was dropped has taken its step with it.
        if engine.num_steps_in_flight() != usize::from(self.ahead.is_some()) {
            self.ahead = None;
            engine.abandon_steps();
        }
        let running = match self.ahead.take() {
            Some(running) => running,
            None => match engine.begin_step()? {
                Some(running) => Box::pin(running),
                None => return Ok(engine.take_events()),
            },
        };
        self.ahead = engine.begin_ahead().map(|ahead| Box::pin(ahead) as Pin<Box<dyn Future<Output = StepResult>>>);
        see(engine);
        let result = running.await;
        let events = engine.finish_step(result);
        if !engine.is_step_in_flight() {
            self.ahead = None;
        }
        events
    }
}
