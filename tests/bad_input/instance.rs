//! What only the instance knows to be wrong: said in `sync_status`, while the other tables go on, and over as soon
//! as it is put right.

use servicenow_sim::{AclRule, Availability, Dataset, Effect, Fault, Operation, Simulator};
use world::{World, deaf_address};

use crate::{GOOD, follows, last_error, recovers};

const IMPORT: &str = "IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO public";
const INCIDENT: &str =
    "CREATE FOREIGN TABLE incident (sys_id text, number text, short_description text) SERVER acme";

/// A world with a good table, which is filled.
async fn with_good() -> World {
    let world = World::new().await;
    world.db.run(GOOD).await;
    world.sync("good").await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_and_a_corrected_one_needs_nothing_else() {
    let world = World::new().await;
    world.db.run("ALTER USER MAPPING FOR PUBLIC SERVER acme OPTIONS (SET client_secret 'wrong')").await;
    let error = world.db.error(IMPORT).await;
    assert_eq!(error.code().code(), "28000", "{}", error.message());
    assert_eq!(error.message(), "could not read the dictionary on server \"acme\": login was refused");
    assert!(error.hint().is_some());
    world.db.run(INCIDENT).await;
    let said = last_error(&world, "incident").await;
    assert_eq!(said, "could not synchronize table \"incident\" on server \"acme\": login was refused");
    let error = world.db.error("SELECT servicenow.wait_for_sync('incident', '500 ms')").await;
    assert_eq!(error.code().code(), "55000");
    assert!(
        error.detail().is_some_and(|detail| detail.contains("login was refused")),
        "{:?}",
        error.detail()
    );
    world
        .db
        .run("ALTER USER MAPPING FOR PUBLIC SERVER acme OPTIONS (SET client_secret 'fdw-client-secret')")
        .await;
    recovers(&world, "incident").await;
    world.db.run("DROP FOREIGN TABLE incident").await;
    world.db.run(IMPORT).await;
}

/// A refused login is not repeated until the account is locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_not_tried_over_and_over() {
    let world = World::new().await;
    world.db.run("ALTER USER MAPPING FOR PUBLIC SERVER acme OPTIONS (SET client_secret 'wrong')").await;
    for n in 0..6 {
        world
            .db
            .run(&format!(
                "CREATE FOREIGN TABLE t{n} (sys_id text) SERVER acme OPTIONS (\"table\" 'incident')"
            ))
            .await;
        last_error(&world, &format!("t{n}")).await;
        let error = world.db.error(IMPORT).await;
        assert_eq!(error.code().code(), "28000", "{}", error.message());
    }
    let logins = world.sim.requests().into_iter().filter(|r| r.endpoint == "oauth_token").count();
    // One by the worker and one by the session; a refused one in flight may have company.
    assert!(logins <= 4, "{logins} logins");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_mapping_made_late_is_noticed() {
    let world = World::new().await;
    world.db.run("DROP USER MAPPING FOR PUBLIC SERVER acme").await;
    let error = world.db.error(IMPORT).await;
    assert!(error.message().starts_with("user mapping not found"), "{}", error.message());
    world.db.run(INCIDENT).await;
    assert!(last_error(&world, "incident").await.starts_with("user mapping not found"));
    world
        .db
        .run(
            "CREATE USER MAPPING FOR PUBLIC SERVER acme
             OPTIONS (auth 'password', client_id 'fdw-client', client_secret 'fdw-client-secret', username 'fdw.integration', password 'fdw-secret')",
        )
        .await;
    recovers(&world, "incident").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_user_that_does_not_exist_is_said() {
    let world = with_good().await;
    let role = world.role("later");
    world.db.run(&format!("ALTER SERVER acme OPTIONS (ADD sync_user '{role}')")).await;
    let said = last_error(&world, "good").await;
    assert_eq!(said, format!("role \"{role}\" of server option \"sync_user\" does not exist"));
    world
        .db
        .run(&format!(
            "CREATE ROLE {role}; CREATE USER MAPPING FOR {role} SERVER acme OPTIONS (auth 'basic', username 'admin', password 'admin')"
        ))
        .await;
    recovers(&world, "good").await;
    let by_admin = |r: &servicenow_sim::LoggedRequest| r.user.as_deref() == Some("admin");
    assert!(world.sim.requests().iter().any(by_admin));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_the_instance_does_not_have_leaves_the_others_alone() {
    let world = with_good().await;
    world
        .db
        .run("CREATE FOREIGN TABLE nothing (sys_id text) SERVER acme OPTIONS (\"table\" 'no_such_table')")
        .await;
    assert_eq!(last_error(&world, "nothing").await, "[ServiceNow] Invalid table no_such_table");
    follows(&world, "good", "problem").await;
    world.db.run("ALTER FOREIGN TABLE nothing OPTIONS (SET \"table\" 'incident')").await;
    recovers(&world, "nothing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_the_table_does_not_have_leaves_the_others_alone() {
    let world = with_good().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.db.run("ALTER FOREIGN TABLE incident ADD COLUMN colour text").await;
    let said = last_error(&world, "incident").await;
    assert_eq!(said, "table \"incident\" on server \"acme\" has no field \"colour\"");
    follows(&world, "good", "problem").await;
    assert!(
        world.db.value::<i64>("SELECT count(number) FROM incident").await > 10,
        "what is there stays readable"
    );
    world.db.run("ALTER FOREIGN TABLE incident ALTER colour OPTIONS (ADD field 'priority')").await;
    recovers(&world, "incident").await;
    assert!(world.db.value::<i64>("SELECT count(colour) FROM incident").await > 10);
    world.db.run("ALTER FOREIGN TABLE incident ADD COLUMN taste text").await;
    last_error(&world, "incident").await;
    world.db.run("ALTER FOREIGN TABLE incident DROP COLUMN taste").await;
    recovers(&world, "incident").await;
}

/// The instance would drop the condition without a word and show every record.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_on_a_field_the_table_does_not_have_mirrors_nothing() {
    let world = with_good().await;
    for (name, field, table, missing) in [
        ("plain", "colour", "incident", "colour"),
        ("walk", "caller_id.colour", "sys_user", "colour"),
        ("stroll", "number.name", "incident", "number.name"),
    ] {
        world
            .db
            .run(&format!(
                "CREATE FOREIGN TABLE {name} (sys_id text, state text) SERVER acme
                 OPTIONS (\"table\" 'incident', query '{field}=red')"
            ))
            .await;
        let said = last_error(&world, name).await;
        assert_eq!(said, format!("table \"{table}\" on server \"acme\" has no field \"{missing}\""));
        assert_eq!(world.db.value::<i64>(&format!("SELECT count(*) FROM {name}")).await, 0);
    }
    follows(&world, "good", "problem").await;
    world.db.run("ALTER FOREIGN TABLE plain OPTIONS (SET query 'state=2')").await;
    recovers(&world, "plain").await;
    assert!(world.db.value::<bool>("SELECT bool_and(state = '2') FROM plain").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dot_walk_to_nowhere_mirrors_nothing() {
    let world = with_good().await;
    for (name, field) in [("walk", "caller_id.colour"), ("stroll", "number.name")] {
        world
            .db
            .run(&format!(
                "CREATE FOREIGN TABLE {name} (sys_id text, x text OPTIONS (field '{field}')) SERVER acme OPTIONS (\"table\" 'incident')"
            ))
            .await;
        let said = last_error(&world, name).await;
        assert!(said.contains("has no field"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_the_user_may_not_read_leaves_the_others_alone() {
    let world = with_good().await;
    world.sim.edit().add_acl(AclRule::Table {
        table: "incident".to_owned(),
        user: Some(world::INTEGRATION.to_owned()),
        operation: Operation::Read,
        refuse: true,
    });
    world.db.run(INCIDENT).await;
    let said = last_error(&world, "incident").await;
    assert!(said.starts_with("[ServiceNow] "), "{said}");
    follows(&world, "good", "problem").await;
    world.sim.edit().clear_acls();
    world.db.run("SELECT servicenow.sync('incident')").await;
    recovers(&world, "incident").await;
}

/// An instance hides a table from those without rights by answering with no rows, and counting them all the same.
#[tokio::test(flavor = "multi_thread")]
async fn rows_the_user_may_not_see_are_counted_as_hidden() {
    let world = World::new().await;
    world
        .db
        .run("ALTER USER MAPPING FOR PUBLIC SERVER acme OPTIONS (SET auth 'basic', ADD username 'ess.user', ADD password 'ess-secret', DROP client_id, DROP client_secret)")
        .await;
    world.import(&["incident"]).await;
    let shown = world.sim.truth("incident", "ess.user").expect("a table").len() as i64;
    let all = world.sim.truth("incident", "admin").expect("a table").len() as i64;
    assert!(0 < shown && shown < all);
    let status = "SELECT ARRAY[rows, rows_hidden, rows_total] FROM servicenow.sync_status WHERE foreign_table = 'incident'::regclass";
    assert_eq!(world.db.value::<Vec<i64>>(status).await, [shown, all - shown, all]);
    let percent =
        "SELECT percent::int FROM servicenow.sync_status WHERE foreign_table = 'incident'::regclass";
    assert_eq!(world.db.value::<i32>(percent).await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_the_value_does_not_fit_is_named_and_leaves_the_others_alone() {
    let world = with_good().await;
    let mut unclear = Vec::new();
    world.db.run("CREATE TYPE mood AS ENUM ('happy', 'sad')").await;
    for type_ in [
        "integer",
        "boolean",
        "date",
        "timestamptz",
        "interval",
        "numeric",
        "float8",
        "mood",
        "varchar(3)",
        "uuid",
        "jsonb",
    ] {
        world
            .db
            .run(&format!(
                "CREATE FOREIGN TABLE misfit (sys_id text, short_description {type_}) SERVER acme OPTIONS (\"table\" 'incident')"
            ))
            .await;
        let said = last_error(&world, "misfit").await;
        if !said.contains("short_description") {
            unclear.push((type_, said));
        }
        assert_eq!(world.db.value::<i64>("SELECT count(*) FROM misfit").await, 0);
        world.db.run("ALTER FOREIGN TABLE misfit ALTER short_description TYPE text").await;
        recovers(&world, "misfit").await;
        world.db.run("DROP FOREIGN TABLE misfit").await;
    }
    follows(&world, "good", "problem").await;
    assert!(unclear.is_empty(), "the column is not named: {unclear:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_does_not_fit_any_more_leaves_the_others_alone() {
    let world = with_good().await;
    world.db.run("CREATE FOREIGN TABLE few (sys_id text, count smallint OPTIONS (field 'reopen_count')) SERVER acme OPTIONS (\"table\" 'incident')").await;
    world.sync("few").await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("reopen_count", "70000")]).expect("it is there");
    let said = last_error(&world, "few").await;
    assert!(said.contains("\"count\"") && said.contains(&id), "{said}");
    follows(&world, "good", "problem").await;
    world.db.run("ALTER FOREIGN TABLE few ALTER count TYPE bigint").await;
    recovers(&world, "few").await;
    world.until(&format!("SELECT count = 70000 FROM few WHERE sys_id = '{id}'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_answers_with_a_web_page_is_unreadable_and_comes_back() {
    let world = with_good().await;
    for (effect, what) in [
        (Effect::LoginPage, "the answer is a login page"),
        (Effect::Hibernating, "the instance is hibernating"),
        (Effect::NullBody, "the answer is null"),
        (Effect::EmptyBody, "the answer is empty"),
    ] {
        let fault = world.sim.fault(Fault::new(effect).path("/api/now/"));
        let error = world.db.error(IMPORT).await;
        assert_eq!(error.code().code(), "HV00M", "{what}: {}", error.message());
        assert!(
            error.message().ends_with(&format!("could not read the answer: {what}")),
            "{}",
            error.message()
        );
        assert!(error.hint().is_some());
        let said = last_error(&world, "good").await;
        assert!(said.ends_with(what), "{said}");
        world.sim.remove_fault(fault);
        world.db.run("SELECT servicenow.sync('good')").await;
        recovers(&world, "good").await;
    }
    follows(&world, "good", "problem").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_answers_with_a_web_page_is_unreadable() {
    let world = World::new().await;
    world.sim.set(|s| s.availability = Availability::Hibernating);
    let error = world.db.error(IMPORT).await;
    assert_eq!(error.code().code(), "HV00M", "{}", error.message());
    world.db.run(INCIDENT).await;
    last_error(&world, "incident").await;
    world.sim.set(|s| s.availability = Availability::Up);
    world.db.run("SELECT servicenow.wait_for_sync('incident', '50 s')").await;
    recovers(&world, "incident").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_down_is_said_and_comes_back() {
    let world = with_good().await;
    world.sim.set(|s| s.availability = Availability::Down);
    let error = world.db.error(IMPORT).await;
    assert_eq!(error.code().code(), "08006", "{}", error.message());
    assert!(error.message().ends_with("instance answered with status 503"), "{}", error.message());
    assert!(last_error(&world, "good").await.ends_with("instance answered with status 503"));
    world.sim.set(|s| s.availability = Availability::Unreachable);
    let error = world.db.error(IMPORT).await;
    assert_eq!(error.code().code(), "08006", "{}", error.message());
    world.sim.set(|s| s.availability = Availability::Up);
    world.db.run("SELECT servicenow.sync('good')").await;
    recovers(&world, "good").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_which_no_host_listens_cannot_be_connected_to() {
    let world = World::new().await;
    let (free, _socket) = deaf_address();
    world.db.run(&format!("ALTER SERVER acme OPTIONS (SET instance_url 'http://{free}')")).await;
    let error = world.db.error(IMPORT).await;
    assert_eq!(error.code().code(), "HV00N", "{}", error.message());
    world.db.run("ALTER SERVER acme OPTIONS (SET instance_url 'https://no.such.host.invalid')").await;
    let error = world.db.error(IMPORT).await;
    assert_eq!(error.code().code(), "HV00N", "{}", error.message());
    world.db.run(&format!("ALTER SERVER acme OPTIONS (SET instance_url '{}')", world.sim.url())).await;
    world.db.run(IMPORT).await;
    recovers(&world, "incident").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_nobody_vouches_for_is_refused_until_its_authority_is_named() {
    let world = World::new().await;
    let sim = Simulator::builder().tls(true).start().await.expect("a simulator");
    let address = sim.https_url().expect("it listens for https");
    world.db.run(&format!("ALTER SERVER acme OPTIONS (SET instance_url '{address}')")).await;
    let error = world.db.error(IMPORT).await;
    assert_eq!(error.code().code(), "HV00N", "{}", error.message());
    assert!(error.message().to_lowercase().contains("certificate"), "{}", error.message());
    world.db.run("ALTER SERVER acme OPTIONS (ADD ca_file '/no/such/file')").await;
    let error = world.db.error(IMPORT).await;
    assert_eq!(error.code().code(), "22023", "{}", error.message());
    assert!(error.message().contains("/no/such/file"), "{}", error.message());
    let file = world.cluster.socket().join(format!("{}.pem", world.database));
    std::fs::write(&file, sim.ca_pem().expect("it has an authority")).expect("a file");
    world.db.run(&format!("ALTER SERVER acme OPTIONS (SET ca_file '{}')", file.display())).await;
    world.db.run(IMPORT).await;
    recovers(&world, "incident").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instances_rows_take_the_place_of_the_first_ones() {
    let world = with_good().await;
    world.import(&["incident"]).await;
    let other = Simulator::builder().dataset(Dataset::Small).seed(7).start().await.expect("a simulator");
    other.edit().delete_where("incident", "numberSTARTSWITHINC001000").expect("a query");
    let only_there =
        other.edit().insert("incident", &[("short_description", "only there")]).expect("a record");
    other
        .edit()
        .update_where("incident", "number=INC0012345", &[("short_description", "another one")])
        .expect("a query");
    world.db.run(&format!("ALTER SERVER acme OPTIONS (SET instance_url '{}')", other.url())).await;
    world.until(&format!("SELECT count(*) = 1 FROM incident WHERE sys_id = '{only_there}'")).await;
    let there = other.truth("incident", world::INTEGRATION).expect("a table").len();
    world.until(&format!("SELECT count(*) = {there} FROM incident")).await;
    world.until("SELECT short_description = 'another one' FROM incident WHERE number = 'INC0012345'").await;
}

/// Records of long ago, which no poll would find; and nobody is told that the table is in sync before they are there.
#[tokio::test(flavor = "multi_thread")]
async fn another_instance_is_read_from_the_beginning() {
    let world = with_good().await;
    world.import(&["incident"]).await;
    let other =
        Simulator::builder().dataset(Dataset::Incidents(700)).seed(7).start().await.expect("a simulator");
    world.db.run(&format!("ALTER SERVER acme OPTIONS (SET instance_url '{}')", other.url())).await;
    world.sync("incident").await;
    let there = other.truth("incident", world::INTEGRATION).expect("a table").len() as i64;
    assert!(there >= 700);
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident").await, there);
    let counted =
        "SELECT rows = (SELECT count(*) FROM incident) AND rows_hidden = 0 FROM servicenow.sync_status
                   WHERE foreign_table = 'incident'::regclass";
    assert!(world.db.value::<bool>(counted).await);
}

/// The cache shows what the worker's login may see, and no other's.
#[tokio::test(flavor = "multi_thread")]
async fn another_login_sees_other_rows() {
    let world = with_good().await;
    world.import(&["incident"]).await;
    let shown = |user: &str| world.sim.truth("incident", user).expect("a table").len() as i64;
    let logins = [
        (
            "ess.user",
            "ALTER USER MAPPING FOR PUBLIC SERVER acme OPTIONS (SET auth 'basic', DROP client_id, DROP client_secret, ADD username 'ess.user', ADD password 'ess-secret')",
        ),
        (
            "admin",
            "CREATE USER MAPPING FOR CURRENT_USER SERVER acme OPTIONS (auth 'basic', username 'admin', password 'admin')",
        ),
        (
            "ess.user",
            "ALTER USER MAPPING FOR CURRENT_USER SERVER acme OPTIONS (SET username 'ess.user', SET password 'ess-secret')",
        ),
        (
            "admin",
            "ALTER USER MAPPING FOR CURRENT_USER SERVER acme OPTIONS (SET username 'admin', SET password 'admin')",
        ),
    ];
    for (user, statement) in logins {
        world.db.run(statement).await;
        world.sync("incident").await;
        assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident").await, shown(user), "{user}");
    }
    assert!(shown("ess.user") < shown("admin"));
    // A new password is not another user: nothing is read again.
    let fills = world.sim.requests().len();
    world.sim.edit().set_password("admin", "new");
    world.db.run("ALTER USER MAPPING FOR CURRENT_USER SERVER acme OPTIONS (SET password 'new')").await;
    world.sync("incident").await;
    let is_fill = |r: &servicenow_sim::LoggedRequest| {
        r.table.as_deref() == Some("incident")
            && !r.parameter("sysparm_query").unwrap_or_default().contains("sys_updated_on")
    };
    assert_eq!(world.sim.requests().iter().skip(fills).filter(|r| is_fill(r)).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn options_of_a_server_take_effect_by_themselves() {
    let world = with_good().await;
    world.sim.clear_requests();
    world.db.run("ALTER SERVER acme OPTIONS (ADD page_size '7', SET poll_interval '100 ms')").await;
    world.db.run("CREATE FOREIGN TABLE incident (sys_id text, number text) SERVER acme").await;
    world.sync("incident").await;
    let pages: Vec<_> =
        world.sim.requests().into_iter().filter(|r| r.table.as_deref() == Some("incident")).collect();
    assert!(
        pages.iter().all(|page| page.parameter("sysparm_limit").is_none_or(|limit| limit.len() == 1)),
        "{pages:#?}"
    );
    let truth = world.sim.truth("incident", world::INTEGRATION).expect("a table").len() as i64;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident").await, truth);
}
