//! A store in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use super::Stop;
use super::compare::{Comparison, Difference, Shown};
use super::latest::Latest;
use super::metadata::MetadataStore;
use super::range::Range;
use super::store::{
    DeletesRead, Found, MetadataRead, OpenRange, Position, Relabelling, Step, Store, StoreError,
    StoredRecords, Upkeep,
};
use crate::dictionary::TableDef;
use crate::page::{Layout, Order, Rows, Version};
use crate::value::SysId;

/// A store in memory, of one table: what a test compares with the truth.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Memory>,
}

/// The contents of a [`MemoryStore`].
#[derive(Debug)]
pub struct Memory {
    /// The rows: version and every value of the layout as text.
    pub rows: BTreeMap<String, (Version, Vec<String>)>,
    /// Records to be rechecked.
    pub recheck: BTreeSet<String>,
    /// The position.
    pub position: Position,
    /// How far the upkeep has come.
    pub upkeep: Upkeep,
    /// See [`Store::hidden`].
    pub hidden: Vec<(Range, u64)>,
    /// See [`Store::deletes_since`].
    pub deletes: Option<i64>,
    /// The last failure.
    pub failure: Option<String>,
    /// See [`MetadataStore::metadata_since`](super::metadata::MetadataStore::metadata_since).
    pub metadata: Option<i64>,
    /// The columns of the rows.
    pub layout: Option<Arc<Layout>>,
    latest: Latest,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            recheck: BTreeSet::new(),
            position: Position::Start { refill: false },
            upkeep: Upkeep::default(),
            hidden: Vec::new(),
            deletes: None,
            failure: None,
            metadata: None,
            layout: None,
            latest: Latest::default(),
        }
    }
}

impl MemoryStore {
    /// Looks at or changes the contents.
    pub fn with<R>(&self, f: impl FnOnce(&mut Memory) -> R) -> R {
        f(&mut self.inner.lock().expect("no panic while it is held"))
    }
}

impl Memory {
    /// Keeps the rows of a page.
    fn keep_page(&mut self, rows: &Rows) {
        self.keep(rows, &StoredRecords::new(), None);
    }

    /// Keeps rows that are not older than what is stored, or whose stored version is the one given, and that were asked
    /// for at a moment.
    fn keep(&mut self, rows: &Rows, expected: &StoredRecords, asked: Option<SystemTime>) {
        let layout = self.layout.get_or_insert_with(|| rows.layout().clone());
        self.recheck.extend(self.latest.outdated(layout, rows, asked));
        for row in 0..rows.len() {
            let (id, version) = (rows.id(row), rows.version(row));
            let expected = expected.iter().find(|(other, _)| other.as_str() == id).map(|(_, v)| *v);
            match self.rows.get(id) {
                Some((stored, _))
                    if version.order(*stored) == Order::Unclear && expected != Some(*stored) =>
                {
                    self.recheck.insert(id.to_owned());
                }
                _ => {
                    let columns = 0..rows.layout().columns().len();
                    let values = columns.map(|c| rows.value(row, c).encode().unwrap_or_default()).collect();
                    self.rows.insert(id.to_owned(), (version, values));
                }
            }
        }
    }

    /// Has rows show what the records they refer to are called now.
    fn relabel(&mut self, relabelling: &Relabelling) {
        let names: HashMap<&str, &Vec<Option<String>>> =
            relabelling.records.iter().map(|(id, names)| (id.as_str(), names)).collect();
        for (_, values) in self.rows.values_mut() {
            for renamed in &relabelling.columns {
                let names = values.get(renamed.by).and_then(|id| names.get(id.as_str()));
                if let Some(Some(name)) = names.and_then(|names| names.get(renamed.name)) {
                    values[renamed.column].clone_from(name);
                }
            }
        }
        self.latest.note_names(relabelling, SystemTime::now());
    }

    /// Keeps columns of rows where the version is the same.
    fn keep_columns(&mut self, columns: &[usize], rows: &Rows) {
        for row in 0..rows.len() {
            if let Some((stored, values)) = self.rows.get_mut(rows.id(row))
                && *stored == rows.version(row)
            {
                for (at, column) in columns.iter().enumerate() {
                    values[*column] = rows.value(row, at).encode().unwrap_or_default();
                }
            }
        }
        self.latest.note_rows(columns, rows, SystemTime::now());
    }

    /// The open ranges. There are none when a step arrives late, from a fill that was given up on.
    fn open(&mut self) -> Option<&mut Vec<OpenRange>> {
        match &mut self.position {
            Position::Filling { open, .. } => Some(open),
            _ => None,
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Described { .. } => {}
            Step::Begin { ranges, since, refill, .. } => {
                let open = ranges
                    .into_iter()
                    .zip(0..)
                    .map(|(range, number)| OpenRange { number, range, after: None })
                    .collect();
                self.position = Position::Filling { refill, open, since };
                self.hidden.clear();
                self.deletes.get_or_insert(since);
                self.metadata.get_or_insert(since);
            }
            Step::Filled { number, rows, after } => {
                let ranges = self.open().into_iter().flatten();
                if let Some(range) = ranges.into_iter().find(|open| open.number == number) {
                    range.after = after;
                }
                self.keep_page(&rows);
            }
            Step::RangeDone { number } => {
                if let Some(open) = self.open() {
                    open.retain(|open| open.number != number);
                }
            }
            Step::Complete { watermark } | Step::PolledUpTo { watermark } => {
                self.position = Position::Following { watermark };
            }
            Step::Polled { watermark, is_well, .. } => {
                self.position = Position::Following { watermark };
                self.failure = self.failure.take().filter(|_| !is_well);
            }
            Step::Newest(rows) | Step::Changed(rows) => self.keep_page(&rows),
            Step::Rechecked { looked_up, present, at, .. } => {
                for (id, _) in &looked_up {
                    self.recheck.remove(id.as_str());
                }
                self.keep(&present, &looked_up, Some(at));
                let there: HashSet<&str> = present.ids().collect();
                for (id, version) in looked_up.into_iter().filter(|(id, _)| !there.contains(id.as_str())) {
                    match self.rows.get(id.as_str()) {
                        Some((stored, _)) if *stored == version => drop(self.rows.remove(id.as_str())),
                        Some(_) => drop(self.recheck.insert(id.as_str().to_owned())),
                        None => {}
                    }
                }
            }
            Step::Doubted(ids) => self.recheck.extend(ids.iter().map(|id| id.as_str().to_owned())),
            Step::DoubtedWhere(texts) => {
                let holds = |values: &Vec<String>| {
                    let held = |(column, texts): &(usize, Vec<String>)| texts.contains(&values[*column]);
                    texts.iter().any(held)
                };
                let rows = self.rows.iter().filter(|(_, (_, values))| holds(values));
                self.recheck.extend(rows.map(|(id, _)| id.clone()));
            }
            Step::Relabelled(relabelling) => self.relabel(&relabelling),
            Step::Reread { columns, rows } => self.keep_columns(&columns, &rows),
            Step::Hidden { range, count } => {
                self.hidden.retain(|(other, _)| !other.overlaps(&range));
                if count > 0 {
                    self.hidden.push((range, count));
                }
            }
            Step::Reconciled { at } => self.upkeep.reconciled = Some(at),
            Step::Scrubbed { rows, position } => {
                self.keep_page(&rows);
                self.upkeep.scrub = Some(position);
            }
            Step::Failed(stop) => self.failure = Some(stop.to_string()),
        }
    }
}

impl Store for MemoryStore {
    type Table = ();

    async fn apply(&self, (): (), step: Step) -> Result<(), StoreError> {
        self.with(|memory| memory.apply(step));
        Ok(())
    }

    async fn compare(&self, (): (), shown: Vec<Shown>) -> Result<Vec<Difference>, StoreError> {
        let mut comparison = Comparison::new(shown);
        self.with(|memory| {
            let stored = memory.rows.iter().map(|(id, (version, _))| (SysId::new(id.as_str()), *version));
            stored.for_each(|(id, version)| comparison.stored(id, version));
        });
        Ok(comparison.finish())
    }

    async fn count_by_prefix(
        &self,
        (): (),
        range: Range,
        length: usize,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let mut counts = BTreeMap::new();
        self.with(|memory| {
            for id in memory.rows.keys().filter(|id| range.contains(id)) {
                *counts.entry(id.chars().take(length).collect()).or_default() += 1;
            }
        });
        Ok(counts.into_iter().collect())
    }

    async fn hidden(&self, (): ()) -> Result<Vec<(Range, u64)>, StoreError> {
        Ok(self.with(|memory| memory.hidden.clone()))
    }

    async fn find(&self, ids: Vec<SysId>) -> Result<Found<()>, StoreError> {
        let stored = |id: SysId| self.with(|m| m.rows.get(id.as_str()).map(|(version, _)| (id, *version)));
        Ok(Found { records: vec![((), ids.into_iter().filter_map(stored).collect())], left_out: Vec::new() })
    }

    async fn find_in(&self, (): (), ids: Vec<SysId>) -> Result<StoredRecords, StoreError> {
        let found = self.find(ids).await?;
        Ok(found.records.into_iter().flat_map(|((), stored)| stored).collect())
    }

    async fn to_recheck(&self, (): ()) -> Result<StoredRecords, StoreError> {
        Ok(self.with(|memory| {
            let version = |id: &String| memory.rows.get(id).map(|(version, _)| *version).unwrap_or_default();
            memory.recheck.iter().map(|id| (SysId::new(id.as_str()), version(id))).collect()
        }))
    }

    async fn deletes_since(&self) -> Result<Option<i64>, StoreError> {
        Ok(self.with(|memory| memory.deletes))
    }

    async fn note_deletes(&self, outcome: Result<DeletesRead, Stop>) -> Result<(), StoreError> {
        self.with(|memory| match outcome {
            Ok(read) => memory.deletes = Some(read.watermark),
            Err(stop) => memory.failure = Some(stop.to_string()),
        });
        Ok(())
    }
}

impl MetadataStore for MemoryStore {
    async fn metadata_since(&self) -> Result<Option<i64>, StoreError> {
        Ok(self.with(|memory| memory.metadata))
    }

    async fn describe(&self, _defs: Vec<TableDef>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn note_metadata(&self, outcome: Result<MetadataRead<()>, Stop>) -> Result<(), StoreError> {
        self.with(|memory| match outcome {
            Ok(read) => memory.metadata = Some(read.watermark),
            Err(stop) => memory.failure = Some(stop.to_string()),
        });
        Ok(())
    }
}
