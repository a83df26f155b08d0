//! The dictionary as the platform's own forms see it: for users who may not read its records.
//!
//! `/api/now/ui/meta/{table}` describes every field the caller may see, inherited ones included;
//! `/api/now/doc/table/schema` lists the tables the caller can open. Neither is documented by the vendor;
//! the structure is that of captured answers, and whatever is missing counts as unknown.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::{Choice, ChoiceRule, FieldDef, Reference, TableDef, TableSummary};
use crate::client::Client;
use crate::client::transport::Transport;
use crate::error::Result;
use crate::value::TableName;

/// More columns than any table has.
const MOST_COLUMNS: usize = 20_000;

/// The outermost object of every answer.
#[derive(Deserialize)]
struct Answer<R> {
    result: R,
}

#[derive(Deserialize)]
struct Meta {
    columns: Columns,
}

/// The fields in the order of the answer, which a map would lose.
struct Columns(Vec<MetaColumn>);

#[derive(Default, Deserialize)]
#[serde(default)]
struct MetaColumn {
    name: String,
    label: String,
    #[serde(rename = "type")]
    type_: String,
    internal_type: String,
    max_length: serde_json::Value,
    mandatory: bool,
    read_only: bool,
    default: Option<String>,
    reference: Option<String>,
    reference_display_field: Option<String>,
    choice_type: Option<i64>,
    choices: Vec<MetaChoice>,
    dependent: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MetaChoice {
    label: String,
    value: String,
}

#[derive(Deserialize)]
struct SchemaEntry {
    label: Option<String>,
    value: String,
}

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Columns;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of columns")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Columns, A::Error> {
                let mut columns = Vec::new();
                while let Some((key, mut column)) = map.next_entry::<String, MetaColumn>()? {
                    if column.name.is_empty() {
                        column.name = key;
                    }
                    if columns.len() >= MOST_COLUMNS {
                        return Err(serde::de::Error::custom("more columns than any table has"));
                    }
                    columns.push(column);
                }
                Ok(Columns(columns))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

impl From<MetaColumn> for FieldDef {
    fn from(column: MetaColumn) -> Self {
        let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        let choices: Vec<Choice> = column
            .choices
            .into_iter()
            .filter(|choice| !choice.value.is_empty()) // `-- None --`
            .map(|choice| Choice {
                value: without_nul(choice.value),
                label: without_nul(choice.label),
                language: String::new(),
                inactive: false,
                dependent_value: String::new(),
            })
            .collect();
        let choice = match column.choice_type {
            Some(1 | 3) => ChoiceRule::Strict,
            Some(2) => ChoiceRule::Suggestion,
            _ if column.type_ == "choice" => ChoiceRule::Strict,
            _ => ChoiceRule::None,
        };
        let reference = named(&column.reference).and_then(|table| TableName::new(table).ok());
        FieldDef {
            internal_type: match column.internal_type.is_empty() {
                true => column.type_,
                false => column.internal_type,
            },
            max_length: column.max_length.as_u64().and_then(|length| u32::try_from(length).ok()),
            reference: reference
                .map(|table| Reference { table, display_field: named(&column.reference_display_field) }),
            mandatory: column.mandatory,
            read_only: column.read_only,
            computed: false,
            locked: false, // it does not say
            choice,
            choices,
            dependent_on: named(&column.dependent),
            default_value: without_nul(column.default.unwrap_or_default()),
            name: column.name,
            label: without_nul(column.label),
        }
    }
}

/// As in records' values: Postgres has no such character.
fn without_nul(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "") } else { text }
}

/// Describes a table.
pub(super) async fn fetch<T: Transport>(client: &Client<T>, table: &TableName) -> Result<TableDef> {
    let answer: Answer<Meta> = client.get_json(&format!("/api/now/ui/meta/{table}")).await?;
    let mut fields: Vec<FieldDef> = answer.result.columns.0.into_iter().map(FieldDef::from).collect();
    fields.retain(|field| crate::value::is_field_name(&field.name));
    if !fields.is_empty() && !fields.iter().any(|field| field.name == "sys_id") {
        // Forms have no use for it; every table has it.
        let sys_id = FieldDef {
            name: "sys_id".to_owned(),
            label: "Sys ID".to_owned(),
            internal_type: "GUID".to_owned(),
            ..FieldDef::default()
        };
        fields.insert(0, sys_id);
    }
    Ok(TableDef { name: table.clone(), label: table.to_string(), chain: vec![table.clone()], fields })
}

/// Fills in choices that the caller may not read as records.
pub(super) async fn fill_choices<T: Transport>(
    client: &Client<T>,
    table: &TableName,
    fields: &mut [FieldDef],
) -> Result<()> {
    let mut seen = match fetch(client, table).await {
        Ok(def) => def.fields,
        Err(e) if super::is_hidden(&e) => return Ok(()),
        Err(e) => return Err(e),
    };
    for field in fields {
        if let Some(meta) = seen.iter_mut().find(|meta| meta.name == field.name) {
            field.choices = std::mem::take(&mut meta.choices);
        }
    }
    Ok(())
}

/// Every table the caller can open.
pub(super) async fn list_tables<T: Transport>(client: &Client<T>) -> Result<Vec<TableSummary>> {
    let answer: Answer<Vec<SchemaEntry>> = client.get_json("/api/now/doc/table/schema").await?;
    let summary = |entry: SchemaEntry| {
        let name = TableName::new(entry.value).ok()?;
        Some(TableSummary { label: entry.label.unwrap_or_else(|| name.to_string()), name })
    };
    Ok(answer.result.into_iter().filter_map(summary).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_columns_than_any_table_has_are_not_held() {
        let columns = |count| format!("{{\"columns\":{{{}\"\":{{}}}}}}", "\"\":{},".repeat(count - 1));
        assert!(serde_json::from_str::<Meta>(&columns(MOST_COLUMNS)).is_ok());
        assert!(serde_json::from_str::<Meta>(&columns(MOST_COLUMNS + 1)).is_err());
    }

    #[test]
    fn texts_have_no_nul() {
        let column =
            r#"{"label":"a\u0000b","default":"\u0000","choices":[{"label":"c\u0000","value":"1\u0000"}]}"#;
        let field = FieldDef::from(serde_json::from_str::<MetaColumn>(column).unwrap());
        assert_eq!((field.label.as_str(), field.default_value.as_str()), ("ab", ""));
        assert_eq!((field.choices[0].label.as_str(), field.choices[0].value.as_str()), ("c", "1"));
    }

    #[test]
    fn a_captured_answer_is_understood() {
        let body = include_str!("../../tests/captures/ui_meta_incident.json");
        let answer: Answer<Meta> = serde_json::from_str(body).unwrap();
        let fields: Vec<FieldDef> = answer.result.columns.0.into_iter().map(FieldDef::from).collect();
        let field = |name: &str| fields.iter().find(|field| field.name == name).unwrap();
        assert_eq!(fields[0].name, "number");
        assert_eq!(field("priority").choice, ChoiceRule::Strict);
        assert_eq!(field("priority").choices[0].label, "1 - Major");
        assert_eq!(field("priority").internal_type, "integer");
        let caller = field("caller_id").reference.clone().unwrap();
        assert_eq!((caller.table.as_str(), caller.display_field.as_deref()), ("sys_user", Some("name")));
    }
}
