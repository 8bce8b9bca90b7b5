//! What the values of one rendering may cost together, and the filters that charge them.
//!
//! A value costs its bytes: of a text as it would be shown, of a list or mapping with everything inside. Sizes are
//! counted only as far as the budget reaches, so that counting itself ends, and not beyond a depth at which a value could
//! no longer be dropped safely.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use minijinja::value::{Kwargs, Object, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use crate::template_meter::{CHARGE, CHARGE_LOOP, FIRST_FACTOR, SECOND_FACTOR};

/// What one element of a list costs beside what is in it.
const ELEMENT_BYTES: usize = 32;
/// How deep lists may lie in lists.
const DEPTH_MAX: usize = 64;

/// What is left, and the first factors of products whose second is still being computed.
#[derive(Debug)]
struct Budget {
    left: AtomicUsize,
    factors: Mutex<Vec<Factor>>,
}

impl Object for Budget {}

#[derive(Clone, Copy, Debug)]
enum Factor {
    Number(usize),
    Bytes(usize),
}

/// The rendering's values together are too large.
#[derive(Debug, thiserror::Error)]
#[error("the values of a chat template are too large")]
pub(crate) struct BudgetSpent;

fn spent() -> Error {
    Error::new(ErrorKind::InvalidOperation, "too large").with_source(BudgetSpent)
}

/// The budget of a rendering; made when it is first needed.
#[derive(Clone, Copy)]
pub(crate) struct Meter {
    bytes_max: usize,
}

impl Meter {
    /// Every rendering may spend so much.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max }
    }

    fn budget(self, state: &State<'_, '_>) -> Arc<Budget> {
        state.get_or_set_temp_object("budget", || Budget {
            left: AtomicUsize::new(self.bytes_max),
            factors: Mutex::default(),
        })
    }

    /// Takes so much out of the budget.
    pub fn spend(self, state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
        let budget = self.budget(state);
        let left = budget.left.load(Ordering::Relaxed).checked_sub(bytes).ok_or_else(spent)?;
        budget.left.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a value's size out of the budget, and says it.
    pub fn charge(self, state: &State<'_, '_>, value: &Value) -> Result<usize, Error> {
        let left = self.budget(state).left.load(Ordering::Relaxed);
        let size = size_within(value, left, 0).ok_or_else(spent)?;
        self.spend(state, size)?;
        Ok(size)
    }

    fn factor(self, state: &State<'_, '_>, value: &Value) -> Result<Factor, Error> {
        Ok(match value.kind() {
            ValueKind::Number | ValueKind::Bool => Factor::Number(value.as_usize().unwrap_or(0)),
            _ => Factor::Bytes(self.charge(state, value)?),
        })
    }

    /// Adds the filters that [`template_meter`](crate::template_meter) writes, and meters those that make much of little.
    pub fn install(self, environment: &mut Environment<'static>) {
        environment.add_filter(CHARGE, move |state: &State<'_, '_>, value: Value| {
            self.charge(state, &value)?;
            Ok::<_, Error>(value)
        });
        environment.add_filter(CHARGE_LOOP, move |state: &State<'_, '_>, value: Value| {
            let length = value.as_str().map_or_else(|| value.len().unwrap_or(0), str::len);
            self.spend(state, length.saturating_mul(ELEMENT_BYTES))?;
            Ok::<_, Error>(value)
        });
        environment.add_filter(FIRST_FACTOR, move |state: &State<'_, '_>, value: Value| {
            let factor = self.factor(state, &value)?;
            self.budget(state).factors.lock().unwrap_or_else(PoisonError::into_inner).push(factor);
            Ok::<_, Error>(value)
        });
        environment.add_filter(SECOND_FACTOR, move |state: &State<'_, '_>, value: Value| {
            let second = self.factor(state, &value)?;
            let first = self.budget(state).factors.lock().unwrap_or_else(PoisonError::into_inner).pop();
            if let (Some(Factor::Number(times)), Factor::Bytes(bytes))
            | (Some(Factor::Bytes(bytes)), Factor::Number(times)) = (first, second)
            {
                self.spend(state, bytes.saturating_mul(times))?;
            }
            Ok::<_, Error>(value)
        });
        self.install_greedy(environment);
    }

    /// Filters whose result may be much larger than their input.
    fn install_greedy(self, environment: &mut Environment<'static>) {
        environment.add_filter("replace", move |state: &State<'_, '_>, text: String, from: String, to: String| {
            self.before_replace(state, &text, &from, &to)?;
            Ok::<_, Error>(text.replace(&from, &to))
        });
        for name in ["indent", "format", "batch", "slice", "join", "list", "split", "lines"] {
            let inner = Environment::new();
            environment.add_filter(
                name,
                move |state: &State<'_, '_>, value: Value, arguments: Rest<Value>, named: Kwargs| {
                    self.before_filter(state, name, &value, &arguments, &named)?;
                    let mut all = vec![value];
                    all.extend(arguments.0);
                    all.extend((!named.args().count().eq(&0)).then(|| Value::from(named)));
                    inner.empty_state().apply_filter(name, &all)
                },
            );
        }
    }

    /// Charges what a replacement makes, before it does.
    pub fn before_replace(self, state: &State<'_, '_>, text: &str, from: &str, to: &str) -> Result<(), Error> {
        let count = if from.is_empty() { text.len() + 1 } else { text.matches(from).count() };
        self.spend(state, text.len().saturating_add(count.saturating_mul(to.len())))
    }

    /// Charges what joining makes, before it does.
    pub fn before_join(self, state: &State<'_, '_>, separator: &str, parts: &Value) -> Result<(), Error> {
        let size = self.charge(state, parts)?;
        let count = parts.as_str().map_or_else(|| parts.len().unwrap_or(0), str::len);
        self.spend(state, size.saturating_add(count.saturating_mul(separator.len())))
    }

    fn before_filter(
        self,
        state: &State<'_, '_>,
        name: &str,
        value: &Value,
        arguments: &[Value],
        named: &Kwargs,
    ) -> Result<(), Error> {
        let numbers = arguments.iter().filter_map(Value::as_usize);
        let width = named.args().filter_map(|name| named.peek::<Value>(name).ok()?.as_usize());
        let number = numbers.chain(width).max().unwrap_or(0);
        let text = value.as_str().unwrap_or_default();
        match name {
            "indent" => self.spend(state, text.lines().count().saturating_add(1).saturating_mul(number)),
            "batch" | "slice" => self.spend(state, number.saturating_mul(ELEMENT_BYTES)),
            "join" => self.before_join(state, arguments.first().and_then(Value::as_str).unwrap_or_default(), value),
            // A width is written in digits.
            "format" if text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 3) => Err(spent()),
            "format" => {
                for argument in arguments {
                    self.charge(state, argument)?;
                }
                Ok(())
            }
            _ => self.spend(state, text.len().saturating_mul(ELEMENT_BYTES)),
        }
    }
}

/// The bytes of a value, or `None` where they are more than `left`.
fn size_within(value: &Value, left: usize, depth: usize) -> Option<usize> {
    let size = match value.kind() {
        ValueKind::String | ValueKind::Bytes => value.len().unwrap_or(0),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            if depth >= DEPTH_MAX {
                return None;
            }
            let is_map = value.kind() == ValueKind::Map;
            let mut size = 0_usize;
            if value.len().unwrap_or(0).checked_mul(ELEMENT_BYTES)? > left {
                return None;
            }
            for element in value.try_iter().ok()? {
                size = size.checked_add(ELEMENT_BYTES)?.checked_add(size_within(
                    &element,
                    left - size.min(left),
                    depth + 1,
                )?)?;
                if is_map {
                    let entry = value.get_item(&element).ok()?;
                    size = size.checked_add(size_within(&entry, left - size.min(left), depth + 1)?)?;
                }
                if size > left {
                    return None;
                }
            }
            size
        }
        _ => 0,
    };
    (size <= left).then_some(size)
}
