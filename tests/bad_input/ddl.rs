//! DDL of every kind while the worker is at work: it never fails on the worker's account, and nothing is lost.

use std::time::{Duration, Instant};

use servicenow_sim::Dataset;
use world::World;

use crate::{GOOD, follows, recovers};

const INCIDENT: &str = "CREATE FOREIGN TABLE incident (sys_id text, number text, state text OPTIONS (show 'label'),
                          state_value bigint OPTIONS (field 'state'), short_description text, opened_at timestamptz)
                        SERVER acme OPTIONS (\"table\" 'incident')";
const COLUMNS: &[&str] = &["number", "short_description", "state_value=state"];

/// A world whose instance has a few thousand incidents and takes its time, so that filling lasts for seconds.
async fn slow() -> World {
    let world = World::with(Dataset::Incidents(3_000), ", page_size '50', max_concurrency '2'").await;
    world.sim.set(|s| s.latency_ms = 20);
    world
}

/// Waits until a fill of the table is under way.
async fn until_filling(world: &World, table: &str) {
    world
        .until(&format!(
            "SELECT phase = 'backfill' AND rows > 0 FROM servicenow.sync_status WHERE foreign_table = '{table}'::regclass"
        ))
        .await;
}

/// What the extension still knows of tables that are gone.
async fn nothing_is_left(world: &World) {
    world
        .until(
            "SELECT NOT EXISTS (SELECT FROM servicenow.sync_table t WHERE NOT EXISTS (SELECT FROM pg_foreign_table f WHERE f.ftrelid = t.foreign_table))
                AND NOT EXISTS (SELECT FROM servicenow.sync_range r WHERE NOT EXISTS (SELECT FROM servicenow.sync_table t USING (foreign_table)))
                AND NOT EXISTS (SELECT FROM servicenow.sync_server s WHERE NOT EXISTS (SELECT FROM pg_foreign_server f WHERE f.oid = s.server))
                AND (SELECT count(*) FROM pg_class WHERE relnamespace = 'servicenow_cache'::regnamespace AND relkind = 'r')
                  = (SELECT count(*) FROM servicenow.sync_table)"
                .replace("t USING (foreign_table)", "t WHERE t.foreign_table = r.foreign_table")
                .as_str(),
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_may_be_altered_in_every_way_while_it_is_filled() {
    let world = slow().await;
    world.db.run(&format!("CREATE SCHEMA elsewhere; {INCIDENT}")).await;
    until_filling(&world, "incident").await;
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        for change in [
            "ALTER FOREIGN TABLE incident ADD COLUMN priority bigint",
            "ALTER FOREIGN TABLE incident RENAME TO renamed",
            "ALTER FOREIGN TABLE renamed RENAME number TO numero",
            "ALTER FOREIGN TABLE renamed ALTER numero OPTIONS (ADD field 'number')",
            "ALTER FOREIGN TABLE renamed SET SCHEMA elsewhere",
            "ALTER TABLE elsewhere.renamed ALTER priority TYPE text",
            "ALTER FOREIGN TABLE elsewhere.renamed OPTIONS (ADD query 'active=true')",
            "BEGIN; ALTER FOREIGN TABLE elsewhere.renamed DROP COLUMN short_description; ROLLBACK",
            "ALTER FOREIGN TABLE elsewhere.renamed DROP COLUMN priority",
            "ALTER FOREIGN TABLE elsewhere.renamed OPTIONS (DROP query)",
            "ALTER FOREIGN TABLE elsewhere.renamed SET SCHEMA public",
            "ALTER FOREIGN TABLE renamed ALTER numero OPTIONS (DROP field)",
            "ALTER FOREIGN TABLE renamed RENAME numero TO number",
            "ALTER FOREIGN TABLE renamed RENAME TO incident",
        ] {
            world.db.run(change).await;
            tokio::time::sleep(Duration::from_millis(30)).await; // let the worker get into it
        }
    }
    world.sim.set(|s| s.latency_ms = 0);
    recovers(&world, "incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    assert_eq!(
        world.db.value::<String>("SELECT 'servicenow_cache.incident'::regclass::text").await,
        "servicenow_cache.incident"
    );
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_come_and_go_while_they_are_filled() {
    let world = slow().await;
    world.db.run(GOOD).await;
    for n in 0..12u64 {
        world.db.run(INCIDENT).await;
        tokio::time::sleep(Duration::from_millis(25 * n)).await; // another moment of the fill each time
        world.db.run("DROP FOREIGN TABLE incident").await;
    }
    nothing_is_left(&world).await;
    world.sim.set(|s| s.latency_ms = 0);
    follows(&world, "good", "problem").await;
    world.db.run(INCIDENT).await;
    world.until_like_the_instance("incident", COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_dropped_while_its_table_is_filled_takes_nothing_else_along() {
    let world = slow().await;
    world
        .db
        .run(&format!(
            "CREATE SERVER other FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url '{}', poll_interval '200ms');
             CREATE USER MAPPING FOR PUBLIC SERVER other OPTIONS (auth 'basic', username 'fdw.integration', password 'fdw-secret');
             CREATE FOREIGN TABLE good (sys_id text, short_description text) SERVER other OPTIONS (\"table\" 'problem');
             {INCIDENT}",
            world.sim.url()
        ))
        .await;
    until_filling(&world, "incident").await;
    world.db.run("DROP SERVER acme CASCADE").await;
    nothing_is_left(&world).await;
    follows(&world, "good", "problem").await;
    let asked = || world.sim.requests().iter().filter(|r| r.table.as_deref() == Some("incident")).count();
    let before = asked();
    follows(&world, "good", "problem").await;
    assert_eq!(asked(), before, "nobody reads the table any more");
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM servicenow.sync_status").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uncommitted_drop_lets_the_other_tables_go_on() {
    let world = World::new().await;
    world.db.run(&format!("{INCIDENT}; {GOOD}")).await;
    world.sync("incident").await;
    world.sync("good").await;
    let other = world.session().await;
    other.run("BEGIN; DROP FOREIGN TABLE incident").await;
    world
        .sim
        .edit()
        .update_where("incident", "number=INC0012345", &[("short_description", "meanwhile")])
        .expect("a query");
    world.sim.edit().delete_where("incident", "state=8").expect("a query");
    follows(&world, "good", "problem").await;
    other.run("ROLLBACK").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    recovers(&world, "incident").await;
}

/// What the worker could not look at when it looked, it looks at again.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_locked_while_the_worker_starts_is_followed_afterwards() {
    let world = World::new().await;
    world.db.run(&format!("{INCIDENT}; {GOOD}")).await;
    world.sync("incident").await;
    world.sync("good").await;
    let other = world.session().await;
    world.stop_worker().await;
    other.run("BEGIN; ALTER FOREIGN TABLE incident OPTIONS (ADD updatable 'false')").await;
    world.db.run("SELECT servicenow.start_worker()").await;
    let arrives = world.sim.edit().insert("problem", &[("short_description", "good")]).expect("a record");
    world.until(&format!("SELECT count(*) = 1 FROM good WHERE sys_id = '{arrives}'")).await;
    other.run("ROLLBACK").await;
    follows(&world, "incident", "incident").await;
    recovers(&world, "incident").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_added_to_a_parent_table_is_filled() {
    let world = World::new().await;
    world
        .db
        .run(
            "CREATE TABLE parent (sys_id text, number text);
             CREATE FOREIGN TABLE child () INHERITS (parent) SERVER acme OPTIONS (\"table\" 'incident');
             CREATE TABLE parted (sys_id text, number text, company text) PARTITION BY LIST (company);
             CREATE FOREIGN TABLE part PARTITION OF parted DEFAULT SERVER acme OPTIONS (\"table\" 'incident')",
        )
        .await;
    for (parent, child) in [("parent", "child"), ("parted", "part")] {
        let like = format!("{child}=incident");
        world.sync(child).await;
        world.db.run(&format!("ALTER TABLE {parent} ADD COLUMN short_description text")).await;
        world.sync(child).await;
        world.until_like_the_instance(&like, &["number", "short_description"]).await;
        world.db.run(&format!("ALTER TABLE {parent} RENAME short_description TO description")).await;
        world.sync(child).await;
        world.until_like_the_instance(&like, &["number", "description"]).await;
        world.db.run(&format!("ALTER TABLE {parent} DROP COLUMN description")).await;
        world.sync(child).await;
        world.until_like_the_instance(&like, &["number"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_goes_with_its_type_leaves_a_whole_table() {
    let world = World::new().await;
    world
        .db
        .run(
            "CREATE TYPE answer AS ENUM ('true', 'false');
             CREATE FOREIGN TABLE incident (sys_id text, active answer, number text) SERVER acme",
        )
        .await;
    world.sync("incident").await;
    world.db.run("DROP TYPE answer CASCADE").await;
    follows(&world, "incident", "incident").await;
    world.db.run("ALTER FOREIGN TABLE incident ADD COLUMN short_description text").await;
    world.sync("incident").await;
    world.until_like_the_instance("incident", &["number", "short_description"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_can_swap_their_names() {
    let world = World::new().await;
    world.db.run("CREATE FOREIGN TABLE incident (sys_id text, number text OPTIONS (field 'number'), short_description text OPTIONS (field 'short_description')) SERVER acme").await;
    world.sync("incident").await;
    world
        .db
        .run(
            "BEGIN;
             ALTER FOREIGN TABLE incident RENAME number TO parked;
             ALTER FOREIGN TABLE incident RENAME short_description TO number;
             ALTER FOREIGN TABLE incident RENAME parked TO short_description;
             COMMIT",
        )
        .await;
    world
        .until_like_the_instance("incident", &["short_description=number", "number=short_description"])
        .await;
    follows(&world, "incident", "incident").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_keep_the_other_columns_while_a_changed_one_is_read_again() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let rows: i64 = world.db.value("SELECT count(number) FROM incident").await;
    world.sim.set(|s| s.latency_ms = 100);
    world.db.run("ALTER FOREIGN TABLE incident ALTER opened_at TYPE date").await;
    let began = Instant::now();
    loop {
        assert_eq!(
            world.db.value::<i64>("SELECT count(number) FROM incident").await,
            rows,
            "no row ever goes"
        );
        let filled = "SELECT count(opened_at) = count(*) FROM incident";
        if world.db.value::<bool>(filled).await {
            break;
        }
        assert!(began.elapsed() < world::PATIENCE, "the column is filled");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_can_be_made_and_written_in_one_transaction() {
    let world = World::new().await;
    world
        .db
        .run(&format!("BEGIN; {INCIDENT}; INSERT INTO incident (short_description) VALUES ('early'); COMMIT"))
        .await;
    assert_eq!(world.sim.edit().find("incident", "short_description=early").expect("a query").len(), 1);
    world.until_like_the_instance("incident", COLUMNS).await;
    world.db.run(&format!("BEGIN; DROP FOREIGN TABLE incident; {INCIDENT}; COMMIT")).await;
    world.until_like_the_instance("incident", COLUMNS).await;
    world.db.run("BEGIN; CREATE SCHEMA s; ALTER FOREIGN TABLE incident SET SCHEMA s; DROP SCHEMA s CASCADE; COMMIT").await;
    nothing_is_left(&world).await;
}

/// A session that waits for an instance reads no messages of Postgres's; too far behind, it is told that anything may have changed.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_misses_messages_has_its_comments() {
    let world = World::new().await;
    let importer = world.session().await;
    importer.run("SELECT count(*) FROM servicenow.sync_status").await;
    world.sim.set(|s| s.latency_ms = 1_500);
    let from = world.sim.requests().len();
    let import = "IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO public";
    let import = tokio::spawn(async move { importer.run(import).await });
    while world.sim.requests().len() < from + 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..4 {
        world
            .db
            .run(
                "DO $$ BEGIN FOR n IN 1..200 LOOP
                     CREATE TEMP TABLE many (a int PRIMARY KEY, b text); DROP TABLE many;
                 END LOOP; END $$",
            )
            .await;
    }
    world.sim.set(|s| s.latency_ms = 0);
    import.await.expect("it is imported");
    let comments = "SELECT count(col_description(attrelid, attnum)) > 50 FROM pg_attribute WHERE attrelid = 'incident'::regclass";
    assert!(world.db.value::<bool>(comments).await);
}
