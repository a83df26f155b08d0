//! Instances that make records under keys of their own, whatever key they are sent: what a lost answer was about cannot be
//! found there, and must not be made twice.

use servicenow::client::keys::Keys;
use servicenow::client::write::Fate;
use servicenow_sim::{Effect, Fault, Simulator};

use crate::batch::{batches, done, failures, inserts, there, with_text, write};
use crate::{HttpClient, calls, client, instance, table};

/// An instance that lets administrators alone choose keys, and a client who is none.
async fn instance_of_own_keys() -> (Simulator, HttpClient) {
    let sim = instance().await;
    sim.edit().set_property("glide.rest.table_api.admin_only_sys_fields", "true").expect("a property");
    let client = client(&sim);
    (sim, client)
}

/// The calls so far that may have made records.
fn posts(sim: &Simulator) -> usize {
    batches(sim).len() + calls(sim, "POST").iter().filter(|post| !post.in_batch).count()
}

#[tokio::test]
async fn no_record_is_made_twice_where_keys_are_not_taken() {
    for count in [1, 20] {
        for effect in [Effect::ResetAfter, Effect::NullBody, Effect::EmptyBody] {
            for is_known in [false, true] {
                let (sim, client) = instance_of_own_keys().await;
                let what = format!("{count} {effect:?} {is_known}");
                if is_known {
                    assert_eq!(done(&write(&client, inserts(9, 1, "first")).await), 1);
                    assert_eq!(client.keys(&table("incident")), Keys::Ignored);
                }
                let before = posts(&sim);
                sim.fault(Fault::new(effect.clone()).method("POST").times(1));
                let fates = write(&client, inserts(1, count, "made")).await;
                let sent = if count == 1 { 1 } else { with_text(&sim, "made") };
                assert!(sent <= count && with_text(&sim, "made") == sent, "{what}: {fates:?}");
                assert!(!failures(&fates).is_empty(), "{what}");
                assert!(failures(&fates).iter().all(|e| e.leaves_outcome_unknown()), "{what}: {fates:?}");
                let calls = posts(&sim) - before;
                assert!(count > 1 || calls == 1, "{what}: {calls}");
            }
        }
    }
}

#[tokio::test]
async fn an_item_without_an_answer_is_not_sent_again_where_keys_are_not_taken() {
    let (sim, client) = instance_of_own_keys().await;
    sim.fault(Fault::new(Effect::ResetAfter).in_batch().times(1));
    let fates = write(&client, inserts(1, 10, "made")).await;
    assert_eq!((done(&fates), failures(&fates).len(), with_text(&sim, "made")), (9, 1, 10), "{fates:?}");
}

/// Nothing is known of keys yet; but nothing was made since that could be it.
#[tokio::test]
async fn a_first_record_that_was_not_made_is_sent_again() {
    for count in [1, 10] {
        let (sim, client) = instance_of_own_keys().await;
        let _others = there(&sim, 3);
        sim.fault(Fault::new(Effect::ResetBefore).method("POST").times(1));
        let fates = write(&client, inserts(1, count, "made")).await;
        assert_eq!((done(&fates), with_text(&sim, "made")), (count, count), "{fates:?}");
    }
}

/// Here somebody makes a record that is like the one that was lost.
#[tokio::test]
async fn a_first_record_that_may_have_been_made_is_not_sent_again() {
    let (sim, client) = instance_of_own_keys().await;
    sim.edit().insert("incident", &[("short_description", "made")]).expect("a record");
    sim.fault(Fault::new(Effect::ResetBefore).method("POST").times(1));
    let fates = write(&client, inserts(1, 1, "made")).await;
    assert!(matches!(&fates[..], [Fate::Failed(e)] if e.leaves_outcome_unknown()), "{fates:?}");
    assert_eq!(posts(&sim), 1);
}

#[tokio::test]
async fn an_instance_that_takes_keys_is_known_by_its_first_record() {
    let sim = instance().await;
    let client = client(&sim);
    assert_eq!(client.keys(&table("incident")), Keys::Unknown);
    sim.fault(Fault::new(Effect::ResetAfter).method("POST").times(1));
    assert_eq!(done(&write(&client, inserts(1, 1, "made")).await), 1);
    assert_eq!(client.keys(&table("incident")), Keys::Taken);
    // Others are like it, and it is sent again nevertheless.
    sim.fault(Fault::new(Effect::ResetBefore).method("POST").times(1));
    assert_eq!(done(&write(&client, inserts(2, 1, "made")).await), 1);
    assert_eq!(with_text(&sim, "made"), 2);
}
