//! What a backend notes of the writes that it sends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::page::Version;
use crate::value::{SysId, TableName};

/// Stored values of fields, as the instance has them.
pub type Fields = BTreeMap<String, String>;

/// What a write does to its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Makes it.
    Insert {
        /// Whether its `sys_id` was made at random for this very write, so that a record that has it can only come
        /// from here ([`Identity::Fresh`](crate::client::table_api::Identity)).
        is_fresh: bool,
        /// Whether the instance was known to make records under the keys that they are sent with, so that one that is not
        /// there was not made ([`Keys`](crate::client::keys::Keys)).
        #[serde(default)]
        is_findable: bool,
    },
    /// Changes it.
    Update,
    /// Deletes it.
    Delete,
}

/// A write that is about to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The oid of the foreign server.
    pub server: u32,
    /// The oid of the foreign table.
    pub foreign_table: u32,
    /// The oid of the role whose user mapping signs the calls.
    pub role: u32,
    /// The table in ServiceNow.
    pub table: TableName,
    /// The record.
    pub sys_id: SysId,
    /// What happens to it.
    pub op: Op,
    /// The full id of the (sub)transaction that writes.
    pub xid: u64,
    /// The server's timeline; on another one `xid` says nothing.
    pub timeline: u32,
    /// What undoing needs to know; only of tables that want to be compensated.
    pub undo: Option<Images>,
}

/// A record before a write, and what the write makes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    /// The version before the write, which the before image is of; none for an insert.
    pub version: Version,
    /// The before image: for an update the fields that are sent; for a deletion every field that can be written;
    /// nothing for an insert. Fields whose former value cannot be written back, journals above all, are left out.
    pub before: Fields,
    /// The values that are sent. Those of an update that have no before image cannot be taken back.
    pub after: Fields,
}

/// Where a file of notes is. A copy is elsewhere: what it tells of may have been committed where it was copied from, and
/// must not be undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The number of its device.
    pub device: u64,
    /// Its number on the device.
    pub inode: u64,
    /// The machine, by which a snapshot of a whole disk is told from it.
    pub host: String,
}

/// One entry of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// The file was begun here; the first entry.
    Begun(Place),
    /// These writes are about to be sent.
    Intended(Vec<Intent>),
    /// What became of these is known: they were carried out, with the version after each, none for a deletion. Where
    /// nothing is to be undone no version matters, and the instance may as well have refused them.
    Answered(Vec<(SysId, Version)>),
    /// The instance has made these records under keys of its own: the key that was noted, and the one there is. Their answers
    /// come after this.
    Renamed(Vec<(SysId, SysId)>),
    /// The instance has refused these; nothing is left of them to be undone or looked at. This is not for writes
    /// without an answer.
    Refused(Vec<SysId>),
}

/// A write of a transaction that has not ended well, or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenWrite {
    /// What was to be done.
    pub intent: Intent,
    /// The version it has led to, none for a deletion; `None` if nothing is known of what became of it.
    pub answered: Option<Version>,
}

/// The writes to each record without an answer so far, and what is to be known of each. An answer belongs to the last one.
#[derive(Debug)]
pub struct Unanswered<W>(BTreeMap<SysId, Vec<W>>);

impl<W> Default for Unanswered<W> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<W> Unanswered<W> {
    /// A write was noted.
    pub fn intend(&mut self, id: SysId, write: W) {
        self.0.entry(id).or_default().push(write);
    }

    /// What became of a record is known; gives back the write that it came of, if it was noted.
    pub fn settle(&mut self, id: &SysId) -> Option<W> {
        let writes = self.0.get_mut(id)?;
        let last = writes.pop();
        if writes.is_empty() {
            self.0.remove(id);
        }
        last
    }

    /// A record has another key than was noted; gives back its write.
    pub fn rename(&mut self, noted: &SysId, made: SysId) -> Option<&W> {
        let write = self.settle(noted)?;
        let writes = self.0.entry(made).or_default();
        writes.push(write);
        writes.last()
    }

    /// Those that are left.
    pub fn writes(&self) -> impl Iterator<Item = &W> {
        self.0.values().flatten()
    }
}

/// The writes that notes leave open, in the order of writing, for which there is room in memory.
pub fn open_writes(notes: impl IntoIterator<Item = Note>) -> Vec<OpenWrite> {
    let mut open: Vec<Option<OpenWrite>> = Vec::new();
    let mut unanswered = Unanswered::default();
    for note in notes {
        match note {
            Note::Begun(_) => {}
            Note::Intended(intents) => {
                for intent in intents {
                    unanswered.intend(intent.sys_id.clone(), open.len());
                    open.push(Some(OpenWrite { intent, answered: None }));
                }
            }
            Note::Answered(answers) => {
                for (id, version) in answers {
                    if let Some(write) = unanswered.settle(&id).and_then(|at| open[at].as_mut()) {
                        write.answered = Some(version);
                    }
                }
            }
            Note::Renamed(keys) => {
                for (noted, made) in keys {
                    let at = unanswered.rename(&noted, made.clone()).copied();
                    if let Some(write) = at.and_then(|at| open[at].as_mut()) {
                        write.intent.sys_id = made;
                    }
                }
            }
            Note::Refused(ids) => {
                for at in ids.iter().filter_map(|id| unanswered.settle(id)) {
                    open[at] = None;
                }
            }
        }
    }
    open.into_iter().flatten().collect()
}

/// How many writes notes leave open, by foreign table. Takes memory for those without an answer alone.
#[derive(Debug, Default)]
pub struct Count {
    open: BTreeMap<u32, u64>,
    unanswered: Unanswered<u32>,
}

impl Count {
    /// The next note.
    pub fn add(&mut self, note: Note) {
        match note {
            Note::Begun(_) => {}
            Note::Intended(intents) => {
                for intent in intents {
                    *self.open.entry(intent.foreign_table).or_default() += 1;
                    self.unanswered.intend(intent.sys_id, intent.foreign_table);
                }
            }
            Note::Answered(answers) => {
                for (id, _) in answers {
                    self.unanswered.settle(&id);
                }
            }
            Note::Renamed(keys) => {
                for (noted, made) in keys {
                    self.unanswered.rename(&noted, made);
                }
            }
            Note::Refused(ids) => {
                for table in ids.iter().filter_map(|id| self.unanswered.settle(id)) {
                    self.open.entry(table).and_modify(|open| *open -= 1);
                }
            }
        }
    }

    /// The numbers.
    pub fn open(self) -> BTreeMap<u32, u64> {
        self.open
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields() -> impl Strategy<Value = Fields> {
        prop::collection::btree_map("[a-z_]{1,8}", "\\PC{0,12}", 0..4)
    }

    fn version() -> impl Strategy<Value = Version> {
        let part = || prop::option::of(any::<i64>());
        (part(), part()).prop_map(|(updated_on, mod_count)| Version { updated_on, mod_count })
    }

    fn id() -> impl Strategy<Value = SysId> {
        "[ab]|\\PC{1,6}".prop_map(SysId::new)
    }

    fn intent() -> impl Strategy<Value = Intent> {
        let op = prop_oneof![
            any::<(bool, bool)>().prop_map(|(is_fresh, is_findable)| Op::Insert { is_fresh, is_findable }),
            Just(Op::Update),
            Just(Op::Delete)
        ];
        let images = (version(), fields(), fields());
        let images = images.prop_map(|(version, before, after)| Images { version, before, after });
        (any::<[u32; 4]>(), any::<u64>(), "[a-z_]{1,10}", id(), op, prop::option::of(images)).prop_map(
            |([server, foreign_table, role, timeline], xid, table, sys_id, op, undo)| {
                let table = TableName::new(table).unwrap();
                Intent { server, foreign_table, role, table, sys_id, op, xid, timeline, undo }
            },
        )
    }

    /// Any note.
    pub fn note() -> impl Strategy<Value = Note> {
        let place = (any::<[u64; 2]>(), "\\PC{0,12}");
        let place = place.prop_map(|([device, inode], host)| Place { device, inode, host });
        prop_oneof![
            place.prop_map(Note::Begun),
            prop::collection::vec(intent(), 0..4).prop_map(Note::Intended),
            prop::collection::vec((id(), version()), 0..4).prop_map(Note::Answered),
            prop::collection::vec((id(), id()), 0..4).prop_map(Note::Renamed),
            prop::collection::vec(id(), 0..4).prop_map(Note::Refused),
        ]
    }

    fn write(id: &str, xid: u64) -> Intent {
        Intent {
            server: 1,
            foreign_table: 2,
            role: 3,
            table: TableName::new("incident").unwrap(),
            sys_id: SysId::new(id),
            op: Op::Update,
            xid,
            timeline: 1,
            undo: None,
        }
    }

    #[test]
    fn an_answer_belongs_to_the_last_write_without_one() {
        let at = |mod_count| Version { updated_on: Some(9), mod_count: Some(mod_count) };
        let (a, b) = (SysId::new("a"), SysId::new("b"));
        let open = open_writes([
            Note::Intended(vec![write("a", 1), write("b", 1)]),
            Note::Answered(vec![(a.clone(), at(1))]),
            Note::Intended(vec![write("b", 2), write("a", 2)]),
            Note::Answered(vec![(b, at(5)), (SysId::new("never heard of"), at(0))]),
        ]);
        let seen: Vec<_> =
            open.iter().map(|w| (w.intent.sys_id.as_str(), w.intent.xid, w.answered)).collect();
        assert_eq!(seen, [("a", 1, Some(at(1))), ("b", 1, None), ("b", 2, Some(at(5))), ("a", 2, None)]);
    }

    #[test]
    fn a_record_made_under_another_key_is_open_under_that_one() {
        let at = |mod_count| Version { updated_on: Some(9), mod_count: Some(mod_count) };
        let (sent, made) = (SysId::new("sent"), SysId::new("made"));
        let open = open_writes([
            Note::Intended(vec![write("sent", 1), write("b", 1)]),
            Note::Renamed(vec![(sent.clone(), made.clone()), (SysId::new("never heard of"), sent)]),
            Note::Answered(vec![(made.clone(), at(0))]),
            Note::Intended(vec![write("made", 1)]),
            Note::Answered(vec![(made, at(1))]),
        ]);
        let seen: Vec<_> = open.iter().map(|w| (w.intent.sys_id.as_str(), w.answered)).collect();
        assert_eq!(seen, [("made", Some(at(0))), ("b", None), ("made", Some(at(1)))]);
    }

    #[test]
    fn a_refused_write_is_not_open() {
        let id = SysId::new("a");
        let open = open_writes([
            Note::Intended(vec![write("a", 1)]),
            Note::Intended(vec![write("a", 2)]),
            Note::Refused(vec![id.clone()]),
            Note::Refused(vec![SysId::new("b")]),
        ]);
        assert_eq!(open.len(), 1);
        assert_eq!((open[0].intent.xid, open[0].answered), (1, None));
    }

    proptest! {
        #[test]
        fn as_many_are_counted_as_are_open(notes in prop::collection::vec(note(), 0..8)) {
            let mut count = Count::default();
            notes.iter().cloned().for_each(|note| count.add(note));
            let mut expected = BTreeMap::new();
            for write in open_writes(notes) {
                *expected.entry(write.intent.foreign_table).or_insert(0) += 1;
            }
            let counted: BTreeMap<u32, u64> = count.open().into_iter().filter(|(_, open)| *open > 0).collect();
            prop_assert_eq!(counted, expected);
        }

        #[test]
        fn every_write_stays_open_in_order_but_those_refused(notes in prop::collection::vec(note(), 0..8)) {
            let all: Vec<Intent> = notes.iter().flat_map(|note| match note {
                Note::Intended(intents) => intents.clone(),
                _ => Vec::new(),
            }).collect();
            let refused = notes.iter().map(|n| if let Note::Refused(ids) = n { ids.len() } else { 0 }).sum::<usize>();
            let open = open_writes(notes);
            prop_assert!(open.len() + refused >= all.len());
            let mut rest = all.iter();
            let is_of = |intent: &Intent, open: &Intent| {
                *intent == Intent { sys_id: intent.sys_id.clone(), ..open.clone() }
            };
            prop_assert!(open.iter().all(|w| rest.any(|intent| is_of(intent, &w.intent))));
        }
    }
}
