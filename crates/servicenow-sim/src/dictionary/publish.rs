//! The schema as rows of the metadata tables, and the quick making of rows in general.

use crate::ident;
use crate::record::Draft;
use crate::schema::choice::{self, Choice};
use crate::schema::{Column, ReadOnly, Schema, Table, TableId, types};
use crate::store::{Db, RowId, Val};

/// The stamp of the rows that came with the instance.
pub(crate) const BASE_STAMP: &str = "2016-02-02 13:32:57";

/// Makes rows of one table quickly: defaults are interned once.
pub(crate) struct Seeder {
    table: TableId,
    template: Vec<Val>,
}

impl Seeder {
    /// A seeder of a table, stamped by `user` at `stamp` unless a row says otherwise.
    pub(crate) fn new(db: &mut Db, table: &str, user: &str, stamp: &str) -> Self {
        let id = db.schema.find(table).unwrap_or_else(|| panic!("base table {table}"));
        let layout = db.schema.table(id).layout.clone();
        let mut template = vec![Val::EMPTY; layout.slots.len()];
        for (at, slot) in layout.live() {
            let default = db.schema.default_of(id, &slot.column).to_owned();
            template[at] = db.symbols.intern(&default);
        }
        for (element, text) in [
            ("sys_created_on", stamp),
            ("sys_updated_on", stamp),
            ("sys_created_by", user),
            ("sys_updated_by", user),
            ("sys_mod_count", "0"),
            ("sys_class_name", table),
        ] {
            if let Some(at) = layout.slot(element) {
                template[at] = db.symbols.intern(text);
            }
        }
        Self { table: id, template }
    }

    /// Adds a row.
    pub(crate) fn add(&self, db: &mut Db, fields: &[(&str, &str)]) -> RowId {
        let mut draft = Draft { table: self.table, vals: self.template.clone(), notes: Vec::new() };
        for (element, text) in fields {
            debug_assert!(draft.has(db, element), "no column {element}");
            draft.set(db, element, text);
        }
        db.insert(self.table, draft.vals)
    }
}

/// The `sys_id` of a table's row in `sys_db_object`.
fn table_id(name: &str) -> String {
    ident::sys_id("sys_db_object", name)
}

fn truth(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// Publishes the schema as rows.
pub(crate) fn publish(db: &mut Db) {
    let schema = db.schema.clone();
    let seeders = Seeders::new(db, "system", BASE_STAMP);
    for (_, table) in schema.tables() {
        seeders.table(db, &schema, table);
    }
    let glide = Seeder::new(db, "sys_glide_object", "system", BASE_STAMP);
    for name in types::TYPES {
        let fields = [
            ("sys_id", ident::sys_id("sys_glide_object", name)),
            ("name", (*name).to_owned()),
            ("label", title(name)),
            ("scalar_type", types::scalar_type(name).to_owned()),
        ];
        let fields: Vec<(&str, &str)> = fields.iter().map(|(e, v)| (*e, v.as_str())).collect();
        glide.add(db, &fields);
    }
    let choices = Seeder::new(db, "sys_choice", "system", BASE_STAMP);
    for (table, element, choice) in choice::base_choices() {
        add_choice(db, &choices, &table, &element, &choice);
    }
    let sets = Seeder::new(db, "sys_choice_set", "system", BASE_STAMP);
    let named: std::collections::BTreeSet<(String, String)> =
        choice::base_choices().into_iter().map(|(table, element, _)| (table, element)).collect();
    for (table, element) in named {
        let id = ident::sys_id("sys_choice_set", &format!("{table}.{element}"));
        sets.add(db, &[("sys_id", &id), ("name", &table), ("element", &element)]);
    }
    super::rebuild_choices(db);
}

/// Adds a row of `sys_choice`.
pub(crate) fn add_choice(db: &mut Db, seeder: &Seeder, table: &str, element: &str, choice: &Choice) {
    let key = format!("{table}.{element}.{}.{}.{}", choice.value, choice.language, choice.dependent);
    let (id, sequence) = (ident::sys_id("sys_choice", &key), choice.sequence.to_string());
    seeder.add(
        db,
        &[
            ("sys_id", &id),
            ("name", table),
            ("element", element),
            ("value", &choice.value),
            ("label", &choice.label),
            ("language", &choice.language),
            ("sequence", &sequence),
            ("inactive", truth(choice.inactive)),
            ("dependent_value", &choice.dependent),
        ],
    );
}

/// A name as a label: `due_date` becomes `Due date`.
pub(super) fn title(name: &str) -> String {
    let text = name.replace('_', " ");
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().collect::<String>() + chars.as_str())
}

pub(super) struct Seeders {
    table: Seeder,
    column: Seeder,
    label: Seeder,
}

impl Seeders {
    pub(super) fn new(db: &mut Db, user: &str, stamp: &str) -> Self {
        Self {
            table: Seeder::new(db, "sys_db_object", user, stamp),
            column: Seeder::new(db, "sys_dictionary", user, stamp),
            label: Seeder::new(db, "sys_documentation", user, stamp),
        }
    }

    fn table(&self, db: &mut Db, schema: &Schema, table: &Table) {
        let parent = table.parent.map_or_else(String::new, |p| table_id(&schema.table(p).name));
        self.table.add(
            db,
            &[
                ("sys_id", &table_id(&table.name)),
                ("name", &table.name),
                ("label", &table.label),
                ("super_class", &parent),
                ("is_extendable", truth(table.extendable)),
                ("sys_scope", &table.scope),
                ("ws_access", truth(table.ws_access)),
                ("sys_name", &table.label),
            ],
        );
        self.members(db, table);
    }

    /// The dictionary and label rows of a table and its own columns.
    pub(super) fn members(&self, db: &mut Db, table: &Table) {
        let mut attributes = String::new();
        if !table.audits_deletes {
            attributes.push_str("no_audit_delete=true");
        }
        self.column.add(
            db,
            &[
                ("sys_id", &ident::sys_id("sys_dictionary", &table.name)),
                ("name", &table.name),
                ("internal_type", "collection"),
                ("column_label", ""),
                ("audit", truth(table.audited)),
                ("attributes", &attributes),
                ("sys_name", &table.label),
            ],
        );
        self.label.add(
            db,
            &[
                ("sys_id", &ident::sys_id("sys_documentation", &table.name)),
                ("name", &table.name),
                ("label", &table.label),
                ("plural", &format!("{}s", table.label)),
            ],
        );
        for column in &table.own {
            self.column(db, &table.name, column);
        }
    }

    fn column(&self, db: &mut Db, table: &str, column: &Column) {
        let key = format!("{table}.{}", column.element);
        self.column.add(
            db,
            &[
                ("sys_id", &ident::sys_id("sys_dictionary", &key)),
                ("name", table),
                ("element", &column.element),
                ("column_label", &column.label),
                ("internal_type", &column.internal_type),
                ("max_length", &column.max_length.to_string()),
                ("reference", column.reference.as_deref().unwrap_or("")),
                ("reference_key", column.reference_key.as_deref().unwrap_or("")),
                ("reference_cascade_rule", column.cascade.name()),
                ("mandatory", truth(column.mandatory)),
                ("read_only", truth(column.read_only != ReadOnly::No)),
                ("read_only_option", column.read_only.option()),
                ("display", truth(column.display)),
                ("unique", truth(column.unique)),
                ("primary", truth(&*column.element == "sys_id")),
                ("active", truth(column.active)),
                ("virtual", truth(column.computed)),
                ("choice", &column.choice.to_string()),
                ("choice_table", column.choice_table.as_deref().unwrap_or("")),
                ("choice_field", column.choice_field.as_deref().unwrap_or("")),
                ("dependent", column.dependent.as_deref().unwrap_or("")),
                ("dependent_on_field", column.dependent.as_deref().unwrap_or("")),
                ("default_value", &column.default),
                ("attributes", &column.attributes),
                ("sys_update_name", &format!("sys_dictionary_{table}_{}", column.element)),
                ("sys_name", &column.label),
            ],
        );
        let class = db.schema.find(table);
        if class.is_some_and(|class| db.labels.contains_key(&(class, column.element.to_string()))) {
            return; // it has a label of its own there, one per language
        }
        self.label.add(
            db,
            &[
                ("sys_id", &ident::sys_id("sys_documentation", &key)),
                ("name", table),
                ("element", &column.element),
                ("label", &column.label),
                ("plural", &column.label),
                ("hint", &column.hint),
            ],
        );
    }
}
