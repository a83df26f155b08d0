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
    write("SELECT pg_catalog.pg_notify($1, $2)", &[CHANNEL.into(), fitted(payload).into()]);
}

/// As [`notify`], of a foreign table that may not have all that makes a mirror.
pub fn notify_of(relation: pg_sys::Oid, event: &str, more: Value) {
    if let Some((server, _)) = pg::catalog::foreign_table(relation, WRAPPER) {
        notify(event, server, relation, more);
    }
}

/// A payload as it is sent. What is escaped, and many long names, take more room than they seem to: then lists and texts are
/// left out.
fn fitted(mut payload: Value) -> String {
    let text = payload.to_string();
    match &mut payload {
        Value::Object(members) if text.len() > LONGEST_PAYLOAD => {
            let is_short = |value: &Value| value.as_str().is_none_or(|text| text.len() <= SHORT_TEXT);
            members.retain(|_, value| !value.is_array() && is_short(value));
            payload.to_string()
        }
        _ => text,
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

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use pgrx::pg_test;
    use serde_json::json;

    #[pg_test]
    fn what_is_too_long_for_a_notification_is_left_out() {
        let names = vec!["u_".repeat(60); super::MOST_NAMES];
        let escaped = "\u{1}".repeat(super::LONGEST_TEXT - 1);
        for long in [json!({ "added": names, "removed": names }), json!({ "error": escaped })] {
            let mut payload = json!({ "event": "e", "server": "s", "rows": 1 });
            payload.as_object_mut().unwrap().extend(long.as_object().unwrap().clone());
            assert!(payload.to_string().len() > super::LONGEST_PAYLOAD);
            assert_eq!(super::fitted(payload), r#"{"event":"e","rows":1,"server":"s"}"#);
        }
        let payload = json!({ "event": "e", "error": "short", "added": ["a"] });
        assert_eq!(super::fitted(payload.clone()), payload.to_string());
    }
}
