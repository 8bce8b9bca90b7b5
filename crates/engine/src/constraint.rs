//! What a sequence may say: constraints that depend on the tokens so far, such as grammars, seen from the engine.
//!
//! The engine knows no grammar. It asks a sequence's [`ConstraintState`] which tokens may come next, puts the answer
//! into the draw, and tells it which token was chosen. A state follows the chosen tokens only, so preemption, chunks
//! and abandoned steps need nothing.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::TokenId;

/// Where the sequences of a request begin.
pub trait TokenConstraint: Send + Sync {
    /// The state before the first token. It is called once for every choice and must not take long.
    fn start(&self) -> Box<dyn ConstraintState>;
}

/// How far one sequence is within its constraint.
pub trait ConstraintState: Send {
    /// The tokens that may come next. It may be called several times before a token is accepted and answers the same.
    /// It must not wait: where the answer takes time, it is given as [`TokenMask::later`].
    fn allowed(&mut self) -> TokenMask;

    /// Takes the token that was chosen. An error ends the sequence.
    fn accept(&mut self, token: TokenId) -> Result<Progress, NotFollowed>;
}

/// Why a chosen token is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotFollowed {
    /// There was nothing to choose from: no token of the vocabulary goes on from here.
    DeadEnd,
    /// The token is not allowed, or the constraint could not be followed any further; in words.
    Failed(String),
}

/// What is left to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More may or must follow.
    Open,
    /// Nothing can follow: the sequence is complete.
    Complete,
}

/// A request's constraint. Two are equal when they are the same object.
///
/// A stored trace does not hold it: what is read back is [lost](Self::is_lost), and a replay says so.
#[derive(Clone)]
pub struct Constraint(Option<Arc<dyn TokenConstraint>>);

impl Constraint {
    /// Wraps what the choices of a request must follow.
    pub fn new(constraint: Arc<dyn TokenConstraint>) -> Self {
        Self(Some(constraint))
    }

    /// Whether only the fact is known that there was one.
    pub fn is_lost(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn start(&self) -> Option<Box<dyn ConstraintState>> {
        self.0.as_ref().map(|constraint| constraint.start())
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_lost() { "Constraint(lost)" } else { "Constraint(..)" })
    }
}

impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }
}

impl Serialize for Constraint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("lost")
    }
}

impl<'de> Deserialize<'de> for Constraint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|_| Self(None))
    }
}

/// The tokens that a draw may choose from: bit `token % 32` of word `token / 32`. Tokens beyond the last word are not
/// allowed.
///
/// It dereferences to its words. They may still be under way, so that they are computed while the device computes the
/// logits; whoever looks at them waits.
#[derive(Clone)]
pub struct TokenMask(Arc<OnceLock<Vec<u32>>>);

impl TokenMask {
    /// A mask under way, and the end at which its words are put in.
    pub fn later() -> (Self, MaskSender) {
        let mask = Self(Arc::default());
        (mask.clone(), MaskSender(mask))
    }

    /// The mask that allows exactly these tokens.
    pub fn of(tokens: &[TokenId]) -> Self {
        let mut words = vec![0; tokens.iter().max().map_or(0, |&token| token as usize / 32 + 1)];
        for token in tokens {
            words[*token as usize / 32] |= 1 << (token % 32);
        }
        words.into()
    }

    /// Whether a token may be chosen.
    pub fn allows(&self, token: TokenId) -> bool {
        self.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}

impl From<Vec<u32>> for TokenMask {
    fn from(words: Vec<u32>) -> Self {
        Self(Arc::new(words.into()))
    }
}

impl Deref for TokenMask {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        self.0.wait()
    }
}

impl PartialEq for TokenMask {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl fmt::Debug for TokenMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get() {
            Some(words) => {
                let allowed: u32 = words.iter().map(|word| word.count_ones()).sum();
                write!(f, "TokenMask({allowed} tokens)")
            }
            None => f.write_str("TokenMask(under way)"),
        }
    }
}

/// Puts the words into a [`TokenMask`]. Dropped without them it allows nothing, so that nobody waits for ever.
pub struct MaskSender(TokenMask);

impl MaskSender {
    /// The words are there.
    pub fn send(self, words: Vec<u32>) {
        // Nobody else has put words in: there is one sender, and this takes it.
        let _ = self.0.0.set(words);
    }
}

impl Drop for MaskSender {
    fn drop(&mut self) {
        let _ = self.0.0.set(Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_allows_its_tokens_and_nothing_beyond_its_words() {
        let mask = TokenMask::of(&[3, 64, 31]);
        let allowed: Vec<TokenId> = (0..200).filter(|token| mask.allows(*token)).collect();
        assert_eq!(allowed, [3, 31, 64]);
        assert_eq!(mask.len(), 3);
        assert!(TokenMask::of(&[]).is_empty());
    }

    #[test]
    fn a_mask_that_never_comes_allows_nothing() {
        let (mask, sender) = TokenMask::later();
        assert_eq!(format!("{mask:?}"), "TokenMask(under way)");
        drop(sender);
        assert!(!mask.allows(0) && mask.is_empty());
        let (mask, sender) = TokenMask::later();
        sender.send(vec![2]);
        assert!(mask.allows(1) && !mask.allows(0));
    }
}
