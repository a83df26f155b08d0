//! `/oauth_token.do` and the tokens it gives (facts §4).

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

use crate::http::exchange::parse_form;
use crate::http::{Request, Response};
use crate::ident;
use crate::instance::Instance;
use crate::json;
use crate::store::{Db, RowId};
use crate::users;

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
    let client = client(instance, &db, field("client_id")?, field("client_secret")?)?;
    let now = instance.clock.now();
    match field("grant_type")? {
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
            Some(issue(instance, &client, &held.user, now, true, true))
        }
        "client_credentials" => {
            if !db.property_is_on("glide.oauth.inbound.client.credential.grant_type.enabled") {
                return None;
            }
            let user = db.text(client.user?, "user_name");
            instance.user_is_active(&db, &user).then(|| issue(instance, &client, &user, now, false, false))
        }
        _ => None,
    }
}

fn client(instance: &Instance, db: &Db, id: &str, secret: &str) -> Option<Client> {
    let registry = db.schema.find("oauth_entity")?;
    let row = db.scan(registry).find(|&r| db.text(r, "client_id") == id)?;
    if db.text(row, "active") != "true" || !instance.client_secret_matches(&db.text(row, "sys_id"), secret) {
        return None;
    }
    let users = db.schema.find("sys_user")?;
    let seconds = |element: &str, default: i64| db.text(row, element).parse().unwrap_or(default);
    Some(Client {
        id: id.to_owned(),
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
