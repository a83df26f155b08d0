//! Processes that die where a test wants them to, by the server's failpoints, and what comes after that.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::signal;
use crate::{PATIENCE, World, connect};

/// Has the next process that comes to a place do something there. All know of it then, unless one was there already.
pub async fn arm(world: &World, place: &str) {
    world.cluster.configure(&format!("servicenow_fdw.failpoint = '{place}'"));
    let known = format!("SELECT current_setting('servicenow_fdw.failpoint', true) = '{place}'");
    while let Ok(row) = world.db.client().query_one(&known, &[]).await
        && row.get::<_, Option<bool>>(0) != Some(true)
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How often a process has come to a place that is armed.
pub fn strikes(world: &World, place: &str) -> usize {
    world.cluster.log().matches(&format!("failpoint \"{place}\": ")).count()
}

fn log_end(world: &World) -> String {
    let log = world.cluster.log();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Waits until a process has come to a place once more.
pub async fn until_struck(world: &World, place: &str, before: usize) {
    until_struck_times(world, place, before + 1).await;
}

/// Waits until processes have come to a place so often in all.
pub async fn until_struck_times(world: &World, place: &str, times: usize) {
    let began = Instant::now();
    while strikes(world, place) < times {
        assert!(began.elapsed() < PATIENCE, "nobody comes to {place}; the log's end:\n{}", log_end(world));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The worker dies at a place: waits for it, and for the server to take sessions again.
pub async fn dies(world: &mut World, place: &str, before: usize) {
    until_struck(world, place, before).await;
    world.cluster.configure("");
    // The next worker may come there before it hears of it.
    loop {
        let struck = strikes(world, place);
        reconnect(world).await;
        if strikes(world, place) == struck {
            break;
        }
    }
}

/// The server and all its processes die, all at once; starts it again.
pub async fn server_dies(world: &mut World) {
    let postmaster = world.cluster.postmaster();
    let children = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(children).expect("it runs");
    let children: Vec<u32> = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    // Nobody is to notice that others are gone.
    signal(postmaster, "-STOP");
    kill(&children);
    kill(&[postmaster]);
    let began = Instant::now();
    for child in children {
        while std::fs::exists(format!("/proc/{child}/cmdline")).unwrap_or(false) {
            assert!(began.elapsed() < PATIENCE, "its processes end with it");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    world.cluster.configure_next_start("");
    world.cluster.control(&["start"]);
    world.db = connect(world.cluster, &world.database).await;
}

/// `kill -9` of several processes at once; one of them may be gone already.
pub fn kill(pids: &[u32]) {
    let pids = pids.iter().map(u32::to_string);
    let _some_are_gone = Command::new("kill").arg("-KILL").args(pids).stderr(Stdio::null()).status();
}

/// After a crash: waits until the cluster takes sessions again, and opens the world's anew.
pub async fn reconnect(world: &mut World) {
    let began = Instant::now();
    while world.db.client().simple_query("").await.is_ok() {
        assert!(began.elapsed() < PATIENCE, "every session breaks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let config = world.cluster.config(&world.database);
    while config.connect(tokio_postgres::NoTls).await.is_err() {
        assert!(began.elapsed() < PATIENCE, "the cluster comes back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.db = connect(world.cluster, &world.database).await;
}
