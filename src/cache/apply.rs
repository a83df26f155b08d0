//! Puts decoded rows into a cache table. Used by the worker (batches) and by backends (the answer to a write),
//! inside their transactions.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use servicenow::page::{Rows, Version};
use servicenow::sync::store::StoredRecords;
use servicenow::value::Value;

use super::{MOD_COUNT, UPDATED_ON};
use crate::catalog::{self, Mirror, get};
use crate::pg;
use crate::pg::table::{MisfitAt, TableWriter, Triggers};
use crate::pg::tuple::{OwnedScalar, Scalar};

/// Microseconds in a second.
const SECOND: i64 = 1_000_000;

/// Why rows could not be put into a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyError {
    /// The cache table lacks a column or its key.
    Damaged,
    /// A value does not fit its column's type.
    Misfit {
        /// The record.
        sys_id: String,
        /// The column.
        column: String,
    },
}

/// When a row that is there already is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// If the new version is later.
    Later,
    /// If the new version is later or the same: columns may have been added, or the record edited without a
    /// trace in its version.
    SameOrLater,
}

/// What came of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Rows added.
    pub inserted: i64,
    /// Rows changed.
    pub updated: i64,
    /// The earliest `sys_updated_on` of rows somebody is writing, which were passed over.
    pub held_back_since: Option<i64>,
}

/// A cache opened for writing.
pub struct CacheWriter {
    mirror: Rc<Mirror>,
    table: TableWriter,
}

impl CacheWriter {
    /// Opens a mirror's cache.
    pub fn open(mirror: &Rc<Mirror>, triggers: Triggers) -> Result<Self, ApplyError> {
        let mut names: Vec<&str> = mirror.columns.iter().map(|column| column.name.as_str()).collect();
        names.extend([UPDATED_ON, MOD_COUNT]);
        let key = &mirror.columns[mirror.key].name;
        let table = TableWriter::open(mirror.cache, &names, key, triggers).ok_or(ApplyError::Damaged)?;
        Ok(Self { mirror: mirror.clone(), table })
    }

    /// Writes the answer to a write, waiting for whoever is changing the row; gives back whether it was added.
    pub fn put(&mut self, rows: &Rows, row: usize) -> Result<bool, ApplyError> {
        let found = self.table.find(rows.id(row));
        let written = match found {
            true => self.table.update(|column| scalar(rows, row, column)),
            false => self.table.insert(|column| scalar(rows, row, column)),
        };
        written.map_err(|at| self.misfit(rows, MisfitAt { row, ..at }))?;
        Ok(!found)
    }

    /// Locks a row and gives back its values, in the order of the mirror's columns.
    pub fn lock(&mut self, id: &str) -> Option<Vec<OwnedScalar>> {
        self.table
            .find(id)
            .then(|| (0..self.mirror.columns.len()).map(|column| self.table.found_value(column)).collect())
    }

    /// Deletes the row last locked.
    pub fn delete_locked(&mut self) {
        self.table.delete();
    }

    /// Ends the writing.
    pub fn close(self) {
        self.table.close();
    }

    /// Puts a batch into the cache. Rows that somebody is writing are passed over. With `careful`, rows that
    /// somebody is adding at this very moment are passed over too, at the price of a subtransaction for each
    /// new row; without it they make the caller wait for its lock timeout.
    pub fn put_all(&mut self, rows: &Rows, replace: Replace, careful: bool) -> Result<Outcome, ApplyError> {
        let there = versions(&self.mirror, rows.ids());
        let mut outcome = Outcome::default();
        if there.is_empty() && !careful {
            self.table
                .insert_many(rows.len(), |row, column| scalar(rows, row, column))
                .map_err(|at| self.misfit(rows, at))?;
            outcome.inserted = rows.len() as i64;
            return Ok(outcome);
        }
        let to_update = |row: &usize| match there.get(rows.id(*row)) {
            None => false,
            // A version that is not shown says nothing.
            Some(_) if rows.version(*row).updated_on.is_none() => true,
            Some(stored) => match replace {
                Replace::Later => *stored < rows.version(*row),
                Replace::SameOrLater => *stored <= rows.version(*row),
            },
        };
        let to_update: Vec<usize> = (0..rows.len()).filter(to_update).collect();
        let free = lock_free(&self.mirror, to_update.iter().map(|row| rows.id(*row)));
        for row in to_update {
            if free.contains(rows.id(row)) && self.table.find(rows.id(row)) {
                self.table
                    .update(|column| scalar(rows, row, column))
                    .map_err(|at| self.misfit(rows, MisfitAt { row, ..at }))?;
                outcome.updated += 1;
            } else {
                outcome.hold_back(rows.version(row));
            }
        }
        for row in (0..rows.len()).filter(|row| !there.contains_key(rows.id(*row))) {
            if !careful {
                self.table
                    .insert(|column| scalar(rows, row, column))
                    .map_err(|at| self.misfit(rows, MisfitAt { row, ..at }))?;
                outcome.inserted += 1;
            } else if self.insert_alone(rows, row)? {
                outcome.inserted += 1;
            } else {
                outcome.hold_back(rows.version(row));
            }
        }
        Ok(outcome)
    }

    /// Adds a row in a subtransaction; `false` if somebody else is adding it.
    fn insert_alone(&mut self, rows: &Rows, row: usize) -> Result<bool, ApplyError> {
        let mirror = self.mirror.clone();
        let added = pg::xact::subtransaction(std::panic::AssertUnwindSafe(|| {
            let mut alone = CacheWriter::open(&mirror, Triggers::Own)?;
            let added = alone.table.insert(|column| scalar(rows, row, column));
            added.map_err(|at| alone.misfit(rows, MisfitAt { row, ..at }))?;
            alone.close();
            Ok(())
        }));
        match added {
            Ok(Ok(())) => Ok(true),
            Ok(Err(e)) => Err(e),
            Err(_somebody_else) => Ok(false),
        }
    }

    /// Deletes rows whose stored version is still the given one. Gives back how many were deleted, and those
    /// that somebody is writing, which stay.
    pub fn delete_unchanged(&mut self, records: &StoredRecords) -> (i64, StoredRecords) {
        let there = versions(&self.mirror, records.iter().map(|(id, _)| id.as_str()));
        let unchanged = || records.iter().filter(|(id, version)| there.get(id.as_str()) == Some(version));
        let free = lock_free(&self.mirror, unchanged().map(|(id, _)| id.as_str()));
        let (mut deleted, mut kept) = (0, StoredRecords::new());
        for (id, version) in unchanged() {
            if !free.contains(id.as_str()) {
                kept.push((id.clone(), *version));
            } else if self.table.find(id.as_str()) {
                self.table.delete();
                deleted += 1;
            }
        }
        (deleted, kept)
    }

    fn misfit(&self, rows: &Rows, at: MisfitAt) -> ApplyError {
        let column = self.mirror.columns.get(at.column).map_or(UPDATED_ON, |column| column.name.as_str());
        ApplyError::Misfit { sys_id: rows.id(at.row).to_owned(), column: column.to_owned() }
    }
}

impl Outcome {
    fn hold_back(&mut self, version: Version) {
        let since = version.updated_on.unwrap_or(0);
        self.held_back_since = Some(self.held_back_since.map_or(since, |earlier| earlier.min(since)));
    }
}

/// A batch's value for a column of the writer: the mirror's columns, then the row's version.
fn scalar(rows: &Rows, row: usize, column: usize) -> Scalar<'_> {
    let width = rows.layout().columns().len();
    if column < width {
        return to_scalar(rows.value(row, column));
    }
    let version = rows.version(row);
    match column - width {
        0 => version.updated_on.map_or(Scalar::Null, |s| Scalar::Micros(s.saturating_mul(SECOND))),
        _ => version.mod_count.map_or(Scalar::Null, Scalar::Integer),
    }
}

/// A decoded value as one to store.
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

/// The columns of a row's identity and version, for queries on a cache.
struct KeyColumns {
    table: String,
    key: String,
}

impl KeyColumns {
    fn of(mirror: &Mirror) -> Self {
        let key = pgrx::spi::quote_identifier(&mirror.columns[mirror.key].name);
        Self { table: catalog::qualified(mirror.cache), key }
    }
}

/// Which of these records are in the cache, in which version.
pub fn versions<'i>(mirror: &Mirror, ids: impl Iterator<Item = &'i str>) -> HashMap<String, Version> {
    let ids: Vec<&str> = ids.collect();
    if ids.is_empty() {
        return HashMap::new();
    }
    let KeyColumns { table, key } = KeyColumns::of(mirror);
    catalog::read(
        &format!("SELECT {key}::text, {VERSION} FROM {table} WHERE {key} = ANY ($1)"),
        &[ids.into()],
        |rows| rows.filter_map(|row| Some((get(&row, 1)?, version(&row)))).collect(),
    )
}

/// The rows of a range of `sys_id`s, compared by bytes as the instance sorts them, with their versions.
pub fn versions_in_range(
    mirror: &Mirror,
    lower: Option<&str>,
    upper: Option<&str>,
    mut each: impl FnMut(String, Version),
) {
    let KeyColumns { table, key } = KeyColumns::of(mirror);
    catalog::read(
        &format!(
            "SELECT {key}::text, {VERSION} FROM {table}
             WHERE ($1 IS NULL OR {key} COLLATE \"C\" >= $1) AND ($2 IS NULL OR {key} COLLATE \"C\" < $2)"
        ),
        &[lower.into(), upper.into()],
        |rows| {
            for row in rows {
                if let Some(id) = get(&row, 1) {
                    each(id, version(&row));
                }
            }
        },
    );
}

/// The expressions [`version`] reads, from the second column on.
const VERSION: &str = "extract(epoch FROM _sn_updated_on)::bigint, _sn_mod_count";

fn version(row: &pgrx::spi::SpiHeapTupleData<'_>) -> Version {
    Version { updated_on: get(row, 2), mod_count: get(row, 3) }
}

/// Locks those of these rows that nobody else has locked.
fn lock_free<'i>(mirror: &Mirror, ids: impl Iterator<Item = &'i str>) -> HashSet<String> {
    let ids: Vec<&str> = ids.collect();
    if ids.is_empty() {
        return HashSet::new();
    }
    let KeyColumns { table, key } = KeyColumns::of(mirror);
    let _owner = pg::session::AsOwner::begin();
    pgrx::Spi::connect_mut(|client| {
        let sql = format!("SELECT {key}::text FROM {table} WHERE {key} = ANY ($1) FOR UPDATE SKIP LOCKED");
        let rows = client.update(&sql, None, &[ids.into()]).expect("a valid use of SPI");
        rows.filter_map(|row| get(&row, 1)).collect()
    })
}
