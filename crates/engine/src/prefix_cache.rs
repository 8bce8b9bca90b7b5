//! Which block holds which tokens: a map from the hash of a prefix to the block with its last tokens.
//!
//! The hash of a block covers everything before it: `hash(parent's hash, own tokens)`, starting from a hash of the
//! salt. It is keyed with a random key, so that nobody can construct a collision, and it is only a hint: a hit compares
//! the tokens themselves and the parent block, so that even a collision never shares a wrong block.
//!
//! The cache knows nothing of references or eviction; [`BlockPool`](crate::block_pool::BlockPool) owns it and decides
//! when a block is forgotten. In return the pool promises that a parent is forgotten only after its children: a parent
//! named by a cached block is itself cached, and its id means the same content.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::token_span::TokenSpan;
use crate::{BlockId, RequestId, TokenId};

/// Who may share a block: only requests with an equal salt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Salt {
    /// Everybody without a salt.
    Public,
    /// Requests that bring this string.
    Named(Arc<str>),
    /// The choices of one request, when sharing between requests is off.
    Private(RequestId),
}

/// What a block continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Nothing: it is the first block of a sequence.
    Root(Salt),
    /// The tokens in this cached block and everything before them.
    Block(BlockId),
}

/// Everything that identifies the content of a full block.
pub(crate) struct BlockKey<'a> {
    pub(crate) hash: u128,
    pub(crate) parent: Parent,
    pub(crate) tokens: TokenSpan<'a>,
}

/// What the cache knows under a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// This block holds exactly these tokens after exactly this parent.
    Hit(BlockId),
    /// Nothing has this hash.
    Miss,
    /// Another content has the same hash.
    Collision,
}

/// Turns salts and tokens into hashes. Copied freely; it is only a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChainHasher {
    key: [u64; 2],
    /// Tests cut the hash to a few bits, so that collisions happen.
    #[cfg(test)]
    pub(crate) mask: u128,
}

impl ChainHasher {
    pub(crate) fn new(key: [u64; 2]) -> Self {
        Self {
            key,
            #[cfg(test)]
            mask: u128::MAX,
        }
    }

    /// Hash that the first block of a sequence continues.
    pub(crate) fn root(&self, salt: &Salt) -> u128 {
        let mut hasher = self.start();
        match salt {
            Salt::Public => hasher.write_u8(0),
            Salt::Named(name) => {
                hasher.write_u8(1);
                hasher.write(name.as_bytes());
            }
            Salt::Private(request) => {
                hasher.write_u8(2);
                hasher.write_u64(request.0);
            }
        }
        self.finish(hasher)
    }

    /// Hash of a block with these tokens after a parent with that hash.
    pub(crate) fn block(&self, parent: u128, tokens: TokenSpan<'_>) -> u128 {
        let mut hasher = self.start();
        hasher.write_u128(parent);
        tokens.iter().for_each(|token| hasher.write_u32(token));
        self.finish(hasher)
    }

    fn start(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.key[0], self.key[1])
    }

    fn finish(&self, hasher: SipHasher13) -> u128 {
        let hash = hasher.finish128().as_u128();
        #[cfg(test)]
        let hash = hash & self.mask;
        hash
    }
}

/// The map, and for each cached block what it holds.
pub(crate) struct PrefixCache {
    hasher: ChainHasher,
    block_size: usize,
    blocks: HashMap<u128, BlockId, BuildHasherDefault<FoldHasher>>,
    /// `[blocks]` what each cached block is, `None` when it is not cached.
    entries: Vec<Option<Entry>>,
    /// `[blocks * block_size]` tokens of the cached blocks.
    tokens: Vec<TokenId>,
    /// A planted bug: hits are believed without comparison.
    #[cfg(test)]
    pub(crate) trusts_the_hash: bool,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) hash: u128,
    pub(crate) parent: Parent,
}

impl PrefixCache {
    pub(crate) fn new(num_blocks: u32, block_size: u32, hasher: ChainHasher) -> Self {
        let (num_blocks, block_size) = (num_blocks as usize, block_size as usize);
        Self {
            hasher,
            block_size,
            blocks: HashMap::with_capacity_and_hasher(num_blocks, BuildHasherDefault::default()),
            entries: (0..num_blocks).map(|_| None).collect(),
            tokens: vec![0; num_blocks * block_size],
            #[cfg(test)]
            trusts_the_hash: false,
        }
    }

    pub(crate) fn hasher(&self) -> ChainHasher {
        self.hasher
    }

    /// Finds the block with this content.
    pub(crate) fn lookup(&self, key: &BlockKey<'_>) -> Lookup {
        let Some(&block) = self.blocks.get(&key.hash) else { return Lookup::Miss };
        #[cfg(test)]
        if self.trusts_the_hash {
            return Lookup::Hit(block);
        }
        let entry = self.entry(block).expect("every mapped block has an entry");
        if entry.parent == key.parent && key.tokens == *self.tokens_of(block) {
            Lookup::Hit(block)
        } else {
            Lookup::Collision
        }
    }

    /// Remembers a block under a key that [`lookup`](Self::lookup) misses.
    pub(crate) fn insert(&mut self, block: BlockId, key: &BlockKey<'_>) {
        assert!(self.entry(block).is_none(), "invariant 5: {block:?} is cached already");
        assert_eq!(key.tokens.len(), self.block_size, "invariant 5: only full blocks are cached");
        let start = block.0 as usize * self.block_size;
        let room = &mut self.tokens[start..start + self.block_size];
        room.iter_mut().zip(key.tokens.iter()).for_each(|(slot, token)| *slot = token);
        self.entries[block.0 as usize] = Some(Entry { hash: key.hash, parent: key.parent.clone() });
        let before = self.blocks.insert(key.hash, block);
        assert!(before.is_none(), "invariant 5: two blocks under one hash");
    }

    /// Forgets a block whose content is about to be overwritten.
    pub(crate) fn remove(&mut self, block: BlockId) {
        let entry = self.entries[block.0 as usize].take().expect("invariant 5: only cached blocks are forgotten");
        self.blocks.remove(&entry.hash);
    }

    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.entry(block).is_some()
    }

    pub(crate) fn entry(&self, block: BlockId) -> Option<&Entry> {
        self.entries[block.0 as usize].as_ref()
    }

    pub(crate) fn tokens_of(&self, block: BlockId) -> &[TokenId] {
        let start = block.0 as usize * self.block_size;
        &self.tokens[start..start + self.block_size]
    }

    /// The block found under a hash, whatever its content.
    pub(crate) fn block_at(&self, hash: u128) -> Option<BlockId> {
        self.blocks.get(&hash).copied()
    }
}

#[cfg(test)]
impl PrefixCache {
    /// Makes collisions likely.
    pub(crate) fn cut_hashes(&mut self, mask: u128) {
        self.hasher.mask = mask;
    }

    pub(crate) fn tokens_mut(&mut self, block: BlockId) -> &mut [TokenId] {
        let start = block.0 as usize * self.block_size;
        &mut self.tokens[start..start + self.block_size]
    }
}

/// The keys are keyed hashes already: half of one is as good a hash as any.
#[derive(Default)]
struct FoldHasher(u64);

impl Hasher for FoldHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u128 keys are hashed");
    }

    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(tokens: &[TokenId]) -> TokenSpan<'_> {
        TokenSpan { prompt: tokens, output: &[] }
    }

    fn first<'a>(hasher: &ChainHasher, salt: Salt, tokens: &'a [TokenId]) -> BlockKey<'a> {
        BlockKey {
            hash: hasher.block(hasher.root(&salt), span(tokens)),
            parent: Parent::Root(salt),
            tokens: span(tokens),
        }
    }

    fn cache(mask: u128) -> PrefixCache {
        PrefixCache::new(8, 2, ChainHasher { key: [1, 2], mask })
    }

    #[test]
    fn a_block_is_found_by_its_content() {
        let mut cache = cache(u128::MAX);
        let key = first(&cache.hasher(), Salt::Public, &[1, 2]);
        assert_eq!(cache.lookup(&key), Lookup::Miss);
        cache.insert(BlockId(3), &key);
        assert_eq!(cache.lookup(&key), Lookup::Hit(BlockId(3)));
        cache.remove(BlockId(3));
        assert_eq!(cache.lookup(&key), Lookup::Miss);
    }

    #[test]
    fn salts_do_not_see_each_other() {
        let mut cache = cache(u128::MAX);
        let hasher = cache.hasher();
        cache.insert(BlockId(0), &first(&hasher, Salt::Public, &[1, 2]));
        for salt in [Salt::Named("a".into()), Salt::Named("".into()), Salt::Private(RequestId(0))] {
            assert_eq!(cache.lookup(&first(&hasher, salt, &[1, 2])), Lookup::Miss);
        }
    }

    #[test]
    fn a_collision_of_salt_tokens_or_parent_is_never_a_hit() {
        let mut cache = cache(0);
        let hasher = cache.hasher();
        cache.insert(BlockId(0), &first(&hasher, Salt::Public, &[1, 2]));
        assert_eq!(cache.lookup(&first(&hasher, Salt::Named("a".into()), &[1, 2])), Lookup::Collision);
        assert_eq!(cache.lookup(&first(&hasher, Salt::Public, &[1, 3])), Lookup::Collision);
        let child = BlockKey { hash: 0, parent: Parent::Block(BlockId(0)), tokens: span(&[1, 2]) };
        assert_eq!(cache.lookup(&child), Lookup::Collision);
    }

    #[test]
    fn the_hash_depends_on_the_key() {
        let (a, b) = (ChainHasher::new([1, 2]), ChainHasher::new([1, 3]));
        assert_ne!(a.root(&Salt::Public), b.root(&Salt::Public));
    }
}
