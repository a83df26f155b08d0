//! Who calls: basic, bearer and API-key authentication (facts §4).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::http::{ApiError, Request};
use crate::instance::Instance;
use crate::users::{self, Actor};

/// The role that may still use basic authentication where it is restricted.
const BASIC_ROLE: &str = "snc_basic_auth_api_access";

/// The caller of a request, or 401.
pub(crate) fn authenticate(instance: &Instance, request: &Request) -> Result<Actor, ApiError> {
    let (user, basic) = user_name(instance, request).ok_or_else(ApiError::unauthenticated)?;
    let db = instance.db.read();
    if !instance.user_is_active(&db, &user) {
        return Err(ApiError::unauthenticated());
    }
    let row = users::find(&db, &user).ok_or_else(ApiError::unauthenticated)?;
    let actor = Actor::of(&db, row);
    if basic && instance.switches().basic_auth_restricted && !actor.roles.contains(BASIC_ROLE) {
        return Err(ApiError::unauthenticated());
    }
    Ok(actor)
}

/// The user name that the credentials of a request prove, and whether they are basic ones.
fn user_name(instance: &Instance, request: &Request) -> Option<(String, bool)> {
    if let Some(header) = request.header("authorization") {
        let (scheme, value) = header.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some((instance.tokens.user(value.trim(), instance.clock.now())?, false));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(STANDARD.decode(value.trim()).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        let db = instance.db.read();
        return instance.password_matches(&db, user, password).then(|| (user.to_owned(), true));
    }
    let key = request.header("x-sn-apikey").or_else(|| request.parameter("x-sn-apikey"));
    if let Some(user) = key.and_then(|k| instance.api_key_user(k)) {
        return Some((user, false));
    }
    let token = request.parameter("access_token")?;
    Some((instance.tokens.user(token, instance.clock.now())?, false))
}
