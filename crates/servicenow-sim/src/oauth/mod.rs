//! `/oauth_token.do` and the tokens it gives, `/oauth_auth.do` and the consent it asks for (facts §4).

mod assertion;
mod consent;

use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::http::exchange::parse_form;
use crate::http::{Request, Response};
use crate::ident;
use crate::instance::Instance;
use crate::json;
use crate::store::{Db, RowId};
use crate::users;
pub(crate) use assertion::JwtKey;
use consent::Consents;
pub(crate) use consent::page;

#[derive(Debug, Clone)]
struct Access {
    token: String,
    client: String,
    user: String,
    expires: DateTime<Utc>,
}

#[derive(Debug, Clone)]
struct Refresh {
    client: String,
    user: String,
    expires: DateTime<Utc>,
}

#[derive(Debug, Default)]
struct State {
    access: Vec<Access>,
    refresh: HashMap<String, Refresh>,
    consents: Consents,
    /// The assertions that were used.
    assertions: HashSet<String>,
    made: u64,
}

/// The tokens in force.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    state: Mutex<State>,
}

impl Tokens {
    /// The user of a living access token.
    pub(crate) fn user(&self, token: &str, now: DateTime<Utc>) -> Option<String> {
        let state = self.state.lock();
        state.access.iter().find(|a| a.token == token && a.expires > now).map(|a| a.user.clone())
    }

    /// Ends all access tokens; refresh tokens live on.
    pub(crate) fn expire_access(&self) {
        self.state.lock().access.clear();
    }

    /// Ends all tokens.
    pub(crate) fn expire_all(&self) {
        let mut state = self.state.lock();
        state.access.clear();
        state.refresh.clear();
    }
}

/// The registry entry of a client.
struct Client {
    id: String,
    /// It has no secret to prove itself with.
    is_public: bool,
    access_lifespan: i64,
    refresh_lifespan: i64,
    user: Option<RowId>,
}

/// Every failure has the same body: the codes of the RFC are not used (facts §4).
fn denied() -> Response {
    Response::json(401, "{\"error_description\":\"access_denied\",\"error\":\"server_error\"}")
}

/// Handles a token call.
pub(crate) fn token(instance: &Instance, request: &Request) -> Response {
    let content = request.header("content-type").unwrap_or("").to_ascii_lowercase();
    if request.method != "POST" || !content.starts_with("application/x-www-form-urlencoded") {
        return denied();
    }
    let form = parse_form(&String::from_utf8_lossy(&request.body));
    grant(instance, &form).unwrap_or_else(denied)
}

fn grant(instance: &Instance, form: &[(String, String)]) -> Option<Response> {
    let field = |name: &str| form.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let db = instance.db.read();
    let client = client(instance, &db, field("client_id")?, field("client_secret"))?;
    let now = instance.clock.now();
    let grant_type = field("grant_type")?;
    if client.is_public && grant_type != "authorization_code" {
        return None;
    }
    match grant_type {
        "password" => {
            let user = field("username")?;
            if !instance.password_matches(&db, user, field("password")?) {
                return None;
            }
            Some(issue(instance, &client, user, now, true, false))
        }
        "refresh_token" => {
            let given = field("refresh_token")?;
            let held = instance.tokens.state.lock().refresh.get(given).cloned()?;
            if held.client != client.id || held.expires <= now || !instance.user_is_active(&db, &held.user) {
                return None;
            }
            if instance.switches().rotate_refresh_tokens {
                instance.tokens.state.lock().refresh.remove(given);
            }
            Some(issue(instance, &client, &held.user, now, true, true))
        }
        "client_credentials" => {
            if !db.property_is_on("glide.oauth.inbound.client.credential.grant_type.enabled") {
                return None;
            }
            let user = db.text(client.user?, "user_name");
            instance.user_is_active(&db, &user).then(|| issue(instance, &client, &user, now, false, false))
        }
        "authorization_code" => {
            let consent = instance.tokens.state.lock().consents.take(field("code")?, now)?;
            let proof = field("code_verifier").map(|v| URL_SAFE_NO_PAD.encode(Sha256::digest(v)));
            if consent.client != client.id
                || Some(consent.redirect_uri.as_str()) != field("redirect_uri")
                || consent.challenge != proof
                || client.is_public && proof.is_none()
                || !instance.user_is_active(&db, &consent.user)
            {
                return None;
            }
            Some(issue(instance, &client, &consent.user, now, !client.is_public, false))
        }
        "urn:ietf:params:oauth:grant-type:jwt-bearer" => {
            let keys = instance.jwt_keys(&client.id);
            let assertion = assertion::check(field("assertion")?, &client.id, &keys, now)?;
            let is_new = assertion.id.is_none_or(|id| instance.tokens.state.lock().assertions.insert(id));
            (is_new && instance.user_is_active(&db, &assertion.subject))
                .then(|| issue(instance, &client, &assertion.subject, now, false, false))
        }
        _ => None,
    }
}

/// A client's entry in the registry, if it is active.
fn client_entry(db: &Db, id: &str) -> Option<RowId> {
    let registry = db.schema.find("oauth_entity")?;
    let row = db.scan(registry).find(|&r| db.text(r, "client_id") == id)?;
    (db.text(row, "active") == "true").then_some(row)
}

fn client(instance: &Instance, db: &Db, id: &str, secret: Option<&str>) -> Option<Client> {
    let row = client_entry(db, id)?;
    let is_public = db.text(row, "public_client") == "true";
    if !is_public && !instance.client_secret_matches(&db.text(row, "sys_id"), secret?) {
        return None;
    }
    let users = db.schema.find("sys_user")?;
    let seconds = |element: &str, default: i64| db.text(row, element).parse().unwrap_or(default);
    Some(Client {
        id: id.to_owned(),
        is_public,
        access_lifespan: seconds("access_token_lifespan", 1800),
        refresh_lifespan: seconds("refresh_token_lifespan", 8_640_000),
        user: db.find_val(users, db.value(row, "user")),
    })
}

/// Gives the current access token while it lives, with the time it has left; a refresh makes a new one. The refresh
/// token stays the same (facts §4).
fn issue(
    instance: &Instance,
    client: &Client,
    user: &str,
    now: DateTime<Utc>,
    refreshable: bool,
    renew: bool,
) -> Response {
    let mut state = instance.tokens.state.lock();
    state.access.retain(|a| a.expires > now);
    let current = state.access.iter().position(|a| a.client == client.id && a.user == user);
    if let (Some(at), true) = (current, renew) {
        state.access.remove(at);
    }
    let access = match current.filter(|_| !renew) {
        Some(at) => state.access[at].clone(),
        None => {
            state.made += 1;
            let access = Access {
                token: token_text(instance.seed, "access", state.made),
                client: client.id.clone(),
                user: user.to_owned(),
                expires: now + TimeDelta::seconds(client.access_lifespan),
            };
            state.access.push(access.clone());
            access
        }
    };
    let refresh = refreshable.then(|| {
        let held =
            state.refresh.iter().find(|(_, r)| r.client == client.id && r.user == user && r.expires > now);
        if let Some((token, _)) = held {
            return token.clone();
        }
        state.made += 1;
        let token = token_text(instance.seed, "refresh", state.made);
        let entry = Refresh {
            client: client.id.clone(),
            user: user.to_owned(),
            expires: now + TimeDelta::seconds(client.refresh_lifespan),
        };
        state.refresh.insert(token.clone(), entry);
        token
    });
    // A fresh token of 1,800 s is announced with 1,799 (facts §4).
    let left = ((access.expires - now).num_milliseconds() - 1).max(0) / 1000;
    let mut body = format!("{{\"access_token\":{},", json::string(&access.token));
    if let Some(refresh) = refresh {
        body.push_str(&format!("\"refresh_token\":{},", json::string(&refresh)));
    }
    body.push_str(&format!("\"scope\":\"useraccount\",\"token_type\":\"Bearer\",\"expires_in\":{left}}}"));
    Response::json(200, body)
}

/// An opaque token of 86 characters, as long as the documented ones.
fn token_text(seed: u64, purpose: &str, count: u64) -> String {
    let mut text: String =
        (0..3).map(|part| ident::opaque(seed ^ 0x0A17_5EC2, &format!("{purpose}{part}"), count)).collect();
    text.truncate(86);
    text
}

/// True when a user may log in.
pub(crate) fn may_log_in(db: &Db, user_name: &str) -> bool {
    users::find(db, user_name)
        .is_some_and(|row| db.text(row, "active") == "true" && db.text(row, "locked_out") != "true")
}
