//! Writes: the callbacks of INSERT, UPDATE and DELETE, and what they keep while a statement runs.

use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::ptr::null_mut;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgList, PgLogLevel, PgMemoryContexts, PgRelation, PgSqlErrorCode, PgTupleDesc, pg_guard, pg_sys};

use super::{Operation, Row, RowWriter, Target, Wrapper, Written};
use crate::pg::catalog::c_string;
use crate::pg::table::new_context;
use crate::pg::tuple::{DatumWriter, OwnedScalar, read};

/// The name Postgres gives the junk column with the whole old row.
const WHOLE_ROW_NAME: &CStr = c"wholerow";

/// Has the scan of an UPDATE or DELETE target carry the key of each row.
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
    }
}

/// The name of the junk column that carries a target row's key. Targets of one statement may share it only if
/// their keys have the same number and type.
fn key_name(attribute: &pg_sys::FormData_pg_attribute, number: i16) -> CString {
    let (type_oid, typmod) = (attribute.atttypid.to_u32(), attribute.atttypmod);
    c_string(&format!("sys_id {number} {type_oid} {typmod}"))
}

/// The private list of a modification: one integer list, of 1 or 0 for ON CONFLICT DO NOTHING, 1 or 0 for triggers
/// that may change a row before it is updated, and the attributes an UPDATE assigns.
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

/// A running modification.
struct ModifyState<W: Wrapper> {
    writer: Option<W::Writer>,
    types: Vec<DatumWriter>,
    key: i16,
    whole_row: i16,
    /// What belongs to the row being written; reset before the next.
    row_context: pg_sys::MemoryContext,
    _wrapper: PhantomData<W>,
}

impl<W: Wrapper> ModifyState<W> {
    /// Runs `f` for one row.
    ///
    /// # Safety
    /// Nothing refers to the row before any more.
    unsafe fn for_row<R>(&mut self, f: impl FnOnce(&mut W::Writer, &[DatumWriter]) -> R) -> R {
        let Self { writer, types, row_context, .. } = self;
        let writer = writer.as_mut().expect("the statement is not over");
        // SAFETY: by contract; the context is a child of the statement's.
        unsafe {
            pg_sys::MemoryContextReset(*row_context);
            PgMemoryContexts::For(*row_context).switch_to(|_| f(writer, types))
        }
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
        let (key, whole_row) = match operation {
            Operation::Insert => (0, 0),
            Operation::Update => (junk(&key_name(W::key((*relation).rd_id))), junk(WHOLE_ROW_NAME)),
            Operation::Delete => (junk(&key_name(W::key((*relation).rd_id))), 0),
        };
        let user = acting_user(rri, (*mtstate).ps.state);
        let relation = (*relation).rd_id;
        let target = Target { relation, user, operation, assigned, any_column, skip_duplicates };
        start::<W>((*mtstate).ps.state, rri, target, key, whole_row);
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn begin_insert<W: Wrapper>(
    mtstate: *mut pg_sys::ModifyTableState,
    rri: *mut pg_sys::ResultRelInfo,
) {
    // SAFETY: the executor's (or COPY's) own arguments. A partition that rows are moved into may be a target of
    // the same UPDATE: then it has a state already, which would be lost.
    unsafe {
        if !(*rri).ri_FdwState.is_null() {
            ErrorReport::new(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "cannot move a row into a foreign table that the same statement updates",
                "",
            )
            .set_hint("Delete the row and insert it anew, in two statements.")
            .report(PgLogLevel::ERROR);
        }
        let plan: *mut pg_sys::ModifyTable = (*mtstate).ps.plan.cast();
        let skip_duplicates =
            !plan.is_null() && (*plan).onConflictAction == pg_sys::OnConflictAction::ONCONFLICT_NOTHING;
        let user = acting_user(rri, (*mtstate).ps.state);
        let relation = (*(*rri).ri_RelationDesc).rd_id;
        let operation = Operation::Insert;
        let (assigned, any_column) = (Vec::new(), false);
        let target = Target { relation, user, operation, assigned, any_column, skip_duplicates };
        start::<W>((*mtstate).ps.state, rri, target, 0, 0);
    }
}

/// # Safety
/// The arguments are those of the executor; the target relation is open.
unsafe fn start<W: Wrapper>(
    estate: *mut pg_sys::EState,
    rri: *mut pg_sys::ResultRelInfo,
    target: Target,
    key: i16,
    whole_row: i16,
) {
    // SAFETY: by contract. The state lives in the statement's context and is dropped with it, also on ERROR.
    unsafe {
        let tupdesc = PgTupleDesc::from_pg_unchecked((*(*rri).ri_RelationDesc).rd_att);
        let types = tupdesc
            .iter()
            .map(|a| match a.attisdropped {
                true => DatumWriter::new(pg_sys::TEXTOID, -1),
                false => DatumWriter::new(a.atttypid, a.atttypmod),
            })
            .collect();
        let mut context = PgMemoryContexts::For((*estate).es_query_cxt);
        let row_context = context.switch_to(|_| new_context(c"servicenow_fdw row"));
        let writer = context.switch_to(|_| Some(W::begin_write(target)));
        let state = ModifyState::<W> { writer, types, key, whole_row, row_context, _wrapper: PhantomData };
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
        state.for_row(|writer, types| answer(slot, writer.insert(&slot_row(slot, types)), types))
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn exec_update<W: Wrapper>(
    _estate: *mut pg_sys::EState,
    rri: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    plan_slot: *mut pg_sys::TupleTableSlot,
) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the executor's own arguments, after `begin_modify`. The planner adds the whole old row for every
    // UPDATE of a foreign table.
    unsafe {
        let state = &mut *(*rri).ri_FdwState.cast::<ModifyState<W>>();
        let (key, whole_row) = (state.key, state.whole_row);
        state.for_row(|writer, types| {
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
            let old = Row { values: &values, nulls: &nulls, types };
            answer(slot, writer.update(&key, &old, &slot_row(slot, types)), types)
        })
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn exec_delete<W: Wrapper>(
    _estate: *mut pg_sys::EState,
    rri: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    plan_slot: *mut pg_sys::TupleTableSlot,
) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the executor's own arguments, after `begin_modify`.
    unsafe {
        let state = &mut *(*rri).ri_FdwState.cast::<ModifyState<W>>();
        let key = state.key;
        state.for_row(|writer, types| answer(slot, writer.delete(&key_of(plan_slot, key)), types))
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
unsafe fn slot_row<'a>(slot: *mut pg_sys::TupleTableSlot, types: &'a [DatumWriter]) -> Row<'a> {
    // SAFETY: by contract.
    unsafe {
        pg_sys::slot_getallattrs(slot);
        let natts = (*(*slot).tts_tupleDescriptor).natts as usize;
        Row {
            values: std::slice::from_raw_parts((*slot).tts_values, natts),
            nulls: std::slice::from_raw_parts((*slot).tts_isnull, natts),
            types,
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
/// `slot` is the executor's slot for the row, `types` those of its descriptor.
unsafe fn answer(
    slot: *mut pg_sys::TupleTableSlot,
    written: Option<Written>,
    types: &[DatumWriter],
) -> *mut pg_sys::TupleTableSlot {
    let Some(written) = written else { return null_mut() };
    // SAFETY: by contract; the values are made in the row's context, which lasts until the next row: as long as
    // the executor needs them for RETURNING and triggers.
    unsafe {
        pg_sys::ExecClearTuple(slot);
        for (i, (scalar, writer)) in written.iter().zip(types).enumerate() {
            let datum = writer.datum(scalar.borrow()).ok().flatten();
            *(*slot).tts_isnull.add(i) = datum.is_none();
            *(*slot).tts_values.add(i) = datum.unwrap_or(pg_sys::Datum::from(0));
        }
        pg_sys::ExecStoreVirtualTuple(slot)
    }
}
