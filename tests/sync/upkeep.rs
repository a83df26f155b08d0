//! What polls cannot see: deletions and edits without a trace, and records that are hidden.

use servicenow_sim::{AclRule, Dataset};
use world::World;

use crate::{COLUMNS, INCIDENT, lists};

/// The rows of `verify`, added up.
async fn verified(world: &World) -> [i64; 6] {
    let sums = "SELECT sum(remote)::bigint, sum(local)::bigint, sum(hidden)::bigint, sum(missing)::bigint,
                       sum(extra)::bigint, sum(differing)::bigint FROM servicenow.verify('incident')";
    let row = &world.db.rows(sums).await[0];
    std::array::from_fn(|i| row.get(i))
}

async fn quick(options: &str) -> World {
    let world = World::with(Dataset::Small, options).await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_or_made_without_a_trace_is_found_by_counting() {
    let world = quick(", reconcile_interval '1s'").await;
    world.until("SELECT last_reconcile_at IS NOT NULL FROM servicenow.sync_status").await;
    let silent = world.sim.edit().without_workflow();
    let (gone, kept) =
        (world.find("incident", "number=INC0012345"), world.find("incident", "number=INC0010002"));
    silent.delete("incident", &gone).expect("it is there");
    world.until(&format!("SELECT count(*) = 0 FROM incident WHERE sys_id = '{gone}'")).await;
    let stamp = "2019-01-01 00:00:00";
    let old = [("sys_created_on", stamp), ("sys_updated_on", stamp), ("short_description", "old")];
    let came = silent.without_auto_sys_fields().insert("incident", &old).expect("a record");
    world.until(&format!("SELECT count(*) = 1 FROM incident WHERE sys_id = '{came}'")).await;
    world.until_like_the_instance("incident", COLUMNS).await;
    let sources = "SELECT string_agg(op || ' ' || source, ', ' ORDER BY seq) FROM servicenow._sync_cdc";
    assert_eq!(world.db.value::<String>(sources).await, "delete reconcile, insert reconcile");
    // A record that may not be seen any more is counted as before: reading everything again finds it. From then on
    // it is counted as hidden.
    world.db.run("ALTER SERVER acme OPTIONS (ADD scrub_interval '1s')").await;
    world.sim.edit().add_acl(AclRule::Rows {
        table: "incident".to_owned(),
        user: Some(world::INTEGRATION.to_owned()),
        query: format!("sys_id!={kept}"),
    });
    world.until(&format!("SELECT count(*) = 0 FROM incident WHERE sys_id = '{kept}'")).await;
    world.until("SELECT rows_hidden = 1 AND rows_total = rows + 1 FROM servicenow.sync_status").await;
    let calls = lists(&world, "incident", 0).len();
    let [remote, local, hidden, missing, extra, differing] = verified(&world).await;
    assert_eq!((remote, hidden, missing, extra, differing), (local + 1, 1, 0, 0, 0));
    assert!(lists(&world, "incident", 0).len() > calls);
    world.sim.edit().clear_acls();
    world.until(&format!("SELECT count(*) = 1 FROM incident WHERE sys_id = '{kept}'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_counts_what_differs_and_repairs_nothing() {
    let world = quick("").await;
    let rows = world.db.value::<i64>("SELECT count(*) FROM incident").await;
    assert_eq!(verified(&world).await, [rows, rows, 0, 0, 0, 0]);
    world.db.run("SELECT servicenow.stop_worker()").await;
    world.until("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'servicenow_fdw worker'").await;
    let ids: Vec<String> = world.sim.edit().find("incident", "ORDERBYsys_id").expect("a query");
    world.sim.edit().delete("incident", &ids[0]).expect("it is there");
    world.sim.edit().update("incident", &ids[1], &[("short_description", "other")]).expect("it is there");
    world.sim.edit().insert("incident", &[("short_description", "new")]).expect("a record");
    world.sim.edit().insert("incident", &[("short_description", "new too")]).expect("a record");
    assert_eq!(verified(&world).await, [rows + 1, rows, 0, 2, 1, 1]);
    assert_eq!(verified(&world).await, [rows + 1, rows, 0, 2, 1, 1]);
    // An edit that leaves no trace in the version.
    let silent = world.sim.edit().without_workflow().without_auto_sys_fields();
    silent.update("incident", &ids[2], &[("short_description", "silently")]).expect("it is there");
    assert_eq!(verified(&world).await, [rows + 1, rows, 0, 2, 1, 2]);
    let somebody = world.session_as("somebody").await;
    assert_eq!(somebody.error("SELECT servicenow.verify('incident')").await.code().code(), "42501");
    assert_eq!(world.db.error("SELECT servicenow.verify('pg_class')").await.code().code(), "42809");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_without_a_trace_is_mended_by_the_next_round_of_reading_everything() {
    let world = quick(", scrub_interval '2s'").await;
    let id = world.find("incident", "number=INC0012345");
    let silent = world.sim.edit().without_workflow().without_auto_sys_fields();
    silent.update("incident", &id, &[("short_description", "silently")]).expect("it is there");
    world.until(&format!("SELECT short_description = 'silently' FROM incident WHERE sys_id = '{id}'")).await;
    let source = "SELECT source FROM servicenow._sync_cdc";
    assert_eq!(world.db.value::<String>(source).await, "reconcile");
}

/// What was noted before the clock was set back by an hour is not waited for until it shows that time again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_looked_up_is_when_the_clock_is_set_back() {
    let world = quick("").await;
    world.stop_worker().await;
    let silent = world.sim.edit().without_workflow().without_auto_sys_fields();
    let ids: Vec<String> = world.sim.edit().find("incident", "ORDERBYsys_id").expect("a query");
    for (id, (at, due)) in ids.iter().zip([("1 hour", "NULL"), ("0 s", "now() + interval '1 hour'")]) {
        silent.update("incident", id, &[("short_description", "silently")]).expect("it is there");
        let asked = format!(
            "INSERT INTO servicenow.recheck (foreign_table, sys_id, at, due)
             VALUES ('incident'::regclass, '{id}', now() + interval '{at}', {due})"
        );
        world.db.run(&asked).await;
    }
    world.db.run("SELECT servicenow.start_worker()").await;
    let shown = format!(
        "SELECT bool_and(short_description = 'silently') FROM incident WHERE sys_id IN ('{}', '{}')",
        ids[0], ids[1]
    );
    world.until(&shown).await;
    world.until("SELECT NOT EXISTS (SELECT FROM servicenow.recheck)").await;
}

/// Whatever types columns have: what is stored is what is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_every_type_is_verified_to_be_as_it_is() {
    let world = World::new().await;
    world.import(&["incident", "change_request", "sys_user", "sc_cat_item"]).await;
    world.stop_worker().await;
    for table in ["incident", "change_request", "sys_user", "sc_cat_item"] {
        let differing = format!("SELECT sum(differing)::bigint FROM servicenow.verify('{table}')");
        assert_eq!(world.db.value::<i64>(&differing).await, 0, "{table}");
    }
}

/// Ranges of a cache are found by index, in the order of the instance.
#[tokio::test(flavor = "multi_thread")]
async fn what_differs_in_a_large_table_is_found_without_reading_all_of_the_cache() {
    let world =
        World::with(Dataset::Incidents(crate::MANY), ", page_size '100', reconcile_interval '1s'").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let used = "SELECT coalesce(sum(idx_scan), 0)::bigint FROM pg_stat_user_indexes i JOIN pg_indexes d ON d.indexname = i.indexrelname
                WHERE i.schemaname = 'servicenow_cache' AND d.indexdef LIKE '%upper(%'";
    let before: i64 = world.db.value(used).await;
    let id: String = world.db.value("SELECT min(sys_id) FROM incident").await;
    world.sim.edit().without_workflow().delete("incident", &id).expect("it is there");
    world.until(&format!("SELECT count(*) = 0 FROM incident WHERE sys_id = '{id}'")).await;
    world.until(&format!("SELECT ({used}) > {before}")).await;
}
