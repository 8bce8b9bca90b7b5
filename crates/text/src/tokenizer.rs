//! Text to tokens and back, for the tokenizers of Hugging Face (`tokenizer.json`) and of GGUF files.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::TokenId;
use crate::detokenizer::Detokenizer;
use crate::error::TokenizerError;
use crate::gguf::{self, GgufVocabulary};
use crate::piece::{Piece, PieceRule};
use crate::vocabulary::Vocabulary;

/// Pieces of text whose tokens are remembered. The library keeps pieces of up to 255 bytes, at about 32 bytes for each, and
/// a tokenizer that does not split texts into words takes a whole prompt for a piece: 4,096 of them are 35 MB at most, where
/// the library's own 10,000 are 85 MB.
const CACHED_PIECES_MAX: usize = 4096;

/// A tokenizer. Cloning shares the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    tokenizer: tokenizers::Tokenizer,
    vocabulary: Vocabulary,
    piece_rule: PieceRule,
    token_bytes_max: OnceLock<usize>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads a `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path)
            .map_err(|error| TokenizerError::Read { path: name.clone(), reason: error.to_string() })?;
        Self::from_json(&bytes, &name)
    }

    /// Loads the contents of a `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        Self::from_json(bytes, "tokenizer.json")
    }

    /// Builds a tokenizer from the vocabulary inside a GGUF file.
    pub fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self, TokenizerError> {
        let document = gguf::tokenizer_json(&vocabulary)?;
        let bytes = serde_json::to_vec(&document).expect("a JSON value can always be written");
        drop(document);
        let (tokenizer, piece_rule) = load(&bytes, gguf::ORIGIN)?;
        let mut table = Vocabulary::of(&tokenizer, gguf::ORIGIN)?;
        let GgufVocabulary { tokens, token_types, .. } = vocabulary;
        table.fill_missing(tokens, |id| token_types.get(id) == Some(&gguf::CONTROL));
        Ok(Self::new(tokenizer, table, piece_rule))
    }

    fn from_json(bytes: &[u8], origin: &str) -> Result<Self, TokenizerError> {
        let (tokenizer, piece_rule) = load(bytes, origin)?;
        let vocabulary = Vocabulary::of(&tokenizer, origin)?;
        Ok(Self::new(tokenizer, vocabulary, piece_rule))
    }

    fn new(tokenizer: tokenizers::Tokenizer, vocabulary: Vocabulary, piece_rule: PieceRule) -> Self {
        Self { shared: Arc::new(Shared { tokenizer, vocabulary, piece_rule, token_bytes_max: OnceLock::new() }) }
    }

    /// The tokens of `text`. With `add_special_tokens`, the tokenizer adds what it puts around a whole text (for example
    /// a beginning-of-text token). A text that cannot be written in the vocabulary (only possible for word vocabularies
    /// without an unknown token) gives no tokens; [`Tokenizer::try_encode`] says why.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Vec<TokenId> {
        self.try_encode(text, add_special_tokens).unwrap_or_default()
    }

    /// As [`Tokenizer::encode`], with the reason when the text cannot be encoded.
    pub fn try_encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TokenizerError> {
        let failed = |reason: String| TokenizerError::Encode { text_bytes: text.len(), reason };
        // The regular expression engine panics when a pattern of the tokenizer's own needs too many steps.
        let attempt = || self.shared.tokenizer.encode_fast(text, add_special_tokens);
        match catch_unwind(AssertUnwindSafe(attempt)) {
            Ok(Ok(encoding)) => Ok(encoding.get_ids().to_vec()),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("the tokenizer's pattern needs too many steps for this text".to_owned())),
        }
    }

    /// The text of `ids`, as a whole. Bytes that are not UTF-8 become U+FFFD; numbers outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[TokenId], skip_special_tokens: bool) -> String {
        let mut detokenizer = self.detokenizer(skip_special_tokens);
        let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// The vocabulary's own spelling of a token (`Ġhello`, `▁hello`, `<0x0A>`, `<|im_end|>`).
    pub fn token_text(&self, id: TokenId) -> Option<String> {
        self.shared.vocabulary.text(id).map(str::to_owned)
    }

    /// The bytes that a token adds to a text when others stand before it; `None` outside the vocabulary. They need not
    /// be UTF-8: a character may be spread over several tokens.
    pub fn token_bytes(&self, id: TokenId) -> Option<Vec<u8>> {
        let text = self.shared.vocabulary.text(id)?;
        if self.is_special(id) {
            return Some(text.as_bytes().to_vec());
        }
        Some(match self.shared.piece_rule.piece(text, false) {
            Piece::Bytes(bytes) => bytes,
            Piece::Text(text) => text.into_bytes(),
        })
    }

    /// The token with this spelling.
    pub fn token_id(&self, text: &str) -> Option<TokenId> {
        self.shared.tokenizer.token_to_id(text)
    }

    /// Whether a token is a control token, which `skip_special_tokens` leaves out.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.shared.vocabulary.is_special(id)
    }

    /// One more than the largest token number.
    pub fn vocab_size(&self) -> usize {
        self.shared.vocabulary.size()
    }

    /// An upper bound of the bytes that one token stands for: its spelling is never shorter. At least 1.
    pub fn token_bytes_max(&self) -> usize {
        *self.shared.token_bytes_max.get_or_init(|| {
            let spellings = (0..self.vocab_size()).filter_map(|id| self.shared.vocabulary.text(id as TokenId));
            spellings.map(str::len).max().unwrap_or(1).max(1)
        })
    }

    /// A detokenizer at the beginning of a text.
    pub fn detokenizer(&self, skip_special_tokens: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special_tokens)
    }

    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.shared.vocabulary
    }

    pub(crate) fn piece_rule(&self) -> &PieceRule {
        &self.shared.piece_rule
    }
}

/// The parts of a `tokenizer.json` that are looked at here; the rest is only checked to be JSON.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    decoder: Option<Value>,
    #[serde(rename = "model")]
    _model: IgnoredAny,
}

fn load(bytes: &[u8], origin: &str) -> Result<(tokenizers::Tokenizer, PieceRule), TokenizerError> {
    let outline: Outline =
        serde_json::from_slice(bytes).map_err(|error| TokenizerError::invalid(origin, "the document", error))?;
    let piece_rule = PieceRule::parse(outline.decoder.as_ref(), origin)?;
    // The library panics on some files (an added token without a number, a regular expression too large).
    let attempt = || tokenizers::Tokenizer::from_bytes(bytes);
    let mut tokenizer = match catch_unwind(AssertUnwindSafe(attempt)) {
        Ok(Ok(tokenizer)) => tokenizer,
        Ok(Err(error)) => return Err(TokenizerError::invalid(origin, "the document", error)),
        Err(_) => return Err(TokenizerError::invalid(origin, "the document", "is not consistent")),
    };
    // A file may ask for cutting or padding every text; a prompt must arrive whole.
    tokenizer.with_padding(None);
    if let Err(error) = tokenizer.with_truncation(None) {
        return Err(TokenizerError::invalid(origin, "truncation", error));
    }
    let mut model = tokenizer.get_model().clone();
    model.resize_cache(CACHED_PIECES_MAX);
    tokenizer.with_model(model);
    Ok((tokenizer, piece_rule))
}
