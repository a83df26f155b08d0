//! How far the work has come that repairs what polls cannot see, and the hidden records it has met.

use std::time::{Duration, SystemTime};

use pgrx::pg_sys;
use servicenow::sync::range::Range;
use servicenow::sync::store::{ScrubPosition, Upkeep};
use servicenow::value::SysId;

use super::{get, read, write};

/// Where a table's upkeep stands.
pub fn upkeep(relation: pg_sys::Oid) -> Upkeep {
    let moment = |seconds: f64| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds.max(0.0));
    read(
        "SELECT extract(epoch FROM last_reconcile_at)::float8, extract(epoch FROM scrub_began_at)::float8, scrub_position,
                scrub_read, scrub_total
         FROM servicenow.sync_table WHERE foreign_table = $1",
        &[relation.into()],
        |mut rows| {
            let row = rows.next();
            row.map(|row| Upkeep {
                reconciled: get(&row, 1).map(moment),
                scrub: get(&row, 2).map(|began| ScrubPosition {
                    began: moment(began),
                    after: get::<String>(&row, 3).map(SysId::new),
                    read: get::<i64>(&row, 4).unwrap_or_default().unsigned_abs(),
                    total: get::<i64>(&row, 5).unwrap_or_default().unsigned_abs(),
                }),
            })
        },
    )
    .unwrap_or_default()
}

/// How many records of which ranges the instance counts and does not show.
pub fn hidden(relation: pg_sys::Oid) -> Vec<(Range, u64)> {
    read(
        "SELECT lower_bound, upper_bound, count FROM servicenow.hidden WHERE foreign_table = $1",
        &[relation.into()],
        |rows| {
            let bound = |row: &_, column| get::<String>(row, column).map(SysId::new);
            rows.map(|row| {
                let range = Range { lower: bound(&row, 1), upper: bound(&row, 2) };
                (range, get::<i64>(&row, 3).unwrap_or_default().unsigned_abs())
            })
            .collect()
        },
    )
}

/// Remembers hidden records of a range, in place of what was remembered of every range that overlaps with it.
pub fn remember_hidden(relation: pg_sys::Oid, range: &Range, count: u64) {
    let text = |bound: &Option<SysId>| bound.as_ref().map(|id| id.as_str().to_owned());
    for (other, _) in hidden(relation).into_iter().filter(|(other, _)| other.overlaps(range)) {
        write(
            "DELETE FROM servicenow.hidden
             WHERE foreign_table = $1 AND lower_bound IS NOT DISTINCT FROM $2 AND upper_bound IS NOT DISTINCT FROM $3",
            &[relation.into(), text(&other.lower).into(), text(&other.upper).into()],
        );
    }
    if count > 0 {
        write(
            "INSERT INTO servicenow.hidden (foreign_table, lower_bound, upper_bound, count) VALUES ($1, $2, $3, $4)",
            &[
                relation.into(),
                text(&range.lower).into(),
                text(&range.upper).into(),
                i64::try_from(count).unwrap_or(i64::MAX).into(),
            ],
        );
    }
}

/// Forgets all of them.
pub fn forget_hidden(relation: pg_sys::Oid) {
    write("DELETE FROM servicenow.hidden WHERE foreign_table = $1", &[relation.into()]);
}
