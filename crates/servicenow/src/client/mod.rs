//! The client: one instance, one login, any number of calls at a time.
//!
//! [`Client::call`] is the only place a request leaves from: it adds the login, keeps to the limits, tells the
//! answers apart ([`answer::interpret`]) and repeats what [`retry::policy`] allows.
//!
//! A call is made when the instance has had the rest it asked for, when the hour's [`budget`] has room, and when
//! the `gate` lets it in, which knows how many calls at a time the instance bears (`limit`). Lists ask for less
//! at a time when the instance cannot answer them whole ([`page_size`]). What calls cost is counted in [`stats`], and
//! each one is told of in `journal`.
//!
//! Many writes at once ([`mod@write`]) go as batches (`batch`) whose size follows what the instance bears
//! (`batch_size`); what becomes of each one is decided in `pending`. Reads that nobody waits for go in one, too (`together`).

pub mod address;
mod aggregate;
mod answer;
pub mod auth;
mod batch;
mod batch_size;
pub mod budget;
mod gate;
mod journal;
pub mod keys;
mod limit;
mod look;
pub mod page_size;
mod pending;
mod quota;
pub mod retry;
pub mod stats;
pub mod table_api;
mod together;
mod traces;
pub mod transport;
pub mod write;

use std::convert::Infallible;
use std::future::{Future, pending};
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use tokio::time::{Instant, sleep, sleep_until};
use url::Url;

use crate::error::{Error, Result, Words};
use answer::{interpret, queued, quota, served_at};
use auth::consent::Consent;
use auth::vault::Vault;
use auth::{Credentials, Login, Pass};
use batch_size::BatchSizes;
use budget::{Answer, Budget, Remaining};
use gate::{Gate, Permit};
use journal::Journal;
pub use journal::LoggedRequest;
use keys::KeyBook;
use limit::Outcome;
use quota::Quota;
use retry::{Effect, Patience, Policy, Urgency};
use stats::{Recorder, Stats, endpoint};
use together::Together;
pub use traces::Traces;
use transport::{Request, Response, Transport};

/// Longer addresses are refused by the front end of an instance (8 KiB), some proxies sooner.
const URL_LIMIT: usize = 7_500;

/// How long a caller waits before it looks again how many calls are left.
const LONGEST_NAP: Duration = Duration::from_secs(10);
/// The longest we hold all calls back of our own accord.
const fn longest_pause(urgency: Urgency) -> Duration {
    match urgency {
        Urgency::Statement => Duration::from_secs(1),
        Urgency::Background => Duration::from_secs(4),
    }
}

/// Where an instance is and how to log in to it.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The base address, without a path.
    pub url: Url,
    /// The token endpoint, if it is not `oauth_token.do` of the instance.
    pub token_url: Option<Url>,
    /// The login.
    pub credentials: Credentials,
    /// Where it is kept how far the login is.
    pub vault: Vault,
    /// The most calls under way at a time; fewer if the instance does not bear as many.
    pub max_concurrency: usize,
    /// The most calls in any hour; those for tokens, which no rate limit rule of an instance covers, do not count.
    pub max_calls_per_hour: Option<u32>,
    /// When to give up.
    pub patience: Patience,
}

/// A client of one instance under one login. Cloning shares connections, token and limits.
#[derive(Debug)]
pub struct Client<T> {
    inner: Arc<Inner<T>>,
    /// Where it is told that writes leave.
    traces: Option<Arc<Traces>>,
    /// Its reads wait a moment for others to go with, and so long for the answer before they go alone.
    gathers: Option<Duration>,
}

impl<T> Clone for Client<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), traces: self.traces.clone(), gathers: self.gathers }
    }
}

struct Inner<T> {
    url: Url,
    login: Login,
    transport: T,
    gate: Arc<Gate>,
    hold: Mutex<Hold>,
    budget: Option<Mutex<Budget>>,
    quota: Mutex<Quota>,
    recorder: Recorder,
    journal: Journal,
    patience: Patience,
    batch_sizes: BatchSizes,
    together: Together,
    keys: KeyBook,
    clock: Mutex<Option<(Instant, i64)>>,
}

impl<T> std::fmt::Debug for Inner<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.url)
    }
}

/// A call before it is sent.
#[derive(Clone, Debug)]
struct Call {
    method: Method,
    url: Url,
    /// Besides those that every call has.
    headers: HeaderMap,
    body: Option<Bytes>,
    effect: Effect,
    /// If it is not let in others are made in its place, which say whether that is a matter of the login.
    has_substitutes: bool,
}

impl Call {
    /// A read.
    fn get(url: Url) -> Self {
        let (method, headers) = (Method::GET, HeaderMap::new());
        Self { method, url, headers, body: None, effect: Effect::Read, has_substitutes: false }
    }

    /// A write.
    fn write(method: Method, url: Url, body: Option<Bytes>, effect: Effect) -> Self {
        Self { method, url, headers: HeaderMap::new(), body, effect, has_substitutes: false }
    }
}

/// What a call has brought, and how.
#[derive(Debug)]
struct Answered<R> {
    result: R,
    /// From sending the request to having the whole answer.
    latency: Duration,
    /// The login it was made with.
    login: HeaderValue,
    /// Its number at the gate.
    call: u64,
}

impl<T: Transport> Client<T> {
    /// A client; nothing is sent yet.
    pub fn new(instance: Instance, transport: T) -> Result<Self> {
        let token_url = match instance.token_url {
            Some(url) => url,
            None => instance.url.join("/oauth_token.do").map_err(|e| Error::Setup(e.to_string()))?,
        };
        Ok(Self {
            traces: None,
            gathers: None,
            inner: Arc::new(Inner {
                url: instance.url,
                login: Login::new(instance.credentials, token_url, instance.vault, instance.patience.urgency),
                transport,
                gate: Gate::new(instance.max_concurrency),
                hold: Mutex::default(),
                quota: Mutex::default(),
                recorder: Recorder::default(),
                journal: Journal::default(),
                budget: instance.max_calls_per_hour.map(|calls| Mutex::new(Budget::new(calls, now()))),
                patience: instance.patience,
                batch_sizes: BatchSizes::default(),
                together: Together::default(),
                keys: KeyBook::default(),
                clock: Mutex::default(),
            }),
        })
    }

    /// The same client, which tells whether any of its writes may have been carried out.
    pub fn tracing(&self, traces: Arc<Traces>) -> Self {
        Self { traces: Some(traces), ..self.clone() }
    }

    /// Host and port of the instance, for messages.
    pub fn host(&self) -> String {
        transport::host_of(&self.inner.url)
    }

    fn url(&self, path: &str, query: &[(&str, &str)]) -> Result<Url> {
        let mut url = self.inner.url.join(path).map_err(|e| Error::Setup(e.to_string()))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        match url.as_str().len() {
            0..=URL_LIMIT => Ok(url),
            _ => Err(Error::TooLong),
        }
    }

    /// How many calls may be under way at the moment: as many as the instance bears, within `max_concurrency`.
    pub fn concurrency(&self) -> usize {
        self.inner.gate.limit()
    }

    /// What is left of `max_calls_per_hour`, if there is such a budget.
    pub fn budget(&self) -> Option<Remaining> {
        self.with_budget(Budget::remaining)
    }

    /// Takes so many calls from the budget, which another process has just made.
    pub fn note_calls_elsewhere(&self, calls: u32) {
        self.with_budget(|budget, now| budget.note(calls, now));
    }

    /// Takes calls from the budget that were made in the last hour, before this client: how long ago, and how many.
    pub fn note_past_calls(&self, past: &[(Duration, u32)]) {
        self.with_budget(|budget, now| budget.note_past(past, now));
    }

    /// How long no call is made because the instance has asked for that, or could not bear more.
    pub fn held_for(&self) -> Duration {
        let until = self.hold().until();
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Heeds what the instance has asked a client before this one: to make no call for a while.
    pub fn heed_as(&self, before: &Self) {
        let asked = before.hold().asked;
        self.hold().asked = asked;
    }

    /// How many calls the instance has said are left; `None` if it has not lately.
    pub fn calls_left(&self) -> Option<u32> {
        self.quota().left(now())
    }

    /// Whether anybody else has a clone of it.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.inner) > 1
    }

    /// What this client has counted since it was last asked, to be added to what is kept.
    pub fn take_stats(&self) -> Stats {
        self.inner.recorder.take()
    }

    /// Begins or ends to keep a line of every request, logins included, to be taken with [`Self::take_log`].
    pub fn log_requests(&self, on: bool) {
        self.inner.journal.keep(on);
    }

    /// The requests that came to an end since this was last called, while they were to be kept.
    pub fn take_log(&self) -> Vec<LoggedRequest> {
        self.inner.journal.take()
    }

    fn with_budget<R>(&self, ask: impl FnOnce(&mut Budget, std::time::Instant) -> R) -> Option<R> {
        let budget = self.inner.budget.as_ref()?;
        Some(ask(&mut budget.lock().expect("no panic while it is held"), now()))
    }

    /// Sends a call until it is answered or not worth repeating, and decodes the answer. An answer that cannot
    /// be decoded counts as a failed attempt: instances send login pages and `null` with status 200.
    async fn call<R>(&self, call: Call, decode: impl Fn(&Response) -> Result<R>) -> Result<R> {
        match self.call_unless(pending::<Infallible>(), call, decode).await? {
            ControlFlow::Continue(answered) => Ok(answered.result),
            ControlFlow::Break(never) => match never {},
        }
    }

    /// As [`Self::call`], but a call that has not left yet, or waits to be repeated, is given up once `withdrawn`
    /// comes about. It makes sense for calls that are repeated only if they were not carried out.
    async fn call_unless<W, R>(
        &self,
        withdrawn: impl Future<Output = W>,
        call: Call,
        decode: impl Fn(&Response) -> Result<R>,
    ) -> Result<ControlFlow<W, Answered<R>>> {
        let mut withdrawn = pin!(withdrawn);
        let mut rejected: Option<HeaderValue> = None;
        let mut unknown: Option<Error> = None;
        let (mut attempt, mut repeats) = (1, false);
        let endpoint = endpoint(&call.method, &call.url);
        let error = loop {
            let admitted = tokio::select! {
                biased;
                why = &mut withdrawn => return Ok(ControlFlow::Break(why)),
                admitted = self.admit(call.effect, &endpoint) => admitted,
            };
            let permit = match admitted {
                Ok(permit) => permit,
                Err(e) => break e,
            };
            if std::mem::replace(&mut repeats, true) {
                self.inner.recorder.repeating(&endpoint);
            }
            let error = match self.attempt(permit, &call, rejected.as_ref(), &decode).await {
                Ok(answered) => return Ok(ControlFlow::Continue(answered)),
                Err((Error::Unauthorized(_), Some(pass)))
                    if self.inner.login.has_token() && rejected.is_none() =>
                {
                    // The token ended early or was revoked: log in again, once.
                    rejected = Some(pass.value);
                    continue;
                }
                Err((e @ Error::Unauthorized(_), Some(pass))) if !call.has_substitutes => {
                    self.inner.login.refused(pass).await;
                    e
                }
                Err((e, _)) => e,
            };
            attempt += 1;
            let Policy::Retry(after) = retry::policy(&error, call.effect) else { break error };
            if after.is_some_and(|wait| wait > self.inner.patience.longest_wait)
                || attempt > self.inner.patience.attempts
            {
                break error;
            }
            if call.effect != Effect::Read && error.leaves_outcome_unknown() {
                unknown.get_or_insert(error);
            }
            if after.is_none() {
                tokio::select! {
                    why = &mut withdrawn => return Ok(ControlFlow::Break(why)),
                    () = sleep(retry::backoff(attempt, chance())) => {}
                }
            }
        };
        // What the last attempt was told says nothing about the ones before, unless the record is gone.
        match unknown {
            Some(before) if !matches!(error, Error::NoRecord(_)) => Err(before),
            _ => Err(error),
        }
    }

    /// Waits until a call may be made: until the instance has had the rest it asked for, the budget has room, and
    /// the calls before this one have been let in.
    async fn admit(&self, effect: Effect, endpoint: &str) -> Result<Permit> {
        // Lists, single records and counts of a table alike.
        let what = endpoint.rsplit('/').next().unwrap_or_default();
        let urgency = match effect {
            Effect::Read => self.inner.patience.urgency,
            Effect::Idempotent | Effect::Once => Urgency::Statement,
        };
        loop {
            self.wait_for_rest().await?;
            self.wait_for_budget(urgency).await?;
            self.wait_for_quota(urgency).await;
            let permit = self.inner.gate.enter(effect, what).await;
            // Calls that came back meanwhile may have been told to wait, and others have taken from the budget.
            if self.hold().until() <= Some(Instant::now())
                && self.quota().wait(urgency, now()).is_zero()
                && matches!(self.with_budget(|b, now| b.take(urgency, now)), None | Some(Answer::Go))
            {
                self.quota().take(urgency, now());
                return Ok(permit);
            }
        }
    }

    async fn wait_for_budget(&self, urgency: Urgency) -> Result<()> {
        loop {
            match self.with_budget(|budget, now| (budget.ask(urgency, now), budget.remaining(now))) {
                None | Some((Answer::Go, _)) => return Ok(()),
                Some((Answer::Wait(wait), _)) => sleep(wait).await,
                Some((Answer::UsedUp(room_in), Remaining { per_hour, .. })) => {
                    return Err(Error::BudgetUsedUp { per_hour, room_in });
                }
            }
        }
    }

    async fn wait_for_quota(&self, urgency: Urgency) {
        loop {
            let wait = self.quota().wait(urgency, now());
            if wait.is_zero() {
                return;
            }
            // Others may have been told something else meanwhile.
            sleep(wait.min(LONGEST_NAP)).await;
        }
    }

    /// What the instance's clock was at a moment, in seconds since 1970; `None` if no answer has told it.
    fn clock_at(&self, moment: Instant) -> Option<i64> {
        let (answered, at) = (*self.inner.clock.lock().expect("no panic while it is held"))?;
        Some(at - answered.saturating_duration_since(moment).as_secs() as i64)
    }

    fn quota(&self) -> MutexGuard<'_, Quota> {
        self.inner.quota.lock().expect("no panic while it is held")
    }

    /// Exchanges the code of a user's consent for a token, in place of what there is.
    pub async fn exchange_code(&self, code: &str, consent: &Consent) -> Result<()> {
        self.inner.login.exchange_code(&*self.inner, code, consent).await
    }

    /// The credentials were accepted elsewhere just now: a login that rests is tried again.
    pub async fn forgive_refusal(&self) {
        self.inner.login.forgive().await;
    }

    /// One attempt; a failure comes with the pass it was made with.
    async fn attempt<R>(
        &self,
        permit: Permit,
        call: &Call,
        rejected: Option<&HeaderValue>,
        decode: impl Fn(&Response) -> Result<R>,
    ) -> std::result::Result<Answered<R>, (Error, Option<Pass>)> {
        let transport = &*self.inner;
        let mut pass = match self.inner.login.pass(transport, rejected).await {
            Ok(pass) => pass,
            Err(e) => {
                self.leave(permit, None, Some(&e));
                return Err((e, None));
            }
        };
        let mut headers = call.headers.clone();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(pass.name.clone(), pass.value.clone());
        if call.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let request =
            Request { method: call.method.clone(), url: call.url.clone(), headers, body: call.body.clone() };
        let traces = self.traces.as_deref().filter(|_| call.effect != Effect::Read);
        if traces.is_some_and(|traces| !traces.leave()) {
            // Whoever has withdrawn it does not wait for it any more.
            pending::<Infallible>().await;
        }
        let sent_at = Instant::now();
        let sent = transport.send(request).await;
        let latency = sent_at.elapsed();
        let answered = sent.as_ref().ok().map(|r| Outcome::Answered { latency, queued: queued(r) });
        if let Some(told) = sent.as_ref().ok().filter(|response| response.is_success()).and_then(quota) {
            self.quota().note(told, now());
        }
        if let Some(at) = sent.as_ref().ok().and_then(served_at) {
            *self.inner.clock.lock().expect("no panic while it is held") = Some((Instant::now(), at));
        }
        let answer = sent.and_then(|response| interpret(&response).map(|()| response));
        if answer.as_ref().is_err_and(Error::was_not_carried_out) {
            traces.inspect(|traces| traces.take_back());
        }
        let number = permit.number();
        // The next call need not wait for this one's answer to be decoded.
        self.leave(permit, answered, answer.as_ref().err());
        let result = answer.and_then(|response| {
            decode(&response).inspect_err(|_| {
                self.inner.recorder.unusable(&endpoint(&call.method, &call.url));
            })
        });
        match result {
            Ok(result) => {
                self.inner.login.accepted(&mut pass).await;
                Ok(Answered { result, latency, login: pass.value, call: number })
            }
            Err(e) => {
                self.inner.login.failed(&mut pass, &e);
                Err((e, Some(pass)))
            }
        }
    }

    /// Gives a permit back. What its call was told, or shows, is taken note of before another one is let in.
    fn leave(&self, permit: Permit, answered: Option<Outcome>, error: Option<&Error>) {
        if let Some(wait) = error.and_then(Error::retry_after) {
            self.heed(wait);
        }
        let outcome = if error.is_some_and(is_overload) { Some(Outcome::Overloaded) } else { answered };
        self.slow_down(outcome.and_then(|outcome| permit.report(outcome)));
    }

    /// A call was answered, and the answer says that a part of it was turned away.
    fn was_too_much(&self, call: u64) {
        self.slow_down(self.inner.gate.report(call, Outcome::Overloaded));
    }

    /// The limit was halved, so often since the last answer. If nothing else has come back for a while, every call waits, not
    /// only those that failed.
    fn slow_down(&self, setbacks: Option<u32>) {
        if let Some(setbacks @ 2..) = setbacks {
            let longest = longest_pause(self.inner.patience.urgency);
            self.hold().ours = Some(Instant::now() + retry::backoff(setbacks, chance()).min(longest));
        }
    }

    /// The instance has asked to make no call for so long.
    fn heed(&self, wait: Duration) {
        let mut hold = self.hold();
        hold.asked = hold.asked.max(Some(Instant::now() + wait));
    }

    /// Waits as long as the instance has asked to; fails at once if that is longer than the caller would.
    async fn wait_for_rest(&self) -> Result<()> {
        loop {
            let (hold, now) = (*self.hold(), Instant::now());
            let left = hold.asked.map_or(Duration::ZERO, |moment| moment.saturating_duration_since(now));
            if left > self.inner.patience.longest_wait {
                let seconds = left.as_secs().max(1);
                let detail =
                    format!("No call was made: the instance has asked to wait for {seconds} more seconds.");
                let words = Words { message: "Rate limit exceeded".to_owned(), detail: Some(detail) };
                return Err(Error::RateLimited { retry_after: Some(left), words });
            }
            match hold.until() {
                Some(moment) if moment > now => sleep_until(moment).await,
                _ => return Ok(()),
            }
        }
    }

    fn hold(&self) -> MutexGuard<'_, Hold> {
        self.inner.hold.lock().expect("no panic while it is held")
    }
}

/// Counts what is sent, calls and logins alike.
impl<T: Transport> Transport for Inner<T> {
    async fn send(&self, request: Request) -> Result<Response> {
        let endpoint = endpoint(&request.method, &request.url);
        let sent_at = Instant::now();
        self.recorder.sending(&endpoint);
        let (method, url) = (request.method.clone(), request.url.clone());
        let answer = self.transport.send(request).await;
        let latency = sent_at.elapsed();
        self.recorder.ended(&endpoint, latency, &answer);
        self.journal.ended(&method, &url, latency, &answer);
        answer
    }
}

/// Until when no call is made.
#[derive(Clone, Copy, Debug, Default)]
struct Hold {
    /// What the instance has asked for.
    asked: Option<Instant>,
    /// What we have decided, because it asks for nothing and is overloaded.
    ours: Option<Instant>,
}

impl Hold {
    fn until(&self) -> Option<Instant> {
        self.asked.max(self.ours)
    }
}

/// Whether a failure says that the instance has too much to do.
fn is_overload(error: &Error) -> bool {
    matches!(
        error,
        Error::RateLimited { .. }
            | Error::Discarded
            | Error::TimedOut { .. }
            | Error::Unavailable { status: 503, .. }
    )
}

/// The moment, for what knows no runtime.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// A random number from 0 to 1, for jitter only.
pub(crate) fn chance() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    // Every `RandomState` is keyed anew; good enough to keep callers from marching in step.
    let hash = std::collections::hash_map::RandomState::new().build_hasher().finish();
    hash as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{SysId, TableName};

    /// The compiler checks this one: an interrupted statement drops the future on another thread.
    #[test]
    fn calls_can_be_handed_to_another_thread() {
        fn is_send<F: Send>(_: &F) {}
        fn calls(client: &Client<transport::HttpTransport>, table: &TableName, id: &SysId) {
            let layout = Arc::new(crate::page::Layout::of_text(&[]));
            is_send(&client.delete(table, id));
            is_send(&client.write_all(table, Vec::new(), &layout, false, &Arc::default()));
            is_send(&client.look(table, std::slice::from_ref(id), &layout));
            is_send(&crate::dictionary::list_tables(client));
            is_send(&crate::dictionary::fetch(client, std::slice::from_ref(table)));
        }
        let _: fn(&Client<transport::HttpTransport>, &TableName, &SysId) = calls;
    }
}
