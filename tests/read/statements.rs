//! Every kind of statement that can hold a relation.

use futures_util::StreamExt;
use world::cluster::Cluster;
use world::{World, connect};

use crate::{SCHEMAS, with_copies};

/// Runs the same on foreign tables and on their copies.
async fn on_both(world: &World, statements: &[&str], query: &str) {
    let mut answers = Vec::new();
    for schema in SCHEMAS {
        let session = world.session().await;
        session
            .run(&format!(
                "CREATE SCHEMA IF NOT EXISTS made_{schema}; SET search_path = made_{schema}, {schema}"
            ))
            .await;
        for statement in statements {
            session.run(statement).await;
        }
        let rows = session.rows(&format!("SELECT t::text FROM ({query}) t ORDER BY 1")).await;
        answers.push(rows.iter().map(|row| row.get::<_, Option<String>>(0)).collect::<Vec<_>>());
        world.db.run(&format!("DROP SCHEMA made_{schema} CASCADE")).await;
    }
    assert_eq!(answers[0], answers[1], "{statements:#?}\n{query}");
    assert!(!answers[0].is_empty(), "{query}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_views_and_functions_are_made_of_it() {
    let world = with_copies().await;
    on_both(&world, &["CREATE TABLE new AS SELECT * FROM incident"], "SELECT * FROM new").await;
    on_both(
        &world,
        &[
            "CREATE TABLE new (LIKE incident)",
            "INSERT INTO new SELECT * FROM incident WHERE active ON CONFLICT DO NOTHING",
        ],
        "SELECT * FROM new",
    )
    .await;
    on_both(
        &world,
        &[
            "CREATE VIEW one AS SELECT i.*, p.name FROM incident i LEFT JOIN person p ON p.sys_id = i.caller_id",
            "CREATE VIEW two AS SELECT name, count(*) AS n, max(opened_at) AS latest FROM one GROUP BY name",
        ],
        "SELECT * FROM two JOIN one USING (name)",
    )
    .await;
    on_both(
        &world,
        &[
            "CREATE MATERIALIZED VIEW kept AS SELECT state, count(*) AS n FROM incident GROUP BY state",
            "CREATE UNIQUE INDEX ON kept (state)",
            "REFRESH MATERIALIZED VIEW CONCURRENTLY kept",
        ],
        "SELECT * FROM kept",
    )
    .await;
    on_both(
        &world,
        &[
            "CREATE FUNCTION inlined(bigint) RETURNS SETOF incident LANGUAGE sql STABLE AS 'SELECT * FROM incident WHERE state = $1'",
            "CREATE FUNCTION scalar(text) RETURNS text LANGUAGE sql STABLE AS 'SELECT name FROM person WHERE sys_id = $1'",
            "CREATE FUNCTION loops() RETURNS SETOF text LANGUAGE plpgsql AS
                 'DECLARE r record; i incident; BEGIN FOR r IN SELECT * FROM incident ORDER BY sys_id LOOP
                      SELECT * INTO i FROM incident WHERE sys_id = r.sys_id; RETURN NEXT i.number || r.state; END LOOP; END'",
        ],
        "SELECT number, scalar(caller_id), NULL FROM inlined(2) UNION ALL SELECT * FROM loops() l, LATERAL (SELECT l, l) x",
    )
    .await;
    on_both(
        &world,
        &[
            "CREATE TABLE target (sys_id text PRIMARY KEY, state bigint, n int DEFAULT 0)",
            "INSERT INTO target SELECT sys_id, -1 FROM incident WHERE priority = 1",
            "MERGE INTO target t USING incident i ON t.sys_id = i.sys_id
                 WHEN MATCHED THEN UPDATE SET state = i.state, n = n + 1
                 WHEN NOT MATCHED AND i.active THEN INSERT (sys_id, state) VALUES (i.sys_id, i.state)",
            "UPDATE target t SET n = 7 FROM incident i JOIN person p ON p.sys_id = i.caller_id WHERE i.sys_id = t.sys_id",
            "DELETE FROM target USING problem p WHERE target.state = p.state",
        ],
        "SELECT * FROM target",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recursion_windows_sets_and_whole_rows() {
    let world = with_copies().await;
    for query in [
        "WITH RECURSIVE r (id, depth) AS (
             SELECT sys_id, 0 FROM person UNION
             SELECT p.department, depth + 1 FROM r JOIN person p ON p.sys_id = r.id WHERE depth < 3) SELECT * FROM r",
        "SELECT number, rank() OVER (PARTITION BY state ORDER BY opened_at, number), lag(number) OVER (ORDER BY number) FROM incident",
        "SELECT state, active, grouping(state, active), count(*) FROM incident GROUP BY CUBE (state, active)",
        "SELECT row_to_json(i), i IS NOT NULL, i.*::text, to_jsonb(i) -> 'number' FROM incident i",
        "SELECT (i).number, (i).sys_class_name FROM (SELECT i FROM incident i) x",
        "SELECT array_agg(i ORDER BY number) FROM incident i",
        "SELECT a, b, c FROM incident AS x (a, b, c) WHERE c > 1",
        "SELECT * FROM incident NATURAL JOIN (SELECT sys_id, number FROM incident) x",
        "SELECT i.number, x.* FROM incident i, LATERAL (SELECT p.name FROM person p WHERE p.sys_id = i.caller_id LIMIT 1) x",
        "SELECT count(*) FROM incident a JOIN incident b ON a.caller_id = b.caller_id AND a.sys_id < b.sys_id",
        "SELECT number FROM incident WHERE (state, priority) IN (SELECT state, priority FROM incident WHERE active)",
        "SELECT number FROM incident WHERE state < ANY (ARRAY(SELECT state FROM problem))",
        "SELECT DISTINCT ON (state) state, number FROM incident ORDER BY state, number",
        "SELECT i.tableoid IS NOT NULL, count(*), count(DISTINCT i.ctid) FROM incident i GROUP BY 1",
        "SELECT count(i.xmin), count(DISTINCT i.xmin::text), count(cmin), count(cmax), min(xmax::text), count(DISTINCT (ctid, xmin::text)) FROM incident i",
        "SELECT number, cmin = cmax, age(xmin) >= 0, xmax, tableoid > 0 FROM incident WHERE xmax::text = '0' ORDER BY ctid DESC LIMIT 3",
        "SELECT number FROM incident WHERE ctid IN (SELECT ctid FROM incident WHERE priority = 1)",
        "SELECT a.number, b.number FROM incident a JOIN incident b ON a.caller_id = b.caller_id AND a.ctid < b.ctid",
        "SELECT number, i IS NULL FROM incident i WHERE i IS NOT NULL",
        "TABLE incident",
        "SELECT number, ordinal FROM ROWS FROM (generate_series(1, 3)) WITH ORDINALITY g (n, ordinal), incident WHERE state = n",
        "VALUES ((SELECT count(*) FROM incident), (SELECT max(number) FROM problem))",
    ] {
        on_both(&world, &[], query).await;
    }
    let error = world.db.error("SELECT * FROM incident TABLESAMPLE SYSTEM (10)").await;
    assert!(error.message().starts_with("TABLESAMPLE clause can only be applied"), "{}", error.message());
}

/// What an outer join computes may end up in a scan, when the join turns out to be an inner one.
#[tokio::test(flavor = "multi_thread")]
async fn an_expression_from_below_an_outer_join_is_computed_by_the_scan() {
    let world = with_copies().await;
    for system_column in ["", "i.tableoid IS NOT NULL AS there, "] {
        let below =
            format!("SELECT {system_column}coalesce(i.state, 0) AS s, i.caller_id, i.number FROM incident i");
        for query in [
            format!(
                "SELECT p.name, x.* FROM person p LEFT JOIN ({below}) x ON x.caller_id = p.sys_id WHERE x.s = 2"
            ),
            format!(
                "SELECT p.name, x.* FROM person p LEFT JOIN ({below}) x ON x.caller_id = p.sys_id WHERE x.s = length(p.name) - 10"
            ),
        ] {
            on_both(&world, &[], &query).await;
        }
    }
}

/// Processes of a parallel query may be the first of theirs to read a foreign table.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_reads_in_a_parallel_query() {
    let world = with_copies().await;
    on_both(
        &world,
        &[
            "SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0",
            "CREATE FUNCTION number_of(text) RETURNS text LANGUAGE plpgsql STABLE PARALLEL SAFE AS
                 'BEGIN RETURN (SELECT number FROM incident WHERE sys_id = $1); END'",
        ],
        "SELECT count(number_of(sys_id)) FROM copy.incident",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_scroll_and_outlive_their_transaction() {
    let world = with_copies().await;
    for way in ["", "WHERE tableoid > 0"] {
        let mut seen = Vec::new();
        for schema in SCHEMAS {
            let session = world.session().await;
            session
                .run(&format!(
                    "SET search_path = {schema}; BEGIN;
                     DECLARE c SCROLL CURSOR FOR SELECT number FROM incident {way} ORDER BY number;
                     DECLARE h CURSOR WITH HOLD FOR SELECT number FROM incident {way} ORDER BY number DESC"
                ))
                .await;
            let mut numbers = Vec::new();
            for fetch in
                ["FETCH 3 c", "FETCH LAST c", "FETCH BACKWARD 2 c", "FETCH ABSOLUTE 5 c", "FETCH PRIOR c"]
            {
                numbers.extend(session.rows(fetch).await.iter().map(|row| row.get::<_, String>(0)));
            }
            session.run("COMMIT").await;
            numbers.extend(session.rows("FETCH 4 h").await.iter().map(|row| row.get::<_, String>(0)));
            seen.push(numbers);
        }
        assert_eq!(seen[0], seen[1]);
        assert_eq!(seen[0].len(), 3 + 1 + 2 + 1 + 1 + 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_takes_a_query() {
    let world = with_copies().await;
    let mut copies = Vec::new();
    for schema in SCHEMAS {
        let copy = format!(
            "COPY (SELECT * FROM {schema}.incident ORDER BY sys_id) TO STDOUT WITH (FORMAT csv, HEADER)"
        );
        let stream = world.db.client().copy_out(&copy).await.expect("it is copied");
        let parts: Vec<_> = stream.map(|part| part.expect("a part").to_vec()).collect().await;
        copies.push(parts.concat());
    }
    assert_eq!(copies[0], copies[1]);
    let error = world.db.error("COPY incident TO '/dev/null'").await;
    assert!(error.hint().is_some_and(|hint| hint.contains("COPY (SELECT")), "{:?}", error.hint());
}

/// A plan that was kept is made anew when the foreign table or its cache changes.
#[tokio::test(flavor = "multi_thread")]
async fn kept_plans_follow_changes_of_either_table() {
    let world = with_copies().await;
    let session = world.session().await;
    for mode in ["force_generic_plan", "force_custom_plan", "auto"] {
        for way in ["", "AND tableoid > 0"] {
            session
                .run(&format!(
                    "SET plan_cache_mode = {mode}; SET enable_seqscan = off;
                     PREPARE q (bigint) AS SELECT count(*) FROM incident WHERE priority = $1 {way}"
                ))
                .await;
            let count = || session.value::<i64>("EXECUTE q (3)");
            let before = count().await;
            for _ in 0..6 {
                assert_eq!(count().await, before);
            }
            world.db.run("CREATE INDEX passing ON servicenow_cache.incident (priority)").await;
            let plan = session.explain("EXECUTE q (3)").await;
            assert!(plan.contains("passing"), "{mode} {way}: {plan}");
            world.db.run("DROP INDEX servicenow_cache.passing").await;
            assert_eq!(count().await, before);
            world
                .db
                .run("ALTER FOREIGN TABLE incident ADD COLUMN extra text OPTIONS (field 'close_code')")
                .await;
            assert_eq!(count().await, before);
            world.db.run("ALTER FOREIGN TABLE incident DROP COLUMN extra").await;
            assert_eq!(count().await, before);
            world.db.run("ALTER FOREIGN TABLE incident ALTER priority TYPE text").await;
            assert_eq!(session.error("EXECUTE q (3)").await.code().code(), "42883");
            world.db.run("ALTER FOREIGN TABLE incident ALTER priority TYPE bigint").await;
            world.db.run("SELECT servicenow.start_worker()").await;
            world.sync("incident").await;
            world.stop_worker().await;
            assert_eq!(count().await, before);
            session.run("DEALLOCATE q").await;
        }
    }
}

/// The first statement of a session is planned before the library is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_made_before_the_library_was_loaded_is_not_kept() {
    let world = with_copies().await;
    let first = world.session().await;
    first.run("PREPARE q AS SELECT count(*) FROM incident").await;
    first.run("SET plan_cache_mode = force_generic_plan").await;
    assert_eq!(first.value::<i64>("EXECUTE q").await, 50);
    assert_eq!(first.value::<i64>("EXECUTE q").await, 50);
    let plan = first.explain("EXECUTE q").await;
    assert!(!plan.contains("Foreign Scan"), "{plan}");
    let first = world.session().await;
    assert_eq!(
        first.value::<i64>("SELECT count(*) FROM incident i JOIN person p ON p.sys_id = caller_id").await,
        {
            world
                .db
                .value::<i64>(
                    "SELECT count(*) FROM copy.incident i JOIN copy.person p ON p.sys_id = caller_id",
                )
                .await
        }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_scan_shows_the_plan_below_and_the_caches_age() {
    let world = with_copies().await;
    world.db.run("SET enable_seqscan = off").await;
    let query = "SELECT tableoid, number FROM incident WHERE number = 'INC0012345'";
    for form in ["TEXT", "JSON", "YAML", "XML"] {
        let rows =
            world.db.rows(&format!("EXPLAIN (ANALYZE, VERBOSE, BUFFERS, FORMAT {form}) {query}")).await;
        let plan: String = match form {
            "JSON" => rows[0].get::<_, serde_json::Value>(0).to_string(),
            "XML" => continue, // its type needs a client that knows it
            _ => rows.iter().map(|row| row.get::<_, String>(0) + "\n").collect(),
        };
        assert!(plan.contains("incident_number_idx"), "{plan}");
        assert!(plan.contains("Cache Age"), "{plan}");
    }
    // The inner plan is a child like any other; what is said of the whole query is said once.
    world.db.run("SET compute_query_id = on").await;
    let explain = |form: &str| format!("EXPLAIN (ANALYZE, VERBOSE, SETTINGS, FORMAT {form}) {query}");
    let json = world.db.value::<serde_json::Value>(&explain("JSON")).await;
    let child = &json[0]["Plan"]["Plans"][0];
    assert_eq!(child["Index Name"], "incident_number_idx", "{json}");
    assert_eq!(
        (&child["Parent Relationship"], &child["Actual Rows"]),
        (&"Outer".into(), &json[0]["Plan"]["Actual Rows"])
    );
    for (form, opened, closed) in [
        ("TEXT", "  ->  Index Only Scan", ""),
        (
            "YAML",
            "\n    Plans: \n      - Parent Relationship: \"Outer\"\n        Node Type: \"Index Only Scan\"",
            "",
        ),
        (
            "XML",
            "<Plans>\n        <Plan>\n          <Parent-Relationship>Outer</Parent-Relationship>\n          <Node-Type>Index Only Scan",
            "\n        </Plan>\n      </Plans>\n",
        ),
    ] {
        let messages = world.db.client().simple_query(&explain(form)).await.expect("a plan");
        let lines = messages.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let plan = lines.collect::<Vec<_>>().join("\n");
        assert!(plan.contains(opened) && plan.contains(closed), "{plan}");
        assert_eq!(
            plan.matches("Query Identifier").count() + plan.matches("Query-Identifier>").count() / 2,
            1,
            "{plan}"
        );
        assert_eq!(plan.matches("enable_seqscan").count(), if form == "XML" { 2 } else { 1 }, "{plan}");
    }
    let estimate = "EXPLAIN (FORMAT JSON) SELECT number FROM {} WHERE priority = 3 AND tableoid IS NOT NULL";
    let rows = |table: &str| {
        let query = estimate.replace("{}", table);
        let db = &world.db;
        async move { db.value::<serde_json::Value>(&query).await[0]["Plan"]["Plan Rows"].clone() }
    };
    assert_eq!(rows("public.incident").await, rows("copy.incident").await);
}

/// Other extensions' hooks are called, whoever is loaded first.
#[tokio::test(flavor = "multi_thread")]
async fn other_extensions_see_every_query() {
    for libraries in [
        "pg_stat_statements, auto_explain, servicenow_fdw",
        "servicenow_fdw, auto_explain, pg_stat_statements",
    ] {
        let settings = format!("shared_preload_libraries = '{libraries}'\nauto_explain.log_min_duration = 0");
        let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start(&settings)));
        let world = World::on(cluster, servicenow_sim::Dataset::Small).await;
        world.set_up("").await;
        world.import(&["incident"]).await;
        world.db.run("CREATE EXTENSION pg_stat_statements; SELECT pg_stat_statements_reset()").await;
        for n in 1..=3 {
            world.db.run(&format!("SELECT count(*) FROM incident WHERE impact_value = {n}")).await;
        }
        world.db.run("UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'").await;
        let calls =
            "SELECT calls FROM pg_stat_statements WHERE query LIKE 'SELECT count(*) FROM incident WHERE%'";
        assert_eq!(world.db.value::<i64>(calls).await, 3);
        let calls = "SELECT rows FROM pg_stat_statements WHERE query LIKE 'UPDATE incident%'";
        assert_eq!(world.db.value::<i64>(calls).await, 1);
        assert!(world.cluster.log().contains("Query Text: SELECT count(*) FROM incident"));
        let scanned = world.db.value::<i64>("SELECT count(*) FROM incident WHERE tableoid > 0").await;
        assert_eq!(scanned, world.db.value::<i64>("SELECT count(*) FROM incident").await);
        assert!(world.cluster.log().contains("Cache Age"), "auto_explain prints foreign scans too");
    }
}

/// Two servers, the same tables: each its own cache.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_two_servers_meet_in_a_query() {
    let world = World::new().await;
    let other = servicenow_sim::Simulator::builder().seed(7).start().await.expect("a simulator");
    other.edit().delete_where("incident", "active=true").expect("a query");
    world
        .db
        .run(&format!(
            "CREATE SERVER other FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url '{}', poll_interval '200ms');
             CREATE USER MAPPING FOR PUBLIC SERVER other OPTIONS (auth 'basic', username 'admin', password 'admin');
             CREATE FOREIGN TABLE here (sys_id text, number text) SERVER acme OPTIONS (\"table\" 'incident');
             CREATE FOREIGN TABLE there (sys_id text, number text) SERVER other OPTIONS (\"table\" 'incident')",
            other.url()
        ))
        .await;
    world.sync("here").await;
    world.sync("there").await;
    let only_here = "SELECT count(*) FROM here LEFT JOIN there USING (number) WHERE there.sys_id IS NULL";
    assert!(world.db.value::<i64>(only_here).await > 0);
    let there = other.truth("incident", "admin").expect("a table").len() as i64;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM there").await, there);
}

/// What a dump has of it fills itself again.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_leaves_the_caches_out_and_a_restored_database_fills_itself() {
    let world = World::new().await;
    world.import(&["incident", "problem"]).await;
    let dump = world.cluster.program("pg_dump", &world.database).output().expect("pg_dump");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let text = String::from_utf8(dump.stdout).expect("UTF-8");
    assert!(text.contains("CREATE FOREIGN TABLE public.incident"), "the foreign table is there");
    assert!(!text.contains("servicenow_cache"), "its cache is not");
    let restored = format!("{}_restored", world.database);
    connect(world.cluster, "postgres").await.run(&format!("CREATE DATABASE {restored}")).await;
    let file = std::env::temp_dir().join(format!("{restored}-{}.sql", std::process::id()));
    std::fs::write(&file, text).expect("a temporary file");
    let psql = world
        .cluster
        .program("psql", &restored)
        .args(["-v", "ON_ERROR_STOP=1", "-q", "-f"])
        .arg(&file)
        .output();
    let psql = psql.expect("psql");
    let _gone = std::fs::remove_file(&file);
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
    let db = connect(world.cluster, &restored).await;
    db.run("SELECT servicenow.wait_for_sync('incident', '60 s')").await;
    assert_eq!(
        db.value::<i64>("SELECT count(*) FROM incident").await,
        world.db.value::<i64>("SELECT count(*) FROM incident").await
    );
}

/// A foreign scan may be run by any process of a parallel query.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_a_parallel_query_scans_a_foreign_table() {
    let world = with_copies().await;
    let force = "SELECT set_config(name, 'on', false) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query')";
    let eager =
        "SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0";
    world.db.run(force).await;
    for query in [
        "SELECT count(*), count(ctid), max(xmin::text) IS NOT NULL FROM incident WHERE tableoid > 0 AND state = 2",
        "SELECT p.name, i.number FROM person p JOIN incident i ON i.caller_id = p.sys_id WHERE i.tableoid > 0",
        "SELECT number FROM incident WHERE tableoid > 0 AND state = (SELECT min(state) + 1 FROM incident)",
    ] {
        let plan = world.db.explain(query).await;
        // What has an InitPlan is not forced.
        assert!(
            query.contains("min(state)") || plan.contains("Gather") && plan.contains("Foreign Scan"),
            "{query}\n{plan}"
        );
        on_both(&world, &[force], query).await;
        on_both(&world, &[eager, "SET enable_hashjoin = off"], query).await;
        on_both(
            &world,
            &[force, "SET enable_hashjoin = off", "SET plan_cache_mode = force_generic_plan"],
            query,
        )
        .await;
    }
    on_both(
        &world,
        &[
            force,
            "CREATE FUNCTION numbers(bigint) RETURNS SETOF text LANGUAGE plpgsql AS
                 'BEGIN RETURN QUERY SELECT number FROM incident WHERE tableoid > 0 AND state = $1; END'",
        ],
        "SELECT * FROM numbers(2)",
    )
    .await;
}
