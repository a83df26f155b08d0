//! What a DBA does with it: look, be told, dump and restore, fail over.

mod book;
mod docs;
mod doctor;
mod look;
mod mail;
mod restore;
mod setting;
mod sink;
mod standby;
mod update;
mod upgrade;

const INCIDENT: &str = "CREATE FOREIGN TABLE incident (
    sys_id text, number text, short_description text, state bigint, reopen_count bigint) SERVER acme";
