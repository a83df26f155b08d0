//! Locking rows of the cache one by one, after the outer query has sorted, limited and joined what it has read: as
//! `nodeLockRows.c` and `nodeModifyTable.c` do with rows of local tables.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgMemoryContexts, PgRelation, PgSqlErrorCode, pg_sys};

use super::Source;
use crate::pg::generated::Generator;
use crate::pg::system::SystemColumns;
use crate::pg::table::new_context;

/// tableam.h, `TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS`.
const WAIT_FOR_UPDATE: u8 = 1 << 0;
/// tableam.h, `TUPLE_LOCK_FLAG_FIND_LAST_VERSION`.
const FIND_LAST_VERSION: u8 = 1 << 1;

/// How rows of a foreign table are to be marked: always by their `ctid` in the cache, also where they are not locked.
pub fn mark_type(strength: pg_sys::LockClauseStrength::Type) -> pg_sys::RowMarkType::Type {
    match strength {
        pg_sys::LockClauseStrength::LCS_FORUPDATE => pg_sys::RowMarkType::ROW_MARK_EXCLUSIVE,
        pg_sys::LockClauseStrength::LCS_FORNOKEYUPDATE => pg_sys::RowMarkType::ROW_MARK_NOKEYEXCLUSIVE,
        pg_sys::LockClauseStrength::LCS_FORSHARE => pg_sys::RowMarkType::ROW_MARK_SHARE,
        pg_sys::LockClauseStrength::LCS_FORKEYSHARE => pg_sys::RowMarkType::ROW_MARK_KEYSHARE,
        _ => pg_sys::RowMarkType::ROW_MARK_REFERENCE,
    }
}

/// The row lock a mark stands for.
fn lock_mode(mark: pg_sys::RowMarkType::Type) -> Option<pg_sys::LockTupleMode::Type> {
    match mark {
        pg_sys::RowMarkType::ROW_MARK_EXCLUSIVE => Some(pg_sys::LockTupleMode::LockTupleExclusive),
        pg_sys::RowMarkType::ROW_MARK_NOKEYEXCLUSIVE => Some(pg_sys::LockTupleMode::LockTupleNoKeyExclusive),
        pg_sys::RowMarkType::ROW_MARK_SHARE => Some(pg_sys::LockTupleMode::LockTupleShare),
        pg_sys::RowMarkType::ROW_MARK_KEYSHARE => Some(pg_sys::LockTupleMode::LockTupleKeyShare),
        _ => None,
    }
}

/// Whether rows of an UPDATE's or DELETE's target are locked when their turn has come, and not as they are read.
/// Triggers are shown a row before its turn.
pub fn is_target_late(relation: pg_sys::Oid) -> bool {
    // SAFETY: the statement holds a lock on its target; the guard closes it.
    unsafe { (*PgRelation::open(relation).as_ptr()).trigdesc.is_null() }
}

/// Whether the outer query locks rows that a scan reads.
///
/// # Safety
/// `node` is a foreign scan that is being started.
pub unsafe fn locks_rows(node: *mut pg_sys::ForeignScanState) -> bool {
    // SAFETY: by contract; the array has a place for each entry of the range table, if any rows are marked.
    unsafe {
        let marks = (*(*node).ss.ps.state).es_rowmarks;
        let scan: *mut pg_sys::Scan = (*node).ss.ps.plan.cast();
        if marks.is_null() || (*scan).scanrelid == 0 {
            return false;
        }
        let mark = *marks.add((*scan).scanrelid as usize - 1);
        !mark.is_null() && lock_mode((*mark).markType).is_some()
    }
}

/// What became of the wish to lock a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// It is locked, as it was read.
    AsRead,
    /// It is locked; somebody has changed it since it was read.
    Newer,
    /// It is not: somebody else has it locked and the query passes over such rows, or it was deleted.
    No,
    /// It is not: this very statement, or what it has caused, has changed it.
    Own,
}

/// The behaviour wanted of a lock.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// How strong it is.
    pub mode: pg_sys::LockTupleMode::Type,
    /// What to do if somebody else has it.
    pub policy: pg_sys::LockWaitPolicy::Type,
}

/// A cache whose rows are looked up by their place.
pub struct Rows {
    cache: pg_sys::Oid,
    /// Attribute numbers in the cache by those in the foreign table, from 1; 0 for none.
    numbers: Vec<i16>,
    /// Computes what the cache does not have.
    generator: Option<Generator>,
    /// What is computed for one row.
    values: pg_sys::MemoryContext,
}

impl Rows {
    /// Rows of the cache behind a foreign table, which stays as it is until the transaction ends. They can be looked up as
    /// long as the executor state lives.
    ///
    /// # Safety
    /// `estate` is valid and its memory context the current one; its statement has the foreign table open.
    pub unsafe fn new(source: &Source, lock: u32, estate: *mut pg_sys::EState) -> Self {
        // SAFETY: by contract. Waits for the lock; interrupts and timeouts end the wait with an ERROR.
        unsafe {
            pg_sys::LockRelationOid(source.cache, lock as pg_sys::LOCKMODE);
            let relation = PgRelation::open(source.foreign_table);
            Self {
                cache: source.cache,
                numbers: source.cache_numbers(),
                generator: Generator::new(relation.as_ptr(), estate),
                values: new_context(c"servicenow_fdw generated columns"),
            }
        }
    }

    /// Locks a row and puts it, as it is now, into a slot of the foreign table. The place becomes that of its newest version.
    ///
    /// # Safety
    /// `estate` is the executor's, `slot` one of the foreign table `relation`.
    pub unsafe fn lock(
        &self,
        estate: *mut pg_sys::EState,
        place: &mut pg_sys::ItemPointerData,
        wanted: Wanted,
        slot: *mut pg_sys::TupleTableSlot,
        relation: pg_sys::Oid,
    ) -> Locked {
        // SAFETY: by contract; the access method's function gets an open relation and a slot made for it.
        unsafe {
            self.with_row(|cache, row| {
                let one_state = pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32;
                let flags = if one_state { WAIT_FOR_UPDATE } else { WAIT_FOR_UPDATE | FIND_LAST_VERSION };
                let mut failure = pg_sys::TM_FailureData::default();
                let lock = (*(*cache).rd_tableam).tuple_lock.expect("a table has an access method");
                let (snapshot, command) = ((*estate).es_snapshot, (*estate).es_output_cid);
                let Wanted { mode, policy } = wanted;
                let outcome = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                    lock(cache, place, snapshot, row, command, mode, policy, flags, &mut failure)
                });
                match outcome {
                    pg_sys::TM_Result::TM_Ok => {
                        self.hand_on(row, slot, relation);
                        if failure.traversed { Locked::Newer } else { Locked::AsRead }
                    }
                    pg_sys::TM_Result::TM_WouldBlock => Locked::No,
                    pg_sys::TM_Result::TM_SelfModified => Locked::Own,
                    pg_sys::TM_Result::TM_Updated if one_state => refuse("update"),
                    pg_sys::TM_Result::TM_Deleted if one_state => refuse("delete"),
                    pg_sys::TM_Result::TM_Deleted => Locked::No,
                    other => panic!("unexpected outcome {other} of locking a row"),
                }
            })
        }
    }

    /// Puts a row into a slot of the foreign table, in the version that was read; `false` if it is no more.
    ///
    /// # Safety
    /// As for [`Self::lock`].
    unsafe fn fetch(
        &self,
        mut place: pg_sys::ItemPointerData,
        slot: *mut pg_sys::TupleTableSlot,
        relation: pg_sys::Oid,
    ) -> bool {
        // SAFETY: as for `lock`.
        unsafe {
            self.with_row(|cache, row| {
                let fetch = (*(*cache).rd_tableam).tuple_fetch_row_version;
                let fetch = fetch.expect("a table has an access method");
                let any = &raw mut pg_sys::SnapshotAnyData;
                let found = pg_sys::ffi::pg_guard_ffi_boundary(|| fetch(cache, &mut place, any, row));
                if found {
                    self.hand_on(row, slot, relation);
                }
                found
            })
        }
    }

    /// Opens the cache for one row.
    unsafe fn with_row<R>(&self, f: impl FnOnce(pg_sys::Relation, *mut pg_sys::TupleTableSlot) -> R) -> R {
        // SAFETY: the cache is locked since `new`; an ERROR in `f` releases both with the transaction.
        unsafe {
            let none = pg_sys::NoLock as pg_sys::LOCKMODE;
            let cache = pg_sys::table_open(self.cache, none);
            let row = pg_sys::table_slot_create(cache, std::ptr::null_mut());
            let result = f(cache, row);
            pg_sys::ExecDropSingleTupleTableSlot(row);
            pg_sys::table_close(cache, none);
            result
        }
    }

    /// Copies a row of the cache into a slot of the foreign table.
    ///
    /// # Safety
    /// `row` holds a row of the cache; `slot` has the descriptor of `relation`.
    unsafe fn hand_on(
        &self,
        row: *mut pg_sys::TupleTableSlot,
        slot: *mut pg_sys::TupleTableSlot,
        relation: pg_sys::Oid,
    ) {
        // SAFETY: by contract; `put` copies the values, which belong to `row`.
        unsafe {
            pg_sys::slot_getallattrs(row);
            pg_sys::ExecClearTuple(slot);
            let natts = (*(*slot).tts_tupleDescriptor).natts as usize;
            let values = std::slice::from_raw_parts_mut((*slot).tts_values, natts);
            let nulls = std::slice::from_raw_parts_mut((*slot).tts_isnull, natts);
            nulls.fill(true);
            for (place, number) in self.numbers.iter().enumerate().filter(|(_, number)| **number > 0) {
                values[place] = *(*row).tts_values.add(*number as usize - 1);
                nulls[place] = *(*row).tts_isnull.add(*number as usize - 1);
            }
            (*slot).tts_tableOid = relation;
            pg_sys::ExecStoreVirtualTuple(slot);
            if let Some(generator) = &self.generator {
                pg_sys::MemoryContextReset(self.values);
                PgMemoryContexts::For(self.values).switch_to(|_| generator.compute(slot));
            }
            SystemColumns::of(row).put(slot);
        }
    }
}

/// The ERROR of a transaction that sees one state and finds another.
fn refuse(what: &str) -> ! {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        format!("could not serialize access due to concurrent {what}"),
        "",
    )
    .report(PgLogLevel::ERROR);
    unreachable!("an ERROR was raised")
}

/// Locks the row at a place, or fetches it once more if the query does not lock it. Without a row in the slot the
/// executor passes over what it has read.
///
/// # Safety
/// Called by the executor as `RefetchForeignRow`, with its arguments.
pub unsafe fn refetch(
    estate: *mut pg_sys::EState,
    mark: *mut pg_sys::ExecRowMark,
    place: pg_sys::Datum,
    slot: *mut pg_sys::TupleTableSlot,
    updated: *mut bool,
    source: fn(pg_sys::Oid) -> Source,
) {
    // SAFETY: by contract. The mark belongs to the statement's executor state, whose parts a recheck borrows.
    unsafe {
        pg_sys::ExecClearTuple(slot);
        let relation = (*mark).relid;
        let mode = lock_mode((*mark).markType);
        if (*mark).ermExtra.is_null() {
            let recheck = (*estate).es_epq_active;
            let statement = if recheck.is_null() { estate } else { (*recheck).parentestate };
            let lock = if mode.is_some() { pg_sys::RowShareLock } else { pg_sys::AccessShareLock };
            let mut context = PgMemoryContexts::For((*statement).es_query_cxt);
            let rows = context.switch_to(|_| Rows::new(&source(relation), lock, statement));
            (*mark).ermExtra = context.leak_and_drop_on_delete(rows).cast();
        }
        let rows = &*(*mark).ermExtra.cast::<Rows>();
        let mut place = *place.cast_mut_ptr();
        match mode {
            Some(mode) => {
                let wanted = Wanted { mode, policy: (*mark).waitPolicy };
                *updated = rows.lock(estate, &mut place, wanted, slot, relation) == Locked::Newer;
                (*mark).curCtid = place; // for WHERE CURRENT OF
            }
            None => {
                rows.fetch(place, slot, relation);
            }
        }
    }
}
