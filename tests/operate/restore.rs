//! Dumps are restored without network and without errors, and what was restored fills itself.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use servicenow_sim::{Availability, Dataset};
use world::cluster::Cluster;
use world::{World, connect};

use crate::INCIDENT;

/// How many incidents there are.
const MANY: usize = 2_500;

/// What users make of foreign tables.
const USES: &str = "
    COMMENT ON FOREIGN TABLE incident IS 'what happens';
    ALTER FOREIGN TABLE incident ALTER number OPTIONS (ADD index 'true');
    CREATE VIEW open_incident AS SELECT number, short_description FROM incident WHERE state < 6;
    CREATE MATERIALIZED VIEW by_state AS SELECT state, count(*) FROM incident GROUP BY state;
    CREATE FUNCTION incidents() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM public.incident';
    CREATE TABLE note (incident text, note text);
    CREATE SCHEMA elsewhere;
    CREATE FOREIGN TABLE elsewhere.problem (sys_id text, number text) SERVER acme OPTIONS (query 'active=true', poll_interval '5s');
    GRANT SELECT ON incident TO PUBLIC";

/// What users hang on caches, which no dump takes along.
const LOSSES: &str = "
    CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER seen AFTER INSERT ON servicenow_cache.incident FOR EACH ROW EXECUTE FUNCTION seen();
    CREATE PUBLICATION incidents FOR TABLE servicenow_cache.incident";

/// With a setting of the database that has readers fail while a table is filled.
const PATIENT: &str = "-c servicenow_fdw.incomplete_reads=allow -c servicenow_fdw.max_staleness=0";

/// Every table of the world, compared with the original's.
const CONTENT: &str = "
    SELECT (SELECT count(*) FROM incident)::text || ' ' || (SELECT count(*) FROM elsewhere.problem) || ' '
           || (SELECT md5(string_agg(i::text, ',' ORDER BY sys_id)) FROM incident i)";

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("snfdw-{}-{name}", std::process::id()))
}

/// Waits until a restored database has everything again, and asserts that it has what the original has.
async fn fills_itself(world: &World, cluster: &'static Cluster, database: &str) {
    let began = Instant::now();
    let db = connect(cluster, database).await;
    db.run("SELECT servicenow.wait_for_sync('incident', '60 s'); SELECT servicenow.wait_for_sync('elsewhere.problem', '60 s')").await;
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(db.value::<String>(CONTENT).await, world.db.value::<String>(CONTENT).await);
    db.run("REFRESH MATERIALIZED VIEW by_state").await;
    let by_state = "SELECT sum(count)::bigint = incidents() AND count(*) > 1 FROM by_state";
    assert!(db.value::<bool>(by_state).await);
    let index = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'servicenow_cache' AND indexdef LIKE '%(number)%'";
    assert_eq!(db.value::<i64>(index).await, 1);
    let lost = "SELECT (SELECT count(*) FROM pg_publication_tables) + (SELECT count(*) FROM pg_trigger WHERE tgname = 'seen')";
    assert_eq!(db.value::<i64>(lost).await, 0, "docs/operations.md says that these are lost");
    assert_eq!(db.value::<i64>("SELECT count(*) FROM pg_publication").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_a_cluster_or_database_is_restored_without_network_and_fills_itself() {
    let world = World::bare(Dataset::Incidents(MANY)).await;
    world.set_up(", page_size '1000', notify_email 'dba@example.com'").await;
    world.db.run(&format!("{INCIDENT}; {USES}; {LOSSES}")).await;
    world.sync("incident").await;
    world.sync("elsewhere.problem").await;
    // The other worlds of this cluster are not meant.
    let source: &'static Cluster =
        Box::leak(Box::new(Cluster::start("shared_preload_libraries = 'servicenow_fdw'")));
    let (file, archive) = (temporary("all.sql"), temporary("one.dump"));
    let dump = |program: &str, cluster: &Cluster, database: &str, arguments: &[&str]| {
        let output = cluster.program(program, database).env("PGOPTIONS", PATIENT).args(arguments).output();
        let output = output.expect("a program of Postgres");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program}: {said}");
        said
    };
    // A first restore makes the cluster of one world; the world's own goes on polling.
    let _asked =
        dump("pg_dump", world.cluster, &world.database, &["-Fc", "-f", &archive.display().to_string()]);
    world.sim.set(|s| s.availability = Availability::Unreachable);
    let postgres = connect(source, "postgres").await;
    postgres.run("CREATE DATABASE restored").await;
    postgres.run("ALTER DATABASE restored SET servicenow_fdw.incomplete_reads = 'error'").await;
    let arguments = ["--exit-on-error", "-j", "2", "-d", "restored", &archive.display().to_string()];
    let said = dump("pg_restore", source, "restored", &arguments);
    assert!(!said.contains("error"), "{said}");
    let _asked = dump("pg_dumpall", source, "restored", &["-f", &file.display().to_string()]);
    let target: &'static Cluster =
        Box::leak(Box::new(Cluster::start("shared_preload_libraries = 'servicenow_fdw'")));
    let said = dump("psql", target, "postgres", &["-Xq", "-f", &file.display().to_string()]);
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(errors[0].contains("role \"postgres\" already exists"), "a new cluster has it: {said}");
    let _gone = (std::fs::remove_file(&file), std::fs::remove_file(&archive));
    world.sim.set(|s| s.availability = Availability::Up);
    world.sync("incident").await;
    fills_itself(&world, source, "restored").await;
    fills_itself(&world, target, "restored").await;
}
