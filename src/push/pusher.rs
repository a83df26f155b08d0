//! Sends items, looks at the answers, and puts them into the cache.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgSqlErrorCode as Sql, notice, pg_sys};
use servicenow::client::keys::Keys;
use servicenow::client::write::{Change, Fate};
use servicenow::dictionary::{self, TableDef};
use servicenow::error::{Refusal, Words};
use servicenow::page::{Layout, Rows, Version};
use servicenow::push::intent::Op;
use servicenow::value::{Show, SysId};

use crate::cache::apply::{CacheWriter, Put, to_scalar};
use crate::cache::change::Source;
use crate::catalog::{self, Mirror, MirrorColumn};
use crate::connection::{Connection, HttpClient, connection};
use crate::error::{Doing, error, raise, report};
use crate::failpoint;
use crate::pg::routine::{OwnedRow, Values, Written};
use crate::pg::system::SystemColumns;
use crate::pg::table::Triggers;
use crate::pg::tuple::OwnedScalar;

use super::draft::{Draft, Sent};
use super::{Item, Task, answer, intent, name, with_twins};

/// How often a statement that writes many records says how far it is.
const SAY: Duration = Duration::from_secs(5);
/// Records that the worker is asked to look at together.
const RECHECKS_AT_A_TIME: usize = 1_000;
/// Deleted records that are kept in memory before they are written down.
const REMEMBERED_AT_A_TIME: usize = 500;

/// What was seen of records in the instance before they were to be written.
struct Confirmed {
    rows: Rows,
    /// Those that are as they are to be: the places of items, and the rows they are about.
    places: Vec<(usize, usize)>,
}

/// Sends items for one table, signed with one role's login.
pub struct Pusher {
    /// The table.
    pub mirror: Rc<Mirror>,
    pub(super) connection: Connection,
    role: pg_sys::Oid,
    /// What the dictionary says; read when the first row comes.
    def: Option<Rc<TableDef>>,
    /// The description was read from the instance by this statement.
    def_is_fresh: bool,
    /// The cache.
    pub cache: CacheWriter,
    /// Records in the cache as this login sees them and not as the worker does.
    to_recheck: Vec<String>,
    /// Records that were deleted and are not remembered yet.
    deleted: Vec<String>,
    /// Records that were made under other keys than were foretold.
    renamed: HashMap<SysId, SysId>,
    /// Rows added to the cache, less rows taken from it.
    delta: i64,
    progress: Progress,
}

/// How far a statement, or the end of a transaction, is with its writes.
#[derive(Clone)]
pub struct Progress {
    of: &'static str,
    /// Records whose writes were accepted.
    accepted: Arc<AtomicU64>,
    /// When it was last said, or else began.
    said: Instant,
}

impl Progress {
    const STATEMENT: &str = "statement";

    /// Of what begins now, by what it is called.
    pub fn of(what: &'static str) -> Self {
        Self { of: what, accepted: Arc::default(), said: Instant::now() }
    }

    /// Tells whoever waits, if it was not told for a while; gives back when that will be due next.
    fn say(&mut self, table: pg_sys::Oid) -> Duration {
        if self.said.elapsed() >= SAY {
            self.said = Instant::now();
            let accepted = self.accepted.load(Ordering::Relaxed);
            notice!("{}: {accepted} records written so far", catalog::qualified(table));
        }
        SAY.saturating_sub(self.said.elapsed())
    }
}

impl Pusher {
    /// For a foreign table, as a role.
    pub fn new(relation: pg_sys::Oid, role: pg_sys::Oid, triggers: Triggers) -> Self {
        let mirror = catalog::mirror_or_error(relation);
        let connection = connection(mirror.server, role);
        let cache = CacheWriter::open(&mirror, triggers, Some(Source::Write));
        Self {
            connection,
            role,
            def: None,
            def_is_fresh: false,
            cache,
            to_recheck: Vec::new(),
            deleted: Vec::new(),
            renamed: HashMap::new(),
            delta: 0,
            progress: Progress::of(Progress::STATEMENT),
            mirror,
        }
    }

    /// As a part of something that has begun before.
    pub fn having(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// The records that were made under other keys than were foretold, and those keys, since it was last asked.
    pub fn take_renamed(&mut self) -> HashMap<SysId, SysId> {
        std::mem::take(&mut self.renamed)
    }

    /// The role whose login signs the calls.
    pub fn role(&self) -> pg_sys::Oid {
        self.role
    }

    /// The table's description: as the worker or an import has left it, or else read now.
    pub(super) fn def(&mut self) -> Rc<TableDef> {
        if let Some(def) = &self.def {
            return def.clone();
        }
        match catalog::definition(self.mirror.server, &self.mirror.table) {
            Some(known) => self.def.insert(known).clone(),
            None => self.fetch_def(),
        }
    }

    fn fetch_def(&mut self) -> Rc<TableDef> {
        let table = self.mirror.table.clone();
        let what = format!("read the dictionary of table \"{table}\"");
        let def = self.connection.call(&what, false, |client| async move {
            let mut described = dictionary::fetch(&client, std::slice::from_ref(&table)).await?;
            described.pop().map(|(_, def)| def).unwrap_or(Err(servicenow::Error::NoTable(Default::default())))
        });
        let def = catalog::remember_definition(self.mirror.server, def);
        self.def_is_fresh = true;
        self.def.insert(def).clone()
    }

    /// The fields to send for the given columns (positions among the mirror's) of a row.
    pub fn draft(&mut self, columns: &[usize], row: &dyn Values, old: Option<&dyn Values>) -> Vec<Sent> {
        let mut def = self.def();
        loop {
            let (mirror, connection) = (&*self.mirror, &self.connection);
            match (Draft { mirror, def: &def, connection, row, old }).fields(columns) {
                Ok(sent) => return sent,
                // It may have been added since the dictionary was read.
                Err(_) if !self.def_is_fresh => def = self.fetch_def(),
                Err(unknown) => raise(*unknown.0),
            }
        }
    }

    /// Looks up the names in items, as [`Self::send`] does before it sends them.
    pub fn resolve(&self, items: &mut [Item]) {
        name::resolve(&self.connection, items.iter_mut().flat_map(Item::sent_mut));
    }

    /// Carries items out, of distinct records; gives back what became of each, `None` for a record that was not made because
    /// there is one already and that is no reason to fail. Anything else that fails is an ERROR.
    pub fn send(&mut self, items: Vec<Item>) -> Vec<Option<Written>> {
        let count = items.len();
        let or_nothing = items.iter().all(|item| item.task.is_or_nothing());
        let mut written: Vec<Option<Written>> = (0..count).map(|_| None).collect();
        let (confirmed, mut items) = self.confirm(items);
        name::resolve(&self.connection, items.iter_mut().flat_map(|(_, item)| item.sent_mut()));
        for &(place, row) in &confirmed.places {
            written[place] = Some(self.keep(&confirmed.rows, row));
        }
        if items.is_empty() {
            return written;
        }
        failpoint::reach("push.noting");
        let notes = self.note(&items);
        failpoint::reach("push.noted");
        let changes: Vec<Change> = items.iter().map(|(_, item)| item.change()).collect();
        let (table, layout, accepted) =
            (self.mirror.table.clone(), self.mirror.layout.clone(), self.progress.accepted.clone());
        let before = accepted.load(Ordering::Relaxed);
        let what = match items.as_slice() {
            [(_, item)] => item.what(&self.mirror),
            _ => format!("write {} records of table \"{table}\"", items.len()),
        };
        let write = |client: HttpClient| async move {
            let syncing = notes.map(|file| tokio::task::spawn_blocking(move || file.sync_data()));
            let fates = client.write_all(&table, changes, &layout, or_nothing, &accepted).await;
            let synced = match syncing {
                None => Ok(()),
                Some(syncing) => match syncing.await {
                    Ok(synced) => synced.map_err(|e| e.to_string()),
                    Err(e) => Err(e.to_string()),
                },
            };
            Ok((fates, synced))
        };
        let unsent = || {
            intent::settled(Vec::new(), Vec::new(), items.iter().map(|(_, item)| item.id.clone()).collect())
        };
        let (progress, table) = (&mut self.progress, self.mirror.foreign_table);
        let tell = || (count > 1).then(|| progress.say(table));
        let keys = self.connection.keys(&self.mirror.table);
        let begun = Instant::now();
        let fates = self.connection.write(&what, write, unsent, tell);
        let took = begun.elapsed();
        self.connection.keep_keys(&self.mirror.table, keys);
        let (fates, synced) = fates.unwrap_or_else(|e| self.fail(&e, &what));
        failpoint::reach("push.answered");
        name::forget_names(self.mirror.server, &self.mirror.table);
        self.note_fates(&items, &fates);
        if let Err(why) = synced {
            // What is noted might not outlast a power failure, so this transaction must not go on.
            let message = format!("could not flush what is noted of writes to disk: {why}");
            raise(error(Sql::ERRCODE_IO_ERROR, message).set_detail(
                "ServiceNow may have accepted writes of this statement; their records are read again.",
            ));
        }
        let many = before > 0 || count > 1;
        if items.iter().any(|(_, item)| !item.task.sent().is_empty()) {
            self.def(); // the labels of choices are in it
        }
        let mut fates = items.into_iter().zip(fates).collect::<Vec<_>>();
        if fates
            .iter()
            .any(|(_, fate)| matches!(fate, Fate::Done(rows) if !rows.is_empty() && rows.is_stamped(0, took)))
        {
            self.connection.note_clock();
        }
        // What is wrong comes first: nothing else matters then.
        for ((_, item), fate) in &fates {
            let is_outdated = |cached: Version, now| {
                let was_looked_at = || confirmed.rows.ids().any(|id| id == item.id.as_str());
                cached.was_outdated(now) && !was_looked_at()
            };
            if let Some(failure) = self.failure(item, fate, took, is_outdated) {
                raise(if many { self.in_batch(failure, item) } else { self.alone(failure, item, fate) });
            }
        }
        for ((place, item), fate) in fates.drain(..) {
            match fate {
                Fate::Done(rows) => written[place] = self.settle(&item, &rows),
                Fate::Failed(_) => {} // passed over
                Fate::NotSent => raise(error(
                    Sql::ERRCODE_INTERNAL_ERROR,
                    format!("record \"{}\" was not written though nothing has failed", item.id.as_str()),
                )),
            }
        }
        if self.deleted.len() >= REMEMBERED_AT_A_TIME {
            self.remember_deleted();
        }
        failpoint::reach("push.kept");
        self.progress.say(self.mirror.foreign_table);
        written
    }

    /// The ERROR for what became of an item, if it is one.
    fn failure(
        &mut self,
        item: &Item,
        fate: &Fate,
        took: Duration,
        is_outdated: impl FnOnce(Version, Version) -> bool,
    ) -> Option<ErrorReport> {
        match fate {
            Fate::Done(rows) if rows.is_empty() => None,
            Fate::Done(rows) => {
                let server = self.connection.server();
                let is_given = matches!(item.task, Task::Insert { is_given: true, .. });
                let other_key = || answer::check_key(&self.mirror, server, &item.id, rows);
                let (cache, is_update) = (&mut self.cache, matches!(item.task, Task::Update { .. }));
                let is_clock_known = self.connection.is_clock_known();
                let may_be_older = || {
                    let mut cached = || cache.version_of(item.id.as_str());
                    is_update
                        && (is_clock_known && rows.is_untouched(0, took)
                            || cached().is_some_and(|cached| is_outdated(cached, rows.version(0))))
                };
                is_given.then(other_key).flatten().or_else(|| {
                    let def = self.def.as_deref();
                    answer::check(&self.mirror, def, server, item.task.sent(), rows, may_be_older)
                })
            }
            Fate::Failed(servicenow::Error::Refused { refusal: Refusal::Unique, .. })
                if matches!(item.task, Task::Insert { or_nothing: true, .. }) =>
            {
                None
            }
            Fate::Failed(e) => {
                let what = item.what(&self.mirror);
                Some(report(e, Doing { server: self.connection.server(), what: &what, writing: true }))
            }
            Fate::NotSent => None,
        }
    }

    /// Adds to an ERROR which of many records it is about, and how many were accepted.
    fn in_batch(&self, report: ErrorReport, item: &Item) -> ErrorReport {
        let Progress { of, accepted, .. } = &self.progress;
        let accepted = accepted.load(Ordering::Relaxed);
        let verb = match item.task.op() {
            _ if *of != Progress::STATEMENT => "written", // of all kinds
            Op::Insert { .. } => "inserted",
            Op::Update => "updated",
            Op::Delete => "deleted",
        };
        let which = format!(
            "This is about record \"{}\"; {accepted} records of this {of} had been {verb} in ServiceNow.",
            item.id.as_str()
        );
        match report.detail() {
            Some(detail) => {
                let detail = format!("{detail}\n{which}");
                report.set_detail(detail)
            }
            None => report.set_detail(which),
        }
    }

    /// Adds to an ERROR which record may have been made: nobody has seen its key.
    fn alone(&self, report: ErrorReport, item: &Item, fate: &Fate) -> ErrorReport {
        match (&item.task, fate) {
            (Task::Insert { .. }, Fate::Failed(e)) if e.leaves_outcome_unknown() => {
                report.set_detail(match self.connection.keys(&self.mirror.table) {
                    Keys::Ignored => {
                        "If it was made, the record has a sys_id that the instance has chosen.".to_owned()
                    }
                    _ => format!("If it was made, the record has the sys_id \"{}\".", item.id.as_str()),
                })
            }
            _ => report,
        }
    }

    /// Looks at the instance's version of records of which nothing differs from the cache. Gives back those that are
    /// as they are to be, and the others, which are updates now, each with its place.
    fn confirm(&mut self, items: Vec<Item>) -> (Confirmed, Vec<(usize, Item)>) {
        let is_doubtful = |item: &&Item| matches!(item.task, Task::Confirm { .. });
        let doubtful: Vec<SysId> = items.iter().filter(is_doubtful).map(|item| item.id.clone()).collect();
        let rows = match doubtful.is_empty() {
            true => Rows::new(self.mirror.layout.clone()),
            false => self.look_at(doubtful),
        };
        let row_of: HashMap<&str, usize> = rows.ids().zip(0..).collect();
        let (mut places, mut rest) = (Vec::new(), Vec::new());
        for (place, item) in items.into_iter().enumerate() {
            let (row, assigned) = match &item.task {
                Task::Confirm { row, assigned } => (row, assigned),
                _ => {
                    rest.push((place, item));
                    continue;
                }
            };
            let Some(found) = row_of.get(item.id.as_str()).copied() else {
                self.fail(&servicenow::Error::NoRecord(Words::default()), &item.what(&self.mirror))
            };
            let as_it_is = self.row_of(&rows, found);
            let differs = |position: usize| {
                let column = &self.mirror.columns[position];
                !column.field.contains('.') && as_it_is.get(column.number) != row.get(column.number)
            };
            let changed = with_twins(&self.mirror, assigned, assigned, differs);
            if changed.is_empty() {
                places.push((place, found));
            } else {
                let sent = self.draft(&changed, row, Some(&as_it_is));
                rest.push((place, Item { task: Task::Update { sent }, ..item }));
            }
        }
        (Confirmed { rows, places }, rest)
    }

    /// Reads records as the cache keeps them. One that is not there is an ERROR if it is the only one.
    fn look_at(&self, ids: Vec<SysId>) -> Rows {
        let (table, layout) = (self.mirror.table.clone(), self.mirror.layout.clone());
        let what = match ids.as_slice() {
            [id] => format!("read record \"{}\" of table \"{table}\"", id.as_str()),
            _ => format!("read records of table \"{table}\""),
        };
        self.connection.call(&what, false, |client| async move {
            match ids.as_slice() {
                [id] => client.get(&table, id, &layout).await,
                _ => client.look(&table, &ids, &layout).await,
            }
        })
    }

    /// Those of some records that are there.
    pub fn which_are_there(&self, ids: Vec<SysId>) -> HashSet<SysId> {
        let (table, layout) = (self.mirror.table.clone(), Arc::new(Layout::of_text(&[])));
        let what = format!("read records of table \"{table}\"");
        let rows = self
            .connection
            .call(&what, false, |client| async move { client.look(&table, &ids, &layout).await });
        rows.ids().map(SysId::new).collect()
    }

    fn row_of(&self, rows: &Rows, row: usize) -> OwnedRow {
        let values = self.mirror.columns.iter().zip(0..);
        let values = values.map(|(column, i)| (column.number, to_scalar(rows.value(row, i)).to_owned()));
        OwnedRow::new(self.mirror.width, values)
    }

    /// Puts the answer to an item into the cache.
    fn settle(&mut self, item: &Item, rows: &Rows) -> Option<Written> {
        match item.task {
            Task::Delete => {
                self.deleted.push(item.id.as_str().to_owned());
                self.forget(item.id.as_str())
            }
            Task::Insert { .. } if rows.id(0) != item.id.as_str() => {
                // The instance has made it under a key of its own: what was foretold under ours is not there.
                self.forget(item.id.as_str());
                // Of a statement nobody has seen them yet.
                if self.progress.of != Progress::STATEMENT {
                    self.renamed.insert(item.id.clone(), SysId::new(rows.id(0)));
                }
                Some(self.keep(rows, 0))
            }
            _ => Some(self.keep(rows, 0)),
        }
    }

    /// Puts a record into the cache as the instance has it, and gives the row back by attribute number.
    fn keep(&mut self, rows: &Rows, row: usize) -> Written {
        let Put { added, is_clear, system } = self.cache.put(rows, row);
        self.delta += i64::from(added);
        if !self.connection.is_workers() || !is_clear {
            self.recheck(rows.id(row));
        }
        self.written(system, |position| to_scalar(rows.value(row, position)).to_owned())
    }

    /// Has the worker look at a record when the transaction has been committed.
    fn recheck(&mut self, id: &str) {
        self.to_recheck.push(id.to_owned());
        if self.to_recheck.len() >= RECHECKS_AT_A_TIME {
            catalog::ask_to_recheck(self.mirror.foreign_table, &std::mem::take(&mut self.to_recheck));
        }
    }

    /// Takes a record out of the cache, and gives back what it was.
    pub fn forget(&mut self, id: &str) -> Option<Written> {
        let values = self.cache.lock(id)?;
        let system = self.cache.locked_system();
        self.cache.delete_locked();
        self.delta -= 1;
        Some(self.written(Some(system), |position| values[position].clone()))
    }

    /// Puts a row into the cache as a statement wants it, until the instance has answered.
    pub fn foretell(&mut self, id: &SysId, values: &[OwnedScalar]) -> Written {
        let Put { added, system, .. } = self.cache.put_foretold(id.as_str(), values);
        self.delta += i64::from(added);
        self.written(system, |position| values[position].clone())
    }

    /// Takes back what was foretold of a record that was not made because there is one already: the worker fetches that one.
    pub fn take_back(&mut self, id: &SysId) {
        self.forget(id.as_str());
        self.recheck(id.as_str());
    }

    /// A row by attribute number, from values by position among the mirror's columns.
    pub fn written(&self, system: Option<SystemColumns>, value: impl Fn(usize) -> OwnedScalar) -> Written {
        let mut columns = vec![OwnedScalar::Null; self.mirror.width as usize];
        for (position, column) in self.mirror.columns.iter().enumerate() {
            columns[column.number as usize - 1] = value(position);
        }
        Written::Row { columns, system }
    }

    /// A row as the cache has it, locked; `None` if it is no more.
    pub fn look_up(&mut self, id: &str) -> Option<Written> {
        let values = self.cache.lock(id)?;
        let system = self.cache.locked_system();
        Some(self.written(Some(system), |position| values[position].clone()))
    }

    /// The system columns of a row, as the cache has it if it has one.
    pub fn system_of(&mut self, id: &str) -> SystemColumns {
        match self.cache.lock(id) {
            Some(_) => self.cache.locked_system(),
            None => SystemColumns::NOWHERE,
        }
    }

    /// The version the cache has of a record, if it is wanted.
    pub fn cached_version(&mut self, id: &str) -> Option<Version> {
        if self.mirror.optimistic_lock { self.cache.version_of(id) } else { None }
    }

    /// Shows a call instead of making it.
    pub fn pretend(&self, item: &Item) {
        notice!("dry run: {}", item.show(&self.mirror));
    }

    /// The values of a row, by position among the mirror's columns, as far as they are known before the instance has
    /// answered: as they are given, with labels and stored values that belong together.
    pub fn foretold(&self, row: &dyn Values, sent: &[Sent], is_new: bool) -> Vec<OwnedScalar> {
        let value = |column: &MirrorColumn| {
            let Some(sent) = sent.iter().find(|sent| sent.field == column.field) else {
                return if is_new { OwnedScalar::Null } else { row.get(column.number) };
            };
            match column.show {
                _ if sent.appends || sent.value.is_empty() => OwnedScalar::Null,
                Show::Value => {
                    column.kind.decode(&sent.value).map_or(OwnedScalar::Null, |v| to_scalar(v).to_owned())
                }
                Show::Label => match answer::label_of(self.def.as_deref(), sent) {
                    Some(label) => OwnedScalar::Text(label),
                    None if sent.label.is_some() => row.get(column.number),
                    None => OwnedScalar::Null,
                },
            }
        };
        self.mirror.columns.iter().map(value).collect()
    }

    /// Whether the label of what is sent is known before the instance has answered.
    pub fn knows_label(&self, sent: &Sent) -> bool {
        sent.value.is_empty() || sent.label.is_some() || answer::label_of(self.def.as_deref(), sent).is_some()
    }

    fn fail(&self, e: &servicenow::Error, what: &str) -> ! {
        raise(report(e, Doing { server: self.connection.server(), what, writing: true }))
    }

    /// Has the worker know, when the transaction has committed, that records are gone.
    fn remember_deleted(&mut self) {
        catalog::remember_absent(self.mirror.foreign_table, &self.deleted);
        self.deleted.clear();
    }

    /// Ends the writing; gives back how far it has come.
    pub fn close(mut self) -> Progress {
        self.remember_deleted();
        self.cache.close();
        catalog::count_rows(self.mirror.foreign_table, self.delta);
        if !self.to_recheck.is_empty() {
            catalog::ask_to_recheck(self.mirror.foreign_table, &self.to_recheck);
        }
        self.progress
    }
}
