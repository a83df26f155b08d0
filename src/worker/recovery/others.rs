//! Other transactions from here that have written to the same records as one that was rolled back.
//!
//! A write without an answer counts as carried out if its record shows what it would. So it does if the same was written once
//! more and kept, as by whoever tries again what has failed. Sessions leave their notes here as long as there is anything to
//! be undone ([`crate::push::intent`]); those of sessions that are at it are in their files.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use servicenow::page::Version;
use servicenow::push::intent::{Note, Op, OpenWrite};
use servicenow::push::undo::Others;
use servicenow::value::{SysId, TableName};

use super::{files, notes_of};

/// A record of a server.
pub(super) type Record = (u32, TableName, SysId);

/// The record that a write is about.
pub(super) fn record(write: &OpenWrite) -> Record {
    let intent = &write.intent;
    (intent.server, intent.table.clone(), intent.sys_id.clone())
}

/// A write that was committed.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// Its record.
    pub(super) record: Record,
    /// The version it has led to; none if there is no record any more.
    to: Option<Version>,
}

impl Kept {
    /// What matters of a committed write.
    pub(super) fn of(write: &OpenWrite) -> Self {
        let is_deletion = write.intent.op == Op::Delete;
        Self { record: record(write), to: write.answered.filter(|_| !is_deletion) }
    }
}

/// What is known of committed writes, for those who undo on other threads.
#[derive(Clone, Default)]
pub(super) struct Committed(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// Files that were taken over: what is in them is known.
    files: HashSet<PathBuf>,
    writes: HashMap<Record, Vec<Option<Version>>>,
}

impl Committed {
    /// A file was taken over.
    pub(super) fn add(&self, file: PathBuf, kept: &[Kept]) {
        let mut known = self.lock();
        for Kept { record, to } in kept {
            known.writes.entry(record.clone()).or_default().push(*to);
        }
        known.files.insert(file);
    }

    /// A file goes.
    pub(super) fn remove(&self, file: &PathBuf, kept: &[Kept]) {
        let mut known = self.lock();
        known.files.remove(file);
        for Kept { record, to } in kept {
            if let Some(versions) = known.writes.get_mut(record) {
                versions.iter().position(|version| version == to).map(|at| versions.swap_remove(at));
                if versions.is_empty() {
                    known.writes.remove(record);
                }
            }
        }
    }

    /// What others have to do with a version of a record, or with its absence. Reads files.
    pub(super) fn others(&self, server: u32, table: &TableName, id: &SysId, now: Option<Version>) -> Others {
        let record = (server, table.clone(), id.clone());
        // In this order: a file that is taken over meanwhile is known then.
        let is_under_way = files().unwrap_or_default().into_iter().any(|path| {
            let is_known = self.lock().files.contains(&path);
            !is_known && File::open(path).is_ok_and(|file| tells_of(&file, &record))
        });
        let has_written = self.lock().writes.get(&record).is_some_and(|versions| versions.contains(&now));
        match (has_written, is_under_way) {
            (true, _) => Others::Wrote,
            (false, true) => Others::UnderWay,
            (false, false) => Others::Nothing,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("no panic while it is held")
    }
}

/// Whether a file tells of a write to a record.
fn tells_of(file: &File, (server, table, id): &Record) -> bool {
    notes_of(file).into_iter().flatten().map_while(Result::ok).any(|note| match note {
        Note::Intended(intents) => intents
            .iter()
            .any(|intent| (&intent.server, &intent.table, &intent.sys_id) == (server, table, id)),
        Note::Renamed(keys) => keys.iter().any(|(_, made)| made == id),
        Note::Begun(_) | Note::Answered(_) | Note::Refused(_) => false,
    })
}
