//! Transactions: aborts converge, sessions serialize, and the worker keeps out of the way.

use std::time::Duration;

use servicenow_sim::Dataset;
use world::World;
use world::cluster::Cluster;

use crate::{KNOWN, incidents, known};

const COLUMNS: &[&str] =
    &["number", "short_description", "state_value=state", "impact_value=impact", "reopen_count"];

/// Waits until a session of the world waits for a lock.
async fn until_somebody_waits(world: &World) {
    world
        .until(
            "SELECT count(*) > 0 FROM pg_stat_activity
             WHERE datname = current_database() AND backend_type = 'client backend' AND wait_event_type = 'Lock'",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rollback_the_cache_shows_what_the_instance_has() {
    let world = incidents().await;
    let gone: String = world.db.value("SELECT sys_id FROM incident WHERE state = 'Canceled' LIMIT 1").await;
    world
        .db
        .run(&format!(
            "BEGIN;
             UPDATE incident SET short_description = 'rolled back' WHERE {KNOWN};
             INSERT INTO incident (short_description) VALUES ('rolled back, too');
             DELETE FROM incident WHERE sys_id = '{gone}';
             ROLLBACK"
        ))
        .await;
    world.until_like_the_instance("incident", COLUMNS).await;
    assert_eq!(
        world
            .db
            .value::<i64>("SELECT count(*) FROM incident WHERE short_description LIKE 'rolled back%'")
            .await,
        2
    );
    assert_eq!(
        world.db.value::<i64>(&format!("SELECT count(*) FROM incident WHERE sys_id = '{gone}'")).await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rollback_to_a_savepoint_the_cache_shows_what_the_instance_has() {
    let world = incidents().await;
    world
        .db
        .run(&format!(
            "BEGIN;
             UPDATE incident SET impact_value = 3 WHERE {KNOWN};
             SAVEPOINT s;
             UPDATE incident SET short_description = 'rolled back' WHERE {KNOWN};
             INSERT INTO incident (short_description) VALUES ('rolled back, too');
             ROLLBACK TO s;
             INSERT INTO incident (short_description) VALUES ('kept');
             COMMIT"
        ))
        .await;
    world.until_like_the_instance("incident", COLUMNS).await;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident WHERE short_description IN ('kept', 'rolled back', 'rolled back, too')").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_catches_a_refusal_goes_on() {
    let world = incidents().await;
    world
        .db
        .run(
            "DO $$
             DECLARE caught text; n int;
             BEGIN
                 FOR n IN 1..3 LOOP
                     BEGIN
                         UPDATE incident SET description = 'attempt ' || n WHERE number = 'INC0012345';
                         UPDATE incident SET state = 'Resolved' WHERE number = 'INC0012345';
                     EXCEPTION WHEN not_null_violation THEN
                         GET STACKED DIAGNOSTICS caught = PG_EXCEPTION_DETAIL;
                     END;
                 END LOOP;
                 UPDATE incident SET short_description = caught WHERE number = 'INC0012345';
             END $$",
        )
        .await;
    let there = world.remote("incident", &known(&world), "short_description").expect("it is there");
    assert!(there.starts_with("Data Policy Exception"), "{there}");
    world.until_like_the_instance("incident", &["short_description", "description"]).await;
    assert_eq!(world.remote("incident", &known(&world), "description").as_deref(), Some("attempt 3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_transaction_refuses_before_any_call() {
    let world = incidents().await;
    for statement in [
        "INSERT INTO incident (short_description) VALUES ('x')",
        "UPDATE incident SET impact_value = 2",
        "DELETE FROM incident",
    ] {
        let error = world.db.error(&format!("BEGIN READ ONLY; {statement}")).await;
        assert_eq!(error.code().code(), "25006", "{}", error.message());
        world.db.run("ROLLBACK").await;
    }
    assert!(world.writes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_of_one_row_by_two_sessions_happen_one_after_the_other() {
    let world = incidents().await;
    let other = world.session().await;
    let step = format!("UPDATE incident SET reopen_count = reopen_count + 1 WHERE {KNOWN}");
    world.db.run(&format!("BEGIN; {step}")).await;
    let sent = world.writes().len();
    let waiting = tokio::spawn({
        let step = step.clone();
        async move { other.run(&step).await }
    });
    until_somebody_waits(&world).await;
    assert_eq!(world.writes().len(), sent, "the second one sends nothing before the first has ended");
    world.db.run("COMMIT").await;
    waiting.await.expect("the second update succeeds");
    assert_eq!(world.remote("incident", &known(&world), "reopen_count").as_deref(), Some("2"));
    assert_eq!(world.db.value::<i64>(&format!("SELECT reopen_count FROM incident WHERE {KNOWN}")).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_no_longer_matches_after_the_wait_is_left_alone() {
    let world = incidents().await;
    let other = world.session().await;
    world.db.run(&format!("BEGIN; UPDATE incident SET state = 'On Hold' WHERE {KNOWN}")).await;
    let sent = world.writes().len();
    let waiting = tokio::spawn(async move {
        let update =
            "UPDATE incident SET impact_value = 3 WHERE number = 'INC0012345' AND state = 'In Progress'";
        other.client().execute(update, &[]).await
    });
    until_somebody_waits(&world).await;
    world.db.run("COMMIT").await;
    assert_eq!(waiting.await.expect("it ends").expect("it succeeds"), 0);
    assert_eq!(world.writes().len(), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeatable_read_refuses_a_row_that_somebody_has_changed() {
    let world = incidents().await;
    let other = world.session().await;
    for statement in [
        format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}"),
        format!("DELETE FROM incident WHERE {KNOWN}"),
    ] {
        other.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM incident").await;
        world.db.run(&format!("UPDATE incident SET reopen_count = reopen_count + 1 WHERE {KNOWN}")).await;
        let sent = world.writes().len();
        let error = other.error(&statement).await;
        assert_eq!(error.code().code(), "40001", "{}", error.message());
        assert_eq!(world.writes().len(), sent);
        other.run("ROLLBACK").await;
    }
}

/// The worker meets the row locked and comes back to it, however long that takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_made_in_the_instance_while_a_transaction_holds_the_row_arrives_afterwards() {
    let world = incidents().await;
    let id = known(&world);
    world.db.run(&format!("BEGIN; SELECT * FROM incident WHERE {KNOWN} FOR UPDATE")).await;
    world.sim.edit().update("incident", &id, &[("short_description", "meanwhile")]).expect("it is there");
    let marker = world.sim.edit().insert("incident", &[("short_description", "marker 1")]).expect("a record");
    let observer = world.session().await;
    world.until(&format!("SELECT count(*) = 1 FROM incident WHERE sys_id = '{marker}'")).await;
    // The change lies far behind what polls read by now.
    world.sim.clock().advance(Duration::from_secs(600));
    let marker = world.sim.edit().insert("incident", &[("short_description", "marker 2")]).expect("a record");
    world.until(&format!("SELECT count(*) = 1 FROM incident WHERE sys_id = '{marker}'")).await;
    assert_ne!(
        observer.value::<String>(&format!("SELECT short_description FROM incident WHERE {KNOWN}")).await,
        "meanwhile"
    );
    world.db.run("COMMIT").await;
    world.until(&format!("SELECT short_description = 'meanwhile' FROM incident WHERE {KNOWN}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_deleted_in_the_instance_while_a_transaction_holds_the_row_leaves_afterwards() {
    let world = incidents().await;
    let id = known(&world);
    world.db.run(&format!("BEGIN; SELECT * FROM incident WHERE {KNOWN} FOR UPDATE")).await;
    world.sim.edit().delete("incident", &id).expect("it is there");
    until_deletions_are_read(&world).await;
    world.sim.clock().advance(Duration::from_secs(600));
    until_deletions_are_read(&world).await;
    world.db.run("COMMIT").await;
    world.until(&format!("SELECT count(*) = 0 FROM incident WHERE {KNOWN}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_is_rolled_back_late_leaves_no_row_behind() {
    let world = incidents().await;
    world.db.run(&format!("BEGIN; DELETE FROM incident WHERE {KNOWN}")).await;
    until_deletions_are_read(&world).await;
    world.sim.clock().advance(Duration::from_secs(600));
    until_deletions_are_read(&world).await;
    world.db.run("ROLLBACK").await;
    world.until(&format!("SELECT count(*) = 0 FROM incident WHERE {KNOWN}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_that_is_rolled_back_late_arrives_afterwards() {
    let world = incidents().await;
    // Else a poll may find the record before the statement has its answer, and then it is the worker who adds the row.
    world.stop_worker().await;
    world.db.run("BEGIN; INSERT INTO incident (short_description) VALUES ('late')").await;
    let observer = world.session().await;
    observer.run("SELECT servicenow.start_worker()").await;
    for n in 0..2 {
        world.sim.clock().advance(Duration::from_secs(600));
        let text = format!("marker {n}");
        world.sim.edit().insert("incident", &[("short_description", &text)]).expect("a record");
        let arrived = format!("SELECT count(*) = 1 FROM incident WHERE short_description = '{text}'");
        world.until(&arrived).await;
    }
    assert_eq!(
        observer.value::<i64>("SELECT count(*) FROM incident WHERE short_description = 'late'").await,
        0
    );
    world.db.run("ROLLBACK").await;
    world.until("SELECT count(*) = 1 FROM incident WHERE short_description = 'late'").await;
}

/// Waits until the worker has read deletions from beginning to end, twice: the first reading may have begun before.
async fn until_deletions_are_read(world: &World) {
    for _ in 0..2 {
        let before = world.sim.requests().len();
        let began = std::time::Instant::now();
        while !world.sim.requests()[before..].iter().any(|r| r.table.as_deref() == Some("sys_audit_delete")) {
            assert!(began.elapsed() < world::PATIENCE, "deletions are read");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_and_the_worker_add_rows_side_by_side() {
    let world = incidents().await;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(world.session().await);
    }
    let tasks: Vec<_> = sessions
        .into_iter()
        .enumerate()
        .map(|(n, session)| {
            tokio::spawn(async move {
                for m in 0..15 {
                    session
                        .run(&format!(
                            "BEGIN;
                             INSERT INTO incident (short_description) VALUES ('crowd {n} {m} a'), ('crowd {n} {m} b');
                             UPDATE incident SET impact_value = 2 WHERE short_description = 'crowd {n} {m} b';
                             COMMIT"
                        ))
                        .await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("every statement succeeds");
    }
    assert_eq!(
        world.db.value::<i64>("SELECT count(*) FROM incident WHERE short_description LIKE 'crowd%'").await,
        120
    );
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// A poll brings the record between the look into the cache and the row's insertion.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_worker_adds_first_is_no_duplicate() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF current_setting('application_name') = 'slow' THEN PERFORM pg_advisory_xact_lock(7); END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER hold BEFORE INSERT ON servicenow_cache.incident
                 FOR EACH ROW EXECUTE FUNCTION hold();
             SELECT pg_advisory_lock(7)",
        )
        .await;
    let slow = world.session().await;
    let insert = tokio::spawn(async move {
        slow.run("SET application_name = 'slow'").await;
        let insert =
            "INSERT INTO incident (short_description) VALUES ('raced') RETURNING xmin::text || number";
        slow.value::<String>(insert).await
    });
    world.until("SELECT count(*) = 1 FROM incident WHERE short_description = 'raced'").await;
    world.db.run("SELECT pg_advisory_unlock(7)").await;
    let row = insert.await.expect("it is no duplicate");
    let stored = "SELECT xmin::text || number FROM incident WHERE short_description = 'raced'";
    assert_eq!(world.db.value::<String>(stored).await, row);
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// What a session has learned of the dictionary is its own until it ends.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_keeps_nobody_from_imports_and_writes() {
    let world = incidents().await;
    let other = world.session().await;
    world.db.run("CREATE SCHEMA a; CREATE SCHEMA b").await;
    let import = |schema| {
        format!("IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO {schema}")
    };
    world.db.run(&format!("BEGIN; {}", import("a"))).await;
    other.run("SET statement_timeout = '10s'; SET lock_timeout = '2s'").await;
    other.run(&import("b")).await;
    let error = other.error(&format!("UPDATE incident SET state = 'no such state' WHERE {KNOWN}")).await;
    assert_eq!(error.code().code(), "23514");
    world
        .db
        .run(&format!(
            "ROLLBACK; CREATE SERVER second FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url '{}')",
            world.sim.url()
        ))
        .await;
    world
        .db
        .run("BEGIN; CREATE FOREIGN TABLE a.one (sys_id text) SERVER second OPTIONS (\"table\" 'incident')")
        .await;
    other.run("CREATE FOREIGN TABLE b.two (sys_id text) SERVER second OPTIONS (\"table\" 'incident')").await;
    world.db.run("COMMIT").await;
}

/// A statement that is cancelled while its write is under way does not know what became of it, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_write_warns_that_its_outcome_is_unknown() {
    use servicenow_sim::{Effect, Fault};
    let world = incidents().await;
    for statement in [
        format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}"),
        "INSERT INTO incident (short_description) VALUES ('cancelled')".to_owned(),
        format!("DELETE FROM incident WHERE {KNOWN}"),
    ] {
        let method = statement.split(' ').next().map(|word| match word {
            "UPDATE" => "PATCH",
            "INSERT" => "POST",
            _ => "DELETE",
        });
        let hang = Fault::new(Effect::HangAfter).table("incident").method(method.expect("a word")).times(1);
        let fault = world.sim.fault(hang);
        let warned = world.cluster.log().matches("is unknown: it was interrupted").count();
        world.db.run("SET statement_timeout = '500ms'").await;
        let error = world.db.error(&statement).await;
        assert_eq!(error.code().code(), "57014", "{statement}");
        world.db.run("RESET statement_timeout").await;
        world.sim.remove_fault(fault);
        assert_eq!(
            world.cluster.log().matches("is unknown: it was interrupted").count(),
            warned + 1,
            "{statement}"
        );
        world.until_like_the_instance("incident", COLUMNS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_has_written_cannot_be_prepared() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start("max_prepared_transactions = 2")));
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up("").await;
    world.import(&["incident"]).await;
    let update = format!("UPDATE incident SET impact_value = 2 WHERE {KNOWN}");
    let error = world.db.error(&format!("BEGIN; {update}; PREPARE TRANSACTION 'p'")).await;
    assert_eq!(error.code().code(), "0A000", "{}", error.message());
    assert!(error.hint().is_some());
    world.db.run("BEGIN; SELECT count(*) FROM incident; PREPARE TRANSACTION 'p'").await;
    world.db.run("COMMIT PREPARED 'p'").await;
}

/// Makes the next reading of changes of incidents come in pieces, which takes some seconds; waits until it has begun.
async fn slow_page(world: &World) {
    use servicenow_sim::{Effect, Fault};
    let slow = Fault::new(Effect::Drip { bytes: 20, interval_ms: 100 });
    let fault = slow.method("GET").table("incident").path("sysparm_query=sys_updated_on").times(1);
    let fault = world.sim.fault(fault);
    let began = std::time::Instant::now();
    while world.sim.fault_count(fault) == 0 {
        assert!(began.elapsed() < world::PATIENCE, "nobody reads changes");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What the worker has read before a write, and puts into the cache after it, changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_read_before_a_write_does_not_take_it_back() {
    let world = incidents().await;
    let (id, made) = (known(&world), "feedfeedfeedfeedfeedfeedfeedfeed");
    let texts = [("kept", "INSERT"), ("changed", "UPDATE"), ("gone", "DELETE")];
    for (text, _) in texts {
        world.sim.edit().insert("incident", &[("short_description", text)]).expect("a record");
    }
    world.sim.edit().update("incident", &id, &[("short_description", "theirs")]).expect("it is there");
    world.until("SELECT count(*) = 4 FROM incident WHERE short_description IN ('kept', 'changed', 'gone', 'theirs')").await;
    slow_page(&world).await;
    world
        .db
        .run(&format!(
            "INSERT INTO incident (sys_id, short_description) VALUES ('{made}', 'ours');
             UPDATE incident SET short_description = 'ours' WHERE short_description IN ('theirs', 'changed');
             DELETE FROM incident WHERE short_description = 'gone'"
        ))
        .await;
    // The page is on its way for some seconds, and is in the cache when the marker is, which was made after it.
    let marker = world.sim.edit().insert("incident", &[("short_description", "marker")]).expect("a record");
    let arrived = format!("SELECT count(*) = 1 FROM incident WHERE sys_id = '{marker}'");
    let began = std::time::Instant::now();
    while !world.db.value::<bool>(&arrived).await {
        assert!(began.elapsed() < world::PATIENCE, "the marker arrives");
        let ours = "SELECT count(*) FROM incident WHERE short_description = 'ours'";
        assert_eq!(world.db.value::<i64>(ours).await, 3);
        let gone = "SELECT count(*) FROM incident WHERE short_description = 'gone'";
        assert_eq!(world.db.value::<i64>(gone).await, 0, "what was deleted does not come back");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// A statement on many rows waits for somebody else's before it sends the rows that come after it, and counts on the row as it
/// is then.
#[tokio::test(flavor = "multi_thread")]
async fn batches_of_two_sessions_on_the_same_rows_happen_one_after_the_other() {
    let world = incidents().await;
    let other = world.session().await;
    let step = "UPDATE incident SET reopen_count = coalesce(reopen_count, 0) + 1 WHERE state = 'Canceled'";
    let sum = "SELECT sum(reopen_count)::bigint FROM incident WHERE state = 'Canceled'";
    let count: i64 = world.db.value("SELECT count(*) FROM incident WHERE state = 'Canceled'").await;
    let before = world.db.value::<Option<i64>>(sum).await.unwrap_or_default();
    assert!(count > 2);
    world.db.run(&format!("BEGIN; {step}")).await;
    let sent = world.writes().len();
    let waiting = tokio::spawn(async move { other.client().execute(step, &[]).await });
    until_somebody_waits(&world).await;
    assert_eq!(world.writes().len(), sent);
    world.db.run("COMMIT").await;
    assert_eq!(waiting.await.expect("it ends").expect("it succeeds"), count.unsigned_abs());
    assert_eq!(world.db.value::<i64>(sum).await, before + 2 * count);
    world.until_like_the_instance("incident", COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_wait_for_the_commit_serialize_as_others_do() {
    let world = incidents().await;
    let other = world.session().await;
    for session in [&world.db, &other] {
        session.run("SET servicenow_fdw.push = 'commit'").await;
    }
    let step = format!("UPDATE incident SET reopen_count = coalesce(reopen_count, 0) + 1 WHERE {KNOWN}");
    let count = format!("SELECT coalesce(reopen_count, 0) FROM incident WHERE {KNOWN}");
    let before: i64 = world.db.value(&count).await;
    // The second one counts on what the first one has not sent yet.
    world.db.run(&format!("BEGIN; {step}")).await;
    let waiting = tokio::spawn({
        let step = step.clone();
        async move {
            other.run(&step).await;
            other
        }
    });
    until_somebody_waits(&world).await;
    assert!(world.writes().is_empty());
    world.db.run("COMMIT").await;
    let other = waiting.await.expect("the second update succeeds");
    assert_eq!(world.remote("incident", &known(&world), "reopen_count"), Some((before + 2).to_string()));
    // After a rollback it counts on what was before.
    world.db.run(&format!("BEGIN; {step}")).await;
    let waiting = tokio::spawn({
        let step = step.clone();
        async move {
            other.run(&step).await;
            other
        }
    });
    until_somebody_waits(&world).await;
    world.db.run("ROLLBACK").await;
    let other = waiting.await.expect("the second update succeeds");
    assert_eq!(world.remote("incident", &known(&world), "reopen_count"), Some((before + 3).to_string()));
    // Whoever keeps to what it saw at first does not overwrite it, and sends nothing.
    other.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM incident").await;
    world.db.run(&step).await;
    let sent = world.writes().len();
    assert_eq!(other.error(&step).await.code().code(), "40001");
    other.run("ROLLBACK").await;
    assert_eq!(world.writes().len(), sent);
    assert_eq!(world.db.value::<i64>(&count).await, before + 4);
    world.until_like_the_instance("incident", COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeatable_read_refuses_a_batch_before_the_first_row_that_somebody_has_changed() {
    let world = incidents().await;
    let other = world.session().await;
    let all = "UPDATE incident SET impact_value = 3 WHERE state = 'Canceled'";
    other.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM incident").await;
    world
        .db
        .run("UPDATE incident SET reopen_count = 7 WHERE sys_id = (SELECT max(sys_id) FROM incident WHERE state = 'Canceled')")
        .await;
    let error = other.error(all).await;
    assert_eq!(error.code().code(), "40001", "{}", error.message());
    other.run("ROLLBACK").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
}
