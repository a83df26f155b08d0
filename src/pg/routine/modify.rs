//! Writes: the callbacks of INSERT, UPDATE and DELETE, and what they keep while a statement runs.

use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::ptr::null_mut;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgList, PgLogLevel, PgMemoryContexts, PgRelation, PgSqlErrorCode, PgTupleDesc, pg_guard, pg_sys};

use super::check::Checker;
use super::target::TargetLock;
use super::{Check, Foreseen, Operation, Row, RowWriter, Target, Wrapper, Written, input};
use crate::pg::catalog::c_string;
use crate::pg::generated::Generator;
use crate::pg::scan::lock::{self, Rows};
use crate::pg::table::new_context;
use crate::pg::tuple::{DatumWriter, OwnedScalar, read};

/// The name Postgres gives the junk column with the whole old row.
const WHOLE_ROW_NAME: &CStr = c"wholerow";

/// The name of the junk column with the place of each row in the cache, as it is for local tables.
const CTID_NAME: &CStr = c"ctid";

/// Has the scan of an UPDATE or DELETE target carry the key of each row, and its place if it is to be locked by that.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn add_update_targets<W: Wrapper>(
    root: *mut pg_sys::PlannerInfo,
    rtindex: pg_sys::Index,
    _rte: *mut pg_sys::RangeTblEntry,
    relation: pg_sys::Relation,
) {
    // SAFETY: the planner's own arguments; the relation is open, so its descriptor is valid.
    unsafe {
        let number = W::key((*relation).rd_id);
        let tupdesc = PgTupleDesc::from_pg_unchecked((*relation).rd_att);
        let attribute = tupdesc.get(number as usize - 1).expect("the key is a column of the table");
        let var = pg_sys::makeVar(
            rtindex as _,
            number,
            attribute.atttypid,
            attribute.atttypmod,
            attribute.attcollation,
            0,
        );
        pg_sys::add_row_identity_var(
            root,
            var,
            rtindex,
            pg_sys::pstrdup(key_name(attribute, number).as_ptr()),
        );
        if lock::is_target_late((*relation).rd_id) {
            let var = pg_sys::makeVar(
                rtindex as _,
                pg_sys::SelfItemPointerAttributeNumber as i16,
                pg_sys::TIDOID,
                -1,
                pg_sys::InvalidOid,
                0,
            );
            pg_sys::add_row_identity_var(root, var, rtindex, pg_sys::pstrdup(CTID_NAME.as_ptr()));
        }
    }
}

/// The name of the junk column that carries a target row's key. Targets of one statement may share it only if
/// their keys have the same number and type.
fn key_name(attribute: &pg_sys::FormData_pg_attribute, number: i16) -> CString {
    let (type_oid, typmod) = (attribute.atttypid.to_u32(), attribute.atttypmod);
    c_string(&format!("sys_id {number} {type_oid} {typmod}"))
}

/// The private list of a modification: one integer list, of 1 or 0 for ON CONFLICT DO NOTHING, 1 or 0 for triggers
/// that may change a row before it is updated, 1 or 0 for rows to be locked when their turn has come, and the attributes
/// an UPDATE assigns.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn plan_modify(
    root: *mut pg_sys::PlannerInfo,
    plan: *mut pg_sys::ModifyTable,
    relation: pg_sys::Index,
    _subplan: i32,
) -> *mut pg_sys::List {
    // SAFETY: the planner's own arguments; it holds a lock on the relation.
    unsafe {
        let rte = *(*root).simple_rte_array.add(relation as usize);
        let triggers = (*PgRelation::open((*rte).relid).as_ptr()).trigdesc;
        let skip = (*plan).onConflictAction == pg_sys::OnConflictAction::ONCONFLICT_NOTHING;
        let any_column = !triggers.is_null() && (*triggers).trig_update_before_row;
        let mut private = pg_sys::lappend_int(null_mut(), i32::from(skip));
        private = pg_sys::lappend_int(private, i32::from(any_column));
        private = pg_sys::lappend_int(private, i32::from(lock::is_target_late((*rte).relid)));
        if (*plan).operation == pg_sys::CmdType::CMD_UPDATE {
            let columns = updated_columns(root, relation);
            let mut member = pg_sys::bms_next_member(columns, -1);
            while member >= 0 {
                let number = member + pg_sys::FirstLowInvalidHeapAttributeNumber;
                private = pg_sys::lappend_int(private, number);
                member = pg_sys::bms_next_member(columns, member);
            }
        }
        pg_sys::lappend(null_mut(), private.cast())
    }
}

#[cfg(feature = "pg15")]
unsafe fn updated_columns(root: *mut pg_sys::PlannerInfo, relation: pg_sys::Index) -> *mut pg_sys::Bitmapset {
    // SAFETY: the planner's arrays have an entry for every relation it plans a modification of.
    unsafe {
        let rte = *(*root).simple_rte_array.add(relation as usize);
        pg_sys::bms_union((*rte).updatedCols, (*rte).extraUpdatedCols)
    }
}

#[cfg(not(feature = "pg15"))]
unsafe extern "C-unwind" {
    /// inherit.c: the columns an UPDATE assigns, generated ones included, as the relation numbers them.
    fn get_rel_all_updated_cols(
        root: *mut pg_sys::PlannerInfo,
        rel: *mut pg_sys::RelOptInfo,
    ) -> *mut pg_sys::Bitmapset;
}

#[cfg(not(feature = "pg15"))]
unsafe fn updated_columns(root: *mut pg_sys::PlannerInfo, relation: pg_sys::Index) -> *mut pg_sys::Bitmapset {
    // SAFETY: `relation` is a target the planner is planning a modification of.
    unsafe {
        let rel = pg_sys::find_base_rel(root, relation as _);
        pg_sys::ffi::pg_guard_ffi_boundary(|| get_rel_all_updated_cols(root, rel))
    }
}

/// What the rows of a target are like.
struct Shape {
    types: Vec<DatumWriter>,
    /// Computes what neither the instance nor the cache has.
    generator: Option<Generator>,
}

/// A running modification.
struct ModifyState<W: Wrapper> {
    writer: Option<W::Writer>,
    shape: Shape,
    checker: Checker,
    operation: Operation,
    junk: Junk,
    /// How target rows are locked, if that is not done by the scan.
    lock: Option<TargetLock>,
    /// What belongs to the row being written; reset before the next.
    row_context: pg_sys::MemoryContext,
    _wrapper: PhantomData<W>,
}

impl<W: Wrapper> ModifyState<W> {
    /// Runs `f` for one row.
    ///
    /// # Safety
    /// Nothing refers to the row before any more.
    unsafe fn for_row<R>(&mut self, f: impl FnOnce(&mut W::Writer, &Shape) -> R) -> R {
        let Self { writer, shape, row_context, .. } = self;
        let writer = writer.as_mut().expect("the statement is not over");
        // SAFETY: by contract; the context is a child of the statement's.
        unsafe {
            pg_sys::MemoryContextReset(*row_context);
            PgMemoryContexts::For(*row_context).switch_to(|_| f(writer, shape))
        }
    }

    /// Writes a row that is new in this form, unless it must not be written. Gives back the slot with what became of it.
    ///
    /// # Safety
    /// As for [`Self::for_row`]; `slot` is the executor's.
    unsafe fn write(
        &mut self,
        slot: *mut pg_sys::TupleTableSlot,
        f: impl FnOnce(&mut W::Writer, &Shape, Check<'_>) -> Option<Written>,
    ) -> *mut pg_sys::TupleTableSlot {
        // SAFETY: by contract.
        unsafe {
            let checker: *const Checker = &self.checker;
            let is_wanted = (*checker).is_wanted();
            self.for_row(|writer, shape| {
                let put =
                    |slot: *mut pg_sys::TupleTableSlot, columns: &[OwnedScalar]| fill(slot, columns, shape);
                let check = |row: &Foreseen| (*checker).check(row, put);
                let slot = answer(slot, f(writer, shape, is_wanted.then_some(&check)), shape);
                if is_wanted && !slot.is_null() {
                    (*checker).check_written(slot);
                }
                slot
            })
        }
    }
}

/// Attribute numbers of what the plan's rows carry beside the new values; 0 for none.
#[derive(Clone, Copy, Default)]
struct Junk {
    key: i16,
    whole_row: i16,
    ctid: i16,
}

/// Whether a statement has written a record, or is about to: a join may bring a target row more than once, and the statement
/// may have several modifications of one table, of which one takes place.
///
/// # Safety
/// `rri` is a target of a statement that is being executed.
unsafe fn is_done<W: Wrapper>(
    estate: *mut pg_sys::EState,
    rri: *mut pg_sys::ResultRelInfo,
    key: &str,
) -> bool {
    // SAFETY: by contract; targets of the same foreign table have a state of the same kind, or none yet.
    unsafe {
        let relation = (*(*rri).ri_RelationDesc).rd_id;
        let targets = PgList::<pg_sys::ResultRelInfo>::from_pg((*estate).es_opened_result_relations);
        let others = targets.iter_ptr().filter(|other| (*(**other).ri_RelationDesc).rd_id == relation);
        others.chain([rri]).any(|target| {
            let state = (*target).ri_FdwState.cast::<ModifyState<W>>().as_ref();
            state.and_then(|state| state.writer.as_ref()).is_some_and(|writer| writer.is_done(key))
        })
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn begin_modify<W: Wrapper>(
    mtstate: *mut pg_sys::ModifyTableState,
    rri: *mut pg_sys::ResultRelInfo,
    private: *mut pg_sys::List,
    _subplan: i32,
    eflags: i32,
) {
    // SAFETY: the executor's own arguments; the private list is the one `plan_modify` made.
    unsafe {
        if eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 != 0 {
            return;
        }
        let operation = match (*mtstate).operation {
            pg_sys::CmdType::CMD_UPDATE => Operation::Update,
            pg_sys::CmdType::CMD_DELETE => Operation::Delete,
            _ => Operation::Insert,
        };
        let private = PgList::<i32>::from_pg(pg_sys::list_nth(private, 0).cast());
        let mut private = private.iter_int();
        let skip_duplicates = private.next() == Some(1);
        let any_column = private.next() == Some(1);
        let is_late = private.next() == Some(1);
        let assigned = private.map(|number| number as i16).collect();
        let junk = |name: &CStr| {
            let subplan = (*(*mtstate).ps.lefttree).plan;
            let number = pg_sys::ExecFindJunkAttributeInTlist((*subplan).targetlist, name.as_ptr());
            assert!(number > 0, "the planner was asked for this junk column");
            number
        };
        let relation = (*rri).ri_RelationDesc;
        let key_name = |number: i16| {
            let tupdesc = PgTupleDesc::from_pg_unchecked((*relation).rd_att);
            key_name(tupdesc.get(number as usize - 1).expect("the key is a column"), number)
        };
        let mut found = Junk::default();
        let mut lock = None;
        if operation != Operation::Insert {
            found.key = junk(&key_name(W::key((*relation).rd_id)));
            if operation == Operation::Update {
                found.whole_row = junk(WHOLE_ROW_NAME);
            }
            if is_late {
                found.ctid = junk(CTID_NAME);
                let mode = match operation {
                    Operation::Update => pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
                    _ => pg_sys::LockTupleMode::LockTupleExclusive,
                };
                let source = W::source((*relation).rd_id);
                let rows = Rows::new(&source, pg_sys::RowExclusiveLock, (*mtstate).ps.state);
                lock = Some(TargetLock { statement: mtstate, mode, rows });
            }
        }
        let user = acting_user(rri, (*mtstate).ps.state);
        let relation = (*relation).rd_id;
        let buffers = !is_watched(mtstate, rri, operation);
        let waits = buffers;
        let target =
            Target { relation, user, operation, assigned, any_column, skip_duplicates, buffers, waits };
        start::<W>(mtstate, rri, target, found, lock);
        if buffers && operation != Operation::Insert {
            input::watch((*mtstate).ps.lefttree, rri, flush::<W>);
        }
    }
}

/// Whether anybody looks at a row once it is written, before the statement has come to its end.
///
/// # Safety
/// The executor's own arguments.
unsafe fn is_watched(
    mtstate: *mut pg_sys::ModifyTableState,
    rri: *mut pg_sys::ResultRelInfo,
    operation: Operation,
) -> bool {
    // SAFETY: by contract; COPY has no plan.
    unsafe {
        let plan: *mut pg_sys::ModifyTable = (*mtstate).ps.plan.cast();
        let by_statement =
            !plan.is_null() && (!(*plan).returningLists.is_null() || !(*plan).withCheckOptionLists.is_null());
        let triggers = (*(*rri).ri_RelationDesc).trigdesc;
        let by_trigger = !triggers.is_null()
            && match operation {
                Operation::Insert => (*triggers).trig_insert_before_row || (*triggers).trig_insert_after_row,
                Operation::Update => (*triggers).trig_update_before_row || (*triggers).trig_update_after_row,
                Operation::Delete => (*triggers).trig_delete_before_row || (*triggers).trig_delete_after_row,
            };
        by_statement || by_trigger
    }
}

/// Writes what waits.
///
/// # Safety
/// `rri` is a target of a statement that is being executed.
unsafe fn flush<W: Wrapper>(rri: *mut pg_sys::ResultRelInfo) {
    // SAFETY: by contract; between `begin_modify` and `end_modify` there is a state.
    unsafe {
        if let Some(state) = (*rri).ri_FdwState.cast::<ModifyState<W>>().as_mut() {
            state.for_row(|writer, _| writer.flush());
        }
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn begin_insert<W: Wrapper>(
    mtstate: *mut pg_sys::ModifyTableState,
    rri: *mut pg_sys::ResultRelInfo,
) {
    // SAFETY: the executor's (or COPY's) own arguments.
    unsafe {
        let plan: *mut pg_sys::ModifyTable = (*mtstate).ps.plan.cast();
        if !plan.is_null() && (*mtstate).operation == pg_sys::CmdType::CMD_UPDATE {
            refuse_move();
        }
        let skip_duplicates =
            !plan.is_null() && (*plan).onConflictAction == pg_sys::OnConflictAction::ONCONFLICT_NOTHING;
        let user = acting_user(rri, (*mtstate).ps.state);
        let relation = (*(*rri).ri_RelationDesc).rd_id;
        let operation = Operation::Insert;
        let (assigned, any_column) = (Vec::new(), false);
        let buffers = !is_watched(mtstate, rri, operation);
        // COPY hands rows over one by one on Postgres 15, and ends the writing after its triggers.
        let root = if (*rri).ri_RootResultRelInfo.is_null() { rri } else { (*rri).ri_RootResultRelInfo };
        let is_told = |rri: *mut pg_sys::ResultRelInfo| {
            let triggers = (*(*rri).ri_RelationDesc).trigdesc;
            !triggers.is_null() && (*triggers).trig_insert_after_statement
        };
        let waits = buffers && !is_told(rri) && !is_told(root);
        let target =
            Target { relation, user, operation, assigned, any_column, skip_duplicates, buffers, waits };
        start::<W>(mtstate, rri, target, Junk::default(), None);
    }
}

/// The ERROR for an UPDATE that would move a row between a foreign table and another partition.
fn refuse_move() {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        "cannot move a row into or out of a foreign table of ServiceNow",
        "",
    )
    .set_hint("Delete the row and insert it anew, in two statements.")
    .report(PgLogLevel::ERROR);
}

/// How many rows an INSERT hands over at a time.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn batch_size<W: Wrapper>(rri: *mut pg_sys::ResultRelInfo) -> i32 {
    // SAFETY: the executor asks after `begin_modify` or `begin_insert`; EXPLAIN has no state.
    unsafe {
        let state = (*rri).ri_FdwState.cast::<ModifyState<W>>().as_ref();
        let writer =
            state.filter(|state| state.operation == Operation::Insert).and_then(|s| s.writer.as_ref());
        writer.map_or(1, |writer| writer.batch_size() as i32)
    }
}

/// # Safety
/// The arguments are those of the executor; the target relation is open.
unsafe fn start<W: Wrapper>(
    mtstate: *mut pg_sys::ModifyTableState,
    rri: *mut pg_sys::ResultRelInfo,
    target: Target,
    junk: Junk,
    lock: Option<TargetLock>,
) {
    // SAFETY: by contract. The state lives in the statement's context and is dropped with it, also on ERROR.
    unsafe {
        let (estate, relation) = ((*mtstate).ps.state, (*rri).ri_RelationDesc);
        let types = PgTupleDesc::from_pg_unchecked((*relation).rd_att)
            .iter()
            .map(|a| match a.attisdropped {
                true => DatumWriter::new(pg_sys::TEXTOID, -1),
                false => DatumWriter::new(a.atttypid, a.atttypmod),
            })
            .collect();
        let mut context = PgMemoryContexts::For((*estate).es_query_cxt);
        let row_context = context.switch_to(|_| new_context(c"servicenow_fdw row"));
        let operation = target.operation;
        let writer = context.switch_to(|_| Some(W::begin_write(target)));
        let shape = Shape { types, generator: Generator::new(relation, estate) };
        let checker = Checker::new(mtstate, rri, operation, W::key((*relation).rd_id));
        let _wrapper = PhantomData;
        let state = ModifyState::<W> { writer, shape, checker, operation, junk, lock, row_context, _wrapper };
        (*rri).ri_FdwState = context.leak_and_drop_on_delete(state).cast();
    }
}

/// The role the statement's access to the table is checked as: a view's owner, or the current user.
#[cfg(feature = "pg15")]
unsafe fn acting_user(rri: *mut pg_sys::ResultRelInfo, estate: *mut pg_sys::EState) -> pg_sys::Oid {
    // SAFETY: COPY and partition routing have targets without a range-table entry of their own (index 0); the
    // root of the partitions may have one.
    unsafe {
        let root = (*rri).ri_RootResultRelInfo;
        let named = if (*rri).ri_RangeTableIndex == 0 && !root.is_null() { root } else { rri };
        let as_user = match (*named).ri_RangeTableIndex {
            0 => pg_sys::InvalidOid,
            index => (*pg_sys::exec_rt_fetch(index, estate)).checkAsUser,
        };
        if as_user == pg_sys::InvalidOid { pg_sys::GetUserId() } else { as_user }
    }
}

#[cfg(not(feature = "pg15"))]
unsafe fn acting_user(rri: *mut pg_sys::ResultRelInfo, estate: *mut pg_sys::EState) -> pg_sys::Oid {
    // SAFETY: the executor's own arguments.
    unsafe {
        let as_user = pg_sys::ExecGetResultRelCheckAsUser(rri, estate);
        if as_user == pg_sys::InvalidOid { pg_sys::GetUserId() } else { as_user }
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn exec_insert<W: Wrapper>(
    _estate: *mut pg_sys::EState,
    rri: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    _plan_slot: *mut pg_sys::TupleTableSlot,
) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the executor's own arguments, after `begin_modify` or `begin_insert`.
    unsafe {
        let state = &mut *(*rri).ri_FdwState.cast::<ModifyState<W>>();
        state.write(slot, |writer, shape, check| writer.insert(&slot_row(slot, shape), check))
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn exec_batch_insert<W: Wrapper>(
    _estate: *mut pg_sys::EState,
    rri: *mut pg_sys::ResultRelInfo,
    slots: *mut *mut pg_sys::TupleTableSlot,
    _plan_slots: *mut *mut pg_sys::TupleTableSlot,
    count: *mut i32,
) -> *mut *mut pg_sys::TupleTableSlot {
    // SAFETY: the executor's own arguments, after `begin_modify` or `begin_insert`. Slots of rows that were written are moved
    // to the front of the executor's array, as those beyond the count given back are not looked at.
    unsafe {
        let state = &mut *(*rri).ri_FdwState.cast::<ModifyState<W>>();
        let all = std::slice::from_raw_parts_mut(slots, *count as usize);
        let checker: *const Checker = &state.checker;
        let is_wanted = (*checker).is_wanted();
        state.for_row(|writer, shape| {
            let rows: Vec<Row<'_>> = all.iter().map(|slot| slot_row(*slot, shape)).collect();
            let put = |slot: *mut pg_sys::TupleTableSlot, columns: &[OwnedScalar]| fill(slot, columns, shape);
            let check = |row: &Foreseen| (*checker).check(row, put);
            let written = writer.insert_many(&rows, is_wanted.then_some(&check));
            let mut inserted = 0;
            for (place, outcome) in written.into_iter().enumerate() {
                if !answer(all[place], outcome, shape).is_null() {
                    all.swap(inserted, place);
                    inserted += 1;
                }
            }
            *count = inserted as i32;
        });
        slots
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn exec_update<W: Wrapper>(
    estate: *mut pg_sys::EState,
    rri: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    plan_slot: *mut pg_sys::TupleTableSlot,
) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the executor's own arguments, after `begin_modify`. The planner adds the whole old row for every
    // UPDATE of a foreign table.
    unsafe {
        let state = &mut *(*rri).ri_FdwState.cast::<ModifyState<W>>();
        let Junk { key, whole_row, ctid } = state.junk;
        let (mut slot, mut plan_slot) = (slot, plan_slot);
        if is_done::<W>(estate, rri, &key_of(plan_slot, key)) {
            return null_mut();
        }
        if let Some(lock) = &state.lock {
            let Some(planned) = lock.lock(estate, rri, plan_slot, ctid) else { return null_mut() };
            if planned != plan_slot {
                plan_slot = planned;
                slot = pg_sys::ExecGetUpdateNewTuple(rri, planned, (*rri).ri_oldTupleSlot);
            }
        }
        // The executor leaves this to whoever holds the rows of a foreign partition.
        if (*(*(*rri).ri_RelationDesc).rd_rel).relispartition
            && !pg_sys::ExecPartitionCheck(rri, slot, estate, false)
        {
            refuse_move();
        }
        state.write(slot, |writer, shape, check| {
            let key = key_of(plan_slot, key);
            let tupdesc = (*slot).tts_tupleDescriptor;
            let natts = (*tupdesc).natts as usize;
            let mut is_null = false;
            let whole = pg_sys::slot_getattr(plan_slot, i32::from(whole_row), &mut is_null);
            let mut values = vec![pg_sys::Datum::from(0); natts];
            let mut nulls = vec![true; natts];
            if !is_null {
                let header: pg_sys::HeapTupleHeader = pg_sys::pg_detoast_datum(whole.cast_mut_ptr()).cast();
                let mut tuple = pg_sys::HeapTupleData {
                    t_len: pgrx::varsize_4b(header.cast()) as u32,
                    t_data: header,
                    ..Default::default()
                };
                pg_sys::heap_deform_tuple(&mut tuple, tupdesc, values.as_mut_ptr(), nulls.as_mut_ptr());
            }
            let old = Row { values: &values, nulls: &nulls, types: &shape.types };
            writer.update(&key, &old, &slot_row(slot, shape), check)
        })
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn exec_delete<W: Wrapper>(
    estate: *mut pg_sys::EState,
    rri: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    plan_slot: *mut pg_sys::TupleTableSlot,
) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the executor's own arguments, after `begin_modify`.
    unsafe {
        let state = &mut *(*rri).ri_FdwState.cast::<ModifyState<W>>();
        if state.operation == Operation::Update {
            refuse_move(); // the row goes to another partition
        }
        let Junk { key, ctid, .. } = state.junk;
        if is_done::<W>(estate, rri, &key_of(plan_slot, key)) {
            return null_mut();
        }
        let planned = match &state.lock {
            Some(lock) => lock.lock(estate, rri, plan_slot, ctid),
            None => Some(plan_slot),
        };
        let Some(plan_slot) = planned else { return null_mut() };
        state.for_row(|writer, shape| answer(slot, writer.delete(&key_of(plan_slot, key)), shape))
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn end_modify<W: Wrapper>(
    _estate: *mut pg_sys::EState,
    rri: *mut pg_sys::ResultRelInfo,
) {
    // SAFETY: the executor's own arguments; without a state (EXPLAIN) nothing was begun.
    unsafe {
        let state = (*rri).ri_FdwState.cast::<ModifyState<W>>();
        if let Some(writer) = state.as_mut().and_then(|state| state.writer.take()) {
            writer.finish();
        }
    }
}

/// A slot's tuple, deformed.
///
/// # Safety
/// The slot holds a tuple and outlives the result.
unsafe fn slot_row<'a>(slot: *mut pg_sys::TupleTableSlot, shape: &'a Shape) -> Row<'a> {
    // SAFETY: by contract.
    unsafe {
        pg_sys::slot_getallattrs(slot);
        let natts = (*(*slot).tts_tupleDescriptor).natts as usize;
        Row {
            values: std::slice::from_raw_parts((*slot).tts_values, natts),
            nulls: std::slice::from_raw_parts((*slot).tts_isnull, natts),
            types: &shape.types,
        }
    }
}

/// # Safety
/// `slot` holds a tuple that has the key as attribute `number`.
unsafe fn key_of(slot: *mut pg_sys::TupleTableSlot, number: i16) -> String {
    let mut is_null = false;
    // SAFETY: by contract; the key is a text column, never NULL in the cache.
    unsafe {
        let datum = pg_sys::slot_getattr(slot, i32::from(number), &mut is_null);
        match (is_null, datum) {
            (false, datum) => match read(datum, pg_sys::TEXTOID) {
                OwnedScalar::Text(key) => key,
                _ => String::new(),
            },
            (true, _) => String::new(),
        }
    }
}

/// Puts what became of a row into the slot, for RETURNING and triggers; NULL tells the executor to pass over
/// the row.
///
/// # Safety
/// `slot` is the executor's slot for the row, `shape` that of its relation.
unsafe fn answer(
    slot: *mut pg_sys::TupleTableSlot,
    written: Option<Written>,
    shape: &Shape,
) -> *mut pg_sys::TupleTableSlot {
    let (columns, system) = match written {
        None => return null_mut(),
        Some(Written::AsGiven) => return slot,
        Some(Written::Row { columns, system }) => (columns, system),
    };
    // SAFETY: by contract; the values are made in the row's context, which lasts until the next row: as long as
    // the executor needs them for RETURNING and triggers.
    unsafe {
        fill(slot, &columns, shape);
        if let Some(system) = system {
            system.put(slot);
        }
        slot
    }
}

/// Puts the values of a row into a slot, in the current memory context.
///
/// # Safety
/// `slot` has the descriptor of the relation whose shape this is.
unsafe fn fill(slot: *mut pg_sys::TupleTableSlot, columns: &[OwnedScalar], shape: &Shape) {
    // SAFETY: by contract.
    unsafe {
        pg_sys::ExecClearTuple(slot);
        for (i, (scalar, writer)) in columns.iter().zip(&shape.types).enumerate() {
            let datum = writer.datum(scalar.borrow()).ok().flatten();
            *(*slot).tts_isnull.add(i) = datum.is_none();
            *(*slot).tts_values.add(i) = datum.unwrap_or(pg_sys::Datum::from(0));
        }
        pg_sys::ExecStoreVirtualTuple(slot);
        if let Some(generator) = &shape.generator {
            generator.compute(slot);
        }
    }
}
