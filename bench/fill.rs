//! One fill of the incidents, as several sections measure it.

use std::time::Duration;

use crate::Bench;
use crate::worker::{Memory, Worker};

/// What a fill was like.
pub struct Fill {
    /// Rows filled.
    pub rows: i64,
    /// From its beginning to its end.
    pub seconds: f64,
    /// The most memory the worker was seen with.
    pub memory: Memory,
    /// The private memory it was seen with in the second half of the time, in KiB: at first it has not taken yet what it
    /// needs.
    pub seen: Vec<f64>,
}

impl Fill {
    /// Rows per second.
    pub fn rate(&self) -> f64 {
        self.rows as f64 / self.seconds
    }
}

/// Imports the incidents anew, with all their columns, and waits until they are filled.
pub async fn fill(bench: &Bench<'_>) -> Fill {
    let db = &bench.db;
    db.run("DROP FOREIGN TABLE IF EXISTS incident").await;
    db.run("IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO public").await;
    let (memory, seen) = watch(bench).await;
    let ended =
        "SELECT extract(epoch FROM fill_ended_at - fill_started_at)::float8, rows FROM servicenow.sync_table";
    let row = &db.rows(ended).await[0];
    Fill { rows: row.get(1), seconds: row.get(0), memory, seen }
}

/// Waits for the end of the fill; gives back the worker's highest memory, and [`Fill::seen`].
async fn watch(bench: &Bench<'_>) -> (Memory, Vec<f64>) {
    let (mut highest, mut seen) = (Memory::default(), Vec::new());
    loop {
        if let Some(worker) = Worker::find(bench).await {
            let memory = worker.memory();
            highest = highest.max(memory);
            seen.push(memory.private as f64);
        }
        let done = "SELECT bool_and(phase IN ('catchup', 'synced')) FROM servicenow.sync_table";
        if bench.db.value::<bool>(done).await {
            return (highest, seen.split_off(seen.len() / 2));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
