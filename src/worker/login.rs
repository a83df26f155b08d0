//! Logins in the worker: what a browser brings back to the listener, and what has to outlive this machine.
//!
//! The listener of the cluster hands a browser's request to the worker of the database that the state names. Its main
//! thread looks up what the state is for; the code is exchanged, and the page is written, on another one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use servicenow::client::auth::Secret;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::listener::DIRECTORY;
use super::tasks::{THREADS, Tasks};
use crate::connection::Errand;
use crate::consent::{self, CALLBACK, Claimed, Unknown};
use crate::login::{self, Keeper};
use crate::pg;
use crate::pg::io::{AbortOnDrop, Bell};

/// How many are looked after before the worker does something else: anybody can send some.
const TURN: usize = 8;
/// Browsers at a time.
const QUEUE: usize = 16;
/// How long a browser waits.
const PATIENCE: Duration = Duration::from_secs(14);

/// What a browser has brought back.
struct Arrival {
    state: Secret,
    code: Secret,
    answer: oneshot::Sender<Outcome>,
}

/// What the page says.
pub enum Outcome {
    /// On which server, as which role.
    LoggedIn { server: String, role: String },
    /// Why not.
    NotLoggedIn(String),
    /// It has taken too long to wait for, and may come to a good end yet: whoever has agreed must not be told that nothing
    /// was allowed.
    Unclear,
}

/// The worker's part in logins.
pub struct Logins {
    arrivals: mpsc::Receiver<Arrival>,
    _serving: Option<AbortOnDrop>,
    exchanges: Vec<AbortOnDrop>,
    keeper: Keeper,
}

impl Logins {
    /// Begins to take in what browsers bring back.
    pub fn new(bell: Bell) -> Self {
        let (sender, arrivals) = mpsc::channel(QUEUE);
        let _serving = serve(Desk { sender, bell, logins: login::directory().into() }).ok();
        Self { arrivals, _serving, exchanges: Vec::new(), keeper: Keeper::default() }
    }

    /// Looks after whoever has come.
    pub fn take_in(&mut self, tasks: &mut Tasks) {
        self.exchanges.retain(|exchange| !exchange.is_finished());
        for _ in 0..TURN {
            let Ok(Arrival { state, code, answer }) = self.arrivals.try_recv() else { return };
            if answer.is_closed() {
                continue; // the browser was told that it has taken too long
            }
            let claimed = pg::xact::transaction(|| consent::claim(state.reveal()));
            let Claimed { errand, consent, role } = match claimed {
                Ok(Ok(claimed)) => claimed,
                Ok(Err(why)) => {
                    let _gone = answer.send(Outcome::NotLoggedIn(why));
                    continue;
                }
                Err(caught) => {
                    let _gone = answer.send(Outcome::NotLoggedIn(caught.message));
                    continue;
                }
            };
            tasks.watch(errand.clone());
            let exchange = async move {
                let Errand { client, name, .. } = errand;
                let exchanged = client.exchange_code(code.reveal(), &consent).await;
                let _gone = answer.send(match exchanged {
                    Ok(()) => Outcome::LoggedIn { server: name, role },
                    Err(e) => Outcome::NotLoggedIn(e.to_string()),
                });
            };
            self.exchanges.extend(pg::io::spawn(exchange, THREADS).ok());
        }
    }

    /// Keeps what has to outlive this machine.
    pub fn keep(&mut self) {
        let keeper = std::panic::AssertUnwindSafe(&mut self.keeper);
        let _tried_again_later = pg::xact::transaction(move || {
            let keeper = keeper;
            keeper.0.keep();
        });
    }

    /// Removes what is of no use any more.
    pub fn tidy() {
        let _tried_again_later = pg::xact::transaction(login::tidy);
    }
}

impl Drop for Logins {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(socket(pg::worker::database().to_u32()));
    }
}

/// The socket on which the worker of a database takes browsers' requests. The process is in the data directory.
pub fn socket(database: u32) -> PathBuf {
    Path::new(DIRECTORY).join(format!("login.{database}"))
}

#[derive(Clone)]
struct Desk {
    sender: mpsc::Sender<Arrival>,
    bell: Bell,
    /// Where it is noted what is waited for.
    logins: Arc<Path>,
}

fn serve(desk: Desk) -> std::io::Result<AbortOnDrop> {
    std::fs::create_dir_all(DIRECTORY)?;
    let path = socket(pg::worker::database().to_u32());
    // One that died has left its own.
    let _nothing_there = std::fs::remove_file(&path);
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    let serving = async move {
        let app = Router::new().route(CALLBACK, get(receive).head(refuse)).with_state(desk);
        if let Ok(listener) = UnixListener::from_std(listener) {
            let _ended = axum::serve(listener, app).await;
        }
    };
    pg::io::spawn(serving, THREADS)
}

/// What a browser is sent back with.
#[derive(Deserialize)]
struct Brought {
    state: Option<String>,
    code: Option<String>,
    error: Option<String>,
}

/// Whoever wants to see the head only, as what checks links, uses no code up.
async fn refuse() -> StatusCode {
    StatusCode::METHOD_NOT_ALLOWED
}

async fn receive(State(desk): State<Desk>, Query(brought): Query<Brought>) -> Response {
    let outcome = match brought {
        Brought { state: Some(state), code: Some(code), .. } => {
            let (state, code) = (Secret::new(state), Secret::new(code));
            // The main thread has other things to do than to look up what anybody makes up.
            if !consent::is_awaited(&desk.logins, &state) {
                return page(&Outcome::NotLoggedIn(Unknown::State.reason().to_owned()));
            }
            let (answer, outcome) = oneshot::channel();
            let arrival = Arrival { state, code, answer };
            match desk.sender.try_send(arrival) {
                Ok(()) => {
                    desk.bell.ring();
                    match timeout(PATIENCE, outcome).await {
                        Ok(Ok(outcome)) => outcome,
                        _ => Outcome::Unclear,
                    }
                }
                Err(_) => Outcome::NotLoggedIn("too many log in at a time".to_owned()),
            }
        }
        // Anybody can send somebody here with a text of theirs.
        Brought { error: Some(error), .. } if is_word(&error) => {
            Outcome::NotLoggedIn(format!("ServiceNow says: {error}"))
        }
        Brought { error: Some(_), .. } => Outcome::NotLoggedIn("ServiceNow has refused it".to_owned()),
        _ => Outcome::NotLoggedIn("there is no code".to_owned()),
    };
    page(&outcome)
}

/// Whether it may be a code of an error of OAuth (RFC 6749, 4.1.2.1).
fn is_word(error: &str) -> bool {
    error.len() <= 40 && error.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// The page that says what came of it.
pub fn page(outcome: &Outcome) -> Response {
    let (status, title, text) = match outcome {
        Outcome::LoggedIn { server, role } => (
            StatusCode::OK,
            "Logged in",
            format!(
                "PostgreSQL role {role} uses server {server} as you from now on. You may close this page. If you did not mean \
                 to allow that, revoke the token in ServiceNow."
            ),
        ),
        Outcome::Unclear => (
            StatusCode::GATEWAY_TIMEOUT,
            "Maybe logged in",
            "It takes too long to tell here. If you did not mean to allow anything, revoke the token in ServiceNow.".to_owned(),
        ),
        Outcome::NotLoggedIn(why) => (
            StatusCode::BAD_REQUEST,
            "Not logged in",
            format!("{why}. Begin again with servicenow.authorize_url() in PostgreSQL."),
        ),
    };
    let html = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <style>body{{font-family:sans-serif;max-width:36em;margin:4em auto;padding:0 1em}}</style></head>\
         <body><h1>{title}</h1><p>{}</p></body></html>",
        escape(&text)
    );
    let headers: [(HeaderName, HeaderValue); 3] = [
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (
            CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(
                "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            ),
        ),
    ];
    (status, headers, Html(html)).into_response()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
