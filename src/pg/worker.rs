//! Background workers: starting them, finding them, waking them, and what their main function needs.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::{FromDatum, IntoDatum, PgLogLevel, PgSqlErrorCode, ereport, pg_guard, pg_sys};

/// The library the workers' functions are in.
const LIBRARY: &str = "servicenow_fdw";
/// The pause before Postgres starts a worker again that has failed.
const RESTART: Duration = Duration::from_secs(5);

/// The first number of an ordinary transaction.
const FIRST_XID: u32 = 3;

fn xid(transaction: pg_sys::TransactionId) -> u32 {
    transaction.into_inner()
}

/// No worker process could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSlot;

/// Starts the process that starts the databases' workers after a restart of the server. For `_PG_init` in the
/// postmaster only.
pub fn register_launcher(name: &str, function: &str) {
    BackgroundWorkerBuilder::new(name)
        .set_library(LIBRARY)
        .set_function(function)
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(RESTART))
        .enable_spi_access()
        .load();
}

/// Starts a worker for a database. It is started again when it fails, until it ends by itself. See
/// [`wait_for_starter`] for what it may have to wait for.
pub fn launch(name: &str, function: &str, database: pg_sys::Oid) -> Result<(), NoSlot> {
    // SAFETY: reads a variable of this process.
    let transaction = unsafe { pg_sys::GetTopTransactionIdIfAny() };
    BackgroundWorkerBuilder::new(name)
        .set_library(LIBRARY)
        .set_function(function)
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(RESTART))
        .set_argument(database.into_datum())
        .set_extra(&xid(transaction).to_string())
        .enable_spi_access()
        .load_dynamic()
        .map(|_| ())
        .map_err(|_| NoSlot)
}

/// Waits until the transaction that has started this worker has ended, if it was one that writes: what it has done
/// may be what the worker is for.
pub fn wait_for_starter() {
    // SAFETY: set by the postmaster before the process begins, and terminated by `set_extra`.
    let extra = unsafe { std::ffi::CStr::from_ptr((*pg_sys::MyBgworkerEntry).bgw_extra.as_ptr()) };
    let starter: u32 = extra.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or_default();
    let transaction = pg_sys::TransactionId::from(starter);
    // SAFETY: inside a transaction; the wait ends with an ERROR if this process is told to end.
    unsafe {
        if starter >= FIRST_XID && pg_sys::TransactionIdIsInProgress(transaction) {
            pg_sys::XactLockTableWait(
                transaction,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                pg_sys::XLTW_Oper::XLTW_None,
            );
        }
    }
}

/// Whether this process may start workers: it is an ordinary session of a server that accepts writes.
pub fn may_launch() -> bool {
    // SAFETY: reads variables of this process and of shared memory.
    unsafe { !pg_sys::IsBinaryUpgrade && pg_sys::ParallelWorkerNumber < 0 && !pg_sys::RecoveryInProgress() }
}

/// Whether this is the postmaster loading `shared_preload_libraries`.
pub fn is_preloading() -> bool {
    // SAFETY: reads variables.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress && !pg_sys::IsBinaryUpgrade }
}

/// What tells this cluster from others; copies of it have the same.
pub fn system_identifier() -> u64 {
    // SAFETY: reads the control file as this process has it.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// The database this process is connected to.
pub fn database() -> pg_sys::Oid {
    // SAFETY: reads a variable.
    unsafe { pg_sys::MyDatabaseId }
}

/// Sets the latch of another process of this cluster; nothing happens if it is gone.
pub fn wake(pid: i32) {
    // SAFETY: the entry stays valid memory if the process ends meanwhile, and setting the latch of a process
    // that took the entry over is harmless.
    unsafe {
        let process = pg_sys::BackendPidGetProc(pid);
        if !process.is_null() {
            pg_sys::SetLatch(&mut (*process).procLatch);
        }
    }
}

/// Takes an advisory lock of the session (of two keys) for good, if nobody has it.
pub fn try_lock(class: i32, object: i32) -> bool {
    let tag = advisory(class, object);
    // SAFETY: the tag is a live local; a session lock needs no transaction.
    unsafe {
        pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as pg_sys::LOCKMODE, true, true)
            != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }
}

/// A shared advisory lock of the session, held until dropped: a sign for others to see in `pg_locks`, which
/// goes away by itself when the process does.
#[must_use]
pub struct Sign(pg_sys::LOCKTAG);

impl Sign {
    /// Puts the sign up.
    pub fn new(class: i32, object: i32) -> Self {
        let tag = advisory(class, object);
        // SAFETY: as for `try_lock`; shared locks do not conflict, so this does not wait.
        unsafe { pg_sys::LockAcquire(&tag, pg_sys::ShareLock as pg_sys::LOCKMODE, true, false) };
        Self(tag)
    }
}

impl Drop for Sign {
    fn drop(&mut self) {
        // SAFETY: releases what `new` took.
        unsafe { pg_sys::LockRelease(&self.0, pg_sys::ShareLock as pg_sys::LOCKMODE, true) };
    }
}

/// The tag of an advisory lock of two keys in this database.
pub(super) fn advisory(class: i32, object: i32) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        locktag_field1: database().to_u32(),
        locktag_field2: class as u32,
        locktag_field3: object as u32,
        // SQL's own advisory lock functions make 1 and 2 only, so that nobody can take this one by hand.
        locktag_field4: 3,
        locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
        locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
    }
}

/// Whether somebody is about to drop, rename or copy this worker's database, which the worker's presence
/// would prevent: they hold a lock on it that conflicts with the one every session takes when it connects.
pub fn database_is_wanted() -> bool {
    let mode = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
    let tag = pg_sys::LOCKTAG {
        locktag_field1: 0,
        locktag_field2: pg_sys::DatabaseRelationId.to_u32(),
        locktag_field3: database().to_u32(),
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    // SAFETY: the tag is a live local; a session lock needs no transaction and is released at once.
    unsafe {
        let got = pg_sys::LockAcquire(&tag, mode, true, true);
        if got == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
            return true;
        }
        pg_sys::LockRelease(&tag, mode, true);
    }
    false
}

unsafe extern "C-unwind" {
    /// tcop/postgres.c: asks the process to end at the next chance, wherever it waits.
    fn die(signal: c_int);
    /// postmaster/interrupt.c: sets a flag and the latch.
    fn SignalHandlerForConfigReload(signal: c_int);
}

static CONNECTED: AtomicBool = AtomicBool::new(false);
/// Prepares a worker process and connects it to the database of its argument, as the bootstrap superuser.
/// SIGTERM ends it also in the middle of a statement. A worker that cannot connect is not started again: its
/// database may be gone for good, and the next session that needs one starts another.
pub fn connect(argument: pg_sys::Datum) {
    // SAFETY: the argument is what `launch` passed; handlers and callbacks live as long as the library.
    unsafe {
        install_signal_handlers();
        pg_sys::on_proc_exit(Some(give_up_unless_connected), pg_sys::Datum::from(0));
        let database = pg_sys::Oid::from_datum(argument, false).unwrap_or(pg_sys::InvalidOid);
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
    }
    CONNECTED.store(true, Ordering::Relaxed);
}

/// Prepares the launcher: it sees the shared catalogs only.
pub fn connect_to_no_database() {
    // SAFETY: as for `connect`.
    unsafe {
        install_signal_handlers();
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
    }
}

/// # Safety
/// In a background worker, before its signals are unblocked.
unsafe fn install_signal_handlers() {
    // SAFETY: by contract.
    unsafe {
        set_handler(pg_sys::SIGTERM as c_int, die);
        set_handler(pg_sys::SIGHUP as c_int, SignalHandlerForConfigReload);
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

unsafe fn set_handler(signal: c_int, handler: unsafe extern "C-unwind" fn(c_int)) {
    // SAFETY: the handler lives as long as the library.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(signal, Some(handler));
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(signal, Some(handler));
    }
}

/// Reads the configuration again if the server was told to; gives back whether it was.
pub fn reload_configuration_if_asked() -> bool {
    // SAFETY: a flag that a signal handler of Postgres sets; outside of any transaction, in the main loop.
    unsafe {
        let is_asked = pg_sys::ConfigReloadPending != 0;
        if is_asked {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
        is_asked
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn give_up_unless_connected(_code: c_int, _argument: pg_sys::Datum) {
    if !CONNECTED.load(Ordering::Relaxed) {
        // SAFETY: the exit callbacks before this one have been called; this goes on with the others.
        unsafe { pg_sys::proc_exit(0) };
    }
}

/// How Postgres takes the end of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has nothing to do any more.
    ForGood,
    /// It is to be started again after a while.
    ForNow,
}

/// Ends the process.
pub fn end(how: End) -> ! {
    let code = if how == End::ForGood { 0 } else { 1 };
    // SAFETY: outside of any transaction.
    #[allow(unreachable_code)] // not every version's binding knows that it does not return
    {
        unsafe { pg_sys::proc_exit(code) };
        std::process::abort()
    }
}

/// Ends the process as `kill -9` does: nothing is cleaned up, and the server starts all its processes anew.
#[cfg(debug_assertions)]
pub fn kill_at_once() -> ! {
    // SAFETY: a signal to this process that it cannot handle.
    unsafe { libc::raise(libc::SIGKILL) };
    std::process::abort()
}

/// Names the process in `pg_stat_activity`.
pub fn set_application_name(name: &str) {
    let name = super::catalog::c_string(name);
    // SAFETY: sets a variable every user may set.
    unsafe {
        pg_sys::SetConfigOption(
            c"application_name".as_ptr(),
            name.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    }
}

/// Memory blocks from this size on, in bytes, are given back to the system when they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BLOCK: c_int = 128 << 10;

/// Has this process give back the memory of large blocks as soon as they are freed. By itself glibc raises the limit to
/// the largest block that was freed, up to 32 MiB: then pages of answers, which one thread makes and another frees, leave
/// holes between what lives on, and the process keeps several times of what it uses. To be called before there are other threads.
pub fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two parameters of the allocator; those it does not take stay as they are.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE_BLOCK);
    }
}

/// Sets a setting of this process for good.
pub fn set(name: &str, value: &str) {
    let (name, value) = (super::catalog::c_string(name), super::catalog::c_string(value));
    // SAFETY: raises an ERROR if the setting or the value does not exist.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// Writes a line into the server log.
pub fn log(message: &str) {
    ereport!(PgLogLevel::LOG, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message.to_owned());
}

/// Every database one can connect to. For the launcher, which is connected to none.
pub fn connectable_databases() -> Vec<pg_sys::Oid> {
    let mut databases = Vec::new();
    // SAFETY: follows the autovacuum launcher's `get_database_list`: a transaction, a scan of a shared catalog,
    // fixed columns read while the tuple is valid.
    unsafe {
        pg_sys::StartTransactionCommand();
        pg_sys::GetTransactionSnapshot();
        let relation =
            pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let form: *mut pg_sys::FormData_pg_database = pg_sys::GETSTRUCT(tuple).cast();
            if (*form).datallowconn && !(*form).datistemplate {
                databases.push((*form).oid);
            }
        }
        pg_sys::table_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        pg_sys::CommitTransactionCommand();
    }
    databases
}
