//! Against a pair of sets: an instance, some of whose records are hidden, and a store.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;
use crate::page::Version;
use crate::sync::compare::{Comparison, Shown};

/// An instance, whose records may be hidden, and a store.
#[derive(Clone, Debug, Default)]
struct Pair {
    instance: BTreeMap<String, bool>,
    store: BTreeSet<String>,
    hidden: Vec<(Range, u64)>,
    /// The instance's own order, if it is not that of the bytes.
    order: Option<fn(&str) -> String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Calls {
    counts: usize,
    sweeps: usize,
    looks: usize,
}

impl Pair {
    /// As many records as asked for, all of them shown and stored.
    fn of(records: usize) -> Pair {
        let id = |n: usize| format!("{:016x}", (n as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let instance: BTreeMap<_, _> = (0..records).map(|n| (id(n), true)).collect();
        Pair { store: instance.keys().cloned().collect(), instance, ..Pair::default() }
    }

    fn visible(&self) -> BTreeSet<String> {
        self.instance.iter().filter(|(_, shown)| **shown).map(|(id, _)| id.clone()).collect()
    }

    fn in_range(&self, range: &Range) -> Vec<(&String, bool)> {
        let Some(key) = self.order else {
            let from = range.lower.as_ref().map_or("", SysId::as_str).to_owned();
            let all = self.instance.range(from..).map(|(id, shown)| (id, *shown));
            return all
                .take_while(|(id, _)| range.upper.as_ref().is_none_or(|u| id.as_str() < u.as_str()))
                .collect();
        };
        let (lower, upper) = (range.lower.as_ref(), range.upper.as_ref());
        let (lower, upper) = (lower.map(|id| key(id.as_str())), upper.map(|id| key(id.as_str())));
        let is_within = |id: &str| {
            let id = key(id);
            lower.as_ref().is_none_or(|lower| id >= *lower) && upper.as_ref().is_none_or(|upper| id < *upper)
        };
        self.instance.iter().filter(|(id, _)| is_within(id)).map(|(id, shown)| (id, *shown)).collect()
    }

    /// Answers until all is done.
    fn reconcile(&mut self, page: u32) -> Calls {
        let mut reconcile = Reconcile::new(page, false);
        let (mut shown, mut calls) = (Vec::new(), Calls::default());
        for step in 0.. {
            assert!(step < 100_000, "it ends");
            match reconcile.question().clone() {
                Question::Totals => {
                    calls.counts += 1;
                    let (remote, rows) = (self.instance.len() as u64, self.store.len() as u64);
                    reconcile.totals(remote, rows, self.hidden.clone());
                }
                Question::Poll => reconcile.polled(),
                Question::Rows(range, length) => {
                    let mut counts = BTreeMap::new();
                    for id in self.store.iter().filter(|id| range.contains(id)) {
                        *counts.entry(id.chars().take(length).collect()).or_default() += 1;
                    }
                    reconcile.rows(counts.into_iter().collect(), &[]);
                }
                Question::Count(range) => {
                    assert!([&range.lower, &range.upper].into_iter().flatten().all(SysId::is_plain));
                    calls.counts += 1;
                    reconcile.counted(self.in_range(&range).len() as u64);
                }
                Question::Sweep(range) => {
                    let here = self.in_range(&range).into_iter();
                    let records: HashMap<_, _> = here
                        .filter(|(_, shown)| *shown)
                        .map(|(id, _)| (SysId::new(id.as_str()), Version::default()))
                        .collect();
                    calls.sweeps += records.len().div_ceil(page as usize).max(1);
                    reconcile.swept(records.len() as u64);
                    shown.push(Shown { range, records });
                }
                Question::Settle => {
                    let mut comparison = Comparison::new(std::mem::take(&mut shown));
                    let stored = self.store.iter().map(|id| SysId::new(id.as_str()));
                    stored.for_each(|id| comparison.stored(id, Version::default()));
                    for (id, _) in comparison.finish().into_iter().flat_map(|d| d.to_recheck()) {
                        calls.looks += 1;
                        match self.instance.get(id.as_str()) {
                            Some(true) => self.store.insert(id.as_str().to_owned()),
                            _ => self.store.remove(id.as_str()),
                        };
                    }
                    reconcile.settled();
                }
                Question::Remember(range, count) => {
                    self.hidden.retain(|(other, _)| !other.overlaps(&range));
                    if count > 0 {
                        self.hidden.push((range, count));
                    }
                    reconcile.remembered();
                }
                Question::Refill => panic!("it was not to"),
                Question::Done(total) => {
                    assert_eq!(total, self.instance.len() as u64);
                    return calls;
                }
            }
        }
        calls
    }
}

#[test]
fn where_nothing_differs_one_count_is_all() {
    let calls = Pair::of(5_000).reconcile(100);
    assert_eq!(calls, Calls { counts: 1, sweeps: 0, looks: 0 });
}

#[test]
fn few_missing_rows_cost_few_calls_however_large_the_table() {
    for records in [10_000, 100_000] {
        for missing in [1, 10, 100] {
            let mut pair = Pair::of(records);
            let all: Vec<_> = pair.store.iter().cloned().collect();
            all.iter().step_by(records / missing).for_each(|id| assert!(pair.store.remove(id)));
            let calls = pair.reconcile(100);
            assert_eq!(pair.store, pair.visible());
            let halvings = (records as f64 / 100.0).log2().ceil() as usize;
            assert_eq!(calls.looks, missing);
            assert!(
                calls.counts + calls.sweeps <= 3 + missing * (halvings + 2),
                "{missing} of {records}: {calls:?}"
            );
            assert_eq!(pair.reconcile(100), Calls { counts: 1, sweeps: 0, looks: 0 });
        }
    }
}

/// Once found, hidden records cost nothing more, and a new one costs no more than a missing row.
#[test]
fn hidden_records_are_looked_for_once() {
    let mut pair = Pair::of(50_000);
    for (n, (id, shown)) in pair.instance.iter_mut().enumerate() {
        if n % 7 == 0 {
            *shown = false;
            pair.store.remove(id);
        }
    }
    pair.reconcile(100);
    assert_eq!(pair.hidden.iter().map(|(_, count)| count).sum::<u64>(), 50_000u64.div_ceil(7));
    assert_eq!(pair.reconcile(100), Calls { counts: 1, sweeps: 0, looks: 0 });
    pair.instance.insert("8888".to_owned(), false);
    let calls = pair.reconcile(100);
    assert!(calls.counts <= 14 && calls.sweeps <= 3 && calls.looks == 0, "{calls:?}");
    assert_eq!(pair.reconcile(100), Calls { counts: 1, sweeps: 0, looks: 0 });
}

/// Ranges are not cut through where something is remembered, though their middles are elsewhere by now.
#[test]
fn what_is_remembered_holds_when_the_table_has_changed_its_shape() {
    let mut pair = Pair::of(20_000);
    for (n, (id, shown)) in pair.instance.iter_mut().enumerate() {
        if n % 7 == 0 {
            *shown = false;
            pair.store.remove(id);
        }
    }
    pair.reconcile(100);
    let goes = |id: &str| id < "6" || (id > "a" && id.ends_with(['1', '3', '5']));
    pair.instance.retain(|id, shown| !*shown || !goes(id));
    pair.store.retain(|id| !goes(id));
    assert_eq!(pair.reconcile(100).counts, 1);
    pair.instance.insert("8888".to_owned(), false);
    let calls = pair.reconcile(100);
    assert!(calls.counts <= 14 && calls.sweeps <= 3 && calls.looks == 0, "{calls:?}");
}

#[test]
fn a_range_remembered_as_a_whole_is_looked_into_part_by_part() {
    let mut pair = Pair::of(10_000);
    let gone: Vec<_> = pair.store.iter().filter(|id| id.starts_with('3')).cloned().collect();
    gone.iter().step_by(2).for_each(|id| {
        pair.instance.insert(id.clone(), false);
        pair.store.remove(id);
    });
    let sixteenths = Range::partition(16);
    pair.hidden.push((sixteenths[3].clone(), gone.len().div_ceil(2) as u64));
    assert_eq!(pair.reconcile(100), Calls { counts: 1, sweeps: 0, looks: 0 });
    pair.store.remove(&gone[1]);
    pair.reconcile(100);
    assert_eq!(pair.store, pair.visible());
    assert!(pair.hidden.len() > 3, "{:?}", pair.hidden);
    assert_eq!(pair.reconcile(100), Calls { counts: 1, sweeps: 0, looks: 0 });
}

#[test]
fn a_memory_that_is_wrong_is_put_right() {
    let mut pair = Pair::of(10_000);
    pair.hidden = Range::partition(16).into_iter().map(|range| (range, 3)).collect();
    pair.reconcile(100);
    assert_eq!((pair.hidden.clone(), pair.store.clone()), (Vec::new(), pair.visible()));
}

#[test]
fn rows_set_apart_are_counted_nowhere() {
    let mut reconcile = Reconcile::new(10, false);
    reconcile.totals(40, 39, Vec::new());
    reconcile.polled();
    reconcile.totals(40, 39, Vec::new());
    let apart = ["A1", "a2", "c9"].map(SysId::new);
    reconcile.rows(vec![("a".to_owned(), 12), ("B".to_owned(), 15), ("c".to_owned(), 15)], &apart);
    let first = Range { lower: None, upper: Some(SysId::new("c")) };
    assert_eq!(reconcile.question(), &Question::Count(first));
    reconcile.counted(25);
    let second = Range { lower: Some(SysId::new("c")), upper: None };
    assert!(matches!(reconcile.question(), Question::Rows(range, _) if *range == second), "{reconcile:?}");
}

#[test]
fn much_that_differs_is_read_again() {
    assert!(
        is_much(30_000, 100_000, 1_000) && !is_much(20_000, 100_000, 1_000) && !is_much(9_000, 9_000, 1_000)
    );
    let mut reconcile = Reconcile::new(1_000, true);
    reconcile.totals(100_000, 60_000, Vec::new());
    reconcile.polled();
    reconcile.totals(100_000, 60_000, Vec::new());
    assert_eq!(reconcile.question(), &Question::Refill);
}

/// `_` before everything else, accents like none.
fn another(id: &str) -> String {
    id.to_ascii_uppercase().replace(['Ä', 'ä'], "A").replace('_', " ")
}

fn backwards(id: &str) -> String {
    id.chars().map(|c| char::from_u32(0x1_0000 - u32::from(c)).unwrap_or('x')).collect()
}

fn ids() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[0-9a-f]{8}",
        2 => "[0-9a-fA-F]{1,6}",
        2 => "0{20}[0-9]{4}",
        1 => "[ -~]{1,5}",
    ]
}

fn pairs() -> impl Strategy<Value = (Pair, Vec<(String, u8)>)> {
    let records = prop::collection::btree_map(ids(), (0u8..8).prop_map(|n| n > 0), 0..300);
    (records, prop::collection::vec((ids(), 0u8..4), 0..30)).prop_map(|(mut instance, changes)| {
        // To the instance identifiers are the same that differ in case or trailing blanks only.
        let mut met = BTreeSet::new();
        instance.retain(|id, _| met.insert(id.trim_end().to_ascii_lowercase()));
        let order = Some((|id: &str| id.to_ascii_uppercase()) as fn(&str) -> String);
        let mut pair = Pair { instance, order, ..Pair::default() };
        pair.store = pair.visible();
        (pair, changes)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// What only came or only went is found, whatever is hidden and remembered.
    #[test]
    fn what_came_is_found_and_what_went_is_found(
        (mut pair, changes) in pairs(),
        came in any::<bool>(),
        page in 1u32..40,
        coarse in 1usize..17,
    ) {
        {
            let hidden = |range: &Range| pair.in_range(range).iter().filter(|(_, shown)| !shown).count() as u64;
            pair.hidden = Range::partition(coarse).into_iter().map(|r| (hidden(&r), r)).map(|(n, r)| (r, n))
                .filter(|(_, n)| *n > 0).collect();
        }
        for (id, kind) in changes {
            if !came {
                // Something that is there is gone, hidden or not.
                let gone = pair.instance.range(id.clone()..).next().map(|(id, _)| id.clone());
                gone.map(|id| pair.instance.remove(&id));
            } else if !pair.instance.keys().any(|other| other.trim_end().eq_ignore_ascii_case(id.trim_end())) {
                pair.instance.insert(id, kind > 0);
            }
        }
        pair.reconcile(page);
        prop_assert_eq!(&pair.store, &pair.visible());
        prop_assert_eq!(pair.reconcile(page).counts, 1);
    }

    /// An instance that sorts in another way costs calls, but nothing stays wrong that counts show.
    #[test]
    fn another_order_of_identifiers_does_no_harm(
        (mut pair, changes) in pairs(),
        order in 0usize..2,
        page in 1u32..40,
    ) {
        pair.order = Some([another as fn(&str) -> String, backwards][order]);
        for (id, _) in changes {
            pair.instance.insert(id, true);
        }
        pair.reconcile(page);
        prop_assert!(pair.store.is_subset(&pair.visible()));
        pair.reconcile(page);
    }
}
