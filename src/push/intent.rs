//! What a session durably notes before it sends a write: then whatever happens to the session, its transaction or the server,
//! the worker knows which records to look at.
//!
//! Each session that writes has a file of its own below the data directory, locked (`flock`) as long as it uses it: a
//! file that can be locked is nobody's any more. Notes are appended and synced before the write is sent, and removed when the
//! transaction has committed. Whatever is left is the worker's ([`crate::worker::recovery`]); each note bears the number
//! of its (sub)transaction, so that there is no doubt what became of it.
//!
//! A copy of the data directory must not undo what is committed in the original. So the files are called as temporary ones
//! are, which base backups leave out (`sendDir` in basebackup.c; the tools beside pg_basebackup do the same), and each says
//! where it is ([`super::place`]), by which any other copy is told.

use std::cell::{Cell, RefCell};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use servicenow::page::Version;
use servicenow::push::codec::{HEADER, encode};
use servicenow::push::intent::{Images, Intent, Note, Op};
use servicenow::value::SysId;

use super::place::place;
use crate::catalog::Mirror;
use crate::error::{error, raise};
use crate::failpoint;
use crate::pg;

/// The directory of all databases, relative to the data directory, where every process of the server works.
const DIRECTORY: &str = "servicenow_fdw";
/// What the names of files begin with: `PG_TEMP_FILE_PREFIX` of storage/fd.h. Postgres removes temporary files at its start,
/// but not from here (`RemovePgTempFiles`).
const PREFIX: &str = "pgsql_tmp";
/// Files that are being made and are not locked yet.
pub const UNFINISHED: &str = "new";
/// Files that the worker has taken over.
pub const LEFT: &str = "left";
/// Files of transactions that were committed, kept because of others that were not.
pub const KEPT: &str = "kept";

/// The directory of this database.
pub fn directory() -> PathBuf {
    Path::new(DIRECTORY).join(pg::worker::database().to_u32().to_string())
}

/// Makes the directory of this database if need be, so that it outlives a crash.
pub fn make_directory() -> io::Result<PathBuf> {
    let directory = directory();
    if !directory.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        sync_directory(Path::new("."))?;
        sync_directory(Path::new(DIRECTORY))?;
    }
    Ok(directory)
}

/// A write that is about to be sent.
pub struct Entry<'e> {
    /// What is to be done.
    pub op: Op,
    /// To which record.
    pub id: &'e SysId,
    /// What the record was before and is to be, if that is to be undone after a rollback.
    pub undo: Option<Images>,
}

/// This session's file.
struct Journal {
    path: PathBuf,
    file: File,
    /// What the file begins with.
    head: Vec<u8>,
    length: u64,
}

thread_local! {
    static JOURNAL: RefCell<Option<Journal>> = const { RefCell::new(None) };
    /// The subtransactions under way that have noted something, or of which one within them has; the innermost last.
    static NOTED_BY: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    /// One of them was rolled back.
    static ROLLED_BACK: Cell<bool> = const { Cell::new(false) };
    /// They have noted something that is to be undone if it is not kept.
    static UNDOABLE: Cell<bool> = const { Cell::new(false) };
    /// When they did, something was left behind by others.
    static AMONG_OTHERS: Cell<bool> = const { Cell::new(false) };
}

/// Notes writes to a foreign table's records that are about to be sent as a role. If that is not possible it is an ERROR, and
/// nothing may be sent.
///
/// What has to be undone after a rollback, and deletions, which polls do not see, are on disk when this is over. Other writes
/// survive the end of any process; the end of the machine they survive when the file given back is synced, which may go on
/// while the instance is at work: whatever it accepts in these few milliseconds polls find too.
pub fn note<'e>(
    mirror: &Mirror,
    role: pg_sys::Oid,
    entries: impl Iterator<Item = Entry<'e>>,
) -> Option<File> {
    super::watch();
    // What is noted is removed then, and a transaction that is lost afterwards would leave no trace.
    pg::xact::commit_for_good();
    let timeline = pg::xact::timeline();
    // What is to be undone must not be mistaken for what somebody else has committed.
    let xid = if mirror.compensate { pg::xact::lasting_xid() } else { pg::xact::current_xid() };
    let intents = entries.map(|entry| Intent {
        server: mirror.server.to_u32(),
        foreign_table: mirror.foreign_table.to_u32(),
        role: role.to_u32(),
        table: mirror.table.clone(),
        sys_id: entry.id.clone(),
        op: entry.op,
        xid,
        timeline,
        undo: entry.undo,
    });
    let intents: Vec<Intent> = intents.collect();
    if mirror.compensate {
        UNDOABLE.set(true);
        if !AMONG_OTHERS.get() {
            AMONG_OTHERS.set(is_anything_left());
        }
    }
    let syncs = mirror.compensate || intents.iter().any(|intent| intent.op == Op::Delete);
    let note = Note::Intended(intents);
    let id = pg::xact::subtransaction_id();
    NOTED_BY.with_borrow_mut(|noted| {
        if noted.last() != Some(&id) {
            noted.push(id);
        }
    });
    let written = append(&note, syncs).and_then(|()| match syncs {
        true => Ok(None),
        false => file_to_sync(),
    });
    written.unwrap_or_else(|(path, e)| {
        let code = match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Sql::ERRCODE_DISK_FULL,
            _ => Sql::ERRCODE_IO_ERROR,
        };
        raise(
            error(code, format!("could not write file \"{}\": {e}", path.display()))
                .set_detail("Nothing was sent to ServiceNow: writes are noted on disk before."),
        )
    })
}

/// This session's file, if files are synced at all.
fn file_to_sync() -> Result<Option<File>, (PathBuf, io::Error)> {
    JOURNAL.with_borrow(|journal| match journal {
        Some(open) if pg::io::syncs_files() => {
            open.file.try_clone().map(Some).map_err(|e| (open.path.clone(), e))
        }
        _ => Ok(None),
    })
}

/// Notes what came of writes: which records were made under other keys than were noted, and under which; the versions that
/// records have after them, none for those that were deleted; and those that the instance has refused. Without this a write may be one that has not been carried out yet.
pub fn settled(renamed: Vec<(SysId, SysId)>, answered: Vec<(SysId, Version)>, refused: Vec<SysId>) {
    let renamed = (!renamed.is_empty()).then_some(Note::Renamed(renamed));
    let answered = (!answered.is_empty()).then_some(Note::Answered(answered));
    let refused = (!refused.is_empty()).then_some(Note::Refused(refused));
    for note in renamed.into_iter().chain(answered).chain(refused) {
        let _a_recovery_is_more_careful = append(&note, false);
    }
}

fn append(note: &Note, sync: bool) -> Result<(), (PathBuf, io::Error)> {
    let mut frame = Vec::new();
    JOURNAL.with_borrow_mut(|journal| {
        let open = match journal.take() {
            Some(open) => open,
            None => Journal::create().map_err(|e| (directory(), e))?,
        };
        let open = journal.insert(open);
        encode(note, &mut frame);
        let Err(e) = open.append(&frame, sync) else { return Ok(()) };
        let path = open.path.clone();
        if open.file.set_len(open.length).is_err() {
            *journal = None; // what stands at its end is not read, but nothing can be appended any more
        }
        Err((path, e))
    })
}

impl Journal {
    fn create() -> io::Result<Self> {
        let directory = make_directory()?;
        // Nobody else makes files with this process's number; one before may have left some.
        let pid = std::process::id();
        let mut names = (0..).map(|n| directory.join(format!("{PREFIX}.{pid}.{n}")));
        let path = names.find(|path| !path.exists()).unwrap_or_else(|| directory.join(PREFIX));
        let unfinished = path.with_extension(UNFINISHED);
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&unfinished)?;
        file.set_len(0)?;
        file.try_lock()?;
        fs::rename(&unfinished, &path)?;
        sync_directory(&directory)?;
        let mut head = HEADER.to_vec();
        encode(&Note::Begun(place(&file)?), &mut head);
        Ok(Self { path, file, head, length: 0 })
    }

    fn append(&mut self, frame: &[u8], sync: bool) -> io::Result<()> {
        let head: &[u8] = if self.length == 0 { &self.head } else { &[] };
        let bytes = [head, frame].concat();
        self.file.write_all(&bytes)?;
        if sync && pg::io::syncs_files() {
            failpoint::reach("push.syncing");
            self.file.sync_data()?;
        }
        self.length += bytes.len() as u64;
        Ok(())
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    if pg::io::syncs_files() { File::open(path)?.sync_all() } else { Ok(()) }
}

/// The transaction is over. Notes that it does not need any more are removed; others are left to the worker, with the file.
pub fn ended(committed: bool) {
    let has_noted = NOTED_BY.with_borrow_mut(|noted| {
        let any = !noted.is_empty();
        noted.clear();
        any
    });
    let rolled_back = ROLLED_BACK.replace(false);
    let was_among_others = AMONG_OTHERS.replace(false);
    let is_undoable = UNDOABLE.replace(false);
    if !has_noted {
        return;
    }
    failpoint::reach("push.committed");
    if committed && !rolled_back && is_undoable && (was_among_others || is_anything_left()) {
        keep();
        return;
    }
    JOURNAL.with_borrow_mut(|journal| {
        let is_empty = committed
            && !rolled_back
            && journal.as_mut().is_some_and(|journal| {
                journal.length = 0;
                journal.file.set_len(0).is_ok()
            });
        if !is_empty {
            *journal = None;
        }
    });
}

/// Leaves what a committed transaction has noted to the worker: a write that was rolled back and has no answer must not be
/// taken for carried out because this transaction has written the same.
fn keep() {
    JOURNAL.with_borrow_mut(|journal| {
        if let Some(journal) = journal.take() {
            let _is_left_under_its_name = set_aside(&journal.path, KEPT);
        }
    });
}

/// Has a file be called as what it is by now; gives back the name.
pub fn set_aside(path: &Path, what: &str) -> io::Result<PathBuf> {
    if path.extension().is_some_and(|extension| extension == LEFT || extension == KEPT) {
        return Ok(path.to_owned());
    }
    // A process may have several, one after the other under the same name.
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}.{what}", fs::metadata(path)?.ino()));
    let aside = PathBuf::from(aside);
    fs::rename(path, &aside)?;
    Ok(aside)
}

/// Whether others have left notes behind that are not settled.
fn is_anything_left() -> bool {
    let own = JOURNAL.with_borrow(|journal| journal.as_ref().map(|journal| journal.path.clone()));
    let Ok(entries) = fs::read_dir(directory()) else { return false };
    let paths = entries.flatten().filter(|entry| {
        // One that was renamed or removed meanwhile was somebody's.
        entry.metadata().map_or(true, |file| file.is_file() && file.len() > 0)
    });
    paths.map(|entry| entry.path()).any(|path| match path.extension().and_then(|e| e.to_str()) {
        Some(UNFINISHED | KEPT) => false,
        Some(LEFT) => true,
        _ if Some(&path) == own.as_ref() => false,
        // Nobody uses it if it is not locked.
        _ => File::open(&path).is_ok_and(|file| file.try_lock_shared().is_ok()),
    })
}

/// The transaction is about to be committed.
pub fn before_commit() {
    if NOTED_BY.with_borrow(|noted| !noted.is_empty()) {
        failpoint::reach("push.committing");
    }
}

/// A subtransaction is over.
pub fn subtransaction_ended(id: u32, parent: u32, committed: bool) {
    NOTED_BY.with_borrow_mut(|noted| {
        // Those within it are over, so that nothing stands behind it.
        if noted.pop_if(|by| *by == id).is_none() {
            return;
        }
        if noted.last() != Some(&parent) {
            noted.push(parent);
        }
        if !committed {
            ROLLED_BACK.set(true);
        }
    });
}
