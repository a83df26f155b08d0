//! Writing records: what happens inside the instance whenever a row is made, changed or deleted (facts §1.6).
//!
//! The Table API, the direct-edit API and the replay all come through here; they differ in the [`Options`].

use std::collections::HashSet;

use chrono::{DateTime, Utc};

use crate::acl::Operation;
use crate::rules::{self, BusinessRule, Phase};
use crate::schema::{Cascade, Kind, TableId};
use crate::script::effect::Effects;
use crate::store::{Db, RowId, Val};
use crate::users::Actor;
use crate::{audit, calendar, dictionary, ident, script};

/// Why a write was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A before rule aborted the operation.
    #[error(
        "Operation against file '{table}' was aborted by Business Rule '{name}^{sys_id}'. Business Rule Stack:{name}"
    )]
    Aborted {
        /// The table.
        table: String,
        /// The rule's name.
        name: String,
        /// The rule's id.
        sys_id: String,
    },
    /// A data policy found mandatory fields empty.
    #[error("Data Policy Exception: The following fields are mandatory: {}", labels.join(", "))]
    DataPolicy {
        /// The labels of the fields.
        labels: Vec<String>,
    },
    /// A unique column would hold a value twice.
    #[error("Unique Key violation detected by database (Duplicate entry '{value}' for key '{key}')")]
    Duplicate {
        /// The value.
        value: String,
        /// The column or `PRIMARY`.
        key: String,
    },
    /// A reference with the Restrict rule forbids the delete.
    #[error("Delete is restricted by a reference from '{table}.{element}'")]
    Restricted {
        /// The referring table.
        table: String,
        /// The referring column.
        element: String,
    },
    /// A table or column definition cannot be made.
    #[error("{0}")]
    Definition(String),
}

/// How a write behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Stamp `sys_updated_on`, `sys_updated_by` and `sys_mod_count` (`autoSysFields`, facts §8.1).
    pub auto_sys_fields: bool,
    /// Run business rules, audit and journal (`setWorkflow`, facts §8.1).
    pub workflow: bool,
    /// Stamp even when nothing changed.
    pub force: bool,
    /// Without a workflow: run the scripts of after rules all the same. What else the workflow does is in the values already.
    pub scripts: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { auto_sys_fields: true, workflow: true, force: false, scripts: false }
    }
}

/// A write in progress: the data, who writes, and how.
pub(crate) struct Writer<'a> {
    /// The data.
    pub(crate) db: &'a mut Db,
    /// Who writes.
    pub(crate) actor: &'a Actor,
    /// The instance's present.
    pub(crate) now: DateTime<Utc>,
    /// The business rules.
    pub(crate) rules: &'a [BusinessRule],
    /// How the write behaves.
    pub(crate) options: Options,
    /// Whether clearing a reference on delete stamps the referring row (facts §13: not established).
    pub(crate) cascade_stamps: bool,
    /// The seed of ids for new rows.
    pub(crate) seed: u64,
    /// What is left to be done after the transaction.
    pub(crate) effects: Effects,
    /// How many rules this write runs in.
    pub(crate) depth: usize,
}

/// A row as it will be stored.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    /// The class.
    pub(crate) table: TableId,
    /// A value per slot.
    pub(crate) vals: Vec<Val>,
    /// Journal entries to append, by column.
    pub(crate) notes: Vec<(String, String)>,
}

impl Draft {
    /// The value of a column.
    pub(crate) fn get(&self, db: &Db, element: &str) -> Val {
        db.schema
            .table(self.table)
            .layout
            .slot(element)
            .and_then(|s| self.vals.get(s).copied())
            .unwrap_or(Val::EMPTY)
    }

    /// The text of a column.
    pub(crate) fn text(&self, db: &Db, element: &str) -> String {
        db.symbols.text(self.get(db, element))
    }

    /// Sets a column if the class has it.
    pub(crate) fn set(&mut self, db: &mut Db, element: &str, text: &str) {
        if let Some(slot) = db.schema.table(self.table).layout.slot(element) {
            self.vals[slot] = db.symbols.intern(text);
        }
    }

    /// True when the class has a column.
    pub(crate) fn has(&self, db: &Db, element: &str) -> bool {
        db.schema.table(self.table).layout.slot(element).is_some()
    }
}

impl Writer<'_> {
    /// The present as the instance writes it.
    pub(crate) fn stamp(&self) -> String {
        calendar::format_utc(self.now)
    }

    fn new_id(&mut self) -> String {
        self.db.made_ids += 1;
        ident::opaque(self.seed, "row", self.db.made_ids)
    }

    /// Makes a row from column values.
    pub(crate) fn insert(&mut self, table: TableId, fields: &[(String, String)]) -> Result<RowId, Refusal> {
        let (table, fields) = dictionary::before_insert(self, table, fields)?;
        let mut draft = self.fresh(table);
        for (element, value) in &fields {
            self.assign(&mut draft, element, value);
        }
        self.stamp_new(&mut draft);
        if self.options.workflow {
            rules::derive(self, &mut draft, None, &names(&fields));
            rules::check_policies(self.db, &draft, None)?;
        }
        self.check_unique(&draft, None)?;
        let row = self.db.insert(draft.table, draft.vals.clone());
        if self.options.workflow
            && let Err(refusal) = rules::run(self, row, Operation::Create, Phase::Before, None)
        {
            self.db.remove(row);
            return Err(refusal);
        }
        self.append_notes(row, &draft.notes);
        if let Err(refusal) = dictionary::after_insert(self, row) {
            self.db.remove(row);
            return Err(refusal);
        }
        if self.options.workflow {
            rules::run(self, row, Operation::Create, Phase::After, None)?;
        }
        Ok(row)
    }

    /// A row with the defaults of its class (facts §1.6).
    fn fresh(&mut self, table: TableId) -> Draft {
        let slots = self.db.schema.table(table).layout.slots.len();
        let mut draft = Draft { table, vals: vec![Val::EMPTY; slots], notes: Vec::new() };
        let defaults: Vec<(usize, String)> = self
            .db
            .schema
            .table(table)
            .layout
            .live()
            .filter_map(|(at, s)| {
                let default = self.db.schema.default_of(table, &s.column);
                (!default.is_empty() && !default.starts_with("javascript:")).then(|| (at, default.to_owned()))
            })
            .collect();
        for (at, default) in defaults {
            draft.vals[at] = self.db.symbols.intern(&default);
        }
        draft
    }

    fn stamp_new(&mut self, draft: &mut Draft) {
        let db = &mut *self.db;
        let class = db.schema.table(draft.table).name.to_string();
        draft.set(db, "sys_class_name", &class);
        if draft.get(db, "sys_id").is_empty() {
            let id = self.new_id();
            draft.set(self.db, "sys_id", &id);
        }
        let (now, user) = (self.stamp(), self.actor.user_name.clone());
        for (element, value) in [
            ("sys_created_on", now.as_str()),
            ("sys_updated_on", now.as_str()),
            ("sys_created_by", user.as_str()),
            ("sys_updated_by", user.as_str()),
            ("sys_mod_count", "0"),
        ] {
            if self.options.auto_sys_fields || draft.get(self.db, element).is_empty() {
                draft.set(self.db, element, value);
            }
        }
        self.assign_number(draft);
    }

    /// Gives the next number of the class, or of the nearest ancestor that numbers (facts §10).
    fn assign_number(&mut self, draft: &mut Draft) {
        let lineage: Vec<TableId> = self.db.schema.lineage(draft.table).collect();
        let rule = lineage.iter().find_map(|&t| self.db.schema.table(t).number.clone());
        let Some(rule) = rule else { return };
        if draft.has(self.db, "number") && draft.get(self.db, "number").is_empty() {
            let next = self.db.numbers.entry(rule.prefix.clone()).or_insert(10_000);
            *next += 1;
            let number = format!("{}{:0width$}", rule.prefix, next, width = rule.width);
            draft.set(self.db, "number", &number);
        }
    }

    /// Sets a column of a draft; a journal column is appended to instead.
    fn assign(&mut self, draft: &mut Draft, element: &str, value: &str) {
        let Some(column) = self.db.schema.table(draft.table).layout.column(element).cloned() else { return };
        match column.kind {
            Kind::Journal | Kind::JournalList => {
                if !value.is_empty() && column.kind == Kind::Journal {
                    draft.notes.push((element.to_owned(), value.to_owned()));
                }
            }
            _ => draft.set(self.db, element, value),
        }
    }

    /// Changes a row; true when something changed.
    pub(crate) fn update(&mut self, row: RowId, fields: &[(String, String)]) -> Result<bool, Refusal> {
        let old_class = self.db.row(row).table;
        let old = self.db.values(row);
        let mut draft = Draft { table: old_class, vals: old.clone(), notes: Vec::new() };
        if let Some((_, class)) = fields.iter().find(|(e, _)| e == "sys_class_name") {
            self.reclassify(&mut draft, class);
        }
        for (element, value) in fields {
            if matches!(element.as_str(), "sys_class_name" | "sys_id")
                || (self.options.auto_sys_fields && is_stamp(element))
            {
                continue;
            }
            self.assign(&mut draft, element, value);
        }
        let changed = draft.table != old_class || draft.vals != old || !draft.notes.is_empty();
        if !changed && !self.options.force {
            return Ok(false);
        }
        let previous = Draft { table: old_class, vals: old.clone(), notes: Vec::new() };
        if self.options.workflow {
            rules::derive(self, &mut draft, Some(&previous), &names(fields));
            rules::check_policies(self.db, &draft, Some(&previous))?;
        }
        self.check_unique(&draft, Some(row))?;
        if self.options.auto_sys_fields {
            self.stamp_update(&mut draft);
        }
        dictionary::before_update(self, row, &draft)?;
        self.db.replace(row, draft.table, draft.vals.clone());
        if self.options.workflow
            && let Err(refusal) = rules::run(self, row, Operation::Write, Phase::Before, Some(&previous))
        {
            self.db.replace(row, old_class, old);
            return Err(refusal);
        }
        self.append_notes(row, &draft.notes);
        if self.options.workflow {
            audit::record_update(self, row, &previous);
        }
        dictionary::after_update(self, row);
        if self.options.workflow {
            rules::run(self, row, Operation::Write, Phase::After, Some(&previous))?;
        } else if self.options.scripts {
            script::run(self, row, Operation::Write, Phase::After, Some(&previous))?;
        }
        Ok(true)
    }

    /// Changes the class of a row, keeping its id and the columns both classes have (facts §8.1, reclassification).
    fn reclassify(&mut self, draft: &mut Draft, class: &str) {
        let Some(to) = self.db.schema.find(class) else { return };
        if to == draft.table || self.db.schema.root(to) != self.db.schema.root(draft.table) {
            return;
        }
        let mut moved = self.fresh(to);
        let from = self.db.schema.table(draft.table).layout.clone();
        for (at, slot) in from.live() {
            if let Some(target) = self.db.schema.table(to).layout.slot(&slot.column.element) {
                moved.vals[target] = draft.vals[at];
            }
        }
        moved.set(self.db, "sys_class_name", class);
        *draft = moved;
    }

    fn stamp_update(&mut self, draft: &mut Draft) {
        let count = draft.text(self.db, "sys_mod_count").parse::<i64>().unwrap_or(0) + 1;
        let (now, user) = (self.stamp(), self.actor.user_name.clone());
        draft.set(self.db, "sys_updated_on", &now);
        draft.set(self.db, "sys_updated_by", &user);
        draft.set(self.db, "sys_mod_count", &count.to_string());
    }

    fn check_unique(&self, draft: &Draft, current: Option<RowId>) -> Result<(), Refusal> {
        let db = &*self.db;
        let root = db.schema.root(draft.table);
        let id = draft.get(db, "sys_id");
        if db.find_val(root, id).is_some_and(|r| Some(r) != current) {
            return Err(Refusal::Duplicate { value: db.symbols.text(id), key: "PRIMARY".to_owned() });
        }
        let layout = &db.schema.table(draft.table).layout;
        for (at, slot) in layout.live().filter(|(_, s)| s.column.unique) {
            let value = draft.vals[at];
            if value.is_empty() || current.is_some_and(|r| db.value(r, &slot.column.element) == value) {
                continue;
            }
            let fold = db.symbols.fold(value);
            let element = &slot.column.element;
            let taken = if slot.column.indexed {
                db.postings(slot.owner, element, value).iter().any(|r| Some(*r) != current)
            } else {
                db.scan(slot.owner)
                    .any(|r| Some(r) != current && db.symbols.fold(db.value(r, element)) == fold)
            };
            if taken {
                return Err(Refusal::Duplicate { value: db.symbols.text(value), key: element.to_string() });
            }
        }
        Ok(())
    }

    /// Appends journal entries to `sys_journal_field` (facts §1.4).
    fn append_notes(&mut self, row: RowId, notes: &[(String, String)]) {
        let Some(journal) = self.db.schema.find("sys_journal_field") else { return };
        for (element, text) in notes {
            let fields = [
                ("name", self.db.schema.table(self.db.row(row).table).name.to_string()),
                ("element_id", self.db.text(row, "sys_id")),
                ("element", element.clone()),
                ("value", text.clone()),
            ];
            self.insert_plain(journal, &fields);
        }
    }

    /// Makes a row of a platform table without rules, stamped now.
    pub(crate) fn insert_plain(&mut self, table: TableId, fields: &[(&str, String)]) -> RowId {
        let mut draft = self.fresh(table);
        for (element, value) in fields {
            draft.set(self.db, element, value);
        }
        self.stamp_new(&mut draft);
        self.db.insert(draft.table, draft.vals)
    }

    /// Deletes a row and applies the delete rules of everything that references it (facts §1.6).
    pub(crate) fn delete(&mut self, row: RowId) -> Result<(), Refusal> {
        let mut doomed = HashSet::new();
        self.check_restrictions(row, &mut doomed)?;
        if self.options.workflow {
            rules::run(self, row, Operation::Delete, Phase::Before, None)?;
        }
        dictionary::before_delete(self, row)?;
        if self.options.workflow {
            audit::record_delete(self, row);
            rules::run(self, row, Operation::Delete, Phase::After, None)?;
        }
        let referrers = self.referrers(row);
        let class = self.db.row(row).table;
        self.db.remove(row);
        dictionary::after_delete(self, class);
        for (referrer, element, rule) in referrers {
            if self.db.try_row(referrer).is_none() {
                continue;
            }
            match rule {
                Cascade::Clear => self.clear(referrer, &element),
                Cascade::Delete => self.delete(referrer)?,
                Cascade::Restrict | Cascade::None => {}
            }
        }
        Ok(())
    }

    fn check_restrictions(&self, row: RowId, doomed: &mut HashSet<RowId>) -> Result<(), Refusal> {
        if !doomed.insert(row) {
            return Ok(());
        }
        for (referrer, element, rule) in self.referrers(row) {
            match rule {
                Cascade::Restrict => {
                    let table = self.db.schema.table(self.db.row(referrer).table).name.to_string();
                    return Err(Refusal::Restricted { table, element });
                }
                Cascade::Delete => self.check_restrictions(referrer, doomed)?,
                Cascade::Clear | Cascade::None => {}
            }
        }
        Ok(())
    }

    /// The rows that reference a row, by column and delete rule.
    fn referrers(&self, row: RowId) -> Vec<(RowId, String, Cascade)> {
        let db = &*self.db;
        let class = db.row(row).table;
        let id = db.symbols.fold(db.value(row, "sys_id"));
        let lineage: Vec<&str> = db.schema.lineage(class).map(|t| &*db.schema.table(t).name).collect();
        let mut out = Vec::new();
        for (table, t) in db.schema.tables() {
            let slots: Vec<(usize, &str, Cascade)> = t
                .layout
                .live()
                .filter(|(_, s)| {
                    s.column.kind == Kind::Reference
                        && s.column.reference_key.is_none()
                        && s.column.reference.as_deref().is_some_and(|r| lineage.contains(&r))
                })
                .map(|(at, s)| (at, &*s.column.element, s.column.cascade))
                .collect();
            if slots.is_empty() {
                continue;
            }
            for (_, referrer) in db.class(table).by_id.iter_from(0) {
                let candidate = db.row(referrer);
                for (at, element, rule) in &slots {
                    let value = candidate.get(*at);
                    if referrer != row && !value.is_empty() && db.symbols.fold(value) == id {
                        out.push((referrer, (*element).to_owned(), *rule));
                    }
                }
            }
        }
        out
    }

    fn clear(&mut self, row: RowId, element: &str) {
        let class = self.db.row(row).table;
        let mut draft = Draft { table: class, vals: self.db.values(row), notes: Vec::new() };
        draft.set(self.db, element, "");
        if self.cascade_stamps {
            self.stamp_update(&mut draft);
        }
        self.db.replace(row, class, draft.vals);
    }
}

fn names(fields: &[(String, String)]) -> Vec<&str> {
    fields.iter().map(|(e, _)| e.as_str()).collect()
}

/// True for the columns that an update stamps itself (facts §1.6).
pub(crate) fn is_stamp(element: &str) -> bool {
    matches!(
        element,
        "sys_updated_on"
            | "sys_updated_by"
            | "sys_mod_count"
            | "sys_created_on"
            | "sys_created_by"
            | "sys_id"
    )
}
