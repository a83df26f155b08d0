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

use futures_util::future::{join, try_join_all};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::mirror::Spec;
use super::moved::Moved;
use super::pace::Pace;
use super::recheck::recheck;
use super::store::{DeletesRead, Origin, Step, Store, StoreError, StoredRecords};
use super::sweep::Progress;
use super::tail::Tail;
use super::{OVERLAP, Stop, local_seconds, next_since, rest_after_reading};
use crate::client::Client;
use crate::client::page_size::PageSize;
use crate::client::table_api::{List, shrinking};
use crate::client::transport::Transport;
use crate::page::Layout;
use crate::query::Query;
use crate::value::{SysId, TableName};

/// How long a table may take to show what it has left; then that is up to its own mirror, and the others go on.
const LONGEST_LOOK: Duration = Duration::from_secs(10);
/// Entries asked for at a time.
const PAGE: u32 = 1_000;

/// Reads deletions of one server's tables.
pub struct Deletes<T, S: Store> {
    client: Client<T>,
    /// For lists, which may go together with those of others.
    reader: Client<T>,
    store: Arc<S>,
    /// What each table mirrors.
    specs: HashMap<S::Table, Spec>,
    page_size: PageSize,
}

impl<T: Transport, S: Store> Deletes<T, S>
where
    S::Table: Hash,
{
    /// A reader for these tables.
    pub fn new(client: Client<T>, store: Arc<S>, specs: HashMap<S::Table, Spec>) -> Self {
        Self { reader: client.clone(), client, store, specs, page_size: PageSize::new(PAGE) }
    }

    /// Has its lists go together with those of others, or not.
    fn go_along(&mut self, along: bool) {
        self.reader = self.client.gathering_if(along);
    }

    /// Reads what was deleted since the last reading the store took note of, and drops what is gone.
    pub async fn read(&self) -> Result<DeletesRead, Stop> {
        let at = SystemTime::now();
        let table = TableName::new("sys_audit_delete").expect("a valid name");
        let layout = Arc::new(Layout::of_text(&["documentkey", "sys_created_on"]));
        let begin = match self.store.deletes_since().await? {
            Some(since) => since,
            None => self.instance_clock(&table, &layout, at).await?,
        };
        let mut tail = Tail::new("sys_created_on", begin - OVERLAP);
        let mut served = None;
        let mut all = true;
        loop {
            let (page, limit) = shrinking(&self.page_size, async |limit| {
                let (query, offset) = tail.page(&Query::all(), limit)?;
                let (table, query, layout) = (&table, &query, &layout);
                let client = if tail.is_at_its_beginning() { &self.reader } else { &self.client };
                client.list(List { table, query, layout, limit, offset, count: true }).await
            })
            .await?;
            served = served.or(page.served_at);
            let rows = &page.rows;
            let ids = (0..rows.len()).map(|row| SysId::new(rows.get(row, "documentkey")));
            all &= self.check(ids.filter(|id| !id.as_str().is_empty()).collect()).await?;
            if tail.advance(&page, limit) == Progress::Done {
                break;
            }
        }
        let served = served.unwrap_or_else(|| local_seconds(at));
        // What the store could not be told of is met again.
        let watermark = if all { next_since(begin, served) } else { begin };
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

    /// Looks up those of these records that are stored; all of them in tables that somebody keeps from being asked, as soon
    /// as they can be. Gives back whether the store could be told of all.
    async fn check(&self, ids: Vec<SysId>) -> Result<bool, Stop> {
        if ids.is_empty() {
            return Ok(true);
        }
        let found = self.store.find(ids.clone()).await?;
        let mut all = true;
        for table in found.left_out {
            match self.doubt(table, ids.clone()).await {
                Ok(()) => {}
                Err(Stop::Store(StoreError::Failed(_))) => all = false,
                Err(stop) => return Err(stop),
            }
        }
        let looks = found.records.into_iter().map(|(table, stored)| self.look_up(table, stored));
        try_join_all(looks).await?;
        Ok(all)
    }

    /// Leaves records to the table's mirror to look up.
    async fn doubt(&self, table: S::Table, ids: Vec<SysId>) -> Result<(), Stop> {
        match self.store.apply(table, Step::Doubted(ids)).await {
            // Somebody changes the table: it is filled anew.
            Ok(()) | Err(StoreError::Stale) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Looks records of a table up. If that fails or takes long, the table's mirror does it with its next poll: a table
    /// that is slow, forbidden or cannot be written now does not keep others from losing what was deleted.
    async fn look_up(&self, table: S::Table, stored: StoredRecords) -> Result<(), Stop> {
        let Some(spec) = self.specs.get(&table) else { return Ok(()) };
        let ids = stored.iter().map(|(id, _)| id.clone()).collect();
        let looking = recheck(&self.client, &*self.store, table, spec, stored, Origin::Poll);
        match timeout(LONGEST_LOOK, looking).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Stop::Remote(_) | Stop::Store(StoreError::Failed(_)))) | Err(_) => {
                self.doubt(table, ids).await
            }
            Ok(Err(stop)) => Err(stop),
        }
    }
}

/// Reads deletions, and what has moved, at a pace until the future is dropped; `nudge` ends a wait early, one after a failure
/// if it is long.
pub async fn run<T: Transport, S: Store>(
    mut deletes: Deletes<T, S>,
    mut moved: Moved<T, S>,
    mut pace: Pace,
    nudge: Arc<Notify>,
) where
    S::Table: Hash,
{
    let mut failures = 0;
    loop {
        let since = deletes.store.deletes_since().await;
        let moving = async {
            if let Ok(Some(since)) = since {
                // What fails is read with the next ones; a store that is no more of use is told of by the tables' mirrors.
                let _read_again = moved.read(since).await;
            }
        };
        let (outcome, ()) = join(deletes.read(), moving).await;
        let next = pace.meeting_in().unwrap_or_else(|| pace.now());
        let rest = rest_after_reading(&mut failures, outcome.is_ok(), next);
        // What the store could not note it is told again after the next reading.
        let _noted = deletes.store.note_deletes(outcome).await;
        let is_asked = rest.take(&nudge, &mut pace).await;
        let in_no_hurry = pace.is_slowed() && !is_asked;
        deletes.go_along(in_no_hurry);
        moved.go_along(in_no_hurry);
    }
}
