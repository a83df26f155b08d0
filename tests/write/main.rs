//! INSERT, UPDATE and DELETE: what reaches the instance, what comes back, and what a refusal leaves behind.

mod alike;
mod answers;
mod batches;
mod cancel;
mod checks;
mod copies;
mod crash;
mod disk;
mod errors;
mod generated;
mod inserts;
mod keys;
mod labels;
mod lost;
mod model;
mod push;
mod refusals;
mod rights;
mod rollback;
mod statements;
mod transactions;
mod values;

use world::World;

/// The incident everybody knows: In Progress, impact 1, urgency 2, assigned to Gurney Halleck.
const KNOWN: &str = "number = 'INC0012345'";

/// A world with the incidents in it.
async fn incidents() -> World {
    world_with(&["incident"]).await
}

/// A world with some tables in it.
async fn world_with(tables: &[&str]) -> World {
    let world = World::new().await;
    world.import(tables).await;
    world
}

/// The identity of the incident everybody knows.
fn known(world: &World) -> String {
    world.find("incident", "number=INC0012345")
}
