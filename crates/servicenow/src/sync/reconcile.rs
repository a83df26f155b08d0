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

    /// How many records the instance counts, how many rows are stored, and what is remembered. After a poll, both
    /// sides may leave out what came just now.
    pub fn totals(&mut self, remote: u64, rows: u64, mut hidden: Vec<(Range, u64)>) {
        let expected = rows + hidden.iter().map(|(_, count)| count).sum::<u64>();
        if !self.polled {
            self.total = remote;
        }
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
mod tests;
