//! Every option of the SQL surface: one table of names, the validator that reads it, and typed values.
//!
//! Called in backends (the validator, imports, writes) and in the worker.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use lettre::Address;
use pgrx::PgSqlErrorCode as Sql;
use pgrx::pg_sys::panic::ErrorReport;
use servicenow::client::address::is_private;
use servicenow::client::auth::{Credentials, OauthClient, Secret, SecretSource, is_private_key};
use servicenow::query::Query;
use servicenow::value::{Show, TableName, is_field_path};
use url::{Host, Url};

use crate::pg::catalog::{Options, parse_milliseconds};
use crate::pg::session;
use crate::setting;

/// Where an option may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// CREATE FOREIGN DATA WRAPPER.
    Wrapper,
    /// CREATE SERVER.
    Server,
    /// CREATE USER MAPPING.
    UserMapping,
    /// CREATE FOREIGN TABLE.
    Table,
    /// A column of a foreign table.
    Column,
}

/// What a value has to look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Any text but none.
    Text,
    /// An address of an instance or token endpoint.
    Url,
    /// An address of a proxy.
    ProxyUrl,
    /// `true` or `false` in any of Postgres's spellings.
    Boolean,
    /// A time of at least so many milliseconds.
    Time(i32),
    /// A whole number within bounds.
    Integer(u32, u32),
    /// An encoded query.
    Query,
    /// A table's name in ServiceNow.
    TableName,
    /// A field, or a dot-walk.
    Field,
    /// Addresses of mail, with commas between them.
    Mail,
    /// Where reads get their rows from.
    Mode,
    /// A private key, which is not shown.
    PrivateKey,
    /// One of these words.
    OneOf(&'static [&'static str]),
}

/// The ways to log in.
const LOGINS: &[&str] = &[
    "client_credentials",
    "password",
    "authorization_code",
    "refresh_token",
    "jwt_bearer",
    "basic",
    "api_key",
];
/// The options that are secrets; each one may be in a file instead, whose name is an option of its own.
const SECRETS: &[(&str, &str)] = &[
    ("client_secret", "client_secret_file"),
    ("password", "password_file"),
    ("refresh_token", "refresh_token_file"),
    ("api_key", "api_key_file"),
    ("private_key", "private_key_file"),
];

/// Every option: name, where it may stand, what its value looks like.
const OPTIONS: &[(&str, Context, Kind)] = &[
    ("instance_url", Context::Server, Kind::Url),
    ("allow_http", Context::Server, Kind::Boolean),
    ("sync_user", Context::Server, Kind::Text),
    ("capture", Context::Server, Kind::OneOf(&["poll", "queue", "webhook"])),
    ("webhook_url", Context::Server, Kind::Url),
    ("poll_interval", Context::Server, Kind::Time(100)),
    ("reconcile_interval", Context::Server, Kind::Time(1_000)),
    ("scrub_interval", Context::Server, Kind::Time(1_000)),
    ("page_size", Context::Server, Kind::Integer(1, 10_000)),
    ("max_concurrency", Context::Server, Kind::Integer(1, 64)),
    ("max_calls_per_hour", Context::Server, Kind::Integer(1, 100_000_000)),
    ("connect_timeout", Context::Server, Kind::Time(1)),
    ("request_timeout", Context::Server, Kind::Time(1)),
    ("ca_file", Context::Server, Kind::Text),
    ("proxy_url", Context::Server, Kind::ProxyUrl),
    ("notify_email", Context::Server, Kind::Mail),
    ("auth", Context::UserMapping, Kind::OneOf(LOGINS)),
    ("client_id", Context::UserMapping, Kind::Text),
    ("client_secret", Context::UserMapping, Kind::Text),
    ("client_secret_file", Context::UserMapping, Kind::Text),
    ("username", Context::UserMapping, Kind::Text),
    ("password", Context::UserMapping, Kind::Text),
    ("password_file", Context::UserMapping, Kind::Text),
    ("refresh_token", Context::UserMapping, Kind::Text),
    ("refresh_token_file", Context::UserMapping, Kind::Text),
    ("api_key", Context::UserMapping, Kind::Text),
    ("api_key_file", Context::UserMapping, Kind::Text),
    ("private_key", Context::UserMapping, Kind::PrivateKey),
    ("private_key_file", Context::UserMapping, Kind::Text),
    ("key_id", Context::UserMapping, Kind::Text),
    ("subject", Context::UserMapping, Kind::Text),
    ("token_url", Context::UserMapping, Kind::Url),
    ("table", Context::Table, Kind::TableName),
    ("query", Context::Table, Kind::Query),
    ("mode", Context::Table, Kind::Mode),
    ("updatable", Context::Table, Kind::Boolean),
    ("poll_interval", Context::Table, Kind::Time(100)),
    ("cdc", Context::Table, Kind::Boolean),
    ("on_rollback", Context::Table, Kind::OneOf(&["resync", "compensate"])),
    ("optimistic_lock", Context::Table, Kind::Boolean),
    ("field", Context::Column, Kind::Field),
    ("show", Context::Column, Kind::OneOf(&["value", "label"])),
    ("index", Context::Column, Kind::Boolean),
];

/// An option that is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    sqlstate: Sql,
    message: String,
    hint: String,
}

impl OptionError {
    fn new(sqlstate: Sql, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { sqlstate, message: message.into(), hint: hint.into() }
    }

    fn value(name: &str, value: &str, hint: impl Into<String>) -> Self {
        let message = format!("invalid value for option \"{name}\": \"{value}\"");
        Self::new(Sql::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
    }

    fn missing(name: &str, hint: impl Into<String>) -> Self {
        Self::new(Sql::ERRCODE_FDW_OPTION_NAME_NOT_FOUND, format!("option \"{name}\" is required"), hint)
    }
}

impl From<OptionError> for ErrorReport {
    fn from(e: OptionError) -> Self {
        let report = ErrorReport::new(e.sqlstate, e.message, "");
        if e.hint.is_empty() { report } else { report.set_hint(e.hint) }
    }
}

impl std::fmt::Display for OptionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

/// A result whose error names the option.
pub type Result<T> = std::result::Result<T, OptionError>;

/// Checks all options of one object, as the validator gets them.
pub fn validate(context: Context, options: &Options) -> Result<()> {
    for (name, value) in options {
        let Some((_, _, kind)) = OPTIONS.iter().find(|(n, c, _)| n == name && *c == context) else {
            return Err(unexpected(context, name));
        };
        check(name, value, *kind)?;
    }
    match context {
        Context::Server => ServerOptions::parse(options).and_then(|server| may_set(&server, options)),
        Context::UserMapping => credentials(options).and_then(|login| {
            may_map(options)?;
            login
                .token_url
                .map_or(Ok(()), |url| may_name("token_url", find(options, "token_url"), &url, false))
        }),
        Context::Table => TableOptions::parse(options).and_then(|table| may_ask(&table)),
        Context::Wrapper | Context::Column => Ok(()),
    }
}

/// Checks what only some may set. Whoever uses the server later need not be one of them.
fn may_set(server: &ServerOptions, options: &Options) -> Result<()> {
    let allow_http = find(options, "allow_http").map_or(Ok(false), |v| parse_boolean("allow_http", v))?;
    if allow_http && !session::is_superuser() {
        return Err(OptionError::new(
            Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "only a superuser may set option \"allow_http\"",
            "Use an address that begins with https.",
        ));
    }
    if let Some(role) = server.sync_user.as_deref().and_then(session::role)
        && !session::has_privileges_of(session::current_user(), role)
    {
        return Err(OptionError::new(
            Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "permission denied to set option \"sync_user\"",
            "The worker would log in with that role's user mapping: only roles with its privileges may set it.",
        ));
    }
    if server.ca_file.is_some() && !session::may_read_server_files() {
        return Err(OptionError::new(
            Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "permission denied to set option \"ca_file\"",
            "Only roles with privileges of role pg_read_server_files may set it.",
        ));
    }
    if server.proxy_url.is_some() && !session::is_superuser() {
        return Err(OptionError::new(
            Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "only a superuser may set option \"proxy_url\"",
            "Ask a superuser to set it.",
        ));
    }
    if let Some(url) = &server.webhook_url {
        require_https("webhook_url", find(options, "webhook_url"), url, allow_http)?;
    }
    may_name("instance_url", find(options, "instance_url"), &server.instance_url, allow_http)
}

/// Checks an address that is connected to, as far as it can be without resolving names. What those lead to is looked
/// at when it is connected to, see [`crate::connection::trust`].
fn may_name(name: &str, value: Option<&str>, url: &Url, allow_http: bool) -> Result<()> {
    require_https(name, value, url, allow_http)?;
    if is_private(url) && !session::is_superuser() && !setting::allow_private_addresses() {
        return Err(OptionError::new(
            Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("only a superuser may set option \"{name}\" to an address that is not public"),
            PRIVATE_HINT,
        ));
    }
    Ok(())
}

/// What to do where a private address is refused.
pub const PRIVATE_HINT: &str =
    "A superuser may own the server, or turn on servicenow_fdw.allow_private_addresses.";

/// Checks a query that the instance would run code for, as the worker's user and not as whoever wrote it.
fn may_ask(table: &TableOptions) -> Result<()> {
    if table.query_text.to_ascii_lowercase().contains("javascript:") && !session::is_superuser() {
        return Err(OptionError::new(
            Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "only a superuser may set option \"query\" to one with a script",
            "Use values, or operators such as RELATIVEGE and DYNAMIC, instead of \"javascript:\".",
        ));
    }
    Ok(())
}

/// Checks what only some may have in a user mapping, and what must not be there twice.
fn may_map(options: &Options) -> Result<()> {
    for (text, file) in SECRETS.iter().filter(|(_, file)| find(options, file).is_some()) {
        if !session::may_read_server_files() {
            return Err(OptionError::new(
                Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied to set option \"{file}\""),
                "Only roles with privileges of role pg_read_server_files may set it.",
            ));
        }
        if find(options, text).is_some() {
            return Err(OptionError::new(
                Sql::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("options \"{text}\" and \"{file}\" cannot be used together"),
                "Drop one of them.",
            ));
        }
    }
    Ok(())
}

/// `value` is the address as it was written.
fn require_https(name: &str, value: Option<&str>, url: &Url, allow_http: bool) -> Result<()> {
    if url.scheme() == "https" || allow_http || is_loopback(url) {
        return Ok(());
    }
    let hint = "The address must begin with https; plain http is accepted for loopback addresses only, or with server option allow_http.";
    Err(OptionError::value(name, value.unwrap_or_default(), hint))
}

fn unexpected(context: Context, name: &str) -> OptionError {
    let valid: Vec<&str> = OPTIONS.iter().filter(|(_, c, _)| *c == context).map(|(n, _, _)| *n).collect();
    let hint = match valid.is_empty() {
        true => "There are no valid options in this context.".to_owned(),
        false => format!("Valid options in this context are: {}", valid.join(", ")),
    };
    OptionError::new(Sql::ERRCODE_FDW_INVALID_OPTION_NAME, format!("invalid option \"{name}\""), hint)
}

fn check(name: &str, value: &str, kind: Kind) -> Result<()> {
    match kind {
        Kind::Text if value.is_empty() => {
            Err(OptionError::value(name, value, "The value must not be empty."))
        }
        Kind::Text => Ok(()),
        Kind::Url => parse_url(name, value).map(|_| ()),
        Kind::ProxyUrl => parse_proxy_url(name, value).map(|_| ()),
        Kind::Boolean => parse_boolean(name, value).map(|_| ()),
        Kind::Time(least) => parse_time(name, value, least).map(|_| ()),
        Kind::Integer(least, most) => parse_integer(name, value, least, most).map(|_| ()),
        Kind::Query => parse_query(name, value).map(|_| ()),
        Kind::TableName => TableName::new(value).map(|_| ()).map_err(|_| {
            OptionError::value(name, value, "A table's name consists of letters, digits and underscores.")
        }),
        Kind::Field if is_field_path(value) => Ok(()),
        Kind::Field => Err(OptionError::value(
            name,
            value,
            "A field's name consists of letters, digits and underscores; dots lead to fields of referenced records.",
        )),
        Kind::Mail => parse_mail(name, value).map(|_| ()),
        Kind::Mode if value == "live" => Err(OptionError::new(
            Sql::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("value \"live\" of option \"{name}\" is not supported"),
            "Use \"cached\"; servicenow_fdw.max_staleness bounds how old what is read may be.",
        )),
        Kind::Mode => check(name, value, Kind::OneOf(&["cached"])),
        Kind::PrivateKey if is_private_key(&Secret::new(value)) => Ok(()),
        Kind::PrivateKey => Err(OptionError::new(
            Sql::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("invalid value for option \"{name}\""),
            "The value must be an unencrypted RSA key of 2048 to 4096 bits in PEM form.",
        )),
        Kind::OneOf(words) if words.contains(&value) => Ok(()),
        Kind::OneOf(words) => {
            Err(OptionError::value(name, value, format!("Valid values are: {}", words.join(", "))))
        }
    }
}

fn parse_url(name: &str, value: &str) -> Result<Url> {
    let url =
        Url::parse(value).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some());
    let Some(url) = url else {
        let hint = "The value must be an address such as https://acme.service-now.com.";
        // What is malformed may hold credentials.
        let error = OptionError::value(name, value, hint);
        let message = format!("invalid value for option \"{name}\"");
        return Err(if value.contains('@') { OptionError { message, ..error } } else { error });
    };
    without_credentials(name, url)
}

fn parse_proxy_url(name: &str, value: &str) -> Result<Url> {
    let url = Url::parse(value).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h")
            && url.host_str().is_some_and(|host| !host.is_empty())
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none()
    });
    let Some(url) = url else {
        let message = format!("invalid value for option \"{name}\"");
        let hint = "The value must be an address such as http://proxy.example:3128; schemes are http, https, socks5 and socks5h.";
        return Err(OptionError::new(Sql::ERRCODE_INVALID_PARAMETER_VALUE, message, hint));
    };
    if !url.username().is_empty() || url.password().is_some() {
        let message = format!("invalid value for option \"{name}\"");
        let hint = "Everybody can read the options of servers, so the address must not hold credentials; let the proxy accept this host without.";
        return Err(OptionError::new(Sql::ERRCODE_INVALID_PARAMETER_VALUE, message, hint));
    }
    Ok(url)
}

fn without_credentials(name: &str, url: Url) -> Result<Url> {
    if !url.username().is_empty() || url.password().is_some() {
        let message = format!("invalid value for option \"{name}\"");
        let hint = "Credentials belong into the user mapping, not into an address.";
        return Err(OptionError::new(Sql::ERRCODE_INVALID_PARAMETER_VALUE, message, hint));
    }
    Ok(url)
}

fn parse_boolean(name: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "t" | "on" | "yes" | "y" | "1" => Ok(true),
        "false" | "f" | "off" | "no" | "n" | "0" => Ok(false),
        _ => Err(OptionError::value(name, value, "The value must be true or false.")),
    }
}

fn parse_time(name: &str, value: &str, least: i32) -> Result<Duration> {
    let milliseconds = parse_milliseconds(value)
        .map_err(|hint| OptionError::value(name, value, if hint.is_empty() { TIME_HINT } else { &hint }))?;
    match u64::try_from(milliseconds) {
        Ok(ms) if milliseconds >= least => Ok(Duration::from_millis(ms)),
        _ => Err(OptionError::value(name, value, format!("The value must be at least {least} ms."))),
    }
}

const TIME_HINT: &str = "The value must be a time such as 500ms, 10s or 1h.";

fn parse_integer(name: &str, value: &str, least: u32, most: u32) -> Result<u32> {
    let hint = || format!("The value must be a whole number from {least} to {most}.");
    value
        .parse()
        .ok()
        .filter(|n| (least..=most).contains(n))
        .ok_or_else(|| OptionError::value(name, value, hint()))
}

fn parse_mail(name: &str, value: &str) -> Result<Vec<Address>> {
    let hint = "The value must be addresses such as dba@example.com, with commas between them.";
    let addresses = value.split(',').map(|address| address.trim().parse());
    addresses.collect::<std::result::Result<_, _>>().map_err(|_| OptionError::value(name, value, hint))
}

fn parse_query(name: &str, value: &str) -> Result<Query> {
    Query::parse(value)
        .map_err(|e| OptionError::value(name, value, format!("The value must be an encoded query: {e}.")))
}

fn find<'o>(options: &'o Options, name: &str) -> Option<&'o str> {
    options.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

/// How the instance tells of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureMode {
    /// Not at all: it is polled.
    Poll,
    /// By rows in a table of its own.
    Queue,
    /// By requests to the listener.
    Webhook,
}

/// A server's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// The instance.
    pub instance_url: Url,
    /// The role whose user mapping the worker uses, if it is not the server's owner.
    pub sync_user: Option<String>,
    /// How the instance tells of changes.
    pub capture: CaptureMode,
    /// Where webhooks reach the listener, if that is not its own address.
    pub webhook_url: Option<Url>,
    /// The time between two polls of a table.
    pub poll_interval: Duration,
    /// The time between two comparisons of a table with the instance.
    pub reconcile_interval: Duration,
    /// The time within which every record is read again once.
    pub scrub_interval: Duration,
    /// Rows asked for at a time.
    pub page_size: u32,
    /// The most calls in an hour, if there is a limit.
    pub max_calls_per_hour: Option<u32>,
    /// Calls under way at a time.
    pub max_concurrency: usize,
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// The longest wait for an answer.
    pub request_timeout: Duration,
    /// Certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Where connections go through.
    pub proxy_url: Option<Url>,
    /// Who is told by mail when tables are filled, fail or have recovered.
    pub notify_email: Vec<Address>,
}

impl ServerOptions {
    /// Reads a server's options.
    pub fn parse(options: &Options) -> Result<Self> {
        let hint = "Set it to the address of the instance, such as https://acme.service-now.com.";
        let url = find(options, "instance_url").ok_or_else(|| OptionError::missing("instance_url", hint))?;
        let instance_url = parse_url("instance_url", url)?;
        let is_bare = matches!(instance_url.path(), "" | "/");
        if !is_bare || instance_url.query().is_some() || instance_url.fragment().is_some() {
            return Err(OptionError::value("instance_url", url, "The address must not have a path."));
        }
        let time = |name, default: &str| parse_time(name, find(options, name).unwrap_or(default), 1);
        let integer = |name, default: &str, least, most| {
            parse_integer(name, find(options, name).unwrap_or(default), least, most)
        };
        Ok(Self {
            instance_url,
            sync_user: find(options, "sync_user").map(str::to_owned),
            capture: match find(options, "capture") {
                Some("queue") => CaptureMode::Queue,
                Some("webhook") => CaptureMode::Webhook,
                _ => CaptureMode::Poll,
            },
            webhook_url: find(options, "webhook_url").map(|url| parse_url("webhook_url", url)).transpose()?,
            poll_interval: time("poll_interval", "10s")?,
            reconcile_interval: time("reconcile_interval", "1h")?,
            scrub_interval: time("scrub_interval", "7d")?,
            page_size: integer("page_size", "1000", 1, 10_000)?,
            max_calls_per_hour: find(options, "max_calls_per_hour")
                .map(|value| parse_integer("max_calls_per_hour", value, 1, 100_000_000))
                .transpose()?,
            max_concurrency: integer("max_concurrency", "8", 1, 64)? as usize,
            connect_timeout: time("connect_timeout", "10s")?,
            request_timeout: time("request_timeout", "90s")?,
            ca_file: find(options, "ca_file").map(PathBuf::from),
            proxy_url: find(options, "proxy_url").map(|url| parse_proxy_url("proxy_url", url)).transpose()?,
            notify_email: find(options, "notify_email")
                .map_or(Ok(Vec::new()), |value| parse_mail("notify_email", value))?,
        })
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::V6(ip).is_loopback(),
        None => false,
    }
}

/// A login, and the token endpoint if it is not the instance's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The credentials.
    pub credentials: Credentials,
    /// The token endpoint.
    pub token_url: Option<Url>,
}

/// Reads a user mapping's options.
pub fn credentials(options: &Options) -> Result<Login> {
    let auth = find(options, "auth")
        .ok_or_else(|| OptionError::missing("auth", format!("Valid values are: {}", LOGINS.join(", "))))?;
    let hint = || format!("It is needed for auth \"{auth}\".");
    let need =
        |name: &str| find(options, name).map(str::to_owned).ok_or_else(|| OptionError::missing(name, hint()));
    let look_up = |name: &str| {
        let (_, file) = SECRETS.iter().find(|(text, _)| *text == name)?;
        let text = || find(options, name).map(|text| SecretSource::Text(Secret::new(text)));
        find(options, file).map(|path| SecretSource::File(path.into())).or_else(text)
    };
    let secret = |name: &str| look_up(name).ok_or_else(|| OptionError::missing(name, hint()));
    let client = || Ok(OauthClient { id: need("client_id")?, secret: Some(secret("client_secret")?) });
    let credentials = match auth {
        "client_credentials" => Credentials::ClientCredentials { client: client()? },
        "password" => Credentials::Password {
            client: client()?,
            username: need("username")?,
            password: secret("password")?,
        },
        // Public clients have no secret.
        "authorization_code" => Credentials::AuthorizationCode {
            client: OauthClient { id: need("client_id")?, secret: look_up("client_secret") },
        },
        "refresh_token" => Credentials::RefreshToken { client: client()?, token: secret("refresh_token")? },
        "jwt_bearer" => Credentials::JwtBearer {
            client: client()?,
            key: secret("private_key")?,
            key_id: find(options, "key_id").map(str::to_owned),
            subject: need("subject")?,
        },
        "api_key" => Credentials::ApiKey { key: secret("api_key")? },
        _ => Credentials::Basic { username: need("username")?, password: secret("password")? },
    };
    let token_url = find(options, "token_url").map(|url| parse_url("token_url", url)).transpose()?;
    Ok(Login { credentials, token_url })
}

/// A foreign table's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// The table in ServiceNow, if it is not called like the foreign table.
    pub table: Option<TableName>,
    /// Which records are mirrored, as the user wrote it.
    pub query_text: String,
    /// Which records are mirrored.
    pub query: Query,
    /// Whether the table may be written.
    pub updatable: bool,
    /// The time between two polls, if it is not the server's.
    pub poll_interval: Option<Duration>,
    /// Whether changes are logged.
    pub cdc: bool,
    /// Whether what a rolled back transaction has written is undone in ServiceNow.
    pub compensate: bool,
    /// Whether a record that has changed in ServiceNow meanwhile is not to be written.
    pub optimistic_lock: bool,
}

impl TableOptions {
    /// Reads a foreign table's options.
    pub fn parse(options: &Options) -> Result<Self> {
        let table = find(options, "table")
            .map(|name| TableName::new(name).map_err(|e| OptionError::value("table", name, e.to_string())));
        let query_text = find(options, "query").unwrap_or_default().to_owned();
        Ok(Self {
            table: table.transpose()?,
            query: parse_query("query", &query_text)?,
            query_text,
            updatable: find(options, "updatable").map_or(Ok(true), |v| parse_boolean("updatable", v))?,
            poll_interval: find(options, "poll_interval")
                .map(|v| parse_time("poll_interval", v, 1))
                .transpose()?,
            cdc: find(options, "cdc").map_or(Ok(true), |v| parse_boolean("cdc", v))?,
            compensate: find(options, "on_rollback") == Some("compensate"),
            optimistic_lock: find(options, "optimistic_lock")
                .map_or(Ok(false), |v| parse_boolean("optimistic_lock", v))?,
        })
    }
}

/// A column's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnOptions {
    /// The field, if it is not called like the column.
    pub field: Option<String>,
    /// Which side of the field.
    pub show: Show,
    /// Whether the cache has an index on it.
    pub index: bool,
}

impl ColumnOptions {
    /// Reads a column's options, which the validator has checked.
    pub fn parse(options: &Options) -> Self {
        Self {
            field: find(options, "field").map(str::to_owned),
            show: match find(options, "show") {
                Some("label") => Show::Label,
                _ => Show::Value,
            },
            index: find(options, "index").is_some_and(|v| parse_boolean("index", v).unwrap_or(false)),
        }
    }
}

/// Options of IMPORT FOREIGN SCHEMA, which no validator sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportOptions {
    /// Whether a choice or reference gets a second column with the stored value.
    pub values: bool,
}

impl ImportOptions {
    /// Reads the options.
    pub fn parse(options: &Options) -> Result<Self> {
        let mut parsed = Self { values: true };
        for (name, value) in options {
            match name.as_str() {
                "values" => parsed.values = parse_boolean("values", value)?,
                _ => {
                    return Err(OptionError::new(
                        Sql::ERRCODE_FDW_INVALID_OPTION_NAME,
                        format!("invalid option \"{name}\""),
                        "Valid options in this context are: values",
                    ));
                }
            }
        }
        Ok(parsed)
    }
}
