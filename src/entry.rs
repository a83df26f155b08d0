//! The functions Postgres calls by address or name: hooks and the mains of background workers. They hand on at
//! once; there is no logic here.

use pgrx::{pg_guard, pg_sys};

use crate::freshness;
use crate::pg::expand;
use crate::pg::start::Start;
use crate::pg::statistics;
use crate::planner::Caches;
use crate::worker;

static mut PREVIOUS_PLANNER_HOOK: pg_sys::planner_hook_type = None;
static mut PREVIOUS_START_HOOK: pg_sys::ExecutorStart_hook_type = None;
static mut PREVIOUS_STATISTICS_HOOK: pg_sys::get_relation_stats_hook_type = None;
static mut PREVIOUS_WIDTH_HOOK: pg_sys::get_attavgwidth_hook_type = None;

/// Puts the hooks in place. Once per process, when the library is loaded.
pub fn install_hooks() {
    // SAFETY: the main thread loads the library; nobody reads the variables meanwhile.
    unsafe {
        PREVIOUS_PLANNER_HOOK = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(planner_hook);
        PREVIOUS_START_HOOK = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(start_hook);
        PREVIOUS_STATISTICS_HOOK = pg_sys::get_relation_stats_hook;
        pg_sys::get_relation_stats_hook = Some(statistics_hook);
        PREVIOUS_WIDTH_HOOK = pg_sys::get_attavgwidth_hook;
        pg_sys::get_attavgwidth_hook = Some(width_hook);
    }
}

unsafe extern "C-unwind" {
    /// planner.c. Not by way of pgrx, which would catch and raise anew every ERROR of the planner, and lose its
    /// context and position on the way.
    #[link_name = "standard_planner"]
    fn plain_standard_planner(
        query: *mut pg_sys::Query,
        text: *const std::ffi::c_char,
        cursor_options: i32,
        params: pg_sys::ParamListInfo,
    ) -> *mut pg_sys::PlannedStmt;
    /// execMain.c; likewise.
    #[link_name = "standard_ExecutorStart"]
    fn plain_standard_executor_start(query: *mut pg_sys::QueryDesc, eflags: std::ffi::c_int);
}

/// Not guarded: an ERROR of the planner passes through this frame as through one of C, which is sound because
/// it has nothing to drop.
unsafe extern "C-unwind" fn planner_hook(
    query: *mut pg_sys::Query,
    text: *const std::ffi::c_char,
    cursor_options: i32,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the planner's own arguments; the planner may change the query, and so may the hook.
    unsafe {
        expand_guarded(query);
        match PREVIOUS_PLANNER_HOOK {
            Some(previous) => previous(query, text, cursor_options, params),
            None => plain_standard_planner(query, text, cursor_options, params),
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn expand_guarded(query: *mut pg_sys::Query) {
    // SAFETY: the planner's own query, which it may change.
    unsafe { expand::expand(query, &Caches) };
}

/// Not guarded, for the same reason.
unsafe extern "C-unwind" fn start_hook(query: *mut pg_sys::QueryDesc, eflags: std::ffi::c_int) {
    // SAFETY: the executor's own arguments.
    unsafe {
        if eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 == 0 && pg_sys::ParallelWorkerNumber < 0 {
            check_guarded(query);
        }
        match PREVIOUS_START_HOOK {
            Some(previous) => previous(query, eflags),
            None => plain_standard_executor_start(query, eflags),
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_guarded(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the executor's own query.
    unsafe { freshness::check(&Start::new(query)) };
}

#[pg_guard]
unsafe extern "C-unwind" fn statistics_hook(
    root: *mut pg_sys::PlannerInfo,
    rte: *mut pg_sys::RangeTblEntry,
    number: pg_sys::AttrNumber,
    found: *mut pg_sys::VariableStatData,
) -> bool {
    // SAFETY: the planner's own arguments.
    unsafe {
        let previous = PREVIOUS_STATISTICS_HOOK;
        previous.is_some_and(|previous| previous(root, rte, number, found))
            || statistics::supply(root, rte, number, found, &Caches)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn width_hook(relation: pg_sys::Oid, number: pg_sys::AttrNumber) -> i32 {
    // SAFETY: set once, when the library was loaded.
    let previous = unsafe { PREVIOUS_WIDTH_HOOK };
    // SAFETY: the planner's own arguments.
    match previous.map_or(0, |previous| unsafe { previous(relation, number) }) {
        0 => statistics::width(relation, number, &Caches),
        width => width,
    }
}

/// Main of a database's worker; the argument is the database's OID.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn servicenow_fdw_worker(database: pg_sys::Datum) {
    worker::main(database);
}

/// Main of the launcher.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn servicenow_fdw_launcher(_argument: pg_sys::Datum) {
    worker::launcher::main();
}
