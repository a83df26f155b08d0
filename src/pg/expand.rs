//! Turning a reference to a foreign table into a subquery over its cache table, the way Postgres's rewriter
//! expands a view (`ApplyRetrieveRule` in rewriteHandler.c).
//!
//! Called in a backend, from the planner hook, on the query the planner is about to plan. Privileges stay
//! those on the foreign table: its range-table entry keeps being checked as before, while the cache is read
//! with its owner's rights. Row locks asked for on the foreign table pass down to the cache.

use std::ffi::CString;

use pgrx::{PgList, PgMemoryContexts, pg_guard, pg_sys};

use super::generated;
use super::rights::Wanted;

/// The query that stands for a foreign table, analyzed once and copied for each use.
pub struct Template {
    query: *mut pg_sys::Query,
    cache: pg_sys::Oid,
    /// Some columns stand for dropped ones.
    has_fillers: bool,
    /// Owns the query; deleted with the template.
    _context: PgMemoryContexts,
}

/// One output column of a template.
#[derive(Clone, Debug)]
pub enum Output {
    /// A column of the cache table, by name.
    Column(String),
    /// A generated column of the foreign table, by attribute number.
    Generated(i16),
    /// A filler for a dropped column of the foreign table, stored like this (`attlen`, `attalign`).
    Dropped(i16, i8),
}

impl Template {
    /// Analyzes `SELECT outputs FROM cache`, for the columns of a foreign table in order. `None` if a dropped column's storage has no stand-in type; the
    /// foreign scan copes with that.
    pub fn new(
        foreign_table: pg_sys::Oid,
        cache: pg_sys::Oid,
        owner: pg_sys::Oid,
        outputs: &[Output],
    ) -> Option<Self> {
        let name = super::catalog::locked_name(cache)?;
        let mut columns = Vec::with_capacity(outputs.len());
        for output in outputs {
            columns.push(match output {
                Output::Column(name) => pgrx::spi::quote_identifier(name),
                Output::Generated(_) => generated::PLACEHOLDER.to_owned(),
                Output::Dropped(len, align) => format!("NULL::{}", stand_in(*len, *align)?),
            });
        }
        let sql = format!("SELECT {} FROM {name}", columns.join(", "));
        let generated: Vec<(usize, i16)> = (0..)
            .zip(outputs)
            .filter_map(|(place, output)| match output {
                Output::Generated(number) => Some((place, *number)),
                _ => None,
            })
            .collect();
        // SAFETY: the query is built in the current context and copied into one that the template owns and
        // that no other context's end takes with it.
        let (context, query) = unsafe {
            let mut context = PgMemoryContexts::TopMemoryContext
                .switch_to(|_| PgMemoryContexts::new("servicenow_fdw expansion"));
            let query = analyze(&sql);
            set_owner(query, owner);
            generated::compute_in(query, foreign_table, &generated, &column_numbers(query));
            let query = context.switch_to(|_| pg_sys::copyObjectImpl(query.cast())).cast();
            (context, query)
        };
        let has_fillers = outputs.iter().any(|output| matches!(output, Output::Dropped(..)));
        Some(Self { query, cache, has_fillers, _context: context })
    }
}

/// The attribute numbers of the cache's columns that a query puts out; 0 for anything else.
///
/// # Safety
/// `query` is a valid query.
unsafe fn column_numbers(query: *mut pg_sys::Query) -> Vec<i16> {
    // SAFETY: by contract.
    unsafe {
        let outputs = PgList::<pg_sys::TargetEntry>::from_pg((*query).targetList);
        let number = |output: *mut pg_sys::TargetEntry| match (*(*output).expr).type_ {
            pg_sys::NodeTag::T_Var => (*(*output).expr.cast::<pg_sys::Var>()).varattno,
            _ => 0,
        };
        outputs.iter_ptr().map(number).collect()
    }
}

/// A type whose values are stored like those of a dropped column, which is all that still matters about it.
fn stand_in(len: i16, align: i8) -> Option<&'static str> {
    Some(match (len, align as u8) {
        (1, b'c') => "pg_catalog.bool",
        (2, b's') => "pg_catalog.int2",
        (4, b'i') => "pg_catalog.int4",
        (8, b'd') => "pg_catalog.int8",
        (-1, b'i') => "pg_catalog.text",
        (-1, b'd') => "pg_catalog.float8[]",
        (16, b'd') => "pg_catalog.interval",
        (16, b'c') => "pg_catalog.uuid",
        (12, b'd') => "pg_catalog.timetz",
        (64, b'c') => "pg_catalog.name",
        _ => return None,
    })
}

/// Parses and analyzes one SELECT.
///
/// # Safety
/// Inside a transaction with a snapshot or a lock manager ready, as in the planner.
pub(super) unsafe fn analyze(sql: &str) -> *mut pg_sys::Query {
    let sql = CString::new(sql).expect("identifiers hold no NUL");
    // Users need no rights on the schema of caches.
    let _owner = super::session::AsOwner::begin();
    // SAFETY: the statement text is copied by the parser where it is kept; analysis raises an ERROR or gives
    // back a query in the current context.
    unsafe {
        let raw = pg_sys::pg_parse_query(sql.as_ptr());
        let statement = PgList::<pg_sys::RawStmt>::from_pg(raw).get_ptr(0).expect("one statement was parsed");
        pg_sys::parse_analyze_fixedparams(statement, sql.as_ptr(), std::ptr::null(), 0, std::ptr::null_mut())
    }
}

unsafe extern "C-unwind" {
    /// rewriteDefine.c: gives every relation of the query the user to check privileges as.
    fn setRuleCheckAsUser(node: *mut pg_sys::Node, userid: pg_sys::Oid);
}

/// Has every relation of `query` checked as `owner`.
///
/// # Safety
/// `query` is a valid query.
pub(super) unsafe fn set_owner(query: *mut pg_sys::Query, owner: pg_sys::Oid) {
    // SAFETY: by contract.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| setRuleCheckAsUser(query.cast(), owner)) };
}

/// Says what stands for a foreign table, if anything does.
pub trait Expansions {
    /// The template for a relation; called for every foreign table a query reads.
    fn template(&self, relation: pg_sys::Oid) -> Option<std::rc::Rc<Template>>;
}

/// Expands every foreign table that `query` reads, subqueries included.
///
/// # Safety
/// `query` is a valid rewritten query that the caller may change.
pub unsafe fn expand<E: Expansions>(query: *mut pg_sys::Query, expansions: &E) {
    // SAFETY: by contract; the lists of a valid query hold the node types named here.
    unsafe {
        let rtable = PgList::<pg_sys::RangeTblEntry>::from_pg((*query).rtable);
        for (index, rte) in (1..).zip(rtable.iter_ptr()) {
            match (*rte).rtekind {
                pg_sys::RTEKind::RTE_RELATION if is_source(query, index, rte) => {
                    if let Some(template) = locked_template(query, index, (*rte).relid, expansions)
                        && !needs_scan(query, index, template.has_fillers)
                    {
                        replace(query, index, rte, &template);
                    }
                }
                pg_sys::RTEKind::RTE_SUBQUERY if !(*rte).subquery.is_null() => {
                    expand((*rte).subquery, expansions);
                }
                _ => {}
            }
        }
        for cte in PgList::<pg_sys::CommonTableExpr>::from_pg((*query).cteList).iter_ptr() {
            expand((*cte).ctequery.cast(), expansions);
        }
        if (*query).hasSubLinks {
            let mut context: &E = expansions;
            let flags = pg_sys::QTW_IGNORE_RC_SUBQUERIES as i32;
            let context = (&raw mut context).cast();
            pg_sys::query_tree_walker(query, Some(expand_in_sublinks::<E>), context, flags);
        }
    }
}

/// Finds the subqueries inside expressions.
#[pg_guard]
unsafe extern "C-unwind" fn expand_in_sublinks<E: Expansions>(
    node: *mut pg_sys::Node,
    context: *mut std::ffi::c_void,
) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: the walker hands on valid nodes and the context `expand` gave it.
    unsafe {
        if (*node).type_ == pg_sys::NodeTag::T_SubLink {
            let sublink: *mut pg_sys::SubLink = node.cast();
            expand((*sublink).subselect.cast(), *context.cast::<&E>());
            // Fall through to the test expression.
        }
        pg_sys::expression_tree_walker(node, Some(expand_in_sublinks::<E>), context)
    }
}

/// Whether the entry is a foreign table that the query reads: not its target, not a carrier of privileges, and
/// not the parent of other tables, which the planner expands by itself.
///
/// # Safety
/// `query` is valid and `rte` the entry number `index` of its range table.
unsafe fn is_source(query: *mut pg_sys::Query, index: i32, rte: *mut pg_sys::RangeTblEntry) -> bool {
    // SAFETY: by contract.
    unsafe {
        (*rte).relkind as u8 == pg_sys::RELKIND_FOREIGN_TABLE
            && (*rte).inFromCl
            && index != (*query).resultRelation
            && (*rte).tablesample.is_null()
            && !((*rte).inh && super::catalog::has_children((*rte).relid))
    }
}

/// The template of a relation with its cache locked as the query needs it. Waiting for the lock may bring news
/// of another cache.
///
/// # Safety
/// As for [`is_source`].
unsafe fn locked_template<E: Expansions>(
    query: *mut pg_sys::Query,
    index: i32,
    relation: pg_sys::Oid,
    expansions: &E,
) -> Option<std::rc::Rc<Template>> {
    // SAFETY: by contract.
    let lock = unsafe { lock_mode(query, index) };
    let mut template = expansions.template(relation)?;
    loop {
        // SAFETY: waits for the lock; interrupts and timeouts end the wait with an ERROR.
        unsafe { pg_sys::LockRelationOid(template.cache, lock) };
        let current = expansions.template(relation)?;
        if current.cache == template.cache {
            return Some(current);
        }
        template = current;
    }
}

/// The lock the parser would have taken on the relation: a stronger one if rows are to be locked.
///
/// # Safety
/// `query` is valid.
unsafe fn lock_mode(query: *mut pg_sys::Query, index: i32) -> pg_sys::LOCKMODE {
    // SAFETY: by contract.
    let rowmark = unsafe { pg_sys::get_parse_rowmark(query, index as pg_sys::Index) };
    let mode = if rowmark.is_null() { pg_sys::AccessShareLock } else { pg_sys::RowShareLock };
    mode as pg_sys::LOCKMODE
}

/// A relation, by its place and by how many queries further out that is.
struct Place {
    index: i32,
    levels_up: pg_sys::Index,
    /// Attribute numbers below this are looked for.
    below: i16,
}

/// Whether the query reads what only the foreign scan has: a system column such as `tableoid` of the relation; or its
/// row as a whole, if some columns are dropped. A subquery has no system columns, and its row has one more column for
/// each dropped one, which makes a difference to `IS NOT NULL`.
///
/// # Safety
/// `query` is valid.
unsafe fn needs_scan(query: *mut pg_sys::Query, index: i32, has_fillers: bool) -> bool {
    let mut place = Place { index, levels_up: 0, below: if has_fillers { 1 } else { 0 } };
    // SAFETY: by contract.
    unsafe { pg_sys::query_tree_walker(query, Some(is_below), (&raw mut place).cast(), 0) }
}

#[pg_guard]
unsafe extern "C-unwind" fn is_below(node: *mut pg_sys::Node, context: *mut std::ffi::c_void) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: the walker hands on valid nodes and the place it was given.
    unsafe {
        let place: *mut Place = context.cast();
        match (*node).type_ {
            pg_sys::NodeTag::T_Var => {
                let var: *mut pg_sys::Var = node.cast();
                (*var).varno == (*place).index
                    && (*var).varlevelsup == (*place).levels_up
                    && (*var).varattno < (*place).below
            }
            pg_sys::NodeTag::T_Query => {
                (*place).levels_up += 1;
                let found = pg_sys::query_tree_walker(node.cast(), Some(is_below), context, 0);
                (*place).levels_up -= 1;
                found
            }
            _ => pg_sys::expression_tree_walker(node, Some(is_below), context),
        }
    }
}

/// Puts a copy of the template in the entry's place.
///
/// # Safety
/// As for [`is_source`].
unsafe fn replace(
    query: *mut pg_sys::Query,
    index: i32,
    rte: *mut pg_sys::RangeTblEntry,
    template: &Template,
) {
    // SAFETY: by contract; the template's query is alive and is copied before it is changed.
    unsafe {
        let subquery: *mut pg_sys::Query = pg_sys::copyObjectImpl(template.query.cast()).cast();
        let rowmark = pg_sys::get_parse_rowmark(query, index as pg_sys::Index);
        let inner = PgList::<pg_sys::RangeTblEntry>::from_pg((*subquery).rtable).get_ptr(0);
        let inner = inner.expect("the template reads one table");
        if !(*rte).alias.is_null() {
            // Plans name the cache as the query names the foreign table.
            (*inner).alias = pg_sys::makeAlias((*(*rte).alias).aliasname, std::ptr::null_mut());
        }
        if !rowmark.is_null() {
            // The cache is entry 1 of the template. `pushedDown`, as for a view, lets it be pulled up.
            pg_sys::applyLockingClause(subquery, 1, (*rowmark).strength, (*rowmark).waitPolicy, true);
            (*inner).rellockmode = lock_mode(query, index);
            require_select_for_update(subquery, inner);
        }
        // A stored query may be older than the newest columns; a whole-row variable needs names for all.
        let names = &mut (*(*rte).eref).colnames;
        while (**names).length < (*(*subquery).targetList).length {
            let filler = pg_sys::makeString(pg_sys::pstrdup(c"?column?".as_ptr()));
            *names = pg_sys::lappend(*names, filler.cast());
        }
        // Somebody's operator must not see what they may not read, neither rows nor statistics.
        let is_refused = !Wanted::of(query, rte).is_allowed();
        keep_privilege_checks(subquery, rte);
        (*rte).rtekind = pg_sys::RTEKind::RTE_SUBQUERY;
        (*rte).subquery = subquery;
        (*rte).security_barrier = is_refused;
        (*rte).inh = false;
    }
}

/// A row lock needs the right to update, of the cache's owner here.
///
/// # Safety
/// `subquery` is valid and `inner` an entry of it.
#[cfg(feature = "pg15")]
unsafe fn require_select_for_update(_subquery: *mut pg_sys::Query, inner: *mut pg_sys::RangeTblEntry) {
    // SAFETY: by contract.
    unsafe { (*inner).requiredPerms |= pg_sys::ACL_UPDATE as pg_sys::AclMode };
}

#[cfg(not(feature = "pg15"))]
unsafe fn require_select_for_update(subquery: *mut pg_sys::Query, inner: *mut pg_sys::RangeTblEntry) {
    // SAFETY: by contract; every relation entry of an analyzed query has its permission info.
    unsafe {
        let info = pg_sys::getRTEPermissionInfo((*subquery).rteperminfos, inner);
        (*info).requiredPerms |= pg_sys::ACL_UPDATE as pg_sys::AclMode;
    }
}

/// Moves the entry's privilege checks to a carrier inside the subquery: an entry that is in the range table
/// and not in the join tree, which the executor checks and the planner does not read.
///
/// # Safety
/// `subquery` and `rte` are valid and may be changed.
#[cfg(feature = "pg15")]
unsafe fn keep_privilege_checks(subquery: *mut pg_sys::Query, rte: *mut pg_sys::RangeTblEntry) {
    // SAFETY: by contract.
    unsafe {
        let carrier: *mut pg_sys::RangeTblEntry = pg_sys::copyObjectImpl(rte.cast()).cast();
        (*carrier).inFromCl = false;
        (*carrier).inh = false;
        (*carrier).lateral = false;
        (*carrier).securityQuals = std::ptr::null_mut();
        (*subquery).rtable = pg_sys::lappend((*subquery).rtable, carrier.cast());
        (*rte).relid = pg_sys::InvalidOid;
        (*rte).relkind = 0;
        (*rte).rellockmode = 0;
        (*rte).requiredPerms = 0;
        (*rte).checkAsUser = pg_sys::InvalidOid;
        (*rte).selectedCols = std::ptr::null_mut();
        (*rte).insertedCols = std::ptr::null_mut();
        (*rte).updatedCols = std::ptr::null_mut();
        (*rte).extraUpdatedCols = std::ptr::null_mut();
    }
}

/// From 16 on a subquery entry keeps relation, lock mode and permission info itself, as a view's does.
///
/// # Safety
/// `rte` is valid and may be changed.
#[cfg(not(feature = "pg15"))]
unsafe fn keep_privilege_checks(_subquery: *mut pg_sys::Query, rte: *mut pg_sys::RangeTblEntry) {
    // SAFETY: by contract. The executor expects the kind of a view on such an entry.
    unsafe { (*rte).relkind = pg_sys::RELKIND_VIEW as std::ffi::c_char };
}
