//! Servers that have got another OID: pg_upgrade keeps the OIDs of tables and not those of servers.

use pgrx::pg_sys;

use super::{WRAPPER, get, read, write};

/// The extension's tables with a column `server`, in an order that references do not forbid.
const TABLES: [&str; 10] = [
    "sync_server",
    "capture",
    "suspect",
    "dictionary",
    "request_stat",
    "call_count",
    "drift",
    "failure",
    "mail_event",
    "mail",
];

/// Takes note of what servers are called, and hands what is known of one that is gone on to the one that is called the same
/// now and is at the same address.
pub fn follow_servers() {
    let renumbered: Vec<(pg_sys::Oid, pg_sys::Oid)> = read(
        "SELECT v.server, s.oid
         FROM servicenow.sync_server v
              JOIN pg_catalog.pg_foreign_server s ON s.srvname = v.name
              JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw AND w.fdwname = $1
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server o WHERE o.oid = v.server)
           AND EXISTS (SELECT FROM pg_catalog.pg_options_to_table(s.srvoptions)
                       WHERE option_name = 'instance_url' AND rtrim(option_value, '/') = rtrim(v.source_instance, '/'))",
        &[WRAPPER.to_string_lossy().into_owned().into()],
        |rows| rows.filter_map(|row| Some((get(&row, 1)?, get(&row, 2)?))).collect(),
    );
    for (before, now) in renumbered {
        for table in TABLES {
            write(&format!("DELETE FROM servicenow.{table} WHERE server = $1"), &[now.into()]);
            write(
                &format!("UPDATE servicenow.{table} SET server = $2 WHERE server = $1"),
                &[before.into(), now.into()],
            );
        }
    }
    write(
        "UPDATE servicenow.sync_server v SET name = s.srvname FROM pg_catalog.pg_foreign_server s
         WHERE s.oid = v.server AND v.name IS DISTINCT FROM s.srvname",
        &[],
    );
}
