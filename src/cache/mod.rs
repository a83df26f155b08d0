//! Cache tables: the local copies behind foreign tables.

pub mod apply;
pub mod change;
pub mod ddl;
pub mod label;
pub mod type_map;

use pgrx::spi::quote_identifier;
use servicenow::value::{Kind, Show};

use crate::catalog::{Mirror, MirrorColumn};
use crate::pg;

/// A part of a row's version, which every cache has a column for. It is the foreign table's own where that shows
/// the field as it is: then a whole row is read as it is stored. Else it is one more column of the cache.
#[derive(Debug)]
pub struct VersionPart {
    /// The field.
    pub field: &'static str,
    /// What its values are decoded as.
    pub kind: Kind,
    /// The cache's column where the foreign table has none.
    pub hidden_column: &'static str,
}

/// When the record was last changed.
pub const UPDATED_ON: VersionPart =
    VersionPart { field: "sys_updated_on", kind: Kind::Instant, hidden_column: "_sn_updated_on" };
/// How often it was.
pub const MOD_COUNT: VersionPart =
    VersionPart { field: "sys_mod_count", kind: Kind::Integer, hidden_column: "_sn_mod_count" };
/// Both.
pub const VERSION: [VersionPart; 2] = [UPDATED_ON, MOD_COUNT];

/// SQL for a column's value as text, or NULL; `of` is what stands before the column's name. Whoever owns a type may replace
/// its casts to text by functions of theirs, and this is carried out with other rights: only types that came with Postgres
/// are cast, what others are is left to their output functions.
fn as_text(mirror: &Mirror, of: &str, column: &MirrorColumn) -> String {
    let name = format!("{of}{}", quote_identifier(&column.name));
    match pg::catalog::has_built_in_type(mirror.cache, &column.name) {
        true => format!("{name}::pg_catalog.text"),
        false => format!("CASE WHEN {name} IS NOT NULL THEN pg_catalog.format('%s', {name}) END"),
    }
}

impl VersionPart {
    /// The first of these columns that shows the part as it is.
    pub fn position<'c>(&self, columns: impl IntoIterator<Item = (&'c str, Show, Kind)>) -> Option<usize> {
        columns.into_iter().position(|column| column == (self.field, Show::Value, self.kind))
    }
}
