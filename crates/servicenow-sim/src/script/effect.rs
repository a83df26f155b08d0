//! What a transaction leaves to be done after it: requests that its scripts have made, and asynchronous rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

use super::ScriptRule;
use crate::acl::Operation;
use crate::instance::Instance;
use crate::query::plan::mix;
use crate::record::{Draft, Options};
use crate::users::Actor;

/// Requests under way at a time.
const SIDE_BY_SIDE: usize = 16;

/// A request as `RESTMessageV2` describes it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Post {
    method: String,
    endpoint: String,
    headers: Vec<(String, String)>,
    body: String,
    /// In ms.
    timeout: u64,
}

/// An asynchronous rule that is to run.
#[derive(Debug, Clone)]
pub(crate) struct Later {
    /// The rule's `sys_id`.
    pub(crate) rule: String,
    /// The record as it was.
    pub(crate) copy: Draft,
    /// What was done to it.
    pub(crate) operation: Operation,
}

/// What a transaction leaves behind.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) posts: Vec<Post>,
    pub(crate) later: Vec<Later>,
    pub(crate) errors: Vec<String>,
}

impl Effects {
    /// Logs what is wrong with a rule.
    pub(crate) fn complain(&mut self, rule: &ScriptRule, message: &str) {
        self.errors.push(format!("Business Rule '{}' on {}: {message}", rule.name, rule.collection));
    }

    /// The transaction was refused: nothing of it happens.
    pub(crate) fn withdraw(&mut self) {
        self.posts.clear();
        self.later.clear();
    }
}

/// How many requests scripts have made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PostCount {
    /// Sent, duplicates included.
    pub sent: u64,
    /// Dropped by [`Switches::posts_drop`](crate::Switches::posts_drop).
    pub dropped: u64,
    /// Not answered with 2xx.
    pub failed: u64,
}

/// The instance's end: takes what transactions leave behind.
#[derive(Debug)]
pub(crate) struct Outbox {
    sender: UnboundedSender<(Actor, Effects)>,
    receiver: parking_lot::Mutex<Option<UnboundedReceiver<(Actor, Effects)>>>,
    errors: parking_lot::Mutex<Vec<String>>,
    sent: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl Default for Outbox {
    fn default() -> Self {
        let (sender, receiver) = unbounded_channel();
        Self {
            sender,
            receiver: parking_lot::Mutex::new(Some(receiver)),
            errors: parking_lot::Mutex::default(),
            sent: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }
}

impl Outbox {
    /// Takes over what a transaction has left behind.
    pub(crate) fn take(&self, actor: &Actor, mut effects: Effects) {
        if !effects.errors.is_empty() {
            self.errors.lock().append(&mut effects.errors);
        }
        if !effects.posts.is_empty() || !effects.later.is_empty() {
            let _stopped = self.sender.send((actor.clone(), effects));
        }
    }

    /// What has gone wrong with scripts so far.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.errors.lock().clone()
    }

    /// What became of requests so far.
    pub(crate) fn count(&self) -> PostCount {
        let [sent, dropped, failed] =
            [&self.sent, &self.dropped, &self.failed].map(|count| count.load(Ordering::Relaxed));
        PostCount { sent, dropped, failed }
    }
}

/// Carries out what transactions leave behind, until the instance stops.
pub(crate) async fn serve(instance: Arc<Instance>, mut stopped: watch::Receiver<bool>) {
    let Some(mut receiver) = instance.outbox.receiver.lock().take() else { return };
    // Whom scripts post to is up to the test, and so are certificates.
    let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build();
    let Ok(client) = client else { return };
    let places = Arc::new(Semaphore::new(SIDE_BY_SIDE));
    let mut number = 0u64;
    loop {
        let (actor, effects) = tokio::select! {
            next = receiver.recv() => match next {
                Some(next) => next,
                None => return,
            },
            _ = stopped.changed() => return,
        };
        for later in effects.later {
            let (instance, actor) = (Arc::clone(&instance), actor.clone());
            tokio::spawn(async move {
                sleep(Duration::from_millis(instance.switches().async_rule_delay_ms)).await;
                let mut db = instance.db.write();
                instance
                    .writer(&mut db, &actor, Options::default(), |writer| super::run_later(writer, &later));
            });
        }
        for post in effects.posts {
            number += 1;
            let switches = instance.switches();
            let dice = mix(instance.seed ^ number);
            let is = |per_mille: u32, shift: u32| (dice >> shift) % 1000 < u64::from(per_mille);
            if is(switches.posts_drop, 0) {
                instance.outbox.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let times = if is(switches.posts_duplicate, 16) { 2 } else { 1 };
            for copy in 0..times {
                let delay = match switches.posts_jitter_ms {
                    0 => 0,
                    most => mix(dice ^ copy) % most,
                };
                let (instance, client, places, post) =
                    (Arc::clone(&instance), client.clone(), Arc::clone(&places), post.clone());
                tokio::spawn(async move {
                    sleep(Duration::from_millis(delay)).await;
                    let Ok(_place) = places.acquire_owned().await else { return };
                    instance.outbox.sent.fetch_add(1, Ordering::Relaxed);
                    if !send(&client, post).await {
                        instance.outbox.failed.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
    }
}

/// Sends a request, once: there is no retry (facts §8.3).
async fn send(client: &reqwest::Client, post: Post) -> bool {
    let Ok(method) = post.method.to_ascii_uppercase().parse() else { return false };
    let mut request = client.request(method, post.endpoint).timeout(Duration::from_millis(post.timeout));
    for (name, value) in post.headers {
        request = request.header(name, value);
    }
    request.body(post.body).send().await.is_ok_and(|answer| answer.status().is_success())
}
