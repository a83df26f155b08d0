//! ServiceNow's tables as PostgreSQL foreign tables, backed by local cache tables.
//!
//! # Where things are
//! - [`api`]: the SQL functions; [`option`]: every option; [`error`]: client errors as ERRORs
//! - [`import`]: IMPORT FOREIGN SCHEMA; [`cache`]: cache tables, their DDL and their rows
//! - [`planner`]: reads, by expansion of foreign tables to their caches; [`fdw`]: what is left to scans, and the rows of
//!   writing statements; [`push`]: writes on their way to ServiceNow; [`connection`]: clients of statements
//! - [`keys`]: whether instances take keys, as sessions have seen it
//! - [`login`]: logins that all processes share; [`consent`]: those that a user gives in a browser
//! - [`setting`]: the settings of sessions; [`freshness`]: whether caches may be read as they are; [`wait`]:
//!   waiting until they may
//! - [`worker`]: the background process that keeps caches up to date
//! - [`capture`]: having instances tell of changes by themselves
//! - [`check`]: whether a server can be used, and what to do where not
//! - [`verify`]: the proof that a cache is complete
//! - [`failpoint`]: where tests have processes die
//! - [`catalog`]: the extension's own tables, and the mirror behind a foreign table
//! - [`pg`] and [`entry`]: the boundary to Postgres, the only places with `unsafe`
//!
//! What is ServiceNow's and needs no database is in crate `servicenow`.
//!
//! # Words
//! A *mirror* is a foreign table with its cache; to *fill* it is to read it whole, to *poll* it is to read what
//! changed; a *field* is ServiceNow's, a *column* Postgres's.
#![deny(unsafe_code)]

mod api;
mod cache;
mod capture;
mod catalog;
mod check;
mod connection;
mod consent;
#[allow(unsafe_code)]
mod entry;
mod error;
mod failpoint;
mod fdw;
mod freshness;
mod import;
mod keys;
mod login;
mod option;
#[allow(unsafe_code)]
mod pg;
mod planner;
mod push;
mod setting;
mod verify;
mod wait;
mod worker;

use pgrx::prelude::*;

pgrx::pg_module_magic!();

extension_sql_file!("../sql/catalog.sql", name = "catalog", bootstrap);
extension_sql_file!(
    "../sql/view.sql",
    name = "view",
    requires = ["catalog", api::_pending_writes, api::_turned_away]
);
extension_sql_file!("../sql/privilege.sql", name = "privilege", requires = ["view"]);
extension_sql_file!("../sql/event_trigger.sql", name = "event_trigger", finalize);

/// Called by Postgres when the library is loaded: in the postmaster if it is preloaded, else in each process at
/// its first use.
#[allow(non_snake_case)]
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    setting::define();
    entry::install_hooks();
    pg::catalog::listen_for_changes();
    if pg::worker::is_preloading() {
        pg::worker::register_launcher("servicenow_fdw launcher", "servicenow_fdw_launcher");
    } else {
        freshness::plans_may_be_older();
    }
}

/// What `cargo pgrx test` asks of the crate.
#[cfg(test)]
pub mod pg_test {
    /// Nothing to set up.
    pub fn setup(_options: Vec<&str>) {}

    /// Tests need no settings of their own.
    #[must_use]
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        Vec::new()
    }
}
