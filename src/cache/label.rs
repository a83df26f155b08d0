//! Columns that show what has changed in other tables than their own: names of referenced records, fields of them, and
//! labels of choices.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use pgrx::spi::quote_identifier;
use servicenow::page::Rows;
use servicenow::sync::store::{Relabelling, Renamed};

use super::apply::{self, Outcome, each_row, lock_free, misfit, to_scalar, to_value, versions};
use super::change::{ChangeLog, Op, Source};
use crate::catalog::{self, Mirror, get};
use crate::error::raise;
use crate::pg::table::TableWriter;
use crate::pg::tuple::{OwnedScalar, Scalar};

/// Rows given new values in one go.
const ROWS_AT_A_TIME: usize = 20_000;

/// Some columns of a cache, opened for writing, and what has to be known of rows for the log besides.
struct ColumnWriter {
    mirror: Rc<Mirror>,
    table: TableWriter,
    /// By position in the mirror; the first `written` of them are written. Some may come twice.
    columns: Vec<usize>,
    written: usize,
    log: Option<ChangeLog>,
}

impl ColumnWriter {
    /// Changes are logged as from `source`, if the mirror keeps a log.
    fn open(mirror: &Rc<Mirror>, written: &[usize], seen: &[usize], source: Option<Source>) -> Self {
        let log = source.filter(|_| mirror.cdc).map(ChangeLog::new);
        let mut columns: Vec<usize> = written.iter().chain(seen).copied().collect();
        let logged = [mirror.updated_on, mirror.updated_by].into_iter().flatten();
        columns.extend(logged.filter(|_| log.is_some()));
        let table = apply::open_columns(mirror, &columns);
        Self { mirror: mirror.clone(), table, columns, written: written.len(), log }
    }

    /// The texts of the first so many columns of the row last found.
    fn found_texts(&self, columns: usize) -> Vec<Option<String>> {
        let text = |at| match self.table.found_value(at) {
            OwnedScalar::Null => None,
            other => to_value(&other).encode().ok(),
        };
        (0..columns).map(text).collect()
    }

    /// Writes columns of the row last found, by their order; gives back whether that makes a difference.
    fn put<'v>(&mut self, id: &str, value: impl Fn(usize) -> Scalar<'v>) -> bool {
        let kept: Vec<OwnedScalar> =
            (self.written..self.columns.len()).map(|at| self.table.found_value(at)).collect();
        let written = self.written;
        let all = |at: usize| if at < written { value(at) } else { kept[at - written].borrow() };
        let changed = self.table.stage(all);
        let changed = changed.unwrap_or_else(|at| raise(misfit(&self.mirror, id, self.columns[at.column])));
        if changed.iter().all(|at| *at >= written) {
            self.table.keep();
            return false;
        }
        if let Some(log) = &mut self.log {
            let (table, columns) = (&self.table, &self.columns);
            let changes = changed.into_iter().filter(|at| *at < written);
            let changes = changes.map(|at| (columns[at], table.found_value(at), table.staged_value(at)));
            let row = |column| {
                let at = columns.iter().position(|other| *other == column);
                at.map_or(OwnedScalar::Null, |at| table.staged_value(at))
            };
            log.add(&self.mirror, Op::Update, id, changes, row);
        }
        self.table.update();
        true
    }

    fn close(self) {
        self.table.close();
        if let Some(mut log) = self.log {
            log.write(&self.mirror);
        }
    }
}

/// Puts a few columns (positions in the mirror) of rows into the cache, where it has those rows in that version. What
/// else is different is left to whoever compares. Changes are logged as from `source`.
pub fn put_columns(mirror: &Rc<Mirror>, columns: &[usize], rows: &Rows, source: Option<Source>) -> Outcome {
    let free = lock_free(mirror, rows.ids());
    let there = versions(mirror, rows.ids());
    let mut writer = ColumnWriter::open(mirror, columns, &[], source);
    let mut outcome = Outcome::default();
    for row in 0..rows.len() {
        let id = rows.id(row);
        if there.get(id) != Some(&rows.version(row)) {
            continue;
        }
        if !free.contains(id) || !writer.table.find(id) {
            outcome.unsettled.push(id.to_owned());
            continue;
        }
        outcome.updated += i64::from(writer.put(id, |column| to_scalar(rows.value(row, column))));
    }
    writer.close();
    outcome
}

/// Has every row show what the records it refers to are called now. One look at the cache serves all its columns.
pub fn relabel(mirror: &Rc<Mirror>, relabelling: &Relabelling, source: Option<Source>) -> Outcome {
    let names: HashMap<&str, &Vec<Option<String>>> =
        relabelling.records.iter().map(|(id, names)| (id.as_str(), names)).collect();
    let distinct = |which: fn(&Renamed) -> usize| -> Vec<usize> {
        relabelling.columns.iter().map(which).collect::<BTreeSet<_>>().into_iter().collect()
    };
    let (labels, by) = (distinct(|renamed| renamed.column), distinct(|renamed| renamed.by));
    let at = |columns: &[usize], column| columns.binary_search(&column).unwrap_or_default();
    let show = |texts: &mut [Option<String>]| {
        for renamed in &relabelling.columns {
            let names = texts[labels.len() + at(&by, renamed.by)].as_deref().and_then(|id| names.get(id));
            if let Some(Some(name)) = names.and_then(|names| names.get(renamed.name)) {
                texts[at(&labels, renamed.column)] = Some(name.clone()).filter(|name| !name.is_empty());
            }
        }
    };
    let ids = relabelling.records.iter().map(|(id, _)| id.as_str()).collect();
    rewrite(mirror, (by.clone(), ids), &labels, &by, source, show)
}

/// Has rows show something else in some columns of text. The rows are those that hold one of the texts in one of the
/// columns of `holds`, found by index where all of these have one. `show` gets the texts of `written` and `seen`, in this
/// order, and changes those of `written`.
pub fn rewrite(
    mirror: &Rc<Mirror>,
    holds: (Vec<usize>, Vec<&str>),
    written: &[usize],
    seen: &[usize],
    source: Option<Source>,
    show: impl Fn(&mut [Option<String>]),
) -> Outcome {
    let shown = |texts: &[Option<String>]| {
        let mut shown = texts.to_vec();
        show(&mut shown);
        shown
    };
    let columns: Vec<usize> = written.iter().chain(seen).copied().collect();
    let name = |column: &usize| quote_identifier(&mirror.columns[*column].name);
    let wanted: Vec<String> = columns.iter().map(|column| format!("{}::text", name(column))).collect();
    let (by, texts) = holds;
    let holds: Vec<String> = by.iter().map(|column| format!("{}::text = ANY ($1)", name(column))).collect();
    let sql = format!(
        "SELECT {}::text, {} FROM {} WHERE {}",
        name(&mirror.key),
        wanted.join(", "),
        catalog::qualified(mirror.cache),
        holds.join(" OR ")
    );
    let mut stale: Vec<String> = Vec::new();
    each_row(&sql, &[texts.into()], |row| {
        let texts: Vec<Option<String>> = (0..columns.len()).map(|at| get(row, at + 2)).collect();
        if shown(&texts) != texts {
            stale.extend(get::<String>(row, 1));
        }
    });
    let mut outcome = Outcome::default();
    if stale.is_empty() {
        return outcome;
    }
    let mut writer = ColumnWriter::open(mirror, written, seen, source);
    for some in stale.chunks(ROWS_AT_A_TIME) {
        let free = lock_free(mirror, some.iter().map(String::as_str));
        for id in some {
            // Somebody is writing it: it is read again as a whole.
            if !free.contains(id) || !writer.table.find(id) {
                outcome.unsettled.push(id.clone());
                continue;
            }
            let now = shown(&writer.found_texts(columns.len()));
            let value = |at: usize| now[at].as_deref().map_or(Scalar::Null, Scalar::Text);
            outcome.updated += i64::from(writer.put(id, value));
        }
    }
    writer.close();
    outcome
}

/// The rows that hold one of these texts in one of these columns (positions in the mirror).
pub fn holders(mirror: &Mirror, texts: &[(usize, Vec<String>)]) -> Vec<String> {
    let name = |column: usize| quote_identifier(&mirror.columns[column].name);
    let holds: Vec<String> = texts
        .iter()
        .zip(1..)
        .map(|((column, _), n)| format!("{}::text = ANY (${n})", name(*column)))
        .collect();
    if holds.is_empty() {
        return Vec::new();
    }
    let table = catalog::qualified(mirror.cache);
    let sql = format!("SELECT {}::text FROM {table} WHERE {}", name(mirror.key), holds.join(" OR "));
    let args: Vec<_> = texts.iter().map(|(_, texts)| texts.clone().into()).collect();
    let mut found = Vec::new();
    each_row(&sql, &args, |row| found.extend(get::<String>(row, 1)));
    found
}
