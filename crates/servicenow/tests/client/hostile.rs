//! Answers that mean harm: each is an error within bounds of memory and time, whatever was asked for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use servicenow::Error;
use servicenow::client::auth::{Credentials, OauthClient, Secret};
use servicenow::client::retry::Effect as Repeated;
use servicenow::client::write::{Change, Fate};
use servicenow::dictionary;
use servicenow::query::Query;
use servicenow::value::SysId;
use servicenow_sim::{Effect, Fault, Simulator};

use crate::batch::fields;
use crate::{HttpClient, instance, known, login, page, set_up, some_fields, table};

/// More than the client is willing to hold here.
const TOO_MUCH: usize = 2 << 20;

fn client(sim: &Simulator, credentials: Credentials) -> HttpClient {
    set_up(sim.url(), credentials, |instance, options| {
        instance.patience.attempts = 1;
        options.request_timeout = Duration::from_secs(10);
        options.body_limit = TOO_MUCH / 2;
    })
    .expect("a client")
}

fn with_token() -> Credentials {
    Credentials::ClientCredentials {
        client: OauthClient::new("fdw-client", Secret::new("fdw-client-secret")),
    }
}

/// The error of every kind of call.
async fn errors(sim: &Simulator) -> Vec<(&'static str, Error)> {
    let admin = client(sim, login("admin"));
    let (incident, layout, id) = (table("incident"), some_fields(), known(sim));
    let change = fields("short_description", "x");
    let failed = "an error";
    let batch = ["1", "2"].map(|id| Change::Update {
        id: SysId::new(id.repeat(32)),
        fields: change.clone(),
        effect: Repeated::Idempotent,
        from: None,
    });
    let fates = admin.write_all(&incident, batch.into(), &layout, false, &Arc::default()).await;
    let batch = fates.into_iter().find_map(|fate| match fate {
        Fate::Failed(e) => Some(e),
        Fate::Done(_) | Fate::NotSent => None,
    });
    vec![
        ("batch", batch.expect(failed)),
        ("list", page(&admin, "incident", "", 10).await.expect_err(failed)),
        ("record", admin.get(&incident, &id, &layout).await.expect_err(failed)),
        ("count", admin.count(&incident, &Query::all()).await.expect_err(failed)),
        (
            "write",
            admin.update(&incident, &id, &change, &layout, Repeated::Idempotent).await.expect_err(failed),
        ),
        ("dictionary", dictionary::fetch(&admin, std::slice::from_ref(&incident)).await.expect_err(failed)),
        ("tables", dictionary::list_tables(&admin).await.expect_err(failed)),
        ("token", page(&client(sim, with_token()), "incident", "", 10).await.expect_err(failed)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_is_given_up_plain_or_compressed() {
    let sim = instance().await;
    sim.fault(Fault::new(Effect::Endless { bytes: TOO_MUCH }));
    for gzip in [true, false] {
        sim.set(|s| s.gzip = gzip);
        for (what, error) in errors(&sim).await {
            assert!(matches!(error, Error::TooLarge { .. }), "{what}, compressed: {gzip}: {error:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_none_is_unreadable_whatever_was_asked_for() {
    let sim = instance().await;
    let deep = "[".repeat(1 << 18);
    let closed = format!("{{\"result\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let bodies = [
        deep.clone(),
        closed,
        format!("{{\"result\":[{{\"sys_id\":\"1\",\"number\":{deep}"),
        "{\"a\":".repeat(200_000),
        "{\"result\":[{\"sys_id\":\"\\ud800\"}]}".to_owned(),
        "{\"result\":1e999999}".to_owned(),
        "\u{0}".to_owned(),
        "{\"access_token\":{},\"result\":{\"sys_id\":[]}}".to_owned(),
    ];
    for text in bodies {
        let begin: String = text.chars().take(40).collect();
        let fault = sim.fault(Fault::new(Effect::Body { text, hex: false }));
        for (what, error) in errors(&sim).await {
            let is_said = matches!(error, Error::Unreadable(_) | Error::CutShort(_) | Error::NoSysId);
            assert!(is_said, "{what}: {begin}: {error:?}");
            assert!(error.to_string().len() < 300, "{what}: an error is no place for an answer");
        }
        sim.remove_fault(fault);
    }
    // Not UTF-8.
    sim.fault(Fault::new(Effect::Body { text: "7b22726573756c74223a22fffe227d".to_owned(), hex: true }));
    for (what, error) in errors(&sim).await {
        assert!(
            matches!(error, Error::Unreadable(_) | Error::CutShort(_) | Error::NoSysId),
            "{what}: {error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_headers_breaks_the_connection_and_nothing_else() {
    let sim = instance().await;
    for (count, bytes) in [(5_000, 10), (90, 100_000)] {
        let fault = sim.fault(Fault::new(Effect::Headers { count, bytes }));
        for (what, error) in errors(&sim).await {
            assert!(matches!(error, Error::Broken { .. }), "{what}: {error:?}");
        }
        sim.remove_fault(fault);
    }
    page(&client(&sim, login("admin")), "incident", "", 1).await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_drips_is_given_up_in_time() {
    let sim = instance().await;
    sim.fault(Fault::new(Effect::Drip { bytes: 1, interval_ms: 50 }));
    for credentials in [login("admin"), with_token()] {
        let client = set_up(sim.url(), credentials, |instance, options| {
            instance.patience.attempts = 1;
            options.request_timeout = Duration::from_millis(400);
        });
        let began = Instant::now();
        let error =
            page(&client.expect("a client"), "incident", "", 100).await.expect_err("it takes too long");
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

/// Nothing but the same page, of ever more that there is to be.
#[tokio::test(flavor = "multi_thread")]
async fn a_dictionary_that_goes_round_in_circles_ends() {
    let sim = instance().await;
    let text = r#"{"result":[{"sys_id":"1","name":"incident","label":"Incident"}]}"#.to_owned();
    sim.fault(Fault::new(Effect::Body { text, hex: false }));
    let error = dictionary::list_tables(&client(&sim, login("admin"))).await.expect_err("no end");
    assert!(matches!(error, Error::Unreadable(_)), "{error:?}");
}

/// What is read into memory many times as large is refused earlier than rows are.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_no_rows_are_not_read_if_they_are_large() {
    let sim = instance().await;
    let padded = |bytes: usize| {
        let token = r#""access_token":"a","token_type":"Bearer""#;
        format!(r#"{{{token},"result":[],"padding":"{}"}}"#, "x".repeat(bytes))
    };
    let with_room = |credentials| {
        set_up(sim.url(), credentials, |instance, _| instance.patience.attempts = 1).expect("a client")
    };
    for (bytes, is_read) in [(200 << 10, true), (300 << 10, false)] {
        let fault =
            sim.fault(Fault::new(Effect::Body { text: padded(bytes), hex: false }).path("oauth_token"));
        let error = page(&with_room(with_token()), "incident", "", 1).await.expect_err("no such token");
        assert_eq!(matches!(error, Error::Unauthorized(_)), is_read, "{bytes}: {error:?}");
        assert_eq!(matches!(error, Error::Unreadable(_)), !is_read, "{bytes}: {error:?}");
        sim.remove_fault(fault);
    }
    for (bytes, is_read) in [(7 << 20, true), (9 << 20, false)] {
        let fault =
            sim.fault(Fault::new(Effect::Body { text: padded(bytes), hex: false }).path("/doc/table/"));
        let hidden =
            sim.fault(Fault::new(Effect::Status { status: 403, html: false }).table("sys_db_object"));
        let tables = dictionary::list_tables(&with_room(login("admin"))).await;
        assert_eq!(tables.is_ok(), is_read, "{bytes}: {:?}", tables.err());
        sim.remove_fault(hidden);
        sim.remove_fault(fault);
    }
}
