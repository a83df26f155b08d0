//! What records of a table are called that have changed, and what was told of them before.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use super::OVERLAP;
use super::sweep::Progress;
use super::tail::Tail;
use crate::client::Client;
use crate::client::page_size::PageSize;
use crate::client::table_api::{List, shrinking};
use crate::client::transport::Transport;
use crate::error::Error;
use crate::page::{Column, Layout, Rows};
use crate::query::Query;
use crate::value::{Kind, Show, SysId, TableName};

/// Records asked for at a time.
const PAGE: u32 = 1_000;
/// Records remembered, so that one that changes often and keeps its name is not looked for every time.
const REMEMBERED: usize = 200_000;

/// A record that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) id: SysId,
    /// What is shown of it; what the caller may not see is none.
    pub(super) names: Vec<Option<String>>,
    /// See [`Version`](crate::page::Version).
    pub(super) mod_count: Option<i64>,
}

/// Reads the records of a table that have changed since a second, page by page.
pub(super) struct Changes {
    table: TableName,
    layout: Arc<Layout>,
    page_size: PageSize,
    from: i64,
    tail: Tail,
    is_over: bool,
}

impl Changes {
    /// `shown` is what is to be known of them.
    pub(super) fn new(table: TableName, shown: &[(String, Show)], since: i64) -> Self {
        let column =
            |(field, show): &(String, Show)| Column { field: field.clone(), show: *show, kind: Kind::Text };
        let from = since - OVERLAP;
        Self {
            table,
            layout: Arc::new(Layout::new(shown.iter().map(column).collect())),
            page_size: PageSize::new(PAGE),
            from,
            tail: Tail::new("sys_updated_on", from),
            is_over: false,
        }
    }

    /// Nothing has been read yet.
    pub(super) fn is_at_its_beginning(&self) -> bool {
        self.tail.is_at_its_beginning()
    }

    /// Everything has been read.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// The next page; `None` if the table cannot be asked for what has changed.
    pub(super) async fn next<T: Transport>(
        &mut self,
        client: &Client<T>,
    ) -> crate::Result<Option<Vec<Named>>> {
        let (tail, table, layout) = (&self.tail, &self.table, &self.layout);
        let listed = shrinking(&self.page_size, async |limit| {
            let (query, offset) = tail.page(&Query::all(), limit)?;
            client.list(List { table, query: &query, layout, limit, offset, count: true }).await
        });
        let (page, limit) = match listed.await {
            Ok(listed) => listed,
            Err(Error::Refused { .. } | Error::NoTable(_) | Error::Rejected { .. }) => return Ok(None),
            Err(e) => return Err(e),
        };
        let rows = &page.rows;
        let stamp = |row| rows.version(row).updated_on;
        if (0..rows.len()).any(|row| stamp(row).is_none_or(|stamp| stamp < self.from)) {
            // The instance dropped the condition: the table has no such field, and gives everything it has.
            return Ok(None);
        }
        self.is_over = self.tail.advance(&page, limit) == Progress::Done;
        let named = |row| Named {
            id: SysId::new(rows.id(row)),
            names: names(rows, row),
            mod_count: rows.version(row).mod_count,
        };
        Ok(Some((0..rows.len()).map(named).collect()))
    }
}

fn names(rows: &Rows, row: usize) -> Vec<Option<String>> {
    let columns = 0..rows.layout().columns().len();
    columns.map(|column| rows.is_shown(row, column).then(|| rows.text(row, column).to_owned())).collect()
}

/// What tables were told of the records they refer to. Only digests are kept, so many at most.
#[derive(Debug, Default)]
pub(super) struct Told {
    hasher: RandomState,
    /// By table, table referred to and record.
    last: HashMap<u64, Last>,
}

/// What was last told of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// Its names, and how often it had been changed.
    Names(u64, Option<i64>),
    /// It is gone.
    Gone,
}

impl Told {
    fn key(&self, table: impl Hash, referred: &TableName, id: &SysId) -> u64 {
        self.hasher.hash_one((table, referred, id))
    }

    fn last(&self, table: impl Hash, referred: &TableName, id: &SysId) -> Option<Last> {
        self.last.get(&self.key(table, referred, id)).copied()
    }

    /// Whether a table may show something else of a record than what it is called now. Its name may have come back:
    /// what was read in between shows the other one.
    pub(super) fn is_news(&self, table: impl Hash, referred: &TableName, record: &Named) -> bool {
        match self.last(table, referred, &record.id) {
            Some(Last::Names(names, before)) => {
                let changed_once = before
                    .zip(record.mod_count)
                    .is_some_and(|(before, now)| (before..=before + 1).contains(&now));
                names != self.hasher.hash_one(&record.names) || !changed_once
            }
            _ => true,
        }
    }

    /// Whether a table has not been told yet that a record is gone.
    pub(super) fn is_news_of_end(&self, table: impl Hash, referred: &TableName, id: &SysId) -> bool {
        self.last(table, referred, id) != Some(Last::Gone)
    }

    /// A table was told what records are called.
    pub(super) fn note(&mut self, table: impl Hash, referred: &TableName, records: &[&Named]) {
        for record in records {
            let last = Last::Names(self.hasher.hash_one(&record.names), record.mod_count);
            self.remember(&table, referred, &record.id, last);
        }
    }

    /// A table was told that records are gone.
    pub(super) fn note_end<'i>(
        &mut self,
        table: impl Hash,
        referred: &TableName,
        ids: impl Iterator<Item = &'i SysId>,
    ) {
        ids.for_each(|id| self.remember(&table, referred, id, Last::Gone));
    }

    fn remember(&mut self, table: impl Hash, referred: &TableName, id: &SysId, last: Last) {
        if self.last.len() >= REMEMBERED {
            self.last.clear();
        }
        self.last.insert(self.key(table, referred, id), last);
    }

    /// Nothing is known of what was told.
    pub(super) fn clear(&mut self) {
        self.last.clear();
    }
}
