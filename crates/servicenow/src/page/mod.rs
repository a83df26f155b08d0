//! Decodes the rows of an answer straight into a compact batch, without a tree of JSON values in between.
//!
//! A [`Layout`] says which columns a reader wants; [`decode_list`] and [`decode_record`] walk the JSON text
//! once and put each wanted value into the batch ([`Rows`]). Text lives in one arena, everything else in
//! 16-byte cells, so that a page of 1,000 rows costs a handful of allocations.

mod decode;
mod json;
mod route;
mod words;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::value::{Kind, Show, Value};

pub(crate) use decode::describe_other;
pub use decode::{decode_list, decode_record};
pub(crate) use words::{Spoken, decode_words};

/// One column a reader wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Column {
    /// The field, or a dot-walk, as `sysparm_fields` names it.
    pub field: String,
    /// Which side of the field.
    pub show: Show,
    /// The type of a stored value; a label is always text.
    pub kind: Kind,
}

/// The columns of a batch, and where each field of an answer goes.
#[derive(Debug)]
pub struct Layout {
    columns: Vec<Column>,
    /// Where each wanted field goes.
    targets: Vec<Target>,
    /// Field name to position in `targets`.
    by_name: HashMap<String, usize>,
}

/// The columns that a field fills.
#[derive(Clone, Debug, Default)]
struct Target {
    columns: Vec<usize>,
    /// Whether it is one of the fields every batch keeps.
    stamp: Option<Stamp>,
    /// Whether anybody wants the label, and the stored value.
    wants: Sides,
}

/// Sides of a field.
#[derive(Clone, Copy, Debug, Default)]
struct Sides {
    label: bool,
    value: bool,
}

/// The fields kept for every row besides the wanted columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamp {
    SysId,
    UpdatedOn,
    ModCount,
}

const STAMPS: [(&str, Stamp); 3] =
    [("sys_id", Stamp::SysId), ("sys_updated_on", Stamp::UpdatedOn), ("sys_mod_count", Stamp::ModCount)];

impl Layout {
    /// A layout of these columns, in this order.
    pub fn new(columns: Vec<Column>) -> Self {
        let mut layout = Self { columns: Vec::new(), targets: Vec::new(), by_name: HashMap::new() };
        for (i, column) in columns.iter().enumerate() {
            let target = layout.target(&column.field);
            target.columns.push(i);
            match column.show {
                Show::Label => target.wants.label = true,
                Show::Value => target.wants.value = true,
            }
        }
        for (field, stamp) in STAMPS {
            let target = layout.target(field);
            target.stamp = Some(stamp);
            target.wants.value = true;
        }
        Self { columns, ..layout }
    }

    fn target(&mut self, field: &str) -> &mut Target {
        let targets = &mut self.targets;
        let position = *self.by_name.entry(field.to_owned()).or_insert_with(|| {
            targets.push(Target::default());
            targets.len() - 1
        });
        &mut targets[position]
    }

    /// A layout of stored values as text, for reading metadata.
    pub fn of_text(fields: &[&str]) -> Self {
        let text = |field: &&str| Column { field: (*field).to_owned(), show: Show::Value, kind: Kind::Text };
        Self::new(fields.iter().map(text).collect())
    }

    /// The columns, in order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Whether an answer has to carry display values.
    pub fn wants_labels(&self) -> bool {
        self.columns.iter().any(|column| column.show == Show::Label)
    }

    /// The fields to ask for, each once, in a stable order: what the columns show and what every row keeps.
    pub fn fields(&self) -> Vec<&str> {
        let mut fields: Vec<&str> = STAMPS.iter().map(|(field, _)| *field).collect();
        for column in &self.columns {
            if !fields.contains(&column.field.as_str()) {
                fields.push(&column.field);
            }
        }
        fields
    }
}

/// One value of a batch; text is a range of the batch's arena.
#[derive(Clone, Copy, Debug, Default)]
enum Cell {
    /// The answer does not have the field: the caller may not read it.
    #[default]
    Absent,
    Null,
    Text {
        start: u32,
        len: u32,
    },
    Boolean(bool),
    Integer(i64),
    Float(f64),
    Micros(i64),
    Days(i32),
    TimeOfDay(i64),
    Seconds(i64),
}

/// When a record was last changed, as far as its own fields tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// `sys_updated_on`, in seconds since 1970; `None` if it is not shown.
    pub updated_on: Option<i64>,
    /// `sys_mod_count`; `None` if it is not shown.
    pub mod_count: Option<i64>,
}

/// By how much the clocks of an instance's parts may be apart, in seconds, with what is lost by rounding.
const CLOCKS_APART: i64 = 2;

/// How a version that was read stands to one that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Both are the same, as far as can be told.
    Same,
    /// The one that was read is the later one, or nothing can be told.
    Later,
    /// The one that was read seems earlier, by one of its parts at least. It may have been read before the
    /// other was stored; but the instance's clock may have been set back too, or the record been made anew.
    Unclear,
}

impl Version {
    /// Whether a record that was this version, and then was written once, had been written by others before.
    pub fn was_outdated(self, now: Version) -> bool {
        self.mod_count.zip(now.mod_count).is_some_and(|(before, now)| now > before + 1)
    }

    /// Whether a record that was this version, and may or may not have been changed once since, was: `None` if that cannot
    /// be told from the version it is now.
    pub fn was_changed_once(self, now: Version) -> Option<bool> {
        match self.mod_count.zip(now.mod_count)? {
            (before, now) if now == before => Some(false),
            (before, now) if now == before + 1 => Some(true),
            _ => None, // by others too
        }
    }

    /// How this version, which was read, stands to one that is stored.
    pub fn order(self, stored: Version) -> Order {
        let (Some(read_on), Some(stored_on)) = (self.updated_on, stored.updated_on) else {
            return Order::Later;
        };
        let counts = self.mod_count.zip(stored.mod_count);
        let by_count = counts.map_or(Ordering::Equal, |(read, stored)| read.cmp(&stored));
        match (read_on.cmp(&stored_on), by_count) {
            (Ordering::Equal, Ordering::Equal) => Order::Same,
            (Ordering::Less, _) | (_, Ordering::Less) => Order::Unclear,
            _ => Order::Later,
        }
    }
}

/// The most a batch takes, in bytes: 10,000 rows of 1,600 columns, or text of four times the largest answer. An answer
/// can be small and ask for more than that, by rows with next to nothing in them.
const MEMORY_LIMIT: usize = 256 << 20;

/// A batch of decoded rows.
#[derive(Clone)]
pub struct Rows {
    layout: Arc<Layout>,
    text: String,
    cells: Vec<Cell>,
    ids: Vec<(u32, u32)>,
    versions: Vec<Version>,
    /// It would take more than [`MEMORY_LIMIT`]; something was left out.
    is_full: bool,
    served_at: Option<i64>,
}

impl fmt::Debug for Rows {
    /// Shows the shape only: row values do not belong into messages or logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rows({} rows of {} columns)", self.len(), self.layout.columns.len())
    }
}

impl Rows {
    /// An empty batch.
    pub fn new(layout: Arc<Layout>) -> Self {
        Self {
            layout,
            text: String::new(),
            cells: Vec::new(),
            ids: Vec::new(),
            versions: Vec::new(),
            is_full: false,
            served_at: None,
        }
    }

    /// As the answer to a write that was served at a time.
    #[must_use]
    pub(crate) fn served_at(self, served_at: Option<i64>) -> Self {
        Self { served_at, ..self }
    }

    /// Whether a write of a record, of which this is the answer, has left it as it was: it was last changed before the write
    /// was begun, `took` ago. By the instance's own clock; `false` if that is not known.
    pub fn is_untouched(&self, row: usize, took: Duration) -> bool {
        self.stamp_after_begin(row, took).is_some_and(|seconds| seconds < 0)
    }

    /// Whether a write of a record, of which this is the answer, has been stamped with the time that the answer tells. Where
    /// it never is, as behind a proxy with a clock of its own, [`Rows::is_untouched`] says nothing.
    pub fn is_stamped(&self, row: usize, took: Duration) -> bool {
        let longest = took.as_secs() as i64 + 2 * CLOCKS_APART;
        self.stamp_after_begin(row, took).is_some_and(|seconds| (0..=longest).contains(&seconds))
    }

    /// How many seconds after the begin of a write, with some allowance for clocks, its record was last changed.
    fn stamp_after_begin(&self, row: usize, took: Duration) -> Option<i64> {
        let begun = self.served_at?.saturating_sub_unsigned(took.as_secs()) - CLOCKS_APART;
        Some(self.version(row).updated_on? - begun)
    }

    /// The batch's columns.
    #[inline]
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The row's `sys_id`.
    pub fn id(&self, row: usize) -> &str {
        let (start, len) = self.ids[row];
        &self.text[start as usize..(start + len) as usize]
    }

    /// Every row's `sys_id`, in order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|row| self.id(row))
    }

    /// The row's version.
    pub fn version(&self, row: usize) -> Version {
        self.versions[row]
    }

    /// A value, by row and by column of the layout.
    #[inline]
    pub fn value(&self, row: usize, column: usize) -> Value<'_> {
        match self.cells[row * self.layout.columns.len() + column] {
            Cell::Absent | Cell::Null => Value::Null,
            Cell::Text { start, len } => Value::Text(&self.text[start as usize..(start + len) as usize]),
            Cell::Boolean(b) => Value::Boolean(b),
            Cell::Integer(i) => Value::Integer(i),
            Cell::Float(f) => Value::Float(f),
            Cell::Micros(us) => Value::Micros(us),
            Cell::Days(days) => Value::Days(days),
            Cell::TimeOfDay(us) => Value::TimeOfDay(us),
            Cell::Seconds(s) => Value::Seconds(s),
        }
    }

    /// Whether the answer has the column's field at all; those the caller may not read are left out.
    pub fn is_shown(&self, row: usize, column: usize) -> bool {
        !matches!(self.cells[row * self.layout.columns.len() + column], Cell::Absent)
    }

    /// A text value; empty where there is none.
    pub fn text(&self, row: usize, column: usize) -> &str {
        match self.value(row, column) {
            Value::Text(text) => text,
            _ => "",
        }
    }

    /// The stored value of a field that was read as text; empty where there is none.
    pub fn get(&self, row: usize, field: &str) -> &str {
        let named = |column: &Column| column.field == field && column.show == Show::Value;
        self.layout.columns.iter().position(named).map_or("", |column| self.text(row, column))
    }

    /// Appends a row of another batch of the same layout.
    pub fn push(&mut self, other: &Rows, row: usize) {
        let columns = self.layout.columns.len();
        debug_assert_eq!(columns, other.layout.columns.len());
        for cell in &other.cells[row * columns..(row + 1) * columns] {
            let cell = match *cell {
                Cell::Text { start, len } => {
                    let (start, len) = self.copy(other, start, len);
                    Cell::Text { start, len }
                }
                other => other,
            };
            self.cells.push(cell);
        }
        let (start, len) = other.ids[row];
        let id = self.copy(other, start, len);
        self.ids.push(id);
        self.versions.push(other.versions[row]);
    }

    /// One row as a batch of its own.
    pub fn pick(&self, row: usize) -> Rows {
        let mut picked = Rows::new(self.layout.clone());
        picked.push(self, row);
        picked
    }

    fn copy(&mut self, other: &Rows, start: u32, len: u32) -> (u32, u32) {
        let copied = self.text.len() as u32;
        self.text.push_str(&other.text[start as usize..(start + len) as usize]);
        (copied, len)
    }

    /// The memory the batch holds, in bytes.
    pub fn size(&self) -> usize {
        self.text.capacity() + self.cells.capacity() * size_of::<Cell>() + self.ids.len() * 32
    }

    /// Keeps text without the NUL characters that Postgres cannot store.
    fn keep(&mut self, text: &str) -> Cell {
        if self.text.len() + text.len() > MEMORY_LIMIT {
            self.is_full = true;
            return Cell::Null;
        }
        let start = self.text.len() as u32;
        if text.as_bytes().contains(&0) {
            self.text.extend(text.chars().filter(|&c| c != '\0'));
        } else {
            self.text.push_str(text);
        }
        Cell::Text { start, len: self.text.len() as u32 - start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_has_changed_nothing_is_told_by_the_instances_clock() {
        let body = br#"{"result":{"sys_id":"a","sys_updated_on":"1970-01-01 00:01:00"}}"#;
        let rows = || decode_record(&Arc::new(Layout::of_text(&[])), body).expect("a row");
        let is_untouched =
            |served_at, took| rows().served_at(served_at).is_untouched(0, Duration::from_secs(took));
        assert!(is_untouched(Some(90), 10));
        assert!(!is_untouched(Some(90), 30), "it may have been this write");
        assert!(!is_untouched(Some(61), 0), "clocks are not that exact");
        assert!(!is_untouched(None, 10));
        let is_stamped =
            |served_at, took| rows().served_at(served_at).is_stamped(0, Duration::from_secs(took));
        assert!(is_stamped(Some(60), 0) && is_stamped(Some(65), 5) && is_stamped(Some(59), 0));
        assert!(!is_stamped(Some(90), 10) && !is_stamped(Some(30), 10) && !is_stamped(None, 10));
    }

    #[test]
    fn a_version_is_outdated_if_others_have_written_too() {
        let version = |mod_count| Version { updated_on: None, mod_count };
        let was_outdated = |now| version(Some(3)).was_outdated(version(now));
        assert!(was_outdated(Some(5)));
        assert!(!was_outdated(Some(4)) && !was_outdated(Some(3)) && !was_outdated(None));
        assert!(!version(None).was_outdated(version(Some(5))));
    }

    #[test]
    fn a_row_is_the_same_in_another_batch() {
        let layout = Arc::new(Layout::of_text(&["number", "state", "hidden"]));
        let body = br#"{"result":[{"sys_id":"a","number":"INC1","state":"","sys_mod_count":"3"},
            {"sys_id":"b","number":"INC2","state":"7","sys_updated_on":"1970-01-01 00:00:09"}]}"#;
        let rows = decode_list(&layout, body).expect("rows");
        let mut copy = Rows::new(layout);
        copy.push(&rows, 1);
        copy.push(&rows, 0);
        assert_eq!(copy.ids().collect::<Vec<_>>(), ["b", "a"]);
        for (row, from) in [(0, 1), (1, 0)] {
            assert_eq!(copy.version(row), rows.version(from));
            for column in 0..3 {
                assert_eq!(copy.value(row, column), rows.value(from, column));
                assert_eq!(copy.is_shown(row, column), rows.is_shown(from, column));
            }
        }
        assert_eq!((rows.pick(1).len(), rows.pick(1).get(0, "number")), (1, "INC2"));
    }

    #[test]
    fn a_version_is_later_only_if_no_part_of_it_is_earlier() {
        let version = |updated_on, mod_count| Version { updated_on, mod_count };
        let stored = version(Some(100), Some(5));
        let order = |updated_on, mod_count| version(updated_on, mod_count).order(stored);
        assert_eq!(order(Some(100), Some(5)), Order::Same);
        assert_eq!(order(Some(100), Some(6)), Order::Later);
        assert_eq!(order(Some(101), Some(5)), Order::Later);
        assert_eq!(order(Some(101), Some(4)), Order::Unclear, "made anew, or the clock was set back");
        assert_eq!(order(Some(99), Some(6)), Order::Unclear, "the clock was set back");
        assert_eq!(order(Some(99), Some(4)), Order::Unclear, "read before the other was stored");
        assert_eq!(order(Some(100), None), Order::Same);
        assert_eq!(order(None, Some(4)), Order::Later);
        assert_eq!(stored.order(Version::default()), Order::Later);
    }
}
