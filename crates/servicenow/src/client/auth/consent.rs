//! A user's consent in a browser: OAuth's authorization code grant with PKCE.
//!
//! Who wants to log in is sent to [`Consent::url`]. The instance asks for the login and the consent, and sends the browser
//! back to the redirect address with a code, which [`crate::client::Client::exchange_code`] exchanges for a token.

use oauth2::basic::BasicClient;
use oauth2::{AuthUrl, ClientId, CsrfToken, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl};
use url::Url;

use super::secret::Secret;
use crate::error::{Error, Result};

/// What has to be known again when the browser comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    /// Nobody guesses it: who brings it back has been sent by us.
    pub state: Secret,
    /// Proves to the instance that it is us who asked for the code.
    pub verifier: Secret,
    /// Where the instance sends the browser to; it is registered there.
    pub redirect_uri: Url,
}

impl Consent {
    /// A new one, whose state begins with a prefix.
    pub fn new(prefix: &str, redirect_uri: Url) -> Self {
        let (_, verifier) = PkceCodeChallenge::new_random_sha256();
        let state = CsrfToken::new_random_len(32);
        Self {
            state: Secret::new(format!("{prefix}{}", state.secret())),
            verifier: Secret::new(verifier.secret().clone()),
            redirect_uri,
        }
    }

    /// Where a user of an instance gives it, for an OAuth client.
    pub fn url(&self, instance: &Url, client_id: &str) -> Result<Url> {
        let page = instance.join("/oauth_auth.do").map_err(|e| Error::Setup(e.to_string()))?;
        let verifier = PkceCodeVerifier::new(self.verifier.reveal().to_owned());
        let client = BasicClient::new(ClientId::new(client_id.to_owned()))
            .set_auth_uri(AuthUrl::from_url(page))
            .set_redirect_uri(RedirectUrl::from_url(self.redirect_uri.clone()));
        let state = CsrfToken::new(self.state.reveal().to_owned());
        let (url, _) = client
            .authorize_url(|| state)
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
            .url();
        Ok(url)
    }
}
