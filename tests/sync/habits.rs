//! Instances differ in what they do; a table is filled and followed on each of them.

use servicenow_sim::{Dataset, UnknownField};
use world::World;

use crate::{COLUMNS, INCIDENT};

/// What may differ from one instance to another and no failure is: strictness, long addresses, sessions that are
/// served one call at a time, an audit that forgets, references that are cleared with a stamp, and the time as its user
/// sees it.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_followed_on_instances_of_other_habits() {
    let world = World::with(Dataset::Small, ", reconcile_interval '1s', page_size '20'").await;
    let active = INCIDENT
        .replace("TABLE incident", "TABLE active")
        .replace("SERVER acme", "SERVER acme OPTIONS (table 'incident', query 'active=true')");
    let opened = "CREATE FOREIGN TABLE opened (sys_id text, opened_at timestamptz,
                  caller_id text OPTIONS (show 'label'), caller_id_value text OPTIONS (field 'caller_id'))
                  SERVER acme OPTIONS (table 'incident')";
    let user = world.find("sys_user", &format!("user_name={}", world::INTEGRATION));
    let zone = [("time_zone", "Asia/Tokyo"), ("date_format", "dd/MM/yyyy"), ("time_format", "hh:mm:ss a")];
    world.sim.edit().update("sys_user", &user, &zone).expect("a user");
    for (round, unknown_field) in [UnknownField::NoRows, UnknownField::Forbid].into_iter().enumerate() {
        world.sim.set(|s| {
            s.unknown_field = unknown_field;
            s.link_previous = false;
            s.max_link_header = 300;
            s.session_waiters = 0;
            s.cascade_stamps = true;
            s.audit_delete_horizon_s = Some(0);
        });
        for table in [INCIDENT, &active, opened].into_iter().filter(|_| round == 0) {
            world.db.run(table).await;
        }
        let edit = world.sim.edit();
        let text = format!("round {round}");
        for table in ["incident", "active", "opened"] {
            world.sync(table).await;
        }
        let ids: Vec<String> = edit.find("incident", "active=true^ORDERBYsys_id").expect("a query");
        edit.update("incident", &ids[0], &[("short_description", &text)]).expect("it is there");
        edit.update("incident", &ids[1], &[("active", "false")]).expect("it is there");
        edit.delete("incident", &ids[2]).expect("it is there");
        edit.insert("incident", &[("short_description", &text), ("active", "true")]).expect("a record");
        let caller = edit.insert("sys_user", &[("name", &text)]).expect("a user");
        edit.update("incident", &ids[3], &[("caller_id", &caller)]).expect("it is there");
        let shown = format!("SELECT caller_id FROM opened WHERE sys_id = '{}'", ids[3]);
        world.until(&format!("SELECT ({shown}) = '{text}'")).await;
        edit.delete("sys_user", &caller).expect("a user");
        world.until_like_the_instance("incident", COLUMNS).await;
        let gone = format!("SELECT count(*) = 0 FROM active WHERE sys_id IN ('{}', '{}')", ids[1], ids[2]);
        world.until(&gone).await;
        world.until(&format!("SELECT ({shown}) IS NULL")).await;
        // Stored values are read, whatever people see.
        let opened_at = world.remote("incident", &ids[0], "opened_at").expect("it is there");
        let same = format!(
            "SELECT opened_at IS NOT DISTINCT FROM nullif('{opened_at}', '')::timestamp AT TIME ZONE 'UTC'
             FROM opened WHERE sys_id = '{}'",
            ids[0]
        );
        assert!(world.db.value::<bool>(&same).await);
    }
}

/// Rows of a rotated table vanish without a trace, all that are old enough at once.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_rotated_table_leave() {
    let world = World::with(Dataset::Small, ", reconcile_interval '1s'").await;
    let event =
        |n: usize| world.sim.edit().insert("sysevent", &[("name", &format!("event {n}"))]).expect("a record");
    let ids: Vec<String> = (0..40).map(event).collect();
    world.db.run("CREATE FOREIGN TABLE sysevent (sys_id text, name text) SERVER acme").await;
    world.sync("sysevent").await;
    for id in &ids[..30] {
        world.sim.edit().without_workflow().delete("sysevent", id).expect("it is there");
    }
    event(40);
    world.until_like_the_instance("sysevent", &["name"]).await;
}

/// The columns stay as they are until somebody changes them, and hold what fits.
#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_gets_another_type_is_told_and_goes_on() {
    let world = World::new().await;
    world.sim.edit().add_column("incident", "u_floor", "Floor", "integer").expect("a column");
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("u_floor", "3")]).expect("it is there");
    world
        .db
        .run("CREATE FOREIGN TABLE incident (sys_id text, number text, u_floor bigint) SERVER acme")
        .await;
    world.sync("incident").await;
    world.until("SELECT metadata_watermark IS NOT NULL FROM servicenow.sync_server").await;
    let field = world.find("sys_dictionary", "name=incident^element=u_floor");
    world.sim.edit().update("sys_dictionary", &field, &[("internal_type", "string")]).expect("a field");
    world
        .until("SELECT count(*) = 1 FROM servicenow.schema_drift WHERE field = 'u_floor' AND change = 'changed' AND detail = 'integer became string'")
        .await;
    world.sim.edit().update("incident", &id, &[("u_floor", "4")]).expect("it is there");
    world.until(&format!("SELECT u_floor = 4 FROM incident WHERE sys_id = '{id}'")).await;
    // What does not fit is said, and held against nobody but its table until the column is text.
    world.sim.edit().update("incident", &id, &[("u_floor", "ground")]).expect("it is there");
    world.until("SELECT last_error LIKE '%u_floor%' FROM servicenow.sync_status").await;
    world.db.run("ALTER FOREIGN TABLE incident ALTER u_floor TYPE text").await;
    world.sync("incident").await;
    world.until(&format!("SELECT u_floor = 'ground' FROM incident WHERE sys_id = '{id}'")).await;
    world.until("SELECT count(*) = 0 FROM servicenow.schema_drift").await;
}
