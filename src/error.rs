//! Errors of the client as ERRORs of Postgres: SQLSTATE, message, detail and hint. The only such mapping.
//!
//! What the instance says itself begins with `[ServiceNow] `; its detail becomes DETAIL. Everything else
//! follows the PostgreSQL error message style guide. Secrets and row values never get here: the client's
//! errors do not hold any.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode as Sql};
use servicenow::Error;
use servicenow::error::{Distrust, Refusal, Words};

use crate::option;

/// What was being done when an error came.
#[derive(Clone, Copy, Debug)]
pub struct Doing<'a> {
    /// The server's name.
    pub server: &'a str,
    /// What, as an infinitive: `update record "…" of table "incident"`.
    pub what: &'a str,
    /// Whether something was to be changed: then a broken connection leaves open whether it was.
    pub writing: bool,
}

/// The ERROR for a failure of the client.
pub fn report(error: &Error, doing: Doing<'_>) -> ErrorReport {
    let Doing { server, what, writing } = doing;
    let could_not = |reason: &str| format!("could not {what} on server \"{server}\": {reason}");
    let plain = |code, reason: &str, hint: &str| ErrorReport::new(code, could_not(reason), "").set_hint(hint);
    if writing && error.leaves_outcome_unknown() {
        let report = unknown_outcome(what, server, &error.to_string());
        return match error {
            Error::Value { .. } => report.set_hint(
                "The record is read again; look at it before you repeat the statement. Change the column's type, to text if need be.",
            ),
            _ => report,
        };
    }
    match error {
        Error::Connect { reason, .. } => plain(
            Sql::ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION,
            &format!("could not connect: {reason}"),
            "Check that the instance is up and that this host can reach it.",
        ),
        Error::NotPublic { .. } => {
            plain(Sql::ERRCODE_INSUFFICIENT_PRIVILEGE, &error.to_string(), option::PRIVATE_HINT)
        }
        Error::Untrusted { distrust, .. } => plain(
            Sql::ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION,
            &format!("could not connect: {distrust}"),
            match distrust {
                Distrust::Expired => {
                    "Have the instance's certificate renewed, or set the clock of this host."
                }
                Distrust::NotYetValid => "Set the clock of this host, by NTP for example.",
                Distrust::OtherName => {
                    "Check the address in server option \"instance_url\": it must have the name that the certificate is for."
                }
                Distrust::Issuer => {
                    "If the instance is the right one, name a file with the authority's certificate in server option \"ca_file\"."
                }
                Distrust::Version => {
                    "Have the other side, or a proxy that ends TLS before it, speak TLS 1.2 or 1.3."
                }
                Distrust::NoTls => "Check the port in server option \"instance_url\".",
                Distrust::Other(_) => "Check the instance's certificate.",
            },
        ),
        Error::Broken { reason, .. } => {
            plain(Sql::ERRCODE_CONNECTION_FAILURE, &format!("connection broke: {reason}"), "Try again.")
        }
        Error::TimedOut { .. } => plain(
            Sql::ERRCODE_CONNECTION_FAILURE,
            "no answer came in time",
            "Try again; if it happens often, raise the server option request_timeout.",
        ),
        Error::Login => plain(
            Sql::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
            "login was refused",
            &format!(
                "Check the user mapping's credentials, and that the OAuth client is active in ServiceNow. So that no account is locked a refused login is not tried again for a while, a password no more than three times: ALTER USER MAPPING has it tried at once. A login in a browser begins anew with SELECT servicenow.authorize_url('{server}')."
            ),
        ),
        Error::NoConsent => plain(
            Sql::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
            &error.to_string(),
            &format!("Open in a browser what SELECT servicenow.authorize_url('{server}') gives, and log in."),
        ),
        Error::Unauthorized(words) => spoken(
            Sql::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
            words,
            "User Not Authenticated",
            "Check the user mapping's credentials, and that the user is active and may use web services.",
        ),
        Error::Refused { refusal, words } => {
            let (code, hint) = refused(*refusal);
            spoken(code, words, "Operation Failed", hint)
        }
        Error::NoTable(words) => spoken(
            Sql::ERRCODE_FDW_TABLE_NOT_FOUND,
            words,
            "Invalid table",
            "Check the table's name (option \"table\"), and that the user may see it.",
        ),
        Error::NoRecord(words) => spoken(
            Sql::ERRCODE_NO_DATA_FOUND,
            words,
            "No Record found",
            "The record was deleted in ServiceNow, or the user may not see it.",
        ),
        Error::RateLimited { words, .. } => spoken(
            Sql::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            words,
            "Rate limit exceeded",
            "Wait, or have the rate limit rule for this user raised in ServiceNow.",
        ),
        Error::BudgetUsedUp { .. } => plain(
            Sql::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            &error.to_string(),
            "Wait, or raise the server option max_calls_per_hour.",
        ),
        Error::Discarded => plain(
            Sql::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            &error.to_string(),
            "Lower the server option max_concurrency.",
        ),
        Error::Unavailable { .. } | Error::Unheard { .. } => plain(
            Sql::ERRCODE_CONNECTION_FAILURE,
            &error.to_string(),
            "The instance may be restarting or overloaded; try again later.",
        ),
        Error::Unreadable(_) | Error::CutShort(_) | Error::TooLarge { .. } | Error::NoSysId => plain(
            Sql::ERRCODE_FDW_UNABLE_TO_CREATE_REPLY,
            &error.to_string(),
            "Open the instance's address in a browser: it may be asleep, or a login page may stand before it.",
        ),
        Error::Rejected { status, words }
            if *status == 413
                || std::iter::once(&words.message)
                    .chain(&words.detail)
                    .any(|text| text.contains("large REST payload")) =>
        {
            spoken(
                Sql::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                words,
                "Request is too large",
                "A request may have 10 MB; write less at a time.",
            )
        }
        Error::Rejected { words, .. } => spoken(
            Sql::ERRCODE_FDW_ERROR,
            words,
            "Request was rejected",
            "The instance did not accept the request; its log says more.",
        ),
        Error::Value { .. } => plain(
            Sql::ERRCODE_FDW_INVALID_DATA_TYPE,
            &error.to_string(),
            "Change the column's type, to text if need be.",
        ),
        Error::NoField { table, field } => ErrorReport::new(
            Sql::ERRCODE_FDW_COLUMN_NAME_NOT_FOUND,
            format!("table \"{table}\" on server \"{server}\" has no field \"{field}\""),
            "",
        )
        .set_hint("Check the column's name or its option \"field\", and the option \"query\"."),
        Error::TooLong | Error::Query(_) | Error::Name(_) => {
            plain(Sql::ERRCODE_FDW_ERROR, &error.to_string(), "Simplify the option \"query\".")
        }
        Error::Setup(_) => {
            let hint = "Check the options of the server and the user mapping, and that files they name can be read by the server process.";
            plain(Sql::ERRCODE_INVALID_PARAMETER_VALUE, &error.to_string(), hint)
        }
    }
}

/// The instance may or may not have done what it was asked for.
pub fn unknown_outcome(what: &str, server: &str, why: &str) -> ErrorReport {
    error(
        Sql::ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN,
        format!("outcome of the attempt to {what} on server \"{server}\" is unknown: {why}"),
    )
    .set_hint("The record is read again; look at it before you repeat the statement.")
}

/// What the instance says, in its own words.
fn spoken(code: Sql, words: &Words, otherwise: &str, hint: &str) -> ErrorReport {
    let message = if words.message.is_empty() { otherwise } else { &words.message };
    let report = ErrorReport::new(code, format!("[ServiceNow] {}", one_line(message)), "").set_hint(hint);
    match &words.detail {
        Some(detail) => report.set_detail(detail.clone()),
        None => report,
    }
}

fn refused(refusal: Refusal) -> (Sql, &'static str) {
    match refusal {
        Refusal::Acl => (
            Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "Give the user a role that an access control rule (ACL) of the table asks for.",
        ),
        Refusal::QueryAcl => (
            Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "Give the user read access, and query access where it is set apart, to every field the table's query and sort order use.",
        ),
        Refusal::Mandatory => (
            Sql::ERRCODE_NOT_NULL_VIOLATION,
            "Set the fields that the data policy names, in the same statement.",
        ),
        Refusal::Unique => {
            (Sql::ERRCODE_UNIQUE_VIOLATION, "A record with this key exists in ServiceNow already.")
        }
        Refusal::Aborted => (
            Sql::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
            "A business rule of the instance does not allow the change; its own message is in the instance's log.",
        ),
    }
}

/// A primary message is one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Raises an ERROR.
pub fn raise(report: impl Into<ErrorReport>) -> ! {
    report.into().report(PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// An ERROR of our own.
pub fn error(code: Sql, message: impl Into<String>) -> ErrorReport {
    ErrorReport::new(code, message.into(), "")
}
