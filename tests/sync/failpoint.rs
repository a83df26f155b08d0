//! `kill -9` wherever the worker does something: afterwards the cache is like the instance, nothing is doubled, and
//! what was done is not done again.

use std::collections::HashMap;
use std::time::Duration;

use servicenow_sim::{AclRule, Dataset, Effect, Fault};
use tokio_postgres::error::SqlState;
use world::World;
use world::cluster::Cluster;
use world::death::{arm, dies, server_dies, strikes, until_struck};

use crate::{lists, pid};

/// Few enough for a table to be filled in a moment, in some pages.
const FEW: usize = 300;
const PAGE: usize = 25;
const INCIDENT: &str = "CREATE FOREIGN TABLE incident (
    sys_id text, number text, short_description text, state bigint, caller_id text,
    caller text OPTIONS (field 'caller_id', show 'label'),
    opened_by text OPTIONS (show 'label')) SERVER acme";
const COLUMNS: &[&str] = &["number", "short_description", "state", "caller_id"];

/// Places on the way from nothing to a table that is filled. The first ones are passed once.
const BEGINNING: &[&str] = &[
    "worker.exit",
    "worker.start",
    "worker.plan",
    "worker.described.before",
    "worker.described.commit",
    "worker.described.after",
    "worker.begin.before",
    "worker.begin.commit",
    "worker.begin.after",
    "worker.newest.before",
    "worker.newest.commit",
    "worker.newest.after",
];
const FILLING: &[&str] = &[
    "worker.count",
    "worker.filled.before",
    "worker.rows",
    "worker.filled.commit",
    "worker.filled.after",
    "worker.range_done.before",
    "worker.range_done.commit",
    "worker.range_done.after",
    "worker.complete.before",
    "worker.complete.commit",
    "worker.complete.after",
];
/// Places that are passed over and over again once a table is filled, or when something changes.
const FOLLOWING: &[&str] = &[
    "worker.changed.before",
    "worker.rows",
    "worker.changed.commit",
    "worker.changed.after",
    "worker.to_recheck.before",
    "worker.to_recheck.commit",
    "worker.polled.before",
    "worker.polled.commit",
    "worker.polled.after",
    "worker.find.before",
    "worker.find_in.before",
    "worker.rechecked.before",
    "worker.rechecked.commit",
    "worker.rechecked.after",
    "worker.deletes.before",
    "worker.deletes.commit",
    "worker.deletes.after",
    "worker.metadata_since.before",
    "worker.describe.before",
    "worker.describe.commit",
    "worker.relabelled.before",
    "worker.relabelled.commit",
    "worker.relabelled.after",
    "worker.reread.before",
    "worker.reread.commit",
    "worker.doubted_where.before",
    "worker.doubted_where.commit",
    "worker.deletes_since.before",
    "worker.hidden_ranges.before",
    "worker.compare.before",
    "worker.compare.commit",
    "worker.metadata.before",
    "worker.metadata.commit",
    "worker.metadata.after",
    "worker.count_by_prefix.before",
    "worker.reconciled.before",
    "worker.reconciled.commit",
    "worker.scrubbed.before",
    "worker.scrubbed.commit",
    "worker.scrubbed.after",
];

/// Who dies at a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dying {
    Worker,
    /// The server with all its processes.
    Server,
}

impl Dying {
    async fn arm(self, world: &World, place: &str) {
        match self {
            Dying::Worker => arm(world, place).await,
            Dying::Server => arm(world, &format!("{place}:sleep")).await,
        }
    }

    /// Waits for the death, and for the server to take sessions again.
    async fn dies(self, world: &mut World, place: &str, before: usize) {
        match self {
            Dying::Worker => dies(world, place, before).await,
            Dying::Server => {
                until_struck(world, place, before).await;
                server_dies(world).await;
            }
        }
    }
}

/// A world on a cluster of its own with a small instance.
async fn quick(options: &str) -> World {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start("")));
    let world = World::on(cluster, Dataset::Incidents(FEW)).await;
    world.set_up(&format!(", page_size '{PAGE}', max_concurrency '2' {options}")).await;
    world
}

/// Waits until the table is like the instance's, and checks that no row is doubled or counted wrong.
async fn converges(world: &World, place: &str) {
    world.sync("incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    let counted =
        "SELECT rows = (SELECT count(*) FROM incident) AND rows = (SELECT count(DISTINCT sys_id) FROM incident)
         FROM servicenow.sync_table WHERE foreign_table = 'incident'::regclass";
    world.until(counted).await;
    let open = "SELECT count(*) FROM servicenow.sync_range";
    assert_eq!(world.db.value::<i64>(open).await, 0, "{place}");
}

/// How often each page of the fill was asked for since the `from`th request.
fn pages(world: &World, from: usize) -> HashMap<String, usize> {
    let mut pages = HashMap::new();
    for list in lists(world, "incident", from) {
        let query = list.parameter("sysparm_query").unwrap_or_default();
        let is_page =
            list.parameter("sysparm_fields").is_some_and(|fields| fields.contains("short_description"))
                && !query.contains("sys_updated_on");
        if is_page {
            *pages.entry(query.to_owned()).or_insert(0) += 1;
        }
    }
    pages
}

/// Whether a session ended because another process died.
fn is_a_crash(code: &SqlState) -> bool {
    [SqlState::CRASH_SHUTDOWN, SqlState::ADMIN_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW].contains(code)
}

/// Begins to fill the table, with a worker that dies at a place: the first time it comes there, or once the fill is
/// well under way. Gives back the number of requests before.
async fn fill_until(world: &mut World, place: &str, at_once: bool, dying: Dying) -> usize {
    let before = strikes(world, place);
    let from = world.sim.requests().len();
    match place {
        "worker.start" => world.stop_worker().await,
        "worker.exit" => {
            world.db.run(INCIDENT).await;
            world.sync("incident").await;
        }
        _ => {}
    }
    if at_once {
        dying.arm(world, place).await;
    }
    // The session may break before it has the answer: then the table is there, or is made afterwards.
    let create = match place {
        "worker.exit" => "SELECT servicenow.stop_worker()".to_owned(),
        "worker.start" => format!("{INCIDENT}; SELECT servicenow.start_worker()"),
        _ => INCIDENT.to_owned(),
    };
    tokio::select! {
        created = world.db.client().batch_execute(&create) => if let Err(e) = created {
            assert!(e.as_db_error().is_none_or(|e| is_a_crash(e.code())), "{place}: {e:?}");
        },
        // It may wait for a worker that sleeps there.
        () = until_struck(world, place, before) => {}
    }
    if !at_once {
        let (few, many) = (3 * PAGE, FEW / 2);
        let under_way = format!(
            "SELECT EXISTS (SELECT FROM servicenow.sync_table WHERE phase = 'backfill' AND rows_filled BETWEEN {few} AND {many})"
        );
        world.until(&under_way).await;
        dying.arm(world, place).await;
    }
    dying.dies(world, place, before).await;
    if world.db.rows("SELECT FROM pg_class WHERE relname = 'incident' AND relkind = 'f'").await.is_empty() {
        world.db.run(INCIDENT).await;
    }
    world.db.run("SELECT servicenow.start_worker()").await;
    from
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_goes_on_wherever_the_worker_is_killed() {
    a_fill_goes_on(Dying::Worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_goes_on_wherever_the_whole_server_is_killed() {
    a_fill_goes_on(Dying::Server).await;
}

async fn a_fill_goes_on(dying: Dying) {
    let mut world = quick("").await;
    let places =
        BEGINNING.iter().map(|place| (place, true)).chain(FILLING.iter().map(|place| (place, false)));
    for (place, at_once) in places {
        world.sim.set(|s| s.latency_ms = if at_once { 0 } else { 25 });
        let before = strikes(&world, place);
        let from = fill_until(&mut world, place, at_once, dying).await;
        let deaths = strikes(&world, place) - before;
        world.sim.set(|s| s.latency_ms = 0);
        converges(&world, place).await;
        let counted = "SELECT rows_filled = rows FROM servicenow.sync_table";
        assert!(world.db.value::<bool>(counted).await, "{place}: rows are counted once");
        // What was under way when a worker died is asked for again, and nothing else.
        let again: Vec<(String, usize)> = pages(&world, from).into_iter().filter(|(_, n)| *n > 1).collect();
        assert!(again.iter().map(|(_, n)| n - 1).sum::<usize>() <= 2 * deaths, "{place}: {again:#?}");
        world.db.run("DROP FOREIGN TABLE incident").await;
        // A table made at once after another one is described by what is known of that.
        world.until("SELECT NOT EXISTS (SELECT FROM servicenow.dictionary)").await;
    }
}

/// The identity and the login of somebody whose name incidents show.
fn caller(world: &World) -> (String, String) {
    let incident = world.find("incident", "number=INC0012345");
    let caller = world.remote("incident", &incident, "caller_id").expect("it has one");
    let login = world.remote("sys_user", &caller, "user_name").expect("a user");
    (caller, login)
}

/// Changes of every kind; gives back the records that were made, changed and deleted.
fn change(world: &World, round: usize) -> [String; 3] {
    let text = format!("round {round}");
    let edit = world.sim.edit();
    let made = edit.insert("incident", &[("short_description", &text)]).expect("a record");
    let ids = edit.find("incident", "short_descriptionNOT LIKEround^ORDERBYsys_id").expect("a query");
    let (changed, deleted) = (ids[2 * round].clone(), ids[ids.len() - 1].clone());
    let (caller, login) = caller(world);
    let fields = [("short_description", text.as_str()), ("opened_by", &caller)];
    edit.update("incident", &changed, &fields).expect("it is there");
    edit.delete("incident", &deleted).expect("it is there");
    edit.rename_user(&login, &text).expect("it is there");
    let leaver = edit.insert("sys_user", &[("name", "somebody")]).expect("a user");
    edit.delete("sys_user", &leaver).expect("it is there");
    edit.relabel_choice("incident", "state", "2", &text).expect("a choice");
    [made, changed, deleted]
}

/// What the log of changes says of a record since it was last asked.
async fn logged(world: &World, id: &str, since: i64) -> String {
    let ops = format!(
        "SELECT coalesce(string_agg(op, ' ' ORDER BY seq), '') FROM servicenow._sync_cdc
         WHERE sys_id = '{id}' AND seq > {since} AND changed ? 'short_description'"
    );
    world.db.value::<String>(&ops).await
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_arrive_once_wherever_the_worker_is_killed() {
    changes_arrive_once(Dying::Worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_arrive_once_wherever_the_whole_server_is_killed() {
    changes_arrive_once(Dying::Server).await;
}

async fn changes_arrive_once(dying: Dying) {
    let mut world = quick(", reconcile_interval '1s', scrub_interval '2s'").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let (caller, _) = caller(&world);
    for (round, place) in FOLLOWING.iter().enumerate() {
        let since = world.db.value::<i64>("SELECT coalesce(max(seq), 0) FROM servicenow._sync_cdc").await;
        let before = strikes(&world, place);
        dying.arm(&world, place).await;
        let [made, changed, deleted] = change(&world, round);
        dying.dies(&mut world, place, before).await;
        world.db.run("SELECT servicenow.start_worker()").await;
        converges(&world, place).await;
        world
            .until(&format!("SELECT bool_and(caller = 'round {round}') IS NOT FALSE FROM incident WHERE caller_id = '{caller}'"))
            .await;
        world
            .until(&format!("SELECT opened_by = 'round {round}' FROM incident WHERE sys_id = '{changed}'"))
            .await;
        let logged = [
            logged(&world, &made, since).await,
            logged(&world, &changed, since).await,
            logged(&world, &deleted, since).await,
        ];
        assert_eq!(logged, ["insert", "update", "delete"], "{place}");
    }
}

/// Places that are passed only when something is refused: a deletion that could not be looked up, and a poll.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_made_good_wherever_the_worker_is_killed() {
    let mut world = quick("").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    for (round, place) in
        ["worker.doubted.before", "worker.doubted.commit", "worker.failed.before", "worker.failed.commit"]
            .iter()
            .enumerate()
    {
        let before = strikes(&world, place);
        let refused =
            world.sim.fault(Fault::new(Effect::Status { status: 400, html: false }).table("incident"));
        arm(&world, place).await;
        change(&world, round);
        dies(&mut world, place, before).await;
        world.sim.remove_fault(refused);
        converges(&world, place).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_goes_on_wherever_the_worker_is_killed() {
    let mut world = quick("").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    for place in ["worker.polled_up_to.before", "worker.polled_up_to.commit", "worker.polled_up_to.after"] {
        let before = strikes(&world, place);
        arm(&world, place).await;
        world.sim.clock().advance(Duration::from_secs(10));
        world.sim.edit().update_where("incident", "", &[("short_description", place)]).expect("a query");
        dies(&mut world, place, before).await;
        world.db.run("SELECT servicenow.start_worker()").await;
        converges(&world, place).await;
    }
}

/// What may not be seen any more leaves, and is counted as hidden once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_hidden_is_remembered_wherever_the_worker_is_killed() {
    let mut world = quick(", reconcile_interval '1s', scrub_interval '1s'").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let ids = world.sim.edit().find("incident", "ORDERBYsys_id").expect("a query");
    let places = ["worker.hidden.before", "worker.hidden.commit", "worker.hidden.after"];
    for (hidden, place) in (1..).zip(places) {
        let before = strikes(&world, place);
        arm(&world, place).await;
        world.sim.edit().clear_acls();
        world.sim.edit().add_acl(AclRule::Rows {
            table: "incident".to_owned(),
            user: Some(world::INTEGRATION.to_owned()),
            query: format!("sys_idNOT IN{}", ids[..hidden].join(",")),
        });
        dies(&mut world, place, before).await;
        let shown = ids.len() - hidden;
        world
            .until(&format!(
                "SELECT rows = {shown} AND rows_hidden = {hidden} AND rows_total = {} FROM servicenow.sync_status",
                ids.len()
            ))
            .await;
        assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident").await, shown as i64, "{place}");
    }
}

/// Without preloading, the first session that reads a foreign table starts the worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_starts_the_worker_after_a_crash() {
    let mut world = quick("").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    server_dies(&mut world).await;
    world.db.run("SELECT FROM incident LIMIT 1").await;
    pid(&world).await;
}

/// A failpoint may be set for a database; and a place where something fails is said, and passed when it does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_failpoint_that_fails_is_an_error_of_the_table() {
    let world = World::new().await;
    world.stop_worker().await;
    let failing =
        |place: &str| format!("ALTER DATABASE {} SET servicenow_fdw.failpoint = '{place}'", world.database);
    world.db.run(&failing("worker.complete.commit:error")).await;
    world.db.run("SELECT servicenow.start_worker()").await;
    world.db.run(crate::INCIDENT).await;
    world
        .until("SELECT phase = 'backfill' AND last_error = 'failpoint \"worker.complete.commit\" was reached' FROM servicenow.sync_status")
        .await;
    world.stop_worker().await;
    world.db.run(&failing("")).await;
    world.db.run("SELECT servicenow.start_worker()").await;
    world.sync("incident").await;
    let somebody = world.session_as("somebody").await;
    somebody.run("SELECT servicenow.version()").await; // loads the library
    assert_eq!(somebody.error("SET servicenow_fdw.failpoint = 'worker.start'").await.code().code(), "42501");
}
