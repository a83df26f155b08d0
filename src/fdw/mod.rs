//! The foreign-data wrapper: what Postgres asks of one, answered for mirrored tables. In backends.

pub mod modify;

use std::time::SystemTime;

use pgrx::pg_sys;

use crate::catalog::{self, Mirror};
use crate::import;
use crate::option::TableOptions;
use crate::pg;
use crate::pg::routine::{Import, Target, Wrapper};
use crate::pg::scan::Source;

/// ServiceNow's foreign-data wrapper.
pub struct ServiceNow;

impl Wrapper for ServiceNow {
    type Writer = modify::Writer;

    fn source(relation: pg_sys::Oid) -> Source {
        let mirror = catalog::mirror_or_error(relation);
        let columns = mirror.columns.iter().map(|column| (column.number, column.name.clone()));
        let attributes = pg::catalog::attributes(relation).into_iter();
        let generated = attributes.filter(|attribute| attribute.generated).map(|attribute| attribute.number);
        Source {
            foreign_table: relation,
            cache: mirror.cache,
            owner: mirror.owner,
            columns: columns.collect(),
            generated: generated.collect(),
        }
    }

    fn age(relation: pg_sys::Oid) -> Option<String> {
        // auto_explain asks when the statement's own snapshot is gone already.
        let now = catalog::timestamp(SystemTime::now());
        pg::xact::with_latest_snapshot(|| catalog::progress(relation, now))?.age
    }

    fn key(relation: pg_sys::Oid) -> i16 {
        key_number(&catalog::mirror_or_error(relation))
    }

    fn is_updatable(relation: pg_sys::Oid) -> bool {
        // Asked by information_schema of every table: the options have to be enough.
        let options = pg::catalog::foreign_table(relation, catalog::WRAPPER).map(|(_, options)| options);
        options.and_then(|options| TableOptions::parse(&options).ok()).is_some_and(|table| table.updatable)
    }

    fn begin_write(target: Target) -> modify::Writer {
        modify::Writer::begin(target)
    }

    fn import(import: Import) -> Vec<String> {
        import::import(import)
    }
}

fn key_number(mirror: &Mirror) -> i16 {
    mirror.columns[mirror.key].number
}
