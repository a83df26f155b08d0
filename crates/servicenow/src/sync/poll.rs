//! Reading what has changed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use tokio::time::Instant;

use super::describe::{Trace, Traits};
use super::mirror::Mirror;
use super::recheck::{IDS_AT_A_TIME, recheck};
use super::reconcile::{is_many, is_much};
use super::store::{Origin, Position, RECHECKED_AT_A_TIME, Step, Store, StoreError, StoredRecords};
use super::sweep::Progress;
use super::tail::Tail;
use super::{OVERLAP, Stop, local_seconds};
use crate::client::table_api::{List, Page, shrinking};
use crate::client::transport::Transport;
use crate::page::{Layout, Order, Rows, Version};
use crate::query::{Op, Query, Term};
use crate::value::{SysId, date_time};

/// How long to wait for the end of a mass update before it is read as if it were none.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// After so many pages of a poll it is kept how far it has come.
const PAGES_PER_POSITION: u32 = 10;
/// Records of a table that are asked for together with those of others.
const FEW: u32 = 20;

/// Whether much of a table has changed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mass {
    /// It has not.
    No,
    /// It does all the time: it is read like any change.
    Endless,
    /// It has, some of it just now.
    GoingOn,
    /// It has.
    Over,
}

impl Mass {
    /// Whether the table is read again as a whole, now or when it is over.
    fn is_waited_for(self) -> bool {
        matches!(self, Mass::GoingOn | Mass::Over)
    }
}

impl<T: Transport, S: Store> Mirror<T, S> {
    /// Reads what changed since the watermark. If that is much of the table it is read again as a whole instead,
    /// several ranges side by side, which this begins. Gives back whether all is read, or begun to be. Of a table
    /// without times nothing can be said to have changed, and of one that has those of arrivals only what is new is read.
    pub(super) async fn poll(&mut self) -> Result<bool, Stop> {
        let Position::Following { watermark } = self.position else { return Ok(true) };
        let Some(trace) = self.traits.map_or(Some(Trace::Changes), Traits::trace) else { return Ok(true) };
        let at = SystemTime::now();
        let since = watermark - OVERLAP;
        let (mut tail, mut matching) = (Tail::new(trace.field(), since), HashSet::new());
        let layout = match trace {
            Trace::Changes => self.spec.layout.clone(),
            Trace::Arrivals => Arc::new(Layout::of_text(&[trace.field()])),
        };
        let leaves_traces = trace == Trace::Changes && !self.spec.query.is_all();
        let mut first_served: Option<i64> = None;
        let mut is_endless = false;
        for pages in 1.. {
            let (page, progress) = self.tail_page(&mut tail, &self.spec.query, &layout).await?;
            let mass = match first_served {
                None if trace == Trace::Changes => self.mass_of(&self.spec.query, since, &page, at).await?,
                _ => Mass::No,
            };
            let served = *first_served.get_or_insert(page.served_at.unwrap_or_else(|| local_seconds(at)));
            if leaves_traces {
                matching.extend(page.rows.ids().map(SysId::new));
            }
            match trace {
                _ if page.rows.is_empty() => {}
                Trace::Changes => {
                    self.doubt_where_it_was(&page.rows).await?;
                    self.apply(Step::Changed(page.rows)).await?;
                }
                Trace::Arrivals => self.look_up_new(&page.rows).await?,
            }
            if mass.is_waited_for() {
                return self.meet(mass).await;
            }
            is_endless |= mass == Mass::Endless;
            if progress == Progress::Done {
                break;
            }
            // What is stamped in the future was changed before a clock was set back. Records that stopped to match are
            // looked for at the end, all of them.
            if let Some(reached) = tail.reached().map(|reached| reached.min(served))
                && !leaves_traces
                && pages % PAGES_PER_POSITION == 0
                && reached > watermark
            {
                self.apply(Step::PolledUpTo { watermark: reached }).await?;
                self.position = Position::Following { watermark: reached };
            }
        }
        if leaves_traces
            && let Some(mass) = self.drop_rows_that_stopped_matching(since, &matching, at).await?
        {
            return self.meet(mass).await;
        }
        self.recheck_what_is_unsettled().await?;
        let next = match first_served {
            Some(served) => self.next_watermark(watermark, served, at),
            None => watermark,
        };
        let is_well = self.underway.is_well();
        self.apply(match self.tells_of_changes().await? {
            true => Step::Polled { watermark: next, at, is_well },
            false => Step::PolledUpTo { watermark: next },
        })
        .await?;
        self.last_poll = Some(at);
        self.position = Position::Following { watermark: next };
        // What has been waited for once is not waited for again while it goes on.
        self.mass_since = self.mass_since.filter(|_| is_endless);
        self.just_filled = false;
        Ok(true)
    }

    /// Reads those of these records that are not stored, however many: a journal as a whole is many more.
    async fn look_up_new(&self, rows: &Rows) -> Result<(), Stop> {
        let here = self.store.find_in(self.table, rows.ids().map(SysId::new).collect()).await?;
        let here: HashSet<&str> = here.iter().map(|(id, _)| id.as_str()).collect();
        let new: StoredRecords = rows
            .ids()
            .filter(|id| !here.contains(id))
            .map(|id| (SysId::new(id), Version::default()))
            .collect();
        let looks = new.chunks(IDS_AT_A_TIME).map(|some| {
            recheck(&self.client, &*self.store, self.table, &self.spec, some.to_vec(), Origin::Poll)
        });
        let looks = iter(looks.collect::<Vec<_>>()).buffered(self.spec.parallel.max(1));
        looks.try_collect().await
    }

    /// Where records arrive that another table has in a version from before, they may have left that one: their class was
    /// changed.
    async fn doubt_where_it_was(&self, rows: &Rows) -> Result<(), Stop> {
        let here = self.store.find_in(self.table, rows.ids().map(SysId::new).collect()).await?;
        let here: HashSet<&str> = here.iter().map(|(id, _)| id.as_str()).collect();
        let shown: HashMap<&str, Version> = (0..rows.len())
            .map(|row| (rows.id(row), rows.version(row)))
            .filter(|(id, _)| !here.contains(id))
            .collect();
        if shown.is_empty() {
            return Ok(());
        }
        let found = self.store.find(shown.keys().map(|id| SysId::new(*id)).collect()).await?;
        for (table, stored) in found.records.into_iter().filter(|(table, _)| *table != self.table) {
            let is_older = |(id, stored): &(SysId, Version)| {
                let shown = shown.get(id.as_str()).map(|shown| shown.order(*stored));
                stored.updated_on.is_some() && shown == Some(Order::Later)
            };
            let older: Vec<SysId> = stored.into_iter().filter(is_older).map(|(id, _)| id).collect();
            if older.is_empty() {
                continue;
            }
            match self.store.apply(table, Step::Doubted(older)).await {
                // Somebody changes that table: it is filled anew.
                Ok(()) | Err(StoreError::Stale) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Looks up what could not be kept, or has been put into the store by others.
    pub(super) async fn recheck_what_is_unsettled(&mut self) -> Result<(), Stop> {
        let unsettled = self.store.to_recheck(self.table).await?;
        let is_part = unsettled.len() >= RECHECKED_AT_A_TIME;
        // The same ones as before will not be settled by going on at once.
        self.is_unsettled = is_part && unsettled != self.looked_up;
        self.looked_up = if is_part { unsettled.clone() } else { StoredRecords::new() };
        recheck(&self.client, &*self.store, self.table, &self.spec, unsettled, Origin::Poll).await
    }

    /// What to do about so many records of `base` that have changed since a second. What changed just now will be
    /// met by the first poll after everything has been read again, because that begins an overlap before; so it is
    /// waited for the end of a mass update, but not for ever.
    async fn mass_of(&self, base: &Query, since: i64, page: &Page, at: SystemTime) -> Result<Mass, Stop> {
        let size = u64::from(self.spec.page_size);
        if self.just_filled || !page.total.is_some_and(|changed| is_many(changed, size)) {
            return Ok(Mass::No);
        }
        // What is stamped in the future was changed, and read, before a clock was set back.
        let until = page.served_at.unwrap_or_else(|| local_seconds(at)) + OVERLAP;
        let table = &self.spec.table;
        let changed = self.client.count(table, &between(base, since, until)?).await?;
        if !is_many(changed, size)
            || !is_much(changed, self.client.count(table, &self.spec.query).await?, size)
        {
            return Ok(Mass::No);
        }
        let just_now = self.client.count(table, &between(base, until - 2 * OVERLAP, until)?).await?;
        let waited = self.mass_since.map(|since| since.elapsed()).unwrap_or_default();
        Ok(match is_many(just_now, size) {
            false => Mass::Over,
            true if waited < LONGEST_WAIT => Mass::GoingOn,
            true => Mass::Endless,
        })
    }

    /// Gives back whether all is read, or begun to be.
    async fn meet(&mut self, mass: Mass) -> Result<bool, Stop> {
        if mass == Mass::GoingOn {
            self.mass_since.get_or_insert_with(Instant::now);
            return Ok(false);
        }
        self.begin(true).await?;
        self.mass_since = None;
        Ok(true)
    }

    /// Where the next poll begins. If the instance's clock has been set back, what was changed since then and
    /// before this poll is stamped earlier than the old watermark; so it begins as far back as that may be.
    fn next_watermark(&self, before: i64, served: i64, at: SystemTime) -> i64 {
        if served >= before - OVERLAP {
            return served;
        }
        let since = self.last_poll.and_then(|last| at.duration_since(last).ok());
        served - since.unwrap_or(self.spec.pace.own()).as_secs() as i64
    }

    /// A record that changed and is not among those that match may have matched before. Gives back whether there are
    /// too many.
    async fn drop_rows_that_stopped_matching(
        &self,
        since: i64,
        matching: &HashSet<SysId>,
        at: SystemTime,
    ) -> Result<Option<Mass>, Stop> {
        let (all, layout) = (Query::all(), Arc::new(Layout::of_text(&[])));
        let mut tail = Tail::new("sys_updated_on", since);
        let mut others = Vec::new();
        for pages in 0.. {
            let (page, progress) = self.tail_page(&mut tail, &all, &layout).await?;
            let mass = if pages == 0 { self.mass_of(&all, since, &page, at).await? } else { Mass::No };
            if mass.is_waited_for() {
                return Ok(Some(mass));
            }
            others.extend(page.rows.ids().map(SysId::new).filter(|id| !matching.contains(id)));
            if progress == Progress::Done {
                break;
            }
        }
        let stored = self.store.find_in(self.table, others).await?;
        recheck(&self.client, &*self.store, self.table, &self.spec, stored, Origin::Poll).await?;
        Ok(None)
    }

    /// One page of a tail, asked for in smaller pieces as long as the instance cuts it short. If it is in no hurry, a few
    /// records are asked for together with what other tables ask for: mostly that is all there is.
    async fn tail_page(
        &self,
        tail: &mut Tail,
        base: &Query,
        layout: &Arc<Layout>,
    ) -> Result<(Page, Progress), Stop> {
        let table = &self.spec.table;
        if self.is_in_no_hurry() && tail.is_at_its_beginning() {
            let (query, offset) = tail.page(base, FEW)?;
            let list = List { table, query: &query, layout, limit: FEW, offset, count: true };
            if let Some(page) = self.client.list_together(list).await
                && page.total.is_some_and(|total| total <= u64::from(FEW))
            {
                let progress = tail.advance(&page, FEW);
                return Ok((page, progress));
            }
        }
        let (page, limit) = shrinking(&self.page_size, async |limit| {
            let (query, offset) = tail.page(base, limit)?;
            self.client.list(List { table, query: &query, layout, limit, offset, count: true }).await
        })
        .await?;
        let progress = tail.advance(&page, limit);
        Ok((page, progress))
    }
}

/// What of `base` has changed between two seconds.
fn between(base: &Query, from: i64, to: i64) -> crate::Result<Query> {
    let time = |op, second| Term::new("sys_updated_on", op, &date_time(second).unwrap_or_default());
    Ok(base.clone().and(time(Op::Ge, from)?).and(time(Op::Lt, to)?))
}
