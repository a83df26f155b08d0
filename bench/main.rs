//! The project's figures. Each is a ratio of two things measured side by side in one run, because absolute
//! numbers say more about the machine than about the extension. Arguments choose sections: `backfill`, `writes`, `reads`.
#![allow(clippy::print_stdout)]

mod backfill;
mod reads;
mod writes;

use servicenow_sim::{Dataset, Simulator};
use world::cluster::Cluster;
use world::{Session, connect};

/// What a section measures on.
struct Bench<'c> {
    cluster: &'c Cluster,
    sim: Simulator,
    db: Session,
}

#[tokio::main]
async fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |section: &str| wanted.is_empty() || wanted.iter().any(|name| name == section);
    let cluster = Cluster::start("shared_buffers = 10GB\nmax_wal_size = 4GB\n");
    if is_wanted("backfill") {
        backfill::measure(&Bench::new(&cluster, "backfill", Dataset::Incidents(backfill::ROWS)).await).await;
    }
    if is_wanted("writes") {
        writes::measure(&cluster).await;
    }
    if is_wanted("reads") {
        reads::measure(&Bench::new(&cluster, "reads", Dataset::EventLog).await).await;
    }
}

impl<'c> Bench<'c> {
    /// An instance, and a database that mirrors it.
    async fn new(cluster: &'c Cluster, database: &str, dataset: Dataset) -> Self {
        let sim = Simulator::builder().dataset(dataset).start().await.expect("a simulator");
        connect(cluster, "postgres").await.run(&format!("CREATE DATABASE {database}")).await;
        let db = connect(cluster, database).await;
        db.run("CREATE EXTENSION servicenow_fdw").await;
        db.run(&format!(
            "CREATE SERVER acme FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url '{}');
             CREATE USER MAPPING FOR PUBLIC SERVER acme
             OPTIONS (auth 'basic', username 'fdw.integration', password 'fdw-secret')",
            sim.url()
        ))
        .await;
        Self { cluster, sim, db }
    }
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
