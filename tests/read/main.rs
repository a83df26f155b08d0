//! Reads: a foreign table cannot be told from a local one.

mod differential;
mod freshness;
mod index;
mod locks;
mod partitions;
mod rights;
mod statements;

use servicenow_sim::Dataset;
use world::World;

/// A world with three filled tables in schema `public`, and in schema `copy` the same as ordinary tables with the
/// same indexes.
async fn with_copies() -> World {
    let world = World::with(Dataset::Small, "").await;
    world
        .db
        .run(
            "CREATE FOREIGN TABLE incident (
                 sys_id text NOT NULL, number text OPTIONS (index 'true'), gone text OPTIONS (field 'close_notes'),
                 state bigint, state_label text OPTIONS (field 'state', show 'label'), priority bigint, active boolean,
                 caller_id text OPTIONS (index 'true'), assigned_to text, short_description text,
                 opened_at timestamptz OPTIONS (index 'true'), closed_at timestamptz, reopen_count bigint,
                 sys_class_name text) SERVER acme;
             CREATE FOREIGN TABLE problem (
                 sys_id text NOT NULL, number text, state bigint, priority bigint, active boolean, assigned_to text,
                 opened_at timestamptz) SERVER acme;
             CREATE FOREIGN TABLE person (
                 sys_id text NOT NULL, name text, user_name text OPTIONS (index 'true'), active boolean,
                 department text, sys_created_on timestamptz) SERVER acme OPTIONS (\"table\" 'sys_user')",
        )
        .await;
    for table in ["incident", "problem", "person"] {
        world.sync(table).await;
    }
    world.stop_worker().await;
    // Columns do not have the same numbers everywhere.
    world.db.run("ALTER FOREIGN TABLE incident DROP COLUMN gone").await;
    world.db.run("CREATE SCHEMA copy").await;
    for table in ["incident", "problem", "person"] {
        world
            .db
            .run(&format!(
                "CREATE TABLE copy.{table} AS SELECT * FROM public.{table}; ALTER TABLE copy.{table} ADD PRIMARY KEY (sys_id)"
            ))
            .await;
    }
    world
        .db
        .run(
            "CREATE INDEX ON copy.incident (number); CREATE INDEX ON copy.incident (caller_id);
             CREATE INDEX ON copy.incident (opened_at); CREATE INDEX ON copy.person (user_name)",
        )
        .await;
    // Of its own, as it cannot run with other statements.
    for schema in ["servicenow_cache", "copy"] {
        world.db.run(&format!("VACUUM (ANALYZE) {schema}.incident, {schema}.problem, {schema}.person")).await;
    }
    world
}

/// The pair of schemas that hold the same tables.
const SCHEMAS: [&str; 2] = ["public", "copy"];
