//! Generated columns of foreign tables: computed by whoever reads or writes, never by the worker.

use bytes::Bytes;
use futures_util::SinkExt;
use world::World;

use crate::{KNOWN, incidents, known};

/// The incidents with columns computed from those of the instance.
const COLUMNS: &str = "ALTER FOREIGN TABLE incident
     ADD loud text GENERATED ALWAYS AS (upper(short_description) || '!') STORED,
     ADD weight bigint GENERATED ALWAYS AS (impact_value * 10 + urgency_value) STORED";

async fn with_columns() -> World {
    let world = incidents().await;
    world.db.run(COLUMNS).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_column_reads_as_on_a_local_table() {
    let world = with_columns().await;
    world.db.run("CREATE TABLE local (LIKE incident INCLUDING GENERATED)").await;
    let columns: String = world
        .db
        .value(
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
             WHERE attrelid = 'incident'::regclass AND attnum > 0 AND attgenerated = ''",
        )
        .await;
    world
        .db
        .run(&format!("INSERT INTO local ({columns}) SELECT {columns} FROM incident; ANALYZE incident"))
        .await;
    let session = world.session().await; // whose first statement loads the library
    for query in [
        "SELECT sys_id, loud, weight FROM TABLE ORDER BY sys_id",
        "SELECT t.*::text FROM TABLE t ORDER BY sys_id",
        "SELECT loud FROM TABLE WHERE weight = 12 ORDER BY loud COLLATE \"C\", sys_id",
        "SELECT weight, count(*) FROM TABLE GROUP BY weight ORDER BY weight",
        "SELECT a.loud, b.weight FROM TABLE a LEFT JOIN TABLE b ON b.weight = a.weight + 1 ORDER BY a.sys_id, b.sys_id",
        "SELECT loud, xmin::text > '' FROM TABLE WHERE weight > 11 ORDER BY sys_id",
        "SELECT (SELECT max(loud) FROM TABLE i WHERE i.weight = o.weight) FROM TABLE o ORDER BY sys_id",
        "SELECT loud FROM TABLE WHERE loud LIKE '%!' ORDER BY sys_id FOR UPDATE",
        "SELECT t IS NOT NULL, row_to_json(t) ->> 'loud' FROM TABLE t ORDER BY sys_id",
    ] {
        for session in [&session, &world.db] {
            let all = |table: &str| format!("SELECT q::text FROM ({}) q", query.replace("TABLE", table));
            let texts =
                |rows: Vec<tokio_postgres::Row>| -> Vec<String> { rows.iter().map(|r| r.get(0)).collect() };
            let (here, local) = (session.rows(&all("incident")).await, session.rows(&all("local")).await);
            assert!(!local.is_empty(), "{query}");
            assert_eq!(texts(here), texts(local), "{query}");
        }
    }
    assert_eq!(
        world
            .db
            .value::<f32>(
                "SELECT null_frac FROM pg_stats WHERE tablename = 'incident' AND attname = 'weight'"
            )
            .await,
        0.0
    );
    let cached = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'servicenow_cache.incident'::regclass AND attname IN ('loud', 'weight')";
    assert_eq!(world.db.value::<i64>(cached).await, 0);
    world.sync("incident").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_follow_every_write() {
    let world = with_columns().await;
    let id = known(&world);
    let loud = |row: &tokio_postgres::Row| (row.get::<_, Option<String>>(0), row.get::<_, Option<i64>>(1));
    // The instance's defaults are what they are computed from, not what was sent.
    let rows = world
        .db
        .rows("INSERT INTO incident (short_description, urgency_value) VALUES ('a', 1), ('b', 2) RETURNING loud, weight")
        .await;
    let got: Vec<_> = rows.iter().map(loud).collect();
    assert_eq!(got, [(Some("A!".to_owned()), Some(31)), (Some("B!".to_owned()), Some(32))]);
    let update =
        format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN} AND weight = 12 RETURNING loud, weight");
    let rows = world.db.rows(&update).await;
    assert_eq!(loud(&rows[0]).1, Some(32));
    // Several at once, driven by the column, with a trigger that looks at old and new.
    world
        .db
        .run(
            "CREATE TABLE seen (was bigint, is_now bigint);
             CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
               'BEGIN INSERT INTO seen VALUES (OLD.weight, NEW.weight); RETURN NULL; END';
             CREATE TRIGGER see AFTER UPDATE ON incident FOR EACH ROW EXECUTE FUNCTION see();
             UPDATE incident SET urgency_value = 3 WHERE loud IN ('A!', 'B!')",
        )
        .await;
    let seen: Vec<(i64, i64)> =
        world.db.rows("SELECT * FROM seen ORDER BY was").await.iter().map(|r| (r.get(0), r.get(1))).collect();
    assert_eq!(seen, [(31, 33), (32, 33)]);
    world.db.run("DROP TRIGGER see ON incident").await;
    let rows = world.db.rows("DELETE FROM incident WHERE loud = 'B!' RETURNING loud, weight").await;
    assert_eq!(loud(&rows[0]), (Some("B!".to_owned()), Some(33)));
    let sink = world
        .db
        .client()
        .copy_in::<_, Bytes>("COPY incident (short_description, impact_value, urgency_value) FROM STDIN")
        .await
        .expect("COPY");
    let mut sink = std::pin::pin!(sink);
    sink.send(Bytes::from_static(b"copied\t1\t1\n")).await.expect("a row");
    sink.finish().await.expect("it fits");
    assert_eq!(world.db.value::<i64>("SELECT weight FROM incident WHERE loud = 'COPIED!'").await, 11);
    for push in ["commit", "dry_run"] {
        world.db.run(&format!("BEGIN; SET LOCAL servicenow_fdw.push = '{push}'")).await;
        let weight = format!("UPDATE incident SET impact_value = 2 WHERE sys_id = '{id}' RETURNING weight");
        assert_eq!(world.db.value::<i64>(&weight).await, 22, "{push}");
        world.db.run("ROLLBACK").await;
    }
    let error = world.db.error("UPDATE incident SET weight = 1").await;
    assert_eq!(error.code().code(), "428C9", "{}", error.message());
    assert!(world.writes().iter().all(|w| w.body.as_ref().is_none_or(|b| b.get("weight").is_none())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_another_session_changes_meanwhile_is_computed_anew() {
    let world = with_columns().await;
    let (one, two) = (world.session().await, world.session().await);
    one.run(&format!("BEGIN; UPDATE incident SET impact_value = 3 WHERE {KNOWN}")).await;
    let wait = async {
        world.until("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()").await;
        one.run("COMMIT").await;
    };
    // Both see the newest version: the recheck of the condition, and what is given back.
    let update =
        format!("UPDATE incident SET urgency_value = 1 WHERE {KNOWN} AND weight > 10 RETURNING weight");
    let (weight, ()) = tokio::join!(two.value::<i64>(&update), wait);
    assert_eq!(weight, 31);
    one.run(&format!("BEGIN; UPDATE incident SET impact_value = 2 WHERE {KNOWN}")).await;
    let wait = async {
        world.until("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()").await;
        one.run("COMMIT").await;
    };
    let locked = format!("SELECT weight, tableoid FROM incident WHERE {KNOWN} AND weight > 10 FOR UPDATE");
    let (rows, ()) = tokio::join!(two.rows(&locked), wait);
    assert_eq!(rows[0].get::<_, i64>(0), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_run_as_whoever_reads_and_not_as_the_worker() {
    let world = incidents().await;
    let reader = world.session_as("reader").await;
    let role = world.role("reader");
    world
        .db
        .run(&format!(
            "CREATE TABLE callers (name text);
             GRANT INSERT ON callers TO PUBLIC;
             CREATE FUNCTION note() RETURNS void LANGUAGE sql AS 'INSERT INTO callers VALUES (current_user)';
             CREATE FUNCTION who(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
               'BEGIN PERFORM note(); RETURN current_user; END';
             ALTER FOREIGN TABLE incident ADD reader text GENERATED ALWAYS AS (who(number)) STORED;
             GRANT SELECT (sys_id, reader) ON incident TO {role}"
        ))
        .await;
    let read = format!("SELECT reader FROM incident WHERE sys_id = '{}'", known(&world));
    assert_eq!(reader.value::<String>(&read).await, role);
    let error = reader.error("SELECT number FROM incident").await;
    assert_eq!(error.code().code(), "42501");
    world.sim.edit().update("incident", &known(&world), &[("short_description", "x")]).expect("a change");
    world.sync("incident").await;
    world.db.run("SELECT servicenow.resync('incident')").await;
    world.sync("incident").await;
    let callers: Vec<String> =
        world.db.rows("SELECT DISTINCT name FROM callers").await.iter().map(|row| row.get(0)).collect();
    assert_eq!(callers, [role]);
    world.db.run("REVOKE EXECUTE ON FUNCTION who(text) FROM PUBLIC").await;
    let error = reader.error(&read).await;
    assert_eq!(error.message(), "permission denied for function who");
}

#[tokio::test(flavor = "multi_thread")]
async fn ddl_on_generated_columns_is_followed() {
    let world = with_columns().await;
    for (ddl, message) in [
        (
            "ALTER FOREIGN TABLE incident ALTER loud OPTIONS (ADD index 'true')",
            "generated column \"loud\" of foreign table \"incident\" cannot have options",
        ),
        (
            "ALTER FOREIGN TABLE incident ADD here oid GENERATED ALWAYS AS (tableoid) STORED",
            "generated column \"here\" of foreign table \"incident\" cannot read tableoid",
        ),
    ] {
        let error = world.db.error(ddl).await;
        assert_eq!((error.code().code(), error.message()), ("0A000", message));
    }
    world
        .db
        .run(
            "PREPARE weights AS SELECT max(weight) FROM incident;
             ALTER FOREIGN TABLE incident RENAME impact_value TO how_bad;
             ALTER FOREIGN TABLE incident DROP number;
             ALTER FOREIGN TABLE incident RENAME loud TO louder",
        )
        .await;
    let rows = world.db.rows("EXECUTE weights").await;
    assert_eq!(
        rows[0].get::<_, i64>(0),
        world.db.value::<i64>("SELECT max(how_bad * 10 + urgency_value) FROM incident").await
    );
    let weigh = format!(
        "UPDATE incident SET how_bad = 1 WHERE sys_id = '{}' RETURNING weight, louder",
        known(&world)
    );
    let rows = world.db.rows(&weigh).await;
    assert_eq!((rows[0].get::<_, i64>(0), rows[0].get::<_, String>(1).ends_with('!')), (12, true));
    // A field whose name is a generated column's gets another one.
    world
        .db
        .run(
            "ALTER FOREIGN TABLE incident DROP description;
             ALTER FOREIGN TABLE incident ADD description text GENERATED ALWAYS AS ('about ' || short_description) STORED;
             SELECT servicenow.refresh_schema('incident')",
        )
        .await;
    let field = "SELECT option_value FROM information_schema.column_options
                 WHERE table_name = 'incident' AND option_name = 'field' AND option_value = 'description'";
    assert_eq!(world.db.rows(field).await.len(), 1);
    world.sync("incident").await;
    // A partition, whose rows come from a foreign scan.
    world
        .db
        .run(
            "CREATE TABLE everything (LIKE incident INCLUDING GENERATED) PARTITION BY LIST (sys_domain);
             ALTER TABLE everything ATTACH PARTITION incident DEFAULT",
        )
        .await;
    let both =
        "SELECT (SELECT sum(weight) FROM everything)::bigint = (SELECT sum(weight) FROM incident)::bigint";
    assert!(world.db.value::<bool>(both).await);
    let rows = world
        .db
        .rows("INSERT INTO everything (short_description, how_bad, urgency_value) VALUES ('in', 2, 1) RETURNING weight, louder")
        .await;
    assert_eq!((rows[0].get::<_, i64>(0), rows[0].get::<_, &str>(1)), (21, "IN!"));
    // It becomes a column like others, of the field of its name.
    world
        .db
        .run(
            "ALTER TABLE everything DETACH PARTITION incident;
             ALTER FOREIGN TABLE incident ALTER weight DROP EXPRESSION, ALTER weight OPTIONS (ADD field 'severity')",
        )
        .await;
    world.sync("incident").await;
    let severities = "SELECT count(DISTINCT weight) FROM incident WHERE weight < 4";
    assert!(world.db.value::<i64>(severities).await > 0);
}
