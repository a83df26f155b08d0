//! What a write sends for a row: the fields, with values in ServiceNow's form. Names of records are looked up afterwards ([`name`](super::name)).

use pgrx::PgSqlErrorCode as Sql;
use pgrx::pg_sys::panic::ErrorReport;
use serde_json::{Map, Value as Json};
use servicenow::dictionary::{FieldDef, FieldType, Reference, TableDef, field_type};
use servicenow::value::{Kind, Show};

use super::label::{self, Unknown};
use crate::cache::apply::to_value;
use crate::catalog::{Mirror, MirrorColumn};
use crate::connection::Connection;
use crate::error::{Doing, error, raise, report};
use crate::pg::catalog::relation_name;
use crate::pg::routine::Values;
use crate::pg::tuple::OwnedScalar;

/// A field to be sent.
pub struct Sent {
    /// Its name.
    pub field: String,
    /// Its value on the wire, if there is no name to be looked up first.
    pub value: String,
    /// What has to be looked up before it is sent.
    pub name: Option<Named>,
    /// The position among the mirror's columns by which the answer is compared: that of the stored value, if the
    /// table shows it.
    pub column: usize,
    /// Whether sending it appends an entry rather than setting a value.
    pub appends: bool,
    /// What people see, if it was given as that.
    pub label: Option<String>,
    /// What the answer has in that column if the instance has ignored the value; `None` if that may be anything.
    pub before: Option<Vec<String>>,
}

/// A record that was given by its name: the label of what is sent.
pub struct Named {
    /// Where the name is looked up.
    pub reference: Reference,
    /// The stored value is given, too, and must be that of the record.
    pub is_given: bool,
}

/// What a column gives.
enum Given {
    /// A value on the wire.
    Value(String),
    /// A name.
    Name(Reference),
}

impl Sent {
    /// Takes what another column of the same field gives; `false` if that is something else.
    fn goes_with(&mut self, given: Given, text: String) -> bool {
        match (&mut self.name, given) {
            (None, Given::Value(value)) => self.value == value,
            (Some(named), Given::Value(value)) if !named.is_given => {
                (self.value, named.is_given) = (value, true);
                true
            }
            (Some(_), Given::Value(value)) => self.value == value,
            (None, Given::Name(reference)) => {
                (self.name, self.label) = (Some(Named { reference, is_given: true }), Some(text));
                true
            }
            (Some(_), Given::Name(_)) => self.label.as_ref() == Some(&text),
        }
    }

    /// About how much memory it takes, in bytes.
    pub fn memory(&self) -> usize {
        let before: usize =
            self.before.iter().flatten().map(|before| size_of::<String>() + before.len()).sum();
        let label = self.label.as_ref().map_or(0, String::len);
        size_of::<Self>() + self.field.len() + self.value.len() + label + before
    }
}

/// A row on its way out.
pub struct Draft<'a> {
    /// The table.
    pub mirror: &'a Mirror,
    /// What the dictionary says about it.
    pub def: &'a TableDef,
    /// Where it is sent.
    pub connection: &'a Connection,
    /// The row as it is to be.
    pub row: &'a dyn Values,
    /// An UPDATE: the row as it was.
    pub old: Option<&'a dyn Values>,
}

/// The ERROR for a field of which two columns say different things.
pub fn contradiction(field: &str) -> ErrorReport {
    error(
        Sql::ERRCODE_INVALID_PARAMETER_VALUE,
        format!("label and stored value given for field \"{field}\" contradict each other"),
    )
    .set_hint("Set one of them, or set both to what belongs together.")
}

/// The fields as a JSON object.
pub fn json(sent: &[Sent]) -> Map<String, Json> {
    sent.iter().map(|sent| (sent.field.clone(), Json::String(sent.value.clone()))).collect()
}

/// Has later values take the place of earlier ones of the same fields.
pub fn set(sent: &mut Vec<Sent>, later: Vec<Sent>) {
    for later in later {
        match sent.iter_mut().find(|earlier| earlier.field == later.field) {
            Some(earlier) => *earlier = Sent { before: std::mem::take(&mut earlier.before), ..later },
            None => sent.push(later),
        }
    }
}

impl Draft<'_> {
    /// The fields for these columns (positions among the mirror's). What cannot be written is an ERROR; a field or
    /// choice that is not known may have been added since the dictionary was read.
    pub fn fields(&self, columns: &[usize]) -> Result<Vec<Sent>, Unknown> {
        let mut sent: Vec<Sent> = Vec::new();
        for &position in columns {
            let column = &self.mirror.columns[position];
            if column.field == "sys_id" {
                continue; // in the address of the call
            }
            let field = self.writable(column)?;
            let text = wire_text(column, &self.row.get(column.number));
            let given = self.given(&field, column, &text)?;
            if let Some(other) = sent.iter_mut().find(|other| other.field == column.field) {
                if !other.goes_with(given, text) {
                    raise(contradiction(&column.field));
                }
                continue;
            }
            let shows_value = |c: &MirrorColumn| c.field == column.field && c.show == Show::Value;
            let shown = self.mirror.columns.iter().position(shows_value).unwrap_or(position);
            let (value, name) = match given {
                Given::Value(value) => (value, None),
                Given::Name(reference) => (String::new(), Some(Named { reference, is_given: false })),
            };
            sent.push(Sent {
                value,
                name,
                column: shown,
                appends: field_type(&field.internal_type) == FieldType::Journal,
                label: (column.show == Show::Label).then_some(text),
                before: self.before(&field, shown),
                field: field.name,
            });
        }
        Ok(sent)
    }

    /// What a column (a position among the mirror's) shows if the instance ignores what is sent; `None` if a script of the
    /// instance's gives the default.
    fn before(&self, field: &FieldDef, shown: usize) -> Option<Vec<String>> {
        match self.old {
            Some(old) => {
                Some(to_value(&old.get(self.mirror.columns[shown].number)).encode().into_iter().collect())
            }
            None if field.default_value.starts_with("javascript:") => None,
            None => Some(vec![field.default_value.clone(), String::new()]),
        }
    }

    /// The description of a column's field; an ERROR if it cannot be written. One that is not known may have been added
    /// since the dictionary was read; else the instance would ignore it without a word.
    fn writable(&self, column: &MirrorColumn) -> Result<FieldDef, Unknown> {
        let refuse = |why: &str| -> ! {
            let table = relation_name(self.mirror.foreign_table).unwrap_or_default();
            raise(error(
                Sql::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("column \"{}\" of foreign table \"{table}\" cannot be written: {why}", column.name),
            ))
        };
        if column.field.contains('.') {
            refuse("it shows a field of a referenced record");
        }
        match self.def.field(&column.field) {
            Some(field) if field.computed => refuse("ServiceNow computes it"),
            Some(field) if field.locked => refuse("it is read-only in ServiceNow"),
            Some(field) => Ok(field.clone()),
            None => {
                let (table, field) = (self.mirror.table.to_string(), column.field.clone());
                let what = format!("write to table \"{table}\"");
                let doing = Doing { server: self.connection.server(), what: &what, writing: true };
                Err(Unknown(Box::new(report(&servicenow::Error::NoField { table, field }, doing))))
            }
        }
    }

    /// What a column gives; the value `""` empties the field.
    fn given(&self, field: &FieldDef, column: &MirrorColumn, text: &str) -> Result<Given, Unknown> {
        let value = match (column.show, &field.reference) {
            _ if text.is_empty() => String::new(),
            (Show::Label, Some(reference)) => return Ok(Given::Name(reference.clone())),
            (Show::Label, None) => label::choice(field, text, self.dependent_value(field)?.as_deref())?,
            (Show::Value, _) => label::stored_choice(field, text).map(|()| text.to_owned())?,
        };
        Ok(Given::Value(value))
    }

    /// The stored value of the field on which a field's choices depend, if the table shows it.
    fn dependent_value(&self, field: &FieldDef) -> Result<Option<String>, Unknown> {
        let Some(on) = field.dependent_on.as_deref() else { return Ok(None) };
        let column = |show| self.mirror.columns.iter().find(|c| c.field == on && c.show == show);
        let text = |c: &MirrorColumn| Some(wire_text(c, &self.row.get(c.number))).filter(|t| !t.is_empty());
        let changed =
            |c: &&MirrorColumn| self.old.is_none_or(|old| old.get(c.number) != self.row.get(c.number));
        // A label that was changed says more than the stored value that was left as it was.
        if let Some(label) = column(Show::Label).filter(changed).and_then(text)
            && let Some(on) = self.def.field(on)
        {
            return label::choice(on, &label, None).map(Some);
        }
        Ok(column(Show::Value).and_then(text))
    }
}

/// A value in ServiceNow's form; an ERROR if it has none.
fn wire_text(column: &MirrorColumn, value: &OwnedScalar) -> String {
    let refuse = |code, what: &str| -> ! {
        raise(error(
            code,
            format!("value for column \"{}\" is not a {what} ServiceNow can hold", column.name),
        ))
    };
    match to_value(value).encode() {
        Ok(text) if column.kind == Kind::Numeric && text.parse::<f64>().is_ok_and(|f| !f.is_finite()) => {
            refuse(Sql::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE, "number")
        }
        Ok(text) => text,
        Err(misfit) if column.kind == Kind::Float => {
            refuse(Sql::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE, misfit.0)
        }
        Err(misfit) => refuse(Sql::ERRCODE_DATETIME_FIELD_OVERFLOW, misfit.0),
    }
}
