//! Following: what changes over there arrives, whatever versions and clocks say.

use std::time::Duration;

use chrono::TimeDelta;
use world::World;

use crate::{COLUMNS, INCIDENT, lists};

/// A world with a filled table.
async fn followed() -> World {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_changed_after_the_clock_was_set_back_is_kept_as_it_is_now() {
    let world = followed().await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "before")]).expect("it is there");
    world.until("SELECT short_description = 'before' FROM incident WHERE number = 'INC0012345'").await;
    world.sim.clock().step(TimeDelta::hours(-1));
    world.sim.edit().update("incident", &id, &[("short_description", "after")]).expect("it is there");
    world.until("SELECT short_description = 'after' FROM incident WHERE number = 'INC0012345'").await;
    world.until("SELECT count(*) = 0 FROM servicenow.recheck").await;
}

/// The new record counts its changes from nought.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_made_anew_takes_the_place_of_the_old_one() {
    let world = followed().await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.clock().hold(true);
    world.sim.edit().update("incident", &id, &[("short_description", "the old one")]).expect("it is there");
    world.until("SELECT short_description = 'the old one' FROM incident WHERE number = 'INC0012345'").await;
    world.sim.edit().delete("incident", &id).expect("it is there");
    let new = [("sys_id", id.as_str()), ("short_description", "the new one"), ("number", "INC0012345")];
    world.sim.edit().insert("incident", &new).expect("a record");
    world.sim.clock().hold(false);
    world.until("SELECT short_description = 'the new one' FROM incident WHERE number = 'INC0012345'").await;
}

/// What a user has just written is not taken back by what the worker read before.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_always_reads_its_own_writes() {
    let world = followed().await;
    world.sim.set(|s| s.jitter_ms = 30);
    let other = world.sim.edit();
    for n in 0..40i64 {
        world.db.run(&format!("UPDATE incident SET reopen_count = {n} WHERE number = 'INC0012345'")).await;
        other
            .update_where("incident", "priority=3", &[("short_description", &n.to_string())])
            .expect("a query");
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let read = "SELECT reopen_count FROM incident WHERE number = 'INC0012345'";
            assert_eq!(world.db.value::<i64>(read).await, n);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_changes_within_a_second_all_arrive() {
    let world = followed().await;
    world.sim.clock().hold(true);
    for n in 0..2_500 {
        world.sim.edit().insert("incident", &[("short_description", &n.to_string())]).expect("a record");
    }
    world.sync("incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    world.sim.clock().advance(Duration::from_secs(1));
    world.sim.edit().update_where("incident", "", &[("short_description", "all")]).expect("a query");
    world.sim.edit().delete_where("incident", "numberENDSWITH1").expect("a query");
    world.sim.clock().hold(false);
    world.sync("incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    world.until("SELECT rows = (SELECT count(*) FROM incident) FROM servicenow.sync_status").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_stops_matching_the_query_leaves() {
    let world = World::new().await;
    world
        .db
        .run(
            "CREATE FOREIGN TABLE mine (sys_id text, number text, state bigint) SERVER acme
             OPTIONS (\"table\" 'incident', query 'active=true^state!=2')",
        )
        .await;
    world.sync("mine").await;
    let id = world
        .sim
        .edit()
        .insert("incident", &[("short_description", "new"), ("state", "1")])
        .expect("a record");
    world.until(&format!("SELECT count(*) = 1 FROM mine WHERE sys_id = '{id}'")).await;
    world.sim.edit().update("incident", &id, &[("state", "2")]).expect("it is there");
    world.until(&format!("SELECT count(*) = 0 FROM mine WHERE sys_id = '{id}'")).await;
    world.sim.edit().update("incident", &id, &[("state", "3")]).expect("it is there");
    world.until(&format!("SELECT count(*) = 1 FROM mine WHERE sys_id = '{id}' AND state = 3")).await;
}

/// A table is read through its class and through its parent's, each by a cache of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_changes_its_class_moves() {
    let world = World::new().await;
    world.import(&["incident", "problem"]).await;
    world.db.run("CREATE FOREIGN TABLE task (sys_id text, sys_class_name text) SERVER acme").await;
    world.sync("task").await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("sys_class_name", "problem")]).expect("it is there");
    world.until(&format!("SELECT sys_class_name = 'problem' FROM task WHERE sys_id = '{id}'")).await;
    world.until(&format!("SELECT count(*) = 1 FROM problem WHERE sys_id = '{id}'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sync_polls_at_once_however_long_the_interval_is() {
    let world = World::with(servicenow_sim::Dataset::Small, "").await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '1h')").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "changed")]).expect("it is there");
    let from = world.sim.requests().len();
    world.db.run("SELECT servicenow.sync('incident')").await;
    let text = "SELECT short_description FROM incident WHERE number = 'INC0012345'";
    assert_eq!(world.db.value::<String>(text).await, "changed");
    assert!(lists(&world, "incident", from).len() <= 2, "a poll, not a fill");
}

/// Rights to read deletions come late; what was deleted until then leaves nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn deletions_from_before_they_could_be_read_are_read() {
    use servicenow_sim::{Effect, Fault};
    let world = World::new().await;
    let forbidden = Fault::new(Effect::Status { status: 403, html: false }).table("sys_audit_delete");
    let fault = world.sim.fault(forbidden);
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.until("SELECT last_error LIKE '%sys_audit_delete%' FROM servicenow.sync_status").await;
    world.sim.edit().delete_where("incident", "numberENDSWITH2").expect("a query");
    world.sim.clock().advance(Duration::from_secs(86_400));
    world.sync("incident").await;
    world.sim.remove_fault(fault);
    world.until_like_the_instance("incident", COLUMNS).await;
    world.until("SELECT last_error IS NULL FROM servicenow.sync_status").await;
}
