//! The functions of schema `servicenow`, and those the extension's own triggers call.

use std::ffi::CStr;
use std::time::{Duration, SystemTime};

use pgrx::datum::Interval;
use pgrx::prelude::*;
use pgrx::{Internal, PgSqlErrorCode as Sql};

use crate::error::{error, raise};
use crate::option::{self, Context};
use crate::push::queue;
use crate::wait::Wait;
use crate::{cache, capture, catalog, check, consent, import, pg, verify, wait, worker};

/// The handler of the foreign-data wrapper.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.servicenow_fdw_handler() RETURNS fdw_handler
LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'servicenow_fdw_handler_wrapper';
")]
fn servicenow_fdw_handler() -> Internal {
    Internal::from(pg::routine::routine::<crate::fdw::ServiceNow>().into_datum())
}

/// The validator of the foreign-data wrapper.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.servicenow_fdw_validator(options text[], catalog oid) RETURNS void
LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'servicenow_fdw_validator_wrapper';
")]
fn servicenow_fdw_validator(options: Array<'_, &str>, catalog: pg_sys::Oid) {
    let context = match catalog {
        pg_sys::ForeignServerRelationId => Context::Server,
        pg_sys::UserMappingRelationId => Context::UserMapping,
        pg_sys::ForeignTableRelationId => Context::Table,
        pg_sys::AttributeRelationId => Context::Column,
        _ => Context::Wrapper,
    };
    let pairs = options.iter().flatten().map(|option| {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        (name.to_owned(), value.to_owned())
    });
    option::validate(context, &pairs.collect()).unwrap_or_else(|e| raise(e));
}

extension_sql!(
    "CREATE FOREIGN DATA WRAPPER servicenow_fdw
    HANDLER servicenow.servicenow_fdw_handler VALIDATOR servicenow.servicenow_fdw_validator;",
    name = "wrapper",
    requires = [servicenow_fdw_handler, servicenow_fdw_validator]
);

/// The extension's version.
#[pg_extern(immutable, parallel_safe)]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Makes or changes the cache of a foreign table after DDL on it; does nothing for other relations.
#[pg_extern]
fn _follow_foreign_table(relation: pg_sys::Oid, command: &str) {
    if pg::catalog::foreign_table(relation, catalog::WRAPPER).is_none() {
        return;
    }
    queue::refuse_if_in_use(relation, "ALTER FOREIGN TABLE");
    cache::ddl::follow(relation);
    if command == "IMPORT FOREIGN SCHEMA" {
        import::comment(relation);
    }
    worker::ensure();
    worker::wake_at_commit();
}

/// How many writes to which foreign tables are under way or not settled. For view `servicenow.sync_status`.
#[pg_extern(volatile, parallel_restricted)]
fn _pending_writes() -> TableIterator<'static, (name!(foreign_table, pg_sys::Oid), name!(writes, i64))> {
    let pending = worker::recovery::pending_writes().into_iter();
    TableIterator::new(pending.map(|(table, writes)| (pg_sys::Oid::from(table), writes)))
}

/// The secret that the extension is writing into one of its tables at this moment: nobody else has any use for it.
#[pg_extern(sql = "
CREATE FUNCTION servicenow._secret() RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', '_secret_wrapper';
REVOKE ALL ON FUNCTION servicenow._secret() FROM PUBLIC;
")]
fn _secret() -> Option<String> {
    catalog::written_secret()
}

/// How many requests the listener of the whole cluster has turned away. For view `servicenow.stat_capture`.
#[pg_extern(volatile, parallel_safe)]
fn _turned_away() -> i64 {
    i64::try_from(worker::listener::turned_away()).unwrap_or(i64::MAX)
}

/// Has the tables of a server that was changed, or whose logins were, begin anew what is under way.
#[pg_extern]
fn _follow_server(server: pg_sys::Oid) {
    catalog::touch_server(server);
    worker::wake_at_commit();
}

/// Has every process, and the worker above all, see that the extension was updated.
#[pg_extern]
fn _follow_extension() {
    catalog::announce_version();
    worker::ensure();
    worker::wake_at_commit();
}

/// Drops the cache of a foreign table that was dropped; does nothing for other relations.
#[pg_extern]
fn _forget_foreign_table(relation: pg_sys::Oid) {
    if pg::catalog::relation_kind(relation).is_none() {
        queue::refuse_if_in_use(relation, "DROP FOREIGN TABLE");
        cache::ddl::forget(relation);
        worker::wake_at_commit();
    }
}

/// Reads a table's changes now and waits until they are in the cache.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.sync(foreign_table regclass) RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'sync_wrapper';
")]
fn sync(foreign_table: pg_sys::Oid) {
    wait_until_caught_up(foreign_table, None);
}

/// Waits until everything that was in ServiceNow when the function was called is in the cache.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.wait_for_sync(foreign_table regclass, timeout interval DEFAULT '1 hour') RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'wait_for_sync_wrapper';
")]
fn wait_for_sync(foreign_table: pg_sys::Oid, timeout: Interval) {
    let microseconds = timeout.as_micros();
    let limit = Duration::from_micros(u64::try_from(microseconds.max(0)).unwrap_or(u64::MAX));
    wait_until_caught_up(foreign_table, Some(limit));
}

fn wait_until_caught_up(relation: pg_sys::Oid, limit: Option<Duration>) {
    catalog::mirror_or_error(relation);
    let name = catalog::qualified(relation);
    if !pg::session::may_select_some_of(relation) {
        raise(error(
            Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("permission denied for foreign table {name}"),
        ));
    }
    if pg::xact::keeps_its_snapshot() {
        raise(
            error(
                Sql::ERRCODE_ACTIVE_SQL_TRANSACTION,
                "cannot wait for a sync in a transaction of isolation level repeatable read or serializable",
            )
            .set_hint("Such a transaction would not see the rows anyway; call the function before it."),
        );
    }
    if !pg::worker::may_launch() {
        raise(error(Sql::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "cannot sync during recovery"));
    }
    let wait = Wait { since: SystemTime::now(), limit, talk: limit.is_some() };
    if let Err(progress) = wait.until(relation, |progress| progress.caught_up && progress.named) {
        let message = format!("foreign table {name} is not in sync yet: {}", progress.how_far());
        raise(wait::explain(error(Sql::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message), &progress));
    }
}

/// Reads a whole table again, in place: readers see the old rows until the new ones are there.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.resync(foreign_table regclass) RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'resync_wrapper';
REVOKE ALL ON FUNCTION servicenow.resync(regclass) FROM PUBLIC;
")]
fn resync(foreign_table: pg_sys::Oid) {
    pg::session::refuse_during_recovery(c"resync()");
    if pg::catalog::foreign_table(foreign_table, catalog::WRAPPER).is_none() {
        raise(catalog::not_ours(foreign_table));
    }
    require_owner(foreign_table);
    catalog::write("SELECT servicenow._resync($1)", &[foreign_table.into()]);
}

/// What [`resync`] does, with the rights of the caches' owner.
#[pg_extern(sql = "
CREATE FUNCTION servicenow._resync(foreign_table regclass) RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET default_tablespace = '' SET default_table_access_method = heap SET quote_all_identifiers = off
AS 'MODULE_PATHNAME', '_resync_wrapper';
REVOKE ALL ON FUNCTION servicenow._resync(regclass) FROM PUBLIC;
")]
fn _resync(foreign_table: pg_sys::Oid) {
    cache::ddl::repair(foreign_table);
    catalog::start_over(foreign_table);
    catalog::announce(foreign_table);
    worker::ensure();
    worker::wake_at_commit();
}

/// An ERROR, as Postgres has it, for those who do not own a foreign table.
fn require_owner(foreign_table: pg_sys::Oid) {
    if !pg::session::owns_relation(foreign_table) {
        let name = pg::catalog::relation_name(foreign_table).unwrap_or_default();
        let message = format!("must be owner of foreign table {name}");
        raise(error(Sql::ERRCODE_INSUFFICIENT_PRIVILEGE, message));
    }
}

/// Compares a whole table with the instance, range by range; repairs nothing.
#[allow(clippy::type_complexity)]
#[pg_extern(sql = "
CREATE FUNCTION servicenow.verify(
    foreign_table regclass, OUT range text, OUT remote bigint, OUT local bigint, OUT hidden bigint, OUT missing bigint,
    OUT extra bigint, OUT differing bigint) RETURNS SETOF record
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'verify_wrapper';
REVOKE ALL ON FUNCTION servicenow.verify(regclass) FROM PUBLIC;
")]
fn verify(
    foreign_table: pg_sys::Oid,
) -> TableIterator<
    'static,
    (
        name!(range, String),
        name!(remote, i64),
        name!(local, i64),
        name!(hidden, i64),
        name!(missing, i64),
        name!(extra, i64),
        name!(differing, i64),
    ),
> {
    let rows = verify::verify(foreign_table);
    TableIterator::new(rows.map(|v| (v.range, v.remote, v.local, v.hidden, v.missing, v.extra, v.differing)))
}

/// Has an instance tell of changes, as the server's option `capture` says.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.install_capture(server name) RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'install_capture_wrapper';
REVOKE ALL ON FUNCTION servicenow.install_capture(name) FROM PUBLIC;
")]
fn install_capture(server: &CStr) {
    pg::session::refuse_during_recovery(c"install_capture()");
    capture::install(&server.to_string_lossy());
    worker::ensure();
    worker::wake_at_commit();
}

/// Takes away from an instance what [`install_capture`] has made there for a server of this database.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.uninstall_capture(server name) RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'uninstall_capture_wrapper';
REVOKE ALL ON FUNCTION servicenow.uninstall_capture(name) FROM PUBLIC;
")]
fn uninstall_capture(server: &CStr) {
    pg::session::refuse_during_recovery(c"uninstall_capture()");
    capture::uninstall(&server.to_string_lossy());
    worker::wake_at_commit();
}

/// The script of the Business Rule that tells of changes of a foreign table, to be pasted by hand.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.capture_script(foreign_table regclass) RETURNS text
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'capture_script_wrapper';
REVOKE ALL ON FUNCTION servicenow.capture_script(regclass) FROM PUBLIC;
")]
fn capture_script(foreign_table: pg_sys::Oid) -> String {
    pg::session::refuse_during_recovery(c"capture_script()");
    capture::script(foreign_table)
}

/// Checks whether a server can be reached, logged in to and read, as the worker sees it.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.check_server(
    server name, OUT \"check\" text, OUT ok boolean, OUT detail text, OUT hint text) RETURNS SETOF record
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'check_server_wrapper';
REVOKE ALL ON FUNCTION servicenow.check_server(name) FROM PUBLIC;
")]
fn check_server(
    server: &CStr,
) -> TableIterator<
    'static,
    (name!(check, String), name!(ok, bool), name!(detail, String), name!(hint, Option<String>)),
> {
    let findings = check::check(&server.to_string_lossy());
    TableIterator::new(findings.into_iter().map(|f| (f.check, f.ok, f.detail, f.hint)))
}

/// Where the current user logs in to a server with a browser.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.authorize_url(server name) RETURNS text
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'authorize_url_wrapper';
")]
fn authorize_url(server: &CStr) -> String {
    pg::session::refuse_during_recovery(c"authorize_url()");
    consent::authorize_url(&server.to_string_lossy())
}

/// Logs the current user in with what a browser has brought back.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.exchange_code(server name, code text, state text) RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'exchange_code_wrapper';
")]
fn exchange_code(server: &CStr, code: &str, state: &str) {
    pg::session::refuse_during_recovery(c"exchange_code()");
    consent::exchange_code(&server.to_string_lossy(), code, state);
    worker::wake_at_commit();
}

/// Adds columns for the fields that a foreign table does not show; gives back how many.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.refresh_schema(foreign_table regclass) RETURNS bigint
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'refresh_schema_wrapper';
REVOKE ALL ON FUNCTION servicenow.refresh_schema(regclass) FROM PUBLIC;
")]
fn refresh_schema(foreign_table: pg_sys::Oid) -> i64 {
    pg::session::refuse_during_recovery(c"refresh_schema()");
    catalog::mirror_or_error(foreign_table);
    require_owner(foreign_table);
    import::refresh(foreign_table)
}

/// Lets the worker of this database run, and starts it.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.start_worker() RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'start_worker_wrapper';
REVOKE ALL ON FUNCTION servicenow.start_worker() FROM PUBLIC;
")]
fn start_worker() {
    pg::session::refuse_during_recovery(c"start_worker()");
    catalog::enable_worker(true);
    worker::ensure();
}

/// Stops the worker of this database until [`start_worker`] is called.
#[pg_extern(sql = "
CREATE FUNCTION servicenow.stop_worker() RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'stop_worker_wrapper';
REVOKE ALL ON FUNCTION servicenow.stop_worker() FROM PUBLIC;
")]
fn stop_worker() {
    pg::session::refuse_during_recovery(c"stop_worker()");
    catalog::enable_worker(false);
    catalog::announce(pg_sys::InvalidOid);
    worker::wake_at_commit();
}
