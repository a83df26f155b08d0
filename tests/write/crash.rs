//! `kill -9` wherever a write is under way: afterwards the cache is like the instance, no record was made twice, and nothing
//! is left to be settled.

use std::time::{Duration, Instant};

use servicenow_sim::{Dataset, Effect, Fault};
use tokio::task::JoinHandle;
use world::cluster::Cluster;
use world::death::{arm, kill, reconnect, server_dies, strikes, until_struck_times};
use world::{PATIENCE, World};

use crate::rollback::notes;

const COLUMNS: &[&str] = &["number", "short_description", "description"];
/// The table that is read again after a rollback, and the one that is restored.
const TABLES: [&str; 2] = ["incident", "problem"];
/// How many records a statement is about.
const SIZES: [usize; 2] = [1, 3];
/// Records to be changed and deleted, for each table.
const POOL: usize = 150;

/// Where a writing session is when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At a failpoint.
    Failpoint(&'static str),
    /// It waits for an answer that does not come; the instance has carried the write out or not.
    Sending(Carried),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carried {
    Out,
    Not,
}

impl Place {
    /// Whether the instance has the writes, if that is sure.
    fn is_sent(self) -> Option<bool> {
        match self {
            Place::Failpoint("push.noting" | "push.noted") | Place::Sending(Carried::Not) => Some(false),
            Place::Failpoint(_) => Some(true),
            // Not every one of several calls may have come to the instance.
            Place::Sending(Carried::Out) => None,
        }
    }

    fn is_committed(self) -> bool {
        self == Place::Failpoint("push.committed")
    }
}

/// What one session does.
#[derive(Debug)]
struct Case {
    table: &'static str,
    op: &'static str,
    /// When it sends it.
    push: &'static str,
    /// The text it writes.
    text: String,
    size: usize,
    /// The records it changes or deletes, and their texts before.
    records: Vec<(String, String)>,
}

impl Case {
    fn statement(&self) -> String {
        let Self { table, op, text, size, records, .. } = self;
        let ids: Vec<String> = records.iter().map(|(id, _)| format!("'{id}'")).collect();
        let ids = ids.join(", ");
        match *op {
            "INSERT" => format!(
                "INSERT INTO {table} (short_description) SELECT '{text}' FROM generate_series(1, {size})"
            ),
            "UPDATE" => format!("UPDATE {table} SET short_description = '{text}' WHERE sys_id IN ({ids})"),
            _ => format!("DELETE FROM {table} WHERE sys_id IN ({ids})"),
        }
    }

    /// Checks what the instance has afterwards.
    fn check(&self, world: &World, place: Place) {
        let Self { table, op, text, size, records, .. } = self;
        let is_undone = *table == "problem" && !place.is_committed();
        let is_sent = if is_undone { Some(false) } else { place.is_sent() };
        let made = world.sim.edit().find(table, &format!("short_description={text}")).expect("a query").len();
        match (*op, is_sent) {
            ("INSERT" | "UPDATE", Some(true)) => assert_eq!(made, *size, "{place:?} {self:?}"),
            ("INSERT" | "UPDATE", None) => assert!(made <= *size, "{place:?} {self:?}: {made}"),
            _ => assert_eq!(made, 0, "{place:?} {self:?}"),
        }
        for (id, before) in records {
            let now = world.remote(table, id, "short_description");
            match (*op, is_sent) {
                (_, Some(false)) => assert_eq!(now.as_ref(), Some(before), "{place:?} {self:?}"),
                ("DELETE", Some(true)) => assert_eq!(now, None, "{place:?} {self:?}"),
                _ => {}
            }
        }
    }
}

/// A world on a cluster of its own. Nothing is polled in it, so that what arrives comes from what was noted.
async fn mortal() -> World {
    let settings = "shared_preload_libraries = 'servicenow_fdw'";
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start(settings)));
    let world = World::on(cluster, Dataset::Small).await;
    for (table, n) in TABLES.iter().flat_map(|table| (0..POOL).map(move |n| (table, n))) {
        let text = format!("pool {n}");
        world.sim.edit().insert(table, &[("short_description", &text)]).expect("a record");
    }
    world.set_up(", request_timeout '5s'").await;
    world.import(&TABLES).await;
    world
        .db
        .run("ALTER FOREIGN TABLE problem OPTIONS (ADD on_rollback 'compensate'); ALTER SERVER acme OPTIONS (SET poll_interval '1h')")
        .await;
    for table in TABLES {
        world.sync(table).await;
    }
    world
}

/// A case of every kind, with records of its own.
fn cases(world: &World, round: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for table in TABLES {
        let query = "short_descriptionSTARTSWITHpool^ORDERBYsys_id";
        let mut pool = world.sim.edit().find(table, query).expect("a query").into_iter();
        for (op, push) in ["INSERT", "UPDATE", "DELETE"]
            .into_iter()
            .flat_map(|op| ["statement", "commit"].map(|push| (op, push)))
        {
            for size in SIZES {
                let records = if op == "INSERT" { 0 } else { size };
                let before =
                    |id: String| (id.clone(), world.remote(table, &id, "short_description").expect("a text"));
                let records: Vec<_> = pool.by_ref().take(records).map(before).collect();
                let text = format!("round {round} {table} {op} {size} {push}");
                cases.push(Case { table, op, push, text, size, records });
            }
        }
    }
    cases
}

/// A session of which somebody knows how to kill it.
struct Doomed {
    pid: u32,
    running: JoinHandle<()>,
}

/// Begins a case's transaction in a session that stops at a place.
async fn begin(world: &World, place: Place, case: &Case) -> Doomed {
    let session = world.session().await;
    let pid = session.value::<i32>("SELECT pg_backend_pid()").await.unsigned_abs();
    session.run(&format!("LOAD 'servicenow_fdw'; SET servicenow_fdw.push = '{}'", case.push)).await;
    if let Place::Failpoint(name) = place {
        session.run(&format!("SET servicenow_fdw.failpoint = '{name}:sleep'")).await;
    }
    let statements = format!("BEGIN; {}; COMMIT", case.statement());
    let running = tokio::spawn(async move {
        let broken = session.client().batch_execute(&statements).await;
        let broken = broken.expect_err("the session dies before it ends");
        assert!(broken.as_db_error().is_none_or(|e| e.code().code().starts_with("57P")), "{broken:?}");
    });
    Doomed { pid, running }
}

/// Has sessions with every kind of write be at a place all at once.
async fn gather(world: &World, place: Place, cases: &[Case]) -> Vec<Doomed> {
    let mut doomed = Vec::new();
    match place {
        Place::Failpoint(name) => {
            let before = strikes(world, name);
            for case in cases {
                doomed.push(begin(world, place, case).await);
            }
            until_struck_times(world, name, before + cases.len()).await;
        }
        Place::Sending(carried) => {
            let effect = if carried == Carried::Out { Effect::HangAfter } else { Effect::Hang };
            let faults = ["POST", "PATCH", "DELETE"].map(|method| {
                world.sim.fault(Fault::new(effect.clone()).method(method).path("/api/now/.*(table|batch)"))
            });
            let struck = || faults.iter().map(|fault| world.sim.fault_count(*fault)).sum::<u64>();
            for case in cases {
                let before = struck();
                doomed.push(begin(world, place, case).await);
                let began = Instant::now();
                while struck() == before {
                    assert!(began.elapsed() < PATIENCE, "nothing is sent: {case:?}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }
    doomed
}

/// Waits until nothing is left to be settled, and checks both sides.
async fn converges(world: &World, place: Place, cases: &[Case]) {
    world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
    for table in TABLES {
        world.until_like_the_instance(table, COLUMNS).await;
    }
    cases.iter().for_each(|case| case.check(world, place));
    let database = world.db.value("SELECT oid FROM pg_database WHERE datname = current_database()").await;
    let left = notes(world, database);
    assert!(left.is_empty(), "{place:?}: {left:?}");
}

const PLACES: &[Place] = &[
    Place::Failpoint("push.noting"),
    Place::Failpoint("push.noted"),
    Place::Sending(Carried::Not),
    Place::Sending(Carried::Out),
    Place::Failpoint("push.answered"),
    Place::Failpoint("push.kept"),
    Place::Failpoint("push.committing"),
    Place::Failpoint("push.committed"),
];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_doubled_or_lost_wherever_sessions_are_killed() {
    let mut world = mortal().await;
    for (round, place) in PLACES.iter().copied().enumerate() {
        let cases = cases(&world, round);
        let doomed = gather(&world, place, &cases).await;
        kill(&doomed.iter().map(|session| session.pid).collect::<Vec<_>>());
        world.sim.clear_faults();
        for session in doomed {
            session.running.await.expect("it breaks");
        }
        reconnect(&mut world).await;
        converges(&world, place, &cases).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_doubled_or_lost_when_the_whole_server_is_killed() {
    let mut world = mortal().await;
    for (round, place) in PLACES.iter().copied().enumerate() {
        let cases = cases(&world, round);
        let doomed = gather(&world, place, &cases).await;
        server_dies(&mut world).await;
        world.sim.clear_faults();
        for session in doomed {
            session.running.await.expect("it breaks");
        }
        converges(&world, place, &cases).await;
    }
}

/// The worker begins anew with what it has not come to the end of.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_behind_is_settled_wherever_the_worker_is_killed() {
    let mut world = mortal().await;
    let place = Place::Failpoint("push.kept");
    for (round, at) in ["recovery.begin", "recovery.undone", "recovery.noted"].iter().enumerate() {
        let cases = cases(&world, round);
        let before = strikes(&world, at);
        arm(&world, at).await;
        let statements: String = cases.iter().map(|case| case.statement() + "; ").collect();
        let session = world.session().await;
        session.run(&format!("BEGIN; {statements} ROLLBACK")).await;
        world::death::dies(&mut world, at, before).await;
        converges(&world, place, &cases).await;
    }
}

/// What a crash has lost of a transaction may be its number, which the next one gets then.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_not_mistaken_for_one_that_got_its_number_after_a_crash() {
    let mut world = mortal().await;
    let place = Place::Failpoint("push.answered");
    let cases = cases(&world, 0);
    world.stop_worker().await;
    let doomed = gather(&world, place, &cases).await;
    kill(&doomed.iter().map(|session| session.pid).collect::<Vec<_>>());
    reconnect(&mut world).await;
    for _ in 0..2 * doomed.len() {
        world.db.run("SELECT pg_current_xact_id()").await;
    }
    world.db.run("SELECT servicenow.start_worker()").await;
    converges(&world, place, &cases).await;
}
