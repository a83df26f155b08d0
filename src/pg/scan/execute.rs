//! Running a foreign scan: a nested executor whose tuples are handed on without copying.

use std::ptr::null_mut;

use pgrx::{PgList, PgMemoryContexts, pg_sys};

use super::{Private, cursor, explain, lock};
use crate::pg::catalog::c_string;
use crate::pg::system::{self, SystemColumns};
use crate::pg::table::new_context;

/// A running scan.
struct ScanState {
    cache: pg_sys::Oid,
    query: *mut pg_sys::QueryDesc,
    /// Where each output column goes in the scan's tuple, from 0.
    places: Vec<usize>,
    /// How many system columns there are behind those.
    system: usize,
    /// Executor parameters to evaluate, with the place of each in `params`.
    exprs: *mut pg_sys::List,
    params: pg_sys::ParamListInfo,
    first_param: usize,
    /// Where parameter values live until they are evaluated again.
    param_context: pg_sys::MemoryContext,
    /// Parameters have to be evaluated before the next row is fetched.
    stale_params: bool,
    explain_only: bool,
}

/// Starts the nested executor.
///
/// # Safety
/// Called by the executor as `BeginForeignScan`, with its arguments.
pub unsafe fn begin(node: *mut pg_sys::ForeignScanState, eflags: i32) {
    // SAFETY: by contract; the private list is the one `plan` made.
    unsafe {
        let plan: *mut pg_sys::ForeignScan = (*node).ss.ps.plan.cast();
        let private = |at: Private| pg_sys::list_nth((*plan).fdw_private, at as i32);
        let stmt: *mut pg_sys::PlannedStmt = private(Private::Plan).cast();
        let outputs = PgList::<i32>::from_pg(private(Private::Outputs).cast());
        let first_param = PgList::<i32>::from_pg(private(Private::FirstParam).cast());
        let cache = PgList::<pg_sys::Oid>::from_pg(private(Private::Cache).cast());
        let cache = cache.get_oid(0).expect("the plan names its cache table");
        let first_param = first_param.get_int(0).expect("the plan has its first parameter") as usize;
        let columns = outputs.iter_int().filter(|number| *number > 0);
        let places: Vec<usize> = columns.map(|number| number as usize - 1).collect();
        let system = outputs.len() - places.len();

        let estate = (*node).ss.ps.state;
        // The plan may have come from a cache that does not know the tables of an inner plan.
        let locks_rows = !(*stmt).rowMarks.is_null() || lock::locks_rows(node);
        let mode = if locks_rows { pg_sys::RowShareLock } else { pg_sys::AccessShareLock };
        pg_sys::LockRelationOid(cache, mode as pg_sys::LOCKMODE);

        let exprs = pg_sys::ExecInitExprList((*plan).fdw_exprs, node.cast());
        let params = params_for(estate, exprs, first_param);
        // EvalPlanQual's executor does not know the statement's text; the one that it checks a row for does.
        let text = match (*estate).es_epq_active.as_ref() {
            Some(epq) => (*epq.parentestate).es_sourceText,
            None => (*estate).es_sourceText,
        };
        let query = pg_sys::CreateQueryDesc(
            stmt,
            text,
            (*estate).es_snapshot,
            null_mut(),
            null_mut(),
            params,
            (*estate).es_queryEnv,
            (*estate).es_instrument,
        );
        pg_sys::standard_ExecutorStart(query, eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32);
        let explain_only = eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 != 0;
        let stale_params = !exprs.is_null();
        let param_context = new_context(c"servicenow_fdw parameters");
        let state = ScanState {
            cache,
            query,
            places,
            system,
            exprs,
            params,
            first_param,
            param_context,
            stale_params,
            explain_only,
        };
        let mut context = PgMemoryContexts::For((*estate).es_query_cxt);
        (*node).fdw_state = context.leak_and_drop_on_delete(state).cast();
    }
}

/// The inner query's parameters: the outer query's own, and room for executor parameters behind them.
///
/// # Safety
/// `estate` is the outer executor's.
unsafe fn params_for(
    estate: *mut pg_sys::EState,
    exprs: *mut pg_sys::List,
    first_param: usize,
) -> pg_sys::ParamListInfo {
    // SAFETY: by contract.
    unsafe {
        let outer = (*estate).es_param_list_info;
        if exprs.is_null() {
            return outer;
        }
        let total = first_param - 1 + PgList::<pg_sys::ExprState>::from_pg(exprs).len();
        let params = pg_sys::makeParamList(total as i32);
        let slots = (*params).params.as_mut_ptr();
        let known = if outer.is_null() { 0 } else { (*outer).numParams.min(first_param as i32 - 1) };
        for i in 0..known as usize {
            let mut workspace: pg_sys::ParamExternData = std::mem::zeroed();
            let source = match (*outer).paramFetch {
                Some(fetch) => {
                    pg_sys::ffi::pg_guard_ffi_boundary(|| fetch(outer, i as i32 + 1, false, &mut workspace))
                }
                None => (*outer).params.as_mut_ptr().add(i),
            };
            *slots.add(i) = *source;
        }
        for i in known as usize..total {
            *slots.add(i) = pg_sys::ParamExternData {
                value: pg_sys::Datum::from(0),
                isnull: true,
                pflags: 0,
                ptype: pg_sys::InvalidOid,
            };
        }
        params
    }
}

/// Fetches the next tuple into the scan's slot.
///
/// # Safety
/// Called by the executor as `IterateForeignScan`, after [`begin`].
pub unsafe fn next(node: *mut pg_sys::ForeignScanState) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: by contract. The inner tuple stays valid until the next call, which is as long as the executor
    // may use the slot.
    unsafe {
        let state: *mut ScanState = (*node).fdw_state.cast();
        let slot = (*node).ss.ss_ScanTupleSlot;
        pg_sys::ExecClearTuple(slot);
        if (*state).stale_params {
            evaluate_params(node, &mut *state);
        }
        // The executor calls this in its per-tuple context; what the inner plan allocates is its own affair.
        let mut context = PgMemoryContexts::For((*(*(*state).query).estate).es_query_cxt);
        let inner = context.switch_to(|_| pg_sys::ExecProcNode((*(*state).query).planstate));
        if inner.is_null() || (*inner).tts_flags & pg_sys::TTS_FLAG_EMPTY as u16 != 0 {
            return slot;
        }
        pg_sys::slot_getallattrs(inner);
        let natts = (*(*slot).tts_tupleDescriptor).natts as usize;
        let values = std::slice::from_raw_parts_mut((*slot).tts_values, natts);
        let nulls = std::slice::from_raw_parts_mut((*slot).tts_isnull, natts);
        nulls.fill(true);
        for (i, place) in (*state).places.iter().enumerate() {
            values[*place] = *(*inner).tts_values.add(i);
            nulls[*place] = *(*inner).tts_isnull.add(i);
        }
        pg_sys::ExecStoreVirtualTuple(slot);
        let system =
            std::slice::from_raw_parts((*inner).tts_values.add((*state).places.len()), (*state).system);
        // What a cursor stands on is asked for both, whether or not the scan is to give system columns.
        (*slot).tts_tableOid = (*(*node).ss.ss_currentRelation).rd_id;
        (*slot).tts_tid = cursor::place((*(*state).query).planstate);
        if let Ok(all) = <[pg_sys::Datum; system::ALL.len()]>::try_from(system) {
            SystemColumns::from_values(all).put(slot);
        } else if let [ctid] = system {
            (*slot).tts_tid = *ctid.cast_mut_ptr();
        }
        slot
    }
}

/// Gives the inner query the current values of executor parameters.
///
/// # Safety
/// `node` is a running scan with this state.
unsafe fn evaluate_params(node: *mut pg_sys::ForeignScanState, state: &mut ScanState) {
    // SAFETY: by contract; the inner plan keeps the values until it is begun anew, which follows.
    unsafe {
        let econtext = (*node).ss.ps.ps_ExprContext;
        pg_sys::MemoryContextReset(state.param_context);
        let mut context = PgMemoryContexts::For(state.param_context);
        let slots = (*state.params).params.as_mut_ptr().add(state.first_param - 1);
        for (i, expr) in PgList::<pg_sys::ExprState>::from_pg(state.exprs).iter_ptr().enumerate() {
            let mut is_null = false;
            let (value, ptype) = context.switch_to(|_| match (*(*expr).expr).type_ {
                pg_sys::NodeTag::T_CurrentOfExpr => {
                    let current = cursor::current(node, (*expr).expr.cast(), state.cache);
                    is_null = current.is_none();
                    (current.unwrap_or(pg_sys::Datum::from(0)), pg_sys::TIDOID)
                }
                _ => {
                    let value = pg_sys::ExecEvalExpr(expr, econtext, &mut is_null);
                    (value, pg_sys::exprType((*expr).expr.cast()))
                }
            });
            *slots.add(i) = pg_sys::ParamExternData { value, isnull: is_null, pflags: 0, ptype };
        }
        state.stale_params = false;
    }
}

/// Begins the scan anew, with new parameter values if there are any.
///
/// # Safety
/// Called by the executor as `ReScanForeignScan`.
pub unsafe fn rescan(node: *mut pg_sys::ForeignScanState) {
    // SAFETY: by contract.
    unsafe {
        let state: *mut ScanState = (*node).fdw_state.cast();
        if !(*state).exprs.is_null() {
            evaluate_params(node, &mut *state);
        }
        pg_sys::ExecReScan((*(*state).query).planstate);
    }
}

/// Ends the nested executor.
///
/// # Safety
/// Called by the executor as `EndForeignScan`.
pub unsafe fn end(node: *mut pg_sys::ForeignScanState) {
    // SAFETY: by contract; without a state nothing was begun.
    unsafe {
        let state: *mut ScanState = (*node).fdw_state.cast();
        if state.is_null() {
            return;
        }
        if !(*state).explain_only {
            pg_sys::standard_ExecutorFinish((*state).query);
        }
        pg_sys::standard_ExecutorEnd((*state).query);
        pg_sys::FreeQueryDesc((*state).query);
        (*node).fdw_state = null_mut();
    }
}

/// Shows the scan of the cache below the foreign scan, and the cache's age, which is no more the same at the next
/// look, where costs are shown.
///
/// # Safety
/// Called by EXPLAIN as `ExplainForeignScan`.
pub unsafe fn show(
    node: *mut pg_sys::ForeignScanState,
    es: *mut pg_sys::ExplainState,
    age: fn(pg_sys::Oid) -> Option<String>,
) {
    // SAFETY: by contract.
    unsafe {
        let state: *mut ScanState = (*node).fdw_state.cast();
        if state.is_null() {
            return;
        }
        if (*es).costs {
            let age =
                age((*(*node).ss.ss_currentRelation).rd_id).unwrap_or_else(|| "never in sync".to_owned());
            pg_sys::ExplainPropertyText(c"Cache Age".as_ptr(), c_string(&age).as_ptr(), es);
        }
        explain::print_child(node, es, (*state).query);
    }
}
