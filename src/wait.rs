//! Waiting in a session until the worker has brought a table where it is to be. In backends.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode as Sql, pg_sys};

use crate::catalog::{self, Progress};
use crate::error::{error, raise};
use crate::pg::worker::Sign;
use crate::{pg, worker};

/// How often a waiting session looks whether it has waited long enough.
const GLANCE: Duration = Duration::from_millis(50);
/// How often it wakes the worker, and makes sure that there is one. A worker reads once for each wait.
const REMIND: Duration = Duration::from_secs(1);
/// How often it says how far things are.
const SAY: Duration = Duration::from_secs(5);

/// What is waited for, and how.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// What [`Progress::caught_up`] is about.
    pub since: SystemTime,
    /// The longest wait; `None` for as long as it takes.
    pub limit: Option<Duration>,
    /// Whether to say how far things are now and then.
    pub talk: bool,
}

impl Wait {
    /// Waits until the table is as `enough` wants it; gives back how far it is when time is over. Ends at once
    /// with an ERROR if nobody would do what is waited for, or if others wait for this session.
    pub fn until(&self, relation: pg_sys::Oid, enough: impl Fn(&Progress) -> bool) -> Result<(), Progress> {
        let name = catalog::qualified(relation);
        let (began, since) = (Instant::now(), catalog::timestamp(self.since));
        let _call = Sign::new(worker::CALL_CLASS, call());
        let _sign = Sign::new(worker::WAIT_CLASS, relation.to_u32() as i32);
        let (mut reminded, mut said, mut told): (Option<Instant>, Instant, Option<String>) =
            (None, Instant::now(), None);
        loop {
            // What the waiting statement itself sees does not change.
            let look = || (catalog::progress(relation, since), catalog::worker_enabled());
            let (now, enabled) = pg::xact::with_latest_snapshot(look);
            let Some(progress) = now else {
                raise(error(Sql::ERRCODE_UNDEFINED_TABLE, format!("foreign table {name} was dropped")))
            };
            if enough(&progress) {
                return Ok(());
            }
            if progress.uncommitted {
                raise(uncommitted(&name));
            }
            if progress.last_error.is_some() && progress.last_error != told {
                notice!("{name}: {}", progress.last_error.as_deref().unwrap_or_default());
                told.clone_from(&progress.last_error);
            }
            if self.limit.is_some_and(|limit| began.elapsed() >= limit) || !enabled {
                return Err(progress);
            }
            if self.talk && said.elapsed() >= SAY {
                said = Instant::now();
                notice!("{name}: {}", progress.how_far());
            }
            if reminded.is_none_or(|at| at.elapsed() >= REMIND) {
                reminded = Some(Instant::now());
                let is_in_the_way = pg::xact::with_latest_snapshot(|| {
                    worker::ensure();
                    worker::pid().into_iter().for_each(pg::worker::wake);
                    catalog::is_in_the_way(relation)
                });
                if is_in_the_way {
                    raise(in_the_way(&name));
                }
            }
            pg::io::wait(None, Some(GLANCE));
        }
    }
}

/// Another number for each wait of this session.
fn call() -> i32 {
    thread_local! {
        static CALLS: Cell<i32> = const { Cell::new(0) };
    }
    CALLS.replace(CALLS.get().wrapping_add(1))
}

fn uncommitted(name: &str) -> ErrorReport {
    error(
        Sql::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("cannot wait for foreign table {name}: this transaction has changed it"),
    )
    .set_hint("The worker sees the change when the transaction has committed; wait then.")
}

/// The worker may have to wait for the others, and they wait for this session.
fn in_the_way(name: &str) -> ErrorReport {
    error(
        Sql::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("cannot wait for foreign table {name} any longer: another session waits to change it"),
    )
    .set_hint("Try again when it has been changed.")
}

/// Adds to an ERROR about a table that is not where it is to be what its reason is and what to do.
pub fn explain(report: ErrorReport, progress: &Progress) -> ErrorReport {
    let report = match &progress.last_error {
        Some(e) => report.set_detail(format!("The last attempt failed: {e}")),
        None => report,
    };
    match worker::pid() {
        _ if !pg::worker::may_launch() => {
            report.set_hint("A standby is kept up to date by its primary; see the lag there.")
        }
        // It may not have ended yet.
        _ if !pg::xact::with_latest_snapshot(catalog::worker_enabled) => {
            report.set_hint("The worker is stopped; start it with SELECT servicenow.start_worker().")
        }
        Some(_) => report.set_hint("The worker goes on; view servicenow.sync_status shows how far it is."),
        None => report.set_hint("The worker does not run; see the server log, and max_worker_processes."),
    }
}
