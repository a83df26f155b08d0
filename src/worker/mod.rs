//! The worker: one process per database that keeps its caches like ServiceNow.
//!
//! HTTP, decoding and every decision run on Tokio threads ([`servicenow::sync`]) and never touch Postgres. The
//! main thread carries out what they ask for ([`store`]), a short transaction each, and watches the catalogs
//! for what there is to mirror ([`tasks`]). No transaction is open while anybody waits for the network.

pub mod launcher;
mod store;
mod tasks;

use std::cell::Cell;
use std::time::Duration;

use pgrx::{PgLogLevel, PgSqlErrorCode as Sql, ereport, pg_sys};
use tokio::sync::mpsc;

use crate::catalog;
use crate::pg;
use crate::pg::io::Bell;
use tasks::Tasks;

/// The first key of this extension's advisory locks: `snow` in ASCII.
pub const LOCK_CLASS: i32 = 0x736e_6f77;
/// The first key of the locks of sessions that wait for a table; the second is the table.
pub const WAIT_CLASS: i32 = 0x736e_6f78;
/// The second key of the lock that the worker of a database holds.
const WORKER: i32 = 1;

/// How often the worker looks whether anything has changed, if nobody wakes it.
const TICK: Duration = Duration::from_secs(1);
/// Requests of mirrors waiting for the main thread; more make the mirrors wait.
const QUEUE: usize = 16;
/// A row or table somebody has locked is passed over after this long.
const LOCK_TIMEOUT: &str = "200ms";

/// Main of the worker process.
pub fn main(database: pg_sys::Datum) {
    pg::worker::connect(database);
    if !pg::worker::try_lock(LOCK_CLASS, WORKER) {
        return; // another one is running
    }
    pg::worker::set_application_name("servicenow_fdw worker");
    pg::worker::set("lock_timeout", LOCK_TIMEOUT);
    pg::worker::set("statement_timeout", "0");
    pg::worker::set("idle_in_transaction_session_timeout", "0");
    pg::worker::set("search_path", "pg_catalog");
    let Ok(true) = pg::xact::transaction(may_run) else { return };
    pg::worker::log("servicenow_fdw worker started");
    match run() {
        Ok(reason) => pg::worker::log(&format!("servicenow_fdw worker ends: {reason}")),
        Err(e) => pg::worker::log(&format!("servicenow_fdw worker ends: could not start: {e}")),
    }
    pg::worker::end();
}

fn may_run() -> bool {
    catalog::watch_work() && catalog::worker_enabled()
}

/// Works until there is a reason to end.
fn run() -> std::io::Result<&'static str> {
    let bell = Bell::new()?;
    let (requests, mut inbox) = mpsc::channel(QUEUE);
    let mut tasks = Tasks::new(requests, bell.clone());
    loop {
        let woken = pg::io::wait(Some(&bell), Some(TICK));
        pg::worker::reload_configuration_if_asked();
        if pg::worker::database_is_wanted() {
            return Ok("the database is to be dropped, renamed or copied");
        }
        pg::catalog::accept_changes();
        if catalog::take_work_changed() {
            match pg::xact::transaction(may_run) {
                Ok(true) => tasks.reconcile()?,
                Ok(false) => return Ok("it was stopped, or the extension was dropped"),
                Err(_) => {} // tried again at the next change or tick
            }
        }
        if woken && let Ok(waiting) = pg::xact::transaction(|| catalog::locked_objects(WAIT_CLASS)) {
            tasks.nudge(&waiting);
        }
        while let Ok(request) = inbox.try_recv() {
            store::carry_out(request);
            pg::io::wait(None, Some(Duration::ZERO));
        }
    }
}

thread_local! {
    static ENSURED: Cell<bool> = const { Cell::new(false) };
}

/// Starts the database's worker if it does not run, at most once per session: for every use of a table.
pub fn ensure_once() {
    if !ENSURED.replace(true) {
        ensure();
    }
}

/// Starts the database's worker if it does not run and may.
pub fn ensure() {
    if !pg::worker::may_launch() || pid().is_some() || !catalog::worker_enabled() {
        return;
    }
    let launched =
        pg::worker::launch("servicenow_fdw worker", "servicenow_fdw_worker", pg::worker::database());
    if launched.is_err() {
        ereport!(
            PgLogLevel::WARNING,
            Sql::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            "could not start the worker that keeps foreign tables up to date: no background worker slot is free",
            "Raise max_worker_processes and restart the server."
        );
    }
}

/// The process of the database's worker, if it runs.
pub fn pid() -> Option<i32> {
    catalog::lock_holder(LOCK_CLASS, WORKER)
}

thread_local! {
    static TO_WAKE: Cell<Option<i32>> = const { Cell::new(None) };
}

/// Has the worker look for changes when this transaction has committed.
pub fn wake_at_commit() {
    TO_WAKE.set(pid());
    pg::xact::at_commit(|| {
        if let Some(pid) = TO_WAKE.take() {
            pg::worker::wake(pid);
        }
    });
}
