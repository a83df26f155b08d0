//! The launcher: starts the workers after a restart of the server, when the library is preloaded.
//!
//! Which databases have the extension can only be seen from inside, so every database gets a worker; those
//! without the extension end at once and make room for the next.

use std::time::{Duration, Instant};

use crate::pg;
use crate::pg::worker::End;

/// The pause before a database is tried again for which there was no room.
const PAUSE: Duration = Duration::from_millis(200);
/// How long to wait for room.
const PATIENCE: Duration = Duration::from_secs(60);

/// Main of the launcher process.
pub fn main() {
    pg::worker::connect_to_no_database();
    let began = Instant::now();
    for database in pg::worker::connectable_databases() {
        while pg::worker::launch("servicenow_fdw worker", "servicenow_fdw_worker", database).is_err() {
            if began.elapsed() > PATIENCE {
                pg::worker::log(
                    "servicenow_fdw: no background worker slot is free; raise max_worker_processes",
                );
                pg::worker::end(End::ForGood);
            }
            pg::io::wait(None, Some(PAUSE));
        }
    }
    pg::worker::end(End::ForGood);
}
