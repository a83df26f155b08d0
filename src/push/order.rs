//! What has to be done before what, among writes that wait for COMMIT.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use servicenow::value::SysId;

use super::draft::Sent;
use super::{Item, Task};

/// The length of `sys_id`s; some that the vendor has chosen are shorter.
const KEY_LENGTH: usize = 32;

/// What is done at which place of a row of writes, as far as others may depend on it.
#[derive(Default)]
pub struct Done {
    /// Records that were written, by whomever and through whichever table.
    written: HashMap<SysId, usize>,
    /// What may be the key of a record that something refers to.
    referred_to: HashMap<SysId, usize>,
    /// Values that were given up and taken: there may be a unique key on them.
    freed: HashMap<Value, usize>,
    taken: HashMap<Value, usize>,
    deleted: Option<usize>,
}

/// The hash of a field with its value. Two that are alike are in each other's way, which costs no more than a call.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Value(u64);

impl Value {
    fn new(field: &str, value: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (field, value).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The values that a record has no more afterwards.
fn given_up(task: &Task) -> impl Iterator<Item = Value> + '_ {
    let sent = if let Task::Update { sent } = task { sent.as_slice() } else { &[] };
    sent.iter().flat_map(|sent| {
        let others =
            sent.before.iter().flatten().filter(|before| **before != sent.value && !before.is_empty());
        others.map(|before| Value::new(&sent.field, before))
    })
}

/// What a value may refer to: a record, or several ones.
fn keys(value: &str) -> impl Iterator<Item = SysId> + '_ {
    let may_be_key = |text: &&str| (1..=KEY_LENGTH).contains(&text.len());
    value.split(',').map(str::trim).filter(may_be_key).map(SysId::new)
}

fn last<K: Eq + Hash>(places: &mut HashMap<K, usize>, key: K, place: usize) {
    let known = places.entry(key).or_insert(place);
    *known = place.max(*known);
}

impl Done {
    /// Notes what is done at a place.
    pub fn note(&mut self, place: usize, item: &Item) {
        last(&mut self.written, item.id.clone(), place);
        if matches!(item.task, Task::Delete) {
            self.deleted = self.deleted.max(Some(place));
        }
        for sent in item.task.sent() {
            last(&mut self.taken, Value::new(&sent.field, &sent.value), place);
            for id in keys(&sent.value) {
                last(&mut self.referred_to, id, place);
            }
        }
        for value in given_up(&item.task) {
            last(&mut self.freed, value, place);
        }
    }

    /// Whether a write needs something that is done after a place, so that it cannot be done there: a value that is free, a
    /// record to which it refers as that was, others that refer to it as it was (a rule of the instance may look there).
    pub fn is_needed_after(&self, place: usize, item: &Item) -> bool {
        let needs = |sent: &Sent| {
            is_after(place, self.freed.get(&Value::new(&sent.field, &sent.value)))
                || keys(&sent.value).any(|id| is_after(place, self.written.get(&id)))
        };
        is_after(place, self.written.get(&item.id))
            || is_after(place, self.referred_to.get(&item.id))
            || is_after(place, self.deleted.as_ref())
            || item.task.sent().iter().any(needs)
    }

    /// Whether something after a place relies on what a write does there, so that it cannot be done later.
    pub fn is_relied_on_after(&self, place: usize, item: &Item) -> bool {
        given_up(&item.task).any(|value| is_after(place, self.taken.get(&value)))
    }
}

fn is_after(place: usize, other: Option<&usize>) -> bool {
    other.is_some_and(|other| *other > place)
}
