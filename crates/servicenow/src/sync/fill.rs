//! Reading a whole table: ranges of `sys_id`s side by side, each with a position the store keeps.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use futures_util::future::try_join;
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::compare::{Difference, Gathering, Shown};
use super::mirror::Mirror;
use super::range::{self, Range};
use super::recheck::recheck;
use super::store::{OpenRange, Origin, Position, Step, Store};
use super::sweep::{Progress, Seen, Sweep};
use super::upkeep::Underway;
use super::{Stop, local_seconds};
use crate::client::retry::{self, Effect, Policy};
use crate::client::table_api::{List, shrinking};
use crate::client::transport::Transport;
use crate::page::{Layout, Rows};
use crate::query::Query;
use crate::value::SysId;

/// A table of fewer records than this is read as one range.
const SPLIT_FROM: u64 = 4_000;
/// The ranges a larger table is read in.
const RANGES: usize = 16;
/// A table of so many pages is worth the calls that it takes to learn how its records are distributed.
const MEASURED_PAGES: u64 = 50;
/// Records looked at to find one that is shown.
const LOOKED_AT: u32 = 20;
/// Pages of what has changed last.
const NEWEST_PAGES: u64 = 2;
/// Pages on the way or waiting to be stored, however few calls may be made at a time: one of each. There are no more of
/// them than calls, so that the memory they take does not grow when the store is the slower one.
const LEAST_HANDS: usize = 2;
/// Of a table that is read again so many pages are held, over all its ranges, before they are compared with the store.
pub(super) const HELD_PAGES: usize = 50;

/// A page of a sweep.
#[derive(Debug)]
pub(super) struct SweptPage {
    pub(super) rows: Rows,
    pub(super) progress: Progress,
    /// How many records matched the page's query, if they were counted.
    pub(super) total: Option<u64>,
}

impl<T: Transport, S: Store> Mirror<T, S> {
    /// Begins a fill: looks how much there is, and cuts it into ranges.
    pub(super) async fn begin(&mut self, refill: bool) -> Result<(), Stop> {
        let at = SystemTime::now();
        let page = self.list(&self.spec.query, 1, 0, true).await?;
        let since = page.served_at.unwrap_or_else(|| local_seconds(at));
        let ranges = match page.total {
            Some(total) if total < SPLIT_FROM => Range::partition(1),
            Some(total) if total >= MEASURED_PAGES * u64::from(self.spec.page_size) => {
                self.measured().await?
            }
            _ => Range::partition(RANGES),
        };
        let open = ranges.iter().cloned().zip(0..);
        let open = open.map(|(range, number)| OpenRange { number, range, after: None }).collect();
        self.apply(Step::Begin { ranges, since, refill, total: page.total, at }).await?;
        self.last_poll = Some(at);
        self.position = Position::Filling { refill, open, since };
        self.just_filled = true;
        self.underway = Underway::default();
        self.is_idle = true;
        self.upkeep.scrub = None;
        if !refill && page.total.is_some_and(|total| total > NEWEST_PAGES * u64::from(self.spec.page_size)) {
            self.bring_newest().await?;
        }
        Ok(())
    }

    /// Brings the rows that have changed last, so that a large table is of use soon. If the instance fails, the
    /// fill that follows will meet it too.
    async fn bring_newest(&self) -> Result<(), Stop> {
        if !self.traits.is_some_and(|traits| traits.has_updated_on) {
            return Ok(());
        }
        let newest =
            self.spec.query.clone().order_by_descending("sys_updated_on").order_by_descending("sys_id");
        for offset in (0..NEWEST_PAGES).map(|page| page * u64::from(self.spec.page_size)) {
            let page = shrinking(&self.page_size, |limit| self.list(&newest, limit, offset, false)).await;
            let Ok((page, _)) = page else { break };
            self.apply(Step::Newest(page.rows)).await?;
        }
        Ok(())
    }

    /// Ranges that hold about the same number of records, whatever their identifiers look like: those of random
    /// hexadecimal digits are counted, and what holds far more than its share is cut.
    async fn measured(&self) -> Result<Vec<Range>, Stop> {
        let ranges = Range::partition(RANGES);
        let counted = iter(ranges.into_iter().map(|range| async move {
            let query = range.within(self.spec.query.clone()).map_err(crate::Error::from)?;
            Ok::<_, Stop>((self.client.count(&self.spec.table, &query).await?, range))
        }));
        let counted: Vec<_> = counted.buffered(self.spec.parallel.max(1)).try_collect().await?;
        let share = counted.iter().map(|(count, _)| count).sum::<u64>().div_ceil(RANGES as u64).max(1);
        let mut ranges = Vec::new();
        for (count, range) in counted {
            let parts = if count > 2 * share { count.div_ceil(share) } else { 1 };
            let places = iter((1..parts).map(|part| self.record_at(&range, count * part / parts)));
            let found: Vec<_> = places.buffered(self.spec.parallel.max(1)).try_collect().await?;
            let mut bounds: Vec<SysId> =
                found.into_iter().flatten().filter(|id| range.is_cut_by(id)).collect();
            bounds.sort_by(|a, b| range::compare(a.as_str(), b.as_str()));
            bounds.dedup_by(|a, b| range::compare(a.as_str(), b.as_str()).is_eq());
            ranges.extend(range.cut(bounds));
        }
        Ok(ranges)
    }

    /// A record at about this place within a range, if one is shown there.
    async fn record_at(&self, range: &Range, place: u64) -> Result<Option<SysId>, Stop> {
        let query = range.within(self.spec.query.clone()).map_err(crate::Error::from)?.order_by("sys_id");
        let layout = Arc::new(Layout::of_text(&[]));
        let (table, query, limit) = (&self.spec.table, &query, LOOKED_AT);
        match self
            .client
            .list(List { table, query, layout: &layout, limit, offset: place, count: false })
            .await
        {
            Ok(page) => Ok(page.rows.ids().next().map(SysId::new)),
            // Too far for the instance: the range stays as it is.
            Err(e) if retry::policy(&e, Effect::Read) == Policy::Shrink => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Fills the open ranges, several at a time. A range's position advances in the store as its pages are
    /// kept, so that whoever comes after a failure goes on from there.
    pub(super) async fn fill(&mut self, refill: bool, open: Vec<OpenRange>) -> Result<(), Stop> {
        let left = Mutex::new(open.clone());
        let hands = Semaphore::new(self.spec.parallel.max(LEAST_HANDS));
        let failure = OnceLock::new();
        let (this, hands_ref, left_ref, failure_ref) = (&*self, &hands, &left, &failure);
        // A range that fails is the end of the fill for now; the others keep what they have asked for.
        iter(open)
            .for_each_concurrent(self.spec.parallel.max(1), |range| async move {
                if failure_ref.get().is_none()
                    && let Err(stop) = this.fill_range(refill, range, left_ref, hands_ref, failure_ref).await
                {
                    // The first one is told.
                    let _another = failure_ref.set(stop);
                }
            })
            .await;
        let filled = failure.into_inner().map_or(Ok(()), Err);
        if let Position::Filling { open, .. } = &mut self.position {
            *open = left.into_inner().expect("no panic while it is held");
        }
        filled
    }

    /// Fills one range, as long as no other one has failed. The next page is fetched while the one before it is being stored, if a hand is free.
    async fn fill_range(
        &self,
        refill: bool,
        open: OpenRange,
        left: &Mutex<Vec<OpenRange>>,
        hands: &Semaphore,
        failure: &OnceLock<Stop>,
    ) -> Result<(), Stop> {
        let OpenRange { number, range, after } = open;
        let mut sweep = Sweep::new(range.clone(), after.clone());
        let unread = Range { lower: after.clone().or(range.lower), upper: range.upper };
        // What a refill does not meet has to leave.
        let mut gathering = refill.then(|| Gathering::new(unread.clone()));
        // Where to go on after an interruption: a refill behind what has been compared.
        let mut place = after;
        let ranges =
            left.lock().expect("no panic while it is held").len().clamp(1, self.spec.parallel.max(1));
        let held = HELD_PAGES.div_ceil(ranges) * self.spec.page_size as usize;
        let mut shown = 0;
        let first = self.fill_page(&mut sweep, hands).await?;
        let total = first.0.total;
        let mut next = Some(first);
        while let Some((SweptPage { rows, progress, .. }, hand)) = next.take() {
            shown += rows.len() as u64;
            let stretch = gathering.as_mut().and_then(|gathering| {
                gathering.add(&rows);
                let last = sweep.after().filter(|_| gathering.len() > held)?.clone();
                Some((gathering.take_before(&last), last))
            });
            if !refill {
                // Behind the last page there is nothing, but somebody may come before the range is closed.
                let last = rows
                    .ids()
                    .last()
                    .map(SysId::new)
                    .filter(|id| progress == Progress::Done && id.is_plain());
                place = last.or_else(|| sweep.after().cloned());
            }
            let (stretch, reached) = stretch.unzip();
            let keep = async {
                self.keep(number, rows, place.clone(), stretch, left).await?;
                drop(hand);
                Ok(())
            };
            next = match progress {
                Progress::More if failure.get().is_some() => return keep.await,
                Progress::Done => {
                    keep.await?;
                    None
                }
                Progress::More => {
                    let mut ahead = sweep.clone();
                    let (_, page) = try_join(keep, self.fill_page(&mut ahead, hands)).await?;
                    sweep = ahead;
                    Some(page)
                }
            };
            place = reached.or(place);
        }
        if let Some(gathering) = gathering {
            self.compare_now(gathering.take_rest()).await?;
        }
        // What the instance counts and does not show.
        let hidden = total.map_or(0, |total| total.saturating_sub(shown));
        if hidden > 0 {
            self.apply(Step::Hidden { range: unread, count: hidden }).await?;
        }
        self.apply(Step::RangeDone { number }).await?;
        let mut left = left.lock().expect("no panic while it is held");
        left.retain(|r| r.number != number);
        Ok(())
    }

    /// One page of a range, and the hand that holds it until it is stored.
    async fn fill_page<'h>(
        &self,
        sweep: &mut Sweep,
        hands: &'h Semaphore,
    ) -> Result<(SweptPage, SemaphorePermit<'h>), Stop> {
        let hand = hands.acquire().await.expect("nobody closes it");
        Ok((self.sweep_page(sweep, &self.spec.query, self.fill_layout()).await?, hand))
    }

    /// What a fill reads.
    fn fill_layout(&self) -> &Arc<Layout> {
        self.spec.fill_layout.as_ref().unwrap_or(&self.spec.layout)
    }

    /// Keeps rows of a range and how far it has come, and lets go of what a stretch of it does not show any more.
    async fn keep(
        &self,
        number: i32,
        rows: Rows,
        after: Option<SysId>,
        stretch: Option<Shown>,
        left: &Mutex<Vec<OpenRange>>,
    ) -> Result<(), Stop> {
        if !rows.is_empty() {
            self.apply(Step::Filled { number, rows, after: after.clone() }).await?;
            let mut left = left.lock().expect("no panic while it is held");
            left.iter_mut().filter(|r| r.number == number).for_each(|r| r.after = after.clone());
        }
        match stretch {
            Some(shown) => self.compare_now(shown).await,
            None => Ok(()),
        }
    }

    /// Compares what was shown with the store, and looks up what differs.
    async fn compare_now(&self, shown: Shown) -> Result<(), Stop> {
        let differences = self.store.compare(self.table, vec![shown]).await?;
        let differing = differences.into_iter().flat_map(Difference::to_recheck).collect();
        recheck(&self.client, &*self.store, self.table, &self.spec, differing, Origin::Fill).await
    }

    /// One page of a sweep, asked for in smaller pieces as long as the instance cuts it short.
    pub(super) async fn sweep_page(
        &self,
        sweep: &mut Sweep,
        base: &Query,
        layout: &Arc<Layout>,
    ) -> Result<SweptPage, Stop> {
        let (query, offset) = sweep.page(base)?;
        let (page, limit) = shrinking(&self.page_size, |limit| {
            let (table, query, count) = (&self.spec.table, &query, sweep.wants_count(limit));
            self.client.list(List { table, query, layout, limit, offset, count })
        })
        .await?;
        let last = page.rows.ids().last().map(SysId::new);
        let progress = sweep.advance(&Seen { rows: page.rows.len(), last, total: page.total }, limit);
        Ok(SweptPage { rows: page.rows, progress, total: page.total })
    }
}
