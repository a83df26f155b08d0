//! What a mail says.

use std::fmt::Write;

use super::relay::host_name;
use crate::catalog::MailEvent;
use crate::option::ServerOptions;

/// What a mail is about.
pub struct Subject {
    /// The foreign server's name.
    pub server: String,
    /// The database's name.
    pub database: String,
}

/// A mail without its addresses.
pub struct Text {
    /// One line.
    pub subject: String,
    /// Plain text.
    pub body: String,
}

/// The kinds of events, as they come in a mail: on the channel, in the subject, above the list.
const KINDS: [(&str, &str, &str); 3] = [
    ("sync_failed", "failed", "Failed to synchronize; tried again until it works:"),
    ("sync_recovered", "recovered", "Synchronized again:"),
    ("backfill_completed", "filled", "Filled:"),
];

/// Says what has happened.
pub fn compose(about: &Subject, options: &ServerOptions, events: &[MailEvent]) -> Text {
    let Subject { server, database } = about;
    let mut counts = Vec::new();
    let mut body = format!(
        "Foreign server {} ({}), database {}, host {}\r\n",
        one_line(server),
        options.instance_url,
        one_line(database),
        host_name()
    );
    for (kind, word, heading) in KINDS {
        let events: Vec<&MailEvent> = events.iter().filter(|event| event.event == kind).collect();
        if events.is_empty() {
            continue;
        }
        let mut tables: Vec<&str> = events.iter().map(|event| event.foreign_table.as_str()).collect();
        tables.sort_unstable();
        tables.dedup();
        counts.push(match tables.as_slice() {
            [table] => format!("{} {word}", one_line(table)),
            tables => format!("{} tables {word}", tables.len()),
        });
        let _infallible = write!(body, "\r\n{heading}\r\n");
        for MailEvent { at, foreign_table, rows, error, .. } in events {
            let _infallible = write!(body, "  {at}  {}", one_line(foreign_table));
            if let Some(rows) = rows {
                let _infallible = write!(body, "  {} rows", grouped(*rows));
            }
            if let Some(error) = error {
                let _infallible = write!(body, "  {}", one_line(error));
            }
            body.push_str("\r\n");
        }
    }
    body.push_str("\r\nHow things stand now: SELECT * FROM servicenow.sync_status;\r\n");
    Text { subject: format!("[servicenow_fdw] {}: {}", one_line(server), counts.join(", ")), body }
}

/// What stands in a line does not break it.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A number with its thousands apart.
fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut grouped = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if number < 0 { format!("-{grouped}") } else { grouped }
}
