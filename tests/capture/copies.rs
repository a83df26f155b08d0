//! Copies of a database or of a whole cluster have the subscription of the original, and leave what that has alone.

use std::path::Path;
use std::time::Duration;

use world::cluster::Cluster;

use crate::{capture_incidents, captured, rules, until, until_captured, until_state, world_on};

/// A database that was copied has the subscription of the other one.
#[tokio::test(flavor = "multi_thread")]
async fn a_copied_database_gets_a_subscription_of_its_own() {
    let mut world = captured().await;
    let before = world.db.value::<String>("SELECT subscription FROM servicenow.stat_capture").await;
    world.stop_worker().await;
    let (original, copy) = (world.database.clone(), format!("{}_copy", world.database));
    world.db = world::connect(world.cluster, "postgres").await;
    world.db.run(&format!("CREATE DATABASE {copy} TEMPLATE {original}")).await;
    let copied = world::connect(world.cluster, &copy).await;
    copied.run("SELECT servicenow.start_worker()").await;
    let renewed = "SELECT count(*) = 1 FROM servicenow.stat_capture WHERE subscription <> '{before}'";
    let renewed = renewed.replace("{before}", &before);
    let began = std::time::Instant::now();
    while !copied.value::<bool>(&renewed).await {
        assert!(began.elapsed() < world::PATIENCE, "it gets another id");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    copied.run("SELECT servicenow.install_capture('acme')").await;
    let after = copied.value::<String>("SELECT subscription FROM servicenow.stat_capture").await;
    assert_ne!(before, after);
    for id in [&before, &after] {
        assert_eq!(rules(&world, &format!("servicenow_fdw {id}")).len(), 1, "each has its own");
    }
    copied.run("SELECT servicenow.uninstall_capture('acme')").await;
    assert!(rules(&world, &format!("servicenow_fdw {after}")).is_empty());
    assert_eq!(rules(&world, &format!("servicenow_fdw {before}")).len(), 1, "the other one's stay");
    world.db = world::connect(world.cluster, &original).await;
}

/// A base backup, or a standby that is promoted, has the subscription of the original, which may go on beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_copied_cluster_leaves_the_original_s_capture_alone() {
    let world = capture_incidents(world_on(Box::leak(Box::new(Cluster::start(""))), "queue").await).await;
    let subscription = "SELECT subscription FROM servicenow.stat_capture";
    let before = world.db.value::<String>(subscription).await;
    // What is the same after a restart stays.
    world.stop_worker().await;
    world.db.run("SELECT servicenow.start_worker()").await;
    until_captured(&world).await;
    assert_eq!(world.db.value::<String>(subscription).await, before);
    let (program, socket) =
        (world.cluster.bin().join("pg_basebackup"), world.cluster.socket().display().to_string());
    let arguments = ["-h", &socket, "-U", "postgres", "--checkpoint=fast", "-D"];
    let copy = world.cluster.copied(&program, &arguments);
    // Nobody but the copy could read what is told now.
    world.stop_worker().await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "told")]).expect("it is there");
    copy.control(&["start"]);
    let copied = world::connect(&copy, &world.database).await;
    copied.run("SELECT servicenow.start_worker()").await;
    let is_known = "SELECT capture_state = 'absent' AND capture_error LIKE '%copy of another one%install_capture(''acme'')%' AND phase = 'synced' FROM servicenow.sync_status";
    let began = std::time::Instant::now();
    while !copied.value::<bool>(is_known).await {
        assert!(began.elapsed() < world::PATIENCE, "it is said");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let queue = format!("u_servicenow_fdw_{before}");
    assert_eq!(world.sim.edit().find(&queue, "").expect("a table").len(), 1, "the original's events stay");
    copied.run("SELECT servicenow.install_capture('acme')").await;
    let after = copied.value::<String>(subscription).await;
    for id in [&before, &after] {
        assert_eq!(rules(&world, &format!("servicenow_fdw {id}")).len(), 1, "each has its own");
    }
    copied.run("SELECT servicenow.uninstall_capture('acme')").await;
    assert_eq!(rules(&world, &format!("servicenow_fdw {before}")).len(), 1, "the original's stay");
    world.db.run("SELECT servicenow.start_worker()").await;
    until(|| world.sim.edit().find(&queue, "").expect("a table").is_empty()).await;
    assert_eq!(world.db.value::<String>(subscription).await, before);
    until_state(&world, "active").await;
}

/// A copy of the files has the original's mark, too: whatever it is asked to do first, it does for itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_files_makes_and_takes_away_its_own_only() {
    let mut world = capture_incidents(world_on(Box::leak(Box::new(Cluster::start(""))), "queue").await).await;
    let subscription = "SELECT subscription FROM servicenow.stat_capture";
    let before = world.db.value::<String>(subscription).await;
    world.cluster.control(&["stop", "-m", "fast"]);
    let source = world.cluster.data().display().to_string();
    let copies = [(); 2].map(|()| world.cluster.copied(Path::new("cp"), &["-a", &source]));
    let (id, queue) = (world.find("incident", "number=INC0012345"), format!("u_servicenow_fdw_{before}"));
    let name_before = format!("servicenow_fdw {before}");
    let original = rules(&world, &name_before);
    world.sim.edit().update("incident", &id, &[("short_description", "told")]).expect("it is there");
    let told = world.sim.edit().find(&queue, "").expect("a table");
    assert_eq!(told.len(), 1);
    let [one, other] = &copies;
    for copy in [one, other] {
        copy.control(&["start"]);
    }
    let (one, other) =
        (world::connect(one, &world.database).await, world::connect(other, &world.database).await);
    one.run("SELECT servicenow.check_server('acme')").await;
    one.run("SELECT servicenow.install_capture('acme')").await;
    let after = one.value::<String>(subscription).await;
    assert_ne!(after, before);
    let state = "SELECT bool_and(capture_state = 'active') FROM servicenow.sync_status";
    one.until(state).await;
    other.run("SELECT servicenow.uninstall_capture('acme')").await;
    assert_ne!(other.value::<String>(subscription).await, before);
    let now = other.value::<String>("SELECT clock_timestamp()::text").await;
    other.run("SELECT servicenow.start_worker()").await;
    other.until(&format!("SELECT last_poll_at > '{now}' FROM servicenow.sync_status")).await;
    assert_eq!(rules(&world, &name_before), original, "the original's rules are as they were");
    assert_eq!(rules(&world, &format!("servicenow_fdw {after}")).len(), 1, "the copy has one of its own");
    assert_eq!(world.sim.edit().find(&queue, "").expect("a table"), told, "the original's events stay");
    world.cluster.control(&["start"]);
    world.db = world::connect(world.cluster, &world.database).await;
    world.db.run("SELECT servicenow.start_worker()").await;
    until(|| world.sim.edit().find(&queue, "").expect("a table").is_empty()).await;
    world.until("SELECT short_description = 'told' FROM incident WHERE number = 'INC0012345'").await;
    assert_eq!(world.db.value::<String>(subscription).await, before);
    // Each is told of what changes from now on.
    world.sim.edit().update("incident", &id, &[("short_description", "both")]).expect("it is there");
    let both = "SELECT short_description = 'both' FROM incident WHERE number = 'INC0012345'";
    world.until(both).await;
    one.until(both).await;
}

/// Where the mark cannot be read nobody knows whether this is a copy: what may be another one's is left alone, and polls go
/// on at their own pace.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_listened_to_while_a_copy_cannot_be_told_from_its_original() {
    let world = capture_incidents(world_on(Box::leak(Box::new(Cluster::start(""))), "queue").await).await;
    let before = world.db.value::<String>("SELECT subscription FROM servicenow.stat_capture").await;
    let queue = format!("u_servicenow_fdw_{before}");
    world.stop_worker().await;
    let mark = world.cluster.data().join("servicenow_fdw/pgsql_tmp_mark");
    let aside = mark.with_file_name("aside");
    std::fs::rename(&mark, &aside).expect("there is one");
    std::fs::create_dir(&mark).expect("nothing is there");
    world.db.run("SELECT servicenow.start_worker()").await;
    until_state(&world, "failed").await;
    let why = world.db.value::<String>("SELECT capture_error FROM servicenow.sync_status").await;
    let unknown = "could not tell whether the data directory is a copy of another one: ";
    assert!(why.starts_with(unknown), "{why}");
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "polled")]).expect("it is there");
    world.until("SELECT short_description = 'polled' FROM incident WHERE number = 'INC0012345'").await;
    let told = world.sim.edit().find(&queue, "").expect("a table");
    assert_eq!(told.len(), 1, "the event stays");
    for call in ["install_capture('acme')", "uninstall_capture('acme')"] {
        let error = world.db.error(&format!("SELECT servicenow.{call}")).await;
        assert_eq!(error.code().code(), "58030");
        assert!(error.message().starts_with(unknown), "{error:?}");
    }
    assert_eq!(rules(&world, &format!("servicenow_fdw {before}")).len(), 1);
    std::fs::remove_dir(&mark).expect("it is ours");
    std::fs::rename(&aside, &mark).expect("it is ours");
    until_state(&world, "active").await;
    until(|| world.sim.edit().find(&queue, "").expect("a table").is_empty()).await;
    assert_eq!(world.db.value::<String>("SELECT subscription FROM servicenow.stat_capture").await, before);
}
