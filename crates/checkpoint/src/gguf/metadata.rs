//! GGUF's key-value section.

use super::cursor::Cursor;
use crate::error::Fault;
use std::collections::HashMap;

/// More keys than any model has, few enough to index in a few megabytes.
const KEYS_MAX: u64 = 1 << 16;
/// More entries than any vocabulary or merge list has; bounds what reading an array allocates.
const ENTRIES_MAX: usize = 1 << 21;
/// The specification's bound on a key's length.
const KEY_LENGTH_MAX: usize = (1 << 16) - 1;
/// The widest alignment accepted, and the default.
const ALIGNMENT_MAX: u64 = 1 << 16;
const ALIGNMENT_DEFAULT: u64 = 32;

/// GGUF's value types that a field can have; arrays are apart.
#[derive(Clone, Copy, PartialEq)]
enum Scalar {
    Unsigned(usize),
    Signed(usize),
    Float(usize),
    Bool,
    Text,
}

impl Scalar {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Unsigned(1),
            1 => Self::Signed(1),
            2 => Self::Unsigned(2),
            3 => Self::Signed(2),
            4 => Self::Unsigned(4),
            5 => Self::Signed(4),
            6 => Self::Float(4),
            7 => Self::Bool,
            8 => Self::Text,
            10 => Self::Unsigned(8),
            11 => Self::Signed(8),
            12 => Self::Float(8),
            _ => return None,
        })
    }

    /// Bytes of a value; `None` for strings, which vary.
    fn size(self) -> Option<usize> {
        match self {
            Self::Unsigned(size) | Self::Signed(size) | Self::Float(size) => Some(size),
            Self::Bool => Some(1),
            Self::Text => None,
        }
    }
}

const ARRAY: u32 = 9;

/// One value of a known type.
#[derive(Clone, Copy)]
enum Value<'a> {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(&'a str),
}

/// Values that lie in the file one after the other; walked once, so that reading them again cannot run out of bytes.
#[derive(Clone, Copy)]
struct Array<'a> {
    scalar: Scalar,
    count: usize,
    bytes: &'a [u8],
}

enum Entry<'a> {
    One(Value<'a>),
    Many(Array<'a>),
}

/// Every key of the file.
pub(super) struct Metadata<'a> {
    entries: HashMap<&'a str, Entry<'a>>,
}

impl<'a> Metadata<'a> {
    pub(super) fn parse(cursor: &mut Cursor<'a>, count: u64) -> Result<Self, Fault> {
        if count > KEYS_MAX {
            return Err(Fault::corrupt("metadata count", format!("is {count}, at most {KEYS_MAX}")));
        }
        let mut entries = HashMap::new();
        for _ in 0..count {
            let key = cursor.text("metadata key")?;
            if key.len() > KEY_LENGTH_MAX {
                return Err(Fault::corrupt(key, format!("key is longer than {KEY_LENGTH_MAX} bytes")));
            }
            let entry = parse_entry(cursor, key)?;
            if entries.insert(key, entry).is_some() {
                return Err(Fault::corrupt(key, "occurs twice"));
            }
        }
        Ok(Self { entries })
    }

    /// The alignment of tensor data.
    pub(super) fn alignment(&self) -> Result<usize, Fault> {
        let alignment = self.integer("general.alignment")?.unwrap_or(ALIGNMENT_DEFAULT.into());
        match u64::try_from(alignment) {
            Ok(alignment) if alignment.is_power_of_two() && alignment <= ALIGNMENT_MAX => Ok(alignment as usize),
            _ => {
                let problem = format!("is {alignment}, expected a power of two up to {ALIGNMENT_MAX}");
                Err(Fault::corrupt("general.alignment", problem))
            }
        }
    }

    fn value(&self, key: &str) -> Result<Option<Value<'a>>, Fault> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Entry::One(value)) => Ok(Some(*value)),
            Some(Entry::Many(_)) => Err(Fault::corrupt(key, "is an array, expected one value")),
        }
    }

    fn integer(&self, key: &str) -> Result<Option<i128>, Fault> {
        match self.value(key)? {
            None => Ok(None),
            Some(Value::Integer(value)) => Ok(Some(value)),
            Some(_) => Err(Fault::corrupt(key, "is not a whole number")),
        }
    }

    pub(super) fn usize(&self, key: &str) -> Result<Option<usize>, Fault> {
        let narrow = |value| usize::try_from(value).map_err(|_| Fault::corrupt(key, format!("is {value}")));
        self.integer(key)?.map(narrow).transpose()
    }

    pub(super) fn usize_required(&self, key: &str) -> Result<usize, Fault> {
        self.usize(key)?.ok_or_else(|| Fault::corrupt(key, "is missing"))
    }

    /// One number for all layers, or one for each if they are all the same.
    pub(super) fn usize_of_layers(&self, key: &str) -> Result<Option<usize>, Fault> {
        let Some(Entry::Many(array)) = self.entries.get(key) else { return self.usize(key) };
        let numbers = array.read(key, as_usize)?;
        match numbers.split_first() {
            Some((first, rest)) if rest.iter().all(|number| number == first) => Ok(Some(*first)),
            _ => Err(Fault::unsupported(key, "differing per layer is not supported")),
        }
    }

    pub(super) fn token_id(&self, key: &str) -> Result<Option<u32>, Fault> {
        let narrow = |value| u32::try_from(value).map_err(|_| Fault::corrupt(key, format!("is {value}")));
        self.integer(key)?.map(narrow).transpose()
    }

    pub(super) fn f32(&self, key: &str) -> Result<Option<f32>, Fault> {
        match self.value(key)? {
            None => Ok(None),
            Some(Value::Float(value)) if (value as f32).is_finite() => Ok(Some(value as f32)),
            Some(Value::Integer(value)) => Ok(Some(value as f32)),
            Some(_) => Err(Fault::corrupt(key, "is not a finite number")),
        }
    }

    pub(super) fn f32_required(&self, key: &str) -> Result<f32, Fault> {
        self.f32(key)?.ok_or_else(|| Fault::corrupt(key, "is missing"))
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, Fault> {
        match self.value(key)? {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(Fault::corrupt(key, "is not true or false")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, Fault> {
        match self.value(key)? {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(Fault::corrupt(key, "is not a string")),
        }
    }

    pub(super) fn text_required(&self, key: &str) -> Result<&'a str, Fault> {
        self.text(key)?.ok_or_else(|| Fault::corrupt(key, "is missing"))
    }

    /// Empty when the key is absent.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>, Fault> {
        self.array(key, |value| match value {
            Value::Text(text) => Some(text.to_owned()),
            _ => None,
        })
    }

    /// Empty when the key is absent.
    pub(super) fn f32s(&self, key: &str) -> Result<Vec<f32>, Fault> {
        self.array(key, |value| match value {
            Value::Float(value) => Some(value as f32),
            _ => None,
        })
    }

    /// Empty when the key is absent.
    pub(super) fn i32s(&self, key: &str) -> Result<Vec<i32>, Fault> {
        self.array(key, |value| match value {
            Value::Integer(value) => i32::try_from(value).ok(),
            _ => None,
        })
    }

    /// Empty when the key is absent or not an array of booleans.
    pub(super) fn bools(&self, key: &str) -> Result<Vec<bool>, Fault> {
        self.array(key, |value| match value {
            Value::Bool(value) => Some(value),
            _ => None,
        })
    }

    /// The key holds an array.
    pub(super) fn is_array(&self, key: &str) -> bool {
        matches!(self.entries.get(key), Some(Entry::Many(_)))
    }

    fn array<T>(&self, key: &str, read: impl Fn(Value<'a>) -> Option<T>) -> Result<Vec<T>, Fault> {
        match self.entries.get(key) {
            None => Ok(Vec::new()),
            Some(Entry::Many(array)) => array.read(key, read),
            Some(Entry::One(_)) => Err(Fault::corrupt(key, "is one value, expected an array")),
        }
    }
}

fn as_usize(value: Value) -> Option<usize> {
    match value {
        Value::Integer(value) => usize::try_from(value).ok(),
        _ => None,
    }
}

impl<'a> Array<'a> {
    fn read<T>(&self, key: &str, read: impl Fn(Value<'a>) -> Option<T>) -> Result<Vec<T>, Fault> {
        if self.count > ENTRIES_MAX {
            return Err(Fault::corrupt(key, format!("has {} entries, at most {ENTRIES_MAX}", self.count)));
        }
        let mut cursor = Cursor::new(self.bytes);
        let mut values = Vec::new();
        for index in 0..self.count {
            let value = parse_value(&mut cursor, key, self.scalar)?;
            let value =
                read(value).ok_or_else(|| Fault::corrupt(key, format!("entry {index} has the wrong type or range")))?;
            values.push(value);
        }
        Ok(values)
    }
}

fn parse_entry<'a>(cursor: &mut Cursor<'a>, key: &str) -> Result<Entry<'a>, Fault> {
    let number = cursor.u32(key)?;
    if number != ARRAY {
        return Ok(Entry::One(parse_value(cursor, key, scalar(key, number)?)?));
    }
    let scalar = scalar(key, cursor.u32(key)?)?;
    let count = usize::try_from(cursor.u64(key)?).unwrap_or(usize::MAX);
    let bytes = match scalar.size() {
        Some(size) => cursor.take(key, count.saturating_mul(size))?,
        None => {
            let mut walk = Cursor::new(cursor.rest());
            for _ in 0..count {
                walk.text_bytes(key)?;
            }
            cursor.take(key, walk.position())?
        }
    };
    Ok(Entry::Many(Array { scalar, count, bytes }))
}

fn scalar(key: &str, number: u32) -> Result<Scalar, Fault> {
    Scalar::from_number(number).ok_or_else(|| match number {
        ARRAY => Fault::unsupported(key, "arrays of arrays are not supported"),
        _ => Fault::corrupt(key, format!("has unknown value type {number}")),
    })
}

fn parse_value<'a>(cursor: &mut Cursor<'a>, key: &str, scalar: Scalar) -> Result<Value<'a>, Fault> {
    let Some(size) = scalar.size() else { return Ok(Value::Text(cursor.text(key)?)) };
    let bytes = cursor.take(key, size)?;
    let mut wide = [0; 8];
    wide[..size].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(wide);
    let unused = 64 - 8 * size as u32;
    match scalar {
        Scalar::Unsigned(_) => Ok(Value::Integer(bits.into())),
        Scalar::Signed(_) => Ok(Value::Integer(((bits << unused) as i64 >> unused).into())),
        Scalar::Float(4) => Ok(Value::Float(f32::from_bits(bits as u32).into())),
        Scalar::Float(_) => Ok(Value::Float(f64::from_bits(bits))),
        Scalar::Bool if bits <= 1 => Ok(Value::Bool(bits == 1)),
        Scalar::Bool => Err(Fault::corrupt(key, format!("is {bits}, expected 0 or 1"))),
        Scalar::Text => unreachable!("strings have no fixed size"),
    }
}
