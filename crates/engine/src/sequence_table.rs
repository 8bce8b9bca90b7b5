//! Where live sequences are kept: queues hold small keys, so a sequence moves between them without being moved.

use std::ops::{Index, IndexMut};

use crate::sequence::Sequence;

/// Where a live sequence is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SequenceKey(usize);

/// All live sequences. A key is valid from `insert` to `remove`.
#[derive(Default)]
pub(crate) struct SequenceTable {
    places: Vec<Option<Sequence>>,
    vacant: Vec<usize>,
}

impl SequenceTable {
    pub(crate) fn insert(&mut self, sequence: Sequence) -> SequenceKey {
        match self.vacant.pop() {
            Some(place) => {
                self.places[place] = Some(sequence);
                SequenceKey(place)
            }
            None => {
                self.places.push(Some(sequence));
                SequenceKey(self.places.len() - 1)
            }
        }
    }

    pub(crate) fn remove(&mut self, key: SequenceKey) -> Sequence {
        self.vacant.push(key.0);
        self.places[key.0].take().expect("a key is valid until its sequence is removed")
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.vacant.len()
    }
}

impl Index<SequenceKey> for SequenceTable {
    type Output = Sequence;

    fn index(&self, key: SequenceKey) -> &Sequence {
        self.places[key.0].as_ref().expect("a key is valid until its sequence is removed")
    }
}

impl IndexMut<SequenceKey> for SequenceTable {
    fn index_mut(&mut self, key: SequenceKey) -> &mut Sequence {
        self.places[key.0].as_mut().expect("a key is valid until its sequence is removed")
    }
}
