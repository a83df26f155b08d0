//! Being told of changes by the instance itself: Business Rules that we make in it.
//!
//! A *subscription* is one database's interest in one instance. Its rules carry its id, one per table. They tell of a
//! change by a row in a *queue*, a table of the subscription's own that the change's transaction writes and we empty
//! ([`queue`]); or by a *webhook*, a signed request to a listener of ours ([`webhook`]).
//!
//! An [`event`] says which record has changed and never what it looks like now: that is read from the instance, by
//! which events may be doubled, late or out of order. Whatever is not told of is found by polls, which go on at a
//! slower pace.

pub mod event;
pub mod inbox;
pub mod install;
pub mod queue;
pub mod script;
pub mod webhook;

use std::fmt;

use ring::digest;
use url::Url;

use crate::client::auth::Secret;
use crate::value::{SysId, TableName};

/// What rules, their queue and its label begin with.
const PREFIX: &str = "servicenow_fdw";
/// Characters of a subscription's id.
const ID_LENGTH: usize = 12;
/// Characters of a `sys_id`.
const SYS_ID_LENGTH: usize = 32;

/// What a subscription is known by in the instance: twelve hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(String);

impl SubscriptionId {
    /// The same for the same parts: whoever asks again, after whatever has failed, meets what was made before.
    pub fn of(parts: &[&str]) -> Self {
        Self(hex_digest(parts, ID_LENGTH))
    }

    /// An id as it was written down; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == ID_LENGTH && text.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of its rules, and the label of its queue. A rule's name may have 40 characters.
    pub fn name(&self) -> String {
        format!("{PREFIX} {}", self.0)
    }

    /// The name its queue is asked for by; the instance may change it.
    pub fn queue_name(&self) -> String {
        format!("u_{PREFIX}_{}", self.0)
    }

    /// The `sys_id` of something made for it.
    fn sys_id_of(&self, what: &str) -> SysId {
        SysId::new(hex_digest(&[&self.0, what], SYS_ID_LENGTH))
    }
}

/// Whether a table is a subscription's queue, of whichever database. What rules write there is told of by no rule: that
/// would write again, without an end.
pub fn is_queue(table: &TableName) -> bool {
    table.as_str().trim_start_matches("u_").strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with('_'))
}

/// Whether a table belongs to an application with a scope of its own, where rules of others run in the background only.
pub(crate) fn is_scoped(table: &TableName) -> bool {
    ["x_", "sn_"].iter().any(|scope| table.as_str().starts_with(scope))
}

impl fmt::Display for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first digits of the SHA-256 of some texts, told apart.
fn hex_digest(parts: &[&str], digits: usize) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    let mut text: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    text.truncate(digits);
    text
}

/// How a subscription is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By rows in this table.
    Queue(TableName),
    /// By requests to this address, signed with this key (base64).
    Webhook {
        /// Where rules post to.
        endpoint: Url,
        /// What they sign with.
        key: Secret,
    },
}

/// One database's interest in one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Its id.
    pub id: SubscriptionId,
    /// How it is told.
    pub way: Way,
}
