//! The functions Postgres calls through an `FdwRoutine`, handing on to a safe [`Wrapper`].

mod check;
mod input;
mod modify;
mod target;

use std::ffi::c_void;
use std::ptr::null_mut;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{AllocatedByRust, PgBox, PgList, PgLogLevel, PgSqlErrorCode, pg_guard, pg_sys};

use super::sample;
use super::scan::{Source, execute, lock, plan};
use super::system::SystemColumns;
use super::tuple::{DatumWriter, OwnedScalar, read};

/// What a statement does to a foreign table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// INSERT or COPY.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
}

/// What is to be written, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// The foreign table.
    pub relation: pg_sys::Oid,
    /// The role whose user mapping signs the calls.
    pub user: pg_sys::Oid,
    /// What is done.
    pub operation: Operation,
    /// UPDATE: attribute numbers the statement assigns.
    pub assigned: Vec<i16>,
    /// UPDATE: a trigger may change other columns too.
    pub any_column: bool,
    /// INSERT: a row whose key is there already is passed over.
    pub skip_duplicates: bool,
    /// Nobody looks at a row before the statement has come to its end: neither RETURNING, nor a trigger, nor a view's check.
    pub buffers: bool,
    /// The same, and the statement tells when its last row has come: its AFTER triggers would miss rows that wait else.
    pub waits: bool,
}

/// The values of a row.
pub trait Values {
    /// A column's value, by attribute number.
    fn get(&self, number: i16) -> OwnedScalar;
}

/// A row as the statement gives it, or as it was.
pub struct Row<'a> {
    values: &'a [pg_sys::Datum],
    nulls: &'a [bool],
    types: &'a [DatumWriter],
}

impl Values for Row<'_> {
    fn get(&self, number: i16) -> OwnedScalar {
        let place = number as usize - 1;
        if self.nulls[place] {
            return OwnedScalar::Null;
        }
        // SAFETY: a row's datums are valid for its types as long as the row is.
        unsafe { read(self.values[place], self.types[place].type_oid()) }
    }
}

/// A row that outlives the statement's.
#[derive(Clone, Debug)]
pub struct OwnedRow(Vec<OwnedScalar>);

impl OwnedRow {
    /// A copy.
    pub fn of(row: &Row<'_>) -> Self {
        Self((1..=row.values.len()).map(|number| row.get(number as i16)).collect())
    }

    /// A row of so many columns with these values, by attribute number.
    pub fn new(width: i16, values: impl IntoIterator<Item = (i16, OwnedScalar)>) -> Self {
        let mut row = vec![OwnedScalar::Null; width as usize];
        values.into_iter().for_each(|(number, value)| row[number as usize - 1] = value);
        Self(row)
    }
}

impl OwnedRow {
    /// About how much memory it takes, in bytes.
    pub fn memory(&self) -> usize {
        let text = |value: &OwnedScalar| match value {
            OwnedScalar::Text(text) => text.len(),
            _ => 0,
        };
        self.0.iter().map(|value| size_of::<OwnedScalar>() + text(value)).sum()
    }
}

impl Values for OwnedRow {
    fn get(&self, number: i16) -> OwnedScalar {
        self.0[number as usize - 1].clone()
    }
}

/// A row after it was written.
pub enum Written {
    /// It waits for others, and nobody will look at it.
    AsGiven,
    /// As it is now.
    Row {
        /// Its columns, by attribute number from 1.
        columns: Vec<OwnedScalar>,
        /// Its system columns in the cache.
        system: Option<SystemColumns>,
    },
}

/// Who says what a column of a row will hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The instance, when the row is written.
    Instance,
    /// It stays as it is.
    Row,
    /// The statement.
    Statement,
}

/// A row as it will be, as far as that can be told before the instance is asked; by attribute number from 1.
pub struct Foreseen {
    /// Its values.
    pub columns: Vec<OwnedScalar>,
    /// Where they come from.
    pub origins: Vec<Origin>,
}

impl Foreseen {
    /// Where a column's value comes from, by attribute number; 0 is the whole row.
    pub fn origin(&self, number: i16) -> Origin {
        let of_all = || match self.origins.contains(&Origin::Instance) {
            true => Origin::Instance,
            false => Origin::Statement,
        };
        match usize::try_from(number) {
            Ok(0) => of_all(),
            Ok(number) => self.origins.get(number - 1).copied().unwrap_or(Origin::Instance),
            Err(_) => Origin::Instance, // a system column
        }
    }
}

/// Raises an ERROR for rows that must not be written; `None` if any may.
pub type Check<'a> = Option<&'a dyn Fn(&Foreseen)>;

/// Carries out one statement's writes to one table.
pub trait RowWriter: 'static {
    /// Rows that [`Self::insert_many`] wants at a time.
    fn batch_size(&self) -> usize;
    /// Adds a row; gives back what became of it; `None` if it was passed over.
    fn insert(&mut self, row: &Row<'_>, check: Check<'_>) -> Option<Written>;
    /// Adds rows; gives back what became of each.
    fn insert_many(&mut self, rows: &[Row<'_>], check: Check<'_>) -> Vec<Option<Written>>;
    /// Changes a row; `None` if this statement has changed it before.
    fn update(&mut self, key: &str, old: &Row<'_>, new: &Row<'_>, check: Check<'_>) -> Option<Written>;
    /// Deletes a row; gives back what it was.
    fn delete(&mut self, key: &str) -> Option<Written>;
    /// Whether this statement has written a record, or is about to.
    fn is_done(&self, key: &str) -> bool;
    /// No more rows come: those that wait are to be written.
    fn flush(&mut self);
    /// The statement is over.
    fn finish(self);
}

/// IMPORT FOREIGN SCHEMA as the user wrote it.
#[derive(Clone, Debug)]
pub struct Import {
    /// The server.
    pub server: pg_sys::Oid,
    /// The remote schema.
    pub remote_schema: String,
    /// LIMIT TO.
    pub only: Option<Vec<String>>,
    /// EXCEPT.
    pub except: Vec<String>,
    /// OPTIONS.
    pub options: super::catalog::Options,
}

/// A foreign-data wrapper over cache tables.
pub trait Wrapper: 'static {
    /// Carries out writes.
    type Writer: RowWriter;
    /// The table behind a foreign table.
    fn source(relation: pg_sys::Oid) -> Source;
    /// How long ago the table behind a foreign table was in sync, for people; `None` if it never was.
    fn age(relation: pg_sys::Oid) -> Option<String>;
    /// The attribute number of a foreign table's key.
    fn key(relation: pg_sys::Oid) -> i16;
    /// Whether a foreign table can be written at all.
    fn is_updatable(relation: pg_sys::Oid) -> bool;
    /// Begins a statement's writes.
    fn begin_write(target: Target) -> Self::Writer;
    /// The CREATE FOREIGN TABLE statements of an import.
    fn import(import: Import) -> Vec<String>;
}

/// The routine of a wrapper.
pub fn routine<W: Wrapper>() -> PgBox<pg_sys::FdwRoutine, AllocatedByRust> {
    // SAFETY: a fresh, zeroed node of the given type.
    let mut routine = unsafe { PgBox::<pg_sys::FdwRoutine>::alloc_node(pg_sys::NodeTag::T_FdwRoutine) };
    routine.GetForeignRelSize = Some(get_rel_size::<W>);
    routine.GetForeignPaths = Some(get_paths);
    routine.GetForeignPlan = Some(get_plan);
    routine.IsForeignScanParallelSafe = Some(is_parallel_safe::<W>);
    routine.ReparameterizeForeignPathByChild = Some(reparameterize);
    routine.BeginForeignScan = Some(begin_scan);
    routine.IterateForeignScan = Some(iterate_scan);
    routine.ReScanForeignScan = Some(rescan);
    routine.EndForeignScan = Some(end_scan);
    routine.GetForeignRowMarkType = Some(row_mark_type);
    routine.RefetchForeignRow = Some(refetch::<W>);
    routine.ExplainForeignScan = Some(explain_scan::<W>);
    routine.AnalyzeForeignTable = Some(analyze::<W>);
    routine.AddForeignUpdateTargets = Some(modify::add_update_targets::<W>);
    routine.PlanForeignModify = Some(modify::plan_modify);
    routine.BeginForeignModify = Some(modify::begin_modify::<W>);
    routine.BeginForeignInsert = Some(modify::begin_insert::<W>);
    routine.ExecForeignInsert = Some(modify::exec_insert::<W>);
    routine.ExecForeignBatchInsert = Some(modify::exec_batch_insert::<W>);
    routine.GetForeignModifyBatchSize = Some(modify::batch_size::<W>);
    routine.ExecForeignUpdate = Some(modify::exec_update::<W>);
    routine.ExecForeignDelete = Some(modify::exec_delete::<W>);
    routine.EndForeignModify = Some(modify::end_modify::<W>);
    routine.EndForeignInsert = Some(modify::end_modify::<W>);
    routine.IsForeignRelUpdatable = Some(is_updatable::<W>);
    routine.ExecForeignTruncate = Some(refuse_truncate);
    routine.ImportForeignSchema = Some(import::<W>);
    routine
}

#[pg_guard]
unsafe extern "C-unwind" fn get_rel_size<W: Wrapper>(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    relation: pg_sys::Oid,
) {
    // SAFETY: the planner's own arguments.
    unsafe { plan::relation_size(root, rel, W::source(relation)) };
}

#[pg_guard]
unsafe extern "C-unwind" fn get_paths(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    _relation: pg_sys::Oid,
) {
    // SAFETY: the planner's own arguments, after `get_rel_size`.
    unsafe { plan::add_paths(root, rel) };
}

#[pg_guard]
unsafe extern "C-unwind" fn get_plan(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    _relation: pg_sys::Oid,
    path: *mut pg_sys::ForeignPath,
    tlist: *mut pg_sys::List,
    clauses: *mut pg_sys::List,
    outer_plan: *mut pg_sys::Plan,
) -> *mut pg_sys::ForeignScan {
    // SAFETY: the planner's own arguments, after `get_paths`.
    unsafe { plan::plan(root, rel, path, tlist, clauses, outer_plan) }
}

/// A scan may run in any process of a parallel query, whole: it takes along its inner plan, and reads nothing but the
/// cache with the query's own snapshot. The planner checks by itself whether the conditions may, and that rows are neither
/// locked nor changed. What computes generated columns it does not see.
#[pg_guard]
unsafe extern "C-unwind" fn is_parallel_safe<W: Wrapper>(
    _root: *mut pg_sys::PlannerInfo,
    _rel: *mut pg_sys::RelOptInfo,
    rte: *mut pg_sys::RangeTblEntry,
) -> bool {
    // SAFETY: the planner's own arguments.
    W::source(unsafe { (*rte).relid }).generated.is_empty()
}

#[pg_guard]
unsafe extern "C-unwind" fn reparameterize(
    root: *mut pg_sys::PlannerInfo,
    private: *mut pg_sys::List,
    child: *mut pg_sys::RelOptInfo,
) -> *mut pg_sys::List {
    // SAFETY: the planner's own arguments.
    unsafe { plan::reparameterize(root, private, child) }
}

#[pg_guard]
unsafe extern "C-unwind" fn begin_scan(node: *mut pg_sys::ForeignScanState, eflags: i32) {
    // SAFETY: the executor's own arguments.
    unsafe { execute::begin(node, eflags) };
}

#[pg_guard]
unsafe extern "C-unwind" fn iterate_scan(node: *mut pg_sys::ForeignScanState) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the executor's own arguments.
    unsafe { execute::next(node) }
}

#[pg_guard]
unsafe extern "C-unwind" fn rescan(node: *mut pg_sys::ForeignScanState) {
    // SAFETY: the executor's own arguments.
    unsafe { execute::rescan(node) };
}

#[pg_guard]
unsafe extern "C-unwind" fn end_scan(node: *mut pg_sys::ForeignScanState) {
    // SAFETY: the executor's own arguments.
    unsafe { execute::end(node) };
}

#[pg_guard]
unsafe extern "C-unwind" fn row_mark_type(
    _rte: *mut pg_sys::RangeTblEntry,
    strength: pg_sys::LockClauseStrength::Type,
) -> pg_sys::RowMarkType::Type {
    lock::mark_type(strength)
}

#[pg_guard]
unsafe extern "C-unwind" fn refetch<W: Wrapper>(
    estate: *mut pg_sys::EState,
    mark: *mut pg_sys::ExecRowMark,
    place: pg_sys::Datum,
    slot: *mut pg_sys::TupleTableSlot,
    updated: *mut bool,
) {
    // SAFETY: the executor's own arguments.
    unsafe { lock::refetch(estate, mark, place, slot, updated, W::source) };
}

#[pg_guard]
unsafe extern "C-unwind" fn explain_scan<W: Wrapper>(
    node: *mut pg_sys::ForeignScanState,
    es: *mut pg_sys::ExplainState,
) {
    // SAFETY: EXPLAIN's own arguments.
    unsafe { execute::show(node, es, W::age) };
}

#[pg_guard]
unsafe extern "C-unwind" fn analyze<W: Wrapper>(
    relation: pg_sys::Relation,
    sampler: *mut pg_sys::AcquireSampleRowsFunc,
    pages: *mut pg_sys::BlockNumber,
) -> bool {
    // SAFETY: ANALYZE's own arguments.
    unsafe {
        *sampler = Some(sample_rows::<W>);
        *pages = sample::pages(&W::source((*relation).rd_id));
    }
    true
}

#[pg_guard]
unsafe extern "C-unwind" fn sample_rows<W: Wrapper>(
    relation: pg_sys::Relation,
    _level: i32,
    rows: *mut pg_sys::HeapTuple,
    wanted: i32,
    total: *mut f64,
    dead: *mut f64,
) -> i32 {
    // SAFETY: ANALYZE's own arguments.
    unsafe {
        let source = W::source((*relation).rd_id);
        let (sampled, all) = sample::take(relation, &source, rows, wanted as usize);
        *total = all;
        *dead = 0.0;
        sampled as i32
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn is_updatable<W: Wrapper>(relation: pg_sys::Relation) -> i32 {
    // SAFETY: an open relation.
    if !W::is_updatable(unsafe { (*relation).rd_id }) {
        return 0;
    }
    [pg_sys::CmdType::CMD_INSERT, pg_sys::CmdType::CMD_UPDATE, pg_sys::CmdType::CMD_DELETE]
        .iter()
        .fold(0, |events, command| events | 1 << *command as i32)
}

#[pg_guard]
unsafe extern "C-unwind" fn refuse_truncate(
    relations: *mut pg_sys::List,
    _behavior: pg_sys::DropBehavior::Type,
    _restart_seqs: bool,
) {
    // SAFETY: a list of open relations.
    let name = unsafe {
        PgList::<pg_sys::RelationData>::from_pg(relations)
            .get_ptr(0)
            .and_then(|relation| super::catalog::relation_name((*relation).rd_id))
    };
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("cannot truncate foreign table \"{}\"", name.unwrap_or_default()),
        "",
    )
    .set_hint("Use DELETE, which deletes each record in ServiceNow.")
    .report(PgLogLevel::ERROR);
}

#[pg_guard]
unsafe extern "C-unwind" fn import<W: Wrapper>(
    statement: *mut pg_sys::ImportForeignSchemaStmt,
    server: pg_sys::Oid,
) -> *mut pg_sys::List {
    // SAFETY: a parsed statement; its lists hold the node types named here.
    unsafe {
        let text = |s| super::catalog::text(s).unwrap_or_default();
        let tables: Vec<String> = PgList::<pg_sys::RangeVar>::from_pg((*statement).table_list)
            .iter_ptr()
            .map(|table| text((*table).relname))
            .collect();
        let (only, except) = match (*statement).list_type {
            pg_sys::ImportForeignSchemaType::FDW_IMPORT_SCHEMA_LIMIT_TO => (Some(tables), Vec::new()),
            pg_sys::ImportForeignSchemaType::FDW_IMPORT_SCHEMA_EXCEPT => (None, tables),
            _ => (None, Vec::new()),
        };
        let options = PgList::<pg_sys::DefElem>::from_pg((*statement).options)
            .iter_ptr()
            .map(|def| (text((*def).defname), text(pg_sys::defGetString(def))))
            .collect();
        let commands = W::import(Import {
            server,
            remote_schema: text((*statement).remote_schema),
            only,
            except,
            options,
        });
        let mut list = null_mut();
        for command in commands {
            let command = super::catalog::c_string(&command);
            list = pg_sys::lappend(list, pg_sys::pstrdup(command.as_ptr()).cast::<c_void>());
        }
        list
    }
}
