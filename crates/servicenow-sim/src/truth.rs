//! The truth for assertions: stored values, as they are or as a user may see them.

use std::collections::BTreeMap;

use crate::acl::{Access, Reading};
use crate::instance::Instance;
use crate::store::{Db, RowId};
use crate::users::{self, Actor};

/// A record as stored values by column.
pub type Record = BTreeMap<String, String>;

fn read(db: &Db, row: RowId, shown: impl Fn(&str) -> bool) -> Record {
    let stored = db.row(row);
    db.schema
        .table(stored.table)
        .layout
        .live()
        .filter(|(_, s)| shown(&s.column.element))
        .map(|(at, s)| (s.column.element.to_string(), db.symbols.text(stored.get(at))))
        .collect()
}

/// A record with all its columns.
pub(crate) fn record(instance: &Instance, table: &str, sys_id: &str) -> Option<Record> {
    instance.settle();
    let db = instance.db.read();
    let row = db.find(db.schema.find(table)?, sys_id)?;
    Some(read(&db, row, |_| true))
}

/// All records of a table that a user may see, with the columns that the user may see, in the order of `sys_id`.
pub(crate) fn all(instance: &Instance, table: &str, user: &str) -> Option<Vec<Record>> {
    instance.settle();
    instance.refresh_view(table);
    let rules = instance.acl_rules();
    let db = instance.db.read();
    let table = db.schema.find(table)?;
    let actor = Actor::of(&db, users::find(&db, user)?);
    let access = Access::new(&db, &actor, &rules);
    if matches!(access.reading(table), Reading::Nothing | Reading::Refused) {
        return Some(Vec::new());
    }
    let mut filter = access.row_filter(instance.clock.now());
    let mut rows: Vec<RowId> = db.scan(table).filter(|&r| filter.sees(r)).collect();
    rows.sort_by_cached_key(|&r| db.id_key(r));
    Some(
        rows.into_iter()
            .map(|r| {
                let class = db.row(r).table;
                read(&db, r, |element| access.reads_field(class, element))
            })
            .collect(),
    )
}
