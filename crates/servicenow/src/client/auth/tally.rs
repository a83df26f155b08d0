//! How often logins of one account were refused together: instances lock accounts, whoever of us has tried.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::state::MOST_TRIES;

/// How many secrets are remembered that were refused.
const MOST_SECRETS: usize = 16;
/// How many logins of one account are told apart.
const MOST_LOGINS: usize = 256;
/// How many versions of one login are remembered: processes go on with an old one for a while.
const MOST_VERSIONS: usize = 4;

/// What is known of an account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    /// What was refused since the account was last accepted, as digests, and how often; the latest last. Each counts for
    /// itself: who has a wrong password cannot take the tries of who has the right one.
    refused: Vec<(String, u32)>,
    /// The logins that have tried or wanted to, and their last versions, the latest last.
    #[serde(default)]
    met: BTreeMap<String, Vec<String>>,
}

impl Tally {
    /// Whether secrets of this digest are to be left alone. Others are another matter: somebody has set them.
    pub(super) fn blocks(&self, digest: &str) -> bool {
        self.refused.iter().any(|(refused, count)| refused == digest && *count >= MOST_TRIES)
    }

    /// Whether this version of a login is known.
    pub(super) fn has_met(&self, login: &str, version: &str) -> bool {
        self.met.get(login).is_some_and(|met| met.iter().any(|met| met == version))
    }

    /// A login wants to try. If it was altered since, somebody says that it is right now.
    pub(super) fn meet(&mut self, login: &str, version: &str) {
        if self.has_met(login, version) {
            return;
        }
        if self.met.len() >= MOST_LOGINS && !self.met.contains_key(login) {
            self.met.pop_first();
        }
        let versions = self.met.entry(login.to_owned()).or_default();
        let is_altered = !versions.is_empty();
        versions.push(version.to_owned());
        let most = versions.len().saturating_sub(MOST_VERSIONS);
        versions.drain(..most);
        if is_altered {
            self.clear();
        }
    }

    /// Secrets of this digest were refused that a version of a login has sent. What one has sent that was altered since does
    /// not count against the new one.
    pub(super) fn refuse(&mut self, login: &str, version: &str, digest: String) {
        if self.met.get(login).and_then(|met| met.last()).is_some_and(|latest| latest != version) {
            return;
        }
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
            tally.refuse(login, "1", "one".to_owned());
        }
        tally.meet("d", "1");
        assert!(tally.blocks("one") && !tally.blocks("two"));
        tally.meet("d", "2");
        assert!(!tally.blocks("one"));
    }

    #[test]
    fn what_an_old_version_has_sent_counts_no_more_and_gives_no_new_tries() {
        let mut tally = Tally::default();
        tally.meet("a", "1");
        tally.meet("a", "2");
        (0..9).for_each(|_| tally.refuse("a", "1", "one".to_owned()));
        assert!(!tally.blocks("one"));
        for _ in 0..MOST_TRIES {
            tally.refuse("a", "2", "one".to_owned());
            tally.meet("a", "1");
            tally.meet("a", "2");
        }
        assert!(tally.blocks("one"));
    }

    #[test]
    fn nothing_grows_however_many_try() {
        let mut tally = Tally::default();
        for n in 0..1_000 {
            tally.meet(&n.to_string(), "1");
            tally.refuse(&n.to_string(), "1", n.to_string());
        }
        assert!(tally.refused.len() <= MOST_SECRETS && tally.met.len() <= MOST_LOGINS);
    }

    #[test]
    fn wrong_secrets_do_not_take_the_tries_of_others() {
        let mut tally = Tally::default();
        (0..5).for_each(|_| tally.refuse("a", "1", "wrong".to_owned()));
        tally.refuse("b", "1", "right, while the instance was in trouble".to_owned());
        assert!(tally.blocks("wrong") && !tally.blocks("right, while the instance was in trouble"));
    }
}
