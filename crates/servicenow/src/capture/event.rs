//! What rules tell: that a record has changed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::page::{Order, Version};
use crate::value::{SysId, TableName};

/// What has happened to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It was made or changed.
    Write,
    /// It was deleted.
    Delete,
    /// It was deleted and made anew or the other way round, as a rule alone never tells: see [`coalesce`].
    Both,
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
            (Operation::Delete, Some(_)) | (Operation::Write, None) | (Operation::Both, _) => false,
        }
    }
}

/// Whether a stored version is at least as late as another one, which has to be known for that.
pub fn has(stored: Version, told: Version) -> bool {
    let known = |v: Version| v.updated_on.is_some() && v.mod_count.is_some();
    known(stored) && known(told) && stored.order(told) != Order::Unclear
}

/// A time that is not known: later than any.
const UNKNOWN: i64 = i64::MAX;

/// All that events have told of one record so far.
#[derive(Clone, Debug)]
pub struct Story {
    /// The time of the oldest one that says when it was.
    at: i64,
    /// Its latest version if it was written, and when its last rule ran.
    written: Option<Event>,
    /// The last time it was deleted.
    deleted: Option<Event>,
}

impl Story {
    /// The story of a first event.
    pub fn of(event: Event) -> Self {
        let mut story = Self { at: event.at, written: None, deleted: None };
        story.add(event);
        story
    }

    /// Goes on with another event of the record, whichever came first.
    pub fn add(&mut self, mut event: Event) {
        self.at = [self.at, event.at].into_iter().filter(|at| *at > 0).min().unwrap_or_default();
        // One that does not say when it was may be the last.
        if event.at <= 0 {
            event.at = UNKNOWN;
        }
        let place = match event.operation {
            Operation::Delete => &mut self.deleted,
            Operation::Write | Operation::Both => &mut self.written,
        };
        match place {
            None => *place = Some(event),
            Some(before) => {
                before.version = later(before.version, event.version);
                before.at = before.at.max(event.at);
            }
        }
    }

    /// What it comes to: a deletion if that was clearly the last thing; if it was not, whether the record is there is
    /// for the instance to say.
    pub fn sum(self) -> Event {
        let (at, event) = match (self.written, self.deleted) {
            (Some(written), Some(deleted)) => {
                let is_over = written.at < deleted.at
                    && deleted.at < UNKNOWN
                    && deleted.version.order(written.version) != Order::Unclear;
                match is_over {
                    true => (self.at, deleted),
                    false => (self.at, Event { operation: Operation::Both, ..written }),
                }
            }
            (Some(event), _) | (None, Some(event)) => (self.at, event),
            (None, None) => unreachable!("it began with an event"),
        };
        Event { at, ..event }
    }
}

/// The later one of two versions; nothing if that cannot be told, as of one that says nothing.
fn later(one: Version, other: Version) -> Version {
    let is_known = |v: Version| v.updated_on.is_some() && v.mod_count.is_some();
    match (is_known(one) && is_known(other), one.order(other), other.order(one)) {
        (true, Order::Same | Order::Later, _) => one,
        (true, _, Order::Later) => other,
        _ => Version::default(),
    }
}

/// Events with one per record and table left: see [`Story::sum`]. In the order in which their records were first met.
pub fn coalesce(events: impl IntoIterator<Item = Event>) -> Vec<Event> {
    let mut stories: Vec<Story> = Vec::new();
    let mut places: HashMap<(TableName, SysId), usize> = HashMap::new();
    for event in events {
        match places.entry((event.table.clone(), event.id.clone())) {
            Entry::Vacant(place) => {
                place.insert(stories.len());
                stories.push(Story::of(event));
            }
            Entry::Occupied(place) => stories[*place.get()].add(event),
        }
    }
    stories.into_iter().map(Story::sum).collect()
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

    /// A record was deleted and made anew by one script: the store may not believe that it has been told of what it knows.
    #[test]
    fn a_record_that_was_made_anew_is_looked_up() {
        let gone = Event { at: 5, ..event(1, Operation::Delete, 3) };
        let anew = Event { at: 5, ..event(1, Operation::Write, 0) };
        for events in [[gone.clone(), anew.clone()], [anew, gone]] {
            let sum = coalesce(events).pop().expect("one is left");
            assert_eq!(sum.operation, Operation::Both);
            assert!(!sum.is_satisfied_by(None));
        }
    }

    #[test]
    fn a_change_without_a_version_is_looked_up_whatever_else_is_told() {
        let known = event(1, Operation::Write, 3);
        let silent = Event { version: Version { mod_count: None, ..known.version }, ..known.clone() };
        for events in [[known.clone(), silent.clone()], [silent, known.clone()]] {
            let sum = coalesce(events).pop().expect("one is left");
            assert!(!sum.is_satisfied_by(Some(known.version)));
        }
    }

    /// What happens to a record, in one instance: each step with the ms since the one before.
    fn history(steps: &[(bool, i64)]) -> (Vec<Event>, Vec<Option<Version>>) {
        let (mut at, mut stored): (i64, Option<Version>) = (1_000_000, None);
        let (mut events, mut states) = (Vec::new(), vec![None]);
        for (is_deletion, pause) in steps {
            at += pause;
            let now = Some(at / 1_000);
            let (operation, version) = match (stored, is_deletion) {
                (Some(before), true) => (Operation::Delete, before),
                (Some(before), false) => {
                    let mod_count = before.mod_count.map(|count| count + 1);
                    (Operation::Write, Version { updated_on: now, mod_count })
                }
                (None, _) => (Operation::Write, Version { updated_on: now, mod_count: Some(0) }),
            };
            events.push(Event { version, at, ..event(1, operation, 0) });
            stored = (operation == Operation::Write).then_some(version);
            states.push(stored);
        }
        (events, states)
    }

    proptest! {
        /// Whatever the order, every record is told of once, and by what asks the most of the store.
        #[test]
        fn every_record_is_told_of_once(
            events in proptest::collection::vec((0u8..5, any::<bool>(), 1i64..20), 0..60)
        ) {
            let events: Vec<Event> = events
                .into_iter()
                .map(|(id, gone, count)| event(id, if gone { Operation::Delete } else { Operation::Write }, count))
                .collect();
            let kept = coalesce(events.clone());
            for one in &kept {
                let same = |operation| {
                    events.iter().filter(move |event| event.id == one.id && event.operation == operation)
                };
                prop_assert_eq!(kept.iter().filter(|event| event.id == one.id).count(), 1);
                let last = |operation| same(operation).map(|event| event.version.mod_count).max().flatten();
                let (written, deleted) = (last(Operation::Write), last(Operation::Delete));
                match one.operation {
                    Operation::Write => prop_assert_eq!((one.version.mod_count, None), (written, deleted)),
                    Operation::Delete => prop_assert!(written < deleted),
                    Operation::Both => prop_assert!(written >= deleted && deleted.is_some()),
                }
            }
            prop_assert!(events.iter().all(|event| kept.iter().any(|one| one.id == event.id)));
        }

        /// Whatever part of a history comes together, in whatever order: a store that has not got to its end is not
        /// satisfied.
        #[test]
        fn only_what_is_as_late_satisfies(
            steps in proptest::collection::vec((proptest::bool::weighted(0.3), 0i64..1_500), 1..8),
            from in 0usize..8,
            order in any::<proptest::sample::Index>(),
        ) {
            let (events, states) = history(&steps);
            let from = from.min(events.len() - 1);
            let mut some = events[from..].to_vec();
            let turn = order.index(some.len());
            some.rotate_left(turn);
            let sum = coalesce(some).pop().expect("one is left");
            let last = states.len() - 1;
            for (place, state) in states.iter().enumerate().skip(from) {
                if sum.is_satisfied_by(*state) {
                    prop_assert_eq!(state, &states[last], "the state after {} steps of {:?}", place, events);
                }
            }
        }
    }
}
