//! Backfill of the real incidents against COPY of the same rows from a file, with the same indexes; and the
//! worker's memory meanwhile.

use std::time::{Duration, Instant};

use crate::{Bench, median};

/// Incidents filled.
pub const ROWS: usize = 200_000;
/// Fills and COPYs measured, in turn.
const ROUNDS: usize = 3;

/// Prints the section.
pub async fn measure(bench: &Bench<'_>) {
    let db = &bench.db;
    let mut fills = Vec::new();
    let mut copies = Vec::new();
    let mut memory = 0;
    let mut rows = 0;
    let file = bench.cluster.socket().join("incident.copy");
    for _ in 0..ROUNDS {
        db.run("DROP FOREIGN TABLE IF EXISTS incident").await;
        db.run("IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO public").await;
        memory = memory.max(watch_fill(bench).await);
        let (seconds, filled): (f64, i64) = {
            let row = db
                .rows("SELECT extract(epoch FROM fill_ended_at - fill_started_at)::float8, rows FROM servicenow.sync_table")
                .await;
            (row[0].get(0), row[0].get(1))
        };
        fills.push(filled as f64 / seconds);
        rows = filled;
        db.run(&format!("COPY servicenow_cache.incident TO '{}'", file.display())).await;
        db.run("CREATE TABLE copied (LIKE servicenow_cache.incident INCLUDING ALL)").await;
        let began = Instant::now();
        db.run(&format!("COPY copied FROM '{}'", file.display())).await;
        copies.push(filled as f64 / began.elapsed().as_secs_f64());
        db.run("DROP TABLE copied").await;
    }
    let (fill, copy) = (median(fills), median(copies));
    println!("backfill of {rows} incidents ({ROUNDS} rounds, medians)");
    println!("  backfill                 {fill:>10.0} rows/s");
    println!("  COPY of the same rows    {copy:>10.0} rows/s");
    println!("  ratio                    {:>10.2}", fill / copy);
    println!("  worker memory            {:>10.0} MiB (private, highest seen)", memory as f64 / 1024.0);
}

/// Waits for the end of the fill; gives back the worker's highest private memory, in KiB.
async fn watch_fill(bench: &Bench<'_>) -> u64 {
    let db = &bench.db;
    let mut highest = 0;
    loop {
        let worker = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'servicenow_fdw worker'";
        if let Some(row) = db.rows(worker).await.first() {
            highest = highest.max(private_memory(row.get::<_, i32>(0)));
        }
        let done = "SELECT phase IN ('catchup', 'synced') FROM servicenow.sync_table";
        if db.value::<bool>(done).await {
            return highest;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Memory a process shares with nobody, in KiB.
pub fn private_memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
