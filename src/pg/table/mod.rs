//! Writing rows into a table below SQL: the way COPY and logical replication do it, with indexes,
//! constraints and triggers kept, but without parsing, planning or privilege checks.

mod executor;

use std::collections::HashMap;
use std::ffi::CStr;
use std::panic::AssertUnwindSafe;

use pgrx::{PgMemoryContexts, pg_sys};

use self::executor::{
    alloc_in, executor_state, init_epq, insert_index_entries, new_slot, primary_key, reset_per_tuple,
};
use super::system::SystemColumns;
use super::tuple::{DatumWriter, Misfit, OwnedScalar, Scalar, read, same_image};
use super::xact::subtransaction;

/// Rows handed to the table's access method at a time. COPY takes up to 64 KiB: what is made just before is still in the
/// processor's caches then.
const BATCH: usize = 64;

/// A table opened for writing by one transaction (or subtransaction) of this process.
pub struct TableWriter {
    relation: pg_sys::Relation,
    estate: *mut pg_sys::EState,
    target: *mut pg_sys::ResultRelInfo,
    epq: *mut pg_sys::EPQState,
    /// Slots for a batch, made as needed; the first also serves single rows.
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    /// Holds the key of the row looked for.
    search: *mut pg_sys::TupleTableSlot,
    /// Holds the row found.
    found: *mut pg_sys::TupleTableSlot,
    columns: Vec<(usize, DatumWriter)>,
    key: (usize, DatumWriter),
    key_index: pg_sys::Oid,
    /// Where the writer was opened: what lives as long as it does.
    context: PgMemoryContexts,
    /// Values of the batch or row being written; reset after it.
    values: PgMemoryContexts,
    triggers: Triggers,
}

/// Who fires AFTER triggers of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Triggers {
    /// The writer, when it is closed: nothing else is being executed.
    Own,
    /// The query that is being executed, at its end.
    Query,
}

/// What became of a row that was to be added.
#[derive(Clone, Copy, Debug)]
pub enum Added {
    /// It is in the table.
    Row(SystemColumns),
    /// A trigger of the table's had it passed over.
    PassedOver,
    /// Somebody else has added its key.
    IsThere,
}

/// Where in a batch a value does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MisfitAt {
    /// The row's position in the batch.
    pub row: usize,
    /// The column's position in the writer.
    pub column: usize,
}

unsafe extern "C-unwind" {
    /// nodeModifyTable.c: computes a row's generated columns.
    fn ExecComputeStoredGenerated(
        target: *mut pg_sys::ResultRelInfo,
        estate: *mut pg_sys::EState,
        slot: *mut pg_sys::TupleTableSlot,
        command: pg_sys::CmdType::Type,
    );
}

impl TableWriter {
    /// Opens a table to write these columns of it, in this order; `key` is the single column of its primary
    /// key. Columns of the table that are not named become NULL in new rows and stay in changed ones.
    /// `None` if the table lacks one of the columns or has another primary key.
    pub fn open(table: pg_sys::Oid, columns: &[&str], key: &str, triggers: Triggers) -> Option<Self> {
        // SAFETY: opening raises an ERROR if the table is gone. Everything made here lives in the executor
        // state's memory context or in the current one, and is released by `close` or with the transaction.
        // The order follows `create_edata_for_relation` of logical replication's apply worker.
        unsafe {
            let relation = pg_sys::table_open(table, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE);
            let (places, key) = {
                let tupdesc = pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att);
                let attributes = tupdesc.iter().enumerate().filter(|(_, attribute)| !attribute.attisdropped);
                let by_name: HashMap<&str, (usize, DatumWriter)> = attributes
                    .map(|(place, a)| (a.name(), (place, DatumWriter::new(a.atttypid, a.atttypmod))))
                    .collect();
                let places: Option<Vec<_>> = columns.iter().map(|name| by_name.get(name).cloned()).collect();
                (places, by_name.get(key).cloned())
            };
            let key_index = primary_key(relation);
            let (Some(places), Some(key), true) = (places, key, key_index != pg_sys::InvalidOid) else {
                pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
                return None;
            };
            let estate = executor_state(relation);
            let target: *mut pg_sys::ResultRelInfo = alloc_in((*estate).es_query_cxt);
            (*target).type_ = pg_sys::NodeTag::T_ResultRelInfo;
            pg_sys::InitResultRelInfo(target, relation, 1, std::ptr::null_mut(), 0);
            // AFTER triggers look the relation up here; else they would open it once more.
            (*estate).es_opened_result_relations =
                pg_sys::lappend((*estate).es_opened_result_relations, target.cast());
            pg_sys::ExecOpenIndices(target, false);
            let epq: *mut pg_sys::EPQState = alloc_in((*estate).es_query_cxt);
            init_epq(epq, estate);
            if triggers == Triggers::Own {
                pg_sys::AfterTriggerBeginQuery();
            }
            Some(Self {
                relation,
                estate,
                target,
                epq,
                slots: Vec::new(),
                search: new_slot(relation),
                found: new_slot(relation),
                columns: places,
                key,
                key_index,
                context: PgMemoryContexts::For(pg_sys::CurrentMemoryContext),
                values: PgMemoryContexts::For(new_context(c"servicenow_fdw row values")),
                triggers,
            })
        }
    }

    /// Adds rows that are not in the table yet.
    pub fn insert_many<'v>(
        &mut self,
        rows: usize,
        value: impl Fn(usize, usize) -> Scalar<'v>,
    ) -> Result<(), MisfitAt> {
        if self.needs_single_rows() {
            for row in 0..rows {
                self.insert(|column| value(row, column)).map_err(|m| MisfitAt { row, ..m })?;
            }
            return Ok(());
        }
        let mut first = 0;
        while first < rows {
            let count = BATCH.min(rows - first);
            for i in 0..count {
                self.fill(i, false, |column| value(first + i, column))
                    .map_err(|column| MisfitAt { row: first + i, column })?;
            }
            // SAFETY: the slots hold virtual tuples of the relation's own descriptor, whose values live in
            // `self.values` until the end of the loop's body.
            unsafe {
                let relation = self.relation;
                let multi_insert =
                    (*(*relation).rd_tableam).multi_insert.expect("a table has an access method");
                let slots = self.slots.as_mut_ptr();
                let command = pg_sys::GetCurrentCommandId(true);
                pg_sys::ffi::pg_guard_ffi_boundary(|| {
                    multi_insert(relation, slots, count as i32, command, 0, std::ptr::null_mut());
                });
                for slot in &self.slots[..count] {
                    insert_index_entries(self.target, *slot, self.estate, None);
                    pg_sys::ExecClearTuple(*slot);
                }
                reset_per_tuple(self.estate);
                self.values.reset();
            }
            first += count;
        }
        Ok(())
    }

    /// Looks for a value that its column's input function refuses, after a batch has failed at one.
    pub fn find_misfit<'v>(
        &mut self,
        rows: usize,
        value: impl Fn(usize, usize) -> Scalar<'v>,
    ) -> Option<MisfitAt> {
        let columns = &self.columns;
        for row in 0..rows {
            for (column, (_, writer)) in columns.iter().enumerate().filter(|(_, (_, w))| w.may_refuse()) {
                let value = value(row, column);
                let made = subtransaction(AssertUnwindSafe(|| writer.datum(value).map(|_| ())));
                if !matches!(made, Ok(Ok(()))) {
                    return Some(MisfitAt { row, column });
                }
            }
        }
        None
    }

    /// Adds one row; `None` if a trigger of the table's has it passed over.
    pub fn insert<'v>(
        &mut self,
        value: impl Fn(usize) -> Scalar<'v>,
    ) -> Result<Option<SystemColumns>, MisfitAt> {
        self.fill(0, false, value).map_err(|column| MisfitAt { row: 0, column })?;
        // SAFETY: slot 0 holds a virtual tuple of the relation's descriptor.
        unsafe { pg_sys::ExecSimpleRelationInsert(self.target, self.estate, self.slots[0]) };
        let system = self.system_of_written();
        self.done_with_row();
        Ok(system)
    }

    /// Adds one row unless its key is there, or somebody is adding it at this moment; that one can be found then.
    pub fn insert_if_absent<'v>(&mut self, value: impl Fn(usize) -> Scalar<'v>) -> Result<Added, MisfitAt> {
        self.fill(0, false, value).map_err(|column| MisfitAt { row: 0, column })?;
        let slot = self.slots[0];
        // SAFETY: slot 0 holds a virtual tuple of the relation's descriptor. The order is that of
        // ExecSimpleRelationInsert, with the insertion itself as ExecInsert does it for ON CONFLICT.
        let is_added = unsafe {
            let (target, estate, relation) = (self.target, self.estate, self.relation);
            let triggers = (*relation).trigdesc;
            let is_wanted = triggers.is_null()
                || !(*triggers).trig_insert_before_row
                || pg_sys::ExecBRInsertTriggers(estate, target, slot);
            if !is_wanted {
                self.done_with_row();
                return Ok(Added::PassedOver);
            }
            let constraints = (*(*relation).rd_att).constr;
            if !constraints.is_null() {
                if (*constraints).has_generated_stored {
                    ExecComputeStoredGenerated(target, estate, slot, pg_sys::CmdType::CMD_INSERT);
                }
                pg_sys::ExecConstraints(target, slot, estate);
            }
            if (*(*relation).rd_rel).relispartition {
                pg_sys::ExecPartitionCheck(target, slot, estate, true);
            }
            self.insert_speculatively(slot)
        };
        let system = is_added.then(|| self.system_of_written()).flatten();
        self.done_with_row();
        Ok(system.map_or(Added::IsThere, Added::Row))
    }

    /// Stores a row whose key nobody has; `false` if somebody has.
    ///
    /// # Safety
    /// The slot holds a row of the relation that may be stored.
    unsafe fn insert_speculatively(&mut self, slot: *mut pg_sys::TupleTableSlot) -> bool {
        // SAFETY: by contract. Until the row is confirmed others who add the same key wait for the token's lock, which
        // an ERROR would release with the transaction; an unconfirmed row is then nobody's.
        unsafe {
            let (target, estate, relation) = (self.target, self.estate, self.relation);
            let xid = pg_sys::GetCurrentTransactionId();
            let token = pg_sys::SpeculativeInsertionLockAcquire(xid);
            let command = pg_sys::GetCurrentCommandId(true);
            pg_sys::table_tuple_insert_speculative(relation, slot, command, 0, std::ptr::null_mut(), token);
            let mut is_there = false;
            let arbiters = pg_sys::lappend_oid(std::ptr::null_mut(), self.key_index);
            let recheck = insert_index_entries(target, slot, estate, Some((&mut is_there, arbiters)));
            pg_sys::table_tuple_complete_speculative(relation, slot, token, !is_there);
            pg_sys::SpeculativeInsertionLockRelease(xid);
            if !is_there {
                pg_sys::ExecARInsertTriggers(estate, target, slot, recheck, std::ptr::null_mut());
            }
            pg_sys::list_free(recheck);
            pg_sys::list_free(arbiters);
            !is_there
        }
    }

    /// The system columns of the row that was just written from slot 0, if it was.
    fn system_of_written(&self) -> Option<SystemColumns> {
        let slot = self.slots[0];
        // SAFETY: a row that was written has its place in the slot, and a tuple that the access method has filled in.
        unsafe { ((*slot).tts_tid.ip_posid != 0).then(|| SystemColumns::of(slot)) }
    }

    /// Looks up a row's newest version by its key and locks it, waiting for whoever is changing it. The row
    /// found is what [`Self::update`], [`Self::delete`] and [`Self::found_value`] are about.
    pub fn find(&mut self, key: &str) -> bool {
        // SAFETY: both slots have the relation's descriptor; the key's datum lives in `self.values` until the
        // search is over.
        unsafe {
            pg_sys::ExecClearTuple(self.search);
            pg_sys::ExecClearTuple(self.found);
            let (place, writer) = &self.key;
            let datum = self.values.switch_to(|_| writer.datum(Scalar::Text(key)));
            let Ok(Some(datum)) = datum else { return false };
            let slot = self.search;
            let natts = (*(*slot).tts_tupleDescriptor).natts as usize;
            std::slice::from_raw_parts_mut((*slot).tts_isnull, natts).fill(true);
            *(*slot).tts_values.add(*place) = datum;
            *(*slot).tts_isnull.add(*place) = false;
            pg_sys::ExecStoreVirtualTuple(slot);
            let found = pg_sys::RelationFindReplTupleByIndex(
                self.relation,
                self.key_index,
                pg_sys::LockTupleMode::LockTupleExclusive,
                slot,
                self.found,
            );
            pg_sys::ExecClearTuple(slot);
            self.values.reset();
            found
        }
    }

    /// The system columns of the row found.
    pub fn found_system(&self) -> SystemColumns {
        // SAFETY: `found` holds a tuple of the relation after a successful `find`.
        unsafe { SystemColumns::of(self.found) }
    }

    /// The value of a column (by its position in the writer) of the row found.
    pub fn found_value(&self, column: usize) -> OwnedScalar {
        self.value_of(self.found, column)
    }

    fn value_of(&self, slot: *mut pg_sys::TupleTableSlot, column: usize) -> OwnedScalar {
        let (place, writer) = &self.columns[column];
        let mut is_null = false;
        // SAFETY: the callers' slots hold tuples of the relation; the attribute exists.
        unsafe {
            let datum = pg_sys::slot_getattr(slot, *place as i32 + 1, &mut is_null);
            if is_null { OwnedScalar::Null } else { read(datum, writer.type_oid()) }
        }
    }

    /// Makes the new version of the row found, which [`Self::update`] stores; gives back the columns whose value it
    /// changes.
    pub fn stage<'v>(&mut self, value: impl Fn(usize) -> Scalar<'v>) -> Result<Vec<usize>, MisfitAt> {
        self.fill(0, true, value).map_err(|column| MisfitAt { row: 0, column })?;
        let (old, new, columns) = (self.found, self.slots[0], &self.columns);
        // SAFETY: both slots hold tuples of the relation's descriptor, all attributes at hand. Copies that are made
        // to compare live in `self.values`.
        unsafe {
            let tupdesc = pgrx::PgTupleDesc::from_pg_unchecked((*self.relation).rd_att);
            let datum = |slot: *mut pg_sys::TupleTableSlot, place: usize| {
                (!*(*slot).tts_isnull.add(place)).then(|| *(*slot).tts_values.add(place))
            };
            let differs = |column: &usize| {
                let (place, _) = columns[*column];
                match (datum(old, place), datum(new, place)) {
                    (None, None) => false,
                    (Some(old), Some(new)) => {
                        tupdesc.get(place).is_none_or(|attribute| !same_image(old, new, attribute))
                    }
                    _ => true,
                }
            };
            Ok(self.values.switch_to(|_| (0..columns.len()).filter(differs).collect()))
        }
    }

    /// A value of the version staged, by the column's position in the writer.
    pub fn staged_value(&self, column: usize) -> OwnedScalar {
        self.value_of(self.slots[0], column)
    }

    /// Stores the version staged; `None` if a trigger of the table's has it passed over.
    pub fn update(&mut self) -> Option<SystemColumns> {
        // SAFETY: slot 0 holds a virtual tuple of the relation's descriptor, `found` the locked old version.
        unsafe {
            pg_sys::ExecSimpleRelationUpdate(self.target, self.estate, self.epq, self.found, self.slots[0]);
        }
        let system = self.system_of_written();
        self.done_with_row();
        system
    }

    /// Leaves the row found as it is.
    pub fn keep(&mut self) {
        self.done_with_row();
    }

    /// Deletes the row found.
    pub fn delete(&mut self) {
        // SAFETY: `found` holds the locked version.
        unsafe { pg_sys::ExecSimpleRelationDelete(self.target, self.estate, self.epq, self.found) };
        self.done_with_row();
    }

    /// Fires what AFTER triggers have been queued and lets go of everything but the lock. Without it (after an
    /// ERROR) the transaction's end does the same.
    pub fn close(self) {
        // SAFETY: the mirror image of `open`, in the order of the apply worker's `finish_edata`.
        unsafe {
            if self.triggers == Triggers::Own {
                pg_sys::AfterTriggerEndQuery(self.estate);
            }
            pg_sys::EvalPlanQualEnd(self.epq);
            for slot in self.slots.iter().chain([&self.search, &self.found]) {
                pg_sys::ExecDropSingleTupleTableSlot(*slot);
            }
            pg_sys::ExecResetTupleTable((*self.estate).es_tupleTable, false);
            pg_sys::ExecCloseIndices(self.target);
            pg_sys::FreeExecutorState(self.estate);
            pg_sys::table_close(self.relation, pg_sys::NoLock as pg_sys::LOCKMODE);
            pg_sys::MemoryContextDelete(self.values.value());
        }
    }

    /// Puts a row's values into slot `i`; `keep` starts from the row found instead of from NULLs.
    fn fill<'v>(&mut self, i: usize, keep: bool, value: impl Fn(usize) -> Scalar<'v>) -> Result<(), usize> {
        // SAFETY: the slots have the relation's descriptor, so every attribute number of `columns` is within
        // it; values are made in `self.values`.
        unsafe {
            while self.slots.len() <= i {
                let relation = self.relation;
                self.slots.push(self.context.switch_to(|_| new_slot(relation)));
            }
            let slot = self.slots[i];
            pg_sys::ExecClearTuple(slot);
            let natts = (*(*slot).tts_tupleDescriptor).natts as usize;
            let values = std::slice::from_raw_parts_mut((*slot).tts_values, natts);
            let nulls = std::slice::from_raw_parts_mut((*slot).tts_isnull, natts);
            if keep {
                pg_sys::slot_getallattrs(self.found);
                values.copy_from_slice(std::slice::from_raw_parts((*self.found).tts_values, natts));
                nulls.copy_from_slice(std::slice::from_raw_parts((*self.found).tts_isnull, natts));
            } else {
                nulls.fill(true);
            }
            let columns = &self.columns;
            self.values.switch_to(|_| {
                for (position, (place, writer)) in columns.iter().enumerate() {
                    match writer.datum(value(position)).map_err(|Misfit| position)? {
                        Some(datum) => (values[*place], nulls[*place]) = (datum, false),
                        None => nulls[*place] = true,
                    }
                }
                Ok::<(), usize>(())
            })?;
            pg_sys::ExecStoreVirtualTuple(slot);
        }
        Ok(())
    }

    fn done_with_row(&mut self) {
        // SAFETY: nothing refers to the row's values or to what was evaluated for it any more.
        unsafe {
            pg_sys::ExecClearTuple(self.slots.first().copied().unwrap_or(self.search));
            pg_sys::ExecClearTuple(self.found);
            reset_per_tuple(self.estate);
            self.values.reset();
        }
    }

    /// Whether the table has triggers that fire after rows were written.
    pub fn fires_after_triggers(&self) -> bool {
        // SAFETY: the relation is open as long as the writer is.
        unsafe {
            let triggers = (*self.relation).trigdesc;
            !triggers.is_null()
                && ((*triggers).trig_insert_after_row
                    || (*triggers).trig_update_after_row
                    || (*triggers).trig_delete_after_row)
        }
    }

    /// Whether rows have to be added one by one: something is to happen with each, or the table is partitioned.
    fn needs_single_rows(&self) -> bool {
        // SAFETY: the relation is open.
        unsafe {
            let relation = self.relation;
            let constraints = (*(*relation).rd_att).constr;
            let is_checked = !constraints.is_null()
                && ((*constraints).num_check > 0 || (*constraints).has_generated_stored);
            is_checked
                || !(*relation).trigdesc.is_null()
                || (*(*relation).rd_rel).relkind as u8 != pg_sys::RELKIND_RELATION
        }
    }
}

/// A context below the current one, which its parent's end takes along. Deleting it once more would crash, so
/// nothing that may be dropped by a context's end owns it.
pub(super) fn new_context(name: &'static CStr) -> pg_sys::MemoryContext {
    // SAFETY: the name is static, as a context's name has to be.
    unsafe {
        pg_sys::AllocSetContextCreateInternal(
            pg_sys::CurrentMemoryContext,
            name.as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        )
    }
}

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    use super::{MisfitAt, TableWriter, Triggers};
    use crate::pg::tuple::{OwnedScalar, Scalar};

    fn open(table: &str) -> TableWriter {
        let oid = Spi::get_one::<pg_sys::Oid>(&format!("SELECT '{table}'::regclass::oid"));
        let oid = oid.expect("a valid use of SPI").expect("the table");
        TableWriter::open(oid, &["id", "n"], "id", Triggers::Own).expect("it fits")
    }

    fn row<'r>(id: &'r str, n: i64) -> impl Fn(usize) -> Scalar<'r> {
        move |column| if column == 0 { Scalar::Text(id) } else { Scalar::Integer(n) }
    }

    fn contents(table: &str) -> String {
        let all = format!(
            "SELECT coalesce(string_agg(id || '=' || coalesce(n::text, '-'), ' ' ORDER BY id), '') FROM {table}"
        );
        Spi::get_one(&all).expect("a valid use of SPI").expect("a text")
    }

    #[pg_test]
    fn rows_are_added_found_changed_and_deleted() {
        Spi::run("CREATE TABLE t (gone int, n int, id text PRIMARY KEY); ALTER TABLE t DROP gone")
            .expect("a table");
        let mut writer = open("t");
        let ids = ["a", "b", "c"];
        writer
            .insert_many(3, |row_number, column| row(ids[row_number], row_number as i64)(column))
            .expect("they fit");
        Spi::run("SELECT").expect("the next command"); // which sees what the one before has done
        assert!(writer.find("b") && !writer.find("x"));
        assert!(writer.find("b"));
        assert_eq!(writer.found_value(1), OwnedScalar::Plain(Scalar::Integer(1)));
        assert_eq!(writer.stage(row("b", 1)), Ok(vec![]));
        writer.keep();
        assert!(writer.find("b"));
        assert_eq!(writer.stage(row("b", 7)), Ok(vec![1]));
        assert_eq!(writer.staged_value(1), OwnedScalar::Plain(Scalar::Integer(7)));
        writer.update();
        assert!(writer.find("a"));
        writer.delete();
        writer.insert(row("d", 9)).expect("it fits");
        writer.close();
        assert_eq!(contents("t"), "b=7 c=2 d=9");
        Spi::run("SET enable_seqscan = off").expect("a setting");
        let by_index = Spi::get_one::<i32>("SELECT n FROM t WHERE id = 'c'");
        assert_eq!(by_index.expect("a valid use of SPI"), Some(2));
    }

    /// More than a batch, and with everything that needs rows one by one.
    #[pg_test]
    fn triggers_checks_and_defaults_of_a_table_are_kept() {
        Spi::run(
            "CREATE TABLE t (id text PRIMARY KEY, n int CHECK (n < 5000), twice int GENERATED ALWAYS AS (n * 2) STORED);
             CREATE TABLE log (n int);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO log VALUES (NEW.n); RETURN NULL; END';
             CREATE TRIGGER note AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION note()",
        )
        .expect("tables");
        let mut writer = open("t");
        let ids: Vec<String> = (0..1_200).map(|n| format!("{n:05}")).collect();
        writer.insert_many(ids.len(), |r, column| row(&ids[r], r as i64)(column)).expect("they fit");
        writer.close();
        let sums = "SELECT (SELECT count(*) FROM log) = 1200 AND (SELECT sum(twice) FROM t) = 2 * (SELECT sum(n) FROM log)";
        assert_eq!(Spi::get_one::<bool>(sums).expect("a valid use of SPI"), Some(true));
    }

    #[pg_test(error = "new row for relation \"t\" violates check constraint \"t_n_check\"")]
    fn what_a_check_refuses_is_an_error() {
        Spi::run("CREATE TABLE t (id text PRIMARY KEY, n int CHECK (n < 5))").expect("a table");
        let _misfit = open("t").insert(row("a", 5));
    }

    #[pg_test]
    fn a_value_that_does_not_fit_is_named_by_its_place() {
        Spi::run("CREATE TABLE t (id text PRIMARY KEY, n smallint)").expect("a table");
        let mut writer = open("t");
        let put = writer.insert_many(2, |r, column| row("a", if r == 0 { 1 } else { 70_000 })(column));
        assert_eq!(put, Err(MisfitAt { row: 1, column: 1 }));
    }

    #[pg_test]
    fn a_table_that_does_not_fit_is_not_opened() {
        Spi::run("CREATE TABLE other (id text, n int); CREATE TABLE short (id text PRIMARY KEY)")
            .expect("tables");
        for table in ["other", "short"] {
            let oid = Spi::get_one::<pg_sys::Oid>(&format!("SELECT '{table}'::regclass::oid"));
            let oid = oid.expect("a valid use of SPI").expect("the table");
            assert!(TableWriter::open(oid, &["id", "n"], "id", Triggers::Own).is_none(), "{table}");
        }
    }
}
