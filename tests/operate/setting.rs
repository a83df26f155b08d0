//! Settings and options of operation.

use std::time::{Duration, Instant};

use servicenow_sim::Dataset;
use world::World;

use crate::INCIDENT;

#[tokio::test(flavor = "multi_thread")]
async fn reading_live_is_refused_until_it_is_there() {
    let world = World::bare(Dataset::Small).await;
    world.set_up("").await;
    world.db.run("SET servicenow_fdw.read_mode = 'cached'").await;
    let set = "SET servicenow_fdw.read_mode = 'live'".to_owned();
    let create = INCIDENT.replace("acme", "acme OPTIONS (mode 'live')");
    for statement in [set, create] {
        let error = world.db.error(&statement).await;
        assert_eq!(error.code().code(), "0A000", "{statement}");
        assert!(error.hint().is_some_and(|hint| hint.starts_with("Use \"cached\"")), "{error:?}");
    }
    assert_eq!(world.db.error("SET servicenow_fdw.read_mode = 'dead'").await.code().code(), "22023");
    assert_eq!(world.db.value::<String>("SHOW servicenow_fdw.read_mode").await, "cached");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_logged_when_that_is_wanted_and_without_secrets() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let database = &world.database;
    let name = format!("acme_{database}");
    world.db.run(&format!("ALTER SERVER acme RENAME TO {name}")).await;
    let id = world.find("incident", "number=INC0012345");
    let patch =
        format!("LOG:  request to server \"{name}\": PATCH /api/now/table/incident/{id}: status 200, ");
    let update = "UPDATE incident SET reopen_count = 7 WHERE number = 'INC0012345'";
    world.db.run(update).await;
    assert!(!world.cluster.log().contains(&patch));
    world.db.run("SET servicenow_fdw.log_requests = on").await;
    world.db.run(&update.replace('7', "8")).await;
    let log = world.cluster.log();
    let line = log.lines().find(|line| line.contains(&patch)).expect("a line of the statement's call");
    let (rest, bytes) = line.rsplit_once(" ms, ").expect("a time and a size");
    assert!(rest.rsplit_once(", ").is_some_and(|(_, ms)| ms.parse::<f64>().is_ok()), "{line}");
    assert!(bytes.strip_suffix(" bytes").is_some_and(|n| n.parse::<u64>().is_ok_and(|n| n > 0)), "{line}");
    // The worker's too, which takes its settings from database and cluster.
    world.stop_worker().await;
    world.db.run(&format!("ALTER DATABASE {database} SET servicenow_fdw.log_requests = on")).await;
    // The login of the sessions would do for it.
    let anew = format!("ALTER USER MAPPING FOR PUBLIC SERVER {name} OPTIONS (SET client_id 'fdw-client')");
    world.db.run(&format!("{anew}; SELECT servicenow.start_worker()")).await;
    world.sync("incident").await;
    world.until("SELECT bool_and(last_poll_at > now() - interval '2 s') FROM servicenow.sync_status").await;
    world.sync("incident").await;
    let log = world.cluster.log();
    for part in ["POST /oauth_token.do: status 200", "GET /api/now/table/incident: status 200"] {
        assert!(log.contains(&format!("request to server \"{name}\": {part}")), "{part}");
    }
    // And what the worker does as the user.
    let compensate = "ALTER FOREIGN TABLE incident OPTIONS (ADD on_rollback 'compensate')";
    world.db.run(compensate).await;
    world.db.run(&format!("BEGIN; {update}; ROLLBACK")).await;
    let undone = format!("servicenow_fdw worker LOG:  request to server \"{name}\": PATCH /api/now/table/");
    let began = Instant::now();
    while !world.cluster.log().contains(&undone) {
        assert!(began.elapsed() < Duration::from_secs(30), "the undoing of a write is not in the log");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let log = world.cluster.log();
    for secret in ["fdw-client-secret", "sysparm_query", "Bearer"] {
        assert!(
            !log.lines().any(|line| line.contains("request to server") && line.contains(secret)),
            "{secret}"
        );
    }
    let somebody = world.session_as("somebody").await;
    somebody.run("SELECT servicenow.version()").await; // a setting has its rules once the library is there
    let error = somebody.error("SET servicenow_fdw.log_requests = on").await;
    assert_eq!(error.code().code(), "42501", "what leaks is for superusers");
    let error = somebody.error("SHOW servicenow_fdw.smtp_url").await;
    assert_eq!(error.code().code(), "42501", "it holds a password");
}
