//! Reads that go together: what several ask for at about the same time, and nobody waits for, is one call of the Batch
//! API.
//!
//! Each of them would have been a call of its own and can still become one: where there is no Batch API, or not for this
//! user, where a batch fails, or for what had no time or no room in it. So nothing is ever missing because of it.

use std::convert::Infallible;
use std::future::pending;
use std::mem;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use http::header::{HeaderMap, HeaderValue};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::answer::interpret;
use super::batch::{self, Answer, Item, OUTPUT_HEADER, OUTPUT_LIMIT, Reply};
use super::batch_size::{BatchSize, Seen};
use super::retry::Effect;
use super::table_api::{List, Page, decode_page};
use super::transport::{Response, Transport};
use super::write::{is_absence, is_matter_of_size};
use super::{Answered, Call, Client};
use crate::error::{Error, Result};

/// How long the first one waits for others.
const GATHER: Duration = Duration::from_millis(250);
/// How long a read that nobody waits for waits for its answer before it goes alone: a call has ended by then.
const PATIENCE: Duration = Duration::from_secs(40);
/// Reads in the first batch, at most: they ask for little each.
const START: usize = 100;

/// What waits to go together.
#[derive(Debug)]
pub(super) struct Together {
    waiting: Mutex<Vec<Waiting>>,
    size: Mutex<BatchSize>,
}

/// One read. Whoever waits for it makes a call of its own if it is let go without an answer.
#[derive(Debug)]
struct Waiting {
    /// Path and query.
    url: String,
    answer: oneshot::Sender<Response>,
}

impl Default for Together {
    fn default() -> Self {
        Self { waiting: Mutex::default(), size: Mutex::new(BatchSize::of(START)) }
    }
}

impl Together {
    /// Adds a read; gives back whether it is the first one.
    fn add(&self, waiting: Waiting) -> bool {
        let mut all = self.waiting.lock().expect("no panic while it is held");
        all.push(waiting);
        all.len() == 1
    }

    /// Everything that somebody still waits for.
    fn take(&self) -> Vec<Waiting> {
        let mut all = mem::take(&mut *self.waiting.lock().expect("no panic while it is held"));
        all.retain(|waiting| !waiting.answer.is_closed());
        all
    }

    fn size(&self) -> MutexGuard<'_, BatchSize> {
        self.size.lock().expect("no panic while it is held")
    }
}

impl<T: Transport> Client<T> {
    /// The same client, whose lists and counts wait a moment for others of the kind to go with: for what is in no hurry.
    pub fn gathering(&self) -> Self {
        self.gathering_within(PATIENCE)
    }

    /// The same client, which gathers if nobody waits, or the plain one.
    pub fn gathering_if(&self, nobody_waits: bool) -> Self {
        if nobody_waits { self.gathering() } else { Self { gathers: None, ..self.clone() } }
    }

    /// As [`Self::gathering`], for what something else waits for: a list or count that has no answer within this time goes
    /// alone.
    pub fn gathering_within(&self, patience: Duration) -> Self {
        Self { gathers: Some(patience), ..self.clone() }
    }

    /// How many calls so many reads are that go together.
    pub fn calls_together(&self, reads: usize) -> usize {
        match self.inner.batch_sizes.are_possible() {
            true => reads.div_ceil(self.inner.together.size().items()),
            false => reads,
        }
    }

    /// As [`Client::list`], but only together with others; `None` if there were none or it came to nothing.
    pub(crate) async fn list_together(&self, list: List<'_>) -> Option<Page> {
        let url = self.list_url(&list).ok()?;
        let began = Instant::now();
        Some(decode_page(list.layout, &self.ask_together(&url, PATIENCE).await?).ok()?.asked(began))
    }

    /// Reads by a call of its own or, if this client gathers, with others.
    pub(super) async fn read<R>(&self, url: Url, decode: impl Fn(&Response) -> Result<R>) -> Result<R> {
        if let Some(patience) = self.gathers
            && let Some(response) = self.ask_together(&url, patience).await
            && let Ok(result) = decode(&response)
        {
            return Ok(result);
        }
        self.call(Call::get(url), decode).await
    }

    /// The answer to a read that went with others; `None` if it has to go alone.
    async fn ask_together(&self, url: &Url, patience: Duration) -> Option<Response> {
        if !self.inner.batch_sizes.are_possible() {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let is_first = self.inner.together.add(Waiting { url: format!("{}{query}", url.path()), answer });
        if is_first {
            // On its own: whoever was first may be gone before the others have their answers.
            let client = self.clone();
            tokio::spawn(async move { client.send_together().await });
        }
        timeout(patience, answered).await.ok()?.ok()
    }

    async fn send_together(self) {
        sleep(GATHER).await;
        let mut waiting = self.inner.together.take();
        while waiting.len() > 1 && self.inner.batch_sizes.are_possible() {
            let items = self.inner.together.size().items().min(waiting.len());
            if items < 2 {
                // Single ones are no batch; the next gathering is one again.
                self.inner.together.size().answered(alone());
                return;
            }
            let mut part: Vec<Waiting> = waiting.drain(..items).collect();
            match self.call_together(&mut part).await {
                Ok(Some(answered)) => self.hand_out(part, answered),
                Ok(None) => {}
                // An instance may want another login for this interface than for the others.
                Err(e) if is_absence(&e) || matches!(e, Error::Unauthorized(_)) => {
                    return self.inner.batch_sizes.are_absent();
                }
                Err(e) => {
                    if is_matter_of_size(&e) {
                        self.inner.together.size().failed(items);
                    }
                    // Each one says by itself what is wrong.
                    return;
                }
            }
        }
    }

    /// One call for all of these, given up once nobody waits for any of them.
    async fn call_together(&self, part: &mut [Waiting]) -> Result<Option<Answered<Answer>>> {
        let items: Vec<Item<'_>> = part
            .iter()
            .map(|waiting| Item {
                method: Method::GET,
                url: waiting.url.clone(),
                body: None,
                with_headers: true,
            })
            .collect();
        let call = Call {
            method: Method::POST,
            url: self.url(batch::PATH, &[])?,
            headers: HeaderMap::from_iter([(OUTPUT_HEADER, HeaderValue::from(OUTPUT_LIMIT))]),
            body: Some(batch::encode(&items)),
            effect: Effect::Read,
            has_substitutes: true,
        };
        let sent = part.len();
        let decode = |response: &Response| batch::decode(response, sent);
        let nobody_waits = join_all(part.iter_mut().map(|waiting| waiting.answer.closed()));
        // What hangs would take its place from the calls that are made instead.
        tokio::select! {
            _ = nobody_waits => Ok(None),
            answered = self.call_unless(pending::<Infallible>(), call, decode) => match answered? {
                ControlFlow::Continue(answered) => Ok(Some(answered)),
                ControlFlow::Break(never) => match never {},
            },
        }
    }

    /// Gives each its answer; those that have none, or a refusal, go alone.
    fn hand_out(&self, part: Vec<Waiting>, answered: Answered<Answer>) {
        let (answer, sent) = (answered.result, part.len());
        let (serviced, time, output) = (answer.serviced(), answer.time, answer.output);
        let seen = Seen { sent, serviced, time, latency: answered.latency, output };
        self.inner.together.size().answered(seen);
        let mut was_too_much = false;
        for (waiting, reply) in part.into_iter().zip(answer.replies) {
            let Reply::Serviced(Ok(response)) = reply else { continue };
            match interpret(&response) {
                Ok(()) => drop(waiting.answer.send(response)),
                Err(e) => {
                    was_too_much |= matches!(e, Error::RateLimited { .. } | Error::Discarded);
                    if let Some(wait) = e.retry_after() {
                        self.heed(wait);
                    }
                }
            }
        }
        if was_too_much {
            self.was_too_much(answered.call);
        }
    }
}

/// A read that went well by itself.
fn alone() -> Seen {
    Seen { sent: 1, serviced: 1, time: Duration::ZERO, latency: Duration::ZERO, output: 0 }
}
