//! Reads that go together in one call, and what becomes of them where that does not work.

use std::time::Duration;

use futures_util::future::join_all;
use servicenow::Error;
use servicenow::client::auth::{Credentials, OauthClient, Secret};
use servicenow::query::Query;
use servicenow_sim::{Effect, Fault, Simulator};

use crate::{HttpClient, client, instance, login, page, set_up, table};

const TABLES: [&str; 4] = ["incident", "problem", "change_request", "sys_user"];

/// Every table's first two records as one caller gets them and as one gets them who gathers; `true` if they are alike.
async fn are_alike(client: &HttpClient) -> bool {
    let gathering = client.gathering();
    let alone = join_all(TABLES.map(|table| page(client, table, "", 2))).await;
    let together = join_all(TABLES.map(|table| page(&gathering, table, "", 2))).await;
    let pages = alone.into_iter().zip(together);
    pages.map(|(alone, together)| (alone.expect("a page"), together.expect("a page"))).all(|(one, other)| {
        let rows = (0..2).all(|row| {
            ["sys_id", "number", "short_description"].iter().all(|field| {
                let text = |page: &servicenow::client::table_api::Page| page.rows.get(row, field).to_owned();
                *field == "sys_id" || text(&one) == text(&other)
            }) && one.rows.id(row) == other.rows.id(row)
        });
        rows && one.total.is_some() && one.total == other.total && other.served_at.is_some()
    })
}

/// How many calls were made, tokens and the items of batches apart, and how many of them were batches.
fn calls(sim: &Simulator) -> (usize, usize) {
    let calls = sim.requests().into_iter().filter(|r| !r.in_batch && r.endpoint != "oauth_token");
    let calls: Vec<_> = calls.collect();
    (calls.len(), calls.iter().filter(|r| r.endpoint == "batch").count())
}

#[tokio::test]
async fn reads_that_are_made_at_the_same_time_go_in_one_call() {
    let sim = instance().await;
    let client = client(&sim);
    assert!(are_alike(&client).await);
    assert_eq!(calls(&sim), (TABLES.len() + 1, 1));
    let gathering = client.gathering();
    let (table, query) = (table("incident"), Query::all());
    let (page, count) = tokio::join!(page(&gathering, "incident", "", 1), gathering.count(&table, &query));
    assert_eq!(page.expect("a page").total, Some(count.expect("a count")));
    assert_eq!(calls(&sim), (TABLES.len() + 2, 2));
    assert_eq!(client.calls_together(50), 1);
}

#[tokio::test]
async fn one_that_finds_no_others_goes_alone() {
    let sim = instance().await;
    page(&client(&sim).gathering(), "incident", "", 2).await.expect("a page");
    assert_eq!(calls(&sim), (1, 0));
}

#[tokio::test]
async fn an_instance_without_batches_is_asked_as_ever_and_not_for_a_batch_again() {
    let sim = instance().await;
    sim.set(|s| s.batch_api = false);
    let client = client(&sim);
    assert!(are_alike(&client).await);
    assert!(are_alike(&client).await);
    assert_eq!(calls(&sim), (4 * TABLES.len() + 1, 1));
    assert_eq!(client.calls_together(50), 50);
}

#[tokio::test]
async fn what_has_no_time_in_a_batch_goes_alone() {
    let sim = instance().await;
    sim.set(|s| (s.batch_quota_ms, s.batch_item_ms) = (20, 10));
    let client = client(&sim);
    assert!(are_alike(&client).await);
    // Two had time, and the next batch is one of fewer.
    assert_eq!(calls(&sim), (TABLES.len() + 1 + 2, 1));
    assert!(client.calls_together(TABLES.len()) > 1);
    assert!(are_alike(&client).await);
}

#[tokio::test]
async fn one_that_is_refused_says_so_and_the_others_have_their_answers() {
    let sim = instance().await;
    let client = client(&sim).gathering();
    let (known, unknown) =
        tokio::join!(page(&client, "incident", "", 2), page(&client, "no_such_table", "", 2));
    assert_eq!(known.expect("a page").rows.len(), 2);
    assert!(matches!(unknown, Err(Error::NoTable(_))), "{unknown:?}");
    assert_eq!(calls(&sim), (2, 1));
}

#[tokio::test]
async fn a_batch_that_fails_leaves_everything_to_calls_of_their_own() {
    let sim = instance().await;
    for effect in [
        Effect::Status { status: 400, html: false },
        Effect::Status { status: 503, html: true },
        Effect::Hang,
    ] {
        let fault = sim.fault(Fault::new(effect).path("/v1/batch"));
        assert!(are_alike(&client(&sim)).await);
        sim.remove_fault(fault);
    }
    assert!(are_alike(&client(&sim)).await);
}

/// An instance may have a policy for this interface alone.
#[tokio::test]
async fn a_batch_that_is_not_let_in_says_nothing_of_the_login() {
    let sim = instance().await;
    sim.fault(Fault::new(Effect::Status { status: 401, html: false }).path("/v1/batch"));
    let with_token = Credentials::ClientCredentials {
        client: OauthClient::new("fdw-client", Secret::new("fdw-client-secret")),
    };
    for credentials in [login("fdw.integration"), with_token] {
        let client =
            set_up(sim.url(), credentials, |instance, _| instance.patience.attempts = 1).expect("a client");
        for _ in 0..4 {
            assert!(are_alike(&client).await);
        }
        assert_eq!(client.calls_together(50), 50);
    }
}

/// Whoever came first, and is gone before the others have their answers, does not take these along.
#[tokio::test]
async fn nobody_depends_on_who_was_there_first() {
    let sim = instance().await;
    let client = client(&sim).gathering();
    let first = tokio::time::timeout(Duration::from_millis(20), page(&client, "incident", "", 2));
    assert!(first.await.is_err(), "it waits for others");
    let (one, other) = tokio::join!(page(&client, "problem", "", 2), page(&client, "sys_user", "", 2));
    assert_eq!((one.expect("a page").rows.len(), other.expect("a page").rows.len()), (2, 2));
    assert_eq!(calls(&sim), (1, 1), "nobody waits for the first one's answer any more");
}
