//! Whether a database's SQL objects are those that this library was made for.
//!
//! They differ from when another version is installed until `ALTER EXTENSION … UPDATE`, and after that in processes that
//! have loaded the library before.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgSqlErrorCode as Sql, pg_sys};

use super::{announce, get, read};
use crate::error::error;
use crate::pg;

/// The version of the SQL objects that this library knows.
const KNOWN: &str = env!("CARGO_PKG_VERSION");

/// The ERROR if the extension is there in another version.
pub fn mismatch() -> Option<ErrorReport> {
    let installed: Option<String> = pg::xact::with_latest_snapshot(|| {
        read(
            "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'servicenow_fdw'",
            &[],
            |mut rows| rows.next().and_then(|row| get(&row, 1)),
        )
    });
    let installed = installed.filter(|version| version != KNOWN)?;
    let report = error(
        Sql::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("extension \"servicenow_fdw\" has version {installed} and its library {KNOWN}"),
    );
    Some(report.set_hint(if is_before(&installed, KNOWN) {
        "Run ALTER EXTENSION servicenow_fdw UPDATE."
    } else {
        "Start a new session. If the library is preloaded, restart the server."
    }))
}

/// Has every process look at the version again, at commit.
pub fn announce_version() {
    let tables = read("SELECT foreign_table FROM servicenow.sync_table", &[], |rows| {
        rows.filter_map(|row| get::<pg_sys::Oid>(&row, 1)).collect::<Vec<_>>()
    });
    tables.into_iter().for_each(announce);
}

/// Whether one version came before another, by their numbers.
fn is_before(one: &str, other: &str) -> bool {
    let numbers = |version: &str| -> Vec<u64> {
        version.split(['.', '-']).map_while(|part| part.parse().ok()).collect()
    };
    numbers(one) < numbers(other)
}

#[cfg(test)]
mod tests {
    use super::is_before;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(is_before("0.9.0", "0.10.0"));
        assert!(is_before("0.10.0", "1.0.0"));
        assert!(!is_before("0.10.0", "0.9.9"));
        assert!(!is_before("0.1.0", "0.1.0"));
    }
}
