//! The same queries on foreign tables and on hand-made local copies with the same indexes, in turn; and what planning
//! costs more.

use std::time::Instant;

use serde_json::Value as Json;
use servicenow_sim::Dataset;
use world::cluster::Cluster;

use crate::{Bench, figure, median};

/// Times each query is run on each side.
const ROUNDS: usize = 15;
/// Rows of the large table: the real incidents, over and over with other identities.
const ROWS: i64 = 1_000_000;
/// Columns that have an index besides the key.
const INDEXED: [&str; 4] = ["number", "opened_at", "assigned_to", "assignment_group"];

/// Name of a shape and its query, the same for both sides. Two are what an application does: the statement is
/// prepared, and each execution looks up one record.
const SHAPES: [(&str, &str); 12] = [
    ("point by number", "SELECT * FROM incident WHERE number = 'INC0000123-7'"),
    (
        "range on opened_at",
        "SELECT count(DISTINCT caller_id) FROM incident
         WHERE opened_at BETWEEN '2016-04-10Z' AND '2016-04-11Z'",
    ),
    ("LIKE", "SELECT count(*) FROM incident WHERE number LIKE '%99-3%'"),
    ("group by state", "SELECT state, count(*), max(opened_at) FROM incident GROUP BY state"),
    (
        "join of three tables",
        "SELECT g.name, u.name, count(*) FROM incident i JOIN person u ON u.sys_id = i.caller_id
         LEFT JOIN team g ON g.sys_id = i.assignment_group WHERE i.priority = 2 GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 10",
    ),
    ("order and limit", "SELECT number, short_description FROM incident ORDER BY opened_at DESC LIMIT 100"),
    (
        "window",
        "SELECT number, rank() OVER (PARTITION BY assignment_group ORDER BY opened_at DESC) FROM incident WHERE priority = 1",
    ),
    ("count(*)", "SELECT count(*) FROM incident"),
    (
        "CTE",
        "WITH busy AS MATERIALIZED (SELECT assigned_to, count(*) AS n FROM incident WHERE active GROUP BY 1)
         SELECT max(n) FROM busy JOIN person u ON u.sys_id = busy.assigned_to",
    ),
    (
        "lateral top-n",
        "SELECT u.name, l.number FROM (SELECT * FROM person ORDER BY sys_id LIMIT 20) u,
         LATERAL (SELECT number FROM incident i WHERE i.assigned_to = u.sys_id ORDER BY sys_updated_on DESC LIMIT 3) l",
    ),
    (
        "10,000 prepared lookups",
        "DO $$ DECLARE r record; k text; BEGIN
            FOR k IN SELECT sys_id FROM incident ORDER BY sys_id LIMIT 10000 LOOP
                SELECT * INTO r FROM incident WHERE sys_id = k;
            END LOOP; END $$",
    ),
    ("parallel scan", "SELECT sum(reassignment_count) FROM incident WHERE short_description LIKE '%a%'"),
];

/// Prints the section.
pub async fn measure(cluster: &Cluster) {
    let bench = &Bench::new(cluster, "reads", Dataset::EventLog).await;
    let db = &bench.db;
    let columns = prepare(bench).await;
    println!(
        "reads of {ROWS} rows of {columns} columns on foreign tables against local copies ({ROUNDS} rounds, medians)"
    );
    let mut ratios = Vec::new();
    for (name, query) in SHAPES {
        let plans = [plan(bench, "big", query).await, plan(bench, "local", query).await];
        assert!(plans[0] == plans[1], "the plans of \"{name}\" differ:\n{:#}\n{:#}", plans[0], plans[1]);
        let (mut foreign, mut local) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS * 2 {
            // Who goes first alternates, so that neither always finds the caches warm.
            let (schema, times) = match (round % 2 == 0) == (round % 4 < 2) {
                true => ("big", &mut foreign),
                false => ("local", &mut local),
            };
            db.run(&format!("SET search_path = {schema}")).await;
            let began = Instant::now();
            db.client().simple_query(query).await.expect("a valid query");
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        let (foreign, local) = (median(foreign), median(local));
        ratios.push(foreign / local);
        println!("  {name:<24} {foreign:>9.2} ms   {local:>9.2} ms   ratio {:.3}", foreign / local);
    }
    figure::at_most("query of a foreign table / of a local one, median", median(ratios), 1.02);
    planning(bench).await;
}

/// Makes schemas `big`, of foreign tables, and `local`, of their copies; gives back the incidents' columns.
async fn prepare(bench: &Bench<'_>) -> i64 {
    let db = &bench.db;
    db.run("IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO public").await;
    let stored: String = db
        .value(
            "SELECT string_agg(format('%I %s%s', field, type, options), ', ') FROM (
                 SELECT DISTINCT ON (field) field, type, format(' OPTIONS (index %L)', field = ANY ($1)) AS options FROM (
                     SELECT coalesce((SELECT option_value FROM pg_options_to_table(attfdwoptions) WHERE option_name = 'field'), attname) AS field,
                            format_type(atttypid, atttypmod) AS type, attfdwoptions::text LIKE '%show=label%' AS is_label
                     FROM pg_attribute WHERE attrelid = 'public.incident'::regclass AND attnum > 0 AND NOT attisdropped) c
                 ORDER BY field, is_label NULLS FIRST) f"
                .replace("$1", &format!("'{{{}}}'", INDEXED.join(",")))
                .as_str(),
        )
        .await;
    db.run(&format!(
        "DROP FOREIGN TABLE public.incident; CREATE SCHEMA big; CREATE SCHEMA local;
         CREATE FOREIGN TABLE big.incident ({stored}) SERVER acme;
         CREATE FOREIGN TABLE big.person (sys_id text, name text) SERVER acme OPTIONS (\"table\" 'sys_user');
         CREATE FOREIGN TABLE big.team (sys_id text, name text) SERVER acme OPTIONS (\"table\" 'sys_user_group')"
    ))
    .await;
    for table in ["incident", "person", "team"] {
        db.run(&format!("SELECT servicenow.wait_for_sync('big.{table}')")).await;
    }
    db.run("SELECT servicenow.stop_worker()").await;
    multiply(bench).await;
    for table in ["incident", "person", "team"] {
        let cache = cache(bench, table).await;
        db.run(&format!("CREATE TABLE local.{table} (LIKE big.{table}, PRIMARY KEY (sys_id))")).await;
        for column in INDEXED.iter().filter(|_| table == "incident") {
            db.run(&format!("CREATE INDEX ON local.incident ({column})")).await;
        }
        db.run(&format!("INSERT INTO local.{table} SELECT * FROM big.{table}")).await;
        db.run(&format!("VACUUM (ANALYZE) {cache}, local.{table}")).await;
        share_statistics(bench, &cache, &format!("local.{table}")).await;
    }
    db.run("SET synchronize_seqscans = off; SET servicenow_fdw.incomplete_reads = allow; CHECKPOINT").await;
    db.value("SELECT count(*) FROM pg_attribute WHERE attrelid = 'big.incident'::regclass AND attnum > 0")
        .await
}

async fn cache(bench: &Bench<'_>, table: &str) -> String {
    let of = format!(
        "SELECT cache_table::text FROM servicenow.sync_status WHERE foreign_table = 'big.{table}'::regclass"
    );
    bench.db.value(&of).await
}

/// Gives one table the statistics of another with the same columns: two samples of the same rows differ enough for
/// another plan.
async fn share_statistics(bench: &Bench<'_>, from: &str, to: &str) {
    let db = &bench.db;
    let columns: String = db
        .value(
            "SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute
             WHERE attrelid = 'pg_statistic'::regclass AND attnum > 1",
        )
        .await;
    db.run(&format!(
        "DELETE FROM pg_statistic WHERE starelid = '{to}'::regclass;
         INSERT INTO pg_statistic (starelid, {columns}) SELECT '{to}'::regclass, {columns} FROM pg_statistic
             WHERE starelid = '{from}'::regclass;
         UPDATE pg_class SET reltuples = f.reltuples, relpages = f.relpages, relallvisible = f.relallvisible
             FROM pg_class f WHERE pg_class.oid = '{to}'::regclass AND f.oid = '{from}'::regclass"
    ))
    .await;
}

/// Fills the incidents' cache up with more of the same, later and under other identities.
async fn multiply(bench: &Bench<'_>) {
    let db = &bench.db;
    let cache = cache(bench, "incident").await;
    let list: String = db
        .value(&format!(
            "SELECT string_agg(CASE attname WHEN 'sys_id' THEN 'md5(sys_id || n)' WHEN 'number' THEN 'number || ''-'' || n'
                                            WHEN 'opened_at' THEN 'opened_at + n * interval ''7 minutes''' ELSE quote_ident(attname) END,
                               ', ' ORDER BY attnum)
             FROM pg_attribute WHERE attrelid = '{cache}'::regclass AND attnum > 0 AND NOT attisdropped"
        ))
        .await;
    let rows: i64 = db.value(&format!("SELECT count(*) FROM {cache}")).await;
    let copies = ROWS / rows;
    db.run(&format!(
        "INSERT INTO {cache} SELECT {list} FROM {cache}, generate_series(1, {copies}) n ORDER BY n LIMIT {}",
        ROWS - rows
    ))
    .await;
}

/// A query's plan without what tells the two sides apart.
async fn plan(bench: &Bench<'_>, schema: &str, query: &str) -> Json {
    if query.starts_with("DO") {
        return Json::Null;
    }
    bench.db.run(&format!("SET search_path = {schema}")).await;
    let mut plan: Json = bench.db.value(&format!("EXPLAIN (COSTS OFF, FORMAT JSON) {query}")).await;
    strip(&mut plan);
    plan
}

fn strip(plan: &mut Json) {
    match plan {
        Json::Object(fields) => {
            fields.retain(|name, _| !matches!(name.as_str(), "Relation Name" | "Index Name"));
            fields.values_mut().for_each(strip);
        }
        Json::Array(items) => items.iter_mut().for_each(strip),
        // EXPLAIN names the table with a column if a view, or the like of one, stands in the query.
        Json::String(text) => *text = text.replace("incident.", ""),
        _ => {}
    }
}

/// What expansion adds to the planning of one lookup.
async fn planning(bench: &Bench<'_>) {
    let (mut foreign, mut local) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        for (schema, times) in [("big", &mut foreign), ("local", &mut local)] {
            let explain =
                format!("EXPLAIN (SUMMARY, FORMAT JSON) SELECT * FROM {schema}.incident WHERE sys_id = 'x'");
            let plan: Json = bench.db.value(&explain).await;
            times.push(plan[0]["Planning Time"].as_f64().expect("a time"));
        }
    }
    let (foreign, local) = (median(foreign), median(local));
    println!("  planning one lookup      {foreign:>9.3} ms   {local:>9.3} ms   {:+.3} ms", foreign - local);
}
