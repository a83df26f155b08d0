use std::time::Duration;

use serde_json::{Map, json};
use servicenow::client::auth::{Credentials, OauthClient, Secret};
use servicenow::client::retry::Effect as Repeated;
use servicenow::client::stats::{Counters, Stats};
use servicenow::value::SysId;
use servicenow_sim::{Effect, Fault};

use crate::{HttpClient, basic, client, client_at, instance, known, login, page, set_up, some_fields, table};

fn counters(stats: &Stats, endpoint: &str) -> Counters {
    stats.get(endpoint).unwrap_or_else(|| panic!("{endpoint} is not in {stats:?}")).clone()
}

/// Calls, errors, retries, calls turned away.
fn figures(counters: &Counters) -> [u64; 4] {
    [counters.calls, counters.errors, counters.retries, counters.rate_limited]
}

#[tokio::test]
async fn every_request_is_counted_where_it_belongs() {
    let sim = instance().await;
    let credentials = Credentials::ClientCredentials {
        client: OauthClient::new("fdw-client", Secret::new("fdw-client-secret")),
    };
    let (client, id, layout) = (client_at(sim.url(), credentials, 3), known(&sim), some_fields());
    // The simulator counts what it had to say, however it was packed.
    sim.set(|s| s.gzip = false);
    sim.fault(Fault::new(Effect::Status { status: 503, html: true }).table("incident").times(1));
    sim.fault(
        Fault::new(Effect::RateLimited { headers: false, retry_after: None, json: false })
            .table("problem")
            .times(1),
    );
    for name in ["incident", "incident", "problem", "incident"] {
        page(&client, name, "number!=INC1", 20).await.expect("an answer");
    }
    client.get(&table("incident"), &id, &layout).await.expect("an answer");
    let nobody = SysId::new("0123456789abcdef0123456789abcdef");
    client.get(&table("incident"), &nobody, &layout).await.expect_err("nobody has it");
    let change = Map::from_iter([("short_description".to_owned(), json!("text"))]);
    client.update(&table("incident"), &id, &change, &layout, Repeated::Once).await.expect("an answer");

    let stats = client.take_stats();
    let endpoints: Vec<&str> = stats.iter().map(|(endpoint, _)| endpoint).collect();
    assert_eq!(
        endpoints,
        ["GET table/incident", "GET table/problem", "PATCH table/incident", "POST oauth_token.do"]
    );
    assert_eq!(figures(&counters(&stats, "GET table/incident")), [6, 2, 1, 0]);
    assert_eq!(figures(&counters(&stats, "GET table/problem")), [2, 1, 1, 1]);
    assert_eq!(figures(&counters(&stats, "PATCH table/incident")), [1, 0, 0, 0]);
    assert_eq!(stats.calls(), sim.requests().len() as u64);
    for (ours, theirs) in [
        ("GET table/incident", "GET table incident"),
        ("GET table/problem", "GET table problem"),
        ("PATCH table/incident", "PATCH table incident"),
        ("POST oauth_token.do", "POST oauth_token"),
    ] {
        let (ours, theirs) = (counters(&stats, ours), sim.counters()[theirs].clone());
        assert_eq!((ours.calls, ours.errors, ours.bytes_in), (theirs.calls, theirs.errors, theirs.bytes));
        assert_eq!(ours.latency.count(), ours.calls);
    }
    assert!(client.take_stats().is_empty(), "each is counted once");
}

#[tokio::test]
async fn latencies_are_those_of_the_calls() {
    let sim = instance().await;
    sim.set(|s| s.latency_ms = 50);
    let client = client(&sim);
    for _ in 0..3 {
        page(&client, "incident", "", 1).await.expect("an answer");
    }
    let latency = counters(&client.take_stats(), "GET table/incident").latency;
    let bounds = Duration::from_millis(50)..Duration::from_millis(1_000);
    for measured in [latency.min(), latency.mean(), latency.max(), latency.quantile(0.95)] {
        assert!(measured.is_some_and(|measured| bounds.contains(&measured)), "{latency:?}");
    }
}

#[tokio::test]
async fn answers_that_cannot_be_used_are_errors() {
    let sim = instance().await;
    let client = client(&sim);
    sim.fault(Fault::new(Effect::NullBody).times(1));
    page(&client, "incident", "", 1).await.expect("an answer at the second attempt");
    assert_eq!(figures(&counters(&client.take_stats(), "GET table/incident")), [2, 1, 1, 0]);
}

#[tokio::test]
async fn a_request_without_an_answer_in_time_is_an_error_and_an_interrupted_one_is_a_call() {
    let sim = instance().await;
    sim.fault(Fault::new(Effect::Hang));
    let impatient = set_up(sim.url(), login("admin"), |_, options| {
        options.request_timeout = Duration::from_millis(200);
    });
    let impatient: HttpClient = impatient.expect("a client");
    page(&impatient, "incident", "", 1).await.expect_err("no answer");
    let timed_out = counters(&impatient.take_stats(), "GET table/incident");
    assert_eq!((figures(&timed_out), timed_out.latency.count()), ([1, 1, 0, 0], 1));
    let patient = basic(&sim, "admin");
    let interrupted =
        tokio::time::timeout(Duration::from_millis(100), page(&patient, "incident", "", 1)).await;
    assert!(interrupted.is_err());
    let interrupted = counters(&patient.take_stats(), "GET table/incident");
    assert_eq!((figures(&interrupted), interrupted.latency.count()), ([1, 0, 0, 0], 0));
}
