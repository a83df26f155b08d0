//! Reading what has changed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use super::mirror::Mirror;
use super::recheck::recheck;
use super::store::{Position, Step, Store};
use super::sweep::Progress;
use super::tail::{SeenInTime, Tail};
use super::{OVERLAP, Stop, local_seconds};
use crate::client::table_api::{List, Page, shrinking};
use crate::client::transport::Transport;
use crate::page::Layout;
use crate::query::Query;
use crate::value::SysId;

impl<T: Transport, S: Store> Mirror<T, S> {
    /// Reads what changed since the watermark.
    pub(super) async fn poll(&mut self) -> Result<(), Stop> {
        let Position::Following { watermark } = self.position else { return Ok(()) };
        let at = SystemTime::now();
        let mut tail = Tail::new("sys_updated_on", watermark - OVERLAP);
        let mut matching = HashSet::new();
        let mut next_watermark: Option<i64> = None;
        loop {
            let (page, limit) = shrinking(self.spec.page_size, async |limit| {
                let (query, offset) = tail.page(&self.spec.query, limit)?;
                self.list(&query, limit, offset, true).await
            })
            .await?;
            next_watermark.get_or_insert(page.served_at.unwrap_or_else(|| local_seconds(at)));
            let progress = tail.advance(&seen_in_time(&page), limit);
            if !self.spec.query.is_all() {
                matching.extend(page.rows.ids().map(SysId::new));
            }
            if !page.rows.is_empty() {
                self.apply(Step::Changed(page.rows)).await?;
            }
            if progress == Progress::Done {
                break;
            }
        }
        let all =
            self.spec.query.is_all() || self.drop_rows_that_stopped_matching(watermark, &matching).await?;
        let unsettled = self.store.to_recheck(self.table).await?;
        recheck(&self.client, &*self.store, self.table, &self.spec, unsettled).await?;
        let next = match next_watermark {
            Some(served) if all => self.next_watermark(watermark, served, at),
            _ => watermark,
        };
        self.apply(Step::Polled { watermark: next, at }).await?;
        self.last_poll = Some(at);
        self.position = Position::Following { watermark: next };
        Ok(())
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
    /// store could be asked about all of them.
    async fn drop_rows_that_stopped_matching(
        &self,
        watermark: i64,
        matching: &HashSet<SysId>,
    ) -> Result<bool, Stop> {
        let layout = Arc::new(Layout::of_text(&[]));
        let mut tail = Tail::new("sys_updated_on", watermark - OVERLAP);
        let mut others = Vec::new();
        loop {
            let (page, limit) = shrinking(self.spec.page_size, async |limit| {
                let (query, offset) = tail.page(&Query::all(), limit)?;
                let table = &self.spec.table;
                let list = List { table, query: &query, layout: &layout, limit, offset, count: true };
                self.client.list(list).await
            })
            .await?;
            others.extend(page.rows.ids().map(SysId::new).filter(|id| !matching.contains(id)));
            if tail.advance(&seen_in_time(&page), limit) == Progress::Done {
                break;
            }
        }
        let found = self.store.find(others).await?;
        for (table, stored) in found.records {
            if table == self.table {
                recheck(&self.client, &*self.store, table, &self.spec, stored).await?;
            }
        }
        Ok(found.complete)
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
