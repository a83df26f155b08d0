//! What rows show of other tables' records.

use std::sync::Arc;

use servicenow::client::table_api::List;
use servicenow::page::{Column, Layout, Rows};
use servicenow::query::Query;
use servicenow::sync::metadata::NAMES_AT_A_TIME;
use servicenow::sync::store::{Step, Store};
use servicenow::value::{Kind, Show};

use crate::{World, poll};

/// Incidents with their callers: a name with its record beside, one without, and a list.
async fn world() -> World {
    let mut world = World::new("incident", &[]).await;
    let column = |field: &str, show| Column { field: field.to_owned(), show, kind: Kind::Text };
    world.spec.layout = Arc::new(Layout::new(vec![
        column("caller_id", Show::Value),
        column("caller_id", Show::Label),
        column("caller_id.name", Show::Value),
        column("watch_list", Show::Label),
    ]));
    world
}

async fn page(world: &World) -> Rows {
    let (table, query, layout) = (&world.spec.table, &Query::all(), &world.spec.layout);
    let list = List { table, query, layout, limit: 10_000, offset: 0, count: false };
    world.client.list(list).await.expect("a page").rows
}

#[tokio::test]
async fn a_page_from_before_a_rename_does_not_bring_the_old_name_back() {
    let world = world().await;
    let mut mirror = world.filled().await;
    poll(&mut mirror).await;
    let mut metadata = world.metadata();
    world.read_metadata(&mut metadata).await;
    let incident = world.find("number=INC0012345");
    let caller = world.stored()[&incident][0].clone();
    world.sim.edit().update("incident", &incident, &[("watch_list", &caller)]).expect("it is there");
    poll(&mut mirror).await;
    let old = page(&world).await;
    // It may be a row that is not there yet.
    let other = world.sim.edit().insert("incident", &[("caller_id", &caller)]).expect("a record");
    let old_and_new = page(&world).await;
    world.sim.edit().update("sys_user", &caller, &[("name", "Somebody Else")]).expect("a user");
    world.read_metadata(&mut metadata).await;
    let names = |id: &str| world.stored()[id][1..].to_vec();
    assert_eq!(names(&incident), ["Somebody Else"; 3]);
    for late in [old, old_and_new] {
        world.store.apply((), Step::Changed(late)).await.expect("the store keeps it");
        poll(&mut mirror).await;
        assert_eq!(names(&incident), ["Somebody Else"; 3]);
    }
    assert_eq!(names(&other)[..2], ["Somebody Else"; 2]);
    poll(&mut mirror).await;
    assert!(world.store.with(|m| m.recheck.is_empty()), "what was looked up is settled");
}

/// A user logs in: that is a change of the user, of which nobody shows anything.
#[tokio::test]
async fn a_record_that_changes_and_keeps_its_name_costs_nothing_the_second_time() {
    let world = world().await;
    world.filled().await;
    let mut metadata = world.metadata();
    world.read_metadata(&mut metadata).await;
    let caller = world.stored().into_values().find(|row| !row[0].is_empty()).expect("a caller")[0].clone();
    let logs_in = |n: usize| {
        world.sim.edit().update("sys_user", &caller, &[("title", &n.to_string())]).expect("a user");
    };
    logs_in(1);
    world.read_metadata(&mut metadata).await;
    world.sim.clear_requests();
    logs_in(2);
    world.read_metadata(&mut metadata).await;
    assert_eq!(world.lists().len(), 0);
}

/// Somebody is renamed, a row is read that shows it, and they are renamed back, all between two readings.
#[tokio::test]
async fn a_name_that_came_back_meanwhile_is_shown_again() {
    let world = world().await;
    let mut mirror = world.filled().await;
    let mut metadata = world.metadata();
    world.read_metadata(&mut metadata).await;
    let incident = world.find("number=INC0012345");
    let caller = world.stored()[&incident][0].clone();
    let name = world.stored()[&incident][1].clone();
    let rename =
        |name: &str| world.sim.edit().update("sys_user", &caller, &[("name", name)]).expect("a user");
    rename("Somebody");
    rename(&name);
    world.read_metadata(&mut metadata).await;
    rename("Somebody Else");
    world.sim.edit().update("incident", &incident, &[("short_description", "changed")]).expect("it is there");
    poll(&mut mirror).await;
    assert_eq!(world.stored()[&incident][1..3], ["Somebody Else"; 2]);
    rename(&name);
    world.read_metadata(&mut metadata).await;
    assert_eq!(world.stored()[&incident][1..3], [name.as_str(); 2]);
}

/// However many records are renamed at once, they are handed on some at a time.
#[tokio::test]
async fn many_renamed_records_are_told_of_some_at_a_time() {
    let world = world().await;
    world.filled().await;
    let mut metadata = world.metadata();
    world.read_metadata(&mut metadata).await;
    for n in 0..NAMES_AT_A_TIME + 1_500 {
        world.sim.edit().insert("sys_user", &[("name", &format!("Somebody {n}"))]).expect("a user");
    }
    world.read_metadata(&mut metadata).await;
    let told = world.store.relabelled();
    assert!(told.iter().all(|records| *records <= NAMES_AT_A_TIME + 1_000), "{told:?}");
    assert!(told.iter().sum::<usize>() >= NAMES_AT_A_TIME + 1_500, "{told:?}");
}
