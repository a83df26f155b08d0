//! Following a table in which nothing happens: what it costs must not depend on how large the table is.

use std::time::Duration;

use servicenow_sim::Dataset;
use world::cluster::Cluster;

use crate::worker::Worker;
use crate::{Bench, figure};

/// Incidents of the tables compared.
const SIZES: [usize; 2] = [1_000, 1_000_000];
/// How long they are watched.
const WATCHED: Duration = Duration::from_secs(60);
/// Time between two polls, a tenth of the usual one: to see more of them.
const POLL_INTERVAL: &str = "1s";

/// Prints the section.
pub async fn measure(cluster: &Cluster) {
    println!("following an idle table, polled every {POLL_INTERVAL}, for {} s", WATCHED.as_secs());
    let mut seen = Vec::new();
    for size in SIZES {
        let bench = Bench::new(cluster, "idle", Dataset::Incidents(size)).await;
        bench
            .db
            .run(&format!(
                "ALTER SERVER acme OPTIONS (ADD poll_interval '{POLL_INTERVAL}');
                 CREATE FOREIGN TABLE incident (sys_id text, number text, state bigint, short_description text)
                 SERVER acme"
            ))
            .await;
        bench.db.run("SELECT servicenow.wait_for_sync('incident')").await;
        // The first comparison of counts, and whatever else follows a fill.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let worker = Worker::find(&bench).await.expect("a worker");
        let calls = || bench.sim.counters().values().map(|counter| counter.calls).sum::<u64>();
        let (cpu, called) = (worker.cpu(), calls());
        tokio::time::sleep(WATCHED).await;
        let minutes = WATCHED.as_secs_f64() / 60.0;
        let cpu = (worker.cpu() - cpu).as_secs_f64() * 1000.0 / minutes;
        let called = (calls() - called) as f64 / minutes;
        println!("  {size:>9} rows           {called:>10.0} calls/min   {cpu:>6.0} ms of processor time/min");
        seen.push((called, cpu));
        bench.end().await;
    }
    figure::at_most("calls for the large table / for the small one", seen[1].0 / seen[0].0, 1.1);
    figure::at_most("processor time for the large table / for the small one", seen[1].1 / seen[0].1, 1.5);
}
