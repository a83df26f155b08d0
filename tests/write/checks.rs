//! Rows that must not be written are refused before ServiceNow hears of them.

use world::World;

use crate::{KNOWN, incidents, known};

/// Statements that are refused with a SQLSTATE and a text, before any call.
async fn are_refused(world: &World, statements: &[(&str, &str, &str)]) {
    let before = world.writes().len();
    for (statement, code, message) in statements {
        let error = world.db.error(statement).await;
        assert_eq!((error.code().code(), error.message()), (*code, *message), "{statement}");
        assert_eq!(world.writes().len(), before, "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_checks_rows_before_they_are_sent() {
    let world = incidents().await;
    let id = known(&world);
    world
        .db
        .run(
            "CREATE VIEW hardware AS SELECT * FROM incident WHERE category_value = 'hardware' AND active WITH CHECK OPTION;
             CREATE VIEW urgent AS SELECT * FROM hardware WHERE priority_value < 3 OR urgency_value < 3 WITH LOCAL CHECK OPTION;
             CREATE VIEW known AS SELECT * FROM incident WHERE number LIKE 'INC%' AND urgency <> '3 - Low' WITH CHECK OPTION",
        )
        .await;
    world.db.run(&format!("UPDATE incident SET category_value = 'hardware' WHERE {KNOWN}")).await;
    let refused = |view: &str| format!("new row violates check option for view \"{view}\"");
    let (hardware, known) = (refused("hardware"), refused("known"));
    are_refused(
        &world,
        &[
            (&format!("UPDATE hardware SET category = 'Software' WHERE {KNOWN}"), "44000", &hardware),
            (&format!("UPDATE urgent SET category_value = 'software' WHERE {KNOWN}"), "44000", &hardware),
            (
                "INSERT INTO hardware (short_description, category) VALUES ('y', 'Software')",
                "44000",
                &hardware,
            ),
            (&format!("UPDATE known SET urgency_value = 3 WHERE {KNOWN}"), "44000", &known),
            ("INSERT INTO known (urgency) VALUES ('3 - Low')", "44000", &known),
        ],
    )
    .await;
    // What only the instance knows may be anything.
    let made: String = world
        .db
        .value("INSERT INTO hardware (short_description, category) VALUES ('y', 'Hardware') RETURNING sys_id")
        .await;
    assert_eq!(world.remote("incident", &made, "active").as_deref(), Some("true"));
    world.db.run("INSERT INTO known (urgency_value) VALUES (2)").await;
    world.db.run(&format!("UPDATE urgent SET short_description = 'still there' WHERE {KNOWN}")).await;
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("still there"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tables_constraints_are_checked_before_rows_are_sent() {
    let world = incidents().await;
    world
        .db
        .run(
            "ALTER FOREIGN TABLE incident ADD CONSTRAINT not_low CHECK (impact_value < 3),
                 ALTER short_description SET NOT NULL",
        )
        .await;
    world.sync("incident").await;
    let low = "new row for relation \"incident\" violates check constraint \"not_low\"";
    are_refused(
        &world,
        &[
            (&format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}"), "23514", low),
            (&format!("UPDATE incident SET impact = '3 - Low' WHERE {KNOWN}"), "23514", low),
            (
                "INSERT INTO incident (short_description, impact_value) VALUES ('x', 2), ('y', 3)",
                "23514",
                low,
            ),
            (
                &format!("UPDATE incident SET short_description = NULL WHERE {KNOWN}"),
                "23502",
                "null value in column \"short_description\" of relation \"incident\" violates not-null constraint",
            ),
        ],
    )
    .await;
    // Rows that are as they are because of the instance can be changed otherwise.
    let id = known(&world);
    world.sim.edit().update("incident", &id, &[("impact", "3")]).expect("a change");
    world.sync("incident").await;
    world.db.run(&format!("UPDATE incident SET short_description = 'changed' WHERE {KNOWN}")).await;
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("changed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_a_partitioned_table_hold_for_its_foreign_partition() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE TABLE every (sys_id text, place text, short_description text) PARTITION BY LIST (place);
             CREATE FOREIGN TABLE there (short_description text, sys_id text, place text OPTIONS (field 'category'))
                 SERVER acme OPTIONS (table 'incident', query 'category=software');
             ALTER TABLE every ATTACH PARTITION there FOR VALUES IN ('software');
             ALTER TABLE every ENABLE ROW LEVEL SECURITY;
             CREATE POLICY free ON every USING (true) WITH CHECK (short_description <> 'forbidden')",
        )
        .await;
    world.sync("there").await;
    let other = world.session_as("other").await;
    world.db.run(&format!("GRANT ALL ON every TO {}", world.role("other"))).await;
    other.run("INSERT INTO every VALUES (NULL, 'software', 'allowed')").await;
    let before = world.writes().len();
    for statement in [
        "INSERT INTO every VALUES (NULL, 'software', 'forbidden')",
        "UPDATE every SET short_description = 'forbidden' WHERE short_description = 'allowed'",
    ] {
        let error = other.error(statement).await;
        assert_eq!(error.code().code(), "42501", "{statement}: {}", error.message());
        assert_eq!(error.message(), "new row violates row-level security policy for table \"every\"");
        assert_eq!(world.writes().len(), before, "{statement}");
    }
}

/// As on a local table one of them takes place.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_statement_changes_twice_is_changed_once() {
    let world = incidents().await;
    let id = known(&world);
    let (update, delete) = (
        |text: &str| format!("UPDATE incident SET description = '{text}' WHERE {KNOWN}"),
        format!("DELETE FROM incident WHERE {KNOWN}"),
    );
    for (one, other) in [
        (format!("{} RETURNING 1", update("a")), update("b")),
        (update("c"), format!("{} RETURNING 1", update("d"))),
        (update("e"), update("f")),
        (update("g"), delete.clone()),
        (format!("{delete} RETURNING 1"), update("h")),
    ] {
        let before = world.writes().len();
        world.db.run(&format!("BEGIN; WITH one AS ({one}) {other}")).await;
        assert_eq!(world.writes().len() - before, 1, "{one} and {other}");
        world.db.run("COMMIT").await;
        world.until_like_the_instance("incident", &["description"]).await;
        if world.sim.record("incident", &id).is_none() {
            break;
        }
    }
}
