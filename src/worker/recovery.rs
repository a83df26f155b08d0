//! What sessions have left behind: writes that ServiceNow may have accepted, of transactions that were rolled back or whose
//! session died ([`crate::push::intent`]). Their records are looked at again, or the writes are undone, if the table's
//! option `on_rollback` wants that. In the worker.
//!
//! An instance does not notice that a caller has gone: a call without an answer may be carried out after the record was
//! looked at. So what has no answer is settled only when its call cannot be alive any more, and looked at once more then.

mod others;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use servicenow::push::codec::decode;
use servicenow::push::decision::Calls;
use servicenow::push::intent::{Note, OpenWrite, open_writes};
use servicenow::push::undo::{Outcome, Report, undo};
use servicenow::value::{SysId, TableName};

use self::others::{Committed, Kept, Record, record};
use super::tasks::THREADS;
use crate::catalog::{self, Outlook};
use crate::connection::{HttpClient, WORKER, new_client, trust};
use crate::failpoint;
use crate::login::{self, Login};
use crate::option::ServerOptions;
use crate::pg;
use crate::pg::io::{AbortOnDrop, Bell};
use crate::pg::xact::Caught;
use crate::push::intent::{LEFT, UNFINISHED, directory, set_aside};
use crate::push::place::place;

/// The pause before an undoing that failed is tried again.
const PAUSE: Duration = Duration::from_secs(10);
/// The pause before a record is looked at again that another transaction is at.
const GLANCE: Duration = Duration::from_secs(1);
/// Notes of committed transactions are kept so long at least: what they matter for may be taken over a moment later.
const AT_LEAST: Duration = Duration::from_secs(1);

thread_local! {
    /// Files that are the worker's: whoever wrote to their records has gone.
    static TAKEN_OVER: RefCell<HashSet<PathBuf>> = RefCell::default();
}

/// What is left behind, as far as it is not settled.
pub struct Recovery {
    bell: Bell,
    /// When the worker began: it has seen no crash since.
    began: SystemTime,
    /// By file.
    open: HashMap<PathBuf, Left>,
    /// What else is in them.
    committed: Committed,
    /// Files of which it was said that they cannot be read.
    unreadable: HashSet<PathBuf>,
}

/// A file that belongs to nobody any more.
struct Left {
    /// Nobody else takes it over meanwhile.
    _lock: File,
    /// What is to be undone, the last written first, server by server and role by role.
    undoing: Vec<Undoing>,
    /// Writes that nobody undoes although their tables want it, and why.
    untouched: Vec<(OpenWrite, &'static str)>,
    /// Writes that were committed and would be undone otherwise, and when that was found.
    kept: Vec<Kept>,
    found: Instant,
    /// Records to be looked at when that is over.
    records: HashMap<pg_sys::Oid, Vec<String>>,
    /// Calls without an answer may arrive until then, if there are any.
    calls_end: Option<Instant>,
}

struct Undoing {
    writes: Arc<Vec<OpenWrite>>,
    state: State,
    /// See [`Left`].
    calls_end: Option<Instant>,
}

enum State {
    Due(Instant),
    /// Nothing can be done before calls are over.
    Waiting(Instant),
    Running {
        task: AbortOnDrop,
        calls: Calls,
        outcome: Arc<Mutex<Option<servicenow::Result<Vec<Report>>>>>,
    },
    Over,
}

impl Recovery {
    /// Nothing is known yet; the bell rings when an undoing has come to its end.
    pub fn new(bell: Bell) -> Self {
        let (open, committed) = (HashMap::new(), Committed::default());
        Self { bell, began: SystemTime::now(), open, committed, unreadable: HashSet::new() }
    }

    /// Looks for what was left behind, and goes on with it. Gives back the tables with records that are to be looked at.
    pub fn look(&mut self) -> Vec<pg_sys::Oid> {
        let mut concerned = Vec::new();
        for path in files().unwrap_or_default() {
            if self.open.contains_key(&path) {
                continue;
            }
            match take_over(&path, self.began) {
                Ok(Some(left)) => {
                    failpoint::reach("recovery.begin");
                    // An undoing may take long, or never come to its end.
                    if (!left.undoing.is_empty() || left.calls_end.is_some()) && left.note().is_ok() {
                        concerned.extend(left.records.keys().copied());
                    }
                    // Before it is called something else: whoever does not find it finds this.
                    self.committed.add(path.clone(), &left.kept);
                    let name = set_aside(&path, LEFT).unwrap_or_else(|_| path.clone());
                    self.committed.add(name.clone(), &[]);
                    TAKEN_OVER.with_borrow_mut(|taken| taken.insert(name.clone()));
                    self.open.insert(name, left);
                }
                Ok(None) => {}
                Err(e) => {
                    if self.unreadable.insert(path.clone()) {
                        pg::worker::log(&format!("could not read file \"{}\": {e}", path.display()));
                    }
                }
            }
        }
        let (bell, committed) = (self.bell.clone(), self.committed.clone());
        let in_doubt: HashSet<Record> = self.open.values().flat_map(Left::in_doubt).collect();
        self.open.retain(|path, left| {
            if !left.undo(&bell, &committed) || left.is_of_use(&in_doubt) {
                return true;
            }
            failpoint::reach("recovery.undone");
            let noted = left.note();
            failpoint::reach("recovery.noted");
            match noted {
                Ok(()) if fs::remove_file(path).is_ok() => {
                    left.untouched.iter().for_each(|(write, why)| tell(write, why));
                    concerned.extend(left.records.keys());
                    TAKEN_OVER.with_borrow_mut(|taken| taken.remove(path));
                    committed.remove(path, &left.kept);
                    false
                }
                _ => true, // tried again at the next tick
            }
        });
        concerned
    }
}

fn is_mirrored(relation: pg_sys::Oid) -> bool {
    pg::catalog::foreign_table(relation, catalog::WRAPPER).is_some()
}

/// The files of sessions of this database.
fn files() -> io::Result<Vec<PathBuf>> {
    let is_ours = |entry: &fs::DirEntry| entry.file_name() != login::DIRECTORY;
    let entries = fs::read_dir(directory())?.filter(|entry| entry.as_ref().map_or(true, is_ours));
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let is_finished = |path: &PathBuf| path.extension().is_none_or(|extension| extension != UNFINISHED);
    paths.filter(|path| path.as_ref().map_or(true, is_finished)).collect()
}

/// Reads a file that nobody uses any more; `None` if somebody does, or if it is not clear yet what became of its transactions.
///
/// A crash may have come after what was written before the worker began. Then a number of a transaction may be somebody
/// else's by now, unless it was made to last, which that of a write to be undone is.
fn take_over(path: &Path, began: SystemTime) -> io::Result<Option<Left>> {
    let mut file = File::open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(e),
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let notes = match decode(&bytes) {
        Ok(decoded) => decoded.notes,
        Err(e) => {
            pg::worker::log(&format!("could not read file \"{}\": {e}", path.display()));
            let mut aside = path.as_os_str().to_owned();
            aside.push(format!(".bad.{UNFINISHED}"));
            fs::rename(path, aside)?;
            return Ok(None);
        }
    };
    let here = place(&file)?;
    let is_copy = !notes.iter().any(|note| matches!(note, Note::Begun(there) if *there == here));
    let writes = open_writes(notes);
    let is_old = !file.metadata()?.modified().is_ok_and(|at| at > began);
    let lasts = |write: &OpenWrite| write.intent.undo.is_some() || !is_old;
    let number = |write: &OpenWrite| (write.intent.xid, write.intent.timeline);
    // In a copy, what became of transactions is not what became of them in the original.
    let numbers = writes.iter().filter(|write| lasts(write) && !is_copy).map(number);
    let numbers: HashSet<(u64, u32)> = numbers.collect();
    let mut outlooks = HashMap::new();
    for number in numbers {
        match pg::xact::transaction(|| catalog::outlook(number.0, number.1)) {
            Ok(Outlook::Open) => return Ok(None),
            Ok(outlook) => outlooks.insert(number, outlook),
            Err(_) => outlooks.insert(number, Outlook::Unknown),
        };
    }
    let outlook = |write: &OpenWrite| outlooks.get(&number(write)).copied().unwrap_or(Outlook::Unknown);
    let mut records: HashMap<pg_sys::Oid, Vec<String>> = HashMap::new();
    let mut undoing: Vec<Vec<OpenWrite>> = Vec::new();
    let (mut untouched, mut longest, mut kept) = (Vec::new(), None, Vec::new());
    for write in writes {
        if outlook(&write) == Outlook::Committed {
            kept.extend(write.intent.undo.is_some().then(|| Kept::of(&write)));
            continue;
        }
        let intent = &write.intent;
        let relation = pg_sys::Oid::from(intent.foreign_table);
        records.entry(relation).or_default().push(intent.sys_id.as_str().to_owned());
        if write.answered.is_none() {
            longest = longest.max(Some(longest_call(intent.server)));
        }
        if intent.undo.is_none() {
            continue;
        }
        if outlook(&write) != Outlook::RolledBack {
            untouched.push((write, if is_copy { COPIED } else { NOT_KNOWN }));
            continue;
        }
        let login = |write: &OpenWrite| (write.intent.server, write.intent.role);
        match undoing.iter_mut().find(|writes| login(&writes[0]) == login(&write)) {
            Some(writes) => writes.push(write),
            None => undoing.push(vec![write]),
        }
    }
    // All calls were begun before.
    let calls_end = longest.map(|longest| Instant::now() + longest);
    let due = |writes| Undoing { writes: Arc::new(writes), state: State::Due(Instant::now()), calls_end };
    let undoing = undoing.into_iter().rev().map(due).collect();
    let found = Instant::now();
    Ok(Some(Left { _lock: file, undoing, untouched, kept, found, records, calls_end }))
}

/// Why a write is not undone of which the original of this server may know more.
const COPIED: &str =
    "the note of the write was copied from another place, where the transaction may have been committed";
/// Why a write is not undone whose transaction nothing is known of.
const NOT_KNOWN: &str =
    "the note of the write is of another timeline or too old, and the transaction may have been committed";

/// How long a call to a server may take.
fn longest_call(server: u32) -> Duration {
    let timeout = || {
        let options = pg::catalog::server(server.into()).options;
        ServerOptions::parse(&options).map(|options| options.request_timeout).ok()
    };
    // Nobody looks at anything of a server that is gone.
    pg::xact::transaction(timeout).ok().flatten().unwrap_or_default()
}

impl Left {
    /// Has the records looked at.
    fn note(&self) -> Result<(), Caught> {
        pg::xact::transaction(|| {
            pg::xact::commit_for_good(); // the file goes
            for (relation, ids) in self.records.iter().filter(|(relation, _)| is_mirrored(**relation)) {
                catalog::leave_to_recheck(*relation, ids);
            }
        })
    }

    /// The records of which it is not known whether they were written to, and that may show it.
    fn in_doubt(&self) -> impl Iterator<Item = Record> + '_ {
        let undoing = self.undoing.iter().filter(|undoing| !matches!(undoing.state, State::Over));
        let writes = undoing.flat_map(|undoing| undoing.writes.iter());
        writes.filter(|write| write.answered.is_none()).map(record)
    }

    /// Whether what was committed here may be mistaken for something else.
    fn is_of_use(&self, in_doubt: &HashSet<Record>) -> bool {
        let is_new = self.found.elapsed() < AT_LEAST;
        !self.kept.is_empty() && (is_new || self.kept.iter().any(|kept| in_doubt.contains(&kept.record)))
    }

    /// Goes on undoing; gives back whether that is over, and no call can be alive.
    fn undo(&mut self, bell: &Bell, committed: &Committed) -> bool {
        let mut is_over = self.calls_end.is_none_or(|end| end <= Instant::now());
        for undoing in &mut self.undoing {
            undoing.go_on(bell, committed);
            match undoing.state {
                State::Over => {}
                State::Waiting(_) => is_over = false,
                State::Due(_) | State::Running { .. } => return false,
            }
        }
        is_over
    }
}

impl Undoing {
    fn go_on(&mut self, bell: &Bell, committed: &Committed) {
        let (outcome, calls, has_ended) = match &self.state {
            State::Due(at) | State::Waiting(at) if *at <= Instant::now() => {
                return self.begin(bell, committed);
            }
            // In this order: what it leaves is there before it ends.
            State::Running { task, calls, outcome } => {
                let has_ended = task.is_finished();
                (outcome.lock().ok().and_then(|mut outcome| outcome.take()), *calls, has_ended)
            }
            State::Due(_) | State::Waiting(_) | State::Over => return,
        };
        match outcome {
            None if has_ended => self.postpone("the task failed unexpectedly"),
            None => {}
            Some(Ok(reports)) => {
                for report in &reports {
                    if let Outcome::Left { why } = &report.outcome {
                        self.tell(&report.table, &report.sys_id, &why.to_string());
                    }
                }
                let is_open = |write: &&OpenWrite| {
                    let is_about = |report: &&Report| {
                        (&report.table, &report.sys_id) == (&write.intent.table, &write.intent.sys_id)
                    };
                    reports.iter().find(is_about).is_some_and(|report| report.outcome == Outcome::Open)
                };
                let open: Vec<OpenWrite> = self.writes.iter().filter(is_open).cloned().collect();
                self.state = match self.calls_end {
                    _ if open.is_empty() => State::Over,
                    Some(end) if calls == Calls::MayArrive => State::Waiting(end),
                    _ => State::Due(Instant::now() + GLANCE),
                };
                self.writes = Arc::new(open);
            }
            Some(Err(e)) => self.postpone(&e.to_string()),
        }
    }

    fn begin(&mut self, bell: &Bell, committed: &Committed) {
        let (server, role) = (self.writes[0].intent.server, self.writes[0].intent.role);
        let client = match pg::xact::transaction(|| client(server.into(), role.into())) {
            Ok(Ok(client)) => client,
            Ok(Err(e)) => return self.postpone(&e),
            // Whoever has dropped the login does not want anything undone.
            Err(caught) if caught.sqlstate == Sql::ERRCODE_UNDEFINED_OBJECT => {
                let record = |write: &OpenWrite| (write.intent.table.clone(), write.intent.sys_id.clone());
                let records: HashSet<(TableName, SysId)> = self.writes.iter().map(record).collect();
                records.iter().for_each(|(table, id)| self.tell(table, id, &caught.message));
                self.state = State::Over;
                return;
            }
            Err(caught) => return self.postpone(&caught.message),
        };
        let (writes, outcome, bell) = (self.writes.clone(), Arc::new(Mutex::new(None)), bell.clone());
        let place = outcome.clone();
        let calls = match self.calls_end {
            Some(end) if Instant::now() < end => Calls::MayArrive,
            _ => Calls::AreOver,
        };
        let committed = committed.clone();
        let others = move |table: &TableName, id: &SysId, now| committed.others(server, table, id, now);
        let trap = failpoint::trap("recovery.undoing");
        let run = async move {
            trap();
            let reports = undo(&client, &writes, calls, &others).await;
            if let Ok(mut place) = place.lock() {
                *place = Some(reports);
            }
            bell.ring();
        };
        match pg::io::spawn(run, THREADS) {
            Ok(task) => self.state = State::Running { task, calls, outcome },
            Err(e) => self.postpone(&e.to_string()),
        }
    }

    /// Tries again later. Whoever has dropped the table does not want anything undone.
    fn postpone(&mut self, why: &str) {
        let intent = &self.writes[0].intent;
        let is_there = pg::xact::transaction(|| is_mirrored(intent.foreign_table.into()));
        let table = &intent.table;
        if matches!(is_there, Ok(false)) {
            pg::worker::log(&format!(
                "writes to table \"{table}\" are not undone: the foreign table is gone"
            ));
            self.state = State::Over;
        } else {
            pg::worker::log(&format!("could not undo writes to table \"{table}\", trying again: {why}"));
            self.state = State::Due(Instant::now() + PAUSE);
        }
    }

    /// Says that a record could not be restored.
    fn tell(&self, table: &TableName, id: &SysId, why: &str) {
        let is_about = |write: &&OpenWrite| (&write.intent.table, &write.intent.sys_id) == (table, id);
        if let Some(write) = self.writes.iter().find(is_about) {
            tell(write, why);
        }
    }
}

/// Says that the record of a write could not be restored.
fn tell(write: &OpenWrite, why: &str) {
    let intent = &write.intent;
    let (id, table) = (intent.sys_id.as_str(), &intent.table);
    let text = format!("record \"{id}\" of table \"{table}\" was not restored after a rollback: {why}");
    pg::worker::log(&text);
    let _only_news = pg::xact::transaction(|| {
        if let Some(mirror) = catalog::mirror(intent.foreign_table.into()) {
            catalog::note_not_undone(mirror.foreign_table, &text);
            let news = serde_json::json!({"sys_id": id, "reason": why});
            catalog::notify("undo_failed", mirror.server, mirror.foreign_table, news);
        }
    });
}

/// A client with the login of a role.
fn client(server: pg_sys::Oid, role: pg_sys::Oid) -> Result<HttpClient, String> {
    let description = pg::catalog::server(server);
    let options = ServerOptions::parse(&description.options).map_err(|e| e.to_string())?;
    let mapping = pg::catalog::user_mapping(role, server);
    let login = Login::of(server, &options, &mapping).map_err(|e| e.to_string())?;
    let trust = trust(&description, &options, role, &mapping);
    new_client(&options, login, trust, WORKER).map_err(|e| e.to_string())
}

/// How many writes to which foreign tables are under way or not settled, as sessions and worker have noted them.
pub fn pending_writes() -> HashMap<u32, i64> {
    let mut pending = HashMap::new();
    for path in files().unwrap_or_default() {
        let notes = fs::read(path).ok().and_then(|bytes| decode(&bytes).ok()).unwrap_or_default().notes;
        for write in open_writes(notes) {
            *pending.entry(write.intent.foreign_table).or_default() += 1;
        }
    }
    pending
}

/// The records to which sessions may be writing, with their foreign tables. For the worker.
pub fn records_under_way() -> HashSet<(u32, String)> {
    let mut records = HashSet::new();
    let is_taken = |path: &PathBuf| TAKEN_OVER.with_borrow(|taken| taken.contains(path));
    for path in files().unwrap_or_default().into_iter().filter(|path| !is_taken(path)) {
        let notes = fs::read(path).ok().and_then(|bytes| decode(&bytes).ok()).unwrap_or_default().notes;
        let record = |write: OpenWrite| (write.intent.foreign_table, write.intent.sys_id.as_str().to_owned());
        records.extend(open_writes(notes).into_iter().map(record));
    }
    records
}

/// Removes what is left of databases that are no more.
pub fn tidy() {
    let Ok(entries) = fs::read_dir(directory().parent().unwrap_or(Path::new(""))) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let number =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
        let Some(number) = number else { continue };
        if matches!(pg::xact::transaction(|| pg::catalog::database_exists(number.into())), Ok(false)) {
            let _tried_again_at_the_next_start = fs::remove_dir_all(&path);
        }
    }
}
