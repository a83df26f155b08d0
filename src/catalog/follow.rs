//! Which foreign tables are mirrored, from where: `servicenow.sync_table` and `sync_server`, as DDL and the worker
//! change them.

use pgrx::{JsonB, pg_sys};
use servicenow::value::Show;

use super::{announce, get, read, write};

/// What a cache table was made for, as `sync_table` keeps it.
pub struct Follow {
    /// The cache table.
    pub cache: pg_sys::Oid,
    /// The table in ServiceNow.
    pub remote_table: String,
    /// The encoded query, verbatim.
    pub query: String,
    /// See `sync_table.columns`.
    pub columns: serde_json::Value,
}

/// What a foreign table's cache was made for; `None` if it has none.
pub fn followed(relation: pg_sys::Oid) -> Option<Follow> {
    read(
        "SELECT cache_table, remote_table, query, columns FROM servicenow.sync_table WHERE foreign_table = $1",
        &[relation.into()],
        |mut rows| {
            rows.next().map(|row| Follow {
                cache: get(&row, 1).unwrap_or(pg_sys::InvalidOid),
                remote_table: get(&row, 2).unwrap_or_default(),
                query: get(&row, 3).unwrap_or_default(),
                columns: get::<JsonB>(&row, 4).map(|json| json.0).unwrap_or_default(),
            })
        },
    )
}

/// The columns of a foreign table, as its cache was made for them.
pub struct FollowedColumns {
    /// The foreign table.
    pub relation: pg_sys::Oid,
    /// The table in ServiceNow.
    pub remote_table: String,
    /// Its columns.
    pub columns: Vec<FollowedColumn>,
}

/// What a column of a foreign table shows.
#[derive(Debug, serde::Deserialize)]
pub struct FollowedColumn {
    /// Attribute number.
    pub number: i16,
    /// The field.
    pub field: String,
    /// Which side of the field.
    pub show: Show,
}

/// The columns of every mirrored table of a server. The tables themselves, which somebody may have locked, are not looked
/// at.
pub fn followed_columns(server: pg_sys::Oid) -> Vec<FollowedColumns> {
    read(
        "SELECT t.foreign_table, t.remote_table, t.columns FROM servicenow.sync_table t
         JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table WHERE f.ftserver = $1 ORDER BY 1",
        &[server.into()],
        |rows| {
            rows.filter_map(|row| {
                Some(FollowedColumns {
                    relation: get(&row, 1)?,
                    remote_table: get(&row, 2)?,
                    columns: serde_json::from_value(get::<JsonB>(&row, 3)?.0).ok()?,
                })
            })
            .collect()
        },
    )
}

/// Enters a new cache table.
pub fn insert_followed(relation: pg_sys::Oid, follow: Follow) {
    write(
        "INSERT INTO servicenow.sync_table (foreign_table, cache_table, remote_table, query, columns)
         VALUES ($1, $2, $3, $4, $5)",
        &[
            relation.into(),
            follow.cache.into(),
            follow.remote_table.into(),
            follow.query.into(),
            JsonB(follow.columns).into(),
        ],
    );
}

/// What a change of a cache table has the worker do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refill {
    /// Nothing.
    No,
    /// Read these columns (by number in the foreign table) of everything; the others are as they should be.
    Columns(Vec<i16>),
    /// Read everything again; the rows that are there are worth reading meanwhile.
    InPlace,
    /// Read everything: the rows that are there, if any, are others.
    FromNothing,
}

/// Enters that a cache table was changed.
pub fn update_followed(relation: pg_sys::Oid, follow: Follow, refill: Refill) {
    write(
        "UPDATE servicenow.sync_table
         SET cache_table = $2, remote_table = $3, query = $4, columns = $5, generation = generation + 1,
             filled = filled AND $6, last_error = NULL, last_error_at = NULL
         WHERE foreign_table = $1",
        &[
            relation.into(),
            follow.cache.into(),
            follow.remote_table.into(),
            follow.query.into(),
            JsonB(follow.columns).into(),
            (refill != Refill::FromNothing).into(),
        ],
    );
    match refill {
        Refill::No => {}
        Refill::InPlace | Refill::FromNothing => start_over(relation),
        Refill::Columns(columns) => read_columns_again(relation, columns),
    }
}

/// Has columns (by number in the foreign table) read again in every row.
pub fn read_columns_again(relation: pg_sys::Oid, columns: Vec<i16>) {
    // A fill of everything that is not complete will bring these too.
    let added = write(
        "UPDATE servicenow.sync_table SET fill_columns = coalesce(fill_columns, '{}') || $2
         WHERE foreign_table = $1 AND filled AND (fill_columns IS NOT NULL OR phase IN ('catchup', 'synced'))",
        &[relation.into(), columns.into()],
    );
    begin_fill(relation, added == 0);
}

/// Has everything read again, with the rows that are there kept until then.
pub fn start_over(relation: pg_sys::Oid) {
    begin_fill(relation, true);
}

fn begin_fill(relation: pg_sys::Oid, whole: bool) {
    write("DELETE FROM servicenow.sync_range WHERE foreign_table = $1", &[relation.into()]);
    write(
        "UPDATE servicenow.sync_table
         SET phase = 'pending', refill = fill_ended_at IS NOT NULL OR refill OR rows > 0,
             fill_columns = CASE WHEN NOT $2 THEN fill_columns END,
             generation = generation + 1, last_error = NULL, last_error_at = NULL,
             undo_error = NULL, undo_error_at = NULL
         WHERE foreign_table = $1",
        &[relation.into(), whole.into()],
    );
}

/// Forgets a foreign table; gives back its cache table.
pub fn delete_followed(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    let cache = followed(relation)?.cache;
    write("DELETE FROM servicenow.row_delta WHERE foreign_table = $1", &[relation.into()]);
    write("DELETE FROM servicenow.recheck WHERE foreign_table = $1", &[relation.into()]);
    write("DELETE FROM servicenow.absent WHERE foreign_table = $1", &[relation.into()]);
    write("DELETE FROM servicenow.sync_table WHERE foreign_table = $1", &[relation.into()]);
    super::forget_changes_of(relation);
    Some(cache)
}

/// Forgets what belongs to no mirror any more, and enters new servers. By the worker only: sessions would wait for
/// each other. A server's OID changes in pg_upgrade: what is known of it follows.
pub fn tidy() {
    super::renumber::follow_servers();
    write(
        "WITH gone AS (
             DELETE FROM servicenow.sync_server v
             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server s WHERE s.oid = v.server)
             RETURNING deletes_watermark)
         INSERT INTO servicenow.sync_server (server, name, deletes_watermark)
         SELECT DISTINCT s.oid, s.srvname, (SELECT min(deletes_watermark) FROM gone)
         FROM servicenow.sync_table t JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
              JOIN pg_catalog.pg_foreign_server s ON s.oid = f.ftserver
         ON CONFLICT DO NOTHING",
        &[],
    );
    write(
        "DELETE FROM servicenow.suspect c
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_table t WHERE t.ftrelid = c.foreign_table)",
        &[],
    );
    write(
        "DELETE FROM servicenow.capture c
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server s WHERE s.oid = c.server)",
        &[],
    );
    write(
        "DELETE FROM servicenow.call_count c
         WHERE minute < now() - interval '1 hour 1 minute'
            OR NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server s WHERE s.oid = c.server)",
        &[],
    );
    write(
        "DELETE FROM servicenow.request_stat r
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server s WHERE s.oid = r.server)",
        &[],
    );
    write(
        "DELETE FROM servicenow.dictionary d
         WHERE NOT EXISTS (SELECT FROM servicenow.sync_table t
                           JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
                           WHERE f.ftserver = d.server AND (d.walked OR t.remote_table = d.remote_table))",
        &[],
    );
}

/// Takes note of where a server's rows come from, and as whom the worker sees them. If that is another place than
/// before, the rows that are there are others'; if it is only somebody else's view, they may be read meanwhile.
pub fn note_source(server: pg_sys::Oid, instance: &str, login: &str) {
    let known = read(
        "SELECT source_instance, source_login FROM servicenow.sync_server WHERE server = $1",
        &[server.into()],
        |mut rows| rows.next().map(|row| (get::<String>(&row, 1), get::<String>(&row, 2))),
    );
    let Some((known_instance, known_login)) = known else { return };
    let is_other = |known: &Option<String>, now: &str| known.as_ref().is_some_and(|known| known != now);
    let (moved, seen_by_other) = (is_other(&known_instance, instance), is_other(&known_login, login));
    if known_instance.is_none() || moved || seen_by_other {
        write(
            "UPDATE servicenow.sync_server
             SET source_instance = $2, source_login = $3,
                 deletes_watermark = CASE WHEN $4 THEN NULL ELSE deletes_watermark END,
                 metadata_watermark = CASE WHEN $4 THEN NULL ELSE metadata_watermark END,
                 last_deletes_at = CASE WHEN $4 THEN NULL ELSE last_deletes_at END,
                 last_metadata_at = NULL
             WHERE server = $1",
            &[server.into(), instance.into(), login.into(), moved.into()],
        );
    }
    if !moved && !seen_by_other {
        return;
    }
    if moved {
        write(
            "UPDATE servicenow.capture SET installed = false, queue_table = NULL, rules = '{}', installs = installs + 1
             WHERE server = $1",
            &[server.into()],
        );
    }
    for relation in tables_of(server) {
        if moved {
            write(
                "UPDATE servicenow.sync_table SET filled = false, last_poll_at = NULL WHERE foreign_table = $1",
                &[relation.into()],
            );
        }
        start_over(relation);
        announce(relation);
    }
}

/// A server, or a login for it, was changed by a statement: what is under way on its tables begins anew.
pub fn touch_server(server: pg_sys::Oid) {
    for relation in tables_of(server) {
        write(
            "UPDATE servicenow.sync_table SET generation = generation + 1 WHERE foreign_table = $1",
            &[relation.into()],
        );
        announce(relation);
    }
}

/// The mirrored tables of a server.
fn tables_of(server: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    read(
        "SELECT t.foreign_table FROM servicenow.sync_table t
         JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table WHERE f.ftserver = $1 ORDER BY 1",
        &[server.into()],
        |rows| rows.filter_map(|row| get(&row, 1)).collect(),
    )
}

/// Mirrors whose foreign table is gone although no event trigger has said so.
pub fn orphans() -> Vec<pg_sys::Oid> {
    read(
        "SELECT foreign_table FROM servicenow.sync_table t
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_table f WHERE f.ftrelid = t.foreign_table)",
        &[],
        |rows| rows.filter_map(|row| get(&row, 1)).collect(),
    )
}
