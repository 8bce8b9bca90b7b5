//! Takes text out of a stream of bytes as soon as it is certain, and never half a character.

/// What becomes of a run of bytes that is not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replacement {
    /// One U+FFFD for every run of bytes that began like a character, as `String::from_utf8_lossy` does.
    PerSequence,
    /// One U+FFFD for every byte, as byte-fallback vocabularies do.
    PerByte,
}

/// Moves everything that is certain from `pending` to `text`; an unfinished character at the end stays pending.
pub(crate) fn take_certain(pending: &mut Vec<u8>, replacement: Replacement, text: &mut String) {
    let mut start = 0;
    loop {
        let rest = &pending[start..];
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                start = pending.len();
                break;
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.push_str(std::str::from_utf8(&rest[..valid]).expect("the decoder said so"));
                start += valid;
                let Some(bad) = error.error_len() else { break };
                push_replacements(bad, replacement, text);
                start += bad;
            }
        }
    }
    pending.drain(..start);
}

/// Ends the stream: an unfinished character is replaced.
pub(crate) fn take_rest(pending: &mut Vec<u8>, replacement: Replacement, text: &mut String) {
    take_certain(pending, replacement, text);
    if !pending.is_empty() {
        push_replacements(pending.len(), replacement, text);
        pending.clear();
    }
}

fn push_replacements(num_bytes: usize, replacement: Replacement, text: &mut String) {
    let count = match replacement {
        Replacement::PerSequence => 1,
        Replacement::PerByte => num_bytes,
    };
    text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, count));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(chunks: &[&[u8]], replacement: Replacement) -> Vec<String> {
        let (mut pending, mut out) = (Vec::new(), Vec::new());
        for chunk in chunks {
            let mut text = String::new();
            pending.extend_from_slice(chunk);
            take_certain(&mut pending, replacement, &mut text);
            out.push(text);
        }
        let mut text = String::new();
        take_rest(&mut pending, replacement, &mut text);
        out.push(text);
        out
    }

    #[test]
    fn a_character_appears_only_when_it_is_whole() {
        let chunks: Vec<&[u8]> = "é🎉".as_bytes().chunks(1).collect();
        assert_eq!(stream(&chunks, Replacement::PerSequence), ["", "é", "", "", "", "🎉", ""]);
    }

    #[test]
    fn streamed_bytes_equal_the_lossy_reading_of_the_whole() {
        let bytes = b"a\xf0\x9f\x8e\x89\xff\xe4\xbdz\xc3\xe4\xbd";
        let chunks: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(stream(&chunks, Replacement::PerSequence).concat(), String::from_utf8_lossy(bytes));
    }

    #[test]
    fn byte_fallback_replaces_each_byte() {
        assert_eq!(stream(&[b"\xe4\xbd", b"z"], Replacement::PerByte).concat(), "\u{fffd}\u{fffd}z");
    }
}
