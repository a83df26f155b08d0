//! Tables and their layouts: which slot of a row holds which column, inherited ones included (facts §7.1).

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::column::Column;
use super::key_order;

/// The position of a table in [`Schema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TableId(pub(crate) u16);

/// How numbers of new rows are made: a prefix and a zero-padded counter (facts §10).
#[derive(Debug, Clone)]
pub(crate) struct Numbering {
    /// `INC`, `PRB`, …
    pub(crate) prefix: String,
    /// The number of digits.
    pub(crate) width: usize,
}

/// A database view: two tables joined on a reference, read only (facts §1.1).
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// The table on the left and the prefix of its columns.
    pub(crate) left: (String, String),
    /// The table on the right and the prefix of its columns.
    pub(crate) right: (String, String),
    /// The column on the right that references the left table.
    pub(crate) on: String,
}

/// A column in the slot of a row.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    /// The column.
    pub(crate) column: Arc<Column>,
    /// The table that defines it.
    pub(crate) owner: TableId,
    /// False once the column was dropped; the slot stays.
    pub(crate) live: bool,
}

/// The slots of a class.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layout {
    /// All slots, dropped ones included.
    pub(crate) slots: Vec<Slot>,
    /// The slot of each live column.
    pub(crate) index: HashMap<Arc<str>, u16>,
    /// Live slots in the order in which a row prints them, once somebody has asked.
    order: OnceLock<Vec<u16>>,
    /// The slot shown for a reference to a row.
    display: Option<usize>,
}

impl Layout {
    /// The slot of a live column.
    pub(crate) fn slot(&self, element: &str) -> Option<usize> {
        self.index.get(element).map(|&s| usize::from(s))
    }

    /// A live column by name.
    pub(crate) fn column(&self, element: &str) -> Option<&Arc<Column>> {
        self.slot(element).map(|s| &self.slots[s].column)
    }

    /// The live columns in layout order.
    pub(crate) fn live(&self) -> impl Iterator<Item = (usize, &Slot)> {
        self.slots.iter().enumerate().filter(|(_, s)| s.live)
    }

    fn push(&mut self, column: Arc<Column>, owner: TableId) {
        let at = u16::try_from(self.slots.len()).expect("fewer than 65,536 columns");
        self.index.insert(Arc::clone(&column.element), at);
        self.slots.push(Slot { column, owner, live: true });
    }

    /// Live slots in the order in which a row prints them.
    pub(crate) fn order(&self) -> &[u16] {
        self.order.get_or_init(|| {
            let mut order: Vec<u16> = self.index.values().copied().collect();
            key_order::sort_keys(&mut order, |&s| self.slots[usize::from(s)].column.element.to_string());
            order
        })
    }

    fn reorder(&mut self) {
        self.order = OnceLock::new();
        // A child's own display column comes before its parent's, which was made earlier.
        let flagged =
            self.live().filter(|(_, s)| s.column.display).max_by_key(|(at, s)| (s.owner, usize::MAX - at));
        self.display = flagged.map(|(at, _)| at).or_else(|| {
            ["name", "u_name", "number", "u_number", "title", "sys_id"].iter().find_map(|n| self.slot(n))
        });
    }
}

/// One table.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// The name.
    pub(crate) name: Arc<str>,
    /// The label.
    pub(crate) label: String,
    /// The table it extends.
    pub(crate) parent: Option<TableId>,
    /// The columns it defines itself.
    pub(crate) own: Vec<Arc<Column>>,
    /// The slots of its rows.
    pub(crate) layout: Layout,
    /// The numbering of new rows.
    pub(crate) number: Option<Numbering>,
    /// Reachable by web services (facts §8.4).
    pub(crate) ws_access: bool,
    /// Changes are kept in `sys_audit` (facts §8.2).
    pub(crate) audited: bool,
    /// Deletions are kept in `sys_audit_delete` (facts §8.2).
    pub(crate) audits_deletes: bool,
    /// The scope, `global` unless stated.
    pub(crate) scope: String,
    /// Other tables may extend it.
    pub(crate) extendable: bool,
    /// Set for a database view.
    pub(crate) view: Option<View>,
    /// The table was dropped.
    pub(crate) dropped: bool,
}

impl Table {
    /// A table with nothing set but its name, label and parent.
    pub(crate) fn new(name: &str, label: &str, parent: Option<TableId>) -> Self {
        Self {
            name: name.into(),
            label: label.to_owned(),
            parent,
            own: Vec::new(),
            layout: Layout::default(),
            number: None,
            ws_access: true,
            audited: false,
            audits_deletes: true,
            scope: "global".to_owned(),
            extendable: parent.is_some(),
            view: None,
            dropped: false,
        }
    }
}

/// All tables.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schema {
    tables: Vec<Table>,
    by_name: HashMap<Arc<str>, TableId>,
    /// Default values that a child table overrides (facts §7.1, `sys_dictionary_override`).
    pub(crate) overrides: HashMap<(TableId, String), String>,
}

impl Schema {
    /// Adds a table with its own columns; the inherited ones come first in its layout.
    pub(crate) fn add_table(&mut self, mut table: Table) -> TableId {
        let id = TableId(u16::try_from(self.tables.len()).expect("fewer than 65,536 tables"));
        let mut layout = Layout::default();
        if let Some(parent) = table.parent {
            for (_, slot) in self.table(parent).layout.live() {
                layout.push(Arc::clone(&slot.column), slot.owner);
            }
        }
        let own = std::mem::take(&mut table.own);
        for column in own {
            if layout.slot(&column.element).is_none() {
                layout.push(Arc::clone(&column), id);
            }
            table.own.push(column);
        }
        layout.reorder();
        table.layout = layout;
        self.by_name.insert(Arc::clone(&table.name), id);
        self.tables.push(table);
        id
    }

    /// A table by position.
    pub(crate) fn table(&self, id: TableId) -> &Table {
        &self.tables[usize::from(id.0)]
    }

    /// A table by position, to change it.
    pub(crate) fn table_mut(&mut self, id: TableId) -> &mut Table {
        &mut self.tables[usize::from(id.0)]
    }

    /// A table by name.
    pub(crate) fn find(&self, name: &str) -> Option<TableId> {
        self.by_name.get(name).copied()
    }

    /// All tables that exist.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (TableId, &Table)> {
        self.tables.iter().enumerate().filter(|(_, t)| !t.dropped).map(|(i, t)| (TableId(i as u16), t))
    }

    /// The number of table positions, dropped ones included.
    pub(crate) fn len(&self) -> usize {
        self.tables.len()
    }

    /// The table and its ancestors, nearest first.
    pub(crate) fn lineage(&self, id: TableId) -> impl Iterator<Item = TableId> + '_ {
        std::iter::successors(Some(id), |&t| self.table(t).parent)
    }

    /// The topmost ancestor.
    pub(crate) fn root(&self, id: TableId) -> TableId {
        self.lineage(id).last().expect("a lineage starts with the table itself")
    }

    /// True when `id` is `ancestor` or extends it.
    pub(crate) fn is_a(&self, id: TableId, ancestor: TableId) -> bool {
        self.lineage(id).any(|t| t == ancestor)
    }

    /// The table and everything that extends it.
    pub(crate) fn family(&self, id: TableId) -> Vec<TableId> {
        self.tables().map(|(t, _)| t).filter(|&t| self.is_a(t, id)).collect()
    }

    /// Adds a column to a table and to the layouts of its descendants.
    pub(crate) fn add_column(&mut self, id: TableId, column: Column) {
        let column = Arc::new(column);
        self.table_mut(id).own.push(Arc::clone(&column));
        for table in self.family(id) {
            let layout = &mut self.table_mut(table).layout;
            if layout.slot(&column.element).is_none() {
                layout.push(Arc::clone(&column), id);
                layout.reorder();
            }
        }
    }

    /// Puts a changed column in place of the old one of the same name.
    pub(crate) fn replace_column(&mut self, id: TableId, column: Column) {
        let column = Arc::new(column);
        if let Some(own) = self.table_mut(id).own.iter_mut().find(|c| c.element == column.element) {
            *own = Arc::clone(&column);
        }
        for table in self.family(id) {
            let layout = &mut self.table_mut(table).layout;
            if let Some(at) = layout.slot(&column.element)
                && layout.slots[at].owner == id
            {
                layout.slots[at].column = Arc::clone(&column);
                layout.reorder();
            }
        }
    }

    /// Drops a column from a table and its descendants.
    pub(crate) fn drop_column(&mut self, id: TableId, element: &str) {
        self.table_mut(id).own.retain(|c| &*c.element != element);
        for table in self.family(id) {
            let layout = &mut self.table_mut(table).layout;
            if let Some(at) = layout.slot(element)
                && layout.slots[at].owner == id
            {
                layout.slots[at].live = false;
                layout.index.remove(element);
                layout.reorder();
            }
        }
    }

    /// Drops a table.
    pub(crate) fn drop_table(&mut self, id: TableId) {
        let table = self.table_mut(id);
        table.dropped = true;
        let name = Arc::clone(&table.name);
        self.by_name.remove(&name);
    }

    /// The column shown for a reference to a row of this class.
    pub(crate) fn display_slot(&self, id: TableId) -> Option<usize> {
        self.table(id).layout.display
    }

    /// The default of a column for a class, a child's override before the definition.
    pub(crate) fn default_of<'a>(&'a self, id: TableId, column: &'a Column) -> &'a str {
        self.lineage(id)
            .find_map(|t| self.overrides.get(&(t, column.element.to_string())))
            .map_or(&column.default, String::as_str)
    }
}
