//! Queries on the extension's own tables by way of SPI, where pgrx would take another snapshot than the one that was
//! meant: as soon as the transaction has a number, it has queries run like statements that change something.

use std::ffi::CString;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::spi::{Spi, SpiHeapTupleData};

use super::xact;

/// The rows of a query's answer.
pub struct Rows {
    table: *mut pg_sys::SPITupleTable,
    next: u64,
    count: u64,
}

impl Iterator for Rows {
    type Item = SpiHeapTupleData<'static>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.count {
            return None;
        }
        // SAFETY: the table has so many rows, and lives until SPI is left, which the rows do not outlive: they are
        // handed to a function that is called before.
        let row = unsafe {
            let tuple = *(*self.table).vals.add(self.next as usize);
            SpiHeapTupleData::new((*self.table).tupdesc, tuple)
        };
        self.next += 1;
        row.ok().flatten()
    }
}

/// Runs a query that changes nothing. It sees what the current statement sees, and what the transaction has written
/// before; within [`xact::with_latest_snapshot`] what that says, and in a parallel query what its leader sees.
pub fn select<R>(sql: &str, args: &[DatumWithOid<'_>], f: impl FnOnce(Rows) -> R) -> R {
    let sql = CString::new(sql).expect("the extension's own text holds no NUL");
    let mut types: Vec<pg_sys::Oid> = args.iter().map(DatumWithOid::oid).collect();
    let value = |arg: &DatumWithOid<'_>| arg.datum().map(|datum| datum.sans_lifetime());
    let mut values: Vec<_> = args.iter().map(|arg| value(arg).unwrap_or(pg_sys::Datum::from(0))).collect();
    let null = |arg: &DatumWithOid<'_>| if arg.datum().is_none() { b'n' } else { b' ' };
    let nulls: Vec<_> = args.iter().map(|arg| null(arg) as std::ffi::c_char).collect();
    Spi::connect(|_client| {
        // SAFETY: SPI is connected; all arrays have a place for each argument. The statement's ERRORs are raised.
        let rows = unsafe {
            let as_it_is = xact::sees_latest()
                || pg_sys::IsInParallelMode()
                || pg_sys::GetTopTransactionIdIfAny() == pg_sys::InvalidTransactionId;
            let status = pg_sys::SPI_execute_with_args(
                sql.as_ptr(),
                args.len() as i32,
                types.as_mut_ptr(),
                values.as_mut_ptr(),
                nulls.as_ptr(),
                as_it_is,
                0,
            );
            assert!(status == pg_sys::SPI_OK_SELECT as i32, "a query gives rows, not {status}");
            Rows { table: pg_sys::SPI_tuptable, next: 0, count: pg_sys::SPI_processed }
        };
        f(rows)
    })
}

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    use crate::pg::xact::with_latest_snapshot;

    #[pg_test]
    fn what_the_transaction_has_written_is_seen() {
        Spi::run("CREATE TABLE t (n int); INSERT INTO t VALUES (1), (NULL)").expect("a table");
        let sum = |least: Option<i32>| {
            let sql = "SELECT n FROM t WHERE n >= $1 OR $1 IS NULL";
            super::select(sql, &[least.into()], |rows| {
                rows.map(|row| row.get::<i32>(1).expect("a number").unwrap_or(100)).sum::<i32>()
            })
        };
        assert_eq!((sum(None), sum(Some(1)), sum(Some(2))), (101, 1, 0));
        assert_eq!(with_latest_snapshot(|| sum(None)), 101);
    }
}
