//! How far tables are, and whether a worker runs.

use std::collections::HashSet;

use pgrx::pg_sys;

use super::{get, read, write};
use crate::pg;
use crate::worker::{CALL_CLASS, WAIT_CLASS};

/// Whether the worker of this database may run.
pub fn worker_enabled() -> bool {
    read("SELECT enabled FROM servicenow.worker", &[], |mut rows| {
        rows.next().and_then(|row| get(&row, 1)).unwrap_or(true)
    })
}

/// Allows or forbids the worker of this database to run.
pub fn enable_worker(enabled: bool) {
    write("UPDATE servicenow.worker SET enabled = $1", &[enabled.into()]);
}

/// How far a table is, as `wait_for_sync` sees it.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// See `sync_table.phase`.
    pub phase: String,
    /// Rows read by the fill under way.
    pub rows_filled: i64,
    /// Rows the instance counts.
    pub rows_total: Option<i64>,
    /// Whether a poll that began after the given moment is complete, and deletions have been read since then
    /// too, unless that fails.
    pub caught_up: bool,
    /// Whether the names and labels that its rows show have been read since then too, unless that fails.
    pub named: bool,
    /// The last failure.
    pub last_error: Option<String>,
    /// What is to be done was asked for by the current transaction, so that the worker cannot see it yet.
    pub uncommitted: bool,
    /// See `sync_table.filled`.
    pub filled: bool,
    /// How long ago the last poll began, as Postgres writes an interval.
    pub age: Option<String>,
    /// Records that have changed over there and that somebody has locked here.
    pub waiting: i64,
}

impl Progress {
    /// How far the table is, for people.
    pub fn how_far(&self) -> String {
        match (self.phase.as_str(), self.rows_total) {
            ("backfill" | "resync", Some(total)) if total > 0 => format!(
                "{} of {total} rows read ({:.1} %)",
                self.rows_filled,
                100.0 * self.rows_filled as f64 / total as f64
            ),
            ("backfill" | "resync", _) => format!("{} rows read", self.rows_filled),
            ("", _) => "this transaction sees a state before it was created".to_owned(),
            ("pending", _) => "reading has not begun".to_owned(),
            (_, _) if self.waiting > 0 => {
                format!("{} changed records are locked by other transactions", self.waiting)
            }
            _ => "reading changes".to_owned(),
        }
    }
}

/// How far a table is; `None` if it is gone.
pub fn progress(relation: pg_sys::Oid, since: pgrx::datum::TimestampWithTimeZone) -> Option<Progress> {
    read(
        "SELECT t.phase, t.rows_filled, t.rows_total,
                t.phase = 'synced' AND t.last_poll_at >= $2
                AND (v.last_deletes_at >= $2 OR v.last_error_at >= $2) AND r.waiting = 0,
                coalesce(t.last_error, v.last_error, v.metadata_error), t.xmin::text, t.filled,
                date_trunc(CASE WHEN a.age < '10 s' THEN 'milliseconds' ELSE 'second' END, a.age)::text, r.waiting,
                v.last_metadata_at >= $2 OR v.metadata_error_at >= $2
                OR NOT EXISTS (SELECT FROM jsonb_array_elements(t.columns) c
                               WHERE c ->> 'show' = 'label' OR strpos(c ->> 'field', '.') > 0)
         FROM servicenow.sync_table t
              JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
              LEFT JOIN servicenow.sync_server v ON v.server = f.ftserver,
              LATERAL (SELECT count(*) AS waiting FROM servicenow.recheck r
                       -- What was looked up and not shown as was told is not to be seen yet.
                       WHERE r.foreign_table = t.foreign_table AND r.looks = 0) r,
              LATERAL (SELECT clock_timestamp() - t.last_poll_at AS age) a
         WHERE t.foreign_table = $1",
        &[relation.into(), since.into()],
        |mut rows| {
            rows.next().map(|row| Progress {
                phase: get(&row, 1).unwrap_or_default(),
                rows_filled: get(&row, 2).unwrap_or_default(),
                rows_total: get(&row, 3),
                caught_up: get(&row, 4).unwrap_or(false),
                last_error: get(&row, 5),
                uncommitted: get(&row, 6).is_some_and(|xid: String| pg::xact::is_own(&xid)),
                filled: get(&row, 7).unwrap_or(false),
                age: get(&row, 8),
                waiting: get(&row, 9).unwrap_or_default(),
                named: get(&row, 10).unwrap_or(false),
            })
        },
    )
}

/// The process that holds an advisory lock of two keys in this database.
pub fn lock_holder(class: i32, object: i32) -> Option<i32> {
    read(
        "SELECT pid FROM pg_catalog.pg_locks
         WHERE locktype = 'advisory' AND database = $1 AND classid = $2 AND objid = $3 AND objsubid = 3 AND granted",
        &[pg::worker::database().into(), key(class).into(), key(object).into()],
        |mut rows| rows.next().and_then(|row| get(&row, 1)),
    )
}

/// Whether somebody waits for a lock on a foreign table or its cache that this session is in the way of.
pub fn is_in_the_way(relation: pg_sys::Oid) -> bool {
    read(
        "SELECT EXISTS (
             SELECT FROM pg_catalog.pg_locks
             WHERE locktype = 'relation' AND database = $1 AND NOT granted
                   AND (relation = $2 OR relation = (SELECT cache_table FROM servicenow.sync_table WHERE foreign_table = $2))
                   AND pg_catalog.pg_backend_pid() = ANY (pg_catalog.pg_blocking_pids(pid)))",
        &[pg::worker::database().into(), relation.into()],
        |mut rows| rows.next().and_then(|row| get(&row, 1)).unwrap_or(false),
    )
}

/// Whether the last attempt at something of a table or its server has failed.
pub fn is_failing(relation: pg_sys::Oid) -> bool {
    read(
        "SELECT t.last_error IS NOT NULL OR v.last_error IS NOT NULL OR v.metadata_error IS NOT NULL
         FROM servicenow.sync_table t JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
              LEFT JOIN servicenow.sync_server v ON v.server = f.ftserver
         WHERE t.foreign_table = $1",
        &[relation.into()],
        |mut rows| rows.next().and_then(|row| get(&row, 1)).unwrap_or(false),
    )
}

/// A session that waits for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Waiting {
    /// The foreign table.
    pub relation: pg_sys::Oid,
    /// The session's process.
    pid: i32,
    /// Tells this wait from others of the session.
    call: pg_sys::Oid,
}

/// All waits in this database.
pub fn waits() -> HashSet<Waiting> {
    read(
        "WITH signs AS MATERIALIZED (
             SELECT pid, classid, objid FROM pg_catalog.pg_locks
             WHERE locktype = 'advisory' AND database = $1 AND objsubid = 3 AND granted)
         SELECT t.objid, t.pid, c.objid FROM signs t JOIN signs c USING (pid) WHERE t.classid = $2 AND c.classid = $3",
        &[pg::worker::database().into(), key(WAIT_CLASS).into(), key(CALL_CLASS).into()],
        |rows| {
            rows.filter_map(|row| {
                Some(Waiting { relation: get(&row, 1)?, pid: get(&row, 2)?, call: get(&row, 3)? })
            })
            .collect()
        },
    )
}

/// `pg_locks` shows the keys of an advisory lock as OIDs.
fn key(key: i32) -> pg_sys::Oid {
    pg_sys::Oid::from(key as u32)
}
