//! Generated columns of a foreign table. Its cache does not have them: whoever reads the table computes them from the
//! columns that it has, with the rights of that user, as if the expressions stood in a view. The worker, which is a
//! superuser, runs nothing that a user wrote.

use std::ptr::null_mut;

use pgrx::{PgList, PgRelation, PgTupleDesc, pg_sys};

/// What a query on a cache says in place of a generated column until [`compute_in`] has been called.
pub const PLACEHOLDER: &str = "NULL";

/// The expression of a generated column over the columns of its relation, which is number 1 of the range table; with the
/// column's own collation.
///
/// # Safety
/// `relation` is open and has such a column.
unsafe fn expression(relation: pg_sys::Relation, number: i16) -> *mut pg_sys::Node {
    // SAFETY: by contract; the node made has the size of its type.
    unsafe {
        let expr = pg_sys::build_column_default(relation, i32::from(number));
        let tupdesc = PgTupleDesc::from_pg_unchecked((*relation).rd_att);
        let collation = tupdesc.get(number as usize - 1).expect("the column is there").attcollation;
        if collation == pg_sys::InvalidOid || collation == pg_sys::exprCollation(expr) {
            return expr;
        }
        let collate: *mut pg_sys::CollateExpr = pg_sys::palloc0(size_of::<pg_sys::CollateExpr>()).cast();
        (*collate).xpr.type_ = pg_sys::NodeTag::T_CollateExpr;
        (*collate).arg = expr.cast();
        (*collate).collOid = collation;
        (*collate).location = -1;
        collate.cast()
    }
}

/// Whether a generated column reads `tableoid`, which is another one in the cache.
pub fn reads_tableoid(relation: pg_sys::Oid, number: i16) -> bool {
    let mut columns = null_mut();
    // SAFETY: opening raises an ERROR if there is no such relation; numbers in the set are shifted.
    unsafe {
        let relation = PgRelation::with_lock(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        pg_sys::pull_varattnos(expression(relation.as_ptr(), number), 1, &mut columns);
        let tableoid = pg_sys::TableOidAttributeNumber - pg_sys::FirstLowInvalidHeapAttributeNumber;
        pg_sys::bms_is_member(tableoid, columns)
    }
}

/// Has a query on a cache, its only relation, compute generated columns: `places` are positions of its output with the
/// attribute numbers there, `numbers` the cache's attribute numbers by those of the foreign table, from 1.
///
/// # Safety
/// `query` is an analyzed query that the caller may change; the foreign table is locked.
pub(super) unsafe fn compute_in(
    query: *mut pg_sys::Query,
    foreign_table: pg_sys::Oid,
    places: &[(usize, i16)],
    numbers: &[i16],
) {
    if places.is_empty() {
        return;
    }
    // SAFETY: by contract; the map is as long as it says.
    unsafe {
        let relation = PgRelation::open(foreign_table);
        let map = pg_sys::make_attrmap(numbers.len() as i32);
        std::slice::from_raw_parts_mut((*map).attnums, numbers.len()).copy_from_slice(numbers);
        let outputs = PgList::<pg_sys::TargetEntry>::from_pg((*query).targetList);
        for (place, number) in places {
            let output = outputs.get_ptr(*place).expect("the query has this output");
            let expr = expression(relation.as_ptr(), *number);
            let mut has_whole_row = false; // which Postgres refuses
            let none = pg_sys::InvalidOid;
            (*output).expr = pg_sys::map_variable_attnos(expr, 1, 0, map, none, &mut has_whole_row).cast();
        }
    }
}

/// Computes the stored generated columns of rows. Virtual ones are computed by whoever reads the row.
pub(super) struct Generator {
    columns: Vec<(usize, *mut pg_sys::ExprState)>,
    context: *mut pg_sys::ExprContext,
}

impl Generator {
    /// For a relation; `None` if it has no such column. It lives as long as the executor state.
    ///
    /// # Safety
    /// `relation` is open and `estate` valid.
    pub unsafe fn new(relation: pg_sys::Relation, estate: *mut pg_sys::EState) -> Option<Self> {
        // SAFETY: by contract.
        unsafe {
            let constraints = (*(*relation).rd_att).constr;
            if constraints.is_null() || !(*constraints).has_generated_stored {
                return None;
            }
            let tupdesc = PgTupleDesc::from_pg_unchecked((*relation).rd_att);
            let stored = tupdesc.iter().filter(|attribute| {
                !attribute.attisdropped && attribute.attgenerated as u8 == pg_sys::ATTRIBUTE_GENERATED_STORED
            });
            let prepare = |attribute: &pg_sys::FormData_pg_attribute| {
                let expr = expression(relation, attribute.attnum);
                (attribute.attnum as usize - 1, pg_sys::ExecPrepareExpr(expr.cast(), estate))
            };
            Some(Self { columns: stored.map(prepare).collect(), context: pg_sys::CreateExprContext(estate) })
        }
    }

    /// Computes the columns of the row in a slot; values by reference are made in the current memory context.
    ///
    /// # Safety
    /// The slot has the relation's descriptor and holds a virtual tuple.
    pub unsafe fn compute(&self, slot: *mut pg_sys::TupleTableSlot) {
        // SAFETY: by contract. Generated columns do not read each other.
        unsafe {
            (*self.context).ecxt_scantuple = slot;
            // Not where the values of earlier rows are.
            pg_sys::MemoryContextReset((*self.context).ecxt_per_tuple_memory);
            for (place, expr) in &self.columns {
                let mut is_null = false;
                let value = pg_sys::ExecEvalExpr(*expr, self.context, &mut is_null);
                *(*slot).tts_values.add(*place) = value;
                *(*slot).tts_isnull.add(*place) = is_null;
            }
        }
    }
}
