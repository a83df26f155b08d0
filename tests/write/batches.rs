//! Statements on many rows: few calls, and the errors of each row.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use servicenow_sim::Dataset;
use world::World;

use crate::{KNOWN, incidents, world_with};

const COLUMNS: &[&str] = &["number", "short_description", "state_value=state", "impact_value=impact"];

/// Calls that may have changed something, each batch counted once.
pub fn calls(world: &World) -> usize {
    let is_call =
        |r: &&servicenow_sim::LoggedRequest| !r.in_batch && r.method != "GET" && r.endpoint != "token";
    world.sim.requests().iter().filter(is_call).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_rows_take_few_calls() {
    let world = World::with(Dataset::Incidents(1_500), "").await;
    world.import(&["incident"]).await;
    for (statement, rows) in [
        (
            "INSERT INTO incident (short_description) SELECT 'many ' || n FROM generate_series(1, 1000) n",
            1_000,
        ),
        (
            "UPDATE incident SET description = 'd ' || short_description WHERE short_description LIKE 'many %'",
            1_000,
        ),
        ("DELETE FROM incident WHERE short_description LIKE 'many %'", 1_000),
    ] {
        let before = calls(&world);
        let count = world.db.client().execute(statement, &[]).await.expect(statement);
        assert_eq!(count, rows, "{statement}");
        let made = calls(&world) - before;
        assert!(made <= 60, "{statement}: {made} calls");
        world.until_like_the_instance("incident", COLUMNS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_refused_row_is_named_with_how_many_were_accepted() {
    let world = incidents().await;
    let refused: String =
        world.db.value("SELECT sys_id FROM incident ORDER BY number DESC OFFSET 3 LIMIT 1").await;
    let statement = format!(
        "UPDATE incident SET short_description = 'x', state = CASE sys_id WHEN '{refused}' THEN 'Resolved' ELSE state END,
                close_code = NULL, close_notes = NULL
         WHERE state IN ('New', 'In Progress', 'On Hold') OR sys_id = '{refused}'"
    );
    let error = world.db.error(&statement).await;
    assert_eq!(error.code().code(), "23502", "{}", error.message());
    let detail = error.detail().unwrap_or_default();
    assert!(detail.contains(&format!("record \"{refused}\"")), "{detail}");
    assert!(detail.contains("records of this statement had been updated in ServiceNow"), "{detail}");
    world.until_like_the_instance("incident", COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_triggers_see_what_the_statement_has_written() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE TABLE seen (event text, rows bigint);
             CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 INSERT INTO seen SELECT TG_OP, count(*) FROM incident WHERE short_description = 'seen';
                 RETURN NULL;
             END $$;
             CREATE TRIGGER see AFTER INSERT OR UPDATE OR DELETE ON incident FOR EACH STATEMENT EXECUTE FUNCTION see()",
        )
        .await;
    world.db.run("INSERT INTO incident (short_description) SELECT 'seen' FROM generate_series(1, 3)").await;
    world.db.run("UPDATE incident SET short_description = 'seen' WHERE state = 'Canceled'").await;
    world.db.run("DELETE FROM incident WHERE short_description = 'seen'").await;
    let sink = world.db.client().copy_in("COPY incident (short_description) FROM STDIN").await;
    let mut sink = std::pin::pin!(sink.expect("COPY begins"));
    sink.send(Bytes::from_static(b"seen\nseen\n")).await.expect("the data are taken");
    assert_eq!(sink.finish().await.expect("COPY ends"), 2);
    let seen: Vec<(String, i64)> = world
        .db
        .rows("SELECT event, rows FROM seen")
        .await
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let canceled = seen[1].1;
    assert_eq!(
        seen,
        [
            ("INSERT".to_owned(), 3),
            ("UPDATE".to_owned(), canceled),
            ("DELETE".to_owned(), 0),
            ("INSERT".to_owned(), 2)
        ]
    );
    assert!(canceled > 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_conflict_do_nothing_counts_what_it_has_inserted() {
    let world = incidents().await;
    let there: String = world.db.value("SELECT sys_id FROM incident LIMIT 1").await;
    // Nobody here knows yet that this one exists.
    world.stop_worker().await;
    let unknown = world.sim.edit().insert("incident", &[("short_description", "theirs")]).expect("a record");
    let statement = format!(
        "INSERT INTO incident (sys_id, short_description)
         SELECT id, 'ours' FROM unnest(ARRAY['{there}', '{unknown}', md5('1'), md5('2'), md5('1')]) id ON CONFLICT DO NOTHING"
    );
    assert_eq!(world.db.client().execute(&statement, &[]).await.expect("it succeeds"), 2);
    assert_eq!(world.sim.edit().find("incident", "short_description=ours").expect("a query").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_do_not_move_between_partitions_of_which_one_is_foreign() {
    let world = world_with(&["incident"]).await;
    world
        .db
        .run(
            "CREATE TABLE every (sys_id text, place text, short_description text) PARTITION BY LIST (place);
             CREATE TABLE here PARTITION OF every FOR VALUES IN ('here');
             CREATE FOREIGN TABLE there (sys_id text, place text OPTIONS (field 'category'), short_description text)
                 SERVER acme OPTIONS (table 'incident', query 'category=software');
             ALTER TABLE every ATTACH PARTITION there FOR VALUES IN ('software');
             INSERT INTO every VALUES ('a', 'here', 'x')",
        )
        .await;
    world.sync("there").await;
    let sent = world.writes().len();
    for statement in [
        "UPDATE every SET place = 'software' WHERE place = 'here'",
        "UPDATE every SET place = 'here' WHERE place = 'software'",
    ] {
        let error = world.db.error(statement).await;
        assert_eq!(error.code().code(), "0A000", "{statement}: {}", error.message());
        assert!(error.hint().is_some());
    }
    assert_eq!(world.writes().len(), sent);
}

async fn copy_one(world: &World, table: &str) -> u64 {
    let sink = world.db.client().copy_in(&format!("COPY {table} (short_description) FROM STDIN")).await;
    let mut sink = std::pin::pin!(sink.expect("COPY begins"));
    sink.send(Bytes::from_static(b"copied\n")).await.expect("the data are taken");
    sink.finish().await.expect("COPY ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_fires_the_triggers_of_a_cache() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE TABLE seen (id text);
             CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN INSERT INTO public.seen VALUES (NEW.sys_id); RETURN NULL; END $$;
             CREATE TRIGGER see AFTER INSERT ON servicenow_cache.incident FOR EACH ROW EXECUTE FUNCTION see()",
        )
        .await;
    world.stop_worker().await;
    assert_eq!(copy_one(&world, "incident").await, 1);
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM seen").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_triggers_of_a_partitioned_table_see_what_copy_has_written() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE TABLE every (sys_id text, short_description text) PARTITION BY LIST (sys_id);
             CREATE FOREIGN TABLE there (sys_id text, short_description text)
                 SERVER acme OPTIONS (table 'incident');
             ALTER TABLE every ATTACH PARTITION there DEFAULT;
             CREATE TABLE seen (rows bigint);
             CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 INSERT INTO seen SELECT count(*) FROM every WHERE short_description = 'copied';
                 RETURN NULL;
             END $$;
             CREATE TRIGGER see AFTER INSERT ON every FOR EACH STATEMENT EXECUTE FUNCTION see()",
        )
        .await;
    world.sync("there").await;
    assert_eq!(copy_one(&world, "every").await, 1);
    assert_eq!(world.db.value::<i64>("SELECT rows FROM seen").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_accepted_rows_is_exact_although_batches_go_side_by_side() {
    let world = world_with(&["x_acme_app_thing"]).await;
    world.stop_worker().await;
    let error = world
        .db
        .error(
            "INSERT INTO x_acme_app_thing (name, code)
             SELECT CASE n WHEN 777 THEN 'forbidden' ELSE 'many ' || n END, 'M-' || n FROM generate_series(1, 1200) n",
        )
        .await;
    assert_eq!(error.code().code(), "38000", "{}", error.message());
    let there = world.sim.edit().find("x_acme_app_thing", "codeSTARTSWITHM-").expect("a query").len();
    let count = format!("; {there} records of this statement had been inserted in ServiceNow.");
    assert!(
        there >= 500 && error.detail().is_some_and(|d| d.ends_with(&count)),
        "{there}: {:?}",
        error.detail()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_of_a_session_share_its_connections() {
    let world = incidents().await;
    world.stop_worker().await;
    let session = world.session().await;
    let write = async |n: usize| {
        session.run(&format!("UPDATE incident SET short_description = 'text {n}' WHERE {KNOWN}")).await;
    };
    write(0).await;
    let before = world.sim.connections();
    for n in 1..10 {
        write(n).await;
    }
    assert_eq!(world.sim.connections(), before);
    let many =
        "UPDATE incident SET description = description || '.', short_description = short_description || '.'";
    session.run(many).await;
    let after_many = world.sim.connections();
    session.run(many).await;
    assert_eq!(world.sim.connections(), after_many);
}

/// Somebody who waits is told how far it is every five seconds, whatever else wakes the session.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_statement_says_how_far_it_is() {
    let world = World::with(Dataset::Small, ", max_concurrency '1'").await;
    world.import(&["x_acme_app_thing"]).await;
    world.stop_worker().await;
    let session = world.session().await;
    let pid: i32 = session.value("SELECT pg_backend_pid()").await;
    let calls_before = calls(&world);
    world.sim.set(|s| (s.batch_api, s.latency_ms) = (false, 60));
    let insert = tokio::spawn(async move {
        session
            .run(
                "SET log_min_messages = 'notice';
                 INSERT INTO x_acme_app_thing (name, code) SELECT n, 'S-' || n FROM generate_series(1, 100) n",
            )
            .await;
    });
    let soon = || tokio::time::sleep(Duration::from_millis(20));
    while calls(&world) < calls_before + 60 {
        soon().await;
    }
    world.sim.set(|s| s.latency_ms = 1_000); // nearly four seconds are over; it does not come to its end meanwhile
    world.db.run(&format!("SELECT pg_log_backend_memory_contexts({pid})")).await;
    let woken = Instant::now();
    let said = || {
        let log = world.cluster.log();
        let mut lines = log.lines().filter_map(|line| line.split_once("NOTICE:  public.x_acme_app_thing: "));
        lines.find_map(|(_, text)| text.strip_suffix(" records written so far")?.parse::<u32>().ok())
    };
    let count = loop {
        match said() {
            Some(count) => break count,
            None => soon().await,
        }
        assert!(woken.elapsed() < Duration::from_secs(5), "being woken has put it off");
    };
    world.sim.set(|s| s.latency_ms = 0);
    insert.await.expect("it succeeds");
    assert!((20..100).contains(&count), "{count}");
}
