//! From what people see to what is stored: labels of choices, names of referenced records. What cannot be
//! resolved is an ERROR, before anything is sent.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use servicenow::client::table_api::List;
use servicenow::dictionary::{FieldDef, Reference, Resolution};
use servicenow::page::Layout;
use servicenow::query::{Op, Query, Term};
use servicenow::value::TableName;

use crate::catalog;
use crate::connection::Connection;
use crate::error::{error, raise};

/// More than this many choices do not help in a message.
const MANY: usize = 20;

/// A field or choice that is not known: the ERROR to raise, unless it turns out to have been added since.
pub struct Unknown(pub Box<ErrorReport>);

/// A value that the instance would not take, and would not say so.
fn not_valid(value: &str, field: &FieldDef) -> ErrorReport {
    error(
        Sql::ERRCODE_CHECK_VIOLATION,
        format!("[ServiceNow] Value `{value}` is not a valid value for `{}`.", field.name),
    )
}

/// The stored value behind the label of a choice; `dependent` is the value of the field the choices depend on.
pub fn choice(field: &FieldDef, label: &str, dependent: Option<&str>) -> Result<String, Unknown> {
    match field.resolve_label(label, dependent) {
        Resolution::Value(value) => Ok(value),
        Resolution::Unknown => {
            Err(Unknown(Box::new(not_valid(label, field).set_hint(offer(field, dependent)))))
        }
        Resolution::Ambiguous(values) => raise(
            error(
                Sql::ERRCODE_CHECK_VIOLATION,
                format!("value \"{label}\" for \"{}\" is ambiguous", field.name),
            )
            .set_detail(format!("Stored values with this label: {}.", values.join(", ")))
            .set_hint(use_value(field)),
        ),
    }
}

/// Checks a stored value against a binding list of choices.
pub fn stored_choice(field: &FieldDef, value: &str) -> Result<(), Unknown> {
    match field.accepts(value) {
        true => Ok(()),
        false => Err(Unknown(Box::new(not_valid(value, field).set_hint(offer(field, None))))),
    }
}

fn offer(field: &FieldDef, dependent: Option<&str>) -> String {
    let mut labels: Vec<String> =
        field.offers(dependent).iter().map(|choice| format!("{} ({})", choice.label, choice.value)).collect();
    let more = if labels.len() > MANY { ", …" } else { "" };
    labels.truncate(MANY);
    format!("Valid values are: {}{more}.", labels.join(", "))
}

fn use_value(field: &FieldDef) -> String {
    format!("Set the stored value instead, through column \"{}_value\".", field.name)
}

/// How long a name is known to be a record's, if the sync does not say otherwise.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// The most names a session remembers.
const NAMES: usize = 10_000;

/// A record's name, as a login sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name {
    login: (pg_sys::Oid, pg_sys::Oid),
    table: TableName,
    field: String,
    name: String,
}

thread_local! {
    /// The records behind names, and when they were looked up.
    static KNOWN: RefCell<HashMap<Name, (String, Instant)>> = RefCell::new(HashMap::new());
}

/// The `sys_id` of the record that a reference shows as `name`: looked up, or as this session has looked it up a short
/// while ago.
pub fn reference(connection: &Connection, field: &FieldDef, reference: &Reference, name: &str) -> String {
    if catalog::take_names_changed() {
        KNOWN.with_borrow_mut(HashMap::clear);
    }
    let key = Name {
        login: connection.login(),
        table: reference.table.clone(),
        field: reference.display_field.clone().unwrap_or_default(),
        name: name.to_owned(),
    };
    let known = KNOWN.with_borrow(|known| known.get(&key).cloned());
    if let Some((id, _)) = known.filter(|(_, at)| at.elapsed() < KNOWN_FOR) {
        return id;
    }
    let id = look_up(connection, field, reference, name);
    KNOWN.with_borrow_mut(|known| {
        if known.len() >= NAMES {
            known.clear();
        }
        known.insert(key, (id.clone(), Instant::now()));
    });
    id
}

/// Records of a table are written by this session: they may be called otherwise now, or be others. They are also records of
/// the tables that it extends, and perhaps of those that extend it.
pub fn forget_names(server: pg_sys::Oid, table: &TableName) {
    if KNOWN.with_borrow(HashMap::is_empty) {
        return;
    }
    let is_within = |inner: &TableName, outer: &TableName| {
        catalog::definition(server, inner).is_some_and(|def| def.chain.contains(outer))
    };
    let tables: HashSet<TableName> =
        KNOWN.with_borrow(|known| known.keys().map(|name| name.table.clone()).collect());
    let is_concerned =
        |other: &TableName| other == table || is_within(table, other) || is_within(other, table);
    let concerned: HashSet<TableName> = tables.into_iter().filter(is_concerned).collect();
    KNOWN.with_borrow_mut(|known| known.retain(|name, _| !concerned.contains(&name.table)));
}

/// What was looked up may have been this session's own work, which is taken back.
pub fn forget_all_names() {
    KNOWN.with_borrow_mut(HashMap::clear);
}

fn look_up(connection: &Connection, field: &FieldDef, reference: &Reference, name: &str) -> String {
    let cannot = |why: &str| {
        error(
            Sql::ERRCODE_CHECK_VIOLATION,
            format!("cannot look up \"{name}\" for \"{}\": {why}", field.name),
        )
        .set_hint(use_value(field))
    };
    let Some(display_field) = reference.display_field.clone() else {
        raise(cannot(&format!("it is not known which field of table \"{}\" is shown", reference.table)))
    };
    let Ok(term) = Term::new(&display_field, Op::Eq, name) else {
        raise(cannot("the value cannot be expressed in a query"))
    };
    let (table, query) = (reference.table.clone(), Query::all().and(term).order_by("sys_id"));
    let what = format!("look up \"{name}\" in table \"{table}\"");
    let rows = connection.call(&what, false, |client| async move {
        let layout = Arc::new(Layout::of_text(&[&display_field]));
        // The instance compares without regard to case and trailing blanks, so there may be inexact ones.
        let list = List { table: &table, query: &query, layout: &layout, limit: 20, offset: 0, count: false };
        client.list(list).await.map(|page| page.rows)
    });
    let exact: Vec<&str> =
        (0..rows.len()).filter(|&row| rows.text(row, 0) == name).map(|row| rows.id(row)).collect();
    let all: Vec<&str> = rows.ids().collect();
    let complain = |how_many: &str| -> ! {
        raise(
            not_valid(name, field)
                .set_detail(format!("Table \"{}\" has {how_many} of this name.", reference.table))
                .set_hint(use_value(field)),
        )
    };
    match (exact.as_slice(), all.as_slice()) {
        ([id], _) | ([], [id]) => (*id).to_owned(),
        ([], []) => complain("no record"),
        _ => complain("several records"),
    }
}
