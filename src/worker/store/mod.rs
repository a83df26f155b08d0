//! The store behind the mirrors: requests from Tokio threads, carried out by the main thread.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use servicenow::capture::event::{self, Event};
use servicenow::dictionary::TableDef;
use servicenow::sync::Stop;
use servicenow::sync::capture::{News, Noted, Rules};
use servicenow::sync::compare::{Comparison, Difference, Shown};
use servicenow::sync::metadata::MetadataStore;
use servicenow::sync::range::Range;
use servicenow::sync::store::{
    DeletesRead, Found, MetadataRead, RECHECKED_AT_A_TIME, Relabelling, Step, Store, StoreError,
    StoredRecords,
};
use servicenow::value::SysId;
use tokio::sync::{mpsc, oneshot};

use crate::cache::apply;
use crate::capture::{new_key, new_salt};
use crate::catalog::{self, Mirror, Recheck, Told, Which, timestamp, write};
use crate::failpoint;
use crate::pg;
use crate::pg::io::Bell;
use crate::pg::xact::Caught;
use crate::worker::recovery;
use step::{current_cache, current_mirror};

pub use step::note_failure;

pub mod capture;
mod latest;
mod metadata;
mod step;

/// The pause before a request is repeated that met somebody's lock.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// How long to go on with that before it is said. What then fails is tried again as a whole.
pub const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// A table as its mirror knows it: what was mirrored when the mirror began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    /// The foreign table.
    pub relation: pg_sys::Oid,
    /// See `sync_table.generation`.
    pub generation: i64,
}

/// Something to be done by the main thread.
pub struct Request {
    server: pg_sys::Oid,
    table: Option<Table>,
    work: Work,
    reply: oneshot::Sender<Result<Done, Undone>>,
}

enum Work {
    Apply(Step),
    /// A piece of it; see [`label::relabel`].
    Relabel(Relabelling, Option<i64>),
    Compare(Vec<Shown>),
    CountByPrefix(Range, usize),
    Hidden,
    Find(Vec<SysId>),
    FindIn(Vec<SysId>),
    ToRecheck,
    DeletesSince,
    NoteDeletes(Result<DeletesRead, Stop>),
    MetadataSince,
    Describe(Vec<TableDef>),
    NoteMetadata(Result<MetadataRead<Table>, Stop>),
    NoteEvents(Vec<Event>),
    ToLookUp,
    NoteCapture(Box<News>),
    NoteRules(Rules),
    RenewSubscription,
}

impl Work {
    /// Its name in failpoints.
    fn name(&self) -> &'static str {
        match self {
            Work::Apply(step) => match step {
                Step::Described { .. } => "described",
                Step::Begin { .. } => "begin",
                Step::Newest(_) => "newest",
                Step::Filled { .. } => "filled",
                Step::RangeDone { .. } => "range_done",
                Step::Complete { .. } => "complete",
                Step::Changed(_) => "changed",
                Step::Rechecked { .. } => "rechecked",
                Step::Doubted(_) => "doubted",
                Step::DoubtedWhere(_) => "doubted_where",
                Step::Relabelled(_) => "relabelled", // goes another way
                Step::Reread { .. } => "reread",
                Step::PolledUpTo { .. } => "polled_up_to",
                Step::Polled { .. } => "polled",
                Step::Hidden { .. } => "hidden",
                Step::Reconciled { .. } => "reconciled",
                Step::Scrubbed { .. } => "scrubbed",
                Step::Failed(_) => "failed",
            },
            Work::Relabel(..) => "relabelled",
            Work::Compare(_) => "compare",
            Work::CountByPrefix(..) => "count_by_prefix",
            Work::Hidden => "hidden_ranges",
            Work::Find(_) => "find",
            Work::FindIn(_) => "find_in",
            Work::ToRecheck => "to_recheck",
            Work::DeletesSince => "deletes_since",
            Work::NoteDeletes(_) => "deletes",
            Work::MetadataSince => "metadata_since",
            Work::Describe(_) => "describe",
            Work::NoteMetadata(_) => "metadata",
            Work::NoteEvents(_) => "events",
            Work::ToLookUp => "to_look_up",
            Work::NoteCapture(_) => "capture",
            Work::NoteRules(_) => "rules",
            Work::RenewSubscription => "renew_subscription",
        }
    }
}

enum Done {
    Applied,
    /// There is more to be done, from this position on.
    Reached(Option<i64>),
    Compared(Vec<Difference>),
    Counted(Vec<(String, u64)>),
    Hidden(Vec<(Range, u64)>),
    Found(Found<Table>),
    Records(StoredRecords),
    Since(Option<i64>),
    Echoes(u64),
    ToLookUp(Noted<Table>),
    Missed(u64),
    Noted,
}

enum Undone {
    /// Somebody holds a lock, as the text says; the work comes back.
    Busy(Work, String),
    /// What is left to be done.
    Unfinished(Work),
    Store(StoreError),
}

/// The mirrors' end: sends requests and waits for the answers.
pub struct PgStore {
    server: pg_sys::Oid,
    requests: mpsc::Sender<Request>,
    bell: Bell,
}

impl PgStore {
    /// A store of one server's tables.
    pub fn new(server: pg_sys::Oid, requests: mpsc::Sender<Request>, bell: Bell) -> Self {
        Self { server, requests, bell }
    }

    async fn ask(&self, table: Option<Table>, mut work: Work) -> Result<Done, StoreError> {
        let mut began = Instant::now();
        loop {
            let (reply, answer) = oneshot::channel();
            let request = Request { server: self.server, table, work, reply };
            // Without a main thread the process is about to end.
            self.requests.send(request).await.map_err(|_| StoreError::Stale)?;
            self.bell.ring();
            match answer.await.map_err(|_| StoreError::Stale)? {
                Ok(done) => return Ok(done),
                Err(Undone::Store(e)) => return Err(e),
                Err(Undone::Unfinished(rest)) => {
                    work = rest;
                    began = Instant::now();
                }
                Err(Undone::Busy(_, why)) if began.elapsed() > BUSY_LIMIT => {
                    return Err(StoreError::Failed(format!("somebody holds a lock on the cache: {why}")));
                }
                Err(Undone::Busy(again, _)) => {
                    work = again;
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
            }
        }
    }
}

impl Store for PgStore {
    type Table = Table;

    async fn apply(&self, table: Table, step: Step) -> Result<(), StoreError> {
        let work = match step {
            Step::Relabelled(relabelling) => Work::Relabel(relabelling, None),
            step => Work::Apply(step),
        };
        self.ask(Some(table), work).await.map(|_| ())
    }

    async fn compare(&self, table: Table, shown: Vec<Shown>) -> Result<Vec<Difference>, StoreError> {
        match self.ask(Some(table), Work::Compare(shown)).await? {
            Done::Compared(differences) => Ok(differences),
            _ => Err(StoreError::Stale),
        }
    }

    async fn count_by_prefix(
        &self,
        table: Table,
        range: Range,
        length: usize,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        match self.ask(Some(table), Work::CountByPrefix(range, length)).await? {
            Done::Counted(counts) => Ok(counts),
            _ => Err(StoreError::Stale),
        }
    }

    async fn hidden(&self, table: Table) -> Result<Vec<(Range, u64)>, StoreError> {
        match self.ask(Some(table), Work::Hidden).await? {
            Done::Hidden(hidden) => Ok(hidden),
            _ => Err(StoreError::Stale),
        }
    }

    async fn find(&self, ids: Vec<SysId>) -> Result<Found<Table>, StoreError> {
        match self.ask(None, Work::Find(ids)).await? {
            Done::Found(found) => Ok(found),
            _ => Err(StoreError::Stale),
        }
    }

    async fn find_in(&self, table: Table, ids: Vec<SysId>) -> Result<StoredRecords, StoreError> {
        match self.ask(Some(table), Work::FindIn(ids)).await? {
            Done::Records(records) => Ok(records),
            _ => Err(StoreError::Stale),
        }
    }

    async fn to_recheck(&self, table: Table) -> Result<StoredRecords, StoreError> {
        match self.ask(Some(table), Work::ToRecheck).await? {
            Done::Records(records) => Ok(records),
            _ => Err(StoreError::Stale),
        }
    }

    async fn deletes_since(&self) -> Result<Option<i64>, StoreError> {
        match self.ask(None, Work::DeletesSince).await? {
            Done::Since(since) => Ok(since),
            _ => Err(StoreError::Stale),
        }
    }

    async fn note_deletes(&self, outcome: Result<DeletesRead, Stop>) -> Result<(), StoreError> {
        self.ask(None, Work::NoteDeletes(outcome)).await.map(|_| ())
    }
}

impl MetadataStore for PgStore {
    async fn metadata_since(&self) -> Result<Option<i64>, StoreError> {
        match self.ask(None, Work::MetadataSince).await? {
            Done::Since(since) => Ok(since),
            _ => Err(StoreError::Stale),
        }
    }

    async fn describe(&self, defs: Vec<TableDef>) -> Result<(), StoreError> {
        self.ask(None, Work::Describe(defs)).await.map(|_| ())
    }

    async fn note_metadata(&self, outcome: Result<MetadataRead<Table>, Stop>) -> Result<(), StoreError> {
        self.ask(None, Work::NoteMetadata(outcome)).await.map(|_| ())
    }
}

/// Carries out a request in a transaction of its own and answers it.
pub fn carry_out(request: Request) {
    let Request { server, table, work, reply } = request;
    if reply.is_closed() {
        return; // the mirror was stopped meanwhile
    }
    let name = work.name();
    failpoint::reach(format_args!("worker.{name}.before"));
    let attempt = |careful| {
        pg::xact::transaction(|| {
            let done = execute(server, table, &work, careful);
            failpoint::reach(format_args!("worker.{name}.commit"));
            done
        })
    };
    let mut outcome = attempt(false);
    if matches!(&outcome, Err(caught) if caught.is_conflict() || caught.is_duplicate()) {
        outcome = attempt(true);
    }
    failpoint::reach(format_args!("worker.{name}.after"));
    if matches!(&outcome, Ok(Ok(Done::Applied)))
        && let (Work::Apply(Step::Complete { .. }), Some(table)) = (&work, table)
    {
        analyze(table);
    }
    let answer = match outcome {
        Ok(Ok(Done::Reached(position))) => match work {
            Work::Relabel(relabelling, _) => Err(Undone::Unfinished(Work::Relabel(relabelling, position))),
            work => Err(Undone::Unfinished(work)),
        },
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(Undone::Store(e)),
        Err(caught) if caught.is_conflict() || caught.sqlstate == Sql::ERRCODE_QUERY_CANCELED => {
            Err(Undone::Busy(work, caught.message))
        }
        Err(caught) => Err(Undone::Store(StoreError::Failed(describe(&caught, table, &work)))),
    };
    let _mirror_gone = reply.send(answer);
}

/// Gives the planner statistics of a cache that was just filled; autovacuum would take a minute to notice. If
/// somebody is in the way, it is left to autovacuum.
fn analyze(table: Table) {
    let _left_to_autovacuum = pg::xact::transaction(|| {
        if let Some(mirror) = catalog::mirror(table.relation) {
            write(&format!("ANALYZE {}", catalog::qualified(mirror.cache)), &[]);
        }
    });
}

/// What is said of an ERROR. Those about data quote them, and row values are not shown: column and record are.
fn describe(caught: &Caught, table: Option<Table>, work: &Work) -> String {
    if !caught.is_about_data() {
        return caught.message.clone();
    }
    let rows = match work {
        Work::Apply(Step::Filled { rows, .. } | Step::Changed(rows) | Step::Reread { rows, .. }) => {
            Some(rows)
        }
        Work::Apply(Step::Rechecked { present, .. }) => Some(present),
        _ => None,
    };
    let found = table.zip(rows).and_then(|(table, rows)| {
        let look = || catalog::mirror(table.relation).and_then(|mirror| apply::find_misfit(&mirror, rows));
        pg::xact::transaction(look).ok().flatten()
    });
    found.unwrap_or_else(|| "a value does not fit the type of its column".to_owned())
}

fn execute(
    server: pg_sys::Oid,
    table: Option<Table>,
    work: &Work,
    careful: bool,
) -> Result<Done, StoreError> {
    match (work, table) {
        (Work::Apply(step), Some(table)) => step::apply(table, step, careful).map(|()| Done::Applied),
        (Work::Relabel(relabelling, position), Some(table)) => step::relabel(table, relabelling, *position),
        (Work::Compare(shown), Some(table)) => {
            let (mirror, _) = current_cache(table)?;
            let range = Range::spanning(shown.iter().map(|shown| &shown.range));
            let mut comparison = Comparison::new(shown.clone());
            apply::each_version(&mirror, &range, |id, version| comparison.stored(id, version));
            Ok(Done::Compared(comparison.finish()))
        }
        (Work::CountByPrefix(range, length), Some(table)) => {
            let (mirror, _) = current_cache(table)?;
            Ok(Done::Counted(apply::count_by_prefix(&mirror, range, *length)))
        }
        (Work::Hidden, Some(table)) => {
            current_mirror(table)?;
            Ok(Done::Hidden(catalog::hidden(table.relation)))
        }
        (Work::ToRecheck, Some(table)) => {
            let (mirror, _) = current_cache(table)?;
            Ok(Done::Records(to_recheck(&mirror, Which::All).records))
        }
        (Work::DeletesSince, _) => Ok(Done::Since(catalog::deletes_since(server))),
        (Work::MetadataSince, _) => Ok(Done::Since(catalog::metadata_since(server))),
        (Work::Describe(defs), _) => {
            metadata::describe_all(server, defs);
            Ok(Done::Noted)
        }
        (Work::NoteMetadata(outcome), _) => {
            metadata::note(server, outcome);
            Ok(Done::Noted)
        }
        (Work::NoteEvents(events), _) => {
            // The instance forgets them when they are noted.
            pg::xact::commit_for_good();
            Ok(Done::Echoes(capture::note(server, events)))
        }
        (Work::ToLookUp, _) => Ok(Done::ToLookUp(capture::to_look_up(server))),
        (Work::NoteCapture(news), _) => Ok(Done::Missed(catalog::note_capture(server, news))),
        (Work::NoteRules(rules), _) => {
            catalog::note_rules(server, rules);
            Ok(Done::Noted)
        }
        (Work::RenewSubscription, _) => {
            catalog::renew_subscription(server, new_salt(), &new_key(), catalog::SHARED);
            catalog::keep_work_changed();
            Ok(Done::Noted)
        }
        (Work::FindIn(ids), Some(table)) => {
            let (mirror, _) = current_cache(table)?;
            let there = apply::versions(&mirror, ids.iter().map(SysId::as_str));
            Ok(Done::Records(there.into_iter().map(|(id, version)| (SysId::new(id), version)).collect()))
        }
        (Work::Find(ids), _) => Ok(Done::Found(find(server, ids))),
        (Work::NoteDeletes(outcome), _) => {
            note_deletes(server, outcome);
            Ok(Done::Noted)
        }
        (
            Work::Apply(_)
            | Work::Relabel(..)
            | Work::Compare(_)
            | Work::CountByPrefix(..)
            | Work::Hidden
            | Work::FindIn(_)
            | Work::ToRecheck,
            None,
        ) => Err(StoreError::Stale),
    }
}

/// Records that have to be looked up.
struct ToRecheck {
    /// Some of those that nobody is writing.
    records: StoredRecords,
    /// There are others.
    is_more: bool,
}

/// Whether anything has to be looked up of a table that can be now.
pub fn is_to_recheck(relation: pg_sys::Oid) -> bool {
    catalog::mirror(relation).is_some_and(|mirror| {
        pg::catalog::try_lock(mirror.cache, pg_sys::RowExclusiveLock)
            && !to_recheck(&mirror, Which::All).records.is_empty()
    })
}

/// What has to be looked up of a table. Where all that is thought of at a time is being written, what comes behind has its turn.
fn to_recheck(mirror: &Mirror, which: Which) -> ToRecheck {
    let (mut after, mut is_more) = (String::new(), false);
    loop {
        let wanted = catalog::to_recheck(mirror.foreign_table, which, &after);
        let next =
            wanted.last().filter(|_| wanted.len() >= catalog::RECHECKS).map(|record| record.id.clone());
        let found = to_recheck_among(mirror, wanted);
        is_more |= found.is_more || next.is_some();
        match next {
            Some(next) if found.records.is_empty() => after = next,
            _ => return ToRecheck { records: found.records, is_more },
        }
    }
}

/// What has to be looked up of these records. Rows that have by now what the instance has told of need not be.
fn to_recheck_among(mirror: &Mirror, mut wanted: Vec<Recheck>) -> ToRecheck {
    let mut there = apply::versions(mirror, wanted.iter().map(|record| record.id.as_str()));
    let is_settled = |record: &Recheck| match (record.told, there.get(&record.id)) {
        (Some(Told::Gone), None) => true,
        (Some(Told::Version(told)), Some(stored)) => event::has(*stored, told),
        _ => false,
    };
    let settled: Vec<Recheck> = wanted.extract_if(.., |record| is_settled(record)).collect();
    if !settled.is_empty() {
        catalog::settled(mirror.foreign_table, settled.iter().map(|record| record.id.as_str()).collect());
    }
    let free = apply::lock_free(mirror, there.keys().map(String::as_str));
    // One that is not in the cache is looked up too, unless it is being added at this very moment.
    let missing = wanted.iter().map(|record| record.id.as_str()).filter(|id| !there.contains_key(*id));
    let missing: HashSet<&str> = missing.collect();
    let adding = match missing.is_empty() {
        true => HashSet::new(),
        false => recovery::under_way(mirror.foreign_table, &missing),
    };
    let is_being_added = |id: &str| adding.contains(id);
    let all = wanted.len();
    let is_free = |id: &String| free.contains(id) || (!there.contains_key(id) && !is_being_added(id));
    let ids: Vec<String> =
        wanted.into_iter().map(|record| record.id).filter(is_free).take(RECHECKED_AT_A_TIME).collect();
    let is_more = ids.len() < all;
    let version = |id: String| (there.remove(&id).unwrap_or_default(), id);
    let records = ids.into_iter().map(version).map(|(version, id)| (SysId::new(id), version)).collect();
    ToRecheck { records, is_more }
}

/// Which of these records the caches of a server have. A cache that somebody has locked is left out, and said
/// to be; one that is damaged is read again as a whole when it is repaired.
fn find(server: pg_sys::Oid, ids: &[SysId]) -> Found<Table> {
    let mut found = Found { records: Vec::new(), left_out: Vec::new() };
    for work in catalog::work().into_iter().filter(|work| work.server == server) {
        let table = Table { relation: work.foreign_table, generation: work.generation };
        let looked = pg::xact::subtransaction(|| {
            let Some(mirror) = catalog::mirror(work.foreign_table) else { return Some(HashMap::new()) };
            let is_free = pg::catalog::try_lock(mirror.cache, pg_sys::AccessShareLock);
            is_free.then(|| apply::versions(&mirror, ids.iter().map(SysId::as_str)))
        });
        match looked {
            Ok(None) => found.left_out.push(table),
            Ok(Some(there)) if !there.is_empty() => {
                found.records.push((table, there.into_iter().map(|(id, v)| (SysId::new(id), v)).collect()));
            }
            Ok(_) => {}
            Err(caught) if caught.is_conflict() => found.left_out.push(table),
            Err(_) => {}
        }
    }
    found
}

fn note_deletes(server: pg_sys::Oid, outcome: &Result<DeletesRead, Stop>) {
    match outcome {
        Ok(read) => {
            write(
                "UPDATE servicenow.sync_server
                 SET deletes_watermark = $2, last_deletes_at = $3, last_error = NULL, last_error_at = NULL
                 WHERE server = $1",
                &[server.into(), read.watermark.into(), timestamp(read.at).into()],
            );
            catalog::note_server_outcome(server, "deletions", None);
        }
        Err(stop) => {
            let text = format!("could not read deletions from sys_audit_delete: {stop}");
            catalog::note_server_outcome(server, "deletions", Some(&text));
            let news = write(
                "UPDATE servicenow.sync_server SET last_error = $2
                 WHERE server = $1 AND last_error IS DISTINCT FROM $2",
                &[server.into(), text.clone().into()],
            );
            write(
                "UPDATE servicenow.sync_server SET last_error_at = clock_timestamp() WHERE server = $1",
                &[server.into()],
            );
            if news > 0 {
                let name = pg::catalog::server(server).name;
                pg::worker::log(&format!("server \"{name}\": {text}"));
            }
        }
    }
}
