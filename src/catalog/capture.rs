//! Subscriptions to changes, what has come of their events, and what polls have found that no event told of:
//! `servicenow.capture` and `suspect`.

use std::collections::BTreeSet;
use std::time::SystemTime;

use pgrx::pg_sys;
use servicenow::capture::SubscriptionId;
use servicenow::capture::event::{Event, Operation};
use servicenow::client::auth::Secret;
use servicenow::page::Version;
use servicenow::sync::capture::{News, Rules, State};
use servicenow::value::TableName;

use super::place::place;
use super::secret::write_secret;
use super::{get, read, timestamp, write};
use crate::pg;

/// Changes found by one poll that are remembered until events have had the time to come.
pub const SUSPECTS: usize = 100;

/// A server's subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Its id.
    pub id: SubscriptionId,
    /// It was installed from here.
    pub installed: bool,
    /// How often anything was installed or taken away.
    pub installs: i32,
    /// Its queue, once it is known.
    pub queue: Option<TableName>,
    /// What webhooks sign with.
    pub key: Secret,
    /// Where it has rules.
    pub rules: Rules,
}

/// The subscription of a server of this database; made at first use, out of what does not change, so that whoever was
/// interrupted meets in the instance what was made before. `key` is used for a new one. A copy of the data directory
/// gets another one before it reads, makes or takes anything away: the instance has what it has for the original. An error
/// says why it is not known whether this is a copy; then nobody is to be listened to.
pub fn subscription(server: pg_sys::Oid, key: &Secret) -> std::io::Result<Subscription> {
    let here = place()?;
    let (salt, known, recorded) = read(
        "SELECT salt, subscription, place FROM servicenow.capture WHERE server = $1",
        &[server.into()],
        |mut rows| {
            rows.next().map_or((0, None, None), |row| {
                (get(&row, 1).unwrap_or(0), get::<String>(&row, 2), get::<String>(&row, 3))
            })
        },
    );
    let id = subscription_id(server, salt);
    if known.as_deref() != Some(id.as_str()) {
        // Another database has the row's: this one is a copy of it, and has nothing in the instance yet.
        write("DELETE FROM servicenow.capture WHERE server = $1", &[server.into()]);
        write_secret(
            key,
            "INSERT INTO servicenow.capture (server, subscription, salt, place, signing_key)
             VALUES ($1, $2, $3, $4, servicenow._secret()) ON CONFLICT DO NOTHING",
            &[server.into(), id.as_str().into(), salt.into(), here.as_str().into()],
        );
    } else if recorded.is_some_and(|recorded| recorded != here) {
        // The same for the same place, as whoever is interrupted now comes again.
        let digits = SubscriptionId::of(&[&here]);
        let salt = u32::from_str_radix(&digits.as_str()[..8], 16).unwrap_or_default().cast_signed();
        renew_subscription(server, salt, key, COPIED);
    }
    known_subscription(server).ok_or_else(|| std::io::Error::other("the subscription is gone"))
}

/// Why nobody is listened to if it is not known whether this is a copy.
pub fn unplaced(why: &std::io::Error) -> String {
    format!("could not tell whether the data directory is a copy of another one: {why}")
}

/// Why a subscription was given up.
const COPIED: &str = "the data directory is a copy of another one, whose Business Rules are left alone";
/// As [`COPIED`].
pub const SHARED: &str = "another database reads the same queue";

/// A server's subscription, if it has one.
pub fn known_subscription(server: pg_sys::Oid) -> Option<Subscription> {
    read(
        "SELECT installed AND place IS NOT DISTINCT FROM $2, installs, queue_table, signing_key, rules, subscription, leaving
         FROM servicenow.capture WHERE server = $1",
        &[server.into(), place().ok().into()],
        |mut rows| {
            let row = rows.next()?;
            let given: Vec<String> = get(&row, 5).unwrap_or_default();
            let given = given.into_iter().filter_map(|name| TableName::new(name).ok()).collect();
            Some(Subscription {
                id: SubscriptionId::parse(&get::<String>(&row, 6)?)?,
                installed: get(&row, 1).unwrap_or(false),
                installs: get(&row, 2).unwrap_or_default(),
                queue: get::<String>(&row, 3).and_then(|name| TableName::new(name).ok()),
                key: Secret::new(get::<String>(&row, 4)?),
                rules: Rules { given, leaving: get(&row, 7).unwrap_or(false) },
            })
        },
    )
}

/// The servers for which rules were made from here, or may still be there.
pub fn servers_with_rules() -> Vec<pg_sys::Oid> {
    read(
        "SELECT c.server FROM servicenow.capture c JOIN pg_catalog.pg_foreign_server s ON s.oid = c.server
         WHERE c.installed AND (c.rules <> '{}' OR c.leaving) AND c.place IS NOT DISTINCT FROM $1",
        &[place().ok().into()],
        |rows| rows.filter_map(|row| get(&row, 1)).collect(),
    )
}

fn subscription_id(server: pg_sys::Oid, salt: i32) -> SubscriptionId {
    let system = pg::worker::system_identifier().to_string();
    let (database, server) = (pg::worker::database().to_u32().to_string(), server.to_u32().to_string());
    SubscriptionId::of(&[&system, &database, &server, &salt.to_string()])
}

/// A server's subscription gets another id, by a number that nobody else has, and another key. What the old one has in the
/// instance is left to whoever shares it.
pub fn renew_subscription(server: pg_sys::Oid, salt: i32, key: &Secret, why: &str) {
    let id = subscription_id(server, salt);
    let name = pg::catalog::server(server).name;
    let reason = format!("{why}: call servicenow.install_capture('{name}') for rules of this database");
    write_secret(
        key,
        "UPDATE servicenow.capture
         SET salt = $2, subscription = $3, signing_key = servicenow._secret(), queue_table = NULL, rules = '{}', leaving = false,
             installs = installs + 1, installed = installed AND place IS NOT DISTINCT FROM $5, place = $5,
             state = 'absent', reason = $4, complete_at = NULL
         WHERE server = $1",
        &[server.into(), salt.into(), id.as_str().into(), reason.as_str().into(), place().ok().into()],
    );
    pg::worker::log(&format!("server \"{name}\": {why}; the subscription is {id} from now on"));
}

/// What a server's subscription needs is there now, or has been taken away.
pub fn installed(
    server: pg_sys::Oid,
    installed: bool,
    queue: Option<&TableName>,
    rules: &BTreeSet<TableName>,
    key: &Secret,
) {
    write_secret(
        key,
        "UPDATE servicenow.capture
         SET installed = $2, queue_table = $3, rules = $4, leaving = false, signing_key = servicenow._secret(), place = $5,
             installs = installs + 1, state = 'absent', reason = NULL, complete_at = NULL
         WHERE server = $1",
        &[
            server.into(),
            installed.into(),
            queue.map(TableName::as_str).into(),
            names(rules).into(),
            place().ok().into(),
        ],
    );
}

fn names(tables: &BTreeSet<TableName>) -> Vec<String> {
    tables.iter().map(|table| table.as_str().to_owned()).collect()
}

/// Takes note of news of a server's events. Gives back how many changes polls had found before everything was last
/// noted of which no event has told, and forgets them.
pub fn note_capture(server: pg_sys::Oid, news: &News) -> u64 {
    let (state, reason) = match &news.state {
        State::Absent => ("absent", None),
        State::Active => ("active", None),
        State::Silent(why) => ("silent", Some(why.clone())),
        State::Failed(why) => ("failed", Some(why.clone())),
    };
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    // Why nothing is there any more stays said until something is.
    let is_news = write(
        "UPDATE servicenow.capture SET state = $2, reason = $3, state_at = clock_timestamp()
         WHERE server = $1 AND (state, reason) IS DISTINCT FROM ($2, CASE WHEN $2 = 'absent' THEN reason ELSE $3 END)",
        &[server.into(), state.into(), reason.clone().into()],
    );
    if is_news > 0 {
        let name = pg::catalog::server(server).name;
        let why = reason.map_or(String::new(), |reason| format!(": {reason}"));
        pg::worker::log(&format!("server \"{name}\": capture of changes is {state}{why}"));
    }
    write(
        "UPDATE servicenow.capture
         SET events = events + $2, coalesced = coalesced + $3, echoes = echoes + $4, refused = refused + $5,
             lag = coalesce($6, lag), complete_at = CASE WHEN $2 > 0 OR $7 IS NOT NULL THEN coalesce($7, complete_at) END,
             last_event_at = CASE WHEN $2 > 0 THEN clock_timestamp() ELSE last_event_at END,
             queue_table = coalesce($8, queue_table)
         WHERE server = $1",
        &[
            server.into(),
            count(news.events).into(),
            count(news.coalesced).into(),
            count(news.echoes).into(),
            count(news.refused).into(),
            news.lag.map(|lag| lag.as_secs_f64()).into(),
            news.complete.map(timestamp).into(),
            news.queue.as_ref().map(TableName::as_str).into(),
        ],
    );
    news.complete.map_or(0, |complete| forget_suspects(server, complete))
}

/// Takes note of where a server's subscription has rules.
pub fn note_rules(server: pg_sys::Oid, rules: &Rules) {
    write(
        "UPDATE servicenow.capture SET rules = $2, leaving = $3 WHERE server = $1",
        &[server.into(), names(&rules.given).into(), rules.leaving.into()],
    );
}

fn forget_suspects(server: pg_sys::Oid, before: SystemTime) -> u64 {
    let missed = read(
        "SELECT count(*) FROM servicenow.suspect s
         WHERE server = $1 AND at < $2 AND NOT EXISTS
             (SELECT FROM servicenow.recheck r WHERE r.foreign_table = s.foreign_table AND r.sys_id = s.sys_id)",
        &[server.into(), timestamp(before).into()],
        |mut rows| rows.next().and_then(|row| get::<i64>(&row, 1)),
    );
    write(
        "DELETE FROM servicenow.suspect WHERE server = $1 AND at < $2",
        &[server.into(), timestamp(before).into()],
    );
    missed.and_then(|missed| u64::try_from(missed).ok()).unwrap_or_default()
}

/// A poll has found changes. Events should have told of them, or be about to, if there are any at all.
pub fn suspect(server: pg_sys::Oid, relation: pg_sys::Oid, ids: &[String]) {
    if !ids.is_empty() {
        write(
            "INSERT INTO servicenow.suspect (server, foreign_table, sys_id)
             SELECT $1, $2, id FROM unnest($3::text[]) id
             WHERE EXISTS (SELECT FROM servicenow.capture WHERE server = $1 AND state = 'active')
               AND NOT EXISTS (SELECT FROM servicenow.recheck r WHERE r.foreign_table = $2 AND r.sys_id = id)",
            &[server.into(), relation.into(), ids.to_vec().into()],
        );
    }
}

/// A server's changes are not told of, or nobody listens, for a reason or because nobody is to.
pub fn capture_is_off(server: pg_sys::Oid, why: Option<&str>) {
    let state = why.map_or("absent", |_| "failed");
    write(
        "UPDATE servicenow.capture SET state = $2, reason = $3, state_at = clock_timestamp(), complete_at = NULL
         WHERE server = $1 AND (state <> $2 OR $3 IS NOT NULL AND reason IS DISTINCT FROM $3)",
        &[server.into(), state.into(), why.into()],
    );
    write("DELETE FROM servicenow.suspect WHERE server = $1", &[server.into()]);
}

/// Events have told of these records.
pub fn trust(server: pg_sys::Oid, ids: &[String]) {
    write(
        "DELETE FROM servicenow.suspect WHERE server = $1 AND sys_id = ANY ($2)",
        &[server.into(), ids.to_vec().into()],
    );
}

/// Has the worker look up the records of events, unless their rows have those versions by then.
pub fn leave_events_to_recheck<'e>(relation: pg_sys::Oid, events: impl Iterator<Item = &'e Event>) {
    let (mut ids, mut times, mut counts, mut gone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for event in events {
        let Version { updated_on, mod_count } = event.version;
        // A version that is not told whole tells nothing.
        let told = updated_on.zip(mod_count).filter(|_| event.operation != Operation::Delete);
        ids.push(event.id.as_str().to_owned());
        times.push(told.map(|(updated_on, _)| updated_on));
        counts.push(told.map(|(_, mod_count)| mod_count));
        gone.push(match event.operation {
            Operation::Write => false,
            Operation::Delete => true,
            Operation::Both => told.is_some(),
        });
    }
    if !ids.is_empty() {
        let told: [pgrx::datum::DatumWithOid; 5] =
            [relation.into(), ids.into(), times.into(), counts.into(), gone.into()];
        // A look that is under way may be too early for what is told now, even if the same was told before.
        write(
            "UPDATE servicenow.recheck r
             SET at = clock_timestamp(), looks = 0, due = NULL, twice = r.mod_count IS NULL AND NOT r.gone
             FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::boolean[]) e (sys_id, updated_on, mod_count, gone)
             WHERE r.foreign_table = $1 AND r.sys_id = e.sys_id AND r.gone = e.gone
               AND (r.updated_on, r.mod_count) IS NOT DISTINCT FROM (e.updated_on, e.mod_count)",
            &told,
        );
        write(
            "INSERT INTO servicenow.recheck (foreign_table, sys_id, updated_on, mod_count, gone, twice)
             SELECT $1, *, mod_count IS NULL AND NOT gone FROM (
                 SELECT * FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::boolean[])
                 EXCEPT SELECT sys_id, updated_on, mod_count, gone FROM servicenow.recheck
                 WHERE foreign_table = $1 AND sys_id = ANY ($2)
             ) e (sys_id, updated_on, mod_count, gone)",
            &told,
        );
    }
}

/// Events tell that these records, which the cache does not have, were deleted: one that is waited for because of an event
/// before that is looked up once more, and not waited for if it is not shown.
pub fn may_be_gone(relation: pg_sys::Oid, events: &[&Event]) {
    let (mut ids, mut times, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for event in events {
        if let Some((updated_on, mod_count)) = event.version.updated_on.zip(event.version.mod_count) {
            ids.push(event.id.as_str().to_owned());
            times.push(updated_on);
            counts.push(mod_count);
        }
    }
    if !ids.is_empty() {
        write(
            "UPDATE servicenow.recheck r SET gone = true, due = NULL
             FROM unnest($2::text[], $3::bigint[], $4::bigint[]) e (sys_id, updated_on, mod_count)
             WHERE r.foreign_table = $1 AND r.sys_id = e.sys_id
               AND r.updated_on <= e.updated_on AND r.mod_count <= e.mod_count",
            &[relation.into(), ids.into(), times.into(), counts.into()],
        );
    }
}

/// Of these tables, those with records that have to be looked up.
pub fn with_rechecks(server: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    read(
        "SELECT DISTINCT r.foreign_table FROM servicenow.recheck r
         JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = r.foreign_table WHERE f.ftserver = $1",
        &[server.into()],
        |rows| rows.filter_map(|row| get(&row, 1)).collect(),
    )
}

/// How long a table's poll may take to bring what events have told of, in seconds; then it is looked up after all.
const PATIENCE: f64 = 60.0;

/// Whether events have told since a followed table's last poll of changes that its next one brings, and nothing has waited
/// too long: with changes that come all the time there is always something for the next one.
pub fn is_left_to_poll(relation: pg_sys::Oid) -> bool {
    read(
        "SELECT EXISTS (
             SELECT FROM servicenow.recheck r JOIN servicenow.sync_table t USING (foreign_table)
             WHERE r.foreign_table = $1 AND r.updated_on IS NOT NULL AND NOT r.gone AND t.phase = 'synced'
               AND r.at > greatest(t.last_poll_at, clock_timestamp() - $2 * interval '1 second'))
             AND NOT EXISTS (
                 SELECT FROM servicenow.recheck
                 WHERE foreign_table = $1 AND since < clock_timestamp() - $2 * interval '1 second')",
        &[relation.into(), PATIENCE.into()],
        |mut rows| rows.next().and_then(|row| get(&row, 1)),
    )
    .unwrap_or(false)
}
