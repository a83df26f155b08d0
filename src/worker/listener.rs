//! The listener that rules post to, and that browsers come back to from a login.
//!
//! One worker of the cluster has the address; whichever comes first, and another one when that has gone. It hands every
//! request on to the worker whose subscription is named last in its path, by a socket in the data directory. Only that one
//! has the key: it decides what to believe. Nobody waits for the main thread.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1 as to_worker;
use hyper::server::conn::http1 as from_instance;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use servicenow::capture::SubscriptionId;
use servicenow::capture::inbox::Inbox;
use servicenow::capture::webhook::{BODY_LIMIT, Gatekeeper, Refusal, SIGNATURE_HEADER, TIME_HEADER};
use servicenow::client::auth::Secret;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::login;
use super::tasks::THREADS;
use crate::catalog;
use crate::consent::{CALLBACK, Unknown};
use crate::pg;
use crate::pg::io::{self, AbortOnDrop};
use crate::setting;

/// Where the workers' sockets are, in the data directory.
pub const DIRECTORY: &str = "servicenow_fdw/webhooks";
/// Connections at a time; more are closed at once.
const CONNECTIONS: usize = 256;
/// The largest head of a request, in bytes.
const HEAD_LIMIT: usize = 16 << 10;
/// The largest answer of a worker, in bytes.
const ANSWER_LIMIT: usize = 64 << 10;
/// Of a body that is too large so much is read, in bytes.
const MOST_READ: usize = 1 << 20;
/// How long a request may take to come, and a connection may be without one.
const LONGEST_REQUEST: Duration = Duration::from_secs(10);
/// How long a connection may take more requests, whatever it does.
const LONGEST_CONNECTION: Duration = Duration::from_secs(60);
/// How long an answer may take.
const LONGEST_ANSWER: Duration = Duration::from_secs(15);
/// The pause before an address is asked for again that somebody else has.
const PAUSE: Duration = Duration::from_secs(1);
/// The file with the number of requests that were turned away.
const TURNED_AWAY: &str = "turned_away";
/// How often it is said how many requests went nowhere.
const COUNT_INTERVAL: Duration = Duration::from_secs(60);

/// A subscription's end: takes requests in, as long as it is not dropped.
pub struct Receiver {
    path: PathBuf,
    task: AbortOnDrop,
}

/// What a receiver knows.
struct Desk {
    gatekeeper: Mutex<Gatekeeper>,
    inbox: Arc<Inbox>,
}

impl Receiver {
    /// Begins to take in what is signed with a key.
    pub fn start(id: &SubscriptionId, key: &Secret, inbox: Arc<Inbox>) -> std::io::Result<Self> {
        let invalid = || std::io::Error::new(ErrorKind::InvalidData, "the key is not base64");
        let gatekeeper = Mutex::new(Gatekeeper::new(key).ok_or_else(invalid)?);
        std::fs::create_dir_all(DIRECTORY)?;
        let path = socket(id);
        // One that died has left its own.
        let _nothing_there = std::fs::remove_file(&path);
        let listener = std::os::unix::net::UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        let desk = Arc::new(Desk { gatekeeper, inbox });
        let serving = async move {
            let app = Router::new().fallback(receive).with_state(desk);
            if let Ok(listener) = UnixListener::from_std(listener) {
                let _ended = axum::serve(listener, app).await;
            }
        };
        Ok(Self { path, task: io::spawn(serving, THREADS)? })
    }

    /// Whether it takes nothing in any more.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.path);
    }
}

/// The socket of a subscription. The process is in the data directory.
fn socket(id: &SubscriptionId) -> PathBuf {
    Path::new(DIRECTORY).join(id.as_str())
}

async fn receive(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let status = match timeout(LONGEST_REQUEST, admit(&desk, request)).await {
        Ok(status) => status,
        Err(_) => StatusCode::REQUEST_TIMEOUT,
    };
    if status != StatusCode::ACCEPTED && status != StatusCode::SERVICE_UNAVAILABLE {
        desk.inbox.refuse();
    }
    status.into_response()
}

async fn admit(desk: &Desk, request: Request) -> StatusCode {
    if request.method() != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED;
    }
    let (head, body) = request.into_parts();
    // What says itself that it is too large is not waited for.
    if body.size_hint().lower() > BODY_LIMIT as u64 {
        return StatusCode::PAYLOAD_TOO_LARGE;
    }
    let Some(body) = read(body).await else { return StatusCode::PAYLOAD_TOO_LARGE };
    let [time, signature] = [TIME_HEADER, SIGNATURE_HEADER].map(|name| header(&head.headers, name));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    let admitted = {
        let mut gatekeeper = desk.gatekeeper.lock().unwrap_or_else(PoisonError::into_inner);
        gatekeeper.admit(time, signature, &body, now)
    };
    if matches!(admitted, Err(Refusal::Stale)) {
        desk.inbox.note_stale();
    }
    match admitted.map(|event| desk.inbox.offer(event)) {
        Ok(true) => StatusCode::ACCEPTED,
        Ok(false) => StatusCode::SERVICE_UNAVAILABLE,
        Err(Refusal::Unsigned | Refusal::Forged | Refusal::Stale) => StatusCode::UNAUTHORIZED,
        Err(Refusal::Replayed) => StatusCode::CONFLICT,
        Err(Refusal::Malformed) => StatusCode::BAD_REQUEST,
    }
}

/// A body, unless it is too large. What is too much is read all the same, up to a bound: a connection that ends with a part
/// unread may take the answer along.
async fn read(mut body: axum::body::Body) -> Option<Vec<u8>> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        length += data.len();
        if length > MOST_READ {
            return None;
        }
        if length <= BODY_LIMIT {
            bytes.extend_from_slice(&data);
        }
    }
    (length <= BODY_LIMIT).then_some(bytes)
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The cluster's end, in every worker: has the address, or waits for it.
#[derive(Default)]
pub struct Front {
    /// What it was started with.
    settings: Option<Settings>,
    task: Option<AbortOnDrop>,
    shared: Arc<Shared>,
    /// What was said last of why it does not listen.
    said: Option<String>,
    counted: Option<Instant>,
    /// Requests turned away that the log does not tell of yet.
    lost: u64,
}

/// What it takes to listen: other files under the same names are noticed, too.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    address: String,
    certificate: Option<(PathBuf, PathBuf)>,
    written: [Option<SystemTime>; 2],
}

impl Settings {
    fn now() -> Option<Self> {
        let (address, certificate) = (setting::listen_address()?, setting::listen_certificate());
        let written = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
        let written = certificate.as_ref().map_or([None; 2], |(chain, key)| [written(chain), written(key)]);
        Some(Self { address, certificate, written })
    }
}

#[derive(Default)]
struct Shared {
    trouble: Mutex<Option<String>>,
    lost: AtomicU64,
}

impl Front {
    /// Listens where the settings say now, and logs what is in the way.
    pub fn follow_settings(&mut self) {
        let settings = Settings::now();
        let is_over = settings.is_some() && self.task.as_ref().is_none_or(AbortOnDrop::is_finished);
        if settings != self.settings || is_over {
            self.task = None;
            // Where rules post to may be another address now.
            catalog::keep_work_changed();
            self.settings.clone_from(&settings);
            if let Some(settings) = settings {
                self.task = io::spawn(listen(settings, self.shared.clone()), THREADS).ok();
            }
        }
        let trouble = self.trouble();
        if trouble != self.said {
            if let Some(trouble) = &trouble {
                pg::worker::log(&format!("servicenow_fdw: {trouble}"));
            }
            self.said = trouble;
        }
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.lost += lost;
            // A count that cannot be written is in the log all the same.
            let _only_logged = count(lost);
        }
        if self.counted.is_none_or(|at| at.elapsed() >= COUNT_INTERVAL) {
            self.counted = Some(Instant::now());
            match std::mem::take(&mut self.lost) {
                0 => {}
                lost => pg::worker::log(&format!(
                    "servicenow_fdw: the listener has turned {lost} requests away that were for no subscription, made no sense, or were too many at a time"
                )),
            }
        }
    }
}

/// Requests that the listener has turned away, for whichever database.
pub fn turned_away() -> u64 {
    let count = std::fs::read_to_string(Path::new(DIRECTORY).join(TURNED_AWAY)).ok();
    count.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
}

/// Adds to that. There is one listener at a time.
fn count(lost: u64) -> std::io::Result<()> {
    let (path, draft) =
        (Path::new(DIRECTORY).join(TURNED_AWAY), Path::new(DIRECTORY).join("turned_away.new"));
    std::fs::write(&draft, (turned_away() + lost).to_string())?;
    std::fs::rename(draft, path)
}

impl Front {
    /// Why nobody listens, if that is known.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn listen(Settings { address, certificate, .. }: Settings, shared: Arc<Shared>) {
    loop {
        let trouble = listen_now(&address, certificate.as_ref(), &shared).await.err();
        let trouble = trouble.map(|e| format!("could not listen on \"{address}\": {e}"));
        *shared.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        sleep(PAUSE).await;
    }
}

/// Listens, unless another worker does, and hands on what is for this one.
async fn listen_now(
    address: &str,
    certificate: Option<&(PathBuf, PathBuf)>,
    shared: &Arc<Shared>,
) -> std::io::Result<()> {
    let addresses: BTreeSet<SocketAddr> = lookup_host(address).await?.collect();
    let tls = match certificate {
        Some((certificate, key)) => Some(acceptor(certificate, key).map_err(std::io::Error::other)?),
        None if addresses.iter().all(|address| address.ip().is_loopback()) => None,
        None => {
            let why = "settings servicenow_fdw.listen_cert_file and listen_key_file are needed but for a loopback address";
            return Err(std::io::Error::other(why));
        }
    };
    // Before any address: of those that a name has two workers would each get some.
    let Some(_sign) = sign()? else { return Ok(()) };
    let listeners = bind(addresses).await?;
    *shared.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    serve(listeners, tls, shared).await;
    Ok(())
}

/// Locks the file that says that a worker of this cluster listens; `None` if another one has it.
fn sign() -> std::io::Result<Option<File>> {
    std::fs::create_dir_all(DIRECTORY)?;
    let file = File::create(Path::new(DIRECTORY).join("listening"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Every address, but for those of a family that this machine does not have.
async fn bind(addresses: BTreeSet<SocketAddr>) -> std::io::Result<Vec<TcpListener>> {
    let (mut listeners, mut lacking) = (Vec::new(), None);
    for address in addresses {
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            Err(e) if matches!(e.kind(), ErrorKind::AddrNotAvailable | ErrorKind::Unsupported) => {
                lacking = Some(e)
            }
            Err(e) => return Err(e),
        }
    }
    if listeners.is_empty() {
        return Err(lacking.unwrap_or_else(|| ErrorKind::NotFound.into()));
    }
    Ok(listeners)
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, String> {
    let unreadable = |path: &Path| {
        let path = path.display().to_string();
        move |e: &dyn std::fmt::Display| format!("could not read file \"{path}\": {e}")
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|e| unreadable(certificate)(&e))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable(key)(&e))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|e| format!("could not use the certificate: {e}"))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(listeners: Vec<TcpListener>, tls: Option<TlsAcceptor>, shared: &Arc<Shared>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Connections end with the listener.
    let mut open = tokio::task::JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        let stream = match accept(&listeners).await {
            Ok((stream, _)) => stream,
            // Out of file descriptors, or the client is gone already.
            Err(_) => {
                sleep(PAUSE / 10).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            shared.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let (tls, shared) = (tls.clone(), shared.clone());
        open.spawn(async move {
            let _place = place;
            match tls {
                None => converse(stream, shared).await,
                Some(tls) => match timeout(LONGEST_REQUEST, tls.accept(stream)).await {
                    Ok(Ok(stream)) => converse(stream, shared).await,
                    _ => drop(shared.lost.fetch_add(1, Ordering::Relaxed)),
                },
            }
        });
    }
}

/// The next connection to any of them.
async fn accept(listeners: &[TcpListener]) -> std::io::Result<(TcpStream, SocketAddr)> {
    poll_fn(|cx| {
        let mut ready = listeners.iter().map(|listener| listener.poll_accept(cx)).filter(Poll::is_ready);
        ready.next().unwrap_or(Poll::Pending)
    })
    .await
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, shared: Arc<Shared>) {
    let counter = shared.clone();
    // The worker has counted a request whose body did not come to an end, or was too large: the connection breaks then.
    let cut_off = Arc::new(AtomicBool::new(false));
    let was_cut_off = cut_off.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (shared, cut_off) = (shared.clone(), cut_off.clone());
        async move {
            let answer = match timeout(LONGEST_ANSWER, hand_on(request)).await {
                Ok(Some(answer)) => {
                    if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
                        shared.lost.fetch_add(1, Ordering::Relaxed);
                    }
                    let cut_offs = [StatusCode::REQUEST_TIMEOUT, StatusCode::PAYLOAD_TOO_LARGE];
                    cut_off.store(cut_offs.contains(&answer.status()), Ordering::Relaxed);
                    answer
                }
                Ok(None) => {
                    shared.lost.fetch_add(1, Ordering::Relaxed);
                    StatusCode::NOT_FOUND.into_response()
                }
                Err(_) => {
                    shared.lost.fetch_add(1, Ordering::Relaxed);
                    StatusCode::GATEWAY_TIMEOUT.into_response()
                }
            };
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let conversation = from_instance::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LONGEST_REQUEST)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    let mut conversation = pin!(conversation);
    match timeout(LONGEST_CONNECTION, conversation.as_mut()).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) if was_cut_off.load(Ordering::Relaxed) => {}
        // Its head makes no sense, or does not come.
        Ok(Err(e)) if e.is_parse() || e.is_timeout() || e.is_incomplete_message() => {
            counter.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Err(_)) => {}
        Err(_) => {
            // A request that is under way gets its answer.
            conversation.as_mut().graceful_shutdown();
            let _over = timeout(LONGEST_ANSWER, conversation).await;
        }
    }
}

/// Has the worker answer whose subscription a request is for, or who waits for a browser; `None` if there is none.
async fn hand_on(request: hyper::Request<Incoming>) -> Option<Response> {
    if request.uri().path() == CALLBACK {
        let socket = awaited_by(request.uri().query().unwrap_or_default());
        let answer = match socket {
            Some(socket) => ask(&socket, request).await,
            None => None,
        };
        let nobody = || login::page(&login::Outcome::NotLoggedIn(Unknown::State.reason().to_owned()));
        return Some(answer.map_or_else(nobody, |page| page.map(axum::body::Body::from)));
    }
    let id = SubscriptionId::parse(request.uri().path().rsplit('/').next()?)?;
    let answer = ask(&socket(&id), request).await?;
    Some(answer.status().into_response())
}

/// The socket of the worker that is meant by what a browser has brought back: the state begins with its database.
fn awaited_by(query: &str) -> Option<PathBuf> {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let (_, state) = pairs.find(|(name, _)| name == "state")?;
    Some(login::socket(state.split_once('.')?.0.parse().ok()?))
}

async fn ask(socket: &Path, request: hyper::Request<Incoming>) -> Option<hyper::Response<Bytes>> {
    let stream = UnixStream::connect(socket).await.ok()?;
    let (mut sender, connection) = to_worker::handshake(TokioIo::new(stream)).await.ok()?;
    let _carried = AbortTask(tokio::spawn(async move {
        let _ended = connection.await;
    }));
    let (head, body) = sender.send_request(request).await.ok()?.into_parts();
    let body = to_bytes(axum::body::Body::new(body), ANSWER_LIMIT).await.ok()?;
    Some(hyper::Response::from_parts(head, body))
}

/// Ends a task when it is not needed any more.
struct AbortTask(tokio::task::JoinHandle<()>);

impl Drop for AbortTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
