//! Bad input: each a clear error in the session that asked, or in `servicenow.sync_status`, while everything else
//! goes on.

mod addresses;
mod certificates;
mod ddl;
mod definitions;
mod hostile;
mod instance;
mod options;
mod rights;

use world::World;

/// A table of the server that has nothing wrong with it, to see that the worker goes on.
const GOOD: &str = "CREATE FOREIGN TABLE good (sys_id text, number text, short_description text) SERVER acme
                    OPTIONS (\"table\" 'problem')";

/// What `sync_status` says went wrong with a table, once it says so.
async fn last_error(world: &World, table: &str) -> String {
    let mine = format!("FROM servicenow.sync_status WHERE foreign_table = '{table}'::regclass");
    world.until(&format!("SELECT last_error IS NOT NULL AND last_error_at IS NOT NULL {mine}")).await;
    world.db.value(&format!("SELECT last_error {mine}")).await
}

/// Makes sure that the worker follows a table: a change made in the instance arrives.
async fn follows(world: &World, table: &str, remote: &str) {
    let id =
        world.sim.edit().insert(remote, &[("short_description", "is it still there?")]).expect("a record");
    world.until(&format!("SELECT count(*) = 1 FROM {table} WHERE sys_id = '{id}'")).await;
    world.sim.edit().delete(remote, &id).expect("it is there");
    world.until(&format!("SELECT count(*) = 0 FROM {table} WHERE sys_id = '{id}'")).await;
}

/// Makes sure that a table has come through what was done to it: it is filled, and nothing is wrong any more.
async fn recovers(world: &World, table: &str) {
    world
        .until(&format!(
            "SELECT phase = 'synced' AND last_error IS NULL AND last_error_at IS NULL AND rows > 0
             FROM servicenow.sync_status WHERE foreign_table = '{table}'::regclass"
        ))
        .await;
}
