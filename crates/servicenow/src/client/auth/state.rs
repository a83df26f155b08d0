//! How far a login is, and what comes next: decisions only. Whoever shares a login shares this.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::grant::Granted;
use super::secret::Secret;
use super::tally::Tally;
use crate::client::retry::Urgency;

/// How long a refused login rests before the credentials are tried again, so that trying does not lock the
/// account; each further refusal doubles it, up to [`LONGEST_REST`].
const FIRST_REST: Duration = Duration::from_secs(30);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(900);
/// A password that was refused so often in a row is not tried again until somebody says so, as instances lock accounts.
pub(super) const MOST_TRIES: u32 = 3;
/// How often in a row a password may be sent at once without a word of it in return: as often as a call is repeated, about.
const UNHEARD_AT_ONCE: u32 = 8;
/// The longest rest of a password that was sent without a word of it in return: what is in trouble may be well again soon.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// Instances tell the rest of a token's life in whole seconds.
const ROUNDING: Duration = Duration::from_secs(1);

/// How far a login is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    token: Option<Token>,
    #[serde(with = "hidden")]
    refresh: Option<Secret>,
    /// The instance has accepted the credentials, and not refused them since.
    accepted: bool,
    refused: Option<Refused>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unheard: Option<Unheard>,
    /// In the vault of an account only.
    #[serde(default, skip_serializing_if = "Tally::is_new")]
    tally: Tally,
}

/// A token in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Token {
    #[serde(with = "hidden")]
    access: Option<Secret>,
    /// Milliseconds.
    life: u64,
    /// Milliseconds since 1970.
    expires_at: u64,
}

/// The credentials were refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Refused {
    /// How often in a row.
    count: u32,
    /// How often of these they were not even looked at.
    #[serde(default)]
    unseen: u32,
    /// When the login rests no longer: milliseconds since 1970.
    until: u64,
    /// What was refused, as a digest.
    digest: String,
}

/// A password was sent, and nobody has said anything of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Unheard {
    /// How often in a row.
    count: u32,
    /// When it may be sent again: milliseconds since 1970.
    until: u64,
}

impl State {
    /// One that begins with a refresh token that was kept elsewhere.
    pub(super) fn with_refresh_token(refresh: Option<Secret>) -> Self {
        Self { refresh, ..Self::default() }
    }

    /// The token to use now, if it is another than the one that was rejected and need not be renewed.
    ///
    /// With a refresh token there is a new one before this one ends, and whoever has the time looks after that first.
    /// Without, an instance gives the same token again while it lives: it is used to its end.
    pub(super) fn token(
        &self,
        now: SystemTime,
        rejected: Option<&Secret>,
        urgency: Urgency,
    ) -> Option<&Secret> {
        let life = Duration::from_millis(self.token.as_ref()?.life);
        let ahead = match (&self.refresh, urgency) {
            (None, _) => Duration::ZERO,
            (Some(_), Urgency::Background) => (life / 4).min(Duration::from_secs(300)),
            (Some(_), Urgency::Statement) => (life / 8).min(Duration::from_secs(30)),
        };
        self.living_token(now + ahead, rejected)
    }

    /// The token, if it is another than the one that was rejected, as long as it lives.
    pub(super) fn living_token(&self, now: SystemTime, rejected: Option<&Secret>) -> Option<&Secret> {
        let token = self.token.as_ref()?;
        let access = token.access.as_ref().filter(|access| Some(*access) != rejected)?;
        let (expires_at, now) = (Duration::from_millis(token.expires_at), since_1970(now));
        // A clock that was set back does not make a token live longer.
        let lives = now < expires_at + ROUNDING && expires_at <= now + Duration::from_millis(token.life);
        lives.then_some(access)
    }

    /// The refresh token.
    pub(super) fn refresh_token(&self) -> Option<&Secret> {
        self.refresh.as_ref()
    }

    /// Whether the instance is known to accept the credentials.
    pub(super) fn is_accepted(&self) -> bool {
        self.accepted
    }

    /// Whether credentials of this digest are to be left alone: for now, or for good after the most tries there may be.
    pub(super) fn rests(&self, now: SystemTime, digest: &str, most_tries: Option<u32>) -> bool {
        let now = since_1970(now);
        self.refused.as_ref().is_some_and(|refused| {
            let until = Duration::from_millis(refused.until);
            let is_over = most_tries.is_some_and(|most| refused.count.saturating_sub(refused.unseen) >= most);
            // If the clock was set back it is not known how long it has rested.
            refused.digest == digest && (is_over || now < until && until <= now + LONGEST_REST)
        })
    }

    /// How long a password is not to be sent, because the last ones went without a word.
    pub(super) fn unheard_for(&self, now: SystemTime) -> Option<Duration> {
        let until = Duration::from_millis(self.unheard.as_ref()?.until);
        // If the clock was set back it is not known how long it has rested.
        let left = until.checked_sub(since_1970(now)).filter(|left| *left <= LONGEST_SILENCE);
        left.filter(|left| !left.is_zero())
    }

    /// Whether there was anything since credentials were accepted that has them rest.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.refused.is_some() || self.unheard.is_some()
    }

    /// What is known of the account.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The same, to be changed.
    pub(super) fn tally_mut(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// A token call was answered.
    pub(super) fn granted(&mut self, granted: Granted, now: SystemTime) {
        self.unheard = None;
        // What is announced as longer than a year is not believed, nor added up.
        let life = granted.life.min(Duration::from_secs(365 * 24 * 3_600));
        self.token = Some(Token {
            access: Some(granted.access),
            life: milliseconds(life),
            expires_at: milliseconds(since_1970(now) + life),
        });
        // An answer without one leaves the one before in force (RFC 6749, 6).
        if granted.refresh.is_some() {
            self.refresh = granted.refresh;
        }
    }

    /// The credentials themselves have brought a token after a refresh token was refused: that one is dead.
    pub(super) fn forget_refresh_token(&mut self) {
        self.refresh = None;
    }

    /// This token is not accepted any more.
    pub(super) fn reject(&mut self, token: &Secret) {
        if self.token.as_ref().is_some_and(|held| held.access.as_ref() == Some(token)) {
            self.token = None;
        }
    }

    /// The credentials were accepted.
    pub(super) fn accept(&mut self) {
        self.accepted = true;
        self.refused = None;
        self.unheard = None;
    }

    /// Credentials of this digest were refused. What was refused while they rest was under way before.
    pub(super) fn refuse(&mut self, now: SystemTime, digest: String, most_tries: Option<u32>) {
        self.rest(now, digest, most_tries, 0);
    }

    /// Credentials of this digest were not looked at: they rest as long as if they were refused, and may be tried as often.
    pub(super) fn turn_away(&mut self, now: SystemTime, digest: String, most_tries: Option<u32>) {
        self.rest(now, digest, most_tries, 1);
    }

    fn rest(&mut self, now: SystemTime, digest: String, most_tries: Option<u32>, unseen: u32) {
        self.accepted = false;
        self.unheard = None;
        if self.rests(now, &digest, most_tries) {
            return;
        }
        let before = self.refused.as_ref().filter(|before| before.digest == digest);
        let (count, before) = before.map_or((0, 0), |before| (before.count, before.unseen));
        let rest = FIRST_REST.saturating_mul(1 << count.min(10)).min(LONGEST_REST);
        let until = milliseconds(since_1970(now) + rest);
        let (count, unseen) = (count.saturating_add(1), before.saturating_add(unseen));
        self.refused = Some(Refused { count, unseen, until, digest });
    }

    /// A password was sent, and nobody has said anything of it: a few times that is an instance in trouble.
    pub(super) fn unheard(&mut self, now: SystemTime) {
        let count = self.unheard.as_ref().map_or(0, |before| before.count).saturating_add(1);
        let rest = match count.checked_sub(UNHEARD_AT_ONCE) {
            None => Duration::ZERO,
            Some(more) => Duration::from_secs(1 << more.min(10)).min(LONGEST_SILENCE),
        };
        self.unheard = Some(Unheard { count, until: milliseconds(since_1970(now) + rest) });
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The only place where secrets are written down.
mod hidden {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::client::auth::Secret;

    pub(super) fn serialize<S: Serializer>(secret: &Option<Secret>, to: S) -> Result<S::Ok, S::Error> {
        secret.as_ref().map(Secret::reveal).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret>, D::Error> {
        Ok(Option::<String>::deserialize(from)?.map(Secret::new))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn granted(access: &str, refresh: Option<&str>, life: u64) -> Granted {
        let (access, refresh) = (Secret::new(access), refresh.map(Secret::new));
        Granted { access, refresh, life: Duration::from_secs(life) }
    }

    fn token(state: &State, now: SystemTime, urgency: Urgency) -> Option<&str> {
        state.token(now, None, urgency).map(Secret::reveal)
    }

    #[test]
    fn a_token_with_a_refresh_token_is_renewed_ahead_by_the_worker_first() {
        let mut state = State::default();
        state.granted(granted("a", Some("r"), 1_799), at(0));
        for (seconds, worker, session) in [
            (0, Some("a"), Some("a")),
            (1_499, Some("a"), Some("a")),
            (1_500, None, Some("a")),
            (1_769, None, Some("a")),
            (1_770, None, None),
        ] {
            assert_eq!(token(&state, at(seconds), Urgency::Background), worker, "{seconds}");
            assert_eq!(token(&state, at(seconds), Urgency::Statement), session, "{seconds}");
        }
    }

    #[test]
    fn a_token_that_would_only_be_given_again_is_used_to_its_end() {
        let mut state = State::default();
        state.granted(granted("a", None, 1_799), at(0));
        assert_eq!(token(&state, at(1_799), Urgency::Background), Some("a"));
        assert_eq!(token(&state, at(1_800), Urgency::Background), None);
    }

    #[test]
    fn a_rejected_token_is_not_used_and_another_one_is() {
        let mut state = State::default();
        state.granted(granted("a", None, 1_799), at(0));
        let (one, other) = (Secret::new("a"), Secret::new("b"));
        assert_eq!(state.token(at(1), Some(&one), Urgency::Statement), None);
        assert_eq!(state.token(at(1), Some(&other), Urgency::Statement), Some(&one));
        state.reject(&other);
        assert_eq!(state.token(at(1), None, Urgency::Statement), Some(&one));
        state.reject(&one);
        assert_eq!(state.token(at(1), None, Urgency::Statement), None);
    }

    #[test]
    fn an_answer_without_a_refresh_token_leaves_the_one_before() {
        let mut state = State::with_refresh_token(Some(Secret::new("r")));
        state.granted(granted("a", None, 10), at(0));
        assert_eq!(state.refresh_token().map(Secret::reveal), Some("r"));
        state.granted(granted("b", Some("s"), 10), at(0));
        assert_eq!(state.refresh_token().map(Secret::reveal), Some("s"));
    }

    #[test]
    fn other_credentials_are_tried_at_once() {
        let mut state = State::default();
        state.refuse(at(0), "one".to_owned(), None);
        assert!(state.rests(at(1), "one", None) && !state.rests(at(1), "two", None));
    }

    /// Whatever the clock does meanwhile.
    #[test]
    fn what_may_be_tried_so_often_rests_for_good_after_that() {
        let mut state = State::default();
        for n in 0..u64::from(MOST_TRIES) {
            assert!(!state.rests(at(n * 1_000), "one", Some(MOST_TRIES)));
            state.refuse(at(n * 1_000), "one".to_owned(), Some(MOST_TRIES));
        }
        for years in 0..3 {
            assert!(state.rests(at(years * 365 * 86_400), "one", Some(MOST_TRIES)));
        }
        assert!(state.rests(SystemTime::UNIX_EPOCH, "one", Some(MOST_TRIES)));
        assert!(!state.rests(at(1_000_000), "two", Some(MOST_TRIES)), "another password is another matter");
        state.accept();
        assert!(!state.rests(at(0), "one", Some(MOST_TRIES)));
    }

    #[test]
    fn what_was_not_looked_at_rests_and_takes_no_tries() {
        let mut state = State::default();
        for n in 0..10 {
            assert!(!state.rests(at(n * 1_000), "one", Some(MOST_TRIES)));
            state.turn_away(at(n * 1_000), "one".to_owned(), Some(MOST_TRIES));
            assert!(state.rests(at(n * 1_000 + 29), "one", Some(MOST_TRIES)));
        }
        for n in 10..10 + u64::from(MOST_TRIES) {
            assert!(!state.rests(at(n * 1_000), "one", Some(MOST_TRIES)));
            state.refuse(at(n * 1_000), "one".to_owned(), Some(MOST_TRIES));
        }
        assert!(state.rests(at(1_000_000), "one", Some(MOST_TRIES)));
    }

    #[test]
    fn a_password_that_nobody_says_anything_of_is_sent_ever_more_seldom_until_it_is_heard() {
        let mut state = State::default();
        let mut rests = Vec::new();
        for _ in 0..UNHEARD_AT_ONCE + 8 {
            state.unheard(at(0));
            rests.push(state.unheard_for(at(0)).map_or(0, |rest| rest.as_secs()));
        }
        assert_eq!(rests, [0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(state.unheard_for(at(60)), None);
        assert_eq!(state.unheard_for(SystemTime::UNIX_EPOCH), None, "the clock was set back");
        for hear in [
            State::accept as fn(&mut State),
            |state| state.granted(granted("a", None, 10), at(0)),
            |state| state.refuse(at(0), "one".to_owned(), None),
        ] {
            let mut state = state.clone();
            hear(&mut state);
            assert_eq!(state.unheard_for(at(0)), None);
        }
    }

    #[test]
    fn nothing_of_it_shows_a_secret() {
        let mut state = State::default();
        state.granted(granted("s3cret", Some("s3cret"), 10), at(0));
        assert!(!format!("{state:?}").contains("s3cret"));
        let written = serde_json::to_string(&state).expect("plain data");
        assert_eq!(serde_json::from_str::<State>(&written).expect("what was written"), state);
    }

    proptest! {
        /// However often and whenever it is tried, refusals come as seldom as the rests say.
        #[test]
        fn refusals_come_ever_more_seldom(tries in prop::collection::vec(0u64..200, 1..400)) {
            let (mut state, mut now, mut refused_at) = (State::default(), 0, Vec::<u64>::new());
            for wait in tries {
                now += wait;
                if !state.rests(at(now), "d", None) {
                    state.refuse(at(now), "d".to_owned(), None);
                    refused_at.push(now);
                }
            }
            for (n, pair) in refused_at.windows(2).enumerate() {
                prop_assert!(pair[1] - pair[0] >= (30u64 << n.min(10)).min(900));
            }
        }

        #[test]
        fn no_moment_and_no_life_makes_it_fail(now in 0u64..u64::MAX / 4, later in 0u64..u64::MAX / 4, life: u64) {
            let time = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
            let mut state = State::default();
            state.granted(granted("a", Some("r"), life), time(now));
            state.refuse(time(now), "d".to_owned(), None);
            let _any = (state.token(time(later), None, Urgency::Statement), state.rests(time(later), "d", None));
        }
    }
}
