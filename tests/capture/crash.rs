//! `kill -9` between any two steps of taking events in: nothing is lost, and nothing is done twice.

use world::cluster::Cluster;
use world::death::{arm, dies, strikes};

use crate::{COLUMNS, capture_incidents, until_captured, world_on};

const PLACES: &[&str] = &[
    "worker.events.before",
    "worker.events.commit",
    "worker.events.after",
    "worker.to_look_up.before",
    "worker.to_look_up.after",
    "worker.rechecked.before",
    "worker.rechecked.commit",
    "worker.rechecked.after",
    "worker.capture.before",
    "worker.capture.commit",
];

#[tokio::test(flavor = "multi_thread")]
async fn events_are_taken_in_wherever_the_worker_is_killed() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start("")));
    let mut world = capture_incidents(world_on(cluster, "queue").await).await;
    for (round, place) in PLACES.iter().enumerate() {
        let since = world.db.value::<i64>("SELECT coalesce(max(seq), 0) FROM servicenow._sync_cdc").await;
        let before = strikes(&world, place);
        arm(&world, place).await;
        let text = format!("round {round}");
        let edit = world.sim.edit();
        let ids = edit.find("incident", "short_descriptionNOT LIKEround^ORDERBYsys_id").expect("a query");
        let made = edit.insert("incident", &[("short_description", &text)]).expect("a record");
        edit.update("incident", &ids[0], &[("short_description", &text)]).expect("it is there");
        edit.delete("incident", &ids[1]).expect("it is there");
        let touched = [(made, "insert"), (ids[0].clone(), "update"), (ids[1].clone(), "delete")];
        dies(&mut world, place, before).await;
        world.db.run("SELECT servicenow.start_worker()").await;
        world.until_like_the_instance("incident", COLUMNS).await;
        until_captured(&world).await;
        world.until("SELECT NOT EXISTS (SELECT FROM servicenow.recheck)").await;
        for (id, op) in touched {
            let logged = format!(
                "SELECT string_agg(op, ' ') FROM servicenow._sync_cdc WHERE sys_id = '{id}' AND seq > {since}"
            );
            assert_eq!(world.db.value::<Option<String>>(&logged).await.as_deref(), Some(op), "{place}");
        }
        let queue = world.db.value::<String>("SELECT queue_table FROM servicenow.stat_capture").await;
        assert!(world.sim.edit().find(&queue, "").expect("a table").is_empty(), "{place}");
    }
}

/// A table that joins has its rule, and one that leaves takes it along.
#[tokio::test(flavor = "multi_thread")]
async fn tables_join_and_leave_wherever_the_worker_is_killed() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start("")));
    let mut world = capture_incidents(world_on(cluster, "queue").await).await;
    let rules = |world: &world::World| {
        world.sim.edit().find("sys_script", "collection=problem^active=true").expect("a table").len()
    };
    for place in ["worker.rules.before", "worker.rules.commit", "worker.rules.after"] {
        for (statement, left) in [
            (
                "CREATE FOREIGN TABLE problem (sys_id text, number text, short_description text) SERVER acme",
                1,
            ),
            ("DROP FOREIGN TABLE problem", 0),
        ] {
            let before = strikes(&world, place);
            arm(&world, place).await;
            world.db.run(statement).await;
            dies(&mut world, place, before).await;
            world.db.run("SELECT servicenow.start_worker()").await;
            crate::until(|| rules(&world) == left).await;
            until_captured(&world).await;
        }
    }
}
