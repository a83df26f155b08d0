//! What becomes of one of many writes: a state machine that is told how each attempt went and says what is next.
//!
//! No record is made twice and nothing is appended twice: what may have been carried out is sent again only if
//! that changes nothing, and a record made under a fresh `sys_id` is looked up first. No I/O here; [`super::write`]
//! does what this says.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;

use super::answer::interpret;
use super::retry::{Effect, Patience, Policy, policy};
use super::table_api::{Identity, body_of_insert, body_of_update, confirm_deletion, decode_written};
use super::transport::Response;
use super::write::{Change, Fate};
use crate::error::{Error, Refusal, Result};
use crate::page::{Layout, Rows, Version};
use crate::value::SysId;

/// A change whose fate is open.
#[derive(Debug)]
pub(super) struct Pending {
    /// Which of the changes it is.
    pub(super) index: usize,
    pub(super) id: SysId,
    /// The body of the request, if it has one.
    pub(super) body: Option<Bytes>,
    /// It does not fit into a batch.
    pub(super) singly: bool,
    /// It was sent before.
    pub(super) is_repeat: bool,
    kind: Kind,
    /// The version an update is to change, if no other one.
    from: Option<Version>,
    /// Attempts that have failed.
    pub(super) failures: u32,
    /// The first failure after which it may have been carried out.
    unknown: Option<Error>,
    has_logged_in_again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    InsertFresh,
    InsertGiven,
    Update(Effect),
    Delete,
}

/// What is next for a change.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing: this is its fate.
    Settled(Fate),
    /// The record has to be looked up: it may be there in spite of the failure.
    Look(Error),
    /// It has to be sent again.
    Again(Pause),
}

/// What a look at the instance shows of a record whose write may have been carried out.
#[derive(Debug)]
pub(super) enum Found {
    /// The record.
    There(Rows),
    /// That there is none.
    Nothing,
    /// Nothing: it could not be looked up, or would not be found.
    Unclear,
}

/// How long to wait before sending again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// Not at all.
    No,
    /// Longer with each failure.
    Backoff,
    /// As long as the instance has asked to.
    AsAsked(Duration),
}

impl Pending {
    /// A change that has not been sent.
    pub(super) fn new(index: usize, change: Change) -> Self {
        let from = match &change {
            Change::Update { from, .. } => *from,
            _ => None,
        };
        let (kind, id, body) = match change {
            Change::Insert { id: Identity::Fresh(id), fields } => {
                let body = body_of_insert(&id, fields);
                (Kind::InsertFresh, id, Some(body))
            }
            Change::Insert { id: Identity::Given(id), fields } => {
                let body = body_of_insert(&id, fields);
                (Kind::InsertGiven, id, Some(body))
            }
            Change::Update { id, fields, effect, .. } => {
                (Kind::Update(effect), id, Some(body_of_update(fields)))
            }
            Change::Delete { id } => (Kind::Delete, id, None),
        };
        Self {
            index,
            id,
            body,
            singly: false,
            is_repeat: false,
            kind,
            from,
            failures: 0,
            unknown: None,
            has_logged_in_again: false,
        }
    }

    /// The method of its request.
    pub(super) fn method(&self) -> Method {
        match self.kind {
            Kind::InsertFresh | Kind::InsertGiven => Method::POST,
            Kind::Update(_) => Method::PATCH,
            Kind::Delete => Method::DELETE,
        }
    }

    /// Whether it makes a record.
    pub(super) fn is_insert(&self) -> bool {
        matches!(self.kind, Kind::InsertFresh | Kind::InsertGiven)
    }

    /// Decodes the answer to its request.
    pub(super) fn decode(&self, response: &Response, layout: &Arc<Layout>) -> Result<Rows> {
        interpret(response)?;
        match self.kind {
            Kind::Delete => confirm_deletion(response).map(|()| Rows::new(layout.clone())),
            _ => decode_written(layout, response),
        }
    }

    /// It was answered, or failed for itself. `can_log_in` tells whether another login could help.
    pub(super) fn judge(
        &mut self,
        answer: Result<Rows>,
        layout: &Arc<Layout>,
        patience: &Patience,
        can_log_in: bool,
    ) -> Next {
        let error = match answer {
            Ok(rows) => return Next::Settled(Fate::Done(rows)),
            Err(e) => e,
        };
        match error {
            // An attempt without an answer has deleted it.
            Error::NoRecord(_) if self.kind == Kind::Delete && self.unknown.is_some() => {
                Next::Settled(Fate::Done(Rows::new(layout.clone())))
            }
            // An attempt that was thought lost has come through after all, or another key is taken.
            Error::Refused { refusal: Refusal::Unique, .. }
                if self.kind == Kind::InsertFresh && self.is_repeat =>
            {
                Next::Look(error)
            }
            Error::Unauthorized(_) if can_log_in && !self.has_logged_in_again => {
                self.has_logged_in_again = true;
                Next::Again(Pause::No)
            }
            e if e.leaves_outcome_unknown() => match self.kind {
                Kind::Update(effect) if self.from.is_none() && policy(&e, effect) == Policy::Fail => {
                    Next::Settled(Fate::Failed(e))
                }
                _ => self.lost(e, patience),
            },
            e => match policy(&e, Effect::Once) {
                Policy::Retry(after) => {
                    self.failures += 1;
                    self.retry(after, patience).unwrap_or_else(|| self.give_up(e))
                }
                Policy::Shrink | Policy::Fail => self.give_up(e),
            },
        }
    }

    /// Nobody knows whether it was carried out.
    pub(super) fn lost(&mut self, error: Error, patience: &Patience) -> Next {
        self.failures += 1;
        match self.kind {
            Kind::InsertFresh => Next::Look(error),
            Kind::Update(_) if self.from.is_some() => Next::Look(error),
            Kind::InsertGiven | Kind::Update(Effect::Once) => Next::Settled(Fate::Failed(error)),
            Kind::Update(_) | Kind::Delete => self.lost_again(error, patience),
        }
    }

    /// It came back from a batch in which there was no time or no room for it. The first one of those
    /// may have been carried out: its answer may have been what there was no room for.
    pub(super) fn unserviced(&mut self, is_first: bool, by_size: bool, patience: &Patience) -> Next {
        let is_repeatable =
            matches!(self.kind, Kind::InsertFresh | Kind::Update(Effect::Idempotent) | Kind::Delete);
        if is_first && (by_size || is_repeatable) {
            return self.lost(
                Error::Unreadable("the answer did not fit into that of its batch".to_owned()),
                patience,
            );
        }
        Next::Again(Pause::No)
    }

    /// It was looked up after a failure.
    pub(super) fn looked(&mut self, error: Error, found: Found, patience: &Patience) -> Next {
        if let (Kind::Update(effect), Some(from)) = (self.kind, self.from) {
            let arrived = match &found {
                Found::There(rows) => from.was_changed_once(rows.version(0)),
                Found::Nothing | Found::Unclear => None,
            };
            return match (arrived, found) {
                (Some(true), Found::There(rows)) => Next::Settled(Fate::Done(rows)),
                (Some(false), _) if policy(&error, effect) != Policy::Fail => {
                    self.lost_again(error, patience)
                }
                _ => self.give_up(error),
            };
        }
        match found {
            Found::There(rows) => Next::Settled(Fate::Done(rows)),
            Found::Nothing if error.leaves_outcome_unknown() => self.lost_again(error, patience),
            Found::Nothing => Next::Settled(Fate::Failed(error)),
            Found::Unclear => self.give_up(error),
        }
    }

    /// It was not carried out, unless it still is; it is sent again, if it may be.
    fn lost_again(&mut self, error: Error, patience: &Patience) -> Next {
        let after = error.retry_after();
        self.unknown.get_or_insert(error);
        self.retry(after, patience).unwrap_or_else(|| Next::Settled(self.withdraw()))
    }

    /// It will not be sent again after this failure. What the last attempt was told says nothing about those before,
    /// unless the record was looked up in between, or is gone.
    pub(super) fn give_up(&mut self, error: Error) -> Next {
        let is_final = match self.kind {
            Kind::InsertFresh => !error.was_not_carried_out(),
            _ => matches!(error, Error::NoRecord(_)),
        };
        let before = if is_final { None } else { self.unknown.take() };
        Next::Settled(Fate::Failed(before.unwrap_or(error)))
    }

    /// It will not be sent again because another one has failed.
    pub(super) fn withdraw(&mut self) -> Fate {
        self.unknown.take().map_or(Fate::NotSent, Fate::Failed)
    }

    /// Another attempt, if it may have one.
    fn retry(&self, after: Option<Duration>, patience: &Patience) -> Option<Next> {
        let pause = after.map_or(Pause::Backoff, Pause::AsAsked);
        let is_worth_it =
            self.failures < patience.attempts && after.is_none_or(|wait| wait <= patience.longest_wait);
        is_worth_it.then_some(Next::Again(pause))
    }
}
