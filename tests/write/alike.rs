//! A write that was rolled back and has no answer, and one like it that was kept: the one that was kept is not undone.

use world::World;

use crate::rollback::{compensated, until_settled};
use crate::{KNOWN, known};

/// A world whose incidents are restored after a rollback, and in which a call is over after two seconds.
async fn hasty() -> World {
    let world = compensated().await;
    world.db.run("ALTER SERVER acme OPTIONS (ADD request_timeout '2s')").await;
    world.sync("incident").await;
    world
}

const LOST: &str = "SET servicenow_fdw.failpoint = 'push.noted:error'";

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_kept_is_not_mistaken_for_one_like_it_that_was_not() {
    let world = hasty().await;
    let (id, update) = (known(&world), format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}"));
    let session = world.session().await;
    session.run("LOAD 'servicenow_fdw'").await;
    // It is noted, and never sent; then it is tried again.
    session.run(LOST).await;
    assert!(session.error(&update).await.message().contains("push.noted"));
    session.run(&format!("RESET servicenow_fdw.failpoint; {update}")).await;
    until_settled(&world).await;
    assert_eq!(world.remote("incident", &id, "impact").as_deref(), Some("3"));

    let other: String = world.db.value("SELECT sys_id FROM incident WHERE state = 'Canceled' LIMIT 1").await;
    let delete = format!("DELETE FROM incident WHERE sys_id = '{other}'");
    session.run(LOST).await;
    assert!(session.error(&delete).await.message().contains("push.noted"));
    session.run(&format!("RESET servicenow_fdw.failpoint; {delete}")).await;
    until_settled(&world).await;
    assert!(world.sim.record("incident", &other).is_none(), "it stays deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_kept_is_not_mistaken_for_one_before_a_savepoint() {
    let world = hasty().await;
    let (id, update) = (known(&world), format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}"));
    let session = world.session().await;
    session.run(&format!("LOAD 'servicenow_fdw'; BEGIN; SAVEPOINT s; {LOST}")).await;
    assert!(session.error(&update).await.message().contains("push.noted"));
    session.run(&format!("ROLLBACK TO s; RESET servicenow_fdw.failpoint; {update}")).await;
    // Nothing is decided while it is not clear which of them is kept.
    session.run("COMMIT").await;
    until_settled(&world).await;
    assert_eq!(world.remote("incident", &id, "impact").as_deref(), Some("3"));
}

/// Another session is at it when the first one's write is looked at; what it has written stays if it keeps it, and goes if not.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_decided_while_another_transaction_is_at_the_record() {
    let world = hasty().await;
    let (id, update) = (known(&world), format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}"));
    let before = world.remote("incident", &id, "impact");
    let lost = world.session().await;
    lost.run("LOAD 'servicenow_fdw'").await;
    for (end, after) in [("ROLLBACK", before.as_deref()), ("COMMIT", Some("3"))] {
        let session = world.session().await;
        lost.run(LOST).await;
        assert!(lost.error(&update).await.message().contains("push.noted"));
        session.run(&format!("BEGIN; {update}")).await;
        // The worker looks at the record once and again.
        let looks = || {
            let is_look = |r: &&servicenow_sim::LoggedRequest| r.method == "GET" && r.path.ends_with(&*id);
            world.sim.requests().iter().filter(is_look).count()
        };
        let (began, so_far) = (std::time::Instant::now(), looks());
        while looks() < so_far + 2 {
            assert!(began.elapsed() < world::PATIENCE, "it looks");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(world.remote("incident", &id, "impact").as_deref(), Some("3"), "{end}");
        session.run(end).await;
        until_settled(&world).await;
        assert_eq!(world.remote("incident", &id, "impact").as_deref(), after, "{end}");
    }
}
