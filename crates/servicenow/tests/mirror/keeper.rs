//! The store of these tests: one in memory that can be interrupted between any two steps, and in which somebody may be
//! writing rows, as in a database.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use servicenow::capture::event::{Event, Operation};
use servicenow::dictionary::TableDef;
use servicenow::sync::Stop;
use servicenow::sync::capture::{CaptureStore, News, Noted, Rules};
use servicenow::sync::compare::{Difference, Shown};
use servicenow::sync::memory::{Memory, MemoryStore};
use servicenow::sync::metadata::MetadataStore;
use servicenow::sync::range::Range;
use servicenow::sync::store::{
    DeletesRead, Found, MetadataRead, Position, Step, Store, StoreError, StoredRecords, Upkeep,
};
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
    told: Mutex<Told>,
    relabelled: Mutex<Vec<usize>>,
    rules: Mutex<Rules>,
}

/// What the instance has told of.
#[derive(Default)]
struct Told {
    /// Records to be looked up, and since when.
    requests: Vec<(SysId, SystemTime)>,
    /// Records that were told to be gone while there was none: a look that began before must not bring them back.
    absent: HashMap<String, SystemTime>,
}

impl Keeper {
    /// Looks at or changes the contents.
    pub fn with<R>(&self, f: impl FnOnce(&mut Memory) -> R) -> R {
        self.memory.with(f)
    }

    /// Where there are rules.
    pub fn rules(&self) -> Rules {
        self.rules.lock().expect("no panic").clone()
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

    /// Of how many records each step has told that changes names.
    pub fn relabelled(&self) -> Vec<usize> {
        self.relabelled.lock().expect("no panic").clone()
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
        let looked = match &step {
            Step::Rechecked { looked_up, at, .. } => Some((looked_up.clone(), *at)),
            _ => None,
        };
        let gone = looked.as_ref().map(|(ids, at)| self.gone_since(*at, ids)).unwrap_or_default();
        let held: Vec<String> = ids.into_iter().filter(|id| self.held(id) || gone.contains(id)).collect();
        let before: Vec<_> = held.iter().map(|id| self.with(|m| m.rows.get(id).cloned())).collect();
        self.memory.apply((), step).await?;
        if let Some((ids, at)) = looked {
            let mut told = self.told.lock().expect("no panic");
            // What was told of after the look began may not be in it.
            told.requests.retain(|(id, since)| *since > at || !ids.iter().any(|(looked, _)| looked == id));
        }
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

    /// Whether there is nothing left to be looked up.
    pub fn is_settled(&self) -> bool {
        self.with(|m| m.recheck.is_empty()) && self.told.lock().expect("no panic").requests.is_empty()
    }

    /// What has to be looked up after events; gives back how many said nothing new.
    fn note(&self, events: &[Event]) -> u64 {
        let mut told = self.told.lock().expect("no panic");
        let mut echoes = 0;
        for event in events {
            let stored = self.with(|m| m.rows.get(event.id.as_str()).map(|(version, _)| *version));
            if event.operation == Operation::Delete && stored.is_none() {
                told.absent.insert(event.id.as_str().to_owned(), SystemTime::now());
            }
            match event.is_satisfied_by(stored) {
                true => echoes += 1,
                false => told.requests.push((event.id.clone(), SystemTime::now())),
            }
        }
        echoes
    }

    /// Those of these records that have gone since a moment.
    fn gone_since(&self, at: SystemTime, ids: &StoredRecords) -> HashSet<String> {
        let told = self.told.lock().expect("no panic");
        let has_gone = |id: &&str| told.absent.get(*id).is_some_and(|gone| *gone > at);
        ids.iter().map(|(id, _)| id.as_str()).filter(has_gone).map(str::to_owned).collect()
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
        if let Step::Relabelled(relabelling) = &step {
            self.relabelled.lock().expect("no panic").push(relabelling.records.len());
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

impl CaptureStore for Keeper {
    async fn note_events(&self, events: Vec<Event>) -> Result<Noted<()>, StoreError> {
        let mut echoes = 0;
        if !events.is_empty() {
            yield_now().await;
            self.check()?;
            echoes = self.note(&events);
            yield_now().await;
        }
        let ids: BTreeSet<String> = {
            let told = self.told.lock().expect("no panic");
            let told = told.requests.iter().map(|(id, _)| id.as_str().to_owned());
            self.with(|m| m.recheck.clone()).into_iter().chain(told).collect()
        };
        let all = ids.len();
        let version =
            |id: &str| self.with(|m| m.rows.get(id).map(|(version, _)| *version)).unwrap_or_default();
        let free = ids.into_iter().filter(|id| !self.held(id));
        let looks: StoredRecords = free.map(|id| (SysId::new(id.as_str()), version(&id))).collect();
        let waiting = looks.len() < all;
        let looks = if looks.is_empty() { Vec::new() } else { vec![((), looks)] };
        Ok(Noted { looks, waiting, again: None, echoes })
    }

    async fn note_capture(&self, _news: News) -> Result<u64, StoreError> {
        yield_now().await;
        Ok(0)
    }

    async fn note_rules(&self, rules: Rules) -> Result<(), StoreError> {
        yield_now().await;
        self.check()?;
        *self.rules.lock().expect("no panic") = rules;
        Ok(())
    }

    async fn renew_subscription(&self) -> Result<(), StoreError> {
        panic!("nobody else reads the queue")
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

    async fn note_metadata(&self, outcome: Result<MetadataRead<()>, Stop>) -> Result<(), StoreError> {
        self.memory.note_metadata(outcome).await
    }
}
