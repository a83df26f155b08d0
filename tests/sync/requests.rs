//! What calls are made, and that they are counted.

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
