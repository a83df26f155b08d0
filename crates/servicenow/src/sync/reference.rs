//! What columns show of records of other tables, and by which path it is found.
//!
//! A reference shows its record's display field; a dot-walk shows a field of a record, and of every record on the way
//! which one comes next; a list shows the names of several. None of that is in the record that shows it, so nothing
//! there tells when it changes.

use std::collections::{BTreeSet, HashMap};

use crate::dictionary::TableDef;
use crate::page::Layout;
use crate::value::{Kind, Show, TableName};

/// A column that shows something of another table's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// The other table.
    pub(super) table: TableName,
    /// From the mirrored table to the field that refers to the record.
    pub(super) path: String,
    /// That field refers to several.
    pub(super) is_list: bool,
    /// The field of the record that matters, and which side of it.
    pub(super) shown: (String, Show),
    /// The column, by its position.
    pub(super) column: usize,
    /// Where nothing else matters and the row itself says which record it refers to: the column that does.
    pub(super) twin: Option<usize>,
}

/// Every reference of these columns of a table, as far as the tables they lead through are `known`; those that are not
/// are added to `unknown`.
pub(super) fn references(
    layout: &Layout,
    def: &TableDef,
    known: &HashMap<TableName, TableDef>,
    unknown: &mut BTreeSet<TableName>,
) -> Vec<Reference> {
    let mut references = Vec::new();
    let columns = layout.columns();
    let twin = |path: &str| {
        let is_twin =
            |c: &crate::page::Column| (c.field.as_str(), c.show, c.kind) == (path, Show::Value, Kind::Text);
        columns.iter().position(is_twin)
    };
    for (column, shows) in columns.iter().enumerate() {
        let mut here = def;
        let steps: Vec<&str> = shows.field.split('.').collect();
        for (n, step) in steps.iter().enumerate() {
            let Some(field) = here.field(step) else { break };
            let Some(reference) = &field.reference else { break };
            let path = steps[..=n].join(".");
            let (shown, is_whole) = match steps.get(n + 1) {
                Some(next) if n + 2 == steps.len() => (Some(((*next).to_owned(), shows.show)), true),
                Some(next) => (Some(((*next).to_owned(), Show::Value)), false),
                None if shows.show == Show::Label => {
                    (reference.display_field.clone().map(|field| (field, Show::Label)), true)
                }
                None => (None, false),
            };
            if n + 1 == steps.len() && shows.show == Show::Label && shown.is_none() {
                // Nobody says what its label is.
                unknown.insert(reference.table.clone());
            }
            let is_list = field.is_list();
            let has_twin = is_whole && !is_list && (shows.show == Show::Label || shows.kind == Kind::Text);
            if let Some(shown) = shown {
                let twin = if has_twin { twin(&path) } else { None };
                let table = reference.table.clone();
                references.push(Reference { table, path, is_list, shown, column, twin });
            }
            if n + 1 < steps.len() {
                match known.get(&reference.table) {
                    Some(def) => here = def,
                    None => {
                        unknown.insert(reference.table.clone());
                        break;
                    }
                }
            }
        }
    }
    references
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::{FieldDef, Reference as Target};
    use crate::page::Column;

    fn def(name: &str, fields: &[(&str, &str, &str, &str)]) -> TableDef {
        let field = |(name, type_, table, display): &(&str, &str, &str, &str)| FieldDef {
            name: (*name).to_owned(),
            internal_type: (*type_).to_owned(),
            reference: TableName::new(*table)
                .ok()
                .map(|table| Target { table, display_field: Some((*display).to_owned()) }),
            ..FieldDef::default()
        };
        let name = TableName::new(name).unwrap();
        let fields = fields.iter().map(field).collect();
        TableDef { label: name.to_string(), chain: vec![name.clone()], name, fields }
    }

    #[test]
    fn every_record_on_the_way_counts() {
        let incident = def(
            "incident",
            &[
                ("caller_id", "reference", "sys_user", "name"),
                ("watch_list", "glide_list", "sys_user", "name"),
            ],
        );
        let user =
            def("sys_user", &[("name", "string", "", ""), ("manager", "reference", "sys_user", "name")]);
        let column = |field: &str, show| Column { field: field.to_owned(), show, kind: Kind::Text };
        let layout = Layout::new(vec![
            column("caller_id", Show::Label),
            column("caller_id", Show::Value),
            column("caller_id.manager", Show::Label),
            column("watch_list", Show::Label),
        ]);
        let mut unknown = BTreeSet::new();
        references(&layout, &incident, &HashMap::new(), &mut unknown);
        assert_eq!(unknown.iter().map(TableName::as_str).collect::<Vec<_>>(), ["sys_user"]);
        let known = HashMap::from([(user.name.clone(), user)]);
        let found = references(&layout, &incident, &known, &mut BTreeSet::new());
        let found: Vec<_> = found
            .iter()
            .map(|r| (r.column, r.path.as_str(), r.shown.0.as_str(), r.shown.1, r.twin, r.is_list))
            .collect();
        assert_eq!(
            found,
            [
                (0, "caller_id", "name", Show::Label, Some(1), false),
                (2, "caller_id", "manager", Show::Label, Some(1), false),
                (2, "caller_id.manager", "name", Show::Label, None, false),
                (3, "watch_list", "name", Show::Label, None, true),
            ]
        );
    }
}
