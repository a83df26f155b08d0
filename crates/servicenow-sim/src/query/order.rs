//! Sorting: the instance's collation, empty values first, references by display value.

use std::cmp::Ordering;

use super::compile::{self, Path};
use crate::schema::{Kind, TableId};
use crate::store::{Db, RowId, Val};

/// A sort field resolved for a table.
#[derive(Debug, Clone)]
pub(crate) struct SortKey {
    path: Path,
    descending: bool,
}

impl SortKey {
    /// The sort keys of a query; unknown fields are dropped as in conditions.
    pub(crate) fn resolve(db: &Db, table: TableId, order: &[(String, bool)]) -> Vec<Self> {
        order
            .iter()
            .filter_map(|(field, descending)| {
                Some(Self { path: compile::resolve(db, table, field)?, descending: *descending })
            })
            .collect()
    }
}

/// A value in sorting form.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Sorted {
    /// Empty sorts first.
    Empty,
    /// Numbers and date-times.
    Number(f64),
    /// The fold of a text.
    Text(Val),
}

/// The sorting form of the keys of a row.
pub(crate) fn key_of(db: &Db, row: RowId, keys: &[SortKey]) -> Vec<Sorted> {
    keys.iter()
        .map(|key| {
            let mut value = compile::walk(db, row, &key.path.steps);
            if key.path.kind == Kind::Reference && !value.is_empty() && key.path.steps.len() == 1 {
                let target = compile::follow(db, row, &key.path.steps[0]);
                value = target.map_or(Val::EMPTY, |t| db.display(t));
            }
            if value.is_empty() {
                return Sorted::Empty;
            }
            let kind = key.path.kind;
            if kind.is_numeric() || kind.is_temporal() || kind == Kind::Date {
                compile::stored_number(db, kind, value).map_or(Sorted::Empty, Sorted::Number)
            } else {
                Sorted::Text(db.symbols.fold(value))
            }
        })
        .collect()
}

/// Compares two rows by their sorting forms.
pub(crate) fn compare(db: &Db, keys: &[SortKey], a: &[Sorted], b: &[Sorted]) -> Ordering {
    for ((key, a), b) in keys.iter().zip(a).zip(b) {
        let ordering = match (a, b) {
            (Sorted::Empty, Sorted::Empty) => Ordering::Equal,
            (Sorted::Empty, _) => Ordering::Less,
            (_, Sorted::Empty) => Ordering::Greater,
            (Sorted::Number(a), Sorted::Number(b)) => a.total_cmp(b),
            (Sorted::Text(a), Sorted::Text(b)) if a == b => Ordering::Equal,
            (Sorted::Text(a), Sorted::Text(b)) => db.symbols.with(*a, |a| db.symbols.with(*b, |b| a.cmp(b))),
            (Sorted::Number(_), Sorted::Text(_)) => Ordering::Less,
            (Sorted::Text(_), Sorted::Number(_)) => Ordering::Greater,
        };
        let ordering = if key.descending { ordering.reverse() } else { ordering };
        if ordering != Ordering::Equal {
            return ordering;
        }
    }
    Ordering::Equal
}
