//! The worker: one process per database that keeps its caches like ServiceNow.
//!
//! HTTP, decoding and every decision run on Tokio threads ([`servicenow::sync`]) and never touch Postgres. The
//! main thread carries out what they ask for ([`store`]), a short transaction each, and watches the catalogs
//! for what there is to mirror ([`tasks`]). No transaction is open while anybody waits for the network.

pub mod capture;
pub mod launcher;
pub mod listener;
mod login;
mod mail;
pub mod mailbox;
pub mod recovery;
mod store;
mod tasks;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use pgrx::{PgLogLevel, PgSqlErrorCode as Sql, pg_sys};
use tokio::sync::mpsc;

use crate::catalog::{self, Waiting};
use crate::error::error;
use crate::failpoint;
use crate::pg;
use crate::pg::io::Bell;
use crate::pg::worker::End;
use crate::setting;
use listener::Front;
use login::Logins;
use mail::Mailer;
use mailbox::Mailbox;
use recovery::Recovery;
use tasks::Tasks;

/// The first key of this extension's advisory locks: `snow` in ASCII.
pub const LOCK_CLASS: i32 = 0x736e_6f77;
/// The first key of the locks of sessions that wait for a table; the second is the table.
pub const WAIT_CLASS: i32 = 0x736e_6f78;
/// The first key of their locks by which one wait is told from the next; the second is another one every time.
pub const CALL_CLASS: i32 = 0x736e_6f79;
/// The second key of the lock that the worker of a database holds.
const WORKER: i32 = 1;

/// How often the worker looks whether anything has changed, if nobody wakes it.
const TICK: Duration = Duration::from_secs(1);
/// Requests of mirrors waiting for the main thread; more make the mirrors wait.
const QUEUE: usize = 16;
/// The main thread looks up from requests after this long.
const TURN: Duration = Duration::from_millis(200);
/// How often the worker looks for changes that have been kept long enough.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);
/// How often the worker writes down the calls that were made.
const COUNT_INTERVAL: Duration = Duration::from_secs(2);
/// How often a session that uses foreign tables looks whether there is a worker.
const NOW_AND_THEN: Duration = Duration::from_secs(60);
/// How often what fails is tried again for a session that waits.
const AGAIN: Duration = Duration::from_secs(10);
/// What must not differ, whatever the database's or the cluster's settings are. A row or table that somebody
/// has locked is passed over after a short while.
const SETTINGS: &[(&str, &str)] = &[
    ("lock_timeout", "200ms"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    ("transaction_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_tablespace", ""),
    ("search_path", "pg_catalog, pg_temp"),
];

/// Main of the worker process.
pub fn main(database: pg_sys::Datum) {
    pg::worker::return_large_blocks();
    pg::worker::connect(database);
    if !pg::worker::try_lock(LOCK_CLASS, WORKER) {
        return; // another one is running
    }
    pg::worker::set_application_name("servicenow_fdw worker");
    pg::worker::set("lock_timeout", "0");
    let starter = pg::xact::transaction(pg::worker::wait_for_starter);
    for (name, value) in SETTINGS {
        pg::worker::set(name, value);
    }
    // A transaction of its own, as the one before may not see what it has waited for.
    match starter.and_then(|()| pg::xact::transaction(may_run)) {
        Ok(Permit::Granted) => {}
        Ok(Permit::OtherVersion(why)) => {
            // Another one is started when the extension has been updated.
            pg::worker::log(&format!("servicenow_fdw worker does not start: {why}"));
            return;
        }
        Ok(Permit::Refused) | Err(_) => return,
    }
    pg::worker::log("servicenow_fdw worker started");
    failpoint::reach("worker.start");
    let how = match run() {
        Ok((reason, how)) => {
            pg::worker::log(&format!("servicenow_fdw worker ends: {reason}"));
            how
        }
        Err(e) => {
            pg::worker::log(&format!("servicenow_fdw worker ends: could not start: {e}"));
            End::ForNow
        }
    };
    failpoint::reach("worker.exit");
    pg::worker::end(how);
}

/// Whether the worker may run.
enum Permit {
    Granted,
    /// It was stopped, or the extension is not there.
    Refused,
    /// The extension is there in another version than the library, as this says.
    OtherVersion(String),
}

fn may_run() -> Permit {
    if !catalog::watch_work() {
        return Permit::Refused;
    }
    if let Some(mismatch) = catalog::mismatch() {
        return Permit::OtherVersion(mismatch.message().to_owned());
    }
    if catalog::worker_enabled() { Permit::Granted } else { Permit::Refused }
}

/// Works until there is a reason to end.
fn run() -> std::io::Result<(&'static str, End)> {
    let bell = Bell::new()?;
    let (requests, mut inbox) = mpsc::channel(QUEUE);
    let mut tasks = Tasks::new(requests, bell.clone());
    let mailbox = Mailbox::open();
    let mut recovery = Recovery::new();
    recovery::tidy();
    let mut front = Front::default();
    let mut mailer = Mailer::default();
    let mut logins = Logins::new(bell.clone());
    let mut waits = HashMap::new();
    let (mut tidied, mut counted): (Option<Instant>, _) = (None, Instant::now());
    loop {
        let mut woken = pg::io::wait(Some(&bell), Some(TICK));
        let began = Instant::now();
        while began.elapsed() < TURN
            && let Ok(request) = inbox.try_recv()
        {
            store::carry_out(request);
            woken |= pg::io::wait(None, Some(Duration::ZERO));
        }
        if !inbox.is_empty() {
            bell.ring();
        }
        if pg::worker::reload_configuration_if_asked() {
            catalog::keep_work_changed(); // settings decide what servers may do
        }
        front.follow_settings();
        logins.take_in(&mut tasks);
        tasks.tell_trouble(front.trouble().as_deref());
        if pg::worker::database_is_wanted() {
            return Ok(("the database is to be dropped, renamed or copied", End::ForNow));
        }
        pg::catalog::accept_changes();
        if catalog::take_work_changed() || tasks.have_ended() {
            match pg::xact::transaction(may_run) {
                Ok(Permit::Granted) => tasks.reconcile()?,
                Ok(Permit::Refused) => {
                    return Ok(("it was stopped, or the extension was dropped", End::ForGood));
                }
                Ok(Permit::OtherVersion(_)) => {
                    return Ok(("the extension has another version than the library", End::ForNow));
                }
                Err(_) => catalog::keep_work_changed(), // tried again at the next tick
            }
        }
        if tidied.is_none_or(|at| at.elapsed() > TIDY_INTERVAL) {
            let more = setting::cdc_retention().is_some_and(|age| {
                matches!(pg::xact::transaction(|| catalog::forget_old_changes(age)), Ok(true))
            });
            let _tried_again_later = pg::xact::transaction(|| {
                catalog::follow_clock();
                catalog::forget_old_absent();
                catalog::forget_old_failures();
                catalog::forget_old_mail();
            });
            Logins::tidy();
            tidied = if more { None } else { Some(Instant::now()) };
        }
        if counted.elapsed() > COUNT_INTERVAL {
            counted = Instant::now();
            logins.keep();
            tasks.count(mailbox.as_ref().map(Mailbox::take).unwrap_or_default());
        }
        tasks.log_requests(setting::log_requests());
        mailer.look();
        let concerned = recovery.look(&mut tasks);
        tasks.nudge(&concerned);
        tasks.nudge(&store::capture::to_poll());
        if woken {
            serve(&tasks, &mut waits);
        }
    }
}

/// Has read what sessions wait for: once for each wait. `told` has those that were read for, and when; for them only what
/// has failed is tried again now and then, and what could not be looked up because somebody held it.
fn serve(tasks: &Tasks, told: &mut HashMap<Waiting, Instant>) {
    let look = || {
        let waits = catalog::waits();
        let mut free = HashSet::new();
        for wait in waits.iter().filter(|wait| told.contains_key(wait)) {
            if !free.contains(&wait.relation) && store::is_to_recheck(wait.relation) {
                free.insert(wait.relation);
            }
        }
        let failing: HashSet<_> =
            waits.iter().map(|wait| wait.relation).filter(|table| catalog::is_failing(*table)).collect();
        (waits, free.into_iter().collect::<Vec<_>>(), failing)
    };
    let Ok((waits, free, failing)) = pg::xact::transaction(look) else { return };
    told.retain(|wait, at| {
        waits.contains(wait) && !(at.elapsed() > AGAIN && failing.contains(&wait.relation))
    });
    let untold: Vec<Waiting> = waits.into_iter().filter(|wait| !told.contains_key(wait)).collect();
    tasks.nudge(&untold.iter().map(|wait| wait.relation).collect::<Vec<_>>());
    tasks.nudge_mirrors(&free);
    told.extend(untold.into_iter().map(|wait| (wait, Instant::now())));
}

thread_local! {
    static ENSURED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Starts the database's worker if it does not run, looking now and then: for every use of a table.
pub fn ensure_now_and_then() {
    if ENSURED.get().is_none_or(|at| at.elapsed() > NOW_AND_THEN) && pg::worker::may_launch() {
        ENSURED.set(Some(Instant::now()));
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
        warn_of_missing_slot();
    }
}

/// Once per transaction: a session that waits looks every second.
fn warn_of_missing_slot() {
    thread_local! {
        static WARNED: Cell<i64> = const { Cell::new(0) };
    }
    let now = pg::xact::started();
    if WARNED.replace(now) != now {
        error(
            Sql::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            "could not start the worker that keeps foreign tables up to date: no background worker slot is free",
        )
        .set_hint("Raise max_worker_processes, one for each database with foreign tables, and restart the server.")
        .report(PgLogLevel::WARNING);
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
