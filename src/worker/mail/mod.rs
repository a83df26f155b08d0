//! Mail about a server's tables, for whom its option `notify_email` names: several events make one.
//!
//! Events are entered by the transactions that make them true ([`crate::catalog`]) and leave with the mail that tells them.
//! The main thread decides and writes; mails are composed and delivered by Tokio threads, one at a time, and nobody waits
//! for them.

mod message;
mod relay;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use servicenow::sync::digest::{Digest, Untold};
use tokio::sync::oneshot;

use super::tasks::THREADS;
use crate::catalog::{self, MailEvent};
use crate::option::ServerOptions;
use crate::pg;
use crate::pg::io::AbortOnDrop;
use crate::setting;
use message::Subject;
use relay::Relay;

/// How often it is looked whether a mail is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What sends mails.
#[derive(Default)]
pub struct Mailer {
    digests: HashMap<pg_sys::Oid, Digest>,
    looked: Option<Instant>,
    sending: Option<Sending>,
    /// A mail whose outcome is not written down yet.
    outcome: Option<(pg_sys::Oid, i64, Outcome)>,
}

/// What became of a mail: it was sent, though perhaps not to all, or not yet.
type Outcome = Result<Option<String>, String>;

/// A mail under way.
struct Sending {
    server: pg_sys::Oid,
    /// The last event it tells.
    last: i64,
    outcome: oneshot::Receiver<Outcome>,
    _task: AbortOnDrop,
}

/// A mail to be sent.
struct Due {
    server: pg_sys::Oid,
    subject: Subject,
    options: ServerOptions,
    events: Vec<MailEvent>,
}

impl Mailer {
    /// Sends the next mail if one is due, and takes note of what became of the last.
    pub fn look(&mut self) {
        if let Some(sending) = &mut self.sending {
            let outcome = match sending.outcome.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => return,
                Err(oneshot::error::TryRecvError::Closed) => Err("it failed unexpectedly".to_owned()),
                Ok(outcome) => outcome,
            };
            self.outcome = Some((sending.server, sending.last, outcome));
            self.sending = None;
        }
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
            return;
        }
        self.looked = Some(Instant::now());
        if let Some((server, last, outcome)) = self.outcome.take()
            && !self.note(server, last, &outcome)
        {
            self.outcome = Some((server, last, outcome)); // written down at the next look
            return;
        }
        let Some(url) = setting::smtp_url() else { return };
        if let Ok(Some(due)) = pg::xact::transaction(std::panic::AssertUnwindSafe(|| self.due())) {
            self.send(&url, due);
        }
    }

    /// The first server about which it is time to tell.
    fn due(&self) -> Option<Due> {
        let now = Instant::now();
        let fresh = Digest::default();
        let waiting = catalog::mail_waiting().into_iter().find(|waiting| {
            let untold =
                Untold { oldest: waiting.oldest, latest: waiting.latest, more_to_come: waiting.more_to_come };
            self.digests.get(&waiting.server).unwrap_or(&fresh).is_due(untold, now)
        })?;
        let server = waiting.server;
        let events = catalog::mail_events(server);
        let description = pg::catalog::server(server);
        let options = ServerOptions::parse(&description.options).ok();
        match options.filter(|options| !options.notify_email.is_empty()) {
            Some(options) => {
                let subject = Subject { server: description.name, database: catalog::database_name() };
                Some(Due { server, subject, options, events })
            }
            None => {
                catalog::forget_mail_events(server, events.last()?.id);
                None
            }
        }
    }

    fn send(&mut self, url: &str, due: Due) {
        let Due { server, subject, options, events } = due;
        let Some(last) = events.last().map(|event| event.id) else { return };
        let url = url.to_owned();
        let (answer, outcome) = oneshot::channel();
        let deliver = async move {
            let relay = Relay::parse(&url)?;
            let text = message::compose(&subject, &options, &events);
            relay.deliver(&options.notify_email, &text).await
        };
        let run = async move {
            let _nobody_waits_any_more = answer.send(deliver.await);
        };
        match pg::io::spawn(run, THREADS) {
            Ok(task) => self.sending = Some(Sending { server, last, outcome, _task: task }),
            Err(e) => self.outcome = Some((server, last, Err(e.to_string()))),
        }
    }

    /// Writes down what became of a mail; gives back whether that was possible.
    fn note(&mut self, server: pg_sys::Oid, last: i64, outcome: &Outcome) -> bool {
        let digest = self.digests.entry(server).or_default();
        let now = Instant::now();
        let mut next = digest.clone();
        let written = match outcome {
            Ok(refused) => {
                next.delivered(now);
                pg::xact::transaction(|| {
                    catalog::mail_sent(server, last, refused.as_deref());
                    if let Some(why) = refused {
                        pg::worker::log(&format!("could not send mail about a foreign server to all: {why}"));
                    }
                })
                .is_ok()
            }
            Err(e) => {
                let wait = next.failed(now);
                pg::xact::transaction(|| {
                    if catalog::mail_failed(server, e, wait) {
                        pg::worker::log(&format!("could not send mail about a foreign server: {e}"));
                    }
                })
                .is_ok()
            }
        };
        if written {
            *digest = next;
        }
        written
    }
}
