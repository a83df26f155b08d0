//! The dictionary's types, and what a mirror keeps their values as.

use crate::value::Kind;

/// What becomes of a field in a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// A column of this kind.
    Column(Kind),
    /// A journal: reads nothing, writing appends an entry.
    Journal,
    /// No column: the interface never shows a value, or shows a secret.
    Omitted,
}

/// The mirror's type for a dictionary type. Types that are not listed are text.
/// Source: "Field types" and "Database field type" of the vendor's documentation, and captured values.
pub fn field_type(internal_type: &str) -> FieldType {
    use FieldType::*;
    match internal_type {
        "boolean" => Column(Kind::Boolean),
        "integer" | "int" | "long" | "longint" | "counter" | "order_index" | "repeat_count"
        | "auto_increment" | "day_of_week" | "week_of_month" | "month_of_year" => Column(Kind::Integer),
        "decimal" | "percent_complete" | "currency" | "price" => Column(Kind::Numeric),
        "float" => Column(Kind::Float),
        "glide_date_time" | "datetime" | "sys_created_on" | "sys_updated_on" | "due_date"
        | "insert_timestamp" => Column(Kind::Instant),
        "date" => Column(Kind::DateTime),
        "glide_date" => Column(Kind::Date),
        "glide_time" | "time" | "glide_utc_time" => Column(Kind::Time),
        "glide_duration" | "timer" => Column(Kind::Duration),
        "journal" | "journal_input" => Journal,
        "journal_list" | "password" | "password2" | "variables" | "glide_var" | "records" | "collection" => {
            Omitted
        }
        _ => Column(Kind::Text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_nobody_has_heard_of_are_text() {
        assert_eq!(field_type("nl_task_int1"), FieldType::Column(Kind::Text));
        assert_eq!(field_type("something_new"), FieldType::Column(Kind::Text));
    }

    #[test]
    fn secrets_and_empty_bags_are_left_out() {
        for omitted in ["password", "password2", "variables", "journal_list"] {
            assert_eq!(field_type(omitted), FieldType::Omitted);
        }
        assert_eq!(field_type("journal_input"), FieldType::Journal);
    }
}
