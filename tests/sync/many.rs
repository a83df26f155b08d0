//! Many tables and several servers: none is in another's way, and they are few calls together.

use std::time::{Duration, Instant};

use servicenow_sim::{AclRule, Dataset, Effect, Fault, LoggedRequest, Operation, Simulator};
use world::{INTEGRATION, PATIENCE, World};

use crate::{INCIDENT, MANY};

const PROBLEM: &str =
    "CREATE FOREIGN TABLE problem (sys_id text, number text, short_description text) SERVER acme";
/// How long a change may take to arrive that nobody delays, at five polls a second.
const SOON: Duration = Duration::from_secs(3);
/// How long a call on a slow table takes.
const SLOW: Duration = Duration::from_secs(6);

/// Makes sure that changes and deletions of problems arrive soon.
async fn problems_arrive_soon(world: &World) {
    for round in 0..4 {
        let began = Instant::now();
        let id = world.sim.edit().insert("problem", &[("short_description", "new")]).expect("a record");
        world.until(&format!("SELECT count(*) = 1 FROM problem WHERE sys_id = '{id}'")).await;
        assert!(began.elapsed() < SOON, "round {round}: an insert took {:?}", began.elapsed());
        let began = Instant::now();
        world.sim.edit().delete("problem", &id).expect("it is there");
        world.until(&format!("SELECT count(*) = 0 FROM problem WHERE sys_id = '{id}'")).await;
        assert!(began.elapsed() < SOON, "round {round}: a deletion took {:?}", began.elapsed());
    }
    let began = Instant::now();
    world.sync("problem").await;
    assert!(began.elapsed() < SOON, "waiting for it took {:?}", began.elapsed());
}

fn forbid(world: &World, table: &str) {
    world.sim.edit().add_acl(AclRule::Table {
        table: table.to_owned(),
        user: Some(INTEGRATION.to_owned()),
        operation: Operation::Read,
        refuse: true,
    });
}

/// Fills a table whose calls take long, beside another.
async fn beside_a_slow_table(concurrency: u64) {
    let options = format!(", page_size '100', max_concurrency '{concurrency}'");
    let world = World::with(Dataset::Incidents(MANY), &options).await;
    world.db.run(PROBLEM).await;
    world.sync("problem").await;
    // All pages of its fill but the first two, which are read one after the other.
    let slow = Fault::new(Effect::Delay { ms: SLOW.as_millis() as u64 });
    let fault = world.sim.fault(slow.table("incident").path("sysparm_limit=100").after(2));
    world.db.run(INCIDENT).await;
    let began = Instant::now();
    while world.sim.fault_count(fault) < concurrency.min(4) - 1 {
        assert!(began.elapsed() < PATIENCE, "pages are asked for side by side");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    problems_arrive_soon(&world).await;
    world.sim.remove_fault(fault);
    world.sync("incident").await;
    world.until_like_the_instance("incident", crate::COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_table_delays_no_other() {
    beside_a_slow_table(8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_table_delays_no_other_where_there_are_two_places() {
    beside_a_slow_table(2).await;
}

/// Also if it was filled before, and something is deleted in both.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_becomes_forbidden_or_slow_delays_no_other() {
    let world = World::new().await;
    world.db.run(&format!("{PROBLEM}; {INCIDENT}")).await;
    world.sync("problem").await;
    world.sync("incident").await;
    let forbidden = world.find("incident", "number=INC0012345");
    forbid(&world, "incident");
    world.sim.edit().delete("incident", &forbidden).expect("it is there");
    problems_arrive_soon(&world).await;
    world.until("SELECT last_error LIKE '[ServiceNow]%' FROM servicenow.sync_status WHERE foreign_table = 'incident'::regclass").await;
    world.sim.edit().clear_acls();
    world.db.run("SELECT servicenow.sync('incident')").await;
    world.until_like_the_instance("incident", crate::COLUMNS).await;
    let slow = world.sim.fault(Fault::new(Effect::Delay { ms: SLOW.as_millis() as u64 }).table("incident"));
    let id = world.find("incident", "number=INC0010002");
    world.sim.edit().delete("incident", &id).expect("it is there");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let id = world.sim.edit().insert("problem", &[("short_description", "new")]).expect("a record");
    let began = Instant::now();
    world.until(&format!("SELECT count(*) = 1 FROM problem WHERE sys_id = '{id}'")).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    world.sim.remove_fault(slow);
    world.until_like_the_instance("incident", crate::COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_or_is_down_delays_no_other() {
    let world = World::new().await;
    world.db.run(PROBLEM).await;
    world.sync("problem").await;
    let other = Simulator::builder().dataset(Dataset::Small).seed(7).start().await.expect("a simulator");
    let hang = other.fault(Fault::new(Effect::Hang));
    world
        .db
        .run(&format!(
            "CREATE SERVER other FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url '{}', poll_interval '200ms');
             CREATE USER MAPPING FOR PUBLIC SERVER other
             OPTIONS (auth 'client_credentials', client_id 'fdw-client', client_secret 'fdw-client-secret');
             CREATE FOREIGN TABLE there (sys_id text, number text) SERVER other OPTIONS (\"table\" 'incident')",
            other.url()
        ))
        .await;
    problems_arrive_soon(&world).await;
    other.remove_fault(hang);
    other.set(|s| s.availability = servicenow_sim::Availability::Down);
    world.db.run("ALTER SERVER other OPTIONS (ADD request_timeout '1s')").await;
    world.until("SELECT last_error IS NOT NULL FROM servicenow.sync_status WHERE server = 'other'").await;
    problems_arrive_soon(&world).await;
    other.set(|s| s.availability = servicenow_sim::Availability::Up);
    let there = other.truth("incident", INTEGRATION).expect("a table").len();
    world.until(&format!("SELECT count(*) = {there} FROM there")).await;
}

/// The most requests under way at a time.
fn at_a_time(requests: &[LoggedRequest]) -> usize {
    let mut ends = Vec::new();
    let mut most = 0;
    for request in requests {
        let began = request.at.timestamp_micros();
        ends.retain(|end| *end > began);
        ends.push(began + (request.duration_ms * 1_000.0) as i64);
        most = most.max(ends.len());
    }
    most
}

/// The calls of 200 tables in which nothing happens: a poll each in its interval, and a few for the server.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_idle_tables_make_few_calls_and_spread_them() {
    const TABLES: usize = 200;
    const INTERVAL: u64 = 4;
    const INTERVALS: u64 = 3;
    let world = World::with(Dataset::Small, ", max_concurrency '4'").await;
    world.db.run(&format!("ALTER SERVER acme OPTIONS (SET poll_interval '{INTERVAL}s')")).await;
    for (n, table) in
        ["incident", "problem", "sys_user", "change_request"].iter().cycle().take(TABLES).enumerate()
    {
        world
            .db
            .run(&format!(
                "CREATE FOREIGN TABLE t{n} (sys_id text) SERVER acme OPTIONS (\"table\" '{table}')"
            ))
            .await;
    }
    for n in 0..TABLES {
        world.sync(&format!("t{n}")).await;
    }
    world
        .until(
            "SELECT bool_and(phase = 'synced' AND last_reconcile_at IS NOT NULL) FROM servicenow.sync_status",
        )
        .await;
    tokio::time::sleep(Duration::from_secs(INTERVAL)).await;
    let from = world.sim.requests().len();
    tokio::time::sleep(Duration::from_secs(INTERVAL * INTERVALS)).await;
    let requests = world.sim.requests().split_off(from);
    let is_poll = |r: &&LoggedRequest| {
        r.parameter("sysparm_query").is_some_and(|query| query.contains("sys_updated_on>="))
            && r.parameter("sysparm_fields").is_some_and(|fields| fields.contains("sys_mod_count"))
            && r.table
                .as_deref()
                .is_some_and(|table| !table.starts_with("sys_choice") && !table.starts_with("sys_dictionary"))
    };
    let polls: Vec<&LoggedRequest> = requests.iter().filter(is_poll).collect();
    let most = TABLES * (INTERVALS as usize);
    assert!(polls.len() <= most + TABLES / 20, "{} polls of {TABLES} tables", polls.len());
    assert!(polls.len() >= most * 8 / 10, "{} polls of {TABLES} tables", polls.len());
    let audits = requests.iter().filter(|r| r.table.as_deref() == Some("sys_audit_delete")).count();
    assert!(audits <= INTERVALS as usize + 1, "{audits} readings of deletions");
    let others: Vec<String> = requests
        .iter()
        .filter(|r| !is_poll(r) && r.table.as_deref() != Some("sys_audit_delete"))
        .map(|r| format!("{} {:?}", r.path, r.query))
        .collect();
    assert!(others.len() <= 10, "{} other calls: {:#?}", others.len(), &others[..others.len().min(20)]);
    assert!(at_a_time(&requests) <= 4, "{} calls at a time", at_a_time(&requests));
    // Spread: no eighth of an interval has more than a third of its polls.
    let eighth = |r: &LoggedRequest| r.at.timestamp_millis() / (INTERVAL as i64 * 1_000 / 8);
    let first = eighth(polls[0]);
    let mut eighths = vec![0; 8 * INTERVALS as usize + 2];
    for poll in &polls {
        eighths[(eighth(poll) - first) as usize] += 1;
    }
    assert!(eighths.iter().all(|polls| *polls <= TABLES / 3), "{eighths:?}");
}
