//! Events of changes, noted for the records they name to be looked up.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use servicenow::capture::event::{Event, Operation};
use servicenow::page::Version;
use servicenow::sync::capture::{CaptureStore, News, Noted, Rules};
use servicenow::sync::store::StoreError;

use super::{Done, PgStore, Table, Work, to_recheck};
use crate::cache::apply;
use crate::catalog::{self, Which};
use crate::pg;

impl CaptureStore for PgStore {
    async fn note_events(&self, events: Vec<Event>) -> Result<Noted<Table>, StoreError> {
        let mut echoes = 0;
        if !events.is_empty() {
            match self.ask(None, Work::NoteEvents(events)).await? {
                Done::Echoes(count) => echoes = count,
                _ => return Err(StoreError::Stale),
            }
        }
        match self.ask(None, Work::ToLookUp).await? {
            Done::ToLookUp(noted) => Ok(Noted { echoes, ..noted }),
            _ => Err(StoreError::Stale),
        }
    }

    async fn note_capture(&self, news: News) -> Result<u64, StoreError> {
        match self.ask(None, Work::NoteCapture(Box::new(news))).await? {
            Done::Missed(missed) => Ok(missed),
            _ => Err(StoreError::Stale),
        }
    }

    async fn note_rules(&self, rules: Rules) -> Result<(), StoreError> {
        self.ask(None, Work::NoteRules(rules)).await.map(|_| ())
    }

    async fn renew_subscription(&self) -> Result<(), StoreError> {
        self.ask(None, Work::RenewSubscription).await.map(|_| ())
    }
}

/// Has the records of events looked up wherever they are, or should be, and are not in the version told of. Gives back
/// how many events said nothing new.
pub fn note(server: pg_sys::Oid, events: &[Event]) -> u64 {
    let ids: Vec<String> = events.iter().map(|event| event.id.as_str().to_owned()).collect();
    let mut news: HashSet<usize> = HashSet::new();
    for work in catalog::work().into_iter().filter(|work| work.server == server) {
        let looked = pg::xact::subtransaction(|| {
            let mirror = catalog::mirror(work.foreign_table)?;
            Some((apply::versions(&mirror, ids.iter().map(String::as_str)), mirror))
        });
        if let Ok(Some((there, mirror))) = &looked {
            // A look that is under way may still show it.
            let gone = events.iter().filter(|event| {
                event.operation == Operation::Delete
                    && event.table == mirror.table
                    && !there.contains_key(event.id.as_str())
            });
            let gone: Vec<&Event> = gone.collect();
            let ids: Vec<String> = gone.iter().map(|event| event.id.as_str().to_owned()).collect();
            catalog::remember_absent(work.foreign_table, &ids);
            catalog::may_be_gone(work.foreign_table, &gone);
        }
        let concerned: Vec<usize> = match &looked {
            Ok(Some((there, mirror))) => {
                let concerns = |event: &Event| {
                    let stored: Option<Version> = there.get(event.id.as_str()).copied();
                    (stored.is_some() || event.table == mirror.table) && !event.is_satisfied_by(stored)
                };
                (0..events.len()).filter(|i| concerns(&events[*i])).collect()
            }
            // It is read again as a whole when it is repaired.
            Ok(None) => Vec::new(),
            // Somebody has locked the cache, or it cannot be read now: what it has is seen later.
            Err(_) => (0..events.len()).collect(),
        };
        catalog::leave_events_to_recheck(work.foreign_table, concerned.iter().map(|i| &events[*i]));
        count_told(work.foreign_table, concerned.len());
        news.extend(concerned);
    }
    catalog::trust(server, &ids);
    (events.len() - news.len()) as u64
}

/// If events tell of so many records of a table within a while, it is polled: that brings them with fewer calls than
/// looking them up takes.
const MASS: usize = 1_000;
/// The while.
const MASS_WINDOW: Duration = Duration::from_secs(10);
/// The shortest time between two polls because of that.
const BETWEEN_POLLS: Duration = Duration::from_secs(2);

thread_local! {
    /// Per table, of how many records events have told, and since when.
    static TOLD: RefCell<HashMap<pg_sys::Oid, (Instant, usize)>> = RefCell::default();
    /// Tables that are to be polled because of how many events came: since when, and whether the worker knows.
    static ASKED: RefCell<HashMap<pg_sys::Oid, (Instant, bool)>> = RefCell::default();
}

fn count_told(relation: pg_sys::Oid, records: usize) {
    TOLD.with_borrow_mut(|told| {
        told.retain(|_, (since, _)| since.elapsed() < MASS_WINDOW);
        told.entry(relation).or_insert_with(|| (Instant::now(), 0)).1 += records;
    });
}

fn is_mass(relation: pg_sys::Oid) -> bool {
    let is_recent = |(since, records): &(Instant, usize)| since.elapsed() < MASS_WINDOW && *records >= MASS;
    TOLD.with_borrow(|told| told.get(&relation).is_some_and(is_recent))
}

fn ask_for_poll(relation: pg_sys::Oid) {
    ASKED.with_borrow_mut(|asked| {
        asked.retain(|_, (at, told)| !*told || at.elapsed() < BETWEEN_POLLS);
        asked.entry(relation).or_insert_with(|| (Instant::now(), false));
    });
}

/// The tables that are to be polled now because of how many events came.
pub fn to_poll() -> Vec<pg_sys::Oid> {
    ASKED.with_borrow_mut(|asked| {
        let news = asked.iter_mut().filter(|(_, (_, told))| !*told);
        news.map(|(relation, (_, told))| (*relation, std::mem::replace(told, true)).0).collect()
    })
}

/// What is to be looked up of a server's tables now.
pub fn to_look_up(server: pg_sys::Oid) -> Noted<Table> {
    let mut noted = Noted { looks: Vec::new(), waiting: false, again: None, echoes: 0 };
    let works: Vec<_> = catalog::work().into_iter().filter(|work| work.server == server).collect();
    for relation in catalog::with_rechecks(server) {
        let Some(work) = works.iter().find(|work| work.foreign_table == relation) else { continue };
        let which = match is_mass(relation) && catalog::is_left_to_poll(relation) {
            true => Which::Unpolled,
            false => Which::All,
        };
        if which == Which::Unpolled {
            ask_for_poll(relation);
            noted.waiting = true;
        }
        let looked =
            pg::xact::subtransaction(|| catalog::mirror(relation).map(|mirror| to_recheck(&mirror, which)));
        match looked {
            Ok(Some(left)) => {
                noted.waiting |= left.is_more;
                noted.again = noted.again.into_iter().chain(catalog::next_recheck(relation)).min();
                if !left.records.is_empty() {
                    let table = Table { relation, generation: work.generation };
                    noted.looks.push((table, left.records));
                }
            }
            Ok(None) => {}
            Err(_) => noted.waiting = true,
        }
    }
    noted
}
