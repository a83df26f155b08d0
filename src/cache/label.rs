//! Columns that show what has changed in other tables than their own: names of referenced records, fields of them, and
//! labels of choices.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use pgrx::check_for_interrupts;
use pgrx::datum::DatumWithOid;
use pgrx::spi::{Spi, SpiHeapTupleData, quote_identifier};
use servicenow::page::Rows;
use servicenow::sync::store::{Relabelling, Renamed};

use super::apply::{self, Outcome, each_row, lock_free, misfit, to_scalar, to_value, versions};
use super::as_text;
use super::change::{ChangeLog, Op, Source};
use crate::catalog::{self, Mirror, get, read};
use crate::error::raise;
use crate::pg;
use crate::pg::session::AsOwner;
use crate::pg::table::TableWriter;
use crate::pg::tuple::{OwnedScalar, Scalar};

/// Rows given new values in one go.
const ROWS_AT_A_TIME: usize = 2_000;
/// Rows of a cache, as Postgres estimates them, that are looked through rather than indexed.
const ROWS_WORTH_AN_INDEX: f32 = 20_000.0;

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
            // What a fill brings into an empty column was there before.
            let is_first = |before: &OwnedScalar| {
                log.source() == Source::Backfill && matches!(before, OwnedScalar::Null)
            };
            let changes: Vec<_> = changes.filter(|(_, before, _)| !is_first(before)).collect();
            let row = |column| {
                let at = columns.iter().position(|other| *other == column);
                at.map_or(OwnedScalar::Null, |at| table.staged_value(at))
            };
            if !changes.is_empty() {
                log.add(&self.mirror, Op::Update, id, changes, row);
            }
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

/// Does a piece of having every row show what the records it refers to are called now: in one pass over the cache, or over
/// what indexes find of it, that serves all its columns. It begins without a position; gives back where the next piece
/// begins, which is for a transaction of its own, and `None` behind the last one.
pub fn relabel(
    mirror: &Rc<Mirror>,
    relabelling: &Relabelling,
    position: Option<i64>,
    source: Option<Source>,
) -> (Outcome, Option<i64>) {
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
    let rewriting = Rewriting { mirror, written: &labels, seen: &by, show };
    let pass = Pass::of(mirror);
    let Some(position) = position else {
        let ids: Vec<&str> = relabelling.records.iter().map(|(id, _)| id.as_str()).collect();
        pass.begin(&rewriting.select(&by), ids);
        return (Outcome::default(), Some(0));
    };
    let mut stale = Vec::new();
    let found = pass.go_on(position, |row| stale.extend(rewriting.stale(row)));
    if found == 0 {
        pass.end();
        return (Outcome::default(), None);
    }
    (rewriting.write(&stale, source), Some(position + found))
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
    let rewriting = Rewriting { mirror, written, seen, show };
    let (by, texts) = holds;
    let mut stale: Vec<String> = Vec::new();
    each_row(&rewriting.select(&by), &[texts.into()], |row| stale.extend(rewriting.stale(row)));
    rewriting.write(&stale, source)
}

/// What rows are to show. See [`rewrite`].
struct Rewriting<'r, F> {
    mirror: &'r Rc<Mirror>,
    written: &'r [usize],
    seen: &'r [usize],
    show: F,
}

impl<F: Fn(&mut [Option<String>])> Rewriting<'_, F> {
    /// The query for keys and texts of the rows that hold one of `$1` in one of these columns.
    fn select(&self, by: &[usize]) -> String {
        let text = |column: &usize| as_text(self.mirror, "", &self.mirror.columns[*column]);
        let columns = self.written.iter().chain(self.seen);
        let wanted: Vec<String> = columns.map(text).collect();
        let holds: Vec<String> = by.iter().map(|column| format!("{} = ANY ($1)", text(column))).collect();
        format!(
            "SELECT {}, {} FROM {} WHERE {}",
            text(&self.mirror.key),
            wanted.join(", "),
            catalog::qualified(self.mirror.cache),
            holds.join(" OR ")
        )
    }

    fn shown(&self, texts: &[Option<String>]) -> Vec<Option<String>> {
        let mut shown = texts.to_vec();
        (self.show)(&mut shown);
        shown
    }

    fn width(&self) -> usize {
        self.written.len() + self.seen.len()
    }

    /// The key of a row that the query has found, if it is to show something else.
    fn stale(&self, row: &SpiHeapTupleData<'_>) -> Option<String> {
        let texts: Vec<Option<String>> = (0..self.width()).map(|at| get(row, at + 2)).collect();
        if self.shown(&texts) == texts { None } else { get(row, 1) }
    }

    /// Has rows show what they are to show. Those that somebody is writing are left to be read again as a whole.
    fn write(&self, stale: &[String], source: Option<Source>) -> Outcome {
        let mut outcome = Outcome::default();
        if stale.is_empty() {
            return outcome;
        }
        let mut writer = ColumnWriter::open(self.mirror, self.written, self.seen, source);
        for some in stale.chunks(ROWS_AT_A_TIME) {
            let free = lock_free(self.mirror, some.iter().map(String::as_str));
            for id in some {
                check_for_interrupts!();
                if !free.contains(id) || !writer.table.find(id) {
                    outcome.unsettled.push(id.clone());
                    continue;
                }
                let now = self.shown(&writer.found_texts(self.width()));
                let value = |at: usize| now[at].as_deref().map_or(Scalar::Null, Scalar::Text);
                outcome.updated += i64::from(writer.put(id, value));
            }
        }
        writer.close();
        outcome
    }
}

/// What one look at a cache has found, which several transactions work through: a cursor that outlasts the one that has
/// opened it. Postgres keeps its rows on disk if they are many.
struct Pass {
    cursor: String,
}

impl Pass {
    /// There is one for each cache.
    fn of(mirror: &Mirror) -> Self {
        Self { cursor: format!("servicenow_pass_{}", mirror.cache.to_u32()) }
    }

    /// Looks at the cache, with these texts for `$1`.
    fn begin(&self, select: &str, texts: Vec<&str>) {
        self.end();
        let _owner = AsOwner::begin();
        self.run(&format!("DECLARE {} SCROLL CURSOR WITH HOLD FOR {select}", self.cursor), &[texts.into()]);
    }

    /// Tells some of the rows found, from a position on; gives back how many.
    fn go_on(&self, position: i64, mut each: impl FnMut(&SpiHeapTupleData<'_>)) -> i64 {
        self.run(&format!("MOVE ABSOLUTE {position} FROM {}", self.cursor), &[]);
        let fetch = format!("FETCH FORWARD {ROWS_AT_A_TIME} FROM {}", self.cursor);
        Spi::connect_mut(|client| {
            let rows = client.update(&fetch, None, &[]).expect("a valid use of SPI");
            rows.map(|row| each(&row)).count() as i64
        })
    }

    /// Lets go of what was found, if anything was.
    fn end(&self) {
        let is_open = read(
            "SELECT FROM pg_catalog.pg_cursors WHERE name = $1",
            &[self.cursor.as_str().into()],
            |rows| rows.count() > 0,
        );
        if is_open {
            self.run(&format!("CLOSE {}", self.cursor), &[]);
        }
    }

    fn run(&self, sql: &str, args: &[DatumWithOid<'_>]) {
        Spi::connect_mut(|client| {
            client.update(sql, None, args).expect("a valid use of SPI");
        });
    }
}

/// Makes the index by which rows are found that refer to records, if one is missing and the cache is so large that it is
/// worth its writes. Gives back whether it has, so that others may have a turn before the next one. If somebody is in the
/// way, there is none for now.
pub fn index_references(mirror: &Mirror, relabelling: &Relabelling) -> bool {
    let names: Vec<&str> =
        relabelling.columns.iter().map(|renamed| mirror.columns[renamed.by].name.as_str()).collect();
    let missing: Option<String> = read(
        "SELECT a.attname::text
         FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class t ON t.oid = a.attrelid
         WHERE a.attrelid = $1 AND a.attname = ANY ($2::name[]) AND t.reltuples >= $3
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i
                               WHERE i.indrelid = a.attrelid AND i.indkey[0] = a.attnum AND i.indisvalid)
         ORDER BY a.attnum LIMIT 1",
        &[mirror.cache.into(), names.into(), ROWS_WORTH_AN_INDEX.into()],
        |mut rows| rows.next().and_then(|row| get(&row, 1)),
    );
    missing.is_some_and(|column| {
        let (table, column) = (catalog::qualified(mirror.cache), quote_identifier(&column));
        pg::xact::subtransaction(|| {
            let _owner = AsOwner::begin();
            // What refers to nothing is never looked for.
            catalog::write(&format!("CREATE INDEX ON {table} ({column}) WHERE {column} IS NOT NULL"), &[]);
        })
        .is_ok()
    })
}

/// The rows that hold one of these texts in one of these columns (positions in the mirror).
pub fn holders(mirror: &Mirror, texts: &[(usize, Vec<String>)]) -> Vec<String> {
    let text = |column: usize| as_text(mirror, "", &mirror.columns[column]);
    let holds: Vec<String> =
        texts.iter().zip(1..).map(|((column, _), n)| format!("{} = ANY (${n})", text(*column))).collect();
    if holds.is_empty() {
        return Vec::new();
    }
    let table = catalog::qualified(mirror.cache);
    let sql = format!("SELECT {} FROM {table} WHERE {}", text(mirror.key), holds.join(" OR "));
    let args: Vec<_> = texts.iter().map(|(_, texts)| texts.clone().into()).collect();
    let mut found = Vec::new();
    each_row(&sql, &args, |row| found.extend(get::<String>(row, 1)));
    found
}
