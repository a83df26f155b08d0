//! Writes on their way to ServiceNow, and their answers on the way into the cache. In backends.
//!
//! A statement's rows become [`Item`]s ([`draft`], [`label`]), a [`Pusher`] notes them down ([`intent`]), sends them, looks
//! whether the instance has done what it says ([`answer`]) and puts what it answers into the cache. With
//! `servicenow_fdw.push = 'commit'` items wait for the end of the transaction ([`queue`]).

pub mod answer;
pub mod draft;
pub mod intent;
pub mod label;
pub mod queue;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgSqlErrorCode as Sql, notice, pg_sys};
use servicenow::client::retry::Effect;
use servicenow::client::table_api::Identity;
use servicenow::client::write::{Change, Fate};
use servicenow::dictionary::{self, FieldDef, FieldType, TableDef, field_type};
use servicenow::error::Refusal;
use servicenow::page::{Layout, Rows, Version};
use servicenow::push::intent::{Fields, Images, Op};
use servicenow::value::{Show, SysId};

use crate::cache::apply::{CacheWriter, Put, to_scalar};
use crate::cache::change::Source;
use crate::catalog::{self, Mirror, MirrorColumn};
use crate::connection::{Connection, connection};
use crate::error::{Doing, error, raise, report};
use crate::failpoint;
use crate::pg;
use crate::pg::routine::{OwnedRow, Values, Written};
use crate::pg::system::SystemColumns;
use crate::pg::table::Triggers;
use crate::pg::tuple::OwnedScalar;
use draft::{Draft, Sent, json};

/// How often a statement that writes many records says how far it is.
const SAY: Duration = Duration::from_secs(5);

/// Deleted records that are kept in memory before they are written down.
const REMEMBERED_AT_A_TIME: usize = 500;

/// What is to be done about one record.
pub struct Item {
    /// Its key.
    pub id: SysId,
    /// The version the cache has of it, where it matters.
    pub cached: Option<Version>,
    /// What is to be done.
    pub task: Task,
}

/// See [`Item`].
pub enum Task {
    /// To make the record.
    Insert {
        /// Somebody has chosen the key.
        is_given: bool,
        /// The fields.
        sent: Vec<Sent>,
    },
    /// To change it.
    Update {
        /// The fields.
        sent: Vec<Sent>,
    },
    /// Nothing differs from the cache; to make sure that nothing differs from the instance either.
    Confirm {
        /// The row as it is to be.
        row: OwnedRow,
        /// The columns that are assigned, as positions among the mirror's.
        assigned: Vec<usize>,
    },
    /// To delete it.
    Delete,
}

impl Task {
    fn op(&self) -> Op {
        match self {
            Task::Insert { is_given, .. } => Op::Insert { is_fresh: !is_given },
            Task::Update { .. } | Task::Confirm { .. } => Op::Update,
            Task::Delete => Op::Delete,
        }
    }

    /// The fields that are sent.
    pub fn sent(&self) -> &[Sent] {
        match self {
            Task::Insert { sent, .. } | Task::Update { sent } => sent,
            Task::Confirm { .. } | Task::Delete => &[],
        }
    }
}

impl Item {
    /// What is being done, as an infinitive.
    fn what(&self, mirror: &Mirror) -> String {
        let (id, table) = (self.id.as_str(), &mirror.table);
        match self.task {
            Task::Insert { .. } => format!("insert a record into table \"{table}\""),
            Task::Update { .. } | Task::Confirm { .. } => {
                format!("update record \"{id}\" of table \"{table}\"")
            }
            Task::Delete => format!("delete record \"{id}\" of table \"{table}\""),
        }
    }

    fn change(&self) -> Change {
        let id = self.id.clone();
        match &self.task {
            Task::Insert { is_given, sent } => Change::Insert {
                id: if *is_given { Identity::Given(id) } else { Identity::Fresh(id) },
                fields: json(sent),
            },
            Task::Update { sent } => {
                let appends = sent.iter().any(|sent| sent.appends);
                let effect = if appends { Effect::Once } else { Effect::Idempotent };
                Change::Update { id, fields: json(sent), effect }
            }
            Task::Confirm { .. } => unreachable!("it was confirmed, or is an update by now"),
            Task::Delete => Change::Delete { id },
        }
    }

    /// The memory its fields take, in bytes.
    pub fn size(&self) -> usize {
        self.task.sent().iter().map(|sent| sent.field.len() + sent.value.len()).sum()
    }

    /// The call as `push = 'dry_run'` shows it.
    fn show(&self, mirror: &Mirror) -> String {
        let (id, path) = (self.id.as_str(), format!("/api/now/table/{}", mirror.table));
        let mut body = json(self.task.sent());
        match self.task {
            Task::Insert { .. } => {
                body.insert("sys_id".to_owned(), id.into());
                format!("POST {path} {}", serde_json::Value::Object(body))
            }
            Task::Update { .. } => format!("PATCH {path}/{id} {}", serde_json::Value::Object(body)),
            Task::Confirm { .. } => format!("GET {path}/{id}"),
            Task::Delete => format!("DELETE {path}/{id}"),
        }
    }
}

/// Sends items for one table, signed with one role's login.
pub struct Pusher {
    /// The table.
    pub mirror: Rc<Mirror>,
    connection: Connection,
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
    /// Rows added to the cache, less rows taken from it.
    delta: i64,
    /// Records whose writes were accepted.
    accepted: Arc<AtomicU64>,
    said: Instant,
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
            delta: 0,
            accepted: Arc::default(),
            said: Instant::now(),
            mirror,
        }
    }

    /// The role whose login signs the calls.
    pub fn role(&self) -> pg_sys::Oid {
        self.role
    }

    /// The table's description: as the worker or an import has left it, or else read now.
    fn def(&mut self) -> Rc<TableDef> {
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

    /// Carries items out, of distinct records; gives back what became of each. An INSERT of a record that is there already is
    /// passed over, if that is wanted. Anything else that fails is an ERROR.
    pub fn send(&mut self, items: Vec<Item>, pass_over_duplicates: bool) -> Vec<Option<Written>> {
        let count = items.len();
        let mut written: Vec<Option<Written>> = (0..count).map(|_| None).collect();
        let (confirmed, items) = self.confirm(items);
        for (place, rows) in confirmed {
            written[place] = Some(self.keep(&rows));
        }
        if items.is_empty() {
            return written;
        }
        failpoint::reach("push.noting");
        self.note(&items);
        failpoint::reach("push.noted");
        let changes: Vec<Change> = items.iter().map(|(_, item)| item.change()).collect();
        let (table, layout, accepted) =
            (self.mirror.table.clone(), self.mirror.layout.clone(), self.accepted.clone());
        let before = accepted.load(Ordering::Relaxed);
        let what = match items.as_slice() {
            [(_, item)] => item.what(&self.mirror),
            _ => format!("write {} records of table \"{table}\"", items.len()),
        };
        let fates = self.connection.try_call(&what, true, |client| async move {
            Ok(client.write_all(&table, changes, &layout, pass_over_duplicates, &accepted).await)
        });
        let fates = fates.unwrap_or_else(|e| self.fail(&e, &what));
        failpoint::reach("push.answered");
        self.note_fates(&items, &fates);
        let many = before > 0 || count > 1;
        let mut fates = items.into_iter().zip(fates).collect::<Vec<_>>();
        // What is wrong comes first: nothing else matters then.
        for ((_, item), fate) in &fates {
            if let Some(failure) = self.failure(item, fate, pass_over_duplicates) {
                raise(if many { self.in_batch(failure, item) } else { failure });
            }
        }
        for ((place, item), fate) in fates.drain(..) {
            if let Fate::Done(rows) = fate {
                written[place] = self.settle(&item, &rows);
            }
        }
        if self.deleted.len() >= REMEMBERED_AT_A_TIME {
            self.remember_deleted();
        }
        failpoint::reach("push.kept");
        self.say_how_far();
        written
    }

    /// The ERROR for what became of an item, if it is one.
    fn failure(&self, item: &Item, fate: &Fate, pass_over_duplicates: bool) -> Option<ErrorReport> {
        match fate {
            Fate::Done(rows) if rows.is_empty() => None,
            Fate::Done(rows) => {
                let server = self.connection.server();
                answer::check(&self.mirror, self.def.as_deref(), server, item.task.sent(), rows).err()
            }
            Fate::Failed(servicenow::Error::Refused { refusal: Refusal::Unique, .. })
                if pass_over_duplicates && matches!(item.task, Task::Insert { .. }) =>
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
        let accepted = self.accepted.load(Ordering::Relaxed);
        let verb = match item.task.op() {
            Op::Insert { .. } => "inserted",
            Op::Update => "updated",
            Op::Delete => "deleted",
        };
        let which = format!(
            "This is about record \"{}\"; {accepted} records of this statement had been {verb} in ServiceNow.",
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

    /// Looks at the instance's version of records of which nothing differs from the cache. Gives back those that are
    /// as they are to be, and the others, which are updates now, each with its place.
    fn confirm(&mut self, items: Vec<Item>) -> (Vec<(usize, Rows)>, Vec<(usize, Item)>) {
        let doubtful: Vec<SysId> = items
            .iter()
            .filter(|item| matches!(item.task, Task::Confirm { .. }))
            .map(|item| item.id.clone())
            .collect();
        if doubtful.is_empty() {
            return (Vec::new(), items.into_iter().enumerate().collect());
        }
        let (table, layout) = (self.mirror.table.clone(), self.mirror.layout.clone());
        let what = match doubtful.as_slice() {
            [id] => format!("read record \"{}\" of table \"{table}\"", id.as_str()),
            _ => format!("read records of table \"{table}\""),
        };
        let found = self.connection.call(&what, false, |client| async move {
            let mut found = Vec::new();
            for id in doubtful {
                found.push(client.get(&table, &id, &layout).await?);
            }
            Ok(found)
        });
        let mut found = found.into_iter();
        let (mut confirmed, mut rest) = (Vec::new(), Vec::new());
        for (place, item) in items.into_iter().enumerate() {
            let Task::Confirm { row, assigned } = item.task else {
                rest.push((place, item));
                continue;
            };
            let Some(rows) = found.next() else { continue };
            let as_it_is = self.row_of(&rows);
            let differs = |position: usize| {
                let column = &self.mirror.columns[position];
                !column.field.contains('.') && as_it_is.get(column.number) != row.get(column.number)
            };
            let changed = with_twins(&self.mirror, &assigned, &assigned, differs);
            if changed.is_empty() {
                confirmed.push((place, rows));
            } else {
                let sent = self.draft(&changed, &row, Some(&as_it_is));
                rest.push((place, Item { task: Task::Update { sent }, ..item }));
            }
        }
        (confirmed, rest)
    }

    fn row_of(&self, rows: &Rows) -> OwnedRow {
        OwnedRow::new(
            self.mirror.width,
            self.mirror.columns.iter().map(|c| c.number).zip(
                (0..self.mirror.columns.len()).map(|position| to_scalar(rows.value(0, position)).to_owned()),
            ),
        )
    }

    /// Notes durably what is about to be sent, after a look at the records where the table's options want one.
    fn note(&mut self, items: &[(usize, Item)]) {
        pg::xact::forbid_prepare();
        let mut before = self.look(items);
        let intents = items.iter().map(|(_, item)| {
            let undo = self.mirror.compensate.then(|| {
                let (version, before) = before.remove(&item.id).unwrap_or_default();
                let lasting = item.task.sent().iter().filter(|sent| !sent.appends);
                Images {
                    version,
                    before,
                    after: lasting.map(|s| (s.field.clone(), s.value.clone())).collect(),
                }
            });
            intent::Entry { op: item.task.op(), id: &item.id, undo }
        });
        intent::note(&self.mirror, self.role, intents);
    }

    /// Notes what came of it, as far as it helps to undo it.
    fn note_fates(&self, items: &[(usize, Item)], fates: &[Fate]) {
        if !self.mirror.compensate {
            return;
        }
        let (mut answered, mut refused) = (Vec::new(), Vec::new());
        for ((_, item), fate) in items.iter().zip(fates) {
            match fate {
                Fate::Done(rows) if rows.is_empty() => answered.push((item.id.clone(), Version::default())),
                Fate::Done(rows) => answered.push((item.id.clone(), rows.version(0))),
                Fate::Failed(e) if e.leaves_outcome_unknown() => {}
                Fate::Failed(_) | Fate::NotSent => refused.push(item.id.clone()),
            }
        }
        intent::settled(answered, refused);
    }

    /// Looks at the records that are about to be changed or deleted: whether they are as the cache has them, and what there
    /// is to be restored if the transaction is rolled back.
    fn look(&mut self, items: &[(usize, Item)]) -> HashMap<SysId, (Version, Fields)> {
        let there = items.iter().map(|(_, item)| item).filter(|i| !matches!(i.task, Task::Insert { .. }));
        let ids: Vec<SysId> = there.clone().map(|item| item.id.clone()).collect();
        if ids.is_empty() || !(self.mirror.compensate || self.mirror.optimistic_lock) {
            return HashMap::new();
        }
        let fields: Vec<String> = match self.mirror.compensate {
            true => self.fields_to_restore(items),
            false => Vec::new(),
        };
        let names: Vec<&str> = fields.iter().map(String::as_str).collect();
        let (table, layout) = (self.mirror.table.clone(), Arc::new(Layout::of_text(&names)));
        let what = format!("read records of table \"{table}\"");
        let rows = self
            .connection
            .call(&what, false, |client| async move { client.look(&table, &ids, &layout).await });
        let place: HashMap<&str, usize> = rows.ids().zip(0..).collect();
        let mut before = HashMap::new();
        for item in there {
            let Some(row) = place.get(item.id.as_str()).copied() else { continue };
            let version = rows.version(row);
            if self.mirror.optimistic_lock && item.cached.is_some_and(|cached| cached != version) {
                raise(self.changed_meanwhile(item));
            }
            let is_lost = |field: &str| {
                matches!(item.task, Task::Delete)
                    || item.task.sent().iter().any(|sent| sent.field == field && !sent.appends)
            };
            let shown =
                fields.iter().enumerate().filter(|(column, f)| is_lost(f) && rows.is_shown(row, *column));
            let values = shown.map(|(column, field)| (field.clone(), rows.text(row, column).to_owned()));
            before.insert(item.id.clone(), (version, values.collect()));
        }
        before
    }

    /// The fields of which the values before are kept: those that are sent, and all there are of a record that is deleted.
    fn fields_to_restore(&mut self, items: &[(usize, Item)]) -> Vec<String> {
        let sent = items.iter().flat_map(|(_, item)| item.task.sent());
        let mut fields: BTreeSet<String> = sent.filter(|s| !s.appends).map(|s| s.field.clone()).collect();
        if items.iter().any(|(_, item)| matches!(item.task, Task::Delete)) {
            let def = self.def();
            let keeps_a_value = |field: &&FieldDef| {
                !field.computed
                    && !matches!(field_type(&field.internal_type), FieldType::Journal | FieldType::Omitted)
            };
            fields.extend(def.fields.iter().filter(keeps_a_value).map(|field| field.name.clone()));
        }
        fields.remove("sys_id");
        fields.into_iter().collect()
    }

    /// The ERROR for a record that somebody has changed in ServiceNow since the cache was brought up to date.
    fn changed_meanwhile(&self, item: &Item) -> ErrorReport {
        error(
            Sql::ERRCODE_T_R_SERIALIZATION_FAILURE,
            "could not serialize access due to concurrent change in ServiceNow",
        )
        .set_detail(format!(
            "Record \"{}\" of table \"{}\" on server \"{}\" is not the version that the cache has.",
            item.id.as_str(),
            self.mirror.table,
            self.connection.server()
        ))
        .set_hint("Try the transaction again when the change has arrived; servicenow.sync() fetches it.")
    }

    /// Puts the answer to an item into the cache.
    fn settle(&mut self, item: &Item, rows: &Rows) -> Option<Written> {
        match item.task {
            Task::Delete => {
                self.deleted.push(item.id.as_str().to_owned());
                self.forget(item.id.as_str())
            }
            _ => Some(self.keep(rows)),
        }
    }

    /// Puts a record into the cache as the instance has it, and gives the row back by attribute number.
    fn keep(&mut self, rows: &Rows) -> Written {
        let Put { added, is_clear, system } = self.cache.put(rows, 0);
        self.delta += i64::from(added);
        if !self.connection.is_workers() || !is_clear {
            self.to_recheck.push(rows.id(0).to_owned());
        }
        self.written(system, |position| to_scalar(rows.value(0, position)).to_owned())
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
        Some(self.written(None, |position| values[position].clone()))
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
                    None if sent.by_label => row.get(column.number),
                    None => OwnedScalar::Null,
                },
            }
        };
        self.mirror.columns.iter().map(value).collect()
    }

    fn say_how_far(&mut self) {
        if self.said.elapsed() >= SAY {
            self.said = Instant::now();
            let accepted = self.accepted.load(Ordering::Relaxed);
            notice!("{}: {accepted} records written so far", catalog::qualified(self.mirror.foreign_table));
        }
    }

    fn fail(&self, e: &servicenow::Error, what: &str) -> ! {
        raise(report(e, Doing { server: self.connection.server(), what, writing: true }))
    }

    /// Has the worker know, when the transaction has committed, that records are gone.
    fn remember_deleted(&mut self) {
        catalog::remember_absent(self.mirror.foreign_table, &self.deleted);
        self.deleted.clear();
    }

    /// Ends the writing.
    pub fn close(mut self) {
        self.remember_deleted();
        self.cache.close();
        catalog::count_rows(self.mirror.foreign_table, self.delta);
        if !self.to_recheck.is_empty() {
            catalog::ask_to_recheck(self.mirror.foreign_table, &self.to_recheck);
        }
    }
}

/// Those of some columns (positions among the mirror's) of which `differs` is true, with all others of the same fields that are
/// assigned: a label and a stored value must not contradict each other.
pub fn with_twins(
    mirror: &Mirror,
    candidates: &[usize],
    assigned: &[usize],
    differs: impl Fn(usize) -> bool,
) -> Vec<usize> {
    let changed: Vec<usize> = candidates.iter().copied().filter(|position| differs(*position)).collect();
    let field = |position: usize| mirror.columns[position].field.as_str();
    let fields: HashSet<&str> = changed.iter().map(|position| field(*position)).collect();
    let twins = assigned.iter().copied().filter(|p| fields.contains(field(*p)) && !changed.contains(p));
    changed.iter().copied().chain(twins).collect()
}

/// Has the ends of transactions told to those that wait for them here.
fn watch() {
    pg::xact::watch(pg::xact::Watcher {
        before_commit: || {
            queue::before_commit();
            intent::before_commit();
        },
        ended: |committed| {
            queue::forget();
            intent::ended(committed);
        },
        subtransaction_ended: |id, parent, committed| {
            queue::subtransaction_ended(id, parent, committed);
            intent::subtransaction_ended(id, parent, committed);
        },
    });
}

/// A key for a record that is to be made.
pub fn new_sys_id() -> SysId {
    let mut bytes = [0; 16];
    if let Err(e) = getrandom::fill(&mut bytes) {
        raise(error(Sql::ERRCODE_SYSTEM_ERROR, format!("could not make a sys_id: {e}")));
    }
    SysId::from_random(bytes)
}
