//! Reading what has changed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::mirror::Mirror;
use super::recheck::recheck;
use super::reconcile::{is_many, is_much};
use super::store::{Origin, Position, Step, Store};
use super::sweep::Progress;
use super::tail::{SeenInTime, Tail};
use super::{OVERLAP, Stop, local_seconds};
use crate::client::table_api::{List, Page, shrinking};
use crate::client::transport::Transport;
use crate::page::Layout;
use crate::query::{Op, Query, Term};
use crate::value::{SysId, date_time};

/// How long to wait for the end of a mass update before it is read as if it were none.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Whether much of a table has changed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mass {
    /// It has not, or it is to be read like any change.
    No,
    /// It has, some of it just now.
    GoingOn,
    /// It has.
    Over,
}

impl<T: Transport, S: Store> Mirror<T, S> {
    /// Reads what changed since the watermark. If that is much of the table it is read again as a whole instead,
    /// several ranges side by side, which this begins. Gives back whether all is read, or begun to be.
    pub(super) async fn poll(&mut self) -> Result<bool, Stop> {
        let Position::Following { watermark } = self.position else { return Ok(true) };
        let at = SystemTime::now();
        let mut tail = Tail::new("sys_updated_on", watermark - OVERLAP);
        let mut matching = HashSet::new();
        let mut first_served: Option<i64> = None;
        loop {
            let (page, limit) = shrinking(&self.page_size, async |limit| {
                let (query, offset) = tail.page(&self.spec.query, limit)?;
                self.list(&query, limit, offset, true).await
            })
            .await?;
            let served = page.served_at.unwrap_or_else(|| local_seconds(at));
            let mass = match first_served {
                None => self.mass_of(&self.spec.query, page.total, served).await?,
                Some(_) => Mass::No,
            };
            first_served.get_or_insert(served);
            let progress = tail.advance(&seen_in_time(&page), limit);
            if !self.spec.query.is_all() {
                matching.extend(page.rows.ids().map(SysId::new));
            }
            if !page.rows.is_empty() {
                self.apply(Step::Changed(page.rows)).await?;
            }
            if mass != Mass::No {
                return self.meet(mass).await;
            }
            if progress == Progress::Done {
                break;
            }
        }
        let mut all = true;
        if !self.spec.query.is_all() {
            match self.drop_rows_that_stopped_matching(watermark, &matching, at).await? {
                Ok(complete) => all = complete,
                Err(mass) => return self.meet(mass).await,
            }
        }
        let unsettled = self.store.to_recheck(self.table).await?;
        recheck(&self.client, &*self.store, self.table, &self.spec, unsettled, Origin::Poll).await?;
        let next = match first_served {
            Some(served) if all => self.next_watermark(watermark, served, at),
            _ => watermark,
        };
        self.apply(Step::Polled { watermark: next, at }).await?;
        self.last_poll = Some(at);
        self.position = Position::Following { watermark: next };
        (self.mass_since, self.refilled_for_changes) = (None, false);
        Ok(true)
    }

    /// What to do about so many records that have changed. What changed just now will be met by the first poll
    /// after everything has been read again, because that begins an overlap before; so it is waited for the end
    /// of a mass update, but not for ever.
    async fn mass_of(&self, base: &Query, changed: Option<u64>, served: i64) -> Result<Mass, Stop> {
        let page = u64::from(self.spec.page_size);
        let Some(changed) = changed.filter(|changed| is_many(*changed, page)) else { return Ok(Mass::No) };
        if self.refilled_for_changes
            || !is_much(changed, self.client.count(&self.spec.table, &self.spec.query).await?, page)
        {
            return Ok(Mass::No);
        }
        let since = date_time(served - OVERLAP).unwrap_or_default();
        let since = Term::new("sys_updated_on", Op::Ge, &since).map_err(crate::Error::from)?;
        let just_now = self.client.count(&self.spec.table, &base.clone().and(since)).await?;
        let waited = self.mass_since.and_then(|since| since.elapsed().ok()).unwrap_or_default();
        Ok(match is_many(just_now, page) {
            false => Mass::Over,
            true if waited < LONGEST_WAIT => Mass::GoingOn,
            true => Mass::No,
        })
    }

    /// Gives back whether all is read, or begun to be.
    async fn meet(&mut self, mass: Mass) -> Result<bool, Stop> {
        if mass == Mass::GoingOn {
            self.mass_since.get_or_insert_with(SystemTime::now);
            return Ok(false);
        }
        self.begin(true).await?;
        (self.mass_since, self.refilled_for_changes) = (None, true);
        Ok(true)
    }

    /// Where the next poll begins. If the instance's clock has been set back, what was changed since then and
    /// before this poll is stamped earlier than the old watermark; so it begins as far back as that may be.
    fn next_watermark(&self, before: i64, served: i64, at: SystemTime) -> i64 {
        if served >= before - OVERLAP {
            return served;
        }
        let since = self.last_poll.and_then(|last| at.duration_since(last).ok());
        served - since.unwrap_or(self.spec.poll_interval).as_secs() as i64
    }

    /// A record that changed and is not among those that match may have matched before. Gives back whether the
    /// store could be asked about all of them, or that there are too many.
    async fn drop_rows_that_stopped_matching(
        &self,
        watermark: i64,
        matching: &HashSet<SysId>,
        at: SystemTime,
    ) -> Result<Result<bool, Mass>, Stop> {
        let layout = Arc::new(Layout::of_text(&[]));
        let mut tail = Tail::new("sys_updated_on", watermark - OVERLAP);
        let mut others = Vec::new();
        let mut is_first = true;
        loop {
            let (page, limit) = shrinking(&self.page_size, async |limit| {
                let (query, offset) = tail.page(&Query::all(), limit)?;
                let table = &self.spec.table;
                let list = List { table, query: &query, layout: &layout, limit, offset, count: true };
                self.client.list(list).await
            })
            .await?;
            if std::mem::take(&mut is_first) {
                let served = page.served_at.unwrap_or_else(|| local_seconds(at));
                let mass = self.mass_of(&Query::all(), page.total, served).await?;
                if mass != Mass::No {
                    return Ok(Err(mass));
                }
            }
            others.extend(page.rows.ids().map(SysId::new).filter(|id| !matching.contains(id)));
            if tail.advance(&seen_in_time(&page), limit) == Progress::Done {
                break;
            }
        }
        let found = self.store.find(others).await?;
        for (table, stored) in found.records {
            if table == self.table {
                recheck(&self.client, &*self.store, table, &self.spec, stored, Origin::Poll).await?;
            }
        }
        Ok(Ok(found.complete))
    }
}

fn seen_in_time(page: &Page) -> SeenInTime {
    let rows = &page.rows;
    let last = rows.len().checked_sub(1).and_then(|row| {
        let second = rows.version(row).updated_on?;
        Some((second, SysId::new(rows.id(row))))
    });
    SeenInTime { rows: rows.len(), last, total: page.total }
}
