//! The way of a request: faults, session, semaphore, latency, authentication, rate limits, handler, headers.

use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use super::gate;
use super::{ApiError, Request, Response, xml};
use crate::endpoint::Endpoint;
use crate::fault::Effect;
use crate::instance::Instance;
use crate::query::plan::mix;
use crate::request_log::{self, LoggedRequest};
use crate::switch::Availability;
use crate::table_api::read;
use crate::users::Actor;
use crate::{auth, batch, endpoint, ident, oauth};

/// What the connection does with a request.
pub(crate) enum Outcome {
    /// It answers.
    Reply(Reply),
    /// It is reset.
    Reset,
    /// It stays open without an answer.
    Hang,
}

/// An answer ready for the wire.
pub(crate) struct Reply {
    /// The status.
    pub(crate) status: u16,
    /// All headers.
    pub(crate) headers: Vec<(String, String)>,
    /// The body, compressed where asked for.
    pub(crate) body: Bytes,
    /// The size of a piece and the time between pieces.
    pub(crate) drip: Option<(usize, Duration)>,
    /// Break off after this many bytes.
    pub(crate) truncate: Option<usize>,
}

impl Reply {
    /// Status and headers as the HTTP library has them, with a body.
    pub(super) fn with_body<B>(&self, body: B) -> hyper::Response<B> {
        let mut response = hyper::Response::new(body);
        *response.status_mut() =
            hyper::StatusCode::from_u16(self.status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in &self.headers {
            let name = hyper::header::HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, hyper::header::HeaderValue::from_str(value)) {
                response.headers_mut().append(name, value);
            }
        }
        response
    }

    /// An answer of the control interface, without any of the instance's own headers.
    pub(crate) fn plain(response: Response) -> Self {
        let mut headers = response.headers;
        if !response.content_type.is_empty() {
            headers.push(("Content-Type".to_owned(), response.content_type));
        }
        Self { status: response.status, headers, body: response.body, drip: None, truncate: None }
    }
}

/// What the log needs to know besides the answer.
#[derive(Debug, Default)]
struct Trace {
    user: Option<String>,
    faults: Vec<String>,
    sem_wait: u128,
    session_wait: u128,
}

/// Handles one request from beginning to end.
pub(crate) async fn handle(instance: &Instance, request: Request) -> Outcome {
    let began = Instant::now();
    let at = instance.clock.now();
    let endpoint = Endpoint::of(&request);
    let mut trace = Trace::default();
    let effects =
        instance.faults.strike(instance.seed, &request.method, endpoint.table(), &target(&request), false);
    trace.faults = effects.iter().map(name_of).collect();
    let outcome = run(instance, &request, &endpoint, &effects, &mut trace).await;
    let mut bytes = 0;
    let outcome = match outcome {
        Ok(response) => {
            bytes = response.body.len();
            Outcome::Reply(dress(instance, &request, response, &effects, &trace))
        }
        Err(Broken::Reset) => Outcome::Reset,
        Err(Broken::Hang) => Outcome::Hang,
    };
    let status = match &outcome {
        Outcome::Reply(reply) => reply.status,
        Outcome::Reset | Outcome::Hang => 0,
    };
    instance.log.push(
        LoggedRequest {
            seq: 0,
            at,
            method: request.method.clone(),
            path: request.path.clone(),
            query: request_log::blank_query(&request.query),
            endpoint: endpoint.name().to_owned(),
            table: endpoint.table().map(str::to_owned),
            user: trace.user,
            status,
            bytes,
            duration_ms: began.elapsed().as_secs_f64() * 1000.0,
            sem_wait_ms: trace.sem_wait as u64,
            body: logged_body(&request, &endpoint),
            in_batch: false,
            faults: trace.faults,
        },
        instance.switches().log_capacity,
    );
    outcome
}

/// The path and query of a request.
pub(crate) fn target(request: &Request) -> String {
    if request.raw_query.is_empty() {
        request.path.clone()
    } else {
        format!("{}?{}", request.path, request.raw_query)
    }
}

/// The name of an effect in the log.
pub(crate) fn name_of(effect: &Effect) -> String {
    serde_json::to_value(effect).ok().and_then(|v| v["kind"].as_str().map(str::to_owned)).unwrap_or_default()
}

/// The body of a write as it is logged: never a token call's, secrets blanked, very long ones left out.
pub(crate) fn logged_body(request: &Request, endpoint: &Endpoint) -> Option<Value> {
    if matches!(endpoint, Endpoint::Token | Endpoint::Consent)
        || request.body.is_empty()
        || request.body.len() > 1 << 20
    {
        return None;
    }
    serde_json::from_slice(&request.body).ok().map(request_log::blank_body)
}

/// The connection does not answer.
enum Broken {
    Reset,
    Hang,
}

async fn run(
    instance: &Instance,
    request: &Request,
    endpoint: &Endpoint,
    effects: &[Effect],
    trace: &mut Trace,
) -> Result<Response, Broken> {
    let switches = instance.switches();
    match switches.availability {
        Availability::Up => {}
        Availability::Unreachable => return Err(Broken::Reset),
        Availability::Down => return Ok(Response::html(503, "Service Unavailable")),
        Availability::Hibernating => return Ok(hibernating()),
    }
    if target(request).len() > switches.max_url {
        return Ok(Response::html(414, "Request-URI Too Large"));
    }
    if let Some(broken) = effects.iter().find_map(|e| match e {
        Effect::ResetBefore => Some(Broken::Reset),
        Effect::Hang => Some(Broken::Hang),
        _ => None,
    }) {
        return Err(broken);
    }
    let mut delay = switches.latency_ms;
    if switches.jitter_ms > 0 {
        let drawn = mix(instance.seed ^ instance.gate.transaction());
        delay += drawn % (switches.jitter_ms + 1);
    }
    for effect in effects {
        match effect {
            Effect::Delay { ms } => delay += ms,
            Effect::ExpireTokens => instance.tokens.expire_access(),
            _ => {}
        }
    }
    if let Some(response) = effects.iter().find_map(|e| instead(instance, e)) {
        sleep(delay).await;
        return Ok(response);
    }
    let waited = Instant::now();
    let _turn = match session_of(request) {
        None => None,
        Some(session) => match instance.gate.take_turn(&session, switches.session_waiters).await {
            Some(turn) => Some(turn),
            None => return Ok(Response::empty(202)),
        },
    };
    trace.session_wait = waited.elapsed().as_millis();
    let _place = match switches.concurrency {
        None => None,
        Some(rule) => match instance.gate.enter(rule).await {
            Some((place, waited)) => {
                trace.sem_wait = waited;
                Some(place)
            }
            None => return Ok(Response::html(429, "Too Many Requests")),
        },
    };
    sleep(delay).await;
    let response = serve(instance, request, endpoint, trace);
    if let Endpoint::Batch = endpoint {
        sleep(batch::duration(&response)).await;
    }
    if effects.contains(&Effect::ResetAfter) {
        return Err(Broken::Reset);
    }
    if effects.contains(&Effect::HangAfter) {
        return Err(Broken::Hang);
    }
    Ok(effects.iter().fold(response, spoil))
}

async fn sleep(ms: u64) {
    if ms > 0 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

/// The session that a request belongs to: calls with the same cookie are handled one after another (facts §4).
fn session_of(request: &Request) -> Option<String> {
    let cookies = request.header("cookie")?;
    cookies.split(';').map(str::trim).find_map(|c| c.strip_prefix("JSESSIONID=")).map(str::to_owned)
}

fn hibernating() -> Response {
    let mut page = Response::html(200, " Instance Hibernating page ");
    page.content_type = "text/html".to_owned();
    page
}

/// The answer that a fault gives in place of the handler's.
pub(crate) fn instead(instance: &Instance, effect: &Effect) -> Option<Response> {
    match effect {
        Effect::Discard => Some(Response::empty(202)),
        Effect::RateLimited { headers, retry_after, json } => {
            let now = instance.clock.now().timestamp();
            let reset = (now.div_euclid(3600) + 1) * 3600;
            let wait = retry_after.map_or(reset - now, |s| s as i64);
            let mut response = gate::rate_limited("Table API", 100, reset, &ident::sys_id("rule", "fault"), wait);
            if !headers {
                response.headers.clear();
                if let Some(seconds) = retry_after {
                    response = response.with("Retry-After", seconds.to_string());
                }
            }
            if !headers && !json {
                response.body = Bytes::new();
                response.content_type = String::new();
            }
            Some(response)
        }
        Effect::Status { status, html: true } => Some(Response::html(*status, reason(*status))),
        Effect::Status { status, html: false } => Some(ApiError::new(*status, reason(*status), None).into()),
        Effect::Hibernating => Some(hibernating()),
        Effect::LoginPage => Some(Response::html(200, "Log in | ServiceNow")),
        Effect::Body { text, hex: false } => Some(Response::json(200, text.clone())),
        Effect::Body { text, hex: true } => Some(Response::json(200, from_hex(text))),
        Effect::Endless { bytes } => {
            let mut body = br#"{"result":[{"sys_id":"1","short_description":""#.to_vec();
            body.resize(body.len().max(*bytes), b'x');
            Some(Response::json(200, body))
        }
        Effect::Unauthorized => Some(ApiError::unauthenticated().into()),
        Effect::Cancelled => {
            Some(ApiError::new(500, "Transaction cancelled: maximum execution time exceeded", Some(
                "Transaction cancelled: maximum execution time exceeded Check logs for error trace or enable glide.rest.debug property to verify REST request processing",
            )).into())
        }
        _ => None,
    }
}

/// Bytes written as hexadecimal digits; what is none ends them.
fn from_hex(text: &str) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let pair = |pair: &[u8]| Some((digit(&pair[0])? * 16 + digit(&pair[1])?) as u8);
    text.as_bytes().chunks_exact(2).map_while(pair).collect()
}

fn reason(status: u16) -> &'static str {
    hyper::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error")
}

/// What a fault does to an answer after the request was carried out.
pub(crate) fn spoil(mut response: Response, effect: &Effect) -> Response {
    match effect {
        Effect::NullBody => response.body = Bytes::from_static(b"null"),
        Effect::EmptyBody => response.body = Bytes::new(),
        Effect::Cut { rows, cut } => {
            if let Ok(Value::Object(map)) = serde_json::from_slice::<Value>(&response.body)
                && let Some(items) = map.get("result").and_then(Value::as_array)
            {
                let kept: Vec<String> = items.iter().take(*rows).map(Value::to_string).collect();
                let mut body = format!("{{\"result\":[{}", kept.join(","));
                read::cut_short(&mut body, *cut);
                response.body = body.into();
                response.status = 200;
            }
        }
        _ => {}
    }
    response
}

/// Authenticates, checks the rate and calls the handler.
fn serve(instance: &Instance, request: &Request, endpoint: &Endpoint, trace: &mut Trace) -> Response {
    instance.settle();
    match endpoint {
        Endpoint::Token => return oauth::token(instance, request),
        Endpoint::Consent => return oauth::page(instance, request),
        _ => {}
    }
    let actor: Actor = match auth::authenticate(instance, request) {
        Ok(actor) => actor,
        Err(error) => return error.into(),
    };
    trace.user = Some(actor.user_name.clone());
    let now = instance.clock.now();
    let rate = instance.gate.check_rate(&instance.db.read(), &actor, endpoint.api(), now);
    let left = match rate {
        Some(Err(limited)) => return limited,
        Some(Ok(left)) => Some(left).filter(|_| instance.switches().rate_headers),
        None => None,
    };
    let response = endpoint::dispatch(instance, &actor, endpoint, request);
    match left {
        None => response,
        Some(gate::Left { limit, left, reset }) => response
            .with("X-RateLimit-Limit", limit.to_string())
            .with("X-RateLimit-Remaining", left.to_string())
            .with("X-RateLimit-Reset", reset.to_string()),
    }
}

/// Adds what every answer has (facts §1.2) and compresses the body.
fn dress(
    instance: &Instance,
    request: &Request,
    response: Response,
    effects: &[Effect],
    trace: &Trace,
) -> Reply {
    let switches = instance.switches();
    let now = instance.clock.now();
    let mut body = response.body;
    let mut content_type = response.content_type;
    let mut headers = response.headers;
    headers.retain(|(name, _)| name != batch::SPENT);
    if wants_xml(request) && content_type.contains("json") && response.status != 401 {
        body = xml::from_json(&body).into();
        content_type = "application/xml;charset=UTF-8".to_owned();
    }
    let mut add = |name: &str, value: String| headers.push((name.to_owned(), value));
    if !content_type.is_empty() {
        add("Content-Type", content_type);
    }
    add("Server-Timing", format!("sem_wait;dur={}, sesh_wait;dur={}", trace.sem_wait, trace.session_wait));
    add("X-Is-Logged-In", trace.user.is_some().to_string());
    let unique = ident::opaque(instance.seed, "transaction", instance.gate.transaction());
    add("X-Transaction-ID", unique[..12].to_owned());
    add("X-Content-Type-Options", "nosniff".to_owned());
    add("Pragma", "no-store,no-cache".to_owned());
    add("Cache-Control", "no-cache,no-store,must-revalidate,max-age=-1".to_owned());
    add("Expires", "0".to_owned());
    add("Strict-Transport-Security", "max-age=63072000; includeSubDomains".to_owned());
    add("Server", "ServiceNow".to_owned());
    add("Date", now.format("%a, %d %b %Y %H:%M:%S GMT").to_string());
    if response.status != 401 {
        add("Keep-Alive", "timeout=20".to_owned());
    }
    if session_of(request).is_none() {
        for cookie in cookies(&unique) {
            add("Set-Cookie", cookie);
        }
    }
    for effect in effects {
        if let Effect::Headers { count, bytes } = effect {
            (0..*count).for_each(|n| add(&format!("X-Flood-{n}"), "x".repeat(*bytes)));
        }
    }
    let accepts = request.header("accept-encoding").is_some_and(|v| v.contains("gzip"));
    if accepts && switches.gzip && body.len() > 256 {
        body = compress(&body);
        add("Content-Encoding", "gzip".to_owned());
        add("Vary", "Accept-Encoding".to_owned());
    }
    if request.method == "HEAD" {
        body = Bytes::new();
    }
    let drip = effects.iter().find_map(|e| match e {
        Effect::Drip { bytes, interval_ms } => Some((*bytes, Duration::from_millis(*interval_ms))),
        _ => None,
    });
    let truncate = effects.iter().find_map(|e| match e {
        Effect::Truncate { bytes } => Some(*bytes),
        _ => None,
    });
    Reply { status: response.status, headers, body, drip, truncate }
}

/// True when the caller accepts XML and not JSON.
pub(crate) fn wants_xml(request: &Request) -> bool {
    request.header("accept").is_some_and(|a| a.contains("xml") && !a.contains("json") && !a.contains("*/*"))
}

/// The cookies of a call that brought none (facts §1.2).
fn cookies(unique: &str) -> Vec<String> {
    let attributes = "Path=/; HttpOnly; SameSite=None; Secure";
    vec![
        format!("JSESSIONID={}; Path=/; HttpOnly; SameSite=None; Secure", unique.to_uppercase()),
        format!("glide_user=; Max-Age=0; {attributes}"),
        format!("glide_user_session=; Max-Age=0; {attributes}"),
        format!("glide_user_route=glide.{unique}; Max-Age=2147483647; {attributes}"),
        format!("glide_session_store={}; Max-Age=1800; {attributes}", unique.to_uppercase()),
        "BIGipServerpool_sim=1234567.12345.0000; path=/; Httponly; Secure; SameSite=None".to_owned(),
    ]
}

fn compress(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8 + 64), Compression::new(1));
    match encoder.write_all(body).and_then(|()| encoder.finish()) {
        Ok(packed) => packed.into(),
        Err(_) => Bytes::copy_from_slice(body),
    }
}
