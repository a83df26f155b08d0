//! INSERT, UPDATE and DELETE: each row is sent to ServiceNow first, and the answer goes into the cache in the
//! same transaction. In backends, under the executor.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use pgrx::PgSqlErrorCode as Sql;
use servicenow::client::retry::Effect;
use servicenow::client::table_api::Identity;
use servicenow::dictionary::{self, TableDef};
use servicenow::error::Refusal;
use servicenow::page::{Layout, Rows};
use servicenow::value::{Kind, Show, SysId, TableName};

use super::body::{Draft, Sent, json};
use crate::cache::apply::{CacheWriter, Put, to_scalar, to_value};
use crate::cache::change::Source;
use crate::catalog::{self, Mirror};
use crate::connection::{Connection, connection};
use crate::error::{Doing, error, raise, report};
use crate::pg;
use crate::pg::routine::{Operation, Row, RowWriter, Target, Written};
use crate::pg::system::SystemColumns;
use crate::pg::table::Triggers;
use crate::pg::tuple::OwnedScalar;
use crate::worker;

/// One statement's writes to one table.
pub struct Writer {
    mirror: Rc<Mirror>,
    assigned: Vec<i16>,
    /// A trigger may change columns that are not assigned.
    any_column: bool,
    skip_duplicates: bool,
    connection: Connection,
    /// What the dictionary says; read when the first row comes.
    def: Option<Rc<TableDef>>,
    /// The description was read from the instance by this statement.
    def_is_fresh: bool,
    cache: CacheWriter,
    /// Records this statement has written: a join may bring a target row more than once.
    done: HashSet<String>,
    /// Records in the cache as this login sees them and not as the worker does.
    to_recheck: Vec<String>,
    /// Rows added to the cache, less rows taken from it.
    delta: i64,
}

impl Writer {
    /// Begins a statement's writes.
    pub fn begin(target: Target) -> Self {
        let mirror = catalog::mirror_or_error(target.relation);
        let connection = connection(mirror.server, target.user);
        let cache = CacheWriter::open(&mirror, Triggers::Query, Some(Source::Write));
        worker::ensure_now_and_then();
        debug_assert!(target.operation == Operation::Update || target.assigned.is_empty());
        Self {
            assigned: target.assigned,
            any_column: target.any_column,
            skip_duplicates: target.skip_duplicates,
            connection,
            def: None,
            def_is_fresh: false,
            cache,
            done: HashSet::new(),
            to_recheck: Vec::new(),
            delta: 0,
            mirror,
        }
    }

    /// The table's description: as the worker or an import has left it, or else read now.
    fn def(&mut self) -> Rc<TableDef> {
        if let Some(def) = &self.def {
            return def.clone();
        }
        match catalog::definition(self.mirror.server, &self.mirror.table) {
            Some(known) => self.def.insert(known).clone(),
            None => self.fetch_def(),
        }
    }

    fn fetch_def(&mut self) -> Rc<TableDef> {
        let table = self.mirror.table.clone();
        let what = format!("read the dictionary of table \"{table}\"");
        let def = self.connection.call(&what, false, |client| async move {
            let mut described = dictionary::fetch(&client, std::slice::from_ref(&table)).await?;
            described.pop().map(|(_, def)| def).unwrap_or(Err(servicenow::Error::NoTable(Default::default())))
        });
        let def = catalog::remember_definition(self.mirror.server, def);
        self.def_is_fresh = true;
        self.def.insert(def).clone()
    }

    /// The fields to send for the given columns of a row.
    fn fields(&mut self, columns: &[usize], row: &Row<'_>, old: Option<&Row<'_>>) -> Vec<Sent> {
        let mut def = self.def();
        loop {
            let (mirror, connection) = (&*self.mirror, &self.connection);
            match (Draft { mirror, def: &def, connection, row, old }).fields(columns) {
                Ok(sent) => return sent,
                // The choice may have been added since the dictionary was read.
                Err(_) if !self.def_is_fresh => def = self.fetch_def(),
                Err(unknown) => raise(*unknown.0),
            }
        }
    }

    /// Compares the answer with what was sent: ServiceNow drops a value it does not like without a word.
    /// `before` gives what a dropped value would leave in the field.
    fn check_answer(&self, key: &str, sent: &[Sent], rows: &Rows, before: impl Fn(&Sent) -> Vec<String>) {
        let was_dropped = |sent: &&Sent| {
            let column = &self.mirror.columns[sent.column];
            let answer = rows.value(0, sent.column).encode().unwrap_or_default();
            let wanted = match column.show {
                Show::Value => Some(sent.value.clone()),
                // The table does not show the stored value; its label is known for a choice only.
                Show::Label => self.label_of(sent),
            };
            !sent.appends
                && rows.is_shown(0, sent.column)
                && wanted.is_some_and(|wanted| !same(column.kind, &answer, &wanted))
                && before(sent).iter().any(|before| same(column.kind, &answer, before))
        };
        let dropped: Vec<String> =
            sent.iter().filter(was_dropped).map(|sent| format!("\"{}\"", sent.field)).collect();
        if dropped.is_empty() {
            return;
        }
        raise(
            error(
                Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!(
                    "could not set {} in record \"{key}\" of table \"{}\" on server \"{}\": the instance ignored it",
                    dropped.join(", "),
                    self.mirror.table,
                    self.connection.server()
                ),
            )
            .set_detail("The instance reported success, but the record does not have the new value.")
            .set_hint(match sent.iter().filter(was_dropped).all(|sent| sent.value.is_empty()) {
                true => "A choice field cannot be emptied through ServiceNow's REST interface; other fields may be read-only for this user.",
                false => "The field may be read-only for this user, or a business rule may set it.",
            }),
        )
    }

    /// The label that a choice's stored value shows, if it is known.
    fn label_of(&self, sent: &Sent) -> Option<String> {
        let field = self.def.as_ref()?.field(&sent.field)?;
        field.choices.iter().find(|choice| choice.value == sent.value).map(|choice| choice.label.clone())
    }

    /// Puts the answer into the cache and gives the row back by attribute number.
    fn keep(&mut self, rows: &Rows) -> Written {
        let Put { added, is_clear, system } = self.cache.put(rows, 0);
        self.delta += i64::from(added);
        self.done.insert(rows.id(0).to_owned());
        if !self.connection.is_workers() || !is_clear {
            self.to_recheck.push(rows.id(0).to_owned());
        }
        self.written(system, |position| to_scalar(rows.value(0, position)).to_owned())
    }

    /// A row by attribute number, from values by position among the mirror's columns.
    fn written(&self, system: Option<SystemColumns>, value: impl Fn(usize) -> OwnedScalar) -> Written {
        let mut columns = vec![OwnedScalar::Null; self.mirror.width as usize];
        for (position, column) in self.mirror.columns.iter().enumerate() {
            columns[column.number as usize - 1] = value(position);
        }
        Written { columns, system }
    }

    /// The columns of which `differs` is true, with all assigned columns of the same fields: a label and a stored
    /// value must not contradict each other.
    fn changed(&self, assigned: &[usize], differs: impl Fn(usize) -> bool) -> Vec<usize> {
        let all: Vec<usize> = (0..self.mirror.columns.len()).collect();
        let candidates = if self.any_column { &all } else { assigned };
        let changed: Vec<usize> = candidates.iter().copied().filter(|position| differs(*position)).collect();
        let field = |position: usize| self.mirror.columns[position].field.as_str();
        let fields: HashSet<&str> = changed.iter().map(|position| field(*position)).collect();
        let twins = assigned.iter().copied().filter(|p| fields.contains(field(*p)) && !changed.contains(p));
        changed.iter().copied().chain(twins).collect()
    }

    fn record(&self) -> (TableName, Arc<Layout>) {
        (self.mirror.table.clone(), self.mirror.layout.clone())
    }

    fn fail(&self, e: &servicenow::Error, what: &str) -> ! {
        raise(report(e, Doing { server: self.connection.server(), what, writing: true }))
    }
}

impl RowWriter for Writer {
    fn insert(&mut self, row: &Row<'_>) -> Option<Written> {
        let number = |position: usize| self.mirror.columns[position].number;
        let is_given = |position: &usize| match row.get(number(*position)) {
            OwnedScalar::Null => false,
            OwnedScalar::Text(text) => !text.is_empty(),
            OwnedScalar::Plain(_) => true,
        };
        // No value is not sent: the instance's default applies, as DEFAULT would.
        let given: Vec<usize> = (0..self.mirror.columns.len()).filter(is_given).collect();
        let identity = match row.get(number(self.mirror.key)) {
            OwnedScalar::Text(key) if matches!(key.as_str(), "." | "..") => raise(error(
                Sql::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("sys_id \"{key}\" cannot be the identity of a record"),
            )),
            OwnedScalar::Text(key) if !key.is_empty() => Identity::Given(SysId::new(key)),
            _ => Identity::Fresh(new_sys_id()),
        };
        let sent = self.fields(&given, row, None);
        if self.skip_duplicates
            && let Identity::Given(id) = &identity
            && (self.done.contains(id.as_str()) || self.cache.lock(id.as_str()).is_some())
        {
            return None;
        }
        let ((table, layout), fields) = (self.record(), json(&sent));
        pg::xact::forbid_prepare();
        let what = format!("insert a record into table \"{table}\"");
        let inserted = self.connection.try_call(&what, true, |client| async move {
            client.insert(&table, &identity, &fields, &layout).await
        });
        let rows = match inserted {
            Ok(rows) => rows,
            Err(servicenow::Error::Refused { refusal: Refusal::Unique, .. }) if self.skip_duplicates => {
                return None;
            }
            Err(e) => self.fail(&e, &what),
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
        let number = |position: usize| self.mirror.columns[position].number;
        let is_assigned = |position: &usize| self.assigned.contains(&number(*position));
        let assigned: Vec<usize> = (0..self.mirror.columns.len()).filter(is_assigned).collect();
        let mut changed = self.changed(&assigned, |p| old.get(number(p)) != new.get(number(p)));
        if changed.contains(&self.mirror.key) {
            raise(error(
                Sql::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("column \"{}\" cannot be changed", self.mirror.columns[self.mirror.key].name),
            ));
        }
        let ((table, layout), id) = (self.record(), SysId::new(key));
        if changed.is_empty() {
            // Nothing differs from the cache; make sure that nothing differs from the instance either.
            let what = format!("read record \"{key}\" of table \"{table}\"");
            let (get_table, get_id, get_layout) = (table.clone(), id.clone(), layout.clone());
            let rows = self.connection.call(&what, false, |client| async move {
                client.get(&get_table, &get_id, &get_layout).await
            });
            changed = self.changed(&assigned, |p| {
                to_scalar(rows.value(0, p)).to_owned() != new.get(number(p))
                    && !self.mirror.columns[p].field.contains('.')
            });
            if changed.is_empty() {
                return Some(self.keep(&rows));
            }
        }
        let sent = self.fields(&changed, new, Some(old));
        let effect = if sent.iter().any(|sent| sent.appends) { Effect::Once } else { Effect::Idempotent };
        let fields = json(&sent);
        pg::xact::forbid_prepare();
        let what = format!("update record \"{key}\" of table \"{table}\"");
        let rows = self.connection.call(&what, true, |client| async move {
            client.update(&table, &id, &fields, &layout, effect).await
        });
        self.check_answer(key, &sent, &rows, |sent| {
            let before = old.get(self.mirror.columns[sent.column].number);
            to_value(&before).encode().into_iter().collect()
        });
        Some(self.keep(&rows))
    }

    fn delete(&mut self, key: &str) -> Option<Written> {
        if self.done.contains(key) {
            return None;
        }
        let values = self.cache.lock(key)?;
        let system = self.cache.locked_system();
        let ((table, _), id) = (self.record(), SysId::new(key));
        pg::xact::forbid_prepare();
        let what = format!("delete record \"{key}\" of table \"{table}\"");
        self.connection.call(&what, true, |client| async move { client.delete(&table, &id).await });
        self.cache.delete_locked();
        self.done.insert(key.to_owned());
        self.delta -= 1;
        Some(self.written(Some(system), |position| values[position].clone()))
    }

    fn finish(self) {
        self.cache.close();
        catalog::count_rows(self.mirror.foreign_table, self.delta);
        if !self.to_recheck.is_empty() {
            catalog::ask_to_recheck(self.mirror.foreign_table, &self.to_recheck);
        }
    }
}

/// Whether two wire values of a kind mean the same.
fn same(kind: Kind, a: &str, b: &str) -> bool {
    let plain = |text: &str| text.replace("\r\n", "\n").trim().to_owned();
    match (kind, a.trim().parse::<f64>(), b.trim().parse::<f64>()) {
        (Kind::Numeric | Kind::Float, Ok(a), Ok(b)) => a == b,
        (Kind::Boolean, ..) => (a == "true") == (b == "true"),
        _ => plain(a) == plain(b),
    }
}

fn new_sys_id() -> SysId {
    let mut bytes = [0; 16];
    if let Err(e) = getrandom::fill(&mut bytes) {
        raise(error(Sql::ERRCODE_SYSTEM_ERROR, format!("could not make a sys_id: {e}")));
    }
    SysId::from_random(bytes)
}
