//! Records that have left their table for another one: an instance lets people change a record's class, by which an
//! incident becomes a problem and keeps its `sys_id`.
//!
//! The table it leaves does not tell. The one that all its classes extend does: there the record has changed. One that
//! has a later version there than a mirror of one of its classes has, though that has been polled since, is looked up.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::mirror::Spec;
use super::recheck::recheck;
use super::store::{Origin, Step, Store, StoreError, StoredRecords};
use super::sweep::Progress;
use super::tail::Tail;
use super::{OVERLAP, Stop, next_since};
use crate::client::Client;
use crate::client::page_size::PageSize;
use crate::client::table_api::{List, shrinking};
use crate::client::transport::Transport;
use crate::dictionary;
use crate::error::Error;
use crate::page::{Layout, Order, Rows, Version};
use crate::query::Query;
use crate::value::{SysId, TableName};

/// Records asked for at a time.
const PAGE: u32 = 1_000;
/// If more records of a table look as if they had left it, its poll is behind, and will bring them.
const MOST: usize = 500;
/// A table may not have been polled since a change that is more recent than so many of its intervals.
const POLLS: u32 = 2;
/// Nor is it waited for longer: what lies further back than the overlap is not read again.
const LONGEST_WAIT: Duration = Duration::from_secs(OVERLAP as u64 - 10);

/// Reads which records have left the tables of one server.
pub struct Moved<T, S: Store> {
    client: Client<T>,
    /// For lists, which may go together with those of others.
    reader: Client<T>,
    store: Arc<S>,
    /// What each table mirrors.
    specs: HashMap<S::Table, Spec>,
    /// The topmost tables, once they are known, each with the mirrored tables that extend it.
    roots: Option<HashMap<TableName, Vec<S::Table>>>,
    page_size: PageSize,
    /// Where the next reading begins, by the instance's clock, in seconds since 1970.
    since: Option<i64>,
}

impl<T: Transport, S: Store> Moved<T, S>
where
    S::Table: Hash,
{
    /// A reader for these tables.
    pub fn new(client: Client<T>, store: Arc<S>, specs: HashMap<S::Table, Spec>) -> Self {
        Self {
            reader: client.clone(),
            client,
            store,
            specs,
            roots: None,
            page_size: PageSize::new(PAGE),
            since: None,
        }
    }

    /// Has its lists go together with those of others, or not.
    pub(super) fn go_along(&mut self, along: bool) {
        self.reader = self.client.gathering_if(along);
    }

    /// Reads what has changed in the topmost tables since the last reading, or since a second if there was none, and
    /// drops what has left a mirrored table. After an error the next reading begins at the same second.
    pub async fn read(&mut self, since: i64) -> Result<(), Stop> {
        let since = *self.since.get_or_insert(since);
        if self.roots.is_none() {
            self.roots = Some(self.find_roots().await?);
        }
        let mut next = None;
        let roots = self.roots.iter().flatten().map(|(root, tables)| self.read_root(root, tables, since));
        for read in join_all(roots).await {
            match read {
                Ok(served) => next = next.into_iter().chain(served).min(),
                // It may not be seen: that is found by counting.
                Err(Stop::Remote(Error::Refused { .. } | Error::NoTable(_))) => {}
                Err(stop) => return Err(stop),
            }
        }
        self.since = next.map(|served| next_since(since, served)).or(self.since);
        Ok(())
    }

    /// The topmost tables that can tell of mirrored ones: those that do have classes.
    async fn find_roots(&self) -> Result<HashMap<TableName, Vec<S::Table>>, Stop> {
        let names: Vec<TableName> = self.specs.values().map(|spec| spec.table.clone()).collect();
        let chains = match names.is_empty() {
            true => HashMap::new(),
            false => dictionary::chains(&self.client, &names).await?,
        };
        let mut roots: HashMap<TableName, Vec<S::Table>> = HashMap::new();
        for (table, spec) in &self.specs {
            let root = chains.get(&spec.table).and_then(|chain| chain.last());
            if let Some(root) = root.filter(|root| **root != spec.table) {
                roots.entry(root.clone()).or_default().push(*table);
            }
        }
        Ok(roots)
    }

    /// Gives back the instance's clock when the reading began.
    async fn read_root(
        &self,
        root: &TableName,
        tables: &[S::Table],
        since: i64,
    ) -> Result<Option<i64>, Stop> {
        let layout = Arc::new(Layout::of_text(&[]));
        let mut tail = Tail::new("sys_updated_on", since - OVERLAP);
        let mut left: HashMap<S::Table, StoredRecords> = HashMap::new();
        let (mut served, mut complete) = (None, true);
        loop {
            let (page, limit) = shrinking(&self.page_size, async |limit| {
                let (query, offset) = tail.page(&Query::all(), limit)?;
                let (table, query, layout) = (root, &query, &layout);
                let client = if tail.is_at_its_beginning() { &self.reader } else { &self.client };
                client.list(List { table, query, layout, limit, offset, count: true }).await
            })
            .await?;
            served = served.or(page.served_at);
            complete &= self.compare(&page.rows, tables, served, &mut left).await?;
            if tail.advance(&page, limit) == Progress::Done {
                break;
            }
        }
        for (table, stored) in left {
            self.look_up(table, stored).await?;
        }
        // What the store could not be asked about is met again.
        Ok(if complete { served } else { Some(since) })
    }

    /// Adds those of these records that tables have in a version from before, although they have been polled since. Gives
    /// back whether the store could be asked about all.
    async fn compare(
        &self,
        rows: &Rows,
        tables: &[S::Table],
        served: Option<i64>,
        left: &mut HashMap<S::Table, StoredRecords>,
    ) -> Result<bool, Stop> {
        if rows.is_empty() {
            return Ok(true);
        }
        let shown: HashMap<&str, Version> =
            (0..rows.len()).map(|row| (rows.id(row), rows.version(row))).collect();
        let found = self.store.find(rows.ids().map(SysId::new).collect()).await?;
        for (table, stored) in found.records {
            let Some(spec) = self.specs.get(&table).filter(|_| tables.contains(&table)) else { continue };
            let wait = spec.pace.own().saturating_mul(POLLS).min(LONGEST_WAIT).as_secs() as i64;
            let has_moved = |(id, stored): &(SysId, Version)| {
                shown.get(id.as_str()).is_some_and(|shown| {
                    let is_settled = shown.updated_on.zip(served).is_some_and(|(at, now)| at < now - wait);
                    is_settled && stored.updated_on.is_some() && shown.order(*stored) == Order::Later
                })
            };
            left.entry(table).or_default().extend(stored.into_iter().filter(has_moved));
        }
        Ok(!found.left_out.iter().any(|table| tables.contains(table)))
    }

    /// Looks records up that seem to have left a table. If it does not show them now, its own mirror does it with its
    /// next poll.
    async fn look_up(&self, table: S::Table, stored: StoredRecords) -> Result<(), Stop> {
        let Some(spec) = self.specs.get(&table).filter(|_| stored.len() <= MOST) else { return Ok(()) };
        let ids = stored.iter().map(|(id, _)| id.clone()).collect();
        match recheck(&self.client, &*self.store, table, spec, stored, Origin::Poll).await {
            Err(Stop::Remote(_) | Stop::Store(StoreError::Failed(_))) => {
                match self.store.apply(table, Step::Doubted(ids)).await {
                    // Somebody changes the table: it is filled anew.
                    Ok(()) | Err(StoreError::Stale) => Ok(()),
                    Err(e) => Err(e.into()),
                }
            }
            // As above.
            Err(Stop::Store(StoreError::Stale)) => Ok(()),
            looked => looked,
        }
    }
}
