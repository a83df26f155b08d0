//! Writes that wait for the end of their transaction (`servicenow_fdw.push = 'commit'`): ROLLBACK, also to a savepoint, has
//! them never sent, and what the instance refuses makes COMMIT fail.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use servicenow::value::SysId;

use super::batch::{Batch, batches};
use super::order::Done;
use super::{Item, Progress, Pusher, Task};
use crate::error::{error, raise};
use crate::pg;
use crate::pg::table::Triggers;
use crate::setting;

/// An item that waits.
pub struct Waiting {
    /// Of which statement it is.
    pub command: u32,
    /// The foreign table.
    pub relation: pg_sys::Oid,
    /// Whose login signs it.
    pub role: pg_sys::Oid,
    /// What is to be done.
    pub item: Item,
}

/// What waits, in the order of the statements.
#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// The memory it takes, in bytes.
    taken: usize,
    /// The subtransactions under way that have put something here, and where that begins: what comes behind is theirs or
    /// that of subtransactions within them.
    begins: Vec<(u32, usize)>,
    /// How the tables are called: when they have been dropped nobody else knows.
    names: HashMap<pg_sys::Oid, String>,
}

thread_local! {
    static QUEUE: RefCell<Queue> = RefCell::default();
}

impl Queue {
    fn put(&mut self, subtransaction: u32, waiting: Waiting) {
        if self.begins.last().is_none_or(|(id, _)| *id != subtransaction) {
            self.begins.push((subtransaction, self.waiting.len()));
        }
        self.taken += waiting.item.memory();
        self.waiting.push(waiting);
    }

    /// Takes everything out.
    fn take(&mut self) -> Vec<Waiting> {
        (self.taken, self.begins) = (0, Vec::new());
        std::mem::take(&mut self.waiting)
    }

    fn subtransaction_ended(&mut self, id: u32, parent: u32, committed: bool) {
        let Some((_, begin)) = self.begins.pop_if(|(last, _)| *last == id) else { return };
        if !committed {
            let gone = self.waiting.drain(begin..);
            self.taken -= gone.map(|waiting| waiting.item.memory()).sum::<usize>();
        } else if self.begins.last().is_none_or(|(last, _)| *last != parent) {
            self.begins.push((parent, begin));
        }
    }
}

/// Has an item for a foreign table carried out, as a role, when the transaction is committed.
pub fn put(relation: pg_sys::Oid, role: pg_sys::Oid, item: Item) {
    super::watch();
    if QUEUE.with_borrow(|queue| queue.taken) + item.memory() > setting::push_memory() {
        raise(
            error(Sql::ERRCODE_PROGRAM_LIMIT_EXCEEDED, "too many writes to ServiceNow wait for COMMIT")
                .set_detail(format!(
                    "They may take {} of memory (servicenow_fdw.push_memory).",
                    setting::push_memory_text()
                ))
                .set_hint("Commit more often, or have each statement send its own (servicenow_fdw.push)."),
        );
    }
    pg::xact::forbid_prepare();
    let subtransaction = pg::xact::subtransaction_id();
    let command = pg::xact::command_id();
    if !QUEUE.with_borrow(|queue| queue.names.contains_key(&relation)) {
        let name = pg::catalog::relation_name(relation).unwrap_or_default();
        QUEUE.with_borrow_mut(|queue| queue.names.insert(relation, name));
    }
    let waiting = Waiting { command, relation, role, item };
    QUEUE.with_borrow_mut(|queue| queue.put(subtransaction, waiting));
}

/// Whether anything waits.
pub fn is_waiting() -> bool {
    QUEUE.with_borrow(|queue| !queue.waiting.is_empty())
}

/// Refuses to alter or drop a foreign table for whose records writes wait, as Postgres does for tables with pending trigger
/// events (`CheckTableNotInUse`): they could not be sent any more, or not to the columns they are for.
pub fn refuse_if_in_use(relation: pg_sys::Oid, command: &str) {
    let name = QUEUE.with_borrow(|queue| {
        let is_in_use = queue.waiting.iter().any(|waiting| waiting.relation == relation);
        is_in_use.then(|| queue.names.get(&relation).cloned().unwrap_or_default())
    });
    if let Some(name) = name {
        raise(
            error(
                Sql::ERRCODE_OBJECT_IN_USE,
                format!("cannot {command} \"{name}\" because it has pending writes to ServiceNow"),
            )
            .set_hint("They are sent by COMMIT (servicenow_fdw.push); end the transaction first."),
        );
    }
}

/// The transaction is about to be committed: sends everything, and what deferred triggers want to have sent because of it.
pub fn before_commit() {
    if is_waiting() {
        if pg::xact::is_read_only() {
            raise(
                error(
                    Sql::ERRCODE_READ_ONLY_SQL_TRANSACTION,
                    "cannot send writes to ServiceNow in a read-only transaction",
                )
                .set_detail(
                    "The transaction was made read-only while writes waited for COMMIT; nothing was sent.",
                ),
            );
        }
        pg::xact::within_statement_timeout(|| {
            let mut progress = Progress::of("transaction");
            let mut renamed = HashMap::new();
            while is_waiting() {
                let batches = batches(join(QUEUE.with_borrow_mut(Queue::take)));
                pg::xact::next_command();
                pg::xact::with_latest_snapshot(|| send(batches, &mut progress, &mut renamed));
                pg::xact::fire_deferred_triggers();
            }
        });
    }
}

fn send(batches: Vec<Batch>, progress: &mut Progress, renamed: &mut HashMap<SysId, SysId>) {
    let (mut sent, mut passed_over) = (HashSet::new(), HashSet::new());
    for Batch { relation, role, mut items } in batches {
        for item in &mut items {
            item.follow(renamed);
            // Its version is our own work by now.
            if !sent.insert((relation, item.id.clone())) {
                item.cached = None;
            }
        }
        let mut pusher = Pusher::new(relation, role, Triggers::Own).having(progress.clone());
        let doubtful =
            items.iter().map(|item| &item.id).filter(|id| passed_over.contains(&(relation, (*id).clone())));
        let doubtful: HashSet<SysId> = doubtful.cloned().collect();
        if !doubtful.is_empty() {
            // The row was there for this transaction alone. It may be another record, by whose key this one was not made.
            let there = pusher.which_are_there(doubtful.iter().cloned().collect());
            items.retain(|item| !doubtful.contains(&item.id) || there.contains(&item.id));
        }
        let may_be_there: Vec<SysId> =
            items.iter().filter(|item| item.task.is_or_nothing()).map(|item| item.id.clone()).collect();
        let written = pusher.send(items);
        for (id, _) in may_be_there.into_iter().zip(written).filter(|(_, written)| written.is_none()) {
            pusher.take_back(&id);
            passed_over.insert((relation, id));
        }
        renamed.extend(pusher.take_renamed());
        *progress = pusher.close();
        pg::xact::next_command(); // which may be about the same records
    }
}

/// The transaction is over.
pub fn forget() {
    QUEUE.take(); // with its memory
}

/// A subtransaction is over.
pub fn subtransaction_ended(id: u32, parent: u32, committed: bool) {
    QUEUE.with_borrow_mut(|queue| queue.subtransaction_ended(id, parent, committed));
}

/// Makes one write of several writes to the same record, where the instance would be left the same.
fn join(queue: Vec<Waiting>) -> Vec<Waiting> {
    let mut joined: Vec<Option<Waiting>> = Vec::new();
    let mut last: HashMap<(pg_sys::Oid, pg_sys::Oid, SysId), usize> = Default::default();
    let mut done = Done::default();
    for waiting in queue {
        let deletes = matches!(waiting.item.task, Task::Delete);
        let key = (waiting.relation, waiting.role, waiting.item.id.clone());
        let before = last.get(&key).copied().and_then(|place| {
            let may_join = |before: &mut Waiting| {
                fits(before, &waiting)
                    && match deletes {
                        // It goes last: others may have to let go of the record first.
                        true => !done.is_relied_on_after(place, &before.item),
                        false => !done.is_needed_after(place, &waiting.item),
                    }
            };
            joined[place].take_if(may_join).map(|before| (place, before))
        });
        let (place, waiting) = match before {
            Some((place, before)) if !deletes => {
                done.note(place, &waiting.item);
                joined[place] = merge(before, waiting);
                continue;
            }
            Some((_, before)) => (joined.len(), merge(before, waiting)),
            None => (joined.len(), Some(waiting)),
        };
        if let Some(waiting) = &waiting {
            done.note(place, &waiting.item);
        }
        last.insert(key, place);
        joined.push(waiting);
    }
    joined.into_iter().flatten().collect()
}

/// Whether two writes to a record can be made one.
fn fits(before: &Waiting, after: &Waiting) -> bool {
    let appends = |task: &Task| task.sent().iter().any(|sent| sent.appends);
    match (&before.item.task, &after.item.task) {
        // What was deleted and is made anew is another record.
        (Task::Delete, _) | (_, Task::Insert { .. }) => false,
        // What comes after it is about the record that is there, if it was not made.
        (before, _) if before.is_or_nothing() => false,
        (before, Task::Delete) => !appends(before),
        (before, after) => !appends(before) && !appends(after),
    }
}

/// One write in place of two; `None` if together they do nothing.
fn merge(before: Waiting, after: Waiting) -> Option<Waiting> {
    let Waiting { item: Item { id, cached, task }, .. } = before;
    let task = match (task, after.item.task) {
        (Task::Insert { .. }, Task::Delete) => return None,
        (_, Task::Delete) => Task::Delete,
        (task, Task::Confirm { .. }) => task,
        (Task::Insert { is_given, or_nothing, mut sent }, Task::Update { sent: later }) => {
            super::draft::set(&mut sent, later);
            Task::Insert { is_given, or_nothing, sent }
        }
        (Task::Update { mut sent }, Task::Update { sent: later }) => {
            super::draft::set(&mut sent, later);
            Task::Update { sent }
        }
        (_, task) => task,
    };
    Some(Waiting { item: Item { id, cached, task }, ..after })
}
