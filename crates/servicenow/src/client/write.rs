//! Writes: many at once, in batches or, where there are none, in calls of their own, several at a time; or a single one.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{FuturesUnordered, StreamExt};
use http::Method;
use http::header::HeaderValue;
use serde_json::{Map, Value as Json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::batch::{self, Answer, Item, OUTPUT_HEADER, OUTPUT_LIMIT, Reply};
use super::batch_size::{BatchSize, Seen};
use super::keys::Keys;
use super::pending::{Found, Next, Pause, Pending};
use super::retry::{self, Effect};
use super::stats::endpoint;
use super::table_api::{Identity, parameters, record_path};
use super::transport::Transport;
use super::{Answered, Call, Client, chance};
use crate::error::{Error, Refusal, Result, Words};
use crate::page::{Layout, Rows, Version};
use crate::value::{SysId, TableName};

/// The largest body of a batch, in bytes: an instance takes 10 MB, and we hold one for each call under way.
const REQUEST_LIMIT: usize = 4 << 20;

/// One record's write.
#[derive(Clone, Debug)]
pub enum Change {
    /// Makes a record.
    Insert {
        /// Its `sys_id`.
        id: Identity,
        /// What it is made with.
        fields: Map<String, Json>,
    },
    /// Changes a record.
    Update {
        /// Which one.
        id: SysId,
        /// The fields that change.
        fields: Map<String, Json>,
        /// What sending it twice would do.
        effect: Effect,
        /// The version to change, if no other one: a lost attempt is not repeated on another one.
        from: Option<Version>,
    },
    /// Deletes a record.
    Delete {
        /// Which one.
        id: SysId,
    },
}

/// What became of a change.
#[derive(Debug)]
pub enum Fate {
    /// The instance has accepted it; the record as stored, one row (no row for a deletion).
    Done(Rows),
    /// Refused, or its outcome is unknown ([`Error::leaves_outcome_unknown`]).
    Failed(Error),
    /// Not carried out, because another one had failed.
    NotSent,
}

impl<T: Transport> Client<T> {
    /// Makes many changes to distinct records of a table; the fates come in the order of the changes, which says
    /// nothing about the order in which they were made.
    ///
    /// After the first failure nothing more is sent, and what is under way is waited for; but a unique violation of
    /// an insert does not count as one with `pass_over_duplicates`. `progress` counts what has been accepted.
    pub async fn write_all(
        &self,
        table: &TableName,
        changes: Vec<Change>,
        layout: &Arc<Layout>,
        pass_over_duplicates: bool,
        progress: &Arc<AtomicU64>,
    ) -> Vec<Fate> {
        let mut fates: Vec<Fate> = changes.iter().map(|_| Fate::NotSent).collect();
        let (stop, parameters) = (watch::Sender::new(false), parameters(layout));
        let began = Instant::now();
        let statement =
            Statement { client: self, table, layout, pass_over_duplicates, parameters, stop, began };
        let pending = |(index, change)| (index, Pending::new(index, change));
        let mut queue: Queue = changes.into_iter().enumerate().map(pending).collect();
        let mut under_way = FuturesUnordered::new();
        loop {
            while let Some(parcel) = statement.next_parcel(&mut queue, under_way.len()) {
                under_way.push(statement.send(parcel));
            }
            let Some(outcomes) = under_way.next().await else { break };
            for (pending, next) in outcomes {
                match next {
                    Next::Settled(fate) => {
                        progress.fetch_add(u64::from(matches!(fate, Fate::Done(_))), Ordering::Relaxed);
                        fates[pending.index] = fate;
                    }
                    Next::Again(_) | Next::Look(_) => drop(queue.insert(pending.index, pending)),
                }
            }
        }
        for (index, mut pending) in queue {
            fates[index] = pending.withdraw();
        }
        fates
    }
}

/// The changes of one statement on their way.
struct Statement<'a, T> {
    client: &'a Client<T>,
    table: &'a TableName,
    layout: &'a Arc<Layout>,
    /// The parameters that say what a record looks like in an answer.
    parameters: String,
    pass_over_duplicates: bool,
    /// Turns true at the first failure.
    stop: watch::Sender<bool>,
    /// Nothing was sent before.
    began: Instant,
}

/// What has to be sent, by position among the changes: the first go first, also when they are sent again.
type Queue = BTreeMap<usize, Pending>;

/// Changes and what is next for them.
type Outcomes = Vec<(Pending, Next)>;

impl<T: Transport> Statement<'_, T> {
    /// Takes what is sent next from the queue, if there may be another call.
    fn next_parcel(&self, queue: &mut Queue, under_way: usize) -> Option<Vec<Pending>> {
        let most = self.client.concurrency();
        // One more call waits at the gate: that others wait is how the gate knows that it could let in more.
        if under_way > most || *self.stop.borrow() {
            return None;
        }
        let sharing = match most.saturating_sub(under_way) {
            // Others will come back while this one waits.
            0 => most.div_ceil(2),
            idle => idle,
        };
        let waiting = queue.len();
        let (_, first) = queue.pop_first()?;
        let items = match self.client.inner.batch_sizes.are_possible() {
            true => self.with_size(first.method(), |size| size.share(waiting, sharing)),
            false => 1,
        };
        let mut size = self.size(&first);
        let is_alone = first.singly || size > REQUEST_LIMIT;
        let mut parcel = vec![first];
        while !is_alone
            && parcel.len() < items
            && let Some(next) = queue.first_entry()
            && !next.get().singly
            && size + self.size(next.get()) <= REQUEST_LIMIT
        {
            size += self.size(next.get());
            parcel.push(next.remove());
        }
        Some(parcel)
    }

    /// Asks or tells about the size of batches that begin with some method.
    fn with_size<R>(&self, method: Method, with: impl FnOnce(&mut BatchSize) -> R) -> R {
        self.client.inner.batch_sizes.with(self.table, method, with)
    }

    /// How many bytes a change takes in the body of a batch.
    fn size(&self, pending: &Pending) -> usize {
        let url = self.table.as_str().len() + pending.id.as_str().len() * 3 + self.parameters.len() + 20;
        batch::encoded_size(url, pending.body.as_ref().map_or(0, |body| body.len()))
    }

    /// Path and query of a change's request.
    fn url(&self, pending: &Pending) -> String {
        let id = (!pending.is_insert()).then_some(&pending.id);
        let path = record_path(self.table, id);
        match pending.method() {
            Method::DELETE => path,
            _ => format!("{path}?{}", self.parameters),
        }
    }

    async fn send(&self, mut parcel: Vec<Pending>) -> Outcomes {
        let outcomes = match parcel.pop() {
            Some(pending) if parcel.is_empty() => vec![self.send_singly(pending).await],
            last => {
                parcel.extend(last);
                self.send_batch(parcel).await
            }
        };
        // At once: others are before the gate, and it has just been opened for them.
        self.stop_after_failure(&outcomes);
        let outcomes = self.look_up(outcomes).await;
        self.stop_after_failure(&outcomes);
        self.pause(&outcomes).await;
        outcomes
    }

    fn stop_after_failure(&self, outcomes: &Outcomes) {
        if outcomes.iter().any(|(pending, next)| self.is_failure(pending, next)) {
            self.stop.send_replace(true);
        }
    }

    /// Whether nothing more may be sent after this.
    fn is_failure(&self, pending: &Pending, next: &Next) -> bool {
        match next {
            Next::Settled(Fate::Failed(Error::Refused { refusal: Refusal::Unique, .. })) => {
                !(self.pass_over_duplicates && pending.is_insert())
            }
            Next::Settled(Fate::Failed(_)) => true,
            _ => false,
        }
    }

    /// Resolves once there has been a failure.
    async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // The sender outlives whoever waits here.
        let _stopped = stop.wait_for(|stopped| *stopped).await;
    }

    async fn send_singly(&self, mut pending: Pending) -> (Pending, Next) {
        let next = match self.call_singly(&pending).await {
            Ok(ControlFlow::Continue(answered)) => Next::Settled(Fate::Done(answered.result)),
            Ok(ControlFlow::Break(())) => return (pending, Next::Again(Pause::No)),
            // The call has been repeated already.
            Err(e) if e.was_not_carried_out() => pending.give_up(e),
            Err(e) => pending.judge(Err(e), self.layout, &self.client.inner.patience, false),
        };
        pending.is_repeat = true;
        (pending, next)
    }

    async fn call_singly(&self, pending: &Pending) -> Result<ControlFlow<(), Answered<Rows>>> {
        let url = self.client.url(&self.url(pending), &[])?;
        let call = Call::write(pending.method(), url, pending.body.clone(), Effect::Once);
        self.note_repeats(std::slice::from_ref(pending), &call);
        let decode = |response: &_| pending.decode(response, self.layout);
        self.client.call_unless(self.stopped(), call, decode).await
    }

    async fn send_batch(&self, mut parcel: Vec<Pending>) -> Outcomes {
        let (sent, method) = (parcel.len(), parcel.first().map(Pending::method).unwrap_or_default());
        let error = match self.call_batch(&parcel).await {
            Ok(ControlFlow::Continue(answered)) => return self.read_batch(parcel, method, answered).await,
            Ok(ControlFlow::Break(())) => return all_again(parcel),
            Err(e) => e,
        };
        if error.leaves_outcome_unknown() {
            if is_matter_of_size(&error) || parcel.iter().any(|pending| pending.failures > 0) {
                self.with_size(method, |size| size.failed(sent));
            }
            let lose = |mut pending: Pending| {
                let next = pending.lost(error.clone(), &self.client.inner.patience);
                pending.is_repeat = true;
                (pending, next)
            };
            return parcel.into_iter().map(lose).collect();
        }
        if error.was_not_carried_out() {
            // One of them has to say why; the others were not sent.
            let mut outcomes = all_again(parcel);
            if let Some((first, next)) = outcomes.first_mut() {
                *next = first.give_up(error);
            }
            return outcomes;
        }
        // There is something about the batch that the instance does not like; nothing was carried out.
        if is_absence(&error) {
            self.client.inner.batch_sizes.are_absent();
        } else {
            self.with_size(method, |size| size.failed(sent));
            parcel.iter_mut().for_each(|pending| pending.singly = true);
        }
        all_again(parcel)
    }

    async fn call_batch(&self, parcel: &[Pending]) -> Result<ControlFlow<(), Answered<Answer>>> {
        // The header of interest is how long to wait. What has gone wrong before may bring it; and the last one does, as a
        // rate that is exceeded stays so.
        let wants_headers = |n: usize| parcel[n].is_repeat || n + 1 == parcel.len();
        let items = parcel.iter().enumerate().map(|(n, pending)| Item {
            method: pending.method(),
            url: self.url(pending),
            body: pending.body.as_ref(),
            with_headers: wants_headers(n),
        });
        let body = batch::encode(&items.collect::<Vec<_>>());
        let url = self.client.url(batch::PATH, &[])?;
        let mut call = Call::write(Method::POST, url, Some(body), Effect::Once);
        call.headers.insert(OUTPUT_HEADER, HeaderValue::from(OUTPUT_LIMIT));
        self.note_repeats(parcel, &call);
        let decode = |response: &_| batch::decode(response, parcel.len());
        self.client.call_unless(self.stopped(), call, decode).await
    }

    /// Counts a call that repeats a failed one.
    fn note_repeats(&self, parcel: &[Pending], call: &Call) {
        if parcel.iter().any(|pending| pending.failures > 0) {
            self.client.inner.recorder.repeating(&endpoint(&call.method, &call.url));
        }
    }

    async fn read_batch(&self, parcel: Vec<Pending>, method: Method, answered: Answered<Answer>) -> Outcomes {
        let inner = &self.client.inner;
        let (answer, sent, patience) = (answered.result, parcel.len(), &inner.patience);
        let (serviced, first_unserviced) = (answer.serviced(), answer.first_unserviced());
        let (time, latency, output) = (answer.time, answered.latency, answer.output);
        self.with_size(method, |size| size.answered(Seen { sent, serviced, time, latency, output }));
        let by_size = serviced == 0 || output >= OUTPUT_LIMIT / 2;
        let (mut rejects_login, mut was_too_much) = (false, false);
        let mut outcomes = Vec::with_capacity(sent);
        for (position, (mut pending, reply)) in parcel.into_iter().zip(answer.replies).enumerate() {
            let next = match reply {
                Reply::Serviced(response) => {
                    let answer = response.and_then(|response| pending.decode(&response, self.layout));
                    rejects_login |= matches!(answer, Err(Error::Unauthorized(_)));
                    was_too_much |= matches!(answer, Err(Error::RateLimited { .. } | Error::Discarded));
                    // Also if it is longer than anybody waits here: it holds for the next statement too.
                    if let Some(wait) = answer.as_ref().err().and_then(Error::retry_after) {
                        self.client.heed(wait);
                    }
                    pending.judge(answer, self.layout, patience, inner.login.has_token())
                }
                Reply::Unserviced => {
                    let is_first = first_unserviced == Some(position);
                    // What does not fit although it has everything for itself never will.
                    pending.singly |= is_first && serviced == 0;
                    pending.unserviced(is_first, by_size, patience)
                }
                Reply::Missing => {
                    let words = "the answer of the batch does not mention the request";
                    pending.lost(Error::Unreadable(words.to_owned()), patience)
                }
            };
            pending.is_repeat = true;
            outcomes.push((pending, next));
        }
        if was_too_much {
            self.client.was_too_much(answered.call);
        }
        if rejects_login {
            inner.login.reject(&answered.login).await;
        }
        outcomes
    }

    /// Looks up those that have to be, all in as few calls as possible.
    async fn look_up(&self, mut outcomes: Outcomes) -> Outcomes {
        self.learn_keys(&outcomes);
        // A record that was made under another key than it was sent with is not found.
        let is_findable =
            |pending: &Pending| !pending.is_insert() || self.client.keys(self.table) != Keys::Ignored;
        let open = outcomes.iter().filter(|(_, next)| matches!(next, Next::Look(_)));
        let ids: Vec<SysId> =
            open.filter(|(pending, _)| is_findable(pending)).map(|(pending, _)| pending.id.clone()).collect();
        let found = self.look_at(&ids).await;
        let rows: HashMap<&str, usize> =
            found.iter().flat_map(|rows| rows.ids().enumerate()).map(|(row, id)| (id, row)).collect();
        let is_missing = |pending: &Pending| found.is_ok() && !rows.contains_key(pending.id.as_str());
        let inserts = outcomes.iter().filter(|(p, next)| p.is_insert() && matches!(next, Next::Look(_)));
        let (missing, there): (Vec<&Pending>, Vec<&Pending>) =
            inserts.map(|(pending, _)| pending).partition(|pending| is_missing(pending));
        if found.is_ok() && !there.is_empty() {
            self.client.note_keys(self.table, Keys::Taken);
        }
        let missing_are_not_made = match self.client.keys(self.table) {
            _ if missing.is_empty() => true,
            Keys::Taken => true,
            Keys::Ignored => false,
            // Another answer may tell meanwhile.
            Keys::Unknown => {
                self.client.made_none_of(self.table, &missing, self.began).await
                    || self.client.keys(self.table) == Keys::Taken
            }
        };
        for (pending, next) in &mut outcomes {
            if let Next::Look(error) = next {
                let error = std::mem::replace(error, Error::Discarded);
                let own = match &found {
                    Ok(found) => match rows.get(pending.id.as_str()) {
                        Some(row) => Found::There(found.pick(*row)),
                        None if !pending.is_insert() || missing_are_not_made => Found::Nothing,
                        None => Found::Unclear,
                    },
                    Err(_) => Found::Unclear,
                };
                *next = pending.looked(error, own, &self.client.inner.patience);
            }
        }
        outcomes
    }

    /// The records that there are of these.
    async fn look_at(&self, ids: &[SysId]) -> Result<Rows> {
        match ids {
            [] => Ok(Rows::new(self.layout.clone())),
            [id] => match self.client.get(self.table, id, self.layout).await {
                Err(Error::NoRecord(_)) => Ok(Rows::new(self.layout.clone())),
                other => other,
            },
            _ => self.client.look(self.table, ids, self.layout).await,
        }
    }

    /// Takes note of the keys under which records were made.
    fn learn_keys(&self, outcomes: &Outcomes) {
        for (pending, next) in outcomes {
            if let Next::Settled(Fate::Done(rows)) = next
                && pending.is_insert()
                && !rows.is_empty()
            {
                self.client.note_keys(self.table, Keys::seen(&pending.id, rows.id(0)));
            }
        }
    }

    /// Waits before those that failed are sent again, unless there is no need to any more.
    async fn pause(&self, outcomes: &Outcomes) {
        let mut failures = None;
        for (pending, next) in outcomes {
            match next {
                // The gate keeps every call of the client waiting.
                Next::Again(Pause::AsAsked(wait)) => self.client.heed(*wait),
                Next::Again(Pause::Backoff) => failures = failures.max(Some(pending.failures)),
                _ => {}
            }
        }
        if let Some(failures) = failures {
            tokio::select! {
                () = self.stopped() => {}
                () = sleep(retry::backoff(failures + 1, chance())) => {}
            }
        }
    }
}

/// Everything as it was before it was sent.
fn all_again(parcel: Vec<Pending>) -> Outcomes {
    parcel.into_iter().map(|pending| (pending, Next::Again(Pause::No))).collect()
}

/// Whether a batch may have come to nothing because it was too large. A connection that breaks once says nothing.
pub(super) fn is_matter_of_size(error: &Error) -> bool {
    matches!(error, Error::TimedOut { .. } | Error::CutShort(_) | Error::TooLarge { .. })
}

/// Whether a refusal of a whole batch says that there is no Batch API, or not for this user.
pub(super) fn is_absence(error: &Error) -> bool {
    let is_no_resource = |words: &Words| words.message.contains("does not represent any resource");
    match error {
        Error::Refused { .. } | Error::NoRecord(_) | Error::Rejected { status: 404 | 405 | 501, .. } => true,
        Error::Rejected { status: 400, words } => is_no_resource(words),
        _ => false,
    }
}
