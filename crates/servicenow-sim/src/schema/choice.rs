//! Choices: the values of a dropdown and their labels per language, with inheritance (facts §7.2).

use std::collections::HashMap;

use super::{Column, Schema, TableId};

/// One choice of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The stored value.
    pub(crate) value: String,
    /// The label in the choice's language.
    pub(crate) label: String,
    /// The language, `en` or another.
    pub(crate) language: String,
    /// The position in the dropdown.
    pub(crate) sequence: i64,
    /// No longer offered; the display value of a row that has it is the raw value.
    pub(crate) inactive: bool,
    /// The value of the column that this choice depends on, empty when independent.
    pub(crate) dependent: String,
}

/// The choices of all columns, by the table and column that the `sys_choice` rows name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Choices {
    sets: HashMap<String, HashMap<String, Vec<Choice>>>,
}

impl Choices {
    /// Adds a choice of a column.
    pub(crate) fn add(&mut self, table: &str, element: &str, choice: Choice) {
        let columns = self.sets.entry(table.to_owned()).or_default();
        columns.entry(element.to_owned()).or_default().push(choice);
    }

    /// Puts every set into dropdown order.
    pub(crate) fn sort(&mut self) {
        for set in self.sets.values_mut().flat_map(HashMap::values_mut) {
            set.sort_by_key(|c| c.sequence);
        }
    }

    /// The set that a class uses for a column, and the table that supplies it: the nearest table in the lineage
    /// that has one, after the redirection of `choice_table` and `choice_field`.
    pub(crate) fn of<'a>(
        &'a self,
        schema: &Schema,
        class: TableId,
        column: &Column,
    ) -> Option<(&'a str, &'a [Choice])> {
        let element = column.choice_field.as_deref().unwrap_or(&column.element);
        let start = match &column.choice_table {
            Some(table) => schema.find(table)?,
            None => class,
        };
        schema.lineage(start).find_map(|t| {
            let (name, columns) = self.sets.get_key_value(&*schema.table(t).name)?;
            Some((name.as_str(), columns.get(element)?.as_slice()))
        })
    }
}

/// The choices of the base instance as (table, element, choice).
pub(crate) fn base_choices() -> Vec<(String, String, Choice)> {
    let mut out = Vec::new();
    for line in include_str!("choices.txt").lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let (head, body) = line.split_once(": ").expect("a choice line is HEAD: BODY");
        let (mut dependent, mut language) = (String::new(), "en".to_owned());
        let mut words = head.split(' ');
        let (table, element) = words.next().and_then(|w| w.split_once('.')).expect("table.element");
        for word in words {
            match word.split_at(1) {
                ("^", value) => dependent = value.to_owned(),
                ("@", value) => language = value.to_owned(),
                _ => panic!("choice line {line}"),
            }
        }
        for (at, item) in body.split('|').enumerate() {
            let (value, label) = item.split_once('=').expect("value=Label");
            let inactive = value.starts_with('!');
            let choice = Choice {
                value: value.trim_start_matches('!').to_owned(),
                label: label.to_owned(),
                language: language.clone(),
                sequence: at as i64 + 1,
                inactive,
                dependent: dependent.clone(),
            };
            out.push((table.to_owned(), element.to_owned(), choice));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::definition::base_schema;

    fn labels(class: &str, element: &str) -> (String, Vec<String>) {
        let schema = base_schema();
        let mut choices = Choices::default();
        for (table, element, choice) in base_choices() {
            choices.add(&table, &element, choice);
        }
        let class = schema.find(class).expect("class");
        let column = schema.table(class).layout.column(element).expect("column");
        let (from, set) = choices.of(&schema, class, column).expect("a set");
        (from.to_owned(), set.iter().filter(|c| c.language == "en").map(|c| c.label.clone()).collect())
    }

    #[test]
    fn a_childs_choices_replace_the_parents_whole() {
        assert_eq!(labels("incident", "state").0, "incident");
        assert_eq!(labels("sc_task", "state").0, "task");
        assert!(!labels("incident", "state").1.contains(&"Closed Complete".to_owned()));
    }

    #[test]
    fn choice_table_and_field_redirect_a_column() {
        assert_eq!(labels("u_pg_widget", "u_border_state").0, "incident");
    }
}
