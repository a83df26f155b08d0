//! Which range-table entries of a query become subqueries over a cache, and over which; and where the planner finds
//! statistics on the others. In backends, from the planner's hooks.

use std::rc::Rc;

use pgrx::pg_sys;

use crate::catalog::{self, Mirror};
use crate::pg::expand::{Expansions, Output, Template};
use crate::pg::statistics::Columns;

/// Finds the cache behind a foreign table.
pub struct Caches;

impl Expansions for Caches {
    fn template(&self, relation: pg_sys::Oid) -> Option<Rc<Template>> {
        let mirror = catalog::mirror(relation)?;
        mirror.template.get_or_init(|| template(&mirror).map(Rc::new)).clone()
    }
}

impl Columns for Caches {
    fn behind(&self, relation: pg_sys::Oid, number: i16) -> Option<(pg_sys::Oid, i16)> {
        let mirror = catalog::mirror(relation)?;
        let column = crate::pg::catalog::attribute_number(mirror.cache, &mirror.column(number)?.name)?;
        Some((mirror.cache, column))
    }
}

/// A query with the foreign table's columns at their numbers, generated ones computed, dropped ones filled in.
fn template(mirror: &Mirror) -> Option<Template> {
    let attributes = crate::pg::catalog::attributes(mirror.foreign_table);
    let outputs: Vec<Output> = attributes
        .iter()
        .map(|attribute| match mirror.column(attribute.number) {
            Some(column) => Output::Column(column.name.clone()),
            None if attribute.generated => Output::Generated(attribute.number),
            None => Output::Dropped(attribute.storage.0, attribute.storage.1),
        })
        .collect();
    Template::new(mirror.foreign_table, mirror.cache, mirror.owner, &outputs)
}
