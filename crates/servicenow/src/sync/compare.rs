//! What an instance shows of a range beside what a store has of it.

use std::collections::HashMap;

use super::range::Range;
use super::store::StoredRecords;
use crate::page::{Rows, Version};
use crate::value::SysId;

/// What an instance showed of a range, all of it.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// The range.
    pub range: Range,
    /// The records.
    pub records: HashMap<SysId, Version>,
}

/// What has been shown of a range so far, handed over part by part, so that memory does not grow with the range.
#[derive(Clone, Debug)]
pub struct Gathering {
    /// What has not been handed over.
    rest: Shown,
}

impl Gathering {
    /// Nothing has been shown of the range yet.
    pub fn new(range: Range) -> Self {
        Self { rest: Shown { range, records: HashMap::new() } }
    }

    /// Takes note of rows.
    pub fn add(&mut self, rows: &Rows) {
        let records = (0..rows.len()).map(|row| (SysId::new(rows.id(row)), rows.version(row)));
        self.rest.records.extend(records);
    }

    /// How many records have been shown and not been handed over.
    pub fn len(&self) -> usize {
        self.rest.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rest.records.is_empty()
    }

    /// Where what has not been handed over begins.
    pub fn from(&self) -> Option<&SysId> {
        self.rest.range.lower.as_ref()
    }

    /// Hands over what comes before a record, up to which everything has been shown.
    pub fn take_before(&mut self, last: &SysId) -> Shown {
        let range = Range { lower: Some(last.clone()), upper: self.rest.range.upper.clone() };
        let mut rest = Shown { range, records: HashMap::new() };
        // The record itself lies in the rest.
        rest.records.extend(self.rest.records.remove_entry(last));
        std::mem::swap(&mut self.rest, &mut rest);
        rest.range.upper = Some(last.clone());
        rest
    }

    /// Hands over the rest: everything has been shown.
    pub fn take_rest(self) -> Shown {
        self.rest
    }
}

/// How a store differs from what an instance showed of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Shown and not stored.
    pub missing: Vec<SysId>,
    /// Stored and not shown.
    pub extra: StoredRecords,
    /// Shown in another version than the store's, which is given.
    pub differing: StoredRecords,
}

impl Difference {
    /// The records to be looked up, each in the store's version; of one that is not stored that is none.
    pub fn to_recheck(self) -> impl Iterator<Item = (SysId, Version)> {
        let missing = self.missing.into_iter().map(|id| (id, Version::default()));
        self.extra.into_iter().chain(self.differing).chain(missing)
    }
}

/// A comparison under way: it is told of every stored record once, in any order.
#[derive(Debug)]
pub struct Comparison {
    /// In the order of the ranges, each with its place in the order they were given in.
    shown: Vec<(usize, Shown)>,
    differences: Vec<Difference>,
}

impl Comparison {
    /// Begins to compare these ranges, no two of which overlap.
    pub fn new(shown: Vec<Shown>) -> Self {
        let differences = vec![Difference::default(); shown.len()];
        let mut shown: Vec<_> = shown.into_iter().enumerate().collect();
        shown.sort_by(|(_, a), (_, b)| match (&a.range.lower, &b.range.lower) {
            (Some(a), Some(b)) => super::range::compare(a.as_str(), b.as_str()),
            (a, b) => a.is_some().cmp(&b.is_some()),
        });
        Self { shown, differences }
    }

    /// Takes note of a stored record; those outside all ranges are passed over.
    pub fn stored(&mut self, id: SysId, version: Version) {
        let at = self.shown.partition_point(|(_, shown)| !shown.range.begins_after(id.as_str()));
        let Some((place, shown)) = at.checked_sub(1).and_then(|at| self.shown.get_mut(at)) else { return };
        if shown.range.ends_by(id.as_str()) {
            return;
        }
        let difference = &mut self.differences[*place];
        match shown.records.remove(&id) {
            Some(same) if same == version => {}
            Some(_) => difference.differing.push((id, version)),
            None => difference.extra.push((id, version)),
        }
    }

    /// The differences, in the order the ranges were given in.
    pub fn finish(mut self) -> Vec<Difference> {
        for (place, shown) in self.shown {
            self.differences[place].missing = shown.records.into_keys().collect();
        }
        self.differences
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the plain definition.
        #[test]
        fn a_comparison_finds_what_differs_in_each_range(
            stored in prop::collection::btree_map("[0-9a-fA-F]{1,3}", 0i64..3, 0..60),
            shown in prop::collection::btree_map("[0-9a-fA-F]{1,3}", 0i64..3, 0..60),
            ranges in 1usize..6,
            left_out in 0usize..6,
        ) {
            let version = |count: i64| Version { updated_on: None, mod_count: Some(count) };
            let of = |range: &Range, all: &BTreeMap<String, i64>| -> HashMap<SysId, Version> {
                let within = all.iter().filter(|(id, _)| range.contains(id));
                within.map(|(id, count)| (SysId::new(id.as_str()), version(*count))).collect()
            };
            let mut ranges = Range::partition(ranges);
            if left_out < ranges.len() {
                ranges.remove(left_out);
            }
            ranges.reverse();
            let given = ranges.iter().map(|range| Shown { range: range.clone(), records: of(range, &shown) });
            let mut comparison = Comparison::new(given.collect());
            stored.iter().for_each(|(id, count)| comparison.stored(SysId::new(id.as_str()), version(*count)));
            for (range, found) in ranges.iter().zip(comparison.finish()) {
                let (stored, shown) = (of(range, &stored), of(range, &shown));
                for id in stored.keys().chain(shown.keys()) {
                    let (mine, theirs) = (stored.get(id), shown.get(id));
                    prop_assert_eq!(found.missing.contains(id), mine.is_none());
                    prop_assert_eq!(found.extra.iter().any(|(other, _)| other == id), theirs.is_none());
                    let differs = mine.is_some() && theirs.is_some() && mine != theirs;
                    prop_assert_eq!(found.differing.iter().any(|(other, _)| other == id), differs);
                }
                prop_assert_eq!(found.to_recheck().count(),
                    stored.iter().filter(|(id, v)| shown.get(id) != Some(v)).count()
                        + shown.keys().filter(|id| !stored.contains_key(id)).count());
            }
        }
    }
}
