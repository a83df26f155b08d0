//! How a caller logs in: credentials, and the token they earn.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use bytes::Bytes;
use http::header::HeaderValue;
use oauth2::basic::BasicClient;
use oauth2::{
    AsyncHttpClient, AuthType, ClientId, ClientSecret, HttpRequest, HttpResponse, RequestTokenError,
    ResourceOwnerPassword, ResourceOwnerUsername, TokenResponse, TokenUrl,
};
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use super::answer::interpret;
use super::transport::{Request, Transport};
use crate::error::{Error, Result};

/// A token is renewed this long before it ends, so that none ends under way.
const RENEW_AHEAD: Duration = Duration::from_secs(30);
/// How long a refused login rests before the credentials are tried again, so that trying does not lock the
/// account; each further refusal doubles it, up to [`LONGEST_REST`].
const FIRST_REST: Duration = Duration::from_secs(30);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(900);
/// The life of a token whose answer does not say: half an hour is ServiceNow's default.
const TOKEN_LIFE: Duration = Duration::from_secs(1800);

/// Text that must not be shown; `Debug` hides it and there is no `Display`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Takes over a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, to be sent and never to be shown.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A way to log in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// User name and password with every call.
    Basic {
        /// The user.
        username: String,
        /// Their password.
        password: Secret,
    },
    /// OAuth's resource owner password grant.
    Password {
        /// The OAuth client.
        client_id: String,
        /// Its secret.
        client_secret: Secret,
        /// The user.
        username: String,
        /// Their password.
        password: Secret,
    },
    /// OAuth's client credentials grant.
    ClientCredentials {
        /// The OAuth client.
        client_id: String,
        /// Its secret.
        client_secret: Secret,
    },
}

impl Credentials {
    /// Whose they are, without any secret: what the instance shows may differ from one identity to another.
    pub fn identity(&self) -> String {
        match self {
            Credentials::Basic { username, .. } => format!("user {username}"),
            Credentials::Password { client_id, username, .. } => {
                format!("client {client_id} user {username}")
            }
            Credentials::ClientCredentials { client_id, .. } => format!("client {client_id}"),
        }
    }
}

/// A token in use.
struct Token {
    header: HeaderValue,
    renew_at: Instant,
}

/// Logs in once and hands out the `Authorization` header until it has to be renewed.
pub(super) struct Login {
    credentials: Credentials,
    token_url: Url,
    /// Held across the token call, so that callers who come meanwhile share its result.
    token: Mutex<Option<Token>>,
    /// Refusals in a row, and until when the login rests.
    rest: std::sync::Mutex<Option<(u32, Instant)>>,
}

impl Login {
    pub(super) fn new(credentials: Credentials, token_url: Url) -> Self {
        Self { credentials, token_url, token: Mutex::new(None), rest: std::sync::Mutex::new(None) }
    }

    /// The header for a call. `rejected` is the header the instance has just answered 401 to: a token other
    /// than that one is handed out, so that any number of calls that fail together log in once.
    pub(super) async fn header<T: Transport>(
        &self,
        transport: &T,
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue> {
        self.refuse_while_resting()?;
        if let Credentials::Basic { username, password } = &self.credentials {
            return basic_header(username, password);
        }
        let mut held = self.token.lock().await;
        if let Some(token) = held.as_ref()
            && rejected != Some(&token.header)
            && Instant::now() < token.renew_at
        {
            return Ok(token.header.clone());
        }
        *held = None;
        let token = self.request_token(transport).await?;
        let header = token.header.clone();
        *held = Some(token);
        Ok(header)
    }

    /// The instance has answered 401 to a part of a call that came with this header: the next call logs in again,
    /// unless another one has done so meanwhile.
    pub(super) async fn reject(&self, header: &HeaderValue) {
        let mut held = self.token.lock().await;
        if held.as_ref().is_some_and(|token| token.header == *header) {
            *held = None;
        }
    }

    fn refuse_while_resting(&self) -> Result<()> {
        match *self.rest.lock().expect("no panic while it is held") {
            Some((_, until)) if Instant::now() < until => Err(Error::Login),
            _ => Ok(()),
        }
    }

    /// Takes note that the instance has refused or accepted the credentials.
    pub(super) fn note(&self, accepted: bool) {
        let mut rest = self.rest.lock().expect("no panic while it is held");
        *rest = match (accepted, *rest) {
            (true, _) => None,
            // Calls under way together are refused together; that counts once.
            (false, Some((count, until))) if Instant::now() < until => Some((count, until)),
            (false, before) => {
                let count = before.map_or(0, |(count, _)| count);
                let rest = FIRST_REST.saturating_mul(1 << count.min(10)).min(LONGEST_REST);
                Some((count + 1, Instant::now() + rest))
            }
        };
    }

    /// Whether another login could help after a 401.
    pub(super) fn has_token(&self) -> bool {
        !matches!(self.credentials, Credentials::Basic { .. })
    }

    async fn request_token<T: Transport>(&self, transport: &T) -> Result<Token> {
        let http = TokenCalls(transport);
        let client = |id: &str, secret: &Secret| {
            let token_url = TokenUrl::from_url(self.token_url.clone());
            BasicClient::new(ClientId::new(id.to_owned()))
                .set_client_secret(ClientSecret::new(secret.reveal().to_owned()))
                .set_auth_type(AuthType::RequestBody) // ServiceNow takes credentials in the body only
                .set_token_uri(token_url)
        };
        let answer = match &self.credentials {
            Credentials::Basic { .. } => return Err(Error::Login),
            Credentials::ClientCredentials { client_id, client_secret } => {
                client(client_id, client_secret).exchange_client_credentials().request_async(&http).await
            }
            Credentials::Password { client_id, client_secret, username, password } => {
                let user = ResourceOwnerUsername::new(username.clone());
                let word = ResourceOwnerPassword::new(password.reveal().to_owned());
                client(client_id, client_secret).exchange_password(&user, &word).request_async(&http).await
            }
        };
        let answer = answer.map_err(|e| match e {
            RequestTokenError::Request(e) => e,
            RequestTokenError::ServerResponse(_) => Error::Login,
            RequestTokenError::Parse(..) | RequestTokenError::Other(_) => {
                Error::Unreadable("the token endpoint did not answer with a token".to_owned())
            }
        })?;
        let mut header = HeaderValue::from_str(&format!("Bearer {}", answer.access_token().secret()))
            .map_err(|_| Error::Unreadable("the token cannot be sent in a header".to_owned()))?;
        header.set_sensitive(true);
        let life = answer.expires_in().unwrap_or(TOKEN_LIFE);
        Ok(Token { header, renew_at: Instant::now() + life.saturating_sub(RENEW_AHEAD.min(life / 2)) })
    }
}

fn basic_header(username: &str, password: &Secret) -> Result<HeaderValue> {
    let pair = BASE64.encode(format!("{username}:{}", password.reveal()));
    let mut header = HeaderValue::from_str(&format!("Basic {pair}"))
        .map_err(|_| Error::Setup("user name or password cannot be sent in a header".to_owned()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Sends token calls over our transport.
struct TokenCalls<'t, T>(&'t T);

impl<'c, T: Transport> AsyncHttpClient<'c> for TokenCalls<'_, T> {
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(send_token_request(self.0, request))
    }
}

async fn send_token_request<T: Transport>(transport: &T, request: HttpRequest) -> Result<HttpResponse> {
    let (parts, body) = request.into_parts();
    let url = Url::parse(&parts.uri.to_string()).map_err(|e| Error::Setup(e.to_string()))?;
    let body = Some(Bytes::from(body));
    let answer = transport.send(Request { method: parts.method, url, headers: parts.headers, body }).await?;
    // An instance in trouble has not refused the login.
    if matches!(answer.status, 202 | 429 | 500..) {
        interpret(&answer)?;
    }
    let mut response = HttpResponse::new(answer.body.to_vec());
    *response.status_mut() = http::StatusCode::from_u16(answer.status)
        .map_err(|_| Error::Unreadable(format!("status {}", answer.status)))?;
    *response.headers_mut() = answer.headers;
    Ok(response)
}
