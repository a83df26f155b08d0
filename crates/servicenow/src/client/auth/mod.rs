//! How a caller logs in: credentials, and the token they earn.
//!
//! - `secret`: text that must not be shown; `credentials`: the ways to log in
//! - `grant`: token calls; [`consent`]: a user's consent in a browser
//! - `verdict`: what a try that brought nothing says of the credentials
//! - `state`: how far a login is and what comes next; `tally`: what logins of one account have in common; [`vault`]: where
//!   that is kept, for any number of processes
//!
//! [`Login`] puts them together. One of all who share a login makes a token call, and one of them finds out whether
//! credentials are accepted; the others wait and share what came of it.

pub mod consent;
mod credentials;
mod grant;
mod secret;
mod state;
mod tally;
pub mod vault;
mod verdict;

use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use url::Url;

use super::retry::Urgency;
use super::transport::Transport;
use crate::error::{Error, Result};
use consent::Consent;
use credentials::Digests;
pub use credentials::{Credentials, OauthClient, digest};
pub use grant::is_private_key;
use grant::{Failure, Grant};
pub use secret::{Secret, SecretSource};
use vault::{Locked, Vault};
use verdict::Verdict;

/// The header for an API key.
const API_KEY: HeaderName = HeaderName::from_static("x-sn-apikey");

/// Logs in and hands out passes.
pub(super) struct Login {
    credentials: Credentials,
    token_url: Url,
    vault: Vault,
    urgency: Urgency,
    /// There was a refusal that nobody has taken back.
    is_doubtful: AtomicBool,
}

/// What a call shows to be let in.
pub(super) struct Pass {
    pub(super) name: HeaderName,
    pub(super) value: HeaderValue,
    /// The secrets themselves that go with the call.
    tried: Option<Digests>,
    /// It is not known yet whether these credentials are accepted: others wait to hear.
    trial: Option<Trial>,
}

/// Nobody else tries the login meanwhile, nor its account.
struct Trial {
    login: Locked,
    account: Option<Locked>,
}

impl Login {
    pub(super) fn new(credentials: Credentials, token_url: Url, vault: Vault, urgency: Urgency) -> Self {
        Self { credentials, token_url, vault, urgency, is_doubtful: AtomicBool::new(true) }
    }

    /// The pass for a call. `rejected` is the one the instance has just answered 401 to: another one
    /// is handed out, so that any number of calls that fail together log in once.
    pub(super) async fn pass<T: Transport>(
        &self,
        transport: &T,
        rejected: Option<&HeaderValue>,
    ) -> Result<Pass> {
        match &self.credentials {
            Credentials::Basic { username, password } => {
                let value = || {
                    let password = password.read()?;
                    let pair = Secret::new(format!("{username}:{}", password.reveal()));
                    header("Basic ", &BASE64.encode(pair.reveal()))
                };
                self.pass_on_trial(AUTHORIZATION, value).await
            }
            Credentials::ApiKey { key } => {
                self.pass_on_trial(API_KEY, || header("", key.read()?.reveal())).await
            }
            _ => {
                let rejected = rejected.and_then(token_of);
                let token = self.token(transport, rejected.as_ref()).await?;
                Ok(Pass {
                    name: AUTHORIZATION,
                    value: header(BEARER, token.reveal())?,
                    tried: None,
                    trial: None,
                })
            }
        }
    }

    /// The credentials go with the call itself.
    async fn pass_on_trial(&self, name: HeaderName, value: impl Fn() -> Result<HeaderValue>) -> Result<Pass> {
        let digests = self.credentials.digests()?;
        let mut known = self.vault.known().await;
        known.look();
        if known.state().rests(self.vault.now(), &digests.all, self.most_tries()) {
            return Err(Error::Login);
        }
        if known.state().is_accepted() {
            return Ok(Pass { name, value: value()?, tried: Some(digests), trial: None });
        }
        let login = known.lock().await;
        if login.state().rests(self.vault.now(), &digests.all, self.most_tries()) {
            return Err(Error::Login);
        }
        if login.state().is_accepted() {
            return Ok(Pass { name, value: value()?, tried: Some(digests), trial: None });
        }
        self.wait_to_be_heard(&login)?;
        let account = self.account().await;
        if is_blocked(account.as_ref(), &digests) {
            return Err(Error::Login);
        }
        Ok(Pass { name, value: value()?, tried: Some(digests), trial: Some(Trial { login, account }) })
    }

    async fn token<T: Transport>(&self, transport: &T, rejected: Option<&Secret>) -> Result<Secret> {
        let mut known = self.vault.known().await;
        // Another process may have been given another user's consent meanwhile.
        known.look();
        if let Some(token) = known.state().token(self.vault.now(), rejected, self.urgency) {
            return Ok(token.clone());
        }
        let mut locked = known.lock().await;
        if let Some(token) = locked.state().token(self.vault.now(), rejected, self.urgency) {
            return Ok(token.clone());
        }
        // If there is no new one, this one may be good for a while yet.
        let living = locked.state().living_token(self.vault.now(), rejected).cloned();
        let digests = self.credentials.digests()?;
        if locked.state().rests(self.vault.now(), &digests.all, self.most_tries()) {
            return living.ok_or(Error::Login);
        }
        let account = self.account().await;
        let is_blocked = is_blocked(account.as_ref(), &digests);
        if is_blocked && locked.state().refresh_token().is_none() {
            return living.ok_or(Error::Login);
        }
        match self.renew(transport, &mut locked, is_blocked).await {
            Ok((token, by_credentials)) => {
                if by_credentials {
                    clear(account);
                }
                Ok(token)
            }
            Err(Failure { error, verdict }) => {
                match verdict {
                    Verdict::Refused => self.refuse(locked, account.filter(|_| !is_blocked), digests),
                    Verdict::TurnedAway => self.turn_away(locked, digests),
                    Verdict::Unheard | Verdict::Nothing => {}
                }
                living.ok_or(error)
            }
        }
    }

    /// Makes a token call; a second one with the credentials themselves if a refresh token is refused, unless the account
    /// is left alone. Why it is refused nobody tells: if the credentials are refused too, it may be the client that is not
    /// let in, and the token is kept. Gives back, too, whether it was the credentials that were accepted.
    async fn renew<T: Transport>(
        &self,
        transport: &T,
        locked: &mut Locked,
        account_is_blocked: bool,
    ) -> std::result::Result<(Secret, bool), Failure> {
        let ask = async |grant| grant::request(transport, &self.token_url, grant, self.vault.now()).await;
        let held = locked.state().refresh_token().cloned();
        let held = self.credentials.client().zip(held);
        let mut refused = false;
        if let Some((client, token)) = &held {
            match ask(Grant::Refresh(client, token)).await {
                Ok(granted) => return Ok((self.keep(locked, granted, false), false)),
                Err(Failure { error: Error::Login, .. }) => refused = true,
                Err(e) => return Err(e),
            }
        }
        let is_the_same = match (&self.credentials, &held) {
            (Credentials::RefreshToken { token, .. }, Some((_, held))) => token.read()? == *held,
            (Credentials::AuthorizationCode { .. }, held) => held.is_some(),
            _ => false,
        };
        if is_the_same || account_is_blocked {
            return Err(Error::Login.into());
        }
        self.wait_to_be_heard(locked)?;
        let granted = ask(Grant::First(&self.credentials)).await.inspect_err(|failure| {
            if failure.verdict == Verdict::Unheard {
                self.note_unheard(locked);
            }
        })?;
        Ok((self.keep(locked, granted, refused), true))
    }

    fn keep(&self, locked: &mut Locked, granted: grant::Granted, refresh_token_is_dead: bool) -> Secret {
        let (now, token) = (self.vault.now(), granted.access.clone());
        let _known_here = locked.change(|state| {
            if refresh_token_is_dead {
                state.forget_refresh_token();
            }
            state.granted(granted, now);
        });
        token
    }

    /// Exchanges the code of a user's consent for a token, in place of what there is.
    pub(super) async fn exchange_code<T: Transport>(
        &self,
        transport: &T,
        code: &str,
        consent: &Consent,
    ) -> Result<()> {
        let Credentials::AuthorizationCode { client } = &self.credentials else {
            return Err(Error::Setup("the login takes no code".to_owned()));
        };
        let mut locked = self.vault.known().await.lock().await;
        let grant = Grant::Code(client, code, consent);
        let granted = grant::request(transport, &self.token_url, grant, self.vault.now()).await;
        let granted = granted.map_err(|failure| failure.error)?;
        let now = self.vault.now();
        let kept = locked.change(|state| {
            state.forget_refresh_token();
            state.granted(granted, now);
            state.accept();
        });
        kept.map_err(|e| Error::Setup(format!("could not keep the token: {e}")))
    }

    /// The instance has answered 401 to a part of a call that came with this pass: the next call logs in again,
    /// unless another one has done so meanwhile.
    pub(super) async fn reject(&self, pass: &HeaderValue) {
        if let Some(token) = token_of(pass).filter(|_| self.has_token()) {
            let mut locked = self.vault.known().await.lock().await;
            let _known_here = locked.change(|state| state.reject(&token));
        }
    }

    /// The instance has carried out a call that came with a pass.
    pub(super) async fn accepted(&self, pass: &mut Pass) {
        match pass.trial.take() {
            Some(Trial { mut login, account }) => {
                let _known_here = login.change(state::State::accept);
                clear(account);
            }
            // A token says nothing of the password.
            None if self.is_doubtful.swap(false, Ordering::Relaxed) && self.has_token() => {
                self.forgive_login().await;
            }
            None => {}
        }
    }

    /// A call has failed that came with a pass. Nobody is shown more than can be held who is not let in.
    pub(super) fn failed(&self, pass: &mut Pass, error: &Error) {
        if verdict::of_error(error) == Verdict::Unheard
            && !matches!(error, Error::TooLarge { .. })
            && let Some(mut trial) = pass.trial.take()
        {
            self.note_unheard(&mut trial.login);
        }
    }

    /// The instance does not accept the pass of a call, and another one would not help.
    pub(super) async fn refused(&self, pass: Pass) {
        // It is not what may be in a file by now that was refused.
        let Some(digests) = pass.tried.or_else(|| self.credentials.digests().ok()) else { return };
        let Trial { login, account } = match pass.trial {
            Some(trial) => trial,
            None => {
                let login = self.vault.known().await.lock().await;
                Trial { login, account: self.account().await }
            }
        };
        self.refuse(login, account, digests);
    }

    /// Notes a refusal. What was refused while the login rests was under way before, and counts once.
    fn refuse(&self, mut login: Locked, account: Option<Locked>, digests: Digests) {
        self.is_doubtful.store(true, Ordering::Relaxed);
        let now = self.vault.now();
        let account = account.filter(|_| !login.state().rests(now, &digests.all, self.most_tries()));
        if let (Some(account), Some(password)) = (account, digests.password) {
            self.vault.refuse_account(account, password);
        }
        let _known_here = login.change(|state| state.refuse(now, digests.all, self.most_tries()));
    }

    /// Notes that the credentials were not even looked at: they rest, and nothing is counted.
    fn turn_away(&self, mut login: Locked, digests: Digests) {
        self.is_doubtful.store(true, Ordering::Relaxed);
        let now = self.vault.now();
        let _known_here = login.change(|state| state.turn_away(now, digests.all, self.most_tries()));
    }

    /// Notes that a password was sent, and nobody said anything of it.
    fn note_unheard(&self, login: &mut Locked) {
        if self.credentials.may_lock_an_account() {
            let now = self.vault.now();
            let _known_here = login.change(|state| state.unheard(now));
        }
    }

    /// Fails as long as a password is not to be sent because the last ones went without a word.
    fn wait_to_be_heard(&self, login: &Locked) -> Result<()> {
        match login.state().unheard_for(self.vault.now()).filter(|_| self.credentials.may_lock_an_account()) {
            Some(again_in) => Err(Error::Unheard { again_in }),
            None => Ok(()),
        }
    }

    /// What is known of the account, if it may be locked.
    async fn account(&self) -> Option<Locked> {
        match self.credentials.may_lock_an_account() {
            true => self.vault.account().await,
            false => None,
        }
    }

    /// The credentials were accepted elsewhere: whatever rests is tried again.
    pub(super) async fn forgive(&self) {
        self.forgive_login().await;
        self.vault.forgive_account().await;
    }

    async fn forgive_login(&self) {
        let mut known = self.vault.known().await;
        known.look();
        if known.state().is_in_doubt() {
            let _known_here = known.lock().await.change(state::State::accept);
        }
    }

    /// How often the credentials may be refused in a row.
    fn most_tries(&self) -> Option<u32> {
        self.credentials.may_lock_an_account().then_some(state::MOST_TRIES)
    }

    /// Whether another login could help after a 401.
    pub(super) fn has_token(&self) -> bool {
        self.credentials.client().is_some()
    }
}

/// The password of an account was accepted.
fn clear(account: Option<Locked>) {
    if let Some(mut account) = account.filter(|account| !account.state().tally().is_clear()) {
        let _known_here = account.change(|state| state.tally_mut().clear());
    }
}

fn is_blocked(account: Option<&Locked>, digests: &Digests) -> bool {
    let password = account.zip(digests.password.as_deref());
    password.is_some_and(|(account, digest)| account.state().tally().blocks(digest))
}

const BEARER: &str = "Bearer ";

fn header(scheme: &str, secret: &str) -> Result<HeaderValue> {
    let text = Secret::new(format!("{scheme}{secret}"));
    let mut header = HeaderValue::from_str(text.reveal())
        .map_err(|_| Error::Setup("a secret cannot be sent in a header".to_owned()))?;
    header.set_sensitive(true);
    Ok(header)
}

fn token_of(header: &HeaderValue) -> Option<Secret> {
    header.to_str().ok()?.strip_prefix(BEARER).map(Secret::new)
}
