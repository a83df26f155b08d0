//! The worker as a process: who starts it, who stops it, and whom it is not in the way of.

use world::cluster::{Cluster, signal};
use world::{World, connect};

use crate::{COLUMNS, INCIDENT, pid, slow, until_under_way};

/// Counts the workers of a database.
fn workers(database: &str) -> String {
    format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND backend_type = 'servicenow_fdw worker'"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_worker_stays_stopped_until_it_is_started() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.stop_worker().await;
    let other = world.session().await;
    other.run("SELECT count(*) FROM incident").await;
    other.run("UPDATE incident SET reopen_count = 3 WHERE number = 'INC0012345'").await;
    let error = other.error("SELECT servicenow.sync('incident')").await;
    assert_eq!(error.code().code(), "55000");
    assert!(
        error.hint().is_some_and(|hint| hint.contains("servicenow.start_worker()")),
        "{:?}",
        error.hint()
    );
    assert_eq!(other.value::<i64>(&workers(&world.database)).await, 0);
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "meanwhile")]).expect("it is there");
    other.run("SELECT servicenow.start_worker()").await;
    world.until_like_the_instance("incident", COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_worker_however_many_sessions_start_it() {
    let world = World::new().await;
    world.stop_worker().await;
    let mut starts = Vec::new();
    for _ in 0..12 {
        let session = world.session().await;
        starts.push(tokio::spawn(async move { session.run("SELECT servicenow.start_worker()").await }));
    }
    for start in starts {
        start.await.expect("it is started");
    }
    pid(&world).await;
    assert_eq!(world.db.value::<i64>(&workers(&world.database)).await, 1);
}

/// The worker cannot see what has not been committed, and is there when it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_started_by_a_long_transaction_waits_for_its_end() {
    let world = World::bare(servicenow_sim::Dataset::Small).await;
    world.db.run("BEGIN").await;
    world.set_up("").await;
    world.db.run(INCIDENT).await;
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    world.db.run("COMMIT").await;
    world.until("SELECT phase = 'synced' FROM servicenow.sync_status").await;
    world.stop_worker().await;
    world.db.run("BEGIN; SELECT servicenow.start_worker()").await;
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    world.db.run("COMMIT").await;
    pid(&world).await;
    world.stop_worker().await;
    world.db.run("BEGIN; SELECT servicenow.start_worker()").await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    world.db.run("ROLLBACK").await;
    world.until(&format!("SELECT n = 0 FROM ({}) w (n)", workers(&world.database))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_dropped_while_its_worker_fills_a_table() {
    let world = slow("").await;
    world.db.run(INCIDENT).await;
    until_under_way(&world).await;
    let World { sim: _sim, cluster, database, db } = world;
    drop(db);
    let admin = connect(cluster, "postgres").await;
    admin.run(&format!("DROP DATABASE {database} WITH (FORCE)")).await;
    assert_eq!(admin.value::<i64>(&workers(&database)).await, 0);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let log = cluster.log();
    let complaints: Vec<&str> =
        log.lines().filter(|line| line.contains("servicenow_fdw") && line.contains("ERROR")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_not_in_the_way_of_drop_database_without_force() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let World { sim: _sim, cluster, database, db } = world;
    drop(db);
    let admin = connect(cluster, "postgres").await;
    let began = std::time::Instant::now();
    admin.run(&format!("DROP DATABASE {database}")).await;
    assert!(began.elapsed().as_secs() < 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_is_dropped_while_its_worker_fills_a_table_and_made_again() {
    let world = slow("").await;
    world.db.run(INCIDENT).await;
    until_under_way(&world).await;
    world.db.run("SET lock_timeout = '10s'; DROP EXTENSION servicenow_fdw CASCADE").await;
    world.until(&format!("SELECT n = 0 FROM ({}) w (n)", workers(&world.database))).await;
    let left = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname LIKE 'servicenow%'";
    assert_eq!(world.db.value::<i64>(left).await, 0);
    world.sim.set(|s| s.latency_ms = 0);
    world.set_up("").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_shutdown_waits_for_nothing() {
    let world = slow("").await;
    world.sim.set(|s| s.latency_ms = 30_000);
    world.db.run(INCIDENT).await;
    let waiter = world.session().await;
    let waiting = tokio::spawn(async move {
        waiter.client().batch_execute("SELECT servicenow.wait_for_sync('incident')").await
    });
    pid(&world).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let began = std::time::Instant::now();
    world.cluster.control(&["-m", "fast", "stop"]);
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    assert!(waiting.await.expect("it ends").is_err());
    assert!(!world.cluster.log().contains("PANIC"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preloaded_library_starts_the_workers_of_every_database() {
    let cluster: &'static Cluster =
        Box::leak(Box::new(Cluster::start("shared_preload_libraries = 'servicenow_fdw'")));
    let mut worlds = Vec::new();
    for _ in 0..2 {
        let world = World::on(cluster, servicenow_sim::Dataset::Small).await;
        world.set_up("").await;
        world.db.run(INCIDENT).await;
        world.sync("incident").await;
        worlds.push(world);
    }
    for world in &mut worlds {
        let id = world.find("incident", "number=INC0012345");
        world.sim.edit().update("incident", &id, &[("short_description", "meanwhile")]).expect("it is there");
    }
    cluster.control(&["-m", "fast", "restart"]);
    let admin = connect(cluster, "postgres").await;
    for world in &worlds {
        let began = std::time::Instant::now();
        while admin.value::<i64>(&workers(&world.database)).await == 0 {
            assert!(began.elapsed() < world::PATIENCE, "the launcher starts one");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    for world in &mut worlds {
        world.db = connect(cluster, &world.database).await;
        world.until_like_the_instance("incident", COLUMNS).await;
    }
}

/// SIGHUP reloads the configuration; the worker goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_does_not_disturb() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let worker = pid(&world).await;
    signal(worker, "-HUP");
    world.sync("incident").await;
    assert_eq!(pid(&world).await, worker);
}
