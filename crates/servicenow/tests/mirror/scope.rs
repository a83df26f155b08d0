//! Mirrors of a part of a table: a record that stops matching the query leaves, one that begins to match comes in.

use servicenow::sync::store::Position;

use crate::{TASK_FIELDS, World, assert_same, fill, poll};

/// Queries in every form, and edits that move records in and out.
const QUERIES: &[&str] = &[
    "active=true",
    "state=1^ORstate=2",
    "state=2^NQstate=3",
    "active=true^state!=3^ORimpact=1",
    "short_descriptionLIKEmoved",
    "assigned_to.name=Gurney Halleck",
    "stateIN1,2^short_descriptionISNOTEMPTY",
];

#[tokio::test]
async fn only_what_matches_is_read() {
    for query in QUERIES {
        let world = World::new("incident", TASK_FIELDS).await.in_pages_of(5).matching(query);
        world.filled().await;
        assert_same(&world.stored(), &world.truth_where(query));
    }
}

#[tokio::test]
async fn records_come_in_and_leave_as_they_begin_and_stop_to_match() {
    for query in QUERIES {
        let world = World::new("incident", TASK_FIELDS).await.in_pages_of(5).matching(query);
        let mut mirror = world.filled().await;
        let edit = world.sim.edit().without_workflow();
        for (which, fields) in [
            ("state=1", ("state", "3")),
            ("state=3", ("active", "false")),
            ("state=2", ("assigned_to", "")),
            ("state=3^impact=1", ("state", "2")),
            ("number=INC0012345", ("short_description", "moved")),
            ("number=INC0012345", ("state", "1")),
            ("short_description=moved", ("short_description", "gone")),
            ("active=false", ("active", "true")),
        ] {
            edit.update_where("incident", which, &[fields]).expect("a query");
            poll(&mut mirror).await;
            assert_same(&world.stored(), &world.truth_where(query));
        }
        world.sim.edit().delete_where("incident", "state=2").expect("a query");
        world.read_deletes().await;
        assert_same(&world.stored(), &world.truth_where(query));
    }
}

#[tokio::test]
async fn a_record_that_stopped_matching_while_somebody_is_writing_it_leaves_when_they_are_done() {
    let world = World::new("incident", TASK_FIELDS).await.matching("state=2");
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.store.hold(&id);
    world.sim.edit().update("incident", &id, &[("state", "3")]).expect("it is there");
    for _ in 0..3 {
        world.sim.clock().advance(std::time::Duration::from_secs(100));
        poll(&mut mirror).await;
        assert!(world.stored().contains_key(&id));
    }
    world.store.let_go();
    poll(&mut mirror).await;
    assert_same(&world.stored(), &world.truth_where("state=2"));
}

#[tokio::test]
async fn what_stopped_matching_while_the_table_was_filled_leaves() {
    let world = World::new("incident", TASK_FIELDS).await.in_pages_of(3).matching("active=true");
    world.read_deletes().await;
    let ids: Vec<String> = world.truth_where("active=true").into_keys().collect();
    let mut mirror = world.mirror();
    let edit = world.sim.edit().without_workflow();
    let filled = fill::meanwhile(fill(&mut mirror), |n| {
        let active = if n % 3 == 0 { "true" } else { "false" };
        edit.update("incident", &ids[n * 7 % ids.len()], &[("active", active)]).expect("it is there");
    });
    filled.await.expect("it is filled");
    poll(&mut mirror).await;
    assert_same(&world.stored(), &world.truth_where("active=true"));
}

#[tokio::test]
async fn another_query_is_filled_over_the_old_rows() {
    let world = World::new("incident", TASK_FIELDS).await.matching("active=true");
    world.filled().await;
    let world = world.matching("active=false^ORstate=2");
    world.store.with(|m| m.position = Position::Start { refill: true });
    fill(&mut world.mirror()).await.expect("it is filled");
    assert_same(&world.stored(), &world.truth_where("active=false^ORstate=2"));
}
