//! The functions and filters that transformers gives its chat templates, with Python's behaviour.

use std::borrow::Cow;
use std::fmt;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

use crate::python_json::{PythonStyle, escape_non_ascii};
use crate::python_repr::python_repr;
use crate::template_budget::Meter;

/// Adds everything that chat templates expect beyond plain Jinja; no value that is shown may be longer than `bytes_max`.
pub(crate) fn install(environment: &mut Environment<'static>, bytes_max: usize, meter: Meter) {
    meter.install(environment);
    environment.set_unknown_method_callback(move |state, value, method, arguments| {
        charge_method(meter, state, value, method, arguments)?;
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
    });
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter(
        "tojson",
        move |state: &State<'_, '_>, value: &Value, indent: Option<Value>, kwargs: Kwargs| {
            // It is copied into a document and written from there, with as many marks of escape as it has characters.
            let size = meter.charge(state, value)?;
            meter.spend(state, size.saturating_mul(7))?;
            to_json(value, indent, kwargs)
        },
    );
    environment.add_filter("string", |value: &Value| python_str(value));
    environment.set_formatter(move |output, state, value| {
        meter.charge(state, value)?;
        write_value(output, value, bytes_max)
    });
    environment.add_test("iterable", |value: &Value| is_text(value) || (!value.is_none() && value.try_iter().is_ok()));
    environment.add_test("sequence", |value: &Value| {
        is_text(value) || matches!(value.kind(), ValueKind::Seq | ValueKind::Map)
    });
}

/// Charges what a method of a text is given, and what it makes where that may be much more.
fn charge_method(
    meter: Meter,
    state: &State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<(), Error> {
    let size = meter.charge(state, value)?;
    for argument in arguments {
        meter.charge(state, argument)?;
    }
    match (method, value.as_str(), arguments) {
        ("replace", Some(text), [from, to, ..]) => {
            let (from, to) = (from.as_str().unwrap_or_default(), to.as_str().unwrap_or_default());
            meter.before_replace(state, text, from, to)
        }
        ("join", Some(separator), [parts, ..]) => meter.before_join(state, separator, parts),
        ("split" | "splitlines", Some(_), _) => meter.spend(state, size.saturating_mul(32)),
        _ => Ok(()),
    }
}

/// Writes what `{{ value }}` shows: lists and mappings read as in Python. What is longer than a whole prompt may be cannot
/// end up in one; refused here, it does not grow further where it is caught in a block or a macro.
fn write_value(output: &mut Output<'_>, value: &Value, bytes_max: usize) -> Result<(), Error> {
    let shown = match value.as_str() {
        Some(text) => Cow::Borrowed(text),
        None => Cow::Owned(python_str(value)),
    };
    if shown.len() > bytes_max {
        return Err(Error::new(ErrorKind::WriteFailure, "too long"));
    }
    Ok(output.write_str(&shown)?)
}

fn python_str(value: &Value) -> String {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => python_repr(value),
        _ => value.to_string(),
    }
}

fn is_text(value: &Value) -> bool {
    value.kind() == ValueKind::String
}

/// What `raise_exception` carries to the caller.
#[derive(Debug)]
pub(crate) struct Raised(pub String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
}

/// `tojson` as transformers defines it: Python's `json.dumps` without escaping for HTML or ASCII.
fn to_json(value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let indent = kwargs.get::<Option<Value>>("indent")?.or(indent).filter(|indent| !indent.is_none());
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators = kwargs.get::<Option<Vec<String>>>("separators")?;
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::BadSerialization, "an undefined value is not JSON"));
    }
    let indent = match indent {
        None => None,
        Some(indent) => match (indent.as_usize(), indent.as_str()) {
            (Some(width), _) if width <= 64 => Some(" ".repeat(width)),
            (_, Some(text)) if text.len() <= 64 => Some(text.to_owned()),
            _ => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: indent must be 0 to 64")),
        },
    };
    let mut document =
        serde_json::to_value(value).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    if sort_keys {
        document.sort_all_objects();
    }
    let style = match separators.as_deref() {
        Some([item, key]) => PythonStyle::new(indent, item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings")),
        None if indent.is_some() => PythonStyle::new(indent, ",".to_owned(), ": ".to_owned()),
        None => PythonStyle::new(indent, ", ".to_owned(), ": ".to_owned()),
    };
    let text = style.write(&document);
    Ok(Value::from_safe_string(if ensure_ascii { escape_non_ascii(&text) } else { text }))
}
