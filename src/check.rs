//! `check_server`: whether a server can be reached, logged in to and read, and what to do where it cannot.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use servicenow::capture::install::Inspection;
use servicenow::capture::{Subscription, Way};
use servicenow::client::table_api::List;
use servicenow::page::Layout;
use servicenow::query::Query;
use servicenow::value::TableName;
use servicenow::{Error, Result};

use crate::catalog;
use crate::connection::{Connection, HttpClient, workers_connection};
use crate::error::{Doing, error, raise, report};
use crate::option::{CaptureMode, ServerOptions};
use crate::pg;
use crate::worker::capture::endpoint;

/// The instance's clock and ours may be apart by so much: what polls overlap by, with some room.
const SKEW: Duration = Duration::from_secs(30);

/// What came of one check.
#[derive(Debug)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do, if it is not.
    pub hint: Option<String>,
}

impl Finding {
    fn fine(check: &str, detail: impl Into<String>) -> Self {
        Self { check: check.to_owned(), ok: true, detail: detail.into(), hint: None }
    }

    fn wrong(check: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check: check.to_owned(), ok: false, detail: detail.into(), hint: Some(hint.into()) }
    }
}

/// Checks a server as the worker sees it. What depends on something that is wrong is left out.
pub fn check(name: &str) -> Vec<Finding> {
    let server = pg::catalog::server_by_name(name);
    if !pg::session::owns_server(server) {
        let message = format!("must be owner of foreign server {name}");
        raise(error(Sql::ERRCODE_INSUFFICIENT_PRIVILEGE, message));
    }
    let mut findings = Vec::new();
    let connection = match pg::xact::subtransaction(|| workers_connection(server)) {
        Ok(connection) => connection,
        Err(caught) => {
            let hint =
                "Make a user mapping for the server's owner, the role of its option sync_user, or PUBLIC.";
            return vec![Finding::wrong("user mapping", caught.message, hint)];
        }
    };
    findings.push(Finding::fine("user mapping", "the worker has one"));
    let began = SystemTime::now();
    let served = match ask(&connection, "sys_user", "user_name") {
        Ok(answer) => answer.served_at,
        Err(e) => {
            findings.push(failed(&connection, "login", &e));
            if !matches!(e, Error::Refused { .. } | Error::NoTable(_)) {
                return findings;
            }
            None
        }
    };
    if served.is_some() {
        findings.push(Finding::fine("login", format!("logged in to {}", connection.host())));
    }
    findings.extend(served.map(|served| clock(served, began)));
    for (check, table, field, hint) in [
        (
            "dictionary",
            "sys_dictionary",
            "element",
            "Give the user read access to sys_db_object, sys_dictionary, sys_dictionary_override and sys_choice; without it tables are described by what forms show.",
        ),
        (
            "deletions",
            "sys_audit_delete",
            "documentkey",
            "Give the user read access to sys_audit_delete; without it deleted records are missed when records are counted (reconcile_interval).",
        ),
    ] {
        findings.push(match ask(&connection, table, field) {
            Ok(Answer { rows: 0, total: 1.., .. }) => {
                Finding::wrong(check, format!("the records of table \"{table}\" are hidden"), hint)
            }
            Ok(_) => Finding::fine(check, format!("table \"{table}\" can be read")),
            Err(e) => Finding { hint: Some(hint.to_owned()), ..failed(&connection, check, &e) },
        });
    }
    for table in mirrored(server) {
        findings.push(readable(&connection, &table));
    }
    findings.extend(capture(server, &connection));
    findings
}

struct Answer {
    rows: usize,
    total: u64,
    served_at: Option<i64>,
}

fn ask(connection: &Connection, table: &str, field: &'static str) -> Result<Answer> {
    let table = TableName::new(table)?;
    connection.ask(move |client| async move {
        let (query, layout) = (Query::all(), Arc::new(Layout::of_text(&[field])));
        let list = List { table: &table, query: &query, layout: &layout, limit: 1, offset: 0, count: true };
        let page = client.list(list).await?;
        Ok(Answer { rows: page.rows.len(), total: page.total.unwrap_or(0), served_at: page.served_at })
    })
}

fn failed(connection: &Connection, check: &str, e: &Error) -> Finding {
    let report = report(e, Doing { server: connection.server(), what: "check the server", writing: false });
    let detail = match report.detail() {
        Some(detail) => format!("{}: {detail}", report.message()),
        None => report.message().to_owned(),
    };
    Finding::wrong(check, detail, report.hint().unwrap_or_default())
}

fn clock(served: i64, asked: SystemTime) -> Finding {
    let ours = asked.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    let apart = served - ours;
    let detail = format!("the instance's clock is {apart} s ahead of the one here");
    match apart.unsigned_abs() > SKEW.as_secs() {
        false => Finding::fine("clock", detail),
        true => Finding::wrong("clock", detail, "Synchronize the clock of this host, by NTP for example."),
    }
}

/// The remote tables of a server's foreign tables.
fn mirrored(server: pg_sys::Oid) -> Vec<TableName> {
    let works = catalog::work().into_iter().filter(|work| work.server == server);
    let mut tables: Vec<TableName> =
        works.filter_map(|work| Some(catalog::mirror(work.foreign_table)?.table.clone())).collect();
    tables.sort();
    tables.dedup();
    tables
}

fn readable(connection: &Connection, table: &TableName) -> Finding {
    let check = format!("table {table}");
    let hint = "Give the user a role that may read the table: an access control rule hides its records.";
    match ask(connection, table.as_str(), "sys_id") {
        Ok(Answer { rows: 0, total: total @ 1.., .. }) => {
            Finding::wrong(&check, format!("{total} records, and the first ones are hidden"), hint)
        }
        Ok(Answer { total, .. }) => Finding::fine(&check, format!("{total} records")),
        Err(e) => failed(connection, &check, &e),
    }
}

/// Whether changes are told of, and whether what new tables need can be made.
fn capture(server: pg_sys::Oid, connection: &Connection) -> Option<Finding> {
    let options = ServerOptions::parse(&pg::catalog::server(server).options).ok()?;
    if options.capture == CaptureMode::Poll {
        return None;
    }
    let admin = "Give the user the role admin: it may then see and make Business Rules and the queue table, also for tables that come later.";
    let install = format!("SELECT servicenow.install_capture('{}');", connection.server());
    let Some(stored) = catalog::known_subscription(server) else {
        return Some(Finding::wrong("capture", "it is not installed", install));
    };
    let id = stored.id.clone();
    let way = match options.capture {
        CaptureMode::Webhook => match endpoint(&options, &id) {
            Some(endpoint) => Some(Way::Webhook { endpoint, key: stored.key }),
            None => {
                let hint = "Set servicenow_fdw.listen_address, or the server option webhook_url.";
                return Some(Finding::wrong("capture", "nobody listens for webhooks", hint));
            }
        },
        _ => None,
    };
    let tables = mirrored(server).into_iter().collect();
    let found = connection.ask(move |client: HttpClient| async move {
        let way = match way {
            Some(way) => way,
            None => match client.find_queue(&id).await? {
                Some(queue) => Way::Queue(queue),
                None => return Ok(None),
            },
        };
        client.inspect_rules(&Subscription { id, way }, &tables).await.map(Some)
    });
    Some(match found {
        Err(e) => failed(connection, "capture", &e),
        Ok(None) => Finding::wrong("capture", "there is no queue table, or it may not be read", install),
        Ok(Some(Inspection { is_blind: true, .. })) => {
            Finding::wrong("capture", "the user may not see Business Rules", admin)
        }
        Ok(Some(found)) if !found.missing.is_empty() => {
            let tables: Vec<&str> = found.missing.iter().map(TableName::as_str).collect();
            Finding::wrong("capture", format!("no Business Rule on {}", tables.join(", ")), install)
        }
        Ok(Some(found)) => match found.altered.first() {
            Some((_, table, field)) => Finding::wrong(
                "capture",
                format!("field \"{field}\" of the Business Rule on table \"{table}\" was changed"),
                install,
            ),
            None => Finding::fine("capture", "every table has its Business Rule"),
        },
    })
}
