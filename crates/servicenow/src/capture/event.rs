//! What rules tell: that a record has changed.

use std::collections::HashMap;

use crate::page::{Order, Version};
use crate::value::{SysId, TableName};

/// What has happened to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It was made or changed.
    Write,
    /// It was deleted.
    Delete,
}

impl Operation {
    /// As `GlideRecord.operation()` has it. Anything unknown is taken for a change: the record is looked up anyway.
    pub fn parse(text: &str) -> Self {
        if text.eq_ignore_ascii_case("delete") { Operation::Delete } else { Operation::Write }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The table whose rule has told; the record may belong to a child of it.
    pub table: TableName,
    /// The record.
    pub id: SysId,
    /// What has happened.
    pub operation: Operation,
    /// The record's version after that, as far as told.
    pub version: Version,
    /// When the rule ran by the instance's clock, in milliseconds since 1970; 0 if it did not say.
    pub at: i64,
}

impl Event {
    /// Whether a stored version has what the event tells of. One that was deleted is satisfied by absence only.
    pub fn is_satisfied_by(&self, stored: Option<Version>) -> bool {
        match (self.operation, stored) {
            (Operation::Delete, None) => true,
            (Operation::Write, Some(stored)) => has(stored, self.version),
            (Operation::Delete, Some(_)) | (Operation::Write, None) => false,
        }
    }
}

/// Whether a stored version is at least as late as another one, which has to be known for that.
pub fn has(stored: Version, told: Version) -> bool {
    let known = |v: Version| v.updated_on.is_some() && v.mod_count.is_some();
    known(stored) && known(told) && stored.order(told) != Order::Unclear
}

/// Events with one per record and table left: a deletion if there was any, because the record may have been made anew
/// or not; else the latest version. In the order in which their records were first met.
pub fn coalesce(events: impl IntoIterator<Item = Event>) -> Vec<Event> {
    let mut kept: Vec<Event> = Vec::new();
    let mut places: HashMap<(TableName, SysId), usize> = HashMap::new();
    for event in events {
        let key = (event.table.clone(), event.id.clone());
        match places.get(&key) {
            None => {
                places.insert(key, kept.len());
                kept.push(event);
            }
            Some(place) => {
                let before = &mut kept[*place];
                let at = [before.at, event.at].into_iter().filter(|at| *at > 0).min().unwrap_or_default();
                let is_later = event.version.order(before.version) != Order::Unclear;
                let operation = match Operation::Delete {
                    delete if [before.operation, event.operation].contains(&delete) => delete,
                    _ => Operation::Write,
                };
                if is_later {
                    *before = event;
                }
                (before.at, before.operation) = (at, operation);
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(id: u8, operation: Operation, count: i64) -> Event {
        Event {
            table: TableName::new("incident").expect("a name"),
            id: SysId::new(id.to_string()),
            operation,
            version: Version { updated_on: Some(1_000 + count), mod_count: Some(count) },
            at: count,
        }
    }

    #[test]
    fn a_version_that_is_stored_satisfies() {
        let told = event(1, Operation::Write, 3);
        let stored = |count| Some(Version { updated_on: Some(1_000 + count), mod_count: Some(count) });
        assert!(told.is_satisfied_by(stored(3)) && told.is_satisfied_by(stored(4)));
        assert!(!told.is_satisfied_by(stored(2)) && !told.is_satisfied_by(None));
        assert!(!told.is_satisfied_by(Some(Version::default())), "nothing is known of what is stored");
        let unknown = Event { version: Version::default(), ..told };
        assert!(!unknown.is_satisfied_by(stored(9)), "nothing is known of what has happened");
        let gone = event(1, Operation::Delete, 3);
        assert!(gone.is_satisfied_by(None) && !gone.is_satisfied_by(stored(4)));
    }

    proptest! {
        /// Whatever the order, every record is told of once, and by what asks the most of the store.
        #[test]
        fn every_record_is_told_of_once(
            events in proptest::collection::vec((0u8..5, any::<bool>(), 0i64..20), 0..60)
        ) {
            let events: Vec<Event> = events
                .into_iter()
                .map(|(id, gone, count)| event(id, if gone { Operation::Delete } else { Operation::Write }, count))
                .collect();
            let kept = coalesce(events.clone());
            for one in &kept {
                let same = || events.iter().filter(|event| event.id == one.id);
                prop_assert_eq!(kept.iter().filter(|event| event.id == one.id).count(), 1);
                prop_assert_eq!(one.version.mod_count, same().map(|event| event.version.mod_count).max().flatten());
                let is_gone = same().any(|event| event.operation == Operation::Delete);
                prop_assert_eq!(one.operation == Operation::Delete, is_gone);
            }
            prop_assert!(events.iter().all(|event| kept.iter().any(|one| one.id == event.id)));
        }
    }
}
