//! `sys_audit` and `sys_audit_delete`: what the instance remembers of changes and deletions (facts §8.2).

use std::fmt::Write as _;

use crate::record::{Draft, Writer};
use crate::schema::Kind;
use crate::store::{Db, RowId};

/// Tables whose deletions are never kept, as by `glide.db.audit.ignore.delete`.
const IGNORED: &[&str] =
    &["sys_user_preference", "sys_audit", "sys_audit_delete", "sc_cart", "wf_context", "sysevent"];

/// Keeps the changed fields of an audited table.
pub(crate) fn record_update(writer: &mut Writer<'_>, row: RowId, before: &Draft) {
    let class = writer.db.row(row).table;
    let Some(audit) = writer.db.schema.find("sys_audit") else { return };
    if !writer.db.schema.table(class).audited {
        return;
    }
    let changes: Vec<(String, String, String)> = writer
        .db
        .schema
        .table(class)
        .layout
        .live()
        .filter(|(_, s)| !s.column.element.starts_with("sys_") && s.column.kind != Kind::Journal)
        .filter_map(|(at, s)| {
            let (old, new) = (before.get(writer.db, &s.column.element), writer.db.row(row).get(at));
            (old != new).then(|| {
                (s.column.element.to_string(), writer.db.symbols.text(old), writer.db.symbols.text(new))
            })
        })
        .collect();
    let (table, key) = (writer.db.schema.table(class).name.to_string(), writer.db.text(row, "sys_id"));
    let checkpoint = writer.db.text(row, "sys_mod_count");
    for (field, old, new) in changes {
        let user = writer.actor.user_name.clone();
        let fields = [
            ("tablename", table.clone()),
            ("fieldname", field),
            ("documentkey", key.clone()),
            ("oldvalue", old),
            ("newvalue", new),
            ("user", user),
            ("record_checkpoint", checkpoint.clone()),
        ];
        writer.insert_plain(audit, &fields);
    }
}

/// Keeps a deleted row under its real class.
pub(crate) fn record_delete(writer: &mut Writer<'_>, row: RowId) {
    let class = writer.db.row(row).table;
    let Some(audit) = writer.db.schema.find("sys_audit_delete") else { return };
    let table = writer.db.schema.table(class);
    let name = table.name.to_string();
    if !table.audits_deletes || IGNORED.contains(&name.as_str()) {
        return;
    }
    let fields = [
        ("tablename", name),
        ("documentkey", writer.db.text(row, "sys_id")),
        ("display_value", writer.db.symbols.text(writer.db.display(row))),
        ("payload", payload(writer.db, row)),
        ("user", writer.actor.user_name.clone()),
    ];
    writer.insert_plain(audit, &fields);
}

/// The row as XML, columns in alphabetical order.
fn payload(db: &Db, row: RowId) -> String {
    let table = db.schema.table(db.row(row).table);
    let mut columns: Vec<(&str, String)> = table
        .layout
        .live()
        .map(|(at, s)| (&*s.column.element, db.symbols.text(db.row(row).get(at))))
        .collect();
    columns.sort();
    let mut out = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><{}>", table.name);
    for (element, value) in columns {
        if value.is_empty() {
            let _ = write!(out, "<{element}/>");
        } else {
            let _ = write!(out, "<{element}>{}</{element}>", escape_xml(&value));
        }
    }
    let _ = write!(out, "</{}>", table.name);
    out
}

/// Text as XML content.
pub(crate) fn escape_xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if u32::from(c) < 32 && !matches!(c, '\n' | '\r' | '\t') => {}
            c => out.push(c),
        }
    }
    out
}

/// Forgets deletions older than a horizon, as the instance's pruning does (facts §8.2).
pub(crate) fn prune_deletes(db: &mut Db, oldest: i64) {
    let Some(audit) = db.schema.find("sys_audit_delete") else { return };
    let old: Vec<RowId> = db
        .scan(audit)
        .filter(|&r| db.value(r, "sys_created_on").as_seconds().is_some_and(|s| s < oldest))
        .collect();
    for row in old {
        db.remove(row);
    }
}
