//! Ctrl-C in a conversation: it ends an answer; at the prompt the first one explains itself, the second ends the
//! program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Failure;
use crate::output::print;

/// Whether Ctrl-C came.
pub struct Interrupt {
    answering: AtomicBool,
    came: AtomicBool,
}

impl Interrupt {
    /// Begins to listen; from now on Ctrl-C alone no longer ends the program.
    pub fn watch() -> Result<Arc<Self>, Failure> {
        let shared = Arc::new(Self { answering: AtomicBool::new(false), came: AtomicBool::new(false) });
        let watcher = shared.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let body = move || {
            while runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
                let again = watcher.came.swap(true, Ordering::AcqRel);
                if watcher.answering.load(Ordering::Acquire) {
                    continue;
                }
                if again {
                    std::process::exit(130);
                }
                print("\n(/exit, Ctrl-D or Ctrl-C again ends)\n>>> ");
            }
        };
        std::thread::Builder::new().name("interrupts".into()).spawn(body)?;
        Ok(shared)
    }

    /// An answer begins.
    pub fn begin(&self) {
        self.came.store(false, Ordering::Release);
        self.answering.store(true, Ordering::Release);
    }

    /// Whether Ctrl-C came since it began.
    pub fn came(&self) -> bool {
        self.came.load(Ordering::Acquire)
    }

    /// The answer has ended.
    pub fn end(&self) {
        self.answering.store(false, Ordering::Release);
        self.came.store(false, Ordering::Release);
    }
}
