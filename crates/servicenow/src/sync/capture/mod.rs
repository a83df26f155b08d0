//! Taking in what the instance tells of changes by itself, for all tables of a server.
//!
//! Events are noted in the store before anything else: from then on the records they name are among those to be looked
//! up, and the events may be forgotten. What a record looks like is then asked of the instance, many at a time. An event
//! whose version the store has already, as after a write from here, costs nothing more.
//!
//! Polls go on, at a slower pace as long as events can be believed to come: rules are looked at now and then, and a
//! change that a poll finds and that no event tells of means that capture is *silent*.

mod look;
mod rules;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinSet;
use tokio::time::sleep;
use url::Url;

use look::{Look, Looks};

use super::mirror::Spec;
use super::pace::Brake;
use super::store::{Store, StoreError, StoredRecords};
use super::{Stop, local_seconds, pause_after};
use crate::capture::event::{Event, coalesce};
use crate::capture::inbox::Inbox;
use crate::capture::queue::PAGE;
use crate::capture::webhook::WINDOW;
use crate::capture::{SubscriptionId, is_scoped};
use crate::client::Client;
use crate::client::auth::Secret;
use crate::client::transport::Transport;
use crate::error::{Error, Refusal, Words};
use crate::value::TableName;

/// The time between two looks after there was something; when there is nothing it grows.
const QUICK: Duration = Duration::from_millis(200);
/// Looks in the time between two polls, when nothing happens.
const LOOKS_PER_POLL: u32 = 5;
/// The longest time between two looks.
const LONGEST_IDLE: Duration = Duration::from_secs(30);
/// Requests come one by one: those that come within this time are taken together.
const GATHER: Duration = Duration::from_millis(10);
/// Polls as the backstop of a queue are so much rarer: a queue loses nothing.
const QUEUE_BACKSTOP: u32 = 60;
/// And they are no more calls than one in so many looks into the queue, all tables together.
const LOOKS_PER_BACKSTOP: u32 = 20;
/// Polls as the backstop of a webhook are so much rarer: a request that fails is not repeated. And they are no more than
/// one call in the time between two polls, all tables together.
const WEBHOOK_BACKSTOP: u32 = 6;
/// However many tables there are, polls are no rarer than this because of that.
const LONGEST_BACKSTOP: Duration = Duration::from_secs(600);
/// The time between two looks at the rules.
const RULES_INTERVAL: Duration = Duration::from_secs(60);
/// The time between two looks for a queue that is not there.
const ABSENCE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a change that no event has told of matters.
const SILENCE: Duration = Duration::from_secs(60);
/// How long there may be nothing to tell the store.
const NEWS_INTERVAL: Duration = Duration::from_secs(5);
/// A webhook's request, or a rule in the background, may be under way so long.
const DELIVERY: Duration = Duration::from_secs(10);
/// Somebody else empties the queue, if rows were gone before in so many looks in a row,
const SHARED: u32 = 3;
/// and they were no older than this.
const NEW: Duration = Duration::from_secs(86_400);

/// What has become of events.
#[derive(Clone, Debug)]
pub struct Noted<T> {
    /// Records to be looked up now, also because of events before.
    pub looks: Vec<(T, StoredRecords)>,
    /// There are others that somebody is writing just now.
    pub waiting: bool,
    /// In so long there will be some that the instance has told of and does not show yet.
    pub again: Option<Duration>,
    /// Events that tell of what the store has already.
    pub echoes: u64,
}

/// How much can be expected of capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is there to tell of changes yet.
    Absent,
    /// Events come.
    Active,
    /// They do not, or not all; why.
    Silent(String),
    /// They cannot be read; why.
    Failed(String),
}

/// What the store is told now and then.
#[derive(Clone, Debug)]
pub struct News {
    /// See [`State`].
    pub state: State,
    /// Events since the last news.
    pub events: u64,
    /// Those of them that said no more than others.
    pub coalesced: u64,
    /// Those that told of what was known.
    pub echoes: u64,
    /// Requests that were not believed.
    pub refused: u64,
    /// From the oldest event's rule to its record in the store.
    pub lag: Option<Duration>,
    /// Every event of a change that was there at this time has been noted; the local clock.
    pub complete: Option<SystemTime>,
    /// The queue, if it was made or found just now.
    pub queue: Option<TableName>,
}

/// Where there are rules of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// On these tables, unless somebody has taken them away.
    pub given: BTreeSet<TableName>,
    /// There may be some on tables that are not of interest any more.
    pub leaving: bool,
}

/// Where events are noted.
pub trait CaptureStore: Store {
    /// Takes note of events, for good, and says what has to be looked up.
    fn note_events(
        &self,
        events: Vec<Event>,
    ) -> impl Future<Output = Result<Noted<Self::Table>, StoreError>> + Send;

    /// Takes note of news; gives back how many changes polls have found, before the last time that everything was
    /// noted, that no event had told of.
    fn note_capture(&self, news: News) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Takes note of where there are rules.
    fn note_rules(&self, rules: Rules) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Somebody else reads the same queue: the subscription is to have another id.
    fn renew_subscription(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Where events come from.
#[derive(Clone, Debug)]
pub enum Channel {
    /// A queue in the instance, as far as its name is known.
    Queue(Option<TableName>),
    /// The listener's inbox.
    Webhook {
        /// The inbox.
        inbox: Arc<Inbox>,
        /// Where rules post to.
        endpoint: Url,
        /// What they sign with.
        key: Secret,
    },
}

/// What is known of a subscription.
#[derive(Debug)]
pub struct Setup {
    /// Its id.
    pub id: SubscriptionId,
    /// Where its events come from.
    pub channel: Channel,
    /// It was installed from here: what new tables need may be made.
    pub installed: bool,
    /// Where there are rules, as the store knows.
    pub rules: Rules,
    /// The time between two polls of a table.
    pub poll_interval: Duration,
}

/// Reads the events of one server's tables.
pub struct Capture<T, S: Store> {
    client: Client<T>,
    store: Arc<S>,
    specs: HashMap<S::Table, Spec>,
    setup: Setup,
    brake: Arc<Brake>,
    /// Something is left to be looked up.
    waiting: bool,
    /// Something is, and waits for a look that is under way.
    skipped: bool,
    /// Something will be.
    again: Option<Instant>,
    /// What is being looked up, and of which tables.
    looking: JoinSet<Look<S::Table>>,
    busy: HashSet<S::Table>,
    /// Tables whose records could not be looked up: until when they are left alone, and how often in a row.
    resting: HashMap<S::Table, (Instant, u32)>,
    inspected: Option<Instant>,
    /// This user did not see the rules.
    is_blind: bool,
    /// What is wrong with the rules.
    fault: Option<String>,
    /// When changes were found that no event had told of, and how many.
    missed: Option<(Instant, u64)>,
    /// When requests came that were signed and too far from the clock here.
    stale: Option<Instant>,
    /// Why records could not be looked up, last time.
    trouble: Option<String>,
    /// How often rows were gone before they were deleted.
    strangers: u32,
    news: News,
    told: Option<Instant>,
}

impl<T: Transport, S: CaptureStore> Capture<T, S>
where
    S::Table: Hash,
{
    /// A reader for these tables.
    pub fn new(
        client: Client<T>,
        store: Arc<S>,
        specs: HashMap<S::Table, Spec>,
        setup: Setup,
        brake: Arc<Brake>,
    ) -> Self {
        Self {
            client,
            store,
            specs,
            setup,
            brake,
            waiting: true,
            skipped: false,
            again: None,
            looking: JoinSet::new(),
            busy: HashSet::new(),
            resting: HashMap::new(),
            inspected: None,
            is_blind: false,
            fault: None,
            missed: None,
            stale: None,
            trouble: None,
            strangers: 0,
            news: nothing_new(),
            told: None,
        }
    }

    /// Looks once whether there is something, and settles it; gives back whether there was. Nothing is lost by an
    /// error: the caller may call again.
    pub async fn look(&mut self) -> Result<bool, Stop> {
        while let Some(look) = self.looking.try_join_next() {
            self.end(look);
        }
        let interval = match self.setup.channel {
            Channel::Queue(None) => ABSENCE_INTERVAL,
            _ => RULES_INTERVAL,
        };
        if self.inspected.is_none_or(|at| at.elapsed() >= interval) {
            let looked = self.look_after_rules().await;
            // What fails is not tried again before events are read: they may come all the same.
            self.inspected = Some(Instant::now());
            match looked {
                Ok(()) => {}
                Err(Stop::Remote(e)) => {
                    self.fault = Some(format!("could not look at the Business Rules: {e}"))
                }
                Err(stop) => return Err(stop),
            }
        }
        let is_active = match &self.setup.channel {
            Channel::Queue(None) => {
                self.news.state = State::Absent;
                false
            }
            Channel::Queue(Some(queue)) => self.read_queue(queue.clone()).await?,
            Channel::Webhook { inbox, .. } => self.read_inbox(inbox.clone()).await?,
        };
        self.tell().await?;
        Ok(is_active)
    }

    async fn read_queue(&mut self, queue: TableName) -> Result<bool, Stop> {
        let at = SystemTime::now();
        let page = self.client.read_queue(&queue, PAGE).await?;
        if page.rows.is_empty() && page.total > 0 {
            let message =
                format!("the {} rows of queue table \"{queue}\" are hidden from this user", page.total);
            let words = Words { message, detail: None };
            return Err(Error::Refused { refusal: Refusal::Acl, words }.into());
        }
        // What they tell would be lost with them.
        if let Some(column) = page.lacks {
            let message =
                format!("queue table \"{queue}\" has no column \"{column}\", or it is hidden from this user");
            return Err(
                Error::Refused { refusal: Refusal::Acl, words: Words { message, detail: None } }.into()
            );
        }
        let is_all = page.rows.len() as u64 >= page.total;
        let is_active = !page.rows.is_empty();
        let (seen, newest, at_clock) =
            (page.events.len(), page.events.iter().map(|event| event.at).max(), at);
        let looks = self.note(page.events, seen as u64).await?;
        self.start(looks);
        if is_active && seen == 0 {
            // Something was told; polls find what.
            self.missed = Some((Instant::now(), 0));
            self.inspected = None;
        }
        // They are noted, and looked up meanwhile: whoever comes next finds them in the store.
        let gone = self.client.delete_queued(&queue, page.rows).await?;
        // The rule itself deletes what is old.
        let is_new = newest.is_some_and(|at| at > local_seconds(at_clock) * 1_000 - NEW.as_millis() as i64);
        self.strangers = match gone {
            0 if is_active => 0,
            1.. if is_new => self.strangers + 1,
            _ => self.strangers,
        };
        if self.strangers >= SHARED {
            self.store.renew_subscription().await?;
            return Err(StoreError::Stale.into());
        }
        if is_all {
            // Rules that run in the background are late.
            let is_late = self.specs.values().any(|spec| is_scoped(&spec.table));
            self.news.complete = if is_late { at.checked_sub(DELIVERY) } else { Some(at) };
        }
        Ok(is_active)
    }

    async fn read_inbox(&mut self, inbox: Arc<Inbox>) -> Result<bool, Stop> {
        let at = SystemTime::now();
        let mut taken = inbox.take();
        self.news.refused += taken.refused;
        if taken.stale > 0 {
            self.stale = Some(Instant::now());
        }
        if taken.overflowed {
            self.missed = Some((Instant::now(), 0));
        }
        let (is_active, kept) = (taken.seen > 0, taken.events.len() as u64);
        // They go back if they cannot be noted, or nobody waits for that any more.
        let mut borrowed = Borrowed { inbox, events: std::mem::take(&mut taken.events) };
        loop {
            let some = borrowed.events.len().min(PAGE as usize);
            let looks = self.note(borrowed.events[..some].to_vec(), some as u64).await?;
            borrowed.events.drain(..some);
            self.start(looks);
            if borrowed.events.is_empty() {
                break;
            }
        }
        let more = taken.seen.saturating_sub(kept);
        (self.news.events, self.news.coalesced) = (self.news.events + more, self.news.coalesced + more);
        self.news.complete = at.checked_sub(DELIVERY);
        Ok(is_active)
    }

    /// Has the store note events; gives back what has to be looked up.
    async fn note(&mut self, events: Vec<Event>, seen: u64) -> Result<Looks<S::Table>, Stop> {
        let is_due = self.again.is_some_and(|at| at <= Instant::now());
        if events.is_empty() && !self.waiting && !is_due {
            return Ok(Looks::default());
        }
        let wanted = self.specs.values().map(|spec| &spec.table);
        let told: BTreeSet<TableName> =
            wanted.filter(|table| events.iter().any(|event| event.table == **table)).cloned().collect();
        if (!self.setup.installed || self.is_blind) && !told.is_subset(&self.setup.rules.given) {
            // Whoever does not see rules knows of them by what they tell. Where they are made from here, and seen, it is
            // known, and one that is gone before that was noted is made again.
            let given = &self.setup.rules.given | &told;
            self.note_rules(Rules { given, ..self.setup.rules }).await?;
            self.inspected = None;
        }
        self.skipped = false;
        let events = coalesce(events);
        let oldest = events.iter().map(|event| event.at).filter(|at| *at > 0).min();
        let left = events.len() as u64;
        let noted = self.store.note_events(events).await?;
        self.news.events += seen;
        self.news.coalesced += seen - left;
        self.news.echoes += noted.echoes;
        self.waiting = noted.waiting;
        self.again = noted.again.map(|left| Instant::now() + left);
        Ok(Looks { records: noted.looks, oldest })
    }

    fn state(&self) -> State {
        if matches!(self.setup.channel, Channel::Queue(None)) {
            return self.fault.clone().map_or(State::Absent, State::Failed);
        }
        if let Channel::Webhook { inbox, .. } = &self.setup.channel
            && let Some(trouble) = inbox.trouble()
        {
            return State::Silent(trouble);
        }
        let recent = self.missed.filter(|(at, _)| at.elapsed() < SILENCE);
        if self.stale.is_some_and(|at| at.elapsed() < SILENCE) {
            let why = format!(
                "requests that are signed are refused: the instance's clock and the one here are more than {} s apart",
                WINDOW / 1_000
            );
            return State::Silent(why);
        }
        // The first time it may pass.
        if let Some(trouble) = &self.trouble
            && self.resting.values().any(|(_, failures)| *failures > 1)
        {
            return State::Silent(trouble.clone());
        }
        match (&self.fault, recent) {
            (Some(fault), _) => State::Silent(fault.clone()),
            (None, Some((_, 0))) => State::Silent("events came that could not be kept".to_owned()),
            (None, Some((_, count))) => {
                State::Silent(format!("polling has found {count} changes that no event had told of"))
            }
            (None, None) => State::Active,
        }
    }

    /// Tells the store what is new, if anything is or some time has passed, and sets the pace of polls.
    async fn tell(&mut self) -> Result<(), Stop> {
        let state = self.state();
        let before = std::mem::replace(&mut self.news.state, state);
        let is_due = self.told.is_none_or(|at| at.elapsed() >= NEWS_INTERVAL);
        // Others leave records to be looked up, too.
        self.waiting |= is_due;
        if is_due || self.news.events > 0 || before != self.news.state {
            let missed = self.store.note_capture(self.news.clone()).await?;
            let state = self.news.state.clone();
            self.news = News { state, ..nothing_new() };
            self.told = Some(Instant::now());
            if missed > 0 {
                self.missed = Some((Instant::now(), missed));
            }
        }
        self.brake.set((self.news.state == State::Active).then(|| self.backstop()));
        Ok(())
    }

    /// The pace of polls while events come.
    fn backstop(&self) -> Duration {
        let calls = u32::try_from(self.client.calls_together(self.specs.len())).unwrap_or(u32::MAX);
        let poll = self.setup.poll_interval;
        match self.setup.channel {
            Channel::Queue(_) => {
                let by_calls = self.idle().saturating_mul(LOOKS_PER_BACKSTOP).saturating_mul(calls);
                poll.saturating_mul(QUEUE_BACKSTOP).max(by_calls.min(LONGEST_BACKSTOP))
            }
            Channel::Webhook { .. } => {
                poll.saturating_mul(WEBHOOK_BACKSTOP).max(poll.saturating_mul(calls).min(LONGEST_BACKSTOP))
            }
        }
    }

    /// The time between two looks when nothing happens.
    fn idle(&self) -> Duration {
        (self.setup.poll_interval / LOOKS_PER_POLL).clamp(QUICK, LONGEST_IDLE)
    }

    /// Waits for the next look: for events where they come by themselves, or for something that was waited for.
    async fn rest(&mut self, pause: Duration) {
        let until_due = self.again.map(|at| at.saturating_duration_since(Instant::now()).max(QUICK));
        let over = sleep(until_due.map_or(pause, |left| left.min(pause)));
        tokio::pin!(over);
        loop {
            let inbox = match &self.setup.channel {
                Channel::Webhook { inbox, .. } => Some(inbox.clone()),
                Channel::Queue(_) => None,
            };
            tokio::select! {
                () = &mut over => return,
                () = async { inbox.as_ref().expect("there is one").wait().await }, if inbox.is_some() => {
                    return sleep(GATHER).await;
                }
                Some(look) = self.looking.join_next() => {
                    self.end(look);
                    if self.skipped && self.resting.is_empty() {
                        return;
                    }
                }
            }
        }
    }
}

/// Events that go back to where they were taken from, but for those that have been noted.
struct Borrowed {
    inbox: Arc<Inbox>,
    events: Vec<Event>,
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.inbox.put_back(std::mem::take(&mut self.events));
    }
}

fn nothing_new() -> News {
    News {
        state: State::Absent,
        events: 0,
        coalesced: 0,
        echoes: 0,
        refused: 0,
        lag: None,
        complete: None,
        queue: None,
    }
}

/// Reads events until the future is dropped, or the store says that what is to be read has changed.
pub async fn run<T: Transport, S: CaptureStore>(mut capture: Capture<T, S>)
where
    S::Table: Hash,
{
    let (mut failures, mut pause) = (0, QUICK);
    loop {
        pause = match capture.look().await {
            Ok(is_active) => {
                failures = 0;
                // What told of the last tables is gone.
                if capture.specs.is_empty() && capture.setup.rules == Rules::default() {
                    return;
                }
                if is_active { QUICK } else { (pause * 2).min(capture.idle()) }
            }
            Err(Stop::Store(StoreError::Stale)) => return,
            Err(stop) => {
                failures += 1;
                capture.fail(stop).await;
                // Whoever posts meanwhile does not cut this short.
                sleep(pause_after(failures)).await;
                continue;
            }
        };
        capture.rest(pause).await;
    }
}

impl<T: Transport, S: CaptureStore> Capture<T, S>
where
    S::Table: Hash,
{
    /// Nothing can be expected for now: polls are what they would be without capture.
    async fn fail(&mut self, stop: Stop) {
        self.brake.set(None);
        let gone = matches!(&stop, Stop::Remote(Error::NoTable(_)));
        let text = match (&self.setup.channel, gone) {
            (Channel::Queue(Some(queue)), true) => format!("queue table \"{queue}\" is gone: {stop}"),
            _ => stop.to_string(),
        };
        (self.news.state, self.news.complete) = (State::Failed(text), None);
        // What the store could not note now is told with the next look.
        let _told = self.store.note_capture(News { state: self.news.state.clone(), ..nothing_new() }).await;
    }
}
