//! Capture: the instance tells of changes by itself, and what happens when it does not.

mod install;
mod queue;

use servicenow_sim::{Dataset, LoggedRequest};
use world::{INTEGRATION, World};

/// Fields that show whether an incident is as it is in the instance.
const COLUMNS: &[&str] = &["number", "short_description", "state"];
const INCIDENT: &str = "CREATE FOREIGN TABLE incident (
    sys_id text, number text, short_description text, state bigint, reopen_count bigint) SERVER acme";

/// A world whose worker may make tables and rules, which is polled so seldom that no poll brings anything.
async fn world(capture: &str) -> World {
    let world = World::bare(Dataset::Small).await;
    world.sim.edit().grant_role(INTEGRATION, "admin").expect("a role");
    world.set_up(&format!(", capture '{capture}'")).await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '2 s')").await;
    world
}

/// A world with a filled table whose changes are told of.
async fn captured(capture: &str) -> World {
    let world = world(capture).await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.db.run("SELECT servicenow.install_capture('acme')").await;
    until_state(&world, "active").await;
    world
}

/// Waits until capture is said to be in a state.
async fn until_state(world: &World, state: &str) {
    world.until(&format!("SELECT bool_and(capture_state = '{state}') FROM servicenow.sync_status")).await;
}

/// The calls since the `from`th request that asked for records of a table.
fn lists(world: &World, table: &str, from: usize) -> Vec<LoggedRequest> {
    let is_list =
        |r: &LoggedRequest| r.endpoint == "table" && r.table.as_deref() == Some(table) && r.method == "GET";
    world.sim.requests().into_iter().skip(from).filter(is_list).collect()
}

/// The subscription's rules in the instance: sys_id and table.
fn rules(world: &World, name: &str) -> Vec<(String, String)> {
    let mut rules: Vec<(String, String)> = world
        .sim
        .edit()
        .find("sys_script", &format!("name={name}"))
        .expect("a query")
        .into_iter()
        .map(|id| {
            let table = world.remote("sys_script", &id, "collection").expect("a rule");
            (id, table)
        })
        .collect();
    rules.sort_by(|one, other| one.1.cmp(&other.1));
    rules
}

/// The name of the subscription's rules.
async fn name(world: &World) -> String {
    let id = world.db.value::<String>("SELECT subscription FROM servicenow.stat_capture").await;
    format!("servicenow_fdw {id}")
}
