//! The log of changes, and what listeners are told.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio_postgres::{AsyncMessage, NoTls};
use world::World;

use crate::INCIDENT;

/// What the log says about a record, oldest first: operation, source, and what changed.
async fn log(world: &World, sys_id: &str) -> Vec<(String, String, Json)> {
    let rows = world
        .db
        .rows(&format!(
            "SELECT op, source, changed FROM servicenow._sync_cdc WHERE sys_id = '{sys_id}' ORDER BY seq"
        ))
        .await;
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_logged_once_with_what_was_before_and_after() {
    let world = World::new().await;
    world
        .db
        .run(
            "CREATE FOREIGN TABLE incident (
                 sys_id text, number text, short_description text, state text OPTIONS (show 'label'),
                 state_value bigint OPTIONS (field 'state'), opened_at timestamptz, active boolean,
                 sys_updated_on timestamptz, sys_updated_by text) SERVER acme",
        )
        .await;
    world.sync("incident").await;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM servicenow._sync_cdc").await, 0, "the first fill");
    let id = world.find("incident", "number=INC0012345");
    let by_somebody = world.sim.edit().as_user("admin");
    by_somebody.update("incident", &id, &[("short_description", "\"ä\"")]).expect("it is there");
    world.sync("incident").await;
    let before = format!(
        "SELECT changed -> 'short_description' ->> 'before' FROM servicenow._sync_cdc WHERE sys_id = '{id}'"
    );
    let before = world.db.value::<String>(&before).await;
    let entries = log(&world, &id).await;
    assert_eq!(entries.len(), 1, "{entries:?}");
    let (op, source, changed) = &entries[0];
    assert_eq!((op.as_str(), source.as_str()), ("update", "poll"));
    assert_eq!(changed["short_description"], json!({"before": before, "after": "\"ä\""}));
    let mut names: Vec<&String> = changed.as_object().expect("an object").keys().collect();
    names.retain(|name| !name.starts_with("sys_updated"));
    assert_eq!(names, ["short_description"], "the others stayed as they were");
    let stamped = format!(
        "SELECT c.sys_updated_on = i.sys_updated_on AND c.sys_updated_by = 'admin' AND c.server = 'acme'
                AND c.foreign_table = 'incident'::regclass
                AND (c.changed -> 'sys_updated_on' ->> 'after')::timestamptz = i.sys_updated_on
         FROM servicenow._sync_cdc c JOIN incident i USING (sys_id) WHERE sys_id = '{id}'"
    );
    assert!(world.db.value::<bool>(&stamped).await);

    // A write of ours is logged as such, and its echo is no change.
    world.db.run(&format!("UPDATE incident SET state = 'On Hold' WHERE sys_id = '{id}'")).await;
    world.sync("incident").await;
    world.sync("incident").await;
    let entries = log(&world, &id).await;
    assert_eq!(entries.len(), 2, "{entries:?}");
    assert_eq!(entries[1].1, "write");
    assert_eq!(entries[1].2["state"]["after"], json!("On Hold"));
    assert_eq!(entries[1].2["state_value"]["after"], json!(3));

    let new = world.sim.edit().insert("incident", &[("short_description", "new")]).expect("a record");
    world.sync("incident").await;
    world.sim.edit().delete("incident", &new).expect("it is there");
    world.until(&format!("SELECT count(*) = 0 FROM incident WHERE sys_id = '{new}'")).await;
    let entries = log(&world, &new).await;
    let ops: Vec<&str> = entries.iter().map(|(op, ..)| op.as_str()).collect();
    assert_eq!(ops, ["insert", "delete"]);
    assert_eq!(entries[0].2["short_description"], json!({"before": null, "after": "new"}));
    assert_eq!(entries[1].2["short_description"], json!({"before": "new", "after": null}));
    assert_eq!(entries[1].2["active"]["before"], json!(true));

    // Reading everything again finds nothing that has changed.
    let all = "SELECT count(*) FROM servicenow._sync_cdc";
    let count = world.db.value::<i64>(all).await;
    world.db.run("SELECT servicenow.resync('incident')").await;
    world.sync("incident").await;
    assert_eq!(world.db.value::<i64>(all).await, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_write_are_logged_and_rolled_back_with_their_transaction() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.db.run("INSERT INTO incident (short_description) VALUES ('mine')").await;
    world.db.run("DELETE FROM incident WHERE short_description = 'mine'").await;
    let ops = "SELECT string_agg(op || ' ' || source, ', ' ORDER BY seq) FROM servicenow._sync_cdc";
    assert_eq!(world.db.value::<String>(ops).await, "insert write, delete write");
    world.db.run("BEGIN; UPDATE incident SET reopen_count = 77 WHERE number = 'INC0012345'; ROLLBACK").await;
    let id = world.find("incident", "number=INC0012345");
    world.until(&format!("SELECT reopen_count = 77 FROM incident WHERE sys_id = '{id}'")).await;
    let sources: Vec<String> = log(&world, &id).await.into_iter().map(|(_, source, _)| source).collect();
    assert_eq!(sources, ["poll"], "the worker has found what the instance had accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_can_be_switched_off_is_forgotten_in_time_and_goes_with_its_table() {
    let world = World::new().await;
    world
        .db
        .run("CREATE FOREIGN TABLE incident (sys_id text, state bigint) SERVER acme OPTIONS (cdc 'false')")
        .await;
    world.sync("incident").await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("state", "2")]).expect("it is there");
    world.until(&format!("SELECT state = 2 FROM incident WHERE sys_id = '{id}'")).await;
    assert_eq!(log(&world, &id).await, []);
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (SET cdc 'true')").await;
    world.sync("incident").await;
    world.db.run(&format!("UPDATE incident SET state = 3 WHERE sys_id = '{id}'")).await;
    assert_eq!(log(&world, &id).await.len(), 1);
    let somebody = world.session_as("somebody").await;
    assert_eq!(somebody.error("TABLE servicenow._sync_cdc").await.code().code(), "42501");
    world.db.run("UPDATE servicenow._sync_cdc SET at = now() - interval '8 days'").await;
    world.until("SELECT count(*) = 0 FROM servicenow._sync_cdc").await;
    world
        .db
        .run(&format!("UPDATE incident SET state = 1 WHERE sys_id = '{id}'; DROP FOREIGN TABLE incident"))
        .await;
    assert_eq!(log(&world, &id).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_are_told_of_beginnings_ends_failures_and_recoveries() {
    let world = World::new().await;
    let (listener, mut connection) =
        world.cluster.config(&world.database).connect(NoTls).await.expect("a session");
    let heard: Arc<Mutex<Vec<Json>>> = Arc::default();
    let ears = heard.clone();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(n) = message {
                ears.lock().expect("no panic").push(serde_json::from_str(n.payload()).expect("JSON"));
            }
        }
    });
    listener.batch_execute("LISTEN servicenow_sync").await.expect("a channel");
    let wait_for = async |event: &str| {
        for _ in 0..3_000 {
            if let Some(found) = heard.lock().expect("no panic").iter().find(|n| n["event"] == *event) {
                return found.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{event} was not heard: {:?}", heard.lock().expect("no panic"));
    };
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let started = wait_for("backfill_started").await;
    assert_eq!((&started["server"], &started["foreign_table"]), (&json!("acme"), &json!("public.incident")));
    let rows = world.db.value::<i64>("SELECT count(*) FROM incident").await;
    assert_eq!(wait_for("backfill_completed").await["rows"], json!(rows));
    world.sim.edit().set_client_secret("fdw-client", "another").expect("a client");
    world.sim.edit().expire_tokens(true);
    let failed = wait_for("sync_failed").await;
    assert!(failed["error"].as_str().is_some_and(|e| e.contains("login")), "{failed}");
    world.sim.edit().set_client_secret("fdw-client", "fdw-client-secret").expect("a client");
    wait_for("sync_recovered").await;
    world.sim.edit().add_column("incident", "u_new", "New", "string").expect("a column");
    let changed = wait_for("schema_changed").await;
    assert_eq!(changed["added"], json!(["u_new"]));
}

/// What becomes of another class leaves one table as it arrives in the other, and also where only the first one is mirrored.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_another_class_changes_tables() {
    let world = World::new().await;
    for table in ["incident", "problem"] {
        let columns = "sys_id text, number text, short_description text";
        world.db.run(&format!("CREATE FOREIGN TABLE {table} ({columns}) SERVER acme")).await;
        world.sync(table).await;
    }
    for class in ["problem", "change_request"] {
        let id = world.db.value::<String>("SELECT min(sys_id) FROM incident").await;
        let gone = format!("SELECT NOT EXISTS (SELECT FROM incident WHERE sys_id = '{id}')");
        world.sim.edit().update("incident", &id, &[("sys_class_name", class)]).expect("it is there");
        if class == "problem" {
            world.until(&format!("SELECT EXISTS (SELECT FROM problem WHERE sys_id = '{id}')")).await;
        }
        world.until(&gone).await;
        let source =
            format!("SELECT source FROM servicenow._sync_cdc WHERE sys_id = '{id}' AND op = 'delete'");
        assert_eq!(world.db.value::<String>(&source).await, "poll");
    }
    for table in ["incident", "problem"] {
        world.until_like_the_instance(table, &["number", "short_description"]).await;
    }
}
