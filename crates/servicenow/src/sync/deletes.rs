//! Deletions, which leave no trace in the table itself: read from `sys_audit_delete`.
//!
//! The audit files a deletion under the record's real class, which may be a child of the mirrored table, so
//! one reader serves all tables of a server and asks the store which records it has. No entry is believed
//! by itself: the record is looked up first, because it may have been made anew, and because an entry may
//! belong to a table that has a record of the same `sys_id`.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::timeout;

use super::mirror::{Spec, recheck};
use super::store::{DeletesRead, Store};
use super::sweep::Progress;
use super::tail::{SeenInTime, Tail};
use super::{OVERLAP, Stop, local_seconds, pause_after};
use crate::client::Client;
use crate::client::table_api::List;
use crate::client::transport::Transport;
use crate::page::Layout;
use crate::query::Query;
use crate::value::{SysId, TableName, decode_seconds};

/// Entries asked for at a time.
const PAGE: u32 = 1_000;

/// Reads deletions of one server's tables.
pub struct Deletes<T, S: Store> {
    client: Client<T>,
    store: Arc<S>,
    /// What each table mirrors.
    specs: HashMap<S::Table, Spec>,
    /// Entries before this second have been dealt with; `None` begins now.
    watermark: Option<i64>,
}

impl<T: Transport, S: Store> Deletes<T, S>
where
    S::Table: Hash,
{
    /// A reader that goes on from a watermark.
    pub fn new(
        client: Client<T>,
        store: Arc<S>,
        specs: HashMap<S::Table, Spec>,
        watermark: Option<i64>,
    ) -> Self {
        Self { client, store, specs, watermark }
    }

    /// Reads what was deleted since the watermark, and drops what is gone.
    pub async fn read(&mut self) -> Result<DeletesRead, Stop> {
        let at = SystemTime::now();
        let table = TableName::new("sys_audit_delete").expect("a valid name");
        let layout = Arc::new(Layout::of_text(&["documentkey", "sys_created_on"]));
        let begin = match self.watermark {
            Some(watermark) => watermark,
            None => self.instance_clock(&table, &layout, at).await?,
        };
        let mut tail = Tail::new("sys_created_on", begin - OVERLAP);
        let mut served = None;
        let mut all = true;
        loop {
            let (query, offset) = tail.page(&Query::all(), PAGE)?;
            let list =
                List { table: &table, query: &query, layout: &layout, limit: PAGE, offset, count: true };
            let page = self.client.list(list).await?;
            served = served.or(page.served_at);
            let rows = &page.rows;
            let ids = (0..rows.len()).map(|row| SysId::new(rows.get(row, "documentkey")));
            all &= self.check(ids.filter(|id| !id.as_str().is_empty()).collect()).await?;
            let last = rows.len().checked_sub(1).and_then(|row| {
                Some((decode_seconds(rows.get(row, "sys_created_on"))?, SysId::new(rows.id(row))))
            });
            if tail.advance(&SeenInTime { rows: rows.len(), last, total: page.total }, PAGE) == Progress::Done
            {
                break;
            }
        }
        // What could not be dropped, because somebody is writing it, is met again.
        let watermark = if all { served.unwrap_or_else(|| local_seconds(at)) } else { begin };
        self.watermark = Some(watermark);
        Ok(DeletesRead { watermark, at })
    }

    /// The instance's clock, which its records are stamped by.
    async fn instance_clock(
        &self,
        table: &TableName,
        layout: &Arc<Layout>,
        at: SystemTime,
    ) -> Result<i64, Stop> {
        let query = Query::all();
        let list = List { table, query: &query, layout, limit: 1, offset: 0, count: false };
        Ok(self.client.list(list).await?.served_at.unwrap_or_else(|| local_seconds(at)))
    }

    /// Looks up those of these records that are stored; gives back whether all have been dealt with.
    async fn check(&self, ids: Vec<SysId>) -> Result<bool, Stop> {
        let mut all = true;
        if ids.is_empty() {
            return Ok(all);
        }
        let found = self.store.find(ids).await?;
        all &= found.complete;
        for (table, stored) in found.records {
            if let Some(spec) = self.specs.get(&table) {
                all &= recheck(&self.client, &*self.store, table, spec, stored).await?.is_empty();
            }
        }
        Ok(all)
    }
}

/// Reads deletions every `interval` until the future is dropped; `nudge` ends a wait early.
pub async fn run<T: Transport, S: Store>(mut deletes: Deletes<T, S>, interval: Duration, nudge: Arc<Notify>)
where
    S::Table: Hash,
{
    let mut failures = 0;
    loop {
        let outcome = deletes.read().await;
        let pause = match &outcome {
            Ok(_) => {
                failures = 0;
                interval
            }
            Err(_) => {
                failures += 1;
                pause_after(failures).max(interval)
            }
        };
        // What the store could not note it is told again after the next reading.
        let _noted = deletes.store.note_deletes(outcome).await;
        let _nudged_or_over = timeout(pause, nudge.notified()).await;
    }
}
