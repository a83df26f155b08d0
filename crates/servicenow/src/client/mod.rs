//! The client: one instance, one login, any number of calls at a time.
//!
//! [`Client::call`] is the only place a request leaves from: it adds the login, keeps to the limits, tells the
//! answers apart ([`answer::interpret`]) and repeats what [`retry::policy`] allows.

mod answer;
pub mod auth;
pub mod page_size;
pub mod retry;
pub mod table_api;
pub mod transport;

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};
use url::Url;

use crate::error::{Error, Result, Words};
use answer::interpret;
use auth::{Credentials, Login};
use retry::{Effect, Patience, Policy};
use transport::{Request, Response, Transport};

/// Longer addresses are refused by the front end of an instance (8 KiB), some proxies sooner.
const URL_LIMIT: usize = 7_500;

/// Where an instance is and how to log in to it.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The base address, without a path.
    pub url: Url,
    /// The token endpoint, if it is not `oauth_token.do` of the instance.
    pub token_url: Option<Url>,
    /// The login.
    pub credentials: Credentials,
    /// The most calls under way at a time.
    pub max_concurrency: usize,
    /// When to give up.
    pub patience: Patience,
}

/// A client of one instance under one login. Cloning shares connections, token and limits.
#[derive(Debug)]
pub struct Client<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for Client<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<T> {
    url: Url,
    login: Login,
    transport: T,
    slots: Semaphore,
    /// No call before this moment: what the instance last asked for.
    not_before: std::sync::Mutex<Option<Instant>>,
    patience: Patience,
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
    body: Option<Bytes>,
    effect: Effect,
}

impl<T: Transport> Client<T> {
    /// A client; nothing is sent yet.
    pub fn new(instance: Instance, transport: T) -> Result<Self> {
        let token_url = match instance.token_url {
            Some(url) => url,
            None => instance.url.join("/oauth_token.do").map_err(|e| Error::Setup(e.to_string()))?,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                url: instance.url,
                login: Login::new(instance.credentials, token_url),
                transport,
                slots: Semaphore::new(instance.max_concurrency.max(1)),
                not_before: std::sync::Mutex::new(None),
                patience: instance.patience,
            }),
        })
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

    /// Sends a call until it is answered or not worth repeating, and decodes the answer. An answer that cannot
    /// be decoded counts as a failed attempt: instances send login pages and `null` with status 200.
    async fn call<R>(&self, call: Call, decode: impl Fn(&Response) -> Result<R>) -> Result<R> {
        let mut rejected: Option<HeaderValue> = None;
        let mut attempt = 1;
        loop {
            let error = match self.attempt(&call, rejected.as_ref()).await {
                Ok(response) => match decode(&response) {
                    Ok(result) => {
                        self.inner.login.note(true);
                        return Ok(result);
                    }
                    Err(e) => e,
                },
                Err((Error::Unauthorized(_), Some(header)))
                    if self.inner.login.has_token() && rejected.is_none() =>
                {
                    // The token ended early or was revoked: log in again, once.
                    rejected = Some(header);
                    continue;
                }
                Err((e, _)) => e,
            };
            if matches!(error, Error::Login | Error::Unauthorized(_)) {
                self.inner.login.note(false);
            }
            attempt += 1;
            let Policy::Retry(after) = retry::policy(&error, call.effect) else { return Err(error) };
            if let Some(wait) = after {
                self.hold_until(Instant::now() + wait);
            }
            if after.is_some_and(|wait| wait > self.inner.patience.longest_wait)
                || attempt > self.inner.patience.attempts
            {
                return Err(error);
            }
            if after.is_none() {
                sleep(retry::backoff(attempt, chance())).await;
            }
        }
    }

    /// One attempt; a failure comes with the login header it was made with.
    async fn attempt(
        &self,
        call: &Call,
        rejected: Option<&HeaderValue>,
    ) -> std::result::Result<Response, (Error, Option<HeaderValue>)> {
        self.wait_for_turn().await.map_err(|e| (e, None))?;
        let _slot = self.inner.slots.acquire().await.expect("the semaphore is never closed");
        let transport = &self.inner.transport;
        let header = self.inner.login.header(transport, rejected).await.map_err(|e| (e, None))?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(AUTHORIZATION, header.clone());
        if call.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let request =
            Request { method: call.method.clone(), url: call.url.clone(), headers, body: call.body.clone() };
        let response = transport.send(request).await.map_err(|e| (e, Some(header.clone())))?;
        interpret(&response).map_err(|e| (e, Some(header)))?;
        Ok(response)
    }

    /// Waits as long as the instance has asked to; fails at once if that is longer than the caller would.
    async fn wait_for_turn(&self) -> Result<()> {
        loop {
            let until = *self.inner.not_before.lock().expect("no panic while it is held");
            let left = until.map(|moment| moment.saturating_duration_since(Instant::now()));
            match (until, left) {
                (Some(moment), Some(left)) if !left.is_zero() => {
                    if left > self.inner.patience.longest_wait {
                        let seconds = left.as_secs().max(1);
                        let detail = format!(
                            "No call was made: the instance has asked to wait for {seconds} more seconds."
                        );
                        let words = Words { message: "Rate limit exceeded".to_owned(), detail: Some(detail) };
                        return Err(Error::RateLimited { retry_after: Some(left), words });
                    }
                    sleep_until(moment).await;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Holds back every call of this client until then.
    fn hold_until(&self, moment: Instant) {
        let mut held = self.inner.not_before.lock().expect("no panic while it is held");
        *held = Some(held.map_or(moment, |h| h.max(moment)));
    }
}

/// A random number from 0 to 1, for jitter only.
fn chance() -> f64 {
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
            is_send(&client.delete(table, id));
            is_send(&crate::dictionary::list_tables(client));
            is_send(&crate::dictionary::fetch(client, std::slice::from_ref(table)));
        }
        let _: fn(&Client<transport::HttpTransport>, &TableName, &SysId) = calls;
    }
}
