//! The same queries on foreign tables and on hand-made local copies with the same indexes, in turn.

use std::time::Instant;

use crate::{Bench, median};

/// Times each query is run on each side.
const ROUNDS: usize = 25;

/// Name of a shape and its query, `{i}` and `{u}` being incidents and users. The first is what an application
/// does: the statement is prepared, and each execution looks up one record.
const SHAPES: [(&str, &str); 5] = [
    (
        "1,000 prepared lookups",
        "DO $$ DECLARE r record; k text; BEGIN
            FOR k IN SELECT sys_id FROM {i} ORDER BY md5(sys_id) LIMIT 1000 LOOP
                SELECT * INTO r FROM {i} WHERE sys_id = k;
            END LOOP; END $$",
    ),
    ("count(*)", "SELECT count(*) FROM {i}"),
    ("group by state", "SELECT state, count(*), max(opened_at) FROM {i} GROUP BY state"),
    (
        "join with users",
        "SELECT u.name, count(*) FROM {i} i JOIN {u} u ON u.sys_id = i.caller_id_value GROUP BY u.name ORDER BY 2 DESC LIMIT 10",
    ),
    (
        "window",
        "SELECT number, rank() OVER (PARTITION BY assignment_group ORDER BY opened_at DESC) FROM {i} WHERE priority_value < 3",
    ),
];

/// Prints the section.
pub async fn measure(bench: &Bench) {
    let db = &bench.db;
    db.run("IMPORT FOREIGN SCHEMA servicenow LIMIT TO (\"user\") FROM SERVER acme INTO public").await;
    db.run("SELECT servicenow.wait_for_sync('incident'), servicenow.wait_for_sync('\"user\"')").await;
    for (copy, table) in [("incident_copy", "incident"), ("user_copy", "\"user\"")] {
        db.run(&format!("CREATE TABLE {copy} (LIKE servicenow_cache.{table} INCLUDING ALL)")).await;
        db.run(&format!("INSERT INTO {copy} SELECT * FROM servicenow_cache.{table}")).await;
    }
    db.run("SELECT servicenow.stop_worker()").await;
    db.run("VACUUM ANALYZE").await;
    println!("reads on foreign tables against local copies ({ROUNDS} rounds, medians)");
    for (name, shape) in SHAPES {
        let foreign = shape.replace("{i}", "incident").replace("{u}", "\"user\"");
        let local = shape.replace("{i}", "incident_copy").replace("{u}", "user_copy");
        let (mut foreign_ms, mut local_ms) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS * 2 {
            // Who goes first alternates, so that neither always finds the caches warm.
            let (sql, times) = match (round % 2 == 0) == (round % 4 < 2) {
                true => (&foreign, &mut foreign_ms),
                false => (&local, &mut local_ms),
            };
            let began = Instant::now();
            db.client().simple_query(sql).await.expect("a valid query");
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        let (foreign_ms, local_ms) = (median(foreign_ms), median(local_ms));
        println!(
            "  {name:<24} {foreign_ms:>9.2} ms   {local_ms:>9.2} ms   ratio {:.3}",
            foreign_ms / local_ms
        );
    }
    planning(bench).await;
}

/// What expansion adds to the planning of one lookup.
async fn planning(bench: &Bench) {
    let (mut foreign, mut local) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 4 {
        for (table, times) in [("incident", &mut foreign), ("incident_copy", &mut local)] {
            let explain = format!("EXPLAIN (SUMMARY, FORMAT JSON) SELECT * FROM {table} WHERE sys_id = 'x'");
            let plan: String = bench
                .db
                .client()
                .simple_query(&explain)
                .await
                .expect("a valid query")
                .iter()
                .filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
                    _ => None,
                })
                .collect();
            let time =
                plan.split("\"Planning Time\":").nth(1).and_then(|rest| rest.split([',', '\n']).next());
            times.extend(time.and_then(|time| time.trim().parse::<f64>().ok()));
        }
    }
    let (foreign, local) = (median(foreign), median(local));
    println!("  planning one lookup      {foreign:>9.3} ms   {local:>9.3} ms   {:+.3} ms", foreign - local);
}
