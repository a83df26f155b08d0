//! What listeners are told on channel `servicenow_sync`, and some of it by mail.

use pgrx::pg_sys;
use serde_json::{Value, json};

use super::{WRAPPER, qualified, remember_event, write};
use crate::pg;

/// The channel.
const CHANNEL: &str = "servicenow_sync";
/// The longest payload Postgres takes, in bytes; what is too long for it is left out.
const LONGEST_PAYLOAD: usize = 7_999;
/// Names of servers and tables are shorter than this.
const SHORT_TEXT: usize = 400;
/// A text beyond this is cut.
const LONGEST_TEXT: usize = 2_000;
/// Names in a list; the rest of it is left out.
const MOST_NAMES: usize = 50;

/// Tells, at commit, that something has happened to a foreign table; `more` is an object of what else is to be said.
pub fn notify(event: &str, server: pg_sys::Oid, relation: pg_sys::Oid, more: Value) {
    let table = qualified(relation);
    let (rows, error) = (more["rows"].as_i64(), more["error"].as_str());
    remember_event(server, event, &table, rows, error);
    let mut payload = json!({
        "event": event,
        "server": pg::catalog::server(server).name,
        "foreign_table": table,
    });
    if let (Value::Object(payload), Value::Object(more)) = (&mut payload, more) {
        payload.extend(more.into_iter().map(|(name, value)| (name, short(value))));
    }
    let mut text = payload.to_string();
    if text.len() > LONGEST_PAYLOAD
        && let Value::Object(payload) = &mut payload
    {
        // What is escaped, and many long names, take more room than they seem to.
        payload.retain(|_, value| {
            !value.is_array() && value.as_str().is_none_or(|text| text.len() <= SHORT_TEXT)
        });
        text = Value::Object(std::mem::take(payload)).to_string();
    }
    write("SELECT pg_catalog.pg_notify($1, $2)", &[CHANNEL.into(), text.into()]);
}

/// As [`notify`], of a foreign table that may not have all that makes a mirror.
pub fn notify_of(relation: pg_sys::Oid, event: &str, more: Value) {
    if let Some((server, _)) = pg::catalog::foreign_table(relation, WRAPPER) {
        notify(event, server, relation, more);
    }
}

fn short(value: Value) -> Value {
    match value {
        Value::String(text) if text.len() > LONGEST_TEXT => {
            Value::String(text.chars().take(LONGEST_TEXT / 4).chain("…".chars()).collect())
        }
        Value::Array(mut items) => {
            items.truncate(MOST_NAMES);
            Value::Array(items)
        }
        other => other,
    }
}
