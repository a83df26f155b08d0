//! A database of the real incidents is dumped, restored, and complete again.

use std::time::Instant;

use servicenow_sim::Dataset;
use world::cluster::Cluster;
use world::connect;

use crate::fill::fill;
use crate::{Bench, figure};

/// The most seconds it may take.
const BOUND: f64 = 60.0;

/// Prints the section.
pub async fn measure(cluster: &Cluster) {
    let bench = Bench::new(cluster, "original", Dataset::EventLog).await;
    let rows = fill(&bench).await.rows;
    let content =
        "SELECT concat(count(*), ' ', md5(string_agg(i::text, ',' ORDER BY sys_id))) FROM incident i";
    let wanted: String = bench.db.value(content).await;
    let archive = cluster.socket().join("original.dump").display().to_string();
    let run = |program: &str, arguments: &[&str]| {
        let output = cluster.program(program, bench.database).args(arguments).output();
        let output = output.expect("a program of Postgres");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("pg_dump", &["-Fc", "-f", &archive]);
    connect(cluster, "postgres").await.run("CREATE DATABASE restored").await;
    let began = Instant::now();
    run("pg_restore", &["--exit-on-error", "-d", "restored", &archive]);
    let restored = connect(cluster, "restored").await;
    restored.run("SELECT servicenow.wait_for_sync('incident')").await;
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(restored.value::<String>(content).await, wanted, "it is complete");
    println!("restore of a database with {rows} incidents, all columns");
    figure::at_most("seconds until it is complete again", seconds, BOUND);
    drop(restored);
    connect(cluster, "postgres").await.run("DROP DATABASE restored WITH (FORCE)").await;
    bench.end().await;
}
