//! Values as people write them: 4k tokens, 24GiB, true.

use std::time::Duration;

use firebrick_server::LOGPROBS_MAX;
use firebrick_text::Dialect;

/// `--max-model-len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelLen {
    /// The model's own length, or as much of it as fits.
    Auto,
    /// So many tokens.
    Tokens(usize),
}

impl std::str::FromStr for ModelLen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" | "-1" => Ok(Self::Auto),
            _ => quantity(text).map(Self::Tokens),
        }
    }
}

/// `--tool-call-parser`: a name that is known.
pub fn tool_call_parser(name: &str) -> Result<String, String> {
    let known = Dialect::plain().with_tool_parser(name);
    known.map(|_| name.to_owned()).map_err(|error| error.to_string())
}

/// `--reasoning-parser`: a name that is known.
pub fn reasoning_parser(name: &str) -> Result<String, String> {
    let known = Dialect::plain().with_reasoning_parser(name);
    known.map(|_| name.to_owned()).map_err(|error| error.to_string())
}

/// A whole number, perhaps with a suffix: k, m, g are powers of 1000; K, M, G of 1024. `25.6k` is 25,600.
pub fn quantity(text: &str) -> Result<usize, String> {
    const SUFFIXES: [(char, u64); 6] =
        [('k', 1000), ('K', 1 << 10), ('m', 1_000_000), ('M', 1 << 20), ('g', 1_000_000_000), ('G', 1 << 30)];
    let unit = SUFFIXES.iter().find(|(letter, _)| text.ends_with(*letter));
    let (number, factor) = unit.map_or((text, 1), |(letter, factor)| (text.trim_end_matches(*letter), *factor));
    let wrong = || format!("`{text}` is not a whole number such as 4096, 4k (4000) or 4K (4096)");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).and_then(|value| usize::try_from(value).ok()).ok_or_else(wrong);
    }
    let value = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
    let is_whole = unit.is_some() && value.is_finite() && value >= 0.0 && value.fract() == 0.0 && value < 1e15;
    if is_whole { Ok(value as usize) } else { Err(wrong()) }
}

/// [`quantity`] that fits the engine's numbers.
pub fn quantity_u32(text: &str) -> Result<u32, String> {
    u32::try_from(quantity(text)?).map_err(|_| format!("`{text}` is too large"))
}

/// `--max-logprobs`: no more than the engine takes; -1 is as many.
pub fn logprobs(text: &str) -> Result<u32, String> {
    if text == "-1" {
        return Ok(LOGPROBS_MAX);
    }
    let count = text.parse().ok().filter(|count| *count <= LOGPROBS_MAX);
    count.ok_or_else(|| format!("`{text}` is not a number from 0 to {LOGPROBS_MAX}"))
}

/// Bytes: `24GiB`, `24GB`, `24g` and `24G` all mean 24 x 2^30, as memory is sold; a plain number is bytes.
pub fn size_in_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size such as 24GiB, 512MiB or 1073741824");
    let lower = text.to_ascii_lowercase();
    let letters = lower.trim_end_matches("ib").trim_end_matches('b');
    let (number, shift) = match letters.chars().last() {
        Some('k') => (&letters[..letters.len() - 1], 10),
        Some('m') => (&letters[..letters.len() - 1], 20),
        Some('g') => (&letters[..letters.len() - 1], 30),
        Some('t') => (&letters[..letters.len() - 1], 40),
        _ => (letters, 0),
    };
    let value = number.trim().parse::<f64>().map_err(|_| wrong())? * (1u64 << shift) as f64;
    if value.is_finite() && (1.0..1e18).contains(&value) { Ok(value as u64) } else { Err(wrong()) }
}

/// Seconds, with a fraction if need be.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.0..=1e9).contains(number));
    number.map(Duration::from_secs_f64).ok_or_else(|| format!("`{text}` is not a number of seconds"))
}

/// true or false, as shells, JSON and Python write it.
pub fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("`{text}` is neither true nor false")),
    }
}

/// A share above 0, at most 1.
pub fn share(text: &str) -> Result<f32, String> {
    let wrong = || format!("`{text}` is not a share above 0 and at most 1, such as 0.9");
    let value: f32 = text.parse().map_err(|_| wrong())?;
    if value > 0.0 && value <= 1.0 { Ok(value) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_decimal_in_small_letters_and_binary_in_capitals() {
        for (text, value) in [("4096", 4096), ("4k", 4000), ("4K", 4096), ("25.6k", 25_600), ("1m", 1_000_000)] {
            assert_eq!(quantity(text), Ok(value), "{text}");
        }
        for wrong in ["", "k", "4.5", "0.0001k", "-3", "1e3x", "NaNk", "99999999999999999999k"] {
            assert!(quantity(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_more_log_probabilities_are_promised_than_the_engine_takes() {
        assert_eq!((logprobs("0"), logprobs("20")), (Ok(0), Ok(20)));
        assert!(logprobs("21").is_err_and(|error| error.contains("0 to 20")) && logprobs("-2").is_err());
        assert_eq!(logprobs("-1"), Ok(20));
    }

    #[test]
    fn sizes_are_binary_whatever_their_spelling() {
        for text in ["2GiB", "2GB", "2G", "2g", "2048MiB", "2147483648"] {
            assert_eq!(size_in_bytes(text), Ok(2 << 30), "{text}");
        }
        for wrong in ["", "GiB", "-1G", "0", "inf", "1e300G"] {
            assert!(size_in_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
