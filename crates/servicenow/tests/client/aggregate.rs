//! Counting.

use servicenow::Error;
use servicenow::query::{Op, Query, Term};
use servicenow_sim::{AclRule, Effect, Fault, Operation};

use crate::{basic, client, client_at, instance, login, table};

#[tokio::test]
async fn records_are_counted_in_one_call() {
    let sim = instance().await;
    let (client, incident) = (client(&sim), table("incident"));
    let ids = sim.edit().find("incident", "").expect("a query");
    assert_eq!(client.count(&incident, &Query::all()).await.expect("a count"), ids.len() as u64);
    assert_eq!(sim.requests().len(), 1);
    let query =
        Query::parse("state=2").expect("a query").and(Term::new("sys_id", Op::Ge, "8").expect("a term"));
    let expected = sim.edit().find("incident", "state=2^sys_id>=8").expect("a query").len();
    assert!(expected > 0 && expected < ids.len());
    assert_eq!(client.count(&incident, &query).await.expect("a count"), expected as u64);
    let none = Query::parse("state=12345").expect("a query");
    assert_eq!(client.count(&incident, &none).await.expect("a count"), 0);
}

#[tokio::test]
async fn records_that_are_hidden_row_by_row_are_counted() {
    let sim = instance().await;
    let all = sim.truth("incident", "admin").expect("a table").len();
    assert!(sim.truth("incident", "ess.user").expect("a table").len() < all);
    let counted = basic(&sim, "ess.user").count(&table("incident"), &Query::all()).await;
    assert_eq!(counted.expect("a count"), all as u64);
}

/// Access to the API may be restricted, and old instances do not have it.
#[tokio::test]
async fn where_the_aggregate_api_is_refused_the_table_api_counts() {
    for status in [403, 404] {
        for html in [false, true] {
            let sim = instance().await;
            sim.fault(Fault::new(Effect::Status { status, html }).path("/api/now/stats/"));
            let expected = sim.edit().find("incident", "state=2").expect("a query").len();
            let query = Query::parse("state=2").expect("a query");
            let counted = client(&sim).count(&table("incident"), &query).await;
            assert_eq!(counted.expect("a count"), expected as u64, "{status}");
            assert_eq!(sim.requests().len(), 2);
        }
    }
}

#[tokio::test]
async fn a_table_nobody_may_count_is_an_error() {
    let sim = instance().await;
    let missing = client(&sim).count(&table("u_no_such_table"), &Query::all()).await;
    assert!(matches!(missing, Err(Error::NoTable(_))), "{missing:?}");
    sim.edit().add_acl(AclRule::Table {
        table: "incident".to_owned(),
        user: Some("fdw.integration".to_owned()),
        operation: Operation::Read,
        refuse: true,
    });
    let refused = client(&sim).count(&table("incident"), &Query::all()).await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn an_answer_that_is_none_is_asked_for_again() {
    for effect in [Effect::NullBody, Effect::EmptyBody, Effect::LoginPage, Effect::Discard] {
        let sim = instance().await;
        let expected = sim.edit().find("incident", "").expect("a query").len();
        sim.fault(Fault::new(effect).times(1));
        let client = client_at(sim.url(), login("fdw.integration"), 2);
        let counted = client.count(&table("incident"), &Query::all()).await;
        assert_eq!(counted.expect("a count"), expected as u64);
    }
}
