//! Looking at everything an instance shows of a range, without changing anything.

use std::sync::Arc;

use super::compare::Shown;
use super::range::Range;
use super::sweep::{Progress, Seen, Sweep};
use crate::client::Client;
use crate::client::page_size::PageSize;
use crate::client::table_api::{List, shrinking};
use crate::client::transport::Transport;
use crate::error::Result;
use crate::page::{Layout, Rows};
use crate::query::Query;
use crate::value::{SysId, TableName};

/// A look at a range, page by page. Of what it has seen it keeps identities and versions only.
#[derive(Debug)]
pub struct Inspection {
    table: TableName,
    query: Query,
    layout: Arc<Layout>,
    page_size: PageSize,
    sweep: Sweep,
    is_over: bool,
    /// How many records the instance counts, those it does not show included; known after the first page.
    pub counted: u64,
    /// What it has shown.
    pub shown: Shown,
}

impl Inspection {
    /// Begins to look at every record of a range that matches, so many at a time.
    pub fn new(table: TableName, query: Query, layout: Arc<Layout>, range: Range, page: u32) -> Self {
        Self {
            table,
            query,
            layout,
            page_size: PageSize::new(page),
            sweep: Sweep::new(range.clone(), None),
            is_over: false,
            counted: 0,
            shown: Shown { range, ..Shown::default() },
        }
    }

    /// The next rows; `None` after the last.
    pub async fn next<T: Transport>(&mut self, client: &Client<T>) -> Result<Option<Rows>> {
        if self.is_over {
            return Ok(None);
        }
        if self.shown.records.is_empty() {
            let all = self.shown.range.within(self.query.clone())?;
            self.counted = client.count(&self.table, &all).await?;
        }
        let (query, offset) = self.sweep.page(&self.query)?;
        let (page, limit) = shrinking(&self.page_size, |limit| {
            let (query, layout, count) = (&query, &self.layout, self.sweep.wants_count(limit));
            client.list(List { table: &self.table, query, layout, limit, offset, count })
        })
        .await?;
        let rows = page.rows;
        self.shown.records.extend((0..rows.len()).map(|row| (SysId::new(rows.id(row)), rows.version(row))));
        let last = rows.ids().last().map(SysId::new);
        let seen = Seen { rows: rows.len(), last, total: page.total };
        self.is_over = self.sweep.advance(&seen, limit) == Progress::Done;
        Ok(Some(rows))
    }
}
