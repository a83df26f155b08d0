//! What is lately known to be shown in each table, beside pages that were asked for before. A crash may forget it, as no
//! page outlives it.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::pg_sys;
use servicenow::sync::latest::Latest;

use crate::catalog::Mirror;

thread_local! {
    /// By table, with the generation it is of.
    static LATEST: RefCell<HashMap<pg_sys::Oid, (i64, Latest)>> = RefCell::new(HashMap::new());
}

/// Looks at or adds to what is known of a table.
pub fn with<R>(mirror: &Mirror, f: impl FnOnce(&mut Latest) -> R) -> R {
    LATEST.with_borrow_mut(|all| {
        let (generation, latest) =
            all.entry(mirror.foreign_table).or_insert_with(|| (mirror.generation, Latest::default()));
        if *generation != mirror.generation {
            (*generation, *latest) = (mirror.generation, Latest::default());
        }
        f(latest)
    })
}
