//! A foreign scan that is a scan of the cache table underneath: planned as a query of its own ([`plan`]), kept as
//! a `PlannedStmt` inside the foreign scan's plan, and run by a nested executor ([`execute`]).
//!
//! Normal reads never come here, because the planner hook expands them; what comes is the target of an UPDATE
//! or DELETE, a foreign table inside an inheritance tree, system columns, and the first statement of a session whose
//! first statement loads the library. Rows are locked one by one where the outer query needs them ([`lock`]).

mod cursor;
pub(super) mod execute;
mod explain;
mod localize;
pub(super) mod lock;
pub(super) mod plan;

use pgrx::pg_sys;

use super::catalog;

/// The table behind a foreign table.
#[derive(Clone, Debug)]
pub struct Source {
    /// The foreign table.
    pub foreign_table: pg_sys::Oid,
    /// The cache table.
    pub cache: pg_sys::Oid,
    /// Its owner, as whom it is read.
    pub owner: pg_sys::Oid,
    /// Attribute numbers of the foreign table with the cache's column for each.
    pub columns: Vec<(i16, String)>,
    /// Attribute numbers of generated columns, which are computed from those.
    pub generated: Vec<i16>,
}

impl Source {
    /// The attribute number in the cache for each of the foreign table's, from 1; 0 if it has none.
    pub(super) fn cache_numbers(&self) -> Vec<i16> {
        let cache = catalog::attributes(self.cache);
        let width = self.columns.iter().map(|(number, _)| *number).max().unwrap_or(0);
        let mut numbers = vec![0; width as usize];
        for (number, name) in &self.columns {
            if let Some(attribute) = cache.iter().find(|attribute| attribute.name == *name) {
                numbers[*number as usize - 1] = attribute.number;
            }
        }
        numbers
    }
}

/// Positions of a plan's private list.
#[repr(i32)]
enum Private {
    /// The inner `PlannedStmt`.
    Plan = 0,
    /// An integer list: the foreign attribute number of each output column.
    Outputs = 1,
    /// An integer list of one: the number of the first of the plan's expressions as a parameter of the inner query.
    FirstParam = 2,
    /// An OID list of one: the cache table.
    Cache = 3,
}
