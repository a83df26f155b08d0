//! Whatever dies, nothing is lost and nothing begins anew.

use std::collections::HashSet;

use servicenow_sim::LoggedRequest;
use world::cluster::signal;
use world::death::reconnect;
use world::{PATIENCE, World};

use crate::{COLUMNS, INCIDENT, MANY, lists, pid, slow, until_under_way};

/// Waits until the table is complete. No page from before the `from`th request is read again, but those that were
/// under way.
async fn goes_on(world: &World, from: usize) {
    world.sim.set(|s| s.latency_ms = 0);
    world.sync("incident").await;
    let query = |request: &LoggedRequest| request.parameter("sysparm_query").unwrap_or_default().to_owned();
    let all = lists(world, "incident", 0);
    let after = lists(world, "incident", from).len();
    let (before, after) = all.split_at(all.len() - after);
    let before: HashSet<String> = before.iter().map(query).collect();
    let again: Vec<String> = after.iter().map(query).filter(|query| before.contains(query)).collect();
    assert!(again.len() <= 4, "it went on from where it was: {again:#?}");
    world.until_like_the_instance("incident", COLUMNS).await;
    let rows = "SELECT ARRAY[(SELECT count(*) FROM incident), rows, rows_filled, rows_hidden]
                FROM servicenow.sync_table WHERE foreign_table = 'incident'::regclass";
    let rows = world.db.value::<Vec<i64>>(rows).await;
    assert_eq!(rows[..], [rows[0], rows[0], rows[0], 0], "the rows are counted right");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_goes_on_after_kill_9_of_the_worker() {
    let mut world = slow("").await;
    world.db.run(INCIDENT).await;
    until_under_way(&world).await;
    let killed = pid(&world).await;
    let from = world.sim.requests().len();
    signal(killed, "-KILL");
    reconnect(&mut world).await;
    // The postmaster starts it again by itself.
    assert_ne!(pid(&world).await, killed);
    goes_on(&world, from).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_goes_on_after_the_worker_was_terminated() {
    let world = slow("").await;
    world.db.run(INCIDENT).await;
    until_under_way(&world).await;
    let terminated = pid(&world).await;
    let from = world.sim.requests().len();
    world.db.run(&format!("SELECT pg_terminate_backend({terminated}, 10000)")).await;
    assert_ne!(pid(&world).await, terminated);
    goes_on(&world, from).await;
}

/// Without preloading, the first session that looks at a foreign table starts the worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_fill_goes_on_after_a_crash_of_the_cluster_once_a_table_is_read() {
    let mut world = slow("").await;
    world.db.run(INCIDENT).await;
    until_under_way(&world).await;
    world.cluster.control(&["-m", "immediate", "restart"]);
    let from = world.sim.requests().len();
    reconnect(&mut world).await;
    assert!(world.db.value::<i64>("SELECT count(*) FROM incident").await >= 500, "what was there is there");
    pid(&world).await;
    goes_on(&world, from).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preloaded_library_goes_on_by_itself_after_a_crash_of_the_cluster() {
    let mut world = slow("shared_preload_libraries = 'servicenow_fdw'").await;
    world.db.run(INCIDENT).await;
    until_under_way(&world).await;
    world.cluster.control(&["-m", "immediate", "restart"]);
    let from = world.sim.requests().len();
    let began = std::time::Instant::now();
    while lists(&world, "incident", from).is_empty() {
        assert!(began.elapsed() < PATIENCE, "the launcher starts a worker");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    reconnect(&mut world).await;
    goes_on(&world, from).await;
}

/// A refill has to know every record the instance shows, so it begins its open ranges anew; the rows stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_resync_survives_kill_9_of_the_worker() {
    let mut world = slow("").await;
    world.sim.set(|s| s.latency_ms = 0);
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
    edit.update_where("incident", "active=true", &[("short_description", "silently")]).expect("a query");
    world.sim.set(|s| s.latency_ms = 30);
    world.db.run("SELECT servicenow.resync('incident')").await;
    until_under_way(&world).await;
    let killed = pid(&world).await;
    signal(killed, "-KILL");
    reconnect(&mut world).await;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident").await, MANY as i64);
    world.sim.set(|s| s.latency_ms = 0);
    world.sync("incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_nobody_was_there_arrives() {
    let mut world = slow("").await;
    world.sim.set(|s| s.latency_ms = 0);
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.cluster.control(&["-m", "immediate", "stop"]);
    world.sim.edit().delete_where("incident", "numberENDSWITH7").expect("a query");
    world
        .sim
        .edit()
        .update_where("incident", "numberENDSWITH3", &[("short_description", "meanwhile")])
        .expect("a query");
    world.sim.edit().insert("incident", &[("short_description", "new")]).expect("a record");
    world.sim.clock().advance(std::time::Duration::from_secs(3 * 86_400));
    world.cluster.control(&["start"]);
    reconnect(&mut world).await;
    world.sync("incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// A backend that dies in the middle of a write: the cluster recovers, and the cache shows what ServiceNow has.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_backend_was_killed_arrives_by_itself() {
    let mut world = slow("").await;
    world.sim.set(|s| s.latency_ms = 0);
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let writer = world.session().await;
    let backend = writer.value::<i32>("SELECT pg_backend_pid()").await.unsigned_abs();
    writer.run("BEGIN; INSERT INTO incident (short_description) VALUES ('orphan')").await;
    writer.run("UPDATE incident SET short_description = 'orphaned' WHERE number LIKE '%17'").await;
    signal(backend, "-KILL");
    reconnect(&mut world).await;
    world.sync("incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    let there = "SELECT count(*) FROM incident WHERE short_description LIKE 'orphan%'";
    assert!(world.db.value::<i64>(there).await > 1);
}
