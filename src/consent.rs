//! Logins by a user's consent in a browser: `authorize_url()` and `exchange_code()`. The worker's listener takes what
//! comes back from the browser, too ([`crate::worker::login`]).
//!
//! What has to be known when the browser is back is in a file: the transaction that has asked may be rolled back.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgSqlErrorCode as Sql, pg_sys};
use serde::{Deserialize, Serialize};
use servicenow::client::auth::consent::Consent;
use servicenow::client::auth::{self, Credentials, Secret};
use url::Url;

use crate::connection::{Errand, WORKER, connection, new_client, trust};
use crate::error::{error, raise};
use crate::login::{self, Login, PREFIX};
use crate::option::ServerOptions;
use crate::pg;
use crate::push::intent;
use crate::setting;

/// Where the listener takes in what comes back from a browser.
pub const CALLBACK: &str = "/oauth/callback";
/// Where the browser is sent to if nobody listens: the address that it then shows has code and state in it.
const NOWHERE: &str = "http://localhost/oauth/callback";
/// How long a user has for it.
const LIFE: Duration = Duration::from_secs(600);

/// A consent that is waited for, in a file whose name has a digest of the state.
#[derive(Serialize, Deserialize)]
struct Awaited {
    server: u32,
    mapping: u32,
    /// The version of the user mapping.
    login: String,
    /// The role that has asked for it.
    role: u32,
    verifier: String,
    redirect_uri: Url,
    /// Seconds since 1970.
    expires_at: u64,
}

/// A consent that has been waited for.
pub struct Claimed {
    /// The exchange, with the login that it is for.
    pub errand: Errand,
    /// What was sent along.
    pub consent: Consent,
    /// Who logs in: a role's name, or PUBLIC.
    pub role: String,
}

/// What a state is not good for.
#[derive(Clone, Copy, Debug)]
pub enum Unknown {
    /// Nobody waits for it any more, or has ever done so.
    State,
    /// It is of another server, or of another user.
    Other,
    /// The user mapping was altered meanwhile.
    Altered,
}

impl Unknown {
    /// In words.
    pub fn reason(self) -> &'static str {
        match self {
            Self::State => "the state is not known, was used already or has expired",
            Self::Other => "the state is of another server or user",
            Self::Altered => "the user mapping was altered meanwhile",
        }
    }
}

/// Where the current user has to go with a browser to log in to a server.
pub fn authorize_url(name: &str) -> String {
    let (server, options, mapping, login) = mine(name);
    let Credentials::AuthorizationCode { client } = &login.credentials else { raise(no_consent(name)) };
    let state_prefix = format!("{}.", pg::worker::database().to_u32());
    let consent = Consent::new(&state_prefix, redirect_uri(&options));
    let address = consent.url(&options.instance_url, &client.id);
    let address = address.unwrap_or_else(|e| raise(error(Sql::ERRCODE_FDW_ERROR, e.to_string())));
    let expires_at = since_1970() + LIFE;
    let awaited = Awaited {
        server: server.to_u32(),
        mapping: mapping.to_u32(),
        login: login.name,
        role: pg::session::current_user().to_u32(),
        verifier: consent.verifier.reveal().to_owned(),
        redirect_uri: consent.redirect_uri,
        expires_at: expires_at.as_secs(),
    };
    if let Err(e) = remember(&consent.state, &awaited) {
        let directory = login::directory();
        let message = format!("could not write to directory \"{}\": {e}", directory.display());
        raise(error(Sql::ERRCODE_IO_ERROR, message));
    }
    address.into()
}

/// Logs the current user in with the code that a browser has brought back.
pub fn exchange_code(name: &str, code: &str, state: &str) {
    let (server, _, mapping, login) = mine(name);
    if !matches!(login.credentials, Credentials::AuthorizationCode { .. }) {
        raise(no_consent(name));
    }
    let role = pg::session::current_user();
    let is_mine = |awaited: &Awaited| {
        (awaited.server, awaited.mapping, awaited.role) == (server.to_u32(), mapping.to_u32(), role.to_u32())
    };
    let claimed = take(&Secret::new(state), is_mine)
        .and_then(|awaited| if awaited.login == login.name { Ok(awaited) } else { Err(Unknown::Altered) });
    let awaited = claimed.unwrap_or_else(|unknown| {
        let message = format!("cannot exchange the code: {}", unknown.reason());
        let hint = format!("Begin again with SELECT servicenow.authorize_url('{name}').");
        raise(error(Sql::ERRCODE_INVALID_PARAMETER_VALUE, message).set_hint(hint))
    });
    let (code, consent) = (Secret::new(code), awaited.consent(state));
    connection(server, role).call("exchange the code", false, |client| async move {
        client.exchange_code(code.reveal(), &consent).await
    });
}

/// Takes over what a browser has brought back. By the worker, in a transaction.
pub fn claim(state: &str) -> Result<Claimed, String> {
    let awaited = take(&Secret::new(state), |_| true).map_err(|unknown| unknown.reason().to_owned())?;
    let altered = || Unknown::Altered.reason().to_owned();
    let server = pg_sys::Oid::from(awaited.server);
    let read = || -> Result<Claimed, String> {
        let description = pg::catalog::server(server);
        let options = ServerOptions::parse(&description.options).map_err(|e| e.to_string())?;
        let mapping = pg::catalog::mapping(awaited.mapping.into(), server).ok_or_else(altered)?;
        let login = Login::of(server, &options, &mapping).map_err(|e| e.to_string())?;
        if login.name != awaited.login {
            return Err(altered());
        }
        // What the role might do when it asked may have been taken from it since.
        let asked_by = pg_sys::Oid::from(awaited.role);
        if !pg::session::is_role(asked_by) || !may_log_in(asked_by, server, &mapping) {
            return Err(format!(
                "whoever has begun this may not log in to server {} any more",
                description.name
            ));
        }
        let role = mapping.role.map_or_else(|| "PUBLIC".to_owned(), pg::session::role_name);
        let user = mapping.role.unwrap_or(pg_sys::InvalidOid);
        let trust = trust(&description, &options, user, &mapping);
        let client = new_client(&options, login, trust, WORKER).map_err(|e| e.to_string())?;
        let errand = Errand { server, name: description.name, client };
        Ok(Claimed { errand, consent: awaited.consent(state), role })
    };
    pg::xact::subtransaction(std::panic::AssertUnwindSafe(read)).unwrap_or_else(|caught| Err(caught.message))
}

/// The server of a name, and the login of the current user there. Who logs in for others has to own the server.
fn mine(name: &str) -> (pg_sys::Oid, ServerOptions, pg_sys::Oid, Login) {
    let server = pg::catalog::server_by_name(name);
    let (role, description) = (pg::session::current_user(), pg::catalog::server(server));
    let options = ServerOptions::parse(&description.options).unwrap_or_else(|e| raise(e));
    let mapping = pg::catalog::user_mapping(role, server);
    if !may_log_in(role, server, &mapping) {
        let message = format!("permission denied for foreign server {name}");
        let detail = "The user mapping is not this user's own, or there is no USAGE privilege on the server.";
        raise(error(Sql::ERRCODE_INSUFFICIENT_PRIVILEGE, message).set_detail(detail));
    }
    let login = Login::of(server, &options, &mapping).unwrap_or_else(|e| raise(e));
    (server, options, mapping.oid, login)
}

/// Whether a role may log in for a user mapping: for its own, or as the server's owner.
fn may_log_in(role: pg_sys::Oid, server: pg_sys::Oid, mapping: &pg::catalog::Mapping) -> bool {
    let is_own = mapping.role == Some(role) && pg::session::may_use_server(role, server);
    is_own || pg::session::role_owns_server(role, server)
}

fn no_consent(server: &str) -> ErrorReport {
    let message = format!("the user mapping for server \"{server}\" does not log in by consent");
    error(Sql::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message)
        .set_hint("Set its option auth to authorization_code.")
}

/// Where the browser is sent back to.
fn redirect_uri(options: &ServerOptions) -> Url {
    let nowhere = || Url::parse(NOWHERE).expect("a constant address");
    let Some(mut url) = setting::listener_url(options.webhook_url.as_ref()) else { return nowhere() };
    url.set_path(CALLBACK);
    url.set_query(None);
    url.set_fragment(None);
    url
}

impl Awaited {
    fn consent(&self, state: &str) -> Consent {
        Consent {
            state: Secret::new(state),
            verifier: Secret::new(self.verifier.clone()),
            redirect_uri: self.redirect_uri.clone(),
        }
    }
}

fn path(state: &Secret) -> PathBuf {
    path_in(&login::directory(), state)
}

fn path_in(directory: &Path, state: &Secret) -> PathBuf {
    let digest = auth::digest(std::slice::from_ref(state));
    directory.join(format!("{PREFIX}.consent.{digest}"))
}

/// Whether anybody may wait for a state, by the directory of a database's logins: for threads that Postgres knows nothing of.
pub fn is_awaited(directory: &Path, state: &Secret) -> bool {
    path_in(directory, state).exists()
}

fn remember(state: &Secret, awaited: &Awaited) -> std::io::Result<()> {
    intent::make_directory()?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(login::directory())?;
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path(state))?;
    file.write_all(&serde_json::to_vec(awaited)?)
}

/// What was remembered of a state, once: whoever removes the file has it.
fn take(state: &Secret, is_wanted: impl Fn(&Awaited) -> bool) -> Result<Awaited, Unknown> {
    let path = path(state);
    let text = fs::read(&path).map_err(|_| Unknown::State)?;
    let awaited: Awaited = serde_json::from_slice(&text).map_err(|_| Unknown::State)?;
    if !is_wanted(&awaited) {
        return Err(Unknown::Other);
    }
    fs::remove_file(&path).map_err(|_| Unknown::State)?;
    if awaited.expires_at < since_1970().as_secs() { Err(Unknown::State) } else { Ok(awaited) }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
