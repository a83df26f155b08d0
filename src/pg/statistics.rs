//! The planner's statistics on foreign tables that it scans: those of the cache's columns, which autovacuum keeps up to
//! date. Nobody analyzes a foreign table unasked.

use pgrx::{PgRelation, pg_sys};

use super::{catalog, rights};

/// Where the statistics on a foreign table's column are.
pub trait Columns {
    /// The table and column to look at instead of a relation's; called for every foreign table.
    fn behind(&self, relation: pg_sys::Oid, number: i16) -> Option<(pg_sys::Oid, i16)>;
}

unsafe extern "C-unwind" {
    /// syscache.c, as a function the planner can call.
    #[link_name = "ReleaseSysCache"]
    fn release(tuple: pg_sys::HeapTuple);
}

/// Gives the planner what is known about a column; `false` if it has to look by itself.
///
/// # Safety
/// Called as `get_relation_stats_hook`, with its arguments.
pub unsafe fn supply(
    root: *mut pg_sys::PlannerInfo,
    rte: *mut pg_sys::RangeTblEntry,
    number: i16,
    found: *mut pg_sys::VariableStatData,
    columns: &impl Columns,
) -> bool {
    // SAFETY: by contract; whoever asked releases the tuple.
    unsafe {
        let is_foreign = (*rte).relkind as u8 == pg_sys::RELKIND_FOREIGN_TABLE;
        if (*rte).rtekind != pg_sys::RTEKind::RTE_RELATION || !is_foreign || (*rte).inh || number <= 0 {
            return false;
        }
        let Some((table, number)) = columns.behind((*rte).relid, number) else { return false };
        let tuple = pg_sys::SearchSysCache3(
            pg_sys::SysCacheIdentifier::STATRELATTINH as i32,
            pg_sys::Datum::from(table),
            pg_sys::Datum::from(number),
            pg_sys::Datum::from(false),
        );
        if tuple.is_null() {
            return false;
        }
        (*found).statsTuple = tuple;
        (*found).freefunc = Some(release);
        // Operators of somebody's own get to see values only if all rows may be read, as for a local table.
        let entries = (*root).simple_rel_array_size as usize;
        let index = (1..entries).find(|index| *(*root).simple_rte_array.add(*index) == rte);
        let rel = index.map_or(std::ptr::null_mut(), |index| *(*root).simple_rel_array.add(index));
        (*found).acl_ok = (*rte).securityQuals.is_null() && !rel.is_null() && rights::may_read(root, rel);
        true
    }
}

/// The average width of a column in bytes; 0 if the planner has to look by itself.
pub fn width(relation: pg_sys::Oid, number: i16, columns: &impl Columns) -> i32 {
    if number <= 0 || catalog::relation_kind(relation) != Some(pg_sys::RELKIND_FOREIGN_TABLE) {
        return 0;
    }
    let Some((table, number)) = columns.behind(relation, number) else { return 0 };
    // SAFETY: a syscache lookup; 0 if nothing is known.
    unsafe { pg_sys::get_attavgwidth(table, number) }
}

/// The size of a table in pages and rows, as the planner estimates it.
pub fn size(table: pg_sys::Oid) -> (u32, f64) {
    let (mut pages, mut rows, mut visible) = (0, 0.0, 0.0);
    // SAFETY: opening raises an ERROR if the table is gone; the guard closes it. No widths are asked for.
    unsafe {
        let table = PgRelation::with_lock(table, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let widths = std::ptr::null_mut();
        pg_sys::estimate_rel_size(table.as_ptr(), widths, &mut pages, &mut rows, &mut visible);
    }
    (pages, rows)
}
