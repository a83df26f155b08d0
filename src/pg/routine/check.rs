//! Rows that must not be written: those that a view's CHECK OPTION, a policy or a constraint of the table refuses.
//!
//! Of a foreign table the executor looks at a view's CHECK OPTION when the row is written, and at everything else not at all
//! (`ExecInsert`, `ExecUpdate`). ServiceNow has the row then. So here is looked before, as far as can be told by then: what
//! only the instance knows, such as a number, may be anything.

use std::cell::OnceCell;
use std::ptr::null_mut;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgList, PgLogLevel, PgMemoryContexts, PgSqlErrorCode, PgTupleDesc, pg_sys};

use super::{Foreseen, Operation, Origin};
use crate::pg::catalog::text;
use crate::pg::tuple::OwnedScalar;

/// What refuses a row.
enum Rule {
    /// A view or a policy.
    Option(pg_sys::WCOKind::Type),
    /// A constraint of the table, of this name.
    Constraint(String),
}

/// A condition that is to hold.
struct Condition {
    rule: Rule,
    /// Attribute numbers of the columns it reads; 0 is the whole row.
    columns: Vec<i16>,
    expr: *mut pg_sys::ExprState,
}

/// What is to hold for the rows of a target.
struct Conditions {
    all: Vec<Condition>,
    /// Attribute numbers and names of columns that must not be NULL.
    not_null: Vec<(i16, String)>,
    /// Where rows are put to be looked at.
    slot: *mut pg_sys::TupleTableSlot,
}

/// Looks at the rows of a target before they are written.
pub(super) struct Checker {
    statement: *mut pg_sys::ModifyTableState,
    target: *mut pg_sys::ResultRelInfo,
    operation: Operation,
    /// The attribute number of the key, which is never NULL.
    key: i16,
    /// Found out when the first row comes: the executor has not prepared views' conditions before.
    conditions: OnceCell<Conditions>,
}

impl Checker {
    /// For a target of a statement; it must not outlive the statement.
    pub fn new(
        statement: *mut pg_sys::ModifyTableState,
        target: *mut pg_sys::ResultRelInfo,
        operation: Operation,
        key: i16,
    ) -> Self {
        Self { statement, target, operation, key, conditions: OnceCell::new() }
    }

    /// Whether there is anything to look at.
    ///
    /// # Safety
    /// The statement is being executed.
    pub unsafe fn is_wanted(&self) -> bool {
        // SAFETY: by contract.
        let conditions = unsafe { self.conditions() };
        !(conditions.all.is_empty() && conditions.not_null.is_empty())
    }

    /// Raises an ERROR if a row breaks a rule whatever the instance makes of it; `put` puts its values into a slot.
    ///
    /// # Safety
    /// The statement is being executed.
    pub unsafe fn check(
        &self,
        row: &Foreseen,
        put: impl FnOnce(*mut pg_sys::TupleTableSlot, &[OwnedScalar]),
    ) {
        // SAFETY: by contract; the slot has the relation's descriptor.
        unsafe {
            let conditions = self.conditions();
            put(conditions.slot, &row.columns);
            for (number, name) in &conditions.not_null {
                let is_null = row.columns[*number as usize - 1] == OwnedScalar::Null;
                if is_null && row.origin(*number) == Origin::Statement {
                    let relation = self.relation();
                    let message = format!(
                        "null value in column \"{name}\" of relation \"{relation}\" violates not-null constraint"
                    );
                    refuse(PgSqlErrorCode::ERRCODE_NOT_NULL_VIOLATION, message);
                }
            }
            let context = self.context();
            (*context).ecxt_scantuple = conditions.slot;
            for condition in &conditions.all {
                let origins = || condition.columns.iter().map(|number| row.origin(*number));
                if origins().any(|origin| origin == Origin::Instance) {
                    continue;
                }
                match &condition.rule {
                    Rule::Option(kind) => {
                        if !pg_sys::ExecQual(condition.expr, context) {
                            let estate = (*self.statement).ps.state;
                            pg_sys::ExecWithCheckOptions(*kind, self.target, conditions.slot, estate);
                        }
                    }
                    Rule::Constraint(name) => {
                        // What the row had before is for the instance to answer for.
                        let is_new = origins().any(|origin| origin == Origin::Statement);
                        if is_new && !pg_sys::ExecCheck(condition.expr, context) {
                            let relation = self.relation();
                            let message = format!(
                                "new row for relation \"{relation}\" violates check constraint \"{name}\""
                            );
                            refuse(PgSqlErrorCode::ERRCODE_CHECK_VIOLATION, message);
                        }
                    }
                }
            }
        }
    }

    /// Raises an ERROR if a row, as it was written, breaks a rule at which the executor does not look.
    ///
    /// # Safety
    /// The statement is being executed; the slot has the row.
    pub unsafe fn check_written(&self, slot: *mut pg_sys::TupleTableSlot) {
        // SAFETY: by contract.
        unsafe {
            let policy = policy_of(self.operation);
            let is_policy =
                |condition: &Condition| matches!(condition.rule, Rule::Option(kind) if kind == policy);
            if self.conditions().all.iter().any(is_policy) {
                pg_sys::ExecWithCheckOptions(policy, self.target, slot, (*self.statement).ps.state);
            }
        }
    }

    unsafe fn relation(&self) -> String {
        // SAFETY: the target is open.
        let name = unsafe { text((*(*(*self.target).ri_RelationDesc).rd_rel).relname.data.as_ptr()) };
        name.unwrap_or_default()
    }

    unsafe fn context(&self) -> *mut pg_sys::ExprContext {
        // SAFETY: the executor state of a statement that is being executed.
        unsafe {
            let estate = (*self.statement).ps.state;
            match (*estate).es_per_tuple_exprcontext.is_null() {
                true => pg_sys::MakePerTupleExprContext(estate),
                false => (*estate).es_per_tuple_exprcontext,
            }
        }
    }

    unsafe fn conditions(&self) -> &Conditions {
        // SAFETY: the statement is being executed; what is made lives as long as it does.
        self.conditions.get_or_init(|| unsafe {
            let estate = (*self.statement).ps.state;
            PgMemoryContexts::For((*estate).es_query_cxt).switch_to(|_| {
                let tupdesc = (*(*self.target).ri_RelationDesc).rd_att;
                let mut all = self.options();
                all.extend(self.constraints());
                let slot = pg_sys::ExecInitExtraTupleSlot(estate, tupdesc, &raw const pg_sys::TTSOpsVirtual);
                Conditions { all, not_null: self.not_null(), slot }
            })
        })
    }

    /// The conditions of views and policies.
    unsafe fn options(&self) -> Vec<Condition> {
        // SAFETY: the executor's own lists. Partitions to which rows are routed have no number of their own, and their
        // conditions are about that of the statement's target.
        unsafe {
            let (statement, target) = (self.statement, self.target);
            let routed = (*target).ri_RangeTableIndex == 0 && !(*statement).resultRelInfo.is_null();
            let named = if routed { (*statement).resultRelInfo } else { target };
            let number = (*named).ri_RangeTableIndex;
            let kinds = [pg_sys::WCOKind::WCO_VIEW_CHECK, policy_of(self.operation)];
            let options = PgList::<pg_sys::WithCheckOption>::from_pg((*target).ri_WithCheckOptions);
            let mut conditions = Vec::new();
            for option in options.iter_ptr().filter(|option| kinds.contains(&(**option).kind)) {
                for clause in PgList::<pg_sys::Node>::from_pg((*option).qual.cast()).iter_ptr() {
                    let alone = pg_sys::lappend(null_mut(), clause.cast());
                    conditions.push(Condition {
                        rule: Rule::Option((*option).kind),
                        columns: columns_of(clause, number),
                        expr: pg_sys::ExecInitQual(alone, &raw mut (*statement).ps),
                    });
                }
            }
            conditions
        }
    }

    /// The table's own CHECK constraints.
    unsafe fn constraints(&self) -> Vec<Condition> {
        // SAFETY: the target is open; its expressions are about relation number 1.
        unsafe {
            let constraints = (*(*(*self.target).ri_RelationDesc).rd_att).constr;
            if constraints.is_null() || self.operation == Operation::Delete {
                return Vec::new();
            }
            let checks = (0..usize::from((*constraints).num_check)).map(|i| &*(*constraints).check.add(i));
            checks
                .filter(|check| is_enforced(check))
                .map(|check| {
                    let node: *mut pg_sys::Node = pg_sys::stringToNode(check.ccbin).cast();
                    Condition {
                        rule: Rule::Constraint(text(check.ccname).unwrap_or_default()),
                        columns: columns_of(node, 1),
                        expr: pg_sys::ExecPrepareExpr(node.cast(), (*self.statement).ps.state),
                    }
                })
                .collect()
        }
    }

    unsafe fn not_null(&self) -> Vec<(i16, String)> {
        // SAFETY: the target is open.
        let tupdesc = unsafe { PgTupleDesc::from_pg_unchecked((*(*self.target).ri_RelationDesc).rd_att) };
        let is_not_null =
            |a: &&pg_sys::FormData_pg_attribute| a.attnotnull && !a.attisdropped && a.attnum != self.key;
        tupdesc.iter().filter(is_not_null).map(|a| (a.attnum, a.name().to_owned())).collect()
    }
}

fn refuse(code: PgSqlErrorCode, message: String) -> ! {
    let report = ErrorReport::new(code, message, "").set_detail("The row was not sent to ServiceNow.");
    report.report(PgLogLevel::ERROR);
    unreachable!("an ERROR was raised")
}

/// The kind of a policy's condition for new rows.
fn policy_of(operation: Operation) -> pg_sys::WCOKind::Type {
    match operation {
        Operation::Update => pg_sys::WCOKind::WCO_RLS_UPDATE_CHECK,
        _ => pg_sys::WCOKind::WCO_RLS_INSERT_CHECK,
    }
}

#[cfg(feature = "pg18")]
fn is_enforced(check: &pg_sys::ConstrCheck) -> bool {
    check.ccenforced
}

#[cfg(not(feature = "pg18"))]
fn is_enforced(_check: &pg_sys::ConstrCheck) -> bool {
    true
}

/// The attribute numbers of the columns that an expression reads of a relation.
///
/// # Safety
/// An expression that is planned, or has no sub-selects.
unsafe fn columns_of(node: *mut pg_sys::Node, relation: pg_sys::Index) -> Vec<i16> {
    let (mut columns, mut numbers) = (null_mut(), Vec::new());
    // SAFETY: by contract; numbers in the set are shifted.
    unsafe {
        pg_sys::pull_varattnos(node, relation, &mut columns);
        let mut member = pg_sys::bms_next_member(columns, -1);
        while member >= 0 {
            numbers.push((member + pg_sys::FirstLowInvalidHeapAttributeNumber) as i16);
            member = pg_sys::bms_next_member(columns, member);
        }
    }
    numbers
}
