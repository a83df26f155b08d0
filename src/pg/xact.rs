//! Transactions and subtransactions.

use std::cell::Cell;
use std::ffi::c_uint;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, UnwindSafe};

use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::{PgLogLevel, PgSqlErrorCode, PgTryBuilder, pg_guard, pg_sys};

/// An ERROR that was caught.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Its SQLSTATE.
    pub sqlstate: PgSqlErrorCode,
    /// Its primary message.
    pub message: String,
    /// Its hint.
    pub hint: Option<String>,
}

impl Caught {
    /// Whether it comes from somebody doing something to the same row or table at this moment.
    pub fn is_conflict(&self) -> bool {
        matches!(
            self.sqlstate,
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
                | PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED
                | PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE
        )
    }

    /// Whether a row is there already, by some unique index.
    pub fn is_duplicate(&self) -> bool {
        self.sqlstate == PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION
    }

    /// Whether it is about a value (SQLSTATE class 22); its message may quote it.
    pub fn is_about_data(&self) -> bool {
        let class = self.sqlstate as i32 & 0xfff; // two characters of six bits each
        class == PgSqlErrorCode::ERRCODE_DATA_EXCEPTION as i32 & 0xfff
    }
}

fn caught(error: &CaughtError) -> Caught {
    let report = match error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
        CaughtError::RustPanic { ereport, .. } => ereport,
    };
    let hint = report.hint().map(str::to_owned);
    Caught { sqlstate: report.sql_error_code(), message: report.message().to_owned(), hint }
}

/// Runs `f` in a transaction of its own, in a background worker; an ERROR aborts it and is given back.
/// A process that is told to end meanwhile ends.
pub fn transaction<R>(f: impl FnOnce() -> R) -> Result<R, Caught> {
    // SAFETY: the worker's main loop is outside any transaction; the order is that of every background worker.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let result = PgTryBuilder::new(AssertUnwindSafe(|| {
        let result = f();
        // SAFETY: the snapshot is the one pushed above, the transaction the one started above.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        }
        Ok(result)
    }))
    .catch_others(|error| Err(caught(&error)))
    .execute();
    if result.is_err() {
        // SAFETY: the transaction failed; this ends it and restores everything it had acquired.
        unsafe {
            pg_sys::AbortCurrentTransaction();
            pg_sys::FlushErrorState();
        }
    } else {
        // SAFETY: outside a transaction.
        unsafe { pg_sys::pgstat_report_stat(false) };
    }
    result
}

/// Runs `f` in a subtransaction; an ERROR rolls it back and is given back. Interrupts are not caught: a
/// cancelled statement stays cancelled.
pub fn subtransaction<R>(f: impl FnOnce() -> R + UnwindSafe) -> Result<R, Caught> {
    // SAFETY: inside a transaction; context and resource owner are restored on both ways out, as PL/pgSQL does
    // for a block with EXCEPTION (exec_stmt_block).
    let (context, owner) = unsafe {
        let saved = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(saved.0);
        saved
    };
    let restore = || {
        // SAFETY: both were current when the subtransaction began and outlive it.
        unsafe {
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::CurrentResourceOwner = owner;
        }
    };
    let result = PgTryBuilder::new(move || {
        let result = f();
        // SAFETY: ends the subtransaction begun above.
        unsafe { pg_sys::ReleaseCurrentSubTransaction() };
        Ok(result)
    })
    .catch_others(|error| Err(Box::new(error)))
    .execute();
    result.map_or_else(
        |error| {
            // SAFETY: ends the subtransaction begun above.
            unsafe { pg_sys::RollbackAndReleaseCurrentSubTransaction() };
            restore();
            let caught = caught(&error);
            if caught.sqlstate == PgSqlErrorCode::ERRCODE_QUERY_CANCELED {
                error.rethrow();
            }
            Err(caught)
        },
        |result| {
            restore();
            Ok(result)
        },
    )
}

/// Runs `f`; if an interrupt ends it, `tell` is called before the interrupt's ERROR goes on.
pub fn when_interrupted<R>(f: impl FnOnce() -> R, tell: impl FnOnce()) -> R {
    let result =
        PgTryBuilder::new(AssertUnwindSafe(|| Ok(f()))).catch_others(|error| Err(Box::new(error))).execute();
    result.unwrap_or_else(|error| {
        if caught(&error).sqlstate == PgSqlErrorCode::ERRCODE_QUERY_CANCELED {
            tell();
        }
        error.rethrow()
    })
}

/// utils/timeout.h: the timer of `statement_timeout`.
const STATEMENT_TIMEOUT: c_uint = 3;

unsafe extern "C-unwind" {
    /// timeout.c: whether a timer runs.
    fn get_timeout_active(id: c_uint) -> bool;
    /// timeout.c: starts a timer that rings at a time, which may be over.
    fn enable_timeout_at(id: c_uint, at: pg_sys::TimestampTz);
    /// timeout.c: stops a timer.
    fn disable_timeout(id: c_uint, keep_indicator: bool);
}

/// Runs `f` at the end of a transaction as a part of the statement: Postgres has stopped the timer of
/// `statement_timeout` by then (`finish_xact_command`), as it does not expect that a commit waits.
pub fn within_statement_timeout<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: variables and timers of this process. When `f` fails, the main loop of the backend stops every timer.
    unsafe {
        let limit = pg_sys::TimestampTz::from(pg_sys::StatementTimeout);
        let is_mine = limit > 0 && !get_timeout_active(STATEMENT_TIMEOUT);
        if is_mine {
            let end = pg_sys::GetCurrentStatementStartTimestamp() + limit * 1_000;
            enable_timeout_at(STATEMENT_TIMEOUT, end);
        }
        let result = f();
        if is_mine {
            disable_timeout(STATEMENT_TIMEOUT, false);
        }
        result
    }
}

thread_local! {
    static LATEST: Cell<u32> = const { Cell::new(0) };
}

/// Counts calls of [`with_latest_snapshot`] that are under way; an ERROR ends it too.
struct Latest;

impl Latest {
    fn begin() -> Self {
        LATEST.set(LATEST.get() + 1);
        Self
    }
}

impl Drop for Latest {
    fn drop(&mut self) {
        LATEST.set(LATEST.get() - 1);
    }
}

/// Whether the current snapshot is one of [`with_latest_snapshot`].
pub fn sees_latest() -> bool {
    LATEST.get() > 0
}

/// Runs `f` with a snapshot of this moment.
pub fn with_latest_snapshot<R>(f: impl FnOnce() -> R) -> R {
    let _latest = Latest::begin();
    // SAFETY: inside a transaction; an ERROR in `f` pops the snapshot with the (sub)transaction. The snapshot is the
    // one for catalogs, copied: GetLatestSnapshot refuses during a parallel query. InvalidOid has it made anew.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetCatalogSnapshot(pg_sys::InvalidOid)) };
    let result = f();
    // SAFETY: the snapshot pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    result
}

/// Takes an advisory lock on a name until the transaction ends, if nobody else has it.
pub fn try_lock_name(class: i32, name: &str) -> bool {
    // The same in every process: this hasher has no random keys.
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let tag = super::worker::advisory(class, hasher.finish() as i32);
    // SAFETY: the tag is a live local, and this does not wait.
    unsafe {
        pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as pg_sys::LOCKMODE, false, true)
            != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }
}

/// Whether a transaction number, as text, is the current transaction's or one of its subtransactions'.
pub fn is_own(xid: &str) -> bool {
    let Ok(xid) = xid.parse::<u32>() else { return false };
    // SAFETY: looks into this process's own state.
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(pg_sys::TransactionId::from(xid)) }
}

/// When the current transaction began, in microseconds.
pub fn started() -> i64 {
    // SAFETY: reads a variable.
    unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }
}

/// Whether the transaction sees the same data from beginning to end.
pub fn keeps_its_snapshot() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}

/// The full number of the current (sub)transaction, which gets one if it has none.
pub fn current_xid() -> u64 {
    // SAFETY: inside a transaction that may write.
    unsafe { pg_sys::GetCurrentFullTransactionId().value }
}

/// As [`current_xid`], for good: even if the server crashes now, nobody else gets this number. Of a number that nothing in
/// the write-ahead log tells of a crashed server knows nothing, and gives it out once more.
pub fn lasting_xid() -> u64 {
    thread_local! {
        static LAST: Cell<u64> = const { Cell::new(0) };
    }
    let xid = current_xid();
    if LAST.get() != xid {
        // SAFETY: inside a transaction that may write. Every record bears the number of the transaction that inserts it;
        // this one has no other effect. The data are copied, and needed because a record must not be empty.
        unsafe {
            pg_sys::XLogBeginInsert();
            let data = xid.to_ne_bytes();
            pg_sys::XLogRegisterData(data.as_ptr().cast_mut().cast(), data.len() as _);
            let resource_manager = pg_sys::RmgrIds::RM_XLOG_ID as pg_sys::RmgrId;
            pg_sys::XLogFlush(pg_sys::XLogInsert(resource_manager, pg_sys::XLOG_NOOP as u8));
        }
        LAST.set(xid);
    }
    xid
}

/// Has what comes now see what was done so far, as the next statement would.
pub fn next_command() {
    // SAFETY: inside a transaction, between two commands.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// The number of the current command within its transaction.
pub fn command_id() -> u32 {
    // SAFETY: reads a variable.
    unsafe { pg_sys::GetCurrentCommandId(false) }
}

/// Fires the triggers that wait for the end of the transaction, as COMMIT does.
pub fn fire_deferred_triggers() {
    // SAFETY: before the commit, outside of any query; it takes a snapshot of its own.
    unsafe { pg_sys::AfterTriggerFireDeferred() };
}

/// Has the transaction's commit be on disk when it is over, whatever `synchronous_commit` says: something depends on it
/// that a crash does not take back.
pub fn commit_for_good() {
    // SAFETY: sets a variable that the end of the transaction resets.
    unsafe { pg_sys::ForceSyncCommit() };
}

/// The number of the current subtransaction within its transaction; that of the transaction itself is the lowest.
pub fn subtransaction_id() -> u32 {
    // SAFETY: reads a variable.
    unsafe { pg_sys::GetCurrentSubTransactionId() }
}

/// The server's timeline: on another one the same numbers are those of other transactions.
pub fn timeline() -> u32 {
    // SAFETY: the server is not in recovery, as this transaction writes.
    unsafe { pg_sys::GetWALInsertionTimeLine() }
}

/// Whether the current transaction may not write.
pub fn is_read_only() -> bool {
    // SAFETY: reads a variable of this process, on its main thread.
    unsafe { pg_sys::XactReadOnly }
}

/// Whoever has to know how transactions end.
#[derive(Clone, Copy, Debug)]
pub struct Watcher {
    /// The transaction is about to be committed; it still may fail, and may write.
    pub before_commit: fn(),
    /// The transaction is over, and was committed or not. Must not fail.
    pub ended: fn(committed: bool),
    /// A subtransaction has been committed into its parent, or was rolled back. Must not fail.
    pub subtransaction_ended: fn(id: u32, parent: u32, committed: bool),
}

thread_local! {
    static AT_COMMIT: Cell<Option<fn()>> = const { Cell::new(None) };
    static PREPARE_FORBIDDEN: Cell<bool> = const { Cell::new(false) };
    static WATCHER: Cell<Option<Watcher>> = const { Cell::new(None) };
}

/// Tells the process's one watcher from now on.
pub fn watch(watcher: Watcher) {
    watch_transactions();
    WATCHER.set(Some(watcher));
}

/// Refuses PREPARE TRANSACTION for the rest of the current transaction: something it has done elsewhere cannot
/// be prepared.
pub fn forbid_prepare() {
    watch_transactions();
    PREPARE_FORBIDDEN.set(true);
}

/// Has `f` called once when the current top-level transaction has committed. `f` must not fail: no memory, no
/// catalogs, nothing but signals.
pub fn at_commit(f: fn()) {
    watch_transactions();
    AT_COMMIT.set(Some(f));
}

/// Registers for the ends of transactions, once per process.
fn watch_transactions() {
    thread_local! {
        static REGISTERED: Cell<bool> = const { Cell::new(false) };
    }
    if !REGISTERED.replace(true) {
        // SAFETY: registers functions that live as long as the library, once per process.
        unsafe {
            pg_sys::RegisterXactCallback(Some(on_xact_event), std::ptr::null_mut());
            pg_sys::RegisterSubXactCallback(Some(on_subxact_event), std::ptr::null_mut());
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_xact_event(event: pg_sys::XactEvent::Type, _argument: *mut std::ffi::c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT => {
            if let Some(watcher) = WATCHER.get() {
                (watcher.before_commit)();
            }
        }
        pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE if PREPARE_FORBIDDEN.get() => {
            ErrorReport::new(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "cannot PREPARE a transaction that has written to ServiceNow",
                "",
            )
            .set_hint("What ServiceNow has accepted cannot be prepared or rolled back; use COMMIT.")
            .report(PgLogLevel::ERROR);
        }
        pg_sys::XactEvent::XACT_EVENT_COMMIT => {
            PREPARE_FORBIDDEN.set(false);
            if let Some(watcher) = WATCHER.get() {
                (watcher.ended)(true);
            }
            if let Some(f) = AT_COMMIT.take() {
                f();
            }
        }
        pg_sys::XactEvent::XACT_EVENT_ABORT | pg_sys::XactEvent::XACT_EVENT_PREPARE => {
            PREPARE_FORBIDDEN.set(false);
            AT_COMMIT.set(None);
            if let Some(watcher) = WATCHER.get() {
                (watcher.ended)(false);
            }
        }
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_subxact_event(
    event: pg_sys::SubXactEvent::Type,
    id: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    let Some(watcher) = WATCHER.get() else { return };
    match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => (watcher.subtransaction_ended)(id, parent, true),
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => (watcher.subtransaction_ended)(id, parent, false),
        _ => {}
    }
}

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use pgrx::PgSqlErrorCode as Sql;
    use pgrx::prelude::*;

    #[pg_test]
    fn what_fails_in_a_subtransaction_leaves_nothing_behind() {
        Spi::run("CREATE TABLE t (n int PRIMARY KEY)").expect("a table");
        let put =
            |n: i32| move || Spi::run(&format!("INSERT INTO t VALUES ({n})")).expect("a valid use of SPI");
        assert!(super::subtransaction(put(1)).is_ok());
        let caught = super::subtransaction(put(1)).expect_err("it is there already");
        assert_eq!(caught.sqlstate, Sql::ERRCODE_UNIQUE_VIOLATION);
        assert!(caught.is_duplicate() && !caught.is_conflict());
        let caught = super::subtransaction(|| {
            put(2)();
            Spi::run("SELECT 1 / 0").expect("a valid use of SPI");
        });
        assert!(caught.expect_err("it cannot be divided").is_about_data());
        let panicked = super::subtransaction::<()>(|| panic!("a bug"));
        assert_eq!(panicked.expect_err("it panics").sqlstate, Sql::ERRCODE_INTERNAL_ERROR);
        assert_eq!(Spi::get_one::<i64>("SELECT count(*) FROM t").expect("a valid use of SPI"), Some(1));
    }

    #[pg_test(error = "canceling statement due to user request")]
    fn an_interrupt_is_not_caught() {
        let cancel = "SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(10)";
        let _caught = super::subtransaction(|| Spi::run(cancel));
    }

    #[pg_test]
    fn a_name_is_locked_by_the_transaction_that_wants_it() {
        assert!(super::try_lock_name(17, "incident"));
        assert!(super::try_lock_name(17, "incident"), "its own lock is not in the way");
        let held =
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 17 AND objsubid = 3";
        assert_eq!(Spi::get_one::<i64>(held).expect("a valid use of SPI"), Some(1));
    }
}
