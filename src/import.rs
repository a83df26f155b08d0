//! IMPORT FOREIGN SCHEMA: the instance's dictionary as CREATE FOREIGN TABLE statements. In a backend.

use std::collections::HashSet;

use pgrx::spi::{quote_identifier, quote_literal};
use pgrx::{PgLogLevel, PgSqlErrorCode as Sql, ereport, pg_sys};
use servicenow::capture::is_queue;
use servicenow::dictionary::{self, ChoiceRule, FieldDef, FieldType, TableDef, TableSummary, field_type};
use servicenow::value::{Kind, Show, TableName};

use crate::cache::type_map::sql_type;
use crate::catalog;
use crate::connection::{Connection, connection, workers_connection};
use crate::error::{Doing, error, raise, report};
use crate::option::ImportOptions;
use crate::pg;
use crate::pg::routine::Import;

/// The remote schema that means every table.
const EVERYTHING: &str = "servicenow";

/// Names people use for tables that are called otherwise.
const FRIENDLY_NAMES: &[(&str, &str)] = &[
    ("catalog_item", "sc_cat_item"),
    ("configuration_item", "cmdb_ci"),
    ("knowledge_base", "kb_knowledge_base"),
    ("order_guide", "sc_cat_item_guide"),
    ("service_level_agreement", "contract_sla"),
    ("service_request", "sc_request"),
    ("service_catalog", "sc_catalog"),
    ("user", "sys_user"),
];

/// Tables of the platform that an import without LIMIT TO makes, besides custom ones.
const USUAL_TABLES: &[&str] = &[
    "incident",
    "problem",
    "change_request",
    "change_task",
    "sc_request",
    "sc_req_item",
    "sc_task",
    "sc_catalog",
    "sc_category",
    "sc_cat_item",
    "sc_cat_item_guide",
    "cmdb_ci",
    "cmdb_rel_ci",
    "kb_knowledge",
    "kb_knowledge_base",
    "contract_sla",
    "task_sla",
    "sys_user",
    "sys_user_group",
    "sys_user_grmember",
    "cmn_location",
    "cmn_department",
    "core_company",
];

/// The most columns a foreign table gets: Postgres allows 1,600, and its cache has two more. Wide rows of many
/// text columns must still fit a page by their pointers.
const MOST_COLUMNS: usize = 1_400;

/// Columns that every table has.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// A table to make: its name here and there.
struct Wanted {
    local: String,
    remote: TableName,
}

/// The statements of an import.
pub fn import(import: Import) -> Vec<String> {
    let options = ImportOptions::parse(&import.options).unwrap_or_else(|e| raise(e));
    let connection = connection(import.server, pg::session::current_user());
    let wanted = match &import.only {
        Some(names) => names.iter().map(|name| wanted(name, &import.remote_schema)).collect(),
        None => all_tables(&connection, &import),
    };
    let remote: Vec<TableName> = wanted.iter().map(|table| table.remote.clone()).collect();
    let tables = remote.clone();
    let described = connection.call("read the dictionary", false, |client| async move {
        dictionary::fetch(&client, &tables).await
    });
    let mut statements = Vec::new();
    for (table, (_, def)) in wanted.iter().zip(described) {
        match def {
            Ok(def) => {
                let def = catalog::remember_definition(import.server, def);
                statements.push(create_statement(table, &def, options, connection.server()));
            }
            // Without LIMIT TO nobody asked for this very table.
            Err(servicenow::Error::NoTable(_) | servicenow::Error::Refused { .. })
                if import.only.is_none() => {}
            Err(e) => {
                let what = format!("import table \"{}\"", table.remote);
                raise(report(&e, Doing { server: connection.server(), what: &what, writing: false }))
            }
        }
    }
    statements
}

fn wanted(name: &str, scope: &str) -> Wanted {
    let friendly = FRIENDLY_NAMES.iter().find(|(friendly, _)| *friendly == name).map(|(_, table)| *table);
    let remote = friendly.unwrap_or(name);
    let table = TableName::new(remote).ok().filter(|table| in_scope(table, scope));
    let Some(remote) = table else {
        raise(
            error(
                Sql::ERRCODE_FDW_TABLE_NOT_FOUND,
                format!("table \"{name}\" does not exist in remote schema \"{scope}\""),
            )
            .set_hint(format!(
                "The remote schema \"{EVERYTHING}\" has every table; any other name is an application's scope."
            )),
        )
    };
    Wanted { local: name.to_owned(), remote }
}

/// A table of an application is called by its scope and an underscore first.
fn in_scope(table: &TableName, scope: &str) -> bool {
    scope == EVERYTHING || table.as_str().strip_prefix(scope).is_some_and(|rest| rest.starts_with('_'))
}

fn all_tables(connection: &Connection, import: &Import) -> Vec<Wanted> {
    let summaries: Vec<TableSummary> =
        connection.call("list tables", false, |client| async move { dictionary::list_tables(&client).await });
    let is_usual = |table: &TableName| {
        let name = table.as_str();
        USUAL_TABLES.contains(&name) || name.starts_with("u_") || name.starts_with("x_")
    };
    let is_excepted = |table: &TableName| {
        let friendly = FRIENDLY_NAMES.iter().find(|(_, name)| *name == table.as_str());
        import
            .except
            .iter()
            .any(|name| name == table.as_str() || friendly.is_some_and(|(friendly, _)| friendly == name))
    };
    let wanted: Vec<Wanted> = summaries
        .into_iter()
        .map(|summary| summary.name)
        .filter(|table| !is_queue(table))
        .filter(|table| match import.remote_schema.as_str() {
            EVERYTHING => is_usual(table),
            scope => in_scope(table, scope),
        })
        .filter(|table| !is_excepted(table))
        .map(|remote| Wanted { local: remote.to_string(), remote })
        .collect();
    if wanted.is_empty() {
        raise(
            error(
                Sql::ERRCODE_FDW_SCHEMA_NOT_FOUND,
                format!(
                    "remote schema \"{}\" on server \"{}\" has no tables",
                    import.remote_schema,
                    connection.server()
                ),
            )
            .set_hint(format!(
                "The remote schema \"{EVERYTHING}\" has every table; any other name is an application's scope, and its tables must be readable by the user."
            )),
        );
    }
    wanted
}

fn create_statement(table: &Wanted, def: &TableDef, options: ImportOptions, server: &str) -> String {
    let mut columns = columns_of(def, options, Names::of(def));
    if columns.len() > MOST_COLUMNS {
        say_left_out(&table.remote, columns.len() - MOST_COLUMNS);
        columns.truncate(MOST_COLUMNS);
    }
    let columns: Vec<String> = columns.iter().map(Definition::sql).collect();
    let table_option = match table.local == table.remote.as_str() {
        true => String::new(),
        false => format!(" OPTIONS (\"table\" {})", quote_literal(table.remote.as_str())),
    };
    format!(
        "CREATE FOREIGN TABLE {} ({}) SERVER {}{table_option}",
        quote_identifier(&table.local),
        columns.join(", "),
        quote_identifier(server),
    )
}

fn say_left_out(table: &TableName, columns: usize) {
    ereport!(
        PgLogLevel::WARNING,
        Sql::ERRCODE_TOO_MANY_COLUMNS,
        format!("table \"{table}\" has {columns} columns more than a foreign table can have"),
        "The last ones in dictionary order are left out."
    );
}

/// A column to be made.
struct Definition {
    name: String,
    type_: &'static str,
    not_null: bool,
    options: Vec<(&'static str, String)>,
}

impl Definition {
    fn sql(&self) -> String {
        let options: Vec<String> =
            self.options.iter().map(|(name, value)| format!("{name} {}", quote_literal(value))).collect();
        let options = match options.is_empty() {
            true => String::new(),
            false => format!(" OPTIONS ({})", options.join(", ")),
        };
        let not_null = if self.not_null { " NOT NULL" } else { "" };
        format!("{} {}{options}{not_null}", quote_identifier(&self.name), self.type_)
    }
}

/// The columns of a table: its key first, then its fields in dictionary order.
fn columns_of(def: &TableDef, options: ImportOptions, mut names: Names) -> Vec<Definition> {
    let key = Definition { name: names.own("sys_id"), type_: "text", not_null: true, options: Vec::new() };
    std::iter::once(key).chain(columns_of_fields(def, options, &mut names)).collect()
}

fn columns_of_fields(def: &TableDef, options: ImportOptions, names: &mut Names) -> Vec<Definition> {
    let mut columns = Vec::new();
    for field in def.fields.iter().filter(|field| field.name != "sys_id") {
        let kind = match field_type(&field.internal_type) {
            FieldType::Column(kind) => kind,
            FieldType::Journal => Kind::Text,
            FieldType::Omitted => continue,
        };
        let name = names.own(&field.name);
        let renamed = (name != field.name).then(|| ("field", field.name.clone()));
        if has_label(field) {
            let mut label = vec![("show", "label".to_owned())];
            label.splice(0..0, renamed);
            columns.push(Definition { name, type_: "text", not_null: false, options: label });
            if options.values {
                columns.push(Definition {
                    name: names.value_of(&field.name),
                    type_: sql_type(kind),
                    not_null: false,
                    options: vec![("field", field.name.clone())],
                });
            }
        } else {
            let options = renamed.into_iter().collect();
            columns.push(Definition { name, type_: sql_type(kind), not_null: false, options });
        }
    }
    columns
}

/// Whether people see something else than what is stored.
fn has_label(field: &FieldDef) -> bool {
    field.internal_type == "reference"
        || field.choice == ChoiceRule::Strict
        || (field.choice == ChoiceRule::Suggestion && !field.choices.is_empty())
}

/// Column names within a table: Postgres cuts long ones, and a field may be called like another's value.
struct Names {
    taken: HashSet<String>,
    /// Fields' own names that columns of other fields have.
    taken_by_others: HashSet<String>,
}

impl Names {
    fn of(def: &TableDef) -> Self {
        // Every field's own name comes before any derived one.
        let taken = def.fields.iter().map(|field| field.name.clone()).collect();
        Self { taken, taken_by_others: HashSet::new() }
    }

    fn own(&mut self, field: &str) -> String {
        let is_free = field.len() <= pg::catalog::NAME_LENGTH
            && !self.taken_by_others.contains(field)
            && !SYSTEM_COLUMNS.contains(&field);
        if is_free { field.to_owned() } else { self.free(field, "") }
    }

    fn value_of(&mut self, field: &str) -> String {
        self.free(field, "_value")
    }

    fn free(&mut self, field: &str, suffix: &str) -> String {
        let candidates = std::iter::once(suffix.to_owned()).chain((2..).map(|n| format!("{suffix}_{n}")));
        for suffix in candidates {
            let stem: String = field.chars().take(pg::catalog::NAME_LENGTH - suffix.len()).collect();
            let name = stem + &suffix;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
        unreachable!("some number is free")
    }
}

/// Adds columns to a foreign table for the fields that it does not show; gives back how many.
pub fn refresh(relation: pg_sys::Oid) -> i64 {
    let mirror = catalog::mirror_or_error(relation);
    let connection = workers_connection(mirror.server);
    let table = mirror.table.clone();
    let what = format!("read the dictionary of table \"{table}\"");
    let def = connection.call(&what, false, |client| async move {
        let mut described = dictionary::fetch(&client, std::slice::from_ref(&table)).await?;
        described.pop().map(|(_, def)| def).unwrap_or(Err(servicenow::Error::NoTable(Default::default())))
    });
    let shown: HashSet<&str> = mirror.columns.iter().map(|column| column.field.as_str()).collect();
    let mut names = Names::of(&def);
    // Generated columns have names too.
    let attributes = pg::catalog::attributes(relation);
    let own: HashSet<&str> = attributes.iter().filter(|a| !a.dropped).map(|a| a.name.as_str()).collect();
    names.taken.extend(own.iter().map(|name| (*name).to_owned()));
    let mut missing = def.clone();
    missing.fields.retain(|field| !shown.contains(field.name.as_str()));
    // A name that is free belongs to the field of that name.
    names.taken_by_others =
        missing.fields.iter().map(|f| f.name.clone()).filter(|n| own.contains(n.as_str())).collect();
    let has_values = mirror.columns.iter().any(|column| {
        column.show == Show::Value
            && mirror.columns.iter().any(|other| other.field == column.field && other.show == Show::Label)
    });
    let has_labels = mirror.columns.iter().any(|column| column.show == Show::Label);
    let options = ImportOptions { values: has_values || !has_labels };
    let room = MOST_COLUMNS.saturating_sub(own.len());
    let mut columns = columns_of_fields(&missing, options, &mut names);
    if columns.len() > room {
        say_left_out(&mirror.table, columns.len() - room);
        columns.truncate(room);
    }
    if !columns.is_empty() {
        let added: Vec<String> =
            columns.iter().map(|column| format!("ADD COLUMN {}", column.sql())).collect();
        let statement = format!("ALTER FOREIGN TABLE {} {}", catalog::qualified(relation), added.join(", "));
        catalog::remember_definition(mirror.server, def);
        pgrx::Spi::run(&statement).expect("a valid use of SPI");
        comment(relation);
    }
    columns.len() as i64
}

/// Comments the columns of a foreign table with the labels of their fields, where nobody has said anything yet.
pub fn comment(relation: pg_sys::Oid) {
    let Some(mirror) = catalog::mirror(relation) else { return };
    let Some(def) = catalog::definition(mirror.server, &mirror.table) else { return };
    let table = catalog::qualified(relation);
    for column in &mirror.columns {
        let Some(field) = def.field(&column.field).filter(|field| !field.label.is_empty()) else { continue };
        if pg::catalog::column_comment(relation, column.number).is_none() {
            pgrx::Spi::run(&format!(
                "COMMENT ON COLUMN {table}.{} IS {}",
                quote_identifier(&column.name),
                quote_literal(&field.label)
            ))
            .expect("a valid use of SPI");
        }
    }
}

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    use super::*;

    #[pg_test]
    fn fields_called_like_system_columns_get_other_names() {
        let field = |name: &str| FieldDef { name: name.to_owned(), ..FieldDef::default() };
        let fields = ["ctid", "select", "xmin", "xmin_2"].map(field).to_vec();
        let name = TableName::new("t").expect("a name");
        let def = TableDef { name, label: String::new(), chain: Vec::new(), fields };
        let mut names = Names::of(&def);
        let given: Vec<String> = def.fields.iter().map(|field| names.own(&field.name)).collect();
        assert_eq!(given, ["ctid_2", "select", "xmin_3", "xmin_2"]);
    }
}
