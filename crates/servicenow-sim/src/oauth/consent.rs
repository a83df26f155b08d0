//! `/oauth_auth.do`: the pages on which a user logs in and agrees, and the way back (facts §4). Plain forms, no script.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Tokens, client_entry};
use crate::http::exchange::parse_form;
use crate::http::{Request, Response};
use crate::instance::Instance;

/// How long a code may be exchanged, in seconds.
const CODE_LIFE: i64 = 60;

/// A user's consent, which a code stands for.
#[derive(Debug, Clone)]
pub(super) struct Consent {
    pub(super) client: String,
    pub(super) user: String,
    pub(super) redirect_uri: String,
    /// The S256 challenge, if there was one.
    pub(super) challenge: Option<String>,
    pub(super) expires: DateTime<Utc>,
}

/// Users who have logged in and are asked, and codes that are not exchanged yet.
#[derive(Debug, Default)]
pub(super) struct Consents {
    asked: HashMap<String, String>,
    codes: HashMap<String, Consent>,
}

impl Consents {
    /// A code's consent, once.
    pub(super) fn take(&mut self, code: &str, now: DateTime<Utc>) -> Option<Consent> {
        self.codes.remove(code).filter(|consent| consent.expires > now)
    }
}

/// Handles a request of the browser.
pub(crate) fn page(instance: &Instance, request: &Request) -> Response {
    let asked = |name: &str| request.parameter(name).filter(|value| !value.is_empty());
    let (Some(client_id), Some(redirect_uri)) = (asked("client_id"), asked("redirect_uri")) else {
        return refusal("Missing parameter in request");
    };
    {
        let db = instance.db.read();
        let Some(row) = client_entry(&db, client_id) else { return refusal("Invalid client") };
        let registered = db.text(row, "redirect_url");
        if !registered.split(',').any(|url| url.trim() == redirect_uri) {
            return refusal("Invalid redirect_uri");
        }
    }
    let Some(state) = asked("state") else { return refusal("Missing State parameter in request") };
    if asked("response_type") != Some("code") {
        return refusal("Invalid response_type");
    }
    if asked("code_challenge").is_some() && asked("code_challenge_method") != Some("S256") {
        return refusal("Invalid code_challenge_method");
    }
    if request.method != "POST" {
        return login_page("");
    }
    let form = parse_form(&String::from_utf8_lossy(&request.body));
    let field = |name: &str| form.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str());
    if field("session").is_empty() {
        let user = field("user_name");
        if !instance.password_matches(&instance.db.read(), user, field("user_password")) {
            return login_page("User name or password invalid");
        }
        let session = instance.tokens.new_text(instance.seed, "session");
        instance.tokens.state.lock().consents.asked.insert(session.clone(), user.to_owned());
        return consent_page(client_id, user, &session);
    }
    let user = instance.tokens.state.lock().consents.asked.remove(field("session"));
    let Some(user) = user else { return login_page("Session has ended") };
    let answer = if field("decision") == "Allow" {
        let code = instance.tokens.new_text(instance.seed, "code");
        let consent = Consent {
            client: client_id.to_owned(),
            user,
            redirect_uri: redirect_uri.to_owned(),
            challenge: asked("code_challenge").map(str::to_owned),
            expires: instance.clock.now() + TimeDelta::seconds(CODE_LIFE),
        };
        instance.tokens.state.lock().consents.codes.insert(code.clone(), consent);
        format!("code={}", encode(&code))
    } else {
        "error=access_denied".to_owned()
    };
    let sign = if redirect_uri.contains('?') { '&' } else { '?' };
    let back = format!("{redirect_uri}{sign}{answer}&state={}", encode(state));
    Response::empty(302).with("Location", back)
}

impl Tokens {
    fn new_text(&self, seed: u64, purpose: &str) -> String {
        let mut state = self.state.lock();
        state.made += 1;
        super::token_text(seed, purpose, state.made)
    }
}

fn refusal(why: &str) -> Response {
    html(400, "Error", &format!("<p class=\"error\">{why}</p>"))
}

fn login_page(trouble: &str) -> Response {
    html(
        200,
        "Log in",
        &format!(
            "<form method=\"post\"><p class=\"error\">{trouble}</p>\
             <label>User name <input name=\"user_name\"></label>\
             <label>Password <input name=\"user_password\" type=\"password\"></label>\
             <button>Log in</button></form>"
        ),
    )
}

fn consent_page(client: &str, user: &str, session: &str) -> Response {
    let [client, user] = [client, user].map(escape);
    html(
        200,
        "Allow access",
        &format!(
            "<form method=\"post\"><p>{client} would like to act as {user}.</p>\
             <input type=\"hidden\" name=\"session\" value=\"{session}\">\
             <input type=\"submit\" name=\"decision\" value=\"Allow\">\
             <input type=\"submit\" name=\"decision\" value=\"Deny\"></form>"
        ),
    )
}

fn html(status: u16, title: &str, content: &str) -> Response {
    let mut page = Response::html(status, title);
    page.body = format!(
        "<!DOCTYPE html><html><head><title>{title} | ServiceNow</title></head><body><h1>{title}</h1>{content}</body></html>"
    )
    .into();
    page
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
