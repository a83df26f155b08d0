//! Keeps the metadata tables and the schema in step (facts §7.1, §7.2, §8.4).
//!
//! At start the schema is published as rows of `sys_db_object`, `sys_dictionary`, `sys_documentation`,
//! `sys_glide_object` and `sys_choice`; afterwards a write to one of those rows changes the schema.

mod publish;

pub(crate) use publish::{BASE_STAMP, Seeder, add_choice, publish};
use publish::{Seeders, title};

use crate::ident;
use crate::record::{Draft, Refusal, Writer};
use crate::schema::choice::{Choice, Choices};
use crate::schema::{Cascade, Column, Kind, ReadOnly, Table, TableId, definition};
use crate::store::{Db, RowId};

/// Reads all choices from the rows of `sys_choice`.
pub(crate) fn rebuild_choices(db: &mut Db) {
    let Some(table) = db.schema.find("sys_choice") else { return };
    let mut choices = Choices::default();
    for row in db.scan(table) {
        let text = |element: &str| db.text(row, element);
        let choice = Choice {
            value: text("value"),
            label: text("label"),
            language: text("language"),
            sequence: text("sequence").parse().unwrap_or(0),
            inactive: text("inactive") == "true",
            dependent: text("dependent_value"),
        };
        choices.add(&text("name"), &text("element"), choice);
    }
    choices.sort();
    db.choices = choices;
}

fn name_of(db: &Db, table: TableId) -> &str {
    &db.schema.table(table).name
}

fn take(fields: &[(String, String)], element: &str) -> String {
    fields.iter().find(|(e, _)| e == element).map_or_else(String::new, |(_, v)| v.clone())
}

fn put(fields: &mut Vec<(String, String)>, element: &str, value: String) {
    fields.retain(|(e, _)| e != element);
    fields.push((element.to_owned(), value));
}

/// A text as a column or table name: lower case, no double underscores (facts §7.1).
fn identifier(text: &str) -> String {
    let mut out = String::new();
    for c in text.trim().chars() {
        let c = if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        if c != '_' || !out.ends_with('_') {
            out.push(c);
        }
    }
    out.trim_matches('_').to_owned()
}

/// Adjusts the fields of a new row: custom names get their prefix (facts §8.4), a named subclass its own table.
pub(crate) fn before_insert(
    writer: &mut Writer<'_>,
    table: TableId,
    fields: &[(String, String)],
) -> Result<(TableId, Vec<(String, String)>), Refusal> {
    let mut fields = fields.to_vec();
    match name_of(writer.db, table) {
        "sys_db_object" => {
            let mut name = identifier(&take(&fields, "name"));
            if name.is_empty() {
                name = identifier(&take(&fields, "label"));
            }
            if !name.starts_with("u_") && !name.starts_with("x_") {
                name = format!("u_{name}");
            }
            if name.len() > 80 || writer.db.schema.find(&name).is_some() {
                return Err(Refusal::Definition(format!("Table name '{name}' cannot be used")));
            }
            if take(&fields, "label").is_empty() {
                put(&mut fields, "label", title(name.trim_start_matches("u_")));
            }
            put(&mut fields, "name", name);
        }
        "sys_dictionary" => {
            let target = writer
                .db
                .schema
                .find(&take(&fields, "name"))
                .ok_or_else(|| Refusal::Definition(format!("Invalid table {}", take(&fields, "name"))))?;
            if take(&fields, "internal_type") != "collection" {
                let mut element = identifier(&take(&fields, "element"));
                if element.is_empty() {
                    element = identifier(&take(&fields, "column_label"));
                }
                let owner = name_of(writer.db, target);
                let prefixed =
                    element.starts_with("u_") || element.starts_with("x_") || owner.starts_with("x_");
                if !prefixed {
                    element = format!("u_{element}");
                }
                if writer.db.schema.table(target).layout.slot(&element).is_some() {
                    return Err(Refusal::Definition(format!("Column '{element}' exists in table '{owner}'")));
                }
                if take(&fields, "column_label").is_empty() {
                    put(&mut fields, "column_label", title(element.trim_start_matches("u_")));
                }
                if take(&fields, "internal_type").is_empty() {
                    put(&mut fields, "internal_type", "string".to_owned());
                }
                put(&mut fields, "element", element);
            }
        }
        _ => {
            let class = take(&fields, "sys_class_name");
            if let Some(class) = writer.db.schema.find(&class)
                && writer.db.schema.is_a(class, table)
            {
                return Ok((class, fields));
            }
        }
    }
    Ok((table, fields))
}

/// Carries a new metadata row into the schema.
pub(crate) fn after_insert(writer: &mut Writer<'_>, row: RowId) -> Result<(), Refusal> {
    let class = writer.db.row(row).table;
    match name_of(writer.db, class) {
        "sys_db_object" => create_table(writer, row),
        "sys_dictionary" => create_column(writer, row),
        "sys_choice" => rebuild_choices(writer.db),
        "sys_documentation" => relabel(writer.db, row),
        "sys_dictionary_override" => override_default(writer.db, row),
        _ => {}
    }
    Ok(())
}

fn create_table(writer: &mut Writer<'_>, row: RowId) {
    let db = &mut *writer.db;
    let (name, label) = (db.text(row, "name"), db.text(row, "label"));
    let objects = db.row(row).table;
    let parent =
        db.find_val(objects, db.value(row, "super_class")).and_then(|r| db.schema.find(&db.text(r, "name")));
    let mut table = Table::new(&name, &label, parent);
    table.extendable = db.text(row, "is_extendable") == "true" || parent.is_some();
    table.ws_access = db.text(row, "ws_access") != "false";
    table.scope = db.text(row, "sys_scope");
    definition::add_system_columns(&mut table, "");
    db.schema.add_table(table.clone());
    let stamp = crate::calendar::format_utc(writer.now);
    let user = writer.actor.user_name.clone();
    Seeders::new(writer.db, &user, &stamp).members(writer.db, &table);
}

fn create_column(writer: &mut Writer<'_>, row: RowId) {
    let db = &mut *writer.db;
    let Some(table) = db.schema.find(&db.text(row, "name")) else { return };
    let element = db.text(row, "element");
    if element.is_empty() {
        return;
    }
    let mut column = Column::new(&element, &element, &db.text(row, "internal_type"));
    overlay(db, row, &mut column);
    if db.text(row, "max_length").is_empty() {
        let length = column.max_length.to_string();
        let mut draft = Draft { table: db.row(row).table, vals: db.values(row), notes: Vec::new() };
        draft.set(db, "max_length", &length);
        db.replace(row, draft.table, draft.vals);
    }
    let (label, hint) = (column.label.clone(), column.hint.clone());
    db.schema.add_column(table, column);
    let name = name_of(db, table).to_owned();
    let stamp = crate::calendar::format_utc(writer.now);
    let labels = Seeder::new(db, "sys_documentation", &writer.actor.user_name, &stamp);
    let id = ident::sys_id("sys_documentation", &format!("{name}.{element}.{stamp}"));
    labels.add(
        db,
        &[
            ("sys_id", &id),
            ("name", &name),
            ("element", &element),
            ("label", &label),
            ("plural", &label),
            ("hint", &hint),
        ],
    );
}

/// Lays what a dictionary row says over a column.
fn overlay(db: &Db, row: RowId, column: &mut Column) {
    let text = |element: &str| db.text(row, element);
    let some = |element: &str| Some(text(element)).filter(|t| !t.is_empty());
    let on = |element: &str| text(element) == "true";
    column.label = text("column_label");
    let internal_type = text("internal_type");
    if internal_type != column.internal_type {
        column.kind = Kind::of(&internal_type);
        column.internal_type = internal_type;
    }
    if let Ok(length) = text("max_length").parse() {
        column.max_length = length;
    }
    column.reference = some("reference").map(Into::into);
    column.reference_key = some("reference_key").filter(|k| k != "sys_id");
    column.cascade = Cascade::of(&text("reference_cascade_rule"));
    column.mandatory = on("mandatory");
    column.read_only = match (on("read_only"), column.read_only, text("read_only_option").as_str()) {
        (false, ..) => ReadOnly::No,
        (true, _, "strict_read_only" | "client_script_modifiable") => ReadOnly::Strict,
        (true, _, "display_read_only") | (true, ReadOnly::No, _) => ReadOnly::Display,
        (true, kept, _) => kept,
    };
    column.display = on("display");
    column.unique = on("unique");
    column.active = text("active") != "false";
    column.computed = on("virtual");
    column.choice = text("choice").parse().unwrap_or(0);
    column.choice_table = some("choice_table");
    column.choice_field = some("choice_field");
    column.dependent = some("dependent_on_field").or_else(|| some("dependent"));
    column.default = text("default_value");
    column.attributes = text("attributes");
}

fn relabel(db: &mut Db, row: RowId) {
    let (name, element, label) = (db.text(row, "name"), db.text(row, "element"), db.text(row, "label"));
    let Some(table) = db.schema.find(&name) else { return };
    if db.text(row, "language") == "en" && !element.is_empty() {
        db.labels.insert((table, element), label);
    }
}

fn override_default(db: &mut Db, row: RowId) {
    if let Some(table) = db.schema.find(&db.text(row, "name"))
        && db.text(row, "default_value_override") == "true"
    {
        let (element, value) = (db.text(row, "element"), db.text(row, "default_value"));
        db.schema.overrides.insert((table, element), value);
    }
}

/// Refuses changes of a metadata row that the platform does not allow: names stay (facts §7.1).
pub(crate) fn before_update(writer: &mut Writer<'_>, row: RowId, draft: &Draft) -> Result<(), Refusal> {
    let fixed: &[&str] = match name_of(writer.db, draft.table) {
        "sys_db_object" => &["name"],
        "sys_dictionary" => &["name", "element"],
        _ => &[],
    };
    for element in fixed {
        if writer.db.value(row, element) != draft.get(writer.db, element) {
            return Err(Refusal::Definition(format!("Field '{element}' cannot be changed")));
        }
    }
    Ok(())
}

/// Carries a changed metadata row into the schema.
pub(crate) fn after_update(writer: &mut Writer<'_>, row: RowId) {
    let db = &mut *writer.db;
    let class = db.row(row).table;
    match name_of(db, class) {
        "sys_db_object" => {
            if let Some(table) = db.schema.find(&db.text(row, "name")) {
                let (label, access) = (db.text(row, "label"), db.text(row, "ws_access") != "false");
                let table = db.schema.table_mut(table);
                table.label = label;
                table.ws_access = access;
            }
        }
        "sys_dictionary" => {
            let Some(table) = db.schema.find(&db.text(row, "name")) else { return };
            let element = db.text(row, "element");
            if element.is_empty() {
                let (audit, attributes) = (db.text(row, "audit") == "true", db.text(row, "attributes"));
                let table = db.schema.table_mut(table);
                table.audited = audit;
                table.audits_deletes = !attributes.contains("no_audit_delete=true");
            } else if let Some(column) = db.schema.table(table).layout.column(&element) {
                let mut column = Column::clone(column);
                overlay(db, row, &mut column);
                db.schema.replace_column(table, column);
            }
        }
        "sys_choice" => rebuild_choices(db),
        "sys_documentation" => relabel(db, row),
        "sys_dictionary_override" => override_default(db, row),
        _ => {}
    }
}

/// Carries a deletion of a metadata row into the schema: dropping the row drops the column or the table.
pub(crate) fn before_delete(writer: &mut Writer<'_>, row: RowId) -> Result<(), Refusal> {
    let db = &mut *writer.db;
    let class = db.row(row).table;
    match name_of(db, class) {
        "sys_dictionary" => {
            let element = db.text(row, "element");
            if let Some(table) = db.schema.find(&db.text(row, "name"))
                && !element.is_empty()
            {
                if element.starts_with("sys_") {
                    return Err(Refusal::Definition(format!("Column '{element}' cannot be dropped")));
                }
                db.schema.drop_column(table, &element);
            }
        }
        "sys_db_object" => {
            if let Some(table) = db.schema.find(&db.text(row, "name")) {
                drop_table(db, table)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn drop_table(db: &mut Db, table: TableId) -> Result<(), Refusal> {
    let name = name_of(db, table).to_owned();
    if db.schema.family(table).len() > 1 || name.starts_with("sys_") {
        return Err(Refusal::Definition(format!("Table '{name}' cannot be dropped")));
    }
    let rows: Vec<RowId> = db.scan(table).collect();
    for row in rows {
        db.remove(row);
    }
    for metadata in ["sys_dictionary", "sys_documentation", "sys_choice"] {
        if let Some(id) = db.schema.find(metadata) {
            for row in db.find_equal(id, "name", &name).unwrap_or_default() {
                db.remove(row);
            }
        }
    }
    db.schema.drop_table(table);
    rebuild_choices(db);
    Ok(())
}

/// Forgets what a deleted metadata row said.
pub(crate) fn after_delete(writer: &mut Writer<'_>, class: TableId) {
    match name_of(writer.db, class) {
        "sys_choice" => rebuild_choices(writer.db),
        "sys_documentation" => {
            writer.db.labels.clear();
            let Some(table) = writer.db.schema.find("sys_documentation") else { return };
            let rows: Vec<RowId> = writer.db.scan(table).collect();
            for row in rows {
                relabel(writer.db, row);
            }
        }
        _ => {}
    }
}
