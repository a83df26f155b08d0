//! What repairs what polls cannot see: comparing counts ([`Reconcile`]) and reading everything once more
//! ([`Scrub`]), a piece at a time, so that polls stay due in between.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::compare::{Difference, Gathering, Shown};
use super::describe::{Trace, Traits};
use super::fill::HELD_PAGES;
use super::mirror::Mirror;
use super::range::Range;
use super::recheck::recheck;
use super::reconcile::{Question, Reconcile};
use super::scrub::{STRETCH_PAGES, Scrub};
use super::store::{Origin, Position, ScrubPosition, Step, Store, StoredRecords};
use super::sweep::{Progress, Sweep};
use super::{OVERLAP, Stop, local_seconds, pause_after};
use crate::client::table_api::List;
use crate::client::transport::Transport;
use crate::page::{Layout, Rows};
use crate::query::{Op, Query, Term};
use crate::value::{SysId, date_time};

/// Pieces of work from one look at the clock to the next.
const PIECES: usize = 8;
/// The time between two stretches of a table without `sys_updated_on`, which is kept up to date by reading it over and
/// over: so long after a change it is seen in a small table, and no table is read at a quicker pace than this.
const UNTIMED_STRETCH: Duration = Duration::from_secs(600);
/// Records looked up in one piece.
const RECHECKED_AT_A_TIME: usize = 500;
/// After so many failures in a row what is under way is begun anew.
const FAILURES: u32 = 5;

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Underway {
    counting: Option<Counting>,
    rereading: Option<Rereading>,
    /// Found to differ and not looked up yet, in the store's versions.
    to_recheck: StoredRecords,
    failures: u32,
    /// Counts were what failed last: re-reading goes first until they do not any more.
    counts_fail: bool,
    /// Something has failed, and not everything that was due has been done since.
    has_failed: bool,
    /// After a failure: when to go on.
    not_before: Option<Instant>,
}

/// A comparison of counts.
#[derive(Debug)]
struct Counting {
    began: SystemTime,
    reconcile: Reconcile,
    /// Only what came before this second is counted, so that the records that come meanwhile do not pass for ones
    /// that are missing.
    before: Option<i64>,
    /// The range that is being read.
    sweeping: Option<Sweeping>,
    /// What has been read and not been compared.
    shown: Vec<Shown>,
}

#[derive(Debug)]
struct Sweeping {
    sweep: Sweep,
    gathering: Gathering,
    shown: u64,
}

/// A full re-reading.
#[derive(Debug)]
struct Rereading {
    scrub: Scrub,
    gathering: Gathering,
    stretch: Option<Stretch>,
    /// When the first record of the round was asked for, if that was here.
    since: Option<SystemTime>,
}

/// The stretch of a full re-reading that is being read.
#[derive(Debug)]
struct Stretch {
    sweep: Sweep,
    pages: u64,
    rows: u64,
    /// How many records were left behind the last page that was counted.
    left: Option<u64>,
    /// It has been read and compared, up to here or to the end.
    compared: Option<Option<SysId>>,
}

impl Underway {
    /// Whether everything that was due has been done since something failed.
    pub(super) fn is_well(&self) -> bool {
        !self.has_failed
    }

    /// Takes note of a failure: there is a pause before what is under way goes on, and polls do not wait for it.
    pub(super) fn fail(&mut self) {
        self.failures += 1;
        self.has_failed = true;
        self.not_before = Some(Instant::now() + pause_after(self.failures));
        if self.failures.is_multiple_of(FAILURES) {
            (self.counting, self.rereading) = (None, None);
            self.to_recheck.clear();
        }
    }
}

fn created(op: Op, second: i64) -> crate::Result<Term> {
    Ok(Term::new("sys_created_on", op, &date_time(second).unwrap_or_default())?)
}

/// Restricts a query to what came before a second. A record may not say when it came.
fn older(query: Query, before: Option<i64>) -> crate::Result<Query> {
    match before {
        Some(second) => Ok(query.and_any(vec![created(Op::Lt, second)?, Term::is_empty("sys_created_on")])),
        None => Ok(query),
    }
}

/// How long it is until so long after a moment. If that has not come yet, a clock was set back, and it is time: how long
/// ago it was is not known.
fn due_after(last: SystemTime, interval: Duration) -> Duration {
    last.elapsed().map_or(Duration::ZERO, |since| interval.saturating_sub(since))
}

impl<T: Transport, S: Store> Mirror<T, S> {
    /// Does some pieces of what is to be done now; gives back whether there are more.
    pub(super) async fn keep_up(&mut self) -> Result<bool, Stop> {
        for _ in 0..PIECES {
            if self.underway.not_before.is_some_and(|moment| moment > Instant::now()) {
                return Ok(false);
            }
            let was_due = self.piece().await?;
            self.underway.failures = 0;
            if !was_due {
                self.underway.has_failed = false;
                return Ok(false);
            }
            if self.is_poll_due() || !matches!(self.position, Position::Following { .. }) {
                return Ok(true);
            }
        }
        Ok(true)
    }

    /// How long it is until there is something to be done.
    pub(super) fn upkeep_due_in(&self) -> Duration {
        let scrub =
            self.underway.rereading.as_ref().map(|rereading| rereading.scrub.due_in(SystemTime::now()));
        let due = self.reconcile_due_in().min(scrub.unwrap_or(Duration::ZERO));
        let rest = |moment: Instant| moment.saturating_duration_since(Instant::now());
        due.max(self.underway.not_before.map_or(Duration::ZERO, rest))
    }

    fn reconcile_due_in(&self) -> Duration {
        match self.upkeep.reconciled {
            None => Duration::ZERO,
            Some(last) => due_after(last, self.spec.reconcile_interval),
        }
    }

    /// What is due within this time is done now: before the next time that all tables are polled together.
    fn ahead(&self) -> Duration {
        let next = self.spec.pace.now();
        match self.is_in_no_hurry() && next < self.spec.reconcile_interval / 2 {
            true => next,
            false => Duration::ZERO,
        }
    }

    /// One piece of what is to be done now; gives back whether there was one.
    async fn piece(&mut self) -> Result<bool, Stop> {
        if !self.underway.to_recheck.is_empty() {
            let from = self.underway.to_recheck.len().saturating_sub(RECHECKED_AT_A_TIME);
            let some = self.underway.to_recheck[from..].to_vec();
            recheck(&self.client, &*self.store, self.table, &self.spec, some, Origin::Upkeep).await?;
            self.underway.to_recheck.truncate(from);
            return Ok(true);
        }
        let count_is_due = self.underway.counting.is_some() || self.reconcile_due_in() <= self.ahead();
        let comes_first = count_is_due && !self.underway.counts_fail;
        Ok(comes_first && self.count_on().await?
            || self.reread_on().await?
            || count_is_due && !comes_first && self.count_on().await?)
    }

    /// One piece of a comparison of counts.
    async fn count_on(&mut self) -> Result<bool, Stop> {
        let mut counting = self.underway.counting.take().unwrap_or_else(|| Counting {
            began: SystemTime::now(),
            reconcile: Reconcile::new(self.spec.page_size, !self.refilled_for_counts),
            before: None,
            sweeping: None,
            shown: Vec::new(),
        });
        let ended = self.count(&mut counting).await;
        self.underway.counts_fail = ended.is_err();
        if !matches!(ended, Ok(true)) && matches!(self.position, Position::Following { .. }) {
            self.underway.counting = Some(counting);
        }
        ended.map(|_| true)
    }

    /// One piece of a full re-reading, if one is due.
    async fn reread_on(&mut self) -> Result<bool, Stop> {
        let mut rereading = match self.underway.rereading.take() {
            Some(rereading) => rereading,
            None => self.rereading().await?,
        };
        rereading.scrub.look_at_clock(SystemTime::now());
        let is_due = rereading.stretch.is_some() || rereading.scrub.due_in(SystemTime::now()).is_zero();
        let outcome = if is_due { self.reread(&mut rereading).await } else { Ok(false) };
        if !matches!(outcome, Ok(true)) {
            self.underway.rereading = Some(rereading);
        }
        outcome.map(|_| is_due)
    }

    /// Answers one question of a comparison of counts; gives back whether it has come to its end.
    async fn count(&mut self, counting: &mut Counting) -> Result<bool, Stop> {
        let reconcile = &mut counting.reconcile;
        match reconcile.question().clone() {
            Question::Totals => {
                let apart = self.newcomers(&mut counting.before).await?.len() as u64;
                let query = older(self.spec.query.clone(), counting.before)?;
                let client = self.client.gathering_if(self.is_in_no_hurry());
                let remote = client.count(&self.spec.table, &query).await?;
                let hidden = self.store.hidden(self.table).await?;
                reconcile.totals(remote, self.stored_rows().await?.saturating_sub(apart), hidden);
            }
            // Whoever cannot ask by time counts what there is.
            Question::Poll if self.failed_polls > 0 => reconcile.polled(),
            Question::Poll => {
                self.poll().await?;
                // What came before that has been seen.
                if let (Position::Following { watermark }, Some(Traits { has_created_on: true, .. })) =
                    (&self.position, self.traits)
                {
                    counting.before = Some(watermark - OVERLAP);
                }
                reconcile.polled();
            }
            Question::Rows(range, length) => {
                let apart = self.newcomers(&mut counting.before).await?;
                let counts = self.store.count_by_prefix(self.table, range, length).await?;
                reconcile.rows(counts, &apart);
            }
            Question::Count(range) => {
                let query = range.within(self.spec.query.clone()).map_err(crate::Error::from)?;
                let query = older(query, counting.before)?;
                reconcile.counted(self.client.count(&self.spec.table, &query).await?);
            }
            Question::Sweep(range) => {
                let mut sweeping = counting.sweeping.take().unwrap_or_else(|| Sweeping {
                    sweep: Sweep::new(range.clone(), None),
                    gathering: Gathering::new(range),
                    shown: 0,
                });
                let base = older(self.spec.query.clone(), counting.before)?;
                let progress = self.sweep_on(&base, &mut sweeping).await;
                if matches!(progress, Ok(Progress::Done)) {
                    reconcile.swept(sweeping.shown);
                    counting.shown.push(sweeping.gathering.take_rest());
                } else {
                    counting.sweeping = Some(sweeping);
                }
                progress?;
            }
            Question::Settle if counting.shown.is_empty() => reconcile.settled(),
            Question::Settle => {
                self.compare(counting.shown.clone()).await?;
                counting.shown.clear();
            }
            Question::Remember(range, count) => {
                self.apply(Step::Hidden { range, count }).await?;
                reconcile.remembered();
            }
            Question::Refill => {
                self.begin(true).await?;
                self.refilled_for_counts = true;
            }
            Question::Done(_) => {
                self.apply(Step::Reconciled { at: counting.began }).await?;
                self.upkeep.reconciled = Some(counting.began);
                self.refilled_for_counts = false;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Those of the records that came since a second that are stored. Where too many come, or where it cannot be
    /// asked, newcomers are counted like any record.
    async fn newcomers(&self, before: &mut Option<i64>) -> Result<Vec<SysId>, Stop> {
        let Some(second) = *before else { return Ok(Vec::new()) };
        let query = self.spec.query.clone().and(created(Op::Ge, second)?);
        let (query, layout, limit) = (&query, Arc::new(Layout::of_text(&[])), self.spec.page_size);
        let list = List { table: &self.spec.table, query, layout: &layout, limit, offset: 0, count: true };
        let page = match self.client.list(list).await {
            Ok(page) if page.total.is_some_and(|total| total <= u64::from(limit)) => page,
            Ok(_) | Err(crate::Error::Refused { .. }) => {
                *before = None;
                return Ok(Vec::new());
            }
            Err(e) => return Err(e.into()),
        };
        let found = self.store.find(page.rows.ids().map(SysId::new).collect()).await?;
        let here = found.records.into_iter().filter(|(table, _)| *table == self.table);
        Ok(here.flat_map(|(_, stored)| stored).map(|(id, _)| id).collect())
    }

    async fn stored_rows(&self) -> Result<u64, Stop> {
        let counts = self.store.count_by_prefix(self.table, Range::default(), 0).await?;
        Ok(counts.into_iter().map(|(_, rows)| rows).sum())
    }

    /// Reads a page of identifiers.
    async fn sweep_on(&mut self, base: &Query, sweeping: &mut Sweeping) -> Result<Progress, Stop> {
        let layout = Arc::new(Layout::of_text(&[]));
        let mut ahead = sweeping.sweep.clone();
        let page = self.sweep_page(&mut ahead, base, &layout).await?;
        sweeping.gathering.add(&page.rows);
        if sweeping.gathering.len() > HELD_PAGES * self.spec.page_size as usize
            && let Some(after) = ahead.after()
        {
            let mut gathering = sweeping.gathering.clone();
            self.compare(vec![gathering.take_before(after)]).await?;
            sweeping.gathering = gathering;
        }
        sweeping.sweep = ahead;
        sweeping.shown += page.rows.len() as u64;
        Ok(page.progress)
    }

    /// Compares what was shown with the store; what differs is to be looked up.
    async fn compare(&mut self, shown: Vec<Shown>) -> Result<(), Stop> {
        let differences = self.store.compare(self.table, shown).await?;
        self.underway.to_recheck.extend(differences.into_iter().flat_map(Difference::to_recheck));
        Ok(())
    }

    /// Begins or takes up the full re-reading.
    async fn rereading(&mut self) -> Result<Rereading, Stop> {
        let position = match self.upkeep.scrub.clone() {
            Some(position) => position,
            None => {
                let (began, total) = (SystemTime::now(), self.stored_rows().await?);
                let position = ScrubPosition { began, after: None, read: 0, total };
                self.keep_scrubbed(Rows::new(self.spec.layout.clone()), position.clone()).await?;
                position
            }
        };
        let range = Range { lower: position.after.clone(), upper: None };
        let mut interval = self.spec.scrub_interval;
        if !self.has_times() {
            let stretches = Scrub::stretches(position.total, self.spec.page_size);
            interval = interval.min(UNTIMED_STRETCH.saturating_mul(stretches));
        }
        let scrub = Scrub::new(position, interval, self.spec.page_size);
        Ok(Rereading { scrub, gathering: Gathering::new(range), stretch: None, since: None })
    }

    /// Whether the table's records say when they were changed.
    fn has_times(&self) -> bool {
        self.traits.is_none_or(|traits| traits.has_updated_on)
    }

    /// Whether all of the table is read in one stretch.
    async fn is_small(&self) -> Result<bool, Stop> {
        let rows = match &self.upkeep.scrub {
            Some(position) => position.total.max(position.read),
            None => self.stored_rows().await?,
        };
        Ok(Scrub::stretches(rows, self.spec.page_size) == 1)
    }

    /// Whether a poll is said to bring what has changed. One by arrivals is, of a table too large to be read as a whole
    /// instead.
    pub(super) async fn tells_of_changes(&self) -> Result<bool, Stop> {
        match self.traits.map_or(Some(Trace::Changes), Traits::trace) {
            Some(Trace::Changes) => Ok(true),
            Some(Trace::Arrivals) => Ok(!self.is_small().await?),
            None => Ok(false),
        }
    }

    /// Everything has been read since a moment, of a table in which nothing else tells what has changed.
    async fn note_round(&mut self, at: SystemTime) -> Result<(), Stop> {
        let watermark = local_seconds(at);
        self.apply(Step::Polled { watermark, at, is_well: self.failed_polls == 0 }).await?;
        self.position = Position::Following { watermark };
        Ok(())
    }

    async fn keep_scrubbed(&mut self, rows: Rows, position: ScrubPosition) -> Result<(), Stop> {
        self.upkeep.scrub = Some(position.clone());
        self.apply(Step::Scrubbed { rows, position }).await
    }

    /// Reads a page of the full re-reading, or ends a stretch; gives back whether the round is over.
    async fn reread(&mut self, rereading: &mut Rereading) -> Result<bool, Stop> {
        let Rereading { scrub, gathering, stretch, since } = rereading;
        let position = scrub.position().clone();
        if stretch.is_none() && position.after.is_none() {
            *since = Some(SystemTime::now());
        }
        let current = stretch.get_or_insert_with(|| Stretch {
            sweep: Sweep::new(Range::default(), position.after.clone()),
            pages: 0,
            rows: 0,
            left: None,
            compared: None,
        });
        if let Some(after) = current.compared.take() {
            // What differed has been looked up.
            let is_over = after.is_none();
            scrub.advance(SystemTime::now(), after, current.rows, current.left);
            *stretch = None;
            self.keep_scrubbed(Rows::new(self.spec.layout.clone()), scrub.position().clone()).await?;
            // Where no poll tells of changes, or of all of them.
            let is_news = self.failed_polls > 0 || !self.tells_of_changes().await?;
            if is_over && is_news {
                self.note_round(since.unwrap_or(position.began)).await?;
            }
            return Ok(is_over);
        }
        let mut ahead = current.sweep.clone();
        let page = self.sweep_page(&mut ahead, &self.spec.query, &self.spec.layout).await?;
        gathering.add(&page.rows);
        let rows = page.rows.len() as u64;
        self.keep_scrubbed(page.rows, position.clone()).await?;
        current.sweep = ahead;
        current.pages += 1;
        current.rows += rows;
        let left = |left: u64| left.saturating_sub(rows);
        current.left = page.total.or(current.left).map(left);
        let after = current.sweep.after().cloned();
        if page.progress == Progress::Done {
            self.compare(vec![gathering.clone().take_rest()]).await?;
            *gathering = Gathering::new(Range::default());
            current.compared = Some(None);
        } else if current.pages >= STRETCH_PAGES
            && after != position.after
            && let Some(last) = &after
        {
            let mut rest = gathering.clone();
            self.compare(vec![rest.take_before(last)]).await?;
            *gathering = rest;
            current.compared = Some(after);
        }
        Ok(false)
    }
}
