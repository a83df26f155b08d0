//! Makes cache tables and keeps them in step with their foreign tables.
//!
//! Called from event triggers, in the transaction of the user's DDL and as the extension's owner: without
//! network, so that a dump can be restored anywhere.

use std::ffi::CStr;

use pgrx::spi::quote_identifier;
use pgrx::{PgSqlErrorCode as Sql, Spi, pg_sys};
use serde::{Deserialize, Serialize};
use servicenow::value::{Kind, Show};

use super::{VERSION, VersionPart, apply, type_map};
use crate::catalog::{self, Follow, Refill, WRAPPER};
use crate::error::{error, raise};
use crate::option::{ColumnOptions, TableOptions};
use crate::pg;
use crate::pg::catalog::{AsExtension, Attribute};

/// The schema of cache tables.
const SCHEMA: &str = "servicenow_cache";

/// A foreign table's column as its cache was made for it; `sync_table.columns` is an array of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FollowedColumn {
    /// Attribute number in the foreign table, which a rename does not change.
    number: i16,
    name: String,
    /// Type, modifier and collation as SQL writes them.
    #[serde(rename = "type")]
    type_: String,
    field: String,
    show: Show,
    /// What its values are decoded as; known while the foreign table is looked at.
    #[serde(skip)]
    kind: Option<Kind>,
    /// Whether it is to have an index.
    #[serde(default)]
    index: bool,
    /// The index that was made for it.
    #[serde(default)]
    index_oid: Option<u32>,
}

impl FollowedColumn {
    /// Whether it is the record's identity.
    fn is_key(&self) -> bool {
        self.field == "sys_id" && self.show == Show::Value
    }

    /// Whether both hold the same.
    fn same_content(&self, other: &Self) -> bool {
        (&self.type_, &self.field, self.show) == (&other.type_, &other.field, other.show)
    }
}

/// The parts of a row's version that the cache has columns of its own for.
fn hidden(columns: &[FollowedColumn]) -> impl Iterator<Item = &'static VersionPart> {
    let shows = |part: &VersionPart| {
        let kinds = columns.iter().map(|c| (c.field.as_str(), c.show, c.kind.unwrap_or(Kind::Text)));
        part.position(kinds).is_some()
    };
    VERSION.iter().filter(move |part| !shows(part))
}

/// Makes or changes the cache of a relation, if it is one of our foreign tables.
pub fn follow(relation: pg_sys::Oid) {
    let Some((server, options)) = pg::catalog::foreign_table(relation, WRAPPER) else { return };
    let name = pg::catalog::relation_name(relation).unwrap_or_default();
    let options = TableOptions::parse(&options).unwrap_or_else(|e| raise(e));
    let table = options.table.unwrap_or_else(|| catalog::default_table(&name));
    require_utf8();
    if pg::catalog::is_temporary(relation) {
        raise(
            error(
                Sql::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("foreign table \"{name}\" cannot be temporary"),
            )
            .set_hint("Its cache would outlive the session; create it in a permanent schema."),
        );
    }
    let mut columns = columns_of(relation, &name);
    let wanted = |cache, columns: &[FollowedColumn]| Follow {
        cache,
        remote_table: table.to_string(),
        query: options.query_text.clone(),
        columns: serde_json::to_value(columns).expect("columns are plain data"),
    };
    match catalog::followed(relation) {
        None => {
            let cache = create(&name, &mut columns);
            catalog::insert_followed(relation, wanted(cache, &columns));
        }
        Some(before) if pg::catalog::relation_kind(before.cache).is_none() => {
            // Somebody has dropped it by hand.
            let cache = create(&name, &mut columns);
            catalog::update_followed(relation, wanted(cache, &columns), Refill::FromNothing);
        }
        Some(before) => {
            let old: Vec<FollowedColumn> = serde_json::from_value(before.columns.clone()).unwrap_or_default();
            let versions_lost = alter(before.cache, &old, &columns);
            let is_new = |column: &&FollowedColumn| {
                !old.iter().any(|before| before.number == column.number && before.same_content(column))
            };
            let new: Vec<&FollowedColumn> = columns.iter().filter(is_new).collect();
            catalog::settle_drift(server, &table, new.iter().map(|c| c.field.clone()).collect());
            let new: Vec<i16> = new.iter().map(|column| column.number).collect();
            index(before.cache, &old, &mut columns);
            rename(before.cache, &name);
            let after = wanted(before.cache, &columns);
            let other_rows = (&before.remote_table, &before.query) != (&after.remote_table, &after.query);
            let key = |columns: &[FollowedColumn]| columns.iter().find(|c| c.is_key()).map(|c| c.number);
            let refill = match new.is_empty() {
                _ if other_rows || key(&old) != key(&columns) => Refill::FromNothing,
                _ if versions_lost => Refill::InPlace,
                false => Refill::Columns(new),
                true => Refill::No,
            };
            if refill != Refill::No || before.columns != after.columns {
                catalog::update_followed(relation, after, refill);
            }
        }
    }
    catalog::announce(relation);
}

/// Drops the cache of a foreign table that is gone.
pub fn forget(relation: pg_sys::Oid) {
    if let Some(cache) = catalog::delete_followed(relation) {
        drop_cache(cache);
        catalog::announce(relation);
    }
}

/// Makes sure that the cache is there and whole, whatever was done to it by hand. One that is keeps its readers.
pub fn repair(relation: pg_sys::Oid) {
    if !is_intact(relation) {
        // Readers that have been told of the old cache must be done with it.
        pg::catalog::lock_exclusively(relation);
        if let Some(followed) = catalog::followed(relation)
            && pg::catalog::relation_kind(followed.cache).is_some()
            && !is_intact(relation)
        {
            drop_cache(followed.cache);
        }
    }
    follow(relation);
}

fn is_intact(relation: pg_sys::Oid) -> bool {
    let name = pg::catalog::relation_name(relation).unwrap_or_default();
    let there = catalog::followed(relation).filter(|f| pg::catalog::relation_kind(f.cache).is_some());
    there.is_some_and(|followed| fits(followed.cache, &columns_of(relation, &name)))
}

/// Whether a cache table has every column it should have, and its key.
fn fits(cache: pg_sys::Oid, columns: &[FollowedColumn]) -> bool {
    let attributes = pg::catalog::attributes(cache);
    let has = |name: &str, type_: &str| attributes.iter().any(|a| a.name == name && type_of(a) == type_);
    columns.iter().all(|column| has(&column.name, &column.type_))
        && hidden(columns).all(|part| has(part.hidden_column, type_map::sql_type(part.kind)))
        && columns.iter().find(|c| c.is_key()).is_some_and(|c| {
            let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
            let writer = pg::table::TableWriter::open(cache, &names, &c.name, pg::table::Triggers::Query);
            writer.map(pg::table::TableWriter::close).is_some()
        })
}

/// Text in the cache is UTF-8, as ServiceNow sends it.
fn require_utf8() {
    if !pg::session::database_is_utf8() {
        raise(
            error(Sql::ERRCODE_FEATURE_NOT_SUPPORTED, "database encoding must be UTF8")
                .set_hint("Create a database with ENCODING 'UTF8' for the foreign tables."),
        );
    }
}

fn columns_of(relation: pg_sys::Oid, name: &str) -> Vec<FollowedColumn> {
    let mut columns = Vec::new();
    let attributes = pg::catalog::attributes(relation);
    for attribute in attributes.iter().filter(|attribute| !attribute.dropped) {
        if VERSION.iter().any(|part| part.hidden_column == attribute.name) {
            raise(error(
                Sql::ERRCODE_RESERVED_NAME,
                format!("column name \"{}\" is reserved in foreign table \"{name}\"", attribute.name),
            ));
        }
        if attribute.generated {
            refuse_generated(relation, attribute, name);
            continue; // whoever reads it computes it
        }
        if !pg::catalog::is_plain_type(attribute.type_oid) {
            // The cache is filled by a superuser, who must not run what a user wrote into a domain's check.
            raise(
                error(
                    Sql::ERRCODE_FEATURE_NOT_SUPPORTED,
                    format!(
                        "column \"{}\" of foreign table \"{name}\" cannot have type {}",
                        attribute.name,
                        pg::catalog::type_name(attribute.type_oid, attribute.typmod)
                    ),
                )
                .set_hint("Use a base type or an enum, such as text."),
            );
        }
        let options = ColumnOptions::parse(&pg::catalog::column_options(relation, attribute.number));
        columns.push(FollowedColumn {
            number: attribute.number,
            type_: type_of(attribute),
            field: options.field.unwrap_or_else(|| attribute.name.clone()),
            show: options.show,
            kind: (options.show == Show::Value).then(|| type_map::kind_of(attribute.type_oid)),
            name: attribute.name.clone(),
            index: options.index,
            index_oid: None,
        });
    }
    let keys: Vec<&FollowedColumn> = columns.iter().filter(|column| column.is_key()).collect();
    match keys.as_slice() {
        [] => raise(catalog::no_key(name)),
        [key] => {
            refuse_key(&attributes, key, name);
            columns
        }
        [_, again, ..] => raise(error(
            Sql::ERRCODE_DUPLICATE_COLUMN,
            format!(
                "column \"{}\" of foreign table \"{name}\" is a second one for field \"sys_id\"",
                again.name
            ),
        )),
    }
}

/// Refuses a key that could not hold every `sys_id`, or takes two of them for one.
fn refuse_key(attributes: &[Attribute], key: &FollowedColumn, name: &str) {
    let Some(attribute) = attributes.iter().find(|attribute| attribute.number == key.number) else { return };
    let refuse = |code, what: &str, hint: &str| {
        let message = format!("column \"{}\" of foreign table \"{name}\" must have {what}", key.name);
        raise(error(code, message).set_hint(hint))
    };
    if !matches!(attribute.type_oid, pg_sys::TEXTOID | pg_sys::VARCHAROID) {
        let hint = "A sys_id is not always 32 hexadecimal digits.";
        refuse(Sql::ERRCODE_FDW_INVALID_DATA_TYPE, "type text", hint)
    }
    if !pg::catalog::is_deterministic(attribute.collation) {
        let hint = "Values of sys_id that differ are different records; use another collation, or none.";
        refuse(Sql::ERRCODE_FEATURE_NOT_SUPPORTED, "a deterministic collation", hint)
    }
}

/// Refuses what a generated column cannot be.
fn refuse_generated(relation: pg_sys::Oid, attribute: &Attribute, name: &str) {
    let refuse = |what: &str, hint: &str| {
        let column = &attribute.name;
        let message = format!("generated column \"{column}\" of foreign table \"{name}\" cannot {what}");
        raise(error(Sql::ERRCODE_FEATURE_NOT_SUPPORTED, message).set_hint(hint))
    };
    if !pg::catalog::column_options(relation, attribute.number).is_empty() {
        refuse("have options", "It is computed from other columns whenever it is read, and not in the cache.")
    }
    if pg::generated::reads_tableoid(relation, attribute.number) {
        refuse("read tableoid", "Write the table's name into the expression instead.")
    }
}

fn type_of(attribute: &Attribute) -> String {
    pg::catalog::type_name(attribute.type_oid, attribute.typmod)
        + &pg::catalog::collation_clause(attribute.type_oid, attribute.collation)
}

fn create(name: &str, columns: &mut [FollowedColumn]) -> pg_sys::Oid {
    let name = free_name(name);
    let mut definitions: Vec<String> =
        columns.iter().map(|column| format!("{} {}", quote_identifier(&column.name), column.type_)).collect();
    definitions.extend(
        hidden(columns).map(|part| format!("{} {}", part.hidden_column, type_map::sql_type(part.kind))),
    );
    if let Some(key) = columns.iter().find(|column| column.is_key()) {
        definitions.push(format!("PRIMARY KEY ({})", quote_identifier(&key.name)));
    }
    let table = format!("{SCHEMA}.{}", quote_identifier(&name));
    {
        // A member of the extension is left out of dumps: a restored database refills its caches.
        let _member = AsExtension::begin(EXTENSION);
        run(&format!("CREATE TABLE {table} ({})", definitions.join(", ")));
    }
    let cache = pg::catalog::relation_in(SCHEMA, &name).expect("the table was just made");
    if let Some(key) = columns.iter().find(|column| column.is_key()) {
        index_order(&table, &key.name);
    }
    run(&format!("COMMENT ON TABLE {table} IS 'cache of a foreign table; do not write to it'"));
    index(cache, &[], columns);
    cache
}

/// Makes the index by which ranges of `sys_id`s are found. It is not the primary key: that sorts as the column's collation
/// does, and ranges are those of the instance.
fn index_order(table: &str, key: &str) {
    run(&format!("CREATE INDEX ON {table} (({}))", apply::instance_order(&quote_identifier(key))));
}

/// Makes the indexes that columns are to have, and drops those they had. Others are the DBA's.
fn index(cache: pg_sys::Oid, old: &[FollowedColumn], new: &mut [FollowedColumn]) {
    let table = catalog::qualified(cache);
    for column in new {
        let before = old.iter().find(|before| before.number == column.number);
        let known = before.and_then(|before| before.index_oid);
        let there = known.filter(|index| pg::catalog::indexes(cache).contains(&(*index).into()));
        column.index_oid = match (column.index && !column.is_key(), there) {
            (true, Some(index)) => Some(index),
            (true, None) => {
                let before = pg::catalog::indexes(cache);
                run(&format!("CREATE INDEX ON {table} ({})", quote_identifier(&column.name)));
                let made = pg::catalog::indexes(cache).into_iter().find(|index| !before.contains(index));
                made.map(pg_sys::Oid::to_u32)
            }
            (false, Some(index)) => {
                run(&format!("DROP INDEX {}", catalog::qualified(index.into())));
                None
            }
            (false, None) => None,
        };
    }
}

/// Whose members caches are.
const EXTENSION: &CStr = c"servicenow_fdw";
/// The first key of the locks on names of caches that transactions are about to make: `snoy` in ASCII.
const NAME_CLASS: i32 = 0x736e_6f79;

/// The foreign table's own name if it is free among the caches, else with a number behind it.
fn free_name(name: &str) -> String {
    // One that a transaction is about to make would have to be waited for.
    let taken = |name: &str| {
        pg::catalog::relation_in(SCHEMA, name).is_some() || !pg::xact::try_lock_name(NAME_CLASS, name)
    };
    let mut end = name.len().min(pg::catalog::NAME_LENGTH - 5);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    let stem = &name[..end];
    std::iter::once(name.to_owned())
        .chain((1..).map(|n| format!("{stem}_{n}")))
        .find(|name| !taken(name))
        .expect("some number is free")
}

/// Brings the cache's columns in line; gives back whether the rows' versions are not known any more.
fn alter(cache: pg_sys::Oid, old: &[FollowedColumn], new: &[FollowedColumn]) -> bool {
    let table = catalog::qualified(cache);
    let twin = |column: &FollowedColumn| old.iter().find(|before| before.number == column.number);
    // Drop first and rename in two steps, so that names may be swapped.
    let mut to_rename = Vec::new();
    let mut to_add = Vec::new();
    for before in old {
        if !new.iter().any(|column| column.number == before.number && column.same_content(before)) {
            run(&format!("ALTER TABLE {table} DROP COLUMN IF EXISTS {}", quote_identifier(&before.name)));
        }
    }
    for column in new {
        match twin(column) {
            Some(before) if before.same_content(column) => {
                if before.name != column.name {
                    let parked = format!("_sn_renamed_{}", column.number);
                    rename_column(&table, &before.name, &parked);
                    to_rename.push((parked, &column.name));
                }
            }
            _ => to_add.push(column),
        }
    }
    for (parked, name) in to_rename {
        rename_column(&table, &parked, name);
    }
    for column in &to_add {
        let (name, type_) = (quote_identifier(&column.name), &column.type_);
        run(&format!("ALTER TABLE {table} ADD COLUMN {name} {type_}"));
        if column.is_key() {
            // The key itself was made anew: nothing in the cache can be told apart any more.
            run(&format!("DELETE FROM {table}"));
            run(&format!("ALTER TABLE {table} ADD PRIMARY KEY ({name})"));
            index_order(&table, &column.name);
        }
    }
    let shows_version = |column: &&FollowedColumn| VERSION.iter().any(|part| part.field == column.field);
    alter_hidden(cache, new) || to_add.iter().copied().any(|column| shows_version(&column))
}

/// Brings the cache's own columns in line; gives back whether one was added, which knows nothing of the rows yet.
fn alter_hidden(cache: pg_sys::Oid, columns: &[FollowedColumn]) -> bool {
    let table = catalog::qualified(cache);
    let attributes = pg::catalog::attributes(cache);
    let mut added = false;
    for part in &VERSION {
        let name = part.hidden_column;
        let is_there = attributes.iter().any(|attribute| attribute.name == name);
        match (is_there, hidden(columns).any(|hidden| hidden.field == part.field)) {
            (false, true) => {
                run(&format!("ALTER TABLE {table} ADD COLUMN {name} {}", type_map::sql_type(part.kind)));
                added = true;
            }
            (true, false) => run(&format!("ALTER TABLE {table} DROP COLUMN {name}")),
            _ => {}
        }
    }
    added
}

fn rename_column(table: &str, from: &str, to: &str) {
    let (from, to) = (quote_identifier(from), quote_identifier(to));
    run(&format!("ALTER TABLE {table} RENAME COLUMN {from} TO {to}"));
}

/// Has the cache's name follow the foreign table's.
fn rename(cache: pg_sys::Oid, name: &str) {
    let current = pg::catalog::relation_name(cache).unwrap_or_default();
    let is_numbered = current.strip_prefix(name).and_then(|rest| rest.strip_prefix('_'));
    if current == name || is_numbered.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit())) {
        return;
    }
    let name = free_name(name);
    run(&format!("ALTER TABLE {} RENAME TO {}", catalog::qualified(cache), quote_identifier(name)));
}

fn drop_cache(cache: pg_sys::Oid) {
    if pg::catalog::relation_kind(cache).is_some() {
        let table = catalog::qualified(cache);
        let drop = || {
            let _member = AsExtension::begin(EXTENSION);
            run(&format!("DROP TABLE {table}"));
        };
        match pg::xact::subtransaction(drop) {
            Ok(()) => {}
            Err(caught) if caught.sqlstate == Sql::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST => {
                raise(error(caught.sqlstate, caught.message).set_hint(format!(
                    "Somebody has made an object on the cache; drop it first: \\d+ {table}."
                )))
            }
            Err(caught) => raise(error(caught.sqlstate, caught.message)),
        }
    }
}

/// Runs a statement as the current (the extension's) owner.
fn run(sql: &str) {
    Spi::run(sql).expect("a valid use of SPI");
}
