//! What an instance, a disk, a clock and other people do to a worker. Afterwards the cache is like the instance.

use std::process::Command;
use std::time::{Duration, Instant};

use servicenow_sim::{Availability, Cut, Dataset, Effect, Fault, RowQuota};
use world::cluster::Cluster;
use world::{PATIENCE, World, connect};

use crate::{COLUMNS, INCIDENT, MANY, lists, until_under_way};

/// What nobody has to wait for longer.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A table that is being filled, on the shared cluster.
async fn under_way() -> World {
    let world = World::with(Dataset::Incidents(MANY), ", page_size '100', max_concurrency '4'").await;
    world.sim.set(|s| s.latency_ms = 30);
    world.db.run(INCIDENT).await;
    until_under_way(&world).await;
    world
}

/// Waits until the table is like the instance's, and every row is counted once.
async fn converges(world: &World) {
    world.sync("incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    world
        .until("SELECT rows = (SELECT count(*) FROM incident) AND rows_hidden = 0 AND last_error IS NULL FROM servicenow.sync_status")
        .await;
}

/// How many fills have begun since the `from`th request: each counts the table first.
fn fills(world: &World, from: usize) -> usize {
    let is_count = |r: &&servicenow_sim::LoggedRequest| {
        r.parameter("sysparm_limit") == Some("1") && r.parameter("sysparm_query").is_none_or(str::is_empty)
    };
    lists(world, "incident", from).iter().filter(is_count).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_filled_and_followed_through_everything_that_goes_wrong_at_once() {
    let world = World::with(Dataset::Incidents(MANY), ", page_size '100', reconcile_interval '2s'").await;
    world.sim.set(|s| {
        s.jitter_ms = 20;
        s.commit_delay_ms = 300;
        s.row_quota = Some(RowQuota { rows: 90, cut: Cut::Error });
        s.concurrency = Some(servicenow_sim::Concurrency { limit: 2, queue: 4 });
    });
    for effect in [
        Effect::Discard,
        Effect::RateLimited { headers: true, retry_after: Some(1), json: true },
        Effect::RateLimited { headers: false, retry_after: None, json: false },
        Effect::Status { status: 500, html: false },
        Effect::Status { status: 503, html: true },
        Effect::NullBody,
        Effect::EmptyBody,
        Effect::Hibernating,
        Effect::LoginPage,
        Effect::Cut { rows: 3, cut: Cut::Error },
        Effect::Cut { rows: 3, cut: Cut::DanglingComma },
        Effect::Cut { rows: 3, cut: Cut::Broken },
        Effect::ResetBefore,
        Effect::ResetAfter,
        Effect::Truncate { bytes: 700 },
        Effect::ExpireTokens,
        Effect::Unauthorized,
        Effect::Cancelled,
    ] {
        world.sim.fault(Fault::new(effect).path("/api/now/").probability(0.01));
    }
    world.db.run(INCIDENT).await;
    world.until("SELECT rows_filled > 300 FROM servicenow.sync_table").await;
    let edit = world.sim.edit();
    edit.update_where("incident", "numberENDSWITH3", &[("short_description", "one")]).expect("a query");
    edit.delete_where("incident", "numberENDSWITH77").expect("a query");
    world.until("SELECT rows_filled > 1000 FROM servicenow.sync_table").await;
    edit.update_where("incident", "numberENDSWITH5", &[("short_description", "two")]).expect("a query");
    edit.insert("incident", &[("short_description", "new")]).expect("a record");
    world.sim.clear_faults();
    world.sim.set(|s| *s = servicenow_sim::Switches::default());
    converges(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_goes_on_when_the_instance_comes_back() {
    for down in [Availability::Down, Availability::Unreachable, Availability::Hibernating] {
        let world = under_way().await;
        let from = world.sim.requests().len();
        world.sim.set(|s| s.availability = down);
        world.until("SELECT last_error IS NOT NULL FROM servicenow.sync_status").await;
        let there = world.db.value::<i64>("SELECT count(*) FROM incident").await;
        assert!(there >= 500, "what is there is readable");
        world
            .sim
            .edit()
            .update_where("incident", "numberENDSWITH3", &[("short_description", "x")])
            .expect("a query");
        world.sim.set(|s| (s.availability, s.latency_ms) = (Availability::Up, 0));
        world.db.run("SELECT servicenow.sync('incident')").await;
        converges(&world).await;
        assert_eq!(fills(&world, from), 0, "it did not begin anew");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_end_in_the_middle_of_a_fill_do_not_disturb() {
    let world = under_way().await;
    let from = world.sim.requests().len();
    let expire = world.sim.fault(Fault::new(Effect::ExpireTokens).table("incident"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.sim.remove_fault(expire);
    for refresh in [true, false] {
        world.sim.edit().expire_tokens(refresh);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    converges(&world).await;
    assert_eq!(fills(&world, from), 0, "it did not begin anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_changed_in_the_middle_of_a_fill_do_not_begin_it_anew() {
    let world = under_way().await;
    let from = world.sim.requests().len();
    for option in [
        "SET page_size '50'",
        "SET max_concurrency '2'",
        "ADD scrub_interval '1d'",
        "ADD request_timeout '20s'",
    ] {
        world.db.run(&format!("ALTER SERVER acme OPTIONS ({option})")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD poll_interval '100ms', ADD cdc 'false')").await;
    converges(&world).await;
    assert_eq!(fills(&world, from), 0, "it did not begin anew");
    // What is mirrored is another matter: only what matches stays.
    world.sim.set(|s| s.latency_ms = 30);
    world.db.run("SELECT servicenow.resync('incident')").await;
    until_under_way(&world).await;
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD query 'state=7')").await;
    world.sim.set(|s| s.latency_ms = 0);
    world.sync("incident").await;
    let closed = world.sim.edit().find("incident", "state=7").expect("a query").len() as i64;
    world.until(&format!("SELECT count(*) = {closed} AND bool_and(state = 7) FROM incident")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_jump_hide_nothing() {
    let world = World::with(Dataset::Small, ", reconcile_interval '1s'").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    for (round, hours) in [5i64, -3, 40, -50, 24 * 400, -24 * 300].into_iter().enumerate() {
        let edit = world.sim.edit();
        let made = edit.insert("incident", &[("short_description", "before")]).expect("a record");
        world.sim.clock().step(chrono::TimeDelta::hours(hours));
        let text = format!("round {round}");
        edit.insert("incident", &[("short_description", &text)]).expect("a record");
        edit.update("incident", &made, &[("short_description", &text)]).expect("it is there");
        let id = world.find("incident", "number=INC0012345");
        edit.update("incident", &id, &[("short_description", &text)]).expect("it is there");
        let gone = edit
            .find("incident", "short_description=before^ORnumber=INC0010002^ORDERBYsys_id")
            .expect("a query");
        if let Some(gone) = gone.first() {
            edit.delete("incident", gone).expect("it is there");
        }
        world.until_like_the_instance("incident", COLUMNS).await;
    }
}

/// A world whose worker and a session stand in calls that are never answered.
async fn hanging() -> (World, tokio::task::JoinHandle<bool>) {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start("")));
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up("").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let hang = world.sim.fault(Fault::new(Effect::Hang));
    let session = world.session().await;
    let statement = tokio::spawn(async move {
        let import =
            "CREATE SCHEMA s; IMPORT FOREIGN SCHEMA servicenow LIMIT TO (problem) FROM SERVER acme INTO s";
        session.client().batch_execute(import).await.is_ok()
    });
    let began = Instant::now();
    while world.sim.fault_count(hang) < 3 {
        assert!(began.elapsed() < PATIENCE, "poll, deletions and session hang");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (world, statement)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_shutdown_does_not_wait_for_calls_that_hang() {
    let (world, statement) = hanging().await;
    let began = Instant::now();
    world.cluster.control(&["-m", "fast", "stop"]);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert!(!statement.await.expect("it ends"));
    assert!(!world.cluster.log().contains("PANIC"));
}

#[tokio::test(flavor = "multi_thread")]
async fn drop_extension_and_drop_database_do_not_wait_for_calls_that_hang() {
    let (world, statement) = hanging().await;
    // The session's own locks are its own affair.
    statement.abort();
    world
        .db
        .run("SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE query LIKE '%IMPORT FOREIGN SCHEMA%' AND pid <> pg_backend_pid()")
        .await;
    let began = Instant::now();
    world.db.run("DROP EXTENSION servicenow_fdw CASCADE").await;
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    world.sim.clear_faults();
    world.set_up("").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    let hang = world.sim.fault(Fault::new(Effect::Hang));
    while world.sim.fault_count(hang) == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let World { sim: _sim, cluster, database, db } = world;
    drop(db);
    let admin = connect(cluster, "postgres").await;
    let began = Instant::now();
    admin.run(&format!("DROP DATABASE {database} WITH (FORCE)")).await;
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_wait_end_at_their_timeout_and_leave_nothing_behind() {
    let world = under_way().await;
    world.sim.set(|s| s.latency_ms = 5_000);
    let session = world.session().await;
    session.run("SET statement_timeout = '300ms'").await;
    for statement in [
        "SELECT servicenow.wait_for_sync('incident')",
        "SELECT servicenow.sync('incident'); SELECT servicenow.wait_for_sync('incident')",
        "SELECT servicenow.verify('incident')",
        "SET servicenow_fdw.incomplete_reads = 'wait'; SELECT count(*) FROM incident",
        "IMPORT FOREIGN SCHEMA servicenow LIMIT TO (problem) FROM SERVER acme INTO public",
        "UPDATE incident SET reopen_count = 5 WHERE number = (SELECT min(number) FROM incident)",
    ] {
        let began = Instant::now();
        let error = session.error(statement).await;
        assert!(matches!(error.code().code(), "57014" | "08007"), "{statement}: {error}");
        assert!(began.elapsed() < AT_ONCE, "{statement}: {:?}", began.elapsed());
        assert_eq!(session.value::<i32>("SELECT 1").await, 1, "the session goes on");
    }
    let left = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE locktype = 'advisory' AND datname = current_database()
         AND pid <> ALL (SELECT pid FROM pg_stat_activity WHERE backend_type = 'servicenow_fdw worker')";
    assert_eq!(world.db.value::<i64>(left).await, 0, "no sign is left up");
    world.sim.set(|s| s.latency_ms = 0);
    converges(&world).await;
}

/// Whoever adds many rows may wait for what the worker has added meanwhile, which must not wait for each of theirs.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_somebody_is_adding_are_not_waited_for() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let adder = world.session().await;
    adder
        .run("BEGIN; INSERT INTO incident (short_description) SELECT 'being added' FROM generate_series(1, 40)")
        .await;
    let id = world.sim.edit().insert("incident", &[("short_description", "new")]).expect("a record");
    let began = Instant::now();
    world.until(&format!("SELECT count(*) = 1 FROM incident WHERE sys_id = '{id}'")).await;
    assert!(began.elapsed() < 2 * AT_ONCE, "{:?}", began.elapsed());
    adder.run("COMMIT").await;
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// Rows that a user has locked are passed over and brought in afterwards; the others arrive.
#[tokio::test(flavor = "multi_thread")]
async fn locks_held_for_long_delay_nothing_but_what_they_lock() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world
        .db
        .run("CREATE FOREIGN TABLE problem (sys_id text, number text, short_description text) SERVER acme")
        .await;
    world.sync("incident").await;
    world.sync("problem").await;
    let holder = world.session().await;
    holder.run("BEGIN; SELECT FROM incident WHERE number IN ('INC0012345', 'INC0010002') FOR UPDATE").await;
    let edit = world.sim.edit();
    edit.update("incident", &world.find("incident", "number=INC0012345"), &[("short_description", "x")])
        .expect("it is there");
    edit.delete("incident", &world.find("incident", "number=INC0010002")).expect("it is there");
    for round in 0..10 {
        let id = edit.insert("incident", &[("short_description", "new")]).expect("a record");
        let began = Instant::now();
        world.until(&format!("SELECT count(*) = 1 FROM incident WHERE sys_id = '{id}'")).await;
        assert!(began.elapsed() < AT_ONCE, "round {round}: {:?}", began.elapsed());
    }
    holder.run("COMMIT").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    // A table that is locked as a whole is said, and delays no other.
    holder.run("BEGIN; LOCK TABLE servicenow_cache.incident IN ACCESS EXCLUSIVE MODE").await;
    edit.update_where("incident", "numberENDSWITH3", &[("short_description", "y")]).expect("a query");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(12) {
        let id = edit.insert("problem", &[("short_description", "new")]).expect("a record");
        let began = Instant::now();
        world.until(&format!("SELECT count(*) = 1 FROM problem WHERE sys_id = '{id}'")).await;
        assert!(began.elapsed() < AT_ONCE * 2, "{:?}", began.elapsed());
    }
    world
        .until("SELECT last_error LIKE 'somebody holds a lock%' FROM servicenow.sync_status WHERE foreign_table = 'incident'::regclass")
        .await;
    holder.run("COMMIT").await;
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// Thousands of rows that are being written do not keep the others from their turn, and have it themselves without waiting
/// for poll after poll.
#[tokio::test(flavor = "multi_thread")]
async fn very_many_locked_rows_delay_no_other_and_are_settled_soon() {
    let world = World::with(Dataset::Incidents(5_300), "").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let locked = "SELECT sys_id FROM incident ORDER BY sys_id LIMIT 5200";
    let free = "SELECT sys_id FROM incident ORDER BY sys_id OFFSET 5200";
    let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
    for row in world.db.rows(free).await {
        edit.update("incident", row.get(0), &[("short_description", "x")]).expect("it is there");
    }
    let holder = world.session().await;
    holder.run(&format!("BEGIN; {locked} FOR UPDATE")).await;
    let ask = "INSERT INTO servicenow.recheck (foreign_table, sys_id) SELECT 'incident'::regclass, sys_id FROM incident";
    world.db.run(ask).await;
    let is_settled =
        format!("SELECT bool_and(short_description = 'x') FROM incident WHERE sys_id IN ({free})");
    world.until(&is_settled).await;
    holder.run("COMMIT").await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '1h')").await;
    world.until("SELECT count(*) < 1000 FROM servicenow.recheck").await;
}

/// A file system that may be small, gone with the test.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// `None` for who may not mount any.
    fn new(directory: std::path::PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&directory).expect("a directory");
        Self::mount("size=100m", &directory).then_some(Self(directory))
    }

    fn mount(options: &str, directory: &std::path::Path) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(directory);
        mount.output().is_ok_and(|output| output.status.success())
    }

    fn resize(&self, bytes: i64) {
        assert!(Self::mount(&format!("remount,size={bytes}"), &self.0), "it can have any size");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _left_mounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_the_fill_goes_on_when_there_is_room() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start("")));
    let Some(disk) = SmallDisk::new(cluster.socket().join("disk")) else {
        eprintln!("NOT TESTED: mounting a small file system takes root");
        return;
    };
    let space = disk.0.join("space");
    std::fs::create_dir(&space).expect("a directory");
    let owner = std::fs::metadata(cluster.socket()).expect("it is there");
    let (uid, gid) =
        (std::os::unix::fs::MetadataExt::uid(&owner), std::os::unix::fs::MetadataExt::gid(&owner));
    std::os::unix::fs::chown(&space, Some(uid), Some(gid)).expect("root may do this");
    let mut world = World::on(cluster, Dataset::Incidents(MANY)).await;
    world.db = connect(cluster, "postgres").await;
    world.db.run(&format!("CREATE TABLESPACE small LOCATION '{}'", space.display())).await;
    world
        .until(&format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = '{}'", world.database))
        .await;
    world.db.run(&format!("ALTER DATABASE {} SET TABLESPACE small", world.database)).await;
    world.db = connect(cluster, &world.database).await;
    world.set_up(", page_size '100'").await;
    world.db.run("IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO public").await;
    world.until("SELECT rows_filled > 0 FROM servicenow.sync_table").await;
    disk.resize(world.db.value::<i64>("SELECT pg_tablespace_size('small')").await + (1 << 20));
    world.until("SELECT last_error LIKE 'could not extend file%' FROM servicenow.sync_status").await;
    assert!(world.db.value::<i64>("SELECT count(*) FROM incident").await > 0, "what is there is readable");
    let from = world.sim.requests().len();
    disk.resize(300 << 20);
    world.db.run("SELECT servicenow.sync('incident')").await;
    world.sync("incident").await;
    world.until_like_the_instance("incident", &["number", "short_description", "state_value=state"]).await;
    assert_eq!(fills(&world, from), 0, "it did not begin anew");
    assert!(!world.cluster.log().contains("PANIC"));
    assert_eq!(world.db.value::<i64>("SELECT count(*) - count(DISTINCT sys_id) FROM incident").await, 0);
    drop(world);
    cluster.control(&["-m", "immediate", "stop"]);
}

/// Postgres itself ends when it cannot write its log. Started again with room for it, it has what was committed, and the
/// fill goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_for_the_servers_log_loses_nothing() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start("")));
    let Some(disk) = SmallDisk::new(cluster.socket().join("disk")) else {
        eprintln!("NOT TESTED: mounting a small file system takes root");
        return;
    };
    cluster.control(&["-m", "fast", "stop"]);
    let (here, there) = (cluster.data().join("pg_wal"), disk.0.join("pg_wal"));
    let copied = Command::new("cp").arg("-a").arg(&here).arg(&there).status();
    assert!(copied.is_ok_and(|status| status.success()), "there is room");
    std::fs::remove_dir_all(&here).expect("it is there");
    std::os::unix::fs::symlink(&there, &here).expect("its name is free");
    cluster.control(&["start"]);
    let mut world = World::on(cluster, Dataset::Incidents(MANY)).await;
    world.set_up(", page_size '100', max_concurrency '2'").await;
    world.sim.set(|s| s.latency_ms = 30);
    world.db.run(INCIDENT).await;
    until_under_way(&world).await;
    let (filled, from) =
        (world.db.value::<i64>("SELECT count(*) FROM incident").await, world.sim.requests().len());
    // Somebody else takes the room.
    let other = world.session().await;
    let ballast = "CREATE TABLE ballast AS SELECT repeat(n::text, 100) FROM generate_series(1, 1000000) n";
    assert!(other.client().batch_execute(ballast).await.is_err(), "there is no room for it");
    let began = Instant::now();
    while !cluster.log().contains("PANIC") {
        assert!(began.elapsed() < PATIENCE, "the server ends");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(cluster.log().contains("No space left on device"));
    world
        .sim
        .edit()
        .update_where("incident", "numberENDSWITH3", &[("short_description", "meanwhile")])
        .expect("a query");
    disk.resize(1 << 30);
    cluster.control(&["-m", "immediate", "restart"]);
    world.db = connect(cluster, &world.database).await;
    assert!(
        world.db.value::<i64>("SELECT count(*) FROM incident").await >= filled,
        "what was there is there"
    );
    world.sim.set(|s| s.latency_ms = 0);
    converges(&world).await;
    assert_eq!(fills(&world, from), 0, "it did not begin anew");
    assert_eq!(world.db.value::<i64>("SELECT count(*) - count(DISTINCT sys_id) FROM incident").await, 0);
    drop(world);
    cluster.control(&["-m", "immediate", "stop"]);
}
