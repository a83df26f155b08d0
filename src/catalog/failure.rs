//! The history of what went wrong: `servicenow.failure`, behind view `servicenow.sync_error`. By the worker only.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgSqlErrorCode, pg_sys};

use super::write;
use crate::error::raise;
use crate::pg::xact::{Caught, subtransaction};

/// Episodes that are kept, whatever their age.
const MOST: i64 = 10_000;

/// Something that went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// Its SQLSTATE, if it has one.
    pub sqlstate: Option<String>,
    /// In one line.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl Failure {
    /// Message and detail, for people.
    pub fn text(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}: {detail}", self.message),
            None => self.message.clone(),
        }
    }
}

impl From<ErrorReport> for Failure {
    fn from(report: ErrorReport) -> Self {
        let detail = report.detail().map(str::to_owned);
        let hint = report.hint().filter(|hint| !hint.is_empty()).map(str::to_owned);
        // A report keeps its SQLSTATE to itself; who catches it sees it.
        match subtransaction(|| raise(report)) {
            Err(caught) => Self { detail, hint, ..caught.into() },
            Ok(never) => never,
        }
    }
}

impl From<Caught> for Failure {
    fn from(caught: Caught) -> Self {
        Self { sqlstate: Some(letters(caught.sqlstate)), message: caught.message, ..Self::default() }
    }
}

impl From<&str> for Failure {
    fn from(message: &str) -> Self {
        message.to_owned().into()
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { message, ..Self::default() }
    }
}

/// The five letters of an SQLSTATE, six bits each.
fn letters(code: PgSqlErrorCode) -> String {
    (0..5).map(|n| char::from((code as i32 >> (6 * n) & 0x3f) as u8 + b'0')).collect()
}

/// Enters what went wrong with a table; the same once more is counted. What cannot be entered, as on a full disk, is in
/// nobody's way.
pub fn log_failure(relation: pg_sys::Oid, failure: &Failure) {
    let _no_room = subtransaction(|| enter(relation, failure));
}

fn enter(relation: pg_sys::Oid, failure: &Failure) {
    let Failure { sqlstate, message, detail, hint } = failure;
    let again = write(
        "UPDATE servicenow.failure x SET count = count + 1, last_at = clock_timestamp()
         FROM pg_catalog.pg_foreign_table f
         WHERE f.ftrelid = $1 AND x.server = f.ftserver AND x.foreign_table = $1 AND x.recovered_at IS NULL
               AND x.message = $2 AND x.detail IS NOT DISTINCT FROM $3",
        &[relation.into(), message.as_str().into(), detail.clone().into()],
    );
    if again == 0 {
        write(
            "INSERT INTO servicenow.failure (server, foreign_table, phase, sqlstate, message, detail, hint)
             SELECT f.ftserver, $1, t.phase, $2, $3, $4, $5
             FROM servicenow.sync_table t JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
             WHERE t.foreign_table = $1",
            &[
                relation.into(),
                sqlstate.clone().into(),
                message.as_str().into(),
                detail.clone().into(),
                hint.clone().into(),
            ],
        );
    }
}

/// A table is read again.
pub fn note_recovery(relation: pg_sys::Oid) {
    let _no_room = subtransaction(|| recover(relation));
}

fn recover(relation: pg_sys::Oid) {
    write(
        "UPDATE servicenow.failure SET recovered_at = clock_timestamp()
         WHERE foreign_table = $1 AND recovered_at IS NULL
               AND server = (SELECT ftserver FROM pg_catalog.pg_foreign_table WHERE ftrelid = $1)",
        &[relation.into()],
    );
}

/// As [`log_failure`] and [`note_recovery`], of what is read for all tables of a server: `phase` says what.
pub fn note_server_outcome(server: pg_sys::Oid, phase: &str, failure: Option<&str>) {
    let _no_room = subtransaction(|| enter_server_outcome(server, phase, failure));
}

fn enter_server_outcome(server: pg_sys::Oid, phase: &str, failure: Option<&str>) {
    let Some(message) = failure else {
        write(
            "UPDATE servicenow.failure SET recovered_at = clock_timestamp()
             WHERE server = $1 AND foreign_table IS NULL AND phase = $2 AND recovered_at IS NULL",
            &[server.into(), phase.into()],
        );
        return;
    };
    let again = write(
        "UPDATE servicenow.failure SET count = count + 1, last_at = clock_timestamp()
         WHERE server = $1 AND foreign_table IS NULL AND phase = $2 AND recovered_at IS NULL AND message = $3",
        &[server.into(), phase.into(), message.into()],
    );
    if again == 0 {
        write(
            "INSERT INTO servicenow.failure (server, phase, message) VALUES ($1, $2, $3)",
            &[server.into(), phase.into(), message.into()],
        );
    }
}

/// Forgets what is a month old, or about something that is gone.
pub fn forget_old_failures() {
    write(
        "DELETE FROM servicenow.failure x
         WHERE last_at < now() - interval '30 days'
            OR id <= (SELECT id FROM servicenow.failure ORDER BY id DESC OFFSET $1 LIMIT 1)
            OR NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server s WHERE s.oid = x.server)
            OR x.foreign_table IS NOT NULL
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_table t WHERE t.ftrelid = x.foreign_table)",
        &[MOST.into()],
    );
}
