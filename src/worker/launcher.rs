//! The launcher: starts the workers after a restart of the server, when the library is preloaded.
//!
//! Which databases have the extension can only be seen from inside, so every database gets a worker; those
//! without the extension end at once.

use crate::pg;

/// Main of the launcher process.
pub fn main() {
    pg::worker::connect_to_no_database();
    for database in pg::worker::connectable_databases() {
        if pg::worker::launch("servicenow_fdw worker", "servicenow_fdw_worker", database).is_err() {
            pg::worker::log("servicenow_fdw: no background worker slot is free; raise max_worker_processes");
            break;
        }
    }
    pg::worker::end();
}
