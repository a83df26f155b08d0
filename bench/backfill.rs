//! Backfill of the real incidents against COPY of the same rows from a file, with the same indexes.

use std::time::Instant;

use servicenow_sim::Dataset;
use world::cluster::Cluster;

use crate::fill::fill;
use crate::{Bench, figure, median};

/// Incidents filled.
const ROWS: usize = 200_000;
/// Fills and COPYs measured, in turn.
const ROUNDS: usize = 5;

/// Prints the section.
pub async fn measure(cluster: &Cluster) {
    let bench = Bench::new(cluster, "backfill", Dataset::Incidents(ROWS)).await;
    let db = &bench.db;
    let file = cluster.socket().join("incident.copy");
    let (mut fills, mut copies) = (Vec::new(), Vec::new());
    let mut rows = 0;
    for _ in 0..ROUNDS {
        let filled = fill(&bench).await;
        rows = filled.rows;
        fills.push(filled.rate());
        db.run(&format!("COPY servicenow_cache.incident TO '{}'", file.display())).await;
        db.run("CREATE TABLE copied (LIKE servicenow_cache.incident INCLUDING ALL)").await;
        let began = Instant::now();
        db.run(&format!("COPY copied FROM '{}'", file.display())).await;
        copies.push(rows as f64 / began.elapsed().as_secs_f64());
        db.run("DROP TABLE copied").await;
    }
    let columns: i64 = db
        .value("SELECT count(*) FROM pg_attribute WHERE attrelid = 'incident'::regclass AND attnum > 0")
        .await;
    let (fill, copy) = (median(fills), median(copies));
    println!("backfill of {rows} incidents × {columns} columns ({ROUNDS} rounds, medians)");
    println!("  backfill                 {fill:>10.0} rows/s");
    println!("  COPY of the same rows    {copy:>10.0} rows/s");
    figure::at_least("backfill / COPY of the same rows", fill / copy, 0.5);
    bench.end().await;
}
