//! The reader of a server's events, and what makes it begin anew.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use servicenow::capture::SubscriptionId;
use servicenow::capture::inbox::Inbox;
use servicenow::sync::capture::{self, Capture, Channel, Setup};
use servicenow::sync::mirror::Spec;
use servicenow::sync::pace::Brake;
use url::Url;

use super::listener::Receiver;
use super::store::{PgStore, Table};
use super::tasks::THREADS;
use crate::catalog::Subscription;
use crate::connection::HttpClient;
use crate::option::{CaptureMode, ServerOptions};
use crate::pg::io::{self, AbortOnDrop};
use crate::setting;

/// What should be read of a server's events.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who reads.
    pub subscription: Subscription,
    /// Where rules post to, if they post.
    pub endpoint: Option<Url>,
}

/// What a reader was started for; another one has to be started anew.
#[derive(PartialEq, Eq)]
struct Cause {
    id: SubscriptionId,
    installs: i32,
    endpoint: Option<Url>,
    tables: HashSet<Table>,
}

/// A running reader.
pub struct Reader {
    cause: Cause,
    task: AbortOnDrop,
    webhook: Option<(Receiver, Arc<Inbox>)>,
}

impl Plan {
    fn cause(&self, tables: &HashSet<Table>) -> Cause {
        let Subscription { id, installs, .. } = &self.subscription;
        Cause { id: id.clone(), installs: *installs, endpoint: self.endpoint.clone(), tables: tables.clone() }
    }
}

impl Reader {
    /// Starts to read, in place of another one.
    pub fn start(
        plan: Plan,
        client: HttpClient,
        store: Arc<PgStore>,
        specs: HashMap<Table, Spec>,
        options: &ServerOptions,
        brake: Arc<Brake>,
        before: Option<Reader>,
    ) -> std::io::Result<Self> {
        // The old one is gone before the new one listens, and leaves what it has not noted.
        let left = before.and_then(|reader| reader.leave(&plan.subscription.id));
        // Until it is known that events come.
        brake.set(None);
        let tables = specs.keys().copied().collect();
        let cause = plan.cause(&tables);
        let Subscription { id, installed, queue, key, rules, .. } = plan.subscription;
        let (channel, webhook) = match plan.endpoint {
            None => (Channel::Queue(queue), None),
            Some(endpoint) => {
                let inbox = left.unwrap_or_default();
                let receiver = Receiver::start(&id, &key, inbox.clone())?;
                (Channel::Webhook { inbox: inbox.clone(), endpoint, key }, Some((receiver, inbox)))
            }
        };
        let setup = Setup { id, channel, installed, rules, poll_interval: options.poll_interval };
        let capture = Capture::new(client, store, specs, setup, brake);
        Ok(Self { cause, task: io::spawn(capture::run(capture), THREADS)?, webhook })
    }

    /// Ends it; gives back the inbox, if it is a subscription's.
    fn leave(self, id: &SubscriptionId) -> Option<Arc<Inbox>> {
        self.webhook.filter(|_| self.cause.id == *id).map(|(_, inbox)| inbox)
    }

    /// Whether it still reads what the plan wants of these tables.
    pub fn is_current(&self, plan: &Plan, tables: &HashSet<Table>) -> bool {
        !self.has_ended() && self.cause == plan.cause(tables)
    }

    /// Whether it has come to its end: its subscription is another one now.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished() || self.webhook.as_ref().is_some_and(|(receiver, _)| receiver.has_ended())
    }

    /// Says why nobody listens for webhooks, or that somebody does.
    pub fn tell_trouble(&self, trouble: Option<&str>) {
        if let Some((_, inbox)) = &self.webhook {
            inbox.set_trouble(trouble);
        }
    }
}

/// Where the rules of a subscription post to; `None` if they do not, or nobody listens.
pub fn endpoint(options: &ServerOptions, id: &SubscriptionId) -> Option<Url> {
    if options.capture != CaptureMode::Webhook {
        return None;
    }
    let mut url = setting::listener_url(options.webhook_url.as_ref())?;
    url.path_segments_mut().ok()?.pop_if_empty().push(id.as_str());
    Some(url)
}
