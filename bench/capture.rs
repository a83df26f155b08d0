//! Capture: how long a change takes to be visible, what an idle cycle costs, and how a burst is absorbed.

use std::collections::HashMap;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use servicenow_sim::Dataset;
use world::cluster::Cluster;
use world::connect;

use crate::worker::Worker;
use crate::{Bench, figure};

/// Time a call takes, in ms.
const LATENCY: u64 = 50;
/// Changes measured, and the time between two.
const CHANGES: usize = 1_000;
const APART: Duration = Duration::from_millis(20);
/// Tables in which nothing happens, and how long they are watched.
const IDLE_TABLES: usize = 50;
const WATCHED: Duration = Duration::from_secs(120);
/// Changes in a burst.
const BURST: usize = 20_000;
/// What is promised: until a change is visible, half of them and nearly all, in ms; calls in an idle cycle; changes a second
/// in a burst.
const WAYS: [(&str, f64, f64); 2] = [("queue", 1_500.0, 3_000.0), ("webhook", 250.0, 3_000.0)];
const IDLE_CALLS: f64 = 1.05;
const BURST_RATE: f64 = 1_000.0;
/// And memory that stays as it is: what a burst may add, in MiB.
const BURST_MEMORY: f64 = 64.0;
const TABLE: &str =
    "CREATE FOREIGN TABLE incident (sys_id text, number text, state bigint, short_description text)
                     SERVER acme";

/// Prints the section.
pub async fn measure() {
    println!("capture: {CHANGES} changes at {LATENCY} ms a call, until they are visible");
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    // The listener is a setting of the whole server.
    let cluster = Cluster::start(&format!("servicenow_fdw.listen_address = '127.0.0.1:{port}'"));
    for (way, half, nearly_all) in WAYS {
        let bench = captured(&cluster, way, Dataset::Incidents(5_000)).await;
        bench.sim.set(|s| s.latency_ms = LATENCY);
        let (changes, times) = latencies(&bench).await;
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        println!(
            "  {way:<8} {} of {changes} seen; ms: p50 {:.0} (bound {half:.0}), p99 {:.0} (bound {nearly_all:.0}), longest {:.0}",
            times.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
        figure::at_most(
            &format!("{way}: ms until half of the changes are visible"),
            at(0.5),
            if way == "webhook" { 250.0 } else { 1_500.0 },
        );
        figure::at_most(&format!("{way}: ms until 99 of 100 are"), at(0.99), 3_000.0);
        bench.end().await;
    }
    idle(&cluster).await;
    for (way, ..) in WAYS {
        burst(&cluster, way).await;
    }
}

/// A database with a filled table whose changes are told of.
async fn captured<'c>(cluster: &'c Cluster, way: &str, dataset: Dataset) -> Bench<'c> {
    let bench = Bench::new(cluster, "capture", dataset).await;
    bench.sim.edit().grant_role(crate::USER, "admin").expect("a role");
    bench.db.run(&format!("ALTER SERVER acme OPTIONS (ADD capture '{way}')")).await;
    bench.db.run(TABLE).await;
    bench.db.run("SELECT servicenow.wait_for_sync('incident')").await;
    bench.db.run("SELECT servicenow.install_capture('acme')").await;
    bench.until("SELECT bool_and(capture_state = 'active') FROM servicenow.sync_status").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    bench
}

/// The times from changes in the instance to their being visible, in ms, sorted.
async fn latencies(bench: &Bench<'_>) -> (usize, Vec<f64>) {
    let ids = bench.sim.edit().find("incident", "ORDERBYsys_id").expect("a query");
    let watcher = connect(bench.cluster, bench.database).await;
    let seen = tokio::spawn(async move {
        let mut seen: HashMap<String, Instant> = HashMap::new();
        let mut last = 0i64;
        while seen.len() < CHANGES {
            let news =
                format!("SELECT seq, sys_id FROM servicenow._sync_cdc WHERE seq > {last} ORDER BY seq");
            for row in watcher.rows(&news).await {
                last = row.get(0);
                seen.entry(row.get(1)).or_insert_with(Instant::now);
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        seen
    });
    let mut changed = HashMap::new();
    for (n, id) in ids.iter().take(CHANGES).enumerate() {
        changed.insert(id.clone(), Instant::now());
        let text = format!("change {n}");
        bench.sim.edit().update("incident", id, &[("short_description", &text)]).expect("it is there");
        tokio::time::sleep(APART).await;
    }
    let seen = seen.await.expect("no panic");
    let time =
        |(id, at): (String, Instant)| Some(at.duration_since(*changed.get(&id)?).as_secs_f64() * 1_000.0);
    let mut times: Vec<f64> = seen.into_iter().filter_map(time).collect();
    times.sort_by(f64::total_cmp);
    (changed.len(), times)
}

async fn idle(cluster: &Cluster) {
    let bench = captured(cluster, "queue", Dataset::Incidents(1_000)).await;
    // Different ones, with a rule each.
    let query = "nameNOT LIKEservicenow_fdw^nameNOT LIKEhidden^nameNOT LIKEx_^ORDERBYname";
    let tables = bench.sim.edit().find("sys_db_object", query).expect("a query").into_iter();
    let names = tables.filter_map(|id| bench.sim.record("sys_db_object", &id)?.remove("name"));
    let is_usual =
        |name: &String| name != "incident" && (!name.starts_with("sys") || name.starts_with("sys_user"));
    for name in names.filter(is_usual).take(IDLE_TABLES - 1) {
        bench.db.run(&format!("CREATE FOREIGN TABLE {name} (sys_id text) SERVER acme")).await;
    }
    bench
        .until(&format!(
            "SELECT count(*) = {IDLE_TABLES} AND bool_and(phase = 'synced' AND capture_state = 'active')
             FROM servicenow.sync_status"
        ))
        .await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let queue = bench.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
    let from = bench.sim.requests().len();
    tokio::time::sleep(WATCHED).await;
    let calls = bench.sim.requests().split_off(from).into_iter().filter(|call| !call.in_batch);
    let calls: Vec<_> = calls.collect();
    let looks = calls.iter().filter(|call| call.table.as_deref() == Some(&queue)).count();
    println!(
        "  {IDLE_TABLES} idle tables: {} calls in {} s, {looks} of them looks into the queue",
        calls.len(),
        WATCHED.as_secs()
    );
    // The others come once in many cycles: looks at the rules, and polls as the backstop.
    figure::at_most("calls a cycle of idle tables", calls.len() as f64 / looks as f64, IDLE_CALLS);
    bench.end().await;
}

async fn burst(cluster: &Cluster, way: &str) {
    let bench = captured(cluster, way, Dataset::EventLog).await;
    let worker = Worker::find(&bench).await.expect("a worker");
    let before = worker.memory().private;
    let began = Instant::now();
    let (mut played, mut most) = (0, before);
    while played < BURST {
        played += bench.sim.play(20).max(1);
        most = most.max(worker.memory().private);
        tokio::task::yield_now().await;
    }
    let made = began.elapsed().as_secs_f64();
    let is_same = async || {
        let here: HashMap<String, String> = bench
            .db
            .rows("SELECT sys_id, state::text || coalesce(short_description, '') FROM incident")
            .await
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        let there = bench.sim.truth("incident", crate::USER).expect("a table");
        there.len() == here.len()
            && there.iter().all(|record| {
                here.get(&record["sys_id"])
                    .is_some_and(|row| *row == format!("{}{}", record["state"], record["short_description"]))
            })
    };
    while !is_same().await {
        most = most.max(worker.memory().private);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let absorbed = began.elapsed().as_secs_f64();
    println!(
        "  {way:<8} burst of {played} changes made in {made:.1} s, {} events, all here after {absorbed:.1} s; \
         private memory {} -> {} MiB",
        bench.db.value::<i64>("SELECT events FROM servicenow.stat_capture").await,
        before / 1024,
        most / 1024
    );
    figure::at_least(&format!("{way}: changes a second in a burst"), played as f64 / absorbed, BURST_RATE);
    let more = most.saturating_sub(before) as f64 / 1024.0;
    figure::at_most(&format!("{way}: MiB that a burst adds"), more, BURST_MEMORY);
    bench.end().await;
}
