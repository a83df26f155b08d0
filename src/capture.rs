//! What makes an instance tell of changes: `install_capture`, `uninstall_capture`, `capture_script`.

use std::collections::BTreeSet;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode as Sql, pg_sys};
use servicenow::capture::install::{Failure, Inspection, when};
use servicenow::capture::queue::COLUMNS;
use servicenow::capture::{self, Subscription, Way, is_queue, script};
use servicenow::client::auth::Secret;
use servicenow::value::TableName;
use url::{Host, Url};

use crate::connection::{Connection, HttpClient, connection};
use crate::error::{Doing, error, raise, report};
use crate::option::{CaptureMode, ServerOptions};
use crate::worker::capture::endpoint;
use crate::{catalog, pg};

/// What stands for a webhook's key where it may be read by anybody.
const HIDDEN_KEY: &str = "the key, see servicenow.capture_script()";

/// A server whose capture is to be installed or taken away.
struct Target {
    server: pg_sys::Oid,
    name: String,
    options: ServerOptions,
    stored: catalog::Subscription,
}

/// Makes what a server's option `capture` needs in the instance.
pub fn install(name: &str) {
    let target = target(name);
    let (id, server) = (target.stored.id.clone(), target.name.clone());
    if target.options.capture == CaptureMode::Poll {
        raise(
            error(
                Sql::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("server \"{server}\" does not capture changes"),
            )
            .set_hint(format!("ALTER SERVER {server} OPTIONS (ADD capture 'queue');")),
        );
    }
    let endpoint = match target.options.capture {
        CaptureMode::Webhook => {
            let endpoint = endpoint(&target.options, &id).unwrap_or_else(|| raise(no_listener(&server)));
            if !is_reachable(&endpoint, &target.options.instance_url) {
                raise(unreachable(&endpoint, &server));
            }
            Some(endpoint)
        }
        _ => None,
    };
    let key = target.stored.key.clone();
    let tables = tables(target.server);
    let connection = connection(target.server, pg::session::current_user());
    let wanted = tables.clone();
    let installed = connection.call("install capture", false, move |client| async move {
        let made = make(&client, &id, endpoint.map(|endpoint| Way::Webhook { endpoint, key }), &wanted);
        Ok(made.await)
    });
    match installed {
        Ok(Made { way, inspection, given, refused }) => {
            for failure in &refused {
                let doing = Doing { server: &target.name, what: &failure.step, writing: false };
                let report = report(&failure.error, doing);
                let message =
                    format!("could not {} on server \"{}\": {}", failure.step, target.name, report.message());
                error(Sql::ERRCODE_INSUFFICIENT_PRIVILEGE, message)
                    .set_hint("The table is polled as before.")
                    .report(PgLogLevel::WARNING);
            }
            let queue = match &way {
                Way::Queue(queue) => Some(queue),
                Way::Webhook { .. } => None,
            };
            catalog::installed(target.server, true, queue, &given, &target.stored.key);
            catalog::announce(pg_sys::InvalidOid);
            say_what_is_there(&target, &way, &inspection, given.len());
        }
        Err(failure) => raise(explain(&target, &connection, &failure, &tables)),
    }
}

/// What was made, or was there.
struct Made {
    way: Way,
    /// How the rules were before.
    inspection: Inspection,
    /// Tables that have a rule now.
    given: BTreeSet<TableName>,
    /// What was refused.
    refused: Vec<Failure>,
}

/// Makes what is missing, and mends what is not as it should be.
async fn make(
    client: &HttpClient,
    id: &capture::SubscriptionId,
    webhook: Option<Way>,
    tables: &BTreeSet<TableName>,
) -> Result<Made, Failure> {
    let failed = |step: &str| {
        let step = step.to_owned();
        move |error| Failure { step, error }
    };
    let way = match webhook {
        Some(way) => way,
        None => match client.find_queue(id).await.map_err(failed("look for the queue table"))? {
            Some(queue) => {
                client.complete_queue(id, &queue).await?;
                Way::Queue(queue)
            }
            None => Way::Queue(client.make_queue(id).await?),
        },
    };
    let subscription = Subscription { id: id.clone(), way };
    let inspection =
        client.inspect_rules(&subscription, tables).await.map_err(failed("read the Business Rules"))?;
    // Whoever does not see rules is told so by the instance when they make one.
    let blind = inspection.is_blind.then_some(tables).into_iter().flatten();
    let (mut given, mut refused) = (tables.clone(), Vec::new());
    for table in inspection.missing.iter().chain(blind) {
        if let Err(failure) = client.make_rule(&subscription, table).await {
            if !failure.is_about_rights() {
                return Err(failure);
            }
            given.remove(table);
            refused.push(failure);
        }
    }
    // One table may be out of bounds; if all are, rights are missing.
    if given.is_empty()
        && let Some(failure) = refused.pop()
    {
        return Err(failure);
    }
    for (rule, table, _) in &inspection.altered {
        client.mend_rule(&subscription, table, rule).await?;
    }
    for rule in &inspection.surplus {
        client.remove_rule(rule).await?;
    }
    Ok(Made { way: subscription.way, inspection, given, refused })
}

/// Takes away what was made in the instance for a server of this database.
pub fn uninstall(name: &str) {
    let target = target(name);
    let id = target.stored.id.clone();
    let given = &tables(target.server) | &target.stored.rules.given;
    let connection = connection(target.server, pg::session::current_user());
    let removed = connection.call("uninstall capture", false, move |client| async move {
        Ok(client.remove_subscription(&id, &given).await)
    });
    match removed {
        Ok(rules) => {
            // Whoever has seen the old key cannot use it any more.
            catalog::installed(target.server, false, None, &BTreeSet::new(), &new_key());
            catalog::announce(pg_sys::InvalidOid);
            error(
                Sql::ERRCODE_SUCCESSFUL_COMPLETION,
                format!("removed {rules} Business Rules of server \"{}\"", target.name),
            )
            .report(PgLogLevel::NOTICE);
        }
        Err(failure) => {
            raise(report(&failure.error, Doing { server: &target.name, what: &failure.step, writing: false }))
        }
    }
}

/// The script of the rule on a foreign table's remote table, for whoever makes it by hand. Holds a webhook's key.
pub fn script(relation: pg_sys::Oid) -> String {
    let mirror = catalog::mirror_or_error(relation);
    let target = target(&pg::catalog::server(mirror.server).name);
    script::rule(&subscription(&target, target.stored.key.clone()), &mirror.table)
}

fn target(name: &str) -> Target {
    let server = pg::catalog::server_by_name(name);
    if !pg::session::owns_server(server) {
        raise(error(Sql::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be owner of foreign server {name}")));
    }
    let description = pg::catalog::server(server);
    if description.wrapper != catalog::WRAPPER {
        raise(error(
            Sql::ERRCODE_WRONG_OBJECT_TYPE,
            format!("server \"{name}\" does not use foreign-data wrapper \"servicenow_fdw\""),
        ));
    }
    let options = ServerOptions::parse(&description.options).unwrap_or_else(|e| raise(e));
    let stored = catalog::subscription(server, &new_key())
        .unwrap_or_else(|e| raise(error(Sql::ERRCODE_IO_ERROR, catalog::unplaced(&e))));
    Target { server, name: description.name, options, stored }
}

/// A random key to sign with.
pub fn new_key() -> Secret {
    let mut bytes = [0; 32];
    if let Err(e) = getrandom::fill(&mut bytes) {
        raise(error(Sql::ERRCODE_SYSTEM_ERROR, format!("could not get random bytes: {e}")));
    }
    capture::webhook::key(bytes)
}

/// A random number to tell a subscription from those before.
pub fn new_salt() -> i32 {
    let mut bytes = [0; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => i32::from_be_bytes(bytes),
        Err(e) => raise(error(Sql::ERRCODE_SYSTEM_ERROR, format!("could not get random bytes: {e}"))),
    }
}

/// The remote tables of a server's foreign tables, as far as rules may tell of them.
fn tables(server: pg_sys::Oid) -> BTreeSet<TableName> {
    let works = catalog::work().into_iter().filter(|work| work.server == server);
    let tables = works.filter_map(|work| Some(catalog::mirror(work.foreign_table)?.table.clone()));
    tables.filter(|table| !is_queue(table)).collect()
}

fn subscription(target: &Target, key: Secret) -> Subscription {
    let id = target.stored.id.clone();
    let way = match target.options.capture {
        CaptureMode::Webhook => {
            let endpoint = endpoint(&target.options, &id).unwrap_or_else(|| raise(no_listener(&target.name)));
            Way::Webhook { endpoint, key }
        }
        _ => {
            let expected = || TableName::new(id.queue_name()).ok();
            let queue = target.stored.queue.clone().or_else(expected);
            Way::Queue(
                queue.unwrap_or_else(|| raise(error(Sql::ERRCODE_INTERNAL_ERROR, "invalid queue name"))),
            )
        }
    };
    Subscription { id, way }
}

fn no_listener(server: &str) -> ErrorReport {
    error(
        Sql::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("nobody listens for the webhooks of server \"{server}\""),
    )
    .set_hint("Set servicenow_fdw.listen_address, and the server option webhook_url if the instance reaches it under another address.")
}

/// What to do if an instance cannot reach the listener.
pub const HOW_TO_BE_REACHED: &str =
    "Set the server option webhook_url to the address under which the instance reaches the listener.";

/// Whether an instance may reach a listener, as far as the addresses tell.
pub fn is_reachable(endpoint: &Url, instance: &Url) -> bool {
    let is_here = |url: &Url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    let is_anywhere = match endpoint.host() {
        Some(Host::Ipv4(address)) => address.is_unspecified(),
        Some(Host::Ipv6(address)) => address.is_unspecified(),
        _ => false,
    };
    !is_anywhere && (!is_here(endpoint) || is_here(instance))
}

fn unreachable(endpoint: &Url, server: &str) -> ErrorReport {
    let host = endpoint.host_str().unwrap_or_default();
    error(
        Sql::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("the instance of server \"{server}\" cannot post to \"{host}\""),
    )
    .set_hint(HOW_TO_BE_REACHED)
}

fn say_what_is_there(target: &Target, way: &Way, inspection: &Inspection, tables: usize) {
    let rules = match tables {
        1 => "a Business Rule on 1 table".to_owned(),
        n => format!("Business Rules on {n} tables"),
    };
    let what = match way {
        Way::Queue(queue) => format!("queue table \"{queue}\" and {rules}"),
        Way::Webhook { endpoint, .. } => {
            format!("{rules}, posting to {}", endpoint.host_str().unwrap_or("the listener"))
        }
    };
    let message = format!("capture is installed for server \"{}\": {what}", target.name);
    let mut notice = error(Sql::ERRCODE_SUCCESSFUL_COMPLETION, message);
    if inspection.is_blind {
        notice =
            notice.set_hint("This user cannot see Business Rules, so that nobody notices if one is changed.");
    }
    notice.report(PgLogLevel::NOTICE);
}

/// What could not be done, and how somebody who may do it does it by hand.
fn explain(
    target: &Target,
    connection: &Connection,
    failure: &Failure,
    tables: &BTreeSet<TableName>,
) -> ErrorReport {
    let doing = Doing { server: connection.server(), what: &failure.step, writing: false };
    let report = report(&failure.error, doing);
    if !failure.is_about_rights() {
        return report;
    }
    let said = match report.detail() {
        Some(detail) => format!("{}: {detail}", report.message()),
        None => report.message().to_owned(),
    };
    let message = format!("could not {} on server \"{}\": {said}", failure.step, target.name);
    let steps = by_hand(target, tables);
    error(Sql::ERRCODE_INSUFFICIENT_PRIVILEGE, message).set_detail(steps).set_hint(
        "Give the user of the mapping the role admin, or have an administrator of the instance follow the steps in DETAIL; \
         servicenow.capture_script() gives the script for each table. Until events come the server is polled.",
    )
}

fn by_hand(target: &Target, tables: &BTreeSet<TableName>) -> String {
    let subscription = subscription(target, Secret::new(HIDDEN_KEY));
    let name = subscription.id.name();
    let mut steps = Vec::new();
    if let Way::Queue(queue) = &subscription.way {
        let columns: Vec<String> =
            COLUMNS.iter().map(|(name, _, length)| format!("{name} ({length} characters)")).collect();
        steps.push(format!(
            "Create a table with name \"{queue}\" and label \"{name}\", with the string columns {}, open to web services; \
             let the worker's user read and delete its records, and everybody's changes write to it.",
            columns.join(", ")
        ));
    }
    let listed: Vec<&str> = tables.iter().map(TableName::as_str).collect();
    let example = tables.first().cloned().or_else(|| TableName::new("incident").ok());
    if let Some(table) = example {
        let late: Vec<&str> =
            tables.iter().filter(|table| when(table) == "async").map(TableName::as_str).collect();
        let moment = match late.is_empty() {
            true => "when after".to_owned(),
            false => format!("when after (async on {})", late.join(", ")),
        };
        steps.push(format!(
            "Create a Business Rule with name \"{name}\" on each of the tables {}: advanced, {moment}, insert, update and delete, order 10000, no condition. \
             This is the script for table \"{table}\":\n{}",
            if listed.is_empty() { "that are mirrored".to_owned() } else { listed.join(", ") },
            script::rule(&subscription, &table)
        ));
    }
    let numbered = steps.into_iter().zip(1..).map(|(step, n)| format!("{n}. {step}"));
    numbered.collect::<Vec<_>>().join("\n")
}
