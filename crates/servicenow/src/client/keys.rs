//! Whether an instance makes records under the keys that they are sent with.
//!
//! By default it does, and then a record that is not found under its key was not made. An instance may let administrators
//! alone choose keys (property `glide.rest.table_api.admin_only_sys_fields`), or a rule of the table's; it says nothing then
//! and makes keys of its own. What a lost answer was about cannot be found there, so it is never sent again.
//!
//! The first record that is made of a table shows it. Before that a lost insert is sent again only if the table has no
//! record that was made since and could be it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Map, Value as Json};
use tokio::time::{Instant, sleep};

use super::pending::Pending;
use super::table_api::List;
use super::transport::Transport;
use super::{Client, chance, retry};
use crate::error::{Error, Result};
use crate::page::{Layout, Rows};
use crate::query::{Op, Query, Term};
use crate::value::{SysId, TableName, Value};

/// Clocks tick in seconds, and the one an answer tells is not that of every node.
const SLACK: Duration = Duration::from_secs(5);
/// More records than this are not gone through.
const MOST: u32 = 200;

/// What is known of an instance, a login and a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keys {
    /// Nothing.
    #[default]
    Unknown,
    /// Records are made under the keys that they are sent with.
    Taken,
    /// They are made under others.
    Ignored,
}

impl Keys {
    /// What a record shows that was sent with a key and made under another or the same.
    pub(crate) fn seen(sent: &SysId, made: &str) -> Self {
        if sent.as_str().eq_ignore_ascii_case(made) { Keys::Taken } else { Keys::Ignored }
    }
}

/// What a client knows, by table.
#[derive(Debug, Default)]
pub(super) struct KeyBook(Mutex<HashMap<TableName, Keys>>);

impl<T: Transport> Client<T> {
    /// Whether a table's records are made under the keys that they are sent with, as far as is known.
    pub fn keys(&self, table: &TableName) -> Keys {
        let known = self.inner.keys.0.lock().expect("no panic while it is held");
        known.get(table).copied().unwrap_or_default()
    }

    /// Takes note of what has been seen of a table.
    pub fn note_keys(&self, table: &TableName, keys: Keys) {
        self.inner.keys.0.lock().expect("no panic while it is held").insert(table.clone(), keys);
    }

    /// Whether it is sure, although nothing is known of keys, that none of some records was made that were sent since a
    /// moment and are not there under their keys.
    pub(super) async fn made_none_of(&self, table: &TableName, lost: &[&Pending], since: Instant) -> bool {
        // What is still under way gets a moment.
        sleep(retry::backoff(2, chance())).await;
        let sent: Option<Vec<Map<String, Json>>> = lost.iter().map(|pending| sent(pending)).collect();
        let (Some(sent), Some(since)) = (sent, self.clock_at(since)) else { return false };
        match self.made_since(table, &sent, since - SLACK.as_secs() as i64).await {
            Ok(Some(rows)) => !sent.iter().any(|sent| (0..rows.len()).any(|row| may_be(sent, &rows, row))),
            Ok(None) | Err(_) => false,
        }
    }

    /// The records of a table made since a moment, with the fields that are of interest; `None` if not all are shown.
    async fn made_since(
        &self,
        table: &TableName,
        sent: &[Map<String, Json>],
        since: i64,
    ) -> Result<Option<Rows>> {
        let mut names: Vec<&str> = sent.iter().flat_map(Map::keys).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let layout = Arc::new(Layout::of_text(&names));
        let since = Value::Micros(since * 1_000_000).encode().map_err(|_| Error::Discarded)?;
        let query = Query::all().and(Term::new("sys_created_on", Op::Ge, &since)?).order_by("sys_id");
        let list = List { table, query: &query, layout: &layout, limit: MOST, offset: 0, count: true };
        let page = self.list(list).await?;
        Ok((page.total == Some(page.rows.len() as u64)).then_some(page.rows))
    }
}

/// The fields that a record was sent with, without its key; `None` if it was sent with a date of its own.
fn sent(pending: &Pending) -> Option<Map<String, Json>> {
    let mut fields: Map<String, Json> = serde_json::from_slice(pending.body.as_ref()?).ok()?;
    fields.remove("sys_id");
    (!fields.contains_key("sys_created_on")).then_some(fields)
}

/// Whether a record may be one that was sent with these fields: unless it shows that every one of them is another.
fn may_be(sent: &Map<String, Json>, rows: &Rows, row: usize) -> bool {
    let columns = rows.layout().columns().iter().enumerate();
    let sent = columns.filter_map(|(column, c)| Some((column, sent.get(&c.field)?)));
    let mut shown = sent.filter(|(column, _)| rows.is_shown(row, *column)).peekable();
    let is_as_sent = |(column, sent): (usize, &Json)| {
        sent.as_str().is_some_and(|sent| sent.trim() == rows.text(row, column).trim())
    };
    shown.peek().is_none() || shown.any(is_as_sent)
}
