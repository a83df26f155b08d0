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
use crate::page::Layout;
use crate::query::Query;
use crate::value::{SysId, TableName};

/// Records asked for at a time, of which only identity and version are read.
const PAGE: u32 = 5_000;

/// What an instance has in a range.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// How many records it counts, those it does not show included.
    pub counted: u64,
    /// What it shows.
    pub shown: Shown,
}

/// Reads identity and version of every record of a range that matches.
pub async fn inspect<T: Transport>(
    client: &Client<T>,
    table: &TableName,
    query: &Query,
    range: Range,
) -> Result<Inspected> {
    let counted = client.count(table, &range.within(query.clone())?).await?;
    let (layout, page_size) = (Arc::new(Layout::of_text(&[])), PageSize::new(PAGE));
    let mut sweep = Sweep::new(range.clone(), None);
    let mut shown = Shown { range, ..Shown::default() };
    loop {
        let (query, offset) = sweep.page(query)?;
        let (page, limit) = shrinking(&page_size, |limit| {
            let (query, layout, count) = (&query, &layout, sweep.wants_count(limit));
            client.list(List { table, query, layout, limit, offset, count })
        })
        .await?;
        let rows = &page.rows;
        shown.records.extend((0..rows.len()).map(|row| (SysId::new(rows.id(row)), rows.version(row))));
        let last = rows.ids().last().map(SysId::new);
        if sweep.advance(&Seen { rows: rows.len(), last, total: page.total }, limit) == Progress::Done {
            return Ok(Inspected { counted, shown });
        }
    }
}
