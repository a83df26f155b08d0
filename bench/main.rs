//! The project's figures. Each is a ratio of two things measured side by side in one run, because absolute
//! numbers say more about the machine than about the extension.
#![allow(clippy::print_stdout)]

mod backfill;
mod reads;

use servicenow_sim::{Dataset, Simulator};
use world::cluster::Cluster;
use world::{Session, connect};

/// What both sections measure on.
struct Bench {
    cluster: Cluster,
    /// Kept alive: the instance.
    _sim: Simulator,
    db: Session,
}

#[tokio::main]
async fn main() {
    let cluster = Cluster::start("shared_buffers = 10GB\nmax_wal_size = 4GB\n");
    let sim = Simulator::builder().dataset(Dataset::EventLog).start().await.expect("a simulator");
    let db = connect(&cluster, "postgres").await;
    db.run("CREATE EXTENSION servicenow_fdw").await;
    db.run(&format!(
        "CREATE SERVER acme FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url '{}');
         CREATE USER MAPPING FOR PUBLIC SERVER acme
         OPTIONS (auth 'basic', username 'fdw.integration', password 'fdw-secret')",
        sim.url()
    ))
    .await;
    let bench = Bench { cluster, _sim: sim, db };
    backfill::measure(&bench).await;
    reads::measure(&bench).await;
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
