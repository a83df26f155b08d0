//! The worker's memory while it fills tables of different sizes.

use servicenow_sim::Dataset;
use world::cluster::Cluster;

use crate::fill::fill;
use crate::worker::Memory;
use crate::{Bench, figure, median};

/// Incidents filled, and how often: what is in memory changes with every page, so that it is looked at as often of the
/// smaller table.
const SIZES: [(usize, usize); 2] = [(50_000, 10), (500_000, 1)];

/// Prints the section.
pub async fn measure(cluster: &Cluster) {
    println!("the worker's memory while it fills a table");
    let (mut highest, mut usual) = (Vec::new(), Vec::new());
    for (size, times) in SIZES {
        let bench = Bench::new(cluster, "memory", Dataset::Incidents(size)).await;
        let (mut seen, mut most, mut rows) = (Vec::new(), Memory::default(), 0);
        for _ in 0..times {
            let filled = fill(&bench).await;
            seen.extend(filled.seen);
            most = most.max(filled.memory);
            rows = filled.rows;
        }
        let mib = |kib: f64| kib / 1024.0;
        let (own, all) = (mib(most.private as f64), mib(most.resident as f64));
        let median = mib(median(seen));
        println!(
            "  {rows:>9} incidents      {median:>10.0} MiB private, at most {own:.0} MiB; {all:>6.0} MiB with shared buffers"
        );
        highest.push(own);
        usual.push(median);
        bench.end().await;
    }
    figure::at_most("memory of the larger table, MiB at most", highest[1], 150.0);
    figure::at_most("memory at 500,000 rows / at 50,000", usual[1] / usual[0], 1.1);
    figure::at_least("memory at 500,000 rows / at 50,000", usual[1] / usual[0], 0.9);
}
