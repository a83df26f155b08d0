//! The worker's memory while it fills tables of different sizes.

use servicenow_sim::Dataset;
use world::cluster::Cluster;

use crate::Bench;
use crate::fill::fill;

/// Incidents filled.
const SIZES: [usize; 2] = [50_000, 500_000];

/// Prints the section.
pub async fn measure(cluster: &Cluster) {
    println!("the worker's memory while it fills a table (highest seen)");
    let mut private = Vec::new();
    for size in SIZES {
        let bench = Bench::new(cluster, "memory", Dataset::Incidents(size)).await;
        let filled = fill(&bench).await;
        let mib = |kib: u64| kib as f64 / 1024.0;
        let (own, all) = (mib(filled.memory.private), mib(filled.memory.resident));
        println!(
            "  {:>9} incidents      {own:>10.0} MiB private   {all:>6.0} MiB with shared buffers",
            filled.rows
        );
        private.push(own);
        bench.end().await;
    }
    println!("  ratio                    {:>10.2}", private[1] / private[0]);
}
