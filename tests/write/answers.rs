//! What the instance silently leaves out of a write is an error that names it.

use std::time::Duration;

use servicenow_sim::AclRule;
use world::{INTEGRATION, World};

use crate::{KNOWN, incidents, known};

fn protect(world: &World, table: &str, field: &str) {
    world.sim.edit().add_acl(AclRule::FieldWrite {
        table: table.to_owned(),
        field: field.to_owned(),
        user: Some(INTEGRATION.to_owned()),
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_the_user_may_not_set_is_named() {
    let world = incidents().await;
    protect(&world, "incident", "description");
    protect(&world, "incident", "assigned_to");
    let before =
        world.db.value::<String>(&format!("SELECT to_jsonb(i)::text FROM incident i WHERE {KNOWN}")).await;
    let error = world
        .db
        .error(&format!(
            "UPDATE incident SET description = 'new', assigned_to = 'System Administrator' WHERE {KNOWN}"
        ))
        .await;
    assert_eq!(error.code().code(), "42501");
    let id = known(&world);
    let rest =
        format!("in record \"{id}\" of table \"incident\" on server \"acme\": the instance ignored it");
    assert!(error.message().ends_with(&rest), "{}", error.message());
    assert!(error.message().contains("\"description\"") && error.message().contains("\"assigned_to\""));
    assert!(error.detail().is_some() && error.hint().is_some());
    let after =
        world.db.value::<String>(&format!("SELECT to_jsonb(i)::text FROM incident i WHERE {KNOWN}")).await;
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_is_ignored_is_named_also_without_its_stored_value() {
    let world = World::new().await;
    world
        .db
        .run("IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO public OPTIONS (values 'false')")
        .await;
    world.sync("incident").await;
    // As the instance compares names.
    world.db.run(&format!("UPDATE incident SET assigned_to = 'gurney HALLECK' WHERE {KNOWN}")).await;
    protect(&world, "incident", "assigned_to");
    for name in ["'System Administrator'", "NULL"] {
        let error = world.db.error(&format!("UPDATE incident SET assigned_to = {name} WHERE {KNOWN}")).await;
        assert_eq!(error.code().code(), "42501", "{name}: {}", error.message());
        assert!(error.message().contains("\"assigned_to\""), "{}", error.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_ignored_in_an_insert_is_named_and_the_record_arrives_by_polling() {
    let world = incidents().await;
    protect(&world, "incident", "description");
    let error =
        world.db.error("INSERT INTO incident (short_description, description) VALUES ('half', 'x')").await;
    assert_eq!(error.code().code(), "42501", "{}", error.message());
    assert!(error.message().contains("\"description\""), "{}", error.message());
    assert_eq!(world.sim.edit().find("incident", "short_description=half").expect("a query").len(), 1);
    world.until("SELECT count(*) = 1 FROM incident WHERE short_description = 'half'").await;
    world.until_like_the_instance("incident", &["number", "description"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strictly_read_only_and_computed_fields_refuse_to_be_set() {
    let world = World::new().await;
    let entry = world.find("sys_dictionary", "name=u_pg_widget^element=u_strict");
    let option = |option| {
        world.sim.edit().update("sys_dictionary", &entry, &[("read_only_option", option)]).expect("a change");
    };
    // As instances that were upgraded have it: what it means a property says, which is not for everybody to read.
    option("instance_configured");
    world.import(&["u_pg_widget"]).await;
    let update = "UPDATE u_pg_widget SET u_strict = 'x' WHERE u_name = 'Widget ordinary'";
    let error = world.db.error(update).await;
    assert_eq!(error.code().code(), "42501", "{}", error.message());
    option("strict_read_only");
    world.db.run("DROP FOREIGN TABLE u_pg_widget").await;
    world.import(&["u_pg_widget"]).await;
    let writes = world.writes().len();
    let error = world.db.error(update).await;
    assert_eq!(error.code().code(), "0A000", "{}", error.message());
    let message = "column \"u_strict\" of foreign table \"u_pg_widget\" cannot be written: it is read-only in ServiceNow";
    assert_eq!(error.message(), message);
    let error =
        world.db.error("UPDATE u_pg_widget SET u_calculated = 1 WHERE u_name = 'Widget ordinary'").await;
    assert_eq!(error.code().code(), "0A000", "{}", error.message());
    assert!(error.message().contains("\"u_calculated\""), "{}", error.message());
    assert_eq!(world.writes().len(), writes);
    // Read-only on forms only: the interface writes it.
    world.db.run("UPDATE u_pg_widget SET u_display_only = 'x' WHERE u_name = 'Widget ordinary'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_of_a_referenced_record_cannot_be_written() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE FOREIGN TABLE caller (sys_id text, number text, email text OPTIONS (field 'caller_id.email'))
             SERVER acme OPTIONS (\"table\" 'incident')",
        )
        .await;
    world.sync("caller").await;
    assert_eq!(
        world.db.value::<String>(&format!("SELECT email FROM caller WHERE {KNOWN}")).await,
        "ess.user@example.com"
    );
    for statement in [
        &format!("UPDATE caller SET email = 'x@example.com' WHERE {KNOWN}"),
        "INSERT INTO caller (email) VALUES ('x@example.com')",
    ] {
        let error = world.db.error(statement).await;
        assert_eq!(error.code().code(), "0A000", "{}", error.message());
        assert!(error.message().contains("\"email\""), "{}", error.message());
    }
    assert!(world.writes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_record_cannot_be_changed() {
    let world = incidents().await;
    let error = world.db.error(&format!("UPDATE incident SET sys_id = 'another' WHERE {KNOWN}")).await;
    assert_eq!(error.code().code(), "0A000", "{}", error.message());
    assert!(world.writes().is_empty());
    world.db.run(&format!("UPDATE incident SET sys_id = sys_id, impact_value = 2 WHERE {KNOWN}")).await;
    assert_eq!(world.remote("incident", &known(&world), "impact").as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stamp_that_the_instance_sets_itself_is_named() {
    let world = incidents().await;
    let error =
        world.db.error(&format!("UPDATE incident SET sys_created_by = 'somebody' WHERE {KNOWN}")).await;
    assert_eq!(error.code().code(), "42501", "{}", error.message());
    assert!(error.message().contains("\"sys_created_by\""), "{}", error.message());
}

/// The default is not to be known: a script of the instance's gives it.
#[tokio::test(flavor = "multi_thread")]
async fn a_field_whose_default_is_a_script_is_named_when_it_is_ignored() {
    let world = World::new().await;
    let entry = world.find("sys_dictionary", "name=task^element=opened_by");
    let default = [("default_value", "javascript:gs.getUserID()")];
    world.sim.edit().update("sys_dictionary", &entry, &default).expect("a change");
    world.import(&["incident"]).await;
    protect(&world, "incident", "opened_by");
    let insert = "INSERT INTO incident (short_description, opened_by) VALUES ('x', 'System Administrator')";
    let error = world.db.error(insert).await;
    assert_eq!(error.code().code(), "42501", "{}", error.message());
    assert!(error.message().starts_with("could not set \"opened_by\""), "{}", error.message());
    assert!(!error.message().contains("short_description"), "{}", error.message());
}

/// What was there before is another value than the cache has.
#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_ignored_is_named_though_the_cache_is_behind() {
    let world = incidents().await;
    let id = known(&world);
    protect(&world, "incident", "description");
    world.stop_worker().await;
    // The session has seen that records are stamped by the clock that answers tell.
    world.db.run(&format!("UPDATE incident SET short_description = 'first' WHERE {KNOWN}")).await;
    let behind = |text: &str| {
        world.sim.edit().update("incident", &id, &[("description", text)]).expect("a change");
        world.sim.clock().advance(Duration::from_secs(10));
    };
    for (n, rest) in ["", ", short_description = 'written'"].into_iter().enumerate() {
        behind(&format!("by somebody else {n}"));
        let update = format!("UPDATE incident SET description = 'new'{rest} WHERE {KNOWN}");
        let error = world.db.error(&update).await;
        assert_eq!(error.code().code(), "42501", "{update}: {}", error.message());
        assert!(error.message().starts_with("could not set \"description\" in"), "{}", error.message());
    }
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("written"));
    // Of many rows, too.
    behind("by somebody else again");
    let many = "UPDATE incident SET description = 'new' WHERE number IN ('INC0012345', 'INC0010001')";
    let error = world.db.error(many).await;
    assert_eq!(error.code().code(), "42501", "{}", error.message());
}
