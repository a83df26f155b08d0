//! Refusals of the instance: text, SQLSTATE, DETAIL and HINT, and nothing changed on either side.

use servicenow_sim::{AclRule, Effect, Fault, Operation};
use tokio_postgres::error::DbError;
use world::{World, deaf_address};

use crate::{KNOWN, incidents, known, world_with};

/// How a statement fails; the known incident stays as it is on both sides.
async fn refused(world: &World, statement: &str) -> DbError {
    let row = format!("SELECT to_jsonb(i)::text FROM incident i WHERE {KNOWN}");
    let before = (world.sim.record("incident", &known(world)), world.db.value::<String>(&row).await);
    let error = world.db.error(statement).await;
    let after = (world.sim.record("incident", &known(world)), world.db.value::<String>(&row).await);
    assert!(before == after, "{statement} changed something");
    error
}

/// What an error says: SQLSTATE, message and DETAIL.
fn said(error: &DbError) -> (&str, &str, Option<&str>) {
    (error.code().code(), error.message(), error.detail())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_policy_asks_for_its_fields_by_label() {
    let world = incidents().await;
    let error = refused(&world, &format!("UPDATE incident SET state = 'Resolved' WHERE {KNOWN}")).await;
    let detail =
        "Data Policy Exception: The following fields are mandatory: Resolution code, Resolution notes";
    assert_eq!(said(&error), ("23502", "[ServiceNow] Operation Failed", Some(detail)));
    assert!(error.hint().is_some());
    world
        .db
        .run(&format!(
            "UPDATE incident SET state = 'Resolved', close_code = 'Solution provided', close_notes = 'Done.' WHERE {KNOWN}"
        ))
        .await;
    assert_eq!(world.remote("incident", &known(&world), "state").as_deref(), Some("6"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_business_rule_that_aborts_is_named() {
    let world = world_with(&["x_acme_app_thing"]).await;
    for statement in [
        "UPDATE x_acme_app_thing SET name = 'forbidden' WHERE code = 'T-0001'",
        "INSERT INTO x_acme_app_thing (name, code) VALUES ('forbidden fruit', 'F')",
    ] {
        let error = world.db.error(statement).await;
        let (code, message, detail) = said(&error);
        assert_eq!((code, message), ("38000", "[ServiceNow] Operation Failed"));
        assert!(
            detail.is_some_and(|detail| detail.contains("aborted by Business Rule 'Acme guard")),
            "{detail:?}"
        );
        assert!(error.hint().is_some());
    }
    let count = "SELECT count(*) FROM x_acme_app_thing WHERE name LIKE '%forbidden%'";
    assert_eq!(world.db.value::<i64>(count).await, 0);
    assert!(world.sim.edit().find("x_acme_app_thing", "nameLIKEforbidden").expect("a query").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_key_that_is_taken_is_a_unique_violation() {
    let world = world_with(&["x_acme_app_thing"]).await;
    for statement in [
        "INSERT INTO x_acme_app_thing (name, code) VALUES ('copy', 'T-0001')",
        "UPDATE x_acme_app_thing SET code = 'T-0001' WHERE code = 'T-0002'",
    ] {
        let error = world.db.error(statement).await;
        let detail = "Unique Key violation detected by database (Duplicate entry 'T-0001' for key 'code')";
        assert_eq!(said(&error), ("23505", "[ServiceNow] Operation Failed", Some(detail)));
    }
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM x_acme_app_thing WHERE code = 'T-0001'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sys_id_that_is_taken_is_a_unique_violation() {
    let world = incidents().await;
    let statement =
        format!("INSERT INTO incident (sys_id, short_description) VALUES ('{}', 'x')", known(&world));
    let error = refused(&world, &statement).await;
    assert_eq!(error.code().code(), "23505", "{}", error.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_the_user_has_no_right_to_is_an_insufficient_privilege() {
    let world = incidents().await;
    let operations = [Operation::Create, Operation::Write, Operation::Delete];
    for operation in operations {
        world.sim.edit().add_acl(AclRule::Table {
            table: "incident".to_owned(),
            user: Some(world::INTEGRATION.to_owned()),
            operation,
            refuse: true,
        });
    }
    for statement in [
        "INSERT INTO incident (short_description) VALUES ('x')",
        "UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'",
        "DELETE FROM incident WHERE number = 'INC0012345'",
    ] {
        let error = refused(&world, statement).await;
        let detail = "ACL Exception due to insufficient rights";
        assert_eq!(said(&error), ("42501", "[ServiceNow] Operation Failed", Some(detail)), "{statement}");
        assert!(error.hint().is_some_and(|hint| hint.contains("role")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_gone_is_not_found() {
    let world = incidents().await;
    world.stop_worker().await;
    world.sim.edit().delete("incident", &known(&world)).expect("it is there");
    for statement in [
        format!("UPDATE incident SET impact_value = 2 WHERE {KNOWN}"),
        format!("UPDATE incident SET impact_value = impact_value WHERE {KNOWN}"),
        format!("DELETE FROM incident WHERE {KNOWN}"),
    ] {
        let error = world.db.error(&statement).await;
        let detail = "Record doesn't exist or ACL restricts the record retrieval";
        assert_eq!(said(&error), ("P0002", "[ServiceNow] No Record found", Some(detail)), "{statement}");
    }
    world.db.run("SELECT servicenow.start_worker()").await;
    world.until(&format!("SELECT count(*) = 0 FROM incident WHERE {KNOWN}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_delete_says_what_refers_to_the_record() {
    let world = world_with(&["\"user\"", "x_acme_app_thing"]).await;
    world.sim.edit().grant_role(world::INTEGRATION, "user_admin").expect("the user is there");
    let error = world
        .db
        .error("DELETE FROM \"user\" WHERE sys_id = (SELECT owner_value FROM x_acme_app_thing WHERE code = 'T-0001')")
        .await;
    let detail = "Delete is restricted by a reference from 'x_acme_app_thing.owner'";
    assert_eq!(said(&error), ("38000", "[ServiceNow] Operation Failed", Some(detail)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_is_an_invalid_authorization() {
    let world = incidents().await;
    let session = world.session_of("wrong", "itil.user", "not-the-password").await;
    let statement = format!("UPDATE incident SET impact_value = 2 WHERE {KNOWN}");
    let error = session.error(&statement).await;
    let (code, message, detail) = said(&error);
    assert_eq!((code, message), ("28000", "[ServiceNow] User Not Authenticated"));
    assert_eq!(detail, Some("Required to provide Auth information"));
    assert!(error.hint().is_some_and(|hint| hint.contains("user mapping")), "{:?}", error.hint());
    let role = world.role("wrong");
    world
        .db
        .run(&format!(
            "ALTER USER MAPPING FOR {role} SERVER acme OPTIONS (SET auth 'password', ADD client_id 'fdw-client', ADD client_secret 'no')"
        ))
        .await;
    let error = session.error(&statement).await;
    assert_eq!(error.code().code(), "28000", "{}", error.message());
    assert_eq!(
        error.message(),
        "could not update record \"".to_owned()
            + &known(&world)
            + "\" of table \"incident\" on server \"acme\": login was refused"
    );
    // The session need not be opened again.
    world
        .db
        .run(&format!(
            "ALTER USER MAPPING FOR {role} SERVER acme OPTIONS (SET password 'itil-secret', SET client_secret 'fdw-client-secret')"
        ))
        .await;
    session.run(&statement).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_not_there_cannot_be_connected_to() {
    let world = incidents().await;
    world.stop_worker().await;
    let (free, _socket) = deaf_address();
    world.db.run(&format!("ALTER SERVER acme OPTIONS (SET instance_url 'http://{free}')")).await;
    let error = refused(&world, &format!("UPDATE incident SET impact_value = 2 WHERE {KNOWN}")).await;
    assert_eq!(error.code().code(), "HV00N", "{}", error.message());
    assert!(error.message().contains("on server \"acme\": could not connect: "), "{}", error.message());
    assert!(error.hint().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_that_lasts_is_an_error_at_once() {
    let world = incidents().await;
    world.stop_worker().await;
    let limited = Effect::RateLimited { headers: true, retry_after: Some(3_000), json: true };
    world.sim.fault(Fault::new(limited).method("PATCH"));
    let began = std::time::Instant::now();
    let error = refused(&world, &format!("UPDATE incident SET impact_value = 2 WHERE {KNOWN}")).await;
    assert!(began.elapsed().as_secs() < 10, "nobody waits 3,000 s for a statement");
    let detail = "Rate limit of 100 requests per hour for Table API exceeded";
    assert_eq!(said(&error), ("53400", "[ServiceNow] Rate limit exceeded", Some(detail)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_rate_limit_is_waited_for() {
    let world = incidents().await;
    let limited = Effect::RateLimited { headers: true, retry_after: Some(1), json: true };
    world.sim.fault(Fault::new(limited).method("PATCH").times(1));
    world.db.run(&format!("UPDATE incident SET impact_value = 2 WHERE {KNOWN}")).await;
    assert_eq!(world.remote("incident", &known(&world), "impact").as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_sent_before_a_refusal_arrive_by_polling() {
    let world = world_with(&["x_acme_app_thing"]).await;
    let error = world
        .db
        .error("INSERT INTO x_acme_app_thing (name, code) VALUES ('first', 'N-1'), ('forbidden', 'N-2'), ('third', 'N-3')")
        .await;
    assert_eq!(error.code().code(), "38000");
    world.until_like_the_instance("x_acme_app_thing", &["name", "code"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_to_a_table_the_instance_does_not_have_says_so() {
    let world = incidents().await;
    world.db.run("CREATE FOREIGN TABLE nothing (sys_id text, name text) SERVER acme").await;
    let error = world.db.error("INSERT INTO nothing (name) VALUES ('x')").await;
    assert_eq!(said(&error), ("HV00R", "[ServiceNow] Invalid table nothing", None));
}

/// Where only administrators may choose keys the instance makes others, and reports success.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_instance_does_not_take_is_said_and_leaves_no_row_behind() {
    let world = incidents().await;
    let property = "glide.rest.table_api.admin_only_sys_fields";
    world.sim.edit().set_property(property, "true").expect("a property");
    let chosen = "0123456789abcdef0123456789abcdef";
    for rows in ["('chosen')", "('chosen'), ('chosen too')"] {
        let keys = rows.replace("('chosen')", &format!("('{chosen}', 'chosen')"));
        let keys = keys.replace("('chosen too')", "('00112233445566778899aabbccddeeff', 'chosen too')");
        let error =
            world.db.error(&format!("INSERT INTO incident (sys_id, short_description) VALUES {keys}")).await;
        assert_eq!(error.code().code(), "42501", "{}", error.message());
        assert!(error.message().contains("could not set \"sys_id\""), "{}", error.message());
        assert!(error.detail().is_some_and(|detail| detail.contains("has made record")));
    }
    // Whoever does not choose does not mind, however it is sent.
    for push in ["statement", "commit"] {
        world
            .db
            .run(&format!(
                "SET servicenow_fdw.push = '{push}';
                 INSERT INTO incident (short_description) VALUES ('{push}')"
            ))
            .await;
        world
            .db
            .run(&format!(
                "INSERT INTO incident (short_description) SELECT '{push} many' FROM generate_series(1, 3)"
            ))
            .await;
        let count = format!("SELECT count(*) FROM incident WHERE short_description LIKE '{push}%'");
        assert_eq!(world.db.value::<i64>(&count).await, 4, "{push}");
    }
    world.until_like_the_instance("incident", &["number", "short_description"]).await;
}

/// A DBA may have ideas of their own about a cache.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_cache_refuses_by_an_index_or_a_trigger_of_the_dba_ends_the_statement() {
    let world = incidents().await;
    world.stop_worker().await;
    world.db.run("SET statement_timeout = '30 s'").await;
    let taken: String = world.db.value("SELECT min(sys_id) FROM incident").await;
    for (change, code) in [
        ("CREATE UNIQUE INDEX only_one ON servicenow_cache.incident (description)", "23505"),
        (
            "CREATE UNIQUE INDEX only_one ON servicenow_cache.incident (description, sys_id);
             ALTER TABLE servicenow_cache.incident ALTER description SET NOT NULL;
             ALTER TABLE servicenow_cache.incident REPLICA IDENTITY USING INDEX only_one",
            "23502",
        ),
        (
            "ALTER TABLE servicenow_cache.incident ADD CONSTRAINT one EXCLUDE (description WITH =)",
            "23P01",
        ),
        (
            "CREATE FUNCTION other_key() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN NEW.sys_id := current_setting('test.key'); RETURN NEW; END $$;
             CREATE TRIGGER other_key BEFORE INSERT ON servicenow_cache.incident FOR EACH ROW EXECUTE FUNCTION other_key()",
            "23505",
        ),
    ] {
        for push in ["statement", "commit"] {
            world
                .db
                .run(&format!(
                    "BEGIN; UPDATE servicenow_cache.incident SET description = sys_id; SET LOCAL test.key = '{taken}';
                     {change}; SET LOCAL servicenow_fdw.push = '{push}'"
                ))
                .await;
            let description = if code == "23502" { "NULL".to_owned() } else { format!("'{taken}'") };
            let insert = format!("INSERT INTO incident (description) VALUES ({description})");
            let error = world.db.error(&insert).await;
            assert_eq!(error.code().code(), code, "{change} {push}: {}", error.message());
            world.db.run("ROLLBACK").await;
        }
    }
}
