//! Where a mirror keeps its rows and its own position: the seam between the decisions and a database.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::future::Future;
use std::sync::Mutex;
use std::time::SystemTime;

use crate::dictionary::TableDef;
use crate::page::{Order, Rows, Version};
use crate::sync::Stop;
use crate::sync::sweep::Range;
use crate::value::SysId;

/// Records of a store, each with its version.
pub type StoredRecords = Vec<(SysId, Version)>;

/// Which of some records a store has.
#[derive(Clone, Debug)]
pub struct Found<T> {
    /// Per table, those it has.
    pub records: Vec<(T, StoredRecords)>,
    /// Whether every table could be looked at; somebody may hold a lock on one.
    pub complete: bool,
}

/// What a store refuses or fails at.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The mirrored table has changed or is gone; whoever drives it has to begin anew.
    #[error("the mirrored table has changed")]
    Stale,
    /// The store failed; the text is for people.
    #[error("{0}")]
    Failed(String),
}

/// The part of a table that one reader fills, and how far it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenRange {
    /// Its number within the fill.
    pub number: i32,
    /// Its bounds.
    pub range: Range,
    /// The last record that is in the store.
    pub after: Option<SysId>,
}

/// A mirror's position, as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// Nothing has been read, or everything is to be read again.
    Start {
        /// There are rows already: those that are gone from the instance have to leave.
        refill: bool,
    },
    /// A fill is under way.
    Filling {
        /// See [`Position::Start`].
        refill: bool,
        /// The ranges that are not complete.
        open: Vec<OpenRange>,
        /// What changed from this second on may have been missed by the fill.
        since: i64,
    },
    /// The table is complete as of the watermark.
    Following {
        /// The instance's clock when the last complete poll began, in seconds since 1970.
        watermark: i64,
    },
}

/// One change of a store, all or nothing.
pub enum Step {
    /// What the dictionary says about the table.
    Described(Box<TableDef>),
    /// A fill begins: these ranges are open now.
    Begin {
        /// The ranges.
        ranges: Vec<Range>,
        /// See [`Position::Filling`].
        since: i64,
        /// See [`Position::Start`].
        refill: bool,
        /// How many records the instance counts.
        total: Option<u64>,
        /// When it began.
        at: SystemTime,
    },
    /// Rows of a range, and how far it has come with them.
    Filled {
        /// The range's number.
        number: i32,
        /// The rows.
        rows: Rows,
        /// The last record of the range that is in the store now.
        after: Option<SysId>,
    },
    /// A range is complete.
    RangeDone {
        /// Its number.
        number: i32,
    },
    /// All ranges are complete.
    Complete {
        /// Where polling begins.
        watermark: i64,
    },
    /// Rows that have changed. They replace older versions only.
    Changed(Rows),
    /// What the instance has now of records that were looked up one by one. Whatever it is, it replaces the
    /// store's version if that is still the one from before the look.
    Rechecked {
        /// The records, in the store's version from before.
        looked_up: StoredRecords,
        /// Those of them that are there; the others are gone.
        present: Rows,
    },
    /// A poll has come to its end.
    Polled {
        /// The new watermark.
        watermark: i64,
        /// When the poll began, by the local clock.
        at: SystemTime,
    },
    /// Work on the table has failed and will be tried again.
    Failed(Stop),
}

/// A reading of deletions that came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeletesRead {
    /// The instance's clock when it began, in seconds since 1970: where the next one begins.
    pub watermark: i64,
    /// When it began, by the local clock.
    pub at: SystemTime,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Described(def) => write!(f, "Described({})", def.name),
            Step::Begin { ranges, since, total, .. } => {
                write!(f, "Begin({} ranges, since {since}, total {total:?})", ranges.len())
            }
            Step::Filled { number, rows, .. } => write!(f, "Filled(range {number}, {rows:?})"),
            Step::RangeDone { number } => write!(f, "RangeDone({number})"),
            Step::Complete { watermark } => write!(f, "Complete({watermark})"),
            Step::Changed(rows) => write!(f, "Changed({rows:?})"),
            Step::Rechecked { looked_up, present } => {
                write!(f, "Rechecked({} records, {present:?})", looked_up.len())
            }
            Step::Polled { watermark, .. } => write!(f, "Polled({watermark})"),
            Step::Failed(stop) => write!(f, "Failed({stop})"),
        }
    }
}

/// A store of mirrored rows.
///
/// Not everything that was read can be kept: somebody may be writing the record; or what was read seems older
/// than what is stored ([`Order::Unclear`]); or the store's version has changed during the look. In the same
/// step the store makes such records some to be rechecked, which [`Store::to_recheck`] tells of.
pub trait Store: Send + Sync + 'static {
    /// What a table is known by.
    type Table: Copy + Eq + fmt::Debug + Send + Sync + 'static;

    /// Carries out one step, all or nothing.
    fn apply(&self, table: Self::Table, step: Step) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The stored rows of a range that are not among those the instance showed.
    fn missing(
        &self,
        table: Self::Table,
        range: Range,
        seen: HashSet<SysId>,
    ) -> impl Future<Output = Result<StoredRecords, StoreError>> + Send;

    /// Which of these records are stored, in which of the server's tables, in which version.
    fn find(&self, ids: Vec<SysId>) -> impl Future<Output = Result<Found<Self::Table>, StoreError>> + Send;

    /// Records that have to be looked up, as far as nobody is writing them: those that could not be kept, and
    /// those that somebody else has put into the store as they see them. [`Step::Rechecked`] settles them.
    fn to_recheck(
        &self,
        table: Self::Table,
    ) -> impl Future<Output = Result<StoredRecords, StoreError>> + Send;

    /// The second from which on deletions matter and have not been read: where the last reading said, or the
    /// beginning of the first fill; `None` before both.
    fn deletes_since(&self) -> impl Future<Output = Result<Option<i64>, StoreError>> + Send;

    /// Takes note of a reading of deletions, or of its failure.
    fn note_deletes(
        &self,
        outcome: Result<DeletesRead, Stop>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

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
    /// See [`Store::deletes_since`].
    pub deletes: Option<i64>,
    /// The last failure.
    pub failure: Option<String>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            recheck: BTreeSet::new(),
            position: Position::Start { refill: false },
            deletes: None,
            failure: None,
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
    /// Keeps rows that are not older than what is stored, or whose stored version is the one given.
    fn keep(&mut self, rows: &Rows, expected: &StoredRecords) {
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

    /// The open ranges. There are none when a step arrives late, from a fill that was given up on.
    fn open(&mut self) -> Option<&mut Vec<OpenRange>> {
        match &mut self.position {
            Position::Filling { open, .. } => Some(open),
            _ => None,
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Described(_) => {}
            Step::Begin { ranges, since, refill, .. } => {
                let open = ranges
                    .into_iter()
                    .zip(0..)
                    .map(|(range, number)| OpenRange { number, range, after: None })
                    .collect();
                self.position = Position::Filling { refill, open, since };
                self.deletes.get_or_insert(since);
            }
            Step::Filled { number, rows, after } => {
                let ranges = self.open().into_iter().flatten();
                if let Some(range) = ranges.into_iter().find(|open| open.number == number) {
                    range.after = after;
                }
                self.keep(&rows, &StoredRecords::new());
            }
            Step::RangeDone { number } => {
                if let Some(open) = self.open() {
                    open.retain(|open| open.number != number);
                }
            }
            Step::Complete { watermark } | Step::Polled { watermark, .. } => {
                self.position = Position::Following { watermark };
                self.failure = None;
            }
            Step::Changed(rows) => self.keep(&rows, &StoredRecords::new()),
            Step::Rechecked { looked_up, present } => {
                for (id, _) in &looked_up {
                    self.recheck.remove(id.as_str());
                }
                self.keep(&present, &looked_up);
                let there: HashSet<&str> = present.ids().collect();
                for (id, version) in looked_up.into_iter().filter(|(id, _)| !there.contains(id.as_str())) {
                    match self.rows.get(id.as_str()) {
                        Some((stored, _)) if *stored == version => drop(self.rows.remove(id.as_str())),
                        Some(_) => drop(self.recheck.insert(id.as_str().to_owned())),
                        None => {}
                    }
                }
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

    async fn missing(&self, (): (), range: Range, seen: HashSet<SysId>) -> Result<StoredRecords, StoreError> {
        let within = |id: &str| {
            range.lower.as_ref().is_none_or(|lower| id >= lower.as_str())
                && range.upper.as_ref().is_none_or(|upper| id < upper.as_str())
        };
        Ok(self.with(|memory| {
            let stored = memory.rows.iter().filter(|(id, _)| within(id));
            stored
                .map(|(id, (version, _))| (SysId::new(id.as_str()), *version))
                .filter(|(id, _)| !seen.contains(id))
                .collect()
        }))
    }

    async fn find(&self, ids: Vec<SysId>) -> Result<Found<()>, StoreError> {
        let stored = |id: SysId| self.with(|m| m.rows.get(id.as_str()).map(|(version, _)| (id, *version)));
        Ok(Found { records: vec![((), ids.into_iter().filter_map(stored).collect())], complete: true })
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
