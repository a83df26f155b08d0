//! INSERT, UPDATE and DELETE: what becomes of the rows of a statement. In backends, under the executor.

use std::collections::HashSet;

use pgrx::PgSqlErrorCode as Sql;
use servicenow::value::{Show, SysId};

use crate::catalog::MirrorColumn;
use crate::error::{error, raise};
use crate::pg::routine::{
    Check, Foreseen, Operation, Origin, OwnedRow, Row, RowWriter, Target, Values, Written,
};
use crate::pg::table::Triggers;
use crate::pg::tuple::OwnedScalar;
use crate::push::{Item, Pusher, Task, new_sys_id, queue, with_twins};
use crate::setting::{self, Push};
use crate::worker;

/// Rows sent at a time.
const ROWS_AT_A_TIME: usize = 500;
/// Rows are sent, however few there are, when their fields take this much memory, in bytes.
const BYTES_AT_A_TIME: usize = 8 << 20;

/// One statement's writes to one table.
pub struct Writer {
    pusher: Pusher,
    mode: Push,
    assigned: Vec<usize>,
    /// Columns that may differ from what was there: those that are assigned, or all if a trigger may change them.
    candidates: Vec<usize>,
    skip_duplicates: bool,
    /// Whether rows may be handed over together.
    buffers: bool,
    /// Whether rows may wait for others.
    waits: bool,
    waiting: Vec<Item>,
    waiting_bytes: usize,
    /// Records this statement has written: a join may bring a target row more than once.
    done: Done,
}

/// Keys, in little memory.
#[derive(Default)]
struct Done {
    plain: HashSet<u128>,
    others: HashSet<SysId>,
}

impl Done {
    fn number(id: &SysId) -> Option<u128> {
        let text = id.as_str();
        let is_plain = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        u128::from_str_radix(text, 16).ok().filter(|_| is_plain)
    }

    /// Adds one; gives back whether it is new.
    fn insert(&mut self, id: &SysId) -> bool {
        match Self::number(id) {
            Some(number) => self.plain.insert(number),
            None => self.others.insert(id.clone()),
        }
    }

    fn contains(&self, id: &SysId) -> bool {
        Self::number(id).map_or_else(|| self.others.contains(id), |number| self.plain.contains(&number))
    }
}

impl Writer {
    /// Begins a statement's writes.
    pub fn begin(target: Target) -> Self {
        debug_assert!(target.operation == Operation::Update || target.assigned.is_empty());
        let pusher = Pusher::new(target.relation, target.user, Triggers::Query);
        worker::ensure_now_and_then();
        let columns = &pusher.mirror.columns;
        let all: Vec<usize> = (0..columns.len()).collect();
        let is_assigned = |position: &usize| target.assigned.contains(&columns[*position].number);
        let assigned: Vec<usize> = all.iter().copied().filter(is_assigned).collect();
        Self {
            candidates: if target.any_column { all } else { assigned.clone() },
            assigned,
            // What waits for COMMIT was first, and must not come last.
            mode: match setting::push() {
                Push::Statement if queue::is_waiting() => Push::Commit,
                mode => mode,
            },
            skip_duplicates: target.skip_duplicates,
            buffers: target.buffers,
            // COPY ends the writing when the triggers have fired; the cache's would not.
            waits: target.waits
                && !(target.operation == Operation::Insert && pusher.cache.fires_after_triggers()),
            waiting: Vec::new(),
            waiting_bytes: 0,
            done: Done::default(),
            pusher,
        }
    }

    fn number(&self, position: usize) -> i16 {
        self.pusher.mirror.columns[position].number
    }

    /// What an INSERT is to do, and whether this statement has a record of that key already; `None` if the record is there and
    /// such rows are passed over.
    fn insertion(&mut self, row: &Row<'_>, check: Check<'_>) -> Option<(Item, bool)> {
        let is_given = |position: &usize| match row.get(self.number(*position)) {
            OwnedScalar::Null => false,
            OwnedScalar::Text(text) => !text.is_empty(),
            OwnedScalar::Plain(_) => true,
        };
        // No value is not sent: the instance's default applies, as DEFAULT would.
        let given: Vec<usize> = (0..self.pusher.mirror.columns.len()).filter(is_given).collect();
        let (id, is_given) = match row.get(self.number(self.pusher.mirror.key)) {
            OwnedScalar::Text(key) if matches!(key.as_str(), "." | "..") => raise(error(
                Sql::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("sys_id \"{key}\" cannot be the identity of a record"),
            )),
            OwnedScalar::Text(key) if !key.is_empty() => (SysId::new(key), true),
            _ => (new_sys_id(), false),
        };
        let sent = self.pusher.draft(&given, row, None);
        if self.skip_duplicates
            && is_given
            && (self.done.contains(&id) || self.pusher.cache.lock(id.as_str()).is_some())
        {
            return None;
        }
        let is_twice = !self.done.insert(&id);
        let task = Task::Insert { is_given, or_nothing: self.skip_duplicates, sent };
        let mut item = Item { id, cached: None, task };
        if let Some(check) = check {
            self.pusher.resolve(std::slice::from_mut(&mut item));
            check(&self.foresee(&item, row));
        }
        Some((item, is_twice))
    }

    /// What an UPDATE is to do.
    fn change(&mut self, key: &str, old: &Row<'_>, new: &Row<'_>) -> Item {
        let mirror = self.pusher.mirror.clone();
        let number = |position: usize| mirror.columns[position].number;
        let differs = |position| old.get(number(position)) != new.get(number(position));
        let changed = with_twins(&mirror, &self.candidates, &self.assigned, differs);
        if changed.contains(&mirror.key) {
            raise(error(
                Sql::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("column \"{}\" cannot be changed", mirror.columns[mirror.key].name),
            ));
        }
        let task = match changed.is_empty() {
            true => Task::Confirm { row: OwnedRow::of(new), assigned: self.candidates.clone() },
            false => Task::Update { sent: self.pusher.draft(&changed, new, Some(old)) },
        };
        Item { id: SysId::new(key), cached: self.pusher.cached_version(key), task }
    }

    /// Carries an item out, or has it wait for others, or for the end of the transaction. `row` is the row as it is to be, if
    /// there is to be one.
    fn carry_out(&mut self, mut item: Item, row: Option<&Row<'_>>) -> Option<Written> {
        if self.mode != Push::Statement {
            self.pusher.resolve(std::slice::from_mut(&mut item));
        }
        match self.mode {
            Push::Statement if self.waits => {
                self.waiting_bytes += item.size();
                self.waiting.push(item);
                if self.waiting.len() >= ROWS_AT_A_TIME || self.waiting_bytes >= BYTES_AT_A_TIME {
                    self.flush();
                }
                Some(Written::AsGiven)
            }
            Push::Statement => self.pusher.send(vec![item]).pop().flatten(),
            Push::Commit => {
                let written = match row {
                    Some(row) => Some(self.foretell(&item, row)),
                    None => self.pusher.forget(item.id.as_str()),
                };
                queue::put(self.pusher.mirror.foreign_table, self.pusher.role(), item);
                written
            }
            Push::DryRun => {
                self.pusher.pretend(&item);
                match row {
                    Some(row) => {
                        let values = self.foretold(&item, row);
                        let system = self.pusher.system_of(item.id.as_str());
                        Some(self.pusher.written(Some(system), |position| values[position].clone()))
                    }
                    None => self.pusher.look_up(item.id.as_str()),
                }
            }
        }
    }

    fn foretell(&mut self, item: &Item, row: &Row<'_>) -> Written {
        let values = self.foretold(item, row);
        self.pusher.foretell(&item.id, &values)
    }

    /// The row as far as it is known before the instance has answered, and where that comes from.
    fn foresee(&self, item: &Item, row: &Row<'_>) -> Foreseen {
        let (mirror, sent) = (&self.pusher.mirror, item.task.sent());
        let is_new = matches!(item.task, Task::Insert { .. });
        let (others, key) = (if is_new { Origin::Instance } else { Origin::Row }, self.number(mirror.key));
        let origin = |column: &MirrorColumn| {
            let of_field = |field: &str| sent.iter().find(|sent| sent.field == field);
            match column.field.split_once('.') {
                _ if column.number == key && is_new => Origin::Statement,
                Some((field, _)) if of_field(field).is_some() => Origin::Instance,
                Some(_) => others,
                None => match of_field(&column.field) {
                    None => others,
                    Some(sent) if column.show == Show::Value || self.pusher.knows_label(sent) => {
                        Origin::Statement
                    }
                    Some(_) => Origin::Instance,
                },
            }
        };
        let values = self.foretold(item, row);
        let width = mirror.width as usize;
        let mut columns = vec![OwnedScalar::Null; width];
        // What is not of the mirror is computed, from any of the others.
        let is_known = mirror.columns.iter().all(|column| origin(column) != Origin::Instance);
        let mut origins = vec![if is_known { Origin::Row } else { Origin::Instance }; width];
        for (column, value) in mirror.columns.iter().zip(values) {
            let place = column.number as usize - 1;
            (columns[place], origins[place]) = (value, origin(column));
        }
        Foreseen { columns, origins }
    }

    /// The row as far as it is known before the instance has answered.
    fn foretold(&self, item: &Item, row: &Row<'_>) -> Vec<OwnedScalar> {
        let is_new = matches!(item.task, Task::Insert { .. });
        let mut values = self.pusher.foretold(row, item.task.sent(), is_new);
        values[self.pusher.mirror.key] = OwnedScalar::Text(item.id.as_str().to_owned());
        values
    }
}

impl RowWriter for Writer {
    fn batch_size(&self) -> usize {
        if self.buffers && self.mode == Push::Statement { ROWS_AT_A_TIME } else { 1 }
    }

    fn insert(&mut self, row: &Row<'_>, check: Check<'_>) -> Option<Written> {
        let (item, is_twice) = self.insertion(row, check)?;
        if is_twice {
            self.flush(); // the instance is to refuse the second of them
        }
        self.carry_out(item, Some(row))
    }

    fn insert_many(&mut self, rows: &[Row<'_>], check: Check<'_>) -> Vec<Option<Written>> {
        if self.mode != Push::Statement {
            return rows.iter().map(|row| self.insert(row, check)).collect();
        }
        let mut items = Vec::new();
        let mut written: Vec<Option<Written>> = rows.iter().map(|_| None).collect();
        let (mut places, mut bytes) = (Vec::new(), 0);
        for (place, row) in rows.iter().enumerate() {
            let Some((item, is_twice)) = self.insertion(row, check) else { continue };
            if is_twice || bytes >= BYTES_AT_A_TIME {
                self.send(&mut written, &mut places, &mut items);
                bytes = 0;
            }
            bytes += item.size();
            places.push(place);
            items.push(item);
        }
        self.send(&mut written, &mut places, &mut items);
        written
    }

    fn update(&mut self, key: &str, old: &Row<'_>, new: &Row<'_>, check: Check<'_>) -> Option<Written> {
        if !self.done.insert(&SysId::new(key)) {
            return None;
        }
        let mut item = self.change(key, old, new);
        if let Some(check) = check {
            self.pusher.resolve(std::slice::from_mut(&mut item));
            check(&self.foresee(&item, new));
        }
        self.carry_out(item, Some(new))
    }

    fn delete(&mut self, key: &str) -> Option<Written> {
        let id = SysId::new(key);
        if self.done.contains(&id) || self.pusher.cache.lock(key).is_none() {
            return None;
        }
        self.done.insert(&id);
        let cached = self.pusher.cached_version(key);
        self.carry_out(Item { id, cached, task: Task::Delete }, None)
    }

    fn is_done(&self, key: &str) -> bool {
        self.done.contains(&SysId::new(key))
    }

    fn flush(&mut self) {
        if !self.waiting.is_empty() {
            let items = std::mem::take(&mut self.waiting);
            self.waiting_bytes = 0;
            self.pusher.send(items);
        }
    }

    fn finish(mut self) {
        self.flush();
        self.pusher.close();
    }
}

impl Writer {
    fn send(&mut self, written: &mut [Option<Written>], places: &mut Vec<usize>, items: &mut Vec<Item>) {
        if items.is_empty() {
            return;
        }
        let outcome = self.pusher.send(std::mem::take(items));
        for (place, outcome) in places.drain(..).zip(outcome) {
            written[place] = outcome;
        }
    }
}
