//! The worker: it fills and follows tables, whoever kills it, changes rows under its hands or sets clocks.

mod changes;
mod crash;
mod failpoint;
mod faults;
mod fill;
mod follow;
mod habits;
mod labels;
mod many;
mod rename;
mod requests;
mod upkeep;
mod wait;
mod worker;

use servicenow_sim::{Dataset, LoggedRequest};
use world::World;
use world::cluster::Cluster;

/// Fields that show whether an incident is as it is in the instance.
const COLUMNS: &[&str] = &["number", "short_description", "state"];
const INCIDENT: &str = "CREATE FOREIGN TABLE incident (
    sys_id text, number text, short_description text, state bigint, reopen_count bigint) SERVER acme";
/// How many incidents it takes for a table to be filled in several ranges.
const MANY: usize = 4_500;

/// A world on a cluster of its own, which may crash, whose instance takes a while to answer.
async fn slow(settings: &str) -> World {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start(settings)));
    let world = World::on(cluster, Dataset::Incidents(MANY)).await;
    world.set_up(", page_size '100', max_concurrency '2'").await;
    world.sim.set(|s| s.latency_ms = 30);
    world
}

/// The process of the world's worker.
async fn pid(world: &World) -> u32 {
    let running = "SELECT pid FROM pg_stat_activity
                   WHERE datname = current_database() AND backend_type = 'servicenow_fdw worker'";
    world.until(&format!("SELECT EXISTS ({running})")).await;
    world.db.value::<i32>(running).await.unsigned_abs()
}

/// Waits until a fill has begun and is far from its end.
async fn until_under_way(world: &World) {
    world
        .until(
            "SELECT EXISTS (SELECT FROM servicenow.sync_table WHERE phase IN ('backfill', 'resync')
                                    AND rows_filled BETWEEN 500 AND rows_total / 2)",
        )
        .await;
}

/// The list calls on a table since the `from`th request.
fn lists(world: &World, table: &str, from: usize) -> Vec<LoggedRequest> {
    let is_list = |r: &LoggedRequest| r.endpoint == "table" && r.table.as_deref() == Some(table);
    world.sim.requests().into_iter().skip(from).filter(is_list).collect()
}
