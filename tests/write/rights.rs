//! Who may write, and as whom the instance sees it.

use servicenow_sim::AclRule;
use world::World;

use crate::{KNOWN, incidents, known};

fn written_by(world: &World) -> String {
    world.remote("incident", &known(world), "sys_updated_by").expect("it is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_made_as_the_user_of_the_roles_own_mapping() {
    let world = incidents().await;
    let ivy = world.session_of("ivy", "itil.user", "itil-secret").await;
    let paul = world.session_of("paul", "pacific.user", "pacific-secret").await;
    for (session, user) in [(&ivy, "itil.user"), (&paul, "pacific.user"), (&ivy, "itil.user")] {
        session.run(&format!("UPDATE incident SET reopen_count = reopen_count + 1 WHERE {KNOWN}")).await;
        assert_eq!(written_by(&world), user);
    }
    world.db.run(&format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}")).await;
    assert_eq!(written_by(&world), world::INTEGRATION, "without one of its own a role has PUBLIC's");
    let role = world.role("ivy");
    world
        .db
        .run(&format!("SET ROLE {role}; UPDATE incident SET impact_value = 2 WHERE {KNOWN}; RESET ROLE"))
        .await;
    assert_eq!(written_by(&world), "itil.user");
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_on_the_foreign_table_are_checked_before_any_call() {
    let world = incidents().await;
    let nobody = world.session_as("nobody").await;
    let role = world.role("nobody");
    for statement in [
        "INSERT INTO incident (short_description) VALUES ('x')",
        "UPDATE incident SET impact_value = 2",
        "DELETE FROM incident",
        "COPY incident (short_description) FROM STDIN",
    ] {
        let error = nobody.error(statement).await;
        assert_eq!(error.code().code(), "42501", "{statement}: {}", error.message());
        assert!(error.message().contains("permission denied"), "{}", error.message());
    }
    world.db.run(&format!("GRANT SELECT, UPDATE (short_description) ON incident TO {role}")).await;
    nobody.run(&format!("UPDATE incident SET short_description = 'allowed' WHERE {KNOWN}")).await;
    let error = nobody.error(&format!("UPDATE incident SET impact_value = 2 WHERE {KNOWN}")).await;
    assert_eq!(error.code().code(), "42501");
    let error = nobody.error(&format!("DELETE FROM incident WHERE {KNOWN}")).await;
    assert_eq!(error.code().code(), "42501");
    assert_eq!(world.writes().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caches_can_be_written_by_nobody_else() {
    let world = incidents().await;
    let session = world.session_of("ivy", "itil.user", "itil-secret").await;
    for statement in [
        "DELETE FROM servicenow_cache.incident",
        "SELECT * FROM servicenow_cache.incident",
        "UPDATE servicenow.sync_table SET phase = 'pending'",
    ] {
        assert_eq!(session.error(statement).await.code().code(), "42501", "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_a_view_is_made_as_the_views_owner() {
    let world = incidents().await;
    let _owner = world.session_of("owner", "itil.user", "itil-secret").await;
    let user = world.session_of("paul", "pacific.user", "pacific-secret").await;
    let (owner, role) = (world.role("owner"), world.role("paul"));
    world
        .db
        .run(&format!(
            "REVOKE ALL ON incident FROM {role};
             CREATE VIEW mine AS SELECT * FROM incident; ALTER VIEW mine OWNER TO {owner};
             CREATE VIEW theirs WITH (security_invoker) AS SELECT * FROM incident; ALTER VIEW theirs OWNER TO {owner};
             GRANT SELECT, UPDATE ON mine, theirs TO {role}"
        ))
        .await;
    user.run(&format!("UPDATE mine SET impact_value = 3 WHERE {KNOWN}")).await;
    assert_eq!(written_by(&world), "itil.user");
    let error = user.error(&format!("UPDATE theirs SET impact_value = 2 WHERE {KNOWN}")).await;
    assert_eq!(error.code().code(), "42501", "{}", error.message());
    world.db.run(&format!("GRANT SELECT, UPDATE ON incident TO {role}")).await;
    user.run(&format!("UPDATE theirs SET impact_value = 2 WHERE {KNOWN}")).await;
    assert_eq!(written_by(&world), "pacific.user");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_in_a_security_definer_function_is_made_as_its_owner() {
    let world = incidents().await;
    let _owner = world.session_of("owner", "itil.user", "itil-secret").await;
    let user = world.session_as("caller").await;
    let owner = world.role("owner");
    world
        .db
        .run(&format!(
            "CREATE FUNCTION escalate() RETURNS void LANGUAGE sql SECURITY DEFINER AS
               $$ UPDATE incident SET impact_value = 3 WHERE {KNOWN} $$;
             ALTER FUNCTION escalate() OWNER TO {owner}"
        ))
        .await;
    user.run("SELECT escalate()").await;
    assert_eq!(written_by(&world), "itil.user");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_a_mapping_is_told_so() {
    let world = World::new().await;
    world.db.run("ALTER SERVER acme OPTIONS (ADD sync_user 'postgres')").await;
    world
        .db
        .run(
            "DROP USER MAPPING FOR PUBLIC SERVER acme;
             CREATE USER MAPPING FOR postgres SERVER acme
               OPTIONS (auth 'client_credentials', client_id 'fdw-client', client_secret 'fdw-client-secret')",
        )
        .await;
    world.import(&["incident"]).await;
    let session = world.session_as("stranger").await;
    world.db.run(&format!("GRANT SELECT, UPDATE ON incident TO {}", world.role("stranger"))).await;
    assert!(session.value::<i64>("SELECT count(*) FROM incident").await > 10, "reading needs none");
    let error = session.error(&format!("UPDATE incident SET impact_value = 2 WHERE {KNOWN}")).await;
    assert!(error.message().contains("user mapping not found"), "{}", error.message());
}

/// Only setting the option needs a superuser, not living with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_role_writes_to_a_server_that_allows_http() {
    let world = World::with(servicenow_sim::Dataset::Small, ", allow_http 'true'").await;
    world.import(&["incident"]).await;
    let ivy = world.session_of("ivy", "itil.user", "itil-secret").await;
    ivy.run(&format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}")).await;
    assert_eq!(written_by(&world), "itil.user");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_is_answered_although_the_user_may_not_see_the_record() {
    let world = incidents().await;
    let ess = world.session_of("ess", "ess.user", "ess-secret").await;
    let rows = ess
        .rows("INSERT INTO incident (short_description) VALUES ('from ess') RETURNING number, opened_by")
        .await;
    assert!(rows[0].get::<_, &str>(0).starts_with("INC"));
    assert_eq!(rows[0].get::<_, &str>(1), "Ess Requester");
}

/// The answer to a write shows what its user may see; the cache shows what the worker's may.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_by_a_user_who_sees_less_leaves_the_cache_whole() {
    let world = incidents().await;
    let ivy = world.session_of("ivy", "itil.user", "itil-secret").await;
    world.sim.edit().add_acl(AclRule::FieldRead {
        table: "incident".to_owned(),
        field: "description".to_owned(),
        user: Some("itil.user".to_owned()),
    });
    ivy.run(&format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}")).await;
    world.until_like_the_instance("incident", &["impact_value=impact", "description"]).await;
    let id: String = ivy
        .value(
            "INSERT INTO incident (short_description, description) VALUES ('x', 'hidden') RETURNING sys_id",
        )
        .await;
    world.until(&format!("SELECT description = 'hidden' FROM incident WHERE sys_id = '{id}'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_by_a_user_of_another_language_leaves_the_labels_as_they_are() {
    let world = incidents().await;
    let greta = world.session_of("greta", "german.user", "german-secret").await;
    greta.run(&format!("UPDATE incident SET state = 'On Hold' WHERE {KNOWN}")).await;
    assert_eq!(world.remote("incident", &known(&world), "state").as_deref(), Some("3"));
    world
        .until(&format!("SELECT state = 'On Hold' AND category = 'Hardware' FROM incident WHERE {KNOWN}"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_the_worker_may_not_see_does_not_stay_in_the_cache() {
    let world = incidents().await;
    world.sim.edit().add_acl(AclRule::Rows {
        table: "incident".to_owned(),
        user: Some(world::INTEGRATION.to_owned()),
        query: "short_description!=secret".to_owned(),
    });
    let ivy = world.session_of("ivy", "itil.user", "itil-secret").await;
    ivy.run("INSERT INTO incident (short_description) VALUES ('secret')").await;
    ivy.run(&format!("UPDATE incident SET short_description = 'secret' WHERE {KNOWN}")).await;
    world.until("SELECT count(*) = 0 FROM incident WHERE short_description = 'secret'").await;
}
