//! Indexes and statistics of caches.

use world::World;

use crate::{SCHEMAS, with_copies};

/// The indexes on the incidents' cache but its key: their columns.
const INDEXED: &str = "SELECT coalesce(string_agg(a.attname, ',' ORDER BY a.attname), '') FROM pg_index i
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = 'servicenow_cache.incident'::regclass AND NOT indisprimary";

#[tokio::test(flavor = "multi_thread")]
async fn the_option_makes_an_index_and_takes_it_away() {
    let world = with_copies().await;
    let indexed = || world.db.value::<String>(INDEXED);
    assert_eq!(indexed().await, "caller_id,number,opened_at");
    world.db.run("ALTER FOREIGN TABLE incident ALTER caller_id OPTIONS (SET index 'false')").await;
    assert_eq!(indexed().await, "number,opened_at");
    world.db.run("ALTER FOREIGN TABLE incident ALTER caller_id OPTIONS (DROP index)").await;
    world.db.run("ALTER FOREIGN TABLE incident ALTER state OPTIONS (ADD index 'on')").await;
    assert_eq!(indexed().await, "number,opened_at,state");
    world.db.run("ALTER FOREIGN TABLE incident RENAME state TO status").await;
    world.db.run("ALTER FOREIGN TABLE incident ALTER opened_at TYPE text").await;
    assert_eq!(indexed().await, "number,opened_at,status");
    world.db.run("ALTER FOREIGN TABLE incident DROP COLUMN number").await;
    assert_eq!(indexed().await, "opened_at,status");
    let error =
        world.db.error("ALTER FOREIGN TABLE incident ALTER priority OPTIONS (ADD index 'perhaps')").await;
    assert_eq!(error.code().code(), "22023");
    // The key has one anyway.
    world.db.run("ALTER FOREIGN TABLE incident ALTER sys_id OPTIONS (ADD index 'true')").await;
    assert_eq!(indexed().await, "opened_at,status");
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_and_statistics_survive_a_resync() {
    let world = with_copies().await;
    world
        .db
        .run(
            "CREATE INDEX mine ON servicenow_cache.incident (priority, state) WHERE active;
             CREATE STATISTICS mine ON state, priority FROM servicenow_cache.incident;
             ALTER TABLE servicenow_cache.incident ALTER number SET STATISTICS 500;
             ANALYZE servicenow_cache.incident",
        )
        .await;
    let state = "SELECT (SELECT count(*) FROM pg_index WHERE indrelid = c) || ' ' || (SELECT count(*) FROM pg_statistic WHERE starelid = c)
                     || ' ' || (SELECT count(*) FROM pg_statistic_ext WHERE stxrelid = c)
                     || ' ' || (SELECT attstattarget FROM pg_attribute WHERE attrelid = c AND attname = 'number')
                 FROM CAST('servicenow_cache.incident' AS regclass) c";
    let before = world.db.value::<String>(state).await;
    world.db.run("SELECT servicenow.start_worker(); SELECT servicenow.resync('incident')").await;
    world.sync("incident").await;
    assert_eq!(world.db.value::<String>(state).await, before);
    // An index of the option that somebody has dropped by hand is made again.
    world.db.run("DROP INDEX servicenow_cache.incident_number_idx").await;
    world.db.run("SELECT servicenow.resync('incident')").await;
    assert_eq!(world.db.value::<String>(INDEXED).await, "caller_id,number,opened_at,priority");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filled_table_has_statistics_at_once() {
    let world = World::new().await;
    world.import(&["incident"]).await;
    let estimate = "SELECT reltuples::bigint FROM pg_class WHERE oid = 'servicenow_cache.incident'::regclass";
    assert_eq!(world.db.value::<i64>(estimate).await, 50);
    let known =
        "SELECT count(*) > 50 FROM pg_stats WHERE schemaname = 'servicenow_cache' AND tablename = 'incident'";
    assert!(world.db.value::<bool>(known).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_table_can_be_analyzed() {
    let world = with_copies().await;
    world.db.run("ANALYZE (VERBOSE) incident; ANALYZE incident (number, state)").await;
    let alike = "SELECT count(*) FROM pg_stats f JOIN pg_stats l USING (attname)
                 WHERE f.schemaname = 'public' AND f.tablename = 'incident' AND l.schemaname = 'copy' AND l.tablename = 'incident'
                   AND (f.null_frac, f.n_distinct, f.avg_width) = (l.null_frac, l.n_distinct, l.avg_width)";
    assert_eq!(world.db.value::<i64>(alike).await, 13);
    assert_eq!(
        world.db.value::<f32>("SELECT reltuples FROM pg_class WHERE oid = 'incident'::regclass").await,
        50.0
    );
    // Everything, as a nightly job does it.
    world.db.run("ANALYZE").await;
}

/// A foreign scan's rows are as many, as wide and as different as the cache's statistics say, also in what is joined and
/// grouped above.
#[tokio::test(flavor = "multi_thread")]
async fn estimates_above_a_foreign_scan_are_those_of_a_local_table() {
    let world = with_copies().await;
    let scan = "i.tableoid > 0";
    for query in [
        format!("SELECT number, caller_id FROM incident i WHERE {scan}"),
        format!("SELECT state, priority, count(*) FROM incident i WHERE {scan} GROUP BY state, priority"),
        format!("SELECT DISTINCT caller_id FROM incident i WHERE {scan} AND state = 2"),
        format!(
            "SELECT p.name, i.number FROM incident i JOIN person p ON p.sys_id = i.caller_id WHERE {scan}"
        ),
        format!(
            "SELECT i.number FROM incident i JOIN incident j ON i.state = j.state WHERE {scan} AND j.tableoid > 0"
        ),
        format!(
            "SELECT i.number FROM incident i WHERE {scan} AND (i.state + 0 < 3 OR i.ctid IS NULL OR i.state = 6)"
        ),
    ] {
        let mut estimates = Vec::new();
        for schema in SCHEMAS {
            world.db.run(&format!("SET search_path = {schema}")).await;
            let plan = world.db.rows(&format!("EXPLAIN {query}")).await;
            let root: &str = plan[0].get(0);
            estimates.push(root.split_once(" rows=").expect("an estimate").1.to_owned());
        }
        assert_eq!(estimates[0], estimates[1], "{query}");
    }
    // Who may not read the table does not get to see its values by the planner's using an operator of theirs.
    let reader = world.session_as("reader").await;
    reader.run("SET search_path = public").await;
    assert_eq!(reader.error(&format!("SELECT FROM incident i WHERE {scan}")).await.code().code(), "42501");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_has_lost_its_children_is_read_like_any_other() {
    let world = with_copies().await;
    let before = world.db.explain("SELECT * FROM incident").await;
    assert!(!before.contains("Foreign Scan"), "{before}");
    world.db.run("CREATE TABLE child () INHERITS (incident)").await;
    assert!(world.db.explain("SELECT * FROM incident").await.contains("Foreign Scan"));
    world.db.run("DROP TABLE child").await;
    assert_eq!(world.db.explain("SELECT * FROM incident").await, before);
}

/// Without the planner's hook, too, the first rows by an index cost no more than those rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_scan_gives_rows_in_the_order_of_an_index() {
    let world = with_copies().await;
    world.db.run("SET enable_seqscan = off").await;
    let scan = "SELECT number, ctid FROM incident WHERE tableoid > 0";
    for order in [
        "opened_at",
        "opened_at DESC",
        "number COLLATE \"C\" DESC",
        "opened_at NULLS FIRST",
        "number, sys_id",
        "number || 'x'",
        "ctid",
    ] {
        for limit in ["LIMIT 3", ""] {
            let query = format!("{scan} ORDER BY {order} {limit}");
            let is_indexed = ["opened_at", "opened_at DESC"].contains(&order);
            let plan = world.db.explain(&query).await;
            assert!(limit.is_empty() || plan.contains("Sort") != is_indexed, "{query}\n{plan}");
            let mut answers = Vec::new();
            for schema in SCHEMAS {
                world.db.run(&format!("SET search_path = {schema}")).await;
                let rows = world
                    .db
                    .rows(&query.replace("ctid FROM", "1 FROM").replace("BY ctid", "BY number"))
                    .await;
                answers.push(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>());
            }
            world.db.run("SET search_path = public").await;
            assert_eq!(answers[0], answers[1], "{query}");
        }
    }
    // The first statement of a session.
    let cold = world.session().await;
    cold.run("SET enable_seqscan = off").await;
    let plan = cold.explain("SELECT number FROM incident ORDER BY opened_at LIMIT 1").await;
    assert!(plan.contains("Foreign Scan") && !plan.contains("Sort"), "{plan}");
}
