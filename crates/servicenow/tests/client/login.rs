use std::time::Duration;

use futures_util::future::join_all;
use servicenow::Error;
use servicenow::client::auth::vault::Vault;
use servicenow::client::auth::{Credentials, OauthClient, Secret};
use servicenow_sim::{Effect, Fault, PRIVATE_KEY, Simulator};

use crate::redirect::answering;
use crate::{basic, calls, client_at, instance, logins, page, set_up};

fn client_credentials(secret: &str) -> Credentials {
    Credentials::ClientCredentials { client: OauthClient::new("fdw-client", Secret::new(secret)) }
}

fn oauth_client() -> OauthClient {
    OauthClient::new("fdw-client", Secret::new("fdw-client-secret"))
}

fn password_grant(user: &str, password: &str) -> Credentials {
    Credentials::Password {
        client: oauth_client(),
        username: user.to_owned(),
        password: Secret::new(password).into(),
    }
}

fn assertions_of(subject: &str) -> Credentials {
    Credentials::JwtBearer {
        client: oauth_client(),
        key: Secret::new(PRIVATE_KEY).into(),
        key_id: Some("fdw-key".to_owned()),
        subject: subject.to_owned(),
    }
}

fn refresh_token(token: &str) -> Credentials {
    Credentials::RefreshToken { client: oauth_client(), token: Secret::new(token).into() }
}

/// A refresh token that was got elsewhere.
async fn refresh_token_of(sim: &Simulator, user: &str, password: &str) -> String {
    let form = [
        ("grant_type", "password"),
        ("client_id", "fdw-client"),
        ("client_secret", "fdw-client-secret"),
        ("username", user),
        ("password", password),
    ];
    let url = format!("{}/oauth_token.do", sim.url());
    let body = form_urlencoded(&form);
    let answer = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = answer.post(url).header("content-type", "application/x-www-form-urlencoded").body(body);
    let answer = answer.send().await.expect("an answer").text().await.expect("a body");
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    answer["refresh_token"].as_str().expect("a token").to_owned()
}

fn form_urlencoded(pairs: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// As whom the instance has seen the last call.
fn seen_as(sim: &Simulator) -> Option<String> {
    calls(sim, "GET").last().and_then(|call| call.user.clone())
}

#[tokio::test]
async fn every_login_is_seen_as_its_user() {
    let sim = instance().await;
    for (credentials, user, tokens) in [
        (
            Credentials::Basic {
                username: "itil.user".to_owned(),
                password: Secret::new("itil-secret").into(),
            },
            "itil.user",
            0,
        ),
        (password_grant("pacific.user", "pacific-secret"), "pacific.user", 1),
        (client_credentials("fdw-client-secret"), "fdw.integration", 1),
        (Credentials::ApiKey { key: Secret::new("fdw-api-key").into() }, "fdw.integration", 0),
        (assertions_of("itil.user"), "itil.user", 1),
        (refresh_token(&refresh_token_of(&sim, "german.user", "german-secret").await), "german.user", 1),
    ] {
        let before = logins(&sim);
        page(&client_at(sim.url(), credentials, 1), "incident", "", 1).await.expect("an answer");
        assert_eq!(seen_as(&sim).as_deref(), Some(user));
        assert_eq!(logins(&sim) - before, tokens);
    }
}

#[tokio::test]
async fn user_names_and_passwords_of_any_characters_are_sent_whole() {
    let sim = instance().await;
    let (user, password) = ("jürg@example.com", "p:ä ß%&+=\"'\u{1F512}");
    sim.edit().add_user(user, password, &["itil"]).expect("a user");
    let credentials =
        Credentials::Basic { username: user.to_owned(), password: Secret::new(password).into() };
    page(&client_at(sim.url(), credentials, 1), "incident", "", 1).await.expect("an answer");
    assert_eq!(seen_as(&sim).as_deref(), Some(user));
    page(&client_at(sim.url(), password_grant(user, password), 1), "incident", "", 1)
        .await
        .expect("an answer");
    assert_eq!(seen_as(&sim).as_deref(), Some(user));
}

#[tokio::test]
async fn calls_side_by_side_share_one_token() {
    let sim = instance().await;
    let client = client_at(sim.url(), client_credentials("fdw-client-secret"), 1);
    for _ in 0..2 {
        let pages = join_all((0..10).map(|_| page(&client, "incident", "", 1))).await;
        assert!(pages.iter().all(Result::is_ok));
    }
    assert_eq!(logins(&sim), 1);
}

#[tokio::test]
async fn a_token_that_ends_early_is_renewed_once_for_all_calls() {
    let sim = instance().await;
    let client = client_at(sim.url(), client_credentials("fdw-client-secret"), 1);
    page(&client, "incident", "", 1).await.expect("an answer");
    sim.edit().expire_tokens(true);
    let pages = join_all((0..8).map(|_| page(&client, "incident", "", 1))).await;
    assert!(pages.iter().all(Result::is_ok));
    assert_eq!(logins(&sim), 2);
}

#[tokio::test]
async fn a_token_the_instance_never_accepts_is_not_fetched_again_and_again() {
    let sim = instance().await;
    let client = client_at(sim.url(), client_credentials("fdw-client-secret"), 4);
    sim.fault(Fault::new(Effect::Unauthorized).path("/api/now/"));
    let error = page(&client, "incident", "", 1).await.expect_err("401");
    assert!(
        matches!(&error, Error::Unauthorized(words) if words.message == "User Not Authenticated"),
        "{error:?}"
    );
    assert_eq!((logins(&sim), calls(&sim, "GET").len()), (2, 2));
}

#[tokio::test]
async fn a_refused_login_rests() {
    let sim = instance().await;
    for credentials in [client_credentials("wrong"), password_grant("itil.user", "wrong")] {
        sim.clear_requests();
        let client = client_at(sim.url(), credentials, 4);
        for _ in 0..5 {
            assert!(matches!(page(&client, "incident", "", 1).await, Err(Error::Login)));
        }
        assert_eq!(logins(&sim), 1);
        assert!(calls(&sim, "GET").is_empty());
    }
    sim.clear_requests();
    let wrong =
        Credentials::Basic { username: "itil.user".to_owned(), password: Secret::new("wrong").into() };
    let client = client_at(sim.url(), wrong, 4);
    assert!(matches!(page(&client, "incident", "", 1).await, Err(Error::Unauthorized(_))));
    for _ in 0..5 {
        assert!(matches!(page(&client, "incident", "", 1).await, Err(Error::Login)));
    }
    assert_eq!(calls(&sim, "GET").len(), 1);
}

#[tokio::test]
async fn a_refused_login_is_tried_again_after_ever_longer_rests() {
    let sim = instance().await;
    let clock = sim.clock().clone();
    let client = set_up(sim.url(), client_credentials("wrong"), |instance, _| {
        instance.vault = Vault::default().with_clock(move || clock.now().into());
    })
    .expect("a client");
    let call = async || page(&client, "incident", "", 1).await;
    assert!(matches!(call().await, Err(Error::Login)));
    for (rest, tried) in [(31, 2), (31, 2), (31, 3), (61, 3), (61, 4)] {
        sim.clock().advance(Duration::from_secs(rest));
        assert!(matches!(call().await, Err(Error::Login)));
        assert_eq!(logins(&sim), tried, "after {rest} s more");
    }
    sim.edit().set_client_secret("fdw-client", "wrong").expect("the client is there");
    assert!(matches!(call().await, Err(Error::Login)), "it still rests");
    sim.clock().advance(Duration::from_secs(900));
    call().await.expect("what was wrong is right by now");
}

#[tokio::test]
async fn a_login_that_failed_for_want_of_an_answer_does_not_rest() {
    let sim = instance().await;
    for effect in [
        Effect::Status { status: 503, html: true },
        Effect::RateLimited { headers: false, retry_after: None, json: false },
        Effect::Discard,
        Effect::ResetBefore,
        Effect::LoginPage,
    ] {
        let fault = sim.fault(Fault::new(effect.clone()).path("oauth_token"));
        let client = client_at(sim.url(), client_credentials("fdw-client-secret"), 1);
        let error = page(&client, "incident", "", 1).await.expect_err("no token");
        let told_apart = match effect {
            Effect::Status { .. } => matches!(error, Error::Unavailable { status: 503, .. }),
            Effect::RateLimited { .. } => matches!(error, Error::RateLimited { .. }),
            Effect::Discard => matches!(error, Error::Discarded),
            Effect::ResetBefore => matches!(error, Error::Broken { .. }),
            _ => matches!(error, Error::Unreadable(_)),
        };
        assert!(told_apart, "{effect:?}: {error:?}");
        sim.remove_fault(fault);
        page(&client, "incident", "", 1).await.expect("an answer at once");
    }
}

#[tokio::test]
async fn the_wait_that_the_token_endpoint_asks_for_is_kept() {
    let sim = instance().await;
    let limited = Effect::RateLimited { headers: true, retry_after: Some(1_800), json: true };
    sim.fault(Fault::new(limited).path("oauth_token"));
    let client = client_at(sim.url(), client_credentials("fdw-client-secret"), 3);
    for _ in 0..3 {
        let error = page(&client, "incident", "", 1).await.expect_err("no token");
        assert!(matches!(error, Error::RateLimited { retry_after: Some(_), .. }), "{error:?}");
    }
    assert_eq!(sim.requests().len(), 1);
}

#[tokio::test]
async fn tokens_can_come_from_elsewhere() {
    let (sim, gateway) = (instance().await, instance().await);
    let with_token_url = |url: &str| {
        set_up(sim.url(), client_credentials("fdw-client-secret"), |instance, _| {
            instance.token_url = Some(url.parse().expect("an address"));
            instance.patience.attempts = 1;
        })
        .expect("a client")
    };
    page(&with_token_url(&format!("{}/oauth_token.do", sim.url())), "incident", "", 1)
        .await
        .expect("an answer");
    let _other_token =
        page(&with_token_url(&format!("{}/oauth_token.do", gateway.url())), "incident", "", 1).await;
    assert!(logins(&gateway) > 0);
}

#[tokio::test]
async fn nothing_shows_a_secret() {
    let sim = instance().await;
    let mut shown = Vec::new();
    for credentials in [
        client_credentials("s3cret"),
        password_grant("itil.user", "s3cret"),
        Credentials::Basic { username: "u".to_owned(), password: Secret::new("s3cret").into() },
        Credentials::ApiKey { key: Secret::new("s3cret").into() },
        refresh_token("s3cret"),
        Credentials::JwtBearer {
            client: oauth_client(),
            key: Secret::new("s3cret").into(),
            key_id: None,
            subject: "u".to_owned(),
        },
    ] {
        shown.push(format!("{credentials:?}"));
        let client = client_at(sim.url(), credentials, 1);
        let error = page(&client, "incident", "", 1).await.expect_err("a refused login");
        shown.push(format!("{client:?} {error:?} {error}"));
    }
    assert!(!shown.concat().contains("s3cret"), "{shown:?}");
}

#[tokio::test]
async fn basic_logins_that_the_instance_restricts_are_refused() {
    let sim = instance().await;
    sim.set(|s| s.basic_auth_restricted = true);
    assert!(matches!(page(&basic(&sim, "itil.user"), "incident", "", 1).await, Err(Error::Unauthorized(_))));
    page(&client_at(sim.url(), client_credentials("fdw-client-secret"), 1), "incident", "", 1)
        .await
        .expect("an answer");
}

/// What the endpoint says when it refuses is not established: nothing, a web page, or any JSON.
#[tokio::test]
async fn a_refusal_is_one_whatever_it_says_and_is_not_tried_again() {
    let bodies = [
        ("401 Unauthorized", "text/html", ""),
        ("400 Bad Request", "text/html", "<html>Bad request</html>"),
        (
            "403 Forbidden",
            "application/json",
            r#"{"error":{"message":"User Not Authenticated"},"status":"failure"}"#,
        ),
        (
            "401 Unauthorized",
            "application/json",
            r#"{"error_description":"access_denied","error":"server_error"}"#,
        ),
    ];
    for (status, kind, body) in bodies {
        let (url, asked) = answering(format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ));
        let client = client_at(&url, password_grant("admin", "wrong"), 3);
        for _ in 0..2 {
            let error = page(&client, "incident", "", 1).await.expect_err(status);
            assert!(matches!(error, Error::Login), "{status} {body}: {error:?}");
        }
        assert_eq!(asked.try_iter().count(), 1, "{status} {body}");
    }
}
