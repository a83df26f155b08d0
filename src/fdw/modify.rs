//! INSERT, UPDATE and DELETE: each row is sent to ServiceNow first, and the answer goes into the cache in the
//! same transaction. In backends, under the executor.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use pgrx::PgSqlErrorCode as Sql;
use serde_json::{Map, Value as Json};
use servicenow::client::retry::Effect;
use servicenow::dictionary::{self, FieldDef, FieldType, TableDef, field_type};
use servicenow::error::Refusal;
use servicenow::page::Rows;
use servicenow::value::{Kind, Show, SysId, TableName};

use super::label;
use crate::cache::apply::{CacheWriter, to_scalar, to_value};
use crate::catalog::{self, Mirror, MirrorColumn};
use crate::connection::{Connection, connection};
use crate::error::{Doing, error, raise, report};
use crate::pg;
use crate::pg::routine::{Operation, Row, RowWriter, Target, Written};
use crate::pg::table::Triggers;
use crate::pg::tuple::{OwnedScalar, Scalar};
use crate::worker;

/// One statement's writes to one table.
pub struct Writer {
    mirror: Rc<Mirror>,
    assigned: Vec<i16>,
    skip_duplicates: bool,
    connection: Connection,
    /// What the dictionary says; read when the first row comes.
    def: Option<TableDef>,
    cache: CacheWriter,
    /// Records this statement has written: a join may bring a target row more than once.
    done: HashSet<String>,
    /// Rows added to the cache, less rows taken from it.
    delta: i64,
}

/// A field to be sent.
struct Sent {
    field: String,
    /// The wire value.
    value: String,
    /// The position among the mirror's columns by which the answer is compared.
    column: usize,
}

impl Writer {
    /// Begins a statement's writes.
    pub fn begin(target: Target) -> Self {
        let mirror = catalog::mirror_or_error(target.relation);
        let connection = connection(mirror.server, target.user);
        let cache = CacheWriter::open(&mirror, Triggers::Query);
        worker::ensure_now_and_then();
        debug_assert!(target.operation == Operation::Update || target.assigned.is_empty());
        Self {
            assigned: target.assigned,
            skip_duplicates: target.skip_duplicates,
            connection,
            def: None,
            cache,
            done: HashSet::new(),
            delta: 0,
            mirror,
        }
    }

    /// The table's description: as the worker or an import has left it, or else read now.
    fn def(&mut self) -> TableDef {
        if self.def.is_none() {
            let known = catalog::definition(self.mirror.server, &self.mirror.table);
            self.def = Some(known.unwrap_or_else(|| self.fetch_def()));
        }
        self.def.clone().expect("just set")
    }

    fn fetch_def(&self) -> TableDef {
        let table = self.mirror.table.clone();
        let what = format!("read the dictionary of table \"{table}\"");
        self.connection.call(&what, false, |client| async move {
            let mut described = dictionary::fetch(&client, std::slice::from_ref(&table)).await?;
            described.pop().map(|(_, def)| def).unwrap_or(Err(servicenow::Error::NoTable(Default::default())))
        })
    }

    /// The fields to send for the given columns of a row, labels resolved.
    fn fields(&mut self, columns: &[usize], row: &Row<'_>, old: Option<&Row<'_>>) -> Vec<Sent> {
        let def = self.def();
        let mut sent: Vec<Sent> = Vec::new();
        for &position in columns {
            let column = self.mirror.columns[position].clone();
            if column.field == "sys_id" {
                continue;
            }
            let field = self.writable(&def, &column);
            let value = self.wire_value(&def, &field, &column, row, old);
            match sent.iter_mut().find(|other| other.field == column.field) {
                None => {
                    let column = self.compared_by(&column.field).unwrap_or(position);
                    sent.push(Sent { field: self.mirror.columns[position].field.clone(), value, column });
                }
                Some(other) if other.value == value => {}
                Some(_) => raise(
                    error(
                        Sql::ERRCODE_INVALID_PARAMETER_VALUE,
                        format!("columns for field \"{}\" contradict each other", column.field),
                    )
                    .set_hint("Set either the label or the stored value."),
                ),
            }
        }
        sent
    }

    /// The column that shows a field's stored value.
    fn compared_by(&self, field: &str) -> Option<usize> {
        self.mirror.columns.iter().position(|c| c.field == field && c.show == Show::Value)
    }

    /// The description of a column's field; an ERROR if it cannot be written.
    fn writable(&self, def: &TableDef, column: &MirrorColumn) -> FieldDef {
        let refuse = |why: &str| -> ! {
            raise(error(
                Sql::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!(
                    "column \"{}\" of foreign table \"{}\" cannot be written: {why}",
                    column.name,
                    self.table_name()
                ),
            ))
        };
        if column.field.contains('.') {
            refuse("it shows a field of a referenced record");
        }
        match def.field(&column.field) {
            Some(field) if field.computed => refuse("ServiceNow computes it"),
            Some(field) => field.clone(),
            None => FieldDef { name: column.field.clone(), ..FieldDef::default() },
        }
    }

    /// A column's value as it is sent.
    fn wire_value(
        &self,
        def: &TableDef,
        field: &FieldDef,
        column: &MirrorColumn,
        row: &Row<'_>,
        old: Option<&Row<'_>>,
    ) -> String {
        let value = row.get(column.number);
        if value == OwnedScalar::Null {
            return String::new();
        }
        let text = to_value(&value).encode();
        match (column.show, &field.reference) {
            (Show::Label, Some(reference)) => label::reference(&self.connection, field, reference, &text),
            (Show::Label, None) => {
                label::choice(field, &text, self.dependent_value(def, field, row, old).as_deref())
            }
            (Show::Value, _) => {
                label::stored_choice(field, &text);
                text
            }
        }
    }

    /// The stored value of the field on which a field's choices depend, if the table shows it.
    fn dependent_value(
        &self,
        def: &TableDef,
        field: &FieldDef,
        row: &Row<'_>,
        old: Option<&Row<'_>>,
    ) -> Option<String> {
        let on = field.dependent_on.as_deref()?;
        let column = |show| self.mirror.columns.iter().find(|c| c.field == on && c.show == show);
        let text = |row: &Row<'_>, c: &MirrorColumn| match row.get(c.number) {
            OwnedScalar::Null => None,
            value => Some(to_value(&value).encode()),
        };
        let changed = |c: &&MirrorColumn| old.is_none_or(|old| old.get(c.number) != row.get(c.number));
        // A label that was changed says more than the stored value that was left as it was.
        if let Some(label) = column(Show::Label).filter(changed).and_then(|c| text(row, c)) {
            return Some(label::choice(def.field(on)?, &label, None));
        }
        column(Show::Value).and_then(|c| text(row, c))
    }

    /// Compares the answer with what was sent: ServiceNow drops a value it does not like without a word.
    /// `before` is the field's value that a dropped one would leave behind.
    fn check_answer(&self, key: &str, sent: &[Sent], rows: &Rows, before: impl Fn(&Sent) -> Vec<String>) {
        let def = self.def.as_ref();
        let dropped: Vec<&str> = sent
            .iter()
            .filter(|sent| {
                let column = &self.mirror.columns[sent.column];
                let journal = def
                    .and_then(|def| def.field(&sent.field))
                    .is_some_and(|field| field_type(&field.internal_type) == FieldType::Journal);
                let answer = rows.value(0, sent.column).encode();
                let wanted = match column.show {
                    Show::Value => sent.value.clone(),
                    // A label stands for the stored value, which the table does not show.
                    Show::Label => self.label_of(sent).unwrap_or_else(|| answer.clone()),
                };
                !journal
                    && !same(column.kind, &answer, &wanted)
                    && before(sent).iter().any(|before| same(column.kind, &answer, before))
            })
            .map(|sent| sent.field.as_str())
            .collect();
        if dropped.is_empty() {
            return;
        }
        let fields: Vec<String> = dropped.iter().map(|field| format!("\"{field}\"")).collect();
        raise(
            error(
                Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!(
                    "could not set {} in record \"{key}\" of table \"{}\" on server \"{}\": the instance ignored it",
                    fields.join(", "),
                    self.mirror.table,
                    self.connection.server()
                ),
            )
            .set_detail("The instance reported success, but the record does not have the new value.")
            .set_hint("The field may be read-only for this user, or a business rule may set it."),
        )
    }

    /// The label that a choice's stored value should show, if it is known.
    fn label_of(&self, sent: &Sent) -> Option<String> {
        let field = self.def.as_ref()?.field(&sent.field)?;
        field.choices.iter().find(|choice| choice.value == sent.value).map(|choice| choice.label.clone())
    }

    /// Puts the answer into the cache and gives the row back by attribute number.
    fn keep(&mut self, rows: &Rows) -> Written {
        let added = self.cache.put(rows, 0);
        self.delta += i64::from(added);
        self.done.insert(rows.id(0).to_owned());
        self.written(|position| owned(to_scalar(rows.value(0, position))))
    }

    /// A row by attribute number, from values by position among the mirror's columns.
    fn written(&self, value: impl Fn(usize) -> OwnedScalar) -> Written {
        let mut written = vec![OwnedScalar::Null; self.mirror.width as usize];
        for (position, column) in self.mirror.columns.iter().enumerate() {
            written[column.number as usize - 1] = value(position);
        }
        written
    }

    fn record(&self, key: &str) -> (TableName, SysId, Arc<servicenow::page::Layout>) {
        (self.mirror.table.clone(), SysId::new(key), self.mirror.layout.clone())
    }

    fn table_name(&self) -> String {
        pg::catalog::relation_name(self.mirror.foreign_table).unwrap_or_default()
    }
}

impl RowWriter for Writer {
    fn insert(&mut self, row: &Row<'_>) -> Option<Written> {
        let given: Vec<usize> = (0..self.mirror.columns.len())
            .filter(|&position| row.get(self.mirror.columns[position].number) != OwnedScalar::Null)
            .collect();
        // NULL is not sent: the instance's default applies, as DEFAULT would.
        let sent = self.fields(&given, row, None);
        let key = match row.get(self.mirror.columns[self.mirror.key].number) {
            OwnedScalar::Text(key) if !key.is_empty() => key,
            _ => new_sys_id(),
        };
        if self.skip_duplicates && self.cache.lock(&key).is_some() {
            return None;
        }
        let (table, id, layout) = self.record(&key);
        let fields = body(&sent);
        pg::xact::forbid_prepare();
        let what = format!("insert a record into table \"{table}\"");
        let inserted = self
            .connection
            .try_call(|client| async move { client.insert(&table, &id, &fields, &layout).await });
        let rows = match inserted {
            Ok(rows) => rows,
            Err(servicenow::Error::Refused { refusal: Refusal::Unique, .. }) if self.skip_duplicates => {
                return None;
            }
            Err(e) => {
                raise(report(&e, Doing { server: self.connection.server(), what: &what, writing: true }))
            }
        };
        let def = self.def();
        self.check_answer(rows.id(0), &sent, &rows, |sent| {
            let default = def.field(&sent.field).map(|field| field.default_value.clone());
            default.into_iter().chain([String::new()]).collect()
        });
        Some(self.keep(&rows))
    }

    fn update(&mut self, key: &str, old: &Row<'_>, new: &Row<'_>) -> Option<Written> {
        if self.done.contains(key) {
            return None;
        }
        let assigned: Vec<usize> = (0..self.mirror.columns.len())
            .filter(|&position| self.assigned.contains(&self.mirror.columns[position].number))
            .collect();
        let number = |position: usize| self.mirror.columns[position].number;
        let mut changed: Vec<usize> =
            assigned.iter().copied().filter(|&p| old.get(number(p)) != new.get(number(p))).collect();
        if changed.contains(&self.mirror.key) {
            raise(error(
                Sql::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("column \"{}\" cannot be changed", self.mirror.columns[self.mirror.key].name),
            ));
        }
        let (table, id, layout) = self.record(key);
        if changed.is_empty() {
            // Nothing differs from the cache; make sure that nothing differs from the instance either.
            let what = format!("read record \"{key}\" of table \"{table}\"");
            let (get_table, get_id, get_layout) = (table.clone(), id.clone(), layout.clone());
            let rows = self.connection.call(&what, false, |client| async move {
                client.get(&get_table, &get_id, &get_layout).await
            });
            let differs = |&position: &usize| {
                let there = owned(to_scalar(rows.value(0, position)));
                let column = &self.mirror.columns[position];
                there != new.get(column.number) && !column.field.contains('.')
            };
            changed = assigned.into_iter().filter(differs).collect();
            if changed.is_empty() {
                return Some(self.keep(&rows));
            }
        }
        let sent = self.fields(&changed, new, Some(old));
        let def = self.def();
        let appends = |sent: &Sent| {
            let field = def.field(&sent.field);
            field.is_some_and(|field| field_type(&field.internal_type) == FieldType::Journal)
        };
        let effect = if sent.iter().any(appends) { Effect::Once } else { Effect::Idempotent };
        let fields = body(&sent);
        pg::xact::forbid_prepare();
        let what = format!("update record \"{key}\" of table \"{table}\"");
        let rows = self.connection.call(&what, true, |client| async move {
            client.update(&table, &id, &fields, &layout, effect).await
        });
        self.check_answer(key, &sent, &rows, |sent| {
            vec![to_value(&old.get(self.mirror.columns[sent.column].number)).encode()]
        });
        Some(self.keep(&rows))
    }

    fn delete(&mut self, key: &str) -> Option<Written> {
        if self.done.contains(key) {
            return None;
        }
        let values = self.cache.lock(key)?;
        let (table, id, _) = self.record(key);
        pg::xact::forbid_prepare();
        let what = format!("delete record \"{key}\" of table \"{table}\"");
        self.connection.call(&what, true, |client| async move { client.delete(&table, &id).await });
        self.cache.delete_locked();
        self.done.insert(key.to_owned());
        self.delta -= 1;
        Some(self.written(|position| values[position].clone()))
    }

    fn finish(self) {
        self.cache.close();
        catalog::count_rows(self.mirror.foreign_table, self.delta);
    }
}

fn body(sent: &[Sent]) -> Map<String, Json> {
    sent.iter().map(|sent| (sent.field.clone(), Json::String(sent.value.clone()))).collect()
}

/// Whether two wire values of a kind mean the same.
fn same(kind: Kind, a: &str, b: &str) -> bool {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    match kind {
        Kind::Numeric | Kind::Float => number(a) == number(b) && number(a).is_some() || a.trim() == b.trim(),
        Kind::Boolean => (a == "true") == (b == "true"),
        _ => a.trim() == b.trim() || a.replace("\r\n", "\n").trim() == b.replace("\r\n", "\n").trim(),
    }
}

fn owned(scalar: Scalar<'_>) -> OwnedScalar {
    match scalar {
        Scalar::Null => OwnedScalar::Null,
        Scalar::Text(text) => OwnedScalar::Text(text.to_owned()),
        Scalar::Boolean(b) => OwnedScalar::Plain(Scalar::Boolean(b)),
        Scalar::Integer(i) => OwnedScalar::Plain(Scalar::Integer(i)),
        Scalar::Float(f) => OwnedScalar::Plain(Scalar::Float(f)),
        Scalar::Micros(us) => OwnedScalar::Plain(Scalar::Micros(us)),
        Scalar::Days(days) => OwnedScalar::Plain(Scalar::Days(days)),
        Scalar::TimeOfDay(us) => OwnedScalar::Plain(Scalar::TimeOfDay(us)),
        Scalar::Seconds(s) => OwnedScalar::Plain(Scalar::Seconds(s)),
    }
}

fn new_sys_id() -> String {
    let mut bytes = [0; 16];
    if let Err(e) = getrandom::fill(&mut bytes) {
        raise(error(Sql::ERRCODE_SYSTEM_ERROR, format!("could not make a sys_id: {e}")));
    }
    SysId::from_random(bytes).as_str().to_owned()
}
