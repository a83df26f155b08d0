//! The Table API: lists and single records.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value as Json};
use tokio::time::Instant;

use super::answer::served_at;
use super::page_size::PageSize;
use super::retry::{Effect, Policy, policy};
use super::transport::{Response, Transport};
use super::write::{Change, Fate};
use super::{Call, Client};
use crate::error::{Error, Result};
use crate::page::{Layout, Rows, decode_list, decode_record, describe_other};
use crate::query::Query;
use crate::value::{SysId, TableName};

/// The longest JSON answer outside the Table API, in bytes: in memory it takes many times as much.
const JSON_LIMIT: usize = 8 << 20;
/// An instance ends what takes longer than this (facts of the platform: 60 s for the Table API, 30 s for a batch).
const LONGEST_ANSWER: Duration = Duration::from_secs(60);
/// Lists whose `sysparm_fields` would be longer than this many characters ask for whole records instead.
const FIELDS_LIMIT: usize = 5_000;

/// A list call.
#[derive(Clone, Copy, Debug)]
pub struct List<'a> {
    /// The table.
    pub table: &'a TableName,
    /// Which records, in which order.
    pub query: &'a Query,
    /// Which fields.
    pub layout: &'a Arc<Layout>,
    /// How many records the instance looks at, before access control takes some of them away.
    pub limit: u32,
    /// How many records of the order to pass over first.
    pub offset: u64,
    /// Whether to have all matching records counted.
    pub count: bool,
}

/// The answer to a list call.
#[derive(Clone, Debug)]
pub struct Page {
    /// The records the caller may see.
    pub rows: Rows,
    /// How many records match, those the caller may not see included; `None` if not asked for or not told.
    pub total: Option<u64>,
    /// The instance's clock when it was asked, or somewhat before, in seconds since 1970.
    pub served_at: Option<i64>,
}

/// The `sys_id` of a record to be made.
#[derive(Clone, Debug)]
pub enum Identity {
    /// Made just now, at random: a record that has it can only be this one.
    Fresh(SysId),
    /// Chosen by somebody: a record that has it may have been there before.
    Given(SysId),
}

impl<T: Transport> Client<T> {
    /// One page of records.
    pub async fn list(&self, list: List<'_>) -> Result<Page> {
        let began = Instant::now();
        let page = self.read(self.list_url(&list)?, |response| decode_page(list.layout, response)).await?;
        Ok(page.asked(began))
    }

    /// The address of a list call.
    pub(super) fn list_url(&self, list: &List<'_>) -> Result<url::Url> {
        let (limit, offset) = (list.limit.to_string(), list.offset.to_string());
        let (query, fields) = (list.query.to_string(), list.layout.fields().join(","));
        let mut pairs = shape(list.layout, &fields);
        pairs.push(("sysparm_limit", &limit));
        // Without this a long query is refused: the Link header could not hold it.
        pairs.push(("sysparm_suppress_pagination_header", "true"));
        if !query.is_empty() {
            pairs.push(("sysparm_query", &query));
        }
        if list.offset > 0 {
            pairs.push(("sysparm_offset", &offset));
        }
        if !list.count {
            pairs.push(("sysparm_no_count", "true"));
        }
        self.url(&record_path(list.table, None), &pairs)
    }

    /// One record; [`Error::NoRecord`] if there is none or it may not be seen.
    pub async fn get(&self, table: &TableName, id: &SysId, layout: &Arc<Layout>) -> Result<Rows> {
        let url = self.record_url(table, Some(id), layout)?;
        self.call(Call::get(url), |response| decode_record(layout, &response.body)).await
    }

    /// Makes a record with the given `sys_id` and gives it back as the instance has stored it, under another `sys_id` if the
    /// instance lets nobody choose.
    pub async fn insert(
        &self,
        table: &TableName,
        id: &Identity,
        fields: &Map<String, Json>,
        layout: &Arc<Layout>,
    ) -> Result<Rows> {
        self.write(table, Change::Insert { id: id.clone(), fields: fields.clone() }, layout).await
    }

    /// Changes fields of a record and gives it back as the instance has stored it.
    pub async fn update(
        &self,
        table: &TableName,
        id: &SysId,
        fields: &Map<String, Json>,
        layout: &Arc<Layout>,
        effect: Effect,
    ) -> Result<Rows> {
        let change = Change::Update { id: id.clone(), fields: fields.clone(), effect, from: None };
        self.write(table, change, layout).await
    }

    /// Deletes a record. A record that is gone after an attempt without an answer was deleted by it.
    pub async fn delete(&self, table: &TableName, id: &SysId) -> Result<()> {
        let layout = Arc::new(Layout::of_text(&[]));
        self.write(table, Change::Delete { id: id.clone() }, &layout).await.map(|_no_rows| ())
    }

    /// One change, as [`Client::write_all`] makes many.
    async fn write(&self, table: &TableName, change: Change, layout: &Arc<Layout>) -> Result<Rows> {
        match self.write_all(table, vec![change], layout, false, &Arc::default()).await.pop() {
            Some(Fate::Done(rows)) => Ok(rows),
            Some(Fate::Failed(e)) => Err(e),
            Some(Fate::NotSent) | None => Err(Error::Discarded),
        }
    }

    /// The JSON answer of an endpoint outside the Table API.
    pub(crate) async fn get_json<R: serde::de::DeserializeOwned>(&self, path: &str) -> Result<R> {
        self.call(Call::get(self.url(path, &[])?), |response| {
            if response.body.len() > JSON_LIMIT {
                return Err(Error::TooLarge { limit: JSON_LIMIT });
            }
            serde_json::from_slice(&response.body).map_err(|_| unstructured(&response.body))
        })
        .await
    }

    fn record_url(&self, table: &TableName, id: Option<&SysId>, layout: &Layout) -> Result<url::Url> {
        let fields = layout.fields().join(",");
        self.url(&record_path(table, id), &shape(layout, &fields))
    }
}

impl Page {
    /// The same page, that was asked for then. An answer has its time when it is made, maybe long after the records were
    /// looked for: what came in between is not in it.
    pub(super) fn asked(self, began: Instant) -> Self {
        let took = i64::try_from(began.elapsed().min(LONGEST_ANSWER).as_secs()).unwrap_or_default();
        Self { served_at: self.served_at.map(|at| at - took), ..self }
    }
}

/// The answer to a list call.
pub(super) fn decode_page(layout: &Arc<Layout>, response: &Response) -> Result<Page> {
    Ok(Page {
        rows: decode_list(layout, &response.body)?,
        total: response.header("x-total-count").and_then(|count| count.trim().parse().ok()),
        served_at: served_at(response),
    })
}

/// The failure of an answer that is not what its endpoint gives.
pub(super) fn unstructured(body: &[u8]) -> Error {
    let structure = || "the answer does not have the expected structure".to_owned();
    Error::Unreadable(describe_other(body).unwrap_or_else(structure))
}

/// Makes a list call in ever smaller pages as long as the instance cannot answer it whole and in time; gives back
/// the page and the limit it was asked for with.
pub(crate) async fn shrinking<F: Future<Output = Result<Page>>>(
    size: &PageSize,
    list: impl Fn(u32) -> F,
) -> Result<(Page, u32)> {
    loop {
        let limit = size.current();
        match list(limit).await {
            Ok(page) => {
                size.answered(limit, page.rows.len());
                return Ok((page, limit));
            }
            // An address that is too long is so for a smaller page, too.
            Err(e @ Error::TooLong) => return Err(e),
            Err(e) if policy(&e, Effect::Read) == Policy::Shrink && size.shrink(limit) => {}
            Err(e) => return Err(e),
        }
    }
}

/// The body of a call that makes a record.
pub(super) fn body_of_insert(id: &SysId, mut fields: Map<String, Json>) -> Bytes {
    fields.insert("sys_id".to_owned(), Json::String(id.as_str().to_owned()));
    body_of_update(fields)
}

/// The body of a call that changes a record.
pub(super) fn body_of_update(fields: Map<String, Json>) -> Bytes {
    Json::Object(fields).to_string().into()
}

/// The record in the answer to a write.
pub(super) fn decode_written(layout: &Arc<Layout>, response: &Response) -> Result<Rows> {
    decode_record(layout, &response.body).map(|rows| rows.served_at(served_at(response)))
}

/// A deletion is answered with 204 and nothing else; a login page comes with 200.
pub(super) fn confirm_deletion(response: &Response) -> Result<()> {
    match response.status {
        204 => Ok(()),
        _ => Err(Error::Unreadable("the answer does not confirm the deletion".to_owned())),
    }
}

/// The parameters that say what a record looks like in an answer.
fn shape<'a>(layout: &Layout, fields: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut pairs = vec![("sysparm_exclude_reference_link", "true")];
    if layout.wants_labels() {
        pairs.push(("sysparm_display_value", "all"));
    }
    if fields.len() <= FIELDS_LIMIT {
        pairs.push(("sysparm_fields", fields));
    }
    pairs
}

/// The same as the query of an address.
pub(super) fn parameters(layout: &Layout) -> String {
    let fields = layout.fields().join(",");
    let mut parameters = url::form_urlencoded::Serializer::new(String::new());
    parameters.extend_pairs(shape(layout, &fields)).finish()
}

/// The path of a table, or of a record.
pub(super) fn record_path(table: &TableName, id: Option<&SysId>) -> String {
    match id {
        None => format!("/api/now/table/{table}"),
        Some(id) => {
            let id: String = url::form_urlencoded::byte_serialize(id.as_str().as_bytes()).collect();
            format!("/api/now/table/{table}/{}", id.replace('+', "%20"))
        }
    }
}
