//! What sessions tell the worker outside of any transaction: the calls they have made.
//!
//! A datagram socket among the server's temporary statistics, which backups leave out. Nobody waits: what cannot be
//! delivered is kept by the session and told with the next call.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::unix::net::UnixDatagram;

use pgrx::pg_sys;
use serde::{Deserialize, Serialize};
use servicenow::client::stats::Stats;

use crate::pg;

/// The longest letter; statistics of a session's calls take some hundred bytes per endpoint.
const LONGEST: usize = 64 << 10;
/// Letters taken at a time.
const AT_A_TIME: usize = 1_000;

/// A session's calls to a server.
#[derive(Debug, Serialize, Deserialize)]
pub struct Letter {
    /// The server.
    pub server: u32,
    /// What was counted.
    pub stats: Stats,
}

/// The worker's end.
pub struct Mailbox(UnixDatagram);

impl Mailbox {
    /// Opens the mailbox of this process's database, in place of one that a worker before has left.
    pub fn open() -> std::io::Result<Self> {
        let path = path();
        let _nothing_there = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// The letters that have come.
    pub fn take(&self) -> Vec<Letter> {
        let mut space = vec![0; LONGEST];
        let arrived = std::iter::from_fn(|| self.0.recv(&mut space).ok().map(|size| space[..size].to_vec()));
        arrived.take(AT_A_TIME).filter_map(|letter| serde_json::from_slice(&letter).ok()).collect()
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let _somebody_else_has = std::fs::remove_file(path());
    }
}

thread_local! {
    /// What could not be told yet.
    static UNTOLD: RefCell<HashMap<pg_sys::Oid, Stats>> = RefCell::new(HashMap::new());
}

/// Tells the worker of calls to a server.
pub fn tell(server: pg_sys::Oid, stats: Stats) {
    UNTOLD.with_borrow_mut(|untold| {
        let all = untold.entry(server).or_default();
        all.merge(&stats);
        if !all.is_empty() && deliver(server, all) {
            untold.remove(&server);
        }
    });
}

fn deliver(server: pg_sys::Oid, stats: &Stats) -> bool {
    let letter = serde_json::to_vec(&Letter { server: server.to_u32(), stats: stats.clone() });
    let Ok(letter) = letter else { return false };
    let socket = UnixDatagram::unbound().and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    socket.and_then(|socket| socket.send_to(&letter, path())).is_ok()
}

/// Relative to the data directory, where every process of the server works: a socket's path must be short.
fn path() -> String {
    format!("pg_stat_tmp/servicenow_fdw.{}", pg::worker::database().to_u32())
}
