//! Token calls: what is exchanged for a token, and how (facts: one answer for every failure).

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL;
use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use oauth2::basic::{BasicClient, BasicErrorResponse, BasicTokenResponse};
use oauth2::{
    AsyncHttpClient, AuthType, AuthorizationCode, ClientId, ClientSecret, HttpRequest, HttpResponse,
    PkceCodeVerifier, RedirectUrl, RefreshToken, RequestTokenError, ResourceOwnerPassword,
    ResourceOwnerUsername, TokenResponse, TokenUrl,
};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use url::Url;
use url::form_urlencoded::Serializer;

use super::consent::Consent;
use super::credentials::{Credentials, OauthClient};
use super::secret::{Secret, SecretSource};
use super::verdict::{self, Verdict};
use crate::client::answer::interpret;
use crate::client::transport::{Request, Transport};
use crate::error::{Error, Result};

/// The life of a token whose answer does not say: half an hour is ServiceNow's default.
const TOKEN_LIFE: Duration = Duration::from_secs(1800);
/// The longest token, in bytes: it goes with every request, and instances bear heads of some kilobytes.
const TOKEN_LIMIT: usize = 64 << 10;
/// The longest answer of a token endpoint that is looked at, in bytes.
const ANSWER_LIMIT: usize = 256 << 10;
/// How long an assertion holds; instances bear clocks that are as far apart.
const ASSERTION_LIFE: Duration = Duration::from_secs(300);

/// What is exchanged for a token.
pub(super) enum Grant<'g> {
    /// The credentials themselves.
    First(&'g Credentials),
    /// A refresh token of before.
    Refresh(&'g OauthClient, &'g Secret),
    /// The code of a user's consent.
    Code(&'g OauthClient, &'g str, &'g Consent),
}

/// What a token call has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) access: Secret,
    pub(super) refresh: Option<Secret>,
    pub(super) life: Duration,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) verdict: Verdict,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let verdict = verdict::of_error(&error);
        Self { error, verdict }
    }
}

/// Makes a token call. [`Error::Login`] if the endpoint refuses it.
pub(super) async fn request<T: Transport>(
    transport: &T,
    token_url: &Url,
    grant: Grant<'_>,
    now: SystemTime,
) -> std::result::Result<Granted, Failure> {
    let http = TokenCalls(transport);
    let oauth = |client: &OauthClient| -> Result<_> {
        let oauth = BasicClient::new(ClientId::new(client.id.clone()))
            .set_auth_type(AuthType::RequestBody) // ServiceNow takes credentials in the body only
            .set_token_uri(TokenUrl::from_url(token_url.clone()));
        Ok(match &client.secret {
            Some(secret) => oauth.set_client_secret(ClientSecret::new(secret.read()?.reveal().to_owned())),
            None => oauth,
        })
    };
    let refresh = |secret: &Secret| RefreshToken::new(secret.reveal().to_owned());
    let answer = match grant {
        Grant::Refresh(client, token) => {
            oauth(client)?.exchange_refresh_token(&refresh(token)).request_async(&http).await
        }
        Grant::Code(client, code, consent) => {
            let redirect = RedirectUrl::from_url(consent.redirect_uri.clone());
            oauth(client)?
                .exchange_code(AuthorizationCode::new(code.to_owned()))
                .set_pkce_verifier(PkceCodeVerifier::new(consent.verifier.reveal().to_owned()))
                .set_redirect_uri(std::borrow::Cow::Owned(redirect))
                .request_async(&http)
                .await
        }
        Grant::First(credentials) => match credentials {
            Credentials::ClientCredentials { client } => {
                oauth(client)?.exchange_client_credentials().request_async(&http).await
            }
            Credentials::Password { client, username, password } => {
                let user = ResourceOwnerUsername::new(username.clone());
                let word = ResourceOwnerPassword::new(password.read()?.reveal().to_owned());
                oauth(client)?.exchange_password(&user, &word).request_async(&http).await
            }
            Credentials::RefreshToken { client, token } => {
                oauth(client)?.exchange_refresh_token(&refresh(&token.read()?)).request_async(&http).await
            }
            Credentials::JwtBearer { client, key, key_id, subject } => {
                let assertion = assertion(&client.id, subject, key, key_id.as_deref(), now)?;
                send_assertion(&http, token_url, client, &assertion).await
            }
            Credentials::Basic { .. } | Credentials::ApiKey { .. } => return Err(Error::Login.into()),
            Credentials::AuthorizationCode { .. } => return Err(Error::NoConsent.into()),
        },
    };
    let answer = answer.map_err(|e| match e {
        RequestTokenError::Request(e) => e,
        RequestTokenError::ServerResponse(_) => Error::Login.into(),
        RequestTokenError::Parse(..) | RequestTokenError::Other(_) => {
            Error::Unreadable("the token endpoint did not answer with a token".to_owned()).into()
        }
    })?;
    Ok(granted(&answer)?)
}

/// What an answer brings. An empty refresh token is none.
fn granted(answer: &BasicTokenResponse) -> Result<Granted> {
    let given = |token: &str| match token.len() {
        0 => Ok(None),
        1..=TOKEN_LIMIT => Ok(Some(Secret::new(token))),
        _ => {
            let reason = format!("the token endpoint answered with a token of more than {TOKEN_LIMIT} bytes");
            Err(Error::Unreadable(reason))
        }
    };
    let nothing = || Error::Unreadable("the token endpoint answered with an empty token".to_owned());
    Ok(Granted {
        access: given(answer.access_token().secret())?.ok_or_else(nothing)?,
        refresh: answer.refresh_token().map_or(Ok(None), |token| given(token.secret()))?,
        life: answer.expires_in().unwrap_or(TOKEN_LIFE),
    })
}

/// What a private key has to be.
const KEY_FORM: &str = "it is not an unencrypted RSA key of 2048 to 4096 bits in PEM form";

fn key_pair(pem: &Secret) -> Option<RsaKeyPair> {
    match PrivateKeyDer::from_pem_slice(pem.reveal().as_bytes()).ok()? {
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok(),
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).ok(),
        _ => None,
    }
}

/// Whether assertions can be signed with a key.
pub fn is_private_key(pem: &Secret) -> bool {
    key_pair(pem).is_some()
}

/// A signed assertion: the client issues it about the subject, for the instance, which goes by the client's name there.
fn assertion(
    client: &str,
    subject: &str,
    key: &SecretSource,
    key_id: Option<&str>,
    now: SystemTime,
) -> Result<Secret> {
    let unusable = |reason: &str| Error::Setup(format!("could not use the private key: {reason}"));
    let pair = key_pair(&key.read()?).ok_or_else(|| unusable(KEY_FORM))?;
    let random = SystemRandom::new();
    let mut id = [0; 16];
    random.fill(&mut id).map_err(|_| unusable("no random numbers can be had"))?;
    let issued = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut header = json!({ "alg": "RS256", "typ": "JWT" });
    if let Some(key_id) = key_id {
        header["kid"] = key_id.into();
    }
    let claims = json!({
        "iss": client, "sub": subject, "aud": client, "jti": BASE64URL.encode(id),
        "iat": issued.as_secs(), "exp": (issued + ASSERTION_LIFE).as_secs(),
    });
    let [header, claims] = [header, claims].map(|part| BASE64URL.encode(part.to_string()));
    let signed = format!("{header}.{claims}");
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature)
        .map_err(|_| unusable("it cannot sign"))?;
    Ok(Secret::new(format!("{signed}.{}", BASE64URL.encode(signature))))
}

type Answer = std::result::Result<BasicTokenResponse, RequestTokenError<Failure, BasicErrorResponse>>;

/// The one grant that `oauth2` does not know.
async fn send_assertion<T: Transport>(
    http: &TokenCalls<'_, T>,
    token_url: &Url,
    client: &OauthClient,
    assertion: &Secret,
) -> Answer {
    let secret = client.secret.as_ref().map(SecretSource::read).transpose();
    let secret = secret.map_err(|e| RequestTokenError::Request(e.into()))?;
    let form = Serializer::new(String::new())
        .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
        .append_pair("client_id", &client.id)
        .extend_pairs(secret.iter().map(|secret| ("client_secret", secret.reveal())))
        .append_pair("assertion", assertion.reveal())
        .finish();
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    let body = Some(Bytes::from(form));
    let request = Request { method: Method::POST, url: token_url.clone(), headers, body };
    let answer = send(http.0, request).await.map_err(RequestTokenError::Request)?;
    serde_json::from_slice(answer.body())
        .map_err(|_| RequestTokenError::Other("the answer holds no token".to_owned()))
}

/// Sends token calls over our transport.
struct TokenCalls<'t, T>(&'t T);

impl<'c, T: Transport> AsyncHttpClient<'c> for TokenCalls<'_, T> {
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<HttpResponse, Failure>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let url = Url::parse(&parts.uri.to_string()).map_err(|e| Error::Setup(e.to_string()))?;
            let body = Some(Bytes::from(body));
            send(self.0, Request { method: parts.method, url, headers: parts.headers, body }).await
        })
    }
}

/// The answer with a token.
async fn send<T: Transport>(transport: &T, request: Request) -> std::result::Result<HttpResponse, Failure> {
    let answer = transport.send(request).await?;
    if answer.body.len() > ANSWER_LIMIT {
        let reason = format!("the token endpoint answered with more than {ANSWER_LIMIT} bytes");
        return Err(Error::Unreadable(reason).into());
    }
    if answer.status == 200 {
        return Ok(HttpResponse::new(answer.body.to_vec()));
    }
    if let Some(verdict) = verdict::of_answer(answer.status, &answer.body) {
        return Err(Failure { error: Error::Login, verdict });
    }
    // An instance in trouble has not refused the login.
    interpret(&answer).map_err(|error| Failure { verdict: verdict::of_trouble(&error), error })?;
    Err(Error::Unreadable(format!("the token endpoint answered with status {}", answer.status)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_or_too_long_is_no_token() {
        let answer = |access: &str, refresh: &str| {
            let answer = json!({ "access_token": access, "refresh_token": refresh, "token_type": "Bearer" });
            granted(&serde_json::from_value(answer).expect("an answer"))
        };
        assert!(answer("a", "").expect("a token").refresh.is_none());
        assert!(answer("a", "r").expect("a token").refresh.is_some());
        let (most, more) = ("a".repeat(TOKEN_LIMIT), "a".repeat(TOKEN_LIMIT + 1));
        assert!(answer(&most, &most).is_ok());
        for (access, refresh) in [("", "r"), (&more, "r"), ("a", &more)] {
            assert!(matches!(answer(access, refresh), Err(Error::Unreadable(_))));
        }
    }
}
