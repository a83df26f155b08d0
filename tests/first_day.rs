//! What a user does on the first day, on a small instance.

use world::World;

#[tokio::test(flavor = "multi_thread")]
async fn an_import_fills_the_caches_with_labels_and_stored_values() {
    let world = World::new().await;
    world.import(&["incident", "problem", "change_request", "service_catalog", "\"user\""]).await;
    let truth = world.sim.truth("incident", "fdw.integration").expect("a table").len() as i64;
    assert!(truth > 10);
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident").await, truth);
    let rows = world
        .db
        .rows("SELECT state, state_value, assigned_to, assigned_to_value FROM incident WHERE number = 'INC0012345'")
        .await;
    let row = rows.first().expect("the incident everybody knows");
    assert_eq!(row.get::<_, &str>(0), "In Progress");
    assert_eq!(row.get::<_, i64>(1), 2);
    assert_eq!(row.get::<_, &str>(2), "Gurney Halleck");
    assert!(row.get::<_, &str>(3).starts_with("46d44a"));
    let status = "SELECT phase = 'synced' AND rows = rows_total AND percent = 100 AND last_error IS NULL
                  FROM servicenow.sync_status WHERE foreign_table = 'incident'::regclass";
    assert!(world.db.value::<bool>(status).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_plans_on_the_cache() {
    let world = World::new().await;
    world.import(&["incident", "\"user\""]).await;
    world.db.run("SET enable_seqscan = off").await; // the instance is small
    let plan = world.db.explain("SELECT * FROM incident WHERE sys_id = 'x'").await;
    assert!(plan.contains("Index Scan using incident_pkey on incident"), "{plan}");
    world.db.run("RESET enable_seqscan").await;
    let plan = world
        .db
        .explain("SELECT u.name, count(*) FROM incident i JOIN \"user\" u ON u.sys_id = i.caller_id_value GROUP BY 1")
        .await;
    assert!(plan.contains("Seq Scan on incident") && !plan.contains("Foreign Scan"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_lands_in_both_places() {
    let world = World::new().await;
    world.import(&["incident"]).await;
    let id = world.find("incident", "number=INC0012345");
    let rows = world
        .db
        .rows(
            "UPDATE incident SET state = 'On Hold', impact_value = 3 WHERE number = 'INC0012345'
               RETURNING state_value, incident_state, impact",
        )
        .await;
    assert_eq!(rows[0].get::<_, i64>(0), 3);
    assert_eq!(rows[0].get::<_, &str>(1), "On Hold", "a derived field comes back");
    assert_eq!(rows[0].get::<_, &str>(2), "3 - Low");
    assert_eq!(world.remote("incident", &id, "state").as_deref(), Some("3"));
    assert_eq!(world.remote("incident", &id, "impact").as_deref(), Some("3"));
    let patches: Vec<_> =
        world.sim.requests().into_iter().filter(|request| request.method == "PATCH").collect();
    assert_eq!(patches.len(), 1);
    let changed_fields_only = serde_json::json!({"state": "3", "impact": "3"});
    assert_eq!(patches[0].body.as_ref(), Some(&changed_fields_only));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_update_changes_nothing_on_either_side() {
    let world = World::new().await;
    world.import(&["incident"]).await;
    let id = world.find("incident", "number=INC0012345");
    let before = world.sim.record("incident", &id);
    let error =
        world.db.error("UPDATE incident SET state = 'invalid-state' WHERE number = 'INC0012345'").await;
    assert_eq!(error.message(), "[ServiceNow] Value `invalid-state` is not a valid value for `state`.");
    assert_eq!(error.code().code(), "23514");
    assert_eq!(world.sim.record("incident", &id), before);
    let state = "SELECT state FROM incident WHERE number = 'INC0012345'";
    assert_eq!(world.db.value::<String>(state).await, "In Progress");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_returns_what_the_instance_made_of_it() {
    let world = World::new().await;
    world.import(&["incident"]).await;
    let rows = world
        .db
        .rows(
            "INSERT INTO incident (short_description, impact, urgency, caller_id)
               VALUES ('Printer on fire', '1 - High', '1 - High', 'Gurney Halleck')
               RETURNING number, sys_id, priority, state, caller_id_value",
        )
        .await;
    let (number, id) = (rows[0].get::<_, String>(0), rows[0].get::<_, String>(1));
    assert!(number.starts_with("INC"), "{number}");
    assert_eq!(rows[0].get::<_, &str>(2), "1 - Critical");
    assert_eq!(rows[0].get::<_, &str>(3), "New");
    assert_eq!(world.remote("incident", &id, "number"), Some(number.clone()));
    assert_eq!(world.remote("incident", &id, "caller_id").as_deref(), Some(rows[0].get::<_, &str>(4)));
    let count = format!("SELECT count(*) FROM incident WHERE number = '{number}'");
    assert_eq!(world.db.value::<i64>(&count).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_lands_in_both_places() {
    let world = World::new().await;
    world.import(&["incident"]).await;
    let id = world.find("incident", "number=INC0012345");
    let rows =
        world.db.rows("DELETE FROM incident WHERE number = 'INC0012345' RETURNING sys_id, state").await;
    assert_eq!(rows[0].get::<_, String>(0), id);
    assert_eq!(rows[0].get::<_, &str>(1), "In Progress");
    assert!(world.sim.record("incident", &id).is_none());
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident WHERE number = 'INC0012345'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_made_in_the_instance_arrive() {
    let world = World::new().await;
    world.import(&["incident"]).await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "changed over there")]).unwrap();
    let new = world.sim.edit().insert("incident", &[("short_description", "made over there")]).unwrap();
    world.until("SELECT count(*) = 2 FROM incident WHERE short_description LIKE '% over there'").await;
    world.sim.edit().delete("incident", &new).unwrap();
    world.until(&format!("SELECT count(*) = 0 FROM incident WHERE sys_id = '{new}'")).await;
    let truth = world.sim.truth("incident", "fdw.integration").expect("a table").len() as i64;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident").await, truth);
    let rows = "SELECT rows FROM servicenow.sync_status WHERE foreign_table = 'incident'::regclass";
    assert_eq!(world.db.value::<i64>(rows).await, truth);
}
