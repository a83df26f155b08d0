//! The store of these tests: one in memory that can be interrupted between any two steps, and in which somebody may be
//! writing rows, as in a database.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use servicenow::dictionary::TableDef;
use servicenow::sync::Stop;
use servicenow::sync::compare::{Difference, Shown};
use servicenow::sync::memory::{Memory, MemoryStore};
use servicenow::sync::metadata::MetadataStore;
use servicenow::sync::range::Range;
use servicenow::sync::store::{DeletesRead, Found, Position, Step, Store, StoreError, StoredRecords, Upkeep};
use servicenow::value::SysId;
use tokio::task::yield_now;

/// Something to be done to the contents at a certain moment.
type Meanwhile = Box<dyn FnOnce(&mut Memory) + Send>;

/// See the module.
#[derive(Default)]
pub struct Keeper {
    memory: MemoryStore,
    known: Mutex<Option<TableDef>>,
    held: Mutex<HashSet<String>>,
    after_find: Mutex<Option<Meanwhile>>,
    is_stale: Mutex<bool>,
    is_stuck: AtomicBool,
    polls: AtomicUsize,
}

impl Keeper {
    /// Looks at or changes the contents.
    pub fn with<R>(&self, f: impl FnOnce(&mut Memory) -> R) -> R {
        self.memory.with(f)
    }

    /// Where the mirror stands.
    pub fn position(&self) -> Position {
        self.with(|m| m.position.clone())
    }

    /// How far the upkeep has come.
    pub fn upkeep(&self) -> Upkeep {
        self.with(|m| m.upkeep.clone())
    }

    /// The table's description, once it has been read.
    pub fn known(&self) -> Option<TableDef> {
        self.known.lock().expect("no panic").clone()
    }

    /// Somebody begins to write a record: it cannot be changed or dropped until they are done.
    pub fn hold(&self, id: &str) {
        self.held.lock().expect("no panic").insert(id.to_owned());
    }

    /// Everybody is done writing.
    pub fn let_go(&self) {
        self.held.lock().expect("no panic").clear();
    }

    /// Does something right after the next look for records.
    pub fn after_find(&self, meanwhile: impl FnOnce(&mut Memory) + Send + 'static) {
        *self.after_find.lock().expect("no panic") = Some(Box::new(meanwhile));
    }

    /// The mirrored table is changed: whoever comes with something has to begin anew.
    pub fn become_stale(&self) {
        *self.is_stale.lock().expect("no panic") = true;
    }

    /// Pages of a fill are not stored until this is taken back.
    pub fn be_stuck(&self, stuck: bool) {
        self.is_stuck.store(stuck, Ordering::Relaxed);
    }

    /// How many polls have come to their end.
    pub fn polls(&self) -> usize {
        self.polls.load(Ordering::Relaxed)
    }

    fn held(&self, id: &str) -> bool {
        self.held.lock().expect("no panic").contains(id)
    }

    /// Carries out a step around the rows that somebody is writing: they stay as they are and are rechecked.
    async fn apply_around(&self, step: Step) -> Result<(), StoreError> {
        let ids: Vec<String> = match &step {
            Step::Filled { rows, .. }
            | Step::Newest(rows)
            | Step::Changed(rows)
            | Step::Scrubbed { rows, .. }
            | Step::Reread { rows, .. } => rows.ids().map(str::to_owned).collect(),
            Step::Relabelled(_) => self.with(|m| m.rows.keys().cloned().collect()),
            Step::Rechecked { looked_up, .. } => {
                looked_up.iter().map(|(id, _)| id.as_str().to_owned()).collect()
            }
            _ => Vec::new(),
        };
        let held: Vec<String> = ids.into_iter().filter(|id| self.held(id)).collect();
        let before: Vec<_> = held.iter().map(|id| self.with(|m| m.rows.get(id).cloned())).collect();
        self.memory.apply((), step).await?;
        self.with(|m| {
            for (id, row) in held.into_iter().zip(before) {
                match row {
                    Some(row) => drop(m.rows.insert(id.clone(), row)),
                    None => drop(m.rows.remove(&id)),
                }
                m.recheck.insert(id);
            }
        });
        Ok(())
    }

    fn check(&self) -> Result<(), StoreError> {
        if *self.is_stale.lock().expect("no panic") { Err(StoreError::Stale) } else { Ok(()) }
    }
}

impl Store for Keeper {
    type Table = ();

    async fn apply(&self, (): (), step: Step) -> Result<(), StoreError> {
        yield_now().await;
        self.check()?;
        if let Step::Described { def, .. } = &step {
            *self.known.lock().expect("no panic") = Some((**def).clone());
        }
        while matches!(step, Step::Filled { .. }) && self.is_stuck.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let is_poll = matches!(step, Step::Polled { .. });
        let applied = self.apply_around(step).await;
        self.polls.fetch_add(usize::from(is_poll), Ordering::Relaxed);
        yield_now().await;
        applied
    }

    async fn compare(&self, (): (), shown: Vec<Shown>) -> Result<Vec<Difference>, StoreError> {
        yield_now().await;
        self.check()?;
        let differences = self.memory.compare((), shown).await;
        yield_now().await;
        differences
    }

    async fn count_by_prefix(
        &self,
        (): (),
        range: Range,
        length: usize,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        yield_now().await;
        self.check()?;
        self.memory.count_by_prefix((), range, length).await
    }

    async fn hidden(&self, (): ()) -> Result<Vec<(Range, u64)>, StoreError> {
        yield_now().await;
        self.check()?;
        self.memory.hidden(()).await
    }

    async fn find(&self, ids: Vec<SysId>) -> Result<Found<()>, StoreError> {
        yield_now().await;
        self.check()?;
        let found = self.memory.find(ids).await;
        if let Some(meanwhile) = self.after_find.lock().expect("no panic").take() {
            self.with(meanwhile);
        }
        yield_now().await;
        found
    }

    async fn find_in(&self, (): (), ids: Vec<SysId>) -> Result<StoredRecords, StoreError> {
        let found = self.find(ids).await?;
        Ok(found.records.into_iter().flat_map(|((), stored)| stored).collect())
    }

    async fn to_recheck(&self, (): ()) -> Result<StoredRecords, StoreError> {
        self.check()?;
        let mut records = self.memory.to_recheck(()).await?;
        records.retain(|(id, _)| !self.held(id.as_str()));
        Ok(records)
    }

    async fn deletes_since(&self) -> Result<Option<i64>, StoreError> {
        self.memory.deletes_since().await
    }

    async fn note_deletes(&self, outcome: Result<DeletesRead, Stop>) -> Result<(), StoreError> {
        self.memory.note_deletes(outcome).await
    }
}

impl MetadataStore for Keeper {
    async fn metadata_since(&self) -> Result<Option<i64>, StoreError> {
        self.memory.metadata_since().await
    }

    async fn describe(&self, defs: Vec<TableDef>) -> Result<(), StoreError> {
        yield_now().await;
        self.memory.describe(defs).await
    }

    async fn note_metadata(&self, outcome: Result<i64, Stop>) -> Result<(), StoreError> {
        self.memory.note_metadata(outcome).await
    }
}
