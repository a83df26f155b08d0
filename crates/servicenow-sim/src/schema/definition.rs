//! Reads the table definitions in `*.tables`: a line per table, an indented line per column.
//!
//! ```text
//! table incident < task "Incident" number=INC:7 audit
//!   caller_id reference:sys_user "Caller" mandatory
//!   category string:40 "Category" choice=1 default=inquiry
//! ```

use super::column::{Cascade, Column, Kind, ReadOnly};
use super::table::{Numbering, Schema, Table, View};

/// The definitions of the base instance, in an order in which parents come first.
const FILES: [&str; 5] = [
    include_str!("platform.tables"),
    include_str!("core.tables"),
    include_str!("task.tables"),
    include_str!("catalog.tables"),
    include_str!("custom.tables"),
];

/// Builds the schema of the base instance.
pub(crate) fn base_schema() -> Schema {
    let mut schema = Schema::default();
    for text in FILES {
        let mut table: Option<Table> = None;
        for line in text.lines() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            if line.starts_with(' ') {
                table.as_mut().expect("a column line follows a table line").own.push(column(line).into());
            } else {
                finish(&mut schema, table.take());
                table = Some(table_line(&schema, line));
            }
        }
        finish(&mut schema, table);
    }
    schema
}

fn finish(schema: &mut Schema, table: Option<Table>) {
    if let Some(mut table) = table {
        let flags = std::mem::take(&mut table.scope);
        let (scope, skip) = flags.split_once('|').unwrap_or((&flags, ""));
        table.scope = scope.to_owned();
        add_system_columns(&mut table, skip);
        schema.add_table(table);
    }
}

/// Adds the columns that every table has; a child has only its own `sys_id` row (facts §7.1).
pub(crate) fn add_system_columns(table: &mut Table, skip: &str) {
    let skipped = |name: &str| skip.split(',').any(|s| s == name);
    let mut add = |name: &str, label: &str, kind: &str, length: u32| {
        if !skipped(name) && !table.own.iter().any(|c| &*c.element == name) {
            let mut column = Column::new(name, label, kind);
            column.max_length = length;
            table.own.push(column.into());
        }
    };
    add("sys_id", "Sys ID", "GUID", 32);
    if table.parent.is_none() && table.view.is_none() {
        add("sys_created_by", "Created by", "string", 40);
        add("sys_created_on", "Created", "glide_date_time", 40);
        add("sys_updated_by", "Updated by", "string", 40);
        add("sys_updated_on", "Updated", "glide_date_time", 40);
        add("sys_mod_count", "Updates", "integer", 40);
        add("sys_tags", "Tags", "related_tags", 255);
        if table.extendable {
            add("sys_class_name", "Class", "sys_class_name", 80);
        }
    }
}

fn table_line(schema: &Schema, line: &str) -> Table {
    let words = words(line);
    let mut words = words.iter().map(String::as_str).skip(1);
    let name = words.next().expect("a table has a name");
    let mut table = Table::new(name, name, None);
    let mut skip = "";
    while let Some(word) = words.next() {
        match word.split_once('=') {
            Some(("number", rule)) => {
                let (prefix, width) = rule.split_once(':').expect("number=PREFIX:DIGITS");
                table.number =
                    Some(Numbering { prefix: prefix.to_owned(), width: width.parse().expect("digits") });
            }
            Some(("scope", scope)) => table.scope = scope.to_owned(),
            Some(("skip", columns)) => skip = columns,
            Some(("view", text)) => table.view = Some(view(text)),
            Some((key, _)) => panic!("table {name}: no option {key}"),
            None if word == "<" => {
                let parent = words.next().expect("a parent follows <");
                table.parent = Some(schema.find(parent).unwrap_or_else(|| panic!("no table {parent}")));
                table.extendable = true;
            }
            None if word == "audit" => table.audited = true,
            None if word == "no_audit_delete" => table.audits_deletes = false,
            None if word == "extendable" => table.extendable = true,
            None if word == "no_ws_access" => table.ws_access = false,
            None => table.label = word.to_owned(),
        }
    }
    table.scope = format!("{}|{skip}", table.scope);
    table
}

/// Reads `left:prefix,right:prefix,column`.
fn view(text: &str) -> View {
    let parts: Vec<&str> = text.split(',').collect();
    let side = |s: &str| {
        let (table, prefix) = s.split_once(':').expect("view=LEFT:PREFIX,RIGHT:PREFIX,COLUMN");
        (table.to_owned(), prefix.to_owned())
    };
    View { left: side(parts[0]), right: side(parts[1]), on: parts[2].to_owned() }
}

fn column(line: &str) -> Column {
    let words = words(line);
    let (type_name, argument) =
        words[1].split_once(':').map_or((words[1].as_str(), None), |(t, a)| (t, Some(a)));
    let mut column = Column::new(&words[0], &words[0], type_name);
    match argument {
        Some(length) if length.bytes().all(|b| b.is_ascii_digit()) => {
            column.max_length = length.parse().expect("digits")
        }
        Some(table) => column.reference = Some(table.into()),
        None => {}
    }
    for word in &words[2..] {
        match word.split_once('=') {
            Some(("choice", n)) => {
                column.choice = n.parse().expect("choice=N");
                column.null_display = column.kind == Kind::Text;
            }
            Some(("default", v)) => column.default = v.to_owned(),
            Some(("dep", v)) => column.dependent = Some(v.to_owned()),
            Some(("key", v)) => column.reference_key = Some(v.to_owned()),
            Some(("cascade", v)) => column.cascade = Cascade::of(v),
            Some(("choice_table", v)) => column.choice_table = Some(v.to_owned()),
            Some(("choice_field", v)) => column.choice_field = Some(v.to_owned()),
            Some(("attr", v)) => column.attributes = v.to_owned(),
            Some(("hint", v)) => column.hint = v.to_owned(),
            Some((key, _)) if words[1..].contains(word) && !word.contains(' ') => {
                panic!("column {line}: no option {key}")
            }
            _ => match word.as_str() {
                "mandatory" => column.mandatory = true,
                "readonly" => column.read_only = ReadOnly::Display,
                "strict" => column.read_only = ReadOnly::Strict,
                "display" => column.display = true,
                "unique" => column.unique = true,
                "computed" => column.computed = true,
                "inactive" => column.active = false,
                "notnull" => column.null_display = false,
                "index" => column.indexed = true,
                label => column.label = label.to_owned(),
            },
        }
    }
    column
}

/// Splits a line at blanks outside double quotes.
fn words(line: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut any) = (false, false);
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                any = true;
            }
            ' ' if !quoted => {
                if any || !word.is_empty() {
                    out.push(std::mem::take(&mut word));
                }
                any = false;
            }
            _ => word.push(c),
        }
    }
    if any || !word.is_empty() {
        out.push(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classes_have_the_column_counts_of_the_captures() {
        let schema = base_schema();
        let count = |name: &str| schema.table(schema.find(name).expect("table")).layout.index.len();
        assert_eq!(count("task"), 68);
        assert_eq!(count("incident"), 92);
        assert_eq!(count("problem"), 96);
        assert_eq!(count("change_request"), 103);
        assert_eq!(count("change_task"), 76);
        assert_eq!(count("sc_req_item"), 84);
        // The captures are of a release before `read_only_option`.
        assert_eq!(count("sys_dictionary"), 66 + 1);
    }

    #[test]
    fn every_reference_points_to_a_table_that_exists() {
        let schema = base_schema();
        for (_, table) in schema.tables() {
            for column in &table.own {
                if let Some(target) = &column.reference {
                    assert!(schema.find(target).is_some(), "{}.{} -> {target}", table.name, column.element);
                }
            }
        }
    }
}
