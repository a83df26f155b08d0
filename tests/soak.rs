//! Many short sessions for a long time: in the end worker and sessions hold no more memory, files and locks than soon
//! after the beginning, and no process has died. `make soak` has it run on a Postgres that checks its assertions.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use servicenow_sim::Dataset;
use tokio_postgres::NoTls;
use world::World;
use world::cluster::Cluster;
use world::random::Random;

/// Sessions at a time.
const CLIENTS: usize = 6;
/// How many looks are taken at what is held.
const LOOKS: usize = 16;
/// What a process may hold more at the end, in KiB, beside a tenth of what it held: allocators keep some.
const SLACK: u64 = 4 << 10;
/// What statements may end with here: refused by the instance or by a check, cancelled, terminated, outcome unknown, at
/// once with another one on the same rows.
const EXPECTED: [&str; 8] = ["23514", "38000", "57014", "57P01", "08007", "P0002", "40P01", "42P01"];
/// What the server's log says of a failed assertion, of a process that died, and of what a transaction has left open.
const WRONG: [&str; 5] = ["TRAP:", "PANIC:", "was terminated by signal", "leak:", "still referenced"];

/// Locks that are held as long as the worker lives.
const MARK: &str = "(locktype = 'advisory' AND objsubid = 3)";

/// What is held at rest.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Memory that the worker shares with nobody, in KiB.
    worker: u64,
    /// The same of a session that lives as long as the soak.
    session: u64,
    /// Locks that say that the worker is there, and what it does.
    marks: usize,
    worker_files: usize,
    session_files: usize,
    /// Files below the extension's directory in the data directory.
    files: usize,
    /// Segments of dynamic shared memory.
    segments: usize,
}

fn private_memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs on this host");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// What a process has open, but for the files of relations, of which Postgres keeps many open, now these and now those.
fn open_files(pid: i32) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs on this host");
    let links = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let is_relations = |link: &Path| {
        link.components().any(|part| part.as_os_str() == "base" || part.as_os_str() == "global")
    };
    links.filter(|link| !is_relations(link)).count()
}

fn files_below(directory: &Path) -> usize {
    let entries: Vec<_> =
        std::fs::read_dir(directory).map(|entries| entries.flatten().collect()).unwrap_or_default();
    entries.iter().map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

/// What a session does in its life.
fn life(random: &mut Random, name: &str) -> Vec<String> {
    let row =
        format!("sys_id = (SELECT sys_id FROM incident ORDER BY sys_id OFFSET {} LIMIT 1)", random.below(20));
    let update = format!("UPDATE incident SET short_description = '{name}' WHERE {row}");
    let insert = format!("INSERT INTO problem (short_description) VALUES ('{name}')");
    let clean = format!("DELETE FROM problem WHERE short_description LIKE '{name}%'");
    match random.below(12) {
        0 => vec!["SELECT state, count(*) FROM incident GROUP BY state".into()],
        1 => vec![
            "PREPARE p AS SELECT i.number, u.name FROM incident i JOIN \"user\" u ON u.sys_id = i.assigned_to_value WHERE i.number = $1"
                .into(),
            "EXECUTE p('INC0012345')".into(),
            "EXPLAIN (ANALYZE, VERBOSE) EXECUTE p('INC0012345')".into(),
        ],
        2 => vec![update],
        3 => vec![insert, clean],
        4 => vec![
            "BEGIN".into(),
            insert.clone(),
            "SAVEPOINT s".into(),
            insert,
            "ROLLBACK TO s".into(),
            update,
            "ROLLBACK".into(),
        ],
        5 => vec![format!("UPDATE incident SET state = 'no such state' WHERE {row}")],
        6 => vec![
            format!("INSERT INTO problem (short_description) SELECT '{name} ' || g FROM generate_series(1, 50) g"),
            clean,
        ],
        7 => vec![format!("SET statement_timeout = '{}ms'", 1 + random.below(40)), insert, update],
        8 => vec![
            format!("CREATE FOREIGN TABLE {name} (sys_id text, name text) SERVER acme OPTIONS (table 'sys_user_group')"),
            format!("SELECT servicenow.wait_for_sync('{name}', '60 s')"),
            format!("SELECT count(*) FROM {name}"),
            format!("DROP FOREIGN TABLE {name}"),
        ],
        9 => vec![
            "SELECT * FROM servicenow.sync_status".into(),
            "SELECT * FROM servicenow.stat_requests".into(),
            "SELECT * FROM servicenow.verify('problem')".into(),
        ],
        10 => vec!["BEGIN".into(), insert, update, "SELECT pg_terminate_backend(pg_backend_pid())".into()],
        _ => vec![
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit'".into(),
            insert,
            format!("UPDATE problem SET description = 'x' WHERE short_description = '{name}'"),
            "COMMIT".into(),
            clean,
        ],
    }
}

/// What tells why a process has died: what the log says of that, and its end.
fn log_end(cluster: &Cluster) -> String {
    let log = cluster.log();
    let lines: Vec<&str> = log.lines().collect();
    let why = lines.iter().filter(|line| WRONG.iter().any(|wrong| line.contains(wrong)));
    let end = &lines[lines.len().saturating_sub(40)..];
    why.chain(end).map(|line| format!("{line}\n")).collect()
}

/// Lives of sessions, one after the other, until a time. Gives back how many there were, and how statements ended.
async fn live(world: &World, seed: u64, until: Instant) -> (usize, BTreeMap<String, usize>) {
    let (mut random, mut lives, mut ends) = (Random(seed), 0, BTreeMap::new());
    while Instant::now() < until {
        let (client, connection) =
            world.cluster.config(&world.database).connect(NoTls).await.expect("a session");
        let connection = tokio::spawn(connection);
        let name = format!("soak_{seed}_{lives}");
        for sql in life(&mut random, &name) {
            let ended = client.simple_query(&sql).await;
            let code = ended.err().map_or("00000".to_owned(), |e| {
                let broke = || panic!("the session broke: {sql}: {e}\n{}", log_end(world.cluster));
                let code = e.code().unwrap_or_else(broke).code();
                assert!(EXPECTED.contains(&code), "{sql}\n{:?}", e.as_db_error());
                code.to_owned()
            });
            let is_over = code == "57P01";
            *ends.entry(code).or_insert(0) += 1;
            if is_over {
                break;
            }
        }
        // Some go without a word.
        if random.chance(10) {
            connection.abort();
        }
        lives += 1;
    }
    (lives, ends)
}

/// Looks at what is held once nobody does anything, and what nobody has cleaned up is gone.
async fn look(world: &World, worker: i32, session: i32) -> Held {
    world.db.run("DELETE FROM problem WHERE short_description LIKE 'soak_%'").await;
    for table in ["incident", "problem"] {
        world.sync(table).await;
    }
    let others = format!("pid NOT IN ({session}, pg_backend_pid())");
    world
        .until(&format!(
            "SELECT count(*) = 0 FROM pg_stat_activity
             WHERE datname = current_database() AND backend_type = 'client backend' AND {others}"
        ))
        .await;
    world
        .until(&format!(
            "SELECT count(*) = 0 FROM pg_locks WHERE pid <> pg_backend_pid() AND NOT {MARK}
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ))
        .await;
    world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
    world.until("SELECT count(*) = 0 FROM servicenow.recheck").await;
    Held {
        worker: private_memory(worker),
        marks: world.db.value::<i64>(&format!("SELECT count(*) FROM pg_locks WHERE {MARK}")).await as usize,
        session: private_memory(session),
        worker_files: open_files(worker),
        session_files: open_files(session),
        files: files_below(&world.cluster.data().join("servicenow_fdw")),
        segments: files_below(&world.cluster.data().join("pg_dynshmem")),
    }
}

/// The middle one of what was seen in some looks.
fn middle<T: Ord + Copy>(looks: &[Held], of: impl Fn(&Held) -> T) -> T {
    let mut values: Vec<T> = looks.iter().map(of).collect();
    values.sort();
    values[values.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour: make soak"]
async fn nothing_grows_however_many_sessions_come_and_go() {
    let minutes = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(30.0);
    // What dies takes the server along: then every session says so.
    let settings = "restart_after_crash = off
        autovacuum_naptime = 10s
        servicenow_fdw.cdc_retention = '1min'";
    let world = World::on(Box::leak(Box::new(Cluster::start(settings))), Dataset::Small).await;
    // What has no answer is pending until its call is over in any case.
    world.set_up(", reconcile_interval '10s', scrub_interval '30s', request_timeout '5s'").await;
    world.import(&["incident", "problem", "\"user\""]).await;
    let worker = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'servicenow_fdw worker'";
    let worker: i32 = world.db.value(worker).await;
    let long = world.session().await;
    let session: i32 = long.value("SELECT pg_backend_pid()").await;
    let known = world.find("incident", "number=INC0012345");
    let (mut looks, mut lives, mut ends) = (Vec::new(), 0, BTreeMap::<String, usize>::new());
    let began = Instant::now();
    for n in 0..LOOKS {
        let until = began + Duration::from_secs_f64(minutes * 60.0 / LOOKS as f64 * (n + 1) as f64);
        let clients = join_all((0..CLIENTS).map(|c| live(&world, (n * CLIENTS + c) as u64, until)));
        let long_life = async {
            let mut random = Random(n as u64);
            while Instant::now() < until {
                let update =
                    "UPDATE incident SET short_description = now()::text WHERE number = 'INC0012345'";
                long.run(if random.chance(50) { update } else { "SELECT count(*) FROM incident" }).await;
                world
                    .sim
                    .edit()
                    .update("incident", &known, &[("description", &random.any().to_string())])
                    .expect("it is there");
                if random.chance(2) {
                    long.run("SELECT servicenow.resync('problem')").await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let (lived, ()) = tokio::join!(clients, long_life);
        for (count, ended) in lived {
            lives += count;
            for (code, times) in ended {
                *ends.entry(code).or_insert(0) += times;
            }
        }
        let held = look(&world, worker, session).await;
        eprintln!("{:>5} s, {lives} sessions: {held:?}", began.elapsed().as_secs());
        looks.push(held);
        world.sim.clear_requests();
    }
    eprintln!("statements ended with {ends:?}");
    let log = world.cluster.log();
    for bad in
        ["TRAP:", "PANIC:", "terminated by signal", "leak:", "still referenced", "could not find block"]
    {
        let line = log.lines().find(|line| line.contains(bad));
        assert_eq!(line, None, "in the server's log");
    }
    let (early, late) = (&looks[LOOKS / 4..LOOKS / 2], &looks[LOOKS - LOOKS / 4..]);
    for memory in [(|held| held.worker) as fn(&Held) -> u64, |held| held.session] {
        let (before, after) = (middle(early, memory), middle(late, memory));
        assert!(after <= before + before / 10 + SLACK, "{before} KiB were held early, {after} late");
    }
    for count in [
        (|held| held.worker_files) as fn(&Held) -> usize,
        |h| h.session_files,
        |h| h.marks,
        |h| h.files,
        |h| h.segments,
    ] {
        let (before, after) = (middle(early, count), middle(late, count));
        assert!(after <= before + 2, "{before} files or locks were held early, {after} late");
    }
}
