//! `check_server`: whether a server can be reached, logged in to and read, and what to do where it cannot.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use servicenow::capture::install::Inspection;
use servicenow::capture::{Subscription, Way, is_queue};
use servicenow::client::table_api::List;
use servicenow::page::{Layout, Rows};
use servicenow::query::Query;
use servicenow::sync::tail::Tail;
use servicenow::value::TableName;
use servicenow::{Error, Result};
use tokio::task::JoinSet;

use crate::capture::{HOW_TO_BE_REACHED, is_reachable};
use crate::catalog::{self, Mirror};
use crate::connection::{Connection, HttpClient, impatient_connection, workers_connection};
use crate::error::{Doing, error, raise, report};
use crate::option::{CaptureMode, ServerOptions};
use crate::pg;
use crate::setting;
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
    let connection = match pg::xact::subtransaction(|| impatient_connection(server)) {
        Ok(connection) => connection,
        Err(caught) => {
            let (check, hint) = match caught.sqlstate {
                Sql::ERRCODE_UNDEFINED_OBJECT => (
                    "user mapping",
                    "Make a user mapping for the server's owner, the role of its option sync_user, or PUBLIC.",
                ),
                _ => ("options", "Look at the options of the server and the user mapping."),
            };
            return vec![Finding::wrong(check, caught.message, caught.hint.as_deref().unwrap_or(hint))];
        }
    };
    findings.push(Finding::fine("user mapping", "the worker has one"));
    let began = SystemTime::now();
    // One call before all others: a login that is refused many times may lock the account.
    let first = ask(&connection, vec![Question::new("sys_user", &["user_name"])]).remove(0);
    let secure = server_is_secure(server);
    let reached = match &first {
        Err(e) => reach(&connection, e),
        Ok(_) => None,
    };
    if let Some(finding) = reached {
        findings.push(finding);
        return findings;
    }
    // Without a call nothing is known of that.
    let is_called = !matches!(
        first,
        Err(Error::BudgetUsedUp { .. } | Error::Setup(_) | Error::NoConsent | Error::Unheard { .. })
    );
    if is_called {
        findings.push(Finding::fine("reachability", format!("{} answers", connection.host())));
        findings.push(match secure {
            true => Finding::fine("TLS", "the instance's certificate is trusted"),
            false => Finding::fine("TLS", "not used: the address begins with http"),
        });
    }
    let served = match first {
        Ok(answer) => answer.served_at,
        Err(e @ (Error::RateLimited { .. } | Error::BudgetUsedUp { .. } | Error::Discarded)) => {
            findings.push(failed(&connection, "rate limits", &e));
            return findings;
        }
        Err(e) if !matches!(e, Error::Refused { .. } | Error::NoTable(_)) => {
            findings.push(failed(&connection, "login", &e));
            return findings;
        }
        Err(_) => None, // logged in, and not allowed to see users
    };
    findings.push(Finding::fine("login", format!("logged in to {}", connection.host())));
    // It was tried out apart from others; one that rests because it was refused before is tried again.
    let _it_is_tried_later = workers_connection(server).ask(|client: HttpClient| async move {
        client.forgive_refusal().await;
        Ok(())
    });
    findings.extend(served.map(|served| clock(served, began)));
    findings.push(rate_limits(server));
    findings.extend(inspect(server, &connection));
    findings.extend(capture(server, &connection));
    findings.extend(others(server, &connection));
    findings
}

/// What is asked of an instance.
struct Question {
    table: Result<TableName>,
    query: Query,
    layout: Arc<Layout>,
}

impl Question {
    fn new(table: &str, fields: &[&'static str]) -> Self {
        Self {
            table: TableName::new(table).map_err(Error::from),
            query: Query::all(),
            layout: Arc::new(Layout::of_text(fields)),
        }
    }
}

struct Answer {
    rows: Rows,
    total: u64,
    served_at: Option<i64>,
}

/// Asks several questions at a time; answers in the same order.
fn ask(connection: &Connection, questions: Vec<Question>) -> Vec<Result<Answer>> {
    let count = questions.len();
    let asked = connection.ask(move |client: HttpClient| async move {
        let mut running = JoinSet::new();
        for (number, question) in questions.into_iter().enumerate() {
            let client = client.clone();
            running.spawn(async move { (number, question.ask(&client).await) });
        }
        let mut answers = running.join_all().await;
        answers.sort_by_key(|(number, _)| *number);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect::<Vec<_>>())
    });
    match asked {
        Ok(answers) => answers,
        Err(e) => (0..count).map(|_| Err(e.clone())).collect(),
    }
}

impl Question {
    async fn ask(self, client: &HttpClient) -> Result<Answer> {
        let Self { table, query, layout } = self;
        let table = table?;
        let list = List { table: &table, query: &query, layout: &layout, limit: 1, offset: 0, count: true };
        let page = client.list(list).await?;
        Ok(Answer { rows: page.rows, total: page.total.unwrap_or(0), served_at: page.served_at })
    }
}

fn failed(connection: &Connection, check: &str, e: &Error) -> Finding {
    let report = report(e, Doing { server: connection.server(), what: "check the server", writing: false });
    let detail = match report.detail() {
        Some(detail) => format!("{}: {detail}", report.message()),
        None => report.message().to_owned(),
    };
    Finding::wrong(check, detail, report.hint().unwrap_or_default())
}

/// Why no usable answer has come at all, if that is so.
fn reach(connection: &Connection, e: &Error) -> Option<Finding> {
    match e {
        Error::Untrusted { .. } => Some(failed(connection, "TLS", e)),
        Error::Broken { .. } | Error::TimedOut { .. } => {
            let hint =
                "Check that the instance is up, and that no firewall or proxy cuts the connection off.";
            Some(Finding { hint: Some(hint.to_owned()), ..failed(connection, "reachability", e) })
        }
        Error::Connect { .. }
        | Error::NotPublic { .. }
        | Error::Unavailable { .. }
        | Error::Unreadable(_)
        | Error::CutShort(_)
        | Error::TooLarge { .. } => Some(failed(connection, "reachability", e)),
        _ => None,
    }
}

fn server_is_secure(server: pg_sys::Oid) -> bool {
    ServerOptions::parse(&pg::catalog::server(server).options)
        .is_ok_and(|options| options.instance_url.scheme() == "https")
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

/// Whether the worker may call as often as it has to.
fn rate_limits(server: pg_sys::Oid) -> Finding {
    let check = "rate limits";
    let known = catalog::manners(server);
    let options = ServerOptions::parse(&pg::catalog::server(server).options).ok();
    let budget = options.and_then(|options| options.max_calls_per_hour);
    match (known.held_for, known.calls_left.zip(budget)) {
        (Some(seconds), _) => Finding::wrong(
            check,
            format!("the instance has asked the worker to make no call for {seconds} more seconds"),
            "Have the rate limit rule for this user raised in ServiceNow (sys_rate_limit_rules), or raise the server option poll_interval.",
        ),
        (None, Some((left, budget))) if left <= i32::try_from(budget / 10).unwrap_or(i32::MAX) => {
            Finding::wrong(
                check,
                format!("{left} of {budget} calls an hour are left, and those are for writes"),
                "Raise the server option max_calls_per_hour, or poll_interval.",
            )
        }
        (None, Some((left, budget))) => {
            Finding::fine(check, format!("{left} of {budget} calls an hour are left"))
        }
        (None, None) => Finding::fine(check, "the instance does not hold the worker back"),
    }
}

/// The mirrors of a server, one for each remote table and query, and what keeps others from being mirrored.
fn mirrors(server: pg_sys::Oid) -> (Vec<Rc<Mirror>>, Vec<Finding>) {
    let (mut mirrors, mut findings) = (Vec::new(), Vec::new());
    for work in catalog::work().into_iter().filter(|work| work.server == server) {
        match pg::xact::subtransaction(|| catalog::mirror(work.foreign_table)) {
            Ok(mirror) => mirrors.extend(mirror),
            Err(caught) => {
                let check = format!("cache of {}", catalog::qualified(work.foreign_table));
                let hint = caught.hint.unwrap_or_else(|| "Look at the foreign table's options.".to_owned());
                findings.push(Finding::wrong(&check, caught.message, hint));
            }
        }
    }
    mirrors.sort_by_key(|mirror| (mirror.table.clone(), mirror.foreign_table.to_u32()));
    (mirrors, findings)
}

/// The remote tables of a server's foreign tables.
fn mirrored(server: pg_sys::Oid) -> Vec<TableName> {
    let mut tables: Vec<TableName> = mirrors(server).0.iter().map(|mirror| mirror.table.clone()).collect();
    tables.dedup();
    tables
}

/// Whether metadata, deletions and every table can be read.
fn inspect(server: pg_sys::Oid, connection: &Connection) -> Vec<Finding> {
    let (mirrors, damaged) = mirrors(server);
    let roles = Query::parse("user=javascript:gs.getUserID()").unwrap_or_default();
    let mut questions = vec![
        Question { query: roles, ..Question::new("sys_user_has_role", &["role.name"]) },
        Question::new("sys_dictionary", &["element"]),
        Question::new("sys_audit_delete", &["documentkey"]),
    ];
    let first = questions.len();
    for mirror in &mirrors {
        let table = || Ok(mirror.table.clone());
        let (query, layout) = (mirror.query.clone(), mirror.layout.clone());
        questions.push(Question { table: table(), query, layout });
        questions.push(Question {
            table: table(),
            query: as_polled(&mirror.query),
            layout: Arc::new(Layout::of_text(&["sys_id"])),
        });
    }
    let mut answers = ask(connection, questions);
    let rest = answers.split_off(first);
    let mut findings = vec![roles_of(&answers[0])];
    let metadata = [
        (
            "dictionary",
            "sys_dictionary",
            "Give the user read access to sys_db_object, sys_dictionary, sys_dictionary_override and sys_choice; without it tables are described by what forms show.",
        ),
        (
            "deletions",
            "sys_audit_delete",
            "Give the user read access to sys_audit_delete; without it deleted records are missed when records are counted (reconcile_interval).",
        ),
    ];
    for ((check, table, hint), answer) in metadata.into_iter().zip(&answers[1..]) {
        findings.push(match answer {
            Ok(Answer { rows, total: 1.., .. }) if rows.is_empty() => {
                Finding::wrong(check, format!("the records of table \"{table}\" are hidden"), hint)
            }
            Ok(_) => Finding::fine(check, format!("table \"{table}\" can be read")),
            Err(e) => Finding { hint: Some(hint.to_owned()), ..failed(connection, check, e) },
        });
    }
    for (mirror, answers) in mirrors.iter().zip(rest.chunks(2)) {
        findings.push(readable(connection, mirror, &answers[0]));
        if let (Ok(_), Err(e)) = (&answers[0], &answers[1]) {
            findings.push(failed(connection, &format!("query access to table {}", mirror.table), e));
        }
    }
    findings.extend(damaged);
    findings
}

/// A query as polls ask: by range and order of time, which query access rules may forbid.
fn as_polled(query: &Query) -> Query {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    let tail = Tail::new("sys_updated_on", now);
    tail.page(query, 1).map_or_else(|_| query.clone(), |(query, _)| query)
}

/// The user's roles, as far as it may see them; which ones it takes is known by what can be read.
fn roles_of(answer: &Result<Answer>) -> Finding {
    let detail = match answer {
        Ok(Answer { rows, total, .. }) if !rows.is_empty() => {
            format!("{} and {} more", rows.text(0, 0), total.saturating_sub(1))
        }
        _ => "the user may not see its own, which is nothing to worry about".to_owned(),
    };
    Finding::fine("roles", detail)
}

fn readable(connection: &Connection, mirror: &Mirror, answer: &Result<Answer>) -> Finding {
    let check = format!("table {}", mirror.table);
    let hint = "Give the user a role that may read the table: an access control rule hides its records.";
    match answer {
        Ok(Answer { rows, total: total @ 1.., .. }) if rows.is_empty() => {
            Finding::wrong(&check, format!("{total} records, and the first ones are hidden"), hint)
        }
        Ok(Answer { rows, total, .. }) => {
            let hidden: BTreeSet<&str> = (0..mirror.columns.len())
                .filter(|column| !rows.is_empty() && !rows.is_shown(0, *column))
                .map(|column| mirror.columns[column].field.as_str())
                .collect();
            match hidden.is_empty() {
                true => Finding::fine(&check, format!("{total} records")),
                false => Finding::wrong(
                    &check,
                    format!(
                        "{total} records, of which fields are hidden or gone: {}",
                        Vec::from_iter(hidden).join(", ")
                    ),
                    "Give the user read access to these fields, or drop their columns: they are NULL.",
                ),
            }
        }
        Err(e) => failed(connection, &check, e),
    }
}

/// Rules in the instance that are like ours and another database's, or nobody's.
fn others(server: pg_sys::Oid, connection: &Connection) -> Option<Finding> {
    let id = catalog::known_subscription(server)?.id;
    let names =
        connection.ask(|client: HttpClient| async move { client.other_subscriptions(&id).await }).ok()?;
    let listed = Vec::from_iter(names).join("\", \"");
    let detail = format!(
        "there are Business Rules \"{listed}\": delete them, and the tables of these labels, if their databases are gone"
    );
    (!listed.is_empty()).then(|| Finding::fine("other subscriptions", detail))
}

/// Whether changes are told of, and whether what new tables need can be made.
fn capture(server: pg_sys::Oid, connection: &Connection) -> Option<Finding> {
    let options = ServerOptions::parse(&pg::catalog::server(server).options).ok()?;
    if options.capture == CaptureMode::Poll {
        return None;
    }
    let admin = "Give the user the role admin: it may then see and make Business Rules and the queue table, also for tables that come later.";
    let install = format!("SELECT servicenow.install_capture('{}');", connection.server());
    if options.capture == CaptureMode::Webhook {
        match setting::listener_url(options.webhook_url.as_ref()) {
            None => {
                let hint = "Set servicenow_fdw.listen_address, and the server option webhook_url if the instance reaches the listener under another address.";
                return Some(Finding::wrong("capture", "nobody listens for webhooks", hint));
            }
            Some(url) if !is_reachable(&url, &options.instance_url) => {
                let detail =
                    format!("the instance cannot post to \"{}\"", url.host_str().unwrap_or_default());
                return Some(Finding::wrong("capture", detail, HOW_TO_BE_REACHED));
            }
            Some(_) => {}
        }
    }
    let stored =
        catalog::known_subscription(server).filter(|stored| stored.installed || stored.queue.is_some());
    if stored.is_none() {
        // Before it is installed it should be known whether it can be.
        let hidden = connection.ask(|client: HttpClient| async move { client.hidden_from_installer().await });
        if let Ok(Some(table)) = hidden {
            let detail = format!("it is not installed, and the user may not read table \"{table}\" to do so");
            return Some(Finding::wrong("capture", detail, admin));
        }
    }
    let Some(stored) = catalog::known_subscription(server) else {
        return Some(Finding::wrong("capture", "it is not installed", install));
    };
    let id = stored.id.clone();
    let way = endpoint(&options, &id).map(|endpoint| Way::Webhook { endpoint, key: stored.key });
    let tables = mirrored(server).into_iter().filter(|table| !is_queue(table)).collect();
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
