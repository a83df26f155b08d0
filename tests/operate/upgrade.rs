//! What pg_upgrade does to the extension's tables: servers get other OIDs, foreign tables and caches keep theirs.

use servicenow_sim::Dataset;
use world::{INTEGRATION, World};

use crate::INCIDENT;

/// What is known of the server by its OID.
const KNOWN: &str = "
    SELECT concat((SELECT concat(subscription, signing_key, queue_table, rules) FROM servicenow.capture WHERE server = s.oid), ' ',
                  (SELECT count(*) FROM servicenow.dictionary WHERE server = s.oid), ' ',
                  (SELECT sum((counters ->> 'calls')::bigint) > 10 FROM servicenow.request_stat WHERE server = s.oid), ' ',
                  (SELECT source_login FROM servicenow.sync_server WHERE server = s.oid))
    FROM pg_foreign_server s WHERE srvname = 'acme'";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_oid_is_known_again_by_name_and_address() {
    let world = World::bare(Dataset::Small).await;
    world.sim.edit().grant_role(INTEGRATION, "admin").expect("a role");
    world.set_up(", capture 'queue'").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.db.run("SELECT servicenow.install_capture('acme')").await;
    world.until("SELECT capture_state = 'active' FROM servicenow.sync_status").await;
    world.until("SELECT sum(calls) > 10 FROM servicenow.stat_requests").await;
    world.stop_worker().await;
    let known = world.db.value::<String>(KNOWN).await;
    let tables = "SELECT string_agg(format('UPDATE servicenow.%I SET server = 1', relname), '; ')
                  FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid
                  WHERE relnamespace = 'servicenow'::regnamespace AND relkind = 'r' AND attname = 'server' AND atttypid = 'oid'::regtype";
    let renumber = world.db.value::<String>(tables).await;
    world.db.run(&renumber).await;
    assert_ne!(world.db.value::<String>(KNOWN).await, known);
    let made = world.sim.requests().iter().filter(|r| r.method == "POST" && r.endpoint == "table").count();
    world.db.run("SELECT servicenow.start_worker()").await;
    world.sync("incident").await;
    assert_eq!(world.db.value::<String>(KNOWN).await, known);
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "told of")]).expect("it is there");
    world.until("SELECT count(*) = 1 FROM incident WHERE short_description = 'told of'").await;
    world.until("SELECT capture_state = 'active' FROM servicenow.sync_status").await;
    let again = world.sim.requests().iter().filter(|r| r.method == "POST" && r.endpoint == "table").count();
    assert_eq!(again, made, "nothing is made anew in the instance");
    let left = "SELECT count(*) FROM servicenow.failure WHERE server = 1";
    assert_eq!(world.db.value::<i64>(left).await, 0);
}
