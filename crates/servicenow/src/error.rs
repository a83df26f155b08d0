//! Everything that can go wrong between us and an instance, told apart as far as the answers allow.

use std::time::Duration;

use crate::query::QueryError;
use crate::value::InvalidName;

/// The instance's own words, from the `error` object of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// `error.message`.
    pub message: String,
    /// `error.detail`, if there is one.
    pub detail: Option<String>,
}

impl std::fmt::Display for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{}: {detail}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Why the instance would not carry out a write or a query it understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Row or table access control.
    Acl,
    /// A field of the query may not be queried or sorted by.
    QueryAcl,
    /// A data policy wants a field that is empty.
    Mandatory,
    /// A unique key exists already.
    Unique,
    /// A business rule or something else aborted the operation.
    Aborted,
}

/// Why the other side of a TLS connection is not taken for the instance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// The certificate is too old.
    #[error("certificate has expired")]
    Expired,
    /// The certificate is of the future.
    #[error("certificate is not valid yet")]
    NotYetValid,
    /// The certificate is another host's.
    #[error("certificate is not for this host name")]
    OtherName,
    /// Nobody who is trusted has signed the certificate.
    #[error("certificate is signed by nobody who is trusted")]
    Issuer,
    /// There is no version of TLS that both sides are willing to speak.
    #[error("TLS 1.2 or later is not spoken there")]
    Version,
    /// What came was not TLS.
    #[error("TLS is not spoken there")]
    NoTls,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// An error of the client. [`crate::client::retry::policy`] decides which ones are worth another attempt.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No connection came about; nothing was sent.
    #[error("could not connect to \"{host}\": {reason}")]
    Connect {
        /// Host and port.
        host: String,
        /// The operating system's or TLS library's reason.
        reason: String,
    },
    /// The name leads to no public address, and is not trusted to lead elsewhere; nothing was sent.
    #[error("\"{host}\" is not a public address")]
    NotPublic {
        /// Host and port.
        host: String,
    },
    /// The other side could not prove to be the instance; nothing was sent.
    #[error("could not connect to \"{host}\": {distrust}")]
    Untrusted {
        /// Host and port.
        host: String,
        /// What is wrong.
        distrust: Distrust,
    },
    /// The connection broke after the request may have reached the instance.
    #[error("connection to \"{host}\" broke: {reason}")]
    Broken {
        /// Host and port.
        host: String,
        /// What happened to the connection.
        reason: String,
    },
    /// No answer came in the time it may take; the request may have been carried out.
    #[error("no answer from \"{host}\" came in time")]
    TimedOut {
        /// Host and port.
        host: String,
    },
    /// The token endpoint refused the credentials; it gives one answer for every cause.
    #[error("login was refused")]
    Login,
    /// A password was sent so often without a word of it in return that it rests; nothing was sent.
    #[error("login is tried again in {} seconds, because the last tries failed without being refused", again_in.as_secs().max(1))]
    Unheard {
        /// When it is sent again.
        again_in: Duration,
    },
    /// Nobody has given their consent in a browser yet, or it has ended.
    #[error("nobody has logged in yet")]
    NoConsent,
    /// The instance does not accept the credentials or token of a call.
    #[error("login was refused: {0}")]
    Unauthorized(Words),
    /// The instance refuses the operation.
    #[error("{words}")]
    Refused {
        /// The kind of refusal.
        refusal: Refusal,
        /// The instance's own words.
        words: Words,
    },
    /// There is no such table, or it may not be seen.
    #[error("{0}")]
    NoTable(Words),
    /// There is no such record, or it may not be seen.
    #[error("{0}")]
    NoRecord(Words),
    /// Too many calls.
    #[error("rate limit exceeded")]
    RateLimited {
        /// How long the instance asks to wait, if it says so.
        retry_after: Option<Duration>,
        /// The instance's own words, if there are any.
        words: Words,
    },
    /// The caller's own budget of calls (`max_calls_per_hour`) is used up; nothing was sent.
    #[error(
        "budget of {per_hour} calls an hour (max_calls_per_hour) is used up, and there is room in {} seconds",
        room_in.as_secs().max(1)
    )]
    BudgetUsedUp {
        /// The most calls in an hour.
        per_hour: u32,
        /// When there is room again.
        room_in: Duration,
    },
    /// Accepted by the front end but discarded: too many calls wait on one session.
    #[error("request was discarded because too many requests wait on one session")]
    Discarded,
    /// A 5xx answer.
    #[error("instance answered with status {status}")]
    Unavailable {
        /// The HTTP status.
        status: u16,
        /// How long the instance asks to wait, if it says so.
        retry_after: Option<Duration>,
    },
    /// A successful status with a body that is no answer: HTML, `null`, nothing, broken JSON.
    #[error("could not read the answer: {0}")]
    Unreadable(String),
    /// A list was cut off by the instance: it carries an `error` besides its rows.
    #[error("instance cut the answer short: {0}")]
    CutShort(Words),
    /// The query or URL is too long.
    #[error("query is too long for the instance")]
    TooLong,
    /// The answer is larger than the client is willing to hold.
    #[error("answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// Any other refusal of the request itself.
    #[error("instance answered with status {status}: {words}")]
    Rejected {
        /// The HTTP status.
        status: u16,
        /// The instance's own words.
        words: Words,
    },
    /// A value does not fit the type its column has.
    #[error("value of field \"{field}\" in record \"{sys_id}\" is not a valid {expected}")]
    Value {
        /// The field.
        field: String,
        /// The record.
        sys_id: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A record came without its `sys_id`.
    #[error("a record has no readable \"sys_id\"")]
    NoSysId,
    /// A field the caller named does not exist.
    #[error("table \"{table}\" has no field \"{field}\"")]
    NoField {
        /// The table.
        table: String,
        /// The field.
        field: String,
    },
    /// A query that cannot be used.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A name that cannot be used.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The client cannot be set up as asked: certificate file, proxy or URL.
    #[error("{0}")]
    Setup(String),
}

/// The result of a client operation.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// How long the instance asks to wait, if it does.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::RateLimited { retry_after, .. } | Error::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether it is certain that the request was not carried out.
    pub(crate) fn was_not_carried_out(&self) -> bool {
        matches!(
            self,
            Error::Connect { .. }
                | Error::NotPublic { .. }
                | Error::Untrusted { .. }
                | Error::Login
                | Error::Unheard { .. }
                | Error::NoConsent
                | Error::Unauthorized(_)
                | Error::RateLimited { .. }
                | Error::BudgetUsedUp { .. }
                | Error::Discarded
        )
    }

    /// Whether the request may have been carried out although no answer says so, or none that can be read.
    pub fn leaves_outcome_unknown(&self) -> bool {
        matches!(
            self,
            Error::Broken { .. }
                | Error::TimedOut { .. }
                | Error::Unreadable(_)
                | Error::CutShort(_)
                | Error::Unavailable { .. }
                | Error::TooLarge { .. }
                | Error::Value { .. }
                | Error::NoSysId
        )
    }
}
