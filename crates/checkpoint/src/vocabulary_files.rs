//! The older pair vocab.json and merges.txt (OPT, GPT-2) as byte-level BPE data.

use crate::chat::SpecialTokens;
use crate::error::{Fault, printable};
use crate::gguf::GgufTokenizer;
use std::collections::BTreeMap;

/// GGUF's token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// Reads both files. Ids must be 0, 1, 2, … without gaps.
pub(crate) fn read(
    vocabulary: &str,
    merges: &str,
    special: &SpecialTokens,
    add_bos: bool,
) -> Result<GgufTokenizer, Fault> {
    let by_text: BTreeMap<String, u32> =
        serde_json::from_str(vocabulary).map_err(|error| Fault::corrupt("JSON", error.to_string()))?;
    let mut tokens = vec![None; by_text.len()];
    for (text, id) in by_text {
        let slot = tokens.get_mut(id as usize).filter(|slot| slot.is_none());
        let slot = slot.ok_or_else(|| Fault::corrupt(&text, format!("id {id} occurs twice or leaves a gap")))?;
        *slot = Some(text);
    }
    let tokens: Vec<String> = tokens.into_iter().flatten().collect();
    let markers = [&special.bos, &special.eos, &special.pad, &special.unk];
    let is_marker = |token: &String| markers.iter().any(|marker| marker.as_ref() == Some(token));
    let token_types = tokens.iter().map(|token| if is_marker(token) { CONTROL } else { NORMAL }).collect();
    let id =
        |marker: &Option<String>| tokens.iter().position(|token| Some(token) == marker.as_ref()).map(|id| id as u32);
    Ok(GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        bos: id(&special.bos),
        eos: id(&special.eos),
        unknown: id(&special.unk),
        add_bos,
        add_eos: false,
        add_space_prefix: false,
        merges: merge_lines(merges)?,
        scores: Vec::new(),
        token_types,
        tokens,
    })
}

/// One merge a line, after an optional version comment.
fn merge_lines(text: &str) -> Result<Vec<String>, Fault> {
    let is_comment = |number: usize, line: &str| number == 0 && line.starts_with("#version");
    let lines = text.lines().enumerate().filter(|(number, line)| !(line.is_empty() || is_comment(*number, line)));
    lines
        .map(|(number, line)| match line.split(' ').collect::<Vec<_>>()[..] {
            [left, right] if !left.is_empty() && !right.is_empty() => Ok(line.to_owned()),
            _ => Err(Fault::corrupt(
                "merges.txt",
                format!("line {} is {}, expected two tokens", number + 1, printable(line)),
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_become_one_vocabulary() {
        let special =
            SpecialTokens { bos: Some("</s>".to_owned()), eos: Some("</s>".to_owned()), ..Default::default() };
        let tokenizer =
            read(r#"{"a": 1, "</s>": 0, "ab": 3, "b": 2}"#, "#version: 0.2\na b\n", &special, true).unwrap();
        assert_eq!(tokenizer.tokens, ["</s>", "a", "b", "ab"]);
        assert_eq!(tokenizer.token_types, [3, 1, 1, 1]);
        assert_eq!(tokenizer.merges, ["a b"]);
        assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.add_bos), (Some(0), Some(0), true));
    }

    #[test]
    fn gaps_in_the_ids_are_refused() {
        assert!(read(r#"{"a": 0, "b": 2}"#, "", &SpecialTokens::default(), false).is_err());
        assert!(read(r#"{"a": 0, "b": 0}"#, "", &SpecialTokens::default(), false).is_err());
    }
}
