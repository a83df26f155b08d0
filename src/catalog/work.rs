//! What the worker has to do, and where it stands.

use pgrx::pg_sys;
use servicenow::sync::range::Range;
use servicenow::sync::store::{OpenRange, Position};
use servicenow::value::SysId;

use super::{get, read};

/// A table's place in the worker's work.
#[derive(Clone, Debug)]
pub struct Work {
    /// The foreign table.
    pub foreign_table: pg_sys::Oid,
    /// Its server.
    pub server: pg_sys::Oid,
    /// See `sync_table.generation`.
    pub generation: i64,
}

/// Every mirrored table.
pub fn work() -> Vec<Work> {
    read(
        "SELECT t.foreign_table, f.ftserver, t.generation
         FROM servicenow.sync_table t JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table",
        &[],
        |rows| {
            rows.map(|row| Work {
                foreign_table: get(&row, 1).unwrap_or(pg_sys::InvalidOid),
                server: get(&row, 2).unwrap_or(pg_sys::InvalidOid),
                generation: get(&row, 3).unwrap_or_default(),
            })
            .collect()
        },
    )
}

/// Where a mirror stands.
pub fn position(relation: pg_sys::Oid) -> Option<Position> {
    let (phase, refill, watermark): (String, bool, i64) = read(
        "SELECT phase, refill, watermark FROM servicenow.sync_table WHERE foreign_table = $1",
        &[relation.into()],
        |mut rows| {
            rows.next().map(|row| {
                (get(&row, 1).unwrap_or_default(), get(&row, 2).unwrap_or(false), get(&row, 3).unwrap_or(0))
            })
        },
    )?;
    Some(match phase.as_str() {
        "pending" => Position::Start { refill },
        "backfill" | "resync" => Position::Filling { refill, open: open_ranges(relation), since: watermark },
        _ => Position::Following { watermark },
    })
}

fn open_ranges(relation: pg_sys::Oid) -> Vec<OpenRange> {
    read(
        "SELECT number, lower_bound, upper_bound, position FROM servicenow.sync_range
         WHERE foreign_table = $1 ORDER BY number",
        &[relation.into()],
        |rows| {
            let id = |row: &_, column| get::<String>(row, column).map(SysId::new);
            rows.map(|row| OpenRange {
                number: get(&row, 1).unwrap_or_default(),
                range: Range { lower: id(&row, 2), upper: id(&row, 3) },
                after: id(&row, 4),
            })
            .collect()
        },
    )
}

/// The second from which on a server's deletions have not been read.
pub fn deletes_since(server: pg_sys::Oid) -> Option<i64> {
    read(
        "SELECT deletes_watermark FROM servicenow.sync_server WHERE server = $1",
        &[server.into()],
        |mut rows| rows.next().and_then(|row| get(&row, 1)),
    )
}

/// The second from which on changes of a server's metadata have not been read; before the first reading, from the first
/// fill on.
pub fn metadata_since(server: pg_sys::Oid) -> Option<i64> {
    read(
        "SELECT coalesce(v.metadata_watermark,
                         (SELECT least(min(t.watermark), min(extract(epoch FROM t.fill_started_at)::bigint))
                          FROM servicenow.sync_table t JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
                          WHERE f.ftserver = v.server))
         FROM servicenow.sync_server v WHERE v.server = $1",
        &[server.into()],
        |mut rows| rows.next().and_then(|row| get(&row, 1)),
    )
}
