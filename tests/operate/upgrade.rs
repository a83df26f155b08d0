//! What pg_upgrade does to the extension's tables: servers get other OIDs, foreign tables and caches keep theirs.

use servicenow_sim::Dataset;
use world::{INTEGRATION, World};

use crate::INCIDENT;

/// Gives the database's SQL objects another version, as an update of them or an installation of another library does.
async fn pretend(world: &World, version: &str) {
    world
        .db
        .run(&format!("UPDATE pg_extension SET extversion = '{version}' WHERE extname = 'servicenow_fdw'"))
        .await;
    // A command on the extension, as the update is.
    world.db.run("ALTER EXTENSION servicenow_fdw ADD FUNCTION member(); ALTER EXTENSION servicenow_fdw DROP FUNCTION member()").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_of_another_version_says_what_to_do_and_works_again_after_the_update() {
    let world = World::bare(Dataset::Small).await;
    world.set_up("").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.db.run("CREATE FUNCTION member() RETURNS void LANGUAGE sql AS ''").await;
    let old = world.session().await;
    old.run("SELECT count(*) FROM incident").await;
    let sent = world.writes().len();
    let current = world.db.value::<String>("SELECT servicenow.version()").await;
    let message = |version: &str| {
        format!("extension \"servicenow_fdw\" has version {version} and its library {current}")
    };
    let worker = "SELECT count(*) FROM pg_stat_activity
                  WHERE datname = current_database() AND backend_type = 'servicenow_fdw worker'";
    for (version, hint) in [
        ("0.0.9", "Run ALTER EXTENSION servicenow_fdw UPDATE."),
        ("99.1.0", "Start a new session. If the library is preloaded, restart the server."),
    ] {
        pretend(&world, version).await;
        for session in [&old, &world.session().await] {
            for statement in [
                "SELECT * FROM incident",
                "UPDATE incident SET state = 2",
                "SELECT servicenow.sync('incident')",
            ] {
                let error = session.error(statement).await;
                assert_eq!(
                    (error.message(), error.hint()),
                    (message(version).as_str(), Some(hint)),
                    "{statement}"
                );
                assert_eq!(error.code().code(), "55000");
            }
        }
        world.until(&format!("SELECT ({worker}) = 0")).await;
    }
    assert_eq!(world.writes().len(), sent, "nothing is sent");
    pretend(&world, &current).await;
    old.run("UPDATE incident SET short_description = 'after the update' WHERE number = 'INC0012345'").await;
    world.sync("incident").await;
    let id = world.find("incident", "number=INC0012345");
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("after the update"));
}

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
