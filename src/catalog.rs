//! The extension's own tables as structs, and all SQL on them; and the mirror behind a foreign table, put
//! together from them and Postgres's catalogs, remembered per process until something changes.
//!
//! Called in backends and in the worker, inside a transaction.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::CStr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pgrx::datum::DatumWithOid;
use pgrx::spi::{Spi, SpiTupleTable};
use pgrx::{JsonB, PgSqlErrorCode as Sql, pg_sys};
use servicenow::dictionary::TableDef;
use servicenow::page::{Column, Layout};
use servicenow::query::Query;
use servicenow::sync::store::{OpenRange, Position};
use servicenow::sync::sweep::Range;
use servicenow::value::{Kind, Show, SysId, TableName};

use crate::cache::type_map;
use crate::error::{error, raise};
use crate::option::{ColumnOptions, TableOptions};
use crate::pg;
use crate::pg::expand::Template;
use crate::pg::session::AsOwner;

/// The foreign-data wrapper's name.
pub const WRAPPER: &CStr = c"servicenow_fdw";

/// A mirrored foreign table.
pub struct Mirror {
    /// The foreign table.
    pub foreign_table: pg_sys::Oid,
    /// Its cache table.
    pub cache: pg_sys::Oid,
    /// The cache table's owner, as whom it is read.
    pub owner: pg_sys::Oid,
    /// The server.
    pub server: pg_sys::Oid,
    /// The table in ServiceNow.
    pub table: TableName,
    /// Which records are mirrored.
    pub query: Query,
    /// The time between two polls, if it is not the server's.
    pub poll_interval: Option<Duration>,
    /// Its columns, dropped ones left out.
    pub columns: Vec<MirrorColumn>,
    /// The columns as the client decodes them, in the same order.
    pub layout: Arc<Layout>,
    /// The position in `columns` of the `sys_id`.
    pub key: usize,
    /// Attribute numbers in use or dropped: 1 to this.
    pub width: i16,
    /// See `servicenow.sync_table.generation`.
    pub generation: i64,
    /// Whether its first fill is known to be complete.
    pub filled: Cell<bool>,
    /// What stands for the table in a query; made at first use.
    pub template: OnceCell<Option<Rc<Template>>>,
}

/// A column of a mirrored foreign table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorColumn {
    /// Attribute number in the foreign table.
    pub number: i16,
    /// Its name there and in the cache.
    pub name: String,
    /// The field.
    pub field: String,
    /// Which side of the field.
    pub show: Show,
    /// What a value is decoded as.
    pub kind: Kind,
}

impl Mirror {
    /// A column by attribute number.
    pub fn column(&self, number: i16) -> Option<&MirrorColumn> {
        self.columns.iter().find(|column| column.number == number)
    }
}

/// Descriptions of tables, by server and name, with the moment they were read.
type Definitions = HashMap<(pg_sys::Oid, TableName), (SystemTime, Rc<TableDef>)>;

thread_local! {
    static MIRRORS: RefCell<HashMap<pg_sys::Oid, Option<Rc<Mirror>>>> = RefCell::new(HashMap::new());
    /// What this session has read in dictionaries.
    static DEFINITIONS: RefCell<Definitions> = RefCell::new(HashMap::new());
    /// Set when a server or mapping has changed since somebody asked.
    static SERVERS_CHANGED: Cell<bool> = const { Cell::new(true) };
    /// `servicenow.sync_table`, in the worker.
    static WORK_TABLE: Cell<Option<pg_sys::Oid>> = const { Cell::new(None) };
    /// Set when that table was announced as changed.
    static WORK_CHANGED: Cell<bool> = const { Cell::new(true) };
}

/// Forgets what has changed; gives back whether anything has.
pub fn forget_changed() -> bool {
    let changes = pg::catalog::take_changes();
    if changes.servers {
        DEFINITIONS.with_borrow_mut(HashMap::clear);
    }
    if changes.servers || changes.all {
        SERVERS_CHANGED.set(true);
    }
    if changes.all || changes.relations.iter().any(|relation| Some(*relation) == WORK_TABLE.get()) {
        WORK_CHANGED.set(true);
    }
    MIRRORS.with_borrow_mut(|mirrors| {
        if changes.all {
            mirrors.clear();
        } else {
            for relation in &changes.relations {
                mirrors.remove(relation);
                mirrors.retain(|_, mirror| mirror.as_ref().is_none_or(|m| m.cache != *relation));
            }
        }
    });
    changes.all || changes.servers || !changes.relations.is_empty()
}

/// Whether servers or mappings have changed since the last call.
pub fn take_servers_changed() -> bool {
    forget_changed();
    SERVERS_CHANGED.replace(false)
}

/// Whether what is to be mirrored, or from where, has changed since the last call. For the worker.
pub fn take_work_changed() -> bool {
    forget_changed();
    let servers = SERVERS_CHANGED.replace(false);
    WORK_CHANGED.replace(false) || servers
}

/// Has [`take_work_changed`] say so once more: what it said could not be dealt with.
pub fn keep_work_changed() {
    WORK_CHANGED.set(true);
}

/// Has [`take_work_changed`] notice changes of `servicenow.sync_table`; gives back whether the extension is
/// there.
pub fn watch_work() -> bool {
    let table = pg::catalog::relation_in("servicenow", "sync_table");
    WORK_TABLE.set(table);
    table.is_some()
}

/// Tells every process, at commit, that a foreign table's mirror has changed, and the worker that there is
/// something to do.
pub fn announce(relation: pg_sys::Oid) {
    if pg::catalog::relation_kind(relation).is_some() {
        pg::catalog::announce_change(relation);
    }
    if let Some(table) = pg::catalog::relation_in("servicenow", "sync_table") {
        pg::catalog::announce_change(table);
    }
}

/// The mirror behind a relation; `None` if it is not one of our foreign tables. An ERROR if it is one and its
/// cache is missing or does not fit.
pub fn mirror(relation: pg_sys::Oid) -> Option<Rc<Mirror>> {
    forget_changed();
    if let Some(known) = MIRRORS.with_borrow(|mirrors| mirrors.get(&relation).cloned()) {
        return known;
    }
    // Loading reads catalogs, which may bring news about this very relation: then it is loaded again next time.
    let mirror = load(relation).map(Rc::new);
    let changes_meanwhile = forget_changed();
    if !changes_meanwhile {
        MIRRORS.with_borrow_mut(|mirrors| mirrors.insert(relation, mirror.clone()));
    }
    mirror
}

/// The mirror behind a relation a user named; an ERROR if it is not one of our foreign tables.
pub fn mirror_or_error(relation: pg_sys::Oid) -> Rc<Mirror> {
    mirror(relation).unwrap_or_else(|| raise(not_ours(relation)))
}

/// The ERROR for a foreign table whose cache is not as it should be.
pub fn damaged(relation: pg_sys::Oid, what: &str) -> pg_sys::panic::ErrorReport {
    let name = qualified(relation);
    error(
        Sql::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("cache table of foreign table {name} {what}"),
    )
    .set_hint(format!("Run SELECT servicenow.resync('{name}')."))
}

/// The ERROR for a relation that is not one of our foreign tables.
pub fn not_ours(relation: pg_sys::Oid) -> pg_sys::panic::ErrorReport {
    let name = pg::catalog::relation_name(relation).unwrap_or_else(|| relation.to_u32().to_string());
    error(Sql::ERRCODE_WRONG_OBJECT_TYPE, format!("\"{name}\" is not a foreign table of servicenow_fdw"))
}

fn load(relation: pg_sys::Oid) -> Option<Mirror> {
    let (server, options) = pg::catalog::foreign_table(relation, WRAPPER)?;
    let name = pg::catalog::relation_name(relation)?;
    let options = TableOptions::parse(&options).unwrap_or_else(|e| raise(e));
    // The statement's snapshot may be older than what has just been announced as changed.
    let row = pg::xact::with_latest_snapshot(|| {
        read(
            "SELECT cache_table, generation FROM servicenow.sync_table WHERE foreign_table = $1",
            &[relation.into()],
            |rows| rows.map(|row| (get(&row, 1), get(&row, 2))).next(),
        )
    });
    let Some((Some(cache), Some(generation))): Option<(Option<pg_sys::Oid>, Option<i64>)> = row else {
        raise(damaged(relation, "does not exist"))
    };
    let Some(owner) = pg::catalog::relation_owner(cache) else { raise(damaged(relation, "does not exist")) };
    let attributes = pg::catalog::attributes(relation);
    let in_cache = pg::catalog::attributes(cache);
    let width = attributes.len() as i16;
    let mut columns = Vec::new();
    for attribute in attributes.iter().filter(|attribute| !attribute.dropped) {
        let twin = in_cache.iter().find(|cached| cached.name == attribute.name);
        let same = |cached: &&pg::catalog::Attribute| {
            (cached.type_oid, cached.typmod, cached.collation)
                == (attribute.type_oid, attribute.typmod, attribute.collation)
        };
        if twin.filter(same).is_none() {
            raise(damaged(relation, &format!("does not have its column \"{}\"", attribute.name)));
        }
        if !pg::catalog::is_plain_type(attribute.type_oid) {
            raise(damaged(relation, &format!("cannot have its column \"{}\"", attribute.name)));
        }
        let options = ColumnOptions::parse(&pg::catalog::column_options(relation, attribute.number));
        columns.push(MirrorColumn {
            number: attribute.number,
            field: options.field.unwrap_or_else(|| attribute.name.clone()),
            name: attribute.name.clone(),
            show: options.show,
            kind: match options.show {
                Show::Label => Kind::Text,
                Show::Value => type_map::kind_of(attribute.type_oid),
            },
        });
    }
    let key = columns.iter().position(is_key).unwrap_or_else(|| raise(no_key(&name)));
    let layout = columns.iter().map(|column| Column {
        field: column.field.clone(),
        show: column.show,
        kind: column.kind,
    });
    Some(Mirror {
        foreign_table: relation,
        cache,
        owner,
        server,
        table: options.table.unwrap_or_else(|| default_table(&name)),
        query: options.query,
        poll_interval: options.poll_interval,
        layout: Arc::new(Layout::new(layout.collect())),
        columns,
        key,
        width,
        generation,
        filled: Cell::new(false),
        template: OnceCell::new(),
    })
}

/// The table in ServiceNow that a foreign table without the option mirrors: the one of the same name.
pub fn default_table(name: &str) -> TableName {
    TableName::new(name).unwrap_or_else(|_| {
        raise(
            error(
                Sql::ERRCODE_FDW_TABLE_NOT_FOUND,
                format!("\"{name}\" cannot be the name of a table in ServiceNow"),
            )
            .set_hint("Set the foreign table's option \"table\" to the name it has there."),
        )
    })
}

/// Whether a column is the record's identity.
pub fn is_key(column: &MirrorColumn) -> bool {
    column.field == "sys_id" && column.show == Show::Value
}

/// The ERROR for a foreign table without its key.
pub fn no_key(name: &str) -> pg_sys::panic::ErrorReport {
    error(
        Sql::ERRCODE_FDW_COLUMN_NAME_NOT_FOUND,
        format!("foreign table \"{name}\" must have a column for field \"sys_id\""),
    )
    .set_hint("Add a column \"sys_id\" of type text.")
}

/// A relation's name for messages and statements.
pub fn qualified(relation: pg_sys::Oid) -> String {
    pg::catalog::qualified_name(relation).unwrap_or_else(|| relation.to_u32().to_string())
}

// ---------------------------------------------------------------------------------------------------------
// SQL on the state tables. They belong to the extension's owner: everything here runs as the bootstrap
// superuser, on qualified names only.

/// Runs a query that changes nothing; it sees what the current statement sees.
pub fn read<R>(sql: &str, args: &[DatumWithOid<'_>], f: impl FnOnce(SpiTupleTable<'_>) -> R) -> R {
    let _owner = AsOwner::begin();
    Spi::connect(|client| f(client.select(sql, None, args).expect("a valid use of SPI")))
}

/// Runs a statement that changes something; gives back how many rows.
pub fn write(sql: &str, args: &[DatumWithOid<'_>]) -> usize {
    let _owner = AsOwner::begin();
    Spi::connect_mut(|client| client.update(sql, None, args).expect("a valid use of SPI").len())
}

/// A column of a result row, from 1.
pub fn get<T: pgrx::FromDatum + pgrx::IntoDatum>(
    row: &pgrx::spi::SpiHeapTupleData<'_>,
    column: usize,
) -> Option<T> {
    row.get(column).expect("a column of the query, read as its type")
}

/// A moment of the local clock as Postgres's type.
pub fn timestamp(at: SystemTime) -> pgrx::datum::TimestampWithTimeZone {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    pgrx::datum::to_timestamp(seconds)
}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refill {
    /// Nothing.
    No,
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
    if refill != Refill::No {
        start_over(relation);
    }
}

/// Has everything read again, with the rows that are there kept until then.
pub fn start_over(relation: pg_sys::Oid) {
    write("DELETE FROM servicenow.sync_range WHERE foreign_table = $1", &[relation.into()]);
    write(
        "UPDATE servicenow.sync_table
         SET phase = 'pending', refill = fill_ended_at IS NOT NULL OR refill OR rows > 0,
             generation = generation + 1, last_error = NULL, last_error_at = NULL
         WHERE foreign_table = $1",
        &[relation.into()],
    );
}

/// Forgets a foreign table; gives back its cache table.
pub fn delete_followed(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    let cache = followed(relation)?.cache;
    write("DELETE FROM servicenow.row_delta WHERE foreign_table = $1", &[relation.into()]);
    write("DELETE FROM servicenow.recheck WHERE foreign_table = $1", &[relation.into()]);
    write("DELETE FROM servicenow.sync_table WHERE foreign_table = $1", &[relation.into()]);
    Some(cache)
}

/// Forgets what belongs to no mirror any more, and enters new servers. By the worker only: sessions would wait for
/// each other. A server's OID changes in pg_upgrade: what was known of
/// deletions is handed on to the servers that are there.
pub fn tidy() {
    write(
        "WITH gone AS (
             DELETE FROM servicenow.sync_server v
             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server s WHERE s.oid = v.server)
             RETURNING deletes_watermark)
         INSERT INTO servicenow.sync_server (server, deletes_watermark)
         SELECT DISTINCT f.ftserver, (SELECT min(deletes_watermark) FROM gone)
         FROM servicenow.sync_table t JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
         ON CONFLICT DO NOTHING",
        &[],
    );
    write(
        "DELETE FROM servicenow.dictionary d
         WHERE NOT EXISTS (SELECT FROM servicenow.sync_table t
                           JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
                           WHERE f.ftserver = d.server AND t.remote_table = d.remote_table)",
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
                 last_deletes_at = CASE WHEN $4 THEN NULL ELSE last_deletes_at END
             WHERE server = $1",
            &[server.into(), instance.into(), login.into(), moved.into()],
        );
    }
    if !moved && !seen_by_other {
        return;
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

/// What the dictionary says about a table, as last read by the worker or by this session.
pub fn definition(server: pg_sys::Oid, table: &TableName) -> Option<Rc<TableDef>> {
    let own = DEFINITIONS.with_borrow(|own| own.get(&(server, table.clone())).cloned());
    let since = own.as_ref().map(|(at, _)| timestamp(*at));
    let workers = read(
        "SELECT definition FROM servicenow.dictionary
         WHERE server = $1 AND remote_table = $2 AND ($3 IS NULL OR fetched_at > $3)",
        &[server.into(), table.as_str().into(), since.into()],
        |mut rows| rows.next().and_then(|row| get::<JsonB>(&row, 1)),
    );
    let workers = workers.and_then(|json| serde_json::from_value(json.0).ok());
    workers.map(Rc::new).or(own.map(|(_, def)| def))
}

/// Has this session remember what it has read in the dictionary.
pub fn remember_definition(server: pg_sys::Oid, def: TableDef) -> Rc<TableDef> {
    let def = Rc::new(def);
    let kept = (SystemTime::now(), def.clone());
    DEFINITIONS.with_borrow_mut(|own| own.insert((server, def.name.clone()), kept));
    def
}

/// Keeps what the dictionary says about a table, for everybody. By the worker only: sessions would wait for each
/// other.
pub fn keep_definition(server: pg_sys::Oid, def: &TableDef) {
    let json = serde_json::to_value(def).expect("a description is plain data");
    write(
        "INSERT INTO servicenow.dictionary (server, remote_table, definition) VALUES ($1, $2, $3)
         ON CONFLICT (server, remote_table) DO UPDATE SET definition = excluded.definition, fetched_at = clock_timestamp()",
        &[server.into(), def.name.as_str().into(), JsonB(json).into()],
    );
}

/// Counts rows that a statement added to or took from a cache.
pub fn count_rows(relation: pg_sys::Oid, delta: i64) {
    if delta != 0 {
        write(
            "INSERT INTO servicenow.row_delta (foreign_table, delta) VALUES ($1, $2)",
            &[relation.into(), delta.into()],
        );
    }
}

/// Has the worker look records up that a statement has put into a cache.
pub fn ask_to_recheck(relation: pg_sys::Oid, ids: &[String]) {
    if !ids.is_empty() {
        write(
            "INSERT INTO servicenow.recheck (foreign_table, sys_id) SELECT $1, unnest($2)",
            &[relation.into(), ids.to_vec().into()],
        );
    }
}

/// As [`ask_to_recheck`], by the worker: nobody else takes requests back, so that one is enough.
pub fn leave_to_recheck(relation: pg_sys::Oid, ids: &[String]) {
    if !ids.is_empty() {
        write(
            "INSERT INTO servicenow.recheck (foreign_table, sys_id)
             SELECT $1, unnest($2)
             EXCEPT SELECT foreign_table, sys_id FROM servicenow.recheck WHERE foreign_table = $1",
            &[relation.into(), ids.to_vec().into()],
        );
    }
}

/// Records to be looked up, each once.
pub fn to_recheck(relation: pg_sys::Oid) -> Vec<String> {
    read(
        "SELECT DISTINCT sys_id FROM servicenow.recheck WHERE foreign_table = $1",
        &[relation.into()],
        |rows| rows.filter_map(|row| get(&row, 1)).collect(),
    )
}

/// Records have been looked up.
pub fn rechecked(relation: pg_sys::Oid, ids: Vec<&str>) {
    write(
        "DELETE FROM servicenow.recheck WHERE foreign_table = $1 AND sys_id = ANY ($2)",
        &[relation.into(), ids.into()],
    );
}

/// Whether the worker of this database may run.
pub fn worker_enabled() -> bool {
    read("SELECT enabled FROM servicenow.worker", &[], |mut rows| {
        rows.next().and_then(|row| get(&row, 1)).unwrap_or(true)
    })
}

/// Allows or forbids the worker of this database to run.
pub fn enable_worker(enabled: bool) {
    write("UPDATE servicenow.worker SET enabled = $1", &[enabled.into()]);
}

/// How far a table is, as `wait_for_sync` sees it.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// See `sync_table.phase`.
    pub phase: String,
    /// Rows read by the fill under way.
    pub rows_filled: i64,
    /// Rows the instance counts.
    pub rows_total: Option<i64>,
    /// Whether a poll that began after the given moment is complete, and deletions have been read since then
    /// too, unless that fails.
    pub caught_up: bool,
    /// The last failure.
    pub last_error: Option<String>,
    /// What is to be done was asked for by the current transaction, so that the worker cannot see it yet.
    pub uncommitted: bool,
    /// See `sync_table.filled`.
    pub filled: bool,
    /// How long ago the last poll began, as Postgres writes an interval.
    pub age: Option<String>,
    /// Records that have changed over there and that somebody has locked here.
    pub waiting: i64,
}

impl Progress {
    /// How far the table is, for people.
    pub fn how_far(&self) -> String {
        match (self.phase.as_str(), self.rows_total) {
            ("backfill" | "resync", Some(total)) if total > 0 => format!(
                "{} of {total} rows read ({:.1} %)",
                self.rows_filled,
                100.0 * self.rows_filled as f64 / total as f64
            ),
            ("backfill" | "resync", _) => format!("{} rows read", self.rows_filled),
            ("pending", _) => "reading has not begun".to_owned(),
            (_, _) if self.waiting > 0 => {
                format!("{} changed records are locked by other transactions", self.waiting)
            }
            _ => "reading changes".to_owned(),
        }
    }
}

/// How far a table is; `None` if it is gone.
pub fn progress(relation: pg_sys::Oid, since: pgrx::datum::TimestampWithTimeZone) -> Option<Progress> {
    read(
        "SELECT t.phase, t.rows_filled, t.rows_total,
                t.phase = 'synced' AND t.last_poll_at >= $2
                AND (v.last_deletes_at >= $2 OR v.last_error_at >= $2) AND r.waiting = 0,
                coalesce(t.last_error, v.last_error), t.xmin::text, t.filled,
                date_trunc('second', clock_timestamp() - t.last_poll_at)::text, r.waiting
         FROM servicenow.sync_table t
              JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
              LEFT JOIN servicenow.sync_server v ON v.server = f.ftserver,
              LATERAL (SELECT count(*) AS waiting FROM servicenow.recheck r
                       WHERE r.foreign_table = t.foreign_table) r
         WHERE t.foreign_table = $1",
        &[relation.into(), since.into()],
        |mut rows| {
            rows.next().map(|row| Progress {
                phase: get(&row, 1).unwrap_or_default(),
                rows_filled: get(&row, 2).unwrap_or_default(),
                rows_total: get(&row, 3),
                caught_up: get(&row, 4).unwrap_or(false),
                last_error: get(&row, 5),
                uncommitted: get(&row, 6).is_some_and(|xid: String| pg::xact::is_own(&xid)),
                filled: get(&row, 7).unwrap_or(false),
                age: get(&row, 8),
                waiting: get(&row, 9).unwrap_or_default(),
            })
        },
    )
}

/// The process that holds an advisory lock of two keys in this database.
pub fn lock_holder(class: i32, object: i32) -> Option<i32> {
    read(
        "SELECT pid FROM pg_catalog.pg_locks
         WHERE locktype = 'advisory' AND database = $1 AND classid = $2 AND objid = $3 AND objsubid = 3 AND granted",
        &[pg::worker::database().into(), key(class).into(), key(object).into()],
        |mut rows| rows.next().and_then(|row| get(&row, 1)),
    )
}

/// The second keys of all advisory locks of this database whose first key is `class`.
pub fn locked_objects(class: i32) -> Vec<pg_sys::Oid> {
    read(
        "SELECT DISTINCT objid FROM pg_catalog.pg_locks
         WHERE locktype = 'advisory' AND database = $1 AND classid = $2 AND objsubid = 3 AND granted",
        &[pg::worker::database().into(), key(class).into()],
        |rows| rows.filter_map(|row| get(&row, 1)).collect(),
    )
}

/// `pg_locks` shows the keys of an advisory lock as OIDs.
fn key(key: i32) -> pg_sys::Oid {
    pg_sys::Oid::from(key as u32)
}

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
