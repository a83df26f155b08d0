//! The extension's own tables as structs, and all SQL on them; and the mirror behind a foreign table, put
//! together from them and Postgres's catalogs, remembered per process until something changes.
//!
//! Called in backends and in the worker, inside a transaction.

mod capture;
mod change_log;
mod dictionary;
mod drift;
mod failure;
mod follow;
mod mail;
mod notice;
mod place;
mod progress;
mod renumber;
mod request_stat;
mod rows;
mod secret;
mod token;
mod upkeep;
mod version;
mod work;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::CStr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pgrx::datum::DatumWithOid;
use pgrx::spi::Spi;
use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use servicenow::page::{Column, Layout};
use servicenow::query::Query;
use servicenow::value::{Kind, Show, TableName};

use crate::cache::{MOD_COUNT, UPDATED_ON, VersionPart, type_map};
use crate::error::{error, raise};
use crate::option::{ColumnOptions, TableOptions};
use crate::pg;
use crate::pg::expand::Template;
use crate::pg::session::AsOwner;

pub use capture::{
    SHARED, SUSPECTS, Subscription, capture_is_off, installed, is_left_to_poll, known_subscription,
    leave_events_to_recheck, may_be_gone, note_capture, note_rules, renew_subscription, servers_with_rules,
    subscription, suspect, trust, unplaced, with_rechecks,
};
pub use change_log::{LoggedChange, forget_changes_of, forget_old_changes, log_changes};
pub use dictionary::{
    definition, is_referred_to, keep_definition, keep_definitions_of, kept_definition, remember_definition,
};
pub use drift::{Drift, DriftKind, forget_drift, note_drift, removed_fields, settle_drift};
pub use failure::{Failure, forget_old_failures, log_failure, note_recovery, note_server_outcome};
pub use follow::{
    Follow, FollowedColumns, Refill, delete_followed, followed, followed_columns, insert_followed,
    note_source, orphans, read_columns_again, start_over, tidy, touch_server, update_followed,
};
pub use mail::{
    MailEvent, forget_mail_events, forget_old_mail, mail_events, mail_failed, mail_sent, mail_waiting,
    remember_event,
};
pub use notice::{notify, notify_of};
pub use place::host;
pub use progress::{
    Progress, Waiting, enable_worker, is_failing, is_in_the_way, lock_holder, progress, waits, worker_enabled,
};
pub use request_stat::{Manners, add_request_stats, manners, past_calls, show_manners, show_page_size};
pub use rows::{
    Outlook, RECHECKS, Recheck, Told, Which, absent_among, ask_to_recheck, count_rows, follow_clock,
    forget_absent, forget_old_absent, gone_since, leave_to_recheck, next_recheck, note_not_undone, outlook,
    rechecked, remember_absent, settled, to_recheck,
};
pub use secret::written_secret;
pub use token::{forget_tokens, keep_token, kept_token, mappings};
pub use upkeep::{forget_hidden, hidden, remember_hidden, upkeep};
pub use version::{announce_version, mismatch};
pub use work::{Work, deletes_since, metadata_since, position, work};

/// The name of this process's database.
pub fn database_name() -> String {
    read("SELECT pg_catalog.current_database()::text", &[], |mut rows| {
        rows.next().and_then(|row| get(&row, 1)).unwrap_or_default()
    })
}

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
    /// Its columns; dropped and generated ones left out, which the cache does not have.
    pub columns: Vec<MirrorColumn>,
    /// The columns as the client decodes them, in the same order.
    pub layout: Arc<Layout>,
    /// The position in `columns` of the `sys_id`.
    pub key: usize,
    /// The position in `columns` of what shows [`UPDATED_ON`], if any does.
    pub updated_on: Option<usize>,
    /// The position in `columns` of what shows [`MOD_COUNT`], if any does.
    pub mod_count: Option<usize>,
    /// The position in `columns` of what shows `sys_updated_by`, if any does.
    pub updated_by: Option<usize>,
    /// Whether changes are logged.
    pub cdc: bool,
    /// Whether what a rolled back transaction has written is undone in ServiceNow.
    pub compensate: bool,
    /// Whether a record that has changed in ServiceNow meanwhile is not to be written.
    pub optimistic_lock: bool,
    /// Attribute numbers in use or dropped: 1 to this.
    pub width: i16,
    /// The positions in `columns` that are all the next fill has to read; `None` for all.
    pub fill_columns: Option<Vec<usize>>,
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
    /// The name of the cache's column for [`UPDATED_ON`].
    pub fn updated_on_column(&self) -> &str {
        self.updated_on.map_or(UPDATED_ON.hidden_column, |i| &self.columns[i].name)
    }

    /// The name of the cache's column for [`MOD_COUNT`].
    pub fn mod_count_column(&self) -> &str {
        self.mod_count.map_or(MOD_COUNT.hidden_column, |i| &self.columns[i].name)
    }

    /// What the next fill reads, if that is not everything.
    pub fn fill_layout(&self) -> Option<Arc<Layout>> {
        let columns = self.fill_columns.as_ref()?.iter().map(|i| self.layout.columns()[*i].clone());
        Some(Arc::new(Layout::new(columns.collect())))
    }

    /// A column by attribute number.
    pub fn column(&self, number: i16) -> Option<&MirrorColumn> {
        self.columns.iter().find(|column| column.number == number)
    }
}

thread_local! {
    static MIRRORS: RefCell<HashMap<pg_sys::Oid, Option<Rc<Mirror>>>> = RefCell::new(HashMap::new());
    /// Set when a server or mapping has changed since somebody asked.
    static SERVERS_CHANGED: Cell<bool> = const { Cell::new(true) };
    /// `servicenow.sync_table`, in the worker.
    static WORK_TABLE: Cell<Option<pg_sys::Oid>> = const { Cell::new(None) };
    /// Set when that table was announced as changed.
    static WORK_CHANGED: Cell<bool> = const { Cell::new(true) };
    /// `servicenow.sync_server`, in a session that remembers names of records.
    static NAMES_TABLE: Cell<Option<pg_sys::Oid>> = const { Cell::new(None) };
    /// Set when that table was announced as changed.
    static NAMES_CHANGED: Cell<bool> = const { Cell::new(true) };
}

/// Forgets what has changed; gives back whether anything has.
pub fn forget_changed() -> bool {
    let changes = pg::catalog::take_changes();
    if changes.servers_for_sure {
        dictionary::forget();
    } else if changes.servers {
        dictionary::forget_before(pg::xact::started());
    }
    if changes.servers || changes.all {
        SERVERS_CHANGED.set(true);
    }
    let is_work = |relation: &pg_sys::Oid| Some(*relation) == WORK_TABLE.get();
    if changes.all || changes.roles || changes.relations.iter().any(is_work) {
        WORK_CHANGED.set(true);
    }
    if changes.all || changes.relations.iter().any(|relation| Some(*relation) == NAMES_TABLE.get()) {
        NAMES_CHANGED.set(true);
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

/// Whether the worker has noticed other names of records since the last call.
pub fn take_names_changed() -> bool {
    forget_changed();
    if NAMES_CHANGED.replace(false) {
        NAMES_TABLE.set(pg::catalog::relation_in("servicenow", "sync_server"));
        return true;
    }
    false
}

/// Tells every process, at commit, that records are called otherwise now.
pub fn announce_names() {
    if let Some(table) = pg::catalog::relation_in("servicenow", "sync_server") {
        pg::catalog::announce_change(table);
    }
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
    if let Some(mismatch) = mismatch() {
        raise(mismatch);
    }
    let name = pg::catalog::relation_name(relation)?;
    let options = TableOptions::parse(&options).unwrap_or_else(|e| raise(e));
    // The statement's snapshot may be older than what has just been announced as changed.
    let row = pg::xact::with_latest_snapshot(|| {
        read(
            "SELECT cache_table, generation, fill_columns FROM servicenow.sync_table WHERE foreign_table = $1",
            &[relation.into()],
            |rows| rows.map(|row| Some((get(&row, 1)?, get(&row, 2)?, get(&row, 3)))).next().flatten(),
        )
    });
    let Some((cache, generation, fill_columns)): Option<(pg_sys::Oid, i64, Option<Vec<i16>>)> = row else {
        raise(damaged(relation, "does not exist"))
    };
    let Some(owner) = pg::catalog::relation_owner(cache) else { raise(damaged(relation, "does not exist")) };
    let attributes = pg::catalog::attributes(relation);
    let in_cache = pg::catalog::attributes(cache);
    let width = attributes.len() as i16;
    let mut columns = Vec::new();
    for attribute in attributes.iter().filter(|a| !a.dropped && !a.generated) {
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
    let shown = |part: VersionPart| part.position(columns.iter().map(|c| (c.field.as_str(), c.show, c.kind)));
    let (updated_on, mod_count) = (shown(UPDATED_ON), shown(MOD_COUNT));
    let updated_by = columns.iter().position(|column| {
        (column.field.as_str(), column.show, column.kind) == ("sys_updated_by", Show::Value, Kind::Text)
    });
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
        fill_columns: fill_columns.map(|numbers| {
            let positions = 0..columns.len();
            positions.filter(|i| numbers.contains(&columns[*i].number)).collect()
        }),
        columns,
        key,
        updated_on,
        mod_count,
        updated_by,
        cdc: options.cdc,
        compensate: options.compensate,
        optimistic_lock: options.optimistic_lock,
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

/// Runs a query that changes nothing; see [`pg::spi::select`] for what it sees.
pub fn read<R>(sql: &str, args: &[DatumWithOid<'_>], f: impl FnOnce(pg::spi::Rows) -> R) -> R {
    let _owner = AsOwner::begin();
    pg::spi::select(sql, args, f)
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
