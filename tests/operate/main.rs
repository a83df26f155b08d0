//! What a DBA does with it: look, be told, dump and restore, fail over.

mod book;
mod docs;
mod doctor;
mod look;
mod mail;
mod pieces;
mod restore;
mod setting;
mod sink;
mod standby;
mod update;
mod upgrade;

const INCIDENT: &str = "CREATE FOREIGN TABLE incident (
    sys_id text, number text, short_description text, state bigint, reopen_count bigint) SERVER acme";

/// The blocks of SQL of the page about operations.
fn blocks() -> Vec<&'static str> {
    let page = include_str!("../../docs/operations.md");
    page.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}
