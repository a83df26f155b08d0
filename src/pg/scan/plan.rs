//! Planning a foreign scan: a query on the cache, with the conditions that can run there.
//!
//! What the outer query knows at run time only (executor parameters, columns of other relations in a join) goes
//! into the inner query as parameters. A join can therefore look rows of the cache up by index, one outer row at
//! a time, and an UPDATE or DELETE with triggers that is driven by another table locks no more rows than it changes.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use pgrx::spi::quote_identifier;
use pgrx::{PgList, PgMemoryContexts, pg_guard, pg_sys};

use super::localize::Localizer;
use super::{Private, Source, lock};
use crate::pg::catalog;
use crate::pg::expand::{analyze, set_owner};
use crate::pg::generated;
use crate::pg::rights;
use crate::pg::statistics;
use crate::pg::system;

/// What locking a row costs more than reading it: its page is written, and the lock logged. In units of a page
/// read in sequence; without it a join that locks the whole table would look as cheap as one that reads it.
const ROW_LOCK_COST: f64 = 1.0;

/// One way to scan the cache, as planned.
struct Sketch {
    cache: pg_sys::Oid,
    /// Conditions the inner query carries out, as clauses of the outer query.
    inner_clauses: *mut pg_sys::List,
    /// The inner query's plan.
    plan: *mut pg_sys::PlannedStmt,
    /// Foreign attribute numbers of the inner query's output columns, those of system columns at the end.
    outputs: Vec<i16>,
    /// Expressions of the outer query that the inner one gets as parameters.
    exprs: *mut pg_sys::List,
    /// The number of the first of those as an external parameter of the inner query.
    first_param: i32,
}

/// Plans the scan of the cache and sets the relation's size accordingly.
///
/// # Safety
/// Called by the planner as `GetForeignRelSize`, with its arguments.
pub unsafe fn relation_size(root: *mut pg_sys::PlannerInfo, rel: *mut pg_sys::RelOptInfo, source: Source) {
    // SAFETY: by contract. The sketch lives in the planner's context, as long as the relation it belongs to.
    unsafe {
        let (inner, outer) = split_clauses(root, rel, (*rel).baserestrictinfo, &source);
        let sketch = Sketch::new(root, rel, &source, inner);
        (*rel).rows = sketch.rows(root, outer);
        let (pages, tuples) = statistics::size(source.cache);
        (*rel).pages = pages;
        (*rel).tuples = tuples.max((*(*sketch.plan).planTree).plan_rows);
        let mut context = PgMemoryContexts::CurrentMemoryContext;
        (*rel).fdw_private = context.leak_and_drop_on_delete((source, sketch)).cast();
    }
}

/// Offers the ways to scan: all at once, by what other relations of a join give, and in the order that is asked for.
///
/// # Safety
/// Called by the planner as `GetForeignPaths`, after [`relation_size`].
pub unsafe fn add_paths(root: *mut pg_sys::PlannerInfo, rel: *mut pg_sys::RelOptInfo) {
    // SAFETY: by contract.
    unsafe {
        let known: *mut (Source, Sketch) = (*rel).fdw_private.cast();
        let (source, sketch) = &*known;
        add_path(root, rel, sketch, (*rel).rows, (*rel).lateral_relids, null_mut());
        let mut context = PgMemoryContexts::CurrentMemoryContext;
        for info in outer_relations(root, rel, source) {
            let mut clauses = pg_sys::list_copy((*rel).baserestrictinfo);
            clauses = pg_sys::list_concat(clauses, (*info).ppi_clauses);
            let (inner, outer) = split_clauses(root, rel, clauses, source);
            let sketch = context.leak_and_drop_on_delete(Sketch::new(root, rel, source, inner));
            // The cache has statistics, the foreign table need not have any.
            (*info).ppi_rows = (*sketch).rows(root, outer);
            add_path(root, rel, &*sketch, (*info).ppi_rows, (*info).ppi_req_outer, null_mut());
        }
        if let Some(order) = wanted_order(root, rel, source) {
            let ordered = Sketch::ordered(root, rel, source, sketch.inner_clauses, &order);
            // What sorts inside could as well sort outside, where it is known how many rows are wanted.
            if (*(*ordered.plan).planTree).type_ != pg_sys::NodeTag::T_Sort {
                let ordered = context.leak_and_drop_on_delete(ordered);
                add_path(root, rel, &*ordered, (*rel).rows, null_mut(), (*root).query_pathkeys);
            }
        }
    }
}

/// # Safety
/// As for [`add_paths`]; the sketch lives in the planner's context.
unsafe fn add_path(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    sketch: *const Sketch,
    rows: f64,
    outer: pg_sys::Relids,
    order: *mut pg_sys::List,
) {
    // SAFETY: by contract. The private list has one member, which only [`plan`] looks at: it is no node.
    unsafe {
        let inner = (*(*sketch).plan).planTree;
        let locks = if (*(*sketch).plan).rowMarks.is_null() { 0.0 } else { ROW_LOCK_COST };
        let (startup, total) = ((*inner).startup_cost, (*inner).total_cost + locks * (*inner).plan_rows);
        let private = pg_sys::lappend(null_mut(), sketch.cast_mut().cast());
        let none: *mut pg_sys::List = null_mut();
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        let path = pg_sys::create_foreignscan_path(
            root,
            rel,
            none.cast(),
            rows,
            startup,
            total,
            order,
            outer,
            none.cast(),
            private,
        );
        #[cfg(feature = "pg17")]
        let path = pg_sys::create_foreignscan_path(
            root,
            rel,
            none.cast(),
            rows,
            startup,
            total,
            order,
            outer,
            none.cast(),
            none,
            private,
        );
        #[cfg(feature = "pg18")]
        let path = pg_sys::create_foreignscan_path(
            root,
            rel,
            none.cast(),
            rows,
            (*inner).disabled_nodes,
            startup,
            total,
            order,
            outer,
            none.cast(),
            none,
            private,
        );
        pg_sys::add_path(rel, path.cast());
    }
}

/// The `ORDER BY` clause of the inner query that gives rows in the order the query wants, if columns alone say what it is
/// and rows are not locked as they are read.
///
/// # Safety
/// As for [`add_paths`].
unsafe fn wanted_order(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    source: &Source,
) -> Option<String> {
    // SAFETY: by contract; the list holds PathKeys.
    unsafe {
        let keys = PgList::<pg_sys::PathKey>::from_pg((*root).query_pathkeys);
        let is_plain =
            (*rel).reloptkind == pg_sys::RelOptKind::RELOPT_BASEREL && (*rel).lateral_relids.is_null();
        if keys.is_empty() || !is_plain || !lock_clause(root, rel).is_empty() {
            return None;
        }
        let terms: Option<Vec<String>> = keys.iter_ptr().map(|key| order_term(rel, key, source)).collect();
        Some(format!(" ORDER BY {}", terms?.join(", ")))
    }
}

/// One key of an order, as SQL writes it.
///
/// # Safety
/// As for [`add_paths`]; `key` is one of the planner's.
unsafe fn order_term(
    rel: *mut pg_sys::RelOptInfo,
    key: *mut pg_sys::PathKey,
    source: &Source,
) -> Option<String> {
    // SAFETY: by contract; the list holds EquivalenceMembers.
    unsafe {
        let class = (*key).pk_eclass;
        if (*class).ec_has_volatile {
            return None;
        }
        let members = PgList::<pg_sys::EquivalenceMember>::from_pg((*class).ec_members);
        let var = members.iter_ptr().filter(|member| !(**member).em_is_child).find_map(|member| {
            let expr = without_relabels((*member).em_expr.cast());
            let is_ours = (*expr).type_ == pg_sys::NodeTag::T_Var
                && (*expr.cast::<pg_sys::Var>()).varno == (*rel).relid as i32;
            is_ours.then_some(expr.cast::<pg_sys::Var>())
        })?;
        let (_, name) = source.columns.iter().find(|(number, _)| *number == (*var).varattno)?;
        // The inner query sorts by the type's own operators and the column's collation.
        let known = pg_sys::lookup_type_cache((*var).vartype, pg_sys::TYPECACHE_BTREE_OPFAMILY as i32);
        if (*known).btree_opf != (*key).pk_opfamily || (*class).ec_collation != (*var).varcollid {
            return None;
        }
        #[cfg(not(feature = "pg18"))]
        let descends = (*key).pk_strategy == pg_sys::BTGreaterStrategyNumber as i32;
        #[cfg(feature = "pg18")]
        let descends = (*key).pk_cmptype == pg_sys::CompareType::COMPARE_GT;
        let direction = if descends { "DESC" } else { "ASC" };
        let nulls = if (*key).pk_nulls_first { "FIRST" } else { "LAST" };
        Some(format!("{} {direction} NULLS {nulls}", quote_identifier(name)))
    }
}

/// An expression without the changes of type around it that change nothing.
///
/// # Safety
/// `expr` is a valid expression.
unsafe fn without_relabels(mut expr: *mut pg_sys::Node) -> *mut pg_sys::Node {
    // SAFETY: by contract.
    unsafe {
        while (*expr).type_ == pg_sys::NodeTag::T_RelabelType {
            expr = (*expr.cast::<pg_sys::RelabelType>()).arg.cast();
        }
        expr
    }
}

/// The sets of other relations whose columns could drive a scan, by the conditions of the join: as
/// `postgresGetForeignPaths` finds them.
///
/// # Safety
/// As for [`add_paths`].
unsafe fn outer_relations(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    source: &Source,
) -> Vec<*mut pg_sys::ParamPathInfo> {
    // SAFETY: by contract; the lists hold RestrictInfos.
    unsafe {
        let mut clauses: Vec<*mut pg_sys::RestrictInfo> =
            PgList::<pg_sys::RestrictInfo>::from_pg((*rel).joininfo)
                .iter_ptr()
                .filter(|info| pg_sys::join_clause_is_movable_to(*info, rel))
                .collect();
        if (*rel).has_eclass_joins {
            for (number, _) in &source.columns {
                let mut number = i32::from(*number);
                let implied = pg_sys::generate_implied_equalities_for_column(
                    root,
                    rel,
                    Some(is_column),
                    (&raw mut number).cast(),
                    (*rel).lateral_referencers,
                );
                clauses.extend(
                    PgList::<pg_sys::RestrictInfo>::from_pg(implied)
                        .iter_ptr()
                        .filter(|info| pg_sys::join_clause_is_movable_to(*info, rel)),
                );
            }
        }
        let mut found: Vec<*mut pg_sys::ParamPathInfo> = Vec::new();
        for clause in clauses {
            if !reads_mapped_columns_only(rel, (*clause).clause.cast(), source) {
                continue;
            }
            let mut outer = pg_sys::bms_union((*clause).clause_relids, (*rel).lateral_relids);
            outer = pg_sys::bms_del_member(outer, (*rel).relid as i32);
            if pg_sys::bms_num_members(outer) == 0 {
                continue;
            }
            let info = pg_sys::get_baserel_parampathinfo(root, rel, outer);
            if !found.contains(&info) {
                found.push(info);
            }
        }
        found
    }
}

/// Whether a member of an equivalence class is the column whose number the argument points to.
#[pg_guard]
unsafe extern "C-unwind" fn is_column(
    _root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    _class: *mut pg_sys::EquivalenceClass,
    member: *mut pg_sys::EquivalenceMember,
    number: *mut c_void,
) -> bool {
    // SAFETY: the planner's own arguments, and the number `outer_relations` passed.
    unsafe {
        let expr = without_relabels((*member).em_expr.cast());
        if (*expr).type_ != pg_sys::NodeTag::T_Var {
            return false;
        }
        let var: *mut pg_sys::Var = expr.cast();
        (*var).varno == (*rel).relid as i32 && i32::from((*var).varattno) == *number.cast::<i32>()
    }
}

/// Has what drives a scan come from a partition instead of from the partitioned table: a join partition by partition.
///
/// # Safety
/// Called by the planner as `ReparameterizeForeignPathByChild`, with the private list of a path of [`add_path`].
pub unsafe fn reparameterize(
    root: *mut pg_sys::PlannerInfo,
    private: *mut pg_sys::List,
    child: *mut pg_sys::RelOptInfo,
) -> *mut pg_sys::List {
    // SAFETY: by contract; lists are nodes, and what is made lives as long as the path it belongs to.
    unsafe {
        let of_parent: *const Sketch = pg_sys::list_nth(private, 0).cast();
        let sketch = Sketch {
            cache: (*of_parent).cache,
            inner_clauses: of_child(root, (*of_parent).inner_clauses, child),
            plan: (*of_parent).plan,
            outputs: (*of_parent).outputs.clone(),
            exprs: of_child(root, (*of_parent).exprs, child),
            first_param: (*of_parent).first_param,
        };
        let sketch = PgMemoryContexts::CurrentMemoryContext.leak_and_drop_on_delete(sketch);
        pg_sys::lappend(null_mut(), sketch.cast())
    }
}

/// Expressions with the columns of a partitioned table replaced by its child's.
///
/// # Safety
/// `child` is a partition in the planner's hands, `exprs` a list of expressions.
unsafe fn of_child(
    root: *mut pg_sys::PlannerInfo,
    exprs: *mut pg_sys::List,
    child: *mut pg_sys::RelOptInfo,
) -> *mut pg_sys::List {
    // SAFETY: by contract.
    unsafe {
        #[cfg(feature = "pg15")]
        let (from, to) = ((*child).relids, (*child).top_parent_relids);
        #[cfg(not(feature = "pg15"))]
        let (from, to) = (child, (*child).top_parent);
        pg_sys::adjust_appendrel_attrs_multilevel(root, exprs.cast(), from, to).cast()
    }
}

/// Makes the plan node of a path.
///
/// # Safety
/// Called by the planner as `GetForeignPlan`, after [`add_paths`].
pub unsafe fn plan(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    path: *mut pg_sys::ForeignPath,
    tlist: *mut pg_sys::List,
    scan_clauses: *mut pg_sys::List,
    outer_plan: *mut pg_sys::Plan,
) -> *mut pg_sys::ForeignScan {
    // SAFETY: by contract.
    unsafe {
        let sketch: *mut Sketch = pg_sys::list_nth((*path).fdw_private, 0).cast();
        let mut local = null_mut();
        for info in PgList::<pg_sys::RestrictInfo>::from_pg(scan_clauses).iter_ptr() {
            let done_inside = pg_sys::list_member((*sketch).inner_clauses, (*info).clause.cast());
            if !(*info).pseudoconstant && !done_inside {
                local = pg_sys::lappend(local, (*info).clause.cast());
            }
        }
        let mut outputs = null_mut();
        for number in &(*sketch).outputs {
            outputs = pg_sys::lappend_int(outputs, i32::from(*number));
        }
        let first_param = pg_sys::lappend_int(null_mut(), (*sketch).first_param);
        let cache = pg_sys::lappend_oid(null_mut(), (*sketch).cache);
        let slots: [(Private, *mut c_void); 4] = [
            (Private::Plan, (*sketch).plan.cast()),
            (Private::Outputs, outputs.cast()),
            (Private::FirstParam, first_param.cast()),
            (Private::Cache, cache.cast()),
        ];
        let mut private = null_mut();
        for (position, (slot, value)) in slots.into_iter().enumerate() {
            debug_assert_eq!(position, slot as usize);
            private = pg_sys::lappend(private, value);
        }
        // A change of the cache's definition has to make this plan invalid too.
        let glob = (*root).glob;
        (*glob).relationOids = pg_sys::lappend_oid((*glob).relationOids, (*sketch).cache);
        // Conditions of the inner query are for rechecks of the outer one; but the newest version of a row is not where
        // the cursor is.
        let mut recheck = null_mut();
        for clause in PgList::<pg_sys::Node>::from_pg((*sketch).inner_clauses).iter_ptr() {
            if (*clause).type_ != pg_sys::NodeTag::T_CurrentOfExpr {
                recheck = pg_sys::lappend(recheck, clause.cast());
            }
        }
        pg_sys::make_foreignscan(
            tlist,
            local,
            (*rel).relid,
            (*sketch).exprs,
            private,
            null_mut(),
            recheck,
            outer_plan,
        )
    }
}

/// Splits conditions (RestrictInfos) on a relation into those the inner query can carry out, as bare clauses, and
/// the rest.
///
/// # Safety
/// `rel` is a base relation of the planner, `clauses` a list of RestrictInfos.
unsafe fn split_clauses(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    clauses: *mut pg_sys::List,
    source: &Source,
) -> (*mut pg_sys::List, *mut pg_sys::List) {
    // SAFETY: by contract.
    unsafe {
        let (mut inner, mut outer) = (null_mut(), null_mut());
        let may_read = rights::may_read(root, rel);
        for info in PgList::<pg_sys::RestrictInfo>::from_pg(clauses).iter_ptr() {
            let clause: *mut pg_sys::Node = (*info).clause.cast();
            let may_run_early = (*info).security_level <= (*rel).baserestrict_min_security
                || !pg_sys::contain_leaked_vars(clause);
            if may_read
                && may_run_early
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

/// Whether every variable of the relation in the clause is a column the cache has: no system column, no whole row.
///
/// # Safety
/// `rel` is a base relation of the planner.
unsafe fn reads_mapped_columns_only(
    rel: *mut pg_sys::RelOptInfo,
    clause: *mut pg_sys::Node,
    source: &Source,
) -> bool {
    // SAFETY: by contract.
    unsafe { attributes_of(clause, (*rel).relid).iter().all(|n| source.columns.iter().any(|(m, _)| m == n)) }
}

/// The attribute numbers of a relation that an expression reads.
///
/// # Safety
/// `node` is a valid expression.
unsafe fn attributes_of(node: *mut pg_sys::Node, relid: pg_sys::Index) -> Vec<i16> {
    let mut set = null_mut();
    let mut numbers = Vec::new();
    // SAFETY: by contract; numbers in the set are shifted by FirstLowInvalidHeapAttributeNumber.
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

impl Sketch {
    /// Builds and plans the inner query.
    ///
    /// # Safety
    /// `root` and `rel` are those of the planner; `inner` is a list of clauses whose variables of `rel` are columns
    /// of the source.
    unsafe fn new(
        root: *mut pg_sys::PlannerInfo,
        rel: *mut pg_sys::RelOptInfo,
        source: &Source,
        inner: *mut pg_sys::List,
    ) -> Self {
        // SAFETY: by contract.
        unsafe { Self::ordered(root, rel, source, inner, "") }
    }

    /// As [`Self::new`], with an `ORDER BY` clause.
    ///
    /// # Safety
    /// As for [`Self::new`].
    unsafe fn ordered(
        root: *mut pg_sys::PlannerInfo,
        rel: *mut pg_sys::RelOptInfo,
        source: &Source,
        inner: *mut pg_sys::List,
        order: &str,
    ) -> Self {
        // SAFETY: by contract.
        unsafe {
            let outputs = needed_columns(rel, source);
            let name_of = |number: &i16| match *number {
                system::CTID => Some("ctid".to_owned()),
                system::XMIN => Some("xmin".to_owned()),
                system::CMIN => Some("cmin".to_owned()),
                system::XMAX => Some("xmax".to_owned()),
                _ if source.generated.contains(number) => Some(generated::PLACEHOLDER.to_owned()),
                _ => source.columns.iter().find(|(n, _)| n == number).map(|(_, name)| quote_identifier(name)),
            };
            let names: Vec<String> = outputs.iter().filter_map(name_of).collect();
            let table = catalog::locked_name(source.cache).unwrap_or_default();
            let sql = format!("SELECT {} FROM {table}{order}{}", names.join(", "), lock_clause(root, rel));
            let query = analyze(&sql);
            set_owner(query, source.owner);
            let numbers = source.cache_numbers();
            let computed: Vec<(usize, i16)> =
                (0..).zip(outputs.iter().copied()).filter(|(_, n)| source.generated.contains(n)).collect();
            generated::compute_in(query, source.foreign_table, &computed, &numbers);

            let mut localizer = Localizer::new(root, rel, numbers, inner);
            for clause in PgList::<pg_sys::Node>::from_pg(inner).iter_ptr() {
                let quals = &mut (*(*query).jointree).quals;
                *quals = pg_sys::make_and_qual(*quals, localizer.clause(clause));
            }
            let sql = CString::new(sql).expect("identifiers hold no NUL");
            let text = pg_sys::pstrdup(sql.as_ptr());
            let wants_few = !order.is_empty() && (*root).tuple_fraction > 0.0;
            let options = if wants_few { pg_sys::CURSOR_OPT_FAST_PLAN as i32 } else { 0 };
            let plan = pg_sys::planner(query, text, options, (*(*root).glob).boundParams);
            (*plan).queryId = 0; // EXPLAIN shows the outer query's only
            let Localizer { exprs, first_param, .. } = localizer;
            Self { cache: source.cache, inner_clauses: inner, plan, outputs, exprs, first_param }
        }
    }
}

impl Sketch {
    /// How many rows are left when the outer query has checked these conditions too.
    ///
    /// # Safety
    /// `root` is the planner's, `outer` a list of RestrictInfos.
    unsafe fn rows(&self, root: *mut pg_sys::PlannerInfo, outer: *mut pg_sys::List) -> f64 {
        // SAFETY: by contract.
        unsafe {
            let kept =
                pg_sys::clauselist_selectivity(root, outer, 0, pg_sys::JoinType::JOIN_INNER, null_mut());
            pg_sys::clamp_row_est((*(*self.plan).planTree).plan_rows * kept)
        }
    }
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
        for list in [(*rel).baserestrictinfo, (*rel).joininfo] {
            for info in PgList::<pg_sys::RestrictInfo>::from_pg(list).iter_ptr() {
                numbers.extend(attributes_of((*info).clause.cast(), (*rel).relid));
            }
        }
        let all = numbers.contains(&0);
        let columns =
            source.columns.iter().map(|(number, _)| *number).chain(source.generated.iter().copied());
        let columns = columns.filter(|number| all || numbers.contains(number));
        columns.chain(system::needed(&numbers).iter().copied()).collect()
    }
}

/// ` FOR …` for rows that the outer query is going to change, and that have to be locked as they are read.
///
/// # Safety
/// `root` and `rel` are those of the planner.
unsafe fn lock_clause(root: *mut pg_sys::PlannerInfo, rel: *mut pg_sys::RelOptInfo) -> &'static str {
    // SAFETY: by contract.
    unsafe {
        let entry = *(*root).simple_rte_array.add((*rel).relid as usize);
        let is_target = pg_sys::bms_is_member((*rel).relid as i32, (*root).all_result_relids);
        match (*(*root).parse).commandType {
            _ if !is_target || lock::is_target_late((*entry).relid) => "",
            pg_sys::CmdType::CMD_DELETE => " FOR UPDATE",
            _ => " FOR NO KEY UPDATE",
        }
    }
}
