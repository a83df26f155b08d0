//! Changes arrive by a table in the instance.

use std::time::Duration;

use servicenow_sim::{Effect, Fault, LoggedRequest};
use world::World;

use crate::{
    COLUMNS, INCIDENT, captured, lists, looked_up, name, rules, until, until_captured, until_state, world,
};

/// What the log of changes says of a record.
async fn logged(world: &World, id: &str) -> String {
    let ops = format!(
        "SELECT coalesce(string_agg(op || ' by ' || source, ', ' ORDER BY seq), '') FROM servicenow._sync_cdc
         WHERE sys_id = '{id}'"
    );
    world.db.value::<String>(&ops).await
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_every_kind_arrive_without_a_poll() {
    let world = captured().await;
    let from = world.sim.requests().len();
    let edit = world.sim.edit();
    let id = edit.insert("incident", &[("short_description", "made")]).expect("a record");
    world.until(&format!("SELECT EXISTS (SELECT FROM incident WHERE sys_id = '{id}')")).await;
    edit.update("incident", &id, &[("short_description", "changed")]).expect("it is there");
    world.until(&format!("SELECT short_description = 'changed' FROM incident WHERE sys_id = '{id}'")).await;
    edit.delete("incident", &id).expect("it is there");
    world.until(&format!("SELECT NOT EXISTS (SELECT FROM incident WHERE sys_id = '{id}')")).await;
    assert_eq!(logged(&world, &id).await, "insert by capture, update by capture, delete by capture");
    let polls = lists(&world, "incident", from)
        .into_iter()
        .filter(|list| list.parameter("sysparm_query").is_some_and(|query| query.contains("sys_updated_on")));
    assert_eq!(polls.count(), 0, "a poll was not needed");
    world.until("SELECT events = 3 AND lag IS NOT NULL AND refused = 0 FROM servicenow.stat_capture").await;
    let shown = "SELECT capture_events = 3 AND capture_coalesced = 0 AND capture_refused = 0 FROM servicenow.sync_status";
    assert!(world.db.value::<bool>(shown).await);
    world.until_like_the_instance("incident", COLUMNS).await;
    let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    assert!(world.sim.edit().find(&queue, "").expect("a table").is_empty(), "what was read is deleted");
}

/// What we write ourselves comes back, and costs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn own_writes_are_not_asked_for() {
    let world = captured().await;
    let from = world.sim.requests().len();
    world.db.run("UPDATE incident SET short_description = 'ours' WHERE number = 'INC0012345'").await;
    let made = world
        .db
        .value::<String>("INSERT INTO incident (short_description) VALUES ('made here') RETURNING sys_id")
        .await;
    // A worker that has read of the record's making, and not yet of its end, asks once it finds no row.
    world.until("SELECT events >= 2 FROM servicenow.stat_capture").await;
    world.db.run("DELETE FROM incident WHERE short_description = 'made here'").await;
    world.until("SELECT events >= 3 FROM servicenow.stat_capture").await;
    world.until("SELECT NOT EXISTS (SELECT FROM servicenow.recheck)").await;
    assert_eq!(looked_up(&world, from), Vec::<String>::new());
    assert_eq!(logged(&world, &made).await, "insert by write, delete by write");
    world.until_like_the_instance("incident", COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tables_join_and_dropped_ones_leave() {
    let world = captured().await;
    let name = name(&world).await;
    world.db.run("CREATE FOREIGN TABLE problem (sys_id text, short_description text) SERVER acme").await;
    world.sync("problem").await;
    let tables = || rules(&world, &name).into_iter().map(|(_, table)| table).collect::<Vec<_>>();
    until(|| tables() == ["incident", "problem"]).await;
    until_state(&world, "active").await;
    let id = world.sim.edit().insert("problem", &[("short_description", "new")]).expect("a record");
    world.until(&format!("SELECT EXISTS (SELECT FROM problem WHERE sys_id = '{id}')")).await;
    world.db.run("DROP FOREIGN TABLE incident").await;
    until(|| tables() == ["problem"]).await;
}

/// The last table's rule does not stay behind.
#[tokio::test(flavor = "multi_thread")]
async fn no_rule_outlives_the_last_table() {
    let world = captured().await;
    let name = name(&world).await;
    world.db.run("DROP FOREIGN TABLE incident").await;
    until(|| rules(&world, &name).is_empty()).await;
    world.db.run(INCIDENT).await;
    until(|| rules(&world, &name).len() == 1).await;
    // Nobody can take them away when the server is gone.
    world.db.run("DROP SERVER acme CASCADE").await;
    let said = format!("Delete the Business Rules and the table named \"{name}\" there");
    until(|| world.cluster.log().contains(&said)).await;
}

/// What rules write must not be told of by rules.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_neither_imported_nor_told_of() {
    let world = captured().await;
    let name = name(&world).await;
    let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    world.db.run("CREATE SCHEMA custom; IMPORT FOREIGN SCHEMA u FROM SERVER acme INTO custom").await;
    let imported = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = 'custom'::regnamespace AND relkind = 'f'";
    let imported = world.db.value::<String>(imported).await;
    assert!(imported.contains("u_pg_widget") && !imported.contains("servicenow_fdw"), "{imported}");
    // Whoever names it gets it, and no rule with it.
    world.db.run("DROP SCHEMA custom CASCADE").await;
    world
        .db
        .run(&format!("CREATE FOREIGN TABLE queue (sys_id text) SERVER acme OPTIONS (table '{queue}')"))
        .await;
    world.db.run("CREATE FOREIGN TABLE problem (sys_id text) SERVER acme").await;
    let tables = || rules(&world, &name).into_iter().map(|(_, table)| table).collect::<Vec<_>>();
    until(|| tables() == ["incident", "problem"]).await;
    world.db.run("SELECT servicenow.install_capture('acme')").await;
    assert_eq!(tables(), ["incident", "problem"]);
    until_state(&world, "active").await;
    world.sim.edit().insert("problem", &[("short_description", "new")]).expect("a record");
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// Somebody was interrupted between the queue and its columns: what is written to a column that is not there is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_left_half_made_is_completed() {
    let world = world("queue").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.db.run("SELECT servicenow.capture_script('incident')").await;
    let name = name(&world).await;
    let queue = name.replace("servicenow_fdw ", "u_servicenow_fdw_");
    let edit = world.sim.edit();
    edit.insert("sys_db_object", &[("name", &queue), ("label", &name)]).expect("a table");
    world.db.run("SELECT servicenow.install_capture('acme')").await;
    let columns =
        || edit.find("sys_dictionary", &format!("name={queue}^elementSTARTSWITHu_")).expect("a query");
    assert_eq!(columns().len(), 6);
    until_captured(&world).await;
    let id = world.find("incident", "number=INC0012345");
    edit.update("incident", &id, &[("short_description", "told")]).expect("it is there");
    world.until("SELECT short_description = 'told' FROM incident WHERE number = 'INC0012345'").await;
    assert!(logged(&world, &id).await.contains("update by capture"));
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// One script deletes a record and makes it anew: both events are read at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_made_anew_is_not_taken_for_deleted() {
    let world = captured().await;
    let edit = world.sim.edit();
    let id = world.find("incident", "number=INC0012345");
    edit.delete("incident", &id).expect("it is there");
    edit.insert("incident", &[("sys_id", &id), ("number", "INC0012345"), ("short_description", "anew")])
        .expect("a record");
    let other = edit.insert("incident", &[("short_description", "short")]).expect("a record");
    edit.delete("incident", &other).expect("it is there");
    edit.insert("incident", &[("sys_id", &other), ("short_description", "again")]).expect("a record");
    for (id, text) in [(&id, "anew"), (&other, "again")] {
        world
            .until(&format!(
                "SELECT EXISTS (SELECT FROM incident WHERE sys_id = '{id}' AND short_description = '{text}')"
            ))
            .await;
    }
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// In an application of its own the platform has rules of others run in the background only.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_applications_are_told_of() {
    let world = world("queue").await;
    world
        .db
        .run("CREATE FOREIGN TABLE x_acme_app_thing (sys_id text, sys_mod_count bigint) SERVER acme")
        .await;
    world.sync("x_acme_app_thing").await;
    world.db.run("SELECT servicenow.install_capture('acme')").await;
    until_captured(&world).await;
    let name = name(&world).await;
    let (rule, _) = rules(&world, &name).pop().expect("a rule");
    assert_eq!(world.remote("sys_script", &rule, "when").as_deref(), Some("async"));
    let edit = world.sim.edit();
    let id = edit.insert("x_acme_app_thing", &[]).expect("a record");
    world.until(&format!("SELECT EXISTS (SELECT FROM x_acme_app_thing WHERE sys_id = '{id}')")).await;
    edit.delete("x_acme_app_thing", &id).expect("it is there");
    world.until(&format!("SELECT NOT EXISTS (SELECT FROM x_acme_app_thing WHERE sys_id = '{id}')")).await;
    world.until_like_the_instance("x_acme_app_thing", &["sys_mod_count"]).await;
    world.until("SELECT events = 2 AND state = 'active' FROM servicenow.stat_capture").await;
}

/// What is noted and not looked up yet is not there.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_to_be_looked_up_counts_as_lag() {
    let world = captured().await;
    let other = world.session().await;
    other.run("BEGIN; SELECT FROM incident WHERE number = 'INC0012345' FOR UPDATE").await;
    world
        .db
        .run(
            "INSERT INTO servicenow.recheck (foreign_table, sys_id, since)
             SELECT 'incident'::regclass, sys_id, now() - interval '1 hour' FROM incident WHERE number = 'INC0012345';
             UPDATE servicenow.sync_table SET last_poll_at = now() - interval '2 hours'",
        )
        .await;
    assert!(world.db.value::<bool>("SELECT lag > '59 minutes' FROM servicenow.sync_status").await);
    other.run("COMMIT").await;
    world.until("SELECT lag < '1 minute' FROM servicenow.sync_status").await;
}

/// Rules, rows and records that are not as they should be.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_make_no_sense_do_no_harm() {
    let world = captured().await;
    let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    let edit = world.sim.edit();
    let id = world.find("incident", "number=INC0012345");
    let rows: [&[(&str, &str)]; 5] = [
        &[("u_table", "no_such_table"), ("u_record", &id), ("u_operation", "update")],
        &[
            ("u_table", "incident"),
            ("u_record", "00000000000000000000000000000000"),
            ("u_operation", "insert"),
        ],
        &[("u_table", "in;cident"), ("u_record", "x"), ("u_sequence", "soon")],
        &[],
        &[
            ("u_table", "incident"),
            ("u_record", "it's ^ORa=b"),
            ("u_mod_count", "many"),
            ("u_updated_on", "now"),
        ],
    ];
    for row in rows {
        edit.insert(&queue, row).expect("a row");
    }
    until(|| world.sim.edit().find(&queue, "").expect("a table").is_empty()).await;
    edit.update("incident", &id, &[("short_description", "after that")]).expect("it is there");
    world.until("SELECT short_description = 'after that' FROM incident WHERE number = 'INC0012345'").await;
    world.until("SELECT NOT EXISTS (SELECT FROM servicenow.recheck)").await;
    until_state(&world, "active").await;
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// Rules that somebody has switched off, changed or deleted: that is said, and polls bring what they do not tell of.
#[tokio::test(flavor = "multi_thread")]
async fn the_cache_converges_when_rules_are_switched_off_and_it_is_said() {
    let world = captured().await;
    let name = name(&world).await;
    let (rule, _) = rules(&world, &name).pop().expect("a rule");
    let edit = world.sim.edit();
    edit.update("sys_script", &rule, &[("active", "false")]).expect("it is there");
    let id = world.find("incident", "number=INC0012345");
    edit.update("incident", &id, &[("short_description", "nobody tells")]).expect("it is there");
    // A session asks for what is there now, and by that notices that nobody has told of it.
    world.sync("incident").await;
    world.until("SELECT short_description = 'nobody tells' FROM incident WHERE number = 'INC0012345'").await;
    until_state(&world, "silent").await;
    edit.update("incident", &id, &[("short_description", "polled")]).expect("it is there");
    world.until("SELECT short_description = 'polled' FROM incident WHERE number = 'INC0012345'").await;
    // Installed once more it is as it was.
    world.db.run("SELECT servicenow.install_capture('acme')").await;
    assert_eq!(world.remote("sys_script", &rule, "active").as_deref(), Some("true"));
    until_state(&world, "active").await;
    edit.update("sys_script", &rule, &[("script", "gs.log('mine');")]).expect("it is there");
    world.stop_worker().await;
    world.db.run("SELECT servicenow.start_worker()").await;
    until_state(&world, "silent").await;
    let why = world.db.value::<String>("SELECT capture_error FROM servicenow.sync_status").await;
    assert_eq!(
        why,
        format!("field \"script\" of Business Rule \"{name}\" on table \"incident\" was changed")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_nobody_reads_is_bounded_and_caught_up_with() {
    let world = captured().await;
    let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    world.stop_worker().await;
    let edit = world.sim.edit();
    let id = world.find("incident", "number=INC0012345");
    for n in 0..50 {
        edit.update("incident", &id, &[("short_description", &format!("early {n}"))]).expect("it is there");
    }
    world.sim.clock().step(chrono::TimeDelta::days(5));
    for n in 0..300 {
        edit.update("incident", &id, &[("short_description", &format!("late {n}"))]).expect("it is there");
    }
    let left = edit.find(&queue, "").expect("a table").len();
    assert!((1..=300).contains(&left), "{left} rows are left");
    world.db.run("SELECT servicenow.start_worker()").await;
    world.until("SELECT short_description = 'late 299' FROM incident WHERE number = 'INC0012345'").await;
    until(|| edit.find(&queue, "").expect("a table").is_empty()).await;
    until_state(&world, "active").await;
}

/// Somebody else takes what is in the queue, as a copy of the whole server would.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_somebody_else_empties_too_is_given_up() {
    let world = captured().await;
    let before = world.db.value::<String>("SELECT subscription FROM servicenow.stat_capture").await;
    let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    let id = world.find("incident", "number=INC0012345");
    // Between reading and deleting there is time for somebody else.
    world.sim.set(|s| s.latency_ms = 50);
    let other = format!("SELECT subscription <> '{before}' FROM servicenow.stat_capture");
    let began = std::time::Instant::now();
    while !world.db.value::<bool>(&other).await {
        assert!(began.elapsed() < world::PATIENCE, "it gets another id");
        let (edit, again) = (world.sim.edit(), format!("{:?}", began.elapsed()));
        edit.update("incident", &id, &[("short_description", &again)]).expect("it is there");
        tokio::time::sleep(Duration::from_millis(40)).await;
        edit.delete_where(&queue, "").expect("a table");
    }
    world.sim.set(|s| s.latency_ms = 0);
    until_captured(&world).await;
    world.sim.edit().update("incident", &id, &[("short_description", "anew")]).expect("it is there");
    world.until("SELECT short_description = 'anew' FROM incident WHERE number = 'INC0012345'").await;
}

/// Much is changed at once: everything arrives, what is changed again and again is asked for seldom.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_absorbed() {
    let world = captured().await;
    let from = world.sim.requests().len();
    let ids = world.sim.edit().find("incident", "").expect("a query");
    for round in 0..60 {
        for id in &ids {
            let text = format!("round {round}");
            world.sim.edit().update("incident", id, &[("short_description", &text)]).expect("it is there");
        }
    }
    world.until_like_the_instance("incident", COLUMNS).await;
    let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    until(|| world.sim.edit().find(&queue, "").expect("a table").is_empty()).await;
    world.until(&format!("SELECT events = {} FROM servicenow.stat_capture", 60 * ids.len())).await;
    let coalesced =
        "SELECT capture_coalesced > 0 AND capture_coalesced < capture_events FROM servicenow.sync_status";
    assert!(world.db.value::<bool>(coalesced).await, "many of one record were read at once");
    let looks = lists(&world, "incident", from).len();
    assert!(looks < 3 * ids.len(), "{looks} looks for {} changes", 60 * ids.len());
    let calls = world.sim.requests().into_iter().skip(from);
    let deletions = calls.filter(|call| call.method == "DELETE" && call.table.as_deref() == Some(&queue));
    let (in_batches, alone): (Vec<_>, Vec<_>) = deletions.partition(|call| call.in_batch);
    assert!(10 * alone.len() < in_batches.len(), "{} alone, {} in batches", alone.len(), in_batches.len());
    until_state(&world, "active").await;
}

/// Many tables cost no more calls than one while nothing happens, polls as the backstop included; what nobody tells of
/// arrives by those all the same.
#[tokio::test(flavor = "multi_thread")]
async fn idle_tables_are_not_asked_for() {
    let world = captured().await;
    // What was made for capture is seen in the dictionary for a minute.
    world.sim.clock().step(chrono::TimeDelta::minutes(5));
    let others =
        ["problem", "task", "change_request", "sys_user", "sys_user_group", "cmdb_ci", "kb_knowledge"];
    for n in 0..49 {
        let table = others.get(n).unwrap_or(&"incident");
        let create = format!("CREATE FOREIGN TABLE t{n} (sys_id text, sys_mod_count bigint) SERVER acme");
        world.db.run(&format!("{create} OPTIONS (table '{table}')")).await;
    }
    world.until("SELECT count(*) = 50 AND bool_and(phase = 'synced') FROM servicenow.sync_status").await;
    // The backstop comes once in 60 of these.
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '200 ms')").await;
    until_captured(&world).await;
    let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    let calls = |from: usize| {
        let calls = world.sim.requests().into_iter().skip(from).filter(|call| !call.in_batch);
        calls.collect::<Vec<_>>()
    };
    let is_look = |call: &&LoggedRequest| call.table.as_deref() == Some(&queue);
    let looks = |from: usize| calls(from).iter().filter(is_look).count();
    let from = world.sim.requests().len();
    let began = world.db.value::<String>("SELECT clock_timestamp()::text").await;
    until(|| looks(from) >= 100).await;
    let polled = format!("SELECT bool_and(last_poll_at > '{began}') FROM servicenow.sync_status");
    assert!(world.db.value::<bool>(&polled).await, "the backstop has come by");
    let (calls, looks) = (calls(from), looks(from));
    let others: Vec<_> = calls.iter().filter(|call| !is_look(call)).map(|call| &call.path).collect();
    assert!(calls.len() as f64 <= 1.05 * looks as f64, "{looks} looks, and {others:?}");
    let id = world.sim.edit().find("problem", "").expect("a query").remove(0);
    world
        .sim
        .edit()
        .without_workflow()
        .update("problem", &id, &[("short_description", "x")])
        .expect("it is there");
    let count = world.remote("problem", &id, "sys_mod_count").expect("a record");
    world.until(&format!("SELECT sys_mod_count = {count} FROM t0 WHERE sys_id = '{id}'")).await;
}

/// Many changes at once are polled, a page at a time, instead of being looked up record by record.
#[tokio::test(flavor = "multi_thread")]
async fn a_mass_update_is_polled() {
    let world = captured().await;
    let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    let edit = world.sim.edit().without_workflow();
    let make = |_| edit.insert("incident", &[("short_description", "one of many")]).expect("a record");
    let made: Vec<String> = (0..1_500).map(make).collect();
    world.sync("incident").await;
    // All events are there before the first one is read.
    let busy = Fault::new(Effect::Status { status: 503, html: true }).table(&queue);
    let busy = world.sim.fault(busy);
    edit.update_where("incident", "short_description=one of many", &[("short_description", "all at once")])
        .expect("a query");
    for id in &made {
        let version = ["sys_updated_on", "sys_mod_count"];
        let [updated_on, mod_count] = version.map(|f| world.remote("incident", id, f).expect("a record"));
        let told = [
            ("u_table", "incident"),
            ("u_record", id),
            ("u_operation", "update"),
            ("u_mod_count", &mod_count),
            ("u_updated_on", &updated_on),
        ];
        edit.insert(&queue, &told).expect("an event");
    }
    let from = world.sim.requests().len();
    world.sim.remove_fault(busy);
    world.until("SELECT count(*) = 1500 FROM incident WHERE short_description = 'all at once'").await;
    world.until("SELECT NOT EXISTS (SELECT FROM servicenow.recheck)").await;
    let (all, one_by_one) = (lists(&world, "incident", from).len(), looked_up(&world, from).len());
    assert!(one_by_one == 0 && all <= 10, "{one_by_one} of {all} calls look records up");
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// What a poll does not bring is not left to it, however many changes it is to bring.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_among_very_many_changes_does_not_wait_for_a_poll() {
    let world = captured().await;
    let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    let edit = world.sim.edit().without_workflow();
    let made = edit.insert("incident", &[("short_description", "one of many")]).expect("a record");
    world.sync("incident").await;
    let busy = world.sim.fault(Fault::new(Effect::Status { status: 503, html: true }).table(&queue));
    for n in 0..1_200 {
        let id = format!("{n:032x}");
        let told = [
            ("u_table", "incident"),
            ("u_record", id.as_str()),
            ("u_operation", "update"),
            ("u_mod_count", "7"),
            ("u_updated_on", "2030-01-01 00:00:00"),
        ];
        edit.insert(&queue, &told).expect("an event");
    }
    // Nothing but an event tells of the deletion.
    let silent = [
        Fault::new(Effect::Status { status: 503, html: true })
            .table("incident")
            .path("sys_updated_on(>|%3E)"),
        Fault::new(Effect::Status { status: 503, html: true }).table("sys_audit_delete"),
    ];
    for fault in silent {
        world.sim.fault(fault);
    }
    world.sim.edit().delete("incident", &made).expect("it is there");
    world.sim.remove_fault(busy);
    let gone = format!("SELECT NOT EXISTS (SELECT FROM incident WHERE sys_id = '{made}')");
    tokio::time::timeout(Duration::from_secs(8), world.until(&gone)).await.expect("it does not wait");
}
