//! Following: what changes over there arrives, whatever versions and clocks say.

use std::time::Duration;

use chrono::TimeDelta;
use servicenow_sim::{AclRule, Effect, Fault};
use world::World;

use crate::{COLUMNS, INCIDENT, lists};

/// A world with a filled table.
async fn followed() -> World {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_changed_after_the_clock_was_set_back_is_kept_as_it_is_now() {
    let world = followed().await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "before")]).expect("it is there");
    world.until("SELECT short_description = 'before' FROM incident WHERE number = 'INC0012345'").await;
    world.sim.clock().step(TimeDelta::hours(-1));
    world.sim.edit().update("incident", &id, &[("short_description", "after")]).expect("it is there");
    world.until("SELECT short_description = 'after' FROM incident WHERE number = 'INC0012345'").await;
    world.until("SELECT count(*) = 0 FROM servicenow.recheck").await;
}

/// Without the number of changes two of one second cannot be told apart by their versions.
#[tokio::test(flavor = "multi_thread")]
async fn two_changes_of_one_second_are_followed_though_their_number_is_hidden() {
    let world = World::new().await;
    world.sim.edit().add_acl(AclRule::FieldRead {
        table: "incident".to_owned(),
        field: "sys_mod_count".to_owned(),
        user: None,
    });
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.clock().hold(true);
    for text in ["the first", "the second"] {
        world.sim.edit().update("incident", &id, &[("short_description", text)]).expect("it is there");
        let shown = format!("SELECT short_description = '{text}' FROM incident WHERE number = 'INC0012345'");
        world.until(&shown).await;
    }
}

/// The new record counts its changes from nought.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_made_anew_takes_the_place_of_the_old_one() {
    let world = followed().await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.clock().hold(true);
    world.sim.edit().update("incident", &id, &[("short_description", "the old one")]).expect("it is there");
    world.until("SELECT short_description = 'the old one' FROM incident WHERE number = 'INC0012345'").await;
    world.sim.edit().delete("incident", &id).expect("it is there");
    let new = [("sys_id", id.as_str()), ("short_description", "the new one"), ("number", "INC0012345")];
    world.sim.edit().insert("incident", &new).expect("a record");
    world.sim.clock().hold(false);
    world.until("SELECT short_description = 'the new one' FROM incident WHERE number = 'INC0012345'").await;
}

/// What a user has just written is not taken back by what the worker read before.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_always_reads_its_own_writes() {
    let world = followed().await;
    world.sim.set(|s| s.jitter_ms = 30);
    let other = world.sim.edit();
    for n in 0..40i64 {
        world.db.run(&format!("UPDATE incident SET reopen_count = {n} WHERE number = 'INC0012345'")).await;
        other
            .update_where("incident", "priority=3", &[("short_description", &n.to_string())])
            .expect("a query");
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let read = "SELECT reopen_count FROM incident WHERE number = 'INC0012345'";
            assert_eq!(world.db.value::<i64>(read).await, n);
        }
    }
}

/// Versions are kept in the foreign table's own columns if it has them, and in hidden ones if not.
#[tokio::test(flavor = "multi_thread")]
async fn columns_that_keep_the_version_may_come_and_go() {
    let world = followed().await;
    let id = world.find("incident", "number=INC0012345");
    let hidden = "SELECT coalesce(string_agg(attname, ' '), '') FROM pg_attribute
                  WHERE attrelid = 'servicenow_cache.incident'::regclass AND attname LIKE E'\\_sn%'";
    for (n, (change, expected)) in [
        ("ADD sys_updated_on timestamptz OPTIONS (field 'sys_updated_on'), ADD sys_mod_count bigint", ""),
        ("RENAME sys_updated_on TO changed", ""),
        ("ALTER sys_mod_count TYPE text", "_sn_mod_count"),
        ("DROP changed", "_sn_mod_count _sn_updated_on"),
        ("ADD changed timestamp OPTIONS (field 'sys_updated_on')", "_sn_mod_count _sn_updated_on"),
        ("ALTER sys_mod_count TYPE integer", "_sn_updated_on"),
        ("ALTER changed TYPE timestamptz(0)", ""),
    ]
    .into_iter()
    .enumerate()
    {
        world.db.run(&format!("ALTER FOREIGN TABLE incident {change}")).await;
        assert_eq!(world.db.value::<String>(hidden).await, expected, "{change}");
        world.sync("incident").await;
        let n = n.to_string();
        world.sim.edit().update("incident", &id, &[("short_description", &n)]).expect("it is there");
        world.until(&format!("SELECT short_description = '{n}' FROM incident WHERE sys_id = '{id}'")).await;
        world.db.run(&format!("UPDATE incident SET short_description = 'mine' WHERE sys_id = '{id}'")).await;
        world.sync("incident").await;
        world.until_like_the_instance("incident", COLUMNS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_changes_within_a_second_all_arrive() {
    let world = followed().await;
    world.sim.clock().hold(true);
    for n in 0..2_500 {
        world.sim.edit().insert("incident", &[("short_description", &n.to_string())]).expect("a record");
    }
    world.sync("incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    world.sim.clock().advance(Duration::from_secs(1));
    world.sim.edit().update_where("incident", "", &[("short_description", "all")]).expect("a query");
    world.sim.edit().delete_where("incident", "numberENDSWITH1").expect("a query");
    world.sim.clock().hold(false);
    world.sync("incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    world.until("SELECT rows = (SELECT count(*) FROM incident) FROM servicenow.sync_status").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_stops_matching_the_query_leaves() {
    let world = World::new().await;
    world
        .db
        .run(
            "CREATE FOREIGN TABLE mine (sys_id text, number text, state bigint) SERVER acme
             OPTIONS (\"table\" 'incident', query 'active=true^state!=2')",
        )
        .await;
    world.sync("mine").await;
    let id = world
        .sim
        .edit()
        .insert("incident", &[("short_description", "new"), ("state", "1")])
        .expect("a record");
    world.until(&format!("SELECT count(*) = 1 FROM mine WHERE sys_id = '{id}'")).await;
    world.sim.edit().update("incident", &id, &[("state", "2")]).expect("it is there");
    world.until(&format!("SELECT count(*) = 0 FROM mine WHERE sys_id = '{id}'")).await;
    world.sim.edit().update("incident", &id, &[("state", "3")]).expect("it is there");
    world.until(&format!("SELECT count(*) = 1 FROM mine WHERE sys_id = '{id}' AND state = 3")).await;
}

/// A table is read through its class and through its parent's, each by a cache of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_changes_its_class_moves() {
    let world = World::new().await;
    world.import(&["incident", "problem"]).await;
    world.db.run("CREATE FOREIGN TABLE task (sys_id text, sys_class_name text) SERVER acme").await;
    world.sync("task").await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("sys_class_name", "problem")]).expect("it is there");
    world.until(&format!("SELECT sys_class_name = 'problem' FROM task WHERE sys_id = '{id}'")).await;
    world.until(&format!("SELECT count(*) = 1 FROM problem WHERE sys_id = '{id}'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sync_polls_at_once_however_long_the_interval_is() {
    let world = World::with(servicenow_sim::Dataset::Small, "").await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '1h')").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "changed")]).expect("it is there");
    let from = world.sim.requests().len();
    world.db.run("SELECT servicenow.sync('incident')").await;
    let text = "SELECT short_description FROM incident WHERE number = 'INC0012345'";
    assert_eq!(world.db.value::<String>(text).await, "changed");
    assert!(lists(&world, "incident", from).len() <= 2, "a poll, not a fill");
}

/// One table whose rows cannot be taken away keeps no other from losing what was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_refuses_a_deletion_does_not_keep_others_from_theirs() {
    let world = followed().await;
    world.db.run("CREATE FOREIGN TABLE problem (sys_id text, number text) SERVER acme").await;
    world.sync("problem").await;
    world
        .db
        .run(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'it stays'; END $$;
             CREATE TRIGGER refuse BEFORE DELETE ON servicenow_cache.incident FOR EACH ROW EXECUTE FUNCTION refuse();
             ALTER TABLE servicenow_cache.incident ENABLE ALWAYS TRIGGER refuse",
        )
        .await;
    let before: i64 = world.db.value("SELECT count(*) FROM problem").await;
    for table in ["incident", "problem"] {
        let id = world.sim.edit().find(table, "ORDERBYsys_id").expect("a query").swap_remove(0);
        world.sim.edit().delete(table, &id).expect("it is there");
    }
    world.until(&format!("SELECT count(*) = {before} - 1 FROM problem")).await;
    let said = "SELECT last_error LIKE '%it stays%' FROM servicenow.sync_status WHERE foreign_table = 'incident'::regclass";
    world.until(said).await;
    world
        .until(
            "SELECT last_error IS NULL FROM servicenow.sync_status WHERE foreign_table = 'problem'::regclass",
        )
        .await;
}

/// What a DBA's own index does not let in is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_unique_index_on_a_cache_that_is_in_the_way_is_said() {
    let world = followed().await;
    world.db.run("CREATE UNIQUE INDEX mine ON servicenow_cache.incident (number)").await;
    let id = world.find("incident", "number=INC0010002");
    for change in ["insert", "update"] {
        if change == "insert" {
            world.sim.edit().insert("incident", &[("number", "INC0012345")]).expect("a record");
        } else {
            world.sim.edit().update("incident", &id, &[("number", "INC0012345")]).expect("it is there");
        }
        world
            .until("SELECT last_error LIKE '%unique constraint \"mine\"%' FROM servicenow.sync_status")
            .await;
        let error = world.db.error("SELECT servicenow.wait_for_sync('incident', '1 s')").await;
        assert!(error.detail().is_some_and(|detail| detail.contains("mine")), "{:?}", error.detail());
        world.db.run("DROP INDEX servicenow_cache.mine").await;
        world.sync("incident").await;
        world.until_like_the_instance("incident", COLUMNS).await;
        world
            .sim
            .edit()
            .update_where("incident", "number=INC0012345", &[("number", "INC9")])
            .expect("a query");
        world.sim.edit().update("incident", &id, &[("number", "INC8")]).expect("it is there");
        world.sync("incident").await;
        world.sim.edit().insert("incident", &[("number", "INC0012345")]).expect("a record");
        world.sync("incident").await;
        world
            .db
            .run(
                "DELETE FROM servicenow_cache.incident i USING servicenow_cache.incident j
                 WHERE i.number = j.number AND i.sys_id > j.sys_id;
                 CREATE UNIQUE INDEX mine ON servicenow_cache.incident (number)",
            )
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_a_whole_cache_is_said_and_nothing_is_lost() {
    let world = followed().await;
    let other = world.session().await;
    other.run("BEGIN; LOCK TABLE servicenow_cache.incident").await;
    world.sim.edit().insert("incident", &[("short_description", "new")]).expect("a record");
    world.until("SELECT last_error LIKE '%holds a lock%' FROM servicenow.sync_status").await;
    other.run("COMMIT").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    world.until("SELECT last_error IS NULL FROM servicenow.sync_status").await;
}

/// Also if nothing could begin to follow the table since.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_keeps_a_table_from_being_followed_is_said() {
    let world = followed().await;
    let other = world.session().await;
    other.run("BEGIN; LOCK TABLE servicenow_cache.incident").await;
    world.db.run("ALTER SERVER acme OPTIONS (ADD max_concurrency '2')").await;
    world.until("SELECT last_error LIKE '%holds a lock%' FROM servicenow.sync_status").await;
    other.run("COMMIT").await;
    world.until("SELECT last_error IS NULL FROM servicenow.sync_status").await;
}

/// A record that somebody here has locked is not in the cache yet as it is over there.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_includes_records_that_are_locked() {
    let world = followed().await;
    let id = world.find("incident", "number=INC0012345");
    let other = world.session().await;
    other.run("BEGIN; SELECT FROM incident WHERE number = 'INC0012345' FOR UPDATE").await;
    world.sim.edit().update("incident", &id, &[("short_description", "changed")]).expect("it is there");
    let error = world.db.error("SELECT servicenow.wait_for_sync('incident', '1500 ms')").await;
    assert_eq!(error.code().code(), "55000");
    assert!(error.message().contains("1 changed records are locked"), "{}", error.message());
    other.run("COMMIT").await;
    world.sync("incident").await;
    let text = "SELECT short_description FROM incident WHERE number = 'INC0012345'";
    assert_eq!(world.db.value::<String>(text).await, "changed");
}

/// How old the rows are is told while they wait for a column that cannot be filled, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_refill_that_cannot_begin_shows_the_lag() {
    let world = followed().await;
    world.db.run("ALTER FOREIGN TABLE incident ADD COLUMN typo text").await;
    world.until("SELECT last_error IS NOT NULL AND phase = 'pending' AND lag > interval '0' FROM servicenow.sync_status").await;
    world.db.run("ALTER FOREIGN TABLE incident DROP COLUMN typo").await;
    assert!(world.db.value::<bool>("SELECT last_error IS NULL FROM servicenow.sync_status").await);
    world.sync("incident").await;
}

/// Rights to read deletions come late; what was deleted until then leaves nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn deletions_from_before_they_could_be_read_are_read() {
    use servicenow_sim::{Effect, Fault};
    let world = World::new().await;
    let forbidden = Fault::new(Effect::Status { status: 403, html: false }).table("sys_audit_delete");
    let fault = world.sim.fault(forbidden);
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.until("SELECT last_error LIKE '%sys_audit_delete%' FROM servicenow.sync_status").await;
    world.sim.edit().delete_where("incident", "numberENDSWITH2").expect("a query");
    world.sim.clock().advance(Duration::from_secs(86_400));
    world.sync("incident").await;
    world.sim.remove_fault(fault);
    world.until_like_the_instance("incident", COLUMNS).await;
    world.until("SELECT last_error IS NULL FROM servicenow.sync_status").await;
}

/// Two tasks read a table: one of them its changes, the other what was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_late_does_not_bring_back_what_was_deleted_meanwhile() {
    let world = followed().await;
    let id = world.sim.edit().insert("incident", &[("short_description", "short-lived")]).expect("a record");
    let is_there = format!("SELECT count(*) = 1 FROM incident WHERE sys_id = '{id}'");
    world.until(&is_there).await;
    let late = Effect::Drip { bytes: 20, interval_ms: 100 };
    let fault =
        Fault::new(late).method("GET").table("incident").path("sysparm_query=sys_updated_on").times(1);
    let fault = world.sim.fault(fault);
    while world.sim.fault_count(fault) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.sim.edit().delete("incident", &id).expect("it is there");
    world.until(&format!("SELECT count(*) = 0 FROM incident WHERE sys_id = '{id}'")).await;
    // Deletions are not read any more.
    let deaf = Fault::new(Effect::Hang).table("sys_audit_delete");
    world.sim.fault(deaf);
    world.sim.edit().insert("incident", &[("short_description", "later")]).expect("a record");
    world.until("SELECT count(*) = 1 FROM incident WHERE short_description = 'later'").await;
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// What comes is polled; what changes leaves no trace, and whoever asks is shown it.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_says_only_when_its_records_came_is_followed() {
    let world = World::new().await;
    world
        .db
        .run(
            "CREATE FOREIGN TABLE entry (sys_id text, u_code text) SERVER acme OPTIONS (table 'u_pg_static')",
        )
        .await;
    world.sync("entry").await;
    let id = world.sim.edit().insert("u_pg_static", &[("u_code", "new")]).expect("a record");
    world.until(&format!("SELECT count(*) = 1 FROM entry WHERE sys_id = '{id}' AND u_code = 'new'")).await;
    world.sim.edit().update("u_pg_static", &id, &[("u_code", "changed")]).expect("it is there");
    world.sync("entry").await;
    let code = format!("SELECT u_code FROM entry WHERE sys_id = '{id}'");
    assert_eq!(world.db.value::<String>(&code).await, "changed");
    assert_eq!(world.db.value::<String>("SELECT phase FROM servicenow.sync_status").await, "synced");
}
