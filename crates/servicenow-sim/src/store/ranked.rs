//! A sorted set that answers "how many entries are below this key" without walking them.
//!
//! Keyset pages and their `X-Total-Count` come from it: a rank is one binary search plus a sum over chunk lengths,
//! a thousand additions at a million rows.

use std::ops::Bound;

/// The largest number of entries of a chunk before it is split.
const CHUNK: usize = 1024;

/// A sorted set in chunks.
#[derive(Debug, Clone)]
pub(crate) struct RankedSet<K> {
    chunks: Vec<Vec<K>>,
    len: usize,
}

impl<K> Default for RankedSet<K> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<K: Ord + Copy> RankedSet<K> {
    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn chunk_of(&self, key: &K) -> usize {
        self.chunks
            .partition_point(|c| c.last().is_some_and(|last| last < key))
            .min(self.chunks.len().max(1) - 1)
    }

    /// Adds an entry; an entry already there stays single.
    pub(crate) fn insert(&mut self, key: K) {
        if self.chunks.is_empty() {
            self.chunks.push(vec![key]);
            self.len = 1;
            return;
        }
        let at = self.chunk_of(&key);
        let chunk = &mut self.chunks[at];
        if let Err(pos) = chunk.binary_search(&key) {
            chunk.insert(pos, key);
            self.len += 1;
            if chunk.len() > CHUNK {
                let tail = chunk.split_off(CHUNK / 2);
                self.chunks.insert(at + 1, tail);
            }
        }
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, key: &K) {
        if self.chunks.is_empty() {
            return;
        }
        let at = self.chunk_of(key);
        let chunk = &mut self.chunks[at];
        if let Ok(pos) = chunk.binary_search(key) {
            chunk.remove(pos);
            self.len -= 1;
            if chunk.is_empty() {
                self.chunks.remove(at);
            }
        }
    }

    /// The number of entries below the start of a range with this lower bound.
    pub(crate) fn rank_from(&self, lower: Bound<&K>) -> usize {
        match lower {
            Bound::Unbounded => 0,
            Bound::Included(key) => self.count_where(|k| k < key),
            Bound::Excluded(key) => self.count_where(|k| k <= key),
        }
    }

    /// The number of entries up to the end of a range with this upper bound.
    pub(crate) fn rank_to(&self, upper: Bound<&K>) -> usize {
        match upper {
            Bound::Unbounded => self.len,
            Bound::Included(key) => self.count_where(|k| k <= key),
            Bound::Excluded(key) => self.count_where(|k| k < key),
        }
    }

    fn count_where(&self, below: impl Fn(&K) -> bool) -> usize {
        let at = self.chunks.partition_point(|c| c.last().is_some_and(&below));
        let full: usize = self.chunks[..at].iter().map(Vec::len).sum();
        full + self.chunks.get(at).map_or(0, |c| c.partition_point(&below))
    }

    /// Walks the entries from a rank upward.
    pub(crate) fn iter_from(&self, rank: usize) -> impl Iterator<Item = K> + '_ {
        let mut skip = rank;
        let mut first = self.chunks.len();
        for (at, chunk) in self.chunks.iter().enumerate() {
            if skip < chunk.len() {
                first = at;
                break;
            }
            skip -= chunk.len();
        }
        self.chunks[first..].iter().flatten().copied().skip(skip)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_ranked_set_behaves_as_a_sorted_set(ops in prop::collection::vec((any::<bool>(), 0u16..3000), 0..4000)) {
            let mut ranked = RankedSet::default();
            let mut model = BTreeSet::new();
            for (add, key) in ops {
                if add { ranked.insert(key); model.insert(key); } else { ranked.remove(&key); model.remove(&key); }
            }
            prop_assert_eq!(ranked.len(), model.len());
            prop_assert!(ranked.iter_from(0).eq(model.iter().copied()));
            for probe in [0u16, 7, 500, 1500, 2999] {
                prop_assert_eq!(ranked.rank_from(Bound::Included(&probe)), model.range(..probe).count());
                prop_assert_eq!(ranked.rank_from(Bound::Excluded(&probe)), model.range(..=probe).count());
                prop_assert!(ranked.iter_from(usize::from(probe)).eq(model.iter().copied().skip(usize::from(probe))));
            }
        }
    }
}
