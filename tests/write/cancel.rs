//! Statements that are interrupted, by a request or a timeout, wherever they wait for the instance: at once, with a warning
//! if something was sent, and without harm to session or cache.

use std::time::{Duration, Instant};

use servicenow_sim::{Dataset, Effect, Fault};
use world::{PATIENCE, Session, World};

use crate::KNOWN;

const COLUMNS: &[&str] = &["number", "short_description", "state_value=state", "impact_value=impact"];
/// How long an interrupted statement may go on.
const PROMPTLY: Duration = Duration::from_secs(1);

/// A wait for the instance.
struct Wait {
    /// What is waited for.
    what: &'static str,
    /// What keeps the answer away.
    fault: Fault,
    /// What leads there.
    also: Option<Fault>,
    /// What goes before the statement.
    before: &'static str,
    /// What waits.
    statement: String,
    /// Whether a write may have been carried out.
    is_write: bool,
}

fn waits() -> Vec<Wait> {
    let update = format!("UPDATE incident SET impact_value = 3 - impact_value % 2 WHERE {KNOWN}");
    let wait = |what, fault, statement: &str| Wait {
        what,
        fault,
        also: None,
        before: "",
        statement: statement.to_owned(),
        is_write: false,
    };
    let hang = |method: &str| Fault::new(Effect::Hang).method(method);
    let many = "UPDATE incident SET short_description = short_description || '.' WHERE state = 'Canceled'";
    let limited = Effect::RateLimited { headers: true, retry_after: Some(20), json: true };
    let batch = |effect| Fault::new(effect).method("POST").path("/batch");
    vec![
        Wait { before: "login", ..wait("the login", Fault::new(Effect::Hang).path("oauth_token"), &update) },
        wait(
            "a label",
            hang("GET").table("sys_user"),
            &format!("UPDATE incident SET assigned_to = 'Nobody knows' WHERE {KNOWN}"),
        ),
        wait(
            "a comparison",
            hang("GET").table("incident"),
            "UPDATE incident SET number = number WHERE number = 'INC0012345'",
        ),
        Wait { before: "optimistic", ..wait("the version", hang("GET").table("incident"), &update) },
        Wait { before: "compensate", ..wait("the image", hang("GET").table("incident"), many) },
        Wait { is_write: true, ..wait("one record", hang("PATCH"), &update) },
        Wait {
            is_write: true,
            ..wait(
                "one record that is made",
                Fault::new(Effect::HangAfter).method("POST").table("incident"),
                "INSERT INTO incident (short_description) VALUES ('cancelled')",
            )
        },
        Wait {
            is_write: true,
            also: Some(Fault::new(Effect::ResetAfter).method("POST").table("incident").times(1)),
            ..wait(
                "a look at a record whose answer was lost",
                hang("GET").table("incident"),
                "INSERT INTO incident (short_description) VALUES ('cancelled')",
            )
        },
        Wait { is_write: true, ..wait("a batch", batch(Effect::HangAfter), many) },
        // It was turned away, and waits to be sent again.
        wait("a pause", Fault::new(limited).method("PATCH"), &update),
        Wait {
            before: "BEGIN",
            is_write: true,
            ..wait("the commit", Fault::new(Effect::HangAfter).method("PATCH"), "COMMIT")
        },
    ]
}

/// How a statement ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Cancel,
    Timeout,
}

/// A world in which it does not take long until no call can be alive.
async fn impatient() -> World {
    let world = World::with(Dataset::Small, ", request_timeout '5s'").await;
    world.import(&["incident"]).await;
    world
}

/// How often a session was warned.
fn warnings(world: &World, pid: i32) -> usize {
    let (of, text) = (format!("[{pid}]"), "is unknown: it was interrupted");
    world.cluster.log().lines().filter(|line| line.contains(&of) && line.contains(text)).count()
}

async fn prepare(world: &World, session: &Session, wait: &Wait) {
    let option = |option: &str| format!("ALTER FOREIGN TABLE incident OPTIONS ({option})");
    match wait.before {
        "optimistic" => world.db.run(&option("ADD optimistic_lock 'true'")).await,
        "compensate" => world.db.run(&option("ADD on_rollback 'compensate'")).await,
        "BEGIN" => {
            let update =
                "UPDATE incident SET impact_value = 3 - impact_value % 2 WHERE number = 'INC0012345'";
            session.run(&format!("SET servicenow_fdw.push = 'commit'; BEGIN; {update}")).await;
        }
        _ => {}
    }
}

async fn interrupted(world: &World, wait: &Wait, how: How) {
    let session = world.session().await;
    let pid: i32 = session.value("SELECT pg_backend_pid()").await;
    prepare(world, &session, wait).await;
    let what = format!("{} {how:?}", wait.what);
    // It would wait for an answer, too.
    world.stop_worker().await;
    if wait.before == "login" {
        // The token there is would do.
        let anew = "ALTER USER MAPPING FOR PUBLIC SERVER acme OPTIONS (SET client_id 'fdw-client')";
        world.db.run(anew).await;
    }
    let also = wait.also.clone().map(|fault| world.sim.fault(fault));
    let (fault, warned) = (world.sim.fault(wait.fault.clone()), warnings(world, pid));
    let (mut since, limit) = (Instant::now(), Duration::from_millis(1_000));
    if how == How::Timeout {
        session.run(&format!("SET statement_timeout = {}", limit.as_millis())).await;
    }
    let failing = session.error(&wait.statement);
    let cancelling = async {
        if how == How::Cancel {
            while world.sim.fault_count(fault) == 0 {
                assert!(since.elapsed() < PATIENCE, "{what}: nobody waits");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            since = Instant::now();
            world.db.run(&format!("SELECT pg_cancel_backend({pid})")).await;
        } else {
            since += limit;
        }
    };
    let (error, ()) = tokio::join!(async { tokio::time::timeout(PATIENCE, failing).await }, cancelling);
    let error = error.unwrap_or_else(|_| panic!("{what}: it is not interrupted"));
    assert_eq!(error.code().code(), "57014", "{what}: {}", error.message());
    let reason = if how == How::Cancel { "user request" } else { "statement timeout" };
    assert_eq!(error.message(), format!("canceling statement due to {reason}"), "{what}");
    assert!(since.elapsed() < PROMPTLY, "{what}: {:?}", since.elapsed());
    assert!(world.sim.fault_count(fault) > 0, "{what}");
    assert_eq!(warnings(world, pid) - warned, usize::from(wait.is_write), "{what}");
    for fault in also.into_iter().chain([fault]) {
        world.sim.remove_fault(fault);
    }
    // Nothing has happened to the session.
    session.run("ROLLBACK; RESET statement_timeout; RESET servicenow_fdw.push").await;
    session.run(&format!("UPDATE incident SET description = '{what}' WHERE {KNOWN}")).await;
    world.db.run("SELECT servicenow.start_worker()").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    let undo = match wait.before {
        "optimistic" => "ALTER FOREIGN TABLE incident OPTIONS (DROP optimistic_lock)",
        "compensate" => "ALTER FOREIGN TABLE incident OPTIONS (DROP on_rollback)",
        _ => "",
    };
    world.db.run(undo).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_is_cancelled_ends_at_once_wherever_it_waits() {
    let world = impatient().await;
    for wait in waits() {
        interrupted(&world, &wait, How::Cancel).await;
    }
    world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_takes_too_long_ends_wherever_it_waits() {
    let world = impatient().await;
    for wait in waits() {
        interrupted(&world, &wait, How::Timeout).await;
    }
    world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
}

/// The other waits are for other sessions: nothing was sent then, and nothing is to be looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_waits_for_a_row_of_another_session_ends_at_once() {
    let world = impatient().await;
    let (holder, session) = (world.session().await, world.session().await);
    let pid: i32 = session.value("SELECT pg_backend_pid()").await;
    holder.run(&format!("BEGIN; UPDATE incident SET description = 'theirs' WHERE {KNOWN}")).await;
    let sent = world.writes().len();
    for push in ["statement", "commit"] {
        session.run(&format!("SET servicenow_fdw.push = '{push}'")).await;
        for statement in [
            format!("UPDATE incident SET description = 'ours' WHERE {KNOWN}"),
            format!("DELETE FROM incident WHERE {KNOWN}"),
            format!("SELECT * FROM incident WHERE {KNOWN} FOR UPDATE"),
        ] {
            session.run("SET statement_timeout = 300").await;
            assert_eq!(session.error(&statement).await.code().code(), "57014", "{statement}");
            session.run("RESET statement_timeout").await;
            let cancelling = async {
                world
                    .until(&format!(
                        "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = {pid}"
                    ))
                    .await;
                world.db.run(&format!("SELECT pg_cancel_backend({pid})")).await;
            };
            let (error, ()) = tokio::join!(session.error(&statement), cancelling);
            assert_eq!(error.code().code(), "57014", "{statement}");
        }
    }
    assert_eq!((world.writes().len(), warnings(&world, pid)), (sent, 0));
    holder.run("COMMIT").await;
    session.run(&format!("UPDATE incident SET description = 'ours' WHERE {KNOWN}")).await;
    world.until_like_the_instance("incident", &["number", "description"]).await;
}
