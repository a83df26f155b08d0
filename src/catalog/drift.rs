//! What has changed in ServiceNow's dictionary: `servicenow.drift`.

use pgrx::pg_sys;
use servicenow::value::TableName;

use super::{get, read, write};

/// How a field differs from what was known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriftKind {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It has another type.
    Changed,
    /// It has other choices. Rows show them already.
    Choices,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The field.
    pub field: String,
    /// In what way.
    pub kind: DriftKind,
    /// For people: the types.
    pub detail: String,
}

/// Adds to what is known to differ. A field that was removed and is there again differs no more.
pub fn note_drift(server: pg_sys::Oid, table: &TableName, drift: &[Drift]) {
    for Drift { field, kind, detail } in drift {
        let change = match kind {
            DriftKind::Added => "added",
            DriftKind::Removed => "removed",
            DriftKind::Changed => "changed",
            DriftKind::Choices => "choices",
        };
        write(
            "INSERT INTO servicenow.drift (server, remote_table, field, change, detail) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (server, remote_table, field)
             DO UPDATE SET change = excluded.change, detail = excluded.detail, noticed_at = clock_timestamp()
             WHERE drift.change = 'choices' OR excluded.change <> 'choices'",
            &[
                server.into(),
                table.as_str().into(),
                field.as_str().into(),
                change.into(),
                detail.as_str().into(),
            ],
        );
    }
}

/// Columns have been made anew for these fields: their types differ no more.
pub fn settle_drift(server: pg_sys::Oid, table: &TableName, fields: Vec<String>) {
    write(
        "DELETE FROM servicenow.drift
         WHERE server = $1 AND remote_table = $2 AND field = ANY ($3) AND change = 'changed'",
        &[server.into(), table.as_str().into(), fields.into()],
    );
}

/// These fields of a table are there, as ever.
pub fn forget_drift(server: pg_sys::Oid, table: &TableName, fields: Vec<String>) {
    write(
        "DELETE FROM servicenow.drift WHERE server = $1 AND remote_table = $2 AND field = ANY ($3)",
        &[server.into(), table.as_str().into(), fields.into()],
    );
}

/// The fields of a table that were there and are not any more.
pub fn removed_fields(server: pg_sys::Oid, table: &TableName) -> Vec<String> {
    read(
        "SELECT field FROM servicenow.drift WHERE server = $1 AND remote_table = $2 AND change = 'removed'",
        &[server.into(), table.as_str().into()],
        |rows| rows.filter_map(|row| get(&row, 1)).collect(),
    )
}
