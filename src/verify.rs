//! The proof that a cache is complete: everything the instance shows, compared with what is here. Changes nothing.

use std::collections::HashSet;
use std::rc::Rc;

use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use servicenow::sync::compare::Comparison;
use servicenow::sync::range::Range;
use servicenow::sync::verify::Inspection;

use crate::cache::apply;
use crate::catalog::{self, Mirror};
use crate::connection::{Connection, workers_connection};
use crate::error::{error, raise};
use crate::pg;

/// Records compared at a time, about.
const RECORDS_PER_RANGE: u64 = 20_000;
/// Records read at a time.
const PAGE: u32 = 1_000;
/// The most ranges a table is compared in.
const MOST_RANGES: u64 = 256;

/// What came of a range of `sys_id`s.
#[derive(Debug)]
pub struct Verified {
    /// Its bounds, as Postgres writes ranges.
    pub range: String,
    /// Records the instance counts.
    pub remote: i64,
    /// Rows of the cache.
    pub local: i64,
    /// Records the instance counts and does not show.
    pub hidden: i64,
    /// Records the instance shows that the cache does not have.
    pub missing: i64,
    /// Rows of the cache that the instance does not show.
    pub extra: i64,
    /// Rows that are there in another version than the instance shows, or with other values in the same.
    pub differing: i64,
}

/// Compares a whole table, range by range.
pub fn verify(relation: pg_sys::Oid) -> impl Iterator<Item = Verified> {
    let mirror = catalog::mirror_or_error(relation);
    if !pg::session::may_select_some_of(relation) {
        let message = format!("permission denied for foreign table {}", catalog::qualified(relation));
        raise(error(Sql::ERRCODE_INSUFFICIENT_PRIVILEGE, message));
    }
    let connection = workers_connection(mirror.server);
    let what = format!("count the records of table \"{}\"", mirror.table);
    let (table, query) = (mirror.table.clone(), mirror.query.clone());
    let total = connection.call(&what, false, |client| async move { client.count(&table, &query).await });
    let count = (total / RECORDS_PER_RANGE).clamp(1, MOST_RANGES);
    let ranges = Range::partition(count as usize);
    ranges.into_iter().map(move |range| one(&mirror, &connection, range))
}

fn one(mirror: &Rc<Mirror>, connection: &Connection, range: Range) -> Verified {
    let what = format!("verify table \"{}\"", mirror.table);
    let (table, query, layout) = (mirror.table.clone(), mirror.query.clone(), mirror.layout.clone());
    let mut inspection = Inspection::new(table, query, layout, range.clone(), PAGE);
    // The statement's snapshot is older than what the instance is asked.
    let mut differing: HashSet<String> = HashSet::new();
    loop {
        let page = connection.call(&what, false, |client| async move {
            let page = inspection.next(&client).await?;
            Ok((inspection, page))
        });
        inspection = page.0;
        let Some(rows) = page.1 else { break };
        differing.extend(pg::xact::with_latest_snapshot(|| apply::differing(mirror, &rows)));
    }
    let visible = inspection.shown.records.len() as i64;
    let mut local = 0;
    let counted = i64::try_from(inspection.counted).unwrap_or(i64::MAX);
    let mut comparison = Comparison::new(vec![inspection.shown]);
    pg::xact::with_latest_snapshot(|| {
        apply::each_version(mirror, &range, |id, version| {
            local += 1;
            comparison.stored(id, version);
        });
    });
    let difference = comparison.finish().pop().unwrap_or_default();
    differing.extend(difference.differing.iter().map(|(id, _)| id.as_str().to_owned()));
    let bound =
        |id: Option<servicenow::value::SysId>| id.map(|id| id.as_str().to_owned()).unwrap_or_default();
    let bracket = if range.lower.is_some() { '[' } else { '(' };
    Verified {
        range: format!("{bracket}{},{})", bound(range.lower), bound(range.upper)),
        remote: counted,
        local,
        hidden: (counted - visible).max(0),
        missing: difference.missing.len() as i64,
        extra: difference.extra.len() as i64,
        differing: differing.len() as i64,
    }
}
