//! What is known to be shown by now, beside what a page shows that was asked for before.
//!
//! A record that is renamed keeps the versions of those that show its name. A page on its way from before would bring the
//! old name back, and nothing would tell until everything is read again; so its rows are looked up if they show
//! something else than what is known.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::time::{Duration, SystemTime};

use super::store::Relabelling;
use crate::page::{Layout, Rows};

/// No page is on its way for longer.
const KEPT: Duration = Duration::from_secs(600);
/// Most of what is known of a table. What is older has most likely met the pages that were on their way; if not, they are
/// met by the next reading of everything.
const MOST: usize = 20_000;

/// A column, by its position, and the text it shows.
type Text = (usize, String);

/// What a column, by its position, shows: a digest, and since when that is known.
type Shown = (usize, u64, SystemTime);

/// What has lately been found to be shown in a table.
#[derive(Debug, Default)]
pub struct Latest {
    hasher: RandomState,
    /// By column, of rows that hold a text in it, known by its digest: what others show.
    by_text: BTreeMap<usize, HashMap<u64, Vec<Shown>>>,
    /// Of records, by the digest of their identity.
    by_record: HashMap<u64, Vec<Shown>>,
}

impl Latest {
    /// Rows that refer to these records show their names.
    pub fn note_names(&mut self, relabelling: &Relabelling, now: SystemTime) {
        for renamed in &relabelling.columns {
            for (id, names) in &relabelling.records {
                if let Some(Some(name)) = names.get(renamed.name) {
                    self.note((renamed.by, id.as_str()), (renamed.column, name), now);
                }
            }
        }
        self.tidy(now);
    }

    /// Rows that hold a text in one column show another in another.
    pub fn note_text(&mut self, holds: Text, shows: Text, now: SystemTime) {
        self.note((holds.0, &holds.1), (shows.0, &shows.1), now);
    }

    fn note(&mut self, holds: (usize, &str), shows: (usize, &str), now: SystemTime) {
        let (text, shows) = (self.hasher.hash_one(holds.1), (shows.0, self.hasher.hash_one(shows.1), now));
        replace(self.by_text.entry(holds.0).or_default().entry(text).or_default(), shows);
    }

    /// These rows were just shown, with these columns (positions in the whole layout).
    pub fn note_rows(&mut self, columns: &[usize], rows: &Rows, now: SystemTime) {
        for row in 0..rows.len() {
            let known = self.by_record.entry(self.hasher.hash_one(rows.id(row))).or_default();
            for (at, column) in columns.iter().enumerate() {
                replace(known, (*column, self.hasher.hash_one(encoded(rows, row, at)), now));
            }
        }
        self.tidy(now);
    }

    /// Forgets what is old, and the older half of what is too much; what was noted at once stays together.
    fn tidy(&mut self, now: SystemTime) {
        self.keep(|at| now.duration_since(at).is_ok_and(|age| age < KEPT));
        let of_texts = self.by_text.values().flat_map(HashMap::values);
        let mut times: Vec<SystemTime> =
            of_texts.chain(self.by_record.values()).flatten().map(|(_, _, at)| *at).collect();
        if times.len() > MOST {
            let middle = times.len() / 2;
            let median = *times.select_nth_unstable(middle).1;
            self.keep(|at| at >= median);
        }
    }

    fn keep(&mut self, is_kept: impl Fn(SystemTime) -> bool) {
        let keep = |known: &mut Vec<Shown>| {
            known.retain(|(_, _, at)| is_kept(*at));
            !known.is_empty()
        };
        self.by_record.retain(|_, known| keep(known));
        self.by_text.values_mut().for_each(|texts| texts.retain(|_, known| keep(known)));
        self.by_text.retain(|_, texts| !texts.is_empty());
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
        let digest = |row: usize, column: usize| {
            let position = positions.get(column).copied().flatten()?;
            Some(self.hasher.hash_one(encoded(rows, row, position)))
        };
        let is_outdated = |row: usize| {
            let differs = |(column, text, at): &Shown| {
                is_late(at) && digest(row, *column).is_some_and(|shown| shown != *text)
            };
            let of_texts =
                self.by_text.iter().filter_map(|(column, texts)| texts.get(&digest(row, *column)?));
            let of_record = self.by_record.get(&self.hasher.hash_one(rows.id(row)));
            of_texts.chain(of_record).flatten().any(differs)
        };
        (0..rows.len()).filter(|row| is_outdated(*row)).map(|row| rows.id(row).to_owned()).collect()
    }
}

fn encoded(rows: &Rows, row: usize, column: usize) -> String {
    rows.value(row, column).encode().unwrap_or_default()
}

fn replace(known: &mut Vec<Shown>, shows: Shown) {
    known.retain(|(column, _, _)| *column != shows.0);
    known.push(shows);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::store::Renamed;
    use crate::value::SysId;

    #[test]
    fn what_is_known_stays_bounded_and_the_latest_of_it_is_kept() {
        let mut latest = Latest::default();
        let columns = vec![Renamed { column: 1, by: 0, name: 0 }];
        let known = |latest: &Latest| latest.by_text.get(&0).map_or(0, HashMap::len);
        let now = SystemTime::now();
        for n in 0..30u32 {
            let record = |m| (SysId::new(format!("{n} {m}")), vec![Some("name".to_owned())]);
            let relabelling =
                Relabelling { columns: columns.clone(), records: (0..1_500).map(record).collect() };
            latest.note_names(&relabelling, now + Duration::from_secs(u64::from(n)));
            assert!((1_500.min(MOST)..=MOST).contains(&known(&latest)), "{}", known(&latest));
        }
        latest.tidy(now + KEPT + Duration::from_secs(31));
        assert_eq!(known(&latest), 0);
    }
}
