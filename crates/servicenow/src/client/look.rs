//! Looking records up by `sys_id` or by what is in a field, many in one call.

use std::sync::Arc;

use super::retry::{Effect, Policy, policy};
use super::table_api::List;
use super::transport::Transport;
use super::{Client, URL_LIMIT};
use crate::error::{Error, Result};
use crate::page::{Layout, Rows};
use crate::query::{Query, Term, ids_term};
use crate::value::{SysId, TableName};

/// The most records that are asked for at a time by what is in a field.
const RECORDS: u32 = 1_000;
/// What separates two values in an address: a comma, escaped.
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
            let most = URL_LIMIT.saturating_sub(alone) + first.as_str().len() + SEPARATOR;
            batches = by_length(&plain, most, |id| id.as_str().len());
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

    /// The records in which a field is one of these values, as the instance compares them, in any order. Those of values
    /// that cannot stand in a list are missing, and of values that so many records have that one answer does not tell all.
    pub async fn look_by(
        &self,
        table: &TableName,
        field: &str,
        values: &[&str],
        layout: &Arc<Layout>,
    ) -> Result<Rows> {
        let mut found = Rows::new(layout.clone());
        let one_of = |values: &[&str]| Term::is_one_of(field, values.iter().copied());
        let query_for =
            |values: &[&str]| one_of(values).map(|term| Query::all().and(term).order_by("sys_id"));
        let plain: Vec<&str> = values.iter().copied().filter(|value| one_of(&[value]).is_ok()).collect();
        let Ok(none) = query_for(&[]) else { return Ok(found) };
        let all = List { table, query: &none, layout, limit: RECORDS, offset: 0, count: true };
        let most = URL_LIMIT.saturating_sub(self.list_url(&all)?.as_str().len());
        let encoded =
            |value: &&str| url::form_urlencoded::byte_serialize(value.as_bytes()).map(str::len).sum();
        let mut batches = by_length(&plain, most, encoded);
        while let Some(batch) = batches.pop() {
            let Ok(query) = query_for(batch) else { continue };
            let is_too_much = match self.list(List { query: &query, ..all }).await {
                // Where nothing is counted a full answer may not be all there is.
                Ok(page) if page.total.unwrap_or(page.rows.len() as u64 + 1) > RECORDS.into() => true,
                Ok(page) => {
                    (0..page.rows.len()).for_each(|row| found.push(&page.rows, row));
                    false
                }
                Err(e) if policy(&e, Effect::Read) == Policy::Shrink => true,
                Err(e) => return Err(e),
            };
            if is_too_much && batch.len() > 1 {
                let (left, right) = batch.split_at(batch.len() / 2);
                batches.extend([left, right]);
            }
        }
        Ok(found)
    }
}

/// Cuts a list into parts that take so many characters of an address, or one item.
fn by_length<T>(items: &[T], most: usize, length_of: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut parts = Vec::new();
    let (mut start, mut length) = (0, 0);
    for (position, item) in items.iter().enumerate() {
        let own = length_of(item) + SEPARATOR;
        if length + own > most && position > start {
            parts.push(&items[start..position]);
            (start, length) = (position, 0);
        }
        length += own;
    }
    if start < items.len() {
        parts.push(&items[start..]);
    }
    parts
}
