//! Goodput: requests per second that keep every promise.

use super::client::Timing;

/// A promise such as `ttft:200`: at most so many milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Promise {
    kind: Kind,
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    FirstToken,
    PerToken,
    EndToEnd,
}

impl std::str::FromStr for Promise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a promise such as ttft:200, tpot:50 or e2el:5000 (milliseconds)");
        let (name, limit) = text.split_once(':').ok_or_else(wrong)?;
        let kind = match name {
            "ttft" => Kind::FirstToken,
            "tpot" => Kind::PerToken,
            "e2el" => Kind::EndToEnd,
            _ => return Err(wrong()),
        };
        let milliseconds: f64 = limit.parse().map_err(|_| wrong())?;
        if milliseconds > 0.0 { Ok(Self { kind, seconds: milliseconds / 1e3 }) } else { Err(wrong()) }
    }
}

impl Promise {
    /// Whether a request kept it.
    pub fn is_kept(&self, timing: &Timing) -> bool {
        let seconds = match self.kind {
            Kind::FirstToken => timing.first_token,
            Kind::PerToken => timing.per_output_token().unwrap_or(0.0),
            Kind::EndToEnd => timing.end_to_end,
        };
        seconds <= self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_kept_or_not() {
        let timing = Timing { first_token: 0.1, end_to_end: 1.1, output_tokens: 11, ..Timing::default() };
        for (text, kept) in
            [("ttft:200", true), ("ttft:99", false), ("tpot:101", true), ("tpot:50", false), ("e2el:1000", false)]
        {
            assert_eq!(text.parse::<Promise>().expect("valid").is_kept(&timing), kept, "{text}");
        }
        for wrong in ["ttft", "ttft:", "ttft:-1", "speed:3", "ttft:NaN"] {
            assert!(wrong.parse::<Promise>().is_err(), "{wrong}");
        }
    }
}
