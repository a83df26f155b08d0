//! A mirror may end anywhere; whoever goes on from where the store is loses nothing and repeats little.

use std::sync::Arc;
use std::time::{Duration, Instant};

use servicenow::sync::deletes;
use servicenow::sync::mirror;
use servicenow::sync::range::Range;
use servicenow::sync::store::{OpenRange, Position};
use servicenow::value::SysId;
use servicenow_sim::{Effect, Fault};
use tokio::sync::Notify;

use crate::interrupt::at_most;
use crate::{World, fill, poll};

/// A store in which a fill has begun, cut into so many ranges.
pub fn begun(world: &World, ranges: usize, refill: bool) {
    let open = Range::partition(ranges).into_iter().zip(0..);
    let open = open.map(|(range, number)| OpenRange { number, range, after: None }).collect();
    let since = world.sim.clock().now().timestamp();
    world.store.with(|m| {
        m.position = Position::Filling { refill, open, since };
        m.metadata.get_or_insert(since);
    });
}

#[tokio::test]
async fn a_fill_that_ends_anywhere_is_gone_on_with() {
    let mut polls = 1;
    loop {
        let world = World::of_tasks().await.in_pages_of(15);
        world.read_deletes().await;
        begun(&world, 4, false);
        let done = at_most(fill(&mut world.mirror()), polls).await.is_some();
        // What has been read and changes afterwards is seen by the first poll.
        if let Some(id) = world.stored().into_keys().next() {
            world.describe(&id, "changed in between");
        }
        let mut mirror = world.mirror();
        fill(&mut mirror).await.expect("it is filled");
        poll(&mut mirror).await;
        world.assert_alike();
        if done {
            break;
        }
        polls += 1 + polls / 12;
    }
    assert!(polls > 20, "it was interrupted often");
}

#[tokio::test]
async fn a_fill_goes_on_where_it_was() {
    let world = World::of_tasks().await.in_pages_of(10);
    begun(&world, 4, false);
    let whole = world.truth().len();
    while world.stored().len() < whole / 2 {
        let mut mirror = world.mirror();
        let _dropped = at_most(fill(&mut mirror), 80).await;
    }
    let kept = world.stored().len();
    world.sim.clear_requests();
    fill(&mut world.mirror()).await.expect("it is filled");
    world.assert_alike();
    let pages = world.lists().len();
    // One more per range, and one per range that was under way.
    assert!(pages <= (whole - kept).div_ceil(10) + 8, "{pages} pages for {} rows", whole - kept);
    let mut queries: Vec<_> = world.lists().iter().map(|r| r.query.clone()).collect();
    queries.sort();
    queries.dedup();
    assert_eq!(queries.len(), pages, "no page is read twice");
}

#[tokio::test]
async fn a_refill_that_ends_anywhere_is_gone_on_with() {
    refill_in_pieces(15, 4).await;
}

/// Such a one is compared with the store several times under way.
#[tokio::test]
async fn a_refill_of_many_pages_that_ends_anywhere_is_gone_on_with() {
    refill_in_pieces(1, 1).await;
}

async fn refill_in_pieces(rows: u32, ranges: usize) {
    let mut polls = 1;
    loop {
        let world = World::of_tasks().await.in_pages_of(rows);
        world.filled().await;
        let ids: Vec<String> = world.truth().into_keys().collect();
        for id in ids.iter().step_by(9) {
            world.sim.edit().without_workflow().delete("task", id).expect("it is there");
        }
        begun(&world, ranges, true);
        let done = at_most(fill(&mut world.mirror()), polls).await.is_some();
        let mut mirror = world.mirror();
        fill(&mut mirror).await.expect("it is filled");
        world.assert_alike();
        if done {
            break;
        }
        polls += 2 + polls / 4;
    }
    assert!(polls > 20, "it was interrupted often");
}

#[tokio::test]
async fn a_refill_goes_on_behind_what_has_been_compared() {
    let world = World::of_tasks().await.in_pages_of(1);
    world.filled().await;
    begun(&world, 1, true);
    let reached = || match world.store.position() {
        Position::Filling { open, .. } => open[0].after.clone(),
        other => panic!("{other:?}"),
    };
    for polls in (100..).step_by(20) {
        let _dropped = at_most(fill(&mut world.mirror()), polls).await;
        if reached().is_some() {
            break;
        }
    }
    let rows =
        world.stored().keys().filter(|id| Some(id.as_str()) > reached().as_ref().map(SysId::as_str)).count();
    assert!(rows < world.stored().len() - 40, "{rows}");
    world.sim.clear_requests();
    fill(&mut world.mirror()).await.expect("it is filled");
    assert!(world.lists().len() <= rows + 3, "{} calls for {rows} rows", world.lists().len());
}

#[tokio::test]
async fn a_poll_that_ends_anywhere_is_repeated() {
    let world = World::of_tasks().await.in_pages_of(10);
    world.filled().await;
    let mut polls = 1;
    loop {
        world.sim.clock().advance(Duration::from_secs(200));
        world
            .sim
            .edit()
            .update_where("task", "active=true", &[("short_description", &format!("round {polls}"))])
            .expect("a query");
        let done = at_most(poll(&mut world.mirror()), polls).await.is_some();
        poll(&mut world.mirror()).await;
        world.assert_alike();
        if done {
            break;
        }
        polls += 1 + polls / 10;
    }
    assert!(polls > 10, "it was interrupted often");
}

#[tokio::test]
async fn a_reading_of_deletions_that_ends_anywhere_is_repeated() {
    let mut polls = 1;
    loop {
        let world = World::of_tasks().await;
        world.filled().await;
        world.sim.clock().advance(Duration::from_secs(200));
        world.sim.edit().delete_where("task", "active=false").expect("a query");
        let deletes = world.deletes();
        let done = at_most(deletes.read(), polls).await.is_some();
        world.sim.clock().advance(Duration::from_secs(200));
        world.read_deletes().await;
        world.assert_alike();
        if done {
            break;
        }
        polls += 1;
    }
}

/// Waits until something is so.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_running_mirror_says_what_fails_and_goes_on_by_itself() {
    let world = World::of_tasks().await;
    let fault = world.sim.fault(Fault::new(Effect::Status { status: 503, html: true }));
    let nudge = Arc::new(Notify::new());
    let running = tokio::spawn(mirror::run(world.mirror(), nudge.clone()));
    until("the failure is said", || world.store.with(|m| m.failure.is_some())).await;
    assert_eq!(world.store.with(|m| m.failure.clone()).as_deref(), Some("instance answered with status 503"));
    world.sim.remove_fault(fault);
    nudge.notify_one();
    until("the table is followed", || matches!(world.store.position(), Position::Following { .. })).await;
    until("the failure is over", || world.store.with(|m| m.failure.is_none())).await;
    let id = world.find("number=INC0012345");
    world.describe(&id, "changed");
    until("the change arrives", || world.stored_description(&id).as_deref() == Some("changed")).await;
    running.abort();
}

#[tokio::test]
async fn a_running_mirror_ends_when_its_table_is_changed() {
    let world = World::of_tasks().await;
    let running = tokio::spawn(mirror::run(world.mirror(), Arc::new(Notify::new())));
    until("the table is followed", || matches!(world.store.position(), Position::Following { .. })).await;
    world.store.become_stale();
    tokio::time::timeout(Duration::from_secs(20), running)
        .await
        .expect("it ends")
        .expect("it does not panic");
}

#[tokio::test]
async fn a_running_reader_of_deletions_says_what_fails_and_goes_on_by_itself() {
    let world = World::of_tasks().await;
    world.filled().await;
    let fault =
        world.sim.fault(Fault::new(Effect::Status { status: 503, html: true }).table("sys_audit_delete"));
    let nudge = Arc::new(Notify::new());
    let running = tokio::spawn(deletes::run(
        world.deletes(),
        world.moved(),
        Duration::from_millis(10).into(),
        nudge.clone(),
    ));
    until("the failure is said", || world.store.with(|m| m.failure.is_some())).await;
    let id = world.find("number=INC0012345");
    world.sim.edit().delete("incident", &id).expect("it is there");
    world.sim.remove_fault(fault);
    nudge.notify_one();
    until("the record leaves", || !world.stored().contains_key(&id)).await;
    running.abort();
}
