//! Calls made to instances, per endpoint: `servicenow.request_stat`.

use std::time::Duration;

use pgrx::{JsonB, pg_sys};
use servicenow::client::stats::{Counters, Stats};

use super::{get, read, write};

/// The calls of the last hour: how long ago, and how many.
pub fn past_calls(server: pg_sys::Oid) -> Vec<(Duration, u32)> {
    read(
        "SELECT extract(epoch FROM clock_timestamp() - minute)::float8, calls FROM servicenow.call_count
         WHERE server = $1",
        &[server.into()],
        |rows| {
            rows.filter_map(|row| {
                let ago = get::<f64>(&row, 1).filter(|ago| *ago >= 0.0)?;
                Some((Duration::from_secs_f64(ago), u32::try_from(get::<i32>(&row, 2)?).ok()?))
            })
            .collect()
        },
    )
}

/// How the worker calls a server at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manners {
    /// Calls under way at a time, at most.
    pub concurrency: i32,
    /// Seconds until calls are made again.
    pub held_for: Option<i64>,
    /// Calls left of the budget, if there is one.
    pub calls_left: Option<i32>,
}

/// How the worker calls a server, as it was last shown.
pub fn manners(server: pg_sys::Oid) -> Manners {
    let shown = read(
        "SELECT concurrency,
                CASE WHEN held_until > clock_timestamp()
                     THEN ceil(extract(epoch FROM held_until - clock_timestamp()))::bigint END,
                calls_left
         FROM servicenow.sync_server WHERE server = $1",
        &[server.into()],
        |mut rows| {
            rows.next().map(|row| Manners {
                concurrency: get(&row, 1).unwrap_or_default(),
                held_for: get(&row, 2),
                calls_left: get(&row, 3),
            })
        },
    );
    shown.unwrap_or(Manners { concurrency: 0, held_for: None, calls_left: None })
}

/// Shows how the worker calls a server.
pub fn show_manners(server: pg_sys::Oid, manners: Manners) {
    write(
        "UPDATE servicenow.sync_server
         SET concurrency = $2, held_until = clock_timestamp() + $3 * interval '1 second', calls_left = $4
         WHERE server = $1",
        &[
            server.into(),
            manners.concurrency.into(),
            manners.held_for.map(|seconds| seconds as f64).into(),
            manners.calls_left.into(),
        ],
    );
}

/// Shows how many records of a table are asked for at a time; `None` for as many as the server's option says.
pub fn show_page_size(relation: pg_sys::Oid, size: Option<i32>) {
    write(
        "UPDATE servicenow.sync_table SET page_size = $2 WHERE foreign_table = $1",
        &[relation.into(), size.into()],
    );
}

/// Adds what was counted. By the worker only.
pub fn add_request_stats(server: pg_sys::Oid, stats: &Stats) {
    let calls = i32::try_from(stats.calls()).unwrap_or(i32::MAX);
    write(
        "INSERT INTO servicenow.call_count (server, minute, calls) VALUES ($1, date_trunc('minute', clock_timestamp()), $2)
         ON CONFLICT (server, minute) DO UPDATE SET calls = call_count.calls + excluded.calls",
        &[server.into(), calls.into()],
    );
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
