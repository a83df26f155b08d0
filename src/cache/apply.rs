//! Puts decoded rows into a cache table. Used by the worker (batches) and by backends (the answer to a write),
//! inside their transactions.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgSqlErrorCode as Sql, Spi};
use servicenow::page::{Order, Rows, Version};
use servicenow::sync::range::Range;
use servicenow::sync::store::StoredRecords;
use servicenow::value::{SysId, Value};

use super::change::{ChangeLog, Op, Source, rows_as_json};
use super::{MOD_COUNT, UPDATED_ON, VersionPart, as_text};
use crate::catalog::{self, Mirror, MirrorColumn, get};
use crate::error::{error, raise};
use crate::pg;
use crate::pg::system::SystemColumns;
use crate::pg::table::{Added, MisfitAt, TableWriter, Triggers};
use crate::pg::tuple::{OwnedScalar, Scalar};

/// Rows of a scan held in memory.
const SCANNED_AT_A_TIME: i64 = 10_000;
/// How often a row that somebody else adds at the same time is looked for.
const ATTEMPTS: u32 = 20;
/// Microseconds in a second.
const SECOND: i64 = 1_000_000;

/// When a row that is there already is replaced.
#[derive(Clone, Copy, Debug)]
pub enum Replace<'r> {
    /// If the new version is later, or may be.
    Later,
    /// If the new version is later or the same: columns may have been added, or the record edited without a
    /// trace in its version.
    SameOrLater,
    /// As before, or if it still has the version given: the new one was read after that.
    Unchanged(&'r StoredRecords),
}

/// What came of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Rows added.
    pub inserted: i64,
    /// Rows changed.
    pub updated: i64,
    /// Some of the records that were added or changed.
    pub touched: Vec<String>,
    /// Records that have to be looked up: somebody is writing them, or what was read seems older.
    pub unsettled: Vec<String>,
}

impl Outcome {
    fn touch(&mut self, id: &str) {
        if self.touched.len() < catalog::SUSPECTS {
            self.touched.push(id.to_owned());
        }
    }
}

/// What came of the answer to a write.
#[derive(Clone, Copy, Debug)]
pub struct Put {
    /// Whether the row was added.
    pub added: bool,
    /// Whether the answer is the latest there is. The worker may have brought a later version before; then it
    /// has to look again.
    pub is_clear: bool,
    /// The system columns of the cache's row.
    pub system: Option<SystemColumns>,
}

/// What became of a row that was there.
struct Updated {
    /// Whether any value of it is another now.
    changed: bool,
    /// Its system columns.
    system: Option<SystemColumns>,
}

/// A cache opened for writing. What cannot be written is an ERROR.
pub struct CacheWriter {
    mirror: Rc<Mirror>,
    table: TableWriter,
    /// The rows added are not worth a log, or nobody wants one: `None`.
    log: Option<ChangeLog>,
}

impl CacheWriter {
    /// Opens a mirror's cache. Changes are logged as from `source`, if the mirror keeps a log.
    pub fn open(mirror: &Rc<Mirror>, triggers: Triggers, source: Option<Source>) -> Self {
        let mut names: Vec<&str> = mirror.columns.iter().map(|column| column.name.as_str()).collect();
        names.extend(hidden(mirror).map(|part| part.hidden_column));
        let key = &mirror.columns[mirror.key].name;
        match TableWriter::open(mirror.cache, &names, key, triggers) {
            Some(table) => {
                let log = source.filter(|_| mirror.cdc).map(ChangeLog::new);
                Self { mirror: mirror.clone(), table, log }
            }
            None => raise(catalog::damaged(mirror.foreign_table, "has been changed by hand")),
        }
    }

    /// Whether the cache has triggers that fire after its rows were written; foreign keys and deferred constraints have.
    pub fn fires_after_triggers(&self) -> bool {
        self.table.fires_after_triggers()
    }

    /// Writes the answer to a write, waiting for whoever is changing the row.
    pub fn put(&mut self, rows: &Rows, row: usize) -> Put {
        // The worker may add the record at this very moment: then it is there the next time.
        for attempt in 0.. {
            if self.table.find(rows.id(row)) {
                let is_clear = rows.version(row).order(self.found_version()) != Order::Unclear;
                return Put { added: false, is_clear, system: self.update(rows, row).system };
            }
            let mirror = &self.mirror;
            let added = add(&mut self.table, attempt, |column| scalar(mirror, rows, row, column));
            let added = added.unwrap_or_else(|at| self.misfit(rows, MisfitAt { row, ..at }));
            let system = match added {
                Added::IsThere => {
                    pgrx::check_for_interrupts!();
                    continue;
                }
                Added::PassedOver => None,
                Added::Row(system) => {
                    self.log_insert(rows, row);
                    Some(system)
                }
            };
            return Put { added: true, is_clear: true, system };
        }
        unreachable!("the last attempt is made or fails")
    }

    /// Writes a row as a statement wants it, before the instance has been asked: the values of the mirror's columns, in
    /// their order. Its version stays what it was.
    pub fn put_foretold(&mut self, id: &str, values: &[OwnedScalar]) -> Put {
        let width = values.len();
        for attempt in 0.. {
            if self.table.find(id) {
                break;
            }
            let value = |column| values.get(column).map_or(Scalar::Null, OwnedScalar::borrow);
            let added = add(&mut self.table, attempt, value);
            let system = match added.unwrap_or_else(|at| raise(misfit(&self.mirror, id, at.column))) {
                Added::IsThere => {
                    pgrx::check_for_interrupts!();
                    continue;
                }
                Added::PassedOver => None,
                Added::Row(system) => {
                    if let Some(log) = &mut self.log {
                        let columns = values
                            .iter()
                            .cloned()
                            .enumerate()
                            .map(|(i, value)| (i, OwnedScalar::Null, value));
                        log.add(&self.mirror, Op::Insert, id, columns, |i| values[i].clone());
                    }
                    Some(system)
                }
            };
            return Put { added: true, is_clear: true, system };
        }
        let hidden: Vec<OwnedScalar> =
            hidden(&self.mirror).zip(width..).map(|(_, column)| self.table.found_value(column)).collect();
        let all = || values.iter().chain(&hidden);
        let value = |column| all().nth(column).map_or(Scalar::Null, OwnedScalar::borrow);
        let staged = self.table.stage(value);
        let changed = staged.unwrap_or_else(|at| raise(misfit(&self.mirror, id, at.column)));
        Put { added: false, is_clear: true, system: self.write_staged(id, changed).system }
    }

    /// The version of a row, which is locked; `None` if there is no such row.
    pub fn version_of(&mut self, id: &str) -> Option<Version> {
        self.table.find(id).then(|| self.found_version())
    }

    /// Locks a row and gives back its values, in the order of the mirror's columns.
    pub fn lock(&mut self, id: &str) -> Option<Vec<OwnedScalar>> {
        self.table
            .find(id)
            .then(|| (0..self.mirror.columns.len()).map(|column| self.table.found_value(column)).collect())
    }

    /// The system columns of the row last locked.
    pub fn locked_system(&self) -> SystemColumns {
        self.table.found_system()
    }

    /// Deletes the row last locked.
    pub fn delete_locked(&mut self) {
        if let Some(log) = &mut self.log {
            let (table, mirror) = (&self.table, &self.mirror);
            let key = table.found_value(mirror.key);
            let columns = (0..mirror.columns.len()).map(|i| (i, table.found_value(i), OwnedScalar::Null));
            if let OwnedScalar::Text(id) = key {
                log.add(mirror, Op::Delete, &id, columns, |i| table.found_value(i));
            }
        }
        self.table.delete();
    }

    /// Ends the writing.
    pub fn close(mut self) {
        self.table.close();
        if let Some(log) = &mut self.log {
            log.write(&self.mirror);
        }
    }

    /// Puts a batch into the cache. Rows that somebody is writing are left unsettled. With `careful`, rows that
    /// somebody is adding at this very moment are left so too, at the price of a subtransaction for each
    /// new row; without it they make the caller wait for its lock timeout.
    pub fn put_all(&mut self, rows: &Rows, replace: Replace<'_>, careful: bool) -> Outcome {
        let there = versions(&self.mirror, rows.ids());
        let mut outcome = Outcome::default();
        // A record that comes twice in a batch counts as it came last.
        let last: HashMap<&str, usize> = rows.ids().zip(0..).collect();
        let mut last: Vec<usize> = last.into_values().collect();
        last.sort_unstable();
        let (old, new): (Vec<usize>, Vec<usize>) =
            last.into_iter().partition(|row| there.contains_key(rows.id(*row)));
        let rule = Rule::new(replace);
        let verdict = |row: usize, stored| rule.verdict(rows.id(row), rows.version(row), stored);
        let mut due = Vec::new();
        for row in old {
            match verdict(row, there[rows.id(row)]) {
                Verdict::Replace => due.push(row),
                Verdict::Keep => {}
                Verdict::Unclear => outcome.unsettled.push(rows.id(row).to_owned()),
            }
        }
        let free = lock_free(&self.mirror, due.iter().map(|row| rows.id(*row)));
        for row in due {
            let id = rows.id(row);
            // Somebody may have written it between the first look and the lock.
            let verdict = match free.contains(id) && self.table.find(id) {
                true => verdict(row, self.found_version()),
                false => Verdict::Unclear,
            };
            match verdict {
                Verdict::Replace if self.update(rows, row).changed => {
                    outcome.updated += 1;
                    outcome.touch(id);
                }
                Verdict::Replace => {}
                Verdict::Keep => {}
                Verdict::Unclear => outcome.unsettled.push(id.to_owned()),
            }
        }
        if !careful {
            self.insert_many(rows, &new);
            outcome.inserted = new.len() as i64;
            new.iter().for_each(|row| outcome.touch(rows.id(*row)));
            return outcome;
        }
        for row in new {
            if self.insert_alone(rows, row) {
                outcome.inserted += 1;
                outcome.touch(rows.id(row));
            } else {
                outcome.unsettled.push(rows.id(row).to_owned());
            }
        }
        outcome
    }

    /// Adds a row in a subtransaction; `false` if somebody else is adding it, or has. That is not waited for: whoever adds many
    /// rows may wait for one of this batch meanwhile.
    fn insert_alone(&mut self, rows: &Rows, row: usize) -> bool {
        let mirror = self.mirror.clone();
        let source = self.log.as_ref().map(ChangeLog::source);
        let added = pg::xact::subtransaction(std::panic::AssertUnwindSafe(|| {
            let mut alone = CacheWriter::open(&mirror, Triggers::Own, source);
            let is_added = alone.insert_if_absent(rows, row);
            alone.close();
            is_added
        }));
        match added {
            Ok(is_added) => is_added,
            // A unique index of the DBA's has a row of somebody's.
            Err(caught) if caught.is_conflict() => false,
            Err(caught) => raise(error(caught.sqlstate, caught.message)),
        }
    }

    fn insert_if_absent(&mut self, rows: &Rows, row: usize) -> bool {
        let mirror = &self.mirror;
        match self.table.insert_if_absent(|column| scalar(mirror, rows, row, column)) {
            Ok(Added::IsThere) => false,
            Ok(Added::Row(_)) => {
                self.log_insert(rows, row);
                true
            }
            Ok(Added::PassedOver) => true,
            Err(at) => self.misfit(rows, MisfitAt { row, ..at }),
        }
    }

    /// Deletes rows whose stored version is still the given one. Gives back how many were deleted, and those
    /// that stay because they have changed or somebody is writing them.
    pub fn delete_unchanged(&mut self, records: &[(&str, Version)]) -> (i64, Vec<String>) {
        let there = versions(&self.mirror, records.iter().map(|(id, _)| *id));
        let free = lock_free(&self.mirror, records.iter().map(|(id, _)| *id));
        let (mut deleted, mut kept) = (0, Vec::new());
        for (id, version) in records.iter().filter(|(id, _)| there.contains_key(*id)) {
            if free.contains(*id) && self.table.find(id) && self.found_version() == *version {
                self.delete_locked();
                deleted += 1;
            } else {
                kept.push((*id).to_owned());
            }
        }
        (deleted, kept)
    }

    fn insert_many(&mut self, rows: &Rows, which: &[usize]) {
        which.iter().for_each(|row| self.log_insert(rows, *row));
        let mirror = &self.mirror;
        let added = self.table.insert_many(which.len(), |i, column| scalar(mirror, rows, which[i], column));
        added.unwrap_or_else(|at| self.misfit(rows, MisfitAt { row: which[at.row], ..at }));
    }

    fn log_insert(&mut self, rows: &Rows, row: usize) {
        if let Some(log) = &mut self.log {
            let value = |column| scalar(&self.mirror, rows, row, column).to_owned();
            let columns = (0..self.mirror.columns.len()).map(|i| (i, OwnedScalar::Null, value(i)));
            log.add(&self.mirror, Op::Insert, rows.id(row), columns, value);
        }
    }

    /// Changes the row last found.
    fn update(&mut self, rows: &Rows, row: usize) -> Updated {
        let (mirror, table) = (&self.mirror, &mut self.table);
        let staged = table.stage(|column| scalar(mirror, rows, row, column));
        let changed = staged.unwrap_or_else(|at| self.misfit(rows, MisfitAt { row, ..at }));
        self.write_staged(rows.id(row), changed)
    }

    /// Writes what was staged for the row last found, if these columns make a difference.
    fn write_staged(&mut self, id: &str, changed: Vec<usize>) -> Updated {
        if changed.is_empty() {
            let system = Some(self.table.found_system());
            self.table.keep();
            return Updated { changed: false, system };
        }
        if let Some(log) = &mut self.log {
            let (mirror, table) = (&self.mirror, &self.table);
            let columns = changed.into_iter().map(|i| (i, table.found_value(i), table.staged_value(i)));
            log.add(mirror, Op::Update, id, columns, |i| table.staged_value(i));
        }
        Updated { changed: true, system: self.table.update() }
    }

    /// The version of the row last found.
    fn found_version(&self) -> Version {
        let mirror = &self.mirror;
        let mut hidden = mirror.columns.len()..;
        let updated_on = mirror.updated_on.or_else(|| hidden.next()).unwrap_or_default();
        let mod_count = mirror.mod_count.or_else(|| hidden.next()).unwrap_or_default();
        Version {
            updated_on: match self.table.found_value(updated_on) {
                OwnedScalar::Plain(Scalar::Micros(us)) => Some(us.div_euclid(SECOND)),
                _ => None,
            },
            mod_count: match self.table.found_value(mod_count) {
                OwnedScalar::Plain(Scalar::Integer(count)) => Some(count),
                _ => None,
            },
        }
    }

    fn misfit(&self, rows: &Rows, at: MisfitAt) -> ! {
        raise(misfit(&self.mirror, rows.id(at.row), at.column))
    }
}

/// Adds a row unless its key is there. One that is there time and again, but is not found under its key, is an ERROR in
/// Postgres's own words: a trigger of the DBA's gives rows other keys.
fn add<'v>(
    table: &mut TableWriter,
    attempt: u32,
    value: impl Fn(usize) -> Scalar<'v>,
) -> Result<Added, MisfitAt> {
    match attempt {
        0..ATTEMPTS => table.insert_if_absent(value),
        _ => table.insert(value).map(|system| system.map_or(Added::PassedOver, Added::Row)),
    }
}

/// Opens some columns (positions in the mirror) of a cache for writing.
pub fn open_columns(mirror: &Mirror, columns: &[usize]) -> TableWriter {
    let names: Vec<&str> = columns.iter().map(|i| mirror.columns[*i].name.as_str()).collect();
    let key = &mirror.columns[mirror.key].name;
    TableWriter::open(mirror.cache, &names, key, Triggers::Own)
        .unwrap_or_else(|| raise(catalog::damaged(mirror.foreign_table, "has been changed by hand")))
}

/// The ERROR for a value that its column (a position in the mirror) cannot hold.
pub fn misfit(mirror: &Mirror, sys_id: &str, column: usize) -> ErrorReport {
    error(Sql::ERRCODE_FDW_INVALID_DATA_TYPE, describe_misfit(mirror, sys_id, column))
        .set_hint("Change the column's type, to text if need be.")
}

fn describe_misfit(mirror: &Mirror, sys_id: &str, column: usize) -> String {
    let column = mirror.columns.get(column).map_or(UPDATED_ON.field, |column| column.name.as_str());
    format!("value for column \"{column}\" of record \"{sys_id}\" does not fit the column's type")
}

/// Says which value of a batch its column's type refuses; the batch itself has failed.
pub fn find_misfit(mirror: &Rc<Mirror>, rows: &Rows) -> Option<String> {
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let columns =
        mirror.fill_columns.as_ref().filter(|columns| columns.len() == rows.layout().columns().len());
    let columns = columns.unwrap_or(&all);
    let mut table = open_columns(mirror, columns);
    let found = table.find_misfit(rows.len(), |row, column| to_scalar(rows.value(row, column)));
    table.close();
    found.map(|at| describe_misfit(mirror, rows.id(at.row), columns[at.column]))
}

/// A [`Replace`], ready for many rows.
struct Rule<'r> {
    same_too: bool,
    expected: HashMap<&'r str, Version>,
}

/// What is to become of a stored row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Replace,
    Keep,
    Unclear,
}

impl<'r> Rule<'r> {
    fn new(replace: Replace<'r>) -> Self {
        let expected = match replace {
            Replace::Unchanged(records) => records.iter().map(|(id, v)| (id.as_str(), *v)).collect(),
            Replace::Later | Replace::SameOrLater => HashMap::new(),
        };
        Self { same_too: !matches!(replace, Replace::Later), expected }
    }

    fn verdict(&self, id: &str, read: Version, stored: Version) -> Verdict {
        match read.order(stored) {
            Order::Later => Verdict::Replace,
            Order::Same if self.same_too || !is_sure(read) || !is_sure(stored) => Verdict::Replace,
            Order::Same => Verdict::Keep,
            Order::Unclear if self.expected.get(id) == Some(&stored) => Verdict::Replace,
            Order::Unclear => Verdict::Unclear,
        }
    }
}

/// Whether two changes in one second have different versions: not where nobody sees how often a record was changed.
fn is_sure(version: Version) -> bool {
    version.mod_count.is_some()
}

/// The parts of the version that the mirror's own columns do not show, in the order of the writer's columns.
fn hidden(mirror: &Mirror) -> impl Iterator<Item = VersionPart> {
    let updated_on = mirror.updated_on.is_none().then_some(UPDATED_ON);
    updated_on.into_iter().chain(mirror.mod_count.is_none().then_some(MOD_COUNT))
}

/// A batch's value for a column of the writer: the mirror's columns, then what they do not show of the version.
#[inline]
fn scalar<'r>(mirror: &Mirror, rows: &'r Rows, row: usize, column: usize) -> Scalar<'r> {
    let width = rows.layout().columns().len();
    if column < width {
        return to_scalar(rows.value(row, column));
    }
    let version = rows.version(row);
    match column - width {
        0 if mirror.updated_on.is_none() => {
            version.updated_on.map_or(Scalar::Null, |s| Scalar::Micros(s.saturating_mul(SECOND)))
        }
        _ => version.mod_count.map_or(Scalar::Null, Scalar::Integer),
    }
}

/// A decoded value as one to store.
#[inline]
pub fn to_scalar(value: Value<'_>) -> Scalar<'_> {
    match value {
        Value::Null => Scalar::Null,
        Value::Text(text) => Scalar::Text(text),
        Value::Boolean(b) => Scalar::Boolean(b),
        Value::Integer(i) => Scalar::Integer(i),
        Value::Float(f) => Scalar::Float(f),
        Value::Micros(us) => Scalar::Micros(us),
        Value::Days(days) => Scalar::Days(days),
        Value::TimeOfDay(us) => Scalar::TimeOfDay(us),
        Value::Seconds(s) => Scalar::Seconds(s),
    }
}

/// A stored value as one to send.
pub fn to_value(scalar: &OwnedScalar) -> Value<'_> {
    match scalar.borrow() {
        Scalar::Null => Value::Null,
        Scalar::Text(text) => Value::Text(text),
        Scalar::Boolean(b) => Value::Boolean(b),
        Scalar::Integer(i) => Value::Integer(i),
        Scalar::Float(f) => Value::Float(f),
        Scalar::Micros(us) => Value::Micros(us),
        Scalar::Days(days) => Value::Days(days),
        Scalar::TimeOfDay(us) => Value::TimeOfDay(us),
        Scalar::Seconds(s) => Value::Seconds(s),
    }
}

/// Which of these rows the cache has with other values, whatever their versions. They are compared as they would be stored.
pub fn differing(mirror: &Mirror, rows: &Rows) -> Vec<String> {
    let name = |column: &MirrorColumn| pgrx::spi::quote_identifier(&column.name);
    let (table, key) = (catalog::qualified(mirror.cache), name(&mirror.columns[mirror.key]));
    let text = |of, column| as_text(mirror, of, column);
    let differs: Vec<String> = mirror
        .columns
        .iter()
        .map(|column| format!("{} IS DISTINCT FROM {}", text("c.", column), text("r.", column)))
        .collect();
    let sql = format!(
        "SELECT c.{key}::text FROM json_populate_recordset(NULL::{table}, $1::json) r JOIN {table} c USING ({key})
         WHERE {}",
        differs.join(" OR ")
    );
    let values = (0..rows.len()).map(|row| {
        let columns = mirror.columns.iter().enumerate();
        columns.map(move |(at, column)| (column, to_scalar(rows.value(row, at)).to_owned()))
    });
    catalog::read(&sql, &[rows_as_json(values).into()], |rows| rows.filter_map(|row| get(&row, 1)).collect())
}

/// A row's identity and version, for queries on a cache.
struct KeyColumns {
    table: String,
    key: String,
    /// The expressions [`version`] reads, from the second column on.
    version: String,
}

impl KeyColumns {
    fn of(mirror: &Mirror) -> Self {
        let key = pgrx::spi::quote_identifier(&mirror.columns[mirror.key].name);
        let [updated_on, mod_count] =
            [mirror.updated_on_column(), mirror.mod_count_column()].map(pgrx::spi::quote_identifier);
        let version = format!("extract(epoch FROM {updated_on})::bigint, {mod_count}::bigint");
        Self { table: catalog::qualified(mirror.cache), key, version }
    }
}

/// Which of these records are in the cache, in which version.
pub fn versions<'i>(mirror: &Mirror, ids: impl Iterator<Item = &'i str>) -> HashMap<String, Version> {
    let ids: Vec<&str> = ids.collect();
    if ids.is_empty() {
        return HashMap::new();
    }
    let KeyColumns { table, key, version: parts } = KeyColumns::of(mirror);
    let sql = format!("SELECT {key}::text, {parts} FROM {table} WHERE {key} = ANY ($1)");
    let _owner = pg::session::AsOwner::by_key();
    Spi::connect(|client| {
        let rows = client.select(&sql, None, &[ids.into()]).expect("a valid use of SPI");
        rows.filter_map(|row| Some((get(&row, 1)?, version(&row)))).collect()
    })
}

/// An instance's order of `sys_id`s, as [`servicenow::sync::range::compare`] has it: by bytes, small letters as capitals.
/// Every cache has an index on it.
pub fn instance_order(key: &str) -> String {
    format!("upper({key} COLLATE \"C\") COLLATE \"C\"")
}

/// The condition that a row lies in a range given as parameters `$1` and `$2`.
fn in_range(key: &str) -> String {
    let order = instance_order(key);
    format!(
        "($1 IS NULL OR {order} >= upper($1 COLLATE \"C\")) AND ($2 IS NULL OR {order} < upper($2 COLLATE \"C\"))"
    )
}

fn bounds(range: &Range) -> [DatumWithOid<'_>; 2] {
    [&range.lower, &range.upper].map(|bound| bound.as_ref().map(|id| id.as_str()).into())
}

/// Tells every row of a range of `sys_id`s, with its version.
pub fn each_version(mirror: &Mirror, range: &Range, mut each: impl FnMut(SysId, Version)) {
    let KeyColumns { table, key, version: parts } = KeyColumns::of(mirror);
    let sql = format!("SELECT {key}::text, {parts} FROM {table} WHERE {}", in_range(&key));
    each_row(&sql, &bounds(range), |row| {
        if let Some(id) = get::<String>(row, 1) {
            each(SysId::new(id), version(row));
        }
    });
}

/// Tells every row of a query's answer, which may be larger than the memory.
pub fn each_row(
    sql: &str,
    args: &[DatumWithOid<'_>],
    mut each: impl FnMut(&pgrx::spi::SpiHeapTupleData<'_>),
) {
    let _owner = pg::session::AsOwner::begin();
    // A cursor, and a connection per piece, whose end lets go of it.
    let mut cursor = Spi::connect(|client| client.open_cursor(sql, args).detach_into_name());
    let mut done = false;
    while !done {
        cursor = Spi::connect(|client| {
            let mut cursor = client.find_cursor(&cursor).expect("it was opened in this transaction");
            let rows = cursor.fetch(SCANNED_AT_A_TIME).expect("a valid use of SPI");
            done = rows.is_empty();
            for row in rows {
                each(&row);
            }
            cursor.detach_into_name()
        });
    }
    Spi::connect(|client| drop(client.find_cursor(&cursor)));
}

/// How many rows of a range there are, by the first characters of their `sys_id`s.
pub fn count_by_prefix(mirror: &Mirror, range: &Range, length: usize) -> Vec<(String, u64)> {
    let KeyColumns { table, key, .. } = KeyColumns::of(mirror);
    let prefix = match length {
        0 => "''".to_owned(),
        _ => format!("left({}, {length})", instance_order(&key)),
    };
    let sql = format!("SELECT {prefix}, count(*) FROM {table} WHERE {} GROUP BY 1", in_range(&key));
    catalog::read(&sql, &bounds(range), |rows| {
        rows.filter_map(|row| Some((get(&row, 1)?, get::<i64>(&row, 2)?.unsigned_abs()))).collect()
    })
}

fn version(row: &pgrx::spi::SpiHeapTupleData<'_>) -> Version {
    Version { updated_on: get(row, 2), mod_count: get(row, 3) }
}

/// Locks those of these rows that nobody else has locked.
pub fn lock_free<'i>(mirror: &Mirror, ids: impl Iterator<Item = &'i str>) -> HashSet<String> {
    let ids: Vec<&str> = ids.collect();
    if ids.is_empty() {
        return HashSet::new();
    }
    let KeyColumns { table, key, .. } = KeyColumns::of(mirror);
    let _owner = pg::session::AsOwner::by_key();
    Spi::connect_mut(|client| {
        let sql = format!("SELECT {key}::text FROM {table} WHERE {key} = ANY ($1) FOR UPDATE SKIP LOCKED");
        let rows = client.update(&sql, None, &[ids.into()]).expect("a valid use of SPI");
        rows.filter_map(|row| get(&row, 1)).collect()
    })
}
