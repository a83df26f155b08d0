//! The project's figures. Each is a ratio of two things measured side by side in one run, because absolute
//! numbers say more about the machine than about the extension. Those that the project promises are printed with their
//! bounds, and the run fails if one is not kept. Arguments choose sections:
//! `backfill`, `loaders`, `memory`, `idle`, `reconcile`, `restore`, `capture`, `writes`, `reads`.
#![allow(clippy::print_stdout)]

mod backfill;
mod capture;
mod figure;
mod fill;
mod idle;
mod loaders;
mod memory;
mod reads;
mod reconcile;
mod restore;
mod worker;
mod writes;

use std::process::ExitCode;
use std::time::Duration;

use servicenow_sim::{Dataset, Simulator};
use world::cluster::Cluster;
use world::{Session, connect};

/// The user the worker and the loaders log in as.
const USER: &str = "fdw.integration";
const PASSWORD: &str = "fdw-secret";

/// What a section measures on.
struct Bench<'c> {
    cluster: &'c Cluster,
    database: &'static str,
    sim: Simulator,
    db: Session,
}

#[tokio::main]
async fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |section: &str| wanted.is_empty() || wanted.iter().any(|name| name == section);
    let cluster = Cluster::start("shared_buffers = 10GB\nmax_wal_size = 4GB\n");
    if is_wanted("backfill") {
        backfill::measure(&cluster).await;
    }
    if is_wanted("loaders") {
        loaders::measure(&cluster).await;
    }
    if is_wanted("memory") {
        memory::measure(&cluster).await;
    }
    if is_wanted("idle") {
        idle::measure(&cluster).await;
    }
    if is_wanted("reconcile") {
        reconcile::measure(&cluster).await;
    }
    if is_wanted("restore") {
        restore::measure(&cluster).await;
    }
    if is_wanted("capture") {
        capture::measure().await;
    }
    if is_wanted("writes") {
        writes::measure(&cluster).await;
    }
    if is_wanted("reads") {
        reads::measure(&cluster).await;
    }
    figure::verdict()
}

impl<'c> Bench<'c> {
    /// An instance, and a database that mirrors it.
    async fn new(cluster: &'c Cluster, database: &'static str, dataset: Dataset) -> Self {
        let sim = Simulator::builder().dataset(dataset).start().await.expect("a simulator");
        connect(cluster, "postgres").await.run(&format!("CREATE DATABASE {database}")).await;
        let db = connect(cluster, database).await;
        db.run("CREATE EXTENSION servicenow_fdw").await;
        db.run(&format!(
            "CREATE SERVER acme FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url '{}');
             CREATE USER MAPPING FOR PUBLIC SERVER acme
             OPTIONS (auth 'basic', username '{USER}', password '{PASSWORD}')",
            sim.url()
        ))
        .await;
        Self { cluster, database, sim, db }
    }

    /// Waits until a query gives `true`.
    async fn until(&self, condition: &str) {
        while !self.db.value::<bool>(condition).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Makes room for the next section.
    async fn end(self) {
        let Bench { cluster, database, sim, db } = self;
        drop(db);
        connect(cluster, "postgres").await.run(&format!("DROP DATABASE {database} WITH (FORCE)")).await;
        sim.stop().await;
    }
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
