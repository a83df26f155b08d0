//! Requests that rules post: who may be believed.
//!
//! A request is signed with HMAC-SHA256 over its time and its body, by a key that only the rules and we have. It is good
//! for some minutes, and once.

use std::collections::{HashSet, VecDeque};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use ring::hmac;
use serde::Deserialize;

use super::event::{Event, Operation};
use crate::client::auth::Secret;
use crate::page::Version;
use crate::value::{SysId, TableName, decode_seconds};

/// The header with the time of a request: milliseconds since 1970 by the instance's clock.
pub const TIME_HEADER: &str = "X-Servicenow-Fdw-Time";
/// The header with its signature, in base64.
pub const SIGNATURE_HEADER: &str = "X-Servicenow-Fdw-Signature";
/// The largest body, in bytes; an event takes some two hundred.
pub const BODY_LIMIT: usize = 16 << 10;
/// How far the instance's clock and ours may be apart, and how long a request may be under way, in milliseconds.
pub const WINDOW: i64 = 300_000;
/// Signatures remembered. If more come within the window the oldest are forgotten: to look a record up once more does
/// no harm.
const REMEMBERED: usize = 100_000;
/// Bytes of a key.
const KEY_LENGTH: usize = 32;
/// The longest identifier.
const LONGEST_ID: usize = 100;

/// Why a request is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has no signature or no time, or not in their form.
    #[error("the request is not signed")]
    Unsigned,
    /// The signature is another one.
    #[error("the signature does not match")]
    Forged,
    /// It is too old, or from the future.
    #[error("the request's time is too far from the clock here")]
    Stale,
    /// It has come before.
    #[error("the request has come before")]
    Replayed,
    /// The signature is right and the body makes no sense.
    #[error("the body is not an event")]
    Malformed,
}

/// What a rule posts; see [`super::script`]. Everything is text, as it comes from a `GlideRecord`.
#[derive(Deserialize)]
struct Body {
    table: String,
    record: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    mod_count: String,
    #[serde(default)]
    updated_on: String,
}

/// A key out of random bytes, as rules have it.
pub fn key(random: [u8; KEY_LENGTH]) -> Secret {
    Secret::new(BASE64.encode(random))
}

/// Tells requests of rules from others.
#[derive(Debug)]
pub struct Gatekeeper {
    key: hmac::Key,
    seen: HashSet<Vec<u8>>,
    order: VecDeque<Vec<u8>>,
}

impl Gatekeeper {
    /// For one subscription's key; `None` if that is not base64.
    pub fn new(key: &Secret) -> Option<Self> {
        let key = BASE64.decode(key.reveal()).ok()?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        Some(Self { key, seen: HashSet::new(), order: VecDeque::new() })
    }

    /// The event of a request, by its two headers and its body. `now` is the local clock in milliseconds since 1970.
    /// The signature is compared in constant time, and before anything else that the request holds is looked at.
    pub fn admit(
        &mut self,
        time: Option<&str>,
        signature: Option<&str>,
        body: &[u8],
        now: i64,
    ) -> Result<Event, Refusal> {
        let (Some(time), Some(signature)) = (time, signature) else { return Err(Refusal::Unsigned) };
        let tag = BASE64.decode(signature.trim()).map_err(|_| Refusal::Unsigned)?;
        let signed = [time.as_bytes(), b".", body].concat();
        hmac::verify(&self.key, &signed, &tag).map_err(|_| Refusal::Forged)?;
        let at: i64 = time.parse().map_err(|_| Refusal::Malformed)?;
        if at.abs_diff(now) > WINDOW.unsigned_abs() {
            return Err(Refusal::Stale);
        }
        if self.seen.contains(&tag) {
            return Err(Refusal::Replayed);
        }
        let event = event(body, at).ok_or(Refusal::Malformed)?;
        self.remember(tag);
        Ok(event)
    }

    fn remember(&mut self, tag: Vec<u8>) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.seen.insert(tag.clone());
        self.order.push_back(tag);
    }
}

fn event(body: &[u8], at: i64) -> Option<Event> {
    let body: Body = serde_json::from_slice(body).ok()?;
    if body.record.is_empty() || body.record.len() > LONGEST_ID || body.record.contains('\0') {
        return None;
    }
    Some(Event {
        table: TableName::new(body.table).ok()?,
        id: SysId::new(body.record),
        operation: Operation::parse(&body.operation),
        version: Version {
            updated_on: decode_seconds(&body.updated_on),
            mod_count: body.mod_count.parse().ok(),
        },
        at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_700_000_000_000;
    const BODY: &str = r#"{"table":"incident","record":"a1","operation":"update","mod_count":"3","updated_on":"2024-01-02 03:04:05"}"#;

    fn gatekeeper() -> Gatekeeper {
        Gatekeeper::new(&key([7; KEY_LENGTH])).expect("a key")
    }

    fn sign(time: &str, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; KEY_LENGTH]);
        BASE64.encode(hmac::sign(&key, &[time.as_bytes(), b".", body].concat()))
    }

    fn admit(gatekeeper: &mut Gatekeeper, time: i64, body: &str) -> Result<Event, Refusal> {
        let time = time.to_string();
        let signature = sign(&time, body.as_bytes());
        gatekeeper.admit(Some(&time), Some(&signature), body.as_bytes(), NOW)
    }

    #[test]
    fn a_signed_event_is_believed_once() {
        let mut gatekeeper = gatekeeper();
        let event = admit(&mut gatekeeper, NOW - 1_000, BODY).expect("it is signed");
        assert_eq!((event.table.as_str(), event.id.as_str(), event.at), ("incident", "a1", NOW - 1_000));
        assert_eq!(event.version, Version { updated_on: Some(1_704_164_645), mod_count: Some(3) });
        assert_eq!(admit(&mut gatekeeper, NOW - 1_000, BODY), Err(Refusal::Replayed));
        assert!(admit(&mut gatekeeper, NOW - 999, BODY).is_ok(), "the same change, told anew");
    }

    #[test]
    fn what_is_old_unsigned_or_makes_no_sense_is_refused() {
        let mut gatekeeper = gatekeeper();
        assert_eq!(admit(&mut gatekeeper, NOW - WINDOW - 1, BODY), Err(Refusal::Stale));
        assert_eq!(admit(&mut gatekeeper, NOW + WINDOW + 1, BODY), Err(Refusal::Stale));
        assert_eq!(admit(&mut gatekeeper, i64::MIN, BODY), Err(Refusal::Stale));
        let time = NOW.to_string();
        assert_eq!(gatekeeper.admit(Some(&time), None, BODY.as_bytes(), NOW), Err(Refusal::Unsigned));
        assert_eq!(gatekeeper.admit(None, Some("QQ=="), BODY.as_bytes(), NOW), Err(Refusal::Unsigned));
        assert_eq!(gatekeeper.admit(Some(&time), Some("?"), BODY.as_bytes(), NOW), Err(Refusal::Unsigned));
        assert_eq!(gatekeeper.admit(Some(&time), Some("QQ=="), BODY.as_bytes(), NOW), Err(Refusal::Forged));
        for body in ["", "[]", "{}", r#"{"table":"a b","record":"1"}"#, r#"{"table":"a","record":""}"#] {
            assert_eq!(admit(&mut gatekeeper, NOW, body), Err(Refusal::Malformed), "{body}");
        }
    }

    proptest! {
        /// Nothing but what was signed is believed: neither another body nor another time nor another signature.
        #[test]
        fn no_bit_may_differ(
            body in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..400, bit in 0u8..8
        ) {
            let time = NOW.to_string();
            let signature = sign(&time, BODY.as_bytes());
            prop_assert!(gatekeeper().admit(Some(&time), Some(&signature), &body, NOW).is_err());
            let mut bent = BODY.as_bytes().to_vec();
            let place = at % bent.len();
            bent[place] ^= 1 << bit;
            prop_assert_eq!(
                gatekeeper().admit(Some(&time), Some(&signature), &bent, NOW).err(), Some(Refusal::Forged)
            );
            let mut tag = BASE64.decode(&signature).expect("base64");
            let place = at % tag.len();
            tag[place] ^= 1 << bit;
            prop_assert_eq!(
                gatekeeper().admit(Some(&time), Some(&BASE64.encode(tag)), BODY.as_bytes(), NOW).err(),
                Some(Refusal::Forged)
            );
        }
    }
}
