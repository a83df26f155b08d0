//! Finding out with few calls where a store differs from an instance: counting, and halving where counts differ.
//!
//! An instance counts records that it does not show, because access control takes them away row by row. How many
//! of which range is remembered from one time to the next, so that only what has changed since is looked into.
//! Where a count is not what the store and the memory make of it, the range is halved; of two halves one is
//! counted, the other follows. A range of about a page is read (`sys_id`s only) and compared; what differs there
//! is looked up again; what the instance still counts and does not show is hidden, and remembered.
//!
//! Records that came and others that went in one range make up for one another here. [`super::scrub`] finds them.

use std::collections::BTreeMap;

use super::range::{Range, compare};
use crate::value::SysId;

/// A table of which more than so many pages differ is read again as a whole, if that is much of it.
const MANY_PAGES: u64 = 20;
/// How much of a table is much: one part in so many.
const MUCH: u64 = 4;
/// Ranges are compared with the store when so many pages have been read.
const COMPARED_PAGES: u64 = 10;
/// How finely the store is asked for its rows: several counts to a page.
const COUNTS_PER_PAGE: u64 = 4;
/// Longer prefixes of identifiers are not counted by; such ranges are read, however large.
const LONGEST_PREFIX: usize = 64;

/// Whether so many records are more than are read one page after the other.
pub fn is_many(records: u64, page: u64) -> bool {
    records > MANY_PAGES * page
}

/// Whether so many records of a table of so many are too many to be looked at one by one.
pub fn is_much(changed: u64, of: u64, page: u64) -> bool {
    is_many(changed, page) && changed > of / MUCH
}

/// What has to be known, or done, next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// How many records the instance has, how many rows the store, and which hidden records are remembered:
    /// [`Reconcile::totals`].
    Totals,
    /// What has changed since the last poll: [`Reconcile::polled`].
    Poll,
    /// How many rows of a range the store has, by prefixes of this length: [`Reconcile::rows`].
    Rows(Range, usize),
    /// How many records of a range the instance has: [`Reconcile::counted`].
    Count(Range),
    /// Which records of a range the instance shows: [`Reconcile::swept`].
    Sweep(Range),
    /// What of all that was shown since the last time is not as it is stored; it has to be looked up, and the
    /// store brought in line: [`Reconcile::settled`].
    Settle,
    /// Nothing more: so many records of a range are hidden. [`Reconcile::remembered`].
    Remember(Range, u64),
    /// Nothing more: too much differs, everything is to be read again.
    Refill,
    /// Nothing more: the store has what the instance shows, out of so many records that it counts.
    Done(u64),
}

/// A comparison under way. It says what it wants to know, and goes on when it is told; to be asked again changes
/// nothing.
#[derive(Debug)]
pub struct Reconcile {
    page: u64,
    may_refill: bool,
    polled: bool,
    total: u64,
    /// In order.
    hidden: Vec<(Range, u64)>,
    /// What is still to be looked at, the next one last.
    parts: Vec<Part>,
    /// What has been read and not yet compared.
    swept: Vec<Swept>,
    to_remember: Vec<(Range, u64)>,
    question: Question,
}

/// A range, as both sides count it.
#[derive(Clone, Debug)]
struct Part {
    range: Range,
    remote: u64,
    /// The store's rows by prefix, in order.
    counts: Vec<(String, u64)>,
    /// The length of the prefixes.
    length: usize,
}

#[derive(Debug)]
struct Swept {
    range: Range,
    remote: u64,
    shown: u64,
}

impl Part {
    fn rows(&self) -> u64 {
        self.counts.iter().map(|(_, rows)| rows).sum()
    }
}

impl Reconcile {
    /// Begins. A range of up to `page` records is read instead of halved; without `may_refill` everything is
    /// looked into, however much differs.
    pub fn new(page: u32, may_refill: bool) -> Self {
        Self {
            page: u64::from(page.max(1)),
            may_refill,
            polled: false,
            total: 0,
            hidden: Vec::new(),
            parts: Vec::new(),
            swept: Vec::new(),
            to_remember: Vec::new(),
            question: Question::Totals,
        }
    }

    /// What is wanted next.
    pub fn question(&self) -> &Question {
        &self.question
    }

    /// How many records the instance counts, how many rows are stored, and what is remembered.
    pub fn totals(&mut self, remote: u64, rows: u64, mut hidden: Vec<(Range, u64)>) {
        let expected = rows + hidden.iter().map(|(_, count)| count).sum::<u64>();
        self.total = remote;
        hidden.sort_by(|(a, _), (b, _)| match (&a.lower, &b.lower) {
            (Some(a), Some(b)) => compare(a.as_str(), b.as_str()),
            (a, b) => a.is_some().cmp(&b.is_some()),
        });
        self.hidden = hidden;
        self.question = if remote == expected {
            Question::Done(remote)
        } else if !self.polled {
            Question::Poll
        } else if self.may_refill && is_much(remote.abs_diff(expected), remote.max(rows), self.page) {
            Question::Refill
        } else {
            let wanted = rows.saturating_mul(COUNTS_PER_PAGE) / self.page;
            let length = (0..).find(|digits| 16u64.saturating_pow(*digits) >= wanted).unwrap_or(0) as usize;
            let all = Part { range: Range::default(), remote, counts: Vec::new(), length };
            self.parts = vec![all];
            Question::Rows(Range::default(), length)
        };
    }

    /// A poll has been made.
    pub fn polled(&mut self) {
        self.polled = true;
        self.question = Question::Totals;
    }

    /// How many rows of the range are stored, by prefix, and which of all stored rows are not to be counted.
    pub fn rows(&mut self, counts: Vec<(String, u64)>, apart: &[SysId]) {
        if let Some(part) = self.parts.last_mut() {
            let mut sorted: BTreeMap<String, u64> = BTreeMap::new();
            for (prefix, rows) in counts {
                *sorted.entry(prefix.to_ascii_uppercase()).or_default() += rows;
            }
            for id in apart.iter().filter(|id| part.range.contains(id.as_str())) {
                let prefix: String = id.as_str().to_ascii_uppercase().chars().take(part.length).collect();
                sorted.entry(prefix).and_modify(|rows| *rows = rows.saturating_sub(1));
            }
            let small = |(prefix, rows): (String, u64)| (prefix.to_ascii_lowercase(), rows);
            part.counts = sorted.into_iter().map(small).collect();
        }
        self.go_on();
    }

    /// How many records of the range the instance has. The rest of what was halved has the rest.
    pub fn counted(&mut self, remote: u64) {
        if let [.., second, first] = self.parts.as_mut_slice() {
            first.remote = remote;
            second.remote = second.remote.saturating_sub(remote);
        }
        self.go_on();
    }

    /// How many records of the range were shown.
    pub fn swept(&mut self, shown: u64) {
        if let Some(part) = self.parts.pop() {
            self.swept.push(Swept { range: part.range, remote: part.remote, shown });
        }
        match self.swept.iter().map(|swept| swept.shown).sum::<u64>() >= COMPARED_PAGES * self.page {
            true => self.question = Question::Settle,
            false => self.go_on(),
        }
    }

    /// What was shown has been compared, and what differed has been looked up.
    pub fn settled(&mut self) {
        for Swept { range, remote, shown } in std::mem::take(&mut self.swept) {
            let hidden = remote.saturating_sub(shown);
            if self.remembered_of(&range) != (hidden, true) {
                self.to_remember.push((range, hidden));
            }
        }
        self.go_on();
    }

    /// The number of hidden records has been kept.
    pub fn remembered(&mut self) {
        self.to_remember.pop();
        self.go_on();
    }

    /// Finds the next question.
    fn go_on(&mut self) {
        loop {
            if let Some((range, hidden)) = self.to_remember.last() {
                self.question = Question::Remember(range.clone(), *hidden);
                return;
            }
            let Some(part) = self.parts.last() else {
                let done = Question::Done(self.total);
                self.question = if self.swept.is_empty() { done } else { Question::Settle };
                return;
            };
            let (remembered, is_whole) = self.remembered_of(&part.range);
            let rows = part.rows();
            if part.remote == rows + remembered && is_whole {
                self.parts.pop();
                continue;
            }
            let is_small = rows.min(part.remote) <= self.page;
            if is_small || part.length > LONGEST_PREFIX {
                self.question = Question::Sweep(part.range.clone());
                return;
            }
            let cut = self.cut_of(part);
            let Some(part) = self.parts.pop() else { return };
            self.question = match cut {
                Some(at) => {
                    let (first, second) = halve(part, at);
                    let question = Question::Count(first.range.clone());
                    self.parts.extend([second, first]);
                    question
                }
                None => {
                    let part = Part { length: part.length + 2, ..part };
                    let question = Question::Rows(part.range.clone(), part.length);
                    self.parts.push(part);
                    question
                }
            };
            return;
        }
    }

    /// How many hidden records are remembered of a range, and whether that is all: of a remembered range that
    /// lies in it only in part it is not known where they are.
    fn remembered_of(&self, range: &Range) -> (u64, bool) {
        let ends_before = |(other, _): &(Range, u64)| match (&other.upper, &range.lower) {
            (Some(upper), Some(lower)) => compare(upper.as_str(), lower.as_str()).is_le(),
            _ => false,
        };
        let from = self.hidden.partition_point(ends_before);
        let overlapping = self.hidden[from..].iter().take_while(|(other, _)| other.overlaps(range));
        overlapping.fold((0, true), |(sum, is_whole), (other, count)| match range.covers(other) {
            true => (sum + count, is_whole),
            false => (sum, false),
        })
    }

    /// Where to halve a part: between two of its counts, so that about as many rows are on either side, and not
    /// within a remembered range if that can be helped.
    fn cut_of(&self, part: &Part) -> Option<usize> {
        let rows = part.rows();
        let mut before = 0;
        let mut best: Option<((bool, u64), usize)> = None;
        for (at, pair) in part.counts.windows(2).enumerate() {
            before += pair[0].1;
            let bound = &pair[1].0;
            if !part.range.is_cut_by(&SysId::new(bound.as_str())) {
                continue;
            }
            let rank = (self.is_within_remembered(bound), rows.abs_diff(2 * before));
            if best.is_none_or(|(other, _)| rank < other) {
                best = Some((rank, at + 1));
            }
        }
        best.map(|(_, at)| at)
    }

    fn is_within_remembered(&self, bound: &str) -> bool {
        let begins_before = |(range, _): &(Range, u64)| {
            range.lower.as_ref().is_none_or(|lower| compare(lower.as_str(), bound).is_lt())
        };
        let at = self.hidden.partition_point(begins_before);
        at.checked_sub(1).is_some_and(|at| !self.hidden[at].0.ends_by(bound))
    }
}

/// Cuts a part before one of its counts. How many records the first half has is not known yet.
fn halve(mut part: Part, at: usize) -> (Part, Part) {
    let counts = part.counts.split_off(at);
    let bound = counts.first().map(|(prefix, _)| SysId::new(prefix.as_str()));
    let first = Range { lower: part.range.lower, upper: bound.clone() };
    let second = Range { lower: bound, upper: part.range.upper };
    (
        Part { range: first, remote: 0, counts: part.counts, length: part.length },
        Part { range: second, remote: part.remote, counts, length: part.length },
    )
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::super::compare::{Comparison, Shown};
    use super::*;
    use crate::page::Version;

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
                lower.as_ref().is_none_or(|lower| id >= *lower)
                    && upper.as_ref().is_none_or(|upper| id < *upper)
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
        assert!(
            matches!(reconcile.question(), Question::Rows(range, _) if *range == second),
            "{reconcile:?}"
        );
    }

    #[test]
    fn much_that_differs_is_read_again() {
        assert!(
            is_much(30_000, 100_000, 1_000)
                && !is_much(20_000, 100_000, 1_000)
                && !is_much(9_000, 9_000, 1_000)
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
}
