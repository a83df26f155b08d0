//! Single writes whose answers are lost, or say nothing: what may have been carried out is not said to be refused.

use std::sync::Arc;

use servicenow::client::retry::Effect as Repeated;
use servicenow::client::table_api::Identity;
use servicenow::client::write::{Change, Fate};
use servicenow::page::{Column, Layout};
use servicenow::value::{Kind, Show};
use servicenow_sim::{Effect, Fault};

use crate::batch::{fields, inserts, new_id, write};
use crate::{client, instance, known, some_fields, table};

/// The second attempt is turned away: that says nothing about the first one.
#[tokio::test]
async fn an_attempt_that_was_lost_is_not_forgotten_when_the_next_one_is_turned_away() {
    for turned_away in [
        Effect::RateLimited { headers: true, retry_after: Some(1_800), json: true },
        Effect::Unauthorized,
        Effect::Discard,
    ] {
        let sim = instance().await;
        let id = known(&sim);
        let version =
            client(&sim).get(&table("incident"), &id, &some_fields()).await.expect("it is there").version(0);
        let update = |from| Change::Update {
            id: id.clone(),
            fields: fields("short_description", "changed"),
            effect: Repeated::Idempotent,
            from,
        };
        for (method, change) in [
            ("POST", inserts(1, 1, "made").remove(0)),
            ("PATCH", update(Some(version))),
            ("PATCH", update(None)),
            ("DELETE", Change::Delete { id: id.clone() }),
        ] {
            sim.fault(Fault::new(Effect::ResetBefore).method(method).times(1));
            sim.fault(Fault::new(turned_away.clone()).method(method).after(1));
            let fates = write(&client(&sim), vec![change.clone()]).await;
            assert!(
                matches!(&fates[..], [Fate::Failed(e)] if e.leaves_outcome_unknown()),
                "{change:?} {turned_away:?}: {fates:?}"
            );
            sim.clear_faults();
        }
    }
}

#[tokio::test]
async fn a_write_whose_answer_makes_no_sense_may_have_been_carried_out() {
    let sim = instance().await;
    let client = client(&sim);
    let number = Column { field: "short_description".to_owned(), show: Show::Value, kind: Kind::Integer };
    let numbers = Arc::new(Layout::new(vec![number]));
    let incident = table("incident");
    let insert = |n| (Identity::Fresh(new_id(4, n)), fields("short_description", "no number"));
    let (id, what) = insert(1);
    let error = client.insert(&incident, &id, &what, &numbers).await.expect_err("it is no number");
    assert!(error.leaves_outcome_unknown(), "{error:?}");
    assert!(sim.record("incident", new_id(4, 1).as_str()).is_some());
    for effect in [Repeated::Idempotent, Repeated::Once] {
        let what = fields("short_description", "no number");
        let error = client.update(&incident, &known(&sim), &what, &numbers, effect).await;
        let error = error.expect_err("it is no number");
        assert!(error.leaves_outcome_unknown(), "{error:?}");
    }
    for text in [r#"{"result":{"number":"INC1"}}"#, r#"{"result":[]}"#, r#"{"result":"#, "[]"] {
        let body = Effect::Body { text: text.to_owned(), hex: false };
        sim.fault(Fault::new(body).method("PATCH").times(1));
        let what = fields("short_description", "new");
        let error = client.update(&incident, &known(&sim), &what, &some_fields(), Repeated::Once).await;
        let error = error.expect_err("it is no record");
        assert!(error.leaves_outcome_unknown(), "{text}: {error:?}");
    }
}
