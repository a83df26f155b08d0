//! One login for the worker and all sessions.

use std::time::Duration;

use futures_util::future::join_all;
use servicenow_sim::{Dataset, Effect, Fault, Simulator};
use world::cluster::Cluster;
use world::{Session, World};

use crate::{CLIENT, token_calls, world};

const TOUCH: &str =
    "UPDATE incident SET short_description = short_description || '.' WHERE number = 'INC0012345'";

/// A world whose worker has logged in and filled its table.
async fn synced() -> World {
    let world = world().await;
    world
        .db
        .run(&format!(
            "CREATE USER MAPPING FOR PUBLIC SERVER acme OPTIONS (auth 'client_credentials', {CLIENT})"
        ))
        .await;
    world.sync("incident").await;
    world
}

/// The login of somebody who may write.
fn of_itil() -> String {
    format!("auth 'password', {CLIENT}, username 'itil.user', password 'itil-secret'")
}

/// Has a role of its own write with a login of its own.
async fn map(world: &World, name: &str, login: &str) -> Session {
    let session = world.session_as(name).await;
    let role = world.role(name);
    world
        .db
        .run(&format!(
            "CREATE USER MAPPING FOR {role} SERVER acme OPTIONS ({login});
             GRANT SELECT, UPDATE ON incident TO {role}"
        ))
        .await;
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sessions_and_the_worker_make_one_token_call() {
    let world = synced().await;
    assert_eq!(token_calls(&world), 1, "the worker's");
    let sessions = join_all((0..50).map(|_| world.session())).await;
    join_all(sessions.iter().map(|session| session.run(TOUCH))).await;
    assert_eq!(token_calls(&world), 1);
    // All of them hold a token that is good no more.
    world.sim.edit().expire_tokens(true);
    join_all(sessions.iter().map(|session| session.run(TOUCH))).await;
    world.sync("incident").await;
    assert_eq!(token_calls(&world), 2);
    // To find out whether a login is still accepted takes one of its own.
    world.db.run("SELECT count(*) FROM servicenow.check_server('acme')").await;
    assert_eq!(token_calls(&world), 3);
}

/// A mapping may be altered more than once in a transaction.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_goes_on_with_the_token_of_whom_the_mapping_named_before() {
    let world = world().await;
    world
        .db
        .run(&format!(
            "BEGIN;
             CREATE USER MAPPING FOR PUBLIC SERVER acme
               OPTIONS (auth 'password', {CLIENT}, username 'itil.user', password 'itil-secret')"
        ))
        .await;
    let written_by = |world: &World| {
        let id = world.find("incident", "number=INC0012345");
        world.remote("incident", &id, "sys_updated_by").expect("it is there")
    };
    let write = "UPDATE incident SET short_description = 'by ' || random() WHERE number = 'INC0012345'";
    world.db.run("INSERT INTO incident (short_description) VALUES ('makes a token')").await;
    let other = "ALTER USER MAPPING FOR PUBLIC SERVER acme OPTIONS (SET username 'fdw.integration', SET password 'fdw-secret')";
    world.db.run(&format!("{other}; COMMIT")).await;
    world.sync("incident").await;
    world.db.run(write).await;
    assert_eq!(written_by(&world), "fdw.integration");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_survives_rollback_restart_and_kill() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start("")));
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up("").await;
    world.import(&["incident"]).await;
    world.stop_worker().await;
    // A login of its own, whose first call is in a transaction that is rolled back.
    let session = map(&world, "ivy", &of_itil()).await;
    assert_eq!(token_calls(&world), 1);
    session.run(&format!("BEGIN; {TOUCH}; ROLLBACK")).await;
    assert_eq!(token_calls(&world), 2);
    world.session_as("ivy").await.run(TOUCH).await;
    let role = world.role("ivy");
    for mode in ["fast", "immediate"] {
        world.cluster.control(&["-m", mode, "restart"]);
        let session = world.session().await;
        session.run(&format!("SET ROLE {role}; {TOUCH}")).await;
        assert_eq!(token_calls(&world), 2, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_password_is_tried_once_by_fifty_sessions_and_at_once_when_it_was_altered() {
    let world = synced().await;
    let tries = || {
        let refused = world.sim.requests();
        refused.iter().filter(|request| request.status == 401).count()
    };
    for login in [
        "auth 'basic', username 'itil.user', password 'wrong'".to_owned(),
        format!("auth 'password', {CLIENT}, username 'itil.user', password 'wrong'"),
    ] {
        let name = if login.contains("client_id") { "rabban" } else { "feyd" };
        world.sim.clear_requests();
        let (mut sessions, role) = (vec![map(&world, name, &login).await], world.role(name));
        for _ in 1..20 {
            sessions.push(world.session_as(name).await);
        }
        for _ in 0..2 {
            let errors = join_all(sessions.iter().map(|session| session.error(TOUCH))).await;
            assert!(errors.iter().all(|error| error.code().code() == "28000"), "{errors:?}");
            assert_eq!(tries(), 1, "{login}");
        }
        // What is rolled back changes nothing.
        let set = |password: &str| {
            format!("ALTER USER MAPPING FOR {role} SERVER acme OPTIONS (SET password '{password}')")
        };
        world.db.run(&format!("BEGIN; {}; ROLLBACK", set("another"))).await;
        assert_eq!(sessions[0].error(TOUCH).await.code().code(), "28000");
        assert_eq!(tries(), 1, "{login}");
        // The same one again: somebody says that it is right now.
        world.db.run(&set("wrong")).await;
        assert_eq!(sessions[0].error(TOUCH).await.code().code(), "28000");
        assert_eq!(tries(), 2, "{login}");
        world.db.run(&set("itil-secret")).await;
        sessions[1].run(TOUCH).await;
        sessions[0].run(TOUCH).await;
        assert_eq!(tries(), 2, "{login}");
    }
}

/// Who looks what is wrong with a login and finds that nothing is has it tried again by everybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_rests_is_tried_again_when_somebody_has_checked_it() {
    let world = world().await;
    let write = "INSERT INTO incident (short_description) VALUES ('logged in')";
    world
        .db
        .run("CREATE USER MAPPING FOR PUBLIC SERVER acme OPTIONS (auth 'basic', username 'itil.user', password 'new')")
        .await;
    assert_eq!(world.db.error(write).await.code().code(), "28000");
    let found = "SELECT bool_and(ok) FROM servicenow.check_server('acme') WHERE \"check\" = 'login'";
    assert!(!world.db.value::<bool>(found).await);
    world.sim.edit().set_password("itil.user", "new");
    assert_eq!(world.db.error(write).await.code().code(), "28000", "it rests");
    assert!(world.db.value::<bool>(found).await);
    world.db.run(write).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_waits_for_anothers_login_can_be_cancelled() {
    let world = synced().await;
    let first = map(&world, "ivy", &of_itil()).await;
    let second = world.session_as("ivy").await;
    let hanging = world.sim.fault(Fault::new(Effect::Hang).path("oauth_token").times(1));
    let cancelled = first.client().cancel_token();
    let stuck = first.error(TOUCH);
    let waiting = async {
        while world.sim.fault_count(hanging) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        second.run("SET statement_timeout = '200ms'").await;
        let error = second.error(TOUCH).await;
        assert_eq!(error.code().code(), "57014", "{}", error.message());
        second.run("RESET statement_timeout").await;
        cancelled.cancel_query(tokio_postgres::NoTls).await.expect("a cancel");
    };
    let (error, ()) = tokio::join!(stuck, waiting);
    assert_eq!(error.code().code(), "57014");
    // Whoever comes next does it.
    second.run(TOUCH).await;
}

/// What is sent elsewhere is another account, whatever it is called.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_of_somebody_elses_holds_nobody_up_who_logs_in_by_the_same_name() {
    let world = synced().await;
    let elsewhere = Simulator::builder().dataset(Dataset::Small).seed(42).start().await.expect("a simulator");
    let hanging = elsewhere.fault(Fault::new(Effect::Hang).path("oauth_token"));
    let there = format!("{}, token_url '{}/oauth_token.do'", of_itil(), elsewhere.url());
    let mara = map(&world, "mara", &there).await;
    let olaf = map(&world, "olaf", &of_itil()).await;
    let cancelled = mara.client().cancel_token();
    let honest = async {
        while elsewhere.fault_count(hanging) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let another = TOUCH.replace("INC0012345", "INC0010002");
        olaf.run(&format!("SET statement_timeout = '20s'; {another}")).await;
        cancelled.cancel_query(tokio_postgres::NoTls).await.expect("a cancel");
    };
    let (error, ()) = tokio::join!(mara.error(TOUCH), honest);
    assert_eq!(error.code().code(), "57014");
}

/// Instances tell neither the ways to send a password apart nor users by upper and lower case.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_three_tries_however_its_user_mappings_are_written() {
    let world = synced().await;
    world.sim.clear_requests();
    let token_url = format!("{}/oauth_token.do", world.sim.url());
    for (name, login) in [
        ("alia", "auth 'basic', username 'itil.user', password 'wrong'".to_owned()),
        ("bene", format!("auth 'password', {CLIENT}, username 'itil.user', password 'wrong'")),
        ("cora", "auth 'basic', username 'Itil.USER', password 'wrong'".to_owned()),
        (
            "dune",
            format!(
                "auth 'password', {CLIENT}, username 'itil.user', password 'wrong', token_url '{token_url}'"
            ),
        ),
        ("edri", "auth 'basic', username 'itil.user', password 'itil-secret'".to_owned()),
    ] {
        let session = map(&world, name, &login).await;
        match name {
            "edri" => session.run(TOUCH).await,
            _ => assert_eq!(session.error(TOUCH).await.code().code(), "28000"),
        }
    }
    let refused = world.sim.requests().iter().filter(|request| request.status == 401).count();
    assert_eq!(refused, 3);
}
