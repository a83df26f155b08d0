//! What is to be told by mail, and what became of it: `servicenow.mail_event` and `servicenow.mail`. By the worker only.

use std::cell::Cell;
use std::time::Duration;

use pgrx::pg_sys;

use super::{get, read, write};
use crate::pg::xact::subtransaction;
use crate::setting;

/// Events in one mail; what else there is makes the next.
const MOST_EVENTS: i64 = 500;

thread_local! {
    /// There may be something to be told.
    static PENDING: Cell<bool> = const { Cell::new(true) };
}

/// Something that has happened to a foreign table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailEvent {
    /// Its number.
    pub id: i64,
    /// When, as Postgres writes it.
    pub at: String,
    /// What: as on the channel.
    pub event: String,
    /// To what.
    pub foreign_table: String,
    /// The rows it has, if it was filled.
    pub rows: Option<i64>,
    /// What went wrong, if anything did.
    pub error: Option<String>,
}

/// What is to be told about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The server.
    pub server: pg_sys::Oid,
    /// How long ago the first of it has happened.
    pub oldest: Duration,
    /// How long ago the last of it has happened.
    pub latest: Duration,
    /// Other tables are still to be filled, or have not been polled since one has failed, or still fail since one has recovered.
    pub more_to_come: bool,
}

/// Enters, until the commit, what mail is to tell, if the server's option says that anybody is told.
pub fn remember_event(server: pg_sys::Oid, event: &str, table: &str, rows: Option<i64>, error: Option<&str>) {
    if !matches!(event, "backfill_completed" | "sync_failed" | "sync_recovered")
        || setting::smtp_url().is_none()
    {
        return;
    }
    let enter = || {
        write(
        "INSERT INTO servicenow.mail_event (server, event, foreign_table, rows, error)
         SELECT $1, $2, $3, $4, $5 FROM pg_catalog.pg_foreign_server s
         WHERE s.oid = $1
               AND EXISTS (SELECT FROM pg_catalog.pg_options_to_table(s.srvoptions) WHERE option_name = 'notify_email')",
        &[server.into(), event.into(), table.into(), rows.into(), error.map(str::to_owned).into()],
    )
    };
    // What cannot be entered, as on a full disk, is in nobody's way.
    if subtransaction(enter).is_ok_and(|entered| entered > 0) {
        PENDING.set(true);
    }
}

/// What is to be told; nothing is looked up while nothing was entered.
pub fn mail_waiting() -> Vec<Waiting> {
    if !PENDING.get() {
        return Vec::new();
    }
    let seconds = |seconds: Option<f64>| Duration::from_secs_f64(seconds.unwrap_or(0.0).max(0.0));
    let waiting: Vec<Waiting> = read(
        "SELECT m.server, extract(epoch FROM clock_timestamp() - min(m.at))::float8,
                extract(epoch FROM clock_timestamp() - max(m.at))::float8,
                EXISTS (
                    SELECT FROM servicenow.sync_table t JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
                    WHERE f.ftserver = m.server
                      AND (bool_and(m.event = 'backfill_completed') AND t.phase IN ('pending', 'backfill', 'resync')
                           AND t.last_error IS NULL
                           OR bool_or(m.event = 'sync_failed') AND t.last_error IS NULL AND t.last_poll_at < min(m.at)
                           OR bool_or(m.event = 'sync_recovered') AND t.last_error IS NOT NULL))
         FROM servicenow.mail_event m GROUP BY m.server",
        &[],
        |rows| {
            rows.map(|row| Waiting {
                server: get(&row, 1).unwrap_or(pg_sys::InvalidOid),
                oldest: seconds(get(&row, 2)),
                latest: seconds(get(&row, 3)),
                more_to_come: get(&row, 4).unwrap_or(false),
            })
            .collect()
        },
    );
    PENDING.set(!waiting.is_empty());
    waiting
}

/// The first of what is to be told about a server.
pub fn mail_events(server: pg_sys::Oid) -> Vec<MailEvent> {
    read(
        "SELECT id, date_trunc('second', at)::text, event, foreign_table, rows, error
         FROM servicenow.mail_event WHERE server = $1 ORDER BY id LIMIT $2",
        &[server.into(), MOST_EVENTS.into()],
        |rows| {
            rows.map(|row| MailEvent {
                id: get(&row, 1).unwrap_or_default(),
                at: get(&row, 2).unwrap_or_default(),
                event: get(&row, 3).unwrap_or_default(),
                foreign_table: get(&row, 4).unwrap_or_default(),
                rows: get(&row, 5),
                error: get(&row, 6),
            })
            .collect()
        },
    )
}

/// A mail about a server was delivered, which has told everything up to an event.
pub fn mail_sent(server: pg_sys::Oid, last: i64, refused: Option<&str>) {
    forget_mail_events(server, last);
    write(
        "INSERT INTO servicenow.mail (server, sent, last_sent_at, last_error, last_error_at)
         VALUES ($1, 1, clock_timestamp(), $2, CASE WHEN $2 IS NOT NULL THEN clock_timestamp() END)
         ON CONFLICT (server) DO UPDATE
         SET sent = mail.sent + 1, last_sent_at = excluded.last_sent_at, last_error = excluded.last_error,
             last_error_at = excluded.last_error_at, retry_at = NULL",
        &[server.into(), refused.into()],
    );
}

/// A mail about a server could not be delivered, and is tried again; gives back whether the error is another one than before.
pub fn mail_failed(server: pg_sys::Oid, error: &str, retry_in: Duration) -> bool {
    let known = read(
        "SELECT last_error = $2 FROM servicenow.mail WHERE server = $1",
        &[server.into(), error.into()],
        |mut rows| rows.next().and_then(|row| get(&row, 1)).unwrap_or(false),
    );
    write(
        "INSERT INTO servicenow.mail (server, failed, last_error, last_error_at, retry_at)
         VALUES ($1, 1, $2, clock_timestamp(), clock_timestamp() + $3 * interval '1 second')
         ON CONFLICT (server) DO UPDATE
         SET failed = mail.failed + 1, last_error = excluded.last_error, last_error_at = excluded.last_error_at,
             retry_at = excluded.retry_at",
        &[server.into(), error.into(), retry_in.as_secs_f64().into()],
    );
    !known
}

/// Nobody is to be told up to an event.
pub fn forget_mail_events(server: pg_sys::Oid, last: i64) {
    write("DELETE FROM servicenow.mail_event WHERE server = $1 AND id <= $2", &[server.into(), last.into()]);
}

/// Forgets what could not be told for days, and servers that are gone.
pub fn forget_old_mail() {
    write(
        "DELETE FROM servicenow.mail_event m
         WHERE at < now() - interval '3 days'
            OR NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server s WHERE s.oid = m.server)",
        &[],
    );
    write(
        "DELETE FROM servicenow.mail m
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server s WHERE s.oid = m.server)",
        &[],
    );
}
