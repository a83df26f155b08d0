//! Reading a range of `sys_id`s to its end, and knowing when the end has been reached.
//!
//! An instance applies the limit of a page before access control removes rows, so a page may be short, or
//! empty, while more rows follow. A sweep therefore ends only on the instance's own count: when nothing that
//! matches lies beyond what has been looked at. It moves by key (`sys_id>last`), which rows that come and go
//! cannot disturb. Where a page shows no row to go on from, it passes over what is hidden by offset as long as nothing
//! comes or goes there; else by keys of its own making ([`Range::part`]), up to which no more is counted than one page
//! takes. So a busy table ends, too.

use crate::error::Result;
use crate::query::{Op, Query, Term};
use crate::sync::range::Range;
use crate::value::SysId;

/// What a sweep has to know of a page.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The number of rows in the page.
    pub rows: usize,
    /// The `sys_id` of its last row.
    pub last: Option<SysId>,
    /// How many records match the page's query, if they were counted.
    pub total: Option<u64>,
}

/// Whether a sweep has to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another page is needed.
    More,
    /// Nothing lies beyond what has been looked at.
    Done,
}

/// How often a stretch is begun anew that cannot be cut; then it is gone on with by offset, whatever comes and goes.
const RESTARTS: u32 = 3;

/// The position of a sweep through a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    range: Range,
    after: Option<SysId>,
    /// A key of our own, up to which the next page is read; what lies behind it comes later.
    until: Option<SysId>,
    /// How wide the next part has to be to fill most of a page, if records lie there as close to one another as in the
    /// last part.
    width: Option<u128>,
    /// Something came or went in a stretch that was passed over by offset.
    is_busy: bool,
    restarts: u32,
    offset: u64,
    /// While going by offset: how many records matched when that began.
    stretch: Option<u64>,
    /// How many records the last count leaves to be read, less those that were shown since.
    left: Option<u64>,
    /// The last page left it open whether more rows follow.
    unsure: bool,
    pages: u64,
}

impl Sweep {
    /// Begins a range, or goes on behind the record a sweep before had come to.
    pub fn new(range: Range, after: Option<SysId>) -> Self {
        Self {
            range,
            after,
            until: None,
            width: None,
            is_busy: false,
            restarts: 0,
            offset: 0,
            stretch: None,
            left: None,
            unsure: false,
            pages: 0,
        }
    }

    /// The record behind which the next page begins.
    pub fn after(&self) -> Option<&SysId> {
        self.after.as_ref()
    }

    /// The next page's query and offset, within `base`.
    pub fn page(&self, base: &Query) -> Result<(Query, u64)> {
        let mut query = base.clone();
        let mut range = self.range.clone();
        if let Some(after) = &self.after {
            query = query.and(Term::new("sys_id", Op::Gt, after.as_str())?);
            range.lower = None;
        }
        if let Some(until) = &self.until {
            query = query.and(Term::new("sys_id", Op::Le, until.as_str())?);
            range.upper = None;
        }
        query = range.within(query)?;
        Ok((query.order_by("sys_id"), self.offset))
    }

    /// Whether the next page, of so many rows, has to be counted: the first one, for the sake of progress reports,
    /// and every one that may be the last: when as much as was counted has come, or a page has come short.
    /// Counting costs the instance a query of its own.
    pub fn wants_count(&self, limit: u32) -> bool {
        self.pages == 0 || self.unsure || self.left.is_some_and(|left| left <= u64::from(limit))
    }

    /// Takes note of a page that was asked for with `limit`.
    pub fn advance(&mut self, seen: &Seen, limit: u32) -> Progress {
        let counted = self.wants_count(limit);
        self.pages += 1;
        if self.offset > 0 && seen.total.is_some() && seen.total != self.stretch && self.restarts < RESTARTS {
            // Records have come or gone in what was passed over by offset; others have taken their places.
            self.offset = 0;
            self.is_busy = true;
            self.restarts += 1;
            if let Some(total) = seen.total {
                self.cut(total, limit);
            }
            return Progress::More;
        }
        let beyond = self.offset + seen.rows as u64;
        if seen.total == Some(beyond) {
            return self.leave_part(beyond, limit);
        }
        self.left = match seen.total {
            Some(total) => Some(total.saturating_sub(beyond)),
            None => self.left.map(|left| left.saturating_sub(seen.rows as u64)),
        };
        self.unsure = seen.rows < limit as usize;
        match &seen.last {
            Some(last) if last.is_plain() => {
                self.after = Some(last.clone());
                self.begin_stretch();
                Progress::More
            }
            last => match seen.total {
                Some(total) if self.offset + u64::from(limit) >= total => self.leave_part(total, limit),
                // Every row of the page is hidden.
                Some(total) if self.is_busy && self.offset == 0 && self.cut(total, limit) => Progress::More,
                // An instance that does not count although asked to: an empty page is all there is to go by.
                None if counted && last.is_none() => Progress::Done,
                // By offset, also where an identifier cannot stand in a query.
                total => {
                    self.offset += u64::from(limit);
                    self.stretch = self.stretch.or(total);
                    Progress::More
                }
            },
        }
    }

    /// Everything up to a key of our own has been looked at, so many records, or everything there is.
    fn leave_part(&mut self, records: u64, limit: u32) -> Progress {
        let part = self.rest();
        let Some(until) = self.until.take() else { return Progress::Done };
        // A quarter of the page is left free, as by `cut`. Behind a part without records the next one is always wider.
        let wanted = u128::from((limit / 4 * 3).max(1));
        self.width = part.width().map(|width| (width / (u128::from(records) + 1)).saturating_mul(wanted + 1));
        self.after = Some(until);
        self.begin_stretch();
        // What lies behind has not been counted.
        (self.left, self.unsure) = (None, true);
        Progress::More
    }

    fn begin_stretch(&mut self) {
        (self.offset, self.stretch, self.restarts) = (0, None, 0);
    }

    /// What the next pages are read from.
    fn rest(&self) -> Range {
        let lower = self.after.as_ref().or(self.range.lower.as_ref());
        let upper = self.until.as_ref().or(self.range.upper.as_ref());
        Range { lower: lower.cloned(), upper: upper.cloned() }
    }

    /// Reads so many records in parts, of which the first is expected to fill most of a page: by the part before, or, if
    /// there is none or too many lie in what it has led to, as if keys were spread evenly. Gives back whether there is a
    /// key to cut at.
    fn cut(&mut self, records: u64, limit: u32) -> bool {
        let rest = self.rest();
        let parts = (records / u64::from(limit.max(1))).max(1) * 4 / 3 + 1;
        let alike = self.width.take().and_then(|width| rest.first(width));
        match alike.or_else(|| rest.part(parts)) {
            Some(key) => {
                self.until = Some(key);
                self.stretch = None;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An instance that counts before access control and applies the limit before it.
    fn page(all: &[(String, bool)], sweep: &Sweep, limit: u32, cap: usize, counts: bool) -> Seen {
        let matching: Vec<_> = all
            .iter()
            .filter(|(id, _)| match &sweep.after {
                Some(after) => id.as_str() > after.as_str(),
                None => sweep.range.lower.as_ref().is_none_or(|lower| id.as_str() >= lower.as_str()),
            })
            .filter(|(id, _)| sweep.range.upper.as_ref().is_none_or(|upper| id.as_str() < upper.as_str()))
            .filter(|(id, _)| sweep.until.as_ref().is_none_or(|until| id.as_str() <= until.as_str()))
            .collect();
        let visible: Vec<_> = matching
            .iter()
            .skip(sweep.offset as usize)
            .take((limit as usize).min(cap))
            .filter(|(_, visible)| *visible)
            .map(|(id, _)| SysId::new(id.clone()))
            .collect();
        let total = (counts && sweep.wants_count(limit)).then_some(matching.len() as u64);
        Seen { rows: visible.len(), last: visible.last().cloned(), total }
    }

    #[test]
    fn a_page_without_a_readable_row_does_not_end_a_sweep() {
        let all: Vec<_> = (0..30).map(|i| (format!("{i:03}"), i >= 25)).collect();
        let mut sweep = Sweep::new(Range::default(), None);
        let mut found = 0;
        loop {
            let seen = page(&all, &sweep, 10, usize::MAX, true);
            found += seen.rows;
            if sweep.advance(&seen, 10) == Progress::Done {
                break;
            }
        }
        assert_eq!(found, 5);
    }

    /// Sweeps a table of 1,000 records with these keys, of which three are shown, while a hidden one comes with every page.
    /// Gives back how many pages that took.
    fn sweep_of_a_busy_table(id: impl Fn(u64) -> String) -> u64 {
        let mut all: Vec<_> = (0..1_000).map(|n| (id(n), n % 400 == 0)).collect();
        all.sort();
        let mut sweep = Sweep::new(Range::default(), None);
        let (mut found, mut pages) = (Vec::new(), 0);
        loop {
            let seen = page(&all, &sweep, 10, usize::MAX, true);
            found.extend(seen.last.clone());
            pages += 1;
            assert!(pages < 10_000, "{sweep:?}");
            if sweep.advance(&seen, 10) == Progress::Done {
                break;
            }
            all.push((id(1_000 + pages), false));
            all.sort();
        }
        found.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        found.dedup();
        assert_eq!(found.len(), 3, "what is shown is found");
        pages
    }

    /// Hidden records that come and go with every page keep nobody from coming to the end.
    #[test]
    fn a_sweep_of_a_busy_table_of_hidden_records_ends() {
        let pages = sweep_of_a_busy_table(|n| {
            format!("{:032x}", u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64)
        });
        assert!(pages < 600, "{pages}");
    }

    #[test]
    fn keys_that_are_close_to_one_another_take_hardly_more_pages_than_others() {
        let pages = sweep_of_a_busy_table(|n| format!("5f{:030x}", n.wrapping_mul(0x9e37_79b9) % 0x1_0000));
        assert!(pages < 600, "{pages}");
    }

    #[test]
    fn a_small_table_is_read_in_one_call() {
        let mut sweep = Sweep::new(Range::default(), None);
        let seen = Seen { rows: 3, last: Some(SysId::new("c")), total: Some(3) };
        assert_eq!(sweep.advance(&seen, 1000), Progress::Done);
    }

    #[test]
    fn a_sweep_of_what_everybody_may_see_makes_no_call_too_many() {
        for (rows, limit) in [(0usize, 10), (1, 10), (9, 10), (10, 10), (11, 10), (95, 10), (100, 10), (7, 1)]
        {
            let all: Vec<_> = (0..rows).map(|i| (format!("{i:03}"), true)).collect();
            let mut sweep = Sweep::new(Range::default(), None);
            let mut calls = 1;
            while sweep.advance(&page(&all, &sweep, limit, usize::MAX, true), limit) == Progress::More {
                calls += 1;
            }
            assert_eq!(calls, rows.div_ceil(limit as usize).max(1), "{rows} rows in pages of {limit}");
        }
    }

    proptest! {
        /// What is there from the beginning to the end is found, whatever comes and goes meanwhile.
        #[test]
        fn a_sweep_finds_what_stays_while_other_records_come_and_go(
            records in prop::collection::vec((any::<bool>(), 0usize..12), 1..120),
            changes in prop::collection::vec((0usize..40, 0usize..1_000), 0..40),
            limit in 1u32..15,
        ) {
            let mut all: Vec<_> = records.iter().enumerate()
                .map(|(i, (visible, gap))| (format!("{:05}", i * 12 + gap), *visible)).collect();
            let mut stays: Vec<String> = all.iter().filter(|(_, v)| *v).map(|(id, _)| id.clone()).collect();
            let mut found = Vec::new();
            let mut sweep = Sweep::new(Range::default(), None);
            for step in 0.. {
                // At worst every record has a page of its own, cut out of all keys there are: they are close to one another here.
                prop_assert!(step < 160 * 40, "a sweep ends");
                // One at a time: among hidden records, one that comes hides that another one goes.
                if let Some((_, place)) = changes.iter().find(|(when, _)| *when == step) {
                    if place % 2 == 0 {
                        let id = format!("{:05}x", place * 2);
                        all.retain(|(other, _)| *other != id);
                        all.push((id, place % 3 > 0));
                        all.sort();
                    } else if !all.is_empty() {
                        let (gone, _) = all.remove(place % all.len());
                        stays.retain(|id| *id != gone);
                    }
                }
                let before = sweep.clone();
                let seen = page(&all, &before, limit, usize::MAX, true);
                let from = |id: &str| {
                    before.after.as_ref().is_none_or(|after| id > after.as_str())
                        && before.until.as_ref().is_none_or(|until| id <= until.as_str())
                };
                let rows = all.iter().filter(|(id, _)| from(id)).skip(before.offset as usize);
                found.extend(rows.take(limit as usize).filter(|(_, v)| *v).map(|(id, _)| id.clone()));
                if sweep.advance(&seen, limit) == Progress::Done {
                    break;
                }
            }
            stays.retain(|id| !found.contains(id));
            prop_assert!(stays.is_empty(), "{:?}", stays);
        }

        #[test]
        fn a_sweep_finds_every_readable_row_once(
            visible in prop::collection::vec(any::<bool>(), 0..200),
            limit in 1u32..20,
            cap in 1usize..40,
            counts in any::<bool>(),
        ) {
            // A page that an instance caps below our limit is told by its rows only; it has to show some.
            // Without counts a hidden stretch looks like the end.
            let counts = counts || !visible.iter().all(|v| *v);
            let cap = if visible.iter().all(|v| *v) { cap } else { usize::MAX };
            let all: Vec<_> = visible.iter().enumerate().map(|(i, v)| (format!("{:02x}{i:05}", i * 7 % 256), *v)).collect();
            let mut all = all;
            all.sort();
            let mut found = Vec::new();
            for range in Range::partition(4) {
                let mut sweep = Sweep::new(range, None);
                for calls in 0.. {
                    prop_assert!(calls < 1000, "a sweep ends");
                    let before = sweep.clone();
                    // An instance that caps pages below our limit hands out fewer rows than asked for.
                    let seen = page(&all, &before, limit, cap, counts);
                    found.extend(all.iter().filter(|(id, v)| *v
                        && before.after.as_ref().map_or_else(
                            || before.range.lower.as_ref().is_none_or(|l| id.as_str() >= l.as_str()),
                            |a| id.as_str() > a.as_str())
                        && seen.last.as_ref().is_some_and(|l| id.as_str() <= l.as_str())).map(|(id, _)| id.clone()));
                    if sweep.advance(&seen, limit) == Progress::Done {
                        break;
                    }
                }
            }
            found.sort();
            found.dedup();
            let expected: Vec<_> = all.iter().filter(|(_, v)| *v).map(|(id, _)| id.clone()).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
