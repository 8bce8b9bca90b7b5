//! Where live sequences are kept: queues hold small keys, so a sequence moves between them without being moved.

use std::ops::{Index, IndexMut};

use crate::sequence::Sequence;

const REMOVED: &str = "a key is valid until its sequence is removed";

/// Where a live sequence is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SequenceKey {
    place: usize,
    /// Which of the sequences that were there one after the other.
    tenant: u64,
}

/// All live sequences. A key is valid from `insert` to `remove`.
#[derive(Default)]
pub(crate) struct SequenceTable {
    places: Vec<Option<(u64, Sequence)>>,
    vacant: Vec<usize>,
    tenants: u64,
}

impl SequenceTable {
    pub(crate) fn insert(&mut self, sequence: Sequence) -> SequenceKey {
        self.tenants += 1;
        let tenant = self.tenants;
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some((tenant, sequence));
        SequenceKey { place, tenant }
    }

    /// The sequence, if it is still there.
    pub(crate) fn get(&self, key: SequenceKey) -> Option<&Sequence> {
        let (tenant, sequence) = self.places[key.place].as_ref()?;
        (*tenant == key.tenant).then_some(sequence)
    }

    pub(crate) fn remove(&mut self, key: SequenceKey) -> Sequence {
        assert!(self.get(key).is_some(), "{REMOVED}");
        self.vacant.push(key.place);
        self.places[key.place].take().expect(REMOVED).1
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.vacant.len()
    }
}

impl Index<SequenceKey> for SequenceTable {
    type Output = Sequence;

    fn index(&self, key: SequenceKey) -> &Sequence {
        self.get(key).expect(REMOVED)
    }
}

impl IndexMut<SequenceKey> for SequenceTable {
    fn index_mut(&mut self, key: SequenceKey) -> &mut Sequence {
        let (tenant, sequence) = self.places[key.place].as_mut().expect(REMOVED);
        assert!(*tenant == key.tenant, "{REMOVED}");
        sequence
    }
}
