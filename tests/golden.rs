//! What psql prints, compared with files: `pg_test/sql` by pg_regress, `pg_test/specs` by the isolation tester. See
//! [`world::regress`] for how to take a new output over.

use servicenow_sim::{Dataset, Simulator};
use world::cluster::Cluster;
use world::regress::compare;

async fn simulator() -> Simulator {
    Simulator::builder().dataset(Dataset::Small).seed(42).start().await.expect("a simulator")
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_files_are_what_psql_prints() {
    let sim = simulator().await;
    compare(&Cluster::start(""), "regress/pg_regress", "sql", ("SNFDW_URL", sim.url().to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_of_several_sessions_come_out_as_expected() {
    let sim = simulator().await;
    let url = format!("-c test.url={}", sim.url());
    compare(&Cluster::start(""), "isolation/pg_isolation_regress", "specs", ("PGOPTIONS", url));
}
