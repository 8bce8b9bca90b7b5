//! Who owns the blocks of the KV cache.
//!
//! Every block is in exactly one of three sets:
//!
//! - **free**: no sequence uses it and it holds nothing of use;
//! - **evictable**: no sequence uses it, but it is in the prefix cache; least recently used goes first;
//! - **referenced**: this many block tables name it. It may be in the prefix cache as well.
//!
//! The pool hands out block ids and counts; it never sees the blocks' memory. Running out is an ordinary `None`, and
//! giving back what was not taken is an assertion.

use crate::BlockId;
use crate::lru_list::LruList;
use crate::prefix_cache::{BlockKey, ChainHasher, Lookup, PrefixCache};

/// What became of a full block that a sequence offered to the prefix cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// The block is in the cache now.
    Here,
    /// The cache has another block with the same content; the caller can use that one and give its own back.
    Elsewhere(BlockId),
    /// Another content has the same hash. The block stays private, and so must everything that continues it.
    Not,
}

/// Free, evictable and referenced blocks, and the prefix cache that makes evictable ones worth keeping.
pub(crate) struct BlockPool {
    /// `[blocks]` block tables that name each block.
    references: Vec<u32>,
    /// Blocks with at least one reference.
    num_referenced: u32,
    free: Vec<BlockId>,
    evictable: LruList,
    cache: PrefixCache,
}

impl BlockPool {
    pub(crate) fn new(num_blocks: u32, block_size: u32, hasher: ChainHasher) -> Self {
        Self {
            references: vec![0; num_blocks as usize],
            num_referenced: 0,
            free: (0..num_blocks).rev().map(BlockId).collect(),
            evictable: LruList::new(num_blocks),
            cache: PrefixCache::new(num_blocks, block_size, hasher),
        }
    }

    pub(crate) fn num_blocks(&self) -> u32 {
        self.references.len() as u32
    }

    /// Blocks that [`allocate`](Self::allocate) can still give.
    pub(crate) fn num_available(&self) -> u32 {
        self.free.len() as u32 + self.evictable.len()
    }

    pub(crate) fn num_evictable(&self) -> u32 {
        self.evictable.len()
    }

    pub(crate) fn num_referenced(&self) -> u32 {
        self.num_referenced
    }

    pub(crate) fn is_evictable(&self, block: BlockId) -> bool {
        self.evictable.contains(block)
    }

    pub(crate) fn references(&self, block: BlockId) -> u32 {
        self.references[block.0 as usize]
    }

    pub(crate) fn cache(&self) -> &PrefixCache {
        &self.cache
    }

    pub(crate) fn free_blocks(&self) -> &[BlockId] {
        &self.free
    }

    pub(crate) fn evictable_blocks(&self) -> &LruList {
        &self.evictable
    }

    /// Takes a block with one reference and no content, evicting the least recently used cached one if need be.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let block = self.evictable.pop_oldest()?;
                self.cache.remove(block);
                block
            }
        };
        let references = &mut self.references[block.0 as usize];
        assert_eq!(*references, 0, "invariant 2: {block:?} was available and in use");
        *references = 1;
        self.num_referenced += 1;
        Some(block)
    }

    /// Adds a reference to a cached block, which may have been evictable until now.
    pub(crate) fn share(&mut self, block: BlockId) {
        assert!(self.cache.contains(block), "invariant 4: only cached blocks are shared, {block:?} is not");
        if self.references[block.0 as usize] == 0 {
            self.evictable.remove(block);
            self.num_referenced += 1;
        }
        self.references[block.0 as usize] += 1;
    }

    /// Gives one reference back. With the last one the block becomes evictable if it is cached, free otherwise.
    ///
    /// A sequence gives its blocks back last first, so that a prefix outlives its continuations.
    pub(crate) fn release(&mut self, block: BlockId) {
        let references = &mut self.references[block.0 as usize];
        assert!(*references > 0, "invariant 2: {block:?} was given back more often than taken");
        *references -= 1;
        if *references > 0 {
            return;
        }
        self.num_referenced -= 1;
        if self.cache.contains(block) {
            self.evictable.push_newest(block);
        } else {
            self.free.push(block);
        }
    }

    /// The cached block with this content.
    pub(crate) fn find(&self, key: &BlockKey<'_>) -> Option<BlockId> {
        match self.cache.lookup(key) {
            Lookup::Hit(block) => Some(block),
            Lookup::Miss | Lookup::Collision => None,
        }
    }

    /// Offers a full block that the caller references to the prefix cache.
    pub(crate) fn publish(&mut self, block: BlockId, key: &BlockKey<'_>) -> Published {
        assert!(self.references(block) > 0, "invariant 2: {block:?} is published by nobody");
        match self.cache.lookup(key) {
            Lookup::Hit(existing) => Published::Elsewhere(existing),
            Lookup::Collision => Published::Not,
            Lookup::Miss => {
                self.cache.insert(block, key);
                Published::Here
            }
        }
    }
}

/// The insides of a pool, for planted bugs.
#[cfg(test)]
pub(crate) struct PoolParts<'a> {
    pub(crate) references: &'a mut Vec<u32>,
    pub(crate) free: &'a mut Vec<BlockId>,
    pub(crate) evictable: &'a mut LruList,
    pub(crate) cache: &'a mut PrefixCache,
}

#[cfg(test)]
impl BlockPool {
    pub(crate) fn parts_mut(&mut self) -> PoolParts<'_> {
        let Self { references, free, evictable, cache, .. } = self;
        PoolParts { references, free, evictable, cache }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenId;
    use crate::prefix_cache::{Parent, Salt};
    use crate::token_span::TokenSpan;

    fn pool(num_blocks: u32) -> BlockPool {
        BlockPool::new(num_blocks, 2, ChainHasher::new([0, 0]))
    }

    fn key<'a>(pool: &BlockPool, parent: Option<(u128, BlockId)>, tokens: &'a [TokenId]) -> BlockKey<'a> {
        let hasher = pool.cache().hasher();
        let tokens = TokenSpan { prompt: tokens, output: &[] };
        match parent {
            None => {
                let hash = hasher.block(hasher.root(&Salt::Public), tokens);
                BlockKey { hash, parent: Parent::Root(Salt::Public), tokens }
            }
            Some((hash, block)) => BlockKey { hash: hasher.block(hash, tokens), parent: Parent::Block(block), tokens },
        }
    }

    #[test]
    fn an_exhausted_pool_gives_none() {
        let mut pool = pool(2);
        assert_eq!(pool.allocate(), Some(BlockId(0)));
        assert_eq!(pool.allocate(), Some(BlockId(1)));
        assert_eq!(pool.allocate(), None);
        pool.release(BlockId(0));
        assert_eq!(pool.allocate(), Some(BlockId(0)));
    }

    #[test]
    fn a_published_block_stays_findable_until_its_memory_is_needed() {
        let mut pool = pool(2);
        let block = pool.allocate().expect("free");
        let key = key(&pool, None, &[7, 8]);
        assert_eq!(pool.publish(block, &key), Published::Here);
        pool.release(block);
        assert_eq!((pool.num_available(), pool.num_evictable()), (2, 1));
        assert_eq!(pool.find(&key), Some(block));

        assert_eq!(pool.allocate(), Some(BlockId(1)), "free blocks go before cached ones");
        assert_eq!(pool.find(&key), Some(block));
        assert_eq!(pool.allocate(), Some(block));
        assert_eq!(pool.find(&key), None);
    }

    #[test]
    fn a_shared_block_is_not_evicted() {
        let mut pool = pool(1);
        let block = pool.allocate().expect("free");
        let key = key(&pool, None, &[7, 8]);
        pool.publish(block, &key);
        pool.release(block);
        pool.share(block);
        assert_eq!(pool.allocate(), None);
        pool.release(block);
        assert_eq!(pool.allocate(), Some(block));
    }

    #[test]
    fn equal_content_is_cached_once() {
        let mut pool = pool(2);
        let (a, b) = (pool.allocate().expect("free"), pool.allocate().expect("free"));
        let key = key(&pool, None, &[7, 8]);
        assert_eq!(pool.publish(a, &key), Published::Here);
        assert_eq!(pool.publish(b, &key), Published::Elsewhere(a));
    }

    #[test]
    fn a_prefix_outlives_its_continuation() {
        let mut pool = pool(2);
        let (a, b) = (pool.allocate().expect("free"), pool.allocate().expect("free"));
        let parent = key(&pool, None, &[1, 2]);
        let child = key(&pool, Some((parent.hash, a)), &[3, 4]);
        pool.publish(a, &parent);
        pool.publish(b, &child);
        pool.release(b);
        pool.release(a);
        pool.allocate();
        assert_eq!(pool.find(&parent), Some(a));
        assert_eq!(pool.find(&child), None);
    }

    #[test]
    #[should_panic(expected = "given back more often than taken")]
    fn giving_back_twice_is_noticed() {
        let mut pool = pool(1);
        let block = pool.allocate().expect("free");
        pool.release(block);
        pool.release(block);
    }

    #[test]
    #[should_panic(expected = "only cached blocks are shared")]
    fn sharing_a_private_block_is_noticed() {
        let mut pool = pool(1);
        let block = pool.allocate().expect("free");
        pool.share(block);
    }
}
