//! Polling: what changes is seen, whatever the clocks say.

use std::time::Duration;

use chrono::TimeDelta;
use servicenow::sync::store::Position;
use servicenow_sim::{Effect, Fault};

use crate::fill::meanwhile;
use crate::{World, poll};

fn watermark(position: &Position) -> i64 {
    match position {
        Position::Following { watermark } => *watermark,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn inserts_and_updates_arrive_with_the_next_poll() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    for n in 0..5 {
        let id = world.sim.edit().insert("incident", &[("short_description", "new")]).expect("a record");
        poll(&mut mirror).await;
        assert_eq!(world.stored_description(&id).as_deref(), Some("new"));
        world.describe(&id, &format!("changed {n}"));
        poll(&mut mirror).await;
        world.assert_alike();
    }
}

#[tokio::test]
async fn a_poll_of_a_quiet_table_is_one_call() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    world.sim.clock().advance(Duration::from_secs(120));
    poll(&mut mirror).await;
    world.sim.clear_requests();
    poll(&mut mirror).await;
    assert_eq!(world.sim.requests().len(), 1);
}

/// Times have a resolution of a second.
#[tokio::test]
async fn a_record_changed_again_within_the_second_of_a_poll_is_seen_again() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.sim.clock().hold(true);
    for n in 0..4 {
        world.describe(&id, &format!("text {n}"));
        poll(&mut mirror).await;
        assert_eq!(world.stored_description(&id), Some(format!("text {n}")));
    }
}

#[tokio::test]
async fn thousands_of_changes_within_one_second_are_all_seen() {
    let world = World::new("cmn_cost_center", &["name", "sys_updated_on"]).await.in_pages_of(200);
    let mut mirror = world.filled().await;
    world.sim.clock().hold(true);
    for n in 0..2_500 {
        world.sim.edit().insert("cmn_cost_center", &[("name", &n.to_string())]).expect("a record");
    }
    world.sim.clock().advance(Duration::from_secs(1));
    for n in 0..250 {
        world.sim.edit().insert("cmn_cost_center", &[("name", &format!("later {n}"))]).expect("a record");
    }
    poll(&mut mirror).await;
    world.assert_alike();
    world.sim.edit().update_where("cmn_cost_center", "", &[("name", "all at once")]).expect("a query");
    poll(&mut mirror).await;
    world.assert_alike();
}

#[tokio::test]
async fn what_changes_while_a_poll_is_under_way_is_seen_by_the_next_one() {
    let world = World::of_tasks().await.in_pages_of(5);
    let mut mirror = world.filled().await;
    let ids: Vec<String> = world.truth().into_keys().collect();
    for round in 0..4 {
        world
            .sim
            .edit()
            .update_where("task", "active=true", &[("state", &(round + 1).to_string())])
            .expect("a query");
        let polled = meanwhile(poll(&mut mirror), |n| {
            if n > 40 {
                return; // else it would go on for ever
            }
            world.describe(&ids[n * 31 % ids.len()], &format!("round {round}, {n}"));
            world.sim.clock().advance(Duration::from_millis(300));
        });
        polled.await;
    }
    poll(&mut mirror).await;
    world.assert_alike();
}

/// A record becomes visible when its transaction ends, stamped with when it was written.
#[tokio::test]
async fn what_becomes_visible_late_is_seen() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.sim.set(|s| s.commit_delay_ms = 50_000);
    world.describe(&id, "late");
    let new = world.sim.edit().insert("incident", &[("short_description", "late too")]).expect("a record");
    for _ in 0..7 {
        world.sim.clock().advance(Duration::from_secs(8));
        poll(&mut mirror).await;
    }
    assert_eq!(world.stored_description(&id).as_deref(), Some("late"));
    assert_eq!(world.stored_description(&new).as_deref(), Some("late too"));
}

#[tokio::test]
async fn a_clock_that_is_set_back_does_not_hide_what_changes_afterwards() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    let ids: Vec<String> = world.truth().into_keys().collect();
    for (n, back) in [30, 59, 61, 3_600, 86_400, 5].into_iter().enumerate() {
        poll(&mut mirror).await;
        world.sim.clock().step(TimeDelta::seconds(-back));
        world.describe(&ids[n], &format!("{back} seconds back"));
        poll(&mut mirror).await;
        poll(&mut mirror).await;
        assert_eq!(world.stored_description(&ids[n]), Some(format!("{back} seconds back")));
    }
    world.sim.clock().step(TimeDelta::days(2));
    world.describe(&ids[40], "in the future");
    poll(&mut mirror).await;
    world.assert_alike();
}

/// The same record before and after the clock was set back: the later version has the earlier stamp.
#[tokio::test]
async fn a_record_that_changed_before_and_after_the_clock_was_set_back_is_kept_as_it_is_now() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.describe(&id, "before");
    poll(&mut mirror).await;
    world.sim.clock().step(TimeDelta::hours(-1));
    world.describe(&id, "after");
    for _ in 0..3 {
        poll(&mut mirror).await;
    }
    assert_eq!(world.stored_description(&id).as_deref(), Some("after"));
    world.assert_alike();
}

/// Records are stamped by the node that writes them, and nodes' clocks differ by seconds.
#[tokio::test]
async fn a_record_changed_next_by_a_node_whose_clock_is_behind_is_kept_as_it_is_now() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.sim.clock().hold(true);
    world.describe(&id, "by a node whose clock is right");
    poll(&mut mirror).await;
    world.sim.clock().step(TimeDelta::seconds(-2));
    world.describe(&id, "by a node whose clock is behind");
    world.sim.clock().step(TimeDelta::seconds(5));
    for _ in 0..3 {
        poll(&mut mirror).await;
    }
    assert_eq!(world.stored_description(&id).as_deref(), Some("by a node whose clock is behind"));
}

/// As after a clone over the instance: what is over there is true, whatever the versions say.
#[tokio::test]
async fn a_stored_version_that_seems_later_than_the_instances_is_settled_by_a_look() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.describe(&id, "over there");
    world.store.with(|m| {
        let (version, values) = m.rows.get_mut(&id).expect("it is there");
        version.updated_on = Some(world.sim.clock().now().timestamp() + 10);
        version.mod_count = version.mod_count.map(|count| count + 2);
        values[1] = "only here".to_owned();
    });
    poll(&mut mirror).await;
    world.assert_alike();
}

#[tokio::test]
async fn a_record_somebody_is_writing_is_brought_in_when_they_are_done() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.store.hold(&id);
    world.describe(&id, "changed");
    for _ in 0..4 {
        world.sim.clock().advance(Duration::from_secs(100));
        poll(&mut mirror).await;
        assert_ne!(world.stored_description(&id).as_deref(), Some("changed"));
    }
    let other = world.sim.edit().insert("incident", &[("short_description", "another")]).expect("a record");
    poll(&mut mirror).await;
    assert_eq!(world.stored_description(&other).as_deref(), Some("another"), "others do not wait for it");
    world.store.let_go();
    poll(&mut mirror).await;
    world.assert_alike();
}

#[tokio::test]
async fn a_record_somebody_is_writing_during_a_fill_is_brought_in_when_they_are_done() {
    for refill in [false, true] {
        let world = World::of_tasks().await.in_pages_of(10);
        world.filled().await;
        let ids: Vec<String> = world.truth().into_keys().collect();
        world.sim.clock().advance(Duration::from_secs(300));
        world.describe(&ids[5], "changed");
        world.sim.clock().advance(Duration::from_secs(300));
        world.store.hold(&ids[5]);
        world.store.with(|m| m.position = Position::Start { refill });
        let mut mirror = world.mirror();
        crate::fill(&mut mirror).await.expect("it is filled");
        poll(&mut mirror).await;
        world.store.let_go();
        poll(&mut mirror).await;
        world.assert_alike();
    }
}

/// A poll looks so many up; the rest has its turn at once, unless there is no end of the same ones.
#[tokio::test]
async fn very_many_records_to_be_looked_up_do_not_wait_for_poll_after_poll() {
    let mut world = crate::reconcile::large(1_200).await;
    world.spec.pace = Duration::from_secs(3_600).into();
    let mut mirror = world.filled().await;
    while mirror.advance().await.expect("a poll and what is due").is_zero() {}
    let ids: Vec<String> = world.truth().into_keys().collect();
    for (is_new, skipped) in [(true, 0), (false, 0), (true, 1), (true, 0)] {
        world.store.with(|m| m.recheck.extend(ids.iter().skip(skipped).cloned()));
        mirror.nudge();
        let pause = mirror.advance().await.expect("a poll");
        assert_eq!(pause <= Duration::from_secs(1), is_new, "{pause:?}");
        assert!(world.store.with(|m| m.recheck.is_empty()));
    }
    mirror.nudge();
    let pause = mirror.advance().await.expect("a poll");
    assert!(pause > Duration::from_secs(600), "{pause:?}");
}

#[tokio::test]
async fn a_poll_that_fails_does_not_move_the_watermark() {
    use servicenow_sim::{Effect, Fault};
    let world = World::of_tasks().await.in_pages_of(5);
    let mut mirror = world.filled().await;
    let before = watermark(mirror.position());
    world
        .sim
        .edit()
        .update_where("task", "active=true", &[("short_description", "changed")])
        .expect("a query");
    world.sim.clock().advance(Duration::from_secs(300));
    world.sim.fault(Fault::new(Effect::Status { status: 500, html: true }).table("task").after(2).times(3));
    assert!(mirror.advance().await.is_err());
    assert_eq!((watermark(mirror.position()), watermark(&world.store.position())), (before, before));
    poll(&mut mirror).await;
    world.assert_alike();
    assert!(watermark(mirror.position()) >= before + 300);
}

#[tokio::test]
async fn a_record_that_changes_its_class_keeps_its_place() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.sim.edit().update("incident", &id, &[("sys_class_name", "problem")]).expect("it is there");
    poll(&mut mirror).await;
    world.read_deletes().await;
    assert_eq!(world.stored()[&id][4], "problem");
    world.assert_alike();
}

/// What most of a table changes in is read range by range, side by side, and not along the time of the changes.
#[tokio::test]
async fn a_mass_update_is_read_like_a_fill() {
    let world = World::new("cmn_cost_center", &["name"]).await.in_pages_of(50);
    for n in 0..2_500 {
        world.sim.edit().insert("cmn_cost_center", &[("name", &n.to_string())]).expect("a record");
    }
    world.sim.clock().advance(Duration::from_secs(300));
    let mut mirror = world.filled().await;
    poll(&mut mirror).await;
    let edit = world.sim.edit();
    edit.update_where("cmn_cost_center", "sys_id>3", &[("name", "all at once")]).expect("a query");
    edit.clone().without_workflow().delete_where("cmn_cost_center", "sys_idSTARTSWITHa").expect("a query");
    // As long as it goes on, it is waited for.
    for _ in 0..3 {
        poll(&mut mirror).await;
        assert!(matches!(mirror.position(), Position::Following { .. }), "{:?}", mirror.position());
    }
    world.sim.clock().advance(Duration::from_secs(70));
    world.sim.clear_requests();
    poll(&mut mirror).await;
    assert!(matches!(mirror.position(), Position::Filling { refill: true, .. }), "{:?}", mirror.position());
    crate::fill(&mut mirror).await.expect("it is filled");
    let late = edit.insert("cmn_cost_center", &[("name", "afterwards")]).expect("a record");
    poll(&mut mirror).await;
    let by_time = |r: &servicenow_sim::LoggedRequest| {
        r.parameter("sysparm_query").is_some_and(|query| query.contains("sys_updated_on"))
    };
    assert!(world.lists().iter().filter(|r| by_time(r)).count() <= 3);
    assert!(world.stored().contains_key(&late));
    world.assert_alike();
    let now = world.sim.clock().now().timestamp();
    assert!((now - 30..=now).contains(&watermark(mirror.position())));
}

/// A small table of which much changes all the time is followed, after it has been waited for once.
#[tokio::test(start_paused = true)]
async fn what_changes_all_the_time_is_not_waited_for_again_and_again() {
    let world = World::new("cmn_cost_center", &["name"]).await.in_pages_of(50);
    for n in 0..1_500 {
        world.sim.edit().insert("cmn_cost_center", &[("name", &n.to_string())]).expect("a record");
    }
    world.sim.clock().advance(Duration::from_secs(300));
    let mut mirror = world.filled().await;
    poll(&mut mirror).await;
    for (round, pause) in [160, 160, 10, 10].into_iter().enumerate() {
        let name = format!("round {round}");
        world.sim.edit().update_where("cmn_cost_center", "", &[("name", &name)]).expect("a query");
        poll(&mut mirror).await;
        if round > 1 {
            world.assert_alike();
        }
        tokio::time::sleep(Duration::from_secs(pause)).await;
    }
}

/// Also where most of what changed does not match, and never did.
#[tokio::test]
async fn a_mass_update_of_other_records_is_not_read_along_their_time() {
    let world = World::new("cmn_cost_center", &["name"]).await.in_pages_of(50).matching("nameSTARTSWITHmine");
    for n in 0..2_500 {
        let name = format!("{} {n}", if n % 50 == 0 { "mine" } else { "other" });
        world.sim.edit().insert("cmn_cost_center", &[("name", &name)]).expect("a record");
    }
    world.sim.clock().advance(Duration::from_secs(300));
    let mut mirror = world.filled().await;
    poll(&mut mirror).await;
    world.sim.edit().update_where("cmn_cost_center", "sys_id>1", &[("name", "nobody's")]).expect("a query");
    world.sim.clock().advance(Duration::from_secs(70));
    world.sim.clear_requests();
    poll(&mut mirror).await;
    crate::fill(&mut mirror).await.expect("it is filled");
    poll(&mut mirror).await;
    assert!(world.lists().len() < 20, "{}", world.lists().len());
    crate::assert_same(&world.stored(), &world.truth_where("nameSTARTSWITHmine"));
}

/// A table that never comes to rest is read as it comes.
#[tokio::test]
async fn a_fill_after_a_mass_update_is_followed_by_a_poll_whatever_has_changed_meanwhile() {
    let world = World::new("cmn_cost_center", &["name"]).await.in_pages_of(50);
    for n in 0..2_000 {
        world.sim.edit().insert("cmn_cost_center", &[("name", &n.to_string())]).expect("a record");
    }
    world.sim.clock().advance(Duration::from_secs(300));
    let mut mirror = world.filled().await;
    poll(&mut mirror).await;
    let change = |name: &str| {
        world.sim.edit().update_where("cmn_cost_center", "", &[("name", name)]).expect("a query");
        world.sim.clock().advance(Duration::from_secs(90));
    };
    change("once");
    poll(&mut mirror).await;
    assert!(matches!(mirror.position(), Position::Filling { .. }), "{:?}", mirror.position());
    change("twice");
    crate::fill(&mut mirror).await.expect("it is filled");
    change("three times");
    poll(&mut mirror).await;
    assert!(matches!(mirror.position(), Position::Following { .. }), "{:?}", mirror.position());
    world.assert_alike();
}

/// What a poll has read is not read again after a failure.
#[tokio::test]
async fn a_long_poll_goes_on_from_where_it_was_interrupted() {
    let world = World::of_tasks().await.in_pages_of(2);
    let mut mirror = world.filled().await;
    poll(&mut mirror).await;
    let ids = world.sim.edit().find("task", "ORDERBYsys_id").expect("a query");
    for id in &ids[..35] {
        world.sim.clock().advance(Duration::from_secs(30));
        world.describe(id, "changed");
    }
    let fault = Fault::new(Effect::Status { status: 500, html: false }).path("sys_updated_on").after(30);
    let fault = world.sim.fault(fault);
    mirror.nudge();
    mirror.advance().await.expect_err("it is interrupted");
    world.sim.remove_fault(fault);
    world.sim.clear_requests();
    let mut again = world.mirror();
    poll(&mut again).await;
    assert!(world.lists().len() < 30, "{}", world.lists().len());
    world.assert_alike();
}
