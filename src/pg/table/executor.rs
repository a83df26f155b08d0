//! What the executor needs for a table that no query is about, on every version of Postgres.

use std::ffi::c_void;

use pgrx::{PgMemoryContexts, pg_sys};

/// Zeroed memory for a `T`.
///
/// # Safety
/// `context` is valid and outlives the use of the result; all zeroes is a valid `T`.
pub(super) unsafe fn alloc_in<T>(context: pg_sys::MemoryContext) -> *mut T {
    // SAFETY: by contract.
    unsafe { pg_sys::MemoryContextAllocZero(context, size_of::<T>()).cast() }
}

/// # Safety
/// `relation` is open.
pub(super) unsafe fn new_slot(relation: pg_sys::Relation) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: by contract; the slot pins nothing until something is stored in it.
    unsafe { pg_sys::table_slot_create(relation, std::ptr::null_mut()) }
}

/// # Safety
/// `estate` is valid.
pub(super) unsafe fn reset_per_tuple(estate: *mut pg_sys::EState) {
    // SAFETY: by contract; nothing evaluated per tuple is used beyond its row.
    unsafe {
        let context = (*estate).es_per_tuple_exprcontext;
        if !context.is_null() {
            pg_sys::MemoryContextReset((*context).ecxt_per_tuple_memory);
        }
    }
}

/// An executor state whose range table is the relation.
///
/// # Safety
/// `relation` is open.
pub(super) unsafe fn executor_state(relation: pg_sys::Relation) -> *mut pg_sys::EState {
    // SAFETY: by contract; nodes are made in the state's own context.
    unsafe {
        let estate = pg_sys::CreateExecutorState();
        let mut context = PgMemoryContexts::For((*estate).es_query_cxt);
        context.switch_to(|_| {
            let rte: *mut pg_sys::RangeTblEntry = pg_sys::palloc0(size_of::<pg_sys::RangeTblEntry>()).cast();
            (*rte).type_ = pg_sys::NodeTag::T_RangeTblEntry;
            (*rte).rtekind = pg_sys::RTEKind::RTE_RELATION;
            (*rte).relid = (*relation).rd_id;
            (*rte).relkind = (*(*relation).rd_rel).relkind;
            (*rte).rellockmode = pg_sys::RowExclusiveLock as i32;
            let rtable = pg_sys::lappend(std::ptr::null_mut(), rte.cast::<c_void>());
            init_range_table(estate, rtable, rte);
        });
        (*estate).es_output_cid = pg_sys::GetCurrentCommandId(true);
        estate
    }
}

#[cfg(feature = "pg15")]
unsafe fn init_range_table(
    estate: *mut pg_sys::EState,
    rtable: *mut pg_sys::List,
    _rte: *mut pg_sys::RangeTblEntry,
) {
    // SAFETY: the caller made all three.
    unsafe { pg_sys::ExecInitRangeTable(estate, rtable) };
}

#[cfg(any(feature = "pg16", feature = "pg17"))]
unsafe fn init_range_table(
    estate: *mut pg_sys::EState,
    rtable: *mut pg_sys::List,
    rte: *mut pg_sys::RangeTblEntry,
) {
    let mut permissions = std::ptr::null_mut();
    // SAFETY: the caller made all three.
    unsafe {
        pg_sys::addRTEPermissionInfo(&mut permissions, rte);
        pg_sys::ExecInitRangeTable(estate, rtable, permissions);
    }
}

#[cfg(feature = "pg18")]
unsafe fn init_range_table(
    estate: *mut pg_sys::EState,
    rtable: *mut pg_sys::List,
    rte: *mut pg_sys::RangeTblEntry,
) {
    let mut permissions = std::ptr::null_mut();
    // SAFETY: the caller made all three.
    unsafe {
        pg_sys::addRTEPermissionInfo(&mut permissions, rte);
        pg_sys::ExecInitRangeTable(estate, rtable, permissions, pg_sys::bms_make_singleton(1));
    }
}

/// # Safety
/// Both are valid.
pub(super) unsafe fn init_epq(epq: *mut pg_sys::EPQState, estate: *mut pg_sys::EState) {
    let (plan, marks) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: by contract.
    unsafe {
        #[cfg(feature = "pg15")]
        pg_sys::EvalPlanQualInit(epq, estate, plan, marks, -1);
        #[cfg(not(feature = "pg15"))]
        pg_sys::EvalPlanQualInit(epq, estate, plan, marks, -1, std::ptr::null_mut());
    }
}

/// Makes a row's index entries. With `unless_there` a key that somebody has in one of those indexes is no ERROR but
/// sets the flag. Gives back the deferrable constraints to be checked once more.
///
/// # Safety
/// All are valid and belong together; the slot holds a row that has been stored.
pub(super) unsafe fn insert_index_entries(
    target: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    estate: *mut pg_sys::EState,
    unless_there: Option<(&mut bool, *mut pg_sys::List)>,
) -> *mut pg_sys::List {
    let no_error = unless_there.is_some();
    let (conflict, arbiters) = match unless_there {
        Some((flag, arbiters)) => (std::ptr::from_mut(flag), arbiters),
        None => (std::ptr::null_mut(), std::ptr::null_mut()),
    };
    // SAFETY: by contract.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::ExecInsertIndexTuples(target, slot, estate, false, no_error, conflict, arbiters);
        #[cfg(not(feature = "pg15"))]
        return pg_sys::ExecInsertIndexTuples(
            target, slot, estate, false, no_error, conflict, arbiters, false,
        );
    }
}

/// # Safety
/// `relation` is open.
pub(super) unsafe fn primary_key(relation: pg_sys::Relation) -> pg_sys::Oid {
    // SAFETY: by contract.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        return pg_sys::RelationGetPrimaryKeyIndex(relation);
        #[cfg(feature = "pg18")]
        return pg_sys::RelationGetPrimaryKeyIndex(relation, false);
    }
}
