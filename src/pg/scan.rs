//! A foreign scan that is a scan of the cache table underneath: planned as a query of its own, kept as a
//! `PlannedStmt` inside the foreign scan's plan, and executed by a nested executor whose tuples are handed on
//! without copying.
//!
//! Normal reads never come here, because the planner hook expands them; what comes is the target of an UPDATE
//! or DELETE (its rows are locked as they are read), a foreign table inside an inheritance tree, and the first
//! statement of a session whose first statement loads the library.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use pgrx::{PgList, PgMemoryContexts, pg_guard, pg_sys};

use super::catalog;
use super::expand::{analyze, set_owner};
use super::table::new_context;

/// The table behind a foreign table.
#[derive(Clone, Debug)]
pub struct Source {
    /// The cache table.
    pub cache: pg_sys::Oid,
    /// Its owner, as whom it is read.
    pub owner: pg_sys::Oid,
    /// Attribute numbers of the foreign table with the cache's column for each.
    pub columns: Vec<(i16, String)>,
}

/// What the planner found out about one scan, from relation size to plan.
struct Sketch {
    source: Source,
    /// Conditions the inner query carries out, as clauses of the outer query.
    inner_clauses: *mut pg_sys::List,
    /// The inner query's plan.
    plan: *mut pg_sys::PlannedStmt,
    /// Foreign attribute numbers of the inner query's output columns.
    outputs: Vec<i16>,
    /// Executor parameters the inner query needs values of, as nodes of the outer query.
    exec_params: *mut pg_sys::List,
    /// The number of the first of those as an external parameter of the inner query.
    first_param: i32,
}

unsafe extern "C-unwind" {
    /// rewriteManip.c: gives a copy of the node whose variables of one relation have other numbers.
    fn map_variable_attnos(
        node: *mut pg_sys::Node,
        target_varno: i32,
        sublevels_up: i32,
        attno_map: *const pg_sys::AttrMap,
        to_rowtype: pg_sys::Oid,
        found_whole_row: *mut bool,
    ) -> *mut pg_sys::Node;
    /// rewriteManip.c: renumbers a relation in place.
    fn ChangeVarNodes(node: *mut pg_sys::Node, rt_index: i32, new_index: i32, sublevels_up: i32);
}

/// Plans the scan of the cache and sets the relation's size accordingly.
///
/// # Safety
/// Called by the planner as `GetForeignRelSize`, with its arguments.
pub(super) unsafe fn relation_size(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    source: Source,
) {
    // SAFETY: by contract. The sketch lives in the planner's context, as long as the relation it belongs to.
    unsafe {
        let (inner, outer) = split_clauses(rel, &source);
        let sketch = sketch(root, rel, source, inner);
        let plan = (*sketch.plan).planTree;
        let kept = pg_sys::clauselist_selectivity(root, outer, 0, pg_sys::JoinType::JOIN_INNER, null_mut());
        (*rel).rows = pg_sys::clamp_row_est((*plan).plan_rows * kept);
        (*rel).tuples = (*rel).tuples.max((*plan).plan_rows);
        let owner = PgMemoryContexts::CurrentMemoryContext.leak_and_drop_on_delete(sketch);
        (*rel).fdw_private = owner.cast();
    }
}

/// Offers the one way to scan.
///
/// # Safety
/// Called by the planner as `GetForeignPaths`, after [`relation_size`].
pub(super) unsafe fn add_path(root: *mut pg_sys::PlannerInfo, rel: *mut pg_sys::RelOptInfo) {
    // SAFETY: by contract.
    unsafe {
        let sketch: *mut Sketch = (*rel).fdw_private.cast();
        let plan = (*(*sketch).plan).planTree;
        let (rows, startup, total) = ((*rel).rows, (*plan).startup_cost, (*plan).total_cost);
        let outer = (*rel).lateral_relids;
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        let path = pg_sys::create_foreignscan_path(
            root,
            rel,
            null_mut(),
            rows,
            startup,
            total,
            null_mut(),
            outer,
            null_mut(),
            null_mut(),
        );
        #[cfg(feature = "pg17")]
        let path = pg_sys::create_foreignscan_path(
            root,
            rel,
            null_mut(),
            rows,
            startup,
            total,
            null_mut(),
            outer,
            null_mut(),
            null_mut(),
            null_mut(),
        );
        #[cfg(feature = "pg18")]
        let path = pg_sys::create_foreignscan_path(
            root,
            rel,
            null_mut(),
            rows,
            0,
            startup,
            total,
            null_mut(),
            outer,
            null_mut(),
            null_mut(),
            null_mut(),
        );
        pg_sys::add_path(rel, path.cast());
    }
}

/// Makes the plan node.
///
/// # Safety
/// Called by the planner as `GetForeignPlan`, after [`add_path`].
pub(super) unsafe fn plan(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    tlist: *mut pg_sys::List,
    scan_clauses: *mut pg_sys::List,
    outer_plan: *mut pg_sys::Plan,
) -> *mut pg_sys::ForeignScan {
    // SAFETY: by contract.
    unsafe {
        let sketch: *mut Sketch = (*rel).fdw_private.cast();
        let mut local = null_mut();
        for info in PgList::<pg_sys::RestrictInfo>::from_pg(scan_clauses).iter_ptr() {
            let done_inside = pg_sys::list_member_ptr((*sketch).inner_clauses, (*info).clause.cast());
            if !(*info).pseudoconstant && !done_inside {
                local = pg_sys::lappend(local, (*info).clause.cast());
            }
        }
        let mut outputs = null_mut();
        for number in &(*sketch).outputs {
            outputs = pg_sys::lappend_int(outputs, i32::from(*number));
        }
        let mut params = null_mut();
        params = pg_sys::lappend_int(params, (*sketch).first_param);
        let cache = pg_sys::lappend_oid(null_mut(), (*sketch).source.cache);
        let mut private = null_mut();
        for slot in [(*sketch).plan.cast::<c_void>(), outputs.cast(), params.cast(), cache.cast()] {
            private = pg_sys::lappend(private, slot);
        }
        // A change of the cache's definition has to make this plan invalid too.
        let glob = (*root).glob;
        (*glob).relationOids = pg_sys::lappend_oid((*glob).relationOids, (*sketch).source.cache);
        pg_sys::make_foreignscan(
            tlist,
            local,
            (*rel).relid,
            (*sketch).exec_params,
            private,
            null_mut(),
            // Conditions of the inner query, for rechecks.
            (*sketch).inner_clauses,
            outer_plan,
        )
    }
}

/// Positions of the plan's private list.
#[repr(i32)]
enum Private {
    /// The inner `PlannedStmt`.
    Plan = 0,
    /// An integer list: the foreign attribute number of each output column.
    Outputs = 1,
    /// An integer list of one: the number of the first executor parameter as an external one.
    FirstParam = 2,
    /// An OID list of one: the cache table.
    Cache = 3,
}

/// Splits a relation's conditions into those the inner query can carry out and the rest.
///
/// # Safety
/// `rel` is a base relation of the planner.
unsafe fn split_clauses(
    rel: *mut pg_sys::RelOptInfo,
    source: &Source,
) -> (*mut pg_sys::List, *mut pg_sys::List) {
    // SAFETY: by contract.
    unsafe {
        let (mut inner, mut outer) = (null_mut(), null_mut());
        for info in PgList::<pg_sys::RestrictInfo>::from_pg((*rel).baserestrictinfo).iter_ptr() {
            let clause: *mut pg_sys::Node = (*info).clause.cast();
            let may_run_early = (*info).security_level <= (*rel).baserestrict_min_security
                || !pg_sys::contain_leaked_vars(clause);
            if may_run_early
                && !(*info).pseudoconstant
                && !pg_sys::contain_subplans(clause)
                && !pg_sys::contain_volatile_functions(clause)
                && reads_mapped_columns_only(rel, clause, source)
            {
                inner = pg_sys::lappend(inner, clause.cast());
            } else {
                outer = pg_sys::lappend(outer, info.cast());
            }
        }
        (inner, outer)
    }
}

/// Whether every variable of the clause is a column the cache has: no system column, no whole row.
///
/// # Safety
/// `rel` is the relation of the clause's variables.
unsafe fn reads_mapped_columns_only(
    rel: *mut pg_sys::RelOptInfo,
    clause: *mut pg_sys::Node,
    source: &Source,
) -> bool {
    // SAFETY: by contract; attribute numbers in the set are shifted by FirstLowInvalidHeapAttributeNumber.
    unsafe { attributes_of(clause, (*rel).relid).iter().all(|n| source.columns.iter().any(|(m, _)| m == n)) }
}

/// The attribute numbers of a relation that an expression reads.
///
/// # Safety
/// `node` is a valid expression.
unsafe fn attributes_of(node: *mut pg_sys::Node, relid: pg_sys::Index) -> Vec<i16> {
    let mut set = null_mut();
    let mut numbers = Vec::new();
    // SAFETY: by contract.
    unsafe {
        pg_sys::pull_varattnos(node, relid, &mut set);
        let mut member = pg_sys::bms_next_member(set, -1);
        while member >= 0 {
            numbers.push((member + pg_sys::FirstLowInvalidHeapAttributeNumber) as i16);
            member = pg_sys::bms_next_member(set, member);
        }
    }
    numbers
}

/// Builds and plans the inner query.
///
/// # Safety
/// `root` and `rel` are those of the planner; `inner` is a list of clauses on `rel`.
unsafe fn sketch(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    source: Source,
    inner: *mut pg_sys::List,
) -> Sketch {
    // SAFETY: by contract.
    unsafe {
        let outputs = needed_columns(rel, &source);
        let names: Vec<String> = outputs
            .iter()
            .filter_map(|number| source.columns.iter().find(|(n, _)| n == number))
            .map(|(_, name)| pgrx::spi::quote_identifier(name))
            .collect();
        let table = catalog::qualified_name(source.cache).unwrap_or_default();
        let lock = lock_clause(root, rel);
        let sql = format!("SELECT {} FROM {table}{lock}", names.join(", "));
        let query = analyze(&sql);
        set_owner(query, source.owner);

        let mut first_param = 1;
        highest_extern_param(inner.cast(), (&raw mut first_param).cast());
        let mut exec_params = null_mut();
        let map = attribute_map(rel, &source);
        for clause in PgList::<pg_sys::Node>::from_pg(inner).iter_ptr() {
            let mut whole_row = false;
            let relid = (*rel).relid as i32;
            let copy = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let copy = map_variable_attnos(clause, relid, 0, map, pg_sys::InvalidOid, &mut whole_row);
                ChangeVarNodes(copy, relid, 1, 0);
                copy
            });
            let mut found = ExecParams { nodes: exec_params, next: first_param };
            found.next += list_length(exec_params);
            replace_exec_params(copy, (&raw mut found).cast());
            exec_params = found.nodes;
            let quals = &mut (*(*query).jointree).quals;
            *quals = pg_sys::make_and_qual(*quals, copy);
        }
        let sql = CString::new(sql).expect("identifiers hold no NUL");
        let text = pg_sys::pstrdup(sql.as_ptr());
        let plan = pg_sys::planner(query, text, 0, (*(*root).glob).boundParams);
        Sketch { source, inner_clauses: inner, plan, outputs, exec_params, first_param }
    }
}

/// # Safety
/// `list` is NIL or valid.
unsafe fn list_length(list: *const pg_sys::List) -> i32 {
    // SAFETY: by contract.
    if list.is_null() { 0 } else { unsafe { (*list).length } }
}

/// The columns the outer query needs of the scan: what it outputs and what it checks by itself. An UPDATE or
/// DELETE target and a whole-row variable need all of them.
///
/// # Safety
/// `rel` is a base relation of the planner.
unsafe fn needed_columns(rel: *mut pg_sys::RelOptInfo, source: &Source) -> Vec<i16> {
    // SAFETY: by contract.
    unsafe {
        let mut numbers = attributes_of((*(*rel).reltarget).exprs.cast(), (*rel).relid);
        for info in PgList::<pg_sys::RestrictInfo>::from_pg((*rel).baserestrictinfo).iter_ptr() {
            numbers.extend(attributes_of((*info).clause.cast(), (*rel).relid));
        }
        let all = numbers.contains(&0);
        let wanted = |number: &i16| all || numbers.contains(number);
        source.columns.iter().map(|(number, _)| *number).filter(wanted).collect()
    }
}

/// The numbers the foreign table's attributes have in the cache.
///
/// # Safety
/// `rel` is a base relation of the planner; the cache is locked.
unsafe fn attribute_map(rel: *mut pg_sys::RelOptInfo, source: &Source) -> *mut pg_sys::AttrMap {
    let cache = catalog::attributes(source.cache);
    // SAFETY: by contract; the map has a place for every attribute number of the relation.
    unsafe {
        let map = pg_sys::make_attrmap(i32::from((*rel).max_attr));
        for (number, name) in &source.columns {
            if let Some(attribute) = cache.iter().find(|attribute| attribute.name == *name) {
                *(*map).attnums.add(*number as usize - 1) = attribute.number;
            }
        }
        map
    }
}

/// ` FOR …` for rows that the outer query is going to change or lock.
///
/// # Safety
/// `root` and `rel` are those of the planner.
unsafe fn lock_clause(root: *mut pg_sys::PlannerInfo, rel: *mut pg_sys::RelOptInfo) -> String {
    // SAFETY: by contract.
    unsafe {
        let parse = (*root).parse;
        if pg_sys::bms_is_member((*rel).relid as i32, (*root).all_result_relids) {
            return match (*parse).commandType {
                pg_sys::CmdType::CMD_DELETE => " FOR UPDATE".to_owned(),
                _ => " FOR NO KEY UPDATE".to_owned(),
            };
        }
        for mark in PgList::<pg_sys::PlanRowMark>::from_pg((*root).rowMarks).iter_ptr() {
            if (*mark).rti == (*rel).relid {
                let strength = match (*mark).strength {
                    pg_sys::LockClauseStrength::LCS_FORUPDATE => " FOR UPDATE",
                    pg_sys::LockClauseStrength::LCS_FORNOKEYUPDATE => " FOR NO KEY UPDATE",
                    pg_sys::LockClauseStrength::LCS_FORSHARE => " FOR SHARE",
                    pg_sys::LockClauseStrength::LCS_FORKEYSHARE => " FOR KEY SHARE",
                    _ => return String::new(),
                };
                let policy = match (*mark).waitPolicy {
                    pg_sys::LockWaitPolicy::LockWaitSkip => " SKIP LOCKED",
                    pg_sys::LockWaitPolicy::LockWaitError => " NOWAIT",
                    _ => "",
                };
                return format!("{strength}{policy}");
            }
        }
        String::new()
    }
}

/// Raises the number the context points to above that of every external parameter in the expression.
#[pg_guard]
unsafe extern "C-unwind" fn highest_extern_param(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: the walker hands on valid nodes and the context it was given.
    unsafe {
        if (*node).type_ == pg_sys::NodeTag::T_Param {
            let param: *mut pg_sys::Param = node.cast();
            if (*param).paramkind == pg_sys::ParamKind::PARAM_EXTERN {
                let free: *mut i32 = context.cast();
                *free = (*free).max((*param).paramid + 1);
            }
            return false;
        }
        pg_sys::expression_tree_walker(node, Some(highest_extern_param), context)
    }
}

/// Executor parameters met so far.
struct ExecParams {
    nodes: *mut pg_sys::List,
    next: i32,
}

/// Turns executor parameters, which mean something to the outer plan only, into external ones, in place.
#[pg_guard]
unsafe extern "C-unwind" fn replace_exec_params(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: the walker hands on valid nodes of the copied clause and the context it was given.
    unsafe {
        if (*node).type_ == pg_sys::NodeTag::T_Param {
            let param: *mut pg_sys::Param = node.cast();
            if (*param).paramkind == pg_sys::ParamKind::PARAM_EXEC {
                let found: *mut ExecParams = context.cast();
                (*found).nodes = pg_sys::lappend((*found).nodes, pg_sys::copyObjectImpl(param.cast()));
                (*param).paramkind = pg_sys::ParamKind::PARAM_EXTERN;
                (*param).paramid = (*found).next;
                (*found).next += 1;
            }
            return false;
        }
        pg_sys::expression_tree_walker(node, Some(replace_exec_params), context)
    }
}

/// A running scan.
pub(super) struct ScanState {
    query: *mut pg_sys::QueryDesc,
    /// Where each output column goes in the scan's tuple, from 0.
    places: Vec<usize>,
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
pub(super) unsafe fn begin(node: *mut pg_sys::ForeignScanState, eflags: i32) {
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
        let places = outputs.iter_int().map(|number| number as usize - 1).collect();

        let estate = (*node).ss.ps.state;
        // The plan may have come from a cache that does not know the tables of an inner plan.
        let locks_rows = !(*stmt).rowMarks.is_null();
        let mode = if locks_rows { pg_sys::RowShareLock } else { pg_sys::AccessShareLock };
        pg_sys::LockRelationOid(cache, mode as pg_sys::LOCKMODE);

        let exprs = pg_sys::ExecInitExprList((*plan).fdw_exprs, node.cast());
        let params = params_for(estate, exprs, first_param);
        let query = pg_sys::CreateQueryDesc(
            stmt,
            (*estate).es_sourceText,
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
            query,
            places,
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
        let total = first_param - 1 + list_length(exprs) as usize;
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
pub(super) unsafe fn next(node: *mut pg_sys::ForeignScanState) -> *mut pg_sys::TupleTableSlot {
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
        pg_sys::ExecStoreVirtualTuple(slot)
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
            let value = context.switch_to(|_| pg_sys::ExecEvalExpr(expr, econtext, &mut is_null));
            let ptype = pg_sys::exprType((*expr).expr.cast());
            *slots.add(i) = pg_sys::ParamExternData { value, isnull: is_null, pflags: 0, ptype };
        }
        state.stale_params = false;
    }
}

/// Begins the scan anew, with new parameter values if there are any.
///
/// # Safety
/// Called by the executor as `ReScanForeignScan`.
pub(super) unsafe fn rescan(node: *mut pg_sys::ForeignScanState) {
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
pub(super) unsafe fn end(node: *mut pg_sys::ForeignScanState) {
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

/// Shows the scan of the cache below the foreign scan.
///
/// # Safety
/// Called by EXPLAIN as `ExplainForeignScan`.
pub(super) unsafe fn explain(node: *mut pg_sys::ForeignScanState, es: *mut pg_sys::ExplainState) {
    // SAFETY: by contract. EXPLAIN keeps what it knows of the plan it prints in its state, so the inner plan is
    // printed with a copy that shares the output buffer.
    unsafe {
        let state: *mut ScanState = (*node).fdw_state.cast();
        if state.is_null() {
            return;
        }
        let mut inner = std::ptr::read(es);
        pg_sys::ExplainPrintPlan(&mut inner, (*state).query);
    }
}
