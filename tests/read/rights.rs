//! Privileges: those of the foreign table, checked as for a local one, on both ways of reading.

use world::{Session, World};

use crate::{SCHEMAS, with_copies};

/// The outcome of a statement: how many rows, or how it was refused.
async fn outcome(session: &Session, sql: &str) -> String {
    match session.client().query(sql, &[]).await {
        Ok(rows) => format!("{} rows", rows.len()),
        Err(e) => {
            let e = e.as_db_error().expect("an error of the server");
            // Where several tables are refused, either may be named.
            let message = e.message().split(" for ").next().unwrap_or_default();
            format!("{}: {message}", e.code().code())
        }
    }
}

/// Statements that need different rights.
const STATEMENTS: [&str; 20] = [
    "SELECT * FROM incident",
    "SELECT number FROM incident",
    "SELECT count(*) FROM incident",
    "SELECT 1 FROM incident",
    "SELECT state FROM incident",
    "SELECT number FROM incident WHERE state = 1",
    "SELECT number FROM incident ORDER BY opened_at",
    "SELECT i FROM incident i",
    "SELECT i.tableoid, number FROM incident i",
    "SELECT i.tableoid, state FROM incident i",
    "SELECT number FROM incident WHERE tableoid IS NOT NULL AND priority = 1",
    "SELECT number FROM incident FOR UPDATE",
    "SELECT number FROM incident FOR SHARE",
    "SELECT (SELECT max(number) FROM incident)",
    "SELECT EXISTS (SELECT FROM incident WHERE state = 1)",
    "SELECT p.number FROM problem p LEFT JOIN incident i ON i.number = p.number",
    "WITH i AS MATERIALIZED (SELECT number FROM incident) SELECT * FROM i",
    "SELECT * FROM by_owner",
    "SELECT * FROM by_invoker",
    "SELECT number_of('INC0012345')",
];

async fn prepare(world: &World, schema: &str, reader: &str, owner: &str) {
    world
        .db
        .run(&format!(
            "GRANT USAGE ON SCHEMA {schema} TO {reader}, {owner};
             GRANT CREATE ON SCHEMA {schema} TO {owner};
             GRANT SELECT ON {schema}.incident TO {owner};
             SET search_path = {schema};
             SET ROLE {owner};
             CREATE VIEW by_owner AS SELECT number FROM incident;
             CREATE VIEW by_invoker WITH (security_invoker) AS SELECT number FROM incident;
             CREATE FUNCTION number_of(text) RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
                 SET search_path = {schema} AS 'SELECT state_label FROM incident WHERE number = $1';
             GRANT SELECT ON by_owner, by_invoker TO {reader};
             RESET ROLE; RESET search_path"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_right_counts_as_on_a_local_table() {
    let world = with_copies().await;
    let reader_session = world.session_as("reader").await;
    let _owner_session = world.session_as("owner").await;
    let (reader, owner) = (world.role("reader"), world.role("owner"));
    for schema in SCHEMAS {
        prepare(&world, schema, &reader, &owner).await;
    }
    let mut distinct = std::collections::BTreeSet::new();
    for grants in [
        "",
        "SELECT ON problem",
        "SELECT (number) ON incident",
        "SELECT (number, state) ON incident",
        "SELECT (number), UPDATE (number) ON incident",
        "SELECT ON problem; SELECT (number) ON incident",
        "SELECT ON incident",
        "SELECT, UPDATE ON incident",
        "UPDATE ON incident",
        "SELECT ON incident, problem",
    ] {
        for schema in SCHEMAS {
            world.db.run(&format!("SET search_path = {schema}")).await;
            world.db.run(&format!("REVOKE ALL ON incident, problem FROM {reader}")).await;
            world.db.run(&format!("REVOKE ALL (number, state, priority) ON incident FROM {reader}")).await;
            for grant in grants.split("; ").filter(|grant| !grant.is_empty()) {
                world.db.run(&format!("GRANT {grant} TO {reader}")).await;
            }
        }
        world.db.run("RESET search_path").await;
        for statement in STATEMENTS {
            let mut outcomes = Vec::new();
            for schema in SCHEMAS {
                reader_session.run(&format!("SET search_path = {schema}")).await;
                outcomes.push(outcome(&reader_session, statement).await);
            }
            assert_eq!(outcomes[0], outcomes[1], "with {grants:?}: {statement}");
            distinct.insert(outcomes.swap_remove(0));
        }
        // The same as another role becomes this one.
        world.db.run(&format!("SET ROLE {reader}")).await;
        for statement in STATEMENTS {
            let mut outcomes = Vec::new();
            for schema in SCHEMAS {
                world.db.run(&format!("SET search_path = {schema}")).await;
                outcomes.push(outcome(&world.db, statement).await);
            }
            assert_eq!(outcomes[0], outcomes[1], "SET ROLE with {grants:?}: {statement}");
        }
        world.db.run("RESET ROLE; RESET search_path").await;
    }
    assert!(distinct.len() > 3, "rights made a difference: {distinct:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_is_kept_does_not_outlive_a_right() {
    let world = with_copies().await;
    let session = world.session_as("reader").await;
    let reader = world.role("reader");
    world.db.run(&format!("GRANT SELECT ON incident TO {reader}")).await;
    for query in ["SELECT number FROM incident", "SELECT number FROM incident WHERE tableoid > 0"] {
        session.run(&format!("PREPARE q AS {query}")).await;
        for _ in 0..7 {
            session.run("EXECUTE q").await;
        }
        world.db.run(&format!("REVOKE SELECT ON incident FROM {reader}")).await;
        assert_eq!(session.error("EXECUTE q").await.code().code(), "42501");
        world.db.run(&format!("GRANT SELECT ON incident TO {reader}")).await;
        session.run("EXECUTE q; DEALLOCATE q").await;
    }
}

/// A function that tells what it is shown must not be shown what a barrier keeps back.
#[tokio::test(flavor = "multi_thread")]
async fn a_security_barrier_keeps_rows_from_leaky_functions() {
    let world = with_copies().await;
    let session = world.session_as("reader").await;
    let reader = world.role("reader");
    for schema in SCHEMAS {
        world
            .db
            .run(&format!(
                "GRANT USAGE, CREATE ON SCHEMA {schema} TO {reader};
                 CREATE VIEW {schema}.few WITH (security_barrier) AS
                     SELECT number, short_description FROM {schema}.incident WHERE number = 'INC0012345';
                 CREATE VIEW {schema}.few_scanned WITH (security_barrier) AS
                     SELECT number FROM {schema}.incident WHERE number = 'INC0012345' AND tableoid > 0;
                 GRANT SELECT ON {schema}.few, {schema}.few_scanned TO {reader}"
            ))
            .await;
        session
            .run(&format!(
                "SET search_path = {schema};
                 CREATE TABLE told (number text);
                 CREATE FUNCTION tell(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001
                     AS 'BEGIN INSERT INTO told VALUES ($1); RETURN true; END'"
            ))
            .await;
        for view in ["few", "few_scanned"] {
            session.run(&format!("TRUNCATE told; SELECT * FROM {view} WHERE tell(number)")).await;
            assert_eq!(session.value::<i64>("SELECT count(*) FROM told").await, 1, "{schema}.{view}");
        }
    }
}

/// Planning already runs operators, on values from statistics.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_is_shown_nothing_its_owner_may_not_read() {
    let world = with_copies().await;
    let session = world.session_as("reader").await;
    let reader = world.role("reader");
    world
        .db
        .run(&format!(
            "GRANT CREATE, USAGE ON SCHEMA public TO {reader}; GRANT SELECT (number) ON incident TO {reader};
             CREATE TABLE ticket (sys_id text, number text, short_description text);
             CREATE FOREIGN TABLE child () INHERITS (ticket) SERVER acme OPTIONS (\"table\" 'incident');
             SELECT servicenow.start_worker()"
        ))
        .await;
    world.sync("child").await;
    world.db.run(&format!("GRANT SELECT ON child TO {reader}")).await;
    session
        .run(
            "CREATE TABLE told (value text);
             CREATE FUNCTION leak(text, text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE COST 0.0001
                 AS 'BEGIN RAISE WARNING ''LEAKED %'', $1; RETURN true; END';
             CREATE OPERATOR <<<< (PROCEDURE = leak, LEFTARG = text, RIGHTARG = text, RESTRICT = scalarltsel);
             SET client_min_messages = error",
        )
        .await;
    for query in [
        "SELECT 1 FROM incident WHERE short_description <<<< 'x'",
        "SELECT number FROM incident WHERE short_description <<<< 'x' AND number > 'A'",
        "SELECT 1 FROM incident WHERE short_description <<<< 'x' AND tableoid > 0",
        "SELECT 1 FROM ticket WHERE short_description <<<< 'x'",
        "SELECT 1 FROM incident i JOIN (SELECT 'INC0012345' AS n) x ON x.n = i.number AND i.short_description <<<< 'x'",
    ] {
        for prefix in ["", "EXPLAIN "] {
            assert_eq!(session.error(&format!("{prefix}{query}")).await.code().code(), "42501", "{query}");
        }
    }
    let log = world.cluster.log();
    let leaks: Vec<&str> = log.lines().filter(|line| line.contains("LEAKED")).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    // With the right to read the column, the operator may look.
    world.db.run(&format!("GRANT SELECT ON incident TO {reader}")).await;
    session.run("SELECT 1 FROM incident WHERE short_description <<<< 'x'").await;
    assert!(world.cluster.log().contains("LEAKED"));
}

/// Row-level security is for local tables; a policy cannot be asked for on a foreign one.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_needs_rights_on_the_caches_and_nobody_gets_them() {
    let world = with_copies().await;
    let session = world.session_as("reader").await;
    world.db.run(&format!("GRANT SELECT ON incident TO {}", world.role("reader"))).await;
    assert_eq!(session.value::<i64>("SELECT count(*) FROM incident").await, 50);
    assert_eq!(session.value::<i64>("SELECT count(*) FROM incident WHERE tableoid > 0").await, 50);
    let error = session.error("SELECT count(*) FROM servicenow_cache.incident").await;
    assert_eq!(error.code().code(), "42501");
}
