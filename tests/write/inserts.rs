//! INSERT and COPY: what is sent of a row, and what the instance makes of the rest.

use bytes::Bytes;
use futures_util::SinkExt;

use crate::{incidents, known};

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_of_several_rows_makes_a_record_of_each() {
    let world = incidents().await;
    let rows = world
        .db
        .rows(
            "INSERT INTO incident (short_description, urgency_value) VALUES ('one', 1), ('two', 2), ('three', 3)
               RETURNING sys_id, short_description, urgency",
        )
        .await;
    let got: Vec<(&str, &str)> = rows.iter().map(|row| (row.get(1), row.get(2))).collect();
    assert_eq!(got, [("one", "1 - High"), ("two", "2 - Medium"), ("three", "3 - Low")]);
    for row in &rows {
        let there = world.remote("incident", row.get(0), "short_description");
        assert_eq!(there.as_deref(), Some(row.get::<_, &str>(1)));
    }
    let here = "SELECT count(*) FROM incident WHERE short_description IN ('one', 'two', 'three')";
    assert_eq!(world.db.value::<i64>(here).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_can_take_its_rows_from_a_query() {
    let world = incidents().await;
    world.db.run("CREATE TABLE plan (what text, how_bad text)").await;
    world.db.run("INSERT INTO plan VALUES ('a', '1 - High'), ('b', '3 - Low'), ('c', NULL)").await;
    let count = world
        .db
        .client()
        .execute("INSERT INTO incident (short_description, impact) SELECT what, how_bad FROM plan", &[])
        .await
        .expect("three records");
    assert_eq!(count, 3);
    let impact = world.find("incident", "short_description=a");
    assert_eq!(world.remote("incident", &impact, "impact").as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_of_nothing_but_defaults_makes_a_record_of_the_instances_defaults() {
    let world = incidents().await;
    let rows =
        world.db.rows("INSERT INTO incident DEFAULT VALUES RETURNING sys_id, number, state, category").await;
    assert!(rows[0].get::<_, &str>(1).starts_with("INC"));
    assert_eq!((rows[0].get::<_, &str>(2), rows[0].get::<_, &str>(3)), ("New", "Inquiry / Help"));
    assert!(world.sim.record("incident", rows[0].get(0)).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn null_in_an_insert_leaves_the_field_to_the_instance() {
    let world = incidents().await;
    let rows = world
        .db
        .rows("INSERT INTO incident (short_description, impact_value, category) VALUES ('x', NULL, NULL) RETURNING impact, category")
        .await;
    assert_eq!((rows[0].get::<_, &str>(0), rows[0].get::<_, &str>(1)), ("3 - Low", "Inquiry / Help"));
    let body = world.writes()[0].body.clone().expect("a body");
    assert!(body.get("impact").is_none() && body.get("category").is_none(), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_of_the_foreign_table_is_sent() {
    let world = incidents().await;
    world
        .db
        .run("ALTER FOREIGN TABLE incident ALTER short_description SET DEFAULT 'made in ' || 'Postgres'")
        .await;
    let id: String = world.db.value("INSERT INTO incident (impact_value) VALUES (2) RETURNING sys_id").await;
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("made in Postgres"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sys_id_given_to_an_insert_is_the_records() {
    let world = incidents().await;
    let id = "00112233445566778899aabbccddeeff";
    world.db.run(&format!("INSERT INTO incident (sys_id, short_description) VALUES ('{id}', 'mine')")).await;
    assert_eq!(world.remote("incident", id, "short_description").as_deref(), Some("mine"));
    let here = format!("SELECT short_description FROM incident WHERE sys_id = '{id}'");
    assert_eq!(world.db.value::<String>(&here).await, "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_conflict_do_nothing_passes_over_records_that_are_there() {
    let world = incidents().await;
    let id = known(&world);
    let before = world.sim.record("incident", &id);
    let rows = world
        .db
        .rows(&format!(
            "INSERT INTO incident (sys_id, short_description) VALUES ('{id}', 'again'), ('{}', 'new')
               ON CONFLICT DO NOTHING RETURNING short_description",
            "0".repeat(32)
        ))
        .await;
    assert_eq!(rows.iter().map(|row| row.get::<_, &str>(0)).collect::<Vec<_>>(), ["new"]);
    assert_eq!(world.sim.record("incident", &id), before);
    let twice = "INSERT INTO incident (sys_id, short_description)
                 SELECT 'abc0', n::text FROM generate_series(1, 3) n ON CONFLICT DO NOTHING RETURNING short_description";
    let rows = world.db.rows(twice).await;
    assert_eq!(rows.iter().map(|row| row.get::<_, &str>(0)).collect::<Vec<_>>(), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_conflict_do_update_gets_postgres_own_refusal() {
    let world = incidents().await;
    let error = world
        .db
        .error(
            "INSERT INTO incident (sys_id, short_description) VALUES ('x', 'y')
               ON CONFLICT (sys_id) DO UPDATE SET short_description = excluded.short_description",
        )
        .await;
    assert_eq!(error.code().code(), "42P10", "{}", error.message());
    assert!(world.writes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_from_makes_a_record_of_each_line() {
    let world = incidents().await;
    let sink = world.db.client().copy_in("COPY incident (short_description, impact) FROM STDIN").await;
    let mut sink = std::pin::pin!(sink.expect("COPY begins"));
    sink.send(Bytes::from_static(b"copied 1\t1 - High\ncopied 2\t\\N\n")).await.expect("the data are taken");
    assert_eq!(sink.finish().await.expect("COPY ends"), 2);
    let id = world.find("incident", "short_description=copied 1");
    assert_eq!(world.remote("incident", &id, "impact").as_deref(), Some("1"));
    let here = "SELECT count(*) FROM incident WHERE short_description LIKE 'copied _' AND number LIKE 'INC%'";
    assert_eq!(world.db.value::<i64>(here).await, 2);
}
