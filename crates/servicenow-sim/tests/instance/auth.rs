//! Facts §4: authentication.

use std::time::Duration;

use crate::support::{Caller, Reply, basic, small};

fn token(sim: &Caller, form: &str) -> Reply {
    sim.try_call("POST", "/oauth_token.do", Some(("application/x-www-form-urlencoded", form)))
        .expect("an answer")
}

const CLIENT: &str = "client_id=fdw-client&client_secret=fdw-client-secret";
const PASSWORD: &str = "grant_type=password&client_id=fdw-client&client_secret=fdw-client-secret&username=itil.user&password=itil-secret";

fn text(reply: &Reply, key: &str) -> String {
    reply.json()[key].as_str().unwrap_or_default().to_owned()
}

fn status_with(sim: &mut Caller, authorization: &str) -> u16 {
    sim.authorization = authorization.to_owned();
    sim.get("/api/now/table/incident?sysparm_limit=1").status
}

#[test]
fn bad_or_missing_credentials_are_401_with_the_recorded_body() {
    let mut sim = small();
    for authorization in ["", "Bearer nonsense", "Basic !!!", &basic("admin", "wrong")] {
        sim.authorization = authorization.to_owned();
        let reply = sim.get("/api/now/table/incident");
        assert_eq!(reply.status, 401, "{authorization}");
        assert_eq!(
            reply.error(),
            ("User Not Authenticated".to_owned(), "Required to provide Auth information".into())
        );
        assert_eq!(reply.header("www-authenticate"), Some("BASIC realm=\"Service-now\""));
        assert_eq!(reply.header("connection"), Some("close"));
    }
}

#[test]
fn an_inactive_or_locked_user_cannot_log_in() {
    let mut sim = small();
    let id = sim.id_of("sys_user", "user_name=itil.user");
    sim.sim.edit().update("sys_user", &id, &[("locked_out", "true")]).expect("an edit");
    assert_eq!(status_with(&mut sim, &basic("itil.user", "itil-secret")), 401);
}

#[test]
fn the_password_grant_has_the_documented_form() {
    let sim = small();
    let reply = token(&sim, PASSWORD);
    assert_eq!(reply.status, 200);
    let documented: serde_json::Value =
        serde_json::from_str(include_str!("../captures/doc_oauth_token_password.json")).expect("JSON");
    let keys = |v: &serde_json::Value| v.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&reply.json()), keys(&documented));
    assert_eq!(
        (&reply.json()["scope"], &reply.json()["token_type"]),
        (&documented["scope"], &documented["token_type"])
    );
    assert_eq!(reply.json()["expires_in"], 1799);
    assert_eq!(text(&reply, "access_token").len(), 86);
}

#[test]
fn a_living_token_is_given_again_with_the_time_it_has_left() {
    let sim = small();
    sim.sim.clock().hold(true);
    let first = token(&sim, PASSWORD);
    sim.sim.clock().advance(Duration::from_secs(100));
    let second = token(&sim, PASSWORD);
    assert_eq!(text(&first, "access_token"), text(&second, "access_token"));
    assert_eq!(second.json()["expires_in"], 1699);
}

#[test]
fn a_token_opens_the_instance_until_it_expires_and_a_refresh_keeps_the_refresh_token() {
    let mut sim = small();
    let first = token(&sim, PASSWORD);
    let bearer = format!("Bearer {}", text(&first, "access_token"));
    assert_eq!(status_with(&mut sim, &bearer), 200);
    sim.sim.clock().advance(Duration::from_secs(1801));
    assert_eq!(status_with(&mut sim, &bearer), 401);
    let refresh = text(&first, "refresh_token");
    let second = token(&sim, &format!("grant_type=refresh_token&{CLIENT}&refresh_token={refresh}"));
    assert_eq!(text(&second, "refresh_token"), refresh, "no rotation");
    assert_ne!(text(&second, "access_token"), text(&first, "access_token"));
    let again = format!("Bearer {}", text(&second, "access_token"));
    assert_eq!(status_with(&mut sim, &again), 200);
    sim.sim.clock().advance(Duration::from_secs(101 * 86_400));
    assert_eq!(
        token(&sim, &format!("grant_type=refresh_token&{CLIENT}&refresh_token={refresh}")).status,
        401
    );
}

#[test]
fn client_credentials_need_the_property_and_give_no_refresh_token() {
    let mut sim = small();
    let form = format!("grant_type=client_credentials&{CLIENT}");
    let reply = token(&sim, &form);
    assert_eq!(reply.status, 200);
    assert!(reply.json().get("refresh_token").is_none());
    assert_eq!(status_with(&mut sim, &format!("Bearer {}", text(&reply, "access_token"))), 200);
    assert_eq!(sim.sim.requests().last().and_then(|r| r.user.clone()).as_deref(), Some("fdw.integration"));
    sim.sim
        .edit()
        .set_property("glide.oauth.inbound.client.credential.grant_type.enabled", "false")
        .expect("a property");
    assert_eq!(token(&sim, &form).status, 401);
}

#[test]
fn every_token_failure_has_the_same_answer() {
    let sim = small();
    let json = sim.try_call("POST", "/oauth_token.do", Some(("application/json", "{}"))).expect("an answer");
    let failures = [
        json,
        token(
            &sim,
            "grant_type=password&client_id=fdw-client&client_secret=wrong&username=itil.user&password=itil-secret",
        ),
        token(&sim, &format!("grant_type=password&{CLIENT}&username=itil.user&password=wrong")),
        token(&sim, &format!("grant_type=refresh_token&{CLIENT}&refresh_token=dead")),
        token(&sim, &format!("grant_type=magic&{CLIENT}")),
        token(&sim, ""),
    ];
    for reply in failures {
        assert_eq!(reply.status, 401);
        assert_eq!(reply.text(), r#"{"error_description":"access_denied","error":"server_error"}"#);
    }
}

#[test]
fn lifetimes_come_from_the_registry() {
    let sim = small();
    let id = sim.id_of("oauth_entity", "client_id=fdw-client");
    sim.sim.edit().update("oauth_entity", &id, &[("access_token_lifespan", "60")]).expect("an edit");
    assert_eq!(token(&sim, PASSWORD).json()["expires_in"], 59);
}

#[test]
fn a_token_also_works_as_a_parameter_and_a_key_as_a_header() {
    let mut sim = small();
    let access = text(&token(&sim, PASSWORD), "access_token");
    sim.authorization.clear();
    assert_eq!(
        sim.get(&format!("/api/now/table/incident?sysparm_limit=1&access_token={access}")).status,
        200
    );
    sim.headers.push(("x-sn-apikey".to_owned(), "fdw-api-key".to_owned()));
    assert_eq!(sim.get("/api/now/table/incident?sysparm_limit=1").status, 200);
    sim.headers[0].1 = "another".to_owned();
    assert_eq!(sim.get("/api/now/table/incident?sysparm_limit=1").status, 401);
    let log = format!("{:?}", sim.sim.requests());
    assert!(
        !log.contains(&access) && !log.contains("itil-secret") && !log.contains("fdw-client-secret"),
        "secrets in the log"
    );
}

#[test]
fn basic_authentication_can_be_restricted_to_a_role() {
    let mut sim = small();
    sim.sim.set(|s| s.basic_auth_restricted = true);
    assert_eq!(status_with(&mut sim, &basic("itil.user", "itil-secret")), 401);
    sim.sim.edit().grant_role("itil.user", "snc_basic_auth_api_access").expect("a role");
    assert_eq!(status_with(&mut sim, &basic("itil.user", "itil-secret")), 200);
}

#[test]
fn a_registered_client_can_be_made_by_rest_with_its_secret_as_display_value() {
    let sim = small();
    let body = serde_json::json!({ "name": "new", "client_id": "new-client", "client_secret": "new-secret", "user": "FDW Integration" });
    let reply = sim.call("POST", "/api/now/table/oauth_entity?sysparm_input_display_value=true", Some(&body));
    assert_eq!(reply.status, 201);
    assert!(!reply.text().contains("new-secret"));
    let form = "grant_type=client_credentials&client_id=new-client&client_secret=new-secret";
    assert_eq!(token(&sim, form).status, 200);
}

const AUTHORIZE: &str = "/oauth_auth.do?response_type=code&client_id=fdw-client&redirect_uri=http%3A%2F%2Flocalhost%2Foauth%2Fcallback";
/// The example of RFC 7636, appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

fn post_form(sim: &Caller, target: &str, form: &str) -> Reply {
    sim.try_call("POST", target, Some(("application/x-www-form-urlencoded", form))).expect("an answer")
}

/// Logs in on the instance's page and answers its question; gives back where the browser is sent.
fn consent(sim: &Caller, target: &str, decision: &str) -> String {
    assert!(sim.get(target).text().contains("user_password"));
    let question = post_form(sim, target, "user_name=itil.user&user_password=itil-secret").text();
    let session = question.split("name=\"session\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    let form = format!("session={}&decision={decision}", session.expect("a session"));
    let reply = post_form(sim, target, &form);
    assert_eq!(reply.status, 302);
    assert_eq!(post_form(sim, target, &form).status, 200, "nobody is asked twice");
    reply.header("location").expect("an address").to_owned()
}

fn code_of(address: &str) -> &str {
    let code = address.split("code=").nth(1).and_then(|rest| rest.split('&').next());
    code.expect("a code")
}

#[test]
fn a_user_who_agrees_is_sent_back_with_a_code_that_is_good_for_one_token() {
    let mut sim = small();
    let target = format!("{AUTHORIZE}&state=s%261&code_challenge={CHALLENGE}&code_challenge_method=S256");
    assert!(
        post_form(&sim, &target, "user_name=itil.user&user_password=wrong").text().contains("user_password"),
        "a wrong password is asked for again"
    );
    let address = consent(&sim, &target, "Allow");
    assert!(address.starts_with("http://localhost/oauth/callback?code="), "{address}");
    assert!(address.ends_with("&state=s%261"), "{address}");
    let exchange = |code: &str, verifier: &str| {
        let redirect = "http%3A%2F%2Flocalhost%2Foauth%2Fcallback";
        token(
            &sim,
            &format!(
                "grant_type=authorization_code&{CLIENT}&code={code}&redirect_uri={redirect}&code_verifier={verifier}"
            ),
        )
    };
    assert_eq!(exchange(code_of(&address), "wrong").status, 401, "PKCE");
    assert_eq!(exchange(code_of(&address), VERIFIER).status, 401, "a code is good once");
    let reply = exchange(code_of(&consent(&sim, &target, "Allow")), VERIFIER);
    assert_eq!(reply.status, 200);
    assert!(!text(&reply, "refresh_token").is_empty());
    assert_eq!(status_with(&mut sim, &format!("Bearer {}", text(&reply, "access_token"))), 200);
    assert_eq!(sim.sim.requests().last().and_then(|r| r.user.clone()).as_deref(), Some("itil.user"));
    sim.authorization.clear();
    let refused = consent(&sim, &target, "Deny");
    assert_eq!(refused, "http://localhost/oauth/callback?error=access_denied&state=s%261");
}

#[test]
fn a_consent_is_asked_for_only_on_behalf_of_a_registered_client_at_its_own_address() {
    let sim = small();
    for (target, why) in [
        (AUTHORIZE.to_owned(), "Missing State parameter"),
        (format!("{AUTHORIZE}&state=s").replace("fdw-client", "nobody"), "Invalid client"),
        (format!("{AUTHORIZE}&state=s").replace("localhost", "evil.example"), "Invalid redirect_uri"),
    ] {
        let reply = sim.get(&target);
        assert_eq!(reply.status, 400);
        assert!(reply.text().contains(why), "{}", reply.text());
    }
}

#[test]
fn a_public_client_needs_pkce_and_gets_no_refresh_token() {
    let sim = small();
    let id = sim.id_of("oauth_entity", "client_id=fdw-client");
    sim.sim.edit().update("oauth_entity", &id, &[("public_client", "true")]).expect("an edit");
    let redirect = "redirect_uri=http%3A%2F%2Flocalhost%2Foauth%2Fcallback";
    let form =
        |code: &str| format!("grant_type=authorization_code&client_id=fdw-client&code={code}&{redirect}");
    let plain = consent(&sim, &format!("{AUTHORIZE}&state=s"), "Allow");
    assert_eq!(token(&sim, &form(code_of(&plain))).status, 401);
    let target = format!("{AUTHORIZE}&state=s&code_challenge={CHALLENGE}&code_challenge_method=S256");
    let proved = consent(&sim, &target, "Allow");
    let reply = token(&sim, &format!("{}&code_verifier={VERIFIER}", form(code_of(&proved))));
    assert_eq!(reply.status, 200);
    assert!(reply.json().get("refresh_token").is_none());
}

#[test]
fn refresh_tokens_can_be_good_for_one_call() {
    let sim = small();
    sim.sim.set(|s| s.rotate_refresh_tokens = true);
    let first = text(&token(&sim, PASSWORD), "refresh_token");
    let refresh = |old: &str| token(&sim, &format!("grant_type=refresh_token&{CLIENT}&refresh_token={old}"));
    let second = text(&refresh(&first), "refresh_token");
    assert_ne!(first, second);
    assert_eq!(refresh(&first).status, 401);
    assert_eq!(refresh(&second).status, 200);
}
