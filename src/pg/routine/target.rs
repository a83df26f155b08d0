//! Locking the rows of a target when their turn has come to be written, as it is done for local tables.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

use crate::pg::scan::lock::{Locked, Rows, Wanted};

/// Locks target rows one by one, just before they are changed.
pub(super) struct TargetLock {
    pub statement: *mut pg_sys::ModifyTableState,
    pub mode: pg_sys::LockTupleMode::Type,
    pub rows: Rows,
}

impl TargetLock {
    /// Locks the row that a row of the plan is about. Gives back the plan's row for it as it is now, which is another one
    /// if the row has changed and still is to be written; `None` if it is not. As `ExecUpdate` and `ExecDelete` do.
    ///
    /// # Safety
    /// The arguments are the executor's.
    pub unsafe fn lock(
        &self,
        estate: *mut pg_sys::EState,
        rri: *mut pg_sys::ResultRelInfo,
        plan_slot: *mut pg_sys::TupleTableSlot,
        ctid: i16,
    ) -> Option<*mut pg_sys::TupleTableSlot> {
        // SAFETY: by contract; the executor has told its state for rechecks which row of the plan it is at.
        unsafe {
            let mut is_null = false;
            let place = pg_sys::slot_getattr(plan_slot, i32::from(ctid), &mut is_null);
            let mut place = *place.cast_mut_ptr();
            let recheck = &raw mut (*self.statement).mt_epqstate;
            let (relation, index) = ((*rri).ri_RelationDesc, (*rri).ri_RangeTableIndex);
            let current = pg_sys::EvalPlanQualSlot(recheck, relation, index);
            let wanted = Wanted { mode: self.mode, policy: pg_sys::LockWaitPolicy::LockWaitBlock };
            match self.rows.lock(estate, &mut place, wanted, current, (*relation).rd_id) {
                Locked::AsRead => return Some(plan_slot),
                Locked::Newer => {}
                Locked::No => return None,
                Locked::Own => refuse_own((*self.statement).operation),
            }
            if !(*rri).ri_oldTupleSlot.is_null() {
                pg_sys::ExecClearTuple((*rri).ri_oldTupleSlot);
                copy_slot((*rri).ri_oldTupleSlot, current);
            }
            let planned = pg_sys::EvalPlanQual(recheck, relation, index, current);
            let is_empty = planned.is_null() || (*planned).tts_flags & pg_sys::TTS_FLAG_EMPTY as u16 != 0;
            (!is_empty).then_some(planned)
        }
    }
}

/// `ExecCopySlot`, which C has inline.
///
/// # Safety
/// Both are slots of the same descriptor.
unsafe fn copy_slot(to: *mut pg_sys::TupleTableSlot, from: *mut pg_sys::TupleTableSlot) {
    // SAFETY: by contract.
    unsafe {
        let copy = (*(*to).tts_ops).copyslot.expect("every kind of slot can be copied into");
        pg_sys::ffi::pg_guard_ffi_boundary(|| copy(to, from));
    }
}

/// The ERROR for a row that the statement has changed otherwise than by itself, in Postgres's own words.
fn refuse_own(command: pg_sys::CmdType::Type) -> ! {
    let verb = if command == pg_sys::CmdType::CMD_DELETE { "deleted" } else { "updated" };
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
        format!("tuple to be {verb} was already modified by an operation triggered by the current command"),
        "",
    )
    .set_hint(
        "Consider using an AFTER trigger instead of a BEFORE trigger to propagate changes to other rows.",
    )
    .report(PgLogLevel::ERROR);
    unreachable!("an ERROR was raised")
}
