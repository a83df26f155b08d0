//! `check_server()`: every way in which a server may not work is told, with what to do.

use std::time::{Duration, Instant};

use servicenow_sim::{AclRule, Availability, Dataset, Effect, Fault, Operation, Simulator};
use world::{INTEGRATION, World, deaf_address};

use crate::INCIDENT;

struct Finding {
    check: String,
    ok: bool,
    detail: String,
    hint: Option<String>,
}

async fn findings(world: &World) -> Vec<Finding> {
    let rows = world.db.rows("SELECT \"check\", ok, detail, hint FROM servicenow.check_server('acme')").await;
    let finding = |row: &tokio_postgres::Row| Finding {
        check: row.get(0),
        ok: row.get(1),
        detail: row.get(2),
        hint: row.get(3),
    };
    rows.iter().map(finding).collect()
}

/// The one check that fails, with detail and hint.
async fn wrong(world: &World) -> (String, String, String) {
    let all = findings(world).await;
    let failing: Vec<&Finding> = all.iter().filter(|finding| !finding.ok).collect();
    let names: Vec<String> = all.iter().map(|f| format!("{} {}: {}", f.check, f.ok, f.detail)).collect();
    assert_eq!(failing.len(), 1, "{names:#?}");
    let Finding { check, detail, hint, .. } = failing[0];
    let hint = hint.clone().expect("what is wrong has a hint");
    assert!(hint.ends_with('.') && hint.len() > 20, "{hint}");
    (check.clone(), detail.clone(), hint)
}

/// As [`wrong`]: asserts which check it is, and that detail and hint say something.
async fn fails(world: &World, check: &str, detail: &str, hint: &str) {
    let (found, says, advises) = wrong(world).await;
    assert_eq!(found, check, "{says}");
    assert!(says.contains(detail), "{says}");
    assert!(advises.contains(hint), "{advises}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_works_passes_every_check_in_little_time() {
    let world = World::with(Dataset::Small, ", max_calls_per_hour '100000'").await;
    world.import(&["incident", "problem", "change_request", "service_catalog", "\"user\""]).await;
    world.sim.set(|s| s.latency_ms = 150);
    let began = Instant::now();
    let all = findings(&world).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let names: Vec<&str> = all.iter().map(|finding| finding.check.as_str()).collect();
    assert_eq!(
        names,
        [
            "user mapping",
            "reachability",
            "TLS",
            "login",
            "clock",
            "rate limits",
            "roles",
            "dictionary",
            "deletions",
            "table change_request",
            "table incident",
            "table problem",
            "table sc_catalog",
            "table sys_user"
        ]
    );
    for finding in &all {
        assert!(finding.ok && finding.hint.is_none(), "{}: {}", finding.check, finding.detail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_user_may_not_do_is_told_table_by_table() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.stop_worker().await;
    let me = || Some(INTEGRATION.to_owned());
    let table = |table: &str, refuse| AclRule::Table {
        table: table.to_owned(),
        user: me(),
        operation: Operation::Read,
        refuse,
    };
    let (incident, number) = (|| "incident".to_owned(), || "number".to_owned());
    let rows = AclRule::Rows { table: incident(), user: me(), query: "number=none".to_owned() };
    let field = AclRule::FieldRead { table: incident(), field: number(), user: me() };
    let order = AclRule::QueryRange { table: incident(), field: "sys_updated_on".to_owned(), user: me() };
    for (rule, check, detail, hint) in [
        (
            table("incident", false),
            "table incident",
            "50 records, and the first ones are hidden",
            "Give the user a role",
        ),
        (table("incident", true), "table incident", "[ServiceNow] ", "Give the user a role"),
        (rows, "table incident", "the first ones are hidden", "Give the user a role"),
        (
            field,
            "table incident",
            "fields are hidden or gone: number",
            "Give the user read access to these fields",
        ),
        (order, "query access to table incident", "[ServiceNow] ", "query access"),
        (
            table("sys_dictionary", true),
            "dictionary",
            "[ServiceNow] ",
            "Give the user read access to sys_db_object",
        ),
        (
            table("sys_dictionary", false),
            "dictionary",
            "are hidden",
            "Give the user read access to sys_db_object",
        ),
        (table("sys_audit_delete", true), "deletions", "[ServiceNow] ", "read access to sys_audit_delete"),
    ] {
        world.sim.edit().add_acl(rule);
        fails(&world, check, detail, hint).await;
        world.sim.edit().clear_acls();
    }
    let nothing = findings(&world).await.into_iter().find(|finding| !finding.ok);
    assert!(nothing.is_none(), "it works again");
    world.db.run("CREATE FOREIGN TABLE none (sys_id text) SERVER acme OPTIONS (table 'no_such_table')").await;
    fails(&world, "table no_such_table", "[ServiceNow] Invalid table", "Check the table's name").await;
    world.db.run("DROP FOREIGN TABLE none; ALTER TABLE servicenow_cache.incident DROP COLUMN number").await;
    let hint = "SELECT servicenow.resync('public.incident')";
    fails(&world, "cache of public.incident", "does not have its column \"number\"", hint).await;
    world.db.run(hint).await;
    assert!(findings(&world).await.iter().all(|finding| finding.ok), "the hint helps");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_used_is_told_with_the_reason() {
    let world = World::new().await;
    world.stop_worker().await;
    let set = |options: &str| format!("ALTER SERVER acme OPTIONS ({options})");
    let fault =
        world.sim.fault(Fault::new(Effect::RateLimited { headers: true, retry_after: Some(60), json: true }));
    fails(
        &world,
        "rate limits",
        "[ServiceNow] Rate limit exceeded",
        "have the rate limit rule for this user raised",
    )
    .await;
    world.sim.remove_fault(fault);
    for (availability, detail) in
        [(Availability::Down, "503"), (Availability::Unreachable, ""), (Availability::Hibernating, "")]
    {
        world.sim.set(|s| s.availability = availability);
        fails(&world, "reachability", detail, "").await;
    }
    world.sim.set(|s| s.availability = Availability::Up);
    world.sim.clock().step(chrono::TimeDelta::hours(1));
    fails(&world, "clock", "s ahead", "Synchronize the clock of this host").await;
    world.sim.clock().step(chrono::TimeDelta::hours(-1));
    world.sim.edit().set_client_secret("fdw-client", "another").expect("a client");
    fails(&world, "login", "login was refused", "Check the user mapping's credentials").await;
    for (mapping, detail, hint) in [
        (
            "auth 'basic', username 'readonly.user', password 'wrong'",
            "[ServiceNow] ",
            "that the user is active",
        ),
        (
            "auth 'authorization_code', client_id 'fdw-client', client_secret 'fdw-client-secret'",
            "nobody has logged in yet",
            "SELECT servicenow.authorize_url('acme')",
        ),
        (
            "auth 'client_credentials', client_id 'fdw-client', client_secret_file '/nowhere'",
            "could not read file",
            "files they name",
        ),
    ] {
        world.db.run(&format!("CREATE USER MAPPING FOR postgres SERVER acme OPTIONS ({mapping})")).await;
        fails(&world, "login", detail, hint).await;
        let is_called = findings(&world).await.iter().any(|finding| finding.check == "reachability");
        assert_eq!(
            is_called,
            detail == "[ServiceNow] ",
            "{detail}: nothing is said of what nobody has tried"
        );
        world.db.run("DROP USER MAPPING FOR postgres SERVER acme").await;
    }
    // A certificate nobody vouches for, and one that is.
    let other =
        Simulator::builder().dataset(Dataset::Small).seed(42).tls(true).start().await.expect("a simulator");
    let url = other.https_url().expect("it listens for https");
    world.db.run(&set(&format!("SET instance_url '{url}'"))).await;
    fails(&world, "TLS", "certificate", "in server option \"ca_file\"").await;
    let authority = std::env::temp_dir().join(format!("snfdw-{}-doctor-ca.pem", std::process::id()));
    std::fs::write(&authority, other.ca_pem().expect("it has an authority")).expect("a file");
    world.db.run(&set(&format!("ADD ca_file '{}'", authority.display()))).await;
    let all = findings(&world).await;
    let _gone = std::fs::remove_file(&authority);
    assert!(
        all.iter().any(|finding| finding.check == "TLS" && finding.ok && finding.detail.contains("trusted"))
    );
    world.db.run(&set("SET ca_file '/nowhere'")).await;
    fails(&world, "options", "could not use \"/nowhere\"", "files they name").await;
    world.db.run(&set("DROP ca_file")).await;
    let (nobody, _socket) = deaf_address();
    world.db.run(&set(&format!("SET instance_url 'http://{nobody}'"))).await;
    fails(&world, "reachability", "could not connect", "Check that the instance is up").await;
    world.db.run(&set("ADD sync_user 'nobody_at_all'")).await;
    fails(&world, "user mapping", "does not exist", "Name a role").await;
    // An owner who is no superuser.
    let _session = world.session_as("tenant").await;
    let role = world.role("tenant");
    world
        .db
        .run(&format!(
            "GRANT USAGE ON FOREIGN DATA WRAPPER servicenow_fdw TO {role}; ALTER SERVER acme OWNER TO {role};
             {}",
            set("SET sync_user 'postgres'")
        ))
        .await;
    fails(&world, "user mapping", "does not have the privileges", "granted to the server's owner").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_held_back_is_told() {
    let world = World::with(Dataset::Small, ", max_calls_per_hour '200'").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let fault = world.sim.fault(
        Fault::new(Effect::RateLimited { headers: true, retry_after: Some(20), json: true })
            .table("incident")
            .times(1),
    );
    world.until("SELECT held_until > clock_timestamp() FROM servicenow.sync_status").await;
    world.sim.remove_fault(fault);
    fails(&world, "rate limits", "to make no call for", "sys_rate_limit_rules").await;
    world.stop_worker().await;
    world.db.run("UPDATE servicenow.sync_server SET held_until = NULL, calls_left = 20").await;
    fails(
        &world,
        "rate limits",
        "20 of 200 calls an hour are left",
        "Raise the server option max_calls_per_hour",
    )
    .await;
}
