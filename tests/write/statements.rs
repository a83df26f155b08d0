//! Every form of a statement that writes.

use bytes::Bytes;
use futures_util::SinkExt;
use servicenow_sim::Operation;
use servicenow_sim::{BusinessRule, Phase, RuleEffect};

use crate::{KNOWN, incidents, known, world_with};

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_go_on_working_with_generic_plans() {
    let world = incidents().await;
    let client = world.db.client();
    let insert = client
        .prepare("INSERT INTO incident (short_description, impact_value) VALUES ($1, $2) RETURNING sys_id")
        .await
        .expect("it can be prepared");
    let update = client
        .prepare("UPDATE incident SET short_description = $2 WHERE sys_id = $1 RETURNING short_description")
        .await
        .expect("it can be prepared");
    // Postgres may change from a custom to a generic plan at the sixth execution.
    for n in 0..8i64 {
        let row = client.query_one(&insert, &[&format!("text {n}"), &(n % 3 + 1)]).await.expect("an insert");
        let id: String = row.get(0);
        let row = client.query_one(&update, &[&id, &format!("new text {n}")]).await.expect("an update");
        assert_eq!(row.get::<_, String>(0), format!("new text {n}"));
        assert_eq!(world.remote("incident", &id, "short_description"), Some(format!("new text {n}")));
    }
    client
        .batch_execute("ALTER FOREIGN TABLE incident DROP COLUMN business_impact")
        .await
        .expect("it can be dropped");
    let id = known(&world);
    let row = client.query_one(&update, &[&id, &"after the change"]).await.expect("the plan is made anew");
    assert_eq!(row.get::<_, &str>(0), "after the change");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_many_rows_changes_them_all_on_both_sides() {
    let world = incidents().await;
    let before = world.sim.edit().find("incident", "state=1").expect("a query").len();
    assert!(before > 1);
    let rows = world
        .db
        .rows("UPDATE incident SET state = 'In Progress' WHERE state = 'New' RETURNING state_value, incident_state_value")
        .await;
    assert_eq!(rows.len(), before);
    assert!(rows.iter().all(|row| (row.get::<_, i64>(0), row.get::<_, i64>(1)) == (2, 2)));
    assert!(world.sim.edit().find("incident", "state=1").expect("a query").is_empty());
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident WHERE state = 'New'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_changes_nothing_changes_nothing() {
    let world = incidents().await;
    let count = world
        .db
        .client()
        .execute("UPDATE incident SET short_description = short_description, state = 'In Progress' WHERE number = 'INC0012345'", &[])
        .await
        .expect("it succeeds");
    assert_eq!(count, 1);
    assert!(world.writes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_finds_no_rows_makes_no_call() {
    let world = incidents().await;
    world.stop_worker().await;
    world.sim.clear_requests();
    world
        .db
        .run("UPDATE incident SET state = 'New' WHERE number = 'none'; DELETE FROM incident WHERE false")
        .await;
    assert!(world.sim.requests().is_empty());
}

/// As ORMs do that write every column of a row: what they read long ago must not undo what others did since.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_assigned_its_old_value_is_not_sent() {
    let world = incidents().await;
    world.stop_worker().await;
    let id = known(&world);
    world.sim.edit().update("incident", &id, &[("state", "3")]).expect("the record is there");
    let rows = world
        .db
        .rows(&format!(
            "UPDATE incident SET state_value = 2, impact_value = 2 WHERE {KNOWN} RETURNING state_value"
        ))
        .await;
    assert_eq!(rows[0].get::<_, i64>(0), 3, "the answer says what the instance has");
    assert_eq!(world.remote("incident", &id, "state").as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_can_compute_from_the_row_itself() {
    let world = incidents().await;
    world
        .db
        .run(&format!(
            "UPDATE incident SET reopen_count = reopen_count + 5, (description, close_notes) = (upper(short_description), 'n') WHERE {KNOWN}"
        ))
        .await;
    let record = world.sim.record("incident", &known(&world)).expect("it is there");
    assert_eq!(record["reopen_count"], "5");
    assert_eq!(record["description"], "SHIELD GENERATOR HUMS IN A MINOR KEY");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_brings_a_row_twice_updates_it_once() {
    let world = incidents().await;
    world.db.run("CREATE TABLE news (number text, text text)").await;
    world.db.run("INSERT INTO news VALUES ('INC0012345', 'first'), ('INC0012345', 'second')").await;
    let count = world
        .db
        .client()
        .execute(
            "UPDATE incident i SET short_description = n.text FROM news n WHERE n.number = i.number",
            &[],
        )
        .await
        .expect("it succeeds");
    assert_eq!(count, 1);
    assert_eq!(world.writes().len(), 1);
    let here: String = world.db.value(&format!("SELECT short_description FROM incident WHERE {KNOWN}")).await;
    assert!(["first", "second"].contains(&here.as_str()));
    assert_eq!(world.remote("incident", &known(&world), "short_description"), Some(here));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_can_be_driven_by_another_foreign_table() {
    let world = world_with(&["incident", "\"user\""]).await;
    let count = world
        .db
        .client()
        .execute(
            "UPDATE incident i SET work_notes = 'for ' || u.email, urgency_value = 1 FROM \"user\" u
             WHERE u.sys_id = i.assigned_to_value AND u.name = 'Gurney Halleck' AND i.state = 'In Progress'
               AND EXISTS (SELECT FROM incident o WHERE o.caller_id_value = i.caller_id_value)",
            &[],
        )
        .await
        .expect("it succeeds");
    let expected = "assigned_to.name=Gurney Halleck^state=2";
    let there = world.sim.edit().find("incident", expected).expect("a query");
    assert!(count > 0);
    assert_eq!(count, there.len() as u64);
    assert!(there.iter().all(|id| world.remote("incident", id, "urgency").as_deref() == Some("1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_can_be_driven_by_another_table() {
    let world = incidents().await;
    world.db.run("CREATE TABLE doomed AS SELECT number FROM incident WHERE state = 'Canceled'").await;
    let doomed: i64 = world.db.value("SELECT count(*) FROM doomed").await;
    assert!(doomed > 0);
    let rows = world
        .db
        .rows("DELETE FROM incident i USING doomed d WHERE d.number = i.number RETURNING i.number, i.state, d.number")
        .await;
    assert_eq!(rows.len() as i64, doomed);
    assert!(rows.iter().all(|row| row.get::<_, &str>(0) == row.get::<_, &str>(2)));
    assert!(world.sim.edit().find("incident", "state=8").expect("a query").is_empty());
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident WHERE state = 'Canceled'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_writing_query_returns_can_be_used_in_the_same_statement() {
    let world = incidents().await;
    world.db.run("CREATE TABLE archive (number text, state text, sys_id text)").await;
    world
        .db
        .run(
            "WITH gone AS (DELETE FROM incident WHERE state = 'Canceled' RETURNING number, state, sys_id)
             INSERT INTO archive SELECT * FROM gone",
        )
        .await;
    assert!(
        world.db.value::<bool>("SELECT count(*) > 0 AND bool_and(state = 'Canceled') FROM archive").await
    );
    let rows = world
        .db
        .rows(
            "WITH made AS (INSERT INTO incident (short_description) SELECT 'was ' || number FROM archive RETURNING sys_id, number),
                  changed AS (UPDATE incident SET impact = '1 - High' WHERE number = 'INC0012345' RETURNING priority)
             SELECT count(*), count(DISTINCT made.number), min(changed.priority) FROM made, changed",
        )
        .await;
    let archived: i64 = world.db.value("SELECT count(*) FROM archive").await;
    assert_eq!((rows[0].get::<_, i64>(0), rows[0].get::<_, i64>(1)), (archived, archived));
    assert_eq!(rows[0].get::<_, &str>(2), "2 - High");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_sees_what_the_one_before_it_wrote() {
    let world = incidents().await;
    let other = world.session().await;
    let state = format!("SELECT state FROM incident WHERE {KNOWN}");
    world.db.run(&format!("BEGIN; UPDATE incident SET state = 'On Hold' WHERE {KNOWN}")).await;
    assert_eq!(world.db.value::<String>(&state).await, "On Hold");
    assert_eq!(other.value::<String>(&state).await, "In Progress");
    world.db.run("COMMIT").await;
    assert_eq!(other.value::<String>(&state).await, "On Hold");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_triggers_of_the_foreign_table_change_and_see_what_is_written() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE TABLE seen (number text, priority text);
             CREATE FUNCTION before_row() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN NEW.description := 'set by a trigger'; RETURN NEW; END $$;
             CREATE FUNCTION after_row() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN INSERT INTO seen VALUES (NEW.number, NEW.priority); RETURN NULL; END $$;
             CREATE TRIGGER before_row BEFORE INSERT OR UPDATE ON incident FOR EACH ROW EXECUTE FUNCTION before_row();
             CREATE TRIGGER after_row AFTER INSERT OR UPDATE ON incident FOR EACH ROW EXECUTE FUNCTION after_row()",
        )
        .await;
    let id: String = world
        .db
        .value("INSERT INTO incident (short_description, impact_value, urgency_value) VALUES ('t', 1, 1) RETURNING sys_id")
        .await;
    assert_eq!(world.remote("incident", &id, "description").as_deref(), Some("set by a trigger"));
    world.db.run(&format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}")).await;
    assert_eq!(world.remote("incident", &known(&world), "description").as_deref(), Some("set by a trigger"));
    let seen =
        "SELECT count(*) FROM seen WHERE number LIKE 'INC%' AND priority IN ('1 - Critical', '4 - Low')";
    assert_eq!(world.db.value::<i64>(seen).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_over_the_table_can_be_written() {
    let world = incidents().await;
    world
        .db
        .run("CREATE VIEW open AS SELECT sys_id, number, short_description AS title, state FROM incident WHERE state <> 'Closed'")
        .await;
    world.db.run("UPDATE open SET title = 'through a view' WHERE number = 'INC0012345'").await;
    assert_eq!(
        world.remote("incident", &known(&world), "short_description").as_deref(),
        Some("through a view")
    );
    let id: String = world.db.value("INSERT INTO open (title) VALUES ('new') RETURNING sys_id").await;
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("new"));
    world.db.run(&format!("DELETE FROM open WHERE sys_id = '{id}'")).await;
    assert!(world.sim.record("incident", &id).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_sends_nothing_and_explain_analyze_does() {
    let world = incidents().await;
    let plan = world.db.explain(&format!("UPDATE incident SET impact_value = 2 WHERE {KNOWN}")).await;
    assert!(plan.contains("Update on incident"), "{plan}");
    assert!(world.writes().is_empty());
    world.db.run(&format!("EXPLAIN ANALYZE UPDATE incident SET impact_value = 2 WHERE {KNOWN}")).await;
    assert_eq!(world.writes().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_is_refused_with_a_hint() {
    let world = incidents().await;
    let before: i64 = world.db.value("SELECT count(*) FROM incident").await;
    let error = world.db.error("TRUNCATE incident").await;
    assert!(
        error.hint().is_some_and(|hint| hint.contains("DELETE")),
        "{} {:?}",
        error.message(),
        error.hint()
    );
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_updatable_refuses_every_write() {
    let world = incidents().await;
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD updatable 'false')").await;
    for statement in [
        "INSERT INTO incident (short_description) VALUES ('x')",
        "UPDATE incident SET short_description = 'x'",
        "DELETE FROM incident",
    ] {
        let error = world.db.error(statement).await;
        assert_eq!(error.code().code(), "55000", "{}", error.message());
    }
    assert!(world.writes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn journal_columns_append_and_read_as_null() {
    let world = incidents().await;
    let id = known(&world);
    for note in ["first", "first", "second"] {
        let row = world
            .db
            .rows(&format!("UPDATE incident SET work_notes = '{note}' WHERE {KNOWN} RETURNING work_notes"))
            .await;
        assert_eq!(row[0].get::<_, Option<&str>>(0), None);
    }
    world.db.run(&format!("UPDATE incident SET work_notes = NULL WHERE {KNOWN}")).await;
    let entries = |value: &str| {
        let query = format!("element_id={id}^element=work_notes^value={value}");
        world.sim.edit().find("sys_journal_field", &query).expect("a query").len()
    };
    assert_eq!((entries("first"), entries("second")), (2, 1));
    let made: String = world
        .db
        .value("INSERT INTO incident (short_description, comments) VALUES ('x', 'made with a comment') RETURNING sys_id")
        .await;
    let query = format!("element_id={made}^element=comments^value=made with a comment");
    assert_eq!(world.sim.edit().find("sys_journal_field", &query).expect("a query").len(), 1);
    assert!(
        world
            .db
            .value::<bool>("SELECT bool_and(comments IS NULL AND work_notes IS NULL) FROM incident")
            .await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_tables_query_does_not_match_leaves_with_the_next_poll() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE FOREIGN TABLE urgent (sys_id text, number text, urgency bigint) SERVER acme
             OPTIONS (\"table\" 'incident', query 'urgency=1')",
        )
        .await;
    world.sync("urgent").await;
    world.db.run("INSERT INTO urgent (urgency) VALUES (1), (3)").await;
    world
        .db
        .run(
            "UPDATE urgent SET urgency = 2 WHERE number = (SELECT min(number) FROM urgent WHERE urgency = 1)",
        )
        .await;
    world.until("SELECT count(*) > 0 AND bool_and(urgency = 1) FROM urgent").await;
    let there = world.sim.edit().find("incident", "urgency=1").expect("a query").len() as i64;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM urgent").await, there);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_a_rule_of_the_instance_replaces_comes_back_as_the_rule_made_it() {
    let world = incidents().await;
    world.sim.edit().add_rule(BusinessRule {
        name: "Tidy".to_owned(),
        table: "incident".to_owned(),
        phase: Phase::Before,
        operations: vec![Operation::Write],
        condition: String::new(),
        effect: RuleEffect::Set { field: "description".to_owned(), value: "tidied".to_owned() },
    });
    let rows = world
        .db
        .rows(&format!("UPDATE incident SET description = 'untidy' WHERE {KNOWN} RETURNING description"))
        .await;
    assert_eq!(rows[0].get::<_, &str>(0), "tidied");
    let here = format!("SELECT description FROM incident WHERE {KNOWN}");
    assert_eq!(world.db.value::<String>(&here).await, "tidied");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_columns_of_any_name_and_age_are_written() {
    let world = incidents().await;
    world
        .db
        .run(
            r#"CREATE FOREIGN TABLE "it's ""Ä"" table" (
                 first text, "the KEY" text OPTIONS (field 'sys_id'), "select" text OPTIONS (field 'number'),
                 second numeric, "what's ""up""" text OPTIONS (field 'short_description'))
               SERVER acme OPTIONS ("table" 'incident');
             ALTER FOREIGN TABLE "it's ""Ä"" table" DROP COLUMN first, DROP COLUMN second;
             ALTER FOREIGN TABLE "it's ""Ä"" table" ADD COLUMN "état" text OPTIONS (field 'state', show 'label')"#,
        )
        .await;
    world.db.run(r#"SELECT servicenow.wait_for_sync('"it''s ""Ä"" table"', '60 s')"#).await;
    let rows = world
        .db
        .rows(
            r#"UPDATE "it's ""Ä"" table" SET "what's ""up""" = 'odd', "état" = 'On Hold'
               WHERE "select" = 'INC0012345' RETURNING *"#,
        )
        .await;
    let row: Vec<&str> = (0..4).map(|column| rows[0].get(column)).collect();
    assert_eq!(row, [known(&world).as_str(), "INC0012345", "odd", "On Hold"]);
    let id: String = world
        .db
        .value(r#"INSERT INTO "it's ""Ä"" table" ("what's ""up""") VALUES ('odder') RETURNING "the KEY""#)
        .await;
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("odder"));
    world.db.run(r#"DELETE FROM "it's ""Ä"" table" WHERE "what's ""up""" = 'odder'"#).await;
    assert!(world.sim.record("incident", &id).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_current_of_changes_the_row_the_cursor_is_on() {
    let world = incidents().await;
    world
        .db
        .run(&format!(
            "BEGIN;
             DECLARE c CURSOR FOR SELECT * FROM incident WHERE {KNOWN} FOR UPDATE;
             MOVE c;
             UPDATE incident SET short_description = 'by cursor' WHERE CURRENT OF c;
             COMMIT"
        ))
        .await;
    let changed = world.sim.edit().find("incident", "short_description=by cursor").expect("a query");
    assert_eq!(changed, [known(&world)]);
    // Whatever the cursor's plan is, and also if the row has changed since.
    world.stop_worker().await;
    for (n, from) in ["WHERE", "WHERE tableoid > 0 AND", "WHERE xmin IS NOT NULL AND"].into_iter().enumerate()
    {
        for lock in ["FOR UPDATE", "FOR SHARE", ""] {
            let text = format!("cursor {n} {lock}");
            world
                .db
                .run(&format!(
                    "BEGIN;
                     DECLARE c CURSOR FOR SELECT number FROM incident {from} {KNOWN} {lock};
                     MOVE c;
                     UPDATE incident SET short_description = 'once' WHERE CURRENT OF c;
                     UPDATE incident SET short_description = '{text}' WHERE CURRENT OF c;
                     COMMIT"
                ))
                .await;
            let changed = world.sim.edit().find("incident", &format!("short_description={text}"));
            assert_eq!(changed.expect("a query"), [known(&world)], "{from} {lock}");
        }
    }
    world
        .db
        .run(&format!(
            "DO $$ DECLARE c CURSOR FOR SELECT number FROM incident WHERE {KNOWN} FOR UPDATE; r record;
             BEGIN OPEN c; FETCH c INTO r; UPDATE incident SET short_description = 'by variable' WHERE CURRENT OF c; END $$"
        ))
        .await;
    let id = known(&world);
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("by variable"));
    let error = world.db.error("UPDATE incident SET short_description = 'x' WHERE CURRENT OF nobody").await;
    assert_eq!(error.code().code(), "34000", "{}", error.message());
    world.db.run("BEGIN; DECLARE c CURSOR FOR SELECT 1; MOVE c").await;
    let error = world.db.error("UPDATE incident SET short_description = 'x' WHERE CURRENT OF c").await;
    assert_eq!(error.code().code(), "24000", "{}", error.message());
    world.db.run("ROLLBACK").await;
    // The first statements of a session.
    let cold = world.session().await;
    cold.run(&format!(
        "BEGIN; DECLARE c CURSOR FOR SELECT number FROM incident WHERE {KNOWN}; MOVE c;
         DELETE FROM incident WHERE CURRENT OF c; COMMIT"
    ))
    .await;
    assert!(world.sim.record("incident", &id).is_none());
}

/// What `RETURNING` shows of a row's system columns is what a later query finds.
#[tokio::test(flavor = "multi_thread")]
async fn a_written_row_has_the_system_columns_of_its_row_in_the_cache() {
    let world = incidents().await;
    world.stop_worker().await;
    let shown = "ctid::text || ' ' || xmin::text || ' ' || cmin::text || ' ' || xmax::text || ' ' || tableoid::regclass::text";
    for statement in [
        "INSERT INTO incident (short_description) VALUES ('new')",
        "UPDATE incident SET short_description = 'changed' WHERE number = 'INC0012345'",
        "UPDATE incident i SET short_description = 'joined' FROM (VALUES ('INC0012345')) v (number) WHERE v.number = i.number",
    ] {
        world.db.run("BEGIN").await;
        let rows = world.db.rows(&format!("{statement} RETURNING sys_id, {shown}")).await;
        let (id, returned): (&str, &str) = (rows[0].get(0), rows[0].get(1));
        let found = format!("SELECT {shown} FROM incident WHERE sys_id = '{id}'");
        assert_eq!(world.db.value::<String>(&found).await, returned, "{statement}");
        let own =
            "SELECT bool_and(xmin::text::bigint = pg_current_xact_id()::text::bigint) FROM incident WHERE ";
        assert!(world.db.value::<bool>(&format!("{own} sys_id = '{id}'")).await, "{statement}");
        world.db.run("COMMIT").await;
    }
    let before = "SELECT ctid::text FROM incident WHERE number = 'INC0012345'";
    let before = world.db.value::<String>(before).await;
    let deleted = "DELETE FROM incident WHERE number = 'INC0012345' RETURNING ctid::text";
    assert_eq!(world.db.value::<String>(deleted).await, before);
}

/// As on a local table: the outer statement must not write over what it has caused itself, nor leave its own out.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_function_of_the_statement_has_changed_is_refused() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE FUNCTION touch(id text) RETURNS text LANGUAGE plpgsql AS $$
             BEGIN
                 UPDATE incident SET description = clock_timestamp()::text WHERE sys_id = id;
                 RETURN 'outer';
             END $$",
        )
        .await;
    for (statement, verb) in [
        (format!("UPDATE incident SET short_description = touch(sys_id) WHERE {KNOWN}"), "updated"),
        (format!("DELETE FROM incident WHERE {KNOWN} AND touch(sys_id) = 'outer'"), "deleted"),
    ] {
        let error = world.db.error(&statement).await;
        assert_eq!(error.code().code(), "27000", "{statement}: {}", error.message());
        let text = format!(
            "tuple to be {verb} was already modified by an operation triggered by the current command"
        );
        assert_eq!(error.message(), text);
        assert!(error.hint().is_some());
    }
    world.until_like_the_instance("incident", &["short_description", "description"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_values_and_a_default_are_assigned() {
    let world = incidents().await;
    let id = known(&world);
    let remote = |field: &str| world.remote("incident", &id, field).unwrap_or_default();
    for (values, description, impact) in [
        ("(SELECT 'from a query', 3)", "from a query", "3"),
        ("ROW ('from a row', 2)", "from a row", "2"),
        ("('from values', DEFAULT)", "from values", ""),
    ] {
        let before = world.writes().len();
        let update = format!(
            "UPDATE incident SET (description, business_stc) = {values} WHERE {KNOWN} RETURNING description, business_stc::text"
        );
        let rows = world.db.rows(&update).await;
        assert_eq!(rows[0].get::<_, &str>(0), description);
        assert_eq!(rows[0].get::<_, Option<String>>(1).unwrap_or_default(), impact);
        assert_eq!(
            (remote("description"), remote("business_stc")),
            (description.to_owned(), impact.to_owned())
        );
        assert_eq!(world.writes().len() - before, 1);
    }
    world.db.run("ALTER FOREIGN TABLE incident ALTER description SET DEFAULT 'by default'").await;
    world.db.run(&format!("UPDATE incident SET description = DEFAULT WHERE {KNOWN}")).await;
    assert_eq!(remote("description"), "by default");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_writes_through_to_its_foreign_partition() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE TABLE every (sys_id text, place text, short_description text) PARTITION BY LIST (place);
             CREATE TABLE here PARTITION OF every FOR VALUES IN ('here');
             CREATE FOREIGN TABLE there (short_description text, sys_id text, place text OPTIONS (field 'category'))
                 SERVER acme OPTIONS (table 'incident', query 'category=software');
             ALTER TABLE every ATTACH PARTITION there FOR VALUES IN ('software')",
        )
        .await;
    world.sync("there").await;
    let texts = |rows: Vec<tokio_postgres::Row>| -> Vec<(String, String)> {
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let shown = "RETURNING tableoid::regclass::text, short_description";
    let both = |a: &str, b: &str| vec![("here".to_owned(), a.to_owned()), ("there".to_owned(), b.to_owned())];
    let insert = format!("INSERT INTO every VALUES ('x', 'here', 'a'), (NULL, 'software', 'a') {shown}");
    assert_eq!(texts(world.db.rows(&insert).await), both("a", "a"));
    let sink = world.db.client().copy_in::<_, Bytes>("COPY every FROM STDIN").await.expect("COPY");
    let mut sink = std::pin::pin!(sink);
    sink.send(Bytes::from_static(b"y\there\tcopied\n\\N\tsoftware\tcopied\n\\N\tsoftware\tcopied\n"))
        .await
        .expect("rows");
    assert_eq!(sink.finish().await.expect("they are written"), 3);
    assert_eq!(
        world
            .sim
            .edit()
            .find("incident", "short_description=copied^category=software")
            .expect("a query")
            .len(),
        2
    );
    let update = format!("UPDATE every SET short_description = 'b' WHERE short_description = 'a' {shown}");
    assert_eq!(texts(world.db.rows(&update).await), both("b", "b"));
    let made = world.find("incident", "short_description=b");
    let error = world.db.error("TRUNCATE every").await;
    assert_eq!((error.code().code(), error.hint().is_some()), ("0A000", true), "{}", error.message());
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM here").await, 2);
    let delete = format!("DELETE FROM every WHERE short_description = 'b' {shown}");
    assert_eq!(texts(world.db.rows(&delete).await), both("b", "b"));
    assert!(world.sim.record("incident", &made).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_see_and_stop_deletions() {
    let world = incidents().await;
    let id = known(&world);
    world
        .db
        .run(
            "CREATE TABLE seen (number text);
             CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RETURN CASE WHEN OLD.number = 'INC0012345' THEN NULL ELSE OLD END; END $$;
             CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN INSERT INTO seen VALUES (OLD.number); RETURN NULL; END $$;
             CREATE TRIGGER stop BEFORE DELETE ON incident FOR EACH ROW EXECUTE FUNCTION stop();
             CREATE TRIGGER see AFTER DELETE ON incident FOR EACH ROW EXECUTE FUNCTION see()",
        )
        .await;
    let deleted = "DELETE FROM incident WHERE number IN ('INC0012345', 'INC0010001')";
    assert_eq!(world.db.client().execute(deleted, &[]).await.expect("one of them"), 1);
    assert!(world.sim.record("incident", &id).is_some());
    assert_eq!(world.db.value::<String>("SELECT string_agg(number, ',') FROM seen").await, "INC0010001");
    assert_eq!(world.writes().len(), 1);
    // Postgres keeps no rows of foreign tables for a statement's trigger.
    let error = world
        .db
        .error("CREATE TRIGGER all_of_them AFTER INSERT ON incident REFERENCING NEW TABLE AS made EXECUTE FUNCTION see()")
        .await;
    assert_eq!(error.detail(), Some("Triggers on foreign tables cannot have transition tables."));
}
