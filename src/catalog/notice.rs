//! What listeners are told on channel `servicenow_sync`.

use serde_json::{Value, json};

use super::{Mirror, qualified, write};
use crate::pg;

/// The channel.
const CHANNEL: &str = "servicenow_sync";
/// A payload has to be shorter than 8,000 bytes; a text beyond this is cut.
const LONGEST_TEXT: usize = 2_000;
/// Names in a list; the rest of it is left out.
const MOST_NAMES: usize = 50;

/// Tells, at commit, that something has happened to a foreign table; `more` is an object of what else is to be said.
pub fn notify(event: &str, mirror: &Mirror, more: Value) {
    let mut payload = json!({
        "event": event,
        "server": pg::catalog::server(mirror.server).name,
        "foreign_table": qualified(mirror.foreign_table),
    });
    if let (Value::Object(payload), Value::Object(more)) = (&mut payload, more) {
        payload.extend(more.into_iter().map(|(name, value)| (name, short(value))));
    }
    write("SELECT pg_catalog.pg_notify($1, $2)", &[CHANNEL.into(), payload.to_string().into()]);
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
