//! The ways to log in.

use ring::digest::{Context, SHA256};

use super::secret::{Secret, SecretSource};
use crate::error::Result;

/// A way to log in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// User name and password with every call.
    Basic {
        /// The user.
        username: String,
        /// Their password.
        password: SecretSource,
    },
    /// A key with every call.
    ApiKey {
        /// The key.
        key: SecretSource,
    },
    /// OAuth's resource owner password grant.
    Password {
        /// The OAuth client.
        client: OauthClient,
        /// The user.
        username: String,
        /// Their password.
        password: SecretSource,
    },
    /// OAuth's client credentials grant.
    ClientCredentials {
        /// The OAuth client.
        client: OauthClient,
    },
    /// A refresh token that somebody has got elsewhere.
    RefreshToken {
        /// The OAuth client.
        client: OauthClient,
        /// The token.
        token: SecretSource,
    },
    /// An assertion that is signed with a private key (RFC 7523).
    JwtBearer {
        /// The OAuth client, who issues the assertion too.
        client: OauthClient,
        /// The private key, PEM, RSA.
        key: SecretSource,
        /// The name under which the instance knows the public key.
        key_id: Option<String>,
        /// Who logs in.
        subject: String,
    },
    /// What a user has agreed to in a browser (see [`super::consent`]).
    AuthorizationCode {
        /// The OAuth client.
        client: OauthClient,
    },
}

/// An OAuth client in the instance's registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OauthClient {
    /// Its name there.
    pub id: String,
    /// Its secret; public clients have none.
    pub secret: Option<SecretSource>,
}

impl OauthClient {
    /// A client with a secret.
    pub fn new(id: impl Into<String>, secret: impl Into<SecretSource>) -> Self {
        Self { id: id.into(), secret: Some(secret.into()) }
    }
}

impl Credentials {
    /// Whose they are, without any secret: what the instance shows may differ from one identity to another. What is
    /// known of an identity only by a secret is told by a digest of it.
    pub fn identity(&self) -> String {
        match self {
            Credentials::Basic { username, .. } => format!("user {username}"),
            Credentials::ApiKey { key } => format!("key {}", digest_of(key)),
            Credentials::Password { client, username, .. } => {
                format!("client {} user {username}", client.id)
            }
            Credentials::ClientCredentials { client } => format!("client {}", client.id),
            Credentials::RefreshToken { client, token } => {
                format!("client {} token {}", client.id, digest_of(token))
            }
            Credentials::JwtBearer { client, subject, .. } => {
                format!("client {} subject {subject}", client.id)
            }
            Credentials::AuthorizationCode { client } => format!("client {} by consent", client.id),
        }
    }

    /// The OAuth client, if they are for a token.
    pub fn client(&self) -> Option<&OauthClient> {
        match self {
            Credentials::Basic { .. } | Credentials::ApiKey { .. } => None,
            Credentials::Password { client, .. }
            | Credentials::ClientCredentials { client }
            | Credentials::RefreshToken { client, .. }
            | Credentials::JwtBearer { client, .. }
            | Credentials::AuthorizationCode { client } => Some(client),
        }
    }

    /// Whose account an instance may lock if they are refused too often.
    pub fn username(&self) -> Option<&str> {
        match self {
            Credentials::Basic { username, .. } | Credentials::Password { username, .. } => Some(username),
            _ => None,
        }
    }

    /// Whether an instance may lock the user's account if they are refused too often.
    pub(super) fn may_lock_an_account(&self) -> bool {
        self.username().is_some()
    }

    /// Digests of the secrets as they are now. What was refused with one may be accepted with another.
    pub(super) fn digests(&self) -> Result<Digests> {
        let own = match self {
            Credentials::Basic { password, .. } | Credentials::Password { password, .. } => Some(password),
            Credentials::ApiKey { key } | Credentials::JwtBearer { key, .. } => Some(key),
            Credentials::RefreshToken { token, .. } => Some(token),
            Credentials::ClientCredentials { .. } | Credentials::AuthorizationCode { .. } => None,
        };
        let of_client = self.client().and_then(|client| client.secret.as_ref());
        let own = own.map(SecretSource::read).transpose()?;
        let password = own.as_ref().filter(|_| self.may_lock_an_account());
        let password = password.map(|password| digest(std::slice::from_ref(password)));
        let secrets = own.into_iter().map(Ok).chain(of_client.into_iter().map(SecretSource::read));
        Ok(Digests { all: digest(&secrets.collect::<Result<Vec<Secret>>>()?), password })
    }
}

/// What tells secrets from others.
pub(super) struct Digests {
    /// All of them together.
    pub(super) all: String,
    /// The password of an account alone, however it is sent.
    pub(super) password: Option<String>,
}

/// What tells one secret from another: where it is, or a part of a digest, from which nobody finds it.
fn digest_of(source: &SecretSource) -> String {
    match source {
        SecretSource::Text(secret) => digest(std::slice::from_ref(secret))[..16].to_owned(),
        SecretSource::File(path) => format!("in {}", path.display()),
    }
}

/// Stands for texts without showing them.
pub fn digest(texts: &[Secret]) -> String {
    let mut context = Context::new(&SHA256);
    for secret in texts {
        context.update(&(secret.reveal().len() as u64).to_le_bytes());
        context.update(secret.reveal().as_bytes());
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
