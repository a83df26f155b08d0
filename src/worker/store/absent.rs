//! Records that were looked up and were not there. A page that was asked for before that may still show them when it comes,
//! as several tasks read the same table at a time; then they have to be looked up once more.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

/// No page is on its way longer than this.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// The most records that are remembered. Of more, what a page brings back by mistake is found by the next comparison.
const MOST: usize = 50_000;

thread_local! {
    static ABSENT: RefCell<HashMap<(pg_sys::Oid, String), Instant>> = RefCell::default();
}

/// These records of a foreign table were not there just now.
pub fn remember<'i>(relation: pg_sys::Oid, ids: impl Iterator<Item = &'i str>) {
    let now = Instant::now();
    ABSENT.with_borrow_mut(|absent| {
        absent.extend(ids.map(|id| ((relation, id.to_owned()), now)));
        if absent.len() > MOST {
            absent.retain(|_, at| now - *at < KEPT_FOR);
        }
        if absent.len() > MOST {
            absent.clear();
        }
    });
}

/// These records were there.
pub fn forget<'i>(relation: pg_sys::Oid, ids: impl Iterator<Item = &'i str>) {
    ABSENT.with_borrow_mut(|absent| {
        if !absent.is_empty() {
            for id in ids {
                absent.remove(&(relation, id.to_owned()));
            }
        }
    });
}

/// Those of the records on a page that were not there a short while ago.
pub fn among<'i>(relation: pg_sys::Oid, ids: impl Iterator<Item = &'i str>) -> Vec<String> {
    ABSENT.with_borrow(|absent| {
        if absent.is_empty() {
            return Vec::new();
        }
        let is_recent =
            |id: &&str| absent.get(&(relation, (*id).to_owned())).is_some_and(|at| at.elapsed() < KEPT_FOR);
        ids.filter(is_recent).map(str::to_owned).collect()
    })
}
