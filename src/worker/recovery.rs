//! What sessions have left behind: writes that ServiceNow may have accepted, of transactions that were rolled back or whose
//! session died ([`crate::push::intent`]). Their records are looked at again, or the writes are undone, if the table's
//! option `on_rollback` wants that. In the worker.
//!
//! An instance does not notice that a caller has gone: a call without an answer may be carried out after the record was
//! looked at. So what has no answer is settled only when its call cannot be alive any more, and looked at once more then.

mod others;
mod outlook;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, ErrorKind, Seek};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use servicenow::push::codec::{Failure, Reader};
use servicenow::push::decision::Calls;
use servicenow::push::intent::{Count, Intent, Note, OpenWrite, Unanswered, open_writes};
use servicenow::push::undo::{Outcome, Report, undo};
use servicenow::value::{SysId, TableName};

use self::others::{Committed, Kept, Record, record};
use self::outlook::Outlooks;
use super::tasks::{THREADS, Tasks};
use crate::catalog::{self, Outlook};
use crate::connection::{Errand, WORKER, new_client, trust};
use crate::failpoint;
use crate::login::{self, Login};
use crate::option::ServerOptions;
use crate::pg;
use crate::pg::io::AbortOnDrop;
use crate::push::intent::{LEFT, UNFINISHED, directory, set_aside};

/// The pause before an undoing that failed is tried again.
const PAUSE: Duration = Duration::from_secs(10);
/// The pause before a record is looked at again that another transaction is at.
const GLANCE: Duration = Duration::from_secs(1);
/// Records that are to be looked at are written down so many at a time.
const AT_A_TIME: usize = 5_000;
/// Notes of committed transactions are kept so long at least: what they matter for may be taken over a moment later.
const AT_LEAST: Duration = Duration::from_secs(1);

thread_local! {
    /// Files that are the worker's: whoever wrote to their records has gone.
    static TAKEN_OVER: RefCell<HashSet<PathBuf>> = RefCell::default();
}

/// What is left behind, as far as it is not settled.
pub struct Recovery {
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
    /// It is locked: nobody else takes it over meanwhile.
    file: File,
    /// What became of its transactions.
    outlooks: Outlooks,
    /// What is to be undone, the last written first, server by server and role by role.
    undoing: Vec<Undoing>,
    /// Writes that nobody undoes although their tables want it, and why.
    untouched: Vec<(OpenWrite, &'static str)>,
    /// Writes that were committed and would be undone otherwise, and when that was found.
    kept: Vec<Kept>,
    found: Instant,
    /// The tables with records that are to be looked at.
    concerned: HashSet<pg_sys::Oid>,
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
    /// Nothing is known yet.
    pub fn new() -> Self {
        let (open, committed) = (HashMap::new(), Committed::default());
        Self { began: SystemTime::now(), open, committed, unreadable: HashSet::new() }
    }

    /// Looks for what was left behind, and goes on with it. Gives back the tables with records that are to be looked at.
    pub fn look(&mut self, tasks: &mut Tasks) -> Vec<pg_sys::Oid> {
        let mut concerned = Vec::new();
        for path in files().unwrap_or_default() {
            if self.open.contains_key(&path) {
                continue;
            }
            match take_over(&path, self.began) {
                Ok(Some((path, mut left))) => {
                    failpoint::reach("recovery.begin");
                    // An undoing may take long, or never come to its end.
                    if (!left.undoing.is_empty() || left.calls_end.is_some()) && left.note().is_ok() {
                        concerned.extend(&left.concerned);
                    }
                    self.committed.add(path.clone(), &left.kept);
                    TAKEN_OVER.with_borrow_mut(|taken| taken.insert(path.clone()));
                    self.open.insert(path, left);
                }
                Ok(None) => {}
                Err(e) => {
                    if self.unreadable.insert(path.clone()) {
                        pg::worker::log(&format!("could not read file \"{}\": {e}", path.display()));
                    }
                }
            }
        }
        let committed = self.committed.clone();
        let in_doubt: HashSet<Record> = self.open.values().flat_map(Left::in_doubt).collect();
        self.open.retain(|path, left| {
            if !left.undo(tasks, &committed) || left.is_of_use(&in_doubt) {
                return true;
            }
            failpoint::reach("recovery.undone");
            let noted = left.note();
            failpoint::reach("recovery.noted");
            match noted {
                Ok(()) if fs::remove_file(path).is_ok() => {
                    left.untouched.iter().for_each(|(write, why)| tell(write, why));
                    concerned.extend(&left.concerned);
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

/// Takes over a file that nobody uses any more, and gives it a name that says so; `None` if somebody does, or if it is not
/// clear yet what became of its transactions.
fn take_over(path: &Path, began: SystemTime) -> io::Result<Option<(PathBuf, Left)>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(ErrorKind::IsADirectory.into());
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(e),
    }
    // At once: whoever finds it locked must not take it for a session's.
    let name = set_aside(path, LEFT)?;
    match read_left(file, began) {
        Ok(left) => Ok(left.map(|left| (name, left))),
        Err(Failure::Io(e)) => Err(e),
        Err(Failure::Unreadable(e)) => {
            pg::worker::log(&format!("could not read file \"{}\": {e}", path.display()));
            let mut aside = path.as_os_str().to_owned();
            aside.push(format!(".bad.{UNFINISHED}"));
            fs::rename(name, aside)?;
            Ok(None)
        }
    }
}

fn read_left(file: File, began: SystemTime) -> Result<Option<Left>, Failure> {
    let Some(outlooks) = Outlooks::of(&file, began)? else { return Ok(None) };
    let is_undoable = |write: &Intent| write.undo.is_some();
    let (mut undoable, mut unanswered) = (Vec::new(), Unanswered::default());
    for note in notes_of(&file)? {
        let mut note = note?;
        if let Note::Intended(intents) = &mut note {
            // There may be very many.
            for intent in intents.extract_if(.., |intent| !is_undoable(intent)) {
                let server = (outlooks.of_write(&intent) != Outlook::Committed).then_some(intent.server);
                unanswered.intend(intent.sys_id, server);
            }
        }
        let is_empty = match &mut note {
            Note::Begun(_) => true,
            Note::Intended(intents) => intents.is_empty(),
            Note::Answered(answers) => {
                answers.retain(|(id, _)| unanswered.settle(id).is_none());
                answers.is_empty()
            }
            Note::Renamed(keys) => {
                keys.retain(|(noted, made)| unanswered.rename(noted, made.clone()).is_none());
                keys.is_empty()
            }
            Note::Refused(ids) => {
                ids.retain(|id| unanswered.settle(id).is_none());
                ids.is_empty()
            }
        };
        if !is_empty {
            undoable.push(note);
        }
    }
    let mut undoing: Vec<Vec<OpenWrite>> = Vec::new();
    let (mut untouched, mut kept) = (Vec::new(), Vec::new());
    let mut open_calls: HashSet<u32> = unanswered.writes().copied().flatten().collect();
    for write in open_writes(undoable) {
        let outlook = outlooks.of_write(&write.intent);
        if outlook == Outlook::Committed {
            kept.push(Kept::of(&write));
            continue;
        }
        if write.answered.is_none() {
            open_calls.insert(write.intent.server);
        }
        if outlook != Outlook::RolledBack {
            untouched.push((write, if outlooks.is_copy { COPIED } else { NOT_KNOWN }));
            continue;
        }
        let login = |write: &OpenWrite| (write.intent.server, write.intent.role);
        match undoing.iter_mut().find(|writes| login(&writes[0]) == login(&write)) {
            Some(writes) => writes.push(write),
            None => undoing.push(vec![write]),
        }
    }
    // All calls were begun before.
    let calls_end = open_calls.into_iter().map(longest_call).max().map(|longest| Instant::now() + longest);
    let due = |writes| Undoing { writes: Arc::new(writes), state: State::Due(Instant::now()), calls_end };
    let undoing = undoing.into_iter().rev().map(due).collect();
    let (found, concerned) = (Instant::now(), HashSet::new());
    Ok(Some(Left { file, outlooks, undoing, untouched, kept, found, concerned, calls_end }))
}

/// Records by table.
type Records = HashMap<pg_sys::Oid, Vec<String>>;

fn leave_to_recheck(records: Records) -> Result<(), String> {
    let noted = pg::xact::transaction(|| {
        pg::xact::commit_for_good(); // the file goes
        for (relation, ids) in records.iter().filter(|(relation, _)| is_mirrored(**relation)) {
            catalog::leave_to_recheck(*relation, ids);
        }
    });
    noted.map_err(|caught| caught.message)
}

/// The notes of a file, from its beginning.
fn notes_of(mut file: &File) -> io::Result<Reader<BufReader<&File>>> {
    file.rewind()?;
    Ok(Reader::new(BufReader::new(file)))
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
    /// Has the records looked at, those of a few notes at a time.
    fn note(&mut self) -> Result<(), String> {
        let (mut records, mut tables) = (Records::new(), Unanswered::default());
        for note in notes_of(&self.file).map_err(|e| e.to_string())? {
            match note.map_err(|e| e.to_string())? {
                Note::Begun(_) => {}
                Note::Intended(intents) => {
                    let open = |intent: &Intent| self.outlooks.of_write(intent) != Outlook::Committed;
                    for intent in intents.into_iter().filter(open) {
                        let id = intent.sys_id.as_str().to_owned();
                        records.entry(intent.foreign_table.into()).or_default().push(id);
                        tables.intend(intent.sys_id, intent.foreign_table);
                    }
                }
                Note::Renamed(keys) => {
                    for (noted, made) in keys {
                        if let Some(table) = tables.rename(&noted, made.clone()) {
                            records.entry((*table).into()).or_default().push(made.as_str().to_owned());
                        }
                    }
                }
                Note::Answered(answers) => {
                    for (id, _) in answers {
                        tables.settle(&id);
                    }
                }
                Note::Refused(ids) => {
                    for id in ids {
                        tables.settle(&id);
                    }
                }
            }
            if records.values().map(Vec::len).sum::<usize>() >= AT_A_TIME {
                self.concerned.extend(records.keys());
                leave_to_recheck(std::mem::take(&mut records))?;
            }
        }
        self.concerned.extend(records.keys());
        leave_to_recheck(records)
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
    fn undo(&mut self, tasks: &mut Tasks, committed: &Committed) -> bool {
        let mut is_over = self.calls_end.is_none_or(|end| end <= Instant::now());
        for undoing in &mut self.undoing {
            undoing.go_on(tasks, committed);
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
    fn go_on(&mut self, tasks: &mut Tasks, committed: &Committed) {
        let (outcome, calls, has_ended) = match &self.state {
            State::Due(at) | State::Waiting(at) if *at <= Instant::now() => {
                return self.begin(tasks, committed);
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

    fn begin(&mut self, tasks: &mut Tasks, committed: &Committed) {
        let (server, role) = (self.writes[0].intent.server, self.writes[0].intent.role);
        let errand = match pg::xact::transaction(|| errand(server.into(), role.into())) {
            Ok(Ok(errand)) => errand,
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
        tasks.watch(errand.clone());
        let client = errand.client;
        let (writes, outcome, bell) = (self.writes.clone(), Arc::new(Mutex::new(None)), tasks.bell());
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

/// The undoing of writes with the login of a role.
fn errand(server: pg_sys::Oid, role: pg_sys::Oid) -> Result<Errand, String> {
    let description = pg::catalog::server(server);
    let options = ServerOptions::parse(&description.options).map_err(|e| e.to_string())?;
    let mapping = pg::catalog::user_mapping(role, server);
    let login = Login::of(server, &options, &mapping).map_err(|e| e.to_string())?;
    let trust = trust(&description, &options, role, &mapping);
    let client = new_client(&options, login, trust, WORKER).map_err(|e| e.to_string())?;
    Ok(Errand { server, name: description.name, client })
}

/// How many writes to which foreign tables are under way or not settled, as sessions and worker have noted them.
pub fn pending_writes() -> HashMap<u32, i64> {
    let mut pending = HashMap::new();
    for file in files().unwrap_or_default().iter().filter_map(|path| File::open(path).ok()) {
        let mut count = Count::default();
        let notes = notes_of(&file).into_iter().flatten();
        notes.map_while(Result::ok).for_each(|note| count.add(note));
        for (table, writes) in count.open() {
            *pending.entry(table).or_default() += i64::try_from(writes).unwrap_or(i64::MAX);
        }
    }
    pending.retain(|_, writes| *writes > 0);
    pending
}

/// Those of a foreign table's records to which sessions may be writing. For the worker.
pub fn under_way(relation: pg_sys::Oid, ids: &HashSet<&str>) -> HashSet<String> {
    let mut found = HashSet::new();
    let is_taken = |path: &PathBuf| TAKEN_OVER.with_borrow(|taken| taken.contains(path));
    let paths = files().unwrap_or_default().into_iter().filter(|path| !is_taken(path));
    for file in paths.filter_map(|path| File::open(path).ok()) {
        for note in notes_of(&file).into_iter().flatten().map_while(Result::ok) {
            let noted: Vec<SysId> = match note {
                Note::Intended(intents) => {
                    let ours = intents.into_iter().filter(|i| i.foreign_table == relation.to_u32());
                    ours.map(|intent| intent.sys_id).collect()
                }
                Note::Renamed(keys) => keys.into_iter().map(|(_, made)| made).collect(),
                Note::Begun(_) | Note::Answered(_) | Note::Refused(_) => Vec::new(),
            };
            let wanted = noted.iter().map(SysId::as_str).filter(|id| ids.contains(id));
            found.extend(wanted.map(str::to_owned));
        }
    }
    found
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
