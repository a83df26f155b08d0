//! Reading everything once more: what leaves no trace at all, not even in how many records there are.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use servicenow::sync::mirror::Mirror;
use servicenow::sync::store::{Position, ScrubPosition};
use servicenow::value::date_time;
use servicenow_sim::{AclRule, Effect, Fault, LoggedRequest, Simulator};

use crate::direct::Direct;
use crate::faults::all_effects;
use crate::interrupt::at_most;
use crate::keeper::Keeper;
use crate::{INTEGRATION, TASK_FIELDS, World, assert_same, client, fill, poll};

impl World {
    /// A round that is over as soon as it has been read.
    pub fn scrubbing(mut self) -> World {
        self.spec.scrub_interval = Duration::ZERO;
        self
    }

    /// When the last round began of which nothing has been read.
    fn round(&self) -> Option<SystemTime> {
        self.store.with(|m| m.upkeep.scrub.as_ref().filter(|p| p.after.is_none()).map(|p| p.began))
    }

    /// Goes on until a round that begins now has come to its end, whatever fails.
    pub async fn scrub(&self) {
        let position = ScrubPosition { began: SystemTime::now(), after: None, read: 0, total: 0 };
        let before = Some(position.began);
        self.store.with(|m| m.upkeep.scrub = Some(position));
        let mut mirror = self.mirror();
        for _ in 0..3_000 {
            if self.round().is_some_and(|round| Some(round) != before) {
                return;
            }
            // After a failure there is a pause.
            if mirror.advance().await.is_ok_and(|pause| !pause.is_zero()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        panic!("a round does not end");
    }
}

fn only(world: &World, query: &str) {
    world.sim.edit().add_acl(AclRule::Rows {
        table: "task".to_owned(),
        user: Some(INTEGRATION.to_owned()),
        query: query.to_owned(),
    });
}

#[tokio::test]
async fn edits_without_a_trace_are_found() {
    for rows in [1, 7, 1_000] {
        let world = World::of_tasks().await.in_pages_of(rows).scrubbing();
        world.filled().await;
        let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
        edit.update_where("task", "active=true", &[("short_description", "without a trace")])
            .expect("a query");
        world.scrub().await;
        world.assert_alike();
    }
}

/// One that came and one that went make up for one another where only counts are compared.
#[tokio::test]
async fn records_that_came_and_went_in_one_range_are_found() {
    let world = World::of_tasks().await.in_pages_of(10).scrubbing();
    world.filled().await;
    let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
    for id in world.truth().into_keys().step_by(6) {
        let twin = format!("{}{}", &id[..31], if id.ends_with('0') { '1' } else { '0' });
        edit.delete("task", &id).expect("it is there");
        let fields = [("sys_id", twin.as_str()), ("sys_updated_on", "2020-01-01 00:00:00")];
        edit.insert("problem", &fields).expect("a record");
    }
    world.scrub().await;
    world.assert_alike();
}

#[tokio::test]
async fn records_that_become_hidden_and_visible_leave_and_come() {
    let world = World::of_tasks().await.in_pages_of(7).scrubbing();
    world.filled().await;
    for query in ["sys_id<4^ORsys_id>6", "sys_id>4^sys_id<a", "sys_id<8", "sys_id>zz", "sys_id>3"] {
        world.sim.edit().clear_acls();
        only(&world, query);
        world.scrub().await;
        world.assert_alike();
        world.reconcile().await;
        world.assert_alike();
    }
    world.sim.edit().clear_acls();
    world.scrub().await;
    world.assert_alike();
}

#[tokio::test]
async fn records_that_stopped_to_match_without_a_trace_leave() {
    let world = World::new("incident", TASK_FIELDS).await.in_pages_of(5).matching("active=true").scrubbing();
    world.filled().await;
    let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
    let flip = |query: &str, active: &str| {
        edit.update_where("incident", query, &[("active", active), ("short_description", "flipped")])
            .expect("a query")
    };
    flip("state=1", "false");
    flip("state=7", "true");
    world.scrub().await;
    assert_same(&world.stored(), &world.truth_where("active=true"));
}

#[tokio::test]
async fn records_with_odd_identifiers_are_read_again() {
    let odd = ["0", "4", "global", "GLOBAL-2", "zz top", "a^b", "a,b", "@", "ÄÖ", "F0F0", "~", "_", "A_b"];
    for rows in [1, 3, 1_000] {
        let world = World::new("cmn_cost_center", &["name"]).await.in_pages_of(rows).scrubbing();
        for id in odd {
            world.sim.edit().insert("cmn_cost_center", &[("sys_id", id), ("name", "odd")]).expect("a record");
        }
        world.filled().await;
        let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
        for (n, id) in odd.into_iter().enumerate() {
            match n % 2 {
                0 => edit.update("cmn_cost_center", id, &[("name", "changed")]).expect("it is there"),
                _ => edit.delete("cmn_cost_center", id).expect("it is there"),
            }
        }
        world.scrub().await;
        world.assert_alike();
    }
}

/// A round ends with the interval; until then nothing is read but what is due.
#[tokio::test]
async fn a_round_takes_its_time() {
    let mut world = World::of_tasks().await.in_pages_of(1);
    let mut mirror = world.filled().await;
    poll(&mut mirror).await;
    world.sim.clear_requests();
    for _ in 0..5 {
        poll(&mut mirror).await;
    }
    assert_eq!(world.sim.requests().len(), 5, "only polls");
    // More than two thirds of a round ago, as far as its position tells.
    let rows = world.stored().len() as u64;
    world.spec.scrub_interval = Duration::from_secs(30_000);
    world.store.with(|m| {
        let position = m.upkeep.scrub.as_mut().expect("a round has begun");
        assert_eq!((position.read, position.total), (0, rows));
        position.began -= Duration::from_secs(20_500);
    });
    let mut mirror = world.mirror();
    world.sim.clear_requests();
    while mirror.advance().await.expect("a piece of work").is_zero() {}
    // On a slow machine more polls than one come due meanwhile.
    let is_poll = |list: &LoggedRequest| {
        list.parameter("sysparm_query").is_some_and(|query| query.contains("sys_updated_on>="))
    };
    let (polls, pages): (Vec<_>, Vec<_>) = world.lists().into_iter().partition(is_poll);
    assert!(!polls.is_empty());
    let pages = pages.len();
    assert!((10..=13).contains(&pages), "a stretch of ten pages and few calls more: {pages}");
    let read = world.store.with(|m| m.upkeep.scrub.clone()).expect("a position");
    assert!(read.after.is_some() && read.read == 10 && read.total == rows, "{read:?}");
    let wait = mirror.advance().await.expect("a poll");
    assert_eq!(wait, world.spec.pace.now(), "what is late is not made up for");
}

#[tokio::test]
async fn a_round_that_ends_anywhere_is_gone_on_with() {
    let mut polls = 1;
    loop {
        let world = World::of_tasks().await.in_pages_of(2).scrubbing();
        world.filled().await;
        let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
        edit.update_where("task", "active=true", &[("short_description", "without a trace")])
            .expect("a query");
        edit.delete_where("task", "stateIN2,3").expect("a query");
        let done = at_most(world.scrub(), polls).await.is_some();
        let mut mirror = world.mirror();
        let before = SystemTime::now();
        while world.round().is_none_or(|round| round < before) {
            mirror.advance().await.expect("a piece of work");
        }
        world.assert_alike();
        if done {
            break;
        }
        polls += 1 + polls / 3;
    }
    assert!(polls > 20, "it was interrupted often");
}

#[tokio::test]
async fn what_has_been_read_is_not_read_again_after_a_restart() {
    let world = World::of_tasks().await.in_pages_of(1).scrubbing();
    world.filled().await;
    let position = |world: &World| world.store.with(|m| m.upkeep.scrub.clone());
    let mut mirror = world.mirror();
    while position(&world).is_none_or(|position| position.read < 30) {
        mirror.advance().await.expect("a piece of work");
    }
    let reached = position(&world).and_then(|position| position.after).expect("it is under way");
    world.sim.clear_requests();
    let mut mirror = world.mirror();
    while position(&world).is_some_and(|position| position.after.as_ref() == Some(&reached)) {
        mirror.advance().await.expect("a piece of work");
    }
    let keys: Vec<String> =
        world.lists().iter().filter_map(|r| r.parameter("sysparm_query").map(str::to_owned)).collect();
    let first = keys.iter().find(|query| query.contains("sys_id>")).expect("it reads on");
    assert!(first.contains(&format!("sys_id>{reached}^")), "{first} behind {reached}");
}

#[tokio::test]
async fn a_round_comes_through_every_failure() {
    for effects in all_effects().chunks(8) {
        join_all(effects.iter().cloned().map(comes_through)).await;
    }
}

async fn comes_through(effect: Effect) {
    let mut world = World::of_tasks().await.in_pages_of(10).scrubbing();
    world.filled().await;
    world.client = client(&world.sim, world.user, 1);
    let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
    edit.update_where("task", "active=true", &[("short_description", "without a trace")]).expect("a query");
    edit.delete_where("task", "state=1").expect("a query");
    let pages = world.sim.fault(Fault::new(effect.clone()).path("sys_id(%3E|>)").after(2).times(1));
    world.scrub().await;
    assert_eq!(world.sim.fault_count(pages), 1, "{effect:?}");
    world.assert_alike();
}

#[tokio::test]
async fn a_round_begins_anew_with_a_fill() {
    let world = World::of_tasks().await.in_pages_of(10);
    let mut mirror = world.filled().await;
    poll(&mut mirror).await;
    let first = world.round().expect("a round has begun");
    world.store.with(|m| m.position = Position::Start { refill: true });
    let mut mirror = world.mirror();
    fill(&mut mirror).await.expect("it is filled");
    poll(&mut mirror).await;
    assert!(world.round().expect("another one") > first);
}

/// What somebody is writing stays as it is until they are done.
#[tokio::test]
async fn a_record_somebody_is_writing_is_brought_in_when_they_are_done() {
    let world = World::of_tasks().await.in_pages_of(10).scrubbing();
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.store.hold(&id);
    let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
    edit.update("task", &id, &[("short_description", "without a trace")]).expect("it is there");
    world.scrub().await;
    assert_ne!(world.stored_description(&id).as_deref(), Some("without a trace"));
    world.store.let_go();
    poll(&mut mirror).await;
    world.assert_alike();
}

/// A table that does not say when its records were changed is read over and over, at a pace that is bounded however large
/// it is; and counted.
#[tokio::test]
async fn a_table_without_times_is_kept_by_reading_it_piece_by_piece() {
    let mut world = World::new("u_pg_static", &["u_code"]).await.in_pages_of(10);
    let edit = world.sim.edit().without_auto_sys_fields();
    for n in 0..450 {
        let fields = [("u_code", n.to_string()), ("sys_created_on", "2025-01-01 00:00:00".to_owned())];
        let fields = fields.each_ref().map(|(field, value)| (*field, value.as_str()));
        edit.insert("u_pg_static", &fields).expect("a record");
    }
    let mut mirror = world.filled().await;
    let id = world.find("u_code=7");
    let renamed = |sim: &Simulator, name| {
        sim.edit().update("u_pg_static", &id, &[("u_code", name)]).expect("it is there");
    };
    renamed(&world.sim, "renamed");
    world.sim.clear_requests();
    for _ in 0..5 {
        mirror.advance().await.expect("nothing is due");
    }
    let is_poll = |r: &LoggedRequest| {
        r.parameter("sysparm_query").is_some_and(|query| query.contains("sys_created_on"))
    };
    assert!(world.lists().iter().all(is_poll), "it was read just now");
    let gone = world.find("u_code=9");
    world.sim.edit().without_workflow().delete("u_pg_static", &gone).expect("it is there");
    world.reconcile().await;
    assert!(!world.stored().contains_key(&gone), "counts tell of it");
    let lists = world.lists().into_iter().filter(|list| !is_poll(list)).count();
    assert!(lists < 15, "not everything is read for that: {lists}");
    world.spec.scrub_interval = Duration::ZERO;
    world.scrub().await;
    world.assert_alike();
}

/// So with journals and audits, of which there are many: what is new is not found by reading all of them.
#[tokio::test]
async fn what_is_added_to_a_table_that_says_no_more_than_that_is_polled() {
    let world = World::new("u_pg_static", &["u_code"]).await.in_pages_of(10);
    let add = |some: std::ops::Range<u32>, stamp: Option<i64>| {
        let edit = world.sim.edit();
        let edit = if stamp.is_some() { edit.without_auto_sys_fields() } else { edit };
        let stamp = stamp.and_then(date_time);
        for n in some.map(|n| n.to_string()) {
            let stamp = stamp.iter().map(|stamp| ("sys_created_on", stamp.as_str()));
            let fields: Vec<_> = stamp.chain([("u_code", n.as_str())]).collect();
            edit.insert("u_pg_static", &fields).expect("a record");
        }
    };
    add(0..450, Some(0));
    let mut mirror = world.filled().await;
    poll(&mut mirror).await;
    add(450..465, None);
    world.sim.clear_requests();
    poll(&mut mirror).await;
    world.assert_alike();
    let calls = world.sim.requests().len();
    assert!(calls < 60, "{calls}");
    // Nothing is read again because of what has come since.
    add(465..470, None);
    world.store.with(|m| m.upkeep.reconciled = None);
    let mut again = world.mirror();
    world.sim.clear_requests();
    for _ in 0..5 {
        again.advance().await.expect("a comparison");
        assert!(matches!(again.position(), Position::Following { .. }), "{:?}", again.position());
    }
    assert!(world.store.upkeep().reconciled.is_some(), "it was compared");
    let calls = world.sim.requests().len();
    assert!(calls < 70, "{calls}");
    world.assert_alike();
    // Not even if many have come at once.
    add(470..1_000, None);
    poll(&mut again).await;
    assert!(matches!(again.position(), Position::Following { .. }), "{:?}", again.position());
    world.assert_alike();
}

/// Access control may refuse conditions on a field whose values it shows; and without an index they may take too long.
#[tokio::test]
async fn a_table_that_cannot_be_asked_by_time_is_kept_by_counting_and_reading_it() {
    for status in [403, 500] {
        let mut world = World::of_tasks().await.in_pages_of(20);
        world.client = client(&world.sim, world.user, 1);
        world.filled().await;
        let edit = world.sim.edit();
        edit.update_where("task", "active=true", &[("short_description", "changed")]).expect("a query");
        let gone = world.find("number=INC0010042");
        edit.delete("task", &gone).expect("it is there");
        world.store.hold(&world.find("number=INC0012345"));
        let fault = Fault::new(Effect::Status { status, html: false }).path("sys_updated_on(%3E|>)");
        let polls = world.sim.fault(fault);
        let go_on = async |mirror: &mut Mirror<Direct, Keeper>, is_over: &dyn Fn() -> bool| {
            for _ in 0..500 {
                if is_over() {
                    return;
                }
                let _a_failed_poll = mirror.advance().await;
            }
            panic!("{status}: it does not end");
        };
        world.store.with(|m| m.upkeep.reconciled = None);
        let mut mirror = world.mirror();
        let failure = || world.store.with(|m| m.failure.is_some());
        go_on(&mut mirror, &|| world.store.upkeep().reconciled.is_some() && failure()).await;
        assert!(!world.stored().contains_key(&gone), "{status}: counts tell of it");
        let polled = world.sim.fault_count(polls);
        assert!(polled < 6, "{status}: {polled} polls");
        let round = ScrubPosition { began: SystemTime::now(), after: None, read: 0, total: 0 };
        world.store.with(|m| m.upkeep.scrub = Some(round.clone()));
        world.spec.scrub_interval = Duration::ZERO;
        world.store.let_go();
        let mut mirror = world.mirror();
        go_on(&mut mirror, &|| world.round().is_some_and(|began| began != round.began)).await;
        world.assert_alike();
        assert!(failure(), "{status}: it is still said");
    }
}

#[tokio::test]
async fn everything_is_read_again_though_counts_always_fail() {
    let world = World::of_tasks().await.in_pages_of(20).scrubbing();
    world.filled().await;
    let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
    edit.update_where("task", "active=true", &[("short_description", "without a trace")]).expect("a query");
    world.sim.fault(Fault::new(Effect::Status { status: 500, html: false }).path("/stats/"));
    world.store.with(|m| m.upkeep.reconciled = None);
    world.scrub().await;
    world.assert_alike();
}

/// Another instance was cloned over this one: the same records are older there, others are gone, and others again are there
/// that are older than the watermark.
#[tokio::test]
async fn a_clone_is_found_by_counts_and_by_reading_everything() {
    let world = World::of_tasks().await.in_pages_of(20);
    let mut mirror = world.filled().await;
    poll(&mut mirror).await;
    let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
    let past = [("sys_created_on", "2019-05-05 05:05:05"), ("sys_updated_on", "2019-05-05 05:05:05")];
    let older = [past[0], past[1], ("sys_mod_count", "0"), ("short_description", "of the other instance")];
    edit.update_where("task", "active=true", &older).expect("a query");
    edit.delete_where("task", "sys_id<4").expect("a query");
    for n in 0..30 {
        edit.insert("problem", &[past[0], past[1], ("number", &format!("PRB{n}"))]).expect("a record");
    }
    poll(&mut mirror).await;
    world.reconcile().await;
    // New and gone ones that make up for one another somewhere are not told apart by counts.
    assert_eq!(world.stored().len(), world.truth().len(), "new and gone ones are noticed");
    let world = world.scrubbing();
    world.scrub().await;
    world.assert_alike();
}
