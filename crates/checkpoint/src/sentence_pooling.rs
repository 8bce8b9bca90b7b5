//! How a folder of sentence-transformers makes one vector of a text's hidden states.

use crate::chat::parse_json;
use crate::config::Fields;
use crate::error::{CheckpointError, Fault};
use crate::folder_files::FolderFiles;
use std::path::Path;

/// The hidden states that make the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentencePooling {
    /// That of the first token.
    Cls,
    /// The mean of all.
    Mean,
    /// That of the last token.
    Last,
}

/// A few lines.
const BYTES_MAX: u64 = 1 << 16;
const FILE: &str = "1_Pooling/config.json";
const MODES: [(&str, SentencePooling); 3] = [
    ("pooling_mode_cls_token", SentencePooling::Cls),
    ("pooling_mode_mean_tokens", SentencePooling::Mean),
    ("pooling_mode_lasttoken", SentencePooling::Last),
];

/// What the folder says; `None` where it says nothing, as in a GGUF file. Pooling that would be made otherwise, such as by
/// maxima, is refused: other vectors than the model's own would be useless without a word of warning.
pub fn sentence_pooling(model: &Path) -> Result<Option<SentencePooling>, CheckpointError> {
    if !model.is_dir() {
        return Ok(None);
    }
    let folder = FolderFiles::OnDisk(model);
    let text = folder.read_text(FILE, BYTES_MAX)?;
    text.map(|text| parse(&text).map_err(folder.in_file(FILE))).transpose()
}

fn parse(text: &str) -> Result<SentencePooling, Fault> {
    let root = parse_json(text)?;
    let fields = Fields::new(&root, "")?;
    let mut asked = Vec::new();
    for (name, value) in root.as_object().into_iter().flatten() {
        if name.starts_with("pooling_mode_") && value.as_bool() == Some(true) {
            asked.push(name.as_str());
        }
    }
    // Newer files have one word instead of a switch for each.
    let word = fields.get("pooling_mode").and_then(|word| word.as_str());
    let named = match (word, &asked[..]) {
        (Some("cls"), _) => Some(SentencePooling::Cls),
        (Some("mean"), _) => Some(SentencePooling::Mean),
        (Some("lasttoken"), _) => Some(SentencePooling::Last),
        (None, [name]) => MODES.iter().find(|(mode, _)| mode == name).map(|(_, pooling)| *pooling),
        _ => None,
    };
    named.ok_or_else(|| {
        let given = word.map_or_else(|| asked.join(" and "), str::to_owned);
        let given = if given.is_empty() { "nothing".to_owned() } else { given };
        Fault::unsupported(
            "pooling_mode",
            format!("asks for {given}; supported are the first token, the last token and the mean, one of them"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mode_is_read_in_both_forms_and_others_are_refused() {
        let read = |text: &str| parse(text).map_err(|fault| fault.in_file(FILE).to_string());
        let mean = r#"{"word_embedding_dimension": 384, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true,
                       "pooling_mode_max_tokens": false, "include_prompt": true}"#;
        assert_eq!(read(mean), Ok(SentencePooling::Mean));
        assert_eq!(read(r#"{"pooling_mode_lasttoken": true}"#), Ok(SentencePooling::Last));
        assert_eq!(read(r#"{"pooling_mode": "cls"}"#), Ok(SentencePooling::Cls));
        for text in [
            r#"{"pooling_mode_max_tokens": true}"#,
            r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#,
            r#"{"pooling_mode": "weightedmean"}"#,
            "{}",
        ] {
            let refusal = read(text).expect_err(text);
            assert!(refusal.contains("1_Pooling/config.json") && refusal.contains("supported are"), "{refusal}");
        }
        assert!(read("[]").is_err() && read("{").is_err());
    }

    #[test]
    fn a_folder_without_the_file_and_a_plain_file_say_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(sentence_pooling(folder.path()).expect("nothing wrong"), None);
        let file = folder.path().join("model.gguf");
        std::fs::write(&file, "GGUF").expect("written");
        assert_eq!(sentence_pooling(&file).expect("nothing wrong"), None);
        std::fs::create_dir(folder.path().join("1_Pooling")).expect("a folder");
        std::fs::write(folder.path().join(FILE), r#"{"pooling_mode_cls_token": true}"#).expect("written");
        assert_eq!(sentence_pooling(folder.path()).expect("nothing wrong"), Some(SentencePooling::Cls));
    }
}
