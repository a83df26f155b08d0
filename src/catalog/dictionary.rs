//! What ServiceNow's dictionary says about tables: `servicenow.dictionary`, and what this session has read itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use pgrx::{JsonB, pg_sys};
use servicenow::dictionary::TableDef;
use servicenow::value::TableName;

use super::{get, read, timestamp, write};

/// Descriptions of tables, by server and name, with the moment they were read.
type Definitions = HashMap<(pg_sys::Oid, TableName), (SystemTime, Rc<TableDef>)>;

thread_local! {
    /// What this session has read, from the instance or as the worker has left it.
    static DEFINITIONS: RefCell<Definitions> = RefCell::new(HashMap::new());
    /// See [`is_referred_to`].
    static REFERRED_TO: RefCell<HashMap<(pg_sys::Oid, TableName), bool>> = RefCell::new(HashMap::new());
}

/// Forgets what this session has read: a server or login has changed.
pub(super) fn forget() {
    DEFINITIONS.with_borrow_mut(HashMap::clear);
}

/// Forgets what this session had read by a time (as Postgres counts, in microseconds): a server or login may have changed, which
/// is not known. What the transaction itself has read it goes on with, as IMPORT does with what it comments columns with.
pub(super) fn forget_before(time: i64) {
    DEFINITIONS.with_borrow_mut(|own| own.retain(|_, (at, _)| i64::from(timestamp(*at)) >= time));
}

/// What the dictionary says about a table, as last read by the worker or by this session.
pub fn definition(server: pg_sys::Oid, table: &TableName) -> Option<Rc<TableDef>> {
    let own = DEFINITIONS.with_borrow(|own| own.get(&(server, table.clone())).cloned());
    let since = own.as_ref().map(|(at, _)| timestamp(*at));
    let workers = read(
        "SELECT definition, extract(epoch FROM fetched_at)::float8 FROM servicenow.dictionary
         WHERE server = $1 AND remote_table = $2 AND ($3 IS NULL OR fetched_at > $3)",
        &[server.into(), table.as_str().into(), since.into()],
        |mut rows| rows.next().and_then(|row| get::<JsonB>(&row, 1).zip(get::<f64>(&row, 2))),
    );
    let workers = workers.and_then(|(json, at)| Some((serde_json::from_value(json.0).ok()?, at)));
    match workers {
        Some((def, at)) => {
            Some(keep(server, def, SystemTime::UNIX_EPOCH + Duration::from_secs_f64(at.max(0.0))))
        }
        None => own.map(|(_, def)| def),
    }
}

/// What the dictionary said about a table when the worker read it.
pub fn kept_definition(server: pg_sys::Oid, table: &TableName) -> Option<TableDef> {
    let kept = read(
        "SELECT definition FROM servicenow.dictionary WHERE server = $1 AND remote_table = $2",
        &[server.into(), table.as_str().into()],
        |mut rows| rows.next().and_then(|row| get::<JsonB>(&row, 1)),
    );
    kept.and_then(|json| serde_json::from_value(json.0).ok())
}

/// Whether anything mirrored shows names of a table's records: by a reference to the table, to one that it extends, or to one
/// that extends it, as far as that is known. By the worker only, which remembers it until it keeps other descriptions.
pub fn is_referred_to(server: pg_sys::Oid, table: &TableName) -> bool {
    let key = (server, table.clone());
    let known = REFERRED_TO.with_borrow(|known| known.get(&key).copied());
    known.unwrap_or_else(|| {
        let found = look_for_references(server, table);
        REFERRED_TO.with_borrow_mut(|known| known.insert(key, found));
        found
    })
}

fn look_for_references(server: pg_sys::Oid, table: &TableName) -> bool {
    read(
        "WITH named AS (
             SELECT DISTINCT f -> 'reference' ->> 'table' AS name
             FROM servicenow.dictionary d, jsonb_array_elements(d.definition -> 'fields') f
             WHERE d.server = $1 AND jsonb_typeof(f -> 'reference') = 'object')
         SELECT EXISTS (
             SELECT FROM named n
             WHERE n.name = $2
                OR EXISTS (SELECT FROM servicenow.dictionary d
                           WHERE d.server = $1 AND (d.remote_table = $2 AND d.definition -> 'chain' ? n.name
                                                    OR d.remote_table = n.name AND d.definition -> 'chain' ? $2)))",
        &[server.into(), table.as_str().into()],
        |mut rows| rows.next().and_then(|row| get(&row, 1)).unwrap_or(false),
    )
}

/// Has this session remember what it has read in the dictionary.
pub fn remember_definition(server: pg_sys::Oid, def: TableDef) -> Rc<TableDef> {
    keep(server, def, SystemTime::now())
}

fn keep(server: pg_sys::Oid, def: TableDef, at: SystemTime) -> Rc<TableDef> {
    let def = Rc::new(def);
    DEFINITIONS.with_borrow_mut(|own| own.insert((server, def.name.clone()), (at, def.clone())));
    def
}

/// Keeps what the dictionary says about a table, for everybody. By the worker only: sessions would wait for each
/// other.
pub fn keep_definition(server: pg_sys::Oid, def: &TableDef) {
    REFERRED_TO.with_borrow_mut(|known| known.retain(|(of, _), _| *of != server));
    let json = serde_json::to_value(def).expect("a description is plain data");
    write(
        "INSERT INTO servicenow.dictionary (server, remote_table, definition) VALUES ($1, $2, $3)
         ON CONFLICT (server, remote_table) DO UPDATE SET definition = excluded.definition, fetched_at = clock_timestamp()",
        &[server.into(), def.name.as_str().into(), JsonB(json).into()],
    );
}

/// Descriptions of tables that are not mirrored are kept as long as columns lead through them: through these. By the worker
/// only.
pub fn keep_definitions_of(server: pg_sys::Oid, tables: Vec<&str>) {
    write(
        "UPDATE servicenow.dictionary SET walked = remote_table = ANY ($2)
         WHERE server = $1 AND walked IS DISTINCT FROM (remote_table = ANY ($2))",
        &[server.into(), tables.into()],
    );
}
