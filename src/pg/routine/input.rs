//! Noticing that a modification has got all of its rows.
//!
//! Rows of an UPDATE or DELETE wait for each other, so that they can be sent together. The last ones have to be sent when the
//! plan below has no more of them, and before the statement's AFTER triggers fire: the executor calls nobody at that moment
//! (`ExecModifyTable`), except the plan below. So that is what is listened to.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::{PgMemoryContexts, pg_guard, pg_sys};

/// Writes what waits for a target.
pub(super) type Flush = unsafe fn(*mut pg_sys::ResultRelInfo);

/// A plan that is listened to.
struct Watched {
    /// What it was to be called by.
    run: pg_sys::ExecProcNodeMtd,
    /// Whom to tell of its end.
    targets: Vec<(*mut pg_sys::ResultRelInfo, Flush)>,
}

thread_local! {
    static WATCHED: RefCell<HashMap<*mut pg_sys::PlanState, Watched>> = RefCell::new(HashMap::new());
}

/// Forgets a plan with the end of its statement.
struct Forget(*mut pg_sys::PlanState);

impl Drop for Forget {
    fn drop(&mut self) {
        WATCHED.with_borrow_mut(|watched| watched.remove(&self.0));
    }
}

/// Has `flush` called for a target when the plan below its modification has no more rows.
///
/// # Safety
/// `plan` is the plan of a statement that is being started, `target` one of the same statement.
pub(super) unsafe fn watch(plan: *mut pg_sys::PlanState, target: *mut pg_sys::ResultRelInfo, flush: Flush) {
    // SAFETY: by contract; the context is the one in which the plan's own state lives.
    unsafe {
        let is_first = WATCHED.with_borrow_mut(|all| {
            let is_first = !all.contains_key(&plan);
            let watched =
                all.entry(plan).or_insert_with(|| Watched { run: (*plan).ExecProcNode, targets: Vec::new() });
            watched.targets.push((target, flush));
            is_first
        });
        if is_first {
            let mut context = PgMemoryContexts::For((*(*plan).state).es_query_cxt);
            context.leak_and_drop_on_delete(Forget(plan));
            (*plan).ExecProcNode = Some(run);
        }
    }
}

/// Runs the plan as it would be run without this, and listens.
#[pg_guard]
unsafe extern "C-unwind" fn run(plan: *mut pg_sys::PlanState) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the executor's own argument; a plan has this function only while it is watched. Its own function may put
    // another one in its place, as the first call does.
    unsafe {
        let own = WATCHED.with_borrow(|all| all.get(&plan).and_then(|watched| watched.run));
        let own = own.expect("a plan in execution has a function");
        (*plan).ExecProcNode = Some(own);
        let slot = pg_sys::ffi::pg_guard_ffi_boundary(|| own(plan));
        let next = (*plan).ExecProcNode;
        (*plan).ExecProcNode = Some(run);
        let is_over = slot.is_null() || (*slot).tts_flags & pg_sys::TTS_FLAG_EMPTY as u16 != 0;
        let targets = WATCHED.with_borrow_mut(|all| {
            let watched = all.get_mut(&plan)?;
            watched.run = next;
            is_over.then(|| watched.targets.clone())
        });
        for (target, flush) in targets.into_iter().flatten() {
            flush(target);
        }
        slot
    }
}
