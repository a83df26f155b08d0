//! Calls made to instances, per endpoint: `servicenow.request_stat`.

use pgrx::{JsonB, pg_sys};
use servicenow::client::stats::{Counters, Stats};

use super::{get, read, write};

/// Adds what was counted. By the worker only.
pub fn add_request_stats(server: pg_sys::Oid, stats: &Stats) {
    for (endpoint, counters) in stats.iter() {
        let known = read(
            "SELECT counters FROM servicenow.request_stat WHERE server = $1 AND endpoint = $2",
            &[server.into(), endpoint.into()],
            |mut rows| rows.next().and_then(|row| get::<JsonB>(&row, 1)),
        );
        let mut all: Counters =
            known.and_then(|json| serde_json::from_value(json.0).ok()).unwrap_or_default();
        all.merge(counters);
        let json = serde_json::to_value(&all).expect("counters are plain data");
        write(
            "INSERT INTO servicenow.request_stat (server, endpoint, counters) VALUES ($1, $2, $3)
             ON CONFLICT (server, endpoint) DO UPDATE SET counters = excluded.counters",
            &[server.into(), endpoint.into(), JsonB(json).into()],
        );
    }
}
