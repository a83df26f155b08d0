//! Polls as the backstop, which go together with those of other tables.

use std::time::Duration;

use servicenow::client::table_api::List;
use servicenow::page::Layout;
use servicenow::query::Query;
use servicenow::sync::mirror::Mirror;
use servicenow::sync::pace::Brake;
use servicenow::value::TableName;
use servicenow_sim::{AclRule, Fault};

use crate::direct::Direct;
use crate::keeper::Keeper;
use crate::{INTEGRATION, World};

/// Polls once, at the same time as another table asks for something; gives back how many calls of its own that took.
async fn poll_along(world: &World, mirror: &mut Mirror<Direct, Keeper>) -> usize {
    world.sim.clear_requests();
    let (table, query) = (TableName::new("sys_user").expect("a name"), Query::all());
    let (client, layout) = (world.client.gathering(), Layout::of_text(&[]).into());
    let other = List { table: &table, query: &query, layout: &layout, limit: 1, offset: 0, count: true };
    let (polled, other) = tokio::join!(mirror.advance(), client.list(other));
    polled.expect("a poll");
    other.expect("a page");
    world.lists().iter().filter(|list| !list.in_batch).count()
}

/// A mirror that is slowed down from the beginning.
fn slowed(mut world: World) -> (World, Brake) {
    let brake = Brake::default();
    brake.set(Some(Duration::from_millis(10)));
    world.spec.pace = brake.pace(Duration::from_millis(10));
    (world, brake)
}

#[tokio::test]
async fn a_table_needs_no_call_of_its_own_unless_much_has_changed_in_it() {
    let (world, _brake) = slowed(World::of_tasks().await);
    let mut mirror = world.filled().await;
    // Those of the turn before are seen once more, as they are within the overlap.
    for (changes, alone) in [(0, 0), (1, 0), (19, 0), (2, 1), (150, 1), (0, 1), (0, 0)] {
        world.sim.clock().advance(Duration::from_secs(120));
        for n in 0..changes {
            let text = format!("{n} of {changes}");
            world.sim.edit().insert("incident", &[("short_description", &text)]).expect("a record");
        }
        assert_eq!(poll_along(&world, &mut mirror).await, alone, "{changes} changes");
        world.assert_alike();
    }
}

/// What access control hides takes the place of what it shows.
#[tokio::test]
async fn records_behind_hidden_ones_are_seen() {
    let (world, _brake) = slowed(World::of_tasks().await);
    world.sim.edit().add_acl(AclRule::Rows {
        table: "task".to_owned(),
        user: Some(INTEGRATION.to_owned()),
        query: "short_description!=hidden".to_owned(),
    });
    let mut mirror = world.filled().await;
    for hidden in [1, 19, 20, 60] {
        world.sim.clock().advance(Duration::from_secs(120));
        for text in std::iter::repeat_n("hidden", hidden).chain(["shown"]) {
            world.sim.edit().insert("incident", &[("short_description", text)]).expect("a record");
            world.sim.clock().advance(Duration::from_secs(1));
        }
        poll_along(&world, &mut mirror).await;
        world.assert_alike();
    }
}

#[tokio::test]
async fn records_leave_the_query_of_a_table() {
    let (world, _brake) = slowed(World::of_tasks().await.matching("short_descriptionSTARTSWITHin"));
    let mut mirror = world.filled().await;
    let ids: Vec<String> = (0..60)
        .map(|_| world.sim.edit().insert("incident", &[("short_description", "in")]).expect("a record"))
        .collect();
    for (turn, changes) in [60, 3, 40].into_iter().enumerate() {
        world.sim.clock().advance(Duration::from_secs(120));
        for (n, id) in ids[..changes].iter().enumerate() {
            world.describe(id, if (n + turn) % 2 == 0 { "in again" } else { "out" });
        }
        poll_along(&world, &mut mirror).await;
        let expected = world.truth_where("short_descriptionSTARTSWITHin");
        crate::assert_same(&world.stored(), &expected);
    }
}

/// Whatever becomes of the call for all, each poll is one.
#[tokio::test]
async fn a_poll_that_cannot_go_along_goes_alone() {
    let (world, _brake) = slowed(World::of_tasks().await);
    let mut mirror = world.filled().await;
    let forbidden = servicenow_sim::Effect::Status { status: 403, html: false };
    let faults = [
        Fault::new(servicenow_sim::Effect::Status { status: 500, html: true }).path("/v1/batch"),
        Fault::new(forbidden.clone()).table("task").in_batch(),
        Fault::new(forbidden).path("/v1/batch"),
    ];
    for (n, fault) in faults.into_iter().enumerate() {
        world.sim.clock().advance(Duration::from_secs(120));
        let id = world.sim.edit().insert("incident", &[("short_description", "new")]).expect("a record");
        let fault = world.sim.fault(fault);
        assert_eq!(poll_along(&world, &mut mirror).await, 1, "{n}");
        world.sim.remove_fault(fault);
        assert!(world.stored_description(&id).is_some());
        world.assert_alike();
    }
}

/// Somebody who waits is not kept waiting for others.
#[tokio::test]
async fn a_poll_that_is_asked_for_goes_at_once() {
    let (world, _brake) = slowed(World::of_tasks().await);
    let mut mirror = world.filled().await;
    world.sim.clock().advance(Duration::from_secs(120));
    poll_along(&world, &mut mirror).await;
    mirror.nudge();
    assert_eq!(poll_along(&world, &mut mirror).await, 1);
    assert_eq!(poll_along(&world, &mut mirror).await, 0);
}
