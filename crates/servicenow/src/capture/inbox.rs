//! Events that have been received and not been taken, of one subscription.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem;
use std::sync::Mutex;

use tokio::sync::Notify;

use super::event::{Event, Story};
use crate::value::{SysId, TableName};

/// Records with events waiting, at most; what comes beyond that is found by polls.
const MOST: usize = 50_000;

/// What waits, and what was counted since it was last taken.
#[derive(Debug, Default)]
pub struct Taken {
    /// One event per record.
    pub events: Vec<Event>,
    /// How many events they were before.
    pub seen: u64,
    /// Requests that were not believed.
    pub refused: u64,
    /// Requests that were signed and too far from the clock here.
    pub stale: u64,
    /// There was no room for some: whatever the subscription is about has to be polled.
    pub overflowed: bool,
}

/// Between the listener and the reader. Whoever gives does not wait.
#[derive(Debug, Default)]
pub struct Inbox {
    waiting: Mutex<Waiting>,
    bell: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    stories: HashMap<(TableName, SysId), Story>,
    seen: u64,
    refused: u64,
    stale: u64,
    overflowed: bool,
    trouble: Option<String>,
}

impl Inbox {
    /// Says why nothing can come, or that it can.
    pub fn set_trouble(&self, trouble: Option<&str>) {
        self.with(|waiting| {
            if waiting.trouble.as_deref() != trouble {
                waiting.trouble = trouble.map(str::to_owned);
            }
        });
    }

    /// Why nothing can come.
    pub fn trouble(&self) -> Option<String> {
        self.with(|waiting| waiting.trouble.clone())
    }

    /// Takes an event in; `false` if there is no room.
    pub fn offer(&self, event: Event) -> bool {
        let is_taken = self.with(|waiting| {
            waiting.seen += 1;
            let is_full = waiting.stories.len() >= MOST;
            match waiting.stories.entry((event.table.clone(), event.id.clone())) {
                Entry::Occupied(mut story) => story.get_mut().add(event),
                Entry::Vacant(_) if is_full => {
                    waiting.overflowed = true;
                    return false;
                }
                Entry::Vacant(place) => drop(place.insert(Story::of(event))),
            }
            true
        });
        self.bell.notify_one();
        is_taken
    }

    /// Counts a request that was not believed; nobody is woken for it.
    pub fn refuse(&self) {
        self.with(|waiting| waiting.refused += 1);
    }

    /// Counts a request that was signed and too far from the clock here.
    pub fn note_stale(&self) {
        self.with(|waiting| waiting.stale += 1);
    }

    /// Takes events back that could not be noted.
    pub fn put_back(&self, events: Vec<Event>) {
        self.with(|waiting| {
            for event in events {
                match waiting.stories.entry((event.table.clone(), event.id.clone())) {
                    Entry::Occupied(mut story) => story.get_mut().add(event),
                    Entry::Vacant(place) => drop(place.insert(Story::of(event))),
                }
            }
        });
    }

    /// Everything that waits, the oldest first.
    pub fn take(&self) -> Taken {
        let Waiting { stories, seen, refused, stale, overflowed, .. } = self.with(|waiting| {
            let trouble = waiting.trouble.clone();
            mem::replace(waiting, Waiting { trouble, ..Waiting::default() })
        });
        let mut events: Vec<Event> = stories.into_values().map(Story::sum).collect();
        events.sort_by_key(|event| event.at);
        Taken { events, seen, refused, stale, overflowed }
    }

    /// Waits until something has come since this was last called.
    pub async fn wait(&self) {
        self.bell.notified().await;
    }

    fn with<R>(&self, f: impl FnOnce(&mut Waiting) -> R) -> R {
        f(&mut self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::event::Operation;
    use crate::page::Version;

    fn event(id: usize, count: i64) -> Event {
        Event {
            table: TableName::new("incident").expect("a name"),
            id: SysId::new(id.to_string()),
            operation: Operation::Write,
            version: Version { updated_on: Some(count), mod_count: Some(count) },
            at: count,
        }
    }

    #[test]
    fn a_full_inbox_takes_what_it_knows_of_and_says_what_it_has_lost() {
        let inbox = Inbox::default();
        assert!((0..MOST).all(|id| inbox.offer(event(id, 1))));
        assert!(inbox.offer(event(7, 2)), "a record that is there already takes no room");
        assert!(!inbox.offer(event(MOST, 1)));
        inbox.refuse();
        let taken = inbox.take();
        assert_eq!((taken.events.len(), taken.seen, taken.refused), (MOST, MOST as u64 + 2, 1));
        assert!(taken.overflowed);
        assert!(taken.events.iter().any(|e| e.id.as_str() == "7" && e.version.mod_count == Some(2)));
        let taken = inbox.take();
        assert!(taken.events.is_empty() && !taken.overflowed && taken.seen == 0);
    }

    #[test]
    fn what_could_not_be_noted_comes_again_with_what_came_meanwhile() {
        let inbox = Inbox::default();
        inbox.offer(event(1, 1));
        inbox.offer(event(2, 1));
        let taken = inbox.take();
        inbox.offer(event(1, 2));
        inbox.put_back(taken.events);
        let again = inbox.take();
        let version =
            |id: &str| again.events.iter().find(|e| e.id.as_str() == id).and_then(|e| e.version.mod_count);
        assert_eq!((version("1"), version("2"), again.seen), (Some(2), Some(1), 1));
    }
}
