//! Statements against the bare calls they make, over the same HTTP stack; and the memory of a session that changes very many
//! rows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use servicenow::client::auth::vault::Vault;
use servicenow::client::auth::{Credentials, Secret};
use servicenow::client::retry::{Effect, Patience, Urgency};
use servicenow::client::transport::{HttpTransport, TransportOptions};
use servicenow::client::{Client, Instance};
use servicenow::page::{Column, Layout};
use servicenow::value::{Kind, Show, SysId, TableName};

use servicenow_sim::Dataset;
use world::cluster::Cluster;

use crate::worker::Worker;
use crate::{Bench, figure, median};

/// Incidents there are where calls are measured: the simulated instance looks at every one of them when one is deleted.
const FEW: usize = 5_000;
/// Incidents there are where memory is.
const ROWS: usize = 100_000;
/// Rows of a statement on many.
const MANY: usize = 1_000;
/// Single updates measured, in turn with bare calls.
const SINGLE: usize = 200;

/// Prints the section.
pub async fn measure(cluster: &Cluster) {
    println!("writes");
    let few = mirrored(cluster, "writes", FEW).await;
    calls(&few).await;
    few.end().await;
    let many = mirrored(cluster, "writes_many", ROWS).await;
    memory(&many).await;
    many.end().await;
}

/// So many incidents, and a database that has them.
async fn mirrored<'c>(cluster: &'c Cluster, database: &'static str, rows: usize) -> Bench<'c> {
    let bench = Bench::new(cluster, database, Dataset::Incidents(rows)).await;
    bench.db.run("IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO public").await;
    bench.db.run("SELECT servicenow.wait_for_sync('incident')").await;
    bench
}

async fn calls(bench: &Bench<'_>) {
    let db = &bench.db;
    let client = client(bench.sim.url());
    let table = TableName::new("incident").expect("a name");
    let fields = db.rows("SELECT attname::text FROM pg_attribute WHERE attrelid = 'incident'::regclass AND attnum > 0 AND attname NOT LIKE '%\\_value'").await;
    let columns = fields.iter().map(|row| Column { field: row.get(0), show: Show::Label, kind: Kind::Text });
    let layout = Arc::new(Layout::new(columns.collect()));
    let ids: Vec<String> =
        db.rows("SELECT sys_id FROM incident ORDER BY sys_id").await.iter().map(|row| row.get(0)).collect();

    bench.sim.set(|s| s.latency_ms = 20);
    let (mut statements, mut calls) = (Vec::new(), Vec::new());
    let update = db.client().prepare("UPDATE incident SET short_description = $1 WHERE sys_id = $2").await;
    let update = update.expect("a statement");
    for (n, id) in ids.iter().take(SINGLE).enumerate() {
        let text = format!("text {n}");
        let began = Instant::now();
        db.client().execute(&update, &[&text, id]).await.expect("it succeeds");
        statements.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        let body = Map::from_iter([("short_description".to_owned(), Value::from(format!("again {n}")))]);
        client
            .update(&table, &SysId::new(id), &body, &layout, Effect::Idempotent)
            .await
            .expect("it succeeds");
        calls.push(began.elapsed().as_secs_f64());
    }
    let (statement, call) = (median(statements), median(calls));
    println!("  UPDATE of a row, call of 20 ms {:>8.2} ms", statement * 1e3);
    println!("  the bare PATCH                 {:>8.2} ms", call * 1e3);
    figure::at_most("UPDATE of a row / the bare PATCH", statement / call, 1.1);

    bench.sim.set(|s| s.latency_ms = 50);
    let began = Instant::now();
    for id in ids.iter().skip(SINGLE).take(50) {
        let body = Map::from_iter([("short_description".to_owned(), Value::from("single"))]);
        client
            .update(&table, &SysId::new(id), &body, &layout, Effect::Idempotent)
            .await
            .expect("it succeeds");
    }
    let singles = began.elapsed().as_secs_f64() / 50.0 * MANY as f64;
    println!("  {MANY} single PATCHes of 50 ms {singles:>8.2} s");
    for (name, statement) in [
        ("INSERT", format!("INSERT INTO incident (short_description) SELECT 'many ' || n FROM generate_series(1, {MANY}) n")),
        ("UPDATE", "UPDATE incident SET description = 'd ' || short_description WHERE short_description LIKE 'many %'".to_owned()),
        ("DELETE", "DELETE FROM incident WHERE short_description LIKE 'many %'".to_owned()),
    ] {
        let began = Instant::now();
        let rows = db.client().execute(&statement, &[]).await.expect("it succeeds");
        assert_eq!(rows as usize, MANY);
        let seconds = began.elapsed().as_secs_f64();
        println!("  {name} of {MANY} rows           {seconds:>8.2} s");
        figure::at_most(&format!("{name} of {MANY} rows / as many single PATCHes"), seconds / singles, 0.05);
    }
}

async fn memory(bench: &Bench<'_>) {
    let db = &bench.db;
    let pid: i32 = db.value("SELECT pg_backend_pid()").await;
    let mut highs = Vec::new();
    for rows in [ROWS / 10, ROWS] {
        let end = db
            .value_with::<Option<String>>(
                "SELECT sys_id FROM incident ORDER BY sys_id OFFSET $1 LIMIT 1",
                &[&(rows as i64 - 1)],
            )
            .await;
        let end = end.expect("there are as many");
        let statement = format!("UPDATE incident SET description = 'all {rows}' WHERE sys_id <= '{end}'");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let watching = tokio::spawn(highest_memory(pid, stopped));
        let began = Instant::now();
        db.run(&statement).await;
        let seconds = began.elapsed().as_secs_f64();
        let _watcher_gone = stop.send(());
        let high = watching.await.expect("it watches") as f64 / 1024.0;
        println!(
            "  UPDATE of {rows:>6} rows         {:>8.0} rows/s, {high:.0} MiB private",
            rows as f64 / seconds
        );
        highs.push(high);
    }
    println!("  ratio of memory                {:>8.2}", highs[1] / highs[0]);
}

/// A process's highest private memory until it is told to stop, in KiB.
async fn highest_memory(pid: i32, mut stopped: tokio::sync::oneshot::Receiver<()>) -> u64 {
    let mut highest = 0;
    while stopped.try_recv().is_err_and(|e| e == tokio::sync::oneshot::error::TryRecvError::Empty) {
        highest = highest.max(Worker::of(pid).memory().private);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    highest
}

fn client(url: &str) -> Client<HttpTransport> {
    let second = Duration::from_secs(10);
    let transport =
        TransportOptions { connect_timeout: second, request_timeout: second, ..TransportOptions::default() };
    let instance = Instance {
        url: url.parse().expect("an address"),
        token_url: None,
        credentials: Credentials::Basic {
            username: "fdw.integration".to_owned(),
            password: Secret::new("fdw-secret").into(),
        },
        vault: Vault::default(),
        max_concurrency: 8,
        max_calls_per_hour: None,
        patience: Patience { attempts: 1, longest_wait: second, urgency: Urgency::Statement },
    };
    Client::new(instance, HttpTransport::new(&transport).expect("a transport")).expect("a client")
}
