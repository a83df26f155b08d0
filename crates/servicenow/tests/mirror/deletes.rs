//! Deletions, as `sys_audit_delete` tells of them.

use std::collections::HashMap;
use std::time::Duration;

use chrono::TimeDelta;
use servicenow_sim::{Effect, Fault};

use crate::{TASK_FIELDS, World, poll};

#[tokio::test]
async fn deleted_records_leave() {
    let world = World::of_tasks().await;
    world.filled().await;
    world.sim.edit().delete_where("incident", "state=7").expect("a query");
    world.sim.edit().delete_where("change_request", "").expect("a query");
    world.read_deletes().await;
    world.assert_alike();
    world.sim.edit().delete_where("task", "").expect("a query");
    world.read_deletes().await;
    assert!(world.stored().is_empty());
}

#[tokio::test]
async fn thousands_of_deletions_within_one_second_are_all_read() {
    let world = World::new("cmn_cost_center", &["name"]).await;
    for n in 0..2_300 {
        world.sim.edit().insert("cmn_cost_center", &[("name", &n.to_string())]).expect("a record");
    }
    world.filled().await;
    world.sim.clock().hold(true);
    world.sim.edit().delete_where("cmn_cost_center", "nameLIKE1").expect("a query");
    world.read_deletes().await;
    world.assert_alike();
}

#[tokio::test]
async fn a_record_that_was_made_anew_stays() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.sim.edit().delete("incident", &id).expect("it is there");
    world
        .sim
        .edit()
        .insert("incident", &[("sys_id", &id), ("short_description", "again")])
        .expect("a record");
    world.read_deletes().await;
    poll(&mut mirror).await;
    assert_eq!(world.stored_description(&id).as_deref(), Some("again"));
    world.assert_alike();
}

/// The new record counts its changes from nought; within the same second its version looks older.
#[tokio::test]
async fn a_record_made_anew_within_the_second_of_its_last_change_is_kept_as_it_is_now() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.sim.clock().hold(true);
    world.describe(&id, "the old one");
    poll(&mut mirror).await;
    world.sim.edit().delete("incident", &id).expect("it is there");
    world
        .sim
        .edit()
        .insert("incident", &[("sys_id", &id), ("short_description", "the new one")])
        .expect("a record");
    world.sim.clock().advance(Duration::from_secs(2));
    world.read_deletes().await;
    poll(&mut mirror).await;
    assert_eq!(world.stored_description(&id).as_deref(), Some("the new one"));
}

/// Records of different tables may have the same `sys_id`; an entry is not believed by itself.
#[tokio::test]
async fn the_deletion_of_another_tables_record_of_the_same_identity_changes_nothing() {
    let world = World::of_tasks().await;
    world.filled().await;
    let id = world.find("number=INC0012345");
    world.sim.edit().insert("cmn_cost_center", &[("sys_id", &id)]).expect("a record");
    world.sim.edit().delete("cmn_cost_center", &id).expect("it is there");
    world.read_deletes().await;
    world.assert_alike();
}

#[tokio::test]
async fn a_deletion_that_becomes_visible_late_is_read() {
    let world = World::of_tasks().await;
    world.filled().await;
    let id = world.find("number=INC0012345");
    world.sim.set(|s| s.commit_delay_ms = 50_000);
    world.sim.edit().delete("incident", &id).expect("it is there");
    for _ in 0..7 {
        world.sim.clock().advance(Duration::from_secs(8));
        world.read_deletes().await;
    }
    assert!(!world.stored().contains_key(&id));
}

#[tokio::test]
async fn a_deletion_after_the_clock_was_set_back_is_read() {
    let world = World::of_tasks().await;
    world.filled().await;
    for back in [30, 61, 3_600, 86_400] {
        world.read_deletes().await;
        world.sim.clock().step(TimeDelta::seconds(-back));
        let id = world.truth().into_keys().next().expect("there are some");
        world.sim.edit().delete("task", &id).expect("it is there");
        world.read_deletes().await;
        world.read_deletes().await;
        assert!(!world.stored().contains_key(&id), "{back} seconds back");
    }
}

#[tokio::test]
async fn a_record_deleted_while_somebody_is_writing_it_leaves_when_they_are_done() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.store.hold(&id);
    world.sim.edit().delete("incident", &id).expect("it is there");
    for _ in 0..3 {
        world.sim.clock().advance(Duration::from_secs(100));
        world.read_deletes().await;
        poll(&mut mirror).await;
        assert!(world.stored().contains_key(&id));
    }
    world.store.let_go();
    poll(&mut mirror).await;
    world.assert_alike();
}

/// A poll puts a version in that was read before the deletion, between the look at the store and the drop.
#[tokio::test]
async fn a_record_deleted_while_a_poll_brings_its_last_change_leaves() {
    let world = World::of_tasks().await;
    world.filled().await;
    let id = world.find("number=INC0012345");
    world.sim.edit().delete("incident", &id).expect("it is there");
    let changed = id.clone();
    world.store.after_find(move |m| {
        let (version, _) = m.rows.get_mut(&changed).expect("it is there");
        version.mod_count = version.mod_count.map(|count| count + 1);
    });
    let deletes = world.deletes();
    deletes.read().await.expect("it is read");
    world.sim.clock().advance(Duration::from_secs(300)); // a server that is polled every five minutes
    deletes.read().await.expect("it is read");
    assert!(!world.stored().contains_key(&id));
}

/// The first reading fails for a while, as when a right is missing; what is deleted meanwhile must not be lost.
#[tokio::test]
async fn deletions_are_read_from_the_beginning_of_the_fill_though_reading_them_begins_late() {
    let world = World::of_tasks().await;
    let fault =
        world.sim.fault(Fault::new(Effect::Status { status: 403, html: false }).table("sys_audit_delete"));
    let deletes = world.deletes();
    assert!(deletes.read().await.is_err());
    let mut mirror = world.mirror();
    crate::fill(&mut mirror).await.expect("it is filled");
    let id = world.find("number=INC0012345");
    world.sim.edit().delete("incident", &id).expect("it is there");
    world.sim.clock().advance(Duration::from_secs(300));
    assert!(deletes.read().await.is_err());
    world.sim.remove_fault(fault);
    deletes.read().await.expect("it is read");
    deletes.read().await.expect("it is read");
    assert!(!world.stored().contains_key(&id));
}

#[tokio::test]
async fn a_reading_that_fails_is_repeated_as_a_whole() {
    let world = World::of_tasks().await;
    world.filled().await;
    world.sim.edit().delete_where("incident", "state=7").expect("a query");
    world.sim.fault(Fault::new(Effect::ResetBefore).table("sys_audit_delete").times(3));
    assert!(world.deletes().read().await.is_err());
    world.sim.clock().advance(Duration::from_secs(300));
    world.read_deletes().await;
    world.assert_alike();
}

/// A table that fails does not keep others from losing what was deleted.
#[tokio::test]
async fn what_cannot_be_looked_up_is_left_to_the_next_poll() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    world.sim.edit().delete_where("incident", "state=7").expect("a query");
    let fault = world.sim.fault(Fault::new(Effect::Status { status: 403, html: false }).table("task"));
    world.read_deletes().await;
    world.sim.remove_fault(fault);
    world.sim.clock().advance(Duration::from_secs(300));
    world.read_deletes().await;
    poll(&mut mirror).await;
    world.assert_alike();
}

#[tokio::test]
async fn a_reader_without_tables_has_nothing_to_do() {
    let world = World::of_tasks().await;
    world.sim.edit().delete_where("incident", "state=7").expect("a query");
    let deletes =
        servicenow::sync::deletes::Deletes::new(world.client.clone(), world.store.clone(), HashMap::new());
    deletes.read().await.expect("it is read");
}

/// A record that becomes one of another class leaves its table, which does not tell of it; the table of all classes does.
#[tokio::test]
async fn a_record_of_another_class_leaves_its_table() {
    let mut world = World::new("incident", TASK_FIELDS).await;
    world.spec.pace = Duration::from_secs(10).into();
    world.filled().await;
    let id = world.find("number=INC0012345");
    let since = world.sim.clock().now().timestamp();
    let mut moved = world.moved();
    moved.read(since).await.expect("a reading");
    world.sim.clock().advance(Duration::from_secs(5));
    world.sim.edit().update("incident", &id, &[("sys_class_name", "problem")]).expect("it is there");
    let is_lookup = |r: &servicenow_sim::LoggedRequest| {
        r.parameter("sysparm_query").is_some_and(|query| query.contains("sys_idIN"))
    };
    world.sim.clear_requests();
    moved.read(since).await.expect("a reading");
    assert_eq!(world.lists().iter().filter(|r| is_lookup(r)).count(), 0, "the next poll might bring it");
    world.sim.clock().advance(Duration::from_secs(40));
    moved.read(since).await.expect("a reading");
    assert!(!world.stored().contains_key(&id));
    world.assert_alike();
    world.sim.clear_requests();
    moved.read(since).await.expect("a reading");
    assert_eq!(world.sim.requests().len(), 1, "one call tells that nothing has");
}

/// What was deleted between that and the next reading is stamped before the one that went before.
#[tokio::test]
async fn deletions_after_the_instances_clock_was_set_back_are_read() {
    let world = World::of_tasks().await;
    world.filled().await;
    world.read_deletes().await;
    let clock = world.sim.clock();
    clock.step(TimeDelta::days(-1));
    world.sim.edit().delete_where("incident", "state=7").expect("a query");
    clock.advance(Duration::from_secs(300));
    world.read_deletes().await;
    world.read_deletes().await;
    world.assert_alike();
}
