//! From names of referenced records, as people see them, to the records. What cannot be resolved is an ERROR, before anything
//! is sent.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use servicenow::client::table_api::List;
use servicenow::dictionary::Reference;
use servicenow::page::{Layout, Rows};
use servicenow::query::{Op, Query, Term};
use servicenow::value::TableName;

use super::draft::{Sent, contradiction};
use super::label::{not_valid, use_value};
use crate::catalog;
use crate::connection::Connection;
use crate::error::{error, raise};

/// How long a name is known to be a record's, if the sync does not say otherwise.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// The most names a session remembers.
const NAMES: usize = 10_000;
/// The most records of one name, as the instance compares, among which the one that is meant is looked for.
const NAMESAKES: u32 = 20;

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

impl Name {
    fn new(connection: &Connection, reference: &Reference, name: &str) -> Self {
        Self {
            login: connection.login(),
            table: reference.table.clone(),
            field: reference.display_field.clone().unwrap_or_default(),
            name: name.to_owned(),
        }
    }

    /// The record, if this session has looked it up a short while ago.
    fn known(&self) -> Option<String> {
        let known = KNOWN.with_borrow(|known| known.get(self).cloned());
        known.filter(|(_, at)| at.elapsed() < KNOWN_FOR).map(|(id, _)| id)
    }

    fn remember(self, id: String) {
        KNOWN.with_borrow_mut(|known| {
            if known.len() >= NAMES {
                known.clear();
            }
            known.insert(self, (id, Instant::now()));
        });
    }
}

/// Puts the `sys_id`s of records in place of the names that are to be sent: looked up, those of a table together, or as this
/// session has looked them up a short while ago.
pub fn resolve<'s>(connection: &Connection, sent: impl Iterator<Item = &'s mut Sent>) {
    let mut named: Vec<&mut Sent> = sent.filter(|sent| sent.name.is_some()).collect();
    if named.is_empty() {
        return;
    }
    if catalog::take_names_changed() {
        KNOWN.with_borrow_mut(HashMap::clear);
    }
    look_up_together(connection, &named);
    for sent in &mut named {
        let (Some(wanted), Some(name)) = (sent.name.take(), &sent.label) else { continue };
        let key = Name::new(connection, &wanted.reference, name);
        let id = key.known().unwrap_or_else(|| {
            let id = look_up(connection, &sent.field, &wanted.reference, name);
            key.remember(id.clone());
            id
        });
        if wanted.is_given && sent.value != id {
            raise(contradiction(&sent.field));
        }
        sent.value = id;
    }
}

/// Has names be known of which exactly one record is called so. The others are looked up one by one, and complained about.
fn look_up_together(connection: &Connection, named: &[&mut Sent]) {
    let mut unknown: HashMap<(TableName, String), HashSet<&str>> = HashMap::new();
    for sent in named {
        let (Some(wanted), Some(name)) = (&sent.name, &sent.label) else { continue };
        let Reference { table, display_field: Some(field), .. } = &wanted.reference else { continue };
        if Name::new(connection, &wanted.reference, name).known().is_none() {
            unknown.entry((table.clone(), field.clone())).or_default().insert(name);
        }
    }
    for ((table, field), names) in unknown.into_iter().filter(|(_, names)| names.len() > 1) {
        let reference = Reference { table: table.clone(), display_field: Some(field.clone()) };
        let what = format!("look up {} names in table \"{table}\"", names.len());
        let wanted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let rows: Rows = connection.call(&what, false, |client| async move {
            let layout = Arc::new(Layout::of_text(&[&field]));
            let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
            client.look_by(&table, &field, &names, &layout).await
        });
        let mut found: HashMap<&str, Vec<&str>> = HashMap::new();
        for row in 0..rows.len() {
            found.entry(rows.text(row, 0)).or_default().push(rows.id(row));
        }
        for name in names {
            if let Some([id]) = found.get(name).map(Vec::as_slice) {
                Name::new(connection, &reference, name).remember((*id).to_owned());
            }
        }
    }
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

fn look_up(connection: &Connection, field: &str, reference: &Reference, name: &str) -> String {
    let cannot = |why: &str| {
        error(Sql::ERRCODE_CHECK_VIOLATION, format!("cannot look up \"{name}\" for \"{field}\": {why}"))
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
    let (rows, total) = connection.call(&what, false, |client| async move {
        let layout = Arc::new(Layout::of_text(&[&display_field]));
        // The instance compares without regard to case and trailing blanks, so there may be inexact ones.
        let (limit, table, query, layout) = (NAMESAKES, &table, &query, &layout);
        let page = client.list(List { table, query, layout, limit, offset: 0, count: true }).await?;
        Ok((page.rows, page.total))
    });
    // Of those that were not shown, one more may be called just so.
    let is_all = total.unwrap_or(rows.len() as u64) <= NAMESAKES.into();
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
        ([id], _) | ([], [id]) if is_all => (*id).to_owned(),
        ([], []) if is_all => complain("no record"),
        _ => complain("several records"),
    }
}
