//! The rows of all tables and their indexes.

use std::sync::{Arc, OnceLock};

use hashbrown::HashMap;

use super::key::IdKey;
use super::ranked::RankedSet;
use super::symbol::{Symbols, Val};
use crate::calendar;
use crate::schema::choice::Choices;
use crate::schema::{Column, Schema, TableId};
use crate::script::{self, ScriptRule};

/// The position of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RowId(pub(crate) u32);

/// One row: its class and a value per slot of the class's layout; missing trailing slots are empty.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// The class of the row.
    pub(crate) table: TableId,
    vals: Box<[Val]>,
}

impl Row {
    /// The value in a slot.
    pub(crate) fn get(&self, slot: usize) -> Val {
        self.vals.get(slot).copied().unwrap_or(Val::EMPTY)
    }
}

/// The rows of one class (not of its children) in two orders.
#[derive(Debug, Default, Clone)]
pub(crate) struct ClassIndex {
    /// By `sys_id`.
    pub(crate) by_id: RankedSet<(IdKey, RowId)>,
    /// By `sys_updated_on`, then `sys_id`; empty when the class has no such column.
    pub(crate) by_updated: RankedSet<(u32, IdKey, RowId)>,
}

#[derive(Debug, Clone)]
enum Postings {
    One(RowId),
    Many(Vec<RowId>),
}

/// All data of the instance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Db {
    /// The interned texts.
    pub(crate) symbols: Symbols,
    /// The tables.
    pub(crate) schema: Schema,
    /// The choices, kept in step with `sys_choice` by the dictionary.
    pub(crate) choices: Choices,
    /// The last number given out per prefix.
    pub(crate) numbers: HashMap<String, u64>,
    /// Labels that a class shows in place of the dictionary's (`sys_documentation` of a child table).
    pub(crate) labels: HashMap<(TableId, String), String>,
    /// Counts the ids made for new rows.
    pub(crate) made_ids: u64,
    rows: Vec<Option<Row>>,
    free: Vec<RowId>,
    classes: Vec<ClassIndex>,
    ids: HashMap<(TableId, Val), RowId>,
    equal: HashMap<(TableId, Arc<str>), HashMap<Val, Postings>>,
    changes: u64,
    scripts: OnceLock<Arc<Vec<ScriptRule>>>,
}

impl Db {
    /// An empty instance with these tables.
    pub(crate) fn new(schema: Schema) -> Self {
        Self { schema, ..Self::default() }
    }

    /// Counts every change of a row; equal counts mean equal data.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    fn touch(&mut self) {
        self.changes += 1;
    }

    /// The active Business Rules with a script.
    pub(crate) fn script_rules(&self) -> Arc<Vec<ScriptRule>> {
        Arc::clone(self.scripts.get_or_init(|| Arc::new(script::active_rules(self))))
    }

    /// The indexes of a class.
    pub(crate) fn class(&self, table: TableId) -> &ClassIndex {
        static NONE: std::sync::LazyLock<ClassIndex> = std::sync::LazyLock::new(ClassIndex::default);
        self.classes.get(usize::from(table.0)).unwrap_or(&NONE)
    }

    /// A row by position.
    pub(crate) fn row(&self, id: RowId) -> &Row {
        self.rows[id.0 as usize].as_ref().expect("indexes name only rows that exist")
    }

    /// A row by position, if it still exists.
    pub(crate) fn try_row(&self, id: RowId) -> Option<&Row> {
        self.rows.get(id.0 as usize).and_then(Option::as_ref)
    }

    /// The value of a column of a row, empty when its class has no such column.
    pub(crate) fn value(&self, id: RowId, element: &str) -> Val {
        let row = self.row(id);
        self.schema.table(row.table).layout.slot(element).map_or(Val::EMPTY, |s| row.get(s))
    }

    /// The text of a column of a row.
    pub(crate) fn text(&self, id: RowId, element: &str) -> String {
        self.symbols.text(self.value(id, element))
    }

    /// The row with this id in a table or in a class that extends it.
    pub(crate) fn find(&self, table: TableId, sys_id: &str) -> Option<RowId> {
        self.find_val(table, self.symbols.find_fold(sys_id)?)
    }

    /// Like [`Db::find`] with an interned id.
    pub(crate) fn find_val(&self, table: TableId, sys_id: Val) -> Option<RowId> {
        let root = self.schema.root(table);
        let id = *self.ids.get(&(root, self.symbols.fold(sys_id)))?;
        self.schema.is_a(self.row(id).table, table).then_some(id)
    }

    /// The rows of a table and its children whose column equals a text; needs an indexed column.
    pub(crate) fn find_equal(&self, table: TableId, element: &str, text: &str) -> Option<Vec<RowId>> {
        let layout = &self.schema.table(table).layout;
        let slot = &layout.slots[layout.slot(element)?];
        if !slot.column.indexed {
            return None;
        }
        let found = self
            .symbols
            .find_fold(text)
            .and_then(|fold| self.equal.get(&(slot.owner, Arc::clone(&slot.column.element)))?.get(&fold));
        let mut rows = match found {
            None => Vec::new(),
            Some(Postings::One(row)) => vec![*row],
            Some(Postings::Many(rows)) => rows.clone(),
        };
        rows.retain(|&r| self.try_row(r).is_some_and(|row| self.schema.is_a(row.table, table)));
        rows.sort_by_cached_key(|&r| self.id_key(r));
        Some(rows)
    }

    /// The rows whose indexed column of `owner` has this value, without any check of class or order.
    pub(crate) fn postings(&self, owner: TableId, element: &Arc<str>, value: Val) -> &[RowId] {
        let fold = self.symbols.fold(value);
        match self.equal.get(&(owner, Arc::clone(element))).and_then(|m| m.get(&fold)) {
            None => &[],
            Some(Postings::One(row)) => std::slice::from_ref(row),
            Some(Postings::Many(rows)) => rows,
        }
    }

    /// The label that a class shows for a column.
    pub(crate) fn label<'a>(&'a self, class: TableId, column: &'a Column) -> &'a str {
        self.schema
            .lineage(class)
            .find_map(|t| self.labels.get(&(t, column.element.to_string())))
            .map_or(&column.label, String::as_str)
    }

    /// The value of a system property, empty when there is none.
    pub(crate) fn property(&self, name: &str) -> String {
        let Some(table) = self.schema.find("sys_properties") else { return String::new() };
        let rows = self.find_equal(table, "name", name).unwrap_or_default();
        rows.first().map_or_else(String::new, |&r| self.text(r, "value"))
    }

    /// True when a system property is `true`.
    pub(crate) fn property_is_on(&self, name: &str) -> bool {
        self.property(name) == "true"
    }

    /// The key of a row in the order of ids.
    pub(crate) fn id_key(&self, id: RowId) -> (IdKey, RowId) {
        let text = self.symbols.borrow(self.value(id, "sys_id")).unwrap_or("");
        (IdKey::of(text), id)
    }

    /// All rows of a table and its children, class by class in the order of ids.
    pub(crate) fn scan(&self, table: TableId) -> impl Iterator<Item = RowId> + '_ {
        self.schema.family(table).into_iter().flat_map(|t| self.class(t).by_id.iter_from(0).map(|(_, r)| r))
    }

    /// The number of rows of a table and its children.
    pub(crate) fn count(&self, table: TableId) -> usize {
        self.schema.family(table).into_iter().map(|t| self.class(t).by_id.len()).sum()
    }

    /// The display value of a row.
    pub(crate) fn display(&self, id: RowId) -> Val {
        let row = self.row(id);
        self.schema.display_slot(row.table).map_or(Val::EMPTY, |s| row.get(s))
    }

    /// The display text of a row; a display column that is itself a reference is followed.
    pub(crate) fn display_text(&self, id: RowId) -> String {
        self.symbols.text(self.display_value(id))
    }

    /// As [`Db::display_text`], as it is stored.
    pub(crate) fn display_value(&self, mut id: RowId) -> Val {
        for _ in 0..4 {
            let row = self.row(id);
            let Some(slot) = self.schema.display_slot(row.table) else { return Val::EMPTY };
            let column = &self.schema.table(row.table).layout.slots[slot].column;
            let target = column.reference.as_deref().and_then(|t| self.schema.find(t));
            match target.and_then(|t| self.find_val(t, row.get(slot))) {
                Some(next) => id = next,
                None => return row.get(slot),
            }
        }
        Val::EMPTY
    }

    /// Adds a row with a value per slot.
    pub(crate) fn insert(&mut self, table: TableId, vals: Vec<Val>) -> RowId {
        let row = Row { table, vals: vals.into_boxed_slice() };
        let id = match self.free.pop() {
            Some(id) => {
                self.rows[id.0 as usize] = Some(row);
                id
            }
            None => {
                self.rows.push(Some(row));
                RowId(u32::try_from(self.rows.len() - 1).expect("fewer than four thousand million rows"))
            }
        };
        self.index(id, true);
        self.touch();
        id
    }

    /// Puts new values and perhaps a new class in place of a row's.
    pub(crate) fn replace(&mut self, id: RowId, table: TableId, vals: Vec<Val>) {
        self.index(id, false);
        self.rows[id.0 as usize] = Some(Row { table, vals: vals.into_boxed_slice() });
        self.index(id, true);
        self.touch();
    }

    /// Takes a row out.
    pub(crate) fn remove(&mut self, id: RowId) {
        self.index(id, false);
        self.rows[id.0 as usize] = None;
        self.free.push(id);
        self.touch();
    }

    /// A copy of the values of a row, one per slot of its class.
    pub(crate) fn values(&self, id: RowId) -> Vec<Val> {
        let row = self.row(id);
        (0..self.schema.table(row.table).layout.slots.len()).map(|s| row.get(s)).collect()
    }

    fn index(&mut self, id: RowId, add: bool) {
        let row = self.rows[id.0 as usize].as_ref().expect("the row exists");
        let table = row.table;
        if self.classes.len() < self.schema.len() {
            self.classes.resize_with(self.schema.len(), ClassIndex::default);
        }
        if &*self.schema.table(table).name == "sys_script" {
            self.scripts = OnceLock::new();
        }
        let layout = &self.schema.table(table).layout;
        let sys_id = layout.slot("sys_id").map_or(Val::EMPTY, |s| row.get(s));
        let key = IdKey::of(self.symbols.borrow(sys_id).unwrap_or(""));
        let class = &mut self.classes[usize::from(table.0)];
        let updated = layout.slot("sys_updated_on").map(|s| {
            let value = row.get(s);
            let seconds = value.as_seconds().or_else(|| self.symbols.with(value, calendar::parse_canonical));
            u32::try_from(seconds.unwrap_or(0).max(0)).unwrap_or(u32::MAX)
        });
        if add {
            class.by_id.insert((key, id));
            if let Some(at) = updated {
                class.by_updated.insert((at, key, id));
            }
        } else {
            class.by_id.remove(&(key, id));
            if let Some(at) = updated {
                class.by_updated.remove(&(at, key, id));
            }
        }
        let id_entry = (self.schema.root(table), self.symbols.fold(sys_id));
        if add {
            self.ids.insert(id_entry, id);
        } else if self.ids.get(&id_entry) == Some(&id) {
            self.ids.remove(&id_entry);
        }
        for (slot, s) in layout.live().filter(|(_, s)| s.column.indexed) {
            let fold = self.symbols.fold(row.get(slot));
            let postings = self.equal.entry((s.owner, Arc::clone(&s.column.element))).or_default();
            if add { post(postings, fold, id) } else { unpost(postings, fold, id) }
        }
    }
}

fn post(map: &mut HashMap<Val, Postings>, key: Val, id: RowId) {
    match map.get_mut(&key) {
        None => {
            map.insert(key, Postings::One(id));
        }
        Some(Postings::One(other)) => {
            let both = vec![*other, id];
            map.insert(key, Postings::Many(both));
        }
        Some(Postings::Many(rows)) => rows.push(id),
    }
}

fn unpost(map: &mut HashMap<Val, Postings>, key: Val, id: RowId) {
    match map.get_mut(&key) {
        Some(Postings::One(row)) if *row == id => {
            map.remove(&key);
        }
        Some(Postings::Many(rows)) => rows.retain(|r| *r != id),
        _ => {}
    }
}
