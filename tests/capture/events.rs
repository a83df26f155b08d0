//! What events tell of that is more than a change of a record in a table as it was.

use servicenow_sim::AclRule;
use world::{INTEGRATION, World};

use crate::{
    COLUMNS, INCIDENT, capture_incidents, captured, lists, looked_up, name, rules, until, until_captured,
    until_state, world,
};

/// A record that becomes one of another class leaves the one table and comes into the other.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_change_their_class_change_tables() {
    let world = captured().await;
    world.db.run("CREATE FOREIGN TABLE task (sys_id text, sys_class_name text, short_description text) SERVER acme").await;
    world.db.run("CREATE FOREIGN TABLE problem (sys_id text, short_description text) SERVER acme").await;
    world.sync("task").await;
    world.sync("problem").await;
    until_captured(&world).await;
    let from = world.sim.requests().len();
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("task", &id, &[("sys_class_name", "problem")]).expect("it is there");
    for here in [
        format!("SELECT EXISTS (SELECT FROM problem WHERE sys_id = '{id}')"),
        format!("SELECT NOT EXISTS (SELECT FROM incident WHERE sys_id = '{id}')"),
        format!("SELECT sys_class_name = 'problem' FROM task WHERE sys_id = '{id}'"),
    ] {
        world.until(&here).await;
    }
    let polls = lists(&world, "incident", from)
        .into_iter()
        .filter(|list| list.parameter("sysparm_query").is_some_and(|query| query.contains("sys_updated_on")));
    assert_eq!(polls.count(), 0, "no poll was needed");
    world.sim.edit().delete("problem", &id).expect("it is there");
    for table in ["problem", "task"] {
        world.until(&format!("SELECT NOT EXISTS (SELECT FROM {table} WHERE sys_id = '{id}')")).await;
    }
    until_state(&world, "active").await;
}

/// Between two looks into the queue a record was made and deleted, the one told of before the other: it is not looked for
/// any longer once it is known to be gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_told_to_be_gone_is_not_waited_for() {
    let world = captured().await;
    let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    let id = "0123456789abcdef0123456789abcdef";
    let from = world.sim.requests().len();
    let tell = |operation: &str, count: &str| {
        let told = [
            ("u_table", "incident"),
            ("u_record", id),
            ("u_operation", operation),
            ("u_mod_count", count),
            ("u_updated_on", "2026-01-01 00:00:00"),
        ];
        world.sim.edit().insert(&queue, &told).expect("an event");
    };
    tell("update", "1");
    world.until("SELECT count(*) = 1 AND min(looks) > 0 FROM servicenow.recheck").await;
    // It is not known to be gone by what was before that.
    tell("delete", "0");
    world.until("SELECT events = 2 FROM servicenow.stat_capture").await;
    assert!(world.db.value::<bool>("SELECT NOT bool_or(gone) FROM servicenow.recheck").await);
    let before = looked_up(&world, from).len();
    tell("delete", "1");
    let began = std::time::Instant::now();
    world.until("SELECT NOT EXISTS (SELECT FROM servicenow.recheck)").await;
    let looks = looked_up(&world, from).len();
    assert!(looks <= before + 2, "{looks} looks, {before} of them before, in {:?}", began.elapsed());
    until_state(&world, "active").await;
}

/// A table of some records only: those that match come, those that match no more leave.
#[tokio::test(flavor = "multi_thread")]
async fn records_enter_and_leave_the_query_of_a_table() {
    let world = world("queue").await;
    let edit = world.sim.edit();
    let ids = edit.find("incident", "ORDERBYsys_id").expect("a query");
    let call = |id: &str, text: &str| {
        edit.update("incident", id, &[("short_description", text)]).expect("it is there");
    };
    for id in &ids[..3] {
        call(id, "inside");
    }
    world.db.run(&format!("{INCIDENT} OPTIONS (query 'short_descriptionSTARTSWITHinside')")).await;
    world.sync("incident").await;
    world.db.run("SELECT servicenow.install_capture('acme')").await;
    until_captured(&world).await;
    call(&ids[0], "outside now");
    edit.delete("incident", &ids[1]).expect("it is there");
    call(&ids[3], "inside now");
    call(&ids[4], "outside as before");
    edit.insert("incident", &[("short_description", "never inside")]).expect("a record");
    let made = edit.insert("incident", &[("short_description", "inside from the first")]).expect("a record");
    let mut expected = [&ids[2], &ids[3], &made];
    expected.sort();
    let here = format!(
        "SELECT array_agg(sys_id ORDER BY sys_id) = ARRAY['{}', '{}', '{}'] FROM incident",
        expected[0], expected[1], expected[2]
    );
    world.until(&here).await;
    world.until("SELECT events = 6 FROM servicenow.stat_capture").await;
    let polled = "SELECT count(*) FROM servicenow._sync_cdc WHERE source NOT IN ('capture', 'backfill')";
    assert_eq!(world.db.value::<i64>(polled).await, 0, "no poll has brought them");
    assert!(world.db.value::<bool>(&here).await);
}

/// What is told of while a table is read anew, page by page, is not undone by pages that were asked for before.
#[tokio::test(flavor = "multi_thread")]
async fn events_during_a_fill_are_not_lost() {
    let world = captured().await;
    let edit = world.sim.edit();
    let ids = edit.find("incident", "ORDERBYsys_id").expect("a query");
    world.db.run("ALTER SERVER acme OPTIONS (ADD page_size '5', ADD max_concurrency '2')").await;
    world.sim.set(|s| s.latency_ms = 40);
    let from = world.sim.requests().len();
    world.db.run("SELECT servicenow.resync('incident')").await;
    until(|| lists(&world, "incident", from).len() > 2).await;
    for (n, id) in ids.iter().enumerate().take(60) {
        match n % 3 {
            0 => edit.update("incident", id, &[("short_description", &format!("during {n}"))]),
            1 => edit.delete("incident", id),
            _ => edit.insert("incident", &[("short_description", &format!("made {n}"))]).map(drop),
        }
        .expect("it is there");
    }
    world.sim.set(|s| s.latency_ms = 0);
    world.until("SELECT bool_and(phase = 'synced') FROM servicenow.sync_status").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    world.until("SELECT NOT EXISTS (SELECT FROM servicenow.recheck)").await;
    until_state(&world, "active").await;
}

/// The user may not read the queue any more, then not the records: it is said, polls go on, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_lost_later_are_named_and_come_back() {
    let world = captured().await;
    let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    let edit = world.sim.edit();
    let id = world.find("incident", "number=INC0012345");
    edit.revoke_role(INTEGRATION, "admin").expect("a role");
    edit.add_acl(AclRule::Rows {
        table: queue.clone(),
        user: Some(INTEGRATION.to_owned()),
        query: "sys_id=nothing".to_owned(),
    });
    edit.update("incident", &id, &[("short_description", "hidden event")]).expect("it is there");
    until_state(&world, "failed").await;
    let why = world.db.value::<String>("SELECT capture_error FROM servicenow.sync_status").await;
    assert!(why.contains(&queue) && why.contains("hidden from this user"), "{why}");
    // The polls are what they would be without capture.
    world.until("SELECT short_description = 'hidden event' FROM incident WHERE number = 'INC0012345'").await;
    edit.clear_acls();
    until_state(&world, "active").await;
    until(|| edit.find(&queue, "").expect("a table").is_empty()).await;
    // The record itself is shown no more: it leaves. When it is shown again that leaves no trace, but for counts.
    edit.add_acl(AclRule::Rows {
        table: "incident".to_owned(),
        user: Some(INTEGRATION.to_owned()),
        query: format!("sys_id!={id}"),
    });
    edit.update("incident", &id, &[("short_description", "hidden record")]).expect("it is there");
    world.until(&format!("SELECT NOT EXISTS (SELECT FROM incident WHERE sys_id = '{id}')")).await;
    edit.clear_acls();
    edit.update("incident", &id, &[("short_description", "shown again")]).expect("it is there");
    world.until("SELECT EXISTS (SELECT FROM incident WHERE short_description = 'shown again')").await;
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// A server that goes takes the reader along; the next one of its name begins anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_dropped_is_not_listened_to_any_more() {
    let world = captured().await;
    let (before, url) = (name(&world).await, world.sim.url().to_owned());
    let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    world.db.run("SELECT servicenow.uninstall_capture('acme')").await;
    world.db.run("DROP SERVER acme CASCADE").await;
    assert!(rules(&world, &before).is_empty());
    world.until("SELECT NOT EXISTS (SELECT FROM servicenow.stat_capture)").await;
    let seen = looks(&world, &queue);
    world
        .db
        .run(&format!(
            "CREATE SERVER acme FOREIGN DATA WRAPPER servicenow_fdw
             OPTIONS (instance_url '{url}', poll_interval '2 s', capture 'queue');
             CREATE USER MAPPING FOR PUBLIC SERVER acme
             OPTIONS (auth 'client_credentials', client_id 'fdw-client', client_secret 'fdw-client-secret')"
        ))
        .await;
    let world = capture_incidents(world).await;
    assert_ne!(name(&world).await, before);
    let id = world.find("incident", "number=INC0012345");
    let from = world.sim.requests().len();
    world
        .sim
        .edit()
        .update("incident", &id, &[("short_description", "to the new one")])
        .expect("it is there");
    world
        .until("SELECT short_description = 'to the new one' FROM incident WHERE number = 'INC0012345'")
        .await;
    assert!(!looked_up(&world, from).is_empty(), "an event has brought it");
    let looks = looks(&world, &queue);
    assert!(looks <= seen + 1, "one may have been under way: {looks}, {seen} before");
}

/// How often a queue was looked into.
fn looks(world: &World, queue: &str) -> usize {
    world.sim.requests().iter().filter(|call| call.table.as_deref() == Some(queue)).count()
}
