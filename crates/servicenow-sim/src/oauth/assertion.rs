//! Assertions of the JWT bearer grant (facts §4): signed by a client whose public key the instance knows.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::Value;

/// Clocks may be apart by so many seconds.
const SKEW: i64 = 300;

/// A public key of a client.
#[derive(Debug, Clone)]
pub(crate) struct JwtKey {
    /// Its name, which the assertion's header gives.
    pub(crate) key_id: String,
    /// The key, DER, as in PKCS #1.
    pub(crate) public_key: Vec<u8>,
}

/// An assertion that holds.
pub(super) struct Assertion {
    /// Who logs in.
    pub(super) subject: String,
    /// Its own identity, if it has one.
    pub(super) id: Option<String>,
}

/// Checks an assertion of a client.
pub(super) fn check(text: &str, client: &str, keys: &[JwtKey], now: DateTime<Utc>) -> Option<Assertion> {
    let (signed, signature) = text.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let part =
        |text: &str| -> Option<Value> { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok() };
    let (header, claims) = (part(header)?, part(claims)?);
    if header["alg"] != "RS256" || claims["iss"] != client || claims["aud"] != client {
        return None;
    }
    let expires = claims["exp"].as_i64()?;
    if expires + SKEW < now.timestamp() || claims["iat"].as_i64().is_some_and(|i| i > now.timestamp() + SKEW)
    {
        return None;
    }
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    let is_signed = keys.iter().any(|key| {
        header["kid"] == *key.key_id
            && UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &key.public_key)
                .verify(signed.as_bytes(), &signature)
                .is_ok()
    });
    let subject = claims["sub"].as_str()?.to_owned();
    is_signed.then(|| Assertion { subject, id: claims["jti"].as_str().map(str::to_owned) })
}
