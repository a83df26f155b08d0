//! The settings that ask for fresh or complete caches.

use std::time::{Duration, Instant};

use servicenow_sim::{Dataset, Effect, Fault};
use world::World;

/// Both ways of reading: in the place of the cache, and by a foreign scan.
const WAYS: [&str; 2] = ["SELECT count(*) FROM incident", "SELECT count(*) FROM incident WHERE tableoid > 0"];

/// A table whose fill does not get on, and how to let it.
async fn stuck() -> World {
    let world = World::with(Dataset::Small, "").await;
    world.sim.fault(Fault::new(Effect::Status { status: 503, html: true }).table("incident"));
    world.db.run("CREATE FOREIGN TABLE incident (sys_id text, number text) SERVER acme").await;
    world.until("SELECT last_error IS NOT NULL FROM servicenow.sync_status").await;
    world
}

async fn filled() -> World {
    let world = World::new().await;
    world
        .db
        .run("CREATE FOREIGN TABLE incident (sys_id text, number text, short_description text) SERVER acme")
        .await;
    world.sync("incident").await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_reads_warn_fail_wait_or_pass() {
    let world = stuck().await;
    for way in WAYS {
        world.db.run("RESET servicenow_fdw.incomplete_reads").await;
        let warned = world.cluster.log().matches("foreign table public.incident is not filled yet").count();
        assert_eq!(world.db.value::<i64>(way).await, 0);
        let log = world.cluster.log();
        assert!(log.matches("foreign table public.incident is not filled yet").count() > warned, "{way}");
        world.db.run("SET servicenow_fdw.incomplete_reads = allow").await;
        let warned = world.cluster.log().matches("is not filled yet").count();
        assert_eq!(world.db.value::<i64>(way).await, 0);
        assert_eq!(world.cluster.log().matches("is not filled yet").count(), warned, "{way}");
        world.db.run("SET servicenow_fdw.incomplete_reads = error").await;
        let error = world.db.error(way).await;
        assert_eq!(error.code().code(), "55000");
        assert!(error.hint().is_some_and(|hint| hint.contains("wait_for_sync")), "{:?}", error.hint());
        // Nothing is read, so nothing is refused.
        world.db.run(&format!("EXPLAIN {way}")).await;
        assert_eq!(world.db.error(&format!("EXPLAIN ANALYZE {way}")).await.code().code(), "55000");
    }
    world.db.run("SET servicenow_fdw.incomplete_reads = wait").await;
    let mut waiting = Vec::new();
    for way in WAYS {
        let session = world.session().await;
        session.run("SET servicenow_fdw.incomplete_reads = wait").await;
        waiting.push(tokio::spawn(async move { session.value::<i64>(way).await }));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(waiting.iter().all(|one| !one.is_finished()));
    world.sim.clear_faults();
    for one in waiting {
        assert_eq!(one.await.expect("it is answered"), 50);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_is_given_up_by_cancel_timeout_and_stop() {
    let world = stuck().await;
    world.db.run("SET servicenow_fdw.incomplete_reads = wait; SET statement_timeout = '200ms'").await;
    for way in WAYS {
        let began = Instant::now();
        assert_eq!(world.db.error(way).await.code().code(), "57014", "{way}");
        assert!(began.elapsed() < Duration::from_secs(2));
    }
    let session = world.session().await;
    session.run("SET servicenow_fdw.incomplete_reads = wait").await;
    let waiting = tokio::spawn(async move { session.error(WAYS[0]).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.db.run("RESET statement_timeout; SELECT servicenow.stop_worker()").await;
    let error = waiting.await.expect("it ends");
    assert_eq!(error.code().code(), "55000");
    assert!(error.hint().is_some_and(|hint| hint.contains("start_worker")), "{:?}", error.hint());
}

/// A waiting read holds a lock on the table, and the worker, if it has to begin anew, would queue behind whoever wants
/// a stronger one.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_read_gives_way_to_who_changes_the_table() {
    let world = stuck().await;
    for way in WAYS {
        let session = world.session().await;
        session.run("SET servicenow_fdw.incomplete_reads = wait").await;
        let waiting = tokio::spawn(async move { session.error(way).await });
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 'incident'::regclass)";
        world.until(waits).await;
        world.db.run("SET lock_timeout = '10s'; ALTER FOREIGN TABLE incident ADD COLUMN state bigint").await;
        let error = waiting.await.expect("it ends");
        assert_eq!(error.code().code(), "55000", "{}", error.message());
        assert!(error.message().contains("another session waits to change it"), "{}", error.message());
        world.db.run("ALTER FOREIGN TABLE incident DROP COLUMN state").await;
    }
}

/// Who may not read a table does not get to wait for it, nor to know how far it is.
#[tokio::test(flavor = "multi_thread")]
async fn rights_are_checked_before_anything_is_waited_for() {
    let world = stuck().await;
    let reader = world.session_as("reader").await;
    for what in ["wait", "error", "warn"] {
        reader
            .run(&format!("SET servicenow_fdw.incomplete_reads = {what}; SET statement_timeout = '5s'"))
            .await;
        for way in WAYS {
            assert_eq!(reader.error(way).await.code().code(), "42501", "{what}");
        }
    }
    reader.run("SET servicenow_fdw.max_staleness = '1ms'; SET servicenow_fdw.incomplete_reads = allow").await;
    for way in WAYS {
        assert_eq!(reader.error(way).await.code().code(), "42501");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_table_is_polled_before_it_is_read() {
    let world = filled().await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '1h')").await;
    world.sync("incident").await;
    let id = world.find("incident", "number=INC0012345");
    world.db.run("PREPARE kept AS SELECT short_description FROM incident WHERE number = 'INC0012345'").await;
    for (n, way) in [
        "EXECUTE kept",
        "SELECT short_description FROM incident WHERE number = 'INC0012345'",
        "SELECT short_description FROM incident WHERE number = 'INC0012345' AND tableoid > 0",
        "SELECT (SELECT max(short_description) FROM incident WHERE number = 'INC0012345')",
        "WITH i AS MATERIALIZED (SELECT * FROM incident) SELECT short_description FROM i WHERE number = 'INC0012345'",
    ]
    .into_iter()
    .enumerate()
    {
        let text = format!("change {n}");
        world.sim.edit().update("incident", &id, &[("short_description", &text)]).expect("it is there");
        world.db.run("RESET servicenow_fdw.max_staleness").await;
        assert_ne!(world.db.value::<String>(way).await, text, "without the setting it is as old as it is");
        world.db.run("SET servicenow_fdw.max_staleness = '500ms'").await;
        tokio::time::sleep(Duration::from_millis(550)).await;
        assert_eq!(world.db.value::<String>(way).await, text, "{way}");
    }
    // A client may give its portal a name.
    let mut session = world.session().await;
    session.run("PREPARE kept AS SELECT short_description FROM incident WHERE number = 'INC0012345'").await;
    session.run("SET servicenow_fdw.max_staleness = '500ms'").await;
    world.sim.edit().update("incident", &id, &[("short_description", "by portal")]).expect("it is there");
    tokio::time::sleep(Duration::from_millis(550)).await;
    let client = session.client_mut();
    let execute = client.prepare("EXECUTE kept").await.expect("a statement");
    let transaction = client.transaction().await.expect("a transaction");
    let portal = transaction.bind(&execute, &[]).await.expect("a portal");
    let rows = transaction.query_portal(&portal, 1).await.expect("its rows");
    assert_eq!(rows[0].get::<_, &str>(0), "by portal");
    transaction.commit().await.expect("nothing was changed");
    // Within the limit nothing is asked for.
    world.db.run("SET servicenow_fdw.max_staleness = '1h'").await;
    let before = world.sim.requests().len();
    world.db.run(WAYS[0]).await;
    assert_eq!(world.sim.requests().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_see_what_comes_is_refused_at_once() {
    let world = filled().await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '1h')").await;
    world.sync("incident").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.db.run("SET servicenow_fdw.max_staleness = '20ms'").await;
    for way in WAYS {
        world.db.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await;
        let error = world.db.error(way).await;
        assert_eq!(error.code().code(), "55000", "{}", error.message());
        assert!(error.hint().is_some_and(|hint| hint.contains("servicenow.sync()")), "{:?}", error.hint());
        world.db.run("ROLLBACK").await;
    }
}

/// What a transaction sees does not change; which tables there are does.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_since_the_snapshot_is_empty() {
    let world = World::new().await;
    world.db.run("CREATE TABLE note (n int)").await;
    for write in ["SELECT 1", "INSERT INTO note VALUES (1)"] {
        let session = world.session().await;
        session.run(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {write}")).await;
        world.db.run("CREATE FOREIGN TABLE incident (sys_id text, number text) SERVER acme").await;
        world.sync("incident").await;
        for way in WAYS {
            assert_eq!(session.value::<i64>(way).await, 0, "{write}");
        }
        session.run("COMMIT").await;
        assert_eq!(session.value::<i64>(WAYS[0]).await, 50);
        session.run("SELECT 1").await;
        world.db.run("DROP FOREIGN TABLE incident").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_table_of_an_instance_that_is_down_is_refused_in_time() {
    let world = filled().await;
    world.sim.fault(Fault::new(Effect::Status { status: 503, html: true }));
    world.until("SELECT last_error IS NOT NULL FROM servicenow.sync_status").await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    world.db.run("SET servicenow_fdw.max_staleness = '300ms'").await;
    for way in WAYS {
        let began = Instant::now();
        let error = world.db.error(way).await;
        assert_eq!(error.code().code(), "55000", "{}", error.message());
        assert!(
            error.message().contains("older than servicenow_fdw.max_staleness (300ms)"),
            "{}",
            error.message()
        );
        assert!(error.detail().is_some_and(|detail| detail.contains("503")), "{:?}", error.detail());
        assert!(began.elapsed() < Duration::from_secs(3));
    }
    world.db.run("RESET servicenow_fdw.max_staleness").await;
    assert_eq!(world.db.value::<i64>(WAYS[0]).await, 50, "reads go on");
}

/// A statement inside a function sees what its caller sees; a cursor what was there when it was opened.
#[tokio::test(flavor = "multi_thread")]
async fn cursors_and_functions_are_checked_too() {
    let world = filled().await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '1h')").await;
    world.sync("incident").await;
    world
        .db
        .run(
            "CREATE FUNCTION volatile() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM incident); END';
             CREATE FUNCTION stable() RETURNS bigint LANGUAGE plpgsql STABLE AS 'BEGIN RETURN (SELECT count(*) FROM incident); END';
             SET servicenow_fdw.max_staleness = '500ms'",
        )
        .await;
    world.sim.edit().insert("incident", &[("short_description", "new")]).expect("a record");
    tokio::time::sleep(Duration::from_millis(550)).await;
    assert_eq!(world.db.value::<i64>("SELECT volatile()").await, 51);
    world.sim.edit().insert("incident", &[("short_description", "new")]).expect("a record");
    tokio::time::sleep(Duration::from_millis(550)).await;
    let error = world.db.error("SELECT stable()").await;
    assert_eq!(error.code().code(), "55000");
    world.db.run("BEGIN; DECLARE c CURSOR FOR SELECT count(*) FROM incident").await;
    assert_eq!(world.db.value::<i64>("FETCH c").await, 52);
    world.db.run("COMMIT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_and_names_of_settings_are_checked() {
    let world = filled().await;
    for (statement, code) in [
        ("SET servicenow_fdw.max_staleness = 'soon'", "22023"),
        ("SET servicenow_fdw.max_staleness = '-1s'", "22023"),
        ("SET servicenow_fdw.incomplete_reads = 'perhaps'", "22023"),
        ("SET servicenow_fdw.colour = 'red'", "42602"),
    ] {
        assert_eq!(world.db.error(statement).await.code().code(), code, "{statement}");
    }
    world.db.run("SET servicenow_fdw.max_staleness = '1min'").await;
    assert_eq!(world.db.value::<String>("SHOW servicenow_fdw.max_staleness").await, "1min");
}
