//! What one caller may take: requests and tokens per minute, and requests at a time.
//!
//! Each key has buckets of its own, refilled evenly; a full bucket is a minute's worth, so that a burst passes and a
//! steady excess does not. Without keys all callers share one. A request is let in while its key's bucket of tokens is
//! not empty: its prompt is charged when it is known, its answer as it grows, so a long answer is paid for by the
//! requests that follow.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::auth::Caller;
use crate::error::{ApiError, ErrorKind};

/// The limits of every key; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests per minute: those that generate, and those that only count or turn tokens into text.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers per minute.
    pub tokens_per_minute: Option<u32>,
    /// Such requests that are open at the same time.
    pub open_requests: Option<u32>,
}

/// What the keys have used.
#[derive(Clone)]
pub(crate) struct Accounts {
    quota: Quota,
    accounts: Arc<[Mutex<Account>]>,
}

struct Account {
    requests: f64,
    tokens: f64,
    open: u32,
    refilled: Instant,
}

impl Accounts {
    /// Full buckets for so many keys.
    pub fn new(quota: Quota, num_keys: usize) -> Self {
        let full = |limit: Option<u32>| limit.map_or(0.0, f64::from);
        let account = || Account {
            requests: full(quota.requests_per_minute),
            tokens: full(quota.tokens_per_minute),
            open: 0,
            refilled: Instant::now(),
        };
        Self { quota, accounts: (0..num_keys.max(1)).map(|_| Mutex::new(account())).collect() }
    }

    /// Lets a request in, or says when to try again.
    pub fn admit(&self, caller: Caller, now: Instant) -> Result<Charge, ApiError> {
        let number = caller.number().min(self.accounts.len() - 1);
        let mut account = self.lock(number);
        account.refill(&self.quota, now);
        if let Some(limit) = self.quota.open_requests
            && account.open >= limit
        {
            return Err(limited(1.0, format!("this key has {limit} requests open, as many as it may")));
        }
        if let Some(limit) = self.quota.tokens_per_minute
            && account.tokens <= 0.0
        {
            let seconds = (1.0 - account.tokens) * 60.0 / f64::from(limit);
            return Err(limited(seconds, format!("this key has used up its {limit} tokens per minute")));
        }
        if let Some(limit) = self.quota.requests_per_minute {
            if account.requests < 1.0 {
                let seconds = (1.0 - account.requests) * 60.0 / f64::from(limit);
                return Err(limited(seconds, format!("this key has used up its {limit} requests per minute")));
            }
            account.requests -= 1.0;
        }
        account.open += 1;
        drop(account);
        Ok(Charge { accounts: self.clone(), number })
    }

    fn lock(&self, number: usize) -> MutexGuard<'_, Account> {
        self.accounts[number].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    fn refill(&mut self, quota: &Quota, now: Instant) {
        let minutes = now.saturating_duration_since(self.refilled).as_secs_f64() / 60.0;
        self.refilled = self.refilled.max(now);
        let refilled = |level: f64, limit: Option<u32>| {
            limit.map_or(level, |limit| (level + minutes * f64::from(limit)).min(limit.into()))
        };
        self.requests = refilled(self.requests, quota.requests_per_minute);
        self.tokens = refilled(self.tokens, quota.tokens_per_minute);
    }
}

fn limited(seconds: f64, message: String) -> ApiError {
    let retry_after = seconds.ceil().clamp(1.0, 3600.0) as u32;
    ApiError::new(ErrorKind::RateLimited { retry_after }, format!("{message}; try again in {retry_after} s"))
}

/// An admitted request's place in its key's account; it is open until this is dropped.
pub(crate) struct Charge {
    accounts: Accounts,
    number: usize,
}

impl Charge {
    /// Takes tokens from the key's bucket, below zero if need be.
    pub fn tokens(&self, tokens: u64) {
        if self.accounts.quota.tokens_per_minute.is_some() {
            self.accounts.lock(self.number).tokens -= tokens as f64;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.accounts.lock(self.number).open -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn accounts(quota: Quota) -> Accounts {
        Accounts::new(quota, 2)
    }

    fn caller(number: usize) -> Caller {
        Caller::numbered(number)
    }

    fn wait(refusal: Result<Charge, ApiError>) -> u32 {
        match refusal.err().expect("refused").kind {
            ErrorKind::RateLimited { retry_after } => retry_after,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_are_refilled_evenly_and_keys_do_not_share() {
        let accounts = accounts(Quota { requests_per_minute: Some(6), ..Quota::default() });
        let start = Instant::now();
        for _ in 0..6 {
            assert!(accounts.admit(caller(0), start).is_ok());
        }
        assert_eq!(wait(accounts.admit(caller(0), start)), 10);
        assert!(accounts.admit(caller(1), start).is_ok());
        assert!(accounts.admit(caller(0), start + Duration::from_secs(11)).is_ok());
        assert!(accounts.admit(caller(0), start + Duration::from_secs(11)).is_err());
    }

    #[test]
    fn a_long_answer_is_paid_for_by_what_follows() {
        let accounts = accounts(Quota { tokens_per_minute: Some(60), ..Quota::default() });
        let start = Instant::now();
        accounts.admit(caller(0), start).expect("a full bucket").tokens(100);
        assert_eq!(wait(accounts.admit(caller(0), start)), 41);
        assert!(accounts.admit(caller(0), start + Duration::from_secs(41)).is_ok());
    }

    #[test]
    fn open_requests_are_counted_until_they_end() {
        let accounts = accounts(Quota { open_requests: Some(1), ..Quota::default() });
        let start = Instant::now();
        let first = accounts.admit(caller(0), start).expect("the first");
        assert_eq!(wait(accounts.admit(caller(0), start)), 1);
        drop(first);
        assert!(accounts.admit(caller(0), start).is_ok());
    }
}
