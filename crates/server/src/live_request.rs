//! A request that the engine is working on, and what its reader has not been sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use firebrick_engine::{EventKind, TokenEvent};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::engine_handle::ReaderWishes;
use crate::engine_thread::EngineThreadOptions;
use crate::request_timing::RequestTiming;

/// A request in the engine.
pub(crate) struct Live {
    /// To its reader.
    pub events: mpsc::Sender<Vec<TokenEvent>>,
    /// When it got where.
    pub timing: RequestTiming,
    /// What the reader no longer wants.
    pub reader: Arc<ReaderWishes>,
    slow_since: Option<Instant>,
    unsent: Vec<TokenEvent>,
    sent: Instant,
    /// Whether a token was sent.
    has_begun: bool,
}

/// What became of an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It is the only one that waits.
    First,
    /// It waits with others.
    Another,
    /// All is to be sent now.
    Urgent,
}

impl Live {
    pub fn new(events: mpsc::Sender<Vec<TokenEvent>>, timing: RequestTiming, reader: Arc<ReaderWishes>) -> Self {
        let (slow_since, unsent, sent) = (None, Vec::new(), Instant::now());
        Self { events, timing, reader, slow_since, unsent, sent, has_begun: false }
    }

    /// Takes an event. All but tokens after the first are urgent.
    pub fn keep(&mut self, event: TokenEvent) -> Kept {
        let is_token = matches!(event.kind, EventKind::Token { .. });
        self.unsent.push(event);
        match self.unsent.len() {
            _ if !is_token || !self.has_begun => Kept::Urgent,
            1 => Kept::First,
            _ => Kept::Another,
        }
    }

    /// Whether what is unsent, if anything is, has not waited as long as it may since something was sent.
    pub fn may_wait(&self, now: Instant, longest: Duration) -> bool {
        !self.unsent.is_empty() && now.duration_since(self.sent) < longest
    }

    /// Sends what is unsent as one message: the reader, who is woken by the first, would else write each by itself.
    pub fn send_all(&mut self, now: Instant) -> Result<(), TrySendError<Vec<TokenEvent>>> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        self.sent = now;
        self.has_begun |= self.unsent.iter().any(|event| matches!(event.kind, EventKind::Token { .. }));
        self.events.try_send(std::mem::take(&mut self.unsent))
    }

    /// Whether the reader has been far behind for too long.
    pub fn is_too_slow(&mut self, options: &EngineThreadOptions, now: Instant) -> bool {
        let unread = self.events.max_capacity() - self.events.capacity();
        if unread <= options.events_slow {
            self.slow_since = None;
            return false;
        }
        now.duration_since(*self.slow_since.get_or_insert(now)) >= options.slow_reader_grace
    }
}
