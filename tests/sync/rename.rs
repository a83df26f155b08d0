//! Many rows that show the name of one record.

use servicenow_sim::{Dataset, Effect, Fault};
use world::World;

const INCIDENT: &str = "CREATE FOREIGN TABLE incident (
    sys_id text, caller_id text OPTIONS (show 'label'), caller_id_value text OPTIONS (field 'caller_id'),
    opened_by text OPTIONS (show 'label'), opened_by_value text OPTIONS (field 'opened_by')) SERVER acme";
/// More than are renamed in one transaction.
const ROWS: usize = 4_500;

/// They are renamed some at a time, found by indexes that a large cache is given when it is first looked through for them.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_rows_are_renamed_some_at_a_time_by_index() {
    let world = World::with(Dataset::Incidents(ROWS), "").await;
    let caller = world.sim.edit().insert("sys_user", &[("name", "The Caller")]).expect("a user");
    let ids = world.sim.edit().find("incident", "").expect("a query");
    for id in &ids {
        world.sim.edit().update("incident", id, &[("caller_id", &caller)]).expect("it is there");
    }
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    // As if there were many more.
    world.db.run("ANALYZE servicenow_cache.incident").await;
    world
        .db
        .run("UPDATE pg_class SET reltuples = 1e6, relpages = 1e5 WHERE oid = 'servicenow_cache.incident'::regclass")
        .await;
    let holder = world.session().await;
    holder
        .run("BEGIN; SELECT FROM incident WHERE sys_id = (SELECT min(sys_id) FROM incident) FOR UPDATE")
        .await;
    world.sim.edit().update("sys_user", &caller, &[("name", "Somebody Else")]).expect("a user");
    let renamed = "SELECT count(*) FROM incident WHERE caller_id = 'Somebody Else'";
    world.until(&format!("SELECT ({renamed}) = {}", ids.len() - 1)).await;
    holder.run("COMMIT").await;
    world.until(&format!("SELECT ({renamed}) = {}", ids.len())).await;
    let transactions = "SELECT count(DISTINCT xmin::text) FROM servicenow_cache.incident";
    assert!(world.db.value::<i64>(transactions).await >= 3);
    let most =
        "SELECT max(n) FROM (SELECT count(*) AS n FROM servicenow_cache.incident GROUP BY xmin::text) t";
    assert!(world.db.value::<i64>(most).await <= 2_000);
    // Making one counts the rows, which are too few for the next.
    let indexed = "SELECT string_agg(a.attname, ' ' ORDER BY a.attnum) FROM pg_index i
                   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                   WHERE i.indrelid = 'servicenow_cache.incident'::regclass AND i.indpred IS NOT NULL";
    assert_eq!(world.db.value::<String>(indexed).await, "caller_id_value");
    let find = "SELECT FROM servicenow_cache.incident WHERE caller_id_value = ANY ('{a,b}'::text[])";
    let plan = world.db.explain(find).await;
    assert!(plan.contains("Index"), "{plan}");
}

/// What cannot be followed is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_does_not_tell_of_new_names_is_named() {
    let world = World::new().await;
    let forbidden = Fault::new(Effect::Status { status: 403, html: false }).table("sys_user");
    let forbidden = world.sim.fault(forbidden);
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.until("SELECT names_not_followed = 'sys_user' FROM servicenow.sync_status").await;
    assert!(world.db.value::<bool>("SELECT last_error IS NULL FROM servicenow.sync_status").await);
    world.sim.remove_fault(forbidden);
    world.stop_worker().await;
    world.db.run("SELECT servicenow.start_worker()").await;
    world.until("SELECT names_not_followed IS NULL FROM servicenow.sync_status").await;
}
