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

/// Takes note of what servers are called, and hands what is known of one on to the one that is called the same now and is at
/// the same address. Its old OID may be another server's now; if that is at the same address and new by its name, the
/// server was renamed.
pub fn follow_servers() {
    let renumbered: Vec<(pg_sys::Oid, pg_sys::Oid)> = read(
        "WITH servers AS (
             SELECT s.oid, s.srvname, (SELECT rtrim(option_value, '/') FROM pg_catalog.pg_options_to_table(s.srvoptions)
                                       WHERE option_name = 'instance_url') AS address
             FROM pg_catalog.pg_foreign_server s
                  JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw AND w.fdwname = $1)
         SELECT v.server, s.oid
         FROM servicenow.sync_server v
              JOIN servers s ON s.srvname = v.name AND s.oid <> v.server
                                AND s.address = rtrim(v.source_instance, '/')
         WHERE NOT EXISTS (SELECT FROM servers o WHERE o.oid = v.server AND o.address = rtrim(v.source_instance, '/')
                               AND NOT EXISTS (SELECT FROM servicenow.sync_server k WHERE k.name = o.srvname))",
        &[WRAPPER.to_string_lossy().into_owned().into()],
        |rows| rows.filter_map(|row| Some((get(&row, 1)?, get(&row, 2)?))).collect(),
    );
    if !renumbered.is_empty() {
        let (before, now): (Vec<_>, Vec<_>) = renumbered.into_iter().unzip();
        TABLES.iter().for_each(|table| renumber(table, &before, &now));
    }
    write(
        "UPDATE servicenow.sync_server v SET name = s.srvname FROM pg_catalog.pg_foreign_server s
         WHERE s.oid = v.server AND v.name IS DISTINCT FROM s.srvname",
        &[],
    );
}

/// Hands the rows of servers on to others. By way of numbers that are nobody's: one's new OID may be the old one of another.
fn renumber(table: &str, before: &[pg_sys::Oid], now: &[pg_sys::Oid]) {
    const NOBODYS: &str = "(4294967295 - m.n)::oid";
    write(
        &format!(
            "UPDATE servicenow.{table} t SET server = {NOBODYS} FROM unnest($1::oid[]) WITH ORDINALITY m (server, n)
             WHERE t.server = m.server"
        ),
        &[before.to_vec().into()],
    );
    write(&format!("DELETE FROM servicenow.{table} WHERE server = ANY ($1)"), &[now.to_vec().into()]);
    write(
        &format!(
            "UPDATE servicenow.{table} t SET server = m.server FROM unnest($1::oid[]) WITH ORDINALITY m (server, n)
             WHERE t.server = {NOBODYS}"
        ),
        &[now.to_vec().into()],
    );
}
