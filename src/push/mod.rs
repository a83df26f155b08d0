//! Writes on their way to ServiceNow, and their answers on the way into the cache. In backends.
//!
//! A statement's rows become [`Item`]s ([`draft`], [`label`], [`name`]), a [`Pusher`] notes them down ([`intent`]), sends them, looks
//! whether the instance has done what it says ([`answer`]) and puts what it answers into the cache. With
//! `servicenow_fdw.push = 'commit'` items wait for the end of the transaction ([`queue`], [`order`], [`batch`]).

pub mod answer;
mod batch;
mod before;
pub mod draft;
pub mod intent;
mod item;
pub mod label;
pub mod name;
mod order;
pub mod place;
mod pusher;
pub mod queue;

use std::collections::HashSet;

use pgrx::PgSqlErrorCode as Sql;
use servicenow::value::SysId;

use crate::catalog::Mirror;
use crate::error::{error, raise};
use crate::pg;

pub use item::{Item, Task};
pub use pusher::{Progress, Pusher};

/// Those of some columns (positions among the mirror's) of which `differs` is true, with all others of the same fields that are
/// assigned: a label and a stored value must not contradict each other.
pub fn with_twins(
    mirror: &Mirror,
    candidates: &[usize],
    assigned: &[usize],
    differs: impl Fn(usize) -> bool,
) -> Vec<usize> {
    let changed: Vec<usize> = candidates.iter().copied().filter(|position| differs(*position)).collect();
    let field = |position: usize| mirror.columns[position].field.as_str();
    let fields: HashSet<&str> = changed.iter().map(|position| field(*position)).collect();
    let twins = assigned.iter().copied().filter(|p| fields.contains(field(*p)) && !changed.contains(p));
    changed.iter().copied().chain(twins).collect()
}

/// Has the ends of transactions told to those that wait for them here.
fn watch() {
    pg::xact::watch(pg::xact::Watcher {
        before_commit: || {
            queue::before_commit();
            intent::before_commit();
        },
        ended: |committed| {
            queue::forget();
            if !committed {
                name::forget_all_names();
            }
            intent::ended(committed);
        },
        subtransaction_ended: |id, parent, committed| {
            queue::subtransaction_ended(id, parent, committed);
            if !committed {
                name::forget_all_names();
            }
            intent::subtransaction_ended(id, parent, committed);
        },
    });
}

/// A key for a record that is to be made.
pub fn new_sys_id() -> SysId {
    let mut bytes = [0; 16];
    if let Err(e) = getrandom::fill(&mut bytes) {
        raise(error(Sql::ERRCODE_SYSTEM_ERROR, format!("could not make a sys_id: {e}")));
    }
    SysId::from_random(bytes)
}
