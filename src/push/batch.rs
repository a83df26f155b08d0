//! In which calls writes that wait for COMMIT are sent: few ones, and nothing before what it depends on.

use std::collections::HashMap;

use pgrx::pg_sys;
use servicenow::push::intent::Op;
use servicenow::value::SysId;

use super::order::Done;
use super::queue::Waiting;
use super::{Item, Task};

/// Items sent at a time.
const AT_A_TIME: usize = 500;

/// Writes that are sent together; those go in any order.
pub struct Batch {
    /// The foreign table.
    pub relation: pg_sys::Oid,
    /// Whose login signs them.
    pub role: pg_sys::Oid,
    /// Of distinct records, and all of one kind.
    pub items: Vec<Item>,
}

/// What the writes of a batch have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    relation: pg_sys::Oid,
    role: pg_sys::Oid,
    op: Op,
    or_nothing: bool,
}

impl Kind {
    fn of(write: &Waiting) -> Self {
        let Waiting { relation, role, item, .. } = write;
        let or_nothing = item.task.is_or_nothing();
        Self { relation: *relation, role: *role, op: item.task.op(), or_nothing }
    }
}

/// Puts writes, which come in their order, into batches, which are to be sent in theirs. A write goes with the last batch of
/// its kind, also if others have come in between, unless it depends on one of those; of one statement any row may come first.
pub fn batches(writes: Vec<Waiting>) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut last: HashMap<Kind, usize> = HashMap::new();
    // In which batch a record is written last.
    let mut written: HashMap<SysId, usize> = HashMap::new();
    // What earlier statements have done: those of the first batch at place 1.
    let (mut done, mut command) = (Done::default(), None);
    let mut not_done: Vec<(usize, usize)> = Vec::new();
    for write in writes {
        if command.replace(write.command) != Some(write.command) {
            for (batch, place) in not_done.drain(..) {
                done.note(batch + 1, &batches[batch].items[place]);
            }
        }
        let may_take = |batch: &usize| {
            batches[*batch].items.len() < AT_A_TIME
                && written.get(&write.item.id).is_none_or(|last| last < batch)
                && (batch + 1 == batches.len() || !is_late(&write.item.task))
                && !done.is_needed_after(*batch, &write.item)
        };
        let kind = Kind::of(&write);
        let batch = last.get(&kind).copied().filter(may_take).unwrap_or_else(|| {
            batches.push(Batch { relation: write.relation, role: write.role, items: Vec::new() });
            batches.len() - 1
        });
        last.insert(kind, batch);
        written.insert(write.item.id.clone(), batch);
        not_done.push((batch, batches[batch].items.len()));
        batches[batch].items.push(write.item);
    }
    batches
}

/// Whether what a write depends on is not to be seen from it: what is deleted may have to be let go of before, and what comes
/// of a look at a record is not known yet.
fn is_late(task: &Task) -> bool {
    matches!(task, Task::Delete | Task::Confirm { .. })
}
