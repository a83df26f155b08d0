//! What is known to be shown by now, beside what a page shows that was asked for before.
//!
//! A record that is renamed keeps the versions of those that show its name. A page on its way from before would bring the
//! old name back, and nothing would tell until everything is read again; so its rows are looked up if they show
//! something else than what is known.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use super::store::Relabelling;
use crate::page::{Layout, Rows};

/// No page is on its way for longer.
const KEPT: Duration = Duration::from_secs(600);

/// A column, by its position, and the text it shows.
type Text = (usize, String);

/// What has lately been found to be shown in a table.
#[derive(Debug, Default)]
pub struct Latest {
    /// Of rows that hold a text in a column: what others show.
    by_text: HashMap<Text, Vec<(Text, SystemTime)>>,
    /// Of records.
    by_record: HashMap<String, Vec<(Text, SystemTime)>>,
}

impl Latest {
    /// Rows that refer to these records show their names.
    pub fn note_names(&mut self, relabelling: &Relabelling, now: SystemTime) {
        for renamed in &relabelling.columns {
            for (id, names) in &relabelling.records {
                if let Some(Some(name)) = names.get(renamed.name) {
                    self.note_text((renamed.by, id.as_str().to_owned()), (renamed.column, name.clone()), now);
                }
            }
        }
        self.tidy(now);
    }

    /// Rows that hold a text in one column show another in another.
    pub fn note_text(&mut self, holds: Text, shows: Text, now: SystemTime) {
        replace(self.by_text.entry(holds).or_default(), shows, now);
    }

    /// These rows were just shown, with these columns (positions in the whole layout).
    pub fn note_rows(&mut self, columns: &[usize], rows: &Rows, now: SystemTime) {
        for row in 0..rows.len() {
            let known = self.by_record.entry(rows.id(row).to_owned()).or_default();
            for (at, column) in columns.iter().enumerate() {
                replace(known, (*column, encoded(rows, row, at)), now);
            }
        }
        self.tidy(now);
    }

    fn tidy(&mut self, now: SystemTime) {
        let is_recent = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age < KEPT);
        for known in [self.by_text.values_mut().collect::<Vec<_>>(), self.by_record.values_mut().collect()]
            .into_iter()
            .flatten()
        {
            known.retain(|(_, at)| is_recent(at));
        }
        self.by_text.retain(|_, known| !known.is_empty());
        self.by_record.retain(|_, known| !known.is_empty());
    }

    /// The records of a page that show something else than what was known when it was asked for, or may have been.
    /// `layout` is the whole table's.
    pub fn outdated(&self, layout: &Layout, rows: &Rows, asked: Option<SystemTime>) -> Vec<String> {
        if self.by_text.is_empty() && self.by_record.is_empty() {
            return Vec::new();
        }
        let positions: Vec<Option<usize>> = layout
            .columns()
            .iter()
            .map(|column| rows.layout().columns().iter().position(|other| other == column))
            .collect();
        let is_late = |at: &SystemTime| asked.is_none_or(|asked| asked < *at);
        let holders: BTreeSet<usize> = self.by_text.keys().map(|(column, _)| *column).collect();
        let is_outdated = |row: usize| {
            let differs = |((column, text), at): &(Text, SystemTime)| {
                let position = positions.get(*column).copied().flatten();
                is_late(at) && position.is_some_and(|position| encoded(rows, row, position) != *text)
            };
            let holds =
                |column: &usize| Some((*column, encoded(rows, row, positions.get(*column).copied()??)));
            self.by_record.get(rows.id(row)).is_some_and(|known| known.iter().any(differs))
                || holders
                    .iter()
                    .filter_map(holds)
                    .any(|text| self.by_text.get(&text).is_some_and(|known| known.iter().any(differs)))
        };
        (0..rows.len()).filter(|row| is_outdated(*row)).map(|row| rows.id(row).to_owned()).collect()
    }
}

fn encoded(rows: &Rows, row: usize, column: usize) -> String {
    rows.value(row, column).encode().unwrap_or_default()
}

fn replace(known: &mut Vec<(Text, SystemTime)>, shows: Text, now: SystemTime) {
    known.retain(|((column, _), _)| *column != shows.0);
    known.push((shows, now));
}
