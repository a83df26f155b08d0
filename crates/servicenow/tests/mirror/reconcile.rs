//! Comparing counts: what left no trace is found with few calls, and what is hidden is known to be.

use std::time::{Duration, SystemTime};

use crate::direct::Direct;
use futures_util::future::join_all;
use servicenow::sync::mirror::Mirror;
use servicenow::sync::range::Range;
use servicenow::sync::store::{Position, ScrubPosition};
use servicenow::value::SysId;
use servicenow_sim::{AclRule, Effect, Fault};

use crate::faults::all_effects;
use crate::fill::meanwhile;
use crate::interrupt::at_most;
use crate::keeper::Keeper;
use crate::{INTEGRATION, TASK_FIELDS, World, assert_same, client, fill, poll};

/// What a record says that came without a trace.
pub const LONG_AGO: [(&str, &str); 2] =
    [("sys_created_on", "2020-01-01 00:00:00"), ("sys_updated_on", "2020-01-01 00:00:00")];

impl World {
    /// A mirror that compares counts next.
    pub fn due(&self) -> Mirror<Direct, Keeper> {
        self.store.with(|m| m.upkeep.reconciled = None);
        self.mirror()
    }

    /// Whether a comparison has come to its end since one was due.
    pub fn is_reconciled(&self) -> bool {
        self.store.with(|m| m.upkeep.reconciled.is_some())
    }

    /// Compares counts.
    pub async fn reconcile(&self) {
        let mut mirror = self.due();
        for _ in 0..1_000 {
            if self.is_reconciled() {
                return;
            }
            mirror.advance().await.expect("a piece of work");
        }
        panic!("it does not end");
    }

    /// How many calls asked for counts, how many for lists of identifiers and how many for records by their
    /// identifiers, since the log was cleared. Polls are left out.
    fn calls(&self) -> (usize, usize, usize) {
        let requests = self.sim.requests();
        let lists = |what: fn(&str) -> bool| {
            let query = |r: &&servicenow_sim::LoggedRequest| {
                r.endpoint == "table" && r.parameter("sysparm_query").is_some_and(what)
            };
            requests.iter().filter(query).count()
        };
        let counts = requests.iter().filter(|r| r.endpoint == "stats").count();
        let looks = lists(|query| query.contains("sys_idIN"));
        let sweeps = lists(|query| {
            !["sys_idIN", "sys_updated_on", "sys_created_on>="].iter().any(|term| query.contains(term))
        });
        (counts, sweeps, looks)
    }

    /// How many hidden records are remembered.
    pub fn remembered(&self) -> u64 {
        self.store.with(|m| m.hidden.iter().map(|(_, count)| count).sum())
    }
}

/// A mirror of a table of so many plain records, in pages of 50.
pub async fn large(records: usize) -> World {
    let world =
        World::new("cmn_cost_center", &["name", "sys_updated_on", "sys_mod_count"]).await.in_pages_of(50);
    let edit = world.sim.edit();
    for n in world.truth().len()..records {
        edit.insert("cmn_cost_center", &[("name", &n.to_string())]).expect("a record");
    }
    // Else a poll would read them all again.
    world.sim.clock().advance(Duration::from_secs(300));
    world.filled().await;
    world.sim.clear_requests();
    world
}

#[tokio::test]
async fn where_nothing_differs_one_call_is_all() {
    let world = large(1_000).await;
    world.reconcile().await;
    assert_eq!(world.calls(), (1, 0, 0));
}

#[tokio::test]
async fn what_is_missing_costs_calls_by_its_own_number() {
    let mut world = large(12_000).await;
    world.spec.pace = Duration::from_secs(3_600).into();
    let ids: Vec<String> = world.truth().into_keys().collect();
    for missing in [1, 10, 100] {
        let edit = world.sim.edit().without_workflow();
        for n in 0..missing {
            let id = &ids[missing + n * ids.len() / (missing + 1)];
            edit.delete("cmn_cost_center", id).expect("it is there");
        }
        world.sim.clear_requests();
        world.reconcile().await;
        world.assert_alike();
        let (counts, sweeps, looks) = world.calls();
        let halvings = 8; // of 12,000 down to 50
        assert!(counts <= 3 + missing * halvings, "{missing} missing, {counts} counts");
        assert!(
            sweeps <= 2 * missing && looks <= missing,
            "{missing} missing, {sweeps} sweeps, {looks} looks"
        );
        world.sim.clear_requests();
        world.reconcile().await;
        assert_eq!(world.calls(), (1, 0, 0));
    }
}

/// Without business rules there is no audit, and a record may be stamped with any time.
#[tokio::test]
async fn records_that_came_and_went_without_a_trace_are_found() {
    let world = World::of_tasks().await.in_pages_of(10);
    world.filled().await;
    let ids: Vec<String> = world.truth().into_keys().collect();
    let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
    for n in 0..25 {
        let id = format!("{:02x}{n:030x}", n * 10);
        let fields = [("sys_id", id.as_str()), ("number", "SILENT"), LONG_AGO[0], LONG_AGO[1]];
        edit.insert("problem", &fields).expect("a record");
    }
    world.reconcile().await;
    world.assert_alike();
    edit.delete("task", &ids[0]).expect("it is there");
    edit.delete("task", &ids[ids.len() - 1]).expect("it is there");
    edit.delete_where("task", "number=SILENT^sys_id<8").expect("a query");
    world.reconcile().await;
    world.assert_alike();
}

#[tokio::test]
async fn a_record_that_becomes_another_tables_leaves() {
    let world = World::new("incident", TASK_FIELDS).await.in_pages_of(5);
    world.filled().await;
    let id = world.find("number=INC0012345");
    world.sim.edit().update("incident", &id, &[("sys_class_name", "problem")]).expect("it is there");
    world.read_deletes().await;
    assert!(world.stored().contains_key(&id), "nothing tells of it");
    world.reconcile().await;
    world.assert_alike();
}

#[tokio::test]
async fn records_that_begin_and_stop_to_match_without_a_trace_are_found() {
    for query in ["active=true", "state=1^NQstate=2^short_descriptionISNOTEMPTY"] {
        let world = World::new("incident", TASK_FIELDS).await.in_pages_of(5).matching(query);
        world.filled().await;
        let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
        edit.update_where("incident", "state=2", &[("state", "7"), ("active", "false")]).expect("a query");
        world.reconcile().await;
        assert_same(&world.stored(), &world.truth_where(query));
        edit.update_where("incident", "state=7", &[("state", "2"), ("active", "true")]).expect("a query");
        world.reconcile().await;
        assert_same(&world.stored(), &world.truth_where(query));
    }
}

#[tokio::test]
async fn records_with_odd_identifiers_are_found() {
    let odd =
        ["0", "4", "global", "GLOBAL-2", "zz top", "a^b", "a,b", "@", "ÄÖ", "F0F0", "~", "_", "A_b", "a "];
    for rows in [2, 7, 1_000] {
        let world = World::new("cmn_cost_center", &["name"]).await.in_pages_of(rows);
        world.filled().await;
        let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
        for id in odd {
            edit.insert("cmn_cost_center", &[("sys_id", id), LONG_AGO[0], LONG_AGO[1]]).expect("a record");
        }
        world.reconcile().await;
        world.assert_alike();
        for id in odd {
            edit.delete("cmn_cost_center", id).expect("it is there");
        }
        world.reconcile().await;
        world.assert_alike();
    }
}

/// Identifiers that are numbers with many noughts before them fall into one range, however long the prefix.
#[tokio::test]
async fn identifiers_that_are_far_from_random_are_halved_all_the_same() {
    let world = World::new("cmn_cost_center", &["name"]).await.in_pages_of(20);
    world.sim.edit().delete_where("cmn_cost_center", "").expect("a query");
    for n in 0..1_000 {
        world.sim.edit().insert("cmn_cost_center", &[("sys_id", &format!("{n:032}"))]).expect("a record");
    }
    world.sim.clock().advance(Duration::from_secs(300));
    world.filled().await;
    world
        .sim
        .edit()
        .without_workflow()
        .delete("cmn_cost_center", &format!("{:032}", 777))
        .expect("it is there");
    world.sim.clear_requests();
    world.reconcile().await;
    world.assert_alike();
    let (counts, sweeps, looks) = world.calls();
    assert!(counts <= 10 && sweeps <= 3 && looks == 1, "{counts} counts, {sweeps} sweeps, {looks} looks");
}

#[tokio::test]
async fn hidden_records_are_counted_once_and_remembered() {
    let world = World::of_tasks().await.in_pages_of(10);
    world.sim.edit().add_acl(AclRule::Rows {
        table: "task".to_owned(),
        user: Some(INTEGRATION.to_owned()),
        query: "short_description!=secret^ORshort_descriptionISEMPTY".to_owned(),
    });
    let hide = |n: usize| {
        let fields = [("sys_id", format!("{n:x}{n:031x}")), ("short_description", "secret".to_owned())];
        let fields = fields.each_ref().map(|(field, value)| (*field, value.as_str()));
        world.sim.edit().insert("problem", &fields).expect("a record");
    };
    (0..8).for_each(hide);
    world.filled().await;
    assert_eq!(world.remembered(), 8, "the fill has seen it");
    world.sim.clear_requests();
    world.reconcile().await;
    assert_eq!(world.calls(), (1, 0, 0));
    hide(9);
    world.sim.clock().advance(Duration::from_secs(70));
    world.sim.edit().without_workflow().delete_where("task", "number=INC0012345").expect("a query");
    world.sim.edit().delete_where("task", "short_description=secret^sys_id<2").expect("a query");
    world.reconcile().await;
    world.assert_alike();
    assert_eq!(world.remembered(), 7);
    world.sim.clear_requests();
    world.reconcile().await;
    assert_eq!(world.calls(), (1, 0, 0));
}

/// Then nothing at all is known of what is hidden, and everything is looked into.
#[tokio::test]
async fn what_is_hidden_is_found_without_any_memory() {
    for query in ["sys_id<4^ORsys_id>6", "sys_id>4^sys_id<a", "sys_id>zz"] {
        let world = World::of_tasks().await.in_pages_of(10);
        world.sim.edit().add_acl(AclRule::Rows {
            table: "task".to_owned(),
            user: Some(INTEGRATION.to_owned()),
            query: query.to_owned(),
        });
        world.filled().await;
        let hidden = world.remembered();
        assert!(hidden > 0);
        world.store.with(|m| m.hidden.clear());
        world.reconcile().await;
        assert_eq!(world.remembered(), hidden);
        world.sim.clear_requests();
        world.reconcile().await;
        assert_eq!(world.calls(), (1, 0, 0));
    }
}

/// As after somebody has emptied the cache, or a right to most of the records was given.
#[tokio::test]
async fn a_table_most_of_which_is_missing_is_read_again() {
    let world = large(2_500).await;
    let most: Vec<String> = world.stored().into_keys().filter(|id| id.as_str() > "2").collect();
    world.store.with(|m| most.iter().for_each(|id| drop(m.rows.remove(id))));
    let mut mirror = world.due();
    while !matches!(mirror.position(), Position::Filling { refill: true, .. }) {
        mirror.advance().await.expect("a piece of work");
        assert!(!world.is_reconciled());
    }
    fill(&mut mirror).await.expect("it is filled");
    world.assert_alike();
    assert!(world.calls().2 == 0, "nothing is looked up one by one");
    while !world.is_reconciled() {
        mirror.advance().await.expect("a piece of work");
    }
}

#[tokio::test]
async fn polls_stay_due_while_counts_are_compared() {
    let mut world = World::of_tasks().await.in_pages_of(5);
    world.filled().await;
    let edit = world.sim.edit();
    let id = world.find("number=INC0012345");
    edit.clone().without_workflow().delete_where("task", "number!=INC0012345^stateIN1,2").expect("a query");
    world.spec.pace = Duration::ZERO.into();
    let mut mirror = world.due();
    let mut rounds = 0;
    while !world.is_reconciled() {
        rounds += 1;
        world.describe(&id, &format!("round {rounds}"));
        world.sim.clear_requests();
        mirror.advance().await.expect("a piece of work");
        assert_eq!(world.stored_description(&id), Some(format!("round {rounds}")));
        assert!(world.sim.requests().len() <= 5, "a piece is small");
    }
    assert!(rounds > 20, "{rounds}");
    world.assert_alike();
}

#[tokio::test]
async fn what_changes_while_counts_are_compared_is_not_mistaken() {
    let world = World::of_tasks().await.in_pages_of(5);
    world.filled().await;
    let ids: Vec<String> = world.truth().into_keys().collect();
    for id in ids.iter().step_by(7) {
        world.sim.edit().without_workflow().delete("task", id).expect("it is there");
    }
    let edit = world.sim.edit();
    let reconciled = meanwhile(world.reconcile(), |n| match n % 9 {
        _ if n > 400 => {}
        0 => drop(edit.insert("problem", &[("short_description", "new")])),
        3 => drop(edit.delete("task", &ids[n * 31 % ids.len()])),
        6 => drop(edit.update("task", &ids[n * 17 % ids.len()], &[("short_description", "changed")])),
        _ => {}
    });
    reconciled.await;
    world.read_deletes().await;
    world.reconcile().await;
    world.reconcile().await;
    world.assert_alike();
    assert_eq!(world.remembered(), 0);
}

/// Else each of them would cost as much as a missing one, and more would come in the time that takes.
#[tokio::test]
async fn records_that_come_meanwhile_do_not_pass_for_missing_ones() {
    let mut world = large(4_000).await;
    world.spec.pace = Duration::from_secs(3_600).into();
    let ids: Vec<String> = world.truth().into_keys().collect();
    let edit = world.sim.edit();
    edit.clone().without_workflow().delete("cmn_cost_center", &ids[1_234]).expect("it is there");
    let come = |_| drop(edit.insert("cmn_cost_center", &[("name", "new")]).expect("a record"));
    meanwhile(world.reconcile(), come).await;
    let come = world.truth().len() - 3_999;
    let (counts, sweeps, looks) = world.calls();
    assert!(come > 20, "{come}");
    assert!(counts <= 10 && sweeps <= 6 && looks <= 2, "{counts} counts, {sweeps} sweeps, {looks} looks");
    assert!(!world.stored().contains_key(&ids[1_234]));
    poll(&mut world.mirror()).await;
    world.assert_alike();
}

#[tokio::test]
async fn where_the_time_records_came_cannot_be_asked_for_all_are_counted() {
    let world = World::of_tasks().await.in_pages_of(10);
    world.sim.edit().add_acl(AclRule::QueryRange {
        table: "task".to_owned(),
        field: "sys_created_on".to_owned(),
        user: Some(INTEGRATION.to_owned()),
    });
    world.filled().await;
    world.sim.edit().without_workflow().delete_where("task", "state=1").expect("a query");
    world.reconcile().await;
    world.assert_alike();
}

/// Failures are said, do not keep polls, and are got over.
#[tokio::test]
async fn a_comparison_comes_through_every_failure() {
    for effects in all_effects().chunks(8) {
        join_all(effects.iter().cloned().map(comes_through)).await;
    }
}

async fn comes_through(effect: Effect) {
    let mut world = World::of_tasks().await.in_pages_of(10);
    world.filled().await;
    world.client = client(&world.sim, world.user, 1);
    world.sim.edit().without_workflow().delete_where("task", "state=1").expect("a query");
    let stats = world.sim.fault(Fault::new(effect.clone()).path("/api/now/stats/").after(2).times(1));
    let looks = world.sim.fault(Fault::new(effect.clone()).path("sys_idIN").times(1));
    let mut mirror = world.due();
    let id = world.find("number=INC0012345");
    for round in 0.. {
        assert!(round < 3_000, "{effect:?} is got over");
        world.describe(&id, &format!("round {round}"));
        mirror.nudge();
        if mirror.advance().await.is_ok() {
            assert_eq!(world.stored_description(&id), Some(format!("round {round}")), "{effect:?}");
        }
        if world.is_reconciled() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((world.sim.fault_count(stats), world.sim.fault_count(looks)), (1, 1), "{effect:?}");
    world.assert_alike();
}

#[tokio::test]
async fn a_comparison_that_ends_anywhere_is_repeated() {
    let mut polls = 1;
    loop {
        let world = World::of_tasks().await.in_pages_of(10);
        world.filled().await;
        world.sim.edit().without_workflow().delete_where("task", "active=false").expect("a query");
        let done = at_most(world.reconcile(), polls).await.is_some();
        world.reconcile().await;
        world.assert_alike();
        assert_eq!(world.remembered(), 0);
        if done {
            break;
        }
        polls += 1 + polls / 8;
    }
    assert!(polls > 20, "it was interrupted often");
}

#[tokio::test]
async fn where_the_aggregate_api_is_refused_lists_are_counted() {
    let world = World::of_tasks().await.in_pages_of(10);
    world.filled().await;
    world.sim.fault(Fault::new(Effect::Status { status: 403, html: false }).path("/api/now/stats/"));
    world.sim.edit().without_workflow().delete_where("task", "state=1").expect("a query");
    world.reconcile().await;
    world.assert_alike();
}

/// While somebody writes a record it cannot leave; it does when they are done.
#[tokio::test]
async fn a_record_somebody_is_writing_leaves_when_they_are_done() {
    let world = World::of_tasks().await.in_pages_of(10);
    let mut mirror = world.filled().await;
    let id = world.find("number=INC0012345");
    world.store.hold(&id);
    world.sim.edit().without_workflow().delete("task", &id).expect("it is there");
    world.reconcile().await;
    assert!(world.stored().contains_key(&id));
    world.store.let_go();
    poll(&mut mirror).await;
    world.assert_alike();
}

/// A part that is read reaches beyond what is held at a time only if it is far larger than expected.
#[tokio::test]
async fn a_range_of_which_the_store_has_nothing_is_read_whole() {
    let world = large(1_000).await;
    let range = Range { lower: None, upper: Some(SysId::new("4")) };
    let gone: Vec<String> = world.stored().into_keys().filter(|id| range.contains(id)).collect();
    assert!(gone.len() > 200);
    world.store.with(|m| gone.iter().for_each(|id| drop(m.rows.remove(id))));
    world.reconcile().await;
    world.assert_alike();
}

/// A clock here that was set back delays nothing until it shows the old time again.
#[tokio::test]
async fn a_comparison_in_the_future_is_no_reason_to_wait() {
    let world = large(200).await;
    let long = Duration::from_secs(1_000_000);
    let ahead = SystemTime::now() + long;
    let scrub = ScrubPosition { began: ahead, after: None, read: 0, total: 200 };
    world.store.with(|m| {
        m.upkeep.reconciled = Some(ahead);
        m.upkeep.scrub = Some(scrub);
    });
    let mut mirror = world.mirror();
    let mut pause = Duration::ZERO;
    for _ in 0..100 {
        pause = mirror.advance().await.expect("a piece of work");
        if world.store.with(|m| m.upkeep.reconciled) < Some(ahead) && !pause.is_zero() {
            break;
        }
    }
    assert!(world.store.with(|m| m.upkeep.reconciled) < Some(ahead), "it was compared");
    assert!(pause < long, "{pause:?}");
}

/// What fails between polls is not over when a poll succeeds.
#[tokio::test]
async fn an_error_of_the_upkeep_stays_until_it_succeeds() {
    let mut world = large(200).await;
    world.client = client(&world.sim, INTEGRATION, 1);
    world.sim.edit().without_workflow().delete_where("cmn_cost_center", "name=7").expect("a query");
    let fault = world.sim.fault(Fault::new(Effect::Status { status: 500, html: false }).path("/stats/"));
    let mut mirror = world.due();
    let failure = || world.store.with(|m| m.failure.clone());
    mirror.advance().await.expect("that is said, and polls go on");
    assert!(failure().is_some());
    for _ in 0..3 {
        poll(&mut mirror).await;
        assert!(failure().is_some(), "it was not over");
    }
    world.sim.remove_fault(fault);
    for _ in 0..1_000 {
        mirror.nudge();
        mirror.advance().await.expect("a poll");
        if failure().is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(failure(), None);
    assert!(world.is_reconciled());
}
