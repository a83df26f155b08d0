//! Clauses of the outer query as clauses of the inner one, which reads the cache.

use std::ffi::c_void;
use std::ptr::null_mut;

use pgrx::{PgList, pg_guard, pg_sys};

use crate::pg::system;

/// Turns clauses of the outer query into clauses of the inner one.
pub(super) struct Localizer {
    /// The relation in the outer query; in the inner one it is number 1.
    relid: i32,
    /// Attribute numbers in the cache by those in the foreign table, from 1.
    numbers: Vec<i16>,
    /// Expressions of the outer query met so far, each once.
    pub(super) exprs: *mut pg_sys::List,
    /// The number of the first of them as an external parameter.
    pub(super) first_param: i32,
}

impl Localizer {
    /// For clauses of the outer query on a relation whose attributes have these numbers in the cache.
    ///
    /// # Safety
    /// `root` and `rel` are those of the planner; `clauses` is a list of valid expressions.
    pub(super) unsafe fn new(
        root: *mut pg_sys::PlannerInfo,
        rel: *mut pg_sys::RelOptInfo,
        numbers: Vec<i16>,
        clauses: *mut pg_sys::List,
    ) -> Self {
        // SAFETY: by contract.
        unsafe {
            // Numbers the outer query has for parameters of its own must not be taken: the planner puts in values
            // for those it is given.
            let bound = (*(*root).glob).boundParams;
            let mut first_param = if bound.is_null() { 1 } else { (*bound).numParams + 1 };
            highest_extern_param(clauses.cast(), (&raw mut first_param).cast());
            Self { relid: (*rel).relid as i32, numbers, exprs: null_mut(), first_param }
        }
    }

    /// A clause of the outer query as one of the inner query; what it needs from outside is added to [`Self::exprs`].
    ///
    /// # Safety
    /// `clause` is a valid expression whose variables of the relation are columns of the cache.
    pub(super) unsafe fn clause(&mut self, clause: *mut pg_sys::Node) -> *mut pg_sys::Node {
        // SAFETY: by contract.
        unsafe { localize(clause, (&raw mut *self).cast()) }
    }

    /// A parameter that stands for an expression of the outer query; for WHERE CURRENT OF, one that stands for the place
    /// in the cache.
    ///
    /// # Safety
    /// `node` is a valid expression.
    unsafe fn parameter(&mut self, node: *mut pg_sys::Node) -> *mut pg_sys::Node {
        // SAFETY: by contract; the node made has the size of its type.
        unsafe {
            let is_place = (*node).type_ == pg_sys::NodeTag::T_CurrentOfExpr;
            let same = |known: &*mut pg_sys::Node| pg_sys::equal((*known).cast(), node.cast());
            let position = PgList::<pg_sys::Node>::from_pg(self.exprs).iter_ptr().position(|e| same(&e));
            let position = position.unwrap_or_else(|| {
                self.exprs = pg_sys::lappend(self.exprs, pg_sys::copyObjectImpl(node.cast()));
                (*self.exprs).length as usize - 1
            });
            let param: *mut pg_sys::Param = pg_sys::palloc0(size_of::<pg_sys::Param>()).cast();
            (*param).xpr.type_ = pg_sys::NodeTag::T_Param;
            (*param).paramkind = pg_sys::ParamKind::PARAM_EXTERN;
            (*param).paramid = self.first_param + position as i32;
            (*param).paramtype = if is_place { pg_sys::TIDOID } else { pg_sys::exprType(node) };
            (*param).paramtypmod = pg_sys::exprTypmod(node);
            (*param).paramcollid = pg_sys::exprCollation(node);
            (*param).location = -1;
            param.cast()
        }
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

/// A copy of an expression for the inner query: the relation's columns become the cache's, executor parameters and
/// other relations' columns become parameters.
#[pg_guard]
unsafe extern "C-unwind" fn localize(node: *mut pg_sys::Node, context: *mut c_void) -> *mut pg_sys::Node {
    if node.is_null() {
        return node;
    }
    // SAFETY: the mutator hands on valid nodes and the localizer it was given.
    unsafe {
        let localizer: *mut Localizer = context.cast();
        match (*node).type_ {
            pg_sys::NodeTag::T_Var => {
                let var: *mut pg_sys::Var = node.cast();
                if (*var).varno != (*localizer).relid {
                    return (*localizer).parameter(node);
                }
                let copy: *mut pg_sys::Var = pg_sys::copyObjectImpl(var.cast()).cast();
                (*copy).varno = 1;
                (*copy).varattno = (&(*localizer).numbers)[(*var).varattno as usize - 1];
                (*copy).varnosyn = 1;
                (*copy).varattnosyn = (*copy).varattno;
                without_nulling_relations(copy);
                copy.cast()
            }
            pg_sys::NodeTag::T_CurrentOfExpr => {
                let ctid = pg_sys::makeVar(1, system::CTID, pg_sys::TIDOID, -1, pg_sys::InvalidOid, 0);
                pg_sys::make_opclause(
                    pg_sys::Oid::from(pg_sys::TIDEqualOperator),
                    pg_sys::BOOLOID,
                    false,
                    ctid.cast(),
                    (*localizer).parameter(node).cast(),
                    pg_sys::InvalidOid,
                    pg_sys::InvalidOid,
                )
                .cast()
            }
            pg_sys::NodeTag::T_PlaceHolderVar => {
                let holder: *mut pg_sys::PlaceHolderVar = node.cast();
                if pg_sys::bms_is_member((*localizer).relid, (*holder).phrels) {
                    // What the scan itself computes: as below an outer join that turned out to be an inner one.
                    localize((*holder).phexpr.cast(), context)
                } else {
                    (*localizer).parameter(node)
                }
            }
            pg_sys::NodeTag::T_Param
                if (*node.cast::<pg_sys::Param>()).paramkind == pg_sys::ParamKind::PARAM_EXEC =>
            {
                (*localizer).parameter(node)
            }
            _ => mutate(node, localize, context),
        }
    }
}

/// In the inner query no outer join is left that could make the column NULL.
///
/// # Safety
/// `var` is valid and may be changed.
#[cfg(feature = "pg15")]
unsafe fn without_nulling_relations(_var: *mut pg_sys::Var) {}

#[cfg(not(feature = "pg15"))]
unsafe fn without_nulling_relations(var: *mut pg_sys::Var) {
    // SAFETY: by contract.
    unsafe { (*var).varnullingrels = null_mut() };
}

/// What a mutator of expressions looks like.
type Mutator = unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut c_void) -> *mut pg_sys::Node;

/// # Safety
/// `node` is valid, and `mutator` takes the context.
#[cfg(feature = "pg15")]
unsafe fn mutate(node: *mut pg_sys::Node, mutator: Mutator, context: *mut c_void) -> *mut pg_sys::Node {
    // SAFETY: by contract. C before version 16 declares the function without its parameters.
    unsafe {
        let undeclared: unsafe extern "C-unwind" fn() -> *mut pg_sys::Node = std::mem::transmute(mutator);
        pg_sys::expression_tree_mutator(node, Some(undeclared), context)
    }
}

/// # Safety
/// `node` is valid, and `mutator` takes the context.
#[cfg(not(feature = "pg15"))]
unsafe fn mutate(node: *mut pg_sys::Node, mutator: Mutator, context: *mut c_void) -> *mut pg_sys::Node {
    // SAFETY: by contract.
    unsafe { pg_sys::expression_tree_mutator_impl(node, Some(mutator), context) }
}
