//! Blocks in order of last use, as a list threaded through two arrays.
//!
//! Every operation is constant time and allocates nothing: a block is revived out of the middle of the list whenever a
//! prefix is hit again, so a queue with a scan would not do.

use crate::BlockId;

const NONE: u32 = u32::MAX;

/// A doubly linked list over block ids, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct LruList {
    older: Vec<u32>,
    newer: Vec<u32>,
    linked: Vec<bool>,
    oldest: u32,
    newest: u32,
    len: u32,
}

impl LruList {
    /// An empty list that can hold blocks `0..num_blocks`.
    pub(crate) fn new(num_blocks: u32) -> Self {
        let size = num_blocks as usize;
        Self {
            older: vec![NONE; size],
            newer: vec![NONE; size],
            linked: vec![false; size],
            oldest: NONE,
            newest: NONE,
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.linked[block.0 as usize]
    }

    /// Adds a block as the most recently used.
    pub(crate) fn push_newest(&mut self, block: BlockId) {
        let index = block.0 as usize;
        assert!(!self.linked[index], "invariant 1: {block:?} is already evictable");
        self.linked[index] = true;
        self.older[index] = self.newest;
        self.newer[index] = NONE;
        match self.newest {
            NONE => self.oldest = block.0,
            newest => self.newer[newest as usize] = block.0,
        }
        self.newest = block.0;
        self.len += 1;
    }

    /// Takes out the least recently used block.
    pub(crate) fn pop_oldest(&mut self) -> Option<BlockId> {
        if self.oldest == NONE {
            return None;
        }
        let block = BlockId(self.oldest);
        self.remove(block);
        Some(block)
    }

    /// Takes a block out of wherever it is.
    pub(crate) fn remove(&mut self, block: BlockId) {
        let index = block.0 as usize;
        assert!(self.linked[index], "invariant 1: {block:?} is not evictable");
        let (older, newer) = (self.older[index], self.newer[index]);
        match older {
            NONE => self.oldest = newer,
            older => self.newer[older as usize] = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.older[newer as usize] = older,
        }
        self.linked[index] = false;
        self.len -= 1;
    }

    /// All blocks, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        let first = (self.oldest != NONE).then_some(BlockId(self.oldest));
        std::iter::successors(first, |block| {
            let newer = self.newer[block.0 as usize];
            (newer != NONE).then_some(BlockId(newer))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(list: &LruList) -> Vec<u32> {
        list.iter().map(|block| block.0).collect()
    }

    #[test]
    fn blocks_leave_in_the_order_they_came() {
        let mut list = LruList::new(4);
        for block in [2, 0, 3] {
            list.push_newest(BlockId(block));
        }
        assert_eq!(list.pop_oldest(), Some(BlockId(2)));
        assert_eq!(ids(&list), [0, 3]);
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn a_block_can_leave_from_either_end_or_the_middle() {
        let mut list = LruList::new(5);
        (0..5).for_each(|block| list.push_newest(BlockId(block)));
        list.remove(BlockId(2));
        list.remove(BlockId(0));
        list.remove(BlockId(4));
        assert_eq!(ids(&list), [1, 3]);
        list.push_newest(BlockId(0));
        assert_eq!(ids(&list), [1, 3, 0]);
        assert!(!list.contains(BlockId(2)));
    }

    #[test]
    fn an_emptied_list_starts_over() {
        let mut list = LruList::new(1);
        list.push_newest(BlockId(0));
        assert_eq!(list.pop_oldest(), Some(BlockId(0)));
        assert_eq!(list.pop_oldest(), None);
        list.push_newest(BlockId(0));
        assert_eq!(ids(&list), [0]);
    }
}
