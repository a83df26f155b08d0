//! From what people see to what is stored: labels of choices. What cannot be resolved is an ERROR, before anything is sent.

use pgrx::PgSqlErrorCode as Sql;
use pgrx::pg_sys::panic::ErrorReport;
use servicenow::dictionary::{FieldDef, Resolution};

use crate::error::{error, raise};

/// More than this many choices do not help in a message.
const MANY: usize = 20;

/// A field or choice that is not known: the ERROR to raise, unless it turns out to have been added since.
pub struct Unknown(pub Box<ErrorReport>);

/// A value that the instance would not take, and would not say so.
pub(super) fn not_valid(value: &str, field: &str) -> ErrorReport {
    error(
        Sql::ERRCODE_CHECK_VIOLATION,
        format!("[ServiceNow] Value `{value}` is not a valid value for `{field}`."),
    )
}

/// The stored value behind the label of a choice; `dependent` is the value of the field the choices depend on.
pub fn choice(field: &FieldDef, label: &str, dependent: Option<&str>) -> Result<String, Unknown> {
    match field.resolve_label(label, dependent) {
        Resolution::Value(value) => Ok(value),
        Resolution::Unknown => {
            Err(Unknown(Box::new(not_valid(label, &field.name).set_hint(offer(field, dependent)))))
        }
        Resolution::Ambiguous(values) => raise(
            error(
                Sql::ERRCODE_CHECK_VIOLATION,
                format!("value \"{label}\" for \"{}\" is ambiguous", field.name),
            )
            .set_detail(format!("Stored values with this label: {}.", values.join(", ")))
            .set_hint(use_value(&field.name)),
        ),
    }
}

/// Checks a stored value against a binding list of choices.
pub fn stored_choice(field: &FieldDef, value: &str) -> Result<(), Unknown> {
    match field.accepts(value) {
        true => Ok(()),
        false => Err(Unknown(Box::new(not_valid(value, &field.name).set_hint(offer(field, None))))),
    }
}

fn offer(field: &FieldDef, dependent: Option<&str>) -> String {
    let mut labels: Vec<String> =
        field.offers(dependent).iter().map(|choice| format!("{} ({})", choice.label, choice.value)).collect();
    let more = if labels.len() > MANY { ", …" } else { "" };
    labels.truncate(MANY);
    format!("Valid values are: {}{more}.", labels.join(", "))
}

/// What to do if a label does not say what is meant.
pub(super) fn use_value(field: &str) -> String {
    format!("Set the stored value instead, through column \"{field}_value\".")
}
