//! `servicenow._sync_cdc`.

use std::time::Duration;

use pgrx::pg_sys;

use super::{Mirror, write};

/// One row of it.
#[derive(Debug)]
pub struct LoggedChange {
    /// The record.
    pub sys_id: String,
    /// `insert`, `update` or `delete`.
    pub op: &'static str,
    /// A JSON object: column to `{"before": …, "after": …}`.
    pub changed: String,
    /// The record's `sys_updated_on`, in seconds since 1970, if the foreign table shows it.
    pub updated_on: Option<f64>,
    /// The record's `sys_updated_by`, if the foreign table shows it.
    pub updated_by: Option<String>,
}

/// Adds rows.
pub fn log_changes(mirror: &Mirror, source: &str, changes: Vec<LoggedChange>) {
    let (mut ids, mut ops, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    let (mut updated_on, mut updated_by) = (Vec::new(), Vec::new());
    for change in changes {
        ids.push(change.sys_id);
        ops.push(change.op);
        changed.push(change.changed);
        updated_on.push(change.updated_on);
        updated_by.push(change.updated_by);
    }
    write(
        "INSERT INTO servicenow._sync_cdc
             (server, foreign_table, source, sys_id, op, changed, sys_updated_on, sys_updated_by)
         SELECT s.srvname, $2, $3, c.sys_id, c.op, c.changed::jsonb, to_timestamp(c.updated_on), c.updated_by
         FROM pg_catalog.pg_foreign_server s,
              unnest($4::text[], $5::text[], $6::text[], $7::float8[], $8::text[])
                  AS c (sys_id, op, changed, updated_on, updated_by)
         WHERE s.oid = $1",
        &[
            mirror.server.into(),
            mirror.foreign_table.into(),
            source.into(),
            ids.into(),
            ops.into(),
            changed.into(),
            updated_on.into(),
            updated_by.into(),
        ],
    );
}

/// Rows deleted at a time, so that no transaction takes long.
const AT_A_TIME: i64 = 10_000;

/// Deletes rows that are older than that; gives back whether there may be more.
pub fn forget_old_changes(age: Duration) -> bool {
    let deleted = write(
        "DELETE FROM servicenow._sync_cdc WHERE seq IN (
             SELECT seq FROM servicenow._sync_cdc
             WHERE at < clock_timestamp() - $1 * interval '1 second' ORDER BY at LIMIT $2)",
        &[age.as_secs_f64().into(), AT_A_TIME.into()],
    );
    deleted as i64 == AT_A_TIME
}

/// Deletes all rows of a foreign table.
pub fn forget_changes_of(relation: pg_sys::Oid) {
    write("DELETE FROM servicenow._sync_cdc WHERE foreign_table = $1", &[relation.into()]);
}
