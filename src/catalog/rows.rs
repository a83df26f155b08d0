//! What statements and worker tell each other about rows: `servicenow.row_delta`, `recheck` and `absent`; and what became
//! of transactions.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use pgrx::pg_sys;
use servicenow::page::Version;

use super::{get, read, timestamp, write};
use crate::pg;

/// Counts rows that a statement added to or took from a cache.
pub fn count_rows(relation: pg_sys::Oid, delta: i64) {
    if delta != 0 {
        write(
            "INSERT INTO servicenow.row_delta (foreign_table, delta) VALUES ($1, $2)",
            &[relation.into(), delta.into()],
        );
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// It has not ended.
    Open,
    /// It was committed.
    Committed,
    /// It was rolled back, or died with its session or server.
    RolledBack,
    /// It is too long ago, or of another server's history.
    Unknown,
}

/// What became of a (sub)transaction, by its full number and the timeline it ran on. A number from the future is an ERROR.
pub fn outlook(xid: u64, timeline: u32) -> Outlook {
    if timeline != pg::xact::timeline() {
        return Outlook::Unknown;
    }
    let status =
        read("SELECT pg_catalog.pg_xact_status($1::text::xid8)", &[xid.to_string().into()], |mut rows| {
            rows.next().and_then(|row| get::<String>(&row, 1))
        });
    match status.as_deref() {
        Some("in progress") => Outlook::Open,
        Some("committed") => Outlook::Committed,
        Some("aborted") => Outlook::RolledBack,
        _ => Outlook::Unknown,
    }
}

/// Has the worker look records up that a statement has put into a cache.
pub fn ask_to_recheck(relation: pg_sys::Oid, ids: &[String]) {
    if !ids.is_empty() {
        write(
            "INSERT INTO servicenow.recheck (foreign_table, sys_id) SELECT $1, unnest($2)",
            &[relation.into(), ids.to_vec().into()],
        );
    }
}

/// As [`ask_to_recheck`], by the worker: nobody else takes requests back, so that one is enough.
pub fn leave_to_recheck(relation: pg_sys::Oid, ids: &[String]) {
    if !ids.is_empty() {
        write(
            "INSERT INTO servicenow.recheck (foreign_table, sys_id)
             SELECT DISTINCT $1, id FROM unnest($2) id
             WHERE NOT EXISTS (SELECT FROM servicenow.recheck r WHERE r.foreign_table = $1 AND r.sys_id = id)",
            &[relation.into(), ids.to_vec().into()],
        );
    }
}

/// A record to be looked up, unless the cache is found to be what the instance has told of.
pub struct Recheck {
    /// The record.
    pub id: String,
    /// What it has told: the row's version, or that it is gone; `None` if it has told nothing.
    pub told: Option<Told>,
}

/// What the instance has told of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It has this version.
    Version(Version),
    /// It was deleted.
    Gone,
}

/// Records thought of at a time.
pub const RECHECKS: usize = 5_000;

/// Which records are to be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Every one.
    All,
    /// Those that a poll does not bring: others than those of which nothing is told but a version.
    Unpolled,
}

/// Records to be looked up now, each once, in the order of their keys behind one of them: [`RECHECKS`] of them at most.
pub fn to_recheck(relation: pg_sys::Oid, which: Which, after: &str) -> Vec<Recheck> {
    read(
        "SELECT sys_id, bool_and(gone AND mod_count IS NULL),
                CASE WHEN bool_and(mod_count IS NOT NULL AND NOT gone) THEN max(updated_on) END, max(mod_count)
         FROM servicenow.recheck WHERE foreign_table = $1 AND sys_id > $2 GROUP BY sys_id
         HAVING bool_or(due IS NULL OR due <= clock_timestamp()) AND ($4 OR bool_or(mod_count IS NULL OR gone))
         ORDER BY sys_id LIMIT $3",
        &[relation.into(), after.into(), (RECHECKS as i64).into(), (which == Which::All).into()],
        |rows| {
            rows.filter_map(|row| {
                let version = || Some(Version { updated_on: Some(get(&row, 3)?), mod_count: Some(get(&row, 4)?) });
                let told = match get(&row, 2) {
                    Some(true) => Some(Told::Gone),
                    _ => version().map(Told::Version),
                };
                Some(Recheck { id: get(&row, 1)?, told })
            })
            .collect()
        },
    )
}

/// When the next look at one of a table's records is due that have not been shown as was told.
pub fn next_recheck(relation: pg_sys::Oid) -> Option<Duration> {
    let seconds = read(
        "SELECT extract(epoch FROM min(due) - clock_timestamp())::float8 FROM servicenow.recheck WHERE foreign_table = $1",
        &[relation.into()],
        |mut rows| rows.next().and_then(|row| get::<f64>(&row, 1)),
    );
    seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)))
}

/// The cache has what the instance has told of these records. What was asked for without that stays, also by a session
/// just now.
pub fn settled(relation: pg_sys::Oid, ids: Vec<&str>) {
    write(
        "DELETE FROM servicenow.recheck WHERE foreign_table = $1 AND sys_id = ANY ($2) AND (gone OR mod_count IS NOT NULL)",
        &[relation.into(), ids.into()],
    );
}

/// How long it is waited for the instance to show what it has told of, in seconds: a rule may tell before its transaction is
/// committed, and what is read may come from a replica.
const DELAY: f64 = 60.0;
/// The pause before the second look in seconds; the next ones are four times as long each.
const FIRST_PAUSE: f64 = 0.25;
/// The pause before the second look where nothing shows whether the first was too early, in seconds.
const SECOND_LOOK: f64 = 5.0;

/// Records have been looked up, at a moment: with these versions, or not found. What was asked for after that stays; and
/// for a while what the instance has told of and did not show.
pub fn rechecked(relation: pg_sys::Oid, looked_up: &[(&str, Option<Version>)], at: SystemTime) {
    const TOLD_AND_SHOWN: &str = "CASE WHEN r.mod_count IS NULL THEN NOT (r.gone AND l.shown)
              WHEN l.shown THEN l.mod_count IS NULL OR l.updated_on >= r.updated_on AND l.mod_count >= r.mod_count
              ELSE r.gone END";
    let (mut ids, mut shown, mut times, mut counts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (id, version) in looked_up {
        ids.push((*id).to_owned());
        shown.push(version.is_some());
        let whole = version.and_then(|version| version.updated_on.zip(version.mod_count));
        times.push(whole.map(|(updated_on, _)| updated_on));
        counts.push(whole.map(|(_, mod_count)| mod_count));
    }
    let all = ids.clone();
    let looked: [pgrx::datum::DatumWithOid; 7] = [
        relation.into(),
        timestamp(at).into(),
        DELAY.into(),
        ids.into(),
        shown.into(),
        times.into(),
        counts.into(),
    ];
    write(
        &format!(
            "DELETE FROM servicenow.recheck r
             USING unnest($4::text[], $5::boolean[], $6::bigint[], $7::bigint[]) l (sys_id, shown, updated_on, mod_count)
             WHERE r.foreign_table = $1 AND r.sys_id = l.sys_id AND r.at <= $2
               AND (NOT r.twice AND {TOLD_AND_SHOWN} OR r.at < $2 - $3 * interval '1 second')"
        ),
        &looked,
    );
    write(
        "UPDATE servicenow.recheck r
         SET looks = looks + 1, twice = false,
             due = clock_timestamp()
                 + CASE WHEN twice THEN $5 ELSE $3 * power(4, least(looks, 5)) END * interval '1 second'
         WHERE r.foreign_table = $1 AND r.sys_id = ANY ($4) AND r.at <= $2",
        &[relation.into(), timestamp(at).into(), FIRST_PAUSE.into(), all.into(), SECOND_LOOK.into()],
    );
}

/// Those of these records that have gone since a moment.
pub fn gone_since(relation: pg_sys::Oid, ids: Vec<&str>, at: SystemTime) -> HashSet<String> {
    read(
        "SELECT sys_id FROM servicenow.absent WHERE foreign_table = $1 AND sys_id = ANY ($2) AND at > $3",
        &[relation.into(), ids.into(), timestamp(at).into()],
        |rows| rows.filter_map(|row| get(&row, 1)).collect(),
    )
}

/// Keeps for `sync_status` that something was not undone after a rollback.
pub fn note_not_undone(relation: pg_sys::Oid, text: &str) {
    write(
        "UPDATE servicenow.sync_table SET undo_error = $2, undo_error_at = clock_timestamp()
         WHERE foreign_table = $1",
        &[relation.into(), text.into()],
    );
}

/// How long it is remembered that a record is gone: no page is on its way for longer.
const ABSENT_FOR: Duration = Duration::from_secs(600);

/// Remembers for a while that records are gone.
pub fn remember_absent(relation: pg_sys::Oid, ids: &[String]) {
    if !ids.is_empty() {
        write(
            "INSERT INTO servicenow.absent (foreign_table, sys_id) SELECT $1, unnest($2)",
            &[relation.into(), ids.to_vec().into()],
        );
    }
}

/// These records are there.
pub fn forget_absent(relation: pg_sys::Oid, ids: Vec<&str>) {
    if !ids.is_empty() {
        write(
            "DELETE FROM servicenow.absent WHERE foreign_table = $1 AND sys_id = ANY ($2)",
            &[relation.into(), ids.into()],
        );
    }
}

/// If the clock was set back, what was asked for and noted before would not be settled until it shows that time again: it
/// counts as asked for now, and as noted long ago.
pub fn follow_clock() {
    write(
        "UPDATE servicenow.recheck SET at = clock_timestamp(), due = NULL
         WHERE at > clock_timestamp() OR due > clock_timestamp() + $1 * interval '1 second'",
        &[ABSENT_FOR.as_secs_f64().into()],
    );
    write("DELETE FROM servicenow.absent WHERE at > clock_timestamp()", &[]);
}

/// Forgets what has been remembered for long enough.
pub fn forget_old_absent() {
    write(
        "DELETE FROM servicenow.absent WHERE at < clock_timestamp() - $1 * interval '1 second'",
        &[ABSENT_FOR.as_secs_f64().into()],
    );
}

/// Those of these records that are remembered as gone.
pub fn absent_among(relation: pg_sys::Oid, ids: Vec<&str>) -> HashSet<String> {
    read(
        "SELECT sys_id FROM servicenow.absent WHERE foreign_table = $1 AND sys_id = ANY ($2)",
        &[relation.into(), ids.into()],
        |rows| rows.filter_map(|row| get(&row, 1)).collect(),
    )
}
