//! How many calls it takes to find records that left a large table without a trace.

use std::time::Duration;

use servicenow_sim::{Dataset, LoggedRequest};
use world::cluster::Cluster;

use crate::worker::Worker;
use crate::{Bench, figure};

/// Incidents there are at first.
const ROWS: usize = 1_000_000;
/// Records of a page.
const PAGE: f64 = 1_000.0;
/// How many of them go missing.
const MISSING: [usize; 4] = [0, 1, 10, 100];

/// Prints the section.
pub async fn measure(cluster: &Cluster) {
    let bench = Bench::new(cluster, "reconcile", Dataset::Incidents(ROWS)).await;
    let db = &bench.db;
    db.run("CREATE FOREIGN TABLE incident (sys_id text, number text) SERVER acme").await;
    db.run("SELECT servicenow.wait_for_sync('incident')").await;
    reconcile(&bench).await;
    let rows: i64 = db.value("SELECT count(*) FROM incident").await;
    println!("reconcile calls for records missing among {rows}");
    for missing in MISSING {
        // All over the table.
        let some = format!("SELECT sys_id FROM incident ORDER BY md5(sys_id) LIMIT {missing}");
        let edit = bench.sim.edit().without_workflow();
        for row in db.rows(&some).await {
            edit.delete("incident", row.get(0)).expect("it is there");
        }
        let before: i64 = db.value("SELECT count(*) FROM incident").await;
        let requests = reconcile(&bench).await;
        let after: i64 = db.value("SELECT count(*) FROM incident").await;
        assert_eq!(before - after, missing as i64, "they have not all been found");
        let calls = |is_one: fn(&LoggedRequest) -> bool| requests.iter().filter(|r| is_one(r)).count();
        let counts = calls(|r| r.endpoint == "stats");
        let lists = calls(|r| r.endpoint == "table");
        println!(
            "  {missing:>9} missing        {:>10} calls   ({counts} counts, {lists} lists)",
            counts + lists
        );
        // Halving down to a page, the page, and looking it up; the first count is enough if nothing is missing. If
        // something is, it is counted anew without what is made meanwhile, which is listed before and after.
        let halvings = (ROWS as f64 / PAGE).log2().ceil();
        let bound = 1.0 + missing as f64 * (halvings + 2.0) + if missing > 0 { 3.0 } else { 0.0 };
        figure::at_most(&format!("calls for {missing} missing"), (counts + lists) as f64, bound);
    }
    bench.end().await;
}

/// Has the worker compare counts once; gives back what it asked for to do so.
async fn reconcile(bench: &Bench<'_>) -> Vec<LoggedRequest> {
    let db = &bench.db;
    db.run("SELECT servicenow.stop_worker()").await;
    while Worker::find(bench).await.is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    db.run("UPDATE servicenow.sync_table SET last_reconcile_at = NULL").await;
    bench.sim.clear_requests();
    db.run("SELECT servicenow.start_worker()").await;
    bench.until("SELECT last_reconcile_at IS NOT NULL FROM servicenow.sync_table").await;
    // Nor are polls what it takes, which go on meanwhile.
    let is_poll =
        |r: &LoggedRequest| r.parameter("sysparm_query").is_some_and(|q| q.contains("sys_updated_on>"));
    let mut requests = bench.sim.requests();
    requests.retain(|r| r.table.as_deref() == Some("incident") && !is_poll(r));
    requests
}
