//! Reading a whole table, while nothing happens and while everything does.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use servicenow::sync::range::Range;
use servicenow::sync::store::Position;
use servicenow_sim::{AclRule, Cut, Dataset, Effect, Fault};

use crate::restart::begun;
use crate::{INTEGRATION, TASK_FIELDS, World, fill, poll};

/// Runs a future, and does something each time before it goes on.
pub async fn meanwhile<F: Future>(future: F, mut each: impl FnMut(usize)) -> F::Output {
    let mut future = pin!(future);
    let mut times = 0;
    std::future::poll_fn(move |cx| {
        times += 1;
        each(times);
        future.as_mut().poll(cx)
    })
    .await
}

#[tokio::test]
async fn a_table_is_filled_whatever_the_size_of_a_page() {
    for rows in [1, 2, 7, 50, 1_000] {
        let world = World::of_tasks().await.in_pages_of(rows);
        world.filled().await;
        world.assert_alike();
    }
}

#[tokio::test]
async fn a_small_table_takes_one_look_and_one_page() {
    let world = World::new("sc_catalog", &["title"]).await;
    world.filled().await;
    assert_eq!(world.lists().len(), 2);
}

#[tokio::test]
async fn an_empty_table_is_filled() {
    let world = World::new("sys_flow_context", &["name"]).await;
    assert!(world.truth().is_empty());
    world.filled().await;
    let new = world.sim.edit().insert("sys_flow_context", &[("name", "the first")]).expect("a record");
    poll(&mut world.mirror()).await;
    assert_eq!(world.stored()[&new], ["the first"]);
}

#[tokio::test]
async fn a_large_table_is_cut_into_ranges_and_filled_whole() {
    let world = World::with(Dataset::Incidents(4_100), "incident", &["number", "sys_updated_on"]).await;
    let mut mirror = world.mirror();
    mirror.advance().await.expect("it begins");
    let Position::Filling { open, .. } = mirror.position() else { panic!("{:?}", mirror.position()) };
    assert_eq!(open.len(), 16);
    fill(&mut mirror).await.expect("it is filled");
    world.assert_alike();
    let asked_by_range = world
        .lists()
        .iter()
        .filter(|r| r.parameter("sysparm_query").is_some_and(|q| q.contains("sys_id<")))
        .count();
    assert!(asked_by_range >= 15, "{asked_by_range}");
}

#[tokio::test]
async fn a_store_that_is_slow_does_not_have_ever_more_pages_wait_for_it() {
    let world = World::with(Dataset::Incidents(4_100), "incident", &["number"]).await.in_pages_of(50);
    let mut mirror = world.mirror();
    mirror.advance().await.expect("it begins");
    world.store.be_stuck(true);
    world.sim.clear_requests();
    let filled = tokio::time::timeout(Duration::from_millis(300), mirror.advance()).await;
    assert!(filled.is_err() && world.lists().len() <= world.spec.parallel, "{}", world.lists().len());
    world.store.be_stuck(false);
    fill(&mut world.mirror()).await.expect("it is filled");
    world.assert_alike();
}

/// Identifiers need not be random: the ranges are cut where the records are.
#[tokio::test]
async fn ranges_hold_about_the_same_number_of_records_whatever_the_identifiers() {
    for digits in [6, 32] {
        let world = World::new("cmn_cost_center", &["name"]).await.in_pages_of(20);
        world.sim.edit().delete_where("cmn_cost_center", "").expect("a query");
        for n in 0..4_000 {
            let id =
                if n < 800 { format!("{n:031x}f").chars().rev().collect() } else { format!("{n:0digits$}") };
            world.sim.edit().insert("cmn_cost_center", &[("sys_id", &id)]).expect("a record");
        }
        for id in ["global", "a,b", "ÄÖ"] {
            world.sim.edit().insert("cmn_cost_center", &[("sys_id", id)]).expect("a record");
        }
        let mut mirror = world.mirror();
        mirror.advance().await.expect("it begins");
        let calls =
            world.sim.requests().iter().filter(|r| r.table.as_deref() == Some("cmn_cost_center")).count();
        assert!(calls <= 1 + 16 + 32 + 2, "{calls}");
        let Position::Filling { open, .. } = mirror.position().clone() else {
            panic!("{:?}", mirror.position())
        };
        let ids: Vec<String> = world.truth().into_keys().collect();
        let held = open.iter().map(|o| ids.iter().filter(|id| o.range.contains(id)).count());
        assert_eq!(held.clone().sum::<usize>(), ids.len(), "each record lies in one range");
        let most = held.max().unwrap_or_default();
        assert!(most <= 2 * ids.len() / 16 + 1, "{most} of {} in one range", ids.len());
        fill(&mut mirror).await.expect("it is filled");
        world.assert_alike();
    }
}

/// A table that nobody shows a row of where it is cut, or whose deep pages take too long, is filled all the same.
#[tokio::test]
async fn ranges_that_cannot_be_cut_stay_as_they_are() {
    let world = World::new("cmn_cost_center", &["name"]).await.in_pages_of(20);
    for n in 0..4_000 {
        world.sim.edit().insert("cmn_cost_center", &[("sys_id", &format!("{n:032}"))]).expect("a record");
    }
    world.sim.fault(
        Fault::new(Effect::Cut { rows: 0, cut: Cut::Error }).table("cmn_cost_center").path("sysparm_offset="),
    );
    world.filled().await;
    world.assert_alike();
}

#[tokio::test]
async fn what_changed_last_is_there_first() {
    let world = World::of_tasks().await.in_pages_of(10);
    let changed: Vec<String> = world.truth().into_keys().step_by(7).collect();
    changed.iter().for_each(|id| world.describe(id, "just changed"));
    let mut mirror = world.mirror();
    mirror.advance().await.expect("it begins");
    assert!((10..20).contains(&changed.len()), "{}", changed.len());
    assert_eq!(world.stored().len(), 20);
    assert!(changed.iter().all(|id| world.stored_description(id).as_deref() == Some("just changed")));
    fill(&mut mirror).await.expect("it is filled");
    world.assert_alike();
    // Not when there are rows already, nor where it would not help.
    world.store.with(|m| m.position = Position::Start { refill: true });
    world.sim.clear_requests();
    world.mirror().advance().await.expect("it begins anew");
    assert!(!world.lists().iter().any(|r| r.parameter("sysparm_query").is_some_and(|q| q.contains("DESC"))));
}

/// Whatever hinders the newest rows hinders nothing else.
#[tokio::test]
async fn without_a_right_to_sort_by_time_a_table_is_filled() {
    let world = World::of_tasks().await.in_pages_of(10);
    world.sim.edit().add_acl(AclRule::QueryRange {
        table: "task".to_owned(),
        field: "sys_updated_on".to_owned(),
        user: Some(INTEGRATION.to_owned()),
    });
    fill(&mut world.mirror()).await.expect("it is filled");
    world.assert_alike();
}

/// Counting tells the last page, so that nobody has to look behind it.
#[tokio::test]
async fn a_fill_makes_no_call_too_many() {
    for (rows, ranges) in [(10, 1), (7, 1), (10, 4), (1_000, 16)] {
        let world = World::of_tasks().await.in_pages_of(rows);
        begun(&world, ranges, false);
        fill(&mut world.mirror()).await.expect("it is filled");
        world.assert_alike();
        let in_range = |range: &Range| world.truth().keys().filter(|id| range.contains(id)).count();
        let pages: usize =
            Range::partition(ranges).iter().map(|r| in_range(r).div_ceil(rows as usize).max(1)).sum();
        assert_eq!(world.lists().len(), pages, "pages of {rows}, {ranges} ranges");
    }
}

/// Identifiers are not always 32 hexadecimal digits, and some cannot stand in a query.
#[tokio::test]
async fn records_with_odd_identifiers_are_mirrored() {
    let odd = [
        "0",
        "4",
        "global",
        "GLOBAL-2",
        "zz top",
        "a^b",
        "a,b",
        "@",
        "ÄÖ",
        "F0F0",
        "~",
        "x".repeat(40).as_str(),
    ]
    .map(str::to_owned);
    for rows in [1, 3, 1_000] {
        let world = World::new("cmn_cost_center", &["name"]).await.in_pages_of(rows);
        for id in &odd {
            world.sim.edit().insert("cmn_cost_center", &[("sys_id", id), ("name", "odd")]).expect("a record");
        }
        let mut mirror = world.filled().await;
        world.assert_alike();
        for id in &odd {
            world.sim.edit().update("cmn_cost_center", id, &[("name", "changed")]).expect("it is there");
        }
        poll(&mut mirror).await;
        world.assert_alike();
        for id in &odd {
            world.sim.edit().delete("cmn_cost_center", id).expect("it is there");
        }
        world.read_deletes().await;
        world.assert_alike();
    }
}

#[tokio::test]
async fn what_changes_while_a_table_is_filled_is_there_after_one_poll() {
    let world = World::of_tasks().await.in_pages_of(10);
    world.read_deletes().await;
    let ids: Vec<String> = world.truth().into_keys().collect();
    let mut mirror = world.mirror();
    let edit = world.sim.edit();
    let filled = meanwhile(fill(&mut mirror), |n| {
        // Some behind and some ahead of where the fill is.
        let id = &ids[n * 37 % ids.len()];
        match n % 5 {
            0 => drop(edit.insert("problem", &[("short_description", "new")])),
            1 => drop(edit.delete("task", id)),
            _ => drop(edit.update("task", id, &[("short_description", &format!("changed {n}"))])),
        }
    });
    filled.await.expect("it is filled");
    poll(&mut mirror).await;
    world.read_deletes().await;
    world.assert_alike();
}

#[tokio::test]
async fn a_refill_lets_go_of_what_is_gone_and_sees_what_left_no_trace() {
    let world = World::of_tasks().await.in_pages_of(20);
    let mut mirror = world.filled().await;
    let ids: Vec<String> = world.truth().into_keys().collect();
    world.sim.edit().without_workflow().delete("task", &ids[0]).expect("it is there");
    world.sim.edit().without_workflow().delete("task", &ids[ids.len() - 1]).expect("it is there");
    world
        .sim
        .edit()
        .without_auto_sys_fields()
        .update("task", &ids[30], &[("short_description", "without a trace")])
        .expect("it is there");
    poll(&mut mirror).await;
    world.read_deletes().await;
    assert!(world.stored().contains_key(&ids[0]), "nothing tells of it");
    world.store.with(|m| m.position = Position::Start { refill: true });
    fill(&mut world.mirror()).await.expect("it is filled");
    world.assert_alike();
}

#[tokio::test]
async fn no_record_leaves_the_store_while_it_is_filled_anew() {
    let world = World::of_tasks().await.in_pages_of(20);
    world.filled().await;
    let before = world.stored();
    world.store.with(|m| m.position = Position::Start { refill: true });
    let mut mirror = world.mirror();
    meanwhile(fill(&mut mirror), |_| assert_eq!(world.stored().len(), before.len()))
        .await
        .expect("it is filled");
    world.assert_alike();
}

/// A record that the instance did not show, because it came in behind the reader, must not leave.
#[tokio::test]
async fn a_record_made_during_a_refill_stays() {
    let world = World::of_tasks().await.in_pages_of(10);
    let mut mirror = world.filled().await;
    poll(&mut mirror).await;
    world.store.with(|m| m.position = Position::Start { refill: true });
    let mut again = world.mirror();
    let mut made = Vec::new();
    let filled = meanwhile(fill(&mut again), |n| {
        if n < 20 {
            let id = format!("0{n:031x}"); // behind where the fill is, in the order of identifiers
            world.sim.edit().insert("problem", &[("sys_id", &id)]).expect("a record");
            made.push(id);
        }
    });
    filled.await.expect("it is filled");
    poll(&mut again).await;
    world.assert_alike();
    assert!(made.iter().all(|id| world.stored().contains_key(id)));
}

#[tokio::test]
async fn a_table_without_the_time_of_changes_is_read_as_a_whole_when_somebody_asks() {
    for says_when_records_came in [true, false] {
        a_table_is_read_as_a_whole_when_somebody_asks(says_when_records_came).await;
    }
}

async fn a_table_is_read_as_a_whole_when_somebody_asks(says_when_records_came: bool) {
    let world = World::new("u_pg_static", &["u_code"]).await.in_pages_of(2);
    let edit = world.sim.edit();
    if !says_when_records_came {
        // As far as its user is told.
        edit.add_acl(AclRule::Rows {
            table: "sys_dictionary".to_owned(),
            user: Some(INTEGRATION.to_owned()),
            query: "element!=sys_created_on".to_owned(),
        });
    }
    let ids: Vec<String> = (0..7)
        .map(|n| edit.insert("u_pg_static", &[("u_code", &n.to_string())]).expect("a record"))
        .collect();
    let mut mirror = world.mirror();
    fill(&mut mirror).await.expect("it is filled");
    world.assert_alike();
    edit.update("u_pg_static", &ids[0], &[("u_code", "changed")]).expect("it is there");
    edit.without_workflow().delete("u_pg_static", &ids[1]).expect("it is there");
    world.sim.edit().insert("u_pg_static", &[("u_code", "new")]).expect("a record");
    mirror.nudge();
    mirror.advance().await.expect("it begins anew");
    assert!(matches!(mirror.position(), Position::Filling { refill: true, .. }), "{:?}", mirror.position());
    fill(&mut mirror).await.expect("it is filled");
    world.assert_alike();
    world.sim.edit().delete_where("u_pg_static", "").expect("a query");
    mirror.nudge();
    mirror.advance().await.expect("it begins anew");
    fill(&mut mirror).await.expect("it is filled");
    assert!(world.stored().is_empty());
    mirror.advance().await.expect("nothing else is due");
    let mut lists = world.lists().into_iter();
    let polled =
        lists.any(|list| list.parameter("sysparm_query").is_some_and(|q| q.contains("sys_created_on")));
    assert_eq!(polled, says_when_records_came);
}

#[tokio::test]
async fn a_table_with_a_field_nobody_knows_is_not_read_at_all() {
    let world = World::new("task", &["number", "no_such_field"]).await;
    let stop = fill(&mut world.mirror()).await.expect_err("there is no such field");
    assert_eq!(stop.to_string(), "table \"task\" has no field \"no_such_field\"");
    assert!(world.stored().is_empty());
}

#[tokio::test]
async fn children_are_mirrored_with_their_parent() {
    let world = World::of_tasks().await;
    world.filled().await;
    let class = TASK_FIELDS.iter().position(|f| *f == "sys_class_name").expect("it is mirrored");
    let mut classes: Vec<String> = world.stored().into_values().map(|values| values[class].clone()).collect();
    classes.sort();
    classes.dedup();
    assert!(classes.len() > 3, "{classes:?}");
}

/// What others have asked for when one fails is kept: it need not be asked for again.
#[tokio::test]
async fn a_range_that_fails_does_not_cost_the_others_their_pages() {
    let world = World::with(Dataset::Incidents(4_000), "incident", &["number"]).await.in_pages_of(50);
    begun(&world, 4, false);
    let mut mirror = world.mirror();
    world.sim.set(|s| s.latency_ms = 20);
    // The ninth page fails at once, the others take a while.
    let refused = Effect::Status { status: 403, html: false };
    world.sim.fault(Fault::new(refused).table("incident").after(8).times(1));
    mirror.advance().await.expect_err("it fails");
    let asked = world
        .lists()
        .into_iter()
        .filter(|list| list.status == 200 && list.parameter("sysparm_query").is_some());
    let answered = asked.count();
    assert!(answered >= 8, "{answered}");
    assert_eq!(world.stored().len(), 50 * answered, "every page that was answered is kept");
    fill(&mut mirror).await.expect("it goes on");
    world.assert_alike();
}
