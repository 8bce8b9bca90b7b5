//! Where a sequence's keys and values lie: its blocks in order of position.

use crate::BlockId;

/// The blocks of one sequence. Position `p` lies in block `p / block_size` at offset `p % block_size`.
#[derive(Clone, Debug)]
pub(crate) struct BlockTable {
    blocks: Vec<BlockId>,
    block_size: u32,
}

impl BlockTable {
    pub(crate) fn new(block_size: u32) -> Self {
        Self { blocks: Vec::new(), block_size }
    }

    /// Positions that have a slot.
    pub(crate) fn capacity(&self) -> u32 {
        self.blocks.len() as u32 * self.block_size
    }

    pub(crate) fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    pub(crate) fn push(&mut self, block: BlockId) {
        self.blocks.push(block);
    }

    /// Puts another block with the same content in the place of one.
    pub(crate) fn replace(&mut self, index: usize, block: BlockId) -> BlockId {
        std::mem::replace(&mut self.blocks[index], block)
    }

    /// The KV slot of a position.
    pub(crate) fn slot(&self, position: u32) -> u32 {
        self.blocks[(position / self.block_size) as usize].0 * self.block_size + position % self.block_size
    }

    /// Empties the table, last block first.
    pub(crate) fn take_reversed(&mut self) -> impl Iterator<Item = BlockId> + use<> {
        std::mem::take(&mut self.blocks).into_iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_maps_to_its_block_and_offset() {
        let mut table = BlockTable::new(4);
        table.push(BlockId(7));
        table.push(BlockId(2));
        assert_eq!(table.capacity(), 8);
        assert_eq!(table.slot(0), 28);
        assert_eq!(table.slot(3), 31);
        assert_eq!(table.slot(5), 9);
    }

    #[test]
    fn blocks_are_given_back_last_first() {
        let mut table = BlockTable::new(1);
        (0..3).for_each(|block| table.push(BlockId(block)));
        assert_eq!(table.take_reversed().collect::<Vec<_>>(), [BlockId(2), BlockId(1), BlockId(0)]);
        assert_eq!(table.capacity(), 0);
    }
}
