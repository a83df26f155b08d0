//! What a database's worker, or a session, uses, as the kernel counts it.

use std::time::Duration;

use crate::Bench;

/// Times in `/proc/PID/stat` are in ticks, of which a second has so many on every Linux.
const TICKS: f64 = 100.0;

/// A running process.
pub struct Worker(i32);

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// All that is resident, with the pages of the shared buffers it has touched.
    pub resident: u64,
    /// What it shares with nobody.
    pub private: u64,
}

impl Memory {
    /// The higher of each.
    pub fn max(self, other: Memory) -> Memory {
        Memory { resident: self.resident.max(other.resident), private: self.private.max(other.private) }
    }
}

impl Worker {
    /// Any process of the server.
    pub fn of(pid: i32) -> Worker {
        Worker(pid)
    }

    /// The worker of the bench's database, if it is running.
    pub async fn find(bench: &Bench<'_>) -> Option<Worker> {
        let running = "SELECT pid FROM pg_stat_activity
                       WHERE datname = current_database() AND backend_type = 'servicenow_fdw worker'";
        bench.db.rows(running).await.first().map(|row| Worker(row.get(0)))
    }

    /// Its memory now; nothing if it has ended.
    pub fn memory(&self) -> Memory {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap_or_default();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
        };
        Memory { resident: kib("VmRSS:"), private: kib("RssAnon:") }
    }

    /// The processor time it has used, its threads' included.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).expect("the worker runs");
        // User and system time are the 12th and 13th field behind the name, which may hold anything.
        let behind = stat.rsplit_once(") ").map_or("", |(_, behind)| behind);
        let ticks: f64 = behind.split(' ').skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum();
        Duration::from_secs_f64(ticks / TICKS)
    }
}
