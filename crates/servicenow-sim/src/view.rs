//! Database views: two tables joined on a reference, readable and never writable (facts §1.1).

use crate::ident;
use crate::schema::TableId;
use crate::store::{Db, RowId, Val};

/// Adds to every view of the schema the prefixed columns of its two tables.
pub(crate) fn define(db: &mut Db) {
    let views: Vec<TableId> =
        db.schema.tables().filter(|(_, t)| t.view.is_some()).map(|(id, _)| id).collect();
    for id in views {
        let view = db.schema.table(id).view.clone().expect("chosen for having one");
        for (table, prefix) in [view.left, view.right] {
            let source = db.schema.find(&table).expect("a view joins tables that exist");
            let columns: Vec<_> =
                db.schema.table(source).layout.live().map(|(_, s)| s.column.clone()).collect();
            for column in columns {
                let mut column = (*column).clone();
                column.element = format!("{prefix}_{}", column.element).into();
                (column.display, column.unique, column.indexed) = (false, false, false);
                db.schema.add_column(id, column);
            }
        }
    }
}

/// Joins the rows of a view anew.
pub(crate) fn rebuild(db: &mut Db, name: &str) {
    let Some(id) = db.schema.find(name) else { return };
    let Some(view) = db.schema.table(id).view.clone() else { return };
    let (Some(left), Some(right)) = (db.schema.find(&view.left.0), db.schema.find(&view.right.0)) else {
        return;
    };
    let old: Vec<RowId> = db.scan(id).collect();
    for row in old {
        db.remove(row);
    }
    let pairs: Vec<(RowId, RowId)> =
        db.scan(left).filter_map(|l| db.find_val(right, db.value(l, &view.on)).map(|r| (l, r))).collect();
    for (l, r) in pairs {
        let layout = db.schema.table(id).layout.clone();
        let mut vals = vec![Val::EMPTY; layout.slots.len()];
        for (row, prefix) in [(l, &view.left.1), (r, &view.right.1)] {
            let class = db.row(row).table;
            for (at, slot) in db.schema.table(class).layout.live() {
                if let Some(target) = layout.slot(&format!("{prefix}_{}", slot.column.element)) {
                    vals[target] = db.row(row).get(at);
                }
            }
        }
        let key = format!("{}{}", db.text(l, "sys_id"), db.text(r, "sys_id"));
        if let Some(slot) = layout.slot("sys_id") {
            vals[slot] = db.symbols.intern(&ident::sys_id(name, &key));
        }
        db.insert(id, vals);
    }
}
