//! The endpoints of the platform's own pages, which tell a user without dictionary rights what there is (facts §7.4).

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::acl::{Access, Reading};
use crate::audit::escape_xml;
use crate::http::{ApiError, Response};
use crate::instance::Instance;
use crate::schema::{Column, Kind, TableId};
use crate::store::Db;
use crate::table_api::read;
use crate::users::Actor;

/// True when a user can open a table.
fn opens(db: &Db, access: &Access<'_>, table: TableId) -> bool {
    let t = db.schema.table(table);
    t.ws_access && !matches!(access.reading(table), Reading::Nothing | Reading::Refused)
}

fn choice(label: &str, value: &str) -> Value {
    json!({
        "label": label, "used": false, "reference": false, "rawLabel": label,
        "selected": false, "missing": false, "image": "", "value": value,
    })
}

/// `GET /api/now/doc/table/schema`: the tables that the caller can open.
pub(crate) fn tables(instance: &Instance, actor: &Actor) -> Response {
    let rules = instance.acl_rules();
    let db = instance.db.read();
    let access = Access::new(&db, actor, &rules);
    let mut open: Vec<(&str, &str)> = db
        .schema
        .tables()
        .filter(|(id, _)| opens(&db, &access, *id))
        .map(|(_, t)| (t.label.as_str(), &*t.name))
        .collect();
    open.sort_unstable();
    let list: Vec<Value> = open.into_iter().map(|(label, name)| choice(label, name)).collect();
    Response::json(200, json!({ "result": list }).to_string())
}

/// `GET /api/now/ui/meta/{t}`: all columns of a table, inherited ones included, that the caller may read.
pub(crate) fn columns(instance: &Instance, actor: &Actor, name: &str) -> Result<Response, ApiError> {
    let rules = instance.acl_rules();
    let db = instance.db.read();
    let table = read::table(&db, name)?;
    let access = Access::new(&db, actor, &rules);
    if !opens(&db, &access, table) {
        return Err(ApiError::not_authorized());
    }
    let mut columns = Map::new();
    for (_, slot) in db.schema.table(table).layout.live() {
        if access.reads_field(table, &slot.column.element) {
            columns.insert(
                slot.column.element.to_string(),
                column(&db, table, &slot.column, &actor.profile.language),
            );
        }
    }
    Ok(Response::json(200, json!({ "result": { "columns": columns } }).to_string()))
}

fn column(db: &Db, table: TableId, column: &Column, language: &str) -> Value {
    let kind = if column.has_choices() { "choice" } else { &column.internal_type };
    let base_type = match column.kind {
        Kind::Reference => "GUID",
        _ if column.has_choices() => "string",
        Kind::Integer => "integer",
        Kind::Boolean => "boolean",
        Kind::Decimal | Kind::Currency => "decimal",
        _ if column.kind.is_temporal() => "datetime",
        Kind::Date => "date",
        _ => crate::schema::types::scalar_type(&column.internal_type),
    };
    let mut out = json!({
        "name": &*column.element,
        "label": db.label(table, column),
        "type": kind,
        "internal_type": column.internal_type,
        "base_type": base_type,
        "max_length": column.max_length,
        "mandatory": column.mandatory,
        "read_only": column.read_only != crate::schema::ReadOnly::No,
        "default": db.schema.default_of(table, column),
        "hint": column.hint,
        "filterable": true,
        "cansort": !matches!(column.kind, Kind::Journal | Kind::JournalList),
        "cangroup": true,
        "canmatch": true,
        "max_unit": "days",
        "column_type": "element",
    });
    if !column.attributes.is_empty() {
        out["attributes"] = Value::from(column.attributes.clone());
    }
    if column.kind == Kind::Reference
        && let Some(target) = &column.reference
    {
        out["reference"] = Value::from(&**target);
        let display = db.schema.find(target).and_then(|t| {
            db.schema.display_slot(t).map(|s| db.schema.table(t).layout.slots[s].column.element.clone())
        });
        let display = display.as_deref().unwrap_or("sys_id");
        out["reference_display_field"] = Value::from(display);
        out["reference_attributes"] = reference_attributes(column, display);
    }
    if column.has_choices() {
        out["choice_type"] = Value::from(column.choice);
        out["choices"] = Value::from(choices(db, table, column, language));
    }
    out
}

fn reference_attributes(column: &Column, display: &str) -> Value {
    let mut out = json!({ "display_field": display, "ref_ac_display_value": true });
    for attribute in column.attributes.split(',') {
        match attribute.split_once('=') {
            Some(("ref_ac_columns", list)) => {
                out["ref_ac_columns"] = list.split(';').collect::<Vec<_>>().into()
            }
            Some((key @ ("ref_auto_completer" | "ref_ac_columns_search"), value)) => {
                out[key] = Value::from(value)
            }
            _ => {}
        }
    }
    out
}

/// The active choices, each with the table that supplies it.
fn choices(db: &Db, table: TableId, column: &Column, language: &str) -> Vec<Value> {
    let mut out = Vec::new();
    if column.choice == 1 {
        out.push(choice("-- None --", ""));
    }
    if let Some((from, set)) = db.choices.of(&db.schema, table, column) {
        let spoken = if set.iter().any(|c| c.language == language) { language } else { "en" };
        for c in set.iter().filter(|c| c.language == spoken && !c.inactive) {
            let mut item = choice(&c.label, &c.value);
            item["parameters"] = json!({ "name": from });
            out.push(item);
        }
    }
    out
}

/// `GET /{t}.do?SCHEMA`: the columns as XML, or an `<error>` root.
pub(crate) fn schema_page(instance: &Instance, actor: &Actor, name: &str) -> Response {
    let rules = instance.acl_rules();
    let db = instance.db.read();
    let access = Access::new(&db, actor, &rules);
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>");
    match db.schema.find(name).filter(|&t| opens(&db, &access, t)) {
        None => {
            let _ = write!(xml, "<error>Table '{}' is not accessible</error>", escape_xml(name));
        }
        Some(table) => {
            let _ = write!(xml, "<{name}>");
            for (_, slot) in db.schema.table(table).layout.live() {
                let column = &slot.column;
                let _ = write!(
                    xml,
                    "<element name=\"{}\" internal_type=\"{}\" max_length=\"{}\"",
                    column.element, column.internal_type, column.max_length
                );
                if let Some(target) = &column.reference {
                    let _ = write!(xml, " reference_table=\"{target}\"");
                }
                xml.push_str("/>");
            }
            let _ = write!(xml, "</{name}>");
        }
    }
    let mut response = Response::json(200, xml);
    response.content_type = "text/xml;charset=UTF-8".to_owned();
    response
}
