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
    /// What was refused since the account was last accepted, as digests, and how often; the latest last. Each counts for
    /// itself: who has a wrong password cannot take the tries of who has the right one.
    refused: Vec<(String, u32)>,
    /// The logins that have tried or wanted to, and their versions.
    logins: BTreeMap<String, String>,
}

impl Tally {
    /// Whether secrets of this digest are to be left alone. Others are another matter: somebody has set them.
    pub(super) fn blocks(&self, digest: &str) -> bool {
        self.refused.iter().any(|(refused, count)| refused == digest && *count >= MOST_TRIES)
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
        let known = self.refused.iter().position(|(refused, _)| *refused == digest);
        let count = known.map_or(0, |at| self.refused.remove(at).1);
        self.refused.push((digest, count.saturating_add(1)));
        let most = self.refused.len().saturating_sub(MOST_SECRETS);
        self.refused.drain(..most);
    }

    /// The account was accepted, or is to be tried whatever was.
    pub(super) fn clear(&mut self) {
        self.refused.clear();
    }

    /// Whether there is nothing to write down.
    pub(super) fn is_new(&self) -> bool {
        *self == Self::default()
    }

    /// Whether nothing was refused.
    pub(super) fn is_clear(&self) -> bool {
        self.refused.is_empty()
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
        assert!(tally.refused.len() <= MOST_SECRETS && tally.logins.len() <= MOST_LOGINS);
    }

    #[test]
    fn wrong_secrets_do_not_take_the_tries_of_others() {
        let mut tally = Tally::default();
        (0..5).for_each(|_| tally.refuse("wrong".to_owned()));
        tally.refuse("right, while the instance was in trouble".to_owned());
        assert!(tally.blocks("wrong") && !tally.blocks("right, while the instance was in trouble"));
    }
}
