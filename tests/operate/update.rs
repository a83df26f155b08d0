//! New versions: what is installed while sessions of the old one go on, and what an update makes of a database.

use std::path::{Path, PathBuf};
use std::process::Command;

use servicenow_sim::Dataset;
use world::cluster::Cluster;
use world::{Session, World, connect};

use crate::{INCIDENT, blocks};

/// What belongs to the extension, each object with all that can be said of it.
const OBJECTS: &str = "
    WITH member AS (
        SELECT classid, objid FROM pg_depend JOIN pg_extension e ON refobjid = e.oid
        WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e' AND extname = 'servicenow_fdw'),
    class AS (SELECT c.* FROM pg_class c JOIN member ON classid = 'pg_class'::regclass AND objid = c.oid
              WHERE relnamespace = 'servicenow'::regnamespace)
    SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
        SELECT pg_describe_object(classid, objid, 0) FROM member WHERE pg_describe_object(classid, objid, 0) !~ 'servicenow_cache'
        UNION ALL SELECT concat_ws(' ', pg_get_functiondef(p.oid), proacl, obj_description(p.oid))
            FROM pg_proc p JOIN member ON classid = 'pg_proc'::regclass AND objid = p.oid
        UNION ALL SELECT concat_ws(' ', relname, relkind, relacl, reloptions, relrowsecurity, obj_description(oid)) FROM class
        UNION ALL SELECT concat_ws(' ', relname, attnum, attname, format_type(atttypid, atttypmod), attnotnull, attacl,
                                   attidentity, attgenerated, pg_get_expr(adbin, adrelid))
            FROM class JOIN pg_attribute a ON attrelid = class.oid AND attnum > 0 AND NOT attisdropped
            LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        UNION ALL SELECT concat_ws(' ', relname, conname, pg_get_constraintdef(k.oid)) FROM class JOIN pg_constraint k ON conrelid = class.oid
        UNION ALL SELECT pg_get_indexdef(indexrelid) FROM class JOIN pg_index ON indrelid = class.oid
        UNION ALL SELECT concat_ws(' ', relname, pg_get_viewdef(oid)) FROM class WHERE relkind = 'v'
        UNION ALL SELECT concat_ws(' ', relname, pg_get_triggerdef(t.oid)) FROM class JOIN pg_trigger t ON tgrelid = class.oid AND NOT tgisinternal
        UNION ALL SELECT concat_ws(' ', evtname, evtevent, evtfoid::regproc, evtenabled, evttags) FROM pg_event_trigger
        UNION ALL SELECT concat_ws(' ', 'in dumps', relname, condition)
            FROM pg_extension, unnest(extconfig, extcondition) AS dumped (oid, condition) JOIN class USING (oid)
            WHERE extname = 'servicenow_fdw'
        UNION ALL SELECT concat_ws(' ', nspname, nspacl) FROM pg_namespace WHERE nspname ~ '^servicenow') AS lines (line)";

/// How far a table is filled, and since when.
const FILLED: &str =
    "SELECT concat(phase, ' ', filled, ' ', generation, ' ', fill_started_at) FROM servicenow.sync_table";

/// What the next version adds.
const NEWS: &str = "CREATE FUNCTION servicenow._news() RETURNS text LANGUAGE sql AS $$ SELECT 'news' $$;\n";

/// The scripts of versions that have been released, and their sums.
fn released() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql/released")
}

fn version_of(script: &Path) -> Option<String> {
    let name = script.file_name()?.to_str()?;
    let version = name.strip_prefix("servicenow_fdw--")?.strip_suffix(".sql")?;
    Some(version.to_owned())
}

/// Installs the next version beside the one that is there: the same one by another name, and with news. As packages do, it
/// puts new files in the places of others, which stay as they are for whoever has them open.
fn install_next(cluster: &Cluster, version: &str, next: &str) {
    assert_eq!(version.len(), next.len(), "a name in a library does not get longer");
    let scripts = cluster.installed("--sharedir").join("extension");
    let script = |name: &str| scripts.join(format!("servicenow_fdw--{name}.sql"));
    let objects = std::fs::read_to_string(script(version)).expect("it is installed");
    std::fs::write(script(next), format!("{objects}\n{NEWS}")).expect("a file");
    std::fs::write(script(&format!("{version}--{next}")), NEWS).expect("a file");
    let renamed = Command::new("sed")
        .args(["--in-place", &format!("s/{}/{next}/g", version.replace('.', "\\."))])
        .arg(scripts.join("servicenow_fdw.control"))
        .arg(cluster.installed("--pkglibdir").join("servicenow_fdw.so"))
        .env("LC_ALL", "C")
        .status();
    assert!(renamed.expect("sed").success());
}

/// Another database of the cluster, with nothing in it.
async fn database(world: &World, name: &str) -> Session {
    connect(world.cluster, "postgres").await.run(&format!("CREATE DATABASE {name}")).await;
    connect(world.cluster, name).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_is_installed_under_old_sessions_and_an_update_leaves_data_in_place() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::with_its_installation("")));
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up("").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let version = world.db.value::<String>("SELECT servicenow.version()").await;
    let next = format!("{}9", &version[..version.len() - 1]);
    let filled = world.db.value::<String>(FILLED).await;
    let rows = world.db.value::<i64>("SELECT count(*) FROM incident").await;
    let id = world.find("incident", "number=INC0012345");
    let old = &world.db;

    install_next(cluster, &version, &next);
    let new = world.session().await;
    let refusal = new.error("SELECT count(*) FROM incident").await;
    assert_eq!(refusal.code().code(), "55000");
    assert_eq!(refusal.hint(), Some("Run ALTER EXTENSION servicenow_fdw UPDATE."));
    old.run("UPDATE incident SET short_description = 'by the old one' WHERE number = 'INC0012345'").await;
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("by the old one"));
    world.sync("incident").await;

    let [update, ..] = blocks()[..] else { panic!("blocks of SQL") };
    new.run(update).await;
    assert_eq!(new.value::<String>("SELECT servicenow.version() || servicenow._news()").await, next + "news");
    let refusal = old.error("SELECT count(*) FROM incident").await;
    assert_eq!(refusal.code().code(), "55000");
    assert!(refusal.hint().is_some_and(|hint| hint.starts_with("Start a new session.")));
    assert_eq!(new.value::<i64>("SELECT count(*) FROM incident").await, rows);
    new.run("UPDATE incident SET reopen_count = 7 WHERE number = 'INC0012345'").await;
    assert_eq!(world.remote("incident", &id, "reopen_count").as_deref(), Some("7"));
    world.sim.edit().update("incident", &id, &[("short_description", "seen")]).expect("it is there");
    new.until("SELECT count(*) = 1 FROM incident WHERE short_description = 'seen'").await;
    assert_eq!(new.value::<String>(FILLED).await, filled, "nothing is filled again");

    let fresh = database(&world, "fresh").await;
    fresh.run("CREATE EXTENSION servicenow_fdw").await;
    let wanted = fresh.value::<String>(OBJECTS).await;
    assert!(wanted.contains("_news") && wanted.lines().count() > 300);
    assert_eq!(new.value::<String>(OBJECTS).await, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_from_any_released_version_comes_to_the_same_objects() {
    let scripts =
        std::fs::read_dir(released()).expect("a directory").map(|entry| entry.expect("an entry").path());
    let versions: Vec<(PathBuf, String)> =
        scripts.filter_map(|script| version_of(&script).map(|version| (script, version))).collect();
    if versions.is_empty() {
        return; // nothing has been released yet
    }
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::with_its_installation("")));
    let world = World::on(cluster, Dataset::Small).await;
    world.db.run("CREATE EXTENSION servicenow_fdw").await;
    let wanted = world.db.value::<String>(OBJECTS).await;
    let current = world.db.value::<String>("SELECT servicenow.version()").await;
    for (number, (script, version)) in versions.iter().enumerate() {
        let extensions = cluster.installed("--sharedir").join("extension");
        if *version != current {
            std::fs::copy(script, extensions.join(script.file_name().expect("a name"))).expect("a copy");
        }
        let old = database(&world, &format!("old_{number}")).await;
        old.run(&format!("CREATE EXTENSION servicenow_fdw VERSION '{version}'")).await;
        old.run("ALTER EXTENSION servicenow_fdw UPDATE").await;
        assert_eq!(old.value::<String>(OBJECTS).await, wanted, "from {version}");
    }
}

#[test]
fn scripts_of_released_versions_are_what_they_were() {
    let sums = released().join("SHA256SUMS");
    let listed = std::fs::read_to_string(&sums).expect("the sums");
    for entry in std::fs::read_dir(released()).expect("a directory") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        assert!(!name.ends_with(".sql") || listed.contains(&name), "{name} has a sum: `make freeze`");
    }
    if !listed.is_empty() {
        let check = Command::new("sha256sum")
            .args(["--check", "--quiet"])
            .arg(&sums)
            .current_dir(released())
            .output();
        let check = check.expect("sha256sum");
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    }
}
