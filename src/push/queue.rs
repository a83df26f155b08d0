//! Writes that wait for the end of their transaction (`servicenow_fdw.push = 'commit'`): ROLLBACK, also to a savepoint, has
//! them never sent, and what the instance refuses makes COMMIT fail.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::iter::Peekable;

use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use servicenow::value::SysId;

use super::order::Done;
use super::{Item, Progress, Pusher, Task};
use crate::error::{error, raise};
use crate::pg;
use crate::pg::table::Triggers;
use crate::setting;

/// Items sent at a time.
const AT_A_TIME: usize = 500;

/// An item that waits.
struct Waiting {
    subtransaction: u32,
    /// Of which statement it is.
    command: u32,
    relation: pg_sys::Oid,
    role: pg_sys::Oid,
    item: Item,
}

thread_local! {
    static QUEUE: RefCell<Vec<Waiting>> = const { RefCell::new(Vec::new()) };
    /// The memory they take, in bytes.
    static TAKEN: Cell<usize> = const { Cell::new(0) };
    /// How the tables are called: when they have been dropped nobody else knows.
    static NAMES: RefCell<HashMap<pg_sys::Oid, String>> = RefCell::default();
}

/// Has an item for a foreign table carried out, as a role, when the transaction is committed.
pub fn put(relation: pg_sys::Oid, role: pg_sys::Oid, item: Item) {
    super::watch();
    TAKEN.set(TAKEN.get() + item.memory());
    if TAKEN.get() > setting::push_memory() {
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
    NAMES.with_borrow_mut(|names| {
        let name = || pg::catalog::relation_name(relation).unwrap_or_default();
        names.entry(relation).or_insert_with(name);
    });
    QUEUE.with_borrow_mut(|queue| queue.push(Waiting { subtransaction, command, relation, role, item }));
}

/// Whether anything waits.
pub fn is_waiting() -> bool {
    QUEUE.with_borrow(|queue| !queue.is_empty())
}

/// Refuses to alter or drop a foreign table for whose records writes wait, as Postgres does for tables with pending trigger
/// events (`CheckTableNotInUse`): they could not be sent any more, or not to the columns they are for.
pub fn refuse_if_in_use(relation: pg_sys::Oid, command: &str) {
    if QUEUE.with_borrow(|queue| queue.iter().any(|waiting| waiting.relation == relation)) {
        let name = NAMES.with_borrow(|names| names.get(&relation).cloned().unwrap_or_default());
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
        pg::xact::within_statement_timeout(|| {
            let mut progress = Progress::of("transaction");
            while is_waiting() {
                TAKEN.set(0);
                let waiting = join(QUEUE.take()).into_iter().peekable();
                pg::xact::next_command();
                pg::xact::with_latest_snapshot(|| send(waiting, &mut progress));
                pg::xact::fire_deferred_triggers();
            }
        });
    }
}

fn send(mut waiting: Peekable<impl Iterator<Item = Waiting>>, progress: &mut Progress) {
    let mut sent = HashSet::new();
    while let Some(first) = waiting.next() {
        let (relation, role) = (first.relation, first.role);
        let mut ids = HashSet::from([first.item.id.clone()]);
        let mut command = first.command;
        let mut items = vec![first.item];
        // What statements before the last one have done; of one statement any row may come first.
        let (mut done, mut noted) = (Done::default(), 0);
        while items.len() < AT_A_TIME
            && let Some(next) = waiting.next_if(|next| {
                if next.command != command {
                    command = next.command;
                    items[noted..].iter().for_each(|item| done.note(1, item));
                    noted = items.len();
                }
                // Those that go together go in any order: what is deleted may have to be gone before others come.
                (next.relation, next.role) == (relation, role)
                    && next.item.task.op() == items[0].task.op()
                    && or_nothing(&next.item) == or_nothing(&items[0])
                    && !done.is_needed_after(0, &next.item)
                    && ids.insert(next.item.id.clone())
            })
        {
            items.push(next.item);
        }
        for item in &mut items {
            // Its version is our own work by now.
            if !sent.insert((relation, item.id.clone())) {
                item.cached = None;
            }
        }
        let mut pusher = Pusher::new(relation, role, Triggers::Own).having(progress.clone());
        let may_be_there: Vec<SysId> =
            items.iter().filter(|item| or_nothing(item)).map(|item| item.id.clone()).collect();
        let written = pusher.send(items);
        for (id, _) in may_be_there.iter().zip(written).filter(|(_, written)| written.is_none()) {
            pusher.take_back(id);
        }
        *progress = pusher.close();
        pg::xact::next_command(); // which may be about the same records
    }
}

fn or_nothing(item: &Item) -> bool {
    matches!(item.task, Task::Insert { or_nothing: true, .. })
}

/// The transaction is over.
pub fn forget() {
    QUEUE.take(); // with its memory
    TAKEN.set(0);
    NAMES.with_borrow_mut(HashMap::clear);
}

/// A subtransaction is over.
pub fn subtransaction_ended(id: u32, parent: u32, committed: bool) {
    QUEUE.with_borrow_mut(|queue| {
        if committed {
            for waiting in queue.iter_mut().filter(|waiting| waiting.subtransaction == id) {
                waiting.subtransaction = parent;
            }
        } else {
            queue.retain(|waiting| waiting.subtransaction != id);
            TAKEN.set(queue.iter().map(|waiting| waiting.item.memory()).sum());
        }
    });
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
