//! What calls are made, and that they are counted.

use servicenow_sim::{Cut, Effect, Fault, RowQuota};
use world::World;

use crate::INCIDENT;

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_worker_and_sessions_are_counted_together() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.sim.set(|s| s.latency_ms = 20);
    // Whatever becomes of the transaction, the call was made.
    world.db.run("UPDATE incident SET reopen_count = 1 WHERE number = 'INC0012345'").await;
    world.db.run("BEGIN; UPDATE incident SET reopen_count = 2 WHERE number = 'INC0012345'; ROLLBACK").await;
    let error = world.db.error("UPDATE incident SET state = 99 WHERE number = 'INC0012345'").await;
    assert_eq!(error.code().code(), "23514");
    let counted = "SELECT calls = 2 AND errors = 0 AND latency_min BETWEEN 20 AND latency_mean
                          AND latency_mean <= latency_max AND latency_p95 BETWEEN latency_min * 0.95 AND latency_max AND bytes_in > 0
                          AND latency_p50 BETWEEN latency_min * 0.95 AND latency_p95
                          AND latency_p99 BETWEEN latency_p95 AND latency_max
                   FROM servicenow.stat_requests WHERE server = 'acme' AND endpoint = 'PATCH table/incident'";
    world.until(&format!("SELECT EXISTS ({counted}) AND ({counted})")).await;
    let polls = "SELECT coalesce(sum(calls), 0)::bigint FROM servicenow.stat_requests WHERE endpoint = 'GET table/incident'";
    let before = world.db.value::<i64>(polls).await;
    world.until(&format!("SELECT ({polls}) > {before}")).await;
    let somebody = world.session_as("somebody").await;
    assert_eq!(somebody.value::<i64>("SELECT count(*) FROM servicenow.stat_requests").await, 0);
    world.db.run(&format!("GRANT USAGE ON FOREIGN SERVER acme TO {}", world.role("somebody"))).await;
    assert!(somebody.value::<i64>("SELECT count(*) FROM servicenow.stat_requests").await > 0);
}

/// The worker leaves the last calls of an hour to those who write.
#[tokio::test(flavor = "multi_thread")]
async fn a_budget_of_calls_is_kept_and_writes_come_first() {
    let world = World::with(servicenow_sim::Dataset::Small, ", max_calls_per_hour '200'").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.until("SELECT sum(calls) > 60 FROM servicenow.stat_requests").await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let made = world.sim.requests().iter().filter(|r| r.endpoint != "oauth_token").count();
    assert!(made <= 140, "{made} calls, polling five times a second");
    world.db.run("UPDATE incident SET reopen_count = 1 WHERE number = 'INC0012345'").await;
    let id = world.find("incident", "number=INC0012345");
    assert_eq!(world.remote("incident", &id, "reopen_count").as_deref(), Some("1"));
}

/// The hour goes on when the worker begins anew, when options change, and in new sessions.
#[tokio::test(flavor = "multi_thread")]
async fn a_budget_of_calls_outlasts_the_worker() {
    let world = World::with(servicenow_sim::Dataset::Small, ", max_calls_per_hour '80'").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    // From half of the budget on the worker takes its time.
    world.until("SELECT calls_left < 45 FROM servicenow.sync_status").await;
    world.stop_worker().await;
    world.db.run("SELECT servicenow.start_worker()").await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    world.db.run("ALTER SERVER acme OPTIONS (ADD page_size '500')").await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let made = world.sim.requests().iter().filter(|r| r.endpoint != "oauth_token").count();
    assert!(made <= 55, "{made} calls");
    let session = world.session().await;
    let mut refused = None;
    for n in 0..80 {
        let update = format!("UPDATE incident SET reopen_count = {n} WHERE number = 'INC0012345'");
        if let Err(e) = session.client().batch_execute(&update).await {
            refused = e.as_db_error().map(|e| e.code().code().to_owned());
            break;
        }
    }
    assert_eq!(refused.as_deref(), Some("53400"), "what is left of the hour is used up");
}

/// What the instance asks for can be seen.
#[tokio::test(flavor = "multi_thread")]
async fn how_the_instance_is_called_is_shown() {
    let world = World::with(servicenow_sim::Dataset::Incidents(2_000), ", page_size '400'").await;
    world.sim.set(|s| s.row_quota = Some(RowQuota { rows: 120, cut: Cut::Error }));
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world
        .until(
            "SELECT page_size <= 120 AND concurrency BETWEEN 1 AND 8 AND held_until IS NULL FROM servicenow.sync_status",
        )
        .await;
    world.sim.set(|s| s.row_quota = None);
    world
        .sim
        .fault(Fault::new(Effect::RateLimited { headers: true, retry_after: Some(60), json: true }).times(3));
    world.until("SELECT held_until > clock_timestamp() FROM servicenow.sync_status").await;
    // Also when it is called by other options from now on.
    let called = world.sim.requests().len();
    world.db.run("ALTER SERVER acme OPTIONS (ADD max_concurrency '1')").await;
    world
        .until("SELECT concurrency = 1 AND held_until > clock_timestamp() + interval '30 s' FROM servicenow.sync_status")
        .await;
    assert_eq!(world.sim.requests().len(), called);
}
