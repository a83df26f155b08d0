//! What pg_upgrade does to the extension's tables: servers get other OIDs, foreign tables and caches keep theirs.

use std::path::Path;
use std::process::{Command, Stdio};

use servicenow_sim::{Availability, Dataset};
use world::cluster::{Cluster, as_user};
use world::{INTEGRATION, World, connect};

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

/// What stands in pg_upgrade's own logs.
fn complaints(data: &Path) -> String {
    let found = Command::new("grep")
        .args(["-rh", "-A5", "-e", "error:", "-e", "ERROR:"])
        .arg(data.join("pg_upgrade_output.d"))
        .output()
        .expect("grep");
    String::from_utf8_lossy(&found.stdout).into_owned()
}

/// From the same major unless `make test-all` says where an older one is.
#[tokio::test(flavor = "multi_thread")]
async fn pg_upgrade_takes_caches_along_without_network_and_nothing_is_filled_again() {
    let preloaded = "shared_preload_libraries = 'servicenow_fdw'";
    let [old, new]: [&'static Cluster; 2] =
        Cluster::before_and_after(preloaded).map(|cluster| &*Box::leak(Box::new(cluster)));
    let world = World::on(old, Dataset::Small).await;
    world.set_up(", reconcile_interval '1h'").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world
        .db
        .run(
            "CREATE INDEX by_number ON servicenow_cache.incident (number);
             CREATE VIEW open_incident AS SELECT number FROM incident WHERE state < 6",
        )
        .await;
    let content = "SELECT md5(string_agg(i::text, ',' ORDER BY sys_id)) FROM incident i";
    let filled =
        "SELECT concat(phase, ' ', filled, ' ', generation, ' ', fill_started_at) FROM servicenow.sync_table";
    let before = (world.db.value::<String>(content).await, world.db.value::<String>(filled).await);
    world.sim.set(|switches| switches.availability = Availability::Unreachable);
    for cluster in [old, new] {
        cluster.control(&["stop", "-m", "fast"]);
    }
    let output = as_user(&new.bin().join("pg_upgrade"))
        .args(["--username", "postgres"])
        .arg("--old-bindir")
        .arg(old.bin())
        .arg("--new-bindir")
        .arg(new.bin())
        .arg("--old-datadir")
        .arg(old.data())
        .arg("--new-datadir")
        .arg(new.data())
        .arg("--socketdir")
        .arg(new.socket())
        .current_dir(new.socket())
        .stdin(Stdio::null())
        .output()
        .expect("pg_upgrade");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}\n{}", complaints(&new.data()));
    new.control(&["start"]);
    let db = connect(new, &world.database).await;
    assert_eq!((db.value::<String>(content).await, db.value::<String>(filled).await), before);
    let rows = "SELECT count(*) FROM open_incident";
    assert!(db.value::<i64>(rows).await > 0);
    let index =
        "SELECT count(*) FROM pg_indexes WHERE schemaname = 'servicenow_cache' AND indexname = 'by_number'";
    assert_eq!(db.value::<i64>(index).await, 1);

    world.sim.set(|switches| switches.availability = Availability::Up);
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "after it")]).expect("it is there");
    let world = World { cluster: new, db, ..world };
    world.until("SELECT count(*) = 1 FROM incident WHERE short_description = 'after it'").await;
    assert_eq!(world.db.value::<String>(filled).await, before.1);
    world.db.run("UPDATE incident SET short_description = 'written' WHERE number = 'INC0012345'").await;
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("written"));
}

/// Whatever OIDs they have got: one server's new one may have been another's.
#[tokio::test(flavor = "multi_thread")]
async fn servers_whose_oids_have_changed_places_are_told_apart() {
    let world = World::new().await;
    world
        .db
        .run(&format!(
            "CREATE SERVER other FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url '{}', poll_interval '200ms');
             CREATE USER MAPPING FOR PUBLIC SERVER other OPTIONS (auth 'basic', username 'readonly.user', password 'readonly-secret')",
            world.sim.url()
        ))
        .await;
    world.db.run(INCIDENT).await;
    world.db.run("CREATE FOREIGN TABLE problem (sys_id text, number text) SERVER other").await;
    world.sync("incident").await;
    world.sync("problem").await;
    world.until("SELECT count(*) = 2 FROM servicenow.sync_server WHERE name IS NOT NULL AND source_login IS NOT NULL").await;
    world.stop_worker().await;
    let known = "SELECT string_agg(concat_ws(' ', srvname, source_login, remote_table), ', ' ORDER BY srvname, remote_table)
         FROM pg_foreign_server s JOIN servicenow.sync_server v ON v.server = s.oid JOIN servicenow.dictionary USING (server)
         WHERE remote_table IN ('incident', 'problem')";
    let before = world.db.value::<String>(known).await;
    assert!(before.contains("acme") && before.contains("other"), "{before}");
    let swap = "SELECT string_agg(format('UPDATE servicenow.%1$I SET server = 1 WHERE server = a;
                     UPDATE servicenow.%1$I SET server = a WHERE server = o; UPDATE servicenow.%1$I SET server = o WHERE server = 1;', relname), ' ')
                FROM pg_class c JOIN pg_attribute t ON attrelid = c.oid
                WHERE relnamespace = 'servicenow'::regnamespace AND relkind = 'r' AND attname = 'server' AND atttypid = 'oid'::regtype";
    let swap = world.db.value::<String>(swap).await;
    let oid = "(SELECT oid FROM pg_foreign_server WHERE srvname";
    let swap =
        swap.replace("= a", &format!("= {oid} = 'acme')")).replace("= o", &format!("= {oid} = 'other')"));
    world.db.run(&swap).await;
    assert_ne!(world.db.value::<String>(known).await, before);
    world.db.run("SELECT servicenow.start_worker()").await;
    world.sync("incident").await;
    world.sync("problem").await;
    assert_eq!(world.db.value::<String>(known).await, before);
}
