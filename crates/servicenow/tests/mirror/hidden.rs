//! Access control takes rows out of a page after its limit was applied: short and empty pages are not the end.

use servicenow_sim::{AclRule, Operation};

use crate::{INTEGRATION, TASK_FIELDS, World, fill, poll};

fn only(world: &World, table: &str, query: &str) {
    world.sim.edit().add_acl(AclRule::Rows {
        table: table.to_owned(),
        user: Some(INTEGRATION.to_owned()),
        query: query.to_owned(),
    });
}

#[tokio::test]
async fn a_user_of_few_records_gets_them_all() {
    for rows in [1, 2, 5, 20, 1_000] {
        let world = World::new("incident", TASK_FIELDS).await.seen_by("ess.user").in_pages_of(rows);
        let shown = world.truth().len();
        assert!(shown > 0 && shown < world.sim.truth("incident", "admin").expect("a table").len());
        let mut mirror = world.mirror();
        fill(&mut mirror).await.expect("it is filled");
        world.assert_alike();
        let id = world.truth().into_keys().next_back().expect("there is one");
        world.describe(&id, "changed");
        poll(&mut mirror).await;
        world.assert_alike();
    }
}

/// The first, the middle and the last pages show nothing at all.
#[tokio::test]
async fn pages_without_any_row_are_not_the_end() {
    for query in
        ["sys_id>c", "sys_id<4", "sys_id<4^ORsys_id>c", "sys_id>4^sys_id<c", "sys_id>zz", "sys_idSTARTSWITH7"]
    {
        for rows in [1, 3, 10] {
            let world = World::of_tasks().await.in_pages_of(rows);
            only(&world, "task", query);
            let mut mirror = world.filled().await;
            world.assert_alike();
            world.sim.edit().update_where("task", "", &[("short_description", "changed")]).expect("a query");
            poll(&mut mirror).await;
            world.assert_alike();
        }
    }
}

#[tokio::test]
async fn hidden_rows_that_come_and_go_do_not_end_a_fill_early() {
    let world = World::of_tasks().await.in_pages_of(5);
    only(&world, "task", "sys_id<2^ORsys_id>d");
    world.read_deletes().await;
    let mut mirror = world.mirror();
    let edit = world.sim.edit();
    let filled = fill::meanwhile(fill(&mut mirror), |n| {
        let id = format!("5{n:031x}");
        match n % 3 {
            _ if n > 60 => {} // else it would go on for ever
            0 | 1 => drop(edit.insert("problem", &[("sys_id", &id)])),
            _ => drop(edit.delete("problem", &format!("5{:031x}", n - 1))),
        }
    });
    filled.await.expect("it is filled");
    poll(&mut mirror).await;
    world.assert_alike();
}

#[tokio::test]
async fn hidden_rows_among_thousands_of_one_second_do_not_end_a_poll_early() {
    let world = World::new("cmn_cost_center", &["name"]).await.in_pages_of(50);
    only(&world, "cmn_cost_center", "nameSTARTSWITHseen");
    let mut mirror = world.filled().await;
    world.sim.clock().hold(true);
    for n in 0..1_200 {
        let name = if n % 400 < 20 { format!("seen {n}") } else { format!("hidden {n}") };
        // Identifiers in order, so that whole pages are hidden.
        let id = format!("{n:032x}");
        world.sim.edit().insert("cmn_cost_center", &[("sys_id", &id), ("name", &name)]).expect("a record");
    }
    poll(&mut mirror).await;
    world.assert_alike();
    assert_eq!(world.stored().values().filter(|values| values[0].starts_with("seen")).count(), 60);
}

/// They are counted all the same.
#[tokio::test]
async fn a_table_of_which_no_row_is_shown_is_filled() {
    let world = World::of_tasks().await.in_pages_of(20);
    world.sim.edit().add_acl(AclRule::Table {
        table: "task".to_owned(),
        user: Some(INTEGRATION.to_owned()),
        operation: Operation::Read,
        refuse: false,
    });
    let mut mirror = world.filled().await;
    assert!(world.stored().is_empty());
    world.sim.edit().clear_acls();
    world.sim.edit().update_where("task", "", &[("short_description", "changed")]).expect("a query");
    poll(&mut mirror).await;
    world.assert_alike();
}

#[tokio::test]
async fn a_field_that_is_hidden_reads_as_empty() {
    let world = World::of_tasks().await;
    for field in ["short_description", "sys_mod_count"] {
        world.sim.edit().add_acl(AclRule::FieldRead {
            table: "task".to_owned(),
            field: field.to_owned(),
            user: Some(INTEGRATION.to_owned()),
        });
    }
    let mut mirror = world.filled().await;
    world.assert_alike();
    let id = world.find("number=INC0012345");
    world.sim.edit().update("task", &id, &[("state", "3")]).expect("it is there");
    poll(&mut mirror).await;
    world.assert_alike();
}

/// Without a right to query the time of changes there is nothing to poll by; that is said, not passed over.
#[tokio::test]
async fn a_user_who_may_not_query_the_time_of_changes_is_told() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    world.sim.edit().add_acl(AclRule::QueryRange {
        table: "task".to_owned(),
        field: "sys_updated_on".to_owned(),
        user: Some(INTEGRATION.to_owned()),
    });
    mirror.advance().await.expect("what else there is to be done goes on");
    let failure = world.store.with(|m| m.failure.clone()).expect("it is said");
    assert!(failure.contains("present in the query"), "{failure}");
    world.sim.edit().clear_acls();
    world.describe(&world.find("number=INC0012345"), "changed meanwhile");
    poll(&mut mirror).await;
    world.assert_alike();
    assert_eq!(world.store.with(|m| m.failure.clone()), None, "it is over");
}

#[tokio::test]
async fn hidden_entries_do_not_end_the_reading_of_deletions_early() {
    let world = World::of_tasks().await;
    only(&world, "sys_audit_delete", "tablename!=cmn_cost_center");
    world.filled().await;
    world.sim.clock().hold(true);
    for n in 0..1_500 {
        let id = format!("{n:032x}");
        world.sim.edit().insert("cmn_cost_center", &[("sys_id", &id)]).expect("a record");
    }
    world.sim.edit().delete_where("cmn_cost_center", "").expect("a query");
    world.sim.edit().delete_where("incident", "state=7").expect("a query");
    world.sim.clock().advance(std::time::Duration::from_secs(5));
    world.sim.edit().delete_where("incident", "number=INC0012345").expect("a query");
    world.read_deletes().await;
    world.assert_alike();
}
