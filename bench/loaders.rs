//! The same incidents brought into Postgres by other means: dlt, the usual loader of REST interfaces, and the script that
//! somebody who knows ServiceNow would write. Each measures itself from its first call to its last row, without the
//! start of Python.

use std::process::Command;

use servicenow_sim::Dataset;
use world::cluster::Cluster;

use crate::fill::fill;
use crate::{Bench, PASSWORD, USER, figure, median};

/// Incidents of the instance. Rates do not depend on it: each takes a multiple of the time of a page.
const ROWS: usize = 200_000;
/// The same where dlt is measured.
const DLT_ROWS: usize = 20_000;
/// Latencies of a call, in ms.
const LATENCIES: [u64; 2] = [0, 50];
/// How many times as fast as the script a fill is at each of them, and as dlt, at least.
const BY_HAND: [f64; 2] = [1.5, 5.0];
const DLT: f64 = 10.0;
/// Fills and runs of the script measured, in turn.
const ROUNDS: usize = 3;
/// The Python that has what the loaders need.
const PYTHON: &str = "BENCH_PYTHON";

/// Prints the section.
pub async fn measure(cluster: &Cluster) {
    let Ok(python) = std::env::var(PYTHON) else {
        figure::missing(&format!(
            "loaders: {PYTHON} does not say which Python has dlt, requests and psycopg2"
        ));
        return;
    };
    for (latency, times_by_hand) in LATENCIES.into_iter().zip(BY_HAND) {
        println!("backfill against other loaders at {latency} ms a call");
        let bench = Bench::new(cluster, "loaders", Dataset::Incidents(ROWS)).await;
        bench.sim.set(|switches| switches.latency_ms = latency);
        let (mut fills, mut by_hand) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            fills.push(fill(&bench).await.rate());
            make_target(&bench).await;
            by_hand.push(run(&bench, &python, include_str!("loaders/by_hand.py")));
        }
        bench.end().await;
        let bench = Bench::new(cluster, "loaders", Dataset::Incidents(DLT_ROWS)).await;
        bench.sim.set(|switches| switches.latency_ms = latency);
        let dlt = run(&bench, &python, include_str!("loaders/dlt_incident.py"));
        bench.end().await;
        let (fill, by_hand) = (median(fills), median(by_hand));
        println!("  backfill                 {fill:>10.0} rows/s");
        println!("  script by hand           {by_hand:>10.0} rows/s");
        println!("  dlt                      {dlt:>10.0} rows/s");
        let name = |other| format!("backfill / {other} at {latency} ms a call");
        figure::at_least(&name("script by hand"), fill / by_hand, times_by_hand);
        figure::at_least(&name("dlt"), fill / dlt, DLT);
    }
}

/// A table with the columns of the import, as text, for the script.
async fn make_target(bench: &Bench<'_>) {
    let columns: String = bench
        .db
        .value(
            "SELECT string_agg(format('%I text', attname), ', ' ORDER BY attnum) FROM pg_attribute
             WHERE attrelid = 'incident'::regclass AND attnum > 0 AND NOT attisdropped",
        )
        .await;
    let table =
        format!("DROP TABLE IF EXISTS by_hand; CREATE TABLE by_hand ({columns}, PRIMARY KEY (sys_id))");
    bench.db.run(&table).await;
}

/// Runs a loader; gives back the rows per second that it prints.
fn run(bench: &Bench<'_>, python: &str, script: &str) -> f64 {
    let directory = bench.cluster.socket().join("loader");
    std::fs::create_dir_all(&directory).expect("a directory");
    let mut command = Command::new(python);
    command.args(["-c", script, bench.sim.url(), USER, PASSWORD]);
    // The host behind the question mark counts; dlt insists on one before it, and on a password.
    let (database, socket) = (bench.database, bench.cluster.socket().display());
    command.arg(format!("postgresql://postgres:none@localhost/{database}?host={socket}"));
    command.current_dir(&directory).env("DLT_DATA_DIR", &directory);
    let output = command.output().expect("a Python");
    std::fs::remove_dir_all(&directory).expect("the directory made above");
    let said = String::from_utf8_lossy(&output.stdout);
    let rate = said.lines().last().and_then(|line| line.parse().ok());
    rate.unwrap_or_else(|| panic!("{python} failed:\n{said}\n{}", String::from_utf8_lossy(&output.stderr)))
}
