//! Whether a query may read caches as they are: settings `incomplete_reads` and `max_staleness`. In backends,
//! from the executor's hook, for both ways of reading.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode as Sql};

use crate::catalog::{self, Mirror, Progress, timestamp};
use crate::error::{error, raise};
use crate::pg;
use crate::pg::start::Start;
use crate::setting::{self, IncompleteReads};
use crate::wait::{self, Wait};
use crate::worker;

thread_local! {
    static FIRST: Cell<bool> = const { Cell::new(false) };
}

/// The library has been loaded by a session: maybe while planning, and that plan knows of foreign scans only.
pub fn plans_may_be_older() {
    FIRST.set(true);
}

/// Checks every foreign table a query is about to read, and makes sure that somebody keeps it up to date. Costs a
/// lookup in memory for each once it is filled, if `max_staleness` is off.
pub fn check(start: &Start) {
    if FIRST.replace(false) {
        pg::session::forget_plans();
    }
    let (incomplete, limit) = (setting::incomplete_reads(), setting::max_staleness());
    let mut waited = false;
    for relation in start.reads() {
        let Some(mirror) = catalog::mirror(relation) else { continue };
        worker::ensure_now_and_then();
        if incomplete != IncompleteReads::Allow && !is_filled(&mirror) {
            start.check_privileges();
            waited |= read_incomplete(start, &mirror, incomplete);
        }
        if let Some(limit) = limit {
            waited |= read_stale(start, &mirror, limit);
        }
    }
    if waited {
        start.see_newer();
    }
}

/// Whether the table was filled by the time of the query's snapshot. It stays so.
fn is_filled(mirror: &Mirror) -> bool {
    if !mirror.filled.get() {
        let progress = catalog::progress(mirror.foreign_table, timestamp(SystemTime::now()));
        mirror.filled.set(progress.is_some_and(|progress| progress.filled));
    }
    mirror.filled.get()
}

/// Gives back whether it has waited.
fn read_incomplete(start: &Start, mirror: &Mirror, what: IncompleteReads) -> bool {
    if what == IncompleteReads::Wait && start.can_see_newer() && pg::worker::may_launch() {
        let wait = Wait { since: SystemTime::now(), limit: None, talk: true };
        match wait.until(mirror.foreign_table, |progress| progress.filled) {
            Ok(()) => return true,
            Err(progress) => raise(wait::explain(incomplete(mirror, &progress), &progress)),
        }
    }
    let progress = catalog::progress(mirror.foreign_table, timestamp(SystemTime::now())).unwrap_or_default();
    let report = incomplete(mirror, &progress).set_hint(format!(
        "Wait with SELECT servicenow.wait_for_sync('{}'), or see servicenow_fdw.incomplete_reads.",
        catalog::qualified(mirror.foreign_table)
    ));
    match what {
        IncompleteReads::Warn => report.report(PgLogLevel::WARNING),
        _ => raise(report),
    }
    false
}

fn incomplete(mirror: &Mirror, progress: &Progress) -> ErrorReport {
    error(
        Sql::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!(
            "foreign table {} is not filled yet: {}",
            catalog::qualified(mirror.foreign_table),
            progress.how_far()
        ),
    )
}

/// Gives back whether it has waited.
fn read_stale(start: &Start, mirror: &Mirror, limit: Duration) -> bool {
    let since = SystemTime::now() - limit;
    let progress = catalog::progress(mirror.foreign_table, timestamp(since)).unwrap_or_default();
    if progress.caught_up {
        return false;
    }
    start.check_privileges();
    let stale = |progress: &Progress| {
        error(
            Sql::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "foreign table {} is older than servicenow_fdw.max_staleness ({}): {}",
                catalog::qualified(mirror.foreign_table),
                setting::max_staleness_text(),
                progress
                    .age
                    .as_ref()
                    .map_or_else(|| progress.how_far(), |age| format!("last in sync {age} ago"))
            ),
        )
    };
    if !start.can_see_newer() {
        raise(stale(&progress).set_hint(
            "This statement cannot see what comes now; call servicenow.sync() before its transaction begins.",
        ));
    }
    let wait = Wait { since, limit: Some(limit), talk: false };
    match wait.until(mirror.foreign_table, |progress| progress.caught_up) {
        Ok(()) => true,
        Err(progress) => raise(wait::explain(stale(&progress), &progress)),
    }
}
