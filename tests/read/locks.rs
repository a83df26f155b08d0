//! Row locks taken by reads: on the cache's rows, seen by everybody who reads the foreign table.

use std::time::Duration;

use world::{Session, World};

use crate::with_copies;

const KNOWN: &str = "number = 'INC0012345'";

/// Waits until a session waits for a lock.
async fn until_somebody_waits(world: &World) {
    world
        .until("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')")
        .await;
}

async fn code(session: &Session, sql: &str) -> String {
    match session.client().batch_execute(sql).await {
        Ok(()) => "00000".to_owned(),
        Err(e) => e.as_db_error().expect("an error of the server").code().code().to_owned(),
    }
}

/// For each pair of strengths whether they get along, as the manual says of local tables.
#[tokio::test(flavor = "multi_thread")]
async fn every_strength_conflicts_with_those_it_conflicts_with_on_a_local_table() {
    let world = with_copies().await;
    let other = world.session().await;
    let strengths = ["KEY SHARE", "SHARE", "NO KEY UPDATE", "UPDATE"];
    for held in strengths {
        for wanted in strengths {
            let mut outcomes = Vec::new();
            for schema in crate::SCHEMAS {
                let lock =
                    |strength| format!("SELECT number FROM {schema}.incident WHERE {KNOWN} FOR {strength}");
                world.db.run(&format!("BEGIN; {}", lock(held))).await;
                let nowait = code(&other, &format!("{} NOWAIT", lock(wanted))).await;
                let skipped = other.rows(&format!("{} SKIP LOCKED", lock(wanted))).await.len();
                other.run("SET lock_timeout = '20ms'").await;
                let waited = code(&other, &lock(wanted)).await;
                outcomes.push((nowait, skipped, waited));
                world.db.run("COMMIT").await;
            }
            assert_eq!(outcomes[0], outcomes[1], "{held} held, {wanted} wanted");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_reach_through_joins_subqueries_and_views() {
    let world = with_copies().await;
    let other = world.session().await;
    world.db.run("CREATE VIEW view AS SELECT * FROM incident WHERE priority > 0").await;
    for (query, locks_incident, locks_person) in [
        ("SELECT FROM incident i JOIN person p ON p.sys_id = i.caller_id FOR UPDATE OF i", true, false),
        ("SELECT FROM incident i JOIN person p ON p.sys_id = i.caller_id FOR UPDATE OF p", false, true),
        ("SELECT FROM incident i JOIN person p ON p.sys_id = i.caller_id FOR UPDATE", true, true),
        ("SELECT FROM (SELECT * FROM incident) i FOR UPDATE", true, false),
        ("SELECT FROM view FOR UPDATE", true, false),
        ("SELECT FROM incident WHERE caller_id IN (SELECT sys_id FROM person) FOR UPDATE", true, false),
    ] {
        world.db.run(&format!("BEGIN; {query}")).await;
        for (table, is_locked) in [("incident", locks_incident), ("person", locks_person)] {
            let all = other.value::<i64>(&format!("SELECT count(*) FROM {table}")).await;
            let free = other.rows(&format!("SELECT FROM {table} FOR UPDATE SKIP LOCKED")).await.len() as i64;
            assert_eq!(free < all, is_locked, "{table} by {query}: {free} of {all}");
        }
        world.db.run("COMMIT").await;
    }
}

/// READ COMMITTED looks again at what it has waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_changed_while_it_was_waited_for_is_looked_at_again() {
    let world = with_copies().await;
    for (change, found) in [("state = 6", 1), ("state = 7", 0)] {
        world.db.run("UPDATE servicenow_cache.incident SET state = 2 WHERE number = 'INC0012345'").await;
        let other = world.session().await;
        world.db.run(&format!("BEGIN; UPDATE servicenow_cache.incident SET {change} WHERE {KNOWN}")).await;
        let waiting = tokio::spawn(async move {
            other
                .rows(&format!("SELECT state FROM incident WHERE {KNOWN} AND state IN (2, 6) FOR UPDATE"))
                .await
                .len()
        });
        until_somebody_waits(&world).await;
        world.db.run("COMMIT").await;
        assert_eq!(waiting.await.expect("it ends"), found, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeatable_read_and_serializable_refuse_what_has_changed() {
    let world = with_copies().await;
    let other = world.session().await;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        other.run(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM incident")).await;
        world
            .db
            .run(&format!(
                "UPDATE servicenow_cache.incident SET reopen_count = reopen_count + 1 WHERE {KNOWN}"
            ))
            .await;
        let error = other.error(&format!("SELECT FROM incident WHERE {KNOWN} FOR UPDATE")).await;
        assert_eq!(error.code().code(), "40001", "{level}");
        other.run("ROLLBACK").await;
    }
}

/// Two that write what the other has read cannot both have come first.
#[tokio::test(flavor = "multi_thread")]
async fn serializable_transactions_notice_what_they_have_read_of_each_other() {
    let world = with_copies().await;
    let (one, two) = (world.session().await, world.session().await);
    world.db.run("CREATE TABLE note (n bigint)").await;
    for way in ["", "AND tableoid > 0"] {
        for session in [&one, &two] {
            session
                .run(&format!(
                    "BEGIN ISOLATION LEVEL SERIALIZABLE;
                     INSERT INTO note SELECT sum(reopen_count) FROM incident WHERE priority < 4 {way}"
                ))
                .await;
        }
        let touch = |number| {
            format!(
                "UPDATE servicenow_cache.incident SET reopen_count = reopen_count + 1 WHERE number = '{number}'"
            )
        };
        let mut codes = vec![
            code(&one, &touch("INC0012345")).await,
            code(&two, &touch("INC0010002")).await,
            code(&one, "COMMIT").await,
            code(&two, "COMMIT").await,
        ];
        codes.retain(|code| code == "40001");
        assert!(!codes.is_empty(), "one of them is refused {way}");
        for session in [&one, &two] {
            session.run("ROLLBACK").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_relations_are_locked_while_a_query_runs_and_the_cache_counts_its_scans() {
    let world = with_copies().await;
    let other = world.session().await;
    other.run("SELECT 1 FROM incident LIMIT 0").await;
    for way in ["", "WHERE tableoid > 0"] {
        other.run(&format!("BEGIN; SELECT count(*) FROM incident {way}")).await;
        let locked = "SELECT count(DISTINCT relation) FROM pg_locks
                      WHERE relation IN ('incident'::regclass, 'servicenow_cache.incident'::regclass)
                        AND mode = 'AccessShareLock' AND granted";
        assert_eq!(world.db.value::<i64>(locked).await, 2, "{way}");
        let error =
            world.db.error("SET lock_timeout = '50ms'; ALTER FOREIGN TABLE incident ADD COLUMN x text").await;
        assert_eq!(error.code().code(), "55P03");
        other.run("COMMIT").await;
    }
    world
        .until("SELECT seq_scan > 0 AND seq_tup_read >= 50 FROM pg_stat_user_tables WHERE relid = 'servicenow_cache.incident'::regclass")
        .await;
}

/// A DBA may rename a cache; who reads it meanwhile finds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_renamed_while_it_is_read_is_found() {
    let world = with_copies().await;
    let renamer = world.session().await;
    let renames = tokio::spawn(async move {
        for n in 0..300 {
            let (from, to) = if n % 2 == 0 { ("incident", "other") } else { ("other", "incident") };
            renamer.run(&format!("ALTER TABLE servicenow_cache.{from} RENAME TO {to}")).await;
        }
    });
    let mut readers = Vec::new();
    for way in ["", " WHERE tableoid > 0"] {
        let reader = world.session().await;
        let renames_go_on = renames.abort_handle();
        readers.push(tokio::spawn(async move {
            while !renames_go_on.is_finished() {
                assert_eq!(reader.value::<i64>(&format!("SELECT count(*) FROM incident{way}")).await, 50);
            }
        }));
    }
    for reader in readers {
        reader.await.expect("every read finds it");
    }
    renames.await.expect("every rename goes through");
}

/// While the worker changes rows, a reader sees one state: that of its snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_one_state_whatever_the_worker_does() {
    let world = World::new().await;
    world
        .db
        .run("CREATE FOREIGN TABLE incident (sys_id text, number text, reopen_count bigint) SERVER acme")
        .await;
    world.sync("incident").await;
    let reader = world.session().await;
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    let state = "SELECT md5(string_agg(i::text, ',' ORDER BY sys_id)) FROM incident i";
    let before = reader.value::<String>(state).await;
    for n in 0..5 {
        world.sim.edit().update_where("incident", "", &[("reopen_count", &n.to_string())]).expect("a query");
        world.sim.edit().insert("incident", &[("short_description", "new")]).expect("a record");
        world.sync("incident").await;
        assert_eq!(reader.value::<String>(state).await, before);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    reader.run("COMMIT").await;
    assert_ne!(reader.value::<String>(state).await, before);
}
