//! What a wait for a sync waits for, and what it has the worker do.

use std::time::Duration;

use servicenow_sim::{Effect, Fault};
use world::World;

use crate::{INCIDENT, lists};

const LABELLED: &str = "CREATE FOREIGN TABLE labelled (
    sys_id text, number text, state text OPTIONS (show 'label'), state_value text OPTIONS (field 'state'),
    caller_id text OPTIONS (show 'label'), caller_id_value text OPTIONS (field 'caller_id'),
    caller_name text OPTIONS (field 'caller_id.name')) SERVER acme OPTIONS (table 'incident')";

/// A world whose tables are read when somebody asks for it, and then not for long.
async fn asked(table: &str, name: &str) -> World {
    let world = World::with(servicenow_sim::Dataset::Small, "").await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '1h')").await;
    world.db.run(table).await;
    world.sync(name).await;
    world.until("SELECT metadata_watermark IS NOT NULL FROM servicenow.sync_server").await;
    world
}

/// The names and labels that rows show are part of what is in sync, although the rows have not changed.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_sync_sees_names_and_labels_that_were_changed_before() {
    let world = asked(LABELLED, "labelled").await;
    let incident = world.find("incident", "number=INC0012345");
    let caller = world.remote("incident", &incident, "caller_id").expect("it has one");
    world.sim.set(|s| s.latency_ms = 30);
    world.sim.edit().update("sys_user", &caller, &[("name", "Somebody Else")]).expect("a user");
    world.sim.edit().relabel_choice("incident", "state", "2", "Under Way").expect("a choice");
    world.sync("labelled").await;
    let shown = "SELECT bool_and((caller_id, caller_name) = ('Somebody Else', 'Somebody Else'))
                 FROM labelled WHERE caller_id_value = ";
    assert!(world.db.value::<bool>(&format!("{shown} '{caller}'")).await);
    let relabelled = "SELECT bool_and(state = 'Under Way') FROM labelled WHERE state_value = '2'";
    assert!(world.db.value::<bool>(relabelled).await);
}

/// One wait is one reading, and another if there is something to be looked up that could not be before.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_has_the_table_read_once_however_long_it_takes() {
    let world = asked(INCIDENT, "incident").await;
    let id = world.find("incident", "number=INC0012345");
    let holder = world.session().await;
    holder.run(&format!("BEGIN; SELECT FROM incident WHERE sys_id = '{id}' FOR UPDATE")).await;
    world.sim.edit().update("incident", &id, &[("short_description", "changed")]).expect("it is there");
    let from = world.sim.requests().len();
    let error = world.db.error("SELECT servicenow.wait_for_sync('incident', '3.5 s')").await;
    assert!(error.message().contains("1 changed records are locked"), "{error:?}");
    assert_eq!(lists(&world, "incident", from).len(), 1, "{:#?}", lists(&world, "incident", from));
    let waiting = world.session().await;
    let (synced, ()) = tokio::join!(
        waiting.client().batch_execute("SELECT servicenow.wait_for_sync('incident', '60 s')"),
        async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            holder.run("COMMIT").await;
        }
    );
    synced.expect("it is in sync when nobody holds the row any more");
    assert_eq!(
        world
            .db
            .value::<String>(&format!("SELECT short_description FROM incident WHERE sys_id = '{id}'"))
            .await,
        "changed"
    );
}

/// Waiting does not hurry a worker that waits for an instance to recover.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_does_not_cut_the_pauses_after_failures() {
    let world = asked(INCIDENT, "incident").await;
    let down = world.sim.fault(Fault::new(Effect::Status { status: 400, html: false }).table("incident"));
    let from = world.sim.requests().len();
    let waits = (0..3).map(|_| async {
        let session = world.session().await;
        for _ in 0..4 {
            session.error("SELECT servicenow.wait_for_sync('incident', '1.5 s')").await;
        }
    });
    futures_util::future::join_all(waits).await;
    let calls = lists(&world, "incident", from).len();
    assert!(
        (1..=5).contains(&calls),
        "{calls} calls in 6 s, in which pauses are to double from about a second"
    );
    world.sim.remove_fault(down);
    world.sync("incident").await;
}
