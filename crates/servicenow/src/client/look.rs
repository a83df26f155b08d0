//! Looking records up by `sys_id`, many in one call.

use std::sync::Arc;

use super::retry::{Effect, Policy, policy};
use super::table_api::List;
use super::transport::Transport;
use super::{Client, URL_LIMIT};
use crate::error::{Error, Result};
use crate::page::{Layout, Rows};
use crate::query::{Query, ids_term};
use crate::value::{SysId, TableName};

/// What separates two identifiers in an address: a comma, escaped.
const SEPARATOR: usize = "%2C".len();

impl<T: Transport> Client<T> {
    /// The records that have these `sys_id`s, in any order; those that are not there, or may not be seen, are
    /// missing.
    pub async fn look(&self, table: &TableName, ids: &[SysId], layout: &Arc<Layout>) -> Result<Rows> {
        self.look_among(table, &Query::default(), ids.iter().collect(), layout).await
    }

    /// As [`Self::look`], of the records that match a query. Identifiers that cannot stand in a query are looked
    /// up by their addresses, whether or not the record matches.
    pub(crate) async fn look_among(
        &self,
        table: &TableName,
        among: &Query,
        ids: Vec<&SysId>,
        layout: &Arc<Layout>,
    ) -> Result<Rows> {
        let mut found = Rows::new(layout.clone());
        let (plain, odd): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| id.is_plain());
        let query_for = |ids: &[&SysId]| among.clone().and(ids_term(ids.iter().copied()));
        let limit = |ids: &[&SysId]| u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let mut batches = Vec::new();
        if let Some(first) = plain.first() {
            let (query, limit) = (query_for(&[first]), limit(&plain));
            let list = List { table, query: &query, layout, limit, offset: 0, count: false };
            let alone = self.list_url(&list)?.as_str().len();
            batches = by_length(&plain, URL_LIMIT.saturating_sub(alone) + first.as_str().len() + SEPARATOR);
        }
        while let Some(batch) = batches.pop() {
            let (query, limit) = (query_for(batch), limit(batch));
            let list = List { table, query: &query, layout, limit, offset: 0, count: false };
            match self.list(list).await {
                Ok(page) => (0..page.rows.len()).for_each(|row| found.push(&page.rows, row)),
                Err(e) if policy(&e, Effect::Read) == Policy::Shrink && batch.len() > 1 => {
                    let (left, right) = batch.split_at(batch.len() / 2);
                    batches.extend([left, right]);
                }
                Err(e) => return Err(e),
            }
        }
        for id in odd {
            match self.get(table, id, layout).await {
                Ok(rows) => (0..rows.len()).for_each(|row| found.push(&rows, row)),
                Err(Error::NoRecord(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }
}

/// Cuts a list of identifiers into parts that take so many characters of an address, or one identifier.
fn by_length<'a, 'i>(ids: &'a [&'i SysId], most: usize) -> Vec<&'a [&'i SysId]> {
    let mut parts = Vec::new();
    let (mut start, mut length) = (0, 0);
    for (position, id) in ids.iter().enumerate() {
        let own = id.as_str().len() + SEPARATOR;
        if length + own > most && position > start {
            parts.push(&ids[start..position]);
            (start, length) = (position, 0);
        }
        length += own;
    }
    if start < ids.len() {
        parts.push(&ids[start..]);
    }
    parts
}
