//! Looking at how tables are.

use servicenow_sim::{Dataset, Effect, Fault};
use world::World;

use crate::INCIDENT;

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_shows_its_progress_like_a_command_of_postgres() {
    let world = World::with(Dataset::Incidents(4_500), ", page_size '100', max_concurrency '2'").await;
    world.sim.set(|s| s.latency_ms = 30);
    world.db.run(INCIDENT).await;
    world
        .until(
            "SELECT EXISTS (
                 SELECT FROM servicenow.progress p JOIN pg_stat_activity a USING (pid, datid, datname)
                 WHERE a.backend_type = 'servicenow_fdw worker' AND p.server = 'acme' AND p.command = 'backfill'
                       AND p.foreign_table = 'incident'::regclass AND p.phase = 'reading records'
                       AND p.rows_done > 0 AND p.rows_done < p.rows_total AND p.rows_total = 4500
                       AND p.ranges_total > 1 AND p.ranges_done BETWEEN 0 AND p.ranges_total - 1
                       AND p.started_at < clock_timestamp())",
        )
        .await;
    world.sim.set(|s| s.latency_ms = 0);
    world.sync("incident").await;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM servicenow.progress").await, 0);
    world.sim.set(|s| s.latency_ms = 30);
    world.db.run("SELECT servicenow.resync('incident')").await;
    world
        .until("SELECT EXISTS (SELECT FROM servicenow.progress WHERE command = 'resync' AND rows_done > 0)")
        .await;
}

/// A poll brings what has changed, not what a transaction has left behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_behind_as_long_as_records_wait_to_be_looked_up() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.until("SELECT lag < interval '1 minute' FROM servicenow.sync_status").await;
    world.stop_worker().await;
    world
        .db
        .run(
            "INSERT INTO servicenow.recheck (foreign_table, sys_id, since)
             SELECT 'incident'::regclass, sys_id, clock_timestamp() - interval '10 minutes' FROM incident LIMIT 1",
        )
        .await;
    let lag =
        "SELECT lag BETWEEN interval '10 minutes' AND interval '11 minutes' FROM servicenow.sync_status";
    assert!(world.db.value::<bool>(lag).await);
    world.db.run("SELECT servicenow.start_worker()").await;
    world.until("SELECT lag < interval '1 minute' FROM servicenow.sync_status").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_wrong_is_kept_with_how_often_and_until_when() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let fault = world.sim.fault(Fault::new(Effect::Status { status: 400, html: false }).table("incident"));
    world
        .until(
            "SELECT EXISTS (
                 SELECT FROM servicenow.sync_error
                 WHERE server = 'acme' AND foreign_table = 'incident'::regclass AND phase = 'synced' AND count > 1
                       AND sqlstate ~ '^[0-9A-Z]{5}$' AND message <> '' AND hint <> '' AND at > first_at
                       AND recovered_at IS NULL)",
        )
        .await;
    world.sim.remove_fault(fault);
    world.until("SELECT bool_and(recovered_at >= at) FROM servicenow.sync_error").await;
    world.sync("incident").await;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM servicenow.sync_error").await, 1);
    // A login that cannot work is an error of the table, too, and is told.
    world.db.run("LISTEN servicenow_sync").await;
    world.db.run("ALTER SERVER acme OPTIONS (ADD sync_user 'nobody_at_all')").await;
    let missing = "SELECT EXISTS (SELECT FROM servicenow.sync_error WHERE recovered_at IS NULL
                                  AND message = 'role \"nobody_at_all\" of server option \"sync_user\" does not exist')";
    world.until(missing).await;
    let somebody = world.session_as("somebody").await;
    assert_eq!(somebody.value::<i64>("SELECT count(*) FROM servicenow.sync_error").await, 0);
    world.db.run(&format!("GRANT SELECT ON incident TO {}", world.role("somebody"))).await;
    assert_eq!(somebody.value::<i64>("SELECT count(*) FROM servicenow.sync_error").await, 2);
    // A month later nobody wants to know any more.
    world.stop_worker().await;
    let month =
        "UPDATE servicenow.failure SET last_at = last_at - interval '30 days' WHERE recovered_at IS NOT NULL";
    world.db.run(&format!("{month}; SELECT servicenow.start_worker()")).await;
    world.until("SELECT count(*) = 1 AND bool_and(recovered_at IS NULL) FROM servicenow.sync_error").await;
}

/// Those who look are not in the way of those who write, and leave no trace in the transaction.
#[tokio::test(flavor = "multi_thread")]
async fn statistics_are_not_written_by_users_transactions() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.stop_worker().await;
    let before = "SELECT json_agg(r)::text FROM servicenow.request_stat r";
    let counted = world.db.value::<Option<String>>(before).await;
    world.db.run("UPDATE incident SET reopen_count = 3 WHERE number = 'INC0012345'").await;
    assert_eq!(world.db.value::<Option<String>>(before).await, counted, "the worker counts, later");
    world
        .db
        .run("BEGIN READ ONLY; SELECT count(*) FROM incident; SELECT * FROM servicenow.sync_status; COMMIT")
        .await;
    // The session tells of its calls with its next one.
    world.db.run("SELECT servicenow.start_worker()").await;
    world.sync("incident").await;
    world.db.run("UPDATE incident SET reopen_count = 4 WHERE number = 'INC0012345'").await;
    world.until("SELECT EXISTS (SELECT FROM servicenow.stat_requests WHERE endpoint = 'PATCH table/incident' AND calls = 2)").await;
}
