//! Logins: every way there is, one for all processes, in a browser, and never shown.

mod chromium;
mod consent;
mod kinds;
mod secrets;
mod shared;

use std::net::TcpListener;
use std::sync::OnceLock;

use servicenow_sim::Dataset;
use world::World;
use world::cluster::Cluster;

/// A table that every user of the instance sees a row of.
const INCIDENT: &str =
    "CREATE FOREIGN TABLE incident (sys_id text, number text, short_description text) SERVER acme";
/// The incident everybody knows.
const KNOWN: &str = "number = 'INC0012345'";

/// The cluster of these tests, which listens, and where.
fn cluster() -> (&'static Cluster, &'static str) {
    static SHARED: OnceLock<(Cluster, String)> = OnceLock::new();
    let (cluster, address) = SHARED.get_or_init(|| {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a free port").to_string();
        let settings = format!("servicenow_fdw.listen_address = '{address}'\nlog_min_messages = debug1");
        (Cluster::start(&settings), address)
    });
    (cluster, address)
}

/// A world whose server has no user mapping yet.
async fn world() -> World {
    let world = World::on(cluster().0, Dataset::Small).await;
    world.set_up("").await;
    world.db.run(&format!("DROP USER MAPPING FOR PUBLIC SERVER acme; {INCIDENT}")).await;
    world
}

/// Calls for tokens so far.
fn token_calls(world: &World) -> usize {
    world.sim.requests().iter().filter(|request| request.endpoint == "oauth_token").count()
}

/// An OAuth client's options.
const CLIENT: &str = "client_id 'fdw-client', client_secret 'fdw-client-secret'";
