//! Clients of ServiceNow instances, one per server and user mapping in each process.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pgrx::{PgLogLevel, PgSqlErrorCode as Sql, pg_sys};
use servicenow::client::address::Trust;
use servicenow::client::keys::Keys;
use servicenow::client::retry::{Patience, Urgency};
use servicenow::client::transport::{HttpTransport, TransportOptions};
use servicenow::client::{Client, Instance, Traces};
use servicenow::value::TableName;

use crate::catalog;
use crate::error::{Doing, error, raise, report, unknown_outcome};
use crate::keys::KeyFile;
use crate::login::Login;
use crate::option::ServerOptions;
use crate::pg;
use crate::setting;
use crate::worker::mailbox;

/// A client over HTTP.
pub type HttpClient = Client<HttpTransport>;

/// A statement's calls are tried so often, and wait no longer than this for the instance: a user is waiting.
const STATEMENT: Patience =
    Patience { attempts: 4, longest_wait: Duration::from_secs(30), urgency: Urgency::Statement };
/// The worker has time; what takes longer is reported and tried again by the mirror itself.
pub const WORKER: Patience =
    Patience { attempts: 3, longest_wait: Duration::from_secs(60), urgency: Urgency::Background };
/// Who checks wants to hear of trouble, not to have it overcome.
const CHECK: Patience =
    Patience { attempts: 1, longest_wait: Duration::from_secs(1), urgency: Urgency::Statement };
/// What has not answered a check after this long does not work.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

thread_local! {
    static CONNECTIONS: RefCell<HashMap<(pg_sys::Oid, pg_sys::Oid), Connection>> = RefCell::new(HashMap::new());
}

/// A client for statements, and the server's name for messages.
#[derive(Clone)]
pub struct Connection {
    client: HttpClient,
    oid: pg_sys::Oid,
    user: pg_sys::Oid,
    server: String,
    /// The worker logs in the same way, so that it sees what this connection sees.
    is_workers: bool,
    owner: pg_sys::Oid,
    standing: Standing,
    keys: KeyFile,
    /// Whether records are stamped with the time that answers tell, as a write was seen to be.
    is_clock_known: Rc<Cell<bool>>,
}

/// What decides how far the addresses of a server and its user mappings are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    anybody_may: bool,
    owner_may: bool,
    user_may: bool,
}

impl Standing {
    fn of(owner: pg_sys::Oid, user: pg_sys::Oid) -> Self {
        Self {
            anybody_may: setting::allow_private_addresses(),
            owner_may: pg::session::is_superuser_role(owner),
            user_may: pg::session::is_superuser_role(user),
        }
    }
}

/// How far names are trusted in the addresses of a server and the user mapping of a role: as far as those who may
/// have written them. A mapping of PUBLIC's is the server's owner's, any other one may be its role's own.
pub fn trust(
    server: &pg::catalog::Server,
    options: &ServerOptions,
    user: pg_sys::Oid,
    mapping: &pg::catalog::Mapping,
) -> Trust {
    let standing = Standing::of(server.owner, user);
    match standing {
        Standing { anybody_may: true, .. } => Trust::Everywhere,
        Standing { owner_may: true, user_may, .. } if user_may || mapping.role.is_none() => Trust::Everywhere,
        Standing { owner_may: true, .. } => Trust::Origins(vec![options.instance_url.origin()]),
        _ => Trust::Origins(Vec::new()),
    }
}

/// What to do where the worker has no role to log in for.
const SYNC_USER_HINT: &str = "Name a role in server option sync_user that is there and is granted to the server's owner, or drop the option.";

/// The role whose user mapping the worker uses; an error's text if there is no such role.
pub fn sync_user(server: &pg::catalog::Server, options: &ServerOptions) -> Result<pg_sys::Oid, String> {
    let Some(name) = &options.sync_user else { return Ok(server.owner) };
    let what = format!("role \"{name}\" of server option \"sync_user\"");
    let role = pg::session::role(name).ok_or_else(|| format!("{what} does not exist"))?;
    // Else the owner could have another role's secrets sent wherever the server points.
    if !pg::session::has_privileges_of(server.owner, role) {
        return Err(format!(
            "the owner of server \"{}\" does not have the privileges of {what}",
            server.name
        ));
    }
    Ok(role)
}

/// The connection of a user to a server; an ERROR if there is no user mapping.
pub fn connection(server: pg_sys::Oid, user: pg_sys::Oid) -> Connection {
    if catalog::take_servers_changed() {
        CONNECTIONS.with_borrow_mut(HashMap::clear);
    }
    if let Some(known) = CONNECTIONS.with_borrow(|known| known.get(&(server, user)).cloned())
        && known.standing == Standing::of(known.owner, user)
    {
        return known;
    }
    let description = pg::catalog::server(server);
    let options = ServerOptions::parse(&description.options).unwrap_or_else(|e| raise(e));
    let mapping = pg::catalog::user_mapping(user, server);
    let login = Login::of(server, &options, &mapping).unwrap_or_else(|e| raise(e));
    let sync_mapping =
        sync_user(&description, &options).ok().map(|user| pg::catalog::user_mapping(user, server));
    let is_workers = sync_mapping.is_some_and(|sync| sync.oid == mapping.oid);
    let trust = trust(&description, &options, user, &mapping);
    let keys = KeyFile::of(&login);
    let client = new_client(&options, login, trust, STATEMENT).unwrap_or_else(|e| {
        raise(report(&e, Doing { server: &description.name, what: "set up a client", writing: false }))
    });
    if options.max_calls_per_hour.is_some() {
        client.note_past_calls(&catalog::past_calls(server));
    }
    keys.tell(&client);
    let (owner, standing) = (description.owner, Standing::of(description.owner, user));
    let server_name = description.name;
    let connection = Connection {
        client,
        oid: server,
        user,
        server: server_name,
        is_workers,
        owner,
        standing,
        keys,
        is_clock_known: Rc::default(),
    };
    CONNECTIONS.with_borrow_mut(|known| known.insert((server, user), connection.clone()));
    connection
}

/// The connection that sees what the worker sees; an ERROR if the worker cannot have one.
pub fn workers_connection(server: pg_sys::Oid) -> Connection {
    let description = pg::catalog::server(server);
    let options = ServerOptions::parse(&description.options).unwrap_or_else(|e| raise(e));
    let user = sync_user(&description, &options)
        .unwrap_or_else(|text| raise(error(Sql::ERRCODE_UNDEFINED_OBJECT, text).set_hint(SYNC_USER_HINT)));
    connection(server, user)
}

/// As [`workers_connection`], but one that gives up soon and logs in anew: for looking what is wrong.
pub fn impatient_connection(server: pg_sys::Oid) -> Connection {
    let known = workers_connection(server);
    let description = pg::catalog::server(server);
    let mut options = ServerOptions::parse(&description.options).unwrap_or_else(|e| raise(e));
    options.connect_timeout = options.connect_timeout.min(CHECK_TIMEOUT);
    options.request_timeout = options.request_timeout.min(CHECK_TIMEOUT);
    let mapping = pg::catalog::user_mapping(known.user, server);
    let login = Login::of(server, &options, &mapping).unwrap_or_else(|e| raise(e)).tried_out();
    let trust = trust(&description, &options, known.user, &mapping);
    let client = new_client(&options, login, trust, CHECK).unwrap_or_else(|e| {
        raise(report(&e, Doing { server: &description.name, what: "set up a client", writing: false }))
    });
    Connection { client, ..known }
}

/// A client for a server and login.
pub fn new_client(
    options: &ServerOptions,
    login: Login,
    trust: Trust,
    patience: Patience,
) -> servicenow::Result<HttpClient> {
    let transport = HttpTransport::new(&TransportOptions {
        connect_timeout: options.connect_timeout,
        request_timeout: options.request_timeout,
        ca_file: options.ca_file.clone(),
        proxy: options.proxy_url.clone(),
        trust,
        ..TransportOptions::default()
    })?;
    let instance = Instance {
        url: options.instance_url.clone(),
        vault: login.vault(),
        token_url: login.token_url,
        credentials: login.credentials,
        max_concurrency: options.max_concurrency,
        max_calls_per_hour: options.max_calls_per_hour,
        patience,
    };
    let client = Client::new(instance, transport)?;
    client.log_requests(setting::log_requests());
    Ok(client)
}

/// What the worker does with a login of its own: it undoes writes, or exchanges a code.
#[derive(Clone)]
pub struct Errand {
    /// The server.
    pub server: pg_sys::Oid,
    /// The server's name.
    pub name: String,
    /// Whose clones are gone when it is over.
    pub client: HttpClient,
}

/// Writes what a client has sent into the server log, if it was to be kept.
pub fn log_requests(client: &HttpClient, server: &str) {
    for request in client.take_log() {
        pg::worker::log(&format!("request to server \"{server}\": {request}"));
    }
}

impl Connection {
    /// The server's name.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Host and port of the instance.
    pub fn host(&self) -> String {
        self.client.host()
    }

    /// Server and role.
    pub fn login(&self) -> (pg_sys::Oid, pg_sys::Oid) {
        (self.oid, self.user)
    }

    /// Whether the worker sees what this connection sees.
    pub fn is_workers(&self) -> bool {
        self.is_workers
    }

    /// Whether a table's records are made under the keys that they are sent with, as far as is known.
    pub fn keys(&self, table: &TableName) -> Keys {
        self.client.keys(table)
    }

    /// Keeps what was seen of that, if it is not what was known before.
    pub fn keep_keys(&self, table: &TableName, before: Keys) {
        let keys = self.keys(table);
        if keys != before {
            self.keys.note(table, keys);
        }
    }

    /// Whether the records are stamped by the clock that answers tell: a write was seen to be.
    pub fn is_clock_known(&self) -> bool {
        self.is_clock_known.get()
    }

    /// Notes that a write was stamped with the time that its answer tells.
    pub fn note_clock(&self) {
        self.is_clock_known.set(true);
    }

    /// Runs a call and waits for its answer; the wait can be interrupted. `what` says what is being done, as an
    /// infinitive; a failure is an ERROR.
    pub fn call<F, R>(&self, what: &str, writing: bool, call: impl FnOnce(HttpClient) -> F) -> R
    where
        F: Future<Output = servicenow::Result<R>> + Send + 'static,
        R: Send + 'static,
    {
        self.ask(call).unwrap_or_else(|e| raise(report(&e, Doing { server: &self.server, what, writing })))
    }

    /// As [`Self::call`], but gives the client's failure back.
    pub fn ask<F, R>(&self, call: impl FnOnce(HttpClient) -> F) -> servicenow::Result<R>
    where
        F: Future<Output = servicenow::Result<R>> + Send + 'static,
        R: Send + 'static,
    {
        self.client.log_requests(setting::log_requests());
        let running = call(self.client.clone());
        self.told(pg::io::block_on(running))
    }

    /// As [`Self::call`], of calls that write; gives the client's failure back. If the wait is interrupted, there is a WARNING
    /// that the outcome is unknown, or `unsent` is called: nothing has left, as when it waited for the login or for
    /// as long as the instance had asked it to, and nothing will. Meanwhile `tell` is called, which says when it is to be
    /// called again at the latest.
    pub fn write<F, R>(
        &self,
        what: &str,
        call: impl FnOnce(HttpClient) -> F,
        unsent: impl FnOnce(),
        tell: impl FnMut() -> Option<Duration>,
    ) -> servicenow::Result<R>
    where
        F: Future<Output = servicenow::Result<R>> + Send + 'static,
        R: Send + 'static,
    {
        self.client.log_requests(setting::log_requests());
        let traces = Arc::new(Traces::default());
        let running = call(self.client.tracing(traces.clone()));
        let interrupted = || match traces.withdraw() {
            true => unknown_outcome(what, &self.server, "it was interrupted").report(PgLogLevel::WARNING),
            false => unsent(),
        };
        self.told(pg::xact::when_interrupted(|| pg::io::block_on_telling(running, tell), interrupted))
    }

    /// Tells the worker of the calls that were made, and the server log if it is to know.
    fn told<R>(&self, answer: Result<servicenow::Result<R>, pg::io::IoError>) -> servicenow::Result<R> {
        mailbox::tell(self.oid, self.client.take_stats());
        log_requests(&self.client, &self.server);
        match answer {
            Ok(answer) => answer,
            Err(e) => raise(error(Sql::ERRCODE_SYSTEM_ERROR, e.to_string())),
        }
    }
}
