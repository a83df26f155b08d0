//! The settings of sessions, `servicenow_fdw.*`.

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use url::Url;

/// What reading a table does whose first fill is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum IncompleteReads {
    /// It gives the rows that are there, and a WARNING.
    #[name = c"warn"]
    Warn,
    /// It is an ERROR.
    #[name = c"error"]
    Error,
    /// It waits until the table is complete.
    #[name = c"wait"]
    Wait,
    /// It gives the rows that are there.
    #[name = c"allow"]
    Allow,
}

/// When writes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum Push {
    /// By the statement, which fails if they are refused.
    #[name = c"statement"]
    Statement,
    /// By COMMIT, which fails if they are refused.
    #[name = c"commit"]
    Commit,
    /// Not at all: a NOTICE shows each call.
    #[name = c"dry_run"]
    DryRun,
}

/// Where reads get their rows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum ReadMode {
    /// From the caches.
    #[name = c"cached"]
    Cached,
    /// From ServiceNow; refused until it is there.
    #[name = c"live"]
    Live,
}

static READ_MODE: GucSetting<ReadMode> = GucSetting::<ReadMode>::new(ReadMode::Cached);
static LOG_REQUESTS: GucSetting<bool> = GucSetting::<bool>::new(false);
static SMTP_URL: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static PUSH: GucSetting<Push> = GucSetting::<Push>::new(Push::Statement);
static PUSH_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(256 << 10);
static LISTEN_ADDRESS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static LISTEN_CERT_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static LISTEN_KEY_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static MAX_STALENESS: GucSetting<i32> = GucSetting::<i32>::new(0);
static CDC_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(7 * 24 * 3_600);
static ALLOW_PRIVATE_ADDRESSES: GucSetting<bool> = GucSetting::<bool>::new(false);
static INCOMPLETE_READS: GucSetting<IncompleteReads> =
    GucSetting::<IncompleteReads>::new(IncompleteReads::Warn);

/// Defines the settings. Once per process, when the library is loaded.
pub fn define() {
    GucRegistry::define_int_guc(
        MAX_STALENESS_NAME,
        c"The age a foreign table's cache may have when it is read.",
        c"A read of an older one waits as long for the next sync, and fails without one. 0 turns this off.",
        &MAX_STALENESS,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_enum_guc(
        c"servicenow_fdw.incomplete_reads",
        c"What reading a foreign table does before it was filled for the first time.",
        c"\"warn\" gives the rows that are there with a WARNING, \"error\" fails, \"wait\" waits, \"allow\" gives what is there.",
        &INCOMPLETE_READS,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"servicenow_fdw.push",
        c"When writes to foreign tables are sent to ServiceNow.",
        c"\"statement\" sends them with the statement, \"commit\" with the COMMIT, \"dry_run\" shows them and sends nothing.",
        &PUSH,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        PUSH_MEMORY_NAME,
        c"The memory that writes may take which wait for COMMIT.",
        c"One that would take more fails.",
        &PUSH_MEMORY,
        64,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"servicenow_fdw.cdc_retention",
        c"How long changes stay in servicenow._sync_cdc.",
        c"-1 keeps them for ever.",
        &CDC_RETENTION,
        -1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    crate::pg::session::define_choice_of_one(
        c"servicenow_fdw.read_mode",
        c"Where reads of foreign tables get their rows from.",
        c"\"cached\" reads the caches; \"live\" is not supported.",
        &READ_MODE,
    );
    GucRegistry::define_bool_guc(
        c"servicenow_fdw.log_requests",
        c"Logs each request that is sent to ServiceNow.",
        c"Method, path, status, milliseconds and bytes; neither queries nor bodies.",
        &LOG_REQUESTS,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"servicenow_fdw.allow_private_addresses",
        c"Lets servers of roles that are not superusers connect to addresses that are not public.",
        c"Those are this host's own, those of private networks, and what else only this host can reach.",
        &ALLOW_PRIVATE_ADDRESSES,
        GucContext::Suset,
        GucFlags::default(),
    );
    let texts = [
        (
            c"servicenow_fdw.smtp_url",
            c"The mail server through which servers' option notify_email is served.",
            c"Such as smtps://user@mail.example.com?from=postgres@example.com&password_file=/etc/postgresql/mail. Empty turns mail off.",
            &SMTP_URL,
        ),
        (
            c"servicenow_fdw.listen_address",
            c"Where ServiceNow's webhooks are listened for: host and port.",
            c"Empty turns this off. One worker of the cluster listens for all databases.",
            &LISTEN_ADDRESS,
        ),
        (
            c"servicenow_fdw.listen_cert_file",
            c"The certificate of the listener for webhooks, with its chain (PEM).",
            c"Without one it listens on loopback addresses only.",
            &LISTEN_CERT_FILE,
        ),
        (
            c"servicenow_fdw.listen_key_file",
            c"The private key of the listener for webhooks (PEM).",
            c"",
            &LISTEN_KEY_FILE,
        ),
    ];
    for (name, short, long, setting) in texts {
        GucRegistry::define_string_guc(
            name,
            short,
            long,
            setting,
            GucContext::Sighup,
            GucFlags::SUPERUSER_ONLY,
        );
    }
    crate::failpoint::define();
    crate::pg::session::reserve_settings(PREFIX);
}

const MAX_STALENESS_NAME: &CStr = c"servicenow_fdw.max_staleness";
const PUSH_MEMORY_NAME: &CStr = c"servicenow_fdw.push_memory";
const PREFIX: &CStr = c"servicenow_fdw";

/// The age a cache may have when it is read; `None` for any.
pub fn max_staleness() -> Option<Duration> {
    match u64::try_from(MAX_STALENESS.get()) {
        Ok(milliseconds) if milliseconds > 0 => Some(Duration::from_millis(milliseconds)),
        _ => None,
    }
}

/// The same as SHOW prints it.
pub fn max_staleness_text() -> String {
    crate::pg::session::setting(MAX_STALENESS_NAME)
}

/// How long changes stay in the log; `None` is for ever.
pub fn cdc_retention() -> Option<Duration> {
    u64::try_from(CDC_RETENTION.get()).ok().map(Duration::from_secs)
}

/// Whether those who are no superusers may have servers at addresses that are not public.
pub fn allow_private_addresses() -> bool {
    ALLOW_PRIVATE_ADDRESSES.get()
}

/// Where webhooks are listened for; `None` if they are not.
pub fn listen_address() -> Option<String> {
    text(&LISTEN_ADDRESS)
}

/// Where the listener is reached: at an address of a proxy before it, or at its own; `None` if nobody listens.
pub fn listener_url(proxy: Option<&Url>) -> Option<Url> {
    let address = listen_address()?;
    let scheme = if listen_certificate().is_some() { "https" } else { "http" };
    proxy.cloned().or_else(|| Url::parse(&format!("{scheme}://{address}")).ok())
}

/// The listener's certificate and key, if it is to have any. One without the other cannot be read.
pub fn listen_certificate() -> Option<(PathBuf, PathBuf)> {
    let (certificate, key) = (text(&LISTEN_CERT_FILE), text(&LISTEN_KEY_FILE));
    let is_wanted = certificate.is_some() || key.is_some();
    is_wanted.then(|| (certificate.unwrap_or_default().into(), key.unwrap_or_default().into()))
}

/// Whether requests are written into the server log.
pub fn log_requests() -> bool {
    LOG_REQUESTS.get()
}

/// The mail server, with its password; `None` if there is to be no mail.
pub fn smtp_url() -> Option<String> {
    text(&SMTP_URL)
}

fn text(setting: &GucSetting<Option<CString>>) -> Option<String> {
    let text = setting.get()?.into_string().ok()?;
    (!text.is_empty()).then_some(text)
}

/// The memory that writes may take which wait for COMMIT, in bytes.
pub fn push_memory() -> usize {
    usize::try_from(PUSH_MEMORY.get()).unwrap_or_default() << 10
}

/// The same as SHOW prints it.
pub fn push_memory_text() -> String {
    crate::pg::session::setting(PUSH_MEMORY_NAME)
}

/// When writes are sent.
pub fn push() -> Push {
    PUSH.get()
}

/// What reading an incomplete table does.
pub fn incomplete_reads() -> IncompleteReads {
    INCOMPLETE_READS.get()
}
