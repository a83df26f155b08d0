//! How often logins of one account were refused together: instances lock accounts, whoever of us has tried.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::state::MOST_TRIES;

/// How many secrets are remembered that were refused.
const MOST_SECRETS: usize = 16;
/// How many logins of one account are told apart.
const MOST_LOGINS: usize = 256;

/// What is known of an account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    /// Refusals since it was last accepted.
    count: u32,
    /// What was refused, as digests, the latest last.
    digests: Vec<String>,
    /// The logins that have tried or wanted to, and their versions.
    logins: BTreeMap<String, String>,
}

impl Tally {
    /// Whether secrets of this digest are to be left alone. Others are another matter: somebody has set them.
    pub(super) fn blocks(&self, digest: &str) -> bool {
        self.count >= MOST_TRIES && self.digests.iter().any(|refused| refused == digest)
    }

    /// Whether this version of a login is known.
    pub(super) fn has_met(&self, login: &str, version: &str) -> bool {
        self.logins.get(login).is_some_and(|met| met == version)
    }

    /// A login wants to try. If it was altered since, somebody says that it is right now.
    pub(super) fn meet(&mut self, login: &str, version: &str) {
        if self.logins.len() >= MOST_LOGINS && !self.logins.contains_key(login) {
            self.logins.pop_first();
        }
        if self.logins.insert(login.to_owned(), version.to_owned()).is_some_and(|met| met != version) {
            self.clear();
        }
    }

    /// Secrets of this digest were refused.
    pub(super) fn refuse(&mut self, digest: String) {
        self.count = self.count.saturating_add(1);
        self.digests.retain(|refused| *refused != digest);
        self.digests.push(digest);
        let most = self.digests.len().saturating_sub(MOST_SECRETS);
        self.digests.drain(..most);
    }

    /// The account was accepted, or is to be tried whatever was.
    pub(super) fn clear(&mut self) {
        self.count = 0;
        self.digests.clear();
    }

    /// Whether there is nothing to write down.
    pub(super) fn is_new(&self) -> bool {
        *self == Self::default()
    }

    /// Whether nothing was refused.
    pub(super) fn is_clear(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_of_an_account_share_its_tries_until_one_is_altered() {
        let mut tally = Tally::default();
        for login in ["a", "b", "c"] {
            tally.meet(login, "1");
            assert!(!tally.blocks("one"));
            tally.refuse("one".to_owned());
        }
        tally.meet("d", "1");
        assert!(tally.blocks("one") && !tally.blocks("two"));
        tally.meet("d", "2");
        assert!(!tally.blocks("one"));
    }

    #[test]
    fn nothing_grows_however_many_try() {
        let mut tally = Tally::default();
        for n in 0..1_000 {
            tally.meet(&n.to_string(), "1");
            tally.refuse(n.to_string());
        }
        assert!(tally.digests.len() <= MOST_SECRETS && tally.logins.len() <= MOST_LOGINS);
        assert!(tally.blocks("999"));
    }
}
