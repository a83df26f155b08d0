//! Where a mirror keeps its rows and its own position: the seam between the decisions and a database.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::time::SystemTime;

use crate::dictionary::TableDef;
use crate::page::{Rows, Version};
use crate::sync::Stop;
use crate::sync::compare::{Difference, Shown};
use crate::sync::range::Range;
use crate::value::{SysId, TableName};

/// Records of a store, each with its version.
pub type StoredRecords = Vec<(SysId, Version)>;

/// Which of some records a store has.
#[derive(Clone, Debug)]
pub struct Found<T> {
    /// Per table, those it has.
    pub records: Vec<(T, StoredRecords)>,
    /// The tables that could not be looked at: somebody holds a lock on them.
    pub left_out: Vec<T>,
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
    /// See [`Step::Filled`].
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

/// How far the work has come that repairs what polls cannot see, as the store keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// When the last comparison of counts began that came to its end, by the local clock.
    pub reconciled: Option<SystemTime>,
    /// The position of the full re-reading.
    pub scrub: Option<ScrubPosition>,
}

/// The position of a full re-reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubPosition {
    /// When this round began, by the local clock.
    pub began: SystemTime,
    /// The record up to which everything has been read and compared.
    pub after: Option<SysId>,
    /// How many records that were.
    pub read: u64,
    /// How many records the round has to read, as far as known.
    pub total: u64,
}

/// What made a mirror look records up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Everything is read.
    Fill,
    /// They have changed, or were deleted.
    Poll,
    /// The instance has told of a change.
    Capture,
    /// A comparison with the instance.
    Upkeep,
}

/// One change of a store, all or nothing.
pub enum Step {
    /// What the dictionary says about the table.
    Described {
        /// The description.
        def: Box<TableDef>,
        /// The dot-walks among the columns that lead nowhere any more.
        lost: Vec<String>,
    },
    /// A fill begins: these ranges are open now, and nothing is remembered of hidden records any more.
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
    /// The rows that have changed last, of a table that is being filled for the first time: they are there before
    /// the others. They replace older versions only.
    Newest(Rows),
    /// Rows of a range, and how far it has come with them. They may have some of the columns only
    /// ([`Spec::fill_layout`](super::mirror::Spec)): then they are of use where the store has the same version.
    Filled {
        /// The range's number.
        number: i32,
        /// The rows.
        rows: Rows,
        /// The record behind which somebody goes on who comes after an interruption: the last one that is in the
        /// store, or, of a refill, up to which what is stored has been compared with what is shown.
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
        /// Why they were looked up.
        origin: Origin,
        /// When the look began, by the local clock: what was asked for, or deleted, after that is not settled by it.
        at: SystemTime,
    },
    /// These records have to be looked up, and could not be just now: [`Store::to_recheck`] tells of them.
    Doubted(Vec<SysId>),
    /// So have those that hold one of these texts in one of these columns.
    DoubtedWhere(Vec<(usize, Vec<String>)>),
    /// Records of other tables are called otherwise now: the rows that refer to them show it.
    Relabelled(Relabelling),
    /// Some columns of some rows, read because of what has changed in other tables. They are of use where the store has
    /// the same version.
    Reread {
        /// The positions of the rows' columns in the whole layout.
        columns: Vec<usize>,
        /// The rows.
        rows: Rows,
    },
    /// A poll that is a long one has come so far: whoever comes after an interruption goes on from there.
    PolledUpTo {
        /// Where the next poll begins.
        watermark: i64,
    },
    /// A poll has come to its end.
    Polled {
        /// The new watermark.
        watermark: i64,
        /// When the poll began, by the local clock.
        at: SystemTime,
        /// Nothing else about the table fails either: what was said to have failed is over.
        is_well: bool,
    },
    /// The instance counts so many more records of a range than it shows. This replaces what is remembered of
    /// every range that overlaps with it; nought is not worth remembering.
    Hidden {
        /// The range.
        range: Range,
        /// How many there are.
        count: u64,
    },
    /// A comparison of counts has come to its end: what differed has been settled.
    Reconciled {
        /// When it began, by the local clock.
        at: SystemTime,
    },
    /// Rows of the full re-reading, and its position after them. They replace older versions and the same one.
    Scrubbed {
        /// The rows.
        rows: Rows,
        /// The position. A round begins without rows.
        position: ScrubPosition,
    },
    /// Work on the table has failed and will be tried again.
    Failed(Stop),
}

/// What records of other tables are called now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relabelling {
    /// The columns that show it.
    pub columns: Vec<Renamed>,
    /// The records, each with its names; what the caller may not see is none.
    pub records: Vec<(SysId, Vec<Option<String>>)>,
}

/// A column that shows what records of another table are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The column, by its position.
    pub column: usize,
    /// The column that says of which record.
    pub by: usize,
    /// Which of the record's names it is.
    pub name: usize,
}

/// A reading of deletions that came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeletesRead {
    /// The instance's clock when it began, in seconds since 1970: where the next one begins.
    pub watermark: i64,
    /// When it began, by the local clock.
    pub at: SystemTime,
}

/// A reading of metadata that came to its end.
#[derive(Clone, Debug)]
pub struct MetadataRead<K> {
    /// The instance's clock when it began, in seconds since 1970: where the next one begins.
    pub watermark: i64,
    /// When it began, by the local clock.
    pub at: SystemTime,
    /// Tables whose records' names, though a mirrored table shows them, are not followed: they may not be read, or do not say
    /// what has changed in them.
    pub unfollowed: HashMap<K, BTreeSet<TableName>>,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Described { def, .. } => write!(f, "Described({})", def.name),
            Step::Begin { ranges, since, total, .. } => {
                write!(f, "Begin({} ranges, since {since}, total {total:?})", ranges.len())
            }
            Step::Newest(rows) => write!(f, "Newest({rows:?})"),
            Step::Filled { number, rows, .. } => write!(f, "Filled(range {number}, {rows:?})"),
            Step::RangeDone { number } => write!(f, "RangeDone({number})"),
            Step::Complete { watermark } => write!(f, "Complete({watermark})"),
            Step::Changed(rows) => write!(f, "Changed({rows:?})"),
            Step::Rechecked { looked_up, present, .. } => {
                write!(f, "Rechecked({} records, {present:?})", looked_up.len())
            }
            Step::Doubted(ids) => write!(f, "Doubted({} records)", ids.len()),
            Step::DoubtedWhere(texts) => write!(f, "DoubtedWhere({} columns)", texts.len()),
            Step::Relabelled(relabelling) => write!(f, "Relabelled({} records)", relabelling.records.len()),
            Step::Reread { rows, .. } => write!(f, "Reread({rows:?})"),
            Step::PolledUpTo { watermark } => write!(f, "PolledUpTo({watermark})"),
            Step::Polled { watermark, .. } => write!(f, "Polled({watermark})"),
            Step::Hidden { range, count } => write!(f, "Hidden({count} in {range:?})"),
            Step::Reconciled { .. } => write!(f, "Reconciled"),
            Step::Scrubbed { rows, position } => write!(f, "Scrubbed({rows:?}, {position:?})"),
            Step::Failed(stop) => write!(f, "Failed({stop})"),
        }
    }
}

/// Records looked up between two polls, so that many of them do not keep a table from being polled.
pub const RECHECKED_AT_A_TIME: usize = 1_000;

/// A store of mirrored rows.
///
/// Not everything that was read can be kept: somebody may be writing the record; or what was read seems older
/// than what is stored ([`Order::Unclear`](crate::page::Order::Unclear)); or it shows something of other tables that has
/// changed since ([`Latest`](super::latest::Latest)); or the store's version has changed during the look. In the same step the store makes such records some to be rechecked, which [`Store::to_recheck`] tells
/// of.
pub trait Store: Send + Sync + 'static {
    /// What a table is known by.
    type Table: Copy + Eq + fmt::Debug + Send + Sync + 'static;

    /// Carries out one step, all or nothing.
    fn apply(&self, table: Self::Table, step: Step) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// How the stored rows of ranges differ from what the instance showed of them, per range in the given order.
    /// The ranges do not overlap, but need not cover everything. A store tells every row it has to a
    /// [`Comparison`](super::compare::Comparison), or every row of the ranges.
    fn compare(
        &self,
        table: Self::Table,
        shown: Vec<Shown>,
    ) -> impl Future<Output = Result<Vec<Difference>, StoreError>> + Send;

    /// How many rows of a range are stored, by the first `length` characters of their identifiers; of those that
    /// are shorter, by the whole. Length 0 gives the number of all, or nothing if there are none. In any order;
    /// capitals and small letters may be told apart or not.
    fn count_by_prefix(
        &self,
        table: Self::Table,
        range: Range,
        length: usize,
    ) -> impl Future<Output = Result<Vec<(String, u64)>, StoreError>> + Send;

    /// How many records of which ranges the instance counts and does not show, as [`Step::Hidden`] has said it.
    fn hidden(
        &self,
        table: Self::Table,
    ) -> impl Future<Output = Result<Vec<(Range, u64)>, StoreError>> + Send;

    /// Which of these records are stored, in which of the server's tables, in which version.
    fn find(&self, ids: Vec<SysId>) -> impl Future<Output = Result<Found<Self::Table>, StoreError>> + Send;

    /// Which of these records a table has. Other tables are not looked at, so that nobody's lock on one is in the way.
    fn find_in(
        &self,
        table: Self::Table,
        ids: Vec<SysId>,
    ) -> impl Future<Output = Result<StoredRecords, StoreError>> + Send;

    /// Records that have to be looked up, as far as nobody is writing them: those that could not be kept, and
    /// those that somebody else has put into the store as they see them. [`Step::Rechecked`] settles them. Where there
    /// are more than [`RECHECKED_AT_A_TIME`] it is enough to tell of so many.
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
