//! WHERE CURRENT OF: where in the cache the row is that a cursor stands on. The cursor's plan has a scan of the cache, if
//! the planner hook has put that in the foreign table's place, or else a foreign scan.

use pgrx::{FromDatum, PgList, PgRelation, pg_sys};

/// The place of the row that a scan of the cache has just given; invalid if its plan is not a plain scan.
///
/// # Safety
/// `plan` is the state of a foreign scan's inner plan.
pub unsafe fn place(plan: *mut pg_sys::PlanState) -> pg_sys::ItemPointerData {
    use pg_sys::NodeTag::*;
    // SAFETY: by contract; the node's tag says which struct it is.
    unsafe {
        match (*plan).type_ {
            T_SeqScanState
            | T_IndexScanState
            | T_BitmapHeapScanState
            | T_TidScanState
            | T_TidRangeScanState => (*(*plan.cast::<pg_sys::ScanState>()).ss_ScanTupleSlot).tts_tid,
            T_IndexOnlyScanState => (*(*plan.cast::<pg_sys::IndexOnlyScanState>()).ioss_ScanDesc).xs_heaptid,
            T_LockRowsState | T_ResultState if !(*plan).lefttree.is_null() => place((*plan).lefttree),
            _ => pg_sys::ItemPointerData::default(),
        }
    }
}

/// The place of the row that a cursor stands on, as a datum; `None` if it stands on none of this table's.
///
/// # Safety
/// `node` is a running foreign scan of the table with this cache.
pub unsafe fn current(
    node: *mut pg_sys::ForeignScanState,
    cursor: *mut pg_sys::CurrentOfExpr,
    cache: pg_sys::Oid,
) -> Option<pg_sys::Datum> {
    // SAFETY: by contract; a cursor that is not there or reads something else is an ERROR.
    unsafe {
        let econtext = (*node).ss.ps.ps_ExprContext;
        let foreign_table = (*(*node).ss.ss_currentRelation).rd_id;
        let scanned = if reads(name(cursor, econtext), cache) { cache } else { foreign_table };
        let place: *mut pg_sys::ItemPointerData =
            pg_sys::palloc0(size_of::<pg_sys::ItemPointerData>()).cast();
        let is_on_row = pg_sys::execCurrentOf(cursor, econtext, scanned, place) && (*place).ip_posid != 0;
        if is_on_row {
            follow(cache, (*(*node).ss.ps.state).es_snapshot, place);
        }
        is_on_row.then(|| pg_sys::Datum::from(place))
    }
}

/// Changes a row's place to that of its version which the statement sees: the row may have been changed since it was
/// fetched. As a scan by `ctid` does for WHERE CURRENT OF.
///
/// # Safety
/// `place` is that of a row of the table, which the statement has locked; `snapshot` is the statement's.
unsafe fn follow(table: pg_sys::Oid, snapshot: pg_sys::Snapshot, place: pg_sys::ItemPointer) {
    // SAFETY: by contract; the access method's functions get an open relation, and what the first of them has made.
    unsafe {
        let (table, kind) = (PgRelation::open(table), pg_sys::ScanOptions::SO_TYPE_TIDSCAN);
        let (table, methods) = (table.as_ptr(), &*(*table.as_ptr()).rd_tableam);
        let (Some(begin), Some(end)) = (methods.scan_begin, methods.scan_end) else { return };
        let none = std::ptr::null_mut();
        let scan = pg_sys::ffi::pg_guard_ffi_boundary(|| {
            begin(table, snapshot, 0, none, std::ptr::null_mut(), kind)
        });
        pg_sys::table_tuple_get_latest_tid(scan, place);
        pg_sys::ffi::pg_guard_ffi_boundary(|| end(scan));
    }
}

/// The cursor's name: as it stands in the statement, or a variable's value.
///
/// # Safety
/// As for [`current`].
unsafe fn name(
    cursor: *mut pg_sys::CurrentOfExpr,
    econtext: *mut pg_sys::ExprContext,
) -> *const std::ffi::c_char {
    // SAFETY: by contract. What is wrong with a variable, `execCurrentOf` says.
    unsafe {
        if !(*cursor).cursor_name.is_null() {
            return (*cursor).cursor_name;
        }
        let (params, number) = ((*econtext).ecxt_param_list_info, (*cursor).cursor_param);
        if params.is_null() || number < 1 || number > (*params).numParams {
            return std::ptr::null();
        }
        let mut workspace: pg_sys::ParamExternData = std::mem::zeroed();
        let param = match (*params).paramFetch {
            Some(fetch) => {
                pg_sys::ffi::pg_guard_ffi_boundary(|| fetch(params, number, false, &mut workspace))
            }
            None => (*params).params.as_mut_ptr().add(number as usize - 1),
        };
        match String::from_datum((*param).value, (*param).isnull || (*param).ptype != pg_sys::REFCURSOROID) {
            Some(name) => pg_sys::pstrdup(crate::pg::catalog::c_string(&name).as_ptr()),
            None => std::ptr::null(),
        }
    }
}

/// Whether a relation is in the range table of a cursor's plan.
///
/// # Safety
/// `name` is NULL or a C string.
unsafe fn reads(name: *const std::ffi::c_char, relation: pg_sys::Oid) -> bool {
    // SAFETY: by contract; a portal's query lives as long as the portal.
    unsafe {
        let portal = if name.is_null() { std::ptr::null_mut() } else { pg_sys::GetPortalByName(name) };
        if portal.is_null() || (*portal).queryDesc.is_null() {
            return false;
        }
        let statement = (*(*portal).queryDesc).plannedstmt;
        PgList::<pg_sys::RangeTblEntry>::from_pg((*statement).rtable)
            .iter_ptr()
            .any(|entry| (*entry).rtekind == pg_sys::RTEKind::RTE_RELATION && (*entry).relid == relation)
    }
}
