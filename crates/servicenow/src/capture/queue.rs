//! The queue of a subscription: a table in the instance that rules write and we empty.
//!
//! What was read is deleted when the store has taken note of it, not before: nothing is lost, whoever dies in between,
//! and what comes twice does no harm.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::event::{Event, Operation};
use crate::client::Client;
use crate::client::table_api::List;
use crate::client::transport::Transport;
use crate::client::write::{Change, Fate};
use crate::error::{Error, Result};
use crate::page::{Layout, Version};
use crate::query::Query;
use crate::value::{SysId, TableName, decode_seconds};

/// The table whose rule has told.
pub const TABLE: &str = "u_table";
/// The record.
pub const RECORD: &str = "u_record";
/// What has happened.
pub const OPERATION: &str = "u_operation";
/// The record's `sys_mod_count`.
pub const MOD_COUNT: &str = "u_mod_count";
/// The record's `sys_updated_on`.
pub const UPDATED_ON: &str = "u_updated_on";
/// When the rule ran, in milliseconds since 1970: a text, as numbers have 32 bits, that sorts as the number does.
pub const SEQUENCE: &str = "u_sequence";
/// The columns: name, label, longest text.
pub const COLUMNS: &[(&str, &str, u32)] = &[
    (TABLE, "Table", 80),
    (RECORD, "Record", 32),
    (OPERATION, "Operation", 20),
    (MOD_COUNT, "Mod count", 20),
    (UPDATED_ON, "Updated on", 40),
    (SEQUENCE, "Sequence", 40),
];

/// Events read at a time.
pub const PAGE: u32 = 1_000;

/// Some of a queue, the oldest first.
#[derive(Clone, Debug)]
pub struct QueuePage {
    /// The queue's rows.
    pub rows: Vec<SysId>,
    /// What they tell; rows that make no sense tell nothing.
    pub events: Vec<Event>,
    /// How many rows the queue has.
    pub total: u64,
    /// A column that some rows do not have: it was never made, or is hidden.
    pub lacks: Option<&'static str>,
}

impl<T: Transport> Client<T> {
    /// The oldest events of a queue.
    pub async fn read_queue(&self, queue: &TableName, limit: u32) -> Result<QueuePage> {
        let names: Vec<&str> = COLUMNS.iter().map(|(name, ..)| *name).collect();
        let layout = Arc::new(Layout::of_text(&names));
        let query = Query::all().order_by(SEQUENCE).order_by("sys_id");
        let list = List { table: queue, query: &query, layout: &layout, limit, offset: 0, count: true };
        let page = self.list(list).await?;
        let rows = &page.rows;
        let event = |row: usize| {
            let id = rows.get(row, RECORD);
            Some(Event {
                table: TableName::new(rows.get(row, TABLE)).ok()?,
                id: (!id.is_empty()).then(|| SysId::new(id))?,
                operation: Operation::parse(rows.get(row, OPERATION)),
                version: Version {
                    updated_on: decode_seconds(rows.get(row, UPDATED_ON)),
                    mod_count: rows.get(row, MOD_COUNT).parse().ok(),
                },
                at: rows.get(row, SEQUENCE).parse().unwrap_or_default(),
            })
        };
        let is_shown = |column: usize| (0..rows.len()).all(|row| rows.is_shown(row, column));
        Ok(QueuePage {
            lacks: (0..names.len()).find(|column| !is_shown(*column)).map(|column| COLUMNS[column].0),
            rows: rows.ids().map(SysId::new).collect(),
            events: (0..rows.len()).filter_map(event).collect(),
            total: page.total.unwrap_or(rows.len() as u64),
        })
    }

    /// Deletes rows of a queue; gives back how many of them somebody else had deleted before.
    pub async fn delete_queued(&self, queue: &TableName, mut rows: Vec<SysId>) -> Result<u64> {
        let (nothing, progress) = (Arc::new(Layout::of_text(&[])), Arc::new(AtomicU64::new(0)));
        let mut gone = 0;
        while !rows.is_empty() {
            let changes = rows.iter().map(|id| Change::Delete { id: id.clone() }).collect();
            let fates = self.write_all(queue, changes, &nothing, false, &progress).await;
            let mut left = Vec::new();
            for (id, fate) in rows.into_iter().zip(fates) {
                match fate {
                    Fate::Done(_) => {}
                    Fate::Failed(Error::NoRecord(_)) => gone += 1,
                    Fate::Failed(e) => return Err(e),
                    Fate::NotSent => left.push(id),
                }
            }
            rows = left;
        }
        Ok(gone)
    }
}
