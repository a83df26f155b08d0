//! Capture: the instance tells of changes by itself, and what happens when it does not.

mod copies;
mod crash;
mod events;
mod install;
mod queue;
mod webhook;

use std::time::Duration;

use servicenow_sim::{Dataset, LoggedRequest};
use world::cluster::Cluster;
use world::{INTEGRATION, World};

/// Fields that show whether an incident is as it is in the instance.
const COLUMNS: &[&str] = &["number", "short_description", "state"];
const INCIDENT: &str = "CREATE FOREIGN TABLE incident (
    sys_id text, number text, short_description text, state bigint, reopen_count bigint) SERVER acme";

/// A world whose worker may make tables and rules, and that is polled so seldom that no poll brings anything.
async fn world(capture: &str) -> World {
    world_on(Cluster::shared(), capture).await
}

async fn world_on(cluster: &'static Cluster, capture: &str) -> World {
    let world = World::on(cluster, Dataset::Small).await;
    world.sim.edit().grant_role(INTEGRATION, "admin").expect("a role");
    world.set_up(&format!(", capture '{capture}'")).await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '2 s')").await;
    world
}

/// A world with a filled table whose changes are told of by a queue.
async fn captured() -> World {
    capture_incidents(world("queue").await).await
}

async fn capture_incidents(world: World) -> World {
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.db.run("SELECT servicenow.install_capture('acme')").await;
    until_captured(&world).await;
    world
}

/// Waits until events come, and the poll is over that brings what changed before.
async fn until_captured(world: &World) {
    until_state(world, "active").await;
    world
        .until(
            "SELECT bool_and(s.last_poll_at > c.state_since) FROM servicenow.sync_status s
             JOIN servicenow.stat_capture c USING (server)",
        )
        .await;
    // That may have been one of the polls before, and the one that follows a new pace may be under way: neither is any
    // more when nobody has asked for records for a while, and the next one is far.
    let mut asked = usize::MAX;
    while asked != lists(world, "incident", 0).len() {
        asked = lists(world, "incident", 0).len();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
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

/// What was looked up of incidents since the `from`th request; a poll may come at any time.
fn looked_up(world: &World, from: usize) -> Vec<String> {
    let queries = lists(world, "incident", from).into_iter();
    let queries = queries.filter_map(|list| list.parameter("sysparm_query").map(str::to_owned));
    queries.filter(|query| query.contains("sys_idIN")).collect()
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

/// Waits until something holds of the instance or the log.
async fn until(condition: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < world::PATIENCE, "this did not come true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
