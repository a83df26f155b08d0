//! The functions Postgres calls by address or name: the planner hook and the mains of background workers. They
//! hand on at once; there is no logic here.

use pgrx::{pg_guard, pg_sys};

use crate::pg::expand;
use crate::planner::Caches;
use crate::worker;

static mut PREVIOUS_PLANNER_HOOK: pg_sys::planner_hook_type = None;

/// Puts the planner hook in place. Once per process, when the library is loaded.
pub fn install_hooks() {
    // SAFETY: the main thread loads the library; nobody reads the variables meanwhile.
    unsafe {
        PREVIOUS_PLANNER_HOOK = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(planner_hook);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn planner_hook(
    query: *mut pg_sys::Query,
    text: *const std::ffi::c_char,
    cursor_options: i32,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the planner's own arguments; the planner may change the query, and so may the hook. No value with
    // a destructor is alive across the boundary.
    unsafe {
        expand::expand(query, &Caches);
        match PREVIOUS_PLANNER_HOOK {
            Some(previous) => {
                pg_sys::ffi::pg_guard_ffi_boundary(|| previous(query, text, cursor_options, params))
            }
            None => pg_sys::standard_planner(query, text, cursor_options, params),
        }
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
