//! What is said of a device that has failed.

use std::fmt::Debug;

use firebrick_engine::ExecuteError;

/// What Burn's runtime puts around causes, and says of each operation that did not run because another had failed.
const REPEATED: [&str; 5] =
    ["Caused by:", "Asked at:", "No backtrace available", "Several failures at once", "The bytes were never written"];

/// A failure of the device as one line: every cause once, the first of all last.
pub(crate) fn failure(error: impl Debug) -> ExecuteError {
    let text = format!("{error:?}");
    let mut causes: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let is_new = !causes.contains(&line) && !REPEATED.iter().any(|repeated| line.starts_with(repeated));
        if is_new {
            causes.push(line);
        }
    }
    ExecuteError(if causes.is_empty() { text } else { causes.join(": ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Text(&'static str);

    impl Debug for Text {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    #[test]
    fn every_cause_is_named_once_in_one_line() {
        let text = "An error happened during execution\nCaused by:\n  Several failures at once\nCaused by:\n  The bytes \
                    were never written (failure #5, still claiming 2 buffer(s))\nCaused by:\n  An error happened during \
                    execution\nCaused by:\n  CUDA allocation error: out of memory\nNo backtrace available\nAsked at:\n";
        let expected = "An error happened during execution: CUDA allocation error: out of memory";
        assert_eq!(failure(Text(text)), ExecuteError(expected.into()));
        assert_eq!(failure("plain"), ExecuteError("\"plain\"".into()));
        assert_eq!(failure(Text("Several failures at once")), ExecuteError("Several failures at once".into()));
    }
}
