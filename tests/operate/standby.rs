//! Standbys, promotion, and going back to a point in time.

use std::time::{Duration, Instant};

use servicenow_sim::Dataset;
use world::cluster::Cluster;
use world::{PATIENCE, Session, World, connect};

use crate::{INCIDENT, blocks};

const COLUMNS: &[&str] = &["number", "short_description", "state"];
const WORKERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'servicenow_fdw%'";
/// What a standby has to replay before it can be promoted.
const SETTINGS: &str =
    "shared_preload_libraries = 'servicenow_fdw'\nwal_level = replica\nmax_wal_senders = 4";

/// A world with incidents, on a cluster of its own that may have standbys.
async fn primary() -> World {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start(SETTINGS)));
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up("").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world
}

/// A copy of a cluster that does not run yet.
fn backup(world: &World, more: &[&str]) -> &'static Cluster {
    let socket = world.cluster.socket().display().to_string();
    let program = world.cluster.bin().join("pg_basebackup");
    let arguments = [&["-h", &socket, "-U", "postgres", "--checkpoint=fast"], more, &["-D"]].concat();
    Box::leak(Box::new(world.cluster.copied(&program, &arguments)))
}

/// Waits until a query on a session gives `true`.
async fn until(session: &Session, condition: &str) {
    let began = Instant::now();
    while session.value::<Option<bool>>(condition).await != Some(true) {
        assert!(began.elapsed() < PATIENCE, "{condition}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_reads_refuses_writes_before_any_call_and_takes_over_when_promoted() {
    let world = primary().await;
    let standby = backup(&world, &["-R"]);
    standby.control(&["start"]);
    let there = connect(standby, &world.database).await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "replicated")]).expect("it is there");
    until(&there, "SELECT count(*) = 1 FROM incident WHERE short_description = 'replicated'").await;
    // Both ways of reading, and what there is to see.
    let both = "SELECT (SELECT count(*) FROM incident) = (SELECT count(tableoid) FROM incident)";
    assert!(there.value::<bool>(both).await);
    assert!(there.explain("SELECT count(*) FROM incident").await.contains("on incident"));
    assert!(there.explain("SELECT count(tableoid) FROM incident").await.contains("Foreign Scan"));
    let phase = "SELECT phase FROM servicenow.sync_status";
    assert_eq!(there.value::<String>(phase).await, "synced");
    let sent = world.writes().len();
    for (statement, code) in [
        ("UPDATE incident SET reopen_count = 1 WHERE number = 'INC0012345'", "25006"),
        ("INSERT INTO incident (short_description) VALUES ('new')", "25006"),
        ("DELETE FROM incident WHERE number = 'INC0012345'", "25006"),
        ("SELECT servicenow.resync('incident')", "25006"),
        ("SELECT servicenow.start_worker()", "25006"),
        ("SELECT servicenow.sync('incident')", "55000"),
    ] {
        assert_eq!(there.error(statement).await.code().code(), code, "{statement}");
    }
    assert_eq!(world.writes().len(), sent, "nothing was sent");
    assert_eq!(there.value::<i64>(WORKERS).await, 0);
    // The primary is lost in the middle of a write, of which the standby knows nothing, and the standby takes over.
    let half = world.find("incident", "number=INC0010002");
    let halfway = world.session().await;
    halfway
        .run(&format!("BEGIN; UPDATE incident SET short_description = 'half way' WHERE sys_id = '{half}'"))
        .await;
    assert_eq!(world.remote("incident", &half, "short_description").as_deref(), Some("half way"));
    let World { sim, cluster, database, db } = world;
    drop(db);
    cluster.control(&["-m", "immediate", "stop"]);
    sim.edit().update("incident", &id, &[("short_description", "while nobody looked")]).expect("it is there");
    sim.edit()
        .delete(
            "incident",
            &sim.edit().find("incident", "number!=INC0012345^number!=INC0010002").expect("a query")[0],
        )
        .expect("there");
    sim.clear_requests();
    let promoted = Instant::now();
    standby.control(&["promote"]);
    let is_poll = |r: &servicenow_sim::LoggedRequest| r.table.as_deref() == Some("incident");
    while !sim.requests().iter().any(is_poll) {
        assert!(promoted.elapsed() < Duration::from_secs(10), "the first poll comes in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let world = World { sim, cluster: standby, database, db: there };
    world.until_like_the_instance("incident", COLUMNS).await;
    let arrived = "SELECT count(*) FROM incident WHERE short_description = 'half way'";
    assert_eq!(world.db.value::<i64>(arrived).await, 1);
    world.db.run("UPDATE incident SET short_description = 'taken over' WHERE number = 'INC0012345'").await;
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("taken over"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_back_to_before_a_write_catches_up_with_it() {
    let world = primary().await;
    let before = backup(&world, &["-X", "stream"]);
    let id = world.find("incident", "number=INC0012345");
    world.db.run("UPDATE incident SET short_description = 'written' WHERE number = 'INC0012345'").await;
    let new = "INSERT INTO incident (short_description) VALUES ('made') RETURNING sys_id";
    let new = world.db.value::<String>(new).await;
    let gone = world.sim.edit().find("incident", "number!=INC0012345").expect("a query").remove(0);
    world.db.run(&format!("DELETE FROM incident WHERE sys_id = '{gone}'")).await;
    let sent = world.writes().len();
    world.cluster.control(&["-m", "immediate", "stop"]);
    // No worker yet, so that what was restored can be seen.
    before.configure_next_start("shared_preload_libraries = ''");
    std::fs::write(before.data().join("recovery.signal"), "").expect("a file");
    use std::io::Write;
    let mut file =
        std::fs::OpenOptions::new().append(true).open(before.data().join("postgresql.conf")).expect("a file");
    writeln!(
        file,
        "restore_command = '/bin/false'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\nshared_preload_libraries = ''"
    )
    .expect("a line");
    before.control(&["start"]);
    let db = connect(before, &world.database).await;
    until(&db, "SELECT NOT pg_is_in_recovery()").await;
    let (made, deleted) = (
        db.value::<i64>(&format!("SELECT count(*) FROM servicenow_cache.incident WHERE sys_id = '{new}'"))
            .await,
        db.value::<i64>(&format!("SELECT count(*) FROM servicenow_cache.incident WHERE sys_id = '{gone}'"))
            .await,
    );
    assert_eq!((made, deleted), (0, 1), "it is before the writes");
    let world = World { cluster: before, db, ..world };
    world.db.run("SELECT servicenow.start_worker()").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    assert_eq!(world.writes().len(), sent, "nothing is written");
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("written"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_is_replicated_to_a_database_without_the_extension() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start("wal_level = logical")));
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up("").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let [_update, publish, define, _pieces] = blocks()[..] else { panic!("four blocks") };
    world.db.run(publish).await;
    let definition = world.db.value::<String>(define).await;
    world.db.run("SELECT pg_create_logical_replication_slot('incidents', 'pgoutput')").await;
    connect(cluster, "postgres").await.run("CREATE DATABASE copy").await;
    let copy = connect(cluster, "copy").await;
    let socket = cluster.socket().display();
    copy.run(&format!("CREATE SCHEMA servicenow_cache; {definition}")).await;
    copy.run(&format!(
        "CREATE SUBSCRIPTION incidents CONNECTION 'host={socket} user=postgres dbname={}' PUBLICATION incidents
         WITH (create_slot = false)",
        world.database
    ))
    .await;
    let content =
        "SELECT coalesce(md5(string_agg(i::text, ',' ORDER BY sys_id)), '') FROM servicenow_cache.incident i";
    let alike = async || {
        let began = Instant::now();
        loop {
            let (here, there) =
                (copy.value::<String>(content).await, world.db.value::<String>(content).await);
            if here == there && !here.is_empty() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "the copy is like the cache");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    alike().await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "over there")]).expect("it is there");
    let new =
        world.sim.edit().insert("incident", &[("short_description", "made over there")]).expect("a record");
    world.until("SELECT count(*) = 2 FROM incident WHERE short_description LIKE '%over there'").await;
    alike().await;
    world.db.run("UPDATE incident SET reopen_count = 9 WHERE number = 'INC0012345'").await;
    world.db.run(&format!("DELETE FROM incident WHERE sys_id = '{new}'")).await;
    alike().await;
    world.db.run("SELECT servicenow.resync('incident')").await;
    world.sync("incident").await;
    alike().await;
    copy.run("DROP SUBSCRIPTION incidents").await;
}
